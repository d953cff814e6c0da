"""Controls where a person is there, a plain figure where nobody is."""

from collections.abc import Callable, Sequence


def explore(draw: Callable[..., None], interactive: bool, **choices: Sequence) -> None:
    """Draw the first choice of each control; add live controls when a person is there.

    Run headless, a widget stores no picture, so `interactive=False` draws without any.
    """
    if not interactive:
        draw(**{name: options[0] for name, options in choices.items()})
        return
    from ipywidgets import interact  # imported late: headless runs need no ipywidgets

    interact(draw, **{name: list(options) for name, options in choices.items()})
