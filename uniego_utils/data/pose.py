"""Skeletons for clips that come without: people found by RT-DETR, their joints by ViTPose, frame by frame.

RT-DETR (arXiv:2304.08069) and ViTPose (arXiv:2204.12484), both Apache-2.0, are used as transformers has them;
it also decodes the heat maps. The joints are COCO's 17, in pixels.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn
from tqdm.auto import tqdm

from uniego_utils.backbones.pretrained import find_weights, load_transformers, locate_weights
from uniego_utils.data.manifests import Manifest
from uniego_utils.data.skeletons import MAX_EMPTY, layout_of, skeleton_file, write_skeleton
from uniego_utils.data.video import frame_indices, open_clip, sample_times
from uniego_utils.runs import digest, read_json, read_notes, write_json

if TYPE_CHECKING:
    from transformers import BaseImageProcessor

LAYOUT = "coco-17"
FILES = ("config.json", "model.safetensors", "preprocessor_config.json")
NOBODY = ".nobody.json"  # what is kept of a clip without a skeleton
MIN_SIDE = 2.0  # pixels; smaller boxes hold nobody
RECORD = {"frames": int, "persons": int, "empty_frames": int, "guessed": float, "reason": str}


@dataclass(frozen=True)
class Settings:
    """Which models, and how they are used."""

    detector: str = "PekingU/rtdetr_r50vd_coco_o365"  # hub repositories in transformers' layout
    estimator: str = "usyd-community/vitpose-base-simple"
    frames_per_second: float = 10.0
    persons: int = 1  # at most, a clip
    threshold: float = 0.5  # of the detector's confidence in a person
    max_empty: float = MAX_EMPTY  # persons absent from more than this share of the frames are left out
    frames_per_pass: int = 16  # bounds the memory taken


@dataclass(frozen=True)
class Estimator:
    """Both models on their device, with their preprocessing."""

    detector: nn.Module
    detector_input: "BaseImageProcessor"
    person: int  # the detector's class
    poser: nn.Module
    poser_input: "BaseImageProcessor"

    @torch.inference_mode()
    def detect(self, frames: np.ndarray, threshold: float) -> list[np.ndarray]:
        """People in frames (T, H, W, 3) uint8: (n, 4) left, top, right, bottom in pixels, for each frame."""
        height, width = frames.shape[1:3]
        inputs = self.detector_input(list(frames), return_tensors="pt").to(self.detector.device)
        detections = self.detector_input.post_process_object_detection(
            self.detector(**inputs), threshold, [(height, width)] * len(frames)
        )
        people = []
        for entry in detections:
            boxes = entry["boxes"][entry["labels"] == self.person].float().cpu().numpy()
            boxes = boxes.clip(0, [width, height] * 2)
            people.append(boxes[(boxes[:, 2:] - boxes[:, :2] >= MIN_SIDE).all(1)])
        return people

    @torch.inference_mode()
    def joints(self, frames: np.ndarray, boxes: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Joints of the people in boxes, at least one a frame: (N, 17, 2) pixels and (N, 17) scores.

        Args:
            frames: (T, H, W, 3) uint8.
            boxes: (n, 4) for each frame, as `detect` gives them; N is how many there are in all.
        """
        corners = [np.concatenate([frame[:, :2], frame[:, 2:] - frame[:, :2]], 1).tolist() for frame in boxes]
        inputs = self.poser_input(list(frames), boxes=corners, return_tensors="pt").to(self.poser.device)
        poses = self.poser_input.post_process_pose_estimation(self.poser(**inputs), corners)
        flat = [pose for frame in poses for pose in frame]
        return tuple(np.stack([pose[name].numpy() for pose in flat]) for name in ("keypoints", "scores"))


def load_estimator(settings: Settings, weights: str, device: torch.device) -> Estimator:
    """The pretrained models.

    Args:
        weights: "" for the hub, else a local folder that holds a folder for each of the models.

    Raises:
        FileNotFoundError: no weights; see `locate_weights`.
        ValueError: weights of another model, a detector that knows no person, or joints that are not COCO's.
    """
    from transformers import (  # late: it takes seconds to import
        AutoImageProcessor,
        RTDetrForObjectDetection,
        VitPoseForPoseEstimation,
    )

    parts = []
    for name, kind in (
        (settings.detector, RTDetrForObjectDetection),
        (settings.estimator, VitPoseForPoseEstimation),
    ):
        folder = locate_weights(name, weights, choices=[FILES])
        parts += [
            load_transformers(kind, folder, name, FILES).to(device).eval(),
            AutoImageProcessor.from_pretrained(folder, local_files_only=True),
        ]
    detector, _, poser, _ = parts
    people = [int(number) for number, label in detector.config.id2label.items() if label == "person"]
    if len(people) != 1:
        raise ValueError(f"{settings.detector} knows {len(people)} classes `person`; choose another detector")
    joints, expected = poser.config.num_labels, len(layout_of(LAYOUT).joints)
    if joints != expected:
        raise ValueError(f"{settings.estimator} finds {joints} joints, not the {expected} of {LAYOUT}")
    return Estimator(*parts[:2], people[0], *parts[2:])


def follow(last: list[np.ndarray], boxes: np.ndarray, persons: int) -> dict[int, int]:
    """Which box of a frame is whose: person -> box; nearest centres, each box once.

    A person moves no farther than its last box is long, so that nobody becomes a bystander when missed once.
    Boxes that are nobody's become new persons, the largest first, up to `persons` in all.

    Args:
        last: (4,) the last box of each person so far; brought up to date here.
        boxes: (n, 4) left, top, right, bottom in pixels.
    """
    track: dict[int, int] = {}
    if last and len(boxes):
        before = np.stack(last)
        distance = np.linalg.norm(_centres(before)[:, None] - _centres(boxes)[None], axis=-1)
        reach = (before[:, 2:] - before[:, :2]).max(1)
        out_of_reach = distance > reach[:, None]
        pairs = linear_sum_assignment(np.where(out_of_reach, 1e6, distance))
        track = {int(p): int(b) for p, b in zip(*pairs, strict=True) if not out_of_reach[p, b]}
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    for box in np.argsort(-area, kind="stable"):
        if len(last) < persons and box not in track.values():
            track[len(last)] = int(box)
            last.append(boxes[box])
    for person, box in track.items():
        last[person] = boxes[box]
    return track


def _centres(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def estimate(
    manifest: Manifest,
    view: str,
    folder: Path,
    settings: Settings,
    weights: str = "",
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> pd.DataFrame:
    """Estimate the skeletons of all clips from a view's video, `<folder>/<clip_id>.safetensors`.

    Interrupted, it goes on where it was: files made of the same video, span, weights and settings are kept.

    Args:
        weights: see `load_estimator`.

    Returns:
        A row a clip: `clip_id`, `skeleton` (file within `folder`, "" if none) and the record of
        `write_skeleton`: `frames, persons, empty_frames, guessed, reason`.

    Raises:
        FileNotFoundError, ValueError: see `load_estimator`.
        VideoError: a video that is damaged or too short.
    """
    estimator, rows, models = None, [], _models(settings, weights)
    clips = tqdm(range(len(manifest)), f"pose {manifest.split} {view}", disable=not progress, leave=False)
    for row in clips:
        clip_id = manifest.rows["clip_id"].iloc[row]
        name = skeleton_file(clip_id)
        path, made = Path(folder) / name, _made(manifest, row, view, settings, models)
        record = _read_record(path, made)
        if record is None:
            path.unlink(missing_ok=True)  # of another clip, video or settings
            estimator = estimator or load_estimator(settings, weights, torch.device(device))
            joints, scores, size = _clip_joints(estimator, manifest, row, view, settings)
            record = write_skeleton(
                path, layout_of(LAYOUT), joints, scores, size, view, settings.max_empty, {"made": made}
            )
            if record["reason"]:  # kept too: a second attempt would detect nobody either
                write_json(path.with_suffix(NOBODY), {**record, "made": made})
        rows.append({"clip_id": clip_id, "skeleton": "" if record["reason"] else str(name), **record})
    return pd.DataFrame(rows)


def _models(settings: Settings, weights: str) -> dict[str, str]:
    """Which weights both models have; those of the hub by their names alone."""
    digests = {}
    for name in (settings.detector, settings.estimator):
        folder = find_weights(name, weights)
        if folder is None:
            digests[name] = "hub"
        else:  # where there is no such file, loading will say so
            digests[name] = digest(folder / FILES[1]) if (folder / FILES[1]).is_file() else ""
    return digests


def _made(manifest: Manifest, row: int, view: str, settings: Settings, models: dict[str, str]) -> str:
    """What a clip's skeleton depends on, as JSON."""
    video = manifest.path(row, f"{view}_video").stat()
    clip = manifest.rows.iloc[row]
    columns = (f"{view}_video", f"{view}_fps", f"{view}_rotate", "start_s", "end_s")
    how = {key: value for key, value in asdict(settings).items() if key != "frames_per_pass"}
    stamp = {"bytes": video.st_size, "mtime": video.st_mtime_ns}
    return json.dumps({name: str(clip[name]) for name in columns if name in clip} | how | models | stamp)


def _read_record(path: Path, made: str) -> dict[str, object] | None:
    """What was recorded of a clip; None if nothing was, or of another video or with other settings."""
    if path.is_file():
        notes = read_notes(path)
    else:
        empty = path.with_suffix(NOBODY)
        notes = read_json(empty) if empty.is_file() else {}
    return {name: kind(notes[name]) for name, kind in RECORD.items()} if notes.get("made") == made else None


def _clip_joints(
    estimator: Estimator, manifest: Manifest, row: int, view: str, settings: Settings
) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Joints (M, T, 17, 2) and scores (M, T, 17), 0 where a person is absent; the picture's width, height."""
    video = open_clip(manifest, row, view)
    span = manifest.rows[["start_s", "end_s"]].iloc[row].to_numpy(dtype=float)
    count = max(1, round((span[1] - span[0]) * settings.frames_per_second))
    indices = frame_indices(sample_times(*span, count), video.fps, video.frames)
    joints = np.zeros((settings.persons, count, len(layout_of(LAYOUT).joints), 2), np.float32)
    scores = np.zeros(joints.shape[:-1], np.float32)
    last: list[np.ndarray] = []
    for first in range(0, count, settings.frames_per_pass):
        frames = video.read(indices[first : first + settings.frames_per_pass])
        boxes = estimator.detect(frames, settings.threshold)
        tracks = [follow(last, frame_boxes, settings.persons) for frame_boxes in boxes]
        occupied = [number for number, track in enumerate(tracks) if track]
        if not occupied:
            continue
        boxes = [boxes[number][list(tracks[number].values())] for number in occupied]
        places = [(person, first + number) for number in occupied for person in tracks[number]]
        persons, times = (list(axis) for axis in zip(*places, strict=True))
        joints[persons, times], scores[persons, times] = estimator.joints(frames[occupied], boxes)
    height, width = frames.shape[1:3]
    return joints, scores, (width, height)
