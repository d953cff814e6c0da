"""What lies on disk: every video's length, rate, size and faults, found out once and kept in a table."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import decord
import pandas as pd
from PIL import Image
from tqdm.auto import tqdm

from uniego_utils.runs import written_whole
from uniego_utils.video import SPAN_TOLERANCE_S, list_pictures

COLUMNS = ("bytes", "mtime", "fps", "frames", "seconds", "width", "height", "rotation", "fault")
FLUSH_EVERY = 300  # files looked at between two writes of the cache
ABSENT, EMPTY = "absent", "empty file"


def inspect_videos(
    paths: Iterable[str], root: Path, cache: Path, workers: int = 4, progress: bool = True
) -> pd.DataFrame:
    """Look at every video once; a second run only looks at files that are new or have changed.

    Args:
        paths: video files or folders of numbered pictures, relative to `root`.
        cache: CSV that keeps what was found, by path, modification time and (files) size.
        workers: files looked at in parallel.

    Returns:
        One row a path, indexed by it: `bytes`; `mtime` in nanoseconds; `fps`, `seconds` (NaN for folders,
        whose rate only their dataset knows); `frames` that can be decoded; `width` and `height` in pixels as
        decord gives them; `rotation`, the degrees clockwise by which the file's header asks its pictures to
        be turned (decord has turned them already); `fault`, None or one short reason: `absent`, `empty file`,
        `unreadable: ...`, `truncated: ...`, `frame gap: ...`.
    """
    paths, root, cache = sorted(set(paths)), Path(root), Path(cache)
    known = _read_cache(cache)
    stamps = {path: _stamp(root / path) for path in paths}
    todo = [path for path in paths if stamps[path] and not _unchanged(known.get(path), stamps[path])]
    with ThreadPoolExecutor(workers) as pool:
        found = pool.map(lambda path: _inspect(root / path), todo)
        found = tqdm(found, "inspect videos", len(todo), disable=not progress, leave=False)
        for number, (path, row) in enumerate(zip(todo, found, strict=True), start=1):
            known[path] = row
            if number % FLUSH_EVERY == 0:
                _write_cache(cache, known)
    if todo or not cache.is_file():
        _write_cache(cache, known)
    rows = [known[path] if stamps[path] else {"fault": ABSENT} for path in paths]
    return _table(dict(zip(paths, rows, strict=True)))


def _stamp(path: Path) -> tuple[int, int | None] | None:
    """Modification time and size (None for folders: it would take all their pictures); None: absent."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_mtime_ns, None if path.is_dir() else status.st_size


def _unchanged(row: dict | None, stamp: tuple[int, int | None]) -> bool:
    return row is not None and row["mtime"] == stamp[0] and stamp[1] in (None, row["bytes"])


def _read_cache(cache: Path) -> dict[str, dict]:
    if not cache.is_file():
        return {}
    table = pd.read_csv(cache, dtype={"path": str, "fault": str}, keep_default_na=True)
    if list(table) != ["path", *COLUMNS]:
        return {}  # of an older version: look again
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
    if size == 0:
        return row | {"fault": EMPTY}
    return row | (_inspect_folder(path) if size is None else _inspect_file(path))


def _inspect_folder(folder: Path) -> dict:
    pictures, absent = list_pictures(folder)
    row = {"bytes": sum(picture.stat().st_size for picture in pictures), "frames": len(pictures)}
    if not pictures:
        return row | {"fault": "unreadable: no numbered pictures"}
    if absent is not None:
        return row | {"fault": f"frame gap: no picture {absent}"}
    try:
        for path in (pictures[0], pictures[-1]):
            with Image.open(path) as picture:
                picture.load()
                width, height = picture.size
    except OSError:
        return row | {"fault": f"unreadable: picture {path.name}"}
    return row | {"width": width, "height": height, "rotation": 0}


def _inspect_file(path: Path) -> dict:
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                return {"fault": "unreadable: no video stream"}
            stream = container.streams.video[0]
            announced = stream.frames  # by the header; 0 where the format does not say
            picture = next(container.decode(stream))
    except (av.FFmpegError, StopIteration) as error:
        return {"fault": f"unreadable: {getattr(error, 'strerror', None) or 'no picture'}"}
    try:
        reader = decord.VideoReader(str(path), num_threads=1)
        frames, fps = len(reader), reader.get_avg_fps()
    except (RuntimeError, decord.DECORDError):
        return {"fault": "unreadable: no picture can be decoded"}
    rotation = -picture.rotation % 360  # the header counts counter-clockwise
    sides = (picture.width, picture.height) if rotation % 180 == 0 else (picture.height, picture.width)
    row = {
        "fps": fps,
        "frames": frames,
        "seconds": frames / fps,
        "width": sides[0],
        "height": sides[1],
        "rotation": rotation,
    }
    # decord counts the frames that are there, the header those that should be. Edit lists and rounding make
    # whole files differ by a frame or two; a half-downloaded one lacks more.
    if frames < announced - SPAN_TOLERANCE_S * fps:
        return row | {"fault": f"truncated: {frames} of {announced} frames"}
    return row
