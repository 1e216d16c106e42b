"""From torch.nn and back, with the very same Parameter objects: optimizers, tied weights and hooks survive."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from fastrnn import cells, modules
from fastrnn.base import RNNBase
from fastrnn.options import RecurrentOptions

_OURS: dict[type[nn.Module], type[nn.Module]] = {
    nn.RNN: modules.RNN,
    nn.LSTM: modules.LSTM,
    nn.GRU: modules.GRU,
    nn.RNNCell: cells.RNNCell,
    nn.LSTMCell: cells.LSTMCell,
    nn.GRUCell: cells.GRUCell,
}
_TORCHS = {ours: theirs for theirs, ours in _OURS.items()}
_LAYER_ARGUMENTS = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")
_CELL_ARGUMENTS = ("input_size", "hidden_size", "bias")
# What nn.Module keeps in its __dict__ of hooks registered on it.
_HOOKS = (
    "_backward_pre_hooks", "_backward_hooks", "_is_full_backward_hook", "_non_full_backward_hooks", "_forward_hooks",
    "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs",
    "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip


def _rebuild(module: nn.Module, target: type[nn.Module], options: dict[str, Any]) -> nn.Module:
    is_cell = isinstance(module, nn.RNNCellBase)
    arguments = {name: getattr(module, name) for name in (_CELL_ARGUMENTS if is_cell else _LAYER_ARGUMENTS)}
    if hasattr(module, "nonlinearity"):
        arguments["nonlinearity"] = module.nonlinearity
    if getattr(module, "proj_size", 0):
        arguments["proj_size"] = module.proj_size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's remark on dropout with one layer was made when the module was built
        # no random number is drawn for parameters that are replaced at once
        rebuilt = target(**arguments, device="meta", **options)
    for name, parameter in module.named_parameters(recurse=False):
        setattr(rebuilt, name, parameter)
    for name in _HOOKS:
        if name in module.__dict__:
            rebuilt.__dict__[name] = module.__dict__[name]
    rebuilt.train(module.training)
    return rebuilt


def from_torch(module: nn.Module, **options: Any) -> nn.Module:
    """The fastrnn module with the parameters (the same objects), hooks and mode of a torch.nn one.

    Args:
        module: a torch.nn.RNN, LSTM, GRU, RNNCell, LSTMCell or GRUCell.
        options: fastrnn's keyword options (``recurrent_dropout=0.3``, ...); cells take none. ``forget_bias`` is refused: it
            sets start values, and these parameters have theirs.

    Raises:
        TypeError: another type of module (a subclass may compute something else).
        ValueError: parametrised weights: apply the parametrisation after the conversion.
    """
    if torch.nn.utils.parametrize.is_parametrized(module):
        raise ValueError(
            "from_torch cannot convert a module with parametrised weights; convert first, then parametrise the result"
        )
    target = _OURS.get(type(module))
    if target is None:
        names = ", ".join(f"torch.nn.{theirs.__name__}" for theirs in _OURS)
        raise TypeError(f"from_torch expects one of {names}, got {type(module).__module__}.{type(module).__qualname__}")
    if options and isinstance(module, nn.RNNCellBase):
        raise TypeError(f"from_torch: cells take no options, got {', '.join(options)}")
    if "forget_bias" in options:
        raise ValueError("from_torch keeps the parameters as they are; forget_bias sets start values of new ones")
    return _rebuild(module, target, options)


def _to_torch(module: nn.Module) -> nn.Module:
    if isinstance(module, RNNBase):
        default = RecurrentOptions()
        lost = [
            name
            for name in default._fields
            if name != "forget_bias" and getattr(module, name) != getattr(default, name)
        ]
        if lost:
            warnings.warn(f"torch.nn has no {', '.join(lost)}; the converted module goes without", stacklevel=3)
    return _rebuild(module, _TORCHS[type(module)], {})


def _replace(model: nn.Module, convert: Any, types: Any) -> nn.Module:
    """Every module of ``types`` inside a model (or the model itself) converted; one used in two places stays one."""
    done: dict[nn.Module, nn.Module] = {}

    def visit(module: nn.Module) -> nn.Module:
        if module in done:
            return done[module]
        if type(module) in types:
            done[module] = convert(module)
            return done[module]
        done[module] = module
        for name, child in list(module._modules.items()):
            if child is not None:
                module._modules[name] = visit(child)
        return module

    return visit(model)


def replace_rnns(model: nn.Module, **options: Any) -> nn.Module:
    """Replace every torch.nn RNN, LSTM, GRU (with ``options``) and Cell inside a model, in place.

    Returns:
        The model (its replacement, if it is itself one of these).

    Raises:
        TypeError, ValueError: not a module, an option is unknown or wrong, or weights are parametrised.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"replace_rnns expects a module, got {type(model).__name__}")

    def convert(module: nn.Module) -> nn.Module:
        return from_torch(module, **({} if isinstance(module, nn.RNNCellBase) else options))

    return _replace(model, convert, _OURS)


def to_torch(model: nn.Module) -> nn.Module:
    """The inverse of :func:`replace_rnns`; options that torch.nn lacks are named in a warning and lost."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"to_torch expects a module, got {type(model).__name__}")
    return _replace(model, _to_torch, _TORCHS)
