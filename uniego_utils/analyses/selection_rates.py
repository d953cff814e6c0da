"""Who is selected, for which class, how surely and for how long: what one asks of SPD's selection.

The selection itself is `spd.select_proxies`; here it is counted (the paper's Figure 6, Tables 11 and 12), and
made again while UNIEGO learns.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from uniego_utils.data.video import loader
from uniego_utils.experiment import Experiment
from uniego_utils.objectives import Losses, ProxyDistillation, proxy_cross_entropy, shares
from uniego_utils.runs import digest, finish_run, read_tensors, start_run, write_tensors
from uniego_utils.spd import proxy_outputs, select_proxies, start_folders, watch_along
from uniego_utils.students import describe_training, load_student
from uniego_utils.training import Learner, fit, write_history

NOBODY = "none"  # stands for a proxy where no proxy is reliable, as in the paper's tables


def selection_rates(
    selected: Tensor, labels: Sequence[int], classes: Sequence[str], proxies: Sequence[str]
) -> pd.DataFrame:
    """Of each class's clips the share that learns from each proxy: the form of the paper's Tables 11 and 12.

    Args:
        selected: (N, R) bool, as `select_proxies` gives it.
        labels: N numbers of `classes`.
        proxies: names of the R proxies.

    Returns:
        A row a class that has clips, in the order of `classes`; columns `none` (clips without a reliable
        proxy), then the proxies. With one proxy a clip, rows sum to 1.
    """
    if selected.shape != (len(labels), len(proxies)):
        expected = (len(labels), len(proxies))
        raise ValueError(f"expected a selection {expected} for (clips, proxies), got {tuple(selected.shape)}")
    table = pd.DataFrame(selected.numpy(), columns=list(proxies))
    table.insert(0, NOBODY, ~table.any(axis=1))
    rates = table.astype(float).groupby(np.asarray(labels)).mean()
    rates.index = pd.Index([classes[number] for number in rates.index], name="class")
    return rates


def overall_rates(selected: Tensor, proxies: Sequence[str]) -> pd.Series:
    """The share of all clips that learns from each proxy, `none` first (the paper's Figure 6)."""
    return selection_rates(selected, [0] * len(selected), ["all"], proxies).loc["all"]


def preferences(rates: pd.DataFrame) -> pd.DataFrame:
    """Each class's two most selected proxies, and how far they are apart (the paper's Appendix F).

    Args:
        rates: of `selection_rates`.

    Returns:
        By class: `none`, `first`, `first_rate`, `second`, `second_rate`, `rate_gap`. Of equal rates the
        column that comes first is preferred; of one proxy alone, `second` is empty and its rate 0.
    """
    rows = {}
    for label, row in rates.iterrows():
        ordered = row.drop(NOBODY).sort_values(ascending=False, kind="stable")
        (first, high), (second, low) = [*ordered.items(), ("", 0.0)][:2]
        rows[label] = {
            "none": row[NOBODY],
            "first": first,
            "first_rate": high,
            "second": second,
            "second_rate": low,
            "rate_gap": high - low,
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("class")


def effective_proxies(rates: pd.Series) -> float:
    """Among how many proxies the selection spreads: exp of the entropy of their shares, from 1 to R.

    `rates` is one of `overall_rates`; clips without a proxy are left out. Raises ValueError if none has one.
    """
    given = rates.drop(NOBODY)
    if given.sum() == 0:
        raise ValueError("no clip has a reliable proxy, so there is no selection to describe")
    part = torch.tensor((given / given.sum()).to_numpy())
    return torch.special.entr(part).sum().exp().item()


def confidence_gaps(
    logits: Tensor, labels: Tensor, ce_ceiling: float | None = None
) -> tuple[Tensor, pd.Series]:
    """How many reliable proxies each clip has, and how clearly the best of them wins.

    Args:
        logits, labels, ce_ceiling: as for `select_proxies`.

    Returns:
        Candidates per clip (N,); and for clips with at least two the cross-entropy of the second-best minus
        that of the best in nats, by the clip's row: 0 where the choice is a toss-up.
    """
    candidates = select_proxies(logits, labels, logits.shape[1], ce_ceiling)
    count = candidates.sum(1)
    loss = proxy_cross_entropy(logits, labels).masked_fill(~candidates, torch.inf)
    rows = (count >= 2).nonzero().flatten()
    best = loss[rows].sort(1).values[:, :2] if len(rows) else loss.new_zeros(0, 2)
    return count, pd.Series((best[:, 1] - best[:, 0]).numpy(), index=rows.numpy(), dtype=float)


class Watch(nn.Module):
    """UNIEGO's loss, unchanged, that selects anew on each view which the student sees and keeps the result.

    Args:
        objective: UNIEGO's.
        clips, proxies, epochs: how much there is to keep.
        k, ce_ceiling: of `select_proxies`.
        live: whether the loss takes the proxies' outputs on this view too, or the stored ones.
    """

    def __init__(
        self,
        objective: nn.Module,
        clips: int,
        proxies: int,
        epochs: int,
        k: int,
        ce_ceiling: float | None,
        live: bool,
    ):
        super().__init__()
        self.objective, self.k, self.ce_ceiling, self.live = objective, k, ce_ceiling, live
        self.epoch = 0  # set by whoever makes the batches
        self.kept = {  # (epochs, clips, proxies): selected, and with a lower loss than the student's own
            name: torch.zeros(epochs, clips, proxies, dtype=torch.bool) for name in ("selected", "better")
        }

    def forward(self, features: Tensor, logits: Tensor, batch: dict[str, Tensor]) -> Losses:
        """The objective's losses; notes on the way which proxies the batch's clips select."""
        rows, labels, seen = batch["rows"].cpu(), batch["labels"], batch["proxy_logits"]
        own = F.cross_entropy(logits.detach(), labels, reduction="none")
        selected = select_proxies(seen.cpu(), labels.cpu(), self.k, self.ce_ceiling)
        better = proxy_cross_entropy(seen, labels) < own[:, None]
        self.kept["selected"][self.epoch, rows] = selected
        self.kept["better"][self.epoch, rows] = selected & better.cpu()
        if not self.live:
            batch = {name: value for name, value in batch.items() if not name.startswith("proxy_")}
        return self.objective(features, logits, batch)


def follow_level_two(
    experiment: Experiment, pool: Sequence[Path], k: int, selected: Tensor, folder: Path
) -> dict[str, Tensor]:
    """Train UNIEGO once more as notebook 04 does, and in every epoch select anew on the views it sees.

    Args:
        pool: run folders of the R proxies.
        selected: (N, R) whom the clips learn from, as always.
        folder: of this run; a finished one with the same config is reused, an unfinished one redone.

    Returns:
        Two bool tensors (epochs, N, R). `selected`: whom the paper's rule selects on the view of that epoch.
        `better`: those of them whose loss on it is below the student's own, as the released code asks.
    """
    config = experiment.preset.spd
    features, logits = proxy_outputs(pool)
    clips, labels = experiment.clips("train"), torch.tensor(experiment.manifest("train").labels)
    start = load_student(start_folders(experiment)["merged"], "run notebook 03_merging first")
    described = describe_training(
        experiment,
        config,
        start,
        recipe=experiment.recipe_name,
        method=asdict(experiment.method),
        k=k,
        proxies=digest(features.numpy().tobytes() + logits.numpy().tobytes()),
        selected=digest(selected.numpy().tobytes()),
    )
    if start_run(folder, described):
        return read_tensors(folder / "selection.safetensors")
    backbone = experiment.backbone()
    backbone.load_state_dict(start)
    torch.manual_seed(experiment.seed)
    objective = ProxyDistillation(
        features,
        logits,
        shares(selected),
        labels,
        experiment.method,
        experiment.recipe,
        config.label_smoothing,
    )
    watch = Watch(
        objective,
        *selected.shape,
        config.epochs,
        k,
        experiment.recipe.spd_ce_ceiling,
        experiment.recipe.spd_live_targets,
    )

    def batches(epoch: int) -> DataLoader:
        watch.epoch = epoch
        return loader(clips, config.batch_size, experiment.seed, epoch)

    checkpoint = folder / "checkpoint.safetensors"
    checkpoint.unlink(missing_ok=True)  # what was kept before an interruption is lost
    history = fit(
        {"uniego": Learner(backbone, watch)},
        batches,
        config,
        experiment.seed,
        checkpoint,
        experiment.device,
        accumulate=experiment.recipe.accumulate(config.batch_size),
        teach=watch_along(experiment, pool, config.bf16),
        describe="follow",
    )["uniego"]
    write_history(folder, history)
    write_tensors(folder / "selection.safetensors", watch.kept)
    finish_run(folder, {"class_loss": history[-1]["class_loss"]})
    checkpoint.unlink(missing_ok=True)
    return watch.kept


def selection_over_training(
    first: Tensor, followed: dict[str, Tensor], proxies: Sequence[str]
) -> pd.DataFrame:
    """How the selection moves when it is made anew in every epoch.

    Args:
        first: (N, R) the selection made before training.
        followed: of `follow_level_two`.

    Returns:
        By epoch, 0 for `first`: `overall_rates`; `changed`, the share of clips whose proxies are not those of
        the epoch before (0 in the first row); `alone`, the share left without a proxy if it must also
        be better than the student (not known for epoch 0: NaN).
    """
    before, rows = first, [{**overall_rates(first, proxies), "changed": 0.0, "alone": float("nan")}]
    for now, better in zip(followed["selected"], followed["better"], strict=True):
        changed = (now != before).any(1).double().mean().item()
        alone = (~better.any(1)).double().mean().item()
        rows.append({**overall_rates(now, proxies), "changed": changed, "alone": alone})
        before = now
    return pd.DataFrame(rows).rename_axis("epoch")
