"""The training loop: exact resume, independent learners, schedule, refusals; scores against scikit-learn."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss
from torch import nn
from torch.nn import functional as F

from uniego_utils import training
from uniego_utils.cards import MethodCard, TrainConfig
from uniego_utils.objectives import Classification, TeacherDistillation
from uniego_utils.recipes import PAPER
from uniego_utils.training import (
    Learner,
    fit,
    learning_rate,
    predict,
    read_history,
    score,
    write_history,
)

CPU = torch.device("cpu")
N, CLASSES = 20, 3
CLIPS = torch.randn(N, 3, 2, 2, 2, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(CLASSES, (N,), generator=torch.Generator().manual_seed(1))
TARGETS = torch.randn(N, 5, generator=torch.Generator().manual_seed(2))
CONFIG = TrainConfig(epochs=4, batch_size=8, lr=0.01, milestones=(3,), warmup_epochs=1.0, grad_clip=1.0)
OPTIMIZERS = {"sgd": CONFIG, "adamw": replace(CONFIG, optimizer="adamw", weight_decay=0.05)}


class Student(nn.Module):
    """A small network with all that a checkpoint must hold: weights, running statistics; and dropout."""

    def __init__(self, drop=0.3):
        super().__init__()
        self.inner, self.norm, self.drop = nn.Linear(24, 6), nn.BatchNorm1d(6), nn.Dropout(drop)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, clips):
        features = self.norm(self.inner(clips.flatten(1)))
        return features, self.head(self.drop(features))


class Interrupted(Exception):
    pass


def batches_of(epoch, size=8):
    """The batches of an epoch, by the epoch alone; the last one is smaller."""
    order = torch.randperm(N, generator=torch.Generator().manual_seed(epoch))
    rows = [order[first : first + size] for first in range(0, N, size)]
    return [{"clips": CLIPS[r], "labels": LABELS[r], "rows": r} for r in rows]


class BreaksOff(list):
    """Batches that raise after the first one, as a killed run would."""

    def __iter__(self):
        yield self[0]
        raise Interrupted


def learner(name, seed=0, drop=0.3):
    torch.manual_seed(seed)
    if name == "distilled":
        objective = TeacherDistillation({"a": TARGETS}, 6, MethodCard(), PAPER)
    else:
        objective = Classification(label_smoothing=0.1 if name == "smoothed" else 0.0)
    return Learner(Student(drop), objective)


def train(names, config, checkpoint, batches=batches_of, evaluate=None, seed=0, drop=0.3):
    learners = {name: learner(name, seed, drop) for name in names}
    history = fit(learners, batches, config, 7, checkpoint, CPU, evaluate, progress=False)
    return learners, history


def without_seconds(history):
    return {
        name: [{key: value for key, value in record.items() if key != "seconds"} for record in records]
        for name, records in history.items()
    }


def same_weights(one, other):
    return all(torch.equal(value, other.tensors()[name]) for name, value in one.tensors().items())


def evaluate(model):
    return {"val_nll": F.cross_entropy(model(CLIPS)[1], LABELS).item(), "draw": torch.rand(()).item()}


@pytest.mark.parametrize("where", ["within epoch 3", "while epoch 3 is evaluated", "before epoch 1"])
@pytest.mark.parametrize("config", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_resumed_run_equals_an_uninterrupted_one(config, where, tmp_path):
    names, calls = ["labels", "distilled"], []

    def broken_batches(epoch):
        if where == "before epoch 1":
            raise Interrupted
        return BreaksOff(batches_of(epoch)) if where == "within epoch 3" and epoch == 2 else batches_of(epoch)

    def broken_evaluate(model):
        calls.append(model)
        if where == "while epoch 3 is evaluated" and len(calls) == 2 * len(names) + 1:
            raise Interrupted
        return evaluate(model)

    whole, whole_history = train(names, config, tmp_path / "whole", evaluate=evaluate)
    with pytest.raises(Interrupted):
        train(names, config, tmp_path / "part", broken_batches, broken_evaluate)
    torch.rand(5)  # other draws in between must not matter
    start = (
        0 if where == "before epoch 1" else 99
    )  # with a checkpoint, the new learners' own weights are not used
    resumed, history = train(names, config, tmp_path / "part", evaluate=evaluate, seed=start)
    assert without_seconds(history) == without_seconds(whole_history)
    assert all(same_weights(whole[name], resumed[name]) for name in names)


def test_a_finished_pass_is_not_trained_further(tmp_path):
    done, history = train(["labels"], CONFIG, tmp_path / "checkpoint")
    again, same = train(["labels"], CONFIG, tmp_path / "checkpoint", seed=99)
    assert same == history and same_weights(done["labels"], again["labels"])
    assert not again["labels"].model.training


@pytest.mark.parametrize("config", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_learners_trained_together_equal_learners_trained_alone(config, tmp_path):
    names = ["labels", "distilled", "smoothed"]
    together, history = train(names, config, tmp_path / "together", evaluate=evaluate)
    for name in names:
        alone, own = train([name], config, tmp_path / name)
        assert same_weights(together[name], alone[name])
        assert [r["loss"] for r in own[name]] == [r["loss"] for r in history[name]]


def test_dropout_is_drawn_from_the_seed(tmp_path):
    weights = []
    for number, seed in enumerate([7, 7, 8]):
        one = learner("labels", drop=0.5)
        fit({"x": one}, batches_of, CONFIG, seed, tmp_path / str(number), CPU, progress=False)
        weights.append(one.model.inner.weight)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_training_learns(tmp_path):
    _, history = train(["labels"], replace(CONFIG, epochs=30, milestones=()), tmp_path / "c", drop=0.0)
    losses = [record["loss"] for record in history["labels"]]
    assert losses[-1] < 0.6 * losses[0]


def test_one_sgd_step_is_rate_times_gradient(tmp_path):
    config = TrainConfig(epochs=1, lr=0.5, momentum=0.0, weight_decay=0.0, milestones=(1,))
    before = learner("labels", drop=0.0)
    everything = [{"clips": CLIPS, "labels": LABELS, "rows": torch.arange(N)}]
    F.cross_entropy(before.model(CLIPS)[1], LABELS).backward()
    after, _ = train(["labels"], config, tmp_path / "c", lambda epoch: everything, drop=0.0)
    slow = before.model.head.weight - 0.05 * before.model.head.weight.grad  # from epoch 1: a tenth of 0.5
    torch.testing.assert_close(after["labels"].model.head.weight, slow)


def test_gradients_are_clipped_over_all_parameters(tmp_path):
    config = TrainConfig(epochs=1, lr=1.0, momentum=0.0, weight_decay=0.0, milestones=(), grad_clip=0.01)
    before = learner("distilled", drop=0.0)
    after, _ = train(["distilled"], config, tmp_path / "c", lambda epoch: batches_of(0, N), drop=0.0)
    moved = [
        (a - b).square().sum() for a, b in zip(before.parameters, after["distilled"].parameters, strict=True)
    ]
    assert sum(moved).sqrt().item() == pytest.approx(0.01, rel=1e-3)


def test_recorded_losses_are_means_over_clips(tmp_path):
    _, history = train(["labels"], replace(CONFIG, epochs=1, lr=0.0), tmp_path / "c", drop=0.0)
    model = learner("labels", drop=0.0).model.train()
    total = sum(F.cross_entropy(model(b["clips"])[1], b["labels"], reduction="sum") for b in batches_of(0))
    assert history["labels"][0]["loss"] == pytest.approx(total.item() / N, rel=1e-5)


def test_evaluation_comes_every_so_often_and_at_the_end(tmp_path):
    _, history = train(["labels"], replace(CONFIG, epochs=5, eval_every=2), tmp_path / "c", evaluate=evaluate)
    assert [record["epoch"] for record in history["labels"] if "val_nll" in record] == [2, 4, 5]


def test_the_papers_schedule():
    """Section 4.1: 15 epochs, scaled by 0.1 and 0.01 at epochs 11 and 14."""
    rates = [learning_rate(TrainConfig(), epoch * 10 + 9, 10) for epoch in range(15)]
    assert rates == pytest.approx([0.005] * 10 + [0.0005] * 3 + [0.00005] * 2)


def test_milestones_fall_on_the_first_step_of_their_epoch():
    assert learning_rate(TrainConfig(), 99, 10) == pytest.approx(0.005)  # the last step of epoch 10
    assert learning_rate(TrainConfig(), 100, 10) == pytest.approx(0.0005)


def test_cosine_with_warmup_by_definition():
    config = TrainConfig(epochs=6, lr=0.2, cosine=True, warmup_epochs=1.5)
    for step in range(60):
        slow = 0.2 * (1 + math.cos(math.pi * step / 60)) / 2 * (min(step + 1, 15) / 15)
        assert learning_rate(config, step, 10) == pytest.approx(slow)


def test_warmup_rises_and_cosine_falls_to_nearly_nothing():
    config = TrainConfig(epochs=6, lr=0.2, cosine=True, warmup_epochs=1)
    rates = [learning_rate(config, step, 10) for step in range(60)]
    assert (np.diff(rates[:9]) > 0).all() and (np.diff(rates[10:]) < 0).all()
    assert rates[0] == pytest.approx(0.02) and rates[-1] < 0.001


def test_a_loss_that_is_not_finite_names_learner_and_epoch(tmp_path):
    def batches(epoch):
        poisoned = batches_of(epoch)
        if epoch == 1:
            poisoned[1]["clips"] = poisoned[1]["clips"] * math.nan
        return poisoned

    with pytest.raises(FloatingPointError, match=r"labels.*epoch 2"):
        train(["labels"], CONFIG, tmp_path / "c", batches)


def test_a_checkpoint_of_other_learners_is_refused(tmp_path):
    train(["labels"], CONFIG, tmp_path / "c")
    with pytest.raises(ValueError, match="holds labels, not distilled"):
        train(["distilled"], CONFIG, tmp_path / "c")


def test_an_unknown_optimizer_is_refused_with_the_valid_ones(tmp_path):
    with pytest.raises(ValueError, match="'lion'.*sgd, adamw or adam"):
        train(["labels"], replace(CONFIG, optimizer="lion"), tmp_path / "c")


def test_bf16_runs_on_the_cpu_and_keeps_weights_in_float32(tmp_path):
    learners, history = train(["distilled"], replace(CONFIG, bf16=True), tmp_path / "c")
    assert all(math.isfinite(record["loss"]) for record in history["distilled"])
    assert all(p.dtype == torch.float32 for p in learners["distilled"].parameters)
    predicted = predict(learners["distilled"].model, batches_of(0), CPU, bf16=True)
    assert predicted["logits"].dtype == torch.float32


def test_predictions_keep_the_order_of_the_clips():
    model = learner("labels").model
    in_order = [{"clips": CLIPS[i : i + 7]} for i in range(0, N, 7)]
    predicted = predict(model, in_order, CPU)
    assert not model.training
    for row in range(N):
        feature, logit = model(CLIPS[row : row + 1])
        torch.testing.assert_close(predicted["features"][row], feature[0])
        torch.testing.assert_close(predicted["logits"][row], logit[0])


def test_scores_agree_with_scikit_learn():
    logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(4, (50,), generator=torch.Generator().manual_seed(1))
    scores = score(logits, labels)
    assert scores["top1"] == pytest.approx(100 * accuracy_score(labels, logits.argmax(1)))
    assert scores["nll"] == pytest.approx(
        log_loss(labels, logits.double().softmax(1), labels=range(4)), rel=1e-5
    )


def test_history_round_trip(tmp_path):
    records = [{"epoch": 1, "loss": 0.1 + 0.2}, {"epoch": 2, "loss": 1e-9, "val_top1": 50.0}]
    write_history(tmp_path, records)
    assert read_history(tmp_path) == records


def test_accumulated_batches_make_the_step_of_one_large_batch(tmp_path):
    """Without dropout and BatchNorm, and where the parts are of equal size: the mean of their gradients."""

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(24, CLASSES)

        def forward(self, clips):
            return clips.flatten(1), self.head(clips.flatten(1))

    def run(size, accumulate):
        torch.manual_seed(0)
        model, config = Plain(), replace(CONFIG, warmup_epochs=0.0)
        learners = {"one": Learner(model, Classification())}
        batches = lambda epoch: batches_of(epoch, size)  # noqa: E731
        checkpoint = tmp_path / f"{size}-{accumulate}"
        fit(learners, batches, config, 7, checkpoint, CPU, accumulate=accumulate, progress=False)
        return model.head.weight

    torch.testing.assert_close(run(4, 5), run(20, 1))  # 20 clips: one step an epoch
    torch.testing.assert_close(run(5, 2), run(10, 1))
    assert not torch.allclose(run(4, 1), run(20, 1))


def test_batches_left_over_make_a_step_of_their_own(tmp_path):
    steps = []

    class Counting(torch.optim.SGD):
        def step(self, *args):
            steps.append(self.param_groups[0]["params"][0].grad.clone())
            return super().step(*args)

    config = replace(CONFIG, epochs=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            training, "create_optimizer", lambda parameters, config: Counting(parameters, config.lr)
        )
        learners = {"one": learner("labels")}
        fit(learners, batches_of, config, 7, tmp_path / "c", CPU, accumulate=2, progress=False)
    assert len(steps) == 2  # three batches: two together, then the last


def test_what_is_taught_reaches_every_learner_and_is_made_once_a_batch(tmp_path):
    made, seen = [], []

    class Listening(Classification):
        def forward(self, features, logits, batch):
            seen.append(batch["extra"])
            return super().forward(features, logits, batch)

    def teach(batch):
        made.append(len(batch["rows"]))
        return batch | {"extra": len(made)}

    learners = {name: Learner(Student(), Listening()) for name in ("a", "b")}
    fit(learners, batches_of, replace(CONFIG, epochs=1), 7, tmp_path / "c", CPU, teach=teach, progress=False)
    assert made == [8, 8, 4] and seen == [1, 1, 2, 2, 3, 3]


class NextWord(Learner):
    """A learner of another kind: one model, no labels, an entry of its own, and notes."""

    epochs = 0

    def losses(self, batch):
        logits = self.model(batch["words"][:, :-1])
        return {"loss": F.cross_entropy(logits.flatten(0, 1), batch["words"][:, 1:].flatten())}

    def notes(self):
        self.epochs += 1
        return {"epochs": self.epochs}


def test_a_batch_holds_what_its_learner_asks_for(tmp_path):
    """Means are over the entries that `rows` counts, here of two unequal batches."""
    words = torch.arange(6 * 5).view(6, 5) % 7
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7))
    expected = NextWord(model).losses({"words": words})["loss"].item()
    batches = [{"words": words[rows], "rows": rows} for rows in torch.arange(6).split(4)]
    config = replace(CONFIG, epochs=2, lr=0.0)
    history = fit(
        {"x": NextWord(model)}, lambda epoch: batches, config, 7, tmp_path / "c", CPU, progress=False
    )["x"]
    assert [record["loss"] for record in history] == pytest.approx([expected, expected])
    assert [record["epochs"] for record in history] == [1, 2]
