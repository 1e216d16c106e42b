"""The stages of gpu_check.sh. Each writes ``<out>/<stage>.json`` anew, item by item; ``table`` sums up what is there.

A stage ends with 1 where an item is wrong or an error.

python -m benchmarks.gpu build|tests|sanitize|latency|bench|table --out DIR
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

from benchmarks.gpu.records import FAILED, Records
from benchmarks.nvidia import gpu, nvcc, versions

ROOT = Path(__file__).resolve().parents[2]
LATENCIES = (
    "grid_counter", "grid_words", "push_store", "push_bulk", "cluster_barrier", "clusters", "together", "launches",
)  # fmt: skip
TESTS = (
    "test_functions",
    "test_lengths",
    "test_dropout",
    "test_state_grad_clip",
    "test_precision",
    "test_norm_kernels",
    "test_kernel_plans",
    "test_stacks",
)


BENCHMARKS = (  # name, arguments, dtype, FASTRNN_PLANS
    ("bench-all-plans", ("--suite", "headline,features"), "float16", "all"),
    ("bench-default", ("--suite", "headline,features"), "float16", ""),
    ("bench-clipping", ("--suite", "clipping", "--cells", "lstm"), "float32", ""),
    ("bench-float32-all-plans", ("--suite", "headline,features"), "float32", "all"),
    ("bench-regions", ("--suite", "regions", "--modes", "train"), "bfloat16", "all"),
)
NOT_RIGHT = 3  # the status of `check` where it came to its end and some items are not right

_running: set[int] = set()  # the leaders of process groups


def run(command: list[str], seconds: float, log: Path, **environment: str) -> tuple[int, str]:
    """(exit status, output); 124 where the time was up, as `timeout` says it. The output is kept in a file as well."""
    with log.open("a") as file:
        file.write(f"$ {' '.join(command)}\n")
        file.flush()
        begin = file.tell()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        _running.add(process.pid)
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            status = 124
        _running.discard(process.pid)
    return status, log.read_bytes()[begin:].decode(errors="replace")


def stop(*_: object) -> NoReturn:
    """The stage's time is up: nothing of it goes on behind the next one's back."""
    for leader in _running:
        os.killpg(leader, signal.SIGKILL)
    os._exit(124)


def last_line(output: str) -> str:
    lines = [line for line in output.splitlines() if line.strip()]
    return lines[-1][:500] if lines else "no output"


def fresh(out: Path, stage: str) -> None:
    """Nothing of an earlier run of the stage stays beside what this one finds."""
    for pattern in (f"{stage}.json", f"{stage}.log", f"{stage}-*.json", f"{stage}-*.log"):
        for path in out.glob(pattern):
            path.unlink()
    if stage == "tests":
        (out / "pytest.log").unlink(missing_ok=True)
    if stage == "sanitize":
        shutil.rmtree(out / "sanitized", ignore_errors=True)


def build(out: Path) -> None:
    facts = gpu()
    records = Records(out, "build", **facts, **versions(), python=platform.python_version(), cores=os.cpu_count())
    start = time.perf_counter()
    environment = {"MAX_JOBS": os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)}
    if facts["gpu"]:
        environment["FASTRNN_CUDA"] = "1"
    status, output = run([sys.executable, "setup.py", "build_ext", "--inplace"], 600, out / "build.log", **environment)
    said = [line for line in output.splitlines() if line.startswith("fastrnn: ")]
    records.add(
        "build",
        "ok" if status == 0 else "error",
        seconds=time.perf_counter() - start,
        what="; ".join(said) or last_line(output),
    )
    if status == 0:
        _, report = run([sys.executable, "-m", "fastrnn"], 60, out / "build.log")
        records.set(report=report.splitlines())
    raise SystemExit(status)


def tests(out: Path) -> None:
    from benchmarks.gpu.check import TEAMS

    facts = gpu()
    records = Records(out, "tests", **facts, **versions())
    if not facts["gpu"]:
        records.add("tests", "skipped", what="there is no GPU here")
        return
    with ThreadPoolExecutor() as pool:
        whole_suite = pool.submit(run_pytest, out)
        for team in TEAMS:  # each in a process of its own: the first error of a kernel ends a process's GPU context
            command = [sys.executable, "-m", "benchmarks.gpu", "check", "--team", team, "--out", str(out)]
            status, output = run(command, 27, out / "tests.log")
            records = Records(out, "tests")
            if status not in (0, NOT_RIGHT):
                records.add(f"{team}: all", "error", what="time was up" if status == 124 else last_line(output))
        status_of_suite, values = whole_suite.result()
        records.add("pytest", status_of_suite, **values)
    raise SystemExit(int(records.has_failed))


def run_pytest(out: Path) -> tuple[str, dict[str, str]]:
    """The tests on the cuda backend."""
    if importlib.util.find_spec("pytest") is None:
        return "skipped", {"what": "pytest is not installed"}
    workers = ["-n", "8"] if importlib.util.find_spec("xdist") else []
    files = [f"tests/{name}.py" for name in TESTS]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *workers, *files]
    status, output = run(command, 140, out / "pytest.log", FASTRNN_TEST_BACKENDS="cuda")
    return "ok" if status == 0 else "error", {"what": "time was up" if status == 124 else last_line(output)}


def sanitize(out: Path) -> None:
    from benchmarks.gpu.check import TEAMS

    facts, tool = gpu(), shutil.which("compute-sanitizer")
    records = Records(out, "sanitize", **facts, **versions())
    if tool is None or not facts["gpu"]:
        records.add(
            "sanitize", "skipped", what="there is no GPU here" if tool else "compute-sanitizer is not on the PATH"
        )
        return

    def one(what: tuple[str, str]) -> tuple[str, int, str]:
        check, team = what
        name = f"{check} {team}"
        folder = out / "sanitized" / f"{check}-{team}"
        folder.mkdir(parents=True, exist_ok=True)
        command = [tool, "--tool", check, "--error-exitcode", "9", sys.executable, "-m", "benchmarks.gpu", "check"]
        return name, *run([*command, "--quick", "--team", team, "--out", str(folder)], 40, folder / "log.txt")

    pairs = [(check, team) for check in ("memcheck", "racecheck", "synccheck") for team in TEAMS]
    records.set(expected=len(pairs))  # in two rounds, within the stage's time
    with ThreadPoolExecutor(8) as pool:  # most of the time is torch's start
        for name, status, output in pool.map(one, pairs):
            what = "time was up" if status == 124 else last_line(output)
            records.add(name, {0: "ok", NOT_RIGHT: "wrong"}.get(status, "error"), what=what)
    raise SystemExit(int(records.has_failed))


def latency(out: Path) -> None:
    facts = gpu()
    records = Records(out, "latency", **facts, **versions())
    arch = (facts.get("compute_capability") or "9.0").replace(".", "")
    arch += "a" if arch == "90" else ""
    program = out / "latency"
    command = [
        nvcc(), "-std=c++20", "-O3", f"-gencode=arch=compute_{arch},code=sm_{arch}", "-Icsrc/cuda", "-o", str(program),
        "benchmarks/gpu/latency.cu",
    ]  # fmt: skip
    try:
        status, output = run(command, 60, out / "latency.log")
    except OSError as error:
        status, output = 1, str(error)
    records.add("compile", "ok" if status == 0 else "error", what=last_line(output) if status else f"sm_{arch}")
    if not facts["gpu"]:
        records.add("latency", "skipped", what="there is no GPU here")
    for item in LATENCIES if status == 0 and facts["gpu"] else ():
        status_of_item, output = run([str(program), item], 10, out / "latency.log")
        said = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
        for found in said:
            records.add(found.pop("name"), "error" if "error" in found else "ok", **found)
        if status_of_item and not any("error" in found for found in said):
            records.add(item, "error", what="time was up" if status_of_item == 124 else last_line(output))
    raise SystemExit(int(records.has_failed))


def bench(out: Path) -> None:
    """Into ``<out>/bench-*.json``, which `python -m benchmarks.report` reads; what became of each, into ``<out>/bench.json``."""
    facts = gpu()
    records = Records(out, "bench", **facts, **versions())
    if not facts["gpu"]:
        records.add("bench", "skipped", what="there is no GPU here")
        return
    records.set(expected=len(BENCHMARKS))
    for name, what, dtype, plans in BENCHMARKS:
        file = out / f"{name}.json"
        command = [sys.executable, "-m", "benchmarks.run", "--device", "cuda", "--rounds", "5", *what, "--dtype", dtype]
        status, output = run([*command, "--out", str(file)], 600, out / f"{name}.log", FASTRNN_PLANS=plans)
        measured = len(json.loads(file.read_text())["results"]) if file.exists() else 0
        values = {"what": last_line(output)} if status else {}
        records.add(name, "error" if status else "ok", measurements=measured, **values)
    raise SystemExit(int(records.has_failed))


def check(out: Path, backend: str, team: str, quick: bool) -> None:
    from benchmarks.gpu import check as checks

    records = Records(out, "tests")
    before = len(records.items)
    checks.check(records, backend, team, quick)
    wrong = sum(item["status"] in FAILED for item in records.items[before:])
    if wrong:
        print(f"{wrong} of {len(records.items) - before} items are not right")
        raise SystemExit(NOT_RIGHT)


def table(out: Path) -> None:
    """What came out, a line per stage and then what was not right."""
    wrong = []
    for stage in ("build", "tests", "sanitize", "latency", "bench"):
        path = out / f"{stage}.json"
        if not path.exists():
            print(f"{stage:<10}not run")
            continue
        found = json.loads(path.read_text())
        items = found["items"]
        counts = {
            status: sum(i["status"] == status for i in items)
            for status in ("ok", "wrong", "error", "refused", "skipped")
        }
        missing = found.get("expected", 0) - len(items)
        counted = [f"{count} {status}" for status, count in counts.items() if count]
        if missing > 0:
            counted.append(f"{missing} not run")
        print(f"{stage:<10}{', '.join(counted)}" + (f"  ({found['date']})" if "date" in found else ""))
        wrong += [
            f"  {i['status']}: {i['name']}  {i.get('what') or i.get('error') or ''}"[:150]
            for i in items
            if i["status"] in FAILED
        ]
        if stage == "latency":
            for i in items:
                measured = [f"{value:g} {unit}" for unit, value in i.items() if unit in ("us", "clusters", "works")]
                if measured:
                    print(f"  {i['name']:<44}{measured[0]}")
    for path in sorted(out.glob("bench-*.json")):
        results = json.loads(path.read_text())["results"]
        print(f"{path.stem:<10}{len(results)} measurements")
        for r in results:
            ours = r["times"]["fastrnn"]["median"]
            others = "  ".join(
                f"{t['median'] / ours:.2f}x {name}" for name, t in r["times"].items() if name != "fastrnn"
            )
            print(f"  {r['cell']:<5}{r['shape']:<18}{r['mode']:<32}{1e3 * ours:9.3f} ms  {others}")
    print("\n".join(["not right:", *wrong[:20]] if wrong else ["nothing was found wrong in what was run"]))


STAGES = {"build": build, "tests": tests, "sanitize": sanitize, "latency": latency, "bench": bench, "table": table}


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("stage", choices=(*STAGES, "check"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--team", default="stepwise", help="check: whose kernels")
    parser.add_argument("--quick", action="store_true", help="check: a few small layers")
    parser.add_argument("--backend", default="cuda", help="check")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, stop)
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if arguments.stage == "check":
        check(out, arguments.backend, arguments.team, arguments.quick)
    else:
        fresh(out, arguments.stage)
        STAGES[arguments.stage](out)


if __name__ == "__main__":
    main()
