"""People: their proportions and clothes, how one moves through a room, and the capsules that are drawn."""

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from uniego_utils.mocap.motions import (
    JOINTS,
    MIRRORED,
    POINTS,
    TURNING,
    Motion,
    forward_kinematics,
    sample_motion,
)
from uniego_utils.mocap.render import Capsules, Room
from uniego_utils.mocap.settings import MocapSettings, check_split, stable_rng

SHIRTS = {
    "red": (0.72, 0.25, 0.22),
    "orange": (0.85, 0.52, 0.25),
    "yellow": (0.88, 0.76, 0.35),
    "green": (0.35, 0.55, 0.36),
    "teal": (0.24, 0.52, 0.53),
    "blue": (0.28, 0.43, 0.68),
    "purple": (0.48, 0.36, 0.60),
    "pink": (0.84, 0.55, 0.62),
    "white": (0.90, 0.89, 0.86),
}
TROUSERS = {
    "black": (0.17, 0.17, 0.19),
    "grey": (0.46, 0.47, 0.49),
    "navy": (0.18, 0.23, 0.38),
    "blue": (0.33, 0.45, 0.62),
    "brown": (0.42, 0.31, 0.23),
    "beige": (0.76, 0.69, 0.56),
    "olive": (0.42, 0.44, 0.27),
}
SKINS = ((0.95, 0.78, 0.66), (0.87, 0.67, 0.52), (0.74, 0.54, 0.39), (0.55, 0.38, 0.27), (0.40, 0.27, 0.20))
HAIRS = ((0.14, 0.11, 0.10), (0.30, 0.20, 0.13), (0.50, 0.34, 0.20), (0.78, 0.64, 0.40), (0.60, 0.58, 0.56))
SHOES = ((0.92, 0.92, 0.90), (0.15, 0.15, 0.16), (0.45, 0.28, 0.20), (0.55, 0.20, 0.20))
LIMBS = (  # from, to, radius in metres, what it is made of; equal ends make a ball
    ("root", "chest", 0.105, "shirt"),
    ("chest", "neck", 0.115, "shirt"),
    ("chest", "right_shoulder", 0.05, "shirt"),
    ("chest", "left_shoulder", 0.05, "shirt"),
    ("right_shoulder", "right_elbow", 0.046, "shirt"),
    ("left_shoulder", "left_elbow", 0.046, "shirt"),
    ("right_elbow", "right_wrist", 0.04, "skin"),
    ("left_elbow", "left_wrist", 0.04, "skin"),
    ("right_wrist", "right_wrist", 0.05, "skin"),
    ("left_wrist", "left_wrist", 0.05, "skin"),
    ("root", "right_hip", 0.09, "trousers"),
    ("root", "left_hip", 0.09, "trousers"),
    ("right_hip", "right_knee", 0.07, "trousers"),
    ("left_hip", "left_knee", 0.07, "trousers"),
    ("right_knee", "right_ankle", 0.052, "trousers"),
    ("left_knee", "left_ankle", 0.052, "trousers"),
    ("right_ankle", "right_toe", 0.042, "shoes"),
    ("left_ankle", "left_toe", 0.042, "shoes"),
)
HEAD_RADIUS = 0.11  # metres
SHADOW_CASTERS = [
    *(POINTS.index(name) for name in ("root", "head", "right_knee", "left_knee")),
    *(POINTS.index(name) for name in ("right_ankle", "left_ankle", "right_wrist", "left_wrist")),
]
CLEARANCE_M = 0.3  # desired distance of the body from walls and furniture


@dataclass(frozen=True)
class Subject:
    """A made-up person: proportions, habits and clothes."""

    name: str
    scale: float  # body size against the recorded one
    arm: float  # further length of the arms
    leg: float  # further length of the legs
    girth: float  # thickness of the limbs against `LIMBS`
    tempo: float  # speed of moving against the recorded one
    style: np.ndarray  # (13, 3) radians; habitual bending in the order of TURNING
    shirt: str  # key of SHIRTS
    trousers: str  # key of TROUSERS
    colours: dict  # of shirt, trousers, skin, hair and shoes, (3,) each


def make_subject(settings: MocapSettings, split: str, number: int) -> Subject:
    """Person `number` of a split; the split is part of the seed, so nobody is in two splits."""
    rng = stable_rng(settings.seed, "subject", check_split(split), number)
    shirt, trousers = str(rng.choice(list(SHIRTS))), str(rng.choice(list(TROUSERS)))
    colours = {
        "shirt": SHIRTS[shirt],
        "trousers": TROUSERS[trousers],
        "skin": SKINS[rng.integers(len(SKINS))],
        "hair": HAIRS[rng.integers(len(HAIRS))],
        "shoes": SHOES[rng.integers(len(SHOES))],
    }
    less_of_root = np.where(np.arange(len(TURNING)) == 0, 0.3, 1)
    return Subject(
        name=f"{split}_person_{number:02d}",
        scale=rng.uniform(0.88, 1.12),
        arm=rng.uniform(0.92, 1.08),
        leg=rng.uniform(0.92, 1.08),
        girth=rng.uniform(0.85, 1.25),
        tempo=rng.uniform(0.85, 1.15),
        style=rng.normal(0, settings.subject_style, (len(TURNING), 3)) * less_of_root[:, None],
        shirt=shirt,
        trousers=trousers,
        colours={part: np.clip(np.array(c) + rng.normal(0, 0.02, 3), 0.05, 1) for part, c in colours.items()},
    )


@dataclass(frozen=True)
class Performance:
    """A person moving in a room."""

    points: np.ndarray  # (frames, 18, 3) metres, in the order of POINTS
    head: np.ndarray  # (frames, 3, 3) rotations; columns are forwards, up and right
    heading: float  # radians about the vertical

    @property
    def joints(self) -> np.ndarray:
        """(frames, 16, 3) metres, in the order of JOINTS."""
        return self.points[:, : len(JOINTS)]

    @property
    def shadow_casters(self) -> np.ndarray:
        """The points (frames, 8, 3) whose shadows are drawn."""
        return self.points[:, SHADOW_CASTERS]


def perform(
    motion: Motion, subject: Subject, room: Room, settings: MocapSettings, rng: np.random.Generator
) -> Performance:
    """Replay a random window of a recording: speed, bending, mirroring, heading and place vary."""
    window = settings.seconds * subject.tempo * rng.uniform(settings.speed_low, settings.speed_high)
    start = rng.uniform(0, motion.seconds if motion.loops else max(motion.seconds - window, 0.01))
    recording = sample_motion(motion, start + np.linspace(0, window, settings.frames, endpoint=False))
    bends = subject.style + clip_noise(settings.frames, settings.joint_noise, rng)
    points, head = forward_kinematics(recording, bends, subject.scale, subject.arm, subject.leg)
    recorded = forward_kinematics(recording)[0] * subject.scale
    lowest = recorded[..., 1].min(1)
    points = points + onto_floor(points, lowest - lowest.min())
    if rng.random() < 0.5:  # z is the recorded person's right
        points = points[:, MIRRORED] * [1, 1, -1]
        head = head * np.outer([1, 1, -1], [1, 1, -1])

    centre = points[:, 0].mean(0) * [1, 0, 1]
    best = -np.inf
    for _ in range(12):  # try places until the body is clear of walls and furniture
        heading, spot = rng.uniform(0, 2 * np.pi), rng.uniform(-0.8, 0.8, 2)
        turn = Rotation.from_euler("y", heading).as_matrix()
        placed = (points - centre) @ turn.T + [spot[0], 0, spot[1]]
        if (free := clearance(placed, room)) > best:
            best, chosen = free, Performance(placed, turn @ head, heading)
        if best > CLEARANCE_M:
            break
    return chosen


def onto_floor(points: np.ndarray, above: np.ndarray) -> np.ndarray:
    """Shifts (frames, 1, 3) that put a bent body (frames, n, 3) onto the floor when the recorded one stands
    on it; `above` (frames,) says how many metres the recorded one's lowest point is above the floor.

    Bending and other leg lengths would otherwise let the person float or sink. Points are some 4.5 cm inside
    the skin, so the lowest one of the clip ends up that far above the floor.
    """
    height = above + 0.045 - points[..., 1].min(1)
    return height[:, None, None] * [0, 1, 0]


def clip_noise(frames: int, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Rotation vectors (frames, 13, 3) in radians for a clip: a constant bend and two slow swings."""
    joints = len(TURNING)
    quarter = np.full((joints, 3), 0.25)  # of a cycle, where a sine is 1
    constant = rng.normal(0, 0.6, (joints, 3)), np.zeros((joints, 1)), quarter
    swings = [
        (
            rng.normal(0, 1 / cycles, (joints, 3)),
            cycles * rng.uniform(0.5, 1, (joints, 1)),
            rng.uniform(0, 1, (joints, 3)),
        )
        for cycles in (1, 2)
    ]
    return bending(np.linspace(0, 1, frames), [constant, *swings], strength)


def video_noise(frames: int, fps: int, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Rotation vectors (frames, 13, 3) in radians, as `clip_noise` but for a long video: what is constant in
    a clip drifts over ten seconds, the swings are as fast as in a clip."""
    joints = len(TURNING)
    sines = []
    for low_hz, high_hz, size in ((0.05, 0.15, 0.85), (0.37, 0.75, 1.0), (0.75, 1.5, 0.5)):
        amplitude, phase = rng.normal(0, size, (joints, 3)), rng.uniform(0, 1, (joints, 3))
        sines.append((amplitude, rng.uniform(low_hz, high_hz, (joints, 1)), phase))
    return bending(np.arange(frames) / fps, sines, strength)


def bending(
    time: np.ndarray, sines: list[tuple[np.ndarray, np.ndarray, np.ndarray]], strength: float
) -> np.ndarray:
    """Bending of every joint as a sum of sines, half as much of root and chest.

    Args:
        time: (frames,) in any unit.
        sines: amplitude (13, 3), frequency (13, 1) in cycles per unit of time, and phase (13, 3) in cycles.
        strength: radians that an amplitude of 1 stands for.

    Returns:
        Rotation vectors (frames, 13, 3) in radians.
    """
    weight = strength * np.where(np.arange(len(TURNING)) < 2, 0.5, 1)[:, None]
    time = time[:, None, None]
    return weight * sum(
        amplitude * np.sin(2 * np.pi * (frequency * time + phase)) for amplitude, frequency, phase in sines
    )


def clearance(points: np.ndarray, room: Room) -> float:
    """Smallest horizontal distance in metres of any point from walls and furniture; negative means inside."""
    flat = points.reshape(-1, 1, 3)[..., [0, 2]]
    walls = np.minimum(flat - room.low[[0, 2]], room.high[[0, 2]] - flat).min()
    outside = np.maximum(room.box_low[:, [0, 2]] - flat, flat - room.box_high[:, [0, 2]])
    return float(min(walls, outside.max(-1).min()))


def body_capsules(performance: Performance, subject: Subject, with_head: bool) -> Capsules:
    """The person to draw; without the head for its own camera."""
    points = performance.points
    starts = [points[:, POINTS.index(limb[0])] for limb in LIMBS]
    ends = [points[:, POINTS.index(limb[1])] for limb in LIMBS]
    radii = [limb[2] * subject.girth for limb in LIMBS]
    made_of = [limb[3] for limb in LIMBS]
    if with_head:
        neck, head = points[:, POINTS.index("neck")], points[:, POINTS.index("head")]
        hair = head + performance.head @ np.array([-0.04, 0.03, 0.0])  # behind and above: a face remains
        starts += [neck, head, hair]
        ends += [head, head, hair]
        radii += [0.055 * subject.girth, HEAD_RADIUS * subject.scale, 1.02 * HEAD_RADIUS * subject.scale]
        made_of += ["skin", "skin", "hair"]
    colours = np.array([subject.colours[part] for part in made_of])
    return Capsules(np.stack(starts, 1), np.stack(ends, 1), np.array(radii), colours)
