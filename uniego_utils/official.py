"""Checkpoints of the official release: read into run folders, and written from them.

An official file is written by `torch.save` and holds a dict. Its `model_state` has the TimeSformer's entries
behind `model.` (`model.blocks.0.temporal_fc.weight`, ...; under DDP all behind `module.` too) and, of a
student trained to distil, the projection of its feature: `model.proj_layer` to its one teacher (Level I) or
to the proxies' width (Level II), `model.proj_layers.<teacher>` of naive multi-teacher distillation.

Only the backbone `timesformer` has this layout. Its tiny size travels in it too, between runs of this suite:
what the release lacks (the convolutional stem) keeps the names it has here. The official code builds B/16
alone and passes over entries that do not fit it, so `export_student` says so where it writes such a file.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from uniego_utils.backbones.pretrained import load_exactly
from uniego_utils.backbones.timesformer import NEEDED, is_official_size, name_from_official, official_name
from uniego_utils.data.video import VideoError
from uniego_utils.experiment import SCORED, Experiment, create_experiment
from uniego_utils.objectives import Classification
from uniego_utils.recipes import recipe_called
from uniego_utils.runs import (
    digest,
    read_json,
    read_tensors,
    require_finished,
    start_run,
    write_tensors,
    written_whole,
)
from uniego_utils.sources import load_student
from uniego_utils.students import describe_training, finish_student
from uniego_utils.training import Learner, read_metrics, write_history
from uniego_utils.unpickle import read_checkpoint

BACKBONE = "timesformer"  # the only one with an official layout
PROJECTION = re.compile(r"(?:model\.)?proj_layer(?:s\.(\w+))?\.(weight|bias)")
STORED_PROJECTION = re.compile(r"project\.(?:(\w+)\.)?(weight|bias)")

Tensors = dict[str, Tensor]


def read_official(path: Path) -> tuple[Tensors, Tensors]:
    """Weights of an official checkpoint.

    Whether they fit a model is checked when they are loaded into one (`import_student`).

    Returns:
        The backbone's, in our names; and its projection's: `weight` (D, width) and `bias` (D,),
        `<teacher>.weight` and so on where it has one per teacher, or nothing.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged; other Python objects than tensors in it (they are never loaded); without
            `model_state`; an entry that the official layout lacks or needs, that is no tensor or not finite;
            a projection that does not start from the feature. The message names file and entry.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file; give a checkpoint of the official code (.pyth)")
    cure = "load it elsewhere and save its `model_state` alone, in a dict"
    content = read_checkpoint(path, cure)
    state = content.get("model_state") if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping):
        held = list(map(str, content)) if isinstance(content, Mapping) else [type(content).__name__]
        raise ValueError(
            f"{path} has no `model_state`, as checkpoints of the official code have, "
            f"but {', '.join(held[:3])}{', ...' if len(held) > 3 else ''}"
        )
    return _parse(state, path)


def write_official(path: Path, weights: Tensors, projection: Tensors) -> None:
    """Write an official checkpoint, from which `read_official` gives back exactly these weights.

    Equal weights make equal files.

    Raises:
        ValueError: what `read_official` would refuse, or not give back; nothing is written.
    """
    state = {f"model.{official_name(name)}": value for name, value in weights.items()}
    for key, value in projection.items():
        state[f"model.proj_layer{'s' if '.' in key else ''}.{key}"] = value
    for given, parsed in zip((weights, projection), _parse(state, path), strict=True):
        if strange := sorted(given.keys() ^ parsed.keys()):
            raise ValueError(f"{path}: {strange[0]} is no name of an entry here; it would be read as another")
    # A copy each, because a part of a larger tensor would be saved with all of it.
    keep = {"memory_format": torch.contiguous_format}
    copies = {name: value.detach().cpu().clone(**keep) for name, value in sorted(state.items())}
    # Opened here, because torch would write the temporary name into the file.
    with written_whole(path) as partial, partial.open("wb") as file:
        torch.save({"model_state": copies}, file)


def import_student(experiment: Experiment, path: Path, folder: Path) -> dict[str, float]:
    """Evaluate an official checkpoint on the experiment's splits and write it as a student's run folder.

    Every later notebook reads the folder like any student's. A projection is kept as `project.*` in its
    `objective.safetensors`. A folder finished with the same file is reused.

    The scores are not quite those of the official evaluation: there the logits of three crops of a clip are
    summed, here a clip is its centre crop; there pixels have mean 0.45 and standard deviation 0.225, here
    what the card says (all cards here say the same).

    Returns:
        Accuracy and negative log-likelihood on every split.

    Raises:
        ValueError: another backbone than the TimeSformer, a file that `read_official` refuses, other classes
            than the card's, weights of another size; or the folder is of another file. No folder is made.
    """
    path, folder = Path(path), Path(folder)
    _require_timesformer(experiment.preset.backbone, f"preset of {experiment.card.name}")
    weights, projection = read_official(path)
    manifests = {split: experiment.manifest(split).digest for split in SCORED}
    model, classes = experiment.backbone(), len(experiment.card.classes)
    if weights["head.weight"].shape[:1] != (classes,):
        raise ValueError(
            f"{path}: model.head.weight is {tuple(weights['head.weight'].shape)}, but "
            f"{experiment.card.name} has {classes} classes; import it with the dataset it was trained on"
        )
    load_exactly(model, weights, path, f"the {experiment.preset.size} {BACKBONE} of {experiment.card.name}")

    bf16 = experiment.preset.spd.bf16  # as students of Level II are evaluated
    described = describe_training(experiment, experiment.preset.spd, None)
    config = {key: described[key] for key in ("dataset", "backbone", "video")}
    config |= {"bf16": bf16, "manifests": manifests, "checkpoint": digest(path)}
    if start_run(folder, config):
        print(f"{folder.name}: finished before, reused")
        return read_metrics(folder)
    clips = {split: experiment.clips(split) for split in SCORED}
    if projection:
        tensors = {f"project.{key}": value for key, value in projection.items()}
        write_tensors(folder / "objective.safetensors", tensors)
    write_history(folder, [])  # it was not trained here
    return finish_student(folder, Learner(model, Classification()), clips, experiment.device, bf16)


def export_student(folder: Path, path: Path) -> None:
    """Write a finished student as an official checkpoint.

    A projection of the student's feature (recipe `released`; Level II) becomes `model.proj_layer`. The
    recipe `paper` projects the teacher instead, for which the official layout has no place: that projection
    is left out, and so is any other that only training needs. What is left out is printed.

    Raises:
        FileNotFoundError: no finished run there.
        ValueError: another backbone than the TimeSformer.
    """
    cure = "train or import this student first"
    folder = require_finished(Path(folder), cure)
    config = read_json(folder / "config.json")["config"]
    _require_timesformer(config.get("backbone", [BACKBONE])[0], str(folder))  # a merge does not record it
    weights, projection = load_student(folder, cure), {}
    if (objective := folder / "objective.safetensors").is_file():
        stored = read_tensors(objective)
        projection = _student_projection(stored, config.get("recipe"))
        if not projection:
            print(f"{folder.name}: left out {', '.join(stored)}, for which the official layout has no place")
    write_official(path, weights, projection)
    if not is_official_size(weights):
        print(f"{folder.name}: no B/16, so {path} is for this suite alone; the official code would skip it")


def _parse(state: Mapping[str, Tensor], path: Path) -> tuple[Tensors, Tensors]:
    """What `read_official` returns, of a `model_state`."""
    wrapper = "module." if all(str(entry).startswith("module.") for entry in state) else ""
    weights: Tensors = {}
    projection: Tensors = {}
    for entry, value in state.items():
        if not isinstance(value, Tensor) or not value.isfinite().all():
            fault = "has values that are not finite" if isinstance(value, Tensor) else "is no tensor"
            raise ValueError(f"{path}: {entry} {fault}; download it again")
        entry_name = str(entry).removeprefix(wrapper)
        if match := PROJECTION.fullmatch(entry_name):
            into, name = projection, ".".join(filter(None, match.groups()))
        else:
            into, name = weights, _suite_name(entry_name)
        if name is None or name in into:
            raise ValueError(f"{path}: {entry} is left over; the official layout has no such entry")
        into[name] = value
    if missing := [name for name in NEEDED if name not in weights]:
        raise ValueError(f"{path} lacks model.{missing[0]}; it is no TimeSformer in the official layout")
    width = weights["cls_token"].numel()
    for owner in {key.rpartition(".")[0] for key in projection}:
        weight, bias = (projection.get(f"{owner}.{kind}".lstrip(".")) for kind in ("weight", "bias"))
        if weight is None or bias is None or bias.ndim != 1 or weight.shape != (len(bias), width):
            raise ValueError(
                f"{path}: the projection proj_layer{f's.{owner}' if owner else ''} should be a weight "
                f"(D, {width}) from the feature, and a bias (D,)"
            )
    return weights, projection


def _suite_name(entry: str) -> str | None:
    """Our name of an official backbone entry; None if the official layout has no such entry."""
    match = re.fullmatch(r"model\.(.+)", entry)
    name = name_from_official(match[1]) if match else ""
    return name if match and official_name(name) == match[1] else None


def _student_projection(stored: Tensors, recipe: str | None) -> Tensors:
    """Of an objective's tensors, the projection that an official checkpoint has; nothing if it has none."""
    matches = [STORED_PROJECTION.fullmatch(name) for name in stored]
    if not all(matches):
        return {}
    teachers = {match[1] for match in matches}
    if teachers != {None} and recipe is not None and recipe_called(recipe).projects_teacher:
        return {}
    if len(teachers) == 1:  # its only teacher's name is not in the official file
        return {match[2]: stored[match[0]] for match in matches}
    return {match[0].removeprefix("project."): stored[match[0]] for match in matches}


def _require_timesformer(backbone: str, where: str) -> None:
    if backbone != BACKBONE:
        raise ValueError(f"{where}: the backbone {backbone} has no official layout, only {BACKBONE} has")


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what the command line says; errors end in a line or two, without a traceback."""
    parser = argparse.ArgumentParser(
        prog="python -m uniego_utils.official", description=__doc__.splitlines()[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    importing = commands.add_parser(
        "import", help="evaluate an official checkpoint, as a student's run folder"
    )
    importing.add_argument("file", type=Path)
    importing.add_argument("--dataset", required=True, help="the card of the dataset it was trained on")
    importing.add_argument("--name", required=True, help="writes <outputs>/<dataset>/imported/<name>")
    importing.add_argument("--outputs", default="outputs", help="relative: below the project (%(default)s)")
    importing.add_argument("--preset", default="", help="the card's first, if not given")
    importing.add_argument(
        "--data-root", default="", help="videos; <outputs>/<dataset>/00_data, if not given"
    )
    exporting = commands.add_parser("export", help="write a student's run folder as an official checkpoint")
    exporting.add_argument("folder", type=Path)
    exporting.add_argument("file", type=Path)
    chosen = parser.parse_args(arguments)

    try:
        if chosen.command == "import":
            _import_from_command_line(chosen)
        else:
            export_student(chosen.folder, chosen.file)
            print(chosen.file)
    except (ValueError, OSError, VideoError) as error:
        raise SystemExit(str(error)) from None


def _import_from_command_line(chosen: argparse.Namespace) -> None:
    """`import`: the experiment from its parameters, one line with the scores out."""
    if not re.fullmatch(r"\w[\w.=-]*", chosen.name):
        raise ValueError(f"name {chosen.name!r} should be letters, digits and any of . = - _")
    experiment = create_experiment(
        chosen.dataset, chosen.outputs, preset=chosen.preset, data_root=chosen.data_root
    )
    folder = experiment.outputs / "imported" / chosen.name
    metrics = import_student(experiment, chosen.file, folder)
    print(f"{folder}: {metrics['test_top1']:.1f} % of test clips, {metrics['test_nll']:.3f} nats")


if __name__ == "__main__":
    main()
