"""Untrimmed videos: labels as coloured bars over time, alone or below pictures.

`bars` maps what a row is, the truth first, to labels (steps,); `edges` (steps + 1,) are in seconds; `colours`
are of `style.class_colours`, of all classes, so that they are the same in every figure.
"""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from uniego_utils.figures.pictures import PANEL, draw_picture
from uniego_utils.figures.style import BACKGROUND_COLOUR, MOST_COLOURS, Colour, name_rows, verdict

Bars = Mapping[str, np.ndarray]


def draw_timeline(ax: Axes, bars: Bars, edges: np.ndarray, colours: Mapping[str, Colour]) -> None:
    """Rows of labels as coloured bars; those of the first row, the truth, have their names."""
    for row, labels in enumerate(map(np.asarray, bars.values())):
        starts = np.flatnonzero(np.r_[True, labels[1:] != labels[:-1]])
        for start, stop in zip(starts, np.r_[starts[1:], len(labels)], strict=True):
            colour, left, width = colours.get(labels[start], "k"), edges[start], edges[stop] - edges[start]
            ax.barh(row, width, 0.82, left, color=colour, linewidth=0)
            if row == 0 and colour != BACKGROUND_COLOUR and width > 0.028 * (edges[-1] - edges[0]):
                name = labels[start].replace("_", "\n")
                text = ax.text(left + width / 2, row, name, ha="center", va="center", fontsize=6)
                text.set(linespacing=0.85, clip_on=True, bbox=dict(facecolor="w", alpha=0.6, lw=0, pad=0.6))
    name_rows(ax, bars, {})
    ax.set(xlim=(edges[0], edges[-1]), xlabel="seconds")
    ax.tick_params(axis="y", length=0)
    ax.spines[["left", "bottom"]].set_visible(False)


def plot_barcodes(
    videos: Mapping[str, tuple[Bars, np.ndarray]], colours: Mapping[str, Colour], title: str
) -> Figure:
    """Colour barcodes: a panel a video, of its bars and edges; a row the truth and one for each method."""
    height = 0.25 * max(len(bars) for bars, _ in videos.values()) + 0.62
    size = (11, height * len(videos) + 0.9)
    figure, axs = plt.subplots(len(videos), 1, figsize=size, layout="constrained", squeeze=False)
    for ax, (name, (bars, edges)) in zip(axs[:, 0], videos.items(), strict=True):
        draw_timeline(ax, bars, edges, colours)
        ax.set_title(name, fontsize=9, loc="left", pad=3)
    for ax in axs[:-1, 0]:
        ax.set_xlabel("")
    shown = {label for bars, _ in videos.values() for labels in bars.values() for label in np.unique(labels)}
    names = [name for name in colours if name in shown][: MOST_COLOURS + 1]
    handles = [plt.Rectangle((0, 0), 1, 1, color=colours[name]) for name in names]
    figure.legend(handles, names, loc="outside lower center", ncols=8)
    figure.suptitle(title)
    return figure


def plot_storyboard(
    strips: Mapping[str, np.ndarray],
    times: np.ndarray,
    bars: Bars,
    edges: np.ndarray,
    colours: Mapping[str, Colour],
    title: str,
) -> Figure:
    """An untrimmed video as rows of pictures at `times` (T,) in seconds, with bars of its labels below; marks
    are the pictures'. `strips`: row label -> (T, H, W, 3) uint8."""
    heights = [PANEL] * len(strips) + [0.34 * len(bars) + 0.1]
    figure = plt.figure(figsize=(PANEL * len(times) + 0.8, sum(heights) + 0.9), layout="constrained")
    grid = figure.add_gridspec(len(heights), len(times), height_ratios=heights)
    for row, (label, frames) in enumerate(strips.items()):
        for place, (frame, time) in enumerate(zip(frames, times, strict=True)):
            ax, heading = figure.add_subplot(grid[row, place]), "" if row else f"{time:.1f} s"
            draw_picture(ax, frame, "" if place else label, heading)
    ax = figure.add_subplot(grid[-1, :])
    draw_timeline(ax, bars, edges, colours)
    ax.plot(times, np.full(len(times), -0.5), "v", color="k", ms=5, clip_on=False)
    figure.suptitle(title)
    return figure


def plot_moment(
    pictures: Mapping[str, np.ndarray],
    time: float,
    bars: Bars,
    edges: np.ndarray,
    colours: Mapping[str, Colour],
    title: str,
) -> Figure:
    """One moment of an untrimmed video: its pictures, each row's label, and bars of labels with a
    cursor at `time` in seconds. `pictures`: view -> (H, W, 3) uint8."""
    height = 0.27 * len(bars) + 0.4
    figure = plt.figure(figsize=(11, 2.9 + height), layout="constrained")
    grid = figure.add_gridspec(2, len(pictures) + 1, height_ratios=[2.6, height])
    for place, (view, picture) in enumerate(pictures.items()):
        draw_picture(figure.add_subplot(grid[0, place]), picture, heading=f"{view} view, {time:.1f} s")
    step = int(np.clip(np.searchsorted(edges, time, side="right") - 1, 0, len(edges) - 2))
    now = {name: str(labels[step]) for name, labels in bars.items()}
    truth = next(iter(now.values()))
    ax = figure.add_subplot(grid[0, -1])
    ax.axis("off")
    for row, (name, label) in enumerate(now.items()):
        mark, colour = verdict(label == truth) if row else ("", "k")
        ax.text(0, 1 - row / len(now), f"{name}: {mark} {label}", va="top", fontsize=9, color=colour)
    ax = figure.add_subplot(grid[1, :])
    draw_timeline(ax, bars, edges, colours)
    ax.axvline(time, color="k", lw=2)
    figure.suptitle(title)
    return figure
