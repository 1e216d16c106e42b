"""Baselines beyond torch.nn: the right results, and a reason in the place of a time where there are none.

flashrnn and haste are not installed here: modules of the same signatures and layouts stand in for them.
"""

from __future__ import annotations

import json
import shutil
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import baselines, further, libraries, report, run
from benchmarks.shapes import Shape

SHAPE = Shape(3, 5, 4, 6)
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")


def flashrnn(Wx, R, b, states=None, function="lstm", config=None, backend="cuda_fused", dtype="bfloat16"):
    """flashrnn's function: g_t = R h_{t-1} + Wx_t + b per head; gates of an LSTM in the order i f z o."""
    assert dtype == str(Wx.dtype).removeprefix("torch.")
    assert states.shape[2] == 1
    state, found = states[:, :, 0], []
    for t in range(Wx.shape[1]):
        x = Wx[:, t].movedim(1, 0)  # (gates, B, heads, H)
        product = torch.einsum("ghop,bhp->gbho", R, state[0])
        if function == "gru":
            n_h, r_h, z_h = product
            r, z = torch.sigmoid(x[0] + r_h + b[1]), torch.sigmoid(x[1] + z_h + b[2])
            n = torch.tanh(x[2] + b[3] + r * (n_h + b[0]))
            state = torch.stack([(1 - z) * n + z * state[0]])
        elif function == "lstm":
            i, f, z, o = product + x + b[:, None]
            c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(z)
            state = torch.stack([torch.sigmoid(o) * torch.tanh(c), c])
        else:
            assert function == "elman"
            state = torch.tanh(product + x + b[:, None])
        found.append(state)
    y = torch.stack(found, 2)
    return y, y[:, :, -1:]


class HasteLayer(nn.Module):
    """haste's layers: kernel (I, gates*H), recurrent_kernel (H, gates*H), biases (gates*H)."""

    def __init__(self, input_size, hidden_size, gates, biases):
        super().__init__()
        self.hidden_size = hidden_size
        for name, rows in (("kernel", input_size), ("recurrent_kernel", hidden_size)):
            self.register_parameter(name, nn.Parameter(torch.zeros(rows, gates * hidden_size)))
        for name in biases:
            self.register_parameter(name, nn.Parameter(torch.zeros(gates * hidden_size)))

    def forward(self, input, state=None, lengths=None):
        h = c = input.new_zeros(input.size(1), self.hidden_size)
        outputs = []
        for x in input @ self.kernel + self.bias:
            h, c = self.step(x, h, c)
            outputs.append(h)
        return torch.stack(outputs), h[None]


class HasteLstm(HasteLayer):
    def __init__(self, input_size, hidden_size, batch_first=False, forget_bias=1.0, dropout=0.0, zoneout=0.0):
        super().__init__(input_size, hidden_size, 4, ["bias"])

    def step(self, x, h, c):
        i, g, f, o = (x + h @ self.recurrent_kernel).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class HasteGru(HasteLayer):
    def __init__(self, input_size, hidden_size, batch_first=False, dropout=0.0, zoneout=0.0):
        super().__init__(input_size, hidden_size, 3, ["bias", "recurrent_bias"])

    def step(self, x, h, c):
        (x_z, x_r, x_n), (h_z, h_r, h_n) = x.chunk(3, 1), (h @ self.recurrent_kernel + self.recurrent_bias).chunk(3, 1)
        z = torch.sigmoid(x_z + h_z)
        return z * h + (1 - z) * torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n), c


@pytest.fixture
def stand_ins(monkeypatch):
    modules = {"flashrnn": {"flashrnn": flashrnn}, "haste_pytorch": {"LSTM": HasteLstm, "GRU": HasteGru}}
    for name, contents in modules.items():
        module = types.ModuleType(name)
        module.__spec__ = types.SimpleNamespace(name=name)
        module.__dict__.update(contents)
        monkeypatch.setitem(sys.modules, name, module)


def measured(name: str, cell: str, mode: str, shape: Shape = SHAPE, dtype=torch.float64) -> further.Contender:
    """On the CPU, whatever the device of the library."""
    p = baselines.problem(cell, shape, "cpu", dtype)
    if mode == "train":
        expected = baselines.training(p.theirs, p.x, p.grad_y)()
    else:
        expected = baselines.inference(p.theirs, p.x)()
    return further.contender(further.BASELINES[name]._replace(cuda_only=False), p, mode, expected)


LIBRARIES = [("flashrnn", "lstm"), ("flashrnn", "gru"), ("flashrnn", "rnn"), ("haste", "lstm"), ("haste", "gru")]


@pytest.mark.parametrize("mode", ["train", "inference"])
@pytest.mark.parametrize(("name", "cell"), LIBRARIES)
@pytest.mark.usefixtures("stand_ins")
def test_parameters_and_gradients_are_mapped_to_a_librarys_layout_and_back(name, cell, mode):
    assert measured(name, cell, mode).difference < 1e-9


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.usefixtures("stand_ins")
def test_another_order_of_gates_is_a_wrong_result_not_a_time(monkeypatch, cell):
    order = {"lstm": (0, 1, 2, 3), "gru": (0, 1, 2)}
    monkeypatch.setattr(libraries.Haste, "_ORDER", order)
    with pytest.raises(libraries.LeftOut, match=f"wrong result: {cell} .*results differ by"):
        measured("haste", cell, "inference")


@pytest.mark.usefixtures("stand_ins")
def test_wrong_gradients_alone_are_a_wrong_result(monkeypatch):
    right = libraries.FlashRnn.gradients_as_torch
    monkeypatch.setattr(libraries.FlashRnn, "gradients_as_torch", lambda self: [2 * g for g in right(self)])
    with pytest.raises(libraries.LeftOut, match="wrong result"):
        measured("flashrnn", "gru", "train")


@pytest.mark.usefixtures("stand_ins")
def test_results_of_another_shape_are_wrong_results(monkeypatch):
    monkeypatch.setattr(sys.modules["flashrnn"], "flashrnn", lambda *a, **o: [t[..., 1:] for t in flashrnn(*a, **o)])
    with pytest.raises(libraries.LeftOut, match="wrong result"):
        measured("flashrnn", "lstm", "inference")


@pytest.mark.usefixtures("stand_ins")
def test_what_a_library_cannot_run_is_left_out_with_its_own_words(monkeypatch):
    def fails(*arguments, **options):
        raise ValueError("no tiling for this size\nmore")

    monkeypatch.setattr(sys.modules["flashrnn"], "flashrnn", fails)
    with pytest.raises(libraries.LeftOut, match=r"^ValueError: no tiling for this size$"):
        measured("flashrnn", "lstm", "train")
    with pytest.raises(libraries.LeftOut, match="has no plain RNN"):
        measured("haste", "rnn", "train")
    with pytest.raises(libraries.LeftOut, match="has no bfloat16"):
        measured("haste", "lstm", "train", dtype=torch.bfloat16)
    with pytest.raises(libraries.LeftOut, match="one layer in one direction only"):
        measured("flashrnn", "lstm", "train", SHAPE._replace(layers=2))


@pytest.mark.parametrize(("name", "package"), [("flashrnn", "flashrnn"), ("haste", "haste_pytorch")])
def test_an_absent_library_is_left_out(monkeypatch, name, package):
    monkeypatch.setattr(libraries.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(libraries.LeftOut, match=f"{package} is not installed"):
        measured(name, "lstm", "train")


@needs_compiler
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_the_compiled_loop_computes_what_torch_does(cell):
    found = measured("compiled", cell, "train")
    assert found.difference < 1e-9
    assert found.seconds_of_first_call > 0


@needs_compiler
def test_what_is_measured_and_what_is_left_out_is_reported(tmp_path: Path, monkeypatch, capsys):
    out = tmp_path / "results.json"
    command = [
        "run",
        "--device",
        "cpu",
        "--shapes",
        "3x4x5x6",
        "--cells",
        "rnn",
        "--modes",
        "inference",
        "--rounds",
        "2",
    ]
    monkeypatch.setattr(sys, "argv", [*command, "--baselines", "compiled,haste", "--out", str(out)])
    monkeypatch.setattr("benchmarks.timing.TURN_SECONDS", 0.0)
    run.main()
    assert "without haste: CUDA only" in capsys.readouterr().out
    (record,) = json.loads(out.read_text())["results"]
    assert set(record["times"]) == {"fastrnn", "torch.nn", "loop over a compiled step"}
    text = report.markdown([out])
    assert "headline: inference, speed-up over loop over a compiled step" in text
    assert "loop over a compiled step: seconds of the first call, inference" in text
    assert "| headline | haste | CUDA only | everywhere |" in text
