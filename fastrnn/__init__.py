"""Fused RNN, LSTM and GRU for PyTorch: drop-in, with recurrent dropout and gradient clipping through time."""

from fastrnn import functions, reference
from fastrnn.backends import backend
from fastrnn.cells import GRUCell, LSTMCell, RNNCell
from fastrnn.clip import clip_grad_norm_, clip_on_step
from fastrnn.convert import from_torch, replace_rnns, to_torch
from fastrnn.modules import GRU, LSTM, RNN
from fastrnn.plans import explain

__version__ = "0.1.0"
__all__ = [
    "GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell", "backend", "clip_grad_norm_", "clip_on_step", "explain", "from_torch", "functions", "reference",
    "replace_rnns", "to_torch",
]  # fmt: skip
