"""What the students minimise: equations 1, 5 and 6 of the paper, and the baselines' losses.

An objective is a module called with a student's features (B, D), logits (B, C) and a batch with `labels` (B,)
and `rows` (B,), the clips' places in the manifest. It returns a dict of scalar losses; `loss` is the total.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uniego_utils.manifests import MethodCard
from uniego_utils.recipes import Recipe

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

    def __init__(self, label_smoothing: float = 0.0):
        super().__init__()
        self.label_smoothing = label_smoothing

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy over the batch."""
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)

    def forward(self, features: Tensor, logits: Tensor, batch: dict[str, Tensor]) -> Losses:
        """See the module's text."""
        loss = self.cross_entropy(logits, batch["labels"])
        return {"loss": loss, "class_loss": loss.detach()}


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
        self.weight = method.lambda_feat if recipe.level1_weight is None else recipe.level1_weight
        self.class_weight, self.project_teacher = method.lambda_cls, recipe.projects_teacher
        self.keys = list(targets)
        self.project = nn.ModuleDict()
        for key, features in targets.items():
            sizes = (features.shape[1], width) if self.project_teacher else (width, features.shape[1])
            self.project[key] = nn.Linear(*sizes)
            self.register_buffer(f"targets_{key}", features, persistent=False)

    def forward(self, features: Tensor, logits: Tensor, batch: dict[str, Tensor]) -> Losses:
        """See the module's text."""
        distances = []
        for key in self.keys:
            teacher = getattr(self, f"targets_{key}")[batch["rows"]]
            if self.project_teacher:
                distances.append(cosine_distance(features, self.project[key](teacher)).mean())
            else:
                distances.append(cosine_distance(self.project[key](features), teacher).mean())
        match, ce = torch.stack(distances).mean(), self.cross_entropy(logits, batch["labels"])
        loss = self.weight * match + self.class_weight * ce
        return {"loss": loss, "class_loss": ce.detach(), "match_loss": match.detach()}


class SelectiveDistillation(Classification):
    """Equations 5 and 6: each clip learns from its own selected proxies.

    Args:
        features: (N, R, D) proxies' features of the train split.
        logits: (N, R, C) proxies' logits.
        selected: (N, R) bool from `spd.select_proxies`; a clip without any learns from its label alone.
    """

    def __init__(
        self,
        features: Tensor,
        logits: Tensor,
        selected: Tensor,
        labels: Tensor,
        method: MethodCard,
        recipe: Recipe,
        label_smoothing: float = 0.0,
    ):
        super().__init__(label_smoothing)
        n, r, c = logits.shape
        fits = labels.shape == (n,) and features.shape[:2] == selected.shape == (n, r)
        if not fits or selected.dtype != torch.bool:
            raise ValueError(
                f"features {tuple(features.shape)}, logits {tuple(logits.shape)}, "
                f"labels {tuple(labels.shape)} and selected {tuple(selected.shape)} ({selected.dtype}) "
                "do not describe the same clips"
            )
        if not (features.isfinite().all() and logits.isfinite().all()):
            raise ValueError("proxies' features or logits are not finite; train these proxies again")
        self.method, self.recipe = method, recipe
        self.project = (
            nn.Linear(features.shape[2], features.shape[2]) if recipe.spd_projection else nn.Identity()
        )
        proxy_loss = F.cross_entropy(logits.transpose(1, 2), labels[:, None].expand(n, r), reduction="none")
        for name, value in dict(
            proxy_features=features, proxy_logits=logits, selected=selected, proxy_loss=proxy_loss
        ).items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, features: Tensor, logits: Tensor, batch: dict[str, Tensor]) -> Losses:
        """See the module's text."""
        rows, labels = batch["rows"], batch["labels"]
        selected = self.selected[rows]
        if self.recipe.spd_better_than_student:
            own = F.cross_entropy(logits.detach(), labels, reduction="none")
            selected = selected & (self.proxy_loss[rows] < own[:, None])
        weights = selected.float() / selected.sum(1, keepdim=True).clamp(min=1)  # (B, R): 1/|S_i| or 0

        proxy_features = self.proxy_features[rows]
        student = self.project(features)[:, None].expand_as(proxy_features)
        match = (weights * cosine_distance(student, proxy_features)).sum(1)

        tau = self.method.tau
        teacher = F.log_softmax(self.proxy_logits[rows] / tau, -1)
        own = F.log_softmax(logits / tau, -1)[:, None].expand_as(teacher)
        divergence = F.kl_div(own, teacher, reduction="none", log_target=True).sum(-1) * tau**2
        divergence = (weights * divergence).sum(1)

        count = len(rows) if self.recipe.spd_average_all else selected.any(1).sum().clamp(min=1)
        match, divergence = match.sum() / count, divergence.sum() / count
        ce = self.cross_entropy(logits, labels)
        distil = self.method.beta_feat * match + self.method.beta_logit * divergence
        return {
            "loss": distil + self.method.beta_cls * ce,
            "class_loss": ce.detach(),
            "match_loss": match.detach(),
            "kl_loss": divergence.detach(),
            "distilled_share": selected.any(1).float().mean(),
        }
