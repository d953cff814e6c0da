"""What a dataset's official annotations say, before its videos are inspected."""

import io
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from uniego_utils.runs import digest

SPLITS = ("train", "val", "test")
UNLABELLED = "unlabelled"  # the split of clips without a label, where a dataset has some
KINDS = {dict: "a mapping", list: "a list", str: "a text", int: "an integer"}


@dataclass(frozen=True)
class Requirements:
    """What the videos and clips of a dataset must be like: part of every builder's settings."""

    fps: float | None = 30.0  # frame rate that video files must have; None: any
    allow_portrait: bool = False  # pictures may be higher than wide
    min_seconds: float = 0.1  # shorter clips are left out


@dataclass(frozen=True)
class Annotated:
    """The clips of a dataset as annotated.

    `clips` has the manifest's columns (see `manifests.py`), `split` and `reason`: why a clip cannot be used,
    as far as annotations alone show; NaN where it can. Paths of videos are relative to the
    data root. An `end_s` of NaN means until the end of the videos. Clips of the split `unlabelled` have no
    label, or all have one, which ceilings alone may read.
    """

    clips: pd.DataFrame
    classes: tuple[str, ...]
    requirements: Requirements
    segments: pd.DataFrame | None = None  # split, level, video_id, take, ego_video, start_s, end_s, label
    published: Mapping[str, int] = field(default_factory=dict)  # paper's clips: train (our val in it), test
    inferred: Mapping[str, str] = field(default_factory=dict)  # setting -> what was inferred, and from what
    skeleton: Callable[[pd.Series], dict[str, Tensor]] | None = None  # a clip's joints, or ValueError


def read_annotation(path: Path, source: str, layout: str, kind: type = dict) -> dict | list:
    """Read a dataset's JSON file; `source` says where to get it, `layout` what is expected below the root."""
    try:
        content = json.loads(read_text(path, source, layout))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}); get it again from {source}") from None
    if not isinstance(content, kind):
        raise ValueError(f"{path} is not {KINDS[kind]}; get it again from {source}")
    return content


def read_text(path: Path, source: str, layout: str) -> str:
    """Read a text, with or without the mark that spreadsheets put before it."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; get it from {source}; expected below data_root: {layout}"
        )
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text; get it from {source}, in UTF-8") from None


def read_table(
    path: Path,
    source: str,
    layout: str,
    columns: tuple[str, ...],
    separator: str = ",",
    names: list[str] | None = None,
) -> pd.DataFrame:
    """Read a table as text without outer spaces: blank cells are NaN, `NA` and `None` are words.

    Args:
        columns: that it must have.
        names: of all its columns, if it has no header.

    Returns:
        its rows but blank ones; the index says their lines in the file.
    """
    text = io.StringIO(read_text(path, source, layout))
    options = {"sep": separator, "names": names, "header": None if names else 0}
    cells = {"dtype": str, "keep_default_na": False, "na_values": [""], "skip_blank_lines": False}
    try:
        table = pd.read_csv(text, **options, **cells)
    except pd.errors.EmptyDataError:
        raise ValueError(f"{path} is empty; get it from {source}; expected {layout}") from None
    except pd.errors.ParserError as error:
        raise ValueError(f"{path} is no table ({str(error).strip()}); get it from {source}") from None
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes cells without a column for names of rows
        raise ValueError(f"{path} has rows of more cells than columns; get it from {source}")
    table.index += 1 if names else 2
    table.columns = [name.strip() for name in table.columns]
    if absent := [name for name in columns if name not in table]:
        raise ValueError(f"{path} has no column {', '.join(absent)}; expected {layout}")
    table = table.apply(lambda cells: cells.str.strip()).replace("", np.nan).dropna(how="all")
    if table.empty:
        raise ValueError(f"{path} has no rows; get it from {source}; expected {layout}")
    return table


def entry(content: dict, key: str, kind: type, where: str) -> dict | list | str | int:
    """What a file holds under `key`, or an error; `where` names the file and the place in it."""
    value = content.get(key) if isinstance(content, dict) else None
    if not isinstance(value, kind):
        raise ValueError(f"{where}: expected {KINDS[kind]} {key!r}; the file is damaged or of another format")
    return value


def number(value: object) -> float:
    """A number of an annotation; NaN where there is none."""
    try:
        result = float(value)
    except (TypeError, ValueError):
        return np.nan
    return result if math.isfinite(result) else np.nan


def with_checked_times(clips: pd.DataFrame) -> pd.DataFrame:
    """Give clips without a span a reason and the length zero: an absent end would mean the video's."""
    absent = clips[["start_s", "end_s"]].isna().any(axis=1)
    reason = clips["reason"].astype(object)
    reason = reason.mask(clips["end_s"] <= clips["start_s"], "annotation ends before it starts")
    start = clips["start_s"].fillna(0.0)
    return clips.assign(
        start_s=start,
        end_s=clips["end_s"].mask(absent, start),
        reason=reason.mask(absent, "no time in the annotation"),
    )


def split_off(clips: pd.DataFrame, by: str, share: float, split: str) -> pd.DataFrame:
    """Give about `share` of the training groups (takes, people), at least one, to another split.

    Where the official validation set serves as the paper's test, none is left to choose models on: so one is
    taken from the training clips. Which groups go depends on their names alone, so it stays the same when
    clips are added; a group is passed over if a class would have no training clips left without it.

    Args:
        clips: with `split`, `label` and the column `by`, which names the groups.
        split: the other split; another one takes other groups.
    """
    train = clips[clips["split"] == "train"]
    place = {name: int(digest(f"{split} {name}".encode())[:8], 16) / 2**32 for name in train[by].unique()}
    inside = {name: Counter(labels.dropna()) for name, labels in train["label"].groupby(train[by])}
    left, chosen = Counter(train["label"].dropna()), set()
    for name in sorted(place, key=place.get):
        if share <= 0 or (chosen and place[name] >= share):
            break
        if all(left[label] > count for label, count in inside[name].items()):
            left -= inside[name]
            chosen.add(name)
    moved = (clips["split"] == "train") & clips[by].isin(chosen)
    return clips.assign(split=clips["split"].mask(moved, split))
