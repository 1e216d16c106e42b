"""Turns what benchmarks.training wrote into a table and a picture; nothing is typed by hand.

python -m benchmarks.training.report benchmarks/results/training-cpu-*.json --out benchmarks/results/training-cpu.md \
    --figure benchmarks/results/training-cpu.png
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Runs = dict[str, dict[str, list[dict[str, Any]]]]  # by task, then by variant: one per seed

_ORDER = ("torch.nn", "fastrnn", "recurrent dropout", "state clip")
_COLORS = dict(zip(_ORDER, ("#9ecae1", "#08519c", "#d95f02", "#5f9e6e"), strict=True))


def kind(variant: str) -> str:
    """The variant without its options' values, which differ from task to task."""
    if "recurrent_dropout" in variant:
        return "recurrent dropout"
    return "state clip" if "state_grad_clip" in variant else variant


def by_task(files: Sequence[Path]) -> Runs:
    found: Runs = defaultdict(lambda: defaultdict(list))
    for file in files:
        for result in json.loads(file.read_text())["results"]:
            found[result["task"]][result["variant"]].append(result)
    return found


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def _number(metric: str, value: float) -> str:
    return f"{value:.1%}" if metric == "accuracy" else f"{value:.3g}"


def rows_of(task: str, variants: dict[str, list[dict[str, Any]]]) -> list[list[str]]:
    rows = []
    theirs = statistics.fmean(r["seconds_per_epoch"] for r in variants["torch.nn"])
    for variant, results in variants.items():
        metric = results[0]["metric"]
        mean, spread = mean_and_spread([r["test"] for r in results])
        seconds = statistics.fmean(r["seconds_per_epoch"] for r in results)
        clipped = [r["clipped"] for r in results if r["clipped"] is not None]
        rows.append(
            [
                f"{results[0]['what']}: {metric}" if variant == "torch.nn" else "",
                variant,
                f"{_number(metric, mean)} ± {_number(metric, spread)}",
                _number(metric, statistics.fmean(r["trivial"] for r in results)) if variant == "torch.nn" else "",
                f"{seconds:.3g}",
                f"{theirs / seconds:.2f}x",
                f"{statistics.fmean(clipped):.1%}" if clipped else "",
                str(len(results)),
            ]
        )
    return rows


def markdown(files: Sequence[Path]) -> str:
    environment = json.loads(files[0].read_text())["environment"]
    header = [
        "task: metric on the test split", "variant", "mean ± standard deviation over seeds", "trivial answer",
        "CPU seconds per epoch", "speed-up", "gradients clipped", "seeds",
    ]  # fmt: skip
    lines = [
        "# Training",
        f"All variants of a seed start from the same weights and see the same batches; one thread of {environment['processor']} "
        f"({environment.get('instruction_set', environment['device'])}), torch {environment['torch']}, fastrnn "
        f"{environment['fastrnn']}, {environment['date']}. Times are processor time of the training pass, data and optimizer "
        "included. The test score is that of the epoch that was best on the validation split.",
        "| " + " | ".join(header) + " |\n|" + "---|" * len(header),
    ]
    tasks = by_task(files)
    lines[-1] += "".join(
        "\n| " + " | ".join(row) + " |" for task, variants in tasks.items() for row in rows_of(task, variants)
    )
    return "\n\n".join(lines) + "\n"


def figure(files: Sequence[Path], out: Path) -> None:
    """Per task the metric on the validation split after each epoch: mean over seeds, and from the worst to the best seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tasks = by_task(files)
    columns = 3
    count = math.ceil(len(tasks) / columns)
    canvas, axes = pyplot.subplots(count, columns, figsize=(15, 4 * count), squeeze=False, layout="constrained")
    for axis in axes.flat[len(tasks) :]:
        axis.set_visible(False)
    for axis, (task, variants) in zip(axes.flat, tasks.items(), strict=False):
        for variant, results in variants.items():
            name = kind(variant)
            # a run that stops early ends its curve: the mean is over the epochs that all seeds have
            curves = [list(column) for column in zip(*(r["validation"] for r in results), strict=False)]
            epochs = range(1, len(curves) + 1)
            axis.plot(
                epochs, [statistics.fmean(c) for c in curves], label=name, color=_COLORS[name],
                linewidth=5 if name == "torch.nn" else 1.6,
            )  # fmt: skip
            axis.fill_between(
                epochs, [min(c) for c in curves], [max(c) for c in curves], color=_COLORS[name], alpha=0.15, lw=0
            )
        any_result = next(iter(variants.values()))[0]
        axis.set(title=task, xlabel="epoch", ylabel=f"{any_result['metric']}, validation")
        if any_result["metric"] == "mean squared error":
            axis.set_yscale("log")
        axis.grid(color="#dddddd", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    axes.flat[0].legend(frameon=False)
    canvas.savefig(out, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.training.report", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("files", type=Path, nargs="+", help="JSON of benchmarks.training")
    parser.add_argument("--out", type=Path, required=True, help="the markdown file to write")
    parser.add_argument("--figure", type=Path, help="the picture to write")
    arguments = parser.parse_args()
    arguments.out.write_text(markdown(arguments.files))
    if arguments.figure:
        figure(arguments.files, arguments.figure)


if __name__ == "__main__":
    main()
