"""Level II on unlabelled clips: the proxies as a committee that labels them. Beyond the paper.

On their own training clips nine proxies say little more than the labels do. On clips that none of them has
seen they differ, and what most of them say is more often right than what one of them says. Only ego clips are
needed; whatever labels the split has are not read.
"""

import torch
from torch import Tensor

from uniego_utils.objectives import shares
from uniego_utils.proxies import BASELINE, NAIVE
from uniego_utils.spd import Method, select_proxies

UNLABELLED = {
    "uniego_unlabelled": Method("selected proxies, on unlabelled clips too"),
    "all_unlabelled": Method("all proxies, on unlabelled clips too"),
}
ALONE = {  # controls for as many steps
    "self_unlabelled": Method("the ego baseline teaches itself, on unlabelled clips too", BASELINE),
    "control_long": Method("the ego baseline, labels alone", BASELINE),
}
PAIRED = {  # needs what the proxies do not: the teachers' features of the unlabelled clips
    "naive_unlabelled": Method("naive multi-teacher distillation, on unlabelled clips too", NAIVE),
}


def committee(logits: Tensor) -> Tensor:
    """The proxies' mean probabilities: (N, R, C) -> (N, C)."""
    return logits.softmax(-1).mean(1)


def select_by_consensus(logits: Tensor, k: int) -> Tensor:
    """Equation 4 without labels: what the committee says stands for the label.

    Args:
        logits: (clips, proxies, classes) of proxies on clips that they have not seen.

    Returns:
        (clips, proxies) bool: of the proxies that agree with the committee the k most confident ones.
    """
    return select_proxies(logits, committee(logits).argmax(-1), k)


def unlabelled_weights(labelled: Tensor, unlabelled: Tensor, labels: Tensor, k: int) -> dict[str, Tensor]:
    """Weights (N + M, R) of `UNLABELLED`: N labelled clips, then M unlabelled ones.

    Args:
        labelled: (N, R, C) proxies' logits of the train split.
        unlabelled: (M, R, C) proxies' logits of the unlabelled split.
        labels: (N,).
    """
    selected = torch.cat([select_proxies(labelled, labels, k), select_by_consensus(unlabelled, k)])
    return {"uniego_unlabelled": shares(selected), "all_unlabelled": shares(torch.ones(selected.shape))}
