"""One layer on the CPU, forward and backward, each in one call of the engine: what ``fastrnn.layers`` does on other devices.

The engine multiplies the input inside the recurrence (csrc/cpu/input_projection.h) and the gradients right after it
(csrc/cpu/layer.cpp); gradients of the gates never leave it. One call also means little Python, which is slow where a layer has
just filled the caches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastrnn import gradient_sums
from fastrnn.layers import Gradients, Options, finish_gradients, split_weights
from fastrnn.ops import CLIP_MODES, DROPOUT_SITES, contiguous, forward_outputs, run_on_cpu
from fastrnn.reference import CELLS, NUM_GATES, Forward, compute_dtype


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
    """``layers.layer_forward`` by the CPU's kernels."""
    num_directions = h0.size(0)
    w = split_weights(weights, num_directions, x.dtype)
    rows, save, gate_size = x.shape[:-1], options.save, w.w_hh[0].size(0)
    hidden_size = gate_size // NUM_GATES[cell]
    y, h_n, c_n, cells, n_h, hidden = forward_outputs(cell, x, rows, hidden_size, h0, c0, save, bool(w.w_hr))
    gates = x.new_empty((num_directions, *rows, gate_size)) if save and cell in ("lstm", "gru") else None
    run_on_cpu(
        "layer_forward",
        CELLS.index(cell),
        DROPOUT_SITES.index(options.dropout_site),
        x.contiguous(),
        w.w_ih,
        w.w_hh,
        w.b_ih,
        w.b_hh,
        w.w_hr,
        h0.contiguous(),
        contiguous(c0),
        contiguous(mask),
        contiguous(lengths),
        contiguous(offsets),
        y,
        h_n,
        c_n,
        save,
        gates,
        cells,
        n_h,
        hidden,
    )
    return Forward(y, h_n, c_n, gates, cells, n_h, hidden)


def _new(like: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(like, dtype=dtype, memory_format=torch.contiguous_format)


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
    """``layers.layer_backward`` by the CPU's kernels."""
    num_directions, batch, _ = h0.shape
    dtype, acc = x.dtype, compute_dtype(x.dtype)
    w = split_weights(weights, num_directions, dtype)
    count = len(weights) // num_directions
    x = x.contiguous()
    # Where one direction wants the gradient of a kind of weight, both get it.
    kinds = ("w_ih", "w_hh", *(("b_ih", "b_hh") if w.b_ih else ()), *(("w_hr",) if w.w_hr else ()))
    grads: dict[str, list[Tensor]] = {}
    for index, kind in enumerate(kinds):
        if any(needed[1 + index :: count]):
            of_kind = acc if kind in ("b_ih", "b_hh") else dtype
            grads[kind] = [_new(weight, of_kind) for weight in weights[index::count]]
    squares = gradient_sums.new(len(weights), x.device)
    norms = clipped = None
    if options.record_key >= 0:
        steps = (x if offsets is None else offsets).size(0)
        norms = x.new_empty((num_directions, steps, batch), dtype=acc)
        clipped = x.new_empty((num_directions, steps, batch), dtype=torch.bool)
    grad_x = torch.empty_like(x) if needed[0] else None
    grad_h0, grad_c0 = _new(h0, dtype), None if c0 is None else _new(c0, dtype)
    run_on_cpu(
        "layer_backward",
        CELLS.index(cell),
        DROPOUT_SITES.index(options.dropout_site),
        contiguous(forward.gates),
        contiguous(forward.cells),
        contiguous(forward.n_h),
        contiguous(forward.hidden),
        forward.y.contiguous(),
        x,
        w.w_ih,
        w.w_hh,
        w.w_hr,
        h0.contiguous(),
        contiguous(c0),
        contiguous(mask),
        contiguous(lengths),
        contiguous(offsets),
        contiguous(grad_y),
        contiguous(grad_h_n),
        contiguous(grad_c_n),
        CLIP_MODES.index(options.clip_mode),
        options.clip_threshold,
        grad_scale,
        norms,
        clipped,
        grad_x,
        grad_h0,
        grad_c0,
        *(grads.get(kind, []) for kind in ("w_ih", "w_hh", "b_ih", "b_hh", "w_hr")),
        None if squares is None else squares.view(num_directions, count),
    )
    grad_weights: list[Tensor | None] = [None] * len(weights)
    for index, kind in enumerate(kinds):
        if kind in grads:
            grad_weights[index::count] = grads[kind]
    grad_weights = [grad if need else None for grad, need in zip(grad_weights, needed[1:], strict=True)]
    grad_weights = finish_gradients(
        grad_weights, weights, [None] * len(weights) if squares is None else squares.split(1)
    )
    return Gradients(grad_x, grad_h0, grad_c0, grad_weights, squares, norms, clipped)
