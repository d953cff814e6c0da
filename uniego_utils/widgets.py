"""Controls where a person is there, a plain figure where nobody is."""

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
    from ipywidgets import Dropdown, IntSlider, interact  # imported late: headless runs need no ipywidgets

    controls = {}
    for name, options in choices.items():
        if isinstance(options, range):
            edges = dict(min=options[0], max=options[-1], step=options.step)
            controls[name] = IntSlider(chosen[name], **edges, continuous_update=False)
        else:
            controls[name] = Dropdown(options=list(options), value=chosen[name])
    interact(draw, **controls)


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
    import matplotlib.pyplot as plt
    from IPython.display import display
    from ipywidgets import Button, Dropdown, FloatSlider, HBox, Layout, Output, VBox

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
    output = Output()
    following = True  # sliders that a preset moves are drawn once, when all are in place

    def show(measure_it: bool = False) -> None:
        weights = {key: slider.value for key, slider in sliders.items()}
        total = sum(weights.values())
        output.clear_output(wait=True)
        with output:  # a figure or an error: both are seen below the controls
            if not total:
                print("All weights are zero: move one up.")
                return
            shares = {key: weight / total for key, weight in weights.items()}
            draw(shares, measure(shares) if measure_it else None)
            plt.show()

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
        try:
            show(measure_it=True)
        finally:
            button.disabled, button.description = False, "Run this mixture"

    preset.observe(begin, "value")
    for slider in sliders.values():
        slider.observe(follow, "value")
    button.on_click(run)
    display(HBox([VBox([preset, *sliders.values(), button]), output]))
    show()
