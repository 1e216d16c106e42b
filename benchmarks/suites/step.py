"""A whole training step: forward, backward, the clip of all gradients' norm, and AdamW's fused step.

Ours clips inside the step (``fastrnn.clip_on_step``), theirs by ``torch.nn.utils.clip_grad_norm_`` before it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

import fastrnn
from benchmarks import baselines, shapes
from benchmarks.algorithms import with_algorithm
from benchmarks.suites import Record, Settings
from benchmarks.timing import measure

_MAX_NORM = 0.1  # below every norm that occurs: the clip has work to do
_LEARNING_RATE = 1e-9  # the weights stay what they are, so that results can be compared after many steps


def _call(p: baselines.Problem, module: nn.Module, ours: bool) -> baselines.Call:
    optimizer = torch.optim.AdamW(module.parameters(), lr=_LEARNING_RATE, fused=True)
    if ours:
        fastrnn.clip_on_step(optimizer, _MAX_NORM)
    backward = baselines.training(module, p.x, p.grad_y)

    def call() -> list[Tensor]:
        results = backward()
        if not ours:
            nn.utils.clip_grad_norm_(module.parameters(), _MAX_NORM)
        optimizer.step()
        return list(results)

    return call


def run(settings: Settings) -> Iterator[Record]:
    for cell in settings.cells:
        for shape in settings.shapes or shapes.headline(settings.device):
            p = baselines.problem(cell, shape, settings.device, settings.dtype)
            calls = {"fastrnn": _call(p, p.ours, True), "torch.nn": _call(p, p.theirs, False)}
            difference = baselines.check(p, calls["fastrnn"](), calls["torch.nn"]())
            record: Record = {
                "suite": "step",
                "cell": cell,
                "shape": str(shape),
                "mode": "step with clip and AdamW",
                "dtype": str(settings.dtype).removeprefix("torch."),
                "times": measure(calls, settings.device, rounds=settings.rounds),
                "difference": difference,
            }
            yield with_algorithm(record, settings.device, calls["torch.nn"])
