"""Teacher without labels: a ViT distilled from its own moving average (DINO, arXiv:2104.14294).

It stands for DINOv2, whose frozen features the paper uses.
"""

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uniego_utils.cards import TrainConfig
from uniego_utils.data.manifests import Manifest
from uniego_utils.teachers import images
from uniego_utils.teachers.batches import Job
from uniego_utils.teachers.fitting import fit_tensors


@dataclass(frozen=True)
class Settings(images.Settings):
    """Sizes of the ViT and the head, views, temperatures."""

    depth: int = 3
    heads: int = 3
    prototypes: int = 256  # K, outputs of the head
    bottleneck: int = 64  # width before the prototypes
    global_views: int = 2  # seen by the teacher too
    local_views: int = 2
    global_area: tuple[float, float] = (0.5, 1.0)  # share of the picture
    local_area: tuple[float, float] = (0.15, 0.5)
    jitter: float = 0.4
    frames_apart: bool = True  # views are of different frames of the clip, not of one
    student_temperature: float = 0.1
    teacher_temperature: float = 0.04
    momentum: float = 0.99  # of the teacher's weights
    centre_momentum: float = 0.9
    train: TrainConfig = field(default_factory=TrainConfig)


class Dino(images.FrameViT):
    """ViT and projection head. Views (B, V, 3, S, S) -> features (B, width), scores (B, V, K)."""

    def __init__(self, width: int, image_size: int, settings: Settings):
        super().__init__(image_size, width, settings.depth, settings.heads)
        self.project = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, settings.bottleneck)
        )
        self.prototypes = nn.Linear(settings.bottleneck, settings.prototypes, bias=False)

    def forward(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """Views of clips -> features of the first view, and scores of every view against the prototypes."""
        features = self.encode(views)
        scores = F.linear(
            F.normalize(self.project(features), dim=-1), F.normalize(self.prototypes.weight, dim=-1)
        )
        return features[:, 0], scores


def dino_loss(
    student: Tensor, teacher: Tensor, centre: Tensor, student_temperature: float, teacher_temperature: float
) -> Tensor:
    """Cross-entropy between the teacher's and the student's outputs, over all pairs of different views.

    Args:
        student: (B, V, K) scores of all views.
        teacher: (B, G, K) scores of the first G views.
        centre: (K,) subtracted from the teacher's, against collapse onto one output.

    Returns:
        A scalar, in nats. Source: algorithm 1 of arXiv:2104.14294, with multi-crop.
    """
    target = F.softmax((teacher - centre) / teacher_temperature, -1)
    logs = F.log_softmax(student / student_temperature, -1)
    cross = -torch.einsum("bgk,bvk->gv", target, logs) / len(student)  # mean over the batch
    different = ~torch.eye(*cross.shape, dtype=torch.bool, device=cross.device)
    return cross[different].mean()


class SelfDistillation(nn.Module):
    """DINO's objective; holds the teacher, the moving average of the student's weights.

    The average takes each step's weights at the start of the next step, before the teacher's outputs are
    computed.
    """

    def __init__(self, student: Dino, settings: Settings):
        super().__init__()
        self.student = (student,)  # a tuple, so that the student's weights are not this module's too
        self.teacher = copy.deepcopy(student).requires_grad_(False)
        self.settings = settings
        self.register_buffer("centre", torch.zeros(settings.prototypes))

    @torch.no_grad()
    def follow(self) -> None:
        """Move the teacher towards the student; running statistics of BatchNorm are copied."""
        for average, current in zip(self.teacher.parameters(), self.student[0].parameters(), strict=True):
            average.lerp_(current, 1 - self.settings.momentum)
        for average, current in zip(self.teacher.buffers(), self.student[0].buffers(), strict=True):
            average.copy_(current)

    @torch.no_grad()
    def move_centre(self, scores: Tensor) -> None:
        """Moving average of the teacher's scores (B, G, K)."""
        self.centre.lerp_(scores.mean((0, 1)), 1 - self.settings.centre_momentum)

    def forward(self, features: Tensor, scores: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scalar losses; `loss` is the total. `entropy` in nats tells collapse: zero, or the log of K."""
        settings = self.settings
        self.follow()
        with torch.no_grad():
            taught = self.teacher(batch["clips"][:, : settings.global_views])[1]
        temperatures = settings.student_temperature, settings.teacher_temperature
        loss = dino_loss(scores, taught, self.centre, *temperatures)
        target = F.softmax((taught - self.centre) / settings.teacher_temperature, -1).mean((0, 1))
        self.move_centre(taught)
        return {"loss": loss, "entropy": -(target * target.clamp(min=1e-9).log()).sum()}


def make_views(batch: dict[str, Tensor], job: Job, generator: torch.Generator) -> dict[str, Tensor]:
    """Of `clips` (B, T, 3, S, S) uint8 their views (B, V, 3, S, S), normalised: first global, then local."""
    settings: Settings = job.settings
    clips = batch["clips"]
    count = settings.global_views + settings.local_views
    if settings.frames_apart:
        frames = images.draw_frames(clips, min(count, clips.shape[1]), generator)
        frames = frames[:, torch.arange(count) % frames.shape[1]]
    else:
        frames = images.draw_frames(clips, 1, generator).expand(-1, count, -1, -1, -1)
    pictures = images.normalise(frames.transpose(0, 1), job.preset.video)  # (V, B, 3, S, S)
    areas = [settings.global_area] * settings.global_views + [settings.local_area] * settings.local_views
    views = []
    for view, area in zip(pictures, areas, strict=True):
        view = images.random_crop(view, tuple(area), generator, flip=True)
        views.append(images.jitter(view, settings.jitter, generator))
    return {"clips": torch.stack(views, 1)}


def build(job: Job) -> Dino:
    """The network with random weights."""
    return Dino(images.frame_width(job), job.preset.video.image_size, job.settings)


def train(model: Dino, job: Job, manifest: Manifest) -> list[dict]:
    """Self-distil on the clips' frames; the history, a record an epoch. The model ends as the teacher."""
    settings: Settings = job.settings
    frames = images.decode(job, manifest, settings.subtract_background)
    objective = SelfDistillation(model, settings)
    history = fit_tensors(job, model, objective, {"clips": frames}, make_views)
    model.load_state_dict(objective.teacher.state_dict())  # the better of the two, section 5.1
    return history


clips = images.clips
encode = images.encode


def notes(job: Job) -> dict[str, str]:
    """How the features were made."""
    return images.notes(job, f"ViT, depth {job.settings.depth}, trained without labels by DINO")
