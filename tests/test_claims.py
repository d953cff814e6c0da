"""The paper's numbers against each other and its text, and verdicts against slow computations and scipy."""

import itertools
import random
import statistics

import pandas as pd
import pytest
from scipy import stats

from uniego_utils.cards import load_card
from uniego_utils.report.claims import (
    FAILS,
    HOLDS,
    NOT_MEASURED,
    ONE_SEED,
    PAPER,
    UNDECIDED,
    VERDICTS,
    Regime,
    claims_markdown,
    claims_table,
    compare,
    compare_all,
    comparisons_table,
    holm,
    judge_all,
    paper_claims,
    pick_starts,
)
from uniego_utils.report.paper import (
    DATASETS,
    MEASURE,
    NOT_RUN,
    PAPER_TABLES,
    STARTS,
    ablation_tables,
    label,
    paper_table,
    paper_top1,
)

EEF, A101, EE4D = DATASETS
PROXIES = list(load_card(EEF).teachers)
EVERYONE = [
    *(
        "ego",
        "naive",
        *PROXIES,
        *STARTS,
        *STARTS.values(),
        "soup",
        "arithmetic",
        "ties",
        "ego_longer",
        "naive_longer",
    ),
    *("merged_ce", "start_all", "start_spd", "after_soup", "after_arithmetic", "after_ties", "top2", "top3"),
    *("all_proxies", "ego_exo", "features_only", "logits_only", "exo_timesformer", "exo_stgcn"),
    *("self_trained", "equal_votes", "confident", "by_truth", "more_features"),
]


def scores_of(top1, nll=None):
    """Scores as `collect` gives them, from method -> accuracies of the seeds 0, 1, 2, ..."""
    rows = []
    for method, values in top1.items():
        for seed, value in enumerate(values):
            loss = nll[method][seed] if nll else 3 - value / 50
            rows.append({"method": method, "seed": seed, "test_top1": value, "test_nll": loss})
    splits = {"train_top1": 90.0, "train_nll": 0.1, "val_top1": 1.0, "val_nll": 9.0}  # that decide nothing
    return pd.DataFrame(rows).assign(**splits)


@pytest.fixture(scope="module")
def scores():
    """Everything, five seeds; UNIEGO is ahead of most."""
    draw = random.Random(0)
    top1 = {m: [draw.gauss(57 if m == "uniego" else 55, 1) for _ in range(5)] for m in EVERYONE}
    return scores_of(top1, {m: [draw.gauss(1.4, 0.05) for _ in range(5)] for m in EVERYONE})


@pytest.fixture(scope="module")
def compared(scores):
    return compare_all(scores, paper_claims(scores, PROXIES))


@pytest.fixture
def few():
    return scores_of({"uniego": [60.0, 61.0], "ego": [50.0, 52.0]})


@pytest.fixture
def selected():
    """Shares of two seeds; a share of clips without a proxy is among them."""
    return pd.DataFrame([[0.1] * 10, [0.1] * 10], columns=["none", *PROXIES])


def row_of(table, key):
    return table[table["Claim"].str.startswith(f"{key}. ")].iloc[0]


# The paper's tables


@pytest.mark.parametrize("number", PAPER_TABLES)
def test_a_table_is_complete_and_says_nothing_twice(number):
    table = paper_table(number)
    value = table.columns[-1]
    assert not table.isna().any(axis=None) and pd.api.types.is_numeric_dtype(table[value])
    assert not table.drop(columns=value).duplicated().any()
    assert set(table["dataset"]) <= set(DATASETS)


@pytest.mark.parametrize("number", [1, 13, "2"])
def test_an_unknown_table_is_refused_with_those_there_are(number):
    with pytest.raises(ValueError, match=f"no table {number!r}; choose of 2, 3, .*12"):
        paper_table(number)


def test_tables_that_repeat_a_number_agree():
    seen = {}
    for number in (2, 5, 6, 7, 8, 9, 10):
        table = paper_table(number)
        if number == 5:
            table = table[table["backbone"] == "timesformer"]
        for row in table[table["method"] != ""].itertuples():
            assert seen.setdefault((row.dataset, row.method), row.value) == row.value, (number, row)
    expected = {"ego": [80.3, 47.6, 39.9], "naive": [81.5, 48.2, 40.6], "uniego": [84.7, 50.7, 41.1]}
    for method, values in expected.items():
        assert [seen[dataset, method] for dataset in DATASETS] == values
    assert paper_top1() == seen


def test_the_gains_that_the_text_states():
    """Section 4.2 of the paper."""
    table = paper_table(2).query("inference == 'ego'").set_index(["dataset", "name"])["value"]
    ours = {dataset: table[dataset, "UNIEGO (Ours)"] for dataset in DATASETS}
    assert [round(ours[d] - table[d, "TimeSformer"], 1) for d in DATASETS] == [4.4, 3.1, 1.2]
    assert [round(ours[d] - table[d, "π-ViT"], 1) for d in (EEF, A101)] == [4.6, 2.9]
    found = paper_table(3).query("metric == 'mAP'").set_index(["dataset", "method"])["value"]
    assert round(found[EEF, "naive"] - found[EEF, "ego"], 3) == 0.012
    assert round(found[EEF, "uniego"] - found[EEF, "naive"], 3) == 0.057


def test_the_best_proxy_of_table_10_is_the_best_of_table_9():
    proxies = paper_table(9).query("method != 'ego'")
    assert set(proxies["method"]) == set(PROXIES)
    best = proxies.groupby("dataset")["value"].max()
    assert [paper_top1()[dataset, "best"] for dataset in (EEF, A101)] == [best[EEF], best[A101]]


@pytest.mark.parametrize(("number", "dataset", "gap"), [(11, EEF, 0.186), (12, A101, 0.069)])
def test_selection_rates_agree_with_the_card_and_appendix_f(number, dataset, gap):
    table = paper_table(number)
    assert set(table["dataset"]) == {dataset}
    rates = table.pivot(index="class", columns="proxy", values="rate")
    assert set(rates.index) == set(load_card(dataset).classes)
    assert set(rates.columns) == {"none", *PROXIES}
    assert rates.sum(axis=1).sub(1).abs().max() < 10 * 0.0005 + 1e-9  # ten rounded numbers
    gaps = [a - b for a, b, *_ in (sorted(row, reverse=True) for row in rates[PROXIES].to_numpy())]
    assert round(statistics.mean(gaps), 3) == gap
    assert rates[PROXIES].mean().idxmax() == "exo_rgb"


# One comparison


def test_a_comparison_agrees_with_scipy_and_statistics():
    top1 = {"uniego": [61.0, 58.5, 64.0], "naive": [60.0, 58.0, 61.5], "ego": [1.0, 2.0, 3.0]}
    nll = {"uniego": [1.0, 1.4, 1.2], "naive": [1.1, 1.3, 1.5], "ego": [9.0, 9.0, 9.0]}
    found = compare(scores_of(top1, nll).sample(frac=1, random_state=1), "uniego", "naive")
    for unit, values, first, second in (
        ("points", top1, "uniego", "naive"),
        ("nats", nll, "naive", "uniego"),
    ):
        slow = stats.ttest_rel(values[first], values[second])
        differences = [a - b for a, b in zip(values[first], values[second], strict=True)]
        assert found[f"{unit}_mean"] == pytest.approx(statistics.mean(differences))
        assert found[f"{unit}_sd"] == pytest.approx(statistics.stdev(differences))
        assert (found[f"{unit}_low"], found[f"{unit}_high"]) == pytest.approx(
            tuple(slow.confidence_interval())
        )
        assert found[f"{unit}_p"] == pytest.approx(slow.pvalue)
        assert found[f"{unit}_positive"] == f"{sum(d > 0 for d in differences)}/3"


def judged(first, second, nll=None):
    """The one comparison of a claim that `first` is better, given accuracies by seed."""
    scores = scores_of({"uniego": first, "best": second}, nll)
    claim = next(claim for claim in paper_claims(scores, PROXIES) if claim.key == "2b")
    return compare_all(scores, [claim]).iloc[0]


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        ([60, 61, 62], [50, 50, 53], HOLDS),
        ([50, 50, 53], [60, 61, 62], FAILS),
        ([60, 50, 55], [55, 52, 51], UNDECIDED),
        ([60, 61, 62], [60, 61, 62], UNDECIDED),  # no difference with any seed: a point at zero
        ([62, 63, 64], [60, 61, 62], HOLDS),  # the same difference with every seed: a point above zero
        ([58, 59, 60], [60, 61, 62], FAILS),
        ([60], [50], ONE_SEED),
        ([60, 61, 62], [50], ONE_SEED),  # one seed that both have
        ([60, 61], [], NOT_MEASURED),
    ],
)
def test_a_verdict_is_what_the_interval_says(first, second, verdict):
    row = judged(first, second)
    assert row["points_verdict"] == row["points_holm_verdict"] == verdict
    assert row["nats_verdict"] == verdict  # its losses mirror its accuracies


def test_accuracy_and_nll_are_judged_apart():
    nll = {"uniego": [1.5, 1.6, 1.7], "best": [1.0, 1.0, 1.3]}
    row = judged([60, 61, 62], [50, 50, 53], nll)
    assert (row["points_verdict"], row["nats_verdict"]) == (HOLDS, FAILS)
    assert row["nats_mean"] == pytest.approx(-0.5) and row["nats_positive"] == "0/3"


def test_no_difference_at_all_has_numbers_to_show():
    row = judged([60, 61, 62], [60, 61, 62])
    assert [row[f"points_{name}"] for name in ("mean", "sd", "low", "high", "p")] == [0, 0, 0, 0, 1]


def test_seeds_that_one_method_lacks_are_in_no_pair():
    both = stats.ttest_rel([60, 61], [50, 55]).confidence_interval()
    row = judged([60, 61, 90], [50, 55])
    assert row["points_positive"] == "2/2" and (row["points_low"], row["points_high"]) == pytest.approx(both)
    apart = scores_of({"uniego": [60, 61], "best": [50, 51]})
    apart.loc[apart["method"] == "best", "seed"] += 2
    claim = next(claim for claim in paper_claims(apart, PROXIES) if claim.key == "2b")
    assert compare_all(apart, [claim])["points_verdict"].item() == NOT_MEASURED


def test_without_correction_a_verdict_is_that_of_its_p_value(compared):
    for unit in ("points", "nats"):
        assert ((compared[f"{unit}_verdict"] != UNDECIDED) == (compared[f"{unit}_p"] < 0.05)).all()
    assert compared["points_verdict"].nunique() > 1


# Holm


def step_down(p_values, alpha):
    """Holm's procedure as published: reject from the smallest up, stop at the first that is too large."""
    rejected, left = set(), dict(p_values)
    while left:
        name = min(left, key=left.get)
        if left[name] >= alpha / len(left):
            break
        rejected.add(name)
        del left[name]
    return rejected


@pytest.mark.parametrize("seed", range(5))
def test_holm_rejects_what_the_procedure_rejects(seed):
    draw = random.Random(seed)
    p_values = {name: round(draw.random() ** 4, 3) for name in range(12)} | {"tie": 0.004, "tied": 0.004}
    adjusted = holm(p_values)
    for alpha in (0.0107, 0.0513, 0.1009, 0.3003):
        assert {name for name, p in adjusted.items() if p < alpha} == step_down(p_values, alpha)
    assert all(p_values[name] <= p <= 1 for name, p in adjusted.items())


def test_holm_is_over_every_pair_once(compared):
    for unit in ("points", "nats"):
        columns = ["first", "second", f"{unit}_p"]
        family = {frozenset(pair): p for *pair, p in compared[columns].itertuples(index=False)}
        assert len(family) < len(compared)  # claims share comparisons
        rejected = step_down(family, 0.05)
        for row in compared.to_dict("records"):
            sure = frozenset((row["first"], row["second"])) in rejected
            expected = (HOLDS if row[f"{unit}_mean"] > 0 else FAILS) if sure else UNDECIDED
            assert row[f"{unit}_holm_verdict"] == expected


# Claims


def test_the_worst_part_is_the_verdict():
    for parts in itertools.product(VERDICTS, repeat=3):
        if FAILS in parts:
            expected = FAILS
        elif NOT_MEASURED in parts:
            expected = NOT_MEASURED
        elif ONE_SEED in parts:
            expected = ONE_SEED
        else:
            expected = HOLDS if set(parts) == {HOLDS} else UNDECIDED
        assert judge_all(parts) == expected


def test_claims_state_the_papers_smallest_advantage(scores, selected):
    table = claims_table(scores, selected)
    printed = {row["Claim"].split(".")[0]: row[PAPER] for row in table.to_dict("records")}
    assert printed == {
        "1a": "+1.2, +0.6, +0.5",
        "1b": "—, —, —",
        "1c": "—, —, —",
        "1d": "+1.9, +0.8, —",
        "2a": "+2.8, +1.2, +0.5",
        "2b": "+2.8, +1.2, —",
        "3a": "+2.4, +1.8, —",
        "3b": "+0.2, +0.2, —",
        "4": "+0.4, +0.1, —",
        "5a": "+0.5, +0.1, —",
        "5b": "-0.5, -1.2, —",
        "6": "+0.5, +0.1, —",
        "7": "2.8, 3.1, —",
    }


@pytest.mark.parametrize("dataset", [EEF, A101])
def test_in_the_paper_the_best_proxy_leads_before_and_the_merge_after(dataset):
    picked = pick_starts({method: value for (name, method), value in paper_top1().items() if name == dataset})
    assert picked == (("best", "merged"), ("uniego", "after_best"))


def test_of_the_proxies_the_closest_decides(selected):
    values = {key: [50.0 + i, 50.5 + i, 51.5 + i] for i, key in enumerate(PROXIES)}
    scores = scores_of(values | {"uniego": [90.0, 91.0, 92.5]})
    row = row_of(claims_table(scores, selected), "2a")
    assert row["Decided here by"] == f"UNIEGO > Proxy {PROXIES[-1]}" and row["Verdict"] == HOLDS
    scores.loc[scores["method"] == PROXIES[3], "test_top1"] += 60
    row = row_of(claims_table(scores, selected), "2a")
    assert row["Decided here by"] == f"UNIEGO > Proxy {PROXIES[3]}" and row["Verdict"] == FAILS


def starts(before, after):
    """Scores in which starts have these accuracies, a little different with each seed."""
    values = before | {STARTS[start]: value for start, value in after.items()}
    return scores_of({m: [v, v + 1, v + 1.5 + 0.1 * i] for i, (m, v) in enumerate(values.items())})


def test_claim_6_asks_about_the_starts_that_lead_here(selected):
    before = {"merged": 50, "layer": 60, "parameter": 51, "average": 52, "best": 53}
    after = {"merged": 50, "layer": 51, "parameter": 52, "average": 60, "best": 53}
    row = row_of(claims_table(starts(before, after), selected), "6")
    assert row["Verdict"] == HOLDS and row["Advantage (points)"].startswith("+")
    row = row_of(claims_table(starts(before, after | {"layer": 70}), selected), "6")
    assert row["Verdict"] == FAILS
    assert row["Decided here by"] == f"{label('after_average')} > {label('after_layer')}"


def test_without_every_start_claim_6_is_not_measured_but_others_are(scores, selected):
    without = scores[scores["method"] != "after_layer"]
    table = compare_all(without, paper_claims(without, PROXIES))
    assert set(table.loc[table["claim"] == "6", "points_verdict"]) == {NOT_MEASURED}
    pair = table.query("claim == '5a' and second == 'after_best'").iloc[0]
    assert not pd.isna(pair["points_holm"]) and pair["points_holm_verdict"] != ONE_SEED
    row = row_of(claims_table(without, selected), "5a")
    assert row["Verdict"] in (NOT_MEASURED, FAILS)


def test_uniego_takes_the_place_of_the_k_that_it_selects(scores):
    pairs = {k: next(c.pairs for c in paper_claims(scores, PROXIES, k) if c.key == "4") for k in (1, 2)}
    assert pairs[1] == (("uniego", "top2"), ("top2", "top3"), ("top3", "all_proxies"))
    assert pairs[2] == (("top1", "uniego"), ("uniego", "top3"), ("top3", "all_proxies"))


def test_what_was_not_run_is_named_with_its_command(few, selected):
    table = claims_table(few, selected)
    assert set(table["Verdict"][:-1]) == {NOT_MEASURED}  # all but the last, about selection
    assert set(table["Advantage (points)"][:-1]) == {NOT_RUN} and MEASURE in NOT_RUN
    measured = comparisons_table(few, selected).query("Verdict != @NOT_MEASURED")
    assert measured["Comparison"].tolist() == ["UNIEGO > Ego baseline"]


def test_one_seed_has_no_verdict(scores, selected):
    table = claims_table(scores[scores["seed"] == 3], selected[:1])
    assert set(table["Verdict"]) == {ONE_SEED} and set(table["Verdict by NLL"][:-1]) == {ONE_SEED}


@pytest.mark.parametrize(
    ("shares", "verdict"),
    [([0.1, 0.2], HOLDS), ([0.0, 0.0], FAILS), ([0.0, 0.1], UNDECIDED), ([0.1], ONE_SEED)],
)
def test_every_proxy_must_be_selected_with_every_seed(few, selected, shares, verdict):
    selected = selected[: len(shares)].assign(exo_skl=shares, none=0.0)
    row = row_of(claims_table(few, selected), "7")
    assert row["Verdict"] == verdict
    if verdict == FAILS:
        assert row["Decided here by"] == "Proxy exo_skl" and row["Advantage (points)"].startswith(
            "0.0 ± 0.0 %"
        )


@pytest.mark.parametrize("bad", [{"none": [0.5]}, {"exo_rgb": [12.0]}, {"exo_rgb": [float("nan")]}])
def test_what_is_no_share_of_a_proxy_is_refused(few, bad):
    with pytest.raises(ValueError, match="selected "):
        claims_table(few, pd.DataFrame(bad))


# Tables and text


def test_ablation_tables_put_ours_beside_the_papers(scores):
    tables = ablation_tables(scores)
    numbers = [heading.split(":")[0] for heading in tables]
    assert numbers == ["Table 2", "Table 5", "Table 6", "Tables 7 and 10", "Table 8", "Table 9"]
    values = {method: rows["test_top1"].tolist() for method, rows in scores.groupby("method")}
    ours = {m: f"{statistics.mean(v):.1f} ± {statistics.stdev(v):.1f}" for m, v in values.items()}
    two, five, six, seven, eight, nine = tables.values()
    assert five.iloc[2].tolist() == ["timesformer", "UNIEGO (Ours)", ours["uniego"], "84.7"]
    assert five.iloc[5].tolist() == ["uniformer", "UNIEGO (Ours)", "this suite has no such backbone", "73.5"]
    last = ["✓", "✓", "✓", ours["uniego"], "84.7", "50.7"]
    assert six.to_numpy().tolist()[-1] == last and six["Ours (%)"][1] == ours["start_all"]
    layer = ["Layer-level", ours["layer"], ours["after_layer"], "80.9", "84.2", "43.5", "50.6"]
    assert layer in seven.to_numpy().tolist()
    assert [label("ties"), ours["ties"], ours["after_ties"], *"————"] in seven.to_numpy().tolist()
    assert ["Top-2", ours["top2"], "84.3", "50.1"] in eight.to_numpy().tolist()
    assert [label("logits_only"), ours["logits_only"], "—", "—"] in eight.to_numpy().tolist()
    assert ["Sk-Ego", "exo", "Sk-Ego", ours["exo_skego"], "81.9", "48.3", "40.2"] in nine.to_numpy().tolist()
    assert ["exo", "ST-GCN", "✗", ours["exo_stgcn"], "87.5", "46.2", "42.9"] in two.to_numpy().tolist()


def test_ablation_tables_keep_the_rows_that_were_not_run(scores):
    few = ablation_tables(scores[scores["method"] == "uniego"])
    for heading, table in ablation_tables(scores).items():
        assert few[heading].iloc[:, 0].tolist() == table.iloc[:, 0].tolist()
        assert not table.isin([NOT_RUN]).any(axis=None) and few[heading].isin([NOT_RUN]).any(axis=None)


def test_table_8_knows_how_many_uniego_selects(scores):
    table = ablation_tables(scores, k=2)["Table 8: whom to distil from"].set_index("Method")
    mean = scores.groupby("method")["test_top1"].mean()
    assert table.loc["Top-1", "Ours (%)"] == NOT_RUN  # UNIEGO is Top-2 here
    assert table.loc["Top-2", "Ours (%)"].startswith(f"{mean['uniego']:.1f} ±")
    assert table.loc["Top-2", "Paper, EEF"] == "84.3"


@pytest.mark.parametrize("case", ["naive", "one seed", "few methods"])
def test_the_markdown_has_everything_and_reads_as_text(scores, selected, case):
    if case == "one seed":
        scores = scores[scores["seed"] == 0]
    if case == "few methods":
        scores = scores[~scores["method"].isin(["top3", "naive_longer", "after_best"])]
    regimes = {"with pairs": Regime(scores, selected), "labels alone": Regime(scores, selected)}
    text = claims_markdown(regimes, "a benchmark", "make study DATASET=mocap")
    opening = text.split("## Claims")[0]
    for part in ("# The paper's claims on a benchmark", "`make study DATASET=mocap`", "commit ", "torch "):
        assert part in opening
    for name in regimes:
        assert f"- {name}: seeds {', '.join(map(str, sorted(scores['seed'].unique())))}\n" in opening
    assert "nan" not in text.lower() and "{" not in text
    lines = text.splitlines()
    for heading, *table in (block.splitlines() for block in text.split("\n\n") if block.startswith("|")):
        assert {len(line) for line in table} == {len(heading)}
    every = lines[lines.index("## All methods: labels alone") + 4 :]
    assert len(every) == scores["method"].nunique()
    assert text.count("## Claims: ") == 2 and "Ours, labels alone (%)" in text
    assert (NOT_RUN in text) == (case == "few methods")


def test_the_markdown_counts_its_comparisons_and_tells_uneven_seeds(compared, scores, selected):
    uneven = scores[~((scores["method"] == "naive") & (scores["seed"] == 4))]
    text = claims_markdown({"usual": Regime(uneven, selected)}, "x")
    distinct = {frozenset(pair) for pair in compared[["first", "second"]].to_numpy()}
    assert f"These are {len(distinct)} comparisons" in text
    assert "- usual: seeds 0, 1, 2, 3, 4 (not of all methods)" in text


def test_holm_counts_the_comparisons_of_all_regimes(scores, compared):
    """Beside another regime, adjusted p-values are those of one family of all comparisons."""
    other = scores_of({method: [50.0 + i, 51.0, 52.0 - i] for i, method in enumerate(EVERYONE)})
    beside = compare_all(other, paper_claims(other, PROXIES))
    both = compare_all(scores, paper_claims(scores, PROXIES), [beside])
    for unit in ("points", "nats"):
        family = {}
        for name, table in (("one", compared), ("other", beside)):
            for first, second, p in table[["first", "second", f"{unit}_p"]].itertuples(index=False):
                family[name, frozenset((first, second))] = p
        rejected = step_down(family, 0.05)
        for row in both.to_dict("records"):
            sure = ("one", frozenset((row["first"], row["second"]))) in rejected
            assert (row[f"{unit}_holm"] < 0.05) == sure
        assert (both[f"{unit}_holm"] >= compared[f"{unit}_holm"]).all()
    assert both["points_verdict"].equals(compared["points_verdict"])


def test_a_text_without_uniego_is_refused(few, selected):
    with pytest.raises(ValueError, match="UNIEGO is not among the scores; run notebook 04_spd"):
        claims_markdown({"usual": Regime(few[few["method"] == "ego"], selected)}, "x")
