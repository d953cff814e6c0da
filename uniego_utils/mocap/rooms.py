"""Furnished rooms: walls, floor and ceiling as textures, furniture as boxes, and the words for them."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from uniego_utils.mocap.render import TEXTURE_SIDE, Room
from uniego_utils.mocap.settings import stable_rng

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


@dataclass(frozen=True)
class FurnishedRoom:
    """A room and the words for it."""

    room: Room
    floor: str  # pattern and key of FLOORS: "striped oak", "grey"
    walls: str  # key of WALLS


@lru_cache(maxsize=64)
def make_room(seed: int, number: int, contrast: float) -> FurnishedRoom:
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
                face = _ceiling(u, v) if end else _floor_texture(rng, u, v, FLOORS[floor], pattern, contrast)
            else:
                face = _wall_texture(rng, u, v, extent, WALLS[walls], wall_style, contrast)
            edge = np.minimum(np.minimum(u, extent[0] - u), np.minimum(v, extent[1] - v))
            corner_light = 1 - 0.28 * np.exp(-np.maximum(edge, 0) / 0.35)
            face = face * corner_light[..., None]
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
    described = {"plank": f"{floor} plank", "plain": floor}.get(pattern, f"{pattern} {floor}")
    return FurnishedRoom(room, described, walls)


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
