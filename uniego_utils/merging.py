"""Merging: one model from the proxies' weights (paper, section 3.2, equation 2; Tables 7 and 10).

    theta = sum_r alpha_r theta_r, where alpha on the simplex minimises cross-entropy on training clips    (2)

`MergeLearner` learns it. The other merges need no gradient: `average` and `best` are the paper's, the greedy
soup, task arithmetic and TIES those of the literature.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uniego_utils.cards import MergeConfig, TrainConfig
from uniego_utils.data.video import loader
from uniego_utils.experiment import Experiment
from uniego_utils.methods import MERGES
from uniego_utils.runs import digest, read_json, start_run, write_json
from uniego_utils.sources import EVALUATION_BATCH
from uniego_utils.students import common_start, describe_training, finish_student
from uniego_utils.training import Learner, fit, read_metrics, write_history
from uniego_utils.weight_space import (
    MODEL,
    Weights,
    WeightSpace,
    equal_shares,
    group_weights,
    load_blend,
    open_weight_space,
)

# multiples of the mean task vector that are tried on validation clips
SCALES = (0.3, 0.5, 0.7, 1.0, 1.4, 2.0)
KEPT = 0.2  # TIES: the share of a task vector that trimming leaves (Yadav et al. 2023)


class MergeLearner(Learner):
    """Equation 2: learns one alpha on the simplex per group of weights, at first uniform.

    With alpha = softmax(raw), the chain rule gives dL/dalpha_{g,r} = <theta_r[g], dL/dtheta[g]>: one forward
    and backward pass of a single merged model and matrix-vector products over the stacked proxies, with no
    graph through the blend. In memory there are the stack, one model and its gradient.

    The model itself is not trained. It stays in eval mode: with the blend's running statistics and without
    dropout, L is a function of alpha alone.

    Args:
        groups: of `group_weights`.
    """

    def __init__(self, space: WeightSpace, groups: Mapping[str, str]):
        super().__init__(space.model.eval())
        self.space, self.groups = space, groups
        self.rows = {group: row for row, group in enumerate(dict.fromkeys(groups.values()))}
        self.raw = nn.Parameter(torch.zeros(len(self.rows), len(space.names), device=space.device))

    @property
    def modules(self) -> nn.ModuleDict:
        """All that is trained."""
        return nn.ModuleDict({"alpha": nn.ParameterList([self.raw])})

    @property
    def alpha(self) -> dict[str, Tensor]:
        """Group -> coefficients (R,)."""
        return dict(zip(self.rows, self.raw.detach().softmax(1), strict=True))

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The merged model's cross-entropy."""
        load_blend(self.model.state_dict(), self.space.stacked, self.alpha, self.groups)
        logits = self.outputs(batch)[1]
        return {"loss": F.cross_entropy(logits, batch["labels"]).double()}  # `fit` sums it over an epoch

    def backward(self, batch: dict[str, Tensor], together: int) -> dict[str, Tensor]:
        """Add dL/draw to its gradient, by the chain rule through the blend."""
        self.model.zero_grad()
        losses = super().backward(batch, together)  # dL/dtheta
        alpha = self.raw.softmax(1)
        gradient = torch.zeros_like(alpha)  # dL/dalpha
        for name, theta in self.model.named_parameters():
            if theta.grad is not None:  # a parameter that plays no part has no gradient
                proxies, row = self.space.stacked[name], self.rows[self.groups[name]]
                gradient[row] += proxies.flatten(1) @ theta.grad.flatten()
        alpha.backward(gradient)  # through the softmax
        return losses

    def notes(self) -> dict:
        """alpha: (R,) if there is one group, else (groups, R)."""
        alpha = [row.tolist() for row in self.alpha.values()]
        return {"alpha": alpha if len(alpha) > 1 else alpha[0]}


def learn_alpha(
    space: WeightSpace,
    groups: Mapping[str, str],
    batches: Callable[[int], Iterable[dict]],
    config: MergeConfig,
    seed: int,
    checkpoint: Path,
    progress: bool = True,
) -> tuple[dict[str, Tensor], list[dict]]:
    """Minimise equation 2 with Adam; resume from `checkpoint` if there is one.

    Args:
        groups: of `group_weights`.
        batches: epoch -> batches of the train split.
        checkpoint: file written after every epoch and removed by the caller once results are saved.

    Returns:
        alpha, group -> (R,), and one record per epoch with the mean loss and alpha.

    Raises:
        FloatingPointError: a loss is not finite; names the epoch.
    """
    learner = MergeLearner(space, groups)
    training = TrainConfig(**asdict(config), optimizer="adam", milestones=())
    try:
        history = fit(
            {"merge": learner}, batches, training, seed, checkpoint, space.device, progress=progress
        )
    except FloatingPointError as error:
        error.add_note("Are the clips finite, and do the proxies share their start?")
        raise
    return {group: row.cpu() for group, row in learner.alpha.items()}, history["merge"]


def average(scores: Mapping[str, dict], evaluate: Callable) -> tuple[Tensor, list[dict]]:
    """All proxies alike; arguments and results as of `greedy_soup`."""
    return equal_shares(list(scores), list(scores)), []


def best(scores: Mapping[str, dict], evaluate: Callable) -> tuple[Tensor, list[dict]]:
    """The proxy of the highest validation accuracy, the first of equals; as `greedy_soup`."""
    return equal_shares(list(scores), [max(scores, key=lambda name: scores[name]["val_top1"])]), []


def greedy_soup(
    scores: Mapping[str, Mapping[str, float]], evaluate: Callable[[Tensor], dict[str, float]]
) -> tuple[Tensor, list[dict]]:
    """Average the proxies that do not harm: best first, one is added if validation accuracy does not drop.

    Args:
        scores: proxy -> `val_top1`, `val_nll`; proxies of equal accuracy are tried in order of the latter.
        evaluate: alpha (R,), in the order of `scores` -> the same two numbers of that mixture.

    Returns:
        alpha (R,), equal among those kept, and a record for each proxy tried.

    Source: Wortsman et al. 2022, arXiv:2203.05482, recipe 1.
    """
    names = list(scores)
    kept, highest, history = [], -math.inf, []
    for name in sorted(names, key=lambda name: (-scores[name]["val_top1"], scores[name]["val_nll"])):
        tried = evaluate(equal_shares(names, [*kept, name]))
        keep = tried["val_top1"] >= highest
        if keep:
            kept, highest = [*kept, name], tried["val_top1"]
        history.append({"proxy": name, **tried, "kept": keep})
    return equal_shares(names, kept), history


def sum_of_task_vectors(stacked: Weights, start: Weights) -> Weights:
    """Task arithmetic's direction, sum_r (theta_r - theta_0).

    Args:
        stacked: parameters of R proxies, (R, ...) each.
        start: theta_0, the proxies' common start.

    Source: Ilharco et al. 2023, arXiv:2212.04089.
    """
    return {name: (proxies - start[name].to(proxies)).sum(0) for name, proxies in stacked.items()}


def ties_vector(stacked: Weights, start: Weights, kept: float = KEPT) -> Weights:
    """TIES: trim each task vector, elect a sign for every number, average those that have it.

    Of every theta_r - theta_0 the largest share `kept` stays (all of equal magnitude at the edge), the rest
    is zero. A number's sign is that of the sum over proxies; where the sum is zero, no sign is elected and
    the result is zero. Zeros are not counted in the average.

    Args: as of `sum_of_task_vectors`.

    Source: Yadav et al. 2023, arXiv:2306.01708.
    """
    edges = []  # the smallest magnitude that stays, by proxy
    for r in range(len(next(iter(stacked.values())))):  # one vector at a time: it is as large as a model
        vector = [(proxies[r] - start[name].to(proxies)).abs().flatten() for name, proxies in stacked.items()]
        sizes = torch.cat(vector)
        edges.append(sizes.kthvalue(len(sizes) - max(1, int(kept * len(sizes))) + 1).values)
    merged = {}
    for name, proxies in stacked.items():
        vectors = proxies - start[name].to(proxies)
        edge = torch.stack(edges).view(-1, *[1] * (vectors.ndim - 1))
        trimmed = vectors.where(vectors.abs() >= edge, 0)
        agreeing = trimmed.where(trimmed.sign() == trimmed.sum(0).sign(), 0)
        merged[name] = agreeing.sum(0) / (agreeing != 0).sum(0).clamp(min=1)
    return merged


def search_scale(
    space: WeightSpace, start: Weights, direction: Weights, scales: Sequence[float]
) -> list[dict]:
    """Evaluate start + scale * direction for every scale; the model keeps the one of lowest validation NLL.

    Returns:
        A record per scale, the chosen one marked by `kept`.
    """
    history = []
    for scale in scales:
        space.move(start, direction, scale)
        history.append({"scale": scale, **space.evaluate("val")})
    lowest = min(history, key=lambda record: record["val_nll"])
    space.move(start, direction, lowest["scale"])
    return [{**record, "kept": record is lowest} for record in history]


def shared_start(experiment: Experiment, expected: str) -> Weights:
    """The weights that all proxies started from; `expected` is their digest.

    Raises:
        ValueError: the experiment's common start is another one.
    """
    start = common_start(experiment)
    if describe_training(experiment, experiment.preset.proxy, start)["start"] != expected:
        raise ValueError(
            "the common start is not the one that the proxies were trained from; "
            "give the same pretrained weights, or run notebook 02_proxy again in a new folder of outputs"
        )
    return start


LEARNED = {"merged": "model", "layer": "layer", "parameter": "parameter"}  # merge -> what shares one alpha
CHOICES = {"average": average, "best": best, "soup": greedy_soup}
DIRECTIONS = {"arithmetic": sum_of_task_vectors, "ties": ties_vector}  # from the common start


def describe_merges(
    experiment: Experiment, merges: Sequence[str], proxies: Mapping[str, Path]
) -> dict[str, dict]:
    """What decides each merge, for its `config.json`; `proxies` are run folders."""
    config, recipe = experiment.preset.merge, experiment.recipe
    if recipe.merge_lr is not None:
        config = replace(config, lr=recipe.merge_lr, weight_decay=recipe.merge_weight_decay)
    digests = {key: digest(folder / "model.safetensors") for key, folder in proxies.items()}
    general = describe_training(experiment, config, None)
    clips = {key: general[key] for key in ("backbone", "video", "manifest")}
    configs = {}
    for name in merges:
        described = {"seed": experiment.seed, "proxies": digests, "start": name}
        if name in LEARNED:
            described["merge"] = asdict(config)
        if name not in ("merged", "average", "best"):  # runs of these exist, described without their clips
            described |= clips
        if name == "soup" or name in DIRECTIONS:
            described["validation"] = experiment.manifest("val").digest
        if name in DIRECTIONS:
            origins = {read_json(folder / "config.json")["config"]["start"] for folder in proxies.values()}
            if len(origins) > 1:
                raise ValueError(
                    f"the proxies do not share one start, from which {name} measures; "
                    "train them with teacher = each"
                )
            # the sum of R task vectors is R times their mean; TIES gives a mean
            unit = 1 / len(proxies) if name == "arithmetic" else 1.0
            described |= {"common_start": origins.pop(), "scales": [unit * scale for scale in SCALES]}
        if name == "ties":
            described["kept"] = KEPT
        configs[name] = described
    return configs


def merge(
    experiment: Experiment,
    merges: Sequence[str] = MERGES,
    proxies: Mapping[str, Path] | None = None,
    folder: Path | None = None,
) -> Path:
    """Merge a seed's proxies into starts for Level II and score each.

    Args:
        merges: of `MERGES`. `merged`, `layer` and `parameter` learn alpha on training clips; `average` is
            uniform; `best` is the proxy and `soup` the greedy soup of the highest validation accuracy;
            `arithmetic` and `ties` go from the common start along the proxies' task vectors, to where
            validation NLL is lowest.
        proxies: key -> run folder; None: notebook 02's.
        folder: where the merges go; None: notebook 03's.

    Returns:
        The folder with one run folder per merge, each with `alpha.json` (teacher -> coefficient; for `layer`
        and `parameter` group -> teacher -> coefficient) or `scale.json`. What was tried or learned on the way
        is in `history.jsonl`.

    Raises:
        ValueError: an unknown merge, or proxies that cannot be merged.
        FloatingPointError: a loss is not finite.
    """
    if unknown := [name for name in merges if name not in MERGES]:
        raise ValueError(f"unknown merge {', '.join(unknown)}; choose of {', '.join(MERGES)}")
    proxies = proxies or {key: experiment.folder("02_proxy") / key for key in experiment.card.teachers}
    folder = folder or experiment.folder("03_merging")
    space = open_weight_space(experiment, proxies)
    configs = describe_merges(experiment, merges, proxies)
    todo = [name for name in merges if not start_run(folder / name, configs[name])]
    if not todo:
        print(f"{folder.name}: {', '.join(merges)} finished before, reused")
        return folder
    clips = {split: experiment.clips(split) for split in experiment.scored_splits}
    space.batches = {split: loader(dataset, EVALUATION_BATCH) for split, dataset in clips.items()}
    scores = {key: read_metrics(path) for key, path in proxies.items()}
    for name in todo:
        run, config = folder / name, configs[name]
        checkpoint = run / "checkpoint.safetensors"
        if name in LEARNED:
            training, groups = MergeConfig(**config["merge"]), group_weights(space.model, LEARNED[name])
            batches = partial(loader, clips["train"], training.batch_size, experiment.seed)
            learned, history = learn_alpha(space, groups, batches, training, experiment.seed, checkpoint)
            space.blend(learned, groups)
            alpha = {group: space.named(row) for group, row in learned.items()}
            write_json(run / "alpha.json", alpha[MODEL] if name == "merged" else alpha)
        elif name in CHOICES:
            alpha, history = CHOICES[name](scores, space.evaluate_blend)
            space.blend(alpha)
            write_json(run / "alpha.json", space.named(alpha))
        else:
            start = shared_start(experiment, config["common_start"])
            parameters = {key: space.stacked[key] for key, _ in space.model.named_parameters()}
            history = search_scale(space, start, DIRECTIONS[name](parameters, start), config["scales"])
            chosen = next(record["scale"] for record in history if record["kept"])
            write_json(run / "scale.json", {"scale": chosen})
        if history:
            write_history(run, history)
        finish_student(run, Learner(space.model), clips, experiment.device)
        checkpoint.unlink(missing_ok=True)
    return folder
