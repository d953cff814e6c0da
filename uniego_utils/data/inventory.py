"""The inventory: length, rate, size and faults of every video on disk, measured once and kept in a table."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pandas as pd
from PIL import Image
from tqdm.auto import tqdm

from uniego_utils.data.video import PICTURE, SPAN_TOLERANCE_S, VideoError, list_pictures, open_video
from uniego_utils.runs import written_whole

COLUMNS = ("bytes", "mtime", "fps", "frames", "seconds", "width", "height", "rotation", "fault")
FLUSH_EVERY = 300  # files inspected between two writes of the cache
RATE_TOLERANCE_S = 0.1  # frames may be off an even rate by so much: clips are cut by time
ABSENT, EMPTY = "absent", "empty file"


def inspect_videos(
    paths: Iterable[str], root: Path, cache: Path, workers: int = 4, progress: bool = True
) -> pd.DataFrame:
    """Inspect every video once; a second run only opens files that are new or have changed.

    Args:
        paths: video files or folders of numbered pictures, relative to `root`.
        cache: CSV that keeps the results, by path, modification time and size.
        workers: files inspected in parallel.

    Returns:
        One row a path, indexed by it: `bytes`; `mtime` in nanoseconds; `fps`, `seconds` (NaN for folders,
        whose rate only their dataset knows); `frames` that can be decoded; `width` and `height` in pixels as
        decord gives them; `rotation`, the degrees clockwise by which the file's header asks its pictures to
        be turned (decord has turned them already); `fault`, None or one short reason: `absent`, `empty file`,
        `unreadable: ...`, `truncated: ...`, `frame gap: ...`, `variable frame rate: ...`.
    """
    paths, root, cache = sorted(set(paths)), Path(root), Path(cache)
    known = _read_cache(cache)
    stamps = {path: _stamp(root / path) for path in paths}
    unchanged = {path for path, row in known.items() if stamps.get(path) == (row["mtime"], row["bytes"])}
    todo = [path for path in paths if stamps[path] and path not in unchanged]
    with ThreadPoolExecutor(workers) as executor:
        results = executor.map(lambda path: _inspect(root / path), todo)
        results = tqdm(results, "inspect videos", len(todo), disable=not progress, leave=False)
        for number, (path, row) in enumerate(zip(todo, results, strict=True), start=1):
            known[path] = row
            if number % FLUSH_EVERY == 0:
                _write_cache(cache, known)
    if todo or not cache.is_file():
        _write_cache(cache, known)
    rows = [known[path] if stamps[path] else {"fault": ABSENT} for path in paths]
    return _table(dict(zip(paths, rows, strict=True)))


def _stamp(path: Path) -> tuple[int, int] | None:
    """Modification time and size; of a folder its latest picture's and the sum of all. None: absent."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not path.is_dir():
        return status.st_mtime_ns, status.st_size
    with os.scandir(path) as entries:
        pictures = [entry.stat() for entry in entries if PICTURE.search(entry.name)]
    latest = max((picture.st_mtime_ns for picture in pictures), default=0)
    return max(status.st_mtime_ns, latest), sum(picture.st_size for picture in pictures)


def _read_cache(cache: Path) -> dict[str, dict]:
    if not cache.is_file():
        return {}
    table = pd.read_csv(cache, dtype={"path": str, "fault": str}, keep_default_na=True)
    if list(table) != ["path", *COLUMNS]:
        return {}  # of an older version: inspect again
    return {row.pop("path"): row for row in table.to_dict("records")}


def _write_cache(cache: Path, rows: dict[str, dict]) -> None:
    with written_whole(cache) as partial:
        _table(rows).to_csv(partial, index_label="path")


def _table(rows: dict[str, dict]) -> pd.DataFrame:
    table = pd.DataFrame.from_dict(rows, orient="index", columns=COLUMNS)
    # pandas would make the None of sound files NaN, which counts as true
    table["fault"] = table["fault"].astype(object).where(table["fault"].notna(), None)
    whole = ("bytes", "mtime", "frames", "width", "height", "rotation")
    return table.astype({"fps": float, "seconds": float} | dict.fromkeys(whole, "Int64"))


def _inspect(path: Path) -> dict:
    mtime, size = _stamp(path)
    row = dict.fromkeys(COLUMNS) | {"bytes": size, "mtime": mtime}
    if path.is_dir():
        return row | _inspect_folder(path)
    return row | ({"fault": EMPTY} if size == 0 else _inspect_file(path))


def _inspect_folder(folder: Path) -> dict:
    pictures, absent = list_pictures(folder)
    row = {"frames": len(pictures)}
    if not pictures:
        return row | {"fault": "unreadable: no numbered pictures"}
    if absent is not None:
        return row | {"fault": f"frame gap: no picture {absent}"}
    if broken := next((path for path in pictures if not _is_whole(path)), None):
        return row | {"fault": f"unreadable: picture {broken.name}"}
    try:
        for path in (pictures[0], pictures[-1]):
            with Image.open(path) as picture:
                picture.load()
                width, height = picture.size
    except OSError:
        return row | {"fault": f"unreadable: picture {path.name}"}
    return row | {"width": width, "height": height, "rotation": 0}


def _is_whole(picture: Path) -> bool:
    """Whether a picture has content and, of a JPG, its end marker: decoding all of them would take days."""
    with picture.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if picture.suffix.lower() not in (".jpg", ".jpeg"):
            return size > 0
        file.seek(max(0, size - 64))
        return b"\xff\xd9" in file.read()


def _inspect_file(path: Path) -> dict:
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                return {"fault": "unreadable: no video stream"}
            stream = container.streams.video[0]
            announced = stream.frames  # by the header; 0 where the format does not say
            duration_s = container.duration / av.time_base if container.duration else 0.0
            picture = next(container.decode(stream))
            container.seek(0)
            stamps = sorted(packet.pts for packet in container.demux(stream) if packet.pts is not None)
            times = np.array(stamps) * float(stream.time_base)  # seconds
    except (av.FFmpegError, StopIteration) as error:
        return {"fault": f"unreadable: {getattr(error, 'strerror', None) or 'no picture'}"}
    try:
        video = open_video(path)
    except VideoError:
        return {"fault": "unreadable: no picture can be decoded"}
    frames, fps = video.frames, video.fps
    rotation = -picture.rotation % 360  # the header counts counter-clockwise
    sides = (picture.width, picture.height) if rotation % 180 == 0 else (picture.height, picture.width)
    row = {
        "fps": fps,
        "frames": frames,
        "seconds": video.seconds,
        "width": sides[0],
        "height": sides[1],
        "rotation": rotation,
    }
    # decord counts the frames that are there, the header those that should be. Edit lists and rounding make
    # whole files differ by a frame or two; a half-downloaded one lacks more.
    announced = announced or round(duration_s * fps)
    if frames < announced - SPAN_TOLERANCE_S * fps:
        return row | {"fault": f"truncated: {frames} of {announced} frames"}
    if len(times) and np.abs(times - times[0] - np.arange(len(times)) / fps).max() > RATE_TOLERANCE_S:
        return row | {"fault": "variable frame rate: encode it anew at a constant one"}
    return row
