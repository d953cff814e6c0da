"""Models as points in weight space: the proxies side by side, blends of them, and the loss at a point.

The proxies lie in one state dict whose tensors have a leading axis R (`stack_proxies`). So a blend and its
gradient are one matrix-vector product a tensor, and no other copy of the proxies is held.

BatchNorm's running statistics are not weights, and a blend of the proxies' statistics is not what the blended
model would have. They are measured on training clips, so that the loss at a point is a function of the
weights alone.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from uniego_utils.experiment import Experiment
from uniego_utils.sources import PROXIES_CURE, Weights, load_student
from uniego_utils.training import score

LEVELS = ("model", "layer", "parameter")  # what may share one alpha
MODEL = "model"  # the only group where one alpha serves the whole model
STEM = "stem"  # the layer of all that comes before the blocks
BLOCK = re.compile(r"(.*\.)?blocks\.\d+(?=\.)")
NUMBERED = re.compile(r".+?(\.\d+)+(?=\.)")  # stages.1.4 of stages.1.4.conv.weight


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


@torch.no_grad()
def load_blend(
    state: Weights, stacked: Weights, alpha: Mapping[str, Tensor], groups: Mapping[str, str]
) -> None:
    """Overwrite `state` by sum_r alpha[group]_r theta_r, every tensor with its group's coefficients.

    Args:
        state: a model's `state_dict()`, which shares its memory. Integer entries become the first proxy's.
        stacked: of `stack_proxies`.
        alpha: group -> (R,).
        groups: entry of the state dict -> its group, of `group_weights`.
    """
    for name, proxies in stacked.items():
        if proxies.is_floating_point():
            state[name].copy_(torch.tensordot(alpha[groups[name]].to(proxies), proxies, 1))
        else:
            state[name].copy_(proxies[0])


def mixture(names: Sequence[str], shares: Mapping[str, float]) -> Tensor:
    """Coefficients (R,) in the order of `names`; those without a share have 0."""
    if unknown := [name for name in shares if name not in names]:
        raise ValueError(f"no point {', '.join(unknown)}; choose of {', '.join(names)}")
    return torch.tensor([shares.get(name, 0.0) for name in names])


def equal_shares(names: Sequence[str], chosen: Sequence[str]) -> Tensor:
    """Coefficients (R,) in the order of `names`: equal for the chosen, zero for the others."""
    return mixture(names, dict.fromkeys(chosen, 1 / len(chosen)))


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
        raise ValueError(f"unknown level {level!r}; choose one of {', '.join(LEVELS)}")
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


def reestimate_statistics(model: nn.Module, batches: Iterable[dict]) -> None:
    """Set BatchNorm's running statistics to mean and variance of its inputs over all the batches' clips.

    `torch.optim.swa_utils.update_bn` averages over batches instead: a small last batch counts as much as the
    others, and the differences between the batches' means are missing from the variance.
    """
    sums: dict[nn.Module, list] = {}  # of each norm's inputs: count, sum and sum of squares per channel

    def gather(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        values = inputs[0].detach().double().transpose(0, 1).flatten(1)  # (channels, all else)
        new = [values.shape[1], values.sum(1), values.square().sum(1)]
        sums[norm] = [a + b for a, b in zip(sums.get(norm, (0, 0, 0)), new, strict=True)]

    model.train()
    hooks = [norm.register_forward_pre_hook(gather) for norm in _batch_norms(model)]
    device = next(model.parameters()).device
    with torch.no_grad():
        for batch in batches:
            model(batch["clips"].to(device))
    for hook in hooks:
        hook.remove()
    for norm, (count, total, squares) in sums.items():
        norm.running_mean.copy_(total / count)
        norm.running_var.copy_((squares - total.square() / count) / (count - 1))
    model.eval()


def _batch_norms(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


@dataclass
class WeightSpace:
    """One network that takes any weights: those of R proxies, any blend of them, any point beyond.

    Args:
        model: `model(clips)` gives (features, logits); its weights are overwritten.
        names: of the R proxies.
        stacked: their weights, (R, ...) each, on the model's device.
        batches: split -> batches with `clips` and `labels`, the same at every point. Running statistics are
            measured on `train`; needed only by a model that has some.
        seed: of dropout while they are measured, so that equal weights get equal statistics.
    """

    model: nn.Module
    names: Sequence[str]
    stacked: Weights
    batches: Mapping[str, Iterable[dict[str, Tensor]]] = field(default_factory=dict)
    seed: int = 0

    @property
    def device(self) -> torch.device:
        """Of the model and the stack."""
        return next(self.model.parameters()).device

    def named(self, alpha: Tensor) -> dict[str, float]:
        """Proxy -> its coefficient, of alpha (R,)."""
        return dict(zip(self.names, alpha.tolist(), strict=True))

    @torch.no_grad()
    def load(self, weights: Weights) -> None:
        """Load these parameters and measure running statistics for them."""
        for name, parameter in self.model.named_parameters():
            parameter.copy_(weights[name])
        self.measure_statistics()

    def combine(
        self, alpha: Tensor | Sequence[float] | Mapping[str, Tensor], groups: Mapping[str, str] | None = None
    ) -> None:
        """Take sum_r alpha_r theta_r, as `load_blend`, of running statistics too.

        Args:
            alpha: (R,), sums to one; outside the simplex some are negative. With `groups`: group -> (R,).
            groups: of `group_weights`; None: one alpha for all.

        Raises:
            ValueError: another number of coefficients, or another sum.
        """
        if groups is None:
            alpha, groups = {MODEL: torch.as_tensor(alpha)}, dict.fromkeys(self.stacked, MODEL)
        rows, count = list(alpha.values()), len(self.names)
        fits = all(row.shape == (count,) for row in rows)
        if not fits or not ((torch.stack(rows).sum(1) - 1).abs() <= 1e-5).all():
            given = [row.tolist() for row in rows]
            raise ValueError(f"{count} points need as many coefficients that sum to 1, got {given}")
        load_blend(self.model.state_dict(), self.stacked, alpha, groups)

    def blend(self, alpha: Tensor | Mapping[str, Tensor], groups: Mapping[str, str] | None = None) -> None:
        """Take a mixture of the proxies: `combine` on the simplex, with statistics measured anew.

        One proxy alone keeps its statistics, and so is the same model as before.

        Raises:
            ValueError: alpha is not on the simplex.
        """
        rows = [torch.as_tensor(alpha)] if groups is None else list(alpha.values())
        if any((row < 0).any() for row in rows):
            given = [row.tolist() for row in rows]
            raise ValueError(f"the coefficients of a mixture should be at least 0, got {given}")
        self.combine(alpha, groups)
        if torch.stack(rows).any(0).sum() > 1:
            self.measure_statistics()

    @torch.no_grad()
    def move(self, start: Weights, direction: Weights, scale: float) -> None:
        """Take start + scale * direction in all parameters; all else is the proxies' average, or measured."""
        self.combine(torch.full((len(self.names),), 1 / len(self.names)))
        for name, parameter in self.model.named_parameters():
            parameter.copy_(start[name].to(parameter) + scale * direction[name])
        self.measure_statistics()

    @property
    def has_statistics(self) -> bool:
        """Whether the model has running statistics."""
        return bool(_batch_norms(self.model))

    def measure_statistics(self) -> None:
        """Running statistics of the present weights on the training clips, where the model has some."""
        if self.has_statistics:
            torch.manual_seed(self.seed)
            reestimate_statistics(self.model, self.batches["train"])

    @torch.inference_mode()
    def evaluate(self, *splits: str) -> dict[str, float]:
        """`<split>_top1` (percent) and `<split>_nll` (nats) of the present weights on each split.

        Raises:
            FloatingPointError: a loss is not finite.
        """
        self.model.eval()
        scores: dict[str, float] = {}
        for split in splits:
            logits, labels = [], []
            for batch in self.batches[split]:
                logits.append(self.model(batch["clips"].to(self.device))[1].float().cpu())
                labels.append(batch["labels"])
            named = score(torch.cat(logits), torch.cat(labels))
            scores |= {f"{split}_{name}": value for name, value in named.items()}
        if not all(map(math.isfinite, scores.values())):
            raise FloatingPointError(f"a loss is not finite: {scores}; stay nearer to the trained weights")
        return scores

    def evaluate_blend(self, alpha: Tensor) -> dict[str, float]:
        """`val_top1` and `val_nll` of one mixture (R,), as `blend` makes it."""
        self.blend(alpha)
        return self.evaluate("val")


def open_weight_space(
    experiment: Experiment,
    proxies: Mapping[str, Path],
    batches: Mapping[str, Iterable[dict[str, Tensor]]] | None = None,
) -> WeightSpace:
    """The weight space of an experiment's students; `proxies`: name -> finished run folder.

    Raises:
        FileNotFoundError: a proxy is missing or unfinished.
        ValueError: of `stack_proxies`.
    """
    model, names = experiment.backbone(), list(proxies)
    stacked = stack_proxies(
        model.state_dict(), names, lambda name: load_student(proxies[name], PROXIES_CURE), experiment.device
    )
    return WeightSpace(model.to(experiment.device), names, stacked, batches or {}, experiment.seed)
