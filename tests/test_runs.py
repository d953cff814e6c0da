"""Run folders: nothing half written, nothing of another configuration reused."""

import hashlib
import json
import math

import pytest
import torch

from uniego_utils.runs import (
    FINISHED,
    digest,
    finish_run,
    is_finished,
    provenance,
    read_json,
    read_notes,
    read_tensors,
    require_finished,
    run_name,
    start_run,
    write_json,
    write_tensors,
    write_text,
    written_whole,
)


def test_a_block_that_raises_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "deep" / "result.txt"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), written_whole(path) as partial:
        partial.write_text("ne")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]


def test_a_first_write_that_raises_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), written_whole(tmp_path / "result.txt") as partial:
        partial.write_text("part")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_the_file_does_not_exist_before_the_block_ends(tmp_path):
    with written_whole(tmp_path / "result.txt") as partial:
        partial.write_text("all")
        assert not (tmp_path / "result.txt").exists()
    assert (tmp_path / "result.txt").read_text() == "all" and not partial.exists()


def test_json_round_trip(tmp_path):
    content = {"a": [1, 2.5, None], "b": {"c": "é"}}
    write_json(tmp_path / "x.json", content)
    assert read_json(tmp_path / "x.json") == content


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_json_refuses_nan_and_writes_nothing(tmp_path, value):
    with pytest.raises(ValueError):
        write_json(tmp_path / "x.json", {"loss": value})
    assert list(tmp_path.iterdir()) == []


def test_a_broken_json_file_is_named_with_the_cure(tmp_path):
    (tmp_path / "x.json").write_text('{"a": 1')
    with pytest.raises(ValueError, match=r"x\.json is not valid JSON.*run its notebook again"):
        read_json(tmp_path / "x.json")


def test_tensors_and_notes_round_trip(tmp_path):
    base = torch.arange(12.0).view(3, 4).requires_grad_()
    write_tensors(
        tmp_path / "x.safetensors", {"a": base, "turned": base.T, "n": torch.tensor(3)}, {"by": "me"}
    )
    read = read_tensors(tmp_path / "x.safetensors")
    assert torch.equal(read["a"], base) and torch.equal(read["turned"], base.T) and read["n"] == 3
    assert read_notes(tmp_path / "x.safetensors") == {"by": "me"}


@pytest.mark.parametrize("read", [read_tensors, read_notes])
def test_missing_tensors_are_named_with_the_cure(tmp_path, read):
    with pytest.raises(FileNotFoundError, match=r"x\.safetensors does not exist; run the notebook"):
        read(tmp_path / "x.safetensors")


def test_the_digest_of_a_file_is_its_sha256(tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / "x").write_bytes(content)
    expected = hashlib.sha256(content).hexdigest()
    assert digest(tmp_path / "x") == digest(content) == expected


def test_the_digest_of_content_ignores_the_order_of_names_alone():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest({"a": 1, "b": [1, 2]}) != digest({"a": 1, "b": [2, 1]})


def test_provenance_has_commit_time_and_versions():
    facts = provenance()
    assert facts["commit"] == "unknown" or len(facts["commit"]) == 40
    assert facts["written"].endswith("+00:00") and facts["torch"][0].isdigit()
    json.dumps(facts)


@pytest.mark.parametrize(
    ("changed", "name"),
    [({}, "seed3"), ({"k": 2}, "seed3-k=2"), ({"k": None, "recipe": "released"}, "seed3-recipe=released")],
)
def test_a_run_is_named_by_seed_and_changes(changed, name):
    assert run_name(3, **changed) == name


CONFIG = {"seed": 0, "k": 1, "milestones": (11, 14), "train": {"lr": 0.1}}


def test_a_run_is_reused_only_when_finished(tmp_path):
    assert start_run(tmp_path / "run", CONFIG) is False
    assert start_run(tmp_path / "run", CONFIG) is False
    finish_run(tmp_path / "run", {"top1": 50.0})
    assert start_run(tmp_path / "run", CONFIG) is True


def test_the_marker_comes_last(tmp_path):
    start_run(tmp_path, CONFIG)
    assert not is_finished(tmp_path)
    with pytest.raises(ValueError):
        finish_run(tmp_path, {"top1": math.nan})
    assert not is_finished(tmp_path)
    finish_run(tmp_path, {"top1": 50.0})
    assert is_finished(tmp_path) and (tmp_path / FINISHED).is_file()
    assert read_json(tmp_path / "metrics.json") == {"top1": 50.0}


def test_another_configuration_is_refused_with_what_differs(tmp_path):
    start_run(tmp_path, CONFIG)
    with pytest.raises(ValueError) as caught:
        start_run(tmp_path, {**CONFIG, "k": 2, "new": "x"})
    message = str(caught.value)
    assert "k: 1 -> 2" in message and "new: None -> 'x'" in message and "seed:" not in message
    assert str(tmp_path) in message and "Delete that folder" in message


def test_a_refused_configuration_changes_nothing(tmp_path):
    start_run(tmp_path, CONFIG)
    finish_run(tmp_path, {})
    with pytest.raises(ValueError):
        start_run(tmp_path, {**CONFIG, "train": {"lr": 0.2}})
    assert start_run(tmp_path, CONFIG) is True


def test_an_unfinished_run_is_named_with_the_cure(tmp_path):
    start_run(tmp_path, CONFIG)
    with pytest.raises(FileNotFoundError, match="is missing or unfinished; run notebook 02"):
        require_finished(tmp_path, "run notebook 02")
    finish_run(tmp_path, {})
    assert require_finished(tmp_path, "run notebook 02") == tmp_path
