"""The paper's tables, and our accuracies beside them."""

from collections.abc import Iterable, Mapping

import pandas as pd

from uniego_utils.cards import CARDS
from uniego_utils.figures.style import TEACHER_COLOURS
from uniego_utils.methods import METHODS
from uniego_utils.report.tables import spread, summarise

PAPER_TABLES = range(2, 13)
# the paper's abbreviations
DATASETS = {"egoexo_fitness": "EEF", "assembly101": "A101", "egoexo4d": "EE4D"}
MEASURE = "make study"  # runs what a table here calls "not run"
NOT_RUN = f"not run: {MEASURE}"
NO_BACKBONE = "this suite has no such backbone"
BACKBONE = "timesformer"  # of all other tables
NOTHING = "—"  # the paper gives no number

AFTER_SPD = {"merged": "uniego"} | {METHODS[key].start: key for key in METHODS if key.startswith("after_")}
OTHER_STARTS = ("soup", "arithmetic", "ties")  # that the paper does not have
STARTS = {key: after for key, after in AFTER_SPD.items() if key not in OTHER_STARTS}  # of Table 10
OTHER_STRATEGIES = ("features_only", "logits_only", "equal_votes", "confident", "by_truth")
LABELS = {
    **{key: f"Proxy {key}" for key in TEACHER_COLOURS},
    "top1": "Top-1",
    "exo_timesformer": "Exo TimeSformer, from exo clips",
    "exo_stgcn": "Exo ST-GCN, from skeletons",
    **{key: method.label for key, method in METHODS.items()},
}

MARKS = {"yes": "✓", "no": "✗"}
WORDS = {"name": "Method", "proxy_learning": "Proxy learning", "proxy_merging": "Merging", "spd": "SPD"}


def paper_table(number: int) -> pd.DataFrame:
    """One of the paper's tables 2 to 12 in long format; columns: data_manifests/paper/README.md.

    Raises:
        ValueError: there is no such table.
    """
    if number not in PAPER_TABLES:
        raise ValueError(f"no table {number!r}; choose of {', '.join(map(str, PAPER_TABLES))}")
    # an empty cell is a method that this suite does not have
    return pd.read_csv(CARDS / "paper" / f"table{number:02d}.csv", keep_default_na=False)


def paper_top1() -> dict[tuple[str, str], float]:
    """(dataset, method) -> the paper's accuracy in percent, TimeSformer throughout."""
    rows = pd.concat([paper_table(number) for number in (2, 6, 7, 8, 9, 10)])
    rows = rows[rows["method"] != ""]
    return {(row.dataset, row.method): row.value for row in rows.itertuples()}


def ablation_tables(
    scores: pd.DataFrame, k: int = 1, beside: Mapping[str, pd.DataFrame] | None = None
) -> dict[str, pd.DataFrame]:
    """The paper's tables 2, 5, 6, 7 with 10, 8 and 9 with our test accuracy in them, as text cells.

    A row that was not run says so, with the command that runs it. Table 2 has the rows that this suite has.

    Args:
        scores: as `collect` gives them.
        k: how many proxies UNIEGO selects per clip (the card's); the paper's K is 1 in these tables.
        beside: scores of other regimes by what they are called; each gets a column.
    """
    others = {f"ours, {name}": accuracies(each) for name, each in (beside or {}).items()}
    ours = {"ours": accuracies(scores), **others}
    competitors, strategies = paper_table(2), paper_table(8)
    of_paper = {"uniego": strategy(1, k), "top2": strategy(2, k), "top3": strategy(3, k)}
    strategies["method"] = strategies["method"].replace(of_paper)
    return {
        "Table 2: accuracy": _beside(competitors[competitors["method"] != ""], ours),
        "Table 5: other backbones": pd.concat(
            [
                _beside(rows, ours)
                if backbone == BACKBONE
                else _beside(rows, dict.fromkeys(ours, {}), missing=NO_BACKBONE)
                for backbone, rows in paper_table(5).groupby("backbone", sort=False)
            ]
        ),
        "Table 6: components": _beside(paper_table(6), ours),
        "Tables 7 and 10: starts, before and after SPD": _starts_beside(ours),
        "Table 8: whom to distil from": _beside(strategies, ours, OTHER_STRATEGIES),
        "Table 9: ego baseline and proxies": _beside(paper_table(9), ours),
    }


def strategy(selected: int, k: int) -> str:
    """The method that distils from so many proxies a clip: UNIEGO itself, where it selects as many."""
    return "uniego" if selected == k else f"top{selected}"


def label(method: str) -> str:
    """A method's name in tables; its key where it has no other."""
    return LABELS.get(method, method)


def accuracies(scores: pd.DataFrame) -> dict[str, str]:
    """Method -> "55.4 ± 1.1", of test accuracy over seeds."""
    return {row.method: spread(row.top1, row.top1_sd, 1) for row in summarise(scores).itertuples()}


def number_cell(values: Iterable[float], form: str = "+.1f") -> str:
    """Numbers in one cell, e.g. "+1.2, +0.6, —"; NaN is a number that the paper does not give."""
    return ", ".join(NOTHING if pd.isna(value) else format(value, form) for value in values)


def _beside(
    table: pd.DataFrame,
    ours: Mapping[str, Mapping[str, str]],
    more: Iterable[str] = (),
    missing: str = NOT_RUN,
) -> pd.DataFrame:
    """A table of the paper, one row a method, with our accuracies; `more` methods are not in the paper."""

    def our_cells(method: str, missing: str) -> dict[str, str]:
        return {f"{_upper(name)} (%)": cells.get(method, missing) for name, cells in ours.items()}

    words = [name for name in table if name not in ("dataset", "method", "metric", "value")]
    values = table.set_index(["method", "dataset"])["value"]
    datasets = [name for name in DATASETS if name in set(table["dataset"])]
    rows = []
    for row in table.drop_duplicates("method").to_dict("records"):
        shown = {WORDS.get(name, name.capitalize()): MARKS.get(row[name], row[name]) for name in words}
        shown |= our_cells(row["method"], missing)
        shown |= {f"Paper, {DATASETS[name]}": f"{values[row['method'], name]:.1f}" for name in datasets}
        rows.append(shown)
    rows += [{"Method": label(method), **our_cells(method, NOT_RUN)} for method in more]
    return pd.DataFrame(rows).fillna(NOTHING)


def _upper(name: str) -> str:
    return name[:1].upper() + name[1:]


def _starts_beside(ours: Mapping[str, Mapping[str, str]]) -> pd.DataFrame:
    """Table 10, of which Table 7 is the part after SPD, and the starts that the paper does not have."""
    table, printed = paper_table(10), paper_top1()
    names = dict(zip(table["method"], table["name"], strict=True))
    rows = []
    for start in (*dict.fromkeys(table.loc[table["spd"] == "before", "method"]), *OTHER_STARTS):
        methods = {"before": start, "after": AFTER_SPD[start]}
        row = {"Start": names.get(start, label(start))}
        row |= {
            f"{_upper(column)}, {moment} (%)": cells.get(method, NOT_RUN)
            for column, cells in ours.items()
            for moment, method in methods.items()
        }
        for name in dict.fromkeys(table["dataset"]):
            for moment, method in methods.items():
                row[f"{DATASETS[name]}, {moment}"] = number_cell([printed.get((name, method))], ".1f")
        rows.append(row)
    return pd.DataFrame(rows)
