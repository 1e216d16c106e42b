"""torch.compile and torch.export: one graph, whatever the options and the kind of batch, for every number of steps and samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastrnn
from tests.compare import assert_bit_equal, assert_equal_to_rounding, tensors, weights_like

OPTIONS: dict[str, Any] = {
    "num_layers": 2,
    "bidirectional": True,
    "dropout": 0.2,
    "input_dropout": 0.2,
    "recurrent_dropout": 0.3,
    "state_grad_clip": 0.05,
    "record_state_grad_norms": True,
}
MODULES: dict[str, Callable[[], nn.Module]] = {
    "RNN": lambda: fastrnn.RNN(3, 4),
    "RNN relu with options": lambda: fastrnn.RNN(3, 4, nonlinearity="relu", batch_first=True, **OPTIONS),
    "LSTM": lambda: fastrnn.LSTM(3, 4),
    "LSTM with options": lambda: fastrnn.LSTM(3, 4, proj_size=2, forget_bias=1.0, **OPTIONS),
    "LSTM with candidate dropout": lambda: fastrnn.LSTM(3, 4, **{**OPTIONS, "recurrent_dropout_mode": "candidate"}),
    "GRU": lambda: fastrnn.GRU(3, 4),
    "GRU with options": lambda: fastrnn.GRU(3, 4, **{**OPTIONS, "state_grad_clip_mode": "value"}),
    "GRU with weight dropout": lambda: fastrnn.GRU(3, 4, **{**OPTIONS, "recurrent_dropout_mode": "weight"}),
}
SIZES = [(5, 3), (7, 4), (6, 5)]  # T, B: the first two make a graph with static and one with dynamic sizes


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def tensor_batch(rnn: Any, steps: int, batch: int) -> tuple[Tensor, dict[str, Any]]:
    return torch.randn(batch, steps, 3) if rnn.batch_first else torch.randn(steps, batch, 3), {}


def batch_with_lengths(rnn: Any, steps: int, batch: int) -> tuple[Tensor, dict[str, Any]]:
    x, _ = tensor_batch(rnn, steps, batch)
    return x, {"lengths": torch.tensor([steps, 0, steps - 2, 1, 3][:batch])}


def packed_batch(rnn: Any, steps: int, batch: int) -> tuple[PackedSequence, dict[str, Any]]:
    lengths = torch.tensor([steps - 1, steps, 2, 1, 3][:batch])
    x = torch.randn(steps, batch, 3)
    return pack_padded_sequence(x, lengths, enforce_sorted=False), {}


def sorted_packed_batch(rnn: Any, steps: int, batch: int) -> tuple[PackedSequence, dict[str, Any]]:
    return pack_padded_sequence(torch.randn(steps, batch, 3), torch.tensor([steps, 3, 2, 2, 1][:batch])), {}


BATCHES = {"tensor": tensor_batch, "lengths": batch_with_lengths, "packed": packed_batch, "sorted": sorted_packed_batch}
CASES = [
    *(("RNN", "tensor"), ("LSTM", "sorted"), ("GRU", "lengths")),
    *(
        (f"{name} with options", kind)
        for name in ("RNN relu", "LSTM", "GRU")
        for kind in ("tensor", "lengths", "packed")
    ),
    *(("LSTM with candidate dropout", "lengths"), ("GRU with weight dropout", "tensor")),
]


def run(function: Callable, rnn: nn.Module, x: Any, keywords: dict[str, Any]) -> list[Tensor]:
    """Outputs, all gradients, and what was recorded, with the same masks at each call."""
    data = (x.data if isinstance(x, PackedSequence) else x).detach().requires_grad_()
    torch.manual_seed(3)
    outputs = function(x._replace(data=data) if isinstance(x, PackedSequence) else data, **keywords)
    results = [t for t in tensors(outputs) if t.is_floating_point()]
    wanted = [data, *rnn.parameters()]
    gradients = torch.autograd.grad(results, wanted, [weights_like(t, i) for i, t in enumerate(results)])
    recorded = [rnn.state_grad_norms, rnn.state_grad_clipped] if getattr(rnn, "record_state_grad_norms", False) else []
    assert all(t is not None for t in recorded)
    return [*results, *gradients, *recorded]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_compiled_training_equals_eager_in_one_graph_for_all_sizes(name, kind):
    rnn = MODULES[name]()
    if kind == "lengths":
        rnn.dropout = 0.0  # drawn for the rows at hand, which eager has packed and a graph has not
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(rnn, backend=counter, fullgraph=True)
    for steps, batch in SIZES:
        x, keywords = BATCHES[kind](rnn, steps, batch)
        expected = run(rnn, rnn, x, keywords)
        assert_equal_to_rounding(run(compiled, rnn, x, keywords), expected, f"T={steps} B={batch}")
    assert counter.frame_count <= 2


CELLS = {
    "RNNCell": lambda: fastrnn.RNNCell(3, 4),
    "LSTMCell": lambda: fastrnn.LSTMCell(3, 4),
    "GRUCell": lambda: fastrnn.GRUCell(3, 4, bias=False),
}


@pytest.mark.parametrize("name", CELLS)
def test_compiled_cells_equal_eager(name):
    cell = CELLS[name]()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(cell, backend=counter, fullgraph=True)
    for batch in (3, 4, 5):
        x = torch.randn(batch, 3)
        assert_equal_to_rounding(run(compiled, cell, x, {}), run(cell, cell, x, {}), f"B={batch}")
    assert counter.frame_count <= 2


def test_compiled_inference_equals_eager():
    rnn = fastrnn.GRU(3, 4, **OPTIONS).eval()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(rnn, backend=counter, fullgraph=True)
    with torch.no_grad():
        for steps, batch in SIZES:
            x, keywords = batch_with_lengths(rnn, steps, batch)
            assert_equal_to_rounding(compiled(x, **keywords), rnn(x, **keywords), f"T={steps} B={batch}")
    assert counter.frame_count <= 2


def test_inductor_trains_as_eager_does():
    rnn = fastrnn.LSTM(3, 4, num_layers=2, state_grad_clip=0.05, record_state_grad_norms=True)
    compiled = torch.compile(rnn, fullgraph=True)
    x, keywords = batch_with_lengths(rnn, 5, 3)
    assert_equal_to_rounding(run(compiled, rnn, x, keywords), run(rnn, rnn, x, keywords))


def test_a_compiled_graph_refuses_lengths_beyond_the_sequence_when_it_runs():
    rnn = fastrnn.LSTM(3, 4)
    compiled = torch.compile(rnn, backend="aot_eager", fullgraph=True)
    x, keywords = batch_with_lengths(rnn, 5, 3)
    compiled(x, **keywords)
    with pytest.raises(RuntimeError, match=r"lengths\[1\] is 9 but the sequence has 5 steps"):
        compiled(x, lengths=torch.tensor([5, 9, 1]))


@pytest.mark.parametrize("name", ["RNN", "LSTM with options", "GRU with options"])
@pytest.mark.parametrize("kind", ["tensor", "lengths"])
def test_an_exported_program_equals_eager_for_all_sizes(name, kind):
    rnn = MODULES[name]().eval()
    x, keywords = BATCHES[kind](rnn, 5, 3)
    steps, batch = torch.export.Dim("steps", min=2), torch.export.Dim("batch", min=2)
    dynamic = {"input": {0: steps, 1: batch}, "lengths": {0: batch}}
    program = torch.export.export(
        rnn, (x,), keywords, dynamic_shapes={k: v for k, v in dynamic.items() if k in ("input", *keywords)}
    )
    for sizes in SIZES:
        x, keywords = BATCHES[kind](rnn, *sizes)
        with torch.no_grad():  # in a program the operators stand alone, and they have no derivative
            ours, eager = program.module()(x, **keywords), rnn(x, **keywords)
        if kind == "tensor":
            assert_bit_equal(ours, eager, str(sizes))
        else:  # eager packs the rows that exist, so its large products are other products
            assert_equal_to_rounding(ours, eager, str(sizes))
