"""Comparisons: to rounding, to the bit, and by the error against a higher precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.testing import assert_close


def tensors(value: Any) -> list[Tensor]:
    """All tensors of nested tuples, lists and PackedSequences."""
    if isinstance(value, Tensor):
        return [value]
    if value is None:
        return []
    return [tensor for part in value for tensor in tensors(part)]


def assert_bit_equal(ours: Any, theirs: Any, what: str = "") -> None:
    """Every tensor the very same; NaN equals NaN."""
    for index, (a, b) in enumerate(zip(tensors(ours), tensors(theirs), strict=True)):
        assert_close(a, b, rtol=0, atol=0, equal_nan=True, msg=lambda text, i=index: f"{what} tensor {i}: {text}")


def assert_equal_to_rounding(ours: Any, theirs: Any, what: str = "", factor: float = 1.0) -> None:
    """Equal up to what another order of the sums makes: a few units in the last place of the largest number."""
    for index, (a, b) in enumerate(zip(tensors(ours), tensors(theirs), strict=True)):
        scale = max(b.abs().max().item(), 1.0) if b.numel() and b.dtype.is_floating_point else 1.0
        eps = torch.finfo(b.dtype).eps if b.dtype.is_floating_point else 0.0
        assert_close(
            a, b, rtol=0, atol=factor * 50 * eps * scale, msg=lambda text, i=index: f"{what} tensor {i}: {text}"
        )


def assert_error_ratio(ours: Tensor, plain: Tensor, exact: Tensor, factor: float, what: str = "") -> None:
    """Our error against the exact result is at most ``factor`` times that of the plain computation in our precision.

    Errors are root mean squares: which of the two has the largest single error is luck on a small tensor. Half a unit in the
    last place of the largest result is allowed in any case, since the plain error may be 0.
    """
    error, plain_error = ((result.double() - exact).square().mean().sqrt().item() for result in (ours, plain))
    allowed = max(factor * plain_error, 0.5 * torch.finfo(ours.dtype).eps * exact.abs().max().item())
    assert error <= allowed, f"{what}: error {error:.3g}, of the plain computation {plain_error:.3g}"


def gradients(outputs: Any, inputs: Sequence[Tensor], seed: int = 1, **kwargs: Any) -> list[Tensor]:
    """Gradients of a fixed random combination of all outputs; zeros for inputs that none depends on."""
    incoming = [(out, weights_like(out, seed + i)) for i, out in enumerate(tensors(outputs)) if out.requires_grad]
    outputs, grad_outputs = zip(*incoming, strict=True)
    return list(torch.autograd.grad(outputs, inputs, grad_outputs, allow_unused=True, materialize_grads=True, **kwargs))


def weights_like(tensor: Tensor, seed: int) -> Tensor:
    """Numbers in [-1, 1) that depend on shape and seed alone."""
    drawn = torch.rand(tensor.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (drawn * 2 - 1).to(tensor)


def noncontiguous(tensor: Tensor) -> Tensor:
    """The same numbers with NaN between them, so that a wrong stride reads NaN; at an odd offset; dimensions reversed."""
    order = list(reversed(range(tensor.dim())))
    spread = tensor.new_full((*(tensor.size(d) for d in order), 2), float("nan"))
    spread[..., 1] = tensor.permute(order)
    return spread[..., 1].permute(order).detach().requires_grad_(tensor.requires_grad)
