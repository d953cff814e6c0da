"""The map between the proxies: against scikit-learn, and against polynomials known to be right."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import accuracy_score, log_loss

from uniego_utils.analyses.blends import (
    FREEDOM,
    PENALTIES,
    SCORES,
    known_points,
    leave_one_out,
    logit_surrogate,
    measure_blends,
    quadratic_surrogate,
    sample_simplex,
    typical_error,
)
from uniego_utils.cards import load_card
from uniego_utils.experiment import create_experiment
from uniego_utils.runs import finish_run, write_json

KEYS = ["a", "b", "c", "d"]


def points_of(alphas, scores):
    return pd.DataFrame(alphas, columns=KEYS).join(pd.DataFrame(scores, columns=list(SCORES)))


def polynomial(alphas, shared, own):
    """Two scores that are quadratics of alpha: corners' scores, one bend for all pairs, one of each."""
    alphas = np.asarray(alphas, dtype=float)
    lines = alphas @ np.array([[50.0, 1.5], [52.0, 1.4], [40.0, 1.9], [55.0, 1.3]])
    pairs = np.array([[row[i] * row[j] for i, j in combinations(range(4), 2)] for row in alphas])
    slopes = shared + own * np.arange(-2.5, 3)
    return lines + np.stack([10 * pairs @ slopes, -pairs @ slopes], 1)


@pytest.fixture
def measured():
    alphas = np.concatenate([np.eye(4), sample_simplex(12, 4, seed=0)])
    noise = np.random.default_rng(1).normal(size=(16, 2)) * [0.5, 0.01]
    noise[:4] = 0
    return points_of(alphas, polynomial(alphas, 1.0, 0.5) + noise)


def test_points_lie_on_the_simplex_and_are_the_seeds():
    points = sample_simplex(50, 9, seed=3)
    assert points.shape == (50, 9) and (points >= 0).all()
    np.testing.assert_allclose(points.sum(1), 1)
    assert np.array_equal(points, sample_simplex(50, 9, seed=3))
    assert not np.array_equal(points, sample_simplex(50, 9, seed=4))
    assert np.array_equal(points[:7], sample_simplex(7, 9, seed=3))  # more points keep the earlier ones
    sparse, any_blend = points[::2].max(1).mean(), points[1::2].max(1).mean()
    assert sparse > any_blend + 0.1


def test_a_quadratic_is_found_where_the_scores_are_one():
    unseen = sample_simplex(20, 4, seed=9)
    alphas = np.concatenate([np.eye(4), sample_simplex(40, 4, seed=1)])
    said = quadratic_surrogate(points_of(alphas, polynomial(alphas, 1.0, 0.5)), KEYS)(unseen)
    np.testing.assert_allclose(said, polynomial(unseen, 1.0, 0.5), rtol=2e-3)


def test_the_map_is_exact_at_the_corners_whatever_was_measured_between_them(measured):
    said = quadratic_surrogate(measured, KEYS)(np.eye(4))
    np.testing.assert_allclose(said, measured.loc[:3, list(SCORES)])


def test_the_fit_is_ridge_regression_of_what_the_straight_line_leaves(measured):
    """Against Ridge with the penalty that leaves one point out best, searched the slow way."""
    alphas, scores = measured[KEYS].to_numpy(), measured[list(SCORES)].to_numpy()
    inner, unseen = alphas[4:], sample_simplex(10, 4, seed=5)

    def features(points):
        pairs = [points[:, i] * points[:, j] for i in range(4) for j in range(i + 1, 4)]
        return np.stack([*pairs, FREEDOM * sum(pairs)], 1)

    expected = unseen @ scores[:4]
    for column in range(2):
        rest = scores[4:, column] - inner @ scores[:4, column]

        def error(penalty, rest=rest):
            wrong = []
            for left in range(len(rest)):
                kept = np.arange(len(rest)) != left
                model = Ridge(penalty, fit_intercept=False).fit(features(inner)[kept], rest[kept])
                wrong.append((model.predict(features(inner)[[left]])[0] - rest[left]) ** 2)
            return np.mean(wrong)

        model = Ridge(min(PENALTIES, key=error), fit_intercept=False).fit(features(inner), rest)
        expected[:, column] += model.predict(features(unseen))
    np.testing.assert_allclose(quadratic_surrogate(measured, KEYS)(unseen), expected, rtol=1e-6)


def test_the_order_of_points_and_proxies_does_not_matter(measured):
    unseen = sample_simplex(10, 4, seed=5)
    said = quadratic_surrogate(measured, KEYS)(unseen)
    shuffled = measured.sample(frac=1, random_state=0)
    np.testing.assert_allclose(quadratic_surrogate(shuffled, KEYS)(unseen), said)
    turned = quadratic_surrogate(measured, KEYS[::-1])(unseen[:, ::-1])
    np.testing.assert_allclose(turned, said, rtol=1e-6)


def test_refuses_a_map_without_its_corners_or_without_anything_between(measured):
    with pytest.raises(ValueError, match="every proxy's own scores"):
        quadratic_surrogate(measured.drop(2), KEYS)
    with pytest.raises(ValueError, match="every proxy's own scores"):
        quadratic_surrogate(measured.iloc[4:], KEYS)
    with pytest.raises(ValueError, match="no blend was measured"):
        quadratic_surrogate(measured.iloc[:4], KEYS)


def test_mixed_logits_are_scored_as_scikit_learn_scores_them():
    draw = torch.Generator().manual_seed(0)
    logits, labels = 2 * torch.randn(40, 3, 5, generator=draw), torch.randint(5, (40,), generator=draw)
    alphas = np.array([[1.0, 0.0, 0.0], [0.2, 0.3, 0.5]])
    said = logit_surrogate(logits, labels)(alphas)
    for alpha, (top1, nll) in zip(alphas, said.to_numpy(), strict=True):
        mixed = sum(weight * logits[:, r].double().numpy() for r, weight in enumerate(alpha))
        odds = np.exp(mixed) / np.exp(mixed).sum(1, keepdims=True)
        assert top1 == pytest.approx(100 * accuracy_score(labels, odds.argmax(1)), abs=1e-4)
        assert nll == pytest.approx(log_loss(labels, odds, labels=range(5)), rel=1e-5)


def test_a_left_out_point_has_no_say_in_what_is_said_of_it(measured):
    def fit(points):
        return quadratic_surrogate(points, KEYS)

    said = leave_one_out(measured, KEYS, fit)
    assert list(said.index) == list(range(4, 16))  # corners are no blends
    changed = measured.copy()
    changed.loc[7, list(SCORES)] += 100
    again = leave_one_out(changed, KEYS, fit)
    np.testing.assert_allclose(again.loc[7], said.loc[7])
    assert not np.allclose(again.loc[8], said.loc[8])
    error = typical_error(said, measured)
    for name in SCORES:
        wrong = [said.loc[place, name] - measured.loc[place, name] for place in said.index]
        assert error[name] == pytest.approx(np.sqrt(np.mean(np.square(wrong))))


def test_what_was_measured_before_is_read_from_the_run_folders(tmp_path):
    card = load_card("mocap")
    keys = list(card.teachers)
    proxies, merges = {key: tmp_path / key for key in keys}, {}
    for place, key in enumerate(keys):
        finish_run(proxies[key], {"val_top1": 50.0 + place, "val_nll": 1.0, "train_nll": 0.1})
    for name, alpha in {
        "average": dict.fromkeys(keys, 1 / 9),
        "soup": {key: float(key == keys[0]) for key in keys},
    }.items():
        merges[name] = tmp_path / name
        write_json(merges[name] / "alpha.json", alpha)
        finish_run(merges[name], {"val_top1": 60.0, "val_nll": 0.9})
    points = known_points(card, proxies, merges)
    assert list(points.index) == [*keys, "average"]  # that soup is a corner
    assert list(points.columns) == [*keys, *SCORES]
    np.testing.assert_array_equal(points.loc[keys, keys], np.eye(9))
    assert points.loc["average", "val_top1"] == 60 and points.loc[keys[2], "val_top1"] == 52
    assert np.isfinite(quadratic_surrogate(points, keys)(sample_simplex(3, 9, 0))).all(axis=None)


def test_without_proxies_it_says_which_notebook_makes_them(tmp_path):
    experiment = create_experiment(dataset="mocap", preset="smoke", seed=0, outputs=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="run notebook 02_proxy with teacher = each"):
        measure_blends(experiment, 2, tmp_path / "blends2")
    assert not (tmp_path / "blends2").exists()
