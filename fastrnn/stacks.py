"""The layers of a stack as a wavefront, on a GPU: all in one launch, each a chunk of steps behind the layer before it.

One layer of small batches leaves most of a GPU idle, and its steps wait for latencies. A stage runs a chunk of every layer at the
same time; between two stages one product brings each layer the input of its next chunk from the layer before it. Backward does the
same from the last layer and step on. Kernels and results are those of layer by layer, but for rounding: products are cut into chunks,
and both dropouts of an input are one factor. The gates of all layers, and in backward their gradients, are held at once.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from fastrnn import gradient_sums, ops, products, recording
from fastrnn.apply import differentiate, may_be_differentiated, remember_signature, runs_as_layer
from fastrnn.layers import (
    Gradients,
    Options,
    finish_gradients,
    layer_backward,
    layer_forward,
    note_sums,
    recurrent_pairs,
    split_biases,
    split_weights,
    weight_gradients,
)
from fastrnn.reference import Forward

MAX_LAYERS = 8  # csrc/params.h: kMaxDirections


class Cut(NamedTuple):
    """How a stack runs: steps of a chunk, and the plans of all stages, for what one leaves only that plan finds ("": the best)."""

    chunk: int
    forward_plan: str = ""
    backward_plan: str = ""


class Wavefront(NamedTuple):
    """How a stack of layers is cut. Chunks count steps in processing order, in backward from the last step."""

    layers: int
    steps: int
    chunk: int

    @property
    def chunks(self) -> int:
        return -(-self.steps // self.chunk)

    @property
    def stages(self) -> int:
        return self.chunks + self.layers - 1

    def fed(self, stage: int) -> list[tuple[range, int, int]]:
        """Which layers a product feeds before a stage, counted from the one that is ahead of all, which no product feeds.

        (layers, first chunk, steps): the first of the layers gets ``first chunk``, each next one the chunk before; chunks of as
        many ``steps``.
        """
        first, last = max(1, stage - self.chunks + 1), min(stage, self.layers - 1)
        rest = self.steps - (self.chunks - 1) * self.chunk
        parts = []
        if first <= last and stage - first == self.chunks - 1 and rest < self.chunk:
            parts.append((range(first, first + 1), self.chunks - 1, rest))
            first += 1
        if first <= last:
            parts.append((range(first, last + 1), stage - first, self.chunk))
        return parts


def _views(tensor: Tensor, layers: range, start: int, steps: int, chunk: int) -> Tensor:
    """Of ``tensor`` [L, T, B, n] the chunks of some layers, [layers, steps * B, n]: a view.

    The first layer's begins at step ``start``, each next layer's ``chunk`` steps before.
    """
    of_layer, of_step, _, _ = tensor.stride()
    size = (len(layers), steps * tensor.size(2), tensor.size(3))
    # Several layers have full chunks of two or more, so that the first stride is at least a matrix: none overlap. That of one
    # layer is never taken, but may not be negative.
    strides = (of_layer - chunk * of_step if len(layers) > 1 else 1, tensor.size(3), 1)
    return tensor.as_strided(size, strides, tensor.storage_offset() + layers.start * of_layer + start * of_step)


class _Products:
    """What brings the layers of a stack their inputs, or gradients, between two stages."""

    def __init__(self, backend: str, wavefront: Wavefront, weights: Sequence[Tensor], noise: Tensor | None) -> None:
        self._backend, self._wavefront, self._noise = backend, wavefront, noise
        self._weights = torch.stack(list(weights[1:]))  # [L - 1, G*H, H], of all layers but the first

    def feed_forward(self, stage: int, y: Tensor, gates: Tensor, bias: Tensor | None) -> None:
        """``gates`` of each layer that has a chunk in this stage, from ``y`` [L, T, B, H] of the layer before."""
        chunk = self._wavefront.chunk
        for layers, first_chunk, steps in self._wavefront.fed(stage):
            start, before = first_chunk * chunk, range(layers.start - 1, layers.stop - 1)
            starts = range(start, start - len(layers) * chunk, -chunk)
            inputs = [y[layer, s : s + steps].flatten(0, 1) for layer, s in zip(before, starts, strict=True)]
            x = torch.stack(inputs) if len(inputs) > 1 else inputs[0].unsqueeze(0)
            if self._noise is not None:
                x = x * _views(self._noise, before, start, steps, chunk)
            of_layers = slice(before.start, before.stop)
            products.batched(
                self._backend, x, self._weights[of_layers].transpose(1, 2), None if bias is None else bias[layers.start : layers.stop],
                _views(gates, layers, start, steps, chunk),
            )  # fmt: skip

    def feed_backward(self, stage: int, grad_gates: Tensor, grad_y: Tensor) -> None:
        """``grad_y`` of each layer that has a chunk in this stage, from ``grad_gates`` of the layer after."""
        last, chunk = self._wavefront.layers - 1, self._wavefront.chunk
        for behind, first_chunk, steps in self._wavefront.fed(stage):
            # the one furthest behind, which comes first in memory, has the smallest chunk number and the latest steps
            layers = range(last - behind.stop + 1, last - behind.start + 1)
            number = first_chunk - len(layers) + 1
            start = self._wavefront.steps - number * chunk - steps
            after = range(layers.start + 1, layers.stop + 1)
            out = _views(grad_y, layers, start, steps, chunk)
            products.batched(
                self._backend, _views(grad_gates, after, start, steps, chunk),
                self._weights[layers.start : layers.stop], None, out,
            )  # fmt: skip
            if self._noise is not None:
                out.mul_(_views(self._noise, layers, start, steps, chunk))


def _by_layer(y: Tensor, layers: int) -> Tensor:
    """y [T, B, L*H] as [L, T, B, H]: a view."""
    return y.view(*y.shape[:2], layers, -1).permute(2, 0, 1, 3)


def _stack_forward(
    cell: str,
    options: Options,
    cut: Cut,
    mask: Tensor | None,
    noise: Tensor | None,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
) -> Forward:
    """``y`` of the result is that of all layers, [T, B, L*H]."""
    layers, batch, _ = h0.shape
    backend = options.backend
    w = split_weights(weights, layers, x.dtype)
    biases, b_hn = split_biases(cell, w)
    wavefront = Wavefront(layers, x.size(0), cut.chunk)
    gates = x.new_empty((layers, x.size(0), batch, w.w_hh[0].size(0)))
    bias = torch.stack([sum(b[1:], b[0]).unsqueeze(0) for b in biases]) if w.b_ih else None
    flat_x, of_first = x.flatten(0, 1).unsqueeze(0), w.w_ih[0].t().unsqueeze(0)
    products.batched(backend, flat_x, of_first, None if bias is None else bias[:1], gates[:1].flatten(1, 2))
    forward, run = ops.forward_stages(
        backend, cell, options.dropout_site, gates, w.w_hh, b_hn, [], h0, c0, mask, None, None,
        save=options.save, plan=options.plan or cut.forward_plan, chunk=cut.chunk,
    )  # fmt: skip
    y = _by_layer(forward.y, layers)
    feed = _Products(backend, wavefront, w.w_ih, noise)
    for stage in range(wavefront.stages):
        feed.feed_forward(stage, y, gates, bias)
        run(stage)
    return forward


def _stack_backward(
    cell: str,
    options: Options,
    cut: Cut,
    needed: Sequence[bool],
    mask: Tensor | None,
    noise: Tensor | None,
    grad_scale: Tensor | None,
    forward: Forward,
    grad_y: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
) -> Gradients:
    """``grad_y`` is that of the last layer; ``needed`` says which of (x, *weights) want a gradient."""
    layers, backend = h0.size(0), options.backend
    w = split_weights(weights, layers, x.dtype)
    wavefront = Wavefront(layers, x.size(0), cut.chunk)
    masked_state = mask is not None and options.dropout_site == "state"
    y = _by_layer(forward.y, layers)
    all_grad_y = forward.y.new_empty(y.shape)
    if grad_y is None:
        all_grad_y[-1].zero_()
    else:
        all_grad_y[-1].copy_(grad_y)
    grads, run = ops.backward_stages(
        backend, cell, options.dropout_site, forward, w.w_hh, [], h0, c0, mask, None, None,
        all_grad_y, grad_h_n, grad_c_n,
        clip_mode=options.clip_mode, clip_threshold=options.clip_threshold, grad_scale=grad_scale,
        record=options.record_key >= 0, need_h_prev=masked_state, plan=options.plan or cut.backward_plan,
        chunk=cut.chunk,
    )  # fmt: skip
    feed = _Products(backend, wavefront, w.w_ih, noise)
    for stage in range(wavefront.stages):
        feed.feed_backward(stage, grads.grad_gates, all_grad_y)
        run(stage)

    count = len(weights) // layers
    squares = gradient_sums.new(len(weights), x.device)
    square: Sequence[Tensor | None] = [None] * len(weights) if squares is None else squares.split(1)
    grad_weights: list[Tensor | None] = []
    for layer in range(layers):
        of_layer = slice(layer * count, (layer + 1) * count)
        below = x if layer == 0 else y[layer - 1]
        if noise is not None and layer > 0:
            below = below * noise[layer - 1]
        pairs = functools.partial(
            recurrent_pairs, direction=0, h_prev=grads.h_prev[layer] if masked_state else None,
            y=y[layer], h0=h0[layer : layer + 1].contiguous(),
        )  # fmt: skip
        grad_weights += weight_gradients(
            backend, cell, needed[1:][of_layer], square[of_layer], grads.grad_gates[layer],
            None if grads.grad_n_h is None else grads.grad_n_h[layer], grads.grad_bias[layer],
            below.flatten(0, -2), pairs,
        )  # fmt: skip
    return Gradients(
        x=products.input_gradient(backend, grads.grad_gates[:1], w.w_ih[:1]) if needed[0] else None,
        h0=grads.grad_h0,
        c0=grads.grad_c0,
        weights=finish_gradients(grad_weights, weights, square),
        squares=squares,
        norms=grads.norms,
        clipped=grads.clipped,
    )


def _of_layer(tensor: Tensor | None, layer: int) -> Tensor | None:
    return None if tensor is None else tensor[layer : layer + 1]


def _layer_by_layer(
    cell: str,
    options: Options,
    mask: Tensor | None,
    noise: Tensor | None,
    grad_scale: Tensor | None,
    grad_y: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor | None, list[Tensor]]:
    """The same gradients, of x, h0, c0 and the weights, by the reference, which can be differentiated."""
    layers, count = h0.size(0), len(weights) // h0.size(0)
    inputs, forwards = [x], []
    for layer in range(layers):
        of_layer = weights[layer * count : (layer + 1) * count]
        state = (h0[layer : layer + 1], _of_layer(c0, layer), None, None, _of_layer(mask, layer))
        forwards.append(layer_forward(cell, options, inputs[-1], *state, of_layer))
        inputs.append(forwards[-1].y if noise is None or layer + 1 == layers else forwards[-1].y * noise[layer])
    grads: list[Gradients] = []
    for layer in reversed(range(layers)):
        of_layer = weights[layer * count : (layer + 1) * count]
        of_states = (h0[layer : layer + 1], _of_layer(c0, layer), None, None, _of_layer(mask, layer), grad_scale)
        of_results = (forwards[layer], grad_y, _of_layer(grad_h_n, layer), _of_layer(grad_c_n, layer))
        needed = [True] * (1 + count)
        grads.append(layer_backward(cell, options, needed, inputs[layer], *of_states, *of_results, of_layer))
        grad_y = grads[-1].x
        if noise is not None and layer > 0 and grad_y is not None:
            grad_y = grad_y * noise[layer - 1]
    grads.reverse()
    assert grads[0].x is not None
    return (
        grads[0].x,
        torch.cat([g.h0 for g in grads]),
        None if c0 is None else torch.cat([cast(Tensor, g.c0) for g in grads]),
        [cast(Tensor, g) for of_layer in grads for g in of_layer.weights],
    )


@remember_signature
class _StackBackward(torch.autograd.Function):
    """First-order gradients as a differentiable function of the stack's inputs and of the incoming gradients."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor | None, ...]:
        (
            options, cell, cut, needed, mask, noise, grad_scale, all_y, gates, cells, n_h,
            grad_y, grad_h_n, grad_c_n, x, h0, c0, *weights,
        ) = inputs  # fmt: skip
        forward = Forward(all_y, all_y, None, gates, cells, n_h, None)  # h_n, c_n are not read
        with ops.below_autograd():
            grads = _stack_backward(
                cell, options, cut, needed, mask, noise, grad_scale, forward, grad_y, grad_h_n, grad_c_n,
                x, h0, c0, weights,
            )  # fmt: skip
        return (grads.norms, grads.clipped, grads.squares, grads.x, grads.h0, grads.c0, *grads.weights)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        ctx.options, ctx.cell = inputs[:2]
        ctx.save_for_backward(*inputs[4:7], *inputs[11:])
        ctx.mark_non_differentiable(*(t for t in output[:3] if t is not None))
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        mask, noise, grad_scale, *differentiable = ctx.saved_tensors
        options = ctx.options._replace(backend="reference", record_key=-1, save=True)

        def first_order(*values: Any) -> tuple[Tensor | None, ...]:
            grad_y, grad_h_n, grad_c_n, x, h0, c0, *weights = values
            grads = _layer_by_layer(
                ctx.cell, options, mask, noise, grad_scale, grad_y, grad_h_n, grad_c_n, x, h0, c0, weights
            )
            return (*grads[:3], *grads[3])

        gradients = differentiate(first_order, differentiable, ctx.needs_input_grad[11:], grad_outputs[3:])
        return (*[None] * 11, *gradients)


_NUM_LEADING = 10  # arguments of StackFunction before the weights


@runs_as_layer
class StackFunction(torch.autograd.Function):
    """Several layers of one direction as a wavefront.

    ``StackFunction.apply(options, cell, cut, slots, mask, noise, grad_scale, x, h0, c0, *weights)``, all weights of a layer after
    those of the layer before, in the order of :class:`fastrnn.functions.LSTMFunction`.

    Args:
        options: as of a layer; ``record_key`` is the first layer's, the others' follow.
        cut: :class:`Cut`.
        slots: a tensor (1,) of each layer, or None (``fastrnn.recording``).
        mask: recurrent dropout factors (L, B, H), or None.
        noise: (L - 1, T, B, H), what the output of each layer but the last is multiplied with; None: 1. Constant.
        x: (T, B, I). h0, c0: (L, B, H).

    Returns:
        (y, h_n, c_n, *saved): (T, B, H), (L, B, H), (L, B, H) or None; four tensors or Nones that are kept for backward.
    """

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor | None, ...]:
        options, cell, cut, _slots, mask, noise, _grad_scale, x, h0, c0, *weights = inputs
        with ops.below_autograd():
            forward = _stack_forward(cell, options, cut, mask, noise, x, h0, c0, weights)
            # a copy: what a user does to it in place must not reach what is saved
            y = _by_layer(forward.y, h0.size(0))[-1].clone(memory_format=torch.contiguous_format)
            return (y, forward.h_n, forward.c_n, *forward[:1], *forward[3:6])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        options, cell, cut, slots, *tensors = inputs
        saved = output[3:]
        ctx.options, ctx.cell, ctx.cut, ctx.slots = options, cell, cut, slots
        ctx.save_for_backward(*saved, *tensors)
        ctx.mark_non_differentiable(*(t for t in saved if t is not None))
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Any, ...]:
        all_y, gates, cells, n_h, mask, noise, grad_scale, x, h0, c0, *weights = ctx.saved_tensors
        options: Options = ctx.options
        if not options.save:
            raise RuntimeError("this stack ran with Options(save=False), so nothing was kept for backward")
        grad_y, grad_h_n, grad_c_n = grad_outputs[:3]
        if grad_y is None and grad_h_n is None and grad_c_n is None:
            return (None,) * (_NUM_LEADING + len(weights))
        needs_x, needs_h0, needs_c0, *needs_weights = ctx.needs_input_grad[7:]
        run: Any = _StackBackward.apply if may_be_differentiated() else _StackBackward.forward
        norms, clipped, squares, grad_x, grad_h0, grad_c0, *grad_weights = run(
            options, ctx.cell, ctx.cut, (needs_x, *needs_weights), mask, noise, grad_scale, all_y, gates, cells, n_h,
            grad_y, grad_h_n, grad_c_n, x, h0, c0, *weights,
        )  # fmt: skip
        for layer, slot in enumerate(ctx.slots or ()):
            of_layer = slice(layer, layer + 1)
            recording.record(slot, norms[of_layer], clipped[of_layer], options.record_key + layer)
        note_sums(grad_weights, squares, x.dtype)
        return (*[None] * 7, grad_x, grad_h0 if needs_h0 else None, grad_c0 if needs_c0 else None, *grad_weights)
