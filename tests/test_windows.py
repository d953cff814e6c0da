"""Sliding windows: they see what clips are, each frame once, and are stored once."""

import gc
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from trees import gratings, write_video

from uniego_utils.backbones import create_backbone
from uniego_utils.cards import VideoCard
from uniego_utils.data.manifests import Manifest
from uniego_utils.data.video import ClipDataset, Video, loader
from uniego_utils.segmentation import windows
from uniego_utils.segmentation.timelines import load_timelines
from uniego_utils.segmentation.windows import encode_video, extract_windows, window_spans
from uniego_utils.training import predict

CARD = VideoCard(8, 32, 36, (0.45,) * 3, (0.225,) * 3)
CPU = torch.device("cpu")
SECONDS = 4.0  # of the first video; the second is half as long


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("windows")
    rows = []
    for number, seconds in enumerate((SECONDS, SECONDS / 2)):
        write_video(folder / f"{number}.mp4", gratings(number, seconds))
        known = {"split": "train", "level": "action", "video_id": f"v{number}", "ego_video": f"{number}.mp4"}
        rows.append(known | {"start_s": 0.5, "end_s": 1.5, "label": "a"})
    pd.DataFrame(rows).to_csv(folder / "segments.csv", index=False)
    return folder


@pytest.fixture
def timelines(root):
    return load_timelines(root / "segments.csv", root, "train")


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return create_backbone("timesformer", 3, CARD.num_frames, CARD.image_size, "tiny").eval()


class Colours(nn.Module):
    """Features that are easy to compute by hand: mean and spread of the clip, times a weight."""

    def __init__(self, factor: float = 1.0):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, clips):
        features = torch.stack([clips.mean((1, 2, 3, 4)), clips.std((1, 2, 3, 4))], 1) * self.factor
        return features, features


def test_a_window_that_is_a_clip_has_the_clips_feature(root, timelines, encoder):
    spans = window_spans(timelines[0], 1.2, 0.25)
    rows = pd.DataFrame(
        {
            "clip_id": [f"c{n}" for n in range(len(spans))],
            "label": "a",
            "ego_video": "0.mp4",
            "start_s": spans[:, 0],
            "end_s": spans[:, 1],
        }
    )
    manifest = Manifest("train", rows, ("a",), root, "")
    expected = predict(encoder, loader(ClipDataset(manifest, "ego", CARD), 64), CPU)["features"]
    found = encode_video({"x": encoder}, timelines[0], CARD, 1.2, 0.25, CPU)["x"]
    assert found.shape == expected.shape == (16, encoder(torch.zeros(1, 3, 8, 32, 32))[0].shape[1])
    assert torch.allclose(found, expected, atol=1e-5)


def test_windows_are_centred_and_stay_inside(timelines):
    spans = window_spans(timelines[0], 1.0, 0.5)
    middles = 0.25 + 0.5 * np.arange(8)
    assert np.allclose(spans[:, 1] - spans[:, 0], 1.0)
    assert np.allclose(spans.mean(1), np.clip(middles, 0.5, SECONDS - 0.5))
    assert np.allclose(window_spans(timelines[1], 9.0, 0.5), [[0, SECONDS / 2]] * 4)


def test_blocks_do_not_matter_and_frames_are_decoded_once(timelines, monkeypatch):
    whole = encode_video({"x": Colours()}, timelines[0], CARD, 1.2, 0.1, CPU)["x"]
    read, seen = Video.read, []
    monkeypatch.setattr(Video, "read", lambda self, indices: seen.extend(indices) or read(self, indices))
    blocks = encode_video({"x": Colours()}, timelines[0], CARD, 1.2, 0.1, CPU, block=3)["x"]
    assert torch.allclose(whole, blocks, atol=1e-6)
    assert len(seen) == len(set(seen)) > 60


def test_stored_once_and_reused(timelines, tmp_path, encoder, monkeypatch):
    videos = {"train": timelines, "val": timelines[1:]}
    given = (videos, tmp_path, CARD, 1.2, 0.25, CPU)
    first = extract_windows({"a": encoder, "imported:b": Colours()}, *given, progress=False)
    assert {split: list(found) for split, found in first["a"].items()} == {
        "train": ["v0", "v1"],
        "val": ["v1"],
    }
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "config.json",
        "finished",
        "metrics.json",
        "train.safetensors",
        "val.safetensors",
    ]
    monkeypatch.setattr(windows, "encode_video", None)  # would fail if it were called
    again = extract_windows({"a": encoder, "imported:b": Colours()}, *given, progress=False)
    assert all(torch.equal(first[name]["train"]["v0"], again[name]["train"]["v0"]) for name in first)


def test_other_weights_or_windows_are_refused(timelines, tmp_path):
    videos = {"train": timelines}
    extract_windows({"a": Colours()}, videos, tmp_path, CARD, 1.2, 0.5, CPU, progress=False)
    with pytest.raises(ValueError, match="weights"):
        extract_windows({"a": Colours(2.0)}, videos, tmp_path, CARD, 1.2, 0.5, CPU, progress=False)
    with pytest.raises(ValueError, match="stride_s"):
        extract_windows({"a": Colours()}, videos, tmp_path, CARD, 1.2, 0.25, CPU, progress=False)
    changed = {"train": timelines[:1]}
    with pytest.raises(ValueError, match="videos"):
        extract_windows({"a": Colours()}, changed, tmp_path, CARD, 1.2, 0.5, CPU, progress=False)


def test_an_interruption_loses_one_video(timelines, tmp_path, monkeypatch):
    given = ({"train": timelines}, tmp_path / "cut", CARD, 1.2, 0.5, CPU)
    encode, asked = windows.encode_video, []

    def stopped(encoders, timeline, *rest):
        asked.append(timeline.video_id)
        if asked == ["v0", "v1"]:
            raise KeyboardInterrupt
        return encode(encoders, timeline, *rest)

    monkeypatch.setattr(windows, "encode_video", stopped)
    with pytest.raises(KeyboardInterrupt):
        extract_windows({"a": Colours()}, *given, progress=False)
    found = extract_windows({"a": Colours()}, *given, progress=False)
    assert asked == ["v0", "v1", "v1"]
    straight = extract_windows(
        {"a": Colours()}, {"train": timelines}, tmp_path / "straight", *given[2:], progress=False
    )
    assert all(torch.equal(found["a"]["train"][v], straight["a"]["train"][v]) for v in ("v0", "v1"))


def test_features_that_are_no_good_are_refused(timelines):
    with pytest.raises(ValueError, match=r"x: the features of video v0 \(.*0\.mp4\) are not finite"):
        encode_video({"x": Colours(float("nan"))}, timelines[0], CARD, 1.2, 0.5, CPU)
    with pytest.raises(ValueError, match="v0.*are the same at all 8 steps"):
        encode_video({"x": Colours(0.0)}, timelines[0], CARD, 1.2, 0.5, CPU)


@pytest.mark.parametrize(("window_s", "stride_s", "named"), [(0.0, 0.5, "window_s"), (1.0, -1.0, "stride_s")])
def test_impossible_windows_are_refused(timelines, window_s, stride_s, named):
    with pytest.raises(ValueError, match=named):
        encode_video({"x": Colours()}, timelines[0], CARD, window_s, stride_s, CPU)


class Memory(Colours):
    """Notes how many bytes of tensors there are whenever it is asked for features."""

    def __init__(self):
        super().__init__()
        self.bytes = []

    def forward(self, clips):
        tensors = [thing for thing in gc.get_objects() if type(thing) is torch.Tensor]
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
        self.bytes.append(sum(storage.nbytes() for storage in storages.values()))
        return super().forward(clips)


def test_memory_does_not_grow_with_the_video(timelines):
    most = []
    for timeline in (timelines[1], timelines[0]):  # the second is twice as long
        encoder, before = Memory(), Memory()
        before(torch.zeros(1, 2, 1, 1, 1))
        encode_video({"x": encoder}, timeline, replace(CARD, num_frames=4), 0.5, 0.25, CPU, block=2)
        most.append(max(encoder.bytes) - before.bytes[0])
    frame = 3 * CARD.image_size**2 * 4  # bytes
    assert 2 * 4 * frame <= most[1] <= most[0] + frame
