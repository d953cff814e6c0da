"""Ship the notebooks: put the outputs of an execution into those that are committed.

python -m uniego_utils.pipeline.ship outputs/mocap/notebooks notebooks
"""

import argparse
import copy
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from uniego_utils.pipeline.notebooks import LABELS_ALONE
from uniego_utils.runs import write_text

MAX_SHIPPED_BYTES = 500_000
SHIPPED_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
WIDGET = "application/vnd.jupyter.widget-view+json"


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
    """The executed notebook to ship under `name`: of all seeds, or else of the first, in its usual regime."""
    if (path := executed_dir / name).is_file():
        return path
    for folder in (executed_dir, executed_dir / LABELS_ALONE):
        of_seeds = list(folder.glob(f"seed*/{name}"))
        if of_seeds:
            return min(of_seeds, key=lambda path: int(path.parent.name.removeprefix("seed")))
    return None


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
    """Outputs without warnings, progress bars and widgets; consecutive prints are joined."""
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Ship what the command line names; an error ends in a line, without a traceback."""
    parser = argparse.ArgumentParser(
        prog="python -m uniego_utils.pipeline.ship", description=__doc__.splitlines()[0]
    )
    parser.add_argument("executed_dir", type=Path)
    parser.add_argument("notebooks_dir", type=Path)
    options = parser.parse_args(arguments)
    try:
        for path in ship(options.executed_dir, options.notebooks_dir):
            print(path)
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
