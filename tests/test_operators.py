"""The operators' own checks: a wrong call is refused by name before anything is read or written."""

import pytest
import torch

import fastrnn
from fastrnn import _library

pytestmark = pytest.mark.skipif(not _library.is_loaded("cpu"), reason="the CPU kernels are not built")

STEPS, BATCH, HIDDEN, DIRECTIONS = 6, 3, 5, 2
ROWS = STEPS * BATCH
GATES = {"rnn": (0, 1), "lstm": (2, 4), "gru": (3, 3)}
LENGTHS = torch.tensor([6, 4, 2])
OFFSETS = torch.tensor([0, 3, 6, 8, 10, 11])  # of those lengths


def forward_arguments(cell: str = "lstm", rows: int = ROWS, save: bool = True) -> dict:
    """By name, in the schema's order."""
    number, gates = GATES[cell]
    lstm, gru = cell == "lstm", cell == "gru"
    state = (DIRECTIONS, BATCH, HIDDEN)
    unit = (DIRECTIONS, rows, HIDDEN)
    return {
        "cell": number,
        "dropout_site": 0,
        "gates": torch.randn(DIRECTIONS, rows, gates * HIDDEN),
        "w_hh": [torch.randn(gates * HIDDEN, HIDDEN) for _ in range(DIRECTIONS)],
        "b_hn": [torch.randn(HIDDEN) for _ in range(DIRECTIONS)] if gru else [],
        "w_hr": [],
        "h0": torch.randn(state),
        "c0": torch.randn(state) if lstm else None,
        "mask": None,
        "lengths": None,
        "offsets": None,
        "y": torch.full((rows, DIRECTIONS * HIDDEN), 7.0),
        "h_n": torch.empty(state),
        "c_n": torch.empty(state) if lstm else None,
        "save": save,
        "cells": torch.empty(unit) if lstm and save else None,
        "n_h": torch.empty(unit) if gru and save else None,
        "hidden": None,
        "workspace": None,
        "plan": "",
    }


def backward_arguments(cell: str = "lstm") -> dict:
    forward = forward_arguments(cell)
    torch.ops.fastrnn.recurrence_forward(*forward.values())
    number, gates = GATES[cell]
    lstm, gru = cell == "lstm", cell == "gru"
    state, unit = (DIRECTIONS, BATCH, HIDDEN), (DIRECTIONS, ROWS, HIDDEN)
    return {
        "cell": number,
        "dropout_site": 0,
        "gates": forward["gates"] if gates > 1 else None,
        **{name: forward[name] for name in ("cells", "n_h", "y", "w_hh", "w_hr", "h0", "c0")},
        **dict.fromkeys(("mask", "lengths", "offsets")),
        "grad_y": torch.randn(ROWS, DIRECTIONS * HIDDEN),
        "grad_h_n": None,
        "grad_c_n": None,
        "clip_mode": 1,
        "clip_threshold": 1.0,
        "grad_scale": None,
        "norms": torch.empty(DIRECTIONS, STEPS, BATCH),
        "clipped": torch.empty(DIRECTIONS, STEPS, BATCH, dtype=torch.bool),
        "grad_gates": torch.empty(DIRECTIONS, ROWS, gates * HIDDEN),
        "grad_n_h": torch.empty(unit) if gru else None,
        "grad_h": None,
        "grad_h0": torch.empty(state),
        "grad_c0": torch.empty(state) if lstm else None,
        "grad_bias": None,
        "h_prev": None,
        "workspace": None,
        "plan": "",
    }


def refused(operator: str, arguments: dict, changes: dict) -> str:
    """The error's text; no tensor has changed."""
    unknown = set(changes) - set(arguments)
    assert not unknown
    for name, change in changes.items():
        arguments[name] = change(arguments[name]) if callable(change) else change
    tensors = [value for value in arguments.values() if isinstance(value, torch.Tensor)]
    before = [tensor.clone() for tensor in tensors]
    with pytest.raises(RuntimeError) as error:
        getattr(torch.ops.fastrnn, operator)(*arguments.values())
    for tensor, copy in zip(tensors, before, strict=True):
        torch.testing.assert_close(tensor, copy, rtol=0, atol=0, equal_nan=True)
    return str(error.value)


def scattered(tensor: torch.Tensor) -> torch.Tensor:
    return torch.stack((tensor, tensor), -1)[..., 0]


@pytest.mark.parametrize(
    ("cell", "changes", "message"),
    [
        ("lstm", {"cell": 9}, "cell is 9, expected 0 to 3"),
        ("lstm", {"dropout_site": 2}, "dropout_site is 2, expected 0 to 1"),
        ("lstm", {"gates": lambda g: g[0]}, "gates has shape [18, 20], expected [directions, rows, gates * hidden_size]"),
        ("lstm", {"gates": lambda g: torch.cat((g, g))}, "gates has shape [4, 18, 20], expected 1 or 2 directions"),
        ("gru", {"gates": lambda g: g[..., :14].clone()}, "expected 3 * hidden_size at the end"),
        ("lstm", {"gates": lambda g: g.int()}, "gates is int32, expected float32, float64, float16 or bfloat16"),
        ("lstm", {"gates": lambda g: g[:, :17].clone()}, "gates has 17 rows, expected a multiple of the batch size 3"),
        ("lstm", {"w_hh": lambda w: w[:1]}, "w_hh has 1 tensors, expected 2"),
        ("lstm", {"w_hh": lambda w: [w[0], w[1].T]}, "w_hh[1] has shape [5, 20], expected [20, 5]"),
        ("gru", {"h0": lambda h: h[..., :4].clone()}, "h0 has shape [2, 3, 4], expected the hidden size 5 at the end"),
        ("lstm", {"h0": lambda h: h.double()}, "h0 is float64, expected float32 beside gates in float32"),
        ("lstm", {"h0": scattered}, "h0 has strides [30, 10, 2], expected a contiguous tensor"),
        ("lstm", {"c0": None}, "c0 is missing: an LSTM needs it"),
        ("gru", {"c0": torch.zeros(2, 3, 5)}, "c0 is given, but it goes with an LSTM alone"),
        ("lstm", {"mask": torch.ones(2, 3, 4)}, "mask has shape [2, 3, 4], expected [2, 3, 5]"),
        ("lstm", {"mask": torch.ones(2, 3, 5).half()}, "mask is float16, expected float32 beside gates in float32"),
        ("rnn", {"mask": torch.ones(2, 3, 5), "dropout_site": 1}, "dropout_site is candidate, but an RNN has no candidate"),
        ("lstm", {"y": lambda y: y[:-1]}, "y has shape [17, 10], expected [18, 10]"),
        ("lstm", {"cells": None}, "cells is missing: an LSTM that saves needs it"),
        ("lstm", {"save": False}, "cells is given, but it goes with an LSTM that saves alone"),
        ("lstm", {"hidden": torch.empty(2, 18, 5)}, "hidden is given, but it goes with an LSTM with w_hr that saves alone"),
        ("lstm", {"plan": "grid"}, 'plan is "grid", but the CPU backend has no plans to choose from'),
        ("lstm", {"lengths": torch.tensor([6, 41, 2])}, "lengths[1] is 41 but the sequence has 6 steps"),
        ("lstm", {"lengths": torch.tensor([6, 4, -1])}, "lengths[2] is -1 but the sequence has 6 steps"),
        ("lstm", {"lengths": torch.tensor([6, 4])}, "lengths has shape [2], expected [3]"),
        ("lstm", {"lengths": LENGTHS.int()}, "lengths is int32, expected int64"),
    ],
)  # fmt: skip
def test_forward_refuses(cell, changes, message):
    assert message in refused("recurrence_forward", forward_arguments(cell), changes)


@pytest.mark.parametrize(
    ("lengths", "offsets", "message"),
    [
        ([4, 6, 2], OFFSETS, "lengths[1] is 6 after 4, expected falling lengths in a packed batch"),
        ([6, 4, 1], OFFSETS, "offsets gives step 1 the rows from 3 to 6 of 12, expected 2 rows"),
        (None, OFFSETS + 1, "offsets[0] is 1, expected 0"),
        (None, [0, 3, 6, 8, 10, 13], "offsets gives step 4 the rows from 10 to 13 of 12, expected at most 2 rows"),
        (None, [0, 2, 5, 8, 10, 11], "offsets gives step 1 the rows from 2 to 5 of 12, expected at most 2 rows"),
        (None, [0, 3, 2, 4, 6, 8], "offsets gives step 1 the rows from 3 to 2 of 12"),
        (None, [0, 3, 2**62, -(2**62), 10, 11], "offsets gives step 1 the rows from 3 to 4611686018427387904 of 12"),
        (None, [], "there are 12 rows, but offsets has no steps"),
    ],
)
def test_forward_refuses_offsets_that_lead_outside(lengths, offsets, message):
    lengths = None if lengths is None else torch.tensor(lengths)
    offsets = torch.as_tensor(offsets, dtype=torch.int64)
    error = refused("recurrence_forward", forward_arguments(rows=12), {"lengths": lengths, "offsets": offsets})
    assert message in error


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_forward_takes_a_packed_batch_with_and_without_lengths(lengths):
    arguments = forward_arguments(rows=12)
    gates = arguments["gates"].clone()
    torch.ops.fastrnn.recurrence_forward(*{**arguments, "lengths": lengths, "offsets": OFFSETS}.values())
    padded = forward_arguments()
    for step in range(STEPS):
        for sample in range(int((step < LENGTHS).sum())):
            padded["gates"][:, step * BATCH + sample] = gates[:, int(OFFSETS[step]) + sample]
    for name in ("w_hh", "h0", "c0"):
        padded[name] = arguments[name]
    padded["lengths"] = LENGTHS
    torch.ops.fastrnn.recurrence_forward(*padded.values())
    torch.testing.assert_close(arguments["h_n"], padded["h_n"])


@pytest.mark.parametrize(
    ("cell", "changes", "message"),
    [
        ("gru", {"n_h": None}, "n_h is missing: a GRU needs it"),
        ("gru", {"grad_c_n": torch.zeros(2, 3, 5)}, "grad_c_n is given, but it goes with an LSTM alone"),
        ("lstm", {"clip_mode": 3}, "clip_mode is 3, expected 0 to 2"),
        ("lstm", {"clip_threshold": 0.0}, "clip_threshold is 0, expected a positive number"),
        ("lstm", {"clip_threshold": float("nan")}, "clip_threshold is nan, expected a positive number"),
        ("lstm", {"grad_scale": torch.ones(2)}, "grad_scale has shape [2], expected [1]"),
        ("lstm", {"grad_scale": torch.ones((), dtype=torch.float64)}, "grad_scale is float64, expected float32"),
        ("lstm", {"norms": torch.empty(2, 3, 6)}, "norms has shape [2, 3, 6], expected [2, 6, 3]"),
        ("lstm", {"clipped": torch.empty(2, 6, 3)}, "clipped is float32, expected bool"),
        ("lstm", {"grad_bias": torch.empty(2, 15)}, "grad_bias has shape [2, 15], expected [2, 20]"),
        ("gru", {"grad_bias": torch.empty(2, 15)}, "grad_bias has shape [2, 15], expected [2, 20]"),
        ("lstm", {"h_prev": torch.empty(18, 2, 5)}, "h_prev has shape [18, 2, 5], expected [2, 18, 5]"),
        ("lstm", {"lengths": torch.tensor([6, 7, 2])}, "lengths[1] is 7 but the sequence has 6 steps"),
    ],
)
def test_backward_refuses(cell, changes, message):
    assert message in refused("recurrence_backward", backward_arguments(cell), changes)


INPUT = 7


def layer_forward_arguments(cell: str = "lstm", rows: int = ROWS, save: bool = True) -> dict:
    recurrence = forward_arguments(cell, rows, save)
    width = GATES[cell][1] * HIDDEN
    biases = [torch.randn(width) for _ in range(DIRECTIONS)]
    return {
        "cell": recurrence["cell"],
        "dropout_site": 0,
        "x": torch.randn(rows, INPUT),
        "w_ih": [torch.randn(width, INPUT) for _ in range(DIRECTIONS)],
        "w_hh": recurrence["w_hh"],
        "b_ih": biases,
        "b_hh": [bias.clone() for bias in biases],
        **{
            name: recurrence[name]
            for name in ("w_hr", "h0", "c0", "mask", "lengths", "offsets", "y", "h_n", "c_n", "save")
        },
        "gates": recurrence["gates"] if save and cell != "rnn" else None,
        **{name: recurrence[name] for name in ("cells", "n_h", "hidden")},
    }


def layer_backward_arguments(cell: str = "lstm") -> dict:
    forward = layer_forward_arguments(cell)
    torch.ops.fastrnn.layer_forward(*forward.values())
    backward = backward_arguments(cell)
    width = GATES[cell][1] * HIDDEN
    states = (
        "mask",
        "lengths",
        "offsets",
        "grad_y",
        "grad_h_n",
        "grad_c_n",
        "clip_mode",
        "clip_threshold",
        "grad_scale",
    )
    return {
        "cell": forward["cell"],
        "dropout_site": 0,
        **{
            name: forward[name]
            for name in ("gates", "cells", "n_h", "hidden", "y", "x", "w_ih", "w_hh", "w_hr", "h0", "c0")
        },
        **{name: backward[name] for name in (*states, "norms", "clipped")},
        "grad_x": torch.empty(ROWS, INPUT),
        **{name: backward[name] for name in ("grad_h0", "grad_c0")},
        "grad_w_ih": [torch.empty(width, INPUT) for _ in range(DIRECTIONS)],
        "grad_w_hh": [torch.empty(width, HIDDEN) for _ in range(DIRECTIONS)],
        "grad_b_ih": [torch.empty(width) for _ in range(DIRECTIONS)],
        "grad_b_hh": [torch.empty(width) for _ in range(DIRECTIONS)],
        "grad_w_hr": [],
        "squares": torch.zeros(DIRECTIONS, 4, dtype=torch.float64),
    }


@pytest.mark.parametrize(
    ("cell", "changes", "message"),
    [
        ("lstm", {"x": lambda x: x.int()}, "x is int32, expected float32, float64, float16 or bfloat16"),
        ("lstm", {"x": lambda x: x[0]}, "x has shape [7], expected [*rows, input_size]"),
        ("lstm", {"x": lambda x: x.view(6, 3, 7)}, "y has shape [18, 10], expected [6, 3, 10]"),
        ("lstm", {"x": lambda x: x[:17]}, "x has 17 rows, expected a multiple of the batch size 3"),
        ("lstm", {"x": torch.randn(18, 14)[:, ::2]}, "x has strides [14, 2], expected a contiguous tensor"),
        ("lstm", {"h0": torch.randn(3, 3, 5)}, "h0 has shape [3, 3, 5], expected 1 or 2 directions"),
        ("lstm", {"w_hh": []}, "w_hh has 0 tensors, expected 2"),
        ("gru", {"w_hh": lambda w: [w[0][:13], w[1]]}, "w_hh[0] has shape [13, 5], expected 3 * hidden_size rows"),
        ("lstm", {"w_ih": lambda w: w[:1]}, "w_ih has 1 tensors, expected 2"),
        ("lstm", {"w_ih": lambda w: [w[0], w[1][:, :6]]}, "w_ih[1] has shape [20, 6], expected [20, 7]"),
        ("gru", {"b_hh": lambda b: [b[0], b[1][:5]]}, "b_hh[1] has shape [5], expected [15]"),
        ("gru", {"gates": None}, "gates is missing: an LSTM or GRU that saves needs it"),
        ("rnn", {"gates": torch.empty(2, 18, 5)}, "gates is given, but it goes with an LSTM or GRU that saves alone"),
        ("lstm", {"y": lambda y: y[:, :9]}, "y has shape [18, 9], expected [18, 10]"),
    ],
)
def test_layer_forward_refuses(cell, changes, message):
    assert message in refused("layer_forward", layer_forward_arguments(cell), changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grad_x": torch.empty(18, 6)}, "grad_x has shape [18, 6], expected [18, 7]"),
        ({"grad_w_ih": lambda g: g[:1]}, "grad_w_ih has 1 tensors, expected 2 or none"),
        ({"grad_w_hh": lambda g: [g[0], g[1].double()]}, "grad_w_hh[1] is float64, expected float32 beside x in float32"),
        ({"grad_b_hh": lambda g: [g[0][:5], g[1]]}, "grad_b_hh[0] has shape [5], expected [20]"),
        ({"grad_w_hr": lambda _: [torch.empty(5, 5)] * 2}, "grad_w_hr is given, but it goes with an LSTM with w_hr alone"),
        ({"hidden": torch.empty(2, 18, 5)}, "hidden is given, but it goes with an LSTM with w_hr alone"),
        ({"squares": torch.zeros(2, 4)}, "squares is float32, expected float64"),
        ({"squares": torch.zeros(2, 1, dtype=torch.float64)}, "squares has shape [2, 1], expected at least 2 weights"),
        ({"clip_threshold": 0.0}, "clip_threshold is 0, expected a positive number"),
    ],
)  # fmt: skip
def test_layer_backward_refuses(changes, message):
    assert message in refused("layer_backward", layer_backward_arguments(), changes)


def test_the_engine_still_works_after_a_refusal():
    refused("recurrence_forward", forward_arguments(), {"cell": 9})
    with fastrnn.backend("cpu"):
        y, _ = fastrnn.LSTM(3, 4)(torch.randn(5, 2, 3))
    assert y.isfinite().all()
