"""benchmarks/gpu_check.sh as far as it goes without a GPU: arguments, records, the table, the checks themselves on the emulator."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import BACKENDS

import fastrnn
from benchmarks import nvidia
from benchmarks.gpu import __main__ as stages
from benchmarks.gpu import check
from benchmarks.gpu.records import Records
from fastrnn import ops
from tests.cases import Case

ROOT = Path(__file__).resolve().parent.parent


def gpu_check(*arguments: str, python: str = sys.executable) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(ROOT / "benchmarks" / "gpu_check.sh"), *arguments],
        env={**os.environ, "PYTHON": python}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--fast",), "unknown argument --fast"),
        (("--only", "build,tset"), "unknown stage tset, expected of: build tests sanitize latency bench"),
        (("--out",), "--out needs a folder"),
        (("--out", ""), "--out needs a folder"),
        (("--only",), "--only needs stages: build tests"),
        (("--only", ","), "--only needs stages: build tests"),
    ],
)
def test_wrong_arguments_are_named_before_anything_runs(arguments, message):
    result = gpu_check(*arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert "===" not in result.stdout


def test_help_says_what_the_stages_are():
    text = gpu_check("--help").stdout
    for stage in stages.STAGES:
        assert stage in text


@pytest.mark.skipif(stages.gpu()["gpu"] is not None, reason="there is a GPU")
def test_without_a_gpu_each_stage_says_so_and_ends(tmp_path):
    result = gpu_check("--only", "tests,bench", "--out", str(tmp_path))
    assert result.returncode == 0, result.stdout + result.stderr
    assert json.loads((tmp_path / "tests.json").read_text())["items"][0]["what"] == "there is no GPU here"
    assert "1 skipped" in (tmp_path / "table.txt").read_text()


@pytest.mark.parametrize(("failing", "status"), [("none", 0), ("tests", 1), ("bench", 1)])
def test_every_stage_runs_and_a_failed_one_is_the_status_of_the_whole(tmp_path, failing, status):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$3" >> {tmp_path}/stages\n[ "$3" != "{failing}" ]\n')
    python.chmod(0o755)
    result = gpu_check("--out", str(tmp_path / "out"), python=str(python))
    assert result.returncode == status, result.stdout + result.stderr
    assert (tmp_path / "stages").read_text().split() == ["build", "tests", "sanitize", "latency", "bench", "table"]


def command_line(monkeypatch, stage, out, *more):
    monkeypatch.setattr(sys, "argv", ["gpu", stage, "--out", str(out), *more])
    try:
        stages.main()
    except SystemExit as end:
        return end.code
    return 0


@pytest.fixture
def with_a_gpu(monkeypatch):
    """Commands that stages start are answered by a function of the command, into which a test puts its own."""
    answers = {}
    monkeypatch.setattr(stages, "gpu", lambda: {"gpu": "H100", "compute_capability": "9.0", "driver": "580.1"})
    monkeypatch.setattr(stages, "run", lambda command, *_, **environment: answers["run"](command, environment))
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(stages, "versions", dict)
    monkeypatch.setattr(stages.signal, "signal", lambda *_: None)
    return answers


def items(out, stage):
    return json.loads((out / f"{stage}.json").read_text())["items"]


@pytest.mark.parametrize("status", ["ok", "refused", "wrong", "error"])
def test_tests_fail_where_a_team_has_an_item_that_is_not_right(tmp_path, monkeypatch, with_a_gpu, status):
    def run(command, environment):
        if "check" not in command:
            return 0, "5 passed"
        Records(tmp_path, "tests").add("an item", status)
        return (stages.NOT_RIGHT if status in ("wrong", "error") else 0), ""

    with_a_gpu["run"] = run
    for _ in range(2):  # the second run does not go on with the first one's items
        assert command_line(monkeypatch, "tests", tmp_path) == int(status in ("wrong", "error"))
        assert [i["name"] for i in items(tmp_path, "tests")] == ["an item"] * len(check.TEAMS) + ["pytest"]


def test_tests_fail_where_a_team_ends_early_or_pytest_fails(tmp_path, monkeypatch, with_a_gpu):
    with_a_gpu["run"] = lambda command, _: (1, "the context is lost") if "grid" in command else (0, "")
    assert command_line(monkeypatch, "tests", tmp_path) == 1
    assert items(tmp_path, "tests")[0] == {"name": "grid: all", "status": "error", "what": "the context is lost"}
    with_a_gpu["run"] = lambda command, _: (1, "1 failed") if "pytest" in command else (0, "")
    assert command_line(monkeypatch, "tests", tmp_path) == 1
    assert items(tmp_path, "tests") == [{"name": "pytest", "status": "error", "what": "1 failed"}]


@pytest.mark.parametrize(("status", "said"), [(0, "ok"), (stages.NOT_RIGHT, "wrong"), (9, "error"), (124, "error")])
def test_sanitize_fails_where_the_tool_or_the_results_say_so(tmp_path, monkeypatch, with_a_gpu, status, said):
    (tmp_path / "sanitized" / "old").mkdir(parents=True)
    with_a_gpu["run"] = lambda command, _: (status if "grid" in command else 0, "=== ERROR SUMMARY")
    assert command_line(monkeypatch, "sanitize", tmp_path) == int(said != "ok")
    assert {i["name"]: i["status"] for i in items(tmp_path, "sanitize")}["racecheck grid"] == said
    assert not (tmp_path / "sanitized" / "old").exists()


@pytest.mark.parametrize(
    ("status", "output", "failed"),
    [(0, '{"name": "push", "us": 1.5}', 0), (1, '{"name": "push", "error": "launch"}', 1), (139, "", 1)],
)
def test_latency_fails_where_a_measurement_does(tmp_path, monkeypatch, with_a_gpu, status, output, failed):
    with_a_gpu["run"] = lambda command, _: (status, output) if command[-1] == "clusters" else (0, "")
    assert command_line(monkeypatch, "latency", tmp_path) == failed
    assert [i["status"] == "error" for i in items(tmp_path, "latency")] == [False, bool(failed)]


def test_a_benchmark_that_died_is_in_the_table_and_leaves_no_older_results(tmp_path, monkeypatch, with_a_gpu, capsys):
    (tmp_path / "bench-clipping.json").write_text('{"results": ["of an earlier run"]}')

    def run(command, environment):
        if "clipping" in command:
            return 1, "...\nRuntimeError: out of memory\n"
        Path(command[command.index("--out") + 1]).write_text('{"results": []}')
        return 0, ""

    with_a_gpu["run"] = run
    assert command_line(monkeypatch, "bench", tmp_path) == 1
    capsys.readouterr()
    stages.table(tmp_path)
    text = capsys.readouterr().out
    assert "bench     4 ok, 1 error" in text
    assert "error: bench-clipping  RuntimeError: out of memory" in text
    assert not (tmp_path / "bench-clipping.json").exists()


def test_a_team_checked_alone_appends_and_ends_with_a_status_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(stages.signal, "signal", lambda *_: None)
    monkeypatch.setattr(check, "cases", lambda quick: iter([(CASE, "float32", None)]))
    for found, status in (("ok", 0), ("wrong", stages.NOT_RIGHT), ("ok", 0)):
        monkeypatch.setattr(check, "check_one", lambda *_, found=found: (found, {}))
        assert command_line(monkeypatch, "check", tmp_path, "--backend", "reference") == status
    assert [i["status"] for i in items(tmp_path, "tests")] == ["ok", "wrong", "ok"]


def test_records_of_a_stage_say_date_and_versions():
    found = nvidia.versions()
    assert found["torch"] == torch.__version__
    assert found["fastrnn"] == fastrnn.__version__
    assert found["cuda"] == torch.version.cuda
    assert found["date"].startswith("20")
    assert ("nvcc" in found) and (found["nvcc"] is None or found["nvcc"][0].isdigit())


def test_records_are_on_disk_after_each_item_and_go_on_where_they_were(tmp_path):
    records = Records(tmp_path, "tests", gpu="one")
    records.add("a", "ok", error=0.5)
    assert json.loads((tmp_path / "tests.json").read_text()) == {
        "gpu": "one", "items": [{"name": "a", "status": "ok", "error": 0.5}]
    }  # fmt: skip
    Records(tmp_path, "tests").add("b", "wrong")
    assert [item["name"] for item in json.loads((tmp_path / "tests.json").read_text())["items"]] == ["a", "b"]


def test_a_hanging_command_is_stopped_with_its_children(tmp_path):
    status, output = stages.run(["sh", "-c", "echo begun; sleep 60 & wait"], 0.5, tmp_path / "log")
    assert (status, output) == (124, "begun\n")


def test_the_table_sums_up_recorded_results(tmp_path, capsys):
    records = Records(tmp_path, "latency")
    records.add("grid_counter 132 blocks", "ok", us=1.25)
    records.add("push_bulk", "error", error="run: unspecified launch failure")
    times = {
        "fastrnn": {"median": 1e-3, "quartiles": [1e-3, 1e-3]},
        "torch.nn": {"median": 3e-3, "quartiles": [3e-3, 3e-3]},
    }
    found = {"results": [{"cell": "lstm", "shape": "16x512x128x128", "mode": "train", "times": times}]}
    (tmp_path / "bench-default.json").write_text(json.dumps(found))
    capsys.readouterr()
    stages.table(tmp_path)
    text = capsys.readouterr().out
    assert "latency   1 ok, 1 error" in text
    assert "1.25 us" in text
    assert "push_bulk  run: unspecified launch failure" in text
    assert "1.000 ms  3.00x torch.nn" in text
    assert "sanitize  not run" in text


CASE = Case("gru", "lengths", directions=2, site="state", steps=3, batch=3, hidden_size=9, input_size=4)


def test_the_checks_pass_on_right_kernels(backend, device, tmp_path):
    team = "stepwise" if backend in ("emulated", "cuda") else ""
    status, values = check.check_one(CASE, "float32", "norm", backend, team, device.type)
    assert status == "ok", values


emulated = pytest.mark.skipif("emulated" not in BACKENDS, reason="the emulated kernels")


@emulated
def test_a_plan_that_cannot_run_a_case_is_recorded_as_refused_and_the_next_goes_on(monkeypatch, tmp_path):
    large = Case("lstm", steps=2, batch=2, hidden_size=200, input_size=4)
    monkeypatch.setattr(check, "cases", lambda quick: iter([(large, "float16", None), (CASE, "float32", "norm")]))
    check.check(Records(tmp_path, "tests"), "emulated", "block", quick=False)
    items = json.loads((tmp_path / "tests.json").read_text())["items"]
    assert [item["status"] for item in items] == ["refused", "ok"]
    assert "hidden_size 200 has more units than 1 block can own" in items[0]["what"]


@emulated
def test_an_error_of_a_launch_is_no_refusal(monkeypatch, tmp_path):
    def fails(*_):
        raise RuntimeError("recurrence_forward, plan block, LSTM: too many resources requested for launch")

    monkeypatch.setattr(check, "check_one", fails)
    monkeypatch.setattr(check, "cases", lambda quick: iter([(CASE, "float32", None)]))
    check.check(Records(tmp_path, "tests"), "emulated", "block", quick=False)
    assert json.loads((tmp_path / "tests.json").read_text())["items"][0]["status"] == "error"


@pytest.fixture(autouse=True)
def _restores_the_precision(monkeypatch):
    """check.check sets it for a process of its own."""
    rnn = torch.backends.cudnn.rnn
    monkeypatch.setattr(rnn, "fp32_precision", rnn.fp32_precision)


@emulated
@pytest.mark.parametrize("arithmetic", ["float32", "tf32"])
def test_the_checks_know_tf32_from_float32_as_a_gpu_has_them(monkeypatch, tmp_path, arithmetic):
    with_tf32 = ops._with_tf32
    monkeypatch.setattr(ops, "_with_tf32", lambda backend, plan, dtype: with_tf32("cuda", plan, dtype))
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "tf32")  # the default
    monkeypatch.setattr(check, "cases", lambda quick: iter([(CASE, arithmetic, None)]))
    check.check(Records(tmp_path, "tests"), "emulated", "stepwise", quick=False)
    assert [item["status"] for item in json.loads((tmp_path / "tests.json").read_text())["items"]] == ["ok"]


def test_torch_has_the_product_of_16_bit_numbers_that_the_matmul_plan_calls():
    schema = str(torch._C._get_schema("aten::mm", "dtype_out"))
    expected = "aten::mm.dtype_out(Tensor self, Tensor mat2, ScalarType out_dtype, *, Tensor(a!) out) -> Tensor(a!)"
    assert schema == expected


def test_the_checks_see_a_wrong_kernel(monkeypatch):
    right = check.run

    def wrong(layer, backend, **options):
        results = right(layer, backend, **options)
        return [results[0] * 1.001, *results[1:]] if "plan" in options else results

    monkeypatch.setattr(check, "run", wrong)
    status, values = check.check_one(CASE, "float32", None, "reference", "", "cpu")
    assert status == "wrong"
    assert values["error"] > 1


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_the_latency_program_compiles_for_hopper_without_a_warning(tmp_path):
    command = [
        "nvcc",
        "-std=c++20",
        "-O1",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-Icsrc/cuda",
        "-Werror",
        "all-warnings",
    ]
    subprocess.run([*command, "-o", str(tmp_path / "latency"), "benchmarks/gpu/latency.cu"], cwd=ROOT, check=True)
    result = subprocess.run([str(tmp_path / "latency"), "launches"], capture_output=True, text=True, check=False)
    assert json.loads(result.stdout.splitlines()[0])["name"].startswith("launches")
