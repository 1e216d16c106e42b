"""The autograd functions of one layer: input projection, recurrence, and all their gradients.

``RNNFunction``, ``LSTMFunction`` and ``GRUFunction`` differ in their cell alone. Forward runs the fused recurrence; backward
applies a second function, ``_LayerBackward``, whose forward is the fused backward recurrence and whose own backward
differentiates the plain-torch reference. So double backward is right on every backend, clip included, and first-order gradients
do not depend on whether a graph of them is built.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from fastrnn import gradient_sums, ops, products, recording
from fastrnn.apply import may_be_differentiated, remember_signature
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


class _Weights(NamedTuple):
    """The parameters of a layer, one list entry per direction, in the input's dtype."""

    w_ih: list[Tensor]  # [G*H, I]
    w_hh: list[Tensor]  # [G*H, P]
    b_ih: list[Tensor]  # [G*H], empty without bias
    b_hh: list[Tensor]  # [G*H], empty without bias
    w_hr: list[Tensor]  # [P, H], empty without proj_size


def _split_weights(weights: Sequence[Tensor], num_directions: int, dtype: torch.dtype) -> _Weights:
    # contiguous whatever they are: strides cannot be asked for while torch.compile traces a backward
    cast = [(w if w.dtype == dtype else w.to(dtype)).contiguous() for w in weights]
    count = len(cast) // num_directions
    per_direction = [cast[d * count : (d + 1) * count] for d in range(num_directions)]
    has_bias, has_projection = count >= 4, count in (3, 5)
    return _Weights(
        w_ih=[w[0] for w in per_direction],
        w_hh=[w[1] for w in per_direction],
        b_ih=[w[2] for w in per_direction] if has_bias else [],
        b_hh=[w[3] for w in per_direction] if has_bias else [],
        w_hr=[w[-1] for w in per_direction] if has_projection else [],
    )


def _without_padding(x: Tensor, lengths: Tensor | None, offsets: Tensor | None) -> Tensor:
    """A padded batch with zeros past each length: selected away, since 0 * NaN would poison the weight gradient."""
    if lengths is None or offsets is not None:
        return x
    live = torch.arange(x.size(0), device=x.device)[:, None] < lengths
    return torch.where(live.unsqueeze(-1), x, 0.0)


def _layer_forward(
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
    num_directions = h0.size(0)
    w = _split_weights(weights, num_directions, x.dtype)
    biases: list[list[Tensor]] = [[] for _ in range(num_directions)]
    b_hn: list[Tensor] = []
    for d, (b_ih, b_hh) in enumerate(zip(w.b_ih, w.b_hh, strict=True)):
        if cell == "gru":  # the candidate's recurrent bias is inside the reset
            rz, n = b_hh.split([2 * b_hh.size(0) // 3, b_hh.size(0) // 3])
            biases[d] = [b_ih, torch.cat([rz, torch.zeros_like(n)])]
            b_hn.append(n)
        else:
            biases[d] = [b_ih, b_hh]
    keeps_gates = options.save and cell in ("lstm", "gru")
    gates = products.project(
        options.backend, _without_padding(x, lengths, offsets), w.w_ih, biases, transient=not keeps_gates
    )
    return ops.recurrence_forward(
        options.backend, cell, options.dropout_site, gates, w.w_hh, b_hn, w.w_hr, h0, c0, mask, lengths, offsets,
        save=options.save, plan=options.plan,
    )  # fmt: skip


def _recurrent_pairs(
    grad: Tensor, direction: int, h_prev: Tensor | None, y: Tensor, h0: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Pairs (gradient rows, h_{t-1} rows) whose products add up to the gradient of one direction's W_hh.

    ``h_prev`` is given where h_{t-1} is not simply y one step earlier (masks, ragged batches).
    """
    if h_prev is not None:
        return [(grad.flatten(0, -2), h_prev[direction].flatten(0, -2))]
    if h0.size(0) > 1:
        state_size = h0.size(-1)
        y = y[..., direction * state_size : (direction + 1) * state_size]
    first, later = (grad[0], grad[1:]) if direction == 0 else (grad[-1], grad[:-1])
    earlier = y[:-1] if direction == 0 else y[1:]
    pairs = [(first, h0[direction])]
    if grad.size(0) > 1:
        pairs.append((later.flatten(0, -2), earlier.flatten(0, -2)))
    return pairs


class _Gradients(NamedTuple):
    x: Tensor | None
    h0: Tensor
    c0: Tensor | None
    weights: list[Tensor | None]
    squares: Tensor | None  # [len(weights)] float64: the sum of squares of each weight's gradient
    norms: Tensor | None
    clipped: Tensor | None


def _layer_backward(
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
) -> _Gradients:
    """``needed`` says which of (x, *weights) want a gradient."""
    backend, num_directions = options.backend, h0.size(0)
    w = _split_weights(weights, num_directions, x.dtype)
    needs_x, needs_weights = needed[0], needed[1:]
    masked_state = mask is not None and options.dropout_site == "state"
    need_h_prev = masked_state or lengths is not None or offsets is not None
    grads = ops.recurrence_backward(
        backend, cell, options.dropout_site, forward, w.w_hh, w.w_hr, h0, c0, mask, lengths, offsets,
        grad_y, grad_h_n, grad_c_n, clip_mode=options.clip_mode, clip_threshold=options.clip_threshold,
        grad_scale=grad_scale, record=options.record_key >= 0, need_h_prev=need_h_prev, plan=options.plan,
        transient=True,
    )  # fmt: skip

    count = len(weights) // num_directions
    gate_size = w.w_hh[0].size(0)
    flat_x = _without_padding(x, lengths, offsets).flatten(0, -2).contiguous()
    h0 = h0.contiguous()
    h_prev = grads.h_prev if need_h_prev else None
    squares = gradient_sums.new(len(weights), x.device) if backend != "reference" else None
    square: Sequence[Tensor | None] = [None] * len(weights) if squares is None else squares.split(1)
    grad_weights: list[Tensor | None] = []
    for d in range(num_directions):
        of_direction = slice(d * count, (d + 1) * count)
        wanted, squares_of = needs_weights[of_direction], square[of_direction]
        grad_gates = grads.grad_gates[d]
        grad_w: list[Tensor | None] = [None] * count
        if wanted[0]:
            pair = (grad_gates.flatten(0, -2), flat_x)
            grad_w[0] = products.weight_gradient(backend, [[pair]], squares_of[0])
        if wanted[1]:
            if cell == "gru":
                assert grads.grad_n_h is not None
                parts = [grad_gates[..., : gate_size // 3 * 2], grads.grad_n_h[d]]
            else:
                parts = [grad_gates]
            groups = [_recurrent_pairs(part, d, h_prev, forward.y, h0) for part in parts]
            grad_w[1] = products.weight_gradient(backend, groups, squares_of[1])
        if w.b_ih:
            grad_b_ih = grads.grad_bias[d, :gate_size]
            grad_b_hh = grad_b_ih
            if cell == "gru":
                grad_b_hh = torch.cat([grad_b_ih[: gate_size // 3 * 2], grads.grad_bias[d, gate_size:]])
            grad_w[2] = grad_b_ih if wanted[2] else None
            # two parameters must not receive one tensor
            grad_w[3] = grad_b_hh.clone() if wanted[3] else None
        if w.w_hr and wanted[-1]:
            assert grads.grad_h is not None and forward.hidden is not None
            pair = (grads.grad_h[d].flatten(0, -2), forward.hidden[d].flatten(0, -2))
            grad_w[-1] = products.weight_gradient(backend, [[pair]], squares_of[-1])
        grad_weights.extend(grad_w)
    grad_weights = [None if g is None else g.to(master.dtype) for g, master in zip(grad_weights, weights, strict=True)]
    if squares is not None:
        for grad, total in zip(grad_weights, square, strict=True):
            if grad is not None and total is not None and grad.dim() == 1:  # a bias: not a product's output
                ops.sum_of_squares([grad], [], total)

    return _Gradients(
        x=products.input_gradient(backend, grads.grad_gates, w.w_ih) if needs_x else None,
        h0=grads.grad_h0,
        c0=grads.grad_c0,
        weights=grad_weights,
        squares=squares,
        norms=grads.norms,
        clipped=grads.clipped,
    )


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
            grads = _layer_backward(
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
        wanted = [n and t is not None for n, t in zip(ctx.needs_input_grad[12:], differentiable, strict=True)]
        given = [g for g in grad_outputs[3:] if g is not None]
        is_given = [g is not None for g in grad_outputs[3:]]
        if not given or not any(wanted):
            return (None,) * len(ctx.needs_input_grad)

        def first_order(*variables: Tensor) -> tuple[Tensor, ...]:
            replacements = iter(variables)
            values = [next(replacements) if w else t for w, t in zip(wanted, differentiable, strict=True)]
            grad_y, grad_h_n, grad_c_n, x, h0, c0, *weights = values
            forward = _layer_forward(ctx.cell, options, x, h0, c0, lengths, offsets, mask, weights)
            grads = _layer_backward(
                ctx.cell, options, ctx.needed, x, h0, c0, lengths, offsets, mask, grad_scale, forward,
                grad_y, grad_h_n, grad_c_n, weights,
            )  # fmt: skip
            outputs = (grads.x, grads.h0, grads.c0, *grads.weights)
            return tuple(cast(Tensor, out) for out, want in zip(outputs, is_given, strict=True) if want)

        variables = [t for t, w in zip(differentiable, wanted, strict=True) if w]
        vjp: Any = torch.func.vjp(first_order, *variables)[1]
        gradients = iter(vjp(tuple(given)))
        return (*[None] * 12, *(next(gradients) if w else None for w in wanted))


_NUM_LEADING = 10  # arguments of the functions below before the weights


def _forward(cell: str, inputs: tuple[Any, ...]) -> tuple[Tensor | None, ...]:
    options, _slot, lengths, offsets, _order, mask, _grad_scale, x, h0, c0, *weights = _arguments(inputs)
    with ops.below_autograd():
        return tuple(_layer_forward(cell, options, x, h0, c0, lengths, offsets, mask, weights))


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
    if squares is not None:
        for grad, total in zip(grad_weights, squares.split(1), strict=True):
            # a product's sum is that of its output, which a master in a lower precision rounds
            if grad is not None and torch.promote_types(x.dtype, grad.dtype) == grad.dtype:
                gradient_sums.note(grad, total)
    return (*[None] * 7, grad_x, grad_h0 if needs_h0 else None, grad_c0 if needs_c0 else None, *grad_weights)


class RNNFunction(torch.autograd.Function):
    """One layer of a tanh or relu RNN (:class:`torch.nn.RNN`), one or both directions.

    ``RNNFunction.apply(options, slot, lengths, offsets, order, mask, grad_scale, x, h0, None, *weights)``

    Args:
        options: :class:`Options`.
        slot: float32 tensor (1,) that backward writes to after it has recorded norms (``fastrnn.recording``), or None.
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


for _function in (_LayerBackward, RNNFunction, LSTMFunction, GRUFunction):
    remember_signature(_function)
