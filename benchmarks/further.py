"""Baselines that ``--baselines`` adds to headline and the suites built on it: slow to start, or packages that few machines have.

One that is absent, cannot run a problem or computes something else is left out there, and the record says why.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from benchmarks import baselines
from benchmarks.compiled_loop import CompiledLoop, seconds_of_first_call
from benchmarks.libraries import FlashRnn, Haste, LeftOut

Layer = CompiledLoop | FlashRnn | Haste


class Baseline(NamedTuple):
    title: str  # in results
    layer: type[Layer]
    cuda_only: bool = True
    in_cuda_graph: bool = False


BASELINES = {
    "compiled": Baseline("loop over a compiled step", CompiledLoop, cuda_only=False),
    "compiled-graph": Baseline("loop over a compiled step in a CUDA graph", CompiledLoop, in_cuda_graph=True),
    "flashrnn": Baseline("flashrnn", FlashRnn),
    "haste": Baseline("haste", Haste),
}


class Contender(NamedTuple):
    call: baselines.Call
    difference: float  # from torch.nn's results
    seconds_of_first_call: float


def contender(baseline: Baseline, p: baselines.Problem, mode: str, expected: Any) -> Contender:
    """What to time, once its results are found to be torch.nn's.

    Args:
        mode: "train" or "inference".
        expected: results of torch.nn in that mode, as :mod:`benchmarks.baselines` returns them.
    Raises:
        LeftOut: it is not measured here.
    """
    if baseline.cuda_only and not p.x.is_cuda:
        raise LeftOut("CUDA only")
    if p.shape[4:] != (1, 1):
        raise LeftOut("one layer in one direction only")
    try:
        layer = baseline.layer(p)
        layer.train(mode == "train")
        call = baselines.training(layer, p.x, p.grad_y) if mode == "train" else baselines.inference(layer, p.x)
        seconds = seconds_of_first_call(call)
        if baseline.in_cuda_graph:
            call = baselines.in_cuda_graph(call)
        found = _as_torch(layer, call())
    except LeftOut:
        raise
    except Exception as error:  # a library's own words for a problem that it cannot run
        raise LeftOut(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}") from error
    try:
        return Contender(call, baselines.check(p, found, expected), seconds)
    except (
        AssertionError,
        RuntimeError,
        ValueError,
    ) as error:  # the last two of other shapes, or another number of results
        raise LeftOut(f"wrong result: {error}") from error


def _as_torch(layer: Layer, results: Any) -> Any:
    """With the gradients of torch.nn's parameters in the place of the layer's own."""
    return results if isinstance(results, Tensor) else [*results[:2], *layer.gradients_as_torch()]
