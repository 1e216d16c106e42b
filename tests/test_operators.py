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
        (None, [], "gates has 12 rows, but offsets has no steps"),
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


def product(rows: int = 7, depth: int = 5, columns: int = 9) -> dict:
    return {
        "a": torch.randn(rows, depth),
        "b": torch.randn(depth, columns),
        "biases": [torch.randn(columns)],
        "out": torch.zeros(rows, columns),
        "accumulate": False,
        "squares": None,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"a": lambda a: a.int()}, "a is int32, expected float32, float64, float16 or bfloat16"),
        ({"a": lambda a: a[0]}, "a has shape [5], expected [m, k]"),
        ({"a": torch.randn(14, 10)[::2, ::2]}, "a has strides [20, 2], expected rows or columns without gaps"),
        ({"b": lambda b: b.double()}, "b is float64, expected float32 beside a in float32"),
        ({"b": lambda b: b[:4]}, "b has shape [4, 9], expected 5 rows"),
        ({"biases": lambda biases: biases * 3}, "biases has 3 tensors, expected at most 2"),
        ({"biases": lambda biases: [biases[0][:3]]}, "biases[0] has shape [3], expected [9]"),
        ({"out": lambda out: out[:3]}, "out has shape [3, 9], expected [7, 9]"),
        ({"out": lambda out: torch.zeros(9, 7).T}, "out has strides [1, 7], expected rows of 9 without gaps or overlap"),
        ({"out": lambda out: out[:1].expand(7, 9)}, "out has strides [0, 1], expected rows of 9"),
        ({"squares": torch.zeros(1)}, "squares is float32, expected float64"),
        ({"squares": torch.zeros(2, dtype=torch.float64)}, "squares has shape [2], expected [1]"),
    ],
)  # fmt: skip
def test_matmul_refuses(changes, message):
    assert message in refused("matmul", product(), changes)


@pytest.mark.parametrize("shape", [(7, 5, 9), (1, 5, 9), (7, 1, 9), (7, 5, 1), (1, 1, 1), (0, 5, 9), (7, 0, 9)])
def test_matmul_takes_every_stride_of_a_dimension_of_one(shape):
    arguments = product(*shape)
    # The same values with the strides of every second row and column, where a dimension has one element.
    for name in ("a", "b"):
        tensor = arguments[name]
        strides = [3 if size == 1 else stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]
        arguments[name] = torch.zeros(tensor.numel() * 3 + 1).as_strided(tensor.shape, strides).copy_(tensor)
    torch.ops.fastrnn.matmul(*arguments.values())
    expected = arguments["a"] @ arguments["b"] + arguments["biases"][0]
    torch.testing.assert_close(arguments["out"], expected)


def test_the_engine_still_works_after_a_refusal():
    refused("recurrence_forward", forward_arguments(), {"cell": 9})
    with fastrnn.backend("cpu"):
        y, _ = fastrnn.LSTM(3, 4)(torch.randn(5, 2, 3))
    assert y.isfinite().all()
