"""Blocks of a multiprocessor by registers and shared memory."""

import pytest

pytest.importorskip("fastrnn._C")

from benchmarks import occupancy
from benchmarks.devices import DEVICES
from benchmarks.occupancy import MULTIPROCESSORS, Occupancy, Usage
from benchmarks.targets import TARGETS, Row, Target, rows

H100, A100 = MULTIPROCESSORS["H100"], MULTIPROCESSORS["A100"]
SYMBOL = "_ZN7fastrnn4cuda18recurrence_forwardINS0_6TensorINS0_10HalfNumberI13__nv_bfloat16EEEENS0_8LstmCellENS0_11ClusterTeamELi1ELi1EEEvNS_13ForwardParamsENS0_6TilingENS0_9WorkspaceE"
DUMP = f"""
Fatbin elf code:
================
arch = sm_80
Resource usage:
 Function {SYMBOL}:
  REG:4 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:664 TEXTURE:0 SURFACE:0 SAMPLER:0
arch = sm_90a
 Function {SYMBOL}:
  REG:236 STACK:0 SHARED:1024 LOCAL:0 CONSTANT[0]:840 TEXTURE:0 SURFACE:0 SAMPLER:0
""".split("\n")


@pytest.mark.parametrize(
    ("device", "usage", "dynamic", "expected"),
    [
        (H100, Usage(255, 0), 0, Occupancy(1, "registers", 0.125)),
        (H100, Usage(128, 0), 0, Occupancy(2, "registers", 0.25)),
        (H100, Usage(129, 0), 0, Occupancy(1, "registers", 0.125)),  # 136 are taken
        (H100, Usage(32, 0), 0, Occupancy(8, "registers and threads", 1.0)),
        (H100, Usage(32, 0), 227 << 10, Occupancy(1, "shared memory", 0.125)),
        (H100, Usage(64, 0), (76 << 10) - 1024, Occupancy(3, "shared memory", 0.375)),
        (H100, Usage(64, 1), (76 << 10) - 1024, Occupancy(2, "shared memory", 0.25)),
        (A100, Usage(64, 0), (76 << 10) - 1024, Occupancy(2, "shared memory", 0.25)),
        (H100, Usage(255, 0), 200 << 10, Occupancy(1, "registers and shared memory", 0.125)),
    ],
)
def test_the_scarcest_limits_the_blocks(device, usage, dynamic, expected):
    assert occupancy.occupancy(device, usage, dynamic) == expected


def test_usage_is_read_by_architecture_without_what_the_system_reserves():
    assert occupancy.read(DUMP) == {("sm_80", SYMBOL): Usage(4, 0), ("sm_90a", SYMBOL): Usage(236, 0)}


def test_a_plan_finds_its_kernel_and_the_table_has_every_pass_of_every_shape():
    kernels = occupancy.recurrences(occupancy.read(DUMP))
    row = next(r for r in rows("H100") if (r.cell, r.arithmetic) == ("LSTM", "bfloat16") and r.target.batch == 16)
    forward = row.plans[0]
    assert (forward["team"], forward["samples"]) == ("cluster", 8)
    key = occupancy.kernel_of(row, forward, False, kernels)
    assert key is not None and kernels[key].registers == 236
    assert occupancy.kernel_of(row, forward, True, kernels) is None
    assert occupancy.kernel_of(Row("H100", "GRU", "bfloat16", row.target), forward, False, kernels) is None
    text = occupancy.markdown(kernels)
    expected = sum(len(arithmetics) for _, arithmetics in TARGETS) * 3 * 2 * len(DEVICES)
    assert text.count("| forward |") + text.count("| backward |") == expected
    assert "nothing was measured" in text and "| cluster | 8 | 236 |" in text


def test_a_grid_of_clusters_runs_the_kernel_of_its_own_and_is_called_so():
    large = Target(32, 512, 1024)
    row = Row("H100", "LSTM", "bfloat16", large)
    backward = row.plans[1]
    assert backward["team"] == "grid" and backward["cluster_size"] > 1
    name = "recurrence_backward<Tensor<HalfNumber<__nv_bfloat16> >, LstmCell, {}, {}>"
    kernels = {
        ("sm_90a", name.format(team, tiles)): Usage(registers, 0)
        for team, tiles, registers in [("GridTeam", 1, 101), ("GridTeam", 2, 102), ("TwoLevelTeam", 1, 103)]
    }
    key = occupancy.kernel_of(row, backward, True, kernels)
    assert key is not None and kernels[key].registers == 103
    text = occupancy.markdown(kernels)
    shared = backward["shared_bytes"]
    assert f"| LSTM | bfloat16 | {large} | backward | grid in clusters | 8 | 103 | {shared} | 1 |" in text


@pytest.mark.parametrize(
    ("blocks", "sentence"),
    [([1, 1], "none has room for a second block"), ([1, 2, 3], "2 of 3 have room for a second block")],
)
def test_the_preamble_says_what_the_table_says(blocks, sentence):
    rows = [f"LSTM | tf32 | 1, 2, 3 | forward | block | 8 | 64 | 1024 | {count} | registers | 12%" for count in blocks]
    empty = " | ".join(["LSTM", "tf32", "1, 2, 3", "forward", "matmul", *[""] * 6])
    assert sentence in occupancy._most_blocks([*rows, empty])
