"""How long a warp takes in a step beside the product, by the machine code: the cell and what stands before and after it.

The compiler writes into every instruction how many cycles the warp stalls after it, and for which earlier ones, of loads, special
functions and the like, it waits; those have the latencies of published microbenchmarks (LATENCIES). Added up along one path they are
the least time of a warp that nobody disturbs. The path is the one of a step in which all samples live and no option is on: with
the most floating-point instructions, then the fewest of all, and without what options alone run: loads from memory, float64, calls.
Those that a predicate switches off are passed, and cost what the others do without their latency.
Sums of other warps are added as often as the plan says.

Where the cell follows the product (all but two-level and the reduce-scatter, which are of backward) the path leads from the product to
the first push of what comes of it. Else it begins where the parts of the sums have come; it ends before the product, at the barrier that
makes the operand whole, or two-level at the first push.
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

# Floating-point instructions that a load counts against which belongs to an option and which a predicate switches off: what
# multiplies by it is not to lead the path there.
OPTION = 3

_FLOATING_POINT = re.compile(r"FADD|FMUL|FFMA|MUFU")
_OF_OPTIONS = re.compile(r"LDG|LD\b|D[A-Z]+|CALL|RET|ATOM|BPT|BRX|STG.*U8")
_PUSH, _BARRIER = re.compile(r"STAS|RED"), re.compile(r"BAR\b")
_SUMS = "LDS.128"


def _is_of_option(instruction: Instruction) -> bool:
    return _OF_OPTIONS.match(instruction.opcode) is not None


class Chain(NamedTuple):
    instructions: int
    cycles: int


def _best(
    instructions: Sequence[Instruction], allowed: set[int], start: int, num_loads: int, ends: re.Pattern[str]
) -> list[int] | None:
    """The indices of the path as this file's first lines say, its end included, with so many loads of sums; None where there is none."""
    following = successors(instructions)
    scores: dict[tuple[int, int], tuple[tuple[int, int], int] | None] = {}  # (floating point, -all), next index
    open_: set[tuple[int, int]] = set()

    def is_end(index: int) -> bool:
        return index != start and ends.match(instructions[index].opcode) is not None

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
        elif (
            index not in allowed
            or (_is_of_option(instruction) and not instruction.guard)
            or after(index, loads) > num_loads
        ):
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
                ((points, length), _), next_index = best
                points += floating_point - OPTION * _is_of_option(instruction)
                scores[state] = ((points, length - 1), next_index)
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
        if control.sets is not None and not _is_of_option(instructions[index]):  # which a predicate has switched off
            released[control.sets] = max(released[control.sets], now + LATENCIES.get(name, OTHER_LATENCY))
        if control.frees is not None:
            released[control.frees] = max(released[control.frees], now + OPERANDS_READ)
        now += max(control.stall, 1) + (BARRIER if name == "BAR" else 0)
    return now


def _chain(
    kernel: Kernel, step: set[int], of_chunks: set[int], start: int, num_loads: int, ends: re.Pattern[str]
) -> Chain | None:
    instructions = kernel.instructions
    # Not round the loop.
    entries = {to for index, found in enumerate(successors(instructions)) if index not in step for to in found}
    allowed = step - of_chunks - (entries - {start})
    path = _best(instructions, allowed, start, num_loads, ends)
    return Chain(len(path), _cycles(instructions, kernel.controls, path)) if path else None


def beside_product(kernel: Kernel, step: set[int], of_chunks: set[int], num_loads: int) -> Chain | None:
    """`step`, `of_chunks`: indices of the loops over steps and over chunks of weights; `num_loads`: of 16 bytes of sums to be added."""
    last = max(index for index in step if kernel.instructions[index].opcode.startswith("HMMA"))
    start = min(index for index in step if index > last and index not in of_chunks)
    return _chain(kernel, step, of_chunks, start, num_loads, _PUSH)


def before_product(
    kernel: Kernel, step: set[int], of_chunks: set[int], num_loads: int, two_level: bool
) -> Chain | None:
    """The same of a step that begins with parts of sums, which have been copied (`two_level`) or pushed; those of a norm are float64."""
    inside = sorted(step - of_chunks)
    opcode = {index: kernel.instructions[index].opcode for index in inside}
    if two_level:
        copied = [index for index in inside if opcode[index].startswith("DEPBAR")]
        starts = [next(i for i in inside if i > index and _BARRIER.match(opcode[i])) + 1 for index in copied]
    else:
        starts = [index + 1 for index in inside if "TRYWAIT" in opcode[index]]
    ends = _PUSH if two_level else _BARRIER
    found = [chain for start in starts if (chain := _chain(kernel, step, of_chunks, start, num_loads, ends))]
    return max(found, default=None)
