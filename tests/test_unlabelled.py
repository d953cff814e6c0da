"""A committee on clips without labels: against slow votes, and that labels are never read."""

import pytest
import torch
from torch.nn import functional as F

from uniego_utils.candidates import Candidates, committee, select_by_consensus
from uniego_utils.data.video import UNKNOWN, WithUnlabelled
from uniego_utils.methods import METHODS
from uniego_utils.objectives import Classification


def logits_of(clips, proxies, classes, seed=0):
    return 2 * torch.randn(clips, proxies, classes, generator=torch.Generator().manual_seed(seed))


def test_the_committee_is_the_mean_of_probabilities():
    logits = logits_of(5, 3, 4)
    for i in range(5):
        slow = sum(z.exp() / z.exp().sum() for z in logits[i]) / 3
        torch.testing.assert_close(committee(logits)[i], slow)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_consensus_agrees_with_a_slow_vote(k):
    logits = logits_of(60, 5, 3)
    selected = select_by_consensus(logits, k)
    for i in range(60):
        shares = [z.exp() / z.exp().sum() for z in logits[i]]
        said = int(sum(shares).argmax())
        agreeing = [r for r, z in enumerate(shares) if int(z.argmax()) == said]
        best = sorted(agreeing, key=lambda r: -shares[r][said])[:k]
        assert selected[i].nonzero().flatten().tolist() == sorted(best)


def test_weights_are_selected_by_label_then_by_consensus():
    labelled, unlabelled = logits_of(6, 4, 3), logits_of(9, 4, 3, seed=1)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    logits = torch.cat([labelled, unlabelled])
    clips = Candidates(torch.zeros(15, 4, 2), logits, torch.cat([labels, torch.full((9,), UNKNOWN)]))
    chosen = METHODS["uniego_unlabelled"].weights(clips)
    right = labelled.argmax(-1) == labels[:, None]
    assert torch.equal(chosen[:6].sum(1) > 0, right.any(1)) and not (chosen[:6].bool() & ~right).any()
    assert torch.equal(chosen[6:].bool(), select_by_consensus(unlabelled, 1))
    assert torch.equal(METHODS["all_unlabelled"].weights(clips), torch.full((15, 4), 0.25))


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


def test_an_epoch_has_all_labelled_clips_and_as_many_unlabelled_ones_without_their_labels():
    both = WithUnlabelled(Clips("train", 4), Clips("pool", 7))
    assert len(both) == 8
    items = [both[place, 11] for place in range(8)]
    assert [item["clips"] for item in items[:4]] == [("train", row, 11) for row in range(4)]
    assert [item["labels"] for item in items] == [0, 1, 2, 0] + [UNKNOWN] * 4
    for item in items[4:]:
        name, row, seed = item["clips"]
        assert (name, seed) == ("pool", 11) and item["rows"] == 4 + row


def test_all_unlabelled_clips_get_their_turn():
    both = WithUnlabelled(Clips("train", 4), Clips("pool", 7))
    rows = [{both[place, seed]["rows"] for place in range(4, 8)} for seed in range(40)]
    assert all(len(epoch) == 4 for epoch in rows) and set().union(*rows) == set(range(4, 11))


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
