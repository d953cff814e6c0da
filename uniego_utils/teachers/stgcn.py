"""Teacher on 3-D skeletons: ST-GCN (Yan et al. 2018, arXiv:1801.07455) in plain PyTorch."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uniego_utils import mocap
from uniego_utils.manifests import Manifest, TrainConfig
from uniego_utils.objectives import Classification
from uniego_utils.runs import read_tensors
from uniego_utils.teachers.batches import Job, TensorBatches, require_column
from uniego_utils.training import Learner, fit, predict


@dataclass(frozen=True)
class Layout:
    """Which joints a skeleton has and how they hang together, by the joints' numbers."""

    joints: tuple[str, ...]
    bones: tuple[tuple[int, int], ...]
    centre: int  # bones are grouped by whether they lead towards this joint
    head: int
    wrists: tuple[int, int]


LAYOUTS = {
    "mocap-16": Layout(
        tuple(mocap.JOINTS),
        tuple(mocap.BONES),
        mocap.JOINTS.index("chest"),
        mocap.JOINTS.index("head"),
        (mocap.JOINTS.index("left_wrist"), mocap.JOINTS.index("right_wrist")),
    ),
}


@dataclass(frozen=True)
class Settings:
    """The paper's teacher is channels (64,) * 4 + (128,) * 3 + (256,) * 3, strides 2 at blocks 5 and 8."""

    num_frames: int = 16  # skeletons are resampled to so many
    channels: tuple[int, ...] = (48, 96, 128)  # per block; the last is the feature's width
    strides: tuple[int, ...] = (1, 2, 2)  # in time
    temporal_kernel: int = 9  # frames
    drop: float = 0.1
    noise_m: float = 0.01  # metres, standard deviation added to joints in training
    batch_size_eval: int = 256
    train: TrainConfig = field(default_factory=TrainConfig)


def layout_of(name: str | None) -> Layout:
    """The layout called `name`; an unknown one is an error that lists the valid ones."""
    if name not in LAYOUTS:
        raise ValueError(f"unknown skeleton layout {name!r}; choose one of {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def hops(layout: Layout) -> np.ndarray:
    """(V,) number of bones between each joint and the centre."""
    distance = np.full(len(layout.joints), -1)
    distance[layout.centre] = 0
    reached = [layout.centre]
    for joint in reached:
        for bone in layout.bones:
            if joint in bone:
                other = bone[0] + bone[1] - joint
                if distance[other] < 0:
                    distance[other] = distance[joint] + 1
                    reached.append(other)
    if (distance < 0).any():
        loose = [name for name, hop in zip(layout.joints, distance, strict=True) if hop < 0]
        raise ValueError(
            f"joints {', '.join(loose)} hang on no bone that leads to {layout.joints[layout.centre]}"
        )
    return distance


def adjacency(layout: Layout) -> Tensor:
    """Spatial configuration partitioning (section 3.3): (3, V, V), weights from joint v (row) to w (column).

    The partitions hold joints as far from the centre as w (itself among them), nearer ones, and farther ones.
    Their sum is the adjacency with self-loops, each column normalised to one.
    """
    count = len(layout.joints)
    joined = np.eye(count)
    for a, b in layout.bones:
        joined[a, b] = joined[b, a] = 1
    joined /= joined.sum(0, keepdims=True)
    distance = hops(layout)
    step = distance[:, None] - distance[None]
    parts = [np.where(step == 0, joined, 0), np.where(step < 0, joined, 0), np.where(step > 0, joined, 0)]
    return torch.tensor(np.stack(parts), dtype=torch.float32)


class GraphConv(nn.Module):
    """out[w] = sum over partitions k and joints v of (A_k * importance_k)[v, w] * W_k x[v] + b_k."""

    def __init__(self, before: int, after: int, graph: Tensor):
        super().__init__()
        self.register_buffer("graph", graph, persistent=False)
        self.importance = nn.Parameter(torch.ones_like(graph))  # learnable edge weights, section 3.5
        self.mix = nn.Conv2d(before, after * len(graph), 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, V) -> (B, C', T, V)."""
        x = self.mix(x).unflatten(1, (len(self.graph), -1))
        return torch.einsum("bkctv,kvw->bctw", x, self.graph * self.importance)


class Block(nn.Module):
    """Graph convolution, then a convolution over time, with a residual."""

    def __init__(
        self, before: int, after: int, stride: int, kernel: int, graph: Tensor, drop: float, residual: bool
    ):
        super().__init__()
        self.space = nn.Sequential(GraphConv(before, after, graph), nn.BatchNorm2d(after), nn.ReLU())
        self.time = nn.Sequential(
            nn.Conv2d(after, after, (kernel, 1), (stride, 1), (kernel // 2, 0)),
            nn.BatchNorm2d(after),
            nn.Dropout(drop),
        )
        self.residual: nn.Module | None = None
        if residual and before == after and stride == 1:
            self.residual = nn.Identity()
        elif residual:
            self.residual = nn.Sequential(nn.Conv2d(before, after, 1, (stride, 1)), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, V) -> (B, C', T / stride, V)."""
        moved = self.time(self.space(x))
        return F.relu(moved if self.residual is None else moved + self.residual(x))


class STGCN(nn.Module):
    """Skeletons (B, T, V, 3) in metres -> features (B, channels[-1]) and logits (B, C)."""

    def __init__(self, num_classes: int, layout: Layout, settings: Settings):
        super().__init__()
        graph, channels = adjacency(layout), settings.channels
        self.norm = nn.BatchNorm1d(3 * len(layout.joints))
        sizes = zip((3, *channels), channels, settings.strides, strict=False)
        self.blocks = nn.Sequential(
            *(
                Block(
                    before, after, stride, settings.temporal_kernel, graph, settings.drop, residual=number > 0
                )
                for number, (before, after, stride) in enumerate(sizes)
            )
        )
        self.drop = nn.Dropout(settings.drop)
        self.head = nn.Linear(channels[-1], num_classes)

    def forward(self, skeletons: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        b, t, v, c = skeletons.shape
        x = self.norm(skeletons.permute(0, 2, 3, 1).reshape(b, v * c, t))
        features = self.blocks(x.view(b, v, c, t).permute(0, 2, 3, 1)).mean((2, 3))
        return features, self.head(self.drop(features))


def read_joints(path: Path, name: str, layout: Layout) -> Tensor:
    """Tensor `name` (T, V, 2 or 3) of a skeleton file.

    Raises:
        ValueError: not there, no frames, another number of joints, not finite, or all zero: an estimator's
            way to say that it found nobody.
    """
    tensors = read_tensors(path)
    if name not in tensors:
        raise ValueError(f"{path} has no {name!r}, only {', '.join(tensors)}; extract the skeletons again")
    joints = tensors[name].float()
    fault = None
    if joints.ndim != 3 or joints.shape[1] != len(layout.joints):
        fault = f"shape {tuple(joints.shape)}, not (frames, {len(layout.joints)}, coordinates)"
    elif not len(joints):
        fault = "no frames"
    elif not joints.isfinite().all():
        fault = "values that are not finite"
    elif not joints.any():
        fault = "zeros alone: nobody was found"
    if fault:
        raise ValueError(f"{path}: {name} has {fault}; extract this clip's skeleton again or drop the clip")
    return joints


def read_skeletons(manifest: Manifest, layout: Layout, num_frames: int) -> Tensor:
    """All clips' 3-D skeletons, resampled in time and moved over the origin: (N, num_frames, V, 3) metres.

    The centre joint of the first frame lies above the origin: where in the room somebody stands says nothing.
    """
    require_column(manifest, "skeleton")
    skeletons = []
    for row in range(len(manifest)):
        joints = read_joints(manifest.path(row, "skeleton"), "joints_3d", layout)
        times = ((torch.arange(num_frames) + 0.5) * len(joints) / num_frames).long()
        skeletons.append(joints[times] - joints[0, layout.centre] * torch.tensor([1.0, 0.0, 1.0]))
    return torch.stack(skeletons)


def turn(skeletons: Tensor, generator: torch.Generator, noise_m: float) -> Tensor:
    """Each clip turned about the vertical axis by its own angle, every joint moved a little: (B, T, V, 3)."""
    angle = torch.rand(len(skeletons), generator=generator) * 2 * math.pi
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    c, s = angle.cos(), angle.sin()
    yaw = torch.stack([c, zero, s, zero, one, zero, -s, zero, c], -1).view(-1, 3, 3)
    turned = torch.einsum("btvc,bdc->btvd", skeletons, yaw)
    return turned + noise_m * torch.randn(turned.shape, generator=generator)


def build(job: Job, manifest: Manifest) -> STGCN:
    """The network with random weights."""
    settings: Settings = job.settings
    if len(settings.channels) != len(settings.strides) or settings.channels[-1] != job.teacher.width:
        raise ValueError(
            f"{job.key}: channels {settings.channels} and strides {settings.strides} should be equally many, "
            f"the last channel the card's width {job.teacher.width}"
        )
    return STGCN(len(job.card.classes), layout_of(job.card.skeleton), settings)


def train(model: STGCN, job: Job, manifest: Manifest) -> list[dict]:
    """Fit with cross-entropy; the history, a record an epoch."""
    settings: Settings = job.settings
    skeletons = read_skeletons(manifest, layout_of(job.card.skeleton), settings.num_frames)
    labels = torch.tensor(manifest.labels)

    def augment(clips: Tensor, generator: torch.Generator) -> Tensor:
        return turn(clips, generator, settings.noise_m)

    def batches(epoch: int) -> TensorBatches:
        return TensorBatches(skeletons, labels, settings.train.batch_size, augment, job.seed, epoch)

    learner = Learner(model, Classification(settings.train.label_smoothing))
    history = fit(
        {job.key: learner}, batches, settings.train, job.seed, job.checkpoint, job.device,
        describe=job.key, progress=job.progress,
    )  # fmt: skip
    return history[job.key]


def encode(model: STGCN, job: Job, manifest: Manifest) -> Tensor:
    """Features (N, width), mean over time and joints."""
    settings: Settings = job.settings
    skeletons = read_skeletons(manifest, layout_of(job.card.skeleton), settings.num_frames)
    labels = torch.tensor(manifest.labels)
    batches = TensorBatches(skeletons, labels, settings.batch_size_eval, lambda clips, _: clips)
    return predict(model, batches, job.device)["features"]


def notes(job: Job) -> dict[str, str]:
    """How the features were made."""
    settings: Settings = job.settings
    return {
        "model": f"ST-GCN, {len(settings.channels)} blocks {settings.channels}, trained on action labels",
        "preprocessing": f"3-D joints ({job.card.skeleton}), {settings.num_frames} frames, over the origin",
        "pooling": "mean over time and joints",
    }
