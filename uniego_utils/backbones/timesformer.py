"""TimeSformer with divided space-time attention, on timm parts (Bertasius et al. 2021, arXiv:2102.05095)."""

import re

import timm
import torch
from timm.layers import Attention, DropPath, Mlp, PatchEmbed, trunc_normal_
from torch import Tensor, nn
from torch.nn import functional as F

from uniego_utils.backbones.pretrained import load_exactly, locate_weights, read_weights

IMAGE_VIT = (
    "vit_base_patch16_224.orig_in21k_ft_in1k"  # timm's name of the official release's start (Apache-2.0)
)
SIZES = {
    "tiny": dict(width=64, depth=2, heads=2, tubelet=4, stem=(16, 32, 64), drop=0.1),
    "base": dict(width=768, depth=12, heads=12, drop_path=0.1),
}
PATCH = 16  # pixels, side of a token
WRAPPERS = re.compile(r"^(module\.|model\.|timesformer\.)+")  # what training code puts before names
OFFICIAL = {"temporal_norm": "temporal_norm1", "temporal_proj": "temporal_fc"}  # the official release
LAYOUTS = (  # where other TimeSformers' names differ from ours
    {
        "blocks": "encoder.layer",
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "time_embed": "embeddings.time_embeddings",
        "temporal_norm": "temporal_layernorm",
        "temporal_attn.qkv": "temporal_attention.attention.qkv",
        "temporal_attn.proj": "temporal_attention.output.dense",
        "temporal_proj": "temporal_dense",
        "norm1": "layernorm_before",
        "attn.qkv": "attention.attention.qkv",
        "attn.proj": "attention.output.dense",
        "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
        "norm": "layernorm",
    },  # transformers
    OFFICIAL,
)

NEEDED = ("cls_token", "pos_embed", "time_embed", "head.weight")  # what makes it a divided TimeSformer


class ConvStem(nn.Module):
    """Strided 3x3 convolutions to tokens of 16 x 16 pixels: learns faster than patches on few clips.

    BatchNorm, because the same stem with LayerNorm had learnt next to nothing after the same epochs.
    """

    def __init__(self, channels: int, widths: tuple[int, int, int], width: int):
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((channels, *widths), (*widths, width), strict=True):
            layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, frames: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, H/16 * W/16, width)."""
        return self.layers(frames).flatten(2).transpose(1, 2)


class DividedBlock(nn.Module):
    """Attention over time, then over space, then an MLP; each with a residual."""

    def __init__(self, width: int, heads: int, drop_path: float = 0.0):
        super().__init__()
        norm = {"eps": 1e-6}
        self.temporal_norm = nn.LayerNorm(width, **norm)
        self.temporal_attn = Attention(width, heads, qkv_bias=True)  # scaled_dot_product_attention inside
        self.temporal_proj = nn.Linear(width, width)
        nn.init.zeros_(self.temporal_proj.weight)  # the block starts as the image ViT's block
        nn.init.zeros_(self.temporal_proj.bias)
        self.norm1 = nn.LayerNorm(width, **norm)
        self.attn = Attention(width, heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(width, **norm)
        self.mlp = Mlp(width, 4 * width)
        self.drop_path = DropPath(drop_path)

    def forward(self, cls: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """cls (B, 1, D) and tokens (B, T, N, D) -> the same shapes."""
        b, t, n, d = tokens.shape
        over_time = tokens.transpose(1, 2).reshape(b * n, t, d)
        over_time = self.drop_path(self.temporal_attn(self.temporal_norm(over_time)))
        tokens = tokens + self.temporal_proj(over_time).view(b, n, t, d).transpose(1, 2)

        # every frame attends with its own copy of the class token; the copies are averaged afterwards
        frames = torch.cat([cls[:, None].expand(b, t, 1, d), tokens], 2).view(b * t, n + 1, d)
        frames = self.drop_path(self.attn(self.norm1(frames))).view(b, t, n + 1, d)
        cls, tokens = cls + frames[:, :, 0].mean(1, keepdim=True), tokens + frames[:, :, 1:]

        every = torch.cat([cls, tokens.flatten(1, 2)], 1)
        every = every + self.drop_path(self.mlp(self.norm2(every)))
        return every[:, :1], every[:, 1:].view(b, t, n, d)


class TimeSformer(nn.Module):
    """Clips (B, 3, T, H, W) -> features (B, width) of the class token, and logits (B, num_classes).

    B/16 at 8 x 224 x 224 has 121.3 M parameters and a 768-d feature, as in the paper.

    Args:
        tubelet: frames per token in time; 1 is the paper's.
        stem: channels of a convolutional stem; None is the paper's patch projection.
        drop: dropout before the classifier.
        drop_path: rate of the last block; it rises linearly from 0 at the first.
    """

    def __init__(
        self,
        num_classes: int,
        num_frames: int = 8,
        image_size: int = 224,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        tubelet: int = 1,
        stem: tuple[int, int, int] | None = None,
        drop: float = 0.0,
        drop_path: float = 0.0,
    ):
        super().__init__()
        if num_frames % tubelet or image_size % PATCH:
            raise ValueError(
                f"{num_frames} frames of {image_size} pixels do not divide into tokens of "
                f"{tubelet} frames and {PATCH} pixels"
            )
        self.feature_width, self.tubelet = width, tubelet
        self.num_frames, self.image_size = num_frames, image_size
        positions = (image_size // PATCH) ** 2
        channels = 3 * tubelet
        if stem is None:
            self.patch_embed = PatchEmbed(image_size, PATCH, channels, width)
        else:
            self.patch_embed = ConvStem(channels, stem, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, positions + 1, width))
        self.time_embed = nn.Parameter(torch.zeros(1, num_frames // tubelet, width))
        for parameter in (self.cls_token, self.pos_embed):
            trunc_normal_(parameter, std=0.02)
        rates = torch.linspace(0, drop_path, depth).tolist()
        self.blocks = nn.ModuleList(DividedBlock(width, heads, rate) for rate in rates)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.drop = nn.Dropout(drop)
        self.head = nn.Linear(width, num_classes)

    @property
    def hidden_pairs(self) -> list[tuple[str, str]]:
        """Names of the two linear layers of every MLP: what lies between them may be permuted."""
        return [(f"blocks.{place}.mlp.fc1", f"blocks.{place}.mlp.fc2") for place in range(len(self.blocks))]

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """clips (B, 3, T, H, W) -> features (B, width), logits (B, num_classes)."""
        b, c, t, height, width = clips.shape
        if (c, t, height, width) != (3, self.num_frames, self.image_size, self.image_size):
            raise ValueError(
                f"expected clips (B, 3, {self.num_frames}, {self.image_size}, {self.image_size}), "
                f"got {tuple(clips.shape)}"
            )
        frames = clips.transpose(1, 2).reshape(b * t // self.tubelet, self.tubelet * c, height, width)
        tokens = self.patch_embed(frames).view(b, t // self.tubelet, -1, self.feature_width)
        tokens = tokens + self.pos_embed[:, None, 1:] + self.time_embed[:, :, None]
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(b, -1, -1)
        for block in self.blocks:
            cls, tokens = block(cls, tokens)
        features = self.norm(cls[:, 0])
        return features, self.head(self.drop(features))


def build(num_classes: int, num_frames: int, image_size: int, size: str) -> TimeSformer:
    """A TimeSformer of one of `SIZES`, with random weights."""
    if size not in SIZES:
        raise ValueError(f"unknown size {size!r} of timesformer; choose one of {', '.join(SIZES)}")
    return TimeSformer(num_classes, num_frames, image_size, **SIZES[size])


def pretrained_start(model: TimeSformer, weights: str) -> None:
    """The paper's start: an ImageNet ViT, inflated.

    Args:
        weights: "" for the hub, else a local file or folder (see `find_weights`).
    """
    inflate(model, imagenet_weights(weights))


def resize_positions(positions: Tensor, count: int) -> Tensor:
    """Position embedding (1, 1 + g*g, D) of an image ViT -> (1, 1 + count, D), bicubic over the 2-D grid."""
    before, after = round((positions.shape[1] - 1) ** 0.5), round(count**0.5)
    if before**2 != positions.shape[1] - 1 or after**2 != count:
        raise ValueError(f"cannot resize {positions.shape[1] - 1} positions to {count}: no square grids")
    if before == after:
        return positions
    grid = positions[:, 1:].unflatten(1, (before, before)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, (after, after), mode="bicubic", antialias=before > after, align_corners=False)
    return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], 1)


def inflate(model: TimeSformer, image_weights: dict[str, Tensor]) -> None:
    """Start from an image ViT of timm: spatial weights copied, temporal attention copies it.

    The temporal projections stay zero, so that the inflated model first sees frames as the ViT does.

    Raises:
        ValueError: the ViT lacks a needed weight or has another width or depth.
    """
    state = model.state_dict()
    renamed = {}
    for name in state:
        if name.startswith(("head.", "time_embed")) or ".temporal_proj." in name:
            continue
        source = name.replace("temporal_attn", "attn").replace("temporal_norm", "norm1")
        if source not in image_weights:
            raise ValueError(
                f"the image ViT has no {source!r}; inflate from a timm ViT with patch size {PATCH}"
            )
        renamed[name] = image_weights[source]
    renamed["pos_embed"] = resize_positions(renamed["pos_embed"], state["pos_embed"].shape[1] - 1)
    if (
        model.tubelet > 1 and "patch_embed.proj.weight" in renamed
    ):  # repeated over a token's frames, as a mean
        renamed["patch_embed.proj.weight"] = renamed["patch_embed.proj.weight"].repeat(1, model.tubelet, 1, 1)
        renamed["patch_embed.proj.weight"] /= model.tubelet
    wrong = [name for name, value in renamed.items() if value.shape != state[name].shape]
    if wrong:
        raise ValueError(
            f"the image ViT's {wrong[0]!r} is {tuple(renamed[wrong[0]].shape)}, "
            f"not {tuple(state[wrong[0]].shape)}"
        )
    model.load_state_dict(state | renamed)


def imagenet_weights(weights: str) -> dict[str, Tensor]:
    """Weights of the image ViT that the official release starts from, as timm has them."""
    return read_weights(locate_weights(timm.get_pretrained_cfg(IMAGE_VIT).hf_hub_id, weights))


def kinetics_weights(
    name: str = "facebook/timesformer-base-finetuned-k400", weights: str = "", revision: str | None = None
) -> dict[str, Tensor]:
    """Weights of a TimeSformer trained on Kinetics-400 (CC-BY-NC-4.0), for `from_kinetics`.

    It was trained on 8 frames of 224 pixels, one in 32, of mean 0.45 and standard deviation 0.225.

    Args:
        weights: "" for the hub, else a local file or folder (see `find_weights`).
        revision: commit of the hub's repository; None: its newest.
    """
    return read_weights(locate_weights(name, weights, revision))


def from_kinetics(model: TimeSformer, weights: dict[str, Tensor]) -> None:
    """Start from a TimeSformer that others have trained: all but the classifier is copied.

    Position embeddings are resized over the grid if the image size differs, time embeddings over frames if
    their number does (nearest, as both releases do).

    Args:
        weights: in the layout of transformers' `TimesformerModel` or `TimesformerForVideoClassification`, or
            of the official release (`model.blocks.0.temporal_attn.qkv.weight`, ...).

    Raises:
        ValueError: neither layout, entries missing, left over or of other shapes.
    """
    given = {WRAPPERS.sub("", name): value for name, value in weights.items()}
    layout = next((names for names in LAYOUTS if _foreign_name("cls_token", names) in given), None)
    if layout is None or _foreign_name("time_embed", layout) not in given:
        raise ValueError(
            f"neither transformers' nor the official layout of a divided TimeSformer: the weights have "
            f"{', '.join(list(weights)[:3]) or 'no entries'}, ..."
        )
    given = {name: value for name, value in given.items() if not name.startswith(("head.", "classifier."))}
    current = model.state_dict()
    renamed = {_foreign_name(name, layout): name for name in current if not name.startswith("head.")}
    state = {renamed.get(name, name): value for name, value in given.items()}
    if "pos_embed" in state:
        state["pos_embed"] = resize_positions(state["pos_embed"], current["pos_embed"].shape[1] - 1)
    steps = current["time_embed"].shape[1]
    if state["time_embed"].shape[1] != steps:
        state["time_embed"] = F.interpolate(state["time_embed"].transpose(1, 2), steps).transpose(1, 2)
    head = {name: value for name, value in current.items() if name.startswith("head.")}
    load_exactly(model, state | head, "the Kinetics checkpoint", "this TimeSformer")


def official_name(name: str) -> str:
    """What an entry of ours is called in the official release, e.g. `blocks.0.temporal_fc.weight`."""
    return _foreign_name(name, OFFICIAL)


def is_official_size(weights: dict[str, Tensor]) -> bool:
    """Whether these are the weights of a B/16, the one size that the official code builds."""
    return weights["cls_token"].numel() == SIZES["base"]["width"] and "patch_embed.proj.weight" in weights


def name_from_official(name: str) -> str:
    """The inverse of `official_name`."""
    return _foreign_name(name, {theirs: ours for ours, theirs in OFFICIAL.items()})


def _foreign_name(name: str, layout: dict[str, str]) -> str:
    """What an entry of ours is called in another layout."""
    block, part, kind = re.fullmatch(r"(blocks\.\d+\.)?(.+?)(\.weight|\.bias)?", name).groups(default="")
    return block.replace("blocks", layout.get("blocks", "blocks")) + layout.get(part, part) + kind
