"""Answers to the notebooks' exercises, checked."""

import math


def check_answer(answer: object, expected: object, hint: str, tolerance: float = 0.01) -> None:
    """Print whether an answer is right; where it is not, the hint; where there is none, what to do.

    Args:
        answer: None until the reader has written one.
        expected: text, a truth value, or a number.
        tolerance: how far a number may be off.
    """
    if answer is None:
        print("Write your answer instead of None, and run this cell again.")
        return
    numbers = all(isinstance(each, int | float) for each in (answer, expected))
    right = math.isclose(answer, expected, abs_tol=tolerance) if numbers else answer == expected
    print("Right." if right else f"Not yet. {hint}")
