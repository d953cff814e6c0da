"""What every teacher's module needs: its job, its clips, and batches over clips held in memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from uniego_utils.cards import Card, Manifest, Preset, TeacherCard
from uniego_utils.data.video import ClipDataset, EpochSampler

Augment = Callable[[Tensor, torch.Generator | None], Tensor]


@dataclass(frozen=True)
class Job:
    """One teacher to fit or to extract: what its module is told."""

    key: str  # e.g. exo_skl
    teacher: TeacherCard
    settings: Any  # the module's Settings
    card: Card
    preset: Preset
    device: torch.device
    seed: int = 0
    checkpoint: Path | None = None  # written after every epoch of training
    progress: bool = True
    weights: str = ""  # local file or folder of pretrained weights; "" for the hub

    @property
    def view(self) -> str:
        """The stream that the teacher watches: ego or exo."""
        return self.teacher.viewpoint


@dataclass(frozen=True)
class TensorBatches:
    """One epoch's batches over clips in memory.

    Args:
        clips: (N, ...) one entry a clip, in manifest order.
        labels: (N,) class indices.
        augment: (B, ...) clips and a generator (None: evaluation) -> what the model is given.
        seed: with `epoch` the only source of chance, so that a resumed run sees the same batches; None: in
            order.
    """

    clips: Tensor
    labels: Tensor
    batch_size: int
    augment: Augment
    seed: int | None = None
    epoch: int = 0

    def __len__(self) -> int:
        return -(-len(self.clips) // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        sampler = EpochSampler(len(self.clips), self.batch_size, self.seed, self.epoch)
        for number, items in enumerate(sampler):
            rows, draw = torch.tensor([row for row, _ in items]), items[0][1]
            generator = None if draw is None else torch.Generator().manual_seed(draw + number)
            yield {
                "clips": self.augment(self.clips[rows], generator),
                "labels": self.labels[rows],
                "rows": rows,
            }


def column_as_video(manifest: Manifest, view: str, column: str) -> Manifest:
    """The same clips with the files of another column, e.g. `exo_depth`, in the place of the view's video.

    Raises:
        ValueError: no such column, or clips without a file in it; names the clips.
    """
    require_column(manifest, column)
    return replace(manifest, rows=manifest.rows.assign(**{f"{view}_video": manifest.rows[column]}))


def require_column(manifest: Manifest, column: str) -> None:
    """Refuse a manifest that lacks `column`, or has it empty for some clips; names up to five of them."""
    if column not in manifest.rows:
        raise ValueError(f"{manifest.split}.csv has no column {column!r}, which this teacher needs")
    absent = manifest.rows[column].isna() | (manifest.rows[column].astype(str).str.strip() == "")
    if absent.any():
        names = ", ".join(manifest.rows["clip_id"][absent].head(5))
        raise ValueError(
            f"{manifest.split}.csv: {int(absent.sum())} of {len(manifest)} clips have no {column} "
            f"({names}, ...); fill them in, or leave out teachers that need it"
        )


def subtract_background(frames: Tensor) -> Tensor:
    """What moved before a static camera: frames minus their median over time, around mid-grey.

    A still picture becomes grey everywhere. Without this the tiny transformer learns the wallpaper.

    Args:
        frames: (T, C, H, W) uint8.

    Returns:
        (T, C, H, W) uint8; 128 is "as in the median".
    """
    median = frames.sort(0).values[(len(frames) - 1) // 2]
    return (frames.short() - median.short() + 128).clamp_(0, 255).to(torch.uint8)


class Spans(ClipDataset):
    """Clips of the job's view; if wanted without their background, which takes all frames of the span."""

    def __init__(self, job: Job, manifest: Manifest, remove_background: bool, **video_changes: object):
        video = replace(job.preset.video, **video_changes)
        super().__init__(manifest, job.view, video, whole_span=remove_background)
        self.remove_background = remove_background

    def decode_span(self, row: int) -> tuple[Tensor, float, int]:
        """A clip's frames (T, 3, H, W) uint8, their rate, and the number of the first."""
        frames, fps, first = super().decode_span(row)
        return subtract_background(frames) if self.remove_background else frames, fps, first


@dataclass(frozen=True)
class EvaluationClips(Dataset):
    """Clips as a video encoder is evaluated on them: item `row` is (3, T, S, S) float32."""

    source: ClipDataset

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, row: int) -> Tensor:
        return self.source[row, None]["clips"]
