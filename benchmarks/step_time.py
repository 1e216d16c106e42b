"""How long a warp takes from the product of a step to the first push of what comes of it, by the machine code.

The compiler writes into every instruction how many cycles the warp stalls after it, and for which earlier ones, of loads, special
functions and the like, it waits; those have the latencies of published microbenchmarks (LATENCIES). Added up along one path they are
the least time of a warp that nobody disturbs. The path is the one of a step in which all samples live and no option is on: with
the most floating-point instructions, then the fewest of all, and without what options alone run: loads from memory, float64, calls.
Sums of other warps are added as often as the plan says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from benchmarks.sass import Control, Instruction, Kernel, successors

# Cycles until a result is there: shared memory 29 to 30, special functions and conversions 18, shuffles 24, constants 27 (published
# for Ampere and Hopper, and for Volta where nothing newer is). The barrier of eight warps: 23 to 85 for 1 to 32.
LATENCIES = {
    "LDS": 30, "LDSM": 33, "MUFU": 18, "F2F": 18, "I2F": 18, "F2I": 18, "SHFL": 24, "LDC": 27, "S2R": 20, "S2UR": 20, "SYNCS": 30,
}  # fmt: skip
OTHER_LATENCY, OPERANDS_READ, BARRIER = 12, 8, 30
CYCLES = 1755  # a microsecond, as csrc/plan.cpp has it

_FLOATING_POINT = re.compile(r"FADD|FMUL|FFMA|MUFU")
_OF_OPTIONS = re.compile(r"LDG|LD\b|D[A-Z]+|CALL|RET|ATOM|BPT|BRX|STG.*U8")
_ENDS = re.compile(r"STAS|RED")
_SUMS = "LDS.128"


class Chain(NamedTuple):
    instructions: int
    cycles: int


def _best(instructions: Sequence[Instruction], allowed: set[int], start: int, num_loads: int) -> list[int] | None:
    """The indices of the path as this file's first lines say, its end included, with so many loads of sums; None where there is none."""
    following = successors(instructions)
    scores: dict[tuple[int, int], tuple[tuple[int, int], int] | None] = {}  # (floating point, -all), next index
    open_: set[tuple[int, int]] = set()

    def is_end(index: int) -> bool:
        return index != start and _ENDS.match(instructions[index].opcode) is not None

    def after(index: int, loads: int) -> int:
        return loads + instructions[index].opcode.startswith(_SUMS)

    stack = [(start, 0)]
    while stack:
        state = index, loads = stack[-1]
        if state in scores:
            stack.pop()
            continue
        instruction = instructions[index]
        if is_end(index):
            scores[state] = ((0, 0), -1) if loads == num_loads else None
        elif index not in allowed or _OF_OPTIONS.match(instruction.opcode) or after(index, loads) > num_loads:
            scores[state] = None
        else:
            next_states = [(i, after(index, loads)) for i in following[index]]
            missing = [s for s in next_states if s not in scores and s not in open_]
            if missing:
                open_.add(state)
                stack.extend(missing)
                continue
            floating_point = _FLOATING_POINT.match(instruction.opcode) is not None
            found = [(score, s[0]) for s in next_states if (score := scores.get(s)) is not None]
            best = max(found, default=None)
            if best is None:
                scores[state] = None
            else:
                (points, length), _ = best[0]
                scores[state] = ((points + floating_point, length - 1), best[1])
        open_.discard(state)
        stack.pop()
    path, state = [], (start, 0)
    while (entry := scores[state]) is not None:
        path.append(state[0])
        if entry[1] < 0:
            return path
        state = entry[1], after(*state)
    return None


def _cycles(instructions: Sequence[Instruction], controls: dict[int, Control], path: Iterable[int]) -> int:
    now, released = 0, [0] * 6
    for index in path:
        address, _, opcode, _ = instructions[index]
        control, name = controls[address], opcode.partition(".")[0]
        now = max([now, *(released[barrier] for barrier in control.waits)])
        if control.sets is not None:
            released[control.sets] = max(released[control.sets], now + LATENCIES.get(name, OTHER_LATENCY))
        if control.frees is not None:
            released[control.frees] = max(released[control.frees], now + OPERANDS_READ)
        now += max(control.stall, 1) + (BARRIER if name == "BAR" else 0)
    return now


def beside_product(kernel: Kernel, step: set[int], of_chunks: set[int], num_loads: int) -> Chain | None:
    """`step`, `of_chunks`: indices of the loops over steps and over chunks of weights; `num_loads`: of 16 bytes of sums to be added."""
    instructions = kernel.instructions
    last = max(index for index in step if instructions[index].opcode.startswith("HMMA"))
    start = min(index for index in step if index > last and index not in of_chunks)
    path = _best(instructions, step - of_chunks, start, num_loads)
    return Chain(len(path), _cycles(instructions, kernel.controls, path)) if path else None
