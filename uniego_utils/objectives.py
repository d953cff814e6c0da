"""What the students minimise: equations 1, 5 and 6 of the paper, and the baselines' losses.

An objective is a module called with a student's features (B, D), logits (B, C) and a batch with `labels` (B,)
and `rows` (B,), the clips' places in the manifest. It returns a dict of scalar losses; `loss` is the
total: the weighted sum of the parts that `part_weights` names.
"""

from dataclasses import asdict
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uniego_utils.cards import MethodCard
from uniego_utils.recipes import Recipe
from uniego_utils.runs import digest

if TYPE_CHECKING:
    from uniego_utils.methods import Method
    from uniego_utils.sources import Sources

Losses = dict[str, Tensor]


def cosine_distance(x: Tensor, y: Tensor) -> Tensor:
    """1 - cosine similarity along the last dimension: (..., D) and (..., D) -> (...), in [0, 2].

    Source: D_cos of the paper's equations 1 and 5. Raises ValueError when the shapes differ: broadcasting
    would silently compare the wrong clips.
    """
    if x.shape != y.shape:
        raise ValueError(f"cosine distance of shapes {tuple(x.shape)} and {tuple(y.shape)}")
    return 1 - F.cosine_similarity(x, y, dim=-1)


class Classification(nn.Module):
    """Cross-entropy on labels: the ego baseline, and the control that continues it."""

    needs_live = False  # whether a batch must hold the proxies' outputs on the student's view

    def __init__(self, label_smoothing: float = 0.0):
        super().__init__()
        self.label_smoothing = label_smoothing

    @classmethod
    def create(cls, sources: "Sources", method: "Method", width: int) -> Self:
        """The objective of a student of the register, with what it needs of the sources.

        Args:
            width: D, the student's feature width.
        """
        return cls(sources.label_smoothing(method))

    def describe(self) -> dict:
        """What decides the loss, for a run's `config.json`: numbers, and digests of inputs."""
        return {}

    @property
    def part_weights(self) -> dict[str, float]:
        """The losses that make up `loss`, and their weights; all but `class_loss` are distillation."""
        return {"class_loss": 1.0}

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy over the labelled clips of the batch; 0 where none is."""
        total = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing, reduction="sum")
        return total / (labels >= 0).sum().clamp(min=1)  # torch's own mean of no clips is NaN

    def forward(self, features: Tensor, logits: Tensor, batch: dict[str, Tensor]) -> Losses:
        """The losses of a batch: cross-entropy alone."""
        loss = self.cross_entropy(logits, batch["labels"])
        return {"loss": loss, "class_loss": loss}


class TeacherDistillation(Classification):
    """Equation 1 with one teacher (Level I); with several, naive multi-teacher distillation.

    Several teachers: one linear projection each and the mean of their cosine distances, as released.

    Args:
        targets: teacher key -> (N, D_r) features of the train split in manifest order.
        width: D, the student's feature width.
    """

    def __init__(
        self,
        targets: dict[str, Tensor],
        width: int,
        method: MethodCard,
        recipe: Recipe,
        label_smoothing: float = 0.0,
    ):
        super().__init__(label_smoothing)
        self.method = method
        self.weight = method.lambda_feat if recipe.level1_weight is None else recipe.level1_weight
        self.class_weight, self.project_teacher = method.lambda_cls, recipe.projects_teacher
        self.keys = list(targets)
        self.project = nn.ModuleDict()
        for key, features in targets.items():
            sizes = (features.shape[1], width) if self.project_teacher else (width, features.shape[1])
            self.project[key] = nn.Linear(*sizes)
            self.register_buffer(f"targets_{key}", features, persistent=False)

    @classmethod
    def create(cls, sources: "Sources", method: "Method", width: int) -> Self:
        """The objective of a student of the register, as `Classification.create`."""
        card, recipe = method.changed(sources.experiment.method), sources.experiment.recipe
        targets = sources.teacher_features(method.sources)
        return cls(targets, width, card, recipe, sources.label_smoothing(method))

    def describe(self) -> dict:
        """What decides the loss, as `Classification.describe`."""
        targets = {key: getattr(self, f"targets_{key}") for key in self.keys}
        return {
            "lambda_feat": self.method.lambda_feat,
            "lambda_cls": self.method.lambda_cls,
            "teachers": {key: digest(value.numpy().tobytes()) for key, value in targets.items()},
        }

    @property
    def part_weights(self) -> dict[str, float]:
        """Weights of classification and match."""
        return {"class_loss": self.class_weight, "match_loss": self.weight}

    def distances(self, features: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """The mean cosine distance to each teacher, (R,)."""
        distances = []
        for key in self.keys:
            teacher = getattr(self, f"targets_{key}")[batch["rows"]]
            if self.project_teacher:
                distances.append(cosine_distance(features, self.project[key](teacher)).mean())
            else:
                distances.append(cosine_distance(self.project[key](features), teacher).mean())
        return torch.stack(distances)

    def by_source(self, features: Tensor, logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """What each teacher adds to the loss, (R,): their sum is the distillation part."""
        return self.weight * self.distances(features, batch) / len(self.keys)

    def forward(self, features: Tensor, logits: Tensor, batch: dict[str, Tensor]) -> Losses:
        """The losses of a batch: classification and match."""
        match, ce = self.distances(features, batch).mean(), self.cross_entropy(logits, batch["labels"])
        loss = self.weight * match + self.class_weight * ce
        return {"loss": loss, "class_loss": ce, "match_loss": match}


class ProxyDistillation(Classification):
    """Equations 5 and 6: each clip learns from its own proxies, each with its weight.

    Selection (SPD), all proxies and learned weights differ in `weights` alone.

    Args:
        features: (N, R, D) proxies' stored features of the train split, D the student's width.
        logits: (N, R, C) proxies' stored logits.
        weights: (N, R) of a rule of `candidates`: each row sums to one, or is zero for a clip that learns
            from its label alone. Selected proxies of equation 5 have 1/|S_i|.
        answers: (N,) class numbers by which proxies are judged: `Candidates.answers`.

    Where a batch has `proxy_features` (B, R, D) and `proxy_logits` (B, R, C), these are the proxies' outputs
    on the augmented view that the student gets, and they replace the stored ones.

    Raises:
        ValueError: shapes that do not describe the same clips, outputs that are not finite, or weights that
            are neither shares nor zero.
    """

    def __init__(
        self,
        features: Tensor,
        logits: Tensor,
        weights: Tensor,
        answers: Tensor,
        method: MethodCard,
        recipe: Recipe,
        label_smoothing: float = 0.0,
    ):
        super().__init__(label_smoothing)
        n, r, _ = logits.shape
        if answers.shape != (n,) or not features.shape[:2] == weights.shape == (n, r):
            raise ValueError(
                f"features {tuple(features.shape)}, logits {tuple(logits.shape)}, answers "
                f"{tuple(answers.shape)} and weights {tuple(weights.shape)} do not describe the same clips"
            )
        if not (features.isfinite().all() and logits.isfinite().all()):
            raise ValueError("proxies' features or logits are not finite; train these proxies again")
        sums = weights.sum(1)
        if not ((weights >= 0).all() and ((sums - 1).abs().lt(1e-4) | sums.eq(0)).all()):
            raise ValueError("a clip's weights must be at least 0 and sum to 1, or all be 0")
        self.method, self.recipe = method, recipe
        self.project = (
            nn.Linear(features.shape[2], features.shape[2]) if recipe.spd_projection else nn.Identity()
        )
        for name, value in dict(
            proxy_features=features,
            proxy_logits=logits,
            weights=weights.float(),
            answers=answers,
            proxy_loss=proxy_cross_entropy(logits, answers),
        ).items():
            self.register_buffer(name, value, persistent=False)

    @classmethod
    def create(cls, sources: "Sources", method: "Method", width: int) -> Self:
        """The objective of a student of the register, as `Classification.create`."""
        candidates, experiment = sources.candidates(method.sources), sources.experiment
        return cls(
            candidates.features,
            candidates.logits,
            method.weights(candidates),
            candidates.answers,
            method.changed(experiment.method),
            experiment.recipe,
            sources.label_smoothing(method),
        )

    def describe(self) -> dict:
        """What decides the loss, as `Classification.describe`."""
        outputs = self.proxy_features.numpy().tobytes() + self.proxy_logits.numpy().tobytes()
        return {
            "method": asdict(self.method),
            "proxies": digest(outputs),
            "weights": digest(self.weights.numpy().tobytes()),
        }

    @property
    def part_weights(self) -> dict[str, float]:
        """Weights of classification, match and divergence."""
        method = self.method
        return {
            "class_loss": method.beta_cls,
            "match_loss": method.beta_feat,
            "kl_loss": method.beta_logit,
        }

    def distances(
        self, features: Tensor, logits: Tensor, batch: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Each clip's weights, cosine distances and divergences to the proxies, (B, R) each."""
        rows = batch["rows"]
        weights = self.weights[rows]
        if self.recipe.spd_better_than_student:
            student_loss = F.cross_entropy(logits.detach(), self.answers[rows], reduction="none")
            weights = shares(weights * (self.proxy_loss[rows] < student_loss[:, None]))

        proxy_features = batch["proxy_features"] if "proxy_features" in batch else self.proxy_features[rows]
        student = self.project(features)[:, None].expand_as(proxy_features)
        match = cosine_distance(student, proxy_features)

        tau = self.method.tau
        proxy_logits = batch["proxy_logits"] if "proxy_logits" in batch else self.proxy_logits[rows]
        log_p = F.log_softmax(proxy_logits / tau, -1)
        log_q = F.log_softmax(logits / tau, -1)[:, None].expand_as(log_p)
        divergence = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1) * tau**2
        return weights, match, divergence

    def count(self, distilled: Tensor) -> Tensor | int:
        """How many clips the distillation part is averaged over, given which are distilled (B,)."""
        return len(distilled) if self.recipe.spd_average_all else distilled.sum().clamp(min=1)

    def by_source(self, features: Tensor, logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """What each proxy adds to the loss, (R,): their sum is the distillation part."""
        weights, match, divergence = self.distances(features, logits, batch)
        each = self.method.beta_feat * match + self.method.beta_logit * divergence
        return (weights * each).sum(0) / self.count(weights.sum(1) > 0)

    def forward(self, features: Tensor, logits: Tensor, batch: dict[str, Tensor]) -> Losses:
        """The losses of a batch: classification, match and divergence."""
        weights, match, divergence = self.distances(features, logits, batch)
        distilled = weights.sum(1) > 0
        count = self.count(distilled)
        match, divergence = (weights * match).sum() / count, (weights * divergence).sum() / count
        ce = self.cross_entropy(logits, batch["labels"])
        distil = self.method.beta_feat * match + self.method.beta_logit * divergence
        return {
            "loss": distil + self.method.beta_cls * ce,
            "class_loss": ce,
            "match_loss": match,
            "kl_loss": divergence,
            "distilled_share": distilled.float().mean(),
        }


def proxy_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Each proxy's cross-entropy on each clip: logits (N, R, C) and labels (N,) -> (N, R) in nats."""
    targets = labels[:, None].expand(logits.shape[:2])
    return F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")


def shares(weights: Tensor) -> Tensor:
    """Non-negative (N, R) -> rows that sum to one; a row of zeros stays so."""
    weights = weights.float()
    return weights / weights.sum(1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
