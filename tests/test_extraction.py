"""Extraction at scale: shards, interruptions, several devices, and what refuses to be reused."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from uniego_utils import teachers
from uniego_utils.cards import Card, from_mapping, load_card
from uniego_utils.data.manifests import Manifest, load_manifest
from uniego_utils.data.video import VideoError
from uniego_utils.experiment import Experiment
from uniego_utils.recipes import PAPER
from uniego_utils.runs import read_notes, read_tensors
from uniego_utils.teachers import extraction
from uniego_utils.teachers.extraction import (
    classify_clips,
    extract,
    join_shards,
    missing_shards,
    prepare_teacher,
)

TRAIN = {"epochs": 1, "batch_size": 8, "optimizer": "adamw", "lr": 0.001}
CLIPS = {"train": 22, "val": 8}


@pytest.fixture(scope="module")
def card() -> Card:
    """One teacher, small: the TimeSformer on ego frames."""
    video = {"num_frames": 4, "image_size": 32, "resize": 36, "mean": [0.45] * 3, "std": [0.225] * 3}
    preset = {
        "backbone": "timesformer", "size": "tiny", "data": {}, "video": video, "proxy": TRAIN, "merge": {},
        "spd": TRAIN,
        "teachers": {"timesformer": {"num_frames": 4, "subtract_background": False, "train": TRAIN}},
    }  # fmt: skip
    rgb = {"modality": "rgb", "viewpoint": "ego", "model": "timesformer", "width": 16, "label": "Ego RGB"}
    content = {
        "name": "small", "title": "small", "source": "drawn", "licence": "none", "classes": ["dark", "light"],
        "teachers": {"ego_rgb": rgb}, "method": {}, "presets": {"tiny": preset},
    }  # fmt: skip
    return from_mapping(Card, content, "card")


def draw(root, split: str, count: int) -> None:
    """Folders of four noisy pictures, dark or light, and their manifest."""
    generator, rows = np.random.default_rng(len(split)), []
    for number in range(count):
        folder = root / f"{split}_{number}"
        folder.mkdir(parents=True)
        for frame in range(4):
            noise = generator.integers(0, 60, (36, 40, 3)) + 120 * (number % 2)
            Image.fromarray(noise.astype(np.uint8)).save(folder / f"{frame}.png")
        label = ("dark", "light")[number % 2]
        rows.append((folder.name, folder.name, "s", label, folder.name, None, 0.0, 1.0, 4.0))
    names = ["clip_id", "take", "subject", "label", "ego_video", "exo_video", "start_s", "end_s", "ego_fps"]
    pd.DataFrame(rows, columns=names).to_csv(root / f"{split}.csv", index=False)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    root = tmp_path_factory.mktemp("clips")
    for split, count in CLIPS.items():
        draw(root, split, count)
    return root


@pytest.fixture
def experiment(card, clips, tmp_path) -> Experiment:
    experiment = Experiment(
        card, card.preset(), card.method, PAPER, "paper", 0, clips, tmp_path, torch.device("cpu"), False
    )
    experiment.data.mkdir()
    for split in CLIPS:
        (experiment.data / f"{split}.csv").write_bytes((clips / f"{split}.csv").read_bytes())
    return experiment


@pytest.fixture
def fitted(experiment):
    """A job, its model and the train manifest."""
    manifest = experiment.manifest("train")
    job = teachers.plan("ego_rgb", experiment.card, experiment.preset, progress=False)
    return job, teachers.fit_teacher(job, manifest, experiment.outputs / "run" / "model"), manifest


CPU = [torch.device("cpu")]


def whole(job, model, manifest: Manifest) -> torch.Tensor:
    """All features at once: what shards have to add up to."""
    dataset = teachers.teacher_module(job.teacher.model).clips(job, manifest)
    with torch.inference_mode():
        return torch.cat(
            [
                teachers.teacher_module(job.teacher.model).encode(model, dataset[row][None], job)
                for row in range(len(dataset))
            ]
        )


@pytest.mark.parametrize("shard", [1, 5, 22, 100])
def test_shards_add_up_to_all_features_in_order(fitted, tmp_path, shard):
    job, model, manifest = fitted
    assert extract(job, model, manifest, tmp_path, CPU, shard) == len(manifest)
    assert len(list((tmp_path / "shards").iterdir())) == -(-len(manifest) // shard)
    features = join_shards(job, manifest, tmp_path, shard)
    assert torch.allclose(features, whole(job, model, manifest), atol=1e-5)
    assert not list((tmp_path / "shards").iterdir())
    assert missing_shards(tmp_path, manifest, shard) == []


def test_two_devices_share_the_shards(fitted, experiment):
    job, model, manifest = fitted
    extract(job, model, manifest, experiment.outputs / "run", CPU * 2, 5)
    features = join_shards(job, manifest, experiment.outputs / "run", 5)
    assert torch.allclose(features, whole(job, model, manifest), atol=1e-5)


def test_workers_decode_the_same_clips(fitted, tmp_path):
    job, model, manifest = fitted
    video = replace(job.preset.video, workers=2)
    job = replace(job, preset=replace(job.preset, video=video))
    extract(job, model, manifest, tmp_path, CPU, 10)
    assert torch.allclose(join_shards(job, manifest, tmp_path, 10), whole(job, model, manifest), atol=1e-5)


def test_an_interruption_loses_the_shard_in_the_making_alone(fitted, tmp_path, monkeypatch):
    job, model, manifest = fitted
    module, seen = teachers.teacher_module("timesformer"), []
    original = module.encode

    def stops(model, clips, job):
        seen.append(len(clips))
        if sum(seen) > 12:
            raise KeyboardInterrupt
        return original(model, clips, job)

    monkeypatch.setattr(module, "encode", stops)
    with pytest.raises(KeyboardInterrupt):
        extract(job, model, manifest, tmp_path, CPU, 5)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "shards").iterdir()}
    assert len(kept) == 2  # ten clips
    monkeypatch.setattr(module, "encode", original)
    assert extract(job, model, manifest, tmp_path, CPU, 5) == 12
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert torch.allclose(join_shards(job, manifest, tmp_path, 5), whole(job, model, manifest), atol=1e-5)


def test_a_feature_that_is_not_finite_stops_at_its_shard_by_name(fitted, tmp_path, monkeypatch):
    job, model, manifest = fitted
    module = teachers.teacher_module("timesformer")
    original = module.encode
    bad = whole(job, model, manifest)[7]

    def spoilt(model, clips, job):
        features = original(model, clips, job)
        features[torch.isclose(features, bad, atol=1e-4).all(1)] = torch.nan
        return features

    monkeypatch.setattr(module, "encode", spoilt)
    with pytest.raises(ValueError, match=r"1 of 5 clips have non-finite values \(train_7\)"):
        extract(job, model, manifest, tmp_path, CPU, 5)
    assert len(list((tmp_path / "shards").iterdir())) == 1  # the shard before it is kept


def test_a_damaged_clip_stops_the_extraction_by_name(card, tmp_path):
    draw(tmp_path, "train", 6)
    manifest = load_manifest(tmp_path / "train.csv", card.classes, tmp_path, card.views)
    job = teachers.plan("ego_rgb", card, card.preset(), progress=False)
    (tmp_path / "train_4" / "2.png").write_bytes(b"nothing")
    with pytest.raises(VideoError, match="train_4/2.png is damaged"):
        extract(job, teachers.teacher_module("timesformer").build(job), manifest, tmp_path, CPU, 2)
    assert len(list((tmp_path / "shards").iterdir())) == 2


def test_a_finished_teacher_is_reused_and_described(experiment, capsys):
    folder = prepare_teacher(experiment, "ego_rgb")
    told = capsys.readouterr().out
    assert "30 clips" in told and "MB, about" in told
    table = extraction.teacher_table(experiment, ["ego_rgb"])
    assert table.loc["ego_rgb", ["clips_train", "clips_val", "repeated"]].tolist() == [22, 8, 0]
    written = (folder / "train.safetensors").stat().st_mtime_ns
    prepare_teacher(experiment, "ego_rgb")
    assert "finished before, reused" in capsys.readouterr().out
    assert (folder / "train.safetensors").stat().st_mtime_ns == written
    assert read_notes(folder / "train.safetensors")["pooling"] == "class token"
    assert read_tensors(folder / "train.safetensors")["features"].shape == (22, 16)


@pytest.mark.parametrize("change", ["library", "weights", "span", "clips"])
def test_a_changed_fingerprint_is_refused(experiment, monkeypatch, change):
    folder = prepare_teacher(experiment, "ego_rgb")
    expected = change
    if change == "library":
        original = teachers.metadata.version
        version = lambda name: "0.0.1" if name == "timm" else original(name)  # noqa: E731
        monkeypatch.setattr(teachers.metadata, "version", version)
        expected = "'timm': '0.0.1'"
    elif change == "weights":
        path = folder / "model" / "model.safetensors"
        tensors = read_tensors(path)
        tensors["norm.bias"] += 1
        extraction.write_tensors(path, tensors)
    elif change == "clips":
        path = experiment.data / "val.csv"
        path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
        expected = "manifests"
    else:
        experiment = replace(
            experiment, preset=replace(experiment.preset, video=replace(experiment.preset.video, span_s=0.5))
        )
        expected = "span_s"
    with pytest.raises(ValueError, match=f"(?s)made with another configuration.*{expected}"):
        prepare_teacher(experiment, "ego_rgb")


def test_every_setting_but_speed_is_in_the_fingerprint():
    job = teachers.plan("exo_skego", load_card("egoexo_fitness"), load_card("egoexo_fitness").preset())
    model = torch.nn.Linear(2, 2)
    told = teachers.fingerprint(job, model)
    for change in ({"margin": 2.0}, {"layout": "hand-21"}, {"model_args": {"act_layer": "relu"}}):
        other = replace(job, settings=replace(job.settings, **change))
        assert teachers.fingerprint(other, model) != told
    faster = replace(job, settings=replace(job.settings, frames_per_pass=1))
    assert teachers.fingerprint(faster, model) == told


def test_a_full_disk_is_noticed_before_it_starts(experiment, monkeypatch):
    usage = extraction.shutil.disk_usage
    monkeypatch.setattr(extraction.shutil, "disk_usage", lambda path: usage(path)._replace(free=1000))
    with pytest.raises(OSError, match="features of 30 clips need .* make room or choose other `outputs`"):
        prepare_teacher(experiment, "ego_rgb")


def test_a_teacher_answers_by_itself_with_its_own_classifier(experiment):
    folder = experiment.outputs / "10_report" / "exo_inference" / "ego_rgb"
    with pytest.raises(FileNotFoundError, match="01_teacher_extraction"):
        classify_clips(experiment, "ego_rgb", "val", folder)
    prepare_teacher(experiment, "ego_rgb")
    scores = classify_clips(experiment, "ego_rgb", "val", folder)

    job = teachers.plan("ego_rgb", experiment.card, experiment.preset, progress=False)
    model = teachers.load_teacher(job, experiment.outputs / "01_teacher_extraction" / "ego_rgb" / "model")
    manifest = experiment.manifest("val")
    right, loss = 0, 0.0
    with torch.inference_mode():
        for row, clip in enumerate(teachers.teacher_module("timesformer").clips(job, manifest)):
            logits = model(clip[None])[1][0]
            label = manifest.labels[row]
            right += int(logits.argmax() == label)
            loss += (logits.logsumexp(0) - logits[label]).item()
            if row + 1 == len(manifest):
                break
    expected = {"val_top1": 100 * right / len(manifest), "val_nll": loss / len(manifest)}
    assert scores == pytest.approx(expected, rel=1e-4)
    assert classify_clips(experiment, "ego_rgb", "val", folder) == scores
