"""A small renderer in plain numpy: a pin-hole camera looks at a person of capsules in a furnished room.

Why not a simulator: MuJoCo's `mj_multiRay` takes 2.4 to 3.2 ms for the distances alone of one frame of such a
scene, this module 1.2 ms for the finished picture without a 64 MB package (data_manifests/mocap/README.md).
All frames of a clip are traced together: at 100 x 100 pixels numpy spends its time on calls, not on pixels.

World axes: metres, y up. Camera axes: x right, y up, looking along -z. Distances along a ray are depths (the
distance along the optical axis), because every ray direction has a unit component along it.
"""

from dataclasses import dataclass

import numpy as np

NEAR = 0.03  # metres; anything closer to the camera is not drawn
BOX_LIGHT = np.array([0.78, 1.0, 0.88], np.float32)  # sides along x, tops, sides along z
TEXTURE_SIDE = 256  # texels along each side of a room face's picture


@dataclass(frozen=True)
class Camera:
    """One view: a static camera has one pose, a moving one a pose per frame."""

    size: int  # pixels along each side of the square picture
    focal: float  # pixels
    position: np.ndarray  # (1 or frames, 3) metres
    rotation: np.ndarray  # (1 or frames, 3, 3); columns are the camera's right, up and backward in world axes

    @property
    def is_static(self) -> bool:
        return len(self.position) == 1

    def to_camera(self, points: np.ndarray) -> np.ndarray:
        """World points (frames, n, 3) in camera axes, same shape."""
        return (points - self.position[:, None]) @ self.rotation

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """World points (frames, n, 3) to pixels (frames, n, 2) and depths (frames, n) in metres.

        Pixels count to the right and down; the centre of the top left one is (0.5, 0.5). Pixels of points
        behind the camera (depth <= 0) mean nothing.
        """
        x, y, z = np.moveaxis(self.to_camera(points), -1, 0)
        depth = -z
        scale = self.focal / np.where(np.abs(depth) < 1e-6, 1e-6, depth)
        return np.stack([self.size / 2 + x * scale, self.size / 2 - y * scale], -1), depth


@dataclass(frozen=True)
class Room:
    """A box seen from inside, with boxes standing in it. Face order: -x, +x, floor, ceiling, -z, +z."""

    low: np.ndarray  # (3,) metres
    high: np.ndarray  # (3,) metres
    textures: np.ndarray  # (6, TEXTURE_SIDE, TEXTURE_SIDE, 3) float32 in [0, 1]
    box_low: np.ndarray  # (boxes, 3) metres
    box_high: np.ndarray  # (boxes, 3) metres
    box_colours: np.ndarray  # (boxes, 3) in [0, 1]
    light: np.ndarray  # (3,) unit vector towards the light
    ambient: float  # share of light that reaches a surface turned away from the light
    gain: float  # overall brightness

    @property
    def texels_per_metre(self) -> float:
        return TEXTURE_SIDE / float((self.high - self.low).max())


@dataclass(frozen=True)
class Capsules:
    """Cylinders with round ends; equal ends make a sphere. Radii and colours hold for the whole clip."""

    starts: np.ndarray  # (frames, capsules, 3) metres
    ends: np.ndarray  # (frames, capsules, 3) metres
    radii: np.ndarray  # (capsules,) metres
    colours: np.ndarray  # (capsules, 3) in [0, 1]


@dataclass(frozen=True)
class _Rays:
    """Directions of the camera's rays, pixel by pixel in reading order."""

    x: np.ndarray  # (pixels,) camera axes; the component along the optical axis is -1
    y: np.ndarray  # (pixels,)
    length2: np.ndarray  # (pixels,) squared length
    world: np.ndarray  # (1 or frames, 3, pixels) the same directions in world axes


def look_at(position: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Rotation (3, 3) of an upright camera at `position` that looks at `target`."""
    backward = (position - target) / np.linalg.norm(position - target)
    right = np.cross([0.0, 1.0, 0.0], backward)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(backward, right), backward], 1)


def render(
    camera: Camera, room: Room, body: Capsules, casters: np.ndarray, grain: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of a clip.

    Args:
        camera: poses for every frame of `body`, or a single one.
        room: the surroundings, the same in all frames.
        body: the person.
        casters: (frames, n, 3) points in metres below which the floor gets a soft shadow.
        grain: standard deviation of the sensor noise, in units of full white.
        rng: source of the noise.

    Returns:
        Colours (frames, size, size, 3) uint8 and depths (frames, size, size) float32 in metres.
    """
    frames, size = len(body.starts), camera.size
    rays = _camera_rays(camera)
    colour, depth, is_floor = _trace_room(camera, room, rays)
    _trace_boxes(camera, room, rays, colour, depth, is_floor)
    floor = _floor_points(camera, rays, depth, is_floor, frames)
    if camera.is_static:
        colour, depth = np.repeat(colour, frames, 0), np.repeat(depth, frames, 0)
    _shade_floor(colour, floor, casters, room.light)
    _trace_capsules(camera, room, rays, body, colour, depth)
    colour *= 255 * room.gain
    if grain:
        colour += rng.standard_normal(depth.shape, np.float32)[..., None] * np.float32(255 * grain)
    np.clip(colour, 0, 255, out=colour)
    return colour.astype(np.uint8).reshape(frames, size, size, 3), depth.reshape(frames, size, size)


def _camera_rays(camera: Camera) -> _Rays:
    centres = (np.arange(camera.size) + 0.5 - camera.size / 2) / camera.focal
    x, y = (grid.ravel().astype(np.float32) for grid in np.meshgrid(centres, -centres))
    local = np.stack([x, y, -np.ones_like(x)])
    return _Rays(x, y, (local * local).sum(0), camera.rotation.astype(np.float32) @ local)


def _trace_room(camera: Camera, room: Room, rays: _Rays) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Colour (f, pixels, 3), depth (f, pixels) and whether it is floor; f is 1 for a static camera."""
    origin = (camera.position - room.low).astype(np.float32)  # from here on the room starts at zero
    extent = (room.high - room.low).astype(np.float32)
    steps = []
    for axis in range(3):
        direction = rays.world[:, axis]
        wall = np.where(direction > 0, extent[axis], np.float32(0)) - origin[:, axis, None]
        steps.append(wall / _nonzero(direction))
    depth = np.minimum(np.minimum(steps[0], steps[1]), steps[2])
    on_x, on_y = depth == steps[0], depth == steps[1]

    x, y, z = (origin[:, axis, None] + depth * rays.world[:, axis] for axis in range(3))
    forwards = rays.world > 0
    face = np.where(
        on_x, forwards[:, 0], np.where(on_y, forwards[:, 1] + np.int32(2), forwards[:, 2] + np.int32(4))
    )
    scale = np.float32(room.texels_per_metre)
    u, v = (
        np.clip((along * scale).astype(np.int32), 0, TEXTURE_SIDE - 1)
        for along in (np.where(on_x, z, x), np.where(on_y, z, y))
    )
    colour = room.textures.reshape(-1, 3).take((face * TEXTURE_SIDE + u) * TEXTURE_SIDE + v, axis=0)
    return colour, depth, face == 2


def _nonzero(direction: np.ndarray) -> np.ndarray:
    """The same directions, with rays parallel to a wall tilted slightly: a far hit, no division by zero."""
    return np.where(np.abs(direction) < 1e-6, np.float32(1e-6), direction)


def _trace_boxes(
    camera: Camera, room: Room, rays: _Rays, colour: np.ndarray, depth: np.ndarray, is_floor: np.ndarray
) -> None:
    """Draw the boxes into `colour` (f, pixels, 3) and `depth` (f, pixels); take them out of `is_floor`."""
    poses, pixels = depth.shape
    flat_colour, flat_depth, flat_floor = colour.reshape(-1, 3), depth.reshape(-1), is_floor.reshape(-1)
    centres = np.broadcast_to((room.box_low + room.box_high) / 2, (poses, *room.box_low.shape))
    centres = camera.to_camera(centres)
    rectangles = _rectangles(
        camera, centres, centres, np.linalg.norm(room.box_high - room.box_low, axis=-1) / 2
    )
    for box, box_colour in enumerate(room.box_colours.astype(np.float32)):
        frame, pixel = _pixels_in(rectangles[:, box], camera.size)
        enter, leave, entered_by = np.float32(-np.inf), np.float32(np.inf), 0
        for axis in range(3):
            direction = _nonzero(rays.world[frame, axis, pixel])
            origin = camera.position[:, axis].astype(np.float32)[frame]
            low = (np.float32(room.box_low[box, axis]) - origin) / direction
            high = (np.float32(room.box_high[box, axis]) - origin) / direction
            nearer = np.minimum(low, high)
            entered_by = np.where(nearer > enter, axis, entered_by)
            enter, leave = np.maximum(enter, nearer), np.minimum(leave, np.maximum(low, high))
        at = frame * pixels + pixel
        hit = np.flatnonzero((enter < leave) & (enter > NEAR) & (enter < flat_depth[at]))
        at = at[hit]
        flat_depth[at] = enter[hit]
        flat_colour[at] = box_colour * BOX_LIGHT[entered_by[hit], None]
        flat_floor[at] = False


def _floor_points(
    camera: Camera, rays: _Rays, depth: np.ndarray, is_floor: np.ndarray, frames: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Frame, pixel, x and z of every visible floor point; those of a static camera recur in every frame."""
    frame, pixel = np.nonzero(is_floor)
    x, z = (
        camera.position[:, axis].astype(np.float32)[frame]
        + depth[frame, pixel] * rays.world[frame, axis, pixel]
        for axis in (0, 2)
    )
    if not camera.is_static:
        return frame, pixel, x, z
    return np.repeat(np.arange(frames), len(frame)), *(np.tile(once, frames) for once in (pixel, x, z))


def _shade_floor(colour: np.ndarray, floor: tuple, casters: np.ndarray, light: np.ndarray) -> None:
    """Darken `colour` (frames, pixels, 3) where the floor lies below a caster, softer for high casters."""
    frame, pixel, x, z = floor
    height = np.maximum(casters[..., 1], 0).astype(np.float32)
    spots = (casters - casters[..., 1:2] * (light / light[1])).astype(np.float32)
    sharpness = 1 / (0.10 + 0.12 * height) ** 2
    strength = 0.45 / (1 + 0.8 * height)
    shade = np.ones(len(frame), np.float32)
    for n in range(casters.shape[1]):
        off_x, off_z = x - spots[:, n, 0][frame], z - spots[:, n, 2][frame]
        falloff = (off_x * off_x + off_z * off_z) * sharpness[:, n][frame]
        near = np.flatnonzero(falloff < 6)  # beyond, the shadow is below half a grey level
        shade[near] *= 1 - strength[:, n][frame[near]] * np.exp(-falloff[near])
    colour[frame, pixel] *= shade[:, None]


def _rectangles(camera: Camera, starts: np.ndarray, ends: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Pixel bounds (frames, n, 4) as left, right, top, bottom (right and bottom excluded) of capsules.

    `starts` and `ends` (frames, n, 3) are in camera axes. The picture of a capsule in front of the camera
    lies within the bounds of its two end spheres; one that reaches behind the camera gets the whole picture.
    """
    points = np.stack([starts, ends])
    depth = -points[..., 2]
    bounds = []
    for axis, sign in ((0, 1), (1, -1)):
        across = sign * points[..., axis]
        middle = np.arctan2(across, depth)
        half = np.arcsin(np.minimum(radii / np.maximum(np.hypot(across, depth), 1e-9), 1))
        low, high = (
            camera.size / 2 + camera.focal * np.tan(np.clip(edge, -1.57, 1.57))
            for edge in ((middle - half).min(0), (middle + half).max(0))
        )
        bounds += [np.floor(low), np.ceil(high)]
    bounds = np.clip(np.stack(bounds, -1), 0, camera.size).astype(np.int64)
    bounds[(depth <= radii).any(0)] = (0, camera.size, 0, camera.size)
    bounds[_is_out_of_sight(camera, points, radii)] = 0
    return bounds


def _is_out_of_sight(camera: Camera, points: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Which capsules (frames, n) with ends (2, frames, n, 3) lie beyond a plane that bounds the view."""
    depth = -points[..., 2]
    slope = camera.size / 2 / camera.focal
    hidden = (depth <= NEAR - radii).all(0)
    for axis in (0, 1):
        for sign in (-1, 1):
            beyond = (sign * points[..., axis] - slope * depth) / np.hypot(slope, 1)
            hidden |= (beyond > radii).all(0)
    return hidden


def _pixels_in(rectangles: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Frame and pixel numbers of all pixels in one rectangle per frame (frames, 4)."""
    left, right, top, bottom = rectangles.T
    width = right - left
    height = bottom - top
    # first all rows of all rectangles, then their pixels
    row_frame = np.repeat(np.arange(len(rectangles)), height)
    row = np.arange(len(row_frame)) - np.repeat(np.cumsum(height) - height, height) + top[row_frame]
    row_width = width[row_frame]
    row_begin = row * size + left[row_frame] - (np.cumsum(row_width) - row_width)
    return np.repeat(row_frame, row_width), np.repeat(row_begin, row_width) + np.arange(row_width.sum())


def _trace_capsules(
    camera: Camera, room: Room, rays: _Rays, body: Capsules, colour: np.ndarray, depth: np.ndarray
) -> None:
    """Draw the body into `colour` (frames, pixels, 3) and `depth` (frames, pixels)."""
    frames, pixels = depth.shape
    flat_colour, flat_depth = colour.reshape(-1, 3), depth.reshape(-1)
    starts, ends = camera.to_camera(body.starts), camera.to_camera(body.ends)
    rectangles = _rectangles(camera, starts, ends, body.radii)
    starts, ends = starts.astype(np.float32), ends.astype(np.float32)
    light = np.broadcast_to((room.light @ camera.rotation).astype(np.float32), (frames, 3))
    upwards = np.broadcast_to(camera.rotation[:, 1].astype(np.float32), (frames, 3))
    for n, radius in enumerate(body.radii.astype(np.float32)):
        frame, pixel = _pixels_in(rectangles[:, n], camera.size)
        if not len(frame):
            continue
        start, axis = starts[:, n], ends[:, n] - starts[:, n]
        frame, pixel, distance, along = _hit_capsule(rays, frame, pixel, start, axis, radius)
        at = frame * pixels + pixel
        nearest = np.flatnonzero((distance > NEAR) & (distance < flat_depth[at]))
        frame, pixel, distance, along, at = (v[nearest] for v in (frame, pixel, distance, along, at))
        flat_depth[at] = distance

        point = distance[:, None] * np.stack([rays.x[pixel], rays.y[pixel], -np.ones_like(distance)], -1)
        normal = (point - start[frame] - along[:, None] * axis[frame]) / radius
        direct = np.maximum((normal * light[frame]).sum(-1), 0)
        # light from the ceiling shows the form in the shade too
        sky = 0.8 + 0.2 * (normal * upwards[frame]).sum(-1)
        brightness = np.float32(room.ambient) * sky + np.float32(1 - room.ambient) * direct
        flat_colour[at] = body.colours[n].astype(np.float32) * brightness[:, None]


def _hit_capsule(
    rays: _Rays, frame: np.ndarray, pixel: np.ndarray, start: np.ndarray, axis: np.ndarray, radius: np.float32
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """First hits of candidate rays with a capsule from `start` along `axis`, both (frames, 3) in camera axes.

    Returns frame, pixel, depth and position along the axis in [0, 1] of the rays that hit.
    Source: the ray-capsule intersection of Inigo Quilez, iquilezles.org/articles/intersectors.
    """
    x, y, length2 = rays.x[pixel], rays.y[pixel], rays.length2[pixel]
    axis2, start2 = (axis * axis).sum(-1), (start * start).sum(-1)
    axis_start = (axis * start).sum(-1)
    along_ray = x * axis[:, 0][frame] + y * axis[:, 1][frame] - axis[:, 2][frame]
    # axis2 * start - axis_start * axis, dotted with the ray: constants per frame, so one product per pixel
    across = axis2[:, None] * start - axis_start[:, None] * axis
    b = across[:, 2][frame] - x * across[:, 0][frame] - y * across[:, 1][frame]
    a = axis2[frame] * length2 - along_ray * along_ray
    c = axis2 * (start2 - radius * radius) - axis_start * axis_start
    # The round ends lie within the endless cylinder's outline: no hit here, no hit at all.
    inside = b * b - a * c[frame]
    keep = np.flatnonzero(inside >= 0)
    frame, pixel, x, y, length2, along_ray, a, b = (
        v[keep] for v in (frame, pixel, x, y, length2, along_ray, a, b)
    )

    distance = (-b - np.sqrt(inside[keep])) / np.maximum(a, 1e-9)
    along = (distance * along_ray - axis_start[frame]) / np.maximum(axis2[frame], 1e-9)
    end = np.flatnonzero((along <= 0) | (along >= 1))
    along = np.clip(along, 0, 1)
    centre = start[frame[end]] + np.round(along[end])[:, None] * axis[frame[end]]
    x, y, length2 = x[end], y[end], length2[end]
    b = x * centre[:, 0] + y * centre[:, 1] - centre[:, 2]
    inside = b * b - length2 * ((centre * centre).sum(-1) - radius * radius)
    distance[end] = np.where(inside >= 0, (b - np.sqrt(np.maximum(inside, 0))) / length2, -1)
    return frame, pixel, distance, along
