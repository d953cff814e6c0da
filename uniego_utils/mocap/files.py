"""Files of the embedded benchmark: h264 videos, folders that appear complete, builds that resume."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import av
import numpy as np
from tqdm.auto import tqdm

from uniego_utils.runs import differences, digest, read_json, write_json


def claim(folder: Path, motions: Path, settings: dict) -> None:
    """Write `settings.json` into `folder`, or check that the one there says the same.

    Raises:
        ValueError: it says something else, that is, what is there was generated from other settings.
    """
    wanted = settings | {"motions_sha256": digest(motions)}
    path = folder / "settings.json"
    if not path.exists():
        write_json(path, wanted)
        return
    changed = differences(read_json(path), wanted)
    if changed:
        listed = "; ".join(f"{name}: {old} there, {new} asked for" for name, (old, new) in changed.items())
        raise ValueError(
            f"{path}: this folder was generated with other settings ({listed}). "
            f"Delete {folder} to generate it anew, or choose another root."
        )


def build_missing(
    build_folder: Callable[..., None], tasks: list[tuple], workers: int, progress: bool, unit: str
) -> None:
    """Call `build_folder(*task)` for every task whose folder, its first argument, does not exist yet.

    Args:
        workers: processes; 1 stays in this one.
        progress: show a bar.
        unit: what a folder holds, for the bar.

    Raises:
        ValueError: `workers` is not positive.
    """
    if workers < 1:
        raise ValueError(f"workers is {workers}; it must be at least 1")
    missing = [task for task in tasks if not task[0].is_dir()]
    if not missing:
        return
    arguments = zip(*missing, strict=True)
    with contextlib.ExitStack() as stack:
        if workers == 1 or len(missing) == 1:
            built = map(build_folder, *arguments)
        else:
            # Fresh processes: a forked one could inherit a lock that a notebook's other threads hold.
            executor = stack.enter_context(ProcessPoolExecutor(workers, mp_context=get_context("spawn")))
            built = executor.map(build_folder, *arguments)
        bar = tqdm(built, f"rendering {unit}s", len(missing), unit=unit, disable=not progress)
        for _ in bar:
            pass


@contextlib.contextmanager
def complete_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside `folder`; it becomes `folder` only if the block succeeds."""
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # left behind by an interrupted build
    unfinished.mkdir(parents=True)
    yield unfinished
    unfinished.rename(folder)


def write_mp4(path: Path, frames: np.ndarray, fps: int, crf: int) -> None:
    """Write pictures (frames, n, n, 3) uint8 as h264.

    About one file in seventy came out with other bytes in a second run, from equal pictures: a few pixels,
    mostly of still depth, by a few grey levels. The cause is in the encoder and is not known.
    """
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        # One thread, no B frames: nothing depends on the machine's load. Short groups: quick seeking.
        stream.options = {"crf": str(crf), "preset": "veryfast", "threads": "1", "bf": "0", "g": "8"}
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
