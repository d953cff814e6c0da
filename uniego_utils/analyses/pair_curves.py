"""When do pairs pay: UNIEGO and its rivals trained with fewer labels, fewer pairs, or all labels."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from uniego_utils.experiment import Experiment
from uniego_utils.merging import merge
from uniego_utils.methods import EGO, NAIVE, START, TRUE
from uniego_utils.runs import is_finished
from uniego_utils.sources import Sources
from uniego_utils.students import common_start, train

COMPARED = ("ego_longer", "naive_longer", "uniego")


def choose_rows(labels: Sequence[int], pairs: int, kept_labels: int, kept_pairs: int, seed: int) -> list[int]:
    """Clips to learn from: the first labelled ones of every class in turn, and pairs drawn by chance.

    Args:
        labels: class numbers of the train split.
        pairs: how many pairs there are.

    Returns:
        Rows of the train split and, behind them, of the pairs, as `students.train` takes them.

    Raises:
        ValueError: more are asked for than there are, or no clip of some class would be left.
    """
    if not (0 < kept_labels <= len(labels) and 0 <= kept_pairs <= pairs):
        raise ValueError(
            f"{kept_labels} labels and {kept_pairs} pairs asked for; there are {len(labels)} and {pairs}"
        )
    seen: dict[int, int] = {}
    turns = []
    for label in labels:
        seen[label] = seen.get(label, 0) + 1
        turns.append(seen[label])
    if kept_labels < len(seen):
        raise ValueError(f"{kept_labels} labels cannot show all {len(seen)} classes")
    order = sorted(range(len(labels)), key=lambda row: (turns[row], labels[row]))
    drawn = np.random.default_rng(seed).permutation(pairs)[:kept_pairs]
    return sorted(order[:kept_labels]) + sorted(len(labels) + int(row) for row in drawn)


def train_with(experiment: Experiment, folder: Path, labels: int, pairs: int) -> dict[str, Path]:
    """Level I, the plain average and Level II with so many labels and pairs; steps stay as with all of them.

    Args:
        folder: holds the run folders of everything trained here.
        labels: labelled clips; with as many as the train split and the pairs have together, every student is
            given all labels.
        pairs: pairs without labels; 0 for the paper's protocol, with half as many steps.

    Returns:
        Method of `COMPARED` -> its run folder.
    """
    if not pairs:
        experiment = replace(experiment, pairs="")
    of_train = experiment.manifest("train").labels
    available = len(experiment.manifest(experiment.pairs)) if experiment.pairs else 0
    all_labels = bool(pairs) and labels == len(of_train) + available
    whole = not all_labels and (labels, pairs) == (len(of_train), available)
    changes = {"pair_labels": TRUE if all_labels else ""}
    rows = starts = None
    if not (whole or all_labels):
        rows = choose_rows(of_train, available, labels, pairs, experiment.seed)
        starts = {START: common_start(experiment, folder, rows)}
        changes["times"] = round(len(of_train) / labels)

    first = [*experiment.card.teachers, EGO, NAIVE]
    students = {key: experiment.student(key) for key in first}
    if not (whole and all(map(is_finished, students.values()))):
        level_one = {key: replace(experiment.methods[key], **changes) for key in first}
        train(experiment, level_one, folder, rows=rows, starts=starts)
        students = {key: folder / key for key in first}
    proxies = {key: students[key] for key in experiment.card.teachers}
    merge(experiment, ["average"], proxies, folder)
    level_two = {key: replace(experiment.methods[key], **changes) for key in COMPARED}
    given = {EGO: students[EGO], NAIVE: students[NAIVE], "merged": folder / "average"}
    sources = Sources(experiment, proxies=proxies)
    train(experiment, level_two, folder, rows=rows, starts=given, sources=sources)
    return {key: folder / key for key in COMPARED}
