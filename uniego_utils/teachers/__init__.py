"""The nine teachers: fitted once on the card's teacher split or loaded with pretrained weights, then frozen.

One module a kind of teacher. Each has `Settings` (its numbers, from the preset's `teachers` and the teacher's
own `settings`), `build` (the network), `clips` (what it is given of each clip, decoded in workers), `encode`
(a batch of these -> features) and `notes` (how features were made); those that are fitted here have `train`.
"""

import time
from dataclasses import asdict, replace
from importlib import import_module, metadata
from pathlib import Path

import torch
from torch import nn

from uniego_utils.backbones.pretrained import state_digest
from uniego_utils.cards import Card, Preset, from_mapping, merged
from uniego_utils.data.manifests import Manifest
from uniego_utils.runs import FEATURE_PACKAGES, finish_run, read_tensors, start_run, write_tensors
from uniego_utils.teachers.batches import Job
from uniego_utils.training import write_history

MODULES = {
    name: import_module(f"uniego_utils.teachers.{name}")
    for name in (
        *("timesformer", "depth", "stgcn", "skego", "dino", "siglip"),  # fitted here
        *("foundation", "depth_anything", "skego_clip"),  # pretrained
    )
}
SPEED = ("frames_per_pass",)  # settings that change nothing but speed
UNSEEN = ("label", "licence", "settings")  # fields of a teacher's card that do not change its features


def plan(
    key: str,
    card: Card,
    preset: Preset,
    device: torch.device | str = "cpu",
    seed: int = 0,
    weights: str = "",
    progress: bool = True,
) -> Job:
    """What the teacher's module is told.

    The teacher's own settings lie over the preset's for its kind, and the preset's for its key over both.

    Raises:
        ValueError: an unknown teacher, module or setting; valid ones are listed.
    """
    teacher = card.teacher(key)
    if teacher.model not in MODULES:
        raise ValueError(f"{key}: unknown model {teacher.model!r}; choose one of {', '.join(MODULES)}")
    if unknown := preset.teachers.keys() - MODULES.keys() - card.teachers.keys():
        valid = ", ".join([*MODULES, *card.teachers])
        raise ValueError(
            f"{card.name}: settings of unknown teachers {', '.join(sorted(unknown))}; valid ones are {valid}"
        )
    content = merged(
        merged(preset.teachers.get(teacher.model, {}), teacher.settings), preset.teachers.get(key, {})
    )
    settings = from_mapping(MODULES[teacher.model].Settings, content, f"{card.name}: settings of {key}")
    preset = replace(preset, video=replace(preset.video, **preset.teacher_video))
    return Job(
        key, teacher, settings, card, preset, torch.device(device), seed, progress=progress, weights=weights
    )


def is_fitted_here(job: Job) -> bool:
    """Whether the teacher is trained on the card's teacher split; otherwise its weights are pretrained."""
    return hasattr(MODULES[job.teacher.model], "train")


def load_teacher(job: Job, folder: Path) -> nn.Module:
    """The frozen teacher on the job's device, in eval mode; `folder` holds it if it was fitted here."""
    with torch.random.fork_rng(devices=[]):  # the caller's own draws stay as they are
        model = MODULES[job.teacher.model].build(job)
    if is_fitted_here(job):
        model.load_state_dict(read_tensors(Path(folder) / "model.safetensors"))
    return model.to(job.device).eval().requires_grad_(False)


def fit_teacher(job: Job, manifest: Manifest, folder: Path) -> nn.Module:
    """The frozen teacher: trained on `manifest`, or loaded if `folder` holds it or weights are pretrained.

    Writes `model.safetensors`, `history.jsonl` and `metrics.json`. An interrupted fit resumes from its last
    epoch.

    Raises:
        ValueError: the folder was made with other settings, another manifest or seed.
    """
    if not is_fitted_here(job):
        return load_teacher(job, folder)
    folder = Path(folder)
    job = replace(job, checkpoint=folder / "checkpoint.safetensors")
    module = MODULES[job.teacher.model]
    config = {
        "teacher": job.key,
        **{name: value for name, value in asdict(job.teacher).items() if name not in UNSEEN},
        "settings": asdict(job.settings),
        "video": asdict(job.preset.video),
        "manifest": manifest.digest,
        "seed": job.seed,
    }
    if not start_run(folder, config):
        started = time.perf_counter()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(job.seed)
            model = module.build(job)
            history = module.train(model, job, manifest)
        write_history(folder, history)
        write_tensors(folder / "model.safetensors", model.state_dict())
        final = {name: value for name, value in history[-1].items() if name not in ("lr", "seconds")}
        finish_run(folder, {**final, "seconds": round(time.perf_counter() - started, 1)})
        job.checkpoint.unlink(missing_ok=True)
    return load_teacher(job, folder)


def fingerprint(job: Job, model: nn.Module) -> dict:
    """All that a teacher's features depend on besides the clips: weights, preprocessing, libraries."""
    return {
        "teacher": job.key,
        **{name: value for name, value in asdict(job.teacher).items() if name not in UNSEEN},
        **MODULES[job.teacher.model].notes(job),
        "settings": {name: value for name, value in asdict(job.settings).items() if name not in SPEED},
        "span_s": job.preset.video.span_s,
        "weights": state_digest(model),
        **{library: metadata.version(library) for library in FEATURE_PACKAGES},
    }
