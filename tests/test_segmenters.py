"""Run folders of temporal heads: learn a signal, are reused, and refuse what does not belong together."""

import numpy as np
import pytest
import torch

from uniego_utils.cards import HeadConfig
from uniego_utils.segmentation import train as segmenters
from uniego_utils.segmentation.heads import HEADS
from uniego_utils.segmentation.metrics import segment_metrics
from uniego_utils.segmentation.timelines import BACKGROUND, Timeline
from uniego_utils.segmentation.train import label_steps, load_predictions, train_segmenter

CLASSES = (BACKGROUND, "a", "b")
CPU = torch.device("cpu")
STRIDE = 0.5


def timeline(number, spans):
    return Timeline(f"v{number}", "gone.mp4", 0.0, 20.0, tuple(spans))


@pytest.fixture(scope="module")
def made():
    """Videos of 40 steps whose features tell the class, with noise; their labels."""
    random = np.random.default_rng(0)
    timelines = {
        split: [
            timeline(n, [(s, s + 3.0, "ab"[(n + k) % 2]) for k, s in enumerate((2.0, 7.0, 13.0))])
            for n in range(count)
        ]
        for split, count in (("train", 6), ("val", 2), ("test", 3))
    }
    labels = label_steps(timelines, STRIDE, CLASSES)
    directions = torch.from_numpy(random.normal(size=(3, 8))).float()
    features = {
        split: {
            video: directions[own] + 0.3 * torch.from_numpy(random.normal(size=(len(own), 8))).float()
            for video, own in videos.items()
        }
        for split, videos in labels.items()
    }
    return features, labels


def train(folder, made, head="ms_tcn", epochs=15, **inputs):
    config = HeadConfig(epochs, batch_size=1, lr=0.005, widths=(8, 12, 16), maps=16, dropout=0.1)
    return train_segmenter(folder, *made, CLASSES, head, config, 0, CPU, inputs)


def test_steps_get_the_label_of_their_middle():
    labels = label_steps({"train": [timeline(0, [(1.0, 2.5, "b")])]}, STRIDE, CLASSES)["train"]["v0"]
    assert labels.dtype == torch.int64 and len(labels) == 40
    assert labels.tolist() == [0, 0, 2, 2, 2, *[0] * 35]


@pytest.mark.parametrize("head", HEADS)
def test_heads_learn_what_features_tell(head, made, tmp_path):
    metrics = train(tmp_path, made, head)
    assert metrics["test_accuracy"] > 85
    predicted = load_predictions(tmp_path, "test")
    truth = {video: np.array(CLASSES)[own.numpy()] for video, own in made[1]["test"].items()}
    expected = segment_metrics([predicted[video] for video in truth], list(truth.values()), BACKGROUND)
    assert {name: metrics[f"test_{name}"] for name in expected} == pytest.approx(expected)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "history.jsonl",
        "model.safetensors",
        "predictions.safetensors",
        "metrics.json",
        "finished",
    }


def test_a_finished_head_is_reused_and_others_are_refused(made, tmp_path, monkeypatch):
    first = train(tmp_path, made, epochs=2)
    monkeypatch.setattr(segmenters, "train_head", None)  # would fail if it were called
    assert train(tmp_path, made, epochs=2) == first
    with pytest.raises(ValueError, match="method: None -> 'uniego'"):
        train(tmp_path, made, epochs=2, method="uniego")
    other = {**made[0], "train": {video: rows + 1 for video, rows in made[0]["train"].items()}}
    with pytest.raises(ValueError, match="features:"):
        train(tmp_path, (other, made[1]), epochs=2)


def test_the_test_split_decides_nothing(made, tmp_path):
    """Other test videos, the same head."""
    features, labels = made
    train(tmp_path / "one", made, epochs=3)
    shuffled = {**features, "test": {video: rows.flip(0) for video, rows in features["test"].items()}}
    train(tmp_path / "other", (shuffled, labels), epochs=3)
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "other")]
    assert models[0] == models[1]


def test_features_and_labels_must_fit(made, tmp_path):
    features, labels = made
    short = {**features, "val": {video: rows[1:] for video, rows in features["val"].items()}}
    with pytest.raises(ValueError, match="val: video v0 has 40 labels and 39 features"):
        train(tmp_path, (short, labels))
    with pytest.raises(ValueError, match="test: video v0 has 40 labels and no features"):
        train(tmp_path, ({**features, "test": {}}, labels))


def test_unknown_labels_and_splits_without_actions_are_refused():
    with pytest.raises(ValueError, match="train: labels c are outside the classes"):
        label_steps({"train": [timeline(0, [(1.0, 2.0, "c")])]}, STRIDE, CLASSES)
    with pytest.raises(ValueError, match="val: none of the 1 videos has an action"):
        label_steps({"val": [timeline(0, [])]}, STRIDE, CLASSES)
    labels = label_steps({"val": [timeline(0, [(1, 2, "a")]), timeline(1, [])]}, STRIDE, CLASSES)
    assert set(labels["val"]["v1"].tolist()) == {0}, "one video without any action is fine"


def test_unfinished_predictions_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="run notebook 06_segmentation"):
        load_predictions(tmp_path, "test")
