"""The feature store: each teacher's feature of each clip, computed once and checked whenever it is read."""

from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from uniego_utils.data.manifests import Manifest
from uniego_utils.data.tables import list_some
from uniego_utils.runs import FEATURE_PACKAGES, read_notes, read_tensors, write_tensors

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline


def check_features(features: Tensor, clip_ids: list[str], width: int, where: str) -> None:
    """Refuse features that cannot teach.

    Raises:
        ValueError: not (clips, width), non-finite values, or clips whose vector is constant; counts and names
            the clips.
    """
    if features.shape != (expected := (len(clip_ids), width)):
        raise ValueError(
            f"{where}: expected features {expected} for (clips, width), got {tuple(features.shape)}"
        )
    for fault, wrong in {
        "non-finite values": ~features.isfinite().all(1),
        "a constant feature vector": (features == features[:, :1]).all(1),
    }.items():
        if wrong.any():
            names = [clip_ids[row] for row in wrong.nonzero().flatten().tolist()]
            raise ValueError(
                f"{where}: {len(names)} of {len(clip_ids)} clips have {fault} ({list_some(names)}); "
                f"check these clips' files, then extract this teacher again"
            )
    if len(clip_ids) > 1 and (features == features[:1]).all():
        raise ValueError(
            f"{where}: all clips have the same features; this teacher tells nothing apart, train it again"
        )


def write_features(
    path: Path, features: Tensor, manifest: Manifest, width: int, notes: dict[str, str]
) -> None:
    """Store a teacher's (N, D) float32 features of a manifest's clips, in its order, after checking them.

    `notes` say how they were made (model, preprocessing, pooling); the manifest's digest is added.
    """
    features = features.float()
    clip_ids = manifest.rows["clip_id"].tolist()
    check_features(features, clip_ids, width, str(path))
    versions = {package: metadata.version(package) for package in FEATURE_PACKAGES}
    write_tensors(path, {"features": features}, {**versions, **notes, "manifest": manifest.digest})


def read_features(path: Path, manifest: Manifest, width: int) -> Tensor:
    """A teacher's features of exactly this manifest's clips: (N, D) float32.

    Raises:
        FileNotFoundError: not extracted yet.
        ValueError: the manifest changed since extraction, or the features are not usable.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; run notebook 01_teacher_extraction for {path.parent.name}"
        )
    features = read_tensors(path)["features"]
    if (extracted := read_notes(path).get("manifest")) != manifest.digest:
        raise ValueError(
            f"{path} was extracted from another manifest ({len(features)} clips, {str(extracted)[:12]}) "
            f"than {manifest.split}.csv is now ({len(manifest)} clips, {manifest.digest[:12]}); "
            f"delete {path.parent} and run notebook 01_teacher_extraction again"
        )
    check_features(features, manifest.rows["clip_id"].tolist(), width, str(path))
    return features


def standardise(features: Tensor) -> Tensor:
    """Zero mean and unit variance per channel: (N, D) -> (N, D).

    The cosine of raw features is dominated by their common mean vector. A channel that never changes becomes
    zero.
    """
    exact = features.double()  # in float32 the mean of a constant channel is off by more than a fixed floor
    centred = exact - exact.mean(0)
    return (centred / centred.std(0, correction=0).clamp(min=1e-6)).to(features.dtype)


def fit_probe(features: Tensor, labels: list[int]) -> "Pipeline":
    """A logistic regression of the labels (N,) on frozen features (N, D)."""
    from sklearn.linear_model import LogisticRegression  # late: it takes seconds to import
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(features.numpy(), labels)


def linear_probe(
    features: Tensor,
    labels: list[int],
    test_features: Tensor,
    test_labels: list[int],
    max_clips: int = 10_000,
) -> float:
    """Top-1 accuracy in percent of a logistic regression on frozen features: what a teacher knows.

    It is fitted on at most `max_clips`, evenly taken: more cost hours and move it little.
    """
    step = -(-len(labels) // max_clips)
    probe = fit_probe(features[::step], labels[::step])
    return 100 * float(probe.score(test_features.numpy(), test_labels))


def common_rows(features: Tensor) -> Tensor:
    """Numbers of clips whose feature vector another clip has too: a sign of a decoder that repeats itself."""
    _, inverse, counts = torch.unique(features, dim=0, return_inverse=True, return_counts=True)
    return (counts[inverse] > 1).nonzero().flatten()


def describe_features(features: Tensor) -> dict[str, float]:
    """The health of a teacher's features (N, D).

    Returns:
        norm_mean, norm_min, norm_max: of the clips' vectors; a norm far from the others is a broken clip.
        repeated: clips whose vector another clip has too.
        constant_channels: of D, those that never change.
        mean_share: squared norm of the mean vector over the mean squared norm, in [0, 1]; near one, the
            cosine of raw features sees next to nothing of what tells clips apart.
        effective_rank: exp of the entropy of the covariance's normalised eigenvalues, at most D (Roy and
            Vetterli 2007): over how many directions the clips spread.
    """
    exact = features.double()
    norms = exact.norm(dim=1)
    centred = exact - exact.mean(0)
    spread = torch.linalg.eigvalsh(centred.T @ centred).clamp(min=0)
    shares = spread / spread.sum()
    return {
        "norm_mean": norms.mean().item(),
        "norm_min": norms.min().item(),
        "norm_max": norms.max().item(),
        "repeated": len(common_rows(features)),
        "constant_channels": int((features == features[:1]).all(0).sum()),
        "mean_share": (exact.mean(0).square().sum() / norms.square().mean()).item(),
        "effective_rank": torch.special.entr(shares).sum().exp().item(),
    }
