"""Whether the layers of a stack run as a wavefront (``fastrnn.stacks``) or one after another: what the plans predict of both."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fastrnn import plans
from fastrnn.stacks import MAX_LAYERS, Wavefront

if TYPE_CHECKING:
    from fastrnn import _C
    from fastrnn.base import RNNBase

_PRODUCT_US = 12.0  # of a chunk, that feeds the layers: a launch, and a matrix of some hundred rows
_STAGE_US = 60.0  # of Python and dispatch, which a stage is not shorter than
_LEAST_GAIN = 1.1
_CHUNKS = (16, 32, 64, 128, 256)


class Choice(NamedTuple):
    chunk: int  # 0: layer by layer
    us: float  # predicted, of the recurrences and the products between stages
    us_by_layers: float


def _allowed_chunk() -> int | None:
    """FASTRNN_WAVEFRONT: unset or "auto", "0" for never, else the steps of a chunk."""
    value = os.environ.get("FASTRNN_WAVEFRONT", "auto")
    if value == "auto":
        return None
    if not value.isdecimal():
        raise ValueError(f"FASTRNN_WAVEFRONT should be auto, 0 or the steps of a chunk, got {value!r}")
    return int(value)


def choose(
    request: plans.Request, layers: int, trains: bool, limits: _C.DeviceLimits, allowed: int | None = None
) -> Choice:
    """The best of all chunks, or the one that is ``allowed``."""
    from fastrnn import _C

    passes = (False, True) if trains else (False,)
    chunks = [chunk for chunk in _CHUNKS if 2 * chunk <= request.steps] if allowed is None else [allowed]
    single = [_C.plan(request.of_pass(b), limits) for b in passes]
    by_layers = sum(layers * (p["start_us"] + request.steps * p["step_us"] + _PRODUCT_US) for p in single)
    best = Choice(0, by_layers, by_layers)
    for chunk in chunks:
        stack = request._replace(directions=layers)
        try:
            of_passes = [_C.plan(stack.of_pass(b, chunk), limits) for b in passes]
        except ValueError:  # the plan that is wanted runs no stack
            return best
        stages = Wavefront(layers, request.steps, chunk).stages
        us = sum(stages * max(_STAGE_US, p["start_us"] + chunk * p["step_us"] + _PRODUCT_US) for p in of_passes)
        if allowed is not None or us < best.us / (_LEAST_GAIN if best.chunk == 0 else 1):
            best = Choice(chunk, us, by_layers)
    return best


@functools.lru_cache(maxsize=4096)
def _choose_on(index: int, request: plans.Request, layers: int, trains: bool, allowed: int | None) -> int:
    limits = plans.device_limits("cuda", torch.device("cuda", index))
    return choose(request, layers, trains, limits, allowed).chunk


def chunk_of(rnn: RNNBase, x: Tensor, backend: str) -> int:
    """Steps of a chunk for an input (T, B, I) without lengths; 0: layer by layer is faster."""
    allowed = _allowed_chunk()
    if allowed == 0 or rnn.num_layers > MAX_LAYERS or x.size(1) == 0:
        return 0
    request = plans.Request.of(rnn, x.dtype, x.size(0), x.size(1))
    if backend == "cuda":
        index = x.device.index if x.device.index is not None else torch.cuda.current_device()
        return _choose_on(index, request, rnn.num_layers, torch.is_grad_enabled(), allowed)
    limits = plans.device_limits(backend, x.device)
    return choose(request, rnn.num_layers, torch.is_grad_enabled(), limits, allowed).chunk


def text_of(rnn: RNNBase, request: plans.Request, limits: _C.DeviceLimits, *, is_ragged: bool) -> str:
    """A line for ``fastrnn.explain``."""
    layers, allowed = rnn.num_layers, _allowed_chunk()
    why = (
        "FASTRNN_WAVEFRONT=0"
        if allowed == 0
        else "bidirectional"
        if rnn.bidirectional
        else "proj_size"
        if rnn.proj_size > 0
        else f"more than {MAX_LAYERS}"
        if layers > MAX_LAYERS
        else "packed"
        if is_ragged
        else ""
    )
    if why:
        return f"layers    one after another ({why})"
    choice = choose(request, layers, True, limits, allowed)
    times = f"{choice.us_by_layers / 1000:.2f} ms a training step without the products of whole sequences"
    if choice.chunk == 0:
        return f"layers    one after another, predicted {times}; no wavefront is predicted to be {_LEAST_GAIN} times faster"
    stages = Wavefront(layers, request.steps, choice.chunk).stages
    return (
        f"layers    {layers} at once as a wavefront, {stages} stages of {choice.chunk} steps, predicted "
        f"{choice.us / 1000:.2f} ms in place of {times}"
    )
