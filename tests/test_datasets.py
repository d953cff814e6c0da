"""Manifests from official annotations: times by hand, pairs, splits, every way in which files can be bad."""

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import trees

from uniego_utils.cards import Card, MethodCard, TeacherCard, load_card
from uniego_utils.data import assembly101, egoexo4d, egoexo_fitness, folder
from uniego_utils.data.annotated import split_off
from uniego_utils.data.manifests import UNKNOWN, hidden_labels_file, load_hidden_labels, load_manifest
from uniego_utils.data.usable import builder_module, write_manifests
from uniego_utils.data.video import open_clip
from uniego_utils.runs import read_json, read_tensors, write_tensors

TREES = {
    "egoexo_fitness": trees.build_fitness,
    "assembly101": trees.build_assembly,
    "egoexo4d": trees.build_egoexo4d,
    "folder": trees.build_folder,
}


def make_card(classes=(), viewpoint="exo"):
    teacher = TeacherCard("rgb", viewpoint, "foundation", 4, "teacher")
    return Card(
        "some", "title", "source", "licence", {f"{viewpoint}_dino": teacher}, MethodCard(), {}, tuple(classes)
    )


def annotate(name, root, classes=(), **settings):
    module = builder_module(name)
    return module.annotated(root, module.Settings(**settings), tuple(classes))


def write(annotated, root, out, viewpoint="exo", **options):
    card = make_card(annotated.classes, viewpoint)
    return write_manifests(card, annotated, root, out, workers=1, progress=False, **options)


def refusal(annotated, root, out, **options):
    """The message, and the table of missing clips that is written all the same."""
    with pytest.raises(ValueError) as told:
        write(annotated, root, out, **options)
    assert not (out / "train.csv").exists()
    return str(told.value), pd.read_csv(out / "missing.csv")


def tree(tmp_path, name, **options):
    root = tmp_path / "root"
    return root, TREES[name](root, **options)


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """A whole tree of every dataset, not to be changed."""
    return {name: (root := tmp_path_factory.mktemp(name), build(root)) for name, build in TREES.items()}


def read_all(out, classes, root):
    return {split: load_manifest(out / f"{split}.csv", classes, root) for split in ("train", "val", "test")}


# --- whole trees


@pytest.mark.parametrize("name", TREES)
def test_a_whole_tree_gives_manifests_that_load_and_read(roots, tmp_path, name):
    root, classes = roots[name]
    annotated = annotate(name, root, classes)
    summary = write(annotated, root, tmp_path)
    manifests = read_all(tmp_path, classes, root)
    usable = summary.counts["usable"]
    assert usable[["train", "val", "test"]].tolist() == [len(manifest) for manifest in manifests.values()]
    assert usable["train + val"] + usable["test"] == len(annotated.clips)
    assert summary.reasons.empty and pd.read_csv(tmp_path / "missing.csv").empty
    assert read_json(tmp_path / "classes.json") == list(classes)
    for column in ("take", "subject"):
        seen = [set(manifest.rows[column]) for manifest in manifests.values()]
        assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    for manifest in manifests.values():
        assert set(manifest.rows["label"]) == set(classes)
        for view in ("ego", "exo"):
            for row in range(0, len(manifest), 4):
                pictures = open_clip(manifest, row, view).read([5])
                assert pictures.shape[1] <= pictures.shape[2]  # upright


# --- times, pairs and labels by hand


def test_fitness_times_pairs_and_turns(roots, tmp_path):
    root, classes = roots["egoexo_fitness"]
    clips = annotate("egoexo_fitness", root, classes).clips.set_index("clip_id")
    assert len(clips) == 5 * 3 * 3  # records, actions, ego views
    first = clips.loc["Rec000_000_ego_l"]  # action 1: pictures 3 to 20, numbered from 1
    assert (first["start_s"], first["end_s"]) == (pytest.approx(2 / 30), pytest.approx(20 / 30))
    assert (first["label"], first["ego_fps"], first["exo_rotate"]) == ("Kneeling pushing-ups", 30, 0)
    assert first["exo_video"] == "frames_open/Rec000/exo_m"
    sideways = clips.loc["Rec001_001_ego_r"]
    assert (sideways["ego_video"], sideways["exo_video"]) == (
        "frames_open/Rec001/ego_r",
        "frames_open/Rec001/exo_l",
    )
    assert (sideways["ego_rotate"], sideways["exo_rotate"]) == (0, 270)
    assert set(clips.loc[clips["subject"] == "Rec004", "split"]) == {"test"}
    # stored higher than wide, and wider than high once turned
    write(annotate("egoexo_fitness", root, classes, allow_portrait=False), root, tmp_path)
    manifest = next(
        m for m in read_all(tmp_path, classes, root).values() if "Rec001" in set(m.rows["subject"])
    )
    row = int(np.flatnonzero(manifest.rows["subject"] == "Rec001")[0])
    seen = open_clip(manifest, row, "exo").read([10])[0]
    assert (
        np.abs(seen.astype(float) - trees.gratings(103)[10]).mean() < 15
    )  # as before it was laid on its side


def test_fitness_settings_choose_other_views(roots):
    root, classes = roots["egoexo_fitness"]
    clips = annotate("egoexo_fitness", root, classes, ego_views=("ego_m",), exo_views=("exo_m",)).clips
    assert len(clips) == 5 * 3
    assert clips.loc[clips["subject"] == "Rec001", "exo_video"].isna().all()
    assert annotate("egoexo_fitness", root).classes == trees.FITNESS_CLASSES  # of the annotations


def test_fitness_actions_without_a_known_split_or_record(tmp_path):
    root, classes = tree(tmp_path, "egoexo_fitness", train=2)
    path = root / "action_level_annotations.json"
    content = json.loads(path.read_text())
    content["Rec000"]["action_info"] += [[2, 300, 310], [13, 3, 20]]  # outside the sequence; no such action
    content["Gone"] = {"num_actions": 1, "action_info": [[1, 1, 30]]}
    trees.write_json(path, content)
    clips = annotate("egoexo_fitness", root, classes).clips
    record = clips[clips["subject"] == "Rec000"]
    assert record["reason"].isna().all()  # all of the record's sequences are of one side
    assert record["split"].nunique() == 1
    assert set(clips.loc[clips["subject"] == "Gone", "reason"]) == {"record absent from meta_records.json"}
    message, missing = refusal(annotate("egoexo_fitness", root, classes), root, tmp_path / "out")
    counts = missing["reason"].value_counts()
    assert counts["label outside the classes"] == 3 and counts["video ends before its annotation"] == 3


def test_assembly_times_pairs_and_segments(roots):
    root, classes = roots["assembly101"]
    annotated = annotate("assembly101", root, classes)
    clips = annotated.clips.set_index("clip_id")
    assert len(clips) == 12 * 3 and annotated.clips["label"].value_counts().tolist() == [12] * 3
    second = clips.loc["train_3"]  # frames 20 to 38; rows 0, 3, 6 are the first recording's ego rows
    assert (second["start_s"], second["end_s"]) == (pytest.approx(20 / 30), pytest.approx(38 / 30))
    assert (second["subject"], second["label"], second["caption"]) == ("9011", "put down", "put down wheel")
    assert second["ego_video"] == f"recordings/{trees.sequence_name(0)}/HMC_84358933_mono10bit.mp4"
    assert second["exo_video"] == f"recordings/{trees.sequence_name(0)}/C10118_rgb.mp4"
    assert clips["ego_video"].str.contains("HMC_21179183").sum() == 6 * 3
    shifted = annotate("assembly101", root, classes, first_frame=1).clips.set_index("clip_id")
    assert shifted.loc["train_3", "start_s"] == pytest.approx(19 / 30)
    coarse = annotated.segments[annotated.segments["level"] == "coarse"]
    assert len(coarse) == 12 * 2 and set(coarse["label"]) == {"attach wheel 0", "attach wheel 1"}
    assert (coarse.iloc[1]["start_s"], coarse.iloc[1]["end_s"]) == (
        pytest.approx(20 / 30),
        pytest.approx(38 / 30),
    )
    for level, rows in annotated.segments.groupby("level"):  # both levels and the clips agree on the splits
        assert dict(zip(rows["take"], rows["split"], strict=True)) == dict(
            zip(clips["take"], clips["split"], strict=True)
        ), level


def test_assembly_skeletons(roots, tmp_path):
    root, classes = roots["assembly101"]
    annotated = annotate("assembly101", root, classes)
    write(annotated, root, tmp_path, splits_with_skeleton=("train",))
    manifests = read_all(tmp_path, classes, root)
    assert "skeleton" not in manifests["test"].rows
    assert len(list((tmp_path / "skeletons").iterdir())) == len(manifests["train"])
    row = manifests["train"].rows.iloc[4]
    joints = read_tensors(manifests["train"].path(4, "skeleton"))["joints_3d"]
    poses = json.loads((root / f"AssemblyPoses/landmarks3D/{row['take']}.json").read_text())
    start = round(row["start_s"] * 60)
    assert joints.shape == (2, 36, 21, 3)  # 0.6 s at 60 a second
    for frame, hand in ((0, 0), (17, 1), (35, 0)):
        assert torch.allclose(joints[hand, frame], torch.tensor(poses[str(start + frame)][str(hand)]) / 1000)


def test_assembly_skeletons_are_kept_until_their_span_changes(roots, tmp_path):
    root, classes = roots["assembly101"]
    splits = ("train", "val", "test")
    write(annotate("assembly101", root, classes), root, tmp_path, splits_with_skeleton=splits)
    path = tmp_path / "skeletons/train_3.safetensors"
    before = path.stat().st_mtime_ns
    write(annotate("assembly101", root, classes), root, tmp_path, splits_with_skeleton=splits)
    assert path.stat().st_mtime_ns == before
    write(annotate("assembly101", root, classes, first_frame=1), root, tmp_path, splits_with_skeleton=splits)
    assert path.stat().st_mtime_ns > before


def test_assembly_poses_with_gaps(tmp_path):
    root, classes = tree(tmp_path, "assembly101", train=4, test=1)
    folder = root / "AssemblyPoses/landmarks3D"
    (folder / f"{trees.sequence_name(0)}.json").unlink()
    path = folder / f"{trees.sequence_name(4)}.json"
    poses = json.loads(path.read_text())
    for frame in range(10, 16):
        poses[str(frame)]["1"] = np.zeros((21, 3)).tolist()  # an untracked hand is no pose
    poses = {frame: hands for frame, hands in poses.items() if not 76 <= int(frame) < 100}
    trees.write_json(path, poses)
    splits = ("train", "val", "test")
    annotated = annotate("assembly101", root, classes)
    message, missing = refusal(annotated, root, tmp_path / "out", splits_with_skeleton=splits)
    assert missing["reason"].value_counts().to_dict() == {
        "no skeleton: no published hand poses": 3,
        "no skeleton: both hands in less than 50% of its poses": 1,
    }
    write(annotated, root, tmp_path / "out", splits_with_skeleton=splits, allow_missing=0.3)
    test = load_manifest(tmp_path / "out/test.csv", classes, root)
    joints = read_tensors(test.path(0, "skeleton"))["joints_3d"]
    assert joints.shape == (2, 30, 21, 3) and (joints != 0).any(-1).all()  # 36 poses, of which 6 lack a hand


def test_estimated_skeletons(roots, tmp_path):
    root, classes = roots["egoexo4d"]
    asked = []

    def estimate(manifest):
        asked.append(manifest.split)
        assert open_clip(manifest, 0, "exo").frames == 60
        rows = [(clip, f"{clip}.safetensors", "") for clip in manifest.rows["clip_id"]]
        for name in (row[1] for row in rows):
            write_tensors(tmp_path / "skeletons" / name, {"exo_joints_2d": torch.ones(4, 17, 2)})
        if manifest.split == "val":
            rows[0] = (rows[0][0], "", "nobody is seen")
        return pd.DataFrame(rows, columns=["clip_id", "skeleton", "reason"])

    options = {"splits_with_skeleton": ("train", "val"), "estimators": {"skeleton": estimate}}
    annotated = annotate("egoexo4d", root, val_share=0.3)
    message, missing = refusal(annotated, root, tmp_path, **options)
    assert missing["reason"].tolist() == ["no skeleton: nobody is seen"] and asked == ["train", "val"]
    write(annotated, root, tmp_path, allow_missing=0.03, **options)
    manifests = read_all(tmp_path, classes, root)
    assert "skeleton" not in manifests["test"].rows
    for row, clip in enumerate(manifests["train"].rows["clip_id"]):
        assert manifests["train"].path(row, "skeleton") == tmp_path / f"skeletons/{clip}.safetensors"
    assert not set(manifests["val"].rows["clip_id"]) & set(missing["clip_id"])


def test_nothing_is_estimated_while_files_are_missing(tmp_path):
    root, classes = tree(tmp_path, "folder", subjects=4)
    (root / "head/00.mp4").unlink()

    def estimate(manifest):
        raise AssertionError("asked for skeletons")

    options = {"splits_with_skeleton": ("train",), "estimators": {"skeleton": estimate}}
    refusal(annotate("folder", root), root, tmp_path / "out", **options)


def test_assembly_reads_both_formats_of_poses(roots, tmp_path):
    root, _ = roots["assembly101"]
    name = f"{trees.sequence_name(0)}.json"
    poses = json.loads((root / "AssemblyPoses/landmarks3D" / name).read_text())
    listed = [{"landmarks": poses[str(frame)], "tracking_confidence": {}} for frame in range(len(poses))]
    trees.write_json(tmp_path / name, listed)
    clip = pd.Series({"take": trees.sequence_name(0), "start_s": 0.5, "end_s": 1.0})
    old, new = (
        assembly101.HandPoses(place, 60.0, 0.5, 0.001)(clip)["joints_3d"]
        for place in (tmp_path, root / "AssemblyPoses/landmarks3D")
    )
    assert torch.equal(old, new) and old.shape == (2, 30, 21, 3)


def test_egoexo4d_times_cameras_and_labels(roots, tmp_path):
    root, classes = roots["egoexo4d"]
    annotated = annotate("egoexo4d", root)
    assert annotated.classes == classes == ("Cut the cucumber", "Stir the pan", "Remove the wheel")
    clips = annotated.clips.set_index("clip_id")
    second = clips.loc["cmu_bike00_0_0001"]
    assert (second["start_s"], second["end_s"]) == (pytest.approx(20 / 30), pytest.approx(38 / 30))
    assert (second["label"], second["subject"]) == ("Stir the pan", "500")
    folder = "takes/cmu_bike00_0/frame_aligned_videos/downscaled/448"
    assert (
        second["ego_video"] == f"{folder}/aria01_214-1.mp4" and second["exo_video"] == f"{folder}/cam02.mp4"
    )
    named = clips[clips["take"] == "cmu_bike01_1"]["exo_video"]  # without best_exo
    assert named.str.endswith("cam02.mp4").tolist() == [True] * 3
    full = annotate("egoexo4d", root, downscaled="").clips["ego_video"]
    assert full[0] == "takes/cmu_bike00_0/frame_aligned_videos/aria01_214-1.mp4"
    segments = annotated.segments
    assert set(segments["level"]) == {"keystep"} and len(segments) == len(clips)


def test_egoexo4d_takes_the_camera_named_most_often():
    moments = [(0.1, "cam01"), (0.2, "cam01"), (0.5, "cam02"), (3.0, "cam01")]
    assert egoexo4d._most_named(moments, 0.4, 0.6) == "cam02"
    assert egoexo4d._most_named(moments, 0.0, 0.6) == "cam01"
    assert egoexo4d._most_named(moments, 1.0, 2.0) == "cam01"  # never during the step
    assert egoexo4d._most_named([], 0.0, 1.0) is None


def test_egoexo4d_label_maps(tmp_path):
    root, classes = tree(tmp_path, "egoexo4d")
    path = root / "annotations/keystep_val.json"
    content = json.loads(path.read_text())
    segments = content["annotations"]["uid-0009"]["segments"]
    segments[0] |= {"step_unique_id": 99, "step_name": "Only here"}
    trees.write_json(path, content)
    clips = annotate("egoexo4d", root).clips
    assert clips["reason"].dropna().tolist() == ["step outside the labels of 'annotations'"]
    table = root / "annotations/keystep_benchmark/label_mapping.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0], "31,Mix,1", "20,Mix,0"]))
    annotated = annotate("egoexo4d", root, label_map="benchmark")
    assert annotated.classes == ("Mix (20)", "Mix (31)")  # by label_id; a name that two ids share
    assert annotated.clips["reason"].value_counts().to_dict() == {
        "step outside the labels of 'benchmark'": 13
    }
    with pytest.raises(ValueError, match="unknown label_map 'all'; choose one of benchmark, annotations"):
        annotate("egoexo4d", root, label_map="all")


# --- own videos


def test_own_videos_of_the_head_alone(tmp_path):
    root, classes = tree(tmp_path, "folder", exo=False)
    annotated = annotate("folder", root)
    assert annotated.classes == classes
    write(annotated, root, tmp_path / "out", viewpoint="ego")
    manifest = load_manifest(tmp_path / "out/train.csv", classes, root, views=("ego",))
    assert manifest.rows["exo_video"].isna().all()
    message, missing = refusal(annotated, root, tmp_path / "other")  # a card with exo teachers
    assert "36 x no exo video" in message


def test_own_videos_whole_and_labelled_by_their_folder(tmp_path):
    for number in range(4):
        for label in ("jump", "walk"):
            trees.write_video(tmp_path / f"{label}/{number}.mp4", trees.gratings(number, seconds=1.0))
    trees.write_pictures(tmp_path / "jump/pictures", trees.gratings(9, seconds=0.5))
    paths = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*/*"))
    table = pd.DataFrame(
        {"ego_video": paths, "ego_fps": [10 if "pictures" in path else np.nan for path in paths]}
    )
    table.to_csv(tmp_path / "labels.csv", index=False)
    annotated = annotate("folder", tmp_path)
    assert annotated.classes == ("jump", "walk") and set(annotated.inferred) == {"label", "split"}
    write(annotated, tmp_path, tmp_path / "out", viewpoint="ego")
    rows = pd.concat(
        load_manifest(tmp_path / f"out/{split}.csv", ("jump", "walk"), tmp_path, views=("ego",)).rows
        for split in ("train", "val", "test")
    )
    ends = rows.set_index("ego_video")["end_s"]
    assert ends["jump/pictures"] == 1.5 and ends.drop("jump/pictures").unique().tolist() == [1.0]


def test_a_video_that_changes_after_it_was_looked_at_is_noticed(tmp_path):
    root, classes = tree(tmp_path, "folder")
    write(annotate("folder", root), root, tmp_path / "out")
    before = load_manifest(tmp_path / "out/train.csv", classes, root)
    video = before.path(0, "exo_video")
    trees.write_video(video, trees.gratings(77))
    with pytest.raises(ValueError, match=r"3 of \d+ rows have a video that has changed since notebook 00"):
        load_manifest(tmp_path / "out/train.csv", classes, root)
    write(annotate("folder", root), root, tmp_path / "out")  # looks at it again
    assert load_manifest(tmp_path / "out/train.csv", classes, root).digest != before.digest


def test_own_clips_may_bring_their_names(tmp_path):
    trees.build_folder(tmp_path, 2)
    table = pd.read_csv(tmp_path / "labels.csv")
    names = [f"walk-{number}" for number in range(len(table))]
    table.assign(clip_id=names).to_csv(tmp_path / "labels.csv", index=False)
    assert list(annotate("folder", tmp_path).clips["clip_id"]) == names


def with_pairs(card):
    return replace(card, pairs="unlabelled", splits=(*card.splits, "unlabelled"))


@pytest.fixture
def half_labelled(tmp_path):
    """Twelve people with three clips each, of which the last four people have no labels; their labels."""
    trees.build_folder(tmp_path, subjects=12)
    path = tmp_path / "labels.csv"
    table = pd.read_csv(path)
    hidden = table["label"].where(table.index >= 24)
    table.assign(label=table["label"].where(table.index < 24)).to_csv(path, index=False)
    return hidden.dropna().tolist()


def test_own_clips_without_a_label_are_pairs(half_labelled, tmp_path):
    annotated = annotate("folder", tmp_path)
    assert annotated.classes == ("a", "b", "c")
    card = with_pairs(make_card())
    summary = write_manifests(card, annotated, tmp_path, tmp_path / "out", progress=False, workers=1)
    assert summary.counts.loc["unlabelled", "usable"] == 12
    pairs = load_manifest(tmp_path / "out/unlabelled.csv", annotated.classes, tmp_path, labelled=False)
    assert pairs.labels == [UNKNOWN] * 12 and not hidden_labels_file(pairs).exists()
    others = [
        set(load_manifest(tmp_path / f"out/{split}.csv", annotated.classes, tmp_path).rows["subject"])
        for split in ("train", "val", "test")
    ]
    assert not set(pairs.rows["subject"]) & set.union(*others) and sum(map(len, others)) == 8


def test_labels_of_own_pairs_are_hidden(half_labelled, tmp_path):
    path = tmp_path / "labels.csv"
    table = pd.read_csv(path)
    splits = ["train"] * 12 + ["val"] * 6 + ["test"] * 6 + ["unlabelled"] * 12
    table.assign(label=[*"abc"] * 12, split=splits, caption="does a").to_csv(path, index=False)
    card = with_pairs(make_card())
    annotated = annotate("folder", tmp_path)
    write_manifests(card, annotated, tmp_path, tmp_path / "out", progress=False, workers=1)
    pairs = load_manifest(tmp_path / "out/unlabelled.csv", annotated.classes, tmp_path, labelled=False)
    assert [annotated.classes[label] for label in load_hidden_labels(pairs)] == half_labelled
    assert pairs.rows.get("caption") is None, "a caption may name the label"
    table.assign(label=[*"abc"] * 8 + [None] * 12, split=splits).to_csv(path, index=False)
    write_manifests(card, annotate("folder", tmp_path), tmp_path, tmp_path / "out", progress=False, workers=1)
    assert not hidden_labels_file(pairs).exists(), "labels of an earlier table"


def test_people_in_the_pairs_are_dealt_to_no_other_split(half_labelled, tmp_path):
    """Who has a clip without a label is in train with the others, never in validation or test."""
    path = tmp_path / "labels.csv"
    table = pd.read_csv(path)
    table.loc[range(0, 24, 3), "label"] = np.nan  # of all the rest one clip
    table.loc[[0, 3, 6], "label"] = "a"  # but of three people
    table.to_csv(path, index=False)
    clips = annotate("folder", tmp_path, val_share=0.5, test_share=0.5).clips
    people = {split: set(rows["subject"]) for split, rows in clips.groupby("split")}
    dealt = people["test"] | people.get("val", set())
    assert dealt and not people["unlabelled"] & dealt
    assert dealt <= {f"person {number}" for number in range(3)}


def test_clips_without_a_label_are_refused_where_the_card_has_no_pairs(half_labelled, tmp_path):
    with pytest.raises(ValueError, match="12 clips have no label.*`pairs: unlabelled`"):
        write(annotate("folder", tmp_path), tmp_path, tmp_path / "out")


def test_pairs_that_are_not_there_are_refused(tmp_path):
    trees.build_folder(tmp_path, subjects=6)
    for card, message in (
        (with_pairs(make_card()), "no usable clips in unlabelled"),
        (replace(make_card(), pairs="more"), "pairs is 'more'; the split of found clips is unlabelled"),
    ):
        with pytest.raises(ValueError, match=message):
            write_manifests(card, annotate("folder", tmp_path), tmp_path, tmp_path / "out", progress=False)


def test_own_splits_are_kept_and_bad_tables_refused(tmp_path):
    trees.build_folder(tmp_path, subjects=3)
    path = tmp_path / "labels.csv"
    table = pd.read_csv(path)
    table.assign(split=["train"] * 3 + ["val"] * 3 + ["test"] * 3).to_csv(path, index=False)
    assert annotate("folder", tmp_path).clips["split"].value_counts().to_dict() == dict(
        train=3, val=3, test=3
    )
    table.assign(split="training").to_csv(path, index=False)
    with pytest.raises(
        ValueError, match=r"9 of 9 rows have a split other than train, val, test, unlabelled \(line 2, line 3"
    ):
        annotate("folder", tmp_path)
    table.assign(labl=1).to_csv(path, index=False)
    with pytest.raises(ValueError, match="unknown columns labl"):
        annotate("folder", tmp_path)
    table.assign(label=["a", None] + ["b"] * 7, split="train").to_csv(path, index=False)
    with pytest.raises(ValueError, match=r"1 of 9 rows have no label \(line 3\)"):
        annotate("folder", tmp_path)
    table.assign(label=["a", None] + ["b"] * 7, split="unlabelled").to_csv(path, index=False)
    with pytest.raises(ValueError, match=r"8 of 9 rows have a label, but others of unlabelled have none"):
        annotate("folder", tmp_path)
    table.drop(columns="ego_video").to_csv(path, index=False)
    with pytest.raises(ValueError, match="no column ego_video"):
        annotate("folder", tmp_path)


# --- bad files


def test_every_bad_file_is_counted_and_named(tmp_path):
    root, classes = tree(tmp_path, "assembly101", train=14, test=3)
    videos = [root / "recordings" / trees.sequence_name(number) for number in range(17)]
    ego = [videos[number] / f"{trees.EGO_VIEWS[number % 2]}.mp4" for number in range(17)]
    pictures = trees.gratings(0)
    trees.halve(ego[0])
    (videos[1] / "C10118_rgb.mp4").write_bytes(b"")
    trees.write_video(videos[2] / "C10118_rgb.mp4", pictures, fps=25)
    (videos[3] / "C10118_rgb.mp4").unlink()
    ego[4].unlink()
    trees.write_video(videos[5] / "C10118_rgb.mp4", np.rot90(pictures, 1, (1, 2)))
    trees.write_video(videos[6] / "C10118_rgb.mp4", pictures, rotation=90)  # upright only as portrait
    trees.write_video(videos[7] / "C10118_rgb.mp4", pictures[:20])  # whole, but too short for two of three
    (videos[8] / "C10118_rgb.mp4").write_text("no video")
    annotated = annotate("assembly101", root, classes)
    message, missing = refusal(annotated, root, tmp_path / "out")
    clips = missing[~missing["reason"].str.startswith("segmentation")]
    reasons = clips["reason"].str.replace(r"\d+ of 60", "n of 60", regex=True).value_counts().to_dict()
    assert reasons == {
        "truncated: n of 60 frames": 3,
        "empty file": 3,
        "frame rate 25.0, expected 30.0": 3,
        "no exo video": 3,
        "no ego video": 3,
        "portrait picture": 6,
        "video ends before its annotation": 2,
        "unreadable: Invalid data found when processing input": 3,
    }
    assert set(missing.loc[missing["reason"].str.startswith("segm"), "clip_id"]) == {
        name
        for number in (0, 4)
        for name in (trees.sequence_name(number), f"assembly_{trees.sequence_name(number)}")
    }
    assert re.search(
        r"26 of 51 clips and 4 videos to segment cannot be used \(.*6 x portrait picture", message
    )
    assert "missing.csv; fetch their files again, or do without them by allow_missing=0.51" in message
    counted = pd.read_csv(tmp_path / "out/reasons.csv")
    assert counted["clips"].sum() == len(missing) and set(counted) == {"split", "reason", "clips"}

    share = float(re.search(r"allow_missing=([\d.]+)", message)[1])  # what the message offers is enough
    summary = write(annotated, root, tmp_path / "out", allow_missing=share)
    manifests = read_all(tmp_path / "out", classes, root)
    listed = set(missing["clip_id"])
    assert not any(listed & set(manifest.rows["clip_id"]) for manifest in manifests.values())
    assert sum(map(len, manifests.values())) == 51 - len(clips)
    segments = pd.read_csv(tmp_path / "out/segments.csv")
    assert not listed & set(segments["video_id"])
    assert summary.counts.loc["train + val", ["annotated", "published"]].tolist() == [42, 46202]
    usable = summary.counts["usable"]
    assert usable["train"] + usable["val"] == usable["train + val"] == 42 - len(clips)


def test_a_clip_whose_video_is_turned_twice_is_refused(tmp_path):
    root, classes = tree(tmp_path, "egoexo4d", train=3, test=1)
    folder = root / "takes/cmu_bike00_0/frame_aligned_videos/downscaled/448"
    trees.write_video(folder / "aria01_214-1.mp4", trees.gratings(0, size=(96, 96)), rotation=90)
    annotated = annotate("egoexo4d", root, ego_rotate=90)
    message, missing = refusal(annotated, root, tmp_path / "out")
    assert missing.loc[missing["split"] != "test", "reason"].value_counts()["rotated by its header"] == 3
    write(annotate("egoexo4d", root), root, tmp_path / "fine")  # decord turns it; the annotation does not


def test_portrait_videos_may_be_allowed(tmp_path):
    root, classes = tree(tmp_path, "folder", subjects=4)
    trees.write_video(root / "head/00.mp4", np.rot90(trees.gratings(0), 1, (1, 2)))
    message, missing = refusal(annotate("folder", root), root, tmp_path / "out")
    assert missing["reason"].tolist() == ["portrait picture"] * 3
    write(annotate("folder", root, allow_portrait=True), root, tmp_path / "out")


def test_a_gap_in_a_folder_of_pictures(tmp_path):
    root, classes = tree(tmp_path, "egoexo_fitness")
    (root / "frames_open/Rec002/exo_m/frame_0000000033.jpg").unlink()
    (root / "frames_open/Rec003/ego_l/frame_0000000001.jpg").write_bytes(b"")
    message, missing = refusal(annotate("egoexo_fitness", root, classes), root, tmp_path / "out")
    assert missing["reason"].value_counts().to_dict() == {
        "frame gap: no picture 33": 9,
        "unreadable: picture frame_0000000001.jpg": 3,
    }


def test_annotations_of_absent_takes(tmp_path):
    root, classes = tree(tmp_path, "egoexo4d")
    takes = json.loads((root / "takes.json").read_text())
    del takes[3]["frame_aligned_videos"]["aria01"]
    takes[4]["best_exo"] = "cam09"
    trees.write_json(root / "takes.json", takes[1:])
    message, missing = refusal(annotate("egoexo4d", root), root, tmp_path / "out")
    clips = missing[~missing["reason"].str.startswith("segmentation")]
    assert clips["reason"].value_counts().to_dict() == {
        "take absent from takes.json": 3,
        "no ego video": 3,
        "no exo video": 3,
    }
    assert "cmu_bike00_0_0000" in message


def test_short_clips_are_left_out(tmp_path):
    root, classes = tree(tmp_path, "folder", subjects=4)
    table = pd.read_csv(root / "labels.csv")
    table.loc[0, "end_s"] = table.loc[0, "start_s"] + 0.05
    table.loc[1, "start_s"] = table.loc[1, "end_s"] + 0.1  # ends before it starts
    table.loc[2, ["start_s", "end_s"]] = 2.1, 2.4  # within the tolerance, but nothing of it is there
    table.to_csv(root / "labels.csv", index=False)
    _, missing = refusal(annotate("folder", root), root, tmp_path / "out")
    assert missing["reason"].tolist() == ["shorter than 0.1 s"] * 2 + ["video ends before its annotation"]


@pytest.mark.parametrize(
    "name, file",
    [
        ("egoexo_fitness", "meta_records.json"),
        ("egoexo_fitness", "substep_level_annotations.json"),
        ("assembly101", "fine-grained-annotations/validation.csv"),
        ("assembly101", "coarse-annotations/coarse_seq_views.txt"),
        ("egoexo4d", "takes.json"),
        ("egoexo4d", "annotations/keystep_val.json"),
        ("folder", "labels.csv"),
    ],
)
def test_a_missing_annotation_says_where_to_get_it(roots, tmp_path, name, file):
    root, classes = roots[name]
    for path in root.rglob("*"):  # the annotations alone, one of them left out
        if (
            path.suffix in (".json", ".csv", ".txt")
            and path != root / file
            and "landmarks3D" not in path.parts
        ):
            copy = tmp_path / path.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    with pytest.raises(FileNotFoundError) as told:
        annotate(name, tmp_path, classes)
    assert str(tmp_path / file) in str(told.value)
    assert builder_module(name).LAYOUT in str(told.value) and "get it from" in str(told.value)


def test_clips_of_classes_that_nothing_can_be_trained_on_are_left_out_and_told(roots, tmp_path):
    root, classes = roots["egoexo4d"]
    annotated = annotate("egoexo4d", root, classes)
    first = annotated.clips["label"] == classes[0]
    clips = annotated.clips[~(first & (annotated.clips["split"] == "train"))]
    summary = write(replace(annotated, clips=clips), root, tmp_path)  # no file could cure that
    assert summary.reasons["reason"].unique().tolist() == ["class without training clips"]
    assert summary.reasons["clips"].sum() == (clips["label"] == classes[0]).sum()
    assert classes[0] in summary.absent and classes[0] not in set(pd.read_csv(tmp_path / "test.csv")["label"])


def test_a_split_without_clips_is_refused(roots, tmp_path):
    root, _ = roots["egoexo4d"]
    with pytest.raises(
        ValueError, match="no usable clips in val; see .*reasons.csv and the settings val_share"
    ):
        write(annotate("egoexo4d", root, val_share=0.0), root, tmp_path)


def test_damage_is_told_where_clips_last_as_long_as_their_videos(tmp_path):
    for number in range(6):
        for view in ("head", "room"):
            trees.write_video(tmp_path / f"{view}/{number}.mp4", trees.gratings(number, seconds=0.5))
    table = {
        "ego_video": [f"head/{n}.mp4" for n in range(6)],
        "exo_video": [f"room/{n}.mp4" for n in range(6)],
    }
    pd.DataFrame(table | {"label": ["a", "b"] * 3}).to_csv(tmp_path / "labels.csv", index=False)
    (tmp_path / "head/0.mp4").unlink()
    (tmp_path / "room/1.mp4").write_bytes(b"")
    (tmp_path / "head/2.mp4").write_bytes(b"no video")
    message, missing = refusal(annotate("folder", tmp_path), tmp_path, tmp_path / "out")
    assert "1 x no ego video" in message and "1 x empty file" in message and len(missing) >= 3


def test_classes_that_a_part_of_a_dataset_lacks_are_told(roots, tmp_path):
    root, classes = roots["egoexo4d"]
    assert write(annotate("egoexo4d", root, (*classes, "Never")), root, tmp_path).absent == ("Never",)


def test_split_off_keeps_training_clips_of_every_class():
    clips = pd.DataFrame({"take": [f"t{i}" for i in range(300)], "split": "train", "label": "common"})
    clips.loc[:9, "label"] = [f"rare {i}" for i in range(10)]  # one take each
    moved = split_off(clips, "take", 0.2, "val")
    assert 35 < (moved["split"] == "val").sum() < 85
    assert (moved.loc[:9, "split"] == "train").all()
    shuffled = split_off(clips.sample(frac=1, random_state=0), "take", 0.2, "val").sort_index()
    assert (shuffled["split"] == moved["split"]).all()
    fewer = split_off(clips[100:], "take", 0.2, "val")  # the names decide, not the others
    assert (fewer["split"] == moved["split"][100:]).all()
    assert (split_off(clips, "take", 1e-9, "val")["split"] == "val").sum() == 1  # at least one
    assert (split_off(clips, "take", 0.0, "val")["split"] == "train").all()


@pytest.mark.parametrize("name", ["egoexo_fitness", "assembly101", "egoexo4d"])
def test_the_cards_name_their_builders_and_the_papers_settings(name):
    card = load_card(name)
    module = builder_module(card.builder)
    assert card.views == ("ego", "exo")
    for preset in card.presets.values():
        module.Settings(**preset.data)
    expected = {"egoexo_fitness": (1, 1.0, 12), "assembly101": (1, 5.0, 24), "egoexo4d": (2, 1.0, 0)}[name]
    assert (card.method.k, card.method.beta_logit, len(card.classes)) == expected
    assert (card.method.lambda_feat, card.method.beta_feat, card.method.tau) == (5.0, 5.0, 1.0)


def test_settings_that_were_inferred_are_told(roots):
    for name, module in (
        ("egoexo_fitness", egoexo_fitness),
        ("assembly101", assembly101),
        ("egoexo4d", egoexo4d),
    ):
        root, classes = roots[name]
        assert annotate(name, root, classes).inferred == module.INFERRED != {}
    assert folder.LAYOUT.startswith("labels.csv")
