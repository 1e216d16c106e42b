"""Bytes kept between forward and backward, and the most that a training step holds at once, against torch.nn.

Parameters, the input and the output do not count among the bytes kept: they live on both sides. The peak is that of torch's
allocator over a whole step.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks import baselines, shapes
from benchmarks.algorithms import with_algorithm
from benchmarks.suites import Record, Settings
from benchmarks.timing import measure


def saved_bytes(module: nn.Module, x: Tensor) -> int:
    """What autograd keeps of a forward, each storage once."""
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = x.detach().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = module(x)[0]
    for tensor in (x, y, *module.parameters()):
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storages.values())


def peak_bytes(module: nn.Module, x: Tensor, grad_y: Tensor, device: str) -> int:
    """The most that a training step has allocated at once, from no gradients on."""
    baselines.training(module, x, grad_y)()
    # Nothing that was there before is freed meanwhile: the profiler would count some of that.
    module.zero_grad()
    call = baselines.training(module, x, grad_y)
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    level = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            level += event.nbytes()
            peak = max(peak, level)
    return peak


def run(settings: Settings) -> Iterator[Record]:
    for cell in settings.cells:
        for shape in settings.shapes or shapes.headline(settings.device):
            p = baselines.problem(cell, shape, settings.device, settings.dtype)
            calls = {
                "fastrnn": baselines.training(p.ours, p.x, p.grad_y),
                "torch.nn": baselines.training(p.theirs, p.x, p.grad_y),
            }
            difference = baselines.check(p, calls["fastrnn"](), calls["torch.nn"]())
            extra: dict[str, float] = {}
            for name, module in (("fastrnn", p.ours), ("torch.nn", p.theirs)):
                extra[f"{name}: bytes kept for backward"] = saved_bytes(module, p.x)
                extra[f"{name}: peak bytes of a step"] = peak_bytes(module, p.x, p.grad_y, settings.device)
            record: Record = {
                "suite": "memory",
                "cell": cell,
                "shape": str(shape),
                "mode": "train",
                "dtype": str(settings.dtype).removeprefix("torch."),
                "times": measure(calls, settings.device, rounds=3),
                "difference": difference,
                "extra": extra,
            }
            yield with_algorithm(record, settings.device, calls["torch.nn"])
