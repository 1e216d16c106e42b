"""Autograd functions at less than torch's overhead, where that changes nothing."""

from __future__ import annotations

import inspect
from typing import Any, cast

import torch
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
    """``function.apply(*arguments)``; where no derivative can be asked for, its forward alone, at half the overhead."""
    apply: Any = function.apply if may_be_differentiated() else function.forward
    result: tuple[Any, ...] = apply(*arguments)
    return result


def remember_signature(function: type[torch.autograd.Function]) -> None:
    """torch asks for the signature of forward in every call: found here, that takes a tenth of what reading the code does."""
    cast(Any, function.forward).__signature__ = inspect.signature(function.forward)
