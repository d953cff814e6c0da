"""From run folders to tables over seeds."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from uniego_utils.experiment import Experiment
from uniego_utils.methods import CEILING, EGO, NAIVE, START, of_notebook
from uniego_utils.report.intervals import CONFIDENCE, clip_scores, mean_interval
from uniego_utils.runs import FINISHED, is_finished
from uniego_utils.sources import load_outputs
from uniego_utils.training import read_metrics

STUDIES = ("12_ablation", "13_reliability")
SHORT = ("ego_longer", "self_trained", "naive_longer", "best", "uniego", "guessed", CEILING)


def collect(
    folders: Mapping[str, Mapping[int, Path]], test_labels: Sequence[int] | None = None
) -> pd.DataFrame:
    """Scores of finished runs: one row per method and seed with top1 (percent) and nll (nats) of each split.

    Args:
        folders: method -> seed -> run folder, in the order that tables keep.
        test_labels: of the test clips. With them, the columns `test_top1_clips` and `test_nll_clips` hold
            what every single clip contributes, (N,), on which intervals over clips rest.

    Raises:
        FileNotFoundError: runs are missing; the message lists all of them and the cure.
        ValueError: a run has outputs of other clips.
    """
    missing = [str(path) for seeds in folders.values() for path in seeds.values() if not is_finished(path)]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} runs are missing or unfinished: {', '.join(missing)}; "
            f"run notebooks 02 to 04 for these seeds, or name finished ones in the parameter `seeds`"
        )
    rows = [
        {"method": method, "seed": seed, **read_metrics(path)}
        for method, seeds in folders.items()
        for seed, path in seeds.items()
    ]
    if test_labels is not None:
        paths = [path for seeds in folders.values() for path in seeds.values()]
        for row, path in zip(rows, paths, strict=True):
            logits = load_outputs(path, "test", "run its notebook again")["logits"].numpy()
            row["test_top1_clips"], row["test_nll_clips"] = clip_scores(logits, test_labels)
    return pd.DataFrame(rows)


def collect_students(experiment: Experiment, seeds: Sequence[int]) -> pd.DataFrame:
    """Scores of an experiment's students on all clips and single test clips, as `collect` gives them.

    Those of notebooks 02 to 04 come first and must be finished; of notebooks 12 and 13, the other merges and
    the ceiling come those that are.
    """
    methods = experiment.methods
    core = [EGO, NAIVE, *experiment.card.teachers, "best", "average", "merged"]
    core += of_notebook("04_spd", methods)
    trained = (key for name in ("02_proxy", "03_merging", *STUDIES) for key in of_notebook(name, methods))
    more = [key for key in dict.fromkeys(trained) if key not in (START, *core)]
    opened = {seed: replace(experiment, seed=seed) for seed in seeds}
    folders = {key: {seed: each.student(key) for seed, each in opened.items()} for key in [*core, *more]}
    optional = finished_only({key: folders[key] for key in more})
    labels = experiment.manifest("test").labels
    return collect({key: folders[key] for key in core} | optional, labels)


def without_clips(scores: pd.DataFrame) -> pd.DataFrame:
    """The scores without what single clips contribute, e.g. to write them."""
    return scores.drop(columns=[name for name in scores if name.endswith("_clips")])


def short_list(scores: pd.DataFrame) -> pd.DataFrame:
    """The scores of the few methods that say what UNIEGO brings, in order, of those that were run."""
    found = scores[scores["method"].isin(SHORT)]
    return found.iloc[found["method"].map(SHORT.index).argsort(kind="stable")]


def finished_only(folders: Mapping[str, Mapping[int, Path]]) -> dict[str, dict[int, Path]]:
    """Those of `folders` that are finished; a method without any is left out."""
    kept = {
        method: {s: path for s, path in seeds.items() if is_finished(path)}
        for method, seeds in folders.items()
    }
    return {method: seeds for method, seeds in kept.items() if seeds}


def common_seeds(scores: pd.DataFrame) -> pd.DataFrame:
    """Scores of the seeds that every method has: means over different seeds do not compare."""
    methods = scores["method"].nunique()
    return scores[scores.groupby("seed")["method"].transform("nunique") == methods]


def selection_shares(folders: Mapping[int, Path]) -> pd.DataFrame:
    """Per seed the share of training clips that learn from each proxy, from notebook 04's `selection.csv`."""
    return pd.DataFrame(
        {
            seed: pd.read_csv(path / "selection.csv", index_col="clip_id").mean()
            for seed, path in folders.items()
        }
    ).T


def collect_doses(folders: Mapping[int, Path], methods: Iterable[str]) -> pd.DataFrame:
    """Scores of notebook 14's finished students: columns dose, method, seed, and as of `collect`.

    Args:
        folders: seed -> its folder, which need not be there; no rows where none is.
        methods: in the order that figures keep.
    """
    rows = [
        {
            "dose": int(path.parent.name.removeprefix("dose")),
            "method": name,
            "seed": seed,
            **read_metrics(path),
        }
        for name in methods
        for seed, folder in folders.items()
        for path in folder.glob(f"dose*/{name}")
        if is_finished(path)
    ]
    return pd.DataFrame(rows)


def metrics_table(
    files: Mapping[int, Path],
    paper: pd.DataFrame,
    labels: Mapping[str, str],
    metrics: Mapping[str, str],
    digits: int,
) -> pd.DataFrame:
    """Tables 3 and 4: a row a method, mean and standard deviation over seeds, the paper's numbers beside.

    Args:
        files: seed -> a notebook's table, which need not be there; columns `method`, the metrics and, where
            each method has several, `head`: the paper's numbers then stand beside the first head's; with a
            column `split` the test split's rows count.
        paper: the paper's table; columns dataset, method, metric, value.
        labels: method -> its name.
        metrics: the columns to show -> what the paper calls them.
        digits: after the point.

    Returns:
        Text cells; no rows where no file is there.
    """
    ours = _test_rows(files)
    if ours.empty:
        return ours
    by = [name for name in ("method", "head") if name in ours]
    grouped = ours.groupby(by, sort=False)[list(metrics)]
    mean, sd = grouped.mean(), grouped.std()
    keys = mean.index.to_frame(index=False)
    cells = {"Method": keys["method"].map(dict(labels))}
    if "head" in keys:
        cells["Head"] = keys["head"]
    for metric in metrics:
        cells[metric] = [spread(*pair, digits) for pair in zip(mean[metric], sd[metric], strict=True)]
    printed = {(row.dataset, row.method, row.metric): f"{row.value:.{digits}f}" for row in paper.itertuples()}
    first = keys["head"].eq(keys["head"].iloc[0]) if "head" in keys else [True] * len(keys)
    for dataset in dict.fromkeys(paper["dataset"]):
        for metric, name in metrics.items():
            if name in set(paper["metric"]):
                cells[f"paper: {dataset} {metric}"] = [
                    printed.get((dataset, method, name), "") * shown
                    for method, shown in zip(keys["method"], first, strict=True)
                ]
    return pd.DataFrame(cells)


def gains_table(
    files: Mapping[int, Path],
    labels: Mapping[str, str],
    metrics: Iterable[str],
    digits: int,
    first: str = "uniego",
) -> pd.DataFrame:
    """`first` minus every other method of `metrics_table`, paired by seed: mean and 95 % interval, per head.

    Returns:
        Text cells; no rows where no file has `first`.
    """
    ours = _test_rows(files)
    if ours.empty or first not in set(ours["method"]):
        return pd.DataFrame()
    parts = []
    for head, rows in ours.groupby("head", sort=False) if "head" in ours else [(None, ours)]:
        gains = {metric: paired_differences(rows, first, metric).set_index("method") for metric in metrics}
        methods = [method for method in dict.fromkeys(rows["method"]) if method != first]
        cells = {f"{labels[first]} minus": [labels[method] for method in methods]}
        cells |= {} if head is None else {"Head": head}
        for metric, table in gains.items():
            cells[metric] = [gain(table.loc[method], digits) for method in methods]
        parts.append(pd.DataFrame(cells))
    return pd.concat(parts, ignore_index=True)


def _test_rows(files: Mapping[int, Path]) -> pd.DataFrame:
    """The tables that are there, with their seeds; of those with a column `split` the test split's rows."""
    tables = [
        pd.read_csv(path, keep_default_na=False).assign(seed=seed)
        for seed, path in files.items()
        if path.is_file()
    ]
    rows = pd.concat(tables or [pd.DataFrame()])
    return rows[rows["split"] == "test"] if "split" in rows else rows


def class_table(
    files: Mapping[int, Path], paper: pd.DataFrame, dataset: str, labels: Mapping[str, str]
) -> pd.DataFrame:
    """Tables 11 and 12: the share of a class's training clips that learn from each proxy, in percent.

    Args:
        files: seed -> notebook 09's `per_class.csv`, which need not be there.
        paper: the paper's tables; columns dataset, class, proxy, rate.
        dataset: ours; where the paper has it, its rows stand below ours.
        labels: proxy -> its name, in the order of the columns; "none" first.

    Returns:
        Text cells, a row a class and source: first our dataset, mean and standard deviation over seeds.
    """
    tables = [pd.read_csv(path, keep_default_na=False) for path in files.values() if path.is_file()]
    rows = []
    if tables:
        ours = pd.concat(table[table["split"] == "train"] for table in tables)
        for (name, proxy), rates in ours.groupby(["class", "proxy"], sort=False)["rate"]:
            cell = spread(100 * rates.mean(), 100 * rates.std(), 0)
            rows.append((dataset, name, "ours", proxy, cell))
    for *keys, proxy, rate in paper[["dataset", "class", "proxy", "rate"]].itertuples(index=False):
        rows.append((*keys, "paper", proxy, f"{100 * rate:.0f}"))
    table = pd.DataFrame(rows, columns=["Dataset", "Class", "Source", "proxy", "share"])
    order = {key: place for place, key in enumerate(dict.fromkeys((row[0], row[1]) for row in rows))}
    wide = table.pivot(index=["Dataset", "Class", "Source"], columns="proxy", values="share").fillna("")
    wide = wide.reindex(columns=list(labels)).rename(columns=dict(labels)).reset_index()
    keys = [order[pair] for pair in zip(wide["Dataset"], wide["Class"], strict=True)]
    ordered = wide.iloc[pd.Series(keys).sort_values(kind="stable").index]
    return ordered.reset_index(drop=True).rename_axis(columns=None)


def spread(mean: float, sd: float, digits: int) -> str:
    """ "55.4 ± 1.1"; without the spread where there is none."""
    return f"{mean:.{digits}f}" + ("" if pd.isna(sd) else f" ± {sd:.{digits}f}")


def gain(difference: Mapping[str, float], digits: int) -> str:
    """ "+1.3 [+0.5, +2.1]" of a row of `paired_differences`; without the interval where there is none."""
    low, high = difference["low"], difference["high"]
    limits = "" if pd.isna(low) else f" [{low:+.{digits}f}, {high:+.{digits}f}]"
    return f"{difference['mean']:+.{digits}f}{limits}"


def mean_tables(paths: Mapping[int, Path]) -> pd.DataFrame:
    """Of tables with equal columns, a file a seed: each column's mean over all rows and seeds, its standard
    deviation over seeds, and how many seeds there are. Files that do not exist are left out."""
    means = {seed: pd.read_csv(path, index_col=0).mean() for seed, path in paths.items() if path.is_file()}
    table = pd.DataFrame(means)
    return pd.DataFrame({"mean": table.mean(axis=1), "sd": table.std(axis=1), "seeds": table.count(axis=1)})


def finished_seeds(experiment: Experiment) -> list[int]:
    """Seeds whose Level II is finished for this experiment's recipe, backbone and pairs, in order."""
    suffix = experiment.folder("04_spd").name.removeprefix(f"seed{experiment.seed}")
    names = [
        path.parents[1].name for path in (experiment.outputs / "04_spd").glob(f"seed*/uniego/{FINISHED}")
    ]
    matches = [re.fullmatch(rf"seed(\d+){re.escape(suffix)}", name) for name in names]
    return sorted(int(match[1]) for match in matches if match)


def interval(values: pd.Series) -> tuple[float, float]:
    """Student-t interval of the mean at 95 %; NaN with fewer than two values."""
    if len(values) < 2:
        return float("nan"), float("nan")
    half = stats.t.ppf(0.5 + CONFIDENCE / 2, len(values) - 1) * stats.sem(values)
    return values.mean() - half, values.mean() + half


def t_test(values: pd.Series) -> float:
    """Two-sided p that the mean is zero; NaN with fewer than two values."""
    if len(values) < 2:
        return float("nan")
    if values.std() == 0:
        return float(values.mean() == 0)  # the t statistic is 0/0, or without bound
    return float(stats.ttest_1samp(values, 0).pvalue)


def summarise(scores: pd.DataFrame, split: str = "test") -> pd.DataFrame:
    """Per method: mean and standard deviation over seeds of accuracy and negative log-likelihood."""
    grouped = scores.groupby("method", sort=False)
    return pd.DataFrame(
        {
            "top1": grouped[f"{split}_top1"].mean(),
            "top1_sd": grouped[f"{split}_top1"].std(),
            "nll": grouped[f"{split}_nll"].mean(),
            "nll_sd": grouped[f"{split}_nll"].std(),
            "train_top1": grouped["train_top1"].mean(),
            "seeds": grouped["seed"].nunique(),
        }
    ).reset_index()


def paired_differences(scores: pd.DataFrame, first: str, column: str) -> pd.DataFrame:
    """`first` minus every other method, seed by seed: mean, sd, 95 % interval, p, in how many seeds positive.

    Where `scores` has the column's contributions of single clips (see `collect`), interval and p are those of
    `mean_interval`; otherwise of a paired t-test over seeds, NaN with one seed.
    """
    wide = scores.pivot(index="seed", columns="method", values=column)
    clips = f"{column}_clips"
    of_clips = scores.pivot(index="seed", columns="method", values=clips) if clips in scores else None
    rows = []
    for method in dict.fromkeys(scores["method"]):
        if method == first:
            continue
        difference = (wide[first] - wide[method]).dropna()  # seeds that both have
        pairs = [] if of_clips is None else of_clips.loc[difference.index, [first, method]].to_numpy()
        if len(pairs) and all(isinstance(clips, np.ndarray) for clips in pairs.flat):
            low, high, p = mean_interval(np.stack([one - other for one, other in pairs]))
        else:
            low, high, p = (*interval(difference), t_test(difference))
        rows.append(
            {
                "method": method,
                "mean": difference.mean(),
                "sd": difference.std(),
                "low": low,
                "high": high,
                "p": p,
                "positive": f"{int((difference > 0).sum())}/{len(difference)}",
            }
        )
    return pd.DataFrame(rows)


def results_table(scores: pd.DataFrame, labels: Mapping[str, str], first: str = "uniego") -> pd.DataFrame:
    """The table that the README and the report show, as text cells."""
    summary = summarise(scores)
    top1 = paired_differences(scores, first, "test_top1").set_index("method")
    nll = paired_differences(scores, first, "test_nll").set_index("method")

    def difference(table: pd.DataFrame, method: str, digits: int) -> str:
        return "" if method == first else gain(table.loc[method], digits)

    return pd.DataFrame(
        {
            "Method": [labels[method] for method in summary["method"]],
            "Accuracy (%)": [spread(r.top1, r.top1_sd, 1) for r in summary.itertuples()],
            "NLL (nats)": [spread(r.nll, r.nll_sd, 3) for r in summary.itertuples()],
            f"{labels[first]} minus it (points)": [
                difference(top1, method, 1) for method in summary["method"]
            ],
            f"{labels[first]} minus it (NLL)": [difference(nll, method, 3) for method in summary["method"]],
        }
    )


def text_table(table: pd.DataFrame) -> str:
    """A table as GitHub Markdown, which also reads well as plain text."""
    rows = [list(table.columns), *table.astype(str).to_numpy().tolist()]
    widths = [max(len(row[column]) for row in rows) for column in range(table.shape[1])]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines) + "\n"
