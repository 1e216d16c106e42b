"""CI's reading of ptxas -v."""

import subprocess
import sys
from pathlib import Path

import pytest

CHECK = Path(__file__).parent.parent / ".ci" / "check_kernels.py"
KERNEL = """ptxas info    : Compiling entry function '{name}' for 'sm_90a'
ptxas info    : Function properties for {name}
    {stack} bytes stack frame, {spill} bytes spill stores, {spill} bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 640 bytes cmem[0]
"""
FLOAT, DOUBLE = "_Z7forwardIfEvv", "_Z7forwardIdEvv"


@pytest.mark.parametrize(
    ("kernels", "passes"),
    [
        ([(FLOAT, 0, 0), (DOUBLE, 0, 0)], True),
        ([(FLOAT, 0, 0), (DOUBLE, 16, 16)], True),
        ([(FLOAT, 8, 8), (DOUBLE, 0, 0)], False),
        ([(FLOAT, 32, 0)], False),
        ([], False),
    ],
)
def test_spills_outside_float64_fail(tmp_path, kernels, passes):
    log = tmp_path / "log.txt"
    log.write_text("".join(KERNEL.format(name=name, stack=stack, spill=spill) for name, stack, spill in kernels))
    result = subprocess.run([sys.executable, CHECK, log], stdout=subprocess.PIPE, text=True, check=False)
    assert (result.returncode == 0) is passes, result.stdout
    assert ("void forward<float>() for sm_90a: " in result.stdout) is (bool(kernels) and not passes)
