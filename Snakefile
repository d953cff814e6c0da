# The notebooks as rules. Only executed notebooks and the page are declared as outputs: Snakemake deletes the declared
# outputs of killed jobs, and the run folders hold the checkpoints to resume from. `params` carries every parameter, because
# only what stands there is noticed when it changes.
import sys

from uniego_utils.cards import load_card
from uniego_utils.pipeline.runner import sources_of, visible_gpus

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
CONTENT = load_card(DATASET)
TEACHERS = list(CONTENT.teachers)

DONE = f"{OUTPUTS}/{DATASET}/notebooks"  # executed notebooks
PAGE = f"{OUTPUTS}/{DATASET}/10_report/index.html"
COMMON = f"-p dataset {DATASET} -p preset '{PRESET}' -p outputs '{OUTPUTS}' -p data_root '{DATA_ROOT}' -p interactive false"
GPU = min(1, len(visible_gpus()))
STUDENT_THREADS = 2 if len(SEEDS) == 1 else 1  # several seeds run beside each other instead
FEW = SEEDS[:3]
LATER = {  # after Level II; notebook: the one it needs, the seeds it is run for, its priority
    "05_retrieval": ("04_spd", SEEDS, 35),
    "07_cka": ("04_spd", SEEDS, 35),
    "08_gradient_conflict": ("04_spd", FEW, 30),
    "09_proxy_selection": ("04_spd", FEW, 30),
    "11_loss_landscape": ("04_spd", FEW, 30),
}
if CONTENT.segments:
    LATER["06_segmentation"] = ("04_spd", FEW, 30)
if FULL:
    LATER |= {
        "12_ablation": ("04_spd", SEEDS, 25),
        "13_reliability": ("04_spd", FEW, 15),
        "14_poor_teachers": ("13_reliability", FEW, 5),
        "15_projection": ("02_proxy", FEW, 10),
        "16_unlabelled": ("04_spd", SEEDS, 20),
    }
RUN = (
    f"exec {sys.executable} -m uniego_utils.pipeline.runner run {{input.notebook}} {{output}} {{params}}"
    " --threads {threads} --gpus {resources.gpu}"
)


def takes_weights(notebook):
    """Whether a notebook has the parameter `weights`."""
    return "weights: str" in Path("notebooks", f"{notebook}.ipynb").read_text(encoding="utf-8")


wildcard_constraints:
    teacher="|".join(TEACHERS),
    seed=r"\d+",


localrules:
    all,
    page,


rule all:
    input:
        PAGE,


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


for study, (needed, _, urgency) in LATER.items():

    rule:
        name:
            study
        input:
            CARD,
            f"{DONE}/seed{{seed}}/{needed}.ipynb",
            sources_of(f"notebooks/{study}.ipynb"),
            notebook=f"notebooks/{study}.ipynb",
        output:
            f"{DONE}/seed{{seed}}/{study}.ipynb",
        params:
            f"{COMMON} {WEIGHTS}" if takes_weights(study) else COMMON,
            lambda wildcards: f"-p seed {wildcards.seed}",
        priority: urgency
        resources:
            gpu=GPU,
        shell:
            RUN


rule report:
    input:
        CARD,
        rules.teachers.output,
        [f"{DONE}/seed{seed}/{study}.ipynb" for study, (_, seeds, _) in LATER.items() for seed in seeds],
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


rule page:
    input:
        "uniego_utils/report/page.py",
        notebook=rules.report.output,
    output:
        PAGE,
    shell:
        f"exec {sys.executable} -m uniego_utils.report.page {{input.notebook}} {{output}}"
