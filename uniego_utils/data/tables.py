"""Tables of rows: reading those that notebook 00 writes, and one way to refuse rows of any."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

MAX_LISTED = 5  # rows or names listed in an error before "and n more"


def read_rows(path: Path, kind: str, required: Sequence[str], text: Sequence[str]) -> pd.DataFrame:
    """The rows of a CSV that notebook 00 wrote; the index says their lines in the file.

    Args:
        path: an existing file, header in line 1.
        kind: what its rows are, e.g. "clips".
        required: columns that it must have.
        text: columns read as text, whatever their cells look like.

    Raises:
        ValueError: no table, a missing column, or no rows.
    """
    cure = "run notebook 00_data again"
    try:
        rows = pd.read_csv(path, dtype=dict.fromkeys(text, str))
    except (pd.errors.EmptyDataError, pd.errors.ParserError) as error:
        raise ValueError(f"{path} is no table of {kind} ({error}); {cure}") from None
    if absent := [name for name in required if name not in rows]:
        raise ValueError(f"{path} lacks the columns {', '.join(absent)}; add them or {cure}")
    if rows.empty:
        raise ValueError(f"{path} has no {kind}; {cure}")
    rows.index += 2
    return rows


def refuse_rows(
    table: Path | str,
    wrong: pd.Series,
    fault: str,
    values: pd.Series | None = None,
    cure: str = "mend the table",
    row: str = "line",
) -> None:
    """Refuse a table if any of its rows is wrong.

    Args:
        table: its file.
        wrong: (rows,) whether each row is wrong; the index names the rows, by their lines in the file.
        fault: what a wrong row has, e.g. "no label".
        values: (rows,) what is listed beside a row's line; None: nothing.
        cure: what to do about it.
        row: what the index counts, if it is not lines.

    Raises:
        ValueError: some rows are wrong; the message counts them and lists the first.
    """
    if not wrong.any():
        return
    faulty = [f"{row} {name}" for name in wrong.index[wrong]]
    if values is not None:
        faulty = [f"{name}: {value}" for name, value in zip(faulty, values[wrong], strict=True)]
    count = f"{len(faulty)} of {len(wrong)} rows"
    raise ValueError(f"{table}: {count} have {fault} ({list_some(faulty)}); {cure}")


def list_some(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more
