"""Points in a plane: features, expected against measured, mixtures of proxies and the loss between them."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from uniego_utils.figures.bars import draw_bars
from uniego_utils.figures.style import (
    PALE_COLOUR,
    UNIEGO_COLOUR,
    Colour,
    add_legend,
    colour_of,
    colours_of,
    name_rows,
    side_by_side,
)

MARKERS = "o^*s"


def plot_scatter(
    panels: Mapping[str, pd.DataFrame],
    title: str,
    xlabel: str = "",
    ylabel: str = "",
    colours: Mapping[str, Colour] | None = None,
) -> Figure:
    """Points of several kinds, a panel a table of columns x, y, kind; few kinds differ in their markers too.

    Args:
        panels: what is written above a panel -> its points.
        xlabel, ylabel: with them, a dotted diagonal is where both are equal; without, axes have no numbers.
            `{}` in them is the panel's name.
        colours: of the kinds, in the legend's order; those that it leaves out are pale.
    """
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    size = (3.0 * columns + 1.8, (3.0 if xlabel else 2.3) * rows + 0.6)
    figure, axs = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    colours = colours or colours_of(dict.fromkeys(pd.concat(panels.values())["kind"]))
    few = len(colours) <= len(MARKERS)
    for ax, (name, table) in zip(axs.flat, panels.items(), strict=False):
        others = table[~table["kind"].isin(list(colours))]
        ax.scatter(others["x"], others["y"], 3, color=PALE_COLOUR, lw=0)
        for number, (kind, colour) in enumerate(colours.items()):
            points = table[table["kind"] == kind]
            marker = MARKERS[number] if few else "o"
            area = (130 if marker == "*" else 25) if few else 5  # points squared
            ax.scatter(
                points["x"], points["y"], area, color=colour, marker=marker, label=kind, alpha=0.8, lw=0
            )
        ax.set(title="" if "{}" in xlabel else name, xlabel=xlabel.format(name), ylabel=ylabel.format(name))
        if xlabel:
            ends = np.array([table[["x", "y"]].min(axis=None), table[["x", "y"]].max(axis=None)])
            ax.plot(ends, ends, "k:", lw=1)
            for axis in (ax.xaxis, ax.yaxis):
                axis.set_major_locator(MaxNLocator(5))
        else:
            ax.set(xticks=[], yticks=[])
    for ax in axs.flat[len(panels) :]:
        ax.set_visible(False)
    add_legend(figure, markerscale=1 if few else 3)
    figure.suptitle(title)
    return figure


def plot_blend(
    shares: Mapping[str, float],
    points: pd.DataFrame,
    expected: Mapping[str, float],
    error: Mapping[str, float],
    measured: Mapping[str, float] | None,
    labels: Mapping[str, str],
    title: str,
) -> Figure:
    """One blend of the proxies: its coefficients, and where it lies among those that were run.

    Args:
        shares: proxy -> coefficient.
        points: what was run, by proxy, name of a start, or number; columns val_top1 (%), val_nll (nats).
        expected, error: val_top1 and val_nll that a surrogate expects of the blend, and its typical errors.
        measured: the same two when the blend was run, else None.
        labels: of proxies and starts.
    """
    figure, (left, right) = side_by_side(2, (10, 3.9), title, width_ratios=(1, 1.35))
    draw_bars(left, pd.Series(shares).to_frame(""), "coefficient (dotted: plain average)", 1 / len(shares), 1)
    name_rows(left, shares, labels)
    for name, point in points.iterrows():
        at, style = (point["val_nll"], point["val_top1"]), {"color": PALE_COLOUR, "ms": 4}
        if name in shares:
            style = {"color": colour_of(name), "ms": 7}
        elif name in labels:
            style = {"color": "#222222", "ms": 6, "marker": "D"}
            right.annotate(labels[name], at, (7, -3), textcoords="offset points", fontsize=8)
        right.plot(*at, **{"marker": "o", "ls": "", **style})
    star = {"marker": "*", "ms": 15, "ls": "", "zorder": 4}
    right.errorbar(
        expected["val_nll"],
        expected["val_top1"],
        xerr=error["val_nll"],
        yerr=error["val_top1"],
        color=UNIEGO_COLOUR,
        elinewidth=1,
        label="this blend, expected",
        **star,
    )
    if measured is not None:
        at = measured["val_nll"], measured["val_top1"]
        right.plot(*at, mfc="white", mec="k", label="this blend, run", **star)
    right.plot([], [], "o", ms=7, color="#777777", label="a proxy, in its colour")
    right.plot([], [], "o", ms=4, color=PALE_COLOUR, label="other blends that were run")
    right.set(xlabel="validation NLL (nats)", ylabel="validation accuracy (%)")
    right.grid(alpha=0.3)
    right.legend(loc="best")
    right.margins(0.12)
    return figure


def plot_plane(plane: pd.DataFrame, corners: Sequence[str], labels: Mapping[str, str], title: str) -> Figure:
    """Contours of the loss over a plane through three points, with true distances; the star is their average.

    Args:
        plane: columns x, y, corner (-1 on the grid, else the place in `corners`), train_nll, val_nll (nats).
        corners: three names.
    """
    grid, ends = plane[plane["corner"] < 0], plane[plane["corner"] >= 0].sort_values("corner")
    height = 4.0 * max(np.ptp(grid["y"]) / np.ptp(grid["x"]), 0.6) + 0.7
    figure, axs = side_by_side(2, (10.5, height), title)
    for ax, (column, name) in zip(axs, {"train_nll": "train", "val_nll": "val"}.items(), strict=True):
        table = grid.pivot(index="y", columns="x", values=column)
        shown = ax.contourf(table.columns, table.index, table, levels=14, cmap="cividis")
        ax.plot(*ends[["x", "y"]].iloc[[0, 1, 2, 0]].to_numpy().T, color="w", lw=1, ls=":")
        ax.plot(*ends[["x", "y"]].mean(), "*", color=UNIEGO_COLOUR, mec="w", ms=16)
        for corner, (_, place) in zip(corners, ends.iterrows(), strict=True):
            at = place["x"], place["y"]
            ax.plot(*at, "o", color=colour_of(corner), mec="w", ms=9)
            words = f"{labels.get(corner, corner)}\n{place[column]:.2f}"
            text = ax.annotate(words, at, (0, 8), textcoords="offset points", ha="center", fontsize=8)
            text.set_bbox(dict(facecolor="w", alpha=0.75, lw=0, pad=1.5))
        ax.set_aspect("equal")
        ax.set(xlabel="distance in weights", ylabel="distance in weights", title=f"{name} clips")
        figure.colorbar(shown, ax=ax, label="loss (nats)", shrink=0.8)
    return figure
