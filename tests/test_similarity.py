"""Likeness of feature sets against the Gram-matrix definition, invariances, refusals."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from uniego_utils.analyses.cka import (
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
        with pytest.raises(ValueError):
            debiased_cka(*pair)


def gram_debiased(x, y):
    """CKA from HSIC_1 of Song et al. 2012, written out with its n x n matrices of zero diagonal."""
    n = len(x)
    one = torch.ones(n, dtype=torch.float64)

    def hsic(a, b):
        k, l = (f.double() @ f.double().T for f in (a, b))  # noqa: E741
        k, l = (gram - torch.diag(gram.diagonal()) for gram in (k, l))  # noqa: E741
        cross = one @ k @ one * (one @ l @ one) / ((n - 1) * (n - 2))
        return ((k @ l).trace() + cross - 2 / (n - 2) * (one @ k @ l @ one)) / (n * (n - 3))

    return (hsic(x, y) / (hsic(x, x) * hsic(y, y)).sqrt()).item()


def related(clips, widths, seed=0):
    """Feature sets that share some of their directions, each with a mean far from zero."""
    random = torch.Generator().manual_seed(seed)
    common = torch.randn(clips, 4, generator=random)
    return {
        f"set{width}": common @ torch.randn(4, width, generator=random)
        + 2 * torch.randn(clips, width, generator=random)
        + 5
        for width in widths
    }


@pytest.mark.parametrize("width", [1, 3, 50])
def test_debiased_agrees_with_its_definition(x, width):
    y = torch.randn(40, width, generator=torch.Generator().manual_seed(1)) + 3
    y[:, 0] += x[:, 0] ** 2
    assert debiased_cka(x, y) == pytest.approx(gram_debiased(x, y), rel=1e-9)


def test_debiased_ignores_rotation_scale_and_shift(x):
    rotation = torch.linalg.qr(x[:6])[0]
    assert debiased_cka(x, 3 * x @ rotation + 5) == pytest.approx(1, abs=1e-5)


def test_few_clips_inflate_the_biased_estimate_alone():
    random = torch.Generator().manual_seed(0)
    pairs = [torch.randn(2, 30, 200, generator=random) for _ in range(20)]
    assert min(linear_cka(x, y) for x, y in pairs) > 0.8  # of unrelated features
    debiased = torch.tensor([debiased_cka(x, y) for x, y in pairs])
    assert debiased.abs().max() < 0.15 and debiased.mean().abs() < 3 * debiased.std() / 20**0.5


@pytest.mark.parametrize("block", [16, 4096])
def test_matrices_hold_every_pair_in_blocks_too(block):
    sets = related(50, (3, 7, 60))
    found = cka_matrices(sets, block=block)
    for kind, slow in (("biased", gram_cka), ("debiased", gram_debiased)):
        expected = torch.tensor([[slow(x, y) for y in sets.values()] for x in sets.values()])
        assert torch.allclose(found[kind], expected.double(), atol=1e-5), kind
        assert torch.equal(found[kind], found[kind].T)


def test_float32_is_as_good_as_float64():
    sets = related(600, (64, 200))
    exact = cka_matrices({name: x.double() for name, x in sets.items()})
    for kind, matrix in cka_matrices(sets).items():
        assert (matrix - exact[kind]).abs().max() < 1e-5


@pytest.mark.parametrize("double", [False, True])
def test_leaving_a_group_out_is_computing_without_it(double):
    sets = related(60, (3, 40, 90))
    if double:
        sets = {name: x.double() for name, x in sets.items()}
    groups = [min(row % 7, 4) for row in range(60)]  # of different sizes
    found = cka_matrices(sets, groups, block=11)
    for left_out in range(-1, 5):  # -1: nobody
        kept = [row for row, group in enumerate(groups) if group != left_out]
        alone = cka_matrices({name: x[kept] for name, x in sets.items()})
        for kind in ("biased", "debiased"):
            error = (found[kind][1 + left_out] - alone[kind]).abs().max()
            assert error < (1e-12 if double else 1e-5), (kind, left_out)


@pytest.mark.parametrize(
    "groups, complaint",
    [
        ([0] * 40, "two or more"),
        ([0, 2] * 20, "numbered from 0"),
        ([0] * 37 + [1, 2, 3], "beside the largest"),
        ([0, 1], "2 group numbers for 40"),
    ],
)
def test_refuses_groups_that_do_not_fit(x, groups, complaint):
    with pytest.raises(ValueError, match=complaint):
        cka_matrices({"x": x, "y": x**2}, groups)


def test_refuses_a_set_that_hangs_on_one_group(x):
    y = torch.zeros(40, 2)
    y[:8] = x[:8, :2]
    with pytest.raises(ValueError, match="y hardly differs over 32 clips"):
        cka_matrices({"x": x, "y": y}, [0] * 8 + [1] * 32)


def test_refusal_names_the_set(x):
    with pytest.raises(ValueError, match="odd is not finite"):
        cka_matrices({"fine": x, "odd": x / 0})
    with pytest.raises(ValueError, match="odd has 3 clips"):
        cka_matrices({"odd": x[:3]})
    with pytest.raises(ValueError, match="differ in precision: torch.float32, torch.float64"):
        cka_matrices({"fine": x, "odd": x.double()})
    with pytest.raises(ValueError, match="got none"):
        cka_matrices({})


def test_jackknife_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(0).normal(size=12)
    without = [np.delete(values, place).mean() for place in range(12)]
    found = jackknife([values.mean(), *without], range(12))
    low, high = stats.t.interval(0.95, 11, values.mean(), stats.sem(values))
    assert found["se"] == pytest.approx(stats.sem(values))
    assert (found["low"], found["high"]) == (pytest.approx(low), pytest.approx(high))


def test_jackknife_refuses_another_number_of_groups():
    with pytest.raises(ValueError, match="2 values without a group for 3 groups"):
        jackknife([0.0, 1.0, 2.0], [0, 1, 2])


def drawn(groups, each, seed):
    """Clips of people: features share a part of the clip and a part of the person."""
    random = np.random.default_rng(seed)
    person = np.repeat(random.normal(size=(groups, 8)), each, 0)
    common = random.normal(size=(groups * each, 8)) + 0.7 * person
    sets = [common @ np.random.default_rng(n).normal(size=(8, 8)) for n in (1, 2)]
    return {
        str(n): torch.from_numpy(rows + 3 * random.normal(size=rows.shape)) for n, rows in enumerate(sets)
    }


def test_intervals_cover_the_truth():
    truth = cka_matrices(drawn(5000, 4, 0))["debiased"][0, 1].item()
    groups = np.repeat(np.arange(20), 4).tolist()
    inside = 0
    for trial in range(1, 101):
        found = jackknife(cka_matrices(drawn(20, 4, trial), groups)["debiased"][:, 0, 1], groups)
        inside += found["low"] < truth < found["high"]
    assert 88 <= inside <= 100  # of nominally 95; fewer than 88 has a chance of 1 in 250


def test_drawing_clips_twice_would_pretend_likeness():
    """Why the interval is no bootstrap over clips: of unrelated features, even the debiased CKA rises."""
    random = np.random.default_rng(0)
    x, y = torch.from_numpy(random.normal(size=(2, 40, 100)))
    again = [random.integers(40, size=40) for _ in range(50)]
    resampled = [debiased_cka(x[rows], y[rows]) for rows in again]
    found = jackknife(cka_matrices({"x": x, "y": y}, list(range(40)))["debiased"][:, 0, 1], range(40))
    assert min(resampled) > 0.3 and found["low"] < 0 < found["high"] and found["high"] < 0.3


def test_groups_are_people_where_there_are_enough():
    rows = pd.DataFrame({"subject": list("aabbccddee"), "take": range(10)})
    groups, unit = clip_groups(rows)
    assert unit == "subject" and groups == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert clip_groups(rows.assign(subject="a"))[1] == "take"
    assert clip_groups(rows.assign(subject="a", take="b")) == (list(range(10)), "clip")


def test_many_people_share_groups_of_like_size():
    people = [number for number in range(333) for _ in range(1 + number % 3)]
    groups, _ = clip_groups(pd.DataFrame({"subject": people, "take": people}))
    assert set(groups) == set(range(50))
    assert len({(person, group) for person, group in zip(people, groups, strict=True)}) == 333
    sizes = np.bincount(groups)
    assert sizes.max() - sizes.min() <= 3


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
