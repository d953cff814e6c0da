"""The embedded benchmark: kinematics and rays against slow definitions, then the promises of `build`."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from uniego_utils.cards import VIEWS
from uniego_utils.mocap import clips
from uniego_utils.mocap.cameras import ego_camera
from uniego_utils.mocap.clips import COLUMNS, build
from uniego_utils.mocap.motions import (
    BONES,
    ENDS,
    JOINTS,
    POINTS,
    TURNING,
    forward_kinematics,
    load_motions,
    sample_motion,
)
from uniego_utils.mocap.people import SHIRTS, Performance, make_subject
from uniego_utils.mocap.render import Camera, Capsules, look_at, render
from uniego_utils.mocap.rooms import make_room
from uniego_utils.mocap.settings import EGO_ONLY, SPLITS, UNLABELLED, MocapSettings

MOTIONS = Path(__file__).parents[1] / "data_manifests" / "mocap" / "humanoid_motions.npz"
TINY = MocapSettings(pool=1, train=2, val=1, test=1, unlabelled=1, image_size=64, frames=4, rooms=2)


@pytest.fixture(scope="module")
def motions():
    return load_motions(MOTIONS)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("mocap")
    return root, build(root, MOTIONS, TINY, workers=1, progress=False)


def decode(path):
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def content(root):
    """Path below root -> hash, of everything a build wrote."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


# Kinematics


def rotate(quaternion, vector):
    """A vector turned by a quaternion w x y z, written as Rodrigues' formula."""
    quaternion = np.array(quaternion, float) / np.linalg.norm(quaternion)
    sine = np.linalg.norm(quaternion[1:])
    if sine < 1e-12:
        return np.array(vector, float)
    axis, angle = quaternion[1:] / sine, 2 * np.arctan2(sine, quaternion[0])
    vector = np.array(vector, float)
    return (
        vector * np.cos(angle)
        + np.cross(axis, vector) * np.sin(angle)
        + axis * (axis @ vector) * (1 - np.cos(angle))
    )


def rotation_vector(vector):
    """The quaternion w x y z of a rotation vector."""
    angle = np.linalg.norm(vector)
    return [np.cos(angle / 2), *(np.sin(angle / 2) * vector / max(angle, 1e-12))]


def slow_point(row, name, bends, scale, lengths):
    """One point of one frame: walk from the point up to the root, turning the offset at every joint, first
    by the joint's bend and then by the recording."""
    if name == "root":
        return row[1:4] * scale
    parent, offset = (ENDS.get(name) or TURNING[name])[:2]
    position = np.array(offset) * scale * lengths.get(name.split("_")[-1], 1)
    while True:
        grandparent, offset, columns = TURNING[parent]
        turn = row[columns]
        if len(turn) == 1:
            turn = [np.cos(turn[0] / 2), 0, 0, np.sin(turn[0] / 2)]
        bend = rotation_vector(bends[list(TURNING).index(parent)])
        position = rotate(turn, rotate(bend, position))
        if parent == "root":
            return position + row[1:4] * scale
        position = position + np.array(offset) * scale * lengths.get(parent.split("_")[-1], 1)
        parent = grandparent


@pytest.mark.parametrize("name", ["kick", "cartwheel"])
def test_kinematics_agree_with_a_walk_up_the_tree(motions, name):
    recording = motions[name].frames[5:60:20]
    points, _ = forward_kinematics(recording)
    still = np.zeros((len(TURNING), 3))
    slow = [[slow_point(row, point, still, 1, {}) for point in POINTS] for row in recording]
    np.testing.assert_allclose(points, slow, atol=1e-9)


def test_kinematics_of_bent_bodies_of_other_proportions(motions):
    recording = motions["roll"].frames[5:60:20]
    bends = np.random.default_rng(0).normal(size=(len(recording), len(TURNING), 3))
    bends[:, 3] = 0
    points, head = forward_kinematics(recording, bends, scale=1.1, arm=0.9, leg=1.05)
    lengths = {"elbow": 0.9, "wrist": 0.9, "knee": 1.05, "ankle": 1.05}
    slow = [
        [slow_point(row, point, bend, 1.1, lengths) for point in POINTS]
        for row, bend in zip(recording, bends, strict=True)
    ]
    np.testing.assert_allclose(points, slow, atol=1e-12)
    neck, top = (points[:, POINTS.index(name)] for name in ("neck", "head"))
    np.testing.assert_allclose(head[..., 1] * 0.175 * 1.1, top - neck, atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(head), 1)


def test_the_head_camera_looks_ahead_and_down(motions):
    """Without jitter: along the head's forwards, pitched by `ego_pitch`, upright in the head's axes."""
    points, head = forward_kinematics(motions["cartwheel"].frames[5:60:20])
    settings = MocapSettings(ego_jitter=0.0, ego_pitch=-25.0)
    room = make_room(0, 1, 0.5).room
    camera = ego_camera(Performance(points, head, 0.0), room, settings, np.random.default_rng(0))
    cos, sin = np.cos(np.radians(25)), np.sin(np.radians(25))
    right, up, backward = (head.transpose(0, 2, 1) @ camera.rotation).transpose(2, 0, 1)
    for axis, expected in ((right, [0, 0, 1]), (up, [sin, cos, 0]), (backward, [-cos, sin, 0])):
        np.testing.assert_allclose(axis, np.tile(expected, (len(head), 1)), atol=1e-12)


def test_bones_keep_their_length(motions):
    settings = MocapSettings()
    clip = clips.make_clip(motions, replace(settings, image_size=64), "train", "roll", 0)
    for start, end in BONES:
        length = np.linalg.norm(clip.joints[:, start] - clip.joints[:, end], axis=-1)
        assert length == pytest.approx(length[0], rel=1e-6), (JOINTS[start], JOINTS[end])


def test_looping_recordings_close(motions):
    for motion in motions.values():
        if motion.loops:
            before, after = sample_motion(motion, motion.seconds + np.array([-1e-4, 1e-4]))
            points = [forward_kinematics(row[None])[0] for row in (before, after)]
            assert np.abs(points[0] - points[1]).max() < 0.01  # metres


# Ray casting


def slow_depth(ray, origin, room, body):
    """Depth of the nearest surface along one ray, by planes for the room and by marching for the capsules."""
    planes = [
        ((room.high if ray[axis] > 0 else room.low)[axis] - origin[axis]) / ray[axis] for axis in range(3)
    ]
    nearest = min(planes)
    for low, high in zip(room.box_low, room.box_high, strict=True):
        enter = max(min((low[k] - origin[k]) / ray[k], (high[k] - origin[k]) / ray[k]) for k in range(3))
        leave = min(max((low[k] - origin[k]) / ray[k], (high[k] - origin[k]) / ray[k]) for k in range(3))
        if 0 < enter < leave:
            nearest = min(nearest, enter)
    for start, end, radius in zip(body.starts[0], body.ends[0], body.radii, strict=True):
        distance = 0.0
        while distance < nearest:
            axis, point = end - start, origin + distance * ray
            along = np.clip((point - start) @ axis / max(axis @ axis, 1e-12), 0, 1)
            gap = np.linalg.norm(point - start - along * axis) - radius
            if gap < 1e-5:
                nearest = distance
                break
            distance += gap / np.linalg.norm(ray)
    return nearest


@pytest.fixture(scope="module")
def scene():
    """A camera that looks at three capsules, one of them a ball and one reaching behind the camera."""
    room = make_room(0, 1, 0.5).room
    body = Capsules(
        starts=np.array([[[0, 1.0, 0], [0.5, 1.4, 0.3], [-0.3, 0.9, 1.0]]]),
        ends=np.array([[[0.3, 1.5, 0.2], [0.5, 1.4, 0.3], [-0.4, 0.8, 3.0]]]),
        radii=np.array([0.12, 0.2, 0.05]),
        colours=np.full((3, 3), 0.5),
    )
    position = np.array([0.1, 1.2, 2.0])
    camera = Camera(48, 30.0, position[None], look_at(position, np.array([0.1, 1.1, 0]))[None])
    return camera, room, body


def test_depth_agrees_with_single_rays(scene):
    camera, room, body = scene
    _, depth = render(camera, room, body, body.starts, 0.0, np.random.default_rng(0))
    pixels = [(row, column) for row in range(1, 48, 4) for column in range(0, 48, 4)]
    expected = []
    for row, column in pixels:
        x, y = (column + 0.5 - 24) / 30, (24 - row - 0.5) / 30
        ray = camera.rotation[0] @ [x, y, -1]
        expected.append(slow_depth(ray, camera.position[0], room, body))
    traced = depth[0][tuple(np.transpose(pixels))]
    close = np.isclose(traced, expected, atol=2e-3)
    assert close.mean() > 0.98  # a ray that grazes an outline may fall on either side
    assert (depth[0] < 2.2).mean() > 0.05, "no capsule in the picture"


def test_moving_and_static_cameras_agree(scene):
    camera, room, body = scene
    twice = Capsules(body.starts.repeat(2, 0), body.ends.repeat(2, 0), body.radii, body.colours)
    moving = replace(camera, position=camera.position.repeat(2, 0), rotation=camera.rotation.repeat(2, 0))
    results = [render(c, room, twice, twice.starts, 0.0, np.random.default_rng(0)) for c in (camera, moving)]
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_allclose(results[0][1], results[1][1], atol=1e-5)


def test_projected_joints_land_on_the_body(motions):
    settings = MocapSettings()
    for label in ("walk", "jump"):
        clip = clips.make_clip(motions, settings, "train", label, 0)
        pixels, depth = clip.cameras["exo"].project(clip.joints)
        column, row = np.clip(np.floor(pixels).astype(int), 0, settings.image_size - 1).transpose(2, 0, 1)
        drawn = clip.depths["exo"][np.arange(settings.frames)[:, None], row, column]
        # The skin is in front of the joint, by a limb's thickness or by another limb.
        assert (drawn < depth + 0.02).mean() > 0.97
        assert ((drawn > depth - 0.2) & (drawn < depth)).mean() > 0.6


# Files


def test_manifests_and_files(built):
    root, manifests = built
    assert list(manifests) == list(SPLITS)
    for split, path in manifests.items():
        table = pd.read_csv(path)
        assert tuple(table.columns) == COLUMNS
        assert table["clip_id"].is_unique and len(table) == 15 * TINY.clips_per_class(split)
        assert all((root / place).is_file() for place in table["ego_video"])
        assert (table["start_s"] == 0).all() and np.allclose(table["end_s"], TINY.seconds)
        for_teachers = table[["exo_video", "skeleton", "ego_depth", "exo_depth"]]
        if split in EGO_ONLY:
            assert for_teachers.isna().all(axis=None)
        else:
            assert all((root / place).is_file() for place in for_teachers.to_numpy().flat)
        if split == UNLABELLED:
            assert table[["label", "caption"]].isna().all(axis=None)
        else:
            assert table["label"].head(15).nunique() == 15, "classes must alternate"
            assert split in EGO_ONLY or table["caption"].str.startswith("a person in a").any()


def test_labels_of_pairs_are_hidden_but_right(built, motions):
    """The clip that the labels' file names is rendered anew from its class; nothing else names the class."""
    root, manifests = built
    path = manifests[UNLABELLED]
    hidden = pd.read_csv(path.with_name("unlabelled_labels.csv"), index_col="clip_id")["label"]
    assert sorted(hidden) == sorted(motions) and list(hidden) != sorted(hidden)
    assert not any(label in path.read_text() for label in motions)
    for row in pd.read_csv(path).head(3).itertuples():
        clip = clips.make_clip(motions, TINY, UNLABELLED, hidden[row.clip_id], 0)
        assert np.abs(decode(root / row.ego_video) - clip.pictures["ego"].astype(float)).mean() < 8
        assert row.subject == clip.subject


def test_the_ego_view_is_the_same_without_the_exo_view(motions):
    for split, label in (("train", "kick"), ("test", "walk")):
        both, alone = (clips.make_clip(motions, TINY, split, label, 0, views) for views in (VIEWS, VIEWS[:1]))
        np.testing.assert_array_equal(both.pictures["ego"], alone.pictures["ego"])
        assert list(alone.pictures) == ["ego"] and both.subject == alone.subject


def test_ego_and_exo_last_equally_long(built):
    root, manifests = built
    row = pd.read_csv(manifests["val"]).iloc[3]
    for column in ("ego_video", "exo_video", "ego_depth", "exo_depth"):
        with av.open(str(root / row[column])) as container:
            stream = container.streams.video[0]
            assert float(stream.duration * stream.time_base) == pytest.approx(row["end_s"], abs=1e-5)
            assert stream.average_rate == TINY.fps
        assert decode(root / row[column]).shape == (TINY.frames, TINY.image_size, TINY.image_size, 3)


def test_skeleton_file(built):
    root, manifests = built
    skeleton = load_file(root / pd.read_csv(manifests["val"])["skeleton"][0])
    assert skeleton["joints_3d"].shape == (TINY.frames, 16, 3) and skeleton["joints_3d"].dtype == np.float32
    assert (skeleton["joints_3d"][..., 1] > 0).all(), "below the floor"
    for view in ("ego", "exo"):
        assert skeleton[f"{view}_joints_2d"].shape == (TINY.frames, 16, 2)
        shown = skeleton[f"{view}_joints_2d"][skeleton[f"{view}_visible"] == 1]
        assert (shown >= 0).all() and (shown < TINY.image_size).all()
    assert skeleton["exo_visible"].mean() > 0.9


def test_captions_name_what_is_worn(motions, built):
    for person in range(5):
        subject = make_subject(TINY, "test", person)
        distance = {name: np.abs(np.array(c) - subject.colours["shirt"]).max() for name, c in SHIRTS.items()}
        assert min(distance, key=distance.get) == subject.shirt
    assert set(clips.ACTIONS) == set(motions)


def test_nobody_is_in_two_splits(built):
    people = {split: set(pd.read_csv(path)["subject"]) for split, path in built[1].items()}
    assert sum(map(len, people.values())) == len(set.union(*people.values()))
    bodies = {
        make_subject(MocapSettings(), split, n).scale
        for split in SPLITS
        for n in range(MocapSettings().subjects(split))
    }
    assert len(bodies) == sum(MocapSettings().subjects(split) for split in SPLITS)


def test_same_seed_same_bytes_in_two_processes(built, tmp_path):
    build(tmp_path, MOTIONS, TINY, workers=2, progress=False)
    assert content(tmp_path) == content(built[0])


def test_other_seed_other_clips(built, motions):
    root, manifests = built
    row = pd.read_csv(manifests["train"]).iloc[0]
    other = clips.make_clip(motions, replace(TINY, seed=1), "train", row["label"], 0)
    assert np.abs(decode(root / row["ego_video"]) - other.pictures["ego"].astype(float)).mean() > 10


def test_clips_do_not_depend_on_the_counts(motions):
    few = clips.make_clip(motions, TINY, "val", "kick", 0)
    many = clips.make_clip(motions, replace(TINY, val=9, pool=20), "val", "kick", 0)
    np.testing.assert_array_equal(few.pictures["ego"], many.pictures["ego"])


def test_resumes_after_an_interruption(built, tmp_path, monkeypatch):
    root = tmp_path / "resumed"
    shutil.copytree(built[0], root)
    expected = content(root)
    for clip in ("train/train_kick_001", "test/test_walk_000"):
        shutil.rmtree(root / "clips" / clip)
    stray = root / "clips" / "train" / ".train_kick_001.unfinished"
    stray.mkdir()
    (stray / "ego.mp4").write_bytes(b"half a vid")
    (root / "pool.csv").unlink()
    redone = []
    make_clip = clips.make_clip
    monkeypatch.setattr(clips, "make_clip", lambda *args: redone.append(args[2:]) or make_clip(*args))
    build(root, MOTIONS, TINY, workers=1, progress=False)
    assert redone == [("train", "kick", 1, ("ego", "exo")), ("test", "walk", 0, ("ego",))]
    assert content(root) == expected


def test_refuses_a_folder_of_other_settings(built):
    with pytest.raises(ValueError, match=r"settings\.json.*joint_noise: 0\.12 there, 0\.5 asked for.*Delete"):
        build(built[0], MOTIONS, replace(TINY, joint_noise=0.5), progress=False)


def test_settings_file_is_complete(built):
    written = json.loads((built[0] / "settings.json").read_text())
    assert written["seed"] == 0 and len(written["motions_sha256"]) == 64


@pytest.mark.parametrize("wrong", [{"train": 0}, {"val_subjects": 0}, {"image_size": 40}, {"frames": 1}])
def test_refuses_impossible_settings(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MocapSettings(**wrong)


def test_refuses_an_unknown_split(motions):
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        clips.make_clip(motions, TINY, "dev", "kick", 0)


def test_refuses_missing_motions(tmp_path):
    with pytest.raises(FileNotFoundError, match="motions.npz"):
        build(tmp_path / "root", tmp_path / "motions.npz", TINY)
