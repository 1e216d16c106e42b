"""What the plan predicts for GPUs that are not here: ``python -m benchmarks.plans --out benchmarks/results/plans.md``.

A table per device of the shapes at which fastrnn means to be faster than cuDNN: the plan of forward and backward, its predicted
time a step, and what bounds it. Predictions stand on published latencies (csrc/plan.cpp); none was measured.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import targets
from benchmarks.devices import CELLS, DEVICES, blocks, plan
from benchmarks.tables import write

ARITHMETICS = ("bfloat16", "tf32", "float32")
SHAPES = [
    (1, 512, 512),
    (16, 512, 512),
    (32, 512, 1024),
    (64, 256, 1024),
    (128, 128, 512),
    (16, 1024, 768),
    (32, 512, 128),
]


def rows(device: str) -> list[str]:
    lines = [
        "| cell | arithmetic | B, T, H | pass | plan | blocks a team x teams | us a step | made of |",
        "|---" * 8 + "|",
    ]
    for cell in CELLS:
        for arithmetic in ARITHMETICS:
            for batch, steps, hidden in SHAPES:
                for backward in (False, True):
                    found = plan(device, cell, arithmetic, batch, steps, hidden, backward)
                    lines.append(
                        f"| {cell} | {arithmetic} | {batch}, {steps}, {hidden} | {'backward' if backward else 'forward'} "
                        f"| {found['team']} | {blocks(found)} | {found['step_us']:.2f} "
                        f"| {found['bound']} |"
                    )
    return lines


def markdown() -> str:
    text = (
        "# Predicted plans\n\nFrom the cost model of csrc/plan.cpp, with FASTRNN_PLANS=all. Not measured.\n\n"
        + targets.markdown()
    )
    for device in DEVICES:
        text += f"\n## {device}\n\n" + "\n".join(rows(device)) + "\n"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    text = markdown()
    write(text, arguments.out)


if __name__ == "__main__":
    main()
