"""Are features good without a classifier? Every clip is a query for the other clips of its class."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from uniego_utils.data.tables import list_some

Features = np.ndarray | Tensor
Labels = Sequence | np.ndarray | Tensor

RANKS = (1, 5)  # K of R@K
DOUBLE_UP_TO = 10_000  # clips whose similarities are float64; of more, float32 (they differ by about 1e-7)
BLOCK_BYTES = 2**27  # of the similarities that are held at once


def retrieval_metrics(
    features: Features,
    labels: Labels,
    takes: Labels | None = None,
    device: str | torch.device = "cpu",
) -> dict[str, object]:
    """Retrieval by cosine similarity, as in the paper's Table 3: every clip is a query against all others.

    Memory grows with the clips, time with their square.

    Args:
        features: (n, d), a row a clip.
        labels: (n,) numbers or names.
        takes: (n,) numbers or names; clips of the query's own take are left out, because neighbours in
            time look alike whatever the features. None: only the query itself is left out.
        device: where similarities are computed.

    Returns:
        mAP: mean over queries of the average precision, in [0, 1].
        R@1, R@5: share of queries with a match among the K nearest.
        queries: how many have a match at all; those that have none are left out of the means.
        without_match: how many were left out.
        per_class: table of the same, a row a label; NaN where no query of the label has a match.

    Raises:
        ValueError: as of `rank_matches`, or no query has a match.
    """
    ranks = rank_matches(features, labels, takes, device)
    matched = ranks["AP"].notna()
    if not matched.any():
        apart = "" if takes is None else " in another take"
        raise ValueError(
            f"none of the {len(ranks)} clips has another of its label{apart}: nothing to retrieve"
        )
    scores = pd.DataFrame({"mAP": ranks["AP"]})
    for k in RANKS:
        scores[f"R@{k}"] = (ranks["first_match"] <= k).astype(float).where(matched)
    by_label = scores.groupby(_array(labels))
    per_class = by_label.mean()
    per_class["queries"] = by_label["mAP"].count()
    per_class["without_match"] = by_label["mAP"].size() - per_class["queries"]
    counts = {"queries": int(matched.sum()), "without_match": int((~matched).sum())}
    return {**scores.mean().to_dict(), **counts, "per_class": per_class}


def rank_matches(
    features: Features,
    labels: Labels,
    takes: Labels | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> pd.DataFrame:
    """How well each clip finds those of its label; the first four arguments as of `retrieval_metrics`.

    Args:
        dtype: of similarities; None: float64, and float32 of more than 10,000 clips (they differ by 1e-7).
        block_bytes: of similarities that are held at once; does not change the result.

    Returns:
        A row a clip, in order; NaN where it has no match.
        AP: average precision, as scikit-learn defines it: equal similarities are one threshold.
        first_match: rank of the nearest match, from 1; of equally similar clips the earlier one is nearer.

    Raises:
        ValueError: fewer than two clips, features that are not finite or zero (they have no direction), or
            labels or takes that do not fit the clips.
    """
    units = _unit_vectors(features, device, dtype)
    codes = _numbered(labels, len(units), "labels").to(units.device)
    order = codes.argsort(stable=True)  # so that clips of one label are neighbours
    units, codes = units[order], codes[order]
    if takes is not None:
        takes = _numbered(takes, len(units), "takes").to(units.device)[order]
    repeats, originals = _repeated(units)
    starts = torch.searchsorted(codes, codes)
    stops = torch.searchsorted(codes, codes, right=True)
    results = torch.full((len(units), 2), torch.nan, dtype=torch.float64, device=units.device)

    rows = min(len(units), max(1, block_bytes // (len(units) * units.element_size())))
    # used again for every block: fresh memory of this size would cost as much as a tenth of the work
    similarities, sorted_rows = units.new_empty(2, rows, len(units))
    for first in range(0, len(units), rows):
        last = min(first + rows, len(units))
        alike, ordered = similarities[: last - first], sorted_rows[: last - first]
        torch.mm(units[first:last], units.T, out=alike)
        alike[:, repeats] = alike[:, originals]
        alike.diagonal(first).fill_(-torch.inf)
        if takes is not None:
            alike.masked_fill_(takes[first:last, None] == takes, -torch.inf)
        _sort_rows(alike, ordered)
        place = first
        while place < last:  # the queries of one label have the same candidates: a slice
            matches, stop = slice(int(starts[place]), int(stops[place])), min(int(stops[place]), last)
            if matches.stop - matches.start > 1:
                queries = slice(place - first, stop - first)
                results[place:stop] = _score(alike[queries], ordered[queries], matches, order)
            place = stop

    in_order = torch.empty_like(results)
    in_order[order] = results
    return pd.DataFrame(in_order.cpu().numpy(), columns=["AP", "first_match"])


def nearest(
    features: Features,
    query: int,
    count: int,
    takes: Labels | None = None,
    dtype: torch.dtype | None = None,
) -> list[int]:
    """Rows of the `count` clips most like row `query` by cosine similarity, nearest first, the earlier of
    equals first; fewer where there are no more. The query is left out, and with `takes` its whole take.
    `dtype` as of `rank_matches`.

    Raises:
        ValueError: no such query, or as of `rank_matches`.
    """
    units = _unit_vectors(features, "cpu", dtype)
    if not 0 <= query < len(units):
        raise ValueError(f"no clip {query} among {len(units)}")
    excluded = torch.arange(len(units)) == query
    if takes is not None:
        numbers = _numbered(takes, len(units), "takes")
        excluded |= numbers == numbers[query]
    alike = units @ units[query]
    repeats, originals = _repeated(units)
    alike[repeats] = alike[originals]
    order = alike.masked_fill(excluded, -torch.inf).argsort(descending=True, stable=True)
    return order[: min(count, int((~excluded).sum()))].tolist()


def _score(alike: Tensor, ordered: Tensor, matches: slice, order: Tensor) -> Tensor:
    """Average precision and rank of the first match, (B, 2), for queries of one label.

    Args:
        alike: (B, n) similarities, -inf for clips that are left out.
        ordered: the same, each row ascending.
        matches: the clips of that label; a query's own take is among them, at -inf.
        order: (n,) where each clip stands in the manifest.
    """
    clips = alike.shape[1]
    of_matches = alike[:, matches].contiguous()
    of_matches = _sort_rows(of_matches, torch.empty_like(of_matches))
    # of each match: how many clips, and how many matches, are at least as similar
    among_all = clips - torch.searchsorted(ordered, of_matches)
    among_matches = of_matches.shape[1] - torch.searchsorted(of_matches, of_matches)
    counted = of_matches > -torch.inf
    precision = (among_matches.double() / among_all).where(counted, 0.0)
    average = precision.sum(1) / counted.sum(1)  # 0 / 0 is NaN: no match

    best = of_matches[:, -1:].contiguous()
    nearer = clips - torch.searchsorted(ordered, best, right=True)
    first = (nearer.squeeze(1) + 1).double()
    tied = (among_all[:, -1:] - nearer > among_matches[:, -1:]).squeeze(1)  # with clips of other labels
    if tied.any():
        same = alike[tied] == best[tied]
        earliest = order[matches].where(same[:, matches], clips).amin(1, keepdim=True)
        first[tied] += (same & (order < earliest)).sum(1)
    return torch.stack([average, first.where(counted.any(1), torch.nan)], 1)


def _sort_rows(values: Tensor, out: Tensor) -> Tensor:
    """`out` with each row of `values` ascending.

    On a CPU numpy sorts numbers ten times as fast as torch, which sorts their places too.
    """
    if values.device.type != "cpu":
        return out.copy_(values.sort(dim=1).values)
    parts = out.copy_(values).chunk(torch.get_num_threads())
    with ThreadPoolExecutor(len(parts)) as threads:
        list(threads.map(lambda part: part.numpy().sort(axis=1), parts))  # a list raises what a thread raised
    return out


def _unit_vectors(features: Features, device: str | torch.device, dtype: torch.dtype | None) -> Tensor:
    """The (n, d) features at length one, in `dtype` or else in float64 or, of many clips, float32."""
    if not isinstance(features, Tensor):
        features = torch.from_numpy(np.require(features, requirements="CW"))
    if features.ndim != 2 or features.shape[1] == 0 or len(features) < 2:
        raise ValueError(
            f"expected features (clips, width) of two clips or more, got {tuple(features.shape)}"
        )
    dtype = dtype or (torch.float64 if len(features) <= DOUBLE_UP_TO else torch.float32)
    values = features.detach().to(device, torch.promote_types(features.dtype, dtype))
    largest = values.abs().amax(1, keepdim=True)
    for fault, wrong in {
        "not finite": ~largest.isfinite(),
        "zero: they have no direction": largest == 0,
    }.items():
        if wrong.any():
            rows = [str(row) for row in wrong.flatten().nonzero().flatten().tolist()]
            listed = list_some(rows)
            raise ValueError(f"features of {len(rows)} of {len(values)} clips are {fault} (rows {listed})")
    values = values / largest  # squares of very large or very small numbers would leave their range
    return (values / values.norm(dim=1, keepdim=True)).to(dtype)


def _numbered(values: Labels, count: int, what: str) -> Tensor:
    """Labels or takes as numbers from 0, for `count` clips."""
    values = _array(values)
    if values.shape != (count,):
        raise ValueError(f"{count} clips need as many {what}, got an array of shape {values.shape}")
    codes, _ = pd.factorize(values)
    if (codes < 0).any():
        raise ValueError(f"{int((codes < 0).sum())} of {count} {what} are missing")
    return torch.from_numpy(codes)


def _array(values: Labels) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _repeated(units: Tensor) -> tuple[Tensor, Tensor]:
    """Rows that repeat an earlier one, and that one.

    Products of equal rows may differ in the last digit, by their place in the matrix; as ties they must not.
    """
    places: dict[bytes, int] = {}
    rows = (units + 0.0).cpu().numpy()  # -0.0 becomes 0.0
    originals = torch.tensor(
        [places.setdefault(blake2b(row, digest_size=16).digest(), place) for place, row in enumerate(rows)]
    )
    repeats = (originals != torch.arange(len(units))).nonzero().flatten()
    return repeats.to(units.device), originals[repeats].to(units.device)
