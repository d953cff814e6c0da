"""Level I: a proxy per teacher, the ego baseline, naive multi-teacher distillation (paper, section 3.1)."""

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from uniego_utils.experiment import Experiment
from uniego_utils.methods import EACH, EGO, NAIVE
from uniego_utils.runs import read_tensors, require_finished
from uniego_utils.students import train


def student_names(teacher: str, teachers: Iterable[str]) -> list[str]:
    """The students that the notebook parameter `teacher` names; an unknown one is an error."""
    students = [*teachers, EGO, NAIVE]
    if teacher == EACH:
        return students
    if teacher not in students:
        raise ValueError(f"unknown teacher {teacher!r}; choose one of {', '.join([*students, EACH])}")
    return [teacher]


def train_proxies(experiment: Experiment, teacher: str) -> Path:
    """Train the students that `teacher` names (a key, `ego`, `naive` or `each`) in one pass over the data.

    Returns:
        The folder that holds one run folder per student.
    """
    train(experiment, student_names(teacher, experiment.card.teachers))
    return experiment.folder("02_proxy")


def projected_teacher(folder: Path, key: str, features: Tensor) -> Tensor:
    """A teacher's features (N, D_r) as its trained proxy's loss sees them: (N, D).

    Args:
        folder: the proxy's run folder, of a recipe that projects the teacher.
    """
    tensors = read_tensors(require_finished(folder, "run notebook 02_proxy") / "objective.safetensors")
    return features @ tensors[f"project.{key}.weight"].T + tensors[f"project.{key}.bias"]
