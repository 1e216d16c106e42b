"""The autograd functions of one layer: values and gradients against a plain loop and by finite differences."""

import itertools

import cases
import plain
import pytest
import torch
from cases import Case, every_case, make_layer, pairwise
from compare import assert_bit_equal, assert_equal_to_rounding, gradients, noncontiguous, weights_like
from torch.autograd import gradcheck, gradgradcheck

ONE_PER_CELL = [
    Case("rnn_tanh", "lengths", directions=2, site="state"),
    Case("rnn_relu", "packed", bias=False),
    Case("lstm", "lengths", directions=2, site="candidate"),
    Case("lstm", "padded", site="state", projected=True),
    Case("gru", "packed", directions=2, site="candidate"),
]


@pytest.fixture(autouse=True)
def _poisoned_memory():
    """Fresh memory holds NaN, so that what a kernel forgets to write shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def run(layer, backend, used=None, **options):
    """Outputs (padded) and gradients of all inputs, of a random combination of the outputs or those that are ``used``."""
    inputs = layer.require_grad()
    outputs = layer.apply(backend, *inputs, **options)
    used_outputs = outputs if used is None else [out for out, use in zip(outputs, used, strict=True) if use]
    padded = [layer.padded(out) if out is outputs[0] else out for out in used_outputs]
    return [layer.padded(outputs[0]), *outputs[1:]], gradients(padded, inputs)


def run_plain(layer, used=None, clip=None):
    """The same by the plain loop."""
    inputs = layer.require_grad()
    lengths = None if layer.lengths is None else layer.lengths.tolist()
    outputs = plain.layer(
        layer.case.cell, layer.padded(layer.x), layer.h0, layer.c0, layer.weights, lengths, layer.mask,
        layer.case.site or "state", clip,
    )  # fmt: skip
    outputs = [out for out in outputs if out is not None]
    used_outputs = outputs if used is None else [out for out, use in zip(outputs, used, strict=True) if use]
    return outputs, gradients(used_outputs, inputs)


# --------------------------------------------------------------------------------------------------- values and gradients


@pytest.mark.parametrize("case", every_case(), ids=str)
def test_values_and_gradients_equal_a_plain_loop(backend, device, case):
    layer = make_layer(case, device=device)
    assert_equal_to_rounding(run(layer, backend), run_plain(layer))


@pytest.mark.parametrize("case", every_case(), ids=str)
def test_gradients_pass_gradcheck(backend, device, case):
    layer = make_layer(case, device=device)
    assert gradcheck(lambda *inputs: layer.apply(backend, *inputs), layer.require_grad(), fast_mode=True)


@pytest.mark.parametrize("case", ONE_PER_CELL, ids=str)
def test_every_single_derivative_passes_gradcheck(backend, device, case):
    layer = make_layer(case, device=device)
    assert gradcheck(lambda *inputs: layer.apply(backend, *inputs), layer.require_grad())


@pytest.mark.parametrize("case", pairwise(every_case()), ids=str)
def test_double_backward_passes_gradgradcheck(backend, device, case):
    layer = make_layer(case, device=device)
    assert gradgradcheck(lambda *inputs: layer.apply(backend, *inputs), layer.require_grad(), fast_mode=True)


@pytest.mark.parametrize("case", ONE_PER_CELL, ids=str)
def test_second_derivatives_equal_a_plain_loop(backend, device, case):
    layer = make_layer(case, device=device)
    inputs = layer.require_grad()

    def second(run_layer):
        _, first = run_layer()
        return gradients(sum((g * weights_like(g, i)).sum() for i, g in enumerate(first)), inputs)

    def ours():
        outputs = layer.apply(backend, *inputs)
        return outputs, gradients([layer.padded(outputs[0]), *outputs[1:]], inputs, create_graph=True)

    def theirs():
        lengths = None if layer.lengths is None else layer.lengths.tolist()
        outputs = plain.layer(
            case.cell, layer.padded(layer.x), layer.h0, layer.c0, layer.weights, lengths, layer.mask,
            case.site or "state",
        )  # fmt: skip
        return outputs, gradients(outputs, inputs, create_graph=True)

    assert_equal_to_rounding(second(ours), second(theirs), factor=10)


@pytest.mark.parametrize("case", ONE_PER_CELL, ids=str)
def test_first_order_gradients_are_the_same_bits_with_and_without_create_graph(backend, device, case):
    layer = make_layer(case, torch.float32, device)
    inputs = layer.require_grad()
    assert_bit_equal(
        gradients(layer.apply(backend, *inputs), inputs),
        gradients(layer.apply(backend, *inputs), inputs, create_graph=True),
    )


@pytest.mark.parametrize("case", ONE_PER_CELL, ids=str)
def test_backward_twice_through_a_retained_graph_gives_the_same_bits(backend, device, case):
    layer = make_layer(case, torch.float32, device)
    inputs = layer.require_grad()
    outputs = layer.apply(backend, *inputs)
    first = gradients(outputs, inputs, retain_graph=True)
    assert any(g.abs().sum() > 0 for g in first)
    assert_bit_equal(first, gradients(outputs, inputs))


@pytest.mark.parametrize("case", ONE_PER_CELL, ids=str)
def test_inputs_are_left_as_they_were(backend, device, case):
    layer = make_layer(case, device=device)
    before = [t.clone() for t in layer.require_grad()]
    versions = [t._version for t in layer.inputs()]
    outputs = layer.apply(backend, *layer.inputs())
    kept = [out.clone() for out in outputs]
    gradients(outputs, layer.inputs())
    assert_bit_equal(layer.inputs(), before)
    assert_bit_equal(outputs, kept)
    assert versions == [t._version for t in layer.inputs()]


# --------------------------------------------------------------------------------------------- what is asked for, and not


@pytest.mark.parametrize(
    "case",
    [
        Case("lstm", "lengths", projected=True, site="state"),
        Case("gru", "packed"),
        Case("rnn_tanh", bias=False, directions=2),
    ],
    ids=str,
)
def test_every_choice_of_inputs_that_require_gradients(backend, device, case):
    layer = make_layer(case, device=device)
    outputs, everything = run(layer, backend)
    inputs = layer.inputs()
    for wanted in itertools.product((False, True), repeat=len(inputs)):
        for tensor, want in zip(inputs, wanted, strict=True):
            tensor.requires_grad_(want)
        outputs = layer.apply(backend, *inputs)
        what = f"gradients of {[name for name, want in zip(layer.names(), wanted, strict=True) if want]}"
        if not any(wanted):
            assert not any(out.requires_grad for out in outputs)
            continue
        leaves = [tensor for tensor, want in zip(inputs, wanted, strict=True) if want]
        expected = [g for g, want in zip(everything, wanted, strict=True) if want]
        assert_bit_equal(gradients([layer.padded(outputs[0]), *outputs[1:]], leaves), expected, what)
    with torch.no_grad():
        assert_bit_equal(layer.apply(backend, *inputs), [out.detach() for out in outputs], "without gradients")


@pytest.mark.parametrize("case", ONE_PER_CELL, ids=str)
def test_every_choice_of_outputs_that_are_used(backend, device, case):
    layer = make_layer(case, device=device)
    num_outputs = 3 if case.cell == "lstm" else 2
    for used in itertools.product((False, True), repeat=num_outputs):
        if any(used):
            assert_equal_to_rounding(run(layer, backend, used), run_plain(layer, used), f"used {used}")


@pytest.mark.parametrize("case", ONE_PER_CELL, ids=str)
def test_inputs_and_gradients_may_lie_anywhere_in_memory(backend, device, case):
    layer = make_layer(case, device=device)
    inputs = layer.require_grad()
    scattered = [noncontiguous(tensor) for tensor in inputs]
    if layer.mask is not None:
        layer.mask = noncontiguous(layer.mask)

    def grads(of):
        outputs = layer.apply(backend, *of)
        incoming = [noncontiguous(weights_like(out, 1)) for out in outputs]
        return [*outputs, *torch.autograd.grad(outputs, of, incoming)]

    def expanded(of):
        outputs = layer.apply(backend, *of)
        return torch.autograd.grad([out.sum() for out in outputs], of)  # an expanded gradient: all strides 0

    assert_equal_to_rounding(grads(scattered), grads(inputs))
    assert_equal_to_rounding(expanded(scattered), expanded(inputs))


# -------------------------------------------------------------------------------------------------------- unusual sizes


@pytest.mark.parametrize(
    "sizes",
    [
        {"steps": 1},
        {"batch": 1},
        {"steps": 1, "batch": 1},
        {"hidden_size": 1, "input_size": 1},
        {"hidden_size": 7, "input_size": 1, "batch": 5},
        {"hidden_size": 19, "input_size": 5, "batch": 9, "steps": 3},
    ],
    ids=lambda sizes: "-".join(f"{name}{value}" for name, value in sizes.items()),
)
@pytest.mark.parametrize(
    ("cell", "layout"), [("rnn_tanh", "lengths"), ("rnn_relu", "padded"), ("lstm", "packed"), ("gru", "lengths")]
)
def test_unusual_sizes(backend, device, cell, layout, sizes):
    layer = make_layer(Case(cell, layout, directions=2, site="state", **sizes), device=device)
    assert_equal_to_rounding(run(layer, backend), run_plain(layer))


@pytest.mark.parametrize("layout", ["padded", "lengths"])
@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru"])
def test_an_empty_batch_has_empty_outputs_and_zero_gradients(backend, device, cell, layout):
    layer = make_layer(Case(cell, layout, directions=2, batch=0, site="state"), device=device)
    outputs, grads = run(layer, backend)
    assert [out.shape for out in outputs] == [(4, 0, 6), *[(2, 0, 3)] * (len(outputs) - 1)]
    for grad, tensor in zip(grads, layer.inputs(), strict=True):
        assert_bit_equal(grad, torch.zeros_like(tensor))


# ----------------------------------------------------------------------------------------------------- same bits, always


@pytest.mark.parametrize("case", ONE_PER_CELL, ids=str)
def test_two_runs_give_the_same_bits(backend, device, case):
    case = cases.replace(case, batch=9, hidden_size=33, input_size=17, steps=5)
    layer = make_layer(case, torch.float32, device)
    first = run(layer, backend)
    for _ in range(3):
        assert_bit_equal(run(layer, backend), first)


@pytest.mark.parametrize("case", ONE_PER_CELL, ids=str)
def test_thread_counts_agree(backend, device, case):
    case = cases.replace(case, batch=9, hidden_size=33, input_size=17, steps=5)
    layer = make_layer(case, torch.float32, device)
    torch.set_num_threads(1)
    alone = run(layer, backend)
    for threads in (2, 3, 5):
        torch.set_num_threads(threads)
        assert_equal_to_rounding(run(layer, backend), alone, f"{threads} threads")


# ---------------------------------------------------------------------------------------------------------- bad arguments


@pytest.mark.parametrize("name", ["x", "h0", "c0", "w_ih[0]", "w_hh[0]", "b_ih[0]", "b_hh[1]", "mask"])
def test_a_tensor_of_the_wrong_size_is_refused(backend, device, name):
    layer = make_layer(Case("lstm", directions=2, site="state"), device=device)
    inputs = layer.inputs()
    if name == "mask":
        layer.mask = layer.mask[:, 1:]
    else:
        position = layer.names().index(name)
        inputs[position] = inputs[position][..., 1:]
    with pytest.raises(RuntimeError):
        layer.apply(backend, *inputs)


def test_backward_after_a_forward_that_kept_nothing_says_so(backend, device):
    layer = make_layer(Case("gru"), device=device)
    outputs = layer.apply(backend, *layer.require_grad(), save=False)
    with pytest.raises(RuntimeError, match="save=False"):
        gradients(outputs, layer.inputs())


@pytest.mark.parametrize("function", cases.FUNCTIONS.values())
@pytest.mark.parametrize("arguments", [(), (None,), (torch.zeros(1), torch.zeros(1))], ids=["none", "None", "tensors"])
def test_apply_without_options_says_what_it_wants(function, arguments):
    with pytest.raises(TypeError, match="the first argument of apply\\(\\) should be fastrnn.functions.Options"):
        function.apply(*arguments)
