"""Level I: a proxy per teacher, the ego baseline, naive multi-teacher distillation (paper, section 3.1)."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from uniego_utils.backbones import backbone_module
from uniego_utils.experiment import Experiment
from uniego_utils.objectives import Classification, TeacherDistillation
from uniego_utils.runs import digest, read_tensors, require_finished
from uniego_utils.students import describe_training, load_student, train_students
from uniego_utils.teachers.features import read_features, standardise
from uniego_utils.training import Learner

BASELINE = "none"  # the student without a teacher
NAIVE = "all"  # the student of all teachers at once
EACH = "each"  # every proxy, the baseline and the naive student, in one pass over the data
START = "start"  # the common start of all students of a seed


def student_names(teacher: str, teachers: Iterable[str]) -> list[str]:
    """The students that the notebook parameter `teacher` asks for; an unknown one is an error."""
    everyone = [*teachers, BASELINE, NAIVE]
    if teacher == EACH:
        return everyone
    if teacher not in everyone:
        raise ValueError(f"unknown teacher {teacher!r}; choose one of {', '.join([*everyone, EACH])}")
    return [teacher]


def teacher_targets(experiment: Experiment, keys: Iterable[str], split: str = "train") -> dict[str, Tensor]:
    """A split's features (N, D_r) of the teachers, standardised over it if the card says so."""
    manifest = experiment.manifest(split)
    targets = {}
    for key in keys:
        path = experiment.outputs / "01_teacher_extraction" / key / f"{split}.safetensors"
        features = read_features(path, manifest, experiment.card.teacher(key).width)
        targets[key] = standardise(features) if experiment.method.standardise else features
    return targets


def common_start(
    experiment: Experiment, folder: Path | None = None, rows: Sequence[int] | None = None
) -> dict[str, Tensor]:
    """Weights from which all students of a seed start; merging presupposes that they share it.

    They are the backbone's published ones (the paper's: an ImageNet ViT, inflated). Where the preset has a
    `start`, the backbone is instead trained on the ego clips' labels for that long, once.

    Args:
        folder: holds its run folder; None: notebook 02's.
        rows: train clips to learn from; None: all.
    """
    backbone = experiment.backbone()
    config = experiment.preset.start
    if config is None:
        backbone_module(experiment.preset.backbone).pretrained_start(backbone, experiment.weights)
        return backbone.state_dict()
    folder = folder or experiment.folder("02_proxy")
    learner = Learner(backbone, Classification(config.label_smoothing))
    described = describe_training(experiment, config, None, **_limited(rows))
    train_students(experiment, {START: learner}, {START: described}, config, folder, START, rows)
    return load_student(folder / START, "run notebook 02_proxy")


def _limited(rows: Sequence[int] | None) -> dict[str, str]:
    """What a run's config says of the train clips it is limited to; nothing where it is not."""
    return {} if rows is None else {"rows": digest(list(rows))}


def level_one_objective(
    experiment: Experiment, name: str, targets: dict[str, Tensor], width: int
) -> Classification:
    """What a student of Level I minimises: equation 1 for its teacher, all teachers, or labels alone."""
    smoothing = experiment.preset.proxy.label_smoothing
    if name == BASELINE:
        return Classification(smoothing)
    own = targets if name == NAIVE else {name: targets[name]}
    torch.manual_seed(
        experiment.seed
    )  # a projection's start does not depend on which other students are trained
    return TeacherDistillation(own, width, experiment.method, experiment.recipe, smoothing)


def projected_teacher(folder: Path, key: str, features: Tensor) -> Tensor:
    """A teacher's features (N, D_r) as its trained proxy's loss sees them: (N, D).

    Args:
        folder: the proxy's run folder, of a recipe that projects the teacher.
    """
    tensors = read_tensors(require_finished(folder, "run notebook 02_proxy") / "objective.safetensors")
    return features @ tensors[f"project.{key}.weight"].T + tensors[f"project.{key}.bias"]


def train_proxies(experiment: Experiment, teacher: str) -> Path:
    """Train the students that `teacher` asks for (a key, `none`, `all` or `each`) in one pass over the data.

    Returns:
        The folder that holds one run folder per student.
    """
    names = student_names(teacher, experiment.card.teachers)
    keys = list(experiment.card.teachers) if NAIVE in names else [name for name in names if name != BASELINE]
    folder = experiment.folder("02_proxy")
    train_level_one(experiment, names, teacher_targets(experiment, keys), folder, teacher)
    return folder


def train_level_one(
    experiment: Experiment,
    names: Sequence[str],
    targets: dict[str, Tensor],
    folder: Path,
    pass_name: str,
    rows: Sequence[int] | None = None,
    start: dict[str, Tensor] | None = None,
) -> None:
    """Train students of Level I in one pass over the data; each gets a run folder below `folder`.

    Args:
        names: keys of `targets`, `none` or `all`.
        targets: teacher key -> (N, D_r) features of the train split; the naive student learns from all.
        pass_name: names the pass's checkpoint in `folder`.
        rows: train clips to learn from; None: all.
        start: weights that all begin with; None: the seed's common start.
    """
    start = common_start(experiment) if start is None else start
    learners, configs = {}, {}
    for name in names:
        backbone = experiment.backbone()
        backbone.load_state_dict(start)
        learners[name] = Learner(
            backbone, level_one_objective(experiment, name, targets, backbone.feature_width)
        )
        own = list(targets) if name == NAIVE else [key for key in targets if key == name]
        configs[name] = describe_training(
            experiment,
            experiment.preset.proxy,
            start,
            recipe=experiment.recipe_name,
            lambda_feat=experiment.method.lambda_feat,
            lambda_cls=experiment.method.lambda_cls,
            teachers={key: digest(targets[key].numpy().tobytes()) for key in own},
            **_limited(rows),
        )
    train_students(experiment, learners, configs, experiment.preset.proxy, folder, pass_name, rows)
