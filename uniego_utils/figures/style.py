"""What all figures share: a teacher has one colour, one name and one place everywhere.

The functions of this folder take data and return a Figure; they compute nothing and save nothing. `panels`
maps what a panel shows, with its unit, to its data; `labels` maps keys (teachers, methods) to their names,
and what has no label is called by its key; `title` is the question.
"""

from collections.abc import Iterable, Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

Colour = str | tuple[float, ...]

# Paul Tol's "muted" scheme: nine colours that people with colour-blindness can tell apart
TEACHER_COLOURS = {
    "ego_depth": "#332288",
    "ego_dino": "#88CCEE",
    "ego_siglip": "#44AA99",
    "exo_rgb": "#117733",
    "exo_skego": "#999933",
    "exo_depth": "#DDCC77",
    "exo_skl": "#CC6677",
    "exo_dino": "#882255",
    "exo_siglip": "#AA4499",
}
UNIEGO_COLOUR = "#EE6611"
OTHER_COLOURS = {
    **dict.fromkeys(("none", "control"), "#666666"),
    **dict.fromkeys(("all", "naive"), "#0077BB"),
    **dict.fromkeys(("best", "average", "merged", "merged_ce"), "#F4B183"),  # on the way to UNIEGO: paler
    "all_proxies": "#222222",
    "direct": "#0077BB",
    "pcgrad": "#33BBEE",
    "cagrad": "#EE3377",
    "upgrad": "#009988",
    "heldout": "#009988",
    "gate": "#CC3377",
    "random": "#BBBBBB",
    "uniego_unlabelled": "#AA3300",
    "all_unlabelled": "#222222",
    **dict.fromkeys(("self_unlabelled", "control_long", "naive_unlabelled"), "#666666"),
}
METHOD_LABELS = {
    "none": "Ego baseline",
    "all": "Naive multi-teacher",
    "merged": "Merged proxies",
    "average": "Average of proxies",
    "best": "Best proxy (by validation)",
    "control": "Ego baseline, trained on",
    "naive": "Naive multi-teacher, trained on",
    "merged_ce": "Merged, then labels alone",
    "uniego": "UNIEGO",
    "layer": "Merged per layer",
    "parameter": "Merged per parameter",
    "soup": "Greedy soup",
    "arithmetic": "Task arithmetic",
    "ties": "TIES",
    "start_all": "No merge, all proxies",
    "start_spd": "No merge, SPD",
    "after_best": "Best proxy, then SPD",
    "after_average": "Average, then SPD",
    "after_layer": "Merged per layer, then SPD",
    "after_parameter": "Merged per parameter, then SPD",
    "after_soup": "Greedy soup, then SPD",
    "after_arithmetic": "Task arithmetic, then SPD",
    "after_ties": "TIES, then SPD",
    "all_proxies": "All proxies",
    "ego_exo": "Top-1 (ego) + Top-1 (exo)",
    "top2": "Top-2",
    "top3": "Top-3",
    "features_only": "SPD, features only",
    "logits_only": "SPD, logits only",
    "warm": "SPD at temperature 4",
    "random": "One proxy by chance",
    "heldout": "Selected by held-out loss",
    "gate": "Learned selection (gate)",
    "ca_mkd": "Weighted by confidence (CA-MKD)",
    "unic": "All proxies, dropped by chance (UNIC)",
    "uniego_unlabelled": "UNIEGO with unlabelled clips",
    "all_unlabelled": "All proxies with unlabelled clips",
    "naive_unlabelled": "Naive multi-teacher with unlabelled clips",
    "self_unlabelled": "Ego baseline teaches itself, unlabelled clips",
    "control_long": "Ego baseline, labels alone, as many steps",
    "direct": "Direct multi-teacher",
    "pcgrad": "Direct, PCGrad",
    "cagrad": "Direct, CAGrad",
    "upgrad": "Direct, UPGrad",
}
FREE_COLOURS = ("#222222", "#0077BB", "#CC3311", "#009988", "#BBBBBB")  # for what is no teacher or method
BACKGROUND_COLOUR = "#ECECEC"
ERROR_COLOURS = {  # kinds of segmentation.frame_errors and segment_errors
    "right": "#117733",
    "found": "#117733",
    "boundary": "#88CCEE",
    "displaced": "#88CCEE",
    "fragmented": "#DDCC77",
    "confused": "#AA4499",
    "missed": "#999999",
    "invented": "#EE6611",
}
RIGHT_COLOUR, WRONG_COLOUR = "#117733", "#BB2222"
PALE_COLOUR = "#BBBBBB"  # of what is there for comparison
MOST_COLOURS = 24  # classes that colours can tell apart, with good will
MOST_ROWS = 40  # classes that a figure lists; a dataset may have hundreds

plt.rcParams.update(
    {
        "figure.dpi": 80,
        "savefig.dpi": 150,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10,
        "axes.prop_cycle": plt.cycler(color=FREE_COLOURS),
        "legend.frameon": False,
        "legend.fontsize": 8,
    }
)


def colour_of(name: str) -> str:
    """The colour of a teacher, its proxy, or a method."""
    return {**TEACHER_COLOURS, **OTHER_COLOURS, "uniego": UNIEGO_COLOUR}.get(name, "#999999")


def colours_of(names: Iterable[str], colours: Mapping[str, Colour] | None = None) -> dict[str, Colour]:
    """A colour a name: of `colours`, else its own; names without one take free ones in order."""
    known = {**TEACHER_COLOURS, **OTHER_COLOURS, "uniego": UNIEGO_COLOUR, **(colours or {})}
    others = [name for name in names if name not in known]
    few = len(others) <= len(FREE_COLOURS)
    known |= zip(others, FREE_COLOURS if few else sns.color_palette("cividis", len(others)), strict=False)
    return {name: known[name] for name in names}


def class_colours(names: Sequence[str], background: str = "") -> dict[str, Colour]:
    """A colour a class: hues go round, neighbours differ in lightness; background is pale.

    Beyond `MOST_COLOURS` classes colours repeat: bars over time then still show where labels change.
    """
    actions = [name for name in names if name != background]
    count = min(len(actions), MOST_COLOURS)
    light, dark = (sns.husl_palette(count, s=0.9, l=lightness) for lightness in (0.72, 0.45))
    colours = {background: BACKGROUND_COLOUR} if background else {}
    for number, name in enumerate(actions):
        colours[name] = (light if number % 2 else dark)[number % count]
    return colours


def text_colour(background: Colour) -> str:
    """Black or white, whichever is read better on a colour."""
    red, green, blue = to_rgb(background)
    return "k" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "w"


def verdict(right: bool) -> tuple[str, str]:
    """The mark of an answer, and its colour."""
    return ("✓", RIGHT_COLOUR) if right else ("✗", WRONG_COLOUR)


def first_rows(table: pd.DataFrame, title: str) -> tuple[pd.DataFrame, str]:
    """The rows that fit into a figure, and a title that says so where some do not."""
    if len(table) <= MOST_ROWS:
        return table, title
    return table.head(MOST_ROWS), f"{title}  (first {MOST_ROWS} of {len(table)})"


def side_by_side(
    count: int, size: tuple[float, float], title: str, **options
) -> tuple[Figure, Sequence[Axes]]:
    """A figure of `count` panels in a row; size in inches."""
    figure, axs = plt.subplots(1, count, figsize=size, layout="constrained", squeeze=False, **options)
    figure.suptitle(title)
    return figure, axs[0]


def name_rows(ax: Axes, names: Iterable[str], labels: Mapping[str, str]) -> None:
    """Names at the heights 0, 1, ..., the first on top."""
    called = [labels.get(name, name) for name in names]
    ax.set_yticks(range(len(called)), called)
    ax.set_ylim(len(called) - 0.5, -0.5)


def add_legend(figure: Figure, loc: str = "outside right center", **options) -> None:
    """One legend for all panels: each label once."""
    entries = {}
    for ax in figure.axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(entries.values(), entries.keys(), loc=loc, **options)
