"""What all figures share: a teacher has one colour, one name and one place everywhere.

The functions of this folder take data and return a Figure; they compute nothing and save nothing. `panels`
maps what a panel shows, with its unit, to its data; `labels` maps keys (teachers, methods) to their names,
and what has no label is called by its key; `title` is the question.
"""

from collections.abc import Iterable, Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from uniego_utils.methods import METHODS, OTHER_COLOUR

Colour = str | tuple[float, ...]

# Paul Tol's "muted" scheme: nine colours that people with colour-blindness can tell apart
TEACHER_COLOURS = {
    "ego_depth": "#332288",
    "ego_dino": "#88CCEE",
    "ego_siglip": "#44AA99",
    "exo_rgb": "#117733",
    "exo_skego": "#999933",
    "exo_depth": "#DDCC77",
    "exo_skl": "#CC6677",
    "exo_dino": "#882255",
    "exo_siglip": "#AA4499",
}
UNIEGO_COLOUR = METHODS["uniego"].colour
KNOWN_COLOURS = TEACHER_COLOURS | {
    key: method.colour for key, method in METHODS.items() if method.colour != OTHER_COLOUR
}
FREE_COLOURS = ("#222222", "#0077BB", "#CC3311", "#009988", "#BBBBBB")  # for what is no teacher or method
BACKGROUND_COLOUR = "#ECECEC"
ERROR_COLOURS = {  # kinds of `frame_errors` and `segment_errors` in segmentation.metrics
    "right": "#117733",
    "found": "#117733",
    "boundary": "#88CCEE",
    "displaced": "#88CCEE",
    "fragmented": "#DDCC77",
    "confused": "#AA4499",
    "missed": "#999999",
    "invented": "#EE6611",
}
RIGHT_COLOUR, WRONG_COLOUR = "#117733", "#BB2222"
PALE_COLOUR = "#BBBBBB"  # of what is there for comparison
MOST_COLOURS = 24  # classes that colours can barely tell apart
MOST_ROWS = 40  # classes that a figure lists; a dataset may have hundreds

plt.rcParams.update(
    {
        "figure.dpi": 80,
        "savefig.dpi": 150,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10,
        "axes.prop_cycle": plt.cycler(color=FREE_COLOURS),
        "legend.frameon": False,
        "legend.fontsize": 8,
    }
)


def colour_of(name: str) -> str:
    """The colour of a teacher, its proxy, or a method."""
    return KNOWN_COLOURS.get(name, OTHER_COLOUR)


def colours_of(names: Iterable[str], colours: Mapping[str, Colour] | None = None) -> dict[str, Colour]:
    """A colour a name: from `colours`, else its usual one; names without one take free ones in order."""
    known = {**KNOWN_COLOURS, **(colours or {})}
    others = [name for name in names if name not in known]
    few = len(others) <= len(FREE_COLOURS)
    known |= zip(others, FREE_COLOURS if few else sns.color_palette("cividis", len(others)), strict=False)
    return {name: known[name] for name in names}


def class_colours(names: Sequence[str], background: str = "") -> dict[str, Colour]:
    """A colour a class: hues go round, neighbours differ in lightness; background is pale.

    Beyond `MOST_COLOURS` classes colours repeat: bars over time then still show where labels change.
    """
    actions = [name for name in names if name != background]
    count = min(len(actions), MOST_COLOURS)
    light, dark = (sns.husl_palette(count, s=0.9, l=lightness) for lightness in (0.72, 0.45))
    colours = {background: BACKGROUND_COLOUR} if background else {}
    for number, name in enumerate(actions):
        colours[name] = (light if number % 2 else dark)[number % count]
    return colours


def text_colour(background: Colour) -> str:
    """Black or white, whichever is read better on a colour."""
    red, green, blue = to_rgb(background)
    return "k" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "w"


def verdict(right: bool) -> tuple[str, str]:
    """The mark of an answer, and its colour."""
    return ("✓", RIGHT_COLOUR) if right else ("✗", WRONG_COLOUR)


def first_rows(table: pd.DataFrame, title: str) -> tuple[pd.DataFrame, str]:
    """The rows that fit into a figure, and a title that says so where some do not."""
    if len(table) <= MOST_ROWS:
        return table, title
    return table.head(MOST_ROWS), f"{title}  (first {MOST_ROWS} of {len(table)})"


def side_by_side(
    count: int, size: tuple[float, float], title: str, **options
) -> tuple[Figure, Sequence[Axes]]:
    """A figure of `count` panels in a row; size in inches."""
    figure, axs = plt.subplots(1, count, figsize=size, layout="constrained", squeeze=False, **options)
    figure.suptitle(title)
    return figure, axs[0]


def name_rows(ax: Axes, names: Iterable[str], labels: Mapping[str, str]) -> None:
    """Names at the heights 0, 1, ..., the first on top."""
    called = [labels.get(name, name) for name in names]
    ax.set_yticks(range(len(called)), called)
    ax.set_ylim(len(called) - 0.5, -0.5)


def add_legend(figure: Figure, loc: str = "outside right center", **options) -> None:
    """One legend for all panels: each label once."""
    entries = {}
    for ax in figure.axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(entries.values(), entries.keys(), loc=loc, **options)
