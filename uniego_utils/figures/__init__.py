"""Figures by shape. Pictures of clips are in `moments`, controls in `widgets`."""

from uniego_utils.figures.bars import plot_bars, plot_stacked, plot_verdicts
from uniego_utils.figures.dots import plot_dots, plot_intervals
from uniego_utils.figures.heatmaps import CLASS_SHARES, Scale, plot_heatmap
from uniego_utils.figures.lines import plot_curves, plot_doses, plot_lines
from uniego_utils.figures.pictures import plot_strips
from uniego_utils.figures.scatter import plot_blend, plot_plane, plot_scatter
from uniego_utils.figures.style import (
    ERROR_COLOURS,
    MOST_COLOURS,
    class_colours,
    side_by_side,
)
from uniego_utils.figures.timelines import plot_barcodes, plot_moment, plot_storyboard

__all__ = [
    "CLASS_SHARES",
    "ERROR_COLOURS",
    "MOST_COLOURS",
    "Scale",
    "class_colours",
    "plot_barcodes",
    "plot_bars",
    "plot_blend",
    "plot_curves",
    "plot_dots",
    "plot_doses",
    "plot_heatmap",
    "plot_intervals",
    "plot_lines",
    "plot_moment",
    "plot_plane",
    "plot_scatter",
    "plot_stacked",
    "plot_storyboard",
    "plot_strips",
    "plot_verdicts",
    "side_by_side",
]
