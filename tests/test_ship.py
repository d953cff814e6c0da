"""Shipping: notebooks get the outputs of their execution, and nothing of the machine it ran on."""

from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_output
from toy_notebooks import printed, write_toy

from uniego_utils.pipeline.ship import SHIPPED_METADATA, WIDGET, main, ship


@pytest.fixture
def project(tmp_path):
    """A project with two toy notebooks; returns it with a function that fakes the execution of one."""
    write_toy(tmp_path / "notebooks" / "00_data.ipynb", "print('hello')\n3")
    write_toy(tmp_path / "notebooks" / "02_proxy.ipynb", "print('hello')\n3")

    def execute(name: str, *outputs, folder: str = "", change: str = "") -> None:
        executed = nbformat.read(tmp_path / "notebooks" / name, as_version=4)
        executed.metadata["papermill"] = {"duration": 61.25, "start_time": "2026"}
        executed.metadata["widgets"] = {"state": {}}
        code = executed.cells[-1]
        code.source += change
        code.metadata = {"papermill": {"duration": 1.0}, "tags": ["hide"], "execution": {"iopub": "2026"}}
        code.outputs, code.execution_count = list(outputs), 9
        injected = new_code_cell("seed = 1", metadata={"tags": ["injected-parameters"]})
        executed.cells.insert(2, injected)
        path = tmp_path / "executed" / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(executed, path)

    return tmp_path, execute


HELLO = new_output("stream", name="stdout", text="hello\n")
THREE = new_output("execute_result", data={"text/plain": "3"}, execution_count=9, metadata={"x": 1})


def test_ships_outputs_and_nothing_that_differs_between_runs(project):
    folder, execute = project
    notebooks = folder / "notebooks"
    source = nbformat.read(notebooks / "00_data.ipynb", as_version=4)
    time_before = (notebooks / "00_data.ipynb").stat().st_mtime_ns
    bar = new_output("stream", name="stdout", text="10%\r100%\ndone\n")
    warning = new_output("stream", name="stderr", text=f"{Path.home()}: deprecated")
    widget = new_output("display_data", data={WIDGET: {"model_id": "f00"}, "text/plain": "bar"})
    execute("00_data.ipynb", HELLO, warning, widget, bar, THREE)

    assert ship(folder / "executed", notebooks) == [notebooks / "00_data.ipynb"]
    text = (notebooks / "00_data.ipynb").read_text()
    shipped = nbformat.read(notebooks / "00_data.ipynb", as_version=4)
    nbformat.validate(shipped)
    assert [cell.source for cell in shipped.cells] == [cell.source for cell in source.cells]
    assert [cell.metadata for cell in shipped.cells] == [{}, {"tags": ["parameters"]}, {}]
    assert shipped.metadata == SHIPPED_METADATA
    joined, three = shipped.cells[-1].outputs
    assert joined.text == "hello\n100%\ndone\n"
    assert (three.execution_count, three.metadata) == (2, {})
    assert (notebooks / "00_data.ipynb").stat().st_mtime_ns == time_before, "the pipeline would run again"

    ship(folder / "executed", notebooks)
    assert (notebooks / "00_data.ipynb").read_text() == text


def test_ships_the_first_seed(project, capsys):
    folder, execute = project
    for seed in (10, 2):
        execute("02_proxy.ipynb", new_output("stream", text=f"seed {seed}\n"), folder=f"seed{seed}")
    main([str(folder / "executed"), str(folder / "notebooks")])
    assert printed(folder / "notebooks" / "02_proxy.ipynb") == "seed 2\n"
    assert capsys.readouterr().out == f"{folder}/notebooks/02_proxy.ipynb\n"


def test_refuses_to_ship(project):
    folder, execute = project
    before = (folder / "notebooks" / "00_data.ipynb").read_bytes()
    with pytest.raises(SystemExit, match="run `make demo` first"):
        main([str(folder / "executed"), str(folder / "notebooks")])
    execute("02_proxy.ipynb", THREE, folder="seed0")
    for output, complaint in (
        (new_output("stream", text=f"saved {folder}/outputs"), "names"),
        (new_output("display_data", data={"text/html": f"<b>{Path.home()}/x</b>"}), "names"),
        (new_output("error", ename="KeyError", evalue="'label'", traceback=[]), "failed with KeyError"),
        (new_output("stream", text="x" * 500_000), "are allowed"),
    ):
        execute("00_data.ipynb", output)
        with pytest.raises(ValueError, match=complaint):
            ship(folder / "executed", folder / "notebooks")
    execute("00_data.ipynb", change="\n4")
    with pytest.raises(ValueError, match="changed since"):
        ship(folder / "executed", folder / "notebooks")
    assert (folder / "notebooks" / "00_data.ipynb").read_bytes() == before
