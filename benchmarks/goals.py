"""What was set out to be reached, as geometric mean and worst of the speed-ups over all shapes; the report marks what misses."""

from __future__ import annotations

from typing import NamedTuple


class Goal(NamedTuple):
    geometric_mean: float
    worst: float


# (suite, mode, baseline, cell); 2 threads, benchmarks.shapes.CPU_HEADLINE.
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
SHARE_OF_PEAK = {("train", "32x100x512x512"): 0.7}
