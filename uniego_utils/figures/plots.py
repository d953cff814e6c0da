"""One look for every figure: a teacher has one colour, one name and one place everywhere.

Functions take data and return the Axes or Figure; they compute nothing and save nothing.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from uniego_utils.methods import METHODS, OTHER_COLOUR

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
UNIEGO_COLOUR = METHODS["uniego"].colour
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
MOST_COLOURS = 24  # classes that colours can tell apart, with good will
MOST_ROWS = 40  # classes that a figure lists; a dataset may have hundreds
PANEL = 1.15  # inches, side of a video frame in a strip

plt.rcParams.update(
    {"figure.dpi": 80, "savefig.dpi": 150, "axes.spines.top": False, "axes.spines.right": False}
)


def colour_of(name: str) -> str:
    """The colour of a teacher, its proxy, or a method."""
    if name in TEACHER_COLOURS:
        return TEACHER_COLOURS[name]
    return METHODS[name].colour if name in METHODS else OTHER_COLOUR


def plot_strips(
    strips: Mapping[str, np.ndarray],
    title: str,
    overlays: Mapping[str, np.ndarray] | None = None,
    bones: Sequence[tuple[int, int]] = (),
) -> Figure:
    """Rows of video frames: what a clip looks like, moment by moment.

    Args:
        strips: row label -> (T, H, W, 3) or (T, H, W) uint8; all rows have the same T.
        title: the question.
        overlays: row label -> (T, V, 2) joint positions in pixels, NaN where not visible.
        bones: pairs of joint numbers to connect.
    """
    count = len(next(iter(strips.values())))
    figure, axs = plt.subplots(
        len(strips),
        count,
        figsize=(PANEL * count + 0.8, PANEL * len(strips) + 0.4),
        layout="constrained",
        squeeze=False,
    )
    for row, (label, frames) in zip(axs, strips.items(), strict=True):
        for moment, (ax, frame) in enumerate(zip(row, frames, strict=True)):
            ax.imshow(frame, cmap="gray", vmin=0, vmax=255)
            ax.set_xticks([])
            ax.set_yticks([])
            ax.spines[:].set_visible(False)
            if overlays and label in overlays:
                joints = overlays[label][moment]
                for a, b in bones:
                    ax.plot(*joints[[a, b]].T, color=UNIEGO_COLOUR, lw=1.4)
                ax.set_xlim(-0.5, frame.shape[1] - 0.5)
                ax.set_ylim(frame.shape[0] - 0.5, -0.5)
        row[0].set_ylabel(label, rotation=0, ha="right", va="center")
    figure.suptitle(title)
    return figure


def _listable(table: pd.DataFrame, title: str) -> tuple[pd.DataFrame, str]:
    """The rows that fit into a figure, and a title that says so where some do not."""
    if len(table) <= MOST_ROWS:
        return table, title
    return table.head(MOST_ROWS), f"{title}  (first {MOST_ROWS} of {len(table)})"


def plot_counts(counts: pd.DataFrame, title: str) -> Axes:
    """Clips per class and split: rows classes, columns splits; the first classes where there are hundreds."""
    counts, title = _listable(counts, title)
    ax = counts.plot.barh(stacked=True, figsize=(7, 0.28 * len(counts) + 1.2), colormap="cividis", width=0.8)
    ax.set(xlabel="clips", ylabel="", title=title)
    ax.invert_yaxis()
    ax.legend(title="split", frameon=False, bbox_to_anchor=(1, 1))
    ax.figure.set_layout_engine("constrained")
    return ax


def plot_reasons(reasons: pd.DataFrame, title: str) -> Axes:
    """Clips left out per reason and split: `reasons` has columns split, reason, clips."""
    table = reasons.pivot_table(index="reason", columns="split", values="clips", aggfunc="sum", fill_value=0)
    return plot_counts(table.loc[table.sum(axis=1).sort_values(ascending=False).index], title)


def plot_probe(accuracy: Mapping[str, float], labels: Mapping[str, str], chance: float, title: str) -> Axes:
    """Bars of linear-probe accuracy in percent per teacher, in the order given; a line marks chance."""
    _, ax = plt.subplots(figsize=(7, 0.36 * len(accuracy) + 1.1), layout="constrained")
    names = [labels[key] for key in accuracy]
    bars = ax.barh(names, list(accuracy.values()), color=[colour_of(key) for key in accuracy])
    ax.bar_label(bars, fmt="%.0f", padding=3)
    ax.axvline(chance, color="k", ls=":", lw=1)
    ax.text(chance + 0.5, -0.55, "chance", fontsize=8, va="bottom")
    ax.set(xlim=(0, 108), xlabel="linear probe, validation accuracy (%)", title=title)
    ax.invert_yaxis()
    return ax


def plot_health(table: pd.DataFrame, labels: Mapping[str, str], title: str) -> Figure:
    """Three looks at each teacher's features (`features.describe_features`), a row a teacher: the spread of
    norms, the share of the common mean, and over how many directions the clips spread."""
    figure, axs = plt.subplots(1, 3, figsize=(11, 0.36 * len(table) + 1.4), layout="constrained", sharey=True)
    names = [labels[key] for key in table.index]
    colours = [colour_of(key) for key in table.index]
    low, high = table["norm_min"] / table["norm_mean"], table["norm_max"] / table["norm_mean"]
    axs[0].barh(names, high - low, left=low, color=colours, height=0.35)
    axs[0].axvline(1, color="k", lw=1, ls=":")
    axs[0].set(xlabel="smallest to largest norm, of its mean", xlim=(0, None))
    axs[1].barh(names, 100 * table["mean_share"], color=colours)
    axs[1].set(xlabel="the common mean's share (%)", xlim=(0, 100))
    bars = axs[2].barh(names, table["effective_rank"], color=colours)
    axs[2].bar_label(bars, fmt="%.0f", padding=3)
    axs[2].set(xlabel="effective rank (directions)", xlim=(0, 1.15 * table["effective_rank"].max()))
    axs[0].invert_yaxis()
    figure.suptitle(title)
    return figure


def plot_neighbours(
    pictures: Mapping[str, Sequence[np.ndarray]], right: Mapping[str, Sequence[bool]], title: str
) -> Figure:
    """What each teacher thinks is like a clip: a row a teacher, the clip first, then its nearest ones.

    Args:
        pictures: row label -> pictures (H, W, 3) uint8, which may differ in size.
        right: row label -> whether each of the nearest is of the clip's class (one fewer than pictures).
    """
    columns = max(map(len, pictures.values()))
    figure, axs = plt.subplots(
        len(pictures),
        columns,
        figsize=(1.25 * columns + 1, PANEL * len(pictures) + 0.5),
        layout="constrained",
        squeeze=False,
    )
    for row, (label, shown) in zip(axs, pictures.items(), strict=True):
        for ax in row:
            ax.set_xticks([])
            ax.set_yticks([])
            ax.spines[:].set_visible(False)
        for place, (ax, picture) in enumerate(zip(row, shown, strict=False)):
            ax.imshow(picture)
            if place:
                mark, colour = ("✓", "#117733") if right[label][place - 1] else ("✗", "#BB2222")
                ax.set_title(mark, color=colour, fontsize=9, pad=2)
        row[0].set_ylabel(label, rotation=0, ha="right", va="center")
    figure.suptitle(title)
    return figure


def plot_feature_maps(
    points: Mapping[str, np.ndarray],
    classes: Sequence[str],
    labels: Sequence[int],
    names: Mapping[str, str],
    title: str,
) -> Figure:
    """Two-dimensional projections (N, 2) of each teacher's features, a panel a teacher, coloured by class.

    Where there are more classes than colours can tell, the first ones are coloured and the rest is grey.
    """
    columns = min(3, len(points))
    rows = -(-len(points) // columns)
    size = (2.6 * columns + 1.6, 2.3 * rows + 0.5)
    figure, axs = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    coloured = classes[:MOST_COLOURS]
    palette = sns.color_palette("husl", len(coloured))
    for ax, (key, xy) in zip(axs.flat, points.items(), strict=False):
        ax.scatter(*xy[np.asarray(labels) >= len(coloured)].T, s=3, color="#cccccc", linewidths=0)
        for number, name in enumerate(coloured):
            chosen = np.asarray(labels) == number
            ax.scatter(*xy[chosen].T, s=5, color=palette[number], label=name, linewidths=0)
        ax.set_title(names[key], fontsize=10)
        ax.set_xticks([])
        ax.set_yticks([])
    for ax in axs.flat[len(points) :]:
        ax.set_visible(False)
    handles, texts = axs.flat[0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside right center", frameon=False, fontsize=8, markerscale=3)
    figure.suptitle(title)
    return figure


def plot_curves(histories: Mapping[str, list[dict]], labels: Mapping[str, str], title: str) -> Figure:
    """Training loss and validation accuracy over epochs, one line a student."""
    figure, axs = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    for name, records in histories.items():
        style = dict(color=colour_of(name), lw=2.5 if name in ("uniego", "ego", "naive") else 1.3)
        axs[0].plot(
            [r["epoch"] for r in records], [r["class_loss"] for r in records], **style, label=labels[name]
        )
        seen = [r for r in records if "val_top1" in r]
        axs[1].plot([r["epoch"] for r in seen], [r["val_top1"] for r in seen], marker="o", ms=3, **style)
    axs[0].set(xlabel="epoch", ylabel="cross-entropy in training (nats)")
    axs[1].set(xlabel="epoch", ylabel="validation accuracy (%)")
    for ax in axs:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(*axs[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    figure.suptitle(title)
    return figure


def plot_alpha(
    alpha: Mapping[str, float],
    labels: Mapping[str, str],
    title: str,
    axis: str = "merging coefficient (dotted: plain average)",
) -> Axes:
    """Merging coefficients, or other shares of proxies, as bars; a line marks equal ones."""
    _, ax = plt.subplots(figsize=(7, 0.36 * len(alpha) + 1.1), layout="constrained")
    bars = ax.barh(
        [labels[key] for key in alpha], list(alpha.values()), color=[colour_of(key) for key in alpha]
    )
    ax.bar_label(bars, fmt="%.3f", padding=3)
    ax.axvline(1 / len(alpha), color="k", ls=":", lw=1)
    ax.set(xlim=(0, 1.2 * max(alpha.values())), xlabel=axis, title=title)
    ax.invert_yaxis()
    return ax


def plot_selection(shares: pd.DataFrame, title: str) -> Axes:
    """Heat map of selection rates: rows classes, columns proxies, entries in 0..1."""
    shares, title = _listable(shares, title)
    figsize = (0.75 * shares.shape[1] + 2.5, 0.3 * len(shares) + 1.8)
    _, ax = plt.subplots(figsize=figsize, layout="constrained")
    bar = {"label": "share of the class's clips", "shrink": 0.8}
    sns.heatmap(
        shares,
        vmin=0,
        vmax=1,
        cmap="cividis",
        annot=True,
        fmt=".2f",
        annot_kws={"size": 8},
        cbar_kws=bar,
        ax=ax,
    )
    ax.set(title=title, xlabel="", ylabel="")
    ax.tick_params(axis="x", rotation=40)
    plt.setp(ax.get_xticklabels(), ha="right")
    return ax


def plot_results(results: pd.DataFrame, labels: Mapping[str, str], title: str, split: str = "test") -> Axes:
    """Accuracy per method: a dot a seed, a bar at the mean.

    `results` has columns method, seed, top1 (percent); methods are drawn in order of appearance.
    """
    methods = list(dict.fromkeys(results["method"]))
    _, ax = plt.subplots(figsize=(7.5, 0.34 * len(methods) + 1.2), layout="constrained")
    for place, method in enumerate(methods):
        values = results.loc[results["method"] == method, "top1"]
        ax.plot(values, [place] * len(values), "o", color=colour_of(method), ms=5, alpha=0.55, mew=0)
        ax.plot([values.mean()] * 2, [place - 0.35, place + 0.35], color=colour_of(method), lw=3)
    ax.set_yticks(range(len(methods)), [labels[method] for method in methods])
    ax.set(xlabel=f"{split} accuracy (%); a dot a seed, a bar their mean", title=title)
    ax.grid(axis="x", alpha=0.3)
    ax.invert_yaxis()
    return ax


def plot_differences(differences: pd.DataFrame, labels: Mapping[str, str], title: str) -> Axes:
    """UNIEGO minus each method, paired by seed: mean and 95 % interval.

    `differences` has columns method, mean, low, high (points); low and high may be NaN with one seed.
    """
    _, ax = plt.subplots(figsize=(7.5, 0.34 * len(differences) + 1.2), layout="constrained")
    for place, row in enumerate(differences.itertuples()):
        ax.plot([row.low, row.high], [place, place], color=colour_of(row.method), lw=2)
        ax.plot(row.mean, place, "o", color=colour_of(row.method), ms=6)
    ax.axvline(0, color="k", lw=1, ls=":")
    ax.set_yticks(range(len(differences)), [labels[method] for method in differences["method"]])
    ax.set(xlabel="UNIEGO minus this method (points of test accuracy)", title=title)
    ax.invert_yaxis()
    return ax


def plot_alpha_by_layer(
    alpha: Mapping[str, Mapping[str, float]], labels: Mapping[str, str], title: str
) -> Axes:
    """Heat map of merging coefficients: a row a layer, a column a proxy; white is the plain average."""
    table, title = _listable(pd.DataFrame(alpha).T.rename(columns=labels), title)
    average = 1 / table.shape[1]
    reach = max(abs(table - average).to_numpy().max(), 0.01)  # equal coefficients are no pattern of rounding
    figsize = (0.75 * table.shape[1] + 2.5, 0.3 * len(table) + 1.8)
    _, ax = plt.subplots(figsize=figsize, layout="constrained")
    sns.heatmap(
        table,
        vmin=average - reach,
        vmax=average + reach,
        cmap="PuOr_r",
        annot=True,
        fmt=".3f",
        annot_kws={"size": 8},
        cbar_kws={"label": "merging coefficient", "shrink": 0.8},
        ax=ax,
    )
    ax.set(title=title, xlabel="", ylabel="")
    ax.tick_params(axis="x", rotation=40)
    ax.tick_params(axis="y", rotation=0)
    plt.setp(ax.get_xticklabels(), ha="right")
    return ax


def plot_before_after(
    pairs: Mapping[str, tuple[float, float]], labels: Mapping[str, str], title: str
) -> Axes:
    """A line per start from its accuracy before Level II to that after it (percent); the best ends are named.

    Args:
        pairs: start -> (before, after). UNIEGO's own start, `merged`, is drawn in its colour.
    """
    _, ax = plt.subplots(figsize=(7, 0.3 * len(pairs) + 2), layout="constrained")
    for name, ends in pairs.items():
        own = name == "merged"
        ax.plot(
            [0, 1],
            ends,
            marker="o",
            lw=2.5 if own else 1.3,
            color=UNIEGO_COLOUR if own else "#777777",
            zorder=3 if own else 2,
        )
    heights = [_apart([ends[side] for ends in pairs.values()], ax) for side in (0, 1)]
    for side, (align, shift) in enumerate((("right", -0.03), ("left", 0.03))):
        for (name, ends), height in zip(pairs.items(), heights[side], strict=True):
            words = (labels[name], f"{ends[side]:.1f}")
            text = "  ".join(words if side == 0 else words[::-1])
            ax.text(side + shift, height, text, ha=align, va="center", fontsize=8)
    low, high = ax.get_ylim()  # labels that were pushed apart need room too
    ax.set_ylim(min(low, *map(np.min, heights)), max(high, *map(np.max, heights)))
    ax.set(xlim=(-0.75, 1.75), ylabel="accuracy (%)", title=title)
    ax.set_xticks([0, 1], ["before SPD", "after SPD"])
    return ax


def _apart(values: Sequence[float], ax: Axes) -> np.ndarray:
    """Heights for labels beside `values`, moved apart where they would overlap."""
    low, high = ax.get_ylim()
    step = 12 / 72 / ax.figure.get_figheight() / 0.8 * (high - low)
    heights = np.array(values, dtype=float)
    order = np.argsort(heights)
    placed = heights[order]
    for _ in range(100):  # push neighbours apart until none overlap
        gaps = step - np.diff(placed)
        if (gaps <= 1e-6).all():
            break
        shift = np.clip(gaps, 0, None) / 2
        placed[:-1] -= shift
        placed[1:] += shift
    heights[order] = placed
    return heights


def plot_memory(known: Mapping[str, Mapping[str, float]], labels: Mapping[str, str], title: str) -> Axes:
    """Bars per proxy: percent correct on clips it was trained on (pale) and on clips held out from it."""
    keys = list(next(iter(known.values())))
    _, ax = plt.subplots(figsize=(7, 0.42 * len(keys) + 1.3), layout="constrained")
    for row, (name, correct) in enumerate(known.items()):
        places = np.arange(len(keys)) + (row - 0.5) * 0.38
        bars = ax.barh(
            places,
            list(correct.values()),
            0.36,
            color=[colour_of(key) for key in keys],
            alpha=0.35 + 0.65 * row,
        )
        ax.bar_label(bars, fmt=f"%.0f %% of {name}", padding=3, fontsize=7)
    ax.set_yticks(range(len(keys)), [labels[key] for key in keys])
    ax.set(xlim=(0, 140), xlabel="correct (%)", title=title)
    ax.set_xticks(range(0, 101, 20))
    ax.invert_yaxis()
    return ax


def plot_trust(
    shares: Mapping[str, Mapping[str, float]], labels: Mapping[str, str], rules: Mapping[str, str], title: str
) -> Axes:
    """A stacked bar per rule: each proxy's mean weight over the clips; what is missing is left to labels."""
    _, ax = plt.subplots(figsize=(9, 0.5 * len(shares) + 1.6), layout="constrained")
    for row, weights in enumerate(shares.values()):
        left = 0.0
        for key, weight in weights.items():
            ax.barh(row, weight, left=left, color=colour_of(key), label=None if row else labels[key])
            left += weight
    ax.set_yticks(range(len(shares)), [rules[rule] for rule in shares])
    ax.set(xlim=(0, 1), xlabel="share of the weight", title=title)
    ax.invert_yaxis()
    ax.figure.legend(loc="outside right center", frameon=False, fontsize=8)
    return ax


def plot_doses(table: pd.DataFrame, split: str, labels: Mapping[str, str], title: str) -> Figure:
    """Accuracy and NLL against the number of misaligned teachers, a line a method: the mean over seeds, with
    a band of one standard error where there are several.

    `table` has columns dose, method, `<split>_top1`, `<split>_nll`, and seed where there are several.
    """
    figure, axs = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    units = {"top1": "accuracy (%)", "nll": "NLL (nats)"}
    for ax, (metric, unit) in zip(axs, units.items(), strict=True):
        for name in dict.fromkeys(table["method"]):
            by_dose = table[table["method"] == name].groupby("dose")[f"{split}_{metric}"]
            mean, error = by_dose.mean(), by_dose.sem().fillna(0.0)
            ax.plot(mean.index, mean, marker="o", color=colour_of(name), label=labels[name])
            ax.fill_between(mean.index, mean - error, mean + error, color=colour_of(name), alpha=0.15, lw=0)
        ax.set(xlabel="misaligned teachers added", ylabel=f"{split} {unit}")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(*axs[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    figure.suptitle(title)
    return figure


def plot_directions(table: pd.DataFrame, labels: Mapping[str, str], title: str) -> Figure:
    """Three looks at the two sides a projection may be on, a row a teacher.

    `table`: rows teachers; columns spread_before, spread_after, cka_teacher_side, cka_student_side,
    nll_teacher_side, nll_student_side.
    """
    figure, axs = plt.subplots(1, 3, figsize=(11, 0.42 * len(table) + 1.6), layout="constrained", sharey=True)
    colours, places = [colour_of(key) for key in table.index], np.arange(len(table))
    panels = {
        "spread of the teacher's directions": ("spread_before", "spread_after"),
        "gain in CKA with the teacher": ("cka_student_side", "cka_teacher_side"),
        "validation NLL (nats)": ("nll_student_side", "nll_teacher_side"),
    }
    for ax, (name, (pale, full)) in zip(axs, panels.items(), strict=True):
        ax.barh(places - 0.19, table[pale], 0.36, color=colours, alpha=0.35)
        ax.barh(places + 0.19, table[full], 0.36, color=colours)
        ax.set_xlabel(name)
    low = table[["nll_student_side", "nll_teacher_side"]].to_numpy().min()
    axs[2].set_xlim(0.9 * low, None)
    axs[0].set_title("pale: before, full: after projection", fontsize=9)
    axs[1].set_title("pale: student's side, full: teacher's side", fontsize=9)
    axs[2].set_title("pale: student's side, full: teacher's side", fontsize=9)
    axs[0].set_yticks(places, [labels[key] for key in table.index])
    axs[0].invert_yaxis()
    figure.suptitle(title)
    return figure


def plot_retrieval(
    scores: pd.DataFrame, chance: Mapping[str, float], labels: Mapping[str, str], title: str
) -> Figure:
    """A panel per metric (columns of `scores`, fractions), a dot per method (its index), best to the right.

    `chance` has what features without meaning reach in each metric: a dotted line.
    """
    size = (3.2 * scores.shape[1] + 2, 0.32 * len(scores) + 1.3)
    figure, axs = plt.subplots(
        1, scores.shape[1], figsize=size, layout="constrained", sharey=True, squeeze=False
    )
    places, colours = np.arange(len(scores)), [colour_of(method) for method in scores.index]
    for ax, (metric, values) in zip(axs[0], scores.items(), strict=True):
        ax.hlines(places, chance[metric], values, color=colours, lw=1.5)
        ax.scatter(values, places, color=colours, s=36, zorder=3)
        for place, value in zip(places, values, strict=True):
            ax.annotate(
                f"{value:.3f}", (value, place), (6, 5), textcoords="offset points", fontsize=7, ha="center"
            )
        ax.axvline(chance[metric], color="k", ls=":", lw=1)
        ax.set(xlabel=metric)
        ax.margins(x=0.12, y=0.12)
        ax.grid(axis="x", alpha=0.3)
    axs[0][0].set_yticks(places, [labels[method] for method in scores.index])
    axs[0][0].invert_yaxis()
    figure.suptitle(title)
    return figure


def plot_verdicts(table: pd.DataFrame, labels: Mapping[str, str], title: str) -> Axes:
    """What each model says of one clip: the probability it gives the true class, and what it takes it for.

    `table`: a row a model; columns probability (0..1), predicted (a class), right (bool), selected (bool).
    """
    _, ax = plt.subplots(figsize=(8.2, 0.34 * len(table) + 1.1), layout="constrained")
    for place, (key, row) in enumerate(table.iterrows()):
        ax.barh(place, row["probability"], color=colour_of(key), height=0.7)
        mark, colour = ("✓", "#117733") if row["right"] else ("✗", "#BB2222")
        says = f"{mark} {row['predicted']}" + ("   ★ selected" if row["selected"] else "")
        ax.text(row["probability"] + 0.015, place, says, color=colour, va="center", fontsize=9)
    ax.set_yticks(range(len(table)), [labels[key] for key in table.index])
    ax.set(xlim=(0, 1.45), xlabel="probability of the true class", title=title)
    ax.set_xticks(np.linspace(0, 1, 6))
    ax.spines["bottom"].set_bounds(0, 1)
    ax.invert_yaxis()
    return ax


def plot_blend(
    shares: Mapping[str, float],
    points: pd.DataFrame,
    said: Mapping[str, float],
    error: Mapping[str, float],
    measured: Mapping[str, float] | None,
    labels: Mapping[str, str],
    title: str,
) -> Figure:
    """One blend of the proxies: its coefficients, and where it lies among those that were run.

    Args:
        shares: key -> coefficient.
        points: what was run, by key, name of a start, or number; columns val_top1 (%), val_nll (nats).
        said, error: val_top1 and val_nll that a surrogate expects of the blend, and its typical errors.
        measured: the same two when the blend was run, else None.
        labels: of keys and starts.
    """
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(10, 3.9), layout="constrained", width_ratios=(1, 1.35)
    )
    names = [labels[key] for key in shares]
    bars = left.barh(names, list(shares.values()), color=[colour_of(key) for key in shares])
    left.bar_label(bars, fmt="%.2f", padding=3)
    left.axvline(1 / len(shares), color="k", ls=":", lw=1)
    left.set(xlim=(0, 1.18), xlabel="coefficient (dotted: plain average)")
    left.invert_yaxis()

    for name, point in points.iterrows():
        style = dict(marker="o", ms=4, color="#BBBBBB", zorder=1)  # one of the sampled blends
        if name in shares:
            style |= dict(ms=7, color=colour_of(name), zorder=2)
        elif name in labels:
            style |= dict(marker="D", ms=6, color="#222222", zorder=3)
            right.annotate(
                labels[name],
                (point["val_nll"], point["val_top1"]),
                (7, -3),
                textcoords="offset points",
                fontsize=8,
            )
        right.plot(point["val_nll"], point["val_top1"], ls="", **style)
    place = said["val_nll"], said["val_top1"]
    errors = dict(xerr=error["val_nll"], yerr=error["val_top1"], ecolor=UNIEGO_COLOUR, elinewidth=1)
    right.errorbar(
        *place, **errors, marker="*", ms=15, color=UNIEGO_COLOUR, ls="", label="this blend, expected"
    )
    if measured is not None:
        found = measured["val_nll"], measured["val_top1"]
        right.plot(*found, "*", ms=15, mfc="white", mec="k", zorder=4, label="this blend, run")
    right.plot([], [], "o", ms=7, color="#777777", label="a proxy, in its colour")
    right.plot([], [], "o", ms=4, color="#BBBBBB", label="other blends that were run")
    right.set(xlabel="validation NLL (nats)", ylabel="validation accuracy (%)")
    right.grid(alpha=0.3)
    right.legend(fontsize=8, frameon=False, loc="best")
    right.margins(0.12)
    figure.suptitle(title)
    return figure


def plot_surrogates(measured: pd.DataFrame, said: Mapping[str, pd.DataFrame], title: str) -> Figure:
    """What surrogates expected of blends against what was measured, a panel a score; dotted: all is right.

    `measured` and each of `said` have the same index and the columns val_nll (nats) and val_top1 (percent).
    """
    figure, axs = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    columns = {"val_nll": "validation NLL (nats)", "val_top1": "validation accuracy (%)"}
    for ax, (column, name) in zip(axs, columns.items(), strict=True):
        for (surrogate, table), colour, marker in zip(
            said.items(), ("#EE6611", "#0077BB"), "os", strict=False
        ):
            ax.plot(measured[column], table[column], marker, color=colour, ms=5, alpha=0.8, label=surrogate)
        both = pd.concat([measured[column], *(table[column] for table in said.values())])
        ends = np.array([both.min(), both.max()])
        ax.plot(ends, ends, "k:", lw=1)
        ax.set(xlabel=f"measured {name}", ylabel=f"expected {name}")
        ax.xaxis.set_major_locator(MaxNLocator(5))
    figure.legend(*axs[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=9)
    figure.suptitle(title)
    return figure


def plot_conflict(
    table: pd.DataFrame, column: str, groups: Mapping[str, str], labels: Mapping[str, str], title: str
) -> Figure:
    """Conflict over epochs, a panel a way to count, a line a method; dotted: unrelated directions.

    Args:
        table: of `gradients.conflict_table`.
        column: `rate` or `cosine`.
        groups: group of the table -> what its panel is called.
    """
    scale, chance, unit = {
        "rate": (100, 50, "negative cosines (%)"),
        "cosine": (1, 0, "mean cosine with classification"),
    }[column]
    figure, axs = plt.subplots(
        1,
        len(groups),
        figsize=(3.1 * len(groups) + 2.2, 3.4),
        layout="constrained",
        sharey=True,
        squeeze=False,
    )
    for ax, (group, name) in zip(axs[0], groups.items(), strict=True):
        for method in dict.fromkeys(table["method"]):
            own = table[(table["method"] == method) & (table["group"] == group)]
            width = 2.5 if method == "uniego" else 1.5
            style = "--" if method in ("naive_longer", "start_all", "start_spd") else "-"
            ax.plot(
                own["epoch"],
                scale * own[column],
                style,
                marker="o",
                ms=3,
                lw=width,
                color=colour_of(method),
                label=labels[method],
            )
        ax.axhline(chance, color="k", ls=":", lw=1)
        ax.set_title(name, fontsize=10)
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    axs[0][0].set_ylabel(unit)
    if column == "rate":
        axs[0][0].set_ylim(-3, None)
    figure.legend(
        *axs[0][0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8
    )
    figure.suptitle(title)
    return figure


def plot_conflict_by_layer(table: pd.DataFrame, labels: Mapping[str, str], title: str) -> Figure:
    """Heat maps of conflict rate and mean cosine, a row a layer, a column a method.

    `table` has columns method, group (the layer), rate and cosine.
    """
    layers, methods = (list(dict.fromkeys(table[column])) for column in ("group", "method"))
    size = (2 * (0.85 * len(methods) + 1.4) + 1.6, 0.3 * min(len(layers), MOST_ROWS) + 2.0)
    figure, axs = plt.subplots(1, 2, figsize=size, layout="constrained", sharey=True)
    looks = {"rate": (100, 0, 100, "cividis", ".0f"), "cosine": (1, -1, 1, "PuOr_r", ".2f")}
    names = {"rate": "negative cosines (%)", "cosine": "mean cosine"}
    for ax, (column, (scale, low, high, colours, digits)) in zip(axs, looks.items(), strict=True):
        shown, _ = _listable(
            table.pivot(index="group", columns="method", values=column).loc[layers, methods], ""
        )
        sns.heatmap(
            (scale * shown).rename(columns=labels),
            vmin=low,
            vmax=high,
            cmap=colours,
            annot=True,
            fmt=digits,
            annot_kws={"size": 8},
            cbar_kws={"label": names[column], "shrink": 0.8},
            ax=ax,
        )
        ax.set(xlabel="", ylabel="")
        ax.tick_params(axis="x", rotation=40)
        ax.tick_params(axis="y", rotation=0)
        plt.setp(ax.get_xticklabels(), ha="right")
    figure.suptitle(title)
    return figure


def plot_sources(
    cosines: Mapping[str, pd.DataFrame], labels: Mapping[str, str], methods: Mapping[str, str], title: str
) -> Figure:
    """Mean cosine between the gradients of classification and of every source, a panel a method.

    Args:
        cosines: method -> table of the same size; NaN is left empty.
        labels: of rows and columns; methods: of panels.
    """
    side = len(next(iter(cosines.values())))
    figure, axs = plt.subplots(
        1,
        len(cosines),
        figsize=((0.36 * side + 0.4) * len(cosines) + 2.6, 0.36 * side + 1.9),
        layout="constrained",
        sharey=True,
        squeeze=False,
    )
    for ax, (method, table) in zip(axs[0], cosines.items(), strict=True):
        sns.heatmap(
            table.rename(index=labels, columns=labels).round(1) + 0.0,  # no "-0.0"
            vmin=-1,
            vmax=1,
            cmap="PuOr_r",
            annot=True,
            fmt=".1f",
            annot_kws={"size": 7},
            cbar=ax is axs[0][-1],
            cbar_kws={"label": "mean cosine", "shrink": 0.8},
            ax=ax,
        )
        ax.set(xlabel="", ylabel="")
        ax.set_title(methods[method], fontsize=10)
        ax.tick_params(axis="x", rotation=50)
        ax.tick_params(axis="y", rotation=0, left=ax is axs[0][0])
        plt.setp(ax.get_xticklabels(), ha="right")
    figure.suptitle(title)
    return figure


def plot_measures(
    table: pd.DataFrame, units: Mapping[str, str], labels: Mapping[str, str], title: str
) -> Figure:
    """A panel per column of `table` that `units` names, a dot a method (its index); rates begin at 0."""
    size = (2.5 * len(units) + 2.2, 0.34 * len(table) + 1.3)
    figure, axs = plt.subplots(1, len(units), figsize=size, layout="constrained", sharey=True, squeeze=False)
    places, colours = np.arange(len(table)), [colour_of(method) for method in table.index]
    for ax, (column, unit) in zip(axs[0], units.items(), strict=True):
        ax.scatter(table[column], places, color=colours, s=36, zorder=3)
        for place, value in zip(places, table[column], strict=True):
            ax.annotate(
                f"{value:.3g}", (value, place), (0, 6), textcoords="offset points", fontsize=7, ha="center"
            )
        ax.set_xlabel(unit)
        ax.margins(x=0.15, y=0.15)
        if column == "rate":
            ax.set_xlim(0, None)
        ax.grid(axis="x", alpha=0.3)
    axs[0][0].set_yticks(places, [labels[method] for method in table.index])
    axs[0][0].invert_yaxis()
    figure.suptitle(title)
    return figure


def plot_chords(lines: pd.DataFrame, control: pd.DataFrame, labels: Mapping[str, str], title: str) -> Figure:
    """How far the loss lies above the chord on the lines between points, a panel a split.

    Args:
        lines: columns one, other, t, train_above, val_above (nats); thick: their mean; dashed: the highest.
        control: the same for lines that are known to have a barrier: in blue.
    """
    figure, axs = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained", sharey=True)
    for ax, split in zip(axs, ("train", "val"), strict=True):
        column = f"{split}_above"
        for _, line in lines.groupby(["one", "other"], sort=False):
            ax.plot(line["t"], line[column], color="#BBBBBB", lw=0.8)
        top = lines.loc[lines[column].idxmax()] if (lines[column] > 0).any() else None
        mean = lines.groupby("t")[column].mean()
        ax.plot(mean.index, mean, color=UNIEGO_COLOUR, lw=2.5, label="mean of all pairs of proxies")
        ax.plot([], [], color="#BBBBBB", lw=0.8, label="a pair of proxies")
        if top is not None:
            own = lines[(lines["one"] == top["one"]) & (lines["other"] == top["other"])]
            called = f"highest on {split}: {labels[top['one']]}, {labels[top['other']]}"
            ax.plot(own["t"], own[column], "k--", lw=1.2)
            ax.text(0.5, 0.02, called, transform=ax.transAxes, fontsize=8, ha="center", va="bottom")
        mean = control.groupby("t")[column].mean()
        ax.plot(mean.index, mean, color="#0077BB", lw=1.5, label="a proxy and its permuted twin, mean")
        ax.axhline(0, color="k", ls=":", lw=1)
        ax.set_xlabel("from one to the other")
        ax.set_title({"train": "training clips", "val": "validation clips"}[split], fontsize=10)
    axs[0].set_ylabel("loss above the chord (nats)")
    figure.legend(
        *axs[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8
    )
    figure.suptitle(title)
    return figure


def plot_jensen(mixtures: pd.DataFrame, title: str) -> Figure:
    """The loss of mixtures against the mixture of their members' losses; diagonal: the bound of equation 3.

    `mixtures` has columns kind, train_nll, train_chord, val_nll, val_chord.
    """
    figure, axs = plt.subplots(1, 2, figsize=(9.5, 4), layout="constrained")
    marks = (("o", "#999933"), ("^", "#0077BB"), ("*", UNIEGO_COLOUR))
    looks = dict(zip(dict.fromkeys(mixtures["kind"]), marks, strict=False))
    for ax, split in zip(axs, ("train", "val"), strict=True):
        for kind, (marker, colour) in looks.items():
            own = mixtures[mixtures["kind"] == kind]
            size = 11 if marker == "*" else 5
            style = dict(ls="", ms=size, color=colour, alpha=0.8, mew=0, label=kind)
            ax.plot(own[f"{split}_chord"], own[f"{split}_nll"], marker, **style)
        both = mixtures[[f"{split}_chord", f"{split}_nll"]].to_numpy()
        ends = np.array([both.min(), both.max()])
        ax.plot(ends, ends, "k:", lw=1)
        ax.set(xlabel="mixture of the losses (nats)", ylabel="loss of the mixture (nats)")
        ax.set_title({"train": "training clips", "val": "validation clips"}[split], fontsize=10)
    figure.legend(*axs[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    figure.suptitle(title)
    return figure


def plot_plane(plane: pd.DataFrame, corners: Sequence[str], labels: Mapping[str, str], title: str) -> Figure:
    """Contours of the loss over a plane through three points, with true distances; the star is their average.

    Args:
        plane: columns x, y, corner (-1 on the grid, else the place in `corners`), train_nll, val_nll.
        corners: three names.
    """
    grid, ends = plane[plane["corner"] < 0], plane[plane["corner"] >= 0].sort_values("corner")
    width, height = np.ptp(grid["x"]), np.ptp(grid["y"])
    figure, axs = plt.subplots(
        1, 2, figsize=(10.5, 4.0 * max(height / width, 0.6) + 0.7), layout="constrained"
    )
    for ax, split in zip(axs, ("train", "val"), strict=True):
        table = grid.pivot(index="y", columns="x", values=f"{split}_nll")
        shown = ax.contourf(table.columns, table.index, table, levels=14, cmap="cividis")
        ax.plot(*ends[["x", "y"]].iloc[[0, 1, 2, 0]].to_numpy().T, color="w", lw=1, ls=":")
        ax.plot(*ends[["x", "y"]].mean(), "*", color=UNIEGO_COLOUR, mec="w", ms=16)
        for name, place in zip(corners, ends.itertuples(), strict=True):
            ax.plot(place.x, place.y, "o", color=colour_of(name), mec="w", ms=9)
            loss = getattr(place, f"{split}_nll")
            text = ax.annotate(
                f"{labels[name]}\n{loss:.2f}",
                (place.x, place.y),
                (0, 8),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
            text.set_bbox(dict(facecolor="w", alpha=0.75, lw=0, pad=1.5))
        ax.set_aspect("equal")
        ax.set(xlabel="distance in weights", ylabel="distance in weights")
        ax.set_title({"train": "training clips", "val": "validation clips"}[split], fontsize=10)
        figure.colorbar(shown, ax=ax, label="loss (nats)", shrink=0.8)
    figure.suptitle(title)
    return figure


def plot_flatness(table: pd.DataFrame, labels: Mapping[str, str], title: str) -> Figure:
    """How much the loss rises around each model: a dot a draw, a bar at their mean; the paler, the nearer.

    `table` has columns model, radius (above 0), train_rise, val_rise (nats).
    """
    models, radii = list(dict.fromkeys(table["model"])), sorted(set(table["radius"]))
    figure, axs = plt.subplots(
        1, 2, figsize=(10, 0.36 * len(models) + 1.5), layout="constrained", sharey=True
    )
    for ax, split in zip(axs, ("train", "val"), strict=True):
        for place, model in enumerate(models):
            for strength, radius in zip(np.linspace(0.45, 1, len(radii)), radii, strict=True):
                own = table[(table["model"] == model) & (table["radius"] == radius)][f"{split}_rise"]
                style = dict(color=colour_of(model), alpha=strength)
                ax.plot(own, [place] * len(own), "o", ms=4, mew=0, **style)
                ax.plot([own.mean()] * 2, [place - 0.32, place + 0.32], lw=2.5, **style)
        ax.axvline(0, color="k", ls=":", lw=1)
        ax.set_xlabel(f"rise of the {split} loss (nats)")
        ax.grid(axis="x", alpha=0.3)
    axs[0].set_yticks(range(len(models)), [labels[model] for model in models])
    axs[0].invert_yaxis()
    figure.suptitle(title)
    return figure


def plot_cka(
    teachers: np.ndarray,
    proxies: np.ndarray,
    beside: Mapping[str, np.ndarray],
    labels: Mapping[str, str],
    title: str,
) -> plt.Figure:
    """The paper's Figure 3: pairs of teachers below the diagonal, pairs of proxies above it, in one square.

    Args:
        teachers, proxies: (R, R) CKA.
        beside: name -> (R,) CKA of another student with each proxy, rows below the square.
        labels: key -> name of the R teachers, in order.
    """
    below, above = np.tril(np.asarray(teachers), -1), np.triu(np.asarray(proxies), 1)
    square = below + above
    np.fill_diagonal(square, np.nan)
    names = list(labels.values())
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(7.5, 8.2), height_ratios=[len(names), len(beside)], layout="constrained"
    )
    style = {"vmin": 0, "vmax": 1, "cmap": "viridis", "annot": True, "fmt": ".2f", "cbar": False}
    style["annot_kws"] = {"size": 8}
    sns.heatmap(square, ax=top, xticklabels=names, yticklabels=names, square=False, **style)
    top.set_title(title)
    top.set_ylabel("teachers (below the diagonal)")
    top.xaxis.tick_top()
    top.tick_params(axis="x", rotation=40)
    plt.setp(top.get_xticklabels(), ha="left", rotation_mode="anchor")
    top.set_xlabel("proxies (above the diagonal)")
    rows = np.stack([np.asarray(row) for row in beside.values()])
    sns.heatmap(rows, ax=bottom, xticklabels=False, yticklabels=list(beside), **style)
    bottom.set_xlabel("linear CKA with each proxy")
    bottom.tick_params(axis="y", rotation=0)
    return figure


def action_colours(names: Sequence[str], background: str) -> dict[str, tuple | str]:
    """A colour a class for barcodes: hues go round, neighbours differ in lightness; background is pale.

    Beyond `MOST_COLOURS` classes colours repeat: bars then still show where labels change.
    """
    actions = [name for name in names if name != background]
    count = min(len(actions), MOST_COLOURS)
    light, dark = (sns.husl_palette(max(count, 1), s=0.9, l=lightness) for lightness in (0.72, 0.45))
    return {background: BACKGROUND_COLOUR} | {
        name: (light if number % 2 else dark)[number % max(count, 1)] for number, name in enumerate(actions)
    }


def _draw_bars(
    ax: Axes,
    bars: Mapping[str, np.ndarray],
    edges: np.ndarray,
    colours: Mapping[str, tuple | str],
    background: str,
    named: int = 1,
) -> None:
    """Rows of labels as coloured bars; edges (steps + 1,) in seconds. The first `named` rows have names."""
    for row, labels in enumerate(bars.values()):
        labels = np.asarray(labels)
        starts = np.flatnonzero(np.r_[True, labels[1:] != labels[:-1]])
        for start, stop in zip(starts, np.r_[starts[1:], len(labels)], strict=True):
            name, left, width = labels[start], edges[start], edges[stop] - edges[start]
            ax.barh(row, width, 0.82, left, color=colours.get(name, "k"), linewidth=0)
            if row < named and name != background and width > 0.028 * (edges[-1] - edges[0]):
                text = ax.text(left + width / 2, row, name.replace("_", "\n"), ha="center", va="center")
                text.set(fontsize=6, color="k", linespacing=0.85, clip_on=True)
                text.set_bbox(dict(facecolor="w", alpha=0.6, lw=0, pad=0.6))
    ax.set_yticks(range(len(bars)), list(bars))
    ax.set(xlim=(edges[0], edges[-1]), ylim=(len(bars) - 0.5, -0.5))
    ax.tick_params(axis="y", length=0)
    ax.spines[["left", "bottom"]].set_visible(False)


def plot_barcodes(
    videos: Mapping[str, Mapping[str, np.ndarray]],
    edges: Mapping[str, np.ndarray],
    classes: Sequence[str],
    background: str,
    title: str,
) -> Figure:
    """Colour barcodes: a panel a video, a row the truth and one for each method.

    Args:
        videos: video -> what the row is -> labels (steps,), the truth first.
        edges: video -> (steps + 1,) seconds.
        classes: all names, which fixes their colours.
    """
    colours = action_colours(classes, background)
    rows = len(next(iter(videos.values())))
    figure, axs = plt.subplots(
        len(videos),
        1,
        figsize=(11, (0.25 * rows + 0.62) * len(videos) + 0.9),
        layout="constrained",
        squeeze=False,
    )
    for ax, (name, bars) in zip(axs[:, 0], videos.items(), strict=True):
        _draw_bars(ax, bars, edges[name], colours, background)
        ax.set_title(name, fontsize=9, loc="left", pad=3)
    axs[-1, 0].set_xlabel("seconds")
    shown = {label for bars in videos.values() for labels in bars.values() for label in np.unique(labels)}
    names = [name for name in colours if name in shown][: MOST_COLOURS + 1]
    handles = [plt.Rectangle((0, 0), 1, 1, color=colours[name]) for name in names]
    figure.legend(handles, names, loc="outside lower center", ncols=8, frameon=False, fontsize=8)
    figure.suptitle(title)
    return figure


def plot_storyboard(
    strips: Mapping[str, np.ndarray],
    times: np.ndarray,
    bars: Mapping[str, np.ndarray],
    edges: np.ndarray,
    classes: Sequence[str],
    background: str,
    title: str,
) -> Figure:
    """An untrimmed video as a strip of pictures, with bars of its labels below; marks are the pictures'.

    Args:
        strips: row label -> (T, H, W, 3) uint8.
        times: (T,) seconds of the pictures.
        bars: what the row is -> labels (steps,), the truth first; edges: (steps + 1,) seconds.
        classes: all names, which fixes their colours.
    """
    count = len(times)
    heights = [PANEL] * len(strips) + [0.34 * len(bars) + 0.1]
    figure = plt.figure(figsize=(PANEL * count + 0.8, sum(heights) + 0.9), layout="constrained")
    grid = figure.add_gridspec(len(heights), count, height_ratios=heights)
    for row, (label, frames) in enumerate(strips.items()):
        for place, frame in enumerate(frames):
            ax = figure.add_subplot(grid[row, place])
            ax.imshow(frame)
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            if place == 0:
                ax.set_ylabel(label, rotation=0, ha="right", va="center")
            if row == 0:
                ax.set_title(f"{times[place]:.1f} s", fontsize=8, pad=2)
    ax = figure.add_subplot(grid[-1, :])
    _draw_bars(ax, bars, edges, action_colours(classes, background), background)
    ax.plot(times, np.full(count, -0.5), "v", color="k", ms=5, clip_on=False)
    ax.set_xlabel("seconds")
    figure.suptitle(title)
    return figure


def plot_moment(
    pictures: Mapping[str, np.ndarray],
    time: float,
    bars: Mapping[str, np.ndarray],
    edges: np.ndarray,
    classes: Sequence[str],
    background: str,
    title: str,
) -> Figure:
    """One moment of an untrimmed video: its pictures, and bars of labels with a cursor at `time` in seconds.

    Args:
        pictures: view -> (H, W, 3) uint8.
        bars: what the row is -> labels (steps,), the truth first; edges: (steps + 1,) seconds.
        classes: all names, which fixes their colours.
    """
    height = 0.27 * len(bars) + 0.4
    figure = plt.figure(figsize=(11, 2.9 + height), layout="constrained")
    grid = figure.add_gridspec(2, len(pictures) + 1, height_ratios=[2.6, height])
    for place, (view, picture) in enumerate(pictures.items()):
        ax = figure.add_subplot(grid[0, place])
        ax.imshow(picture)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        ax.set_title(f"{view} view, {time:.1f} s", fontsize=9)
    step = int(np.clip(np.searchsorted(edges, time, side="right") - 1, 0, len(edges) - 2))
    now = {name: str(labels[step]) for name, labels in bars.items()}
    truth = next(iter(now.values()))
    ax = figure.add_subplot(grid[0, -1])
    ax.axis("off")
    for row, (name, label) in enumerate(now.items()):
        mark = "" if row == 0 else "✓ " if label == truth else "✗ "
        colour = "k" if row == 0 else "#117733" if label == truth else "#BB2222"
        ax.text(0, 1 - row / len(now), f"{name}: {mark}{label}", va="top", fontsize=9, color=colour)
    ax = figure.add_subplot(grid[1, :])
    _draw_bars(ax, bars, edges, action_colours(classes, background), background)
    ax.axvline(time, color="k", lw=2)
    ax.set_xlabel("seconds")
    figure.suptitle(title)
    return figure


def plot_error_types(tables: Mapping[str, pd.DataFrame], labels: Mapping[str, str], title: str) -> Figure:
    """Stacked bars of shares in percent, a panel a kind of error table, a row a method.

    `tables`: panel -> rows methods, columns kinds (of ERROR_COLOURS) whose sum is 100.
    """
    first = next(iter(tables.values()))
    figure, axs = plt.subplots(
        1,
        len(tables),
        figsize=(12, 0.34 * len(first) + 1.7),
        layout="constrained",
        sharey=True,
        squeeze=False,
    )
    for ax, (panel, table) in zip(axs[0], tables.items(), strict=True):
        left = np.zeros(len(table))
        for kind in table:
            bars = ax.barh(range(len(table)), table[kind], 0.75, left, color=ERROR_COLOURS[kind], label=kind)
            shown = [f"{value:.0f}" if value >= 4 else "" for value in table[kind]]
            dark = kind in ("right", "found", "confused")
            ax.bar_label(bars, shown, label_type="center", fontsize=8, color="w" if dark else "k")
            left += table[kind].to_numpy()
        ax.set(xlim=(0, 100), xlabel=f"{panel} (%)")
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=5, frameon=False, fontsize=8)
    axs[0][0].set_yticks(range(len(first)), [labels[name] for name in first.index])
    axs[0][0].invert_yaxis()
    figure.suptitle(title)
    return figure


def plot_segmentation(scores: pd.DataFrame, labels: Mapping[str, str], title: str) -> Figure:
    """F1@10, F1@25, F1@50, edit and accuracy, a panel each, a row a method; heads differ by their marker.

    `scores` has columns method, head and the five metrics in percent.
    """
    metrics = ["F1@10", "F1@25", "F1@50", "edit", "accuracy"]
    methods, heads = (list(dict.fromkeys(scores[name])) for name in ("method", "head"))
    size = (12.5, 0.36 * len(methods) + 1.5)
    figure, axs = plt.subplots(1, len(metrics), figsize=size, layout="constrained", sharey=True)
    for ax, metric in zip(axs, metrics, strict=True):
        for head, marker, filled in zip(heads, "os^Dv", (True, False, True, False, True), strict=False):
            own = scores[scores["head"] == head].set_index("method").reindex(methods)
            colours = [colour_of(method) for method in methods]
            faces = colours if filled else "none"
            ax.scatter(
                own[metric], range(len(methods)), 45, marker=marker, color=faces, edgecolors=colours, lw=1.5
            )
        ax.set_xlabel(f"{metric} (%)" if metric != "edit" else "edit score (%)")
        ax.grid(axis="x", alpha=0.3)
        low, high = scores[metric].min(), scores[metric].max()
        reach = max(6.0, 0.6 * (high - low))  # points: small differences look small
        ax.set_xlim((low + high) / 2 - reach, (low + high) / 2 + reach)
    axs[0].set_yticks(range(len(methods)), [labels[method] for method in methods])
    axs[0].set_ylim(len(methods) - 0.5, -0.5)
    for head, marker, filled in zip(heads, "os^Dv", (True, False, True, False, True), strict=False):
        axs[-1].scatter(
            [], [], 45, marker=marker, color="k" if filled else "none", edgecolors="k", label=head
        )
    figure.legend(
        *axs[-1].get_legend_handles_labels(), loc="outside right center", frameon=False, title="head"
    )
    figure.suptitle(title)
    return figure


def plot_frequency(ours: pd.DataFrame, papers: pd.DataFrame, labels: Mapping[str, str], title: str) -> Figure:
    """The paper's Figure 6: how often each proxy is selected, ours beside the paper's.

    Args:
        ours: rows proxies (`none` among them), a column a set of clips, entries in 0..1; later columns paler.
        papers: the same rows, a column a dataset of the paper.
        labels: of the rows.
    """
    names = [labels[key] for key in ours.index]
    places = np.arange(len(names))
    figure, axs = plt.subplots(1, 2, figsize=(11, 0.42 * len(names) + 1.6), layout="constrained", sharey=True)
    for ax, table in zip(axs, (ours, papers), strict=True):
        height = 0.8 / table.shape[1]
        for number, column in enumerate(table.columns):
            at = places + (number - (table.shape[1] - 1) / 2) * height
            strength = 1 - 0.6 * number / max(table.shape[1] - 1, 1)
            colours = [colour_of(key) for key in table.index]
            bars = ax.barh(at, 100 * table[column], 0.92 * height, color=colours, alpha=strength)
            ax.bar_label(bars, [f"{100 * v:.0f} {column}" for v in table[column]], padding=3, fontsize=7)
        ax.set_xlim(0, 1.35 * max(100 * table.to_numpy().max(), 10))
    axs[0].set_xlabel("share of clips (%)")
    axs[1].set_xlabel("share of clips, mean over classes (%)")
    axs[0].set_title("ours", fontsize=10)
    axs[1].set_title("the paper's Tables 11 and 12", fontsize=10)
    axs[0].set_yticks(places, names)
    axs[0].invert_yaxis()
    figure.suptitle(title)
    return figure


def plot_confidence(
    counts: Mapping[str, np.ndarray], gaps: Mapping[str, np.ndarray], proxies: int, title: str
) -> Figure:
    """How much choice a clip has, and how clear the choice is, a line a set of clips.

    Args:
        counts: set of clips -> reliable proxies per clip.
        gaps: set of clips -> cross-entropy of the second-best minus that of the best (nats), of clips with
            at least two of them.
        proxies: how many there are.
    """
    figure, axs = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
    shades = dict(zip(counts, ("#222222", "#EE7733", "#0077BB"), strict=False))
    width = 0.8 / len(counts)
    for place, (name, values) in enumerate(counts.items()):
        share = 100 * np.bincount(np.asarray(values), minlength=proxies + 1) / len(values)
        at = np.arange(proxies + 1) + (place - (len(counts) - 1) / 2) * width
        axs[0].bar(at, share, width, color=shades[name], label=name)
    for name, values in gaps.items():
        ordered = np.sort(np.maximum(values, 1e-4))
        height = 100 * np.arange(1, len(ordered) + 1) / max(len(ordered), 1)
        axs[1].step(ordered, height, where="post", color=shades[name], lw=2, label=name)
    axs[0].set(xlabel="proxies that know the clip", ylabel="share of clips (%)")
    axs[0].set_xticks(range(proxies + 1))
    axs[1].set(
        xscale="log",
        xlabel="second-best minus best cross-entropy (nats)",
        ylabel="clips with a smaller gap (%)",
        ylim=(0, 101),
    )
    axs[1].grid(alpha=0.3)
    for ax in axs:
        ax.legend(frameon=False, fontsize=8)
    figure.suptitle(title)
    return figure


def plot_moving(table: pd.DataFrame, proxies: Sequence[str], labels: Mapping[str, str], title: str) -> Figure:
    """How a selection made anew in every epoch moves; `table` is of `selection.selection_over_training`."""
    figure, axs = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    for key in proxies:
        axs[0].plot(table.index, 100 * table[key], marker="o", ms=3, color=colour_of(key), label=labels[key])
    axs[0].set(xlabel="epoch (0: before training)", ylabel="clips that learn from it (%)", ylim=(0, None))
    for column, colour, style, name in (
        ("changed", "#222222", "-", "have other proxies than an epoch before"),
        ("alone", "#EE7733", "-", "have none that beats the student"),
        ("none", "#0077BB", "--", "have no reliable one"),
    ):
        known = table[column].iloc[1:]
        axs[1].plot(known.index, 100 * known, style, marker="o", ms=3, color=colour, label=name)
    axs[1].set(xlabel="epoch", ylabel="clips (%)", ylim=(0, None))
    for ax in axs:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    axs[1].legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize=8)
    figure.legend(*axs[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    figure.suptitle(title)
    return figure
