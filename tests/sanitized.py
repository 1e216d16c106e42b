"""The CPU operators under AddressSanitizer and UndefinedBehaviorSanitizer: a library of their own, and Python that loads it.

Beside fastrnn's Python files in build/sanitized/, where nothing installs it. Python is not instrumented, so the sanitizers'
runtime has to be there before it starts; and libstdc++ with it, or the first exception would abort.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

import torch
from emulator import build

import fastrnn

LIBRARY = "_ops_cpu.abi3.so"
# The checks give g++ 12 false warnings (a copy bounded by a constant taken for one of a whole vector); setup.py's build holds the same
# text to -Werror.
FLAGS = ("-O1", "-g1", "-w", *build.SANITIZERS, "-fno-omit-frame-pointer")


def sources() -> list[Path]:
    """Those of fastrnn._ops_cpu, the longest first."""
    csrc = build.ROOT / "csrc"
    found = [
        csrc / "ops" / "schema.cpp",
        csrc / "ops" / "cpu.cpp",
        csrc / "ops" / "python.cpp",
        *csrc.glob("cpu/*.cpp"),
    ]
    return sorted(found, key=lambda path: (not path.name.startswith("isa_"), path))


def flags() -> list[str]:
    torch_flags = ["-isystem", f"{Path(torch.__file__).parent}/include", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    common = ["-std=c++20", "-fPIC", "-fopenmp", "-fvisibility=hidden", f"-I{build.ROOT / 'csrc'}"]
    common += ["-isystem", sysconfig.get_path("include"), "-DPy_LIMITED_API=0x030A0000"]
    return [*common, *torch_flags, *FLAGS]


def compile_one(source: Path, folder: Path) -> Path:
    return build.compile_object(source, folder, flags())


def build_objects() -> dict[Path, Path]:
    """The object of each source; compiled again when a file that went into it has changed."""
    if not Path(runtime("libasan.so")).is_absolute():
        raise build.Unavailable(f"{build.COMPILER} has no AddressSanitizer")
    return build.compile_sources(sources(), "sanitized", flags())


def make_package(folder: Path, objects: Mapping[Path, Path]) -> None:
    """``folder``/fastrnn: fastrnn's Python files with a library that is linked of these objects."""
    package = folder / "fastrnn"
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir(parents=True)
    installed = Path(fastrnn.__file__).parent
    for path in (*installed.glob("*.py"), *installed.glob("_C.*so")):
        (package / path.name).symlink_to(path)
    libraries = [f"-L{Path(torch.__file__).parent}/lib", "-ltorch_cpu"]
    command = [build.COMPILER, "-shared", *FLAGS, *map(str, objects.values()), *libraries]
    subprocess.run([*command, "-o", str(package / LIBRARY)], check=True)


def runtime(name: str) -> str:
    if shutil.which(build.COMPILER) is None:
        raise build.Unavailable(f"there is no compiler {build.COMPILER}")
    answer = subprocess.run([build.COMPILER, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return answer.stdout.strip()


def run(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Python on the package that was made in ``folder``, with more environment variables; output and errors together."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {
        # Python's own allocations live until it ends.
        "ASAN_OPTIONS": "detect_leaks=0",
        "LD_PRELOAD": f"{runtime('libasan.so')} {runtime('libstdc++.so')}",
        "OMP_NUM_THREADS": "2",
        "PYTHONPATH": str(build.ROOT),
        **variables,
    }
    # In the folder: what is there is imported before what PYTHONPATH names.
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600,
    )  # fmt: skip
