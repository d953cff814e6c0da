"""Cards: what a dataset is.

A card (`data_manifests/<dataset>.yaml`) says everything that differs between datasets. It is validated on
load, before hours of work are spent.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

PROJECT = Path(__file__).resolve().parents[1]  # relative paths mean the same from every working folder
CARDS = PROJECT / "data_manifests"
VIEWS = ("ego", "exo")
CLASSES_FILE = "classes.json"  # beside the manifests, where the card names no classes


@dataclass(frozen=True)
class TeacherCard:
    """One teacher (paper, Table 1)."""

    modality: str  # rgb | depth | skeleton
    viewpoint: str  # ego | exo: the stream it watches
    model: str  # the module of uniego_utils.teachers that fits or loads it
    width: int  # length of its feature vector
    label: str  # its name in figures and tables
    licence: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)  # of that module


@dataclass(frozen=True)
class VideoCard:
    """How clips become tensors; one place for sizes, statistics and augmentation."""

    num_frames: int  # frames per clip
    image_size: int  # pixels, side of the square input
    resize: int  # pixels, shorter side after decoding; training crops from it, evaluation takes the centre
    mean: tuple[float, float, float]  # RGB, of pixels in 0..1
    std: tuple[float, float, float]
    crop_scale: tuple[float, float] = (1.0, 1.0)  # crop side over image_size, drawn per clip in training
    flip: float = 0.0  # probability of a mirrored clip in training; cached targets are of unmirrored clips
    jitter: float = 0.0  # brightness and contrast change by up to this share, per clip
    span_s: float | None = None  # seconds sampled from within the annotated span; None: all of it
    cache: bool = False  # keep decoded frames in memory (small datasets)
    workers: int = 0  # decoding processes when not cached

    def decisive(self) -> dict:
        """What decides the pictures that a model sees, for `config.json`; not how they are read."""
        return {name: value for name, value in asdict(self).items() if name not in ("cache", "workers")}


@dataclass(frozen=True)
class MethodCard:
    """The paper's hyperparameters (section 4.1), with the paper's names."""

    lambda_feat: float = 5.0  # weight of the cosine term in Level I (lambda_I)
    lambda_cls: float = 1.0
    k: int = 1  # proxies selected per clip
    beta_feat: float = 5.0
    beta_logit: float = 1.0
    beta_cls: float = 1.0
    tau: float = 1.0  # temperature of the KL term
    trust_tau: float = 0.05  # nats; not in the paper, see `candidates.trust_by_loss`
    standardise: bool = False  # teachers' features to zero mean, unit variance per channel of the train split


@dataclass(frozen=True)
class TrainConfig:
    """One training run. The defaults are the paper's (section 4.1)."""

    epochs: int = 15
    batch_size: int = 8
    optimizer: str = "sgd"  # sgd | adamw | adam
    lr: float = 0.005  # peak
    momentum: float = 0.9  # of sgd
    weight_decay: float = 1e-4
    milestones: tuple[int, ...] = (11, 14)  # epochs from which the rate is 0.1, 0.01, ... of the peak
    cosine: bool = False  # cosine to zero instead of milestones
    warmup_epochs: float = 0.0  # linear from zero, stepped every batch
    label_smoothing: float = 0.0
    grad_clip: float | None = None  # L2 norm over all parameters
    bf16: bool = False  # autocast the forward pass; weights stay float32
    compile: bool = False  # torch.compile the model
    eval_every: int = 1  # epochs between evaluations on the validation split; the last is always evaluated


@dataclass(frozen=True)
class MergeConfig:
    """Optimising the merge (paper, section 4.1)."""

    epochs: int = 2
    batch_size: int = 8
    lr: float = 0.02
    weight_decay: float = 0.01


@dataclass(frozen=True)
class HeadConfig:
    """A temporal head of notebook 06 and its training by AdamW; the numbers are MS-TeMba's."""

    epochs: int = 140
    batch_size: int = 1  # videos
    lr: float = 0.00045  # peak
    weight_decay: float = 0.05
    loss: str = "single"  # single: one label a moment, as Table 4 measures; multi: MS-TeMba's own loss
    widths: tuple[int, ...] = (256, 384, 576)  # of MS-TeMba's scales; number k has dilation k
    maps: int = 64  # channels of MS-TCN++
    dropout: float = 0.5  # of MS-TCN++

    def __post_init__(self):
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError(
                f"a head needs epochs and videos a batch, not {self.epochs} and {self.batch_size}"
            )
        if self.loss not in ("single", "multi"):
            raise ValueError(f"unknown loss {self.loss!r}; choose single or multi")


@dataclass(frozen=True)
class Preset:
    """All numbers of one size of the experiment."""

    backbone: str
    size: str
    data: Mapping[str, Any]  # settings of the dataset's builder
    video: VideoCard
    proxy: TrainConfig  # Level I, the baseline and naive multi-teacher distillation
    merge: MergeConfig
    spd: TrainConfig  # Level II and its equal-compute controls
    start: TrainConfig | None = None  # trains the common start on labels; None: ImageNet weights from timm
    teachers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # settings by teacher model
    teacher_video: Mapping[str, Any] = field(default_factory=dict)  # changes of `video`
    pose: Mapping[str, Any] = field(default_factory=dict)  # settings of the pose estimator, where one is used
    method: Mapping[str, Any] = field(default_factory=dict)  # overrides of the card's method
    untrimmed: Mapping[str, Any] = field(default_factory=dict)  # settings of generated untrimmed videos
    segmentation: HeadConfig = HeadConfig()  # temporal heads


@dataclass(frozen=True)
class Card:
    """A dataset: where it comes from, its classes, its teachers, the paper's settings for it."""

    name: str
    title: str
    source: str
    licence: str
    teachers: Mapping[str, TeacherCard]
    method: MethodCard
    presets: Mapping[str, Preset]  # the first is the usual one
    classes: tuple[str, ...] = ()  # none: those that the annotations name
    splits: tuple[str, ...] = ("train", "val", "test")
    teacher_split: str = "train"  # the split teachers are fitted on, where they are fitted here
    pairs: str = ""  # a split of ego-exo pairs whose labels are not known or not read; "" for none
    ego_only: tuple[str, ...] = ()  # splits of the head camera alone: no teacher sees them
    skeleton: str | None = None  # name of the joint layout
    recipe: str = "paper"  # the usual reading of the method, of uniego_utils.recipes
    builder: str = "folder"  # the module of uniego_utils.data that makes its manifests
    segments: str = ""  # the level of segments.csv that notebook 06 takes; "" for a dataset without segments

    @property
    def views(self) -> tuple[str, ...]:
        """The views that its clips need: ego, and exo if a teacher watches it."""
        watched = {teacher.viewpoint for teacher in self.teachers.values()}
        return VIEWS if "exo" in watched else ("ego",)

    def views_of(self, split: str) -> tuple[str, ...]:
        """The views that the clips of a split need."""
        return ("ego",) if split in self.ego_only else self.views

    def preset(self, name: str = "") -> Preset:
        """The preset called `name`, or the first; an unknown one is an error that lists the valid ones."""
        name = name or next(iter(self.presets))
        if name not in self.presets:
            raise ValueError(
                f"unknown preset {name!r} for {self.name}; choose one of {', '.join(self.presets)}"
            )
        return self.presets[name]

    def teacher(self, key: str) -> TeacherCard:
        """The teacher called `key`; an unknown one is an error that lists the valid ones."""
        if key not in self.teachers:
            raise ValueError(
                f"unknown teacher {key!r} for {self.name}; choose one of {', '.join(self.teachers)}"
            )
        return self.teachers[key]


def load_card(dataset: str, folder: Path = CARDS) -> Card:
    """Read and validate `<folder>/<dataset>.yaml`.

    Raises:
        ValueError: no such card (the message lists those there are), an unknown or missing field, a preset
            that names an unknown base, a teacher whose key and viewpoint disagree.
    """
    path = Path(folder) / f"{dataset}.yaml"
    if not path.is_file():
        names = ", ".join(sorted(card.stem for card in Path(folder).glob("*.yaml")))
        raise ValueError(f"unknown dataset {dataset!r}: {path} does not exist; there are cards for {names}")
    content = _read_card(path)
    if not isinstance(content.get("presets"), Mapping):
        raise ValueError(f"{path.name}: expected the fields of a card with a mapping `presets`")
    content["presets"] = {name: _with_base(name, content["presets"], path) for name in content["presets"]}
    card = from_mapping(Card, content, path.name)
    if card.name != dataset:
        raise ValueError(f"{path.name}: its name is {card.name!r}, which should be the file's name")
    for key, teacher in card.teachers.items():
        if teacher.viewpoint not in VIEWS or not key.startswith(f"{teacher.viewpoint}_"):
            raise ValueError(f"{path.name}: teacher {key!r} has viewpoint {teacher.viewpoint!r}; see {VIEWS}")
    _check_splits(card, path)
    for key, preset in card.presets.items():
        from_mapping(MethodCard, preset.method, f"{path.name}: presets.{key}: method")
    return card


def _check_splits(card: Card, path: Path) -> None:
    """Refuse a split that is named and not listed, or that cannot be what it is named for."""
    for split in filter(None, (card.pairs, *card.ego_only, card.teacher_split)):
        if split not in card.splits:
            raise ValueError(f"{path.name}: {split!r} is no split of {', '.join(card.splits)}")
    if card.pairs in ("train", "val", "test", card.teacher_split, *card.ego_only):
        raise ValueError(
            f"{path.name}: pairs is {card.pairs!r}, a split whose labels are read or that has no exo view"
        )
    if taught := {"train", "val", card.teacher_split} & set(card.ego_only):
        raise ValueError(f"{path.name}: ego_only has {', '.join(sorted(taught))}, which teachers see")


def _read_card(path: Path, above: tuple[Path, ...] = ()) -> dict:
    """A card's content; with `like: other` laid over `other.yaml`; a teacher that is null is taken away."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, Mapping):
        raise ValueError(f"{path.name}: expected the fields of a card")
    content = dict(content)
    base = content.pop("like", None)
    if base is None:
        return content
    base_path = path.parent / f"{base}.yaml"
    if not base_path.is_file() or base_path in (*above, path):
        raise ValueError(f"{path.name} is like {base!r}, but there is no such other card")
    content = merged(_read_card(base_path, (*above, path)), content)
    removed = [key for key, teacher in content.get("teachers", {}).items() if teacher is None]
    for settings in (content, *content.get("presets", {}).values()):  # a preset has settings for teachers too
        for key in removed:
            settings.get("teachers", {}).pop(key, None)
    return content


def _with_base(name: str, presets: Mapping[str, dict], path: Path, above: tuple[str, ...] = ()) -> dict:
    """A preset with `like: other` starts from that other preset and changes only what it names."""
    preset = dict(presets[name])
    base = preset.pop("like", None)
    if base is None:
        return preset
    if base not in presets:
        raise ValueError(f"{path.name}: preset {name!r} is like {base!r}, which does not exist")
    if base in (*above, name):
        raise ValueError(f"{path.name}: preset {name!r} is like {base!r}, which is in turn like it")
    return merged(_with_base(base, presets, path, (*above, name)), preset)


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, mappings within mappings too."""
    result = dict(base)
    for name, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(result.get(name), Mapping)
        result[name] = merged(result[name], value) if both else value
    return result


def from_mapping(kind: type, content: object, where: str) -> Any:
    """Build the dataclass `kind` from plain YAML content; `where` names the place in error messages.

    Raises:
        ValueError: an unknown field (valid ones are listed), a missing one, or a value of a wrong type.
    """
    text = json.dumps(content, default=str)  # as JSON, because strict pydantic then takes lists for tuples
    try:
        return TypeAdapter(kind).validate_json(text, strict=True, extra="forbid")
    except ValidationError as error:
        raise ValueError("\n".join(_explain(kind, entry, where) for entry in error.errors())) from None


def _explain(kind: type, error: Mapping[str, Any], where: str) -> str:
    """One of pydantic's errors on a `kind`: the place in the card, the field, and what is valid there."""
    names = list(error["loc"])
    field_at_fault = names.pop() if error["type"] in ("missing", "unexpected_keyword_argument") else None
    for name in names:
        if is_dataclass(kind):
            where, kind = f"{where}: {name}", get_type_hints(kind)[name]
            kind = kind if NoneType not in get_args(kind) else get_args(kind)[0]  # of `kind | None`
        else:
            where, kind = f"{where}.{name}", (get_args(kind) or [object])[-1]
    match error["type"]:
        case "unexpected_keyword_argument":
            valid = ", ".join(entry.name for entry in fields(kind))
            return f"{where}: unknown {field_at_fault}; valid fields are {valid}"
        case "missing":
            place = f"entry {field_at_fault}" if isinstance(field_at_fault, int) else field_at_fault
            return f"{where}: missing {place}"
        case "dataclass_type":
            return f"{where}: expected fields of {kind.__name__}, got {error['input']!r}"
        case "value_error":  # of the dataclass itself
            return f"{where}: {error['ctx']['error']}"
    return f"{where} {error['msg'].removeprefix('Input ')}, got {error['input']!r}"
