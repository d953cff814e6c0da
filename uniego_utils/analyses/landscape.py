"""The loss as a function of the weights: between proxies, on planes through three of them, and around one.

Proposition 1 of the paper presupposes that the loss is convex where the proxies lie. Here that is measured.
Running statistics are measured anew at every point, so that the loss is a function of the weights alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from uniego_utils.data.video import ClipSubset, loader
from uniego_utils.experiment import Experiment
from uniego_utils.sources import EVALUATION_BATCH
from uniego_utils.weight_space import Weights, WeightSpace, mixture

SPLITS = ("train", "val")
USUAL = {  # notebook 11's own parameters; others get a folder of their own
    "clips": 100,
    "steps": 4,
    "triples": 24,
    "grid": 7,
    "corners": [],
    "radii": [0.1, 0.2],
    "draws": 3,
}
TOLERANCE = 1e-5  # nats; float32 losses are no finer


def spread_batches(experiment: Experiment, clips: int) -> dict[str, list[dict[str, Tensor]]]:
    """Split -> batches of `clips` clips evenly spread over it, decoded and kept in memory."""
    batches = {}
    for split in SPLITS:
        dataset = experiment.clips(split)
        rows = np.unique(np.linspace(0, len(dataset) - 1, min(clips, len(dataset))).round().astype(int))
        chosen = ClipSubset(dataset, tuple(rows.tolist()))
        batches[split] = list(loader(chosen, EVALUATION_BATCH))
    return batches


def evaluate_weights(space: WeightSpace, weights: Weights) -> dict[str, float]:
    """`train_top1`, `train_nll`, `val_top1` and `val_nll` (percent, nats) at `weights`.

    Raises:
        FloatingPointError: a loss is not finite.
    """
    space.load(weights)
    return space.evaluate(*SPLITS)


def evaluate_combination(space: WeightSpace, coefficients: Tensor | Sequence[float]) -> dict[str, float]:
    """The same at sum_r coefficients_r theta_r: (R,), which sum to one, negative outside the simplex.

    Raises:
        ValueError: another number of coefficients, or another sum.
        FloatingPointError: a loss is not finite.
    """
    space.combine(coefficients)
    space.measure_statistics()  # at a corner too: all points are to be judged alike
    return space.evaluate(*SPLITS)


def evaluate_lines(
    space: WeightSpace,
    ends: Mapping[str, dict],
    pairs: Iterable[tuple[str, str]],
    steps: int = 4,
) -> pd.DataFrame:
    """The losses on straight lines from one proxy to another, in `steps` equal steps.

    Args:
        ends: proxy -> its `evaluate_weights`.

    Returns:
        A row a place: one, other, t (0 at `one`, 1 at `other`) and the columns of `evaluate_weights`.

    Raises:
        ValueError: an odd number of steps, or none: the middle would be left out.
    """
    if steps < 2 or steps % 2:
        raise ValueError(f"{steps} steps leave the middle of the line out; take 2, 4, ...")
    rows = []
    for one, other in pairs:
        for step in range(steps + 1):
            t = step / steps
            if step in (0, steps):
                scores = ends[other if step else one]
            else:
                scores = evaluate_combination(space, mixture(space.names, {one: 1 - t, other: t}))
            rows.append({"one": one, "other": other, "t": t, **scores})
    return pd.DataFrame(rows)


def above_chord(lines: pd.DataFrame) -> pd.DataFrame:
    """`lines` with `train_above` and `val_above`: the loss minus the chord between the line's ends (nats)."""
    parts = []
    for _, line in lines.groupby(["one", "other"], sort=False):
        for split in SPLITS:
            first, last = line[f"{split}_nll"].iloc[[0, -1]]
            chord = (1 - line["t"]) * first + line["t"] * last
            line = line.assign(**{f"{split}_above": line[f"{split}_nll"] - chord})
        parts.append(line)
    return pd.concat(parts, ignore_index=True)


def describe_lines(lines: pd.DataFrame, split: str = "train") -> pd.DataFrame:
    """Each line's height above the chord between its ends.

    Returns:
        A row a line: one, other; `barrier`, the loss's greatest height above the chord, at most 0 if it
        never rises above it; `gap`, its height in the middle; `convex`: no second difference is negative.

    Source of the barrier: Entezari et al. 2022, arXiv:2110.06296, definition 2.1; here without the ends,
    where the height is 0, so that it may be negative.
    """
    rows = []
    for (one, other), line in above_chord(lines).groupby(["one", "other"], sort=False):
        t, above = line["t"].to_numpy(), line[f"{split}_above"].to_numpy()
        rows.append(
            {
                "one": one,
                "other": other,
                "barrier": above[1:-1].max(),
                "gap": np.interp(0.5, t, above),
                "convex": bool((np.diff(line[f"{split}_nll"], 2) >= -TOLERANCE).all()),
            }
        )
    return pd.DataFrame(rows)


def evaluate_mixtures(
    space: WeightSpace, ends: Mapping[str, dict], mixtures: Mapping[str, Mapping[str, float]]
) -> pd.DataFrame:
    """The losses at convex combinations of the proxies, beside the upper bound of equation 3.

    Args:
        ends: proxy -> its `evaluate_weights`.
        mixtures: name -> its members' coefficients.

    Returns:
        A row a mixture: mixture, size (members), the columns of `evaluate_weights`, and `<split>_chord`, the
        same combination of the members' losses: an upper bound, were the loss convex.
    """
    rows = []
    for called, members in mixtures.items():
        scores = evaluate_combination(space, mixture(space.names, members))
        chords = {
            f"{split}_chord": sum(share * ends[name][f"{split}_nll"] for name, share in members.items())
            for split in SPLITS
        }
        rows.append({"mixture": called, "size": sum(s > 0 for s in members.values()), **scores, **chords})
    return pd.DataFrame(rows)


def middles(lines: pd.DataFrame) -> pd.DataFrame:
    """The middle of every line, as `evaluate_mixtures` describes mixtures."""
    middle = above_chord(lines)
    middle = middle[middle["t"] == 0.5]
    table = middle.drop(columns=["one", "other", "t"]).assign(
        size=2, mixture=middle["one"] + " + " + middle["other"]
    )
    for split in SPLITS:
        table[f"{split}_chord"] = table[f"{split}_nll"] - table.pop(f"{split}_above")
    return table.reset_index(drop=True)


def permuted_twin(
    weights: Weights, hidden_pairs: Sequence[tuple[str, str]], generator: torch.Generator
) -> Weights:
    """The same function with the hidden units between each pair of layers in another order.

    So a loss has many minima of equal depth, and is convex over no region that holds two of them.

    Args:
        hidden_pairs: the backbone's (see `backbones`).

    Raises:
        ValueError: no pairs.
    """
    if not hidden_pairs:
        raise ValueError("this backbone names no hidden layers to permute; list them as its `hidden_pairs`")
    twin = dict(weights)
    for first, second in hidden_pairs:
        order = torch.randperm(len(weights[f"{first}.weight"]), generator=generator)
        for name in {f"{first}.weight", f"{first}.bias"} & weights.keys():
            twin[name] = weights[name][order]
        twin[f"{second}.weight"] = weights[f"{second}.weight"][:, order]
    return twin


def draw_triples(names: Sequence[str], count: int, seed: int) -> dict[str, dict[str, float]]:
    """Up to `count` different triples by chance, each the centre of its triangle: name -> coefficients."""
    everyone = list(combinations(names, 3))
    if len(everyone) > count:
        chosen = np.random.default_rng(seed).choice(len(everyone), count, replace=False)
        everyone = [everyone[place] for place in sorted(chosen)]
    return {" + ".join(three): dict.fromkeys(three, 1 / 3) for three in everyone}


def distances(stacked: Weights, parameters: Sequence[str]) -> np.ndarray:
    """Euclidean distances between the R points over the named parameters, (R, R)."""
    squares = 0.0
    for name in parameters:
        points = stacked[name].flatten(1).double()
        squares = squares + torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").square()
    return squares.sqrt().cpu().numpy()


@dataclass(frozen=True)
class Plane:
    """The plane through three points in weight space, with true distances.

    Args:
        corners: (3, 2): the first at the origin, the second on the x axis, the third above it.
    """

    corners: np.ndarray

    def coefficients(self, x: float, y: float) -> np.ndarray:
        """The combination (3,) of the corners that lies at (x, y); it sums to one."""
        return np.linalg.solve(np.vstack([self.corners.T, np.ones(3)]), [x, y, 1.0])

    def grid(self, count: int, margin: float = 0.25) -> tuple[np.ndarray, np.ndarray]:
        """x (count,) and y (count,) of a grid that reaches beyond the triangle by `margin` of its size."""
        if count < 2:
            raise ValueError(f"a grid of {count} points a side shows nothing; at least 2 are needed")
        low, high = self.corners.min(0), self.corners.max(0)
        reach = margin * (high - low)
        return tuple(np.linspace(low[axis] - reach[axis], high[axis] + reach[axis], count) for axis in (0, 1))


def plane_through(apart: np.ndarray) -> Plane:
    """The plane of three points, by Gram-Schmidt on the two differences from the first.

    Args:
        apart: (3, 3) distances, of `distances`.

    Raises:
        ValueError: the points lie on a line.
    """
    along, other = apart[0, 1], apart[0, 2]
    if along == 0:
        raise ValueError("two of the three points are one; choose others")
    x = (along**2 + other**2 - apart[1, 2] ** 2) / (2 * along)  # the second difference along the first
    square = other**2 - x**2  # what is left of it
    if square <= 1e-8 * along**2:
        raise ValueError("the three points lie on a line, through which there are many planes; choose others")
    return Plane(np.array([[0.0, 0.0], [along, 0.0], [x, np.sqrt(square)]]))


def widest_triple(apart: np.ndarray) -> tuple[int, int, int]:
    """The three points with the largest circumference of their triangle."""

    def around(three: tuple[int, int, int]) -> float:
        return sum(apart[i, j] for i, j in combinations(three, 2))

    return max(combinations(range(len(apart)), 3), key=around)


def evaluate_plane(
    space: WeightSpace, corners: Sequence[int], plane: Plane, count: int, margin: float = 0.25
) -> pd.DataFrame:
    """The losses on a grid over the plane, and at its corners.

    Args:
        corners: the places of the three proxies among the R.
        plane: of `plane_through` these.

    Returns:
        A row a place: x, y, corner (0, 1, 2; -1 for the grid's) and the columns of `evaluate_weights`.
    """
    three = {name: proxies[list(corners)] for name, proxies in space.stacked.items()}
    space = replace(space, names=[space.names[place] for place in corners], stacked=three)
    xs, ys = plane.grid(count, margin)
    rows = [
        {"x": x, "y": y, "corner": place, **evaluate_combination(space, np.eye(3)[place])}
        for place, (x, y) in enumerate(plane.corners)
    ]
    for y in ys:
        for x in xs:
            scores = evaluate_combination(space, plane.coefficients(x, y))
            rows.append({"x": x, "y": y, "corner": -1, **scores})
    return pd.DataFrame(rows)


def filter_noise(weights: Weights, parameters: Sequence[str], generator: torch.Generator) -> Weights:
    """A random direction with the norm of the weights, filter by filter.

    A filter is what one output is computed with: a slice of the first axis. Parameters of one axis (biases,
    norms) stay as they are. So a step of r changes every filter by the share r of its norm.

    Source: Li et al. 2018, arXiv:1712.09913, section 4.
    """
    noise = {}
    for name in parameters:
        value = weights[name]
        drawn = torch.randn(value.shape, generator=generator).to(value)
        if value.ndim < 2:
            noise[name] = torch.zeros_like(value)
            continue
        norms, drawn_norms = (tensor.flatten(1).norm(dim=1) for tensor in (value, drawn))
        noise[name] = drawn * (norms / drawn_norms).view(-1, *[1] * (value.ndim - 1))
    return noise


def measure_flatness(
    space: WeightSpace,
    points: Mapping[str, Weights],
    centres: Mapping[str, dict],
    radii: Sequence[float],
    draws: int,
    seed: int = 0,
) -> pd.DataFrame:
    """How much the loss rises around each point, in random directions; the same draws for every point.

    Args:
        points: name -> weights; centres: name -> their `evaluate_weights`.
        radii: shares of each filter's norm.
        draws: directions a point.

    Returns:
        A row a point, radius and draw: model, radius, draw, the columns of `evaluate_weights`, and
        `<split>_rise`, the loss there minus that at the point (nats).

    Raises:
        ValueError: no draw, or a radius that is not above 0.
    """
    if draws < 1 or not radii or min(radii) <= 0:
        raise ValueError(
            f"{draws} draws at radii {list(radii)}: at least one draw and radii above 0 are needed"
        )
    names = [name for name, _ in space.model.named_parameters()]
    rows = []
    for model, weights in points.items():
        for draw in range(draws):
            noise = filter_noise(weights, names, torch.Generator().manual_seed(1_000 * seed + draw))
            for radius in radii:
                moved = {name: weights[name] + radius * noise[name] for name in names}
                scores = evaluate_weights(space, moved)
                rises = {
                    f"{split}_rise": scores[f"{split}_nll"] - centres[model][f"{split}_nll"]
                    for split in SPLITS
                }
                rows.append({"model": model, "radius": radius, "draw": draw, **scores, **rises})
    return pd.DataFrame(rows)


def describe_mixtures(mixtures: pd.DataFrame) -> pd.DataFrame:
    """How often equation 3 holds, by kind of mixture and split.

    Args:
        mixtures: of `evaluate_mixtures`, with a column `kind`.

    Returns:
        Columns kind, split, count, holds (%), mean gap and highest (nats above what equation 3 allows).
    """
    rows = []
    for (kind, table), split in product(mixtures.groupby("kind", sort=False), SPLITS):
        gap = table[f"{split}_nll"] - table[f"{split}_chord"]
        rows.append(
            {
                "kind": kind,
                "split": split,
                "count": len(table),
                "holds (%)": 100 * (gap <= 0).mean(),
                "mean gap": gap.mean(),
                "highest": gap.max(),
            }
        )
    return pd.DataFrame(rows)
