"""Registers and shared memory of the recurrence kernels against what a multiprocessor has: how many blocks fit, and what limits them.

    python -m benchmarks.occupancy fastrnn/_ops_cuda*.so --out benchmarks/results/occupancy.md

Registers and static shared memory are read from the library, dynamic shared memory is the plan's. Nothing was measured.
"""

from __future__ import annotations

import argparse
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.devices import CELLS, DEVICES, is_two_level
from benchmarks.sass import cuobjdump, readable
from benchmarks.tables import table, write
from benchmarks.targets import TARGETS, Row
from fastrnn import _C

THREADS = 256  # of a block (csrc/cuda/tiling.h)
RESERVED_SHARED = 1024  # bytes of a block, by the system


class Multiprocessor(NamedTuple):
    """Compute capability 8.0 and 9.0, CUDA C++ Programming Guide, technical specifications."""

    shared_bytes: int
    registers: int = 65536
    threads: int = 2048
    blocks: int = 32
    register_unit: int = 256  # in which a warp gets them
    warp: int = 32


MULTIPROCESSORS = {"H100": Multiprocessor(228 << 10), "A100": Multiprocessor(164 << 10)}
ARCHS = {"H100": "sm_90", "A100": "sm_80"}


class Usage(NamedTuple):
    """Of a kernel, as cuobjdump --dump-resource-usage has it."""

    registers: int
    static_shared: int


class Occupancy(NamedTuple):
    blocks: int  # of a multiprocessor
    limit: str
    share: float  # of its warps


def occupancy(of: Multiprocessor, usage: Usage, dynamic_shared: int) -> Occupancy:
    a_warp = -(-usage.registers * of.warp // of.register_unit) * of.register_unit
    allowed = {
        "registers": of.registers // (a_warp * (THREADS // of.warp)),
        "shared memory": of.shared_bytes // (dynamic_shared + usage.static_shared + RESERVED_SHARED),
        "threads": of.threads // THREADS,
        "blocks": of.blocks,
    }
    blocks = min(allowed.values())
    limits = [name for name, count in allowed.items() if count == blocks]
    return Occupancy(blocks, " and ".join(limits), blocks * THREADS / of.threads)


_FUNCTION = re.compile(r"\s*Function (\S+):")
_USAGE = re.compile(r"\s*REG:(\d+) .*?SHARED:(\d+)")


def read(lines: Iterable[str]) -> dict[tuple[str, str], Usage]:
    """By architecture and symbol."""
    found, arch, symbol = {}, "", ""
    for line in lines:
        if match := re.match(r"arch = (\S+)", line):
            arch = match[1]
        elif match := _FUNCTION.match(line):
            symbol = match[1]
        elif match := _USAGE.match(line):
            # From 9.0 on what the system reserves is counted with it.
            reserved = RESERVED_SHARED if arch.startswith("sm_9") else 0
            found[arch, symbol] = Usage(int(match[1]), max(0, int(match[2]) - reserved))
    return found


def dump(tool: str, library: Path) -> Iterator[str]:
    text = subprocess.run([tool, "--dump-resource-usage", str(library)], capture_output=True, text=True, check=True)
    yield from text.stdout.split("\n")


def recurrences(found: dict[tuple[str, str], Usage]) -> dict[tuple[str, str], Usage]:
    """By architecture and readable name."""
    keys = [key for key in found if "recurrence_" in key[1]]
    names = readable([symbol for _, symbol in keys])
    return {(key[0], name): found[key] for key, name in zip(keys, names, strict=False)}


_OPERANDS = {
    "bfloat16": r"Tensor<HalfNumber<__nv_bfloat16> ?>",
    "float16": r"Tensor<HalfNumber<__half> ?>",
    "tf32": r"Tensor<Tf32Number>",
    "float32": r"Fma<float>",
}


def kernel_of(row: Row, plan: _C.Plan, backward: bool, kernels: Iterable[tuple[str, str]]) -> tuple[str, str] | None:
    """The kernel of a plan by its name; a stepwise plan runs the grid's. None where there is none of that name: torch's product."""
    team = "twolevel" if is_two_level(plan) else "grid" if plan["team"] == "stepwise" else plan["team"]
    pattern = re.compile(
        rf"recurrence_{'backward' if backward else 'forward'}<{_OPERANDS[row.arithmetic]}, {row.cell}Cell, {team}Team, "
        rf"{plan['samples'] // 8}\b",
        re.IGNORECASE,
    )
    return next((key for key in kernels if key[0].startswith(ARCHS[row.device]) and pattern.match(key[1])), None)


def _cells(found: Occupancy) -> list[str]:
    return [str(found.blocks), found.limit, f"{found.share:.0%}"]


def _by_kernel(kernels: dict[tuple[str, str], Usage]) -> Iterator[str]:
    """What the registers and static shared memory alone allow."""
    for (arch, name), usage in sorted(kernels.items()):
        device = next((device for device, of in ARCHS.items() if arch.startswith(of)), None)
        if device is None or usage.registers < 32:  # the empty stub of an architecture without clusters
            continue
        found = occupancy(MULTIPROCESSORS[device], usage, 0)
        cells = [device, f"`{name}`", str(usage.registers), str(usage.static_shared), *_cells(found)]
        yield " | ".join(cells)


def _by_plan(device: str, kernels: dict[tuple[str, str], Usage]) -> Iterator[str]:
    for target, arithmetics in TARGETS:
        for arithmetic in arithmetics:
            for cell in CELLS:
                row = Row(device, cell, arithmetic, target)
                for plan, backward in zip(row.plans, (False, True), strict=True):
                    key = kernel_of(row, plan, backward, kernels)
                    name = "grid in clusters" if is_two_level(plan) else plan["team"]
                    cells = [cell, arithmetic, str(target), "backward" if backward else "forward", name]
                    if key is None:
                        yield " | ".join([*cells, "", "", "", "", "", ""])
                        continue
                    usage = kernels[key]
                    found = occupancy(MULTIPROCESSORS[device], usage, plan["shared_bytes"])
                    yield " | ".join([
                        *cells, f"{plan['samples']}", str(usage.registers),
                        f"{plan['shared_bytes'] + usage.static_shared}", *_cells(found),
                    ])  # fmt: skip


def _most_blocks(rows: list[str]) -> str:
    """A sentence on the rows of _by_plan."""
    blocks = [int(cells[8]) for row in rows if (cells := row.split(" | "))[8]]
    more = sum(count > 1 for count in blocks)
    return "Of the plans below " + (
        f"{more} of {len(blocks)} have room for a second block." if more else "none has room for a second block."
    )


def markdown(kernels: dict[tuple[str, str], Usage]) -> str:
    limits = "; ".join(
        f"{device} has {of.registers:,} registers, {of.threads:,} threads ({of.threads // of.warp} warps) and "
        f"{of.shared_bytes >> 10} KB of shared memory, of which {RESERVED_SHARED >> 10} KB a block is the system's"
        for device, of in MULTIPROCESSORS.items()
    )
    rows = {device: list(_by_plan(device, kernels)) for device in DEVICES}
    text = f"""# Registers and shared memory against occupancy

Read from the library and from csrc/plan.cpp by benchmarks/occupancy.py; nothing was measured. Blocks have {THREADS} threads.
A multiprocessor of an {limits}.

One block to a multiprocessor is the design where weights stay on the chip: registers and shared memory are where they lie, so what
is left over is what they do not need, and a second block would hold weights that a larger team holds already. A step then waits for
latencies that no other block hides, which is what the cost model adds up; the kernels are compiled for it
(`__launch_bounds__({THREADS}, 1)`, up to 255 registers a thread).
{_most_blocks([row for of_device in rows.values() for row in of_device])}

## By plan

At the shapes of the targets, the fastest plan with FASTRNN_PLANS=all. `shared bytes`: of a block. Empty: torch's product.
"""
    header = (
        "cell | arithmetic | B, T, H | pass | plan | samples | registers | shared bytes | blocks | limited by | warps"
    )
    for device in DEVICES:
        text += f"\n### {device}\n\n" + table(header, rows[device])
    text += "\n## By kernel\n\nWhat registers and static shared memory alone allow.\n\n"
    return text + table(
        "device | kernel | registers | static shared bytes | blocks | limited by | warps", _by_kernel(kernels)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", type=Path, help="fastrnn/_ops_cuda*.so")
    parser.add_argument("--out", type=Path, help="the markdown file; else it is printed")
    arguments = parser.parse_args()
    tool = cuobjdump()
    if tool is None:
        parser.error("no cuobjdump: it comes with the CUDA toolkit and with triton")
    text = markdown(recurrences(read(dump(tool, arguments.library))))
    write(text, arguments.out)


if __name__ == "__main__":
    main()
