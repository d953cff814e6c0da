"""Run folders: what a run writes, how it is written without half files, and when it may be reused.

A run folder holds `config.json`, `history.jsonl`, `metrics.json`, safetensors files and, written last, the
marker `finished`. Only safetensors, JSON and CSV are ever written or read: no pickles.
"""

import contextlib
import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import safe_open

if TYPE_CHECKING:
    from torch import Tensor  # imported late: seconds and 600 MB, which the pipeline does not need

FINISHED = "finished"  # the marker's file name
FEATURE_PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "decord2",
)  # that teachers' features hang on
RECORDED_PACKAGES = (*FEATURE_PACKAGES, "numpy", "safetensors", "scikit-learn")


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; rename it to `path` only if the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` in one step: readers see the old file or the new one, never a part."""
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, content: dict | list) -> None:
    """Write `content` as indented JSON. Raises ValueError on NaN or infinity, which JSON does not have."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> dict:
    """Read a JSON file; a file that is not JSON is an error that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not valid JSON ({error}); delete it and run its notebook again"
        ) from None


def write_tensors(path: Path, tensors: dict[str, "Tensor"], notes: dict[str, str] | None = None) -> None:
    """Write named tensors and string notes as one safetensors file."""
    from safetensors.torch import save_file

    with written_whole(path) as partial:
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, partial, notes
        )
        partial.chmod(0o644)  # safetensors makes it private, but run folders are shared


def read_tensors(path: Path) -> dict[str, "Tensor"]:
    """Read a safetensors file whole, on the CPU. Raises FileNotFoundError that names what is missing."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist; run the notebook that writes it first")
    from safetensors.torch import load_file

    return load_file(path)


def read_notes(path: Path) -> dict[str, str]:
    """The string notes of a safetensors file, without loading its tensors."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist; run the notebook that writes it first")
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def digest(content: object) -> str:
    """SHA-256 of a file (given as Path), of bytes, or of JSON-like content; hex."""
    if isinstance(content, Path):
        with content.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if not isinstance(content, bytes):
        content = json.dumps(content, sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()


def provenance() -> dict[str, str]:
    """Who computed this: git commit ("unknown" outside a checkout), time in UTC, library versions."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "rev-parse", "HEAD"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    versions = {package: metadata.version(package) for package in RECORDED_PACKAGES}
    return {"commit": commit, "written": datetime.now(UTC).isoformat(timespec="seconds"), **versions}


def run_name(seed: int, **changed: object) -> str:
    """Folder name of a run: its seed and whatever was changed from the card, e.g. `seed0-k=2`.

    So a changed parameter gets a folder of its own, and earlier results stay.
    """
    parts = [f"{name}={value}" for name, value in changed.items() if value is not None]
    return "-".join([f"seed{seed}", *parts])


def changed_settings(usual: dict, given: dict) -> dict[str, object]:
    """What in `given` differs from `usual`, for `run_name`; lists are joined by commas."""
    return {
        name: ",".join(map(str, value)) if isinstance(value, list) else value
        for name, value in given.items()
        if value != usual[name]
    }


def differences(before: dict, after: dict) -> dict[str, tuple[object, object]]:
    """What differs between two configurations: name -> both values; None stands for one that is missing."""
    names = sorted(before.keys() | after.keys())
    pairs = {name: (before.get(name), after.get(name)) for name in names}
    return {name: (old, new) for name, (old, new) in pairs.items() if old != new}


def is_finished(folder: Path) -> bool:
    """Whether a run folder carries the marker that is written last."""
    return (Path(folder) / FINISHED).is_file()


def start_run(folder: Path, config: dict, cure: str = "Delete that folder to run anew") -> bool:
    """Open a run folder for `config`. True: finished before with this very config, so reuse it.

    Raises:
        ValueError: the folder belongs to another config; the message lists what differs and the cure.
    """
    folder = Path(folder)
    config = json.loads(json.dumps(config))  # as it will be read back: tuples become lists
    path = folder / "config.json"
    if path.is_file():
        changed = differences(read_json(path)["config"], config)
        if changed:
            lines = "\n".join(f"  {name}: {old!r} -> {new!r}" for name, (old, new) in changed.items())
            raise ValueError(
                f"{folder} was made with another configuration:\n{lines}\n"
                f"{cure}, or write elsewhere with the parameter `outputs`."
            )
    else:
        write_json(path, {"config": config, "provenance": provenance()})
    return is_finished(folder)


def finish_run(folder: Path, metrics: dict) -> None:
    """Write `metrics.json`, then the marker."""
    write_json(Path(folder) / "metrics.json", metrics)
    write_text(Path(folder) / FINISHED, "")


def require_finished(folder: Path, cure: str) -> Path:
    """The folder, if its run is finished; otherwise an error that says how to make it."""
    if not is_finished(folder):
        raise FileNotFoundError(f"{folder} is missing or unfinished; {cure}")
    return Path(folder)
