"""Clips of Ego-Exo4D's keysteps (Grauman et al. 2024, arXiv:2311.18259) from its official annotations.

Formats: https://docs.ego-exo4d-data.org.
"""

from collections import Counter
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
    read_table,
    split_off,
    with_checked_times,
)
from uniego_utils.data.tables import refuse_rows

SOURCE = "`egoexo -o <data_root> --parts metadata annotations downscaled_takes/448` (https://docs.ego-exo4d-data.org)"
LAYOUT = (
    "takes.json, annotations/keystep_{train,val}.json, annotations/atomic_descriptions_{train,val}.json, "
    "takes/<take>/frame_aligned_videos/downscaled/448/<camera>.mp4"
)
LABEL_MAPS = ("benchmark", "annotations")
INFERRED = {
    "label_map": "the paper has 665 classes, the official benchmark 278; every id that occurs comes nearer",
    "test split": "no test annotations are published; the paper's 9,356 clips are taken for official val",
    "exo camera": "the take's best_exo; where there is none (a tenth of the takes), the camera named most "
    "often in the atomic descriptions during the step, or else during the take",
    "ego_rotate": "frame-aligned videos of the Aria glasses are upright (their calibration is not)",
    "val_share": "the official validation set is the paper's test; held out of the training takes, so train "
    "and val may share people (whether the official splits do is not stated)",
}


@dataclass(frozen=True)
class Settings(Requirements):
    """Which steps become clips, and of which files."""

    label_map: str = "annotations"  # inferred: every id that occurs | benchmark: the ids in `mapping`
    mapping: str = "annotations/keystep_benchmark/label_mapping.csv"  # of `benchmark`, below the data root
    downscaled: str = "downscaled/448"  # folder within frame_aligned_videos; "" for full size
    ego_rotate: int = 0  # inferred: degrees clockwise that make the glasses' videos upright
    val_share: float = 0.1  # of the training takes


def annotated(root: Path, settings: Settings, classes: tuple[str, ...]) -> Annotated:
    """Keysteps as clips and as segments.

    Args:
        root: the data root; see LAYOUT.
        classes: names of steps; none: by `settings.label_map`. A name that ids share is followed by the id.

    Raises:
        FileNotFoundError: an annotation file is missing.
        ValueError: an unknown `label_map`, or a file that is damaged or of another format.
    """
    if settings.label_map not in LABEL_MAPS:
        raise ValueError(f"unknown label_map {settings.label_map!r}; choose one of {', '.join(LABEL_MAPS)}")
    root = Path(root)
    listed = read_annotation(root / "takes.json", SOURCE, LAYOUT, list)
    takes = {
        entry(take, "take_uid", str, f"{root / 'takes.json'}, take {place}"): take
        for place, take in enumerate(listed)
    }
    rows = []
    for split, official in (("train", "train"), ("test", "val")):
        path = root / f"annotations/keystep_{official}.json"
        steps = entry(read_annotation(path, SOURCE, LAYOUT), "annotations", dict, str(path))
        named = None  # cameras in the atomic descriptions; a large file that is only read if a take needs it
        for uid, content in steps.items():
            take = takes.get(uid)
            if take and not take.get("best_exo") and named is None:
                named = _named_cameras(root / f"annotations/atomic_descriptions_{official}.json")
            moments = named.get(uid, []) if named else []
            name = entry(content, "take_name", str, f"{path}, take {uid}")
            for place, step in enumerate(content.get("segments") or []):  # a take may have no steps
                rows.append(_clip(name, place, step, take, moments, settings) | {"split": split})
        if not any(row["split"] == split for row in rows):
            raise ValueError(f"{path} has no segments; get it again from {SOURCE}")
    clips = pd.DataFrame(rows)
    names = _labels(clips, root, settings)
    clips["label"] = clips.pop("step").map(names)
    outside = f"step outside the labels of {settings.label_map!r}"
    clips["reason"] = clips["reason"].astype(object).mask(clips["label"].isna(), outside)
    clips = split_off(with_checked_times(clips), "take", settings.val_share, "val")
    segments = clips[["split", "take", "ego_video", "ego_rotate", "start_s", "end_s", "label"]].assign(
        level="keystep", video_id=clips["take"]
    )
    return Annotated(
        clips,
        classes or tuple(names.values()),
        settings,
        segments[segments["label"].notna() & (segments["end_s"] > segments["start_s"])],
        {"train": 30660, "test": 9356},
        INFERRED,
    )


def _clip(name: str, place: int, step: dict, take: dict | None, moments: list, settings: Settings) -> dict:
    start, end = number(step.get("start_time")), number(step.get("end_time"))
    clip = {
        "clip_id": f"{name}_{place:04d}",
        "take": name,
        "subject": name,
        "step": number(step.get("step_unique_id")),
        "name": step.get("step_name"),
        "start_s": start,
        "end_s": end,
        "ego_video": np.nan,
        "exo_video": np.nan,
        "ego_rotate": settings.ego_rotate,
        "caption": step.get("step_description") or step.get("step_name"),
        "reason": np.nan,
    }
    if take is None:
        return clip | {"reason": "take absent from takes.json"}
    for key in ("frame_aligned_videos", "root_dir"):
        if not take.get(key):
            return clip | {"reason": f"take without {key} in takes.json"}
    videos = take["frame_aligned_videos"]
    ego = next((streams["rgb"] for camera, streams in sorted(videos.items()) if "rgb" in streams), None)
    exo = videos.get(take.get("best_exo") or _most_named(moments, start, end), {}).get("0")
    return clip | {
        "subject": str(take.get("participant_uid", name)),
        "ego_video": _place(take, ego, settings),
        "exo_video": _place(take, exo, settings),
    }


def _place(take: dict, stream: dict | None, settings: Settings) -> str | float:
    if not stream or not stream.get("relative_path"):
        return np.nan
    path = Path(take["root_dir"]) / stream["relative_path"]
    return (path.parent / settings.downscaled / path.name).as_posix()


def _named_cameras(path: Path) -> dict[str, list[tuple[float, str]]]:
    """Take -> moments in seconds at which annotators named a best exo camera."""
    content = entry(read_annotation(path, SOURCE, LAYOUT), "annotations", dict, str(path))
    return {
        uid: [
            (number(description.get("timestamp")), camera)
            for annotator in annotators
            for description in entry(annotator, "descriptions", list, f"{path}, take {uid}")
            if (camera := (description.get("best_exo") or {}).get("cam_id"))
        ]
        for uid, annotators in content.items()
    }


def _most_named(moments: list[tuple[float, str]], start_s: float, end_s: float) -> str | None:
    """The camera named most often within a span, or else at any time; the first by name of equals."""
    during = [camera for time, camera in moments if start_s <= time <= end_s]
    counts = Counter(during or [camera for _, camera in moments])
    return min(counts, key=lambda camera: (-counts[camera], camera), default=None)


def _labels(clips: pd.DataFrame, root: Path, settings: Settings) -> dict[int, str]:
    """Step id -> label, in the order of the classes. Takes the clips' column `name` away."""
    given = pd.Series(clips.pop("name").to_numpy(), clips["step"]).groupby(level=0).first().dropna()
    if settings.label_map == "benchmark":
        path = root / settings.mapping
        table = read_table(path, SOURCE, LAYOUT, ("label_id", "step_unique_id", "step_name"))
        for name in ("label_id", "step_unique_id"):
            table[name] = pd.to_numeric(table[name], errors="coerce")
            refuse_rows(path, table[name].isna(), f"a {name} that is no number")
        refuse_rows(path, table["step_name"].isna(), "no step_name")
        table = table.sort_values("label_id")
        given = pd.Series(table["step_name"].to_numpy(), table["step_unique_id"])
    else:  # a step without training clips cannot be learnt
        given = given[given.index.isin(clips.loc[clips["split"] == "train", "step"])]
    shared = given.duplicated(keep=False)
    return {
        int(step): f"{name} ({int(step)})" if twice else name
        for (step, name), twice in zip(given.items(), shared, strict=True)
    }
