"""A recurrent layer as a user of torch.compile writes it: one product for the input projection, then a loop in Python over time
that calls a compiled step.

Compiling the loop itself would unroll its T steps, and take the longer, the more there are; users compile the step.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from benchmarks.baselines import Problem

State = tuple[Tensor, ...]
Step = Callable[[Tensor, State, Tensor, Tensor], State]


def _rnn(gates_x: Tensor, state: State, w_hh: Tensor, b_hh: Tensor) -> State:
    (h,) = state
    return (torch.tanh(gates_x + linear(h, w_hh, b_hh)),)


def _lstm(gates_x: Tensor, state: State, w_hh: Tensor, b_hh: Tensor) -> State:
    h, c = state
    i, f, g, o = (gates_x + linear(h, w_hh, b_hh)).chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _gru(gates_x: Tensor, state: State, w_hh: Tensor, b_hh: Tensor) -> State:
    (h,) = state
    x_r, x_z, x_n = gates_x.chunk(3, 1)
    h_r, h_z, h_n = linear(h, w_hh, b_hh).chunk(3, 1)
    z = torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
    return (n + z * (h - n),)


_STEPS: dict[str, Step] = {"rnn": _rnn, "lstm": _lstm, "gru": _gru}


class CompiledLoop(nn.Module):
    """One layer in one direction with a copy of torch.nn's parameters, in their order.

    What was compiled before, by any other, is dropped: torch stops compiling a function after a few shapes.
    """

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor
    bias_hh: Tensor

    def __init__(self, p: Problem) -> None:
        super().__init__()
        for name, parameter in p.theirs.named_parameters():
            self.register_parameter(name.removesuffix("_l0"), copy.deepcopy(parameter))
        self.num_states = 2 if p.cell == "lstm" else 1
        self.hidden_size = p.shape.hidden_size
        torch.compiler.reset()
        self.step = torch.compile(_STEPS[p.cell], dynamic=False, fullgraph=True)

    def forward(self, x: Tensor) -> tuple[Tensor, State]:
        gates_x = linear(x, self.weight_ih, self.bias_ih)
        h0 = x.new_zeros(x.size(1), self.hidden_size)
        state: State = (h0,) * self.num_states
        outputs = []
        for gates in gates_x.unbind(0):
            state = self.step(gates, state, self.weight_hh, self.bias_hh)
            outputs.append(state[0])
        return torch.stack(outputs), state

    def gradients_as_torch(self) -> list[Tensor]:
        """Of torch.nn's parameters, in their order and layout."""
        return [parameter.grad for parameter in self.parameters() if parameter.grad is not None]


def seconds_of_first_call(call: Callable[[], object]) -> float:
    """Compilation and one run, with nothing taken from earlier compilations."""
    with warnings.catch_warnings(), torch.compiler.config.patch(force_disable_caches=True):  # type: ignore[attr-defined]
        warnings.simplefilter("ignore", UserWarning)  # says that caches are off
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - start
