"""Notebook 00's work: clips generated or found on disk, their skeletons, and manifests of those usable."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from uniego_utils.cards import CARDS, CLASSES_FILE, Card, from_mapping, load_card, merged
from uniego_utils.data import pose
from uniego_utils.data.manifests import Manifest
from uniego_utils.data.skeletons import (
    convert_npz,
    convert_pyskl,
    layout_of,
    skeleton_fault,
    skeleton_file,
)
from uniego_utils.data.usable import GENERATED, Summary, builder_module, write_manifests
from uniego_utils.experiment import Experiment, project_path
from uniego_utils.mocap import clips as mocap
from uniego_utils.mocap import untrimmed
from uniego_utils.runs import digest, read_json, read_tensors
from uniego_utils.teachers import plan


def seen_by_teachers(card: Card) -> tuple[str, ...]:
    """The splits whose clips need skeletons; test clips are the student's alone."""
    return ("train", "val", card.pairs) if card.pairs else ("train", "val")


@dataclass(frozen=True)
class GivenSkeletons:
    """Skeleton files that the user gives, one a clip, named by it; `faults` says why some clips have none."""

    folder: Path
    layout: str
    faults: Mapping[str, str] = field(default_factory=dict, repr=False)  # clip_id -> reason

    def __call__(self, clip: pd.Series) -> dict[str, Tensor]:
        """The tensors of a clip's file. Raises ValueError if there is none, or none that can be used."""
        path = self._path(clip)
        if fault := self.faults.get(clip["clip_id"]):
            raise ValueError(fault)
        if not path.is_file():
            raise ValueError("none of this clip in the skeletons given")
        if fault := skeleton_fault(path, layout_of(self.layout)):
            raise ValueError(fault)
        return read_tensors(path)

    def stamp(self, clip: pd.Series) -> str:
        """A digest of a clip's file, by which another file in its place is noticed."""
        path = self._path(clip)
        return digest(path) if path.is_file() else ""

    def _path(self, clip: pd.Series) -> Path:
        return self.folder / skeleton_file(clip["clip_id"])


def prepare_data(
    experiment: Experiment, changes: Mapping[str, Any], allow_missing: float, skeletons: str
) -> tuple[Experiment, Summary]:
    """Make or find the clips of the experiment's card, check every file, write the manifests.

    Args:
        changes: of the settings of the card's builder (`data` of the preset).
        allow_missing: share of the annotated clips that may be unusable; they are left out and listed.
        skeletons: a pyskl-style pickle, or a folder of npz or safetensors files named by clip; empty: those
            that the dataset publishes or, if it publishes none, estimated from the exo videos.

    Returns:
        The experiment, with the classes that the annotations name if the card names none; and its clips'
        counts.

    Raises:
        ValueError: unknown settings, more unusable clips than allowed, a class or split without clips.
        FileNotFoundError: official annotations are missing, or `skeletons` is.
    """
    content = merged(experiment.preset.data, changes)
    where = f"{experiment.card.name}: settings of its builder"
    if experiment.card.builder == GENERATED:
        return experiment, _generate(
            experiment, from_mapping(mocap.MocapSettings, {**content, "seed": experiment.seed}, where)
        )
    builder = builder_module(experiment.card.builder)
    settings = from_mapping(builder.Settings, content, where)
    named = load_card(experiment.card.name).classes  # not those that an earlier run found
    annotated = builder.annotated(experiment.data_root, settings, named)
    needs = skeleton_columns(experiment)
    if skeletons and "skeleton" in needs:
        annotated = replace(annotated, skeleton=given_skeletons(experiment, skeletons))
    published = {"skeleton"} if annotated.skeleton is not None else set()
    listed = {column for column in needs if column in annotated.clips}
    splits = seen_by_teachers(experiment.card)
    with_reasons = _with_reason_for_blanks(annotated.clips, listed - published, splits)
    annotated = replace(annotated, clips=with_reasons)
    published |= listed
    summary = write_manifests(
        experiment.card,
        annotated,
        experiment.data_root,
        experiment.data,
        allow_missing,
        splits if needs else (),
        estimators={
            column: _estimator(experiment, column, needs[column]) for column in needs.keys() - published
        },
    )
    classes = tuple(read_json(experiment.data / CLASSES_FILE))
    return replace(experiment, card=replace(experiment.card, classes=classes)), summary


def _with_reason_for_blanks(
    clips: pd.DataFrame, columns: Iterable[str], splits: tuple[str, ...]
) -> pd.DataFrame:
    """Clips that teachers see but whose table names no skeleton get a reason."""
    for column in columns:
        blank = clips[column].isna() & clips["split"].isin(splits) & clips["reason"].isna()
        clips = clips.assign(reason=clips["reason"].astype(object).mask(blank, "no skeleton: none named"))
    return clips


def skeleton_columns(experiment: Experiment) -> dict[str, str | None]:
    """The manifest's columns with skeletons that the card's teachers read, and the layout of each."""
    columns = {}
    for key in experiment.card.teachers:
        settings = plan(key, experiment.card, experiment.preset).settings
        if column := getattr(settings, "skeleton", None):
            columns[column] = settings.layout or experiment.card.skeleton
    return columns


def given_skeletons(experiment: Experiment, skeletons: str) -> GivenSkeletons:
    """Skeletons from a file or folder that the user gives, converted to the suite's format."""
    place, layout = project_path(skeletons), experiment.card.skeleton
    arrays = [place] if place.is_file() else sorted(place.glob("*.npz"))
    if not arrays:
        if not any(place.glob("*.safetensors")):
            raise FileNotFoundError(
                f"skeletons={skeletons!r} is no pickle and no folder of .npz or .safetensors files "
                f"named by clip"
            )
        return GivenSkeletons(place, layout)
    content = digest("".join(digest(path) for path in arrays).encode())[:12]
    converted = experiment.data / "converted_skeletons" / content  # never those of another file
    if place.is_file():
        table = convert_pyskl(place, layout, converted)
    else:
        table = convert_npz(arrays, layout, converted)
    faulty = table[table["reason"] != ""]
    return GivenSkeletons(converted, layout, dict(zip(faulty["clip_id"], faulty["reason"], strict=True)))


def _estimator(experiment: Experiment, column: str, layout: str | None) -> Callable[[Manifest], pd.DataFrame]:
    """What estimates the skeletons of a manifest's clips from their exo videos."""
    if layout != pose.LAYOUT:
        raise ValueError(
            f"{experiment.card.name} publishes no skeletons of {layout}, and estimated ones are of "
            f"{pose.LAYOUT}; give them by the parameter `skeletons`, or change the card's skeleton"
        )
    settings = from_mapping(
        pose.Settings, experiment.preset.pose, f"{experiment.card.name}: settings of pose"
    )
    return partial(
        pose.estimate,
        view="exo",
        folder=experiment.data / f"{column}s",
        settings=settings,
        weights=experiment.weights,
        device=experiment.device,
    )


def _generate(experiment: Experiment, settings: mocap.MocapSettings) -> Summary:
    motions = CARDS / "mocap" / "humanoid_motions.npz"
    mocap.build(experiment.data_root, motions, settings, manifests=experiment.data)
    if experiment.preset.untrimmed:
        where = f"{experiment.card.name}: settings of untrimmed videos"
        videos = from_mapping(untrimmed.UntrimmedSettings, experiment.preset.untrimmed, where)
        untrimmed.build(experiment.data_root, motions, settings, videos, manifests=experiment.data)
    counts = {split: len(experiment.manifest(split)) for split in experiment.card.splits}
    reasons = pd.DataFrame({"split": [], "reason": [], "clips": []})
    return Summary(pd.DataFrame({"annotated": counts, "usable": counts}), reasons, {})
