"""Run notebooks headlessly, and sum up what a pipeline did.

    python -m uniego_utils.pipeline.runner run notebooks/04_spd.ipynb out.ipynb -p k 3 --threads 2
    python -m uniego_utils.pipeline.runner summary outputs/mocap/10_report

papermill executes; this file adds what parallel and interruptible pipelines need: parameters checked before
anything starts, no race for ports, no kernel that outlives a killed pipeline, no half-made notebook under its
final name, and cores or a GPU for each notebook alone. For Linux and macOS.
"""

import argparse
import contextlib
import ctypes
import fcntl
import glob
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd
import yaml
from jupyter_client.manager import AsyncKernelManager
from traitlets import Dict, List
from traitlets.config import Config

from uniego_utils.parameters import check_value
from uniego_utils.pipeline.notebooks import declared_parameters

LINUX = sys.platform == "linux"
LIBC = ctypes.CDLL(None) if LINUX else None
PR_SET_PDEATHSIG = 1  # from <sys/prctl.h>
TIMEOUT = 4 * 3600  # seconds a cell may take


class NotebookFailed(RuntimeError):
    """A notebook that did not run to its end; the message names the cell and the error."""


def die_with_parent() -> None:
    """Ask the kernel of Linux to kill this process as soon as its parent is gone; elsewhere do nothing."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class TiedKernelManager(AsyncKernelManager):
    """Starts a Jupyter kernel that is killed when the process that started it ends, and pins it to cores."""

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
    """Kernel settings, with GPUs or cores that no other runner of this user gets while the block runs.

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
        return {name: check_value(name, declared[name], value) for name, value in values.items()}
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
    `<name>.failed.ipynb`. The kernel works in the notebook's folder, as under JupyterLab. The working
    folder is changed meanwhile: run notebooks in parallel by processes, not by threads.

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
            execute(notebook, running, parameters, settings, timeout)
        os.replace(running, out)
    except BaseException:
        if running.exists():
            os.replace(running, failed)
        raise
    finally:
        shutil.rmtree(sockets, ignore_errors=True)
    return out


def execute(notebook: Path, out: Path, parameters: dict, settings: Config, timeout: int) -> None:
    """Execute by papermill; every way to fail becomes a message of a line or two."""
    import papermill  # imported late: 1.5 s that a wrong parameter need not wait for
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    kept = out.name.replace(".running.", ".failed.")
    try:
        papermill.execute_notebook(
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


def summary(report_dir: str | Path) -> str:
    """The results, what each notebook took when it was last run, and where the report lies.

    Seconds and memory are Snakemake's, of a notebook's processes together. Memory is sampled, every half
    second at first and every 30 s later, so a short peak may be missed.
    """
    report_dir = Path(report_dir)
    folder = report_dir.parent / "benchmarks"
    rows = []
    for path in sorted(folder.rglob("*.tsv"), key=lambda path: path.stat().st_mtime):
        record = pd.read_csv(path, sep="\t").iloc[0]
        name = str(path.relative_to(folder).with_suffix(""))
        mebibytes = record["max_pss"] or record["max_rss"]  # shared memory counted once; macOS has no PSS
        rows.append((name, record["s"], mebibytes * 2**20 / 1e9))
    width = max([len(name) for name, _, _ in rows], default=0)
    lines = [f"{'notebook':{width}}  seconds  peak memory"]
    lines += [f"{name:{width}}  {seconds:7.1f}  {memory:8.1f} GB" for name, seconds, memory in rows]
    lines.append(f"{'all, each in its last run':{width}}  {sum(seconds for _, seconds, _ in rows):7.1f}")
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
    summing = commands.add_parser("summary", help="print the results, time and memory, and the report's path")
    summing.add_argument("report_dir", type=Path)
    options = parser.parse_args(arguments)

    try:
        if options.command == "run":
            die_with_parent()
            run_from_command_line(options)
        else:
            print(summary(options.report_dir))
    except (NotebookFailed, ValueError, OSError) as error:
        raise SystemExit(str(error)) from None


def run_from_command_line(options: argparse.Namespace) -> None:
    """`run`: typed parameters in, one line with the time out."""
    parameters = parse_parameters(options.notebook, dict(options.parameters))
    started = time.perf_counter()
    run_notebook(
        options.notebook,
        options.out,
        parameters,
        threads=options.threads,
        gpus=options.gpus,
        timeout=options.timeout,
    )
    seconds = time.perf_counter() - started
    print(f"{seconds:6.0f} s  {shlex.quote(str(options.out))}", flush=True)


if __name__ == "__main__":
    main()
