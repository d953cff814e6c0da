"""Manifests: which clips a split has, one row a clip (`<split>.csv`).

They are validated on load, before hours of work are spent.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from uniego_utils.cards import VIEWS
from uniego_utils.data.tables import list_some, read_rows, refuse_rows
from uniego_utils.runs import digest

REQUIRED_COLUMNS = ("clip_id", "take", "subject", "label", "ego_video", "exo_video", "start_s", "end_s")
CURE = "mend these rows or run notebook 00_data again"
HIDDEN_LABELS = "{split}_labels.csv"  # beside the manifest of a split without labels
UNKNOWN = -100  # the label of clips whose labels are not read; torch's cross-entropy ignores it


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
        """Class index of every clip; `UNKNOWN` where it has no label."""
        index = {name: number for number, name in enumerate(self.classes)}
        return [UNKNOWN if pd.isna(name) else index[name] for name in self.rows["label"]]

    def path(self, row: int, column: str) -> Path:
        """Where the file named in `column` of clip number `row` lies; a clip without one is an error."""
        name, folder = self.rows[column].iloc[row], self.folder or self.root
        if pd.isna(name):
            clip = self.rows["clip_id"].iloc[row]
            raise ValueError(f"clip {clip} of {self.split} has no {column}; take another view or split")
        return find_file(name, *((folder, self.root) if column.endswith("skeleton") else (self.root, folder)))


def find_file(name: str, first: Path, second: Path) -> Path:
    """The file or folder `name` below `second` if it is only there, else below `first`."""
    return second / name if not (first / name).exists() and (second / name).exists() else first / name


def load_manifest(
    path: Path,
    classes: tuple[str, ...],
    root: Path,
    views: tuple[str, ...] = VIEWS,
    labelled: bool = True,
) -> Manifest:
    """Read and validate a split's CSV; every error lists the rows at fault (as numbered in the file).

    Args:
        path: `<split>.csv`, header in line 1.
        classes: valid labels.
        root: what the videos' paths in the rows are relative to.
        views: those that every clip must have a video of.
        labelled: False for a split of pairs without labels, whose column `label` must be empty.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no table, no rows, missing columns, duplicate clip ids, labels outside the classes (or
            any, where there should be none), empty spans, or files that do not exist, are empty, or have
            changed since notebook 00 inspected them.
    """
    path, root = Path(path), Path(root)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; run notebook 00_data first")
    rows = read_rows(path, "clips", REQUIRED_COLUMNS, ("clip_id", "take", "subject", "label"))

    def refuse(wrong: pd.Series, column: str, fault: str) -> None:
        refuse_rows(path, wrong, f"{fault} in `{column}`", rows[column], CURE)

    refuse(rows["clip_id"].duplicated(keep=False) | rows["clip_id"].isna(), "clip_id", "a duplicate id")
    if labelled:
        refuse(~rows["label"].isin(classes), "label", f"a label outside {', '.join(classes)}")
    else:
        hidden = HIDDEN_LABELS.format(split=path.stem)
        refuse(rows["label"].notna(), "label", f"a label, which belongs into {hidden}")
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


def hidden_labels_file(manifest: Manifest) -> Path:
    """Where the labels of a split of pairs lie, if they are known."""
    return (manifest.folder or manifest.root) / HIDDEN_LABELS.format(split=manifest.split)


def load_hidden_labels(manifest: Manifest) -> list[int]:
    """The class index of every clip of a split of pairs, from a file that ceilings alone may read.

    Raises:
        FileNotFoundError: the labels are not known.
        ValueError: the file has other clips than the manifest, or labels outside its classes.
    """
    path = hidden_labels_file(manifest)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; a ceiling needs the labels of {manifest.split}: columns clip_id, label"
        )
    rows = read_rows(path, "labels", ("clip_id", "label"), ("clip_id", "label"))
    twice = rows["clip_id"].duplicated(keep=False)
    refuse_rows(path, twice, "a duplicate id in `clip_id`", rows["clip_id"])
    other = ~rows["clip_id"].isin(manifest.rows["clip_id"])
    refuse_rows(path, other, f"a clip that {manifest.split}.csv has not", rows["clip_id"], CURE)
    outside = ~rows["label"].isin(manifest.classes)
    refuse_rows(path, outside, "a label outside the classes", rows["label"], CURE)
    given = dict(zip(rows["clip_id"], rows["label"], strict=True))
    if absent := [name for name in manifest.rows["clip_id"] if name not in given]:
        raise ValueError(f"{path} lacks the label of {list_some(absent)}; {CURE}")
    return [manifest.classes.index(given[name]) for name in manifest.rows["clip_id"]]


def _has_content(path: Path) -> bool:
    if path.is_dir():
        return any(path.iterdir())
    return path.is_file() and path.stat().st_size > 0
