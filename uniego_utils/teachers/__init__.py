"""The nine teachers: fitted once on the card's teacher split, then frozen.

One module a kind of teacher. Each has `Settings` (its numbers, from the preset's `teachers.<module>` and the
teacher's own `settings`), `build`, `train`, `encode` and `notes`.
"""

import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from uniego_utils.manifests import Card, Manifest, Preset, from_mapping, merged
from uniego_utils.runs import finish_run, read_tensors, start_run, write_tensors
from uniego_utils.teachers import depth, dino, siglip, skego, stgcn, timesformer
from uniego_utils.teachers.batches import Job
from uniego_utils.training import write_history

MODULES = {
    module.__name__.rpartition(".")[2]: module for module in (timesformer, depth, stgcn, skego, dino, siglip)
}


def plan(
    key: str, card: Card, preset: Preset, device: torch.device | str = "cpu", progress: bool = True
) -> Job:
    """What the teacher's module is told; the teacher's own settings lie over the preset's.

    Raises:
        ValueError: an unknown teacher, module or setting; valid ones are listed.
    """
    teacher = card.teacher(key)
    if teacher.model not in MODULES:
        raise ValueError(f"{key}: unknown model {teacher.model!r}; choose one of {', '.join(MODULES)}")
    content = merged(preset.teachers.get(teacher.model, {}), teacher.settings)
    settings = from_mapping(MODULES[teacher.model].Settings, content, f"{card.name}: settings of {key}")
    preset = replace(preset, video=replace(preset.video, **preset.teacher_video))
    return Job(key, teacher, settings, card, preset, torch.device(device), progress=progress)


def fit_teacher(
    key: str,
    card: Card,
    preset: Preset,
    manifest: Manifest,
    folder: Path,
    seed: int,
    device: torch.device | str,
    progress: bool = True,
) -> nn.Module:
    """Train a teacher on `manifest`, or load it if `folder` holds it finished; frozen, in eval mode.

    Writes `model.safetensors`, `history.jsonl` and `metrics.json`. An interrupted fit resumes from its last
    epoch.

    Raises:
        ValueError: the folder was made with other settings, another manifest or seed.
    """
    folder = Path(folder)
    job = replace(
        plan(key, card, preset, device, progress), seed=seed, checkpoint=folder / "checkpoint.safetensors"
    )
    module = MODULES[job.teacher.model]
    config = {
        "teacher": key,
        **{
            name: value
            for name, value in asdict(job.teacher).items()
            if name not in ("label", "licence", "settings")
        },
        "settings": asdict(job.settings),
        "video": asdict(job.preset.video),
        "manifest": manifest.digest,
        "seed": seed,
    }
    finished = start_run(folder, config)
    with torch.random.fork_rng(devices=[]):  # the caller's own draws stay as they are
        torch.manual_seed(seed)
        model = module.build(job, manifest)
        if not finished:
            started = time.perf_counter()
            history = module.train(model, job, manifest)
            write_history(folder, history)
            write_tensors(folder / "model.safetensors", model.state_dict())
            final = {name: value for name, value in history[-1].items() if name not in ("lr", "seconds")}
            finish_run(folder, {**final, "seconds": round(time.perf_counter() - started, 1)})
            job.checkpoint.unlink(missing_ok=True)
    model.load_state_dict(read_tensors(folder / "model.safetensors"))
    return model.to(job.device).eval().requires_grad_(False)


def extract(
    key: str,
    model: nn.Module,
    card: Card,
    preset: Preset,
    manifest: Manifest,
    device: torch.device | str,
    progress: bool = True,
) -> Tensor:
    """A frozen teacher's features of all clips, in manifest order: (N, width) float32 on the CPU.

    Raises:
        ValueError: the features have not the card's width.
    """
    job = plan(key, card, preset, device, progress)
    features = MODULES[job.teacher.model].encode(model.to(job.device).eval(), job, manifest).float()
    if features.shape != (len(manifest), job.teacher.width):
        raise ValueError(
            f"{key}: features {tuple(features.shape)} for {len(manifest)} clips, "
            f"but the card says width {job.teacher.width}"
        )
    return features


def describe(key: str, card: Card, preset: Preset) -> dict[str, str]:
    """How a teacher's features are made, for the feature file: model, preprocessing, pooling."""
    job = plan(key, card, preset)
    return {"teacher": key, **MODULES[job.teacher.model].notes(job)}
