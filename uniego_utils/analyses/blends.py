"""A map of the simplex between the proxies: what a blend scores, predicted from a few that were measured.

Scores are of validation clips: columns `val_top1` (percent) and `val_nll` (nats), of `WeightSpace.evaluate`.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, cycle, islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import RidgeCV
from torch import Tensor
from tqdm.auto import tqdm

from uniego_utils.cards import Card
from uniego_utils.data.video import loader
from uniego_utils.experiment import Experiment
from uniego_utils.runs import digest, finish_run, read_json, require_finished, start_run, write_text
from uniego_utils.sources import EVALUATION_BATCH, PROXIES_CURE, load_outputs
from uniego_utils.training import read_metrics, score
from uniego_utils.weight_space import WeightSpace, open_weight_space

SCORES = ("val_top1", "val_nll")
CONCENTRATIONS = (0.3, 1.0)  # of the Dirichlet draws: a few proxies weigh most, or any blend is as likely
PENALTIES = np.logspace(-5, 0, 6)
FREEDOM = 3.0  # how much less the curvature that all pairs share is penalised than a pair's own

Predict = Callable[[np.ndarray], pd.DataFrame]  # alphas (M, R) -> scores (M, 2)


def sample_simplex(count: int, proxies: int, seed: int) -> np.ndarray:
    """Points on the simplex, (count, proxies), rows sum to one: by turns near its edges and anywhere."""
    draw, turns = np.random.default_rng(seed), islice(cycle(CONCENTRATIONS), count)
    points = [draw.dirichlet(np.full(proxies, concentration)) for concentration in turns]
    return np.array(points).reshape(count, proxies)


def open_blends(experiment: Experiment, proxies: Mapping[str, Path] | None = None) -> WeightSpace:
    """The weight space of proxies (name -> run folder; None: the seed's), ready for `evaluate_blend`."""
    proxies = proxies or {key: experiment.folder("02_proxy") / key for key in experiment.card.teachers}
    space = open_weight_space(experiment, proxies)
    # train clips are decoded only where running statistics must be measured on them
    for split in ("train", "val") if space.has_statistics else ("val",):
        clips = experiment.clips(split, progress=False)
        space.batches = {**space.batches, split: loader(clips, EVALUATION_BATCH)}
    return space


def measure_blends(experiment: Experiment, count: int, folder: Path, progress: bool = True) -> pd.DataFrame:
    """The scores of `count` points of the simplex on validation clips; a finished folder is reused.

    Returns:
        A row a point: a column per proxy with its coefficient, and `SCORES`. Also in `<folder>/blends.csv`.
    """
    keys = list(experiment.card.teachers)
    folders = {key: require_finished(experiment.folder("02_proxy") / key, PROXIES_CURE) for key in keys}
    config = {
        "seed": experiment.seed,
        "blends": count,
        "proxies": {key: digest(proxy / "model.safetensors") for key, proxy in folders.items()},
        "backbone": [experiment.preset.backbone, experiment.preset.size],
        "video": experiment.preset.video.decisive(),
        "validation": experiment.manifest("val").digest,
    }
    if start_run(folder, config):
        return pd.read_csv(folder / "blends.csv", float_precision="round_trip")
    space = open_blends(experiment)
    alphas = sample_simplex(count, len(keys), experiment.seed)
    evaluations = [
        space.evaluate_blend(torch.tensor(alpha, dtype=torch.float32))
        for alpha in tqdm(alphas, "blends", disable=not progress, leave=False)
    ]
    blends = pd.DataFrame(alphas, columns=keys).join(pd.DataFrame(evaluations, columns=list(SCORES)))
    write_text(folder / "blends.csv", blends.to_csv(index=False))
    finish_run(folder, {"blends": count})
    return blends


def known_points(card: Card, proxies: Mapping[str, Path], merges: Mapping[str, Path]) -> pd.DataFrame:
    """Points that were measured before, in the columns of `measure_blends`.

    Args:
        proxies: key -> finished run folder; these are the simplex's corners, and the first rows.
        merges: name -> finished run folder with an `alpha.json` of the whole model; one that is a corner is
            left out.
    """
    keys = list(card.teachers)
    rows = {key: dict.fromkeys(keys, 0.0) | {key: 1.0} | read_metrics(proxies[key]) for key in keys}
    for name, folder in merges.items():
        alpha = read_json(folder / "alpha.json")
        if max(alpha.values()) < 1:
            rows[name] = alpha | read_metrics(folder)
    return pd.DataFrame(rows).T[[*keys, *SCORES]].astype(float)


def quadratic_surrogate(points: pd.DataFrame, keys: Sequence[str]) -> Predict:
    """Scores as a quadratic of alpha that is exact at the corners, fitted by ridge regression.

    score(alpha) = sum_r alpha_r s_r + sum_{i<j} (c + c_ij) alpha_i alpha_j: between the corners' scores s_r
    lies a straight line, and the products bend it. c, the bend that all pairs share, is nearly free; the
    pairs' own c_ij are held back by a penalty chosen by leaving one point out.

    Args:
        points: of `known_points`, corners included, and `measure_blends`.
        keys: the proxies' columns.

    Raises:
        ValueError: a corner is missing, or no other point is there to fit.
    """
    alphas, scores = points[list(keys)].to_numpy(), points[list(SCORES)].to_numpy()
    corner = alphas.max(1) == 1
    if not corner.any() or set(alphas[corner].argmax(1)) != set(range(len(keys))):
        raise ValueError("every proxy's own scores are needed to draw the map between them")
    if corner.all():
        raise ValueError("no blend was measured; give at least one point between the proxies")
    corner_scores = np.empty((len(keys), len(SCORES)))
    corner_scores[alphas[corner].argmax(1)] = scores[corner]
    rest = scores[~corner] - alphas[~corner] @ corner_scores
    # RidgeCV leaves points out, so it needs two
    penalties = PENALTIES if len(rest) > 1 else PENALTIES[:1]
    bend = [
        RidgeCV(penalties, fit_intercept=False).fit(_products(alphas[~corner]), column) for column in rest.T
    ]

    def predict(blends: np.ndarray) -> pd.DataFrame:
        bent = np.stack([model.predict(_products(blends)) for model in bend], 1)
        return pd.DataFrame(blends @ corner_scores + bent, columns=list(SCORES))

    return predict


def _products(alphas: np.ndarray) -> np.ndarray:
    """alpha_i alpha_j of all pairs, and their sum: (M, R) -> (M, R (R - 1) / 2 + 1)."""
    pairs = [alphas[:, i] * alphas[:, j] for i, j in combinations(range(alphas.shape[1]), 2)]
    products = np.stack(pairs, 1) if pairs else np.zeros((len(alphas), 1))
    return np.concatenate([products, FREEDOM * products.sum(1, keepdims=True)], 1)


def logit_surrogate(logits: Tensor, labels: Tensor) -> Predict:
    """Scores of the mixed logits, sum_r alpha_r z_r, instead of the mixed weights': nothing is fitted.

    To first order in the proxies' distance from each other both are the same.

    Args:
        logits: (clips, proxies, classes); labels: (clips,).
    """

    def predict(blends: np.ndarray) -> pd.DataFrame:
        rows = [
            score(torch.einsum("r,nrc->nc", torch.tensor(alpha, dtype=logits.dtype), logits), labels)
            for alpha in blends
        ]
        return pd.DataFrame(rows).rename(columns=lambda name: f"val_{name}")[list(SCORES)]

    return predict


def proxies_logits(experiment: Experiment) -> tuple[Tensor, Tensor]:
    """Stored logits (clips, proxies, classes) of validation clips, and their labels (clips,)."""
    folders = [experiment.folder("02_proxy") / key for key in experiment.card.teachers]
    logits = torch.stack([load_outputs(folder, "val", PROXIES_CURE)["logits"] for folder in folders], 1)
    return logits, torch.tensor(experiment.manifest("val").labels)


def leave_one_out(
    points: pd.DataFrame, keys: Sequence[str], fit: Callable[[pd.DataFrame], Predict]
) -> pd.DataFrame:
    """A surrogate's prediction for each measured blend, fitted on the other `points`.

    Returns:
        `SCORES` of the points that are no corners, indexed as in `points`.
    """
    inner = points.index[points[list(keys)].max(axis=1) < 1]
    predictions = [fit(points.drop(place))(points.loc[[place], list(keys)].to_numpy()) for place in inner]
    return pd.concat(predictions).set_axis(inner)


def typical_error(predictions: pd.DataFrame, points: pd.DataFrame) -> pd.Series:
    """Root of the mean squared difference of each score between predicted and measured."""
    return ((predictions - points.loc[predictions.index, list(SCORES)]) ** 2).mean() ** 0.5
