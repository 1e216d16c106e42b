"""Threads of a recurrence that are done take samples from those that are not (csrc/cpu/work_queue.h): what is computed does not
depend on it."""

import os

import pytest
import torch
from compare import assert_bit_equal, assert_equal_to_rounding

import fastrnn
from fastrnn import _library

pytestmark = pytest.mark.skipif(not _library.is_loaded("cpu"), reason="the CPU kernels are not built")

REPEATS = int(os.environ.get("FASTRNN_TEST_REPEATS", "10"))
# Steps, batch, features, units. Groups that end in a tile of one row; units that end in a narrower panel; several rounds of the input
# projection and of what bias gradients are summed over at a time; weights beyond a second-level cache, of which threads share units.
SHAPES = ((35, 20, 50, 40), (20, 33, 30, 72), (60, 44, 8, 33), (90, 26, 17, 20), (9, 7, 20, 270))
LAYERS = {
    "lstm": (fastrnn.LSTM, {}),
    "lstm-projected": (fastrnn.LSTM, {"proj_size": 13}),
    "gru-bidirectional": (fastrnn.GRU, {"bidirectional": True}),
    "rnn": (fastrnn.RNN, {}),
    "lstm-clipped": (fastrnn.LSTM, {"state_grad_clip": 0.01, "record_state_grad_norms": True}),
    "lstm-masked": (fastrnn.LSTM, {"recurrent_dropout": 0.3}),
    "gru-masked": (fastrnn.GRU, {"recurrent_dropout": 0.3, "record_state_grad_norms": True}),
    "rnn-masked": (fastrnn.RNN, {"recurrent_dropout": 0.3}),
}
LENGTHS = {
    "whole": lambda steps, batch: None,
    "ragged": lambda steps, batch: torch.randint(0, steps + 1, (batch,)),
    # Groups of very different sizes, of which the smallest cannot be divided.
    "one long": lambda steps, batch: torch.tensor([steps] + [2] * (batch - 1)),
}


@pytest.fixture(params=(2, 5))
def threads(request):
    """Five threads are more than many machines have cores: some are always late."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def results(layer, x, lengths):
    """Gradients, then all else."""
    x.grad = None
    layer.zero_grad()
    torch.manual_seed(0)  # for the masks
    y, final = layer(x, lengths=lengths)
    y.square().sum().backward()
    with torch.no_grad():
        torch.manual_seed(0)
        inferred, inferred_final = layer(x, lengths=lengths)
    states = [state.detach() for of in (final, inferred_final) for state in (of if isinstance(of, tuple) else (of,))]
    norms = [layer.state_grad_norms] if layer.record_state_grad_norms else []
    return [x.grad, *(parameter.grad for parameter in layer.parameters()), y.detach(), inferred, *states, *norms]


@pytest.mark.parametrize("lengths_of", LENGTHS)
@pytest.mark.parametrize("name", LAYERS)
def test_results_do_not_depend_on_who_computes_them(threads, name, lengths_of):
    from fastrnn import _ops_cpu

    make, options = LAYERS[name]
    given = _ops_cpu.times_given()
    for _attempt in range(1 if lengths_of == "one long" else 20):
        for steps, batch, features, units in SHAPES:
            torch.manual_seed(steps)
            layer = make(features, units, **options)
            x = torch.randn(steps, batch, features, requires_grad=True)
            lengths = LENGTHS[lengths_of](steps, batch)
            first = results(layer, x, lengths)
            for _ in range(REPEATS):
                for now, then in zip(results(layer, x, lengths), first, strict=True):
                    assert_bit_equal(now, then)
        if _ops_cpu.times_given() > given:
            return
    assert lengths_of == "one long", "no work was given away, so nothing was tested"


@pytest.mark.parametrize("name", ["lstm", "gru-bidirectional", "rnn"])
def test_gradients_are_those_of_torch(threads, name):
    """Above all the biases', which are summed for some samples at a time."""
    make, options = LAYERS[name]
    for steps, batch, features, units in SHAPES:
        torch.manual_seed(batch)
        layer = make(features, units, **options).double()
        reference = getattr(torch.nn, make.__name__)(features, units, **options).double()
        reference.load_state_dict(layer.state_dict())
        x = torch.randn(steps, batch, features, dtype=torch.float64, requires_grad=True)
        reference(x)[0].square().sum().backward()
        expected = [x.grad, *(parameter.grad for parameter in reference.parameters())]
        for ours, theirs in zip(results(layer, x, None)[: len(expected)], expected, strict=True):
            assert_equal_to_rounding(ours, theirs)
