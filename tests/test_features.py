"""The feature store: what goes in comes out, and nothing unusable goes in."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from uniego_utils.analyses.retrieval import nearest
from uniego_utils.data.manifests import Manifest
from uniego_utils.runs import read_notes
from uniego_utils.teachers.features import (
    common_rows,
    describe_features,
    linear_probe,
    read_features,
    standardise,
    write_features,
)

N, WIDTH = 8, 5
FEATURES = torch.randn(N, WIDTH, generator=torch.Generator().manual_seed(0))
NOTES = {"model": "dino", "pooling": "mean"}


@pytest.fixture
def manifest(tmp_path):
    rows = pd.DataFrame({"clip_id": [f"clip_{i}" for i in range(N)]})
    return Manifest("train", rows, ("a", "b"), tmp_path, "0123456789abcdef")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ego_dino" / "train.safetensors"


def with_rows(**values):
    features = FEATURES.clone()
    for row, value in values.items():
        features[int(row[1:])] = value
    return features


def test_what_is_written_is_read_back(manifest, path):
    write_features(path, FEATURES, manifest, WIDTH, NOTES)
    assert torch.equal(read_features(path, manifest, WIDTH), FEATURES)


def test_features_are_kept_in_float32(manifest, path):
    write_features(path, FEATURES.double(), manifest, WIDTH, NOTES)
    assert read_features(path, manifest, WIDTH).dtype == torch.float32


def test_notes_say_how_features_were_made(manifest, path):
    write_features(path, FEATURES, manifest, WIDTH, NOTES)
    notes = read_notes(path)
    assert NOTES.items() <= notes.items() and notes["manifest"] == manifest.digest
    assert notes["torch"] == torch.__version__.split("+")[0] or notes["torch"] == torch.__version__


def test_features_that_were_not_extracted_are_named_with_the_cure(manifest, path):
    with pytest.raises(FileNotFoundError, match="run notebook 01_teacher_extraction for ego_dino"):
        read_features(path, manifest, WIDTH)


def test_features_of_another_manifest_are_refused_with_both_counts(manifest, path):
    write_features(path, FEATURES, manifest, WIDTH, NOTES)
    shorter = replace(manifest, rows=manifest.rows[:6], digest="fedcba")
    with pytest.raises(
        ValueError, match=r"8 clips.*0123456789ab.*6 clips.*fedcba.*01_teacher_extraction again"
    ):
        read_features(path, shorter, WIDTH)


def test_features_of_a_relabelled_manifest_are_refused(manifest, path):
    write_features(path, FEATURES, manifest, WIDTH, NOTES)
    with pytest.raises(ValueError, match="another manifest"):
        read_features(path, replace(manifest, digest="fedcba"), WIDTH)


BAD = {
    "too narrow": (FEATURES[:, :4], r"\(8, 5\).*\(8, 4\)"),
    "too few clips": (FEATURES[:7], r"\(8, 5\).*\(7, 5\)"),
    "not a matrix": (FEATURES[:, None], r"\(8, 5\).*\(8, 1, 5\)"),
    "NaN": (with_rows(r2=float("nan"), r6=float("nan")), r"2 of 8 clips have non-finite.*clip_2, clip_6"),
    "infinity": (with_rows(r3=float("inf")), r"1 of 8 clips have non-finite.*clip_3"),
    "zeros": (with_rows(r1=0.0), r"1 of 8 clips have a constant feature vector.*clip_1"),
    "a constant vector": (with_rows(r1=3.3), r"1 of 8 clips have a constant feature vector.*clip_1"),
    "all clips equal": (FEATURES[:1].repeat(N, 1), "all clips have the same features"),
}


@pytest.mark.parametrize(("features", "message"), BAD.values(), ids=BAD)
def test_unusable_features_are_refused_and_not_written(manifest, path, features, message):
    with pytest.raises(ValueError, match=message):
        write_features(path, features, manifest, WIDTH, NOTES)
    assert list(path.parent.parent.rglob("*.*")) == []


def test_a_refusal_leaves_earlier_features_alone(manifest, path):
    write_features(path, FEATURES, manifest, WIDTH, NOTES)
    with pytest.raises(ValueError):
        write_features(path, BAD["NaN"][0], manifest, WIDTH, NOTES)
    assert torch.equal(read_features(path, manifest, WIDTH), FEATURES)


def test_at_most_five_clips_are_named(manifest, path):
    features = FEATURES.clone()
    features[:7] = float("nan")
    with pytest.raises(ValueError) as caught:
        write_features(path, features, manifest, WIDTH, NOTES)
    assert "7 of 8" in str(caught.value) and str(caught.value).count("clip_") == 5


def test_another_width_than_the_cards_is_refused_on_reading(manifest, path):
    write_features(path, FEATURES, manifest, WIDTH, NOTES)
    with pytest.raises(ValueError, match="expected features"):
        read_features(path, manifest, WIDTH + 1)


def test_standardised_features_agree_with_the_definition():
    features = FEATURES * torch.tensor([1.0, 9.0, 0.01, 3.0, 5.0]) + 4
    x = features.numpy().astype(np.float64)
    slow = (x - x.mean(0)) / x.std(0)
    np.testing.assert_allclose(standardise(features).numpy(), slow, atol=1e-3)


@pytest.mark.parametrize("value", [0.0, 0.1, 3.3, 1000.1])
def test_a_channel_that_never_changes_becomes_zero(value):
    features = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    features[:, 1] = value
    assert standardise(features)[:, 1].abs().max() < 1e-3


def test_standardised_features_ignore_scale_and_shift():
    torch.testing.assert_close(standardise(7 * FEATURES - 3), standardise(FEATURES), rtol=1e-4, atol=1e-5)


def clouds(separation, seed, clips=200, classes=4):
    """Gaussian clouds in 8-d, one per class, centred `separation` out on an axis of their own."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(clips) % classes
    centres = separation * torch.eye(8)[labels]
    return centres + torch.randn(clips, 8, generator=generator), labels.tolist()


def test_a_probe_separates_separable_classes():
    assert linear_probe(*clouds(20, seed=0), *clouds(20, seed=1)) == 100


def test_a_probe_is_at_chance_on_noise():
    accuracy = linear_probe(*clouds(0, seed=0), *clouds(0, seed=1))
    assert accuracy == pytest.approx(25, abs=10)  # sd of 200 guesses at 1 in 4: 3 points


def test_clips_that_share_their_features_are_found():
    assert common_rows(with_rows(r6=FEATURES[1], r3=FEATURES[1])).tolist() == [1, 3, 6]
    assert common_rows(FEATURES).tolist() == []


def test_health_by_definition():
    features = torch.randn(30, 6, generator=torch.Generator().manual_seed(1)) + 2
    features[:, 5] = 3.0
    features[7] = features[4]
    told = describe_features(features)
    x = features.double().numpy()
    norms = np.sqrt((x**2).sum(1))
    assert [told["norm_min"], told["norm_mean"], told["norm_max"]] == pytest.approx(
        [norms.min(), norms.mean(), norms.max()]
    )
    assert (told["repeated"], told["constant_channels"]) == (2, 1)
    assert told["mean_share"] == pytest.approx((x.mean(0) ** 2).sum() / (norms**2).mean())
    values = np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2
    shares = values[values > 1e-12] / values.sum()
    assert told["effective_rank"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-6)


def test_effective_rank_counts_directions():
    assert describe_features(torch.cat([torch.eye(4), -torch.eye(4)]))["effective_rank"] == pytest.approx(4)


def test_nearest_clips_by_definition_and_never_of_the_same_take():
    features = torch.randn(12, 5, generator=torch.Generator().manual_seed(2))
    features[3] = features[0] + 1e-3  # of the same take: the nearest, but no news
    takes = ["a", "b", "c", "a", "b", "c", "d", "d", "e", "e", "f", "f"]
    z = (features.numpy() - features.numpy().mean(0)) / features.numpy().std(0)
    cosine = [z[0] @ row / np.linalg.norm(z[0]) / np.linalg.norm(row) for row in z]
    expected = sorted((row for row in range(12) if takes[row] != "a"), key=lambda row: -cosine[row])
    assert nearest(standardise(features), 0, 4, takes) == expected[:4]
    assert nearest(standardise(features), 0, 4, ["a"] * 12) == []


def test_a_probe_on_fewer_clips_takes_them_evenly():
    features, labels = torch.randn(40, 3), [row % 3 % 2 for row in range(40)]
    kept = torch.arange(0, 40, 4)
    assert linear_probe(features, labels, features, labels, max_clips=10) == linear_probe(
        features[kept], [labels[row] for row in kept], features, labels
    )
