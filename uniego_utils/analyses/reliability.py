"""Reliability that is not memorised: whom to trust on a clip, judged on clips that a proxy has not seen.

The paper scores a proxy by its cross-entropy on its own training clips (section 3.2). A proxy knows these by
heart, so the score may name the most overfitted one. Here proxies are judged by cross-fitting: each half of
the training clips is scored by proxies trained on the other half. And the paper's named future work, learned
selection: a gate foresees that held-out judgement from what is known in training.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from torch import Tensor, nn
from torch.nn import functional as F

from uniego_utils.data.manifests import Manifest
from uniego_utils.experiment import Experiment
from uniego_utils.objectives import proxy_cross_entropy, shares
from uniego_utils.proxies import common_start, train_level_one
from uniego_utils.spd import Method, confidence_weights, proxy_outputs, random_proxies, select_proxies

FOLDS = 2
RELIABILITY = {  # students of notebook 13
    "random": Method("one proxy a clip, by chance"),
    "heldout": Method("selected as in the paper, by the loss of proxies that have not seen the clip"),
    "gate": Method("weighted by a gate that has learnt to foresee that loss"),
    "ca_mkd": Method("weighted by confidence in training (CA-MKD)"),
    "unic": Method("all proxies, dropped by chance (UNIC)", drop=0.5),
}


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


def cross_fit(
    experiment: Experiment,
    targets: dict[str, Tensor],
    folder: Path,
    halves: Sequence[Sequence[int]],
) -> Tensor:
    """Held-out logits (N, R, C) of the train split: each half seen by proxies trained on the other halves.

    Each fold has a common start of its own, since a start that has seen all labels would leak them. Costs as
    much as training the pool once more.

    Args:
        targets: teacher key -> (N, D_r), as for `train_level_one`.
        folder: holds `fold0/`, `fold1/` with a run folder per proxy.
        halves: from `split_folds`.
    """
    for number, half in enumerate(halves):
        fold = folder / f"fold{number}"
        rows = sorted(row for other in halves if other is not half for row in other)
        start = common_start(experiment, fold, rows)
        train_level_one(experiment, list(targets), targets, fold, "each", rows, start)
    return held_out_logits(folder, list(targets), halves)


def held_out_logits(folder: Path, keys: Sequence[str], halves: Sequence[Sequence[int]]) -> Tensor:
    """Logits (N, R, C) of proxies that `cross_fit` has trained in `folder`, each on what it has not seen."""
    held_out = None
    for number, half in enumerate(halves):
        _, logits = proxy_outputs([folder / f"fold{number}" / key for key in keys])
        held_out = torch.empty_like(logits) if held_out is None else held_out
        held_out[list(half)] = logits[list(half)]
    return held_out


def gate_inputs(logits: Tensor, labels: Tensor, student: Tensor) -> Tensor:
    """What the gate sees of proxy r on clip i: (N, R, 3 + R + D).

    Cross-entropy and entropy in nats, agreement (the cosine of the proxy's probabilities with the pool's
    mean), which proxy it is, and the student's feature, standardised.

    Args:
        logits: (N, R, C) of proxies in training.
        student: (N, D) features of the student at its start; not trained through.
    """
    n, r, _ = logits.shape
    probabilities = logits.softmax(-1)
    entropy = torch.special.entr(probabilities).sum(-1)
    agreement = F.cosine_similarity(probabilities, probabilities.mean(1, keepdim=True), dim=-1)
    seen = torch.stack([proxy_cross_entropy(logits, labels), entropy, agreement], -1)
    seen = (seen - seen.mean((0, 1))) / seen.std((0, 1), correction=0).clamp(min=1e-6)
    student = (student - student.mean(0)) / student.std(0, correction=0).clamp(min=1e-6)
    who = torch.eye(r).expand(n, r, r)
    return torch.cat([seen, who, student.detach()[:, None].expand(n, r, -1)], -1)


def mixture_loss(weights: Tensor, held_out: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood (N,) in nats of the proxies' weighted mixture on clips they have not seen.

    Args:
        weights: (N, R), each row sums to one.
        held_out: (N, R, C) logits from `cross_fit`.
    """
    of_label = held_out.log_softmax(-1).gather(2, labels[:, None, None].expand(-1, held_out.shape[1], 1))
    return -(weights.clamp(min=1e-12).log() + of_label.squeeze(2)).logsumexp(1)


def learn_gate(
    inputs: Tensor,
    held_out: Tensor,
    labels: Tensor,
    halves: Sequence[Sequence[int]],
    seed: int,
    hidden: int = 16,
    steps: int = 200,
    lr: float = 0.01,
    weight_decay: float = 0.01,
) -> Tensor:
    """Weights (N, R) of a small gate, trained against the held-out loss of the mixture it forms.

    A clip's weights come from a gate that was trained on the other halves: it has seen no held-out loss of
    these clips, and can only use what holds for others too.

    Args:
        inputs: (N, R, F) from `gate_inputs`.
        held_out: (N, R, C) logits from `cross_fit`.
        halves: from `split_folds`.
    """
    weights = torch.empty(inputs.shape[:2])
    for half in halves:
        rows = [row for other in halves if other is not half for row in other]
        torch.manual_seed(seed)
        gate = nn.Sequential(nn.Linear(inputs.shape[2], hidden), nn.Tanh(), nn.Linear(hidden, 1))
        nn.init.zeros_(gate[-1].weight)  # starts by trusting all alike
        optimizer = torch.optim.AdamW(gate.parameters(), lr, weight_decay=weight_decay)
        for _ in range(steps):
            mixed = gate(inputs[rows]).squeeze(-1).softmax(1)
            loss = mixture_loss(mixed, held_out[rows], labels[rows]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            weights[list(half)] = gate(inputs[list(half)]).squeeze(-1).softmax(1)
    return weights


def reliability_weights(
    experiment: Experiment,
    logits: Tensor,
    held_out: Tensor,
    student: Tensor,
    labels: Tensor,
    halves: Sequence[Sequence[int]],
    k: int,
) -> dict[str, Tensor]:
    """Proxies' weights (N, R) for each of `RELIABILITY`; arguments as above."""
    n, r, _ = logits.shape
    return {
        "random": shares(random_proxies(n, r, experiment.seed)),
        "heldout": shares(select_proxies(held_out, labels, k)),
        "gate": learn_gate(gate_inputs(logits, labels, student), held_out, labels, halves, experiment.seed),
        "ca_mkd": confidence_weights(logits, labels),
        "unic": shares(torch.ones(n, r)),
    }
