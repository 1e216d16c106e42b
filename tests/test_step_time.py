"""Times by the compiler's stall counts: what is decoded, which path is taken, what is added up."""

import pytest

pytest.importorskip("fastrnn._C")

from benchmarks import sass, step_time
from benchmarks.sass import Control
from benchmarks.step_time import BARRIER, LATENCIES, before_product, beside_product


def kernel(text: str) -> sass.Kernel:
    """Lines of: stall, barrier set (-: none), barriers waited for (-: none), instruction."""
    lines = ["\tarch = sm_90a", "\t\tFunction : kernel"]
    for index, line in enumerate(text.strip().split("\n")):
        stall, sets, waits, instruction = line.split(None, 3)
        high = int(stall) | (7 if sets == "-" else int(sets)) << 5 | 7 << 8
        high |= sum(1 << (11 + int(barrier)) for barrier in waits if barrier != "-")
        lines.append(f"        /*{16 * index:04x}*/  {instruction} ;  /* 0x0000000000000000 */")
        lines.append(f"      /* 0x{high << 41:016x} */")
    (found,) = sass.kernels(lines)
    return found


def measured(text: str, num_loads: int = 0) -> step_time.Chain | None:
    found = kernel(text)
    return beside_product(found, set(range(len(found.instructions))), set(), num_loads)


def test_control_bits_are_decoded():
    # MUFU.RCP of tests/lstm_step.sass's kernel: stalls 2, sets barrier 0, waits for it
    control = Control.decoded((2 | 1 << 4 | 0 << 5 | 7 << 8 | 1 << 11) << 41)
    assert control == Control(stall=2, sets=0, frees=None, waits=(0,))
    assert kernel("13 - - HMMA R1, R2\n5 3 14 STAS R1, R2").controls == {
        0: Control(13, None, None, ()),
        16: Control(5, 3, None, (1, 4)),
    }


def test_stalls_and_latencies_that_are_waited_for_are_added():
    found = measured("""
        1 - - HMMA R1, R2
        4 - - FADD R1, R1
        2 0 - MUFU.EX2 R1, R1
        6 - - FADD R2, R2
        5 - 0 FADD R1, R1
        1 - - BAR.SYNC 0x0
        1 - - STAS.128 [R1], R2
    """)
    # the second addition waits for the special function, issued after 4 cycles
    assert found == (6, 4 + LATENCIES["MUFU"] + 5 + 1 + BARRIER + 1)


def test_the_path_has_the_cell_but_no_option():
    found = measured("""
        1 - - HMMA R1, R2
        4 - - @P0 BRA 0x60
        5 - - FADD R1, R1
        5 - - @P1 BRA 0x60
        9 - - LDG.E R1, [R2]
        9 - - FADD R1, R1
        2 - - STAS.128 [R1], R2
    """)
    assert found == (4, 4 + 5 + 5 + 2)


def test_sums_are_added_as_often_as_the_plan_says():
    text = """
        1 - - HMMA R1, R2
        1 - - MOV R0, RZ
        2 - - @P0 BRA 0x60
        4 1 - LDS.128 R4, [R2]
        1 - 1 FADD R1, R4
        5 - - @P1 BRA 0x30
        2 - - STAS.128 [R1], R2
    """
    once = LATENCIES["LDS"] + 1 + 5
    assert [measured(text, loads) for loads in (0, 1, 3)] == [
        (3, 5),
        (6, 3 + once + 2),
        (12, 3 + 3 * once + 2),
    ]
    assert measured("1 - - HMMA R1, R2\n2 - - MOV R1, R2\n2 - - STAS.128 [R1], R2", 1) is None


def test_an_option_that_a_predicate_switches_off_costs_no_latency_and_leads_the_path_nowhere():
    found = measured("""
        1 - - HMMA R1, R2
        4 - - @P0 BRA 0x50
        5 0 - @P1 LDG.E R1, [R2]
        9 - 0 @P1 FMUL R1, R1, R2
        9 - - FMUL R1, R1, R1
        3 0 - @P1 LDG.E R4, [R2]
        5 - 0 FADD R1, R4
        5 - - FADD R1, R4
        5 - - FADD R1, R4
        5 - - FADD R1, R4
        2 - - @P2 BRA 0xc0
        1 - - NOP
        2 - - STAS.128 [R1], R2
    """)
    # over the first load, whose two multiplications it is not worth, but through the second
    assert found == (8, 4 + 3 + 4 * 5 + 2 + 2)


def test_the_path_does_not_go_round_the_loop():
    """Whoever does not push would come by the additions again."""
    text = """
        1 - - MOV R0, RZ
        3 - - HMMA R1, R2
        5 - - FADD R1, R1
        4 - - @P0 BRA 0x50
        2 - - RED [R1], R2
        7 - - @P1 BRA 0x10
        1 - - EXIT
    """
    assert beside_product(kernel(text), {1, 2, 3, 4, 5}, set(), 0) == (3, 5 + 4 + 2)


PARTS = """
    1 - - MOV R0, RZ
    1 - - SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R1]
    4 - - @P1 BRA 0x60
    4 1 - LDS.128 R4, [R2]
    1 - 1 FADD R1, R4
    5 - - @P1 BRA 0x30
    6 - - FMUL R1, R1
    7 - - STS [R1], R2
    1 - - BAR.SYNC 0x0
    3 - - HMMA R1, R2
    2 - - @P2 BRA 0x10
    1 - - SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R1]
    1 - - DADD R2, R2
    1 - - @P3 BRA 0x60
    1 - - EXIT
"""


@pytest.mark.parametrize("parts", [0, 1, 2, 16])
def test_a_step_that_begins_with_parts_ends_before_the_product(parts):
    """Each part is added once, and the wait for a norm is none for parts."""
    once = LATENCIES["LDS"] + 1 + 5
    found = before_product(kernel(PARTS), set(range(1, 14)), set(), parts, two_level=False)
    assert found == (4 + 3 * parts, 4 + parts * once + 6 + 7 + 1 + BARRIER)


def test_a_two_level_step_begins_with_the_parts_that_were_copied_and_ends_with_a_push():
    found = before_product(
        kernel("""
            1 - - MOV R0, RZ
            9 - - DEPBAR.LE SB0, 0x0
            9 - - BAR.SYNC 0x0
            4 1 - LDS.128 R4, [R2]
            6 - 1 FADD R1, R4
            2 - - STAS.128 [R1], R2
            1 - - BAR.SYNC 0x0
            3 - - HMMA R1, R2
            2 - - @P2 BRA 0x10
            1 - - EXIT
        """),
        set(range(1, 9)),
        set(),
        1,
        two_level=True,
    )
    assert found == (3, LATENCIES["LDS"] + 6 + 2)
