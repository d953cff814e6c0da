"""Decoding, sampling and augmentation: moments by definition, determinism, damaged files."""

import math
import re
from dataclasses import replace

import av
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from uniego_utils.cards import VideoCard
from uniego_utils.data.manifests import Manifest
from uniego_utils.data.video import (
    ClipDataset,
    EpochSampler,
    VideoError,
    frame_indices,
    loader,
    open_clip,
    open_video,
    prepare,
    sample_times,
)

HEIGHT, WIDTH, SECONDS = 48, 64, 2
FPS = {"ego": 30, "exo": 12}
SPANS = [(0.0, 2.0), (0.4, 1.5), (1.0, 1.7)]
PLAIN = VideoCard(num_frames=4, image_size=32, resize=HEIGHT, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
AUGMENTED = replace(
    PLAIN, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), crop_scale=(0.7, 1.3), flip=0.5, jitter=0.3
)


def write_video(path, fps, pictures, size=(WIDTH, HEIGHT), **options):
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "10"})
        (stream.width, stream.height), stream.pix_fmt = size, "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def brightness_at(seconds):
    """The recorded clock: grey value of a frame that appears at `seconds`."""
    return 40 + 80 * seconds


@pytest.fixture(scope="module")
def clocks(tmp_path_factory):
    """Three clips of one ego and one exo video of two seconds, whose brightness tells the time."""
    root = tmp_path_factory.mktemp("clocks")
    for view, fps in FPS.items():
        grey = [round(brightness_at(i / fps)) for i in range(SECONDS * fps)]
        write_video(root / f"{view}.mp4", fps, [np.full((HEIGHT, WIDTH, 3), g, np.uint8) for g in grey])
    rows = pd.DataFrame(
        [dict(clip_id=f"c{i}", label="ab"[i % 2], start_s=s, end_s=e) for i, (s, e) in enumerate(SPANS)]
    ).assign(ego_video="ego.mp4", exo_video="exo.mp4")
    return Manifest("train", rows, ("a", "b"), root, "0")


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """Bytes of a two-second video that starts with its index, as streamed ones do."""
    path = tmp_path_factory.mktemp("noise") / "noise.mp4"
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8) for _ in range(60)]
    write_video(path, 30, pictures, movflags="faststart")
    return path.read_bytes()


def seconds_seen(clip):
    """Times told by a clip (3, T, S, S) of pixels in 0..1."""
    return (clip.mean((0, 2, 3)).numpy() * 255 - 40) / 80


def equal_batches(one, other):
    return len(one) == len(other) and all(
        torch.equal(x[key], y[key]) for x, y in zip(one, other, strict=True) for key in x
    )


def test_evaluation_times_are_the_centres_of_equal_segments():
    assert sample_times(1.0, 3.0, 4).tolist() == pytest.approx([1.25, 1.75, 2.25, 2.75])


def test_a_shorter_window_is_central():
    assert sample_times(0.0, 10.0, 2, span_s=4.0).tolist() == pytest.approx([4.0, 6.0])


def test_a_window_longer_than_the_span_is_the_span():
    assert sample_times(1.0, 3.0, 4, span_s=9.0).tolist() == sample_times(1.0, 3.0, 4).tolist()


def test_random_times_are_evenly_spaced_and_within_the_span():
    places = []
    for seed in range(200):
        times = sample_times(2.0, 5.0, 6, 1.5, np.random.default_rng(seed))
        assert np.diff(times) == pytest.approx(np.full(5, 0.25))
        assert times[0] >= 2.0 and times[-1] < 5.0
        places.append(times[0])
    assert min(places) < 2.2 and max(places) > 3.5  # the window goes everywhere: 2.0 to 3.5, plus an offset


@pytest.mark.parametrize(("start", "end", "count"), [(1, 1, 4), (2, 1, 4), (0, 1, 0), (math.nan, 1, 4)])
def test_an_empty_span_or_no_frames_is_refused(start, end, count):
    with pytest.raises(ValueError, match="cannot take"):
        sample_times(start, end, count)


def test_frame_numbers_are_those_on_screen():
    times = np.array([0.0, 0.05, 0.0999, 0.1, 0.35, 9.0])
    slow = [max(i for i in range(8) if i / 10 <= t + 1e-9) for t in times]
    assert frame_indices(times, 10.0, 8) == slow == [0, 0, 0, 1, 3, 7]


def test_a_frame_boundary_is_not_lost_to_rounding():
    for fps in (12, 25, 30, 30000 / 1001):
        assert frame_indices(np.arange(300) / fps, fps, 300) == list(range(300))
        rounded = np.round(np.arange(300) / fps, 6)  # as manifests keep times
        assert frame_indices(rounded, fps, 300) == list(range(300))


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
@pytest.mark.parametrize("row", range(3))
def test_ego_at_30_and_exo_at_12_fps_show_the_same_moments(clocks, row, seed):
    random = None if seed is None else np.random.default_rng((seed, row))
    times = sample_times(*SPANS[row], 4, None, random)
    for view, fps in FPS.items():
        clip = ClipDataset(clocks, view, PLAIN)[row, seed]["clips"]
        on_screen = np.floor(times * fps + 1e-6) / fps
        assert seconds_seen(clip) == pytest.approx(on_screen, abs=0.02)  # a grey level is 0.0125 s


def test_items_carry_label_and_row(clocks):
    item = ClipDataset(clocks, "ego", PLAIN)[1, None]
    assert (item["labels"], item["rows"]) == (1, 1)
    assert item["clips"].shape == (3, 4, 32, 32) and item["clips"].dtype == torch.float32


def test_random_sampling_depends_on_the_seed_alone(clocks):
    dataset = ClipDataset(clocks, "ego", AUGMENTED)
    first = dataset[1, 5]["clips"]
    dataset[0, 3], dataset[1, 6]  # other items in between, other draws of the global generators
    np.random.default_rng().random()
    torch.rand(3)
    assert torch.equal(dataset[1, 5]["clips"], first)
    assert torch.equal(ClipDataset(clocks, "ego", AUGMENTED)[1, 5]["clips"], first)
    assert not torch.equal(dataset[1, 6]["clips"], first)


def test_rows_of_a_batch_are_augmented_differently(clocks):
    twins = replace(clocks, rows=pd.concat([clocks.rows[:1]] * 2, ignore_index=True))
    dataset = ClipDataset(twins, "ego", AUGMENTED)
    assert not torch.equal(dataset[0, 5]["clips"], dataset[1, 5]["clips"])


def test_evaluation_is_deterministic_and_ignores_the_augmentation(clocks):
    augmented = replace(AUGMENTED, mean=PLAIN.mean, std=PLAIN.std)
    one, other = (ClipDataset(clocks, "ego", card)[2, None]["clips"] for card in (PLAIN, augmented))
    assert torch.equal(one, other)


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
@pytest.mark.parametrize("row", range(3))
@pytest.mark.parametrize("view", FPS)
def test_cached_and_uncached_clips_are_equal(clocks, view, row, seed):
    dataset, cached = ClipDataset(clocks, view, AUGMENTED), ClipDataset(clocks, view, AUGMENTED)
    cached.preload(progress=False)
    assert torch.equal(dataset[row, seed]["clips"], cached[row, seed]["clips"])


def pictures(frames=3, height=HEIGHT, width=WIDTH):
    return torch.randint(
        256, (frames, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


@pytest.mark.parametrize("seed", range(5))
def test_a_still_clip_stays_still_under_augmentation(seed):
    still = pictures(1).expand(6, -1, -1, -1)
    clip = prepare(still, AUGMENTED, np.random.default_rng(seed))
    assert all(torch.equal(clip[:, t], clip[:, 0]) for t in range(6))


def test_normalisation_and_central_crop_by_definition():
    frames, mean, std = pictures(), np.array(AUGMENTED.mean), np.array(AUGMENTED.std)
    crop = frames.numpy()[:, :, 8:40, 16:48] / 255  # 32 x 32 in the centre of 48 x 64
    slow = ((crop - mean[:, None, None]) / std[:, None, None]).transpose(1, 0, 2, 3)
    np.testing.assert_allclose(prepare(frames, AUGMENTED, None).numpy(), slow, atol=1e-5)


def test_a_flip_mirrors_left_and_right():
    card = replace(PLAIN, flip=1.0)
    square = pictures(height=32, width=32)  # leaves no choice of crop
    mirrored = prepare(square, card, np.random.default_rng(0))
    torch.testing.assert_close(mirrored, prepare(square, card, None).flip(-1))


def test_jitter_is_one_gain_about_the_mean_and_one_shift_per_clip():
    card = replace(AUGMENTED, crop_scale=(1.0, 1.0), flip=0.0, jitter=0.3)
    square = pictures(height=32, width=32)
    mean, std = (np.array(values)[:, None, None, None] for values in (card.mean, card.std))
    plain = square.numpy().transpose(1, 0, 2, 3) / 255 - mean
    gains, shifts = [], []
    for seed in range(20):
        lit = prepare(square, card, np.random.default_rng(seed)).numpy() * std
        gain, shift = np.polyfit(plain.ravel(), lit.ravel(), 1)
        np.testing.assert_allclose(lit, gain * plain + shift, atol=1e-4)
        gains.append(gain)
        shifts.append(shift)
    assert all(abs(gain - 1) <= 0.3 and abs(shift) <= 0.3 for gain, shift in zip(gains, shifts, strict=True))
    assert np.ptp(gains) > 0.1 and np.ptp(shifts) > 0.1


def test_crops_reach_all_corners_and_only_real_pixels():
    ramp = torch.arange(36, dtype=torch.uint8).expand(1, 3, 36, 36)  # a pixel tells its column
    lefts = {
        round(prepare(ramp, PLAIN, np.random.default_rng(seed))[0, 0, 0, 0].item() * 255)
        for seed in range(80)
    }
    assert lefts == {0, 1, 2, 3, 4}


def damaged(path, content, end_s=None):
    path.write_bytes(content)
    with pytest.raises(VideoError) as caught:
        open_video(path, end_s)
    return str(caught.value)


@pytest.mark.parametrize("content", [b"", b"404: not found\n" * 50], ids=["zero bytes", "text"])
def test_a_file_that_is_no_video_is_named_with_the_cure(tmp_path, content):
    message = damaged(tmp_path / "bad.mp4", content)
    assert str(tmp_path / "bad.mp4") in message and "fetch or generate the file again" in message


def test_a_missing_file_is_named_with_the_cure(tmp_path):
    with pytest.raises(VideoError, match=r"gone\.mp4 does not exist; run notebook 00_data"):
        open_video(tmp_path / "gone.mp4")


@pytest.mark.parametrize("kept", [0.3, 0.5, 0.7])
def test_a_truncated_file_is_named_with_the_cure(tmp_path, noise, kept):
    message = damaged(tmp_path / "half.mp4", noise[: int(kept * len(noise))], end_s=2.0)
    assert "half.mp4" in message and re.search("fetch or generate (it|the file) again", message)


def test_a_file_cut_before_its_index_is_named_with_the_cure(tmp_path, clocks):
    content = (clocks.root / "ego.mp4").read_bytes()
    message = damaged(tmp_path / "cut.mp4", content[: len(content) // 2])
    assert "cut.mp4" in message and "fetch or generate the file again" in message


def test_a_video_shorter_than_its_annotation_says_both_lengths(clocks):
    with pytest.raises(VideoError, match=r"ego\.mp4 lasts 2\.00 s, but its annotation ends at 5\.00 s"):
        open_video(clocks.root / "ego.mp4", end_s=5.0)


def test_a_last_frame_of_rounding_is_tolerated(clocks):
    assert open_video(clocks.root / "ego.mp4", end_s=2.2).frames == 60


def test_frames_beyond_the_end_are_a_video_error(clocks):
    path = clocks.root / "ego.mp4"
    with pytest.raises(VideoError, match=r"ego\.mp4 is damaged"):
        open_video(path).read([3, 4000])


def test_frames_are_read_in_the_order_asked(clocks):
    frames = open_video(clocks.root / "ego.mp4").read([50, 3, 20, 3])
    expected = [brightness_at(i / 30) for i in (50, 3, 20, 3)]
    assert frames.mean((1, 2, 3)) == pytest.approx(expected, abs=2)


@pytest.mark.parametrize("width", [32, 48, 64, 96, 112, 144])
def test_small_widths_are_read_as_another_decoder_reads_them(tmp_path, width):
    path = tmp_path / "small.mp4"
    ramp = np.linspace(0, 255, width).astype(np.uint8)
    picture = np.stack([np.broadcast_to(ramp, (HEIGHT, width))] * 3, -1)
    write_video(path, 12, [picture, picture[:, ::-1].copy()], size=(width, HEIGHT))
    with av.open(str(path)) as container:
        expected = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    frames = open_video(path).read([0, 1])
    assert frames.shape == (2, HEIGHT, width, 3)
    assert np.abs(frames.astype(int) - np.stack(expected)).max() <= 3  # two ways to round the colours


@pytest.fixture
def recorded(tmp_path):
    """A folder of ten numbered pictures, 40 x 24, each brighter than the one before."""
    folder = tmp_path / "exo_l"
    folder.mkdir()
    ramp = np.linspace(0, 60, 40)[None, :, None]
    for number in range(1, 11):
        picture = np.broadcast_to(ramp + 15 * number, (24, 40, 3)).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"frame_{number:010d}.jpg", quality=95)
    return folder


def test_a_folder_of_pictures_is_a_video(recorded):
    video = open_video(recorded, end_s=0.3, fps=30)
    assert (video.frames, video.fps, video.seconds) == (10, 30.0, pytest.approx(1 / 3))
    frames = video.read([9, 0, 4])
    assert frames.shape == (3, 24, 40, 3) and frames.dtype == np.uint8
    assert frames.mean((1, 2, 3)) == pytest.approx([30 + 15 * number for number in (10, 1, 5)], abs=2)


@pytest.mark.parametrize("rotate", [90, 180, 270])
def test_pictures_are_turned_clockwise(recorded, rotate):
    upright = open_video(recorded, fps=30, rotate=rotate).read([2])[0]
    picture = Image.open(recorded / "frame_0000000003.jpg")
    expected = picture.rotate(-rotate, expand=True)  # counts the other way
    assert np.array_equal(upright, np.asarray(expected))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "frame_0000000004.jpg").unlink(), "none numbered 4"),
        (lambda folder: [path.unlink() for path in folder.iterdir()], "no numbered pictures"),
    ],
)
def test_a_folder_with_gaps_is_refused(recorded, spoil, message):
    spoil(recorded)
    with pytest.raises(VideoError, match=f"exo_l .*{message}.*fetch the folder again"):
        open_video(recorded, fps=30)


def test_a_damaged_picture_is_named(recorded):
    (recorded / "frame_0000000002.jpg").write_bytes(b"no picture")
    with pytest.raises(VideoError, match="frame_0000000002.jpg is damaged"):
        open_video(recorded, fps=30).read([0, 1])


def test_a_folder_needs_its_rate_and_every_video_a_quarter_turn(recorded):
    with pytest.raises(ValueError, match="frames per second"):
        open_video(recorded)
    with pytest.raises(ValueError, match="rotate is 45"):
        open_video(recorded, fps=30, rotate=45)
    with pytest.raises(VideoError, match="lasts 0.33 s, but its annotation ends at 2.00 s"):
        open_video(recorded, end_s=2.0, fps=30)


def test_a_clip_is_opened_as_the_manifest_says(clocks, recorded):
    rows = clocks.rows.assign(exo_video="exo_l", exo_fps=30.0, exo_rotate=90, end_s=0.3)
    manifest = replace(clocks, rows=rows, root=recorded.parent)
    assert open_clip(manifest, 0, "exo").read([0]).shape == (1, 40, 24, 3)
    assert open_clip(replace(clocks, rows=rows.assign(ego_fps=np.nan)), 0, "ego").frames == 60


def test_a_dataset_names_the_damaged_clip(clocks, tmp_path):
    (tmp_path / "ego.mp4").write_bytes(b"")
    broken = ClipDataset(replace(clocks, root=tmp_path), "ego", PLAIN)
    for read in (lambda: broken[0, None], lambda: broken.preload(progress=False)):
        with pytest.raises(VideoError, match=str(tmp_path / "ego.mp4")):
            read()


@pytest.mark.parametrize("rows", [1, 7, 8])
@pytest.mark.parametrize("seed", [None, 3])
def test_every_row_comes_once_an_epoch(rows, seed):
    sampler = EpochSampler(rows, 4, seed, epoch=2)
    batches = list(sampler)
    assert sorted(row for batch in batches for row, _ in batch) == list(range(rows))
    assert len(batches) == len(sampler) == math.ceil(rows / 4)
    assert all(len(batch) == 4 for batch in batches[:-1])


def test_epochs_differ_and_equal_themselves():
    epochs = [list(EpochSampler(40, 8, 3, epoch)) for epoch in range(3)]
    assert epochs == [list(EpochSampler(40, 8, 3, epoch)) for epoch in range(3)]
    orders = [[row for batch in batches for row, _ in batch] for batches in epochs]
    draws = [batches[0][0][1] for batches in epochs]
    assert orders[0] != orders[1] != orders[2] and len(set(draws)) == 3


def test_seeds_differ():
    assert list(EpochSampler(40, 8, seed=3)) != list(EpochSampler(40, 8, seed=4))


def test_evaluation_is_in_manifest_order_without_a_draw():
    batches = list(EpochSampler(5, 2))
    assert batches == [[(0, None), (1, None)], [(2, None), (3, None)], [(4, None)]]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine with one core
@pytest.mark.parametrize("seed", [None, 3])
def test_workers_give_the_same_batches(clocks, seed):
    alone = list(loader(ClipDataset(clocks, "ego", AUGMENTED), 2, seed, epoch=1))
    shared = list(loader(ClipDataset(clocks, "ego", replace(AUGMENTED, workers=2)), 2, seed, epoch=1))
    assert equal_batches(alone, shared)
    assert {key: value.dtype for key, value in alone[0].items()} == {
        "clips": torch.float32,
        "labels": torch.int64,
        "rows": torch.int64,
    }


def test_a_video_error_in_a_worker_keeps_its_message(clocks, tmp_path):
    broken = ClipDataset(replace(clocks, root=tmp_path), "ego", replace(PLAIN, workers=1))
    with pytest.raises(VideoError, match="does not exist; run notebook 00_data"):
        list(loader(broken, 2))
