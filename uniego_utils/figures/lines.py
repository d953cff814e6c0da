"""Lines over epochs, doses or paths."""

from collections import Counter
from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from uniego_utils.figures.style import (
    PALE_COLOUR,
    TEACHER_COLOURS,
    Colour,
    add_legend,
    colours_of,
    side_by_side,
)

DASHES = ("-", "--", ":", "-.")  # of lines that share a colour


def plot_lines(
    panels: Mapping[str, pd.DataFrame],
    labels: Mapping[str, str],
    title: str,
    xlabel: str,
    ylabel: str = "",
    colours: Mapping[str, Colour] | None = None,
    bands: Mapping[str, pd.DataFrame] | None = None,
    behind: Mapping[str, pd.DataFrame] | None = None,
    reference: float | None = None,
) -> Figure:
    """A line a column over the table's index; NaN is left out.

    Args:
        panels: axis label -> table. With a `ylabel` all panels share their axis, and names are written above.
        colours: of the columns, where they are no teachers or methods.
        bands: panel -> table of half widths of a band around each line, e.g. standard errors.
        behind: panel -> table of thin pale lines.
        reference: where a dotted line is.
    """
    size = (3.5 * len(panels) + 2.6, 3.6)
    figure, axs = side_by_side(len(panels), size, title, sharey=bool(ylabel))
    for ax, (name, table) in zip(axs, panels.items(), strict=True):
        if behind:
            ax.plot(behind[name].index, behind[name], color=PALE_COLOUR, lw=0.8)
        drawn = Counter()  # colours
        for key, colour in colours_of(table, colours).items():
            values = table[key].dropna()
            style = {"color": colour, "ls": DASHES[drawn[colour] % len(DASHES)]}
            drawn[colour] += 1
            width = 1.3 if key in TEACHER_COLOURS else 2.2
            ax.plot(values.index, values, marker="o", ms=3, lw=width, label=labels.get(key, key), **style)
            if bands:
                error = bands[name][key].fillna(0.0)[values.index]
                ax.fill_between(values.index, values - error, values + error, color=colour, alpha=0.15, lw=0)
        if reference is not None:
            ax.axhline(reference, color="k", ls=":", lw=1)
        if pd.api.types.is_integer_dtype(table.index):
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set(xlabel=xlabel, title=name) if ylabel else ax.set(xlabel=xlabel, ylabel=name)
    if ylabel:
        axs[0].set_ylabel(ylabel)
    add_legend(figure)
    return figure


def plot_curves(histories: Mapping[str, list[dict]], labels: Mapping[str, str], title: str) -> Figure:
    """Training loss and validation accuracy over epochs, a line a student."""
    tables = {name: pd.DataFrame(records).set_index("epoch") for name, records in histories.items()}
    columns = {"cross-entropy in training (nats)": "class_loss", "validation accuracy (%)": "val_top1"}
    panels = {
        axis: pd.DataFrame({name: table[column] for name, table in tables.items()})
        for axis, column in columns.items()
    }
    return plot_lines(panels, labels, title, "epoch")


def plot_doses(table: pd.DataFrame, split: str, labels: Mapping[str, str], title: str) -> Figure:
    """Accuracy and NLL against the number of misaligned teachers, a line a method: the mean over seeds, with
    a band of one standard error where there are several.

    `table` has columns dose, method, `<split>_top1`, `<split>_nll`, and a row a seed.
    """
    columns = {f"{split} accuracy (%)": f"{split}_top1", f"{split} NLL (nats)": f"{split}_nll"}
    methods = list(dict.fromkeys(table["method"]))
    grouped = {axis: table.groupby(["dose", "method"])[column] for axis, column in columns.items()}
    means = {axis: scores.mean().unstack()[methods] for axis, scores in grouped.items()}
    errors = {axis: scores.sem().unstack()[methods] for axis, scores in grouped.items()}
    return plot_lines(means, labels, title, "misaligned teachers added", bands=errors)
