"""Frozen Depth Anything as a teacher: the last features of its DINOv2 backbone, over patches and time.

V2-Large (arXiv:2406.09414, CC-BY-NC-4.0) is the default, as the paper cites it; V1
(`LiheYoung/depth-anything-large-hf`, Apache-2.0) is what the authors' README links. Both are 1024 wide. Which
tokens the authors pooled is unpublished: the mean over patches is inferred.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from uniego_utils.backbones.pretrained import load_transformers, locate_weights
from uniego_utils.runs import read_json
from uniego_utils.teachers.batches import Job
from uniego_utils.teachers.foundation import FrameClips, shown, vit_images
from uniego_utils.teachers.images import pool_frames, require_width

if TYPE_CHECKING:
    from transformers import DepthAnythingForDepthEstimation

FILES = ("config.json", "model.safetensors", "preprocessor_config.json")
TOKENS = ("patches", "cls")


@dataclass(frozen=True)
class Settings:
    """Which model, and what it is shown."""

    name: str = "depth-anything/Depth-Anything-V2-Large-hf"  # hub repository in transformers' layout
    revision: str | None = None  # commit of the hub's repository; None: its newest
    num_frames: int = 8
    image_size: int = 518  # pixels; position embeddings are resized to it
    fit: str = "crop"  # crop: the central square; stretch: the whole picture
    pooling_tokens: str = "patches"  # their mean within a frame; cls: the class token
    pooling: str = "mean"  # over frames
    frames_per_pass: int = 16  # bounds the memory that a batch takes
    bf16: bool = True  # autocast, on a GPU alone


class DepthFeatures(nn.Module):
    """Frames (N, 3, S, S) -> features (N, D) of the backbone alone; the depth maps are not computed."""

    def __init__(self, backbone: nn.Module, pooling_tokens: str):
        super().__init__()
        backbone.config.reshape_hidden_states = False  # else the class token is dropped and patches are a map
        self.backbone, self.pooling_tokens = backbone, pooling_tokens

    def forward(self, frames: Tensor) -> Tensor:
        """frames (N, 3, S, S) -> features (N, D): the class token, or the mean over patches."""
        tokens = self.backbone(frames).feature_maps[-1]  # (N, 1 + patches, D) after the last LayerNorm
        return tokens[:, 0] if self.pooling_tokens == "cls" else tokens[:, 1:].mean(1)


def build(job: Job) -> DepthFeatures:
    """The backbone with its pretrained weights.

    Raises:
        FileNotFoundError: no weights, or a file where transformers' folder should be.
        ValueError: weights of another model, other statistics than ImageNet's, a size that does not divide
            into patches, or a width that is not the card's.
    """
    settings: Settings = job.settings
    if settings.pooling_tokens not in TOKENS:
        raise ValueError(
            f"{job.key}: unknown pooling_tokens {settings.pooling_tokens!r}; choose {' or '.join(TOKENS)}"
        )
    folder = locate_weights(settings.name, job.weights, settings.revision, [FILES])
    backbone = load(folder, settings.name).backbone
    require_width(job, backbone.config.hidden_size, str(folder))
    if settings.image_size % (patch := backbone.config.patch_size):
        raise ValueError(
            f"{job.key}: image_size {settings.image_size} does not divide into patches of {patch} pixels"
        )
    return DepthFeatures(backbone, settings.pooling_tokens)


def load(folder: Path, name: str) -> "DepthAnythingForDepthEstimation":
    """The whole model from a local folder in transformers' layout, in float32."""
    from transformers import DepthAnythingForDepthEstimation  # late: it takes seconds to import

    check_statistics(folder)
    return load_transformers(DepthAnythingForDepthEstimation, folder, name)


def check_statistics(folder: Path) -> None:
    """Refuse a model whose preprocessing has other statistics than ImageNet's; without the file they are."""
    path = folder / "preprocessor_config.json"
    statistics: Mapping[str, Any] = read_json(path) if path.is_file() else {}
    for name, expected in (("image_mean", IMAGENET_DEFAULT_MEAN), ("image_std", IMAGENET_DEFAULT_STD)):
        if tuple(statistics.get(name, expected)) != expected:
            raise ValueError(
                f"{path}: {name} is {statistics[name]}, not ImageNet's {expected}; use the release's file"
            )


clips = FrameClips


def encode(model: DepthFeatures, clips: Tensor, job: Job) -> Tensor:
    """Frames (B, T, 3, S, S) uint8 -> features (B, width) float32."""
    settings: Settings = job.settings
    frames = vit_images(
        model, clips, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, settings.frames_per_pass, settings.bf16
    )
    return pool_frames(frames, settings.pooling)


def notes(job: Job) -> dict[str, str]:
    """How the features were made."""
    settings: Settings = job.settings
    within = "class token" if settings.pooling_tokens == "cls" else "mean over patches"
    return {
        "model": f"backbone of {settings.name} at {settings.revision or 'its newest commit'}",
        "preprocessing": shown(settings, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
        "pooling": f"{within} of the last layer, {settings.pooling} over frames",
    }
