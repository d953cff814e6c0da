"""Reliability that is not memorised: whom to trust on a clip, judged on clips that a proxy has not seen.

The paper scores a proxy by its cross-entropy on its training clips (section 3.2). A proxy may have
memorised these, so the score may name the most overfitted one. Here proxies are judged by cross-fitting: each
half of the training clips is scored by proxies trained on the other half. `candidates.learned` is the paper's
future work, learned selection: a gate that predicts this held-out judgement from what is known in training.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from torch import Tensor

from uniego_utils.data.manifests import Manifest
from uniego_utils.experiment import Experiment
from uniego_utils.methods import START, Method, proxy_of
from uniego_utils.sources import Sources, proxy_outputs
from uniego_utils.students import common_start, train

FOLDS = 2


def split_folds(manifest: Manifest, seed: int) -> tuple[list[list[int]], str]:
    """Rows of the train split in two halves, each with every class.

    Returns:
        The halves, and by what they are held out: `subject` (no person in both), or `clip` where some class
        has too few people for that.

    Raises:
        ValueError: a class has a single clip, so that one half would lack it.
    """
    labels = np.array(manifest.labels)
    single = [manifest.classes[label] for label in np.unique(labels) if (labels == label).sum() < FOLDS]
    if single:
        raise ValueError(
            f"{manifest.split}.csv: classes with fewer than {FOLDS} clips cannot be held out: "
            f"{', '.join(single[:5])}; add clips of them or leave them out"
        )
    people = manifest.rows["subject"].astype(str).to_numpy()
    splitters = {"subject": StratifiedGroupKFold, "clip": StratifiedKFold}
    if len(set(people)) < FOLDS:
        del splitters["subject"]
    for by, splitter in splitters.items():
        groups = people if by == "subject" else None
        splits = splitter(FOLDS, shuffle=True, random_state=seed).split(labels, labels, groups)
        halves = [held_out.tolist() for _, held_out in splits]
        if all(set(labels[half]) == set(labels) for half in halves):
            return halves, by
    raise AssertionError("two clips of every class always fill two halves")


def proxies_of(experiment: Experiment, teachers: Iterable[str]) -> dict[str, Method]:
    """A proxy per teacher, also of teachers that the card does not have."""
    labels = experiment.teacher_labels
    return {key: proxy_of(key, labels.get(key, key)) for key in teachers}


def cross_fit(
    experiment: Experiment,
    teachers: Mapping[str, Tensor],
    folder: Path,
    halves: Sequence[Sequence[int]],
) -> Tensor:
    """Held-out logits (N, R, C) of the train split: each half predicted by proxies trained on the others.

    Each fold has its own common start, since a start trained on all labels would leak them. Costs as much as
    training all proxies once more.

    Args:
        teachers: key -> (N, D_r) features of the train split.
        folder: holds `fold0/`, `fold1/` with a run folder per proxy.
        halves: from `split_folds`.
    """
    sources = Sources(experiment, teachers=teachers)
    for number, half in enumerate(halves):
        fold = folder / f"fold{number}"
        rows = sorted(row for other in halves if other is not half for row in other)
        start = common_start(experiment, fold, rows)
        students = proxies_of(experiment, teachers)
        train(experiment, students, fold, sources=sources, starts={START: start}, rows=rows)
    return held_out_logits(folder, list(teachers), halves)


def held_out_logits(folder: Path, keys: Sequence[str], halves: Sequence[Sequence[int]]) -> Tensor:
    """Logits (N, R, C) of proxies that `cross_fit` has trained in `folder`, each on clips new to it."""
    held_out = None
    for number, half in enumerate(halves):
        _, logits = proxy_outputs([folder / f"fold{number}" / key for key in keys])
        held_out = torch.empty_like(logits) if held_out is None else held_out
        held_out[list(half)] = logits[list(half)]
    return held_out
