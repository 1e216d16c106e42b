"""Times of baselines over fastrnn's."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

Row = tuple[str, str, str, str]  # suite, mode, baseline, cell

_PEERS = ("onnxruntime", "openvino")


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def speedups(results: Iterable[dict[str, Any]]) -> dict[Row, dict[str, tuple[float, float, float]]]:
    """By row, then by shape: baseline's median over ours, and that ratio between the far quartiles of both."""
    found: dict[Row, dict[str, tuple[float, float, float]]] = defaultdict(dict)
    for record in results:
        times = dict(record["times"])
        ours = times.pop("fastrnn")
        peers = [times[name] for name in _PEERS if name in times]
        if peers:
            times["the faster peer"] = min(peers, key=lambda taken: float(taken["median"]))
        for name, theirs in times.items():
            ratio = theirs["median"] / ours["median"]
            low = theirs["quartiles"][0] / ours["quartiles"][1]
            high = theirs["quartiles"][1] / ours["quartiles"][0]
            found[(record["suite"], record["mode"], name, record["cell"])][record["shape"]] = (ratio, low, high)
    return found
