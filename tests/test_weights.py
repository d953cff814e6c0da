"""Pretrained weights: found by the model's name, read without running code, refused where they do not fit."""

import hashlib
import os
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import nn

from uniego_utils.backbones.pretrained import (
    find_weights,
    load_exactly,
    locate_weights,
    read_weights,
    state_digest,
)

REPOSITORY = "somebody/tiny.model-v2"
STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.tensor([0.5, -1.0])}


class Intruder:
    """Unpickling it makes a folder: what a hostile checkpoint could do."""

    def __init__(self, place: Path):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """An empty cache, as HF_HOME would choose it, and no network, as by HF_HUB_OFFLINE=1."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put_in_cache(cache: Path, repository: str, file: str) -> None:
    """A file where a download by huggingface_hub would have left it."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True, exist_ok=True)
    write(folder / "snapshots" / ("0" * 40) / file)


def write(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(STATE, path) if path.suffix == ".safetensors" else torch.save(STATE, path)
    return path


def same(given, expected=STATE) -> bool:
    return given.keys() == expected.keys() and all(torch.equal(given[name], expected[name]) for name in given)


# --- where they lie


def test_nothing_given_means_the_hub():
    assert find_weights(REPOSITORY, "") is None


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pyth", ".pt", ".bin"])
def test_a_file_is_found_under_the_models_name(tmp_path, suffix):
    write(tmp_path / "tiny.model-v1.safetensors")
    path = write(tmp_path / f"tiny.model-v2{suffix}")
    assert find_weights(REPOSITORY, str(tmp_path)) == path
    assert find_weights(REPOSITORY, str(path)) == path
    assert same(read_weights(path))


def test_a_folder_is_found_under_the_models_name(tmp_path):
    path = write(tmp_path / "tiny.model-v2" / "pytorch_model.bin")
    write(tmp_path / "tiny.model-v2.safetensors")
    assert find_weights(REPOSITORY, str(tmp_path)) == path.parent
    assert same(read_weights(path.parent))


def test_a_checkpoints_folder_is_its_own_entry(tmp_path):
    write(tmp_path / "any name" / "model.safetensors")
    assert find_weights(REPOSITORY, str(tmp_path / "any name")) == tmp_path / "any name"


def test_what_is_absent_is_said_with_what_is_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.*does not exist.*tiny.model-v2"):
        find_weights(REPOSITORY, str(tmp_path / "nowhere"))
    write(tmp_path / "other.safetensors")
    with pytest.raises(FileNotFoundError, match=r"holds other.safetensors; put there.*tiny.model-v2.*\.pyth"):
        find_weights(REPOSITORY, str(tmp_path))
    with pytest.raises(FileNotFoundError, match="other.safetensors, but none of model.safetensors"):
        read_weights(tmp_path)


# --- the hub, without network


def test_without_network_one_error_names_both_cures(offline):
    wanted = {"model.safetensors or pytorch_model.bin": {}, "config.json": {"choices": [["config.json"]]}}
    for files, given in wanted.items():
        message = f"somebody/tiny.model-v2: .* gave {files}; set weights=.*an entry tiny.model-v2.*network"
        with pytest.raises(FileNotFoundError, match=message) as caught:
            locate_weights(REPOSITORY, "", **given)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_what_was_downloaded_before_serves_without_network(offline, file):
    put_in_cache(offline, REPOSITORY, file)
    assert same(read_weights(locate_weights(REPOSITORY, "")))
    assert locate_weights(REPOSITORY, "", choices=[[file]]).is_dir()
    with pytest.raises(FileNotFoundError, match=f"{file}, config.json"):
        locate_weights(REPOSITORY, "", choices=[[file, "config.json"]])


def test_safetensors_go_before_a_pickle(offline):
    for file in ("pytorch_model.bin", "model.safetensors"):
        put_in_cache(offline, REPOSITORY, file)
    (pickle,) = offline.rglob("pytorch_model.bin")
    pickle.write_bytes(b"damaged")
    assert same(read_weights(locate_weights(REPOSITORY, "")))


def test_local_weights_go_before_the_hubs(offline, tmp_path):
    put_in_cache(offline, REPOSITORY, "model.safetensors")
    path = write(tmp_path / "mine.pth")
    assert locate_weights(REPOSITORY, str(path)) == path


# --- reading


@pytest.mark.parametrize("container", ["model", "state_dict", "model_state"])
def test_a_training_checkpoint_gives_its_models_weights(tmp_path, container):
    torch.save({"epoch": 3, container: STATE, "cfg": "a text"}, tmp_path / "a.pyth")
    assert same(read_weights(tmp_path / "a.pyth"))


@pytest.mark.parametrize("zipped", [True, False])
def test_other_objects_are_refused_and_never_loaded(tmp_path, zipped):
    path = tmp_path / "a.pth"
    torch.save(
        {"model": STATE, "x": Intruder(tmp_path / "intruded")}, path, _use_new_zipfile_serialization=zipped
    )
    with pytest.raises(ValueError, match=r"a\.pth.*mkdir.*safetensors"):
        read_weights(path)
    assert not (tmp_path / "intruded").exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b"hello world", lambda b: b[: len(b) // 2]])
def test_damaged_files_are_refused_by_name(tmp_path, suffix, damage):
    path = write(tmp_path / f"a{suffix}")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"a\{suffix} is damaged"):
        read_weights(path)


def test_a_pickle_with_any_byte_changed_is_read_or_refused_by_name(tmp_path):
    path = tmp_path / "a.pth"
    torch.save(STATE, path, _use_new_zipfile_serialization=False)
    sound, refused = path.read_bytes(), 0
    for place in range(0, len(sound), 7):
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 0x55]) + sound[place + 1 :])
        try:
            read_weights(path)
        except ValueError as error:
            assert "a.pth" in str(error)
            refused += 1
    assert refused > 10


@pytest.mark.parametrize("content", [torch.ones(3), {"a": 1}, ["a"]])
def test_what_is_no_state_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="no mapping of names to tensors"):
        read_weights(tmp_path / "a.pth")


# --- loading


def test_a_fitting_state_is_loaded():
    model = nn.ModuleDict({"a": nn.Linear(3, 2)})
    load_exactly(model, STATE, "file", "Tiny")
    assert same(model.state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a.bias": None}, r"1 missing \(first a.bias\)"),
        ({"b.bias": torch.ones(1)}, r"1 unexpected \(first b.bias\)"),
        ({"a.bias": torch.tensor([0.0, torch.nan])}, r"1 with values that are not finite \(first a.bias\)"),
        ({"a.bias": torch.ones(3)}, r"1 of another shape \(first a.bias, \(3,\) instead of \(2,\)"),
    ],
)
def test_another_state_is_refused_with_the_first_entries(change, message):
    state = {name: value for name, value in (STATE | change).items() if value is not None}
    model = nn.ModuleDict({"a": nn.Linear(3, 2)})
    before = state_digest(model)
    with pytest.raises(ValueError, match=f"some.pth does not fit Tiny: {message}"):
        load_exactly(model, state, "some.pth", "Tiny")
    assert state_digest(model) == before


# --- digest


def test_digest_is_sha256_of_names_types_shapes_and_bytes():
    total = hashlib.sha256()
    for name in ("a.bias", "a.weight"):
        shape = tuple(STATE[name].shape)
        total.update(f"{name} torch.float32 {shape}\n".encode() + STATE[name].numpy().tobytes())
    model = nn.ModuleDict({"a": nn.Linear(3, 2)})
    model.load_state_dict(STATE)
    assert state_digest(STATE) == state_digest(dict(reversed(STATE.items()))) == total.hexdigest()
    assert state_digest(model) == total.hexdigest()


def test_digest_notices_every_change():
    weight, bias = STATE["a.weight"], STATE["a.bias"]
    others = [
        {"a.weight": weight, "b.bias": bias},
        {"a.weight": weight.view(3, 2), "a.bias": bias},
        {"a.weight": weight.nextafter(torch.tensor(9.0)), "a.bias": bias},
        {"a.weight": weight.half(), "a.bias": bias},
        {"a.weight": weight, "a.bias": bias, "c": torch.tensor(0)},
    ]
    assert len({state_digest(state) for state in (STATE, *others)}) == len(others) + 1


def test_digest_does_not_depend_on_memory_layout():
    turned = STATE["a.weight"].t().contiguous().t()
    assert state_digest({"a.weight": turned}) == state_digest({"a.weight": STATE["a.weight"]})
    assert state_digest({"a": torch.ones(2, dtype=torch.bfloat16)})
