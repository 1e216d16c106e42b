"""Instructions of a step in the machine code, beside what the plan counts on.

    python -m benchmarks.instructions LIBRARY --out benchmarks/results/instructions.md

For the kernels of the tensor cores whose blocks exchange h (teams cluster and grid, and two-level, a grid of clusters) it finds the
loop over the steps: the outermost one with matrix instructions. Within it, chunks of weights in registers are written out one after another, with an exit where a
warp's share ends; chunks in shared memory, and those read from memory, have a loop each. In a reduce-scatter every chunk is
followed by the pushes of its tiles' sums, which run after the last chunk of a group of tiles; where h or gate gradients are
gathered, pushes stand in loops over the peers. Counts are of the code, so that of two sides of a branch both count; how often a
loop runs follows from the plan. Nothing was measured.
"""

from __future__ import annotations

import argparse
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.devices import CELLS, DEVICES, SCALARS, is_two_level
from benchmarks.sass import Instruction, Kernel, cuobjdump, dump, kernels, loops, readable
from benchmarks.step_time import CYCLES, Chain, before_product, beside_product
from benchmarks.tables import table, write
from fastrnn import _C

KINDS = {  # what is counted: a name, and the instructions that it matches
    "matrix": r"HMMA",
    "multiply-add": r"[FD]FMA|HFMA2",
    "special function": r"MUFU",
    "shared 16 B load": r"LDS\.128|LDSM.*\.4$",
    "shared load, narrower": r"LDS(?!\.128|M)|LDSM(?!.*\.4$)",
    "global 16 B load": r"LDG\b.*\.128",
    "global load, narrower": r"LDG\b(?!.*\.128)",
    "generic 16 B load": r"LD\b.*\.128",
    "generic load, narrower": r"LD\b(?!.*\.128)",
    "load of a byte": r"LD[GS]?\b.*\.[US]8",  # one of those above
    "copy to shared": r"LDGSTS",
    "shared 16 B store": r"STS\.128",
    "shared store, narrower": r"STS(?!\.128)",
    "global 16 B store": r"STG\b.*\.128",
    "global store, narrower": r"STG\b(?!.*\.128)",
    "barrier": r"BAR\b",
    "mbarrier": r"SYNCS",
    "16 B push to peer": r"STAS\.128",
    "push to peer, narrower": r"STAS(?!\.128)",
    "counter": r"REDG?\b|ATOM",
}
PARTS = ("once a step", "a chunk from shared memory", "a chunk from memory", "other loops, once each")
HIDDEN_SIZE, STEPS = 512, 100  # of the reference; its batch is what a team takes
WARPS, LANES = 8, 32  # of a block, of a warp
WEIGHT_ROWS, SAMPLES, COLUMNS = 16, 8, {"bfloat16": 16, "tf32": 8}  # of a matrix instruction
SCATTER_TILES = 2  # of weight rows, that a warp multiplies at once in a reduce-scatter
GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}

_NAME = re.compile(
    r"recurrence_(?P<pass>forward|backward)<Tensor<(?:HalfNumber<(?P<half>\w+)> ?|Tf32Number)>, (?P<cell>\w+)Cell, "
    r"(?P<team>Cluster|Grid|TwoLevel)Team, (?P<tiles>\d+)"
)


class Step(NamedTuple):
    """The loop over the steps: instructions by part of it and kind."""

    counts: dict[str, Counter[str]]
    beside_product: Chain | None = None  # at the reference
    parts: int | None = None  # cycles that adding the parts takes, where the step begins with them

    @property
    def matrix_of_a_chunk(self) -> int:
        return self.counts[PARTS[1]]["matrix"]

    @property
    def register_chunks(self) -> int:
        """How many chunks are written out, for weights in registers."""
        return self.counts[PARTS[0]]["matrix"] // self.matrix_of_a_chunk

    @property
    def pushes_of_a_chunk(self) -> int:
        """Of its sums, in a reduce-scatter; else 0."""
        return self.counts[PARTS[1]]["16 B push to peer"]


def _count(instructions: Iterable[Instruction]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for instruction in instructions:
        counts["all"] += 1
        counts.update(kind for kind, pattern in KINDS.items() if re.match(pattern, instruction.opcode))
    return counts


class StepLoops(NamedTuple):
    step: set[int]  # indices of the loop over the steps
    from_shared: set[int]  # loops within it: a chunk of weights each
    from_memory: set[int]
    others: set[int]


def loops_of(instructions: Sequence[Instruction]) -> StepLoops:
    """
    Raises:
        ValueError: the code is not built as this file's first lines say.
    """
    found = loops(instructions)

    def has(loop: Iterable[int], kind: str) -> bool:
        return any(re.match(KINDS[kind], instructions[index].opcode) for index in loop)

    with_matrix = [loop for loop in found if has(loop, "matrix")]
    outermost = [loop for loop in with_matrix if not any(loop < other for other in with_matrix)]
    if len(outermost) != 1:
        raise ValueError(f"{len(outermost)} outermost loops have matrix instructions, expected one")
    (step,) = outermost
    of_chunks = [loop for loop in with_matrix if loop < step]
    # the operand, too, may be read by generic loads, but by narrower ones
    from_memory = [loop for loop in of_chunks if has(loop, "global 16 B load") or has(loop, "generic 16 B load")]
    from_shared = [loop for loop in of_chunks if loop not in from_memory]
    if len(from_shared) != 1 or len(from_memory) != 1:
        raise ValueError(
            f"{len(from_shared)} loops multiply from shared memory and {len(from_memory)} from memory, expected one of each"
        )
    others = set().union(*(loop for loop in found if loop < step and loop not in of_chunks))
    return StepLoops(step, from_shared[0], from_memory[0], others - from_memory[0] - from_shared[0])


def step_of(instructions: Sequence[Instruction]) -> Step:
    """
    Raises:
        ValueError: as loops_of.
    """
    step, *in_loops = loops_of(instructions)
    of_parts = dict(zip(PARTS[1:], in_loops, strict=True))
    of_parts[PARTS[0]] = step - set().union(*in_loops)
    counts = {part: _count(instructions[index] for index in sorted(of_parts[part])) for part in PARTS}
    written_out, *matrix = (counts[part]["matrix"] for part in PARTS[:3])
    if matrix[0] != matrix[1] or written_out % matrix[0]:
        raise ValueError(f"{written_out} matrix instructions are written out, the loops over chunks have {matrix}")
    found_step = Step(counts)
    pushes = [counts[part]["16 B push to peer"] for part in PARTS[:3]]
    if pushes != [found_step.register_chunks * pushes[1], pushes[1], pushes[1]]:
        raise ValueError(
            f"{pushes[0]} pushes are written out for {found_step.register_chunks} chunks, the loops over chunks have {pushes[1:]}"
        )
    return found_step


class Name(NamedTuple):
    arch: str
    direction: str  # forward or backward
    arithmetic: str
    cell: str
    team: str
    batch_tiles: int

    @classmethod
    def of(cls, kernel: Kernel, name: str) -> Name | None:
        """None for other kernels, for float16, whose code is bfloat16's, and for stubs on architectures without clusters."""
        match = _NAME.match(name)
        if match is None or match["half"] == "__half" or len(kernel.instructions) < 64:
            return None
        arithmetic = "bfloat16" if match["half"] else "tf32"
        team = {"Cluster": "cluster", "Grid": "grid", "TwoLevel": "two-level"}[match["team"]]
        return cls(kernel.arch, match["pass"], arithmetic, match["cell"].upper(), team, int(match["tiles"]))

    def __str__(self) -> str:
        return f"{self.arch} | {self.team} | {self.direction} | {self.cell} | {self.arithmetic} | {self.batch_tiles * SAMPLES}"

    @property
    def device(self) -> str:
        return "A100" if self.arch.startswith("sm_80") else "H100"

    def plan(self) -> _C.Plan | None:
        """The fastest of this team at the reference; None where the weights do not fit."""
        scalar, tf32 = SCALARS[self.arithmetic]
        request = _C.PlanRequest(
            cell=CELLS[self.cell], scalar=scalar, steps=STEPS, batch=self.batch_tiles * SAMPLES, hidden_size=HIDDEN_SIZE,
            state_size=HIDDEN_SIZE, backward=self.direction == "backward", allows_tf32=tf32, all_plans=True,
        )  # fmt: skip
        for plan in _C.all_plans(request, DEVICES[self.device]):
            team = "two-level" if is_two_level(plan) else plan["team"]
            if (team, plan["samples"]) == (self.team, self.batch_tiles * SAMPLES):
                return plan
        return None


HEADER = "arch | team | pass | cell | arithmetic | samples"


def against_plan(name: Name, step: Step) -> tuple[str, bool] | None:
    """A row of the first table, and whether the code does what the plan counts on. None where there is no plan."""
    plan = name.plan()
    if plan is None:
        return None
    gates = GATES[name.cell]
    rows = gates * HIDDEN_SIZE if name.direction == "forward" else HIDDEN_SIZE
    columns = HIDDEN_SIZE if name.direction == "forward" else gates * HIDDEN_SIZE
    of_instruction = WEIGHT_ROWS * COLUMNS[name.arithmetic]
    least = rows * columns * name.batch_tiles / (of_instruction * plan["team_size"] * WARPS)
    of_warps = plan["team_size"] * plan["unit_warps"] * WEIGHT_ROWS
    tiles = (
        SCATTER_TILES if plan["scatters"] or name.team == "two-level" else math.ceil(rows / of_warps)
    )  # of weight rows, in a warp's chunk
    expected = plan["chunks"] * tiles * name.batch_tiles * 2  # a chunk has the columns of two instructions
    in_registers = min(plan["chunks"] - plan["shared_chunks"], step.register_chunks)
    streamed = plan["chunks"] - plan["shared_chunks"] - in_registers
    executed = (in_registers + plan["shared_chunks"] + streamed) * step.matrix_of_a_chunk
    weight_loads = plan["shared_chunks"] * (step.counts[PARTS[1]]["shared 16 B load"] - _operand_loads(name))
    expected_weight_loads = plan["shared_chunks"] * tiles * 2
    pushes, pushed = _pushed(name, step, plan)
    exchanged = plan["exchange_bytes"] if name.team == "cluster" else 0  # a grid's go through L2
    exchange = [f"{pushes}", f"{pushed}", f"{exchanged}"] if name.team == "cluster" else ["", "", ""]
    cells = [
        f"{name}",
        f"{plan['team_size']} x {plan['unit_warps']} x {plan['splits']}",
        f"{in_registers} + {plan['shared_chunks']} + {streamed}",
        f"{step.counts[PARTS[0]]['matrix']}",
        f"{step.matrix_of_a_chunk}",
        f"{executed}",
        f"{expected}",
        f"{least:g}",
        f"{weight_loads}",
        f"{expected_weight_loads}",
        *exchange,
    ]
    no_register_is_idle = plan["shared_chunks"] == 0 or in_registers == step.register_chunks
    found = (executed, weight_loads, pushed, streamed)
    agrees = no_register_is_idle and found == (expected, expected_weight_loads, exchanged, 0)
    return " | ".join(cells), agrees


def _pushed(name: Name, step: Step, plan: _C.Plan) -> tuple[int, int]:
    """Pushes of a warp that pushes at all, in a step without a norm, and the bytes that its block's push."""
    if name.team != "cluster":
        return 0, 0
    if plan["scatters"]:
        columns = GATES[name.cell] * plan["unit_warps"] * WEIGHT_ROWS  # of the block's units
        chunks_of_group = math.ceil(columns / (2 * COLUMNS[name.arithmetic]))
        pushes = plan["chunks"] // chunks_of_group * step.pushes_of_a_chunk
        return pushes, pushes * WARPS * LANES * 16
    if name.arithmetic == "bfloat16":  # the threads of a row share the peers
        pushes = step.counts[PARTS[3]]["16 B push to peer"] * math.ceil(plan["team_size"] / 4)
        return pushes, pushes * plan["unit_warps"] * LANES * 16
    # that of a norm stands in a loop, too, or by itself
    of_norm = name.direction == "backward" and not step.counts[PARTS[0]]["push to peer, narrower"]
    pushes = (step.counts[PARTS[3]]["push to peer, narrower"] - of_norm) * plan["team_size"]
    return pushes, pushes * plan["unit_warps"] * LANES * 8


def _chain(name: Name, kernel: Kernel) -> tuple[Chain | None, int | None]:
    """Of a step, without the adding of parts; and the cycles of that, where there are any. None where there is no plan."""
    plan = name.plan()
    if plan is None:
        return None, None
    step, from_shared, from_memory, _ = loops_of(kernel.instructions)
    of_chunks = from_shared | from_memory
    if name.team == "two-level" or plan["scatters"]:
        two_level = name.team == "two-level"
        num_parts = plan["team_size"] // plan["cluster_size"] if two_level else plan["team_size"]
        none, all_ = (
            before_product(kernel, step, of_chunks, loads, two_level) for loads in (0, num_parts * name.batch_tiles)
        )
        return none, all_.cycles - none.cycles if none and all_ else None
    tiles = 1 if name.direction == "backward" else 2 if name.cell == "LSTM" else GATES[name.cell]
    sums = (plan["splits"] - 1) * tiles * name.batch_tiles
    return beside_product(kernel, step, of_chunks, sums), None


def _chain_row(name: Name, step: Step) -> str:
    plan, chain = name.plan(), step.beside_product
    assert plan is not None
    assert chain is not None
    of_plan = re.search(r"\bcell ([\d.]+)", plan["bound"])
    return " | ".join([
        str(name), str(plan["splits"]), str(chain.instructions), str(chain.cycles), f"{chain.cycles / CYCLES:.2f}",
        of_plan[1] if of_plan else "", "" if step.parts is None else f"{step.parts / CYCLES:.2f}",
    ])  # fmt: skip


def _operand_loads(name: Name) -> int:
    """16-byte loads of a chunk of the operand, beside those of the weights: ldmatrix, which tf32 cannot use."""
    return name.batch_tiles if name.arithmetic == "bfloat16" else 0


def _sixteen_bytes(steps: dict[Name, Step]) -> str:
    """A sentence on the loads of a chunk of weights in shared memory."""
    wide, narrow, operand = 0, 0, 0
    for name, step in steps.items():
        counts = step.counts[PARTS[1]]
        loads = counts["shared 16 B load"] + counts["generic 16 B load"] - _operand_loads(name)
        wide += loads
        of_operand = 0 if name.arithmetic == "bfloat16" else 4 * name.batch_tiles
        others = counts["shared load, narrower"] + counts["generic load, narrower"]
        operand += min(others, of_operand)
        narrow += max(0, others - of_operand)
    return (
        f"Weights in shared memory are read by 16 bytes: {wide} loads in all chunks' loops, and {narrow} narrower ones; tf32 reads its "
        f"operand by words, {operand}."
    )


def _read_by_bytes(steps: dict[Name, Step]) -> str:
    """A sentence on kernels that read the operand so."""
    found = {name: count for name, step in steps.items() if (count := step.counts[PARTS[1]]["load of a byte"])}
    if not found:
        return "No chunk's operand is read a byte at a time."
    arithmetics = " and ".join(sorted({name.arithmetic for name in found}))
    return (
        f"{len(found)} kernels, of {arithmetics}, read the operand of a chunk a byte at a time: "
        f"{min(found.values())} or {max(found.values())} loads where words would be a quarter as many."
    )


def markdown(steps: dict[Name, Step]) -> str:
    order = sorted(steps)
    kinds = ["all", *KINDS]
    compared = [row for name in order if (row := against_plan(name, steps[name]))]
    counted = [
        " | ".join([str(name), part, *(str(steps[name].counts[part][kind]) for kind in kinds)])
        for name in order
        for part in PARTS
    ]
    return f"""# Instructions of a step

Read from the machine code by benchmarks/instructions.py; nothing was measured. Tensor-core kernels of the teams cluster, grid and two-level (a grid of clusters);
float16 has bfloat16's code but for single instructions. `samples`: that a team takes at once.

## Against the plan

Matrix instructions, and 16-byte loads of weights from shared memory, of a warp in a step, at H {
        HIDDEN_SIZE
    } and as many samples as
a team takes, by the plan for {
        " and ".join(DEVICES)
    }. `chunks`: a warp's, in registers + in shared memory + from memory. `written
out` and `in the loop` stand in the code, for the chunks in registers, of which a warp leaves out those beyond its share, and for
each chunk in shared memory. `executed` follows from them and the chunks; `plan` is what csrc/plan.cpp counts on; `least` is that
without padding, spread evenly. `pushes`: to peers, of a warp that owns units or, in the reduce-scatter of LSTM's and GRU's backward
in a cluster, has tiles; without those of a norm. Their `bytes`, of all warps of a block, stand beside the exchange of the plan,
which is what a block receives: the same where all blocks own as many units. Grids exchange through L2.

Without a row: the weights do not fit. Code and plan agree in {sum(agrees for _, agrees in compared)} of
{
        len(compared)
    } rows; they also have to agree in that no weights come from memory, and that all registers for weights are in use
before shared memory is.

{
        table(
            f"{HEADER} | blocks x unit warps x splits | chunks | matrix: written out | in the loop | executed | plan | least "
            "| weight loads: executed | plan | pushes | bytes | plan",
            [row for row, _ in compared],
        )
    }
## Beside the product

What a warp goes through beside the product at the same sizes, sums of splits, cell and all: instructions, and the cycles that the
compiler's own stall counts and published latencies make of them (benchmarks/step_time.py), at {
        CYCLES
    } a microsecond. From the product
to the first push; in backward's reduce-scatter and two-level exchange, whose step begins with parts of the sums, from those to the
operand of the product, and `parts` is the adding of them, which is counted beside it. `plan`: what csrc/plan.cpp counts, "cell".

{
        table(
            f"{HEADER} | splits | instructions | cycles | us | plan | parts, us",
            [_chain_row(name, steps[name]) for name in order if steps[name].beside_product],
        )
    }
## Of the code

Each instruction once, both sides of branches, subroutines left out. `once a step` has the chunks in registers; `other loops` push
h to peers, copy it, add the sums of splits or of a reduce-scatter, and wait. Generic loads are those of which the compiler does not
know the memory. Loads of a byte are counted a second time. {_sixteen_bytes(steps)}
{_read_by_bytes(steps)}

{table(f"{HEADER} | part | {' | '.join(kinds)}", counted)}"""


def read(lines: Iterable[str]) -> dict[Name, Step]:
    found = {}
    for kernel in kernels(lines):
        if "recurrence_" in kernel.symbol and (name := Name.of(kernel, readable([kernel.symbol])[0])):
            try:
                chain, parts = _chain(name, kernel)
                found[name] = step_of(kernel.instructions)._replace(beside_product=chain, parts=parts)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", type=Path, help="fastrnn/_ops_cuda*.so")
    parser.add_argument("--out", type=Path, help="the markdown file; else it is printed")
    arguments = parser.parse_args()
    tool = cuobjdump()
    if tool is None:
        parser.error("no cuobjdump: it comes with the CUDA toolkit and with triton")
    text = markdown(read(dump(tool, arguments.library)))
    write(text, arguments.out)


if __name__ == "__main__":
    main()
