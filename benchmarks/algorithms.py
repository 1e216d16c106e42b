"""Whose kernels torch.nn runs, read off the operators and kernels of one call."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch

from benchmarks.baselines import Call

if TYPE_CHECKING:
    from benchmarks.suites import Record


def kernels_of(call: Call) -> set[str]:
    """The names of the operators and kernels that a call runs."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        call()
    return {event.name for event in profile.events()}


def algorithm_of_names(names: Collection[str]) -> str:
    """Whose kernels these are."""
    text = " ".join(names).lower()
    if "persist" in text:
        return "cuDNN, persistent kernels"
    if "aten::_cudnn_rnn" in names:
        return "cuDNN, a product and pointwise kernels per step"
    if "mkldnn_rnn" in text:
        return "oneDNN"
    return "ATen, operations per step"


def algorithm(call: Call) -> str:
    return algorithm_of_names(kernels_of(call))


def with_algorithm(record: Record, device: str, call: Call) -> Record:
    """The record, with what `call` (torch.nn's) ran; as it is on a GPU, where only `regions` takes the time for a profile."""
    if device == "cpu":
        record["algorithm"] = algorithm(call)
    return record
