"""Teacher extraction: each teacher fitted or loaded once, its features stored shard by shard, and probed.

A shard is a file of so many clips' features. Shards are made independently: of several GPUs each
takes every n-th, and an interruption loses those in the making.
"""

import shutil
import time
from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from uniego_utils.data.manifests import Manifest
from uniego_utils.experiment import Experiment
from uniego_utils.runs import (
    finish_run,
    is_finished,
    read_json,
    read_tensors,
    require_finished,
    start_run,
    write_tensors,
)
from uniego_utils.teachers import fingerprint, fit_teacher, is_fitted_here, load_teacher, plan, teacher_module
from uniego_utils.teachers.batches import Job
from uniego_utils.teachers.features import (
    check_features,
    describe_features,
    linear_probe,
    read_features,
    write_features,
)
from uniego_utils.training import score

SHARD = 512  # clips
BATCH = 16  # clips
PILOT = 3  # clips timed before extraction starts


def prepare_teacher(experiment: Experiment, key: str) -> Path:
    """Fit or load the teacher `key`, store its features of train, val and the card's pairs, and probe it.

    What is finished is reused, after checking that it belongs to today's manifests, weights and libraries.
    Returns the run folder.

    Raises:
        ValueError: features that cannot teach, or a folder made with another fingerprint.
        OSError: too little room on the disk.
    """
    job = plan(
        key, experiment.card, experiment.preset, experiment.device, experiment.seed, experiment.weights
    )
    folder = experiment.outputs / "01_teacher_extraction" / key
    card = experiment.card
    splits = dict.fromkeys([card.teacher_split, "train", "val", *([card.pairs] if card.pairs else [])])
    manifests = {split: experiment.manifest(split) for split in splits}
    started = time.perf_counter()
    model = fit_teacher(job, manifests[experiment.card.teacher_split], folder / "model")
    fitted = time.perf_counter()
    digests = {split: manifest.digest for split, manifest in manifests.items()}
    config = {"fingerprint": fingerprint(job, model), "manifests": digests}
    cure = f"Restore what changed, or delete everything in {folder} but `model` to extract anew"
    if start_run(folder, config, cure):
        for split, manifest in manifests.items():
            read_features(folder / f"{split}.safetensors", manifest, job.teacher.width)
        probe = read_json(folder / "metrics.json")["probe_val_top1"]
        print(f"{key}: finished before, reused; probe {probe:.1f} %")
        return folder

    print(estimate(job, model, manifests.values(), folder))
    devices = [torch.device("cuda", n) for n in range(torch.cuda.device_count())] or [experiment.device]
    clips = sum(extract(job, model, manifest, folder, devices) for manifest in manifests.values())
    features = {split: join_shards(job, manifest, folder) for split, manifest in manifests.items()}
    extracted = time.perf_counter()
    probe = linear_probe(
        features[experiment.card.teacher_split],
        manifests[experiment.card.teacher_split].labels,
        features["val"],
        manifests["val"].labels,
    )
    finish_run(
        folder,
        {
            "probe_val_top1": probe,
            "fit_seconds": fitted - started,
            "extract_seconds": extracted - fitted,
            "extract_clips_per_s": clips / (extracted - fitted),  # without those of an interrupted run
            **{f"clips_{split}": len(manifest) for split, manifest in manifests.items()},
            **describe_features(features["train"]),
        },
    )
    print(
        f"{key}: {'fitted' if is_fitted_here(job) else 'loaded'} in {fitted - started:.0f} s, "
        f"{clips} clips extracted in {extracted - fitted:.0f} s, probe {probe:.1f} %"
    )
    return folder


def classify_clips(experiment: Experiment, key: str, split: str, folder: Path) -> dict[str, float]:
    """How well a teacher names the action by itself: the paper's exocentric inference (Table 2).

    Args:
        key: a teacher that was fitted here on labels, with a classifier of its own.
        folder: run folder for its features of the split; reused if finished.

    Returns:
        `<split>_top1` in percent and `<split>_nll` in nats.

    Raises:
        ValueError: the teacher has no classifier, or the split lacks the view that it watches.
        FileNotFoundError: it was not fitted yet.
    """
    if (view := experiment.card.teacher(key).viewpoint) not in experiment.card.views_of(split):
        raise ValueError(f"{key} watches the {view} view, which {split!r} has not (`ego_only` on the card)")
    job = plan(
        key, experiment.card, experiment.preset, experiment.device, experiment.seed, experiment.weights
    )
    fitted = experiment.outputs / "01_teacher_extraction" / key / "model"
    if is_fitted_here(job):
        require_finished(fitted, "run notebook 01_teacher_extraction")
    model, manifest = load_teacher(job, fitted), experiment.manifest(split)
    if not isinstance(getattr(model, "head", None), nn.Linear):
        raise ValueError(f"{key} has no classifier of its own; choose a teacher that is trained on labels")
    config = {"fingerprint": fingerprint(job, model), "manifest": manifest.digest}
    if not start_run(folder, config):
        extract(job, model, manifest, folder, [experiment.device])
        features = join_shards(job, manifest, folder).to(experiment.device)
        with torch.inference_mode():
            logits = model.head(features).float().cpu()
        scores = score(logits, torch.tensor(manifest.labels))
        finish_run(folder, {f"{split}_{name}": value for name, value in scores.items()})
    return read_json(folder / "metrics.json")


def shard_files(folder: Path, manifest: Manifest, shard: int = SHARD) -> dict[range, Path]:
    """The rows of each shard of a manifest, and its file."""
    rows = range(len(manifest))
    parts = [rows[first : first + shard] for first in rows[::shard]]
    return {
        part: Path(folder) / "shards" / f"{manifest.split}-{part.start:07d}-{part.stop:07d}.safetensors"
        for part in parts
    }


def extract(
    job: Job,
    model: nn.Module,
    manifest: Manifest,
    folder: Path,
    devices: list[torch.device],
    shard: int = SHARD,
) -> int:
    """Write the shards of a manifest that are missing: one process a device, each takes every n-th.

    Memory does not grow with the number of clips: no process holds more than a shard's features.

    Args:
        model: the frozen teacher on `job.device`.
        folder: the teacher's run folder; it holds `model` if the teacher was fitted here.
        devices: the first is `job.device`.

    Returns:
        How many clips were extracted now.

    Raises:
        ValueError: features of a wrong shape, constant or not finite; names the clips.
        VideoError: a video that is damaged or too short.
    """
    todo = missing_shards(folder, manifest, shard)
    count = max(1, min(len(devices), len(todo)))
    shares = [todo[turn::count] for turn in range(count)]
    others = torch.multiprocessing.spawn(
        _extract_on, (devices[1:], job, manifest, folder, shares[1:]), count - 1, join=False
    )
    try:
        _extract_shards(job, model, manifest, shares[0])  # this process has the first device
    except BaseException:
        for process in others.processes:
            process.terminate()
        raise
    while not others.join():
        pass
    return sum(len(rows) for rows, _ in todo)


def missing_shards(folder: Path, manifest: Manifest, shard: int = SHARD) -> list[tuple[range, Path]]:
    """Rows and files of the shards that are still to be made; none where they were joined before."""
    if (Path(folder) / f"{manifest.split}.safetensors").is_file():
        return []
    shards = shard_files(folder, manifest, shard)
    return [(rows, path) for rows, path in shards.items() if not path.is_file()]


def _extract_on(
    turn: int, devices: list[torch.device], job: Job, manifest: Manifest, folder: Path, shares: list[list]
) -> None:
    """What the process of a further device does."""
    job = replace(job, device=devices[turn], progress=False)
    _extract_shards(job, load_teacher(job, Path(folder) / "model"), manifest, shares[turn])


@torch.inference_mode()
def _extract_shards(job: Job, model: nn.Module, manifest: Manifest, shards: list[tuple[range, Path]]) -> None:
    """One stream of batches over all given shards, so that decoding never waits at a shard's end."""
    module, clip_ids = teacher_module(job.teacher.model), manifest.rows["clip_id"].tolist()
    batches = [
        list(rows[first : first + BATCH]) for rows, _ in shards for first in range(0, len(rows), BATCH)
    ]
    stream = iter(
        DataLoader(
            module.clips(job, manifest),
            batch_sampler=batches,
            num_workers=job.preset.video.workers,
            pin_memory=job.device.type == "cuda",
        )
    )
    total = sum(len(rows) for rows, _ in shards)
    name = f"{job.key} {manifest.split}"
    with tqdm(total=total, desc=name, unit="clip", disable=not job.progress or not total, leave=False) as bar:
        for rows, path in shards:
            features: list[Tensor] = []
            for _ in range(0, len(rows), BATCH):
                clips = next(stream).to(job.device, non_blocking=True)
                features.append(module.encode(model, clips, job).float().cpu())
                bar.update(len(clips))
            whole = torch.cat(features)
            check_features(whole, [clip_ids[row] for row in rows], job.teacher.width, name)
            write_tensors(path, {"features": whole})


def join_shards(job: Job, manifest: Manifest, folder: Path, shard: int = SHARD) -> Tensor:
    """All shards of a manifest as one feature file `<split>.safetensors`; the shards are removed then.

    Returns the features (N, width) in manifest order.
    """
    path = Path(folder) / f"{manifest.split}.safetensors"
    shards = shard_files(folder, manifest, shard).values()
    if not path.is_file():
        features = torch.cat([read_tensors(shard)["features"] for shard in shards])
        notes = {"teacher": job.key, **teacher_module(job.teacher.model).notes(job)}
        write_features(path, features, manifest, job.teacher.width, notes)
    for file in shards:
        file.unlink(missing_ok=True)
    return read_features(path, manifest, job.teacher.width)


@torch.inference_mode()
def estimate(job: Job, model: nn.Module, manifests: Iterable[Manifest], folder: Path) -> str:
    """What an extraction will take, from timing a few clips: room on the disk and time on one device.

    Raises:
        OSError: there is not enough room on the disk.
    """
    manifests = list(manifests)
    clips = sum(len(rows) for manifest in manifests for rows, _ in missing_shards(folder, manifest))
    needed = 2 * 4 * clips * job.teacher.width  # bytes: float32, shards and the joined file side by side
    there = next(parent for parent in (Path(folder), *Path(folder).parents) if parent.exists())
    if (free := shutil.disk_usage(there).free) < needed:
        raise OSError(
            f"{job.key}: features of {clips} clips need {needed / 1e9:.1f} GB below {there}, where "
            f"{free / 1e9:.1f} GB are free; make room or choose other `outputs`"
        )
    module = teacher_module(job.teacher.model)
    dataset = module.clips(job, manifests[0])
    started = time.perf_counter()
    pilot = torch.stack([dataset[row] for row in range(min(PILOT, len(dataset)))])
    decode = (time.perf_counter() - started) / len(pilot)
    compute = 0.0
    for _ in range(2):  # the first warms up
        started = time.perf_counter()
        module.encode(model, pilot.to(job.device), job).cpu()
        compute = (time.perf_counter() - started) / len(pilot)
    workers = job.preset.video.workers
    seconds = max(decode / workers, compute) if workers else decode + compute
    return (
        f"{job.key}: {clips} clips, {needed / 2e6:.1f} MB, about {timedelta(seconds=round(seconds * clips))} "
        f"on one {job.device.type} (a clip: {1e3 * decode:.0f} ms to decode in {max(workers, 1)} workers, "
        f"{1e3 * compute:.0f} ms to encode)"
    )


def teacher_table(experiment: Experiment, keys: list[str]) -> pd.DataFrame:
    """What is recorded of each finished teacher: clips, probe (percent), health of its features, speed."""
    folders = {key: experiment.outputs / "01_teacher_extraction" / key for key in keys}
    finished = {key: folder for key, folder in folders.items() if is_finished(folder)}
    return pd.DataFrame({key: read_json(folder / "metrics.json") for key, folder in finished.items()}).T
