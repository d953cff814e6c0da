"""What the image teachers share: a small ViT, frames in memory, augmentation, pooling over frames."""

from dataclasses import dataclass, replace

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as transforms
from tqdm.auto import tqdm

from uniego_utils.backbones.timesformer import PATCH, ConvStem
from uniego_utils.cards import VideoCard
from uniego_utils.data.manifests import Manifest
from uniego_utils.data.video import ClipDataset
from uniego_utils.teachers.batches import Job, subtract_background

STEM = (16, 32, 64)  # channels of the convolutional stem before the tokens
POOLINGS = {"mean": 1, "mean_std": 2, "mean_std_speed": 3}  # name -> width over the frames' width


@dataclass(frozen=True)
class Settings:
    """What an image teacher is shown, and how its frames' features become a clip's."""

    num_frames: int = 16
    subtract_background: bool = False  # of the RGB input; for static cameras
    pooling: str = "mean"  # over frames
    mirror: bool = True  # features are means over the clip and its mirror image


class StemEmbed(ConvStem):
    """The suite's convolutional stem, with what timm's ViT asks of a patch embedding."""

    def __init__(self, img_size: int, patch_size: int, in_chans: int, embed_dim: int, **_: object):
        super().__init__(in_chans, STEM, embed_dim)
        self.num_patches = (img_size // patch_size) ** 2


class FrameViT(nn.Module):
    """A small ViT with random weights, to look at frames one by one."""

    def __init__(self, image_size: int, width: int, depth: int, heads: int):
        super().__init__()
        self.vit = VisionTransformer(
            image_size, PATCH, num_classes=0, embed_dim=width, depth=depth, num_heads=heads,
            embed_layer=StemEmbed,
        )  # fmt: skip

    def encode(self, clips: Tensor) -> Tensor:
        """Clips (B, T, 3, S, S) -> class tokens (B, T, width)."""
        return self.vit.forward_features(clips.flatten(0, 1))[:, 0].unflatten(0, clips.shape[:2])


class SquareFrames(Dataset):
    """The central square of a clip's frames at the card's input size: item `row` is (T, 3, S, S) uint8."""

    def __init__(self, job: Job, manifest: Manifest, remove_background: bool):
        size = job.preset.video.image_size
        video = replace(job.preset.video, num_frames=job.settings.num_frames, resize=size)
        self.source = ClipDataset(manifest, job.view, video)
        self.remove_background = remove_background

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, row: int) -> Tensor:
        size = self.source.video.image_size
        frames = self.source.frames(row)
        top, left = ((room - size) // 2 for room in frames.shape[-2:])
        frames = frames[..., top : top + size, left : left + size]
        return subtract_background(frames) if self.remove_background else frames


def decode(job: Job, manifest: Manifest, remove_background: bool) -> Tensor:
    """All clips' frames in memory, to train on: (N, T, 3, S, S) uint8."""
    dataset = SquareFrames(job, manifest, remove_background)
    clips = torch.empty(len(dataset), *dataset[0].shape, dtype=torch.uint8)
    rows = tqdm(
        range(len(dataset)), f"decode {manifest.split} {job.view}", disable=not job.progress, leave=False
    )
    for row in rows:
        clips[row] = dataset[row]
    return clips


def draw_frames(clips: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` different random frames of each clip: (B, T, ...) -> (B, count, ...)."""
    order = torch.rand(clips.shape[:2], generator=generator).argsort(1)[:, :count]
    return clips[torch.arange(len(clips))[:, None], order]


def normalise(frames: Tensor, video: VideoCard) -> Tensor:
    """Pixels (..., 3, H, W) uint8 or float in 0..255 -> normalised float32."""
    return transforms.normalize(frames.float() / 255, list(video.mean), list(video.std))


def random_crop(
    pictures: Tensor, area: tuple[float, float], generator: torch.Generator, flip: bool = False
) -> Tensor:
    """A random square of each picture, resized to the whole: (B, C, S, S) float -> the same shape.

    Args:
        area: smallest and largest share of the picture's area.
        flip: mirror every second picture.
    """
    draws = torch.rand(len(pictures), 4, generator=generator).to(pictures.device)
    side = (area[0] + draws[:, 0] * (area[1] - area[0])).sqrt()
    shift = (1 - side)[:, None] * (2 * draws[:, 1:3] - 1)
    sign = torch.where(draws[:, 3] < 0.5, -1.0, 1.0) if flip else torch.ones_like(side)
    theta = torch.zeros(len(pictures), 2, 3, device=pictures.device)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = side * sign, side, shift
    grid = F.affine_grid(theta, list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def jitter(pictures: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Each entry's channels scaled and shifted by up to `strength`: normalised (B, ..., 3, H, W)."""
    shape = (2, len(pictures), *(1 for _ in pictures.shape[1:-3]), 3, 1, 1)
    draws = (2 * torch.rand(shape, generator=generator) - 1).to(pictures.device) * strength
    return pictures * (1 + draws[0]) + draws[1]


def pooled_width(width: int, pooling: str) -> int:
    """Width of the clip feature; an unknown pooling is an error that lists the valid ones."""
    if pooling not in POOLINGS:
        raise ValueError(f"unknown pooling {pooling!r}; choose one of {', '.join(POOLINGS)}")
    return POOLINGS[pooling] * width


def require_width(job: Job, frame_width: int, model: str) -> None:
    """Refuse a `model` whose pooled feature has another width than the card says; names both."""
    width = pooled_width(frame_width, job.settings.pooling)
    if width != job.teacher.width:
        raise ValueError(
            f"{job.key}: {model} pooled by {job.settings.pooling} is {width} wide, but the card says "
            f"{job.teacher.width}; change one of them"
        )


def frame_width(job: Job) -> int:
    """Width of a frame's feature such that the pooled one has the card's width."""
    factor = pooled_width(1, job.settings.pooling)
    if job.teacher.width % factor:
        raise ValueError(
            f"{job.key}: the card's width {job.teacher.width} does not divide by {factor}, "
            f"which pooling {job.settings.pooling!r} needs; change one of them"
        )
    return job.teacher.width // factor


def pool_frames(features: Tensor, pooling: str) -> Tensor:
    """Frames' features (N, T, D) -> clips' features (N, D or a multiple of D).

    The standard deviation over frames and the mean step between neighbours ("speed") carry the motion, which
    the mean of single pictures does not.
    """
    parts = [features.mean(1)]
    if pooling in ("mean_std", "mean_std_speed"):
        parts.append(features.std(1, correction=0))
    if pooling == "mean_std_speed":
        parts.append(features.diff(dim=1).abs().mean(1))
    return torch.cat(parts, 1)


def clips(job: Job, manifest: Manifest) -> SquareFrames:
    """Item `row` is (T, 3, S, S) uint8."""
    return SquareFrames(job, manifest, job.settings.subtract_background)


def encode(model: nn.Module, clips: Tensor, job: Job) -> Tensor:
    """Frames (B, T, 3, S, S) uint8 through `model.encode` and pooled: (B, width).

    It takes normalised clips (B, T, 3, S, S) and gives (B, any number, D), pooled over the number.
    With the setting `mirror`, the features are means over each clip and its mirror image.
    """
    clips = normalise(clips, job.preset.video)
    views = [clips, clips.flip(-1)] if job.settings.mirror else [clips]
    return torch.stack([pool_frames(model.encode(view), job.settings.pooling) for view in views]).mean(0)


def notes(job: Job, model: str) -> dict[str, str]:
    """How an image teacher's features were made."""
    settings, size = job.settings, job.preset.video.image_size
    background = ", background subtracted" if settings.subtract_background else ""
    mirrored = ", mean with the mirrored clip" if settings.mirror else ""
    return {
        "model": model,
        "preprocessing": f"{settings.num_frames} frames of {size} x {size} pixels{background}",
        "pooling": f"{settings.pooling} over frames{mirrored}",
    }
