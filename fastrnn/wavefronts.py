"""Whether the layers of a stack run as a wavefront (``fastrnn.stacks``) or one after another: what the plans predict of both."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, NamedTuple

import torch

from fastrnn import plans
from fastrnn.reference import CELLS, NUM_GATES
from fastrnn.stacks import MAX_LAYERS, Cut, Wavefront

if TYPE_CHECKING:
    from fastrnn import _C
    from fastrnn.base import RNNBase

_PRODUCT_US = 12.0  # of a chunk, that feeds the layers: a launch, and a matrix of some hundred rows
_STAGE_US = 60.0  # of Python and dispatch, which a stage is not shorter than
_LEAST_GAIN = 1.1
_CHUNKS = (16, 32, 64, 128, 256)
_MOST_BYTES = 1 << 30  # of the gates of all layers, which a wavefront holds at once


class Choice(NamedTuple):
    cut: Cut | None  # None: layer by layer
    why_not: str
    us: float = 0.0  # predicted, of the recurrences and the products between stages; 0 where nothing was
    us_by_layers: float = 0.0


def allowed_chunk() -> int | None:
    """FASTRNN_WAVEFRONT, which backends.resolve has checked: "auto" or nothing is None, "0" never, else the steps of a chunk."""
    value = os.environ.get("FASTRNN_WAVEFRONT", "")
    return None if value in ("", "auto") else int(value)


def choose(
    request: plans.Request, layers: int, trains: bool, limits: _C.DeviceLimits, allowed: int | None = None
) -> Choice:
    """The best of all chunks, or the one that is ``allowed``. ``trains``: backward follows."""
    from fastrnn import _C

    if allowed == 0:
        return Choice(None, "FASTRNN_WAVEFRONT=0")
    chunks = [chunk for chunk in _CHUNKS if 2 * chunk <= request.steps]
    if allowed is not None:
        chunks = [min(allowed, request.steps)]
    elif not chunks:
        return Choice(None, f"fewer than {2 * _CHUNKS[0]} steps")
    rows, gates = request.steps * request.batch, NUM_GATES[CELLS[request.cell]] * request.hidden_size
    if allowed is None and layers * rows * gates * plans.SCALARS[request.scalar].itemsize > _MOST_BYTES:
        return Choice(None, f"the gates of all layers take more than {_MOST_BYTES >> 20} MB")
    passes = (False, True) if trains else (False,)
    stack = request._replace(directions=layers)
    try:
        single = [_C.plan(request.of_pass(b), limits) for b in passes]
        of_chunks = [(chunk, [_C.plan(stack.of_pass(b, chunk), limits) for b in passes]) for chunk in chunks]
    except ValueError:
        return Choice(None, f"FASTRNN_PLANS={request.allowed} cannot run a stack")
    by_layers = sum(layers * (p["start_us"] + request.steps * p["step_us"] + _PRODUCT_US) for p in single)
    best = Choice(None, f"no wavefront is predicted to be {_LEAST_GAIN} times faster", by_layers, by_layers)
    for chunk, of_passes in of_chunks:
        stages = Wavefront(layers, request.steps, chunk).stages
        us = sum(stages * max(_STAGE_US, p["start_us"] + chunk * p["step_us"] + _PRODUCT_US) for p in of_passes)
        if allowed is not None or us < best.us / (1 if best.cut else _LEAST_GAIN):
            # by their full names, so that every stage has the same
            names = [
                f"{p['team']}:blocks={p['team_size']},samples={p['samples']},cluster={p['cluster_size']}"
                for p in of_passes
            ]
            best = Choice(Cut(chunk, names[0], names[-1]), "", us, by_layers)
    return best


@functools.lru_cache(maxsize=4096)
def _choose(numbers: tuple[int, ...], request: plans.Request, layers: int, trains: bool, allowed: int | None) -> Choice:
    return choose(request, layers, trains, plans.limits_of(numbers), allowed)


def choice_for(
    rnn: RNNBase, dtype: torch.dtype, device: torch.device, steps: int, batch: int, backend: str, *, is_ragged: bool
) -> Choice:
    """How the layers of a module run on such an input, by a backend with CUDA kernels."""
    allowed = allowed_chunk()
    for applies, why_not in (
        (rnn.bidirectional, "bidirectional"),
        (rnn.proj_size > 0, "proj_size"),
        (rnn.num_layers > MAX_LAYERS, f"more than {MAX_LAYERS}"),
        (is_ragged, "lengths"),
        (batch == 0, "an empty batch"),
    ):
        if applies:
            return Choice(None, why_not)
    request = plans.Request.of(rnn, dtype, steps, batch)
    numbers = plans.limit_numbers(backend, device)
    return _choose(numbers, request, rnn.num_layers, torch.is_grad_enabled(), allowed)


def text_of(choice: Choice, layers: int, steps: int) -> str:
    """A line for ``fastrnn.explain``."""
    what = "a training step" if torch.is_grad_enabled() else "a call"
    times = f"{choice.us_by_layers / 1000:.2f} ms {what} without the products of whole sequences"
    if choice.cut is None:
        predicted = f", predicted {times}" if choice.us_by_layers else ""
        return f"layers    one after another ({choice.why_not}){predicted}"
    stages = Wavefront(layers, steps, choice.cut.chunk).stages
    return (
        f"layers    {layers} at once as a wavefront, {stages} stages of {choice.cut.chunk} steps, predicted "
        f"{choice.us / 1000:.2f} ms in place of {times}"
    )
