"""The suite's contract: what a reader finds in every notebook, and that all run, in every way promised.

The pipeline runs once, with the preset `smoke`; what comes after works on what it left.
"""

import ast
import io
import os
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell

from uniego_utils.parameters import check_value
from uniego_utils.pipeline.notebooks import LABELS_ALONE, NOTEBOOKS, USUAL, declared_parameters
from uniego_utils.pipeline.runner import run_notebook
from uniego_utils.pipeline.ship import MAX_SHIPPED_BYTES
from uniego_utils.report.page import main as make_page
from uniego_utils.runs import FINISHED

PROJECT = Path(__file__).parents[1]
PATHS = sorted((PROJECT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
DATASET = "mocap"
TRAINING = ("02_proxy", "03_merging", "04_spd")
# Folders of a machine, not of this project; the lookbehind spares URLs and relative paths.
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/~}])(/(home|Users|root|tmp|var|mnt|opt|srv|work)/\w|[A-Z]:\\\\)")


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_first_screen(path):
    opening, parameters, *rest = nbformat.read(path, as_version=4).cells
    assert opening.source.startswith(f"# {path.stem[:2]} · ")
    assert all(f"**{promise}**" in opening.source for promise in ("Reads", "Writes", "Takes", "Next"))
    assert parameters.metadata.get("tags") == ["parameters"]
    assert not any("parameters" in cell.metadata.get("tags", []) for cell in rest), (
        "only the first one counts"
    )
    check_parameters(parameters.source)
    headings = [line for cell in rest for line in cell.source.splitlines() if line.startswith("## ")]
    assert headings[-1].startswith("## Try this")
    assert rest[-1].cell_type == "markdown"


def check_parameters(source: str) -> None:
    """Every line of a parameters cell is `name: type = literal  # comment`, the literal of that type."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    commented = {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
    for statement in ast.parse(source).body:
        text = ast.unparse(statement)
        assert isinstance(statement, ast.AnnAssign), f"no type: {text}"
        value = ast.literal_eval(statement.value)  # raises ValueError for anything but a literal
        kind = ast.unparse(statement.annotation)
        assert kind != "list", f"of what? {text}"
        assert repr(check_value(statement.target.id, kind, value)) == repr(value)
        assert statement.end_lineno in commented, f"no comment: {text}"


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_is_shipped_with_outputs_and_without_this_machine(path):
    assert path.stat().st_size <= MAX_SHIPPED_BYTES
    cells = nbformat.read(path, as_version=4).cells
    assert any(cell.get("outputs") for cell in cells[2:]), "readers see nothing; run `make notebooks`"
    for cell in cells:
        outputs = [output for output in cell.get("outputs", [])]
        assert all(output.output_type != "error" for output in outputs)
        texts = [cell.source, *(output.get("text", "") for output in outputs)]
        texts += [
            text
            for output in outputs
            for kind, text in output.get("data", {}).items()
            if kind.startswith("text/") or kind.endswith("svg+xml")
        ]
        for text in texts:
            found = ABSOLUTE_PATH.search(text)
            assert found is None and str(PROJECT) not in text, f"a path of one machine in: {text[:300]}"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> Path:
    """The outputs folder of the whole pipeline, run once with the preset `smoke`."""
    folder = tmp_path_factory.mktemp("suite") / "outputs"
    executed = {}
    for notebook in NOTEBOOKS:
        executed[notebook.name] = run_in(folder, notebook.name)
        if notebook.name in TRAINING:  # what 13 to 15 learn from
            run_in(folder, notebook.name, LABELS_ALONE)
    page = folder / DATASET / "10_report" / "index.html"
    make_page([str(executed["10_report"]), str(page)])  # as the pipeline does
    return folder


def run_in(outputs: Path, name: str, regime: str = USUAL) -> Path:
    """Run a notebook small, with everything written below `outputs`; returns the executed notebook."""
    small = {"dataset": DATASET, "preset": "smoke", "seed": 0, "seeds": [0], "teacher": "each"}
    small |= {"outputs": str(outputs), "interactive": False}
    small |= {"pairs": ""} if regime == LABELS_ALONE else {}
    out = outputs / DATASET / "notebooks" / regime / f"{name}.ipynb"
    notebook = PROJECT / "notebooks" / f"{name}.ipynb"
    declared = declared_parameters(notebook)
    parameters = {name: value for name, value in small.items() if name in declared}
    return run_notebook(notebook, out, parameters, threads=1, timeout=600)


def test_pipeline(outputs):
    executed = sorted((outputs / DATASET / "notebooks").glob("*.ipynb"))
    assert [path.name for path in executed] == [path.name for path in PATHS]
    report = outputs / DATASET / "10_report"
    assert (report / "results.txt").read_text().strip()
    page = (report / "index.html").read_text()
    assert "<table" in page and "data:image/png" in page
    assert not re.search(r"(src|href)=.(https?:)?//", page), "the page should need no network"
    leftovers = [path for path in outputs.rglob("*") if path.suffix in (".partial", ".pkl", ".pt")]
    assert not leftovers


def test_plain_papermill_from_another_folder(outputs, tmp_path):
    command = ["-m", "papermill", PROJECT / "notebooks" / "04_spd.ipynb", "out.ipynb", "--no-progress-bar"]
    parameters = ["-p", "preset", "smoke", "-p", "outputs", outputs]
    ended = subprocess.run(
        [sys.executable, *command, *parameters], cwd=tmp_path, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert [path.name for path in tmp_path.iterdir()] == ["out.ipynb"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("sede", "1", "unknown parameter sede; this notebook takes dataset, preset, seed"),
        ("methods", "uniego", "parameter methods should be a list of str (list[str]), got 'uniego'"),
    ],
)
def test_papermill_with_a_wrong_parameter_is_refused(outputs, tmp_path, name, value, message):
    command = ["-m", "papermill", PROJECT / "notebooks" / "04_spd.ipynb", "out.ipynb", "--no-progress-bar"]
    parameters = ["-p", "preset", "smoke", "-p", "outputs", outputs, "-p", name, value]
    ended = subprocess.run(
        [sys.executable, *command, *parameters], cwd=tmp_path, capture_output=True, text=True
    )
    assert ended.returncode != 0
    assert message in ended.stderr


def test_snakemake_measures_what_it_runs(outputs):
    command = ["-m", "snakemake", "--profile", "profiles/default", "--until", "00_data"]
    settings = ["--config", f"outputs={outputs}", f"dataset={DATASET}", "preset=smoke"]
    ended = subprocess.run([sys.executable, *command, *settings], cwd=PROJECT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    taken = pd.read_csv(outputs / DATASET / "benchmarks" / "00_data.tsv", sep="\t").iloc[0]
    assert taken["s"] > 0
    assert 20 < taken["max_rss"] < 100_000
    again = subprocess.run(
        [sys.executable, *command, "--dry-run", *settings], cwd=PROJECT, capture_output=True, text=True
    )
    assert again.returncode == 0 and "00_data" not in again.stderr + again.stdout, "it would be run again"


def files_of_finished_runs(outputs: Path) -> dict[Path, tuple[int, bytes]]:
    """The time and content of scores and weights in every finished run folder."""
    folders = [marker.parent for marker in outputs.rglob(FINISHED)]
    paths = [folder / name for folder in folders for name in ("metrics.json", "model.safetensors")]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in paths if path.is_file()}


def test_nbval_on_the_notebooks_as_shipped_which_reuse_finished_runs(outputs, tmp_path):
    before = files_of_finished_runs(outputs)
    assert before
    small = f"preset = 'smoke'\noutputs = {str(outputs)!r}\ninteractive = False"
    for path in PATHS:
        notebook = nbformat.read(path, as_version=4)
        notebook.cells.insert(2, new_code_cell(small))  # nbval has no parameters
        nbformat.write(notebook, tmp_path / path.name)
    options = ["-p", "no:cacheprovider", "--nbval-lax", "--nbval-current-env", "-q", f"--rootdir={tmp_path}"]
    options += ["-c", os.devnull, tmp_path]
    ended = subprocess.run([sys.executable, "-m", "pytest", *options], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-6000:]
    assert files_of_finished_runs(outputs).items() >= before.items(), "a finished run was made again"


def test_ci_runs_what_the_readme_says():
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    assert "make demo" in readme and "make test" in readme
    assert (PROJECT / ".ci" / "run").read_text().strip().splitlines()[-1] == "make test"
