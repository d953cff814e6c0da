# The notebooks as rules, one for each line of the list in uniego_utils/pipeline/notebooks.py. Only executed notebooks
# and the page are declared as outputs: Snakemake deletes the declared outputs of killed jobs, and the run folders hold the
# checkpoints to resume from. `params` carries every parameter, because only what stands there is noticed when it changes.
import shlex
import sys
from dataclasses import replace

from uniego_utils.cards import load_card
from uniego_utils.pipeline.notebooks import (
    EACH_TEACHER, LABELS_ALONE, ONCE, REPORT, USUAL, declared_parameters, notebooks_to_run, sources_of
)

DATASET = config.get("dataset", "mocap")
OUTPUTS = config.get("outputs", "outputs")
SEEDS = [int(seed) for seed in config.get("seeds", [0])]  # Snakemake takes a list of text from the command line
CARD = load_card(DATASET)
TEACHERS = list(CARD.teachers)
PAIRS = config.get("pairs", "card")
NOTEBOOKS = notebooks_to_run(
    study=bool(config.get("full")), segments=bool(CARD.segments), pairs=bool(PAIRS and CARD.pairs)
)
DATASET_FILES = [
    f"data_manifests/{DATASET}.yaml",
    *sorted(map(str, Path("data_manifests", "shared").glob("*.yaml"))),
    *sorted(map(str, Path("data_manifests", DATASET).glob("*.npz"))),
]
DONE = f"{OUTPUTS}/{DATASET}/notebooks"  # executed notebooks
PAGE = f"{OUTPUTS}/{DATASET}/10_report/index.html"
BENCHMARKS = f"{OUTPUTS}/{DATASET}/benchmarks"  # seconds and memory of each
RUN = (
    f"exec {sys.executable} -m uniego_utils.pipeline.runner run {{input.notebook}} {{output}} {{params}}"
    " --threads {threads} --gpus {resources.gpu}"
)
VALUES = {  # of parameters, for every notebook that has them
    "dataset": DATASET,
    "preset": config.get("preset") or "",  # "": the card's first
    "outputs": OUTPUTS,
    "data_root": config.get("data_root") or "",  # of videos and official annotations
    "weights": config.get("weights") or "",  # a local folder of pretrained weights
    "allow_missing": float(config.get("allow_missing") or 0),
    "skeletons": config.get("skeletons") or "",
    "seeds": SEEDS,
    "pairs": PAIRS or "",
    "interactive": "false",
}


def parameters(notebook):
    """The runner's arguments that set a notebook's parameters."""
    given = {name: VALUES[name] for name in declared_parameters(source(notebook)) if name in VALUES}
    if notebook.regime == LABELS_ALONE and "pairs" in given:
        given["pairs"] = ""
    if notebook.per_seed:
        given["seed"] = "{seed}"  # Snakemake's wildcards
    if notebook.runs == EACH_TEACHER:
        given["teacher"] = "{teacher}"
    return " ".join(f"-p {name} {shlex.quote(str(value))}" for name, value in given.items())


def source(notebook):
    """The notebook as it is written, not executed."""
    return f"notebooks/{notebook.name}.ipynb"


def place(notebook):
    """Where an execution lies below `DONE`, without its extension."""
    if notebook.per_seed:
        return f"{notebook.regime}/seed{{seed}}/{notebook.name}".removeprefix("/")
    return f"{notebook.name}/{{teacher}}" if notebook.runs == EACH_TEACHER else notebook.name


def executed(notebook, reader):
    """The executed notebooks that `reader` waits for: of its seed where it has one, otherwise of all seeds."""
    path = f"{DONE}/{place(notebook)}.ipynb"
    if notebook.runs == EACH_TEACHER:  # only the report shows the comparison of all teachers
        return f"{DONE}/{notebook.name}.ipynb" if reader.name == REPORT.name else expand(path, teacher=TEACHERS)
    return expand(path, seed=notebook.seeds(SEEDS)) if notebook.per_seed and not reader.per_seed else path


def needed_by(notebook):
    """What a notebook waits for: of its regime where that is run, and all for the report."""
    needed = [each for each in NOTEBOOKS if each.name in notebook.needs]
    if notebook.name == REPORT.name:
        return needed
    alike = {each.name for each in needed if each.regime == notebook.regime}
    return [each for each in needed if each.regime == (notebook.regime if each.name in alike else USUAL)]


wildcard_constraints:
    teacher="|".join(TEACHERS),
    seed=r"\d+",


localrules:
    all,
    page,


rule all:
    input:
        PAGE,


# What is run for each teacher is run once more to compare them; it reuses what is finished.
COMPARISONS = [
    replace(each, runs=ONCE, needs=(each.name,), gpu=0) for each in NOTEBOOKS if each.runs == EACH_TEACHER
]

for notebook in (*NOTEBOOKS, *COMPARISONS):

    rule:
        name:
            notebook.name + ("_each" if notebook.runs == EACH_TEACHER else "") + notebook.regime
        input:
            DATASET_FILES,
            sources_of(source(notebook)),
            [executed(needed, notebook) for needed in needed_by(notebook)],
            notebook=source(notebook),
        output:
            f"{DONE}/{place(notebook)}.ipynb",
        benchmark:
            f"{BENCHMARKS}/{place(notebook)}.tsv"
        params:
            parameters(notebook),
        threads: 1 if notebook.per_seed and len(SEEDS) > 1 else notebook.threads
        priority: notebook.priority
        resources:
            gpu=notebook.gpu,
            mem_mb=notebook.mem_mb,
            runtime=notebook.minutes,
        shell:
            RUN


rule page:
    input:
        "uniego_utils/report/page.py",
        notebook=f"{DONE}/{REPORT.name}.ipynb",
    output:
        PAGE,
    shell:
        f"exec {sys.executable} -m uniego_utils.report.page {{input.notebook}} {{output}}"
