"""Students: trained side by side in one pass over the data, each with a run folder of its own.

A student's folder holds `model.safetensors` (the backbone), `objective.safetensors` (its projections, if any)
and `outputs.safetensors` (features and logits of every split), beside `history.jsonl` and `metrics.json`.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from uniego_utils.cards import TrainConfig
from uniego_utils.data.video import ClipDataset, ClipSubset, WithUnlabelled, loader
from uniego_utils.experiment import Experiment
from uniego_utils.runs import digest, finish_run, read_tensors, require_finished, start_run, write_tensors
from uniego_utils.training import Learner, Teach, fit, predict, score, write_history

EVALUATION_BATCH = 64
SPLITS = ("train", "val", "test")


def load_student(folder: Path, cure: str) -> dict[str, Tensor]:
    """Backbone weights of a finished student; otherwise an error with the cure."""
    return read_tensors(require_finished(folder, cure) / "model.safetensors")


def load_outputs(folder: Path, split: str, cure: str) -> dict[str, Tensor]:
    """`features` (N, D) and `logits` (N, C) of a finished student on a split, in manifest order."""
    tensors = read_tensors(require_finished(folder, cure) / "outputs.safetensors")
    return {name: tensors[f"{split}_{name}"] for name in ("features", "logits")}


def describe_training(
    experiment: Experiment, config: TrainConfig, start: dict[str, Tensor] | None, **inputs: object
) -> dict:
    """What decides a student's weights, for its `config.json`: numbers, and digests of its inputs."""
    weights = b"" if start is None else b"".join(start[name].numpy().tobytes() for name in sorted(start))
    return {
        "dataset": experiment.card.name,
        "seed": experiment.seed,
        "backbone": [experiment.preset.backbone, experiment.preset.size],
        "video": experiment.preset.video.decisive(),
        "train": asdict(config),
        "manifest": experiment.manifest("train").digest,
        "start": digest(weights),
        **inputs,
    }


def train_students(
    experiment: Experiment,
    learners: dict[str, Learner],
    configs: dict[str, dict],
    config: TrainConfig,
    folder: Path,
    pass_name: str,
    rows: Sequence[int] | None = None,
    teach: Callable[[], Teach] | None = None,
    unlabelled: str | None = None,
) -> None:
    """Train the learners in one pass over the ego clips and write `<folder>/<name>/` for each.

    Students finished with the same config are reused; an interrupted pass resumes from its last epoch.

    Args:
        learners: by name, at their starts.
        configs: by name, from `describe_training`.
        pass_name: names the pass's checkpoint in `folder`.
        rows: train clips to learn from; None: all.
        teach: makes what `training.fit` calls `teach`; not called where all students are finished.
        unlabelled: a split whose clips are seen too, without their labels, as many an epoch.
    """
    todo = {
        name: learner for name, learner in learners.items() if not start_run(folder / name, configs[name])
    }
    if not todo:
        print(f"{folder.name}: {', '.join(learners)} finished before, reused")
        return
    clips = {split: experiment.clips(split) for split in SPLITS}
    for dataset in clips.values():
        if dataset.cached is not None:
            print(dataset.throughput)
    val_labels = torch.tensor(clips["val"].labels)

    def evaluate(model: nn.Module) -> dict[str, float]:
        logits = predict(model, loader(clips["val"], EVALUATION_BATCH), experiment.device, config.bf16)[
            "logits"
        ]
        return {f"val_{name}": value for name, value in score(logits, val_labels).items()}

    train_clips = clips["train"] if rows is None else ClipSubset(clips["train"], tuple(rows))
    if unlabelled is not None:
        train_clips = WithUnlabelled(clips["train"], experiment.clips(unlabelled))
    checkpoint = folder / f"{pass_name}.checkpoint.safetensors"
    history = fit(
        todo,
        lambda epoch: loader(train_clips, config.batch_size, experiment.seed, epoch),
        config,
        experiment.seed,
        checkpoint,
        experiment.device,
        evaluate,
        accumulate=experiment.recipe.accumulate(config.batch_size),
        teach=None if teach is None else teach(),
        describe=pass_name,
    )
    for name, learner in todo.items():
        write_history(folder / name, history[name])
        finish_student(folder / name, learner, clips, experiment.device, config.bf16)
    checkpoint.unlink(missing_ok=True)


def finish_student(
    folder: Path,
    learner: Learner,
    clips: dict[str, ClipDataset],
    device: torch.device,
    bf16: bool = False,
) -> dict[str, float]:
    """Write a student's weights, its outputs on every split and its scores, then the finished marker."""
    outputs, metrics = {}, {}
    for split, dataset in clips.items():
        predicted = predict(learner.model, loader(dataset, EVALUATION_BATCH), device, bf16)
        outputs |= {f"{split}_{name}": value for name, value in predicted.items()}
        scores = score(predicted["logits"], torch.tensor(dataset.labels))
        metrics |= {f"{split}_{name}": value for name, value in scores.items()}
    write_tensors(folder / "model.safetensors", learner.model.state_dict())
    if projections := learner.objective.state_dict():
        write_tensors(folder / "objective.safetensors", projections)
    write_tensors(folder / "outputs.safetensors", outputs)
    finish_run(folder, metrics)
    return metrics
