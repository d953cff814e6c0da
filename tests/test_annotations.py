"""Annotation files that are damaged, of another format, or say no times."""

import json
import os

import numpy as np
import pandas as pd
import pytest
import torch
import trees

from uniego_utils.data import assembly101, egoexo4d, egoexo_fitness
from uniego_utils.data.annotated import read_table
from uniego_utils.data.usable import builder_module

NO_TIME, BACKWARDS = "no time in the annotation", "annotation ends before it starts"
FINE = "fine-grained-annotations/train.csv"
COARSE = "coarse-annotations/"
LABELS = f"{COARSE}coarse_labels/assembly_{trees.sequence_name(0)}.txt"
KEYSTEPS = "annotations/keystep_train.json"


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Annotations are read without their videos."""
    monkeypatch.setattr(trees, "write_video", lambda *args, **options: None)
    monkeypatch.setattr(trees, "write_pictures", lambda *args, **options: None)


def annotate(name, root, **settings):
    module = builder_module(name)
    return module.annotated(root, module.Settings(**settings), ())


def refusal(name, root, **settings):
    with pytest.raises(ValueError) as told:
        annotate(name, root, **settings)
    message = str(told.value)
    assert "\n" not in message and str(root) in message
    return message


def change(path, edit):
    """Apply `edit` to the content of a JSON file."""
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


# --- times


def test_fitness_actions_without_times(tmp_path):
    trees.build_fitness(tmp_path)

    def edit(content):
        content["Rec000"]["action_info"] = [[1, None, 20], [2, 21, float("nan")], [3, 39, 30], [1, 5, 5]]

    change(tmp_path / "action_level_annotations.json", edit)
    clips = annotate("egoexo_fitness", tmp_path, ego_views=("ego_m",)).clips.set_index("clip_id")
    clips = clips.loc[[f"Rec000_{number:03d}_ego_m" for number in range(4)]]
    assert clips["reason"].fillna("").tolist() == [NO_TIME, NO_TIME, BACKWARDS, ""]
    assert clips["start_s"].tolist()[:2] == [0.0, pytest.approx(20 / 30)]
    assert (clips["end_s"] == clips["start_s"]).tolist()[:2] == [True, True]


def test_assembly_rows_without_times_are_no_segments(tmp_path):
    trees.build_assembly(tmp_path)
    path = tmp_path / FINE
    table = pd.read_csv(path, dtype={"start_frame": object, "end_frame": object})
    table.loc[0, "end_frame"], table.loc[3, "start_frame"], table.loc[6, "end_frame"] = None, "soon", 1
    table.to_csv(path, index=False)
    annotated = annotate("assembly101", tmp_path)
    clips = annotated.clips.set_index("clip_id").loc[["train_0", "train_3", "train_6"]]
    assert clips["reason"].tolist() == [NO_TIME, NO_TIME, BACKWARDS]
    assert not clips[["start_s", "end_s"]].isna().any(axis=None)
    fine = annotated.segments[annotated.segments["level"] == "fine"]
    assert len(fine) == len(annotated.clips) - 3 and (fine["end_s"] > fine["start_s"]).all()


def test_keysteps_without_times_or_names(tmp_path):
    trees.build_egoexo4d(tmp_path)

    def edit(content):
        steps = content["annotations"]["uid-0000"]["segments"]
        steps[0]["start_time"] = None
        del steps[1]["end_time"]
        steps[2]["end_time"] = 0.1
        steps = content["annotations"]["uid-0002"]["segments"]
        del steps[0]["step_unique_id"], steps[1]["step_name"]
        del content["annotations"]["uid-0003"]["segments"]

    change(tmp_path / KEYSTEPS, edit)
    annotated = annotate("egoexo4d", tmp_path)
    clips = annotated.clips.set_index("clip_id")["reason"]
    assert clips[[f"cmu_bike00_0_000{place}" for place in range(3)]].tolist() == [NO_TIME, NO_TIME, BACKWARDS]
    assert clips["cmu_bike02_2_0000"] == "step outside the labels of 'annotations'"
    assert clips[["cmu_bike02_2_0001", "cmu_bike02_2_0002"]].isna().all()  # others name the step
    assert len(clips) == 12 * 3 - 3 and len(annotated.segments) == len(clips) - 4
    assert not annotated.clips[["start_s", "end_s"]].isna().any(axis=None)


def test_takes_without_files(tmp_path):
    trees.build_egoexo4d(tmp_path)

    def edit(takes):
        del takes[0]["frame_aligned_videos"]
        takes[2]["root_dir"] = None
        del takes[3]["frame_aligned_videos"]["cam02"]["0"]["relative_path"]

    change(tmp_path / "takes.json", edit)
    clips = annotate("egoexo4d", tmp_path).clips
    reasons = clips.drop_duplicates("take").set_index("take")["reason"]
    assert reasons["cmu_bike00_0"] == "take without frame_aligned_videos in takes.json"
    assert reasons["cmu_bike02_2"] == "take without root_dir in takes.json"
    assert clips.loc[clips["take"] == "cmu_bike03_3", "exo_video"].isna().all()


def test_ids_that_share_a_name_keep_whole_numbers(tmp_path):
    trees.build_egoexo4d(tmp_path)
    for split in ("train", "val"):
        path = tmp_path / f"annotations/keystep_{split}.json"
        path.write_text(path.read_text().replace(trees.STEPS[31], trees.STEPS[20]))
    assert annotate("egoexo4d", tmp_path).classes[:2] == ("Cut the cucumber (20)", "Cut the cucumber (31)")


def test_fitness_views_without_path(tmp_path):
    trees.build_fitness(tmp_path)
    change(tmp_path / "meta_records.json", lambda meta: meta["records"][0]["frames"]["ego_l"].pop("path"))
    reasons = annotate("egoexo_fitness", tmp_path).clips.set_index("clip_id")["reason"].dropna()
    assert reasons.to_dict() == {
        f"Rec000_00{number}_ego_l": "ego_l without path in meta_records.json" for number in range(3)
    }


# --- whole files


@pytest.mark.parametrize(
    "name, file, text, told",
    [
        ("egoexo4d", "takes.json", "{}", "is not a list; get it again from"),
        ("egoexo4d", "takes.json", "[{}]", "takes.json, take 0: expected a text 'take_uid'"),
        ("egoexo4d", "takes.json", "[", "is damaged"),
        ("egoexo4d", "takes.json", b"\xff\xfe[", "is not UTF-8 text"),
        ("egoexo4d", KEYSTEPS, "[]", "is not a mapping"),
        ("egoexo4d", KEYSTEPS, '{"annotations": []}', "expected a mapping 'annotations'"),
        ("egoexo4d", KEYSTEPS, '{"annotations": {}}', "keystep_train.json has no segments"),
        ("egoexo4d", KEYSTEPS, '{"annotations": {"u": {}}}', "take u: expected a text 'take_name'"),
        ("egoexo_fitness", "action_level_annotations.json", "{}", "has no actions"),
        ("egoexo_fitness", "action_level_annotations.json", '{"R": {}}', "record R: expected a list"),
        (
            "egoexo_fitness",
            "action_level_annotations.json",
            '{"R": {"action_info": [[1, 2]]}}',
            r"record R: action_info 0 is [1, 2], not three integers",
        ),
        (
            "egoexo_fitness",
            "action_level_annotations.json",
            '{"R": {"action_info": [[1, "a", 3]]}}',
            r"action_info 0 is [1, 'a', 3], not three integers",
        ),
        ("egoexo_fitness", "meta_records.json", "{}", "expected a list 'records'"),
        ("egoexo_fitness", "meta_records.json", '{"records": [{}]}', "record 0: expected a mapping 'frames'"),
        ("egoexo_fitness", "substep_level_annotations.json", "{}", "expected a list 'classes'"),
        ("assembly101", FINE, "", "train.csv is empty"),
        ("assembly101", FINE, "id,video\n", "has no column start_frame, end_frame, verb_id"),
        (
            "assembly101",
            FINE,
            "id,video,start_frame,end_frame,verb_id,verb_cls,action_cls\n",
            "train.csv has no rows",
        ),
        (
            "assembly101",
            FINE,
            "id,video,start_frame,end_frame,verb_id,verb_cls,action_cls\n\n1,seq,0,9,0,a,a b\n",
            "1 of 1 rows have a video that is no <sequence>/<view>.mp4 (line 3)",
        ),
        ("assembly101", f"{COARSE}coarse_seq_views.txt", "video\n", "'video' is no <video>/<view>.mp4"),
        ("assembly101", LABELS, "", "has no rows"),
        ("assembly101", LABELS, "1\t9\ta\n9\t\tb\n", "no two frame numbers and a label (line 2)"),
        ("assembly101", LABELS, "1\t9\ta\n9\t9\tb\n", "an end that is not after its start (line 2)"),
    ],
)
def test_damaged_annotations_are_named(tmp_path, name, file, text, told):
    {"egoexo4d": trees.build_egoexo4d, "egoexo_fitness": trees.build_fitness}.get(name, trees.build_assembly)(
        tmp_path
    )
    (tmp_path / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    message = refusal(name, tmp_path)
    assert told in message and str(tmp_path / file) in message


def test_coarse_splits_with_blank_lines_and_without_videos(tmp_path):
    trees.build_assembly(tmp_path)
    before = annotate("assembly101", tmp_path).segments
    for path in (tmp_path / COARSE / "coarse_splits").iterdir():
        path.write_text(path.read_text().replace("\n", "\n \n") + "\n")
    pd.testing.assert_frame_equal(annotate("assembly101", tmp_path).segments, before)
    for path in (tmp_path / COARSE / "coarse_splits").iterdir():
        path.write_text("\n")
    assert "coarse_splits lists no videos" in refusal("assembly101", tmp_path)


def test_the_mark_of_utf8_is_no_part_of_a_file(tmp_path):
    trees.build_egoexo4d(tmp_path)
    before = annotate("egoexo4d", tmp_path).clips
    for path in tmp_path.rglob("*.json"):
        path.write_text(path.read_text(), encoding="utf-8-sig")
    pd.testing.assert_frame_equal(annotate("egoexo4d", tmp_path).clips, before)


def test_tables_that_are_none(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("a,b\n1,2\n1,2,3\n")
    with pytest.raises(ValueError, match=r"table.csv is no table \(.*line 3"):
        read_table(path, "us", "a table", ("a",))
    path.write_text("a,b\n1,2,3\n4,5,6\n")
    with pytest.raises(ValueError, match="rows of more cells than columns"):
        read_table(path, "us", "a table", ("a",))
    path.write_text("a, b \n\n , NA \nNone,\n")
    table = read_table(path, "us", "a table", ("a", "b"))
    assert table.index.tolist() == [3, 4] and table.fillna("-").to_numpy().tolist() == [
        ["-", "NA"],
        ["None", "-"],
    ]


# --- hand poses


def test_poses_are_metres_and_read_again_when_they_change(tmp_path):
    trees.build_assembly(tmp_path)
    take = trees.sequence_name(0)
    path = tmp_path / f"AssemblyPoses/landmarks3D/{take}.json"
    poses = annotate("assembly101", tmp_path).skeleton
    clip = pd.Series({"take": take, "start_s": 0.5, "end_s": 1.0})
    joints, stamp = poses(clip)["joints_3d"], poses.stamp(clip)
    published = torch.tensor(json.loads(path.read_text())["30"]["1"])
    assert torch.allclose(joints[1, 0], published / 1000) and joints.dtype == torch.float32
    assert "unit_m=0.001" in repr(poses) and "millimetres" in assembly101.INFERRED["pose unit and rate"]
    whole = annotate("assembly101", tmp_path, pose_unit_m=1.0).skeleton(clip)["joints_3d"]
    assert torch.allclose(whole[1, 0], published)

    change(path, lambda content: content["30"].update({"1": np.ones((21, 3)).tolist()}))
    os.utime(path, ns=(1, 1))
    assert poses.stamp(clip) == f"1-{path.stat().st_size}" != stamp
    assert torch.allclose(poses(clip)["joints_3d"][1, 0], torch.full((21, 3), 0.001))
    path.unlink()
    assert poses.stamp(clip) == ""


@pytest.mark.parametrize("text", ["[", "[{}]", '{"0": {"0": [[1, 2, 3]]}}', '{"a": {}}', '{"0": []}', "3"])
def test_damaged_poses_are_named(tmp_path, text):
    (tmp_path / "some.json").write_text(text)
    clip = pd.Series({"take": "some", "start_s": 0.0, "end_s": 1.0})
    with pytest.raises(ValueError, match=r"^damaged hand poses in some\.json \("):
        assembly101.HandPoses(tmp_path, 60.0, 0.5, 0.001)(clip)


# --- own videos


def own(tmp_path, text):
    (tmp_path / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return annotate("folder", tmp_path).clips


def test_words_that_look_missing_are_names(tmp_path):
    clips = own(tmp_path, "\ufeffego_video,exo_video,subject,label\n1,2, NA ,None\n3,,null,nan\n")
    assert clips[["ego_video", "subject", "label"]].to_numpy().tolist() == [
        ["1", "NA", "None"],
        ["3", "null", "nan"],
    ]
    assert clips["exo_video"].fillna("-").tolist() == ["2", "-"]


def test_a_blank_end_of_an_own_video_means_all_of_it(tmp_path):
    clips = own(tmp_path, "ego_video,label,start_s,end_s\na.mp4,x,1,\nb.mp4,x,,2.5\n")
    assert clips["start_s"].tolist() == [1, 0] and clips["end_s"].fillna(-1).tolist() == [-1, 2.5]
    assert clips["reason"].isna().all()


@pytest.mark.parametrize(
    "text, told",
    [
        ("ego_video,label\na.mp4,\xe4\n".encode("latin-1"), "is not UTF-8 text"),
        ("", "is empty"),
        ("ego_video,label\n", "has no rows"),
        (
            "ego_video,label,end_s\na,x,1\n\nb,x,1:30\n",
            "1 of 2 rows have no number in end_s (line 4)",
        ),
        ("ego_video,label,start_s\na,x,inf\n", "1 of 1 rows have no number in start_s (line 2)"),
        ("ego_video,label,clip_id\na,x,1\nb,x,\n", "1 of 2 rows have no clip_id (line 3)"),
        (
            "ego_video,label,clip_id\na,x,1\nb,x,2\nc,x,1\n",
            "2 of 3 rows have a clip_id that others have (line 2: 1, line 4: 1)",
        ),
        ("ego_video,label,exo_rotate\na,x,45\n", "exo_rotate other than 0, 90, 180, 270 (line 2)"),
        ("ego_video,label,ego_fps\na,x,0\n", "ego_fps not above 0 (line 2)"),
        ("ego_video,label\n.,x\n", "an ego_video that names no file (line 2)"),
    ],
)
def test_bad_tables_of_own_videos_are_refused(tmp_path, text, told):
    (tmp_path / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert told in refusal("folder", tmp_path)


def test_people_may_be_shared_where_takes_are_held_out():
    for module in (assembly101, egoexo4d):
        assert "may share people" in module.INFERRED["val_share"]
    assert "people" not in egoexo_fitness.INFERRED["val_share"]
