"""Rival ways of learning from proxies: one function or class each, of at most 30 lines.

A rival is a rule (see `candidates.py`) or an objective (see `objectives.py`), and one entry of `methods.py`.
"""

import torch
from torch import Tensor

from uniego_utils.candidates import Candidates
from uniego_utils.objectives import ProxyDistillation, proxy_cross_entropy, shares


def weighted_by_confidence(candidates: Candidates) -> Tensor:
    """CA-MKD: the surer of a clip's answer a proxy is, the more it counts; see `confidence_weights`."""
    return confidence_weights(candidates.logits, candidates.answers)


def confidence_weights(proxy_logits: Tensor, labels: Tensor) -> Tensor:
    """Weights of Zhang et al. 2022 (CA-MKD, equation 4): (1 - softmax_r(CE_r)) / (R - 1), (N, R).

    One proxy alone has weight 1.
    """
    loss = proxy_cross_entropy(proxy_logits, labels)
    count = loss.shape[1]
    return torch.ones_like(loss) if count == 1 else (1 - loss.softmax(1)) / (count - 1)


class DroppedProxies(ProxyDistillation):
    """UNIC: in training each weighted proxy is left out by chance, except the one farthest from the student.

    Source: teacher dropping of Sariyildiz et al. 2024, arXiv:2408.05088.
    """

    probability = 0.5  # of leaving a proxy out

    def distances(
        self, features: Tensor, logits: Tensor, batch: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Each clip's weights after dropping, cosine distances and divergences to proxies, (B, R) each."""
        weights, match, divergence = super().distances(features, logits, batch)
        if self.training:
            losses = self.method.beta_feat * match + self.method.beta_logit * divergence
            weights = drop_proxies(weights, losses, self.probability)
        return weights, match, divergence

    def by_source(self, features: Tensor, logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Refused: the loss and this would draw different proxies."""
        raise ValueError("proxies dropped by chance have no loss of their own; use another objective")


def drop_proxies(weights: Tensor, losses: Tensor, probability: float) -> Tensor:
    """Leave out proxies by chance, except each clip's with the largest loss; see `DroppedProxies`.

    Args:
        weights, losses: (B, R); only proxies with a weight above zero take part.
    """
    weighted = weights > 0
    farthest = losses.detach().masked_fill(~weighted, -torch.inf).argmax(1, keepdim=True)
    keep = torch.rand_like(weights) >= probability
    return shares(weights * keep.scatter(1, farthest, True))
