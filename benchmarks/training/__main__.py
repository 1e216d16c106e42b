"""Trains every task with torch.nn and with fastrnn and writes JSON.

    python -m benchmarks.training --tasks adding,digits --seeds 0,1,2 --out benchmarks/results/training.json
    python -m benchmarks.training.report benchmarks/results/training.json --out benchmarks/results/training.md

One thread, and processor time: then what else the machine does matters little, and seeds can run beside each other, each with a
file of its own. What is in --out already is kept and not trained again, so a long run can be made in pieces.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch

from benchmarks.environment import environment
from benchmarks.training import sentiment
from benchmarks.training.tasks import TASKS
from benchmarks.training.train import Result, train

_NAMES = (*TASKS, "sentiment")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.training", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tasks", default=",".join(_NAMES), help=f"of {', '.join(_NAMES)}; several: a,b")
    parser.add_argument("--seeds", default="0,1,2", help="several: 0,1")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write, or to go on with")
    arguments = parser.parse_args()
    arguments.tasks = arguments.tasks.split(",")
    for name in arguments.tasks:
        if name not in _NAMES:
            parser.error(f"--tasks {name}: expected one of {', '.join(_NAMES)}")
    try:
        arguments.seeds = [int(seed) for seed in arguments.seeds.split(",")]
    except ValueError:
        parser.error(f"--seeds {arguments.seeds}: expected whole numbers, as in 0,1,2")
    return arguments


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(1)
    results: list[Result] = []
    found = {"environment": environment("cpu"), "results": results}
    if arguments.out.exists():
        results += json.loads(arguments.out.read_text())["results"]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    done = {(r["task"], r["seed"]) for r in results}
    for name in arguments.tasks:
        for seed in arguments.seeds:
            if (name, seed) in done:
                continue
            new = sentiment.train(name, seed) if name == "sentiment" else train(name, TASKS[name], seed)
            results += new
            arguments.out.write_text(json.dumps(found, indent=1) + "\n")
            for r in new:
                best = (min if r["lower_is_better"] else max)(r["validation"])
                clipped = "" if r["clipped"] is None else f", {r['clipped']:.0%} clipped"
                print(
                    f"{name:<10}seed {seed}  {r['variant']:<34}{r['metric']} {r['test']:.4g} (validation {best:.4g}, "
                    f"trivial {r['trivial']:.4g}), {r['seconds_per_epoch']:.2f} s per epoch{clipped}",
                    flush=True,
                )
    seconds = math.fsum(len(r["validation"]) * r["seconds_per_epoch"] for r in results)
    print(f"{len(results)} runs in {arguments.out}, {seconds:.0f} s of training in all")


if __name__ == "__main__":
    main()
