"""Learned selection: a small gate that foresees which proxy is reliable (the paper's future work)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uniego_utils.objectives import proxy_cross_entropy


def gate_inputs(logits: Tensor, labels: Tensor, student: Tensor) -> Tensor:
    """The gate's inputs for proxy r on clip i: (N, R, 3 + R + D).

    Cross-entropy and entropy in nats, agreement (the cosine of the proxy's probabilities with the
    mean over all proxies), which proxy it is, and the student's feature, standardised.

    Args:
        logits: (N, R, C) of proxies in training.
        student: (N, D) features of the student at its start; not trained through.
    """
    n, r, _ = logits.shape
    probabilities = logits.softmax(-1)
    entropy = torch.special.entr(probabilities).sum(-1)
    agreement = F.cosine_similarity(probabilities, probabilities.mean(1, keepdim=True), dim=-1)
    measures = torch.stack([proxy_cross_entropy(logits, labels), entropy, agreement], -1)
    spread = measures.std((0, 1), correction=0).clamp(min=1e-6)
    measures = (measures - measures.mean((0, 1))) / spread
    student = (student - student.mean(0)) / student.std(0, correction=0).clamp(min=1e-6)
    identity = torch.eye(r).expand(n, r, r)
    return torch.cat([measures, identity, student.detach()[:, None].expand(n, r, -1)], -1)


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

    A clip's weights come from a gate that was trained on the other halves, so no held-out loss of the clip
    itself was used.

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
