"""The stages of gpu_check.sh. Each writes ``<out>/<stage>.json``, item by item; ``table`` sums up what is there.

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
from typing import Any, NoReturn

from benchmarks.gpu.records import Records

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
)


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


def gpu() -> dict[str, Any]:
    """What GPU there is, by the driver's own word; torch is not asked, since its start takes seconds."""
    query = "name,compute_cap,driver_version"
    try:
        answer = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return {"gpu": None}
    name, capability, driver = (part.strip() for part in answer.stdout.splitlines()[0].split(","))
    return {"gpu": name, "compute_capability": capability, "driver": driver}


def build(out: Path) -> None:
    facts = gpu()
    records = Records(out, "build", **facts, python=platform.python_version(), cores=os.cpu_count())
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
    records = Records(out, "tests", **facts)
    if not facts["gpu"]:
        records.add("tests", "skipped", what="there is no GPU here")
        return
    with ThreadPoolExecutor() as pool:
        whole_suite = pool.submit(run_pytest, out)
        for team in TEAMS:  # each in a process of its own: the first error of a kernel ends a process's GPU context
            command = [sys.executable, "-m", "benchmarks.gpu", "check", "--team", team, "--out", str(out)]
            status, output = run(command, 27, out / "tests.log")
            records = Records(out, "tests")
            if status:
                records.add(f"{team}: all", "error", what="time was up" if status == 124 else last_line(output))
        status_of_suite, values = whole_suite.result()
        records.add("pytest", status_of_suite, **values)


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
    records = Records(out, "sanitize", **facts)
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
            records.add(name, "ok" if status == 0 else "error", what=what)


def latency(out: Path) -> None:
    facts = gpu()
    records = Records(out, "latency", **facts)
    arch = (facts.get("compute_capability") or "9.0").replace(".", "")
    arch += "a" if arch == "90" else ""
    program, nvcc = out / "latency", shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    command = [
        nvcc, "-std=c++20", "-O3", f"-gencode=arch=compute_{arch},code=sm_{arch}", "-Icsrc/cuda", "-o", str(program),
        "benchmarks/gpu/latency.cu",
    ]  # fmt: skip
    try:
        status, output = run(command, 60, out / "latency.log")
    except OSError as error:
        status, output = 1, str(error)
    records.add("compile", "ok" if status == 0 else "error", what=last_line(output) if status else f"sm_{arch}")
    if not facts["gpu"]:
        records.add("latency", "skipped", what="there is no GPU here")
        return
    for item in LATENCIES if status == 0 else ():
        status, output = run([str(program), item], 10, out / "latency.log")
        for line in output.splitlines():
            if line.startswith("{"):
                found = json.loads(line)
                records.add(found.pop("name"), "error" if "error" in found else "ok", **found)
        if status == 124:
            records.add(item, "error", what="time was up")


def bench(out: Path) -> None:
    """Into ``<out>/bench*.json``, which `python -m benchmarks.report` reads."""
    if not gpu()["gpu"]:
        print("bench: there is no GPU here")
        return
    command = [sys.executable, "-m", "benchmarks.run", "--device", "cuda", "--rounds", "5"]
    features, clipping = ["--suite", "headline,features"], ["--suite", "clipping", "--cells", "lstm"]
    for name, what, dtype, plans in (
        ("bench-all-plans", features, "float16", "all"),
        ("bench-default", features, "float16", ""),
        ("bench-clipping", clipping, "float32", ""),
        ("bench-float32-all-plans", features, "float32", "all"),
        ("bench-regions", ["--suite", "regions", "--modes", "train"], "bfloat16", "all"),
    ):
        status, output = run(
            [*command, *what, "--dtype", dtype, "--out", str(out / f"{name}.json")],
            600,
            out / f"{name}.log",
            FASTRNN_PLANS=plans,
        )
        print(f"{name}: {'ok' if status == 0 else last_line(output)}", flush=True)


def check(out: Path, backend: str, team: str, quick: bool) -> None:
    from benchmarks.gpu import check as checks

    checks.check(Records(out, "tests"), backend, team, quick)


def table(out: Path) -> None:
    """What came out, a line per stage and then what was not right."""
    wrong = []
    for stage in ("build", "tests", "sanitize", "latency"):
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
        print(f"{stage:<10}" + ", ".join([*counted, f"{missing} not run"] if missing > 0 else counted))
        wrong += [
            f"  {i['status']}: {i['name']}  {i.get('what') or i.get('error') or ''}"[:150]
            for i in items
            if i["status"] in ("wrong", "error")
        ]
        if stage == "latency":
            for i in items:
                measured = [f"{value:g} {unit}" for unit, value in i.items() if unit in ("us", "clusters", "works")]
                if measured:
                    print(f"  {i['name']:<44}{measured[0]}")
    for path in sorted(out.glob("bench*.json")):
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
        STAGES[arguments.stage](out)


if __name__ == "__main__":
    main()
