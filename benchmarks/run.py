"""Measures fastrnn against its alternatives and writes JSON.

    python -m benchmarks.run --device cpu --suite headline --threads 2 --out results.json

The file is rewritten after every measurement, so that one cut short keeps what it has. README.md says what each suite measures.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import environment, round_trip
from benchmarks.further import BASELINES
from benchmarks.shapes import CELLS, Shape
from benchmarks.suites import SUITES, Record, Settings
from benchmarks.timing import ROUNDS


def _list(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description="Measure; JSON goes to --out.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--suite", type=_list, default=["headline"], help=f"of {', '.join(SUITES)}, or several: a,b")
    parser.add_argument("--threads", type=int, help="for the CPU; torch's default if left out")
    parser.add_argument(
        "--shapes", type=_list, default=[], help="BxTxIxH[xLAYERS[xDIRECTIONS]],... for the suite's own"
    )
    parser.add_argument("--cells", type=_list, default=list(CELLS), help="of lstm,gru,rnn")
    parser.add_argument("--modes", type=_list, default=["train", "inference"], help="of train,inference")
    parser.add_argument(
        "--baselines", type=_list, default=[], help=f"more for headline, regions, scaling: {', '.join(BASELINES)}"
    )
    parser.add_argument("--dtype", choices=("float32", "float64", "bfloat16", "float16"), default="float32")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="turns of each contender")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU")
    known_values = {"suite": SUITES, "cells": CELLS, "modes": ("train", "inference"), "baselines": BASELINES}
    for name, known in known_values.items():
        if not getattr(arguments, name) and name != "baselines":
            parser.error(f"--{name}: expected at least one of {', '.join(known)}")
        for value in getattr(arguments, name):
            if value not in known:
                parser.error(f"--{name} {value}: expected one of {', '.join(known)}")
    try:
        arguments.shapes = tuple(Shape.parse(text) for text in arguments.shapes)
    except ValueError as error:
        parser.error(f"--shapes: {error}")
    if arguments.rounds < 2:
        parser.error("--rounds: quartiles need at least 2")
    if arguments.threads is not None and arguments.threads < 1:
        parser.error(f"--threads {arguments.threads}: expected at least 1")
    if arguments.device == "cpu" and "regions" in arguments.suite and not arguments.shapes:
        parser.error(
            "--suite regions: its shapes are those of cuDNN's algorithms and need a GPU; --shapes names others"
        )
    if "peers" in arguments.suite and (arguments.device != "cpu" or arguments.dtype != "float32"):
        parser.error("--suite peers: float32 on the CPU only")
    try:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {arguments.out}: {error.strerror}: {error.filename}")
    if arguments.out.is_dir():
        parser.error(f"--out {arguments.out}: a folder, expected a file")
    return arguments


def _write(found: dict[str, Any], out: Path) -> None:
    """All or nothing: what is on disk can be read at any time."""
    partial = out.with_name(f"{out.name}.partial")
    partial.write_text(json.dumps(found, indent=1) + "\n")
    os.replace(partial, out)


def _line(record: Record) -> str:
    times = record["times"]
    ours = times["fastrnn"]["median"]
    text = f"{record['suite']:<9}{record['cell']:<5}{record['shape']:<16}{record['mode']:<32}{1e3 * ours:9.3f} ms"
    for name, taken in times.items():
        if name != "fastrnn":
            text += f"   {taken['median'] / ours:5.2f}x {name}"
    if "algorithm" in record:
        text += f"   ({record['algorithm']})"
    return text + "".join(f"\n  without {name}: {why}" for name, why in record.get("left_out", {}).items())


def main() -> None:
    arguments = _arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    settings = Settings(
        device=arguments.device,
        shapes=arguments.shapes,
        cells=tuple(arguments.cells),
        dtype=getattr(torch, arguments.dtype),
        rounds=arguments.rounds,
        modes=tuple(arguments.modes),
        baselines=tuple(arguments.baselines),
    )
    results: list[Record] = []
    found = {"environment": environment(arguments.device), "results": results}
    empty = []
    for name in arguments.suite:
        before = len(results)
        for record in SUITES[name](settings):
            if arguments.device == "cpu" and torch.get_num_threads() > 1:
                record["round_trip_ns"] = round_trip()
            results.append(record)
            _write(found, arguments.out)
            print(_line(record), flush=True)
        if len(results) == before:
            empty.append(name)
    if empty:
        sys.exit(f"nothing was measured of {', '.join(empty)}: see benchmarks/README.md for what each suite needs")


if __name__ == "__main__":
    main()
