"""Level I: a proxy per teacher, the ego baseline, naive multi-teacher distillation (paper, section 3.1)."""

from pathlib import Path

from torch import Tensor

from uniego_utils.data.manifests import hidden_labels_file
from uniego_utils.experiment import Experiment
from uniego_utils.methods import CEILING, EACH, START, of_notebook
from uniego_utils.runs import read_tensors, require_finished
from uniego_utils.students import train


def student_names(experiment: Experiment, teacher: str) -> list[str]:
    """The students that the notebook parameter `teacher` names; an unknown one is an error.

    `each` names the ceiling too where the labels of the pairs are there.
    """
    students = [key for key in of_notebook("02_proxy", experiment.methods) if key != START]
    if CEILING in students and not hidden_labels_file(experiment.manifest(experiment.pairs)).is_file():
        students.remove(CEILING)
    if teacher == EACH:
        return students
    if teacher not in students:
        raise ValueError(f"unknown teacher {teacher!r}; choose one of {', '.join([*students, EACH])}")
    return [teacher]


def train_proxies(experiment: Experiment, teacher: str) -> Path:
    """Train the students that `teacher` names: a teacher's key, `ego`, `naive`, `ceiling` or `each`.

    Returns:
        The folder that holds one run folder per student.
    """
    train(experiment, student_names(experiment, teacher))
    return experiment.folder("02_proxy")


def projected_teacher(folder: Path, key: str, features: Tensor) -> Tensor:
    """A teacher's features (N, D_r) as its trained proxy's loss sees them: (N, D).

    Args:
        folder: the proxy's run folder, of a recipe that projects the teacher.
    """
    tensors = read_tensors(require_finished(folder, "run notebook 02_proxy") / "objective.safetensors")
    return features @ tensors[f"project.{key}.weight"].T + tensors[f"project.{key}.bias"]
