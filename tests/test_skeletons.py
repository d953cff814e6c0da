"""Skeletons: layouts against what their names say, files there and back, hostile and damaged files."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from uniego_utils.data.skeletons import (
    LAYOUTS,
    convert_npz,
    convert_pyskl,
    fill_gaps,
    layout_of,
    read_skeleton,
    write_skeleton,
)
from uniego_utils.runs import read_notes, read_tensors, write_tensors
from uniego_utils.teachers import stgcn

COCO = LAYOUTS["coco-17"]
CENTRES = {
    "mocap-16": "chest",
    "coco-17": "nose",
    "nturgbd-25": "spine_shoulders",
    "openpose-18": "neck",
    "hand-21": "wrist",
    "assembly101-21": "wrist",
}
HANDS = ("hand-21", "assembly101-21")


@pytest.fixture
def pixels() -> np.ndarray:
    """Two persons, ten frames, in a picture of 200 x 100 pixels."""
    return np.random.default_rng(0).uniform(1, 100, (2, 10, 17, 2)).astype(np.float32)


@pytest.fixture
def scores() -> np.ndarray:
    return np.random.default_rng(1).uniform(0.1, 1, (2, 10, 17)).astype(np.float32)


# --- layouts


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_are_trees_that_say_what_they_are(name):
    layout = LAYOUTS[name]
    count = len(layout.joints)
    assert name.endswith(f"-{count}") and len(set(layout.joints)) == count
    assert len(layout.bones) == count - 1 and stgcn.hops(layout).min() == 0  # connected, or it would refuse
    assert layout.joints[layout.centre] == CENTRES[name]
    assert torch.allclose(stgcn.adjacency(layout).sum((0, 1)), torch.ones(count))


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name not in HANDS])
def test_left_and_right_are_alike(name):
    layout = LAYOUTS[name]

    def mirrored(joint: int) -> int:
        side, _, rest = layout.joints[joint].partition("_")
        other = {"left": "right", "right": "left"}.get(side)
        return layout.joints.index(f"{other}_{rest}") if other else joint

    bones = {frozenset(bone) for bone in layout.bones}
    assert {frozenset(map(mirrored, bone)) for bone in bones} == bones
    assert [layout.joints[wrist] for wrist in layout.wrists] == ["left_wrist", "right_wrist"]
    assert layout.joints[layout.head] in ("head", "nose")
    for bone in layout.bones:  # no bone crosses the body
        assert len({layout.joints[joint].partition("_")[0] for joint in bone} & {"left", "right"}) < 2


@pytest.mark.parametrize("name", HANDS)
def test_fingers_are_chains_from_the_wrist(name):
    layout = LAYOUTS[name]
    for a, b in layout.bones:
        assert a == layout.centre or layout.joints[a].partition("_")[0] == layout.joints[b].partition("_")[0]
    assert layout.head is None and layout.wrists is None


def test_joints_of_a_hand_are_as_far_from_the_wrist_as_the_formats_say():
    assert stgcn.hops(LAYOUTS["hand-21"]).tolist() == [0] + [1, 2, 3, 4] * 5
    tips, knuckles = [3, 4, 4, 4, 4], [1, 2] + [1, 2, 3] * 4  # the thumb has one joint less
    assert stgcn.hops(LAYOUTS["assembly101-21"]).tolist() == [*tips, 0, *knuckles, 1]


def test_unknown_layout_is_refused():
    with pytest.raises(ValueError, match="coco-18.*coco-17"):
        layout_of("coco-18")


# --- files


def test_one_person_has_a_person_axis(tmp_path: Path):
    joints = torch.randn(6, 17, 3)
    write_tensors(tmp_path / "a.safetensors", {"joints_3d": joints})
    assert torch.equal(read_skeleton(tmp_path / "a.safetensors", "joints_3d", COCO).joints, joints[None])


def test_padding_is_left_away_with_its_scores(tmp_path: Path, pixels, scores):
    joints, confidence = torch.from_numpy(pixels), torch.from_numpy(scores)
    joints[0] = 0
    tensors = {"exo_joints_2d": joints, "exo_scores": confidence, "size": torch.tensor([200.0, 100])}
    write_tensors(tmp_path / "a.safetensors", tensors)
    skeleton = read_skeleton(tmp_path / "a.safetensors", "exo_joints_2d", COCO)
    assert torch.equal(skeleton.joints, joints[1:]) and torch.equal(skeleton.scores, confidence[1:])


@pytest.mark.parametrize(
    ("joints", "message"),
    [
        (torch.zeros(6, 17, 3), "zeros alone"),
        (torch.zeros(2, 6, 17, 3), "zeros alone"),
        (torch.zeros(0, 17, 3), "no frames"),
        (torch.ones(6, 16, 3), "shape"),
        (torch.ones(6, 17, 2), "shape"),
        (torch.full((6, 17, 3), torch.nan), "not finite"),
    ],
)
def test_useless_skeletons_are_refused_by_name(tmp_path: Path, joints, message):
    write_tensors(tmp_path / "somebody.safetensors", {"joints_3d": joints})
    with pytest.raises(ValueError, match=f"somebody.*{message}"):
        read_skeleton(tmp_path / "somebody.safetensors", "joints_3d", COCO)
    with pytest.raises(ValueError, match="no 'exo_joints_2d', only joints_3d"):
        read_skeleton(tmp_path / "somebody.safetensors", "exo_joints_2d", COCO)


def test_what_is_written_is_read(tmp_path: Path, pixels, scores):
    path = tmp_path / "a.safetensors"
    record = write_skeleton(path, COCO, pixels, scores, (200, 100), notes={"made": "here"})
    assert record == {"frames": 10, "persons": 2, "empty_frames": 0, "guessed": 0.0, "reason": ""}
    skeleton = read_skeleton(path, "exo_joints_2d", COCO)
    assert np.array_equal(skeleton.joints, pixels) and np.array_equal(skeleton.scores, scores)
    assert skeleton.size.tolist() == [200, 100]
    assert read_notes(path) == {"made": "here", **{name: str(value) for name, value in record.items()}}


def test_gaps_in_an_even_motion_are_closed_exactly():
    times = np.arange(9, dtype=np.float32)[:, None, None]
    joints = (5 + times * np.array([[1, -2], [0.5, 3]], np.float32))[None]  # (1, 9, 2, 2)
    found = np.ones((1, 9, 2), bool)
    found[0, [2, 3, 6], 0] = found[0, 4:7, 1] = False
    assert np.allclose(fill_gaps(np.where(found[..., None], joints, 0), found), joints)


def test_before_and_after_a_joint_stays_and_one_never_found_lies_between_the_others():
    joints = np.random.default_rng(0).normal(size=(1, 5, 3, 2)).astype(np.float32)
    found = np.ones((1, 5, 3), bool)
    found[0, [0, 4], 0] = found[0, :, 2] = False
    filled = fill_gaps(joints, found)
    assert np.array_equal(filled[0, [0, 4], 0], joints[0, [1, 3], 0])
    assert np.allclose(filled[0, :, 2], filled[0, :, :2].mean(1), atol=1e-6)
    assert np.array_equal(filled[found], joints[found])


def test_guesses_have_no_confidence_and_are_counted(tmp_path: Path, pixels, scores):
    pixels[0, 3], scores[0, 3] = 0, 0  # the first person is away for a frame
    scores[1, :, 4] = 0  # one joint of the second is never seen
    record = write_skeleton(tmp_path / "a.safetensors", COCO, pixels, scores, (200, 100))
    assert record["guessed"] == pytest.approx((17 + 10) / 340) and record["empty_frames"] == 0
    skeleton = read_skeleton(tmp_path / "a.safetensors", "exo_joints_2d", COCO)
    assert np.array_equal(skeleton.scores == 0, scores == 0)
    assert np.allclose(skeleton.joints[0, 3], (pixels[0, 2] + pixels[0, 4]) / 2, atol=1e-4)


def test_who_is_mostly_away_is_left_out(tmp_path: Path, pixels):
    pixels[0, :6] = 0
    record = write_skeleton(tmp_path / "a.safetensors", COCO, pixels, None, (200, 100))
    assert record["persons"] == 1
    assert np.array_equal(read_skeleton(tmp_path / "a.safetensors", "exo_joints_2d", COCO).joints, pixels[1:])
    assert (
        write_skeleton(tmp_path / "b.safetensors", COCO, pixels, None, (200, 100), max_empty=0.6)["persons"]
        == 2
    )
    record = write_skeleton(tmp_path / "c.safetensors", COCO, pixels[:1], None, (200, 100))
    assert record["reason"] == "nobody in 6 of 10 frames" and not (tmp_path / "c.safetensors").exists()


def test_pixels_without_a_picture_are_refused(tmp_path: Path, pixels):
    with pytest.raises(ValueError, match="a.safetensors.*width and height"):
        write_skeleton(tmp_path / "a.safetensors", COCO, pixels)
    with pytest.raises(ValueError, match="persons, frames"):
        write_skeleton(tmp_path / "a.safetensors", COCO, pixels[0], None, (200, 100))


# --- converters


def annotation(name: str, keypoint: np.ndarray, scores: np.ndarray | None, label: int = 3) -> dict:
    told = {"frame_dir": name, "total_frames": keypoint.shape[1], "img_shape": (100, 200), "label": label}
    told |= {"original_shape": (100, 200), "keypoint": keypoint}
    return told if scores is None else told | {"keypoint_score": scores}


@pytest.fixture
def content(pixels, scores) -> dict:
    """Four clips: one whole, one with a second person of zeros, one of nobody, one in a split alone."""
    alone = pixels * np.array([1, 0], np.float32)[:, None, None, None]
    annotations = [
        annotation("whole", pixels.astype(np.float16), scores.astype(np.float16)),
        annotation("alone", alone, scores, np.int64(5)),
        annotation("nobody", np.zeros_like(pixels), np.zeros_like(scores)),
    ]
    return {
        "split": {"xsub_train": ["whole", "alone"], "xview_val": ["whole", "lost"]},
        "annotations": annotations,
    }


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_pyskl_there_and_back(tmp_path: Path, content, pixels, protocol):
    (tmp_path / "ntu.pkl").write_bytes(pickle.dumps(content, protocol))
    table = convert_pyskl(tmp_path / "ntu.pkl", "coco-17", tmp_path / "out").set_index("clip_id")
    assert table["skeleton"].to_dict() == {
        "whole": "whole.safetensors", "alone": "alone.safetensors", "nobody": "", "lost": "",
    }  # fmt: skip
    assert table["splits"].tolist() == ["xsub_train xview_val", "xsub_train", "", "xview_val"]
    assert table["label"][:3].tolist() == [3, 5, 3]
    assert "nobody" in table["reason"]["nobody"] and table["reason"]["lost"] == "no annotation"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"whole.safetensors", "alone.safetensors"}
    whole = read_skeleton(tmp_path / "out" / "whole.safetensors", "exo_joints_2d", COCO)
    assert np.allclose(whole.joints, pixels, atol=0.05) and whole.size.tolist() == [200, 100]
    alone = read_skeleton(tmp_path / "out" / "alone.safetensors", "exo_joints_2d", COCO).joints
    assert np.array_equal(alone, pixels[:1])


def test_pickles_of_numpy_1_are_read(tmp_path: Path, content):
    data = pickle.dumps(content, 2).replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    assert b"cnumpy.core.multiarray\n" in data
    (tmp_path / "old.pkl").write_bytes(data)
    assert (convert_pyskl(tmp_path / "old.pkl", "coco-17", tmp_path / "out")["reason"] == "").sum() == 2


def test_skeletons_in_space_keep_their_metres(tmp_path: Path):
    joints = np.random.default_rng(0).normal(size=(1, 4, 25, 3))
    content = {"split": {}, "annotations": [annotation("a", joints, None)]}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    convert_pyskl(tmp_path / "a.pkl", "nturgbd-25", tmp_path)
    assert list(read_tensors(tmp_path / "a.safetensors")) == ["joints_3d"]
    read = read_skeleton(tmp_path / "a.safetensors", "joints_3d", LAYOUTS["nturgbd-25"]).joints
    assert np.allclose(read, joints, atol=1e-6)


class Hostile:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_foreign_objects_are_refused_and_not_run(tmp_path: Path, content, protocol):
    content["annotations"].append(Hostile(tmp_path / "trap"))
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(ValueError, match=r"bad\.pkl holds other Python objects.*\(posix\.mkdir\)"):
        convert_pyskl(tmp_path / "bad.pkl", "coco-17", tmp_path / "out")
    assert not (tmp_path / "trap").exists()


def test_functions_of_allowed_modules_are_refused(tmp_path: Path):
    for module, name in (
        ("builtins", "eval"),
        ("numpy", "load"),
        ("_codecs", "decode"),
        ("numpy.core", "os"),
    ):
        (tmp_path / "bad.pkl").write_bytes(f"c{module}\n{name}\n.".encode())
        with pytest.raises(ValueError, match=rf"\({module}\.{name}\)"):
            convert_pyskl(tmp_path / "bad.pkl", "coco-17", tmp_path / "out")


def test_damaged_and_other_files_are_refused(tmp_path: Path, content):
    data = pickle.dumps(content)
    for place, size in enumerate(np.linspace(0, len(data) - 1, 12, dtype=int)):
        path = tmp_path / f"{place}.pkl"
        path.write_bytes(data[:size])
        with pytest.raises(ValueError, match=f"{place}.pkl is damaged.*download it again"):
            convert_pyskl(path, "coco-17", tmp_path / "out")
    (tmp_path / "list.pkl").write_bytes(pickle.dumps([1]))
    with pytest.raises(ValueError, match="list.pkl is no mapping"):
        convert_pyskl(tmp_path / "list.pkl", "coco-17", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="absent.pkl"):
        convert_pyskl(tmp_path / "absent.pkl", "coco-17", tmp_path / "out")


def test_names_that_lead_elsewhere_and_twins_are_refused(tmp_path: Path, pixels, scores):
    for names, message in (
        (["../a"], "leads out"),
        (["/tmp/a"], "leads out"),
        (["a", "a"], "two annotations of a"),
    ):
        content = {"split": {}, "annotations": [annotation(name, pixels, scores) for name in names]}
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
        with pytest.raises(ValueError, match=message):
            convert_pyskl(tmp_path / "a.pkl", "coco-17", tmp_path / "out")
    del content["annotations"][1]["label"]
    content["annotations"][1]["frame_dir"] = "b"
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match="annotation 1 lacks label"):
        convert_pyskl(tmp_path / "a.pkl", "coco-17", tmp_path / "out")


def test_npz_there_and_back(tmp_path: Path, pixels, scores):
    np.savez(tmp_path / "a.npz", keypoint=pixels, keypoint_score=scores, size=(200, 100))
    np.savez(tmp_path / "b.npz", keypoint=pixels[0], size=(200, 100))
    np.savez(tmp_path / "c.npz", keypoint=np.zeros_like(pixels), size=(200, 100))
    table = convert_npz([tmp_path / f"{name}.npz" for name in "abc"], "coco-17", tmp_path / "out")
    assert table["clip_id"].tolist() == ["a", "b", "c"] and table["skeleton"].tolist()[2] == ""
    a, b = (read_skeleton(tmp_path / "out" / name, "exo_joints_2d", COCO) for name in table["skeleton"][:2])
    assert np.array_equal(a.joints, pixels) and np.array_equal(a.scores, scores)
    assert np.array_equal(b.joints, pixels[:1]) and (b.scores == 1).all()


def test_npz_of_objects_and_damaged_ones_are_refused(tmp_path: Path, pixels):
    np.savez(tmp_path / "objects.npz", keypoint=np.array([{"a": 1}], dtype=object))
    np.savez(tmp_path / "other.npz", joints=pixels)
    np.savez(tmp_path / "whole.npz", keypoint=pixels)
    (tmp_path / "half.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:900])
    for name, message in (
        ("objects", "no npz of plain arrays"),
        ("half", "no npz"),
        ("other", "only joints"),
    ):
        with pytest.raises(ValueError, match=f"{name}.npz.*{message}"):
            convert_npz([tmp_path / f"{name}.npz"], "coco-17", tmp_path / "out")
