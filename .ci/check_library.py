"""Reads the machine code of the CUDA library: how many kernels it holds, how large it is, and what their inner loops are made of.

    python .ci/check_library.py LIBRARY [--out FILE.json]

Fails where it holds too much, a kernel more than once, or a kernel of the tensor cores without a matrix instruction. With ``--out`` the table is
written as JSON and, beside it, as Markdown.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks import sass

MAX_KERNELS = 220  # of an architecture
MAX_BYTES = 40 << 20

INSTRUCTIONS = {  # what is counted: a name, and how the instruction begins
    "matrix": ("HMMA", "DMMA", "IMMA"),
    "multiply-add": ("FFMA", "DFMA", "HFMA2"),
    "shared 16 B load": ("LDS.128", "LDSM"),
    "global 16 B load": ("LDG.E.128", "LDGSTS.E.BYPASS.128"),
    "generic 16 B load": ("LD.E.128",),  # the compiler does not know of which memory
    "push to peer": ("STAS", "ST.E.ASYNC"),
    "local memory": ("LDL", "STL"),
}
COLUMNS = ("copies", "all", *INSTRUCTIONS)


def counts(tool: str, library: Path) -> dict[str, dict[str, Counter[str]]]:
    """Per architecture and kernel, how often each kind of instruction stands in it; and its `copies`, of which the first is counted."""
    found: dict[str, dict[str, Counter[str]]] = defaultdict(dict)
    for kernel in sass.kernels(sass.dump(tool, library)):
        of_kernel = found[kernel.arch].setdefault(kernel.symbol, Counter())
        of_kernel["copies"] += 1
        if of_kernel["copies"] > 1:
            continue
        for instruction in kernel.instructions:
            of_kernel["all"] += 1
            for kind, beginnings in INSTRUCTIONS.items():
                if instruction.opcode.startswith(beginnings):
                    of_kernel[kind] += 1
    return found


def table(found: dict[str, dict[str, Counter[str]]]) -> list[dict[str, Any]]:
    rows = []
    for arch, of_arch in sorted(found.items()):
        for name, counts in zip(sass.readable(list(of_arch)), of_arch.values(), strict=False):
            rows.append({"arch": arch, "kernel": name, **{kind: counts[kind] for kind in COLUMNS}})
    return sorted(rows, key=lambda row: (row["arch"], row["kernel"]))


def complaints(rows: list[dict[str, Any]], size: int) -> list[str]:
    result = []
    if size > MAX_BYTES:
        result.append(f"the library has {size / 2**20:.1f} MB, at most {MAX_BYTES >> 20} are allowed")
    for arch, count in sorted(Counter(row["arch"] for row in rows).items()):
        print(f"{arch}: {count} kernels")
        if count > MAX_KERNELS:
            result.append(f"{arch} has {count} kernels, at most {MAX_KERNELS} are allowed")
    result += [
        f"{row['kernel']} is in the library {row['copies']} times for {row['arch']}"
        for row in rows
        if row["copies"] > 1
    ]
    for row in rows:
        uses_tensor_cores = "Tensor<" in row["kernel"] and row["all"] > 64  # a stub of an older architecture is shorter
        if uses_tensor_cores and not row["matrix"]:
            result.append(f"{row['kernel']} for {row['arch']} has no matrix instruction")
    return result


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = ["| arch | kernel | " + " | ".join(COLUMNS) + " |", "|---|---|" + "---|" * len(COLUMNS)]
    lines += [f"| {r['arch']} | `{r['kernel']}` | " + " | ".join(str(r[k]) for k in COLUMNS) + " |" for r in rows]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    size = arguments.library.stat().st_size
    print(f"{arguments.library.name}: {size / 2**20:.1f} MB")
    tool = sass.cuobjdump()
    if tool is None:
        print("no cuobjdump here: the machine code was not read")
        return int(size > MAX_BYTES)
    rows = table(counts(tool, arguments.library))
    if arguments.out:
        arguments.out.write_text(json.dumps({"bytes": size, "kernels": rows}, indent=1) + "\n")
        arguments.out.with_suffix(".md").write_text(markdown(rows))
    wrong = complaints(rows, size)
    print("\n".join(wrong))
    return 1 if wrong or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
