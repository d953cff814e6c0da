"""Video encoders. Each is one module, and no other module refers to its layers by name.

A backbone is a module with two functions:

    build(num_classes, num_frames, image_size, size)
        The network with random weights; the backbone defines which names `size` may have. Raises ValueError
        for another size.
    pretrained_start(model, weights)
        Give what `build` built its published weights, in place: from the local file or folder `weights`, or
        from the hub where that is "" (`pretrained.locate_weights` finds them, `read_weights` reads them).

What `build` gives is a `torch.nn.Module`: clips (B, 3, T, H, W) -> features (B, D) and logits (B, C), with

    feature_width   D
    head            the classifier, an `nn.Linear` from the feature to the logits
    hidden_pairs    [(a, b), ...]: names of linear layers, b of which reads a's outputs one by one through an
                    activation, so that their order is free; only notebook 11 asks for it

To add one, write such a module and give its dotted path as the notebooks' parameter `backbone`; it has to lie
in the notebooks' folder or on PYTHONPATH. To give it a short name, add a line to `BACKBONES`.
"""

from types import ModuleType

from torch import nn

from uniego_utils.extensions import find_module

BACKBONES = {"timesformer": "uniego_utils.backbones.timesformer"}  # short name -> module
FUNCTIONS = ("build", "pretrained_start")  # what a backbone's module has


def backbone_module(name: str) -> ModuleType:
    """The module of a backbone: of `BACKBONES`, or at a dotted path, e.g. `mypackage.mybackbone`.

    Raises:
        ValueError: no such module, or one that lacks a function of a backbone.
    """
    return find_module(name, BACKBONES, FUNCTIONS, "backbone")


def create_backbone(
    name: str,
    num_classes: int,
    num_frames: int = 8,
    image_size: int = 224,
    size: str = "base",
) -> nn.Module:
    """Build a video encoder with random weights.

    Args:
        name: a key of `BACKBONES`, or the dotted path of a module.
        num_classes: C, length of the logits.
        num_frames: T, frames per clip.
        image_size: H = W in pixels.
        size: a name that the backbone defines; of `timesformer` `tiny` (the embedded presets) or `base` (the
            paper's B/16).

    Returns:
        A module: clips (B, 3, T, H, W) -> (features (B, D), logits (B, C)), with D as `feature_width` and the
        classifier as `head`.

    Raises:
        ValueError: an unknown name or size, or frames or pixels that the backbone cannot take.
    """
    return backbone_module(name).build(num_classes, num_frames, image_size, size)


def shared_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter of all that the feature is computed with: a backbone's without its `head`."""
    head = set(model.head.parameters())
    return {name: parameter for name, parameter in model.named_parameters() if parameter not in head}
