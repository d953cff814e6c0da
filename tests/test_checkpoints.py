"""Official checkpoints: against a forward pass on the official names, exact round trips, refusals by name."""

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from uniego_utils.backbones.timesformer import SIZES, TimeSformer
from uniego_utils.cards import CARDS, PROJECT, from_mapping, load_card
from uniego_utils.data.video import loader
from uniego_utils.experiment import SCORED, Experiment
from uniego_utils.mocap.clips import MocapSettings, build
from uniego_utils.objectives import Classification, TeacherDistillation
from uniego_utils.official import export_student, import_student, main, read_official, write_official
from uniego_utils.recipes import PAPER, RECIPES
from uniego_utils.runs import digest, is_finished, read_json, read_tensors, start_run
from uniego_utils.sources import load_outputs
from uniego_utils.students import finish_student
from uniego_utils.training import Learner, read_history

WIDTH, HEADS = 32, 2
PATCHES = dict(width=WIDTH, depth=2, heads=HEADS)  # a small TimeSformer of the paper's kind
PREFIXES = ["", "module."]  # saved without and with DDP


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_timesformer(classes=5, frames=2, seed=1, **kind) -> TimeSformer:
    """Every entry random, so that nothing is hidden by zeros at the start."""
    model = TimeSformer(classes, frames, 32, **(kind or PATCHES)).eval()
    for number, (name, value) in enumerate(model.state_dict().items()):
        if value.is_floating_point():
            value.copy_(0.4 * seeded(*value.shape, seed=100 * seed + number))
        if name.endswith("running_var"):
            value.abs_()
    return model


def official_names(depth=2) -> dict[str, str]:
    """Name in the official release -> name here, written out."""
    names = ["cls_token", "pos_embed", "time_embed"]
    names += [
        f"{part}.{kind}" for part in ("patch_embed.proj", "norm", "head") for kind in ("weight", "bias")
    ]
    pairs = {f"model.{name}": name for name in names}
    parts = {"temporal_norm1": "temporal_norm", "temporal_fc": "temporal_proj"}
    same = ("norm1", "attn.qkv", "attn.proj", "temporal_attn.qkv", "temporal_attn.proj", "norm2")
    parts |= {part: part for part in (*same, "mlp.fc1", "mlp.fc2")}
    for block in range(depth):
        for theirs, ours in parts.items():
            for kind in ("weight", "bias"):
                pairs[f"model.blocks.{block}.{theirs}.{kind}"] = f"blocks.{block}.{ours}.{kind}"
    return pairs


def official_state(model: TimeSformer) -> dict:
    own = model.state_dict()
    assert sorted(official_names().values()) == sorted(own)
    return {theirs: own[ours] for theirs, ours in official_names().items()}


def projection(width=7) -> dict:
    return {"weight": seeded(width, WIDTH, seed=5), "bias": seeded(width, seed=6)}


def save(path: Path, state: dict, prefix="", **more) -> Path:
    """As the official code saves in training."""
    state = {f"{prefix}{name}": value for name, value in state.items()}
    optimizer = {
        "state": {0: {"momentum_buffer": torch.ones(2)}},
        "param_groups": [{"lr": 0.005, "params": [0]}],
    }
    torch.save(
        {"epoch": 14, "model_state": state, "optimizer_state": optimizer, "cfg": "A: 1\n", **more}, path
    )
    return path


def same(given: dict, expected: dict) -> bool:
    equal = given.keys() == expected.keys()
    return equal and all(
        torch.equal(given[name], expected[name]) and given[name].dtype == expected[name].dtype
        for name in given
    )


def official_forward(state: dict, clips: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Feature and logits of clips (B, 3, T, H, W), straight from entries in the official names."""

    def norm(name, x):
        return F.layer_norm(x, x.shape[-1:], state[f"model.{name}.weight"], state[f"model.{name}.bias"], 1e-6)

    def linear(name, x):
        return x @ state[f"model.{name}.weight"].T + state[f"model.{name}.bias"]

    def attention(name, x):
        query, key, value = (
            part.unflatten(-1, (HEADS, -1)) for part in linear(f"{name}.qkv", x).chunk(3, -1)
        )
        scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
        mixed = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value)
        return linear(f"{name}.proj", mixed.flatten(2))

    b, _, frames, _, _ = clips.shape
    patches = clips.unfold(3, 16, 16).unfold(4, 16, 16)  # (B, 3, T, h, w, 16, 16)
    patches = patches.permute(0, 2, 3, 4, 1, 5, 6).flatten(4).flatten(2, 3)  # (B, T, h w, 3 * 16 * 16)
    kernel = state["model.patch_embed.proj.weight"].flatten(1)
    tokens = patches @ kernel.T + state["model.patch_embed.proj.bias"]
    positions = state["model.pos_embed"]
    tokens = tokens + positions[:, None, 1:] + state["model.time_embed"][0][None, :, None]
    cls = (state["model.cls_token"] + positions[:, :1]).repeat(b, 1, 1)
    for block in range(2):
        name = f"blocks.{block}"
        through_time = tokens.transpose(1, 2).flatten(0, 1)  # (B h w, T, D)
        seen = attention(f"{name}.temporal_attn", norm(f"{name}.temporal_norm1", through_time))
        through_time = through_time + linear(f"{name}.temporal_fc", seen)
        tokens = through_time.unflatten(0, (b, -1)).transpose(1, 2)
        copies = []
        framewise = []
        for frame in range(frames):
            whole = torch.cat([cls, tokens[:, frame]], 1)
            seen = attention(f"{name}.attn", norm(f"{name}.norm1", whole))
            copies.append(seen[:, :1])
            framewise.append(tokens[:, frame] + seen[:, 1:])
        cls, tokens = cls + torch.stack(copies).mean(0), torch.stack(framewise, 1)
        every = torch.cat([cls, tokens.flatten(1, 2)], 1)
        hidden = F.gelu(linear(f"{name}.mlp.fc1", norm(f"{name}.norm2", every)))
        every = every + linear(f"{name}.mlp.fc2", hidden)
        cls, tokens = every[:, :1], every[:, 1:].unflatten(1, (frames, -1))
    feature = norm("norm", cls[:, 0])
    return feature, linear("head", feature)


# --- the same model


@torch.no_grad()
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_read_checkpoint_computes_what_the_official_entries_say(tmp_path, prefix):
    state = official_state(random_timesformer())
    path = save(tmp_path / "checkpoint_epoch_00015.pyth", state, prefix)
    weights, beside = read_official(path)
    assert beside == {}
    model = random_timesformer(seed=2)
    model.load_state_dict(weights)
    clips = seeded(3, 3, 2, 32, 32)
    features, logits = model(clips)
    expected_features, expected_logits = official_forward(state, clips)
    torch.testing.assert_close(features, expected_features, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits, expected_logits, rtol=1e-5, atol=1e-5)
    assert expected_features.std(0).max() > 1e-2  # the clips differ by far more than the tolerance


@torch.no_grad()
def test_a_written_checkpoint_computes_what_our_model_does(tmp_path):
    model = random_timesformer()
    write_official(tmp_path / "ours.pyth", model.state_dict(), {})
    content = torch.load(tmp_path / "ours.pyth", weights_only=True)
    assert content.keys() == {"model_state"} and same(content["model_state"], official_state(model))
    clips = seeded(3, 3, 2, 32, 32)
    for given, expected in zip(official_forward(content["model_state"], clips), model(clips), strict=True):
        torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-5)


# --- projections and round trips


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("place", ["model.proj_layer", "proj_layer"])
def test_a_projection_is_returned_apart(tmp_path, prefix, place):
    model = random_timesformer()
    beside = {f"{place}.{key}": value for key, value in projection().items()}
    weights, given = read_official(save(tmp_path / "a.pyth", official_state(model) | beside, prefix))
    assert same(weights, model.state_dict()) and same(given, projection())


def test_projections_of_several_teachers_keep_their_names(tmp_path):
    state = official_state(random_timesformer())
    beside = {
        f"{teacher}.{key}": value
        for teacher, width in (("exo_skl", 5), ("ego_dino", 7))
        for key, value in projection(width).items()
    }
    path = save(tmp_path / "a.pyth", state | {f"model.proj_layers.{key}": v for key, v in beside.items()})
    assert same(read_official(path)[1], beside)


@pytest.mark.parametrize("beside", [{}, projection(), {f"exo_skl.{k}": v for k, v in projection().items()}])
def test_what_is_written_is_read_back_exactly(tmp_path, beside):
    weights = random_timesformer().state_dict()
    weights["head.weight"] = weights["head.weight"].half()
    weights["norm.bias"] = torch.stack([weights["norm.bias"]] * 1000)[7]  # a part of a large tensor
    write_official(tmp_path / "new" / "a.pyth", weights, beside)
    write_official(tmp_path / "b.pyth", weights, beside)
    read = read_official(tmp_path / "new" / "a.pyth")
    assert same(read[0], weights) and same(read[1], beside)
    assert (tmp_path / "b.pyth").read_bytes() == (tmp_path / "new" / "a.pyth").read_bytes()
    values = sum(value.numel() * value.element_size() for value in [*weights.values(), *beside.values()])
    assert (tmp_path / "b.pyth").stat().st_size < values + 50_000
    assert not list(tmp_path.rglob("*.partial"))


def test_the_tiny_size_travels_under_its_own_names(tmp_path):
    weights = random_timesformer(frames=4, **SIZES["tiny"]).state_dict()
    write_official(tmp_path / "tiny.pyth", weights, {})
    assert same(read_official(tmp_path / "tiny.pyth")[0], weights)


@pytest.mark.parametrize(
    ("weights", "beside", "message"),
    [
        ({"blocks.0.temporal_fc.bias": torch.ones(WIDTH)}, {}, "temporal_fc.bias is (left over|no name)"),
        ({"proj_layer.bias": torch.ones(3)}, {}, "proj_layer.bias|projection"),
        (
            {"norm.bias": torch.full((WIDTH,), torch.nan)},
            {},
            "model.norm.bias has values that are not finite",
        ),
        ({}, {"weight": torch.ones(7, 3), "bias": torch.ones(7)}, r"proj_layer should be a weight \(D, 32\)"),
        ({}, {"strange": torch.ones(7)}, "proj_layer.strange|strange is no name"),
    ],
)
def test_what_could_not_be_read_back_is_not_written(tmp_path, weights, beside, message):
    with pytest.raises(ValueError, match=rf"a\.pyth.*({message})"):
        write_official(tmp_path / "a.pyth", random_timesformer().state_dict() | weights, beside)
    assert not list(tmp_path.iterdir())


# --- refusals


class Intruder:
    """Unpickling it makes a folder: what a hostile checkpoint could do."""

    def __init__(self, place: Path):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


def test_other_objects_are_refused_and_never_loaded(tmp_path):
    state = official_state(random_timesformer())
    path = save(tmp_path / "a.pyth", state, more=Intruder(tmp_path / "intruded"))
    with pytest.raises(ValueError, match=r"a\.pyth.*mkdir.*save its `model_state` alone"):
        read_official(path)
    assert not (tmp_path / "intruded").exists()


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b"hello world", lambda b: b[: len(b) // 2]])
def test_damaged_files_are_refused_by_name(tmp_path, damage):
    path = save(tmp_path / "a.pyth", official_state(random_timesformer()))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"a\.pyth is damaged"):
        read_official(path)


def test_a_missing_file_is_refused_by_name(tmp_path):
    for path in (tmp_path / "a.pyth", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"{re.escape(str(path))} is no file"):
            read_official(path)


@pytest.mark.parametrize("container", ["state_dict", "model", None])
def test_without_model_state_a_file_is_refused(tmp_path, container):
    state = official_state(random_timesformer())
    torch.save(state if container is None else {container: state}, tmp_path / "a.pyth")
    with pytest.raises(ValueError, match=rf"a\.pyth has no `model_state`.*{container or 'model.cls_token'}"):
        read_official(tmp_path / "a.pyth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model.norm.weight": torch.full((WIDTH,), torch.inf)},
            "model.norm.weight has values .* not finite",
        ),
        ({"model.norm.weight": "text"}, "model.norm.weight is no tensor"),
        ({"queue": torch.ones(2)}, "queue is left over"),
        ({"model.": torch.ones(2)}, "model. is left over"),
        ({"module.model.norm.bias": torch.ones(WIDTH)}, "module.model.norm.bias is left over"),
        ({"model.blocks.0.temporal_norm.bias": torch.ones(WIDTH)}, "temporal_norm.bias is left over"),
        (
            {"model.norm.bias": None, "module.model.norm.bias": torch.ones(WIDTH)},
            "module.model.norm.bias is left over",
        ),
        (  # our name in place of theirs
            {
                "model.blocks.0.temporal_norm1.bias": None,
                "model.blocks.0.temporal_norm.bias": torch.ones(WIDTH),
            },
            "temporal_norm.bias is left over",
        ),
        ({"model.time_embed": None}, "lacks model.time_embed"),
        ({"model.cls_token": None}, "lacks model.cls_token"),
        ({"model.head.weight": None}, "lacks model.head.weight"),
        ({"model.proj_layer.weight": torch.ones(7, WIDTH)}, "proj_layer should be a weight.*and a bias"),
        (
            {
                "model.proj_layers.exo_skl.weight": torch.ones(7, 9),
                "model.proj_layers.exo_skl.bias": torch.ones(7),
            },
            r"proj_layers.exo_skl should be a weight \(D, 32\)",
        ),
        (
            {
                f"{place}.{key}": value
                for place in ("proj_layer", "model.proj_layer")
                for key, value in projection().items()
            },
            "proj_layer.weight is left over",
        ),
    ],
)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_entries_outside_the_layout_are_refused_by_name(tmp_path, change, message, prefix):
    state = official_state(random_timesformer()) | change
    state = {name: value for name, value in state.items() if value is not None}
    with pytest.raises(ValueError, match=rf"a\.pyth.*{message}"):
        read_official(save(tmp_path / "a.pyth", state, prefix))


def test_transformers_layout_is_refused(tmp_path):
    import transformers

    config = transformers.TimesformerConfig(
        image_size=32, num_frames=2, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2
    )
    state = transformers.TimesformerForVideoClassification(config).state_dict()
    for prefix in ("", "model."):
        with pytest.raises(ValueError, match=r"a\.pyth.*(left over|lacks model\.cls_token)"):
            read_official(save(tmp_path / "a.pyth", state, prefix))


# --- run folders


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """An outputs folder with a few rendered clips."""
    outputs = tmp_path_factory.mktemp("outputs")
    root = outputs / "mocap" / "00_data"
    settings = {"pool": 1, "train": 1, "val": 1, "test": 1, "unlabelled": 1, "image_size": 64, "frames": 8}
    motions = CARDS / "mocap" / "humanoid_motions.npz"
    build(root, motions, from_mapping(MocapSettings, settings, "test"), 1, False, root)
    return outputs


@pytest.fixture
def experiment(rendered, monkeypatch):
    """An experiment whose students have two frames and the paper's patches."""
    monkeypatch.setitem(SIZES, "tiny", PATCHES)
    card = load_card("mocap")
    preset = card.preset("smoke")
    preset = replace(preset, video=replace(preset.video, num_frames=2))
    outputs = rendered / "mocap"
    root = outputs / "00_data"
    return Experiment(card, preset, card.method, PAPER, "paper", 0, root, outputs, torch.device("cpu"), False)


def checkpoint(path: Path, experiment: Experiment, change: dict | None = None) -> tuple[Path, dict]:
    """An official file that fits the experiment, and its state."""
    state = official_state(random_timesformer(len(experiment.card.classes))) | (change or {})
    return save(path, {name: value for name, value in state.items() if value is not None}), state


def student(experiment: Experiment, folder: Path, objective: nn.Module, **config) -> Path:
    """A finished run folder of random weights, as training leaves it."""
    model = random_timesformer(len(experiment.card.classes), seed=3)
    start_run(folder, {"backbone": [experiment.preset.backbone, experiment.preset.size], **config})
    finish_student(
        folder, Learner(model, objective), {"val": experiment.clips("val", progress=False)}, experiment.device
    )
    return folder


@torch.no_grad()
def test_an_imported_checkpoint_is_a_student_like_any_other(experiment, tmp_path, capsys):
    path, state = checkpoint(tmp_path / "released.pyth", experiment)
    folder = tmp_path / "imported"
    metrics = import_student(experiment, path, folder)
    assert (
        is_finished(folder) and read_history(folder) == [] and read_json(folder / "metrics.json") == metrics
    )
    config = read_json(folder / "config.json")["config"]
    assert config["checkpoint"] == digest(path) and config["backbone"] == ["timesformer", "tiny"]
    assert same(read_tensors(folder / "model.safetensors"), read_official(path)[0])
    assert not (folder / "objective.safetensors").exists()
    for split in SCORED:
        clips = experiment.clips(split, progress=False)
        batches = torch.cat([batch["clips"] for batch in loader(clips, 8)])
        expected = dict(zip(("features", "logits"), official_forward(state, batches), strict=True))
        outputs = load_outputs(folder, split, "")
        torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-5)
        hits = (expected["logits"].argmax(1) == torch.tensor(clips.labels)).float().mean()
        assert metrics[f"{split}_top1"] == pytest.approx(100 * hits.item())

    written = (folder / "outputs.safetensors").stat().st_mtime_ns
    path = path.rename(tmp_path / "elsewhere.pyth")  # its content decides, not its name
    assert import_student(experiment, path, folder) == metrics and "reused" in capsys.readouterr().out
    assert (folder / "outputs.safetensors").stat().st_mtime_ns == written
    other, _ = checkpoint(tmp_path / "other.pyth", experiment, {"model.norm.bias": torch.zeros(WIDTH)})
    with pytest.raises(ValueError, match="(?s)another configuration.*checkpoint"):
        import_student(experiment, other, folder)


@pytest.mark.parametrize(
    "beside", [{}, projection(), {f"{t}.{k}": v for t in "ab" for k, v in projection().items()}]
)
def test_import_and_export_give_the_file_back(experiment, tmp_path, beside):
    weights = random_timesformer(len(experiment.card.classes)).state_dict()
    write_official(tmp_path / "a.pyth", weights, beside)
    import_student(experiment, tmp_path / "a.pyth", tmp_path / "imported")
    export_student(tmp_path / "imported", tmp_path / "b.pyth")
    assert digest(tmp_path / "b.pyth") == digest(tmp_path / "a.pyth")


def test_projections_of_students_go_where_the_release_has_them(experiment, tmp_path, capsys):
    targets = {"exo_skl": seeded(4, 24), "ego_dino": seeded(4, 9, seed=1)}

    def exported(name: str, objective: nn.Module, **config) -> dict:
        folder = student(experiment, tmp_path / name, objective, **config)
        export_student(folder, tmp_path / f"{name}.pyth")
        weights, beside = read_official(tmp_path / f"{name}.pyth")
        assert same(weights, read_tensors(folder / "model.safetensors"))
        return beside

    def distil(keys, recipe: str) -> TeacherDistillation:
        return TeacherDistillation(
            {key: targets[key] for key in keys}, WIDTH, experiment.method, RECIPES[recipe]
        )

    one, several = distil(["exo_skl"], "released"), distil(targets, "released")
    assert same(exported("one", one, recipe="released"), one.project["exo_skl"].state_dict())
    assert same(exported("several", several, recipe="released"), several.project.state_dict())
    level_two = nn.ModuleDict({"project": nn.Linear(WIDTH, WIDTH)})
    assert same(exported("two", level_two, recipe="released"), level_two["project"].state_dict())
    assert exported("baseline", Classification(), recipe="released") == {}
    assert "left out" not in capsys.readouterr().out
    assert exported("paper", distil(["exo_skl"], "paper"), recipe="paper") == {}
    assert "left out project.exo_skl.bias, project.exo_skl.weight" in capsys.readouterr().out
    other = nn.ModuleDict({"adaptor": nn.Linear(WIDTH, 4), "project": nn.Linear(WIDTH, WIDTH)})
    assert exported("other", other) == {}
    assert "left out adaptor.bias" in capsys.readouterr().out


def test_a_size_that_the_official_code_would_skip_is_told(experiment, tmp_path, capsys):
    export_student(student(experiment, tmp_path / "small", Classification()), tmp_path / "a.pyth")
    assert "no B/16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.blocks.1.temporal_fc.bias": None}, r"1 missing \(first blocks\.1\.temporal_proj\.bias"),
        ({"model.blocks.2.norm1.bias": torch.ones(WIDTH)}, r"1 unexpected \(first blocks\.2\.norm1\.bias"),
        ({"model.time_embed": torch.ones(1, 8, WIDTH)}, r"time_embed, \(1, 8, 32\) instead of \(1, 2, 32\)"),
        (
            {"model.head.weight": torch.ones(400, WIDTH)},
            r"model\.head\.weight is \(400, 32\), but mocap has 15",
        ),
        ({"model.norm.bias": torch.full((WIDTH,), torch.nan)}, r"model\.norm\.bias has values"),
    ],
)
def test_a_checkpoint_that_does_not_fit_leaves_no_folder(experiment, tmp_path, change, message):
    path, _ = checkpoint(tmp_path / "a.pyth", experiment, change)
    with pytest.raises(ValueError, match=rf"a\.pyth.*{message}"):
        import_student(experiment, path, tmp_path / "imported")
    assert not (tmp_path / "imported").exists()


def test_other_backbones_are_refused_by_name(experiment, tmp_path):
    path, _ = checkpoint(tmp_path / "a.pyth", experiment)
    other = replace(experiment, preset=replace(experiment.preset, backbone="uniformer"))
    with pytest.raises(ValueError, match="mocap: the backbone uniformer has no official layout"):
        import_student(other, path, tmp_path / "imported")
    folder = student(other, tmp_path / "student", Classification())
    with pytest.raises(ValueError, match="student: the backbone uniformer has no official layout"):
        export_student(folder, tmp_path / "b.pyth")
    assert not (tmp_path / "b.pyth").exists()


def test_an_unfinished_student_is_not_exported(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing or unfinished; train or import this student first"):
        export_student(tmp_path, tmp_path / "a.pyth")


# --- the command line


def test_the_command_line_takes_a_checkpoint_in_and_out(rendered, tmp_path, capsys):
    video = load_card("mocap").preset("smoke").video
    model = random_timesformer(15, video.num_frames, **SIZES["tiny"])
    write_official(tmp_path / "a.pyth", model.state_dict(), {})
    given = [
        "import",
        str(tmp_path / "a.pyth"),
        "--dataset",
        "mocap",
        "--preset",
        "smoke",
        "--name",
        "released",
    ]
    main([*given, "--outputs", str(rendered)])
    folder = rendered / "mocap" / "imported" / "released"
    assert is_finished(folder) and f"{folder}: " in capsys.readouterr().out
    main(["export", str(folder), str(tmp_path / "b.pyth")])
    assert digest(tmp_path / "b.pyth") == digest(tmp_path / "a.pyth")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["import", "nowhere.pyth", "--dataset", "mocap", "--name", "a"], "nowhere.pyth is no file"),
        (["import", "nowhere.pyth", "--dataset", "kinetics", "--name", "a"], "unknown dataset 'kinetics'"),
        (["import", "nowhere.pyth", "--dataset", "mocap", "--name", "../a"], "name '../a' should be letters"),
        (["export", "nowhere", "a.pyth"], "nowhere is missing or unfinished"),
    ],
)
def test_the_command_line_ends_in_one_line(tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main([*given, "--outputs", str(tmp_path)] if given[0] == "import" else given)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert PROJECT.is_dir() and not list(tmp_path.iterdir())
