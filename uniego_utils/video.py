"""From video files to clip tensors: decoding with decord, sampling in time, augmentation in space."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import decord
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms.v2 import functional as transforms
from tqdm.auto import tqdm

from uniego_utils.manifests import Manifest, VideoCard

SPAN_TOLERANCE_S = 0.5  # a video may end this much before its annotation does (rounding, last frame)


class VideoError(RuntimeError):
    """A video that cannot be read as its manifest says; the message names the file and the cure."""


def open_video(path: Path, end_s: float | None = None) -> decord.VideoReader:
    """Open a video and check that it lasts as long as its annotation.

    Args:
        path: the file.
        end_s: seconds that the video must reach; a half-downloaded file opens but reports fewer frames.

    Raises:
        VideoError: missing, unreadable, without frames, or too short.
    """
    if not Path(path).is_file():
        raise VideoError(f"{path} does not exist; run notebook 00_data again or mend the manifest")
    try:
        reader = decord.VideoReader(str(path), num_threads=1)
        frames, fps = len(reader), reader.get_avg_fps()
    except (RuntimeError, decord.DECORDError) as error:
        raise VideoError(_damaged(path, error)) from None
    if frames == 0 or fps <= 0:
        raise VideoError(f"{path} has {frames} frames at {fps} fps; fetch or generate the file again")
    if end_s is not None and frames / fps < end_s - SPAN_TOLERANCE_S:
        raise VideoError(
            f"{path} lasts {frames / fps:.2f} s, but its annotation ends at {end_s:.2f} s: "
            f"truncated or half-downloaded; fetch or generate the file again"
        )
    return reader


def read_frames(reader: decord.VideoReader, indices: list[int], path: Path) -> np.ndarray:
    """Frames at `indices` as (T, H, W, 3) uint8. Raises VideoError where the file is damaged there."""
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
    """Numbers of the frames on screen at `times` seconds, at most the last one."""
    return np.clip(np.floor(times * fps + 1e-6), 0, frames - 1).astype(int).tolist()


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

    def __init__(self, manifest: Manifest, view: str, video: VideoCard):
        self.manifest, self.view, self.video = manifest, view, video
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
        self.cached = [self._decode_span(row) for row in rows]
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
        if self.cached is not None:
            frames, fps, first = self.cached[row]
            local = np.clip(np.array(frame_indices(times, fps, first + len(frames))) - first, 0, None)
            return frames[torch.from_numpy(local)]
        path, reader = self._open(row)
        return self._read(reader, frame_indices(times, reader.get_avg_fps(), len(reader)), path)

    def _open(self, row: int) -> tuple[Path, decord.VideoReader]:
        path = self.manifest.path(row, f"{self.view}_video")
        return path, open_video(path, self.spans[row, 1])

    def _read(self, reader: decord.VideoReader, indices: list[int], path: Path) -> Tensor:
        started = time.perf_counter()
        frames = torch.from_numpy(read_frames(reader, indices, path)).permute(0, 3, 1, 2)
        self.decode_seconds += time.perf_counter() - started
        self.decoded_frames += len(frames)
        return transforms.resize(frames, [self.video.resize], antialias=True)

    def _decode_span(self, row: int) -> tuple[Tensor, float, int]:
        path, reader = self._open(row)
        fps = reader.get_avg_fps()
        edges = frame_indices(self.spans[row] - (0, 1e-3), fps, len(reader))
        return self._read(reader, list(range(edges[0], edges[1] + 1)), path), fps, edges[0]


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


def loader(dataset: ClipDataset, batch_size: int, seed: int | None = None, epoch: int = 0) -> DataLoader:
    """Batches of one epoch; see EpochSampler. Cached datasets are read in this process."""
    workers = 0 if dataset.cached is not None else dataset.video.workers
    sampler = EpochSampler(len(dataset), batch_size, seed, epoch)
    return DataLoader(
        dataset, batch_sampler=sampler, num_workers=workers, pin_memory=torch.cuda.is_available()
    )
