"""A backbone from outside the package: one module, named by its path, through Level I."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from test_students import TEACHERS, open_small_experiment

from uniego_utils.analyses.gradients import shared_layers
from uniego_utils.analyses.landscape import permuted_twin
from uniego_utils.backbones import backbone_module, create_backbone
from uniego_utils.proxies import train_proxies
from uniego_utils.runs import is_finished, read_json, read_tensors
from uniego_utils.students import common_start

MODULE = '''
"""A convolution and its mean over time and space."""

from torch import nn

from uniego_utils.backbones.pretrained import load_exactly, locate_weights, read_weights


class Convolution(nn.Module):
    feature_width = 12

    def __init__(self, num_classes):
        super().__init__()
        self.filters = nn.Conv3d(3, 16, (2, 8, 8), (2, 8, 8))
        self.mix = nn.Linear(16, self.feature_width)
        self.head = nn.Linear(self.feature_width, num_classes)

    def forward(self, clips):
        features = self.mix(self.filters(clips).mean((2, 3, 4)).relu())
        return features, self.head(features)


def build(num_classes, num_frames, image_size, size):
    if size != "tiny":
        raise ValueError(f"unknown size {size!r}; choose tiny")
    return Convolution(num_classes)


def pretrained_start(model, weights):
    place = locate_weights("somebody/convolution", weights)
    load_exactly(model, read_weights(place) | {f"head.{k}": v for k, v in model.head.state_dict().items()},
                 place, "the convolution")
'''


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """The path of a module outside the package."""
    folder = tmp_path_factory.mktemp("modules") / "somebodys"
    folder.mkdir()
    (folder / "convolution.py").write_text(MODULE)
    (folder / "lacking.py").write_text("def build(num_classes, num_frames, image_size, size): ...\n")
    (folder / "broken.py").write_text("import no_such_package_anywhere\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder.parent)
        yield "somebodys.convolution"


@pytest.fixture(scope="module")
def experiment(outside, tmp_path_factory):
    outputs = tmp_path_factory.mktemp("outputs")
    experiment = open_small_experiment(outputs / "00_data", outputs)
    return replace(experiment, preset=replace(experiment.preset, backbone=outside))


def test_its_students_are_trained_like_any_others(experiment, outside):
    folder = train_proxies(experiment, "each")
    assert f"-backbone={outside}" in folder.name
    assert all(is_finished(folder / name) for name in ("start", *TEACHERS, "ego", "naive"))
    config = read_json(folder / TEACHERS[0] / "config.json")["config"]
    assert config["backbone"] == [outside, "tiny"]
    weights = [read_tensors(folder / name / "model.safetensors")["mix.weight"] for name in TEACHERS]
    assert weights[0].shape == (12, 16) and not torch.equal(*weights)


def test_its_published_weights_are_the_start_where_the_preset_trains_none(experiment, outside, tmp_path):
    published = create_backbone(outside, 15, size="tiny").state_dict()
    kept = {name: value for name, value in published.items() if not name.startswith("head.")}
    save_file(kept, tmp_path / "convolution.safetensors")
    experiment = replace(experiment, preset=replace(experiment.preset, start=None), weights=str(tmp_path))
    start = common_start(experiment)
    assert all(torch.equal(start[name], value) for name, value in kept.items())


def test_analyses_find_its_classifier_and_say_what_it_does_not_declare(outside):
    model = create_backbone(outside, 15, size="tiny")
    assert shared_layers(model).keys() == {"filters.weight", "filters.bias", "mix.weight", "mix.bias"}
    pairs = [("filters", "mix")]  # what it could declare
    twin = permuted_twin(model.state_dict(), pairs, torch.Generator().manual_seed(1))
    clips = torch.randn(2, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    before = model(clips)[0]
    assert not torch.equal(twin["mix.weight"], model.mix.weight)
    model.load_state_dict(twin)
    torch.testing.assert_close(model(clips)[0], before, rtol=1e-4, atol=1e-5)


def test_a_module_that_is_no_backbone_is_refused(outside):
    for name in ("somebodys.convolutoin", "nobodys.convolution", "convolution"):
        with pytest.raises(ValueError, match=f"unknown backbone '{name}'; choose one of timesformer, or"):
            create_backbone(name, 15)
    with pytest.raises(ValueError, match=r"is no backbone: .*lacking\.py lacks pretrained_start"):
        backbone_module("somebodys.lacking")
    with pytest.raises(ModuleNotFoundError, match="no_such_package_anywhere"):  # its own fault, as it is
        backbone_module("somebodys.broken")
    with pytest.raises(ValueError, match="'huge'; choose tiny"):
        create_backbone(outside, 15, size="huge")
