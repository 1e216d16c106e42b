"""What is measured against what: fastrnn, torch.nn, hand-written loops, ONNX Runtime and OpenVINO, all on the same parameters."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import fastrnn
from benchmarks.shapes import Shape

Call = Callable[[], Any]

_TORCH = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
_OURS = {"lstm": fastrnn.LSTM, "gru": fastrnn.GRU, "rnn": fastrnn.RNN}


class Problem(NamedTuple):
    """A cell at a shape: torch's module and ours with the same parameters, an input, and a gradient for the output."""

    cell: str
    shape: Shape
    theirs: nn.RNNBase
    ours: fastrnn.RNN | fastrnn.LSTM | fastrnn.GRU
    x: Tensor  # (T, B, I)
    grad_y: Tensor  # (T, B, D*H)


def problem(cell: str, shape: Shape, device: str, dtype: torch.dtype = torch.float32, **options: Any) -> Problem:
    """`options`: fastrnn's keywords, which only `ours` has."""
    torch.manual_seed(0)
    sizes = (shape.input_size, shape.hidden_size, shape.layers)
    kwargs: dict[str, Any] = {"bidirectional": shape.directions == 2, "device": device, "dtype": dtype}
    theirs = _TORCH[cell](*sizes, **kwargs)
    ours = _OURS[cell](*sizes, **kwargs, **options)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(shape.steps, shape.batch, shape.input_size, device=device, dtype=dtype)
    grad_y = torch.randn(shape.steps, shape.batch, shape.directions * shape.hidden_size, device=device, dtype=dtype)
    return Problem(cell, shape, theirs, ours, x, grad_y)


# ------------------------------------------------------------------------------------------------------ what is called


def inference(module: Callable[[Tensor], Any], x: Tensor) -> Call:
    def call() -> Any:
        with torch.no_grad():
            return module(x)[0]

    return call


def training(module: nn.Module, x: Tensor, grad_y: Tensor, run: Callable[[Tensor], Any] | None = None) -> Call:
    """Forward and backward, gradients of the parameters and of the input (as inside a model) included; no optimizer.

    Returns what was computed: y, then the gradients of x and of the parameters.
    """
    x = x.detach().requires_grad_()
    parameters = list(module.parameters())
    forward = run or (lambda x: module(x)[0])

    def call() -> list[Tensor]:
        for tensor in (x, *parameters):
            tensor.grad = None
        y = forward(x)
        y.backward(grad_y)
        return [y, *(tensor.grad for tensor in (x, *parameters) if tensor.grad is not None)]

    return call


def in_cuda_graph(call: Call) -> Call:
    """The same work as one replayed CUDA graph: the competitor where launches dominate."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()

    def replay() -> Any:
        graph.replay()
        return result

    return replay


# ------------------------------------------------------------------------------------------------------- other engines


def _onnx_model(p: Problem) -> bytes:
    """One ONNX node with the module's parameters: what an exporter would write, gates in ONNX's order."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    order = {"lstm": (0, 3, 1, 2), "gru": (1, 0, 2), "rnn": (0,)}[p.cell]  # ONNX: i o f c; z r h

    def reordered(name: str) -> np.ndarray[Any, Any]:
        blocks = getattr(p.theirs, name).detach().chunk(len(order))
        return torch.cat([blocks[k] for k in order]).numpy()

    weights = {
        "w": reordered("weight_ih_l0")[None],
        "r": reordered("weight_hh_l0")[None],
        "b": np.concatenate([reordered("bias_ih_l0"), reordered("bias_hh_l0")])[None],
    }
    attributes: dict[str, Any] = {"hidden_size": p.shape.hidden_size}
    if p.cell == "gru":
        attributes["linear_before_reset"] = 1
    node = helper.make_node(p.cell.upper(), ["x", *weights], ["y"], **attributes)
    steps, batch, hidden = p.shape.steps, p.shape.batch, p.shape.hidden_size
    graph = helper.make_graph(
        [node],
        "rnn",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [steps, batch, p.shape.input_size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [steps, 1, batch, hidden])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def onnxruntime(p: Problem) -> Call | None:
    """None where it is not installed or the problem is more than one layer in one direction."""
    if not (importlib.util.find_spec("onnxruntime") and importlib.util.find_spec("onnx")) or p.shape[4:] != (1, 1):
        return None
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(_onnx_model(p), options, providers=["CPUExecutionProvider"])
    x = p.x.numpy()
    return lambda: torch.from_numpy(session.run(["y"], {"x": x})[0]).squeeze(1)


def openvino(p: Problem) -> Call | None:
    """As onnxruntime; in float32, tuned for latency."""
    if not (importlib.util.find_spec("openvino") and importlib.util.find_spec("onnx")) or p.shape[4:] != (1, 1):
        return None
    import openvino

    core = openvino.Core()
    config = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = core.compile_model(core.read_model(_onnx_model(p)), "CPU", config)
    request = compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(p.x.numpy(), shared_memory=True))

    def call() -> Tensor:
        request.infer()
        return torch.from_numpy(request.get_output_tensor().data).squeeze(1)

    return call


# ----------------------------------------------------------------------------------------------------------- correctness


def difference(ours: Any, theirs: Any) -> float:
    """The largest difference, each tensor's in units of its own largest value."""
    pairs = zip(ours, theirs, strict=True) if isinstance(ours, (list, tuple)) else [(ours, theirs)]
    relative = [(a.detach() - b.detach()).abs().max() / b.detach().abs().max().clamp_min(1e-30) for a, b in pairs]
    return torch.stack([r.double() for r in relative]).max().item()  # torch's max keeps NaN


_TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-9, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def uses_tf32() -> bool:
    """Whether torch's cuDNN RNNs, and ours with them, round float32 operands to TF32."""
    return torch.cuda.is_available() and getattr(torch.backends.cudnn, "rnn").fp32_precision == "tf32"  # noqa: B009


def tolerance(x: Tensor) -> float:
    """What rounding explains of a difference, for results computed from x."""
    return 1e-2 if x.is_cuda and x.dtype == torch.float32 and uses_tf32() else _TOLERANCE[x.dtype]


def check(problem: Problem, ours: Any, theirs: Any) -> float:
    """The difference; a wrong fast answer is no result.

    Raises:
        AssertionError: it is beyond what rounding explains.
    """
    found, allowed = difference(ours, theirs), tolerance(problem.x)
    if not found <= allowed:
        raise AssertionError(
            f"{problem.cell} {problem.shape}: results differ by {found:.3g} of their largest value, more than {allowed:.3g}"
        )
    return found
