"""Level II: Selective Proxy Distillation (paper, section 3.2, equations 4-6), and its controls."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uniego_utils.data.video import UNKNOWN, loader
from uniego_utils.experiment import Experiment
from uniego_utils.merging import MERGES
from uniego_utils.objectives import Classification, ProxyDistillation, proxy_cross_entropy, shares
from uniego_utils.proxies import BASELINE, NAIVE, START, common_start, level_one_objective, teacher_targets
from uniego_utils.runs import digest, read_tensors
from uniego_utils.students import (
    EVALUATION_BATCH,
    describe_training,
    load_outputs,
    load_student,
    train_students,
)
from uniego_utils.training import Learner, Teach, autocast, predict


@dataclass(frozen=True)
class Method:
    """A student of Level II: where it starts and how it learns; whom it learns from is its weights."""

    says: str  # in words
    start: str = "merged"  # a start of notebook 03, or a student of notebook 02
    changes: Mapping[str, float] = field(default_factory=dict)  # of the card's method
    drop: float = 0.0  # see `ProxyDistillation`
    direct: bool = False  # learns from the teachers themselves, as the naive student does


METHODS = {
    "uniego": Method("merged start, selective proxy distillation"),
    "control": Method("the ego baseline, trained on for as long", BASELINE),
    "naive": Method("naive multi-teacher distillation, trained on for as long", NAIVE),
    "merged_ce": Method("merged start, labels alone for as long"),
}
ABLATIONS = {  # Tables 6, 7 and 8 of the paper, and what one asks beside them
    "start_all": Method("no merge: the common start, all proxies", START),
    "start_spd": Method("no merge: the common start, selected proxies", START),
    "after_best": Method("SPD from the proxy that is best on validation clips", "best"),
    "after_average": Method("SPD from the plain average", "average"),
    "after_layer": Method("SPD from the merge per layer", "layer"),
    "after_parameter": Method("SPD from the merge per parameter", "parameter"),
    "after_soup": Method("SPD from the greedy soup", "soup"),
    "after_arithmetic": Method("SPD from task arithmetic", "arithmetic"),
    "after_ties": Method("SPD from TIES", "ties"),
    "all_proxies": Method("merged start, all proxies, right or wrong"),
    "ego_exo": Method("merged start, the best ego and the best exo proxy of each clip"),
    "top2": Method("merged start, two proxies a clip"),
    "top3": Method("merged start, three proxies a clip"),
    "features_only": Method("UNIEGO without the proxies' logits", changes={"beta_logit": 0.0}),
    "logits_only": Method("UNIEGO without the proxies' features", changes={"beta_feat": 0.0}),
    "warm": Method("UNIEGO with softer logits: temperature 4", changes={"tau": 4.0}),
}


def known_methods(names: Sequence[str], methods: Mapping[str, Method]) -> dict[str, Method]:
    """Those of `methods` called `names`; an unknown one is an error that lists the valid ones."""
    if unknown := [name for name in names if name not in methods]:
        raise ValueError(f"unknown method {', '.join(unknown)}; choose of {', '.join(methods)}")
    return {name: methods[name] for name in names}


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
        own = torch.tensor([name == group for name in groups])
        selected[:, own] = select_proxies(proxy_logits[:, own], labels, k, ce_ceiling)
    return selected


def describe_answers(
    logits: Mapping[str, Tensor], label: int, classes: Sequence[str], selected: Mapping[str, bool]
) -> pd.DataFrame:
    """What each model says of one clip, for `plots.plot_verdicts`.

    Args:
        logits: model -> (C,) of the clip.
        label: the true class.
        selected: whether a model teaches on the clip; one that isn't named does not.

    Returns:
        A row a model: `probability` of the true class, `predicted` class, `right`, `selected`.
    """
    answers = {}
    for name, scores in logits.items():
        predicted = int(scores.argmax())
        answers[name] = {
            "probability": scores.softmax(0)[label].item(),
            "predicted": classes[predicted],
            "right": predicted == label,
            "selected": bool(selected.get(name, False)),
        }
    return pd.DataFrame.from_dict(answers, orient="index")


def confidence_weights(proxy_logits: Tensor, labels: Tensor) -> Tensor:
    """Weights of Zhang et al. 2022 (CA-MKD, equation 4): (1 - softmax_r(CE_r)) / (R - 1), (N, R).

    One proxy alone has weight 1.
    """
    loss = proxy_cross_entropy(proxy_logits, labels)
    count = loss.shape[1]
    return torch.ones_like(loss) if count == 1 else (1 - loss.softmax(1)) / (count - 1)


def random_proxies(clips: int, proxies: int, seed: int) -> Tensor:
    """One proxy a clip by chance: (clips, proxies) bool. The control for every way to select one."""
    drawn = torch.randint(proxies, (clips,), generator=torch.Generator().manual_seed(seed))
    return F.one_hot(drawn, proxies).bool()


def ablation_weights(experiment: Experiment, logits: Tensor, labels: Tensor, k: int) -> dict[str, Tensor]:
    """Proxies' weights (N, R) for UNIEGO and for `ABLATIONS`, from their train-split logits (N, R, C)."""
    ceiling = experiment.recipe.spd_ce_ceiling
    top = {number: shares(select_proxies(logits, labels, number, ceiling)) for number in {k, 2, 3}}
    everyone = shares(torch.ones(logits.shape[:2]))
    viewpoints = [teacher.viewpoint for teacher in experiment.card.teachers.values()]
    special = {
        "start_all": everyone,
        "all_proxies": everyone,
        "ego_exo": shares(top_of_each(logits, labels, viewpoints, ce_ceiling=ceiling)),
        "top2": top[2],
        "top3": top[3],
    }
    return {name: special.get(name, top[k]) for name in ("uniego", *ABLATIONS)}


def proxy_outputs(pool: Sequence[Path]) -> tuple[Tensor, Tensor]:
    """Features (N, R, D) and logits (N, R, C) of R proxies on the train split, from their run folders."""
    cure = "run notebook 02_proxy with teacher = each"
    each = [load_outputs(folder, "train", cure) for folder in pool]
    return tuple(torch.stack([output[name] for output in each], 1) for name in ("features", "logits"))


def outputs_on(experiment: Experiment, pool: Sequence[Path], split: str) -> tuple[Tensor, Tensor]:
    """Features (M, R, D) and logits (M, R, C) of R proxies on any split, from their weights."""
    clips, each = experiment.clips(split), []
    for proxy in load_proxies(experiment, pool):
        each.append(
            predict(proxy, loader(clips, EVALUATION_BATCH), experiment.device, experiment.preset.spd.bf16)
        )
    return tuple(torch.stack([output[name] for output in each], 1) for name in ("features", "logits"))


def load_proxies(experiment: Experiment, pool: Sequence[Path]) -> list[nn.Module]:
    """The proxies of these run folders, on the experiment's device, in eval mode."""
    proxies = []
    for folder in pool:
        proxy = experiment.backbone()
        proxy.load_state_dict(load_student(folder, "run notebook 02_proxy"))
        proxies.append(proxy.to(experiment.device).eval())
    return proxies


def proxy_pool(experiment: Experiment) -> list[Path]:
    """The run folders of the card's proxies, in its order."""
    return [experiment.folder("02_proxy") / key for key in experiment.card.teachers]


def start_folders(experiment: Experiment) -> dict[str, Path]:
    """Where each start that a `Method` may name lies: students of notebook 02, merges of notebook 03."""
    level_one, merges = experiment.folder("02_proxy"), experiment.folder("03_merging")
    return {name: level_one / name for name in (BASELINE, NAIVE, *experiment.card.teachers)} | {
        name: merges / name for name in MERGES
    }


def student_folders(experiment: Experiment) -> dict[str, Path]:
    """Where every encoder that can be evaluated lies, by name: students of notebook 02 (with a teacher's key:
    its proxy), merges of notebook 03, students of notebook 04; checkpoints as `imported:<name>`."""
    level_two = {name: experiment.folder("04_spd") / name for name in METHODS}
    imported = {f"imported:{path.name}": path for path in sorted((experiment.outputs / "imported").glob("*"))}
    return {**start_folders(experiment), **level_two, **imported}


def watch_along(experiment: Experiment, pool: Sequence[Path], bf16: bool) -> Teach:
    """Proxies that look at each batch the students see, once for all of them.

    Returns:
        A function that adds `proxy_features` (B, R, D) and `proxy_logits` (B, R, C) to a batch.
    """
    proxies = load_proxies(experiment, pool)

    @torch.no_grad()
    def watch(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        with autocast(experiment.device, bf16):
            features, logits = zip(*(proxy(batch["clips"]) for proxy in proxies), strict=True)
        seen = {"proxy_features": torch.stack(features, 1), "proxy_logits": torch.stack(logits, 1)}
        return batch | {name: value.float() for name, value in seen.items()}

    return watch


def train_level_two(
    experiment: Experiment,
    methods: Mapping[str, Method],
    weights: Mapping[str, Tensor],
    pool: Sequence[Path],
    folder: Path,
    starts: Mapping[str, Path] | None = None,
    targets: dict[str, Tensor] | None = None,
    unlabelled: str | None = None,
    unseen: tuple[Tensor, Tensor] | None = None,
    learner_types: Mapping[str, Callable[[nn.Module, nn.Module], Learner]] | None = None,
) -> None:
    """Train students of Level II in one pass over the data; each gets a run folder below `folder`.

    Args:
        methods: by the student's name.
        weights: (N, R) by the student's name, with `unlabelled` (N + M, R); a student without any learns from
            labels alone, or, from the naive start, goes on learning from the teachers; with `direct` it
            begins to.
        pool: run folders of the R proxies.
        starts: `start_folders(experiment)` unless given.
        targets: the naive student's teachers, as for `train_level_one`; the card's unless given. With
            `unlabelled` (N + M, D_r).
        unlabelled: a split of M clips on which proxies teach too, without labels.
        unseen: what `outputs_on` gives for that split; computed unless given.
        learner_types: by the student's name, what makes a learner of model and objective; else `Learner`.
    """
    config, starts = experiment.preset.spd, starts or start_folders(experiment)
    features, logits = proxy_outputs(pool)
    labels = torch.tensor(experiment.manifest("train").labels)
    if unlabelled is not None:
        unseen = unseen or outputs_on(experiment, pool, unlabelled)
        features, logits = (torch.cat(both) for both in zip((features, logits), unseen, strict=True))
        labels = torch.cat([labels, torch.full((len(unseen[0]),), UNKNOWN)])
    outputs = digest(features.numpy().tobytes() + logits.numpy().tobytes())
    learners, configs = {}, {}
    for name, method in methods.items():
        if method.start == START:
            start = common_start(experiment)
        else:
            start = load_student(starts[method.start], "run notebooks 02_proxy and 03_merging first")
        backbone = experiment.backbone()
        backbone.load_state_dict(start)
        inputs: dict = {"recipe": experiment.recipe_name}
        if unlabelled is not None:
            inputs["unlabelled"] = experiment.manifest(unlabelled).digest
        torch.manual_seed(experiment.seed)
        if name in weights:
            settings = replace(experiment.method, **method.changes)
            objective = ProxyDistillation(
                features,
                logits,
                weights[name],
                labels,
                settings,
                experiment.recipe,
                config.label_smoothing,
                method.drop,
            )
            inputs |= {
                "method": asdict(settings),
                "drop": method.drop,
                "proxies": outputs,
                "weights": digest(weights[name].float().numpy().tobytes()),
            }
        elif method.start == NAIVE or method.direct:
            if targets is None:
                targets = teacher_targets(experiment, experiment.card.teachers)
                if unlabelled is not None:
                    more = teacher_targets(experiment, experiment.card.teachers, unlabelled)
                    targets = {key: torch.cat([rows, more[key]]) for key, rows in targets.items()}
            objective = level_one_objective(experiment, NAIVE, targets, backbone.feature_width)
            if method.start == NAIVE:
                objective.load_state_dict(read_tensors(starts[NAIVE] / "objective.safetensors"))
            inputs |= {
                "lambda_feat": experiment.method.lambda_feat,
                "lambda_cls": experiment.method.lambda_cls,
                "teachers": {key: digest(value.numpy().tobytes()) for key, value in targets.items()},
            }
        else:
            objective = Classification(config.label_smoothing)
        learners[name] = (learner_types or {}).get(name, Learner)(backbone, objective)
        if described := learners[name].describe():
            inputs["backward"] = described
        configs[name] = describe_training(experiment, config, start, **inputs)
    live = experiment.recipe.spd_live_targets and bool(weights)
    teach = partial(watch_along, experiment, pool, config.bf16) if live else None
    train_students(experiment, learners, configs, config, folder, "spd", teach=teach, unlabelled=unlabelled)
