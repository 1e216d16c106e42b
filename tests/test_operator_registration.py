"""What torch's own machinery sees of the operators: opcheck, and no derivative that is silently zero."""

import pytest
import torch

from fastrnn import _library
from tests.test_operators import (
    LENGTHS,
    OFFSETS,
    backward_arguments,
    forward_arguments,
    layer_backward_arguments,
    layer_forward_arguments,
)

pytestmark = pytest.mark.skipif(not _library.is_loaded("cpu"), reason="the CPU kernels are not built")

CASES = {
    **{f"recurrence_forward {cell}": forward_arguments(cell) for cell in ("rnn", "lstm", "gru")},
    **{f"recurrence_backward {cell}": backward_arguments(cell) for cell in ("rnn", "lstm", "gru")},
    "recurrence_forward packed": {
        **forward_arguments("gru", rows=12),
        "lengths": LENGTHS,
        "offsets": OFFSETS,
        "mask": torch.ones(2, 3, 5),
    },
    **{f"layer_forward {cell}": layer_forward_arguments(cell) for cell in ("rnn", "lstm", "gru")},
    **{f"layer_backward {cell}": layer_backward_arguments(cell) for cell in ("rnn", "lstm", "gru")},
    "sum_of_squares": {
        "tensors": [torch.randn(3), torch.randn(2)],
        "known": [torch.ones(1, dtype=torch.float64)],
        "partial": torch.zeros(3, dtype=torch.float64),
        "out": torch.zeros(1, dtype=torch.float64),
        "root": True,
    },
    "clip_": {"tensors": [torch.randn(3), torch.randn(2)], "norm": torch.full((1,), 2.0), "max_norm": 1.0},
    "dropout_factors_": {"factors": torch.zeros(3, 50), "seed": torch.tensor(7), "p": 0.25},
    "record": {"slot": torch.zeros(1), "norms": torch.randn(2, 3, 4), "clipped": torch.ones(2, 3, 4).bool(), "key": -7},
}


def find(case: str):
    return getattr(torch.ops.fastrnn, case.split()[0]).default


@pytest.mark.parametrize("case", CASES)
def test_opcheck(case):
    torch.library.opcheck(find(case), tuple(CASES[case].values()))


@pytest.mark.parametrize(
    ("case", "argument"),
    [("recurrence_forward lstm", "c0"), ("recurrence_backward gru", "grad_y"), ("layer_forward gru", "x")],
)
def test_operators_called_by_hand_have_no_derivative_and_say_so(case, argument):
    arguments = {**CASES[case], argument: CASES[case][argument].clone().requires_grad_()}
    with pytest.raises(RuntimeError, match=rf"fastrnn::{case.split()[0]} has no derivative.*fastrnn.functions"):
        find(case)(*arguments.values())
    with torch.no_grad():
        find(case)(*arguments.values())


def test_operators_called_by_hand_refuse_weights_in_a_list():
    arguments = forward_arguments("rnn")
    arguments["w_hh"][1].requires_grad_()
    with pytest.raises(RuntimeError, match="fastrnn::recurrence_forward has no derivative"):
        torch.ops.fastrnn.recurrence_forward(*arguments.values())
