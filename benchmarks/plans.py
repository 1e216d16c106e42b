"""What the plan predicts for GPUs that are not here: ``python -m benchmarks.plans --out benchmarks/results/plans.md``.

A table per device of the shapes at which fastrnn means to be faster than cuDNN: the plan of forward and backward, its predicted
time a step, and what bounds it. Predictions stand on published latencies (csrc/plan.cpp); none was measured.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fastrnn import _C

# Multiprocessors of each part that a cluster does not leave; no two H100s are alike.
H100_PARTS = (16, 16, 16, 16, 16, 16, 18, 18)
DEVICES = {
    "H100": _C.DeviceLimits(
        9, 0, sum(H100_PARTS), 232448, [sum(part // size for part in H100_PARTS) for size in range(1, 17)]
    ),
    "A100": _C.DeviceLimits(8, 0, 108, 166912, []),
}
CELLS = {"RNN": 0, "LSTM": 2, "GRU": 3}
SCALARS = {"bfloat16": (3, False), "tf32": (0, True), "float32": (0, False)}
SHAPES = [
    (1, 512, 512),
    (16, 512, 512),
    (32, 512, 1024),
    (64, 256, 1024),
    (128, 128, 512),
    (16, 1024, 768),
    (32, 512, 128),
]


def teams(plan: _C.Plan) -> str:
    """Blocks a team and teams; the plan that torch's product is part of has none."""
    if not plan["num_teams"]:
        return ""
    clusters = f" in clusters of {plan['cluster_size']}" if 1 < plan["cluster_size"] < plan["team_size"] else ""
    return f"{plan['team_size']}{clusters} x {plan['num_teams']}"


def rows(device: str) -> list[str]:
    limits = DEVICES[device]
    lines = [
        "| cell | arithmetic | B, T, H | pass | plan | blocks a team x teams | us a step | made of |",
        "|---" * 8 + "|",
    ]
    for cell, cell_index in CELLS.items():
        for arithmetic, (scalar, tf32) in SCALARS.items():
            for batch, steps, hidden in SHAPES:
                for backward in (False, True):
                    request = _C.PlanRequest(
                        cell=cell_index, scalar=scalar, steps=steps, batch=batch, hidden_size=hidden, state_size=hidden,
                        backward=backward, allows_tf32=tf32, all_plans=True,
                    )  # fmt: skip
                    plan = _C.plan(request, limits)
                    lines.append(
                        f"| {cell} | {arithmetic} | {batch}, {steps}, {hidden} | {'backward' if backward else 'forward'} "
                        f"| {plan['team']} | {teams(plan)} | {plan['step_us']:.2f} "
                        f"| {plan['bound']} |"
                    )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    text = "# Predicted plans\n\nFrom the cost model of csrc/plan.cpp, with FASTRNN_PLANS=all. Not measured.\n"
    for device in DEVICES:
        text += f"\n## {device}\n\n" + "\n".join(rows(device)) + "\n"
    if arguments.out:
        arguments.out.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
