"""Which lines of the kernels a run has reached, by gcov's word."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

# What cannot be reached without a GPU: the toolkit's twin of the emulator's own header.
LEFT_OUT = {"intrinsics.cuh"}


def clear(folder: Path) -> None:
    """Forget what earlier runs of the programs in a build folder have reached."""
    for path in folder.glob("*.gcda"):
        path.unlink()


def line_counts(folder: Path, sources: Path) -> dict[str, dict[int, int]]:
    """For each header of the kernels, how often each line ran; all instantiations together."""
    gcov = os.environ.get("GCOV", "gcov")
    if shutil.which(gcov) is None:
        raise FileNotFoundError(gcov)
    reports = subprocess.run(
        [gcov, "--json-format", "--stdout", *map(str, sorted(folder.glob("*.gcda")))],
        check=True, capture_output=True, text=True, cwd=folder,
    ).stdout  # fmt: skip
    counts: dict[str, dict[int, int]] = defaultdict(dict)
    for report in reports.splitlines():
        for file in json.loads(report)["files"]:
            path = Path(file["file"]).resolve()
            if path.suffix != ".cuh" or path.parent != sources or path.name in LEFT_OUT:
                continue
            lines = counts[path.name]
            for line in file["lines"]:
                lines[line["line_number"]] = lines.get(line["line_number"], 0) + line["count"]
    return counts


def summary(counts: dict[str, dict[int, int]]) -> tuple[float, str]:
    """The share of lines that ran, and a table with the numbers of those that did not."""
    table = []
    for name, lines in sorted(counts.items()):
        missing = sorted(number for number, count in lines.items() if count == 0)
        table.append(f"{name:20} {len(lines) - len(missing):4} of {len(lines):4} lines; not: {missing}")
    total = sum(len(lines) for lines in counts.values())
    reached = sum(count > 0 for lines in counts.values() for count in lines.values())
    return reached / total, "\n".join(table)
