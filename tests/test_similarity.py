"""Likeness of feature sets against the Gram-matrix definition, invariances, refusals."""

import pytest
import torch

from uniego_utils.similarity import direction_spread, linear_cka


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
