"""From official formats to UNIEGO: small trees of real files for each dataset, notebooks 00 to 04 and 06.

All nine teachers are of the real classes and widths, one block deep, with random weights from a folder.
"""

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import trees
from pretrained import write_weights

from uniego_utils.cards import load_card
from uniego_utils.pipeline.runner import NotebookFailed, run_notebook
from uniego_utils.runs import is_finished, read_json, read_tensors

PROJECT = Path(__file__).parents[1]
WIDTHS = {
    "ego_depth": 1024, "ego_dino": 1024, "ego_siglip": 1152, "exo_rgb": 768, "exo_skego": 512,
    "exo_depth": 1024, "exo_skl": 256, "exo_dino": 1024, "exo_siglip": 1152,
}  # fmt: skip
BUILD = {
    "egoexo_fitness": trees.build_fitness,
    "assembly101": trees.build_assembly,
    "egoexo4d": trees.build_egoexo4d,
}

LEVELS = {"assembly101": ("", "fine"), "egoexo4d": ("",)}  # of segments; "" for the card's


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return write_weights(tmp_path_factory.mktemp("pretrained") / "weights")


def pyskl_pickle(path: Path, clip_ids: list[str]) -> Path:
    """Two people a clip, as pyskl's own scripts would have written them."""
    random = np.random.default_rng(0)
    annotations = [
        {
            "frame_dir": clip_id,
            "total_frames": 18,
            "img_shape": (96, 128),
            "original_shape": (96, 128),
            "label": 0,
            "keypoint": random.uniform(5, 90, (2, 18, 17, 2)).astype(np.float16),
            "keypoint_score": random.uniform(0.2, 1, (2, 18, 17)).astype(np.float16),
        }
        for clip_id in clip_ids
    ]
    path.write_bytes(pickle.dumps({"split": {"train": clip_ids}, "annotations": annotations}))
    return path


@pytest.mark.parametrize("dataset", BUILD)
def test_from_official_files_to_uniego(dataset, weights, tmp_path):
    root, outputs = tmp_path / "data", tmp_path / "outputs"
    root.mkdir()
    labels = BUILD[dataset](root)
    given = {}
    if dataset == "egoexo_fitness":  # skeletons come from a file; elsewhere published, or estimated
        names = [f"Rec{r:03d}_{a:03d}_ego_{v}" for r in range(5) for a in range(3) for v in "lmr"]
        given = {"skeletons": str(pyskl_pickle(tmp_path / "poses.pkl", names))}
    common = {
        "dataset": dataset, "preset": "smoke", "outputs": str(outputs), "data_root": str(root), "seed": 0,
        "interactive": False,
    }  # fmt: skip

    def run(name: str, **parameters: object) -> None:
        notebook = PROJECT / "notebooks" / f"{name}.ipynb"
        run_notebook(notebook, tmp_path / f"{name}.ipynb", {**common, **parameters}, threads=1, timeout=600)

    run("00_data", weights=str(weights), **given)
    folder = outputs / dataset
    manifests = {
        split: pd.read_csv(folder / "00_data" / f"{split}.csv") for split in ("train", "val", "test")
    }
    assert {label for rows in manifests.values() for label in rows["label"]} == set(labels)
    assert len(pd.read_csv(folder / "00_data" / "missing.csv")) == 0
    assert manifests["train"]["skeleton"].notna().all()

    run("01_teacher_extraction", weights=str(weights), teacher="each")
    assert list(load_card(dataset).teachers) == list(WIDTHS)
    for key, width in WIDTHS.items():
        for split in ("train", "val"):
            path = folder / "01_teacher_extraction" / key / f"{split}.safetensors"
            assert read_tensors(path)["features"].shape == (len(manifests[split]), width)

    run("02_proxy", weights=str(weights), teacher="each")
    run("03_merging")
    run("04_spd")
    assert is_finished(folder / "04_spd" / "seed0" / "uniego")
    assert 0 <= read_json(folder / "04_spd" / "seed0" / "uniego" / "metrics.json")["test_top1"] <= 100
    selection = pd.read_csv(folder / "04_spd" / "seed0" / "selection.csv")
    assert list(selection["clip_id"]) == list(manifests["train"]["clip_id"])

    for level in LEVELS.get(dataset, ()):
        run("06_segmentation", level=level, methods=["uniego"])
        name = "seed0" if level == "" else f"seed0-level={level}"
        scores = pd.read_csv(folder / "06_segmentation" / name / "segmentation.csv")
        assert list(scores["head"]) == ["ms_temba"] * 2 + ["ms_tcn"] * 2
        assert scores["accuracy"].between(0, 100).all()


def test_a_folder_of_videos_is_a_dataset(weights, tmp_path):
    root, outputs = tmp_path / "data", tmp_path / "outputs"
    root.mkdir()
    labels = trees.build_folder(root)
    parameters = {"outputs": str(outputs), "data_root": str(root), "interactive": False}
    notebook = PROJECT / "notebooks" / "00_data.ipynb"
    given = {"dataset": "own_videos", "preset": "smoke", "weights": str(weights), **parameters}
    run_notebook(notebook, tmp_path / "00.ipynb", given, threads=1, timeout=600)
    data = outputs / "own_videos" / "00_data"
    manifests = {split: pd.read_csv(data / f"{split}.csv") for split in ("train", "val", "test")}
    assert sum(map(len, manifests.values())) == 36
    assert {label for rows in manifests.values() for label in rows["label"]} == set(labels)
    for rows in manifests.values():  # nobody is in two splits
        others = [other["subject"] for other in manifests.values() if other is not rows]
        assert not set(rows["subject"]) & set(pd.concat(others))
    assert manifests["val"]["skeleton"].map(lambda name: (data / name).is_file()).all()


def test_too_many_unusable_clips_end_notebook_00_with_counts_and_names(weights, tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    trees.build_egoexo4d(root)
    videos = sorted(root.rglob("cam02.mp4"))
    videos[0].write_bytes(b"")
    trees.halve(videos[2])
    parameters = {"outputs": str(tmp_path / "outputs"), "data_root": str(root), "interactive": False}
    given = {"dataset": "egoexo4d", "preset": "smoke", "weights": str(weights), **parameters}
    notebook = PROJECT / "notebooks" / "00_data.ipynb"
    with pytest.raises(NotebookFailed, match="(?s)6 of 36 clips cannot be used.*allow_missing=0.167"):
        run_notebook(notebook, tmp_path / "00.ipynb", given, threads=1, timeout=600)
    missing = pd.read_csv(tmp_path / "outputs" / "egoexo4d" / "00_data" / "missing.csv")
    assert missing["reason"].str.contains("empty file|truncated").sum() == 6
    run_notebook(notebook, tmp_path / "00.ipynb", {**given, "allow_missing": 0.2}, threads=1, timeout=600)
