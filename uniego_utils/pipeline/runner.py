"""Run notebooks headlessly, ship them with their outputs, and sum up what a pipeline did.

    python -m uniego_utils.pipeline.runner run notebooks/04_spd.ipynb out.ipynb -p k 3 --threads 2
    python -m uniego_utils.pipeline.runner ship outputs/mocap/notebooks notebooks
    python -m uniego_utils.pipeline.runner summary outputs/mocap/10_report

papermill executes; this file adds what parallel and interruptible pipelines need: parameters checked before
anything starts, no race for ports, no kernel that outlives a killed pipeline, no half-made notebook under its
final name, and cores or a GPU for each notebook alone. For Linux and macOS.
"""

import argparse
import contextlib
import copy
import ctypes
import fcntl
import glob
import json
import os
import re
import resource
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import nbformat
import yaml
from jupyter_client.manager import AsyncKernelManager
from nbformat import NotebookNode
from traitlets import Dict, List
from traitlets.config import Config

from uniego_utils.parameters import check_value
from uniego_utils.runs import write_text

LINUX = sys.platform == "linux"
LIBC = ctypes.CDLL(None) if LINUX else None
PR_SET_PDEATHSIG = 1  # from <sys/prctl.h>
TIMEOUT = 4 * 3600  # seconds a cell may take
MAX_SHIPPED_BYTES = 500_000
SHIPPED_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
WIDGET = "application/vnd.jupyter.widget-view+json"


class NotebookFailed(RuntimeError):
    """A notebook that did not run to its end; the message names the cell and the error."""


def die_with_parent() -> None:
    """Ask the kernel of Linux to kill this process as soon as its parent is gone; elsewhere do nothing."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class TiedKernelManager(AsyncKernelManager):
    """Starts a Jupyter kernel that dies with its starter, on cores of its own."""

    cores = List(help="Core numbers that the kernel may use; empty for all.").tag(config=True)
    variables = Dict(help="Environment variables for the kernel beside the inherited ones.").tag(config=True)

    async def start_kernel(self, **options: object) -> None:
        """Start the kernel; `options` as in `AsyncKernelManager.start_kernel`."""
        cores = list(self.cores)

        def in_the_child() -> None:
            die_with_parent()
            if cores:
                os.sched_setaffinity(0, cores)

        if LINUX:
            options["preexec_fn"] = in_the_child
        await super().start_kernel(env={**os.environ, **self.variables}, **options)


@contextlib.contextmanager
def claimed(kind: str, candidates: Sequence[int | str], count: int) -> Iterator[list]:
    """Claim `count` of `candidates` among this user's runners; yields [] if fewer are free.

    A claim is a file lock, so it ends with its process, however that ends.
    """
    folder = Path(tempfile.gettempdir()) / f"uniego-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    with contextlib.ExitStack() as claims:
        taken = []
        with (folder / "choosing.lock").open("w") as choosing:
            fcntl.flock(choosing, fcntl.LOCK_EX)  # one chooser at a time: two must not get half a pair each
            for candidate in candidates:
                if len(taken) == count:
                    break
                lock = claims.enter_context((folder / f"{kind}-{candidate}.lock").open("w"))
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    taken.append(candidate)
            if len(taken) < count:
                claims.close()
                taken = []
        yield taken


def visible_gpus() -> list[str]:
    """CUDA's names of the GPUs that this process may use: `CUDA_VISIBLE_DEVICES`, else all of the machine."""
    if (listed := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in listed.split(",") if name.strip()]
    return [str(index) for index in range(len(glob.glob("/dev/nvidia[0-9]*")))]


@contextlib.contextmanager
def allotted(threads: int, gpus: int) -> Iterator[Config]:
    """Kernel settings with GPUs or cores claimed for as long as the block runs.

    GPUs are waited for. Cores are not: unpinned, a notebook is slower but right, and the number of threads
    stays as asked, because sums of floats depend on it. Under SLURM, which allots both, nothing is claimed.
    """
    settings = Config()
    slurm = "SLURM_JOB_ID" in os.environ
    gpus = min(gpus, len(visible_gpus()))
    if gpus and slurm:
        yield settings
    elif gpus:
        while True:
            with claimed("gpu", visible_gpus(), gpus) as taken:
                if taken:
                    settings.TiedKernelManager.variables = {"CUDA_VISIBLE_DEVICES": ",".join(taken)}
                    yield settings
                    return
            time.sleep(2)
    elif threads:
        settings.TiedKernelManager.variables = {
            name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
        }
        # Two unpinned torch processes on two cores ran up to ten times slower than two pinned ones.
        cores = sorted(os.sched_getaffinity(0)) if LINUX and not slurm else []
        with claimed("core", cores, threads) as taken:
            settings.TiedKernelManager.cores = taken
            yield settings
    else:
        yield settings


def declared_parameters(notebook: Path) -> dict[str, str]:
    """Name -> declared type, e.g. `{"seed": "int"}`, of the cell tagged `parameters`; "None" for none."""
    import papermill  # imported late: 1.5 s that the Snakefile, which imports this file, need not wait

    inferred = papermill.inspect_notebook(str(notebook))
    return {name: parameter["inferred_type_name"] for name, parameter in inferred.items()}


def check_names(notebook: Path, names: Iterable[str], declared: Mapping[str, str]) -> None:
    """Refuse parameters that the notebook doesn't have; papermill only warns about them."""
    if unknown := ", ".join(name for name in names if name not in declared):
        raise ValueError(f"{notebook.name} has no parameter {unknown}; it takes {', '.join(declared)}")


def check_parameters(
    notebook: Path, values: Mapping[str, object], declared: Mapping[str, str]
) -> dict[str, object]:
    """The values, if the notebook has these parameters and declares them of these types."""
    check_names(notebook, values, declared)
    try:
        return {
            name: value if declared[name] == "None" else check_value(name, declared[name], value)
            for name, value in values.items()
        }
    except TypeError as error:
        raise ValueError(f"{notebook.name}: {error}") from None


def parse_parameters(notebook: Path, texts: Mapping[str, str]) -> dict[str, object]:
    """Values of parameters given as text, by the types that the notebook declares, otherwise read as YAML.

    Raises:
        ValueError: a name that the notebook doesn't have, or a value of another type than declared.
    """
    declared = declared_parameters(notebook)
    check_names(notebook, texts, declared)
    values = {}
    for name, text in texts.items():
        kind = declared[name]
        if kind == "str":  # YAML would make False of `no` and a number of `101`
            values[name] = text
            continue
        value = yaml.safe_load(text)
        if kind == "float":  # YAML takes 1e-4 for text
            with contextlib.suppress(TypeError, ValueError):
                value = float(value)
        values[name] = value
    return check_parameters(notebook, values, declared)


def run_notebook(
    notebook: str | Path,
    out: str | Path,
    parameters: Mapping[str, object] | None = None,
    *,
    threads: int = 0,
    gpus: int = 0,
    timeout: int = TIMEOUT,
) -> Path:
    """Execute `notebook` with `parameters` and write the executed notebook to `out`.

    `out` appears when the last cell has run. Until then it is `<name>.running.ipynb`; what fails is kept as
    `<name>.failed.ipynb`. The kernel works in the notebook's folder, as under JupyterLab. Metadata of the
    executed notebook tell `papermill.duration` in seconds and `papermill.peak_memory_mb`, the largest child
    process of this Python process so far, hence exact for one notebook a process. The working folder is
    changed meanwhile: run notebooks in parallel by processes, not by threads.

    Args:
        threads: cores to claim, and threads of torch; 0 leaves both alone.
        gpus: GPUs to claim, if the machine has any; then `threads` is ignored.
        timeout: seconds for a cell.

    Raises:
        ValueError: a parameter that the notebook doesn't have, or of another type; nothing was run.
        NotebookFailed: a cell failed, took too long, or the kernel died.
    """
    notebook, out = Path(notebook).resolve(), Path(out).resolve()
    parameters = check_parameters(notebook, parameters or {}, declared_parameters(notebook))
    out.parent.mkdir(parents=True, exist_ok=True)
    running, failed = (out.with_name(f"{out.stem}.{state}.ipynb") for state in ("running", "failed"))
    failed.unlink(missing_ok=True)

    sockets = tempfile.mkdtemp(prefix="uniego-kernel-")  # short: a socket's path has room for 100 characters
    try:
        with allotted(threads, gpus) as settings:
            settings.KernelManager.transport = "ipc"  # TCP ports are raced for: 1 kernel in 100 was lost
            settings.KernelManager.ip = f"{sockets}/k"
            executed = execute(notebook, running, parameters, settings, timeout)
        executed.metadata.papermill["peak_memory_mb"] = round(peak_memory_mb())
        nbformat.write(executed, running)
        os.replace(running, out)
    except BaseException:
        if running.exists():
            os.replace(running, failed)
        raise
    finally:
        shutil.rmtree(sockets, ignore_errors=True)
    return out


def execute(notebook: Path, out: Path, parameters: dict, settings: Config, timeout: int) -> NotebookNode:
    """papermill's execution, with every way to fail told in a line or two."""
    import papermill  # imported late, see `declared_parameters`
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    kept = out.name.replace(".running.", ".failed.")
    try:
        return papermill.execute_notebook(
            str(notebook),
            str(out),
            parameters,
            kernel_name="python3",
            progress_bar=False,
            cwd=str(notebook.parent),
            execution_timeout=timeout,
            kernel_manager_class=TiedKernelManager,
            extra_arguments=["--log-level=CRITICAL"],  # else it logs its own shutdown as an error
            config=settings,
        )
    except papermill.PapermillExecutionError as error:
        first_line = error.source.strip().splitlines()[0]
        raise NotebookFailed(
            f"{notebook.name} failed in cell [{error.exec_count}] `{first_line}`:\n"
            f"{error.ename}: {error.evalue}\nAll outputs up to there: {out.with_name(kept)}"
        ) from None
    except CellTimeoutError:
        raise NotebookFailed(f"{notebook.name}: a cell took more than {timeout} s; see {kept}") from None
    except DeadKernelError:
        raise NotebookFailed(f"{notebook.name}: its kernel died (out of memory?); see {kept}") from None


def peak_memory_mb() -> float:
    """Peak resident memory of the largest child process that has ended, in MB."""
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak / (1e3 if LINUX else 1e6)  # kilobytes on Linux, bytes on macOS


def sources_of(notebook: str | Path) -> list[str]:
    """This package's files that a notebook uses, directly or not; relative to the working folder."""
    root = Path(__file__).parents[2]
    found: set[Path] = set()
    queue = [Path(notebook)]
    while queue:
        text = queue.pop().read_text(encoding="utf-8")
        for module, names in re.findall(r"from (uniego_utils[\w.]*) import (\([^)]*\)|[^\n]*)", text):
            place = root / module.replace(".", "/")
            files = {place.with_suffix(".py"), place / "__init__.py"}
            files |= {place / f"{name}.py" for name in re.findall(r"\w+", names)}
            new = {file for file in files if file.is_file()} - found
            found |= new
            queue += new
    return sorted(os.path.relpath(path) for path in found)


def ship(executed_dir: str | Path, notebooks_dir: str | Path) -> list[Path]:
    """Give every notebook in `notebooks_dir` the outputs of its execution; returns the notebooks written.

    An execution lies directly in `executed_dir` or in the folder of the first seed. Cells stay as they are in
    `notebooks_dir`; metadata that differs from run to run is dropped, so equal outputs make equal files.

    Raises:
        FileNotFoundError: nothing has been executed.
        ValueError: a notebook was changed since, failed, names a path of this machine, or is too large.
    """
    executed_dir, notebooks_dir = Path(executed_dir), Path(notebooks_dir)
    shipped = {}
    for path in sorted(notebooks_dir.glob("[0-9][0-9]_*.ipynb")):
        if (execution := execution_of(path.name, executed_dir)) is not None:
            notebook = nbformat.read(path, as_version=4)
            shipped[path] = with_outputs(path, notebook, nbformat.read(execution, as_version=4))
    if not shipped:
        raise FileNotFoundError(f"no executed notebook in {executed_dir}; run `make demo` first")
    for path, text in shipped.items():  # all or none
        before = path.stat()
        write_text(path, text)
        # The sources are the same; with a new time the pipeline would run everything again.
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return list(shipped)


def execution_of(name: str, executed_dir: Path) -> Path | None:
    """The executed notebook to ship under `name`: of all seeds, or else of the first."""
    if (path := executed_dir / name).is_file():
        return path
    of_seeds = executed_dir.glob(f"seed*/{name}")
    return min(of_seeds, key=lambda path: int(path.parent.name.removeprefix("seed")), default=None)


def with_outputs(path: Path, notebook: NotebookNode, executed: NotebookNode) -> str:
    """JSON text of `notebook` with the outputs of `executed`, free of what differs from run to run."""
    cells = [cell for cell in executed.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    if [cell.source for cell in cells] != [cell.source for cell in notebook.cells]:
        raise ValueError(f"{path.name} was changed since it was executed; run `make demo` again")

    shipped = nbformat.v4.new_notebook(metadata=copy.deepcopy(SHIPPED_METADATA))
    count = 0
    for number, cell in enumerate(cells, start=1):
        tags = {"tags": ["parameters"]} if "parameters" in cell.metadata.get("tags", []) else {}
        common = {"metadata": tags, "id": f"cell-{number:02d}", "source": cell.source}
        if cell.cell_type == "code":
            count += 1
            outputs = clean_outputs(cell.outputs, count)
            shipped.cells.append(nbformat.v4.new_code_cell(execution_count=count, outputs=outputs, **common))
        else:
            shipped.cells.append(nbformat.v4.new_markdown_cell(**common))

    check_shippable(path, shipped)
    text = nbformat.writes(shipped) + "\n"
    if (size := len(text.encode())) > MAX_SHIPPED_BYTES:
        raise ValueError(f"{path.name} would have {size:,} bytes; {MAX_SHIPPED_BYTES:,} are allowed")
    return text


def clean_outputs(outputs: list[NotebookNode], count: int) -> list[NotebookNode]:
    """Outputs without warnings, progress bars, widgets and other notebooks' figures; prints are joined."""
    kept: list[NotebookNode] = []
    for output in copy.deepcopy(outputs):
        if output.get("name") == "stderr" or WIDGET in output.get("data", {}):
            continue
        if "figure_of" in output.get("metadata", {}):  # the notebook that drew it ships it
            continue
        if output.output_type == "stream":
            # A progress bar overwrites its line again and again: keep the last state.
            lines = output.text.replace("\r\n", "\n").split("\n")
            output.text = "\n".join(line.rpartition("\r")[2] for line in lines)
            if kept and kept[-1].output_type == "stream":
                kept[-1].text += output.text
                continue
        if "metadata" in output:
            output.metadata = {}
        if output.output_type == "execute_result":
            output.execution_count = count
        kept.append(output)
    return kept


def check_shippable(path: Path, notebook: NotebookNode) -> None:
    """Refuse outputs with an error or with a path that means something on this machine only."""
    project, home = str(path.resolve().parents[1]), str(Path.home())
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                raise ValueError(f"{path.name}: {cell.id} failed with {output.ename}: {output.evalue}")
            # Pictures are base64 text, in which a short path may stand by chance.
            data = {k: v for k, v in output.get("data", {}).items() if k not in ("image/png", "image/jpeg")}
            text = json.dumps({**output, "data": data})
            for private in (project, home):
                if re.search(rf"{re.escape(private)}(?!\w)", text):
                    raise ValueError(
                        f"{path.name}: an output of {cell.id} names {private}, on this machine only"
                    )


def summary(report_dir: str | Path) -> str:
    """The results, what each executed notebook took, and where the report lies."""
    report_dir = Path(report_dir)
    rows = []
    folder = report_dir.parent / "notebooks"
    for path in folder.rglob("*.ipynb"):
        name = str(path.relative_to(folder).with_suffix(""))
        if name.endswith((".running", ".failed")):
            continue
        notes = json.loads(path.read_text(encoding="utf-8"))["metadata"].get("papermill", {})
        rows.append((notes.get("start_time", ""), name, notes.get("duration"), notes.get("peak_memory_mb")))
    width = max([len(row[1]) for row in rows], default=0)
    lines = [f"{'notebook':{width}}  seconds  peak memory"]
    for _, name, seconds, peak in sorted(rows, key=lambda row: row[:2]):
        memory = "" if peak is None else f"{peak / 1000:8.1f} GB"
        lines.append(f"{name:{width}}  {seconds or 0:7.1f}  {memory}".rstrip())
    lines.append(f"{'all, each in its last run':{width}}  {sum(row[2] or 0 for row in rows):7.1f}")
    results = (report_dir / "results.txt").read_text(encoding="utf-8")
    return "\n".join([results, *lines, "", f"Report: {report_dir / 'index.html'}"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what the command line says; errors end in a line or two, without a traceback."""
    parser = argparse.ArgumentParser(
        prog="python -m uniego_utils.pipeline.runner", description=__doc__.splitlines()[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="execute a notebook")
    run.add_argument("notebook", type=Path)
    run.add_argument("out", type=Path)
    run.add_argument("-p", dest="parameters", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    run.add_argument("--threads", type=int, default=0, help="cores to claim, threads of torch; 0: no limit")
    run.add_argument("--gpus", type=int, default=0, help="GPUs to claim, where there are any")
    run.add_argument("--timeout", type=int, default=TIMEOUT, help="seconds a cell may take (%(default)s)")
    shipping = commands.add_parser("ship", help="give notebooks the outputs of their execution")
    shipping.add_argument("executed_dir", type=Path)
    shipping.add_argument("notebooks_dir", type=Path)
    summing = commands.add_parser("summary", help="print results, times and the report's path")
    summing.add_argument("report_dir", type=Path)
    chosen = parser.parse_args(arguments)

    try:
        if chosen.command == "run":
            die_with_parent()
            run_from_command_line(chosen)
        elif chosen.command == "ship":
            for path in ship(chosen.executed_dir, chosen.notebooks_dir):
                print(path)
        else:
            print(summary(chosen.report_dir))
    except (NotebookFailed, ValueError, OSError) as error:
        raise SystemExit(str(error)) from None


def run_from_command_line(chosen: argparse.Namespace) -> None:
    """`run`: typed parameters in, one line with the time and memory out."""
    parameters = parse_parameters(chosen.notebook, dict(chosen.parameters))
    started = time.perf_counter()
    run_notebook(
        chosen.notebook,
        chosen.out,
        parameters,
        threads=chosen.threads,
        gpus=chosen.gpus,
        timeout=chosen.timeout,
    )
    seconds = time.perf_counter() - started
    print(f"{seconds:6.0f} s {peak_memory_mb() / 1000:5.1f} GB  {shlex.quote(str(chosen.out))}", flush=True)


if __name__ == "__main__":
    main()
