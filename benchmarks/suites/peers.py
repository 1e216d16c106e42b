"""Inference against ONNX Runtime and OpenVINO (optional: `pip install fastrnn[bench]`), float32 on the CPU.

Their idle threads spin for a while, so each turn starts after a pause.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks import baselines, shapes
from benchmarks.suites import Record, Settings
from benchmarks.timing import measure

PAUSE = 0.1


def run(settings: Settings) -> Iterator[Record]:
    if settings.device != "cpu" or settings.dtype != torch.float32:
        return
    for cell in settings.cells:
        for shape in settings.shapes or shapes.CPU_HEADLINE:
            p = baselines.problem(cell, shape, "cpu")
            calls = {"fastrnn": baselines.inference(p.ours, p.x)}
            expected = calls["fastrnn"]()
            difference = 0.0
            for name, engine in (("onnxruntime", baselines.onnxruntime), ("openvino", baselines.openvino)):
                call = engine(p)
                if call is None:
                    continue
                calls[name] = call
                difference = max(difference, baselines.check(p, expected, call()))
            if len(calls) == 1:
                continue
            yield {
                "suite": "peers",
                "cell": cell,
                "shape": str(shape),
                "mode": "inference",
                "dtype": "float32",
                "times": measure(calls, "cpu", rounds=settings.rounds, pause=PAUSE),
                "difference": difference,
                "flops": shape.forward_flops(cell),
            }
