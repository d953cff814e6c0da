"""Frozen pretrained teachers: real model classes with random weights, on real frames, written out slowly."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

from uniego_utils.backbones.pretrained import state_digest
from uniego_utils.cards import Card, MergeConfig, MethodCard, Preset, TeacherCard, TrainConfig, VideoCard
from uniego_utils.data.manifests import Manifest
from uniego_utils.teachers import depth_anything, foundation
from uniego_utils.teachers.batches import Job

DINO = "vit_large_patch14_dinov2.lvd142m"
SIGLIP = "vit_so400m_patch14_siglip_384.webli"
CLIP = "vit_base_patch16_clip_quickgelu_224.openai"
WIDTHS = {DINO: 1024, SIGLIP: 1152, CLIP: 512}
FPS = 10.0
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def make_job(settings, width: int, weights: Path | str = "", span_s: float | None = None) -> Job:
    """One teacher of a card that has nothing else; the student's statistics are far from the models' own."""
    video = VideoCard(8, 32, 36, mean=(0.1, 0.2, 0.3), std=(9.0, 9.0, 9.0), span_s=span_s)
    preset = Preset("timesformer", "tiny", {}, video, TrainConfig(), MergeConfig(), TrainConfig())
    teacher = TeacherCard("rgb", "ego", type(settings).__module__.rpartition(".")[2], width, "Ego")
    card = Card("any", "Any", "none", "none", {"ego_any": teacher}, MethodCard(), {"tiny": preset})
    return Job("ego_any", teacher, settings, card, preset, torch.device("cpu"), weights=str(weights))


def small(name: str, size: int, **changes) -> foundation.Settings:
    """The real class and width, one block deep."""
    return foundation.Settings(name, image_size=size, num_frames=3, model_args={"depth": 1}, **changes)


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A folder with a file a model, of random weights for pictures of 4 x 4 patches."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    for name in WIDTHS:
        model = timm.create_model(name, depth=1, img_size=64 if name == CLIP else 56)
        model.requires_grad_(False)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)  # nothing hides behind zeros and ones
        stem = name.replace("_quickgelu", "")  # OpenAI's weights have one repository for both activations
        save_file(model.state_dict(), folder / f"{stem}.safetensors")
    return folder


@pytest.fixture
def manifest(tmp_path):
    """Two clips of one folder of pictures, 24 wide and 12 high; picture i is i, its left edge white."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(40):
        picture = np.full((12, 24, 3), number, dtype=np.uint8)
        picture[:, :4] = 255
        Image.fromarray(picture).save(folder / f"frame_{number + 1:010d}.png")
    rows = pd.DataFrame(
        {
            "clip_id": ["a", "b"],
            "label": ["x", "x"],
            "ego_video": "frames",
            "ego_fps": FPS,
            "start_s": [0.0, 1.0],
            "end_s": [3.0, 4.0],
        }
    )
    return Manifest("train", rows, ("x",), tmp_path, "digest")


def random_clips(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


# --- frames


def test_frames_are_those_of_the_spans_segments(manifest):
    clips = foundation.clips(make_job(small(DINO, 14), 1024), manifest)
    # three segments of a second each, centres at 0.5, 1.5 and 2.5 s after the start, ten pictures a second
    assert clips[0][:, 0, 7, 7].tolist() == [5, 15, 25]
    assert clips[1][:, 0, 7, 7].tolist() == [15, 25, 35]
    assert clips[0].shape == (3, 3, 14, 14) and clips[0].dtype == torch.uint8
    middle = foundation.clips(make_job(small(DINO, 14), 1024, span_s=0.6), manifest)  # 1.2 .. 1.8 s
    assert middle[0][:, 0, 7, 7].tolist() == [13, 15, 17]


def test_crop_takes_the_centre_and_stretch_the_whole(manifest):
    crop = foundation.clips(make_job(small(DINO, 12), 1024), manifest)[0]
    assert torch.equal(
        crop, torch.tensor([5, 15, 25], dtype=torch.uint8)[:, None, None, None].expand_as(crop)
    )
    stretch = foundation.clips(make_job(small(DINO, 12, fit="stretch"), 1024), manifest)[0]
    assert (stretch[..., 0] == 255).all() and stretch[0, 0, 0, -1] == 5
    with pytest.raises(ValueError, match="ego_any.*'squeeze'.*crop, stretch"):
        foundation.clips(make_job(small(DINO, 12, fit="squeeze"), 1024), manifest)


def test_workers_decode_and_subclasses_choose_what_is_resized(manifest):
    class Edges(foundation.FrameClips):
        def frames(self, row):
            return super().frames(row)[..., :4]

    clips = Edges(make_job(small(DINO, 12), 1024), manifest)
    batches = list(DataLoader(clips, batch_size=2, num_workers=1))
    assert len(batches) == 1 and batches[0].shape == (2, 3, 3, 12, 12) and (batches[0] == 255).all()


# --- timm's models


@pytest.mark.parametrize("name", WIDTHS)
def test_features_are_the_models_own_of_normalised_frames(name, weights):
    size = 64 if name == CLIP else 56
    job = make_job(small(name, size, frames_per_pass=4), WIDTHS[name], weights)
    model = foundation.build(job).eval()
    clips = random_clips(2, 3, 3, size, size)
    features = foundation.encode(model, clips, job)
    assert features.shape == (2, WIDTHS[name]) and features.dtype == torch.float32

    mean, std = {
        DINO: IMAGENET,
        SIGLIP: ((0.5,) * 3, (0.5,) * 3),
        CLIP: ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    }[name]
    expected = []
    for clip in clips:
        frames = []
        for frame in clip:
            pixels = [(frame[c].double() / 255 - mean[c]) / std[c] for c in range(3)]
            with torch.no_grad():
                tokens = model.forward_features(torch.stack(pixels).float()[None])
                if name == SIGLIP:
                    frames.append(model.attn_pool(tokens)[0])
                elif name == DINO:
                    frames.append(tokens[0, 0])
                else:
                    frames.append(model.head.weight @ tokens[0, 0] + model.head.bias)
        expected.append(sum(frames) / 3)
    torch.testing.assert_close(features, torch.stack(expected), rtol=1e-4, atol=1e-4)
    assert str(mean) in foundation.notes(job)["preprocessing"]  # the model's, not the student's


def test_features_do_not_depend_on_the_batch_or_the_pass(weights):
    job = make_job(small(CLIP, 64), 512, weights)
    model = foundation.build(job).eval()
    clips = random_clips(3, 3, 3, 64, 64)
    whole = foundation.encode(model, clips, job)
    for passes in (1, 2, 100):
        settings = dataclasses.replace(job.settings, frames_per_pass=passes)
        parts = [
            foundation.encode(model, clip[None], dataclasses.replace(job, settings=settings))
            for clip in clips
        ]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(("name", "size"), [(CLIP, 64), (CLIP, 96), (DINO, 28)])
def test_weights_are_loaded_as_timm_loads_them(name, size, suffix, weights, tmp_path):
    source = next(weights.glob(f"{name.replace('_quickgelu', '')}.*"))
    path = tmp_path / f"mine{suffix}"
    state = load_file(source)
    save_file(state, path) if suffix == ".safetensors" else torch.save({"model": state, "epoch": 1}, path)
    model = foundation.build(make_job(small(name, size), WIDTHS[name], path))
    reference = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay={"file": str(path)}, depth=1, img_size=size
    )
    assert state_digest(model) == state_digest(reference)


def test_clips_projection_can_be_taken_away(weights):
    settings = dataclasses.replace(small(CLIP, 64), model_args={"depth": 1, "num_classes": 0})
    assert foundation.build(make_job(settings, 768, weights)).num_classes == 0


def test_models_and_sizes_that_do_not_fit_are_refused(weights):
    with pytest.raises(ValueError, match="'vit_large_patch14_dino'.*near names: .*dinov2"):
        foundation.build(make_job(small("vit_large_patch14_dino", 56), 1024, weights))
    with pytest.raises(ValueError, match="'resnet50.a1_in1k'"):
        foundation.build(make_job(small("resnet50.a1_in1k", 56), 2048, weights))
    with pytest.raises(ValueError, match="image_size 60 .*patches of 14"):
        foundation.build(make_job(small(DINO, 60), 1024, weights))
    with pytest.raises(ValueError, match="ego_any: .* is 1024 wide, but the card says 768"):
        foundation.build(make_job(small(DINO, 56), 768, weights))


def test_weights_of_another_model_are_refused_by_name(weights):
    path = weights / f"{DINO}.safetensors"
    with pytest.raises(ValueError, match=rf"{path.name} does not fit {SIGLIP}: .*missing \(first attn_pool"):
        foundation.build(make_job(small(SIGLIP, 56), 1152, path))
    with pytest.raises(ValueError, match=r"its patches are of \(16, 16\) pixels, not \(14, 14\)"):
        foundation.build(
            make_job(small(DINO, 56), 1024, weights / f"{CLIP.replace('_quickgelu', '')}.safetensors")
        )
    deeper = dataclasses.replace(small(DINO, 56), model_args={"depth": 2})
    with pytest.raises(ValueError, match=r"missing \(first blocks\.1\."):
        foundation.build(make_job(deeper, 1024, weights))


def test_without_weights_and_network_one_error_names_the_cures(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"timm/{DINO}.*weights=.*entry {DINO}.*network"):
        foundation.build(make_job(small(DINO, 56), 1024))
    with pytest.raises(FileNotFoundError, match="Depth-Anything-V2-Large-hf.*weights=.*network"):
        depth_anything.build(make_job(depth_anything.Settings(), 1024))


# --- Depth Anything


@pytest.fixture(scope="session")
def depth_folder(tmp_path_factory):
    """Depth Anything of two blocks with random weights, as `save_pretrained` writes it."""
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

    backbone = Dinov2Config(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        image_size=28,
        patch_size=14,
        out_indices=[1, 2],
        reshape_hidden_states=False,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=48,
        reassemble_factors=[4, 2],
        neck_hidden_sizes=[8, 8],
        fusion_hidden_size=8,
    )
    folder = tmp_path_factory.mktemp("depth") / "Depth-Anything-V2-Large-hf"
    torch.manual_seed(0)
    model = DepthAnythingForDepthEstimation(config).requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.02)
    model.save_pretrained(folder)
    statistics = {"image_mean": list(IMAGENET[0]), "image_std": list(IMAGENET[1])}
    (folder / "preprocessor_config.json").write_text(json.dumps(statistics))
    return folder


def depth_settings(**changes) -> depth_anything.Settings:
    return dataclasses.replace(depth_anything.Settings(num_frames=3, image_size=42), **changes)


@pytest.mark.parametrize("tokens", ["patches", "cls"])
def test_depth_features_are_the_backbones_last_tokens(depth_folder, tokens):
    from transformers import Dinov2Model

    job = make_job(depth_settings(pooling_tokens=tokens, frames_per_pass=4), 48, depth_folder.parent)
    model = depth_anything.build(job).eval()
    clips = random_clips(2, 3, 3, 42, 42)
    features = depth_anything.encode(model, clips, job)

    reference = Dinov2Model(model.backbone.config).eval()
    reference.load_state_dict(model.backbone.state_dict())
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in IMAGENET)
    with torch.no_grad():
        hidden = reference((clips.flatten(0, 1) / 255 - mean) / std).last_hidden_state
    frames = hidden[:, 0] if tokens == "cls" else hidden[:, 1:].mean(1)
    assert hidden.shape == (6, 1 + 9, 48)
    torch.testing.assert_close(features, frames.view(2, 3, 48).mean(1), rtol=1e-4, atol=1e-5)
    assert all(isinstance(text, str) for text in depth_anything.notes(job).values())


def test_depth_settings_that_do_not_fit_are_refused(depth_folder):
    for changes, width, message in (
        ({"image_size": 40}, 48, "ego_any: image_size 40 .*patches of 14"),
        ({"pooling_tokens": "registers"}, 48, "ego_any.*'registers'.*patches or cls"),
        ({}, 1024, "ego_any.*is 48 wide, but the card says 1024"),
    ):
        with pytest.raises(ValueError, match=message):
            depth_anything.build(make_job(depth_settings(**changes), width, depth_folder))
    with pytest.raises(
        FileNotFoundError, match="model.safetensors should be a folder .*Large-hf, but lacks config.json"
    ):
        depth_anything.build(make_job(depth_settings(), 48, depth_folder / "model.safetensors"))


def spoil_config(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "dinov2"}))


def spoil_statistics(folder: Path) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5, 0.5, 0.5]}))


def lose_entry(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    del state["backbone.layernorm.bias"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def bend_entry(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    save_file(
        state | {"backbone.layernorm.bias": torch.ones(3)}, folder / "model.safetensors", {"format": "pt"}
    )


def cut_short(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def pickle_alone(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_config, "config.json is of a 'dinov2' model"),
        (spoil_statistics, r"image_mean is \[0.5, 0.5, 0.5\], not ImageNet's"),
        (lose_entry, r"1 missing keys \(first backbone.layernorm.bias"),
        (bend_entry, "1 mismatched keys .*backbone.layernorm.bias"),
        (cut_short, "model.safetensors is damaged .*; download it again"),
        (pickle_alone, "should be a folder .*model.safetensors"),
    ],
)
def test_spoilt_depth_folders_are_refused_by_name(depth_folder, tmp_path, spoil, message):
    folder = tmp_path / depth_folder.name
    shutil.copytree(depth_folder, folder)
    spoil(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=f"{folder.name}.*{message}"):
        depth_anything.build(make_job(depth_settings(), 48, tmp_path))
