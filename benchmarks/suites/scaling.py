"""How the cost follows T, B, H and the number of layers: one varies, the others stay at (32, 100, 256, 256)."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import baselines, shapes
from benchmarks.suites import Record, Settings, headline

_BASE = shapes.Shape(32, 100, 256, 256)
_SHAPES = (
    *(_BASE._replace(steps=steps) for steps in (10, 30, 100, 300)),
    *(_BASE._replace(batch=batch) for batch in (1, 4, 16, 64)),
    *(_BASE._replace(input_size=hidden, hidden_size=hidden) for hidden in (32, 64, 128, 512, 1024)),
    *(_BASE._replace(layers=layers, directions=directions) for layers, directions in ((2, 1), (4, 1), (1, 2))),
)


def run(settings: Settings) -> Iterator[Record]:
    for cell in settings.cells:
        for shape in settings.shapes or _SHAPES:
            p = baselines.problem(cell, shape, settings.device, settings.dtype)
            for mode in settings.modes:
                yield {**headline.compare(settings, p, mode), "suite": "scaling"}
