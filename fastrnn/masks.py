"""Variational dropout masks: drawn once per forward, constant over time, inputs of the operators.

Gal & Ghahramani 2016 (arXiv:1512.05287): a Bernoulli mask per sample, scaled by 1 / (1 - p), that does not change from step to
step.

On the CPU torch's generator gives a mask its seed, and the numbers are those of Philox4x32-10 (Salmon et al. 2011, "Parallel random
numbers: as easy as 1, 2, 3"): the same on every machine and for any number of threads. On other devices masks are torch's own.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from fastrnn import _library, ops

_COUNTERS = 16  # of a block of numbers (csrc/cpu/philox.h)


def philox(seed: Tensor, count: int) -> Tensor:
    """The first ``count`` numbers of a seed, int64 in [0, 2**32): of every 16 counters the first numbers, the second ones, and so on.

    Args:
        seed: () int64, the key.
    """
    low = 0xFFFFFFFF
    counters = torch.arange(-(-count // (4 * _COUNTERS)) * _COUNTERS, device=seed.device)
    a, b = counters & low, counters >> 32
    c = d = torch.zeros_like(counters)
    key = seed & low, seed >> 32 & low
    for _ in range(10):
        first, second = a * 0xD2511F53, c * 0xCD9E8D57  # of unsigned numbers, what does not fit is the sign
        a, b, c, d = (second >> 32 & low) ^ b ^ key[0], second & low, (first >> 32 & low) ^ d ^ key[1], first & low
        key = key[0] + 0x9E3779B9 & low, key[1] + 0xBB67AE85 & low
    return torch.stack([part.view(-1, _COUNTERS) for part in (a, b, c, d)], 1).flatten()[:count]


def factors(p: float, size: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """What dropout makes of ones: 0 with probability ``p``, else 1 / (1 - p); from the default generator of ``device``."""
    if device.type != "cpu":
        return functional.dropout(torch.ones(size, device=device, dtype=dtype), p, training=True)
    seed = torch.randint(2**63 - 1, (), device=device)
    if _library.is_loaded("cpu") and not torch._C._are_functorch_transforms_active():
        drawn = torch.empty(size, device=device, dtype=dtype)
        ops.run_on_cpu("dropout_factors_", drawn, seed, p)
        return drawn
    kept = torch.tensor(1 / (1 - p) if p < 1 else 0.0, device=device, dtype=dtype)
    numbers = philox(seed, math.prod(size)).view(size)
    return torch.where(numbers < round(p * 2**32), torch.zeros_like(kept), kept)


class Masks:
    """The masks of one module. Drawn anew for each forward, unless they are held."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] | None = None
        self._held_batch: int | None = None

    def are_held(self) -> bool:
        return self._held is not None

    def check_batch(self, size: int) -> None:
        """Called by each forward with its batch size.

        Raises:
            RuntimeError: masks are held for a batch of another size.
        """
        if self._held is None:
            return
        if self._held_batch is None:
            self._held_batch = size
        elif self._held_batch != size:
            raise RuntimeError(
                f"hold_masks() holds masks for a batch of {self._held_batch}, but this input has {size} samples: the batch "
                "must not change while masks are held"
            )

    def draw(self, name: str, p: float, size: tuple[int, ...], like: Tensor, dtype: torch.dtype) -> Tensor:
        """Factors 0 (with probability ``p``) and 1 / (1 - p), from the default generator of ``like``'s device.

        Raises:
            RuntimeError: masks are held and the one of this name has another size.
        """
        held = self._held
        if held is not None and name in held:
            mask = held[name]
            if mask.shape != torch.Size(size):
                raise RuntimeError(
                    f"hold_masks() holds {name} of size {tuple(mask.shape)}, but this input needs {tuple(size)}: "
                    "the batch must not change while masks are held"
                )
            return mask.to(like.device, dtype)
        mask = factors(p, size, like.device, dtype)
        if held is not None:
            held[name] = mask
        return mask

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Within this block each mask is drawn at its first use and kept. Blocks may be nested; the outermost one counts."""
        before = self._held
        if before is None:
            self._held = {}
            self._held_batch = None
        try:
            yield
        finally:
            self._held = before

    def __getstate__(self) -> dict[str, object]:
        return {"_held": None, "_held_batch": None}  # a copy of a module holds nothing
