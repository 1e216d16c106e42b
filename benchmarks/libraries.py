"""flashrnn and haste behind torch.nn's parameters: CUDA only, where installed.

https://github.com/NX-AI/flashrnn (commit d73fb52) and https://github.com/lmnt-com/haste (0.4.0). Written from their public
interfaces and never run with the packages themselves, so results are compared with torch.nn's before anything is timed.
"""

from __future__ import annotations

import importlib.util
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from benchmarks.baselines import Problem


class LeftOut(Exception):
    """Why a baseline is not measured."""


def _import(package: str) -> Any:
    if importlib.util.find_spec(package) is None:
        raise LeftOut(f"{package} is not installed")
    return importlib.import_module(package)


# ------------------------------------------------------------------------------------------------------------- flashrnn


class FlashRnn(nn.Module):
    """``flashrnn.flashrnn`` with one head, after an input projection as its users write it.

    It takes Wx (B, T, gates, heads, H), R (gates, heads, H out, H in), b (gates, heads, H) and states (states, B, 1, heads, H), and
    returns states (states, B, T, heads, H), h first. LSTM has torch's order of gates, i f g o. Wx of a GRU has r z n as torch's; R has
    n r z, and b has the recurrent n, r, z, and the input's n.
    """

    _FUNCTIONS: ClassVar = {
        "lstm": ("lstm", 2),
        "gru": ("gru", 1),
        "rnn": ("elman", 1),
    }  # its name, and how many states

    def __init__(self, p: Problem) -> None:
        super().__init__()
        self.flashrnn = _import("flashrnn").flashrnn
        self.cell, self.hidden_size = p.cell, p.shape.hidden_size
        self.function, self.num_states = self._FUNCTIONS[p.cell]
        w_ih, w_hh, b_ih, b_hh = (parameter.detach().clone() for parameter in p.theirs.parameters())
        w_hh, b_ih, b_hh = (t.unflatten(0, (-1, 1, self.hidden_size)) for t in (w_hh, b_ih, b_hh))
        if p.cell == "gru":
            w_hh = w_hh.roll(1, 0)
            b = torch.cat([b_hh[2:], b_ih[:2] + b_hh[:2], b_ih[2:]])
        else:
            b = b_ih + b_hh
        self.w_ih, self.r, self.b = (nn.Parameter(t) for t in (w_ih, w_hh, b))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gates_x = linear(x, self.w_ih).unflatten(-1, (-1, 1, self.hidden_size)).transpose(0, 1)
        states = x.new_zeros(self.num_states, x.size(1), 1, 1, self.hidden_size)
        dtype = str(x.dtype).removeprefix("torch.")
        y, last = self.flashrnn(gates_x, self.r, self.b, states=states, function=self.function, dtype=dtype)
        return y[0].flatten(2).transpose(0, 1), last

    def gradients_as_torch(self) -> list[Tensor]:
        """Of torch.nn's parameters, in their order and layout."""
        w_ih, r, b = (parameter.grad for parameter in (self.w_ih, self.r, self.b))
        assert w_ih is not None and r is not None and b is not None
        if self.cell == "gru":
            r = r.roll(-1, 0)
            biases = [b[1:], torch.cat([b[1:3], b[:1]])]
        else:
            biases = [b, b]
        return [w_ih, r.flatten(0, 2), *(bias.flatten() for bias in biases)]


# ---------------------------------------------------------------------------------------------------------------- haste


class Haste(nn.Module):
    """``haste_pytorch.LSTM`` and ``GRU``.

    They keep kernel (I, gates*H), recurrent_kernel (H, gates*H) and bias (gates*H), an LSTM one for both products in the order
    i g f o, a GRU bias and recurrent_bias in the order z r n.
    """

    _ORDER: ClassVar = {"lstm": (0, 2, 1, 3), "gru": (1, 0, 2)}  # the same permutation from torch and to it

    def __init__(self, p: Problem) -> None:
        super().__init__()
        if p.cell not in self._ORDER:
            raise LeftOut("has no plain RNN")
        if p.x.dtype not in (torch.float32, torch.float64):
            raise LeftOut(f"has no {str(p.x.dtype).removeprefix('torch.')}")
        self.cell = p.cell
        layer = getattr(_import("haste_pytorch"), p.cell.upper())
        self.layer = layer(p.shape.input_size, p.shape.hidden_size).to(p.x)
        w_ih, w_hh, b_ih, b_hh = (self._reordered(parameter.detach()) for parameter in p.theirs.parameters())
        values = {"kernel": w_ih.t(), "recurrent_kernel": w_hh.t(), "bias": b_ih + b_hh}
        if p.cell == "gru":
            values.update(bias=b_ih, recurrent_bias=b_hh)
        with torch.no_grad():
            for name, value in values.items():
                getattr(self.layer, name).copy_(value)

    def _reordered(self, tensor: Tensor) -> Tensor:
        order = self._ORDER[self.cell]
        gates = tensor.chunk(len(order))
        return torch.cat([gates[k] for k in order])

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        y, last = self.layer(x)
        return y, last

    def gradients_as_torch(self) -> list[Tensor]:
        """Of torch.nn's parameters, in their order and layout."""
        layer = self.layer
        b_ih = layer.bias.grad
        b_hh = layer.recurrent_bias.grad if self.cell == "gru" else b_ih
        return [self._reordered(g) for g in (layer.kernel.grad.t(), layer.recurrent_kernel.grad.t(), b_ih, b_hh)]
