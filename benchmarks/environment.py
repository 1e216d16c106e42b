"""What a result depends on: versions, processor, device, threads, date. No names of machines or paths."""

from __future__ import annotations

import atexit
import datetime
import functools
import importlib.metadata
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch

import fastrnn
from benchmarks import nvidia
from benchmarks.baselines import uses_tf32

_PACKAGES = ("onnxruntime", "openvino", "flashrnn", "haste_pytorch")  # baselines


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    known = {key.strip(): value.strip() for key, value in fields.items()}
    name = known.get("model name", platform.machine())
    return f"{name} (family {known.get('cpu family')}, model {known.get('model')})"


@functools.cache
def _program(name: str) -> Path | None:
    """``name``.cpp of this folder, compiled; None without a compiler, or where it does not compile."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        return None
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    program = Path(folder.name) / name
    source = Path(__file__).with_name(f"{name}.cpp")
    build = [compiler, "-O3", "-march=native", "-pthread", "-o", str(program), str(source)]
    return program if subprocess.run(build, capture_output=True).returncode == 0 else None


def _measured_by(name: str, *arguments: str) -> float | None:
    program = _program(name)
    if program is None:
        return None
    result = subprocess.run([str(program), *arguments], capture_output=True, text=True)
    return float(result.stdout) if result.returncode == 0 else None


def fma_peak(threads: int) -> float | None:
    """The most float32 operations per second that `threads` threads do here, measured by fma_peak.cpp; None without a compiler."""
    return _measured_by("fma_peak", str(threads))


def round_trip() -> float | None:
    """Nanoseconds of a cache line from one core to another and back, now: a host may move a virtual machine's cores apart.

    Measured by round_trip.cpp; None without a compiler or a second core.
    """
    return _measured_by("round_trip")


def environment(device: str) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "fastrnn": fastrnn.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "device": device,
    }
    facts.update({name: _version(name) for name in _PACKAGES if _version(name)})
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        facts.update(
            gpu=torch.cuda.get_device_name(),
            compute_capability=f"{major}.{minor}",
            driver=nvidia.gpu().get("driver"),
            cuda=torch.version.cuda,
            cudnn=torch.backends.cudnn.version(),
            tf32=uses_tf32(),
            FASTRNN_PLANS=os.environ.get("FASTRNN_PLANS", ""),
        )
    else:
        facts.update(
            instruction_set=torch.ops.fastrnn.cpu_isa(),
            cpu_capability_of_torch=torch.backends.cpu.get_cpu_capability(),
            fma_peak=fma_peak(torch.get_num_threads()),
        )
    return facts
