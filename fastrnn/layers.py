"""One layer from its parameters: the input projection, the recurrence, and the gradients of all its inputs.

Plain functions of tensors, below autograd: what ``fastrnn.functions`` and ``fastrnn.stacks`` make differentiable. On the CPU the
kernels do the whole (``fastrnn.cpu_layers``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastrnn import gradient_sums, ops, products
from fastrnn.reference import Forward


class Options(NamedTuple):
    """How a layer runs; constants to torch.compile."""

    nonlinearity: str = "tanh"  # RNN alone: "tanh" or "relu"
    dropout_site: str = "state"  # what `mask` masks: "state" (h_{t-1} in the recurrent product) or "candidate"
    clip_mode: str | None = None  # None, "norm" or "value"
    clip_threshold: float = 0.0
    backend: str = "reference"
    plan: str = ""  # a kernel plan by name; empty: the backend chooses
    save: bool = True  # keep what backward needs
    record_key: int = -1  # fastrnn.recording: where norms and clipped go; -1: not recorded


class Weights(NamedTuple):
    """The parameters of a layer, one list entry per direction, in the input's dtype."""

    w_ih: list[Tensor]  # [G*H, I]
    w_hh: list[Tensor]  # [G*H, P]
    b_ih: list[Tensor]  # [G*H], empty without bias
    b_hh: list[Tensor]  # [G*H], empty without bias
    w_hr: list[Tensor]  # [P, H], empty without proj_size


def split_weights(weights: Sequence[Tensor], num_directions: int, dtype: torch.dtype) -> Weights:
    # contiguous whatever they are: strides cannot be asked for while torch.compile traces a backward
    cast = [(w if w.dtype == dtype else w.to(dtype)).contiguous() for w in weights]
    count = len(cast) // num_directions
    per_direction = [cast[d * count : (d + 1) * count] for d in range(num_directions)]
    has_bias, has_projection = count >= 4, count in (3, 5)
    return Weights(
        w_ih=[w[0] for w in per_direction],
        w_hh=[w[1] for w in per_direction],
        b_ih=[w[2] for w in per_direction] if has_bias else [],
        b_hh=[w[3] for w in per_direction] if has_bias else [],
        w_hr=[w[-1] for w in per_direction] if has_projection else [],
    )


def without_padding(x: Tensor, lengths: Tensor | None, offsets: Tensor | None) -> Tensor:
    """A padded batch with zeros past each length: selected away, since 0 * NaN would poison the weight gradient."""
    if lengths is None or offsets is not None:
        return x
    live = torch.arange(x.size(0), device=x.device)[:, None] < lengths
    return torch.where(live.unsqueeze(-1), x, 0.0)


def split_biases(cell: str, w: Weights) -> tuple[list[list[Tensor]], list[Tensor]]:
    """Per direction the biases that the projection adds, none without bias; and a GRU's, which is inside the reset."""
    biases: list[list[Tensor]] = [[] for _ in w.w_ih]
    b_hn: list[Tensor] = []
    for d, (b_ih, b_hh) in enumerate(zip(w.b_ih, w.b_hh, strict=True)):
        if cell == "gru":  # the candidate's recurrent bias is inside the reset
            rz, n = b_hh.split([2 * b_hh.size(0) // 3, b_hh.size(0) // 3])
            biases[d] = [b_ih, torch.cat([rz, torch.zeros_like(n)])]
            b_hn.append(n)
        else:
            biases[d] = [b_ih, b_hh]
    return biases, b_hn


def layer_forward(
    cell: str,
    options: Options,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    lengths: Tensor | None,
    offsets: Tensor | None,
    mask: Tensor | None,
    weights: Sequence[Tensor],
) -> Forward:
    w = split_weights(weights, h0.size(0), x.dtype)
    biases, b_hn = split_biases(cell, w)
    gates = products.project(options.backend, without_padding(x, lengths, offsets), w.w_ih, biases)
    return ops.recurrence_forward(
        options.backend, cell, options.dropout_site, gates, w.w_hh, b_hn, w.w_hr, h0, c0, mask, lengths, offsets,
        save=options.save, plan=options.plan,
    )  # fmt: skip


def recurrent_pairs(
    grad: Tensor, direction: int, h_prev: Tensor | None, y: Tensor, h0: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Pairs (gradient rows, h_{t-1} rows) whose products add up to the gradient of one direction's W_hh.

    ``h_prev`` is given where h_{t-1} is not simply y one step earlier (masks, ragged batches).
    """
    if h_prev is not None:
        return [(grad.flatten(0, -2), h_prev.flatten(0, -2))]
    if h0.size(0) > 1:
        state_size = h0.size(-1)
        y = y[..., direction * state_size : (direction + 1) * state_size]
    first, later = (grad[0], grad[1:]) if direction == 0 else (grad[-1], grad[:-1])
    earlier = y[:-1] if direction == 0 else y[1:]
    pairs = [(first, h0[direction])]
    if grad.size(0) > 1:
        pairs.append((later.flatten(0, -2), earlier.flatten(0, -2)))
    return pairs


class Gradients(NamedTuple):
    x: Tensor | None
    h0: Tensor
    c0: Tensor | None
    weights: list[Tensor | None]
    squares: Tensor | None  # [len(weights)] float64: the sum of squares of each weight's gradient
    norms: Tensor | None
    clipped: Tensor | None


def weight_gradients(
    backend: str,
    cell: str,
    wanted: Sequence[bool],
    squares: Sequence[Tensor | None],
    grad_gates: Tensor,
    grad_n_h: Tensor | None,
    grad_bias: Tensor,
    flat_x: Tensor,
    pairs_of: Callable[[Tensor], list[tuple[Tensor, Tensor]]],
) -> list[Tensor | None]:
    """The gradients of one direction's w_ih, w_hh, and biases if there are any, where they are ``wanted``; the rest is None.

    Args:
        grad_gates, grad_n_h, grad_bias: the direction's of ``ops.recurrence_backward``.
        flat_x: (rows, I).
        pairs_of: :func:`recurrent_pairs` of the direction.
    """
    gate_size = grad_gates.size(-1)
    grad_w: list[Tensor | None] = [None] * len(wanted)
    if wanted[0]:
        pair = (grad_gates.flatten(0, -2), flat_x)
        grad_w[0] = products.weight_gradient(backend, [[pair]], squares[0])
    if wanted[1]:
        parts = [grad_gates]
        if grad_n_h is not None:
            parts = [grad_gates[..., : gate_size // 3 * 2], grad_n_h]
        grad_w[1] = products.weight_gradient(backend, [pairs_of(part) for part in parts], squares[1])
    if len(wanted) >= 4:
        grad_b_ih = grad_bias[:gate_size]
        grad_b_hh = grad_b_ih
        if cell == "gru":
            grad_b_hh = torch.cat([grad_b_ih[: gate_size // 3 * 2], grad_bias[gate_size:]])
        grad_w[2] = grad_b_ih if wanted[2] else None
        # two parameters must not receive one tensor
        grad_w[3] = grad_b_hh.clone() if wanted[3] else None
    return grad_w


def finish_gradients(
    grads: Sequence[Tensor | None], weights: Sequence[Tensor], squares: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """In the dtypes of the weights; and the sums of squares of the biases, which no product takes."""
    grads = [
        g if g is None or g.dtype == master.dtype else g.to(master.dtype)
        for g, master in zip(grads, weights, strict=True)
    ]
    for grad, total in zip(grads, squares, strict=True):
        if grad is not None and total is not None and grad.dim() == 1:
            ops.sum_of_squares([grad], [], total)
    return grads


def note_sums(grads: Sequence[Tensor | None], squares: Tensor | None, dtype: torch.dtype) -> None:
    """Tell a later clip of the sums of squares that backward has taken of its gradients, computed in ``dtype``."""
    if squares is None:
        return
    for grad, total in zip(grads, squares.split(1), strict=True):
        # a product's sum is that of its output, which a master in a lower precision rounds
        if grad is not None and torch.promote_types(dtype, grad.dtype) == grad.dtype:
            gradient_sums.note(grad, total)


def layer_backward(
    cell: str,
    options: Options,
    needed: Sequence[bool],
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    lengths: Tensor | None,
    offsets: Tensor | None,
    mask: Tensor | None,
    grad_scale: Tensor | None,
    forward: Forward,
    grad_y: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    weights: Sequence[Tensor],
) -> Gradients:
    """``needed`` says which of (x, *weights) want a gradient."""
    backend, num_directions = options.backend, h0.size(0)
    w = split_weights(weights, num_directions, x.dtype)
    needs_x, needs_weights = needed[0], needed[1:]
    masked_state = mask is not None and options.dropout_site == "state"
    need_h_prev = masked_state or lengths is not None or offsets is not None
    grads = ops.recurrence_backward(
        backend, cell, options.dropout_site, forward, w.w_hh, w.w_hr, h0, c0, mask, lengths, offsets,
        grad_y, grad_h_n, grad_c_n, clip_mode=options.clip_mode, clip_threshold=options.clip_threshold,
        grad_scale=grad_scale, record=options.record_key >= 0, need_h_prev=need_h_prev, plan=options.plan,
    )  # fmt: skip

    count = len(weights) // num_directions
    flat_x = without_padding(x, lengths, offsets).flatten(0, -2).contiguous()
    h0 = h0.contiguous()
    h_prev = grads.h_prev if need_h_prev else None
    squares = gradient_sums.new(len(weights), x.device) if backend != "reference" else None
    square: Sequence[Tensor | None] = [None] * len(weights) if squares is None else squares.split(1)
    grad_weights: list[Tensor | None] = []
    for d in range(num_directions):
        of_direction = slice(d * count, (d + 1) * count)
        pairs = functools.partial(
            recurrent_pairs, direction=d, h_prev=None if h_prev is None else h_prev[d], y=forward.y, h0=h0
        )
        grad_w = weight_gradients(
            backend, cell, needs_weights[of_direction], square[of_direction], grads.grad_gates[d],
            None if grads.grad_n_h is None else grads.grad_n_h[d], grads.grad_bias[d], flat_x, pairs,
        )  # fmt: skip
        if w.w_hr and needs_weights[of_direction][-1]:
            assert grads.grad_h is not None and forward.hidden is not None
            pair = (grads.grad_h[d].flatten(0, -2), forward.hidden[d].flatten(0, -2))
            grad_w[-1] = products.weight_gradient(backend, [[pair]], square[of_direction][-1])
        grad_weights.extend(grad_w)
    grad_weights = finish_gradients(grad_weights, weights, square)

    return Gradients(
        x=products.input_gradient(backend, grads.grad_gates, w.w_ih) if needs_x else None,
        h0=grads.grad_h0,
        c0=grads.grad_c0,
        weights=grad_weights,
        squares=squares,
        norms=grads.norms,
        clipped=grads.clipped,
    )
