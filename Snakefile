# The notebooks as rules. Only executed notebooks are declared as outputs: Snakemake deletes the declared outputs of
# killed jobs, and the run folders hold the checkpoints to resume from. `params` carries every parameter, because
# only what stands there is noticed when it changes.
import sys

from uniego_utils.manifests import load_card
from uniego_utils.runner import sources_of, visible_gpus

DATASET = config.get("dataset", "mocap")
PRESET = config.get("preset") or ""  # the card's first
SEEDS = config.get("seeds", [0])
FULL = bool(config.get("full"))  # the ablations and analyses as well: `make study`
OUTPUTS = config.get("outputs", "outputs")
DATA_ROOT = config.get("data_root") or ""  # of videos and official annotations
USABLE = "-p allow_missing {} -p skeletons '{}'".format(
    float(config.get("allow_missing") or 0), config.get("skeletons") or ""
)
WEIGHTS = "-p weights '{}'".format(config.get("weights") or "")  # a local folder of pretrained weights

CARD = [f"data_manifests/{DATASET}.yaml", *sorted(map(str, Path("data_manifests", "shared").glob("*.yaml")))]
TEACHERS = list(load_card(DATASET).teachers)

DONE = f"{OUTPUTS}/{DATASET}/notebooks"  # executed notebooks
COMMON = f"-p dataset {DATASET} -p preset '{PRESET}' -p outputs '{OUTPUTS}' -p data_root '{DATA_ROOT}' -p interactive false"
GPU = min(1, len(visible_gpus()))
STUDENT_THREADS = 2 if len(SEEDS) == 1 else 1  # several seeds run beside each other instead
FEW_SEEDS = SEEDS[:3]
LONG_STUDIES = ["13_reliability", "14_poor_teachers", "15_projection"]  # for few seeds
RUN = (
    f"exec {sys.executable} -m uniego_utils.runner run {{input.notebook}} {{output}} {{params}}"
    " --threads {threads} --gpus {resources.gpu}"
)


wildcard_constraints:
    teacher="|".join(TEACHERS),
    seed=r"\d+",


localrules:
    all,


rule all:
    input:
        f"{DONE}/10_report.ipynb",


rule data:
    input:
        CARD,
        sources_of("notebooks/00_data.ipynb"),
        notebook="notebooks/00_data.ipynb",
        motions=sorted(str(path) for path in Path("data_manifests", DATASET).glob("*.npz")),
    output:
        f"{DONE}/00_data.ipynb",
    params:
        f"{COMMON} {WEIGHTS} {USABLE} -p seed 0",
    threads: 2
    resources:
        gpu=GPU,
    shell:
        RUN


rule teacher:
    input:
        CARD,
        rules.data.output,
        sources_of("notebooks/01_teacher_extraction.ipynb"),
        notebook="notebooks/01_teacher_extraction.ipynb",
    output:
        f"{DONE}/01_teacher_extraction/{{teacher}}.ipynb",
    params:
        f"{COMMON} {WEIGHTS} -p seed 0",
        lambda wildcards: f"-p teacher {wildcards.teacher}",
    resources:
        gpu=GPU,
    shell:
        RUN


# Reuses the finished teachers and compares them.
rule teachers:
    input:
        expand(rules.teacher.output, teacher=TEACHERS),
        notebook="notebooks/01_teacher_extraction.ipynb",
    output:
        f"{DONE}/01_teacher_extraction.ipynb",
    params:
        f"{COMMON} {WEIGHTS} -p seed 0 -p teacher each",
    resources:
        gpu=0,
    shell:
        RUN


rule proxies:
    input:
        CARD,
        expand(rules.teacher.output, teacher=TEACHERS),
        sources_of("notebooks/02_proxy.ipynb"),
        notebook="notebooks/02_proxy.ipynb",
    output:
        f"{DONE}/seed{{seed}}/02_proxy.ipynb",
    params:
        f"{COMMON} {WEIGHTS} -p teacher each",
        lambda wildcards: f"-p seed {wildcards.seed}",
    threads: STUDENT_THREADS
    priority: 40
    resources:
        gpu=GPU,
    shell:
        RUN


rule merging:
    input:
        CARD,
        rules.proxies.output,
        sources_of("notebooks/03_merging.ipynb"),
        notebook="notebooks/03_merging.ipynb",
    output:
        f"{DONE}/seed{{seed}}/03_merging.ipynb",
    params:
        f"{COMMON} {WEIGHTS}",
        lambda wildcards: f"-p seed {wildcards.seed}",
    threads: STUDENT_THREADS
    priority: 40
    resources:
        gpu=GPU,
    shell:
        RUN


rule spd:
    input:
        CARD,
        rules.merging.output,
        sources_of("notebooks/04_spd.ipynb"),
        notebook="notebooks/04_spd.ipynb",
    output:
        f"{DONE}/seed{{seed}}/04_spd.ipynb",
    params:
        COMMON,
        lambda wildcards: f"-p seed {wildcards.seed}",
    threads: STUDENT_THREADS
    priority: 40
    resources:
        gpu=GPU,
    shell:
        RUN


rule retrieval:
    input:
        CARD,
        rules.spd.output,
        sources_of("notebooks/05_retrieval.ipynb"),
        notebook="notebooks/05_retrieval.ipynb",
    output:
        f"{DONE}/seed{{seed}}/05_retrieval.ipynb",
    params:
        COMMON,
        lambda wildcards: f"-p seed {wildcards.seed}",
    priority: 35
    resources:
        gpu=GPU,
    shell:
        RUN


rule ablation:
    input:
        CARD,
        rules.spd.output,
        sources_of("notebooks/12_ablation.ipynb"),
        notebook="notebooks/12_ablation.ipynb",
    output:
        f"{DONE}/seed{{seed}}/12_ablation.ipynb",
    params:
        f"{COMMON} {WEIGHTS}",
        lambda wildcards: f"-p seed {wildcards.seed}",
    priority: 30
    resources:
        gpu=GPU,
    shell:
        RUN


rule unlabelled:
    input:
        CARD,
        rules.spd.output,
        sources_of("notebooks/16_unlabelled.ipynb"),
        notebook="notebooks/16_unlabelled.ipynb",
    output:
        f"{DONE}/seed{{seed}}/16_unlabelled.ipynb",
    params:
        COMMON,
        lambda wildcards: f"-p seed {wildcards.seed}",
    priority: 25
    resources:
        gpu=GPU,
    shell:
        RUN


rule reliability:
    input:
        CARD,
        rules.spd.output,
        sources_of("notebooks/13_reliability.ipynb"),
        notebook="notebooks/13_reliability.ipynb",
    output:
        f"{DONE}/seed{{seed}}/13_reliability.ipynb",
    params:
        f"{COMMON} {WEIGHTS}",
        lambda wildcards: f"-p seed {wildcards.seed}",
    priority: 20
    resources:
        gpu=GPU,
    shell:
        RUN


rule poor_teachers:
    input:
        CARD,
        rules.reliability.output,
        sources_of("notebooks/14_poor_teachers.ipynb"),
        notebook="notebooks/14_poor_teachers.ipynb",
    output:
        f"{DONE}/seed{{seed}}/14_poor_teachers.ipynb",
    params:
        f"{COMMON} {WEIGHTS}",
        lambda wildcards: f"-p seed {wildcards.seed}",
    resources:
        gpu=GPU,
    shell:
        RUN


rule projection:
    input:
        CARD,
        rules.proxies.output,
        sources_of("notebooks/15_projection.ipynb"),
        notebook="notebooks/15_projection.ipynb",
    output:
        f"{DONE}/seed{{seed}}/15_projection.ipynb",
    params:
        f"{COMMON} {WEIGHTS}",
        lambda wildcards: f"-p seed {wildcards.seed}",
    priority: 10
    resources:
        gpu=GPU,
    shell:
        RUN


rule report:
    input:
        CARD,
        rules.teachers.output,
        expand(rules.retrieval.output, seed=SEEDS),
        expand([*rules.ablation.output, *rules.unlabelled.output], seed=SEEDS) if FULL else [],
        expand(f"{DONE}/seed{{seed}}/{{study}}.ipynb", seed=FEW_SEEDS, study=LONG_STUDIES) if FULL else [],
        sources_of("notebooks/10_report.ipynb"),
        notebook="notebooks/10_report.ipynb",
    output:
        f"{DONE}/10_report.ipynb",
    params:
        f"{COMMON} {WEIGHTS} -p seeds '{SEEDS}'",
    resources:
        gpu=0,
    shell:
        RUN
