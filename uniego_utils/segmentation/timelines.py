"""Timelines: which action is on at which moment of an untrimmed video.

They come from `segments.csv` of notebook 00, the same for every dataset: a row a segment. What lies between a
video's segments is background. A row without label and times says that its video has no action at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from uniego_utils.data.tables import list_some, read_rows, refuse_rows
from uniego_utils.data.video import Video, VideoError, frame_indices, open_video
from uniego_utils.runs import digest

BACKGROUND = "background"  # what labels say between segments
REQUIRED_COLUMNS = ("split", "level", "video_id", "ego_video", "start_s", "end_s", "label")
OPTIONAL_COLUMNS = ("take", "subject", "exo_video", "ego_fps", "exo_fps", "ego_rotate", "exo_rotate")
FRAMES_OVER = 1.5  # frames that a segment may end after its video: rounding, and a frame that players drop
CURE = "mend the table or run notebook 00_data again"


@dataclass(frozen=True)
class Timeline:
    """An untrimmed video, or the part of it that is annotated, with its segments."""

    video_id: str
    path: Path  # of the ego video
    start_s: float  # the annotated span: the whole video, unless several timelines share the file
    end_s: float
    segments: tuple[tuple[float, float, str], ...]  # start, end in seconds; label; in order of their start
    exo_path: Path | None = None
    fps: tuple[float | None, float | None] = (None, None)  # of ego and exo folders of pictures
    rotate: tuple[int, int] = (0, 0)  # degrees clockwise that make ego and exo pictures upright

    @property
    def duration(self) -> float:
        """Seconds of the annotated span."""
        return self.end_s - self.start_s

    def open(self, view: str = "ego") -> Video:
        """The video from a view. Raises VideoError if it cannot be read or ends before its last segment."""
        path, number = (self.path, 0) if view == "ego" else (self.exo_path, 1)
        if path is None:
            raise VideoError(f"video {self.video_id} has no {view} video in its segments.csv")
        return open_video(path, None, self.fps[number], self.rotate[number])

    def pictures(self, times: np.ndarray, view: str = "ego") -> np.ndarray:
        """What is on screen at `times` (n,) in seconds: (n, H, W, 3) uint8. Raises VideoError, see `open`."""
        video = self.open(view)
        return video.read(frame_indices(np.asarray(times, float), video.fps, video.frames))

    @property
    def views(self) -> tuple[str, ...]:
        """Those that there are videos of."""
        return ("ego",) if self.exo_path is None else ("ego", "exo")

    def labels_at(self, times: np.ndarray) -> np.ndarray:
        """Names of the actions at `times` (n,), in seconds of the video; BACKGROUND between segments.

        A segment holds from its start up to, but not at, its end. Where two overlap, as keysteps of Ego-Exo4D
        may, the one that began last counts: there is one label a moment.
        """
        times = np.asarray(times, float)
        names = [BACKGROUND, *(label for *_, label in self.segments)]
        labels = np.full(len(times), BACKGROUND, dtype=f"<U{max(map(len, names))}")
        for start, end, label in self.segments:
            labels[(times >= start) & (times < end)] = label
        return labels


def load_timelines(path: Path, root: Path, split: str, level: str = "") -> list[Timeline]:
    """The timelines of a split at one level of annotation, in the order of the file.

    Where several videos of a level share a file (a recording of Assembly101 holds an assembly and a
    disassembly), a timeline spans the time from its first segment's start to its last one's end; otherwise it
    spans the whole file.

    Args:
        path: `segments.csv`.
        root: what the videos' paths are relative to.
        split: train, val or test.
        level: of the annotation, e.g. "coarse"; may be left out where the file has only one.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unknown or missing columns, an unknown level, no rows, times that are no finite numbers or
            run backwards, labels that are missing or called as the background is, rows of one video that
            disagree, segments that go on after their video's end.
        VideoError: a video is missing or cannot be read.
    """
    path, root = Path(path), Path(root)
    rows = _read(path)
    levels = list(dict.fromkeys(rows["level"]))
    if level == "" and len(levels) == 1:
        level = levels[0]
    if level not in levels:
        raise ValueError(f"{path} has no level {level!r}; choose one of {', '.join(map(str, levels))}")
    rows = rows[rows["level"] == level]
    sharing = rows.groupby("ego_video")["video_id"].nunique()
    chosen = rows[rows["split"] == split]
    if chosen.empty:
        known = ", ".join(dict.fromkeys(rows["split"]))
        raise ValueError(f"{path} has no {level} segments of the split {split!r}; it has {known}")
    return [
        _timeline(path, root, video_id, segments, sharing[segments["ego_video"].iloc[0]] > 1)
        for video_id, segments in chosen.groupby("video_id", sort=False)
    ]


def _read(path: Path) -> pd.DataFrame:
    """The validated rows of `segments.csv`; the index says their lines in the file."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: this dataset has no segments to find, or notebook 00_data is to be run"
        )
    text = ("split", "level", "video_id", "take", "subject", "label", "ego_video", "exo_video")
    rows = read_rows(path, "segments", REQUIRED_COLUMNS, text)
    if unknown := [name for name in rows if name not in (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)]:
        known = ", ".join((*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS))
        raise ValueError(f"{path} has unknown columns {', '.join(unknown)}; known are {known}")

    def refuse(wrong: pd.Series, fault: str) -> None:
        refuse_rows(path, wrong, fault, rows["video_id"], CURE)

    for name in ("split", "level", "video_id", "ego_video"):
        refuse(rows[name].isna(), f"no {name}")
    empty = rows[["start_s", "end_s", "label"]].isna().all(axis=1)
    for name in ("start_s", "end_s"):
        rows[name] = pd.to_numeric(rows[name], errors="coerce").astype(float)
        refuse(~np.isfinite(rows[name]) & ~empty, f"a {name} that is no finite number")
    refuse(rows["label"].isna() & ~empty, "no label")
    refuse(rows["label"] == BACKGROUND, f"the label {BACKGROUND!r}, which is what lies between")
    refuse((rows["end_s"] <= rows["start_s"]) & ~empty, "an end that is not after its start")
    refuse(rows["start_s"] < 0, "a start before the video's")
    return rows


def _timeline(path: Path, root: Path, video_id: str, rows: pd.DataFrame, shared: bool) -> Timeline:
    common = {}  # what all rows of the video say
    for name in ("ego_video", *OPTIONAL_COLUMNS):
        values = rows[name].dropna().unique() if name in rows else []
        if len(values) > 1:
            listed = list_some([str(value) for value in values])
            raise ValueError(f"{path}: video {video_id} has several {name} ({listed}); {CURE}")
        common[name] = values[0] if len(values) else None
    rows = rows[rows["label"].notna()].sort_values(
        ["start_s", "end_s"], kind="stable", ascending=[True, False]
    )
    if shared and rows.empty:
        raise ValueError(
            f"{path}: video {video_id} shares its file and has no segments to tell its span; {CURE}"
        )
    exo = common["exo_video"]
    timeline = Timeline(
        video_id,
        root / common["ego_video"],
        float(rows["start_s"].min()) if shared else 0.0,
        float(rows["end_s"].max()) if shared else np.inf,
        tuple(rows[["start_s", "end_s", "label"]].itertuples(index=False, name=None)),
        None if exo is None else root / exo,
        tuple(
            None if common[f"{view}_fps"] is None else float(common[f"{view}_fps"]) for view in ("ego", "exo")
        ),
        tuple(int(common[f"{view}_rotate"] or 0) for view in ("ego", "exo")),
    )
    video = timeline.open()
    last = max((end for _, end, _ in timeline.segments), default=0.0)
    if last > video.seconds + FRAMES_OVER / video.fps:
        raise ValueError(
            f"{path}: the segments of video {video_id} go on until {last:.2f} s, but {timeline.path} lasts "
            f"{video.seconds:.2f} s: truncated, or of another frame rate; fetch the video again, or {CURE}"
        )
    end_s = min(timeline.end_s, video.seconds)
    cut = tuple((start, min(end, end_s), label) for start, end, label in timeline.segments if start < end_s)
    return replace(timeline, end_s=end_s, segments=cut)


def classes_of(timelines: Sequence[Timeline], order: Sequence[str] = ()) -> tuple[str, ...]:
    """BACKGROUND and then all labels, those in `order` first and in its order, others by name."""
    labels = {label for timeline in timelines for *_, label in timeline.segments}
    return (BACKGROUND, *(name for name in order if name in labels), *sorted(labels - set(order)))


def moments(timeline: Timeline, stride_s: float) -> np.ndarray:
    """Times (steps,) in seconds: the middles of steps of `stride_s` from the span's start.

    A remainder of half a step or more gets a step of its own; there is at least one.

    Raises:
        ValueError: `stride_s` is not above zero.
    """
    if not stride_s > 0:
        raise ValueError(f"stride_s is {stride_s}; it should be above 0 seconds")
    steps = max(1, int(timeline.duration / stride_s + 0.5 + 1e-6))
    middles = timeline.start_s + (np.arange(steps) + 0.5) * stride_s
    return np.minimum(middles, timeline.end_s - min(1e-3, timeline.duration / 2))


def step_edges(timeline: Timeline, stride_s: float) -> np.ndarray:
    """Times (steps + 1,) in seconds between which the steps of `moments` lie; the last is the span's end."""
    edges = timeline.start_s + np.arange(len(moments(timeline, stride_s)) + 1) * stride_s
    return np.r_[edges[:-1], timeline.end_s]


def timelines_digest(timelines: Sequence[Timeline]) -> str:
    """What tells these videos and spans from others: ids, names, sizes and spans, in order; not labels."""
    content = [
        [entry.video_id, entry.path.name, _size(entry.path), entry.start_s, entry.end_s, entry.rotate[0]]
        for entry in timelines
    ]
    return digest(content)


def _size(path: Path) -> int:
    """Bytes of a file, or entries of a folder."""
    return path.stat().st_size if path.is_file() else sum(1 for _ in path.iterdir())
