"""Recorded motions and the body that they move: joints, bones, sampling in time, forward kinematics."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

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
POINTS = (*JOINTS, "right_toe", "left_toe")  # what forward kinematics returns; toes are drawn, not exported

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
QUATERNIONS = tuple(  # columns of the recording, w x y z; the other joints are hinges about z, in radians
    columns for _, _, columns in TURNING.values() if columns.stop - columns.start == 4
)
LOOP_BLEND_S = 0.2  # seconds over which a looping recording eases into its own beginning


def opposite(name: str) -> str:
    """The point on the other side of the body; for one in the middle, the same point."""
    if name.startswith("right"):
        return name.replace("right", "left")
    return name.replace("left", "right")


MIRRORED = [POINTS.index(opposite(name)) for name in POINTS]


@dataclass(frozen=True)
class Motion:
    """One recording: `frames` (n, 44) as in the npz, at `times` (n,) seconds; `loops` if it may wrap."""

    times: np.ndarray
    frames: np.ndarray
    loops: bool

    @property
    def seconds(self) -> float:
        """Duration of the recording."""
        return float(self.times[-1])

    @cached_property
    def lowest(self) -> float:
        """Height in metres of the body's lowest point over the whole recording."""
        return float(forward_kinematics(self.frames)[0][..., 1].min())


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
    for columns in QUATERNIONS:
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
    repeats and travels on, any other one holds its first and last pose.
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


def mirror(recording: np.ndarray) -> np.ndarray:
    """The recording (frames, 44) as in a mirror: z, the recorded person's right, changes its sign."""
    mirrored = recording.copy()
    mirrored[:, 3] *= -1
    for name, (_, _, columns) in TURNING.items():
        mirrored[:, columns] = recording[:, TURNING[opposite(name)][2]]
    for columns in QUATERNIONS:
        mirrored[:, columns] *= [1, -1, -1, 1]
    return mirrored


def root_rotation(recording: np.ndarray) -> Rotation:
    """Rotations of the root in a recording (frames, 44), in the world's axes."""
    return Rotation.from_quat(recording[:, TURNING["root"][2]], scalar_first=True)


def facing(recording: np.ndarray) -> np.ndarray:
    """Yaw (frames,) of a recording's root: where its right hand side points, also when it lies."""
    right = root_rotation(recording).apply([0, 0, 1])
    return np.arctan2(right[:, 0], right[:, 2])


def forward_kinematics(
    recording: np.ndarray,
    bends: np.ndarray | None = None,
    scale: float = 1.0,
    arm: float = 1.0,
    leg: float = 1.0,
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
    quaternions = np.empty((len(recording), len(TURNING), 4))
    for number, (_, _, columns) in enumerate(TURNING.values()):
        turn = recording[:, columns]
        if columns not in QUATERNIONS:
            turn = Rotation.from_rotvec(turn * [0, 0, 1]).as_quat(scalar_first=True)
        quaternions[:, number] = turn
    rotations = Rotation.from_quat(quaternions.reshape(-1, 4), scalar_first=True)
    if bends is not None:
        rotations = rotations * Rotation.from_rotvec(bends.reshape(-1, 3))
    local = rotations.as_matrix().reshape(*quaternions.shape[:2], 3, 3)

    def resized(name: str, offset: tuple) -> np.ndarray:
        stretch = arm if name.endswith(ARM_PARTS) else leg if name.endswith(LEG_PARTS) else 1.0
        return np.array(offset) * scale * stretch

    turned, placed = {}, {}
    for number, (name, (parent, offset, _)) in enumerate(TURNING.items()):
        if name == "root":
            turned[name], placed[name] = local[:, number], recording[:, 1:4] * scale
        else:
            turned[name] = turned[parent] @ local[:, number]
            placed[name] = placed[parent] + turned[parent] @ resized(name, offset)
    for name, (parent, offset) in ENDS.items():
        placed[name] = placed[parent] + turned[parent] @ resized(name, offset)
    return np.stack([placed[name] for name in POINTS], 1), turned["neck"]
