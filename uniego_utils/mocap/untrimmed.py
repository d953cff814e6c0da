"""Untrimmed videos of the embedded benchmark: several actions in a row, with standing about in between.

A video shows one person of `mocap` in one of its rooms. Bouts of an action alternate with background:
standing idle, and the blended transitions between poses. The order is mildly structured: an action of the
same family (`FAMILIES`) follows `kin` times as likely as another one, no class follows itself, and the first
actions of the videos go round the classes.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from uniego_utils.mocap.clips import (
    CLEARANCE_M,
    SHADOW_CASTERS,
    TURNING,
    MocapSettings,
    Motion,
    Performance,
    Subject,
    body_capsules,
    claim,
    clearance,
    ego_camera,
    forward_kinematics,
    frame_joints,
    is_hidden,
    load_motions,
    make_room,
    make_subject,
    onto_floor,
    quaternion_product,
    quaternion_to_matrix,
    sample_motion,
    stable_rng,
    write_mp4,
)
from uniego_utils.mocap.render import Camera, Room, render
from uniego_utils.runs import write_text

SPLITS = ("train", "val", "test")
LEVEL = "action"  # in segments.csv
SEGMENT_COLUMNS = (
    *("split", "level", "video_id", "take", "subject", "ego_video", "exo_video", "start_s", "end_s", "label"),
)
FOLDER = "untrimmed"  # below the data root
GENERATOR = 1  # raise it when the same settings no longer give the same videos
FAMILIES = (
    ("walk", "run"),
    ("crawl", "getup_facedown", "getup_faceup", "roll"),
    ("kick", "punch", "spinkick"),
    ("backflip", "cartwheel", "jump"),
    ("dance_a", "dance_b", "spin"),
)
ANYWHERE = ("walk", "run", "crawl", "dance_a", "dance_b")  # may begin and end at any moment; others are whole
STANDING = "backflip"  # the recording whose first pose is the most upright standing
TURNS = np.radians([0, 20, -20, 45, -45, 75, -75, 110, -110, 150, -150, 180])  # tried in this order
CURVES = (0.0, 0.5, -0.5, 1.0, -1.0, 1.5, -1.5)  # radians per second that a travelling person may turn
CHUNK = 16  # frames drawn at once


@dataclass(frozen=True)
class UntrimmedSettings:
    """What decides the videos, beside `MocapSettings` (people, rooms, pictures, cameras)."""

    train: int = 60  # videos
    val: int = 20
    test: int = 40
    shortest_s: float = 20.0
    longest_s: float = 60.0
    shortness: float = 4.5  # durations are shortest + (longest - shortest) Beta(1, this): a mean of 27 s
    bout_low_s: float = 1.5  # duration of an action, where its recording may end anywhere
    bout_high_s: float = 4.0
    idle_share: float = 0.6  # of the gaps between actions in which the person stands idle
    idle_low_s: float = 0.6
    idle_high_s: float = 2.0
    blend_low_s: float = 0.4  # of a transition between upright poses; lying down takes longer
    blend_high_s: float = 0.9
    kin: float = 3.0  # how much likelier an action of the same family follows
    exo_size: int = 160  # pixels, side of the exo pictures, which hold a whole scene: a multiple of 16

    def __post_init__(self):
        for split in SPLITS:
            if getattr(self, split) < 1:
                raise ValueError(f"UntrimmedSettings.{split} is {getattr(self, split)}; at least 1 video")
        for low, high in (("shortest_s", "longest_s"), ("bout_low_s", "bout_high_s")):
            if not 0 < getattr(self, low) < getattr(self, high):
                raise ValueError(f"UntrimmedSettings: {low} should be above 0 and below {high}")
        if self.exo_size < 16 or self.exo_size % 16:  # see MocapSettings
            raise ValueError(f"UntrimmedSettings.exo_size is {self.exo_size}; take a multiple of 16")


# --- What happens ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Track:
    """One thing the person does, over frames [start, stop) of the video.

    Before and after, the recording fades in and out over `lead` and `trail` frames, its clock easing to a
    standstill, while the track beside it fades the other way.
    """

    label: str | None  # None: standing idle
    start: int
    stop: int
    lead: int
    trail: int
    begin: float  # seconds of the recording at `start`
    rate: float  # seconds of the recording per second of the video
    mirrored: bool
    heading: float  # radians that the recording is turned by at `start`
    curve: float  # radians per second that it turns further


@dataclass(frozen=True)
class Body:
    """The moves of a track, without its place: a row per frame from `start - lead` to `stop + trail`."""

    first: int  # number of its first frame in the video
    recording: np.ndarray  # (frames, 44), turned by heading and curve
    steps: np.ndarray  # (frames, 2) how far x and z go until the next frame, in the recorded person's metres
    above: np.ndarray  # (frames,) metres of the recorded body's lowest point above the floor


@lru_cache(maxsize=64)
def _ground(path: Path, label: str) -> float:
    """Height of the lowest point of a whole recording."""
    frames = load_motions(path)[label].frames
    return float(forward_kinematics(frames, np.zeros((len(frames), len(TURNING), 3)))[0][..., 1].min())


def mirror(recording: np.ndarray) -> np.ndarray:
    """The recording (frames, 44) as in a mirror: z, the recorded person's right, changes its sign."""
    mirrored = recording.copy()
    mirrored[:, 3] *= -1
    for name, (_, _, columns) in TURNING.items():
        twin = name.replace("right", "left") if name.startswith("right") else name.replace("left", "right")
        mirrored[:, columns] = recording[:, TURNING[twin][2]]
        if columns.stop - columns.start == 4:
            mirrored[:, columns] *= [1, -1, -1, 1]
    return mirrored


def _clock(track: Track, frames: np.ndarray, fps: int) -> np.ndarray:
    """Seconds since the track's start that its recording's clock shows, in seconds at full rate."""
    seconds, duration = (frames - track.start) / fps, (track.stop - track.start) / fps
    lead, trail = (max(count, 1) / fps for count in (track.lead, track.trail))
    before, after = np.clip(-seconds / lead, 0, 1), np.clip((seconds - duration) / trail, 0, 1)
    # the integrals of a rate that falls as the square of the rest of the way
    eased = trail / 3 * (1 - (1 - after) ** 3) - lead / 3 * (1 - (1 - before) ** 3)
    return np.clip(seconds, 0, duration) + eased


def track_body(motions: Mapping[str, Motion], path: Path, track: Track, fps: int) -> Body:
    """What a track's recording does at every frame at which it is seen."""
    frames = np.arange(track.start - track.lead, track.stop + track.trail + 1)  # one more: for the last step
    clock = _clock(track, frames, fps)
    label = track.label or STANDING
    recording = sample_motion(motions[label], track.begin + track.rate * clock)
    still = np.zeros((len(frames), len(TURNING), 3))
    above = forward_kinematics(recording, still)[0][..., 1].min(1) - _ground(path, label)
    if track.mirrored:
        recording = mirror(recording)
    yaw = track.heading + track.curve * clock
    steps = _turned(np.diff(recording[:, 1:4], axis=0), (yaw[1:] + yaw[:-1]) / 2)
    recording = recording[:-1].copy()
    recording[:, [1, 3]] = np.cumsum(steps, 0)[:, [0, 2]] - steps[:, [0, 2]]
    about_y = np.stack([np.cos(yaw / 2), 0 * yaw, np.sin(yaw / 2), 0 * yaw], -1)[:-1]
    root = TURNING["root"][2]
    recording[:, root] = quaternion_product(about_y, recording[:, root])
    return Body(int(frames[0]), recording, steps[:, [0, 2]], above[:-1])


def _turned(vectors: np.ndarray, yaw: np.ndarray) -> np.ndarray:
    """Vectors (n, ..., 3) turned about the vertical by angles (n,)."""
    cos, sin = (function(yaw).reshape(-1, *[1] * (vectors.ndim - 2)) for function in (np.cos, np.sin))
    x, y, z = np.moveaxis(vectors, -1, 0)
    return np.stack([cos * x + sin * z, y, cos * z - sin * x], -1)


def facing(recording: np.ndarray) -> np.ndarray:
    """Yaw (frames,) of a recording's root: where its right hand side points, also when it lies."""
    right = quaternion_to_matrix(recording[:, TURNING["root"][2]])[..., 2]
    return np.arctan2(right[:, 0], right[:, 2])


@dataclass(frozen=True)
class Script:
    """A video's plan: `tracks` in order, and the frames it lasts."""

    tracks: tuple[Track, ...]
    frames: int

    @property
    def segments(self) -> list[tuple[str, int, int]]:
        """Label, first frame and frame after the last of every action."""
        return [(track.label, track.start, track.stop) for track in self.tracks if track.label]


class _Writer:
    """Writes a script action by action, and keeps count of where the person is."""

    def __init__(
        self,
        motions: Mapping[str, Motion],
        path: Path,
        subject: Subject,
        room: Room,
        clips: MocapSettings,
        settings: UntrimmedSettings,
        rng: np.random.Generator,
    ):
        self.motions, self.path, self.subject, self.room = motions, path, subject, room
        self.clips, self.settings, self.rng = clips, settings, rng
        self.place = np.array([*rng.uniform(-0.8, 0.8, 2)])  # x, z in metres where the last track ended
        self.tracks: list[Track] = []
        idle = self._frames(rng.uniform(0.5, 1.5))
        self._add(Track(None, 0, idle, 0, 0, 0.0, 0.0, False, rng.uniform(0, 2 * np.pi), 0.0))

    def _frames(self, seconds: float) -> int:
        return max(1, round(seconds * self.clips.fps))

    def _add(self, track: Track) -> None:
        self.place = self._place_before(track) + self._moved(track, track.start, track.stop)
        if self.tracks:  # the fade-out of the last one is the fade-in of this one
            self.tracks[-1] = replace(self.tracks[-1], trail=track.lead)
        self.tracks.append(track)
        last = track_body(self.motions, self.path, track, self.clips.fps).recording[-1:]
        self.yaw, self.height = float(facing(last)[0]), float(last[0, 2])

    def _place_before(self, track: Track) -> np.ndarray:
        """Where (x, z) the person is when a track starts, after the transition from the last one."""
        if not self.tracks:
            return self.place
        last = replace(self.tracks[-1], trail=track.lead)
        both = (self._moved(one, last.stop, track.start) for one in (last, track))
        return self.place + sum(both)

    def _moved(self, track: Track, first: int, stop: int) -> np.ndarray:
        """Metres (x, z) that a track carries the person over frames [first, stop), by its weight in them."""
        body = track_body(self.motions, self.path, track, self.clips.fps)
        frames = body.first + np.arange(len(body.steps))
        weight = _fade(frames, track) * ((frames >= first) & (frames < stop))
        return weight @ body.steps * self.subject.scale

    def _lead(self, label: str | None, turn: float, begin: float) -> int:
        """Frames of the transition into a track: longer for large turns, and to and from the floor."""
        settings = self.settings
        seconds = self.rng.uniform(settings.blend_low_s, settings.blend_high_s)
        height = sample_motion(self.motions[label or STANDING], np.array([begin]))[0, 2]
        if abs(height - self.height) > 0.35:
            seconds += 0.6
        return self._frames(max(seconds, abs(turn) / np.radians(220)))

    def idle(self, seconds: float) -> None:
        """Stand idle, facing the way the person faces."""
        lead = self._lead(None, 0.0, 0.0)
        start = self.tracks[-1].stop + lead
        standing = sample_motion(self.motions[STANDING], np.zeros(1))
        heading = self.yaw - facing(standing)[0]
        self._add(Track(None, start, start + self._frames(seconds), lead, 0, 0.0, 0.0, False, heading, 0.0))

    def act(self, label: str) -> None:
        """Do an action, in the direction that keeps the body clear of walls and furniture."""
        settings, rng, motion = self.settings, self.rng, self.motions[label]
        rate = self.subject.tempo * rng.uniform(self.clips.speed_low, self.clips.speed_high)
        duration = rng.uniform(settings.bout_low_s, settings.bout_high_s)
        begin = 0.0
        if label in ANYWHERE:
            begin = rng.uniform(0, motion.seconds)
        elif motion.loops:
            duration = max(1, np.floor(duration * rate / motion.seconds)) * motion.seconds / rate
        else:
            duration = motion.seconds / rate
        mirrored = bool(rng.random() < 0.5)
        first = sample_motion(motion, np.array([begin]))
        own = facing(mirror(first) if mirrored else first)[0]
        travels = label in ANYWHERE
        best = -np.inf
        while best < CLEARANCE_M:
            for turn, curve, jitter in self._ways(travels):
                heading = self.yaw + turn + jitter - own
                lead = self._lead(label, turn + jitter, begin)
                start = self.tracks[-1].stop + lead
                stop = start + self._frames(duration)
                track = Track(label, start, stop, lead, 0, begin, rate, mirrored, heading, curve)
                free = self._free(track)
                if free > best:
                    best, chosen = free, track
                if best >= CLEARANCE_M:
                    break
            if not travels or duration <= settings.bout_low_s:
                break
            duration = max(settings.bout_low_s, 0.8 * duration)  # there is no room for more
        self._add(chosen)

    def _ways(self, travels: bool) -> Iterator[tuple[float, float, float]]:
        """Turn, curve and a bit of chance, the gentlest first."""
        for curve in CURVES if travels else (0.0,):
            for turn in TURNS:
                yield turn, curve, self.rng.uniform(-0.2, 0.2)

    def _free(self, track: Track) -> float:
        """Metres between the body and walls or furniture over a track and on until it stands still."""
        onwards = replace(track, trail=self._frames(self.settings.blend_high_s))
        body = track_body(self.motions, self.path, onwards, self.clips.fps).recording[track.lead :: 2]
        still = np.zeros((len(body), len(TURNING), 3))
        points, _ = forward_kinematics(body, still, self.subject.scale, self.subject.arm, self.subject.leg)
        x, z = self._place_before(track)
        return clearance(points - points[0, 0] * [1, 0, 1] + [x, 0, z], self.room)

    @property
    def stop(self) -> int:
        """The frame after the last track."""
        return self.tracks[-1].stop


def write_script(
    motions: Mapping[str, Motion],
    path: Path,
    subject: Subject,
    room: Room,
    clips: MocapSettings,
    settings: UntrimmedSettings,
    first: str,
    rng: np.random.Generator,
) -> tuple[Script, np.ndarray]:
    """Plan a video that begins with the action `first`; also where (x, z in metres) the person starts.

    Args:
        motions: by class; `path` is the file they were loaded from.
    """
    fps = clips.fps
    seconds = settings.shortest_s + (settings.longest_s - settings.shortest_s) * rng.beta(
        1, settings.shortness
    )
    wanted = round(seconds * fps)
    longest_action = round(14 * fps)  # a slow `spin` with idling before and after
    limit = round(settings.longest_s * fps)
    writer = _Writer(motions, path, subject, room, clips, settings, rng)
    start, label = writer.place.copy(), first
    while True:
        writer.act(label)
        if writer.stop + round(2.5 * fps) > wanted or writer.stop + longest_action > limit:
            break
        if rng.random() < settings.idle_share:
            writer.idle(rng.uniform(settings.idle_low_s, settings.idle_high_s))
        label = follow(label, tuple(motions), settings.kin, rng)
    writer.idle(max(0.5, (wanted - writer.stop) / fps - 1))
    return Script(tuple(writer.tracks), max(writer.stop, round(settings.shortest_s * fps))), start


def follow(label: str, labels: tuple[str, ...], kin: float, rng: np.random.Generator) -> str:
    """The action after `label`: never itself, `kin` times as likely one of its family as another one."""
    family = next((names for names in FAMILIES if label in names), ())
    weights = np.array([0.0 if name == label else kin if name in family else 1.0 for name in labels])
    return str(rng.choice(labels, p=weights / weights.sum()))


def play(
    motions: Mapping[str, Motion],
    path: Path,
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
        body = track_body(motions, path, track, settings.fps)
        frames = body.first + np.arange(len(body.recording))
        seen = (frames >= 0) & (frames < count)
        weight = _fade(frames, track)[seen]
        recording, frames = body.recording[seen], frames[seen]
        for _, _, columns in TURNING.values():  # a quaternion and its negative are the same turn
            if columns.stop - columns.start == 4:
                agree = (poses[frames, columns] * recording[:, columns]).sum(-1)
                recording[:, columns] *= np.where(agree < 0, -1, 1)[:, None]
                recording[:, columns] /= np.linalg.norm(recording[:, columns], axis=-1, keepdims=True)
        poses[frames] += weight[:, None] * recording
        steps[frames] += weight[:, None] * body.steps[seen]
        above[frames] += weight * body.above[seen]
        weights[frames] += weight
    last = np.flatnonzero(weights > 0)[-1]  # a script that is longer than its tracks ends standing still
    poses[last + 1 :], above[last + 1 :] = poses[last], above[last]
    poses[:, [1, 3]] = np.cumsum(steps, 0) - steps
    bends = subject.style + steady_noise(count, settings.fps, settings.joint_noise, rng)
    points, head = forward_kinematics(poses, bends, subject.scale, subject.arm, subject.leg)
    points = points + onto_floor(points, np.maximum(above, 0) * subject.scale)
    points = points - points[0, 0] * [1, 0, 1] + [start[0], 0, start[1]]
    return Performance(points, head, float(facing(poses[:1])[0]))


def _fade(frames: np.ndarray, track: Track) -> np.ndarray:
    """Weight of a track at frames: 1 within it, smoothly to 0 over lead and trail; neighbours' sum to 1."""
    into = (frames - track.start + track.lead + 1) / (track.lead + 1)
    out = (track.stop + track.trail - frames) / (track.trail + 1)
    share = np.clip(np.minimum(into, out), 0, 1)
    return share * share * (3 - 2 * share)


def steady_noise(frames: int, fps: int, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Rotation vectors (frames, 13, 3) in radians, as `mocap.slow_noise` bends a clip, but for a long video:
    the clip's constant part drifts over ten seconds, its swings keep their pace."""
    joints = len(TURNING)
    amplitude = strength * np.where(np.arange(joints) < 2, 0.5, 1)[:, None]
    time = np.arange(frames)[:, None, None] / fps
    noise = np.zeros((frames, joints, 3))
    for low_hz, high_hz, size in ((0.05, 0.15, 0.85), (0.37, 0.75, 1.0), (0.75, 1.5, 0.5)):
        swing, phase = rng.normal(0, size, (joints, 3)), rng.uniform(0, 1, (joints, 3))
        rate = rng.uniform(low_hz, high_hz, (joints, 1))
        noise += swing * np.sin(2 * np.pi * (rate * time + phase))
    return amplitude * noise


# --- One video ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Video:
    """One video in memory; `pictures` by view, "ego" and "exo"."""

    pictures: dict[str, np.ndarray]  # (frames, size, size, 3) uint8
    performance: Performance
    segments: list[tuple[str, int, int]]
    subject: str


def make_video(
    motions: Mapping[str, Motion],
    path: Path,
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
        room = Room(**{**vars(furnished.room), "gain": rng.uniform(0.75, 1.15)})
        script, start = write_script(
            motions, path, subject, room, clips, settings, labels[index % len(labels)], rng
        )
        performance = play(motions, path, script, start, subject, clips, rng)
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


def room_camera(performance: Performance, room: Room, size: int, rng: np.random.Generator) -> Camera:
    """A fixed camera above eye level that holds the whole scene, and sees it past the furniture."""
    joints = performance.joints[::4]
    middle = (joints.min((0, 1)) + joints.max((0, 1))) / 2
    spots = joints[:: max(1, len(joints) // 12), 0]
    half = np.minimum(room.high, -room.low)[[0, 2]] - 0.2
    best = np.inf
    for _ in range(32):
        azimuth = rng.uniform(0, 2 * np.pi)
        way = np.array([np.cos(azimuth), np.sin(azimuth)])
        x, z = rng.uniform(0.5, 1) * way * np.min(half / np.maximum(np.abs(way), 1e-6))
        position = np.array([x, rng.uniform(1.5, 2.4), z])
        rotation, reach = frame_joints(position, joints, middle)
        hidden = np.mean([is_hidden(position, (spot,), room) for spot in spots])
        wide = reach * np.linalg.norm(position - middle)  # metres; the smaller, the larger is the person
        if (flaw := wide / 2 + max(reach - 1, 0) + 2 * hidden) < best:
            best, chosen = flaw, (position, rotation, reach)
    position, rotation, reach = chosen
    return Camera(size, size / 2 / (1.08 * reach + 0.03), position[None], rotation[None])


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
        seen = camera
        if not camera.is_static:
            seen = Camera(camera.size, camera.focal, camera.position[part], camera.rotation[part])
        shown = Performance(performance.points[part], performance.head[part], performance.heading)
        body = body_capsules(shown, subject, with_head)
        drawn, _ = render(seen, room, body, shown.points[:, SHADOW_CASTERS], settings.image_noise, rng)
        pictures.append(drawn)
    return np.concatenate(pictures)


# --- Files ----------------------------------------------------------------------------------------


def write_video(video: Video, folder: Path, settings: MocapSettings) -> None:
    """Write both views and what happens when; `folder` appears only when all are complete."""
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # left behind by an interrupted build
    unfinished.mkdir(parents=True)
    for view, pictures in video.pictures.items():
        write_mp4(unfinished / f"{view}.mp4", pictures, settings.fps, settings.crf)
    about = {"subject": video.subject, "segments": video.segments}
    (unfinished / "video.json").write_text(json.dumps(about))
    unfinished.rename(folder)


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
    if workers < 1:
        raise ValueError(f"workers is {workers}; it must be at least 1")
    load_motions(motions)
    shared = {name: value for name, value in asdict(clips).items() if name not in ("pool", *SPLITS)}
    claim(root / FOLDER, motions, shared | asdict(settings) | {"generator": GENERATOR})
    videos = [(split, index) for split in SPLITS for index in range(getattr(settings, split))]
    missing = [
        (_folder(root, *video), motions, clips, settings, *video)
        for video in videos
        if not _folder(root, *video).is_dir()
    ]
    bar = tqdm(total=len(missing), desc="rendering videos", disable=not progress or not missing)
    with bar:
        for _ in _build_all(missing, workers):
            bar.update()
    path = Path(manifests or root) / "segments.csv"
    rows = [row for video in videos for row in _segment_rows(root, *video, clips.fps)]
    write_text(path, pd.DataFrame(rows, columns=SEGMENT_COLUMNS).to_csv(index=False, lineterminator="\n"))
    return path


def _folder(root: Path, split: str, index: int) -> Path:
    return root / FOLDER / f"{split}_video_{index:03d}"


def _build_all(tasks: list[tuple], workers: int) -> Iterator[None]:
    """Build videos; yields once per video."""
    if workers == 1 or len(tasks) < 2:
        yield from map(_build_one, tasks)
        return
    # Fresh processes: a forked one could inherit a lock that a notebook's other threads hold.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_build_one, tasks)


def _build_one(task: tuple) -> None:
    folder, motions, clips, settings, split, index = task
    video = make_video(load_motions(motions), motions, clips, settings, split, index)
    write_video(video, folder, clips)


def _segment_rows(root: Path, split: str, index: int, fps: int) -> list[dict]:
    folder = _folder(root, split, index)
    about = json.loads((folder / "video.json").read_text())
    place = folder.relative_to(root).as_posix()
    known = {"split": split, "level": LEVEL, "video_id": folder.name, "take": folder.name}
    known |= {"subject": about["subject"], "ego_video": f"{place}/ego.mp4", "exo_video": f"{place}/exo.mp4"}
    return [
        known | {"start_s": round(start / fps, 6), "end_s": round(stop / fps, 6), "label": label}
        for label, start, stop in about["segments"]
    ]
