"""setup.py: what it decides, what it says, and that what it builds can be installed."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parent.parent
PACKAGED = ("csrc", "fastrnn", "setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md")


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def setup_py():
    yield load(ROOT / "setup.py")
    del sys.modules["setup"]


@pytest.fixture(autouse=True)
def _no_build_environment(monkeypatch):
    for name in ("FASTRNN_CUDA", "TORCH_CUDA_ARCH_LIST", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)


def fake_torch(cuda: str | None, *capabilities: tuple[int, int]):
    return SimpleNamespace(
        __version__="2.99.0",
        version=SimpleNamespace(cuda=cuda),
        cuda=SimpleNamespace(
            device_count=lambda: len(capabilities), get_device_capability=lambda index: capabilities[index]
        ),
    )


def fake_toolkit(folder: Path, release: str, archs: str = "75 80 90 100 120") -> Path:
    """A folder whose bin/nvcc answers what setup.py asks of it."""
    nvcc = folder / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    listed = "\\n".join(f"compute_{arch}" for arch in archs.split())
    nvcc.write_text(
        "#!/bin/sh\n"
        'case "$1" in\n'
        f"  --version) echo 'Cuda compilation tools, release {release}, V{release}.88' ;;\n"
        f"  --list-gpu-arch) printf '{listed}\\n' ;;\n"
        f"  --dryrun) echo '#$ TOP={nvcc.parent}/..' >&2 ;;\n"
        "esac\n"
    )
    nvcc.chmod(0o755)
    return folder


# ---------------------------------------------------------------------------------------------------- decisions on CUDA


def test_a_torch_without_cuda_is_built_for_the_cpu_alone(setup_py):
    cuda = setup_py.find_cuda(fake_torch(None))
    assert cuda.why_not == "torch 2.99.0 is built without CUDA"


def test_without_nvcc_it_is_built_for_the_cpu_alone(setup_py, monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    cuda = setup_py.find_cuda(fake_torch("13.0"))
    assert cuda.why_not == f"nvcc was not found (looked for {tmp_path}/bin/nvcc; CUDA_HOME names the toolkit)"


@pytest.mark.parametrize("torch_cuda", [None, "13.0"])
def test_cuda_that_was_asked_for_and_cannot_be_is_an_error(setup_py, monkeypatch, tmp_path, torch_cuda):
    monkeypatch.setenv("FASTRNN_CUDA", "1")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(
        SystemExit, match="FASTRNN_CUDA=1 asks for CUDA, but (torch .* without CUDA|nvcc was not found)"
    ):
        setup_py.find_cuda(fake_torch(torch_cuda))


def test_cuda_can_be_left_out(setup_py, monkeypatch, tmp_path):
    monkeypatch.setenv("FASTRNN_CUDA", "0")
    monkeypatch.setenv("CUDA_HOME", str(fake_toolkit(tmp_path, "13.0")))
    assert setup_py.find_cuda(fake_torch("13.0")).why_not == "it was built with FASTRNN_CUDA=0"


def test_an_unknown_choice_is_named(setup_py, monkeypatch):
    monkeypatch.setenv("FASTRNN_CUDA", "yes")
    with pytest.raises(SystemExit, match="FASTRNN_CUDA is 'yes', expected 0, 1 or auto"):
        setup_py.find_cuda(fake_torch("13.0"))


def test_another_cuda_than_torchs_is_an_error_with_its_remedies(setup_py, monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(fake_toolkit(tmp_path, "12.4")))
    with pytest.raises(SystemExit) as error:
        setup_py.find_cuda(fake_torch("13.0"))
    for words in ("bin/nvcc is of CUDA 12.4", "is built for CUDA 13.0", "a CUDA 13 toolkit", "FASTRNN_CUDA=0"):
        assert words in str(error.value)


def test_another_minor_version_of_cuda_will_do(setup_py, monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(fake_toolkit(tmp_path, "13.2")))
    cuda = setup_py.find_cuda(fake_torch("13.0"))
    assert (cuda.why_not, cuda.version, cuda.home) == ("", "13.2", tmp_path)


def test_the_toolkit_is_found_behind_a_script_on_the_path(setup_py, monkeypatch, tmp_path):
    toolkit = fake_toolkit(tmp_path / "toolkit", "13.0")
    script = tmp_path / "bin" / "nvcc"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec {toolkit}/bin/nvcc "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    assert setup_py.find_cuda(fake_torch("13.0")).home == toolkit


@pytest.mark.parametrize(
    ("capabilities", "known", "wanted", "expected"),
    [
        ([], "75 80 90 100 120", "", ["7.5", "8.0+PTX", "9.0", "10.0", "12.0+PTX"]),
        ([], "75 80 90", "", ["7.5", "8.0+PTX", "9.0"]),
        ([(8, 6), (9, 0)], "75 80 86 90", "", ["8.6", "9.0"]),
        ([(12, 0)], "75 80 90", "", ["9.0+PTX"]),
        ([(9, 0)], "75 80 90", "8.0 9.0a;", ["8.0", "9.0a"]),
        ([(9, 0)], "75 80 90", "native", ["9.0"]),
    ],
)
def test_architectures(setup_py, monkeypatch, tmp_path, capabilities, known, wanted, expected):
    monkeypatch.setenv("CUDA_HOME", str(fake_toolkit(tmp_path, "13.0", known)))
    if wanted:
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", wanted)
    assert setup_py.find_cuda(fake_torch("13.0", *capabilities)).archs == expected


# ----------------------------------------------------------------------------------------------------- the whole command


def copy_of_the_package(folder: Path) -> Path:
    folder.mkdir()
    for name in PACKAGED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def run(*command, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


@pytest.fixture
def without_torch(tmp_path) -> str:
    """A PYTHONPATH that hides torch."""
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\")\n")
    return str(tmp_path / "hidden")


@pytest.mark.parametrize("command", ["build_ext", "--quiet build_ext", "dist_info", "bdist_wheel"])
def test_without_torch_it_says_how_to_install(tmp_path, without_torch, command):
    copy = copy_of_the_package(tmp_path / "copy")
    result = run(sys.executable, "setup.py", *command.split(), cwd=copy, PYTHONPATH=without_torch)
    assert result.returncode != 0
    assert "1. install torch >= 2.11" in result.stdout
    assert "2. pip install --no-build-isolation . (in" in result.stdout
    assert "Traceback" not in result.stdout


def test_a_torch_that_is_too_old_is_named(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "torch.py").write_text('__version__ = "2.6.1+cpu"\n')
    result = run(
        sys.executable, "setup.py", "build_ext", cwd=copy_of_the_package(tmp_path / "copy"), PYTHONPATH=tmp_path / "old"
    )
    assert result.returncode != 0
    assert "torch 2.6.1+cpu is too old, torch >= 2.11 is needed" in result.stdout


def test_the_source_distribution_needs_no_torch_and_carries_all_sources(tmp_path, without_torch):
    copy = copy_of_the_package(tmp_path / "copy")
    result = run(sys.executable, "setup.py", "sdist", "--dist-dir", tmp_path, cwd=copy, PYTHONPATH=without_torch)
    assert result.returncode == 0, result.stdout
    with tarfile.open(next(tmp_path.glob("fastrnn-*.tar.gz"))) as archive:
        carried = {str(Path(*Path(member.name).parts[1:])) for member in archive if member.isfile()}
    expected = {str(path.relative_to(copy)) for name in PACKAGED for path in [copy / name] if path.is_file()}
    for folder in ("csrc", "fastrnn"):
        expected |= {str(path.relative_to(copy)) for path in (copy / folder).rglob("*") if path.is_file()}
    assert any(name.startswith("csrc/cuda/instantiate/") for name in expected)
    assert expected <= carried
    assert not [name for name in carried if name.endswith(".so")]


def scratch_python(folder: Path) -> Path:
    """A new environment that sees what is installed beside this interpreter, torch above all."""
    venv.create(folder, with_pip=False)
    site = next((folder / "lib").glob("python*/site-packages"))
    (site / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python"


USE_IT = """
import torch, fastrnn
rnn = fastrnn.LSTM(3, 4, num_layers=2, bidirectional=True)
with fastrnn.backend("cpu"):
    rnn(torch.randn(5, 2, 3))[0].sum().backward()
assert all(p.grad is not None for p in rnn.parameters())
print(fastrnn.__file__)
"""


@pytest.mark.slow
def test_pip_installs_it_editable_and_as_a_wheel(tmp_path):
    copy = copy_of_the_package(tmp_path / "copy")
    install = ("-m", "pip", "install", "--verbose", "--no-build-isolation", "--no-deps", "--no-index")
    for kind, home in ((["--editable"], copy), ([], tmp_path / "wheel")):
        python = scratch_python(tmp_path / "-".join(["venv", *kind]))
        result = run(python, *install, *kind, ".", cwd=copy, FASTRNN_CUDA="0")
        assert result.returncode == 0, result.stdout
        assert result.stdout.count("building for the CPU alone: it was built with FASTRNN_CUDA=0") == 1
        used = run(python, "-c", USE_IT, cwd=tmp_path)
        assert used.returncode == 0, used.stdout
        where = Path(used.stdout.split("\n")[-2])
        assert where.is_relative_to(home if kind else python.parent.parent)
    # Nothing was compiled twice.
    assert "ninja: no work to do" in result.stdout
