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
    width, height = 2.1 * len(metrics) + (3.4 if len(metrics) > 1 else 5.4), 0.3 + 0.04 * len(groups)
    figure, axs = side_by_side(len(metrics), (width, height * len(methods) + 1.3), title, sharey=True)
    for ax, (column, xlabel) in zip(axs, metrics.items(), strict=True):
        for number, group in enumerate(groups):
            rows = table[table[by] == group] if by else table
            marker = {"marker": MARKERS[number], "ls": ""} | ({"mfc": "w"} if number % 2 else {})
            for place, method in enumerate(methods):
                values = rows.loc[rows["method"] == method, column].dropna()
                at, reach = place + 0.22 * (number - (len(groups) - 1) / 2), 0.3 / len(groups)
                style = {"color": colour_of(method), "alpha": 0.6 if len(values) > 1 else 1}
                ax.plot(values, [at] * len(values), ms=6, **marker, **style)
                if len(values) > 1:
                    ax.plot([values.mean()] * 2, [at - reach, at + reach], lw=3, color=style["color"])
                elif len(values) and not by:
                    value = values.iloc[0]
                    ax.text(value, at - 0.15, f"{value:.3g}", fontsize=7, ha="center", va="bottom")
            if by and ax is axs[0]:
                ax.plot([], [], color="k", label=str(group), **marker)
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
    rows, colours = range(len(table)), [colour_of(method) for method in table["method"]]
    ax.hlines(rows, table["low"], table["high"], colours, lw=2)
    ax.scatter(table["mean"], rows, 36, colours)
    ax.axvline(0, color="k", lw=1, ls=":")
    name_rows(ax, table["method"], labels)
    ax.set_xlabel(xlabel)
    return figure
