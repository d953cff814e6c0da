"""Teacher on skeleton-guided crops of the exo video: a stand-in for the hands that a head camera would see.

Inferred: Sk-Ego has no public code, and its papers (arXiv:2501.05711; UNIEGO, section 3) say only that
skeleton motion guides the making of an ego-like view from exo video. Here a box follows the head and the
hands, drawn to the hand that moves most, and a TimeSformer is trained on the crops.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align
from tqdm.auto import tqdm

from uniego_utils.backbones.timesformer import TimeSformer
from uniego_utils.manifests import Manifest
from uniego_utils.teachers import timesformer
from uniego_utils.teachers.batches import Job, require_column, subtract_background
from uniego_utils.teachers.stgcn import Layout, layout_of, read_joints
from uniego_utils.training import predict
from uniego_utils.video import ClipDataset, frame_indices, loader, open_video, read_frames


@dataclass(frozen=True)
class Settings(timesformer.Settings):
    """The TimeSformer's numbers, and the box's."""

    margin: float = 0.25  # added around head and hands, share of the box's side
    pull: float = 0.5  # 0: centred between head and hands, 1: on the moving hand
    smooth_frames: int = 5  # moving average over time


build = timesformer.build


def smooth(values: Tensor, frames: int) -> Tensor:
    """Centred moving average over time: (T, D) -> (T, D); the ends are averaged over what there is."""
    kernel = torch.ones(1, 1, frames)
    series = values.T[:, None]  # (D, 1, T)
    count = F.conv1d(torch.ones(1, 1, series.shape[2]), kernel, padding="same")
    return (F.conv1d(series, kernel, padding="same") / count)[:, 0].T


def hand_boxes(joints: Tensor, layout: Layout, height: int, width: int, settings: Settings) -> Tensor:
    """Square boxes around head and hands, one a frame.

    Args:
        joints: (T, V, 2) pixels, x to the right and y down.
        layout: says which joints are the head and the wrists.
        height, width: of the picture in pixels.

    Returns:
        (T, 4) left, top, right, bottom in pixels, within the picture. Where head and hands are in a square
        picture, they are in the box.
    """
    edge = torch.tensor([width, height], dtype=torch.float32)
    points = joints[:, [layout.head, *layout.wrists]].clamp(min=torch.zeros(2)).clamp(max=edge)  # (T, 3, 2)
    speed = torch.zeros(len(points), 2)
    if len(points) > 1:
        step = (points[1:, 1:] - points[:-1, 1:]).norm(dim=-1)
        speed = smooth(torch.cat([step[:1], step]), settings.smooth_frames)
    share = (speed.square() + 1e-6) / (speed.square() + 1e-6).sum(1, keepdim=True)
    hand = (points[:, 1:] * share[..., None]).sum(1)
    middle = (points.amin(1) + points.amax(1)) / 2
    centre = smooth(middle + settings.pull * (hand - middle), settings.smooth_frames)
    reach = (points - centre[:, None]).abs().amax((1, 2))  # half the side that just holds all three
    half = torch.maximum(smooth(reach[:, None], settings.smooth_frames)[:, 0], reach) * (1 + settings.margin)
    half = half.clamp(min=2.0, max=min(height, width) / 2)[:, None]
    centre = torch.minimum(torch.maximum(centre, half), edge - half)
    return torch.cat([centre - half, centre + half], 1)


def crop(frames: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Frames (T, 3, H, W) uint8 cut to their boxes (T, 4) and resized, bilinear: (T, 3, size, size) uint8."""
    numbered = torch.cat([torch.arange(len(frames))[:, None], boxes], 1)
    return roi_align(frames.float(), numbered, size, aligned=True).round().clamp(0, 255).to(torch.uint8)


def decode(job: Job, manifest: Manifest) -> ClipDataset:
    """The crops of all clips in memory. The rows of a skeleton file span the clip."""
    settings: Settings = job.settings
    require_column(manifest, "skeleton")
    layout, view = layout_of(job.card.skeleton), job.view
    dataset = ClipDataset(manifest, view, replace(job.preset.video, num_frames=settings.num_frames))
    cached = []
    for row in tqdm(range(len(manifest)), f"crop {manifest.split}", disable=not job.progress, leave=False):
        path, span = manifest.path(row, f"{view}_video"), dataset.spans[row]
        reader = open_video(path, span[1])
        first, last = frame_indices(span - (0, 1e-3), fps := reader.get_avg_fps(), len(reader))
        frames = torch.from_numpy(read_frames(reader, list(range(first, last + 1)), path)).permute(0, 3, 1, 2)
        joints = read_joints(manifest.path(row, "skeleton"), f"{view}_joints_2d", layout)
        joints = joints[torch.arange(len(frames)) * len(joints) // len(frames)]
        boxes = hand_boxes(joints, layout, *frames.shape[-2:], settings)
        if settings.subtract_background:
            frames = subtract_background(frames)
        cached.append((crop(frames, boxes, dataset.video.resize), fps, first))
    dataset.cached = cached
    return dataset


def train(model: TimeSformer, job: Job, manifest: Manifest) -> list[dict]:
    """Fit with cross-entropy; the history, a record an epoch."""
    return timesformer.train_on(decode(job, manifest), model, job)


def encode(model: TimeSformer, job: Job, manifest: Manifest) -> Tensor:
    """Class-token features (N, width)."""
    batches = loader(decode(job, manifest), job.settings.batch_size_eval)
    return predict(model, batches, job.device)["features"]


def notes(job: Job) -> dict[str, str]:
    """How the features were made."""
    made = timesformer.notes(job)
    return made | {"preprocessing": f"crops around head and hands; {made['preprocessing']}"}
