"""Teacher on skeletons: ST-GCN (Yan et al. 2018, arXiv:1801.07455) in plain PyTorch.

Joints are metres in space, or pixels with a confidence from an exo video. The paper says ST-GCN and 256
features; that its sizes and the normalisation of pixels are pyskl's is inferred. Frames are sampled evenly,
once a clip, where pyskl draws them anew in training and averages over ten draws in testing.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import shortest_path
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from uniego_utils.cards import TrainConfig
from uniego_utils.data.manifests import Manifest
from uniego_utils.data.skeletons import Layout, layout_of, read_skeleton
from uniego_utils.objectives import Classification
from uniego_utils.teachers.batches import Job, require_column
from uniego_utils.teachers.fitting import fit_tensors

SOURCES = ("joints_3d", "exo_joints_2d")


@dataclass(frozen=True)
class Settings:
    """The paper's teacher is channels (64,) * 4 + (128,) * 3 + (256,) * 3, strides 2 at blocks 5 and 8."""

    skeleton: str = "skeleton"  # the manifest's column of skeleton files
    layout: str | None = None  # of their joints; None: the card's
    source: str = "joints_3d"  # of the skeleton file; or exo_joints_2d
    persons: int = 1  # the first so many of a file, or hands; where there are fewer, the rest is padding
    num_frames: int = 16  # skeletons are resampled to so many
    channels: tuple[int, ...] = (48, 96, 128)  # per block; the last is the feature's width
    strides: tuple[int, ...] = (1, 2, 2)  # in time
    temporal_kernel: int = 9  # frames
    drop: float = 0.1
    noise_m: float = 0.01  # metres, standard deviation added to 3-D joints in training
    scale: float = 0.1  # 2-D skeletons grow or shrink by up to this share in training
    shift: float = 0.1  # and move by up to this share of half the picture
    train: TrainConfig = field(default_factory=TrainConfig)


def hops(layout: Layout) -> np.ndarray:
    """(V,) number of bones between each joint and the centre."""
    count, (starts, ends) = len(layout.joints), np.transpose(layout.bones)
    bones = coo_array((np.ones(len(starts)), (starts, ends)), (count, count))
    distance = shortest_path(bones, directed=False, unweighted=True, indices=layout.centre)
    if loose := [name for name, hop in zip(layout.joints, distance, strict=True) if np.isinf(hop)]:
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
    """Skeletons (B, M, T, V, 3) -> features (B, channels[-1]) and logits (B, C).

    Coordinates are metres, or x, y and confidence. Persons of zeros alone are padding: they are not looked at
    and do not count in the mean over persons.
    """

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
        """skeletons (B, M, T, V, 3) -> features (B, D), logits (B, num_classes)."""
        present = skeletons.flatten(2).any(2)  # (B, M)
        persons = skeletons[present]  # (P, T, V, 3)
        p, t, v, c = persons.shape
        x = self.norm(persons.permute(0, 2, 3, 1).reshape(p, v * c, t))
        each = self.blocks(x.view(p, v, c, t).permute(0, 2, 3, 1)).mean((2, 3))
        clip = present.nonzero()[:, 0]  # (P,) whose person
        total = each.new_zeros(len(skeletons), each.shape[1]).index_add(0, clip, each)
        features = total / present.sum(1, keepdim=True)
        return features, self.head(self.drop(features))


class Skeletons(Dataset):
    """A clip's skeletons resampled in time: item `row` is (M, T, V, 3) float32.

    3-D joints are metres; the first person's centre joint lies above the origin in the first frame, as where
    in the room somebody stands says nothing. 2-D joints are x, y relative to the picture's centre and half
    its size, as pyskl's PreNormalize2D has them, and the confidence.
    """

    def __init__(self, job: Job, manifest: Manifest):
        settings: Settings = job.settings
        require_column(manifest, settings.skeleton)
        if settings.source not in SOURCES:
            raise ValueError(
                f"{job.key}: unknown source {settings.source!r}; choose one of {', '.join(SOURCES)}"
            )
        self.manifest, self.settings = manifest, settings
        self.layout = layout_of(settings.layout or job.card.skeleton)

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, row: int) -> Tensor:
        path, source = self.manifest.path(row, self.settings.skeleton), self.settings.source
        skeleton = read_skeleton(path, source, self.layout)
        joints = skeleton.joints
        if source == "joints_3d":
            joints = joints - joints[0, 0, self.layout.centre] * torch.tensor([1.0, 0.0, 1.0])
        else:
            if skeleton.scores is None or skeleton.size is None:
                raise ValueError(f"{path}: {source} lacks scores or `size`; extract the skeletons again")
            half = skeleton.size / 2
            joints = torch.cat([(joints - half) / half, skeleton.scores[..., None]], -1)
        joints = joints[: self.settings.persons, sample_rows(joints.shape[1], self.settings.num_frames)]
        return F.pad(joints, (0, 0, 0, 0, 0, 0, 0, self.settings.persons - len(joints)))


def sample_rows(rows: int, count: int) -> Tensor:
    """(count,) which of a skeleton's rows are on at the centres of `count` equal parts of its clip."""
    return ((torch.arange(count) + 0.5) * rows / count).long()


def turn(skeletons: Tensor, generator: torch.Generator, noise_m: float) -> Tensor:
    """Each clip turned about the vertical axis by its own angle, every joint moved a little; padding stays.

    Args:
        skeletons: (B, M, T, V, 3) metres, y up.
        noise_m: standard deviation in metres.
    """
    present = skeletons.flatten(2).any(2)[..., None, None, None]
    angle = torch.rand(len(skeletons), generator=generator) * 2 * math.pi
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    c, s = angle.cos(), angle.sin()
    yaw = torch.stack([c, zero, s, zero, one, zero, -s, zero, c], -1).view(-1, 3, 3)
    turned = torch.einsum("bmtvc,bdc->bmtvd", skeletons, yaw)
    return (turned + noise_m * torch.randn(turned.shape, generator=generator)) * present


def move(skeletons: Tensor, generator: torch.Generator, scale: float, shift: float) -> Tensor:
    """Each clip's picture scaled about its centre and shifted by its own draw; padding and confidence stay.

    Args:
        skeletons: (B, M, T, V, 3) x, y in half pictures, and confidence.
        scale: largest change of size, as a share.
        shift: largest shift along x and y, in half pictures.
    """
    present = skeletons.flatten(2).any(2)[..., None, None, None]
    draws = torch.rand(len(skeletons), 3, generator=generator).view(-1, 1, 1, 1, 3) * 2 - 1
    moved = skeletons[..., :2] * (1 + scale * draws[..., :1]) + shift * draws[..., 1:]
    return torch.cat([moved * present, skeletons[..., 2:]], -1)


def augment(batch: dict[str, Tensor], job: Job, generator: torch.Generator) -> dict[str, Tensor]:
    """The batch's `clips` as training shows them: turned in space, or moved in the picture."""
    settings: Settings = job.settings
    if settings.source == "joints_3d":
        return {"clips": turn(batch["clips"], generator, settings.noise_m)}
    return {"clips": move(batch["clips"], generator, settings.scale, settings.shift)}


def build(job: Job) -> STGCN:
    """The network with random weights."""
    settings: Settings = job.settings
    if len(settings.channels) != len(settings.strides) or settings.channels[-1] != job.teacher.width:
        raise ValueError(
            f"{job.key}: channels {settings.channels} and strides {settings.strides} should be equally many, "
            f"the last channel the card's width {job.teacher.width}"
        )
    return STGCN(len(job.card.classes), layout_of(settings.layout or job.card.skeleton), settings)


def train(model: STGCN, job: Job, manifest: Manifest) -> list[dict]:
    """Fit with cross-entropy; the history, a record an epoch."""
    dataset = clips(job, manifest)
    skeletons = torch.stack([dataset[row] for row in range(len(dataset))])
    tensors = {"clips": skeletons, "labels": torch.tensor(manifest.labels)}
    return fit_tensors(job, model, Classification(job.settings.train.label_smoothing), tensors, augment)


clips = Skeletons


def encode(model: STGCN, clips: Tensor, job: Job) -> Tensor:
    """Skeletons (B, M, T, V, 3) -> features (B, width)."""
    return model(clips)[0]


def notes(job: Job) -> dict[str, str]:
    """How the features were made."""
    settings: Settings = job.settings
    space = (
        "over the origin" if settings.source == "joints_3d" else "relative to half the picture, with scores"
    )
    return {
        "model": f"ST-GCN, {len(settings.channels)} blocks {settings.channels}, trained on action labels",
        "preprocessing": (
            f"{settings.source} ({settings.layout or job.card.skeleton}) of up to {settings.persons}, "
            f"{settings.num_frames} frames, {space}"
        ),
        "pooling": "mean over time and joints, then over persons",
    }
