"""Clips of EgoExo-Fitness (Li et al. 2024, arXiv:2406.08877) from its official annotations.

Formats: https://github.com/iSEE-Laboratory/EgoExo-Fitness, `Raw_annotations/README.md`.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from uniego_utils.data.annotated import (
    Annotated,
    Requirements,
    entry,
    number,
    read_annotation,
    split_off,
    with_checked_times,
)

SOURCE = "https://huggingface.co/datasets/Lymann/EgoExo-Fitness (after signing its licence)"
LAYOUT = (
    "meta_records.json, action_level_annotations.json, substep_level_annotations.json, "
    "frames_open/<record>/<view>/frame_0000000001.jpg"
)
SEQUENCE = re.compile(r"(.+)_([^_]+)_(?:ego|exo)_[lmr]")  # <record>_<sequence>_<view>
# Degrees clockwise that make a view upright. The official feature script turns by PIL's `rotate`, which
# counts counter-clockwise: 90 for exo_l, 270 for exo_r.
UPRIGHT = {"exo_l": 270, "exo_r": 90}
INFERRED = {
    "ego_views, exo_views": "the paper's 3,522 and 912 clips are 3 x 1,174 and 3 x 304: every action once "
    "for each ego view, paired with one exo view; which one is not said",
    "train_prefix": "no list of the recognition splits is published; the verification benchmark trains on "
    "sequences named b2-... and tests on the others",
    "val_share": "no official validation set; held out of the training records",
}


@dataclass(frozen=True)
class Settings(Requirements):
    """How clips are made of records."""

    annotations: str = ""  # folder of the JSON files, below the data root
    ego_views: tuple[str, ...] = ("ego_l", "ego_m", "ego_r")  # inferred: one clip for each
    exo_views: tuple[str, ...] = ("exo_m", "exo_l", "exo_r")  # inferred: paired with the first there is
    train_prefix: str = "b2-"  # inferred: of the names of training sequences
    val_share: float = 0.1  # of the training records
    fps: float = 30.0  # of the frame folders
    allow_portrait: bool = True  # inferred: the side cameras stand on end, so their pictures do when upright


def annotated(root: Path, settings: Settings, classes: tuple[str, ...]) -> Annotated:
    """Clips of the actions, one for each ego view.

    Args:
        root: the data root; see LAYOUT.
        classes: names of the actions 1, 2, ... in this order; none: as `substep_level_annotations.json` says.

    Raises:
        FileNotFoundError: an annotation file is missing.
        ValueError: one is damaged or of another format.
    """
    meta_path, actions_path, substeps_path = paths = [
        Path(root) / settings.annotations / f"{name}.json"
        for name in ("meta_records", "action_level_annotations", "substep_level_annotations")
    ]
    meta, actions, substeps = (read_annotation(path, SOURCE, LAYOUT) for path in paths)
    classes = classes or tuple(entry(substeps, "classes", list, str(substeps_path)))
    records = _records(meta, meta_path)
    named = _named_sequences(substeps, substeps_path)
    rows = []
    for record, content in actions.items():
        where = f"{actions_path}, record {record}"
        for place, triple in enumerate(entry(content, "action_info", list, where)):
            if not _is_action(triple):
                raise ValueError(
                    f"{where}: action_info {place} is {triple!r}, not three integers (action, first and last "
                    f"frame); get the file again from {SOURCE}"
                )
            action, start, end = map(number, triple)
            sequence = _sequence_of(start, named.get(record, {}))
            sides = {name.startswith(settings.train_prefix) for name in named.get(record, {})}
            is_train = sequence.startswith(settings.train_prefix) if sequence else sides == {True}
            clip = {
                "take": f"{record}_{sequence}" if sequence else record,
                "subject": record,
                "label": classes[int(action) - 1] if 0 < action <= len(classes) else f"action {triple[0]}",
                "start_s": (start - 1) / settings.fps,  # numbered from 1; both ends are in the clip
                "end_s": end / settings.fps,
                "split": "train" if is_train else "test",
                "reason": np.nan if sequence or len(sides) == 1 else "split unknown: in no named sequence",
            }
            if record not in records:
                clip["reason"] = "record absent from meta_records.json"
            for view in settings.ego_views:
                pair = _pair(view, records.get(record, {}), settings)
                rows.append({"clip_id": f"{record}_{place:03d}_{view}", **clip, **pair})
    if not rows:
        raise ValueError(f"{actions_path} has no actions; get it again from {SOURCE}")
    return Annotated(
        split_off(with_checked_times(pd.DataFrame(rows)), "subject", settings.val_share, "val"),
        classes,
        settings,
        published={"train": 3522, "test": 912},
        inferred=INFERRED,
    )


def _records(meta: dict, path: Path) -> dict[str, dict]:
    """Record -> view -> what is said of its frames."""
    records = {}
    for place, record in enumerate(entry(meta, "records", list, str(path))):
        where = f"{path}, record {place}"
        frames = entry(record, "frames", dict, where)
        records[entry(record, "record_id", str, where)] = {
            view: entry(frames, view, dict, where) for view in frames
        }
    return records


def _is_action(triple: object) -> bool:
    """Whether these are three integers, or nothing (null, NaN) in place of one."""
    if not isinstance(triple, list) or len(triple) != 3:
        return False
    return all(value is None or type(value) is int or value != value for value in triple)


def _named_sequences(substeps: dict, path: Path) -> dict[str, dict[str, tuple[int, int]]]:
    """Record -> sequence name -> its first and last frame: only the sub-step annotations give names."""
    named: dict[str, dict[str, tuple[int, int]]] = {}
    for key, sequence in entry(substeps, "database", dict, str(path)).items():
        if match := SEQUENCE.fullmatch(key):
            span = tuple(entry(sequence, side, int, f"{path}, {key}") for side in ("seq_st", "seq_ed"))
            named.setdefault(match[1], {})[match[2]] = span
    return named


def _sequence_of(frame: float, sequences: dict[str, tuple[int, int]]) -> str | None:
    return next((name for name, (first, last) in sequences.items() if first <= frame <= last), None)


def _pair(ego: str, frames: dict, settings: Settings) -> dict:
    """The columns of an ego view and the exo view beside it."""
    exo = next((view for view in settings.exo_views if view in frames), None)
    columns = {}
    for name, view in (("ego", ego), ("exo", exo)):
        columns[f"{name}_video"] = frames.get(view, {}).get("path") or np.nan
        if view in frames and not frames[view].get("path"):
            columns["reason"] = f"{view} without path in meta_records.json"
        columns[f"{name}_fps"] = settings.fps
        columns[f"{name}_rotate"] = UPRIGHT.get(view, 0)
    return columns
