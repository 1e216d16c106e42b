"""What a result depends on: versions, processor, device, threads, date. No names of machines or paths."""

from __future__ import annotations

import datetime
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


def fma_peak(threads: int) -> float | None:
    """The most float32 operations per second that `threads` threads do here, measured by fma_peak.cpp; None without a compiler."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        return None
    source = Path(__file__).with_name("fma_peak.cpp")
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder) / "fma_peak")
        build = [compiler, "-O3", "-march=native", "-pthread", "-o", program, str(source)]
        if subprocess.run(build, capture_output=True).returncode != 0:
            return None
        return float(subprocess.run([program, str(threads)], capture_output=True, text=True, check=True).stdout)


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
