"""Held-out reliability: what is held out from whom, and a gate that may not peek."""

import math
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from uniego_utils.analyses.gate import gate_inputs, learn_gate, mixture_loss
from uniego_utils.analyses.reliability import split_folds


def manifest(labels, people):
    rows = pd.DataFrame({"subject": people})
    return SimpleNamespace(labels=labels, rows=rows, classes=tuple("abc"), split="train")


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_halves_share_no_person_and_have_every_class():
    labels = [0, 1, 2] * 16
    people = [f"p{number // 6}" for number in range(48)]
    halves, by = split_folds(manifest(labels, people), seed=0)
    assert by == "subject" and sorted(halves[0] + halves[1]) == list(range(48))
    assert not {people[row] for row in halves[0]} & {people[row] for row in halves[1]}
    assert all({labels[row] for row in half} == {0, 1, 2} for half in halves)
    assert halves != split_folds(manifest(labels, people), seed=1)[0]


@pytest.mark.parametrize("people", [["one"] * 6, ["p0", "p0", "p1", "p1", "p2", "p2"]])
def test_clips_are_held_out_where_classes_have_one_person(people):
    labels = [0, 0, 1, 1, 2, 2]
    halves, by = split_folds(manifest(labels, people), seed=0)
    assert by == "clip" and all({labels[row] for row in half} == {0, 1, 2} for half in halves)


def test_a_class_of_one_clip_cannot_be_held_out():
    with pytest.raises(ValueError, match=r"train.csv: classes with fewer than 2 clips.*c; add clips"):
        split_folds(manifest([0, 0, 1, 1, 2], ["x"] * 5), seed=0)


def test_mixture_loss_agrees_with_the_definition():
    held_out, labels = seeded(6, 3, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    weights = seeded(6, 3, seed=1).softmax(1)
    weights[2] = torch.tensor([0.0, 1.0, 0.0])
    for i, loss in enumerate(mixture_loss(weights, held_out, labels).tolist()):
        probabilities = []
        for z in held_out[i].tolist():
            probabilities.append(math.exp(z[labels[i]]) / sum(map(math.exp, z)))
        mixed = sum(w * p for w, p in zip(weights[i].tolist(), probabilities, strict=True))
        assert loss == pytest.approx(-math.log(mixed), abs=1e-4)


def test_gate_inputs_agree_with_slow_versions():
    logits, labels, student = seeded(8, 3, 4), torch.arange(8) % 4, seeded(8, 5, seed=1)
    inputs = gate_inputs(logits, labels, student.requires_grad_())
    assert inputs.shape == (8, 3, 3 + 3 + 5) and not inputs.requires_grad
    slow = torch.empty(8, 3, 3)
    for i in range(8):
        probabilities = [z.exp() / z.exp().sum() for z in logits[i]]
        mean = sum(probabilities) / 3
        for r, p in enumerate(probabilities):
            slow[i, r, 0] = -p[labels[i]].log()
            slow[i, r, 1] = -(p * p.log()).sum()
            slow[i, r, 2] = (p @ mean) / (p.norm() * mean.norm())
    flat = slow.flatten(0, 1)
    expected = (slow - flat.mean(0)) / flat.std(0, correction=0)
    torch.testing.assert_close(inputs[..., :3], expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(inputs[3, :, 3:6], torch.eye(3))


@pytest.fixture
def problem():
    """Proxy 0 is right on half of the classes, proxy 1 on the others, proxy 2 never; on all clips alike."""
    labels = torch.arange(120) % 4
    held_out = 0.3 * seeded(120, 3, 4)
    for i, label in enumerate(labels.tolist()):
        held_out[i, 0 if label < 2 else 1, label] += 4.0
        held_out[i, 2, (label + 1) % 4] += 4.0
    logits = 0.3 * seeded(120, 3, 4, seed=1)
    logits[torch.arange(120), :, labels] += 5.0  # in training all know everything by heart
    student = torch.nn.functional.one_hot(labels, 4).float() + 0.1 * seeded(120, 4, seed=2)
    halves = [list(range(0, 60)), list(range(60, 120))]
    return gate_inputs(logits, labels, student), held_out, labels, halves


def test_a_gate_learns_who_is_right_where_training_tells_nothing(problem):
    inputs, held_out, labels, halves = problem
    weights = learn_gate(inputs, held_out, labels, halves, seed=0)
    torch.testing.assert_close(weights.sum(1), torch.ones(120))
    right = torch.where(labels < 2, weights[:, 0], weights[:, 1])
    assert right.mean() > 0.9 and weights[:, 2].max() < 0.1
    uniform = torch.full((120, 3), 1 / 3)
    assert (
        mixture_loss(weights, held_out, labels).mean() < 0.5 * mixture_loss(uniform, held_out, labels).mean()
    )


def test_a_clips_weights_do_not_depend_on_its_own_held_out_loss(problem):
    inputs, held_out, labels, halves = problem
    before = learn_gate(inputs, held_out, labels, halves, seed=0)
    changed = held_out.clone()
    changed[60:] = changed[60:].flip(1)
    after = learn_gate(inputs, changed, labels, halves, seed=0)
    assert torch.equal(before[60:], after[60:]) and not torch.equal(before[:60], after[:60])


def test_one_proxy_has_all_the_weight(problem):
    _, held_out, labels, halves = problem
    inputs = gate_inputs(held_out[:, :1], labels, seeded(120, 4))
    assert learn_gate(inputs, held_out[:, :1], labels, halves, seed=0).tolist() == [[1.0]] * 120
