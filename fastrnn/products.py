"""The large matrix products of a layer: input projection, gradient of the input, gradients of the weights.

Torch's products, for the backends that do not run a whole layer by themselves (``fastrnn.cpu_layers`` does). Each function takes
the backend's name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from fastrnn.ops import sum_of_squares
from fastrnn.reference import compute_dtype


def _plain_matmul(a: Tensor, b: Tensor, biases: Sequence[Tensor]) -> Tensor:
    """``a @ b`` plus biases, in the compute type."""
    acc = compute_dtype(a.dtype)
    out = a.to(acc) @ b.to(acc)
    for bias in biases:
        out = out + bias.to(acc)
    return out.to(a.dtype)


def _into(a: Tensor, b: Tensor, biases: Sequence[Tensor], out: Tensor, accumulate: bool = False) -> None:
    if accumulate:
        out.addmm_(a, b)
    elif biases:
        out.copy_(torch.addmm(sum(biases[1:], biases[0]), a, b))
    else:
        out.copy_(a @ b)


def project(backend: str, x: Tensor, w_ih: list[Tensor], biases: list[list[Tensor]]) -> Tensor:
    """The input projection of every direction: ``x`` [*rows, I] -> [D, *rows, G*H]."""
    flat = x.contiguous().view(-1, x.size(-1)) if x.numel() else x.reshape(x.shape[:-1].numel(), x.size(-1))
    if backend in ("reference", "emulated"):
        out = torch.stack([_plain_matmul(flat, w.t(), bias) for w, bias in zip(w_ih, biases, strict=True)])
    elif backend == "cuda" and len(w_ih) == 1:
        out = torch.addmm(sum(biases[0][1:], biases[0][0]), flat, w_ih[0].t()) if biases[0] else flat @ w_ih[0].t()
    else:
        out = flat.new_empty((len(w_ih), flat.size(0), w_ih[0].size(0)))
        for d, (w, bias) in enumerate(zip(w_ih, biases, strict=True)):
            _into(flat, w.t(), bias, out[d])
    return out.reshape(len(w_ih), *x.shape[:-1], w_ih[0].size(0))


def batched(backend: str, a: Tensor, b: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """``out`` [n, m, k] becomes ``a @ b`` plus ``bias`` [n, 1, k], each a matrix without gaps; for backends with CUDA kernels."""
    if backend == "emulated":
        acc = compute_dtype(a.dtype)
        product = a.to(acc) @ b.to(acc)
        out.copy_(product if bias is None else product + bias.to(acc))
    elif bias is None:
        torch.bmm(a, b, out=out)
    else:
        torch.baddbmm(bias, a, b, out=out)


def input_gradient(backend: str, grad_gates: Tensor, w_ih: list[Tensor]) -> Tensor:
    """The gradient of :func:`project`'s ``x``: the sum over directions of ``grad_gates[d] @ w_ih[d]``, [*rows, I]."""
    flat = grad_gates.flatten(1, -2)
    if backend in ("reference", "emulated"):
        acc = compute_dtype(flat.dtype)
        out = sum(flat[d].to(acc) @ w.to(acc) for d, w in enumerate(w_ih))
        assert isinstance(out, Tensor)
        out = out.to(flat.dtype)
    elif backend == "cuda" and len(w_ih) == 1:
        out = flat[0] @ w_ih[0]
    else:
        out = flat.new_empty((flat.size(1), w_ih[0].size(1)))
        for d, w in enumerate(w_ih):
            _into(flat[d], w, [], out, accumulate=d > 0)
    return out.reshape(*grad_gates.shape[1:-1], w_ih[0].size(1))


def weight_gradient(
    backend: str, groups: Sequence[Sequence[tuple[Tensor, Tensor]]], squares: Tensor | None = None
) -> Tensor:
    """The rows of a weight's gradient, one group of pairs after the other.

    A group of ``grad`` [n, rows] and ``operand`` [n, columns] gives ``sum(grad.T @ operand)``. What comes out is one tensor of its
    own.

    Args:
        squares: (1,) float64, zero: becomes the result's sum of squares, by a kernel right after the products, while a GPU has the
            result in its cache.
    """
    if backend in ("reference", "emulated"):
        acc = compute_dtype(groups[0][0][0].dtype)
        parts = [sum(grad.to(acc).t() @ operand.to(acc) for grad, operand in pairs) for pairs in groups]
        out = torch.cat([cast(Tensor, part).to(groups[0][0][0].dtype) for part in parts])
    elif len(groups) == 1 and len(groups[0]) == 1:
        out = groups[0][0][0].t() @ groups[0][0][1]
    else:
        num_rows = [pairs[0][0].size(1) for pairs in groups]
        grad, operand = groups[0][0]
        out = grad.new_empty((sum(num_rows), operand.size(1)))
        for rows, pairs in zip(out.split(num_rows), groups, strict=True):
            for position, (grad, operand) in enumerate(pairs):
                _into(grad.t(), operand, [], rows, accumulate=position > 0)
    if squares is not None:
        sum_of_squares([out], [], squares)
    return out
