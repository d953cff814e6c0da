"""Small notebooks in the suite's shape, for tests of what runs and ships notebooks."""

from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from uniego_utils.pipeline.ship import SHIPPED_METADATA

PARAMETERS = """\
name: str = "toy"  # of nothing
seed: int = 0  # of nothing
lr: float = 0.1  # per step
flag: bool = True  # up or down
seeds: list = [0]  # several
"""


def write_toy(path: Path, *code: str, parameters: str = PARAMETERS) -> Path:
    """A notebook in the suite's shape: opening, parameters, then `code` cells."""
    declaring = new_code_cell(parameters.strip(), metadata={"tags": ["parameters"]})
    cells = [new_markdown_cell("# 00 · Toy?"), declaring, *map(new_code_cell, code)]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells, metadata=SHIPPED_METADATA), path)
    return path


def printed(path: Path) -> str:
    """Everything that an executed notebook printed."""
    cells = nbformat.read(path, as_version=4).cells
    return "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))
