"""Ragged batches: from lengths or a PackedSequence to the rows that the operators walk, and back."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence


class Batch(NamedTuple):
    """A batch as the operators take it.

    Attributes:
        data: (T, B, I) padded, or (rows, I) packed: step t of sample b is row ``offsets[t] + b``.
        size: B.
        lengths: (B,) int64 on data's device, falling if packed; None: every sample has T steps.
        offsets: (T,) int64 on data's device if packed.
        sample_of_row: (rows,) int64 if packed.
        sorted_indices, unsorted_indices: (B,) if packed and reordered: which of the user's samples stands where, and back.
    """

    data: Tensor
    size: int
    lengths: Tensor | None = None
    offsets: Tensor | None = None
    sample_of_row: Tensor | None = None
    sorted_indices: Tensor | None = None
    unsorted_indices: Tensor | None = None

    def per_sample(self, factors: Tensor) -> Tensor:
        """Factors (B, I), in the user's order, broadcast over data."""
        if self.sorted_indices is not None:
            factors = factors.index_select(0, self.sorted_indices)
        return factors if self.sample_of_row is None else factors.index_select(0, self.sample_of_row)

    def sort(self, states: Tensor) -> Tensor:
        """(·, B, ·) from the user's order."""
        return states if self.sorted_indices is None else states.index_select(1, self.sorted_indices)

    def unsort(self, states: Tensor) -> Tensor:
        """(·, B, ·) to the user's order."""
        return states if self.unsorted_indices is None else states.index_select(1, self.unsorted_indices)


def _rows_of_steps(batch_sizes: Tensor, num_rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(offsets, sample_of_row) from the number of samples at each step."""
    batch_sizes = batch_sizes.to(device)
    offsets = batch_sizes.cumsum(0) - batch_sizes
    steps = torch.arange(batch_sizes.size(0), device=device)
    step_of_row = torch.repeat_interleave(steps, batch_sizes, output_size=num_rows)
    return offsets, torch.arange(num_rows, device=device) - offsets.index_select(0, step_of_row)


def _first(batch_sizes: Tensor) -> int:
    """The number of samples of a packed batch, which a compiled graph must read from the tensor at run time."""
    with torch._dynamo.patch_dynamo_config(capture_scalar_outputs=True):
        size = batch_sizes[0].item()
        torch._check(size >= 0)
    return size  # type: ignore[return-value]


def from_packed(packed: PackedSequence, known_size: int | None) -> Batch:
    """The batch of a PackedSequence. ``known_size`` is B by the given state, where there is one."""
    data, batch_sizes, sorted_indices, unsorted_indices = packed
    if not torch.compiler.is_compiling():
        size = int(batch_sizes[0])
    elif known_size is not None:
        size = known_size
    elif sorted_indices is not None:
        size = sorted_indices.size(0)
    else:
        size = _first(batch_sizes)
    offsets, sample_of_row = _rows_of_steps(batch_sizes, data.size(0), data.device)
    lengths = (batch_sizes.to(data.device)[:, None] > torch.arange(size, device=data.device)).sum(0)
    return Batch(data, size, lengths, offsets, sample_of_row, sorted_indices, unsorted_indices)


def check_lengths(lengths: Any, batch: int, steps: int) -> Tensor:
    """``lengths`` as an int64 tensor (B,), checked by value where that needs no waiting for a device.

    Raises:
        TypeError: not integers.
        ValueError: not one per sample, or outside [0, T].
    """
    if not isinstance(lengths, Tensor):
        try:
            values = [
                int(n) if isinstance(n, Tensor) and n.dim() == 0 and not n.is_floating_point() else n for n in lengths
            ]
        except TypeError:
            values = None
        if values is None or isinstance(lengths, (dict, set, frozenset)):
            raise TypeError(f"lengths should be a 1-D integer tensor or a list of ints, got {type(lengths).__name__}")
        for index, value in enumerate(values):
            is_int = isinstance(value, (int, torch.SymInt)) or (
                not torch.compiler.is_compiling() and hasattr(value, "__index__")
            )
            if isinstance(value, bool) or not is_int:
                raise TypeError(f"lengths[{index}] should be an int, got {value!r} ({type(value).__name__})")
        try:
            lengths = torch.tensor(values, dtype=torch.int64)
        except (OverflowError, RuntimeError, ValueError):
            index = next(i for i, value in enumerate(values) if not -(2**63) <= value < 2**63)
            raise ValueError(f"lengths[{index}] is {values[index]} but the sequence has {steps} steps") from None
    if lengths.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise TypeError(f"lengths should hold integers, got {lengths.dtype}")
    if lengths.dim() != 1:
        raise ValueError(f"lengths should have one dimension (batch), got shape {tuple(lengths.shape)}")
    if lengths.size(0) != batch:
        raise ValueError(f"lengths should have one entry per sample: expected {batch}, got {lengths.size(0)}")
    checked: Tensor = lengths.to(torch.int64)
    readable = checked.device.type == "cpu" or os.environ.get("FASTRNN_CHECK") == "1"
    if readable and not torch.compiler.is_compiling():
        for index, value in enumerate(checked.tolist()):
            if value < 0:
                raise ValueError(f"lengths[{index}] is {value}, but a length cannot be negative")
            if value > steps:
                raise ValueError(f"lengths[{index}] is {value} but the sequence has {steps} steps")
    return checked


class Padded(NamedTuple):
    """How to lay the rows of a packed batch back into the padded shape they came from."""

    rows: Tensor  # (rows,) int64: where each packed row stands among the padded ones
    shape: tuple[int, int]  # (T, B), or (B, T) for batch_first

    def lay_out(self, packed: Tensor) -> Tensor:
        """(rows, F) -> (*shape, F), zero in the padding."""
        padded = packed.new_zeros((self.shape[0] * self.shape[1], packed.size(-1)))
        return padded.index_copy(0, self.rows, packed).view(*self.shape, -1)


def from_host_lengths(x: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Batch, Padded]:
    """Pack a padded batch whose lengths are known on the host: then all work follows the lengths, and padding is never read."""
    steps, size = (x.size(1), x.size(0)) if batch_first else (x.size(0), x.size(1))
    ordered, order = torch.sort(lengths, descending=True, stable=True)
    step = torch.arange(steps)[:, None]
    live = step < ordered  # [T, B]
    rows = order * steps + step if batch_first else step * size + order
    rows = rows[live].to(x.device, non_blocking=True)
    batch_sizes = live.sum(1)
    offsets, sample_of_row = _rows_of_steps(batch_sizes, rows.size(0), x.device)
    unsorted = torch.empty_like(order)
    unsorted[order] = torch.arange(size)
    batch = Batch(
        data=x.flatten(0, 1).index_select(0, rows),
        size=size,
        lengths=ordered.to(x.device, non_blocking=True),
        offsets=offsets,
        sample_of_row=sample_of_row,
        sorted_indices=order.to(x.device, non_blocking=True),
        unsorted_indices=unsorted.to(x.device, non_blocking=True),
    )
    return batch, Padded(rows, (size, steps) if batch_first else (steps, size))
