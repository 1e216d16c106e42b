"""Every dtype below float64 against it: our error is at most twice that of the plain loop in the same dtype, thrice for gradients."""

import plain
import pytest
import torch
from cases import Case, make_layer
from compare import assert_error_ratio, gradients, weights_like

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
CASES = [
    Case("rnn_tanh", "lengths", directions=2, site="state", steps=10, batch=5, hidden_size=19, input_size=6),
    Case("rnn_relu", steps=6, batch=5, hidden_size=11, input_size=6),
    Case("lstm", "packed", directions=2, site="state", steps=10, batch=5, hidden_size=19, input_size=6),
    Case("lstm", site="candidate", projected=True, steps=10, batch=5, hidden_size=19, input_size=6),
    Case("gru", "lengths", directions=2, site="candidate", steps=10, batch=5, hidden_size=19, input_size=6),
    Case("gru", site="state", steps=10, batch=5, hidden_size=19, input_size=6),
]


def scaled_layer(case, dtype, device):
    """Weights as torch.nn draws them, so that nothing saturates and errors neither die nor explode.

    For relu, numbers with which rounding turns no unit on or off: there the gradient jumps.
    """
    for seed in range(100):
        layer = make_layer(case, device=device, seed=seed)
        layer.weights = [w * case.hidden_size**-0.5 for w in layer.weights]
        layer = layer.to(dtype)
        active, exactly_active = (run(like)[0][0] > 0 for like in (layer, layer.to(torch.float64)))
        if case.cell != "rnn_relu" or active.equal(exactly_active):
            return layer
    raise AssertionError(f"no seed for {case}")


def run(layer, backend=None):
    """Outputs, then gradients, of a backend or else of the plain loop."""
    inputs = layer.require_grad()
    if backend is None:
        lengths = None if layer.lengths is None else layer.lengths.tolist()
        outputs = plain.layer(
            layer.case.cell, layer.padded(layer.x), layer.h0, layer.c0, layer.weights, lengths, layer.mask,
            layer.case.site or "state",
        )  # fmt: skip
        outputs = [out for out in outputs if out is not None]
    else:
        y, *finals = layer.apply(backend, *inputs)
        outputs = [layer.padded(y), *finals]
    return outputs, gradients(outputs, inputs)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_errors_are_those_of_the_dtype(backend, device, case, dtype):
    layer = scaled_layer(case, dtype, device)
    (outputs, grads), (plain_outputs, plain_grads) = run(layer, backend), run(layer)
    exact_outputs, exact_grads = run(layer.to(torch.float64))
    for name, *values in zip(("y", "h_n", "c_n"), outputs, plain_outputs, exact_outputs, strict=False):
        assert values[0].dtype == dtype
        assert_error_ratio(*values, 2, name)
    for name, *values in zip(layer.names(), grads, plain_grads, exact_grads, strict=True):
        assert values[0].dtype == dtype
        assert_error_ratio(*values, 3, f"gradient of {name}")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_long_sum_of_small_steps_is_not_lost_in_16_bits(backend, device, dtype):
    """The cell state stays in float32: 2000 steps of +1/1024 add up, where a 16-bit sum stops growing."""
    steps = 2000
    layer = make_layer(Case("lstm", steps=steps, batch=1, hidden_size=1, input_size=1), device=device)
    layer.weights = [torch.zeros_like(w) for w in layer.weights]
    layer.weights[2] = torch.tensor([30.0, 30.0, 1 / 1024, 30.0], dtype=torch.float64, device=device)
    layer.h0, layer.c0 = torch.zeros_like(layer.h0), torch.zeros_like(layer.c0)
    _, _, c_n = layer.to(dtype).apply(backend)
    torch.testing.assert_close(c_n.double().item(), steps / 1024, rtol=0.01, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru"])
def test_weights_in_float32_are_cast_and_get_float32_gradients(backend, device, cell, dtype):
    """What autocast does: the layer runs in x's dtype, the masters keep theirs."""
    layer = make_layer(Case(cell, "lengths", directions=2, site="state"), torch.float32, device)
    low = layer.to(dtype)
    low.weights = [w.clone() for w in layer.weights]
    cast = low.to(dtype)
    outputs, explicit = low.apply(backend, *low.require_grad()), cast.apply(backend, *cast.require_grad())
    torch.testing.assert_close(outputs, explicit, rtol=0, atol=0)
    incoming = [weights_like(out, 1) for out in outputs]
    grads = torch.autograd.grad(outputs, low.weights, incoming)
    expected = torch.autograd.grad(explicit, cast.weights, incoming)
    for name, grad, rounded in zip(low.names()[-len(grads) :], grads, expected, strict=True):
        assert grad.dtype == torch.float32
        torch.testing.assert_close(grad.to(dtype), rounded, rtol=0, atol=0, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("hidden_size", [11, 18])
def test_infinity_and_nan_reach_the_later_steps_of_their_own_sample_alone(backend, device, dtype, hidden_size):
    layer = make_layer(Case("rnn_relu", batch=5, hidden_size=hidden_size, input_size=6), dtype, device)
    # Positive, so that infinity meets no other sign.
    layer.weights = [w.abs() for w in layer.weights]
    layer.h0 = layer.h0.abs()
    layer.x[1, 1, 5], layer.x[1, 3, 0] = torch.inf, torch.nan
    y, h_n = layer.apply(backend)
    assert y[:1].isfinite().all()
    assert y[1:, [0, 2, 4]].isfinite().all()
    assert y[1:, 1].isposinf().all()
    assert y[1:, 3].isnan().all()
    torch.testing.assert_close(h_n[0], y[-1], rtol=0, atol=0, equal_nan=True)
