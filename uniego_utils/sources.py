"""What students learn from, on the clips of one pass: labels, teachers' features, proxies' outputs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from uniego_utils.candidates import Candidates, trust_by_loss
from uniego_utils.data.manifests import load_hidden_labels
from uniego_utils.experiment import Experiment
from uniego_utils.methods import GUESSED, TRUE, Method
from uniego_utils.runs import read_tensors, require_finished
from uniego_utils.teachers.features import fit_probe, read_features, standardise

EVALUATION_BATCH = 64
Weights = dict[str, Tensor]  # a state dict
PROXIES_CURE = "run notebook 02_proxy with teacher = each"


def load_student(folder: Path, cure: str) -> Weights:
    """Backbone weights of a finished student; otherwise an error with the cure."""
    return read_tensors(require_finished(folder, cure) / "model.safetensors")


def load_outputs(folder: Path, split: str, cure: str) -> dict[str, Tensor]:
    """`features` (N, D) and `logits` (N, C) of a finished student on a split, in manifest order.

    Raises:
        FileNotFoundError: it is not finished, or has no outputs on that split; says how to make them.
    """
    path = require_finished(folder, cure) / "outputs.safetensors"
    tensors = read_tensors(path)
    if f"{split}_logits" not in tensors:
        raise FileNotFoundError(f"{path} has no outputs on {split}; delete its folder and {cure}")
    return {name: tensors[f"{split}_{name}"] for name in ("features", "logits")}


def teacher_targets(experiment: Experiment, keys: Iterable[str], split: str = "train") -> dict[str, Tensor]:
    """A split's features (N, D_r) of the teachers, standardised over it if the card says so."""
    manifest = experiment.manifest(split)
    targets = {}
    for key in keys:
        path = experiment.outputs / "01_teacher_extraction" / key / f"{split}.safetensors"
        features = read_features(path, manifest, experiment.card.teacher(key).width)
        targets[key] = standardise(features) if experiment.method.standardise else features
    return targets


def guess_labels(experiment: Experiment) -> list[int]:
    """Class numbers of the pairs as one teacher names them: whose linear probe is best on validation clips.

    The probes are fitted on the labelled training clips.
    """
    labels = {split: experiment.manifest(split).labels for split in ("train", "val")}
    best, guesses = -1.0, []
    for key in experiment.card.teachers:
        seen = {
            split: teacher_targets(experiment, [key], split)[key] for split in (*labels, experiment.pairs)
        }
        probe = fit_probe(seen["train"], labels["train"])
        if (score := probe.score(seen["val"].numpy(), labels["val"])) > best:
            best, guesses = score, probe.predict(seen[experiment.pairs].numpy()).tolist()
    return guesses


def proxy_outputs(proxies: Iterable[Path], split: str = "train") -> tuple[Tensor, Tensor]:
    """Stored features (N, R, D) and logits (N, R, C) of R proxies on a scored split, by run folder."""
    each = [load_outputs(folder, split, PROXIES_CURE) for folder in proxies]
    return tuple(torch.stack([output[name] for output in each], 1) for name in ("features", "logits"))


def load_proxies(experiment: Experiment, proxies: Iterable[Path]) -> list[nn.Module]:
    """The proxies of these run folders, on the experiment's device, in eval mode."""
    models = []
    for folder in proxies:
        model = experiment.backbone()
        model.load_state_dict(load_student(folder, PROXIES_CURE))
        models.append(model.to(experiment.device).eval())
    return models


@dataclass(frozen=True)
class Sources:
    """What the students of a pass may learn from. Each part is read once, when it is first needed.

    The clips are the N of the train split and, where the experiment has pairs, those M behind them.
    """

    experiment: Experiment
    k: int = 0  # proxies selected per clip at most; 0: the card's
    with_pairs: bool = True  # False: the train split alone, whatever the experiment has
    pair_labels: str = ""  # of the pairs: TRUE, GUESSED or "" for none
    teachers: Mapping[str, Tensor] | None = None  # features (N [+ M], D_r) by key; None: the card's teachers
    proxies: Mapping[str, Path] = field(default_factory=dict)  # run folders by key; empty: the card's proxies
    held_out: Tensor | None = None  # see `Candidates`
    halves: Sequence[Sequence[int]] = ()
    start_features: Tensor | None = None

    @cached_property
    def labels(self) -> Tensor:
        """(N [+ M],) class numbers; `UNKNOWN` on pairs, unless they are given labels."""
        labels = self.experiment.manifest("train").labels
        if not self.pairs:
            return torch.tensor(labels)
        return torch.tensor([*labels, *self.labels_of_pairs])

    @property
    def pairs(self) -> str:
        """The split of pairs behind the train split; "" for none."""
        return self.experiment.pairs if self.with_pairs else ""

    def seen_by(self, method: Method) -> "Sources":
        """The same without pairs for who learns from labels alone; with labels for who is given some."""
        if not self.pairs or (method.on_pairs and method.pair_labels == self.pair_labels):
            return self
        return replace(self, with_pairs=method.on_pairs, pair_labels=method.pair_labels)

    @cached_property
    def labels_of_pairs(self) -> list[int]:
        """The class numbers of the pairs: unknown, guessed, or the true ones, which ceilings alone read."""
        manifest = self.experiment.manifest(self.pairs)
        if self.pair_labels == TRUE:
            return load_hidden_labels(manifest)
        return guess_labels(self.experiment) if self.pair_labels == GUESSED else manifest.labels

    def label_smoothing(self, method: Method) -> float:
        """Of the settings that a student is trained with."""
        return getattr(self.experiment.preset, method.settings).label_smoothing

    @cached_property
    def _features(self) -> dict[str, Tensor]:
        return dict(self.teachers or {})

    def teacher_features(self, keys: Sequence[str] = ()) -> dict[str, Tensor]:
        """Features (N [+ M], D_r) of these teachers, of all without `keys`."""
        everyone = self.experiment.card.teachers if self.teachers is None else self.teachers
        wanted = keys or list(everyone)
        if absent := [key for key in wanted if key not in self._features]:
            of_train = teacher_targets(self.experiment, absent)
            if self.pairs:
                more = teacher_targets(self.experiment, absent, self.pairs)
                of_train = {key: torch.cat([rows, more[key]]) for key, rows in of_train.items()}
            self._features.update(of_train)
        return {key: self._features[key] for key in wanted}

    def proxy_folders(self, keys: Sequence[str] = ()) -> dict[str, Path]:
        """Run folders of these proxies, of all without `keys`."""
        everyone = dict(self.proxies) or self.experiment.proxies
        return {key: self.experiment.student(key) for key in keys} if keys else everyone

    @cached_property
    def _candidates(self) -> dict[tuple[str, ...], Candidates]:
        return {}

    def candidates(self, keys: Sequence[str] = ()) -> Candidates:
        """What is known of these proxies on the clips, of all without `keys`."""
        name = tuple(keys)
        if name not in self._candidates:
            self._candidates[name] = self._read_candidates(name)
        return self._candidates[name]

    def _read_candidates(self, keys: tuple[str, ...]) -> Candidates:
        folders, experiment = self.proxy_folders(keys), self.experiment
        splits = ("train", self.pairs) if self.pairs else ("train",)
        outputs = [proxy_outputs(folders.values(), split) for split in splits]
        features, logits = (torch.cat(parts) for parts in zip(*outputs, strict=True))
        trust = None
        if self.pairs:
            validation = torch.tensor(experiment.manifest("val").labels)
            of_validation = proxy_outputs(folders.values(), "val")[1]
            trust = trust_by_loss(of_validation, validation, experiment.method.trust_tau)
        teachers = experiment.card.teachers
        return Candidates(
            features=features,
            logits=logits,
            labels=self.labels,
            k=self.k or experiment.method.k,
            ce_ceiling=experiment.recipe.spd_ce_ceiling,
            viewpoints=tuple(teachers[key].viewpoint if key in teachers else "" for key in folders),
            seed=experiment.seed,
            held_out=self.held_out,
            halves=tuple(map(tuple, self.halves)),
            start_features=self.start_features,
            trust=trust,
            read_truth=lambda: replace(self, pair_labels=TRUE).labels,
        )
