"""Bars: one or several a row, or stacked."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from uniego_utils.figures.style import (
    Colour,
    add_legend,
    colour_of,
    colours_of,
    first_rows,
    name_rows,
    side_by_side,
    text_colour,
    verdict,
)


def draw_bars(
    ax: Axes,
    table: pd.DataFrame,
    xlabel: str,
    reference: float | None = None,
    top: float | None = None,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Bars in the rows' colours; arguments as of `plot_bars`, for one panel."""
    count, longest = table.shape[1], 0
    for number, (column, lengths) in enumerate(table.items()):
        places = np.arange(len(table)) + (number - (count - 1) / 2) * 0.8 / count
        strength = 0.4 + 0.6 * number / (count - 1) if count > 1 else 1
        colours = [colour_of(key) for key in table.index]
        bars = ax.barh(places, lengths, 0.74 / count, color=colours, alpha=strength)
        texts = [notes[key] if notes else f"{value:.3g} {column}".strip() for key, value in lengths.items()]
        ax.bar_label(bars, texts, padding=3, fontsize=9 if count == 1 else 7)
        longest = max(longest, *map(len, texts))
    if reference is not None:
        ax.axvline(reference, color="k", ls=":", lw=1)
    low, high = min(0, np.nanmin(table)), max(0, np.nanmax(table)) if top is None else top
    room = 1.06 + 0.022 * longest
    ax.set(xlim=(room * low, room * high or 1), xlabel=xlabel)
    if top is not None:  # room for the texts
        ax.set_xticks(np.linspace(0, top, 6))


def plot_bars(
    panels: Mapping[str, Mapping[str, float] | pd.DataFrame],
    labels: Mapping[str, str],
    title: str,
    references: Mapping[str, float] | None = None,
    tops: Mapping[str, float] | None = None,
    notes: Mapping[str, str] | None = None,
) -> Figure:
    """Horizontal bars with their values; all panels have the same rows, a teacher or method each.

    Args:
        panels: axis label -> a value a row, or a table whose columns are a row's bars: the last is full,
            those before it are paler.
        references: panel -> where a dotted line is, e.g. chance.
        tops: panel -> the highest value that there could be, e.g. 100 %: figures of several runs compare.
        notes: row -> text in place of its values.
    """
    tables = {
        xlabel: values if isinstance(values, pd.DataFrame) else pd.Series(values).to_frame("")
        for xlabel, values in panels.items()
    }
    rows, columns = next(iter(tables.values())).axes
    size = (3.6 * len(panels) + 3.4, (0.24 + 0.12 * len(columns)) * len(rows) + 1.2)
    figure, axs = side_by_side(len(panels), size, title, sharey=True)
    for ax, (xlabel, table) in zip(axs, tables.items(), strict=True):
        draw_bars(ax, table, xlabel, (references or {}).get(xlabel), (tops or {}).get(xlabel), notes)
    name_rows(axs[0], rows, labels)
    return figure


def plot_verdicts(table: pd.DataFrame, labels: Mapping[str, str], title: str) -> Figure:
    """Each model's answer on one clip: its probability of the true class, and the class it predicts.

    `table`: a row a model; columns probability (0..1), predicted (a class), right (bool), selected (bool).
    """
    axis = "probability of the true class"
    notes = {
        key: f"{verdict(row['right'])[0]} {row['predicted']}" + "   ★ selected" * row["selected"]
        for key, row in table.iterrows()
    }
    figure = plot_bars({axis: table["probability"]}, labels, title, tops={axis: 1}, notes=notes)
    for text, right in zip(figure.axes[0].texts, table["right"], strict=True):
        text.set_color(verdict(right)[1])
    return figure


def plot_stacked(
    panels: Mapping[str, pd.DataFrame],
    labels: Mapping[str, str],
    title: str,
    colours: Mapping[str, Colour] | None = None,
) -> Figure:
    """Bars made of parts, a row an index, a part a column; parts that are wide enough have their value.

    Args:
        panels: tables with the same rows; the first ones are drawn where there are hundreds.
        colours: of the columns, where they are no teachers or methods.
    """
    panels = {name: first_rows(table, title) for name, table in panels.items()}
    (first, title), *_ = panels.values()
    size = (4.2 * len(panels) + 4, 0.32 * len(first) + 1.3)
    figure, axs = side_by_side(len(panels), size, title, sharey=True)
    for ax, (xlabel, (table, _)) in zip(axs, panels.items(), strict=True):
        left, longest = np.zeros(len(table)), table.sum(axis=1).max()
        for column, colour in colours_of(table, colours).items():
            name = labels.get(column, column)
            bars = ax.barh(range(len(table)), table[column], 0.8, left, color=colour, label=name)
            texts = [f"{value:.0f}" if value >= 0.05 * longest else "" for value in table[column]]
            ax.bar_label(bars, texts, label_type="center", fontsize=8, color=text_colour(colour))
            left += table[column].to_numpy()
        ax.set(xlim=(0, 100 if "(%)" in xlabel else longest or 1), xlabel=xlabel)
    name_rows(axs[0], first.index, labels)
    add_legend(figure)
    return figure
