"""Untrimmed videos of the embedded benchmark: several actions in a row, with standing about in between.

A video shows one person of `mocap` in one of its rooms, following a script of actions (`scripts`). The first
actions of the videos are the classes in turn.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from uniego_utils.mocap.cameras import ego_camera, room_camera
from uniego_utils.mocap.files import build_missing, claim, complete_folder, write_mp4
from uniego_utils.mocap.motions import QUATERNIONS, Motion, facing, forward_kinematics, load_motions
from uniego_utils.mocap.people import (
    Performance,
    Subject,
    body_capsules,
    clearance,
    make_subject,
    onto_floor,
    video_noise,
)
from uniego_utils.mocap.render import Camera, Room, render
from uniego_utils.mocap.rooms import make_room
from uniego_utils.mocap.scripts import Script, fade, track_body, write_script
from uniego_utils.mocap.settings import SPLITS, VIDEO_SPLITS, MocapSettings, UntrimmedSettings, stable_rng
from uniego_utils.runs import write_text

LEVEL = "action"  # of all rows of segments.csv
SEGMENT_COLUMNS = (
    *("split", "level", "video_id", "take", "subject", "ego_video", "exo_video", "start_s", "end_s", "label"),
)
FOLDER = "untrimmed"  # below the data root
GENERATOR = 1  # raise it when the same settings no longer give the same videos
CHUNK = 16  # frames drawn at once


def play(
    motions: Mapping[str, Motion],
    script: Script,
    start: np.ndarray,
    subject: Subject,
    settings: MocapSettings,
    rng: np.random.Generator,
) -> Performance:
    """The person's moves over a whole script; poses and steps blend where two tracks meet."""
    count = script.frames
    poses, steps = np.zeros((count, 44)), np.zeros((count, 2))
    above, weights = np.zeros((2, count))
    for track in script.tracks:
        body = track_body(motions, track, settings.fps)
        frames = body.first + np.arange(len(body.recording))
        inside = (frames >= 0) & (frames < count)
        frames, recording = frames[inside], body.recording[inside]
        weight = fade(frames, track)
        for columns in QUATERNIONS:  # a quaternion and its negative are the same turn
            agree = (poses[frames, columns] * recording[:, columns]).sum(-1)
            recording[:, columns] *= np.where(agree < 0, -1, 1)[:, None]
            recording[:, columns] /= np.linalg.norm(recording[:, columns], axis=-1, keepdims=True)
        poses[frames] += weight[:, None] * recording
        steps[frames] += weight[:, None] * body.steps[inside]
        above[frames] += weight * body.above[inside]
        weights[frames] += weight
    last = np.flatnonzero(weights > 0)[-1]  # a script that is longer than its tracks ends standing still
    poses[last + 1 :], above[last + 1 :] = poses[last], above[last]
    poses[:, [1, 3]] = np.cumsum(steps, 0) - steps
    bends = subject.style + video_noise(count, settings.fps, settings.joint_noise, rng)
    points, head = forward_kinematics(poses, bends, subject.scale, subject.arm, subject.leg)
    points = points + onto_floor(points, np.maximum(above, 0) * subject.scale)
    points = points - points[0, 0] * [1, 0, 1] + [start[0], 0, start[1]]
    return Performance(points, head, float(facing(poses[:1])[0]))


@dataclass(frozen=True)
class Video:
    """One video in memory; `pictures` by view, "ego" and "exo"."""

    pictures: dict[str, np.ndarray]  # (frames, size, size, 3) uint8
    performance: Performance
    segments: list[tuple[str, int, int]]
    subject: str


def make_video(
    motions: Mapping[str, Motion],
    clips: MocapSettings,
    settings: UntrimmedSettings,
    split: str,
    index: int,
) -> Video:
    """Video `index` of a split, the same whatever else is generated; its person is of the split's clips."""
    subject = make_subject(clips, split, index % clips.subjects(split))
    labels, best = list(motions), -np.inf
    for attempt in range(6):  # until the body is clear of walls and furniture all the time
        rng = stable_rng(clips.seed, FOLDER, split, index, attempt)
        furnished = make_room(clips.seed, int(rng.integers(clips.rooms)), clips.texture_contrast)
        room = replace(furnished.room, gain=rng.uniform(0.75, 1.15))
        script, start = write_script(
            motions, subject, room, clips, settings, labels[index % len(labels)], rng
        )
        performance = play(motions, script, start, subject, clips, rng)
        if (free := clearance(performance.points, room)) > best:
            best, chosen = free, (rng, room, script, performance)
        if best > 0.1:
            break
    rng, room, script, performance = chosen
    cameras = {
        "ego": ego_camera(performance, room, clips, rng),
        "exo": room_camera(performance, room, settings.exo_size, rng),
    }
    pictures = {
        view: _draw(camera, room, performance, subject, view == "exo", clips, rng)
        for view, camera in cameras.items()
    }
    return Video(pictures, performance, script.segments, subject.name)


def _draw(
    camera: Camera,
    room: Room,
    performance: Performance,
    subject: Subject,
    with_head: bool,
    settings: MocapSettings,
    rng: np.random.Generator,
) -> np.ndarray:
    """The pictures (frames, size, size, 3) uint8 of a view, drawn in chunks: a minute fills gigabytes."""
    pictures = []
    for first in range(0, len(performance.points), CHUNK):
        part = slice(first, first + CHUNK)
        chunk_camera = camera
        if not camera.is_static:
            chunk_camera = replace(camera, position=camera.position[part], rotation=camera.rotation[part])
        chunk = replace(performance, points=performance.points[part], head=performance.head[part])
        body = body_capsules(chunk, subject, with_head)
        drawn, _ = render(chunk_camera, room, body, chunk.shadow_casters, settings.image_noise, rng)
        pictures.append(drawn)
    return np.concatenate(pictures)


def write_video(video: Video, folder: Path, settings: MocapSettings) -> None:
    """Write both views and what happens when; `folder` appears only when all are complete."""
    with complete_folder(folder) as unfinished:
        for view, pictures in video.pictures.items():
            write_mp4(unfinished / f"{view}.mp4", pictures, settings.fps, settings.crf)
        about = {"subject": video.subject, "segments": video.segments}
        (unfinished / "video.json").write_text(json.dumps(about))


def build(
    root: Path,
    motions: Path,
    clips: MocapSettings,
    settings: UntrimmedSettings,
    workers: int = 2,
    progress: bool = True,
    manifests: Path | None = None,
) -> Path:
    """Generate the videos that are missing below `root`/untrimmed, and return `segments.csv`.

    Videos land in `untrimmed/<video_id>/`, settings in `untrimmed/settings.json`. An interrupted build
    resumes when called again: a video's folder exists only once it is complete, and `segments.csv` comes
    last. It has the columns of published datasets' segments; what lies between segments is background.

    Args:
        root: the data root.
        motions: the recordings, data_manifests/mocap/humanoid_motions.npz.
        clips: people, rooms, pictures and cameras; numbers of clips do not matter.
        workers: processes; 1 stays in this one.
        progress: show a bar.
        manifests: folder of `segments.csv`; `root` unless it is given.

    Raises:
        ValueError: the folder holds videos of other settings or motions, or `workers` is not positive.
        FileNotFoundError: there is no file `motions`.
    """
    root, motions = Path(root), Path(motions)
    load_motions(motions)
    shared = {name: value for name, value in asdict(clips).items() if name not in SPLITS}
    claim(root / FOLDER, motions, shared | asdict(settings) | {"generator": GENERATOR})
    videos = [(split, index) for split in VIDEO_SPLITS for index in range(getattr(settings, split))]
    tasks = [(_folder(root, *video), motions, clips, settings, *video) for video in videos]
    build_missing(_build_video, tasks, workers, progress, "video")
    path = Path(manifests or root) / "segments.csv"
    rows = [row for video in videos for row in _segment_rows(root, *video, clips.fps)]
    write_text(path, pd.DataFrame(rows, columns=SEGMENT_COLUMNS).to_csv(index=False, lineterminator="\n"))
    return path


def _folder(root: Path, split: str, index: int) -> Path:
    return root / FOLDER / f"{split}_video_{index:03d}"


def _build_video(
    folder: Path, motions: Path, clips: MocapSettings, settings: UntrimmedSettings, split: str, index: int
) -> None:
    write_video(make_video(load_motions(motions), clips, settings, split, index), folder, clips)


def _segment_rows(root: Path, split: str, index: int, fps: int) -> list[dict]:
    folder = _folder(root, split, index)
    about = json.loads((folder / "video.json").read_text())
    place = folder.relative_to(root).as_posix()
    shared = {"split": split, "level": LEVEL, "video_id": folder.name, "take": folder.name}
    shared |= {"subject": about["subject"], "ego_video": f"{place}/ego.mp4", "exo_video": f"{place}/exo.mp4"}
    return [
        shared | {"start_s": round(start / fps, 6), "end_s": round(stop / fps, 6), "label": label}
        for label, start, stop in about["segments"]
    ]
