"""Loads the compiled operators, and remembers for each backend why it could not.

``import fastrnn`` never fails for want of them: the reference needs none. Who asks for a missing backend is told
what was built, for what, and what is here.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from fastrnn._C import BuildInfo

_FOLDER = Path(__file__).parent
_REBUILD = "pip install --no-build-isolation --force-reinstall --no-deps . (in fastrnn's checkout)"

# What the operators take, as these Python files know it: `arguments_digest` of csrc/ops/schema.h.
ARGUMENTS = "45ac7bda0e51"

_why_not: dict[str, str] = {}


def build_info() -> BuildInfo | None:
    """How this copy of fastrnn was compiled, None where it was not."""
    try:
        from fastrnn import _C
    except ImportError:
        return None
    return _C.build_info()


def is_loaded(backend: str) -> bool:
    """Whether the operators of "cpu" or "cuda" are there."""
    return backend not in _why_not


def why_not(backend: str) -> str:
    """The reason in a sentence, for a backend that is not loaded."""
    return _why_not.get(backend, f"fastrnn has no kernels for {backend}")


def is_built_for(capability: tuple[int, int], archs: list[str]) -> bool:
    """Whether a GPU of this compute capability runs code compiled for ``archs`` ("8.0", "9.0a", "12.0+PTX")."""
    for arch in archs:
        number, _, ptx = arch.partition("+")
        specific = number.endswith("a")
        major, minor = (int(part) for part in number.rstrip("a").split("."))
        if (major, minor) == capability:
            return True
        if not specific and major == capability[0] and minor < capability[1]:
            return True
        if ptx and not specific and (major, minor) < capability:
            return True
    return False


def _built_and_here(info: BuildInfo) -> str:
    cuda = f" and CUDA {info['cuda']}" if info["cuda"] else ""
    here = f" and CUDA {torch.version.cuda}" if torch.version.cuda else ""
    return (
        f"It was built for torch {info['torch']}{cuda}; here is torch {torch.__version__}{here}. "
        f"Build it for this torch: {_REBUILD}"
    )


def arguments_digest() -> str:
    """Of the names of all arguments of the operators that are loaded, and of the function beside them (csrc/ops/python.cpp)."""
    text = ""
    for name in (
        "recurrence_forward",
        "recurrence_backward",
        "layer_forward",
        "layer_backward",
        "sum_of_squares",
        "clip_",
        "dropout_factors_",
    ):
        operator = getattr(torch.ops.fastrnn, name, None)
        text += f"{name} {[argument.name for argument in operator.default._schema.arguments] if operator else None} "
    with contextlib.suppress(ImportError):  # then it is not of these Python files, whatever it is
        text += str(importlib.import_module("fastrnn._ops_cpu").run_network.__doc__)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _load(backend: str, info: BuildInfo | None) -> str:
    """Load a backend's operators; the reason where that cannot be."""
    if info is None:
        return f"this copy of fastrnn has no compiled kernels for this Python. Build them: {_REBUILD}"
    name = f"_ops_{backend}"
    if backend == "cuda":
        if torch.version.cuda is None:
            return f"torch {torch.__version__} is built without CUDA"
        if info["cuda"] is None:
            return f"fastrnn was built for the CPU alone, because {info['without_cuda']}. Build it again: {_REBUILD}"
        if info["cuda"].split(".")[0] != torch.version.cuda.split(".")[0]:
            return f"fastrnn's {name} is for another CUDA. {_built_and_here(info)}"
        if not is_loaded("cpu"):
            return f"fastrnn's _ops_cpu, which it builds on, is not loaded: {why_not('cpu')}"
    files = sorted(_FOLDER.glob(f"{name}.*so"))
    if not files:
        return f"fastrnn's {name} is not in {_FOLDER}. {_built_and_here(info)}"
    try:
        torch.ops.load_library(files[0])
    except OSError as error:
        return f"fastrnn's {name} does not load: {error}. {_built_and_here(info)}"
    if backend == "cpu" and arguments_digest() != ARGUMENTS:  # its library has the schemas
        return (
            f"fastrnn's {name} was compiled from other sources than these Python files come with (was a checkout updated after "
            f"its build?). Build it again: {_REBUILD}"
        )
    return ""


def _load_all() -> None:
    info = build_info()
    for backend in ("cpu", "cuda"):
        reason = _load(backend, info)
        if reason:
            _why_not[backend] = reason


_load_all()
