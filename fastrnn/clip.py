"""Clipping the norm of all gradients together: ``clip_grad_norm_``, and ``clip_on_step`` inside a fused optimizer's step."""

from __future__ import annotations

import functools
import itertools
import math
import numbers
import types
import warnings
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import utils as nn_utils

from fastrnn import _library, gradient_sums, ops

_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def _is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one stretch of memory, in whatever order of dimensions."""
    if tensor.is_contiguous():
        return True
    strides = tensor.stride()
    return tensor.permute(sorted(range(tensor.dim()), key=strides.__getitem__, reverse=True)).is_contiguous()


def _can_fuse(grads: Sequence[Tensor]) -> bool:
    """Whether fused kernels take all of these gradients: plain dense tensors, each once, on one device that has kernels."""
    device = grads[0].device
    if torch.compiler.is_compiling() or device.type not in ("cpu", "cuda") or not _library.is_loaded(device.type):
        return False
    are_plain = all(
        type(g) is Tensor and g.layout is torch.strided and g.device == device and g.dtype in _FLOATS and _is_dense(g)
        for g in grads
    )
    return are_plain and not _overlap(grads)


def _overlap(grads: Sequence[Tensor]) -> bool:
    """Whether dense gradients share memory: torch scales it once for each of them."""
    spans = sorted((grad.data_ptr(), grad.nbytes) for grad in grads)
    return any(start + size > following for (start, size), (following, _) in itertools.pairwise(spans))


def _grads(parameters: Iterable[Tensor]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


def _common_dtype(grads: Iterable[Tensor]) -> torch.dtype:
    """That of torch's ``get_total_norm``."""
    return functools.reduce(torch.promote_types, (grad.dtype for grad in grads))


def _fused_norm(grads: list[Tensor], trust_backward: bool, dtype: torch.dtype) -> Tensor:
    """The L2 norm of all gradients together, ()."""
    known, unknown = gradient_sums.split(grads) if trust_backward else ([], grads)
    norm = torch.empty((), dtype=dtype, device=grads[0].device)
    ops.sum_of_squares(unknown, known, norm, root=True)
    return norm


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
    *,
    trust_backward: bool = False,
) -> Tensor:
    """Clip the norm of all gradients together, as :func:`torch.nn.utils.clip_grad_norm_` does, in two fused passes.

    The first takes the norm, with squares summed in float64: it is right where squares of float32 would be 0 or infinite. The
    second scales; the device leaves it out where the norm is below ``max_norm``. The host never waits for the device unless
    ``error_if_nonfinite``. What the fused kernels do not take (other norms, DTensor, sparse gradients, several devices,
    torch.compile) goes to torch's function.

    With a ``GradScaler``, call ``scaler.unscale_(optimizer)`` before, as for torch's function.

    Args:
        parameters: one or more parameters; those without a gradient are passed over.
        max_norm: the largest norm allowed.
        norm_type: the p of the norm; may be ``inf``.
        error_if_nonfinite: raise if the norm is NaN or infinite.
        foreach: given on to torch's function where that is used.
        trust_backward: save the first pass: use the sums of squares that fastrnn's backward takes of the gradients it writes, for
            each gradient whose tensor (storage, version, shape, strides) is still the one that backward made. Backward takes
            them once a clip has asked for them; on the CPU they cost it nothing that can be measured, on a GPU
            a small kernel a gradient. Only for who does not change
            gradients behind autograd's back: ``GradScaler.unscale_``, ``dist.all_reduce``, ``.data``, ``.numpy()`` and a fused
            optimizer's step with a ``grad_scale`` leave no trace.

    Returns:
        Tensor of shape (): the norm before clipping.

    Raises:
        RuntimeError: the norm is NaN or infinite and ``error_if_nonfinite`` is set.
    """
    if trust_backward:
        gradient_sums.want()
    if isinstance(parameters, Tensor):
        parameters = [parameters]
    is_generator = isinstance(parameters, types.GeneratorType)
    parameters = list(parameters)
    if is_generator and not parameters:
        warnings.warn("`parameters` is an empty generator, no gradient clipping will occur.", stacklevel=2)
    grads = _grads(parameters)
    if not grads or float(norm_type) != 2.0 or not _can_fuse(grads):
        return nn_utils.clip_grad_norm_(parameters, max_norm, norm_type, error_if_nonfinite, foreach)
    with torch.no_grad():
        norm = _fused_norm(grads, trust_backward, _common_dtype(grads))
        if error_if_nonfinite and not math.isfinite(float(norm)):
            raise RuntimeError(
                f"The total norm of order {float(norm_type)} for gradients from `parameters` is non-finite, so it cannot be "
                "clipped. To disable this error and scale the gradients by the non-finite norm anyway, set "
                "`error_if_nonfinite=False`"
            )
        torch.ops.fastrnn.clip_.default(grads, norm, float(max_norm))
        torch.autograd.graph.increment_version(grads)
    return norm


# ------------------------------------------------------------------------------------------- inside the optimizer's step


class ClipHandle:
    """What :func:`clip_on_step` returns."""

    def __init__(self) -> None:
        self.norm: Tensor | None = None  #: (), float32: the norm before clipping at the last step
        self._removers: list[Callable[[], None]] = []

    def remove(self) -> None:
        """Take the clipping off the optimizer, without a trace."""
        for remove in self._removers:
            remove()
        self._removers.clear()


_NOTHING = object()
_clipped: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()


def _check_max_norm(max_norm: Any) -> None:
    if isinstance(max_norm, bool) or not isinstance(max_norm, numbers.Real):
        raise TypeError(f"max_norm should be a number > 0, got {max_norm!r}")
    if not 0 < float(max_norm) < math.inf:
        raise ValueError(f"max_norm should be a finite number > 0, got {max_norm!r}")


def _check_optimizer(optimizer: Any) -> None:
    supported = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad)
    if not isinstance(optimizer, supported):
        raise TypeError(
            f"clip_on_step expects a fused Adam, AdamW, SGD or Adagrad, got {type(optimizer).__name__}; "
            "use fastrnn.clip_grad_norm_ before its step"
        )
    if isinstance(optimizer, torch.optim.Adagrad) and tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13):
        raise TypeError(f"clip_on_step needs torch >= 2.13 for Adagrad, this is {torch.__version__}")
    if optimizer in _clipped:
        raise RuntimeError("clip_on_step already clips this optimizer's step; remove() the handle of that first")


def _check_step(optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if any(a is not None and a is not optimizer for a in args) or kwargs.get("closure") is not None:
        raise RuntimeError(
            "clip_on_step cannot clip a step with a closure: its gradients do not exist before the step. Call the "
            "closure, then step() without it"
        )
    for index, group in enumerate(optimizer.param_groups):
        if not group.get("fused"):
            raise RuntimeError(
                f"clip_on_step needs fused=True in every group, but group {index} of {type(optimizer).__name__} has "
                f"fused={group.get('fused')} (load_state_dict restores the saved value). Set "
                f"optimizer.param_groups[{index}]['fused'] = True, or remove() the clipping"
            )


def clip_on_step(optimizer: torch.optim.Optimizer, max_norm: float, *, trust_backward: bool = False) -> ClipHandle:
    """Clip the norm of all gradients of a fused optimizer inside its step, without a scaling pass over them.

    Fused optimizers divide gradients by their ``grad_scale`` as they read them. Before each step this multiplies that scale by
    ``max(1, (norm + 1e-6) / max_norm)``, which is :func:`torch.nn.utils.clip_grad_norm_`; afterwards it restores what was
    there. After the step ``p.grad`` holds the clipped gradient. A copy of the optimizer (``deepcopy``, ``pickle``) does not clip:
    torch leaves hooks behind.

    Mixed precision. With a ``GradScaler`` the norm is that of the unscaled gradients, so ``scaler.unscale_`` is not needed and
    its pass is saved, too; ``rnn.grad_scale`` takes the scale out of ``state_grad_clip`` and the recorded norms::

        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        fastrnn.clip_on_step(optimizer, max_norm=1.0)
        scaler = torch.amp.GradScaler()
        for x, target in batches:
            optimizer.zero_grad()
            rnn.grad_scale = scaler.scale(torch.ones((), device=x.device))  # no wait for the device, as get_scale() is
            with torch.autocast("cuda", torch.float16):
                loss = loss_function(model(x), target)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()

    Args:
        optimizer: Adam, AdamW, SGD or Adagrad (torch >= 2.13) with ``fused=True`` in every group.
        max_norm: the largest norm allowed, > 0.
        trust_backward: as in :func:`clip_grad_norm_`.

    Returns:
        A handle: ``norm`` is the norm before clipping at the last step, (), float32; ``remove()`` ends the clipping and leaves no
        trace.

    Raises:
        TypeError: an optimizer without such a step; ``max_norm`` is no number.
        ValueError: ``max_norm`` is not finite or not > 0.
        RuntimeError: the optimizer is clipped already. At a step: a group is not fused (``load_state_dict`` can change that),
            or a closure is given.
    """
    _check_max_norm(max_norm)
    _check_optimizer(optimizer)
    if trust_backward:
        gradient_sums.want()
    handle = ClipHandle()
    scaled: Any = optimizer  # torch's types do not know grad_scale
    undo: list[tuple[Tensor, Any]] = []  # the scale of the step under way, and what was in its place
    clipped: list[Tensor] = []

    def restore() -> None:
        for ours, before in undo:
            if getattr(scaled, "grad_scale", None) is not ours:
                continue  # a step failed and left it there; somebody has set another since
            if before is _NOTHING:
                del scaled.grad_scale
            else:
                scaled.grad_scale = before
        undo.clear()

    def before_step(_: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        restore()  # a step that raised had no after
        _check_step(optimizer, args, kwargs)
        grads = _grads(p for group in optimizer.param_groups for p in group["params"])
        if not grads:
            return
        before = getattr(scaled, "grad_scale", _NOTHING)
        with torch.no_grad():
            # not in 16 bits: the norm of scaled gradients may be infinite there although all of them are finite
            dtype = torch.promote_types(_common_dtype(grads), torch.float32)
            if _can_fuse(grads):
                norm = _fused_norm(grads, trust_backward, dtype)
            else:
                norm = nn_utils.get_total_norm([grad.to(dtype) for grad in grads])
            scale = before.to(norm.device) if isinstance(before, Tensor) else None
            handle.norm = norm.to(torch.float32) if scale is None else norm.to(torch.float32) / scale
            divisor = torch.clamp((handle.norm + 1e-6) / float(max_norm), min=1.0)
            ours = divisor if scale is None else divisor * scale
        clipped[:] = grads
        if norm.device.type == "cpu" and divisor == 1:
            return  # a scale of 1 would make the step write every gradient again; on a GPU the host does not look
        undo.append((ours, before))
        scaled.grad_scale = ours

    def after_step(_: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        restore()
        torch.autograd.graph.increment_version(clipped)  # the fused step wrote the clipped gradients without a trace
        clipped.clear()

    _clipped.add(optimizer)
    handle._removers = [
        optimizer.register_step_pre_hook(before_step).remove,
        optimizer.register_step_post_hook(after_step).remove,
        restore,
        functools.partial(_clipped.discard, optimizer),
    ]
    return handle
