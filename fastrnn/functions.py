"""The autograd functions of one layer: input projection, recurrence, and all their gradients.

``RNNFunction``, ``LSTMFunction`` and ``GRUFunction`` differ in their cell alone. Forward runs the fused recurrence; backward
applies a second function, ``_LayerBackward``, whose forward is the fused backward recurrence and whose own backward
differentiates the plain-torch reference. So double backward is right on every backend, clip included, and first-order gradients
do not depend on whether a graph of them is built.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastrnn import cpu_layers, layers, ops, recording
from fastrnn.apply import differentiate, may_be_differentiated, remember_signature, runs_as_layer
from fastrnn.layers import Options as Options
from fastrnn.layers import note_sums
from fastrnn.reference import Forward


def _of(backend: str) -> Any:
    """The module with this backend's layer_forward and layer_backward."""
    return cpu_layers if backend == "cpu" else layers


def _arguments(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """A function's arguments, options first.

    torch.compile, where no gradient is wanted, puts a ctx in front although ``setup_context`` exists (it counts parameters,
    which fails for ``*weights``), and passes named tuples on as plain ones.
    """
    if inputs and not isinstance(inputs[0], tuple):
        inputs = inputs[1:]
    if not inputs or not isinstance(inputs[0], tuple):
        raise TypeError("the first argument of apply() should be fastrnn.functions.Options")
    return inputs if isinstance(inputs[0], Options) else (Options(*inputs[0]), *inputs[1:])


@remember_signature
class _LayerBackward(torch.autograd.Function):
    """First-order gradients as a differentiable function of the layer's inputs and of the incoming gradients."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor | None, ...]:
        (
            options, cell, needed, lengths, offsets, mask, grad_scale, y, gates, cells, n_h, hidden,
            grad_y, grad_h_n, grad_c_n, x, h0, c0, *weights,
        ) = _arguments(inputs)  # fmt: skip
        forward = Forward(y, y, None, gates, cells, n_h, hidden)  # h_n, c_n are not read
        with ops.below_autograd():
            grads = _of(options.backend).layer_backward(
                cell, options, needed, x, h0, c0, lengths, offsets, mask, grad_scale, forward,
                grad_y, grad_h_n, grad_c_n, weights,
            )  # fmt: skip
        return (grads.norms, grads.clipped, grads.squares, grads.x, grads.h0, grads.c0, *grads.weights)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        ctx.options, ctx.cell, ctx.needed = inputs[:3]
        ctx.save_for_backward(*inputs[3:7], *inputs[12:])
        recorded = [t for t in output[:3] if t is not None]
        ctx.mark_non_differentiable(*recorded)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        lengths, offsets, mask, grad_scale, *differentiable = ctx.saved_tensors
        # Without the fused kernels, from the inputs alone: what forward saved is constant here.
        options = ctx.options._replace(backend="reference", record_key=-1, save=True)

        def first_order(*values: Any) -> tuple[Tensor | None, ...]:
            grad_y, grad_h_n, grad_c_n, x, h0, c0, *weights = values
            forward = layers.layer_forward(ctx.cell, options, x, h0, c0, lengths, offsets, mask, weights)
            grads = layers.layer_backward(
                ctx.cell, options, ctx.needed, x, h0, c0, lengths, offsets, mask, grad_scale, forward,
                grad_y, grad_h_n, grad_c_n, weights,
            )  # fmt: skip
            return (grads.x, grads.h0, grads.c0, *grads.weights)

        gradients = differentiate(first_order, differentiable, ctx.needs_input_grad[12:], grad_outputs[3:])
        return (*[None] * 12, *gradients)


_NUM_LEADING = 10  # arguments of the functions below before the weights


def _forward(cell: str, inputs: tuple[Any, ...]) -> tuple[Tensor | None, ...]:
    options, _slot, lengths, offsets, _order, mask, _grad_scale, x, h0, c0, *weights = _arguments(inputs)
    with ops.below_autograd():
        run = _of(options.backend).layer_forward
        return tuple(run(cell, options, x, h0, c0, lengths, offsets, mask, weights))


def _setup_context(ctx: Any, cell: str, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    options, slot, lengths, offsets, order, mask, grad_scale, x, h0, c0, *weights = inputs
    y, _h_n, _c_n, *saved = output
    ctx.cell, ctx.options = cell, options
    ctx.slot = slot  # not saved for backward: backward writes there, which saved tensors do not allow
    ctx.save_for_backward(lengths, offsets, order, mask, grad_scale, y, *saved, x, h0, c0, *weights)
    ctx.mark_non_differentiable(*(t for t in saved if t is not None))
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_outputs: tuple[Tensor | None, ...]) -> tuple[Any, ...]:
    lengths, offsets, order, mask, grad_scale, y, gates, cells, n_h, hidden, x, h0, c0, *weights = ctx.saved_tensors
    options: Options = ctx.options
    if not options.save:
        raise RuntimeError("this layer ran with Options(save=False), so nothing was kept for backward")
    grad_y, grad_h_n, grad_c_n = grad_outputs[:3]
    if grad_y is None and grad_h_n is None and grad_c_n is None:
        return (None,) * (_NUM_LEADING + len(weights))
    needs_x, needs_h0, needs_c0, *needs_weights = ctx.needs_input_grad[7:]
    # Where no graph of this backward is built, the function around it would be overhead alone.
    run: Any = _LayerBackward.apply if may_be_differentiated() else _LayerBackward.forward
    norms, clipped, squares, grad_x, grad_h0, grad_c0, *grad_weights = run(
        options, ctx.cell, (needs_x, *needs_weights), lengths, offsets, mask, grad_scale,
        y, gates, cells, n_h, hidden, grad_y, grad_h_n, grad_c_n, x, h0, c0, *weights,
    )  # fmt: skip
    if ctx.slot is not None:
        if order is not None:
            norms, clipped = norms.index_select(-1, order), clipped.index_select(-1, order)
        recording.record(ctx.slot, norms, clipped, options.record_key)
    note_sums(grad_weights, squares, x.dtype)
    return (*[None] * 7, grad_x, grad_h0 if needs_h0 else None, grad_c0 if needs_c0 else None, *grad_weights)


@runs_as_layer
class RNNFunction(torch.autograd.Function):
    """One layer of a tanh or relu RNN (:class:`torch.nn.RNN`), one or both directions.

    ``RNNFunction.apply(options, slot, lengths, offsets, order, mask, grad_scale, x, h0, None, *weights)``

    Args:
        options: :class:`Options`.
        slot: float32 tensor (1,) that the operator which records norms writes to (``fastrnn.recording``), or None: they are not
            recorded.
        lengths: int64 (B,) on x's device, or None. In any order for a padded batch; falling for a packed one.
        offsets: None for a padded batch; int64 (T,), the first row of each step, for a packed one.
        order: int64 (B,) or None: where each of the user's samples stands in this batch, for the recorded norms.
        mask: recurrent dropout factors, (D, B, H); float64 for float64, else float32. None: off. Constant: no gradient.
        grad_scale: float32 (), the loss scale to take out of thresholds and norms, or None.
        x: (T, B, I) padded or (rows, I) packed; padding may hold anything.
        h0: (D, B, H), x's dtype. The next argument is c0, None for this cell.
        weights: per direction w_ih (H, I), w_hh (H, H) and, with bias, b_ih (H), b_hh (H). Cast to x's dtype; their
            gradients come in their own.

    Returns:
        (y, h_n, None, *saved): y (T, B, D*H) or (rows, D*H), zero past a length; h_n (D, B, H), the state after each
        sample's last step; then four tensors or Nones that are kept for backward.

    Raises:
        RuntimeError: a shape, dtype or device does not fit, or a length is beyond the sequence.
    """

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor | None, ...]:
        return _forward(f"rnn_{_arguments(inputs)[0].nonlinearity}", inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        _setup_context(ctx, f"rnn_{inputs[0].nonlinearity}", inputs, output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Any, ...]:
        return _backward(ctx, grad_outputs)


@runs_as_layer
class LSTMFunction(torch.autograd.Function):
    """One layer of an LSTM (:class:`torch.nn.LSTM`), one or both directions, with or without projection.

    ``LSTMFunction.apply(options, slot, lengths, offsets, order, mask, grad_scale, x, h0, c0, *weights)``

    As :class:`RNNFunction`, with c0 (D, B, H); four gates i, f, g, o in the weights' 4*H rows; with proj_size P each
    direction's weights end with w_hr (P, H), h is P wide, and the mask is (D, B, P) at site "state", (D, B, H) at site
    "candidate".

    Returns:
        (y, h_n, c_n, *saved)
    """

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor | None, ...]:
        return _forward("lstm", inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        _setup_context(ctx, "lstm", inputs, output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Any, ...]:
        return _backward(ctx, grad_outputs)


@runs_as_layer
class GRUFunction(torch.autograd.Function):
    """One layer of a GRU (:class:`torch.nn.GRU`: reset after the product), one or both directions.

    ``GRUFunction.apply(options, slot, lengths, offsets, order, mask, grad_scale, x, h0, None, *weights)``

    As :class:`RNNFunction`, with three gates r, z, n in the weights' 3*H rows.
    """

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor | None, ...]:
        return _forward("gru", inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        _setup_context(ctx, "gru", inputs, output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Any, ...]:
        return _backward(ctx, grad_outputs)
