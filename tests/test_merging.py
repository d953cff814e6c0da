"""Merging (equation 2): alpha against autograd through the blend, choices and directions by hand."""

import math
from timeit import timeit
from types import SimpleNamespace

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F
from toy_students import GROUPS, R, Student, draw_batches, draw_proxies, open_space

from uniego_utils import merging
from uniego_utils.backbones import create_backbone
from uniego_utils.cards import MergeConfig
from uniego_utils.experiment import Experiment, create_experiment
from uniego_utils.merging import (
    LEARNED,
    MergeLearner,
    average,
    best,
    greedy_soup,
    learn_alpha,
    merge,
    search_scale,
    shared_start,
    sum_of_task_vectors,
    ties_vector,
)
from uniego_utils.methods import MERGES
from uniego_utils.recipes import RELEASED
from uniego_utils.runs import digest, finish_run, write_json, write_tensors
from uniego_utils.weight_space import MODEL, group_weights


@pytest.fixture
def proxies():
    return draw_proxies()


@pytest.fixture
def batches():
    return draw_batches()


@pytest.fixture
def learn(tmp_path):
    """learn_alpha on some proxies and batches: alpha, history."""

    def run(proxies, batches, config, level="model", model=None):
        space = open_space(proxies, model)
        groups = group_weights(space.model, level)
        checkpoint = tmp_path / "checkpoint.safetensors"
        checkpoint.unlink(missing_ok=True)
        return learn_alpha(space, groups, lambda epoch: batches, config, 0, checkpoint, progress=False)

    return run


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
def test_alpha_agrees_with_autograd_through_the_blend(learn, proxies, batches, level):
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
def test_of_identical_proxies_none_is_preferred(learn, proxies, batches, level):
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
def test_one_proxy_alone_has_all_the_weight(learn, proxies, batches, level):
    alpha, _ = learn(proxies[:1], batches, MergeConfig(), level)
    assert all(torch.equal(row, torch.ones(1)) for row in alpha.values())


def test_alpha_stays_on_the_simplex_and_is_recorded_per_epoch(learn, proxies, batches):
    alpha, history = learn(proxies, batches, MergeConfig(epochs=4, lr=1.0))
    assert (alpha[MODEL] >= 0).all() and alpha[MODEL].sum().item() == pytest.approx(1, abs=1e-6)
    assert [record["epoch"] for record in history] == [1, 2, 3, 4]
    assert history[-1]["alpha"] == alpha[MODEL].tolist()
    layers, history = learn(proxies, batches, MergeConfig(epochs=1), "layer")
    assert history[0]["alpha"] == [row.tolist() for row in layers.values()]


def test_a_loss_that_is_not_finite_names_the_epoch(proxies, batches, tmp_path):
    epochs = []

    def broken_later(epoch):
        epochs.append(epoch)
        return [{**batch, "clips": batch["clips"] * (math.nan if epoch == 1 else 1)} for batch in batches]

    space = open_space(proxies)
    groups, config = group_weights(space.model, "layer"), MergeConfig(epochs=3)
    with pytest.raises(FloatingPointError, match="'loss': nan} in epoch 2") as raised:
        learn_alpha(space, groups, broken_later, config, 0, tmp_path / "checkpoint", progress=False)
    assert raised.value.__notes__ == ["Are the clips finite, and do the proxies share their start?"]
    assert epochs == [0, 1]


def test_an_interrupted_merge_resumes_to_the_same_bits(proxies, batches, tmp_path):
    """Epochs read other batches, so that a resumed run must know which comes next."""
    config, asked = MergeConfig(epochs=4, lr=0.1), []

    def epoch_batches(epoch, stop=None):
        asked.append(epoch)
        if epoch == stop:
            raise KeyboardInterrupt
        return batches[epoch % 3 :]

    def run(checkpoint, batches):
        space = open_space(proxies)
        groups = group_weights(space.model, "parameter")
        return learn_alpha(space, groups, batches, config, 0, tmp_path / checkpoint, progress=False)

    whole, history = run("whole", epoch_batches)
    with pytest.raises(KeyboardInterrupt):
        run("part", lambda epoch: epoch_batches(epoch, stop=2))
    asked.clear()
    resumed, records = run("part", epoch_batches)
    assert asked == [2, 3]
    assert all(torch.equal(resumed[group], row) for group, row in whole.items())
    for one, other in zip(records, history, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_a_clearly_best_proxy_is_found(learn, proxies, batches):
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


def test_learning_alpha_of_a_real_backbone_is_deterministic(learn):
    pool = []
    for seed in range(2):
        torch.manual_seed(seed)
        pool.append(create_backbone("timesformer", 3, 8, 32, "tiny").state_dict())
    clips = torch.randn(4, 3, 8, 32, 32, generator=torch.Generator().manual_seed(0))
    batches = [{"clips": clips, "labels": torch.tensor([0, 1, 2, 0]), "rows": torch.arange(4)}]
    results = []
    for _ in range(2):
        model = create_backbone("timesformer", 3, 8, 32, "tiny")
        results.append(learn(pool, batches, MergeConfig(), "layer", model)[0])
    assert list(results[0]) == ["stem", "blocks.0", "blocks.1", "norm", "head"]
    assert all(torch.equal(results[0][layer], results[1][layer]) for layer in results[0])


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
    """The soup where a mixture's accuracy is listed by who is in it; also what was evaluated."""
    evaluated = []

    def evaluate(alpha):
        members = "".join(name for name, share in zip(scores, alpha.tolist(), strict=True) if share)
        assert [share for share in alpha.tolist() if share] == pytest.approx(
            [1 / len(members)] * len(members)
        )
        evaluated.append(members)
        return {"val_top1": accuracies[members], "val_nll": 1.0}

    named = {name: dict(zip(("val_top1", "val_nll"), score, strict=True)) for name, score in scores.items()}
    alpha, history = greedy_soup(named, evaluate)
    return dict(zip(scores, alpha.tolist(), strict=True)), evaluated, [record["kept"] for record in history]


def test_soup_adds_what_does_not_harm():
    scores = {"a": (50, 1.0), "b": (70, 1.0), "c": (60, 1.0)}
    alpha, evaluated, kept = soup(scores, {"b": 70, "bc": 69, "ab": 71})
    assert alpha == {"a": 0.5, "b": 0.5, "c": 0.0}
    assert evaluated == ["b", "bc", "ab"] and kept == [True, False, True]


def test_soup_keeps_at_equal_accuracy_and_compares_with_the_soup_so_far():
    scores = {"a": (70, 1.0), "b": (60, 1.0), "c": (50, 1.0)}
    alpha, evaluated, kept = soup(scores, {"a": 70, "ab": 72, "abc": 71})
    assert kept == [True, True, False] and alpha == {"a": 0.5, "b": 0.5, "c": 0.0}
    alpha, _, kept = soup(scores, {"a": 70, "ab": 70, "abc": 70})
    assert kept == [True] * 3 and alpha["c"] == pytest.approx(1 / 3)


def test_soup_tries_equals_in_order_of_their_loss():
    scores = {"a": (60, 2.0), "b": (60, 1.0), "c": (60, 1.5)}
    assert soup(scores, {"b": 60, "bc": 0, "ab": 0})[1] == ["b", "bc", "ab"]


def test_soup_of_one():
    assert soup({"a": (10, 1.0)}, {"a": 10})[0] == {"a": 1.0}


def test_the_average_is_uniform_and_the_best_is_the_first_of_the_most_accurate():
    scores = {name: {"val_top1": top1} for name, top1 in {"a": 50.0, "b": 70.0, "c": 70.0, "d": 10.0}.items()}
    assert average(scores, None)[0].tolist() == [0.25] * 4
    assert best(scores, None)[0].tolist() == [0.0, 1.0, 0.0, 0.0]


class Hill:
    """Stands for a WeightSpace: the loss is lowest at one scale."""

    def __init__(self, best):
        self.best, self.at = best, None

    def move(self, start, direction, scale):
        self.at = scale

    def evaluate(self, split):
        return {f"{split}_top1": 100 * self.at, f"{split}_nll": abs(self.at - self.best)}


def test_the_scale_of_lowest_validation_loss_is_left_in_the_model():
    hill = Hill(0.6)
    history = search_scale(hill, {}, {}, (0.3, 0.5, 2.0))
    assert [record["kept"] for record in history] == [False, True, False] and hill.at == 0.5


@pytest.fixture
def experiment(tmp_path):
    return create_experiment(dataset="mocap", preset="", seed=0, outputs=str(tmp_path))


def test_refuses_unknown_merges(experiment):
    with pytest.raises(ValueError, match="unknown merge model, fisher; choose of merged, layer, parameter"):
        merge(experiment, ["merged", "model", "fisher"])


@pytest.fixture
def described(experiment, monkeypatch):
    """merges -> their run folders' configs, of proxies that are all the same: no clips."""
    configs = {}
    monkeypatch.setattr(Experiment, "manifest", lambda self, split: SimpleNamespace(digest=f"{split} clips"))
    monkeypatch.setattr(
        merging, "start_run", lambda folder, config: configs.update({folder.name: config}) is None
    )
    weights = experiment.backbone().state_dict()
    for key in experiment.card.teachers:
        folder = experiment.folder("02_proxy") / key
        write_tensors(folder / "model.safetensors", weights, {"proxy": key})
        write_json(folder / "config.json", {"config": {"start": "one"}})
        finish_run(folder, {})

    def describe(merges):
        configs.clear()
        merge(experiment, merges)  # all taken for finished
        return configs

    return describe


def test_runs_that_exist_keep_their_description(described, experiment):
    folder = experiment.folder("02_proxy")
    proxies = {key: digest(folder / key / "model.safetensors") for key in experiment.card.teachers}
    assert len(set(proxies.values())) == 9
    merge = {"epochs": 2, "batch_size": 32, "lr": 0.02, "weight_decay": 0.01}
    assert described(["merged", "average", "best"]) == {
        "merged": {"seed": 0, "proxies": proxies, "start": "merged", "merge": merge},
        "average": {"seed": 0, "proxies": proxies, "start": "average"},
        "best": {"seed": 0, "proxies": proxies, "start": "best"},
    }


def test_what_is_chosen_on_validation_clips_says_so(described):
    configs = described(MERGES)
    chosen = [name for name in MERGES if configs[name].get("validation") == "val clips"]
    assert chosen == ["soup", "arithmetic", "ties"]
    assert 1 / 9 in configs["arithmetic"]["scales"] and 1.0 in configs["ties"]["scales"]  # mean task vectors
    assert configs["ties"]["common_start"] == "one" and configs["layer"]["manifest"] == "train clips"


def test_the_recipes_rate_is_that_of_all_learned_merges(described, experiment):
    object.__setattr__(experiment, "recipe", RELEASED)  # the folder's name stays
    configs = described(list(LEARNED))
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
    model, video = experiment.backbone(), experiment.preset.video
    count = experiment.preset.merge.batch_size
    batch = {
        "clips": torch.randn(count, 3, video.num_frames, video.image_size, video.image_size),
        "labels": torch.arange(count) % len(experiment.card.classes),
    }
    space = open_space([model.state_dict()] * len(experiment.card.teachers), model.eval())
    learner = MergeLearner(space, group_weights(model, "parameter"))  # the level with most groups
    optimizer = torch.optim.Adam(learner.parameters)

    def plain():
        model.zero_grad()
        F.cross_entropy(model(batch["clips"])[1], batch["labels"]).backward()

    def read():
        for name, parameter in model.named_parameters():
            space.stacked[name].flatten(1) @ parameter.detach().flatten()

    def step():
        optimizer.zero_grad()
        learner.backward(batch, 1)
        optimizer.step()

    for _ in range(4):  # on a busy machine the fastest of a few runs may still be slow
        rounds = [
            [timeit(work, number=1) for work in (plain, read, step)] for _ in range(3)
        ]  # all meet the same load
        a, b, c = map(min, zip(*rounds, strict=True))
        if c <= 1.3 * a + b:
            return
    pytest.fail(f"one step takes {c} s, one model {a} s, reading the proxies {b} s")
