"""The CPU engine's threads under ThreadSanitizer: row groups that give work away, unit groups that claim panels from each other."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from emulator.build import ROOT, compile_object, compile_sources

ENGINE = ROOT / "csrc" / "cpu"
SOURCES = ["batch", "buffer", "cache", "gemm_portable", "isa_portable", "pages", "split", "work_queue"]
COMPILER = os.environ.get("CXX", "g++")
FLAGS = ["-std=c++20", "-O1", "-g1", "-fsanitize=thread", f"-I{ENGINE}", "-w"]
# The file of the mistake, the text and what takes its place, the source that is compiled with it.
MISTAKES = {
    "work is taken without a look at what was done before": (
        "work_queue.cpp",
        "  const std::lock_guard lock(mutex_);\n  if (!wanted()) return false;",
        "  if (!wanted()) return false;",
        "work_queue.cpp",
    ),
    "panels are open before their input is there": (
        "panel_claims.h",
        "of(step).store(0, std::memory_order_release);",
        "of(step).store(0, std::memory_order_relaxed);",
        "isa_portable.cpp",
    ),
    "a phase begins without a look at what the one before has done": (
        "phases.h",
        "* kOnePhase, std::memory_order_release);",
        "* kOnePhase, std::memory_order_relaxed);",
        "gemm_portable.cpp",
    ),
    "a phase begins before all that was taken is done": (
        "phases.h",
        "+ 1 < num_tasks_[task.phase & 1]) return;",
        "+ 2 < num_tasks_[task.phase & 1]) return;",
        "gemm_portable.cpp",
    ),
}

pytestmark = pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"no compiler {COMPILER}")


def link(objects: list[Path], program: Path) -> Path:
    subprocess.run([COMPILER, *FLAGS, *map(str, objects), "-o", str(program)], check=True)
    return program


def run(program: Path, runs: int) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}
    return subprocess.run([str(program), str(runs)], env=environment, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def objects() -> dict[str, Path]:
    sources = [*(ENGINE / f"{name}.cpp" for name in SOURCES), ROOT / "tests" / "cpp" / "threads_test.cpp"]
    return {source.stem: compiled for source, compiled in compile_sources(sources, "threads", FLAGS).items()}


def test_no_race_and_the_same_results_every_time(objects, tmp_path):
    result = run(link(list(objects.values()), tmp_path / "threads_test"), 12)
    assert result.returncode == 0, (result.stdout + result.stderr)[-6000:]
    given = re.search(r"given away: (\d+)", result.stdout)
    assert given and int(given[1]) > 0, result.stdout  # or nothing was tested


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_is_found(objects, tmp_path, mistake):
    name, text, replacement, source_name = MISTAKES[mistake]
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    file = tmp_path / "csrc" / "cpu" / name
    assert file.read_text().count(text) == 1, f"{name} has no {text!r}"
    file.write_text(file.read_text().replace(text, replacement))
    source = file.parent / source_name
    planted = {**objects, source.stem: compile_object(source, tmp_path, FLAGS)}
    result = run(link(list(planted.values()), tmp_path / "threads_test"), 12)
    assert "ThreadSanitizer: data race" in result.stderr, (result.stdout + result.stderr)[-6000:]
