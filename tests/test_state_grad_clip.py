"""Clipping of the gradient through time, and the norms that backward records, against explicit clipping in a plain loop."""

import math

import plain
import pytest
import torch
from cases import Case, Layer, every_case, make_layer, pairwise
from compare import assert_bit_equal, assert_equal_to_rounding, gradients, weights_like
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from fastrnn import recording

ONE_PER_CELL = [
    Case("rnn_tanh", "lengths", directions=2, site="state"),
    Case("rnn_relu", "packed", directions=2, bias=False),
    Case("lstm", "lengths", directions=2, site="candidate"),
    Case("lstm", "padded", site="state", projected=True),
    Case("gru", "packed", directions=2, site="candidate"),
]


def run(layer: Layer, backend: str, **options):
    """(outputs, gradients, norms, clipped) of a layer that records."""
    keys = recording.new_keys(1)
    inputs = layer.require_grad()
    outputs = layer.apply(backend, *inputs, slot=torch.zeros(1), record_key=keys.start, **options)
    grads = gradients([layer.padded(outputs[0]), *outputs[1:]], inputs)
    norms, clipped = recording.recorded(keys.start)
    recording.forget(keys)
    return [layer.padded(outputs[0]), *outputs[1:]], grads, norms, clipped


def run_plain(layer: Layer, clip: plain.Clip):
    inputs = layer.require_grad()
    outputs = plain.layer(
        layer.case.cell, layer.padded(layer.x), layer.h0, layer.c0, layer.weights,
        None if layer.lengths is None else layer.lengths.tolist(), layer.mask, layer.case.site or "state", clip,
    )  # fmt: skip
    outputs = [out for out in outputs if out is not None]
    grads = gradients(outputs, inputs)
    table = clip.table(layer.case.directions, layer.case.steps, layer.case.batch)
    return outputs, grads, *(t.to(layer.x.device) for t in table)


def median_norm(layer: Layer) -> float:
    """A threshold that clips about half of the steps, and is the norm of none of them."""
    norms = run(layer, "reference")[2]
    return norms[norms > 0].median().item() * (1 + 1e-6)


# every cell, direction, layout and dropout site; what bias and projection have to do with them, in pairs
EVERY_CASE = list(dict.fromkeys([*every_case(bias=True, projected=False), *pairwise(every_case())]))


@pytest.mark.parametrize("mode", ["norm", "value"])
@pytest.mark.parametrize("case", EVERY_CASE, ids=str)
def test_clipped_gradients_and_norms_equal_a_plain_loop(backend, device, case, mode):
    layer = make_layer(case, device=device)
    threshold = median_norm(layer) / (2 if mode == "value" else 1)
    ours = run(layer, backend, clip_mode=mode, clip_threshold=threshold)
    theirs = run_plain(layer, plain.Clip(mode, threshold))
    assert_equal_to_rounding(ours, theirs)
    share = ours[3].double().mean().item()
    assert 0 < share < 1, "the threshold should clip some steps and spare others"


@pytest.mark.parametrize("mode", ["norm", "value"])
@pytest.mark.parametrize("case", ONE_PER_CELL, ids=str)
def test_double_backward_through_active_clipping(backend, device, case, mode):
    layer = make_layer(case, device=device)
    threshold = median_norm(layer) / (2 if mode == "value" else 1)
    inputs = layer.require_grad()

    def outputs(*inputs):
        return layer.apply(backend, *inputs, clip_mode=mode, clip_threshold=threshold)

    # The plain loop cannot judge this: differentiating its backward runs through its clipping once more.
    assert gradgradcheck(outputs, inputs, fast_mode=True)


@pytest.mark.parametrize("mode", ["norm", "value"])
@pytest.mark.parametrize("case", ONE_PER_CELL, ids=str)
def test_a_threshold_that_is_never_reached_changes_no_bit(backend, device, case, mode):
    layer = make_layer(case, torch.float32, device)
    free = run(layer, backend)
    clipped = run(layer, backend, clip_mode=mode, clip_threshold=1e6)
    assert_bit_equal(clipped, free)
    assert not clipped[3].any()
    layer = make_layer(case, device=device)
    assert gradcheck(
        lambda *inputs: layer.apply(backend, *inputs, clip_mode=mode, clip_threshold=1e6), layer.require_grad(),
        fast_mode=True,
    )  # fmt: skip


@pytest.mark.parametrize("case", ONE_PER_CELL, ids=str)
def test_recording_changes_no_bit(backend, device, case):
    layer = make_layer(case, torch.float32, device)
    inputs = layer.require_grad()
    outputs = layer.apply(backend, *inputs)
    grads = gradients([layer.padded(outputs[0]), *outputs[1:]], inputs)
    assert_bit_equal(run(layer, backend)[:2], ([layer.padded(outputs[0]), *outputs[1:]], grads))


class Seen(TorchDispatchMode):
    """The names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def test_a_mode_sees_what_is_recorded_and_without_one_the_same_is_recorded(backend, device):
    layer = make_layer(Case("gru"), torch.float32, device)
    unseen = run(layer, backend)[2:]
    with Seen() as seen:
        assert_bit_equal(run(layer, backend)[2:], unseen)
    assert "fastrnn::record" in seen.names


@pytest.mark.parametrize("mode", ["norm", "value"])
@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru"])
def test_the_loss_scale_is_taken_out_of_thresholds_and_norms(backend, device, cell, mode):
    layer = make_layer(Case(cell, "lengths", directions=2), device=device)
    threshold = median_norm(layer) / (2 if mode == "value" else 1)
    scale = torch.tensor(1024.0, device=device)
    plain_run = run(layer, backend, clip_mode=mode, clip_threshold=threshold)
    keys = recording.new_keys(1)
    inputs = layer.require_grad()
    outputs = layer.apply(
        backend, *inputs, slot=torch.zeros(1), record_key=keys.start, clip_mode=mode, clip_threshold=threshold,
        grad_scale=scale,
    )  # fmt: skip
    scaled = gradients([out * 1024 for out in outputs], inputs)
    assert_equal_to_rounding([g / 1024 for g in scaled], plain_run[1])
    assert_equal_to_rounding(recording.recorded(keys.start), plain_run[2:])


@pytest.mark.parametrize("size", [1e-30, 1e30])
@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru"])
def test_norms_are_right_over_the_whole_range_of_float32(backend, device, cell, size):
    layer = make_layer(Case(cell, directions=2, hidden_size=8), torch.float32, device)
    threshold = median_norm(layer)
    norms = []
    for factor in (1.0, size):
        keys = recording.new_keys(1)
        inputs = layer.require_grad()
        outputs = layer.apply(
            backend, *inputs, slot=torch.zeros(1), record_key=keys.start, clip_mode="norm",
            clip_threshold=threshold * factor,
        )  # fmt: skip
        torch.autograd.grad(outputs, inputs, [weights_like(out, i) * factor for i, out in enumerate(outputs)])
        norms.append(recording.recorded(keys.start))
    (usual, usual_clipped), (extreme, extreme_clipped) = norms
    torch.testing.assert_close(extreme.double(), usual.double() * size, rtol=1e-5, atol=0)
    assert_bit_equal(extreme_clipped, usual_clipped)
    assert usual_clipped.any()
    assert not usual_clipped.all()


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("mode", ["norm", "value"])
@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru"])
def test_non_finite_gradients(backend, device, cell, mode, bad):
    """Norm mode passes them on and records them; value mode makes infinity the threshold and leaves NaN, as torch.clamp."""
    layer = make_layer(Case(cell), device=device)
    inputs = layer.require_grad()
    keys = recording.new_keys(1)
    _, h_n, *_ = layer.apply(
        backend, *inputs, slot=torch.zeros(1), record_key=keys.start, clip_mode=mode, clip_threshold=0.25
    )
    incoming = torch.zeros_like(h_n)
    incoming[0, 1, 2] = bad  # sample 1 alone
    grad_x, grad_h0 = torch.autograd.grad(h_n, inputs[:2], incoming)
    norms, clipped = recording.recorded(keys.start)
    assert norms[0, -1, 1].isnan() if math.isnan(bad) else norms[0, -1, 1].isposinf()
    assert grad_x[:, [0, 2]].eq(0).all()
    assert grad_h0[:, [0, 2]].eq(0).all()
    assert norms[0, :, [0, 2]].eq(0).all()
    if mode == "value" and math.isinf(bad):
        assert clipped[0, -1, 1]
        as_threshold = torch.zeros_like(h_n)
        as_threshold[0, 1, 2] = math.copysign(0.25, bad)
        _, h_n, *_ = layer.apply(backend, *inputs, clip_mode=mode, clip_threshold=0.25)
        assert_bit_equal([grad_x, grad_h0], torch.autograd.grad(h_n, inputs[:2], as_threshold))
    else:
        assert not clipped[0, -1, 1]
        assert not grad_x[-1, 1].isfinite().all()


def test_the_gradient_of_y_and_of_the_first_state_are_not_clipped(backend, device):
    layer = make_layer(Case("rnn_tanh", steps=1), device=device)
    inputs = layer.require_grad()
    y, h_n = layer.apply(backend, *inputs, clip_mode="norm", clip_threshold=1e-3)
    free_y, free_h_n = layer.apply(backend, *inputs)
    assert_bit_equal(gradients(y, inputs, retain_graph=True), gradients(free_y, inputs, retain_graph=True))
    # what comes from h_n is clipped at the last step, so h0's gradient is that of a vector of norm 1e-3
    incoming = torch.full_like(h_n, 1.0)
    short = incoming * (1e-3 / incoming.norm(dim=-1, keepdim=True))
    assert_equal_to_rounding(
        torch.autograd.grad(h_n, inputs[1], incoming), torch.autograd.grad(free_h_n, inputs[1], short)
    )
