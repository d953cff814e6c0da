"""Temporal heads: from a frozen encoder's features of every step of a video to a label for every step.

Two of them: MS-TeMba (Sinha et al., arXiv:2501.06138), the paper's "fixed temporal encoder", in plain
PyTorch, and MS-TCN++ (Li et al., arXiv:2006.09220), a light rival. Both take features (V, T, D) and a mask
(V, T) of V videos, true where there are steps, and give the logits (V, T, C) of their outputs, the one that
counts last, and a scalar term for the loss. Padding behind a video's end does not change its logits.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from uniego_utils.cards import HeadConfig, TrainConfig
from uniego_utils.segmentation.metrics import segment_metrics
from uniego_utils.segmentation.scan import selective_scan
from uniego_utils.training import learning_rate

STATE, EXPAND, CONV = 16, 2, 4  # Mamba's usual numbers: of state a channel, channels a token's, taps
AUXILIARY = 0.3  # weight of the losses of MS-TeMba's scales
AGREEMENT = 100.0  # weight of their states' disagreement, in its own loss
JUMP = 4.0  # tau of MS-TCN's truncated mean squared error: larger steps of a log-probability cost no more


class OneWay(nn.Module):
    """One direction of a selective state-space model: the scan's inputs, computed from the tokens."""

    def __init__(self, channels: int):
        super().__init__()
        rank = math.ceil(channels / EXPAND / 16)
        self.conv = nn.Conv1d(channels, channels, CONV, padding=CONV - 1, groups=channels)
        self.select = nn.Linear(channels, rank + 2 * STATE, bias=False)
        self.rate = nn.Linear(rank, channels)
        self.log_decay = nn.Parameter(torch.arange(1.0, STATE + 1).log().repeat(channels, 1))
        self.skip = nn.Parameter(torch.ones(channels))
        first = torch.empty(channels).uniform_(math.log(1e-3), math.log(1e-1)).exp()  # delta at the start
        with torch.no_grad():
            self.rate.bias.copy_(first + torch.log(-torch.expm1(-first)))  # softplus, inverted

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x (V, T, E), zero outside of mask (V, T, 1), -> x and delta (V, T, E), B and C (V, T, N)."""
        x = self.conv(x.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)
        x = F.silu(x) * mask
        rate, B, C = self.select(x).split([self.rate.in_features, STATE, STATE], -1)
        return x, F.softplus(self.rate(rate)), B, C


class BiMamba(nn.Module):
    """A block that looks back and ahead: a scan in each direction, their mean gated, added to the tokens."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.inner = nn.Linear(width, 2 * EXPAND * width, bias=False)
        self.ahead, self.back = OneWay(EXPAND * width), OneWay(EXPAND * width)
        self.outer = nn.Linear(EXPAND * width, width, bias=False)

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """tokens (V, T, W), mask (V, T, 1) -> tokens, and the C of both directions (V, T, 2 N)."""
        x, gate = self.inner(self.norm(tokens) * mask).chunk(2, -1)
        pairs = zip(self.ahead(x, mask), self.back(x.flip(1), mask.flip(1)), strict=True)
        x, delta, B, C = (torch.stack(pair) for pair in pairs)  # (2, V, T, .): both in one scan
        A = -torch.stack([self.ahead.log_decay, self.back.log_decay])[:, None].exp()
        D = torch.stack([self.ahead.skip, self.back.skip])[:, None]
        ahead, back = selective_scan(x, delta, A, B, C, D)
        mixed = 0.5 * (ahead + back.flip(1)) * F.silu(gate)
        return tokens + self.outer(mixed) * mask, torch.cat([C[0], C[1].flip(1)], -1)


class Scale(nn.Module):
    """Tokens at dilation k: k blocks, of which number i sees every k-th token from number i on."""

    def __init__(self, inputs: int, width: int, dilation: int):
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(inputs, width), nn.LayerNorm(width), nn.GELU())
        self.blocks = nn.ModuleList(BiMamba(width) for _ in range(dilation))

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """tokens (V, T, W'), mask (V, T, 1), T a multiple of k -> (V, T, W); how little blocks' C agree."""
        k = len(self.blocks)
        tokens = self.embed(tokens) * mask
        results = [block(tokens[:, i::k], mask[:, i::k]) for i, block in enumerate(self.blocks)]
        shared = mask.unflatten(1, (-1, k)).prod(2)[..., 0]  # (V, T / k): where all blocks have a step
        states = [C for _, C in results]
        apart = [
            ((1 - F.cosine_similarity(a, b, dim=-1)) * shared).sum() / shared.sum().clamp_min(1)
            for i, a in enumerate(states)
            for b in states[:i]
        ]
        disagreement = torch.stack(apart).mean() if apart else tokens.new_zeros(())
        return torch.stack([part for part, _ in results], 2).flatten(1, 2), disagreement


class MSTeMba(nn.Module):
    """Multi-scale temporal Mamba: scales of growing dilation and width in a row, then all together."""

    def __init__(self, inputs: int, classes: int, config: HeadConfig):
        super().__init__()
        first, last = config.widths[0], config.widths[-1]
        self.embed = nn.Linear(inputs, first)
        self.scales = nn.ModuleList(
            Scale(before, width, k)
            for k, (before, width) in enumerate(zip((first, *config.widths), config.widths, strict=False), 1)
        )
        self.raised = nn.ModuleList(nn.Linear(width, last) for width in config.widths)
        self.norm = nn.LayerNorm(last)  # one for all scales, because their outputs are added up
        self.fused = BiMamba(last)
        self.final_norm = nn.RMSNorm(last, eps=1e-5)
        self.heads = nn.ModuleList(nn.Linear(last, classes) for _ in range(len(config.widths) + 1))
        self.output_weights = (*[AUXILIARY] * len(config.widths), 1.0)

    def forward(self, features: Tensor, mask: Tensor) -> tuple[list[Tensor], Tensor]:
        """features (V, T, D), mask (V, T) -> logits (V, T, C) of every output, blocks' disagreement."""
        steps, multiple = features.shape[1], math.lcm(*range(1, len(self.scales) + 1))
        more = -steps % multiple
        mask = F.pad(mask, (0, more))[..., None].to(features.dtype)
        tokens = self.embed(F.pad(features, (0, 0, 0, more))) * mask
        together, logits, apart = 0, [], []
        for scale, raised, head in zip(self.scales, self.raised, self.heads[:-1], strict=True):
            tokens, disagreement = scale(tokens, mask)
            scaled = self.norm(raised(tokens)) * mask
            together = together + scaled
            logits.append(head(scaled)[:, :steps])
            apart.append(disagreement)
        fused, _ = self.fused(together, mask)
        logits.append(self.heads[-1](self.final_norm(fused))[:, :steps])
        several = apart[1:]  # the first scale has one block, which agrees with itself
        return logits, torch.stack(several).mean() if several else features.new_zeros(())


class Dilated(nn.Module):
    """A residual layer of MS-TCN++ that looks as many steps back and ahead as each of `dilations` says."""

    def __init__(self, maps: int, dilations: Sequence[int], dropout: float):
        super().__init__()
        # dilated convolutions; saved heads name their weights `looks`
        self.looks = nn.ModuleList(nn.Conv1d(maps, maps, 3, padding=d, dilation=d) for d in dilations)
        self.mix = nn.Conv1d(maps * len(self.looks), maps, 1)
        self.dropout = nn.Dropout(dropout)
        self.early = len(self.looks) == 1  # one convolution is rectified before it is mixed, two after

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (V, M, T), zero outside of mask (V, 1, T), -> the same shape."""
        maps = torch.cat([convolution(x) for convolution in self.looks], 1)
        maps = self.mix(F.relu(maps)) if self.early else F.relu(self.mix(maps))
        return (x + self.dropout(maps)) * mask


class MSTCN(nn.Module):
    """MS-TCN++: a stage that labels the steps, then stages that see only the labels of the one before."""

    LAYERS, REFINEMENTS, REFINED_LAYERS = 11, 3, 10

    def __init__(self, inputs: int, classes: int, config: HeadConfig):
        super().__init__()
        both = [(2**i, 2 ** (self.LAYERS - 1 - i)) for i in range(self.LAYERS)]
        single = [(2**i,) for i in range(self.REFINED_LAYERS)]
        plans = [both, *[single] * self.REFINEMENTS]
        self.inputs = nn.ModuleList(
            nn.Conv1d(classes if number else inputs, config.maps, 1) for number in range(len(plans))
        )
        self.layers = nn.ModuleList(
            nn.ModuleList(Dilated(config.maps, dilations, config.dropout) for dilations in plan)
            for plan in plans
        )
        self.outputs = nn.ModuleList(nn.Conv1d(config.maps, classes, 1) for _ in plans)
        self.output_weights = (1.0,) * len(plans)

    def forward(self, features: Tensor, mask: Tensor) -> tuple[list[Tensor], Tensor]:
        """features (V, T, D), mask (V, T) -> logits (V, T, C) of every output, and no further loss: 0."""
        mask = mask[:, None].to(features.dtype)
        x, logits = features.transpose(1, 2), []
        for embed, layers, output in zip(self.inputs, self.layers, self.outputs, strict=True):
            x = embed(x) * mask
            for layer in layers:
                x = layer(x, mask)
            labelled = output(x)
            logits.append(labelled.transpose(1, 2))
            x = labelled.softmax(1)
        return logits, features.new_zeros(())


HEADS = {"ms_temba": MSTeMba, "ms_tcn": MSTCN}


class TemporalHead(nn.Module):
    """A head behind the standardisation of its features, with its loss and what it predicts.

    Args:
        inputs: length of a feature; classes: how many; background: the number of the one that is no action.
        head: a key of HEADS.
    """

    def __init__(self, inputs: int, classes: int, background: int, head: str, config: HeadConfig):
        super().__init__()
        if head not in HEADS:
            raise ValueError(f"unknown temporal head {head!r}; choose one of {', '.join(HEADS)}")
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("spread", torch.ones(inputs))
        self.head = HEADS[head](inputs, classes, config)
        self.classes, self.background, self.config = classes, background, config

    def standardise(self, videos: Sequence[Tensor]) -> None:
        """Take over mean and standard deviation per channel of the train videos' features (T, D)."""
        rows = torch.cat([video.float() for video in videos])
        self.mean.copy_(rows.mean(0))
        self.spread.copy_(rows.std(0, correction=0).clamp_min(1e-6))

    def forward(self, features: Tensor, mask: Tensor) -> tuple[list[Tensor], Tensor]:
        """features (V, T, D), mask (V, T) -> see the module."""
        return self.head((features - self.mean) / self.spread, mask)

    def loss(self, features: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """The scalar to minimise, over outputs; labels (V, T) of class numbers, any outside of mask."""
        outputs, disagreement = self(features, mask)
        weighted = zip(self.head.output_weights, outputs, strict=True)
        if self.config.loss == "single":
            return sum(weight * single_label_loss(logits, labels, mask) for weight, logits in weighted)
        target = F.one_hot(labels, self.classes).to(features.dtype)
        target[..., self.background] = 0  # with several labels a moment, background is none of them
        losses = [
            weight * F.binary_cross_entropy_with_logits(logits[mask], target[mask])
            for weight, logits in weighted
        ]
        return sum(losses) + AGREEMENT * disagreement

    def decide(self, logits: Tensor) -> Tensor:
        """Class numbers (..., T) of logits (..., T, C)."""
        if self.config.loss == "single":
            return logits.argmax(-1)
        logits = logits.clone()
        logits[..., self.background] = 0  # an action has to be more likely than not
        return logits.argmax(-1)


def single_label_loss(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy plus 0.15 times MS-TCN's truncated mean squared error (arXiv:1903.01945).

    The latter is over steps, videos and classes of (log y_t - log y_{t-1})^2, cut at JUMP^2; the earlier step
    is a constant to it. Means are over the steps of all videos.

    Args:
        logits: (V, T, C); labels: (V, T); mask: (V, T), true where there are steps.
    """
    log_probabilities = logits.log_softmax(-1)
    cross_entropy = F.nll_loss(log_probabilities[mask], labels[mask])
    jumps = log_probabilities[:, 1:] - log_probabilities[:, :-1].detach()
    both = mask[:, 1:] & mask[:, :-1]
    if not both.any():  # videos of one step
        return cross_entropy
    return cross_entropy + 0.15 * jumps[both].square().clamp_max(JUMP**2).mean()


def train_head(
    features: Sequence[Tensor],
    labels: Sequence[Tensor],
    val_features: Sequence[Tensor],
    val_labels: Sequence[Tensor],
    classes: int,
    head: str,
    config: HeadConfig,
    seed: int,
    device: torch.device,
    background: int,
) -> tuple[TemporalHead, list[dict]]:
    """Train a temporal head; its best epoch is the one with the highest mean of Table 4's metrics on val.

    Args:
        features: (T, D) of each train video; labels: (T,) class numbers below `classes`. The same for val.
        head: a key of HEADS.
        background: the class number that is no action.

    Returns:
        The head of the best epoch, on `device`, in eval mode; a record an epoch: epoch, loss, and the
        metrics of `segment_metrics` on val.

    Raises:
        ValueError: no videos, features and labels that do not fit each other or are not usable, an unknown
            head, val videos without an action, a loss that is not finite.
    """
    _refuse_unusable(features, labels, classes, background, "train", None)
    _refuse_unusable(val_features, val_labels, classes, background, "val", features[0].shape[1])
    torch.manual_seed(seed)
    model = TemporalHead(features[0].shape[1], classes, background, head, config)
    model.standardise(features)
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), config.lr, weight_decay=config.weight_decay)
    schedule = TrainConfig(config.epochs, lr=config.lr, cosine=True, warmup_epochs=0.1 * config.epochs)
    batches, step = math.ceil(len(features) / config.batch_size), 0
    order = torch.Generator().manual_seed(seed)
    history, best, kept = [], -1.0, {}
    for epoch in range(1, config.epochs + 1):
        model.train()
        total = 0.0
        for batch in torch.randperm(len(features), generator=order).split(config.batch_size):
            videos = [features[video].float() for video in batch]
            inputs, mask = _padded(videos)
            targets = pad_sequence([labels[video].long() for video in batch], batch_first=True)
            loss = model.loss(inputs.to(device), targets.to(device), mask.to(device))
            if not loss.isfinite():
                raise ValueError(f"the loss of {head} is {loss.item()} in epoch {epoch}; lower its lr")
            optimizer.param_groups[0]["lr"] = learning_rate(schedule, step, batches)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            total += loss.item() * len(batch)
        scores = segment_metrics(predict_head(model, val_features), val_labels, background)
        history.append({"epoch": epoch, "loss": total / len(features)} | scores)
        if (mean := sum(scores.values()) / len(scores)) > best:
            best, kept = mean, {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(kept)
    return model.eval(), history


@torch.inference_mode()
def predict_head(model: TemporalHead, features: Sequence[Tensor]) -> list[Tensor]:
    """Class numbers (T,) int64, on the CPU, of each video from its features (T, D)."""
    model.eval()
    predicted = []
    for first in range(0, len(features), model.config.batch_size):
        videos = [video.float() for video in features[first : first + model.config.batch_size]]
        inputs, mask = (tensor.to(model.mean.device) for tensor in _padded(videos))
        decided = model.decide(model(inputs, mask)[0][-1]).cpu()
        predicted += [row[: len(video)].clone() for row, video in zip(decided, videos, strict=True)]
    return predicted


def _padded(videos: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Features (V, T, D) with zeros behind each video's end, and the mask (V, T) of where there are steps."""
    lengths = torch.tensor([len(video) for video in videos])
    return pad_sequence(list(videos), batch_first=True), torch.arange(lengths.max()) < lengths[:, None]


def _refuse_unusable(
    features: Sequence[Tensor],
    labels: Sequence[Tensor],
    classes: int,
    background: int,
    split: str,
    width: int | None,
) -> None:
    if len(features) != len(labels) or not len(features):
        raise ValueError(f"{split}: features of {len(features)} videos, labels of {len(labels)}")
    if not 0 <= background < classes:
        raise ValueError(f"background is number {background} of {classes} classes")
    width = width or features[0].shape[-1]
    for number, (video, truth) in enumerate(zip(features, labels, strict=True)):
        if video.ndim != 2 or not len(video) or video.shape[1] != width or truth.shape != video.shape[:1]:
            raise ValueError(
                f"{split} video {number}: expected features (steps, {width}) and a label a step, got "
                f"{tuple(video.shape)} and {tuple(truth.shape)}"
            )
        if not video.isfinite().all():
            raise ValueError(f"{split} video {number}: features that are not finite; extract them anew")
        if truth.is_floating_point() or truth.min() < 0 or truth.max() >= classes:
            raise ValueError(f"{split} video {number}: labels that are no class numbers below {classes}")
    if all((truth == background).all() for truth in labels):
        raise ValueError(f"{split}: no video has an action; there is nothing to learn or to measure")
