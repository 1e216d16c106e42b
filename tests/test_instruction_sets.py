"""Each instruction set of the CPU engine that this machine has: the accuracy of its functions, and whole layers on it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastrnn import _library

ROOT = Path(__file__).resolve().parent.parent
COMPILER = os.environ.get("CXX", "g++")
ISAS = ("portable", "avx2", "avx512", "avx512_bf16")
LEAST_TESTS = 20

needs_cpu = pytest.mark.skipif(not _library.is_loaded("cpu"), reason="the CPU operators are not built")


def python(isa: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"FASTRNN_CPU_ISA": isa, "FASTRNN_TEST_BACKENDS": "cpu", "OMP_NUM_THREADS": "2"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )


def skip_unless_supported(isa: str) -> None:
    result = python(isa, "-c", "import torch, fastrnn; print(torch.ops.fastrnn.cpu_isa())")
    if "FASTRNN_CPU_ISA is" in result.stderr:
        pytest.skip(result.stderr.strip().splitlines()[-1])
    assert result.stdout.strip() == isa, result.stderr


@pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"no compiler {COMPILER}")
@needs_cpu
@pytest.mark.parametrize("isa", ISAS)
def test_sigmoid_tanh_and_conversions_keep_their_error_bounds(isa, tmp_path):
    skip_unless_supported(isa)
    program = tmp_path / "simd_accuracy"
    header = ROOT / "csrc" / "cpu" / f"isa_{isa}.h"
    # -O2 and no -march: the header chooses the instruction set, as in the library.
    flags = ["-std=c++20", "-O2", "-w", f'-DFASTRNN_ISA_HEADER="{header}"']
    subprocess.run(
        [COMPILER, *flags, str(ROOT / "tests" / "cpp" / "simd_accuracy.cpp"), "-o", str(program)], check=True
    )
    result = subprocess.run([program, "4093"], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0 and "\n0 failures" in result.stdout, result.stdout[-4000:]


@needs_cpu
@pytest.mark.parametrize("isa", ISAS)
def test_whole_layers_are_right_on_every_instruction_set(isa):
    skip_unless_supported(isa)
    files = [f"tests/test_{name}.py" for name in ("precision", "lengths", "dropout", "masks", "hidden_sizes")]
    result = python(isa, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not compile", *files)
    assert result.returncode == 0, result.stdout[-8000:]
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed and int(passed[1]) >= LEAST_TESTS, result.stdout[-8000:]


@needs_cpu
def test_an_unknown_instruction_set_is_refused_by_name():
    result = python("mmx", "-c", "import torch, fastrnn; fastrnn.LSTM(2, 3)(torch.randn(4, 1, 2))")
    assert result.returncode != 0
    assert "FASTRNN_CPU_ISA is 'mmx', but this CPU runs: portable" in result.stderr
