"""Do distillation and classification pull the shared weights in opposite directions? (Paper, section 5,
Figures 4 and 5.) And alternatives to their plain sum, which remove the conflict.

The shared weights are the backbone's without its classifier, which features never reach.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torchjd.aggregation import CAGradWeighting, PCGradWeighting, UPGradWeighting

from uniego_utils.backbones import shared_parameters
from uniego_utils.cards import TrainConfig
from uniego_utils.objectives import Losses
from uniego_utils.training import Learner
from uniego_utils.weight_space import name_layers

SHARED = "shared"  # the group of all shared weights
SOURCE = "source"  # each source's gradient on the shared weights, by itself
CLIP = "clip"  # each clip's gradient on its own feature
CLASSIFICATION = "classification"  # the first of the losses that are compared
EVERY = 3  # batches between measurements
USUAL = {  # notebook 08's own parameters; others get a folder of their own
    "methods": ["direct", "all_proxies", "uniego"],
    "rivals": ["pcgrad", "cagrad", "upgrad"],
    "losses": "viewpoint",
    "epochs": 8,
    "every": EVERY,
    "sources_every": 15,
}
SUM = "sum"  # how gradients are combined where nothing is done about conflict
CAGRAD_RADIUS = 0.4  # of the multi-task experiments in Liu et al. 2021, arXiv:2110.14048
# Each makes of the losses' Gramian (K, K) a weight per loss. Sources: Yu et al. 2020, arXiv:2001.06782;
# Liu et al. 2021; Quinton and Rey 2024, arXiv:2406.16232
RIVALS = {
    "pcgrad": PCGradWeighting,
    "cagrad": lambda: CAGradWeighting(CAGRAD_RADIUS),
    "upgrad": UPGradWeighting,
}
COMPARED = ("direct", "naive_longer", "all_proxies", "uniego", "start_all", "start_spd")  # may be measured
OF_MEAN = ("cagrad", "upgrad")  # these keep the scale of the mean gradient, the others that of the sum


def shared_layers(model: nn.Module) -> dict[str, str]:
    """Every shared parameter's layer, as of `name_layers`: the stem, each block, the final norm."""
    layers = name_layers(list(model.state_dict()))
    return {name: layers[name] for name in shared_parameters(model)}


def split_losses(losses: Losses, part_weights: Mapping[str, float]) -> tuple[Tensor, Tensor]:
    """The weighted classification part and the weighted distillation part, whose sum is `loss`.

    Args:
        losses: what an objective returned; part_weights: that objective's.

    Raises:
        ValueError: the objective distils nothing.
    """
    rest = [weight * losses[part] for part, weight in part_weights.items() if part != "class_loss"]
    if not rest:
        raise ValueError("this objective has no distillation part; there is nothing that could conflict")
    return part_weights["class_loss"] * losses["class_loss"], torch.stack(rest).sum()


def gramians(
    gradients: Sequence[Mapping[str, Tensor | None]], layers: Mapping[str, str]
) -> dict[str, Tensor]:
    """Inner products of K losses' gradients, (K, K) float64 per layer; those of all layers are `SHARED`.

    Args:
        gradients: per loss, parameter -> gradient; None where the loss does not reach it.
        layers: of `shared_layers`; other parameters are left out.
    """
    sums: dict[str, Tensor] = {}
    for name, layer in layers.items():
        per_loss = [each[name] for each in gradients]
        some = next((gradient for gradient in per_loss if gradient is not None), None)
        if some is None:
            continue
        rows = torch.stack([torch.zeros_like(some) if row is None else row for row in per_loss]).flatten(1)
        products = (rows @ rows.T).double()
        for group in (SHARED, layer):
            sums[group] = sums.get(group, 0) + products
    return sums


def cosines(gramian: Tensor) -> Tensor:
    """Inner products (K, K) -> cosines (K, K) in [-1, 1]; NaN where a gradient is zero."""
    norms = gramian.diagonal().clamp(min=0).sqrt()
    cosine = gramian / norms[:, None] / norms[None]
    cosine = cosine.clamp(-1, 1)  # rounding takes those of parallel gradients up to 2e-7 beyond
    return cosine.masked_fill((norms[:, None] * norms[None]) == 0, torch.nan)


def class_against_rest(gramian: Tensor) -> Tensor:
    """Inner products of K losses, classification first -> those of classification and the others' sum."""
    cross, rest = gramian[0, 1:].sum(), gramian[1:, 1:].sum()
    return torch.stack([gramian[0, 0], cross, cross, rest]).view(2, 2)


def step_weights(name: str, gramian: Tensor) -> Tensor:
    """The weight of each of K gradients in the step, (K,), from their inner products (K, K).

    `sum` weighs all by one; `RIVALS` are scaled so that their weights are about one without conflict.
    """
    if name == SUM:
        return torch.ones_like(gramian[0])
    return RIVALS[name]()(gramian) * (len(gramian) if name in OF_MEAN else 1)


@dataclass(kw_only=True)
class PerLossLearner(Learner):
    """A learner with one backward pass per loss: it measures the cosines between their gradients.

    On a measured batch, the classification part and the distillation part have a backward pass each, and the
    optimiser gets the sum of both gradients, so nothing is computed twice. Other batches have the usual one.
    In memory are as many gradients as losses; per clip there are those on its feature alone, for which no
    pass goes through the backbone.

    Args:
        layers: of `shared_layers`.
        every: batches between measurements.
        sources_every: batches between measurements of each source (teacher or proxy) by itself, with a pass
            for each; 0: never.
        combine: `sum`, or one of `RIVALS`, which weigh the losses' gradients on the shared weights at every
            step. All else (classifier, projections) gets the sum.
        sources: with a rival, a name for each source: those of one name are one loss. Empty: all are.

    Raises:
        ValueError: `every` below 1, `sources_every` below 0 or with a rival, or an unknown `combine`.
    """

    layers: Mapping[str, str]
    every: int = EVERY
    sources_every: int = 0
    combine: str = SUM
    sources: Sequence[str] = ()
    batches: int = field(default=0, init=False)  # of this epoch so far
    angles: dict[str, list[float]] = field(default_factory=dict, init=False)  # group -> cosines
    matrices: list[np.ndarray] = field(default_factory=list, init=False)  # (1 + R, 1 + R) cosines

    def __post_init__(self):
        super().__post_init__()
        if self.every < 1 or self.sources_every < 0:
            raise ValueError(
                f"every is {self.every} and sources_every {self.sources_every}; they must be at least 1 and 0"
            )
        if self.combine not in (SUM, *RIVALS):
            raise ValueError(f"unknown rival {self.combine!r}; choose of {', '.join((SUM, *RIVALS))}")
        if self.sources_every and self.combine != SUM:
            raise ValueError("single sources are measured only with the plain sum; set sources_every = 0")

    def prepare(self, device: torch.device, config: TrainConfig) -> None:
        """As `Learner.prepare`, but never compiled: a compiled graph takes one backward pass only."""
        super().prepare(device, replace(config, compile=False))

    def describe(self) -> dict:
        """What decides the weights and the notes, for `config.json`."""
        return {
            "every": self.every,
            "sources_every": self.sources_every,
            "combine": self.combine,
            "sources": list(self.sources),
        }

    def backward(self, batch: dict[str, Tensor], together: int) -> Losses:
        """Add the step's gradients as `Learner.backward` does, and measure those of a measured batch."""
        number, self.batches = self.batches, self.batches + 1
        each = self.sources_every > 0 and number % self.sources_every == 0
        measured = number % self.every == 0
        if not (measured or each or self.combine != SUM):
            return super().backward(batch, together)

        features, logits = self.outputs(batch)
        losses = self.objective(features, logits, batch)
        classification, distillation = split_losses(losses, self.objective.part_weights)
        if measured and (angles := clip_cosines(classification, distillation, features)) is not None:
            self._note(CLIP, angles)
        terms = [classification, distillation]
        if each or (self.combine != SUM and self.sources):
            by_source = self.objective.by_source(features, logits, batch)
            terms = [classification, *(by_source if each else self._grouped(by_source))]
        trained = dict(self.model.named_parameters())
        trained |= {f"objective.{name}": value for name, value in self.objective.named_parameters()}
        gradients = []
        for place, term in enumerate(terms):
            keep = place + 1 < len(terms)  # the graph, for the next loss
            of_term = torch.autograd.grad(
                term / together, list(trained.values()), None, keep, allow_unused=True
            )
            gradients.append(dict(zip(trained, of_term, strict=True)))
        products = gramians(gradients, self.layers)
        if not products[SHARED].isfinite().all():
            raise FloatingPointError("a gradient is not finite; lower the learning rate")
        if measured:
            for group, gramian in products.items():
                self._note(group, cosines(class_against_rest(gramian))[0, 1])
        if each:
            angles = cosines(products[SHARED])
            self._note(SOURCE, angles[0, 1:])
            self.matrices.append(angles.cpu().numpy())

        weights = step_weights(self.combine, products[SHARED].cpu()).tolist()
        for name, parameter in trained.items():
            factors = weights if name in self.layers else [1.0] * len(terms)
            for weight, gradient in zip(factors, (of_term[name] for of_term in gradients), strict=True):
                if gradient is not None:
                    add = gradient if weight == 1 else weight * gradient
                    parameter.grad = add if parameter.grad is None else parameter.grad + add
        return losses

    def _note(self, group: str, angles: Tensor) -> None:
        known = angles[~angles.isnan()]  # where a gradient is zero there is no angle
        if len(known):
            self.angles.setdefault(group, []).extend(known.tolist())

    def _grouped(self, by_source: Tensor) -> list[Tensor]:
        """Losses of the sources (R,), added up by name."""
        if len(self.sources) != len(by_source):
            raise ValueError(f"{len(self.sources)} names for {len(by_source)} sources")
        groups = dict.fromkeys(self.sources)
        return [
            sum(loss for loss, name in zip(by_source, self.sources, strict=True) if name == group)
            for group in groups
        ]

    def notes(self) -> dict:
        """The epoch's `gradients`, group -> rate, cosine, counted, and `sources`: for each pair of
        classification and sources the sum of cosines, how many were negative, and on how many batches."""
        notes = {}
        if self.angles:
            notes["gradients"] = {
                group: {
                    "rate": float(np.less(angles, 0).mean()),
                    "cosine": float(np.mean(angles)),
                    "counted": len(angles),
                }
                for group, angles in self.angles.items()
            }
        if self.matrices:
            stacked = np.stack(self.matrices)
            counted = {
                "cosine": np.nansum(stacked, 0),
                "conflicts": (stacked < 0).sum(0),
                "batches": (~np.isnan(stacked)).sum(0),
            }
            notes["sources"] = {name: table.tolist() for name, table in counted.items()}
        self.batches, self.angles, self.matrices = 0, {}, []
        return notes


def clip_cosines(classification: Tensor, distillation: Tensor, features: Tensor) -> Tensor | None:
    """The cosine of both parts' gradients on each clip's feature, (B,); NaN where one is zero.

    None where the classifier did not get exactly these features, as under autocast.
    """
    pulls = [
        torch.autograd.grad(part, features, retain_graph=True, allow_unused=True)[0]
        for part in (classification, distillation)
    ]
    if any(pull is None for pull in pulls):
        return None
    one, other = (pull.double() for pull in pulls)
    norms = one.norm(dim=1) * other.norm(dim=1)
    cosine = ((one * other).sum(1) / norms).clamp(-1, 1)
    return cosine.masked_fill(norms == 0, torch.nan)


def conflict_table(histories: Mapping[str, Sequence[dict]]) -> pd.DataFrame:
    """Columns method, epoch, group, rate (share of negative cosines), cosine (mean), counted (how many).

    Groups are `SHARED` and its layers (a cosine a batch), `SOURCE` (one a source and batch), and `CLIP`.

    Args:
        histories: method -> its epochs' records, trained by `PerLossLearner`.
    """
    rows = [
        {"method": method, "epoch": record["epoch"], "group": group, **measures}
        for method, records in histories.items()
        for record in records
        for group, measures in record.get("gradients", {}).items()
    ]
    return pd.DataFrame(rows, columns=["method", "epoch", "group", "rate", "cosine", "counted"])


def source_table(histories: Mapping[str, Sequence[dict]], names: Sequence[str]) -> pd.DataFrame:
    """Cosines of sources' gradients with classification's and with each other's, over all epochs.

    Args:
        histories: method -> its epochs' records, trained with `sources_every` above 0; others are left out.
        names: R sources, in their objective's order.

    Returns:
        Columns method, source, other, rate, cosine, batches; a row for each pair that occurred in one batch.
    """
    everyone, rows = [CLASSIFICATION, *names], []
    for method, records in histories.items():
        counted = [record["sources"] for record in records if "sources" in record]
        if not counted:
            continue
        total = {key: sum(np.array(one[key]) for one in counted) for key in counted[0]}
        if total["batches"].shape != (len(everyone),) * 2:
            raise ValueError(f"{len(names)} names for {len(total['batches']) - 1} sources of {method}")
        for one, other in zip(*np.triu_indices(len(everyone), 1), strict=True):
            if batches := int(total["batches"][one, other]):
                rate, cosine = (total[key][one, other] / batches for key in ("conflicts", "cosine"))
                pair = {"source": everyone[other], "other": everyone[one]}
                rows.append({"method": method, **pair, "rate": rate, "cosine": cosine, "batches": batches})
    return pd.DataFrame(rows, columns=["method", "source", "other", "rate", "cosine", "batches"])
