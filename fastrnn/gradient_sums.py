"""Sums of squares that backward takes of the weight gradients it makes, kept for a clip that trusts them.

An entry lives as long as the gradient's storage and counts only while the tensor asked about is still the one that backward
made: the same storage (held weakly, never by address), version, shape, strides and offset.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef


class _Entry(NamedTuple):
    storage: StorageWeakRef
    version: int
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int | torch.SymInt
    total: Tensor  # (1,) float64


_entries: dict[StorageWeakRef, _Entry] = {}
_wanted = False


def want() -> None:
    """Called by a clip that trusts: from here on backward takes the sums."""
    global _wanted
    _wanted = True


def wanted() -> bool:
    return _wanted


def note(grad: Tensor, total: Tensor) -> None:
    """Remember the sum of squares of a gradient that backward has just made."""
    if len(_entries) > 256:
        for key in [key for key in _entries if key.expired()]:
            del _entries[key]
    storage = StorageWeakRef(grad.untyped_storage())
    _entries[storage] = _Entry(storage, grad._version, grad.shape, grad.stride(), grad.storage_offset(), total)


def split(grads: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """(sums that still hold, gradients without one)."""
    known, unknown = [], []
    for grad in grads:
        entry = _entries.get(StorageWeakRef(grad.untyped_storage()))
        holds = (
            entry is not None
            and not entry.storage.expired()
            and (entry.version, entry.shape, entry.stride, entry.offset)
            == (grad._version, grad.shape, grad.stride(), grad.storage_offset())
        )
        if entry is not None and holds:
            known.append(entry.total)
        else:
            unknown.append(grad)
    return known, unknown
