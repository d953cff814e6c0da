"""Controls: what is drawn first, what a moved control draws, and what reaches the page."""

import base64

import matplotlib.pyplot as plt
import pytest
from IPython.core.history import HistoryManager
from IPython.terminal.interactiveshell import TerminalInteractiveShell

from uniego_utils.figures.widgets import as_html, explore, explore_mixture

PRESETS = {"learned": {"a": 0.2, "b": 0.8}, "average": {"a": 0.5, "b": 0.5}, "only a": {"a": 1.0, "b": 0.0}}
LABELS = {"a": "proxy a", "b": "proxy b"}


@pytest.fixture
def displayed(monkeypatch):
    """What is displayed, instead of a page."""
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    return shown


def controls_of(widget) -> dict:
    """All controls below a box, by description."""
    found = {getattr(widget, "description", ""): widget}
    for child in getattr(widget, "children", ()):
        found |= controls_of(child)
    return found


def test_headless_exploring_draws_the_first_choices_once(displayed):
    calls = []
    explore(lambda **choices: calls.append(choices), False, clip=[3, 4], view=("ego", "exo"))
    assert calls == [{"clip": 3, "view": "ego"}] and not displayed


def test_exploring_may_begin_elsewhere(displayed):
    calls = []
    explore(lambda **choices: calls.append(choices), False, {"k": 2}, k=range(1, 4), clip=[3, 4])
    assert calls == [{"k": 2, "clip": 3}]


@pytest.mark.parametrize("first", [{"k": 4}, {"j": 1}])
def test_refuses_to_begin_with_what_cannot_be_chosen(first):
    with pytest.raises(ValueError, match="cannot begin with"):
        explore(lambda **choices: None, False, first, k=range(1, 4))


def test_a_moved_control_draws_anew(displayed):
    calls = []
    explore(lambda **choices: calls.append(choices), True, k=range(1, 6, 2), clip=["x", "y"])
    controls = controls_of(displayed[0])
    assert (controls["k"].min, controls["k"].max, controls["k"].step) == (1, 5, 2)
    controls["k"].value = 5
    controls["clip"].value = "y"
    assert calls == [{"k": 1, "clip": "x"}, {"k": 5, "clip": "x"}, {"k": 5, "clip": "y"}]


def test_headless_mixing_draws_the_first_preset_and_measures_nothing(displayed):
    calls = []
    explore_mixture(lambda *drawn: calls.append(drawn), pytest.fail, False, PRESETS, LABELS)
    assert calls == [({"a": 0.2, "b": 0.8}, None)] and not displayed


def test_weights_are_divided_by_their_sum_and_measured_when_asked(displayed):
    calls, asked = [], []

    def measure(shares):
        asked.append(shares)
        return {"nll": shares["a"]}

    explore_mixture(lambda *drawn: calls.append(drawn), measure, True, PRESETS, LABELS)
    controls = controls_of(displayed[0])
    controls["proxy a"].value = 0.4
    assert calls[-1] == ({"a": pytest.approx(1 / 3), "b": pytest.approx(2 / 3)}, None)
    controls["begin with"].value = "only a"
    assert calls[-1] == ({"a": 1.0, "b": 0.0}, None) and len(calls) == 3  # both sliders moved, drawn once
    assert not asked
    controls["Run this mixture"].click()
    assert asked == [{"a": 1.0, "b": 0.0}] and calls[-1] == (asked[0], {"nll": 1.0})
    controls["proxy b"].value = 1.0
    assert calls[-1] == ({"a": 0.5, "b": 0.5}, None)  # what was measured was another mixture


def test_no_weight_at_all_is_said_and_not_drawn(displayed):
    calls = []
    explore_mixture(lambda *drawn: calls.append(drawn), pytest.fail, True, PRESETS, LABELS)
    controls = controls_of(displayed[0])
    controls["begin with"].value = "only a"
    count = len(calls)
    controls["proxy a"].value = 0.0
    page = displayed[0].children[1]
    assert len(calls) == count and "move one up" in page.value


@pytest.mark.parametrize(
    "wrong", [{"a": 1.0}, {"a": 0.5, "c": 0.5}, {"a": 0.6, "b": 0.6}, {"a": 1.5, "b": -0.5}]
)
def test_refuses_a_preset_that_is_no_mixture(wrong):
    with pytest.raises(ValueError, match="preset wrong is no mixture of a, b"):
        explore_mixture(print, print, False, {"wrong": wrong}, LABELS)


@pytest.fixture
def shell(monkeypatch):
    monkeypatch.setattr(HistoryManager, "enabled", False)  # no file in the home folder
    shell = TerminalInteractiveShell.instance()
    shell.enable_matplotlib("inline")
    shell.display_formatter.active_types = (
        shell.display_formatter.format_types
    )  # pictures too, as in a kernel
    yield shell
    TerminalInteractiveShell.clear_instance()
    plt.switch_backend("agg")


def test_text_and_figures_reach_the_page_together(shell):
    def draw():
        print("1 < 2")
        for colour in "rb":
            _, ax = plt.subplots(figsize=(1, 1))
            ax.set_facecolor(colour)

    page = as_html(draw)
    pictures = [part.split('"')[0] for part in page.split("data:image/png;base64,")[1:]]
    assert "<pre>1 &lt; 2\n</pre>" in page and len(set(pictures)) == 2
    assert all(base64.b64decode(picture).startswith(b"\x89PNG") for picture in pictures)
    assert not plt.get_fignums()


def test_a_failure_is_shown_with_its_traceback(shell):
    page = as_html(lambda: 1 / 0)
    assert "Traceback" in page and "ZeroDivisionError" in page
