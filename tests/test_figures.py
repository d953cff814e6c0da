"""Figures: what is drawn is what was given, with a question above and units beside, in the same colours."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import same_color, to_hex, to_rgb

from uniego_utils import figures
from uniego_utils.figures import (
    Scale,
    class_colours,
    plot_barcodes,
    plot_bars,
    plot_blend,
    plot_curves,
    plot_doses,
    plot_dots,
    plot_heatmap,
    plot_intervals,
    plot_lines,
    plot_moment,
    plot_plane,
    plot_scatter,
    plot_stacked,
    plot_storyboard,
    plot_strips,
    plot_verdicts,
)
from uniego_utils.figures.style import (
    BACKGROUND_COLOUR,
    MOST_ROWS,
    TEACHER_COLOURS,
    UNIEGO_COLOUR,
    colour_of,
    colours_of,
    text_colour,
    verdict,
)
from uniego_utils.methods import METHODS

METHOD_LABELS = {key: method.label for key, method in METHODS.items()}
TITLE, LABELS = "Who is it?", {"ego_dino": "Ego DINO", "exo_skl": "Exo skeleton", "uniego": "UNIEGO"}
KEYS = list(LABELS)
COLOURS = class_colours(["walk", "run"], "background")
BARS = {"truth": np.array(["background", "walk", "walk", "run"]), "UNIEGO": np.array(["walk"] * 4)}
EDGES = np.array([0.0, 1.0, 2.0, 3.0, 4.0])
PICTURE = np.zeros((8, 10, 3), np.uint8)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def scores() -> pd.DataFrame:
    """Two seeds of three methods."""
    rows = [("ego_dino", 40.0), ("ego_dino", 44.0), ("exo_skl", 50.0), ("exo_skl", 50.0), ("uniego", 60.0)]
    return pd.DataFrame(rows, columns=["method", "top1"]).assign(nll=1.5)


def plane() -> pd.DataFrame:
    grid = pd.DataFrame([(x, y, -1) for x in (0, 1, 2) for y in (0, 1, 2)], columns=["x", "y", "corner"])
    corners = pd.DataFrame([(0, 0, 0), (2, 0, 1), (1, 2, 2)], columns=["x", "y", "corner"])
    table = pd.concat([grid, corners])
    return table.assign(train_nll=table["x"] + 1.0, val_nll=table["y"] + 1.0)


def blend() -> tuple:
    points = pd.DataFrame(
        {"val_top1": [40.0, 50.0, 55.0], "val_nll": [2.0, 1.5, 1.2]}, ["ego_dino", "merged", 0]
    )
    expected, error = {"val_top1": 52.0, "val_nll": 1.3}, {"val_top1": 2.0, "val_nll": 0.1}
    return (
        {"ego_dino": 0.3, "exo_skl": 0.7},
        points,
        expected,
        error,
        expected,
        {**LABELS, "merged": "Merged"},
    )


DRAWN = {
    "plot_bars": lambda: plot_bars({"accuracy (%)": dict.fromkeys(KEYS, 5.0)}, LABELS, TITLE),
    "plot_stacked": lambda: plot_stacked(
        {"clips": pd.DataFrame({"train": [1, 2], "val": [3, 4]}, ["walk", "run"])}, {}, TITLE
    ),
    "plot_verdicts": lambda: plot_verdicts(
        pd.DataFrame(
            [(0.9, "walk", True, True), (0.1, "run", False, False)],
            ["ego_dino", "exo_skl"],
            ["probability", "predicted", "right", "selected"],
        ),
        LABELS,
        TITLE,
    ),
    "plot_dots": lambda: plot_dots(scores(), {"top1": "accuracy (%)", "nll": "NLL (nats)"}, LABELS, TITLE),
    "plot_intervals": lambda: plot_intervals(
        pd.DataFrame({"method": KEYS, "mean": 1.0, "low": [0.0, np.nan, 0.5], "high": [2.0, np.nan, 1.5]}),
        LABELS,
        TITLE,
        "gain (points)",
    ),
    "plot_lines": lambda: plot_lines(
        {"NLL (nats)": pd.DataFrame({"uniego": [2.0, 1.0]})}, LABELS, TITLE, "epoch"
    ),
    "plot_curves": lambda: plot_curves(
        {"uniego": [{"epoch": 1, "class_loss": 2.0}, {"epoch": 2, "class_loss": 1.0, "val_top1": 50.0}]},
        LABELS,
        TITLE,
    ),
    "plot_doses": lambda: plot_doses(
        pd.DataFrame({"dose": [0, 0, 3], "method": "uniego", "val_top1": [50, 52, 40], "val_nll": 1.0}),
        "val",
        LABELS,
        TITLE,
    ),
    "plot_scatter": lambda: plot_scatter(
        {"val": pd.DataFrame({"x": [1.0], "y": [2.0], "kind": "pair"})},
        TITLE,
        "measured (nats)",
        "expected (nats)",
    ),
    "plot_blend": lambda: plot_blend(*blend(), TITLE),
    "plot_plane": lambda: plot_plane(plane(), KEYS, LABELS, TITLE),
}
PICTURES = {
    "plot_heatmap": lambda: plot_heatmap(
        {"": (pd.DataFrame(np.eye(3), KEYS, KEYS), Scale("linear CKA"))}, LABELS, TITLE
    ),
    "plot_strips": lambda: plot_strips({"ego": [PICTURE] * 3}, TITLE),
    "plot_barcodes": lambda: plot_barcodes({"video": (BARS, EDGES)}, COLOURS, TITLE),
    "plot_storyboard": lambda: plot_storyboard(
        {"ego": [PICTURE] * 2}, np.array([1, 3]), BARS, EDGES, COLOURS, TITLE
    ),
    "plot_moment": lambda: plot_moment({"ego": PICTURE}, 2.5, BARS, EDGES, COLOURS, TITLE),
}


def test_every_kind_of_figure_is_tested_here():
    assert {name for name in figures.__all__ if name.startswith("plot_")} == DRAWN.keys() | PICTURES.keys()


@pytest.mark.parametrize("name", DRAWN | PICTURES)
def test_every_figure_asks_its_question(name):
    figure = (DRAWN | PICTURES)[name]()
    figure.canvas.draw()
    assert figure.get_suptitle() == TITLE


@pytest.mark.parametrize("name", DRAWN)
def test_every_panel_says_what_its_axis_is(name):
    axes = DRAWN[name]().axes
    assert all(ax.get_xlabel() for ax in axes if ax.get_label() != "<colorbar>")
    assert all(ax.get_ylabel() for ax in axes if ax.get_label() == "<colorbar>")
    named_rows = [tick.get_text() for tick in axes[0].get_yticklabels()]
    assert axes[0].get_ylabel() or set(named_rows) & {*LABELS.values(), "walk"}


def test_colours_are_one_a_teacher_and_the_same_everywhere():
    assert len(set(TEACHER_COLOURS.values()) | {UNIEGO_COLOUR}) == len(TEACHER_COLOURS) + 1
    assert colours_of([*TEACHER_COLOURS, "uniego"]) == {
        name: colour_of(name) for name in (*TEACHER_COLOURS, "uniego")
    }
    assert METHOD_LABELS["uniego"] == "UNIEGO" and len(set(METHOD_LABELS.values())) == len(METHOD_LABELS)
    bars = plot_bars({"accuracy (%)": dict.fromkeys(KEYS, 5.0)}, LABELS, TITLE).axes[0].patches
    lines = (
        plot_lines({"NLL": pd.DataFrame(dict.fromkeys(KEYS, [1.0, 2.0]))}, LABELS, TITLE, "x").axes[0].lines
    )
    for key, bar, line in zip(KEYS, bars, lines, strict=True):
        assert same_color(bar.get_facecolor(), colour_of(key)) and same_color(
            line.get_color(), colour_of(key)
        )


def test_names_without_a_colour_differ_in_theirs():
    for count in (2, 5, 12):
        colours = colours_of([f"kind {number}" for number in range(count)])
        assert len({to_hex(colour) for colour in colours.values()}) == count
    assert colours_of(["kind"], {"kind": "#123456"}) == {"kind": "#123456"}


def test_colours_of_classes_differ_and_background_is_pale():
    colours = class_colours([f"class {number}" for number in range(24)], "background")
    assert colours.pop("background") == BACKGROUND_COLOUR
    assert len({to_rgb(colour) for colour in colours.values()}) == 24
    assert "" not in class_colours(["walk"])


def test_text_is_read_on_its_colour():
    assert (text_colour("#FFFFFF"), text_colour("#000000"), text_colour("#332288")) == ("k", "w", "w")
    assert verdict(True)[1] != verdict(False)[1] and verdict(True)[0] != verdict(False)[0]


def test_bars_have_the_length_of_their_values_and_say_them():
    table = pd.DataFrame({"seen": [10.0, 20.0], "held out": [5.0, 15.0]}, ["ego_dino", "exo_skl"])
    figure = plot_bars({"correct (%)": table}, LABELS, TITLE, {"correct (%)": 7.0}, {"correct (%)": 100})
    ax = figure.axes[0]
    assert [bar.get_width() for bar in ax.patches] == [10, 20, 5, 15]
    assert [text.get_text() for text in ax.texts] == ["10 seen", "20 seen", "5 held out", "15 held out"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["Ego DINO", "Exo skeleton"]
    assert ax.lines[0].get_xdata()[0] == 7 and ax.get_xlim()[0] == 0 and ax.get_xlim()[1] > 100
    assert ax.yaxis_inverted()  # the first row is on top


def test_bars_below_zero_fit():
    ax = plot_bars({"gain (points)": {"ego_dino": -2.0, "uniego": 1.0}}, LABELS, TITLE).axes[0]
    assert ax.get_xlim()[0] < -2 and ax.get_xlim()[1] > 1


def test_stacked_parts_lie_end_to_end():
    shares = pd.DataFrame({"ego_dino": [30.0, 50.0], "exo_skl": [70.0, 2.0]}, ["uniego", "gate"])
    ax = plot_stacked({"share (%)": shares}, LABELS, TITLE).axes[0]
    assert [(bar.get_x(), bar.get_width()) for bar in ax.patches] == [(0, 30), (0, 50), (30, 70), (50, 2)]
    assert [text.get_text() for text in ax.texts] == ["30", "50", "70", ""] and ax.get_xlim() == (0, 100)


def test_hundreds_of_rows_are_cut_and_the_title_says_so():
    table = pd.DataFrame({"train": np.ones(100)}, [f"class {number}" for number in range(100)])
    for figure in (
        plot_stacked({"clips": table}, {}, TITLE),
        plot_heatmap({"": (table, Scale("share"))}, {}, TITLE),
    ):
        assert figure.get_suptitle() == f"{TITLE}  (first {MOST_ROWS} of 100)"
        assert len(figure.axes[0].get_yticklabels()) == MOST_ROWS


def test_a_bar_is_at_the_mean_of_several_dots_and_one_dot_has_its_value():
    ax = plot_dots(scores(), {"top1": "accuracy (%)"}, LABELS, TITLE).axes[0]
    drawn = [line.get_xdata().tolist() for line in ax.lines]
    assert drawn == [[40, 44], [42, 42], [50, 50], [50, 50], [60]]
    assert [text.get_text() for text in ax.texts] == ["60"]


def test_small_differences_in_percent_look_small():
    table = pd.DataFrame({"method": KEYS, "top1": [50.0, 50.1, 50.2], "nll": [1.0, 1.1, 1.2]})
    ax, other = plot_dots(table, {"top1": "accuracy (%)", "nll": "NLL (nats)"}, LABELS, TITLE).axes
    assert np.ptp(ax.get_xlim()) == pytest.approx(12) and np.ptp(other.get_xlim()) < 1


def test_groups_of_dots_differ_in_their_markers():
    table = pd.concat([scores().assign(head=head) for head in ("tcn", "temba")])
    figure = plot_dots(table, {"top1": "accuracy (%)"}, LABELS, TITLE, by="head")
    markers = {line.get_marker() for line in figure.axes[0].lines if line.get_linestyle() == "None"}
    assert len(markers) == 2 and [text.get_text() for text in figure.legends[0].get_texts()] == [
        "tcn",
        "temba",
    ]


def test_lines_leave_gaps_out_and_those_of_one_colour_differ_in_their_dashes():
    table = pd.DataFrame({"direct": [1.0, np.nan, 3.0], "naive": [2.0, 2.0, 2.0]}, index=[1, 2, 3])
    assert colour_of("direct") == colour_of("naive")
    figure = plot_lines({"whole": table}, METHOD_LABELS, TITLE, "epoch", "cosine", reference=0)
    first, second, reference = figure.axes[0].lines
    assert first.get_xdata().tolist() == [1, 3] and first.get_linestyle() != second.get_linestyle()
    assert reference.get_ydata()[0] == 0
    assert (figure.axes[0].get_title(), figure.axes[0].get_ylabel()) == ("whole", "cosine")


def test_doses_are_means_with_a_band_of_a_standard_error():
    table = pd.DataFrame({"dose": [0, 0, 3], "method": "uniego", "val_top1": [50.0, 54, 40], "val_nll": 1.0})
    ax = plot_doses(table, "val", LABELS, TITLE).axes[0]
    assert ax.lines[0].get_ydata().tolist() == [52, 40]
    heights = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (40, 54)


def test_heat_maps_keep_their_range_and_share_a_colour_bar():
    table, scale = (
        pd.DataFrame([[0.2, np.nan], [-0.04, 0.4]], KEYS[:2], KEYS[:2]),
        Scale("cosine", -1, 1, 1, True),
    )
    figure = plot_heatmap({"a": (table, scale), "b": (table, scale)}, LABELS, TITLE)
    assert len(figure.axes) == 3 and figure.axes[2].get_ylabel() == "cosine"
    assert all(ax.collections[0].get_clim() == (-1, 1) for ax in figure.axes[:2])
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.2", "0.0", "0.4"]
    others = {"a": (table, scale), "b": (table, Scale("share"))}
    assert len(plot_heatmap(others, LABELS, TITLE).axes) == 4


def test_kinds_of_points_without_a_colour_are_pale():
    table = pd.DataFrame({"x": [0.0, 1.0], "y": [0.0, 1.0], "kind": ["walk", "rare"]})
    figure = plot_scatter({"Ego DINO": table}, TITLE, colours={"walk": "#112233"})
    others, walk = figure.axes[0].collections
    assert same_color(walk.get_facecolor()[0][:3], "#112233") and others.get_offsets().tolist() == [[1, 1]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["walk"]


def test_rows_of_pictures_may_differ_in_length_and_marks_begin_with_the_second():
    strips = {"ego": [PICTURE] * 3, "exo": [PICTURE] * 2}
    figure = plot_strips(strips, TITLE, right={"ego": [True, False], "exo": [True]})
    shown = [ax for ax in figure.axes if ax.images]
    assert [ax.get_title() for ax in shown] == ["", "✓", "✗", "", "✓"]
    assert [ax.get_ylabel() for ax in shown] == ["ego", "", "", "exo", ""] and len(figure.axes) == 6


def test_skeletons_are_drawn_where_their_joints_are():
    joints = np.array([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]])
    ax = plot_strips({"exo": [PICTURE]}, TITLE, {"exo": joints}, bones=[(0, 2)]).axes[0]
    assert ax.lines[0].get_xydata().tolist() == [[1, 2], [5, 6]] and ax.get_xlim() == (-0.5, 9.5)


def test_bars_over_time_last_as_long_as_their_labels():
    ax = plot_barcodes({"video": (BARS, EDGES)}, COLOURS, TITLE).axes[0]
    assert [(bar.get_x(), bar.get_width()) for bar in ax.patches] == [(0, 1), (1, 2), (3, 1), (0, 4)]
    assert [text.get_text() for text in ax.texts] == ["walk", "run"]  # of the truth, background aside
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["truth", "UNIEGO"]


def test_a_moment_says_what_every_row_takes_it_for():
    figure = plot_moment({"ego": PICTURE}, 3.5, BARS, EDGES, COLOURS, TITLE)
    assert [text.get_text() for text in figure.axes[1].texts] == ["truth:  run", "UNIEGO: ✗ walk"]
    assert figure.axes[2].lines[0].get_xdata()[0] == 3.5
