"""The ten recurrent problems of KernelBench level 3 (33 to 42), by their published sizes: inference of a whole model in float32.

https://github.com/ScalingIntelligence/KernelBench (commit 423217d). Problems 33 and 34 write a tanh RNN by hand, one step and 256
steps; the others are six layers of torch.nn.LSTM or GRU and return the output, the last hidden or cell state, or a linear layer on
the last step. The models differ in the recurrent layers alone and share all numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import fastrnn
from benchmarks import baselines
from benchmarks.algorithms import with_algorithm
from benchmarks.suites import Record, Settings
from benchmarks.timing import measure

Model = Callable[[Tensor], Tensor]


class Problem(NamedTuple):
    number: int
    name: str
    cell: str
    returns: str  # "last step" (through a linear layer), "output", "h" or "c"
    directions: int = 1


STACKS = (
    Problem(35, "LSTM", "lstm", "last step"),
    Problem(36, "LSTMHn", "lstm", "h"),
    Problem(37, "LSTMCn", "lstm", "c"),
    Problem(38, "LSTMBidirectional", "lstm", "last step", 2),
    Problem(39, "GRU", "gru", "output"),
    Problem(40, "GRUHidden", "gru", "h"),
    Problem(41, "GRUBidirectional", "gru", "output", 2),
    Problem(42, "GRUBidirectionalHidden", "gru", "h", 2),
)
BATCH, STEPS, INPUT, HIDDEN, LAYERS, CLASSES = 10, 512, 128, 256, 6, 10  # of 35 to 42


class Stack(nn.Module):
    def __init__(self, problem: Problem, layers: nn.Module, head: nn.Linear, states: list[Tensor]) -> None:
        super().__init__()
        self.layers, self.head, self.returns = layers, head, problem.returns
        self.states: Any = tuple(states) if problem.cell == "lstm" else states[0]

    def forward(self, x: Tensor) -> Tensor:
        y, states = self.layers(x, self.states)
        if self.returns == "last step":
            return self.head(y[:, -1])  # type: ignore[no-any-return]
        if self.returns == "output":
            return y  # type: ignore[no-any-return]
        chosen: Tensor = states[("h", "c").index(self.returns)] if isinstance(states, tuple) else states
        return chosen


def stack(problem: Problem, place: dict[str, Any]) -> tuple[Model, Model, Tensor]:
    """(torch.nn's model, ours, x)"""
    layer: Any = nn.LSTM if problem.cell == "lstm" else nn.GRU
    sample_first = problem.cell == "lstm"
    theirs = layer(INPUT, HIDDEN, LAYERS, batch_first=sample_first, bidirectional=problem.directions == 2, **place)
    head = nn.Linear(problem.directions * HIDDEN, CLASSES, **place)
    states = [torch.rand(LAYERS * problem.directions, BATCH, HIDDEN, **place) for _ in range(2)]
    x = torch.rand(*((BATCH, STEPS) if sample_first else (STEPS, BATCH)), INPUT, **place)
    modules = (theirs, fastrnn.from_torch(theirs))
    before, after = (Stack(problem, module, head, states) for module in modules)
    return before, after, x


class LoopByHand(nn.Module):
    """Problems 33 and 34: ``h = tanh(i2h(cat(x_t, h)))``, then a linear layer."""

    def __init__(self, i2h: nn.Linear, h2o: nn.Linear, h0: Tensor) -> None:
        super().__init__()
        self.i2h, self.h2o, self.h0 = i2h, h2o, h0

    def forward(self, x: Tensor) -> Tensor:
        h, outputs = self.h0, []
        for step in x:
            h = torch.tanh(self.i2h(torch.cat((step, h), dim=1)))
            outputs.append(self.h2o(h))
        return torch.stack(outputs)


class RnnAndLinear(nn.Module):
    """The same in a fused layer: i2h's columns are the input's and the state's weights."""

    def __init__(self, i2h: nn.Linear, h2o: nn.Linear, h0: Tensor) -> None:
        super().__init__()
        input_size = i2h.in_features - i2h.out_features
        self.rnn = fastrnn.RNN(input_size, i2h.out_features, device="meta")
        bias_hh = torch.zeros_like(i2h.bias)
        parts = (i2h.weight[:, :input_size].contiguous(), i2h.weight[:, input_size:].contiguous(), i2h.bias, bias_hh)
        for name, part in zip(("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"), parts, strict=True):
            setattr(self.rnn, name, nn.Parameter(part.detach()))
        self.h2o, self.h0 = h2o, h0.unsqueeze(0)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.h2o(self.rnn(x, self.h0)[0])
        return output


def by_hand(
    steps: int, batch: int, input_size: int, hidden_size: int, output_size: int, place: dict[str, Any]
) -> tuple[Model, Model, Tensor]:
    """(the published loop, ours, x)"""
    i2h = nn.Linear(input_size + hidden_size, hidden_size, **place)
    h2o = nn.Linear(hidden_size, output_size, **place)
    h0, x = torch.rand(batch, hidden_size, **place), torch.rand(steps, batch, input_size, **place)
    return LoopByHand(i2h, h2o, h0), RnnAndLinear(i2h, h2o, h0), x


def run(settings: Settings) -> Iterator[Record]:
    place = {"device": settings.device, "dtype": settings.dtype}
    # 33 holds two gigabytes of weights on each side and is one product, not a recurrence: a GPU's problem
    loops = [(34, "VanillaRNNHidden", (256, 8, 1024, 256, 128))]
    if settings.device == "cuda":
        loops.insert(0, (33, "VanillaRNN", (1, 256, 16384, 16384, 8192)))
    for number, name, sizes in loops:
        if "rnn" in settings.cells:
            torch.manual_seed(0)
            yield _compare(settings, "rnn", f"{number} {name}", *by_hand(*sizes, place))
    for problem in STACKS:
        if problem.cell in settings.cells:
            torch.manual_seed(0)
            yield _compare(settings, problem.cell, f"{problem.number} {problem.name}", *stack(problem, place))


def _compare(settings: Settings, cell: str, name: str, theirs: Model, ours: Model, x: Tensor) -> Record:
    def call(model: Model) -> baselines.Call:
        def once() -> Tensor:
            with torch.no_grad():
                return model(x)

        return once

    calls = {"fastrnn": call(ours), "as published": call(theirs)}
    found = baselines.difference(calls["fastrnn"](), calls["as published"]())
    if not found <= baselines.tolerance(x):
        raise AssertionError(f"KernelBench {name}: results differ by {found:.3g} of their largest value")
    if settings.device == "cuda":
        calls["as published, in a CUDA graph"] = baselines.in_cuda_graph(calls["as published"])
    record: Record = {
        "suite": "kernelbench",
        "cell": cell,
        "shape": name,
        "mode": "inference",
        "dtype": str(settings.dtype).removeprefix("torch."),
        "times": measure(calls, settings.device, rounds=settings.rounds),
        "difference": found,
    }
    return with_algorithm(record, settings.device, calls["as published"])
