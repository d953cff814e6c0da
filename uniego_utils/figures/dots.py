"""Dots: scores of methods, seeds and their mean, and intervals."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from uniego_utils.figures.style import add_legend, colour_of, name_rows, side_by_side

MARKERS = "os^Dv"  # every second one is hollow
LEAST_SPAN = 12  # points that an axis in percent spans at least: small differences look small


def plot_dots(
    table: pd.DataFrame,
    metrics: Mapping[str, str],
    labels: Mapping[str, str],
    title: str,
    by: str = "",
    references: Mapping[str, float] | None = None,
) -> Figure:
    """A panel a metric, a row a method in order of appearance, a dot a row of the table.

    Where a method has several dots (of seeds, say), a bar is at their mean; a single one has its value.

    Args:
        table: columns method, those of `metrics` and, if given, `by`.
        metrics: column -> what the axis says, with its unit.
        by: column whose values differ in their markers, e.g. the head that a method was scored with.
        references: column -> where a dotted line is, e.g. chance.
    """
    methods, groups = list(dict.fromkeys(table["method"])), list(dict.fromkeys(table[by])) if by else [None]
    size = (
        2.6 * len(metrics) + 3 + 1.8 * (len(metrics) == 1),
        (0.28 + 0.08 * len(groups)) * len(methods) + 1.3,
    )
    figure, axs = side_by_side(len(metrics), size, title, sharey=True)
    for ax, (column, xlabel) in zip(axs, metrics.items(), strict=True):
        for number, group in enumerate(groups):
            own = table[table[by] == group] if by else table
            hollow = {"mfc": "w"} if number % 2 else {}
            for place, method in enumerate(methods):
                values, colour = own.loc[own["method"] == method, column].dropna(), colour_of(method)
                height = place + 0.22 * (number - (len(groups) - 1) / 2)
                several = len(values) > 1
                style = {
                    "color": colour,
                    "ms": 5 if several else 6.5,
                    "alpha": 0.6 if several else 1,
                    **hollow,
                }
                ax.plot(values, [height] * len(values), MARKERS[number], zorder=3, **style)
                if several:
                    reach = 0.3 / len(groups)
                    ax.plot([values.mean()] * 2, [height - reach, height + reach], color=colour, lw=3)
                elif len(values) and not by:
                    at = values.iloc[0], height
                    ax.annotate(
                        f"{at[0]:.3g}", at, (0, 6), textcoords="offset points", fontsize=7, ha="center"
                    )
            if ax is axs[0] and by:
                ax.plot([], [], MARKERS[number], color="k", label=str(group), **hollow)
        if references:
            ax.axvline(references[column], color="k", ls=":", lw=1)
        ax.margins(x=0.12)
        low, high = ax.get_xlim()
        if "(%)" in xlabel and high - low < LEAST_SPAN:
            ax.set_xlim((low + high - LEAST_SPAN) / 2, (low + high + LEAST_SPAN) / 2)
        ax.set_xlabel(xlabel)
        ax.grid(axis="x", alpha=0.3)
    name_rows(axs[0], methods, labels)
    if by:
        add_legend(figure, title=by)
    return figure


def plot_intervals(table: pd.DataFrame, labels: Mapping[str, str], title: str, xlabel: str) -> Figure:
    """A dot and its interval a row; dotted: no difference.

    `table` has columns method, mean, low, high; low and high may be NaN, e.g. with one seed.
    """
    figure, (ax,) = side_by_side(1, (7.5, 0.34 * len(table) + 1.2), title)
    for place, row in enumerate(table.itertuples()):
        ax.plot([row.low, row.high], [place, place], color=colour_of(row.method), lw=2)
        ax.plot(row.mean, place, "o", color=colour_of(row.method), ms=6)
    ax.axvline(0, color="k", lw=1, ls=":")
    name_rows(ax, table["method"], labels)
    ax.set_xlabel(xlabel)
    return figure
