"""Teachers that mislead: how much of a pool may be wrong before each way of learning from it breaks.

A misaligned teacher is a real one whose features belong to other clips, as after a synchronisation fault or a
wrong file order: it looks healthy by itself and says nothing about the clip. Beyond the paper.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from uniego_utils.analyses.reliability import cross_fit, gate_inputs, held_out_logits, learn_gate, split_folds
from uniego_utils.experiment import Experiment
from uniego_utils.merging import merge
from uniego_utils.objectives import shares
from uniego_utils.proxies import NAIVE, teacher_targets, train_level_one
from uniego_utils.spd import Method, proxy_outputs, select_proxies, train_level_two
from uniego_utils.students import load_outputs

DOSE_METHODS = {
    "naive": Method("naive multi-teacher distillation, Levels I and II", NAIVE),
    "all_proxies": Method("merged start, all proxies"),
    "uniego": Method("merged start, selected proxies"),
    "gate": Method("merged start, weighted by the gate"),
}


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
    train_level_one(experiment, list(wrong), wrong, folder / "proxies", "each")

    train = experiment.manifest("train")
    labels = torch.tensor(train.labels)
    halves, _ = split_folds(train, experiment.seed)
    of_good = held_out_logits(experiment.folder("13_reliability"), good, halves)
    held_out = torch.cat([of_good, cross_fit(experiment, wrong, folder, halves)], 1)

    pool = {key: experiment.folder("02_proxy") / key for key in good}
    pool |= {key: folder / "proxies" / key for key in wrong}
    chosen = {}
    for dose in doses:
        keys = [*good, *list(wrong)[:dose]]
        targets = {key: value for key, value in (right | wrong).items() if key in keys}
        own = folder / f"dose{dose}"
        train_level_one(experiment, [NAIVE], targets, own, NAIVE)
        used = {key: pool[key] for key in keys}
        merge(experiment, ["merged"], used, own)
        _, logits = proxy_outputs(list(used.values()))
        student = load_outputs(own / "merged", "train", "run this notebook again")["features"]
        seen = held_out[:, : len(keys)]
        chosen[dose] = select_proxies(logits, labels, k, experiment.recipe.spd_ce_ceiling)
        weights = {
            "all_proxies": shares(torch.ones(logits.shape[:2])),
            "uniego": shares(chosen[dose]),
            "gate": learn_gate(gate_inputs(logits, labels, student), seen, labels, halves, experiment.seed),
        }
        starts = {"merged": own / "merged", NAIVE: own / NAIVE}
        train_level_two(experiment, DOSE_METHODS, weights, list(used.values()), own, starts, targets=targets)
    return chosen
