"""What docs/extending.md shows, done from outside the package: its files in a copy of the project, run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import trees
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from uniego_utils.pipeline.ship import SHIPPED_METADATA
from uniego_utils.runs import is_finished

PROJECT = Path(__file__).parents[1]
TEXT = (PROJECT / "docs" / "extending.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```\w+\n# ([\w/.]+)\n(.*?)```", TEXT, re.DOTALL))
LIST = "uniego_utils/pipeline/notebooks.py"
COPIED = ("data_manifests", "notebooks", "profiles", "uniego_utils", "Snakefile")


def as_notebook(cells: str) -> nbformat.NotebookNode:
    """A notebook of cells that are divided by `# %%` lines."""
    notebook = new_notebook(metadata=SHIPPED_METADATA)  # as JupyterLab would write it
    for head, body in re.findall(r"^# %% ?(.*)\n((?:(?!# %%).*\n?)*)", cells, re.MULTILINE):
        if head == "[markdown]":
            notebook.cells.append(new_markdown_cell(re.sub(r"^# ?", "", body, flags=re.MULTILINE).strip()))
        else:
            tags = {"tags": ["parameters"]} if head == "parameters" else {}
            notebook.cells.append(new_code_cell(body.strip(), metadata=tags))
    return notebook


class Project:
    """A copy of the project in which a person has added the page's files."""

    def __init__(self, root: Path):
        self.root = root
        for name in COPIED:
            source = PROJECT / name
            copy = shutil.copytree if source.is_dir() else shutil.copy
            copy(source, root / name)
        for name, content in FILES.items():
            if name == LIST:
                before = (root / name).read_text()
                (root / name).write_text(
                    before.replace("\n)\nREPORT = ", f"\n{content.rstrip()}\n)\nREPORT = ")
                )
            elif name.endswith(".ipynb"):
                nbformat.write(as_notebook(content), root / name)
            else:
                (root / name).write_text(content)
        (root / "videos").mkdir()
        trees.build_folder(root / "videos", exo=False)

    def run(self, *command: str, folder: str = ".") -> str:
        """What a command prints; it sees this copy alone."""
        environment = {**os.environ, "PYTHONPATH": str(self.root), "OMP_NUM_THREADS": "1"}
        ended = subprocess.run(
            [sys.executable, *command],
            cwd=self.root / folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, (ended.stdout + ended.stderr)[-3000:]
        return ended.stdout + ended.stderr

    def notebook(self, name: str, *parameters: str) -> None:
        """Run a notebook small on the new dataset."""
        given = ["dataset", "kitchen", "preset", "smoke", "outputs", "outputs", "data_root", "videos"]
        given += ["interactive", "false", *parameters]
        pairs = [text for pair in zip(given[::2], given[1::2], strict=True) for text in ("-p", *pair)]
        self.run(
            "-m", "uniego_utils.pipeline.runner", "run", f"notebooks/{name}.ipynb", f"{name}.ipynb", *pairs
        )


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    """The copy, after notebooks 00 to 03 on the new dataset, with the new teachers and backbone."""
    project = Project(tmp_path_factory.mktemp("project"))
    project.notebook("00_data")
    project.notebook("01_teacher_extraction", "teacher", "each")
    project.notebook("02_proxy", "teacher", "each")
    project.notebook("03_merging", "merges", "[merged]", "blends", "0")
    return project


def test_the_page_shows_one_of_each():
    assert FILES.keys() == {
        "data_manifests/kitchen.yaml",
        "notebooks/brightness.py",
        "notebooks/frame_average.py",
        "notebooks/my_students.py",
        "notebooks/30_margins.ipynb",
        LIST,
    }
    longest = max(len(content.splitlines()) for content in FILES.values())
    assert longest <= 60, "an example is a screen at most"


def test_a_dataset_with_teachers_and_a_backbone_from_outside(project):
    folder = project.root / "outputs" / "kitchen"
    students = ("ego_brightness", "ego_colour", "ego", "naive")
    assert all(is_finished(folder / "02_proxy" / "seed0" / name) for name in students)
    assert is_finished(folder / "03_merging" / "seed0" / "merged")


def test_a_student_and_a_rival_from_outside(project):
    printed = project.run("notebooks/my_students.py")
    assert "UNIEGO" not in printed or "validation (%)" in printed
    folder = project.root / "outputs" / "kitchen" / "04_spd" / "seed0"
    assert all(is_finished(folder / name) for name in ("uniego_twice", "margin"))
    again = project.run("notebooks/my_students.py")
    assert "finished before, reused" in again


def test_a_notebook_is_a_file_and_a_line(project):
    project.notebook("30_margins")
    written = project.root / "outputs" / "kitchen" / "30_margins" / "seed0" / "margins.csv"
    assert pd.read_csv(written)["margin"].between(0, 1).all()
    for profile in ("default", "slurm"):
        options = [
            "--profile",
            f"profiles/{profile}",
            "--executor",
            "local",
            "--dry-run",
            "--quiet",
            "reason",
        ]
        settings = ["dataset=kitchen", "preset=smoke", "seeds=[0]", "data_root=videos"]
        planned = project.run("-m", "snakemake", *options, "--config", *settings)
        job = re.search(r"^rule 30_margins:\n(?:.+\n)+", planned, re.MULTILINE)
        assert job and "mem_mb=8000" in job[0] and "runtime=30" in job[0] and "gpu=0" in job[0]
