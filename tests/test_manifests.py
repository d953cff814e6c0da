"""Cards and manifests: what is read, and what is refused with file, lines and cure."""

from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest
import yaml

from uniego_utils.cards import CARDS, Card, TrainConfig, from_mapping, load_card, merged
from uniego_utils.data.manifests import UNKNOWN, load_hidden_labels, load_manifest

CONTENT = {
    "name": "toy",
    "title": "a toy",
    "source": "made here",
    "licence": "none",
    "classes": ["walk", "run"],
    "teachers": {
        "ego_rgb": {"modality": "rgb", "viewpoint": "ego", "model": "dino", "width": 4, "label": "Ego RGB"},
        "exo_skl": {
            "modality": "skeleton",
            "viewpoint": "exo",
            "model": "stgcn",
            "width": 3,
            "label": "Exo skl",
        },
    },
    "method": {"k": 2, "tau": 3},
    "presets": {
        "small": {
            "backbone": "timesformer",
            "size": "tiny",
            "data": {"clips": 5, "picture": {"side": 40, "colour": True}},
            "video": {"num_frames": 4, "image_size": 32, "resize": 36, "mean": [0, 0, 0], "std": [1, 1, 1]},
            "proxy": {"epochs": 2, "milestones": [1, 2], "grad_clip": 1},
            "merge": {},
            "spd": {"epochs": 1},
        },
        "smaller": {"like": "small", "data": {"picture": {"side": 20}}, "proxy": {"epochs": 1}},
        "smallest": {"like": "smaller", "proxy": {"lr": 0.1}},
    },
}


def changed(**changes):
    return merged(CONTENT, changes)


def changed_proxy(**changes):
    return changed(presets={"small": {"proxy": changes}})


def load(folder, content=CONTENT, name="toy"):
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return load_card(name, folder)


def test_a_card_is_read_as_written(tmp_path):
    card = load(tmp_path)
    assert card.classes == ("walk", "run") and list(card.teachers) == ["ego_rgb", "exo_skl"]
    assert card.teacher("exo_skl").width == 3
    assert (card.method.k, card.method.tau, card.method.beta_feat) == (2, 3.0, 5.0)  # the last by default
    assert card.preset("small").proxy.milestones == (1, 2)


def test_a_card_survives_a_round_trip(tmp_path):
    card = load(tmp_path)
    again = yaml.safe_load(yaml.safe_dump(_plain(asdict(card))))
    assert from_mapping(Card, again, "again") == card


def _plain(value):
    """Tuples as lists, which is how YAML has them."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, tuple | list) else value


@pytest.mark.parametrize("name", sorted(path.stem for path in CARDS.glob("*.yaml")))
def test_shipped_cards_are_valid(name):
    card = load_card(name)
    assert card.name == name and len(set(card.classes)) == len(card.classes)
    assert len(card.classes) > 1 or card.builder in ("egoexo4d", "folder")  # whose annotations name them
    assert card.presets and card.teachers and {"train", "val", "test"} <= set(card.splits)


PUBLISHED = {  # section 4.1 of the paper: K, beta_logit
    "egoexo_fitness": (1, 1.0),
    "assembly101": (1, 5.0),
    "egoexo4d": (2, 1.0),
}
TABLE_1 = {
    "ego_dino": 1024, "ego_siglip": 1152, "ego_depth": 1024, "exo_rgb": 768, "exo_dino": 1024,
    "exo_skego": 512, "exo_siglip": 1152, "exo_skl": 256, "exo_depth": 1024,
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_cards_of_published_datasets_are_the_papers(name):
    card = load_card(name)
    method, preset = card.method, card.preset()
    assert (method.k, method.beta_logit) == PUBLISHED[name]
    assert (method.lambda_feat, method.lambda_cls, method.beta_feat, method.beta_cls) == (5, 1, 5, 1)
    assert (method.tau, method.standardise) == (1, False)
    assert {key: teacher.width for key, teacher in card.teachers.items()} == TABLE_1
    assert all(teacher.licence for teacher in card.teachers.values()) and card.licence
    published = TrainConfig(bf16=True, compile=True)
    assert (preset.size, preset.start, preset.proxy, preset.spd) == ("base", None, published, published)
    assert (preset.merge.epochs, preset.merge.lr, preset.merge.weight_decay) == (2, 0.02, 0.01)
    assert (preset.video.num_frames, preset.video.image_size) == (8, 224)
    assert preset.video.span_s == pytest.approx(8 * 32 / 30, abs=1e-3)


def write_cards(folder: Path, **cards: str) -> None:
    for name, text in cards.items():
        (folder / f"{name}.yaml").write_text(text)


SMALL = """
name: base
title: b
source: s
licence: l
method: {k: 2}
teachers:
  ego_rgb: {modality: rgb, viewpoint: ego, model: dino, width: 8, label: Ego}
  exo_rgb: {modality: rgb, viewpoint: exo, model: dino, width: 8, label: Exo}
presets:
  paper:
    backbone: timesformer
    size: tiny
    data: {}
    video: {num_frames: 8, image_size: 32, resize: 36, mean: [0.4, 0.4, 0.4], std: [0.2, 0.2, 0.2]}
    proxy: {}
    merge: {}
    spd: {}
    teachers: {exo_rgb: {depth: 1}, dino: {heads: 2}}
"""


def test_a_card_like_another_changes_only_what_it_names(tmp_path):
    write_cards(tmp_path, base=SMALL, own="like: base\nname: own\nmethod: {tau: 4.0}\n")
    card = load_card("own", tmp_path)
    assert (card.name, card.method.k, card.method.tau) == ("own", 2, 4.0)
    assert card.teachers == load_card("base", tmp_path).teachers and card.views == ("ego", "exo")


def test_a_teacher_that_is_null_is_taken_away_with_its_settings(tmp_path):
    write_cards(tmp_path, base=SMALL, own="like: base\nname: own\nteachers: {exo_rgb: null}\n")
    card = load_card("own", tmp_path)
    assert list(card.teachers) == ["ego_rgb"] and card.views == ("ego",)
    assert card.preset().teachers == {"dino": {"heads": 2}}


def test_a_card_like_none_or_itself_is_refused(tmp_path):
    write_cards(tmp_path, a="like: b\nname: a\n", b="like: a\nname: b\n", c="like: gone\nname: c\n")
    for name, base in (("a", "a"), ("c", "gone")):
        with pytest.raises(ValueError, match=f"is like '{base}', but there is no such other card"):
            load_card(name, tmp_path)


def test_the_first_preset_is_the_usual_one():
    assert load_card("mocap").preset() == load_card("mocap").preset("small")
    assert load_card("assembly101").preset() == load_card("assembly101").preset("paper")


def test_defaults_are_the_papers():
    config = TrainConfig()
    assert (config.epochs, config.optimizer, config.lr, config.momentum) == (15, "sgd", 0.005, 0.9)
    assert (config.weight_decay, config.milestones, config.batch_size) == (1e-4, (11, 14), 8)


def test_a_preset_like_another_changes_only_what_it_names(tmp_path):
    card = load(tmp_path)
    small, smaller, smallest = (card.preset(name) for name in ("small", "smaller", "smallest"))
    assert smaller.proxy.epochs == 1 and smaller.proxy.milestones == small.proxy.milestones
    assert smaller.data == {"clips": 5, "picture": {"side": 20, "colour": True}}
    assert smaller.video == small.video and small.data["picture"]["side"] == 40
    assert (smallest.proxy.lr, smallest.proxy.epochs) == (0.1, 1)  # like one that is like another


def test_a_preset_like_an_unknown_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"toy\.yaml: preset 'odd' is like 'tall', which does not exist"):
        load(tmp_path, changed(presets={"odd": {"like": "tall"}}))


def test_presets_like_each_other_are_refused(tmp_path):
    with pytest.raises(ValueError, match="'small'"):
        load(tmp_path, changed(presets={"small": {"like": "smallest"}}))


def test_unknown_names_list_the_valid_ones(tmp_path):
    card = load(tmp_path)
    with pytest.raises(
        ValueError, match="unknown preset 'big' for toy; choose one of small, smaller, smallest"
    ):
        card.preset("big")
    with pytest.raises(ValueError, match="unknown teacher 'exo_rgb' for toy; choose one of ego_rgb, exo_skl"):
        card.teacher("exo_rgb")
    with pytest.raises(ValueError, match=r"unknown dataset 'tou'.*tou\.yaml.*cards for toy"):
        load_card("tou", tmp_path)


def test_an_unknown_field_lists_the_valid_ones(tmp_path):
    with pytest.raises(
        ValueError, match=r"toy\.yaml: presets\.small: proxy: unknown epoch; .* epochs, batch_size"
    ):
        load(tmp_path, changed_proxy(epoch=3))


def test_an_unknown_hyperparameter_in_a_presets_method_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"kk.*lambda_feat"):
        load(tmp_path, changed(presets={"small": {"method": {"kk": 3}}}))


def test_a_missing_field_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"toy\.yaml: missing licence"):
        load(tmp_path, {name: value for name, value in CONTENT.items() if name != "licence"})


def test_a_card_without_presets_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"toy\.yaml.*presets"):
        load(tmp_path, {name: value for name, value in CONTENT.items() if name != "presets"})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", "ten"),
        ("epochs", 1.5),
        ("epochs", True),
        ("epochs", None),
        ("lr", "1e-3"),
        ("lr", True),
        ("bf16", 1),
        ("optimizer", 3),
        ("grad_clip", "big"),
        ("milestones", 11),
    ],
)
def test_a_value_of_a_wrong_type_is_named(tmp_path, field, value):
    with pytest.raises(ValueError, match=rf"presets\.small: proxy: {field}"):
        load(tmp_path, changed_proxy(**{field: value}))


def test_all_faults_of_a_card_are_told_at_once(tmp_path):
    teacher = {"labl": "Ego RGB", **CONTENT["teachers"]["ego_rgb"], "width": "4"}
    with pytest.raises(ValueError) as caught:
        load(tmp_path, changed(teachers={"ego_rgb": teacher}, presets={"small": {"video": {"mean": [0, 0]}}}))
    where = "toy.yaml: teachers.ego_rgb"
    assert f"{where}: unknown labl; valid fields are modality" in str(caught.value)
    assert f"{where}: width should be a valid integer, got '4'" in str(caught.value)
    assert "toy.yaml: presets.small: video: mean: missing entry 2" in str(caught.value)


def test_whole_numbers_pass_for_floats(tmp_path):
    lr = load(tmp_path, changed_proxy(lr=1)).preset("small").proxy.lr
    assert lr == 1.0 and isinstance(lr, float)


def test_a_section_that_is_no_mapping_is_refused(tmp_path):
    with pytest.raises(ValueError, match="proxy: expected fields of TrainConfig, got 3"):
        load(tmp_path, changed(presets={"small": {"proxy": 3}}))


def test_a_card_must_be_named_as_its_file(tmp_path):
    with pytest.raises(ValueError, match="its name is 'toy'"):
        load(tmp_path, name="other")


@pytest.mark.parametrize(("key", "view"), [("ego_rgb", "exo"), ("ego_rgb", "side"), ("rgb", "ego")])
def test_a_teachers_key_begins_with_its_viewpoint(tmp_path, key, view):
    teacher = CONTENT["teachers"]["ego_rgb"] | {"viewpoint": view}
    with pytest.raises(ValueError, match=f"teacher '{key}' has viewpoint '{view}'"):
        load(tmp_path, changed(teachers={key: teacher}))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pairs": "more"}, "'more' is no split of train, val, test"),
        ({"ego_only": ["more"]}, "'more' is no split"),
        ({"teacher_split": "more"}, "'more' is no split"),
        ({"pairs": "val"}, "pairs is 'val', a split whose labels are read"),
        ({"splits": ["train", "val", "test", "more"], "pairs": "more", "ego_only": ["more"]}, "no exo view"),
        ({"splits": ["train", "val", "test", "more"], "pairs": "more", "teacher_split": "more"}, "are read"),
        ({"ego_only": ["val", "test"]}, "ego_only has val, which teachers see"),
    ],
)
def test_refuses_a_split_that_cannot_be_what_it_is_named_for(tmp_path, given, message):
    with pytest.raises(ValueError, match=rf"toy\.yaml: .*{message}"):
        load(tmp_path, changed(**given))


def test_splits_need_the_views_that_teachers_or_students_see(tmp_path):
    card = load(tmp_path, changed(ego_only=["test"]))
    assert card.views_of("train") == ("ego", "exo") and card.views_of("test") == ("ego",)


CLASSES = ("walk", "run")


@pytest.fixture
def rows(tmp_path):
    for name in ("ego.mp4", "exo.mp4", "depth.mp4", "other.mp4"):
        (tmp_path / name).write_bytes(b"content")
    return pd.DataFrame(
        {
            "clip_id": [f"c{i}" for i in range(8)],
            "take": [f"t{i}" for i in range(8)],
            "subject": "s",
            "label": ["walk", "run"] * 4,
            "ego_video": "ego.mp4",
            "exo_video": "exo.mp4",
            "start_s": 0.0,
            "end_s": 1.5,
        }
    )


def manifest(rows, tmp_path):
    rows.to_csv(tmp_path / "train.csv", index=False)
    return load_manifest(tmp_path / "train.csv", CLASSES, tmp_path)


def refusal(rows, tmp_path):
    with pytest.raises(ValueError) as caught:
        manifest(rows, tmp_path)
    assert str(tmp_path / "train.csv") in str(caught.value)
    return str(caught.value)


def test_a_manifest_keeps_order_and_maps_labels(rows, tmp_path):
    read = manifest(rows, tmp_path)
    assert read.split == "train" and len(read) == 8
    assert read.rows["clip_id"].tolist() == rows["clip_id"].tolist()
    assert [CLASSES[label] for label in read.labels] == rows["label"].tolist()
    assert read.path(3, "exo_video") == tmp_path / "exo.mp4"


def test_ids_that_look_like_numbers_stay_text(rows, tmp_path):
    ids = [f"00{i}" for i in range(8)]
    assert manifest(rows.assign(clip_id=ids), tmp_path).rows["clip_id"].tolist() == ids


def test_a_missing_manifest_is_named_with_the_cure(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"val\.csv does not exist; run notebook 00_data"):
        load_manifest(tmp_path / "val.csv", CLASSES, tmp_path)


def test_a_manifest_without_clips_is_refused(rows, tmp_path):
    assert "has no clips; run notebook 00_data" in refusal(rows[:0], tmp_path)


def test_a_zero_byte_manifest_is_named(tmp_path):
    (tmp_path / "train.csv").write_bytes(b"")
    with pytest.raises(ValueError, match=r"train\.csv"):
        load_manifest(tmp_path / "train.csv", CLASSES, tmp_path)


def test_missing_columns_are_named(rows, tmp_path):
    assert "lacks the columns subject, end_s" in refusal(rows.drop(columns=["subject", "end_s"]), tmp_path)


def test_duplicate_ids_are_listed_by_line(rows, tmp_path):
    rows.loc[6, "clip_id"] = "c1"
    message = refusal(rows, tmp_path)
    assert "2 of 8 rows have a duplicate id" in message and "(line 3: c1, line 8: c1)" in message


def test_an_absent_id_is_refused(rows, tmp_path):
    rows.loc[2, "clip_id"] = None
    assert "line 4" in refusal(rows, tmp_path)


def test_a_label_outside_the_classes_is_listed_by_line(rows, tmp_path):
    rows.loc[4, "label"] = "fly"
    message = refusal(rows, tmp_path)
    assert "a label outside walk, run" in message and "(line 6: fly)" in message
    assert "mend these rows or run notebook 00_data again" in message


@pytest.mark.parametrize("end", [0.0, -1.0, None])
def test_an_empty_span_is_listed_by_line(rows, tmp_path, end):
    rows.loc[0, "end_s"] = end
    message = refusal(rows, tmp_path)
    assert "an empty time span" in message and "line 2: " in message


def test_a_time_that_is_no_number_is_listed_by_line(rows, tmp_path):
    rows = rows.astype({"end_s": object})
    rows.loc[5, "end_s"] = "late"
    assert "line 7: late" in refusal(rows, tmp_path)


@pytest.mark.parametrize("column", ["ego_video", "exo_video", "ego_depth", "skeleton"])
def test_missing_and_empty_files_are_listed_by_line(rows, tmp_path, column):
    (tmp_path / "empty.mp4").touch()
    rows[column] = "ego.mp4"
    rows.loc[[1, 3], column] = ["gone.mp4", "empty.mp4"]
    message = refusal(rows, tmp_path)
    assert f"2 of 8 rows have a missing or empty file below {tmp_path} in `{column}`" in message
    assert "(line 3: gone.mp4, line 5: empty.mp4)" in message


@pytest.mark.parametrize("column", ["ego_video", "exo_video"])
def test_a_clip_without_a_video_is_listed_by_line(rows, tmp_path, column):
    rows.loc[2, column] = None
    assert "line 4" in refusal(rows, tmp_path)


def test_optional_files_may_be_absent(rows, tmp_path):
    rows["ego_depth"] = ["depth.mp4", *[None] * 7]
    assert len(manifest(rows, tmp_path)) == 8


@pytest.mark.parametrize(("faulty", "more"), [(5, ""), (7, " and 2 more")])
def test_at_most_five_rows_are_listed(rows, tmp_path, faulty, more):
    rows.loc[: faulty - 1, "label"] = "fly"
    message = refusal(rows, tmp_path)
    assert (
        message.count("line ") == 5 and f"line 6: fly{more})" in message and (more or "more" not in message)
    )


def test_the_digest_is_the_same_for_the_same_clips(rows, tmp_path):
    before = manifest(rows, tmp_path).digest
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("ego.mp4", "exo.mp4"):
        (elsewhere / name).write_bytes(b"other content")
    assert manifest(rows, elsewhere).digest == before
    assert manifest(rows.assign(remark="new"), tmp_path).digest == before  # a column that nothing reads


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("label", "run"),
        ("ego_video", "other.mp4"),
        ("exo_video", "other.mp4"),
        ("ego_depth", "other.mp4"),
        ("clip_id", "new"),
        ("end_s", 1.4),
    ],
)
def test_the_digest_notices_a_change(rows, tmp_path, column, value):
    rows["ego_depth"] = "depth.mp4"
    before = manifest(rows, tmp_path).digest
    rows.loc[0, column] = value
    assert manifest(rows, tmp_path).digest != before


def test_the_digest_notices_another_order(rows, tmp_path):
    assert manifest(rows[::-1], tmp_path).digest != manifest(rows, tmp_path).digest


@pytest.fixture
def unlabelled(rows, tmp_path):
    """A split of pairs and the labels that its manifest does not have."""
    rows[["clip_id", "label"]].to_csv(tmp_path / "more_labels.csv", index=False)
    rows.assign(label="").to_csv(tmp_path / "more.csv", index=False)
    return load_manifest(tmp_path / "more.csv", CLASSES, tmp_path, labelled=False)


def test_a_split_without_labels_has_unknown_ones_and_hides_the_true_ones(unlabelled):
    assert unlabelled.labels == [UNKNOWN] * 8
    assert load_hidden_labels(unlabelled) == [0, 1] * 4


def test_hidden_labels_follow_the_manifests_order(unlabelled, tmp_path):
    path = tmp_path / "more_labels.csv"
    pd.read_csv(path).iloc[::-1].to_csv(path, index=False)
    assert load_hidden_labels(unlabelled) == [0, 1] * 4


def test_a_label_in_a_split_without_labels_is_refused(rows, tmp_path):
    rows.assign(label=["", "run"] * 4).to_csv(tmp_path / "more.csv", index=False)
    with pytest.raises(ValueError, match=r"line 3: run.*"):
        load_manifest(tmp_path / "more.csv", CLASSES, tmp_path, labelled=False)
    with pytest.raises(ValueError, match="a label outside"):
        load_manifest(tmp_path / "more.csv", CLASSES, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.iloc[1:], "lacks the label of c0"),
        (lambda table: table.replace("c3", "c9"), r"a clip that more.csv has not \(line 5: c9\)"),
        (lambda table: table.replace("c3", "c2"), "a duplicate id"),
        (lambda table: table.replace("run", "swim"), "a label outside the classes"),
    ],
)
def test_hidden_labels_of_other_clips_are_refused(unlabelled, tmp_path, change, message):
    path = tmp_path / "more_labels.csv"
    change(pd.read_csv(path)).to_csv(path, index=False)
    with pytest.raises(ValueError, match=message):
        load_hidden_labels(unlabelled)


def test_absent_hidden_labels_are_named(unlabelled, tmp_path):
    (tmp_path / "more_labels.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"more_labels\.csv does not exist; a ceiling needs"):
        load_hidden_labels(unlabelled)


def test_a_view_that_a_clip_has_not_is_named(rows, tmp_path):
    rows.assign(exo_video="").to_csv(tmp_path / "train.csv", index=False)
    alone = load_manifest(tmp_path / "train.csv", CLASSES, tmp_path, ("ego",))
    with pytest.raises(ValueError, match="clip c2 of train has no exo_video"):
        alone.path(2, "exo_video")
