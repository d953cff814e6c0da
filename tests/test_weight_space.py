"""Models as points: blends against loops, groups by hand, the loss at a point against its closed form."""

import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from torch import nn
from torch.nn import functional as F
from toy_students import GROUPS, LAYERS, R, Student, draw_batches, draw_proxies, open_space

from uniego_utils.backbones import create_backbone
from uniego_utils.weight_space import (
    WeightSpace,
    equal_shares,
    group_weights,
    mixture,
    name_layers,
    reestimate_statistics,
    stack_proxies,
)


@pytest.fixture
def proxies():
    return draw_proxies()


@pytest.fixture
def batches():
    return draw_batches()


def blend_of(proxies, alpha):
    """State dict of a blend, statistics included."""
    space = open_space(proxies)
    space.combine(alpha)
    return space.model.state_dict()


def test_blend_agrees_with_the_definition(proxies):
    alpha = torch.tensor([0.2, 0.5, 0.3])
    blend = blend_of(proxies, alpha)
    assert blend.keys() == proxies[0].keys()
    for name in ("inner.weight", "head.bias", "norm.weight", "norm.running_mean", "norm.running_var"):
        flat = [proxy[name].flatten().tolist() for proxy in proxies]
        slow = [0.2 * a + 0.5 * b + 0.3 * c for a, b, c in zip(*flat, strict=True)]
        torch.testing.assert_close(blend[name].flatten(), torch.tensor(slow))


def test_every_group_has_its_coefficients(proxies):
    space = open_space(proxies)
    alpha = {"inner": torch.eye(R)[0], "norm": torch.eye(R)[1], "head": torch.tensor([2.0, -1.0, 0.0])}
    space.combine(alpha, group_weights(space.model, "layer"))
    blend = space.model.state_dict()
    assert torch.equal(blend["inner.bias"], proxies[0]["inner.bias"])
    assert torch.equal(blend["norm.running_var"], proxies[1]["norm.running_var"])
    expected = 2 * proxies[0]["head.weight"] - proxies[1]["head.weight"]
    torch.testing.assert_close(blend["head.weight"], expected)


def test_integer_entries_are_the_firsts(proxies):
    blend = blend_of(proxies, torch.full((R,), 1 / R))
    assert blend["norm.num_batches_tracked"] == 10 and blend["norm.num_batches_tracked"].dtype == torch.long


@pytest.mark.parametrize("chosen", range(R))
def test_one_hot_alpha_returns_that_proxy_exactly(proxies, chosen):
    blend = blend_of(proxies, F.one_hot(torch.tensor(chosen), R).float())
    floats = [name for name, value in blend.items() if value.is_floating_point()]
    assert all(torch.equal(blend[name], proxies[chosen][name]) for name in floats)


def test_the_proxies_are_left_as_they_were(proxies):
    space = open_space(proxies)
    space.blend(torch.full((R,), 1 / R))
    space.model.state_dict()["inner.weight"].zero_()
    for place, proxy in enumerate(draw_proxies()):
        assert all(torch.equal(value, proxies[place][name]) for name, value in proxy.items())
        assert all(torch.equal(value, space.stacked[name][place]) for name, value in proxy.items())


@pytest.mark.parametrize(
    "alpha",
    [
        [0.5, 0.5],
        [0.5, 0.6, 0.1],
        [0.2, 0.2, 0.2],
        [float("nan"), 0.5, 0.5],
        [[0.2, 0.5, 0.3]],
    ],
)
def test_refuses_coefficients_that_do_not_sum_to_one(proxies, alpha):
    space = open_space(proxies)
    for take in (space.combine, space.blend):
        with pytest.raises(ValueError, match="3 points need as many coefficients that sum to 1"):
            take(torch.tensor(alpha))


def test_refuses_a_mixture_off_the_simplex(proxies):
    with pytest.raises(ValueError, match="coefficients of a mixture should be at least 0"):
        open_space(proxies).blend(torch.tensor([1.2, -0.2, 0.0]))


def test_takes_alpha_in_double_precision(proxies):
    blend = blend_of(proxies, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(blend["inner.weight"], proxies[1]["inner.weight"])


def test_outside_the_simplex_a_blend_is_affine(proxies):
    blend = blend_of(proxies, [2.0, -1.0, 0.0])
    torch.testing.assert_close(blend["head.bias"], 2 * proxies[0]["head.bias"] - proxies[1]["head.bias"])


def test_mixtures_by_name():
    assert mixture(["a", "b", "c"], {"c": 0.75, "a": 0.25}).tolist() == [0.25, 0.0, 0.75]
    assert equal_shares(["a", "b", "c"], ["c", "a"]).tolist() == [0.5, 0.0, 0.5]
    with pytest.raises(ValueError, match="no point z; choose of a, b, c, d"):
        mixture(["a", "b", "c", "d"], {"z": 1.0})


def test_refuses_other_architectures(proxies):
    other = create_backbone("timesformer", 3, 8, 32, "tiny").state_dict()
    wider = proxies[2] | {"head.weight": torch.zeros(4, 5)}
    for odd in (other, wider):
        with pytest.raises(ValueError, match="differ in architecture"):
            open_space([*proxies[:2], odd])


def test_refuses_proxies_of_another_backbone_than_the_presets(proxies):
    like = Student().state_dict() | {"inner.bias": torch.zeros(1)}  # would broadcast
    with pytest.raises(ValueError, match="differ in architecture"):
        stack_proxies(like, range(R), proxies.__getitem__)


def test_refuses_proxies_that_are_not_finite_by_name(proxies):
    proxies[1]["norm.running_var"][2] = math.inf
    with pytest.raises(
        ValueError, match=r"proxy exo_skl has weights that are not finite in norm\.running_var"
    ):
        stack_proxies(
            Student().state_dict(), ["exo_rgb", "exo_skl"], {"exo_rgb": proxies[0], "exo_skl": proxies[1]}.get
        )


def test_the_layers_of_a_timesformer():
    layers = name_layers(list(create_backbone("timesformer", 3, 8, 32, "tiny").state_dict()))
    stem = ["cls_token", "pos_embed", "time_embed"]
    assert {layers[name] for name in stem} == {"stem"}
    assert {layers[name] for name in layers if name.startswith("patch_embed.")} == {"stem"}
    assert layers["blocks.1.mlp.fc1.bias"] == "blocks.1"
    assert layers["norm.weight"] == "norm" and layers["head.bias"] == "head"


@pytest.mark.parametrize(
    ("names", "layers"),
    [
        (
            ["pos", "patch.0.weight", "model.blocks.9.a", "model.blocks.10.mlp.0.weight", "model.norm.bias"],
            ["stem", "stem", "model.blocks.9", "model.blocks.10", "model"],
        ),
        (
            [
                "stem.proj.weight",
                "stages.0.0.attn.weight",
                "stages.1.4.mlp.fc1.bias",
                "head.weight",
            ],
            ["stem", "stages.0.0", "stages.1.4", "head"],
        ),
        (["conv1.weight", "layer1.0.bn1.weight", "fc.bias"], ["conv1", "layer1.0", "fc"]),
        (["encoder.layer.3.attn.weight", "prompts.0"], ["encoder.layer.3", "prompts"]),
    ],
)
def test_layers_of_other_backbones(names, layers):
    assert list(name_layers(names).values()) == layers


@pytest.mark.parametrize("level", GROUPS)
def test_running_statistics_belong_to_the_group_of_their_module(level):
    groups = group_weights(Student(), level)
    assert groups["norm.running_mean"] == groups["norm.running_var"] == groups["norm.weight"]


@pytest.mark.parametrize("level", GROUPS)
def test_groups_by_hand(level):
    groups = group_weights(Student(), level)
    expected = {entry: "model" if level == "model" else group for entry, group in GROUPS[level].items()}
    assert {entry: groups[entry] for entry in expected} == expected


def test_refuses_an_unknown_level():
    with pytest.raises(ValueError, match="unknown level 'block'; choose one of model, layer, parameter"):
        group_weights(Student(), "block")


def test_reestimated_statistics_are_those_of_all_inputs(proxies, batches):
    student = Student()
    student.load_state_dict(proxies[0])
    batches = [{"clips": batch["clips"] + 2 * i} for i, batch in enumerate(batches)]  # batches that differ
    reestimate_statistics(student, batches)
    inputs = torch.cat([b["clips"] for b in batches]) @ student.inner.weight.T + student.inner.bias
    torch.testing.assert_close(student.norm.running_mean, inputs.mean(0))
    torch.testing.assert_close(student.norm.running_var, inputs.var(0), rtol=0.06, atol=0)  # over n or n - 1
    assert not student.training


def test_reestimation_changes_no_parameter(proxies, batches):
    student = Student()
    student.load_state_dict(proxies[0])
    reestimate_statistics(student, batches)
    assert all(torch.equal(value, proxies[0][name]) for name, value in student.named_parameters())


def test_moving_takes_the_start_plus_the_scaled_direction_with_measured_statistics(proxies, monkeypatch):
    space, before = open_space(proxies), []
    monkeypatch.setattr(
        space, "measure_statistics", lambda: before.append(space.model.norm.running_mean.clone())
    )
    direction = {name: torch.ones_like(value) for name, value in space.model.named_parameters()}
    space.move(proxies[2], direction, 0.25)
    for name, value in space.model.named_parameters():
        torch.testing.assert_close(value.detach(), proxies[2][name] + 0.25)
    torch.testing.assert_close(before[0], sum(proxy["norm.running_mean"] for proxy in proxies) / R)


def test_one_proxy_alone_keeps_its_statistics(proxies):
    space = open_space(proxies)
    space.blend(torch.tensor([0.0, 1.0, 0.0]))
    assert torch.equal(space.model.norm.running_var, proxies[1]["norm.running_var"])
    one_a_layer = {"inner": torch.eye(R)[0], "norm": torch.eye(R)[1], "head": torch.eye(R)[1]}
    space.blend(one_a_layer, LAYERS)  # one proxy a layer, but not the same
    measured = space.model.norm.running_mean.clone()
    assert not torch.equal(measured, proxies[1]["norm.running_mean"])
    clips = torch.cat([batch["clips"] for batch in draw_batches()])
    inputs = clips @ proxies[0]["inner.weight"].T + proxies[0]["inner.bias"]
    torch.testing.assert_close(measured, inputs.mean(0))


class Linear(nn.Module):
    """Softmax regression."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 3)

    def forward(self, clips):
        return clips, self.head(clips)


def test_the_loss_and_accuracy_of_softmax_regression_are_its_closed_form(batches):
    linear = Linear()
    space = WeightSpace(linear, [], {}, {"train": batches[:2], "val": batches})
    scores = space.evaluate("train", "val")
    assert list(scores) == ["train_top1", "train_nll", "val_top1", "val_nll"]
    weight, bias = (value.detach().double().numpy() for value in (linear.head.weight, linear.head.bias))
    for split, part in (("train", batches[:2]), ("val", batches)):
        x, y = (torch.cat([batch[key] for batch in part]).numpy() for key in ("clips", "labels"))
        logits = x.astype(float) @ weight.T + bias
        loss = np.mean(logsumexp(logits, axis=1) - logits[np.arange(len(y)), y])
        assert scores[f"{split}_nll"] == pytest.approx(loss, rel=1e-5)
        assert scores[f"{split}_top1"] == pytest.approx(100 * np.mean(logits.argmax(1) == y))


def test_a_mixtures_scores_are_those_of_validation_clips_after_it_is_taken(proxies):
    space = open_space(proxies)
    alpha = torch.tensor([0.5, 0.25, 0.25])
    scores = space.evaluate_blend(alpha)
    assert list(scores) == ["val_top1", "val_nll"]
    space.blend(torch.eye(R)[0])
    space.blend(alpha)
    assert space.evaluate("val") == scores


def test_the_loss_is_a_function_of_the_weights_alone(proxies):
    """Neither old running statistics, nor the points evaluated before, nor the scale before a norm matter."""
    space = open_space(proxies)
    weights = {name: proxies[0][name].clone() for name, _ in space.model.named_parameters()}
    space.load(weights)
    scores = space.evaluate("train", "val")
    space.model.norm.running_mean.fill_(100)
    space.load({name: value + 1 for name, value in weights.items()})
    space.load(weights)
    assert space.evaluate("train", "val") == scores
    scaled = {name: 7 * value if name.startswith("inner") else value for name, value in weights.items()}
    space.load(scaled)
    assert space.evaluate("val")["val_nll"] == pytest.approx(scores["val_nll"], abs=1e-3)


def test_a_loss_that_is_not_finite_is_an_error(batches):
    space = WeightSpace(Linear(), [], {}, {"val": batches})
    space.load({name: value * torch.inf for name, value in space.model.named_parameters()})
    with pytest.raises(FloatingPointError, match="not finite"):
        space.evaluate("val")
