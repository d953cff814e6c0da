"""Merging (equation 2): blends against loops, slopes against autograd through the blend, choices by hand."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from uniego_utils import merging
from uniego_utils.backbones import create_backbone
from uniego_utils.cards import MergeConfig
from uniego_utils.experiment import Experiment, create_experiment
from uniego_utils.merging import (
    LEVELS,
    MODEL,
    STARTS,
    Mixer,
    greedy_soup,
    group_weights,
    learn_alpha,
    merge_proxies,
    merge_weights,
    name_layers,
    reestimate_statistics,
    search_scale,
    shared_start,
    stack_proxies,
    sum_of_task_vectors,
    ties_vector,
    time_step,
)
from uniego_utils.recipes import RELEASED
from uniego_utils.runs import digest, write_json

CPU = torch.device("cpu")
R = 3  # proxies
LAYERS = {
    "inner.weight": "inner", "inner.bias": "inner", "head.weight": "head", "head.bias": "head",
    **{f"norm.{entry}": "norm" for entry in ("weight", "bias", "running_mean", "running_var")},
}  # fmt: skip
TENSORS = {name: name for name in LAYERS if "running" not in name} | {
    "norm.running_mean": "norm.weight", "norm.running_var": "norm.weight",
}  # fmt: skip
GROUPS = {"model": dict.fromkeys(LAYERS, "all"), "layer": LAYERS, "parameter": TENSORS}  # Student's, by hand


class Student(nn.Module):
    """The smallest network with all that matters here: two layers, running statistics, dropout."""

    def __init__(self):
        super().__init__()
        self.inner, self.norm, self.drop = nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.5)
        self.head = nn.Linear(5, 3)

    def forward(self, clips):
        features = self.drop(self.norm(self.inner(clips)).tanh())
        return features, self.head(features)


@pytest.fixture
def proxies():
    weights = []
    for seed in range(R):
        torch.manual_seed(seed)
        student = Student()
        nn.init.uniform_(student.norm.weight, 0.3, 3)  # fresh layers would all have ones and zeros
        nn.init.normal_(student.norm.bias)
        student.norm.running_mean.normal_()
        student.norm.running_var.uniform_(0.5, 2)
        student.norm.num_batches_tracked.fill_(10 + seed)
        weights.append(student.state_dict())
    return weights


@pytest.fixture
def batches():
    """Three batches, the last one smaller."""
    clips = torch.randn(20, 6, generator=torch.Generator().manual_seed(9))
    labels = torch.randint(3, (20,), generator=torch.Generator().manual_seed(10))
    return [{"clips": clips[i : i + 8], "labels": labels[i : i + 8]} for i in range(0, 20, 8)]


def test_blend_agrees_with_the_definition(proxies):
    alpha = torch.tensor([0.2, 0.5, 0.3])
    blend = merge_weights(proxies, alpha)
    assert blend.keys() == proxies[0].keys()
    for name in ("inner.weight", "head.bias", "norm.weight", "norm.running_mean", "norm.running_var"):
        flat = [proxy[name].flatten().tolist() for proxy in proxies]
        slow = [0.2 * a + 0.5 * b + 0.3 * c for a, b, c in zip(*flat, strict=True)]
        torch.testing.assert_close(blend[name].flatten(), torch.tensor(slow))


def test_integer_entries_are_the_firsts(proxies):
    blend = merge_weights(proxies, torch.full((R,), 1 / R))
    assert blend["norm.num_batches_tracked"] == 10 and blend["norm.num_batches_tracked"].dtype == torch.long


@pytest.mark.parametrize("chosen", range(R))
def test_one_hot_alpha_returns_that_proxy_exactly(proxies, chosen):
    blend = merge_weights(proxies, F.one_hot(torch.tensor(chosen), R).float())
    floats = [name for name, value in blend.items() if value.is_floating_point()]
    assert all(torch.equal(blend[name], proxies[chosen][name]) for name in floats)


def test_the_proxies_are_left_as_they_were(proxies):
    before = [{name: value.clone() for name, value in proxy.items()} for proxy in proxies]
    blend = merge_weights(proxies, torch.full((R,), 1 / R))
    blend["inner.weight"].zero_()
    assert all(torch.equal(old[n], new[n]) for old, new in zip(before, proxies, strict=True) for n in old)


@pytest.mark.parametrize(
    "alpha",
    [
        [0.5, 0.5],
        [0.5, 0.6, 0.1],
        [1.2, -0.2, 0.0],
        [0.2, 0.2, 0.2],
        [float("nan"), 0.5, 0.5],
        [[0.2, 0.5, 0.3]],
    ],
)
def test_refuses_alpha_off_the_simplex(proxies, alpha):
    with pytest.raises(ValueError, match="3 proxies need as many weights"):
        merge_weights(proxies, torch.tensor(alpha))


def test_takes_alpha_in_double_precision(proxies):
    blend = merge_weights(proxies, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(blend["inner.weight"], proxies[1]["inner.weight"], check_dtype=False)


def test_refuses_other_architectures(proxies):
    other = create_backbone("timesformer", 3, 8, 32, "tiny").state_dict()
    wider = proxies[2] | {"head.weight": torch.zeros(4, 5)}
    for odd in (other, wider):
        with pytest.raises(ValueError, match="differ in architecture"):
            merge_weights([*proxies[:2], odd], torch.full((R,), 1 / R))


def learn(proxies, batches, config, level="model", model=None):
    model = model or Student()
    stacked = stack_proxies(model.state_dict(), range(len(proxies)), proxies.__getitem__)
    return learn_alpha(
        model, stacked, group_weights(model, level), lambda epoch: batches, config, CPU, progress=False
    )


def slow_alpha(proxies, batches, config, groups):
    """Adam on the same loss, with autograd through the blend itself: group -> alpha, and losses."""
    model = Student().eval()
    raw = {group: torch.zeros(len(proxies), requires_grad=True) for group in groups.values()}
    optimizer = torch.optim.Adam(raw.values(), config.lr, weight_decay=config.weight_decay)
    losses = []
    for _ in range(config.epochs):
        total = clips = 0
        for batch in batches:
            alpha = {group: values.exp() / values.exp().sum() for group, values in raw.items()}
            blend = {
                name: sum(alpha[group][r] * proxies[r][name] for r in range(len(proxies)))
                for name, group in groups.items()
            }
            # running statistics are buffers: they follow alpha but carry no gradient
            blend = {name: value.detach() if "running" in name else value for name, value in blend.items()}
            logits = functional_call(model, blend, (batch["clips"],))[1]
            loss = F.cross_entropy(logits, batch["labels"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total, clips = total + loss.item() * len(logits), clips + len(logits)
        losses.append(total / clips)
    return {group: (v.exp() / v.exp().sum()).detach() for group, v in raw.items()}, losses


@pytest.mark.parametrize("level", GROUPS)
def test_alpha_agrees_with_autograd_through_the_blend(proxies, batches, level):
    config = MergeConfig(epochs=3, lr=0.1, weight_decay=0.05)
    alpha, history = learn(proxies, batches, config, level)
    slow, losses = slow_alpha(proxies, batches, config, GROUPS[level])
    assert len(alpha) == len(slow) == {"model": 1, "layer": 3, "parameter": 6}[level]
    for group, expected in slow.items():
        learned = alpha[MODEL if level == "model" else group]
        assert (learned - 1 / R).abs().max() > 0.02  # it moved
        torch.testing.assert_close(learned, expected, rtol=1e-4, atol=2e-5)
    assert [record["loss"] for record in history] == pytest.approx(losses, rel=1e-4)


@pytest.mark.parametrize("level", GROUPS)
def test_of_identical_proxies_none_is_preferred(proxies, batches, level):
    alpha, _ = learn([proxies[0]] * R, batches, MergeConfig(epochs=2, lr=0.1), level)
    for row in alpha.values():  # no slope, and Adam makes steps of rounding errors: not exactly
        torch.testing.assert_close(row, torch.full((R,), 1 / R), atol=0.2, rtol=0)
    model = Student()
    before = torch.tensor([F.cross_entropy(run(model, proxies[0], b), b["labels"]) for b in batches])
    _, history = learn([proxies[0]] * R, batches, MergeConfig(epochs=2, lr=0.1), level)
    sizes = torch.tensor([len(batch["labels"]) for batch in batches])
    expected = ((before * sizes).sum() / sizes.sum()).item()
    assert [record["loss"] for record in history] == pytest.approx([expected] * 2, rel=1e-5)


def run(model, weights, batch):
    model.load_state_dict(weights)
    with torch.no_grad():
        return model.eval()(batch["clips"])[1]


@pytest.mark.parametrize("level", GROUPS)
def test_one_proxy_alone_has_all_the_weight(proxies, batches, level):
    alpha, _ = learn(proxies[:1], batches, MergeConfig(), level)
    assert all(torch.equal(row, torch.ones(1)) for row in alpha.values())


def test_alpha_stays_on_the_simplex_and_is_recorded_per_epoch(proxies, batches):
    alpha, history = learn(proxies, batches, MergeConfig(epochs=4, lr=1.0))
    assert (alpha[MODEL] >= 0).all() and alpha[MODEL].sum().item() == pytest.approx(1, abs=1e-6)
    assert [record["epoch"] for record in history] == [1, 2, 3, 4]
    assert history[-1]["alpha"] == alpha[MODEL].tolist()
    layers, history = learn(proxies, batches, MergeConfig(epochs=1), "layer")
    assert history[0]["alpha"] == [row.tolist() for row in layers.values()]


def test_a_loss_that_is_not_finite_names_the_epoch(proxies, batches):
    seen = []

    def broken_later(epoch):
        seen.append(epoch)
        return [{**batch, "clips": batch["clips"] * (math.nan if epoch == 1 else 1)} for batch in batches]

    model = Student()
    stacked = stack_proxies(model.state_dict(), range(R), proxies.__getitem__)
    groups = group_weights(model, "layer")
    with pytest.raises(FloatingPointError, match="nan in epoch 2"):
        learn_alpha(model, stacked, groups, broken_later, MergeConfig(epochs=3), CPU, progress=False)
    assert seen == [0, 1]


def test_a_clearly_best_proxy_is_found(proxies, batches):
    torch.manual_seed(1)  # one proxy is trained on these clips, the others are not
    good = Student()
    good.load_state_dict(proxies[1])
    good.eval()
    optimizer = torch.optim.Adam(good.parameters(), 0.05)
    for _ in range(60):
        for batch in batches:
            optimizer.zero_grad()
            F.cross_entropy(good(batch["clips"])[1], batch["labels"]).backward()
            optimizer.step()
    pool = [proxies[0], {n: v.detach() for n, v in good.state_dict().items()}, proxies[2]]
    config = MergeConfig(epochs=20, lr=0.1, weight_decay=0.0)
    alpha, history = learn(pool, batches, config)
    assert alpha[MODEL].argmax() == 1 and alpha[MODEL][1] > 0.8
    assert history[-1]["loss"] < history[0]["loss"]


def test_learning_alpha_of_a_real_backbone_is_deterministic():
    pool = []
    for seed in range(2):
        torch.manual_seed(seed)
        pool.append(create_backbone("timesformer", 3, 8, 32, "tiny").state_dict())
    clips = torch.randn(4, 3, 8, 32, 32, generator=torch.Generator().manual_seed(0))
    batches = [{"clips": clips, "labels": torch.tensor([0, 1, 2, 0])}]
    results = []
    for _ in range(2):
        model = create_backbone("timesformer", 3, 8, 32, "tiny")
        results.append(learn(pool, batches, MergeConfig(), "layer", model)[0])
    assert list(results[0]) == ["stem", "blocks.0", "blocks.1", "norm", "head"]
    assert all(torch.equal(results[0][layer], results[1][layer]) for layer in results[0])


def test_reestimated_statistics_are_those_of_all_inputs(proxies, batches):
    student = Student()
    student.load_state_dict(proxies[0])
    batches = [{"clips": batch["clips"] + 2 * i} for i, batch in enumerate(batches)]  # batches that differ
    reestimate_statistics(student, batches, CPU)
    inputs = torch.cat([b["clips"] for b in batches]) @ student.inner.weight.T + student.inner.bias
    torch.testing.assert_close(student.norm.running_mean, inputs.mean(0))
    torch.testing.assert_close(student.norm.running_var, inputs.var(0), rtol=0.06, atol=0)  # over n or n - 1
    assert not student.training


def test_reestimation_changes_no_parameter(proxies, batches):
    student = Student()
    student.load_state_dict(proxies[0])
    reestimate_statistics(student, batches, CPU)
    assert all(torch.equal(value, proxies[0][name]) for name, value in student.named_parameters())


def test_the_layers_of_a_timesformer():
    layers = name_layers(list(create_backbone("timesformer", 3, 8, 32, "tiny").state_dict()))
    stem = ["cls_token", "pos_embed", "time_embed"]
    assert {layers[name] for name in stem} == {"stem"}
    assert {layers[name] for name in layers if name.startswith("patch_embed.")} == {"stem"}
    assert layers["blocks.1.mlp.fc1.bias"] == "blocks.1"
    assert layers["norm.weight"] == "norm" and layers["head.bias"] == "head"


@pytest.mark.parametrize(
    ("names", "layers"),
    [
        (
            ["pos", "patch.0.weight", "model.blocks.9.a", "model.blocks.10.mlp.0.weight", "model.norm.bias"],
            ["stem", "stem", "model.blocks.9", "model.blocks.10", "model"],
        ),
        (
            [
                "stem.proj.weight",
                "stages.0.0.attn.weight",
                "stages.1.4.mlp.fc1.bias",
                "head.weight",
            ],
            ["stem", "stages.0.0", "stages.1.4", "head"],
        ),
        (["conv1.weight", "layer1.0.bn1.weight", "fc.bias"], ["conv1", "layer1.0", "fc"]),
        (["encoder.layer.3.attn.weight", "prompts.0"], ["encoder.layer.3", "prompts"]),
    ],
)
def test_layers_of_other_backbones(names, layers):
    assert list(name_layers(names).values()) == layers


@pytest.mark.parametrize("level", GROUPS)
def test_running_statistics_belong_to_the_group_of_their_module(level):
    groups = group_weights(Student(), level)
    assert groups["norm.running_mean"] == groups["norm.running_var"] == groups["norm.weight"]


def test_refuses_an_unknown_level():
    with pytest.raises(ValueError, match="unknown level 'block'; choose one of model, layer, parameter"):
        group_weights(Student(), "block")


def test_refuses_proxies_that_are_not_finite_by_name(proxies):
    proxies[1]["norm.running_var"][2] = math.inf
    with pytest.raises(
        ValueError, match=r"proxy exo_skl has weights that are not finite in norm\.running_var"
    ):
        stack_proxies(
            Student().state_dict(), ["exo_rgb", "exo_skl"], {"exo_rgb": proxies[0], "exo_skl": proxies[1]}.get
        )


def test_refuses_proxies_of_another_backbone_than_the_presets(proxies):
    like = Student().state_dict() | {"inner.bias": torch.zeros(1)}  # would broadcast
    with pytest.raises(ValueError, match="differ in architecture"):
        stack_proxies(like, range(R), proxies.__getitem__)


def pool_of(*vectors, start):
    """Proxies with one tensor, which lie at start + vector."""
    return {"w": torch.stack([torch.tensor(v, dtype=torch.float64) for v in vectors]) + start}, {"w": start}


def test_task_arithmetic_is_the_sum_of_differences(proxies):
    names = ["inner.weight", "head.bias"]
    stacked = {name: torch.stack([proxy[name] for proxy in proxies[1:]]) for name in names}
    total = sum_of_task_vectors(stacked, proxies[0])
    assert total.keys() == set(names)
    for name in names:
        for place, value in enumerate(total[name].flatten().tolist()):
            origin = proxies[0][name].flatten()[place].item()
            slow = sum(proxy[name].flatten()[place].item() - origin for proxy in proxies[1:])
            assert value == pytest.approx(slow, abs=1e-6)


def slow_ties(vectors, kept):
    """TIES on lists of numbers, as its algorithm is written."""
    trimmed = []
    for vector in vectors:
        count = max(1, int(kept * len(vector)))
        edge = sorted((abs(v) for v in vector), reverse=True)[count - 1]
        trimmed.append([v if abs(v) >= edge else 0.0 for v in vector])
    merged = []
    for column in zip(*trimmed, strict=True):
        up, down = sum(v for v in column if v > 0), -sum(v for v in column if v < 0)
        agreeing = [v for v in column if (v > 0 and up > down) or (v < 0 and down > up)]
        merged.append(sum(agreeing) / len(agreeing) if agreeing else 0.0)
    return merged


@pytest.mark.parametrize("kept", [0.05, 0.2, 0.5, 1.0])
def test_ties_agrees_with_its_algorithm(kept):
    vectors = torch.randn(5, 40, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    start = torch.randn(40, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    split = {"a": slice(0, 12), "b": slice(12, 40)}  # trimming looks at all tensors together
    stacked = {name: (vectors + start)[:, part] for name, part in split.items()}
    merged = ties_vector(stacked, {name: start[part] for name, part in split.items()}, kept)
    slow = slow_ties((vectors + start - start).tolist(), kept)
    torch.testing.assert_close(torch.cat([*merged.values()]), torch.tensor(slow, dtype=torch.float64))


@pytest.mark.parametrize(
    ("vectors", "expected"),
    [
        ([[2.0, 1.0], [-2.0, 3.0]], [0.0, 2.0]),  # a tie in sign elects nobody
        (
            [[3.0, -1.0], [-1.0, -3.0], [-1.0, 0.0]],
            [3.0, -2.0],
        ),  # by magnitude, not by votes; zeros don't count
        ([[0.0, 0.0], [0.0, 0.0]], [0.0, 0.0]),
        ([[4.0, 0.0], [0.0, 0.0]], [4.0, 0.0]),
    ],
)
def test_ties_elects_by_magnitude(vectors, expected):
    stacked, start = pool_of(*vectors, start=torch.tensor([8.0, -4.0], dtype=torch.float64))
    assert ties_vector(stacked, start, 1.0)["w"].tolist() == expected == slow_ties(vectors, 1.0)


def test_ties_trims_each_task_vector_and_keeps_equals_at_the_edge():
    vectors = [[1.0, -5.0, 2.0, 0.0, 0.5], [100.0, 50.0, 60.0, 100.0, 1.0]]
    stacked, start = pool_of(*vectors, start=torch.zeros(5, dtype=torch.float64))
    assert ties_vector(stacked, start)["w"].tolist() == [100.0, -5.0, 0.0, 100.0, 0.0]


def soup(scores, accuracies):
    """The soup where a mixture's accuracy is listed by who is in it; also what was looked at."""
    looked = []

    def look(alpha):
        members = "".join(name for name, share in zip(scores, alpha.tolist(), strict=True) if share)
        assert [share for share in alpha.tolist() if share] == pytest.approx(
            [1 / len(members)] * len(members)
        )
        looked.append(members)
        return {"val_top1": accuracies[members], "val_nll": 1.0}

    named = {name: dict(zip(("val_top1", "val_nll"), score, strict=True)) for name, score in scores.items()}
    alpha, history = greedy_soup(named, look)
    return dict(zip(scores, alpha.tolist(), strict=True)), looked, [record["kept"] for record in history]


def test_soup_adds_what_does_not_harm():
    scores = {"a": (50, 1.0), "b": (70, 1.0), "c": (60, 1.0)}
    alpha, looked, kept = soup(scores, {"b": 70, "bc": 69, "ab": 71})
    assert alpha == {"a": 0.5, "b": 0.5, "c": 0.0}
    assert looked == ["b", "bc", "ab"] and kept == [True, False, True]


def test_soup_keeps_at_equal_accuracy_and_compares_with_the_soup_so_far():
    scores = {"a": (70, 1.0), "b": (60, 1.0), "c": (50, 1.0)}
    alpha, looked, kept = soup(scores, {"a": 70, "ab": 72, "abc": 71})
    assert kept == [True, True, False] and alpha == {"a": 0.5, "b": 0.5, "c": 0.0}
    alpha, _, kept = soup(scores, {"a": 70, "ab": 70, "abc": 70})
    assert kept == [True] * 3 and alpha["c"] == pytest.approx(1 / 3)


def test_soup_tries_equals_in_order_of_their_loss():
    scores = {"a": (60, 2.0), "b": (60, 1.0), "c": (60, 1.5)}
    assert soup(scores, {"b": 60, "bc": 0, "ab": 0})[1] == ["b", "bc", "ab"]


def test_soup_of_one():
    assert soup({"a": (10, 1.0)}, {"a": 10})[0] == {"a": 1.0}


class Hill:
    """Stands for a Mixer: the loss is lowest at one scale."""

    def __init__(self, best):
        self.best, self.at = best, None

    def go(self, start, direction, scale):
        self.at = scale

    def look(self):
        return {"val_top1": 100 * self.at, "val_nll": abs(self.at - self.best)}


def test_the_scale_of_lowest_validation_loss_is_left_in_the_model():
    hill = Hill(0.6)
    history = search_scale(hill, {}, {}, (0.3, 0.5, 2.0))
    assert [record["kept"] for record in history] == [False, True, False] and hill.at == 0.5


def test_a_mixture_is_the_start_plus_the_scaled_direction_with_measured_statistics(proxies, batches):
    mixer = Mixer(None, Student(), stack_proxies(proxies[0], range(R), proxies.__getitem__), {})
    settled = []
    mixer.settle = lambda: settled.append(mixer.model.norm.running_mean.clone())
    direction = {name: torch.ones_like(value) for name, value in mixer.model.named_parameters()}
    mixer.go(proxies[2], direction, 0.25)
    for name, value in mixer.model.named_parameters():
        torch.testing.assert_close(value.detach(), proxies[2][name] + 0.25)
    torch.testing.assert_close(settled[0], sum(proxy["norm.running_mean"] for proxy in proxies) / R)


def test_one_proxy_alone_keeps_its_statistics(proxies):
    mixer = Mixer(None, Student(), stack_proxies(proxies[0], range(R), proxies.__getitem__), {})
    settled = []
    mixer.settle = lambda: settled.append(True)
    mixer.mix_whole(torch.tensor([0.0, 1.0, 0.0]))
    assert not settled
    assert torch.equal(mixer.model.norm.running_var, proxies[1]["norm.running_var"])
    mixer.mix({"inner": torch.eye(R)[0], "norm": torch.eye(R)[1], "head": torch.eye(R)[1]}, LAYERS)
    assert settled  # one proxy a layer, but not the same


@pytest.fixture
def experiment(tmp_path):
    return create_experiment(dataset="mocap", preset="", seed=0, outputs=str(tmp_path))


def test_merge_proxies_refuses_unknown_starts(experiment):
    with pytest.raises(ValueError, match="unknown start model, fisher; choose of merged, layer, parameter"):
        merge_proxies(experiment, ["merged", "model", "fisher"])


@pytest.fixture
def described(experiment, monkeypatch):
    """starts -> their run folders' configs, of proxies in name only: no clips, no weights."""
    configs = {}
    monkeypatch.setattr(Experiment, "manifest", lambda self, split: SimpleNamespace(digest=f"{split} clips"))
    monkeypatch.setattr(merging, "stack_proxies", lambda *given: {})
    monkeypatch.setattr(
        merging, "start_run", lambda folder, config: configs.update({folder.name: config}) is None
    )
    for key in experiment.card.teachers:
        folder = experiment.folder("02_proxy") / key
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(key.encode())
        write_json(folder / "config.json", {"config": {"start": "one"}})

    def describe(starts):
        configs.clear()
        merge_proxies(experiment, starts)  # all taken for finished
        return configs

    return describe


def test_runs_that_exist_keep_their_description(described, experiment):
    proxies = {key: digest(key.encode()) for key in experiment.card.teachers}
    merge = {"epochs": 2, "batch_size": 32, "lr": 0.02, "weight_decay": 0.01}
    assert described(["merged", "average", "best"]) == {
        "merged": {"seed": 0, "proxies": proxies, "start": "merged", "merge": merge},
        "average": {"seed": 0, "proxies": proxies, "start": "average"},
        "best": {"seed": 0, "proxies": proxies, "start": "best"},
    }


def test_what_is_chosen_on_validation_clips_says_so(described):
    configs = described(STARTS)
    chosen = [name for name in STARTS if configs[name].get("validation") == "val clips"]
    assert chosen == ["soup", "arithmetic", "ties"]
    assert 1 / 9 in configs["arithmetic"]["scales"] and 1.0 in configs["ties"]["scales"]  # mean task vectors
    assert configs["ties"]["common_start"] == "one" and configs["layer"]["manifest"] == "train clips"


def test_the_recipes_rate_is_that_of_all_learned_starts(described, experiment):
    object.__setattr__(experiment, "recipe", RELEASED)  # the folder's name stays
    configs = described(list(LEVELS))
    assert [config["merge"]["lr"] for config in configs.values()] == [0.01] * 3
    assert [config["merge"]["weight_decay"] for config in configs.values()] == [0.0] * 3


def test_refuses_task_vectors_without_a_common_start(described, experiment):
    write_json(experiment.folder("02_proxy") / "exo_skl" / "config.json", {"config": {"start": "other"}})
    described(["merged", "soup"])
    with pytest.raises(ValueError, match="do not share one start, from which ties measures"):
        described(["ties"])


def test_refuses_another_start_than_the_proxies(experiment, monkeypatch):
    monkeypatch.setattr(Experiment, "manifest", lambda self, split: SimpleNamespace(digest=f"{split} clips"))
    start = {"w": torch.arange(3.0)}
    monkeypatch.setattr(merging, "common_start", lambda experiment: start)
    given = shared_start(experiment, digest(start["w"].numpy().tobytes()))
    assert torch.equal(given["w"], start["w"])
    with pytest.raises(ValueError, match="not the one that the proxies were trained from"):
        shared_start(experiment, digest(b"another"))


def test_a_step_of_alpha_costs_little_more_than_one_model(experiment):
    """At most 1.3 x a forward and backward pass of one model, plus one pass over the stacked proxies."""
    for _ in range(4):  # on a busy machine the fastest of a few runs may still be slow
        seconds = time_step(experiment, "parameter", repeats=3)  # the level with most groups
        if seconds["step"] <= 1.3 * seconds["plain"] + seconds["pass"]:
            return
    pytest.fail(f"one step takes {seconds}")
