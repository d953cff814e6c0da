"""Cards and manifests: what a dataset is, and which clips it has.

A card (`data_manifests/<dataset>.yaml`) says everything that differs between datasets; a manifest
(`<split>.csv`) has one row a clip. Both are validated on load, before hours of work are spent.
"""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import pandas as pd
import yaml

from uniego_utils.runs import digest

PROJECT = Path(__file__).resolve().parents[1]  # relative paths mean the same from every working folder
CARDS = PROJECT / "data_manifests"
VIEWS = ("ego", "exo")
CLASSES_FILE = "classes.json"  # beside the manifests, where the card names no classes
REQUIRED_COLUMNS = ("clip_id", "take", "subject", "label", "ego_video", "exo_video", "start_s", "end_s")
MAX_LISTED = 5  # rows or names listed in an error before "and n more"


@dataclass(frozen=True)
class TeacherCard:
    """One teacher of the pool (paper, Table 1)."""

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
    eval_every: int = 1  # epochs between looks at the validation split; the last epoch always has one


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
    skeleton: str | None = None  # name of the joint layout
    recipe: str = "paper"  # the usual reading of the method, of uniego_utils.recipes
    builder: str = "folder"  # the module of uniego_utils.data that makes its manifests
    segments: str = ""  # the level of segments.csv that notebook 06 takes; "" for a dataset without segments

    @property
    def views(self) -> tuple[str, ...]:
        """The views that its clips need: ego, and exo if a teacher watches it."""
        watched = {teacher.viewpoint for teacher in self.teachers.values()}
        return VIEWS if "exo" in watched else ("ego",)

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
    hyperparameters = [entry.name for entry in fields(MethodCard)]
    for key, preset in card.presets.items():
        if unknown := preset.method.keys() - set(hyperparameters):
            raise ValueError(
                f"{path.name}: presets.{key}: method: unknown {', '.join(sorted(unknown))}; "
                f"valid fields are {', '.join(hyperparameters)}"
            )
    return card


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
    if not isinstance(content, Mapping):
        raise ValueError(f"{where}: expected fields of {kind.__name__}, got {content!r}")
    known = {entry.name: entry for entry in fields(kind)}
    if unknown := content.keys() - known.keys():
        raise ValueError(
            f"{where}: unknown {', '.join(sorted(unknown))}; valid fields are {', '.join(known)}"
        )
    needed = {n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING}
    if absent := needed - content.keys():
        raise ValueError(f"{where}: missing {', '.join(sorted(absent))}")
    hints = get_type_hints(kind)
    return kind(**{name: _convert(hints[name], value, f"{where}: {name}") for name, value in content.items()})


def _convert(hint: Any, value: object, where: str) -> Any:
    arguments = getattr(hint, "__args__", ())
    if value is None:
        if type(None) in arguments:
            return None
        raise ValueError(f"{where} is empty")
    if type(None) in arguments:  # `kind | None`
        return _convert(next(kind for kind in arguments if kind is not type(None)), value, where)
    if is_dataclass(hint):
        return from_mapping(hint, value, where)
    if isinstance(value, Mapping) and arguments and is_dataclass(arguments[-1]):
        return {key: from_mapping(arguments[-1], entry, f"{where}.{key}") for key, entry in value.items()}
    kind = get_origin(hint)
    if kind is tuple:
        if not isinstance(value, list | tuple) or (... not in arguments and len(value) != len(arguments)):
            raise ValueError(f"{where} should be a list like {hint}, got {value!r}")
        return tuple(_convert(arguments[0], entry, where) for entry in value)
    if kind is Mapping and not isinstance(value, Mapping):
        raise ValueError(f"{where} should be a mapping, got {value!r}")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, str, bool) and type(value) is not hint:
        raise ValueError(f"{where} should be {hint.__name__}, got {value!r}")
    return value


@dataclass(frozen=True)
class Manifest:
    """The clips of one split, in a fixed order that features and outputs keep.

    `rows` has one row a clip. Paths in it are relative to `root`, where the videos lie, or to `folder`, where
    the manifest itself lies with what was made for it (skeletons).
    """

    split: str
    rows: pd.DataFrame
    classes: tuple[str, ...]
    root: Path
    digest: str  # of the clip ids, labels and paths, in order
    folder: Path | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> list[int]:
        """Class index of every clip."""
        index = {name: number for number, name in enumerate(self.classes)}
        return [index[name] for name in self.rows["label"]]

    def path(self, row: int, column: str) -> Path:
        """Where the file named in `column` of clip number `row` lies."""
        name, folder = self.rows[column].iloc[row], self.folder or self.root
        return find_file(name, *((folder, self.root) if column.endswith("skeleton") else (self.root, folder)))


def find_file(name: str, first: Path, second: Path) -> Path:
    """The file or folder `name` below `second` if it is only there, else below `first`."""
    return second / name if not (first / name).exists() and (second / name).exists() else first / name


def load_manifest(
    path: Path, classes: tuple[str, ...], root: Path, views: tuple[str, ...] = VIEWS
) -> Manifest:
    """Read and validate a split's CSV; every error lists the rows at fault (as numbered in the file).

    Args:
        path: `<split>.csv`, header in line 1.
        classes: valid labels.
        root: what the videos' paths in the rows are relative to.
        views: those that every clip must have a video of.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no rows, missing columns, duplicate clip ids, labels outside the classes, empty spans,
            or files that do not exist, are empty, or have changed since notebook 00 looked at them.
    """
    path, root = Path(path), Path(root)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; run notebook 00_data first")
    try:
        rows = pd.read_csv(path, dtype={"clip_id": str, "take": str, "subject": str, "label": str})
    except (pd.errors.EmptyDataError, pd.errors.ParserError) as error:
        raise ValueError(f"{path} is no table of clips ({error}); run notebook 00_data again") from None
    if absent := [name for name in REQUIRED_COLUMNS if name not in rows]:
        raise ValueError(f"{path} lacks the columns {', '.join(absent)}")
    if rows.empty:
        raise ValueError(f"{path} has no clips; run notebook 00_data again")
    _refuse(
        path,
        rows,
        rows["clip_id"].duplicated(keep=False) | rows["clip_id"].isna(),
        "clip_id",
        "a duplicate id",
    )
    _refuse(path, rows, ~rows["label"].isin(classes), "label", f"a label outside {', '.join(classes)}")
    for column in ("start_s", "end_s"):
        times = pd.to_numeric(rows[column], errors="coerce")
        _refuse(path, rows, times.isna() & rows[column].notna(), column, "a time that is no number")
        rows[column] = times
    for view in views:
        _refuse(path, rows, rows[f"{view}_video"].isna(), f"{view}_video", "no file")
    _refuse(path, rows, ~(rows["end_s"] > rows["start_s"]), "end_s", "an empty time span")
    for column in [name for name in rows if name.endswith(("_video", "_depth", "skeleton"))]:
        given = rows[column].dropna()
        places = (path.parent, root) if column.endswith("skeleton") else (root, path.parent)
        empty = {name for name in set(given) if not _has_content(find_file(name, *places))}
        bad = [row for row, name in given.items() if name in empty]
        _refuse(path, rows, rows.index.isin(bad), column, f"a missing or empty file below {root}")
    for column in [name for name in rows if name.endswith("_bytes")]:
        videos = rows[column.replace("_bytes", "_video")]
        files = {name: root / name for name in videos[rows[column].notna()].unique()}
        sizes = {name: file.stat().st_size for name, file in files.items() if file.is_file()}
        changed = videos.isin(sizes) & (videos.map(sizes) != rows[column])  # folders: 00 looks again
        _refuse(path, rows, changed, column, "a video that has changed since notebook 00 looked at it")
    kinds = ("_bytes", "_depth", "_fps", "_rotate", "skeleton", "skeleton_digest")
    more = [name for name in rows if name.endswith(kinds)]
    identity = rows[[*REQUIRED_COLUMNS, *more]].to_csv(index=False)
    return Manifest(path.stem, rows, tuple(classes), root, digest(identity.encode()), path.parent)


def _has_content(path: Path) -> bool:
    if path.is_dir():
        return any(path.iterdir())
    return path.is_file() and path.stat().st_size > 0


def _refuse(path: Path, rows: pd.DataFrame, wrong: pd.Series, column: str, fault: str) -> None:
    if not wrong.any():
        return
    faulty = rows[wrong]
    listed = ", ".join(
        f"line {number + 2}: {value}" for number, value in faulty[column].head(MAX_LISTED).items()
    )
    more = f" and {len(faulty) - MAX_LISTED} more" if len(faulty) > MAX_LISTED else ""
    raise ValueError(
        f"{path}: {len(faulty)} of {len(rows)} rows have {fault} in `{column}` ({listed}{more}); "
        f"mend these rows or run notebook 00_data again"
    )
