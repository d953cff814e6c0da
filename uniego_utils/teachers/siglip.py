"""Teacher on captions: image and text towers trained with the sigmoid loss (SigLIP, arXiv:2303.15343).

It stands for the pretrained SigLIP, whose frozen features the paper uses.
"""

import math
import re
from dataclasses import dataclass, field

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from uniego_utils.cards import TrainConfig
from uniego_utils.data.manifests import Manifest
from uniego_utils.teachers import images
from uniego_utils.teachers.batches import Job, require_column
from uniego_utils.teachers.fitting import fit_tensors

PADDING = 0  # token


@dataclass(frozen=True)
class Settings(images.Settings):
    """Sizes of both towers."""

    depth: int = 3
    heads: int = 3
    text_width: int = 64
    text_depth: int = 1
    text_heads: int = 2
    embedding: int = 64  # width of both towers' common space
    frames_per_clip: int = 4  # drawn per clip and epoch; their embeddings are averaged
    min_area: float = 0.7  # random crop in training, share of the picture's area
    jitter: float = 0.2
    train: TrainConfig = field(default_factory=TrainConfig)


def words(caption: str) -> list[str]:
    """Lower-case words of a caption."""
    return re.findall(r"[a-z0-9]+", caption.lower())


def vocabulary(captions: list[str]) -> dict[str, int]:
    """Token of every word in the captions, from 1 in alphabetical order; 0 is padding."""
    return {word: number for number, word in enumerate(sorted({w for c in captions for w in words(c)}), 1)}


def tokens(captions: list[str], known: dict[str, int]) -> Tensor:
    """(N, length of the longest caption) int64, padded with 0; words outside the vocabulary are left out."""
    rows = [torch.tensor([known[word] for word in words(caption) if word in known]) for caption in captions]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PADDING).long()


class TextTower(nn.Module):
    """Tokens (B, L) -> embeddings (B, embedding): a small transformer, mean over words."""

    def __init__(self, words: int, length: int, settings: Settings):
        super().__init__()
        width = settings.text_width
        self.embed = nn.Embedding(words + 1, width, padding_idx=PADDING)
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.Sequential(*(Block(width, settings.text_heads) for _ in range(settings.text_depth)))
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, settings.embedding)

    def forward(self, tokens: Tensor) -> Tensor:
        """Words' numbers (B, L) -> embeddings (B, E), a mean over the words that are there."""
        there = (tokens != PADDING)[..., None]
        x = self.norm(self.blocks((self.embed(tokens) + self.position[: tokens.shape[1]]) * there)) * there
        return self.project(x.sum(1) / there.sum(1).clamp(min=1))


class ImageTower(images.FrameViT):
    """Frames (B, F, 3, S, S) -> features (B, width) and embeddings (B, embedding), means over the frames."""

    def __init__(self, width: int, image_size: int, settings: Settings):
        super().__init__(image_size, width, settings.depth, settings.heads)
        self.project = nn.Linear(width, settings.embedding)

    def forward(self, clips: Tensor) -> tuple[Tensor, Tensor]:
        """clips (B, T, 3, S, S) -> features (B, width), embeddings (B, E)."""
        features = self.encode(clips).mean(1)
        return features, self.project(features)


def sigmoid_loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, same: Tensor) -> Tensor:
    """Every image with every text, right pair or not, each by itself: sum over pairs, mean over images.

    Args:
        image, text: (B, D); normalised here.
        scale, bias: scalars; the logit of a pair is scale * cosine + bias.
        same: (B, B) bool, whether text j fits image i: its own and equal captions.

    Returns:
        A scalar in nats. Source: equation 1 and algorithm 1 of arXiv:2303.15343.
    """
    logits = scale * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T + bias
    sign = torch.where(same, 1.0, -1.0)
    return -F.logsigmoid(sign * logits).sum() / len(image)


class SigmoidObjective(nn.Module):
    """The loss with a learned temperature and bias, which start as in the paper's section 3.2: 10 and -10."""

    def __init__(self, captions: Tensor, words: int, settings: Settings):
        super().__init__()
        self.text = TextTower(words, captions.shape[1], settings)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.bias = nn.Parameter(torch.tensor(-10.0))
        self.register_buffer("captions", captions, persistent=False)

    def forward(self, features: Tensor, embeddings: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Scalar losses; `loss` is the total. `found`: share of clips whose own caption scores highest."""
        captions = self.captions[batch["rows"]]
        same = (captions[:, None] == captions[None]).all(-1)
        text = self.text(captions)
        loss = sigmoid_loss(embeddings, text, self.log_scale.exp(), self.bias, same)
        best = (F.normalize(embeddings, dim=-1) @ F.normalize(text, dim=-1).T).argmax(1)
        matched = same.gather(1, best[:, None]).float().mean()
        return {"loss": loss, "found": matched.detach()}


def augment(batch: dict[str, Tensor], job: Job, generator: torch.Generator) -> dict[str, Tensor]:
    """Of `clips` (B, T, 3, S, S) uint8 a few frames (B, F, 3, S, S): normalised, cropped, other light."""
    settings: Settings = job.settings
    drawn = images.draw_frames(batch["clips"], settings.frames_per_clip, generator)
    pictures = images.normalise(drawn.flatten(0, 1), job.preset.video)
    pictures = images.random_crop(pictures, (settings.min_area, 1.0), generator)
    pictures = images.jitter(pictures, settings.jitter, generator)
    return {"clips": pictures.unflatten(0, drawn.shape[:2])}


def build(job: Job) -> ImageTower:
    """The image tower with random weights; the text tower is needed in training alone."""
    return ImageTower(images.frame_width(job), job.preset.video.image_size, job.settings)


def train(model: ImageTower, job: Job, manifest: Manifest) -> list[dict]:
    """Fit both towers to the clips' captions; the history, a record an epoch."""
    settings: Settings = job.settings
    require_column(manifest, "caption")
    captions = manifest.rows["caption"].tolist()
    known = vocabulary(captions)
    frames = images.decode(job, manifest, settings.subtract_background)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed)
        objective = SigmoidObjective(tokens(captions, known), len(known), settings)
    return fit_tensors(job, model, objective, {"clips": frames}, augment)


clips = images.clips
encode = images.encode


def notes(job: Job) -> dict[str, str]:
    """How the features were made."""
    return images.notes(job, f"ViT, depth {job.settings.depth}, trained on captions with the sigmoid loss")
