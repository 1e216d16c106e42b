"""Modules on the CPU where no derivative can be asked for: all layers in one call of the engine, in less than a tenth of the time that
autograd functions and operators need around it.

A plain padded batch alone: what is compiled, traced, transformed, profiled, cast by autocast, dropped out, packed, or wrong in
whatever way goes the way of ``fastrnn.base``, which does it or says what is wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastrnn import backends, ops
from fastrnn.apply import is_watched

if TYPE_CHECKING:
    from fastrnn.base import RNNBase

_CELLS = {"RNN_TANH": 0, "RNN_RELU": 1, "LSTM": 2, "GRU": 3}  # csrc/params.h: CellKind

_run: Any = None if ops.plain is None else ops.plain.run_network


def run(module: RNNBase, x: Any, hx: Any) -> tuple[Tensor, Any] | None:
    """``module.forward(x, hx)`` while gradients are disabled; None where it goes another way."""
    if (
        type(x) is not Tensor
        or _run is None
        or not backends.may_be_cpu()
        or is_watched()
        or torch.is_autocast_enabled("cpu")
        or x.is_neg()
    ):
        return None
    num_layers = module.num_layers
    if (module.training or module.mc_dropout) and (
        module.recurrent_dropout > 0 or module.input_dropout > 0 or (num_layers > 1 and module.dropout > 0)
    ):
        return None
    if module.grad_scale is not None or module._masks.are_held():
        return None
    has_cell = module.mode == "LSTM"
    h0, c0 = hx, None
    if has_cell and hx is not None:
        if type(hx) not in (tuple, list) or len(hx) != 2:
            return None
        h0, c0 = hx
    if hx is not None and any(
        type(state) is not Tensor or state.is_neg() for state in ((h0, c0) if has_cell else (h0,))
    ):
        return None
    sizes = x.shape
    if len(sizes) != 3 or sizes[2] != module.input_size:
        return None
    if module.batch_first:
        x = x.transpose(0, 1).contiguous()
        sizes = x.shape
    steps, batch, _ = sizes
    num_directions = 2 if module.bidirectional else 1
    hidden_size = module.hidden_size
    state_size = module.proj_size or hidden_size
    parameters = module._parameters
    y = x.new_empty((steps, batch, num_directions * state_size))
    h_n = x.new_empty((num_layers * num_directions, batch, state_size))
    c_n = x.new_empty((num_layers * num_directions, batch, hidden_size)) if has_cell else None
    weights = [parameters.get(name) for name in module._flat_weights_names]
    if not _run(_CELLS[module.mode], num_layers, num_directions, x, weights, h0, c0, y, h_n, c_n):
        return None
    if module.batch_first:
        y = y.transpose(0, 1)
    return y, ((h_n, c_n) if has_cell else h_n)
