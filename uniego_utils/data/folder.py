"""Clips of your own videos, listed in one table."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from uniego_utils.data.annotated import SPLITS, UNLABELLED, Annotated, Requirements, read_table, split_off
from uniego_utils.data.tables import refuse_rows

OPTIONAL = (
    "clip_id",
    "exo_video",
    "label",
    "start_s",
    "end_s",
    "subject",
    "split",
    "skeleton",
    "caption",
    "ego_fps",
    "exo_fps",
    "ego_rotate",
    "exo_rotate",
)
TURNS = (0, 90, 180, 270)  # degrees clockwise
SOURCE = "a spreadsheet of your videos, saved as CSV"
LAYOUT = f"labels.csv with the column ego_video and, as there are, {', '.join(OPTIONAL)}"


@dataclass(frozen=True)
class Settings(Requirements):
    """Where the table lies, and how its clips are split if it does not say so."""

    labels: str = "labels.csv"  # below the data root; paths in it are relative to the data root
    val_share: float = 0.15  # of the people, or of the videos where no subject is given
    test_share: float = 0.15
    fps: float | None = None  # that videos must have; null: any


def annotated(root: Path, settings: Settings, classes: tuple[str, ...]) -> Annotated:
    """One clip a row of the table.

    Without `start_s` and `end_s` a clip is its whole video; without `label` it is labelled by the folder
    that holds its video; without `split`, people (or videos) are dealt out by their names. Rows with an empty
    label make the split `unlabelled`; where people are dealt out, those who are in it stay in train.

    Args:
        root: the data root, which `settings.labels` and the paths in it are relative to.
        classes: valid labels; none: all in the table, sorted.

    Raises:
        FileNotFoundError: no such table.
        ValueError: no table in UTF-8; unknown columns; rows without a video, a label or a known split, with
            a cell that should be a number and is not, or with the clip_id of another row.
    """
    path = Path(root) / settings.labels
    rows = read_table(path, SOURCE, LAYOUT, ("ego_video",))
    if unknown := set(rows) - {"ego_video", *OPTIONAL}:
        raise ValueError(f"{path}: unknown columns {', '.join(sorted(unknown))}; expected {LAYOUT}")
    refuse_rows(path, rows["ego_video"].isna(), "no ego_video")
    refuse_rows(path, rows["ego_video"].isin([".", "..", "/"]), "an ego_video that names no file")
    _read_numbers(rows, path)
    inferred = {}
    if "label" not in rows:
        rows["label"] = [Path(name).parent.name for name in rows["ego_video"]]
        inferred["label"] = "labels.csv has no column label: the name of the folder that holds the video"
    rows["label"] = rows["label"].replace("", np.nan)
    without = rows["label"].isna()
    rows["take"] = [Path(name).with_suffix("").as_posix() for name in rows["ego_video"]]
    rows["subject"] = rows["subject"].fillna(rows["take"]) if "subject" in rows else rows["take"]
    for column in ("exo_video", "end_s"):
        rows[column] = rows.get(column, np.nan)
    rows["start_s"] = rows.get("start_s", pd.Series(np.nan, rows.index)).fillna(0.0)
    if "split" in rows:
        rows["split"] = rows["split"].mask(without & rows["split"].isna(), UNLABELLED)
        splits = (*SPLITS, UNLABELLED)
        refuse_rows(path, ~rows["split"].isin(splits), f"a split other than {', '.join(splits)}")
        refuse_rows(path, without & (rows["split"] != UNLABELLED), "no label")
        hidden = rows["split"] == UNLABELLED
        if (without & hidden).any():
            refuse_rows(path, hidden & ~without, f"a label, but others of {UNLABELLED} have none")
    else:
        rows["split"] = np.where(without, UNLABELLED, "train")
        stays = ~without & rows["subject"].isin(rows.loc[without, "subject"])
        dealt = rows[~stays]
        for split, share in (("test", settings.test_share), ("val", settings.val_share)):
            dealt = split_off(dealt, "subject", share, split)
        rows = pd.concat([dealt, rows[stays]]).sort_index()
        inferred["split"] = "labels.csv has no column split: people (or videos) are dealt out by their names"
    if "clip_id" in rows:
        refuse_rows(path, rows["clip_id"].isna(), "no clip_id")
        shared = rows["clip_id"].duplicated(keep=False)
        refuse_rows(path, shared, "a clip_id that others have", rows["clip_id"])
    else:
        rows["clip_id"] = [f"clip_{number:06d}" for number in range(len(rows))]
    clips = rows.assign(reason=np.nan).reset_index(drop=True)
    classes = classes or tuple(sorted(clips["label"].dropna().unique()))
    return Annotated(clips, classes, settings, inferred=inferred)


def _read_numbers(rows: pd.DataFrame, path: Path) -> None:
    """Make numbers of the columns that hold them, in place."""
    for column in ("start_s", "end_s", "ego_fps", "exo_fps", "ego_rotate", "exo_rotate"):
        if column not in rows:
            continue
        given = rows[column].notna()
        rows[column] = pd.to_numeric(rows[column], errors="coerce").replace([np.inf, -np.inf], np.nan)
        refuse_rows(path, given & rows[column].isna(), f"no number in {column}")
        if column.endswith("_fps"):
            refuse_rows(path, rows[column] <= 0, f"{column} not above 0")
        if column.endswith("_rotate"):
            refuse_rows(path, given & ~rows[column].isin(TURNS), f"{column} other than 0, 90, 180, 270")
