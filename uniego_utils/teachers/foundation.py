"""Frozen image foundation models as teachers: timm's vision transformers on single frames, pooled over time.

The paper's are DINOv2 ViT-L/14 (class token, 1024, Apache-2.0) and SigLIP So400m (attention pooling, 1152,
Apache-2.0); CLIP ViT-B/16 (class token projected to 512, MIT) serves Sk-Ego. How the authors sized, cropped
and pooled frames is unpublished: the settings' defaults are inferred.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from uniego_utils.backbones.pretrained import load_exactly, locate_weights, read_weights
from uniego_utils.data.manifests import Manifest
from uniego_utils.data.video import frame_indices, open_clip, sample_times
from uniego_utils.teachers.batches import Job
from uniego_utils.teachers.images import pool_frames, require_width

FITS = ("crop", "stretch")


@dataclass(frozen=True)
class Settings:
    """Which model, and what it is shown."""

    name: str  # timm's, with its tag
    revision: str | None = None  # commit of the hub's repository; None: its newest
    num_frames: int = 8
    image_size: int = 224  # pixels; position embeddings are resized to it
    fit: str = "crop"  # crop: the central square; stretch: the whole picture
    pooling: str = "mean"  # over frames
    frames_per_pass: int = 64  # bounds the memory that a batch takes
    bf16: bool = True  # autocast, on a GPU alone
    model_args: Mapping[str, Any] = field(default_factory=dict)  # of timm.create_model


class FrameClips(Dataset):
    """Frames of a clip as the job's settings say: item `row` is (T, 3, S, S) uint8.

    The settings need `num_frames`, `image_size` and `fit`. The times are those at which the student looks
    when it is evaluated with as many frames.
    """

    def __init__(self, job: Job, manifest: Manifest):
        if job.settings.fit not in FITS:
            raise ValueError(f"{job.key}: unknown fit {job.settings.fit!r}; choose one of {', '.join(FITS)}")
        self.manifest, self.view, self.settings = manifest, job.view, job.settings
        self.span_s = job.preset.video.span_s
        self.spans = manifest.rows[["start_s", "end_s"]].to_numpy(dtype=float)

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, row: int) -> Tensor:
        return fit_square(self.frames(row), self.settings.image_size, self.settings.fit)

    def frames(self, row: int) -> Tensor:
        """What is resized to the model's input: (T, 3, H, W) uint8. Here the whole pictures."""
        times = sample_times(*self.spans[row], self.settings.num_frames, self.span_s)
        video = open_clip(self.manifest, row, self.view)
        return torch.from_numpy(video.read(frame_indices(times, video.fps, video.frames))).permute(0, 3, 1, 2)


def fit_square(frames: Tensor, size: int, fit: str) -> Tensor:
    """(T, 3, H, W) uint8 -> (T, 3, size, size): bicubic, as these models were evaluated.

    Args:
        fit: `crop` resizes the shorter side and takes the centre, `stretch` resizes both sides.
    """
    sides = [size, size] if fit == "stretch" else [size]
    frames = transforms.resize(frames, sides, InterpolationMode.BICUBIC, antialias=True)
    return transforms.center_crop(frames, [size, size])


@torch.no_grad()
def vit_images(
    model: Callable[[Tensor], Tensor],
    clips: Tensor,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    frames_per_pass: int,
    bf16: bool,
) -> Tensor:
    """Clips through an image model: (B, T, 3, S, S) uint8 -> (B, T, D) float32, on the clips' device.

    Args:
        model: normalised frames (N, 3, S, S) -> features (N, D).
        mean, std: RGB, of pixels in 0..1; the model's own.
        frames_per_pass: frames that the model is given at once.
        bf16: autocast to bfloat16 where the clips are on a GPU.
    """
    device = clips.device.type
    features = []
    for frames in clips.flatten(0, 1).split(frames_per_pass):
        frames = transforms.normalize(frames.float() / 255, list(mean), list(std))
        with torch.autocast(device, torch.bfloat16, enabled=bf16 and device == "cuda"):
            features.append(model(frames).float())
    return torch.cat(features).unflatten(0, clips.shape[:2])


def create(name: str, image_size: int, model_args: Mapping[str, Any]) -> VisionTransformer:
    """timm's model `name` with random weights, for pictures of `image_size` pixels.

    Raises:
        ValueError: no pretrained vision transformer of timm's has that name (near ones are listed), or the
            size does not divide into its patches.
    """
    known = timm.list_models(module="vision_transformer", pretrained=True)
    if name not in known:
        near = ", ".join(difflib.get_close_matches(name, known, 3, 0)) or "none"
        raise ValueError(f"timm has no pretrained vision transformer {name!r}; near names: {near}")
    model = timm.create_model(name, img_size=image_size, **model_args)
    patch = model.patch_embed.patch_size[0]
    if image_size % patch:
        raise ValueError(f"image_size {image_size} does not divide into patches of {patch} pixels of {name}")
    return model


def build(job: Job) -> VisionTransformer:
    """The model with its pretrained weights: frames (N, 3, S, S) -> (N, D).

    Its head is the weights' own: none of DINOv2 and SigLIP, the projection to 512 of CLIP.

    Raises:
        FileNotFoundError: no weights; see `locate_weights`.
        ValueError: an unknown model, weights of another one, or a width that is not the card's.
    """
    settings: Settings = job.settings
    model = create(settings.name, settings.image_size, settings.model_args)
    require_width(job, model.num_classes or model.head_hidden_size, settings.name)
    place = locate_weights(model.pretrained_cfg["hf_hub_id"], job.weights, settings.revision)
    given, patches = read_weights(place), "patch_embed.proj.weight"
    expected = model.state_dict()[patches].shape
    if patches in given and given[patches].shape[2:] != expected[2:]:  # timm would resample them
        raise ValueError(
            f"{place} does not fit {settings.name}: its patches are of {tuple(given[patches].shape[2:])} "
            f"pixels, not {tuple(expected[2:])}; give the weights of that model"
        )
    # the filter knows the official releases' layouts, and resizes position embeddings to the model's
    state = checkpoint_filter_fn(given, model)
    if model.num_classes == 0:
        state = {entry: value for entry, value in state.items() if not entry.startswith("head.")}
    load_exactly(model, state, place, settings.name)
    return model


clips = FrameClips


def encode(model: nn.Module, clips: Tensor, job: Job) -> Tensor:
    """Frames (B, T, 3, S, S) uint8 -> features (B, width) float32."""
    settings: Settings = job.settings
    release = timm.get_pretrained_cfg(settings.name)  # its statistics, not the student's
    frames = vit_images(model, clips, release.mean, release.std, settings.frames_per_pass, settings.bf16)
    return pool_frames(frames, settings.pooling)


def shown(settings: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    """What a frozen image model is given of a clip, in words."""
    size = settings.image_size
    return (
        f"{settings.num_frames} frames of {size} x {size} pixels ({settings.fit}, bicubic), "
        f"mean {mean}, std {std}{', bfloat16 on a GPU' if settings.bf16 else ''}"
    )


def notes(job: Job) -> dict[str, str]:
    """How the features were made."""
    settings: Settings = job.settings
    release = timm.get_pretrained_cfg(settings.name)
    return {
        "model": f"timm {settings.name}, {release.hf_hub_id} at {settings.revision or 'its newest commit'}",
        "preprocessing": shown(settings, release.mean, release.std),
        "pooling": f"the model's own within a frame, {settings.pooling} over frames",
    }
