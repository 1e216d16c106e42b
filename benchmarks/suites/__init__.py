"""One module per suite, each with one function ``run(settings) -> iterator of records``; SUITES names them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypedDict

import torch

from benchmarks.shapes import Shape
from benchmarks.timing import Times


class Settings(NamedTuple):
    device: str
    shapes: tuple[Shape, ...]  # empty: the suite's own
    cells: tuple[str, ...]
    dtype: torch.dtype
    rounds: int
    modes: tuple[str, ...]
    baselines: tuple[str, ...] = ()  # more, by their names in benchmarks.further


class _Optional(TypedDict, total=False):
    flops: int  # of the products, per call
    extra: dict[str, float]  # other numbers by name
    algorithm: str  # whose kernels the baseline ran
    left_out: dict[str, str]  # baselines that were asked for and not measured, and why
    round_trip_ns: float | None  # of a cache line between two cores, right after; on a CPU by several threads


class Record(_Optional):
    """One measurement: contenders of one problem. ``fastrnn`` is ours; every other entry of ``times`` is a baseline."""

    suite: str
    cell: str
    shape: str
    mode: str  # "train", "inference", or what the suite compares
    dtype: str
    times: dict[str, Times]
    difference: float  # between results: benchmarks.baselines.difference


Suite = Callable[[Settings], Iterator[Record]]


def _suites() -> dict[str, Suite]:
    from benchmarks.suites import (
        clipping,
        features,
        headline,
        kernelbench,
        memory,
        peers,
        ragged,
        regions,
        scaling,
        step,
    )

    modules = (headline, regions, step, peers, ragged, features, clipping, kernelbench, scaling, memory)
    return {module.__name__.rsplit(".", 1)[-1]: module.run for module in modules}


SUITES = _suites()
