"""Untrimmed videos: bodies that stand and stay, labels that fit, and the promises of `build`."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest

from uniego_utils.cards import from_mapping, load_card
from uniego_utils.mocap import scripts, untrimmed
from uniego_utils.mocap.motions import (
    MIRRORED,
    facing,
    forward_kinematics,
    load_motions,
    mirror,
    sample_motion,
)
from uniego_utils.mocap.people import clearance, make_subject
from uniego_utils.mocap.rooms import make_room
from uniego_utils.mocap.scripts import Track, fade, recording_clock
from uniego_utils.mocap.settings import VIDEO_SPLITS, MocapSettings, UntrimmedSettings, stable_rng
from uniego_utils.mocap.untrimmed import SEGMENT_COLUMNS, build
from uniego_utils.segmentation.timelines import BACKGROUND, load_timelines

MOTIONS = Path(__file__).parents[1] / "data_manifests" / "mocap" / "humanoid_motions.npz"
CLIPS = MocapSettings(image_size=64, rooms=3, train_subjects=2)
TINY = UntrimmedSettings(train=3, val=1, test=1, shortest_s=6.0, longest_s=18.0, exo_size=64)


@pytest.fixture(scope="module")
def motions():
    return load_motions(MOTIONS)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("untrimmed")
    return root, build(root, MOTIONS, CLIPS, TINY, workers=1, progress=False)


def planned(motions, number, clips=CLIPS, settings=TINY):
    """Script, performance and room of a video, without its pictures."""
    rng = stable_rng("test", number)
    subject = make_subject(clips, "train", number % 2)
    room = make_room(0, number % 3, 0.5).room
    first = list(motions)[number % len(motions)]
    script, start = scripts.write_script(motions, subject, room, clips, settings, first, rng)
    return script, untrimmed.play(motions, script, start, subject, clips, rng), room


@pytest.fixture(scope="module")
def plans(motions):
    return [planned(motions, number, settings=UntrimmedSettings()) for number in range(15)]


def content(root):
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


# Moves


def test_a_mirrored_recording_is_the_recording_in_a_mirror(motions):
    for motion in motions.values():
        frames = motion.frames[:: max(1, len(motion.frames) // 5)][:5]
        points, _ = forward_kinematics(frames)
        mirrored, _ = forward_kinematics(mirror(frames))
        assert np.allclose(mirrored, points[:, MIRRORED] * [1, 1, -1], atol=1e-6)


def test_a_turned_track_is_the_recording_turned(motions):
    """Without noise, a track's points are the recording's, turned about the vertical by its heading."""
    track = Track("kick", 0, 12, 0, 0, 0.0, 1.0, False, 0.7, 0.0)
    body = scripts.track_body(motions, track, 12)
    plain = sample_motion(motions["kick"], np.arange(12) / 12)
    points, turned = (forward_kinematics(rows)[0] for rows in (plain, body.recording[:12]))
    turn = np.array([[np.cos(0.7), 0, np.sin(0.7)], [0, 1, 0], [-np.sin(0.7), 0, np.cos(0.7)]])
    expected = (points - points[0, 0] * [1, 0, 1]) @ turn.T
    assert np.allclose(turned, expected, atol=1e-6)
    assert facing(body.recording[:1])[0] == pytest.approx(facing(plain[:1])[0] + 0.7)


def test_clocks_stand_still_at_the_ends_and_run_evenly_between():
    track = Track("walk", 24, 60, 12, 6, 0.0, 1.0, False, 0.0, 0.0)
    clock = recording_clock(track, np.arange(12, 67), 12)
    assert np.allclose(np.diff(clock[12:49]), 1 / 12)
    steps = np.diff(clock)
    assert (np.diff(steps[:13]) >= -1e-12).all() and (np.diff(steps[48:]) <= 1e-12).all()
    assert steps[0] < 0.01 and steps[-1] < 0.01


def test_nobody_jumps_from_place_to_place(plans):
    for script, performance, _ in plans:
        path = performance.points[:, 0]
        speed = np.linalg.norm(np.diff(path[:, [0, 2]], axis=0), axis=-1) * CLIPS.fps
        assert speed.max() < 6.0, "metres per second; the run reaches 5"
        idle = np.ones(len(speed), bool)
        for track in script.tracks:
            if track.label:
                idle[max(0, track.start - track.lead) : track.stop + track.trail] = False
        assert speed[idle].max() < 0.05


def test_everybody_stands_on_the_floor_and_stays_in_the_room(plans):
    for script, performance, room in plans:
        lowest = performance.points[..., 1].min(1)
        assert lowest.min() > 0.04
        idle = [track for track in script.tracks if track.label is None]
        assert all(lowest[track.start : track.stop].max() < 0.08 for track in idle)
        assert clearance(performance.points, room) > -0.25, "a hand may reach over a table"


def test_scripts_are_what_they_say(plans, motions):
    for script, performance, _ in plans:
        assert len(performance.points) == script.frames
        assert 20 <= script.frames / CLIPS.fps <= 60
        labels = [label for label, *_ in script.segments]
        assert all(a != b for a, b in zip(labels, labels[1:], strict=False))
        for before, after in zip(script.tracks, script.tracks[1:], strict=False):
            assert after.start - before.stop == after.lead == before.trail > 0
        for label, start, stop in script.segments:
            assert stop - start >= 1.0 * CLIPS.fps, label
            whole = label not in scripts.ANYWHERE
            assert (stop - start) / CLIPS.fps < (8.0 if whole else 4.1)
    assert [script.segments[0][0] for script, *_ in plans] == list(motions)


def test_families_follow_each_other(motions):
    rng, labels = np.random.default_rng(0), tuple(motions)
    after = [scripts.follow("kick", labels, 3.0, rng) for _ in range(4000)]
    shares = {name: after.count(name) / 4000 for name in labels}
    assert shares["kick"] == 0
    assert shares["punch"] == pytest.approx(3 / 18, abs=0.03)
    assert shares["walk"] == pytest.approx(1 / 18, abs=0.02)
    assert sorted(name for family in scripts.FAMILIES for name in family) == sorted(labels)


def test_fades_of_neighbours_sum_to_one(plans):
    for script, *_ in plans[:3]:
        frames = np.arange(script.tracks[-1].stop)
        total = sum(fade(frames, track) for track in script.tracks)
        assert np.allclose(total, 1)


# Files


def test_segments_are_a_table_of_timelines(built, motions):
    root, path = built
    rows = pd.read_csv(path)
    assert tuple(rows.columns) == SEGMENT_COLUMNS and set(rows["level"]) == {"action"}
    assert set(rows["label"]) <= set(motions)
    for split in VIDEO_SPLITS:
        timelines = load_timelines(path, root, split)
        assert len(timelines) == getattr(TINY, split)
        for timeline in timelines:
            assert TINY.shortest_s <= timeline.duration <= TINY.longest_s
            ego, exo = timeline.open(), timeline.open("exo")
            assert (ego.frames, ego.fps) == (exo.frames, exo.fps) and ego.fps == CLIPS.fps
            labels = timeline.labels_at((np.arange(ego.frames) + 0.5) / ego.fps)
            about = json.loads((timeline.path.parent / "video.json").read_text())
            expected = np.full(ego.frames, BACKGROUND, dtype="<U20")
            for label, start, stop in about["segments"]:
                expected[start:stop] = label
            assert labels.tolist() == expected.tolist()
            assert (labels == BACKGROUND).any() and labels[0] == labels[-1] == BACKGROUND


def test_people_are_those_of_the_splits_clips(built):
    rows = pd.read_csv(built[1])
    for split, of_split in rows.groupby("split"):
        known = {make_subject(CLIPS, split, n).name for n in range(CLIPS.subjects(split))}
        assert set(of_split["subject"]) <= known


def test_same_seed_same_videos_in_two_processes(built, tmp_path):
    build(tmp_path, MOTIONS, CLIPS, TINY, workers=2, progress=False)
    assert content(tmp_path) == content(built[0])


def test_videos_do_not_depend_on_the_counts(built, motions):
    many = replace(TINY, train=9)
    video = untrimmed.make_video(motions, replace(CLIPS, train=7), many, "val", 0)
    with av.open(str(built[0] / "untrimmed" / "val_video_000" / "ego.mp4")) as container:
        stored = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert stored.shape == video.pictures["ego"].shape
    assert np.abs(stored - video.pictures["ego"].astype(float)).mean() < 8


def test_resumes_after_an_interruption(built, tmp_path, monkeypatch):
    root = tmp_path / "resumed"
    shutil.copytree(built[0], root)
    expected = content(root)
    shutil.rmtree(root / "untrimmed" / "train_video_001")
    stray = root / "untrimmed" / ".train_video_001.unfinished"
    stray.mkdir()
    (stray / "ego.mp4").write_bytes(b"half a vid")
    (root / "segments.csv").unlink()
    make_video, redone = untrimmed.make_video, []
    monkeypatch.setattr(untrimmed, "make_video", lambda *args: redone.append(args[-2:]) or make_video(*args))
    build(root, MOTIONS, CLIPS, TINY, workers=1, progress=False)
    assert redone == [("train", 1)] and content(root) == expected


def test_refuses_videos_of_other_settings(built):
    with pytest.raises(ValueError, match=r"settings\.json.*kin: 3\.0 there, 1\.0 asked for.*Delete"):
        build(built[0], MOTIONS, CLIPS, replace(TINY, kin=1.0), progress=False)
    with pytest.raises(ValueError, match="joint_noise"):
        build(built[0], MOTIONS, replace(CLIPS, joint_noise=0.3), TINY, progress=False)


@pytest.mark.parametrize(
    "wrong", [{"val": 0}, {"shortest_s": 70.0}, {"bout_low_s": 0.0}, {"exo_size": 100}], ids=str
)
def test_refuses_impossible_settings(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        UntrimmedSettings(**wrong)


def test_the_card_asks_for_enough_videos():
    card = load_card("mocap")
    settings = from_mapping(UntrimmedSettings, card.preset("small").untrimmed, "small")
    assert (settings.train, settings.val, settings.test) == (60, 20, 40)
    assert (settings.shortest_s, settings.longest_s) == (20.0, 60.0)
    assert from_mapping(UntrimmedSettings, card.preset("smoke").untrimmed, "smoke").train == 2
