"""The pipeline: from the list of notebooks and a card follow its jobs, with what each job is given."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from toy_notebooks import write_toy

from uniego_utils.cards import load_card
from uniego_utils.pipeline.notebooks import (
    BOTH,
    EACH_SEED,
    EACH_TEACHER,
    FIRST_SEEDS,
    LABELS_ALONE,
    NOTEBOOKS,
    REPORT,
    SEGMENTS,
    STUDY,
    USUAL,
    declared_parameters,
    notebooks_to_run,
    sources_of,
)
from uniego_utils.pipeline.runner import parse_parameters

PROJECT = Path(__file__).parents[1]
PROFILES = sorted(path.name for path in (PROJECT / "profiles").iterdir())
DATASET = "mocap"
SEEDS = [0, 3, 5, 6]


def test_lists_every_notebook_once():
    written = {path.stem for path in (PROJECT / "notebooks").glob("[0-9][0-9]_*.ipynb")}
    names = [notebook.name for notebook in NOTEBOOKS]
    assert sorted(names) == sorted(written)
    for place, notebook in enumerate(NOTEBOOKS):
        assert set(notebook.needs) <= set(names[:place]), f"{notebook.name} stands before what it needs"


def test_leaves_out_what_was_not_asked_for():
    small = notebooks_to_run(study=False, segments=False, pairs=True)
    assert {notebook.only for notebook in small} == {""}
    study = notebooks_to_run(study=True, segments=False, pairs=True)
    assert {notebook.only for notebook in study} == {"", STUDY}
    with_segments = notebooks_to_run(study=False, segments=True, pairs=True)
    assert {notebook.only for notebook in with_segments} == {"", SEGMENTS}
    assert small[-1] == study[-1] == REPORT


def test_runs_both_regimes_in_a_study_with_pairs_alone():
    def regimes(**asked):
        return {(notebook.name, notebook.regime) for notebook in notebooks_to_run(segments=True, **asked)}

    names = {notebook.name for notebook in NOTEBOOKS}
    assert regimes(study=True, pairs=False) == {(name, USUAL) for name in names}
    assert {regime for _, regime in regimes(study=False, pairs=True)} == {USUAL}
    study = regimes(study=True, pairs=True)
    assert {name for name, _ in study} == names
    assert {("02_proxy", USUAL), ("02_proxy", LABELS_ALONE), ("13_reliability", LABELS_ALONE)} <= study
    assert ("13_reliability", USUAL) not in study


@pytest.fixture(scope="module", params=PROFILES)
def jobs(request, tmp_path_factory) -> dict[str, dict]:
    """What a whole study would run under one profile: path of the executed notebook -> its job.

    The executor is replaced, because plugins need not be installed; no GPU is visible, as on a login node.
    """
    outputs = tmp_path_factory.mktemp(request.param)
    profile = ["--profile", f"profiles/{request.param}", "--executor", "local"]
    output = ["--dry-run", "--printshellcmds", "--quiet", "reason"]
    settings = [f"outputs={outputs}", f"dataset={DATASET}", f"seeds={SEEDS}".replace(" ", ""), "full=true"]
    ended = subprocess.run(
        [sys.executable, "-m", "snakemake", *profile, *output, "--config", *settings],
        cwd=PROJECT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = {}
    for text in re.split(r"\n(?=rule )", ended.stdout + ended.stderr):
        if (
            output := re.search(rf"^    output: {outputs}/{DATASET}/notebooks/(\S+)\.ipynb$", text, re.M)
        ) is None:
            continue
        words = shlex.split(re.search(r"^Shell command: (.*)$", text, re.M)[1])
        given = re.search(r"^    resources: (.*)$", text, re.M)[1].split(", ")
        found[output[1]] = {
            "notebook": Path(words[words.index("run") + 1]).stem,
            "parameters": {words[i + 1]: words[i + 2] for i, word in enumerate(words) if word == "-p"},
            "gpus": int(words[words.index("--gpus") + 1]),
            "resources": dict(resource.split("=") for resource in given),
            "profile": request.param,
        }
    return found


def test_runs_every_notebook_for_its_teachers_and_seeds(jobs):
    expected = set()
    for notebook in NOTEBOOKS:
        if notebook.runs in (EACH_SEED, FIRST_SEEDS):
            seeds = SEEDS if notebook.runs == EACH_SEED else SEEDS[:3]
            if notebook.regime in (USUAL, BOTH):
                expected |= {f"seed{seed}/{notebook.name}" for seed in seeds}
            if notebook.regime in (LABELS_ALONE, BOTH):
                expected |= {f"{LABELS_ALONE}/seed{seed}/{notebook.name}" for seed in seeds}
        else:
            expected.add(notebook.name)
        if notebook.runs == EACH_TEACHER:
            expected |= {f"{notebook.name}/{teacher}" for teacher in load_card(DATASET).teachers}
    assert jobs.keys() == expected


def test_every_job_asks_for_its_gpu_memory_and_time(jobs):
    listed = {notebook.name: notebook for notebook in NOTEBOOKS}
    for path, job in jobs.items():
        notebook, resources = listed[job["notebook"]], job["resources"]
        comparison = notebook.runs == EACH_TEACHER and path == notebook.name
        assert job["gpus"] == int(resources["gpu"]) == (0 if comparison else notebook.gpu), path
        assert int(resources["mem_mb"]) == notebook.mem_mb > 0, path
        assert int(resources["runtime"]) == notebook.minutes > 0, path
        if job["profile"] == "slurm":
            assert resources["slurm_partition"] and int(resources["cpus_per_task"]) > 1, path


def test_every_job_gives_parameters_that_its_notebook_takes(jobs):
    for path, job in jobs.items():
        source = PROJECT / "notebooks" / f"{job['notebook']}.ipynb"
        values = parse_parameters(source, job["parameters"])
        assert values["dataset"] == DATASET and values["interactive"] is False
        if seed := re.search(r"seed(\d+)/", path):
            assert values["seed"] == int(seed[1])
        if "pairs" in declared_parameters(source):
            assert values["pairs"] == ("" if path.startswith(LABELS_ALONE) else "card")
        if teacher := re.match(r"01_teacher_extraction/(.*)", path):
            assert values["teacher"] == teacher[1]
        shared = {"preset", "outputs", "data_root", "weights", "allow_missing", "skeletons", "seeds"}
        assert shared & declared_parameters(source).keys() <= values.keys()
    assert (
        parse_parameters(PROJECT / "notebooks" / "10_report.ipynb", jobs["10_report"]["parameters"])["seeds"]
        == SEEDS
    )


def test_reads_declarations_over_several_lines(tmp_path):
    toy = write_toy(
        tmp_path / "toy.ipynb", parameters="methods: list[\n    str\n] = []  # a\nk: int = 0  # b"
    )
    assert declared_parameters(toy) == {"methods": "list[str]", "k": "int"}


def test_finds_the_modules_behind_a_notebook(tmp_path, monkeypatch):
    monkeypatch.chdir(PROJECT)
    toy = write_toy(tmp_path / "toy.ipynb", "from uniego_utils.merging import merge")
    found = sources_of(toy)
    assert {"uniego_utils/merging.py", "uniego_utils/runs.py", "uniego_utils/training.py"} <= set(found)
    assert "uniego_utils/pipeline/runner.py" not in found
