"""What was set out to be reached, as geometric mean and worst of the speed-ups; the report marks what misses.

A goal is of float32 on 2 threads, over exactly the shapes that its suite has there: of others the report says nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from benchmarks.shapes import CLIPPED_PARAMETERS, CLIPPED_THROUGH_TIME, CPU_HEADLINE, Shape


class Goal(NamedTuple):
    geometric_mean: float
    worst: float


# (suite, mode, baseline, cell)
CPU_GOALS = {
    ("headline", "train", "torch.nn", "lstm"): Goal(1.3, 1.0),
    ("headline", "inference", "torch.nn", "lstm"): Goal(1.1, 1.0),
    ("headline", "train", "torch.nn", "gru"): Goal(3.0, 1.5),
    ("headline", "inference", "torch.nn", "gru"): Goal(3.0, 1.5),
    ("headline", "train", "torch.nn", "rnn"): Goal(2.5, 1.2),
    ("headline", "inference", "torch.nn", "rnn"): Goal(2.5, 1.2),
    **{("peers", "inference", "the faster peer", cell): Goal(1.1, 0.9) for cell in ("lstm", "gru", "rnn")},
    ("ragged", "train", "torch.nn packed", "lstm"): Goal(3.0, 0.0),
    ("ragged", "train", "torch.nn packed", "gru"): Goal(2.5, 0.0),
    ("ragged", "train", "torch.nn packed", "rnn"): Goal(2.0, 0.0),
    **{
        ("features", "features on against off", "features off", cell): Goal(0.9, 0.0) for cell in ("lstm", "gru", "rnn")
    },
    ("features", "variational mask against a loop", "loop over cells", "lstm"): Goal(6.0, 0.0),
    ("clipping", "norm clip, recorded norms", "off", "lstm"): Goal(0.9, 0.0),
    ("clipping", "norm clip, recorded norms", "loop over cells", "lstm"): Goal(5.0, 0.0),
    **{
        ("clipping", f"parameter clip {where} the limit{trusted}", "torch.nn.utils", "lstm"): Goal(5.0, 0.0)
        for where in ("beyond", "below")
        for trusted in ("", ", trusted")
    },
    **{
        ("clipping", f"{name} step with clip{trusted}", "clip, fused step", "lstm"): Goal(2.0, 0.0)
        for name in ("SGD", "Adam")
        for trusted in ("", ", trusted")
    },
}


def shapes_of(suite: str, mode: str) -> tuple[Shape, ...]:
    """What the goals of a suite are stated for."""
    if suite == "clipping":
        return (CLIPPED_THROUGH_TIME if mode == "norm clip, recorded norms" else CLIPPED_PARAMETERS,)
    return tuple(shape for shape in CPU_HEADLINE if suite != "ragged" or shape.batch > 1)  # one sample is not ragged


def goal(suite: str, mode: str, baseline: str, cell: str, shapes: Iterable[str]) -> Goal | None:
    """The goal of a row with these shapes; None where there is none."""
    stated = {str(shape) for shape in shapes_of(suite, mode)}
    return CPU_GOALS.get((suite, mode, baseline, cell)) if set(shapes) == stated else None


SHARE_OF_PEAK = {("train", "32x100x512x512"): 0.7}
