"""A folder of local weights: the real model classes at their real widths, shallow and with random numbers."""

import json
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

IMAGES = {  # timm's name -> side in pixels, and the name of its repository where that differs
    "vit_large_patch14_dinov2.lvd142m": (28, None),
    "vit_so400m_patch14_siglip_384.webli": (28, None),
    "vit_base_patch16_clip_quickgelu_224.openai": (32, "vit_base_patch16_clip_224.openai"),
}


def write_weights(folder: Path) -> Path:
    """Fill `folder` with what the teachers of `shared/published` ask for at the preset `smoke`."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    for name, (size, repository) in IMAGES.items():
        model = timm.create_model(name, depth=1, img_size=size)
        save_file(shaken(model).state_dict(), folder / f"{repository or name}.safetensors")
    _write_depth(folder / "Depth-Anything-V2-Large-hf")
    _write_timesformer(folder / "timesformer-base-finetuned-k400")
    return write_pose(folder)


def shaken(model: nn.Module) -> nn.Module:
    """The model with noise on every weight: nothing hides behind zeros and ones."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


def _write_depth(folder: Path) -> None:
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

    backbone = Dinov2Config(
        hidden_size=1024,
        num_hidden_layers=1,
        num_attention_heads=16,
        mlp_ratio=1,
        image_size=28,
        patch_size=14,
        out_indices=[1],
        reshape_hidden_states=False,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=1024,
        reassemble_factors=[4],
        neck_hidden_sizes=[8],
        fusion_hidden_size=8,
    )
    shaken(DepthAnythingForDepthEstimation(config)).save_pretrained(folder)
    statistics = {"image_mean": list(IMAGENET_DEFAULT_MEAN), "image_std": list(IMAGENET_DEFAULT_STD)}
    (folder / "preprocessor_config.json").write_text(json.dumps(statistics))


def _write_timesformer(folder: Path) -> None:
    from transformers import TimesformerConfig, TimesformerForVideoClassification

    config = TimesformerConfig(image_size=32, num_frames=8, num_hidden_layers=1, num_labels=400)
    shaken(TimesformerForVideoClassification(config)).save_pretrained(folder)


def write_pose(folder: Path) -> Path:
    """Add a detector and a pose estimator, tiny: with random weights they find people anywhere or nowhere."""
    from transformers import (
        RTDetrConfig,
        RTDetrForObjectDetection,
        RTDetrImageProcessor,
        RTDetrResNetConfig,
        VitPoseBackboneConfig,
        VitPoseConfig,
        VitPoseForPoseEstimation,
        VitPoseImageProcessor,
    )

    torch.manual_seed(0)
    backbone = RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 16, 16], depths=[1] * 4, layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    detector = RTDetrConfig(
        backbone_config=backbone, encoder_hidden_dim=16, encoder_in_channels=[16] * 3, encoder_ffn_dim=16,
        encoder_attention_heads=2, d_model=16, num_queries=8, decoder_in_channels=[16] * 3, num_denoising=0,
        decoder_ffn_dim=16, decoder_layers=1, decoder_attention_heads=2, decoder_n_points=2,
        id2label={0: "person", 1: "chair"}, label2id={"person": 0, "chair": 1},
    )  # fmt: skip
    vit = VitPoseBackboneConfig(
        image_size=(64, 48), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, out_indices=[1]
    )
    place = folder / "rtdetr_r50vd_coco_o365"
    RTDetrForObjectDetection(detector).save_pretrained(place)
    RTDetrImageProcessor(size={"height": 64, "width": 64}).save_pretrained(place)
    place = folder / "vitpose-base-simple"
    VitPoseForPoseEstimation(VitPoseConfig(backbone_config=vit, num_labels=17)).save_pretrained(place)
    VitPoseImageProcessor(size={"height": 64, "width": 48}).save_pretrained(place)
    return folder
