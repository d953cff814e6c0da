"""Teacher on depth: an encoder trained to predict relative inverse depth from RGB frames.

It stands for Depth Anything (arXiv:2406.09414), whose frozen features the paper uses. The depth maps have to
pass through one narrow code, so that the code says where body and room are; the code is the feature. With
`context` above one, frames are looked at together, as in Video Depth Anything (arXiv:2501.12375).
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uniego_utils.cards import TrainConfig
from uniego_utils.data.manifests import Manifest
from uniego_utils.teachers import images
from uniego_utils.teachers.batches import Job, column_as_video
from uniego_utils.teachers.fitting import fit_tensors


@dataclass(frozen=True)
class Settings(images.Settings):
    """Sizes of encoder and decoder, and what they are shown."""

    pooling: str = "mean_std_speed"  # over windows of frames
    context: int = 1  # consecutive frames that one code explains
    stride: int = 1  # frames between windows when features are extracted
    channels: tuple[int, ...] = (16, 32, 64, 128)  # of the encoder's strided convolutions
    decoder: int = 256  # hidden units between code and depth maps: few, so that the code holds the depth
    depth_size: int = 16  # pixels, side of the predicted maps
    windows_per_clip: int = 4  # drawn per clip and epoch
    jitter: float = 0.2
    train: TrainConfig = field(default_factory=TrainConfig)


def align(depths: Tensor) -> Tensor:
    """Each entry's maps (B, ...) to zero mean and unit variance: free of scale and shift."""
    flat = depths.flatten(1)
    centred = flat - flat.mean(1, keepdim=True)
    return (centred / centred.std(1, correction=0, keepdim=True).clamp(min=1e-6)).view_as(depths)


def scale_shift_invariant_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference of aligned maps, as MiDaS does (arXiv:1907.01341, section 5).

    Squares and moments instead of the robust variant's absolute values and medians: the targets here have no
    outliers, and the few near pixels of a head camera's own body should weigh most.

    Args:
        predicted, target: (B, ...) inverse depths, the maps of a window; the window's scale (positive) and
            shift do not matter in either.

    Returns:
        A scalar in [0, 4]: 2 - 2 * correlation. Zero for maps that differ in scale and shift alone.
    """
    return (align(predicted) - align(target)).square().mean()


class DepthNet(nn.Module):
    """Windows (B, context, 3, S, S) -> codes (B, width), inverse depths (B, context, side, side)."""

    def __init__(self, width: int, image_size: int, settings: Settings):
        super().__init__()
        self.context, self.stride = settings.context, settings.stride
        sizes = (3 * settings.context, *settings.channels)
        layers: list[nn.Module] = []
        for before, after in zip(sizes, sizes[1:], strict=False):
            layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        grid = image_size // 2 ** len(settings.channels)
        layers += [nn.Flatten(), nn.Linear(sizes[-1] * grid**2, width), nn.BatchNorm1d(width)]
        self.to_code = nn.Sequential(*layers)

        self.to_depth = nn.Sequential(
            nn.Linear(width, settings.decoder),
            nn.ReLU(),
            nn.Linear(settings.decoder, settings.context * settings.depth_size**2),
            nn.Unflatten(1, (settings.context, settings.depth_size, settings.depth_size)),
        )

    def encode(self, clips: Tensor) -> Tensor:
        """Clips (B, T, 3, S, S) -> codes of their windows (B, W, width)."""
        starts = range(0, clips.shape[1] - self.context + 1, self.stride)
        windows = torch.stack([clips[:, first : first + self.context] for first in starts], 1)
        return self.to_code(windows.flatten(2, 3).flatten(0, 1)).unflatten(0, windows.shape[:2])

    def forward(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Windows of frames -> their codes, and the depth that is read from them."""
        code = self.to_code(windows.flatten(1, 2))
        return code, self.to_depth(code)


class DepthObjective(nn.Module):
    """The loss against the batch's `depth` (B, context, S, S)."""

    def forward(self, features: Tensor, predicted: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scalar losses; `loss` is the total."""
        target = F.adaptive_avg_pool2d(batch["depth"], predicted.shape[-2:])
        return {"loss": scale_shift_invariant_loss(predicted, target)}


def build(job: Job) -> DepthNet:
    """The network with random weights."""
    settings: Settings = job.settings
    if not 1 <= settings.context <= settings.num_frames:
        raise ValueError(
            f"{job.key}: context {settings.context} is not within 1..{settings.num_frames} frames"
        )
    return DepthNet(images.frame_width(job), job.preset.video.image_size, settings)


def make_windows(batch: dict[str, Tensor], job: Job, generator: torch.Generator) -> dict[str, Tensor]:
    """Random windows of `clips` (B, T, 3, S, S) and `depth` (B, T, S, S) uint8, W a clip, as float.

    Both are mirrored alike. `clips` (B * W, context, 3, S, S) are normalised and changed in their light,
    `depth` (B * W, context, S, S) is in 0..1.
    """
    settings: Settings = job.settings
    count, frames = batch["clips"].shape[:2]
    latest = frames - settings.context + 1
    first = torch.randint(latest, (count, settings.windows_per_clip, 1), generator=generator)
    mirror = torch.rand(first.shape[:2], generator=generator) < 0.5
    windows = {}
    for name in ("clips", "depth"):
        chosen = batch[name][torch.arange(count)[:, None, None], first + torch.arange(settings.context)]
        chosen[mirror] = chosen[mirror].flip(-1)
        windows[name] = chosen.flatten(0, 1)
    normalised = images.normalise(windows["clips"], job.preset.video)
    return {
        "clips": images.jitter(normalised, settings.jitter, generator),
        "depth": windows["depth"] / 255,
    }


def train(model: DepthNet, job: Job, manifest: Manifest) -> list[dict]:
    """Fit to the clips' depth videos; the history, a record an epoch."""
    settings: Settings = job.settings
    frames = images.decode(job, manifest, settings.subtract_background)
    depths = images.decode(job, column_as_video(manifest, job.view, f"{job.view}_depth"), False)
    tensors = {"clips": frames, "depth": depths[:, :, 0].clone()}
    del depths  # three equal channels
    return fit_tensors(job, model, DepthObjective(), tensors, make_windows)


clips = images.clips
encode = images.encode


def notes(job: Job) -> dict[str, str]:
    """How the features were made."""
    settings: Settings = job.settings
    made = f"convolutional encoder {settings.channels} of {settings.context} frames, trained to predict depth"
    return images.notes(job, made)
