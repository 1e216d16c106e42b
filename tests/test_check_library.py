"""CI's reading of the library's machine code."""

import importlib.util
from pathlib import Path

import pytest

CHECK = Path(__file__).parent.parent / ".ci" / "check_library.py"
TENSOR = "_ZN7fastrnn4cuda8backwardINS0_6TensorIfEEEEvv"
KERNEL = """\t\tFunction : {name}
        /*0000*/  FFMA R0, R0, R0, R0 ;
        /*0010*/  {instruction} ;
        /*0020*/  EXIT ;
"""


@pytest.fixture
def check_library():
    spec = importlib.util.spec_from_file_location("check_library", CHECK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows_of(check_library, monkeypatch, *kernels):
    text = "\tarch = sm_90a\n" + "".join(KERNEL.format(name=name, instruction=ins) for name, ins in kernels)
    monkeypatch.setattr(check_library.sass, "dump", lambda *_: iter(text.splitlines(keepends=True)))
    return check_library.table(check_library.counts("", Path()))


def test_a_kernel_is_counted_once_however_many_copies_there_are(check_library, monkeypatch):
    rows = rows_of(
        check_library,
        monkeypatch,
        ("_Z5smallv", "LDS.128 R0, [R0]"),
        ("_Z5smallv", "LDS.128 R0, [R0]"),
        ("_Z5otherv", "NOP"),
    )
    small, other = sorted(rows, key=lambda row: row["copies"], reverse=True)
    assert (small["copies"], small["all"], small["multiply-add"], small["shared 16 B load"]) == (2, 3, 1, 1)
    assert (other["copies"], other["all"]) == (1, 3)
    assert check_library.complaints(rows, 0) == ["small is in the library 2 times for sm_90a"]
    assert "| sm_90a | `small` | 2 | 3 | 0 | 1 | 1 |" in check_library.markdown(rows)


def test_a_library_of_one_copy_each_passes(check_library, monkeypatch):
    rows = rows_of(check_library, monkeypatch, (TENSOR, "HMMA R0, R0, R0, R0"), ("_Z5otherv", "NOP"))
    assert check_library.complaints(rows, 0) == []
    assert check_library.complaints(rows, 1 << 30) != []
