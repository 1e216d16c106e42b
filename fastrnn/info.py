"""What ``python -m fastrnn`` prints: versions, backends, architectures built, the processor, the GPUs and their plans."""

from __future__ import annotations

import platform

import torch

from fastrnn import _library


def _cpu() -> str:
    if not _library.is_loaded("cpu"):
        return f"not available: {_library.why_not('cpu')}"
    try:
        isa = torch.ops.fastrnn.cpu_isa()
    except RuntimeError as error:
        return f"not available: {error}"
    return f"available, {isa} kernels, {torch.get_num_threads()} threads"


def _cuda() -> str:
    if not _library.is_loaded("cuda"):
        return f"not available: {_library.why_not('cuda')}"
    if not torch.cuda.is_available():
        return "built, but torch sees no CUDA device"
    return "available"


def _plans(index: int) -> list[str]:
    """What would run on a GPU; nothing where there are no kernels for it."""
    from fastrnn import plans

    if not _library.is_loaded("cuda"):
        return []
    try:
        return plans.typical_plans(plans.device_limits("cuda", torch.device("cuda", index)))
    except RuntimeError as error:
        return [f"no plans: {error}"]


def _gpus(archs: list[str]) -> list[str]:
    """A line a GPU, and one for each of its plans."""
    lines = []
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        number = f"{capability[0]}.{capability[1]}"
        line = f"{torch.cuda.get_device_name(index)}, compute capability {number}"
        if archs and not _library.is_built_for(capability, archs):
            line += f": not built for; build again with TORCH_CUDA_ARCH_LIST={number}"
        lines.extend([line, *_plans(index)])
    return lines or ["none visible"]


def report() -> str:
    """Facts about this installation, one a line."""
    info = _library.build_info()
    archs = info["cuda_archs"] if info else []
    rows = []
    if info:
        cuda = f", CUDA {info['cuda']} for {' '.join(archs)}" if info["cuda"] else f", no CUDA: {info['without_cuda']}"
        rows.append(("fastrnn", f"{info['version']}, built with torch {info['torch']}, {info['compiler']}{cuda}"))
    else:
        rows.append(("fastrnn", "no compiled kernels"))
    torch_cuda = f", CUDA {torch.version.cuda}" if torch.version.cuda else ", without CUDA"
    rows.append(("torch", f"{torch.__version__}{torch_cuda}"))
    rows.append(("python", f"{platform.python_version()} on {platform.platform()}"))
    rows.append(("backend cpu", _cpu()))
    rows.append(("backend cuda", _cuda()))
    rows.append(("backend reference", "available"))
    if info:
        from fastrnn import _C

        rows.append(("processor", " ".join(_C.cpu_features()) or platform.machine()))
    rows.extend(("GPU", line) for line in _gpus(archs))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
