"""Heat maps: tables whose cells are coloured and numbered."""

from collections.abc import Mapping
from dataclasses import dataclass

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from uniego_utils.figures.style import first_rows, side_by_side


@dataclass(frozen=True)
class Scale:
    """What a heat map's colours mean: the range is fixed, so figures compare."""

    name: str  # with the unit; beside the colour bar
    low: float = 0.0
    high: float = 1.0
    digits: int = 2
    signed: bool = False  # colours that part at the middle of the range

    @property
    def colours(self) -> str:
        return "PuOr_r" if self.signed else "cividis"


CLASS_SHARES = Scale("share of the class's clips")


def plot_heatmap(
    panels: Mapping[str, tuple[pd.DataFrame, Scale]], labels: Mapping[str, str], title: str
) -> Figure:
    """Tables of the same rows side by side; where there are hundreds, their first rows.

    Args:
        panels: what is written above a panel ("" for nothing) -> its table, NaN is left empty, and its
            scale; one that several panels share has one colour bar.
        labels: of rows and columns.
    """
    tables = [first_rows(table, title) for table, _ in panels.values()]
    scales = [scale for _, scale in panels.values()]
    widest = max(scale.digits + 2 + scale.signed for scale in scales)
    (first, title), cell = tables[0], 0.1 * widest + 0.12
    size = (sum(cell * table.shape[1] + 1.1 for table, _ in tables) + 2.2, 0.3 * len(first) + 2.2)
    widths = [table.shape[1] for table, _ in tables]
    figure, axs = side_by_side(len(panels), size, title, sharey=True, width_ratios=widths)
    for number, (ax, name, (table, _), scale) in enumerate(zip(axs, panels, tables, scales, strict=True)):
        sns.heatmap(
            table.rename(index=labels, columns=labels).round(scale.digits) + 0.0,  # no "-0.0"
            vmin=scale.low,
            vmax=scale.high,
            cmap=scale.colours,
            annot=True,
            fmt=f".{scale.digits}f",
            annot_kws={"size": 8},
            cbar=scale not in scales[number + 1 :],
            cbar_kws={"label": scale.name, "shrink": 0.8},
            ax=ax,
        )
        ax.set(xlabel="", ylabel="", title=name)
        ax.tick_params(axis="y", rotation=0, length=0)
        plt.setp(ax.get_xticklabels(), rotation=40, ha="right", rotation_mode="anchor")
    return figure
