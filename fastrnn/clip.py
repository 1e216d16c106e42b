"""Clipping the norm of all gradients together: ``clip_grad_norm_``, and ``clip_on_step`` inside a fused optimizer's step."""

from __future__ import annotations

import math
import numbers
import types
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import utils as nn_utils

from fastrnn import _library, gradient_sums

_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def _is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one stretch of memory, in whatever order of dimensions."""
    if tensor.is_contiguous():
        return True
    strides = tensor.stride()
    return tensor.permute(sorted(range(tensor.dim()), key=strides.__getitem__, reverse=True)).is_contiguous()


def _fused_device(grads: Sequence[Tensor]) -> torch.device | None:
    """The device whose fused kernels can take all of these gradients, or None."""
    device = grads[0].device
    if torch.compiler.is_compiling() or not _library.is_loaded(device.type) or device.type != "cpu":
        return None
    plain = all(
        type(g) is Tensor and g.layout is torch.strided and g.device == device and g.dtype in _FLOATS and _is_dense(g)
        for g in grads
    )
    return device if plain else None


def _grads(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    if isinstance(parameters, Tensor):
        parameters = [parameters]
    return [p.grad for p in parameters if p.grad is not None]


def _sum_of_squares(grads: Sequence[Tensor], trust_backward: bool) -> Tensor:
    """(1,) float64: what backward has summed where it is trusted and still describes the gradient, the rest computed."""
    if trust_backward:
        gradient_sums.want()
    known, unknown = gradient_sums.split(grads) if trust_backward else ([], list(grads))
    total = torch.zeros(1, dtype=torch.float64, device=grads[0].device)
    if unknown:
        torch.ops.fastrnn.sum_of_squares.default(unknown, total)
    for value in known:
        total += value
    return total


def total_norm(grads: Sequence[Tensor], trust_backward: bool) -> Tensor:
    """The L2 norm of all gradients together, (), in the dtype that torch's ``get_total_norm`` gives."""
    if not grads:
        return torch.tensor(0.0)
    if _fused_device(grads) is None:
        return nn_utils.get_total_norm(grads)
    dtype = grads[0].dtype
    for grad in grads[1:]:
        dtype = torch.promote_types(dtype, grad.dtype)
    return _sum_of_squares(grads, trust_backward).sqrt_().to(dtype).squeeze(0)


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

    The second pass, which scales, is skipped on the device where the norm is below ``max_norm``. The host never waits for the
    device unless ``error_if_nonfinite``. Gradients that the fused kernels do not take (other norms, DTensor, sparse, several
    devices) go to torch's function.

    Args:
        parameters: one or more parameters; those without a gradient are passed over.
        max_norm: the largest norm allowed.
        norm_type: the p of the norm; may be ``inf``.
        error_if_nonfinite: raise if the norm is NaN or infinite.
        foreach: given on to torch's function where that is used.
        trust_backward: use the sums of squares that fastrnn's backward has taken, for gradients whose tensor (storage, version,
            shape, strides) is still the one that backward made. Only for who does not change gradients behind autograd's
            back: ``GradScaler.unscale_``, ``dist.all_reduce`` and ``.data`` leave no trace.

    Returns:
        Tensor of shape (): the norm before clipping.

    Raises:
        RuntimeError: the norm is NaN or infinite and ``error_if_nonfinite`` is set.
    """
    if isinstance(parameters, types.GeneratorType):
        parameters = list(parameters)
        if not parameters:
            warnings.warn("`parameters` is an empty generator, no gradient clipping will occur.", stacklevel=2)
    if not isinstance(parameters, Tensor):
        parameters = list(parameters)
    grads = _grads(parameters)
    if not grads or float(norm_type) != 2.0 or _fused_device(grads) is None:
        return nn_utils.clip_grad_norm_(parameters, max_norm, norm_type, error_if_nonfinite, foreach)
    with torch.no_grad():
        norm = total_norm(grads, trust_backward)
        if error_if_nonfinite and not math.isfinite(float(norm)):
            raise RuntimeError(
                f"The total norm of order {float(norm_type)} for gradients from `parameters` is non-finite, so it cannot be "
                "clipped. To disable this error and scale the gradients by the non-finite norm anyway, set "
                "`error_if_nonfinite=False`"
            )
        factor = torch.clamp(float(max_norm) / (norm + 1e-6), max=1.0)
        torch.ops.fastrnn.scale_.default(grads, factor.to(torch.float64).reshape(1))
        torch.autograd.graph.increment_version(grads)
    return norm


# ------------------------------------------------------------------------------------------- inside the optimizer's step


class ClipHandle:
    """What :func:`clip_on_step` returns; also the home of the last norm."""

    def __init__(self) -> None:
        self.norm: Tensor | None = None  #: (), the norm before clipping at the last step
        self._removers: list[Callable[[], None]] = []

    def remove(self) -> None:
        """Take the clipping off the optimizer, without a trace."""
        for remove in self._removers:
            remove()
        self._removers.clear()


_NO_SCALE = object()


def clip_on_step(optimizer: torch.optim.Optimizer, max_norm: float, *, trust_backward: bool = False) -> ClipHandle:
    """Clip the norm of all gradients of a fused optimizer inside its step, without a pass over them.

    Fused optimizers divide gradients by ``grad_scale`` as they read them. Before each step this multiplies that scale by
    ``max(1, (norm + 1e-6) / max_norm)``, which is :func:`torch.nn.utils.clip_grad_norm_`; afterwards it restores what was
    there. With a ``GradScaler`` the norm is that of the unscaled gradients. After the step ``p.grad`` holds the clipped
    (unscaled) gradient.

    Args:
        optimizer: Adam, AdamW, SGD or Adagrad with ``fused=True`` in every group.
        max_norm: the largest norm allowed, > 0.
        trust_backward: as in :func:`clip_grad_norm_`.

    Returns:
        A handle with ``remove()`` and ``norm``.

    Raises:
        TypeError, ValueError: an optimizer without fused step, or a bad ``max_norm``.
        RuntimeError (at a step): a group is not fused (``load_state_dict`` can change that), or a closure is given.
    """
    if isinstance(max_norm, bool) or not isinstance(max_norm, numbers.Real):
        raise TypeError(f"max_norm should be a number > 0, got {max_norm!r}")
    if not (max_norm > 0 and math.isfinite(max_norm)):
        raise ValueError(f"max_norm should be a finite number > 0, got {max_norm!r}")
    supported = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad)
    if not isinstance(optimizer, supported):
        raise TypeError(
            f"clip_on_step expects a fused Adam, AdamW, SGD or Adagrad, got {type(optimizer).__name__}; "
            "use fastrnn.clip_grad_norm_ before its step"
        )
    name = type(optimizer).__name__
    if isinstance(optimizer, torch.optim.Adagrad) and tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13):
        raise TypeError(f"clip_on_step needs torch >= 2.13 for Adagrad, this is {torch.__version__}")

    handle = ClipHandle()
    before: list[Any] = []
    clipped: list[Tensor] = []

    def restore() -> None:
        while before:
            scale = before.pop()
            if scale is not _NO_SCALE:
                optimizer.grad_scale = scale
            elif hasattr(optimizer, "grad_scale"):
                del optimizer.grad_scale

    def before_step(_: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        restore()  # a step that raised had no after
        if any(a is not None and a is not optimizer for a in args) or kwargs.get("closure") is not None:
            raise RuntimeError(
                "clip_on_step cannot clip a step with a closure: its gradients do not exist before the step. Call the "
                "closure, then step() without it"
            )
        for index, group in enumerate(optimizer.param_groups):
            if not group.get("fused"):
                raise RuntimeError(
                    f"clip_on_step needs fused=True in every group, but group {index} of {name} has "
                    f"fused={group.get('fused')} (load_state_dict restores the saved value). Set "
                    f"optimizer.param_groups[{index}]['fused'] = True, or remove() the clipping"
                )
        grads = _grads([p for group in optimizer.param_groups for p in group["params"]])
        if not grads:
            return
        present = getattr(optimizer, "grad_scale", _NO_SCALE)
        with torch.no_grad():
            norm = total_norm(grads, trust_backward).to(torch.float32)
            scale = present if isinstance(present, Tensor) else None
            handle.norm = norm if scale is None else norm / scale.to(norm.device)
            divisor = torch.clamp((handle.norm + 1e-6) / float(max_norm), min=1.0)
            divisor = divisor if scale is None else divisor * scale.to(norm.device)
        before.append(present)
        clipped[:] = grads
        optimizer.grad_scale = divisor

    def after_step(_: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        restore()
        torch.autograd.graph.increment_version(clipped)  # the fused step wrote the clipped gradients without a trace
        clipped.clear()

    handle._removers = [
        optimizer.register_step_pre_hook(before_step).remove,
        optimizer.register_step_post_hook(after_step).remove,
        restore,
    ]
    return handle
