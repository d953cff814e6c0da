"""Segmenters: a frozen encoder's window features and a temporal head trained on them, with what it predicts.

Each has a run folder: `model.safetensors` (the head of the best validation epoch), `history.jsonl`,
`predictions.safetensors` (a class number per step of every validation and test video) and `metrics.json`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from uniego_utils.backbones.pretrained import state_digest
from uniego_utils.cards import HeadConfig
from uniego_utils.experiment import Experiment
from uniego_utils.runs import (
    finish_run,
    read_json,
    read_notes,
    read_tensors,
    require_finished,
    start_run,
    write_tensors,
)
from uniego_utils.segmentation.heads import predict_head, train_head
from uniego_utils.segmentation.metrics import segment_metrics
from uniego_utils.segmentation.timelines import BACKGROUND, Timeline, moments
from uniego_utils.sources import load_student
from uniego_utils.training import write_history

PREDICTED = ("val", "test")  # splits that are predicted
Labels = Mapping[str, Mapping[str, Tensor]]  # split -> video_id -> class numbers (steps,)


def load_encoder(experiment: Experiment, folder: Path) -> nn.Module:
    """The frozen encoder of a finished student's run folder, or of an imported checkpoint's."""
    encoder = experiment.backbone()
    encoder.load_state_dict(load_student(folder, "run the notebook that trains it, or import the checkpoint"))
    return encoder.requires_grad_(False).eval()


def label_steps(
    timelines: Mapping[str, Sequence[Timeline]], stride_s: float, classes: Sequence[str]
) -> dict[str, dict[str, Tensor]]:
    """Class numbers (steps,) int64 of every video: what is on in the middle of each step.

    Args:
        timelines: split -> its videos.
        classes: names by number, BACKGROUND among them.

    Raises:
        ValueError: a label outside the classes, or splits without a single step of an action.
    """
    number = {name: place for place, name in enumerate(classes)}
    labels: dict[str, dict[str, Tensor]] = {}
    for split, videos in timelines.items():
        named = {entry.video_id: entry.labels_at(moments(entry, stride_s)) for entry in videos}
        used = set().union(*(set(names) for names in named.values()))
        if unknown := used - number.keys():
            raise ValueError(f"{split}: labels {', '.join(sorted(unknown))} are outside the classes")
        if used <= {BACKGROUND}:
            raise ValueError(
                f"{split}: none of the {len(videos)} videos has an action in the middle of a step of "
                f"{stride_s} s; mend segments.csv or take a shorter stride_s"
            )
        labels[split] = {
            video: torch.tensor([number[name] for name in names]) for video, names in named.items()
        }
    return labels


def train_segmenter(
    folder: Path,
    features: Mapping[str, Mapping[str, Tensor]],
    labels: Labels,
    classes: Sequence[str],
    head: str,
    config: HeadConfig,
    seed: int,
    device: torch.device,
    inputs: Mapping[str, object],
) -> dict[str, float]:
    """Train a head on the train videos, choose its epoch on the val videos, and predict val and test once.

    A finished folder of the same configuration is reused.

    Args:
        features: split -> video_id -> (steps, D); labels: the same -> (steps,).
        classes: names by number.
        head: a key of `heads.HEADS`.
        inputs: what else decides the result, for `config.json`, e.g. where the features come from.

    Returns:
        `val_F1@10`, ..., `test_accuracy` of `metrics.segment_metrics`, in percent.

    Raises:
        ValueError: features and labels of different videos or lengths; a folder of another configuration.
    """
    for split, videos in labels.items():
        for video, numbers in videos.items():
            rows = features[split].get(video)
            if rows is None or len(rows) != len(numbers):
                steps = "no" if rows is None else len(rows)
                raise ValueError(f"{split}: video {video} has {len(numbers)} labels and {steps} features")
    description = {
        "head": head,
        "config": asdict(config),
        "seed": seed,
        "classes": list(classes),
        "labels": {split: state_digest(videos) for split, videos in labels.items()},
        "features": {
            split: state_digest({video: features[split][video] for video in videos})
            for split, videos in labels.items()
        },
        **inputs,
    }
    if not start_run(folder, description):
        train, val = (
            [[source[split][video] for video in labels[split]] for source in (features, labels)]
            for split in ("train", "val")
        )
        background = list(classes).index(BACKGROUND)
        model, history = train_head(*train, *val, len(classes), head, config, seed, device, background)
        predicted, scores = {}, {}
        for split in PREDICTED:
            guesses = predict_head(model, [features[split][video] for video in labels[split]])
            predicted |= {f"{split}|{video}": g for video, g in zip(labels[split], guesses, strict=True)}
            metrics = segment_metrics(guesses, list(labels[split].values()), background)
            scores |= {f"{split}_{name}": value for name, value in metrics.items()}
        write_history(folder, history)
        write_tensors(folder / "model.safetensors", model.state_dict())
        write_tensors(folder / "predictions.safetensors", predicted, {"classes": json.dumps(list(classes))})
        finish_run(folder, scores)
    return read_json(folder / "metrics.json")


def load_predictions(folder: Path, split: str) -> dict[str, np.ndarray]:
    """Names (steps,) that a finished segmenter predicts for every video of a split.

    Raises:
        FileNotFoundError: the run is not finished.
    """
    path = require_finished(folder, "run notebook 06_segmentation") / "predictions.safetensors"
    classes = np.array(json.loads(read_notes(path)["classes"]))
    return {
        key.partition("|")[2]: classes[numbers.numpy()]
        for key, numbers in read_tensors(path).items()
        if key.startswith(f"{split}|")
    }
