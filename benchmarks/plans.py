"""What the plan predicts for GPUs that are not here: ``python -m benchmarks.plans --out benchmarks/results/plans.md``.

A table per device of the shapes at which fastrnn means to be faster than cuDNN: the plan of forward and backward, its predicted
time a step, and what bounds it. Predictions stand on published latencies (csrc/plan.cpp); none was measured.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import targets
from benchmarks.devices import CELLS, DEVICES, SCALARS, blocks, plan
from benchmarks.tables import table, write
from fastrnn import plans, wavefronts

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


STACKS = [  # B, T, H, layers
    (1, 512, 512, 2),
    (16, 512, 512, 2),
    (32, 512, 512, 2),
    (32, 512, 1024, 2),
    (20, 35, 650, 2),
    (16, 512, 512, 4),
    (10, 512, 256, 6),
    (64, 128, 128, 3),
]


def stacks(device: str) -> list[str]:
    """What fastrnn.wavefronts chooses for stacks of layers: a training step without the products of whole sequences."""
    lines = []
    for cell in CELLS:
        for arithmetic in ("bfloat16", "tf32"):
            scalar, tf32 = SCALARS[arithmetic]
            for batch, steps, hidden, layers in STACKS:
                for allowed in ("", "all"):
                    request = plans.Request(CELLS[cell], scalar, steps, batch, hidden, hidden, 1, False, tf32, allowed)
                    choice = wavefronts.choose(request, layers, True, DEVICES[device])
                    lines.append(
                        f"{cell} | {arithmetic} | {batch}, {steps}, {hidden} | {layers} | {allowed or 'safe'} "
                        f"| {choice.us_by_layers / 1000:.2f} | {choice.us / 1000:.2f} | {choice.cut.chunk if choice.cut else ''} "
                        f"| {choice.us_by_layers / choice.us:.2f}"
                    )
    return lines


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
        text += (
            f"\n### Stacks of layers on {device}\n\nMilliseconds of a training step without the products of whole sequences, layer by "
            "layer and as fastrnn.wavefronts\nchooses: the same where no chunk stands. `safe`: without FASTRNN_PLANS=all.\n\n"
        )
        text += table(
            "cell | arithmetic | B, T, H | layers | plans | layer by layer | chosen | chunk | ratio", stacks(device)
        )
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    text = markdown()
    write(text, arguments.out)


if __name__ == "__main__":
    main()
