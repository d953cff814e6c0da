"""Tables over seeds against scipy and slow loops."""

import re
import statistics

import pandas as pd
import pytest
import torch
from scipy import stats

from uniego_utils.report.tables import (
    class_table,
    collect,
    collect_doses,
    common_seeds,
    finished_only,
    gains_table,
    interval,
    mean_tables,
    metrics_table,
    paired_differences,
    results_table,
    selection_shares,
    short_list,
    summarise,
    text_table,
    without_clips,
)
from uniego_utils.runs import finish_run, write_tensors
from uniego_utils.training import score

TOP1 = {"uniego": [61.0, 58.5, 64.0], "ego": [55.0, 59.0, 57.5], "naive": [60.0, 58.0, 61.5]}  # seeds 0, 1, 2
LABELS = {"uniego": "UNIEGO", "ego": "Ego baseline", "naive": "Naive"}


def metrics(top1):
    """Scores with numbers of their own for every split."""
    return {
        "train_top1": top1 + 20,
        "train_nll": 0.1 + top1 / 1000,
        "val_top1": top1 + 1,
        "val_nll": 1.1,
        "test_top1": top1,
        "test_nll": 3 - top1 / 50,
    }


@pytest.fixture
def folders(tmp_path):
    result = {}
    for method, scores in TOP1.items():
        result[method] = {seed: tmp_path / method / f"seed{seed}" for seed in range(len(scores))}
        for seed, top1 in enumerate(scores):
            finish_run(result[method][seed], metrics(top1))
    return result


@pytest.fixture
def scores(folders):
    return collect(folders)


def test_collect_has_a_row_per_method_and_seed_in_order(scores):
    expected = [(method, seed) for method in TOP1 for seed in range(3)]
    assert list(zip(scores["method"], scores["seed"], strict=True)) == expected
    assert scores["test_top1"].tolist() == [value for values in TOP1.values() for value in values]


def test_collect_lists_all_missing_runs_and_the_cure(folders, tmp_path):
    missing = [tmp_path / "merged" / f"seed{seed}" for seed in range(8)]
    with pytest.raises(FileNotFoundError) as caught:
        collect({**folders, "merged": dict(enumerate(missing))})
    message = str(caught.value)
    assert "8 runs are missing" in message and "run notebooks 02 to 04" in message
    assert [str(path) for path in missing if str(path) not in message] == []
    assert str(folders["uniego"][0]) not in message


def test_single_clips_add_up_to_the_scores_of_their_run(tmp_path):
    """What `collect` says of clips comes from each run's own outputs, and is not written with the scores."""
    labels, folders = [0, 2, 1, 1], {}
    for number, method in enumerate(("uniego", "ego")):
        folder = tmp_path / method
        logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(number))
        write_tensors(
            folder / "outputs.safetensors", {"test_logits": logits, "test_features": logits.clone()}
        )
        finish_run(folder, {f"test_{k}": v for k, v in score(logits, torch.tensor(labels)).items()})
        folders[method] = {0: folder}
    table = collect(folders, labels)
    for row in table.itertuples():
        assert row.test_top1_clips.mean() == pytest.approx(row.test_top1, rel=1e-5)
        assert row.test_nll_clips.mean() == pytest.approx(row.test_nll, rel=1e-5)
    assert list(without_clips(table)) == list(collect(folders))
    with pytest.raises(ValueError, match="5 labels: finite ones of equal clips"):
        collect(folders, [*labels, 0])


def test_the_short_list_has_its_order_and_what_was_run():
    names = ["ceiling", "merged", "uniego", "ego_longer"]
    table = pd.DataFrame([{"method": name, "seed": seed} for name in names for seed in (0, 1)])
    short = short_list(table)
    assert short["method"].tolist() == ["ego_longer"] * 2 + ["uniego"] * 2 + ["ceiling"] * 2
    assert short["seed"].tolist() == [0, 1] * 3


def test_the_interval_is_students():
    values = [1.0, 4.0, 2.5, 3.0]
    slow = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert interval(pd.Series(values)) == pytest.approx(tuple(slow))


def test_one_value_has_no_interval():
    assert all(pd.isna(limit) for limit in interval(pd.Series([1.0])))


@pytest.mark.parametrize("column", ["test_top1", "test_nll"])
def test_paired_differences_agree_with_scipy(scores, column):
    table = paired_differences(scores, "uniego", column).set_index("method")
    assert list(table.index) == ["ego", "naive"]
    values = {method: rows[column].tolist() for method, rows in scores.groupby("method")}
    for method in ("ego", "naive"):
        low, high = stats.ttest_rel(values["uniego"], values[method]).confidence_interval(0.95)
        differences = [a - b for a, b in zip(values["uniego"], values[method], strict=True)]
        row = table.loc[method]
        assert (row["low"], row["high"]) == pytest.approx((low, high))
        assert row["mean"] == pytest.approx(statistics.mean(differences))
        assert row["sd"] == pytest.approx(statistics.stdev(differences))
        assert row["positive"] == f"{sum(d > 0 for d in differences)}/3"


def test_differences_are_paired_by_seed_whatever_the_order_of_rows(scores):
    shuffled = scores.sample(frac=1, random_state=0)
    shuffled["method"] = pd.Categorical(shuffled["method"], list(TOP1)).astype(str)
    table = paired_differences(shuffled, "uniego", "test_top1").set_index("method").sort_index()
    expected = paired_differences(scores, "uniego", "test_top1").set_index("method").sort_index()
    pd.testing.assert_frame_equal(table, expected)


def test_a_seed_that_one_method_lacks_is_in_no_pair(scores):
    without = scores[~((scores["method"] == "ego") & (scores["seed"] == 2))]
    row = paired_differences(without, "uniego", "test_top1").set_index("method").loc["ego"]
    both = stats.ttest_rel(TOP1["uniego"][:2], TOP1["ego"][:2]).confidence_interval(0.95)
    assert row["positive"] == "1/2" and (row["low"], row["high"]) == pytest.approx(tuple(both))


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_summary_agrees_with_slow_means(scores, split):
    table = summarise(scores, split).set_index("method")
    assert list(table.index) == list(TOP1)
    for method, values in TOP1.items():
        each = [metrics(value) for value in values]
        for name in ("top1", "nll"):
            of_split = [one[f"{split}_{name}"] for one in each]
            assert table.loc[method, name] == pytest.approx(statistics.mean(of_split))
            assert table.loc[method, f"{name}_sd"] == pytest.approx(statistics.stdev(of_split))
        assert table.loc[method, "train_top1"] == pytest.approx(statistics.mean(values) + 20)
        assert table.loc[method, "seeds"] == 3


def test_the_results_table_shows_mean_spread_and_difference(scores):
    table = results_table(scores, LABELS).set_index("Method")
    mean, sd = statistics.mean(TOP1["ego"]), statistics.stdev(TOP1["ego"])
    assert table.loc["Ego baseline", "Accuracy (%)"] == f"{mean:.1f} ± {sd:.1f}"
    low, high = stats.ttest_rel(TOP1["uniego"], TOP1["ego"]).confidence_interval(0.95)
    difference = statistics.mean(TOP1["uniego"]) - mean
    assert (
        table.loc["Ego baseline", "UNIEGO minus it (points)"]
        == f"{difference:+.1f} [{low:+.1f}, {high:+.1f}]"
    )
    assert table.loc["UNIEGO", "UNIEGO minus it (points)"] == ""


def test_one_seed_gives_a_table_without_spread(scores):
    table = results_table(scores[scores["seed"] == 0], LABELS).set_index("Method")
    assert table.loc["Naive", "Accuracy (%)"] == "60.0"
    assert table.loc["Naive", "UNIEGO minus it (points)"] == "+1.0"


def test_a_text_table_is_aligned_markdown(scores):
    table = results_table(scores, LABELS)
    lines = text_table(table).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [[i for i, c in enumerate(line) if c == "|"] for line in lines[2:]] == [
        [i for i, c in enumerate(lines[0]) if c == "|"]
    ] * len(table)
    assert re.fullmatch(r"\|(-+\|)+", lines[1])
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == list(table.columns) and cells[2:] == table.to_numpy().tolist()


def test_unfinished_runs_are_left_out_on_request(folders, tmp_path):
    asked = folders | {"naive": folders["naive"] | {7: tmp_path / "none"}, "gate": {0: tmp_path / "none"}}
    assert finished_only(asked) == folders


def test_selection_shares_are_means_over_clips(tmp_path):
    for seed, picks in {0: [1, 0, 0, 1], 3: [0, 0, 0, 1]}.items():
        (tmp_path / str(seed)).mkdir()
        table = pd.DataFrame({"none": [1 - pick for pick in picks], "exo_skl": picks}, index=list("abcd"))
        table.rename_axis("clip_id").to_csv(tmp_path / str(seed) / "selection.csv")
    shares = selection_shares({seed: tmp_path / str(seed) for seed in (0, 3)})
    assert shares.to_dict("index") == {
        0: {"none": 0.5, "exo_skl": 0.5},
        3: {"none": 0.75, "exo_skl": 0.25},
    }


def test_doses_are_collected_in_the_methods_order(tmp_path):
    for seed, dose, method, top1 in [
        (0, 3, "uniego", 50.0),
        (0, 0, "naive_longer", 40.0),
        (1, 0, "uniego", 60.0),
    ]:
        finish_run(tmp_path / str(seed) / f"dose{dose}" / method, metrics(top1))
    (tmp_path / "1" / "dose0" / "naive_longer").mkdir()  # not finished
    finish_run(tmp_path / "0" / "dose0" / "merged", metrics(1.0))  # not asked for
    table = collect_doses({seed: tmp_path / str(seed) for seed in (0, 1, 2)}, ["uniego", "naive_longer"])
    kept = table[["method", "seed", "dose", "test_top1"]].to_numpy().tolist()
    assert kept == [["uniego", 0, 3, 50.0], ["uniego", 1, 0, 60.0], ["naive_longer", 0, 0, 40.0]]
    assert collect_doses({2: tmp_path / "2"}, ["uniego"]).empty


def test_mean_tables_average_rows_first_then_seeds(tmp_path):
    pd.DataFrame({"spread": [0.2, 0.4]}, index=["a", "b"]).to_csv(tmp_path / "0.csv")
    pd.DataFrame({"spread": [0.5, 0.7]}, index=["a", "b"]).to_csv(tmp_path / "1.csv")
    table = mean_tables({seed: tmp_path / f"{seed}.csv" for seed in (0, 1, 2)})
    assert table.loc["spread"].tolist() == pytest.approx([0.45, statistics.stdev([0.3, 0.6]), 2])


def test_metrics_stand_beside_the_papers(tmp_path):
    columns = ["method", "mAP", "R@1", "R@5"]
    values = {0: [("ego", 0.2, 0.4, 0.6), ("uniego", 0.3, 0.5, 0.7)], 1: [("ego", 0.4, 0.4, 0.6)]}
    for seed, rows in values.items():
        pd.DataFrame(rows, columns=columns).to_csv(tmp_path / f"{seed}.csv", index=False)
    paper = pd.DataFrame(
        [("egoexo_fitness", "uniego", "mAP", 0.543)], columns=["dataset", "method", "metric", "value"]
    )
    files = {seed: tmp_path / f"{seed}.csv" for seed in range(3)}
    table = metrics_table(files, paper, LABELS, dict(zip(columns[1:], columns[1:], strict=True)), 3)
    rows = table.set_index("Method").to_dict("index")
    sd = statistics.stdev([0.2, 0.4])
    assert rows["Ego baseline"]["mAP"] == f"0.300 ± {sd:.3f}" and rows["UNIEGO"]["R@5"] == "0.700"
    assert rows["UNIEGO"]["paper: egoexo_fitness mAP"] == "0.543"
    assert rows["Ego baseline"]["paper: egoexo_fitness mAP"] == ""
    assert "paper: egoexo_fitness R@5" not in table
    assert metrics_table({0: tmp_path / "absent.csv"}, paper, LABELS, {"mAP": "mAP"}, 3).empty


def test_the_papers_numbers_stand_beside_the_first_head_alone(tmp_path):
    ours = [("uniego", "ms_temba", "val", 90.0), ("uniego", "ms_temba", "test", 30.0)]
    ours.append(("uniego", "ms_tcn", "test", 20.0))
    pd.DataFrame(ours, columns=["method", "head", "split", "edit"]).to_csv(tmp_path / "0.csv", index=False)
    paper = pd.DataFrame(
        [("assembly101", "uniego", "Edit", 19.4)], columns=["dataset", "method", "metric", "value"]
    )
    table = metrics_table({0: tmp_path / "0.csv"}, paper, LABELS, {"edit": "Edit"}, 1)
    assert table["Head"].tolist() == ["ms_temba", "ms_tcn"] and table["edit"].tolist() == ["30.0", "20.0"]
    assert table["paper: assembly101 edit"].tolist() == ["19.4", ""]


def test_gains_are_paired_by_seed_head_by_head(tmp_path):
    edits = {
        0: (30.0, 24.0, 20.0),
        1: (33.0, 29.0, 26.0),
    }  # UNIEGO, baseline, baseline with head b
    for seed, (ours, none, rival) in edits.items():
        rows = [("ego", "a", "test", none), ("uniego", "a", "test", ours), ("uniego", "a", "val", 99.0)]
        rows += [("ego", "b", "test", rival), ("uniego", "b", "test", rival + 1)]
        table = pd.DataFrame(rows, columns=["method", "head", "split", "edit"])
        table.to_csv(tmp_path / f"{seed}.csv", index=False)
    files = {seed: tmp_path / f"{seed}.csv" for seed in (0, 1, 2)}
    found = gains_table(files, LABELS, ["edit"], 1).to_dict("records")
    half = stats.t.ppf(0.975, 1) * statistics.stdev([6, 4]) / 2**0.5
    expected = f"+5.0 [{5 - half:+.1f}, {5 + half:+.1f}]"
    assert found[0] == {"UNIEGO minus": "Ego baseline", "Head": "a", "edit": expected}
    assert found[1] == {"UNIEGO minus": "Ego baseline", "Head": "b", "edit": "+1.0 [+1.0, +1.0]"}
    one = gains_table({0: files[0]}, LABELS, ["edit"], 1)
    assert one["edit"].tolist() == ["+6.0", "+1.0"]
    assert gains_table({5: files[2]}, LABELS, ["edit"], 1).empty


def test_classes_shares_stand_above_the_papers(tmp_path):
    shares = {0: {"b": (0.1, 0.9), "a": (0.5, 0.5)}, 1: {"b": (0.3, 0.7), "a": (0.5, 0.5)}}
    for seed, classes in shares.items():
        rows = [
            (split, name, proxy, rate if split == "train" else 1.0)
            for split in ("train", "val")
            for name, rates in classes.items()
            for proxy, rate in zip(("none", "p"), rates, strict=True)
        ]
        table = pd.DataFrame(rows, columns=["split", "class", "proxy", "rate"])
        table.to_csv(tmp_path / f"{seed}.csv", index=False)
    published = [("other", "z", "p", 0.25), ("here", "a", "none", 0.2), ("here", "a", "p", 0.8)]
    paper = pd.DataFrame(published, columns=["dataset", "class", "proxy", "rate"])
    files = {seed: tmp_path / f"{seed}.csv" for seed in (0, 1, 2)}
    table = class_table(files, paper, "here", {"none": "No proxy", "p": "P"})
    sd = 100 * statistics.stdev([0.1, 0.3])
    assert table.to_numpy().tolist() == [
        ["here", "b", "ours", f"20 ± {sd:.0f}", f"80 ± {sd:.0f}"],
        ["here", "a", "ours", "50 ± 0", "50 ± 0"],
        ["here", "a", "paper", "20", "80"],
        ["other", "z", "paper", "", "25"],
    ]
    assert set(class_table({}, paper, "here", {"none": "No proxy", "p": "P"})["Source"]) == {"paper"}


def test_methods_are_compared_on_seeds_that_all_have(scores):
    fewer = scores[(scores["method"] != "naive") | (scores["seed"] == 1)]
    kept = common_seeds(fewer)
    assert sorted(kept["method"]) == sorted(TOP1) and set(kept["seed"]) == {1}
    assert common_seeds(scores).equals(scores)
