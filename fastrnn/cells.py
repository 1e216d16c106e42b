"""Drop-ins for :class:`torch.nn.RNNCell`, :class:`torch.nn.LSTMCell` and :class:`torch.nn.GRUCell`: one step of a layer."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from fastrnn import backends
from fastrnn.apply import run_layer
from fastrnn.base import autocast_dtype
from fastrnn.functions import GRUFunction, LSTMFunction, Options, RNNFunction


class _Cell(nn.RNNCellBase):
    """What the three cells share: checks in torch.nn's words, and a sequence of one step."""

    def _step(self, function: Any, input: Tensor, states: list[Tensor] | None, num_states: int, **options: Any) -> Any:
        name = type(self).__name__
        if not isinstance(input, Tensor):
            raise TypeError(f"{name}: input should be a tensor, got {type(input).__name__}")
        for state in states or []:
            if not isinstance(state, Tensor):
                raise TypeError(f"{name}: hx should hold tensors, got {type(state).__name__}")
        if input.dim() not in (1, 2):
            raise ValueError(f"{name}: Expected input to be 1D or 2D, got {input.dim()}D instead")
        for index, state in enumerate(states or []):
            which = f"hx[{index}]" if num_states == 2 else "hidden"
            if state.dim() not in (1, 2):
                raise ValueError(f"{name}: Expected {which} to be 1D or 2D, got {state.dim()}D instead")
        is_batched = input.dim() == 2
        x = input if is_batched else input.unsqueeze(0)
        if states is None:
            zeros = torch.zeros(x.size(0), self.hidden_size, dtype=x.dtype, device=x.device)
            states = [zeros] * num_states
        elif not is_batched:
            states = [state.unsqueeze(0) for state in states]
        self._check(x, states)

        dtype = autocast_dtype(x)
        h0 = states[0].to(dtype)
        c0 = states[1].to(dtype) if num_states == 2 else None
        weights = [w for w in (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh) if w is not None]
        tensors = [x, *states, *weights]
        save = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        _y, h_n, c_n, *_ = run_layer(
            function,
            Options(backend=backends.resolve(x.device), save=save, **options),
            None, None, None, None, None, None,
            x.to(dtype).unsqueeze(0), h0.unsqueeze(0), None if c0 is None else c0.unsqueeze(0), *weights,
        )  # fmt: skip
        h = h_n[0] if is_batched else h_n[0, 0]  # y is kept for backward; this may be modified in place
        if c_n is None:
            return h
        return h, (c_n[0] if is_batched else c_n[0, 0])

    def _check(self, x: Tensor, states: list[Tensor]) -> None:
        if x.size(1) != self.input_size:
            raise RuntimeError(f"input has inconsistent input_size: got {x.size(1)} expected {self.input_size}")
        for index, state in enumerate(states):
            if state.dim() != 2:
                raise RuntimeError(f"hidden{index} should have the input's number of dimensions, got {state.dim()}D")
            if x.size(0) != state.size(0):
                raise RuntimeError(
                    f"Input batch size {x.size(0)} doesn't match hidden{index} batch size {state.size(0)}"
                )
            if state.size(1) != self.hidden_size:
                raise RuntimeError(
                    f"hidden{index} has inconsistent hidden_size: got {state.size(1)}, expected {self.hidden_size}"
                )
        if x.is_floating_point() and autocast_dtype(x) != x.dtype:
            return
        for name, tensor in (("input", x), *((f"hidden{index}", state) for index, state in enumerate(states))):
            if tensor.dtype != self.weight_ih.dtype:
                raise RuntimeError(
                    f"{type(self).__name__}: {name} has dtype {tensor.dtype}, but the weights have "
                    f"{self.weight_ih.dtype}"
                )
            if tensor.device != self.weight_ih.device:
                raise RuntimeError(
                    f"{type(self).__name__}: {name} is on {tensor.device}, but the weights are on "
                    f"{self.weight_ih.device}"
                )


class RNNCell(_Cell):
    """One step of a tanh or relu RNN, a drop-in for :class:`torch.nn.RNNCell`."""

    nonlinearity: str

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=1, device=device, dtype=dtype)
        self.nonlinearity = nonlinearity

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """input (B, input_size) or (input_size), hx (B, hidden_size) or (hidden_size), zeros by default -> h'."""
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        states = None if hx is None else [hx]
        return cast(Tensor, self._step(RNNFunction, input, states, 1, nonlinearity=self.nonlinearity))


class LSTMCell(_Cell):
    """One step of an LSTM, a drop-in for :class:`torch.nn.LSTMCell`."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=4, device=device, dtype=dtype)

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """input (B, input_size) or (input_size), hx (h, c) of (B, hidden_size) or (hidden_size) each -> (h', c')."""
        if hx is not None and (not isinstance(hx, (tuple, list)) or len(hx) != 2):
            raise TypeError(f"LSTMCell: hx should be a tuple of two tensors (h_0, c_0), got {type(hx).__name__}")
        return cast(tuple[Tensor, Tensor], self._step(LSTMFunction, input, None if hx is None else list(hx), 2))


class GRUCell(_Cell):
    """One step of a GRU, a drop-in for :class:`torch.nn.GRUCell`."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=3, device=device, dtype=dtype)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """input (B, input_size) or (input_size), hx (B, hidden_size) or (hidden_size), zeros by default -> h'."""
        return cast(Tensor, self._step(GRUFunction, input, None if hx is None else [hx], 1))
