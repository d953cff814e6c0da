"""A notebook's parameters: which names it takes, of which types, and the errors about any others.

The cell tagged `parameters` declares each as `name: type = literal`. papermill, the runner and JupyterLab set
them in different ways, so the values are checked where the notebook opens its experiment, and the runner
checks them before anything starts, by the same rules.
"""

import ast
from collections.abc import Mapping

REQUIRED = {"dataset", "outputs", "interactive"}  # every notebook declares these; only parameters cells do
OPENING = "open_experiment("  # the call that ends the part of a notebook in which parameters are set
LITERALS = (bool, int, float, str, list, tuple, dict, type(None))
JUPYTER_NAMES = {"In", "Out"}  # plain containers that IPython keeps among a notebook's names
WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list",
    "dict": "a dictionary",
}


def check_value(name: str, kind: str, value: object) -> object:
    """The value of a parameter, if it is of the declared type.

    Args:
        kind: as the notebook writes it: `int`, `float`, `bool`, `str`, `dict`, `list`, or e.g. `list[str]`.

    Returns:
        The value; a whole number becomes a float where a float is declared, also within a list.

    Raises:
        TypeError: a value of another type; names the parameter, the type and the value.
    """
    container, _, inner = kind.partition("[")
    item = inner.rstrip("]")
    try:
        if container == "list" and item and type(value) is list:
            return [check_value(name, item, each) for each in value]
        if container == "float" and type(value) is int:
            return float(value)
        if type(value).__name__ == container:
            return value
    except TypeError:
        pass
    wanted = f"{WORDS.get(container, container)}{f' of {item}' if item else ''}"
    raise TypeError(f"parameter {name} should be {wanted} ({kind}), got {value!r}")


def declared_types(names: Mapping[str, object]) -> dict[str, str]:
    """Name -> declared type of a notebook's parameters; `names` are its `globals()`.

    Under IPython they are read off the cell that declared them last; elsewhere off the annotations.
    """
    cells = [annotated_types(cell) for cell in names.get("In", ())]
    cell = _declaring(cells)
    if cell is not None:
        return cells[cell]
    kinds = names.get("__annotations__", {})
    return {name: kind if isinstance(kind, str) else kind.__name__ for name, kind in kinds.items()}


def annotated_types(source: str) -> dict[str, str]:
    """Name -> type of the annotated assignments of a cell."""
    return {
        node.target.id: ast.unparse(node.annotation)
        for node in _nodes(source)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def unknown_parameters(names: Mapping[str, object], declared: Mapping[str, str]) -> set[str]:
    """Plain values among a notebook's `globals()` that were set as parameters and are not declared.

    Under IPython, whose `In` holds the cells run so far, these are the values set from the last declaring
    cell on, up to the cell that opens the experiment: papermill puts what it was given between the two. So
    that cell can be run again although later cells have set values. Elsewhere all plain values are.
    """
    plain = {
        name
        for name, value in names.items()
        # capitals are imported constants
        if isinstance(value, LITERALS) and not name.startswith("_") and not name.isupper()
    } - JUPYTER_NAMES
    cells = list(names.get("In", ()))
    first = _declaring([annotated_types(cell) for cell in cells])
    if first is not None:
        following = range(first + 1, len(cells))
        last = next((place for place in following if OPENING in cells[place]), len(cells))
        plain &= set().union(*map(_assigned, cells[first:last]))
    return plain - declared.keys()


def _declaring(annotated: list[dict[str, str]]) -> int | None:
    """The place of the last cell that declares a notebook's parameters."""
    return max((place for place, types in enumerate(annotated) if types.keys() >= REQUIRED), default=None)


def _assigned(source: str) -> set[str]:
    """Names that a cell assigns."""
    return {
        node.id for node in _nodes(source) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }


def _nodes(source: str) -> list[ast.AST]:
    """The syntax of a cell; nothing where it is no Python."""
    try:
        return list(ast.walk(ast.parse(source)))
    except SyntaxError:
        return []
