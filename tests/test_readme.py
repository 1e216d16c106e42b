"""README.md: its numbers are those of committed results, its files exist, its example runs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastrnn
from benchmarks import readme

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
# A number with a unit of speed, time, size or share: what a benchmark would give.
MEASURED = re.compile(r"\d+(?:\.\d+)?\s?(?:x|times|%|ms|µs|us|s|seconds|minutes|GB/s|TFLOP|GFLOP)(?![\w(])")


def test_the_results_are_those_of_the_committed_files():
    assert readme.written(TEXT) == TEXT, "python -m benchmarks.readme"


def _result(folder: Path, name: str, suite: str, dtype: str, median: float, **facts: str) -> None:
    times = {
        side: {"median": seconds, "quartiles": [seconds, seconds]}
        for side, seconds in (("fastrnn", 1.0), ("torch.nn", median))
    }
    record = {"suite": suite, "mode": "train", "cell": "gru", "shape": "1x1x1x1", "dtype": dtype, "times": times}
    environment = {"processor": "a CPU", "threads": 2, "torch": "2.0", "date": "2026-01-01", **facts}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps({"environment": environment, "results": [record]}))


def test_results_of_a_gpu_in_their_folder_and_all_their_pictures_reach_the_text(tmp_path, monkeypatch):
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    monkeypatch.setattr(readme, "RESULTS", tmp_path / "results")
    folder = tmp_path / "results" / "gpu-check"
    _result(tmp_path / "results", "cpu.json", "headline", "float32", 2.0)
    _result(folder, "bench-all-plans.json", "headline", "float16", 3.0, gpu="H100", FASTRNN_PLANS="all")
    _result(folder, "bench-default.json", "headline", "float16", 4.0, gpu="H100", FASTRNN_PLANS="")
    _result(folder, "bench-regions.json", "regions", "bfloat16", 5.0, gpu="H100")
    _result(folder, "bench-scaling.json", "scaling", "float32", 6.0, gpu="H100")  # has no row in README
    (folder / "tests.json").write_text('{"gpu": "H100", "items": []}')
    for picture in ("cpu.png", "cpu-headline.png", "training-cpu.png", "gpu-check/bench.png", "gpu-check/memory.png"):
        (tmp_path / "results" / picture).touch()
    text = readme.text()
    assert "a CPU, 2 threads, torch 2.0" in text
    assert "H100, float16, FASTRNN_PLANS=all, torch 2.0" in text
    assert "H100, float16, torch 2.0, 2026-01-01; [bench-default.json](results/gpu-check/bench-default.json)" in text
    assert "| regions, forward and backward | torch.nn | **5.00x** |" in text
    assert "bench-scaling" not in text
    assert re.findall(r"!\[Speed-ups\]\(results/(.*?)\)", text) == [
        "cpu-headline.png",
        "gpu-check/bench.png",
        "gpu-check/memory.png",
    ]


def test_no_measured_number_stands_outside_of_the_generated_results():
    before, rest = TEXT.split(readme.BEGIN)
    after = rest.split(readme.END)[1]
    prose = re.sub(r"```.*?```", "", before + after, flags=re.DOTALL)
    assert MEASURED.findall(prose) == []
    assert MEASURED.findall("12x faster, 3.5 ms, 80%") == ["12x", "3.5 ms", "80%"]  # the pattern sees what it should


def test_every_linked_file_exists():
    for document in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md"):
        path = ROOT / document
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            if not target.startswith("http"):
                assert (path.parent / target).exists(), f"{document} links to {target}"


class LastState(torch.nn.Module):
    """A model around a fastrnn layer, for the examples that take the user's."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = fastrnn.LSTM(3, 4, record_state_grad_norms=True)

    def forward(self, x):
        return self.rnn(x)[1][0]


@pytest.mark.filterwarnings("ignore::UserWarning")  # there may be no GPU for autocast and GradScaler
@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_examples_run_as_they_stand(code):
    model = LastState() if "batches" in code else torch.nn.Sequential(torch.nn.LSTM(3, 4))
    names: dict = {
        "torch": torch,
        "fastrnn": fastrnn,
        "model": model,
        "rnn": getattr(model, "rnn", None),
        "batches": [(torch.randn(5, 2, 3), torch.randn(1, 2, 4))],
        "loss_function": torch.nn.functional.mse_loss,
    }
    exec(code, names)
    if "batches" in code:
        assert names["rnn"].state_grad_norms.shape == (1, 5, 2)
        assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_files_that_contributing_names_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for name in re.findall(r"`((?:csrc|fastrnn|tests|benchmarks|\.ci)/[\w./]+)`", text):
        assert (ROOT / name).exists(), name


def test_the_reference_is_generated_and_has_every_public_name(tmp_path):
    pytest.importorskip("pdoc")
    subprocess.run([sys.executable, "docs/reference.py", str(tmp_path)], cwd=ROOT, check=True, capture_output=True)
    page = (tmp_path / "fastrnn.html").read_text()
    for name in fastrnn.__all__:
        assert getattr(fastrnn, name).__doc__, name
        assert f'id="{name}"' in page or (tmp_path / "fastrnn" / f"{name}.html").exists(), name
    prose = "".join(re.findall(r'<div class="docstring">(.*?)</div>', page, re.DOTALL))
    assert "Gal &amp; Ghahramani" in prose
    assert ":class:" not in prose
