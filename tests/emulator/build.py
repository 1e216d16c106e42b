"""Compiles the CUDA kernels' own source for the CPU, with the emulator's headers in front of the toolkit's.

``python -m tests.emulator.build`` builds the emulated backend and says where it lies. Objects are kept in build/emulator/ and
compiled again when a file that went into them has changed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
HERE = Path(__file__).resolve().parent
BUILD = ROOT / "build" / "emulator"
COMPILER = os.environ.get("CXX", "g++")
JOBS = 2

EMULATOR = [HERE / f"{name}.cpp" for name in ("context", "memory", "scheduler", "meeting", "copies", "device")]


class Unavailable(RuntimeError):
    """Something that the emulated backend needs is not here."""


def toolkit_include() -> Path:
    """Where cuda_runtime_api.h and cuda_bf16.h are: a CUDA toolkit, or a package that torch's CUDA wheels bring."""
    places = [Path(os.environ[name]) / "include" for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    places.append(Path("/usr/local/cuda/include"))
    places += [include for path in sys.path for include in sorted(Path(path).glob("nvidia/*/include"))]
    for place in places:
        if (place / "cuda_runtime_api.h").is_file() and (place / "cuda_bf16.h").is_file():
            return place
    raise Unavailable("no CUDA toolkit's headers were found (CUDA_HOME names a toolkit)")


def kernel_sources() -> list[Path]:
    """All that is compiled into the CUDA library, but for the operators."""
    csrc = ROOT / "csrc"
    return sorted([*csrc.glob("plan*.cpp"), *csrc.glob("cuda/**/*.cpp"), *csrc.glob("cuda/**/*.cu")])


@dataclass(frozen=True)
class Variant:
    """A way to compile."""

    name: str
    flags: tuple[str, ...] = ("-O1", "-g1")
    # The emulator's own files are left out of ThreadSanitizer: their bookkeeping is no race.
    emulator_flags: tuple[str, ...] | None = None


PLAIN = Variant("plain")
SANITIZERS = (
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    # Where a pointer that is not checked is used, AddressSanitizer finds it. Its checks by calls compile faster than in line.
    *("-fno-sanitize=null,object-size,pointer-overflow", "--param", "asan-instrumentation-with-call-threshold=0"),
)
# Lines are counted as well.
ADDRESS = Variant("address", ("-Og", "-g1", *SANITIZERS, "--coverage"))
_THREAD = ("-O1", "-g1", "-DEMULATOR_TSAN")
THREAD = Variant("thread", (*_THREAD, "-fsanitize=thread"), emulator_flags=_THREAD)


@contextmanager
def locked() -> Iterator[None]:
    """One process builds at a time, whatever runs the tests."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def digest(paths: Sequence[str | Path], *words: str) -> str:
    state = hashlib.sha256("\0".join(words).encode())
    for path in paths:
        state.update(Path(path).read_bytes() if Path(path).is_file() else b"missing")
    return state.hexdigest()


def compile_object(source: Path, folder: Path, flags: Sequence[str]) -> Path:
    """The object file of a source; compiled unless what is there came from the same text."""
    name = hashlib.sha256(str(source).encode()).hexdigest()[:8]
    output = folder / f"{source.stem}-{name}.o"
    record = output.with_suffix(".json")
    command = [COMPILER, *flags, "-x", "c++", "-c", str(source)]
    if record.is_file() and output.is_file():
        known = json.loads(record.read_text())
        if known["digest"] == digest(known["files"], *command):
            return output
    depends = output.with_suffix(".d")
    subprocess.run([*command, "-MMD", "-MF", str(depends), "-o", str(output)], check=True)
    files = sorted(set(depends.read_text().replace("\\\n", " ").split(": ", 1)[1].split()))
    record.write_text(json.dumps({"digest": digest(files, *command), "files": files}))
    return output


def base_flags(root: Path = ROOT) -> list[str]:
    return [
        *("-std=c++20", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"),
        *(f"-I{HERE}/include", f"-I{HERE}", f"-I{root}/csrc", "-isystem", str(toolkit_include())),
    ]


Sources = Sequence[tuple[Path, Sequence[str]]]  # each with flags of its own


def plain(*sources: Path) -> list[tuple[Path, Sequence[str]]]:
    return [(source, ()) for source in sources]


def compile_sources(sources: Sequence[Path], name: str, flags: Sequence[str]) -> dict[Path, Path]:
    """The object of each source of something else that the tests run, kept as the emulator's are."""
    with locked():
        folder = BUILD.parent / name
        folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(max_workers=JOBS) as pool:
            objects = pool.map(lambda source: compile_object(source, folder, flags), sources)
            return dict(zip(sources, objects, strict=True))


def compile_all(variant: Variant, sources: Sources) -> dict[Path, Path]:
    """The object of each source."""
    if shutil.which(COMPILER) is None:
        raise Unavailable(f"there is no compiler {COMPILER}")
    folder = BUILD / variant.name
    folder.mkdir(parents=True, exist_ok=True)
    base = base_flags()

    def compile_one(item: tuple[Path, Sequence[str]]) -> Path:
        source, extra = item
        own = variant.emulator_flags if variant.emulator_flags and source in EMULATOR else variant.flags
        return compile_object(source, folder, [*base, *own, *extra])

    with ThreadPoolExecutor(max_workers=JOBS) as pool:
        return dict(zip((source for source, _ in sources), pool.map(compile_one, sources), strict=True))


def link(variant: Variant, name: str, sources: Sources, flags: Sequence[str] = ()) -> Path:
    """A program or library."""
    with locked():
        objects = [str(path) for path in compile_all(variant, sources).values()]
        output = BUILD / variant.name / name
        command = [COMPILER, *variant.flags, *objects, *flags]
        record = output.with_suffix(".link.json")
        known = digest(objects, *command)
        if not output.is_file() or not record.is_file() or json.loads(record.read_text()) != known:
            subprocess.run([*command, "-o", f"{output}.new"], check=True)
            os.replace(f"{output}.new", output)
            record.write_text(json.dumps(known))
        return output


def build_library(variant: Variant = PLAIN) -> Path:
    """The operators fastrnn_emulated::*, to be loaded with torch.ops.load_library."""
    import torch

    home = Path(torch.__file__).parent
    torch_flags = ["-isystem", f"{home}/include", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    sources = [*plain(*kernel_sources(), *EMULATOR), (HERE / "ops.cpp", torch_flags)]
    # No symbol may be missing: what the emulator does not know of the CUDA runtime is an error here.
    libraries = [f"-L{home}/lib", "-ltorch_cpu", "-Wl,--no-undefined", f"-Wl,-rpath,{home}/lib"]
    return link(variant, "ops_emulated.so", sources, ["-shared", *libraries])


def build_recurrences(variant: Variant = PLAIN) -> Path:
    """The program that compares the kernels with the textbook (recurrences.cpp)."""
    return link(variant, "recurrences", recurrences_sources())


def recurrences_sources() -> Sources:
    return plain(*kernel_sources(), HERE / "recurrences.cpp", *EMULATOR)


def recurrences_objects(variant: Variant) -> dict[Path, Path]:
    """What that program is linked of, by source."""
    with locked():
        return compile_all(variant, recurrences_sources())


def build_unit_tests(variant: Variant = PLAIN) -> Path:
    """The emulator's own tests (unit.cpp)."""
    return link(variant, "unit", plain(HERE / "unit.cpp", *EMULATOR))


if __name__ == "__main__":
    print(build_library())
