"""The pictures of benchmarks.report: how many times faster, and how much memory as a share of torch.nn's.

A panel is of one suite, mode, baseline, dtype and device (or number of threads); where several files have such a panel, each keeps
its own and the title says the file.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.ratios import geometric_mean, speedups

Bar = tuple[float, float, float]  # value, and from where to where it spreads
Bars = dict[str, dict[str, Bar]]  # by cell, then by shape

_COLORS = {"lstm": "#3b6fb6", "gru": "#d1495b", "rnn": "#5f9e6e"}
_MEMORY = ("bytes kept for backward", "peak bytes of a step")


class Panel(NamedTuple):
    title: str
    unit: str  # of the bars
    bars: Bars


def memory_shares(results: Iterable[dict[str, Any]]) -> dict[str, Bars]:
    """By what was counted: fastrnn's bytes over torch.nn's."""
    found: dict[str, Bars] = defaultdict(lambda: defaultdict(dict))
    for record in results:
        for what in _MEMORY:
            ours, theirs = (record.get("extra", {}).get(f"{name}: {what}") for name in ("fastrnn", "torch.nn"))
            if record["suite"] == "memory" and ours and theirs:
                found[what][record["cell"]][record["shape"]] = (ours / theirs,) * 3
    return found


def _where(environment: dict[str, Any]) -> str:
    threads = environment["threads"]
    return environment.get("gpu") or f"{threads} thread{'s' * (threads > 1)}"


def _panels_of_file(found: dict[str, Any], suites: Sequence[str]) -> dict[tuple[str, str], Bars]:
    """By title and unit."""
    by_dtype: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in found["results"]:
        if not suites or record["suite"] in suites:
            by_dtype[record["dtype"]].append(record)
    panels: dict[tuple[str, str], Bars] = defaultdict(dict)
    for dtype, results in by_dtype.items():
        where = f"{dtype}, {_where(found['environment'])}"
        timed = [record for record in results if record["suite"] != "memory"]  # its times are for the record only
        for (suite, mode, baseline, cell), by_shape in speedups(timed).items():
            what = f"{suite}, {mode if mode in ('train', 'inference') else f'train ({mode})'} against {baseline}"
            panels[(f"{what}, {where}", "times faster")][cell] = by_shape
        for what, bars in memory_shares(results).items():
            panels[(f"memory, {what}, {where}", "share of torch.nn's")] = bars
    return panels


def panels(files: Sequence[Path], suites: Sequence[str] = ()) -> list[Panel]:
    """What there is to draw in the files, of these suites alone where any are named."""
    by_title: dict[tuple[str, str], list[tuple[Path, Bars]]] = defaultdict(list)
    for file in dict.fromkeys(files):
        for key, bars in _panels_of_file(json.loads(file.read_text()), suites).items():
            by_title[key].append((file, bars))
    found = []
    for (title, unit), holders in by_title.items():
        stems = [file.stem for file, _ in holders]
        for file, bars in holders:
            name = file.stem if stems.count(file.stem) == 1 else str(file.with_suffix(""))
            found.append(Panel(title if len(holders) == 1 else f"{title}, {name}", unit, bars))
    return found


def draw(panels: Sequence[Panel], out: Path) -> None:
    """One grid of all panels, with the spread between the quartiles where there is one."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = 2
    rows = math.ceil(len(panels) / columns)
    canvas, axes = pyplot.subplots(rows, columns, figsize=(15, 3.4 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, panel in zip(axes.flat, panels, strict=False):
        _draw_panel(axis, panel)
    canvas.suptitle("fastrnn against others (B x T x I x H below; dashed: the same)")
    canvas.savefig(out, dpi=110)
    pyplot.close(canvas)


def _draw_panel(axis: Any, panel: Panel) -> None:
    shapes = list(dict.fromkeys(shape for by_shape in panel.bars.values() for shape in by_shape))
    width = 0.8 / len(panel.bars)
    for index, (cell, by_shape) in enumerate(panel.bars.items()):
        here = [i for i, shape in enumerate(shapes) if shape in by_shape]
        values = [by_shape[shapes[i]] for i in here]
        spread = [
            [max(value - low, 0) for value, low, _ in values],
            [max(high - value, 0) for value, _, high in values],
        ]
        axis.bar(
            [i + width * (index - (len(panel.bars) - 1) / 2) for i in here],
            [value for value, _, _ in values],
            width,
            yerr=spread,
            error_kw={"elinewidth": 0.8, "ecolor": "#333333"},
            color=_COLORS[cell],
            label=f"{cell.upper()} (mean {geometric_mean([v[0] for v in values]):.2f})",
        )
    axis.axhline(1, color="#333333", linewidth=1, linestyle="--")
    axis.set_xticks(range(len(shapes)), shapes, rotation=25, ha="right", fontsize=8)
    axis.set_title(panel.title, fontsize=10 if len(panel.title) < 80 else 8)
    axis.set_ylabel(panel.unit)
    axis.grid(axis="y", linewidth=0.3)
    axis.set_axisbelow(True)
    axis.legend(fontsize=8)
