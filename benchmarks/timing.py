"""Measuring contenders against each other in one process.

Contenders take turns, so that what the machine does meanwhile (clock, temperature, neighbours) meets them all. A turn is as many
calls as fill `TURN_SECONDS`; its sample is their mean time. What is reported is the median of the samples with its quartiles.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import TypedDict

import torch

TURN_SECONDS = 0.03
ROUNDS = 9


class Times(TypedDict):
    """Seconds per call."""

    median: float
    quartiles: list[float]  # the first and the third
    samples: int
    calls: int  # in each sample


def summary(samples: list[float], calls: int) -> Times:
    first, median, third = statistics.quantiles(samples, n=4, method="inclusive")
    return {"median": median, "quartiles": [first, third], "samples": len(samples), "calls": calls}


def _host_turn(call: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return time.perf_counter() - start


def _cuda_turn(call: Callable[[], object], calls: int) -> float:
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        call()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop)) / 1000


def measure_prepared(
    contenders: Mapping[str, tuple[Callable[[], object], Callable[[], object]]], device: str, *, rounds: int = ROUNDS
) -> dict[str, Times]:
    """Time calls that use up what they work on: before each, and outside of its time, what prepares it is called.

    Args:
        contenders: by name, (prepare, call).
        rounds: as for :func:`measure`; each has five calls of each contender, one after the other.
    """
    turn = _cuda_turn if device == "cuda" else _host_turn
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for round_idx in range(5 * rounds + 1):
        for name, (prepare, call) in contenders.items():
            prepare()
            taken = turn(call, 1)
            if round_idx > 0:  # the first is to warm up
                samples[name].append(taken)
    return {name: summary(taken, 1) for name, taken in samples.items()}


def measure(
    contenders: Mapping[str, Callable[[], object]],
    device: str,
    *,
    rounds: int = ROUNDS,
    pause: float = 0.0,
) -> dict[str, Times]:
    """Time each contender's call.

    Args:
        contenders: by name, without arguments, ready to be called again and again.
        device: "cuda": between events on the device; else by the host's clock.
        rounds: turns of each contender.
        pause: seconds of rest before each turn, for runtimes whose idle threads spin for a while.
    """
    turn = _cuda_turn if device == "cuda" else _host_turn
    calls = {}
    for name, call in contenders.items():
        time.sleep(pause)
        turn(call, 2)  # warm: allocators, code, the other runtime's threads
        calls[name] = max(1, round(TURN_SECONDS / turn(call, 1)))
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            time.sleep(pause)
            turn(call, 1)  # brings its data back into the caches, as in a loop that runs it alone
            samples[name].append(turn(call, calls[name]) / calls[name])
    return {name: summary(taken, calls[name]) for name, taken in samples.items()}
