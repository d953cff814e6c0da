"""Pictures of a clip: its moments, its middle, and the skeleton drawn into them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from trees import HEIGHT, WIDTH, build_folder

from uniego_utils.data.manifests import Manifest
from uniego_utils.data.video import open_clip
from uniego_utils.experiment import Experiment, create_experiment
from uniego_utils.figures.moments import clip_strips, joints_in_picture, middle_picture, read_moments
from uniego_utils.runs import write_tensors


def opened(dataset: str, outputs: Path) -> Experiment:
    return create_experiment(
        dataset=dataset, preset="smoke", seed=0, outputs=str(outputs), data_root=str(outputs)
    )


def test_joints_in_the_picture_are_the_first_persons(tmp_path):
    experiment, joints = opened("assembly101", tmp_path), torch.rand(2, 5, 17, 2) + 1
    write_tensors(tmp_path / "hands.safetensors", {"joints_3d": torch.rand(2, 5, 21, 3)})
    write_tensors(tmp_path / "body.safetensors", {"exo_joints_2d": joints})
    rows = pd.DataFrame({"skeleton": ["hands.safetensors"], "body_skeleton": ["body.safetensors"]})
    found, layout = joints_in_picture(experiment, Manifest("train", rows, (), tmp_path, ""), 0)
    assert torch.equal(found, joints[0]) and len(layout.joints) == 17
    hands = Manifest("train", rows[["skeleton"]], (), tmp_path, "")
    assert joints_in_picture(experiment, hands, 0) is None


def test_of_a_clip_is_shown_what_there_is(tmp_path):
    """Every panel is a column: head alone; head and room; and with a skeleton drawn into the room's view."""
    build_folder(tmp_path, subjects=2)
    rows = pd.read_csv(tmp_path / "labels.csv").head(1)
    experiment = opened("own_videos", tmp_path)
    ego = {key: teacher for key, teacher in experiment.card.teachers.items() if teacher.viewpoint == "ego"}
    head = replace(experiment, card=replace(experiment.card, teachers=ego))
    joints = torch.rand(1, 20, 17, 2) * 90 + 1
    write_tensors(tmp_path / "a.safetensors", {"exo_joints_2d": joints})
    full = rows.assign(skeleton="a.safetensors", ego_depth="head/00.mp4", exo_depth=np.nan)  # empty

    def strips(experiment, rows):
        return clip_strips(experiment, Manifest("train", rows, (), tmp_path, ""), 0, count=4)

    assert list(strips(head, rows)["strips"]) == ["ego"]
    assert list(strips(head, rows.assign(skeleton="a.safetensors"))["strips"]) == ["ego"]
    assert list(strips(experiment, rows)["strips"]) == ["ego", "exo"]
    shown = strips(experiment, full)
    assert list(shown["strips"]) == ["ego", "exo", "ego depth", "exo + skeleton"]
    assert {pictures.shape for pictures in shown["strips"].values()} == {(4, HEIGHT, WIDTH, 3)}
    moments = shown["overlays"]["exo + skeleton"]
    np.testing.assert_array_equal(moments, joints[0, [2, 7, 12, 17]])  # the middles of four quarters
    assert shown["bones"]


def test_the_middle_picture_is_on_screen_half_way_through_the_clip(tmp_path):
    build_folder(tmp_path, subjects=2)
    rows = pd.read_csv(tmp_path / "labels.csv").head(1)
    manifest = Manifest("train", rows.assign(start_s=0.2, end_s=0.6), (), tmp_path, "")
    video = open_clip(manifest, 0, "exo")
    middle = middle_picture(manifest, 0, "exo")
    np.testing.assert_array_equal(middle, video.read([int(0.4 * video.fps + 1e-4)])[0])
    np.testing.assert_array_equal(middle, read_moments(manifest, 0, "exo_video", 3)[1])
