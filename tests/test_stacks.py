"""Layers as a wavefront: the same numbers as layer by layer, whatever the chunk, the plan and the options."""

import pytest
import torch
from compare import assert_equal_to_rounding, assert_error_ratio
from conftest import BACKENDS

from fastrnn import recording
from fastrnn.functions import Options
from fastrnn.reference import NUM_GATES
from fastrnn.stacks import StackFunction, _layer_by_layer

KERNELS = [name for name in ("emulated", "cuda") if name in BACKENDS]
PLANS = ("block", "stepwise", "cluster", "grid", "grid:cluster=2")
CELLS = ("rnn_tanh", "lstm", "gru")

pytestmark = pytest.mark.skipif(not KERNELS, reason="no backend with CUDA kernels")


def make_stack(
    cell, layers, *, steps=7, batch=3, hidden_size=10, site=None, noisy=False, bias=True, dtype=torch.float64
):
    """(inputs that have gradients, mask, noise)."""
    random = torch.Generator().manual_seed(1)

    def draw(*shape, scale=1.0):
        return (torch.randn(shape, generator=random, dtype=torch.float64) * scale).to(dtype)

    def keep(*shape):
        return (torch.rand(shape, generator=random) > 0.3).to(dtype) / 0.7

    gates = NUM_GATES[cell] * hidden_size
    scale = hidden_size**-0.5
    weights = []
    for layer in range(layers):
        width = 5 if layer == 0 else hidden_size
        shapes = [(gates, width), (gates, hidden_size), *([(gates,)] * 2 if bias else [])]
        weights += [draw(*shape, scale=scale) for shape in shapes]
    states = [draw(layers, batch, hidden_size) for _ in range(2 if cell == "lstm" else 1)]
    mask = keep(layers, batch, hidden_size) if site else None
    if mask is not None and dtype != torch.float64:
        mask = mask.float()
    noise = keep(layers - 1, steps, batch, hidden_size) if noisy else None
    return [draw(steps, batch, 5), *states, *weights], mask, noise


def options_of(cell, backend, site=None, **more):
    nonlinearity = cell.removeprefix("rnn_") if cell.startswith("rnn") else "tanh"
    return Options(nonlinearity=nonlinearity, dropout_site=site or "state", backend=backend, **more)


def run_stack(cell, chunk, inputs, mask, noise, options, slots=None):
    x, h0, *rest = inputs
    c0 = rest.pop(0) if cell == "lstm" else None
    y, h_n, c_n, *_ = StackFunction.apply(options, cell, chunk, slots, mask, noise, None, x, h0, c0, *rest)
    return [y, h_n] if c_n is None else [y, h_n, c_n]


def by_layers(cell, inputs, mask, noise, options):
    """Outputs and gradients of fixed functions of them, layer by layer, by the reference."""
    from fastrnn.layers import layer_forward

    x, h0, *rest = inputs
    c0 = rest.pop(0) if cell == "lstm" else None
    count = len(rest) // h0.size(0)
    finals = []
    below = x
    for layer in range(h0.size(0)):
        of = slice(layer, layer + 1)
        forward = layer_forward(
            cell, options, below, h0[of], None if c0 is None else c0[of], None, None, None if mask is None else mask[of],
            rest[layer * count : (layer + 1) * count],
        )  # fmt: skip
        finals.append((forward.h_n, forward.c_n))
        below = forward.y if noise is None or layer + 1 == h0.size(0) else forward.y * noise[layer]
    h_n = torch.cat([h for h, _ in finals])
    outputs = [below, h_n] if c0 is None else [below, h_n, torch.cat([c for _, c in finals])]
    grads = [torch.cos(torch.arange(o.numel(), dtype=o.dtype).view(o.shape)) for o in outputs]
    full = [*grads, None][:3]
    gx, gh, gc, gw = _layer_by_layer(cell, options, mask, noise, None, *full, x, h0, c0, rest)
    return outputs, [gx, gh, *([] if gc is None else [gc]), *gw]


def numbers_of(outputs, inputs):
    grads = [torch.cos(torch.arange(o.numel(), dtype=o.dtype).view(o.shape)) for o in outputs]
    return [*outputs, *torch.autograd.grad(outputs, inputs, grads)]


@pytest.mark.parametrize("chunk", [1, 2, 3, 6, 7, 9])
@pytest.mark.parametrize("layers", [2, 4])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("kernels", KERNELS)
def test_equal_to_layer_by_layer_for_every_chunk(kernels, cell, layers, chunk):
    inputs, mask, noise = make_stack(cell, layers, site="state", noisy=True)
    outputs, grads = by_layers(cell, inputs, mask, noise, options_of(cell, "reference"))
    inputs = [t.requires_grad_() for t in inputs]
    ours = run_stack(cell, chunk, inputs, mask, noise, options_of(cell, kernels))
    for our, true in zip(numbers_of(ours, inputs), [*outputs, *grads], strict=True):
        assert_equal_to_rounding(our, true)


@pytest.mark.parametrize("clip", [None, "norm", "value"])
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("kernels", KERNELS)
def test_every_plan_begins_in_the_middle_of_a_sequence(kernels, cell, plan, clip):
    """Two chunks and a shorter one, recurrent dropout, clips: numbers and recorded norms."""
    clips = {"clip_mode": clip, "clip_threshold": 0.5 if clip == "norm" else 0.05} if clip else {}
    inputs, mask, noise = make_stack(cell, 3, steps=5, batch=10, hidden_size=40, site="state", dtype=torch.float32)
    exact_inputs = [t.double() for t in inputs]
    outputs, grads = by_layers(cell, exact_inputs, mask.double(), noise, options_of(cell, "reference", **clips))
    low, low_grads = by_layers(cell, inputs, mask, noise, options_of(cell, "reference", **clips))
    inputs = [t.requires_grad_() for t in inputs]
    slots = tuple(torch.zeros(1) for _ in range(3))
    options = options_of(cell, kernels, plan=plan, record_key=7654, **clips)
    ours = numbers_of(run_stack(cell, 2, inputs, mask, noise, options, slots), inputs)
    for our, plain, true in zip(ours, [*low, *low_grads], [*outputs, *grads], strict=True):
        assert_error_ratio(our, plain, true, 4)
    for layer in range(3):
        norms = recording.recorded(7654 + layer).norms
        assert norms.shape == (1, 5, 10) and (norms > 0).all()
