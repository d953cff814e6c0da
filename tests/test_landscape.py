"""The loss landscape: a convex toy in closed form, one that is not convex, geometry, and refusals."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import logsumexp
from torch import nn

from uniego_utils.analyses.landscape import (
    Plane,
    above_chord,
    describe_lines,
    describe_mixtures,
    distances,
    draw_triples,
    evaluate_combination,
    evaluate_lines,
    evaluate_mixtures,
    evaluate_plane,
    evaluate_weights,
    filter_noise,
    measure_flatness,
    middles,
    permuted_twin,
    plane_through,
    widest_triple,
)
from uniego_utils.backbones import create_backbone
from uniego_utils.weight_space import WeightSpace

N, WIDTH, CLASSES, R = 30, 5, 4, 4
NAMES = ["a", "b", "c", "d"]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Linear(nn.Module):
    """Softmax regression: its loss is convex in the weights."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, clips):
        return clips, self.head(clips)


class Deep(nn.Module):
    """A hidden layer with BatchNorm: its loss is not convex."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Linear(WIDTH, 16), nn.BatchNorm1d(16)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(16, CLASSES)

    def forward(self, clips):
        features = self.norm(self.stem(clips)).relu()
        return features, self.head(self.drop(features))


def batches_of(seed):
    clips, labels = draw(N, WIDTH, seed=seed), torch.arange(N) % CLASSES
    return [{"clips": clips[part], "labels": labels[part]} for part in torch.arange(N).split(12)]


BATCHES = {"train": batches_of(1), "val": batches_of(2)}


@pytest.fixture
def stacked():
    return {"head.weight": draw(R, CLASSES, WIDTH, seed=3), "head.bias": draw(R, CLASSES, seed=4)}


@pytest.fixture
def convex(stacked):
    return WeightSpace(Linear(), NAMES, stacked, BATCHES)


def closed_form(split, weight, bias):
    """Mean cross-entropy of softmax regression, in numpy."""
    x = torch.cat([batch["clips"] for batch in BATCHES[split]]).double().numpy()
    y = torch.cat([batch["labels"] for batch in BATCHES[split]]).numpy()
    logits = x @ weight.T + bias
    return float(np.mean(logsumexp(logits, axis=1) - logits[np.arange(len(y)), y]))


def point(stacked, r):
    return {name: pool[r] for name, pool in stacked.items()}


def ends_of(space):
    return {name: evaluate_weights(space, point(space.stacked, r)) for r, name in enumerate(space.names)}


def test_the_loss_of_the_toy_is_its_closed_form(convex, stacked):
    scores = evaluate_weights(convex, point(stacked, 0))
    assert scores == evaluate_combination(convex, [1.0, 0.0, 0.0, 0.0])
    for split in ("train", "val"):
        slow = closed_form(split, *(stacked[name][0].double().numpy() for name in stacked))
        assert scores[f"{split}_nll"] == pytest.approx(slow, rel=1e-5)


def test_lines_of_a_convex_loss_match_the_closed_form_and_have_no_barrier(convex, stacked):
    pairs = list(combinations(NAMES, 2))
    lines = evaluate_lines(convex, ends_of(convex), pairs, steps=4)
    assert len(lines) == len(pairs) * 5
    weight, bias = (pool.double().numpy() for pool in stacked.values())
    for row in lines.itertuples():
        i, j = NAMES.index(row.one), NAMES.index(row.other)
        mix = [(1 - row.t) * pool[i] + row.t * pool[j] for pool in (weight, bias)]
        assert row.train_nll == pytest.approx(closed_form("train", *mix), rel=1e-5)
        assert row.val_nll == pytest.approx(closed_form("val", *mix), rel=1e-5)
    for split in ("train", "val"):
        described = describe_lines(lines, split)
        assert (described["barrier"] < 0).all() and (described["gap"] < 0).all() and described["convex"].all()


def test_barrier_gap_and_convexity_by_definition():
    line = pd.DataFrame(
        {"one": "a", "other": "b", "t": [0, 0.25, 0.5, 0.75, 1], "train_nll": [1.0, 1.0, 2.5, 1.5, 3.0]}
    ).assign(val_nll=[2.0, 0, 0, 0, 2])
    assert list(above_chord(line)["train_above"]) == [0, -0.5, 0.5, -1, 0]
    assert list(above_chord(line)["val_above"]) == [0, -2, -2, -2, 0]
    found = describe_lines(line).iloc[0]
    # the chord is 1, 1.5, 2, 2.5, 3
    assert (found["barrier"], found["gap"], found["convex"]) == (0.5, 0.5, False)
    line["train_nll"] = [1.0, 0.5, 0.5, 1.2, 3.0]
    found = describe_lines(line).iloc[0]
    assert (found["barrier"], found["gap"], found["convex"]) == (-1.0, -1.5, True)


def test_a_network_and_its_permuted_twin_have_a_barrier():
    """The same function from other weights: what lies between is another function."""
    torch.manual_seed(0)
    model = Deep()
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    clips, labels = (torch.cat([batch[key] for batch in BATCHES["train"]]) for key in ("clips", "labels"))
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(clips)[1], labels).backward()
        optimizer.step()
    order = torch.randperm(16)
    own = {name: value.detach().clone() for name, value in model.named_parameters()}
    twin = {name: value[order] for name, value in own.items() if not name.startswith("head")}
    twin |= {"head.weight": own["head.weight"][:, order], "head.bias": own["head.bias"]}
    stacked = {name: torch.stack([own[name], twin[name]]) for name in own}
    space = WeightSpace(Deep(), ["a", "b"], stacked, BATCHES)
    ends = ends_of(space)
    assert ends["a"]["val_nll"] == pytest.approx(ends["b"]["val_nll"], rel=1e-4)
    lines = evaluate_lines(space, ends, [("a", "b")], steps=2)
    found = describe_lines(lines).iloc[0]
    assert found["barrier"] == found["gap"] > 0.1 and not found["convex"]


def test_a_permuted_twin_is_the_same_function_with_other_weights():
    model = create_backbone("timesformer", 5, 8, 32, "tiny").eval()
    weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
    twin = permuted_twin(weights, model.hidden_pairs, torch.Generator().manual_seed(0))
    changed = {name for name in weights if not torch.equal(weights[name], twin[name])}
    assert {f"blocks.{b}.mlp.fc{n}.weight" for b in (0, 1) for n in (1, 2)} <= changed
    assert all(".mlp." in name for name in changed)
    clips = draw(2, 3, 8, 32, 32)
    before = model(clips)
    model.load_state_dict(twin)
    for one, other in zip(before, model(clips), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="no hidden layers to permute.*hidden_pairs"):
        permuted_twin(weights, [], torch.Generator())


def test_mixtures_stay_below_their_chord_where_the_loss_is_convex(convex, stacked):
    ends = ends_of(convex)
    mixtures = draw_triples(NAMES, 100, 0) | {"most": {"a": 0.7, "b": 0.1, "c": 0.1, "d": 0.1}}
    table = evaluate_mixtures(convex, ends, mixtures).set_index("mixture")
    assert list(table["size"]) == [3, 3, 3, 3, 4]
    for split in ("train", "val"):
        chord = 0.7 * ends["a"][f"{split}_nll"] + sum(0.1 * ends[n][f"{split}_nll"] for n in "bcd")
        assert table.loc["most", f"{split}_chord"] == pytest.approx(chord)
        assert (table[f"{split}_nll"] < table[f"{split}_chord"]).all()
    lines = evaluate_lines(convex, ends, combinations(NAMES, 2), steps=2)
    halves = {f"{one} + {other}": {one: 0.5, other: 0.5} for one, other in combinations(NAMES, 2)}
    direct = evaluate_mixtures(convex, ends, halves)
    pd.testing.assert_frame_equal(middles(lines)[direct.columns], direct)
    described = describe_mixtures(pd.concat([direct.assign(kind="pairs"), table.assign(kind="more")]))
    assert (described["holds (%)"] == 100).all() and list(described["count"]) == [6, 6, 5, 5]
    gap = (direct["val_nll"] - direct["val_chord"]).tolist()
    assert described.loc[1, "mean gap"] == pytest.approx(np.mean(gap))
    assert described.loc[1, "highest"] == pytest.approx(max(gap))
    weight, bias = (pool[:3].double().mean(0).numpy() for pool in stacked.values())
    assert table.loc["a + b + c", "train_nll"] == pytest.approx(closed_form("train", weight, bias), rel=1e-5)


def test_triples_are_drawn_without_repetition_and_from_the_seed():
    names = [str(number) for number in range(9)]
    one, again, other = (draw_triples(names, 20, seed) for seed in (0, 0, 1))
    assert len(one) == 20 and one == again and one.keys() != other.keys()
    assert all(len(members) == 3 and sum(members.values()) == pytest.approx(1) for members in one.values())
    assert len(draw_triples(names, 1000, 0)) == 84


def test_distances_by_definition(stacked):
    flat = torch.cat([pool.flatten(1) for pool in stacked.values()], 1).double()
    slow = [[(flat[i] - flat[j]).norm().item() for j in range(R)] for i in range(R)]
    np.testing.assert_allclose(distances(stacked, list(stacked)), slow, rtol=1e-9, atol=1e-12)


def test_the_plane_keeps_distances_and_has_its_corners_exactly(convex, stacked):
    chosen = [3, 0, 1]
    corners = {name: pool[chosen] for name, pool in stacked.items()}
    plane = plane_through(distances(corners, list(corners)))
    flat = []
    for place in [(0.3, -1.2), (2.0, 0.7)]:
        replace(convex, names=NAMES[:3], stacked=corners).combine(plane.coefficients(*place))
        flat.append(torch.cat([value.detach().flatten() for value in convex.model.parameters()]).double())
    one, other = flat
    assert (one - other).norm().item() == pytest.approx(np.hypot(1.7, 1.9), rel=1e-5)
    for place in range(3):
        np.testing.assert_allclose(plane.coefficients(*plane.corners[place]), np.eye(3)[place], atol=1e-9)

    table = evaluate_plane(convex, chosen, plane, 3)
    assert len(table) == 3 + 9
    for row in table[table["corner"] >= 0].itertuples():
        assert row.train_nll == evaluate_weights(convex, point(corners, row.corner))["train_nll"]
        assert (row.x, row.y) == tuple(plane.corners[row.corner])
    weight, bias = (pool.double().numpy() for pool in corners.values())
    for row in table[table["corner"] < 0].itertuples():
        alpha = plane.coefficients(row.x, row.y)
        mix = [np.tensordot(alpha, pool, 1) for pool in (weight, bias)]
        assert row.val_nll == pytest.approx(closed_form("val", *mix), rel=1e-4)


def test_the_grid_reaches_beyond_the_triangle():
    plane = Plane(np.array([[0.0, 0.0], [4.0, 0.0], [1.0, 2.0]]))
    xs, ys = plane.grid(5, margin=0.5)
    assert (xs[0], xs[-1], ys[0], ys[-1]) == (-2, 6, -1, 3)


def test_the_widest_triple_has_the_longest_sides():
    points = np.array([[0.0, 0], [1, 0], [0, 1], [9, 9], [-9, 3]])
    apart = np.linalg.norm(points[:, None] - points[None], axis=-1)
    assert widest_triple(apart) == (1, 3, 4)


def test_noise_has_every_filters_norm_and_leaves_vectors_alone():
    weights = {
        "conv": 3 * draw(6, 2, 3, 3),
        "row": draw(4, 7, seed=1),
        "bias": draw(5),
        "zero": torch.zeros(2, 3),
    }
    noise = filter_noise(weights, list(weights), torch.Generator().manual_seed(9))
    for name in ("conv", "row"):
        own, new = (tensor[name].flatten(1).norm(dim=1) for tensor in (weights, noise))
        torch.testing.assert_close(new, own)
        assert abs((noise[name] * weights[name]).sum()) < 0.5 * own.square().sum()  # another direction
    assert not noise["bias"].any() and not noise["zero"].any()


def test_flatness_is_the_rise_of_the_loss_and_draws_are_the_same_for_all(convex, stacked):
    points = {name: point(stacked, r) for r, name in enumerate("ab")}
    centres = {name: evaluate_weights(convex, weights) for name, weights in points.items()}
    table = measure_flatness(convex, points, centres, [0.1, 0.5], draws=3, seed=2)
    assert len(table) == 2 * 2 * 3
    for row in table.itertuples():
        generator = torch.Generator().manual_seed(2_000 + row.draw)
        noise = filter_noise(points[row.model], list(stacked), generator)
        weight, bias = (
            (points[row.model][name] + row.radius * noise[name]).double().numpy() for name in stacked
        )
        before = closed_form("train", *(points[row.model][name].double().numpy() for name in stacked))
        assert row.train_rise == pytest.approx(closed_form("train", weight, bias) - before, abs=1e-5)
    again = measure_flatness(convex, dict(reversed(points.items())), centres, [0.5], draws=3, seed=2)
    keys = ["model", "radius", "draw"]
    both = table.merge(again, on=keys, suffixes=("", "_again"))
    assert len(both) == 2 * 3 and (both["train_rise"] == both["train_rise_again"]).all()


def test_the_loss_is_a_function_of_the_weights_alone():
    """Neither old running statistics, nor points evaluated before, nor the scale before a norm matter."""
    torch.manual_seed(0)
    model = Deep()
    weights = {name: value.detach().clone() for name, value in model.named_parameters()}
    stacked = {name: torch.stack([value.clone(), value + 1]) for name, value in model.state_dict().items()}
    space = WeightSpace(model, ["a", "b"], stacked, BATCHES)
    scores = evaluate_weights(space, weights)
    model.norm.running_mean.fill_(100)
    evaluate_weights(space, {name: value + 1 for name, value in weights.items()})
    assert evaluate_weights(space, weights) == scores
    assert evaluate_combination(space, [1.0, 0.0]) == scores  # one of the proxies is judged as any point
    scaled = weights | {"stem.weight": 7 * weights["stem.weight"], "stem.bias": 7 * weights["stem.bias"]}
    assert evaluate_weights(space, scaled)["val_nll"] == pytest.approx(scores["val_nll"], abs=1e-3)


def test_combinations_check_their_coefficients(convex):
    for wrong in ([0.5, 0.5], [0.5, 0.5, 0.5, 0.5]):
        with pytest.raises(ValueError, match="4 points need as many coefficients that sum to 1"):
            evaluate_combination(convex, wrong)
    with pytest.raises(ValueError, match="no point z; choose of a, b, c, d"):
        evaluate_mixtures(convex, ends_of(convex), {"odd": {"z": 1.0}})


def test_points_on_a_line_are_refused():
    line = np.abs(np.subtract.outer([0.0, 1, 3], [0.0, 1, 3]))
    with pytest.raises(ValueError, match="on a line"):
        plane_through(line)
    with pytest.raises(ValueError, match="are one"):
        plane_through(np.zeros((3, 3)))


def test_too_few_points_are_refused(convex, stacked):
    for steps in (0, 1, 3):
        with pytest.raises(ValueError, match=f"{steps} steps leave the middle"):
            evaluate_lines(convex, ends_of(convex), [("a", "b")], steps=steps)
    with pytest.raises(ValueError, match="grid of 1"):
        Plane(np.eye(3, 2)).grid(1)
    for radii, draws in (([], 2), ([0.1], 0), ([0.0], 1)):
        with pytest.raises(ValueError, match="at least one draw"):
            measure_flatness(convex, {"a": point(stacked, 0)}, {}, radii, draws)


def test_a_loss_that_is_not_finite_is_an_error(convex, stacked):
    with pytest.raises(FloatingPointError, match="not finite"):
        evaluate_weights(convex, {name: value * torch.inf for name, value in point(stacked, 0).items()})
