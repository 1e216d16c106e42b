"""Small modules, their states, and a mode that sees operators."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fastrnn

STEPS, BATCH, INPUT = 6, 3, 5
KINDS = {"RNN": {}, "RELU": {"nonlinearity": "relu"}, "LSTM": {}, "GRU": {}}


def make(kind, **options):
    torch.manual_seed(0)
    name = "RNN" if kind == "RELU" else kind
    return getattr(fastrnn, name)(INPUT, 7, **KINDS[kind], **options)


def states_of(rnn, batch=BATCH):
    directions = 2 if rnn.bidirectional else 1
    width = rnn.proj_size or rnn.hidden_size
    dtype = next(rnn.parameters()).dtype
    h0 = torch.randn(rnn.num_layers * directions, batch, width, dtype=dtype)
    if rnn.mode != "LSTM":
        return h0
    return h0, torch.randn(rnn.num_layers * directions, batch, rnn.hidden_size, dtype=dtype)


class Counting(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))
