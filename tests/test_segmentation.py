"""Segment metrics against versions written the slow way, by hand, and what is refused."""

import functools

import numpy as np
import pytest
import torch

from uniego_utils.segmentation.metrics import (
    count_hits,
    edit_score,
    frame_errors,
    segment_errors,
    segment_metrics,
    segments,
)


def runs(frames, background=()):
    """Segments as sets of frames, grown frame by frame."""
    found = []
    for number, label in enumerate(frames):
        if number and label == frames[number - 1]:
            found[-1][1].add(number)
        else:
            found.append((label, {number}))
    return [(label, where) for label, where in found if label not in background]


def slow_hits(ours, theirs, percent):
    """True positives by sets of frames."""
    unmatched, hits = set(range(len(theirs))), 0
    for label, mine in ours:
        ious = [
            (len(mine & real) / len(mine | real), -place)
            for place, (name, real) in enumerate(theirs)
            if name == label
        ]
        iou, place = max(ious, default=(0, 0))
        if 100 * iou >= percent and -place in unmatched:
            unmatched.remove(-place)
            hits += 1
    return hits


def slow_distance(a, b):
    """Levenshtein by its recursive definition."""

    @functools.cache
    def distance(i, j):
        if not i or not j:
            return i + j
        changed = distance(i - 1, j - 1) + (a[i - 1] != b[j - 1])
        return min(changed, distance(i - 1, j) + 1, distance(i, j - 1) + 1)

    return distance(len(a), len(b))


def slow_metrics(predicted, truth, background=()):
    expected, edits, right = {}, [], []
    pairs = [(runs(p, background), runs(t, background)) for p, t in zip(predicted, truth, strict=True)]
    for percent in (10, 25, 50):
        tp = sum(slow_hits(ours, theirs, percent) for ours, theirs in pairs)
        fp = sum(len(ours) for ours, _ in pairs) - tp
        fn = sum(len(theirs) for _, theirs in pairs) - tp
        precision, recall = tp / (tp + fp) if tp + fp else 0, tp / (tp + fn)
        expected[f"F1@{percent}"] = 200 * precision * recall / (precision + recall) if tp else 0
    for ours, theirs in pairs:
        a, b = [label for label, _ in ours], [label for label, _ in theirs]
        edits.append(100 * (1 - slow_distance(a, b) / max(len(a), len(b))) if a or b else 100)
    for p, t in zip(predicted, truth, strict=True):
        right += [guess == real for guess, real in zip(p, t, strict=True) if real not in background]
    return {**expected, "edit": np.mean(edits), "accuracy": 100 * np.mean(right)}


def random_videos(seed, classes=4):
    """Truth in long runs; predictions that copy it, with noise, jitter and splits."""
    draw = np.random.default_rng(seed)
    truth, predicted = [], []
    for _ in range(4):
        real = np.repeat(draw.integers(classes, size=8), draw.integers(1, 12, size=8))
        guess = np.roll(real, draw.integers(-4, 5))
        noisy = draw.random(len(real)) < draw.choice([0, 0.05, 0.4])
        truth.append(real)
        predicted.append(np.where(noisy, draw.integers(classes, size=len(real)), guess))
    return predicted, truth


@pytest.mark.parametrize("background", [None, 0, (0, 2), {1}])
@pytest.mark.parametrize("seed", range(12))
def test_agrees_with_the_slow_version(seed, background):
    predicted, truth = random_videos(seed)
    ignored = set() if background is None else {background} if background == 0 else set(background)
    expected = slow_metrics([list(p) for p in predicted], [list(t) for t in truth], ignored)
    assert segment_metrics(predicted, truth, background) == pytest.approx(expected)


@pytest.mark.parametrize(
    "predicted, truth",
    [
        ("aaaabbbb", "aaaabbbb"),
        ("bbbbaaaa", "aaaabbbb"),
        ("ababababab", "aaaaabbbbb"),  # over-segmented
        ("aaaaaaaaaa", "ababababab"),  # one guess meets five segments alike
        ("aabaabaa", "aaaaaaaa"),  # of several guesses the first long enough one counts
        ("abcdefgh", "hgfedcba"),
        ("aaaaaaaaab", "aaaaaaaaaa"),
        ("zzzzzzzz", "aabbccdd"),
        ("zzzz", "aazz"),
        ("a", "a"),
        ("aaaaaaaaaabbbbbbbbbbcccccccccc", "abbbbbbbbbbbbbbbbbbbbbbccccccc"),  # IoU of exactly 1/10
        ("aaaaab", "bbaabb"),
        ("aaaabaaaaaaabbb", "aaaaaaaaaabaaaa"),  # the best one is taken, and the next best is not asked
    ],
)
@pytest.mark.parametrize("background", [(), "z", "ez"])
def test_adversarial_videos(predicted, truth, background):
    expected = slow_metrics([predicted], [truth], set(background))
    assert segment_metrics([list(predicted)], [list(truth)], tuple(background)) == pytest.approx(expected)


def test_by_hand():
    truth, predicted = [list("..aaaabbbb..")], [list("..aaa.bb.b.b")]
    # a: IoU 3/4. b: 2/4, then 1/4 of one already taken, then nothing. Accuracy: 6 of the 8 frames of a and b
    scores = segment_metrics(predicted, truth, ".")
    f1 = 100 * 2 * 2 / (4 + 2)
    assert scores == pytest.approx({"F1@10": f1, "F1@25": f1, "F1@50": f1, "edit": 50, "accuracy": 75})


def test_counts_are_pooled_and_edits_averaged():
    good, bad = list("aabb"), list("abababab")
    scores = segment_metrics([good, bad], [good, list("cccccccc")])
    assert scores["F1@10"] == pytest.approx(100 * 2 * 2 / (10 + 3))  # not the mean of 100 and 0
    assert (scores["edit"], scores["accuracy"]) == (50, pytest.approx(100 * 4 / 12))


def test_the_last_frame_of_a_video_counts():
    assert segments(list("aab")) == [("a", 0, 2), ("b", 2, 3)]
    assert segment_metrics([list("aab")], [list("aab")])["F1@50"] == 100


def test_background_in_the_truth_hides_what_is_predicted_there_from_accuracy_alone():
    scores = segment_metrics([list("aabb")], [list("aa..")], ".")
    assert scores["accuracy"] == 100 and scores["edit"] == 50
    assert scores["F1@50"] == pytest.approx(100 * 2 / 3)
    assert segment_metrics([list("a.bb")], [list("aa..")], ".")["accuracy"] == 50


def test_a_video_of_background_alone():
    shown = list("aabb")
    silent = segment_metrics([shown, list("....")], [shown, list("....")], ".")
    assert silent == {"F1@10": 100, "F1@25": 100, "F1@50": 100, "edit": 100, "accuracy": 100}
    loud = segment_metrics([shown, list("..a.")], [shown, list("....")], ".")
    assert (loud["edit"], loud["accuracy"]) == (50, 100)
    assert loud["F1@50"] == pytest.approx(100 * 2 * 2 / (3 + 2))


def test_nothing_predicted():
    scores = segment_metrics([list("....")], [list("aabb")], ".")
    assert scores == {"F1@10": 0, "F1@25": 0, "F1@50": 0, "edit": 0, "accuracy": 0}


def test_speed_names_and_kinds_of_arrays_do_not_matter():
    predicted, truth = random_videos(0)
    expected = segment_metrics(predicted, truth, 0)
    slower = segment_metrics([p.repeat(3) for p in predicted], [t.repeat(3) for t in truth], 0)
    assert slower == pytest.approx(expected)
    names = np.array(["none", "cut", "stir", "pour"])
    called = segment_metrics([names[p] for p in predicted], [names[t].astype(object) for t in truth], "none")
    assert called == pytest.approx(expected)
    tensors = segment_metrics(
        [torch.from_numpy(p) for p in predicted], [t.tolist() for t in truth], torch.tensor(0)
    )
    assert tensors == pytest.approx(expected)
    turned = segment_metrics(predicted[::-1], truth[::-1], [0])
    assert turned == pytest.approx(expected)


def test_a_segment_is_found_once():
    truth = segments(list("aaaaaaaa"))
    assert count_hits(segments(list("aaabaaab")), truth, 0.25) == 1
    assert count_hits(segments(list("bbbbbbbb")), truth, 0.25) == count_hits([], truth, 0.25) == 0


@pytest.mark.parametrize("seed", range(20))
def test_edit_score_agrees_with_the_definition(seed):
    draw = np.random.default_rng(seed)
    a, b = (draw.integers(3, size=draw.integers(0, 9)).tolist() for _ in range(2))
    expected = 100 * (1 - slow_distance(a, b) / max(len(a), len(b))) if a or b else 100
    assert edit_score(a, b) == pytest.approx(expected) == edit_score(b, a)


@pytest.mark.parametrize(
    "predicted, truth, background, message",
    [
        ([], [], None, "the same videos, got 0 and 0"),
        ([[1]], [[1], [2]], None, "the same videos, got 1 and 2"),
        ([[1, 2]], [[1, 2, 3]], None, "video 0: 2 predicted frames, but 3 true ones"),
        ([[1], []], [[1], []], None, "prediction 1: expected a 1-D array"),
        ([[1]], [[]], None, "truth 0: expected a 1-D array"),
        ([1, 2], [1, 2], None, "prediction 0: expected a 1-D array"),
        ([[[1]]], [[[1]]], None, "prediction 0: expected a 1-D array"),
        ([["1"]], [[1]], None, "video 0: predictions, truth and background are not all names or all"),
        ([[1]], [[1]], "background", "video 0: predictions, truth and background are not all"),
        ([[0, 1]], [[0, 0]], 0, "truth of all 1 videos is background: nothing to measure"),
        ([[1.0, np.nan]], [[1.0, 1.0]], None, "prediction 0: labels are missing"),
        ([["a", "b"]], [["a", None]], None, "truth 0: labels are missing"),
    ],
)
def test_refuses_what_it_cannot_score(predicted, truth, background, message):
    with pytest.raises(ValueError, match=message):
        segment_metrics(predicted, truth, background)


# Error types


def slow_frame_errors(predicted, truth, tolerance):
    """Each frame by itself: would its label be right if a true boundary moved by up to `tolerance` frames?"""
    counts = dict.fromkeys(("right", "boundary", "confused", "missed", "invented"), 0)
    for guess, real in zip(predicted, truth, strict=True):
        edges = [t for t in range(1, len(real)) if real[t] != real[t - 1]]
        for t, (ours, theirs) in enumerate(zip(guess, real, strict=True)):
            if ours == theirs:
                kind = "right"
            elif any(
                (0 < edge - t <= tolerance and ours == real[edge] and len(set(real[t:edge])) == 1)
                or (
                    0 <= t - edge < tolerance and ours == real[edge - 1] and len(set(real[edge : t + 1])) == 1
                )
                for edge in edges
            ):
                kind = "boundary"
            elif ours == 0:
                kind = "missed"
            else:
                kind = "invented" if theirs == 0 else "confused"
            counts[kind] += 1
    total = sum(counts.values())
    return {name: 100 * count / total for name, count in counts.items()}


@pytest.mark.parametrize("tolerance", [0, 1, 3])
@pytest.mark.parametrize("number", range(6))
def test_frame_errors_agree_with_frame_by_frame_counting(number, tolerance):
    random = np.random.default_rng(number)
    truth = [np.repeat(random.integers(0, 3, 12), random.integers(1, 4, 12)) for _ in range(4)]
    predicted = [
        np.where(random.random(len(t)) < 0.6, np.roll(t, 1), random.integers(0, 3, len(t))) for t in truth
    ]
    found = frame_errors(predicted, truth, 0, tolerance)
    assert found == pytest.approx(slow_frame_errors(predicted, truth, tolerance))
    assert sum(found.values()) == pytest.approx(100)
    assert frame_errors(truth, truth, 0, tolerance)["right"] == 100


def test_segment_errors_by_hand():
    truth = list("..aaaa..bbbb..cccc..dddd")
    guess = list("..aaaa..b.bb..c.....a...")  # found; fragmented; displaced; missed and invented
    found = segment_errors([guess], [truth], ".")
    assert found == {
        "found": 25.0,
        "displaced": 25.0,
        "fragmented": 25.0,
        "missed": 25.0,
        "invented": 25.0,
        "segments": 125.0,
    }
    perfect = segment_errors([truth], [truth], ".")
    assert (perfect["found"], perfect["segments"], perfect["invented"]) == (100.0, 100.0, 0.0)


def test_error_types_refuse_what_cannot_be_compared():
    for function in (lambda a, b: frame_errors(a, b, 0, 1), lambda a, b: segment_errors(a, b, 0)):
        with pytest.raises(ValueError, match="3 predicted frames, but 2"):
            function([[0, 1, 1]], [[0, 1]])
        with pytest.raises(ValueError, match="is background"):
            function([[0, 1]], [[0, 0]])
