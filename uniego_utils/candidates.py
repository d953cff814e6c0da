"""Who may teach a clip: equation 4 of the paper, its variants, and selection without labels or learned.

A *rule* turns what is known of the proxies (`Candidates`) into weights (N, R): each row sums to one, or is
zero for a clip that learns from its label alone. The register `methods.py` names each student's rule.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from uniego_utils.analyses.gate import gate_inputs, learn_gate
from uniego_utils.objectives import proxy_cross_entropy, shares


@dataclass(frozen=True)
class Candidates:
    """What is known of R proxies on N clips; rules read it."""

    features: Tensor  # (N, R, D)
    logits: Tensor  # (N, R, C)
    labels: Tensor  # (N,) class numbers; below 0 where a clip has no label; rules read `answers`
    k: int = 1  # proxies selected per clip at most
    ce_ceiling: float | None = None  # a proxy with a higher cross-entropy is no candidate
    viewpoints: tuple[str, ...] = ()  # of the proxies' teachers: ego or exo
    seed: int = 0  # of what is drawn or trained
    held_out: Tensor | None = None  # (N, R, C) logits of proxies that have not seen the clip (notebook 13)
    halves: tuple[tuple[int, ...], ...] = ()  # the clips of each fold of `held_out`
    start_features: Tensor | None = None  # (N, D) of the student at its start
    trust: Tensor | None = None  # (R,) shares of the committee's votes; None: equal ones
    read_truth: Callable[[], Tensor] | None = None  # the labels of all clips, for a ceiling

    @cached_property
    def answers(self) -> Tensor:
        """(N,) class numbers: the label, and where there is none the committee's most probable class."""
        votes = committee(self.logits, self.trust).argmax(-1)
        return torch.where(self.labels >= 0, self.labels, votes)


def select_proxies(
    proxy_logits: Tensor,
    labels: Tensor,
    k: int,
    ce_ceiling: float | None = None,
    correct_only: bool = True,
) -> Tensor:
    """For each clip, the k most confident among the proxies that classify it correctly (equation 4).

    Args:
        proxy_logits: (clips, proxies, classes).
        labels: (clips,) class indices.
        k: how many to select at most; fewer where fewer are correct, none where none is.
        ce_ceiling: a proxy with a higher cross-entropy is no candidate (the released recipe's 4.0).
        correct_only: False makes candidates of the wrong ones too, to see what the condition does.

    Returns:
        (clips, proxies) bool. Of proxies with equal cross-entropy, the first in order is preferred.

    Raises:
        ValueError: shapes that do not match, k < 1, or logits that are not finite.
    """
    if proxy_logits.ndim != 3 or labels.shape != proxy_logits.shape[:1]:
        raise ValueError(
            f"expected logits (clips, proxies, classes) and labels (clips,), "
            f"got {tuple(proxy_logits.shape)} and {tuple(labels.shape)}"
        )
    if k < 1:
        raise ValueError(f"k is {k}; at least one proxy must be selectable")
    if not proxy_logits.isfinite().all():
        wrong = (~proxy_logits.isfinite()).any(2).nonzero().tolist()
        raise ValueError(f"logits of {len(wrong)} (clip, proxy) pairs are not finite, first {wrong[0]}")
    loss = proxy_cross_entropy(proxy_logits, labels)
    candidate = torch.ones_like(loss, dtype=torch.bool)
    if correct_only:
        candidate &= proxy_logits.argmax(-1) == labels[:, None]
    if ce_ceiling is not None:
        candidate &= loss <= ce_ceiling
    order = loss.masked_fill(~candidate, torch.inf).argsort(dim=1, stable=True)
    selected = torch.zeros_like(candidate).scatter_(1, order[:, :k], True)
    return selected & candidate


def top_of_each(
    proxy_logits: Tensor,
    labels: Tensor,
    groups: Sequence[str],
    k: int = 1,
    ce_ceiling: float | None = None,
) -> Tensor:
    """The k best of each group, e.g. Top-1(Ego) + Top-1(Exo) of the paper's Table 8.

    Args:
        proxy_logits, labels, ce_ceiling: as for `select_proxies`.
        groups: R names, e.g. each proxy's viewpoint.

    Returns:
        (clips, proxies) bool.
    """
    if len(groups) != proxy_logits.shape[1]:
        raise ValueError(f"{len(groups)} groups for {proxy_logits.shape[1]} proxies")
    selected = torch.zeros(proxy_logits.shape[:2], dtype=torch.bool)
    for group in dict.fromkeys(groups):
        members = torch.tensor([name == group for name in groups])
        selected[:, members] = select_proxies(proxy_logits[:, members], labels, k, ce_ceiling)
    return selected


def committee(logits: Tensor, trust: Tensor | None = None) -> Tensor:
    """The proxies' mean probabilities, weighted by `trust` (R,) where it is given: (N, R, C) -> (N, C)."""
    probabilities = logits.softmax(-1)
    return probabilities.mean(1) if trust is None else torch.einsum("nrc,r->nc", probabilities, trust)


def trust_by_loss(logits: Tensor, labels: Tensor, tau: float) -> Tensor:
    """Shares (R,) of the proxies' votes: softmax of minus each one's cross-entropy, over `tau` nats.

    Not in the paper, which has a label for every clip.

    Args:
        logits: (N, R, C) on clips that the proxies were not trained on, with `labels` (N,): validation clips.
    """
    return (-proxy_cross_entropy(logits, labels).mean(0) / tau).softmax(0)


def random_proxies(clips: int, proxies: int, seed: int) -> Tensor:
    """One proxy a clip by chance: (clips, proxies) bool. The control for every way to select one."""
    drawn = torch.randint(proxies, (clips,), generator=torch.Generator().manual_seed(seed))
    return F.one_hot(drawn, proxies).bool()


def selected(candidates: Candidates, k: int = 0) -> Tensor:
    """Equation 4: the k most confident of the proxies that are right, or, of a clip without a label, of those
    that agree with the committee.

    Args:
        k: 0 for `candidates.k`.
    """
    k = k or candidates.k
    return shares(select_proxies(candidates.logits, candidates.answers, k, candidates.ce_ceiling))


def selected_with_equal_votes(candidates: Candidates) -> Tensor:
    """Equation 4, with a committee in which every proxy has the same vote."""
    return selected(replace(candidates, trust=None))


def most_confident(candidates: Candidates) -> Tensor:
    """Equation 4 where there is a label; elsewhere the surest proxy, whatever it says."""
    surest = candidates.logits.softmax(-1).amax(-1).argmax(-1)
    sure = F.one_hot(surest, candidates.logits.shape[1]).float()
    return torch.where((candidates.labels >= 0)[:, None], selected(candidates), sure)


def selected_by_truth(candidates: Candidates) -> Tensor:
    """Equation 4 with the true labels of all clips: what no selection without them can exceed."""
    return selected(replace(candidates, labels=candidates.read_truth()))


def everyone(candidates: Candidates) -> Tensor:
    """Equal weights for all proxies, right or wrong."""
    return shares(torch.ones(candidates.logits.shape[:2]))


def best_of_each_viewpoint(candidates: Candidates) -> Tensor:
    """The best ego and the best exo proxy of each clip (the paper's Table 8)."""
    ceiling = candidates.ce_ceiling
    return shares(
        top_of_each(candidates.logits, candidates.answers, candidates.viewpoints, ce_ceiling=ceiling)
    )


def by_chance(candidates: Candidates) -> Tensor:
    """One proxy a clip, drawn."""
    return shares(random_proxies(*candidates.logits.shape[:2], candidates.seed))


def selected_by_held_out_loss(candidates: Candidates) -> Tensor:
    """Equation 4, with the loss of proxies that have not seen the clip."""
    return shares(select_proxies(candidates.held_out, candidates.labels, candidates.k))


def learned(candidates: Candidates) -> Tensor:
    """Weights of a gate trained to predict the held-out loss: the paper's future work."""
    inputs = gate_inputs(candidates.logits, candidates.labels, candidates.start_features)
    return learn_gate(inputs, candidates.held_out, candidates.labels, candidates.halves, candidates.seed)
