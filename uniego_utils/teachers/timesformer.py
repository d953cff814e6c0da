"""Teacher on exo video: the suite's TimeSformer, trained with cross-entropy on the teachers' split.

The paper's teacher is a TimeSformer-B of 768 features (section 4.1); this one is as small as the student.
"""

from dataclasses import dataclass, field

from torch import Tensor

from uniego_utils.backbones.timesformer import SIZES, TimeSformer
from uniego_utils.manifests import Manifest, TrainConfig
from uniego_utils.objectives import Classification
from uniego_utils.teachers.batches import Job, preload
from uniego_utils.training import Learner, fit, predict
from uniego_utils.video import ClipDataset, loader


@dataclass(frozen=True)
class Settings:
    """Size of the network and what it is shown."""

    size: str = "tiny"  # of the backbone; the card's width overrides its width
    num_frames: int = 16
    subtract_background: bool = True  # for static cameras
    batch_size_eval: int = 64
    train: TrainConfig = field(default_factory=TrainConfig)


def build(job: Job, manifest: Manifest) -> TimeSformer:
    """The network with random weights."""
    settings: Settings = job.settings
    if settings.size not in SIZES:
        raise ValueError(f"{job.key}: unknown size {settings.size!r}; choose one of {', '.join(SIZES)}")
    sizes = SIZES[settings.size] | {"width": job.teacher.width}
    return TimeSformer(len(job.card.classes), settings.num_frames, job.preset.video.image_size, **sizes)


def decode(job: Job, manifest: Manifest) -> ClipDataset:
    """The clips in memory."""
    settings: Settings = job.settings
    return preload(job, manifest, settings.subtract_background, num_frames=settings.num_frames)


def train_on(dataset: ClipDataset, model: TimeSformer, job: Job) -> list[dict]:
    """Fit with cross-entropy; the history, a record an epoch."""
    config: TrainConfig = job.settings.train
    learner = Learner(model, Classification(config.label_smoothing))
    history = fit(
        {job.key: learner}, lambda epoch: loader(dataset, config.batch_size, job.seed, epoch), config,
        job.seed, job.checkpoint, job.device, describe=job.key, progress=job.progress,
    )  # fmt: skip
    return history[job.key]


def train(model: TimeSformer, job: Job, manifest: Manifest) -> list[dict]:
    """Fit with cross-entropy; the history, a record an epoch."""
    return train_on(decode(job, manifest), model, job)


def encode(model: TimeSformer, job: Job, manifest: Manifest) -> Tensor:
    """Class-token features (N, width)."""
    batches = loader(decode(job, manifest), job.settings.batch_size_eval)
    return predict(model, batches, job.device)["features"]


def notes(job: Job) -> dict[str, str]:
    """How the features were made."""
    settings: Settings = job.settings
    size = job.preset.video.image_size
    background = ", background subtracted" if settings.subtract_background else ""
    return {
        "model": f"TimeSformer {settings.size}, width {job.teacher.width}, trained on action labels",
        "preprocessing": f"{settings.num_frames} frames of {size} x {size} pixels{background}",
        "pooling": "class token",
    }
