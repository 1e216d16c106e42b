"""The benchmarks run, refuse wrong results, and report what was measured."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import algorithms, baselines, environment, figures, nvidia, ratios, report, run
from benchmarks.goals import CPU_GOALS, goal
from benchmarks.shapes import CPU_HEADLINE, Shape
from benchmarks.suites import SUITES
from benchmarks.suites.memory import saved_bytes

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def _times(median: float) -> dict[str, object]:
    return {"median": median, "quartiles": [0.9 * median, 1.1 * median], "samples": 3, "calls": 1}


def _file(tmp_path: Path, records: list[dict[str, object]], name: str = "found.json", **facts: object) -> Path:
    facts = {"device": "cpu", "threads": 2, "fma_peak": 1e9, **facts}
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"environment": facts, "results": records}))
    return path


def _record(shape: str, ours: float, **theirs: float) -> dict[str, object]:
    return {
        "suite": "headline", "cell": "lstm", "shape": shape, "mode": "train", "dtype": "float32", "difference": 0.0,
        "times": {"fastrnn": _times(ours), **{name.replace("_", "."): _times(t) for name, t in theirs.items()}},
        "flops": 10**6,
    }  # fmt: skip


def test_every_suite_that_fits_the_cpu_measures_and_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "results.json"
    command = [
        "run",
        "--device",
        "cpu",
        "--suite",
        "headline,ragged,features,memory,step,regions",
        "--shapes",
        "3x4x5x6",
    ]
    monkeypatch.setattr(sys, "argv", [*command, "--rounds", "2", "--out", str(out)])
    monkeypatch.setattr("benchmarks.timing.TURN_SECONDS", 0.0)
    monkeypatch.setattr(run, "round_trip", lambda: 61.2)  # processes on one core, one thread: not measured
    run.main()
    found = json.loads(out.read_text())
    kinds = {(r["suite"], r["cell"], r["mode"]) for r in found["results"]}
    assert len(kinds) == len(found["results"]) == 3 * 2 + 3 * 2 + 3 + 2 + 3 + 3 + 3 * 2
    assert all(r["times"]["fastrnn"]["median"] > 0 and r["difference"] < 1e-4 for r in found["results"])

    assert all(("algorithm" in r) == (r["suite"] != "features") for r in found["results"])
    named = {(r["cell"], r["mode"]): r["algorithm"] for r in found["results"] if r["suite"] == "regions"}
    assert named["gru", "train"] == "ATen, operations per step"
    assert named["lstm", "inference"] in ("oneDNN", "ATen, operations per step")

    table, picture = tmp_path / "table.md", tmp_path / "picture.png"
    monkeypatch.setattr(sys, "argv", ["report", str(out), "--out", str(table), "--figure", str(picture)])
    report.main()
    text = table.read_text()
    assert "ragged: train, speed-up over torch.nn packed" in text
    assert "torch.nn packed ran ATen, operations per step for LSTM, GRU, RNN." in text
    between_cores = (
        "A cache line went from one core to the other and back in 61 to 61 ns after each of these (median 61)."
    )
    assert (between_cores in text) == (torch.get_num_threads() > 1)
    assert "| lstm | 3x4x5x6 | fastrnn: bytes kept for backward |" in text
    assert picture.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"aten::_cudnn_rnn", "RNN_blockPersist_fp_LSTM<__half>"}, "cuDNN, persistent kernels"),
        (
            {"aten::_cudnn_rnn", "LSTM_elementWise_fp", "sm90_xmma_gemm"},
            "cuDNN, a product and pointwise kernels per step",
        ),
        ({"aten::lstm", "aten::mkldnn_rnn_layer"}, "oneDNN"),
        ({"aten::gru", "aten::addmm"}, "ATen, operations per step"),
    ],
)
def test_the_algorithm_is_named_by_its_kernels(names, expected) -> None:
    assert algorithms.algorithm_of_names(names) == expected


def _refusal(monkeypatch, capsys, program, *command: str) -> str:
    """What a program says of wrong arguments."""
    monkeypatch.setattr(sys, "argv", ["program", *command])
    with pytest.raises(SystemExit) as caught:
        program.main()
    assert caught.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("--device cuda", "--device cuda: torch sees no GPU"),
        ("--threads -1", "--threads -1: expected at least 1"),
        ("--threads 0", "--threads 0: expected at least 1"),
        ("--shapes 3x4x0x6", "sizes are at least 1, directions 1 or 2, got '3x4x0x6'"),
        ("--shapes 3x4x5x6x1x3", "directions 1 or 2"),
        ("--suite ,", "--suite: expected at least one of headline"),
        ("--cells ,", "--cells: expected at least one of lstm"),
        ("--suite headline,regions", "--suite regions: its shapes are those of cuDNN's algorithms and need a GPU"),
        ("--suite peers --dtype float64", "--suite peers: float32 on the CPU only"),
    ],
)
def test_arguments_that_cannot_be_are_refused(monkeypatch, capsys, tmp_path: Path, command: str, message: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert message in _refusal(
        monkeypatch, capsys, run, "--device", "cpu", *command.split(), "--out", str(tmp_path / "a.json")
    )


def test_an_out_that_cannot_be_written_is_refused_before_anything_is_timed(monkeypatch, capsys, tmp_path) -> None:
    (tmp_path / "file").touch()
    assert "a folder, expected a file" in _refusal(monkeypatch, capsys, run, "--device", "cpu", "--out", str(tmp_path))
    assert "file" in _refusal(monkeypatch, capsys, run, "--device", "cpu", "--out", str(tmp_path / "file" / "a.json"))


def test_a_suite_that_measures_nothing_is_no_success(monkeypatch, tmp_path: Path) -> None:
    command = ["run", "--device", "cpu", "--suite", "ragged", "--shapes", "1x4x5x6", "--out", str(tmp_path / "a.json")]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(run, "environment", lambda device: {})
    with pytest.raises(SystemExit, match="nothing was measured of ragged"):
        run.main()


def test_the_report_refuses_files_that_it_cannot_read(monkeypatch, capsys, tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "tests.json").write_text('{"items": []}')
    (tmp_path / "list.json").write_text("[]")
    for file, message in (
        (tmp_path / "missing.json", "No such file"),
        (tmp_path, "Is a directory"),
        (tmp_path / "broken.json", "not JSON"),
        (tmp_path / "tests.json", "not written by benchmarks.run"),
        (tmp_path / "list.json", "not written by benchmarks.run"),
        (RESULTS / "training-cpu-seed-0.json", "benchmarks.training.report"),
    ):
        assert f"{file}: " in (said := _refusal(monkeypatch, capsys, report, str(file)))
        assert message in said


def test_clipping_is_measured_in_all_its_forms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "results.json"
    command = [
        "run",
        "--device",
        "cpu",
        "--suite",
        "clipping",
        "--shapes",
        "3x4x5x6",
        "--cells",
        "lstm",
        "--threads",
        "1",
    ]
    monkeypatch.setattr(sys, "argv", [*command, "--rounds", "2", "--out", str(out)])
    monkeypatch.setattr("benchmarks.timing.TURN_SECONDS", 0.0)
    run.main()
    results = json.loads(out.read_text())["results"]
    goals = {(mode, baseline) for suite, mode, baseline, _ in CPU_GOALS if suite == "clipping"}
    assert goals <= {(r["mode"], baseline) for r in results for baseline in r["times"]}
    assert all(r["times"]["fastrnn"]["median"] > 0 and r["difference"] < 1e-4 for r in results)


def test_a_round_trip_between_cores_takes_nanoseconds() -> None:
    time = environment.round_trip()
    assert (time is None) == (len(os.sched_getaffinity(0)) < 2)
    assert time is None or 5 < time < 50_000


def test_a_wrong_result_is_refused() -> None:
    p = baselines.problem("gru", Shape(3, 4, 5, 6), "cpu")
    right = baselines.inference(p.theirs, p.x)()
    assert baselines.check(p, baselines.inference(p.ours, p.x)(), right) < 1e-5
    with pytest.raises(AssertionError, match="results differ"):
        baselines.check(p, right + 1e-2, right)
    with pytest.raises(AssertionError, match="results differ"):
        baselines.check(p, right * float("nan"), right)


def test_report_takes_means_and_marks_goals(tmp_path: Path) -> None:
    def records(slowest: float) -> list[dict[str, object]]:
        *most, last = map(str, CPU_HEADLINE)
        return [_record(s, 1e-3, torch_nn=4e-3) for s in most] + [_record(last, 2e-3, torch_nn=slowest)]

    shown = "4.00 | " * 7
    text = report.markdown([_file(tmp_path, records(2e-3))])
    assert f"| lstm | {shown}1.00 | **3.36** | 1.00 | 1.3 / 1: reached |" in text
    assert "| train | lstm | 100% | " in text  # 1e6 operations in 1 ms and 2 ms at a peak of 1e9 a second
    assert " | 50% |" in text
    text = report.markdown([_file(tmp_path, records(1e-3))])
    assert f"| lstm | {shown}0.50 | **3.08** | 0.50 | 1.3 / 1: **missed** |" in text


@pytest.mark.parametrize("change", ["fewer", "more", "others", "dtype", "threads"])
def test_goals_are_not_marked_for_what_they_are_not_stated_for(tmp_path: Path, change: str) -> None:
    shapes = list(map(str, CPU_HEADLINE))
    shapes = {"fewer": shapes[1:], "more": [*shapes, "1x1x1x1"], "others": ["1x1x1x1"]}.get(change, shapes)
    records = [_record(shape, 1e-3, torch_nn=4e-3) for shape in shapes]
    if change == "dtype":
        records = [{**record, "dtype": "float64"} for record in records]
    text = report.markdown([_file(tmp_path, records, threads=1 if change == "threads" else 2)])
    assert "**4.00** | 4.00 |  |" in text
    assert "1.3 / 1" not in text


def test_every_goal_is_of_shapes_that_its_suite_measures() -> None:
    found = json.loads((RESULTS / "cpu-2-threads.json").read_text())["results"]
    found += json.loads((RESULTS / "clipping-cpu-2-threads.json").read_text())["results"]
    rows = ratios.speedups(found)
    for key in CPU_GOALS:
        assert goal(*key, rows[key]) is not None, key


def test_peers_are_compared_with_the_faster_one(tmp_path: Path) -> None:
    records = [_record(str(shape), 1e-3, onnxruntime=3e-3, openvino=2e-3) for shape in CPU_HEADLINE]
    for record in records:
        record.update(suite="peers", mode="inference")
    text = report.markdown([_file(tmp_path, records)])
    assert "peers: inference, speed-up over the faster peer" in text
    assert "2.00 | **2.00** | 2.00 | 1.1 / 0.9: reached |" in text


def test_the_report_says_what_torch_ran_where_it_is_recorded(tmp_path: Path) -> None:
    step = "ATen, operations per step"
    records = [
        {**_record("1x1x1x1", 1e-3, torch_nn=2e-3, flashrnn=3e-3), "cell": cell, "algorithm": algorithm}
        for cell, algorithm in (("lstm", "oneDNN"), ("gru", step), ("rnn", step))
    ]
    text = report.markdown([_file(tmp_path, records)])
    assert text.count(" ran ") == 1  # not of flashrnn
    assert "torch.nn ran oneDNN for LSTM; ATen, operations per step for GRU, RNN." in text
    records.append({**records[0], "shape": "2x2x2x2", "algorithm": step})
    assert f"ran oneDNN for LSTM (1x1x1x1); {step} for LSTM (2x2x2x2), GRU" in report.markdown(
        [_file(tmp_path, records)]
    )
    assert " ran " not in report.markdown([_file(tmp_path, [_record("1x1x1x1", 1e-3, torch_nn=2e-3)])])


def test_tables_of_types_beside_float32_say_so(tmp_path: Path) -> None:
    record = _record("1x1x1x1", 1e-3, torch_nn=2e-3)
    text = report.markdown([_file(tmp_path, [record, {**record, "dtype": "float16"}], gpu="H100", device="cuda")])
    assert text.count("### headline: train, speed-up over torch.nn\n") == 1
    assert text.count("### headline: train, float16, speed-up over torch.nn\n") == 1


def test_files_of_other_types_or_settings_have_panels_of_their_own(tmp_path: Path) -> None:
    def file(name: str, dtype: str, speedup: float) -> Path:
        record = {**_record("1x1x1x1", 1e-3, torch_nn=speedup * 1e-3), "dtype": dtype}
        return _file(tmp_path, [record], name, gpu="H100")

    files = [file("all.json", "float16", 2), file("default.json", "float16", 3), file("other.json", "float32", 4)]
    files.append(file("again/all.json", "float16", 5))
    found = {panel.title: round(panel.bars["lstm"]["1x1x1x1"][0]) for panel in figures.panels(files)}
    title = "headline, train against torch.nn"
    assert found == {
        f"{title}, float16, H100, {tmp_path}/all": 2,
        f"{title}, float16, H100, default": 3,
        f"{title}, float32, H100": 4,
        f"{title}, float16, H100, {tmp_path}/again/all": 5,
    }


@pytest.mark.parametrize(("plans", "said"), [("all", "FASTRNN_PLANS=all"), ("", "FASTRNN_PLANS not set")])
def test_a_result_on_a_gpu_says_driver_and_plans(monkeypatch, plans: str, said: str) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H100")
    monkeypatch.setattr(nvidia, "gpu", lambda: {"gpu": "H100", "driver": "580.1"})
    monkeypatch.setenv("FASTRNN_PLANS", plans)
    facts = environment.environment("cuda")
    assert (facts["driver"], facts["FASTRNN_PLANS"]) == ("580.1", plans)
    text = report.environment_text(facts)
    assert "driver 580.1" in text
    assert said in text


def _memory_record(ours: int, theirs: int) -> dict[str, object]:
    counted = {"bytes kept for backward": 1, "peak bytes of a step": 2}
    sides = {"fastrnn": ours, "torch.nn": theirs}
    extra = {f"{name}: {what}": size * factor for name, size in sides.items() for what, factor in counted.items()}
    return {**_record("1x1x1x1", 1e-3, torch_nn=2e-3), "suite": "memory", "extra": extra}


def test_memory_is_drawn_as_a_share_of_torchs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = _file(tmp_path, [_memory_record(300, 400)])
    drawn = figures.panels([file])
    assert [panel.title.split(", ")[1] for panel in drawn] == ["bytes kept for backward", "peak bytes of a step"]
    assert all(panel.bars == {"lstm": {"1x1x1x1": (0.75, 0.75, 0.75)}} for panel in drawn)
    pytest.importorskip("matplotlib")
    picture = tmp_path / "memory.png"
    monkeypatch.setattr(sys, "argv", ["report", str(file), "--figure", str(picture)])
    report.main()
    assert picture.stat().st_size > 10_000


def test_a_figure_of_nothing_is_refused_before_anything_is_written(tmp_path, monkeypatch, capsys) -> None:
    file, table = _file(tmp_path, [_record("1x1x1x1", 1e-3, torch_nn=2e-3)]), tmp_path / "table.md"
    command = ["report", str(file), "--out", str(table), "--figure", str(tmp_path / "y.png")]
    monkeypatch.setattr(sys, "argv", [*command, "--figure-suites", "ragged,step"])
    with pytest.raises(SystemExit) as caught:
        report.main()
    assert caught.value.code == 2
    assert "nothing to draw, no results of ragged, step" in capsys.readouterr().err
    assert not table.exists()


COMMANDS = (RESULTS.parent / "README.md").read_text().replace("$to/", "benchmarks/results/")


@pytest.mark.parametrize("line", re.findall(r"^\$report (.*\.md)\b", COMMANDS, re.MULTILINE))
def test_a_committed_table_is_what_its_command_gives(line: str) -> None:
    sources, table = line.split(" --out ")
    committed = (ROOT / table).read_text()
    assert re.sub(r"!\[speed-ups\].*\n\n", "", committed) == report.markdown([ROOT / name for name in sources.split()])


def test_every_committed_result_is_named_beside_its_command() -> None:
    names = {re.sub(r"seed-\d", "seed-$seed", path.name) for path in RESULTS.iterdir() if path.is_file()}
    assert len(names) > 10
    assert {name for name in names if name not in COMMANDS} == set()


def test_every_suite_is_described() -> None:
    assert {name for name in SUITES if f"| `{name}` |" not in COMMANDS} == set()


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("shape", [s for s in CPU_HEADLINE if s.hidden_size <= 256], ids=str)
def test_no_more_is_kept_for_backward_than_by_torch(cell: str, shape: Shape) -> None:
    p = baselines.problem(cell, shape, "cpu")
    assert saved_bytes(p.ours, p.x) <= saved_bytes(p.theirs, p.x)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_inference_allocates_outputs_and_gates_whatever_the_steps(cell: str) -> None:
    """The number of allocations through torch does not depend on T."""

    def allocations(steps: int) -> int:
        p = baselines.problem(cell, Shape(3, steps, 8, 16), "cpu")
        call = baselines.inference(p.ours, p.x)
        call()
        with torch.profiler.profile(profile_memory=True) as profile:
            call()
        events = profile.profiler.kineto_results.events()
        return sum(event.name() == "[memory]" and event.nbytes() > 0 for event in events)

    assert allocations(40) == allocations(4) <= 8
