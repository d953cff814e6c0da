"""Gradient conflict: against autograd parameter by parameter, what training keeps, rivals, refusals."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchjd.aggregation import CAGrad, PCGrad, UPGrad

from uniego_utils.analyses.gradients import (
    CAGRAD_RADIUS,
    CLASSIFICATION,
    CLIP,
    SHARED,
    SOURCE,
    PerLossLearner,
    class_against_rest,
    conflict_table,
    cosines,
    gramians,
    shared_layers,
    source_table,
    split_losses,
)
from uniego_utils.backbones import create_backbone
from uniego_utils.cards import MethodCard, TrainConfig
from uniego_utils.objectives import Classification, ProxyDistillation, TeacherDistillation, shares
from uniego_utils.recipes import PAPER, RECIPES
from uniego_utils.rivals import DroppedProxies
from uniego_utils.training import Learner, fit

CPU = torch.device("cpu")
N, CLASSES, D, R = 24, 3, 6, 3
CONFIG = TrainConfig(epochs=3, batch_size=8, lr=0.05, milestones=(), grad_clip=1.0)
METHOD = MethodCard()


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


CLIPS, LABELS = draw(N, 10), torch.arange(N) % CLASSES


class Student(nn.Module):
    """Two blocks and a classifier; smooth, with BatchNorm and dropout as the real one has."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(10, 8)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(8, 8), nn.Tanh()), nn.Linear(8, 8)])
        self.norm = nn.BatchNorm1d(8)
        self.last, self.drop, self.head = nn.Linear(8, D), nn.Dropout(0.2), nn.Linear(D, CLASSES)

    def forward(self, clips):
        hidden = self.stem(clips)
        for block in self.blocks:
            hidden = block(hidden)
        features = self.last(self.norm(hidden))
        return features, self.head(self.drop(features))


def batches_of(epoch):
    order = torch.randperm(N, generator=torch.Generator().manual_seed(epoch))
    return [{"clips": CLIPS[r], "labels": LABELS[r], "rows": r} for r in order.split(8)]


def objective_of(kind, recipe=PAPER):
    torch.manual_seed(1)
    if kind == "teachers":
        targets = {str(r): draw(N, 5 + r, seed=r) for r in range(R)}
        return TeacherDistillation(targets, D, METHOD, recipe)
    weights = shares((draw(N, R, seed=5) > 0).float())
    return ProxyDistillation(
        draw(N, R, D, seed=6), draw(N, R, CLASSES, seed=7), weights, LABELS, METHOD, recipe
    )


def learner_of(kind, recipe=PAPER, **settings):
    torch.manual_seed(0)
    model = Student()
    if settings:
        return PerLossLearner(model, objective_of(kind, recipe), layers=shared_layers(model), **settings)
    return Learner(model, objective_of(kind, recipe))


def trained(learner, folder, config=CONFIG, accumulate=1):
    history = fit(
        {"x": learner},
        batches_of,
        config,
        7,
        folder / "checkpoint",
        CPU,
        accumulate=accumulate,
        progress=False,
    )
    return history["x"]


def outputs_of(learner, batch):
    torch.manual_seed(3)
    return learner.outputs(batch)


def backward(learner, batch):
    torch.manual_seed(3)
    return learner.backward(batch, 1)


def slow_cosine(one, other):
    """The cosine of two lists of gradients, written out."""
    a, b = (np.concatenate([part.flatten().double().numpy() for part in parts]) for parts in (one, other))
    return (a @ b) / np.sqrt((a @ a) * (b @ b))


def test_shared_weights_are_the_backbones_without_its_classifier():
    model = create_backbone("timesformer", 5, 8, 32, "tiny")
    layers = shared_layers(model)
    assert set(layers.values()) == {"stem", "blocks.0", "blocks.1", "norm"}
    everything = {name for name, _ in model.named_parameters()}
    assert everything - layers.keys() == {"head.weight", "head.bias"}


@pytest.mark.parametrize("kind", ["teachers", "proxies"])
def test_cosines_equal_autograd_parameter_by_parameter(kind):
    """A look at one batch, against one `autograd.grad` call per loss and parameter."""
    learner, batch = learner_of(kind, every=1), batches_of(0)[0]
    backward(learner, batch)
    noted = learner.notes()["gradients"]
    clip = noted.pop(CLIP)

    reference = learner_of(kind)
    parameters = dict(reference.model.named_parameters())
    features, logits = outputs_of(reference, batch)
    losses = reference.objective(features, logits, batch)
    ce = F.cross_entropy(logits, batch["labels"])
    apart = {}
    for name in shared_layers(reference.model):
        grads = [
            torch.autograd.grad(loss, parameters[name], retain_graph=True)[0]
            for loss in (METHOD.lambda_cls * ce, losses["loss"] - METHOD.lambda_cls * ce)
        ]
        apart[name] = grads
    for group, found in noted.items():
        own = [
            apart[name] for name, layer in shared_layers(reference.model).items() if group in (SHARED, layer)
        ]
        slow = slow_cosine([a for a, _ in own], [b for _, b in own])
        assert found["cosine"] == pytest.approx(slow, abs=1e-5)
        assert found["rate"] == (slow < 0) and found["counted"] == 1
    assert set(noted) == {SHARED, *shared_layers(reference.model).values()}
    pulls = [
        torch.autograd.grad(loss, features, retain_graph=True)[0]
        for loss in (ce, losses["loss"] - METHOD.lambda_cls * ce)
    ]
    slow = [
        slow_cosine([a], [b]) for a, b in zip(*pulls, strict=True) if b.norm() > 1e-6
    ]  # a clip without a proxy has no angle
    assert clip["counted"] == len(slow) > 3
    assert clip["rate"] == pytest.approx(np.less(slow, 0).mean())
    assert clip["cosine"] == pytest.approx(np.mean(slow), abs=1e-5)


@pytest.mark.parametrize("settings", [{"every": 1}, {"every": 2}, {"sources_every": 1}], ids=str)
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("kind", ["teachers", "proxies"])
def test_passes_apart_give_the_gradient_of_the_whole_loss(kind, recipe, settings):
    usual, apart = (
        learner_of(kind, recipe=RECIPES[recipe]),
        learner_of(kind, recipe=RECIPES[recipe], **settings),
    )
    batch = batches_of(0)[0]
    loss = usual.objective(*outputs_of(usual, batch), batch)["loss"]
    loss.backward()
    losses = backward(apart, batch)
    torch.testing.assert_close(losses["loss"], loss)
    for one, other in zip(usual.parameters, apart.parameters, strict=True):
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None:
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("kind", ["teachers", "proxies"])
def test_looking_changes_no_weights(kind, accumulate, tmp_path):
    usual, seen = learner_of(kind), learner_of(kind, every=2, sources_every=3)
    before, after = (
        trained(one, tmp_path / str(number), accumulate=accumulate)
        for number, one in enumerate((usual, seen))
    )
    for name, value in usual.tensors().items():
        torch.testing.assert_close(seen.tensors()[name], value, rtol=1e-4, atol=1e-6)
    assert [record["gradients"][SHARED]["counted"] for record in after] == [2, 2, 2]  # of three: 0 and 2
    assert not any("gradients" in record for record in before)


def test_looking_never_is_the_usual_backward_to_the_bit(tmp_path):
    """Batches that are not looked at take the very same path."""
    usual, seen = learner_of("teachers"), learner_of("teachers", every=1_000)
    seen.batches = 1
    batch = batches_of(0)[0]
    usual.objective(*outputs_of(usual, batch), batch)["loss"].backward()
    backward(seen, batch)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(usual.parameters, seen.parameters, strict=True))


def test_a_resumed_run_has_the_notes_of_an_uninterrupted_one(tmp_path):
    whole = trained(learner_of("proxies", every=2, sources_every=2), tmp_path / "whole")
    (tmp_path / "part").mkdir()
    calls = []

    def broken(epoch):
        calls.append(epoch)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return batches_of(epoch)

    first = learner_of("proxies", every=2, sources_every=2)
    with pytest.raises(KeyboardInterrupt):
        fit({"x": first}, broken, CONFIG, 7, tmp_path / "part" / "checkpoint", CPU, progress=False)
    again = trained(learner_of("proxies", every=2, sources_every=2), tmp_path / "part")
    drop = lambda records: [{k: v for k, v in r.items() if k != "seconds"} for r in records]  # noqa: E731
    assert json.dumps(drop(again)) == json.dumps(drop(whole))


def test_a_loss_agrees_with_itself_and_opposes_its_negative():
    weight = draw(4, 3).requires_grad_()
    loss = (weight**3).sum()
    (gradient,) = torch.autograd.grad(loss, weight)
    for sign in (1, -1):
        products = gramians([{"w": gradient}, {"w": sign * 2.5 * gradient}], {"w": "layer"})
        assert cosines(products[SHARED])[0, 1].item() == pytest.approx(sign)
        assert cosines(class_against_rest(products["layer"]))[0, 1].item() == pytest.approx(sign)


def test_several_losses_against_classification_are_their_sum():
    grads = [{"w": draw(7, seed=seed)} for seed in range(4)]
    products = gramians(grads, {"w": "layer"})[SHARED]
    rest = sum(grad["w"] for grad in grads[1:])
    expected = slow_cosine([grads[0]["w"]], [rest])
    assert cosines(class_against_rest(products))[0, 1].item() == pytest.approx(expected, abs=1e-6)


def test_a_zero_gradient_has_no_angle_and_a_missing_one_counts_as_zero():
    products = gramians([{"w": draw(5), "v": draw(2)}, {"w": None, "v": None}], {"w": "a", "v": "b"})
    angles = cosines(products[SHARED])
    assert angles[0, 1].isnan()
    # whether sqrt(x)**2 is x depends on the processor; within four ulps it is 1
    assert angles[0, 0].item() == pytest.approx(1, rel=4 * np.finfo(np.float64).eps)


@pytest.mark.parametrize("factor", [2.5, -0.3])
def test_cosines_of_parallel_gradients_stay_within_one(factor):
    """Their products are rounded one by one, so that the quotient may lie beyond; a cosine may not."""
    for seed in range(50):
        gradient = draw(5, seed=seed)
        products = gramians([{"w": gradient}, {"w": factor * gradient}], {"w": "layer"})
        found = cosines(products[SHARED])
        assert (found.abs() <= 1).all()
        assert found[0, 1].item() == pytest.approx(np.sign(factor), abs=1e-6)


def test_batches_where_nothing_is_distilled_are_not_counted(tmp_path):
    learner = learner_of("proxies", every=1)
    learner.objective.weights.zero_()
    assert not any("gradients" in record for record in trained(learner, tmp_path))
    learner = learner_of("proxies", every=1)
    learner.objective.weights[1:] = 0  # clip 0 alone is distilled: one batch an epoch
    if not learner.objective.weights[0].any():
        learner.objective.weights[0, 0] = 1
    assert [record["gradients"][SHARED]["counted"] for record in trained(learner, tmp_path / "one")] == [
        1,
        1,
        1,
    ]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("kind", ["teachers", "proxies"])
def test_parts_and_sources_add_up_to_the_loss(kind, recipe):
    learner, batch = learner_of(kind, recipe=RECIPES[recipe]), batches_of(0)[0]
    features, logits = outputs_of(learner, batch)
    losses = learner.objective(features, logits, batch)
    classification, distillation = split_losses(losses, learner.objective.part_weights)
    torch.testing.assert_close(classification + distillation, losses["loss"])
    by_source = learner.objective.by_source(features, logits, batch)
    assert by_source.shape == (R,)
    torch.testing.assert_close(by_source.sum(), distillation)


def test_each_source_equals_autograd_of_its_own_loss():
    learner, batch = learner_of("teachers", sources_every=1), batches_of(0)[0]
    backward(learner, batch)
    notes = [{"epoch": 1, **learner.notes()}]
    table = source_table({"x": notes}, ["a", "b", "c"]).set_index(["source", "other"])

    slow = learner_of("teachers")
    features, logits = outputs_of(slow, batch)
    shared = [p for name, p in slow.model.named_parameters() if name in shared_layers(slow.model)]
    losses = {CLASSIFICATION: F.cross_entropy(logits, batch["labels"])}
    for r, name in enumerate("abc"):
        teacher = slow.objective.project[str(r)](getattr(slow.objective, f"targets_{r}")[batch["rows"]])
        losses[name] = (1 - F.cosine_similarity(features, teacher)).mean()
    grads = {name: torch.autograd.grad(loss, shared, retain_graph=True) for name, loss in losses.items()}
    assert len(table) == 6
    for (source, other), row in table.iterrows():
        expected = slow_cosine(grads[source], grads[other])
        assert row["cosine"] == pytest.approx(expected, abs=1e-5)
        assert row["rate"] == (expected < 0) and row["batches"] == 1


@pytest.mark.parametrize("sources", [(), ("ego", "exo", "exo"), ("a", "b", "c")], ids=str)
@pytest.mark.parametrize(
    "rival, whole", [("pcgrad", PCGrad()), ("cagrad", CAGrad(CAGRAD_RADIUS)), ("upgrad", UPGrad())]
)
def test_rivals_equal_torchjd_on_the_whole_jacobian(rival, whole, sources):
    learner, batch = learner_of("teachers", combine=rival, sources=sources), batches_of(0)[0]
    outputs = outputs_of(learner, batch)
    learner.outputs = lambda batch: outputs  # made before, so that the seed is that of the rival's draws
    torch.manual_seed(11)
    learner.backward(batch, 1)

    slow = learner_of("teachers")
    features, logits = outputs_of(slow, batch)
    parts = slow.objective.by_source(features, logits, batch)
    names = sources or ("one",) * R
    losses = [METHOD.lambda_cls * F.cross_entropy(logits, batch["labels"])]
    losses += [
        torch.stack([p for p, n in zip(parts, names, strict=True) if n == name]).sum()
        for name in dict.fromkeys(names)
    ]
    named = dict(slow.model.named_parameters())
    shared = [named[name] for name in shared_layers(slow.model)]
    jacobian = torch.stack(
        [
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, shared, retain_graph=True)])
            for loss in losses
        ]
    ).double()
    torch.manual_seed(11)
    expected = whole(jacobian) * (1 if rival == "pcgrad" else len(losses))
    own = dict(learner.model.named_parameters())
    found = torch.cat([own[name].grad.flatten() for name in shared_layers(learner.model)])
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)
    head = torch.autograd.grad(losses[0], named["head.weight"], retain_graph=True)[0]
    torch.testing.assert_close(own["head.weight"].grad, head)  # the classifier is not shared


@pytest.mark.parametrize("rival", ["pcgrad", "upgrad"])
def test_no_loss_is_opposed_by_a_rivals_step(rival):
    """Two losses in conflict: the combined gradient has no negative product with either."""
    learner, batch = learner_of("teachers", combine=rival), batches_of(0)[0]
    features, logits = outputs_of(learner, batch)
    parts = split_losses(learner.objective(features, logits, batch), learner.objective.part_weights)
    named = {n: p for n, p in learner.model.named_parameters() if n in shared_layers(learner.model)}
    grads = [torch.autograd.grad(part, list(named.values()), retain_graph=True) for part in parts]
    assert slow_cosine(*grads) < -0.1
    backward(learner, batch)
    step = [parameter.grad for parameter in named.values()]
    for own in grads:
        assert slow_cosine(own, step) > -1e-4


def test_pcgrad_and_upgrad_are_one_where_there_are_two_losses():
    """Both project either gradient on the plane normal to the other; the notebook says so."""
    steps = []
    for rival in ("pcgrad", "upgrad"):
        learner, batch = learner_of("teachers", combine=rival), batches_of(0)[0]
        backward(learner, batch)
        assert learner.notes()["gradients"][SHARED]["rate"] == 1
        steps.append(torch.cat([p.grad.flatten() for p in learner.model.parameters()]))
    one, other = steps
    assert (one - other).norm() < 1e-3 * one.norm()  # UPGrad regularises its Gramian by 1e-4


def test_tables_have_a_row_per_method_epoch_and_group(tmp_path):
    histories = {"x": trained(learner_of("teachers", every=1, sources_every=2), tmp_path)}
    table = conflict_table(histories)
    assert list(table.columns) == ["method", "epoch", "group", "rate", "cosine", "counted"]
    assert len(table) == 3 * (3 + len(set(shared_layers(Student()).values())))
    assert table["rate"].between(0, 1).all() and table["cosine"].between(-1, 1).all()
    counted = table.groupby("group")["counted"].agg(set)
    assert counted[SHARED] == counted["stem"] == {3} and counted[SOURCE] == {2 * R} and counted[CLIP] == {N}
    sources = source_table(histories, ["a", "b", "c"])
    assert (sources["batches"] == 6).all() and set(sources["other"]) == {CLASSIFICATION, "a", "b"}
    own = table[table["group"] == SOURCE].mean(numeric_only=True)
    pairs = sources[sources["other"] == CLASSIFICATION].mean(numeric_only=True)
    assert own["rate"] == pytest.approx(pairs["rate"]) and own["cosine"] == pytest.approx(pairs["cosine"])
    assert source_table({"y": [{"epoch": 1}]}, ["a"]).empty
    with pytest.raises(ValueError, match="2 names for 3 sources of x"):
        source_table(histories, ["a", "b"])


def test_an_objective_without_distillation_is_refused():
    model = Student()
    learner = PerLossLearner(model, Classification(), layers=shared_layers(model), every=1)
    batch = batches_of(0)[0]
    with pytest.raises(ValueError, match="no distillation part"):
        backward(learner, batch)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"every": 0}, "every is 0 "),
        ({"sources_every": -1}, "sources_every -1;"),
        ({"combine": "mgda"}, "'mgda'.*sum, pcgrad, cagrad, upgrad"),
        ({"combine": "pcgrad", "sources_every": 2}, "sources_every = 0"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PerLossLearner(Student(), Classification(), layers={}, **settings)


def test_names_that_do_not_match_the_sources_are_refused():
    learner, batch = learner_of("teachers", combine="pcgrad", sources=("ego", "exo")), batches_of(0)[0]
    with pytest.raises(ValueError, match="2 names for 3 sources"):
        backward(learner, batch)


def test_proxies_dropped_by_chance_have_no_loss_of_their_own():
    learner, batch = learner_of("proxies", sources_every=1), batches_of(0)[0]
    learner.objective.__class__ = DroppedProxies
    with pytest.raises(ValueError, match="dropped by chance have no loss of their own"):
        backward(learner, batch)


def test_a_gradient_that_is_not_finite_is_an_error(tmp_path):
    learner = learner_of("teachers", every=1)
    with torch.no_grad():
        learner.model.last.weight[0, 0] = torch.inf
    with pytest.raises(FloatingPointError):
        trained(learner, tmp_path, replace(CONFIG, epochs=1))
