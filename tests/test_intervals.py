"""Intervals over clips and seeds: against slow resampling, scipy, and the coverage that they promise."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from uniego_utils.report.intervals import clip_scores, mean_interval
from uniego_utils.report.tables import paired_differences
from uniego_utils.training import score


def crossed(random, seeds, clips, mean=0.0, of_seeds=0.5, of_clips=20.0, rest=20.0):
    """Differences with an effect of the seed, one of the clip, and one of both: (seeds, clips)."""
    rows, columns = random.normal(0, of_seeds, (seeds, 1)), random.normal(0, of_clips, clips)
    return mean + rows + columns + random.normal(0, rest, (seeds, clips))


def test_one_seed_has_the_bootstraps_interval_over_clips():
    """scipy's bootstrap and slow resampling by hand."""
    values = crossed(np.random.default_rng(0), 1, 400, 2.0)
    low, high, p = mean_interval(values)
    slow = stats.bootstrap((values[0],), np.mean, n_resamples=4000, method="percentile", rng=1)
    assert (low, high) == pytest.approx(tuple(slow.confidence_interval), abs=0.25)
    draw = np.random.default_rng(2)
    means = np.array([draw.choice(values[0], 400).mean() for _ in range(4000)])
    assert (low, high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.25)
    assert p == pytest.approx(2 * min((means <= 0).mean(), (means >= 0).mean()), abs=0.05)


def test_several_seeds_are_resampled_with_the_clips():
    values = crossed(np.random.default_rng(1), 5, 60, 1.0, of_seeds=3.0)
    low, high, p = mean_interval(values)
    draw, means = np.random.default_rng(3), []
    for _ in range(4000):
        seeds, clips = draw.choice(5, 5), draw.choice(60, 60)
        means.append(values[np.ix_(seeds, clips)].mean())
    error = np.std(means)
    half = stats.t.ppf(0.975, 4) * error
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), rel=0.05)
    assert p == pytest.approx(2 * stats.t.sf(abs(values.mean()) / error, 4), rel=0.1)


@pytest.mark.parametrize("seeds", [3, 8])
def test_intervals_cover_the_mean_as_often_as_they_say(seeds):
    """Not less often; somewhat more, because the pigeonhole bootstrap counts the rest twice."""
    covered = []
    for trial in range(300):
        low, high, _ = mean_interval(crossed(np.random.default_rng(trial), seeds, 200, 1.0))
        covered.append(low <= 1.0 <= high)
    assert 0.93 <= np.mean(covered) <= 1.0


def test_one_seeds_interval_covers_the_mean_of_that_seed():
    covered = []
    for trial in range(300):
        values = crossed(np.random.default_rng(trial), 1, 200, 1.0, of_seeds=0.0)
        low, high, _ = mean_interval(values)
        covered.append(low <= 1.0 <= high)
    assert 0.91 <= np.mean(covered) <= 0.98


def test_clips_alone_make_an_interval_where_seeds_agree():
    """What the t-interval over seeds, which has no width here, does not see."""
    values = np.tile(np.random.default_rng(0).normal(1, 30, 100), (4, 1))
    low, high, _ = mean_interval(values)
    assert high - low > 2 * 30 / np.sqrt(100)


@pytest.mark.parametrize("seeds", [1, 6])
def test_the_other_sign_mirrors_and_order_of_seeds_hardly_matters(seeds):
    values = crossed(np.random.default_rng(0), seeds, 50, 3.0)
    low, high, p = mean_interval(values)
    assert mean_interval(-values) == pytest.approx((-high, -low, p))
    other = mean_interval(values[::-1])
    assert other == pytest.approx((low, high, p), rel=0.1, abs=0.05)


def test_no_difference_is_no_finding():
    for seeds in (1, 3):
        assert mean_interval(np.zeros((seeds, 10))) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize("bad", [np.zeros((0, 5)), np.zeros((2, 0)), np.zeros(5), np.full((2, 3), np.nan)])
def test_what_is_no_difference_is_refused(bad):
    with pytest.raises(ValueError, match="finite ones"):
        mean_interval(bad)


def test_scores_of_clips_are_torchs_and_their_mean_the_splits():
    logits = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 5
    top1, nll = clip_scores(logits.numpy(), labels.tolist())
    np.testing.assert_allclose(nll, F.cross_entropy(logits, labels, reduction="none").numpy(), rtol=1e-5)
    whole = score(logits, labels)
    assert (top1.mean(), nll.mean()) == pytest.approx((whole["top1"], whole["nll"]), rel=1e-5)
    assert set(top1) == {0.0, 100.0}


@pytest.mark.parametrize("logits", [np.zeros((3, 2)), np.full((2, 2), np.inf)])
def test_outputs_of_other_clips_are_refused(logits):
    with pytest.raises(ValueError, match="labels: finite ones of equal clips"):
        clip_scores(logits, [0, 1])


def test_differences_rest_on_clips_where_scores_have_them():
    random = np.random.default_rng(0)
    clips = {method: random.normal(mean, 10, (3, 80)) for method, mean in (("uniego", 60), ("ego", 55))}
    rows = [
        {"method": m, "seed": s, "test_top1": row.mean(), "test_top1_clips": row}
        for m, of_seeds in clips.items()
        for s, row in enumerate(of_seeds)
    ]
    scores = pd.DataFrame(rows)
    row = paired_differences(scores, "uniego", "test_top1").iloc[0]
    expected = mean_interval(clips["uniego"] - clips["ego"])
    assert (row["low"], row["high"], row["p"]) == pytest.approx(expected)
    without = paired_differences(scores.drop(columns="test_top1_clips"), "uniego", "test_top1").iloc[0]
    assert without["mean"] == pytest.approx(row["mean"]) and without["low"] != row["low"]
