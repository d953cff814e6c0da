"""The TimeSformer: size, divided attention against a slow definition, inflation from an image ViT."""

import math

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch.nn import functional as F

from uniego_utils.backbones import create_backbone
from uniego_utils.backbones.timesformer import (
    DividedBlock,
    TimeSformer,
    from_kinetics,
    inflate,
    kinetics_weights,
    pretrained_start,
    resize_positions,
)


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def randomise(module, scale=0.2):
    """Every parameter random, so that nothing is hidden by zeros at the start."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * scale)
    return module


@pytest.fixture
def image_vit():
    vit = VisionTransformer(img_size=32, patch_size=16, embed_dim=24, depth=2, num_heads=3, num_classes=5)
    return randomise(vit).eval()


def slow_attention(layer, sequence):
    """Softmax attention of one sequence (L, D), head by head and query by query."""
    length, width = sequence.shape
    size = width // layer.num_heads
    query, key, value = F.linear(sequence, layer.qkv.weight, layer.qkv.bias).split(width, 1)
    heads = []
    for head in range(layer.num_heads):
        part = slice(head * size, (head + 1) * size)
        rows = []
        for i in range(length):
            scores = [(query[i, part] @ key[j, part]).item() / math.sqrt(size) for j in range(length)]
            exponents = [math.exp(score) for score in scores]
            rows.append(sum(e / sum(exponents) * value[j, part] for j, e in enumerate(exponents)))
        heads.append(torch.stack(rows))
    return layer.proj(torch.cat(heads, 1))


def slow_block(block, cls, tokens):
    """One clip through the divided block: cls (D,), tokens (T, N, D)."""
    frames, patches, _ = tokens.shape
    tokens = tokens.clone()
    for n in range(patches):
        seen = slow_attention(block.temporal_attn, block.temporal_norm(tokens[:, n]))
        tokens[:, n] = tokens[:, n] + block.temporal_proj(seen)
    copies = []
    for t in range(frames):
        seen = slow_attention(block.attn, block.norm1(torch.cat([cls[None], tokens[t]])))
        copies.append(seen[0])
        tokens[t] = tokens[t] + seen[1:]
    cls = cls + sum(copies) / frames

    def mlp(x):
        hidden = block.mlp.fc1(block.norm2(x))
        return x + block.mlp.fc2(hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2))))

    return mlp(cls), mlp(tokens)


def test_base_has_the_papers_size():
    model = create_backbone("timesformer", num_classes=8)
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(121.3e6, abs=0.1e6)
    assert model.feature_width == 768


def test_base_gives_a_768d_feature_and_logits():
    model = create_backbone("timesformer", num_classes=5, num_frames=2, image_size=32).eval()
    with torch.no_grad():
        features, logits = model(seeded(3, 3, 2, 32, 32))
    assert features.shape == (3, 768) and logits.shape == (3, 5)


@torch.no_grad()
def test_block_agrees_with_the_definition():
    block = randomise(DividedBlock(12, heads=3)).eval()
    cls, tokens = seeded(2, 1, 12), seeded(2, 3, 4, 12, seed=1)
    fast_cls, fast_tokens = block(cls, tokens)
    for clip in range(2):
        slow_cls, slow_tokens = slow_block(block, cls[clip, 0], tokens[clip])
        torch.testing.assert_close(fast_cls[clip, 0], slow_cls, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(fast_tokens[clip], slow_tokens, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_temporal_attention_starts_silent():
    torch.manual_seed(0)
    block = DividedBlock(12, heads=3).eval()
    assert not block.temporal_proj.weight.any() and not block.temporal_proj.bias.any()
    cls, tokens = seeded(1, 1, 12), seeded(1, 3, 4, 12, seed=1)
    changed = tokens.clone()
    changed[:, 0] += 1  # of frame 0; the patches of frame 2 must not notice
    torch.testing.assert_close(block(cls, tokens)[1][:, 2], block(cls, changed)[1][:, 2])


@torch.no_grad()
def test_inflated_model_sees_a_still_video_as_the_image_vit_does(image_vit):
    model = TimeSformer(5, num_frames=4, image_size=32, width=24, depth=2, heads=3).eval()
    inflate(model, image_vit.state_dict())
    image = seeded(2, 3, 32, 32)
    features, _ = model(image[:, :, None].expand(-1, -1, 4, -1, -1))
    torch.testing.assert_close(features, image_vit.forward_features(image)[:, 0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_inflated_tubelets_see_a_still_video_as_the_image_vit_does(image_vit):
    model = TimeSformer(5, num_frames=4, image_size=32, width=24, depth=2, heads=3, tubelet=2).eval()
    inflate(model, image_vit.state_dict())
    image = seeded(2, 3, 32, 32)
    features, _ = model(image[:, :, None].expand(-1, -1, 4, -1, -1))
    torch.testing.assert_close(features, image_vit.forward_features(image)[:, 0], rtol=1e-4, atol=1e-5)


def test_inflation_copies_spatial_attention_into_time(image_vit):
    model = TimeSformer(5, num_frames=4, image_size=32, width=24, depth=2, heads=3)
    inflate(model, image_vit.state_dict())
    for block, source in zip(model.blocks, image_vit.blocks, strict=True):
        assert torch.equal(block.temporal_attn.qkv.weight, source.attn.qkv.weight)
        assert torch.equal(block.temporal_norm.weight, source.norm1.weight)
        assert not block.temporal_proj.weight.any()


def test_inflation_refuses_a_vit_of_another_width(image_vit):
    model = TimeSformer(5, num_frames=4, image_size=32, width=48, depth=2, heads=3)
    with pytest.raises(ValueError, match="24.*48"):
        inflate(model, image_vit.state_dict())


def test_inflation_refuses_a_shallower_vit(image_vit):
    model = TimeSformer(5, num_frames=4, image_size=32, width=24, depth=3, heads=3)
    with pytest.raises(ValueError, match=r"has no 'blocks\.2\."):
        inflate(model, image_vit.state_dict())


def keys_cubic(x, a=-0.75):
    """The kernel of bicubic interpolation."""
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def slow_bicubic(grid, size):
    """(g, g) -> (size, size), pixel centres aligned, edges repeated."""
    before = len(grid)
    result = torch.zeros(size, size)
    for i in range(size):
        for j in range(size):
            y, x = ((k + 0.5) * before / size - 0.5 for k in (i, j))
            for m in range(math.floor(y) - 1, math.floor(y) + 3):
                for n in range(math.floor(x) - 1, math.floor(x) + 3):
                    value = grid[min(max(m, 0), before - 1), min(max(n, 0), before - 1)]
                    result[i, j] += value * keys_cubic(y - m) * keys_cubic(x - n)
    return result


def test_position_resize_is_bicubic_over_the_grid():
    positions = seeded(1, 1 + 9, 2)
    resized = resize_positions(positions, 25)
    for channel in range(2):
        slow = slow_bicubic(positions[0, 1:, channel].view(3, 3), 5)
        torch.testing.assert_close(resized[0, 1:, channel].view(5, 5), slow, rtol=1e-4, atol=1e-5)


def test_position_resize_keeps_equal_grids_and_the_class_position():
    positions = seeded(1, 1 + 9, 6)
    assert torch.equal(resize_positions(positions, 9), positions)
    assert torch.equal(resize_positions(positions, 25)[:, 0], positions[:, 0])


@pytest.mark.parametrize("count", [4, 25])
def test_position_resize_keeps_a_constant(count):
    constant = torch.full((1, 1 + 9, 3), 0.7)
    torch.testing.assert_close(resize_positions(constant, count), torch.full((1, 1 + count, 3), 0.7))


@pytest.mark.parametrize(("before", "after"), [(8, 9), (9, 8)])
def test_position_resize_refuses_grids_that_are_not_square(before, after):
    with pytest.raises(ValueError, match=f"{before} positions to {after}"):
        resize_positions(torch.zeros(1, 1 + before, 3), after)


@pytest.mark.parametrize("size", ["tiny", "paper"])
def test_gradients_reach_every_parameter(size):
    torch.manual_seed(0)
    if size == "tiny":
        model = create_backbone("timesformer", 5, 8, 32, "tiny").eval()
    else:
        model = TimeSformer(5, num_frames=8, image_size=32, width=24, depth=2, heads=3).eval()
    for block in model.blocks:
        torch.nn.init.normal_(block.temporal_proj.weight, std=0.1)
    features, logits = model(seeded(2, 3, 8, 32, 32))
    (logits.square().sum() + (features * seeded(*features.shape, seed=3)).sum()).backward()
    unreached = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert unreached == []


@torch.no_grad()
def test_order_of_frames_is_known_by_the_time_embedding_alone():
    model = randomise(TimeSformer(5, num_frames=4, image_size=32, width=24, depth=1, heads=3), 0.5).eval()
    clip = seeded(1, 3, 4, 32, 32)
    with_time = model(clip)[0]
    model.time_embed.zero_()
    torch.testing.assert_close(model(clip)[0], model(clip.flip(2))[0], rtol=1e-4, atol=1e-5)
    assert (with_time - model(clip)[0]).abs().max() > 1e-3


@pytest.mark.parametrize("shape", [(1, 3, 4, 32, 32), (1, 3, 8, 48, 48), (1, 1, 8, 32, 32)])
def test_wrong_clips_are_refused_with_the_right_shape(shape):
    model = create_backbone("timesformer", 5, 8, 32, "tiny")
    with pytest.raises(ValueError, match=r"\(B, 3, 8, 32, 32\)"):
        model(torch.zeros(shape))


def test_unknown_name_and_size_list_the_valid_ones():
    with pytest.raises(ValueError, match="'resnet'.*timesformer"):
        create_backbone("resnet", 5)
    with pytest.raises(ValueError, match="'huge'.*tiny, base"):
        create_backbone("timesformer", 5, size="huge")


@pytest.mark.parametrize(("frames", "pixels"), [(3, 32), (8, 40)])
def test_frames_and_pixels_must_divide_into_tokens(frames, pixels):
    with pytest.raises(ValueError, match="do not divide"):
        create_backbone("timesformer", 5, frames, pixels, "tiny")


# --- weights that others have trained

OFFICIAL = {  # name in the official release -> name here; blocks.0 stands for every block
    "cls_token": "cls_token",
    "pos_embed": "pos_embed",
    "time_embed": "time_embed",
    "patch_embed.proj.weight": "patch_embed.proj.weight",
    "patch_embed.proj.bias": "patch_embed.proj.bias",
    "norm.weight": "norm.weight",
    "norm.bias": "norm.bias",
    **{
        f"blocks.0.{theirs}.{kind}": f"blocks.0.{ours}.{kind}"
        for kind in ("weight", "bias")
        for theirs, ours in (
            ("norm1", "norm1"),
            ("attn.qkv", "attn.qkv"),
            ("attn.proj", "attn.proj"),
            ("temporal_norm1", "temporal_norm"),
            ("temporal_attn.qkv", "temporal_attn.qkv"),
            ("temporal_attn.proj", "temporal_attn.proj"),
            ("temporal_fc", "temporal_proj"),
            ("norm2", "norm2"),
            ("mlp.fc1", "mlp.fc1"),
            ("mlp.fc2", "mlp.fc2"),
        )
    },
}


def small_timesformer(num_frames=8, image_size=48, depth=2):
    return TimeSformer(5, num_frames, image_size, width=24, depth=depth, heads=3).eval()


@pytest.fixture(scope="module")
def official():
    """A random TimeSformer of ours, and its weights under the official release's names."""
    ours = randomise(small_timesformer())
    own = ours.state_dict()
    names = {
        theirs.replace("blocks.0", f"blocks.{block}"): name.replace("blocks.0", f"blocks.{block}")
        for theirs, name in OFFICIAL.items()
        for block in range(2)
    }
    state = {f"model.{theirs}": own[name] for theirs, name in names.items()}
    assert len(state) == len([name for name in own if not name.startswith("head.")])
    head = {"model.head.weight": seeded(400, 24), "model.head.bias": seeded(400)}
    return ours, state | head


@torch.no_grad()
@pytest.mark.parametrize("kind", ["TimesformerModel", "TimesformerForVideoClassification"])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_transformers_timesformer_becomes_ours(tmp_path, kind, file):
    import transformers

    config = transformers.TimesformerConfig(
        image_size=48,
        patch_size=16,
        num_frames=8,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=96,
        num_labels=7,
    )
    theirs = randomise(getattr(transformers, kind)(config), 0.5).eval()
    if file == "model.safetensors":
        theirs.save_pretrained(tmp_path)
    else:
        torch.save(theirs.state_dict(), tmp_path / file)
    model = small_timesformer()
    head = model.head.weight.clone()
    from_kinetics(model, kinetics_weights(weights=str(tmp_path)))

    clips = seeded(2, 3, 8, 48, 48)
    base = theirs if kind == "TimesformerModel" else theirs.timesformer
    expected = base(clips.transpose(1, 2)).last_hidden_state[:, 0]
    torch.testing.assert_close(model(clips)[0], expected, rtol=1e-4, atol=1e-4)
    assert expected.std(0).max() > 0.1  # the clips' features differ by far more than the tolerance
    assert torch.equal(model.head.weight, head)


@torch.no_grad()
@pytest.mark.parametrize("wrapper", ["", "module."])
def test_the_official_release_becomes_ours(tmp_path, official, wrapper):
    ours, state = official
    checkpoint = {"epoch": 14, "model_state": {f"{wrapper}{name}": value for name, value in state.items()}}
    torch.save(checkpoint, tmp_path / "TimeSformer_divST_8x32_224_K400.pyth")
    model = small_timesformer()
    from_kinetics(model, kinetics_weights(weights=str(tmp_path / "TimeSformer_divST_8x32_224_K400.pyth")))
    clips = seeded(2, 3, 8, 48, 48)
    assert torch.equal(model(clips)[0], ours(clips)[0])


@pytest.mark.parametrize("frames", [4, 16])
def test_time_embeddings_follow_the_number_of_frames(official, frames):
    ours, state = official
    model = small_timesformer(frames)
    from_kinetics(model, state)
    expected = [ours.time_embed[0, step * 8 // frames] for step in range(frames)]
    assert torch.equal(model.time_embed[0], torch.stack(expected))
    assert torch.equal(model.pos_embed, ours.pos_embed)


def test_positions_follow_the_image_size(official):
    ours, state = official
    model = small_timesformer(image_size=80)
    from_kinetics(model, state)
    assert torch.equal(model.pos_embed, resize_positions(ours.pos_embed, 25))


def test_kinetics_weights_that_do_not_fit_are_refused(official, image_vit):
    _, state = official
    lacking = {name: value for name, value in state.items() if name != "model.blocks.1.temporal_fc.bias"}
    with pytest.raises(ValueError, match=r"1 missing \(first blocks\.1\.temporal_proj\.bias"):
        from_kinetics(small_timesformer(), lacking)
    with pytest.raises(ValueError, match=r"unexpected \(first blocks\.1\."):
        from_kinetics(small_timesformer(depth=1), state)
    with pytest.raises(ValueError, match=r"norm\.weight, \(3,\) instead of \(24,\)"):
        from_kinetics(small_timesformer(), state | {"model.norm.weight": torch.ones(3)})
    with pytest.raises(ValueError, match="neither transformers' nor the official layout.*cls_token"):
        from_kinetics(small_timesformer(), image_vit.state_dict())


def test_the_pretrained_start_is_an_image_vit_from_a_local_file(tmp_path, image_vit):
    name = "vit_base_patch16_224.orig_in21k_ft_in1k"
    save_file(image_vit.state_dict(), tmp_path / f"{name}.safetensors")
    model = TimeSformer(5, num_frames=4, image_size=32, width=24, depth=2, heads=3)
    pretrained_start(model, str(tmp_path))
    assert torch.equal(model.blocks[1].attn.qkv.weight, image_vit.blocks[1].attn.qkv.weight)
    assert (
        timm.get_pretrained_cfg(name).hf_hub_id == f"timm/{name}"
    )  # so a folder's entry has the model's name
