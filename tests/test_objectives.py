"""Equations 1, 5 and 6 against slow versions written from the paper."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from uniego_utils.cards import MethodCard
from uniego_utils.objectives import (
    Classification,
    ProxyDistillation,
    TeacherDistillation,
    cosine_distance,
    shares,
)
from uniego_utils.recipes import PAPER, RECIPES, RELEASED, recipe_called
from uniego_utils.rivals import DroppedProxies, drop_proxies

N, R, D, C = 7, 3, 6, 4  # clips of the split, proxies, feature width, classes
METHOD = MethodCard(lambda_feat=5, lambda_cls=0.7, beta_feat=3, beta_logit=2, beta_cls=0.5, tau=1.0)
ROWS = torch.tensor([5, 0, 3, 6])  # a batch's places in the split


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


LABELS = torch.tensor([0, 1, 2, 3, 0, 1, 2])
SELECTED = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0], [1, 1, 1], [1, 0, 1], [0, 1, 1]]).bool()
BATCH = {"rows": ROWS, "labels": LABELS[ROWS]}  # of the batch's clips, row 3 has no selected proxy


def slow_cosine_distance(x, y):
    return 1 - (x * y).sum() / (x.square().sum().sqrt() * y.square().sum().sqrt())


def slow_cross_entropy(logits, label):
    return torch.log(torch.exp(logits).sum()) - logits[label]


def test_cosine_distance_agrees_with_the_definition():
    x, y = seeded(4, 3, D), seeded(4, 3, D, seed=1)
    a, b = x.numpy().astype(np.float64), y.numpy().astype(np.float64)
    slow = 1 - (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
    np.testing.assert_allclose(cosine_distance(x, y).numpy(), slow, atol=1e-6)


def test_cosine_distance_spans_zero_to_two():
    x = seeded(5, D)
    torch.testing.assert_close(cosine_distance(x, x), torch.zeros(5), rtol=0, atol=1e-6)
    torch.testing.assert_close(cosine_distance(x, -x), torch.full((5,), 2.0), rtol=0, atol=1e-6)


def test_cosine_distance_ignores_scale():
    x, y = seeded(5, D), seeded(5, D, seed=1)
    torch.testing.assert_close(cosine_distance(3 * x, 0.2 * y), cosine_distance(x, y), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, D), (5, 1), (5, D + 1), (D,)])
def test_cosine_distance_refuses_to_broadcast(shape):
    with pytest.raises(ValueError, match="shapes"):
        cosine_distance(torch.ones(5, D), torch.ones(shape))


def test_classification_is_the_mean_cross_entropy():
    logits = seeded(4, C)
    slow = sum(slow_cross_entropy(logits[i], BATCH["labels"][i]) for i in range(4)) / 4
    torch.testing.assert_close(Classification()(seeded(4, D), logits, BATCH)["loss"], slow)


@pytest.mark.parametrize("widths", [(5,), (5, 9, 2)], ids=["one teacher", "three teachers"])
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_teacher_distillation_agrees_with_equation_1(recipe, widths):
    targets = {f"teacher_{r}": seeded(N, width, seed=10 + r) for r, width in enumerate(widths)}
    objective = TeacherDistillation(targets, D, METHOD, recipe)
    features, logits = seeded(4, D), seeded(4, C, seed=1)

    per_teacher = []
    for key, teacher in targets.items():
        weight = objective.project[key].weight.detach().numpy().astype(np.float64)
        bias = objective.project[key].bias.detach().numpy().astype(np.float64)
        distances = []
        for i, row in enumerate(ROWS.tolist()):
            student, target = features[i].numpy(), teacher[row].numpy()
            if recipe.projects_teacher:  # into the student's space
                target = weight @ target + bias
            else:
                student = weight @ student + bias
            norms = math.sqrt(student @ student) * math.sqrt(target @ target)
            distances.append(1 - student @ target / norms)
        per_teacher.append(np.mean(distances))
    match = np.mean(per_teacher)
    ce = np.mean([slow_cross_entropy(logits[i], BATCH["labels"][i]).item() for i in range(4)])
    weight = 1 if recipe is RELEASED else 5  # the release has no factor 5

    losses = objective(features, logits, BATCH)
    assert losses["match_loss"].item() == pytest.approx(match, abs=1e-6)
    assert losses["class_loss"].item() == pytest.approx(ce, abs=1e-6)
    assert losses["loss"].item() == pytest.approx(weight * match + 0.7 * ce, abs=1e-5)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_teacher_gradients_reach_student_and_projection_but_not_the_targets(recipe):
    objective = TeacherDistillation({"a": seeded(N, 5)}, D, METHOD, recipe)
    features, logits = seeded(4, D).requires_grad_(), seeded(4, C, seed=1).requires_grad_()
    objective(features, logits, BATCH)["loss"].backward()
    assert features.grad.abs().sum(1).all() and logits.grad.abs().sum(1).all()
    assert objective.project["a"].weight.grad.any()
    assert not objective.targets_a.requires_grad
    assert {name for name, _ in objective.named_parameters()} == {"project.a.weight", "project.a.bias"}


def test_checkpoints_hold_projections_only():
    objective = TeacherDistillation({"a": seeded(N, 5)}, D, METHOD, PAPER)
    assert objective.state_dict().keys() == {"project.a.weight", "project.a.bias"}
    assert not selective().state_dict()


def proxies():
    """Features and logits; the logits lean to the labels, as those of trained proxies do."""
    return seeded(N, R, D, seed=2), 2 * seeded(N, R, C, seed=3) + 2 * F.one_hot(LABELS, C)[:, None]


class OftenDropped(DroppedProxies):
    """Leaves out nine proxies of ten."""

    probability = 0.9


def selective(method=METHOD, recipe=PAPER, selected=SELECTED, kind=ProxyDistillation, **changed):
    features, logits = proxies()
    torch.manual_seed(0)  # the projection, where the recipe has one
    arguments = dict(features=features, logits=logits, weights=shares(selected), answers=LABELS) | changed
    return kind(**arguments, method=method, recipe=recipe)


def slow_level_two(objective, features, logits, method, recipe, selected):
    """Equations 5 and 6, clip by clip, proxy by proxy and class by class."""
    proxy_features, proxy_logits = proxies()
    distilled, total_ce, count = torch.zeros(()), torch.zeros(()), 0
    for i, row in enumerate(ROWS.tolist()):
        label = LABELS[row]
        own_ce = slow_cross_entropy(logits[i], label)
        total_ce = total_ce + own_ce
        chosen = [j for j in range(R) if selected[row, j]]
        if recipe.spd_better_than_student:
            chosen = [j for j in chosen if slow_cross_entropy(proxy_logits[row, j], label) < own_ce]
        if not chosen:
            continue
        count += 1
        student = features[i]
        if recipe.spd_projection:
            student = objective.project.weight @ student + objective.project.bias
        for j in chosen:
            p, q = (torch.exp(z / method.tau) for z in (proxy_logits[row, j], logits[i]))
            p, q = p / p.sum(), q / q.sum()
            kl = method.tau**2 * sum(p[c] * torch.log(p[c] / q[c]) for c in range(C))
            distance = slow_cosine_distance(student, proxy_features[row, j])
            distilled = distilled + (method.beta_feat * distance + method.beta_logit * kl) / len(chosen)
    clips = len(ROWS)
    over = clips if recipe.spd_average_all else max(count, 1)
    return distilled / over + method.beta_cls * total_ce / clips


FIRST_ONLY = SELECTED & (SELECTED.cumsum(1) == 1)  # K = 1
VARIANTS = {
    "paper": PAPER,
    "released": RELEASED,
    "mean over the distilled clips": replace(PAPER, spd_average_all=False),
    "better than the student": replace(PAPER, spd_better_than_student=True),
    "with a projection": replace(PAPER, spd_projection=True),
}


@pytest.mark.parametrize("tau", [1.0, 2.5])
@pytest.mark.parametrize("selected", [FIRST_ONLY, SELECTED], ids=["k=1", "k=2"])
@pytest.mark.parametrize("recipe", VARIANTS.values(), ids=VARIANTS)
def test_selective_distillation_agrees_with_equations_5_and_6(recipe, selected, tau):
    method = replace(METHOD, tau=tau)
    objective = selective(method, recipe, selected)
    results = []
    for loss_of in (
        lambda f, z: objective(f, z, BATCH)["loss"],
        lambda f, z: slow_level_two(objective, f, z, method, recipe, selected),
    ):
        features, logits = seeded(4, D).requires_grad_(), seeded(4, C, seed=1).requires_grad_()
        loss = loss_of(features, logits)
        results.append((loss, *torch.autograd.grad(loss, (features, logits), materialize_grads=True)))
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)


def test_the_better_than_student_filter_has_something_to_filter():
    """Guards the case above: in this batch the filter removes some selected proxies and keeps others."""
    _, proxy_logits = proxies()
    own = F.cross_entropy(seeded(4, C, seed=1), BATCH["labels"], reduction="none")
    flat = F.cross_entropy(
        proxy_logits[ROWS].flatten(0, 1), BATCH["labels"].repeat_interleave(R), reduction="none"
    )
    better = (flat.view(4, R) < own[:, None])[SELECTED[ROWS]]
    assert better.any() and not better.all()


def test_a_clip_without_proxies_learns_from_its_label_alone():
    objective = selective(selected=torch.zeros_like(SELECTED))
    logits = seeded(4, C, seed=1)
    losses = objective(seeded(4, D), logits, BATCH)
    torch.testing.assert_close(losses["loss"], METHOD.beta_cls * F.cross_entropy(logits, BATCH["labels"]))
    assert losses["distilled_share"] == 0


def test_no_distilled_clip_is_no_division_by_zero():
    objective = selective(recipe=RELEASED, selected=torch.zeros_like(SELECTED))
    assert objective(seeded(4, D), seeded(4, C), BATCH)["loss"].isfinite()


def test_distilled_share_counts_clips_with_a_proxy():
    assert selective()(seeded(4, D), seeded(4, C), BATCH)["distilled_share"] == 3 / 4


def test_a_student_equal_to_its_proxy_has_no_distillation_loss():
    features, logits = proxies()
    selected = torch.zeros(N, R, dtype=torch.bool)
    selected[:, 1] = True
    losses = selective(selected=selected)(features[ROWS, 1], logits[ROWS, 1], BATCH)
    assert losses["match_loss"].abs() < 1e-6 and losses["kl_loss"].abs() < 1e-6


def test_selective_gradients_never_reach_the_proxies():
    objective = selective(recipe=RELEASED)
    features, logits = seeded(4, D).requires_grad_(), seeded(4, C, seed=1).requires_grad_()
    objective(features, logits, BATCH)["loss"].backward()
    assert features.grad.any() and logits.grad.any() and objective.project.weight.grad.any()
    assert not any(buffer.requires_grad for buffer in objective.buffers())


@pytest.mark.parametrize(
    "changed",
    [
        dict(features=torch.ones(N, R + 1, D)),
        dict(features=torch.ones(N - 1, R, D)),
        dict(weights=shares(SELECTED[:, :2])),
        dict(weights=shares(SELECTED[:-1])),
        dict(answers=LABELS[:1]),
        dict(answers=LABELS[:-1]),
    ],
    ids=["proxies", "clips", "weights' proxies", "weights' clips", "one answer", "fewer answers"],
)
def test_selective_distillation_refuses_what_does_not_belong_together(changed):
    with pytest.raises(ValueError, match="same clips"):
        selective(**changed)


@pytest.mark.parametrize(
    "row", [[0.5, 0.6, 0.0], [1.5, -0.5, 0.0], [0.2, 0.0, 0.0], [math.nan, 0.5, 0.5], [1.0, 1.0, 0.0]]
)
def test_refuses_weights_that_are_no_shares(row):
    weights = shares(SELECTED)
    weights[2] = torch.tensor(row)
    with pytest.raises(ValueError, match="sum to 1"):
        selective(weights=weights)


def test_any_weights_average_the_single_proxies_losses():
    weights = shares(torch.rand(N, R, generator=torch.Generator().manual_seed(5)))
    features, logits = seeded(4, D), seeded(4, C, seed=1)
    mixed = selective(weights=weights)(features, logits, BATCH)
    parts = ("match_loss", "kl_loss")
    expected = dict.fromkeys(parts, 0.0)
    for i in range(4):  # a batch of one clip, one proxy at a time
        one = {name: value[i : i + 1] for name, value in BATCH.items()}
        for r in range(R):
            only = F.one_hot(torch.full((N,), r), R).float()
            losses = selective(weights=only)(features[i : i + 1], logits[i : i + 1], one)
            for part in parts:
                expected[part] += weights[ROWS[i], r].item() * losses[part].item() / 4
    assert {part: mixed[part].item() for part in parts} == pytest.approx(expected, rel=1e-4)


def test_proxies_that_watched_along_replace_the_stored_ones():
    watched = {"proxy_features": seeded(4, R, D, seed=8), "proxy_logits": seeded(4, R, C, seed=9)}
    features, logits = seeded(4, D), seeded(4, C, seed=1)
    live = selective()(features, logits, BATCH | watched)
    stored_features, stored_logits = (value.clone() for value in proxies())
    stored_features[ROWS], stored_logits[ROWS] = watched["proxy_features"], watched["proxy_logits"]
    stored = selective(features=stored_features, logits=stored_logits)(features, logits, BATCH)
    for part in ("loss", "match_loss", "kl_loss"):
        torch.testing.assert_close(live[part], stored[part])
    assert live["loss"] != selective()(features, logits, BATCH)["loss"]


def test_dropping_keeps_the_farthest_proxy_and_draws_the_others():
    weights = torch.tensor([[0.5, 0.25, 0.25], [0.0, 0.5, 0.5], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    losses = torch.tensor([[1.0, 3.0, 2.0], [9.0, 1.0, 2.0], [1.0, 2.0, 3.0], [5.0, 1.0, 7.0]])
    torch.manual_seed(0)
    drawn = torch.stack([drop_proxies(weights, losses, 0.5) for _ in range(400)])
    assert (drawn[:, 0, 1] > 0).all() and (drawn[:, 1, 2] > 0).all()  # farthest of those with a weight
    assert 0.4 < (drawn[:, 0, 0] > 0).float().mean() < 0.6
    assert (drawn[:, 1, 0] == 0).all() and (drawn[:, 2] == 0).all() and (drawn[:, 3, 1] == 1).all()
    assert set(drawn[:, :2].sum(2).flatten().round(decimals=5).tolist()) == {1.0}
    assert torch.equal(drop_proxies(weights, losses, 0.0), weights)


def test_proxies_are_dropped_in_training_alone():
    objective = selective(selected=torch.ones_like(SELECTED), kind=OftenDropped)
    whole = selective(selected=torch.ones_like(SELECTED))(seeded(4, D), seeded(4, C), BATCH)["loss"]
    torch.manual_seed(0)
    assert objective(seeded(4, D), seeded(4, C), BATCH)["loss"] > whole  # the farthest stays
    objective.eval()
    assert objective(seeded(4, D), seeded(4, C), BATCH)["loss"] == whole


@pytest.mark.parametrize("name", ["features", "logits"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_selective_distillation_refuses_proxies_that_are_not_finite(name, bad):
    features, logits = proxies()
    broken = {"features": features, "logits": logits}[name]
    broken[2, 1, 0] = bad
    with pytest.raises(ValueError, match="not finite"):
        selective(**{name: broken})


def test_unknown_recipe_lists_the_valid_ones():
    assert recipe_called("paper") is PAPER
    with pytest.raises(ValueError, match="'mine'.*paper, released"):
        recipe_called("mine")
