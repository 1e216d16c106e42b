"""The CUDA kernels on the CPU, against the textbook: every plan, cell and type, on several schedules and under sanitizers.

tests/emulator/recurrences.cpp compares, cases.h lists the layers. The rest of the suite runs the same kernels as a backend.
"""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path

import pytest
from emulator import build, coverage, mistakes

LEAST_COVERAGE = 0.95


def run(program: Path, *arguments: str) -> None:
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    result = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=1200, env=environment)
    output = result.stdout + result.stderr
    assert result.returncode == 0 and "Sanitizer" not in output, output[:8000]


def built(variant: build.Variant) -> Path:
    try:
        return build.build_recurrences(variant)
    except build.Unavailable as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("seed", ["1", "2", "3"])
def test_every_plan_cell_and_type_computes_what_the_textbook_says_on_every_schedule(seed):
    run(built(build.PLAIN), "all", seed)


def test_address_sanitizer_finds_nothing_and_nearly_every_line_is_reached():
    program = built(build.ADDRESS)
    coverage.clear(program.parent)
    run(program, "all", "4")
    share, table = coverage.summary(coverage.line_counts(program.parent, build.ROOT / "csrc" / "cuda"))
    print(f"\n{share:.1%} of the lines of csrc/cuda/*.cuh\n{table}")
    assert share >= LEAST_COVERAGE, table


# ThreadSanitizer knows 8,000 threads: no case may have more.
@pytest.mark.parametrize("arguments", [("fewer", "5"), ("types", "7", "half"), ("types", "8", "tf32")])
def test_thread_sanitizer_finds_no_race(arguments):
    run(built(build.THREAD), *arguments)


@functools.cache
def statuses_without_mistakes(cases: str) -> list[int]:
    return [status for status, _ in mistakes.outputs(built(build.PLAIN), cases)]


@pytest.mark.parametrize("mistake", mistakes.MISTAKES, ids=str)
def test_a_planted_mistake_is_found(mistake, tmp_path):
    assert statuses_without_mistakes(mistake.cases) == [0] * mistakes.SEEDS
    status, output = mistakes.outputs(mistakes.build_with(mistake, tmp_path), mistake.cases)[-1]
    # By the program's own word: it has neither crashed nor failed to run.
    assert status == 1 and " wrong, " in output, f"exit status {status}: {output[:4000]}"
    assert mistake.shows in output, output[:4000]
