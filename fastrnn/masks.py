"""Variational dropout masks: drawn once per forward, constant over time, inputs of the operators.

Gal & Ghahramani 2016 (arXiv:1512.05287): a Bernoulli mask per sample, scaled by 1 / (1 - p), that does not change from step to
step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from fastrnn.apply import is_transformed


def _factors(p: float, size: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """What torch's dropout makes of ones."""
    if device.type != "cpu" or p >= 1 or is_transformed():
        return functional.dropout(torch.ones(size, device=device, dtype=dtype), p, training=True)
    # The same numbers by two operations less, which counts where a layer is small.
    return torch.empty(size, device=device, dtype=dtype).bernoulli_(1 - p).div_(1 - p)


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
        mask = _factors(p, size, like.device, dtype)
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
