"""What the features cost, and what they cost without fastrnn.

``on against off``: recurrent dropout, per-step norm clip and recorded norms, all on, against the same module without them.
``against a loop``: a variational mask on the state, against the hand-written loop over torch.nn's Cell that it takes today.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import fastrnn
from benchmarks import baselines, shapes
from benchmarks.suites import Record, Settings
from benchmarks.timing import measure
from fastrnn import masks

_CELLS: dict[str, Any] = {"lstm": nn.LSTMCell, "gru": nn.GRUCell, "rnn": nn.RNNCell}
_P = 0.25


class LoopOverCells(nn.Module):
    """A layer as users write it by hand when they need the same dropout mask on h at every step (one layer, one direction)."""

    def __init__(self, cell: str, module: nn.RNNBase) -> None:
        super().__init__()
        self.has_cell_state = cell == "lstm"
        self.cell = _CELLS[cell](module.input_size, module.hidden_size)
        parameters = {name.removesuffix("_l0"): value for name, value in module.state_dict().items()}
        self.cell.load_state_dict(parameters)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = x.new_zeros(x.size(1), self.cell.hidden_size)
        c = torch.zeros_like(h)
        outputs = []
        for step in x.unbind(0):
            if self.has_cell_state:
                h, c = self.cell(step, (h * mask, c))
            else:
                h = self.cell(step, h * mask)
            outputs.append(h)
        return torch.stack(outputs)


def run(settings: Settings) -> Iterator[Record]:
    for cell in settings.cells:
        for shape in settings.shapes or shapes.headline(settings.device):
            yield _on_against_off(settings, cell, shape)
            if cell != "gru":  # a mask on GRUCell's state would also reach z * h: not the same function
                yield _against_loop(settings, cell, shape)


def _on_against_off(settings: Settings, cell: str, shape: shapes.Shape) -> Record:
    options = {"recurrent_dropout": _P, "state_grad_clip": 1.0, "record_state_grad_norms": True}
    on = baselines.problem(cell, shape, settings.device, settings.dtype, **options)
    off = baselines.problem(cell, shape, settings.device, settings.dtype)
    calls = {
        "fastrnn": baselines.training(on.ours, on.x, on.grad_y),
        "features off": baselines.training(off.ours, off.x, off.grad_y),
    }

    def once() -> list[Tensor | None]:
        torch.manual_seed(1)
        return [*calls["fastrnn"](), on.ours.state_grad_norms]

    found = once()
    with fastrnn.backend("reference"):
        difference = baselines.check(on, found, once())
    return _record(settings, cell, shape, "features on against off", calls, difference)


def _against_loop(settings: Settings, cell: str, shape: shapes.Shape) -> Record:
    p = baselines.problem(cell, shape, settings.device, settings.dtype, recurrent_dropout=_P)
    loop = LoopOverCells(cell, p.theirs)
    ones = torch.ones(shape.batch, shape.hidden_size, device=settings.device, dtype=settings.dtype)

    def by_hand(x: Tensor) -> Tensor:
        y: Tensor = loop(x, functional.dropout(ones, _P))
        return y

    def with_same_mask(x: Tensor) -> Tensor:
        mask = masks.factors(_P, (1, *ones.shape), ones.device, ones.dtype)
        y: Tensor = loop(x, mask[0])
        return y

    calls = {
        "fastrnn": baselines.training(p.ours, p.x, p.grad_y),
        "loop over cells": baselines.training(loop, p.x, p.grad_y, by_hand),
    }
    results = []
    for call in (calls["fastrnn"], baselines.training(loop, p.x, p.grad_y, with_same_mask)):
        torch.manual_seed(1)
        results.append(call())
    difference = baselines.check(p, *results)
    return _record(settings, cell, shape, "variational mask against a loop", calls, difference)


def _record(
    settings: Settings, cell: str, shape: shapes.Shape, mode: str, calls: dict[str, baselines.Call], difference: float
) -> Record:
    return {
        "suite": "features",
        "cell": cell,
        "shape": str(shape),
        "mode": mode,
        "dtype": str(settings.dtype).removeprefix("torch."),
        "times": measure(calls, settings.device, rounds=settings.rounds),
        "difference": difference,
        "flops": 3 * shape.forward_flops(cell),
    }
