"""Modules on the CPU where gradients are disabled: all layers in one call of the engine, past torch's dispatcher.

A plain padded batch alone, of a module with plain parameters. What is compiled, traced, transformed, profiled, cast by autocast or seen
by a mode; dropped out, packed, of lengths, unbatched; with held masks, a ``grad_scale`` or plans asked for by a variable; or wrong in
whatever way: that goes the way of ``fastrnn.base``, which does it or says what is wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Parameter

from fastrnn import backends, ops
from fastrnn.apply import is_watched

if TYPE_CHECKING:
    from fastrnn.base import RNNBase

_CELLS = {"RNN_TANH": 0, "RNN_RELU": 1, "LSTM": 2, "GRU": 3}  # csrc/params.h: CellKind

_run: Any = None if ops.plain is None else ops.plain.run_network


def _drops(module: RNNBase) -> bool:
    """Whether a module that is training, or draws masks anyway, has a dropout."""
    between_layers = module.dropout > 0 and module.num_layers > 1
    return between_layers or module.recurrent_dropout > 0 or module.input_dropout > 0


def _states(module: RNNBase, hx: Any) -> list[Tensor | None] | None:
    """[h0, c0]; None where ``hx`` is something else than one or two tensors."""
    given = hx if module.mode == "LSTM" else (hx,)
    if type(given) not in (tuple, list) or len(given) != (2 if module.mode == "LSTM" else 1):
        return None
    if not all(type(state) in (Tensor, Parameter) for state in given):
        return None
    return [*(state.contiguous() for state in given), None]


def run(module: RNNBase, x: Any, hx: Any) -> tuple[Tensor, Any] | None:
    """``module.forward(x, hx)`` while gradients are disabled; None where it goes another way."""
    if type(x) is not Tensor or not x.is_cpu or _run is None or not backends.may_be_cpu():
        return None
    if is_watched() or torch.is_autocast_enabled("cpu"):
        return None
    # Behind a call of the engine the interpreter finds the caches full of other things, and each function that it enters takes long.
    if module.grad_scale is not None or module._masks.are_held():
        return None
    if (module.training or module.mc_dropout) and _drops(module):
        return None
    sizes = x.shape
    if len(sizes) != 3 or sizes[2] != module.input_size:
        return None
    parameters = module._parameters
    weights = [parameters.get(name) for name in module._flat_weights_names]  # None is refused below
    states = [None, None] if hx is None else _states(module, hx)
    if states is None:
        return None
    x = (x.transpose(0, 1) if module.batch_first else x).contiguous()
    steps, batch, _ = x.shape
    num_layers, num_directions = module.num_layers, 2 if module.bidirectional else 1
    hidden_size = module.hidden_size
    state_size = module.proj_size or hidden_size
    y = x.new_empty((steps, batch, num_directions * state_size))
    h_n = x.new_empty((num_layers * num_directions, batch, state_size))
    c_n = x.new_empty((num_layers * num_directions, batch, hidden_size)) if module.mode == "LSTM" else None
    if not _run(_CELLS[module.mode], num_layers, num_directions, x, weights, states[0], states[1], y, h_n, c_n):
        return None
    return (y.transpose(0, 1) if module.batch_first else y), (h_n if c_n is None else (h_n, c_n))
