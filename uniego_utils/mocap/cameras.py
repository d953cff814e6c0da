"""Where the cameras are: on the person's forehead, and fixed in the room."""

import numpy as np
from scipy.spatial.transform import Rotation

from uniego_utils.mocap.motions import POINTS
from uniego_utils.mocap.people import Performance
from uniego_utils.mocap.render import Camera, Room, look_at
from uniego_utils.mocap.settings import MocapSettings

HEAD_CAMERA = np.array([[0.0, 0, -1], [0, 1, 0], [1, 0, 0]])  # camera right, up, backward in the head's axes
EYE = np.array([0.10, 0.03, 0.0])  # metres from the head's centre, in the head's axes


def ego_camera(
    performance: Performance, room: Room, settings: MocapSettings, rng: np.random.Generator
) -> Camera:
    """A camera on the forehead: it turns with the head and looks down at hands and feet."""
    jitter = settings.ego_jitter
    yaw, pitch, roll = np.radians(rng.uniform(-jitter, jitter, 3) + [0, settings.ego_pitch, 0])
    tilt = Rotation.from_euler("YXZ", [yaw, pitch, roll]).as_matrix()  # about the camera's axes
    eye = performance.points[:, POINTS.index("head")] + performance.head @ EYE
    field = np.radians(settings.ego_fov + rng.uniform(-6, 6))
    return Camera(
        size=settings.image_size,
        focal=settings.image_size / 2 / np.tan(field / 2),
        position=np.clip(eye, room.low + 0.06, room.high - 0.06),
        rotation=performance.head @ (HEAD_CAMERA @ tilt),
    )


def exo_camera(
    performance: Performance, room: Room, settings: MocapSettings, rng: np.random.Generator
) -> Camera:
    """A fixed camera at the side, 2.4 to 3.4 m away, whose field of view just holds a clip's whole motion."""
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


def room_camera(performance: Performance, room: Room, size: int, rng: np.random.Generator) -> Camera:
    """A fixed camera above eye level that holds the whole scene of a video, with little furniture before it.

    Args:
        size: pixels, side of the square pictures.
    """
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


def frame_joints(position: np.ndarray, joints: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, float]:
    """Aim a camera at `position` so that the joints (frames, 16, 3) lie around the middle of its picture.

    Args:
        target: (3,) point to aim at first.

    Returns:
        The camera's rotation (3, 3), and the tangent of half the angle of view that holds the joints.
    """
    for _ in range(3):  # the middle of the motion is not the middle of its picture: correct it
        rotation = look_at(position, target)
        in_camera = (joints - position) @ rotation
        slopes = in_camera[..., :2] / np.maximum(-in_camera[..., 2:], 0.3)
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
