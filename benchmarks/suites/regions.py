"""fastrnn against torch.nn where cuDNN has persistent kernels and where it has none, with the algorithm that ran.

torch chooses cuDNN's algorithm by type, size and batch; which one that was is read off the kernels that ran.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import baselines
from benchmarks.algorithms import algorithm
from benchmarks.shapes import Shape
from benchmarks.suites import Record, Settings
from benchmarks.suites.headline import compare

# (B, T, I, H, layers, directions)
REGIONS = (
    # float16: PERSIST_STATIC; other types and GRU: STANDARD
    Shape(16, 1024, 768, 768),
    Shape(32, 512, 1024, 1024),
    # PERSIST_STATIC_SMALL_H
    Shape(16, 512, 64, 64),
    Shape(16, 512, 128, 128),
    Shape(16, 512, 192, 192),
    # STANDARD but in float16
    Shape(1, 512, 512, 512),
    Shape(16, 512, 512, 512),
    Shape(64, 256, 1024, 1024),
    Shape(128, 128, 512, 512),
    # STANDARD always: several layers or both directions, a batch that is no multiple of 8
    Shape(16, 256, 512, 512, 2, 2),
    Shape(10, 256, 256, 256, 6),
)


def run(settings: Settings) -> Iterator[Record]:
    for cell in settings.cells:
        for shape in settings.shapes or (REGIONS if settings.device == "cuda" else ()):
            p = baselines.problem(cell, shape, settings.device, settings.dtype)
            for mode in settings.modes:
                if mode == "train":
                    theirs = baselines.training(p.theirs, p.x, p.grad_y)
                else:
                    theirs = baselines.inference(p.theirs, p.x)
                record = compare(settings, p, mode)
                record["suite"] = "regions"
                if "algorithm" not in record:
                    record["algorithm"] = algorithm(theirs)
                yield record
