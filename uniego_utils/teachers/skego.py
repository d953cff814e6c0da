"""Teacher on skeleton-guided crops of the exo video: a stand-in for the hands that a head camera would see.

Inferred: Sk-Ego has no public code, and its papers (arXiv:2501.05711; UNIEGO, section 3) say only that
skeleton motion guides the making of an ego-like view from exo video. Here a box follows the head and the
hands, drawn to the hand that moves most, and a TimeSformer is trained on the crops.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

from uniego_utils.backbones.timesformer import TimeSformer
from uniego_utils.data.manifests import Manifest
from uniego_utils.data.skeletons import Layout, layout_of, read_skeleton
from uniego_utils.data.video import open_clip, span_edges
from uniego_utils.teachers import timesformer
from uniego_utils.teachers.batches import EvaluationClips, Job, require_column, subtract_background


@dataclass(frozen=True)
class BoxSettings:
    """How the box follows head and hands."""

    margin: float = 0.25  # added around head and hands, share of the box's side
    pull: float = 0.5  # 0: centred between head and hands, 1: on the moving hand
    smooth_frames: int = 5  # moving average over the skeleton's frames
    skeleton: str = "skeleton"  # the manifest's column of skeleton files
    layout: str | None = None  # of their joints; None: the card's


@dataclass(frozen=True)
class Settings(BoxSettings, timesformer.Settings):
    """The TimeSformer's numbers, and the box's."""


build = timesformer.build
encode = timesformer.encode


def smooth(values: Tensor, frames: int) -> Tensor:
    """Centred moving average over time: (T, D) -> (T, D); the ends are averaged over what there is."""
    kernel = torch.ones(1, 1, frames)
    series = values.T[:, None]  # (D, 1, T)
    count = F.conv1d(torch.ones(1, 1, series.shape[2]), kernel, padding="same")
    return (F.conv1d(series, kernel, padding="same") / count)[:, 0].T


def hand_boxes(joints: Tensor, layout: Layout, height: int, width: int, settings: BoxSettings) -> Tensor:
    """Square boxes around head and hands, one a frame.

    Args:
        joints: (T, V, 2) pixels, x to the right and y down.
        layout: says which joints are the head and the wrists; without them the box is around all joints.
        height, width: of the picture in pixels.

    Returns:
        (T, 4) left, top, right, bottom in pixels, within the picture. Where head and hands are in a square
        picture, they are in the box.
    """
    edge = torch.tensor([width, height], dtype=torch.float32)
    points = joints if layout.wrists is None else joints[:, [layout.head, *layout.wrists]]
    points = points.clamp(min=torch.zeros(2)).clamp(max=edge)  # (T, n, 2)
    aim = middle = (points.amin(1) + points.amax(1)) / 2
    if layout.wrists is not None:
        aim = middle + settings.pull * (_moving_hand(points[:, 1:], settings.smooth_frames) - middle)
    centre = smooth(aim, settings.smooth_frames)
    reach = (points - centre[:, None]).abs().amax((1, 2))  # half the side that just holds all points
    half = torch.maximum(smooth(reach[:, None], settings.smooth_frames)[:, 0], reach) * (1 + settings.margin)
    half = half.clamp(min=2.0, max=min(height, width) / 2)[:, None]
    centre = torch.minimum(torch.maximum(centre, half), edge - half)
    return torch.cat([centre - half, centre + half], 1)


def _moving_hand(hands: Tensor, smooth_frames: int) -> Tensor:
    """Between the two hands (T, 2, 2), nearer to the one that moves more: (T, 2)."""
    speed = torch.zeros(len(hands), 2)
    if len(hands) > 1:
        step = (hands[1:] - hands[:-1]).norm(dim=-1)
        speed = smooth(torch.cat([step[:1], step]), smooth_frames)
    share = (speed.square() + 1e-6) / (speed.square() + 1e-6).sum(1, keepdim=True)
    return (hands * share[..., None]).sum(1)


def crop(frames: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Frames (T, 3, H, W) uint8 cut to their boxes (T, 4) and resized, bilinear: (T, 3, size, size) uint8."""
    numbered = torch.cat([torch.arange(len(frames))[:, None], boxes], 1)
    return roi_align(frames.float(), numbered, size, aligned=True).round().clamp(0, 255).to(torch.uint8)


class Boxes:
    """The boxes of a manifest's clips, from their skeleton files."""

    def __init__(self, job: Job, manifest: Manifest):
        require_column(manifest, job.settings.skeleton)
        self.manifest, self.settings = manifest, job.settings
        self.name, self.column = f"{job.view}_joints_2d", job.settings.skeleton
        self.layout = layout_of(job.settings.layout or job.card.skeleton)

    def of(self, row: int, height: int, width: int) -> Tensor:
        """Boxes of clip `row` in a picture of that size, one a frame of its skeleton file: see `hand_boxes`.

        Of several persons the box follows the one found most surely, or the first; of hands, all.
        """
        skeleton = read_skeleton(self.manifest.path(row, self.column), self.name, self.layout)
        joints = skeleton.joints
        if skeleton.size is not None:  # the pictures that the skeleton was found in may have been others
            joints = joints * (torch.tensor([width, height]) / skeleton.size)
        if self.layout.wrists is None:
            joints = joints.transpose(0, 1).flatten(1, 2)
        else:
            joints = joints[0 if skeleton.scores is None else skeleton.scores.mean((1, 2)).argmax()]
        return hand_boxes(joints, self.layout, height, width, self.settings)


class Crops(timesformer.Spans):
    """Clips cropped to their boxes; if wanted without their background."""

    def __init__(self, job: Job, manifest: Manifest):
        super().__init__(job, manifest)
        self.whole_span, self.boxes = True, Boxes(job, manifest)

    def decode_span(self, row: int) -> tuple[Tensor, float, int]:
        """A clip's frames (T, 3, H, W) uint8 cropped to its box, their rate, and the first one's number."""
        video = open_clip(self.manifest, row, self.view)
        first, last = span_edges(self.spans[row], video)
        frames = torch.from_numpy(video.read(list(range(first, last + 1)))).permute(0, 3, 1, 2)
        boxes = self.boxes.of(row, *frames.shape[-2:])
        boxes = boxes[torch.arange(len(frames)) * len(boxes) // len(frames)]
        if self.remove_background:
            frames = subtract_background(frames)
        return crop(frames, boxes, self.video.resize), video.fps, first


def train(model: TimeSformer, job: Job, manifest: Manifest) -> list[dict]:
    """Fit with cross-entropy; the history, a record an epoch."""
    return timesformer.train_on(Crops(job, manifest), model, job)


def clips(job: Job, manifest: Manifest) -> EvaluationClips:
    """Item `row` is (3, T, S, S) float32, normalised."""
    return EvaluationClips(Crops(job, manifest))


def notes(job: Job) -> dict[str, str]:
    """How the features were made."""
    made = timesformer.notes(job)
    return made | {"preprocessing": f"crops around head and hands; {made['preprocessing']}"}
