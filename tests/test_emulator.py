"""The emulator that runs the CUDA kernels on the CPU (tests/emulator): right kernels run, wrong ones are found and named."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from emulator import build

RIGHT = (
    "barriers", "exits", "shuffles", "products", "tiles", "copies", "grid_barriers", "grid_barriers_of_clusters", "ring", "refusals",
)  # fmt: skip

# What every schedule shows.
WRONG = {
    "nobody_comes": r"deadlock; 2 wait for __syncwarp at .*unit_wrong\.h:\d+, first thread 33 of block [01]",
    "wait_for_ever": r"livelock; 64 wait for a flag at .*unit_wrong\.h:\d+, first thread 0 of block [01]",
    "two_places": r"thread \d+ of block [01], .*unit_wrong\.h:\d+: divergent __syncthreads: others have arrived from "
    r"__syncthreads at .*unit_wrong\.h:\d+",
    "lanes_apart": r"divergent __s\w+: others have arrived from __s\w+ at",
    "absent_lane": r"__shfl_xor_sync reads lane \d+, which does not take part",
    "next_door": r"written past the end of the shared memory, of 64 bytes|heap-buffer-overflow",
    "too_far": r"ldmatrix_x4 is not in the block's shared memory",
    "crooked": r"the destination of cp\.async is not aligned to 8 bytes",
    "forgets_to_wait": r"exits with cp\.async in flight",
    "ring_without_init": r"mbarrier .*not initialised",
    "ring_without_fence": r"cluster_sync after mbarrier_init without fence_mbarrier_init",
    "arrives_twice": r"more arrivals at an mbarrier than its count",
    "overrun_by_phases": r"the mbarrier went on by \d+ phases while a thread waited for one",
    "uninitialised": r"^ok$",  # it reads NaN, says the test itself
}

# What some schedules show.
SOMETIMES_WRONG = {
    "pushes_to_the_dead": r"is in a block that has exited",
    "copies_without_wait": r"wrong: copied",
    "grid_barriers_without_wait": r"wrong: sums over the grid",
    "ring_without_wait": r"wrong: passed round|more arrivals|exited|under way",
}

# What ThreadSanitizer shows on schedules that compute the right thing: both lines.
RACES = {"without_barrier": "without_barrier", "grid_barriers_without_wait": "rounds_of_all<false>"}


@pytest.fixture(scope="module")
def unit():
    """Runs a test of unit.cpp: what it prints."""
    programs: dict[str, Path] = {}

    def run(name: str, seed: int, variant: build.Variant = build.PLAIN) -> str:
        if variant.name not in programs:
            try:
                programs[variant.name] = build.build_unit_tests(variant)
            except build.Unavailable as error:
                pytest.skip(str(error))
        environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}  # threads that never end own what they have
        result = subprocess.run(
            [programs[variant.name], name, str(seed)], capture_output=True, text=True, timeout=120, env=environment
        )
        return (result.stdout + result.stderr).strip()

    return run


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("name", RIGHT)
def test_right_kernels_run_on_every_schedule(unit, name, seed):
    assert unit(name, seed) == "ok"


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("variant", [build.ADDRESS, build.THREAD], ids=lambda variant: variant.name)
def test_sanitizers_find_nothing_in_right_kernels(unit, name, variant):
    assert unit(name, 4, variant) == "ok"


@pytest.mark.parametrize("name", WRONG)
def test_wrong_kernels_are_named(unit, name):
    for seed in (1, 2):
        output = unit(name, seed)
        assert re.search(WRONG[name], output), output


@pytest.mark.parametrize("name", SOMETIMES_WRONG)
def test_a_missing_wait_shows_on_some_schedules(unit, name):
    assert any(re.search(SOMETIMES_WRONG[name], unit(name, seed)) for seed in range(8))


@pytest.mark.parametrize("name", RACES)
def test_thread_sanitizer_names_both_sides_of_a_missing_barrier(unit, name):
    output = unit(name, 1, build.THREAD)
    assert "WARNING: ThreadSanitizer: data race" in output
    first, second = output.split("Previous", 1)
    for part in (first, second):
        assert re.search(rf"#0 .*{RACES[name]}", part), output


def test_address_sanitizer_names_the_line_that_leaves_shared_memory(unit):
    assert re.search(r"#0 .*next_door", unit("next_door", 1, build.ADDRESS))
