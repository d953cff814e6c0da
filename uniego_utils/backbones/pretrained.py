"""Pretrained weights: where they come from, read without running code, refused where they do not fit.

A notebook's parameter `weights` is "" (the Hugging Face hub, cached after the first download) or a local
file or folder, e.g. one folder with an entry for every pretrained model.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import SafetensorError
from torch import Tensor, nn

from uniego_utils.data.tables import list_some
from uniego_utils.runs import read_json
from uniego_utils.unpickle import read_checkpoint

CHECKPOINTS = ("model.safetensors", "pytorch_model.bin")  # what the hub's repositories call their weights
SUFFIXES = (".safetensors", ".pth", ".pyth", ".pt", ".bin")
CONTAINERS = ("model_state", "state_dict", "model")  # where training checkpoints keep the weights


def find_weights(name: str, weights: str) -> Path | None:
    """Where the weights of the model `name` lie locally; None: take them from the hub.

    Args:
        name: a model's name or a hub repository; what follows its last slash is looked for.
        weights: "", a file, a checkpoint's folder, or a folder with an entry called like the model: a
            checkpoint's folder, or a file with one of `SUFFIXES` (tried in that order).

    Raises:
        FileNotFoundError: no such path, or nothing in the folder fits; says what is there and what is
            expected.
    """
    if not weights:
        return None
    place, short = Path(weights), name.rpartition("/")[2]
    if not place.exists():
        raise FileNotFoundError(f"weights={weights!r} does not exist; put {short} there or leave it empty")
    if place.is_file():
        return place
    for entry in (place / short, *(place / f"{short}{suffix}" for suffix in SUFFIXES)):
        if entry.exists():
            return entry
    if any((place / file).is_file() for file in (*CHECKPOINTS, "config.json")):
        return place
    raise FileNotFoundError(
        f"weights={weights!r} has nothing for {name}: it holds {_listing(place)}; "
        f"put there a folder {short} or a file {short}{' | '.join(SUFFIXES)}"
    )


def locate_weights(
    repository: str,
    weights: str,
    revision: str | None = None,
    choices: Sequence[Sequence[str]] = tuple((file,) for file in CHECKPOINTS),
) -> Path:
    """The file or folder with a pretrained model: local where `weights` says so, else a hub repository's.

    The hub's files are downloaded once, to its cache (below HF_HOME); with HF_HUB_OFFLINE=1 never.

    Args:
        choices: lists of files; the first list that the hub's repository has completely is taken. So
            safetensors are preferred to a pickle, which `read_weights` reads without running code.

    Raises:
        FileNotFoundError: see `find_weights`; or neither the hub nor its cache had them. Names the cures.
    """
    if (place := find_weights(repository, weights)) is not None:
        return place
    for files in choices:
        try:  # of a snapshot, because a single file's download retries for half a minute without network
            folder = Path(snapshot_download(repository, revision=revision, allow_patterns=list(files)))
        except LocalEntryNotFoundError:
            continue
        if all((folder / file).is_file() for file in files):
            return folder
    raise FileNotFoundError(
        f"{repository}: neither the hub nor its cache here gave {' or '.join(map(', '.join, choices))}; "
        f"set weights=<a local file, or a folder with an entry {repository.rpartition('/')[2]}>, or run once "
        f"with network"
    )


def read_weights(path: Path) -> dict[str, Tensor]:
    """The named tensors of a checkpoint, on the CPU; of a training checkpoint its model's.

    Args:
        path: a safetensors file, a file written by `torch.save`, or a folder that holds one of `CHECKPOINTS`.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: damaged, or other Python objects than tensors in it (they are never loaded).
    """
    path = Path(path)
    if path.is_dir():
        checkpoints = [path / file for file in CHECKPOINTS if (path / file).is_file()]
        if not checkpoints:
            raise FileNotFoundError(f"{path} holds {_listing(path)}, but none of {', '.join(CHECKPOINTS)}")
        path = checkpoints[0]
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; download these weights again")
    content = read_checkpoint(path, "save its tensors alone as safetensors and give that file")
    for container in CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(container), Mapping):
            content = content[container]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(
            f"{path} holds no mapping of names to tensors; save the model's `state_dict()` as safetensors"
        )
    return dict(content)


def load_exactly(model: nn.Module, state: Mapping[str, Tensor], path: Path | str, name: str) -> None:
    """Load `state` into `model`, all of it and nothing else.

    Args:
        path: where the weights come from, for the message.
        name: the model they should be of, for the message.

    Raises:
        ValueError: names missing, left over or of other shapes; the first of each are named.
    """
    expected = model.state_dict()
    problems = []
    if missing := [entry for entry in expected if entry not in state]:
        problems.append(f"{len(missing)} missing (first {missing[0]})")
    if unexpected := [entry for entry in state if entry not in expected]:
        problems.append(f"{len(unexpected)} unexpected (first {unexpected[0]})")
    if other := [
        entry for entry in expected if entry in state and expected[entry].shape != state[entry].shape
    ]:
        first = other[0]
        shapes = f"{tuple(state[first].shape)} instead of {tuple(expected[first].shape)}"
        problems.append(f"{len(other)} of another shape (first {first}, {shapes})")
    if broken := [entry for entry, value in state.items() if not value.isfinite().all()]:
        problems.append(f"{len(broken)} with values that are not finite (first {broken[0]})")
    if problems:
        raise ValueError(f"{path} does not fit {name}: {'; '.join(problems)}; give the weights of that model")
    model.load_state_dict(state)


def load_transformers(
    kind: type[nn.Module],
    folder: Path,
    name: str,
    files: Sequence[str] = ("config.json", CHECKPOINTS[0]),
) -> nn.Module:
    """A model of transformers' class `kind` from a local folder, whole and in float32.

    Args:
        folder: as `save_pretrained` writes it.
        name: the model it should be, for messages.
        files: what the folder must hold.

    Raises:
        FileNotFoundError: the folder lacks a file.
        ValueError: weights of another model, or entries missing or of other shapes; transformers itself would
            go on with random ones. Entries that the model does not use are ignored: releases carry some.
    """
    folder = Path(folder)
    if missing := [file for file in files if not (folder / file).is_file()]:
        raise FileNotFoundError(f"{folder} should be a folder of {name}, but lacks {', '.join(missing)}")
    model_type = read_json(folder / "config.json").get("model_type")
    if model_type != kind.config_class.model_type:
        raise ValueError(f"{folder} does not fit {name}: its config.json is of a {model_type!r} model")
    try:
        model, report = kind.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # they are reported, and refused below
            output_loading_info=True,
        )
    except SafetensorError as error:
        raise ValueError(f"{folder / CHECKPOINTS[0]} is damaged ({error}); download it again") from None
    for problem in ("missing_keys", "mismatched_keys"):
        if entries := sorted(map(str, report[problem])):
            raise ValueError(
                f"{folder} does not fit {name}: {len(entries)} {problem.replace('_', ' ')} "
                f"(first {entries[0]}); download it again"
            )
    return model


def state_digest(model: nn.Module | Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) over names, types, shapes and bytes of all tensors, in the order of their names."""
    state = model.state_dict() if isinstance(model, nn.Module) else model
    total = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def _listing(folder: Path) -> str:
    return list_some(sorted(entry.name for entry in folder.iterdir())) or "nothing"
