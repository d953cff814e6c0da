"""What a dataset's official annotations say, before anyone has looked at its videos."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from torch import Tensor

from uniego_utils.runs import digest

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Annotated:
    """The clips of a dataset as annotated, and what people should know about them.

    `clips` has the manifest's columns (see `manifests.py`), `split` and `reason`: why a clip cannot be used,
    as far as annotations alone tell; NaN where they find nothing wrong. Paths of videos are relative to the
    data root. An `end_s` of NaN means until the end of the videos.
    """

    clips: pd.DataFrame
    classes: tuple[str, ...]
    segments: pd.DataFrame | None = None  # split, level, video_id, take, ego_video, start_s, end_s, label
    published: Mapping[str, int] = field(default_factory=dict)  # paper's clips: train (our val in it), test
    inferred: Mapping[str, str] = field(default_factory=dict)  # setting -> what was inferred, and from what
    skeleton: Callable[[pd.Series], dict[str, Tensor]] | None = None  # a clip's joints, or ValueError
    fps: float | None = 30.0  # frame rate that video files must have; None: any
    allow_portrait: bool = False  # pictures may be higher than wide
    min_seconds: float = 0.1  # shorter clips are left out


def read_annotation(path: Path, source: str, layout: str) -> dict | list:
    """Read a dataset's JSON file; `source` says where to get it, `layout` what is expected below the root."""
    try:
        return json.loads(require_file(path, source, layout).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}); get it again from {source}") from None


def require_file(path: Path, source: str, layout: str) -> Path:
    """The path, if there is such a file; otherwise an error that says where to get it."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; get it from {source}; expected below data_root: {layout}"
        )
    return path


def split_off(clips: pd.DataFrame, by: str, share: float, split: str) -> pd.DataFrame:
    """Give about `share` of the training groups (takes, people), at least one, to another split.

    Where the official validation set serves as the paper's test, none is left to choose models on: so it is
    taken from the training clips. The choice hangs on the groups' names alone and stays when clips are added;
    a group is passed over if a class would have no training clips left without it.

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
