"""The backends that every test of the recurrences runs on.

A test that asks for ``backend`` runs once per backend that works here; ``FASTRNN_TEST_BACKENDS=cpu,cuda`` names the ones to
run, and then one that is missing is an error.
"""

import os
import sys

import pytest
import torch
from emulator import build

import fastrnn
from fastrnn.masks import Masks
from fastrnn.ops import register_operators

ALL = ("reference", "cpu", "emulated", "cuda")


_named = os.environ.get("FASTRNN_TEST_BACKENDS")


def _load_emulated() -> str:
    """Compile the CUDA kernels for the CPU and load them; the reason where that cannot be."""
    if _named and "emulated" not in _named.split(","):
        return "not asked for"
    try:
        torch.ops.load_library(build.build_library())
    except build.Unavailable as error:
        return str(error)
    register_operators("fastrnn_emulated")
    return ""


_without_emulated = _load_emulated()


def _works(name: str) -> bool:
    try:
        with fastrnn.backend(name):
            return True
    except RuntimeError:
        return False


BACKENDS = (
    tuple(_named.split(","))
    if _named
    else tuple(
        # kernels that should be there and are not are an error, not a reason to test less
        name
        for name in ALL
        if (name == "cpu" and sys.platform == "linux") or _works(name)
    )
)


def pytest_report_header() -> list[str]:
    header = [f"fastrnn backends: {', '.join(BACKENDS)}"]
    return [*header, f"no emulated backend: {_without_emulated}"] if _without_emulated else header


@pytest.fixture(params=BACKENDS)
def backend(request):
    """The name of the backend that is chosen during the test."""
    with fastrnn.backend(request.param):
        yield request.param


@pytest.fixture
def fused_backend(backend):
    """The backends with kernels, for what only they promise."""
    if backend == "reference":
        pytest.skip("not promised of the reference")
    return backend


@pytest.fixture
def device(backend) -> torch.device:
    """Where that backend's tensors live."""
    return torch.device("cuda" if backend == "cuda" else "cpu")


@pytest.fixture(autouse=True)
def _same_start():
    """The same random numbers for each test, whatever ran before; few threads where several processes share the cores."""
    threads = torch.get_num_threads()
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _exact_float32(monkeypatch):
    """What is compared with exact results in float32 is not computed in tf32, as torch's default has it on a GPU."""
    if "cuda" in BACKENDS:
        monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "ieee")


@pytest.fixture
def drawn(monkeypatch) -> dict[str, torch.Tensor]:
    """The masks that modules draw, by name."""
    masks: dict[str, torch.Tensor] = {}
    draw = Masks.draw

    def keep(self, name, *args):
        masks[name] = draw(self, name, *args)
        return masks[name]

    monkeypatch.setattr(Masks, "draw", keep)
    return masks
