"""Answers to exercises: right, wrong, and not yet written."""

import pytest

from uniego_utils.exercises import check_answer


@pytest.mark.parametrize(
    ("answer", "expected", "printed"),
    [
        (None, 3, "Write your answer"),
        (3, 3, "Right."),
        (0.754, 0.75, "Right."),
        (0.77, 0.75, "Not yet. Count again."),
        ("exo_skl", "exo_skl", "Right."),
        ("exo_rgb", "exo_skl", "Not yet. Count again."),
        ("3", 3, "Not yet. Count again."),
        (float("nan"), 3, "Not yet. Count again."),
    ],
)
def test_an_answer_is_judged(answer, expected, printed, capsys):
    check_answer(answer, expected, "Count again.")
    assert capsys.readouterr().out.startswith(printed)
