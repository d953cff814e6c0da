"""Manifests: which clips a split has, one row a clip (`<split>.csv`).

They are validated on load, before hours of work are spent.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from uniego_utils.cards import VIEWS
from uniego_utils.data.tables import read_rows, refuse_rows
from uniego_utils.runs import digest

REQUIRED_COLUMNS = ("clip_id", "take", "subject", "label", "ego_video", "exo_video", "start_s", "end_s")
CURE = "mend these rows or run notebook 00_data again"


@dataclass(frozen=True)
class Manifest:
    """The clips of one split, in a fixed order that features and outputs keep.

    `rows` has one row a clip. Paths in it are relative to `root`, where the videos lie, or to `folder`, where
    the manifest itself lies with what was made for it (skeletons).
    """

    split: str
    rows: pd.DataFrame
    classes: tuple[str, ...]
    root: Path
    digest: str  # of the clip ids, labels and paths, in order
    folder: Path | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> list[int]:
        """Class index of every clip."""
        index = {name: number for number, name in enumerate(self.classes)}
        return [index[name] for name in self.rows["label"]]

    def path(self, row: int, column: str) -> Path:
        """Where the file named in `column` of clip number `row` lies."""
        name, folder = self.rows[column].iloc[row], self.folder or self.root
        return find_file(name, *((folder, self.root) if column.endswith("skeleton") else (self.root, folder)))


def find_file(name: str, first: Path, second: Path) -> Path:
    """The file or folder `name` below `second` if it is only there, else below `first`."""
    return second / name if not (first / name).exists() and (second / name).exists() else first / name


def load_manifest(
    path: Path, classes: tuple[str, ...], root: Path, views: tuple[str, ...] = VIEWS
) -> Manifest:
    """Read and validate a split's CSV; every error lists the rows at fault (as numbered in the file).

    Args:
        path: `<split>.csv`, header in line 1.
        classes: valid labels.
        root: what the videos' paths in the rows are relative to.
        views: those that every clip must have a video of.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no table, no rows, missing columns, duplicate clip ids, labels outside the classes, empty
            spans, or files that do not exist, are empty, or have changed since notebook 00 inspected them.
    """
    path, root = Path(path), Path(root)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; run notebook 00_data first")
    rows = read_rows(path, "clips", REQUIRED_COLUMNS, ("clip_id", "take", "subject", "label"))

    def refuse(wrong: pd.Series, column: str, fault: str) -> None:
        refuse_rows(path, wrong, f"{fault} in `{column}`", rows[column], CURE)

    refuse(rows["clip_id"].duplicated(keep=False) | rows["clip_id"].isna(), "clip_id", "a duplicate id")
    refuse(~rows["label"].isin(classes), "label", f"a label outside {', '.join(classes)}")
    for column in ("start_s", "end_s"):
        times = pd.to_numeric(rows[column], errors="coerce")
        refuse(times.isna() & rows[column].notna(), column, "a time that is no number")
        rows[column] = times
    for view in views:
        refuse(rows[f"{view}_video"].isna(), f"{view}_video", "no file")
    refuse(~(rows["end_s"] > rows["start_s"]), "end_s", "an empty time span")
    for column in [name for name in rows if name.endswith(("_video", "_depth", "skeleton"))]:
        places = (path.parent, root) if column.endswith("skeleton") else (root, path.parent)
        names = rows[column].dropna().unique()
        empty = [name for name in names if not _has_content(find_file(name, *places))]
        refuse(rows[column].isin(empty), column, f"a missing or empty file below {root}")
    for column in [name for name in rows if name.endswith("_bytes")]:
        videos = rows[column.replace("_bytes", "_video")]
        files = {name: root / name for name in videos[rows[column].notna()].unique()}
        sizes = {name: file.stat().st_size for name, file in files.items() if file.is_file()}
        changed = videos.isin(sizes) & (videos.map(sizes) != rows[column])  # folders: 00 inspects them again
        refuse(changed, column, "a video that has changed since notebook 00 inspected it")
    rows = rows.reset_index(drop=True)
    kinds = ("_bytes", "_depth", "_fps", "_rotate", "skeleton", "skeleton_digest")
    more = [name for name in rows if name.endswith(kinds)]
    identity = rows[[*REQUIRED_COLUMNS, *more]].to_csv(index=False)
    return Manifest(path.stem, rows, tuple(classes), root, digest(identity.encode()), path.parent)


def _has_content(path: Path) -> bool:
    if path.is_dir():
        return any(path.iterdir())
    return path.is_file() and path.stat().st_size > 0
