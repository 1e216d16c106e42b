"""Mistakes that the tests of the kernels have to find, each planted in a copy of the sources.

A mistake replaces a text that occurs once. Only what it names is compiled again, the kernels of a team or a whole unit; the
program that compares the kernels with the textbook then has to fail, by its own word, on one of a few schedules.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from . import build

SEEDS = 6


@dataclass(frozen=True)
class Mistake:
    name: str
    file: str  # in csrc
    text: str
    replacement: str
    unit: str  # in csrc/cuda: what is compiled again
    cases: str  # word in the names of the cases (cases.h) that have to fail
    shows: str = ""  # what the output says, beside that numbers are wrong
    kernels: tuple[str, ...] = ()  # what is compiled again in place of the unit, which has it too

    def __str__(self) -> str:
        return self.name.replace(" ", "-")


CELLS = {"lstm": "LstmCell", "gru": "GruCell", "tanh": "RnnCell"}
# The kernels of each plan: by the word that the names of its cases begin with.
FORWARD = {
    "block": "BlockTeam",
    "cluster=2": "GridTeam",
    "cluster": "ClusterTeam",
    "grid": "GridTeam",
    "stepwise": "GridTeam",
}
BACKWARD = {**FORWARD, "cluster=2": "TwoLevelTeam"}
# Where launches are made.
HOST = {"recurrence.cuh", "launch.cuh"}


def kernels_of(plan: str, cell: str) -> tuple[str, ...]:
    """The recurrence's kernels in float32, to be instantiated."""
    op_and_cell = f"Fma<float>, {CELLS[cell]}"
    groups = f"GateTiles<{CELLS[cell]}>::kPaired ? 2 : 1" if plan == "block" else "1"
    tiles = [1] if plan == "block" else [1, 2]
    most_of_backward = [1] if plan == "cluster=2" and cell == "lstm" else tiles
    return (
        *(f"recurrence_forward<{op_and_cell}, {FORWARD[plan]}, {n}, {groups}>(ForwardParams" for n in tiles),
        *(f"recurrence_backward<{op_and_cell}, {BACKWARD[plan]}, {n}>(BackwardParams" for n in most_of_backward),
    )


def cells(name: str, text: str, replacement: str, cell: str = "lstm") -> Mistake:
    kernels = kernels_of("block", cell)
    return Mistake(name, "cells.h", text, replacement, f"instantiate/{cell}_float", f"block-{cell}-float", "", kernels)


def kernel(
    name: str, file: str, text: str, replacement: str, cases: str, cell: str = "lstm", shows: str = ""
) -> Mistake:
    unit, kernels = f"instantiate/{cell.replace('tanh', 'rnn')}_float", ()
    if file == "slices.cuh":
        unit = "slices"
    elif cases == "matmul":
        unit = "instantiate/matmul_float"
    else:
        cases = cases or "block"
        if file not in HOST:
            kernels = kernels_of(next(plan for plan in FORWARD if cases.startswith(plan)), cell)
    return Mistake(name, f"cuda/{file}", text, replacement, unit, f"{cases}-{cell}", shows, kernels)


_CLEAR_NEXT = "    this->fill(buffer(turn + 1), [](int, int) { return Op::operand(0); });\n"

MISTAKES = [
    cells("input and forget gate exchanged", "gates[1] * prev_c + gates[0] * (keep", "gates[0] * prev_c + gates[1] * (keep"),
    cells("output of the cell before", "return {next_h(gates[3], c), c};", "return {next_h(gates[3], prev.c), c};"),
    cells("candidate dropout forgotten in backward", "grad_c * i * keep * (Acc(1)", "grad_c * i * (Acc(1)"),
    cells("gradient of the cell forgotten", "grad_c = grad.c + grad.h", "grad_c = grad.h"),
    cells("reset forgotten in the recurrent gradient", "grad_r[2] = grad_n * r;", "grad_r[2] = grad_n;", "gru"),
    cells("update gate the wrong way round", "return {grad.h * z, Acc(0)};", "return {grad.h * (Acc(1) - z), Acc(0)};", "gru"),
    kernel("mask forgotten in forward", "forward.cuh", "h[0] *= factor[0], h[1] *= factor[1];", "", "cluster"),
    kernel("mask forgotten in the second of two samples", "forward.cuh", "h[0] *= factor[0], h[1] *= factor[1];", "h[0] *= factor[0];", "cluster"),
    kernel("reverse direction one row off", "forward.cuh", "p.shape.runs_back(d) ? samples.length[n][j] - 1 - step : step",
           "p.shape.runs_back(d) ? (samples.length[n][j] - step) % samples.length[n][j] : step", ""),
    kernel("y left as it was past a length", "forward.cuh", "if (!p.offsets)  // past a length y is zero", "if (false)", "stepwise"),
    kernel("cell not carried to the next launch", "forward.cuh",
           "*at<Acc>(workspace.carried_c, index) = state[n][v][j].c;", ";", "stepwise"),
    kernel("bias inside the reset forgotten", "forward.cuh",
           "if constexpr (Cell::kHasExtra) r[G - 1] += b_hn[v];", "", "", "gru"),
    kernel("gate of the neighbouring tile", "forward.cuh", "tiles[gate / 2 * 4 + gate % 2 * 2 + j]",
           "tiles[gate % 2 * 4 + gate / 2 * 2 + j]", "block"),
    kernel("mask forgotten in backward", "backward.cuh", "sum[n][0][v * 2 + j] *= mask(n, v, j);", "", "cluster"),
    kernel("candidate's mask forgotten in backward", "backward.cuh", "if (is_live(n, j)) keep[n][v][j] = mask(n, v, j);", "", ""),
    kernel("norm without the loss scale", "slices.cuh", "norm_of(squares, scale)", "norm_of(squares, 1)", "grid", "gru"),
    kernel("norm clipped by without the loss scale", "backward.cuh", "norm_of(squares[n][j], scale)", "norm_of(squares[n][j], 1)", ""),
    kernel("samples in the batch's order in the first operand", "forward.cuh",
           "rows.index_at(place.slice * Team::kSamples + sample, workspace.order)", "place.slice * Team::kSamples + sample", "grid"),
    kernel("samples in the batch's order in backward", "backward.cuh", "samples(rows, workspace.order, place.slice)",
           "samples(rows, nullptr, place.slice)", "block"),
    kernel("samples in the batch's order in recorded norms", "slices.cuh", "place), workspace.order)", "place), nullptr)", "cluster", "tanh"),
    kernel("recorded norm of one warp's units", "slices.cuh", "warp < sums.num_warps;", "warp < 1;", "cluster"),
    kernel("recorded norm of the step from the other end", "slices.cuh", "lives && p.shape.runs_back(d) ?", "false ?", "block"),
    kernel("recorded norm left as it was past a length", "slices.cuh",
           "*at<Acc>(p.norms, (d * T + t) * B + sample.index) =", "if (lives) *at<Acc>(p.norms, (d * T + t) * B + sample.index) =", "stepwise", "tanh"),
    kernel("recorded squares of all warps in one place", "backward.cuh", "step, first_unit / kTileRows)", "step, 0)", "grid"),
    kernel("recorded squares of another slice", "backward.cuh", "sums, d, place.slice, step", "sums, d, 0, step", "block", "gru"),
    kernel("norm not recorded where the gradient is clipped by value", "backward.cuh", "workspace.sums.squares && owns_units", "workspace.sums.squares && p.clip_mode != ClipMode::kValue && owns_units", "stepwise", "tanh"),
    kernel("clipped to the square of the norm", "backward.cuh", "p.clip_threshold / norm)", "p.clip_threshold / squares[n][j])", "cluster"),
    kernel("value limit without the loss scale", "backward.cuh", "p.clip_threshold * scale)", "p.clip_threshold)", ""),
    kernel("final gradients at the last step of all", "backward.cuh",
           "if (step + 1 != samples.length[n][j]) return;", "if (step + 1 != T) return;", ""),
    kernel("gradient of y forgotten", "backward.cuh", "if (p.grad_y) grad.h += load(&grad_y[n][v][j]);", "", "cluster"),
    kernel("row after in place of the row before", "backward.cuh",
           "return runs_back() ? samples.length[n][j] - step : step - 1;", "return runs_back() ? samples.length[n][j] - step - 1 : step - 1;", ""),
    kernel("one row of the padding not cleared", "backward.cuh", "t <= last; ++t)", "t < last; ++t)", ""),
    kernel("half of the samples missing in the bias", "backward.cuh", "mask = 1; mask < 4; mask *= 2)", "mask = 1; mask < 2; mask *= 2)", "grid"),
    kernel("gradient not carried past the norm", "backward.cuh",
           "range.begin > 0 || (kRunsStages && tiling.phase == Phase::kFromNorm);", "range.begin > 0;", "stepwise"),
    kernel("first slice alone in the bias", "slices.cuh", "slice < num_slices;", "slice < 1;", ""),
    kernel("tail of the operand not cleared", "team.cuh",
           "at(x, sample / kTileBatch, k)[sample % kTileBatch] = k < num_rows_ ? value(k, sample) : Op::operand(0);",
           "if (k < num_rows_) at(x, sample / kTileBatch, k)[sample % kTileBatch] = value(k, sample);", "block"),
    kernel("second buffer not cleared", "team.cuh", f"{_CLEAR_NEXT}  }}\n", "  }\n", "block"),
    kernel("block does not wait for itself", "team.cuh", "    __syncthreads();\n    return buffer(turn);", "    return buffer(turn);", "block"),
    kernel("grid does not wait for the operand", "team.cuh",
           'if (tiling_.persistent) wait_for(counters_, turn - started_, tiling_.team_size, "its operand");', "", "grid"),
    kernel("grid waits for one block too few", "team.cuh", "static_cast<unsigned>(blocks);", "static_cast<unsigned>(blocks - 1);", "grid"),
    kernel("copy not waited for", "team.cuh", "    cp_async_wait<0>();\n", "", "grid"),
    kernel("block reads before its threads have copied", "team.cuh", "    cp_async_wait<0>();\n    __syncthreads();\n",
           "    cp_async_wait<0>();\n", "grid"),
    kernel("counter raised before the stores", "team.cuh",
           "  __syncthreads();\n  if (threadIdx.x == 0) red_release_add(counter, 1);",
           "  if (threadIdx.x == 0) red_release_add(counter, 1);", "grid"),
    kernel("counters not cleared", "recurrence.cuh",
           "clear(launch_, workspace.counters, counter_bytes(plan));", ";", "grid"),
    kernel("shared memory of this launch alone allowed", "launch.cuh", "MaxDynamicSharedMemorySize, shared_per_block)",
           "MaxDynamicSharedMemorySize, shared_per_block * 0 + static_cast<int>(launch.shared_bytes))", "cluster",
           shows="another host thread"),
    kernel("parity of the wrong round", "cluster.cuh", "round / 2 % 2)", "round % 2)", "cluster"),
    kernel("a late warp may be a turn behind", "cluster.cuh", "    __syncthreads();\n    if (threadIdx.x == 0) mbarrier_expect",
           "    if (threadIdx.x == 0) mbarrier_expect", "cluster"),
    kernel("operand overwritten while a late block reads it", "cluster.cuh", "return x_ + turn % 2 * kN", "return x_ + turn * 0 * kN", "cluster"),
    kernel("more bytes expected than are sent", "cluster.cuh", "this->num_rows_ * Base::kSamples * sizeof(Element))",
           "this->rows_ * Base::kSamples * sizeof(Element))", "cluster", shows="deadlock"),
    kernel("pushed before the peers are ready", "cluster.cuh", "    cluster_sync();\n  }\n", "  }\n", "cluster"),
    kernel("barriers not fenced", "cluster.cuh", "      fence_mbarrier_init();\n", "", "cluster", shows="without fence_mbarrier_init"),
    kernel("scatter: weights not transposed", "exchange.cuh", "gate) * hidden_size + unit) * hidden_size + target, hidden_size,",
           "gate) * hidden_size + target) * hidden_size + unit, 1,", "cluster"),
    kernel("scatter: half of a fragment twice", "exchange.cuh", "kTileRows + Lane::of_thread().group + 8 * half;",
           "kTileRows + Lane::of_thread().group;", "cluster"),
    kernel("scatter: gates of the block in the wrong order", "exchange.cuh", "k -= num_units) ++gate;",
           "k -= num_units) ++gate;\n    gate = num_gates - 1 - gate;", "cluster"),
    kernel("scatter: part in the slot of another block", "exchange.cuh", "part(turn, this->rank_, unit_warp, n)",
           "part(turn, this->rank_ / 2, unit_warp, n)", "cluster"),
    kernel("scatter: part for another warp of the owner", "exchange.cuh", "tile & (this->tiling_.unit_warps - 1)", "(tile + 1) & (this->tiling_.unit_warps - 1)", "cluster"),
    kernel("scatter: parts of the turn before added", "exchange.cuh", "*part(turn, rank, unit_warp, n)", "*part(turn + 1, rank, unit_warp, n)", "cluster"),
    kernel("scatter: own part alone added", "exchange.cuh", "for (int rank = 0; rank < team_size; ++rank)\n      unrolled",
           "for (int rank = this->rank_; rank <= this->rank_; ++rank)\n      unrolled", "cluster"),
    kernel("scatter: parts not waited for", "exchange.cuh",
           "this->receive(this->barrier(turn), turn - started_ - 1, team_size", "(void)(team_size", "cluster"),
    kernel("scatter: a part fewer expected than is sent", "exchange.cuh", "turn - started_ - 1, team_size * own_tiles",
           "turn - started_ - 1, (team_size - 1) * own_tiles", "cluster"),
    kernel("scatter: a part more expected than is sent", "exchange.cuh", "turn - started_ - 1, team_size * own_tiles",
           "turn - started_ - 1, (team_size + 1) * own_tiles", "cluster", shows="deadlock"),
    kernel("scatter: parts expected for units that do not exist", "exchange.cuh", "left < unit_warps ? left : unit_warps;", "unit_warps;",
           "cluster", shows="deadlock"),
    kernel("scatter: round of the turn after", "exchange.cuh", "turn - started_ - 1, team_size", "turn - started_, team_size", "cluster"),
    kernel("scatter: overwritten a turn early", "exchange.cuh", "parts_ + (((turn % 2 *", "parts_ + (((0 *", "cluster"),
    kernel("scatter: multiplied before the gate gradients are there", "exchange.cuh", "    __syncthreads();\n    Acc sum", "    Acc sum", "cluster"),
    kernel("scatter: sum of the group before kept", "exchange.cuh", "      clear();\n      chunk = 0;", "      chunk = 0;", "cluster"),
    kernel("scatter: groups of tiles in the same order in all blocks", "exchange.cuh", "k = column, group = first_group,", "k = column, group = 0,", "cluster"),
    kernel("scatter: parts awaited at the first turn", "exchange.cuh", "if (turn == first_turn) return false;\n    team.add_parts",
           "team.add_parts", "cluster"),
    *(
        kernel(f"two-level: {name}", file, text, replacement, "cluster=2", *rest)
        for name, file, text, replacement, *rest in [
            ("counter raised before all warps have stored", "two_level.cuh", "{ raise(counter()); }",
             "{\n    if (threadIdx.x == 0) red_release_add(counter(), 1);\n  }"),
            ("parts not waited for", "two_level.cuh", 'wait_for(counter(), turn - this->started_, num_clusters(), "its parts");', ""),
            ("waits for a cluster too few", "two_level.cuh", 'num_clusters(), "its parts"', 'num_clusters() - 1, "its parts"'),
            ("waits for the turn before", "two_level.cuh", "turn - this->started_, num_clusters()", "turn - this->started_ - 1, num_clusters()"),
            ("waits at the counter of another row", "two_level.cuh", "static_cast<int64_t>(row_) * kCounters *", "static_cast<int64_t>(row_ - this->rank_) * kCounters *"),
            ("parts overwritten a turn early", "two_level.cuh", "row_of_launch * 2 + turn % 2;", "row_of_launch * 2;"),
            ("part in the place of another cluster", "two_level.cuh", "parts(turn, cluster_, tile)", "parts(turn, cluster_ / 2, tile)"),
            ("parts of the units of another cluster", "two_level.cuh", "parts(turn, i / of_cluster, cluster_ * unit_warps)",
             "parts(turn, i / of_cluster, (num_clusters() - 1 - cluster_) * unit_warps)"),
            ("copies not waited for", "two_level.cuh", "    cp_async_wait<0>();\n", ""),
            ("added before the other threads have copied", "two_level.cuh", "    cp_async_wait<0>();\n    __syncthreads();\n",
             "    cp_async_wait<0>();\n"),
            ("a cluster's parts left out", "two_level.cuh", "for (int cluster = 0; cluster < num_clusters();", "for (int cluster = 1; cluster < num_clusters();"),
            ("all teams of a launch in one place", "two_level.cuh", "row_of_launch = row_ - this->tiling_.first_team * this->tiling_.cluster_size;", "row_of_launch = this->rank_;"),
            ("tiles of consecutive blocks", "two_level.cuh", "return (tile - unit_warp) * tiling.cluster_size + number * tiling.unit_warps + unit_warp;",
             "return number * tiling.unit_warps + tile;"),
            ("columns of the first warp in all", "two_level.cuh", "team.rows(), first_chunk_ + chunk)", "team.rows(), chunk)"),
            ("parts sent by warps that share the columns", "two_level.cuh", "if (static_cast<int>(threadIdx.x) / kWarp < tiling_.tile_warps) send(tile);", "send(tile);"),
            ("gate gradients not waited for", "two_level.cuh", "team.wait(turn)", "team.wait(0)"),
            ("gate gradients overwritten while a late block reads them", "cluster.cuh", "return x_ + turn % 2 * kN", "return x_ + turn * 0 * kN"),
            ("norm of the cluster alone", "two_level.cuh", "this->load_sums(value, num_clusters(), [&]", "if (false) this->load_sums(value, num_clusters(), [&]"),
            ("norms of the others not waited for", "two_level.cuh", 'wait_for(counter() + kCounterWords, round, num_clusters(), "a sum");', ""),
            ("blocks need not run at the same time", "recurrence.cuh", "launch_.cooperative = true;",
             "launch_.cooperative = plan.tiling.cluster_size == 1;", "lstm", "livelock"),
            ("more teams at once than have places for their parts", "recurrence.cuh", "std::min(plan.teams_at_once, resident_clusters(launch_, kernel)",
             "std::max(plan.num_teams, resident_clusters(launch_, kernel)"),
        ]
    ),
    *(
        kernel(f"stack: {name}", file, text, replacement, *rest)
        for name, file, text, replacement, *rest in [
            ("a layer one chunk too far behind", "team.cuh", "(static_cast<int>(shape.stage) - chunks_behind) * chunk",
             "(static_cast<int>(shape.stage) - chunks_behind - (chunks_behind > 0)) * chunk", "block-stack2"),
            ("first layer ahead in backward", "backward.cuh", "static_cast<int>(p.shape.directions) - 1 - place.direction;", "place.direction;", "block-stack2"),
            ("a layer that is done takes one more turn", "team.cuh", "first < 0 || first >= steps", "first < 0 || first > steps", "block-stack1", "gru"),
            ("a layer that is done stores its state again", "forward.cuh", "p.shape.is_stack() && range.begin >= range.end", "p.shape.is_stack() && range.first < 0", "block-stack1", "gru"),
            ("state of the first chunk at every chunk", "forward.cuh", "if (range.begin == 0) {", "if (tiling.begin == 0) {", "block-stack2"),
            ("operand of the first chunk at every chunk", "forward.cuh", "range.begin == 0 ? at<Scalar>(p.h0, index)", "tiling.begin == 0 ? at<Scalar>(p.h0, index)", "block-stack2"),
            ("operand of a chunk from what others overwrite", "forward.cuh",
             "at<Scalar>(p.y, (rows.row(range.begin - 1, b) * D + d) * H + k)", "at<Scalar>(workspace.carried_h, index)",
             "grid-stack1", "gru"),
            ("operand of a chunk in the place of the first step's", "forward.cuh", "team.start(range.begin, ", "team.start(0, ", "cluster-stack2", "lstm", "deadlock"),
            ("published past the end of a chunk", "forward.cuh", "if (step + 1 < last) {", "if (step + 1 < samples.longest) {", "cluster-stack2", "lstm", "under way"),
            ("gradient of a chunk's last turn not received", "backward.cuh", "    if (tiling.phase != Phase::kFromNorm) {\n",
             "    if (turn == range.last && turn < T) break;\n    if (tiling.phase != Phase::kFromNorm) {\n", "grid-stack2"),
            ("gradient received again at the next stage", "backward.cuh", "range.first > 0 ? range.first : T - samples.longest", "T - samples.longest",
             "cluster-stack2", "lstm", "deadlock"),
            ("turn past a chunk once the norm is known", "backward.cuh", "tiling.phase == Phase::kFromNorm ? 0 : 1", "1", "stepwise-stack2"),
            ("gradient of a chunk is that of the initial state", "backward.cuh", "(is_last && turn == T);", "is_last;", "block-stack2"),
            ("gradient not carried to the next stage", "backward.cuh", "resumes = range.begin > 0 ||", "resumes = tiling.begin > 0 ||", "cluster-stack2"),
            ("bias of the last chunk alone", "backward.cuh", " || (is_stack && first_turn > 0);", ";", "block-stack2"),
            ("slices added before the last stage", "recurrence.cuh", "shape.stage + 1 < shape.stages()", "shape.stage > 0", "block-stack2"),
            ("norms cleared at every stage", "recurrence.cuh", "begins = shape.stage == 0;", "begins = true;", "cluster-stack2"),
        ]
    ),
    Mistake("stack: second layer runs back", "params.h", "return direction == 1 && !is_stack();", "return direction == 1;", "instantiate/lstm_float", "block-stack2-lstm"),
    kernel("splits added before they are there", "product.cuh", "  __syncthreads();\n  if (warp >= num_owners) return;",
           "  if (warp >= num_owners) return;", "grid"),
    kernel("packed rows of the first sample", "rows.cuh", "offsets[step] + sample", "offsets[step]", ""),
    kernel("matmul: mask forgotten in backward", "matmul.cuh",
           "*at<Acc>(w.product, index) * mask_at<Acc>(p, DropoutSite::kState, index);", "*at<Acc>(w.product, index);", "matmul"),
    kernel("matmul: bias inside the reset forgotten", "matmul.cuh",
           "if (p.b_hn[d]) r[G - 1] += load(at<Scalar>(p.b_hn[d], j));", ";", "matmul", "gru"),
    kernel("matmul: bias of the candidate's product forgotten", "matmul.cuh", "bias[G * H] += grad_r[G - 1];", "", "matmul", "gru"),
    kernel("matmul: state of the projection kept", "matmul.cuh", "return p.w_hr[0] ? product :", "return", "matmul"),
    kernel("matmul: bias not cleared", "matmul_run.cuh",
           "pass.clear(w.bias, B * columns * static_cast<int64_t>(sizeof(Acc)));", "", "matmul"),
    kernel("matmul: no barrier before the sum is read", "matmul.cuh",
           "partial[threadIdx.x] += partial[threadIdx.x + half];\n    __syncthreads();",
           "partial[threadIdx.x] += partial[threadIdx.x + half];", "matmul"),
    kernel("matmul: rows past a length left as they were", "matmul.cuh",
           "return clear_gradients<Scalar, Cell>(p, rows, unit, step);", "return;", "matmul"),
]  # fmt: skip


def plant(mistake: Mistake, folder: Path) -> Path:
    """A copy of the sources with the mistake in it: the root that holds csrc."""
    shutil.copytree(build.ROOT / "csrc", folder / "csrc", ignore=shutil.ignore_patterns("cpu", "ops"))
    file = folder / "csrc" / mistake.file
    text = file.read_text()
    assert text.count(mistake.text) == 1, f"{mistake.file} has {text.count(mistake.text)} times: {mistake.text}"
    file.write_text(text.replace(mistake.text, mistake.replacement))
    return folder


def planted_unit(mistake: Mistake, root: Path) -> Path:
    """What is compiled of the sources with the mistake."""
    if not mistake.kernels:
        return root / "csrc" / "cuda" / f"{mistake.unit}.cu"
    unit = root / "planted.cu"
    kernels = "".join(f"template void {kernel}, Tiling, Workspace);\n" for kernel in mistake.kernels)
    unit.write_text(f'#include "cuda/recurrence.cuh"\n\nnamespace fastrnn::cuda {{\n{kernels}}}\n')
    return unit


def build_with(mistake: Mistake, folder: Path) -> Path:
    """The program of build.build_recurrences, with kernels or a unit from the sources with the mistake."""
    right = build.recurrences_objects(build.PLAIN)
    root = plant(mistake, folder)
    wrong = build.compile_object(planted_unit(mistake, root), folder, [*build.base_flags(root), "-O0", "-w"])
    replaced = None if mistake.kernels else build.ROOT / "csrc" / "cuda" / f"{mistake.unit}.cu"
    # Where a function that may be inlined, or made of a template, is in several objects, the first counts.
    objects = [wrong, *(path for name, path in right.items() if name != replaced)]
    program = folder / "recurrences"
    subprocess.run([build.COMPILER, *map(str, objects), "-Wl,--strip-debug", "-o", str(program)], check=True)
    return program


def outputs(program: Path, cases: str) -> list[tuple[int, str]]:
    """Exit status and output for each seed."""
    results = []
    for seed in range(1, SEEDS + 1):
        command = [program, "few", str(seed), cases]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ})
        results.append((result.returncode, result.stdout + result.stderr))
        if result.returncode != 0:
            break
    return results
