"""Controls where a person is there, a plain figure where nobody is.

What is drawn reaches the page as one HTML widget. The Output widget of ipywidgets' `interact` is written by
the page and by the kernel: of a figure and a text that follow each other closely one may get lost.
"""

import html
import traceback
from collections.abc import Callable, Mapping, Sequence

Shares = dict[str, float]  # name -> share of a mixture; they sum to one


def explore(
    draw: Callable[..., None],
    interactive: bool,
    first: Mapping[str, object] | None = None,
    **choices: Sequence,
) -> None:
    """Draw the first choice of each control; add live controls when a person is there.

    Run headless, a widget stores no picture, so `interactive=False` draws without any.

    Args:
        draw: called with one choice of each control.
        first: control -> the choice to begin with, where it isn't the first of its choices.
        choices: control -> what may be chosen; a `range` becomes a slider, anything else a list.
    """
    chosen = {name: options[0] for name, options in choices.items()} | dict(first or {})
    if wrong := [name for name, value in chosen.items() if value not in choices.get(name, ())]:
        raise ValueError(f"cannot begin with {', '.join(f'{name}={chosen[name]!r}' for name in wrong)}")
    if not interactive:
        draw(**chosen)
        return
    from IPython.display import display  # imported late: headless runs need no ipywidgets
    from ipywidgets import HTML, Dropdown, IntSlider, VBox

    controls = {}
    for name, options in choices.items():
        if isinstance(options, range):
            edges = dict(min=options[0], max=options[-1], step=options.step)
            controls[name] = IntSlider(chosen[name], **edges, description=name, continuous_update=False)
        else:
            width = {"width": "max-content"}
            controls[name] = Dropdown(
                options=list(options), value=chosen[name], description=name, layout=width
            )
    page = HTML()

    def show(change: object = None) -> None:
        page.value = drawn(lambda: draw(**{name: control.value for name, control in controls.items()}))

    for control in controls.values():
        control.observe(show, "value")
    show()
    display(VBox([*controls.values(), page]))


def drawn(draw: Callable[[], None]) -> str:
    """HTML of what a function prints and displays, its open figures last; of its traceback, if it fails."""
    import matplotlib.pyplot as plt
    from IPython.utils.capture import capture_output

    with capture_output() as seen:
        try:
            draw()
            plt.show()
        except Exception:  # shown as a cell would show it; the controls live on
            traceback.print_exc()
            plt.close("all")
    parts = [f"<pre>{html.escape(text)}</pre>" for text in (seen.stdout, seen.stderr) if text]
    for output in seen.outputs:
        data = output.data
        pictures = [kind for kind in ("image/png", "image/jpeg") if kind in data]
        if pictures:
            parts.append(f'<img style="max-width: 100%" src="data:{pictures[0]};base64,{data[pictures[0]]}">')
        else:
            parts.append(data.get("text/html") or f"<pre>{html.escape(data.get('text/plain', ''))}</pre>")
    return "".join(parts)


def explore_mixture(
    draw: Callable[[Shares, dict | None], None],
    measure: Callable[[Shares], dict],
    interactive: bool,
    presets: Mapping[str, Shares],
    labels: Mapping[str, str],
) -> None:
    """Draw a mixture; where a person is there, with a slider a part, presets, and a button to measure it.

    Sliders are weights: whatever they are set to is divided by its sum. Nothing is measured until the button
    is pressed; a moved slider takes the measurement away, because it is no longer this mixture's.

    Args:
        draw: called with the mixture's shares and with what was measured of it, None until then.
        measure: the slow and true answer for a mixture.
        presets: name -> shares; the first is drawn at the beginning, and alone where nobody is there.
        labels: part -> what its slider is called.

    Raises:
        ValueError: a preset whose shares are not those of the labelled parts, or do not sum to one.
    """
    for name, shares in presets.items():
        if shares.keys() != labels.keys() or min(shares.values()) < 0 or abs(sum(shares.values()) - 1) > 1e-3:
            raise ValueError(f"preset {name} is no mixture of {', '.join(labels)}: {shares}")
    if not interactive:
        draw(dict(next(iter(presets.values()))), None)
        return
    from IPython.display import display
    from ipywidgets import HTML, Button, Dropdown, FloatSlider, HBox, Layout, VBox

    preset = Dropdown(options=list(presets), description="begin with")
    sliders = {
        key: FloatSlider(
            presets[preset.value][key],
            max=1.0,
            step=0.001,
            description=label,
            readout_format=".2f",
            continuous_update=False,
            style={"description_width": "9em"},
            layout=Layout(width="26em"),
        )
        for key, label in labels.items()
    }
    button = Button(description="Run this mixture", tooltip="mix the weights and run the validation clips")
    page = HTML()
    following = True  # sliders that a preset moves are drawn once, when all are in place

    def show(measure_it: bool = False) -> None:
        weights = {key: slider.value for key, slider in sliders.items()}
        total = sum(weights.values())
        if not total:
            page.value = "All weights are zero: move one up."
            return
        shares = {key: weight / total for key, weight in weights.items()}
        page.value = drawn(lambda: draw(shares, measure(shares) if measure_it else None))

    def follow(change: object) -> None:
        if following:
            show()

    def begin(change: dict) -> None:
        nonlocal following
        following = False
        for key, slider in sliders.items():
            slider.value = presets[change["new"]][key]
        following = True
        show()

    def run(button: Button) -> None:
        button.disabled, button.description = True, "Running …"
        show(measure_it=True)
        button.disabled, button.description = False, "Run this mixture"

    preset.observe(begin, "value")
    for slider in sliders.values():
        slider.observe(follow, "value")
    button.on_click(run)
    show()
    beside = Layout(flex="0 0 auto", width="28em")  # as wide as its sliders, however wide the figure is
    display(HBox([VBox([preset, *sliders.values(), button], layout=beside), page]))
