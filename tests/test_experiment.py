"""Opening a notebook: every parameter is checked, and paths mean the same from everywhere."""

import re
import types

import pytest
import torch
from IPython.core.history import HistoryManager
from IPython.core.interactiveshell import InteractiveShell

from uniego_utils.cards import PROJECT, load_card
from uniego_utils.experiment import COMMON, open_experiment
from uniego_utils.recipes import RELEASED

DATASET = "mocap"
PRESET = next(iter(load_card(DATASET).presets))
KINDS = {name: {"seed": "int", "interactive": "bool"}.get(name, "str") for name in COMMON} | {
    "k": "int",
    "methods": "list[str]",
    "window_s": "float",
}
GIVEN = {"dataset": DATASET, "preset": PRESET, "seed": 0, "outputs": "outputs", "interactive": False}
GIVEN |= {
    "data_root": "",
    "backbone": "",
    "recipe": "",
    "weights": "",
    "pairs": "card",
    "k": 0,
    "methods": [],
    "window_s": 0.5,
}


def opened(names=None, **changed):
    return open_experiment({**GIVEN, **(names or {}), **changed, "__annotations__": KINDS})


def test_an_experiment_has_the_cards_numbers():
    experiment, card = opened(), load_card(DATASET)
    assert (
        experiment.card == card
        and experiment.preset == card.preset(PRESET)
        and experiment.recipe_name == card.recipe
    )
    for name, value in experiment.preset.method.items():
        assert getattr(experiment.method, name) == value


def test_pairs_are_the_cards_where_it_names_some():
    assert opened().pairs == opened(pairs="unlabelled").pairs == "unlabelled"
    assert opened(pairs="").pairs == ""
    assert opened(dataset="assembly101", preset="").pairs == ""


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(dataset="mocpa"), "unknown dataset 'mocpa'.*mocap"),
        (dict(preset="huge"), f"unknown preset 'huge'.*{PRESET}"),
        (dict(recipe="mine"), "unknown recipe 'mine'.*paper, released"),
        (dict(pairs="pool"), "unknown pairs 'pool' for mocap; choose .*labels alone.*'unlabelled'"),
        (dict(dataset="assembly101", preset="", pairs="unlabelled"), "the card names no split of pairs"),
    ],
)
def test_unknown_choices_list_the_valid_ones(changed, message):
    with pytest.raises(ValueError, match=message):
        opened(**changed)


def test_an_unknown_parameter_lists_the_valid_ones():
    with pytest.raises(
        ValueError, match="unknown parameter sede; this notebook takes dataset, .*seed.*, window_s$"
    ):
        opened({"sede": 3})


@pytest.mark.parametrize("value", [True, 0.5, "x", [1], (1,), {"a": 1}, None])
def test_every_plain_value_counts_as_a_parameter(value):
    with pytest.raises(ValueError, match="unknown parameter stray"):
        opened({"stray": value})


def test_imports_and_private_names_are_no_parameters():
    namespace = {"_": 3, "_i1": "x", "In": [], "Out": {}, "torch": torch, "path": PROJECT, "f": opened}
    assert opened(namespace | {"module": types.ModuleType("m")}).seed == 0


PARAMETERS = f"""dataset: str = {DATASET!r}  # a card
preset: str = {PRESET!r}
seed: int = 0
k: int = 0
methods: list[str] = ["uniego"]
outputs: str = 'outputs'
interactive: bool = False"""
SET_UP = """from uniego_utils.experiment import open_experiment
experiment = open_experiment(globals())
other = ["set", "by", "the", "set-up", "cell"]"""


@pytest.fixture
def run():
    """Runs cells one after the other as a kernel does; gives what the last one raised, or None."""
    HistoryManager.enabled = False  # no file in the home folder
    shell = InteractiveShell()

    def run_cells(*cells):
        for cell in cells:
            ended = shell.run_cell(cell, store_history=True)
        return ended.error_in_exec

    yield run_cells
    HistoryManager.enabled = True


def test_a_set_up_cell_can_be_run_again_after_later_cells(run):
    assert run(PARAMETERS, SET_UP, "labels = {1: 2}\nfor place in range(3):\n    pass", SET_UP) is None
    assert run("seed = 1", SET_UP, "assert experiment.seed == 1") is None
    assert run("%precision 3", "!!!", PARAMETERS, SET_UP, "assert experiment.seed == 0") is None


@pytest.mark.parametrize(
    ("injected", "message"),
    [
        ("k = 3.0", r"parameter k should be a whole number \(int\), got 3.0"),
        ("k = True", r"parameter k should be a whole number \(int\), got True"),
        ("methods = 'uniego'", r"parameter methods should be a list of str \(list\[str\]\), got 'uniego'"),
        (PARAMETERS.replace("k: int = 0", "k: int = 'many'"), "parameter k should be a whole number"),
    ],
)
def test_a_notebooks_own_parameters_are_checked_by_type(run, injected, message):
    raised = run(PARAMETERS, injected, SET_UP)
    assert isinstance(raised, TypeError) and re.search(message, str(raised))


def test_a_whole_number_is_taken_for_a_float():
    names = {**GIVEN, "window_s": 2, "__annotations__": KINDS}
    open_experiment(names)
    assert type(names["window_s"]) is float and names["window_s"] == 2


def test_parameters_that_every_notebook_needs_are_asked_for():
    with pytest.raises(ValueError, match="declare the parameters dataset, interactive, outputs"):
        open_experiment({"seed": 0, "__annotations__": {"seed": "int"}})


@pytest.mark.parametrize(
    "injected", ["sede = 1", PARAMETERS + "\nsede = 1", "sede: int = 1", "seed, sede = 1, 2"]
)
def test_an_unknown_parameter_is_refused_until_it_is_taken_away(run, injected):
    for _ in range(2):
        assert "unknown parameter sede;" in str(run(PARAMETERS, injected, SET_UP))
        assert "unknown parameter sede;" in str(run(SET_UP))
    assert run(PARAMETERS, SET_UP) is None


def test_a_parameter_added_later_to_the_parameters_cell_is_refused(run):
    assert run(PARAMETERS, SET_UP, "labels = 3") is None
    assert "unknown parameter sede;" in str(run(PARAMETERS + "\nsede = 1", SET_UP))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", "0"),
        ("seed", True),
        ("seed", 1.0),
        ("outputs", None),
        ("outputs", PROJECT),
        ("interactive", "False"),
        ("interactive", 0),
        ("preset", 3),
        ("backbone", None),
        ("k", 3.0),
        ("k", True),
        ("methods", "uniego"),
        ("methods", ["uniego", 3]),
        ("methods", ("uniego",)),
        ("window_s", "0.5"),
        ("window_s", True),
    ],
)
def test_a_parameter_of_a_wrong_type_is_named(name, value):
    with pytest.raises(TypeError, match=f"parameter {name} should be"):
        opened(**{name: value})


def test_relative_paths_are_meant_from_the_project(tmp_path, monkeypatch):
    before = opened(outputs="../elsewhere", data_root="data")
    monkeypatch.chdir(tmp_path)
    after = opened(outputs="../elsewhere", data_root="data")
    assert before.outputs == after.outputs == PROJECT.parent / "elsewhere" / DATASET
    assert before.data_root == after.data_root == PROJECT / "data"


def test_absolute_paths_stay(tmp_path):
    experiment = opened(outputs=str(tmp_path / "out"), data_root=str(tmp_path / "data"))
    assert experiment.outputs == tmp_path / "out" / DATASET and experiment.data_root == tmp_path / "data"


def test_clips_lie_below_the_outputs_unless_said(tmp_path):
    assert opened(outputs=str(tmp_path)).data_root == tmp_path / DATASET / "00_data"


def test_opening_an_experiment_writes_nothing(tmp_path):
    opened(outputs=str(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_run_folders_are_named_by_seed_recipe_and_changes(tmp_path):
    def folder(experiment, **changed):
        return str(experiment.folder("04_spd", **changed).relative_to(tmp_path / DATASET))

    out = dict(outputs=str(tmp_path), seed=2)
    assert folder(opened(**out)) == "04_spd/seed2"
    assert folder(opened(**out), k=3) == "04_spd/seed2-k=3"
    assert folder(opened(**out, recipe="released")) == "04_spd/seed2-recipe=released"
    other = "uniego_utils.backbones.timesformer"  # by its path instead of its name
    assert folder(opened(**out, backbone=other)) == f"04_spd/seed2-backbone={other}"
    usual = load_card(DATASET).preset(PRESET).backbone
    assert folder(opened(**out, backbone=usual)) == "04_spd/seed2"


def test_the_released_recipe_is_the_released_one():
    assert opened(recipe="released").recipe is RELEASED


def test_an_unknown_split_lists_the_valid_ones():
    with pytest.raises(ValueError, match="no split 'tset'.*train, val, test"):
        opened().manifest("tset")


def test_an_experiments_backbone_is_drawn_from_its_seed():
    one, same, other = (opened(seed=seed).backbone().head.weight for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_an_unknown_backbone_lists_the_valid_ones():
    with pytest.raises(ValueError, match="'resnet'.*timesformer"):
        opened(backbone="resnet")
