"""The paper's claims: what it prints for each, and what our seeds say."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pandas as pd

from uniego_utils.report.intervals import CONFIDENCE
from uniego_utils.report.paper import (
    DATASETS,
    MEASURE,
    NOT_RUN,
    NOTHING,
    STARTS,
    ablation_tables,
    accuracies,
    label,
    number_cell,
    paper_table,
    paper_top1,
    strategy,
)
from uniego_utils.report.tables import (
    gain,
    paired_differences,
    results_table,
    spread,
    text_table,
)
from uniego_utils.runs import provenance

Pair = tuple[str, str]  # of methods; the first one is claimed to be better

UNITS = {"points": 1, "nats": 3}  # of accuracy and of negative log-likelihood, with the digits shown
PAPER = f"Paper: {', '.join(DATASETS.values())} (points)"

HOLDS, FAILS, UNDECIDED, ONE_SEED = "holds", "does not hold", "undecided", "one seed: no verdict"
NOT_MEASURED = "not measured"
VERDICTS = (FAILS, NOT_MEASURED, ONE_SEED, UNDECIDED, HOLDS)  # the first one among the parts is the whole's

READING = """\
An advantage is the first method minus the second on test clips, paired by seed (NLL: second minus first, so
positive is better in both): mean [95 % interval], in how many of the seeds it is positive. The interval
covers other seeds and other test clips together (the pigeonhole bootstrap's standard error, times Student's t
for so many seeds); with one seed it covers other test clips alone, and there is no verdict. A comparison
*holds* where the interval lies above zero, *does not hold* where it lies below, and is *undecided* otherwise.
A claim holds if all its comparisons do, and does not if any does not; the worst one is shown. The paper's
numbers are the smallest advantage that its tables print for the claim.

These are {count} comparisons, and their verdicts are not corrected for that: chance alone would make one in
twenty of them leave zero out. "After Holm" corrects for all of them (accuracy and NLL each by themselves).
Claim 6 is about the starts that came out ahead, here in our runs and there in the paper's, so its intervals
flatter it.
"""
BESIDE = """\
Accuracy in percent on test clips; ours as mean ± standard deviation over seeds. Of Table 8, "No Distillation"
is our merged start trained on labels alone; the paper prints the ego baseline's number there. Exocentric
inference is on validation clips where test clips have no exo view.
"""


@dataclass(frozen=True)
class Claim:
    """What the paper says, as comparisons that must all come out in favour of their first method."""

    key: str
    statement: str
    pairs: tuple[Pair, ...]
    paper: tuple[Pair, ...] = ()  # the paper's methods in the place of `pairs`, where they differ
    needs: tuple[str, ...] = ()  # methods that must have been run beside those of `pairs`


def pick_starts(top1: Mapping[str, float]) -> tuple[Pair, ...]:
    """Claim 6 for these accuracies: the start ahead before SPD, against that of the others ahead after it."""
    ahead = max(STARTS, key=lambda start: top1[start])
    other = max((start for start in STARTS if start != ahead), key=lambda start: top1[STARTS[start]])
    return (ahead, other), (STARTS[other], STARTS[ahead])


def paper_claims(scores: pd.DataFrame, proxies: Iterable[str], k: int = 1) -> list[Claim]:
    """The paper's claims about accuracy; claim 6 is about the starts that lead in `scores`.

    Args:
        scores: as `collect` gives them.
        proxies: keys of all proxies.
        k: how many proxies UNIEGO selects per clip.
    """

    def chain(methods: list[str]) -> tuple[Pair, ...]:
        return tuple(zip(methods, methods[1:], strict=False))

    def strategies(k: int) -> list[str]:
        return [*(strategy(selected, k) for selected in (1, 2, 3)), "all_proxies"]

    starts, printed = (*STARTS, *STARTS.values()), paper_top1()
    picked = paper_picks = pick_starts({name: printed["egoexo_fitness", name] for name in starts})
    if set(starts) <= set(scores["method"]):
        picked = pick_starts(scores.groupby("method")["test_top1"].mean())
    others = [start for start in STARTS if start != "merged"]
    return [
        Claim(
            "1a",
            "UNIEGO > naive multi-teacher > ego baseline, as the paper trains them",
            (("uniego", "naive"), ("naive", "ego"), ("uniego", "ego")),
        ),
        Claim(
            "1b",
            "The same, where all are trained for as long",
            (("uniego", "naive_longer"), ("naive_longer", "ego_longer"), ("uniego", "ego_longer")),
        ),
        Claim(
            "1c",
            "UNIEGO > an ego baseline that teaches itself on the pairs (not in the paper)",
            (("uniego", "self_trained"),),
        ),
        Claim("1d", "UNIEGO > distillation from all proxies", (("uniego", "all_proxies"),)),
        Claim("2a", "UNIEGO > every proxy (Table 9)", tuple(("uniego", key) for key in proxies)),
        Claim("2b", "UNIEGO > the proxy that is best on validation clips", (("uniego", "best"),)),
        Claim(
            "3a",
            "Merging with SPD > either alone",
            (("uniego", "merged"), ("uniego", "merged_ce"), ("uniego", "start_spd")),
        ),
        Claim(
            "3b",
            "Every component adds (Table 6)",
            (
                ("start_all", "ego"),
                ("start_spd", "start_all"),
                ("merged", "ego"),
                ("uniego", "start_spd"),
                ("uniego", "merged"),
            ),
        ),
        Claim(
            "4",
            "Top-1 ≥ Top-2 ≥ Top-3 ≥ all proxies (Table 8)",
            chain(strategies(k)),
            chain(strategies(1)),  # K = 1 on the datasets of Table 8
        ),
        Claim(
            "5a",
            "Merging whole models ≥ other starts, after SPD (Table 7)",
            tuple(("uniego", STARTS[start]) for start in others),
        ),
        Claim(
            "5b",
            "Merging whole models ≥ other starts, before SPD (Table 10; not so in the paper)",
            tuple(("merged", start) for start in others),
        ),
        Claim(
            "6", "The best start before SPD is not the best after it (Table 10)", picked, paper_picks, starts
        ),
    ]


def holm(p_values: Mapping) -> dict:
    """Holm's adjusted p-values: comparisons so adjusted are jointly wrong in no more than alpha of studies.

    Source: Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    adjusted, largest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.get)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = largest
    return adjusted


def compare(scores: pd.DataFrame, first: str, second: str) -> dict:
    """How much better the first method is than the second on test clips, paired by seed.

    Returns:
        For points (accuracy) and nats (negative log-likelihood, second minus first, so that positive is
        better here too): mean, sd, 95 % interval low to high, `positive` ("3/5" seeds) and the two-sided p,
        as of `paired_differences`. Empty where a method is missing.
    """
    pair = scores[scores["method"].isin([first, second])]
    if pair["method"].nunique() < 2:
        return {}
    comparison = {}
    for unit, column, minuend in (("points", "test_top1", first), ("nats", "test_nll", second)):
        row = paired_differences(pair, minuend, column).iloc[0]
        comparison |= {f"{unit}_{name}": row[name] for name in ("mean", "sd", "low", "high", "p", "positive")}
    return comparison


def judge(low: float, high: float, seeds: int) -> str:
    """The verdict on one comparison from the interval of its advantage over so many seeds."""
    if seeds == 1:
        return ONE_SEED  # whatever its clips say, another seed may say the opposite
    return HOLDS if low > 0 else FAILS if high < 0 else UNDECIDED


def judge_all(verdicts: Iterable[str]) -> str:
    """The verdict on a claim: it holds if all parts do, and does not if any part does not."""
    return min(verdicts, key=VERDICTS.index)


def compare_all(
    scores: pd.DataFrame, claims: Iterable[Claim], beside: Iterable[pd.DataFrame] = ()
) -> pd.DataFrame:
    """One row per comparison of the claims: what the paper has, what `compare` gives, and verdicts.

    Args:
        beside: such tables of other regimes, whose comparisons Holm's correction counts too.

    Returns:
        claim, first, second, one column a dataset of the paper (points, NaN where it has no number), and for
        points and nats what `compare` gives, `holm` (adjusted p; each unit is a family of its own, in which a
        comparison that two claims share counts once), `verdict` and `holm_verdict`.
    """
    top1, methods = paper_top1(), set(scores["method"])
    rows = []
    for claim in claims:
        for pair, printed in zip(claim.pairs, claim.paper or claim.pairs, strict=True):
            a, b = ([top1.get((name, method), float("nan")) for name in DATASETS] for method in printed)
            paper = {name: round(x - y, 1) for name, x, y in zip(DATASETS, a, b, strict=True)}
            ours = compare(scores, *pair) if methods.issuperset(claim.needs) else {}
            rows.append({"claim": claim.key, "first": pair[0], "second": pair[1], **paper, **ours})
    for unit in UNITS:
        family = {}
        for regime, others in enumerate([pd.DataFrame(rows), *beside]):
            for row in others.to_dict("records"):
                p = row.get(f"{unit}_p", float("nan"))
                if not pd.isna(p) and _seeds(row, unit) > 1:
                    family[regime, frozenset((row["first"], row["second"]))] = p
        adjusted = holm(family)
        for row in rows:
            seeds = _seeds(row, unit)
            if not seeds:  # a method or a common seed is missing
                row[f"{unit}_verdict"] = row[f"{unit}_holm_verdict"] = NOT_MEASURED
                continue
            row[f"{unit}_verdict"] = judge(row[f"{unit}_low"], row[f"{unit}_high"], seeds)
            p = adjusted.get((0, frozenset((row["first"], row["second"]))), float("nan"))
            sign = row[f"{unit}_mean"] if p < 1 - CONFIDENCE else 0.0  # 0: undecided
            row[f"{unit}_holm"] = p
            row[f"{unit}_holm_verdict"] = judge(sign, sign, seeds)
    columns = ("mean", "sd", "low", "high", "positive", "p", "holm", "verdict", "holm_verdict")
    named = [f"{unit}_{name}" for unit in UNITS for name in columns]
    return pd.DataFrame(rows).reindex(columns=["claim", "first", "second", *DATASETS, *named])


def _seeds(row: Mapping, unit: str) -> int:
    """The seeds of a comparison, from its "3/5"."""
    positive = row.get(f"{unit}_positive", "0/0")
    return 0 if pd.isna(positive) else int(positive.split("/")[1])


def comparisons_table(
    scores: pd.DataFrame, selected: pd.DataFrame, k: int = 1, beside: Iterable[pd.DataFrame] = ()
) -> pd.DataFrame:
    """Every comparison behind `claims_table`, which says what the arguments are, as text cells."""
    table = compare_all(scores, paper_claims(scores, _pool(selected), k), beside)
    ours = accuracies(scores)
    rows = [row for _, row in table.iterrows()]
    pairs = [[ours.get(row[method], NOTHING) for method in ("first", "second")] for row in rows]
    return pd.DataFrame(
        {
            "Claim": table["claim"],
            "Comparison": [_comparison(row) for row in rows],
            PAPER: [number_cell(row[list(DATASETS)]) for row in rows],
            "Accuracy (%)": [", ".join(pair) for pair in pairs],
            "Advantage (points)": [_advantage(row, "points") for row in rows],
            "Verdict": table["points_verdict"],
            "After Holm": table["points_holm_verdict"],
            "Advantage (nats)": [_advantage(row, "nats") for row in rows],
            "Verdict by NLL": table["nats_verdict"],
            "NLL after Holm": table["nats_holm_verdict"],
        }
    )


def claims_table(
    scores: pd.DataFrame, selected: pd.DataFrame, k: int = 1, beside: Iterable[pd.DataFrame] = ()
) -> pd.DataFrame:
    """The paper's claims, what decides each here, and the verdicts, as text cells.

    The comparison shown is the worst: of those with the worst verdict, the one of the smallest advantage.

    Args:
        scores: as `collect` gives them. Methods that were not run leave their claims unmeasured.
        selected: a row a seed, a column a proxy: the share in [0, 1] of training clips that learn
            from it. A column "none" is no proxy and is passed over.
        k: how many proxies UNIEGO selects per clip (the card's).
        beside: as for `compare_all`.

    Raises:
        ValueError: `selected` names no proxy, or holds something other than shares.
    """
    claims = paper_claims(scores, _pool(selected), k)
    table = compare_all(scores, claims, beside)
    rows = []
    for claim in claims:
        parts = table[table["claim"] == claim.key]
        places = parts["points_verdict"].map(VERDICTS.index)
        worst = parts.assign(place=places).sort_values(["place", "points_mean"]).iloc[0]
        rows.append(
            {
                "Claim": f"{claim.key}. {claim.statement}",
                PAPER: number_cell(parts[name].min(skipna=False) for name in DATASETS),
                "Decided here by": _comparison(worst),
                "Advantage (points)": _advantage(worst, "points"),
                "Verdict": judge_all(parts["points_verdict"]),
                "After Holm": judge_all(parts["points_holm_verdict"]),
                "Verdict by NLL": judge_all(parts["nats_verdict"]),
                "NLL after Holm": judge_all(parts["nats_holm_verdict"]),
            }
        )
    return pd.DataFrame([*rows, _selection_row(selected)])


@dataclass(frozen=True)
class Regime:
    """The runs of one protocol: with pairs without labels, or with labelled clips alone."""

    scores: pd.DataFrame  # as `collect` gives them
    selected: pd.DataFrame  # as for `claims_table`

    def comparisons(self, k: int) -> pd.DataFrame:
        """Every comparison of the claims, as `compare_all` gives them for this regime alone."""
        return compare_all(self.scores, paper_claims(self.scores, _pool(self.selected), k))


def claims_markdown(regimes: Mapping[str, Regime], title: str, command: str = MEASURE, k: int = 1) -> str:
    """All that these runs say about the paper, as GitHub Markdown which also reads well as plain text.

    Args:
        regimes: what a protocol is called -> its runs; the usual one first.
        title: of the dataset.
        command: makes this text again.
        k: as for `claims_table`.

    Raises:
        ValueError: UNIEGO is not among a regime's scores, or its `selected` holds no shares of proxies.
    """
    if any("uniego" not in set(regime.scores["method"]) for regime in regimes.values()):
        raise ValueError("UNIEGO is not among the scores; run notebook 04_spd first")
    made = provenance()
    commit, written = made.pop("commit"), made.pop("written")
    versions = ", ".join(f"{package} {version}" for package, version in made.items())
    alone = {name: regime.comparisons(k) for name, regime in regimes.items()}
    count = sum(
        len({frozenset(pair) for pair in table.dropna(subset="points_p")[["first", "second"]].to_numpy()})
        for table in alone.values()
    )
    parts = [
        f"# The paper's claims on {title}\n",
        f"- Made by `{command}`, {written[:10]}, commit {commit}",
        *(f"- {name}: {_seeds_of(regime.scores)}" for name, regime in regimes.items()),
        f"- Versions: {versions}\n",
        READING.format(count=count),
    ]
    for name, regime in regimes.items():
        beside = [table for other, table in alone.items() if other != name]
        given = (regime.scores, regime.selected, k, beside)
        parts += [f"## Claims: {name}\n", text_table(claims_table(*given))]
        parts += [f"### Every comparison: {name}\n", text_table(comparisons_table(*given))]
    (_, usual), *others = regimes.items()
    parts += ["## The paper's tables, and ours\n", BESIDE]
    tables = ablation_tables(usual.scores, k, {name: regime.scores for name, regime in others})
    for heading, beside in tables.items():
        parts += [f"### {heading}\n", text_table(beside)]
    for name, regime in regimes.items():
        labels = {method: label(method) for method in regime.scores["method"]}
        parts += [f"## All methods: {name}\n", text_table(results_table(regime.scores, labels))]
    return "\n".join(parts)


def _seeds_of(scores: pd.DataFrame) -> str:
    seeds = sorted(scores["seed"].unique())
    uneven = scores.groupby("method")["seed"].nunique().min() < len(seeds)
    return f"seeds {', '.join(map(str, seeds))}{' (not of all methods)' if uneven else ''}"


def _pool(selected: pd.DataFrame) -> list[str]:
    """The proxies that `selected` is about."""
    proxies = [name for name in selected.columns if name != "none"]
    if not proxies:
        raise ValueError("selected names no proxy; it needs a column for each proxy")
    if not ((selected[proxies] >= 0) & (selected[proxies] <= 1)).all(axis=None):  # refuses NaN too
        raise ValueError("selected must hold shares between 0 and 1; divide counts by the number of clips")
    return proxies


def _comparison(row: pd.Series) -> str:
    return f"{label(row['first'])} > {label(row['second'])}"


def _advantage(row: pd.Series, unit: str) -> str:
    """Mean, interval, and in how many seeds it is positive."""
    if row[f"{unit}_verdict"] == NOT_MEASURED:
        return NOT_RUN
    difference = {name: row[f"{unit}_{name}"] for name in ("mean", "low", "high")}
    return f"{gain(difference, UNITS[unit])}, {row[f'{unit}_positive']}"


def _selection_row(selected: pd.DataFrame) -> dict[str, str]:
    """Claim 7, which is about shares and not about scores."""
    shares = 100 * selected[_pool(selected)]
    least = shares.mean().idxmin()
    verdict = UNDECIDED  # some proxy is chosen with some seeds only
    if len(shares) < 2:
        verdict = ONE_SEED
    elif (shares > 0).all(axis=None):
        verdict = HOLDS
    elif (shares == 0).all().any():
        verdict = FAILS
    printed = [float("nan")] * len(DATASETS)
    for place, number in enumerate((11, 12)):  # of the first two datasets
        rates = paper_table(number).query("proxy != 'none'")
        printed[place] = 100 * rates.groupby("proxy")["rate"].mean().min()
    return {
        "Claim": "7. Every proxy is selected sometimes (Tables 11, 12; least share, %)",
        PAPER: number_cell(printed, ".1f"),
        "Decided here by": label(least),
        "Advantage (points)": f"{spread(shares[least].mean(), shares[least].std(), 1)} % of training clips",
        "Verdict": verdict,
        **dict.fromkeys(("After Holm", "Verdict by NLL", "NLL after Holm"), NOTHING),
    }
