"""Modules by name: the package's by a short one, those from outside by their dotted path."""

import importlib
from collections.abc import Mapping, Sequence
from types import ModuleType


def find_module(name: str, known: Mapping[str, str], needs: Sequence[str], kind: str) -> ModuleType:
    """The module of a backbone, a teacher or a builder.

    Args:
        name: a key of `known`, or a dotted path such as `mypackage.mymodule`; the module has to lie in the
            notebooks' folder or on PYTHONPATH.
        known: short name -> dotted path.
        needs: what the module has to define.
        kind: what it is called in errors.

    Raises:
        ValueError: no such module, or one that lacks something.
    """
    path = known.get(name, name)
    valid = ", ".join(known)
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if not f"{path}.".startswith(f"{error.name}."):  # something that the module itself imports
            raise
        raise ValueError(
            f"unknown {kind} {name!r}; choose one of {valid}, or give the dotted path of a module that "
            f"Python finds"
        ) from None
    if missing := [need for need in needs if not callable(getattr(module, need, None))]:
        raise ValueError(
            f"{name!r} is no {kind}: {getattr(module, '__file__', path)} lacks {' and '.join(missing)}; "
            f"choose one of {valid}, or add what is missing"
        )
    return module
