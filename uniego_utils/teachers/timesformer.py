"""Teacher on exo video: the suite's TimeSformer, trained with cross-entropy on the teachers' split.

The paper's teacher is a TimeSformer-B of 768 features (section 4.1), presumably fine-tuned on exo clips from
Kinetics-400 weights (inferred); on the embedded benchmark it is as small as the student.
"""

from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from uniego_utils.backbones.timesformer import (
    SIZES,
    TimeSformer,
    from_kinetics,
    kinetics_weights,
    pretrained_start,
)
from uniego_utils.cards import TrainConfig
from uniego_utils.data.manifests import Manifest
from uniego_utils.data.video import ClipDataset, loader
from uniego_utils.objectives import Classification
from uniego_utils.teachers.batches import EvaluationClips, Job, subtract_background
from uniego_utils.teachers.fitting import fit_batches


@dataclass(frozen=True)
class Settings:
    """Size of the network and what it is shown."""

    size: str = "tiny"  # of the backbone; the card's width overrides its width
    depth: int | None = None  # blocks; None: the size's
    start: str = ""  # random; "imagenet": an image ViT, inflated; else the hub name of Kinetics-400 weights
    num_frames: int = 16
    subtract_background: bool = True  # for static cameras
    train: TrainConfig = field(default_factory=TrainConfig)


def build(job: Job) -> TimeSformer:
    """The network with random weights."""
    settings: Settings = job.settings
    if settings.size not in SIZES:
        raise ValueError(f"{job.key}: unknown size {settings.size!r}; choose one of {', '.join(SIZES)}")
    sizes = SIZES[settings.size] | {"width": job.teacher.width}
    if settings.depth is not None:
        sizes["depth"] = settings.depth
    return TimeSformer(len(job.card.classes), settings.num_frames, job.preset.video.image_size, **sizes)


class Spans(ClipDataset):
    """Clips of the job's view; if wanted without their background, which takes all frames of the span."""

    def __init__(self, job: Job, manifest: Manifest):
        self.remove_background = job.settings.subtract_background
        video = replace(job.preset.video, num_frames=job.settings.num_frames)
        super().__init__(manifest, job.view, video, whole_span=self.remove_background)

    def decode_span(self, row: int) -> tuple[Tensor, float, int]:
        """A clip's frames (T, 3, H, W) uint8, their rate, and the number of the first."""
        frames, fps, first = super().decode_span(row)
        return subtract_background(frames) if self.remove_background else frames, fps, first


def train_on(dataset: ClipDataset, model: TimeSformer, job: Job) -> list[dict]:
    """Fit with cross-entropy; the history, a record an epoch."""
    config, start = job.settings.train, job.settings.start
    if start == "imagenet":
        pretrained_start(model, job.weights)
    elif start:
        from_kinetics(model, kinetics_weights(start, job.weights))
    if job.preset.video.cache:
        dataset.preload(job.progress)
    batches = partial(loader, dataset, config.batch_size, job.seed)
    return fit_batches(job, model, Classification(config.label_smoothing), batches)


def train(model: TimeSformer, job: Job, manifest: Manifest) -> list[dict]:
    """Fit with cross-entropy; the history, a record an epoch."""
    return train_on(Spans(job, manifest), model, job)


def clips(job: Job, manifest: Manifest) -> EvaluationClips:
    """Item `row` is (3, T, S, S) float32, normalised."""
    return EvaluationClips(Spans(job, manifest))


def encode(model: TimeSformer, clips: Tensor, job: Job) -> Tensor:
    """Clips (B, 3, T, S, S) -> class-token features (B, width)."""
    device = clips.device.type
    with torch.autocast(device, torch.bfloat16, enabled=job.settings.train.bf16 and device == "cuda"):
        return model(clips)[0]


def notes(job: Job) -> dict[str, str]:
    """How the features were made."""
    settings: Settings = job.settings
    size = job.preset.video.image_size
    background = ", background subtracted" if settings.subtract_background else ""
    start = f" from {settings.start}" if settings.start else ""
    return {
        "model": f"TimeSformer {settings.size}, width {job.teacher.width}, trained on action labels{start}",
        "preprocessing": f"{settings.num_frames} frames of {size} x {size} pixels{background}",
        "pooling": "class token",
    }
