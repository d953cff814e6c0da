"""Sliding-window features: a frozen encoder's feature of every moment of an untrimmed video.

A video is cut into steps of equal length. Around the middle of each lies a window as long as a training clip;
the encoder sees it as it sees a validation clip, and its feature is the step's. Features are stored once: a
folder an encoder, with a safetensors file a split.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from uniego_utils.backbones.pretrained import state_digest
from uniego_utils.cards import VideoCard
from uniego_utils.data.video import frame_indices, prepare, sample_times, shrink
from uniego_utils.runs import digest, finish_run, read_tensors, start_run, write_tensors
from uniego_utils.segmentation.timelines import Timeline, moments, timelines_digest
from uniego_utils.training import autocast

BLOCK = 32  # windows encoded together; bounds the memory whatever a video's length


def window_spans(timeline: Timeline, window_s: float, stride_s: float) -> np.ndarray:
    """Start and end (steps, 2) in seconds of the windows: centred on the steps, pushed inside at both ends.

    Windows stay within the annotated span. One that is longer than the span is the span.

    Raises:
        ValueError: a window or stride that is not above zero.
    """
    if not window_s > 0:
        raise ValueError(f"window_s is {window_s}; it should be above 0 seconds")
    length = min(window_s, timeline.duration)
    starts = moments(timeline, stride_s) - length / 2
    starts = np.clip(starts, timeline.start_s, max(timeline.start_s, timeline.end_s - length))
    return np.stack([starts, starts + length], 1)


@torch.inference_mode()
def encode_video(
    encoders: Mapping[str, nn.Module],
    timeline: Timeline,
    video: VideoCard,
    window_s: float,
    stride_s: float,
    device: torch.device,
    bf16: bool = False,
    block: int = BLOCK,
) -> dict[str, Tensor]:
    """Features (steps, D) float32 of a video's windows by every encoder; each frame is decoded at most once.

    Args:
        encoders: by name; on `device`, in eval mode; `encoder(clips)` gives (features, logits).
        timeline: the video; its ego view is encoded.
        video: frames per window, sizes and statistics, as for clips.
        window_s: seconds a window; stride_s: seconds a step.
        bf16: autocast the forward pass, as in training.
        block: windows encoded at once; bounds the memory, and does not change the result.

    Raises:
        ValueError: features that are not finite, or all the same; names encoder, video and cure.
        VideoError: the video cannot be read.
    """
    file = timeline.open()
    spans = window_spans(timeline, window_s, stride_s)
    wanted = np.array(
        [
            frame_indices(sample_times(*span, video.num_frames, video.span_s), file.fps, file.frames)
            for span in spans
        ]
    )
    features: dict[str, list[Tensor]] = {name: [] for name in encoders}
    kept = torch.empty(0)  # frames (3, n, S, S) that the next block may need, and their numbers
    numbers = np.empty(0, int)
    for first in range(0, len(wanted), block):
        indices = wanted[first : first + block]
        needed = np.unique(indices)
        fresh = np.setdiff1d(needed, numbers)
        if len(fresh):
            pieces = [fresh[place : place + block].tolist() for place in range(0, len(fresh), block)]
            decoded = [prepare(shrink(file.read(piece), video), video, None) for piece in pieces]
            kept = torch.cat([kept, *decoded] if len(numbers) else decoded, 1)
            numbers = np.concatenate([numbers, fresh])
            order = np.argsort(numbers)
            kept, numbers = kept[:, torch.from_numpy(order)], numbers[order]
        places = torch.from_numpy(np.searchsorted(numbers, indices))
        clips = kept[:, places].transpose(0, 1).to(device)  # (3, B, T, S, S) -> (B, 3, T, S, S)
        for name, encoder in encoders.items():
            with autocast(device, bf16):
                feature, _ = encoder(clips)
            features[name].append(feature.float().cpu())
        later = numbers >= wanted[first + block :].min(initial=file.frames)
        kept, numbers = kept[:, torch.from_numpy(later)], numbers[later]
    return {name: _sound(torch.cat(parts), name, timeline) for name, parts in features.items()}


def _sound(features: Tensor, name: str, timeline: Timeline) -> Tensor:
    """The features, or an error: an encoder that overflowed or collapsed would look like a poor one."""
    subject = f"{name}: the features of video {timeline.video_id} ({timeline.path})"
    if not features.isfinite().all():
        raise ValueError(f"{subject} are not finite; check its frames, or train {name} anew")
    if len(features) > 1 and (features == features[0]).all():
        raise ValueError(f"{subject} are the same at all {len(features)} steps; is it a still picture?")
    return features


def extract_windows(
    encoders: Mapping[str, nn.Module],
    timelines: Mapping[str, Sequence[Timeline]],
    folder: Path,
    video: VideoCard,
    window_s: float,
    stride_s: float,
    device: torch.device,
    bf16: bool = False,
    progress: bool = True,
) -> dict[str, dict[str, dict[str, Tensor]]]:
    """Window features of all videos by all encoders, from `<folder>/<encoder>/<split>.safetensors`.

    What is not there yet is computed in one pass over the videos. A finished encoder is reused if its
    weights, the videos, window, stride and video settings are the same; an interrupted pass loses the video
    in the making.

    Args:
        encoders: by name; see `encode_video`.
        timelines: split -> its videos.

    Returns:
        encoder -> split -> video_id -> (steps, D).

    Raises:
        ValueError: a folder of other weights, videos or settings; unusable features.
        VideoError: a video cannot be read.
    """
    shared = {
        "window_s": window_s,
        "stride_s": stride_s,
        "video": video.decisive(),
        "bf16": bf16,
        "view": "ego",
        "videos": {split: timelines_digest(videos) for split, videos in timelines.items()},
    }
    places = {name: Path(folder) / name.replace(":", "_") for name in encoders}
    todo = {
        name: encoder.to(device).eval()
        for name, encoder in encoders.items()
        if not start_run(places[name], shared | {"weights": state_digest(encoder)})
    }
    work = [(split, entry) for split, videos in timelines.items() for entry in videos]
    for split, entry in tqdm(
        work if todo else (), "windows", unit="video", disable=not progress, leave=False
    ):
        missing = {
            name: encoder for name, encoder in todo.items() if not _part(places[name], split, entry).is_file()
        }
        if missing:
            made = encode_video(missing, entry, video, window_s, stride_s, device, bf16)
            for name, features in made.items():
                write_tensors(_part(places[name], split, entry), {entry.video_id: features})
    for name in todo:
        for split, videos in timelines.items():
            parts = [read_tensors(_part(places[name], split, entry)) for entry in videos]
            write_tensors(
                places[name] / f"{split}.safetensors", {k: v for part in parts for k, v in part.items()}
            )
        finish_run(places[name], {f"{split}_videos": len(videos) for split, videos in timelines.items()})
        for split in timelines:
            shutil.rmtree(places[name] / f"{split}_parts")
    return {
        name: {split: read_tensors(places[name] / f"{split}.safetensors") for split in timelines}
        for name in encoders
    }


def _part(folder: Path, split: str, timeline: Timeline) -> Path:
    """Where the features of one video lie until all are there."""
    return folder / f"{split}_parts" / f"{digest(timeline.video_id.encode())[:16]}.safetensors"
