"""Video encoders. Each returns a feature and logits for clips (B, 3, T, H, W)."""

from torch import nn

from uniego_utils.backbones.timesformer import SIZES, TimeSformer


def create_backbone(
    name: str,
    num_classes: int,
    num_frames: int = 8,
    image_size: int = 224,
    size: str = "base",
) -> nn.Module:
    """Build a video encoder with random weights.

    Args:
        name: `timesformer`.
        num_classes: C, length of the logits.
        num_frames: T, frames per clip.
        image_size: H = W in pixels.
        size: `tiny` (the embedded presets) or `base` (the paper's B/16).

    Returns:
        A module: clips (B, 3, T, H, W) -> (features (B, D), logits (B, C)), with D as `feature_width`.

    Raises:
        ValueError: an unknown name or size, or frames or pixels that do not divide into tokens.
    """
    if name != "timesformer":
        raise ValueError(f"unknown backbone {name!r}; choose one of timesformer")
    if size not in SIZES:
        raise ValueError(f"unknown size {size!r} of {name}; choose one of {', '.join(SIZES)}")
    return TimeSformer(num_classes, num_frames, image_size, **SIZES[size])
