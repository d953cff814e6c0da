"""The list of notebooks, from which the pipeline's rules and their resources follow.

To add a notebook, write the ipynb and add a line above the report.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import nbformat

from uniego_utils.parameters import annotated_types

ONCE = "once"
EACH_TEACHER = "each teacher"  # and then once for all of them
EACH_SEED = "each seed"
FIRST_SEEDS = "first seeds"  # the first three of those asked for
STUDY = "study"  # in `make study` alone
SEGMENTS = "segments"  # only where the card describes untrimmed videos
USUAL = ""  # the card's pairs without labels, where it names some
LABELS_ALONE = "labels_alone"  # the paper's protocol
BOTH = "both"  # the usual, and in `make study` labels alone too


@dataclass(frozen=True)
class Notebook:
    """How the pipeline runs one notebook; a job is one execution of it."""

    name: str  # of the file, without .ipynb
    runs: str  # ONCE, EACH_TEACHER, EACH_SEED or FIRST_SEEDS
    needs: tuple[str, ...]  # notebooks that come before it; those that are left out are not waited for
    only: str = ""  # STUDY or SEGMENTS; "" for always
    regime: str = USUAL  # USUAL, LABELS_ALONE or BOTH; one regime where there are no pairs
    priority: int = 0  # of several jobs that could start, the one with the highest does
    threads: int = 1  # of a job without a GPU; jobs of several seeds take one each
    gpu: int = 1  # GPUs of a job, on machines that have any
    mem_mb: int = 32_000  # of a job with the preset `paper`
    minutes: int = 1440  # of a job with the preset `paper`

    @property
    def per_seed(self) -> bool:
        """Whether every execution is for one seed."""
        return self.runs in (EACH_SEED, FIRST_SEEDS)

    def seeds(self, seeds: Sequence[int]) -> tuple[int, ...]:
        """Those of `seeds` for which it is run; none where it is not run per seed."""
        return tuple({EACH_SEED: seeds, FIRST_SEEDS: seeds[:3]}.get(self.runs, ()))


_BEFORE_REPORT = (
    Notebook("00_data", ONCE, (), threads=2, mem_mb=16_000, minutes=480),
    Notebook("01_teacher_extraction", EACH_TEACHER, ("00_data",), mem_mb=16_000, minutes=480),
    Notebook("02_proxy", EACH_SEED, ("01_teacher_extraction",), regime=BOTH, priority=40, threads=2),
    Notebook("03_merging", EACH_SEED, ("02_proxy",), regime=BOTH, priority=40, threads=2, minutes=240),
    Notebook("04_spd", EACH_SEED, ("03_merging",), regime=BOTH, priority=40, threads=2),
    Notebook("05_retrieval", EACH_SEED, ("04_spd",), regime=BOTH, priority=35, mem_mb=16_000, minutes=240),
    Notebook("06_segmentation", FIRST_SEEDS, ("04_spd",), only=SEGMENTS, priority=30),
    Notebook("07_cka", EACH_SEED, ("04_spd",), priority=35, mem_mb=16_000, minutes=240),
    Notebook("08_gradient_conflict", FIRST_SEEDS, ("04_spd",), priority=30),
    Notebook("09_proxy_selection", FIRST_SEEDS, ("04_spd",), priority=30),
    Notebook("11_loss_landscape", FIRST_SEEDS, ("04_spd",), priority=30),
    Notebook("12_ablation", EACH_SEED, ("04_spd",), only=STUDY, regime=BOTH, priority=25),
    Notebook("13_reliability", FIRST_SEEDS, ("04_spd",), only=STUDY, regime=LABELS_ALONE, priority=15),
    Notebook(
        "14_poor_teachers", FIRST_SEEDS, ("13_reliability",), only=STUDY, regime=LABELS_ALONE, priority=5
    ),
    Notebook("15_projection", FIRST_SEEDS, ("02_proxy",), only=STUDY, regime=LABELS_ALONE, priority=10),
    Notebook("16_pairs", FIRST_SEEDS, ("04_spd",), only=STUDY, priority=20),
)
REPORT = Notebook(
    "10_report", ONCE, tuple(each.name for each in _BEFORE_REPORT), gpu=0, mem_mb=16_000, minutes=60
)
NOTEBOOKS = (*_BEFORE_REPORT, REPORT)  # every notebook after those that it needs


def notebooks_to_run(study: bool, segments: bool, pairs: bool) -> tuple[Notebook, ...]:
    """The notebooks that the pipeline runs, every one after those that it needs, once for each regime.

    Args:
        study: with the ablations and analyses of `make study`.
        segments: whether the card describes untrimmed videos.
        pairs: whether students learn on pairs without labels; without them there is one regime.
    """
    included = {"": True, STUDY: study, SEGMENTS: segments}
    regimes = {
        USUAL: [USUAL],
        LABELS_ALONE: [LABELS_ALONE],
        BOTH: [USUAL, LABELS_ALONE] if study else [USUAL],
    }
    return tuple(
        replace(notebook, regime=regime)
        for notebook in NOTEBOOKS
        if included[notebook.only]
        for regime in (regimes[notebook.regime] if pairs else [USUAL])
    )


def declared_parameters(notebook: str | Path) -> dict[str, str]:
    """Name -> declared type, e.g. `{"seed": "int"}`, of the first cell tagged `parameters`."""
    cells = nbformat.read(notebook, as_version=4).cells
    tagged = (cell.source for cell in cells if "parameters" in cell.metadata.get("tags", []))
    return annotated_types(next(tagged, ""))


def sources_of(notebook: str | Path) -> list[str]:
    """This package's files that a notebook uses, directly or not; relative to the working folder."""
    root = Path(__file__).parents[2]
    sources: set[Path] = set()
    queue = [Path(notebook)]
    while queue:
        text = queue.pop().read_text(encoding="utf-8")
        imports = re.findall(r"from (uniego_utils[\w.]*) import (\([^)]*\)|[^\n]*)", text)
        by_name = re.findall(r'"(uniego_utils(?:\.\w+)+)"()', text)  # imported when asked for
        for module, names in imports + by_name:
            place = root / module.replace(".", "/")
            files = {place.with_suffix(".py"), place / "__init__.py"}
            files |= {place / f"{name}.py" for name in re.findall(r"\w+", names)}
            new = {file for file in files if file.is_file()} - sources
            sources |= new
            queue += new
    return sorted(os.path.relpath(path) for path in sources)
