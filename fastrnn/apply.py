"""Autograd functions at less than torch's overhead, where that changes nothing."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch._C import _get_tracing_state, _len_torch_dispatch_stack, _len_torch_function_stack
from torch._C._autograd import _profiler_enabled
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import forward_ad


def is_transformed() -> bool:
    """Whether what is computed now is being compiled, or is part of a transform of torch.func or of forward differentiation."""
    return (
        torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    )


def is_watched() -> bool:
    """Whether anything but autograd sees, or changes, the operators that run now: a transform, a mode, tracing, the profiler.

    ``torch.set_default_device`` is a mode, too. Not asked, since torch does not say: an ``ExecutionTraceObserver``, and kernels that
    somebody has registered in place of ours.
    """
    return (
        is_transformed()
        or _len_torch_dispatch_stack() > 0
        or _len_torch_function_stack() > 0
        or _profiler_enabled()
        or _get_tracing_state() is not None
    )


def may_be_differentiated() -> bool:
    """Whether what is computed now may be part of a graph, of a compiled one, or of a transform of torch.func."""
    return torch.is_grad_enabled() or is_transformed()


def run_layer(function: type[torch.autograd.Function], *arguments: Any) -> tuple[Any, ...]:
    """``function.apply(*arguments)``; where no derivative can be asked for, its forward alone, at half the overhead.

    Outside of transforms by the function's variant below, and by the method that torch's ``apply`` ends with: what it does before, but
    for the unwrapping, is for transforms.
    """
    apply: Any = function.apply
    if not is_transformed():
        if torch.is_grad_enabled():
            base: Any = super(torch.autograd.Function, _variants[function])
            apply, arguments = base.apply, unwrap_dead_wrappers(arguments)
        else:
            apply = function.forward
    result: tuple[Any, ...] = apply(*arguments)
    return result


_F = TypeVar("_F", bound=type[torch.autograd.Function])

_variants: dict[type[torch.autograd.Function], type[torch.autograd.Function]] = {}


def runs_as_layer(function: _F) -> _F:
    """A decorator of the functions that ``run_layer`` applies.

    Each gets a variant whose forward takes a ctx. torch binds the arguments of a function with ``setup_context``, which transforms
    need, to forward's signature in every call; that takes as long as a small layer.
    """

    def forward(ctx: Any, *inputs: Any) -> Any:
        outputs = function.forward(*inputs)
        function.setup_context(ctx, inputs, outputs)
        return outputs

    members = {"forward": staticmethod(forward), "backward": staticmethod(function.backward)}
    _variants[function] = type(function.__name__, (torch.autograd.Function,), members)
    return remember_signature(function)


def remember_signature(function: _F) -> _F:
    """Where torch asks for the signature of forward: found once, that takes a tenth of what reading the code does."""
    cast(Any, function.forward).__signature__ = inspect.signature(function.forward)
    return function


def differentiate(
    function: Callable[..., tuple[Tensor | None, ...]],
    inputs: Sequence[Tensor | None],
    needed: Sequence[bool],
    grad_outputs: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """The gradients of ``function(*inputs)`` with respect to the inputs that need one, where an output has a gradient."""
    wanted = [n and t is not None for n, t in zip(needed, inputs, strict=True)]
    is_given = [g is not None for g in grad_outputs]
    given = tuple(g for g in grad_outputs if g is not None)
    if not given or not any(wanted):
        return [None] * len(inputs)

    def of_wanted(*variables: Tensor) -> tuple[Tensor, ...]:
        replacements = iter(variables)
        outputs = function(*(next(replacements) if w else t for w, t in zip(wanted, inputs, strict=True)))
        return tuple(cast(Tensor, out) for out, want in zip(outputs, is_given, strict=True) if want)

    vjp: Any = torch.func.vjp(of_wanted, *(t for t, w in zip(inputs, wanted, strict=True) if w))[1]
    gradients = iter(vjp(given))
    return [next(gradients) if w else None for w in wanted]
