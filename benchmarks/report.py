"""Turns what benchmarks.run wrote into markdown tables and a picture; nothing is typed by hand.

python -m benchmarks.report benchmarks/results/cpu-*.json --out benchmarks/results/cpu.md --figure benchmarks/results/cpu.png
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import draw, panels
from benchmarks.goals import SHARE_OF_PEAK, goal
from benchmarks.ratios import geometric_mean, speedups
from benchmarks.tables import write

_TORCH = ("torch.nn", "as published")  # how the names of the baselines begin whose algorithm a record tells


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines.extend("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join(lines)


def _shapes(results: Iterable[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(record["shape"] for record in results))


def _milliseconds(taken: dict[str, Any]) -> str:
    low, high = (1e3 * quartile for quartile in taken["quartiles"])
    return f"{1e3 * taken['median']:.3g} ({low:.3g} to {high:.3g})"


def _algorithms(results: list[dict[str, Any]]) -> str:
    """Which cells torch.nn ran by which algorithm, with the shapes where a cell had several; empty where none is recorded."""
    cells: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))  # by cell, then by algorithm
    for r in results:
        if "algorithm" in r:
            cells[r["cell"]][r["algorithm"]].append(r["shape"])
    where: dict[str, list[str]] = defaultdict(list)
    for cell, found in cells.items():
        for algorithm, shapes in found.items():
            where[algorithm].append(cell.upper() + (f" ({', '.join(shapes)})" if len(found) > 1 else ""))
    return "; ".join(f"{algorithm} for {', '.join(places)}" for algorithm, places in where.items())


def speedup_tables(environment: dict[str, Any], results: list[dict[str, Any]]) -> str:
    """The tables of each dtype."""
    by_dtype: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in results:
        by_dtype[record["dtype"]].append(record)
    return "\n\n".join(_speedup_tables(environment, dtype, found) for dtype, found in by_dtype.items())


def _speedup_tables(environment: dict[str, Any], dtype: str, results: list[dict[str, Any]]) -> str:
    """One table per suite, mode and baseline: speed-ups by shape, their geometric mean and worst, the goal."""
    is_float32 = dtype == "float32"
    has_goals = is_float32 and environment["device"] == "cpu" and environment["threads"] == 2
    tables: dict[tuple[str, str, str], dict[str, dict[str, tuple[float, float, float]]]] = defaultdict(dict)
    for (suite, mode, baseline, cell), by_shape in speedups(results).items():
        tables[(suite, mode, baseline)][cell] = by_shape
    text = []
    for (suite, mode, baseline), cells in tables.items():
        shapes = list(dict.fromkeys(shape for by_shape in cells.values() for shape in by_shape))
        rows = []
        for cell, by_shape in cells.items():
            ratios = [ratio for ratio, _, _ in by_shape.values()]
            mean, worst = geometric_mean(ratios), min(ratios)
            wanted = goal(suite, mode, baseline, cell, by_shape) if has_goals else None
            verdict = ""
            if wanted:
                reached = mean >= wanted.geometric_mean and worst >= wanted.worst
                verdict = f"{wanted.geometric_mean:g} / {wanted.worst:g}: {'reached' if reached else '**missed**'}"
            per_shape = [f"{by_shape[s][0]:.2f}" if s in by_shape else "" for s in shapes]
            rows.append([cell, *per_shape, f"**{mean:.2f}**", f"{worst:.2f}", verdict])
        text.append(f"### {suite}: {mode}{'' if is_float32 else f', {dtype}'}, speed-up over {baseline}")
        text.append(_table(["cell", *shapes, "geometric mean", "worst", "goal"], rows))
        timed = [r for r in results if (r["suite"], r["mode"]) == (suite, mode) and baseline in r["times"]]
        if baseline.startswith(_TORCH) and (line := _algorithms(timed)):
            text.append(f"{baseline} ran {line}.")
        if line := _round_trips(timed):
            text.append(line)
    return "\n\n".join(text)


def _round_trips(records: list[dict[str, Any]]) -> str:
    """Where the cores were meanwhile."""
    times = sorted(r["round_trip_ns"] for r in records if r.get("round_trip_ns"))
    if not times:
        return ""
    return (
        f"A cache line went from one core to the other and back in {times[0]:.0f} to {times[-1]:.0f} ns after each of these "
        f"(median {statistics.median(times):.0f})."
    )


def peak_table(environment: dict[str, Any], results: list[dict[str, Any]]) -> str:
    """Share of the peak of fused multiply-adds that the products alone account for."""
    peak = environment.get("fma_peak")
    timed = [r for r in results if r.get("flops") and r["suite"] == "headline" and r["dtype"] == "float32"]
    if not peak or not timed:
        return ""
    shapes = _shapes(timed)
    cells: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for record in timed:
        share = record["flops"] / record["times"]["fastrnn"]["median"] / peak
        wanted = SHARE_OF_PEAK.get((record["mode"], record["shape"])) if environment["threads"] == 2 else None
        mark = "" if wanted is None else f" (goal {wanted:.0%}: {'reached' if share >= wanted else '**missed**'})"
        cells[(record["mode"], record["cell"])][record["shape"]] = f"{share:.0%}{mark}"
    rows = [[mode, cell, *(by_shape.get(s, "") for s in shapes)] for (mode, cell), by_shape in cells.items()]
    title = f"### Share of the peak of fused multiply-adds ({peak / 1e9:.0f} GFLOP/s measured on {environment['threads']} threads)"
    return f"{title}\n\n{_table(['mode', 'cell', *shapes], rows)}"


def time_table(results: list[dict[str, Any]]) -> str:
    rows: list[list[str]] = []
    for r in results:
        rows.extend(
            [r["suite"], r["mode"], r["cell"], r["shape"], r["dtype"], name, _milliseconds(taken)]
            for name, taken in r["times"].items()
        )
    header = ["suite", "mode", "cell", "B x T x I x H", "dtype", "contender", "ms: median (quartiles)"]
    return f"<details><summary>All times</summary>\n\n{_table(header, rows)}\n\n</details>"


def extra_table(results: list[dict[str, Any]]) -> str:
    rows = [
        [r["suite"], r["cell"], r["shape"], name, f"{value:.4g}"]
        for r in results
        for name, value in r.get("extra", {}).items()
    ]
    return f"### Other numbers\n\n{_table(['suite', 'cell', 'shape', 'what', 'value'], rows)}" if rows else ""


def left_out_table(results: list[dict[str, Any]]) -> str:
    """Baselines that were asked for and gave no time, and why."""
    records = Counter(r["suite"] for r in results)
    where: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for r in results:
        for name, why in r.get("left_out", {}).items():
            where[(r["suite"], name, why)].append(f"{r['cell']} {r['shape']} {r['mode']}")
    rows = [
        [suite, name, why, "everywhere" if len(places) == records[suite] else ", ".join(places)]
        for (suite, name, why), places in where.items()
    ]
    return f"### Not measured\n\n{_table(['suite', 'baseline', 'why', 'where'], rows)}" if rows else ""


def environment_text(environment: dict[str, Any]) -> str:
    facts = dict(environment)
    if facts.get("fma_peak"):
        facts["fma_peak"] = f"{facts['fma_peak'] / 1e9:.0f} GFLOP/s"
    plans = facts.pop("FASTRNN_PLANS", None)
    texts = [f"{name.replace('_', ' ')} {value}" for name, value in facts.items()]
    if plans is not None:
        texts.append(f"FASTRNN_PLANS={plans}" if plans else "FASTRNN_PLANS not set")
    return ", ".join(texts)


def markdown(files: Sequence[Path]) -> str:
    text = ["# Results", "Speed-up: the other's median time over ours; more than 1 means that fastrnn is faster."]
    for file in files:
        found = json.loads(file.read_text())
        environment, results = found["environment"], found["results"]
        text.append(f"## {file.name}\n\n{environment_text(environment)}")
        parts = (
            speedup_tables(environment, results),
            peak_table(environment, results),
            extra_table(results),
            left_out_table(results),
            time_table(results),
        )
        text.extend(part for part in parts if part)
    return "\n\n".join(text) + "\n"


def _unusable(file: Path) -> str:
    """Why a file is not of benchmarks.run; empty where it is."""
    try:
        found = json.loads(file.read_text())
    except OSError as error:
        return str(error.strerror)
    except ValueError:
        return "not JSON"
    if not isinstance(found, dict) or not {"environment", "results"} <= found.keys():
        return "not written by benchmarks.run"
    if any("task" in record for record in found["results"]):
        return "of benchmarks.training, whose report is benchmarks.training.report"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description="JSON to markdown and a picture.")
    parser.add_argument("files", type=Path, nargs="+", help="written by python -m benchmarks.run")
    parser.add_argument("--out", type=Path, help="the markdown file; else it is printed")
    parser.add_argument("--figure", type=Path, help="the picture (needs matplotlib)")
    parser.add_argument("--figure-suites", default="", help="of these suites alone: a,b")
    arguments = parser.parse_args()
    for file in arguments.files:
        if why := _unusable(file):
            parser.error(f"{file}: {why}")
    text = markdown(arguments.files)
    if arguments.figure:
        suites = [suite for suite in arguments.figure_suites.split(",") if suite]
        drawn = panels(arguments.files, suites)
        if not drawn:
            parser.error(f"--figure: nothing to draw, no results of {', '.join(suites) or 'any suite'} in these files")
        draw(drawn, arguments.figure)
        if arguments.out:
            text = text.replace("# Results\n", f"# Results\n\n![speed-ups]({arguments.figure.name})\n", 1)
    write(text, arguments.out)


if __name__ == "__main__":
    main()
