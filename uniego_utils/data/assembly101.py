"""Clips of Assembly101 (Sener et al. 2022, arXiv:2203.14712) from its official annotations.

Formats: https://github.com/assembly-101, `assembly101-annotations` and `assembly101-download-scripts`.
"""

import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from uniego_utils.data.annotated import (
    Annotated,
    Requirements,
    read_table,
    read_text,
    split_off,
    with_checked_times,
)
from uniego_utils.data.tables import refuse_rows

SOURCE = "https://huggingface.co/datasets/cvml-nus/assembly101"
LAYOUT = (
    "fine-grained-annotations/{train,validation}.csv, coarse-annotations/, recordings/<sequence>/<view>.mp4, "
    "AssemblyPoses/landmarks3D/<sequence>.json"
)
SUBJECT = re.compile(r"_(\d{4})_user")
HANDS, JOINTS = 2, 21
INFERRED = {
    "ego_views, exo_view": "the paper's ego04 and exo03 are taken for e4 and v3 of the downloader",
    "test_split": "the paper's 46,202 and 15,307 clips fit train and validation; labels of the official test "
    "were long withheld",
    "first_frame": "the official loader adds one to the annotated frame to name pictures that count from 1, "
    "so annotations count from 0; the end is taken as the edge at which the clip stops",
    "pose unit and rate": "published poses are taken for millimetres and made metres, at 60 frames a second: "
    "pose 2n shows what frame n at 30 shows",
    "val_share": "the official validation set is the paper's test; held out of the training sequences, so "
    "train and val may share people (whether the official splits do is not stated)",
}


@dataclass(frozen=True)
class Settings(Requirements):
    """Which views are paired, and how frame numbers become seconds."""

    recordings: str = "recordings"  # folders below the data root
    fine: str = "fine-grained-annotations"
    coarse: str = "coarse-annotations"  # for segmentation; "" without
    poses: str = "AssemblyPoses/landmarks3D"
    # inferred: ego04 of the paper is e4; one camera under the two serial numbers of two helmets
    ego_views: tuple[str, ...] = ("HMC_84358933_mono10bit", "HMC_21179183_mono10bit")
    exo_view: str = "C10118_rgb"  # inferred: exo03 of the paper is v3
    test_split: str = "validation"  # inferred
    first_frame: int = 0  # inferred: number of a video's first frame in the annotations
    annotation_fps: float = 30.0  # of frame numbers
    pose_fps: float = 60.0
    pose_unit_m: float = 0.001  # inferred: published poses are in millimetres
    min_pose_share: float = 0.5  # of a clip's poses that must show both hands; the others are left out
    val_share: float = 0.1  # of the training sequences


def annotated(root: Path, settings: Settings, classes: tuple[str, ...]) -> Annotated:
    """Fine-grained clips labelled by their verb; fine and coarse segments.

    Args:
        root: the data root; see LAYOUT.
        classes: verbs; none: all that the annotations have, by their number.

    Raises:
        FileNotFoundError: an annotation file is missing.
        ValueError: one is damaged or of another format.
    """
    root = Path(root)
    parts = [
        _fine_rows(root / settings.fine / f"{official}.csv", settings).assign(split=split)
        for split, official in (("train", "train"), ("test", settings.test_split))
    ]
    rows = pd.concat(parts, ignore_index=True)
    classes = classes or tuple(rows.sort_values("verb_id")["verb_cls"].dropna().unique())
    clips = pd.DataFrame(
        {
            "clip_id": rows["split"] + "_" + rows["id"],
            "take": rows["take"],
            "subject": [match[1] if (match := SUBJECT.search(take)) else take for take in rows["take"]],
            "label": rows["verb_cls"],
            "ego_video": settings.recordings + "/" + rows["video"],
            "exo_video": settings.recordings + "/" + rows["take"] + f"/{settings.exo_view}.mp4",
            "start_s": (rows["start_frame"] - settings.first_frame) / settings.annotation_fps,
            "end_s": (rows["end_frame"] - settings.first_frame) / settings.annotation_fps,
            "caption": rows["action_cls"],
            "split": rows["split"],
            "reason": np.nan,
        }
    )
    clips = split_off(with_checked_times(clips), "take", settings.val_share, "val")
    fine = clips[["split", "take", "ego_video", "start_s", "end_s", "label"]].assign(
        level="fine", video_id=clips["take"]
    )
    fine = fine[(fine["end_s"] > fine["start_s"]) & fine["label"].notna()]  # the others: see their clips
    segments = [fine]
    if settings.coarse:
        splits = dict(zip(clips["take"], clips["split"], strict=True))
        segments.append(_coarse_segments(root / settings.coarse, splits, settings))
    return Annotated(
        clips,
        classes,
        settings,
        pd.concat(segments, ignore_index=True),
        {"train": 46202, "test": 15307},
        INFERRED,
        HandPoses(root / settings.poses, settings.pose_fps, settings.min_pose_share, settings.pose_unit_m),
    )


def _fine_rows(path: Path, settings: Settings) -> pd.DataFrame:
    """The rows of the ego view: every segment stands there once for each camera that filmed it."""
    columns = ("id", "video", "start_frame", "end_frame", "verb_id", "verb_cls", "action_cls")
    rows = read_table(path, SOURCE, LAYOUT, columns)
    place = rows["video"].str.removesuffix(".mp4").str.partition("/")
    refuse_rows(path, ~place[2].fillna("").astype(bool), "a video that is no <sequence>/<view>.mp4")
    refuse_rows(path, rows["id"].isna(), "no id")
    for name in ("start_frame", "end_frame", "verb_id"):
        rows[name] = pd.to_numeric(rows[name], errors="coerce")
    rows = rows.assign(take=place[0])[place[2].isin(settings.ego_views)]
    if rows.empty:
        raise ValueError(f"{path} has no rows of the views {', '.join(settings.ego_views)}; see ego_views")
    return rows


def _coarse_segments(folder: Path, splits: dict[str, str], settings: Settings) -> pd.DataFrame:
    """Coarse segments; a video is one half (assembly or disassembly) of a recording."""
    path = folder / "coarse_seq_views.txt"
    views = {}
    for line in read_text(path, SOURCE, LAYOUT).split():
        video, slash, view = line.removesuffix(".mp4").partition("/")
        if not slash:
            raise ValueError(f"{path}: {line!r} is no <video>/<view>.mp4; get it again from {SOURCE}")
        if view in settings.ego_views:
            views[video] = view
    parts = []
    test = {"validation": "val"}.get(settings.test_split, settings.test_split)
    for split, official in (("train", "train"), ("test", test)):
        for half in ("assembly", "disassembly"):
            path = folder / "coarse_splits" / f"{official}_coarse_{half}.txt"
            for line in filter(str.strip, read_text(path, SOURCE, LAYOUT).splitlines()):
                video = line.split()[0].removesuffix(".txt")
                take = video.removeprefix(f"{half}_")
                part = _coarse_labels(folder / "coarse_labels" / f"{video}.txt")
                ego = f"{settings.recordings}/{take}/{views[video]}.mp4" if video in views else np.nan
                parts.append(
                    part.assign(
                        split=splits.get(take, split),
                        level="coarse",
                        video_id=video,
                        take=take,
                        ego_video=ego,
                        start_s=(part["first"] - settings.first_frame) / settings.annotation_fps,
                        end_s=(part["last"] - settings.first_frame) / settings.annotation_fps,
                    ).drop(columns=["first", "last"])
                )
    if not parts:
        raise ValueError(f"{folder / 'coarse_splits'} lists no videos; get it again from {SOURCE}")
    return pd.concat(parts, ignore_index=True)


def _coarse_labels(path: Path) -> pd.DataFrame:
    """The `first` and `last` frames and the `label` of a video's segments."""
    columns = ["first", "last", "label"]
    rows = read_table(path, SOURCE, LAYOUT, tuple(columns), "\t", columns)
    for name in ("first", "last"):
        rows[name] = pd.to_numeric(rows[name], errors="coerce")
    refuse_rows(path, rows.isna().any(axis=1), "no two frame numbers and a label")
    refuse_rows(path, rows["last"] <= rows["first"], "an end that is not after its start")
    return rows


@dataclass(frozen=True)
class HandPoses:
    """A clip's published hand poses, both hands as two persons."""

    folder: Path
    fps: float
    min_share: float
    unit_m: float  # of the published files

    def stamp(self, clip: pd.Series) -> str:
        """Time and size of the recording's file, by which a change of it is noticed; "" if there is none."""
        path = self._path(clip)
        if not path.is_file():
            return ""
        status = path.stat()
        return f"{status.st_mtime_ns}-{status.st_size}"

    def __call__(self, clip: pd.Series) -> dict[str, Tensor]:
        """`joints_3d`: (2, T, 21, 3) float32 in metres, left hand first, in the frame of the published files.

        Poses that lack a hand are left out, not filled in: T counts those that show both.

        Raises:
            ValueError: no poses, a damaged file, or too few of the clip's poses that show both hands.
        """
        stamp = self.stamp(clip)
        if not stamp:
            raise ValueError("no published hand poses")
        poses = _read_poses(self._path(clip), stamp)[
            round(clip["start_s"] * self.fps) : round(clip["end_s"] * self.fps)
        ]
        wanted = round((clip["end_s"] - clip["start_s"]) * self.fps)
        complete = poses[np.isfinite(poses).all((1, 2, 3)) & (poses != 0).any((2, 3)).all(1)]
        if len(complete) < max(1, self.min_share * wanted):
            raise ValueError(f"both hands in less than {self.min_share:.0%} of its poses")
        return {"joints_3d": torch.from_numpy(complete.transpose(1, 0, 2, 3) * np.float32(self.unit_m))}

    def _path(self, clip: pd.Series) -> Path:
        return self.folder / f"{clip['take']}.json"


@functools.lru_cache(maxsize=1)  # clips of a recording follow each other, and its file takes seconds to read
def _read_poses(path: Path, stamp: str) -> np.ndarray:
    """(frames, 2, 21, 3) float32 of a recording, NaN where a frame or a hand is absent.

    Files of `AssemblyPoses.zip` map frame numbers to hands "0" and "1"; those of the older `poses@60fps` list
    frames with `landmarks` that do. `stamp` has a file that changed read again.
    """
    try:
        return _as_array(json.loads(path.read_text(encoding="utf-8-sig")))
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"damaged hand poses in {path.name} ({error})") from None


def _as_array(content: dict | list) -> np.ndarray:
    if isinstance(content, list):
        content = {number: frame["landmarks"] for number, frame in enumerate(content)}
    poses = np.full((max(map(int, content), default=-1) + 1, HANDS, JOINTS, 3), np.nan, np.float32)
    for number, hands in content.items():
        for hand in range(HANDS):
            if hands.get(str(hand)):
                poses[int(number), hand] = np.reshape(hands[str(hand)], (JOINTS, 3))
    return poses
