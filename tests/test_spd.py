"""Proxy selection (equation 4) against a slow loop, its invariances and refusals."""

import math

import pytest
import torch

from uniego_utils.candidates import Candidates, random_proxies, select_proxies, top_of_each
from uniego_utils.methods import METHODS
from uniego_utils.objectives import proxy_cross_entropy
from uniego_utils.rivals import confidence_weights


def logits_of(clips, proxies, classes, seed):
    return 2 * torch.randn(clips, proxies, classes, generator=torch.Generator().manual_seed(seed))


def labels_of(clips, classes, seed):
    return torch.randint(classes, (clips,), generator=torch.Generator().manual_seed(100 + seed))


def slow_selection(logits, labels, k, ceiling=None, correct_only=True):
    selected = torch.zeros(logits.shape[:2], dtype=torch.bool)
    for i, of_clip in enumerate(logits.tolist()):
        candidates = []
        for r, z in enumerate(of_clip):
            loss = math.log(sum(math.exp(value) for value in z)) - z[labels[i]]
            correct = not correct_only or z.index(max(z)) == labels[i]
            if correct and (ceiling is None or loss <= ceiling):
                candidates.append((round(loss, 5), r))  # equal up to float32: the first proxy in order
        for _, r in sorted(candidates)[:k]:
            selected[i, r] = True
    return selected


@pytest.mark.parametrize("ceiling", [None, 0.3])
@pytest.mark.parametrize("k", [1, 2, 9])
@pytest.mark.parametrize("proxies", [1, 4])
@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_the_definition(proxies, k, ceiling, seed):
    logits, labels = logits_of(60, proxies, 3, seed), labels_of(60, 3, seed)
    assert torch.equal(select_proxies(logits, labels, k, ceiling), slow_selection(logits, labels, k, ceiling))


@pytest.mark.parametrize("ceiling", [None, 0.8])
def test_without_the_condition_wrong_proxies_are_candidates(ceiling):
    logits, labels = logits_of(60, 4, 3, 0), labels_of(60, 3, 0)
    selected = select_proxies(logits, labels, 3, ceiling, correct_only=False)
    assert torch.equal(selected, slow_selection(logits, labels, 3, ceiling, correct_only=False))
    assert (selected & (logits.argmax(-1) != labels[:, None])).any()


@pytest.mark.parametrize("k", [1, 2, 3])
def test_agrees_with_the_definition_where_proxies_tie(k):
    few = torch.tensor([[3.0, 0.0], [0.0, 3.0], [1.0, 0.0]])  # sure, wrong, less sure, for label 0
    picks = torch.randint(3, (80, 5), generator=torch.Generator().manual_seed(0))
    logits, labels = few[picks], torch.zeros(80, dtype=torch.long)
    assert torch.equal(select_proxies(logits, labels, k), slow_selection(logits, labels, k))


def test_of_equal_proxies_the_first_wins():
    logits = torch.tensor([1.0, 0.0]).expand(1, 40, 2)  # many: an unstable sort would shuffle them
    assert select_proxies(logits, torch.tensor([0]), 2).nonzero()[:, 1].tolist() == [0, 1]


def test_selects_no_more_than_are_correct():
    logits = torch.tensor([[[2.0, 0.0], [0.0, 2.0], [1.0, 0.0]]])
    assert select_proxies(logits, torch.tensor([0]), 7).tolist() == [[True, False, True]]


def test_selects_none_where_no_proxy_is_correct():
    logits = torch.tensor([[[2.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [2.0, 0.0]]])
    assert select_proxies(logits, torch.tensor([1, 1]), 2).tolist() == [[False, False], [True, False]]


def test_a_ceiling_removes_correct_but_unsure_proxies():
    logits = torch.tensor([[[0.1, 0.0], [3.0, 0.0]]])  # cross-entropies 0.64 and 0.05
    assert select_proxies(logits, torch.tensor([0]), 2, ce_ceiling=0.5).tolist() == [[False, True]]


def test_the_order_of_proxies_does_not_matter_without_ties():
    logits, labels = logits_of(50, 6, 3, 0), labels_of(50, 3, 0)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(
        select_proxies(logits[:, order], labels, 2), select_proxies(logits, labels, 2)[:, order]
    )


def test_a_larger_k_keeps_what_a_smaller_one_selected():
    logits, labels = logits_of(50, 6, 3, 0), labels_of(50, 3, 0)
    one, two = select_proxies(logits, labels, 1), select_proxies(logits, labels, 2)
    assert (one <= two).all() and (one < two).any()


@pytest.mark.parametrize("k", [0, -1])
def test_refuses_to_select_nobody(k):
    with pytest.raises(ValueError, match=f"k is {k}"):
        select_proxies(logits_of(4, 3, 2, 0), labels_of(4, 2, 0), k)


@pytest.mark.parametrize(("logits", "labels"), [((4, 3), (4,)), ((4, 3, 2), (3,)), ((4, 3, 2), (4, 3))])
def test_refuses_shapes_that_do_not_match(logits, labels):
    with pytest.raises(ValueError, match="expected logits"):
        select_proxies(torch.zeros(logits), torch.zeros(labels, dtype=torch.long), 1)


def test_names_the_first_logits_that_are_not_finite():
    logits = logits_of(5, 3, 2, 0)
    logits[2, 1, 0] = math.nan
    with pytest.raises(ValueError, match=r"1 \(clip, proxy\).*\[2, 1\]"):
        select_proxies(logits, labels_of(5, 2, 0), 1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_refuses_a_clip_whose_proxies_are_all_not_finite(bad):
    logits = logits_of(5, 3, 2, 0)
    logits[4] = bad
    with pytest.raises(ValueError, match=r"3 \(clip, proxy\).*\[4, 0\]"):
        select_proxies(logits, labels_of(5, 2, 0), 1)


@pytest.mark.parametrize("ceiling", [None, 0.3])
def test_the_best_of_each_viewpoint_agrees_with_two_separate_selections(ceiling):
    logits, labels = logits_of(60, 5, 3, 0), labels_of(60, 3, 0)
    groups = ["ego", "exo", "exo", "ego", "exo"]
    selected = top_of_each(logits, labels, groups, ce_ceiling=ceiling)
    for group in ("ego", "exo"):
        own = [r for r, name in enumerate(groups) if name == group]
        assert torch.equal(selected[:, own], slow_selection(logits[:, own], labels, 1, ceiling))
    assert (selected.sum(1) <= 2).all() and (selected.sum(1) == 2).any()


def test_the_recipes_ceiling_holds_for_every_selection():
    logits, labels = logits_of(60, 9, 3, 0), labels_of(60, 3, 0)
    unsure = proxy_cross_entropy(logits, labels) > 0.3
    viewpoints = ("ego", "exo", "exo") * 3
    clips = Candidates(torch.zeros(60, 9, 2), logits, labels, ce_ceiling=0.3, viewpoints=viewpoints)
    for name in ("uniego", "top2", "ego_exo"):
        weights = METHODS[name].weights(clips)
        assert (weights > 0).any() and not (weights[unsure] > 0).any()


def test_the_best_of_one_group_is_the_best_of_all():
    logits, labels = logits_of(60, 4, 3, 1), labels_of(60, 3, 1)
    assert torch.equal(top_of_each(logits, labels, ["exo"] * 4), select_proxies(logits, labels, 1))


def test_refuses_viewpoints_of_another_pool():
    with pytest.raises(ValueError, match="2 groups for 3 proxies"):
        top_of_each(logits_of(4, 3, 2, 0), labels_of(4, 2, 0), ["ego", "exo"])


def test_confidence_weights_agree_with_the_definition():
    logits, labels = logits_of(20, 4, 3, 0), labels_of(20, 3, 0)
    weights = confidence_weights(logits, labels)
    for i, of_clip in enumerate(logits.tolist()):
        losses = [math.log(sum(map(math.exp, z))) - z[labels[i]] for z in of_clip]
        total = sum(map(math.exp, losses))
        expected = [(1 - math.exp(loss) / total) / 3 for loss in losses]
        assert weights[i].tolist() == pytest.approx(expected, abs=1e-5)
    torch.testing.assert_close(weights.sum(1), torch.ones(20))


def test_a_proxy_alone_has_all_confidence():
    assert confidence_weights(logits_of(5, 1, 3, 0), labels_of(5, 3, 0)).tolist() == [[1.0]] * 5


def test_random_proxies_are_one_a_clip_and_the_seeds():
    drawn = random_proxies(900, 9, seed=3)
    assert (drawn.sum(1) == 1).all() and drawn.sum(0).min() > 60
    assert torch.equal(drawn, random_proxies(900, 9, seed=3))
    assert not torch.equal(drawn, random_proxies(900, 9, seed=4))
