"""The embedded benchmark `mocap`: recorded human motions, rendered from the head and from the side.

Fifteen motion-capture recordings drive a person of capsules through furnished rooms. Every clip varies the
subject, the moment and speed of the motion, the room, the light and both cameras, and comes with depth,
skeleton and caption. Where the motions come from: data_manifests/mocap/README.md.
"""

import hashlib
import json
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import av
import numpy as np
import pandas as pd
from safetensors.numpy import save_file
from tqdm.auto import tqdm

from uniego_utils.mocap.render import TEXTURE_SIDE, Camera, Capsules, Room, look_at, render

SPLITS = ("pool", "train", "val", "test")
COLUMNS = (
    *("clip_id", "take", "subject", "label", "ego_video", "exo_video", "start_s", "end_s"),
    *("skeleton", "ego_depth", "exo_depth", "caption"),
)
GENERATOR = 1  # raise it when the same settings no longer give the same clips


@dataclass(frozen=True)
class MocapSettings:
    """Everything that decides what the clips look like; equal settings give equal pictures."""

    pool: int = 96  # clips per class; teachers are fitted on the pool (1,440 clips)
    train: int = 30  # clips per class
    val: int = 30
    test: int = 60
    image_size: int = 112  # pixels, side of the square pictures: a multiple of 16
    frames: int = 16  # per clip
    fps: int = 12  # frames per second; with 16 frames a clip lasts 1.33 s
    seed: int = 0  # of everything random
    pool_subjects: int = 32  # people; no person is in two splits
    train_subjects: int = 16
    val_subjects: int = 8
    test_subjects: int = 16
    rooms: int = 12  # shared by all splits
    texture_contrast: float = 0.5  # of the patterns on floors and walls; 0 is plain
    joint_noise: float = 0.12  # radians; slow random bending of every joint
    subject_style: float = 0.06  # radians; standard deviation of a person's habitual bending of every joint
    speed_low: float = 0.8  # slowest and fastest replay, times the person's own tempo
    speed_high: float = 1.25
    image_noise: float = 0.01  # standard deviation of the sensor noise, in units of full white
    ego_fov: float = 75.0  # degrees, +- 6 per clip
    ego_pitch: float = -25.0  # degrees; how far the head camera looks down, +- ego_jitter per clip
    ego_jitter: float = 6.0  # degrees; largest tilt of the head camera about each axis
    exo_swing: float = 50.0  # degrees; how far the side camera strays from looking at the person side-on
    crf: int = 20  # constant rate factor of the h264 files: higher is smaller and worse

    def __post_init__(self):
        for name in (*SPLITS, *(f"{split}_subjects" for split in SPLITS), "rooms", "fps"):
            if getattr(self, name) < 1:
                raise ValueError(f"MocapSettings.{name} is {getattr(self, name)}; it must be at least 1")
        # At 40 pixels, the last columns of equal pictures came out differently from run to run.
        if self.image_size < 16 or self.image_size % 16:
            raise ValueError(
                f"MocapSettings.image_size is {self.image_size}; take a multiple of 16: other sizes are not "
                "reproducible as h264"
            )
        if self.frames < 2:
            raise ValueError(f"MocapSettings.frames is {self.frames}; a clip needs at least 2")

    @property
    def seconds(self) -> float:
        """Duration of a clip."""
        return self.frames / self.fps

    def clips_per_class(self, split: str) -> int:
        return getattr(self, _known(split))

    def subjects(self, split: str) -> int:
        return getattr(self, f"{_known(split)}_subjects")


def _known(split: str) -> str:
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; the splits are {', '.join(SPLITS)}")
    return split


def stable_rng(*key) -> np.random.Generator:
    """A generator seeded by the words and numbers in `key`: the same on every machine and Python version."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


# --- Motions and the skeleton ---------------------------------------------------------------------

JOINTS = (
    *("root", "chest", "neck", "head"),
    *("right_hip", "right_knee", "right_ankle", "right_shoulder", "right_elbow", "right_wrist"),
    *("left_hip", "left_knee", "left_ankle", "left_shoulder", "left_elbow", "left_wrist"),
)
BONES = (
    *((0, 1), (1, 2), (2, 3)),
    *((0, 4), (4, 5), (5, 6), (1, 7), (7, 8), (8, 9)),
    *((0, 10), (10, 11), (11, 12), (1, 13), (13, 14), (14, 15)),
)
POINTS = (
    *JOINTS,
    "right_toe",
    "left_toe",
)  # what forward kinematics returns: the toes are drawn but not exported

# Joints that turn: parent, offset from the parent in metres in the parent's axes (x forwards, y up, z right),
# columns of the recording. Offsets: the humanoid of DeepMimic as distributed with pybullet 3.2.7.
TURNING = {
    "root": ("root", (0, 0, 0), slice(4, 8)),
    "chest": ("root", (0, 0.236151, 0), slice(8, 12)),
    "neck": ("chest", (0, 0.223894, 0), slice(12, 16)),
    "right_hip": ("root", (0, 0, 0.084887), slice(16, 20)),
    "right_knee": ("right_hip", (0, -0.421546, 0), slice(20, 21)),
    "right_ankle": ("right_knee", (0, -0.40987, 0), slice(21, 25)),
    "right_shoulder": ("chest", (-0.02405, 0.2435, 0.18311), slice(25, 29)),
    "right_elbow": ("right_shoulder", (0, -0.274788, 0), slice(29, 30)),
    "left_hip": ("root", (0, 0, -0.084887), slice(30, 34)),
    "left_knee": ("left_hip", (0, -0.421546, 0), slice(34, 35)),
    "left_ankle": ("left_knee", (0, -0.40987, 0), slice(35, 39)),
    "left_shoulder": ("chest", (-0.02405, 0.2435, -0.18311), slice(39, 43)),
    "left_elbow": ("left_shoulder", (0, -0.274788, 0), slice(43, 44)),
}
ENDS = {  # points that do not turn by themselves
    "head": ("neck", (0, 0.175, 0)),
    "right_wrist": ("right_elbow", (0, -0.258947, 0)),
    "left_wrist": ("left_elbow", (0, -0.258947, 0)),
    "right_toe": ("right_ankle", (0.13, -0.03, 0)),
    "left_toe": ("left_ankle", (0.13, -0.03, 0)),
}
ARM_PARTS = ("elbow", "wrist")  # points whose offset is the upper arm or the forearm
LEG_PARTS = ("knee", "ankle")
MIRRORED = [
    POINTS.index(name.replace("right", "left") if name.startswith("right") else name.replace("left", "right"))
    for name in POINTS
]
LOOP_BLEND_S = 0.2  # seconds over which a looping recording eases into its own beginning


@dataclass(frozen=True)
class Motion:
    """One recording: `frames` (n, 44) as in the npz, at `times` (n,) seconds; `loops` if it may wrap."""

    times: np.ndarray
    frames: np.ndarray
    loops: bool

    @property
    def seconds(self) -> float:
        return float(self.times[-1])


@lru_cache(maxsize=4)
def load_motions(path: Path) -> dict[str, Motion]:
    """All recordings in the npz at `path`, by class name in alphabetical order.

    Raises FileNotFoundError or ValueError naming the file if it is missing or lacks the (frames, 44) arrays.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; the motions are in data_manifests/mocap/")
    with np.load(path, allow_pickle=False) as arrays:
        names = sorted(name for name in arrays.files if not name.endswith("__loop"))
        bad = [n for n in names if arrays[n].shape[1:] != (44,) or f"{n}__loop" not in arrays.files]
        if bad or not names:
            raise ValueError(
                f"{path}: expected pairs <name> (frames, 44) and <name>__loop; wrong or missing: {bad}"
            )
        return {
            name: _motion(arrays[name].astype(np.float64), bool(arrays[f"{name}__loop"])) for name in names
        }


def _motion(frames: np.ndarray, loops: bool) -> Motion:
    """A recording whose quaternions change sign nowhere, so that interpolating between frames is safe."""
    times = np.concatenate([[0], np.cumsum(frames[:-1, 0])])
    start = frames[0].copy()
    for _, _, columns in TURNING.values():
        if columns.stop - columns.start == 4:
            quaternions = frames[:, columns]  # a view: the signs change in place
            flips = np.sign((quaternions[1:] * quaternions[:-1]).sum(-1))
            quaternions[1:] *= np.cumprod(np.where(flips == 0, 1, flips))[:, None]
            start[columns] *= 1 if quaternions[-1] @ start[columns] >= 0 else -1
    if loops:  # some recordings end up to 20 degrees away from where they began
        ease = np.clip((times - (times[-1] - LOOP_BLEND_S)) / LOOP_BLEND_S, 0, 1)[:, None]
        frames[:, 4:] += ease * (start[4:] - frames[:, 4:])
    return Motion(times, frames, loops)


def sample_motion(motion: Motion, times: np.ndarray) -> np.ndarray:
    """The recording (len(times), 44) at `times` in seconds.

    Between frames values are interpolated linearly and quaternions are left unnormalised. A looping recording
    goes on travelling, any other one holds its first and last pose.
    """
    if motion.loops:
        rounds = np.floor(times / motion.seconds)
        times = times - rounds * motion.seconds
    else:
        rounds, times = np.zeros_like(times), np.clip(times, 0, motion.seconds)
    before = np.clip(np.searchsorted(motion.times, times, side="right") - 1, 0, len(motion.times) - 2)
    share = (times - motion.times[before]) / (motion.times[before + 1] - motion.times[before])
    sampled = motion.frames[before] * (1 - share[:, None]) + motion.frames[before + 1] * share[:, None]
    travel = motion.frames[-1, 1:4] - motion.frames[0, 1:4]
    sampled[:, 1:4] += rounds[:, None] * travel * [1, 0, 1]
    return sampled


def quaternion_product(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Hamilton product of quaternions (..., 4) in w x y z order: turn by `second`, then by `first`."""
    w, x, y, z = np.moveaxis(first, -1, 0)
    p, q, r, s = np.moveaxis(second, -1, 0)
    return np.stack(
        [
            w * p - x * q - y * r - z * s,
            w * q + x * p + y * s - z * r,
            w * r - x * s + y * p + z * q,
            w * s + x * r - y * q + z * p,
        ],
        -1,
    )


def quaternion_to_matrix(quaternions: np.ndarray) -> np.ndarray:
    """Rotation matrices (..., 3, 3) of quaternions (..., 4) in w x y z order, of any length but zero."""
    w, x, y, z = np.moveaxis(quaternions / np.linalg.norm(quaternions, axis=-1, keepdims=True), -1, 0)
    rows = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        *(2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        *(2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    ]
    return np.stack(rows, -1).reshape(*quaternions.shape[:-1], 3, 3)


def rotation_vector_to_quaternion(vectors: np.ndarray) -> np.ndarray:
    """Quaternions (..., 4) in w x y z order of rotations (..., 3) given as axis times angle in radians."""
    angle = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.concatenate([np.cos(angle / 2), vectors * np.sinc(angle / (2 * np.pi)) / 2], -1)


def forward_kinematics(
    recording: np.ndarray, bends: np.ndarray, scale: float = 1.0, arm: float = 1.0, leg: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Where every point of the body is.

    Args:
        recording: (frames, 44) as `sample_motion` returns it.
        bends: (frames, 13, 3) extra rotation vectors in radians, joints in the order of `TURNING`.
        scale: size of the person against the recorded one.
        arm: further length of upper arm and forearm.
        leg: further length of thigh and shin.

    Returns:
        Points (frames, 18, 3) in metres in the order of `POINTS`, and the head's rotations (frames, 3, 3),
        whose columns are forwards, up and right.
    """
    local = np.empty((len(recording), len(TURNING), 4))
    for number, (_, _, columns) in enumerate(TURNING.values()):
        turn = recording[:, columns]
        if turn.shape[1] == 1:  # a hinge about z
            turn = rotation_vector_to_quaternion(turn * [0, 0, 1])
        local[:, number] = turn
    local = quaternion_to_matrix(quaternion_product(local, rotation_vector_to_quaternion(bends)))

    def sized(name: str, offset: tuple) -> np.ndarray:
        stretch = arm if name.endswith(ARM_PARTS) else leg if name.endswith(LEG_PARTS) else 1.0
        return np.array(offset) * scale * stretch

    turned, placed = {}, {}
    for number, (name, (parent, offset, _)) in enumerate(TURNING.items()):
        if name == "root":
            turned[name], placed[name] = local[:, number], recording[:, 1:4] * scale
        else:
            turned[name] = turned[parent] @ local[:, number]
            placed[name] = placed[parent] + turned[parent] @ sized(name, offset)
    for name, (parent, offset) in ENDS.items():
        placed[name] = placed[parent] + turned[parent] @ sized(name, offset)
    return np.stack([placed[name] for name in POINTS], 1), turned["neck"]


# --- People and rooms -----------------------------------------------------------------------------

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
WALLS = {
    "cream": (0.88, 0.83, 0.72),
    "grey": (0.74, 0.75, 0.76),
    "sage": (0.70, 0.76, 0.66),
    "pale blue": (0.68, 0.77, 0.83),
    "dusty pink": (0.84, 0.72, 0.70),
    "sand": (0.82, 0.73, 0.58),
    "lilac": (0.76, 0.71, 0.81),
}
FLOORS = {
    "oak": (0.70, 0.54, 0.37),
    "grey": (0.56, 0.57, 0.58),
    "walnut": (0.48, 0.35, 0.26),
    "slate": (0.40, 0.46, 0.52),
    "terracotta": (0.70, 0.45, 0.34),
    "beige": (0.76, 0.69, 0.58),
    "green": (0.45, 0.51, 0.40),
}
FURNITURE = (
    *((0.62, 0.44, 0.28), (0.36, 0.47, 0.55), (0.72, 0.40, 0.30), (0.80, 0.66, 0.38), (0.40, 0.50, 0.40)),
    *((0.84, 0.82, 0.78), (0.32, 0.30, 0.32), (0.58, 0.44, 0.54)),
)
PATTERNS = ("striped", "checked", "plank", "plain")  # of floors
ACTIONS = {
    "backflip": ("does a backflip", "flips over backwards in the air", "jumps into a back somersault"),
    "cartwheel": ("does a cartwheel", "wheels sideways over the hands", "turns a cartwheel"),
    "crawl": ("crawls on hands and knees", "crawls across the floor", "moves forwards on all fours"),
    "dance_a": ("dances with swaying steps", "dances, stepping and turning", "performs a swinging dance"),
    "dance_b": ("dances with bouncing arms", "dances on the spot", "performs a lively dance"),
    "getup_facedown": (
        "gets up from lying face down",
        "pushes up from the belly",
        "rises from a prone position",
    ),
    "getup_faceup": (
        "gets up from lying on the back",
        "rises from a supine position",
        "sits up and stands up",
    ),
    "jump": ("jumps forwards", "leaps with both feet", "makes a jump"),
    "kick": ("kicks with one leg", "throws a high kick", "swings a leg in a kick"),
    "punch": ("throws a punch", "punches the air", "strikes out with a fist"),
    "roll": ("rolls over the floor", "does a forward roll", "tumbles over one shoulder"),
    "run": ("runs", "runs across the room", "sprints forwards"),
    "spin": ("spins around", "turns around in circles", "twirls on the spot"),
    "spinkick": ("does a spinning kick", "spins in the air and kicks", "throws a jumping roundhouse kick"),
    "walk": ("walks", "walks forwards", "strolls across the room"),
}


@dataclass(frozen=True)
class Subject:
    """A made-up person: proportions, habits and clothes."""

    name: str
    scale: float  # body size against the recorded one
    arm: float  # further length of the arms
    leg: float  # further length of the legs
    girth: float  # thickness of the limbs against `LIMBS`
    tempo: float  # own speed of moving
    style: np.ndarray  # (13, 3) radians; habitual bending in the order of TURNING
    shirt: str  # key of SHIRTS
    trousers: str  # key of TROUSERS
    colours: dict  # of shirt, trousers, skin, hair and shoes, (3,) each


def make_subject(settings: MocapSettings, split: str, number: int) -> Subject:
    """Person `number` of a split; the split is part of the seed, so nobody is in two splits."""
    rng = stable_rng(settings.seed, "subject", _known(split), number)
    shirt, trousers = str(rng.choice(list(SHIRTS))), str(rng.choice(list(TROUSERS)))
    colours = {
        "shirt": SHIRTS[shirt],
        "trousers": TROUSERS[trousers],
        "skin": SKINS[rng.integers(len(SKINS))],
        "hair": HAIRS[rng.integers(len(HAIRS))],
        "shoes": SHOES[rng.integers(len(SHOES))],
    }
    return Subject(
        name=f"{split}_person_{number:02d}",
        scale=rng.uniform(0.88, 1.12),
        arm=rng.uniform(0.92, 1.08),
        leg=rng.uniform(0.92, 1.08),
        girth=rng.uniform(0.85, 1.25),
        tempo=rng.uniform(0.85, 1.15),
        style=rng.normal(0, settings.subject_style, (len(TURNING), 3))
        * np.where(np.arange(13) == 0, 0.3, 1)[:, None],
        shirt=shirt,
        trousers=trousers,
        colours={part: np.clip(np.array(c) + rng.normal(0, 0.02, 3), 0.05, 1) for part, c in colours.items()},
    )


@dataclass(frozen=True)
class Furnished:
    """A room and the words for it."""

    room: Room
    floor: str  # pattern and key of FLOORS: "striped oak", "grey"
    walls: str  # key of WALLS


@lru_cache(maxsize=64)
def make_room(seed: int, number: int, contrast: float) -> Furnished:
    """Room `number`: 8 to 11.5 m wide, textured floor and walls, furniture near the walls."""
    rng = stable_rng(seed, "room", number)
    half_x, half_z = rng.uniform(4.0, 5.75, 2)
    low, high = np.array([-half_x, 0.0, -half_z]), np.array([half_x, rng.uniform(2.7, 3.6), half_z])
    walls = list(WALLS)[(number + rng.integers(2)) % len(WALLS)]
    floor = list(FLOORS)[(3 * number + rng.integers(2)) % len(FLOORS)]
    pattern = PATTERNS[number % len(PATTERNS)]
    box_low, box_high = _furniture(rng, half_x, half_z)

    texels_per_metre = TEXTURE_SIDE / (high - low).max()
    centres = (np.arange(TEXTURE_SIDE) + 0.5) / texels_per_metre
    u, v = np.meshgrid(centres, centres, indexing="ij")  # metres from the low corner of a face
    wall_style = ("striped", "panelled", "plain")[rng.integers(3)]
    textures = []
    for axis, sides in ((0, (2, 1)), (1, (0, 2)), (2, (0, 1))):
        extent = (high - low)[list(sides)]
        for end in range(2):
            if axis == 1:
                face = (
                    _floor_texture(rng, u, v, FLOORS[floor], pattern, contrast)
                    if end == 0
                    else _ceiling(u, v)
                )
            else:
                face = _wall_texture(rng, u, v, extent, WALLS[walls], wall_style, contrast)
            edge = np.minimum(np.minimum(u, extent[0] - u), np.minimum(v, extent[1] - v))
            face = (
                face * (1 - 0.28 * np.exp(-np.maximum(edge, 0) / 0.35))[..., None]
            )  # corners get less light
            if (axis, end) == (1, 0):
                face = face * _contact_shadows(u + low[0], v + low[2], box_low, box_high)[..., None]
            textures.append(face * (0.88, 1.0, 0.94)[axis])
    light = rng.normal(size=3)
    light[1] = 1.5 * abs(light[1]) + 1.5  # from high above: shadows stay near the feet
    room = Room(
        low=low,
        high=high,
        textures=np.clip(textures, 0, 1).astype(np.float32),
        box_low=box_low,
        box_high=box_high,
        box_colours=np.array(FURNITURE)[rng.integers(len(FURNITURE), size=len(box_low))],
        light=light / np.linalg.norm(light),
        ambient=rng.uniform(0.5, 0.7),
        gain=1.0,
    )
    return Furnished(
        room,
        f"{floor} plank" if pattern == "plank" else floor if pattern == "plain" else f"{pattern} {floor}",
        walls,
    )


def _furniture(rng: np.random.Generator, half_x: float, half_z: float) -> tuple[np.ndarray, np.ndarray]:
    """Low and high corners (boxes, 3) of 5 to 8 boxes on the floor, away from the middle of the room."""
    count = rng.integers(5, 9)
    angle = (np.arange(count) + rng.uniform(0.2, 0.8, count)) * 2 * np.pi / count
    half = np.stack(
        [rng.uniform(0.15, 0.5, count), rng.uniform(0.15, 0.7, count), rng.uniform(0.15, 0.5, count)], 1
    )
    away = rng.uniform(2.4, 4.6, count)
    middle = np.stack([away * np.cos(angle), half[:, 1], away * np.sin(angle)], 1)
    for axis, wall in ((0, half_x), (2, half_z)):
        middle[:, axis] = np.clip(middle[:, axis], half[:, axis] - wall, wall - half[:, axis])
    return middle - half, middle + half


def _floor_texture(
    rng: np.random.Generator, u: np.ndarray, v: np.ndarray, colour: tuple, pattern: str, contrast: float
) -> np.ndarray:
    """Picture (side, side, 3) of a floor; u and v in metres."""
    cell, dark = rng.uniform(0.45, 0.7), rng.uniform(0.4, 0.6) * contrast
    i, j = np.floor(u / cell).astype(int), np.floor(v / cell).astype(int)
    shade = 1 + 0.05 * contrast * rng.standard_normal(u.shape)
    if pattern == "striped":
        shade = shade - dark * (j % 2)
    elif pattern == "checked":
        shade = shade - dark * ((i + j) % 2)
    elif pattern == "plank":
        row = np.floor(v / 0.22).astype(int)
        piece = np.floor(u / 1.4 + 0.37 * row).astype(int)
        tones = rng.uniform(-0.8, 0.2, 101) * dark
        shade = shade + tones[(row * 31 + piece * 17) % 101]
    texture = np.array(colour) * shade[..., None]
    rug = rng.uniform(0.2, 0.5, 2) * (u.max(), v.max())
    on_rug = (abs(u - rug[0] - 1.5) < rng.uniform(0.8, 1.5)) & (abs(v - rug[1] - 1.5) < rng.uniform(0.8, 1.5))
    texture[on_rug] = texture[on_rug] * 0.3 + 0.7 * np.array(FURNITURE[rng.integers(len(FURNITURE))])
    return texture


def _ceiling(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """White ceiling with square lamps every 2.4 m, picture (side, side, 3); u and v in metres."""
    lamp = (abs(u % 2.4 - 1.2) < 0.3) & (abs(v % 2.4 - 1.2) < 0.3)
    return np.where(lamp[..., None], (1.0, 1.0, 0.96), (0.84, 0.84, 0.82))


def _wall_texture(
    rng: np.random.Generator,
    u: np.ndarray,
    v: np.ndarray,
    extent: np.ndarray,
    colour: tuple,
    style: str,
    contrast: float,
) -> np.ndarray:
    """Picture (side, side, 3) of a wall with skirting board, door and posters; v is the height in metres."""
    shade = 1 + 0.03 * contrast * rng.standard_normal(u.shape)
    width = rng.uniform(0.4, 0.7)
    if style == "striped":
        shade -= 0.25 * contrast * (np.floor(u / width) % 2)
    elif style == "panelled":
        shade -= 0.35 * contrast * ((v < 1.1) | (u % width < 0.06))
    texture = np.array(colour) * shade[..., None]
    door = rng.uniform(0.5, extent[0] - 1.5)
    if rng.random() < 0.5:
        texture[(u > door - 0.08) & (u < door + 0.98) & (v < 2.13)] = (0.93, 0.92, 0.9)
        texture[(u > door) & (u < door + 0.9) & (v < 2.05)] = FURNITURE[rng.integers(3)]
    for _ in range(rng.integers(2, 5)):
        left, bottom = rng.uniform(0.3, extent[0] - 1.6), rng.uniform(1.0, 1.5)
        wide, tall = rng.uniform(0.5, 1.3), rng.uniform(0.5, 0.9)
        within = np.maximum(abs(u - left - wide / 2) - wide / 2, abs(v - bottom - tall / 2) - tall / 2)
        texture[within < 0] = (0.95, 0.94, 0.91)  # a mount around each poster
        texture[within < -0.07] = FURNITURE[rng.integers(len(FURNITURE))]
    texture[v < 0.12] = (0.92, 0.91, 0.89)
    return texture


def _contact_shadows(x: np.ndarray, z: np.ndarray, box_low: np.ndarray, box_high: np.ndarray) -> np.ndarray:
    """Brightness (side, side) of the floor at x, z metres around the furniture."""
    shade = np.ones_like(x)
    for low, high in zip(box_low, box_high, strict=True):
        off_x = np.maximum(np.maximum(low[0] - x, x - high[0]), 0)
        off_z = np.maximum(np.maximum(low[2] - z, z - high[2]), 0)
        shade *= 1 - 0.45 * np.exp(-np.hypot(off_x, off_z) / 0.18)
    return shade


# --- One clip -------------------------------------------------------------------------------------

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
    POINTS.index(n) for n in ("root", "head", "right_knee", "left_knee", "right_ankle", "left_ankle")
]
SHADOW_CASTERS += [POINTS.index(n) for n in ("right_wrist", "left_wrist")]
HEAD_CAMERA = np.array([[0.0, 0, -1], [0, 1, 0], [1, 0, 0]])  # camera right, up, backward in the head's axes
EYE = np.array([0.10, 0.03, 0.0])  # metres from the head's centre, in the head's axes
CLEARANCE_M = 0.3  # wished-for distance of the body from walls and furniture


@dataclass(frozen=True)
class Performance:
    """A person moving in a room."""

    points: np.ndarray  # (frames, 18, 3) metres, in the order of POINTS
    head: np.ndarray  # (frames, 3, 3) rotations; columns are forwards, up and right
    heading: float  # radians about the vertical

    @property
    def joints(self) -> np.ndarray:
        return self.points[:, : len(JOINTS)]


def perform(
    motion: Motion, subject: Subject, room: Room, settings: MocapSettings, rng: np.random.Generator
) -> Performance:
    """Replay a random window of a recording: speed, bending, mirroring, heading and place vary."""
    window = settings.seconds * subject.tempo * rng.uniform(settings.speed_low, settings.speed_high)
    start = rng.uniform(0, motion.seconds if motion.loops else max(motion.seconds - window, 0.01))
    recording = sample_motion(motion, start + np.linspace(0, window, settings.frames, endpoint=False))
    bends = subject.style + slow_noise(settings.frames, settings.joint_noise, rng)
    points, head = forward_kinematics(recording, bends, subject.scale, subject.arm, subject.leg)
    recorded = forward_kinematics(recording, 0 * bends)[0] * subject.scale
    lowest = recorded[..., 1].min(1)
    points = points + onto_floor(points, lowest - lowest.min())
    if rng.random() < 0.5:  # z is the recorded person's right
        points = points[:, MIRRORED] * [1, 1, -1]
        head = head * np.outer([1, 1, -1], [1, 1, -1])

    centre = points[:, 0].mean(0) * [1, 0, 1]
    best = -np.inf
    for _ in range(12):  # try places until the body is clear of walls and furniture
        heading, spot = rng.uniform(0, 2 * np.pi), rng.uniform(-0.8, 0.8, 2)
        cos, sin = np.cos(heading), np.sin(heading)
        turn = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
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


def slow_noise(frames: int, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Rotation vectors (frames, 13, 3) in radians: slow random bends, half as much of root and chest."""
    joints = len(TURNING)
    amplitude = strength * np.where(np.arange(joints) < 2, 0.5, 1)[:, None]
    time = np.linspace(0, 1, frames)[:, None, None]
    noise = rng.normal(0, 0.6, (joints, 3)) + np.zeros((frames, 1, 1))
    for waves in (1, 2):
        swing = rng.normal(0, 1 / waves, (joints, 3))
        rate, phase = rng.uniform(0.5, 1, (joints, 1)), rng.uniform(0, 1, (joints, 3))
        noise = noise + swing * np.sin(2 * np.pi * (waves * time * rate + phase))
    return amplitude * noise


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


def ego_camera(
    performance: Performance, room: Room, settings: MocapSettings, rng: np.random.Generator
) -> Camera:
    """A camera on the forehead: it turns with the head and looks down at hands and feet."""
    jitter = settings.ego_jitter
    yaw, pitch, roll = np.radians(rng.uniform(-jitter, jitter, 3) + [0, settings.ego_pitch, 0])
    tilt = rotation_vector_to_quaternion(np.diag([pitch, yaw, roll]))  # about the camera's x, y and z
    about_x, about_y, about_z = quaternion_to_matrix(tilt)
    eye = performance.points[:, POINTS.index("head")] + performance.head @ EYE
    field = np.radians(settings.ego_fov + rng.uniform(-6, 6))
    return Camera(
        size=settings.image_size,
        focal=settings.image_size / 2 / np.tan(field / 2),
        position=np.clip(eye, room.low + 0.06, room.high - 0.06),
        rotation=performance.head @ (HEAD_CAMERA @ about_y @ about_x @ about_z),
    )


def exo_camera(
    performance: Performance, room: Room, settings: MocapSettings, rng: np.random.Generator
) -> Camera:
    """A fixed camera at the side, 2.4 to 3.4 m away, whose field of view just holds the whole motion."""
    joints = performance.joints
    middle = (joints.min((0, 1)) + joints.max((0, 1))) / 2
    best = np.inf
    for _ in range(8):  # try places until nothing hides the person and the field of view is no fish-eye
        swing = np.radians(rng.uniform(-settings.exo_swing, settings.exo_swing))
        azimuth = performance.heading + np.pi * rng.integers(2) + np.pi / 2 + swing
        away = rng.uniform(2.4, 3.4) * np.array([np.cos(azimuth), 0, -np.sin(azimuth)])
        position = np.clip(middle + away + [0, rng.uniform(0.1, 1.0), 0], room.low + 0.15, room.high - 0.15)
        rotation, reach = frame_joints(position, joints, middle)
        flaw = max(reach, 0.8) + is_hidden(position, (middle, joints[0, 0], joints[-1, 0]), room)
        if flaw < best:
            best, chosen = flaw, (position, rotation, reach)
        if best <= 0.8:
            break
    position, rotation, reach = chosen
    reach = min(reach * rng.uniform(1.08, 1.25) + 0.03, 1.6)
    return Camera(settings.image_size, settings.image_size / 2 / reach, position[None], rotation[None])


def frame_joints(position: np.ndarray, joints: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, float]:
    """Rotation of a camera at `position` that centres the joints (f, 16, 3); tangent of half its view."""
    for _ in range(3):  # the middle of what is seen is not the middle of the motion, so aim, look and correct
        rotation = look_at(position, target)
        seen = (joints - position) @ rotation
        slopes = seen[..., :2] / np.maximum(-seen[..., 2:], 0.3)
        off = (slopes.min((0, 1)) + slopes.max((0, 1))) / 2
        target = position + rotation @ np.array([*off, -1.0])
    return rotation, float(np.abs(slopes).max())


def is_hidden(position: np.ndarray, targets: tuple, room: Room) -> bool:
    """Whether furniture, with 0.25 m to spare, stands between `position` and any of the target points."""
    for target in targets:
        step = target - position
        step = np.where(np.abs(step) < 1e-9, 1e-9, step)
        first, second = (room.box_low - 0.25 - position) / step, (room.box_high + 0.25 - position) / step
        enter, leave = np.minimum(first, second).max(-1), np.maximum(first, second).min(-1)
        if ((enter < leave) & (enter < 0.9) & (leave > 0)).any():
            return True
    return False


@dataclass(frozen=True)
class Clip:
    """One clip in memory; the dictionaries are by view, "ego" and "exo"."""

    pictures: dict[str, np.ndarray]  # (frames, size, size, 3) uint8
    depths: dict[str, np.ndarray]  # (frames, size, size) float32 metres
    cameras: dict[str, Camera]
    joints: np.ndarray  # (frames, 16, 3) metres
    subject: str
    caption: str


def make_clip(
    motions: dict[str, Motion], settings: MocapSettings, split: str, label: str, index: int
) -> Clip:
    """Clip `index` of a class in a split; the same whatever else is generated."""
    rng = stable_rng(settings.seed, "clip", split, label, index)
    # Going round the people class by class keeps person and class unrelated.
    person = (index + list(motions).index(label)) % settings.subjects(split)
    subject = make_subject(settings, split, person)
    furnished = make_room(settings.seed, int(rng.integers(settings.rooms)), settings.texture_contrast)
    brightness = rng.uniform(0.75, 1.15)
    room = Room(**{**vars(furnished.room), "gain": brightness})
    performance = perform(motions[label], subject, room, settings, rng)
    cameras = {
        "ego": ego_camera(performance, room, settings, rng),
        "exo": exo_camera(performance, room, settings, rng),
    }
    casters = performance.points[:, SHADOW_CASTERS]
    pictures, depths = {}, {}
    for view, camera in cameras.items():
        body = body_capsules(performance, subject, with_head=view == "exo")
        pictures[view], depths[view] = render(camera, room, body, casters, settings.image_noise, rng)
    caption = describe(label, subject, furnished, brightness, rng)
    return Clip(pictures, depths, cameras, performance.joints, subject.name, caption)


def describe(
    label: str, subject: Subject, furnished: Furnished, brightness: float, rng: np.random.Generator
) -> str:
    """A sentence on what the clip shows: the action, the clothes and the room."""
    shirt, trousers = f"{_a(subject.shirt)} shirt", f"{subject.trousers} trousers"
    clothes = (shirt, trousers, f"{shirt} and {trousers}")[rng.integers(3)]
    light = "bright " if brightness > 1.02 else "dim " if brightness < 0.86 else ""
    floor, walls = f"{_a(furnished.floor)} floor", f"{furnished.walls} walls"
    place = f"a {light}room with " + (floor, walls, f"{walls} and {floor}")[rng.integers(3)]
    action = ACTIONS.get(label, (f"does a {label.replace('_', ' ')}",))
    return f"a person in {clothes} {action[rng.integers(len(action))]} in {place}"


def _a(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


# --- Files ----------------------------------------------------------------------------------------


def relative_inverse_depth(depth: np.ndarray) -> np.ndarray:
    """Depth (frames, n, n) in metres as 8 bit inverse depth, near is white, as a monocular estimator gives.

    Such an estimator knows neither scale nor offset, so each clip is stretched to its own 1st and 99.5th
    percentile.
    """
    inverse = 1 / np.maximum(depth, 0.25)  # metres: a hand before the eyes must not blacken the room
    low, high = np.percentile(inverse[:, ::4, ::4], (1, 99.5))
    return np.clip((inverse - low) * (255 / max(high - low, 1e-6)), 0, 255).astype(np.uint8)


def write_mp4(path: Path, frames: np.ndarray, fps: int, crf: int) -> None:
    """Write pictures (frames, n, n, 3) uint8 as h264.

    About one file in seventy came out with other bytes in a second run, from equal pictures: a few pixels,
    mostly of still depth, by a few grey levels. The cause is in the encoder and was not found.
    """
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        # One thread, no B frames: nothing depends on the machine's load. Short groups: quick seeking.
        stream.options = {"crf": str(crf), "preset": "veryfast", "threads": "1", "bf": "0", "g": "8"}
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def write_clip(clip: Clip, folder: Path, settings: MocapSettings) -> None:
    """Write a clip's five files and its manifest row; `folder` appears only when all are complete."""
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # left behind by an interrupted build
    unfinished.mkdir(parents=True)
    skeleton = {"joints_3d": clip.joints.astype(np.float32)}
    for view, camera in clip.cameras.items():
        write_mp4(unfinished / f"{view}.mp4", clip.pictures[view], settings.fps, settings.crf)
        grey = np.repeat(relative_inverse_depth(clip.depths[view])[..., None], 3, -1)
        write_mp4(unfinished / f"{view}_depth.mp4", grey, settings.fps, settings.crf)
        pixels, depth = camera.project(clip.joints)
        inside = (depth > 0) & (pixels >= 0).all(-1) & (pixels < camera.size).all(-1)
        skeleton[f"{view}_joints_2d"] = pixels.astype(np.float32)
        skeleton[f"{view}_visible"] = inside.astype(np.uint8)
    save_file(
        {key: np.ascontiguousarray(value) for key, value in skeleton.items()},
        unfinished / "skeleton.safetensors",
    )
    (unfinished / "clip.json").write_text(json.dumps({"subject": clip.subject, "caption": clip.caption}))
    unfinished.rename(folder)


def build(
    root: Path,
    motions: Path,
    settings: MocapSettings,
    workers: int = 2,
    progress: bool = True,
    manifests: Path | None = None,
) -> dict[str, Path]:
    """Generate what is missing below `root` and return the manifest of every split.

    Clips land in `clips/<split>/<clip_id>/`, settings in `settings.json`, manifests in `<split>.csv`. An
    interrupted build resumes when called again: a clip's folder exists only once it is complete, and the
    manifests come last.

    Args:
        root: folder to fill; made if need be.
        motions: the recordings, data_manifests/mocap/humanoid_motions.npz.
        settings: what to generate.
        workers: processes; 1 stays in this one.
        progress: show a bar.
        manifests: folder of the manifests; `root` unless it is given.

    Raises:
        ValueError: `root` holds clips of other settings or other motions, or `workers` is not positive.
        FileNotFoundError: there is no file `motions`.
    """
    root, motions = Path(root), Path(motions)
    if workers < 1:
        raise ValueError(f"workers is {workers}; it must be at least 1")
    labels = list(load_motions(motions))
    claim(root, motions, asdict(settings) | {"generator": GENERATOR})
    rows = {
        split: [(split, label, n) for n in range(settings.clips_per_class(split)) for label in labels]
        for split in SPLITS
    }
    missing = [row for split in SPLITS for row in rows[split] if not _clip_folder(root, *row).is_dir()]
    bar = tqdm(total=len(missing), desc="rendering clips", unit="clip", disable=not progress or not missing)
    with bar:
        for _ in _build_clips(root, motions, settings, missing, workers):
            bar.update()
    folder = Path(manifests or root)
    return {split: _write_manifest(root, folder, split, rows[split], settings) for split in SPLITS}


def claim(root: Path, motions: Path, settings: dict) -> None:
    """Write `settings.json`, or check that the one below `root` says the same.

    Raises:
        ValueError: it says something else, that is, what is there was generated from other settings.
    """
    wanted = settings | {"motions_sha256": hashlib.sha256(motions.read_bytes()).hexdigest()}
    path = root / "settings.json"
    if not path.exists():
        _write_text(path, json.dumps(wanted, indent=2) + "\n")
        return
    found = json.loads(path.read_text())
    differing = [
        f"{name}: {found.get(name)} there, {wanted.get(name)} asked for"
        for name in sorted(found.keys() | wanted.keys())
        if found.get(name) != wanted.get(name)
    ]
    if differing:
        raise ValueError(
            f"{path}: this folder was generated with other settings ({'; '.join(differing)}). "
            f"Delete {root} to generate it anew, or choose another root."
        )


def _clip_folder(root: Path, split: str, label: str, index: int) -> Path:
    return root / "clips" / split / f"{split}_{label}_{index:03d}"


def _build_clips(root: Path, motions: Path, settings: MocapSettings, missing: list[tuple], workers: int):
    """Build the clips (split, label, index) in `missing`; yields once per clip."""
    tasks = [(root, motions, settings, *row) for row in missing]
    if workers == 1 or len(tasks) < 2:
        yield from map(_build_clip, tasks)
        return
    # Fresh processes: a forked one could inherit a lock that a notebook's other threads hold.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_build_clip, tasks, chunksize=4)


def _build_clip(task: tuple) -> None:
    root, motions, settings, split, label, index = task
    clip = make_clip(load_motions(motions), settings, split, label, index)
    write_clip(clip, _clip_folder(root, split, label, index), settings)


def _write_manifest(
    root: Path, manifests: Path, split: str, rows: list[tuple], settings: MocapSettings
) -> Path:
    """Write `<split>.csv` into `manifests`: a line a clip, in the order of `rows`, its paths below `root`."""
    lines = []
    for _, label, index in rows:
        folder = _clip_folder(root, split, label, index)
        about = json.loads((folder / "clip.json").read_text())
        place = folder.relative_to(root).as_posix()
        lines.append(
            {
                "clip_id": folder.name,
                "take": folder.name,
                "subject": about["subject"],
                "label": label,
                "ego_video": f"{place}/ego.mp4",
                "exo_video": f"{place}/exo.mp4",
                "start_s": 0.0,
                "end_s": round(settings.seconds, 6),
                "skeleton": f"{place}/skeleton.safetensors",
                "ego_depth": f"{place}/ego_depth.mp4",
                "exo_depth": f"{place}/exo_depth.mp4",
                "caption": about["caption"],
            }
        )
    path = manifests / f"{split}.csv"
    _write_text(path, pd.DataFrame(lines, columns=COLUMNS).to_csv(index=False, lineterminator="\n"))
    return path


def _write_text(path: Path, text: str) -> None:
    """Write a file that is never seen half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(text, newline="\n")
    os.replace(unfinished, path)
