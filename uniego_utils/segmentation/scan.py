"""The selective scan of Mamba (Gu and Dao, arXiv:2312.00752, section 3.2), in plain PyTorch.

The input of a channel decides what is written into its state, and how fast the state forgets:

    h_t = exp(delta_t A) h_{t-1} + delta_t x_t B_t,    y_t = C_t . h_t + D x_t,    h_0 = 0.

Shapes: x, delta (..., T, E); A (..., E, N); B, C (..., T, N); D (..., E): T steps, E channels, N numbers of
state a channel; leading dimensions of A and D may be left out or 1. Cost and memory are linear in T.
"""

from collections.abc import Iterator, Sequence
from math import isqrt

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

WIDE_CPU, WIDE_GPU = 2**13, 2**20  # numbers in a step that keep a device busy for longer than the call costs
BLOCK = 2**22  # numbers of state that the backward pass holds at a time; 16 MiB


def sequential_scan(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The definition, step by step, (..., T, E); slow, and what the fast form is tested against."""
    state = torch.zeros_like(x[..., 0, :, None] * A)
    outputs = []
    for t in range(x.shape[-2]):
        decay = torch.exp(delta[..., t, :, None] * A)
        state = decay * state + (delta * x)[..., t, :, None] * B[..., t, None, :]
        outputs.append((state * C[..., t, None, :]).sum(-1) + D * x[..., t, :])
    return torch.stack(outputs, -2)


def selective_scan(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, block: int | None = None
) -> Tensor:
    """What `sequential_scan` gives, (..., T, E), with gradients, up to rounding; fast and in bounded memory.

    Blocks of steps follow each other. Only inputs and a state a block are kept for the backward pass, which
    computes the states anew. Where a single step is too little work for the device, the block is cut into
    chunks that run beside each other: first each from a zero state, to get the state that it hands on; then
    all again from the states in which they really begin.

    Args:
        block: steps a block; None for as many as hold `BLOCK` numbers of state.

    Raises:
        ValueError: no steps, or shapes that do not fit.
    """
    steps = x.shape[-2]
    if not steps or delta.shape != x.shape or B.shape != C.shape or B.shape != (*x.shape[:-1], A.shape[-1]):
        raise ValueError(
            f"x {tuple(x.shape)}, delta {tuple(delta.shape)}, A {tuple(A.shape)}, B {tuple(B.shape)} and "
            f"C {tuple(C.shape)} are not (..., T, E) twice, (..., E, N) and (..., T, N) twice with T > 0"
        )
    state = torch.zeros_like(x[..., 0, :, None] * A)
    block = block or max(1, BLOCK // state.numel())
    written, outputs = delta * x, []
    for first in range(0, steps, block):
        part = [tensor[..., first : first + block, :] for tensor in (written, delta, B, C)]
        output, state = _Scan.apply(*part, A, state)
        outputs.append(output)
    return torch.cat(outputs, -2) + D[..., None, :] * x


class _Scan(torch.autograd.Function):
    """Outputs (..., T, E), without D, and the last state of T steps from `start` (..., E, N).

    With w_t = delta_t x_t and the gradients u_t of y_t and g_t of h_t, which run backwards in time,

        g_t = u_t C_t + exp(delta_{t+1} A) g_{t+1},    dL/dw_t = g_t . B_t,    dL/dB_t = sum_e g_t w_t,
        dL/dC_t = sum_e u_t h_t,    dL/d(delta_t A) = g_t h_{t-1} exp(delta_t A).
    """

    @staticmethod
    def forward(
        ctx, written: Tensor, delta: Tensor, B: Tensor, C: Tensor, A: Tensor, start: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(written, delta, B, C, A, start)
        steps = written.shape[-2]
        (written, delta, B, C), A, starts = _handed_on((written, delta, B, C), A, start)
        outputs = torch.empty_like(written)
        for t, (state, _) in enumerate(_states(written, delta, B, A, starts)):
            outputs[..., t, :] = (state @ C[..., t, :, None]).squeeze(-1)
        return _joined(outputs, steps), state[..., -1, :, :].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, upper: Tensor, handed: Tensor) -> tuple[Tensor, ...]:
        """The gradients of all inputs; `upper` of the outputs, `handed` of the last state."""
        whole = ctx.saved_tensors
        (written, delta, B, C), A, starts = _handed_on(whole[:4], *whole[4:])
        upper = _chunked(upper, written.shape[-3])
        states, decays = zip(*_states(written, delta, B, A, starts), strict=True)
        ends = _handed_back(upper, delta, C, A, decays, handed)
        on_written, on_delta, on_B, on_C = (torch.empty_like(tensor) for tensor in (written, delta, B, C))
        on_A = torch.zeros_like(ends)
        for t, on_state, earlier in _gradients(upper, C, decays, ends):
            on_written[..., t, :] = (on_state @ B[..., t, :, None]).squeeze(-1)
            on_B[..., t, :] = (written[..., t, None, :] @ on_state).squeeze(-2)
            on_C[..., t, :] = (upper[..., t, None, :] @ states[t]).squeeze(-2)
            on_exponent = earlier * (states[t - 1] if t else starts)
            on_delta[..., t, :] = (on_exponent * A).sum(-1)
            on_A.addcmul_(on_exponent, delta[..., t, :, None])
        joined = (_joined(part, whole[0].shape[-2]) for part in (on_written, on_delta, on_B, on_C))
        return *joined, on_A.sum(-3).sum_to_size(whole[4].shape), earlier[..., 0, :, :]


def _states(
    written: Tensor, delta: Tensor, B: Tensor, A: Tensor, state: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """h_t and exp(delta_t A) of every step, of all chunks; steps are the inputs' second last dimension."""
    for t in range(delta.shape[-2]):
        decay = (delta[..., t, :, None] * A).exp_()
        state = torch.addcmul(written[..., t, :, None] * B[..., t, None, :], decay, state)
        yield state, decay


def _gradients(
    upper: Tensor, C: Tensor, decays: Sequence[Tensor], later: Tensor
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """t, g_t and what of it reaches h_{t-1}, backwards; `later` is what reaches the last h from outside."""
    for t in reversed(range(len(decays))):
        on_state = torch.addcmul(later, upper[..., t, :, None], C[..., t, None, :])
        later = on_state * decays[t]
        yield t, on_state, later


def _handed_on(
    inputs: tuple[Tensor, ...], A: Tensor, start: Tensor
) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """Inputs in chunks (..., K, L, .), A for all of them, and the state (..., K, E, N) each begins in."""
    steps = inputs[0].shape[-2]
    wide = WIDE_CPU if start.device.type == "cpu" else WIDE_GPU
    chunks = max(1, min(wide // start.numel(), isqrt(steps)))
    written, delta, B, C = (_chunked(tensor, chunks) for tensor in inputs)
    A = A[..., None, :, :]
    starts = [start]
    if chunks > 1:
        *_, (last, _) = _states(written, delta, B, A, torch.zeros_like(start)[..., None, :, :])
        reach = (delta.sum(-2)[..., None] * A).exp_()
        for chunk in range(chunks - 1):
            starts.append(torch.addcmul(last[..., chunk, :, :], reach[..., chunk, :, :], starts[-1]))
    return (written, delta, B, C), A, torch.stack(starts, -3)


def _handed_back(
    upper: Tensor, delta: Tensor, C: Tensor, A: Tensor, decays: Sequence[Tensor], handed: Tensor
) -> Tensor:
    """The gradient (..., K, E, N) that each chunk gets from the one after it; the last one gets `handed`."""
    ends, chunks = [handed], delta.shape[-3]
    if chunks > 1:
        nothing = torch.zeros_like(handed)[..., None, :, :]
        *_, (_, _, first) = _gradients(upper, C, decays, nothing)
        reach = (delta.sum(-2)[..., None] * A).exp_()
        for chunk in reversed(range(1, chunks)):
            ends.append(torch.addcmul(first[..., chunk, :, :], reach[..., chunk, :, :], ends[-1]))
    return torch.stack(ends[::-1], -3)


def _chunked(tensor: Tensor, chunks: int) -> Tensor:
    """(..., T, F) -> (..., K, L, F); steps of zeros at the end neither write nor forget."""
    length = -(-tensor.shape[-2] // chunks)
    padding = length * chunks - tensor.shape[-2]
    return F.pad(tensor, (0, 0, 0, padding)).unflatten(-2, (chunks, length))


def _joined(tensor: Tensor, steps: int) -> Tensor:
    """(..., K, L, F) -> (..., T, F)."""
    return tensor.flatten(-3, -2)[..., :steps, :]
