"""Reads what ptxas -v said of every kernel, and fails where one outside float64 spills registers to local memory."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers",
    re.DOTALL,
)


def readable(names: list[str]) -> list[str]:
    return subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )


def main(log: Path) -> int:
    kernels = [match.groupdict() for match in ENTRY.finditer(log.read_text())]
    if not kernels:
        print(f"{log} names no kernel: was it compiled with -Xptxas -v?")
        return 1
    for kernel, name in zip(kernels, readable([kernel["name"] for kernel in kernels]), strict=True):
        kernel["name"] = name
    for arch, count in sorted(Counter(kernel["arch"] for kernel in kernels).items()):
        registers = max(int(kernel["registers"]) for kernel in kernels if kernel["arch"] == arch)
        print(f"{arch}: {count} kernels, at most {registers} registers")
    spilling = [
        kernel
        for kernel in kernels
        if (int(kernel["stores"]) or int(kernel["loads"]) or int(kernel["stack"])) and "<double" not in kernel["name"]
    ]
    for kernel in spilling:
        print("{name} for {arch}: {stores} bytes of spill stores, {loads} of loads, {stack} of stack".format(**kernel))
    return 1 if spilling else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
