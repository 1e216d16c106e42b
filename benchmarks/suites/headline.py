"""fastrnn against torch.nn: training step and inference, every cell, every headline shape."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import baselines, shapes
from benchmarks.algorithms import with_algorithm
from benchmarks.further import BASELINES, contender
from benchmarks.libraries import LeftOut
from benchmarks.suites import Record, Settings
from benchmarks.timing import measure


def run(settings: Settings) -> Iterator[Record]:
    for cell in settings.cells:
        for shape in settings.shapes or shapes.headline(settings.device):
            p = baselines.problem(cell, shape, settings.device, settings.dtype)
            for mode in settings.modes:
                yield compare(settings, p, mode)


def compare(settings: Settings, p: baselines.Problem, mode: str) -> Record:
    """Ours against torch.nn eager, on CUDA torch.nn in a CUDA graph, and the further baselines that were asked for."""
    if mode == "train":
        calls = {
            "fastrnn": baselines.training(p.ours, p.x, p.grad_y),
            "torch.nn": baselines.training(p.theirs, p.x, p.grad_y),
        }
    else:
        calls = {"fastrnn": baselines.inference(p.ours, p.x), "torch.nn": baselines.inference(p.theirs, p.x)}
    eager = calls["torch.nn"]
    expected = eager()
    difference = baselines.check(p, calls["fastrnn"](), expected)
    if settings.device == "cuda":
        calls["torch.nn in a CUDA graph"] = baselines.in_cuda_graph(eager)
    extra, left_out = {}, {}
    for baseline in map(BASELINES.__getitem__, settings.baselines):
        try:
            found = contender(baseline, p, mode, expected)
        except LeftOut as reason:
            left_out[baseline.title] = str(reason)
        else:
            calls[baseline.title] = found.call
            difference = max(difference, found.difference)
            extra[f"{baseline.title}: seconds of the first call, {mode}"] = found.seconds_of_first_call
    record: Record = {
        "suite": "headline",
        "cell": p.cell,
        "shape": str(p.shape),
        "mode": mode,
        "dtype": str(settings.dtype).removeprefix("torch."),
        "times": measure(calls, settings.device, rounds=settings.rounds),
        "difference": difference,
        "flops": p.shape.forward_flops(p.cell) * (3 if mode == "train" else 1),
    }
    if extra:
        record["extra"] = extra
    if left_out:
        record["left_out"] = left_out
    return with_algorithm(record, settings.device, eager)
