"""How per-step gradient norms leave backward.

Backward may run eagerly, from a compiled graph, twice, or in another thread, so it cannot hand a result to a module by a Python
side effect that torch.compile would lose. Where anything looks, it calls the operator ``fastrnn::record`` instead, which files the
tensors under the module's key; the one-element ``slot`` that the operator declares to modify keeps compilers from dropping the call.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from fastrnn.apply import is_watched


class Recorded(NamedTuple):
    norms: Tensor  # [D, T, B]
    clipped: Tensor  # [D, T, B]


_keys = itertools.count()
_recorded: dict[int, Recorded] = {}

_library = torch.library.Library("fastrnn", "FRAGMENT")
_library.define("record(Tensor(a!) slot, Tensor norms, Tensor clipped, int key) -> ()")


@torch.library.impl(_library, "record", "CompositeExplicitAutograd")
def _record(slot: Tensor, norms: Tensor, clipped: Tensor, key: int) -> None:
    slot.add_(1)
    _recorded[key] = Recorded(norms.clone(), clipped.clone())  # a compiled graph uses their memory again


torch.library.register_fake("fastrnn::record", lambda slot, norms, clipped, key: None, lib=_library)


def record(slot: Tensor, norms: Tensor, clipped: Tensor, key: int) -> None:
    """File what one layer's backward measured under ``key``; the last call wins. Nobody may write to the tensors afterwards."""
    if type(norms) is Tensor and not norms.is_meta and not is_watched():
        _recorded[key] = Recorded(norms, clipped)
        return
    torch.ops.fastrnn.record.default(slot, norms, clipped, key)


def new_keys(count: int) -> range:
    """Keys that nobody else has: one per layer of a module."""
    first = next(_keys)
    for _ in range(count - 1):
        next(_keys)
    return range(first, first + count)


def recorded(key: int) -> Recorded | None:
    return _recorded.get(key)


def forget(keys: range) -> None:
    for key in keys:
        _recorded.pop(key, None)
