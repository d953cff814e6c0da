"""Level I, merging and Level II on a few rendered clips: what is shared, reused, resumed and refused."""

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from uniego_utils import students
from uniego_utils.analyses.misaligned import DOSE_METHODS, misalign, train_doses
from uniego_utils.analyses.pair_curves import choose_rows, train_with
from uniego_utils.analyses.reliability import cross_fit, split_folds
from uniego_utils.candidates import everyone
from uniego_utils.cards import CARDS, from_mapping, load_card, merged
from uniego_utils.data.manifests import hidden_labels_file, load_hidden_labels
from uniego_utils.data.video import loader
from uniego_utils.experiment import Experiment
from uniego_utils.merging import merge
from uniego_utils.methods import EGO, MERGES, METHODS, NAIVE, START, Method, choose, of_notebook
from uniego_utils.mocap.clips import MocapSettings, build
from uniego_utils.objectives import ProxyDistillation, TeacherDistillation
from uniego_utils.proxies import projected_teacher, student_names, train_proxies
from uniego_utils.recipes import PAPER
from uniego_utils.runs import digest, is_finished, read_json, read_tensors
from uniego_utils.sources import Sources, guess_labels, load_proxies, proxy_outputs, teacher_targets
from uniego_utils.students import common_start, proxies_on_view, train
from uniego_utils.teachers.extraction import classify_clips, prepare_teacher
from uniego_utils.teachers.features import write_features
from uniego_utils.training import read_history, read_metrics

ALL_PROXIES = Method("All", "all proxies", "any", objective=ProxyDistillation, weights=everyone)
TEACHERS = ("ego_dino", "exo_skl")


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    """Rendered clips: two a class to train on, one a class to validate and to test."""
    root = tmp_path_factory.mktemp("data")
    render(root, root)
    return root


def render(root, manifests):
    settings = {"pool": 1, "train": 2, "val": 1, "test": 1, "unlabelled": 3, "image_size": 64, "frames": 8}
    motions = CARDS / "mocap" / "humanoid_motions.npz"
    build(root, motions, from_mapping(MocapSettings, settings, "test"), 1, False, manifests)


def open_small_experiment(data_root, outputs) -> Experiment:
    """An experiment with two teachers whose stored features are noise: enough to see who imitates whom."""
    card = load_card("mocap")
    card = replace(card, teachers={key: replace(card.teachers[key], width=24) for key in TEACHERS})
    preset = card.preset("smoke")
    experiment = Experiment(
        card, preset, card.method, PAPER, "paper", 0, data_root, outputs, torch.device("cpu"), False
    )
    render(data_root, experiment.data)
    manifest = experiment.manifest("train")
    for number, key in enumerate(TEACHERS):
        features = torch.randn(len(manifest), 24, generator=torch.Generator().manual_seed(number))
        write_features(
            outputs / "01_teacher_extraction" / key / "train.safetensors", features, manifest, 24, {}
        )
    return experiment


@pytest.fixture(scope="module")
def trained(data_root, tmp_path_factory):
    """An experiment after notebooks 02 to 04."""
    experiment = open_small_experiment(data_root, tmp_path_factory.mktemp("outputs"))
    train_proxies(experiment, "each")
    merge(experiment)
    train(experiment, of_notebook("04_spd", experiment.methods))
    return experiment


def weights_of(folder):
    return read_tensors(folder / "model.safetensors")


def test_every_student_and_method_leaves_a_finished_run(trained):
    runs = [trained.folder("02_proxy") / name for name in ("start", *TEACHERS, EGO, NAIVE)]
    runs += [trained.folder("03_merging") / name for name in MERGES]
    runs += [trained.folder("04_spd") / name for name in of_notebook("04_spd", trained.methods)]
    assert all(is_finished(run) for run in runs)
    assert not list(trained.outputs.rglob("*checkpoint*")) and not list(trained.outputs.rglob("*.partial"))


def test_a_student_trained_alone_equals_the_one_of_the_shared_pass(trained, data_root, tmp_path):
    alone = open_small_experiment(data_root, tmp_path)
    train_proxies(alone, "exo_skl")
    together, single = (
        weights_of(experiment.folder("02_proxy") / "exo_skl") for experiment in (trained, alone)
    )
    assert all(torch.equal(together[name], single[name]) for name in together)


def test_teachers_make_a_difference(trained):
    folders = [trained.folder("02_proxy") / name for name in (*TEACHERS, EGO, NAIVE)]
    embeddings = [weights_of(folder)["pos_embed"] for folder in folders]
    assert all(not torch.equal(a, b) for i, a in enumerate(embeddings) for b in embeddings[:i])


def test_an_interrupted_pass_resumes_to_the_same_weights(trained, data_root, tmp_path, monkeypatch):
    experiment = open_small_experiment(data_root, tmp_path)
    finish = students.finish_student

    def stop_before_the_naive_student(folder, *rest):
        if folder.name == NAIVE:
            raise KeyboardInterrupt
        return finish(folder, *rest)

    monkeypatch.setattr(students, "finish_student", stop_before_the_naive_student)
    with pytest.raises(KeyboardInterrupt):
        train_proxies(experiment, "each")
    folder = experiment.folder("02_proxy")
    assert is_finished(folder / EGO) and not is_finished(folder / NAIVE)

    monkeypatch.setattr(students, "finish_student", finish)
    train_proxies(experiment, "each")
    for name in (EGO, NAIVE):
        whole, resumed = weights_of(trained.folder("02_proxy") / name), weights_of(folder / name)
        assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_the_best_start_is_the_proxy_best_on_validation_clips(trained):
    proxies = trained.folder("02_proxy")
    scores = {key: read_json(proxies / key / "metrics.json")["val_top1"] for key in TEACHERS}
    alpha = read_json(trained.folder("03_merging") / "best" / "alpha.json")
    assert alpha == {key: float(key == max(scores, key=scores.get)) for key in TEACHERS}


def test_features_of_another_manifest_are_refused_before_any_training(data_root, tmp_path):
    experiment = open_small_experiment(data_root, tmp_path)
    val = experiment.manifest("val")
    path = tmp_path / "01_teacher_extraction" / "exo_skl" / "train.safetensors"
    write_features(path, torch.randn(len(val), 24), val, 24, {})
    with pytest.raises(ValueError, match="another manifest"):
        train_proxies(experiment, "each")
    assert not (tmp_path / "02_proxy").exists()


def test_an_unknown_teacher_or_method_lists_the_valid_ones(trained):
    with pytest.raises(ValueError, match="unknown teacher 'exo_skeleton'; choose one of ego_dino, exo_skl"):
        train_proxies(trained, "exo_skeleton")
    with pytest.raises(ValueError, match="unknown method uniego2; choose of uniego, ego_longer"):
        choose(["uniego2"], of_notebook("04_spd"))
    with pytest.raises(ValueError, match="unknown method uniego2; choose of ego_dino, exo_skl, start, ego"):
        train(trained, ["uniego2"])
    with pytest.raises(ValueError, match="merged: not trained but merged; see merging.merge"):
        train(trained, ["uniego", "merged"])
    with pytest.raises(ValueError, match="no student uniego2; choose of ego_dino"):
        trained.student("uniego2")


def test_features_of_a_teacher_with_other_settings_are_not_reused(data_root, tmp_path, capsys):
    card = load_card("mocap")
    preset = card.preset("smoke")
    experiment = Experiment(
        card, preset, card.method, PAPER, "paper", 0, data_root, tmp_path, torch.device("cpu"), False
    )
    render(data_root, experiment.data)
    prepare_teacher(experiment, "exo_skl")
    prepare_teacher(experiment, "exo_skl")
    assert "exo_skl: finished before, reused" in capsys.readouterr().out
    longer = merged(preset.teachers, {"stgcn": {"train": {"epochs": 2}}})
    with pytest.raises(ValueError, match="(?s)epochs.*Delete that folder"):
        prepare_teacher(replace(experiment, preset=replace(preset, teachers=longer)), "exo_skl")


def test_proxies_watch_the_students_view(trained):
    pool = list(trained.proxies.values())
    clips = trained.clips("train", progress=False)
    batch = next(iter(loader(clips, 4)))  # the evaluation view, of which outputs are stored
    watched = proxies_on_view(trained, pool, False)(batch)
    features, logits = proxy_outputs(pool)
    assert watched.keys() == {*batch, "proxy_features", "proxy_logits"}
    torch.testing.assert_close(watched["proxy_features"], features[:4], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(watched["proxy_logits"], logits[:4], rtol=1e-4, atol=1e-4)
    other = next(iter(loader(clips, 4, seed=1)))
    of_other = proxies_on_view(trained, pool, False)(other)["proxy_logits"]
    assert not torch.allclose(of_other, logits[other["rows"]])


def test_the_recipe_decides_whose_view_the_proxies_take(trained, tmp_path):
    """With the students' view, what was stored of the proxies does not matter; else nothing else does."""
    weights = {}
    for live in (True, False):
        experiment = replace(trained, recipe=replace(PAPER, spd_live_targets=live))
        for shift in (0.0, 3.0):
            sources = Sources(experiment)
            known = sources.candidates()
            stored = replace(known, features=known.features.roll(1, 0) + shift)
            sources._candidates[()] = stored
            place = tmp_path / f"{live}{shift}"
            train(experiment, {"uniego": ALL_PROXIES}, place, sources=sources)
            weights[live, shift] = weights_of(place / "uniego")
    for live in (True, False):
        one, two = weights[live, 0.0], weights[live, 3.0]
        assert all(torch.equal(one[name], two[name]) for name in one) == live
    one, two = weights[True, 0.0], weights[False, 0.0]
    assert any(not torch.equal(one[name], two[name]) for name in one)


def test_the_recipe_decides_how_many_clips_make_a_step(trained, tmp_path):
    experiment = replace(trained, recipe=replace(PAPER, effective_batch=4 * trained.preset.proxy.batch_size))
    train(experiment, ["exo_skl"], tmp_path)
    usual, larger = weights_of(trained.folder("02_proxy") / "exo_skl"), weights_of(tmp_path / "exo_skl")
    assert any(not torch.equal(usual[name], larger[name]) for name in usual)


def test_students_may_be_limited_to_some_clips(trained, tmp_path):
    """A student that has not seen the others' clips does not depend on what is said of them."""
    targets = teacher_targets(trained, TEACHERS)
    rows = list(range(0, len(targets["exo_skl"]), 2))
    changed = {key: value.clone() for key, value in targets.items()}
    for value in changed.values():
        value[1::2] = 7.0
    start = common_start(trained, tmp_path / "start", rows)
    for name, given in (("one", targets), ("two", changed)):
        sources = Sources(trained, teachers=given)
        train(trained, TEACHERS, tmp_path / name, sources=sources, starts={"start": start}, rows=rows)
    for key in TEACHERS:
        one, two = weights_of(tmp_path / "one" / key), weights_of(tmp_path / "two" / key)
        assert all(torch.equal(one[name], two[name]) for name in one)
    assert read_json(tmp_path / "one" / "exo_skl" / "config.json")["config"]["rows"]


@pytest.fixture(scope="module")
def crossed(trained):
    """Held-out logits of the pool, as notebook 13 leaves them."""
    halves, _ = split_folds(trained.manifest("train"), trained.seed)
    folder = trained.folder("13_reliability")
    return folder, halves, cross_fit(trained, teacher_targets(trained, TEACHERS), folder, halves)


def test_held_out_logits_come_from_proxies_that_have_not_seen_the_clip(trained, crossed):
    folder, halves, held_out = crossed
    for number, half in enumerate(halves):
        for place, key in enumerate(TEACHERS):
            run = folder / f"fold{number}" / key
            seen = sorted(row for other in halves if other is not half for row in other)
            assert read_json(run / "config.json")["config"]["rows"] == digest(seen)
            assert read_json(folder / f"fold{number}" / "start" / "config.json")["config"]["rows"] == digest(
                seen
            )
            logits = read_tensors(run / "outputs.safetensors")["train_logits"]
            assert torch.equal(held_out[half, place], logits[half])


def test_doses_add_misaligned_teachers_to_the_good_ones(trained, crossed, tmp_path):
    doses = train_doses(trained, ["exo_skl"], ["ego_dino"], [0, 1], 1, tmp_path)
    count = len(trained.manifest("train"))
    assert {dose: tuple(chosen.shape) for dose, chosen in doses.items()} == {0: (count, 1), 1: (count, 2)}
    for dose in (0, 1):
        assert all(is_finished(tmp_path / f"dose{dose}" / name) for name in (*DOSE_METHODS, "merged", NAIVE))
        taught = read_json(tmp_path / f"dose{dose}" / NAIVE / "config.json")["config"]["teachers"]
        assert list(taught) == ["exo_skl", "ego_dino_misaligned"][: 1 + dose]
    assert read_json(tmp_path / "dose0" / "merged" / "alpha.json") == {"exo_skl": 1.0}


@pytest.mark.parametrize(
    ("good", "faulty", "doses", "message"),
    [
        (["exo_skl"], ["exo_skl"], [0], "exo_skl cannot be good and faulty"),
        (["exo_skl"], ["ego_dino"], [2], "at most 1 faulty"),
        (["exo_skl"], ["ego_dino"], [-1], "at most 1 faulty"),
        ([], ["ego_dino"], [1], "need a good teacher"),
        (["exo"], [], [0], "unknown teacher 'exo'"),
    ],
)
def test_refuses_doses_that_make_no_pool(trained, good, faulty, doses, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train_doses(trained, good, faulty, doses, 1, tmp_path)
    assert not list(tmp_path.iterdir())


def test_misaligned_features_are_the_same_rows_none_in_its_place():
    features = torch.arange(40.0).view(20, 2)
    moved = misalign(features, seed=1)
    assert (moved != features).all() and torch.equal(moved.sort(0).values, features)
    assert torch.equal(moved, misalign(features, seed=1)) and not torch.equal(
        moved, misalign(features, seed=2)
    )
    with pytest.raises(ValueError, match="single clip"):
        misalign(features[:1], seed=0)


def test_a_projected_teacher_is_what_the_trained_proxys_loss_sees(trained):
    targets = teacher_targets(trained, TEACHERS)
    folder = trained.folder("02_proxy") / "exo_skl"
    objective = TeacherDistillation.create(Sources(trained), trained.methods["exo_skl"], 64)
    objective.load_state_dict(read_tensors(folder / "objective.safetensors"))
    expected = objective.project["exo_skl"](targets["exo_skl"])
    torch.testing.assert_close(projected_teacher(folder, "exo_skl", targets["exo_skl"]), expected)


PAIRS = "unlabelled"


@pytest.fixture(scope="module")
def with_pairs(trained, tmp_path_factory):
    """The experiment with pairs, after notebook 02, in a folder of outputs of its own."""
    outputs = tmp_path_factory.mktemp("with_pairs")
    shutil.copytree(trained.outputs / "01_teacher_extraction", outputs / "01_teacher_extraction")
    shutil.copytree(trained.data, outputs / "00_data")
    experiment = replace(trained, outputs=outputs, pairs=PAIRS)
    write_teachers(experiment, 0)
    train_proxies(experiment, "each")
    return experiment


def write_teachers(experiment, seed):
    """Stored features of the pairs, and of validation clips, which are noise."""
    for split in (PAIRS, "val"):
        manifest = experiment.manifest(split)
        for number, key in enumerate(TEACHERS):
            path = experiment.outputs / "01_teacher_extraction" / key / f"{split}.safetensors"
            path.unlink(missing_ok=True)
            noise = torch.Generator().manual_seed(10 * seed + number)
            write_features(path, torch.randn(len(manifest), 24, generator=noise), manifest, 24, {})


def equal_weights(one, two):
    one, two = weights_of(one), weights_of(two)
    return all(torch.equal(one[name], two[name]) for name in one)


def test_each_has_the_ceiling_where_the_labels_of_pairs_are_known(with_pairs, trained):
    assert student_names(with_pairs, "each") == [*TEACHERS, EGO, NAIVE, "ceiling", "guessed"]
    assert student_names(trained, "each") == [*TEACHERS, EGO, NAIVE]
    path = hidden_labels_file(with_pairs.manifest(PAIRS))
    kept = path.read_text()
    path.unlink()
    assert student_names(with_pairs, "each") == [*TEACHERS, EGO, NAIVE, "guessed"]
    path.write_text(kept)


def test_regimes_have_folders_of_their_own(with_pairs):
    usual = replace(with_pairs, recipe_name=with_pairs.card.recipe)
    assert usual.folder("02_proxy").name == "seed0"
    assert replace(usual, pairs="").folder("02_proxy").name == "seed0-pairs=none"


def test_the_labels_of_pairs_reach_the_ceiling_alone(with_pairs, tmp_path):
    """Trained anew with other labels of the pairs, only the ceiling changes."""
    path = hidden_labels_file(with_pairs.manifest(PAIRS))
    kept = path.read_text()
    rows = pd.read_csv(path)
    rows.assign(label=np.roll(rows["label"], 1)).to_csv(path, index=False)
    train(with_pairs, student_names(with_pairs, "each"), tmp_path)
    path.write_text(kept)
    before = with_pairs.folder("02_proxy")
    same = {
        name: equal_weights(before / name, tmp_path / name)
        for name in [*TEACHERS, EGO, NAIVE, "ceiling", "guessed"]
    }
    assert same == {name: name != "ceiling" for name in same}


def test_what_teachers_see_of_pairs_reaches_all_but_those_who_learn_from_labels(with_pairs, tmp_path):
    write_teachers(with_pairs, 1)
    train(with_pairs, student_names(with_pairs, "each"), tmp_path)
    write_teachers(with_pairs, 0)
    before = with_pairs.folder("02_proxy")
    same = {
        name: equal_weights(before / name, tmp_path / name)
        for name in [*TEACHERS, EGO, NAIVE, "ceiling", "guessed"]
    }
    assert same == {name: name in (EGO, "ceiling") for name in same}


def test_missing_features_of_pairs_are_named(with_pairs, tmp_path):
    path = with_pairs.outputs / "01_teacher_extraction" / TEACHERS[0] / f"{PAIRS}.safetensors"
    path.rename(path.with_suffix(".away"))
    with pytest.raises(
        FileNotFoundError, match=rf"{TEACHERS[0]}/unlabelled\.safetensors.*01_teacher_extraction"
    ):
        train(with_pairs, [NAIVE], tmp_path)
    path.with_suffix(".away").rename(path)


def test_everyone_takes_as_many_steps(with_pairs):
    """Cross-entropy has an epoch half as long and gets twice the epochs; the common start does not."""
    epochs = {
        name: len(read_history(with_pairs.folder("02_proxy") / name)) for name in (*TEACHERS, EGO, START)
    }
    assert epochs == {TEACHERS[0]: 2, TEACHERS[1]: 2, EGO: 4, START: 2}


def test_outputs_on_pairs_are_the_students(with_pairs, trained):
    """Stored beside the others and equal to a pass over the clips; without scores, which need labels."""
    features, logits = proxy_outputs(with_pairs.proxies.values(), PAIRS)
    clips = next(iter(loader(with_pairs.clips(PAIRS), 64)))["clips"]
    for r, proxy in enumerate(load_proxies(with_pairs, with_pairs.proxies.values())):
        with torch.no_grad():
            expected = proxy(clips)
        torch.testing.assert_close(features[:, r], expected[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(logits[:, r], expected[1], rtol=1e-4, atol=1e-4)
    assert not any(name.startswith(PAIRS) for name in read_metrics(with_pairs.folder("02_proxy") / EGO))
    with pytest.raises(FileNotFoundError, match="has no outputs on unlabelled; delete its folder and run"):
        proxy_outputs(trained.proxies.values(), PAIRS)


def test_level_two_learns_on_pairs_from_the_committee(with_pairs, tmp_path):
    """Its candidates are the train split's with their labels, then the pairs with the committee's answer."""
    known = Sources(with_pairs).candidates()
    labelled = Sources(with_pairs, with_pairs=False).candidates()
    count = len(labelled.labels)
    assert torch.equal(known.logits[:count], labelled.logits) and (known.labels[count:] < 0).all()
    assert torch.equal(known.answers[:count], labelled.labels)
    of_val, labels = proxy_outputs(with_pairs.proxies.values(), "val")[1], with_pairs.manifest("val").labels
    losses = [torch.nn.functional.cross_entropy(of_val[:, r], torch.tensor(labels)) for r in range(2)]
    shares = (-torch.stack(losses) / 0.05).softmax(0)
    probabilities = proxy_outputs(with_pairs.proxies.values(), PAIRS)[1].softmax(-1)
    votes = sum(share * probabilities[:, r] for r, share in enumerate(shares)).argmax(-1)
    assert torch.equal(known.answers[count:], votes)
    merge(with_pairs, ["merged"])
    train(with_pairs, ["uniego", "self_trained", "merged_ce"], tmp_path)
    epochs = {name: len(read_history(tmp_path / name)) for name in ("uniego", "self_trained", "merged_ce")}
    assert epochs == {"uniego": 2, "self_trained": 2, "merged_ce": 4}
    one, two = (tmp_path / name for name in ("uniego", "merged_ce"))
    assert not equal_weights(one, two)


def test_labels_are_guessed_by_the_teacher_that_names_validation_clips_best(with_pairs, tmp_path):
    """Of a teacher whose features are the classes, among one of noise, the guesses are the hidden labels."""
    truth = load_hidden_labels(with_pairs.manifest(PAIRS))
    store = tmp_path / "01_teacher_extraction"
    for key in TEACHERS:
        for split in ("train", "val", PAIRS):
            manifest = with_pairs.manifest(split)
            labels = torch.tensor(truth if split == PAIRS else manifest.labels)
            noise = torch.randn(len(labels), 24, generator=torch.Generator().manual_seed(len(labels)))
            features = noise + 9 * torch.nn.functional.one_hot(labels, 24) * (key == TEACHERS[1])
            write_features(store / key / f"{split}.safetensors", features, manifest, 24, {})
    shutil.copytree(with_pairs.data, tmp_path / "00_data")
    assert guess_labels(replace(with_pairs, outputs=tmp_path)) == truth


def test_a_teacher_does_not_answer_on_clips_without_its_view(with_pairs, tmp_path):
    with pytest.raises(ValueError, match="exo_skl watches the exo view, which 'test' has not"):
        classify_clips(with_pairs, "exo_skl", "test", tmp_path)


def test_students_that_need_pairs_are_unknown_without_them(trained, tmp_path):
    with pytest.raises(ValueError, match="unknown method self_trained"):
        train(trained, ["self_trained"], tmp_path)
    with pytest.raises(ValueError, match="ceiling: open the experiment with a split of pairs"):
        train(trained, {"ceiling": METHODS["ceiling"]}, tmp_path)


def test_fewer_labels_and_pairs(with_pairs, tmp_path):
    """Rows of either kind may be chosen; what is left out leaves no trace."""
    of_train = with_pairs.manifest("train").labels
    rows = choose_rows(of_train, len(with_pairs.manifest(PAIRS)), 15, 10, seed=0)
    assert sorted(of_train[row] for row in rows if row < len(of_train)) == sorted(set(of_train))
    assert len(rows) == 25 and rows == sorted(rows)
    runs = train_with(with_pairs, tmp_path / "few", 15, 10)
    assert all(is_finished(run) for run in runs.values())
    everyone = train_with(with_pairs, tmp_path / "all", len(of_train) + 45, 45)
    config = read_json(everyone["uniego"] / "config.json")["config"]
    assert config["labels"] != read_json(runs["uniego"] / "config.json")["config"].get("labels")
    for labels, pairs, message in ((14, 10, "cannot show all 15"), (15, 99, "15 labels and 99 pairs asked")):
        with pytest.raises(ValueError, match=message):
            choose_rows(of_train, 45, labels, pairs, seed=0)
