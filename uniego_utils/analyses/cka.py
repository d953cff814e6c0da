"""How alike two encoders see the same clips: centred kernel alignment (CKA), and an interval for it."""

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
import torch
from scipy import stats
from torch import Tensor

FEWEST_CLIPS = 4  # the unbiased estimator divides by n - 3
FEWEST_GROUPS, MOST_GROUPS = 5, 50  # for an interval
BLOCK = 4096  # clips multiplied at once


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Linear centred kernel alignment: likeness of two feature sets, blind to rotation and scale.

    Computed in feature space, hence linear in clips; see `cka_matrices` for many sets at once.

    Args:
        x: (n, p) features; row i describes clip i.
        y: (n, q) features of the same n clips in the same order; q may differ from p.

    Returns:
        A unitless score in [0, 1]; 1 means the same geometry. Small n inflates it, so compare scores only
        at equal n, or take `debiased_cka`.

    Raises:
        ValueError: the rows do not pair up, fewer than four clips, or one side is constant or not finite.

    Source: Kornblith et al. 2019, arXiv:1905.00414; the paper's Figure 3.
    """
    return cka_matrices({"x": x.double(), "y": y.double()})["biased"][0, 1].item()


def debiased_cka(x: Tensor, y: Tensor) -> float:
    """`linear_cka` from the unbiased estimator of HSIC: around 0 for unrelated features, however few clips.

    It may fall below 0, where features are unrelated, or above 1, where clips are very few. Arguments and
    errors as for `linear_cka`.

    Source: HSIC_1 of Song et al. 2012 (JMLR 13), which Nguyen et al. 2021 (arXiv:2010.15327) take for CKA;
    they average it over minibatches, here all clips are one batch.
    """
    return cka_matrices({"x": x.double(), "y": y.double()})["debiased"][0, 1].item()


def cka_matrices(
    features: Mapping[str, Tensor], groups: Sequence[int] | None = None, block: int = BLOCK
) -> dict[str, Tensor]:
    """Linear CKA of all pairs of feature sets, biased and debiased, without any n x n matrix.

    With centred features X (n, p) and Y (n, q), squared row norms k_i and l_i, and C = X'Y,

        biased    HSIC ~ |C|^2
        unbiased  HSIC ~ |C|^2 - n / (n - 2) sum_i k_i l_i + (sum_i k_i) (sum_i l_i) / ((n - 1) (n - 2)),

    and CKA is HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y)). The second is n (n - 3) HSIC_1 of Song et al. 2012,
    whose Gram matrices K~ and L~ have a zero diagonal: for centred features tr(K~ L~) = |C|^2 - sum k l,
    1'K~1 = -sum k and 1'K~L~1 = sum k l; a shift of the features does not change HSIC_1.

    Args:
        features: name -> (n, width) features of the same clips in the same order. Products of a block of
            clips are formed in the features' precision and summed in float64.
        groups: for each clip a number from 0 to G - 1, e.g. of its person. CKA is then computed again
            without each group, for `jackknife`; from the groups' own products, so that it takes twice the
            time and not G times.
        block: clips multiplied at once; bounds the memory, and does not change the result.

    Returns:
        `biased` and `debiased`: (S, S) float64 for S sets; with groups (1 + G, S, S), first of all clips,
        then without each group. Beyond the features it takes room for (sum of widths)^2 / 2 numbers in
        float64, and with groups for S * n * G more and for the features of the largest group.

    Raises:
        ValueError: sets that do not pair up, are constant or not finite (also: without one of the groups),
            fewer than four clips, or groups that do not number the clips.
    """
    _check_sets(features, block)
    sets = list(features.values())
    clips = len(sets[0])
    members = [torch.arange(clips)] if groups is None else _members(groups, clips)
    means = [sum(part.sum(0, dtype=torch.double) for part in x.split(block)) / clips for x in sets]

    squares = torch.zeros(clips, len(sets), dtype=torch.double)  # of the norms of centred rows
    sums = [torch.zeros(len(members), x.shape[1], dtype=torch.double) for x in sets]
    widths = [x.shape[1] for x in sets]
    totals = [torch.zeros(p, sum(widths[place:]), dtype=torch.double) for place, p in enumerate(widths)]
    for group, rows in enumerate(members):
        for part in rows.split(block):
            centred = _centred(sets, means, part)
            squares[part] = torch.stack([x.square().sum(1, dtype=torch.double) for x in centred], 1)
            for place, product in enumerate(_products(centred)):
                sums[place][group] += centred[place].sum(0, dtype=torch.double)
                totals[place] += product
    inner = [
        [part.square().sum() for part in total.split(widths[place:], 1)] for place, total in enumerate(totals)
    ]
    names = list(features)
    estimates = [_cka(names, inner, squares)]
    if groups is not None:
        rest = clips - torch.tensor([len(rows) for rows in members])
        # the sum over all clips is zero, hence the mean of those without a group:
        centres = [-each / rest[:, None] for each in sums]
        along = _projections(sets, means, centres, block)
        totals = [total.to(sets[0].dtype) for total in totals]
        for group, rows in enumerate(members):
            centre = [each[group] for each in centres]
            inner = []
            for place, product in enumerate(_products(_centred(sets, means, rows))):
                left = torch.sub(totals[place], product, out=product)  # sums of the other clips' x y'
                first, later = centre[place], centre[place:]
                along_first = (first.to(left.dtype) @ left).double()  # they are centred by another mean:
                inner.append(
                    [  # |sum x y' - m a b'|^2, a and b the means of m clips
                        part.square().sum()
                        - rest[group] * (2 * s @ b - rest[group] * first.dot(first) * b.dot(b))
                        for part, s, b in zip(
                            left.split(widths[place:], 1),
                            along_first.split(widths[place:]),
                            later,
                            strict=True,
                        )
                    ]
                )
            lengths = torch.stack([each.square().sum() for each in centre])
            others = torch.ones(clips, dtype=torch.bool)
            others[rows] = False
            estimates.append(_cka(names, inner, (squares - 2 * along[:, :, group] + lengths)[others]))
    kinds = {name: torch.stack([each[name] for each in estimates]) for name in ("biased", "debiased")}
    return {name: matrices if groups is not None else matrices[0] for name, matrices in kinds.items()}


def _centred(sets: Sequence[Tensor], means: Sequence[Tensor], rows: Tensor) -> list[Tensor]:
    """These rows of each set, minus its mean."""
    return [x[rows] - mean.to(x.dtype) for x, mean in zip(sets, means, strict=True)]


def _products(centred: list[Tensor]) -> Iterator[Tensor]:
    """Of each set X'[X, later sets], (width, their widths): half of all products, in few large ones."""
    beside, first = torch.cat(centred, 1), 0
    for x in centred:
        yield x.T @ beside[:, first:]
        first += x.shape[1]


def _projections(
    sets: Sequence[Tensor], means: Sequence[Tensor], centres: Sequence[Tensor], block: int
) -> Tensor:
    """Dot products of all clips with each group's centre: (n, sets, G)."""
    projections = torch.zeros(len(sets[0]), len(sets), len(centres[0]), dtype=torch.double)
    for part in torch.arange(len(projections)).split(block):
        for place, x in enumerate(_centred(sets, means, part)):
            projections[part, place] = (x @ centres[place].T.to(x.dtype)).double()
    return projections


def _cka(names: Sequence[str], inner: list[list[Tensor]], squares: Tensor) -> dict[str, Tensor]:
    """Both estimates (S, S).

    Args:
        inner: for each set |X'Y|^2 with itself and each later one, the features centred.
        squares: (n, S) squared norms of the clips' centred features.
    """
    clips, count = squares.shape
    biased = torch.zeros(count, count, dtype=torch.double)
    for place, values in enumerate(inner):
        biased[place, place:] = biased[place:, place] = torch.stack(values).double()
    traces = squares.sum(0)
    unbiased = (
        biased
        - clips / (clips - 2) * squares.T @ squares
        + torch.outer(traces, traces) / ((clips - 1) * (clips - 2))
    )
    estimates = {}
    for kind, hsic in (("biased", biased), ("debiased", unbiased)):
        variances = hsic.diagonal()
        if (variances <= 0).any():
            name = names[int((variances <= 0).nonzero()[0])]
            raise ValueError(f"{name} hardly differs over {clips} clips; take more clips or fewer groups")
        estimates[kind] = hsic / torch.outer(variances, variances).sqrt()
    return estimates


def _check_sets(features: Mapping[str, Tensor], block: int) -> None:
    """Refuse feature sets that cannot be compared."""
    shapes = {name: tuple(x.shape) for name, x in features.items()}
    if any(len(shape) != 2 for shape in shapes.values()) or len({shape[0] for shape in shapes.values()}) != 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"expected (clips, width) features of the same clips, got {listed or 'none'}")
    if len(kinds := {str(x.dtype) for x in features.values()}) != 1:
        raise ValueError(f"features differ in precision: {', '.join(sorted(kinds))}")
    for name, x in features.items():
        if len(x) < FEWEST_CLIPS:
            raise ValueError(f"{name} has {len(x)} clips; CKA needs at least {FEWEST_CLIPS}")
        if not x.is_floating_point() or not all(part.isfinite().all() for part in x.split(block)):
            raise ValueError(f"{name} is not finite everywhere, or not floating-point")
        if all((part == x[:1]).all() for part in x.split(block)):
            raise ValueError(f"{name} is constant: it has no geometry to compare")


def _members(groups: Sequence[int], clips: int) -> list[Tensor]:
    """Rows of each group. Raises ValueError unless every clip has one of the numbers 0 to G - 1."""
    numbers = torch.as_tensor(groups)
    if numbers.shape != (clips,):
        raise ValueError(f"{len(numbers)} group numbers for {clips} clips")
    sizes = torch.bincount(numbers)
    if len(sizes) < 2 or (sizes == 0).any() or clips - sizes.max() < FEWEST_CLIPS:
        raise ValueError(
            f"groups of {sizes.tolist()[:MOST_GROUPS]} clips: need two or more, numbered from 0 on, "
            f"and {FEWEST_CLIPS} clips beside the largest"
        )
    return [(numbers == group).nonzero().flatten() for group in range(len(sizes))]


def clip_groups(rows: pd.DataFrame) -> tuple[list[int], str]:
    """Groups of clips to leave out together, for `cka_matrices`.

    Clips of one person are alike, so persons are what an interval should be over; where there are fewer
    than five, takes are, else single clips. Whole units share a group where there are more than fifty.

    Args:
        rows: a manifest's, with the columns `subject` and `take`.

    Returns:
        A group number for each clip, from 0, and what the units are: `subject`, `take` or `clip`.
    """
    units = {"subject": rows["subject"].astype(str), "take": rows["take"].astype(str)}
    chosen, unit = pd.Series(range(len(rows))), "clip"
    for name, values in units.items():
        if values.nunique() >= FEWEST_GROUPS:
            chosen, unit = values, name
            break
    sizes = chosen.value_counts(sort=False).sort_values(ascending=False, kind="stable")
    filled = [0] * min(MOST_GROUPS, len(sizes))
    group_of = {}
    for name, size in sizes.items():  # the largest first, into the group that has the fewest clips
        group_of[name] = min(range(len(filled)), key=filled.__getitem__)
        filled[group_of[name]] += size
    return [group_of[name] for name in chosen], unit


def jackknife(values: Sequence[float], groups: Sequence[int], level: float = 0.95) -> dict[str, float]:
    """Interval of a statistic from its values without each group of clips.

    A bootstrap would draw some clips twice. Pairs of a clip and its copy are perfectly alike in every feature
    set and raise CKA, debiased or not; leaving out never makes copies. The jackknife is the bootstrap of the
    statistic's linear part, with t quantiles because groups may be few.

    Args:
        values: (1 + G,): the statistic of all clips, then without each group, e.g. a difference of means of
            what `cka_matrices` gives.
        groups: as given to `cka_matrices`; they may differ in size.

    Returns:
        `estimate` (of all clips), its standard error `se`, and the interval `low` to `high`.

    Source: Busing et al. 1999, delete-m_j jackknife for unequal m.
    """
    everything, *without = (float(value) for value in values)
    sizes = torch.bincount(torch.as_tensor(groups)).tolist()
    if len(sizes) != len(without):
        raise ValueError(f"{len(without)} values without a group for {len(sizes)} groups")
    clips, count = sum(sizes), len(sizes)
    ratios = [clips / size for size in sizes]
    centre = count * everything - sum((1 - 1 / h) * value for h, value in zip(ratios, without, strict=True))
    pseudo = [h * everything - (h - 1) * value for h, value in zip(ratios, without, strict=True)]
    variance = sum((p - centre) ** 2 / (h - 1) for p, h in zip(pseudo, ratios, strict=True)) / count
    se = variance**0.5
    reach = stats.t.ppf((1 + level) / 2, count - 1) * se
    return {"estimate": everything, "se": se, "low": everything - reach, "high": everything + reach}


def direction_spread(features: Tensor) -> float:
    """How far the clips' directions differ: 1 - |mean of the unit vectors|^2, in [0, 1].

    0: all (n, d) rows point the same way, so that a cosine distance to them tells clips apart no longer;
    near 1: they spread evenly. Raises ValueError for rows without a direction.
    """
    norms = features.double().norm(dim=1, keepdim=True)
    if not norms.isfinite().all() or (norms == 0).any():
        raise ValueError("a row is zero or not finite: it has no direction")
    return 1 - (features.double() / norms).mean(0).square().sum().item()
