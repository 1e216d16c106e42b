"""The CPU engine's matrix product (csrc/cpu/gemm.h) against sums in double, on every instruction set this machine has."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from emulator.build import ROOT, compile_sources

ISAS = ["portable", "avx2", "avx512", "avx512_bf16"]
SOURCES = ["buffer", "isa", "matmul", "pages", "team", *(f"gemm_{isa}" for isa in ISAS)]
COMPILER = os.environ.get("CXX", "g++")
# Not -march=native: each file chooses its instruction set itself.
FLAGS = ["-std=c++20", "-fopenmp", "-Wall", "-Wextra", "-Werror"]
BUILDS = {
    "release": ["-O3"],
    # Sanitizers' checks give g++ 12 false warnings (a copy bounded by a constant taken for one of a whole vector);
    # the release build holds the same text to -Werror.
    "sanitized": ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-Wno-error"],
}

pytestmark = pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"no compiler {COMPILER}")


@pytest.fixture(scope="module", params=BUILDS)
def build(request, tmp_path_factory) -> Path:
    """The folder with gemm_test and its object files."""
    flags = BUILDS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    sources = [*(ROOT / "csrc" / "cpu" / f"{name}.cpp" for name in SOURCES), ROOT / "tests" / "cpp" / "gemm_test.cpp"]
    for source, compiled in compile_sources(sources, f"gemm-{request.param}", [*FLAGS, *flags]).items():
        (folder / f"{source.stem}.o").symlink_to(compiled)
    objects = map(str, folder.glob("*.o"))
    subprocess.run([COMPILER, *flags, "-fopenmp", *objects, "-o", str(folder / "gemm_test")], check=True)
    return folder


def run(program: Path, isa: str, *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "FASTRNN_CPU_ISA": isa, "OMP_NUM_THREADS": "3"}
    return subprocess.run([str(program), *arguments], env=environment, capture_output=True, text=True, timeout=600)


def skip_unless_supported(program: Path, isa: str) -> None:
    refusal = run(program, isa, "usual", "0", "0").stderr
    if "FASTRNN_CPU_ISA is" in refusal:
        pytest.skip(refusal.strip().splitlines()[-1])


@pytest.mark.parametrize("caches", ["tiny", "usual"])
@pytest.mark.parametrize("isa", ISAS)
def test_products_of_every_layout_and_type_are_within_the_error_bound(build, isa, caches):
    program = build / "gemm_test"
    skip_unless_supported(program, isa)
    cases = "25" if build.name.startswith("sanitized") else "150"
    result = run(program, isa, caches, "1", cases)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]


def test_an_instruction_set_that_does_not_exist_is_refused_by_name(build):
    result = run(build / "gemm_test", "mmx", "usual", "0", "0")
    assert result.returncode != 0
    assert "FASTRNN_CPU_ISA is 'mmx', but this CPU runs: portable" in result.stderr


@pytest.mark.parametrize("isa", ISAS[1:])
def test_no_code_of_an_instruction_set_can_be_merged_into_code_for_every_cpu(build, isa):
    # A weak symbol outside of the set's own namespace (a template of the standard library, say) may be the one that the linker
    # keeps for the portable code as well.
    symbols = subprocess.run(
        ["nm", "-C", str(build / f"gemm_{isa}.o")], check=True, capture_output=True, text=True
    ).stdout
    weak = [line.split(maxsplit=2)[2] for line in symbols.splitlines() if line[17:18] in "WVu" and line[:1] != " "]
    # data, not code: the same for every instruction set
    data = ("DW.ref.", "typeinfo ", "vtable ")
    foreign = [name for name in weak if f"fastrnn::cpu::{isa}::" not in name and not name.startswith(data)]
    assert not foreign
