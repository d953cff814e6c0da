"""What the documents say of the house is true: links and paths lead somewhere, every room is named."""

import re
from pathlib import Path

import nbformat
import pytest

from uniego_utils.cards import CARDS, PROJECT

PACKAGE = PROJECT / "uniego_utils"
DOCUMENTS = [
    *(PROJECT / page for page in ("README.md", "docs/extending.md", "outputs/README.md")),
    *sorted(CARDS.rglob("README.md")),
    *sorted(CARDS.glob("*.yaml")),
    *sorted((PROJECT / "notebooks").glob("[0-9][0-9]_*.ipynb")),
]


def text_of(path: Path) -> str:
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    cells = nbformat.read(path, as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def module_exists(dotted: str) -> bool:
    """Whether `uniego_utils.x.y` is a module, or a name that one defines."""
    place, (*folders, name) = PACKAGE, dotted.split(".")[1:]
    for folder in folders:
        file, place = place / f"{folder}.py", place / folder
        if file.is_file():
            return re.search(rf"\b{name}\b", file.read_text(encoding="utf-8")) is not None
    return (place / name).is_dir() or (place / f"{name}.py").is_file()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(PROJECT)))
def test_links_and_paths_lead_somewhere(path):
    text = text_of(path)
    links = re.findall(r"\]\((?!\w+:|#)([^)#]+)", text) if path.suffix != ".yaml" else []
    assert [link for link in links if not (path.parent / link).exists()] == []
    places = re.findall(r"\buniego_utils/[\w/]*(?:\.py)?", text)
    assert [place for place in places if not (PROJECT / place).exists()] == []
    modules = re.findall(r"\buniego_utils\.[a-z_]\w*(?:\.\w+)*", text)
    assert [module for module in modules if not module_exists(module)] == []


def test_the_readme_names_every_file_of_the_ground_plan_and_every_wing():
    house = text_of(PROJECT / "README.md").partition("## How it is built")[2].partition("\n## ")[0]
    named = {name for row in re.findall(r"^\|(.*?)\|", house, re.M) for name in re.findall(r"`(.+?)`", row)}
    files = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py"}
    wings = {f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")}
    assert named == files | wings
