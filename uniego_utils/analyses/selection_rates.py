"""Who is selected, for which class, how clearly and for how long (the paper's Figure 6, Tables 11 and 12).

The selection is `candidates.select_proxies`; `spd.follow_selection` makes it again while UNIEGO learns.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from uniego_utils.candidates import select_proxies
from uniego_utils.objectives import proxy_cross_entropy

NOBODY = "none"  # stands for a proxy where no proxy is reliable, as in the paper's tables


def selection_rates(
    selected: Tensor, labels: Sequence[int], classes: Sequence[str], proxies: Sequence[str]
) -> pd.DataFrame:
    """Of each class's clips the share that learns from each proxy: the form of the paper's Tables 11 and 12.

    Args:
        selected: (N, R) bool, as `select_proxies` gives it.
        labels: N numbers of `classes`.
        proxies: names of the R proxies.

    Returns:
        A row a class that has clips, in the order of `classes`; columns `none` (clips without a reliable
        proxy), then the proxies. With one proxy a clip, rows sum to 1.
    """
    if selected.shape != (len(labels), len(proxies)):
        expected = (len(labels), len(proxies))
        raise ValueError(f"expected a selection {expected} for (clips, proxies), got {tuple(selected.shape)}")
    table = pd.DataFrame(selected.numpy(), columns=list(proxies))
    table.insert(0, NOBODY, ~table.any(axis=1))
    rates = table.astype(float).groupby(np.asarray(labels)).mean()
    rates.index = pd.Index([classes[number] for number in rates.index], name="class")
    return rates


def overall_rates(selected: Tensor, proxies: Sequence[str]) -> pd.Series:
    """The share of all clips that learns from each proxy, `none` first (the paper's Figure 6)."""
    return selection_rates(selected, [0] * len(selected), ["all"], proxies).loc["all"]


def preferences(rates: pd.DataFrame) -> pd.DataFrame:
    """Each class's two most selected proxies, and how far they are apart (the paper's Appendix F).

    Args:
        rates: of `selection_rates`.

    Returns:
        By class: `none`, `first`, `first_rate`, `second`, `second_rate`, `rate_gap`. Of equal rates the
        column that comes first is preferred; of one proxy alone, `second` is empty and its rate 0.
    """
    rows = {}
    for label, row in rates.iterrows():
        ordered = row.drop(NOBODY).sort_values(ascending=False, kind="stable")
        (first, high), (second, low) = [*ordered.items(), ("", 0.0)][:2]
        rows[label] = {
            "none": row[NOBODY],
            "first": first,
            "first_rate": high,
            "second": second,
            "second_rate": low,
            "rate_gap": high - low,
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("class")


def effective_proxies(rates: pd.Series) -> float:
    """Among how many proxies the selection spreads: exp of the entropy of their shares, from 1 to R.

    `rates` is one of `overall_rates`; clips without a proxy are left out. Raises ValueError if none has one.
    """
    given = rates.drop(NOBODY)
    if given.sum() == 0:
        raise ValueError("no clip has a reliable proxy, so there is no selection to describe")
    part = torch.tensor((given / given.sum()).to_numpy())
    return torch.special.entr(part).sum().exp().item()


def confidence_gaps(
    logits: Tensor, labels: Tensor, ce_ceiling: float | None = None
) -> tuple[Tensor, pd.Series]:
    """How many reliable proxies each clip has, and how clearly the best of them wins.

    Args:
        logits, labels, ce_ceiling: as for `select_proxies`.

    Returns:
        Candidates per clip (N,); and for clips with at least two the cross-entropy of the second-best minus
        that of the best in nats, by the clip's row: 0 where the choice is a toss-up.
    """
    candidates = select_proxies(logits, labels, logits.shape[1], ce_ceiling)
    count = candidates.sum(1)
    loss = proxy_cross_entropy(logits, labels).masked_fill(~candidates, torch.inf)
    rows = (count >= 2).nonzero().flatten()
    best = loss[rows].sort(1).values[:, :2] if len(rows) else loss.new_zeros(0, 2)
    return count, pd.Series((best[:, 1] - best[:, 0]).numpy(), index=rows.numpy(), dtype=float)


def selection_over_training(
    first: Tensor, followed: dict[str, Tensor], proxies: Sequence[str]
) -> pd.DataFrame:
    """How the selection moves when it is made anew in every epoch.

    Args:
        first: (N, R) the selection made before training.
        followed: of `spd.follow_selection`.

    Returns:
        By epoch, 0 for `first`: `overall_rates`; `changed`, the share of clips whose proxies are not those of
        the epoch before (0 in the first row); `alone`, the share left without a proxy if it must also
        be better than the student (not known for epoch 0: NaN).
    """
    before, rows = first, [{**overall_rates(first, proxies), "changed": 0.0, "alone": float("nan")}]
    for now, better in zip(followed["selected"], followed["better"], strict=True):
        changed = (now != before).any(1).double().mean().item()
        alone = (~better.any(1)).double().mean().item()
        rows.append({**overall_rates(now, proxies), "changed": changed, "alone": alone})
        before = now
    return pd.DataFrame(rows).rename_axis("epoch")


def describe_answers(
    logits: Mapping[str, Tensor], label: int, classes: Sequence[str], selected: Mapping[str, bool]
) -> pd.DataFrame:
    """Each model's answer on one clip, for `figures.plot_verdicts`.

    Args:
        logits: model -> (C,) of the clip.
        label: the true class.
        selected: whether a model teaches on the clip; one that isn't named does not.

    Returns:
        A row a model: `probability` of the true class, `predicted` class, `right`, `selected`.
    """
    answers = {}
    for name, scores in logits.items():
        predicted = int(scores.argmax())
        answers[name] = {
            "probability": scores.softmax(0)[label].item(),
            "predicted": classes[predicted],
            "right": predicted == label,
            "selected": bool(selected.get(name, False)),
        }
    return pd.DataFrame.from_dict(answers, orient="index")
