"""Which implementation runs: ``fastrnn.backend``."""

from __future__ import annotations

import os
import re
import warnings
from types import TracebackType

import torch

from fastrnn import _library

NAMES = ("auto", "cuda", "cpu", "reference", "emulated")

_chosen = "auto"
_told: set[str] = set()

_PLANS = re.compile(
    r"(all|(block|cluster|grid|stepwise|matmul)(:(blocks|samples|cluster)=\d+(,(blocks|samples|cluster)=\d+)*)?)?"
)
_checked_plans = ("", "")


def _check_possible(name: str) -> None:
    if name not in NAMES:
        raise ValueError(f"backend should be one of 'auto', 'cuda', 'cpu', 'reference', got {name!r}")
    if name in ("cuda", "cpu") and not _library.is_loaded(name):
        raise RuntimeError(f"backend {name!r} is not available: {_library.why_not(name)}")
    if name == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("backend 'cuda' is not available: torch sees no CUDA device")
    if name == "emulated" and not hasattr(torch.ops.fastrnn_emulated, "recurrence_forward"):
        raise RuntimeError("backend 'emulated' exists in fastrnn's own tests alone")


class backend:
    """Choose what runs the recurrences, from here on or inside a ``with`` block.

    ``fastrnn.backend("cpu")`` chooses for good; ``with fastrnn.backend("reference"): ...`` restores the choice before.

    Args:
        name: "auto" (the fused kernels for the input's device where they were built, else the reference, said once),
            "cuda", "cpu" (those kernels, or an error), or "reference" (plain torch, any device).

    Raises:
        ValueError: no such backend.
        RuntimeError: it cannot run here; the message says why.
    """

    def __init__(self, name: str) -> None:
        global _chosen
        _check_possible(name)
        self._before = _chosen
        _chosen = name

    def __enter__(self) -> backend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _chosen
        _chosen = self._before

    def __repr__(self) -> str:
        return f"fastrnn.backend({_chosen!r})"


def check_plans() -> None:
    """
    Raises:
        ValueError: FASTRNN_PLANS or FASTRNN_WAVEFRONT is nothing that it can be, whether or not what runs here has plans.
    """
    global _checked_plans
    plans, wavefront = os.environ.get("FASTRNN_PLANS", ""), os.environ.get("FASTRNN_WAVEFRONT", "")
    if (plans, wavefront) == _checked_plans:
        return
    if not _PLANS.fullmatch(plans):
        raise ValueError(
            f'FASTRNN_PLANS is "{plans}", expected "all", "block", "cluster", "grid", "stepwise" or "matmul", after a plan '
            'options as in "grid:blocks=64,samples=8,cluster=8", or nothing'
        )
    if wavefront not in ("", "auto") and not wavefront.isdecimal():
        raise ValueError(
            f'FASTRNN_WAVEFRONT is "{wavefront}", expected "auto", "0" or the steps of a chunk, or nothing'
        )
    _checked_plans = (plans, wavefront)


def may_be_cpu() -> bool:
    """Whether :func:`resolve` says "cpu" of tensors there."""
    return _chosen in ("auto", "cpu") and _library.is_loaded("cpu")


def resolve(device: torch.device) -> str:
    """The backend that runs on tensors of this device: "cuda", "cpu", "emulated" or "reference".

    Raises:
        RuntimeError: the chosen backend does not run there.
        ValueError: as check_plans.
    """
    if not torch.compiler.is_compiling():
        check_plans()
    if _chosen == "reference":
        return _chosen
    if _chosen == "auto":
        if device.type in ("cpu", "cuda") and _library.is_loaded(device.type):
            return device.type
        if device.type not in (*_told, "meta") and not torch.compiler.is_compiling():
            _told.add(device.type)
            warnings.warn(
                f"fastrnn runs its slow reference on {device.type}: {_library.why_not(device.type)}", stacklevel=4
            )
        return "reference"
    runs_on = "cuda" if _chosen == "cuda" else "cpu"
    if device.type != runs_on:
        raise RuntimeError(f"backend {_chosen!r} runs on {runs_on} tensors, but the input is on {device}")
    return _chosen
