"""Pairs without labels: a committee against slow votes, and that labels are never read."""

import pytest
import torch
from torch.nn import functional as F

from uniego_utils.candidates import (
    Candidates,
    committee,
    everyone,
    most_confident,
    select_proxies,
    selected,
    selected_by_truth,
    selected_with_equal_votes,
    trust_by_loss,
)
from uniego_utils.data.manifests import UNKNOWN
from uniego_utils.data.video import WithPairs
from uniego_utils.objectives import Classification


def candidates_of(logits, labels=None, k=1):
    clips, proxies, _ = logits.shape
    labels = torch.full((clips,), UNKNOWN) if labels is None else labels
    return Candidates(torch.zeros(clips, proxies, 2), logits, labels, k)


def logits_of(clips, proxies, classes, seed=0):
    return 2 * torch.randn(clips, proxies, classes, generator=torch.Generator().manual_seed(seed))


def test_the_committee_is_the_mean_of_probabilities():
    logits = logits_of(5, 3, 4)
    for i in range(5):
        slow = sum(z.exp() / z.exp().sum() for z in logits[i]) / 3
        torch.testing.assert_close(committee(logits)[i], slow)


def test_whoever_names_labelled_clips_better_has_more_votes():
    """Shares against a slow softmax; a committee of one trusted member says what that member says."""
    logits, labels = logits_of(30, 4, 3), torch.arange(30) % 3
    trust = trust_by_loss(logits, labels, 0.2)
    losses = [F.cross_entropy(logits[:, r], labels).item() for r in range(4)]
    slow = torch.tensor([-loss / 0.2 for loss in losses]).exp()
    torch.testing.assert_close(trust, slow / slow.sum())
    mixed = committee(logits, trust)
    slow = sum(share * logits[:, r].softmax(-1) for r, share in enumerate(trust))
    torch.testing.assert_close(mixed, slow)
    torch.testing.assert_close(committee(logits, torch.full((4,), 0.25)), committee(logits))
    alone = torch.tensor([0.0, 1.0, 0.0, 0.0])
    pairs = Candidates(torch.zeros(30, 4, 2), logits, torch.full((30,), UNKNOWN), trust=alone)
    assert torch.equal(pairs.answers, logits[:, 1].argmax(-1))


@pytest.mark.parametrize("k", [1, 2, 5])
def test_consensus_agrees_with_a_slow_vote(k):
    logits = logits_of(60, 5, 3)
    chosen = selected(candidates_of(logits, k=k))
    for i in range(60):
        shares = [z.exp() / z.exp().sum() for z in logits[i]]
        said = int(sum(shares).argmax())
        agreeing = [r for r, z in enumerate(shares) if int(z.argmax()) == said]
        best = sorted(agreeing, key=lambda r: -shares[r][said])[:k]
        assert chosen[i].nonzero().flatten().tolist() == sorted(best)
        torch.testing.assert_close(chosen[i, best], torch.full((len(best),), 1 / len(best)))


def test_weights_are_selected_by_label_then_by_consensus():
    labelled, unlabelled = logits_of(6, 4, 3), logits_of(9, 4, 3, seed=1)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    logits = torch.cat([labelled, unlabelled])
    clips = candidates_of(logits, torch.cat([labels, torch.full((9,), UNKNOWN)]))
    chosen = selected(clips)
    right = labelled.argmax(-1) == labels[:, None]
    assert torch.equal(chosen[:6].sum(1) > 0, right.any(1)) and not (chosen[:6].bool() & ~right).any()
    assert torch.equal(chosen[6:], selected(candidates_of(unlabelled)))
    assert torch.equal(everyone(clips), torch.full((15, 4), 0.25))


def test_other_ways_to_select_on_pairs():
    logits = logits_of(20, 4, 3)
    truth = torch.arange(20) % 3
    labels = torch.where(torch.arange(20) < 8, truth, UNKNOWN)
    trust = torch.tensor([0.7, 0.1, 0.1, 0.1])
    known = Candidates(torch.zeros(20, 4, 2), logits, labels, trust=trust, read_truth=lambda: truth)
    assert torch.equal(selected_by_truth(known), select_proxies(logits, truth, 1).float())
    equal = selected_with_equal_votes(known)
    votes = torch.where(labels >= 0, labels, logits.softmax(-1).mean(1).argmax(-1))
    assert torch.equal(equal, select_proxies(logits, votes, 1).float())
    assert not torch.equal(equal, selected(known))
    sure = most_confident(known)
    assert torch.equal(sure[:8], selected(known)[:8])
    for i in range(8, 20):
        best = max(range(4), key=lambda r: logits[i, r].softmax(-1).max().item())
        assert sure[i].tolist() == [float(r == best) for r in range(4)]


class Clips:
    """Items that say which they are; their labels are real ones."""

    cached, video = None, None

    def __init__(self, name, count):
        self.name, self.count = name, count

    def __len__(self):
        return self.count

    def __getitem__(self, item):
        row, seed = item
        return {"clips": (self.name, row, seed), "labels": row % 3, "rows": row}


def test_an_epoch_has_all_labelled_clips_and_as_many_pairs_without_their_labels():
    both = WithPairs(Clips("train", 4), Clips("pairs", 7))
    assert len(both) == 8
    items = [both[place, 11] for place in range(8)]
    assert [item["clips"] for item in items[:4]] == [("train", row, 11) for row in range(4)]
    assert [item["labels"] for item in items] == [0, 1, 2, 0] + [UNKNOWN] * 4
    for item in items[4:]:
        name, row, seed = item["clips"]
        assert (name, seed) == ("pairs", 11) and item["rows"] == 4 + row


def rows_of(both):
    return [[both[place, seed]["rows"] for place in range(len(both))] for seed in range(40)]


def test_all_pairs_get_their_turn():
    epochs = [epoch[4:] for epoch in rows_of(WithPairs(Clips("train", 4), Clips("pairs", 7)))]
    assert all(len(set(epoch)) == 4 for epoch in epochs) and set().union(*epochs) == set(range(4, 11))


def test_given_labels_reach_the_clips_they_belong_to():
    given = tuple(range(20, 27))
    both = WithPairs(Clips("train", 4), Clips("pairs", 7), given)
    for seed in range(10):
        for place in range(4, 8):
            item = both[place, seed]
            assert item["labels"] == given[item["rows"] - 4]


def test_chosen_rows_alone_are_seen():
    both = WithPairs(Clips("train", 4), Clips("pairs", 7), chosen=(1, 3, 4, 5, 9))
    epochs = rows_of(both)
    assert len(both) == 4 and all(epoch[:2] == [1, 3] for epoch in epochs)
    assert {row for epoch in epochs for row in epoch[2:]} == {4, 5, 9}


@pytest.mark.parametrize("chosen", [(0, 1), (4, 5), ()])
def test_refuses_a_choice_without_labelled_clips_or_without_pairs(chosen):
    with pytest.raises(ValueError, match="labelled clips and .* pairs chosen"):
        WithPairs(Clips("train", 4), Clips("pairs", 7), chosen=chosen)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_clips_of_unknown_label_have_no_cross_entropy(smoothing):
    logits, labels = logits_of(6, 1, 3)[:, 0], torch.tensor([0, 1, 2, UNKNOWN, UNKNOWN, UNKNOWN])
    whole = Classification(smoothing).cross_entropy(logits, labels)
    torch.testing.assert_close(whole, F.cross_entropy(logits[:3], labels[:3], label_smoothing=smoothing))


def test_a_batch_without_any_label_is_no_division_by_zero():
    """The last batch of an epoch is small, and may be unlabelled as a whole."""
    logits = logits_of(4, 1, 3)[:, 0].requires_grad_()
    loss = Classification(0.1).cross_entropy(logits, torch.full((4,), UNKNOWN))
    loss.backward()
    assert loss == 0 and (logits.grad == 0).all()
