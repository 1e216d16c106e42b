"""Memory for what nobody keeps beyond a call."""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor

_scratch = threading.local()
_SCRATCH_BYTES = 64 << 20  # the most that a thread keeps


def new_scratch(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """An uninitialised tensor of ``like``'s dtype and device, valid until the thread's next call.

    On the CPU its memory is kept for that: taken fresh from the system each time, it would cost a page fault for every 4 KB, up
    to a tenth of a training step.
    """
    size = math.prod(shape)
    kept = type(like) is Tensor and like.device.type == "cpu" and not torch.compiler.is_compiling()
    if not kept or size * like.element_size() > _SCRATCH_BYTES:
        return like.new_empty(shape)
    memory: Tensor | None = getattr(_scratch, "memory", None)
    if memory is None or memory.numel() < size * like.element_size():
        with torch.inference_mode(False):
            memory = _scratch.memory = torch.empty(size * like.element_size(), dtype=torch.uint8)
    return memory[: size * like.element_size()].view(like.dtype).view(shape)
