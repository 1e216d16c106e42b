"""Drop-ins for :class:`torch.nn.RNN`, :class:`torch.nn.LSTM` and :class:`torch.nn.GRU`.

The modules inherit torch's ``RNNBase`` (parameters, state_dict, pickling), not its ``LSTM`` and so on, on which torch.compile
breaks the graph. They hold the parameters and the options, stack layers, draw masks and order samples (``fastrnn.base``); the
work of a layer is one call of ``fastrnn.functions``.
"""

from __future__ import annotations

from typing import Any, Literal

import torch

from fastrnn.base import RNNBase
from fastrnn.options import RecurrentOptions

_OPTIONS_DOC = """
    Keyword options beyond torch.nn (all off by default; off is bit-identical to not having them):

    Args:
        input_dropout: probability of a variational mask (B, input) on each layer's input, constant over time, shared by
            both directions (Gal & Ghahramani 2016, arXiv:1512.05287).
        recurrent_dropout: probability of recurrent dropout, one mask per layer, direction and sample, constant over time.
        recurrent_dropout_mode: "state": mask on h_{t-1} in the recurrent product (Gal & Ghahramani 2016, tied over gates);
            "candidate": on the candidate, c = f c + i (m g) or h = (1 - z) (m n) + z h (Semeniuta et al. 2016,
            arXiv:1603.05118; not for RNN); "weight": DropConnect on W_hh, one mask per forward (Merity et al. 2018,
            arXiv:1708.02182).
        state_grad_clip: in backward, clip the gradient that flows from step t + 1 to the state after step t, per sample, before
            the gradient of the output is added; > 0 or None. For LSTM, h and c are one vector. At a sample's last step it is what
            comes from h_n (and c_n); the gradient of the initial states is not clipped. A good threshold is a few times the norm
            that ``state_grad_norms`` shows near the loss.
        state_grad_clip_mode: "norm" (multiply by min(1, clip / norm); a non-finite norm passes) or "value" (clamp elements as
            :func:`torch.clamp`: infinity becomes the threshold, NaN stays).
        record_state_grad_norms: keep those norms, see ``state_grad_norms``.

    Attributes:
        mc_dropout: True keeps all dropouts on in eval(), for Monte Carlo dropout.
        grad_scale: float32 tensor (), the loss scale to take out of thresholds and recorded norms. With a ``GradScaler`` set it
            before each forward: ``rnn.grad_scale = scaler.scale(torch.ones((), device=...))``; :func:`fastrnn.clip_on_step` has
            the whole loop.
    """


class RNN(RNNBase):
    __doc__ = f"""A tanh or relu RNN, a drop-in for :class:`torch.nn.RNN`.

    ``RNN(input_size, hidden_size, num_layers=1, nonlinearity="tanh", bias=True, batch_first=False, dropout=0.0,
    bidirectional=False, device=None, dtype=None, **options)``
{_OPTIONS_DOC}"""
    nonlinearity: Literal["tanh", "relu"]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: Literal["tanh", "relu"] = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        recurrent_dropout_mode: Literal["state", "candidate", "weight"] = "state",
        state_grad_clip: float | None = None,
        state_grad_clip_mode: Literal["norm", "value"] = "norm",
        record_state_grad_norms: bool = False,
        forget_bias: None = None,
    ) -> None:
        _refuse_projection(proj_size)
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
        options = RecurrentOptions(
            input_dropout, recurrent_dropout, recurrent_dropout_mode, state_grad_clip, state_grad_clip_mode,
            record_state_grad_norms, forget_bias,
        )  # fmt: skip
        super().__init__(
            f"RNN_{nonlinearity.upper()}", input_size, hidden_size, num_layers=num_layers, bias=bias,
            batch_first=batch_first, dropout=dropout, bidirectional=bidirectional, device=device, dtype=dtype,
            options=options,
        )  # fmt: skip
        self.nonlinearity = nonlinearity


class LSTM(RNNBase):
    __doc__ = f"""A long short-term memory RNN, a drop-in for :class:`torch.nn.LSTM`.

    ``LSTM(input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0, bidirectional=False, proj_size=0,
    device=None, dtype=None, **options)``
{_OPTIONS_DOC}
    ``forget_bias`` (LSTM alone): the start value of the forget gate's bias, put into b_ih while b_hh's part is zeroed;
    Jozefowicz et al. 2015 recommend 1.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        recurrent_dropout_mode: Literal["state", "candidate", "weight"] = "state",
        state_grad_clip: float | None = None,
        state_grad_clip_mode: Literal["norm", "value"] = "norm",
        record_state_grad_norms: bool = False,
        forget_bias: float | None = None,
    ) -> None:
        options = RecurrentOptions(
            input_dropout, recurrent_dropout, recurrent_dropout_mode, state_grad_clip, state_grad_clip_mode,
            record_state_grad_norms, forget_bias,
        )  # fmt: skip
        super().__init__(
            "LSTM", input_size, hidden_size, num_layers=num_layers, bias=bias, batch_first=batch_first,
            dropout=dropout, bidirectional=bidirectional, proj_size=proj_size, device=device, dtype=dtype,
            options=options,
        )  # fmt: skip


class GRU(RNNBase):
    __doc__ = f"""A gated recurrent unit RNN (reset after the product), a drop-in for :class:`torch.nn.GRU`.

    ``GRU(input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0, bidirectional=False, device=None,
    dtype=None, **options)``
{_OPTIONS_DOC}"""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        recurrent_dropout_mode: Literal["state", "candidate", "weight"] = "state",
        state_grad_clip: float | None = None,
        state_grad_clip_mode: Literal["norm", "value"] = "norm",
        record_state_grad_norms: bool = False,
        forget_bias: None = None,
    ) -> None:
        _refuse_projection(proj_size)
        options = RecurrentOptions(
            input_dropout, recurrent_dropout, recurrent_dropout_mode, state_grad_clip, state_grad_clip_mode,
            record_state_grad_norms, forget_bias,
        )  # fmt: skip
        super().__init__(
            "GRU", input_size, hidden_size, num_layers=num_layers, bias=bias, batch_first=batch_first,
            dropout=dropout, bidirectional=bidirectional, device=device, dtype=dtype, options=options,
        )  # fmt: skip


def _refuse_projection(proj_size: int) -> None:
    if proj_size != 0:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
