"""Reads machine code as ``cuobjdump --dump-sass`` prints it: instructions, and the loops that branches make of them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple


class Instruction(NamedTuple):
    address: int
    guard: str  # the predicate that it runs under, with its "!"; empty where it always runs
    opcode: str
    operands: str


class Control(NamedTuple):
    """What the compiler tells the scheduler with an instruction: of its 128 bits those from 105 on."""

    stall: int  # cycles until the warp's next instruction
    sets: int | None  # the barrier, of six, that is released when the result is there
    frees: int | None  # that is released when the operands have been read
    waits: tuple[int, ...]  # for these barriers, before it is issued

    @classmethod
    def decoded(cls, high: int) -> Control:
        bits = high >> 41

        def barrier(first: int) -> int | None:
            return number if (number := bits >> first & 7) < 6 else None

        return cls(bits & 15, barrier(5), barrier(8), tuple(i for i in range(6) if bits >> (11 + i) & 1))


class Kernel(NamedTuple):
    arch: str
    symbol: str
    instructions: list[Instruction]
    controls: dict[int, Control]  # by address


_HIGH_HALF = re.compile(r"\s+/\* 0x([0-9a-f]{16}) \*/$")
_INSTRUCTION = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P(?:\d+|T)) )?\s*([A-Z0-9_.]+)\s*([^;]*);")


def cuobjdump() -> str | None:
    """The toolkit's, or the one that triton brings."""
    found = shutil.which("cuobjdump") or shutil.which(f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin/cuobjdump")
    if found:
        return found
    for folder in sys.path:
        path = Path(folder) / "triton/backends/nvidia/bin/cuobjdump"
        if path.is_file():
            return str(path)
    return None


def dump(tool: str, library: Path) -> Iterator[str]:
    """The lines that `tool` prints of `library`."""
    process = subprocess.Popen([tool, "--dump-sass", str(library)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield from process.stdout
    if process.wait():
        sys.exit(f"{tool} could not read {library}")


def kernels(lines: Iterable[str]) -> Iterator[Kernel]:
    """One after another, so that a large library need not fit in memory."""
    arch, kernel = "", None
    for line in lines:
        if match := _INSTRUCTION.match(line):
            if kernel:
                address, guard, opcode, operands = match.groups()
                always = guard is None or guard in ("PT", "UPT")
                kernel.instructions.append(
                    Instruction(int(address, 16), "" if always else guard, opcode, operands.strip())
                )
        elif match := _HIGH_HALF.match(line.rstrip()):
            if kernel and kernel.instructions:
                kernel.controls[kernel.instructions[-1].address] = Control.decoded(int(match[1], 16))
        elif match := re.match(r"\s*(?:arch = |\.target\s+)(sm_\w+)", line):
            arch = match[1]
        elif match := re.match(r"\s*Function : (\S+)", line):
            if kernel:
                yield kernel
            kernel = Kernel(arch, match[1], [], {})
    if kernel:
        yield kernel


def readable(symbols: Sequence[str]) -> list[str]:
    """Names without arguments and fastrnn's namespaces."""
    result = subprocess.run(["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True)
    unwanted = re.compile(r"fastrnn::cuda::|\(anonymous namespace\)::|\(.*|^void ")
    return [unwanted.sub("", name) for name in result.stdout.split("\n")]


# ---------------------------------------------------------------------------------------------------------------- loops


def successors(instructions: Sequence[Instruction]) -> list[list[int]]:
    """Of each instruction, by index. A call leads to what it calls and to what comes after it, a return nowhere: subroutines are in
    no loop, but a call that never returns, which the compiler writes for a far exit of a loop, is the jump that it is.
    """
    index_at = {instruction.address: index for index, instruction in enumerate(instructions)}
    found = []
    for index, (_, guard, opcode, operands) in enumerate(instructions):
        name = opcode.partition(".")[0]
        following = [index + 1] if index + 1 < len(instructions) else []
        if name in ("BRA", "CALL"):
            *conditions, target = operands.split(",")
            match = re.search(r"0x([0-9a-f]+)$", target)
            jump = [index_at[int(match[1], 16)]] if match else []
            found.append([*jump, *following] if guard or conditions or name == "CALL" else jump)
        elif name in ("EXIT", "RET"):
            found.append(following if guard else [])
        else:
            found.append(following)
    return found


def loops(instructions: Sequence[Instruction]) -> list[set[int]]:
    """Every loop as the indices of its instructions, those of loops within it among them; the first of code first.

    A loop is what can reach a branch back without passing the instruction that it goes back to.
    """
    following = successors(instructions)
    predecessors: dict[int, list[int]] = defaultdict(list)
    branches_back: dict[int, list[int]] = defaultdict(list)
    open_, done = {0}, set()
    path = [(0, iter(following[0]))]
    while path:
        index, remaining = path[-1]
        for next_ in remaining:
            predecessors[next_].append(index)
            if next_ in open_:
                branches_back[next_].append(index)
            elif next_ not in done:
                open_.add(next_)
                path.append((next_, iter(following[next_])))
                break
        else:
            path.pop()
            open_.remove(index)
            done.add(index)
    found = []
    for head, ends in sorted(branches_back.items()):
        body, todo = {head}, list(ends)
        while todo:
            index = todo.pop()
            if index not in body:
                body.add(index)
                todo.extend(predecessors[index])
        found.append(body)
    return found
