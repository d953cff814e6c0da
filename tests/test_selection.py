"""Counting the selection: against loops over clips, ties, clips that nobody knows, watched training."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from uniego_utils.analyses.selection_rates import (
    confidence_gaps,
    effective_proxies,
    overall_rates,
    preferences,
    selection_over_training,
    selection_rates,
)
from uniego_utils.candidates import select_proxies
from uniego_utils.cards import MethodCard
from uniego_utils.data.manifests import UNKNOWN
from uniego_utils.objectives import ProxyDistillation, shares
from uniego_utils.recipes import PAPER, RELEASED
from uniego_utils.report.paper import paper_table
from uniego_utils.spd import SelectionLogger

CLASSES, PROXIES = ("walk", "run", "jump", "never"), ("a", "b", "c")
N, R, C, D = 60, 3, 4, 5


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def labels():
    return torch.arange(N) % 3  # the last class has no clips


@pytest.fixture
def logits():
    return 2 * draw(N, R, C)


def slow_losses(logits, labels):
    """Cross-entropy of each proxy that is right on each clip, by the definition."""
    found = []
    for z, y in zip(logits.double().numpy(), labels.tolist(), strict=True):
        losses = [np.log(np.exp(row).sum()) - row[y] for row in z]
        found.append([loss for loss, row in zip(losses, z, strict=True) if row.argmax() == y])
    return found


@pytest.mark.parametrize("k", [1, 2])
def test_rates_agree_with_counting(logits, labels, k):
    selected = select_proxies(logits, labels, k)
    rates = selection_rates(selected, labels.tolist(), CLASSES, PROXIES)
    assert list(rates.index) == ["walk", "run", "jump"] and list(rates.columns) == ["none", *PROXIES]
    for number, label in enumerate(rates.index):
        own = [
            set(np.flatnonzero(row)) for row, y in zip(selected.numpy(), labels, strict=True) if y == number
        ]
        assert rates.loc[label, "none"] == pytest.approx(sum(not chosen for chosen in own) / len(own))
        for place, name in enumerate(PROXIES):
            assert rates.loc[label, name] == pytest.approx(sum(place in chosen for chosen in own) / len(own))
    assert (k > 1) or np.allclose(rates.sum(axis=1), 1)
    weighted = (rates.T * labels.bincount().numpy()).T.sum() / N  # all clips are the classes' clips
    assert np.allclose(overall_rates(selected, PROXIES), weighted)


def test_rates_without_any_reliable_proxy(labels):
    nobody = torch.zeros(N, R, dtype=torch.bool)
    rates = selection_rates(nobody, labels.tolist(), CLASSES, PROXIES)
    assert (rates["none"] == 1).all() and (rates[list(PROXIES)] == 0).all(axis=None)
    with pytest.raises(ValueError, match="no clip has a reliable proxy"):
        effective_proxies(overall_rates(nobody, PROXIES))


def test_rates_refuse_other_clips(labels):
    with pytest.raises(ValueError, match=r"\(60, 3\) for \(clips, proxies\), got \(59, 3\)"):
        selection_rates(torch.ones(N - 1, R, dtype=torch.bool), labels.tolist(), CLASSES, PROXIES)


@pytest.mark.parametrize("number, gap, most", [(11, 0.186, 0.347), (12, 0.069, 0.156)])
def test_preferences_give_the_papers_gap(number, gap, most):
    """Appendix F prints the mean gap between the first and the second proxy of a class."""
    rates = paper_table(number).pivot(index="class", columns="proxy", values="rate")
    found = preferences(rates)
    assert found["rate_gap"].mean() == pytest.approx(gap, abs=6e-4)
    assert rates.mean().drop("none").idxmax() == "exo_rgb" and rates["exo_rgb"].mean() == pytest.approx(
        most, abs=6e-4
    )
    assert number == 12 or found.loc["Kneeling pushing-ups", "first"] == "exo_depth"


def test_preferences_with_ties_and_with_one_proxy():
    selected = torch.tensor([[True, False], [False, True], [False, False]])
    tie = preferences(selection_rates(selected, [0, 0, 0], ["x"], ["b", "a"])).loc["x"]
    assert (tie["first"], tie["second"], tie["rate_gap"]) == ("b", "a", 0)
    one = preferences(selection_rates(selected[:, :1], [0, 0, 0], ["x"], ["b"])).loc["x"]
    assert (one["first"], one["second"]) == ("b", "") and one["rate_gap"] == pytest.approx(1 / 3)


def test_effective_proxies_counts_equal_ones_and_is_one_for_a_monopoly():
    equal = torch.eye(3, dtype=torch.bool)
    assert effective_proxies(overall_rates(equal, PROXIES)) == pytest.approx(3)
    with_nobody = torch.cat([equal, torch.zeros(5, 3, dtype=torch.bool)])
    assert effective_proxies(overall_rates(with_nobody, PROXIES)) == pytest.approx(3)
    assert effective_proxies(overall_rates(equal[[0, 0]], PROXIES)) == pytest.approx(1)
    half = effective_proxies(overall_rates(equal[[0, 0, 0, 1]], PROXIES))
    assert half == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))


def test_gaps_agree_with_a_loop(logits, labels):
    count, gaps = confidence_gaps(logits, labels)
    losses = slow_losses(logits, labels)
    assert count.tolist() == [len(own) for own in losses]
    expected = {row: sorted(own)[1] - sorted(own)[0] for row, own in enumerate(losses) if len(own) >= 2}
    assert 0 < len(expected) < N and list(gaps.index) == list(expected)
    assert np.allclose(gaps, list(expected.values()), atol=1e-5)


def test_gaps_with_a_ceiling_ties_and_one_proxy(logits, labels):
    count, gaps = confidence_gaps(logits, labels, ce_ceiling=0.2)
    assert count.tolist() == [sum(loss <= 0.2 for loss in own) for own in slow_losses(logits, labels)]
    _, tied = confidence_gaps(logits[:, [0, 0]], labels)
    assert len(tied) and (tied == 0).all()
    count, alone = confidence_gaps(logits[:, :1], labels)
    assert len(alone) == 0 and set(count.tolist()) == {0, 1}


def logger_of(recipe, k=1, epochs=2):
    """UNIEGO's loss and, with the same weights, the one that logs its selection."""
    features, logits, labels = draw(N, R, D, seed=1), 2 * draw(N, R, C, seed=2), torch.arange(N) % 3
    weights = shares(select_proxies(logits, labels, k))
    pair = []
    for kind in (ProxyDistillation, SelectionLogger):
        torch.manual_seed(0)
        pair.append(kind(features, logits, weights, labels, MethodCard(), recipe))
    pair[1].log(epochs, N, k, recipe.spd_ce_ceiling)
    return *pair, labels


@pytest.mark.parametrize("recipe", [PAPER, RELEASED])
def test_logging_changes_no_loss_and_keeps_each_epochs_selection(recipe):
    objective, logger, labels = logger_of(recipe)
    student = draw(N, C, seed=3)
    for epoch in range(2):
        views = 2 * draw(N, R, C, seed=10 + epoch)
        for rows in torch.randperm(N, generator=torch.Generator().manual_seed(epoch)).split(16):
            batch = {"rows": rows, "labels": labels[rows]}
            live = {"proxy_features": draw(len(rows), R, D), "proxy_logits": views[rows]}
            inputs = draw(len(rows), D, seed=4), student[rows]
            plain = objective(*inputs, batch | (live if recipe.spd_live_targets else {}))
            assert torch.equal(logger(*inputs, batch | live)["loss"], plain["loss"])
        for row in range(N):
            losses = nn.functional.cross_entropy(views[row], labels[row].expand(R), reduction="none")
            right = [r for r in range(R) if views[row, r].argmax() == labels[row]]
            if recipe.spd_ce_ceiling is not None:
                right = [r for r in right if losses[r] <= recipe.spd_ce_ceiling]
            best = min(right, key=lambda r: losses[r]) if right else None
            own = nn.functional.cross_entropy(student[row], labels[row])
            kept = {
                name: getattr(logger, name)[epoch, row].nonzero().flatten().tolist()
                for name in ("selected", "better")
            }
            assert kept["selected"] == ([] if best is None else [best])
            assert kept["better"] == ([best] if best is not None and losses[best] < own else [])


def test_clips_without_a_label_are_not_recorded():
    """Rows behind the labelled clips: the same loss as without the log, and no trace in it."""
    count = N + 10
    features, logits = draw(count, R, D, seed=1), 2 * draw(count, R, C, seed=2)
    answers = torch.arange(count) % 3
    weights = shares(select_proxies(logits, answers, 1))
    plain, logger = (
        kind(features, logits, weights, answers, MethodCard(), PAPER)
        for kind in (ProxyDistillation, SelectionLogger)
    )
    logger.log(1, N, 1, None)
    rows = torch.tensor([0, 3, N, N + 9])
    batch = {"rows": rows, "labels": torch.tensor([0, 0, UNKNOWN, UNKNOWN])}
    live = {"proxy_features": draw(4, R, D), "proxy_logits": 2 * draw(4, R, C)}
    inputs = draw(4, D, seed=4), draw(4, C, seed=5)
    assert torch.equal(logger(*inputs, batch | live)["loss"], plain(*inputs, batch | live)["loss"])
    assert logger.selected.shape == (1, N, R) and logger.views.nonzero().flatten().tolist() == [0, 3]
    assert torch.equal(
        logger.selected[0, [0, 3]], select_proxies(live["proxy_logits"][:2], answers[[0, 3]], 1)
    )


def test_the_selection_over_training_counts_changes():
    first = torch.tensor([[True, False], [True, False], [False, False], [False, True]])
    second = torch.tensor([[True, False], [False, True], [False, True], [False, True]])
    followed = {"selected": torch.stack([second, second]), "better": torch.stack([second, first & second])}
    table = selection_over_training(first, followed, ["a", "b"])
    assert table["changed"].tolist() == [0, 0.5, 0]
    assert table["alone"].tolist()[1:] == [0, 0.5]
    assert table["none"].tolist() == [0.25, 0, 0] and table["a"].tolist() == [0.5, 0.25, 0.25]
