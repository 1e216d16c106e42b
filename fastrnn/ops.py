"""The operators of one layer's recurrence: allocation around ``torch.ops.fastrnn.*``.

Each function takes the backend's name and has the reference's signature and results (``fastrnn.reference``), so that the
autograd functions are written once. The C++ operators only fill tensors they are given; they never allocate.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastrnn import _library, reference
from fastrnn.apply import is_watched
from fastrnn.reference import CELLS, NUM_GATES, Backward, Forward, compute_dtype

DROPOUT_SITES = ("state", "candidate")
CLIP_MODES = (None, "norm", "value")

NAMESPACES = {"cpu": "fastrnn", "cuda": "fastrnn", "emulated": "fastrnn_emulated"}


def register_operators(namespace: str) -> None:
    """Tell torch of the operators of a namespace what it cannot see.

    To torch.compile: they return nothing, what they write has been allocated by then. To autograd: they have no derivative, so
    that whoever calls them by hand gets an error and no silent zeros.
    """
    library = torch.library.Library(namespace, "IMPL")
    _libraries.append(library)
    for name in ("recurrence_forward", "recurrence_backward", "layer_forward", "layer_backward", "dropout_factors_"):
        if hasattr(getattr(torch.ops, namespace), name):
            torch.library.register_fake(f"{namespace}::{name}", lambda *args: None)
            found = getattr(getattr(torch.ops, namespace), name).default
            library.impl(name, functools.partial(_without_derivative, found), "Autograd", with_keyset=True)
            _operators[namespace, name] = found


_libraries: list[torch.library.Library] = []
_operators: dict[tuple[str, str], Any] = {}  # by namespace and name


def _without_derivative(found: Any, keys: Any, *args: Any) -> None:
    if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
        raise RuntimeError(
            f"{found.name()} has no derivative: apply a function of fastrnn.functions, or call it under torch.no_grad()"
        )
    found.redispatch(keys & torch._C._after_autograd_keyset, *args)


# The CPU's functions without torch's dispatcher around them, where there are any (csrc/ops/python.cpp).
plain: Any = None
if _library.is_loaded("cpu"):
    register_operators("fastrnn")
    plain = importlib.import_module("fastrnn._ops_cpu")
    if not plain.initialize(Tensor, torch.nn.Parameter):
        plain = None


def below_autograd() -> contextlib.AbstractContextManager[None]:
    """What an autograd function's forward calls needs no look at derivatives: the operators then cost no Python of their own."""
    if torch.compiler.is_compiling():
        return contextlib.nullcontext()
    return torch._C._AutoDispatchBelowAutograd()


def operator(backend: str, name: str) -> Any:
    return _operators[NAMESPACES[backend], name]


def run_on_cpu(name: str, *arguments: Any) -> None:
    """An operator, past the dispatcher where nobody looks.

    Raises:
        RuntimeError: a tensor is not on the CPU.
    """
    if not is_watched():
        if plain is not None and getattr(plain, name)(*arguments):
            return
        # on "meta" the operator would do nothing, and say nothing
        for argument in arguments:
            for tensor in argument if isinstance(argument, list) else [argument]:
                if isinstance(tensor, Tensor) and tensor.device.type != "cpu":
                    raise RuntimeError(
                        f"{name} runs on the CPU, but a tensor of {list(tensor.shape)} is on {tensor.device}"
                    )
    _operators["fastrnn", name](*arguments)


def contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _flat(tensor: Tensor | None, rows_dim: int) -> Tensor | None:
    """The operators take rows in one dimension, padded or packed. A view where the tensor is contiguous."""
    if tensor is None:
        return None
    return tensor.contiguous().flatten(rows_dim, -2)


def _shaped(tensor: Tensor, rows: torch.Size, rows_dim: int) -> Tensor:
    """What the operators wrote, in the caller's rows."""
    if len(rows) == 1:
        return tensor
    return tensor.view(*tensor.shape[:rows_dim], *rows, tensor.size(-1))


def _workspace(
    backend: str, cell: str, h0: Tensor, hidden_size: int, *, backward: bool, recorded_steps: int = 0
) -> Tensor | None:
    """Scratch for the GPU kernels, enough for every plan (csrc/cuda/recurrence.cuh: cut_workspace, matmul_run.cuh).

    ``recorded_steps``: T where norms are recorded and not clipped by.
    """
    if backend not in ("cuda", "emulated"):
        return None
    num_directions, batch, _ = h0.shape
    num_gates = NUM_GATES[cell]
    element, acc = h0.dtype.itemsize, compute_dtype(h0.dtype).itemsize
    # A team's.
    slices = (batch + 7) // 8
    samples = 8 * (slices + 1)  # of whole slices of 8 or 16
    rows = (num_gates if backward else 1) * hidden_size + 32
    by_team = slices * num_directions * 2 * 16 * 128  # counters
    # the exchange; or, two-level, parts of dh: of all teams, or of those of a launch (csrc/plan.cpp: kPartsBytes)
    exchange: int | torch.SymInt = num_directions * samples * 2 * rows * element
    # of a sample, by parity of the turn: 16 clusters have parts for all units, of which there are 18 / 16 with those that fill up
    parts = 2 * 18 * hidden_size * 4
    at_once = torch.sym_min(num_directions * samples * parts, torch.sym_max(16 * parts, 16 << 20))
    if backward and acc == 4:
        exchange = torch.sym_max(exchange, at_once)
    by_team += 2 * num_directions * batch * hidden_size * acc  # carried state
    by_team += batch * 8  # order of the samples
    if backward:
        by_team += num_directions * samples * 2 * ((hidden_size + 7) // 8) * 8  # norms
        by_team += slices * num_directions * (num_gates + 1) * hidden_size * acc  # bias
        by_team += num_directions * samples * recorded_steps * ((hidden_size + 15) // 16) * 8  # sums of squares
    # Of the plan "matmul": operand, product, state, and the same of a projection; in backward grad_bias of each sample.
    numbers = (num_gates + 1) * element + ((num_gates + 5) if backward else (num_gates + 3)) * acc
    by_matmul = num_directions * batch * hidden_size * numbers
    num_bytes = 9 * 256 + torch.sym_max(by_team + exchange, by_matmul)  # each part begins at a multiple of 256
    return h0.new_empty(num_bytes, dtype=torch.uint8)


def rnn_uses_tf32() -> bool:
    """Whether products of float32 may be tf32, as torch says of cuDNN's RNNs."""
    rnn: Any = torch.backends.cudnn.rnn
    return bool(rnn.fp32_precision == "tf32")


def _with_tf32(backend: str, plan: str, dtype: torch.dtype) -> str:
    if plan.endswith("+tf32") or backend != "cuda" or dtype != torch.float32 or not rnn_uses_tf32():
        return plan
    return f"{plan}+tf32"


_NORM_BLOCK = 1 << 14  # csrc/norms.h: kNormBlock


def sum_of_squares(tensors: list[Tensor], known: list[Tensor], out: Tensor, *, root: bool = False) -> None:
    """``out`` (one element) becomes the sum of squares over all tensors and of the sums already known, or its root.

    By the fused kernels of the tensors' device. Squares are summed in float64, in an order that only the shapes decide.

    Args:
        tensors: dense, of any float dtypes.
        known: each (1,) float64.
    """
    num_sums = len(known) + sum(-(-tensor.numel() // _NORM_BLOCK) for tensor in tensors)
    partial = torch.empty(num_sums, dtype=torch.float64, device=out.device)
    torch.ops.fastrnn.sum_of_squares.default(tensors, known, partial, out, root)


# ------------------------------------------------------------------------------------------------------- recurrence


def forward_outputs(
    cell: str,
    like: Tensor,
    rows: torch.Size,
    hidden_size: int,
    h0: Tensor,
    c0: Tensor | None,
    save: bool,
    projects: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """y, h_n, c_n, cells, n_h and hidden for the operators to fill."""
    num_directions, _, state_size = h0.shape
    per_unit = (num_directions, *rows, hidden_size)
    # In its final shape: a function's output that is a view could not be modified in place.
    y = like.new_empty((*rows, num_directions * state_size))
    h_n = torch.empty_like(h0, memory_format=torch.contiguous_format)
    c_n = None if c0 is None else torch.empty_like(c0, memory_format=torch.contiguous_format)
    cells = like.new_empty(per_unit, dtype=compute_dtype(like.dtype)) if save and cell == "lstm" else None
    n_h = like.new_empty(per_unit) if save and cell == "gru" else None
    hidden = like.new_empty(per_unit) if save and projects else None
    return y, h_n, c_n, cells, n_h, hidden


def forward_stages(
    backend: str,
    cell: str,
    dropout_site: str,
    gates: Tensor,
    w_hh: list[Tensor],
    b_hn: list[Tensor],
    w_hr: list[Tensor],
    h0: Tensor,
    c0: Tensor | None,
    mask: Tensor | None,
    lengths: Tensor | None,
    offsets: Tensor | None,
    *,
    save: bool,
    plan: str,
    chunk: int = 0,
) -> tuple[Forward, Callable[[int], None]]:
    """What :func:`recurrence_forward` fills, and a function that does: all of it at stage 0, or with ``chunk`` a stage of a stack.

    Of a stack (csrc/params.h: Layers) the layers stand in place of the directions; a stage reads and writes its chunks of ``gates``.
    """
    num_directions, _, state_size = h0.shape
    rows = gates.shape[1:-1]
    num_rows = math.prod(rows)
    hidden_size = w_hh[0].size(0) // NUM_GATES[cell]
    y, h_n, c_n, cells, n_h, hidden = forward_outputs(cell, gates, rows, hidden_size, h0, c0, save, bool(w_hr))
    has_gates = save and cell in ("lstm", "gru")
    run = functools.partial(
        operator(backend, "recurrence_forward"),
        CELLS.index(cell),
        DROPOUT_SITES.index(dropout_site),
        gates.view(num_directions, num_rows, gates.size(-1)),
        [w.contiguous() for w in w_hh],
        [b.contiguous() for b in b_hn],
        [w.contiguous() for w in w_hr],
        h0.contiguous(),
        contiguous(c0),
        contiguous(mask),
        contiguous(lengths),
        contiguous(offsets),
        y.view(num_rows, num_directions * state_size),
        h_n,
        c_n,
        save,
        _flat(cells, 1),
        _flat(n_h, 1),
        _flat(hidden, 1),
        _workspace(backend, cell, h0, hidden_size, backward=False),
        _with_tf32(backend, plan, gates.dtype),
        chunk,
    )
    return Forward(y, h_n, c_n, gates if has_gates else None, cells, n_h, hidden), run


def recurrence_forward(backend: str, cell: str, dropout_site: str, *tensors: Any, save: bool, plan: str) -> Forward:
    """One layer's whole sequence, both directions (csrc/params.h: ForwardParams); ``tensors`` as :func:`forward_stages`.

    ``gates`` is consumed: the backend may write the activated gates over it. Without ``save`` nothing that backward needs
    is kept.
    """
    if backend == "reference":
        return reference.recurrence_forward(cell, dropout_site, *tensors)
    forward, run = forward_stages(backend, cell, dropout_site, *tensors, save=save, plan=plan)
    run(0)
    return forward


def backward_stages(
    backend: str,
    cell: str,
    dropout_site: str,
    forward: Forward,
    w_hh: list[Tensor],
    w_hr: list[Tensor],
    h0: Tensor,
    c0: Tensor | None,
    mask: Tensor | None,
    lengths: Tensor | None,
    offsets: Tensor | None,
    grad_y: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    *,
    clip_mode: str | None,
    clip_threshold: float,
    grad_scale: Tensor | None,
    record: bool,
    need_h_prev: bool,
    plan: str,
    chunk: int = 0,
) -> tuple[Backward, Callable[[int], None]]:
    """What :func:`recurrence_backward` fills, and a function that does, as :func:`forward_stages`.

    Of a stack ``grad_y`` is [L, T, B, H], and a stage reads its chunks.
    """
    gates, y = forward.gates, forward.y
    acc = compute_dtype(y.dtype)
    num_directions, batch, state_size = h0.shape
    rows = y.shape[:-1]
    num_rows = math.prod(rows)
    steps = rows[0] if offsets is None else offsets.size(0)
    num_sums = 4 if cell == "gru" else NUM_GATES[cell]
    hidden_size = w_hh[0].size(0) // NUM_GATES[cell]
    per_gate = (num_directions, num_rows, w_hh[0].size(0))
    grad_gates = y.new_empty(per_gate)
    grad_n_h = y.new_empty((num_directions, num_rows, hidden_size)) if cell == "gru" else None
    per_state = (num_directions, num_rows, state_size)
    grad_h = y.new_empty(per_state) if w_hr else None
    h_prev = y.new_empty(per_state) if need_h_prev else None
    grad_h0 = torch.empty_like(h0, memory_format=torch.contiguous_format)
    grad_c0 = None if c0 is None else torch.empty_like(c0, memory_format=torch.contiguous_format)
    grad_bias = y.new_empty((num_directions, num_sums * hidden_size), dtype=acc)
    norms = y.new_empty((num_directions, steps, batch), dtype=acc) if record else None
    clipped = y.new_empty((num_directions, steps, batch), dtype=torch.bool) if record else None
    run = functools.partial(
        operator(backend, "recurrence_backward"),
        CELLS.index(cell),
        DROPOUT_SITES.index(dropout_site),
        _flat(gates, 1),
        _flat(forward.cells, 1),
        _flat(forward.n_h, 1),
        _flat(y, 0),
        [w.contiguous() for w in w_hh],
        [w.contiguous() for w in w_hr],
        h0.contiguous(),
        contiguous(c0),
        contiguous(mask),
        contiguous(lengths),
        contiguous(offsets),
        _flat(grad_y, 1 if chunk > 0 else 0),
        contiguous(grad_h_n),
        contiguous(grad_c_n),
        CLIP_MODES.index(clip_mode),
        clip_threshold,
        grad_scale,
        norms,
        clipped,
        grad_gates,
        grad_n_h,
        grad_h,
        grad_h0,
        grad_c0,
        grad_bias,
        h_prev,
        _workspace(
            backend,
            cell,
            h0,
            hidden_size,
            backward=True,
            recorded_steps=steps if record and clip_mode != "norm" else 0,
        ),
        _with_tf32(backend, plan, y.dtype),
        chunk,
    )
    # Without need_h_prev the caller reads h_{t-1} from y; the reference always gives it.
    grad_gates = _shaped(grad_gates, rows, 1)
    grad_n_h, grad_h, h_prev = (None if t is None else _shaped(t, rows, 1) for t in (grad_n_h, grad_h, h_prev))
    filled = Backward(
        grad_gates, grad_n_h, grad_h, grad_h0, grad_c0, grad_bias, h_prev if h_prev is not None else y, norms, clipped
    )
    return filled, run


def recurrence_backward(
    backend: str,
    cell: str,
    dropout_site: str,
    forward: Forward,
    *tensors: Any,
    clip_mode: str | None,
    clip_threshold: float,
    grad_scale: Tensor | None,
    **options: Any,
) -> Backward:
    """Backpropagation through time of :func:`recurrence_forward` (csrc/params.h: BackwardParams).

    ``tensors``, ``options`` as :func:`backward_stages`.
    """
    if backend == "reference":
        by_reference: Any = reference.recurrence_backward
        backward: Backward = by_reference(
            cell, dropout_site, forward.gates, forward.cells, forward.n_h, forward.y, *tensors,
            clip_mode=clip_mode, clip_threshold=clip_threshold, grad_scale=grad_scale,
        )  # fmt: skip
        return backward
    backward, run = backward_stages(
        backend, cell, dropout_site, forward, *tensors, clip_mode=clip_mode, clip_threshold=clip_threshold,
        grad_scale=grad_scale, **options,
    )  # fmt: skip
    run(0)
    return backward
