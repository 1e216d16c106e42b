"""Writes README.md's results from the JSON in benchmarks/results/, between its markers; nothing is typed by hand.

python -m benchmarks.readme            # or --check: only say whether README.md is what the results give
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.ratios import geometric_mean, speedups
from benchmarks.training.report import by_task, kind

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- results: written by benchmarks/readme.py -->", "<!-- end of the results -->"
_SUITES = ("headline", "regions", "step", "ragged", "features", "clipping", "kernelbench")
_MODES = {
    "inference": "inference",
    "step with clip and AdamW": "with clip and AdamW",
    "train": "forward and backward",
    "features on against off": "forward and backward",
    "variational mask against a loop": "forward and backward",
    "norm clip, recorded norms": "through time, norms recorded",
    "parameter clip beyond the limit": "of parameters, beyond the limit",
    "parameter clip below the limit": "of parameters, below the limit",
    "parameter clip beyond the limit, trusted": "of parameters, beyond the limit, trust_backward",
    "parameter clip below the limit, trusted": "of parameters, below the limit, trust_backward",
    "SGD step with clip": "in SGD's step",
    "Adam step with clip": "in Adam's step",
    "SGD step with clip, trusted": "in SGD's step, trust_backward",
    "Adam step with clip, trusted": "in Adam's step, trust_backward",
}


def _link(path: Path, text: str = "") -> str:
    relative = path.relative_to(ROOT)
    return f"[{text or relative.name}]({relative})"


def _where(environment: dict[str, Any], results: list[dict[str, Any]]) -> str:
    """What was measured on; of a GPU also the types, and which plans were allowed, since files differ in them."""
    if not environment.get("gpu"):
        return f"{environment['processor']}, {environment['threads']} thread{'s' * (environment['threads'] > 1)}"
    plans = environment.get("FASTRNN_PLANS")
    dtypes = sorted({r["dtype"] for r in results})
    return ", ".join([environment["gpu"], *dtypes, *([f"FASTRNN_PLANS={plans}"] if plans else [])])


def speed(file: Path) -> str:
    """One table: a row per suite, mode and baseline, a column per cell: geometric mean over the shapes, and the range."""
    found = json.loads(file.read_text())
    environment, results = found["environment"], [r for r in found["results"] if r.get("suite") in _SUITES]
    rows: dict[tuple[str, str, str], dict[str, dict[str, tuple[float, float, float]]]] = defaultdict(dict)
    for (suite, mode, baseline, cell), by_shape in speedups(results).items():
        if mode in _MODES:
            rows[(suite, mode, baseline)][cell] = by_shape
    cells = sorted({cell for row in rows.values() for cell in row})
    lines = [
        f"Speed-up over the baseline: geometric mean over the shapes (worst to best, where there are several). {_where(environment, results)}, "
        f"torch {environment['torch']}, {environment['date']}; {_link(file)}.\n",
        "| what | against | " + " | ".join(cell.upper() for cell in cells) + " |",
        "|---|---|" + "---|" * len(cells),
    ]
    for (suite, mode, baseline), row in rows.items():
        texts = []
        for cell in cells:
            ratios = [ratio for ratio, _, _ in row.get(cell, {}).values()]
            shown = f"**{geometric_mean(ratios):.2f}x**" if ratios else ""
            texts.append(f"{shown} ({min(ratios):.2f} to {max(ratios):.2f})" if len(ratios) > 1 else shown)
        lines.append(f"| {suite}, {_MODES[mode]} | {baseline} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def training(files: list[Path]) -> str:
    """One table: the metric of each variant, mean over seeds, and the speed-up of the training pass."""
    environment = json.loads(files[0].read_text())["environment"]
    header = ["task", "metric", "torch.nn", "fastrnn", "recurrent dropout", "state clip", "speed-up"]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    counts = set()
    for variants in by_task(files).values():
        by_kind = {kind(variant): results for variant, results in variants.items()}
        first: dict[str, Any] = by_kind["torch.nn"][0]
        cells = []
        for name in header[2:6]:
            scores = [r["test"] for r in by_kind[name]]
            counts.add(len(scores))
            mean, spread = statistics.fmean(scores), statistics.stdev(scores) if len(scores) > 1 else 0.0
            cells.append(
                f"{mean:.1%} ± {spread:.1%}" if first["metric"] == "accuracy" else f"{mean:.3g} ± {spread:.1g}"
            )
        theirs, ours = (
            statistics.fmean(r["seconds_per_epoch"] for r in by_kind[name]) for name in ("torch.nn", "fastrnn")
        )
        lines.append("| " + " | ".join([first["what"], first["metric"], *cells, f"{theirs / ours:.2f}x"]) + " |")
    seeds = " or ".join(str(count) for count in sorted(counts))
    links = ", ".join(_link(file) for file in files)
    return (
        f"Score on the test split, mean ± standard deviation over {seeds} seeds, and the speed-up of fastrnn's training pass over "
        f"torch.nn's in processor time, one thread of {environment['processor']}, {environment['date']}; {links}.\n\n"
        + "\n".join(lines)
    )


def _speed_files() -> list[Path]:
    """Results of benchmarks.run that have a row here, those in folders (as of gpu_check.sh) included; most shapes first."""
    found: dict[Path, int] = {}
    for file in sorted(RESULTS.rglob("*.json")):
        results = json.loads(file.read_text()).get("results", [])  # records of gpu_check's stages have none
        rows = [r for r in results if r.get("suite") in _SUITES and r["mode"] in _MODES]
        if rows:
            found[file] = len(rows)
    return sorted(found, key=lambda file: -found[file])


def _pictures() -> list[Path]:
    """Of the CPU that of the headline suites, else the first by name; all others, as of a GPU; none of training."""
    found = sorted(p for p in RESULTS.rglob("*.png") if not p.name.startswith("training"))
    of_cpu = sorted((p for p in found if p.name.startswith("cpu")), key=lambda p: "headline" not in p.name)
    return of_cpu[:1] + [picture for picture in found if picture not in of_cpu]


def text() -> str:
    parts = [speed(file) for file in _speed_files()]
    parts.extend(f"![Speed-ups]({picture.relative_to(ROOT)})" for picture in _pictures())
    trained = sorted(RESULTS.glob("training-cpu*.json"))
    if trained:
        parts.append(training(trained))
    parts.extend(
        f"![Learning curves]({picture.relative_to(ROOT)})" for picture in sorted(RESULTS.glob("training-cpu*.png"))[:1]
    )
    return "\n\n".join(parts)


def written(readme: str) -> str:
    """README.md's text with today's results between the markers."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{text()}\n\n{END}{after}"


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.readme", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 where README.md is out of date"
    )
    arguments = parser.parse_args()
    readme = README.read_text()
    wanted = written(readme)
    if arguments.check:
        print(
            "README.md is up to date" if wanted == readme else "README.md is out of date: python -m benchmarks.readme"
        )
        return int(wanted != readme)
    README.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
