"""Likeness of feature sets against the Gram-matrix definition, invariances, refusals."""

import pandas as pd
import pytest
import torch
from scipy import stats

from uniego_utils.similarity import (
    cka_matrices,
    clip_groups,
    debiased_cka,
    direction_spread,
    jackknife,
    linear_cka,
)


def gram_cka(x, y):
    """Linear CKA the slow way, from centred n x n Gram matrices."""
    n = len(x)
    centre = torch.eye(n, dtype=torch.float64) - 1 / n
    gram_x, gram_y = (centre @ f.double() @ f.double().T @ centre for f in (x, y))
    return ((gram_x * gram_y).sum() / (gram_x.norm() * gram_y.norm())).item()


@pytest.fixture
def x():
    return torch.randn(40, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("width", [1, 3, 50])
def test_agrees_with_the_definition(x, width):
    y = torch.randn(40, width, generator=torch.Generator().manual_seed(1)) + 3
    y[:, 0] += x[:, 0] ** 2
    assert linear_cka(x, y) == pytest.approx(gram_cka(x, y), rel=1e-9)


def test_ignores_rotation_scale_and_shift(x):
    rotation = torch.linalg.qr(x[:6])[0]
    assert linear_cka(x, 3 * x @ rotation + 5) == pytest.approx(1, abs=1e-5)


def test_is_symmetric_and_within_zero_and_one(x):
    y = x[:, :2] ** 3
    assert 0 <= linear_cka(x, y) <= 1 and linear_cka(x, y) == pytest.approx(linear_cka(y, x))


def test_notices_shuffled_clips(x):
    assert linear_cka(x, x.roll(1, dims=0)) < 0.3


@pytest.mark.parametrize(
    "bad", [torch.zeros(40, 6), torch.full((40, 6), float("nan")), torch.ones(39, 6), torch.ones(40)]
)
def test_refuses_what_it_cannot_score(x, bad):
    for pair in ((x, bad), (bad, x)):
        with pytest.raises(ValueError):
            linear_cka(*pair)


def test_spread_agrees_with_mean_pairwise_cosines(x):
    unit = [row / row.norm() for row in x]
    cosines = [float(a @ b) for a in unit for b in unit]
    assert direction_spread(x) == pytest.approx(1 - sum(cosines) / len(cosines), abs=1e-6)


def test_spread_is_zero_for_one_direction_and_blind_to_length(x):
    lengths = torch.rand(40, 1, generator=torch.Generator().manual_seed(2)) + 0.1
    assert direction_spread(x[:1] * lengths) == pytest.approx(0, abs=1e-6)
    assert direction_spread(x * lengths) == pytest.approx(direction_spread(x), abs=1e-6)
    assert direction_spread(torch.cat([x, -x])) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_spread_refuses_rows_without_a_direction(x, value):
    x[3] = value
    with pytest.raises(ValueError, match="no direction"):
        direction_spread(x)


def unbiased_hsic(x, y):
    """HSIC_1 of Song et al. 2012, term by term, from Gram matrices without their diagonal."""
    k, m = (f.double() @ f.double().T for f in (x, y))
    n = len(x)
    k.fill_diagonal_(0)
    m.fill_diagonal_(0)
    ones = torch.ones(n, dtype=torch.double)
    total = (k @ m).trace() + (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
    return (total - 2 / (n - 2) * ones @ k @ m @ ones) / (n * (n - 3))


def test_the_debiased_estimate_agrees_with_its_definition(x):
    y = torch.randn(40, 30, generator=torch.Generator().manual_seed(1))
    y[:, :6] += x
    expected = unbiased_hsic(x, y) / (unbiased_hsic(x, x) * unbiased_hsic(y, y)).sqrt()
    assert debiased_cka(x, y) == pytest.approx(expected.item(), rel=1e-9)


def test_few_clips_inflate_the_plain_estimate_alone():
    draw = torch.Generator().manual_seed(0)
    pairs = [[torch.randn(30, 64, generator=draw) for _ in range(2)] for _ in range(20)]
    plain, debiased = (sum(cka(*pair) for pair in pairs) / 20 for cka in (linear_cka, debiased_cka))
    assert plain > 0.5 and abs(debiased) < 0.05


def test_many_sets_at_once_and_without_each_group(x):
    sets = {"a": x, "b": x[:, :3] ** 2, "c": x.flip(1) + x**3}
    sets = {name: rows.double() for name, rows in sets.items()}
    groups = [i % 5 for i in range(40)]
    found = cka_matrices(sets, groups)
    for group in range(-1, 5):  # -1: all clips
        kept = torch.tensor([g != group for g in groups])
        for i, one in enumerate(sets.values()):
            for j, other in enumerate(sets.values()):
                pair = one[kept], other[kept]
                assert found["biased"][group + 1, i, j].item() == pytest.approx(gram_cka(*pair), rel=1e-8)
                slow = (
                    unbiased_hsic(*pair)
                    / (unbiased_hsic(one[kept], one[kept]) * unbiased_hsic(other[kept], other[kept])).sqrt()
                )
                assert found["debiased"][group + 1, i, j].item() == pytest.approx(slow.item(), rel=1e-8)


def test_the_jackknife_of_a_mean_is_the_textbook_interval():
    values = torch.randn(12, generator=torch.Generator().manual_seed(0)).double()
    without = [(values.sum() - value).item() / 11 for value in values]
    found = jackknife([values.mean().item(), *without], list(range(12)))
    low, high = stats.t.interval(0.95, 11, values.mean(), stats.sem(values))
    assert (found["low"], found["high"]) == pytest.approx((low, high))


def test_groups_are_people_then_takes_then_clips():
    rows = pd.DataFrame({"subject": [f"p{i % 6}" for i in range(12)], "take": [str(i) for i in range(12)]})
    groups, unit = clip_groups(rows)
    assert unit == "subject" and all(
        len({g for g, s in zip(groups, rows["subject"], strict=True) if s == p}) == 1 for p in rows["subject"]
    )
    assert clip_groups(rows.assign(subject="one"))[1] == "take"
    assert clip_groups(rows.assign(subject="one", take="one"))[1] == "clip"


@pytest.mark.parametrize("groups", [[0] * 40, [0, 2] * 20, [0, 1], [0] * 38 + [1] * 2])
def test_groups_that_do_not_number_the_clips_are_refused(x, groups):
    with pytest.raises(ValueError, match="group"):
        cka_matrices({"x": x}, groups)
