"""Level II: Selective Proxy Distillation, recorded while it trains (paper, section 3.2, equations 4-6).

The selection is `candidates.select_proxies`, the loss `objectives.ProxyDistillation`; students are trained by
`students.train`. Here the selection is made anew on every view that UNIEGO sees.
"""

from dataclasses import replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from uniego_utils.candidates import select_proxies
from uniego_utils.experiment import Experiment
from uniego_utils.methods import METHODS, Method
from uniego_utils.objectives import Losses, ProxyDistillation, proxy_cross_entropy
from uniego_utils.runs import read_tensors
from uniego_utils.sources import Sources
from uniego_utils.students import train


class SelectionLogger(ProxyDistillation):
    """UNIEGO's loss, unchanged, that selects anew on each view which the student sees and keeps the result.

    Labelled clips alone are recorded. `selected` and `better` are (epochs, N, R) bool: who is selected on the
    view of that epoch, and those of them whose loss on it is below the student's. Both are part of
    checkpoints.
    """

    needs_live = True

    @classmethod
    def create(cls, sources: Sources, method: Method, width: int) -> Self:
        """The objective of a student of the register, as `Classification.create`."""
        logger, candidates = super().create(sources, method, width), sources.candidates(method.sources)
        clips = int((candidates.labels >= 0).sum())
        logger.log(sources.experiment.preset.spd.epochs, clips, candidates.k, candidates.ce_ceiling)
        return logger

    def log(self, epochs: int, clips: int, k: int, ce_ceiling: float | None) -> None:
        """Make room for the epochs of these labelled clips; k and ce_ceiling as for `select_proxies`."""
        self.k, self.ce_ceiling = k, ce_ceiling
        for name in ("selected", "better"):
            self.register_buffer(name, torch.zeros(epochs, clips, self.weights.shape[1], dtype=torch.bool))
        self.register_buffer("views", torch.zeros(clips, dtype=torch.long))  # of each clip so far

    def forward(self, features: Tensor, logits: Tensor, batch: dict[str, Tensor]) -> Losses:
        """The losses of a batch, as `ProxyDistillation`; records who is selected on it."""
        labelled = batch["labels"] >= 0
        rows, labels, proxies = (batch[name][labelled] for name in ("rows", "labels", "proxy_logits"))
        student = F.cross_entropy(logits.detach()[labelled], labels, reduction="none")
        selected = select_proxies(proxies, labels, self.k, self.ce_ceiling)
        epochs = self.views[rows]
        self.selected[epochs, rows] = selected
        self.better[epochs, rows] = selected & (proxy_cross_entropy(proxies, labels) < student[:, None])
        self.views[rows] += 1
        if not self.recipe.spd_live_targets:
            batch = {name: value for name, value in batch.items() if not name.startswith("proxy_")}
        return super().forward(features, logits, batch)


def follow_selection(experiment: Experiment, sources: Sources, folder: Path) -> dict[str, Tensor]:
    """Train UNIEGO once more as notebook 04 does, and in every epoch select anew on the views it sees.

    Args:
        folder: holds the run folder `uniego`; a finished one with the same config is reused.

    Returns:
        Two bool tensors (epochs, N, R). `selected`: whom the paper's rule selects on the view of that epoch.
        `better`: those of them whose loss on it is below the student's, as the released code asks.
    """
    train(
        experiment, {"uniego": replace(METHODS["uniego"], objective=SelectionLogger)}, folder, sources=sources
    )
    tensors = read_tensors(folder / "uniego" / "objective.safetensors")
    return {name: tensors[name] for name in ("selected", "better")}
