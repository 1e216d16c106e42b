"""fastrnn against torch.nn: training step and inference, every cell, every headline shape."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import baselines, shapes
from benchmarks.suites import Record, Settings
from benchmarks.timing import measure


def run(settings: Settings) -> Iterator[Record]:
    for cell in settings.cells:
        for shape in settings.shapes or shapes.headline(settings.device):
            p = baselines.problem(cell, shape, settings.device, settings.dtype)
            for mode in settings.modes:
                yield compare(settings, p, mode)


def compare(settings: Settings, p: baselines.Problem, mode: str) -> Record:
    """Ours against torch.nn eager and, on CUDA, torch.nn in a CUDA graph."""
    if mode == "train":
        calls = {
            "fastrnn": baselines.training(p.ours, p.x, p.grad_y),
            "torch.nn": baselines.training(p.theirs, p.x, p.grad_y),
        }
    else:
        calls = {"fastrnn": baselines.inference(p.ours, p.x), "torch.nn": baselines.inference(p.theirs, p.x)}
    difference = baselines.check(p, calls["fastrnn"](), calls["torch.nn"]())
    if settings.device == "cuda":
        calls["torch.nn in a CUDA graph"] = baselines.in_cuda_graph(calls["torch.nn"])
    return {
        "suite": "headline",
        "cell": p.cell,
        "shape": str(p.shape),
        "mode": mode,
        "dtype": str(settings.dtype).removeprefix("torch."),
        "times": measure(calls, settings.device, rounds=settings.rounds),
        "difference": difference,
        "flops": p.shape.forward_flops(p.cell) * (3 if mode == "train" else 1),
    }
