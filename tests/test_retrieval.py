"""Retrieval against scikit-learn query by query, then what must not matter, then what is refused."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from uniego_utils.analyses.retrieval import nearest, rank_matches, retrieval_metrics


def random_clips(clips=60, width=8, classes=5, seed=0):
    """Features in all directions, so that half of the similarities are negative."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(classes, size=clips)
    return draw.normal(size=(clips, width)) + 0.5 * np.eye(classes, width)[labels], labels


def tied_clips(clips=90, seed=1):
    """Corners of a cube: similarities are exactly -1, -0.5, 0, 0.5 or 1, and clips repeat."""
    draw = np.random.default_rng(seed)
    return draw.choice([-1.0, 1.0], size=(clips, 4)), draw.integers(6, size=clips)


def repeated_clips(seed=2):
    """Every third clip has the features of the first."""
    features, labels = random_clips(61, 33, seed=seed)
    features[::3] = features[0]
    return features, labels


CASES = {"random": random_clips, "ties": tied_clips, "repeats": repeated_clips}


def slowly(features, labels, takes=None):
    """AP by scikit-learn and the first match's rank by sorting in Python, a query at a time."""
    units = features / np.linalg.norm(features, axis=1, keepdims=True)
    expected = np.full((len(units), 2), np.nan)
    for query, unit in enumerate(units):
        others = [
            other
            for other in range(len(units))
            if other != query and (takes is None or takes[other] != takes[query])
        ]
        alike = np.round(units[others] @ unit, 12)  # equal rows are equally alike
        right = labels[others] == labels[query]
        if right.any():
            by_rank = sorted(range(len(others)), key=lambda place: (-alike[place], place))
            first = next(rank for rank, place in enumerate(by_rank, 1) if right[place])
            expected[query] = average_precision_score(right, alike), first
    return expected


@pytest.mark.parametrize("with_takes", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_every_query_agrees_with_scikit_learn(case, with_takes):
    features, labels = CASES[case]()
    takes = np.arange(len(labels)) // 4 if with_takes else None
    found = rank_matches(features, labels, takes)
    np.testing.assert_allclose(found.to_numpy(), slowly(features, labels, takes), rtol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_float32_and_small_blocks_agree_too(case):
    features, labels = CASES[case]()
    takes = np.arange(len(labels)) // 4
    for queries in (1, 7):  # the last block is shorter
        size = queries * len(labels) * 4
        given = features.astype(np.float32)
        found = rank_matches(given, labels, takes, dtype=torch.float32, block_bytes=size)
        np.testing.assert_allclose(found.to_numpy(), slowly(features, labels, takes), rtol=1e-9)


def test_the_metrics_are_means_over_queries_that_have_a_match():
    features, labels = random_clips()
    labels[0] = 99  # a class of one clip
    metrics, expected = retrieval_metrics(features, labels), slowly(features, labels)
    average, first = expected[1:].T
    assert metrics["mAP"] == pytest.approx(average.mean())
    for k in (1, 5):
        assert metrics[f"R@{k}"] == pytest.approx((first <= k).mean())
    assert (metrics["queries"], metrics["without_match"]) == (59, 1)
    per_class = metrics["per_class"]
    for label in range(5):
        chosen = labels[1:] == label
        assert per_class.loc[label, "mAP"] == pytest.approx(average[chosen].mean())
        assert per_class.loc[label, "R@1"] == pytest.approx((first[chosen] <= 1).mean())
        assert per_class.loc[label, "queries"] == chosen.sum()
    assert per_class.loc[99, ["mAP", "R@1", "R@5"]].isna().all()
    assert per_class.loc[99, ["queries", "without_match"]].tolist() == [0, 1]


def test_by_hand():
    angles = np.deg2rad([0, 10, 25, 180])
    metrics = retrieval_metrics(np.stack([np.cos(angles), np.sin(angles)], 1), ["a", "b", "a", "b"])
    # nearest first: clip 0 asks 1 2 3, 1 asks 0 2 3, 2 asks 1 0 3, 3 asks 2 1 0
    assert metrics["mAP"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 2 + 1 / 2) / 4)
    assert (metrics["R@1"], metrics["R@5"]) == (0, 1)


def test_perfect_and_inverted_features():
    labels = np.repeat([0, 1], 4)
    assert retrieval_metrics(np.eye(2)[labels] * 3, labels)["mAP"] == 1
    opposite = np.array([[1.0, 0.0], [-1.0, 0.0]])[np.arange(8) % 2]
    metrics = retrieval_metrics(opposite, np.arange(8) // 2)  # the one match is the farthest clip, among ties
    assert metrics["mAP"] == pytest.approx(1 / 7)
    assert (metrics["R@1"], metrics["R@5"]) == (0, 1 / 2)  # two ranks of 4, two of 5, two of 6, two of 7


def test_scale_rotation_and_order_do_not_matter():
    features, labels = random_clips()
    expected = rank_matches(features, labels)
    draw = np.random.default_rng(3)
    rotation, scales = np.linalg.qr(draw.normal(size=(8, 8)))[0], draw.uniform(1e-3, 1e3, (60, 1))
    order = draw.permutation(60)
    for same in (features @ rotation, features * scales, features * 1e300, features * 1e-300):
        np.testing.assert_allclose(rank_matches(same, labels), expected, rtol=1e-9)
    np.testing.assert_allclose(rank_matches(features[order], labels[order]), expected.iloc[order], rtol=1e-9)


def test_what_labels_and_features_are_made_of_does_not_matter():
    features, labels = random_clips()
    read_only = features.astype(np.float32)
    read_only.setflags(write=False)
    features = read_only.astype(float)
    expected = rank_matches(features, labels)
    names = np.array(list("edcba"))[labels]
    for given in (read_only, torch.from_numpy(features).requires_grad_(), features.tolist()):
        for called in (
            labels.tolist(),
            torch.from_numpy(labels),
            names,
            names.tolist(),
            names.astype(object),
        ):
            np.testing.assert_allclose(rank_matches(given, called), expected, rtol=1e-12)
    assert list(retrieval_metrics(features, names)["per_class"].index) == list("abcde")


def test_a_centre_that_all_share_matters():
    features, labels = random_clips()
    assert not np.allclose(rank_matches(features + 5, labels), rank_matches(features, labels))


def test_own_takes_are_left_out():
    features = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.1, 1.0]])
    labels, takes = [0, 0, 1, 0], ["x", "x", "y", "z"]
    assert retrieval_metrics(features, labels)["R@1"] == pytest.approx(2 / 3)
    metrics = retrieval_metrics(features, labels, takes)
    assert metrics["R@1"] == pytest.approx(2 / 3 - 1 / 3 + 1 / 3)
    # clips 0 and 1 see 3 before 2; clip 3 sees 2 first, then both matches at once
    np.testing.assert_allclose(rank_matches(features, labels, takes)["AP"], [1, 1, np.nan, 2 / 3])


def test_nearest_in_order_without_the_query_and_its_take():
    features, _ = repeated_clips()
    takes = np.arange(61) // 4
    units = features / np.linalg.norm(features, axis=1, keepdims=True)
    alike = np.round(units @ units[30], 12)
    by_rank = sorted(range(61), key=lambda clip: (-alike[clip], clip))
    assert nearest(features, 30, 25) == [clip for clip in by_rank if clip != 30][:25]
    assert nearest(features, 30, 25, takes) == [clip for clip in by_rank if takes[clip] != takes[30]][:25]
    assert len(nearest(features, 30, 1000)) == 60 and len(nearest(features, 30, 1000, takes)) == 57
    with pytest.raises(ValueError, match="no clip 61 among 61"):
        nearest(features, 61, 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_clips_with_equal_features_are_equally_near_wherever_they_stand(dtype):
    features = np.random.default_rng(0).normal(size=(1037, 768)).astype(np.float32)
    features[500:] = features[20]  # enough that a product of matrices treats the last ones differently
    for query in range(20):
        found = [clip for clip in nearest(features, query, 1036, dtype=dtype) if clip == 20 or clip >= 500]
        assert found == [20, *range(500, 1037)]
    # the last block is one query, whose only match is the last of 537 clips that are equally near
    size = 1036 * 1037 * dtype.itemsize
    last = rank_matches(features, [*range(1036), 1035], dtype=dtype, block_bytes=size).iloc[-1]
    assert (last["AP"], last["first_match"]) == (pytest.approx(1 / 537), 537)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_refused_by_row(value):
    features, labels = random_clips()
    features[[7, *range(20, 26)], 3] = value
    with pytest.raises(
        ValueError, match=r"of 7 of 60 clips are not finite \(rows 7, 20, 21, 22, 23 and 2 more"
    ):
        retrieval_metrics(features, labels)


def test_zero_vectors_are_refused_by_row():
    features, labels = random_clips()
    features[12] = 0
    with pytest.raises(ValueError, match=r"of 1 of 60 clips are zero: they have no direction \(rows 12\)"):
        retrieval_metrics(features, labels)


@pytest.mark.parametrize("shape", [(1, 4), (0, 4), (4,), (4, 0), (4, 2, 2)])
def test_what_is_no_table_of_two_clips_is_refused(shape):
    with pytest.raises(ValueError, match=r"expected features \(clips, width\) of two clips or more"):
        retrieval_metrics(np.ones(shape), [0] * shape[0])


def test_labels_and_takes_that_do_not_fit_are_refused():
    features, labels = random_clips()
    for wrong in (labels[:-1], labels[:, None], 3):
        with pytest.raises(ValueError, match="60 clips need as many labels"):
            retrieval_metrics(features, wrong)
    with pytest.raises(ValueError, match="60 clips need as many takes"):
        retrieval_metrics(features, labels, takes=["x"])
    for absent in (np.nan, None):
        with pytest.raises(ValueError, match="1 of 60 labels are missing"):
            retrieval_metrics(features, [absent, *labels[1:]])


def test_without_any_match_there_is_nothing_to_retrieve():
    features, labels = random_clips()
    with pytest.raises(ValueError, match="none of the 60 clips has another of its label: nothing"):
        retrieval_metrics(features, np.arange(60))
    with pytest.raises(ValueError, match="none of the 60 clips has another of its label in another take"):
        retrieval_metrics(features, labels, takes=["one"] * 60)


def test_many_more_classes_than_a_block_and_one_class():
    features, _ = random_clips(301)
    pairs = np.arange(301) // 2
    np.testing.assert_allclose(rank_matches(features, pairs), slowly(features, pairs), rtol=1e-12)
    assert retrieval_metrics(features, np.zeros(301))["mAP"] == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_same():
    features, labels = tied_clips()
    takes = np.arange(len(labels)) // 4
    np.testing.assert_allclose(
        rank_matches(features, labels, takes, "cuda"), slowly(features, labels, takes), rtol=1e-12
    )
