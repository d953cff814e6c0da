"""Merging: one model from the proxies' weights (paper, section 3.2, equation 2; Tables 7 and 10).

The proxies lie side by side in one state dict whose tensors have a leading axis R (`stack_proxies`). So a
blend and its slope are one matrix-vector product a tensor, and no other copy of the proxies is held.
"""

import math
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from uniego_utils.cards import MergeConfig
from uniego_utils.data.video import ClipDataset, loader
from uniego_utils.experiment import Experiment
from uniego_utils.objectives import Classification
from uniego_utils.runs import digest, read_json, start_run, write_json
from uniego_utils.sources import EVALUATION_BATCH, load_student
from uniego_utils.students import SPLITS, common_start, describe_training, finish_student
from uniego_utils.training import Learner, predict, read_metrics, score, write_history

Weights = dict[str, Tensor]  # a state dict
STARTS = ("merged", "layer", "parameter", "average", "best", "soup", "arithmetic", "ties")
# learned starts -> what shares one alpha
LEVELS = {"merged": "model", "layer": "layer", "parameter": "parameter"}
MODEL = "model"  # the only group where one alpha serves the whole model
STEM = "stem"  # the layer of all that comes before the blocks
BLOCK = re.compile(r"(.*\.)?blocks\.\d+(?=\.)")
NUMBERED = re.compile(r".+?(\.\d+)+(?=\.)")  # stages.1.4 of stages.1.4.conv.weight
# multiples of the mean task vector that are tried on validation clips
SCALES = (0.3, 0.5, 0.7, 1.0, 1.4, 2.0)
KEPT = 0.2  # TIES: the share of a task vector that trimming leaves (Yadav et al. 2023)


def stack_proxies(
    like: Weights,
    names: Sequence[str],
    load: Callable[[str], Weights],
    device: torch.device | str = "cpu",
) -> Weights:
    """The weights of R proxies in one state dict, (R, ...) each; one proxy is read at a time.

    Args:
        like: a state dict of the proxies' architecture.
        names: R names; `load(name)` gives that proxy's state dict.

    Raises:
        ValueError: a proxy is of another architecture, or holds a number that is not finite.
    """
    shapes = {name: value.shape for name, value in like.items()}
    stacked = {
        name: torch.empty((len(names), *value.shape), dtype=value.dtype, device=device)
        for name, value in like.items()
    }
    for row, proxy in enumerate(names):
        weights = load(proxy)
        if {name: value.shape for name, value in weights.items()} != shapes:
            raise ValueError(
                f"proxies differ in architecture ({proxy} from the others or from the preset's backbone); "
                "merge proxies of one backbone and size"
            )
        for name, value in weights.items():
            if not value.isfinite().all():
                raise ValueError(f"proxy {proxy} has weights that are not finite in {name}; train it anew")
            stacked[name][row] = value
    return stacked


def merge_weights(proxies: list[Weights], alpha: Tensor) -> Weights:
    """The convex combination sum_r alpha_r theta_r, of parameters and running statistics alike.

    Args:
        proxies: R state dicts with the same names and shapes. Integer entries (counters) are the first's.
        alpha: (R,) non-negative, summing to one.

    Raises:
        ValueError: alpha is not on the simplex, or the proxies are of different architectures.
    """
    if alpha.shape != (len(proxies),) or (alpha < 0).any() or not abs(alpha.sum().item() - 1) <= 1e-5:
        raise ValueError(
            f"{len(proxies)} proxies need as many weights >= 0 that sum to 1, got {alpha.tolist()}"
        )
    stacked = stack_proxies(proxies[0], range(len(proxies)), proxies.__getitem__)
    blend = {name: torch.empty_like(value) for name, value in proxies[0].items()}
    load_blend(blend, stacked, {MODEL: alpha}, dict.fromkeys(blend, MODEL))
    return blend


@torch.no_grad()
def load_blend(state: Weights, stacked: Weights, alpha: Mapping[str, Tensor], groups: dict[str, str]) -> None:
    """Overwrite `state` by sum_r alpha[group]_r theta_r, every tensor with its group's coefficients.

    Args:
        state: a model's `state_dict()`, which shares its memory. Integer entries become the first proxy's.
        stacked: of `stack_proxies`.
        alpha: group -> (R,).
        groups: of `group_weights`.
    """
    for name, value in state.items():
        if value.is_floating_point():
            value.copy_(torch.tensordot(alpha[groups[name]].to(value), stacked[name], 1))
        else:
            value.copy_(stacked[name][0])


def group_weights(model: nn.Module, level: str) -> dict[str, str]:
    """Which entries of a state dict share their merging coefficients: entry -> name of its group.

    Args:
        level: `model`, one group; `layer`, see `name_layers`; `parameter`, a group for every named parameter
            tensor. The paper's "individual parameters" are read as tensors, because a coefficient for every
            number would need three more copies of the whole stack (coefficients and Adam's two moments).

    Running statistics belong to the group of their module's first parameter.
    """
    names = list(model.state_dict())
    if level == "model":
        return dict.fromkeys(names, MODEL)
    if level == "layer":
        return name_layers(names)
    if level != "parameter":
        raise ValueError(f"unknown level {level!r}; choose one of {', '.join(LEVELS.values())}")
    parameters = [name for name, _ in model.named_parameters()]
    first: dict[str, str] = {}  # module -> its first parameter
    for name in parameters:
        first.setdefault(name.rpartition(".")[0], name)
    return {name: name if name in parameters else first.get(name.rpartition(".")[0], name) for name in names}


def name_layers(names: Sequence[str]) -> dict[str, str]:
    """The layer of every entry of a state dict, read off its name.

    With `blocks.<number>` among the names, a block is a layer and all before the first block is the stem. Any
    other entry's layer is its name up to the first run of numbers (`stages.1.4`), or else its first component
    (`norm`, `head`).
    """
    first_block = next((place for place, name in enumerate(names) if BLOCK.match(name)), 0)
    layers = {}
    for place, name in enumerate(names):
        numbered = BLOCK.match(name) or NUMBERED.match(name)
        layers[name] = numbered[0] if numbered else name.partition(".")[0]
        if place < first_block:
            layers[name] = STEM
    return layers


def learn_alpha(
    model: nn.Module,
    stacked: Weights,
    groups: dict[str, str],
    batches: Callable[[int], Iterable[dict]],
    config: MergeConfig,
    device: torch.device,
    progress: bool = True,
) -> tuple[dict[str, Tensor], list[dict]]:
    """Minimise the merged model's cross-entropy over one alpha on the simplex per group, with Adam.

    One group is equation 2. By the chain rule dL/dalpha_{g,r} = <theta_r[g], dL/dtheta[g]>: one forward and
    backward pass of a single merged model and matrix-vector products over the stacked proxies, with no graph
    through the blend. In memory there are the stack, one model and its gradient.

    Args:
        model: a backbone of the proxies' architecture; its weights are overwritten.
        stacked: of `stack_proxies`, on `device`.
        groups: of `group_weights`.
        batches: epoch -> batches of the train split.

    Returns:
        alpha, group -> (R,), and one record per epoch with the mean loss and alpha: (R,) if there is one
        group, else (groups, R) in order of appearance.

    Raises:
        FloatingPointError: a loss is not finite; names the epoch.
    """
    model.to(device).eval()  # frozen running statistics and no dropout: L is a function of alpha alone
    raw, optimizer = _uniform(stacked, groups, config)
    history = []
    for epoch in range(config.epochs):
        total, clips = 0.0, 0
        for batch in tqdm(batches(epoch), f"merge epoch {epoch + 1}", disable=not progress, leave=False):
            batch = {key: batch[key].to(device) for key in ("clips", "labels")}
            loss = _step(model, stacked, groups, raw, optimizer, batch).item()
            if not math.isfinite(loss):
                raise FloatingPointError(
                    f"merging: the loss is {loss} in epoch {epoch + 1}; are the clips finite, "
                    "do the proxies share their start?"
                )
            total, clips = total + loss * len(batch["labels"]), clips + len(batch["labels"])
        alpha = raw.detach().softmax(1).cpu()
        history.append({"epoch": epoch + 1, "loss": total / clips, "alpha": alpha.squeeze(0).tolist()})
    return dict(zip(dict.fromkeys(groups.values()), alpha, strict=True)), history


def _uniform(
    stacked: Weights, groups: dict[str, str], config: MergeConfig
) -> tuple[Tensor, torch.optim.Adam]:
    """raw (groups, R), with alpha = softmax(raw) uniform at first, and its optimiser."""
    some = next(iter(stacked.values()))
    raw = torch.zeros(len(set(groups.values())), len(some), device=some.device, requires_grad=True)
    return raw, torch.optim.Adam([raw], config.lr, weight_decay=config.weight_decay)


def _step(
    model: nn.Module,
    stacked: Weights,
    groups: dict[str, str],
    raw: Tensor,
    optimizer: torch.optim.Adam,
    batch: dict[str, Tensor],
) -> Tensor:
    """One step of Adam on raw; the loss before it."""
    alpha = raw.softmax(1)
    rows = {group: row for row, group in enumerate(dict.fromkeys(groups.values()))}
    load_blend(model.state_dict(), stacked, dict(zip(rows, alpha.detach(), strict=True)), groups)
    model.zero_grad()
    loss = F.cross_entropy(model(batch["clips"])[1].float(), batch["labels"])
    loss.backward()
    slope = torch.zeros_like(alpha)  # dL/dalpha
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:  # a parameter that plays no part has no slope
            slope[rows[groups[name]]] += stacked[name].flatten(1) @ parameter.grad.flatten()
    optimizer.zero_grad()
    alpha.backward(slope)  # through the softmax
    optimizer.step()
    return loss.detach()


def time_step(experiment: Experiment, level: str = "model", repeats: int = 5) -> dict[str, float]:
    """What learning alpha costs: the fastest of `repeats` runs, in seconds, on noise of the preset's shape.

    Returns:
        `plain`: forward and backward of one model; `pass`: reading the stacked proxies once, as a
        matrix-vector product a tensor; `step`: one step of alpha.
    """
    model = experiment.backbone().to(experiment.device).eval()
    names = list(experiment.card.teachers)
    stacked = stack_proxies(model.state_dict(), names, lambda name: model.state_dict(), experiment.device)
    groups = group_weights(model, level)
    raw, optimizer = _uniform(stacked, groups, experiment.preset.merge)
    video, count = experiment.preset.video, experiment.preset.merge.batch_size
    shape = (count, 3, video.num_frames, video.image_size, video.image_size)
    labels = torch.arange(count, device=experiment.device) % len(experiment.card.classes)
    batch = {"clips": torch.randn(shape, device=experiment.device), "labels": labels}

    def plain() -> None:
        model.zero_grad()
        F.cross_entropy(model(batch["clips"])[1].float(), batch["labels"]).backward()

    def read() -> None:
        for name, parameter in model.named_parameters():
            stacked[name].flatten(1) @ parameter.detach().flatten()

    def step() -> None:
        _step(model, stacked, groups, raw, optimizer, batch)

    seconds = dict.fromkeys(("plain", "pass", "step"), math.inf)
    for _ in range(repeats):  # in turn: whatever else the machine does meets all three
        for name, work in zip(seconds, (plain, read, step), strict=True):
            started = time.perf_counter()
            work()
            if experiment.device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name] = min(seconds[name], time.perf_counter() - started)
    return seconds


def greedy_soup(
    scores: dict[str, dict], look: Callable[[Tensor], dict[str, float]]
) -> tuple[Tensor, list[dict]]:
    """Average the proxies that do not harm: best first, one is added if validation accuracy does not drop.

    Args:
        scores: proxy -> `val_top1`, `val_nll`; proxies of equal accuracy are tried in order of the latter.
        look: alpha (R,), in the order of `scores` -> the same two numbers of that mixture.

    Returns:
        alpha (R,), equal among those kept, and a record for each proxy tried.

    Source: Wortsman et al. 2022, arXiv:2203.05482, recipe 1.
    """
    names = list(scores)
    kept, best, history = [], -math.inf, []
    for name in sorted(names, key=lambda name: (-scores[name]["val_top1"], scores[name]["val_nll"])):
        seen = look(_equal(names, [*kept, name]))
        keep = seen["val_top1"] >= best
        if keep:
            kept, best = [*kept, name], seen["val_top1"]
        history.append({"proxy": name, **seen, "kept": keep})
    return _equal(names, kept), history


def _equal(names: Sequence[str], chosen: Sequence[str]) -> Tensor:
    """Equal coefficients for the chosen, zero for the others."""
    return torch.tensor([(name in chosen) / len(chosen) for name in names])


def sum_of_task_vectors(stacked: Weights, start: Weights) -> Weights:
    """Task arithmetic's direction, sum_r (theta_r - theta_0).

    Args:
        stacked: parameters of R proxies, (R, ...) each.
        start: theta_0, the proxies' common start.

    Source: Ilharco et al. 2023, arXiv:2212.04089.
    """
    return {name: (pool - start[name].to(pool)).sum(0) for name, pool in stacked.items()}


def ties_vector(stacked: Weights, start: Weights, kept: float = KEPT) -> Weights:
    """TIES: trim each task vector, elect a sign for every number, average those that have it.

    Of every theta_r - theta_0 the largest share `kept` stays (all of equal magnitude at the edge), the rest
    is zero. A number's sign is that of the sum over proxies; where the sum is zero, nobody is elected and
    the result is zero. Zeros are not counted in the average.

    Args: as of `sum_of_task_vectors`.

    Source: Yadav et al. 2023, arXiv:2306.01708.
    """
    edges = []  # the smallest magnitude that stays, by proxy
    for r in range(
        len(next(iter(stacked.values())))
    ):  # one task vector at a time: they are as large as a model
        sizes = torch.cat(
            [(pool[r] - start[name].to(pool)).abs().flatten() for name, pool in stacked.items()]
        )
        edges.append(sizes.kthvalue(len(sizes) - max(1, int(kept * len(sizes))) + 1).values)
    merged = {}
    for name, pool in stacked.items():
        vectors = pool - start[name].to(pool)
        edge = torch.stack(edges).view(-1, *[1] * (vectors.ndim - 1))
        trimmed = vectors.where(vectors.abs() >= edge, 0)
        agreeing = trimmed.where(trimmed.sign() == trimmed.sum(0).sign(), 0)
        merged[name] = agreeing.sum(0) / (agreeing != 0).sum(0).clamp(min=1)
    return merged


# start -> its direction from the common start
DIRECTIONS = {"arithmetic": sum_of_task_vectors, "ties": ties_vector}


def reestimate_statistics(model: nn.Module, batches: Iterable[dict], device: torch.device) -> None:
    """BatchNorm's running statistics, measured anew: the proxies' combined are not the merged model's."""
    model.to(device).train()
    sums: dict[nn.Module, list] = {}  # of each norm's inputs: count, sum and sum of squares per channel

    def gather(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        values = inputs[0].detach().double().transpose(0, 1).flatten(1)  # (channels, all else)
        new = [values.shape[1], values.sum(1), values.square().sum(1)]
        sums[norm] = [a + b for a, b in zip(sums.get(norm, (0, 0, 0)), new, strict=True)]

    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    hooks = [norm.register_forward_pre_hook(gather) for norm in norms]
    with torch.no_grad():
        for batch in batches if norms else ():
            model(batch["clips"].to(device))
    for hook in hooks:
        hook.remove()
    for norm, (count, total, squares) in sums.items():
        norm.running_mean.copy_(total / count)
        norm.running_var.copy_((squares - total.square() / count) / (count - 1))
    model.eval()


@dataclass
class Mixer:
    """One model that takes any mixture of the proxies, and shows it to the validation clips."""

    experiment: Experiment
    model: nn.Module  # on the experiment's device
    stacked: Weights
    clips: dict[str, ClipDataset]  # by split

    def mix(self, alpha: Mapping[str, Tensor], groups: dict[str, str]) -> None:
        """The proxies' blend; alpha and groups as of `load_blend`."""
        load_blend(self.model.state_dict(), self.stacked, alpha, groups)
        if torch.stack(list(alpha.values())).any(0).sum() > 1:  # one proxy alone keeps its own statistics
            self.settle()

    def mix_whole(self, alpha: Tensor) -> None:
        """The blend with one alpha (R,) for the whole model."""
        self.mix({MODEL: alpha}, group_weights(self.model, "model"))

    def look_at(self, alpha: Tensor) -> dict[str, float]:
        """Mix one alpha (R,) and look."""
        self.mix_whole(alpha)
        return self.look()

    def go(self, start: Weights, direction: Weights, scale: float) -> None:
        """start + scale * direction in all parameters; all else is averaged before it is measured anew."""
        proxies = len(next(iter(self.stacked.values())))
        state = self.model.state_dict()
        uniform = {MODEL: torch.full((proxies,), 1 / proxies)}
        load_blend(state, self.stacked, uniform, group_weights(self.model, "model"))
        for name, vector in direction.items():
            state[name].copy_(start[name].to(vector) + scale * vector)
        self.settle()

    def settle(self) -> None:
        """Running statistics measured on the training clips."""
        torch.manual_seed(self.experiment.seed)  # of dropout: the same weights always get the same statistics
        reestimate_statistics(
            self.model, loader(self.clips["train"], EVALUATION_BATCH), self.experiment.device
        )

    def look(self) -> dict[str, float]:
        """Accuracy and loss on validation clips. Raises FloatingPointError if the loss is not finite."""
        val = self.clips["val"]
        logits = predict(self.model, loader(val, EVALUATION_BATCH), self.experiment.device)["logits"]
        scores = score(logits, torch.tensor(val.labels))
        if not math.isfinite(scores["nll"]):
            raise FloatingPointError(f"a mixture's loss on validation clips is {scores['nll']}")
        return {f"val_{name}": value for name, value in scores.items()}


def search_scale(mixer: Mixer, start: Weights, direction: Weights, scales: Sequence[float]) -> list[dict]:
    """Look at start + scale * direction for every scale; the one of lowest validation NLL stays in the model.

    Returns:
        A record per scale, the chosen one marked by `kept`.
    """
    history = []
    for scale in scales:
        mixer.go(start, direction, scale)
        history.append({"scale": scale, **mixer.look()})
    best = min(history, key=lambda record: record["val_nll"])
    mixer.go(start, direction, best["scale"])
    return [{**record, "kept": record is best} for record in history]


def describe_starts(
    experiment: Experiment, starts: Sequence[str], config: MergeConfig, proxies: Mapping[str, Path]
) -> dict[str, dict]:
    """What decides each start, for its `config.json`; `proxies` are run folders."""
    digests = {key: digest(folder / "model.safetensors") for key, folder in proxies.items()}
    general = describe_training(experiment, config, None)
    clips = {key: general[key] for key in ("backbone", "video", "manifest")}
    configs = {}
    for name in starts:
        described = {"seed": experiment.seed, "proxies": digests, "start": name}
        if name in LEVELS:
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


def shared_start(experiment: Experiment, expected: str) -> Weights:
    """The weights that all proxies started from, on the experiment's device; `expected` is their digest.

    Raises:
        ValueError: the experiment's common start is another one.
    """
    start = common_start(experiment)
    if describe_training(experiment, experiment.preset.proxy, start)["start"] != expected:
        raise ValueError(
            "the common start is not the one that the proxies were trained from; "
            "give the same pretrained weights, or run notebook 02_proxy again in a new folder of outputs"
        )
    return {name: value.to(experiment.device) for name, value in start.items()}


def merge_proxies(
    experiment: Experiment,
    starts: Sequence[str] = STARTS,
    proxies: Mapping[str, Path] | None = None,
    folder: Path | None = None,
) -> Path:
    """Merge a seed's proxies into starts for Level II and score each.

    Args:
        starts: of `STARTS`. `merged`, `layer` and `parameter` learn alpha on training clips; `average` is
            uniform; `best` is the proxy and `soup` the greedy soup of the highest validation accuracy;
            `arithmetic` and `ties` go from the common start along the proxies' task vectors, as far as
            validation NLL is lowest.
        proxies: key -> run folder; None: notebook 02's.
        folder: where the starts go; None: notebook 03's.

    Returns:
        The folder with one run folder per start, each with `alpha.json` (teacher -> coefficient; for `layer`
        and `parameter` group -> teacher -> coefficient) or `scale.json`. What was tried or learned on the way
        is in `history.jsonl`.

    Raises:
        ValueError: an unknown start, or proxies that cannot be merged.
        FloatingPointError: a loss is not finite.
    """
    if unknown := [name for name in starts if name not in STARTS]:
        raise ValueError(f"unknown start {', '.join(unknown)}; choose of {', '.join(STARTS)}")
    proxies = proxies or {key: experiment.folder("02_proxy") / key for key in experiment.card.teachers}
    keys, folder = list(proxies), folder or experiment.folder("03_merging")
    cure = "run notebook 02_proxy with teacher = each"
    model = experiment.backbone()
    load = lambda key: load_student(proxies[key], cure)  # noqa: E731
    stacked = stack_proxies(model.state_dict(), keys, load, experiment.device)
    config = experiment.preset.merge
    if experiment.recipe.merge_lr is not None:
        config = replace(
            config, lr=experiment.recipe.merge_lr, weight_decay=experiment.recipe.merge_weight_decay
        )
    configs = describe_starts(experiment, starts, config, proxies)

    todo = [name for name in starts if not start_run(folder / name, configs[name])]
    if not todo:
        print(f"{folder.name}: {', '.join(starts)} finished before, reused")
        return folder
    clips = {split: experiment.clips(split) for split in SPLITS}
    scores = {key: read_metrics(proxies[key]) for key in keys}
    mixer = Mixer(experiment, model.to(experiment.device), stacked, clips)
    for name in todo:
        history = []
        if name in LEVELS:
            groups = group_weights(model, LEVELS[name])
            batches = lambda epoch: loader(clips["train"], config.batch_size, experiment.seed, epoch)  # noqa: E731
            learned, history = learn_alpha(model, stacked, groups, batches, config, experiment.device)
            mixer.mix(learned, groups)
            alpha = {group: _named(keys, row) for group, row in learned.items()}
            write_json(folder / name / "alpha.json", alpha[MODEL] if name == "merged" else alpha)
        elif name in DIRECTIONS:
            start = shared_start(experiment, configs[name]["common_start"])
            parameters = {key: stacked[key] for key, _ in model.named_parameters()}
            history = search_scale(mixer, start, DIRECTIONS[name](parameters, start), configs[name]["scales"])
            chosen = next(record["scale"] for record in history if record["kept"])
            write_json(folder / name / "scale.json", {"scale": chosen})
        else:
            if name == "soup":
                chosen, history = greedy_soup(scores, mixer.look_at)
            elif name == "best":  # the first of equals
                chosen = _equal(keys, [max(keys, key=lambda key: scores[key]["val_top1"])])
            else:
                chosen = _equal(keys, keys)
            mixer.mix_whole(chosen)
            write_json(folder / name / "alpha.json", _named(keys, chosen))
        if history:
            write_history(folder / name, history)
        finish_student(folder / name, Learner(model, Classification()), clips, experiment.device)
    return folder


def _named(keys: Sequence[str], alpha: Tensor) -> dict[str, float]:
    return dict(zip(keys, alpha.tolist(), strict=True))
