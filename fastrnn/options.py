"""The keyword options that fastrnn's modules have beyond torch.nn's, and their checks."""

from __future__ import annotations

import math
import numbers
from typing import Any, NamedTuple

_DROPOUT_MODES = ("state", "candidate", "weight")
_CLIP_MODES = ("norm", "value")


class RecurrentOptions(NamedTuple):
    """The keyword options that torch.nn does not have, with their defaults."""

    input_dropout: float = 0.0
    recurrent_dropout: float = 0.0
    recurrent_dropout_mode: str = "state"
    state_grad_clip: float | None = None
    state_grad_clip_mode: str = "norm"
    record_state_grad_norms: bool = False
    forget_bias: float | None = None


def _check_probability(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= float(value) <= 1:
        raise ValueError(
            f"{name} should be a number in range [0, 1] representing the probability of an element being zeroed, "
            f"got {value!r}"
        )
    return float(value)


def check_options(mode: str, options: RecurrentOptions) -> RecurrentOptions:
    """Validate the options of a module of torch's ``mode`` ("LSTM", "GRU", "RNN_TANH", "RNN_RELU").

    Raises:
        ValueError, TypeError: naming the option, what was expected and what came.
    """
    if options.recurrent_dropout_mode not in _DROPOUT_MODES:
        raise ValueError(
            f"recurrent_dropout_mode should be 'state', 'candidate' or 'weight', got {options.recurrent_dropout_mode!r}"
        )
    if options.recurrent_dropout_mode == "candidate" and mode.startswith("RNN"):
        raise ValueError("recurrent_dropout_mode 'candidate' needs a gated cell (LSTM or GRU); RNN has no candidate")
    clip = options.state_grad_clip
    if clip is not None:
        if isinstance(clip, bool) or not isinstance(clip, numbers.Real):
            raise TypeError(f"state_grad_clip should be a number > 0 or None, got {clip!r}")
        if not clip > 0:
            raise ValueError(f"state_grad_clip should be a number > 0 or None, got {clip!r}")
        clip = float(clip)
    if options.state_grad_clip_mode not in _CLIP_MODES:
        raise ValueError(f"state_grad_clip_mode should be 'norm' or 'value', got {options.state_grad_clip_mode!r}")
    if not isinstance(options.record_state_grad_norms, bool):
        raise TypeError(
            f"record_state_grad_norms should be of type bool, got: {type(options.record_state_grad_norms).__name__}"
        )
    forget_bias = options.forget_bias
    if forget_bias is not None:
        if mode != "LSTM":
            raise ValueError("forget_bias is only supported for LSTM, not RNN or GRU")
        if isinstance(forget_bias, bool) or not isinstance(forget_bias, numbers.Real) or not math.isfinite(forget_bias):
            raise TypeError(f"forget_bias should be a finite number or None, got {forget_bias!r}")
        forget_bias = float(forget_bias)
    return options._replace(
        input_dropout=_check_probability("input_dropout", options.input_dropout),
        recurrent_dropout=_check_probability("recurrent_dropout", options.recurrent_dropout),
        state_grad_clip=clip,
        forget_bias=forget_bias,
    )
