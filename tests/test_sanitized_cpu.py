"""The CPU operators under AddressSanitizer and UndefinedBehaviorSanitizer, by a good part of the suite, on two threads.

What takes long and reaches no other line of C++ is left out: gradcheck, double backward, torch.compile.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import sanitized
from emulator import build

SELECTIONS = {
    # cells, both passes, every dtype, padded, ragged and packed, odd sizes and layouts, thread counts, clipping through time; the
    # matrix product; wrong arguments
    "layers": (
        ("functions", "precision", "state_grad_clip", "operators", "norm_kernels"),
        "not gradcheck and not second and not double_backward and not every_choice_of_inputs and not never_reached",
        {},
    ),
    # modules with dropout, lengths and recorded norms; norms of gradients, computed and as backward's sums
    "features": (
        (
            "inference",
            "plain_calls",
            "lengths",
            "dropout",
            "masks",
            "hidden_sizes",
            "state_grad_norms",
            "clip",
            "trust_backward",
        ),
        "not compile and not double_backward and not checkpointing and not go_on_meanwhile",
        {},
    ),
    # threads that take work from each other
    "sharing": (("work_sharing",), "long or gradients", {"FASTRNN_TEST_REPEATS": "2"}),
    "avx2": (("precision",), "errors", {"FASTRNN_CPU_ISA": "avx2"}),
    "portable": (("precision",), "errors", {"FASTRNN_CPU_ISA": "portable"}),
}
LEAST_TESTS = 16

MISTAKES = {
    "one element too far": (
        "csrc/cpu/norms.cpp",
        "for (int64_t i = 0; i < n; ++i) {  ",
        "for (int64_t i = 0; i <= n; ++i) { ",
        r"AddressSanitizer: heap-buffer-overflow[\s\S]*#0 .* sum_float.*norms\.cpp",
    ),
    "a shift by more than there are bits": (
        "csrc/cpu/norms.cpp",
        "double total = 0;",
        "double total = 1 << (count + 31);",
        r"norms\.cpp:\d+:\d+: runtime error: shift exponent 32 is too large",
    ),
}


@pytest.fixture(scope="module")
def objects() -> dict[Path, Path]:
    try:
        return sanitized.build_objects()
    except build.Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def package(objects, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sanitized")
    sanitized.make_package(folder, objects)
    return folder


@pytest.mark.parametrize("selection", SELECTIONS)
def test_the_sanitizers_find_nothing(package, selection):
    files, expression, variables = SELECTIONS[selection]
    paths = [str(build.ROOT / "tests" / f"test_{name}.py") for name in files]
    options = ["-q", "-p", "no:cacheprovider", "-c", str(build.ROOT / "pyproject.toml"), "-k", expression]
    result = sanitized.run(package, "-m", "pytest", *options, *paths, FASTRNN_TEST_BACKENDS="cpu", **variables)
    assert result.returncode == 0, result.stdout[-8000:]
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed and int(passed[1]) >= LEAST_TESTS, result.stdout[-8000:]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_is_found(objects, tmp_path, mistake):
    file, text, replacement, shows = MISTAKES[mistake]
    source = build.ROOT / file
    planted = source.read_text().replace(text, replacement)
    assert planted != source.read_text(), f"{file} has no {text!r}"
    copy = tmp_path / source.name
    copy.write_text(re.sub(r'#include "', f'#include "{source.parent}/', planted))
    sanitized.make_package(tmp_path, {**objects, source: sanitized.compile_one(copy, tmp_path)})
    call = "import torch, fastrnn; print(fastrnn.clip_grad_norm_(parameter, 1.0))"
    setup = "import torch; parameter = torch.nn.Parameter(torch.ones(100)); parameter.grad = torch.ones(100)"
    result = sanitized.run(tmp_path, "-c", f"{setup}; {call}")
    assert result.returncode != 0
    assert re.search(shows, result.stdout), result.stdout[-8000:]
