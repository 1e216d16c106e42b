"""Which kernel plan runs a shape, and why: ``fastrnn.explain``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastrnn import backends, ops
from fastrnn.reference import CELLS

if TYPE_CHECKING:
    from fastrnn import _C
    from fastrnn.base import RNNBase

SCALARS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)  # as csrc/params.h numbers them


def limit_numbers(backend: str, device: torch.device) -> tuple[int, ...]:
    """What a plan has to know of the device of a backend with CUDA kernels, as the operator says it."""
    index = device.index if device.index is not None else torch.cuda.current_device() if backend == "cuda" else 0
    return tuple(getattr(torch.ops, ops.NAMESPACES[backend]).device_limits(index))


def limits_of(numbers: tuple[int, ...]) -> _C.DeviceLimits:
    from fastrnn import _C

    major, minor, multiprocessors, shared_per_block, *clusters, compiled_arch = numbers
    return _C.DeviceLimits(major, minor, multiprocessors, shared_per_block, clusters, compiled_arch)


def device_limits(backend: str, device: torch.device) -> _C.DeviceLimits:
    return limits_of(limit_numbers(backend, device))


class Request(NamedTuple):
    """What the plans of a module's recurrences depend on, beside the device."""

    cell: int
    scalar: int
    steps: int
    batch: int
    hidden_size: int
    state_size: int
    directions: int
    clips_norm: bool  # in backward
    allows_tf32: bool
    allowed: str  # FASTRNN_PLANS

    @classmethod
    def of(cls, rnn: RNNBase, dtype: torch.dtype, steps: int, batch: int) -> Request:
        return cls(
            cell=CELLS.index(rnn.mode.lower()),
            scalar=SCALARS.index(dtype),
            steps=steps,
            batch=batch,
            hidden_size=rnn.hidden_size,
            state_size=rnn.proj_size or rnn.hidden_size,
            directions=2 if rnn.bidirectional else 1,
            clips_norm=rnn.state_grad_clip is not None and rnn.state_grad_clip_mode == "norm",
            allows_tf32=dtype == torch.float32 and ops.rnn_uses_tf32(),
            allowed=os.environ.get("FASTRNN_PLANS", ""),
        )

    def of_pass(self, backward: bool, chunk: int = 0) -> _C.PlanRequest:
        """``chunk``: of a stack of ``directions`` layers (csrc/params.h: Layers)."""
        from fastrnn import _C

        return _C.PlanRequest(
            cell=self.cell,
            scalar=self.scalar,
            steps=self.steps,
            batch=self.batch,
            hidden_size=self.hidden_size,
            state_size=self.state_size,
            directions=self.directions,
            backward=backward,
            clips_norm=backward and self.clips_norm,
            allows_tf32=self.allows_tf32,
            wanted="" if self.allowed == "all" else self.allowed,
            all_plans=self.allowed == "all",
            chunk=chunk,
        )


# Of `python -m fastrnn`.
_TYPICAL = [(hidden_size, batch) for hidden_size in (128, 512, 1024) for batch in (1, 32)]
_TYPICAL_STEPS = 512


def typical_plans(limits: _C.DeviceLimits) -> list[str]:
    """The plans of a few LSTMs in bfloat16 on such a device, a line per layer and pass."""
    from fastrnn import _C

    lines = []
    for hidden_size, batch in _TYPICAL:
        request = Request(
            cell=CELLS.index("lstm"),
            scalar=SCALARS.index(torch.bfloat16),
            steps=_TYPICAL_STEPS,
            batch=batch,
            hidden_size=hidden_size,
            state_size=hidden_size,
            directions=1,
            clips_norm=False,
            allows_tf32=False,
            allowed=os.environ.get("FASTRNN_PLANS", ""),
        )
        for backward in (False, True):
            try:
                plan = _C.plan(request.of_pass(backward), limits)
                blocks = f" of {plan['team_size']} blocks" if plan["team_size"] > 1 else ""
                clusters = (
                    f" in clusters of {plan['cluster_size']}" if 1 < plan["cluster_size"] < plan["team_size"] else ""
                )
                text = f"{plan['team']}{blocks}{clusters}, predicted {plan['step_us']:.2f} us a step"
            except ValueError as error:
                text = str(error)
            lines.append(
                f"LSTM in bfloat16, hidden_size {hidden_size}, batch {batch}, {'backward' if backward else 'forward'}: {text}"
            )
    return lines


def _layer_plans(request: Request, limits: _C.DeviceLimits) -> list[str]:
    """A line per pass; all layers run the same plan, since the recurrence does not see their inputs."""
    from fastrnn import _C

    lines = []
    for backward in (False, True):
        of_pass = request.of_pass(backward)
        plan = _C.plan(of_pass, limits)
        lines.append(f"{'backward' if backward else 'forward '}  {plan['text']}")
        others = [other for other in _C.all_plans(of_pass, limits) if other["team"] != plan["team"]]
        if others:
            lines.append(f"          next best: {others[0]['team']}, {others[0]['step_us']:.2f} us a step")
    if not request.allowed:
        lines.append(
            "cluster and grid plans wait between blocks; they run with FASTRNN_PLANS=all until a committed run of "
            "benchmarks/gpu_check.sh on this architecture has shown them free of hangs"
        )
    return lines


def explain(rnn: Any, x: Tensor | PackedSequence) -> str:
    """Which kernels run ``rnn(x)``, and why.

    Args:
        rnn: a :class:`fastrnn.RNN`, :class:`fastrnn.LSTM` or :class:`fastrnn.GRU`.
        x: an input of it, batched, unbatched or packed; only its shape, dtype and device are read.

    Returns:
        Lines of text: the backend; on a GPU the plan of forward and backward, how it divides the work, and the predicted time
        a step with what bounds it, and whether the layers run at once or one after another (without ``lengths``; of a training
        step, under :class:`torch.no_grad` of a call). Predictions stand on published latencies, not on a run of your GPU.

    Raises:
        TypeError: ``rnn`` is no fastrnn module, or ``x`` no tensor or PackedSequence.
        ValueError: ``x`` is neither 2-D nor 3-D, or FASTRNN_PLANS is no plan or one that cannot run this.
        RuntimeError: the chosen backend does not run on x's device.
    """
    from fastrnn import wavefronts
    from fastrnn.base import RNNBase, autocast_dtype

    if not isinstance(rnn, RNNBase):
        raise TypeError(f"explain: rnn should be a fastrnn.RNN, LSTM or GRU, got {type(rnn).__name__}")
    if isinstance(x, PackedSequence):
        data, steps, batch = x.data, x.batch_sizes.numel(), int(x.batch_sizes[0])
    elif isinstance(x, Tensor):
        if x.dim() not in (2, 3):
            raise ValueError(f"explain: x should be 2-D or 3-D, got {x.dim()}-D")
        data = x
        steps, batch = (x.size(0), 1) if x.dim() == 2 else (x.size(0), x.size(1))
        if x.dim() == 3 and rnn.batch_first:
            steps, batch = batch, steps
    else:
        raise TypeError(f"explain: x should be a tensor or a PackedSequence, got {type(x).__name__}")
    backend = backends.resolve(data.device)
    dtype = autocast_dtype(data)
    lines = [
        f"{type(rnn).__name__}, {rnn.num_layers} layer{'s' if rnn.num_layers > 1 else ''}, hidden_size "
        f"{rnn.hidden_size}, {steps} steps of {batch} sample{'s' if batch != 1 else ''} in {str(dtype).split('.')[1]}"
    ]
    if backend == "reference":
        lines.append("reference: plain torch operations, step by step")
    elif backend == "cpu":
        lines.append(
            f"cpu: one parallel region for the whole sequence, {torch.ops.fastrnn.cpu_isa()} kernels, up to "
            f"{torch.get_num_threads()} threads"
        )
    else:
        limits = device_limits(backend, data.device)
        where = torch.cuda.get_device_name(data.device) if backend == "cuda" else "an emulated device"
        lines.append(f"{backend}: on {where}")
        request = Request.of(rnn, dtype, steps, batch)
        lines.extend(_layer_plans(request, limits))
        if rnn.num_layers > 1:
            is_ragged = isinstance(x, PackedSequence)
            choice = wavefronts.choice_for(rnn, dtype, data.device, steps, batch, backend, is_ragged=is_ragged)
            lines.append(wavefronts.text_of(choice, rnn.num_layers, steps))
    return "\n".join(lines)
