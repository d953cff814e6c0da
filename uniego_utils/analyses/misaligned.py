"""Teachers that mislead: how many may be wrong before each way of learning from teachers breaks.

A misaligned teacher is a real one whose features belong to other clips, as after a synchronisation fault or a
wrong file order: it looks healthy by itself and says nothing about the clip. Beyond the paper.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from uniego_utils.analyses.reliability import cross_fit, held_out_logits, proxies_of, split_folds
from uniego_utils.candidates import selected
from uniego_utils.experiment import Experiment
from uniego_utils.merging import merge
from uniego_utils.methods import NAIVE
from uniego_utils.sources import Sources, load_outputs, teacher_targets
from uniego_utils.students import train

DOSE_METHODS = ("naive_longer", "all_proxies", "uniego", "gate")


def misalign(features: Tensor, seed: int) -> Tensor:
    """Every clip gets another clip's features: (N, D) -> (N, D), the same rows, none in its place."""
    if len(features) < 2:
        raise ValueError("a single clip has no other clip's features")
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
    moved = torch.empty_like(features)
    moved[order] = features[order.roll(1)]
    return moved


def train_doses(
    experiment: Experiment,
    good: Sequence[str],
    faulty: Sequence[str],
    doses: Sequence[int],
    k: int,
    folder: Path,
) -> dict[int, Tensor]:
    """Train `DOSE_METHODS` on the good teachers and 0, 1, ... misaligned ones.

    Args:
        good: teachers as they are; their proxies are those of notebook 02, their held-out logits of 13.
        faulty: teachers to misalign, in the order in which they are added.
        doses: how many of `faulty` to add.
        folder: holds `proxies/`, `fold0/`, `fold1/` and `dose<number>/<method>/` afterwards.

    Returns:
        Dose -> (N, R) bool, which proxies SPD selects: good ones first.

    Raises:
        ValueError: a teacher that is both good and faulty or unknown, or a dose out of range.
    """
    if both := set(good) & set(faulty):
        raise ValueError(f"{', '.join(sorted(both))} cannot be good and faulty")
    if not good or any(not 0 <= dose <= len(faulty) for dose in doses):
        raise ValueError(f"doses {list(doses)} need a good teacher and at most {len(faulty)} faulty ones")
    right, wrong = teacher_targets(experiment, good), teacher_targets(experiment, faulty)
    wrong = {f"{key}_misaligned": misalign(value, experiment.seed) for key, value in wrong.items()}
    students = proxies_of(experiment, wrong)
    train(experiment, students, folder / "proxies", sources=Sources(experiment, teachers=wrong))

    halves, _ = split_folds(experiment.manifest("train"), experiment.seed)
    of_good = held_out_logits(experiment.folder("13_reliability"), good, halves)
    held_out = torch.cat([of_good, cross_fit(experiment, wrong, folder, halves)], 1)
    proxies = {key: experiment.proxies[key] for key in good}
    proxies |= {key: folder / "proxies" / key for key in wrong}
    pool, selections = right | wrong, {}
    for dose in doses:
        place, keys = folder / f"dose{dose}", list(pool)[: len(good) + dose]
        teachers, chosen = ({key: each[key] for key in keys} for each in (pool, proxies))
        train(experiment, [NAIVE], place, sources=Sources(experiment, teachers=teachers))
        merge(experiment, ["merged"], chosen, place)
        sources = Sources(
            experiment,
            k=k,
            teachers=teachers,
            proxies=chosen,
            held_out=held_out[:, : len(keys)],
            halves=halves,
            start_features=load_outputs(place / "merged", "train", "run this notebook again")["features"],
        )
        starts = {"merged": place / "merged", NAIVE: place / NAIVE}
        train(experiment, DOSE_METHODS, place, sources=sources, starts=starts)
        selections[dose] = selected(sources.candidates()) > 0
    return selections
