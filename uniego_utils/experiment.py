"""What every notebook opens first: card, preset, recipe, paths and device, with all parameters checked."""

import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from uniego_utils.backbones import backbone_module
from uniego_utils.cards import CLASSES_FILE, PROJECT, Card, MethodCard, Preset, load_card
from uniego_utils.data.manifests import Manifest, load_manifest
from uniego_utils.data.video import ClipDataset
from uniego_utils.methods import METHODS, Method, proxy_of
from uniego_utils.parameters import REQUIRED, check_value, declared_types, unknown_parameters
from uniego_utils.recipes import Recipe, recipe_called
from uniego_utils.runs import read_json, run_name
from uniego_utils.training import read_metrics

SCORED = ("train", "val", "test")  # splits with labels, on which every student is scored
CARD_PAIRS = "card"  # of the parameter `pairs`: the split that the card names
SCORE_COLUMNS = {
    "train_top1": "train (%)",
    "val_top1": "validation (%)",
    "val_nll": "validation NLL (nats)",
}


@dataclass(frozen=True)
class Experiment:
    """One notebook's view of the experiment; paths are absolute."""

    card: Card
    preset: Preset
    method: MethodCard  # the card's, with the preset's changes
    recipe: Recipe
    recipe_name: str
    seed: int
    data_root: Path  # videos
    outputs: Path  # outputs/<dataset>
    device: torch.device
    interactive: bool
    weights: str = ""  # local file or folder of pretrained weights; "" for the hub
    pairs: str = ""  # split of pairs without labels that students learn on too; "": the paper's protocol
    decoded: dict[tuple, ClipDataset] = field(default_factory=dict, compare=False, repr=False)

    @property
    def data(self) -> Path:
        """Where notebook 00 writes manifests and what belongs to them."""
        return self.outputs / "00_data"

    def manifest(self, split: str) -> Manifest:
        """The clips of a split, validated."""
        if split not in self.card.splits:
            raise ValueError(
                f"{self.card.name} has no split {split!r}; choose one of {', '.join(self.card.splits)}"
            )
        views, labelled = self.card.views_of(split), split != self.card.pairs
        return load_manifest(self.data / f"{split}.csv", self.card.classes, self.data_root, views, labelled)

    def clips(self, split: str, view: str = "ego", progress: bool = True) -> ClipDataset:
        """Clips of a split from one view; where the card says so, decoded into memory, once."""
        manifest, video = self.manifest(split), self.preset.video
        if not video.cache:
            return ClipDataset(manifest, view, video)
        key = (split, view, video, manifest.digest)
        if key not in self.decoded:
            self.decoded[key] = ClipDataset(manifest, view, video).preload(progress)
        return self.decoded[key]

    def backbone(self) -> nn.Module:
        """A student with random weights, drawn from this experiment's seed."""
        build, video = backbone_module(self.preset.backbone).build, self.preset.video
        torch.manual_seed(self.seed)  # after the import, which might draw
        return build(len(self.card.classes), video.num_frames, video.image_size, self.preset.size)

    @cached_property
    def methods(self) -> dict[str, Method]:
        """Every student by its key: a proxy per teacher of the card, then the register's.

        Without pairs, those that need them are left out.
        """
        proxies = {key: proxy_of(key, teacher.label) for key, teacher in self.card.teachers.items()}
        return proxies | {key: each for key, each in METHODS.items() if self.pairs or not each.pairs_only}

    @cached_property
    def labels(self) -> dict[str, str]:
        """What students are called in tables and figures, by key."""
        return {key: method.label for key, method in self.methods.items()}

    @cached_property
    def teacher_labels(self) -> dict[str, str]:
        """What teachers are called in tables and figures, by key."""
        return {key: teacher.label for key, teacher in self.card.teachers.items()}

    @property
    def scored_splits(self) -> tuple[str, ...]:
        """The splits on which a finished student's outputs are stored."""
        return (*SCORED, self.pairs) if self.pairs else SCORED

    def student(self, key: str) -> Path:
        """Where a student's run folder lies; the error about an unknown one lists the valid ones."""
        students = self.students
        if key not in students:
            raise ValueError(f"no student {key}; choose of {', '.join(students)}")
        return students[key]

    @property
    def students(self) -> dict[str, Path]:
        """The run folder of every encoder by key; of imported checkpoints as `imported:<name>`."""
        folders = {key: self.folder(method.notebook) / key for key, method in self.methods.items()}
        imported = sorted((self.outputs / "imported").glob("*"))
        return folders | {f"imported:{path.name}": path for path in imported}

    @property
    def proxies(self) -> dict[str, Path]:
        """The run folders of the card's proxies by teacher, in its order."""
        students = self.students
        return {key: students[key] for key in self.card.teachers}

    def score_table(self, runs: Mapping[str, Path]) -> pd.DataFrame:
        """Training and validation scores of finished runs, a row each, by their students' names.

        Args:
            runs: run folders by the student's key.
        """
        table = pd.DataFrame({self.labels.get(key, key): read_metrics(path) for key, path in runs.items()}).T
        return table[list(SCORE_COLUMNS)].rename(columns=SCORE_COLUMNS).round(3)

    def folder(self, notebook: str, **changed: object) -> Path:
        """Run folder of a notebook, named after the seed and what differs from the card's usual, e.g.
        `02_proxy/seed0` and, with labels alone on a card that has pairs, `02_proxy/seed0-pairs=none`.
        """
        recipe = None if self.recipe_name == self.card.recipe else self.recipe_name
        usual = self.card.presets[next(iter(self.card.presets))].backbone
        backbone = None if self.preset.backbone == usual else self.preset.backbone
        pairs = None if self.pairs == self.card.pairs else self.pairs or "none"
        name = run_name(self.seed, recipe=recipe, backbone=backbone, pairs=pairs, **changed)
        return self.outputs / notebook / name


def open_experiment(names: dict[str, object]) -> Experiment:
    """Check a notebook's parameters and open its experiment: `experiment = open_experiment(globals())`.

    Args:
        names: the notebook's `globals()`. Its parameters cell declares name, type and default of all that it
            takes; a whole number given for a float is replaced by that float. Of the names that several
            notebooks share, `dataset`, `outputs` and `interactive` are required. `preset`, `recipe` and
            `backbone` are empty for the card's; `data_root`, where videos and annotations lie, for
            `<outputs>/<dataset>/00_data`; `weights`, a local file or folder of pretrained weights, for the
            hub. `pairs` is "card" for the card's split of pairs without labels, "" for none. Relative paths
            are meant from the project's folder.

    Raises:
        ValueError: an unknown parameter, dataset, preset, recipe or backbone; the message lists the valid
            ones.
        TypeError: a parameter of another type than declared.
    """
    declared = declared_types(names)
    if missing := REQUIRED - declared.keys():
        raise ValueError(f'declare the parameters {", ".join(sorted(missing))}, e.g. dataset: str = "mocap"')
    if unknown := unknown_parameters(names, declared):
        raise ValueError(
            f"unknown parameter {', '.join(sorted(unknown))}; this notebook takes {', '.join(declared)}"
        )
    given = {name: check_value(name, kind, names[name]) for name, kind in declared.items()}
    names.update(given)

    seeds = given.get("seeds") or [0]
    common = {name: given[name] for name in COMMON if name in given}
    return create_experiment(**{"seed": seeds[0], **common})


def create_experiment(
    dataset: str,
    outputs: str,
    preset: str = "",
    seed: int = 0,
    backbone: str = "",
    recipe: str = "",
    weights: str = "",
    data_root: str = "",
    interactive: bool = False,
    pairs: str = "",
) -> Experiment:
    """An experiment outside a notebook; arguments as the parameters of `open_experiment`.

    Raises:
        ValueError: an unknown dataset, preset, recipe, backbone or split of pairs; the message lists the
            valid ones.
    """
    card = load_card(dataset)
    chosen = card.preset(preset)
    if backbone:
        backbone_module(backbone)  # a mistyped name is refused here, not taken for runs that are missing
        chosen = replace(chosen, backbone=backbone)
    if pairs not in ("", CARD_PAIRS, card.pairs):
        usual = f'{card.pairs!r}, as "{CARD_PAIRS}"' if card.pairs else "the card names no split of pairs"
        raise ValueError(f'unknown pairs {pairs!r} for {card.name}; choose "" (labels alone) or {usual}')
    folder = project_path(outputs) / dataset
    named = folder / "00_data" / CLASSES_FILE
    if not card.classes and named.is_file():
        card = replace(card, classes=tuple(read_json(named)))
    return Experiment(
        card=card,
        preset=chosen,
        method=replace(card.method, **chosen.method),
        recipe=recipe_called(recipe or card.recipe),
        recipe_name=recipe or card.recipe,
        seed=seed,
        data_root=project_path(data_root) if data_root else folder / "00_data",
        outputs=folder,
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        interactive=interactive,
        weights=str(project_path(weights)) if weights else "",
        pairs=card.pairs if pairs == CARD_PAIRS else pairs,
    )


COMMON = tuple(inspect.signature(create_experiment).parameters)  # parameters that notebooks share


def project_path(path: str) -> Path:
    """An absolute path as it is; a relative one from the project's folder, whatever the working folder."""
    return Path(os.path.normpath(PROJECT / Path(path).expanduser()))
