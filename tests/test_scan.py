"""The selective scan: its definition and gradients, whichever way it is cut, at a cost linear in steps."""

import time

import pytest
import torch

from uniego_utils.segmentation import scan
from uniego_utils.segmentation.scan import selective_scan, sequential_scan

CUTS = {"one chunk": 0, "some chunks": 200, "many chunks": 10**9}  # numbers that a step should have


def inputs(steps, channels=3, state=4, lead=(2,), weights=(), dtype=torch.float64, device="cpu"):
    generator = torch.Generator().manual_seed(steps)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype).to(device)

    x, delta = draw(*lead, steps, channels), 0.3 * draw(*lead, steps, channels).exp()
    A, D = -draw(*weights, channels, state).exp(), draw(*weights, channels)
    made = [x, delta, A, draw(*lead, steps, state), draw(*lead, steps, state), D]
    return [tensor.requires_grad_() for tensor in made]


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("block", [None, 7])
@pytest.mark.parametrize("steps", [1, 2, 17, 50])
def test_equals_the_definition_with_its_gradients(steps, block, cut, monkeypatch):
    monkeypatch.setattr(scan, "WIDE_CPU", CUTS[cut])
    given = inputs(steps, lead=(2, 3), weights=(2, 1))  # two sets of weights, three sequences each
    ours, theirs = selective_scan(*given, block=block), sequential_scan(*given)
    torch.testing.assert_close(ours, theirs)
    weight = torch.randn_like(ours)
    gradients = [torch.autograd.grad((result * weight).sum(), given) for result in (ours, theirs)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("cut", CUTS)
def test_gradients_are_those_of_finite_differences(cut, monkeypatch):
    monkeypatch.setattr(scan, "WIDE_CPU", CUTS[cut])
    given = inputs(9, channels=2, state=2, lead=(1,))
    assert torch.autograd.gradcheck(lambda *tensors: selective_scan(*tensors, block=4), given)


def test_without_forgetting_it_is_a_sum():
    x = torch.arange(12.0).reshape(6, 2)
    one = torch.ones(6, 1)
    sums = selective_scan(x, torch.ones_like(x), torch.zeros(2, 1), one, 2 * one, torch.zeros(2))
    torch.testing.assert_close(sums, 2 * x.cumsum(0))
    gone = selective_scan(x, torch.ones_like(x), torch.full((2, 1), -1e9), one, one, torch.ones(2))
    torch.testing.assert_close(gone, 2 * x)  # all forgotten at once: this step's input and the skip remain


def test_sees_nothing_of_what_comes(monkeypatch):
    monkeypatch.setattr(scan, "WIDE_CPU", 10**9)
    given = inputs(40)
    first = selective_scan(*given)
    with torch.no_grad():
        for tensor in (given[0], given[1], given[3], given[4]):
            tensor[:, 25:] += 1
    second = selective_scan(*given)
    torch.testing.assert_close(second[:, :25], first[:, :25])
    assert not torch.isclose(second[:, 25:], first[:, 25:]).any()


def test_twenty_thousand_steps_cost_five_times_four_thousand():
    def seconds(steps):
        given = inputs(steps, channels=32, state=16, lead=(1,), dtype=torch.float32)
        begin = time.perf_counter()
        output = selective_scan(*given)
        output.sum().backward()
        spent = time.perf_counter() - begin
        assert all(tensor.grad.isfinite().all() for tensor in given)
        return spent

    seconds(100)  # warm up
    short, long = (min(seconds(steps) for _ in range(3)) for steps in (4_000, 20_000))
    assert long < 12 * short  # five times; twenty-five, were it quadratic


def test_keeps_its_inputs_and_no_states():
    """Not what autograd would: a state (E, N) for every step."""
    given = inputs(500, channels=8, state=16, lead=())
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()), lambda _: None):
        selective_scan(*given, block=50)
    assert max(kept) <= max(tensor.numel() for tensor in given) < 500 * 8 * 16


def test_shapes_that_do_not_fit_are_refused():
    x, delta, A, B, C, D = inputs(5)
    for wrong in (
        (x, delta[:, :4], A, B, C, D),
        (x, delta, A[:, :3], B, C, D),
        (x, delta, A, B[:, :4], C, D),
        (x[:, :0], delta[:, :0], A, B[:, :0], C[:, :0], D),
    ):
        with pytest.raises(ValueError, match=r"are not \(..., T, E\) twice"):
            selective_scan(*wrong)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("steps", [1, 100, 3_000])
def test_gpu_equals_cpu(steps):
    given = inputs(steps, channels=16, state=8)
    moved = [tensor.detach().cuda().requires_grad_() for tensor in given]
    results = [selective_scan(*tensors) for tensors in (given, moved)]
    torch.testing.assert_close(results[0], results[1].cpu())
    gradients = [
        torch.autograd.grad(result.square().sum(), tensors)
        for result, tensors in zip(results, (given, moved), strict=True)
    ]
    torch.testing.assert_close(gradients[0], tuple(gradient.cpu() for gradient in gradients[1]))
