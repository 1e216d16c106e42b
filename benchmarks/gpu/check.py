"""Are a team's kernels right? Values, gradients and norms of many layers against the reference, item by item, without pytest.

An item is right when its error against float64 is at most twice (gradients: three times) that of the reference in the same dtype,
and two runs give the same bits.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import fastrnn
from benchmarks.gpu.records import Records
from fastrnn.recording import new_keys, recorded
from tests.cases import Case, Layer, make_layer
from tests.compare import gradients

TEAMS = ("matmul", "stepwise", "block", "cluster", "grid")
SIZES = ((1, 1), (7, 3), (50, 10), (200, 33), (300, 8), (512, 16), (650, 3), (1150, 1))  # H, B
ARITHMETICS = ("float16", "bfloat16", "float32", "tf32")


def cases(quick: bool) -> Iterator[tuple[Case, str, str | None]]:
    """(layer, arithmetic, clip mode). ``quick``: a few small ones, for a tool that slows kernels down a hundredfold."""
    if quick:
        for cell in ("lstm", "gru", "rnn_tanh"):
            yield (
                Case(cell, "lengths", directions=2, site="state", steps=3, batch=3, hidden_size=24, input_size=8),
                "float16",
                "norm",
            )
        return
    options = itertools.cycle(
        itertools.product(
            ("padded", "lengths", "packed"), (1, 2), (None, "state", "candidate"), (None, "norm", "value")
        )
    )
    for (hidden, batch), cell, arithmetic in itertools.product(
        SIZES, ("lstm", "gru", "rnn_tanh", "rnn_relu"), ARITHMETICS
    ):
        layout, directions, site, clip = next(options)
        if site == "candidate" and cell.startswith("rnn"):
            site = "state"
        yield (
            Case(cell, layout, directions, site=site, steps=9, batch=batch, hidden_size=hidden, input_size=16),
            arithmetic,
            clip,
        )


def check_capture(team: str) -> tuple[str, dict[str, Any]]:
    """Whether a CUDA graph takes forward and backward of a shape that has never run, and computes what a plain run computes."""
    layer = make_layer(Case("gru", "lengths", directions=2, steps=5, batch=9, hidden_size=64), torch.float16, "cuda")
    inputs = layer.require_grad()

    def both() -> list[Tensor]:
        outputs = layer.apply("cuda", *inputs, plan=team)
        loss = torch.stack([output.float().square().sum() for output in outputs]).sum()
        return [output.detach() for output in outputs] + list(torch.autograd.grad(loss, inputs))

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = both()
    graph.replay()
    same = all(a.equal(b) for a, b in zip(captured, both(), strict=True))
    return ("ok" if same else "wrong"), {"bit_equal": same}


# What an error says after which nothing more runs in this process.
_LOST = ("CUDA error", "unspecified launch failure", "illegal memory access")
_REFUSED = ("which cannot run this", "no plan fits this device")


def check(records: Records, backend: str, team: str, quick: bool) -> None:
    device = "cuda" if backend == "cuda" else "cpu"
    settings: Any = torch.backends.cudnn.rnn  # torch's types do not know the setting
    settings.fp32_precision = "ieee"  # float32 means float32 here; tf32 is asked for by name
    for case, arithmetic, clip in cases(quick):
        name = f"{team} {case} {arithmetic} {clip or 'no'} clip"
        try:
            status, values = check_one(case, arithmetic, clip, backend, team, device)
        except (RuntimeError, ValueError) as error:
            text = str(error)
            if any(words in text for words in _LOST):
                records.add(name, "error", what=text[:500])
                raise SystemExit(f"the GPU's context is lost: {text[:200]}") from error
            refused = any(words in text for words in _REFUSED)
            status, values = ("refused" if refused else "error"), {"what": text[:500]}
        records.add(name, status, **values)
    if backend == "cuda" and not quick:
        try:
            status, values = check_capture(team)
        except RuntimeError as error:
            status, values = "error", {"what": str(error)[:500]}
        records.add(f"{team} captured in a CUDA graph, a shape that has never run", status, **values)


def check_one(
    case: Case, arithmetic: str, clip: str | None, backend: str, team: str, device: str
) -> tuple[str, dict[str, Any]]:
    is_tf32 = arithmetic == "tf32"
    dtype = torch.float32 if is_tf32 else getattr(torch, arithmetic)
    layer = make_layer(case, dtype, device)
    layer.weights = [w * case.hidden_size**-0.5 for w in layer.weights]
    options: dict[str, Any] = {} if clip is None else {"clip_mode": clip, "clip_threshold": 0.05}
    plan = f"{team}+tf32" if is_tf32 else team
    ours, again = (run(layer, backend, plan=plan, **options) for _ in range(2))
    # float16 has as many bits as tf32
    plain = run(layer.to(torch.float16) if is_tf32 else layer, "reference", **options)
    exact = run(layer.to(torch.float64), "reference", **options)
    worst = 0.0
    for index, (a, b, c) in enumerate(zip(ours, plain, exact, strict=True)):
        allowed = 2 if index < len(ours) - len(layer.names()) - 1 else 3
        scale = max(c.abs().max().item(), 1e-30)
        error, usual = (((t.double() - c).square().mean().sqrt() / scale).item() for t in (a, b))
        worst = max(
            worst, error / max(allowed * usual, 0.5 * torch.finfo(dtype).eps) if error == error else float("inf")
        )
    same = all(a.equal(b) for a, b in zip(ours, again, strict=True))
    status = "ok" if worst <= 1 and same else "wrong"
    return status, {"error": worst, "bit_equal": same}


def run(layer: Layer, backend: str, **options: Any) -> list[Tensor]:
    """Outputs, gradients of all inputs, norms of the recurrent gradient."""
    key = new_keys(1).start
    layer = layer.to(layer.x.dtype)
    inputs = layer.require_grad()
    outputs = layer.apply(backend, *inputs, slot=torch.zeros(1), record_key=key, **options)
    padded = [layer.padded(outputs[0]), *outputs[1:]]
    grads = gradients(padded, inputs)
    found = recorded(key)
    assert found is not None
    fastrnn.recording.forget(range(key, key + 1))
    return [t.detach() for t in (*padded, *grads, found.norms)]
