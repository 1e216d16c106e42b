"""Autograd functions at less than torch's overhead, where that changes nothing."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import forward_ad


def is_transformed() -> bool:
    """Whether what is computed now is being compiled, or is part of a transform of torch.func or of forward differentiation."""
    return (
        torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    )


def may_be_differentiated() -> bool:
    """Whether what is computed now may be part of a graph, of a compiled one, or of a transform of torch.func."""
    return torch.is_grad_enabled() or is_transformed()


def run_layer(function: type[torch.autograd.Function], *arguments: Any) -> tuple[Any, ...]:
    """``function.apply(*arguments)``; where no derivative can be asked for, its forward alone, at half the overhead.

    Outside of transforms by the method that torch's ``apply`` ends with: what it does before, but for the unwrapping, is for
    transforms, and for defaults of arguments, which our functions have none of.
    """
    apply: Any = function.apply
    if not is_transformed():
        if torch.is_grad_enabled():
            base: Any = super(torch.autograd.Function, function)
            apply, arguments = base.apply, unwrap_dead_wrappers(arguments)
        else:
            apply = function.forward
    result: tuple[Any, ...] = apply(*arguments)
    return result


def remember_signature(function: type[torch.autograd.Function]) -> None:
    """torch asks for the signature of forward in every call: found here, that takes a tenth of what reading the code does."""
    cast(Any, function.forward).__signature__ = inspect.signature(function.forward)


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
