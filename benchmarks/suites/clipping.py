"""Clipping: through time inside backward, of the parameters' norm, and inside the optimizer's step.

Parameter gradients are written anew before each call, outside of its time, since clipping changes them. ``trusted``: with
``trust_backward=True``; then a real backward writes the gradients of both sides.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import fastrnn
from benchmarks import baselines
from benchmarks.shapes import CLIPPED_PARAMETERS, CLIPPED_THROUGH_TIME, Shape
from benchmarks.suites import Record, Settings
from benchmarks.timing import Times, measure, measure_prepared

_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"SGD": torch.optim.SGD, "Adam": torch.optim.Adam}
_CELLS: dict[str, Any] = {"lstm": nn.LSTMCell, "gru": nn.GRUCell, "rnn": nn.RNNCell}


def run(settings: Settings) -> Iterator[Record]:
    for cell in settings.cells:
        for shape in settings.shapes or (CLIPPED_THROUGH_TIME,):
            if shape[4:] != (1, 1):
                continue  # the loop by hand is of one layer in one direction
            yield from _through_time(settings, cell, shape)
        for shape in settings.shapes or (CLIPPED_PARAMETERS,):
            for trust in (False, True):
                for limit in ("beyond", "below"):
                    yield _parameter_clip(settings, cell, shape, limit, trust)
                for name in _OPTIMIZERS:
                    yield _step(settings, cell, shape, name, trust)


def _record(
    settings: Settings, cell: str, shape: Shape, mode: str, times: dict[str, Times], difference: float
) -> Record:
    return {
        "suite": "clipping",
        "cell": cell,
        "shape": str(shape),
        "mode": mode,
        "dtype": str(settings.dtype).removeprefix("torch."),
        "times": times,
        "difference": difference,
    }


# ----------------------------------------------------------------------------------------------------- through time


class _ClipState(torch.autograd.Function):
    """A state on its way to the next step: in backward its gradient is clipped per sample, and the norm kept."""

    @staticmethod
    def forward(ctx: Any, limit: float, norms: list[Tensor], *state: Tensor) -> tuple[Tensor, ...]:
        ctx.limit, ctx.norms = limit, norms
        return tuple(part.view_as(part) for part in state)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        norm = torch.stack([grad.square().sum(-1) for grad in grads]).sum(0).sqrt()
        ctx.norms.append(norm)
        factor = (ctx.limit / norm).clamp(max=1.0).unsqueeze(-1)
        return (None, None, *(grad * factor for grad in grads))


class LoopThatClips(nn.Module):
    """A layer as users write it by hand when they want its gradient clipped at each step (one layer, one direction)."""

    def __init__(self, cell: str, module: nn.RNNBase, limit: float) -> None:
        super().__init__()
        self.limit = limit
        self.norms: list[Tensor] = []
        self.cell = _CELLS[cell](module.input_size, module.hidden_size)
        self.cell.load_state_dict({name.removesuffix("_l0"): value for name, value in module.state_dict().items()})
        self.to(module.get_parameter("weight_ih_l0"))

    def forward(self, x: Tensor) -> Tensor:
        self.norms = []
        h = x.new_zeros(x.size(1), self.cell.hidden_size)
        state = (h, torch.zeros_like(h)) if isinstance(self.cell, nn.LSTMCell) else (h,)
        outputs = []
        for step in x.unbind(0):
            new = self.cell(step, state if len(state) > 1 else state[0])
            state = new if isinstance(new, tuple) else (new,)
            outputs.append(state[0])
            state = _ClipState.apply(self.limit, self.norms, *state)
        return torch.stack(outputs)

    @property
    def recorded(self) -> Tensor:
        """As fastrnn records them: (1, T, B); nothing comes back to the last state, whose gradient is 0."""
        norms = torch.stack([*reversed(self.norms), torch.zeros_like(self.norms[0])])
        return norms.unsqueeze(0)


def _through_time(settings: Settings, cell: str, shape: Shape) -> Iterator[Record]:
    limit = 0.5
    on = baselines.problem(
        cell, shape, settings.device, settings.dtype, state_grad_clip=limit, record_state_grad_norms=True
    )
    off = baselines.problem(cell, shape, settings.device, settings.dtype)
    loop = LoopThatClips(cell, on.theirs, limit)
    calls = {
        "fastrnn": baselines.training(on.ours, on.x, on.grad_y),
        "off": baselines.training(off.ours, off.x, off.grad_y),
        "loop over cells": baselines.training(loop, on.x, on.grad_y, loop),
    }
    by_hand = [*calls["loop over cells"](), loop.recorded]
    difference = baselines.check(on, [*calls["fastrnn"](), on.ours.state_grad_norms], by_hand)
    clipped = on.ours.state_grad_clipped
    assert clipped is not None and clipped.any(), "the limit should clip"
    times = measure(calls, settings.device, rounds=settings.rounds)
    yield _record(settings, cell, shape, "norm clip, recorded norms", times, difference)


# ------------------------------------------------------------------------------------------------------- parameters


class _Side:
    """A copy of the module, whose gradients are written anew: from a copy, or by a real backward."""

    def __init__(self, p: baselines.Problem, by_backward: bool) -> None:
        self.module = copy.deepcopy(p.ours)
        self.parameters = list(self.module.parameters())
        self.backward = baselines.training(self.module, p.x, p.grad_y)
        self.backward()
        self.values = [parameter.grad.clone() for parameter in self.parameters if parameter.grad is not None]
        self.by_backward = by_backward

    def prepare(self) -> None:
        if self.by_backward:
            self.backward()
            return
        for parameter, value in zip(self.parameters, self.values, strict=True):
            assert parameter.grad is not None
            parameter.grad.copy_(value)

    def norm(self) -> float:
        """In float64: torch's own, summed in float32, is off by some 1e-4 for 17 million elements."""
        return float(torch.stack([value.double().square().sum() for value in self.values]).sum().sqrt())

    def clipped(self, max_norm: float) -> list[Tensor]:
        """What the gradients should be after the call."""
        return [value * min(1.0, max_norm / (self.norm() + 1e-6)) for value in self.values]

    def grads(self) -> list[Tensor]:
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]


_MOST_BY_TORCH = 1e-3


def _compare(
    settings: Settings,
    p: baselines.Problem,
    max_norm: float,
    sides: dict[str, tuple[_Side, Callable[[], object]]],
) -> tuple[dict[str, Times], float]:
    found = 0.0
    for name, (side, call) in sides.items():
        side.prepare()
        call()
        if name == "fastrnn":
            found = baselines.check(p, side.grads(), side.clipped(max_norm))
            continue
        difference = baselines.difference(side.grads(), side.clipped(max_norm))
        assert difference < _MOST_BY_TORCH, f"{name}: results differ by {difference:.3g}"
    calls = {name: (side.prepare, call) for name, (side, call) in sides.items()}
    return measure_prepared(calls, settings.device, rounds=settings.rounds), found


def _parameter_clip(settings: Settings, cell: str, shape: Shape, limit: str, trust: bool) -> Record:
    p = baselines.problem(cell, shape, settings.device, settings.dtype)
    fastrnn.clip_grad_norm_(
        p.ours.parameters(), 1.0, trust_backward=trust
    )  # from here on backward takes sums, if trusted
    ours, theirs = _Side(p, trust), _Side(p, trust)
    max_norm = ours.norm() * (0.3 if limit == "beyond" else 2.0)

    def clip() -> object:
        return fastrnn.clip_grad_norm_(ours.parameters, max_norm, trust_backward=trust)

    def clip_by_torch() -> object:
        return nn.utils.clip_grad_norm_(theirs.parameters, max_norm)

    sides = {"fastrnn": (ours, clip), "torch.nn.utils": (theirs, clip_by_torch)}
    times, difference = _compare(settings, p, max_norm, sides)
    mode = f"parameter clip {limit} the limit" + (", trusted" if trust else "")
    return _record(settings, cell, shape, mode, times, difference)


def _step(settings: Settings, cell: str, shape: Shape, name: str, trust: bool) -> Record:
    p = baselines.problem(cell, shape, settings.device, settings.dtype)
    fastrnn.clip_grad_norm_(p.ours.parameters(), 1.0, trust_backward=trust)
    sides = {key: _Side(p, trust) for key in ("fastrnn", "clip, fused step", "clip, default step")}
    max_norm = sides["fastrnn"].norm() * 0.3
    learning_rate = 1e-9  # the weights should stay what they are over many steps
    optimizers = {
        key: _OPTIMIZERS[name](side.parameters, lr=learning_rate, fused=None if "default" in key else True)
        for key, side in sides.items()
    }
    fastrnn.clip_on_step(optimizers["fastrnn"], max_norm, trust_backward=trust)

    def clip_then_step(key: str) -> Callable[[], object]:
        def call() -> None:
            nn.utils.clip_grad_norm_(sides[key].parameters, max_norm)
            optimizers[key].step()

        return call

    calls: dict[str, Callable[[], object]] = {
        key: optimizers[key].step if key == "fastrnn" else clip_then_step(key) for key in sides
    }
    times, difference = _compare(settings, p, max_norm, {key: (sides[key], calls[key]) for key in sides})
    mode = f"{name} step with clip" + (", trusted" if trust else "")
    return _record(settings, cell, shape, mode, times, difference)
