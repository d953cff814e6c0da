"""Level II: Selective Proxy Distillation (paper, section 3.2, equations 4-6), and its controls."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from uniego_utils.objectives import Classification, SelectiveDistillation
from uniego_utils.proxies import BASELINE, NAIVE, level_one_objective, teacher_targets
from uniego_utils.runs import digest, read_tensors
from uniego_utils.stage import Stage
from uniego_utils.students import describe_training, load_outputs, load_student, train_students
from uniego_utils.training import Learner

METHODS = {
    "uniego": "merged start, selective proxy distillation",
    "control": "the ego baseline, trained on for as long",
    "naive": "naive multi-teacher distillation, trained on for as long",
    "merged_ce": "merged start, labels alone for as long",
}


def select_proxies(proxy_logits: Tensor, labels: Tensor, k: int, ce_ceiling: float | None = None) -> Tensor:
    """For each clip, the k most confident among the proxies that classify it correctly (equation 4).

    Args:
        proxy_logits: (clips, proxies, classes).
        labels: (clips,) class indices.
        k: how many to select at most; fewer where fewer are correct, none where none is.
        ce_ceiling: a proxy with a higher cross-entropy is no candidate (the released recipe's 4.0).

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
    clips, proxies, _ = proxy_logits.shape
    targets = labels[:, None].expand(clips, proxies)
    loss = F.cross_entropy(proxy_logits.transpose(1, 2), targets, reduction="none")
    candidate = proxy_logits.argmax(-1) == targets
    if ce_ceiling is not None:
        candidate &= loss <= ce_ceiling
    order = loss.masked_fill(~candidate, torch.inf).argsort(dim=1, stable=True)
    selected = torch.zeros_like(candidate).scatter_(1, order[:, :k], True)
    return selected & candidate


def proxy_outputs(stage: Stage, folder: Path) -> tuple[Tensor, Tensor]:
    """Features (N, R, D) and logits (N, R, C) of all proxies on the train split."""
    cure = "run notebook 02_proxy with teacher = each"
    each = [load_outputs(folder / key, "train", cure) for key in stage.card.teachers]
    return tuple(torch.stack([output[name] for output in each], 1) for name in ("features", "logits"))


def train_level_two(
    stage: Stage, k: int, methods: list[str], proxies: Path, merged: Path, folder: Path
) -> None:
    """Train UNIEGO and the controls that get equal compute, in one pass over the data.

    Args:
        k: proxies selected per clip.
        methods: of `METHODS`.
        proxies: folder of the Level-I students.
        merged: run folder of the merged model.
        folder: holds one run folder per method afterwards.
    """
    if unknown := [name for name in methods if name not in METHODS]:
        raise ValueError(f"unknown method {', '.join(unknown)}; choose of {', '.join(METHODS)}")
    config, cure = stage.preset.spd, "run notebooks 02_proxy and 03_merging first"
    features, logits = proxy_outputs(stage, proxies)
    labels = torch.tensor(stage.manifest("train").labels)
    starts = {
        "uniego": merged,
        "merged_ce": merged,
        "control": proxies / BASELINE,
        "naive": proxies / NAIVE,
    }
    learners, configs = {}, {}
    for name in methods:
        start = load_student(starts[name], cure)
        backbone = stage.backbone()
        backbone.load_state_dict(start)
        inputs: dict = {"recipe": stage.recipe_name}
        if name == "uniego":
            selected = select_proxies(logits, labels, k, stage.recipe.spd_ce_ceiling)
            torch.manual_seed(stage.seed)
            objective = SelectiveDistillation(
                features, logits, selected, labels, stage.method, stage.recipe, config.label_smoothing
            )
            betas = [stage.method.beta_feat, stage.method.beta_logit, stage.method.beta_cls, stage.method.tau]
            inputs |= {"k": k, "betas": betas, "proxies": digest(logits.numpy().tobytes())}
        elif name == "naive":
            targets = teacher_targets(stage, stage.card.teachers)
            objective = level_one_objective(stage, NAIVE, targets, backbone.feature_width)
            objective.load_state_dict(read_tensors(proxies / NAIVE / "objective.safetensors"))
            inputs |= {"lambda_feat": stage.method.lambda_feat, "lambda_cls": stage.method.lambda_cls}
        else:
            objective = Classification(config.label_smoothing)
        learners[name] = Learner(backbone, objective)
        configs[name] = describe_training(stage, config, start, **inputs)
    train_students(stage, learners, configs, config, folder, "spd")
