"""Teacher extraction: each teacher fitted or loaded once, its features stored and probed."""

import time
from pathlib import Path

import pandas as pd

from uniego_utils.features import linear_probe, read_features, write_features
from uniego_utils.runs import finish_run, is_finished, read_json
from uniego_utils.stage import Stage
from uniego_utils.teachers import describe, extract, fit_teacher


def prepare_teacher(stage: Stage, key: str) -> Path:
    """Fit or load the teacher `key`, store its features of the train and val splits, probe it.

    What is finished is reused, after checking that it belongs to today's manifests. Returns the run folder.
    """
    card = stage.card.teacher(key)
    folder = stage.outputs / "01_teacher_extraction" / key
    splits = list(dict.fromkeys([stage.card.teacher_split, "train", "val"]))
    manifests = {split: stage.manifest(split) for split in splits}
    started = time.perf_counter()
    pool = manifests[stage.card.teacher_split]
    fitted_before = is_finished(folder / "model")
    # loads a finished model, and refuses one of other settings before its features are reused
    model = fit_teacher(key, stage.card, stage.preset, pool, folder / "model", stage.seed, stage.device)
    fitted = time.perf_counter()
    if (
        fitted_before
        and is_finished(folder)
        and all((folder / f"{split}.safetensors").is_file() for split in splits)
    ):
        for split, manifest in manifests.items():
            read_features(folder / f"{split}.safetensors", manifest, card.width)
        probe = read_json(folder / "metrics.json")["probe_val_top1"]
        print(f"{key}: finished before, reused; probe {probe:.1f} %")
        return folder

    notes = describe(key, stage.card, stage.preset)
    features = {}
    for split, manifest in manifests.items():
        features[split] = extract(key, model, stage.card, stage.preset, manifest, stage.device)
        write_features(folder / f"{split}.safetensors", features[split], manifest, card.width, notes)
    extracted = time.perf_counter()
    clips = sum(map(len, manifests.values()))
    probe = linear_probe(
        features[stage.card.teacher_split], pool.labels, features["val"], manifests["val"].labels
    )
    finish_run(
        folder,
        {
            "probe_val_top1": probe,
            "fit_seconds": fitted - started,
            "extract_seconds": extracted - fitted,
            "extract_clips_per_s": clips / (extracted - fitted),
        },
    )
    print(
        f"{key}: fitted in {fitted - started:.0f} s, {clips} clips extracted in {extracted - fitted:.0f} s, "
        f"probe {probe:.1f} %"
    )
    return folder


def probe_table(stage: Stage, keys: list[str]) -> pd.DataFrame:
    """What is recorded of each teacher: probe accuracy (percent), seconds, clips per second."""
    folders = {key: stage.outputs / "01_teacher_extraction" / key for key in keys}
    return pd.DataFrame({key: read_json(folder / "metrics.json") for key, folder in folders.items()}).T
