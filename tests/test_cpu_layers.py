"""Layers large enough for the CPU engine's ways: products of the input inside the recurrence, some steps at a time; the two products of
a weight gradient together, of rows that lie anywhere, in runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import Case, every_case, make_layer, pairwise
from compare import assert_bit_equal, assert_equal_to_rounding, assert_error_ratio, gradients

from fastrnn import _library

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(not _library.is_loaded("cpu"), reason="the CPU kernels are not built")

# Several rounds of one thread's samples, the last one cut off, units of several vectors, an odd batch.
MANY_STEPS = {"steps": 47, "batch": 7, "input_size": 21, "hidden_size": 19}
MANY_SAMPLES = {"steps": 3, "batch": 150, "input_size": 14, "hidden_size": 13}
FEW_FEATURES = {"steps": 40, "batch": 5, "input_size": 1, "hidden_size": 33}
LARGE = {"steps": 9, "batch": 6, "input_size": 260, "hidden_size": 400}  # weights beyond a second-level cache


@pytest.fixture(params=(1, 2, 3))
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def layer_of(case: Case, dtype: torch.dtype = torch.float64):
    """Weights that neither saturate nor explode; padding holds NaN."""
    layer = make_layer(case)
    layer.weights = [weight * case.hidden_size**-0.5 for weight in layer.weights]
    layer = layer.to(dtype)
    if case.layout == "lengths":
        for b, length in enumerate(layer.lengths):
            layer.x[length:, b] = torch.nan
    return layer


def run(layer, backend, **options):
    inputs = layer.require_grad()
    outputs = layer.apply(backend, *inputs, **options)
    return list(outputs), gradients(outputs, inputs)


CASES = [
    *pairwise(every_case(**MANY_STEPS)),
    *pairwise(every_case(**MANY_SAMPLES)),
    *pairwise(every_case(**FEW_FEATURES)),
    *(Case(cell, layout, directions=2, **LARGE) for cell, layout in (("lstm", "padded"), ("gru", "packed"))),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients_equal_the_reference(case, threads):
    layer = layer_of(case)
    assert_equal_to_rounding(run(layer, "cpu"), run(layer, "reference"), factor=4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [MANY_STEPS, {**MANY_STEPS, "batch": 6}, MANY_SAMPLES], ids=("odd", "even", "many"))
@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru"])
def test_errors_are_those_of_the_reference(cell, shape, dtype):
    layer = layer_of(Case(cell, directions=2, **shape)).to(dtype)
    ours, plain, exact = run(layer, "cpu"), run(layer, "reference"), run(layer.to(torch.float64), "reference")
    names = [*("y", "h_n", "c_n")[: len(ours[0])], *(f"grad {name}" for name in layer.names())]
    for name, a, b, c in zip(names, *(outputs + grads for outputs, grads in (ours, plain, exact)), strict=True):
        # the engine adds up some 64 rows for a bias before it rounds to a larger sum; torch's sums are pairwise
        assert_error_ratio(a, b, c, 4.0 if "b_" in name else 3.0, name)


@pytest.mark.parametrize("cell", ["rnn_relu", "lstm", "gru"])
@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_few_rows_equal_the_reference(cell, steps):
    # up to 12 rows the projection is a product of its own; of 12 columns at most h0 and y are multiplied apart
    for hidden_size in (8, 24):
        case = Case(cell, directions=2, steps=steps, batch=3, input_size=20, hidden_size=hidden_size)
        layer = layer_of(case)
        if steps:
            assert_equal_to_rounding(run(layer, "cpu"), run(layer, "reference"))
            continue
        outputs, grads = run(layer, "cpu")
        assert_bit_equal(outputs[1], layer.h0)
        for name, grad in zip(layer.names(), grads, strict=True):
            assert grad.shape == dict(zip(layer.names(), layer.inputs(), strict=True))[name].shape
            if name not in ("h0", "c0"):
                assert not grad.any(), name


@pytest.mark.parametrize("cell", ["rnn_relu", "lstm", "gru"])
def test_a_sequence_equals_its_steps_one_by_one(cell):
    layer = layer_of(Case(cell, **MANY_STEPS))
    with torch.no_grad():
        y, *final = layer.apply("cpu")
        state = [layer.h0] if layer.c0 is None else [layer.h0, layer.c0]
        for t, x in enumerate(layer.x):
            y_t, *state = layer.apply("cpu", x[None], *state, *layer.weights)
            assert_equal_to_rounding(y_t[0], y[t], f"step {t}")
    assert_equal_to_rounding(state, final)


@pytest.mark.parametrize("threads", [2, 4])
def test_one_sample_of_many_features_and_few_units(threads):
    # the recurrence has work for one thread, the projection for all: it is a product by itself
    layer = layer_of(Case("gru", steps=90, batch=1, input_size=700, hidden_size=11))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert_equal_to_rounding(run(layer, "cpu"), run(layer, "reference"), factor=4)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "case", [Case("lstm", site="state", **MANY_STEPS), Case("gru", "packed", **MANY_STEPS)], ids=str
)
def test_what_is_not_saved_changes_nothing(case):
    layer = layer_of(case, torch.float32)
    with torch.no_grad():
        assert_bit_equal(layer.apply("cpu", save=False), layer.apply("cpu", save=True))


@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru"])
def test_two_runs_agree_to_the_bit(cell, threads):
    layer = layer_of(Case(cell, "packed", directions=2, site="state", **MANY_STEPS), torch.float32)
    assert_bit_equal(run(layer, "cpu"), run(layer, "cpu"))


@pytest.mark.parametrize(
    "case", [Case("lstm", directions=2, projected=True, **MANY_STEPS), Case("gru", **MANY_STEPS)], ids=str
)
def test_every_choice_of_wanted_gradients_gives_those_of_all(case):
    everything = dict(zip(layer_of(case).names(), run(layer_of(case), "cpu")[1], strict=True))
    for wanted in everything:
        layer = layer_of(case)
        inputs = [
            tensor.requires_grad_(name == wanted) for name, tensor in zip(layer.names(), layer.inputs(), strict=True)
        ]
        outputs = layer.apply("cpu", *inputs)
        (grad,) = gradients(outputs, [inputs[layer.names().index(wanted)]])
        assert_bit_equal(grad, everything[wanted], wanted)


def test_clip_and_recorded_norms_in_rounds():
    case = Case("lstm", "lengths", directions=2, site="candidate", **MANY_STEPS)
    for mode, threshold in (("norm", 0.3), ("value", 0.02)):
        options = {"clip_mode": mode, "clip_threshold": threshold}
        assert_equal_to_rounding(
            run(layer_of(case), "cpu", **options), run(layer_of(case), "reference", **options), mode, factor=4
        )


LITTLE_MEMORY = """
import resource, torch, fastrnn
torch.set_num_threads(2)
rnn, x = {layer}(16, 256), torch.randn(4000, 16, 16)
y_bytes = 4 * 4000 * 16 * 256
with torch.no_grad():
    rnn(x[:50])
    size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 2 * y_bytes,) * 2)
    rnn(x)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the address space is read from Linux' /proc")
def test_an_inference_pass_holds_no_gates():
    # memory for y twice; the gates alone would take four times what y takes
    def inference(layer: str) -> subprocess.CompletedProcess:
        code = LITTLE_MEMORY.format(layer=layer)
        return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)

    ours, theirs = inference("fastrnn.LSTM"), inference("torch.nn.LSTM")
    assert ours.returncode == 0, ours.stderr
    assert theirs.returncode != 0, "the limit limits nothing"


TEAM = """
import torch, fastrnn
torch.set_num_threads(5)
for cell, features, units, batch in ("RNN", 48, 240, 25), ("GRU", 48, 176, 17), ("LSTM", 100, 96, 9), ("RNN", 33, 300, 12):
    torch.manual_seed(0)
    ours = getattr(fastrnn, cell)(features, units, dtype=torch.float64)
    theirs = getattr(torch.nn, cell)(features, units, dtype=torch.float64)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(5, batch, features, dtype=torch.float64, requires_grad=True)
    found = []
    for layer in ours, theirs:
        x.grad = None
        layer(x)[0].square().sum().backward()
        found.append([x.grad, *(parameter.grad for parameter in layer.parameters())])
    for own, other in zip(*found):
        torch.testing.assert_close(own, other, rtol=1e-10, atol=1e-10)
"""


@pytest.mark.parametrize("limit", [1, 2, 3, 4])
def test_a_team_may_be_smaller_than_asked_for(limit):
    """Then its threads share the work another way than the layer expected."""
    environment = {**os.environ, "OMP_THREAD_LIMIT": str(limit)}
    result = subprocess.run([sys.executable, "-c", TEAM], env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-4000:]
