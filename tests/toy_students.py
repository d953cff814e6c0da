"""The smallest students with all that matters to merging, as proxies that differ."""

import torch
from torch import nn

from uniego_utils.weight_space import WeightSpace, stack_proxies

R = 3  # proxies
LAYERS = {
    "inner.weight": "inner", "inner.bias": "inner", "head.weight": "head", "head.bias": "head",
    **{f"norm.{entry}": "norm" for entry in ("weight", "bias", "running_mean", "running_var")},
}  # fmt: skip
TENSORS = {name: name for name in LAYERS if "running" not in name} | {
    "norm.running_mean": "norm.weight", "norm.running_var": "norm.weight",
}  # fmt: skip
GROUPS = {"model": dict.fromkeys(LAYERS, "all"), "layer": LAYERS, "parameter": TENSORS}  # Student's, by hand


class Student(nn.Module):
    """Two layers, running statistics, dropout."""

    def __init__(self):
        super().__init__()
        self.inner, self.norm, self.drop = nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5)
        self.head = nn.Linear(5, 3)

    def forward(self, clips):
        features = self.drop(self.norm(self.inner(clips)).tanh())
        return features, self.head(features)


def draw_proxies() -> list[dict[str, torch.Tensor]]:
    """R state dicts of `Student`."""
    weights = []
    for seed in range(R):
        torch.manual_seed(seed)
        student = Student()
        nn.init.uniform_(student.norm.weight, 0.3, 3)  # fresh layers would all have ones and zeros
        nn.init.normal_(student.norm.bias)
        student.norm.running_mean.normal_()
        student.norm.running_var.uniform_(0.5, 2)
        student.norm.num_batches_tracked.fill_(10 + seed)
        weights.append(student.state_dict())
    return weights


def draw_batches() -> list[dict[str, torch.Tensor]]:
    """Three batches, the last one smaller."""
    clips = torch.randn(20, 6, generator=torch.Generator().manual_seed(9))
    labels = torch.randint(3, (20,), generator=torch.Generator().manual_seed(10))
    rows = torch.arange(20)
    return [
        {"clips": clips[i : i + 8], "labels": labels[i : i + 8], "rows": rows[i : i + 8]}
        for i in range(0, 20, 8)
    ]


def open_space(proxies: list[dict[str, torch.Tensor]], model: nn.Module | None = None) -> WeightSpace:
    """The weight space of some proxies, `p0`, `p1`, ...; statistics are measured on `draw_batches`."""
    model, names = model or Student(), [f"p{number}" for number in range(len(proxies))]
    stacked = stack_proxies(model.state_dict(), names, dict(zip(names, proxies, strict=True)).get)
    return WeightSpace(model, names, stacked, {"train": draw_batches(), "val": draw_batches()})
