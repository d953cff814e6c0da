"""The training loop of everything that is trained: several learners may share one pass over the data.

Learners that share a pass see the very same batches and the same dropout draws, so training them together or
alone gives the same weights, and comparisons are paired.
"""

import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from uniego_utils.cards import TrainConfig
from uniego_utils.runs import read_json, read_notes, read_tensors, require_finished, write_tensors, write_text

Teach = Callable[[dict[str, Tensor]], dict[str, Tensor]]  # a batch -> the batch with what learners are taught


@dataclass
class Learner:
    """What `fit` trains: it makes losses of a batch, and gradients of the losses.

    This class trains a student: `model` makes features and logits of the batch's `clips`, `objective` losses
    of these and the batch. A learner of another kind overrides `losses`. Besides `rows`, a batch holds what
    `losses` reads.
    """

    model: nn.Module
    objective: nn.Module = field(default_factory=nn.Identity)  # none where `losses` needs the model alone

    def __post_init__(self):
        self.forward, self.bf16 = self.model, False  # until `prepare` says otherwise

    def prepare(self, device: torch.device, config: TrainConfig) -> None:
        """Move to the device, in eval mode; take over precision and compilation. `fit` calls it first."""
        self.modules.to(device).eval()
        self.forward, self.bf16 = torch.compile(self.model) if config.compile else self.model, config.bf16

    def train(self, training: bool = True) -> None:
        """Into training mode, or out of it."""
        self.modules.train(training)

    def outputs(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Features (B, D) and logits (B, C) of the batch's clips, in float32."""
        with autocast(batch["clips"].device, self.bf16):
            features, logits = self.forward(batch["clips"])
        return features.float(), logits.float()

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scalars by name, means over the batch; `loss` is the one to minimise."""
        return self.objective(*self.outputs(batch), batch)

    def backward(self, batch: dict[str, Tensor], together: int) -> dict[str, Tensor]:
        """Add the gradients of the batch's loss, divided by `together`, to `.grad`; returns the losses."""
        losses = self.losses(batch)
        (losses["loss"] / together).backward()
        return losses

    def notes(self) -> dict:
        """What the finished epoch's record is to have besides losses (JSON); called once an epoch."""
        return {}

    def describe(self) -> dict:
        """What decides the weights besides model and objective, for a run's `config.json`."""
        return {}

    @property
    def modules(self) -> nn.ModuleDict:
        """All that has weights or other state to keep."""
        return nn.ModuleDict({"model": self.model, "objective": self.objective})

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Everything that is trained: the model and the objective's projections."""
        return list(self.modules.parameters())

    def tensors(self) -> dict[str, Tensor]:
        """All state by name, for checkpoints."""
        return self.modules.state_dict()

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `tensors()` gave."""
        self.modules.load_state_dict(tensors)


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """The rate at a step: warm-up, then milestones (per epoch) or cosine (per step)."""
    warmup = config.warmup_epochs * steps_per_epoch
    rate = config.lr * min(1.0, (step + 1) / max(warmup, 1))
    if config.cosine:
        return rate * (0.5 + 0.5 * math.cos(math.pi * step / (config.epochs * steps_per_epoch)))
    epoch = step // steps_per_epoch + 1
    return rate * 0.1 ** sum(epoch >= milestone for milestone in config.milestones)


def create_optimizer(parameters: list[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """SGD with momentum (the paper's), AdamW, or Adam (for the merge)."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, config.lr, config.momentum, weight_decay=config.weight_decay)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, config.lr, weight_decay=config.weight_decay, fused=True)
    if config.optimizer == "adam":
        return torch.optim.Adam(parameters, config.lr, weight_decay=config.weight_decay)
    raise ValueError(f"unknown optimizer {config.optimizer!r}; choose sgd, adamw or adam")


def fit(
    learners: dict[str, Learner],
    batches: Callable[[int], Iterable[dict]],
    config: TrainConfig,
    seed: int,
    checkpoint: Path,
    device: torch.device,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    accumulate: int = 1,
    teach: Teach | None = None,
    describe: str = "train",
    progress: bool = True,
) -> dict[str, list[dict]]:
    """Train all learners in one pass over the data; resume from `checkpoint` if there is one.

    Args:
        learners: by name; trained in place, left in eval mode.
        batches: epoch (from 0) -> batches, tensors by name: what the learners' `losses` ask for, and `rows`
            (B,), the places of its entries in the data. Must depend on the epoch alone, so that a resumed run
            sees what an uninterrupted one would have seen.
        config: epochs, optimiser, schedule.
        seed: of dropout and the like; the same draws for every learner.
        checkpoint: file written after every epoch and removed by the caller once results are saved.
        accumulate: batches per optimiser step; their gradients are averaged. What remains at the end of an
            epoch makes a step of its own.
        teach: adds to a batch what all learners are taught with, e.g. proxies' outputs; once for all.
        evaluate: model -> named numbers, e.g. on the validation split; recorded, never used to choose.

    Returns:
        Per learner one record per epoch: mean losses, learning rate, seconds, evaluation.

    Raises:
        FloatingPointError: a loss stopped being finite; names learner and epoch.
    """
    for learner in learners.values():
        learner.prepare(device, config)
    optimizers = {name: create_optimizer(learner.parameters, config) for name, learner in learners.items()}
    history: dict[str, list[dict]] = {name: [] for name in learners}
    first = _resume(checkpoint, learners, optimizers, history)
    bar = tqdm(
        range(first, config.epochs), describe, config.epochs, False, unit="epoch", initial=first,
        disable=not progress,
    )  # fmt: skip
    for epoch in bar:
        started = time.perf_counter()
        for learner in learners.values():
            learner.train()
        sums, entries = {name: {} for name in learners}, 0
        epoch_batches = batches(epoch)
        for number, batch in enumerate(epoch_batches):
            batch = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
            if teach is not None:
                batch = teach(batch)
            step = epoch * len(epoch_batches) + number
            rate = learning_rate(config, step, len(epoch_batches))
            gathered = number % accumulate  # batches since the last optimiser step, before this one
            together = min(accumulate, len(epoch_batches) - number + gathered)
            entries += len(batch["rows"])
            for name, learner in learners.items():
                torch.manual_seed(seed * 1_000_003 + step)  # equal draws for all learners; exact resume
                if gathered == 0:
                    optimizers[name].zero_grad()
                losses = learner.backward(batch, together)
                if gathered + 1 == together:
                    if config.grad_clip is not None:
                        nn.utils.clip_grad_norm_(learner.parameters, config.grad_clip)
                    for group in optimizers[name].param_groups:
                        group["lr"] = rate
                    optimizers[name].step()
                for part, value in losses.items():  # summed on the device: no wait per step
                    sums[name][part] = sums[name].get(part, 0.0) + value.detach() * len(batch["rows"])

        evaluation_due = (epoch + 1) % config.eval_every == 0 or epoch + 1 == config.epochs
        for name, learner in learners.items():
            means = {part: (value / entries).item() for part, value in sums[name].items()}
            if not all(map(math.isfinite, means.values())):
                raise FloatingPointError(
                    f"{name}: losses {means} in epoch {epoch + 1}; lower the learning rate"
                )
            learner.train(False)
            evaluation = evaluate(learner.model) if evaluate and evaluation_due else {}
            history[name].append({"epoch": epoch + 1, "lr": rate, **means, **evaluation, **learner.notes()})
        seconds = (time.perf_counter() - started) / len(learners)
        for records in history.values():
            records[-1]["seconds"] = round(seconds, 3)
        _save(checkpoint, learners, optimizers, history)
        bar.set_postfix({name: f"{records[-1]['loss']:.3f}" for name, records in list(history.items())[:3]})
    return history


def autocast(device: torch.device, bf16: bool) -> torch.autocast:
    """bfloat16 where wanted, else nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


def _save(checkpoint: Path, learners: dict, optimizers: dict, history: dict) -> None:
    tensors = {}
    for name, learner in learners.items():
        tensors |= {f"{name}|learner|{key}": value for key, value in learner.tensors().items()}
        for number, state in optimizers[name].state_dict()["state"].items():
            tensors |= {
                f"{name}|optimizer|{number}|{key}": value for key, value in state.items() if value is not None
            }
    write_tensors(checkpoint, tensors, {"history": json.dumps(history)})


def _resume(checkpoint: Path, learners: dict, optimizers: dict, history: dict) -> int:
    """Load a checkpoint into everything given; the number of finished epochs, 0 without a checkpoint."""
    if not checkpoint.is_file():
        return 0
    recorded = json.loads(read_notes(checkpoint)["history"])
    if not learners.keys() <= recorded.keys():  # fewer: the others were saved before the interruption
        raise ValueError(
            f"{checkpoint} holds {', '.join(recorded)}, not {', '.join(learners)}; delete it to start anew"
        )
    tensors = read_tensors(checkpoint)
    for name, learner in learners.items():
        parts: dict[str, dict[str, Tensor]] = {"learner": {}, "optimizer": {}}
        for key, value in tensors.items():
            owner, part, place = key.split("|", 2)
            if owner == name:
                parts[part][place] = value
        learner.load(parts["learner"])
        current = optimizers[name].state_dict()
        for key, value in parts["optimizer"].items():
            number, field_name = key.split("|")
            current["state"].setdefault(int(number), {})[field_name] = value
        optimizers[name].load_state_dict(current)
        history[name] = recorded[name]
    return len(next(iter(history.values())))


@torch.inference_mode()
def predict(
    model: nn.Module, batches: Iterable[dict], device: torch.device, bf16: bool = False
) -> dict[str, Tensor]:
    """Features (N, D) and logits (N, C) of all clips, in manifest order, on the CPU in float32."""
    model.to(device).eval()
    features, logits = [], []
    for batch in batches:
        with autocast(device, bf16):
            feature, logit = model(batch["clips"].to(device, non_blocking=True))
        features.append(feature.float().cpu())
        logits.append(logit.float().cpu())
    return {"features": torch.cat(features), "logits": torch.cat(logits)}


def score(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Top-1 accuracy in percent and negative log-likelihood in nats, over (N, C) logits."""
    return {
        "top1": 100 * (logits.argmax(-1) == labels).float().mean().item(),
        "nll": F.cross_entropy(logits, labels).item(),
    }


def write_history(folder: Path, records: list[dict]) -> None:
    """One JSON line per epoch in `history.jsonl`."""
    write_text(folder / "history.jsonl", "".join(json.dumps(record) + "\n" for record in records))


def read_history(folder: Path) -> list[dict]:
    """The records of a run's `history.jsonl`."""
    return [json.loads(line) for line in (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()]


def read_metrics(folder: Path) -> dict:
    """The numbers of a finished run. Raises FileNotFoundError that says what to run where there is none."""
    cure = f"run notebook {folder.parents[1].name} with the parameters that its folder's name gives"
    return read_json(require_finished(folder, cure) / "metrics.json")
