"""The runner: what it refuses, what it leaves behind, and what dies with it."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from uniego_utils.pipeline import runner

PARAMETERS = """\
name: str = "toy"  # of nothing
seed: int = 0  # of nothing
lr: float = 0.1  # per step
flag: bool = True  # up or down
seeds: list = [0]  # several
"""
PROJECT = Path(__file__).parents[1]
RUN = [sys.executable, "-m", "uniego_utils.pipeline.runner", "run"]


def write_toy(path: Path, *code: str) -> Path:
    """A notebook in the suite's shape: opening, parameters, then `code` cells."""
    parameters = new_code_cell(PARAMETERS.strip(), metadata={"tags": ["parameters"]})
    cells = [new_markdown_cell("# 00 · Toy?"), parameters, *map(new_code_cell, code)]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells, metadata=runner.SHIPPED_METADATA), path)
    return path


def printed(path: Path) -> str:
    """Everything that an executed notebook printed."""
    cells = nbformat.read(path, as_version=4).cells
    return "".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))


def test_refuses_unknown_parameters_and_lists_the_valid_ones(tmp_path):
    toy = write_toy(tmp_path / "toy.ipynb", "1 / 0")
    with pytest.raises(ValueError, match="no parameter sede; it takes name, seed, lr, flag, seeds"):
        runner.run_notebook(toy, tmp_path / "out.ipynb", {"seed": 1, "sede": 2})
    assert not (tmp_path / "out.ipynb").exists()


def test_reads_parameters_by_their_declared_type(tmp_path):
    toy = write_toy(tmp_path / "toy.ipynb")
    texts = {"name": "101", "seed": "3", "lr": "1e-4", "flag": "false", "seeds": "[0, 1]"}
    values = runner.parse_parameters(toy, texts)
    assert values == {"name": "101", "seed": 3, "lr": 1e-4, "flag": False, "seeds": [0, 1]}
    assert runner.parse_parameters(toy, {"name": "no"}) == {"name": "no"}


@pytest.mark.parametrize("wrong", [("seed", "three"), ("seed", "1.5"), ("lr", "fast"), ("seeds", "0")])
def test_refuses_values_of_another_type(tmp_path, wrong):
    toy = write_toy(tmp_path / "toy.ipynb")
    with pytest.raises(ValueError, match=f"parameter {wrong[0]} should be"):
        runner.parse_parameters(toy, dict([wrong]))


def test_passes_parameters_on_and_works_in_the_notebooks_folder(tmp_path, monkeypatch):
    toy = write_toy(tmp_path / "notebooks" / "toy.ipynb", "import os\nprint(repr(seeds), os.getcwd())")
    monkeypatch.chdir(tmp_path)
    out = runner.run_notebook("notebooks/toy.ipynb", "deep/out.ipynb", {"seeds": [2, 3]})
    assert printed(out) == f"[2, 3] {toy.parent}\n"
    assert list(out.parent.iterdir()) == [out]
    notes = nbformat.read(out, as_version=4).metadata.papermill
    assert notes.duration > 0
    assert 20 < notes.peak_memory_mb < 100_000
    assert Path.cwd() == tmp_path


def test_a_failed_notebook_never_takes_the_final_name(tmp_path):
    toy = write_toy(tmp_path / "toy.ipynb", "print('so far')", "# why\nraise KeyError('label')")
    out = tmp_path / "out.ipynb"
    ended = subprocess.run([*RUN, toy, out], capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.startswith("toy.ipynb failed in cell [3] `# why`:\nKeyError: 'label'\n")
    assert "Traceback" not in ended.stderr
    assert not out.exists()
    assert printed(tmp_path / "out.failed.ipynb").startswith("so far")


def test_a_cell_may_not_take_for_ever(tmp_path):
    toy = write_toy(tmp_path / "toy.ipynb", "import time\ntime.sleep(60)")
    with pytest.raises(runner.NotebookFailed, match="took more than 1 s"):
        runner.run_notebook(toy, tmp_path / "out.ipynb", timeout=1)
    assert (tmp_path / "out.failed.ipynb").exists() and not (tmp_path / "out.ipynb").exists()


def test_parallel_runs_get_cores_of_their_own_and_write_only_when_finished(tmp_path):
    code = """
        import os, time
        from pathlib import Path
        Path("{name}.started").touch()
        while len(list(Path().glob("*.started"))) < 2:
            time.sleep(0.05)
        cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ""
        print(cores, os.environ["OMP_NUM_THREADS"], list(Path().glob("*.out.ipynb")))
    """
    runs = []
    for name in ("a", "b"):
        toy = write_toy(tmp_path / f"{name}.ipynb", re.sub("(?m)^ {8}", "", code.format(name=name)))
        runs.append(subprocess.Popen([*RUN, toy, tmp_path / f"{name}.out.ipynb", "--threads", "1"]))
    assert [run.wait(timeout=60) for run in runs] == [0, 0]
    texts = [printed(tmp_path / f"{name}.out.ipynb") for name in ("a", "b")]
    assert all(text.endswith(" 1 []\n") for text in texts)
    if runner.LINUX and len(os.sched_getaffinity(0)) > 1 and "SLURM_JOB_ID" not in os.environ:
        assert texts[0] != texts[1] or "," in texts[0], "both are pinned to one core"


def test_claims_are_exclusive_and_end_with_their_block(tmp_path, monkeypatch):
    monkeypatch.setattr(runner.tempfile, "gettempdir", lambda: str(tmp_path))
    with runner.claimed("core", [0, 1, 2], 2) as first:
        with runner.claimed("core", [0, 1, 2], 2) as second, runner.claimed("core", [0, 1, 2], 1) as third:
            assert (first, second, third) == ([0, 1], [], [2])
    with runner.claimed("core", [0, 1, 2], 3) as all_of_them:
        assert all_of_them == [0, 1, 2]


def test_gets_a_free_gpu_and_no_pinning_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(runner.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with runner.allotted(1, 1) as first, runner.allotted(1, 1) as second:
        taken = [settings.TiedKernelManager for settings in (first, second)]
        assert taken == [{"variables": {"CUDA_VISIBLE_DEVICES": gpu}} for gpu in ("4", "7")]
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    with runner.allotted(1, 1) as settings:
        assert "TiedKernelManager" not in settings


@pytest.mark.skipif(not runner.LINUX, reason="only Linux can tie a process to its parent")
def test_the_kernel_dies_with_a_killed_runner(tmp_path):
    code = (
        "import os, time\nfrom pathlib import Path\nPath('pid').write_text(str(os.getpid()))\ntime.sleep(60)"
    )
    toy = write_toy(tmp_path / "toy.ipynb", code)
    run = subprocess.Popen([*RUN, toy, tmp_path / "out.ipynb"])
    wait_until(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text())
    kernel = int((tmp_path / "pid").read_text())
    assert is_running(kernel)
    run.send_signal(signal.SIGKILL)
    run.wait()
    wait_until(lambda: not is_running(kernel), seconds=3)
    assert not (tmp_path / "out.ipynb").exists()


def wait_until(condition, seconds: float = 30) -> None:
    """Wait for `condition()`; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    """Whether a process exists and is more than a zombie."""
    try:
        return not re.search(r"^State:\s+Z", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_finds_the_modules_behind_a_notebook(tmp_path, monkeypatch):
    monkeypatch.chdir(PROJECT)
    toy = write_toy(tmp_path / "toy.ipynb", "from uniego_utils.merging import merge")
    found = runner.sources_of(toy)
    assert {"uniego_utils/merging.py", "uniego_utils/runs.py", "uniego_utils/training.py"} <= set(found)
    assert "uniego_utils/pipeline/runner.py" not in found


@pytest.fixture
def project(tmp_path):
    """A project with two toy notebooks; returns it with a function that fakes the execution of one."""
    write_toy(tmp_path / "notebooks" / "00_data.ipynb", "print('hello')\n3")
    write_toy(tmp_path / "notebooks" / "02_proxy.ipynb", "print('hello')\n3")

    def execute(name: str, *outputs, folder: str = "", change: str = "") -> None:
        executed = nbformat.read(tmp_path / "notebooks" / name, as_version=4)
        executed.metadata["papermill"] = {"duration": 61.25, "start_time": "2026", "peak_memory_mb": 1234}
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
    widget = new_output("display_data", data={runner.WIDGET: {"model_id": "f00"}, "text/plain": "bar"})
    execute("00_data.ipynb", HELLO, warning, widget, bar, THREE)

    assert runner.ship(folder / "executed", notebooks) == [notebooks / "00_data.ipynb"]
    text = (notebooks / "00_data.ipynb").read_text()
    shipped = nbformat.read(notebooks / "00_data.ipynb", as_version=4)
    nbformat.validate(shipped)
    assert [cell.source for cell in shipped.cells] == [cell.source for cell in source.cells]
    assert [cell.metadata for cell in shipped.cells] == [{}, {"tags": ["parameters"]}, {}]
    assert shipped.metadata == runner.SHIPPED_METADATA
    joined, three = shipped.cells[-1].outputs
    assert joined.text == "hello\n100%\ndone\n"
    assert (three.execution_count, three.metadata) == (2, {})
    assert (notebooks / "00_data.ipynb").stat().st_mtime_ns == time_before, "the pipeline would run again"

    runner.ship(folder / "executed", notebooks)
    assert (notebooks / "00_data.ipynb").read_text() == text


def test_ships_the_first_seed(project):
    folder, execute = project
    for seed in (10, 2):
        execute("02_proxy.ipynb", new_output("stream", text=f"seed {seed}\n"), folder=f"seed{seed}")
    runner.ship(folder / "executed", folder / "notebooks")
    assert printed(folder / "notebooks" / "02_proxy.ipynb") == "seed 2\n"


def test_refuses_to_ship(project):
    folder, execute = project
    before = (folder / "notebooks" / "00_data.ipynb").read_bytes()
    with pytest.raises(FileNotFoundError, match="make demo"):
        runner.ship(folder / "executed", folder / "notebooks")
    execute("02_proxy.ipynb", THREE, folder="seed0")
    for output, complaint in (
        (new_output("stream", text=f"saved {folder}/outputs"), "names"),
        (new_output("display_data", data={"text/html": f"<b>{Path.home()}/x</b>"}), "names"),
        (new_output("error", ename="KeyError", evalue="'label'", traceback=[]), "failed with KeyError"),
        (new_output("stream", text="x" * 500_000), "are allowed"),
    ):
        execute("00_data.ipynb", output)
        with pytest.raises(ValueError, match=complaint):
            runner.ship(folder / "executed", folder / "notebooks")
    execute("00_data.ipynb", change="\n4")
    with pytest.raises(ValueError, match="changed since"):
        runner.ship(folder / "executed", folder / "notebooks")
    assert (folder / "notebooks" / "00_data.ipynb").read_bytes() == before


def test_sums_up(project, capsys):
    folder, execute = project
    execute("00_data.ipynb", folder="../mocap/notebooks")
    execute("02_proxy.ipynb", folder="../mocap/notebooks/seed0")
    report = folder / "mocap" / "10_report"
    with pytest.raises(SystemExit, match="results.txt"):
        runner.main(["summary", str(report)])
    report.mkdir()
    (report / "results.txt").write_text("| method | accuracy |\n")
    runner.main(["summary", str(report)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| method | accuracy |"
    assert [line.split() for line in lines[3:5]] == [
        ["00_data", "61.2", "1.2", "GB"],
        ["seed0/02_proxy", "61.2", "1.2", "GB"],
    ]
    assert lines[5].split()[-1] == "122.5"
    assert lines[-1] == f"Report: {report}/index.html"
