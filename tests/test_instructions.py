"""The reading of machine code: loops by their branches, and instructions of a step by kind."""

from pathlib import Path

import pytest

pytest.importorskip("fastrnn._C")

from benchmarks import instructions, sass

STEP = Path(__file__).with_name("lstm_step.sass").read_text().split("\n")
SCATTER_STEP = Path(__file__).with_name("lstm_scatter_step.sass").read_text().split("\n")
ONCE, SHARED, MEMORY, OTHER = instructions.PARTS


def code(text: str) -> list[sass.Instruction]:
    lines = [f"        /*{16 * index:04x}*/  {line.strip()} ;" for index, line in enumerate(text.strip().split("\n"))]
    (kernel,) = sass.kernels(["\tarch = sm_80", "\t\tFunction : kernel", *lines])
    return kernel.instructions


def test_instructions_have_address_guard_opcode_and_operands():
    (kernel,) = sass.kernels(STEP)
    assert kernel.arch == "sm_90a"
    name = "recurrence_forward<Tensor<HalfNumber<__nv_bfloat16>>, LstmCell, ClusterTeam, 1, 1>"
    assert sass.readable([kernel.symbol])[0].replace("> >", ">>") == name
    assert kernel.instructions[2] == (0xE110, "!P1", "BRA", "0xe2a0")
    assert kernel.instructions[-3].opcode == "IMAD.SHL.U32"


def test_a_step_is_counted_by_part_and_kind():
    (kernel,) = sass.kernels(STEP)
    step = instructions.step_of(kernel.instructions)
    found = {part: {kind: n for kind, n in step.counts[part].items() if kind != "all"} for part in instructions.PARTS}
    assert found == {
        # two chunks in registers; the reciprocal's subroutine is left out, what the wait spins on is not
        ONCE: {
            "barrier": 1,
            "mbarrier": 2,
            "shared 16 B load": 2,
            "matrix": 8,
            "special function": 1,
            "multiply-add": 2,
        },
        SHARED: {"shared 16 B load": 5, "matrix": 4},
        MEMORY: {"shared 16 B load": 1, "global 16 B load": 1, "global load, narrower": 2, "matrix": 4},
        OTHER: {"16 B push to peer": 1, "mbarrier": 1},
    }
    assert step.matrix_of_a_chunk == 4
    assert step.register_chunks == 2


def test_sums_that_are_pushed_after_a_chunk_are_counted_with_it():
    (kernel,) = sass.kernels(SCATTER_STEP)
    step = instructions.step_of(kernel.instructions)
    found = {part: {kind: n for kind, n in step.counts[part].items() if kind != "all"} for part in instructions.PARTS}
    assert found == {
        ONCE: {"barrier": 1, "shared 16 B load": 2, "matrix": 8, "16 B push to peer": 4},
        SHARED: {"shared 16 B load": 5, "matrix": 4, "16 B push to peer": 2},
        # weights whose memory the compiler does not know
        MEMORY: {
            "shared 16 B load": 1,
            "generic 16 B load": 1,
            "generic load, narrower": 2,
            "matrix": 4,
            "16 B push to peer": 2,
        },
        OTHER: {"push to peer, narrower": 1},  # of a norm
    }
    assert step.register_chunks == 2
    assert step.pushes_of_a_chunk == 2


def test_a_chunk_whose_operand_is_read_by_generic_loads_is_not_from_memory():
    step = instructions.step_of(
        code("""
            MOV R0, RZ
            HMMA.1688.F32.TF32 R4, R4, R4, R4
            LD.E.U8 R8, [R2.64]
            LDS.128 R4, [R2]
            HMMA.1688.F32.TF32 R4, R4, R4, R4
            @P0 BRA 0x20
            LD.E.U8 R8, [R2.64]
            LD.E.128 R4, [R2.64]
            HMMA.1688.F32.TF32 R4, R4, R4, R4
            @P0 BRA 0x60
            @P1 BRA 0x10
            EXIT
        """)
    )
    assert step.counts[SHARED]["shared 16 B load"] == step.counts[MEMORY]["generic 16 B load"] == 1
    assert step.counts[SHARED]["generic load, narrower"] == step.counts[SHARED]["load of a byte"] == 1


def test_the_plans_matrix_instructions_stand_beside_those_of_the_code():
    text = instructions.markdown(instructions.read(STEP))
    # H 512 and 8 samples on an H100: 16 blocks, 8 chunks a warp, one of them in shared memory; the excerpt has two in registers
    row = "| sm_90a | cluster | forward | LSTM | bfloat16 | 8 | 16 x 4 x 2 | 2 + 1 + 5 | 8 | 4 | 32 | 32 | 32 | 4 | 4 | 4 | 8192 | 8192 |"
    assert row in text
    assert "agree in 0 of\n1 rows" in text  # the plan has seven in registers and none from memory
    assert f"| sm_90a | cluster | forward | LSTM | bfloat16 | 8 | {SHARED} | 12 | 4 |" in text


def test_the_exchange_of_the_plan_stands_beside_the_pushes_of_the_code():
    text = instructions.markdown(instructions.read(SCATTER_STEP))
    # 8 chunks a warp are 2 groups of 4, and of a group 2 tiles are pushed: 8 warps, 32 threads, 16 bytes
    row = "| sm_90a | cluster | backward | LSTM | bfloat16 | 8 | 16 x 2 x 4 | 2 + 1 + 5 | 8 | 4 | 32 | 32 | 32 | 4 | 4 | 4 | 16384 | 16384 |"
    assert row in text


@pytest.mark.parametrize(
    ("changed", "agrees"),
    [
        ({}, True),
        ({"shared_chunks": 1}, False),  # a chunk would come from memory
        ({"shared_chunks": 3}, False),  # registers would be idle
        ({"exchange_bytes": 4096}, False),
        ({"chunks": 8, "shared_chunks": 6}, False),  # two groups push twice
    ],
)
def test_code_agrees_with_a_plan_that_counts_as_it_does(monkeypatch, changed, agrees):
    ((name, step),) = instructions.read(SCATTER_STEP).items()
    # one group of tiles, two of its chunks in registers
    fitting = name.plan() | {"chunks": 4, "shared_chunks": 2, "exchange_bytes": 8192}
    monkeypatch.setattr(instructions.Name, "plan", lambda _: fitting | changed)
    assert instructions.against_plan(name, step)[1] == agrees


@pytest.mark.parametrize("lost", ["/*1cba0*/", "/*1e750*/", "/*20bc0*/"])
def test_a_chunk_without_its_pushes_is_refused(lost):
    with pytest.raises(ValueError, match=r"^sm_90a \| cluster \| backward .* pushes are written out for 2 chunks"):
        instructions.read(line for line in SCATTER_STEP if lost not in line)


@pytest.mark.parametrize("lost", ["/*e9f0*/", "/*e510*/", "/*fd00*/", "/*13ee0*/"])
def test_code_that_is_not_built_as_expected_is_refused(lost):
    """A matrix instruction less in a loop or of those written out; no branch back over chunks, or over steps."""
    with pytest.raises(ValueError, match=r"^sm_90a \| cluster \| forward .*(matrix instructions|from memory)"):
        instructions.read(line for line in STEP if lost not in line)


def test_a_loop_does_not_hold_what_leaves_it_or_what_it_calls():
    found = sass.loops(
        code("""
            MOV R0, RZ
            IADD3 R0, R0, 0x1, RZ
            @P1 BRA 0x60
            CALL.REL.NOINC 0x80
            @!P0 BRA 0x10
            EXIT
            HMMA.1688.F32 R4, R4, R4, R4
            BRA 0x40
            MUFU.RCP R2, R2
            RET.REL.NODEC R8 0x0
        """)
    )
    assert found == [{1, 2, 3, 4, 6, 7}]  # the branch to 0x60 comes back although it is written behind the loop


def test_a_call_that_never_returns_is_a_jump_and_a_jump_out_of_a_loop_is_no_loop():
    found = sass.loops(
        code("""
            NOP
            FFMA R0, R0, R0, R0
            @P0 CALL.REL.NOINC 0x40
            BRA 0x10
            NOP
            @P1 BRA P2, 0x0
            EXIT
        """)
    )
    assert found == [{0, 1, 2, 3, 4, 5}, {1, 2, 3}]
