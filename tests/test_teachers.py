"""The nine teachers: their parts against slow definitions, and each from fit to features on few clips."""

import dataclasses
import math

import numpy as np
import pytest
import timm
import torch
from torch.nn import functional as F

from uniego_utils import teachers
from uniego_utils.cards import CARDS, Card, TeacherCard, from_mapping
from uniego_utils.data import skeletons
from uniego_utils.data.manifests import Manifest, load_manifest
from uniego_utils.data.skeletons import LAYOUTS, Layout
from uniego_utils.mocap import clips as mocap
from uniego_utils.runs import read_tensors, write_tensors
from uniego_utils.teachers import batches, depth, dino, foundation, images, siglip, skego, skego_clip, stgcn
from uniego_utils.teachers.features import check_features

TRAIN = {"epochs": 2, "batch_size": 16, "optimizer": "adamw", "lr": 0.001}
LAYOUT = LAYOUTS["mocap-16"]
TEACHERS = {
    "ego_depth": ("depth", "depth", 16),
    "ego_dino": ("rgb", "dino", 16),
    "ego_siglip": ("rgb", "siglip", 24),
    "exo_rgb": ("rgb", "timesformer", 32),
    "exo_depth": ("depth", "depth", 16),
    "exo_skl": ("skeleton", "stgcn", 8),
    "exo_skego": ("rgb", "skego", 32),
    "exo_dino": ("rgb", "dino", 16),
    "exo_siglip": ("rgb", "siglip", 24),
}
SETTINGS = {
    "timesformer": {"num_frames": 4},
    "skego": {"num_frames": 4},
    "stgcn": {"channels": (8, 8), "strides": (1, 2)},
    "depth": {"num_frames": 4, "channels": (4, 8, 8), "context": 2, "pooling": "mean_std"},
    "dino": {"num_frames": 4, "depth": 1, "heads": 2, "prototypes": 8, "bottleneck": 8, "pooling": "mean"},
    "siglip": {"num_frames": 4, "depth": 1, "heads": 2, "frames_per_clip": 2, "pooling": "mean"},
}


def make_card(classes: tuple[str, ...]) -> Card:
    """A card with the nine teachers, small."""
    plain = {
        "name": "mocap",
        "title": "mocap",
        "source": "generated",
        "licence": "none",
        "classes": list(classes),
        "method": {},
        "skeleton": "mocap-16",
        "teachers": {
            key: {"modality": modality, "viewpoint": key[:3], "model": model, "width": width, "label": key}
            for key, (modality, model, width) in TEACHERS.items()
        },
        "presets": {
            "tiny": {
                "backbone": "timesformer",
                "size": "tiny",
                "data": {},
                "video": {
                    "num_frames": 4,
                    "image_size": 32,
                    "resize": 36,
                    "mean": [0.45] * 3,
                    "std": [0.225] * 3,
                },
                "proxy": TRAIN,
                "merge": {},
                "spd": TRAIN,
                "teachers": {model: {**numbers, "train": TRAIN} for model, numbers in SETTINGS.items()},
            }
        },
    }
    return from_mapping(Card, plain, "card")


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    """A card and the manifest of thirty small clips, two a class."""
    root = tmp_path_factory.mktemp("mocap")
    motions = CARDS / "mocap" / "humanoid_motions.npz"
    settings = mocap.MocapSettings(pool=2, train=1, val=1, test=1, unlabelled=1, image_size=64, frames=6)
    paths = mocap.build(root, motions, settings, workers=1, progress=False)
    classes = tuple(mocap.load_motions(motions))
    return make_card(classes), load_manifest(paths["pool"], classes, root)


def change(card: Card, key: str, **settings) -> Card:
    teacher: TeacherCard = dataclasses.replace(card.teachers[key], settings=settings)
    return dataclasses.replace(card, teachers={**card.teachers, key: teacher})


def job_of(card: Card, key: str) -> batches.Job:
    return teachers.plan(key, card, card.preset("tiny"), progress=False)


@torch.inference_mode()
def encode_all(job: batches.Job, model: torch.nn.Module, manifest: Manifest) -> torch.Tensor:
    """All clips in one batch."""
    module = teachers.teacher_module(job.teacher.model)
    dataset = module.clips(job, manifest)
    return module.encode(model, torch.stack([dataset[row] for row in range(len(dataset))]), job)


# --- skeletons


def test_adjacency_partitions_sum_to_the_normalised_adjacency():
    graph = stgcn.adjacency(LAYOUT)
    joined = np.eye(len(LAYOUT.joints))
    for a, b in LAYOUT.bones:
        joined[a, b] = joined[b, a] = 1
    assert torch.allclose(graph.sum(0), torch.tensor(joined / joined.sum(0), dtype=torch.float32))
    assert torch.allclose(graph.sum((0, 1)), torch.ones(len(LAYOUT.joints)))
    assert torch.equal(
        graph[0] > 0, torch.eye(len(LAYOUT.joints), dtype=torch.bool)
    )  # a tree: only itself is as far
    head, neck = LAYOUT.joints.index("head"), LAYOUT.joints.index("neck")
    assert graph[1, neck, head] > 0 and graph[2, head, neck] > 0  # the neck is nearer to the chest
    assert graph[2, neck, head] == 0 and graph[1, head, neck] == 0


def test_loose_joints_are_refused():
    with pytest.raises(ValueError, match="tail"):
        stgcn.adjacency(Layout(("root", "head", "tail"), ((0, 1),), 0, 1, (1, 1)))


def test_graph_convolution_against_its_definition():
    torch.manual_seed(0)
    layer = stgcn.GraphConv(2, 3, stgcn.adjacency(LAYOUT))
    torch.nn.init.uniform_(layer.importance)
    x = torch.randn(2, 2, 3, 16)
    weight = layer.mix.weight.detach().numpy().reshape(3, 3, 2)  # partition, out, in
    bias = layer.mix.bias.detach().numpy().reshape(3, 3)
    graph = (layer.graph * layer.importance).detach().numpy()
    expected = np.zeros((2, 3, 3, 16))
    for b, t, w, k, v in np.ndindex(2, 3, 16, 3, 16):
        expected[b, :, t, w] += graph[k, v, w] * (weight[k] @ x[b, :, t, v].numpy() + bias[k])
    assert np.allclose(layer(x).detach().numpy(), expected, atol=1e-5)


def test_turning_keeps_heights_and_distances():
    skeletons = torch.randn(3, 2, 4, 16, 3)
    skeletons[1, 1] = 0  # nobody
    turned = stgcn.turn(skeletons, torch.Generator().manual_seed(0), 0.0)
    assert torch.allclose(turned[..., 1], skeletons[..., 1], atol=1e-5)
    assert torch.allclose(turned.norm(dim=-1), skeletons.norm(dim=-1), atol=1e-5)
    assert not torch.allclose(turned, skeletons, atol=0.1)
    assert not stgcn.turn(skeletons, torch.Generator().manual_seed(0), 0.1)[1, 1].any()


def test_moving_a_picture_keeps_shapes_and_confidence():
    skeletons = torch.rand(3, 2, 4, 16, 3)
    skeletons[1, 1] = 0  # nobody
    moved = stgcn.move(skeletons, torch.Generator().manual_seed(0), 0.1, 0.2)
    assert torch.equal(moved[..., 2], skeletons[..., 2]) and not moved[1, 1].any()
    for before, after in zip(skeletons[..., :2], moved[..., :2], strict=True):
        scale = (after[0, 0, 1] - after[0, 0, 0]) / (before[0, 0, 1] - before[0, 0, 0])
        assert torch.allclose(scale[0], scale[1], atol=1e-4) and 0.9 <= scale[0] <= 1.1
        shift = after[0] - scale[0] * before[0]
        assert torch.allclose(shift, shift[0, 0].expand_as(shift), atol=1e-5) and shift.abs().max() <= 0.2
    assert torch.equal(stgcn.move(skeletons, torch.Generator(), 0.0, 0.0), skeletons)


def test_padding_and_order_of_persons_change_no_features():
    torch.manual_seed(0)
    settings = stgcn.Settings(channels=(8, 8), strides=(1, 2))
    model = stgcn.STGCN(5, LAYOUT, settings).eval()
    one, two = torch.randn(2, 1, 4, 16, 3)
    nobody = torch.zeros_like(one)
    with torch.no_grad():
        alone, other = model(torch.stack([one, two]))[0]
        padded, pair, swapped = model(
            torch.stack([torch.cat(p) for p in ((one, nobody), (one, two), (two, one))])
        )[0]
    assert torch.allclose(padded, alone, atol=1e-6)
    assert torch.allclose(pair, (alone + other) / 2, atol=1e-6)
    assert torch.allclose(swapped, pair, atol=1e-6)


def test_padding_does_not_reach_the_batch_norm():
    torch.manual_seed(0)
    model = stgcn.STGCN(5, LAYOUT, stgcn.Settings(channels=(8,), strides=(1,), drop=0.0))
    skeletons = torch.randn(4, 1, 4, 16, 3)
    plain = model(skeletons)[0]
    mean = model.norm.running_mean.clone()
    model.norm.reset_running_stats()
    padded = model(torch.cat([skeletons, torch.zeros_like(skeletons)], 1))[0]
    assert torch.allclose(padded, plain) and torch.allclose(model.norm.running_mean, mean)


@pytest.mark.parametrize("persons", [1, 2])
def test_skeletons_in_pixels_relative_to_the_picture(clips, tmp_path, persons):
    card, manifest = clips
    joints, scores = np.full((1, 4, 16, 2), (200.0, 50)), np.full((1, 4, 16), 0.5)
    joints[0, :, 0], joints[0, :, 1] = (100, 50), (0, 100)
    skeletons.write_skeleton(tmp_path / "a.safetensors", LAYOUT, joints, scores, (200, 100))
    manifest = dataclasses.replace(
        manifest, rows=manifest.rows.assign(skeleton=str(tmp_path / "a.safetensors"))
    )
    card = change(card, "exo_skl", source="exo_joints_2d", persons=persons)
    clip = stgcn.clips(job_of(card, "exo_skl"), manifest)[3]
    assert clip.shape == (persons, 16, 16, 3) and not clip[1:].any()
    for joint, place in ((0, (0, 0)), (1, (-1, 1)), (2, (1, 0))):
        assert torch.equal(clip[0, :, joint], torch.tensor([*place, 0.5]).expand(16, 3))


def test_stgcn_learns_from_pixels_of_up_to_two_people(clips, tmp_path):
    card, manifest = clips
    files = []
    for row in range(len(manifest)):  # every other clip has a second person
        own = read_tensors(manifest.path(row, "skeleton"))["exo_joints_2d"].numpy()[None]
        files.append(str(tmp_path / f"{row}.safetensors"))
        people = np.concatenate([own, own + 5][: 1 + row % 2])
        skeletons.write_skeleton(files[-1], LAYOUT, people, None, (64, 64))
    manifest = dataclasses.replace(manifest, rows=manifest.rows.assign(skeleton=files))
    job = job_of(change(card, "exo_skl", source="exo_joints_2d", persons=2), "exo_skl")
    model = teachers.fit_teacher(job, manifest, tmp_path / "run")
    features = encode_all(job, model, manifest)
    check_features(features, manifest.rows["clip_id"].tolist(), 8, "exo_skl")


def test_sources_that_do_not_fit_are_refused(clips):
    card, manifest = clips
    with pytest.raises(ValueError, match="ego_hands.*joints_3d"):
        stgcn.clips(job_of(change(card, "exo_skl", source="ego_hands"), "exo_skl"), manifest)
    job = job_of(change(card, "exo_skl", source="exo_joints_2d"), "exo_skl")
    with pytest.raises(ValueError, match="skeleton.safetensors.*scores"):  # the embedded benchmark has none
        stgcn.clips(job, manifest)[0]


# --- pictures


def test_background_of_a_static_video_is_grey():
    frames = torch.randint(0, 256, (1, 3, 5, 5), dtype=torch.uint8).expand(6, 3, 5, 5).clone()
    assert (batches.subtract_background(frames) == 128).all()
    frames[2, :, 1, 1] = 255 - frames[0, :, 1, 1]  # for one frame something passes
    seen = batches.subtract_background(frames) != 128
    assert seen[2, :, 1, 1].any() and seen.sum() <= 3


def test_boxes_hold_head_and_hands_and_stay_in_the_picture():
    generator = torch.Generator().manual_seed(0)
    joints = torch.rand(12, 16, 2, generator=generator) * 60
    joints[:, LAYOUT.wrists[0]] += torch.linspace(0, 30, 12)[:, None]
    boxes = skego.hand_boxes(joints, LAYOUT, 96, 96, skego.Settings())
    assert boxes.min() >= -1e-4 and boxes.max() <= 96 + 1e-4
    size = boxes[:, 2:] - boxes[:, :2]
    assert torch.allclose(size[:, 0], size[:, 1], atol=1e-3) and (size > 3).all()
    for joint in (LAYOUT.head, *LAYOUT.wrists):
        points = joints[:, joint].clamp(0, 96)
        assert (points >= boxes[:, :2] - 1e-3).all() and (points <= boxes[:, 2:] + 1e-3).all()


def test_boxes_lean_towards_the_moving_hand():
    joints = torch.full((10, 16, 2), 48.0)
    joints[:, LAYOUT.wrists[0], 0] = 38
    joints[:, LAYOUT.wrists[1], 0] = 58 + torch.tensor([0.0, 4] * 5)
    boxes = skego.hand_boxes(joints, LAYOUT, 96, 96, skego.Settings())
    assert ((boxes[:, 0] + boxes[:, 2]) / 2 > 52).all()


def test_boxes_of_hands_hold_every_finger():
    joints = 20 + 40 * torch.rand(8, 21, 2, generator=torch.Generator().manual_seed(0))
    boxes = skego.hand_boxes(joints, LAYOUTS["hand-21"], 96, 96, skego.BoxSettings())
    assert (joints >= boxes[:, None, :2]).all() and (joints <= boxes[:, None, 2:]).all()


def test_boxes_follow_the_surest_person_in_a_picture_of_any_size(clips, tmp_path):
    card, manifest = clips
    joints = np.random.default_rng(0).uniform(40, 60, (2, 6, 16, 2)) + [[[[0, 0]]], [[[100, 0]]]]
    scores = np.stack([np.full((6, 16), 0.4), np.full((6, 16), 0.9)])
    skeletons.write_skeleton(tmp_path / "a.safetensors", LAYOUT, joints, scores, (200, 100))
    manifest = dataclasses.replace(
        manifest, rows=manifest.rows.assign(skeleton=str(tmp_path / "a.safetensors"))
    )
    boxes = skego.Boxes(job_of(card, "exo_skego"), manifest)
    expected = skego.hand_boxes(
        torch.tensor(joints[1], dtype=torch.float32), LAYOUT, 100, 200, skego.Settings()
    )
    assert torch.allclose(boxes.of(0, 100, 200), expected, atol=1e-3)
    assert torch.allclose(boxes.of(0, 200, 400), 2 * expected, atol=1e-3)


def clip_crops(card: Card, **settings) -> batches.Job:
    """The card's Sk-Ego as frozen CLIP, with one layer and small pictures."""
    shown = {"image_size": 32, "num_frames": 3, "model_args": {"depth": 1}} | settings
    teacher = dataclasses.replace(card.teachers["exo_skego"], model="skego_clip", width=512, settings=shown)
    return job_of(dataclasses.replace(card, teachers={**card.teachers, "exo_skego": teacher}), "exo_skego")


def test_clip_crops_as_large_as_the_picture_are_the_frames(clips):
    card, manifest = clips
    whole = clip_crops(card, margin=1000.0, image_size=64)
    assert torch.equal(skego_clip.clips(whole, manifest)[2], foundation.clips(whole, manifest)[2])


def test_clip_crops_are_those_of_the_trained_teacher(clips):
    """Both cut the same boxes out of the same frames, if they are given the same numbers."""
    card, manifest = clips
    frames = skego_clip.clips(clip_crops(card, num_frames=6, image_size=36), manifest)
    card = change(card, "exo_skego", num_frames=6, subtract_background=False)
    trained = skego.Crops(job_of(card, "exo_skego"), manifest)
    for row in range(4):
        assert torch.equal(frames[row], trained.frames(row))


def test_clip_crops_to_features(clips, tmp_path):
    card, manifest = clips
    name = skego_clip.Settings().name
    torch.manual_seed(0)
    weights = timm.create_model(name, depth=1, img_size=32).state_dict()
    write_tensors(tmp_path / "vit_base_patch16_clip_224.openai.safetensors", weights)
    job = dataclasses.replace(clip_crops(card), weights=str(tmp_path))
    model = teachers.load_teacher(job, tmp_path)
    assert not teachers.is_fitted_here(job)
    few = dataclasses.replace(manifest, rows=manifest.rows[:3])
    features = encode_all(job, model, few)
    check_features(features, few.rows["clip_id"].tolist(), 512, "exo_skego")
    assert "head and hands" in skego_clip.notes(job)["preprocessing"]


def test_crop_of_the_whole_picture_is_the_picture():
    frames = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    assert torch.equal(skego.crop(frames, torch.tensor([[0.0, 0, 16, 16]] * 3), 16), frames)


def test_whole_random_crop_is_the_picture():
    pictures = torch.randn(2, 4, 8, 8)
    same = images.random_crop(pictures, (1.0, 1.0), torch.Generator().manual_seed(0))
    assert torch.allclose(same, pictures, atol=1e-5)


def test_pooling():
    codes = torch.randn(3, 5, 4)
    pooled = images.pool_frames(codes, "mean_std_speed")
    assert pooled.shape == (3, images.pooled_width(4, "mean_std_speed"))
    expected = np.concatenate(
        [codes.numpy().mean(1), codes.numpy().std(1), np.abs(np.diff(codes.numpy(), axis=1)).mean(1)], 1
    )
    assert np.allclose(pooled.numpy(), expected, atol=1e-6)
    with pytest.raises(ValueError, match="mean_std"):
        images.pooled_width(4, "maximum")


# --- losses


def test_depth_loss_ignores_scale_and_shift_alone():
    torch.manual_seed(0)
    predicted, target = torch.rand(4, 8, 8), torch.rand(4, 8, 8)
    loss = depth.scale_shift_invariant_loss(predicted, target)
    scaled = depth.scale_shift_invariant_loss(predicted, 7 * target - 3)
    assert loss > 0.1 and torch.allclose(loss, scaled, atol=1e-5)
    assert depth.scale_shift_invariant_loss(0.2 * target + 5, target) < 1e-4
    assert depth.scale_shift_invariant_loss(-target, target) > 0.5  # near and far swapped


def test_sigmoid_loss_against_a_loop():
    torch.manual_seed(0)
    image, text, scale, bias = torch.randn(4, 6), torch.randn(4, 6), torch.tensor(8.0), torch.tensor(-3.0)
    same = torch.eye(4, dtype=torch.bool)
    same[0, 2] = same[2, 0] = True  # two clips with one caption
    total = 0.0
    for i in range(4):
        for j in range(4):
            cosine = float(image[i] @ text[j] / (image[i].norm() * text[j].norm()))
            logit = 8 * cosine - 3
            total += math.log1p(math.exp(-logit if same[i, j] else logit))
    assert siglip.sigmoid_loss(image, text, scale, bias, same).item() == pytest.approx(total / 4, rel=1e-5)


def test_vocabulary_and_tokens():
    known = siglip.vocabulary(["A person runs.", "a dog"])
    assert known == {"a": 1, "dog": 2, "person": 3, "runs": 4}
    assert siglip.tokens(["a dog", "Person, a cat runs"], known).tolist() == [[1, 2, 0], [3, 1, 4]]


def test_dino_loss_against_numpy():
    generator = np.random.default_rng(0)
    student, teacher = generator.normal(size=(5, 3, 4)), generator.normal(size=(5, 2, 4))
    centre = generator.normal(size=4)
    total, pairs = 0.0, 0
    for g in range(2):
        for v in range(3):
            if g == v:
                continue
            pairs += 1
            for b in range(5):
                p = np.exp((teacher[b, g] - centre) / 0.04)
                q = np.exp(student[b, v] / 0.1)
                total -= (p / p.sum() * np.log(q / q.sum())).sum() / 5
    loss = dino.dino_loss(*map(torch.tensor, (student, teacher, centre)), 0.1, 0.04)
    assert loss.item() == pytest.approx(total / pairs)


def test_dino_teacher_and_centre_follow_slowly():
    torch.manual_seed(0)
    settings = dino.Settings(depth=1, heads=2, prototypes=6, bottleneck=8, momentum=0.9, centre_momentum=0.75)
    student = dino.Dino(16, 32, settings)
    objective = dino.SelfDistillation(student, settings)
    before = {name: value.clone() for name, value in objective.teacher.named_parameters()}
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    objective.follow()
    for name, value in objective.teacher.named_parameters():
        assert torch.allclose(value, before[name] + 0.1, atol=1e-5), name
    scores = torch.randn(3, 2, 6)
    objective.move_centre(scores)
    assert torch.allclose(objective.centre, 0.25 * scores.mean((0, 1)))
    trained = {id(parameter) for parameter in objective.parameters() if parameter.requires_grad}
    assert not trained  # the optimiser gets the student from the learner, and nothing here


def test_centring_takes_away_what_all_clips_share():
    torch.manual_seed(0)
    student, teacher = torch.randn(6, 3, 4), torch.randn(6, 2, 4)
    shift = torch.tensor([5.0, 0, 0, -5])
    plain = dino.dino_loss(student, teacher, torch.zeros(4), 0.1, 0.04)
    assert torch.allclose(dino.dino_loss(student, teacher + shift, shift, 0.1, 0.04), plain, atol=1e-4)


# --- refusals


def test_unknown_settings_models_and_teachers_are_refused(clips):
    card, _ = clips
    with pytest.raises(ValueError, match="patches.*valid fields are.*windows_per_clip"):
        job_of(change(card, "ego_depth", patches=3), "ego_depth")
    with pytest.raises(ValueError, match="exo_skl"):
        job_of(card, "exo_sound")
    other = dataclasses.replace(card.teachers["exo_rgb"], model="slowfast")
    with pytest.raises(ValueError, match="slowfast.*timesformer"):
        job_of(dataclasses.replace(card, teachers={"exo_rgb": other}), "exo_rgb")


def test_missing_captions_are_refused_by_name(clips, tmp_path):
    card, manifest = clips
    rows = manifest.rows.copy()
    rows.loc[3, "caption"] = None
    lacking = dataclasses.replace(manifest, rows=rows)
    with pytest.raises(ValueError, match=rows["clip_id"][3]):
        teachers.fit_teacher(job_of(card, "ego_siglip"), lacking, tmp_path / "run")


def test_width_that_does_not_divide_is_refused(clips, tmp_path):
    card, manifest = clips
    card = change(card, "ego_depth", pooling="mean_std_speed")
    with pytest.raises(ValueError, match="does not divide by 3"):
        teachers.fit_teacher(job_of(card, "ego_depth"), manifest, tmp_path / "run")


# --- from fit to features


@pytest.mark.parametrize("key", TEACHERS)
def test_fit_and_encode(clips, tmp_path, key):
    card, manifest = clips
    job, folder = job_of(card, key), tmp_path / key
    draws = torch.random.get_rng_state()
    model = teachers.fit_teacher(job, manifest, folder)
    assert torch.equal(draws, torch.random.get_rng_state())  # training leaves the caller's draws alone
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "history.jsonl", "metrics.json", "model.safetensors", "finished",
    }  # fmt: skip
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    features = encode_all(job, model, manifest)
    check_features(features, manifest.rows["clip_id"].tolist(), card.teachers[key].width, key)

    written = (folder / "model.safetensors").stat().st_mtime_ns
    again = teachers.fit_teacher(job, manifest, folder)
    assert (folder / "model.safetensors").stat().st_mtime_ns == written  # reused, not trained anew
    assert torch.equal(encode_all(job, again, manifest), features)
    assert teachers.fingerprint(job, again) == teachers.fingerprint(job, model)
    assert all(
        isinstance(text, str) for text in teachers.teacher_module(job.teacher.model).notes(job).values()
    )
    with pytest.raises(ValueError, match="seed"):
        teachers.fit_teacher(dataclasses.replace(job, seed=1), manifest, folder)


@pytest.mark.parametrize("key", ["exo_skl", "ego_dino"])
def test_an_interrupted_fit_resumes_to_the_same_weights(clips, tmp_path, monkeypatch, key):
    card, manifest = clips
    job = job_of(card, key)
    whole = teachers.fit_teacher(job, manifest, tmp_path / "whole")

    objective = {
        "exo_skl": "uniego_utils.objectives.Classification",
        "ego_dino": "uniego_utils.teachers.dino.SelfDistillation",
    }
    target = objective[key]
    calls = []
    module, _, name = target.rpartition(".")
    original = getattr(__import__(module, fromlist=[name]), name).forward

    def stops(self, *arguments):
        calls.append(0)
        if len(calls) == 4:  # in the second epoch: two batches an epoch
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(f"{target}.forward", stops)
    with pytest.raises(KeyboardInterrupt):
        teachers.fit_teacher(job, manifest, tmp_path / "part")
    assert (tmp_path / "part" / "checkpoint.safetensors").is_file()
    resumed = teachers.fit_teacher(job, manifest, tmp_path / "part")
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_siglip_learns_captions_apart():
    """The objective's gradient pulls a pair together: a few steps on two captions find them."""
    torch.manual_seed(0)
    captions = siglip.tokens(["runs fast", "jumps high"] * 4, siglip.vocabulary(["runs fast", "jumps high"]))
    objective = siglip.SigmoidObjective(captions, 4, siglip.Settings(embedding=8))
    embeddings = torch.nn.Parameter(torch.randn(8, 8))
    optimizer = torch.optim.Adam([embeddings, *objective.parameters()], 0.05)
    batch = {"rows": torch.arange(8)}
    for _ in range(40):
        losses = objective(embeddings, embeddings, batch)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
    assert losses["found"] == 1.0
    assert F.cosine_similarity(embeddings[0], embeddings[2], dim=0) > F.cosine_similarity(
        embeddings[0], embeddings[1], dim=0
    )
