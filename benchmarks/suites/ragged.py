"""Batches whose lengths are uniform in 1..T, against torch.nn on a PackedSequence of the same samples; packing is timed on both sides.

A padded batch with lengths is what a user has: torch.nn needs pack_padded_sequence and pad_packed_sequence around it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from benchmarks import baselines, shapes
from benchmarks.algorithms import with_algorithm
from benchmarks.suites import Record, Settings
from benchmarks.timing import measure


def run(settings: Settings) -> Iterator[Record]:
    for cell in settings.cells:
        for shape in settings.shapes or shapes.headline(settings.device):
            if shape.batch > 1:  # one sample is not ragged
                for mode in settings.modes:
                    yield _compare(settings, cell, shape, mode)


def _compare(settings: Settings, cell: str, shape: shapes.Shape, mode: str) -> Record:
    p = baselines.problem(cell, shape, settings.device, settings.dtype)
    lengths = torch.randint(1, shape.steps + 1, (shape.batch,))
    lengths[0] = shape.steps
    theirs: Any = p.theirs

    def ours(x: Tensor) -> Tensor:
        y: Tensor = p.ours(x, lengths=lengths)[0]
        return y

    def packed(x: Tensor) -> Tensor:
        y, _ = theirs(pack_padded_sequence(x, lengths, enforce_sorted=False))
        return pad_packed_sequence(y, total_length=shape.steps)[0]

    if mode == "train":
        calls = {
            "fastrnn": baselines.training(p.ours, p.x, p.grad_y, ours),
            "torch.nn packed": baselines.training(theirs, p.x, p.grad_y, packed),
        }
    else:
        calls = {
            "fastrnn": baselines.inference(lambda x: (ours(x),), p.x),
            "torch.nn packed": baselines.inference(lambda x: (packed(x),), p.x),
        }
    difference = baselines.check(p, calls["fastrnn"](), calls["torch.nn packed"]())
    share = lengths.sum().item() / (shape.steps * shape.batch)
    record: Record = {
        "suite": "ragged",
        "cell": cell,
        "shape": str(shape),
        "mode": mode,
        "dtype": str(settings.dtype).removeprefix("torch."),
        "times": measure(calls, settings.device, rounds=settings.rounds),
        "difference": difference,
        "flops": round(shape.forward_flops(cell) * share) * (3 if mode == "train" else 1),
        "extra": {"share of steps that exist": share},
    }
    return with_algorithm(record, settings.device, calls["torch.nn packed"])
