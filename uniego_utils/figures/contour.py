"""Contours of the loss over a plane of weights."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from uniego_utils.figures.style import UNIEGO_COLOUR, colour_of, side_by_side


def plot_plane(
    plane: pd.DataFrame,
    panels: Mapping[str, str],
    corners: Sequence[str],
    labels: Mapping[str, str],
    title: str,
) -> Figure:
    """Contours of the loss over a plane through three points, with true distances; the star is their average.

    Args:
        plane: columns x, y, corner (-1 on the grid, else the place in `corners`), and losses (nats).
        panels: what is written above a panel -> the column of its loss.
        corners: three names.
    """
    grid, ends = plane[plane["corner"] < 0], plane[plane["corner"] >= 0].sort_values("corner")
    height = 4.0 * max(np.ptp(grid["y"]) / np.ptp(grid["x"]), 0.6) + 0.7
    figure, axs = side_by_side(len(panels), (5.25 * len(panels), height), title)
    for ax, (name, column) in zip(axs, panels.items(), strict=True):
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
        ax.set(xlabel="distance in weights", ylabel="distance in weights", title=name)
        figure.colorbar(shown, ax=ax, label="loss (nats)", shrink=0.8)
    return figure
