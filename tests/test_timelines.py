"""Timelines: labels of moments against the table, odd tables, and what is refused."""

import numpy as np
import pandas as pd
import pytest
from trees import FPS, build_assembly, build_egoexo4d, gratings, halve, write_video

from uniego_utils.cards import load_card
from uniego_utils.data.usable import builder_module, write_manifests
from uniego_utils.data.video import VideoError
from uniego_utils.segmentation.timelines import (
    BACKGROUND,
    classes_of,
    load_timelines,
    moments,
    timelines_digest,
)

SECONDS = 2.0


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("timelines")
    for name in ("a", "b"):
        write_video(folder / f"{name}.mp4", gratings(0, SECONDS))
    return folder


def table(*segments, **columns):
    """Rows (video, start, end, label) of the train split, on files named by video."""
    rows = pd.DataFrame(segments, columns=["video_id", "start_s", "end_s", "label"])
    rows = rows.assign(split="train", level="action", ego_video=rows["video_id"] + ".mp4")
    return rows.assign(**columns)


def load(rows, videos, tmp_path, split="train", level=""):
    rows.to_csv(tmp_path / "segments.csv", index=False)
    return load_timelines(tmp_path / "segments.csv", videos, split, level)


def test_labels_follow_the_table(videos, tmp_path):
    segments = [("a", 0.1, 0.5, "x"), ("a", 0.9, 1.4, "y"), ("b", 0.0, 2.0, "x")]
    first, second = load(table(*segments), videos, tmp_path)
    times = np.random.default_rng(0).uniform(0, SECONDS, 500)
    expected = [
        next((label for v, s, e, label in segments if v == "a" and s <= t < e), BACKGROUND) for t in times
    ]
    assert first.labels_at(times).tolist() == expected
    assert set(second.labels_at(times)) == {"x"}
    assert first.video_id == "a" and first.path == videos / "a.mp4"
    assert first.duration == pytest.approx(SECONDS)
    assert first.labels_at(np.array([0.1, 0.5])).tolist() == ["x", BACKGROUND], "[start, end)"


def test_of_overlapping_segments_the_last_to_begin_counts(videos, tmp_path):
    rows = table(
        ("a", 0.0, 1.8, "long"), ("a", 0.5, 1.0, "inner"), ("a", 1.2, 1.5, "b"), ("a", 1.2, 1.3, "c")
    )
    for shuffled in (rows, rows.iloc[::-1]):
        (timeline,) = load(shuffled, videos, tmp_path)
        found = timeline.labels_at(np.array([0.2, 0.7, 1.1, 1.25, 1.4, 1.6, 1.9]))
        assert found.tolist() == ["long", "inner", "long", "c", "b", "long", BACKGROUND]


def test_a_single_class_and_a_video_without_any_action(videos, tmp_path):
    first, second = load(table(("a", 0.2, 0.4, "x"), ("b", np.nan, np.nan, np.nan)), videos, tmp_path)
    assert classes_of([first, second]) == (BACKGROUND, "x")
    assert set(second.labels_at(moments(second, 0.1))) == {BACKGROUND}
    assert second.duration == pytest.approx(SECONDS)


def test_classes_keep_the_cards_order(videos, tmp_path):
    timelines = load(table(("a", 0.2, 0.4, "z"), ("a", 0.5, 0.6, "q"), ("b", 0, 1, "k")), videos, tmp_path)
    assert classes_of(timelines, ("z", "absent", "k")) == (BACKGROUND, "z", "k", "q")


def test_videos_that_share_a_file_span_their_segments(videos, tmp_path):
    rows = table(("a", 0.1, 0.5, "x"), ("a", 0.6, 0.9, "y"), ("a2", 1.2, 1.9, "x"), ("b", 0.3, 0.5, "x"))
    rows.loc[rows["video_id"] == "a2", ["ego_video", "split"]] = ["a.mp4", "val"]  # halves of one recording
    first, second = load(rows, videos, tmp_path)
    assert (first.start_s, first.end_s) == (0.1, 0.9) and (second.start_s, second.end_s) == (0, SECONDS)
    assert moments(first, 0.4) == pytest.approx([0.3, 0.7])
    (half,) = load(rows, videos, tmp_path, "val")
    assert (half.start_s, half.end_s) == (1.2, 1.9)


@pytest.mark.parametrize(("duration", "stride", "steps"), [(2.0, 0.25, 8), (2.0, 0.3, 7), (2.0, 5.0, 1)])
def test_moments_are_the_middles_of_steps(videos, tmp_path, duration, stride, steps):
    (timeline,) = load(table(("a", 0.0, duration, "x")), videos, tmp_path)
    times = moments(timeline, stride)
    assert len(times) == steps and (times < duration).all()
    assert times[0] == pytest.approx(min(stride / 2, duration - 1e-3))
    assert np.allclose(np.diff(times), stride)


def test_rounding_up_to_a_frame_is_tolerated(videos, tmp_path):
    (timeline,) = load(table(("a", 1.0, SECONDS + 1 / FPS, "x")), videos, tmp_path)
    assert timeline.segments == ((1.0, SECONDS, "x"),)


def test_segments_longer_than_the_video_are_refused(videos, tmp_path):
    told = r"segments\.csv: the segments of video a go on until 2\.10 s, but .*a\.mp4 lasts 2\.00 s.*fetch"
    with pytest.raises(ValueError, match=told):
        load(table(("a", 1.0, SECONDS + 3 / FPS, "x")), videos, tmp_path)


def test_exo_view_frame_rates_and_rotation_are_taken_over(videos, tmp_path):
    rows = table(("a", 0.1, 0.5, "x"), exo_video="b.mp4", ego_rotate=90, take="t", subject="s")
    (timeline,) = load(rows, videos, tmp_path)
    assert timeline.open("exo").path == videos / "b.mp4"
    assert timeline.open().read([0]).shape[1:3] == (128, 96), "turned by a quarter"
    (without,) = load(table(("a", 0.1, 0.5, "x")), videos, tmp_path)
    with pytest.raises(VideoError, match="video a has no exo video"):
        without.open("exo")


def test_the_digest_tells_videos_but_not_labels(videos, tmp_path):
    one, other, longer = (
        load(table(*segments), videos, tmp_path)
        for segments in ([("a", 0, 1, "x")], [("a", 0, 0.5, "y")], [("a", 0, 1, "x"), ("b", 0, 1, "x")])
    )
    assert timelines_digest(one) == timelines_digest(other) != timelines_digest(longer)


REFUSED = {
    "unknown columns colour": table(("a", 0.1, 0.5, "x"), colour="red"),
    "lacks the columns label": table(("a", 0.1, 0.5, "x")).drop(columns="label"),
    r"1 of 2 rows have a start_s that is no finite number \(line 3: a\)": table(
        ("a", 0.1, 0.5, "x"), ("a", np.inf, 0.7, "x")
    ),
    "a end_s that is no finite number": table(("a", 0.1, "soon", "x")),
    r"an end that is not after its start \(line 2: a\)": table(("a", 0.5, 0.5, "x")),
    "a start before the video's": table(("a", -0.5, 0.5, "x")),
    "no label": table(("a", 0.1, 0.5, np.nan)),
    "no ego_video": table(("a", 0.1, 0.5, "x"), ego_video=np.nan),
    "the label 'background'": table(("a", 0.1, 0.5, BACKGROUND)),
    "video a has several ego_video": table(
        ("a", 0.1, 0.5, "x"), ("a", 0.6, 0.7, "x"), ego_video=["a.mp4", "b.mp4"]
    ),
    "has no segments": table(),
    "has no level ''; choose one of action, other": table(
        ("a", 0.1, 0.5, "x"), ("a", 0.6, 0.7, "x"), level=["action", "other"]
    ),
    "no action segments of the split 'train'; it has test": table(("a", 0.1, 0.5, "x"), split="test"),
}


@pytest.mark.parametrize("told", REFUSED)
def test_faulty_tables_are_refused(told, videos, tmp_path):
    with pytest.raises(ValueError, match=told):
        load(REFUSED[told], videos, tmp_path)


def test_missing_and_broken_videos_are_refused(videos, tmp_path):
    with pytest.raises(VideoError, match=r"gone\.mp4 does not exist"):
        load(table(("gone", 0.1, 0.5, "x")), videos, tmp_path)
    write_video(tmp_path / "cut.mp4", gratings(0, SECONDS))
    halve(tmp_path / "cut.mp4")
    with pytest.raises((VideoError, ValueError), match=r"cut\.mp4"):
        load(table(("cut", 0.1, 1.9, "x")), tmp_path, tmp_path)[0].open().read([55])
    with pytest.raises(FileNotFoundError, match=r"segments\.csv does not exist"):
        load_timelines(tmp_path / "nowhere" / "segments.csv", videos, "train")


@pytest.mark.parametrize(
    ("name", "levels"), [("assembly101", ("fine", "coarse")), ("egoexo4d", ("keystep",))]
)
def test_segments_of_published_datasets_load(name, levels, tmp_path):
    root, out = tmp_path / "root", tmp_path / "out"
    {"assembly101": build_assembly, "egoexo4d": build_egoexo4d}[name](root)
    module = builder_module(name)
    card = load_card(name)
    annotated = module.annotated(root, module.Settings(), ())
    write_manifests(card, annotated, root, out, workers=1, progress=False)
    for level in levels:
        spans = annotated.segments[annotated.segments["level"] == level]
        for split in ("train", "val", "test"):
            timelines = load_timelines(out / "segments.csv", root, split, level)
            own = spans[spans["split"] == split]
            assert {entry.video_id for entry in timelines} == set(own["video_id"])
            for entry in timelines:
                first = own[own["video_id"] == entry.video_id].iloc[0]
                middle = (first["start_s"] + first["end_s"]) / 2
                assert entry.labels_at(np.array([middle])).tolist() == [first["label"]]
                assert entry.duration == pytest.approx(SECONDS)


def test_halves_of_a_recording_have_spans_of_their_own(tmp_path):
    """Where Assembly101 lists an assembly and a disassembly of one recording, each covers its part."""
    root, out = tmp_path / "root", tmp_path / "out"
    build_assembly(root, 2, 1)
    coarse = root / "coarse-annotations"
    listed = (coarse / "coarse_seq_views.txt").read_text()
    more = listed.replace("assembly_", "disassembly_")
    (coarse / "coarse_seq_views.txt").write_text(listed + more)
    for split in ("train", "val"):
        first = coarse / "coarse_splits" / f"{split}_coarse_assembly.txt"
        text = first.read_text().replace("assembly_", "disassembly_")
        (coarse / "coarse_splits" / f"{split}_coarse_disassembly.txt").write_text(text)
        for line in text.split("\n")[:-1]:
            (coarse / "coarse_labels" / line.split()[0]).write_text("45\t57\tdetach wheel\n")
    module = builder_module("assembly101")
    annotated = module.annotated(root, module.Settings(), ())
    write_manifests(load_card("assembly101"), annotated, root, out, workers=1, progress=False)
    timelines = load_timelines(out / "segments.csv", root, "test", "coarse")
    spans = {entry.video_id.partition("_")[0]: (entry.start_s, entry.end_s) for entry in timelines}
    assert spans["disassembly"] == pytest.approx((1.5, 1.9))
    assert spans["assembly"] == pytest.approx((2 / 30, 38 / 30))
