"""Merging (equation 2): the blend against a loop, its gradient against autograd through the blend."""

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from uniego_utils.backbones import create_backbone
from uniego_utils.manifests import MergeConfig
from uniego_utils.merging import learn_alpha, merge_weights, reestimate_statistics

CPU = torch.device("cpu")
R = 3  # proxies


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


def slow_alpha(proxies, batches, config):
    """Adam on the same loss, with autograd through the blend itself."""
    model = Student().eval()
    raw = torch.zeros(len(proxies), requires_grad=True)
    optimizer = torch.optim.Adam([raw], config.lr, weight_decay=config.weight_decay)
    losses = []
    for _ in range(config.epochs):
        total = clips = 0
        for batch in batches:
            exponents = raw.exp()
            alpha = exponents / exponents.sum()
            blend = {
                name: sum(alpha[r] * proxies[r][name] for r in range(len(proxies)))
                for name, value in proxies[0].items()
                if value.is_floating_point()
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
    exponents = raw.detach().exp()
    return exponents / exponents.sum(), losses


def test_alpha_agrees_with_autograd_through_the_blend(proxies, batches):
    config = MergeConfig(epochs=3, lr=0.1, weight_decay=0.05)
    alpha, history = learn_alpha(Student(), proxies, lambda epoch: batches, config, CPU, progress=False)
    slow, losses = slow_alpha(proxies, batches, config)
    assert (alpha - 1 / R).abs().max() > 0.05  # it moved
    torch.testing.assert_close(alpha, slow, rtol=1e-4, atol=1e-5)
    assert [record["loss"] for record in history] == pytest.approx(losses, rel=1e-4)


def test_alpha_stays_on_the_simplex_and_is_recorded_per_epoch(proxies, batches):
    config = MergeConfig(epochs=4, lr=1.0)
    alpha, history = learn_alpha(Student(), proxies, lambda epoch: batches, config, CPU, progress=False)
    assert (alpha >= 0).all() and alpha.sum().item() == pytest.approx(1, abs=1e-6)
    assert [record["epoch"] for record in history] == [1, 2, 3, 4]
    assert history[-1]["alpha"] == alpha.tolist()


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
    alpha, history = learn_alpha(Student(), pool, lambda epoch: batches, config, CPU, progress=False)
    assert alpha.argmax() == 1 and alpha[1] > 0.8
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
        results.append(learn_alpha(model, pool, lambda epoch: batches, MergeConfig(), CPU, progress=False)[0])
    assert torch.equal(*results)


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
