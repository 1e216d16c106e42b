"""Layers as a wavefront: the same numbers as layer by layer, whatever the chunk, the plan and the options."""

import copy

import pytest
import torch
from compare import assert_equal_to_rounding, assert_error_ratio
from conftest import BACKENDS

import fastrnn
from fastrnn import _C, plans, recording, wavefronts
from fastrnn.functions import Options
from fastrnn.reference import NUM_GATES
from fastrnn.stacks import Cut, StackFunction, _layer_by_layer

KERNELS = [name for name in ("emulated", "cuda") if name in BACKENDS]
PLANS = ("block", "stepwise", "cluster", "grid")
CELLS = ("rnn_tanh", "lstm", "gru")

pytestmark = pytest.mark.skipif(not KERNELS, reason="no backend with CUDA kernels")


def make_stack(
    cell, layers, *, steps=7, batch=3, hidden_size=10, site=None, noisy=False, dtype=torch.float64, device="cpu"
):
    """(inputs that have gradients, mask, noise)."""
    random = torch.Generator().manual_seed(1)

    def draw(*shape, scale=1.0):
        return (torch.randn(shape, generator=random, dtype=torch.float64) * scale).to(device, dtype)

    def keep(*shape):
        return (torch.rand(shape, generator=random) > 0.3).to(device, dtype) / 0.7

    gates = NUM_GATES[cell] * hidden_size
    scale = hidden_size**-0.5
    weights = []
    for layer in range(layers):
        width = 5 if layer == 0 else hidden_size
        shapes = [(gates, width), (gates, hidden_size), (gates,), (gates,)]
        weights += [draw(*shape, scale=scale) for shape in shapes]
    states = [draw(layers, batch, hidden_size) for _ in range(2 if cell == "lstm" else 1)]
    mask = keep(layers, batch, hidden_size) if site else None
    if mask is not None and dtype != torch.float64:
        mask = mask.float()
    noise = keep(layers - 1, steps, batch, hidden_size) if noisy else None
    return [draw(steps, batch, 5), *states, *weights], mask, noise


def device_of(kernels):
    return "cuda" if kernels == "cuda" else "cpu"


def options_of(cell, backend, site=None, **more):
    nonlinearity = cell.removeprefix("rnn_") if cell.startswith("rnn") else "tanh"
    return Options(nonlinearity=nonlinearity, dropout_site=site or "state", backend=backend, **more)


def run_stack(cell, chunk, inputs, mask, noise, options, slots=None):
    x, h0, *rest = inputs
    c0 = rest.pop(0) if cell == "lstm" else None
    y, h_n, c_n, *_ = StackFunction.apply(options, cell, Cut(chunk), slots, mask, noise, None, x, h0, c0, *rest)
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
    grads = [torch.cos(torch.arange(o.numel(), dtype=o.dtype, device=o.device).view(o.shape)) for o in outputs]
    full = [*grads, None][:3]
    gx, gh, gc, gw = _layer_by_layer(cell, options, mask, noise, None, *full, x, h0, c0, rest)
    return outputs, [gx, gh, *([] if gc is None else [gc]), *gw]


def numbers_of(outputs, inputs):
    grads = [torch.cos(torch.arange(o.numel(), dtype=o.dtype, device=o.device).view(o.shape)) for o in outputs]
    return [*outputs, *torch.autograd.grad(outputs, inputs, grads)]


@pytest.mark.parametrize("chunk", [1, 2, 3, 6, 7, 9])
@pytest.mark.parametrize("layers", [2, 4])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("kernels", KERNELS)
def test_equal_to_layer_by_layer_for_every_chunk(kernels, cell, layers, chunk):
    inputs, mask, noise = make_stack(cell, layers, site="state", noisy=True, device=device_of(kernels))
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
    inputs, mask, noise = make_stack(
        cell, 3, steps=5, batch=10, hidden_size=40, site="state", dtype=torch.float32, device=device_of(kernels)
    )
    exact_inputs = [t.double() for t in inputs]
    outputs, grads = by_layers(cell, exact_inputs, mask.double(), noise, options_of(cell, "reference", **clips))
    low, low_grads = by_layers(cell, inputs, mask, noise, options_of(cell, "reference", **clips))
    inputs = [t.requires_grad_() for t in inputs]
    slots = tuple(torch.zeros(1) for _ in range(3))
    options = options_of(cell, kernels, plan=plan, record_key=7654, **clips)
    ours = numbers_of(run_stack(cell, 2, inputs, mask, noise, options, slots), inputs)
    for our, plain, true in zip(ours, [*low, *low_grads], [*outputs, *grads], strict=True):
        assert_error_ratio(our, plain, true, 3)
    for layer in range(3):
        norms = recording.recorded(7654 + layer).norms
        assert norms.shape == (1, 5, 10) and (norms > 0).all()


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("kernels", KERNELS)
def test_gradients_of_first_and_second_order_are_those_of_differences(kernels, cell):
    inputs, mask, noise = make_stack(
        cell, 2, steps=3, batch=2, hidden_size=3, site="state", noisy=True, device=device_of(kernels)
    )
    inputs = [t.requires_grad_() for t in inputs]
    options = options_of(cell, kernels, clip_mode="norm", clip_threshold=0.4)

    def run(*inputs):
        return tuple(run_stack(cell, 2, inputs, mask, noise, options))

    free = options_of(cell, kernels)
    assert torch.autograd.gradcheck(lambda *i: tuple(run_stack(cell, 2, i, mask, noise, free)), inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def both_ways(monkeypatch, rnn, x, chunk, hx=None):
    """(y, finals, gradients, norms) of a module layer by layer, then as a wavefront."""
    results = []
    for value in ("0", str(chunk)):
        monkeypatch.setenv("FASTRNN_WAVEFRONT", value)
        torch.manual_seed(5)
        rnn.zero_grad()
        x = x.detach().requires_grad_()
        y, final = rnn(x, hx)
        finals = list(final) if isinstance(final, tuple) else [final]
        (y.float().cos().sum() + sum((f.float() * 0.3).sin().sum() for f in finals)).backward()
        norms = rnn.state_grad_norms
        results.append([y, *finals, x.grad, *(p.grad for p in rnn.parameters()), *([] if norms is None else [norms])])
    return results


OPTIONS = {
    "plain": {},
    "no bias": {"bias": False, "batch_first": True},
    "dropout": {"dropout": 0.4, "input_dropout": 0.3, "recurrent_dropout": 0.2},
    "candidate": {"input_dropout": 0.3, "recurrent_dropout": 0.2, "recurrent_dropout_mode": "candidate"},
    "weight": {"dropout": 0.4, "recurrent_dropout": 0.2, "recurrent_dropout_mode": "weight"},
    "norm clip": {"state_grad_clip": 0.05, "record_state_grad_norms": True},
    "value clip": {"state_grad_clip": 0.01, "state_grad_clip_mode": "value", "record_state_grad_norms": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("name", ["LSTM", "GRU"])
@pytest.mark.parametrize("kernels", KERNELS)
def test_modules_give_the_same_either_way(monkeypatch, kernels, name, options):
    device = device_of(kernels)
    torch.manual_seed(0)
    rnn = getattr(fastrnn, name)(5, 9, num_layers=3, dtype=torch.float64, device=device, **options)
    x = torch.randn((4, 7, 5) if options.get("batch_first") else (7, 4, 5), dtype=torch.float64, device=device)
    with fastrnn.backend(kernels):
        by_layers, stacked = both_ways(monkeypatch, rnn, x, 3)
    assert any(type(call).__name__ == "StackFunctionBackward" for call in graph_of(stacked[0]))
    for one, other in zip(stacked, by_layers, strict=True):
        assert_equal_to_rounding(one, other)
    if options.get("record_state_grad_norms"):
        assert rnn.state_grad_norms.shape == (3, 7, 4) and rnn.state_grad_clipped.any()


def graph_of(tensor):
    found, stack = set(), [tensor.grad_fn]
    while stack:
        node = stack.pop()
        if node is not None and node not in found:
            found.add(node)
            stack.extend(following for following, _ in node.next_functions)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kernels", KERNELS)
def test_inference_and_storage_types(monkeypatch, kernels, dtype):
    device = device_of(kernels)
    torch.manual_seed(0)
    rnn = fastrnn.LSTM(5, 20, num_layers=4, dtype=dtype, device=device)
    x = torch.randn(9, 3, 5, dtype=dtype, device=device)
    with fastrnn.backend(kernels):
        by_layers, stacked = both_ways(monkeypatch, rnn, x, 4)
        with torch.no_grad():
            y, _ = rnn(x)
        exact, _ = both_ways(monkeypatch, copy.deepcopy(rnn).double(), x.double(), 4)
    for ours, plain, true in zip(stacked, by_layers, exact, strict=True):
        assert_error_ratio(ours, plain, true, 3)
    assert y.equal(stacked[0])


@pytest.mark.parametrize("kernels", KERNELS)
def test_an_output_may_be_changed_in_place_and_a_graph_used_twice(monkeypatch, kernels):
    monkeypatch.setenv("FASTRNN_WAVEFRONT", "2")
    device = device_of(kernels)
    rnn = fastrnn.GRU(3, 4, num_layers=2, dtype=torch.float64, device=device)
    x = torch.randn(5, 2, 3, dtype=torch.float64, device=device, requires_grad=True)
    with fastrnn.backend(kernels):
        y, _ = rnn(x)
        first = torch.autograd.grad(y.sum(), x, retain_graph=True)[0]
        y.mul_(2)
        assert_equal_to_rounding(torch.autograd.grad(y.sum(), x)[0], 2 * first)


def test_what_cannot_be_a_wavefront_runs_layer_by_layer(monkeypatch):
    monkeypatch.setenv("FASTRNN_WAVEFRONT", "2")
    device = device_of(KERNELS[0])
    x = torch.randn(6, 3, 4, device=device)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, [6, 4, 3])
    with fastrnn.backend(KERNELS[0]):
        for rnn, given in (
            (fastrnn.LSTM(4, 5, num_layers=2, bidirectional=True), x),
            (fastrnn.LSTM(4, 5, num_layers=2, proj_size=3), x),
            (fastrnn.LSTM(4, 5, num_layers=9), x),
            (fastrnn.LSTM(4, 5, num_layers=2), packed),
        ):
            y = rnn.to(device)(given)[0]
            y = y.data if given is packed else y
            assert not any(type(call).__name__ == "StackFunctionBackward" for call in graph_of(y))


def test_explain_says_how_layers_run_and_a_bad_choice_is_named(monkeypatch):
    device = device_of(KERNELS[0])
    rnn = fastrnn.LSTM(64, 512, num_layers=2, dtype=torch.bfloat16, device=device)
    x = torch.empty(512, 16, 64, dtype=torch.bfloat16, device=device)
    with fastrnn.backend(KERNELS[0]):
        monkeypatch.setenv("FASTRNN_WAVEFRONT", "64")
        assert "2 at once as a wavefront, 9 stages of 64 steps" in fastrnn.explain(rnn, x)
        with torch.no_grad():
            assert "ms a call without the products" in fastrnn.explain(rnn, x)
        for name, value, why in (
            ("FASTRNN_WAVEFRONT", "0", "FASTRNN_WAVEFRONT=0"),
            ("FASTRNN_WAVEFRONT", "", "fewer than 32 steps"),
            ("FASTRNN_PLANS", "matmul", "FASTRNN_PLANS=matmul cannot run a stack"),
        ):
            monkeypatch.setenv(name, value)
            short = x[:20] if why.startswith("fewer") else x
            assert f"one after another ({why})" in fastrnn.explain(rnn, short)
        assert "one after another (an empty batch)" in fastrnn.explain(rnn, x[:, :0])
    monkeypatch.setenv("FASTRNN_WAVEFRONT", "yes")
    with pytest.raises(ValueError, match='FASTRNN_WAVEFRONT is "yes", expected "auto", "0" or the steps of a chunk'):
        fastrnn.LSTM(2, 3)(torch.zeros(4, 1, 2))


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_chunk_longer_than_any_sequence_is_the_whole_sequence(monkeypatch, kernels):
    rnn = fastrnn.GRU(3, 4, num_layers=2, dtype=torch.float64, device=device_of(kernels))
    x = torch.randn(5, 2, 3, dtype=torch.float64, device=device_of(kernels))
    with fastrnn.backend(kernels):
        for one, other in zip(*both_ways(monkeypatch, rnn, x, 10**30), strict=True):
            assert_equal_to_rounding(one, other)


def test_a_batch_that_fills_the_device_runs_layer_by_layer():
    limits = _C.DeviceLimits(9, 0, 132, 232448, [132, 66, 0, 32, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 8])
    small = plans.Request(2, 3, 512, 16, 512, 512, 1, False, False, "all")

    def choice(layers=2, **changes):
        return wavefronts.choose(small._replace(**changes), layers, True, limits)

    assert choice().cut == Cut(64, "cluster:blocks=16,samples=8,cluster=16", "cluster:blocks=16,samples=8,cluster=16")
    assert choice().us < choice().us_by_layers / 1.5
    deep = choice(6, batch=10, hidden_size=256, state_size=256)
    assert deep.us < deep.us_by_layers / 2.5
    for changes, why in (
        (
            {"batch": 32, "hidden_size": 1024, "state_size": 1024, "steps": 200},
            "no wavefront is predicted to be 1.1 times faster",
        ),
        ({"steps": 30}, "fewer than 32 steps"),
        ({"allowed": "matmul"}, "FASTRNN_PLANS=matmul cannot run a stack"),
        ({"steps": 10000, "batch": 64}, "the gates of all layers take more than 1024 MB"),
        # backward alone cannot run it: its error is for backward to tell
        ({"allowed": "grid:blocks=64,samples=16,cluster=8"}, "cannot run a stack"),
    ):
        assert choice(**changes).cut is None and why in choice(**changes).why_not


@pytest.mark.skipif("emulated" not in KERNELS, reason="tensors are on the CPU")
def test_operators_check_what_a_stage_is():
    inputs, _, _ = make_stack("gru", 2, steps=4, batch=2, hidden_size=3)
    h0, w_hh = inputs[1], [inputs[3], inputs[7]]
    gates = torch.zeros(2, 8, 9, dtype=torch.float64)
    y, h_n = torch.empty(8, 6, dtype=torch.float64), torch.empty_like(h0)

    def call(operators, chunk, stage, y=y, lengths=None):
        more = (None, None, lengths, None, y, h_n, None, False, None, None, None, None, "", chunk, stage)
        operators.recurrence_forward(3, 0, gates, w_hh, [], [], h0, *more)

    operators = torch.ops.fastrnn_emulated
    with pytest.raises(RuntimeError, match=r"^stage is 3 of chunk 2, expected a stage from 0 to 2"):
        call(operators, 2, 3)
    with pytest.raises(RuntimeError, match=r"^stage is 0 of chunk -1, expected"):
        call(operators, -1, 0)
    with pytest.raises(RuntimeError, match=r"^a stack of layers takes neither lengths, offsets nor w_hr"):
        call(operators, 2, 0, lengths=torch.tensor([4, 4]))
    with pytest.raises(RuntimeError, match=r"^y has shape \[2, 8, 3\], expected \[8, 6\]"):
        call(operators, 2, 0, y=torch.empty(2, 8, 3, dtype=torch.float64))
    with pytest.raises(RuntimeError, match=r"^chunk is 2, but the CPU backend runs one layer at a time"):
        call(torch.ops.fastrnn, 2, 0)
