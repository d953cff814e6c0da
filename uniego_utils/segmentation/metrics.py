"""Do features keep time? How well predicted labels of a video's frames agree with the truth."""

from collections.abc import Hashable, Iterable, Sequence, Set

import numpy as np
from torch import Tensor

Frames = Sequence | np.ndarray | Tensor  # 1-D, a label a frame
Background = Hashable | Iterable[Hashable] | None

OVERLAPS = (0.10, 0.25, 0.50)  # of F1@10, F1@25, F1@50


def segment_metrics(
    predicted: Sequence[Frames], truth: Sequence[Frames], background: Background = None
) -> dict[str, float]:
    """Segmental F1, edit score and frame accuracy in percent, by MS-TCN's convention (the paper's Table 4).

    Segments are runs of equal labels, without those of background. For F1@k each predicted segment, in order
    of time, takes the true segment of its label with the highest IoU (the first of equals): a true positive
    if IoU >= k % and no earlier segment got that one, else a false positive. The counts are pooled over
    videos. Edit is 100 (1 - Levenshtein distance / length of the longer) of the two sequences of segments'
    labels, averaged over videos. Accuracy pools the frames of all videos whose *truth* is not background:
    a prediction of background there is an error, and frames of background count nowhere.

    A video whose truth is all background has no frames for the accuracy; what is predicted in it are false
    positives, and its edit score is 0, or 100 if nothing is predicted either.

    MS-TCN's own `eval.py` loses the last frame of a video's last segment, which we keep, and counts the
    frames of background in its accuracy: `background=None` and that label among the others does the same.

    Args:
        predicted: a 1-D array of labels (numbers or names) per video.
        truth: the same, of the same videos.
        background: a label, several, or None.

    Returns:
        F1@10, F1@25, F1@50, edit, accuracy: each in [0, 100].

    Raises:
        ValueError: no videos, empty ones, lengths that differ, names against numbers, missing labels, or
            truth that is all background.
    """
    if len(predicted) != len(truth) or not len(truth):
        raise ValueError(
            f"expected predictions and truth of the same videos, got {len(predicted)} and {len(truth)}"
        )
    ignored = _labels(background)
    hits, guesses, true_segments = np.zeros(len(OVERLAPS), int), 0, 0
    edits, right, frames = [], 0, 0
    for number, pair in enumerate(zip(predicted, truth, strict=True)):
        guess, real = (
            _frames(labels, f"{name} {number}")
            for labels, name in zip(pair, ("prediction", "truth"), strict=True)
        )
        if len(guess) != len(real):
            raise ValueError(f"video {number}: {len(guess)} predicted frames, but {len(real)} true ones")
        if len({labels.dtype.kind in "biuf" for labels in (guess, real, ignored) if len(labels)}) > 1:
            raise ValueError(
                f"video {number}: predictions, truth and background are not all names or all numbers"
            )
        ours, theirs = segments(guess, ignored), segments(real, ignored)
        hits += [count_hits(ours, theirs, overlap) for overlap in OVERLAPS]
        guesses, true_segments = guesses + len(ours), true_segments + len(theirs)
        edits.append(edit_score([label for label, *_ in ours], [label for label, *_ in theirs]))
        foreground = ~np.isin(real, ignored)
        right, frames = right + int((guess == real)[foreground].sum()), frames + int(foreground.sum())
    if not frames:
        raise ValueError(f"the truth of all {len(truth)} videos is background: nothing to measure")
    # 2 tp / (2 tp + fp + fn), where tp + fp are the predicted segments and tp + fn the true ones
    f1 = 200 * hits / (guesses + true_segments)
    scores = {f"F1@{100 * overlap:.0f}": float(value) for overlap, value in zip(OVERLAPS, f1, strict=True)}
    return {**scores, "edit": float(np.mean(edits)), "accuracy": 100 * right / frames}


def segments(labels: Frames, background: Background = None) -> list[tuple[Hashable, int, int]]:
    """Runs of equal labels as (label, first frame, frame after the last), without those of background."""
    labels = _frames(labels, "video")
    starts = np.flatnonzero(np.r_[True, labels[1:] != labels[:-1]])
    stops = np.r_[starts[1:], len(labels)]
    kept = ~np.isin(labels[starts], _labels(background))
    return list(zip(labels[starts[kept]].tolist(), starts[kept].tolist(), stops[kept].tolist(), strict=True))


def count_hits(
    predicted: Sequence[tuple[Hashable, int, int]], truth: Sequence[tuple[Hashable, int, int]], overlap: float
) -> int:
    """True positives among predicted segments, see `segment_metrics`; `overlap` is the least IoU, above 0."""
    if not truth:
        return 0
    labels, starts, stops = (np.array(column) for column in zip(*truth, strict=True))
    taken = np.zeros(len(truth), bool)
    for label, start, stop in predicted:
        shared = np.minimum(stop, stops) - np.maximum(start, starts)
        together = (stop - start) + (stops - starts) - shared
        iou = np.where(labels == label, shared / together, -1.0)  # negative where they do not meet
        best = iou.argmax()
        taken[best] |= iou[best] >= overlap
    return int(taken.sum())


def edit_score(predicted: Sequence[Hashable], truth: Sequence[Hashable]) -> float:
    """100 (1 - Levenshtein distance / length of the longer); 100 for two empty sequences."""
    longer = max(len(predicted), len(truth))
    if longer == 0:
        return 100.0
    numbers = {label: number for number, label in enumerate({*predicted, *truth})}
    goal = np.array([numbers[label] for label in truth], int)
    places = np.arange(len(goal) + 1)
    costs = places  # from nothing to each beginning of the truth
    for count, label in enumerate(predicted, 1):
        kept_or_changed = costs[:-1] + (goal != numbers[label])
        best = np.r_[count, np.minimum(kept_or_changed, costs[1:] + 1)]
        costs = np.minimum.accumulate(best - places) + places  # and then insertions
    return 100.0 * (1 - costs[-1] / longer)


def _frames(labels: Frames, what: str) -> np.ndarray:
    labels = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if labels.ndim != 1 or not len(labels):
        raise ValueError(f"{what}: expected a 1-D array with a label per frame, got shape {labels.shape}")
    if labels.dtype.kind == "O":  # as pandas keeps names
        labels = np.array(labels.tolist())
    if labels.dtype.kind not in "biufU" or (labels.dtype.kind == "f" and not np.isfinite(labels).all()):
        raise ValueError(f"{what}: labels are missing, or neither numbers nor names")
    return labels


def _labels(background: Background) -> np.ndarray:
    """None, one label or several as an array of labels."""
    if background is None:
        return np.array([])
    return np.asarray(list(background) if isinstance(background, Set) else background).ravel()


def frame_errors(
    predicted: Sequence[Frames], truth: Sequence[Frames], background: Hashable, tolerance: int
) -> dict[str, float]:
    """What becomes of the frames of all videos, in percent; the five shares sum to 100.

    `boundary`: wrong, but right had the nearest change of the true label come up to `tolerance` frames sooner
    or later. Of the rest: `confused` is another action, `missed` is background instead of an action,
    `invented` an action instead of background. `right` counts frames of background too, which the accuracy
    of `segment_metrics` does not.

    Raises:
        ValueError: see `segment_metrics`.
    """
    segment_metrics(predicted, truth, background)  # refuses what cannot be compared
    counts = dict.fromkeys(("right", "boundary", "confused", "missed", "invented"), 0)
    for number, pair in enumerate(zip(predicted, truth, strict=True)):
        guess, real = (_frames(labels, f"video {number}") for labels in pair)
        near = np.zeros(len(real), bool)  # the guess is the label on the other side of a near boundary
        edges = [0, *np.flatnonzero(real[1:] != real[:-1]) + 1, len(real)]
        for start, place, stop in zip(edges, edges[1:], edges[2:], strict=False):
            before, after = max(start, place - tolerance), min(stop, place + tolerance)
            near[before:place] |= guess[before:place] == real[place]
            near[place:after] |= guess[place:after] == real[place - 1]
        wrong = guess != real
        counts["right"] += int((~wrong).sum())
        counts["boundary"] += int((wrong & near).sum())
        far = wrong & ~near
        counts["confused"] += int((far & (real != background) & (guess != background)).sum())
        counts["missed"] += int((far & (guess == background)).sum())
        counts["invented"] += int((far & (real == background)).sum())
    total = sum(counts.values())
    return {name: 100 * count / total for name, count in counts.items()}


def segment_errors(
    predicted: Sequence[Frames], truth: Sequence[Frames], background: Background = None
) -> dict[str, float]:
    """What becomes of the true segments of all videos, in percent of them.

    A segment is `found` if just one predicted segment of its label meets it, with an IoU of 0.5 or more;
    `displaced` if that one's IoU is lower; `fragmented` if several do; `missed` if none does. These four sum
    to 100. `invented` are the predicted segments that meet no true one of their label, and `segments` are all
    predicted ones: above 100 there are more than true ones (over-segmentation).

    Raises:
        ValueError: see `segment_metrics`.
    """
    segment_metrics(predicted, truth, background)  # refuses what cannot be compared
    counts = dict.fromkeys(("found", "displaced", "fragmented", "missed", "invented", "segments"), 0)
    total = 0
    for guess, real in zip(predicted, truth, strict=True):
        ours, theirs = segments(guess, background), segments(real, background)
        total, counts["segments"] = total + len(theirs), counts["segments"] + len(ours)
        for label, start, stop in theirs:
            meeting = [(a, b) for name, a, b in ours if name == label and a < stop and start < b]
            if len(meeting) > 1:
                counts["fragmented"] += 1
            elif meeting:
                ((first, last),) = meeting
                overlap = (min(stop, last) - max(start, first)) / (max(stop, last) - min(start, first))
                counts["found" if overlap >= 0.5 else "displaced"] += 1
            else:
                counts["missed"] += 1
        counts["invented"] += sum(
            not any(name == label and a < stop and start < b for name, a, b in theirs)
            for label, start, stop in ours
        )
    return {name: 100 * count / total for name, count in counts.items()}
