"""Rows of pictures: clips moment by moment, or clips that are alike."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from uniego_utils.figures.style import UNIEGO_COLOUR, verdict

PANEL = 1.15  # inches, side of a picture in a row


def draw_picture(
    ax: Axes, picture: np.ndarray, label: str = "", heading: str = "", colour: str = "k"
) -> None:
    """A picture (H, W, 3) or (H, W), uint8, with a label to its left and a heading."""
    ax.imshow(picture, cmap="gray", vmin=0, vmax=255)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    ax.set_ylabel(label, rotation=0, ha="right", va="center")
    ax.set_title(heading, fontsize=9, pad=2, color=colour)


def plot_strips(
    strips: Mapping[str, Sequence[np.ndarray]],
    title: str,
    overlays: Mapping[str, np.ndarray] | None = None,
    bones: Sequence[tuple[int, int]] = (),
    right: Mapping[str, Sequence[bool]] | None = None,
) -> Figure:
    """Rows of pictures: what a clip looks like moment by moment, or a clip and those that are like it.

    Args:
        strips: row label -> pictures (H, W, 3) or (H, W), uint8; rows may be of different lengths.
        overlays: row label -> (T, V, 2) joint positions in pixels, NaN where not visible.
        bones: pairs of joint numbers to connect.
        right: row label -> a mark for each picture but the first: is it of the first one's class?
    """
    columns = max(map(len, strips.values()))
    size = (PANEL * columns + 0.8, PANEL * len(strips) + 0.4)
    figure, axs = plt.subplots(len(strips), columns, figsize=size, layout="constrained", squeeze=False)
    for row, (label, pictures) in zip(axs, strips.items(), strict=True):
        for ax in row[len(pictures) :]:
            ax.set_axis_off()
        for place, (ax, picture) in enumerate(zip(row, pictures, strict=False)):
            mark = verdict(right[label][place - 1]) if right and place else ()
            draw_picture(ax, picture, "" if place else label, *mark)
            if overlays and label in overlays:
                joints = overlays[label][place]
                for a, b in bones:
                    ax.plot(*joints[[a, b]].T, color=UNIEGO_COLOUR, lw=1.4)
                ax.set(xlim=(-0.5, picture.shape[1] - 0.5), ylim=(picture.shape[0] - 0.5, -0.5))
    figure.suptitle(title)
    return figure
