"""What every teacher's module needs: its job and its clips."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from uniego_utils.cards import Card, Preset, TeacherCard
from uniego_utils.data.manifests import Manifest
from uniego_utils.data.tables import refuse_rows
from uniego_utils.data.video import ClipDataset


@dataclass(frozen=True)
class Job:
    """One teacher to fit or to extract: all that its module needs to know."""

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


def column_as_video(manifest: Manifest, view: str, column: str) -> Manifest:
    """The same clips with the files of another column, e.g. `exo_depth`, in the place of the view's video.

    Raises:
        ValueError: no such column, or clips without a file in it; names the clips.
    """
    require_column(manifest, column)
    return replace(manifest, rows=manifest.rows.assign(**{f"{view}_video": manifest.rows[column]}))


def require_column(manifest: Manifest, column: str) -> None:
    """Refuse a manifest that lacks `column`, or has it empty for some clips; names the first of them."""
    if column not in manifest.rows:
        raise ValueError(f"{manifest.split}.csv has no column {column!r}, which this teacher needs")
    blank = manifest.rows[column].isna() | (manifest.rows[column].astype(str).str.strip() == "")
    cure = "fill them in, or leave out teachers that need it"
    wrong = blank.set_axis(manifest.rows["clip_id"])
    refuse_rows(f"{manifest.split}.csv", wrong, f"no {column}", cure=cure, row="clip")


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


@dataclass(frozen=True)
class EvaluationClips(Dataset):
    """Clips as a video encoder is evaluated on them: item `row` is (3, T, S, S) float32."""

    source: ClipDataset

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, row: int) -> Tensor:
        return self.source[row, None]["clips"]
