"""Sums of squares that backward takes of the weight gradients it makes, kept for a clip that trusts them.

Backward takes them as it makes a gradient (products.weight_gradient, csrc/cpu/layer.cpp), once a clip has said that it wants them. An entry counts only while
the tensor asked about is still the one that backward made: the same storage (held weakly, never by address), offset, version,
shape and strides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef


class _Key(NamedTuple):
    """A storage is not reused while a weak reference to it exists. Both biases of a layer may lie in one."""

    storage: StorageWeakRef
    offset: int


class _Entry(NamedTuple):
    version: int
    shape: torch.Size
    stride: tuple[int, ...]
    total: Tensor  # (1,) float64


_entries: dict[_Key, _Entry] = {}
_wanted = False


def want() -> None:
    """Called by a clip that trusts: from here on backward takes the sums."""
    global _wanted
    _wanted = True


def new(count: int, device: torch.device) -> Tensor | None:
    """Where a backward shall add up the sums of squares of its ``count`` gradients, (count,) float64; None: nobody wants them."""
    if not _wanted or torch.compiler.is_compiling():
        return None
    return torch.zeros(count, dtype=torch.float64, device=device)


def _find(grad: Tensor) -> tuple[_Key, _Entry]:
    """The key of a gradient, and its entry without a sum."""
    key = _Key(StorageWeakRef(grad.untyped_storage()), int(grad.storage_offset()))
    return key, _Entry(grad._version, grad.shape, grad.stride(), grad)


def note(grad: Tensor, total: Tensor) -> None:
    """Remember the sum of squares of a gradient that backward has just made."""
    if torch._C._functorch.is_functorch_wrapped_tensor(grad):
        return  # inside torch.func transforms: it has no storage, and is no parameter's .grad
    if len(_entries) > 256:
        for key in [key for key in _entries if key.storage.expired()]:
            del _entries[key]
    key, entry = _find(grad)
    _entries[key] = entry._replace(total=total)


def split(grads: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """(sums that still hold, gradients without one)."""
    known, unknown = [], []
    for grad in grads:
        key, now = _find(grad)
        entry = _entries.get(key)
        if entry is not None and not key.storage.expired() and entry[:3] == now[:3]:
            known.append(entry.total)
        else:
            unknown.append(grad)
    return known, unknown
