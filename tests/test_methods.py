"""The register: every entry can be trained, found and compared."""

from dataclasses import replace

import pytest

from uniego_utils.cards import MethodCard
from uniego_utils.methods import (
    MERGES,
    METHODS,
    START,
    choose,
    missing_controls,
    of_notebook,
    proxy_of,
)
from uniego_utils.objectives import Classification, ProxyDistillation
from uniego_utils.pipeline.notebooks import NOTEBOOKS


@pytest.mark.parametrize("key", METHODS)
def test_an_entry_names_what_there_is(key):
    method = METHODS[key]
    assert method.notebook in {notebook.name for notebook in NOTEBOOKS}
    assert set(method.controls) <= METHODS.keys() and key not in method.controls
    if key in MERGES:
        assert method.objective is None and method.notebook == "03_merging"
        return
    assert method.start in METHODS or (key, method.start) == (START, "")
    assert issubclass(method.objective, Classification)
    assert (method.weights is not None) == issubclass(method.objective, ProxyDistillation)
    assert method.settings in ("start", "proxy", "spd") and method.times >= 1
    assert set(method.changes) <= vars(MethodCard()).keys()


def test_every_entry_is_of_one_notebook():
    listed = [key for notebook in NOTEBOOKS for key in of_notebook(notebook.name)]
    assert sorted(listed) == sorted(METHODS)


def test_changes_are_of_the_card_alone():
    card = MethodCard(k=3)
    assert METHODS["warm"].changed(card) == replace(card, tau=4.0) and METHODS["uniego"].changed(card) == card


def test_a_proxy_learns_from_its_teacher_from_the_common_start():
    proxy = proxy_of("exo_skl", "Exo skeleton")
    assert (proxy.label, proxy.sources, proxy.start) == ("Proxy: Exo skeleton", ("exo_skl",), START)


def test_missing_controls_are_named_once():
    assert missing_controls(of_notebook("04_spd")) == []
    assert missing_controls(choose(["uniego", "merged_ce"], METHODS)) == ["ego_longer", "naive_longer"]
    assert missing_controls(choose(["top2", "top3"], METHODS)) == ["uniego"]
