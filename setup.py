"""Builds fastrnn's libraries: the operators on the CPU, the operators on CUDA where that can be, and ``fastrnn._C``.

Environment:
    FASTRNN_CUDA          "auto" (default: CUDA where there is nvcc and a torch built for CUDA), "1" (CUDA or an error), "0"
    TORCH_CUDA_ARCH_LIST  architectures to compile for, e.g. "8.0;9.0a"; default: the visible GPUs', else a release's
    MAX_JOBS              compilers that run at a time
    CUDA_HOME             the CUDA toolkit, where the nvcc on the PATH is not the one to use
    FASTRNN_CHECK_SPINS   "1": kernels that wait for another block for seconds trap and name the block, for debugging
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from setuptools import Extension, setup

MIN_TORCH = (2, 11)
# The libraries use the part of torch's stable ABI that 2.10 had: one build serves all later versions.
TORCH_TARGET_VERSION = "0x020a000000000000"
RELEASE_ARCHS = ("7.5", "8.0+PTX", "9.0", "10.0", "12.0+PTX")
# Commands that neither build nor install, and so do not need torch.
WITHOUT_TORCH = {"sdist", "egg_info", "clean"}


def fail(message: str) -> NoReturn:
    sys.exit(f"\nfastrnn: {message}\n")


def say(message: str) -> None:
    print(f"fastrnn: {message}", flush=True)


def import_torch() -> Any:
    try:
        import torch
    except ImportError as error:
        fail(
            f"torch cannot be imported here ({error}).\n"
            "fastrnn is compiled against the torch that it will run with, so pip must not build it in isolation:\n"
            f"  1. install torch >= {MIN_TORCH[0]}.{MIN_TORCH[1]} (https://pytorch.org)\n"
            "  2. pip install --no-build-isolation . (in fastrnn's checkout)"
        )
    found = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if found < MIN_TORCH:
        fail(f"torch {torch.__version__} is too old, torch >= {MIN_TORCH[0]}.{MIN_TORCH[1]} is needed.")
    return torch


@dataclass
class Cuda:
    """What the CUDA library is built with; without a toolkit, why it is not built."""

    why_not: str = ""
    home: Path = Path()
    version: str = ""
    archs: list[str] = field(default_factory=list)


def find_cuda(torch: Any) -> Cuda:
    choice = os.environ.get("FASTRNN_CUDA", "auto") or "auto"
    if choice not in ("auto", "0", "1"):
        fail(f"FASTRNN_CUDA is {choice!r}, expected 0, 1 or auto.")
    if choice == "0":
        return Cuda("it was built with FASTRNN_CUDA=0")
    nvcc = find_nvcc()
    why_not = ""
    if torch.version.cuda is None:
        why_not = f"torch {torch.__version__} is built without CUDA"
    elif not nvcc.is_file():
        why_not = f"nvcc was not found (looked for {nvcc}; CUDA_HOME names the toolkit)"
    if why_not:
        if choice == "1":
            fail(f"FASTRNN_CUDA=1 asks for CUDA, but {why_not}.")
        return Cuda(why_not)
    version = nvcc_version(nvcc)
    ours, torchs = version.split(".")[0], torch.version.cuda.split(".")[0]
    if ours != torchs:
        fail(
            f"{nvcc} is of CUDA {version}, but torch {torch.__version__} is built for CUDA {torch.version.cuda}.\n"
            f"Point CUDA_HOME to a CUDA {torchs} toolkit, or install a torch for CUDA {ours}, "
            "or set FASTRNN_CUDA=0 to build for the CPU alone."
        )
    return Cuda(home=toolkit_home(nvcc), version=version, archs=choose_archs(torch, nvcc))


def find_nvcc() -> Path:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    on_path = shutil.which("nvcc")
    if on_path and not home:
        return Path(on_path)
    return Path(home or "/usr/local/cuda") / "bin" / "nvcc"


def ask_nvcc(nvcc: Path, *options: str) -> str:
    answer = subprocess.run([nvcc, *options], capture_output=True, text=True, check=False)
    return answer.stdout + answer.stderr


def nvcc_version(nvcc: Path) -> str:
    match = re.search(r"release (\d+\.\d+)", ask_nvcc(nvcc, "--version"))
    if not match:
        fail(f"{nvcc} --version does not say which release it is.")
    return match.group(1)


def toolkit_home(nvcc: Path) -> Path:
    """Where the toolkit lies, by its own word: the nvcc on the PATH may be a link, or a script that calls another."""
    match = re.search(r"^#\$ TOP=(.+)$", ask_nvcc(nvcc, "--dryrun", "-c", "none.cu"), re.MULTILINE)
    return Path(match.group(1)).resolve() if match else nvcc.resolve().parent.parent


def choose_archs(torch: Any, nvcc: Path) -> list[str]:
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    if wanted and wanted != "native":
        return [arch for arch in re.split("[; ]", wanted) if arch]
    known = {int(arch) for arch in re.findall(r"compute_(\d+)\b", ask_nvcc(nvcc, "--list-gpu-arch"))}
    visible = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    if not visible:
        return [arch for arch in RELEASE_ARCHS if int(arch.replace("+PTX", "").replace(".", "")) in known]
    newest = max(known)
    # A GPU newer than the toolkit compiles the PTX of the newest architecture that the toolkit knows.
    return sorted(
        f"{major}.{minor}" if major * 10 + minor in known else f"{newest // 10}.{newest % 10}+PTX"
        for major, minor in visible
    )


def sources(*patterns: str) -> list[str]:
    return sorted({str(path) for pattern in patterns for path in Path("csrc").glob(pattern)})


def extensions(torch: Any, cuda: Cuda) -> list[Extension]:
    torch_home = Path(torch.__file__).parent
    # torch's headers as system headers: their warnings are not ours.
    common = ["-std=c++20", "-O3", "-g0", "-fvisibility=hidden", "-Wall", "-Wextra", f"-isystem{torch_home}/include"]
    stable = [*common, f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}"]
    # Functions of OpenMP are left to be found in torch's dependencies when the library is loaded, so that both share one
    # runtime and its threads, whichever it is. A torch without OpenMP has none to share.
    shares_openmp = torch.backends.openmp.is_available()
    libraries: dict[str, Any] = {"library_dirs": [f"{torch_home}/lib"], "py_limited_api": True, "language": "c++"}
    result = [
        Extension(
            "fastrnn._ops_cpu",
            sources("ops/schema.cpp", "ops/cpu.cpp", "ops/python.cpp", "cpu/*.cpp"),
            extra_compile_args={"cxx": [*stable, "-fopenmp"]},
            extra_link_args=[] if shares_openmp else ["-fopenmp"],
            libraries=["torch_cpu"],
            **libraries,
        )
    ]
    if not cuda.why_not:
        # A toolkit installed by conda keeps its files in targets/.
        places = [cuda.home, *cuda.home.glob("targets/*-linux")]
        cuda_include = [f"-isystem{place}/include" for place in places if (place / "include/cuda_runtime.h").is_file()]
        libraries["library_dirs"] += [str(place / lib) for place in places for lib in ("lib64", "lib")]
        checks = ["-DFASTRNN_CHECK_SPINS"] if os.environ.get("FASTRNN_CHECK_SPINS") == "1" else []
        result.append(
            Extension(
                "fastrnn._ops_cuda",
                sources("ops/cuda.cpp", "plan*.cpp", "cuda/**/*.cpp", "cuda/**/*.cu"),
                extra_compile_args={
                    "cxx": [*stable, "-DUSE_CUDA", *cuda_include],
                    # No path here: torch adds no architectures where any flag has "arch" in it.
                    "nvcc": [
                        "-std=c++20",
                        "-O3",
                        "-Xcompiler=-fvisibility=hidden,-Wall,-Wextra",
                        "--threads=1",
                        *checks,
                    ],
                },
                include_dirs=[
                    str(Path("csrc/cuda").resolve())
                ],  # where <intrinsics.cuh> is; the emulator of the tests has its own
                libraries=["torch_cpu", "torch_cuda", "cudart"],
                **libraries,
            )
        )
    facts = {
        "TORCH_VERSION": torch.__version__,
        "CUDA_VERSION": cuda.version,
        "CUDA_ARCHS": " ".join(cuda.archs),
        "WITHOUT_CUDA": cuda.why_not,
    }
    result.append(
        Extension(
            "fastrnn._C",
            sources("bind.cpp", "plan*.cpp"),
            define_macros=[(f"FASTRNN_{name}", f'"{value}"') for name, value in facts.items()],
            extra_compile_args={"cxx": common},
            language="c++",
        )
    )
    return result


def build_command(torch: Any, cuda: Cuda) -> type:
    if not cuda.why_not:
        # Where torch's build command looks; it would guess the toolkit's home from nvcc's place.
        os.environ["CUDA_HOME"] = str(cuda.home)
        os.environ["TORCH_CUDA_ARCH_LIST"] = ";".join(cuda.archs)
    from torch.utils.cpp_extension import BuildExtension

    class Build(BuildExtension):
        def finalize_options(self) -> None:
            super().finalize_options()
            # pip hands out a new folder each time; objects kept in one are compiled again only when they have to be.
            self.objects = Path("build") / f"objects-{sys.implementation.cache_tag}-torch{torch.__version__}"
            module = next(extension for extension in self.extensions if extension.name == "fastrnn._C")
            module.define_macros.append(("FASTRNN_VERSION", f'"{self.distribution.get_version()}"'))

        def build_extension(self, extension: Extension) -> None:
            # Two extensions may share a source, but not its object.
            self.build_temp = str(self.objects / extension.name)
            super().build_extension(extension)

        def run(self) -> None:
            if cuda.why_not:
                say(f"building for the CPU alone: {cuda.why_not}")
            else:
                say(f"building with CUDA {cuda.version} ({cuda.home}) for {';'.join(cuda.archs)}")
            super().run()

    return Build


def main() -> None:
    commands = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    if not commands or WITHOUT_TORCH.intersection(commands):
        setup()
        return
    if sys.platform != "linux":
        say(f"{sys.platform} gets no compiled kernels: fastrnn will run its reference")
        setup()
        return
    torch = import_torch()
    cuda = find_cuda(torch)
    command = build_command(torch, cuda)
    setup(ext_modules=extensions(torch, cuda), cmdclass={"build_ext": command})


if __name__ == "__main__":
    main()
