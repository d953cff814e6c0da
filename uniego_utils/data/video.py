"""From video files to clip tensors: decoding with decord, sampling in time, augmentation in space."""

import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms.v2 import functional as transforms
from tqdm.auto import tqdm

from uniego_utils.cards import VideoCard
from uniego_utils.data.manifests import UNKNOWN, Manifest

# isort: split
# After torch, and nowhere else: decord brings NVBLAS, which would take over torch's BLAS calls and crash.
import decord

SPAN_TOLERANCE_S = 0.5  # a video may end this much before its annotation does (rounding, last frame)
PICTURE = re.compile(r"(\d+)\.(?:jpe?g|png)$", re.IGNORECASE)  # one frame of a folder, by its number


class VideoError(RuntimeError):
    """A video that cannot be read as its manifest says; the message names the file and the cure."""


@dataclass(frozen=True)
class Video:
    """An opened video file, or a folder of numbered pictures, upright."""

    path: Path
    frames: int
    fps: float  # frames per second
    rotate: int  # degrees clockwise that make its pictures upright
    source: "decord.VideoReader | list[Path]"

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return self.frames / self.fps

    def read(self, indices: list[int]) -> np.ndarray:
        """Frames at `indices` as (T, H, W, 3) uint8. Raises VideoError where the file is damaged there."""
        if isinstance(self.source, list):
            pictures = [_read_picture(self.source[index]) for index in indices]
            if len({picture.shape for picture in pictures}) > 1:
                raise VideoError(f"{self.path} holds pictures of different sizes; fetch the folder again")
            frames = np.stack(pictures)
        else:
            frames = _read_batch(self.source, indices, self.path)
        return np.ascontiguousarray(np.rot90(frames, -self.rotate // 90, (1, 2))) if self.rotate else frames


def open_video(path: Path, end_s: float | None = None, fps: float | None = None, rotate: int = 0) -> Video:
    """Open a video and check that it lasts as long as its annotation.

    Args:
        path: a file, or a folder of pictures `<anything><number>.jpg` numbered without gaps from 0 or 1.
        end_s: seconds that the video must reach; a half-downloaded file opens but reports fewer frames.
        fps: frames per second of a folder's pictures; a file has its own.
        rotate: degrees clockwise (0, 90, 180, 270) that make the pictures upright.

    Raises:
        VideoError: missing, unreadable, without frames, with gaps in its numbers, or too short.
        ValueError: a folder without `fps`, or an angle that is no quarter turn.
    """
    path = Path(path)
    if rotate not in (0, 90, 180, 270):
        raise ValueError(f"{path}: rotate is {rotate}; it should be 0, 90, 180 or 270 degrees")
    if path.is_dir():
        video = _open_pictures(path, fps, rotate)
    elif path.is_file():
        try:
            reader = decord.VideoReader(str(path), num_threads=1)
            video = Video(path, len(reader), reader.get_avg_fps(), rotate, reader)
        except (RuntimeError, decord.DECORDError) as error:
            raise VideoError(_damaged(path, error)) from None
    else:
        raise VideoError(f"{path} does not exist; run notebook 00_data again or mend the manifest")
    if video.frames == 0 or video.fps <= 0:
        raise VideoError(f"{path} has {video.frames} frames at {video.fps} fps; fetch or generate it again")
    if end_s is not None and video.seconds < end_s - SPAN_TOLERANCE_S:
        raise VideoError(
            f"{path} lasts {video.seconds:.2f} s, but its annotation ends at {end_s:.2f} s: "
            f"truncated or half-downloaded; fetch or generate it again"
        )
    return video


def open_clip(manifest: Manifest, row: int, view: str, column: str | None = None) -> Video:
    """Open the video of clip number `row` from a view, as the manifest's columns say (`<view>_fps` of frame
    folders, `<view>_rotate`), and check that it reaches the clip's end.

    Args:
        column: of the file, if it is another one than `<view>_video`, e.g. `ego_depth`.
    """
    clip = manifest.rows.iloc[row]
    fps, rotate = (clip.get(f"{view}_{name}", np.nan) for name in ("fps", "rotate"))
    return open_video(
        manifest.path(row, column or f"{view}_video"),
        clip["end_s"],
        None if np.isnan(fps) else float(fps),
        0 if np.isnan(rotate) else int(rotate),
    )


def list_pictures(folder: Path) -> tuple[list[Path], int | None]:
    """The numbered pictures of a folder in order, and the first number missing before the last one, counting
    from 1, or from 0 if that is there; None: no gap."""
    numbered = {}
    for name in os.listdir(folder):
        if match := PICTURE.search(name):
            numbered[int(match[1])] = folder / name
    numbers = sorted(numbered)
    before = [min([1, *numbers[:1]]) - 1, *numbers]
    absent = next((a + 1 for a, b in pairwise(before) if b != a + 1), None)
    return [numbered[number] for number in numbers], absent


def _open_pictures(folder: Path, fps: float | None, rotate: int) -> Video:
    if fps is None or fps <= 0:
        raise ValueError(f"{folder} is a folder of pictures: its manifest must give their frames per second")
    pictures, absent = list_pictures(folder)
    if not pictures:
        raise VideoError(f"{folder} holds no numbered pictures (.jpg, .png); fetch the folder again")
    if absent is not None:
        raise VideoError(
            f"{folder} holds {len(pictures)} pictures up to {pictures[-1].name}, but none numbered {absent}; "
            f"fetch the folder again"
        )
    return Video(folder, len(pictures), float(fps), rotate, pictures)


def _read_picture(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    except OSError as error:
        raise VideoError(_damaged(path, error)) from None


def _read_batch(reader: decord.VideoReader, indices: list[int], path: Path) -> np.ndarray:
    try:
        try:
            return reader.get_batch(indices).asnumpy()
        except decord.DECORDError as error:
            if "size must exactly match" not in str(error):
                raise
        return np.stack([_without_padding(reader[index].asnumpy()) for index in indices])
    except (RuntimeError, decord.DECORDError, IndexError) as error:
        raise VideoError(_damaged(path, error)) from None


def _without_padding(frame: np.ndarray) -> np.ndarray:
    """(H, W, 3) of a frame that decord 3.4 gives as (H, W, 4): at some small widths (96, say) it takes rows
    that are padded to 64 bytes for rows of four channels, and its `get_batch` then fails."""
    height, width = frame.shape[:2]
    return frame.reshape(height, -1)[:, : 3 * width].reshape(height, width, 3)


def _damaged(path: Path, error: Exception) -> str:
    reason = (str(error).strip().splitlines() or ["no reason given"])[-1][:160]
    return f"{path} is damaged ({reason}); fetch or generate the file again"


def sample_times(
    start_s: float,
    end_s: float,
    count: int,
    span_s: float | None = None,
    random: np.random.Generator | None = None,
) -> np.ndarray:
    """`count` times in seconds, evenly spaced: one per equal segment of a window within [start_s, end_s).

    Without `random` the window is central and the times are the segments' centres (uniform sampling, for
    evaluation); with it, the window and one common offset within the segments are drawn (training).
    The times depend on the span alone, so ego and exo at different frame rates are read at the same moments.
    """
    if not end_s > start_s or count < 1:
        raise ValueError(f"cannot take {count} frames from the span {start_s}..{end_s} s")
    window = min(span_s or end_s - start_s, end_s - start_s)
    slack = end_s - start_s - window
    place, offset = (0.5, 0.5) if random is None else random.random(2)
    return start_s + slack * place + (np.arange(count) + offset) * window / count


def frame_indices(times: np.ndarray, fps: float, frames: int) -> list[int]:
    """Numbers of the frames on screen at `times` seconds, at most the last one.

    A time that is a frame's beginning but for rounding (manifests keep microseconds) is that frame's.
    """
    return np.clip(np.floor(times * fps + 1e-4), 0, frames - 1).astype(int).tolist()


def shrink(pictures: np.ndarray, video: VideoCard) -> Tensor:
    """Decoded pictures (T, H, W, 3) as (T, 3, H, W) uint8 whose shorter side is `video.resize`."""
    frames = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    return transforms.resize(frames, [video.resize], antialias=True)


def prepare(frames: Tensor, video: VideoCard, random: np.random.Generator | None) -> Tensor:
    """Crop, mirror, change the light and normalise; the same for all frames of a clip.

    Args:
        frames: (T, 3, H, W) uint8, the shorter side at least `video.image_size`.
        video: sizes and statistics.
        random: draws the augmentation; None takes the centre and changes nothing (evaluation).

    Returns:
        (3, T, image_size, image_size) float32.
    """
    height, width = frames.shape[-2:]
    side = video.image_size if random is None else round(video.image_size * random.uniform(*video.crop_scale))
    side = min(side, height, width)
    place = (0.5, 0.5) if random is None else random.random(2)
    top, left = (int(share * (room - side + 1)) for share, room in zip(place, (height, width), strict=True))
    if random is None:
        top, left = (height - side) // 2, (width - side) // 2
    frames = frames[..., top : top + side, left : left + side]
    if side != video.image_size:
        frames = transforms.resize(frames, [video.image_size] * 2, antialias=True)
    if random is not None and random.random() < video.flip:
        frames = frames.flip(-1)
    gain, shift = (1.0, 0.0) if random is None else 1 + video.jitter * random.uniform(-1, 1, 2) - (0, 1)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (video.mean, video.std))
    # one multiply-add: pixel/255 -> (pixel/255 - mean) * gain + mean + shift -> minus mean, over std
    clip = frames.float().mul_(gain / (255 * std)).add_((shift - mean * gain) / std)
    return clip.transpose(0, 1).contiguous()


class ClipDataset(Dataset):
    """The clips of a manifest seen from one view, as normalised tensors.

    Item `(row, seed)` gives `clips` (3, T, S, S) float32, `labels` and `rows`; a seed of None takes the
    evaluation sample. Random draws depend on the seed alone, so a resumed run sees the same clips.
    """

    def __init__(self, manifest: Manifest, view: str, video: VideoCard, whole_span: bool = False):
        """`whole_span`: even when not cached, decode a clip's whole span before frames are taken from it."""
        self.manifest, self.view, self.video, self.whole_span = manifest, view, video, whole_span
        self.labels = manifest.labels
        self.spans = manifest.rows[["start_s", "end_s"]].to_numpy(dtype=float)
        self.cached: list[tuple[Tensor, float, int]] | None = None
        self.decoded_frames, self.decode_seconds = 0, 0.0

    def __len__(self) -> int:
        return len(self.manifest)

    def preload(self, progress: bool = True) -> "ClipDataset":
        """Decode every clip once and keep its frames in memory (uint8). Returns self."""
        rows = tqdm(
            range(len(self)), f"decode {self.manifest.split} {self.view}", disable=not progress, leave=False
        )
        self.cached = [self.decode_span(row) for row in rows]
        return self

    @property
    def throughput(self) -> str:
        """Decode throughput so far, for logs."""
        rate = self.decoded_frames / max(self.decode_seconds, 1e-9)
        frames = f"{self.decoded_frames} frames in {self.decode_seconds:.1f} s ({rate:.0f} frames/s)"
        return f"{self.manifest.split} {self.view}: decoded {frames}"

    def __getitem__(self, item: tuple[int, int | None]) -> dict[str, Tensor | int]:
        row, seed = item
        random = None if seed is None else np.random.default_rng((seed, row))
        clip = prepare(self.frames(row, random), self.video, random)
        return {"clips": clip, "labels": self.labels[row], "rows": row}

    def frames(self, row: int, random: np.random.Generator | None = None) -> Tensor:
        """Sampled frames of clip `row` before augmentation: (T, 3, H, W) uint8."""
        times = sample_times(*self.spans[row], self.video.num_frames, self.video.span_s, random)
        if self.cached is not None or self.whole_span:
            frames, fps, first = self.decode_span(row) if self.cached is None else self.cached[row]
            local = np.clip(np.array(frame_indices(times, fps, first + len(frames))) - first, 0, None)
            return frames[torch.from_numpy(local)]
        video = open_clip(self.manifest, row, self.view)
        return self.read(video, frame_indices(times, video.fps, video.frames))

    def read(self, video: Video, indices: list[int]) -> Tensor:
        """Frames at `indices`, the shorter side resized to the card's: (T, 3, H, W) uint8."""
        started = time.perf_counter()
        pictures = video.read(indices)
        self.decode_seconds += time.perf_counter() - started
        self.decoded_frames += len(pictures)
        return shrink(pictures, self.video)

    def decode_span(self, row: int) -> tuple[Tensor, float, int]:
        """All frames of a clip's span (T, 3, H, W) uint8, their rate, and the first one's number."""
        video = open_clip(self.manifest, row, self.view)
        edges = span_edges(self.spans[row], video)
        return self.read(video, list(range(edges[0], edges[1] + 1))), video.fps, edges[0]


@dataclass(frozen=True)
class ClipView(Dataset):
    """A dataset's clips, taken in another way; `rows` stay the dataset's, so that stored targets fit."""

    source: ClipDataset

    @property
    def cached(self) -> list | None:
        """The decoded clips, where they are kept in memory."""
        return self.source.cached

    @property
    def video(self) -> VideoCard:
        """Frames per clip, sizes and statistics."""
        return self.source.video


@dataclass(frozen=True)
class ClipSubset(ClipView):
    """Some of its clips."""

    chosen: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, item: tuple[int, int | None]) -> dict[str, Tensor | int]:
        place, seed = item
        return self.source[self.chosen[place], seed]


@dataclass(frozen=True)
class WithPairs(ClipView):
    """Labelled clips and, in every epoch, as many of the pairs, whose `rows` go on after the labelled ones.

    Which of the pairs an epoch has depends on its seed alone: a window that moves over all of them.

    Raises:
        ValueError: there is no labelled clip, or no pair, among the chosen ones.
    """

    pairs: ClipDataset
    labels: tuple[int, ...] = ()  # of the pairs; empty: they are not read
    chosen: tuple[int, ...] | None = None  # rows to take; None: all

    def __post_init__(self):
        if not self.labelled_rows or not self.pair_rows:
            counts = f"{len(self.labelled_rows)} labelled clips and {len(self.pair_rows)} pairs"
            raise ValueError(f"{counts} chosen; an epoch needs both")

    @cached_property
    def labelled_rows(self) -> list[int]:
        """The rows that every epoch has."""
        return [row for row in self._rows if row < len(self.source)]

    @cached_property
    def pair_rows(self) -> list[int]:
        """Places in `pairs` of those that the window moves over."""
        return [row - len(self.source) for row in self._rows if row >= len(self.source)]

    @property
    def _rows(self) -> Sequence[int]:
        return range(len(self.source) + len(self.pairs)) if self.chosen is None else self.chosen

    def __len__(self) -> int:
        return 2 * len(self.labelled_rows)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Tensor | int]:
        place, seed = item
        if place < len(self.labelled_rows):
            return self.source[self.labelled_rows[place], seed]
        row = self.pair_rows[(place + seed) % len(self.pair_rows)]
        label = self.labels[row] if self.labels else UNKNOWN
        return self.pairs[row, seed] | {"labels": label, "rows": len(self.source) + row}


def span_edges(span: np.ndarray, video: Video) -> list[int]:
    """Numbers of the first and the last frame within a span (start, end) in seconds."""
    return frame_indices(span - (0, 1e-3), video.fps, video.frames)


@dataclass(frozen=True)
class EpochSampler(Sampler):
    """Batches of `(row, seed)` for one epoch: shuffled by (seed, epoch) alone, or in order for evaluation."""

    rows: int
    batch_size: int
    seed: int | None = None  # None: evaluation order
    epoch: int = 0

    def __iter__(self) -> Iterator[list[tuple[int, int | None]]]:
        if self.seed is None:
            order, draw = np.arange(self.rows), None
        else:
            random = np.random.default_rng((self.seed, self.epoch))
            order, draw = random.permutation(self.rows), int(random.integers(2**31))
        for first in range(0, self.rows, self.batch_size):
            yield [(int(row), draw) for row in order[first : first + self.batch_size]]

    def __len__(self) -> int:
        return -(-self.rows // self.batch_size)


def loader(
    dataset: ClipDataset | ClipView,
    batch_size: int,
    seed: int | None = None,
    epoch: int = 0,
) -> DataLoader:
    """Batches of one epoch; see EpochSampler. Cached datasets are read in this process."""
    workers = 0 if dataset.cached is not None else dataset.video.workers
    sampler = EpochSampler(len(dataset), batch_size, seed, epoch)
    return DataLoader(
        dataset, batch_sampler=sampler, num_workers=workers, pin_memory=torch.cuda.is_available()
    )
