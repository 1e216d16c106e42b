"""Loading of the compiled operators: what is said where they are missing or made for something else."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastrnn
from fastrnn import _library, info

PACKAGE = Path(fastrnn.__file__).parent
ABOUT = {
    "version": "1.0",
    "torch": "2.98.0",
    "cuda": "13.0",
    "cuda_archs": ["8.0", "9.0a"],
    "without_cuda": None,
    "compiler": "gcc 12",
}
compiled = pytest.mark.skipif(not _library.is_loaded("cpu"), reason="the CPU kernels are not built")


def run(python: str, script: str, folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    result = subprocess.run(
        [python, "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_without_compiled_parts_the_reference_runs_and_says_so_once(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "fastrnn", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    script = """
import json, sys, warnings, torch
# an editable install would find the compiled parts of another copy
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    import fastrnn
    for _ in range(3):
        y, h = fastrnn.GRU(2, 3)(torch.randn(4, 1, 2))
print(json.dumps([str(w.message) for w in told if "fastrnn" in str(w.message)]))
try:
    fastrnn.backend("cpu")
except RuntimeError as error:
    print(error)
"""
    warnings, error = run(sys.executable, script, tmp_path).strip().split("\n")
    assert len(json.loads(warnings)) == 1
    for text in (warnings, error):
        assert "no compiled kernels for this Python. Build them: pip install --no-build-isolation" in text


def test_a_library_for_another_cuda_is_not_loaded(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    reason = _library._load("cuda", ABOUT)
    assert "for another CUDA" in reason
    assert f"built for torch 2.98.0 and CUDA 13.0; here is torch {torch.__version__} and CUDA 12.8" in reason
    assert "pip install --no-build-isolation" in reason


def test_a_torch_without_cuda_does_not_try_the_cuda_library(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert _library._load("cuda", ABOUT) == f"torch {torch.__version__} is built without CUDA"


def test_a_build_without_cuda_says_why(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    reason = _library._load("cuda", {**ABOUT, "cuda": None, "without_cuda": "nvcc was not found"})
    assert "built for the CPU alone, because nvcc was not found" in reason


def test_a_missing_library_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(_library, "_FOLDER", tmp_path)
    assert f"fastrnn's _ops_cpu is not in {tmp_path}. It was built for" in _library._load("cpu", ABOUT)


def test_a_library_that_does_not_load_says_what_it_was_built_for(monkeypatch, tmp_path):
    (tmp_path / "_ops_cpu.abi3.so").write_bytes(b"not a library")
    monkeypatch.setattr(_library, "_FOLDER", tmp_path)
    reason = _library._load("cpu", ABOUT)
    assert reason.startswith("fastrnn's _ops_cpu does not load: ")
    assert "_ops_cpu.abi3.so" in reason
    assert f"built for torch 2.98.0 and CUDA 13.0; here is torch {torch.__version__}" in reason


@pytest.mark.parametrize(
    ("capability", "archs", "runs"),
    [
        ((9, 0), ["8.0", "9.0a"], True),
        ((8, 6), ["8.0"], True),
        ((8, 0), ["8.6"], False),
        ((9, 0), ["8.0"], False),
        ((9, 0), ["8.0+PTX"], True),
        ((10, 0), ["9.0a"], False),
        ((12, 1), ["12.0"], True),
        ((12, 0), ["9.0a+PTX"], False),
        ((12, 0), [], False),
    ],
)
def test_which_gpus_an_architecture_serves(capability, archs, runs):
    assert _library.is_built_for(capability, archs) is runs


@compiled
def test_the_report_names_versions_backends_and_processor():
    lines = dict(line.split("  ", 1) for line in info.report().split("\n"))
    lines = {name.strip(): value.strip() for name, value in lines.items()}
    assert torch.__version__ in lines["torch"]
    assert lines["fastrnn"].startswith(_library.build_info()["version"])
    assert lines["backend cpu"].startswith("available, ")
    assert set(lines) == {
        "fastrnn", "torch", "python", "backend cpu", "backend cuda", "backend reference", "processor", "GPU",
    }  # fmt: skip


@compiled
def test_the_report_names_the_plans_of_every_gpu(monkeypatch):
    _C = pytest.importorskip("fastrnn._C")
    from fastrnn import plans

    clusters = [132 // size for size in range(1, 17)]
    limits = [_C.DeviceLimits(9, 0, 132, 232448, clusters), _C.DeviceLimits(8, 0, 108, 166912, [])]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: [(9, 0), (8, 0)][index])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: ["H100", "A100"][index])
    monkeypatch.setattr(_library, "is_loaded", lambda _: True)
    monkeypatch.setattr(plans, "device_limits", lambda _, device: limits[device.index])
    for allowed, of_h100, of_a100 in [
        ("all", r"(cluster|grid) of \d+ blocks( in clusters of \d+)?, predicted \d+\.\d\d us a step", "grid of "),
        ("cluster", "cluster of ", 'plan is "cluster", which cannot run this in forward: the device has no'),
        ("", "stepwise of ", "stepwise of "),
    ]:
        monkeypatch.setenv("FASTRNN_PLANS", allowed)
        lines = info._gpus([])
        first, second = (
            lines.index(f"{name}, compute capability {number}.0") for name, number in (("H100", 9), ("A100", 8))
        )
        assert (first, second, len(lines)) == (0, 13, 26)
        for begin, expected in ((first, of_h100), (second, of_a100)):
            layers = [line.split(": ", 1)[0] for line in lines[begin + 1 : begin + 13]]
            assert len(set(layers)) == 12
            name = "LSTM in bfloat16, hidden_size 512, batch 32, forward: "
            (text,) = (line for line in lines[begin + 1 : begin + 13] if line.startswith(name))
            assert re.match(expected, text.removeprefix(name)), text


def test_the_command_prints_the_report():
    result = subprocess.run([sys.executable, "-m", "fastrnn"], capture_output=True, text=True, check=True)

    def without_threads(report: str) -> str:  # this process may have been given fewer
        return re.sub(r"\d+ threads", "N threads", report)

    assert without_threads(result.stdout) == without_threads(info.report()) + "\n"


TRAIN = """
import json, torch, fastrnn
torch.manual_seed(0)
torch.set_num_threads(2)
rnn = fastrnn.LSTM(5, 32, num_layers=2, bidirectional=True)
with fastrnn.backend("cpu"):
    y, _ = rnn(torch.randn(9, 8, 5))
    y.square().sum().backward()
maps = open("/proc/self/maps").read().split("\\n")
print(json.dumps({
    "torch": torch.__version__,
    "y": y.flatten().tolist(),
    "grads": [p.grad.flatten().tolist() for p in rnn.parameters()],
    "openmp": sorted({line.split()[-1] for line in maps if "omp" in line.rsplit("/", 1)[-1] and ".so" in line}),
}))
"""


@compiled
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_torch_and_fastrnn_share_one_openmp_runtime():
    runtimes = json.loads(run(sys.executable, TRAIN, PACKAGE.parent))["openmp"]
    assert len(runtimes) == 1, runtimes


@compiled
@pytest.mark.skipif("FASTRNN_OTHER_PYTHON" not in os.environ, reason="FASTRNN_OTHER_PYTHON names no other interpreter")
def test_one_build_runs_under_another_torch_with_the_same_results():
    ours, others = (
        json.loads(run(python, TRAIN, PACKAGE.parent))
        for python in (sys.executable, os.environ["FASTRNN_OTHER_PYTHON"])
    )
    assert ours["torch"] != others["torch"]
    assert ours["y"] == others["y"]
    assert ours["grads"] == others["grads"]
    assert len(others["openmp"]) == 1


@compiled
def test_a_library_of_other_sources_than_the_python_files_is_told_from_its_operators(monkeypatch):
    assert _library.arguments_digest() == _library.ARGUMENTS, "csrc/ops/schema.h has changed, so ARGUMENTS has to"
    monkeypatch.setattr(_library, "ARGUMENTS", "of an older checkout")
    reason = _library._load("cpu", _library.build_info())
    assert "was compiled from other sources than these Python files" in reason
    assert "Build it again: pip install" in reason
