"""What the driver and the packages say of a GPU and of versions, without torch's start, which takes seconds."""

from __future__ import annotations

import datetime
import importlib.util
import re
import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any


def gpu() -> dict[str, Any]:
    """What GPU there is, by the driver's own word."""
    query = "name,compute_cap,driver_version"
    try:
        answer = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return {"gpu": None}
    name, capability, driver = (part.strip() for part in answer.stdout.splitlines()[0].split(","))
    return {"gpu": name, "compute_capability": capability, "driver": driver}


def nvcc() -> str:
    return shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"


def _nvcc_version() -> str | None:
    try:
        answer = subprocess.run([nvcc(), "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    found = re.search(r"release [\d.]+, V([\d.]+)", answer.stdout)
    return found.group(1) if found else None


def versions() -> dict[str, Any]:
    """Date, and versions of fastrnn, torch, the CUDA that torch was built with, and nvcc."""
    root = Path(__file__).resolve().parents[1]
    fastrnn = re.search(r'^__version__ = "(.*)"', (root / "fastrnn" / "__init__.py").read_text(), re.MULTILINE)
    spec = importlib.util.find_spec("torch")
    torch = runpy.run_path(str(Path(spec.origin).with_name("version.py"))) if spec and spec.origin else {}
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="minutes"),
        "fastrnn": fastrnn.group(1) if fastrnn else None,
        "torch": str(torch["__version__"]) if torch else None,
        "cuda": torch.get("cuda"),
        "nvcc": _nvcc_version(),
    }
