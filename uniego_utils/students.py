"""Students: trained side by side in one pass over the data, each with a run folder.

A student's folder holds `model.safetensors` (the backbone), `objective.safetensors` (its projections, if any)
and `outputs.safetensors` (features and logits of every split), beside `history.jsonl` and `metrics.json`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from uniego_utils.backbones import backbone_module
from uniego_utils.cards import TrainConfig
from uniego_utils.data.video import ClipDataset, ClipSubset, WithPairs, loader
from uniego_utils.experiment import Experiment
from uniego_utils.methods import START, Method, choose
from uniego_utils.objectives import ProxyDistillation
from uniego_utils.runs import digest, finish_run, read_tensors, start_run, write_tensors
from uniego_utils.sources import EVALUATION_BATCH, Sources, Weights, load_proxies, load_student
from uniego_utils.training import Learner, Teach, autocast, fit, predict, score, write_history


def train(
    experiment: Experiment,
    students: Iterable[str] | Mapping[str, Method],
    folder: Path | None = None,
    *,
    sources: Sources | None = None,
    starts: Mapping[str, Path | Weights] | None = None,
    rows: Sequence[int] | None = None,
    learners: Mapping[str, Callable[[nn.Module, nn.Module], Learner]] | None = None,
) -> None:
    """Train students, those that can share a pass over the ego clips together; each gets a run folder.

    Students finished with the same config are reused; an interrupted pass resumes from its last epoch.

    Args:
        students: keys of `experiment.methods`, or a dictionary of methods that needs no register.
        folder: holds the run folders; None: each where the register says.
        sources: whom they learn from; None: the card's teachers and proxies.
        starts: run folder, or weights, of students that others start from, where they are not those of
            `experiment.students`.
        rows: clips to learn from, of the N of the train split and the pairs behind them; None: all.
        learners: by key, what makes a learner of a backbone and an objective, where it is not `Learner`.

    Raises:
        ValueError: an unknown student, one that is not trained, or a run folder of another config.
        FileNotFoundError: a start or a source that was not made yet; names the notebook that makes it.
    """
    methods = students if isinstance(students, Mapping) else choose(students, experiment.methods)
    if merges := [key for key, method in methods.items() if method.objective is None]:
        raise ValueError(f"{', '.join(merges)}: not trained but merged; see merging.merge")
    sources, starts, learners = sources or Sources(experiment), dict(starts or {}), learners or {}
    if lacking := [key for key, method in methods.items() if method.pairs_only and not sources.pairs]:
        raise ValueError(f"{', '.join(lacking)}: open the experiment with a split of pairs without labels")
    passes: dict[tuple, dict[str, Method]] = {}
    for key, method in methods.items():
        place = folder or experiment.folder(method.notebook)
        of_proxies = method.sources if issubclass(method.objective, ProxyDistillation) else ()
        clips = (method.on_pairs, method.pair_labels) if sources.pairs else ()
        shared = (place, method.settings, method.times, clips, of_proxies)
        passes.setdefault(shared, {})[key] = method
    for (place, *_), together in passes.items():
        _train_pass(experiment, together, place, sources, starts, rows, learners)


def _train_pass(
    experiment: Experiment,
    methods: Mapping[str, Method],
    folder: Path,
    sources: Sources,
    starts: dict[str, Path | Weights],
    rows: Sequence[int] | None,
    learners: Mapping[str, Callable[[nn.Module, nn.Module], Learner]],
) -> None:
    """Train students that share settings and clips; arguments as of `train`."""
    first = next(iter(methods.values()))
    on_pairs = bool(sources.pairs) and first.on_pairs
    config = getattr(experiment.preset, first.settings)
    # An epoch over pairs too has twice the steps; whoever learns from labels alone gets as many.
    epochs_for_steps = 2 if sources.pairs and not on_pairs and first.settings != "start" else 1
    config = replace(config, epochs=first.times * epochs_for_steps * config.epochs)
    sources = sources.seen_by(first)
    prepared = {}
    for key, method in methods.items():  # all sources are read before any training
        backbone = experiment.backbone()
        torch.manual_seed(experiment.seed)  # a projection's start does not depend on who else is trained
        objective = method.objective.create(sources, method, backbone.feature_width)
        prepared[key] = learners.get(key, Learner)(backbone, objective)
    todo = {}
    for key, learner in prepared.items():
        method = methods[key]
        start = _start_of(experiment, method, starts)
        if start is not None:
            learner.model.load_state_dict(start)
        _continue_projections(experiment, method, learner.objective, starts)
        described = describe_training(experiment, config, start, rows, sources)
        described |= {"objective": type(learner.objective).__name__, **learner.objective.describe()}
        if not start_run(folder / key, described | learner.describe()):
            todo[key] = learner
    if not todo:
        print(f"{folder.name}: {', '.join(methods)} finished before, reused")
        return

    clips = {split: experiment.clips(split) for split in experiment.scored_splits}
    for dataset in clips.values():
        if dataset.cached is not None:
            print(dataset.throughput)
    val_labels = torch.tensor(clips["val"].labels)

    def evaluate(model: nn.Module) -> dict[str, float]:
        batches = loader(clips["val"], EVALUATION_BATCH)
        logits = predict(model, batches, experiment.device, config.bf16)["logits"]
        return {f"val_{name}": value for name, value in score(logits, val_labels).items()}

    train_clips = clips["train"]
    if on_pairs:
        given = tuple(sources.labels_of_pairs) if sources.pair_labels else ()
        train_clips = WithPairs(
            train_clips, clips[sources.pairs], given, None if rows is None else tuple(rows)
        )
    elif rows is not None:
        train_clips = ClipSubset(train_clips, tuple(row for row in rows if row < len(train_clips)))
    teach = None
    if of_proxies := [key for key in todo if issubclass(methods[key].objective, ProxyDistillation)]:
        if experiment.recipe.spd_live_targets or any(todo[key].objective.needs_live for key in of_proxies):
            proxies = sources.proxy_folders(methods[of_proxies[0]].sources)
            teach = proxies_on_view(experiment, proxies.values(), config.bf16)
    name = next(iter(methods)) if len(methods) == 1 else first.settings
    checkpoint = folder / f"{name}.checkpoint.safetensors"
    history = fit(
        todo,
        lambda epoch: loader(train_clips, config.batch_size, experiment.seed, epoch),
        config,
        experiment.seed,
        checkpoint,
        experiment.device,
        evaluate,
        accumulate=experiment.recipe.accumulate(config.batch_size),
        teach=teach,
        describe=name,
    )
    for key, learner in todo.items():
        write_history(folder / key, history[key])
        finish_student(folder / key, learner, clips, experiment.device, config.bf16)
    checkpoint.unlink(missing_ok=True)


def _start_of(experiment: Experiment, method: Method, starts: dict[str, Path | Weights]) -> Weights | None:
    """The weights that a student begins with; None for random ones. `starts` takes what was looked up."""
    if not method.start:
        return None
    if method.start not in starts:
        starts[method.start] = (
            common_start(experiment) if method.start == START else experiment.student(method.start)
        )
    given = starts[method.start]
    if isinstance(given, dict):
        return given
    return load_student(given, "run notebooks 02_proxy and 03_merging first")


def _continue_projections(
    experiment: Experiment, method: Method, objective: nn.Module, starts: Mapping[str, Path | Weights]
) -> None:
    """Load the projections of the student that another continues, where both minimise the same loss."""
    before = experiment.methods.get(method.start)
    if before is None or before.objective is not method.objective or not objective.state_dict():
        return
    if isinstance(starts[method.start], dict):
        raise ValueError(
            f"{method.start} is given as weights; give its run folder, which has its projections"
        )
    objective.load_state_dict(read_tensors(starts[method.start] / "objective.safetensors"))


def common_start(
    experiment: Experiment, folder: Path | None = None, rows: Sequence[int] | None = None
) -> Weights:
    """Weights from which all students of a seed start; merging presupposes that they share it.

    They are the backbone's published ones (the paper's: an ImageNet ViT, inflated). Where the preset has a
    `start`, the backbone is instead trained on the ego clips' labels for that long, once.

    Args:
        folder: holds its run folder; None: notebook 02's.
        rows: train clips to learn from; None: all.
    """
    if experiment.preset.start is None:
        backbone = experiment.backbone()
        backbone_module(experiment.preset.backbone).pretrained_start(backbone, experiment.weights)
        return backbone.state_dict()
    folder = folder or experiment.folder("02_proxy")
    train(experiment, [START], folder, rows=rows)
    return load_student(folder / START, "run notebook 02_proxy")


def proxies_on_view(experiment: Experiment, proxies: Iterable[Path], bf16: bool) -> Teach:
    """Live targets: the proxies see each batch that the students see, once for all of them.

    Returns:
        A function that adds `proxy_features` (B, R, D) and `proxy_logits` (B, R, C) to a batch.
    """
    models = load_proxies(experiment, proxies)

    @torch.no_grad()
    def add_outputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        with autocast(experiment.device, bf16):
            features, logits = zip(*(model(batch["clips"]) for model in models), strict=True)
        outputs = {"proxy_features": torch.stack(features, 1), "proxy_logits": torch.stack(logits, 1)}
        return batch | {name: value.float() for name, value in outputs.items()}

    return add_outputs


def describe_training(
    experiment: Experiment,
    config: TrainConfig,
    start: Weights | None,
    rows: Sequence[int] | None = None,
    sources: Sources | None = None,
) -> dict:
    """What decides a student's weights, for its `config.json`: numbers, and digests of its inputs."""
    weights = b"" if start is None else b"".join(start[name].numpy().tobytes() for name in sorted(start))
    described = {
        "dataset": experiment.card.name,
        "seed": experiment.seed,
        "backbone": [experiment.preset.backbone, experiment.preset.size],
        "video": experiment.preset.video.decisive(),
        "train": asdict(config),
        "manifest": experiment.manifest("train").digest,
        "start": digest(weights),
        "recipe": experiment.recipe_name,
    }
    if rows is not None:
        described["rows"] = digest(list(rows))
    if sources is not None and sources.pairs:
        described["pairs"] = experiment.manifest(sources.pairs).digest
        if sources.pair_labels:
            described["labels"] = digest(sources.labels.tolist())
    return described


def finish_student(
    folder: Path,
    learner: Learner,
    clips: dict[str, ClipDataset],
    device: torch.device,
    bf16: bool = False,
) -> dict[str, float]:
    """Write a student's weights, its outputs on every split and its scores, then the finished marker.

    A split without labels has outputs and no scores.
    """
    outputs, metrics = {}, {}
    for split, dataset in clips.items():
        predicted = predict(learner.model, loader(dataset, EVALUATION_BATCH), device, bf16)
        outputs |= {f"{split}_{name}": value for name, value in predicted.items()}
        labels = torch.tensor(dataset.labels)
        scores = score(predicted["logits"], labels) if (labels >= 0).all() else {}
        metrics |= {f"{split}_{name}": value for name, value in scores.items()}
    write_tensors(folder / "model.safetensors", learner.model.state_dict())
    if projections := learner.objective.state_dict():
        write_tensors(folder / "objective.safetensors", projections)
    write_tensors(folder / "outputs.safetensors", outputs)
    finish_run(folder, metrics)
    return metrics
