"""How sure a difference between two methods is: over test clips, and over seeds and test clips together."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 2000


def mean_interval(differences: np.ndarray) -> tuple[float, float, float]:
    """Interval at 95 % of the mean difference, and its two-sided p-value.

    One seed: the percentile interval of the bootstrap over clips; it says nothing about other seeds. Several
    seeds: seeds and clips are resampled together (the pigeonhole bootstrap: Owen 2007, Annals of Applied
    Statistics 1), and the interval is the mean plus and minus Student's t, for so many seeds, times the
    standard error that this gives; the normal distribution's 1.96 would be too narrow for a few seeds.

    Args:
        differences: (S, N) of S seeds on the same N clips: the first method minus the second.

    Returns:
        low, high, p.

    Raises:
        ValueError: no seed or no clip, or a value that is not finite.
    """
    differences = np.asarray(differences, dtype=float)
    if differences.ndim != 2 or not differences.size or not np.isfinite(differences).all():
        raise ValueError(f"differences of shape {differences.shape}: finite ones (seeds, clips) are needed")
    seeds, clips = differences.shape
    mean = differences.mean()
    of_seeds = differences @ draws(clips, 0).T / clips  # (S, B): each seed's mean over resampled clips
    if seeds == 1:
        low, high = np.quantile(of_seeds[0], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        beyond = min((of_seeds[0] <= 0).mean(), (of_seeds[0] >= 0).mean())
        return float(low), float(high), float(min(1.0, 2 * max(beyond, 1 / RESAMPLES)))
    error = (of_seeds * draws(seeds, 1).T / seeds).sum(0).std()
    half = stats.t.ppf((1 + CONFIDENCE) / 2, seeds - 1) * error
    p = float(mean == 0) if error == 0 else 2 * stats.t.sf(abs(mean) / error, seeds - 1)
    return float(mean - half), float(mean + half), float(p)


@cache
def draws(count: int, stream: int) -> np.ndarray:
    """How often each of `count` is drawn in every resample, (RESAMPLES, count); the same in every call."""
    random = np.random.default_rng((count, stream))
    return random.multinomial(count, np.full(count, 1 / count), RESAMPLES).astype(np.float32)


def clip_scores(logits: np.ndarray, labels: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy (0 or 100) and negative log-likelihood in nats of every clip: (N, C) and N -> (N,), (N,).

    Raises:
        ValueError: labels of other clips, or logits that are not finite.
    """
    logits, labels = np.asarray(logits, dtype=float), np.asarray(labels)
    if len(logits) != len(labels) or not np.isfinite(logits).all():
        raise ValueError(f"logits {logits.shape} and {len(labels)} labels: finite ones of equal clips needed")
    shifted = logits - logits.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return 100.0 * (logits.argmax(1) == labels), -log_p[np.arange(len(labels)), labels]
