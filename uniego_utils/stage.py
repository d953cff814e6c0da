"""What every notebook opens first: card, preset, recipe, paths and device, with all parameters checked."""

import ast
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from uniego_utils.backbones import create_backbone
from uniego_utils.manifests import (
    CLASSES_FILE,
    PROJECT,
    Card,
    Manifest,
    MethodCard,
    Preset,
    load_card,
    load_manifest,
)
from uniego_utils.recipes import Recipe, recipe_called
from uniego_utils.runs import read_json, run_name
from uniego_utils.video import ClipDataset

LITERALS = (bool, int, float, str, list, tuple, dict, type(None))
JUPYTER_NAMES = {"In", "Out"}  # plain containers that IPython keeps among a notebook's names
EVERYWHERE = {"dataset", "outputs", "interactive"}  # set together by parameters cells alone


@dataclass(frozen=True)
class Stage:
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
        return load_manifest(self.data / f"{split}.csv", self.card.classes, self.data_root, self.card.views)

    def clips(self, split: str, view: str = "ego", progress: bool = True) -> ClipDataset:
        """Clips of a split from one view, decoded into memory where the card says so."""
        dataset = ClipDataset(self.manifest(split), view, self.preset.video)
        return dataset.preload(progress) if self.preset.video.cache else dataset

    def backbone(self) -> nn.Module:
        """A student with random weights, drawn from this stage's seed."""
        torch.manual_seed(self.seed)
        video = self.preset.video
        classes = len(self.card.classes)
        return create_backbone(
            self.preset.backbone, classes, video.num_frames, video.image_size, self.preset.size
        )

    def folder(self, notebook: str, **changed: object) -> Path:
        """Run folder of a notebook for this stage's seed, recipe and backbone, e.g. `02_proxy/seed0`."""
        recipe = None if self.recipe_name == self.card.recipe else self.recipe_name
        usual = self.card.presets[next(iter(self.card.presets))].backbone
        backbone = None if self.preset.backbone == usual else self.preset.backbone
        return self.outputs / notebook / run_name(self.seed, recipe=recipe, backbone=backbone, **changed)


def open_stage(
    names: Mapping[str, object],
    *,
    dataset: str,
    preset: str,
    seed: int,
    outputs: str,
    data_root: str = "",
    backbone: str = "",
    recipe: str = "",
    interactive: bool = False,
    weights: str | None = None,
    **own: object,
) -> Stage:
    """Check a notebook's parameters and open its stage.

    Args:
        names: the notebook's `globals()`. papermill only warns about a parameter that a notebook doesn't
            have, so any plain value in them that was not passed on here is refused; see `parameter_names`.
        dataset: a card in `data_manifests/`.
        preset: a preset of that card; empty for its first.
        outputs: where everything is written; a relative path is meant from the project's folder.
        data_root: where videos and official annotations lie; empty for `<outputs>/<dataset>/00_data`.
        backbone: empty for the preset's.
        recipe: empty for the card's.
        weights: local file or folder of pretrained weights, empty for the hub; None in notebooks without it.
        own: the notebook's own parameters, listed in the error about unknown ones.

    Raises:
        ValueError: an unknown parameter, dataset, preset or recipe; the message lists the valid ones.
        TypeError: a parameter of another type than its default.
    """
    given = dict(
        dataset=dataset,
        preset=preset,
        seed=seed,
        outputs=outputs,
        data_root=data_root,
        backbone=backbone,
        recipe=recipe,
        interactive=interactive,
    )
    if weights is not None:
        given["weights"] = weights
    kinds = {"seed": int, "interactive": bool}  # all others are text
    for name, value in given.items():
        kind = kinds.get(name, str)
        if type(value) is not kind:
            raise TypeError(f"parameter {name} should be {kind.__name__}, got {value!r}")
    if unknown := parameter_names(names) - given.keys() - own.keys():
        valid = ", ".join([*given, *own])
        raise ValueError(f"unknown parameter {', '.join(sorted(unknown))}; this notebook takes {valid}")

    card = load_card(dataset)
    chosen = card.preset(preset)
    if backbone:
        chosen = replace(chosen, backbone=backbone)
    folder = project_path(outputs) / dataset
    named = folder / "00_data" / CLASSES_FILE
    if not card.classes and named.is_file():
        card = replace(card, classes=tuple(read_json(named)))
    return Stage(
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
    )


def parameter_names(names: Mapping[str, object]) -> set[str]:
    """Which of a notebook's plain values are parameters, known or not; `names` are its `globals()`.

    Under IPython, whose `In` holds the cells run so far, these are the values set from the last parameters
    cell on, up to the next call of `open_stage`: papermill puts what it was given between the two. So the
    set-up cell can be run again although later cells have set values of their own. Elsewhere all are.
    """
    plain = {
        name
        for name, value in names.items()
        # capitals are imported constants
        if isinstance(value, LITERALS) and not name.startswith("_") and not name.isupper()
    } - JUPYTER_NAMES
    cells = list(names.get("In", ()))
    sets = [_names_set(cell) for cell in cells]
    first = max((place for place, found in enumerate(sets) if found >= EVERYWHERE), default=None)
    if first is None:
        return plain
    last = next(
        (place for place in range(first + 1, len(cells)) if "open_stage(" in cells[place]), len(cells)
    )
    return plain & set().union(*sets[first:last])


def _names_set(source: str) -> set[str]:
    """Names that a cell assigns; none where it is no Python."""
    try:
        nodes = ast.walk(ast.parse(source))
    except SyntaxError:
        return set()
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def project_path(path: str) -> Path:
    """An absolute path as it is; a relative one from the project's folder, whatever the working folder."""
    return Path(os.path.normpath(PROJECT / Path(path).expanduser()))
