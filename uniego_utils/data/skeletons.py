"""Skeletons: joint layouts, the suite's file format, and what other formats are converted from.

A skeleton file is a safetensors file whose frames span its clip evenly, at any rate:

- `joints_3d` (T, V, 3) or (M, T, V, 3), metres, of M persons or hands; and/or
- `exo_joints_2d` (T, V, 2) or (M, T, V, 2), pixels, x to the right and y down; with `exo_scores` (T, V) or
  (M, T, V), confidence 0..1, and `size` (2,), width and height of the picture. `ego_...` likewise.

Where a score is 0, the joint was not detected and its place is a guess: between the frames where it was
or, if there are none, the middle of the person's other joints. Persons who are mostly absent are left out,
and a clip without any gets no file: zeros never stand for a skeleton.
"""

import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from torch import Tensor

from uniego_utils.mocap import motions as mocap
from uniego_utils.runs import read_tensors, write_tensors
from uniego_utils.unpickle import read_arrays

MAX_EMPTY = 0.5  # share of a clip's frames without a person, above which that person is left out


@dataclass(frozen=True)
class Layout:
    """Which joints a skeleton has and how they hang together, by the joints' numbers."""

    joints: tuple[str, ...]
    bones: tuple[tuple[int, int], ...]
    centre: int  # bones are grouped by whether they lead towards this joint
    head: int | None = None  # None: a hand, which has none
    wrists: tuple[int, int] | None = None


_SIDES = ("left", "right")
_ARM = ("shoulder", "elbow", "wrist")
_LEG = ("hip", "knee", "ankle")
_FINGERS = ("thumb", "index", "middle", "ring", "little")
LAYOUTS = {
    "mocap-16": Layout(
        tuple(mocap.JOINTS),
        tuple(mocap.BONES),
        mocap.JOINTS.index("chest"),
        mocap.JOINTS.index("head"),
        (mocap.JOINTS.index("left_wrist"), mocap.JOINTS.index("right_wrist")),
    ),
    "coco-17": Layout(  # the shoulders hang on the nose, as in ST-GCN's graph of pyskl, so that it is a tree
        ("nose", *(f"{side}_{name}" for name in ("eye", "ear", *_ARM, *_LEG) for side in _SIDES)),
        (
            *((0, 1), (0, 2), (1, 3), (2, 4), (0, 5), (0, 6)),
            *((5, 7), (7, 9), (6, 8), (8, 10)),
            *((5, 11), (11, 13), (13, 15), (6, 12), (12, 14), (14, 16)),
        ),
        centre=0,
        head=0,
        wrists=(9, 10),
    ),
    "nturgbd-25": Layout(  # Kinect v2, as in arXiv:1604.02808
        (
            *("spine_base", "spine_middle", "neck", "head"),
            *(f"{side}_{name}" for side in _SIDES for name in (*_ARM, "hand")),
            *(f"{side}_{name}" for side in _SIDES for name in (*_LEG, "foot")),
            "spine_shoulders",
            *(f"{side}_{name}" for side in _SIDES for name in ("hand_tip", "thumb")),
        ),
        (
            *((0, 1), (1, 20), (20, 2), (2, 3)),
            *((20, 4), (4, 5), (5, 6), (6, 7), (7, 21), (7, 22)),
            *((20, 8), (8, 9), (9, 10), (10, 11), (11, 23), (11, 24)),
            *((0, 12), (12, 13), (13, 14), (14, 15), (0, 16), (16, 17), (17, 18), (18, 19)),
        ),
        centre=20,
        head=3,
        wrists=(6, 10),
    ),
    "openpose-18": Layout(  # arXiv:1812.08008, trained on COCO
        (
            *("nose", "neck"),
            *(f"{side}_{name}" for limb in (_ARM, _LEG) for side in _SIDES[::-1] for name in limb),
            *(f"{side}_{name}" for name in ("eye", "ear") for side in _SIDES[::-1]),
        ),
        (
            *((1, 0), (0, 14), (14, 16), (0, 15), (15, 17)),
            *((1, 2), (2, 3), (3, 4), (1, 5), (5, 6), (6, 7)),
            *((2, 8), (8, 9), (9, 10), (5, 11), (11, 12), (12, 13)),
        ),
        centre=1,
        head=0,
        wrists=(7, 4),
    ),
    "hand-21": Layout(  # wrist, then four joints a finger from its root to its tip, as in MediaPipe
        (
            "wrist",
            *(f"{finger}_{n}" for finger in _FINGERS for n in range(4)),
        ),
        tuple((0 if joint % 4 == 1 else joint - 1, joint) for joint in range(1, 21)),
        centre=0,
    ),
    "assembly101-21": Layout(  # tips, wrist, three joints a finger from its root (thumb: two), palm
        (
            *(f"{finger}_tip" for finger in _FINGERS),
            "wrist",
            *(f"{finger}_{n}" for finger in _FINGERS for n in range(2 if finger == "thumb" else 3)),
            "palm",
        ),
        (
            *((5, 6), (6, 7), (7, 0)),
            *((5, 8), (8, 9), (9, 10), (10, 1)),
            *((5, 11), (11, 12), (12, 13), (13, 2)),
            *((5, 14), (14, 15), (15, 16), (16, 3)),
            *((5, 17), (17, 18), (18, 19), (19, 4)),
            (5, 20),  # inferred: the palm hangs on the wrist
        ),
        centre=5,
    ),
}


def layout_of(name: str | None) -> Layout:
    """The layout called `name`; an unknown one is an error that lists the valid ones."""
    if name not in LAYOUTS:
        raise ValueError(f"unknown skeleton layout {name!r}; choose one of {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


# --- reading


@dataclass(frozen=True)
class Skeleton:
    """The skeletons of one clip."""

    joints: Tensor  # (M, T, V, 2 or 3) float32, pixels or metres
    scores: Tensor | None  # (M, T, V) confidence 0..1, of joints in pixels; None: not in the file
    size: Tensor | None  # (2,) width and height in pixels of the picture; None: not in the file


def read_skeleton(path: Path, name: str, layout: Layout) -> Skeleton:
    """Joints `name` of a skeleton file with their scores and picture size; a single person's have M = 1.

    Persons of zeros alone, with whom other tools fill the axis, are left away.

    Raises:
        ValueError: not there, no frames, another number of joints, not finite, or all zero: an estimator's
            way to say that it found nobody.
    """
    tensors = read_tensors(path)
    cure = "extract this clip's skeleton again or drop the clip"
    if name not in tensors:
        raise ValueError(f"{path} has no {name!r}, only {', '.join(tensors)}; extract the skeletons again")
    joints = tensors[name].float()
    if fault := _fault(joints, layout, (3,) if name == "joints_3d" else (2,)):
        raise ValueError(f"{path}: {name} has {fault}; {cure}")
    scores = None
    if name.endswith("_joints_2d"):
        scores = tensors.get(_scores_of(name))
        if scores is not None and scores.shape != joints.shape[:-1]:
            shape = tuple(scores.shape)
            raise ValueError(f"{path}: {_scores_of(name)} has shape {shape}, unlike its joints; {cure}")
    if joints.ndim == 3:
        joints, scores = joints[None], None if scores is None else scores[None]
    there = joints.flatten(1).any(1)
    return Skeleton(joints[there], None if scores is None else scores[there], tensors.get("size"))


def skeleton_fault(path: Path, layout: Layout) -> str | None:
    """Why a skeleton file cannot be used, in words; None: it can."""
    try:
        tensors = read_tensors(path)
    except (SafetensorError, OSError):
        return "damaged file"
    joints = [value for name, value in tensors.items() if name == "joints_3d" or name.endswith("_joints_2d")]
    if not joints:
        return "no joints in the file"
    return next((fault for value in joints if (fault := _fault(value.float(), layout))), None)


def _scores_of(name: str) -> str:
    return name.replace("_joints_2d", "_scores")


def _fault(joints: Tensor, layout: Layout, coordinates: tuple[int, ...] = (2, 3)) -> str | None:
    """Why nothing can be learned from these joints, in words; None: no reason."""
    count = len(layout.joints)
    if joints.ndim not in (3, 4) or joints.shape[-2] != count or joints.shape[-1] not in coordinates:
        last = " or ".join(map(str, coordinates))
        return f"shape {tuple(joints.shape)}, not ([persons,] frames, {count}, {last})"
    if not joints.numel():
        return "no frames"
    if not joints.isfinite().all():
        return "values that are not finite"
    if not joints.any():
        return "zeros alone: nobody was found"
    return None


# --- writing


def write_skeleton(
    path: Path,
    layout: Layout,
    joints: np.ndarray,
    scores: np.ndarray | None = None,
    size: tuple[int, int] | None = None,
    view: str = "exo",
    max_empty: float = MAX_EMPTY,
    notes: dict[str, str] | None = None,
) -> dict[str, object]:
    """Write a clip's skeleton file, unless nobody is in it; what was written and guessed, or why not.

    A joint counts as detected if it lies elsewhere than in the origin and has a score above 0. The place of
    any other is guessed, see the module's docstring.

    Args:
        joints: (M, T, V, 3) metres, or (M, T, V, 2) pixels.
        scores: (M, T, V) confidence 0..1 of joints in pixels; None: 1 for every joint that is detected.
        size: width and height in pixels of the picture that joints in pixels belong to.
        view: whose picture that is.
        max_empty: persons absent from more than this share of the frames are left out.
        notes: strings to keep in the file, beside the returned record.

    Returns:
        `frames`; `persons` who were kept; `empty_frames`, the fewest in which one of them is absent;
        `guessed`, the share of their joints that is; `reason`, "" or why there is no file.

    Raises:
        ValueError: joints or scores of other axes, or joints in pixels without the picture's size.
    """
    joints = np.array(joints, dtype=np.float32)
    if joints.ndim != 4:
        raise ValueError(f"{path}: expected joints (persons, frames, joints, 2 or 3), got {joints.shape}")
    frames = joints.shape[1]
    record = {"frames": frames, "persons": 0, "empty_frames": frames, "guessed": 0.0, "reason": ""}
    if fault := _fault(torch.from_numpy(joints), layout):
        return record | {"reason": fault}
    planar = joints.shape[-1] == 2
    if planar and (size is None or min(size) < 1):
        raise ValueError(f"{path}: joints in pixels need the picture's width and height, not {size}")
    detected = joints.any(-1)
    if scores is not None:
        scores = np.asarray(scores, dtype=np.float32)
        if scores.shape != detected.shape:
            raise ValueError(f"{path}: scores of shape {scores.shape} for joints of shape {joints.shape}")
        if not np.isfinite(scores).all():
            return record | {"reason": "scores that are not finite"}
        detected &= scores > 0
    absent = ~detected.any(2)  # (M, T)
    record["empty_frames"] = int(absent.sum(1).min())
    kept = (absent.mean(1) <= max_empty) & ~absent.all(1)
    if not kept.any():
        return record | {"reason": f"nobody in {record['empty_frames']} of {frames} frames"}
    detected = detected[kept]
    record |= {"persons": int(kept.sum()), "guessed": float(1 - detected.mean())}
    tensors = {"joints_3d": torch.from_numpy(fill_gaps(joints[kept], detected))}
    if planar:
        confidence = detected if scores is None else np.where(detected, scores[kept].clip(0, 1), 0)
        tensors = {
            f"{view}_joints_2d": tensors["joints_3d"],
            f"{view}_scores": torch.from_numpy(confidence.astype(np.float32)),
            "size": torch.tensor(size, dtype=torch.float32),
        }
    write_tensors(path, tensors, {**(notes or {}), **{name: str(value) for name, value in record.items()}})
    return record


def fill_gaps(joints: np.ndarray, detected: np.ndarray) -> np.ndarray:
    """Places for joints that were not detected, from those that were; every person has at least one.

    Args:
        joints: (M, T, V, C).
        detected: (M, T, V) bool.

    Returns:
        (M, T, V, C): linear between the frames where the joint was detected, constant before and after them;
        a joint that never was lies in the middle of the others of its frame.
    """
    filled, times = joints.copy(), np.arange(joints.shape[1])
    ever = detected.any(1)  # (M, V)
    for person, joint in np.argwhere(ever & ~detected.all(1)):
        there = detected[person, :, joint]
        for series, known in zip(filled[person, :, joint].T, joints[person, :, joint].T, strict=True):
            series[~there] = np.interp(times[~there], times[there], known[there])
    for person, joint in np.argwhere(~ever):
        filled[person, :, joint] = filled[person][:, ever[person]].mean(1)
    return filled


def skeleton_file(clip_id: str) -> PurePosixPath:
    """The name of a clip's skeleton file. Raises ValueError if the clip's name would lead out of a folder."""
    name = PurePosixPath(f"{clip_id}.safetensors")
    if not clip_id or name.is_absolute() or ".." in name.parts:
        raise ValueError(f"clip {clip_id!r}: its name leads out of the skeletons' folder; rename the clip")
    return name


# --- converters


def convert_pyskl(path: Path, layout: str, folder: Path) -> pd.DataFrame:
    """Convert a pickle in the format of pyskl to `<folder>/<frame_dir>.safetensors`, a file a clip.

    The pickle holds `split` (names by split) and `annotations` with `frame_dir`, `label`, `keypoint`
    (M, T, V, C) and, where C is 2, `keypoint_score` (M, T, V) and `img_shape` (height, width). It is read
    without running code: anything but arrays and plain containers is refused.

    Returns:
        A row an annotation, and one for every name of a split without one: `clip_id`, `splits` (joined by
        spaces), `label`, `skeleton` (file within `folder`, "" if none) and the record of `write_skeleton`.

    Raises:
        ValueError: damaged, other objects in it (they are named), or not that format.
    """
    path, joints = Path(path), layout_of(layout)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; download the skeletons first")
    content = read_arrays(path, "save its arrays as npz and convert these")
    if not isinstance(content, Mapping) or not isinstance(content.get("annotations"), list):
        raise ValueError(f"{path} is no mapping with a list `annotations`; give a pickle in pyskl's format")
    splits: dict[str, list[str]] = {}
    for split, names in content.get("split", {}).items():
        for name in names:
            splits.setdefault(str(name), []).append(str(split))
    rows = {}
    for number, annotation in enumerate(content["annotations"]):
        if lacking := [name for name in ("frame_dir", "label", "keypoint") if name not in annotation]:
            raise ValueError(f"{path}: annotation {number} lacks {', '.join(lacking)}; fetch the file again")
        clip_id = str(annotation["frame_dir"])
        if clip_id in rows:
            raise ValueError(f"{path} has two annotations of {clip_id}; remove one of them")
        rows[clip_id] = {"splits": " ".join(splits.pop(clip_id, [])), "label": annotation["label"]}
        height, width = np.asarray(annotation.get("img_shape", (0, 0)))
        keypoint, scores = annotation["keypoint"], annotation.get("keypoint_score")
        rows[clip_id] |= _convert(joints, folder, clip_id, keypoint, scores, (width, height))
    for clip_id, names in splits.items():
        rows[clip_id] = {"splits": " ".join(names), "skeleton": "", "reason": "no annotation"}
    return pd.DataFrame([{"clip_id": clip_id, **row} for clip_id, row in rows.items()])


def convert_npz(paths: Iterable[Path], layout: str, folder: Path) -> pd.DataFrame:
    """Convert npz files, one a clip, to `<folder>/<name>.safetensors`.

    Each holds `keypoint` ([M,] T, V, 2 or 3) and, where these are pixels, `size` (width, height) and perhaps
    `keypoint_score` ([M,] T, V).

    Returns:
        A row a file: `clip_id` (the file's name), `skeleton` (file within `folder`, "" if none) and the
        record of `write_skeleton`.

    Raises:
        ValueError: a damaged file, Python objects in it, no `keypoint`, or two files of one name.
    """
    rows = {}
    for path in map(Path, paths):
        if path.stem in rows:
            raise ValueError(f"{path}: another file has this name; rename one of them")
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
        except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{path} is no npz of plain arrays ({error}); export it again") from None
        if "keypoint" not in arrays:
            raise ValueError(f"{path} has no array `keypoint`, only {', '.join(arrays)}; export it again")
        keypoint, scores = arrays["keypoint"], arrays.get("keypoint_score")
        if keypoint.ndim == 3:
            keypoint, scores = keypoint[None], None if scores is None else scores[None]
        size = arrays.get("size", (0, 0))
        rows[path.stem] = _convert(layout_of(layout), folder, path.stem, keypoint, scores, size)
    return pd.DataFrame([{"clip_id": clip_id, **row} for clip_id, row in rows.items()])


def _convert(
    layout: Layout,
    folder: Path,
    clip_id: str,
    joints: np.ndarray,
    scores: np.ndarray | None,
    size: Iterable[int],
) -> dict[str, object]:
    name = skeleton_file(clip_id)
    record = write_skeleton(Path(folder) / name, layout, joints, scores, tuple(map(int, size)))
    return {"skeleton": "" if record["reason"] else str(name), **record}
