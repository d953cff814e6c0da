"""Notebook 00's work: whose skeletons are used, and what is refused before videos are opened."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from trees import build_folder

from uniego_utils.cards import CARDS, load_card
from uniego_utils.data.preparation import (
    given_skeletons,
    prepare_data,
    skeleton_columns,
)
from uniego_utils.experiment import Experiment, create_experiment
from uniego_utils.runs import write_tensors


def opened(dataset: str, outputs: Path) -> Experiment:
    return create_experiment(
        dataset=dataset, preset="smoke", seed=0, outputs=str(outputs), data_root=str(outputs)
    )


@pytest.mark.parametrize(
    ("dataset", "columns"),
    [
        ("mocap", {"skeleton": "mocap-16"}),
        ("egoexo_fitness", {"skeleton": "coco-17"}),
        ("egoexo4d", {"skeleton": "coco-17"}),
        ("assembly101", {"skeleton": "assembly101-21", "body_skeleton": "coco-17"}),
    ],
)
def test_teachers_say_which_skeletons_they_read(tmp_path, dataset, columns):
    assert skeleton_columns(opened(dataset, tmp_path)) == columns


def test_without_exo_teachers_no_skeletons_are_needed(tmp_path):
    own = "name: head\ntitle: h\nsource: s\nlicence: l\nmethod: {}\n"
    (tmp_path / "head.yaml").write_text(f"like: {CARDS / 'shared' / 'ego_only'}\n{own}")
    card = load_card("head", tmp_path)
    experiment = replace(opened("own_videos", tmp_path), card=card, preset=card.preset("smoke"))
    assert skeleton_columns(experiment) == {} and card.views == ("ego",)
    assert list(card.teachers) == ["ego_depth", "ego_dino", "ego_siglip"]


@pytest.mark.parametrize("shape", [(6, 17, 2), (2, 6, 17, 2)])
def test_given_files_are_found_by_the_clips_name(tmp_path, shape):
    experiment, joints = opened("own_videos", tmp_path), np.random.default_rng(0).uniform(1, 90, shape)
    np.savez(tmp_path / "a.npz", keypoint=joints.astype(np.float32), size=np.array([100, 90]))
    skeleton = given_skeletons(experiment, str(tmp_path))
    found = skeleton(pd.Series({"clip_id": "a"}))["exo_joints_2d"]
    assert torch.allclose(found, torch.from_numpy(joints).float().reshape(-1, 6, 17, 2))
    with pytest.raises(ValueError, match="none of this clip in the skeletons given"):
        skeleton(pd.Series({"clip_id": "b"}))


def test_skeletons_that_are_not_there_are_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no pickle and no folder of .npz or .safetensors"):
        given_skeletons(opened("own_videos", tmp_path), str(tmp_path / "gone"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"builder": "ego4d"}, "unknown builder 'ego4d'; choose one of mocap, egoexo_fitness"),
        ({"skeleton": "hand-21"}, "publishes no skeletons of hand-21, and estimated ones are of coco-17"),
    ],
)
def test_what_cannot_be_prepared_is_refused(tmp_path, change, message):
    (tmp_path / "labels.csv").write_text("ego_video,exo_video,label\na.mp4,b.mp4,x\n")
    experiment = opened("own_videos", tmp_path)
    experiment = replace(experiment, card=replace(experiment.card, **change))
    with pytest.raises(ValueError, match=message):
        prepare_data(experiment, {}, 0.0, "")


def test_an_unknown_setting_of_a_builder_lists_the_valid_ones(tmp_path):
    with pytest.raises(
        ValueError,
        match="settings of its builder: unknown val; "
        "valid fields are fps, allow_portrait, min_seconds, labels, val_share",
    ):
        prepare_data(opened("own_videos", tmp_path), {"val": 0.1}, 0.0, "")


def test_missing_annotations_say_where_to_get_them(tmp_path):
    with pytest.raises(FileNotFoundError, match="meta_records.json does not exist; get it from https://"):
        prepare_data(opened("egoexo_fitness", tmp_path), {}, 0.0, "")


def test_another_file_of_skeletons_is_never_taken_for_the_first(tmp_path):
    experiment, clip = opened("own_videos", tmp_path), pd.Series({"clip_id": "a"})
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        joints = np.full((6, 17, 2), 10.0 * number, np.float32)
        np.savez(tmp_path / str(number) / "a.npz", keypoint=joints, size=np.array([100, 90]))
    first, second = (given_skeletons(experiment, str(tmp_path / str(number))) for number in (1, 2))
    assert first(clip)["exo_joints_2d"].max() == 10 and second(clip)["exo_joints_2d"].max() == 20
    assert repr(first) != repr(second) and first.stamp(clip) != second.stamp(clip)


def test_given_zeros_are_no_skeleton(tmp_path):
    experiment, clip = opened("own_videos", tmp_path), pd.Series({"clip_id": "a"})
    write_tensors(tmp_path / "own/a.safetensors", {"exo_joints_2d": torch.zeros(6, 17, 2)})
    with pytest.raises(ValueError, match="zeros alone: nobody was found"):
        given_skeletons(experiment, str(tmp_path / "own"))(clip)
    np.savez(tmp_path / "a.npz", keypoint=np.zeros((6, 17, 2), np.float32), size=np.array([100, 90]))
    with pytest.raises(ValueError, match="zeros alone: nobody was found"):
        given_skeletons(experiment, str(tmp_path))(clip)


def test_clips_whose_table_names_no_skeleton_are_told(tmp_path):
    build_folder(tmp_path)
    table = pd.read_csv(tmp_path / "labels.csv")
    write_tensors(tmp_path / "a.safetensors", {"exo_joints_2d": torch.ones(6, 17, 2)})
    write_tensors(tmp_path / "zeros.safetensors", {"exo_joints_2d": torch.zeros(6, 17, 2)})
    names = ["", "zeros.safetensors", "gone.safetensors"] + ["a.safetensors"] * (len(table) - 3)
    table.assign(skeleton=names, split="train").to_csv(tmp_path / "labels.csv", index=False)
    with pytest.raises(ValueError, match="3 of 36 clips cannot be used") as told:
        prepare_data(opened("own_videos", tmp_path), {}, 0.0, "")
    for reason in ("none named", "zeros alone: nobody was found", "file absent"):
        assert f"1 x no skeleton: {reason}" in str(told.value)
