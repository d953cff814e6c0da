"""Controls in an interactive notebook, a plain figure in a headless run.

What is drawn reaches the page as one HTML widget. The Output widget of ipywidgets' `interact` is written by
the page and by the kernel: of a figure and a text that follow each other closely one may get lost.
"""

import html
import traceback
from collections.abc import Callable, Mapping, Sequence

import matplotlib.pyplot as plt

Shares = dict[str, float]  # name -> share of a mixture; they sum to one


def explore(
    draw: Callable[..., None],
    interactive: bool,
    first: Mapping[str, object] | None = None,
    **choices: Sequence,
) -> None:
    """Draw the first choice of each control; with `interactive`, add live controls.

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
            listed = dict(options=list(options), value=chosen[name], layout={"width": "max-content"})
            controls[name] = Dropdown(**listed, description=name)
    page = HTML()

    def show(change: object = None) -> None:
        page.value = as_html(lambda: draw(**{name: control.value for name, control in controls.items()}))

    for control in controls.values():
        control.observe(show, "value")
    show()
    display(VBox([*controls.values(), page]))


def as_html(draw: Callable[[], None]) -> str:
    """HTML of what a function prints and displays, its open figures last; of its traceback, if it fails."""
    from IPython.utils.capture import capture_output

    with capture_output() as captured:
        try:
            draw()
            plt.show()
        except Exception:  # shown as a cell would show it; the controls keep working
            traceback.print_exc()
            plt.close("all")
    parts = [f"<pre>{html.escape(text)}</pre>" for text in (captured.stdout, captured.stderr) if text]
    for data in (output.data for output in captured.outputs):
        if kind := next((kind for kind in ("image/png", "image/jpeg") if kind in data), None):
            parts.append(f'<img style="max-width: 100%" src="data:{kind};base64,{data[kind]}">')
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
    """Draw a mixture; with `interactive`, add a slider a part, presets, and a button to measure it.

    Sliders are weights: whatever they are set to is divided by its sum. Nothing is measured until the button
    is pressed; a moved slider takes the measurement away, because it is no longer this mixture's.

    Args:
        draw: called with the mixture's shares and with what was measured of it, None until then.
        measure: the slow and true answer for a mixture.
        presets: name -> shares; the first is drawn at the beginning, and alone without `interactive`.
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
    options = dict(max=1.0, step=0.001, readout_format=".2f", continuous_update=False)
    options |= dict(style={"description_width": "9em"}, layout=Layout(width="26em"))
    sliders = {
        key: FloatSlider(presets[preset.value][key], description=label, **options)
        for key, label in labels.items()
    }
    button = Button(description="Run this mixture", tooltip="mix the weights and run the validation clips")
    page = HTML()
    moved_by_hand = True  # sliders that a preset moves are drawn once, when all are in place

    def show(measure_it: bool = False) -> None:
        weights = {key: slider.value for key, slider in sliders.items()}
        total = sum(weights.values())
        if not total:
            page.value = "All weights are zero: move one up."
            return
        shares = {key: weight / total for key, weight in weights.items()}
        page.value = as_html(lambda: draw(shares, measure(shares) if measure_it else None))

    def draw_moved(change: object) -> None:
        if moved_by_hand:
            show()

    def load_preset(change: dict) -> None:
        nonlocal moved_by_hand
        moved_by_hand = False
        for key, slider in sliders.items():
            slider.value = presets[change["new"]][key]
        moved_by_hand = True
        show()

    def run(button: Button) -> None:
        button.disabled, button.description = True, "Running …"
        show(measure_it=True)
        button.disabled, button.description = False, "Run this mixture"

    preset.observe(load_preset, "value")
    for slider in sliders.values():
        slider.observe(draw_moved, "value")
    button.on_click(run)
    show()
    beside = Layout(flex="0 0 auto", width="28em")  # as wide as its sliders, however wide the figure is
    display(HBox([VBox([preset, *sliders.values(), button], layout=beside), page]))
