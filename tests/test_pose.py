"""Estimating skeletons: tracking against drawn boxes, all of it with tiny networks of the real classes."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
import torch
from pretrained import write_pose
from safetensors.torch import load_file, save_file

from uniego_utils.data import pose
from uniego_utils.data.manifests import Manifest
from uniego_utils.data.skeletons import layout_of, read_skeleton
from uniego_utils.runs import read_tensors

SETTINGS = pose.Settings(frames_per_second=5.0, threshold=0.0, frames_per_pass=3)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    """A folder with both models."""
    return str(write_pose(tmp_path_factory.mktemp("weights")))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Manifest:
    """Two clips of one second in two videos, 96 x 64 pixels."""
    root = tmp_path_factory.mktemp("videos")
    random = np.random.default_rng(0)
    rows = []
    for name in ("a", "b"):
        with av.open(str(root / f"{name}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=10)
            stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
            for _ in range(12):
                picture = random.integers(0, 256, (64, 96, 3), dtype=np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        rows.append({"clip_id": f"take/{name}", "exo_video": f"{name}.mp4", "start_s": 0.1, "end_s": 1.1})
    return Manifest("train", pd.DataFrame(rows), (), root, "")


def box(x: float, y: float, side: float) -> list[float]:
    return [x - side / 2, y - side / 2, x + side / 2, y + side / 2]


def track(frames: list[list[list[float]]], persons: int) -> list[dict[int, int]]:
    last: list[np.ndarray] = []
    return [pose.follow(last, np.array(boxes, float).reshape(-1, 4), persons) for boxes in frames]


# --- tracking


def test_people_are_followed_though_boxes_change_their_order():
    near, far = (lambda t: box(20 + 2 * t, 30, 20)), (lambda t: box(80 - 2 * t, 30, 12))
    frames = [[far(t), near(t)] if t % 2 else [near(t), far(t)] for t in range(12)]
    for t, mine in enumerate(track(frames, 2)):
        assert mine == {0: t % 2, 1: 1 - t % 2}  # the larger one in the first frame is the first person


def test_one_person_is_never_taken_for_a_bystander():
    me, other = box(20, 30, 20), box(90, 30, 18)
    assert track([[me, other], [other], [other, me]], 1) == [{0: 0}, {}, {0: 1}]


def test_who_comes_later_is_somebody_new():
    me, other = box(20, 30, 20), box(90, 30, 18)
    assert track([[], [me], [other, me], [other]], 2) == [{}, {0: 0}, {0: 1, 1: 0}, {1: 0}]


def test_two_people_never_share_a_box():
    assert sorted(track([[box(20, 30, 20), box(30, 30, 18)], [box(26, 30, 20)]], 2)[1].values()) == [0]


# --- the whole way


def test_estimate_writes_skeletons_and_resumes(weights, manifest, tmp_path: Path):
    settings = replace(SETTINGS, persons=2)
    table = pose.estimate(manifest, "exo", tmp_path, settings, weights, progress=False)
    assert table["clip_id"].tolist() == ["take/a", "take/b"]
    assert (table["frames"] == 5).all() and (table["reason"] == "").all() and (table["persons"] == 2).all()
    for name in table["skeleton"]:
        skeleton = read_skeleton(tmp_path / name, "exo_joints_2d", layout_of("coco-17"))
        assert skeleton.joints.shape == (2, 5, 17, 2) and skeleton.size.tolist() == [96, 64]
        assert skeleton.scores.min() >= 0 and skeleton.scores.max() <= 1
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    (tmp_path / table["skeleton"][1]).unlink()
    again = pose.estimate(manifest, "exo", tmp_path, settings, weights, progress=False)
    assert again.equals(table)  # the kept file's record is read back, the other is made anew
    kept = tmp_path / table["skeleton"][0]
    assert kept.stat().st_mtime_ns == written[kept]
    alone = pose.estimate(manifest, "exo", tmp_path, SETTINGS, weights, progress=False)  # other settings
    assert (alone["persons"] == 1).all() and kept.stat().st_mtime_ns > written[kept]


def test_skeletons_of_another_video_or_of_other_weights_are_made_anew(weights, manifest, tmp_path: Path):
    path = tmp_path / "take/a.safetensors"
    times = []
    for change in ("nothing", "nothing", "video", "weights"):
        if change == "video":
            video = manifest.path(0, "exo_video")
            os.utime(video, ns=(0, video.stat().st_mtime_ns + 10**9))
        elif change == "weights":
            shutil.copytree(weights, tmp_path / "weights")
            weights = str(tmp_path / "weights")
            file = tmp_path / "weights" / "vitpose-base-simple" / "model.safetensors"
            save_file({name: value + 0.01 for name, value in load_file(file).items()}, file, {"format": "pt"})
        pose.estimate(manifest, "exo", tmp_path, SETTINGS, weights, progress=False)
        times.append(path.stat().st_mtime_ns)
    assert times[0] == times[1] < times[2] < times[3]


def test_how_many_frames_go_at_once_changes_nothing(weights, manifest, tmp_path: Path):
    for count in (1, 5):
        settings = replace(SETTINGS, frames_per_pass=count)
        pose.estimate(manifest, "exo", tmp_path / str(count), settings, weights, progress=False)
    one, five = (read_tensors(tmp_path / str(count) / "take/a.safetensors") for count in (1, 5))
    for name in one:
        assert torch.allclose(one[name], five[name], atol=1e-2), name


def test_joints_move_with_the_picture_and_its_box(weights):
    estimator = pose.load_estimator(SETTINGS, weights, torch.device("cpu"))
    small = np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3), dtype=np.uint8)
    joints, scores = estimator.joints(small, [np.array([[30.0, 10, 60, 50]])])
    assert joints.shape == (1, 17, 2) and scores.shape == (1, 17)
    shifted = np.roll(small, 20, axis=2)
    moved, _ = estimator.joints(shifted, [np.array([[50.0, 10, 80, 50]])])
    assert np.allclose(moved - joints, [20, 0], atol=1e-2)


def test_nobody_gets_no_file(weights, manifest, tmp_path: Path):
    settings = replace(SETTINGS, threshold=1.0)
    table = pose.estimate(manifest, "exo", tmp_path, settings, weights, progress=False)
    assert table["reason"].str.contains("nobody").all() and (table["empty_frames"] == 5).all()
    assert (table["skeleton"] == "").all() and not list(tmp_path.rglob("*.safetensors"))
    told = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    assert pose.estimate(manifest, "exo", tmp_path, settings, weights, progress=False).equals(table)
    assert len(told) == 2 and {path: path.stat().st_mtime_ns for path in told} == told  # not looked for again
    found = pose.estimate(manifest, "exo", tmp_path, SETTINGS, weights, progress=False)
    assert (found["reason"] == "").all()


# --- refusals


def test_weights_of_other_models_are_refused(weights):
    swapped = replace(SETTINGS, detector="vitpose-base-simple")
    with pytest.raises(ValueError, match="vitpose-base-simple does not fit.*'vitpose' model"):
        pose.load_estimator(swapped, weights, torch.device("cpu"))
    with pytest.raises(FileNotFoundError, match="vitpose-huge"):
        pose.load_estimator(replace(SETTINGS, estimator="x/vitpose-huge"), weights, torch.device("cpu"))


def test_damaged_weights_are_refused(weights, tmp_path: Path):
    for name in ("rtdetr_r50vd_coco_o365", "vitpose-base-simple"):
        (tmp_path / name).mkdir()
        for file in pose.FILES:
            (tmp_path / name / file).write_bytes((Path(weights) / name / file).read_bytes())
    file = tmp_path / "vitpose-base-simple" / "model.safetensors"
    state = load_file(file)
    lost = next(name for name in state if name.startswith("head"))
    del state[lost]
    save_file(state, file, {"format": "pt"})
    with pytest.raises(ValueError, match=f"1 missing keys.*{lost}"):
        pose.load_estimator(SETTINGS, str(tmp_path), torch.device("cpu"))
    file.with_name("preprocessor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="lacks preprocessor_config.json"):
        pose.load_estimator(SETTINGS, str(tmp_path), torch.device("cpu"))
