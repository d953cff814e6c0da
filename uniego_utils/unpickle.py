"""Pickles read without running code: tensors, arrays and plain containers, and nothing else."""

import codecs
import contextlib
import pickle
import re
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file


def read_checkpoint(path: Path, cure: str) -> object:
    """What a safetensors file or a file written by `torch.save` holds, on the CPU.

    Args:
        path: an existing file; its suffix tells which of the two it is.
        cure: what to do about a file with other objects in it.

    Raises:
        ValueError: damaged, or other Python objects than tensors in it (they are never loaded).
    """
    with _named_errors(path, "tensors", cure):
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)


def read_arrays(path: Path, cure: str) -> object:
    """What a pickle of numpy's arrays and plain containers holds.

    Args:
        path: an existing file.
        cure: what to do about a file with other objects in it.

    Raises:
        ValueError: damaged, or other Python objects than arrays in it (they are never loaded).
    """
    with _named_errors(path, "arrays", cure), path.open("rb") as file:
        return _ArrayUnpickler(file).load()


@contextlib.contextmanager
def _named_errors(path: Path, kind: str, cure: str) -> Iterator[None]:
    """Turns what readers raise on a bad file into a ValueError that names the file."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # damaged bytes make the readers raise nearly anything
        if foreign := re.search(r"GLOBAL (\S+)", str(error)):
            raise ValueError(
                f"{path} holds other Python objects than {kind} ({foreign[1]}), and loading them could run "
                f"code; where you trust it, {cure}"
            ) from None
        silent = "it asks for too much memory" if isinstance(error, MemoryError) else "it ends early"
        reason = (str(error).strip().splitlines() or [silent])[0][:160]
        raise ValueError(f"{path} is damaged or of another format ({reason}); download it again") from None


class _Type:
    """Stands for numpy's dtype in a pickle: numpy itself would take a forged state, and crash or worse."""

    def __init__(self, code: str, *_: object):
        self.type = np.dtype(code)
        if self.type.kind not in "biufUS":
            raise pickle.UnpicklingError(f"an array of {code}")

    def __setstate__(self, state: tuple) -> None:
        self.type = self.type.newbyteorder(state[1])


class _Array:
    """Stands for numpy's array in a pickle."""

    values: np.ndarray

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, fortran, data = state
        self.values = _from_buffer(data, kind, shape, "F" if fortran else "C")

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.values, dtype, copy=copy)


def _from_buffer(data: bytes, kind: _Type, shape: tuple[int, ...], order: str) -> np.ndarray:
    return np.frombuffer(data, kind.type).reshape(shape, order=order)


def _scalar(kind: _Type, data: bytes) -> np.generic:
    return np.frombuffer(data, kind.type)[0]


ALLOWED = {  # all that a pickle may name: what arrays and plain containers are made of
    ("numpy", "dtype"): _Type,
    ("numpy", "ndarray"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): codecs.encode,  # how Python 3 writes bytes for Python 2
    **{("builtins", kind.__name__): kind for kind in (set, frozenset, bytes, list, dict)},
    **{("collections", kind.__name__): kind for kind in (OrderedDict, defaultdict)},
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        """What `module.name` stands for; numpy 1 and Python 2 called some modules otherwise."""
        place = module.replace("numpy.core.", "numpy._core.").replace("__builtin__", "builtins")
        if (place, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")  # worded as torch does
        return ALLOWED[place, name]
