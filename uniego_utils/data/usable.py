"""From a dataset's official annotations and the videos on disk to manifests without a single unusable clip.

A builder is a module with `Settings`, frozen `Requirements` with fields of its own, and `annotated(root,
settings, classes)`, which reads the annotations of one dataset. To add one, write its module and give the
card its dotted path as `builder`; to give it a short name, add a line to BUILDERS.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from uniego_utils.cards import CLASSES_FILE, Card
from uniego_utils.data.annotated import SPLITS, UNLABELLED, Annotated, Requirements
from uniego_utils.data.inventory import ABSENT, inspect_videos
from uniego_utils.data.manifests import HIDDEN_LABELS, REQUIRED_COLUMNS, Manifest, find_file
from uniego_utils.data.skeletons import layout_of, skeleton_fault
from uniego_utils.data.tables import MAX_LISTED, list_some
from uniego_utils.data.video import SPAN_TOLERANCE_S
from uniego_utils.extensions import find_module
from uniego_utils.runs import digest, read_notes, write_json, write_tensors, written_whole

GENERATED = "mocap"  # the builder that renders its clips instead of finding them
BUILDERS = {  # short name -> module
    "egoexo_fitness": "uniego_utils.data.egoexo_fitness",
    "assembly101": "uniego_utils.data.assembly101",
    "egoexo4d": "uniego_utils.data.egoexo4d",
    "folder": "uniego_utils.data.folder",
}
UNTRAINED = "class without training clips"
BY_RULE = (UNTRAINED, "step outside the labels")  # reasons that no file could cure: never too many
FPS_TOLERANCE = 0.005  # relative; lets 29.97 pass for 30

# The usable clips of a split -> a row a clip: `clip_id`, `skeleton` (file within `<column>s`; "" if there is
# none) and `reason`.
Estimator = Callable[[Manifest], pd.DataFrame]


def builder_module(name: str) -> ModuleType:
    """The module that reads a dataset's annotations: of `BUILDERS`, or from outside at a dotted path.

    Raises:
        ValueError: no such module, or one that lacks something of a builder.
    """
    return find_module(name, {GENERATED: "", **BUILDERS}, ("Settings", "annotated"), "builder")


@dataclass(frozen=True)
class Summary:
    """How many annotated clips can be used, and why the others cannot."""

    counts: pd.DataFrame  # by split: annotated, usable, published (by the paper, which has no val)
    reasons: pd.DataFrame  # split, reason, clips: why clips were left out
    inferred: Mapping[str, str]  # setting -> what was inferred, and from what
    absent: tuple[str, ...] = ()  # classes without any clip, as in a part of a dataset


def write_manifests(
    card: Card,
    annotated: Annotated,
    root: Path,
    folder: Path,
    allow_missing: float = 0.0,
    splits_with_skeleton: tuple[str, ...] = (),
    workers: int = 4,
    progress: bool = True,
    estimators: Mapping[str, Estimator] | None = None,
) -> Summary:
    """Inspect every video and write the manifests of the clips that can be used.

    Always writes `inventory.csv` (see `inspect_videos`), `missing.csv` (every unusable clip with its reason
    and files) and `reasons.csv` (their counts). If few enough are missing, `skeletons/<clip_id>.safetensors`;
    and if few enough lack one, `train.csv`, `val.csv`, `test.csv`, `segments.csv` and `classes.json`. An
    existing skeleton is kept if it was made from the same span with the same settings.

    Args:
        card: its `views` say whether exo videos are needed.
        root: the data root.
        folder: where everything is written.
        allow_missing: share of clips, and of videos to segment, that may be unusable.
        splits_with_skeleton: whose clips must have a skeleton, published or estimated.
        workers: videos inspected in parallel.
        estimators: for each column of skeletons that are not published, what makes them.

    Raises:
        ValueError: more is missing than allowed, or a split has no clips.
    """
    folder = Path(folder)
    clips = annotated.clips.reset_index(drop=True)
    if clips["clip_id"].duplicated().any():
        raise ValueError(f"{card.name}: the annotations give several clips the same clip_id")
    if card.pairs not in ("", UNLABELLED):
        raise ValueError(f"{card.name}: pairs is {card.pairs!r}; the split of found clips is {UNLABELLED}")
    if (without := int((clips["split"] == UNLABELLED).sum())) and not card.pairs:
        raise ValueError(
            f"{card.name}: {without} clips have no label, or are of the split {UNLABELLED}; label them, or "
            f"learn on them as pairs: write `pairs: {UNLABELLED}` and "
            f"`splits: [train, val, test, {UNLABELLED}]` on the card"
        )
    columns = [f"{view}_video" for view in card.views]
    paths = pd.unique(clips[columns].to_numpy().ravel())
    if annotated.segments is not None:
        paths = np.concatenate([paths, annotated.segments["ego_video"].unique()])
    videos = inspect_videos(
        [path for path in paths if isinstance(path, str)], root, folder / "inventory.csv", workers, progress
    ).to_dict("index")

    clips["end_s"] = [
        _end(clip, card.views_of(clip["split"]), videos) if pd.isna(clip["end_s"]) else clip["end_s"]
        for clip in clips.to_dict("records")
    ]
    clips["reason"] = [
        _reason(clip, card, annotated, videos, root) if pd.isna(clip["reason"]) else clip["reason"]
        for clip in clips.to_dict("records")
    ]
    segments, unusable = _usable_segments(annotated, videos)
    clips = _without_untrained(clips)
    _report(card, clips, annotated, unusable, allow_missing, folder)  # before hours go into skeletons
    if annotated.skeleton is not None:
        clips = _with_skeletons(clips, annotated, folder, splits_with_skeleton, progress)
    for column, estimate in (estimators or {}).items():
        for split in splits_with_skeleton:
            clips = _with_estimates(clips, annotated, root, folder, split, column, estimate)
    clips = _without_untrained(clips)
    reasons = _report(card, clips, annotated, unusable, allow_missing, folder)
    usable = clips[clips["reason"].isna()].drop(columns="reason")
    sizes = {path: row["bytes"] for path, row in videos.items()}
    for view in card.views:  # so that a file that changes afterwards is noticed
        usable[f"{view}_bytes"] = usable[f"{view}_video"].map(sizes).astype("Int64")
    for column in [name for name in usable if name.endswith("skeleton")]:
        usable[f"{column}_digest"] = [  # files are small, and another skeleton is another manifest
            name if pd.isna(name) else digest(find_file(name, folder, Path(root)))[:12]
            for name in usable[column]
        ]
    splits = (*SPLITS, card.pairs) if card.pairs else SPLITS
    if empty := [split for split in splits if not (usable["split"] == split).any()]:
        raise ValueError(
            f"{card.name}: no usable clips in {', '.join(empty)}; see {folder / 'reasons.csv'} and the "
            f"settings val_share and test_share of its builder"
        )
    for split in splits:
        rows = usable[usable["split"] == split].drop(columns="split")
        if split == UNLABELLED:
            hidden = folder / HIDDEN_LABELS.format(split=split)
            hidden.unlink(missing_ok=True)  # of an earlier table
            if rows["label"].notna().all():
                _write_csv(hidden, rows[["clip_id", "label"]])
            rows = rows.assign(label=np.nan, caption=np.nan)  # a caption may name the label
        rows = rows.dropna(axis=1, how="all")
        columns = [*REQUIRED_COLUMNS, *(name for name in rows if name not in REQUIRED_COLUMNS)]
        _write_csv(folder / f"{split}.csv", rows.reindex(columns=columns))
    if segments is not None:
        _write_csv(folder / "segments.csv", segments)
    write_json(folder / CLASSES_FILE, list(annotated.classes))
    absent = tuple(name for name in annotated.classes if name not in set(usable["label"]))
    return Summary(_counts(clips, usable, annotated.published), reasons, annotated.inferred, absent)


def _without_untrained(clips: pd.DataFrame) -> pd.DataFrame:
    """Clips of classes that have no usable training clip get a reason: nothing could name them."""
    usable = clips["reason"].isna()
    trained = clips.loc[usable & (clips["split"] == "train"), "label"].unique()
    untrained = usable & clips["label"].notna() & ~clips["label"].isin(trained)
    return clips.assign(reason=clips["reason"].astype(object).mask(untrained, UNTRAINED))


def _end(clip: Mapping, views: tuple[str, ...], videos: Mapping[str, dict]) -> float:
    """The end of a clip that lasts as long as its videos; NaN where one cannot be read."""
    ends = []
    for view in views:
        video = videos.get(clip[f"{view}_video"])
        if video is None or video["fault"] is not None:
            return np.nan
        rate = clip.get(f"{view}_fps", np.nan)
        ends.append(video["frames"] / rate if pd.isna(video["seconds"]) else video["seconds"])
    return np.nan if any(pd.isna(end) for end in ends) else min(ends)


def _reason(
    clip: Mapping, card: Card, annotated: Annotated, videos: Mapping[str, dict], root: Path
) -> str | float:
    """Why a clip cannot be used, in words that are the same for all clips alike; NaN if it can."""
    unlabelled = clip["split"] == UNLABELLED and pd.isna(clip["label"])
    if not unlabelled and clip["label"] not in annotated.classes:
        return "label outside the classes"
    for view in card.views_of(clip["split"]):
        if fault := _video_fault(clip, view, videos, annotated.requirements):
            return fault
    if not clip["end_s"] - clip["start_s"] >= annotated.requirements.min_seconds or clip["start_s"] < 0:
        return f"shorter than {annotated.requirements.min_seconds} s"
    skeleton = clip.get("skeleton", np.nan)
    if not pd.isna(skeleton):
        path = Path(root) / skeleton
        fault = skeleton_fault(path, layout_of(card.skeleton)) if path.is_file() else "file absent"
        return f"no skeleton: {fault}" if fault else np.nan
    return np.nan


def _video_fault(
    clip: Mapping, view: str, videos: Mapping[str, dict], requirements: Requirements
) -> str | None:
    """Why a clip's video from a view cannot be used; None: it can."""
    path = clip[f"{view}_video"]
    if pd.isna(path) or videos[path]["fault"] == ABSENT:
        return f"no {view} video"
    video = videos[path]
    if video["fault"] is not None:
        return video["fault"]
    rotate = clip.get(f"{view}_rotate", 0)
    rotate = 0 if pd.isna(rotate) else int(rotate)
    if rotate and video["rotation"]:  # decord turns by the header, so the pictures would be turned twice
        return "rotated by its header"
    sides = (video["width"], video["height"]) if rotate % 180 == 0 else (video["height"], video["width"])
    if sides[0] < sides[1] and not requirements.allow_portrait:
        return "portrait picture"
    seconds = video["seconds"]
    if pd.isna(seconds):  # a folder of pictures
        rate = clip.get(f"{view}_fps", np.nan)
        if pd.isna(rate):
            return f"no {view}_fps for its folder of pictures"
        seconds = video["frames"] / rate
    elif requirements.fps and abs(video["fps"] / requirements.fps - 1) > FPS_TOLERANCE:
        return f"frame rate {video['fps']:.1f}, expected {requirements.fps:.1f}"
    if seconds < clip["end_s"] - SPAN_TOLERANCE_S or seconds <= clip["start_s"]:
        return "video ends before its annotation"
    return None


def _with_skeletons(
    clips: pd.DataFrame, annotated: Annotated, folder: Path, splits: tuple[str, ...], progress: bool
) -> pd.DataFrame:
    """Write the skeletons of the usable clips of `splits`; a clip without one gets a reason."""
    clips = clips.assign(skeleton=np.nan).astype({"skeleton": object, "reason": object})
    wanted = clips[clips["reason"].isna() & clips["split"].isin(splits)].sort_values("take", kind="stable")
    for row, clip in tqdm(
        wanted.iterrows(), "skeletons", len(wanted), disable=not progress or wanted.empty, leave=False
    ):
        name = f"skeletons/{clip['clip_id']}.safetensors"
        source = [repr(annotated.skeleton), annotated.skeleton.stamp(clip)]
        origin = digest([clip["take"], clip["start_s"], clip["end_s"], *source])
        path = folder / name
        try:
            if not path.is_file() or read_notes(path).get("made_from") != origin:
                write_tensors(path, annotated.skeleton(clip), {"made_from": origin})
            clips.at[row, "skeleton"] = name
        except ValueError as error:
            clips.at[row, "reason"] = f"no skeleton: {error}"
    return clips


def _with_estimates(
    clips: pd.DataFrame,
    annotated: Annotated,
    root: Path,
    folder: Path,
    split: str,
    column: str,
    estimate: Estimator,
) -> pd.DataFrame:
    """Have the skeletons of a split's usable clips estimated; a clip without one gets a reason."""
    rows = clips[clips["reason"].isna() & (clips["split"] == split)]
    if rows.empty:
        return clips
    listed = rows.drop(columns=["split", "reason"]).reset_index(drop=True)
    manifest = Manifest(split, listed, annotated.classes, Path(root), digest(list(listed["clip_id"])), folder)
    estimates = estimate(manifest).set_index("clip_id").reindex(rows["clip_id"])
    usable = estimates["skeleton"].fillna("").to_numpy() != ""
    clips = clips.assign(**{column: clips.get(column, np.nan)}).astype({column: object, "reason": object})
    clips.loc[rows.index[usable], column] = [f"{column}s/{name}" for name in estimates["skeleton"][usable]]
    reasons = estimates["reason"][~usable]
    clips.loc[rows.index[~usable], "reason"] = [f"no skeleton: {reason}" for reason in reasons]
    return clips


def _usable_segments(
    annotated: Annotated, videos: Mapping[str, dict]
) -> tuple[pd.DataFrame | None, pd.DataFrame]:
    """The segments of sound videos, and one row for each other video: a video counts whole or not at all."""
    segments = annotated.segments
    if segments is None:
        return None, pd.DataFrame()
    faults = {}
    for clip in segments.to_dict("records"):
        if fault := _video_fault(clip, "ego", videos, annotated.requirements):
            faults.setdefault((clip["level"], clip["video_id"]), {**clip, "reason": f"segmentation: {fault}"})
    keys = pd.MultiIndex.from_frame(segments[["level", "video_id"]])
    unusable = pd.DataFrame([{**row, "clip_id": row["video_id"]} for row in faults.values()])
    return segments[~keys.isin(list(faults))], unusable


def _report(
    card: Card,
    clips: pd.DataFrame,
    annotated: Annotated,
    unusable: pd.DataFrame,
    allowed: float,
    folder: Path,
) -> pd.DataFrame:
    """Write what is missing, and return its counts by split and reason; an error if it is too much."""
    missing = pd.concat([clips[clips["reason"].notna()], unusable], ignore_index=True)
    listed = ["clip_id", "split", "reason", "ego_video", "exo_video", "start_s", "end_s"]
    _write_csv(folder / "missing.csv", missing.reindex(columns=listed))
    reasons = missing.groupby(["split", "reason"]).size().rename("clips").reset_index()
    reasons = reasons.sort_values("clips", ascending=False, ignore_index=True)
    _write_csv(folder / "reasons.csv", reasons)
    by_rule = clips["reason"].fillna("").str.startswith(BY_RULE)  # nobody can fetch what is not there
    shares = [(clips["reason"].notna() & ~by_rule).mean()]
    if annotated.segments is not None:
        shares.append(len(unusable) / annotated.segments.groupby(["level", "video_id"]).ngroups)
    if (share := max(shares)) <= allowed:
        return reasons
    counts = reasons.groupby("reason")["clips"].sum().sort_values(ascending=False)
    causes = "; ".join(f"{count} x {reason}" for reason, count in counts.head(2 * MAX_LISTED).items())
    videos = f" and {len(unusable)} videos to segment" if len(unusable) else ""
    raise ValueError(
        f"{card.name}: {len(missing) - len(unusable)} of {len(clips)} clips{videos} cannot be used "
        f"({causes}); they are {list_some(list(missing['clip_id']))}, all in {folder / 'missing.csv'}; fetch "
        f"their files again, or do without them by allow_missing={np.ceil(share * 1000) / 1000:g} "
        f"(now {allowed:g})"
    )


def _counts(clips: pd.DataFrame, usable: pd.DataFrame, published: Mapping[str, int]) -> pd.DataFrame:
    """Clips by split; the paper trains on what is train and val here."""
    table = pd.DataFrame(
        {name: rows["split"].value_counts() for name, rows in (("annotated", clips), ("usable", usable))}
    )
    order = [*SPLITS, *(name for name in table.index if name not in SPLITS)]
    table = table.reindex(order, fill_value=0)
    table.loc["train + val"] = table.loc["train"] + table.loc["val"]
    table["published"] = pd.Series({"train + val": published.get("train"), "test": published.get("test")})
    return table.loc[["train", "val", "train + val", *order[2:]]].astype("Int64")


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    with written_whole(path) as partial:
        table.to_csv(partial, index=False)
