"""What happens when in an untrimmed video: its script of tracks, and how a recording moves over a track.

Bouts of an action alternate with background: standing idle, and the blended transitions between poses. The
order is mildly structured: an action of the same family (`FAMILIES`) follows `kin` times as likely as another
one, and no class follows itself.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial.transform import Rotation

from uniego_utils.mocap.motions import (
    TURNING,
    Motion,
    facing,
    forward_kinematics,
    mirror,
    root_rotation,
    sample_motion,
)
from uniego_utils.mocap.people import CLEARANCE_M, Subject, clearance
from uniego_utils.mocap.render import Room
from uniego_utils.mocap.settings import MocapSettings, UntrimmedSettings

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


@dataclass(frozen=True)
class Track:
    """An action or standing idle, over frames [start, stop) of the video.

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


def recording_clock(track: Track, frames: np.ndarray, fps: int) -> np.ndarray:
    """Time (frames,) of the track's recording in seconds since `track.start`, before `rate` scales it.

    It runs evenly within the track, and comes to a standstill over its lead and trail.
    """
    seconds, duration = (frames - track.start) / fps, (track.stop - track.start) / fps
    lead, trail = (max(count, 1) / fps for count in (track.lead, track.trail))
    before, after = np.clip(-seconds / lead, 0, 1), np.clip((seconds - duration) / trail, 0, 1)
    # the integrals of a rate that falls as the square of the rest of the way
    eased = trail / 3 * (1 - (1 - after) ** 3) - lead / 3 * (1 - (1 - before) ** 3)
    return np.clip(seconds, 0, duration) + eased


def track_body(motions: Mapping[str, Motion], track: Track, fps: int) -> Body:
    """A track's moves over all its frames, those of its transitions included."""
    frames = np.arange(track.start - track.lead, track.stop + track.trail + 1)  # one more: for the last step
    clock = recording_clock(track, frames, fps)
    motion = motions[track.label or STANDING]
    recording = sample_motion(motion, track.begin + track.rate * clock)
    above = forward_kinematics(recording)[0][..., 1].min(1) - motion.lowest
    if track.mirrored:
        recording = mirror(recording)
    yaw = (track.heading + track.curve * clock)[:, None]
    halfway = Rotation.from_euler("y", (yaw[1:] + yaw[:-1]) / 2)
    steps = halfway.apply(np.diff(recording[:, 1:4], axis=0))
    recording = recording[:-1].copy()
    recording[:, [1, 3]] = np.cumsum(steps, 0)[:, [0, 2]] - steps[:, [0, 2]]
    turned = Rotation.from_euler("y", yaw[:-1]) * root_rotation(recording)
    recording[:, TURNING["root"][2]] = turned.as_quat(scalar_first=True)
    return Body(int(frames[0]), recording, steps[:, [0, 2]], above[:-1])


@dataclass(frozen=True)
class Script:
    """A video's plan: `tracks` in order, and the frames it lasts."""

    tracks: tuple[Track, ...]
    frames: int

    @property
    def segments(self) -> list[tuple[str, int, int]]:
        """Label, first frame and frame after the last of every action."""
        return [(track.label, track.start, track.stop) for track in self.tracks if track.label]


class _ScriptWriter:
    """Adds track after track to a script, and knows where the person is."""

    def __init__(
        self,
        motions: Mapping[str, Motion],
        subject: Subject,
        room: Room,
        clips: MocapSettings,
        settings: UntrimmedSettings,
        rng: np.random.Generator,
    ):
        self.motions, self.subject, self.room = motions, subject, room
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
        last = track_body(self.motions, track, self.clips.fps).recording[-1:]
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
        body = track_body(self.motions, track, self.clips.fps)
        frames = body.first + np.arange(len(body.steps))
        weight = fade(frames, track) * ((frames >= first) & (frames < stop))
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
        begin, travels = 0.0, label in ANYWHERE
        if travels:
            begin = rng.uniform(0, motion.seconds)
        elif motion.loops:
            duration = max(1, np.floor(duration * rate / motion.seconds)) * motion.seconds / rate
        else:
            duration = motion.seconds / rate
        mirrored = bool(rng.random() < 0.5)
        first = sample_motion(motion, np.array([begin]))
        recorded_yaw = facing(mirror(first) if mirrored else first)[0]
        best = -np.inf
        while best < CLEARANCE_M:
            for turn, curve, jitter in self._directions(travels):
                heading = self.yaw + turn + jitter - recorded_yaw
                lead = self._lead(label, turn + jitter, begin)
                start = self.tracks[-1].stop + lead
                stop = start + self._frames(duration)
                track = Track(label, start, stop, lead, 0, begin, rate, mirrored, heading, curve)
                free = self._clearance(track)
                if free > best:
                    best, chosen = free, track
                if best >= CLEARANCE_M:
                    break
            if not travels or duration <= settings.bout_low_s:
                break
            duration = max(settings.bout_low_s, 0.8 * duration)  # there is no room for more
        self._add(chosen)

    def _directions(self, travels: bool) -> Iterator[tuple[float, float, float]]:
        """Turn, curve and a random small further turn, the gentlest first."""
        for curve in CURVES if travels else (0.0,):
            for turn in TURNS:
                yield turn, curve, self.rng.uniform(-0.2, 0.2)

    def _clearance(self, track: Track) -> float:
        """Metres between the body and walls or furniture over a track and on until it stands still."""
        onwards = replace(track, trail=self._frames(self.settings.blend_high_s))
        body = track_body(self.motions, onwards, self.clips.fps).recording[track.lead :: 2]
        points, _ = forward_kinematics(body, None, self.subject.scale, self.subject.arm, self.subject.leg)
        x, z = self._place_before(track)
        return clearance(points - points[0, 0] * [1, 0, 1] + [x, 0, z], self.room)

    @property
    def stop(self) -> int:
        """The frame after the last track."""
        return self.tracks[-1].stop


def write_script(
    motions: Mapping[str, Motion],
    subject: Subject,
    room: Room,
    clips: MocapSettings,
    settings: UntrimmedSettings,
    first: str,
    rng: np.random.Generator,
) -> tuple[Script, np.ndarray]:
    """Plan a video that begins with the action `first`; also where (x, z in metres) the person starts."""
    fps = clips.fps
    span = settings.longest_s - settings.shortest_s
    wanted = round((settings.shortest_s + span * rng.beta(1, settings.shortness)) * fps)
    longest_action = round(14 * fps)  # a slow `spin` with idling before and after
    limit = round(settings.longest_s * fps)
    writer = _ScriptWriter(motions, subject, room, clips, settings, rng)
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


def fade(frames: np.ndarray, track: Track) -> np.ndarray:
    """Weight of a track at frames: 1 within it, smoothly to 0 over lead and trail; neighbours' sum to 1."""
    into = (frames - track.start + track.lead + 1) / (track.lead + 1)
    out = (track.stop + track.trail - frames) / (track.trail + 1)
    share = np.clip(np.minimum(into, out), 0, 1)
    return share * share * (3 - 2 * share)
