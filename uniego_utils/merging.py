"""Merging: one model from the proxies' weights (paper, section 3.2, equation 2)."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from uniego_utils.manifests import MergeConfig
from uniego_utils.objectives import Classification
from uniego_utils.runs import digest, start_run, write_json
from uniego_utils.stage import Stage
from uniego_utils.students import EVALUATION_BATCH, SPLITS, finish_student, load_student
from uniego_utils.training import Learner, read_metrics, write_history
from uniego_utils.video import loader

Weights = dict[str, Tensor]  # a state dict
STARTS = (
    "merged",
    "average",
    "best",
)  # learned coefficients, uniform ones, the proxy best on validation clips


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
    first = proxies[0]
    for other in proxies[1:]:
        if {n: v.shape for n, v in other.items()} != {n: v.shape for n, v in first.items()}:
            raise ValueError("proxies differ in architecture; merge proxies of one backbone and size")
    return {
        name: sum(a * proxy[name] for a, proxy in zip(alpha, proxies, strict=True))
        if value.is_floating_point()
        else value
        for name, value in first.items()
    }


def learn_alpha(
    model: nn.Module,
    proxies: list[Weights],
    batches: Callable[[int], Iterable[dict]],
    config: MergeConfig,
    device: torch.device,
    progress: bool = True,
) -> tuple[Tensor, list[dict]]:
    """Minimise the merged model's cross-entropy over alpha on the simplex (equation 2), with Adam.

    By the chain rule dL/dalpha_r = <theta_r, dL/dtheta>: one forward and backward pass of a single merged
    model and one matrix-vector product over the stacked proxies, with no graph through the blend.

    Args:
        model: a backbone of the proxies' architecture; its weights are overwritten.
        proxies: R state dicts.
        batches: epoch -> batches of the train split.

    Returns:
        alpha (R,) and one record per epoch with the mean loss and alpha.
    """
    model.to(device).eval()  # frozen running statistics and no dropout: L is a function of alpha alone
    parameters = dict(model.named_parameters())
    stacked = torch.stack([_flat(proxy[name] for name in parameters) for proxy in proxies]).to(
        device
    )  # (R, P)
    buffers = [name for name, value in model.named_buffers() if value.is_floating_point()]
    stacked_buffers = {name: torch.stack([proxy[name] for proxy in proxies]).to(device) for name in buffers}

    raw = torch.zeros(len(proxies), device=device, requires_grad=True)  # alpha = softmax(raw): starts uniform
    optimizer = torch.optim.Adam([raw], config.lr, weight_decay=config.weight_decay)
    history = []
    for epoch in range(config.epochs):
        total, clips = 0.0, 0
        for batch in tqdm(batches(epoch), f"merge epoch {epoch + 1}", disable=not progress, leave=False):
            alpha = raw.softmax(0)
            _load_flat(parameters.values(), alpha.detach() @ stacked)
            for name in buffers:
                model.get_buffer(name).copy_(torch.tensordot(alpha.detach(), stacked_buffers[name], 1))
            model.zero_grad()
            logits = model(batch["clips"].to(device))[1]
            loss = F.cross_entropy(logits.float(), batch["labels"].to(device))
            loss.backward()
            slope = stacked @ _flat(parameter.grad for parameter in parameters.values())  # dL/dalpha, (R,)
            optimizer.zero_grad()
            alpha.backward(slope)  # through the softmax
            optimizer.step()
            total, clips = total + loss.item() * len(logits), clips + len(logits)
        alpha = raw.detach().softmax(0).cpu()
        history.append({"epoch": epoch + 1, "loss": total / clips, "alpha": alpha.tolist()})
    return alpha, history


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


def merge_proxies(stage: Stage) -> Path:
    """Merge a seed's proxies into three starts for Level II and score each.

    Returns:
        The folder with one run folder per name in `STARTS`, each with `alpha.json` (teacher -> coefficient).
    """
    keys, proxies_folder = list(stage.card.teachers), stage.folder("02_proxy")
    cure = "run notebook 02_proxy with teacher = each"
    proxies = [load_student(proxies_folder / key, cure) for key in keys]
    config = stage.preset.merge
    if stage.recipe.merge_lr is not None:
        config = replace(config, lr=stage.recipe.merge_lr, weight_decay=stage.recipe.merge_weight_decay)
    digests = {key: digest(proxies_folder / key / "model.safetensors") for key in keys}
    described = {"seed": stage.seed, "proxies": digests}
    configs = {name: described | {"start": name} for name in STARTS}
    configs["merged"]["merge"] = asdict(config)

    folder = stage.folder("03_merging")
    todo = [name for name in STARTS if not start_run(folder / name, configs[name])]
    if not todo:
        print(f"{folder.name}: {', '.join(STARTS)} finished before, reused")
        return folder
    clips = {split: stage.clips(split) for split in SPLITS}
    accuracy = [read_metrics(proxies_folder / key)["val_top1"] for key in keys]
    for name in todo:
        model = stage.backbone()
        alpha = torch.full((len(keys),), 1 / len(keys))
        if name == "best":
            alpha = F.one_hot(torch.tensor(accuracy).argmax(), len(keys)).float()
        if name == "merged":
            batches = lambda epoch: loader(clips["train"], config.batch_size, stage.seed, epoch)  # noqa: E731
            alpha, history = learn_alpha(model, proxies, batches, config, stage.device)
            write_history(folder / name, history)
        model.load_state_dict(merge_weights(proxies, alpha))
        if name != "best":  # a single proxy keeps the statistics it was trained with
            reestimate_statistics(model, loader(clips["train"], EVALUATION_BATCH), stage.device)
        write_json(folder / name / "alpha.json", dict(zip(keys, alpha.tolist(), strict=True)))
        finish_student(folder / name, Learner(model, Classification()), clips, stage.device)
    return folder


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


@torch.no_grad()
def _load_flat(parameters: Iterable[nn.Parameter], values: Tensor) -> None:
    first = 0
    for parameter in parameters:
        parameter.copy_(values[first : first + parameter.numel()].view_as(parameter))
        first += parameter.numel()
