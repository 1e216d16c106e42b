"""A task that torch.nn.RNN cannot be trained on, because its gradient explodes, and that clipping through time makes easy.

    python -m examples.exploding_gradients

The task: at each of 2000 steps, say which bit came 8 steps before. The network: 64 tanh units whose recurrent weights are
orthogonal with the gain 5/3 that ``torch.nn.init.calculate_gain("tanh")`` recommends. So a step back in time multiplies the
gradient by up to 5/3, and over 2000 steps it leaves the range of float32: infinity, then NaN.

Four ways to train, from the same parameters, on the same batches, with Adam at the same learning rates:

- torch.nn.RNN as it is;
- torch.nn.RNN and ``torch.nn.utils.clip_grad_norm_``: what is infinite or NaN stays so, however short the rest is made;
- fastrnn.RNN and ``fastrnn.clip_grad_norm_``, whose norm does not overflow, to see whether that is enough;
- fastrnn.RNN with ``state_grad_clip``: what goes back from one step to the one before is kept short at each step, so it never
  grows, and each step is heard.

With ``--length 1000`` the gradient still fits into float32 and only its sum of squares does not. Then torch's clip divides by an
infinite norm and training all but stands still, fastrnn's clip of the parameters' norm works at the higher learning rates, and
clipping through time does at all of them.

Writes a picture, and the accuracies as a text file beside it. Those that README shows are examples/exploding_gradients.png and .txt.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

import fastrnn

PICTURE = Path("build") / "exploding_gradients.png"
HIDDEN_SIZE = 64
BATCH_SIZE = 16
DELAY = 8
MAX_NORM = 1.0
STATE_LIMIT = 1e-4  # a few times what the output of one step adds to the gradient (the left picture, at its right end)


class Method(NamedTuple):
    make_rnn: Callable[..., nn.Module]
    clip: Callable[..., Tensor] | None  # of the parameters' norm
    color: str


METHODS = {
    "torch.nn.RNN": Method(nn.RNN, None, "#8c8c8c"),
    "torch.nn.RNN, parameter norm clipped": Method(nn.RNN, nn.utils.clip_grad_norm_, "#d1495b"),
    "fastrnn.RNN, parameter norm clipped": Method(fastrnn.RNN, fastrnn.clip_grad_norm_, "#e0a030"),
    "fastrnn.RNN, clipped through time": Method(
        lambda *sizes: fastrnn.RNN(*sizes, state_grad_clip=STATE_LIMIT), None, "#3b6fb6"
    ),
}


class Task(NamedTuple):
    length: int
    train_steps: int


@dataclass
class Run:
    method: str
    learning_rate: float
    seed: int
    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)

    @property
    def failed_at(self) -> int | None:
        """The step whose loss was not finite any more."""
        return len(self.losses) - 1 if not math.isfinite(self.losses[-1]) else None

    @property
    def accuracy(self) -> float:
        """Over the last tenth of the steps; that of guessing where training has broken down."""
        if self.failed_at is not None:
            return 0.5
        return statistics.mean(self.accuracies[-max(1, len(self.accuracies) // 10) :])


def make_model(method: str, seed: int) -> tuple[nn.Module, nn.Linear]:
    torch.manual_seed(seed)
    rnn = METHODS[method].make_rnn(1, HIDDEN_SIZE)
    nn.init.orthogonal_(rnn.get_parameter("weight_hh_l0"), nn.init.calculate_gain("tanh"))
    return rnn, nn.Linear(HIDDEN_SIZE, 1)


def loss_and_accuracy(rnn: nn.Module, out: nn.Linear, task: Task, generator: torch.Generator) -> tuple[Tensor, float]:
    bits = torch.randint(2, (task.length, BATCH_SIZE, 1), generator=generator).float()
    logits, target = out(rnn(2 * bits - 1)[0])[DELAY:], bits[:-DELAY]
    accuracy = ((logits > 0) == (target > 0.5)).float().mean().item()
    return functional.binary_cross_entropy_with_logits(logits, target), accuracy


def train(task: Task, method: str, learning_rate: float, seed: int) -> Run:
    torch.set_num_threads(1)
    rnn, out = make_model(method, seed)
    parameters = [*rnn.parameters(), *out.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    clip = METHODS[method].clip
    generator = torch.Generator().manual_seed(seed)
    run = Run(method, learning_rate, seed)
    for _ in range(task.train_steps):
        loss, accuracy = loss_and_accuracy(rnn, out, task, generator)
        run.losses.append(loss.item())
        run.accuracies.append(accuracy)
        if run.failed_at is not None:
            break
        optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            clip(parameters, MAX_NORM)
        optimizer.step()
    return run


def gradient_over_time(task: Task, limit: float | None) -> Tensor:
    """The median over samples of the recurrent gradient's norm at each step, before training and before clipping."""
    rnn, out = make_model("fastrnn.RNN, clipped through time", seed=0)
    assert isinstance(rnn, fastrnn.RNN)
    rnn.state_grad_clip, rnn.record_state_grad_norms = limit, True
    loss_and_accuracy(rnn, out, task, torch.Generator().manual_seed(0))[0].backward()
    assert rnn.state_grad_norms is not None
    return rnn.state_grad_norms[0].median(-1).values


# ------------------------------------------------------------------------------------------------------------- report


def best_rate(runs: Iterable[Run]) -> float:
    """The learning rate of the highest accuracy, as the mean over seeds."""
    by_rate: dict[float, list[float]] = {}
    for run in runs:
        by_rate.setdefault(run.learning_rate, []).append(run.accuracy)
    return max(by_rate, key=lambda rate: statistics.mean(by_rate[rate]))


def verdict(runs: Sequence[Run]) -> str:
    failed = [run.failed_at for run in runs if run.failed_at is not None]
    text = f"{100 * statistics.mean(run.accuracy for run in runs):5.1f} %"
    text += f"  ({100 * min(run.accuracy for run in runs):.1f} to {100 * max(run.accuracy for run in runs):.1f})"
    return text + (f"  loss not finite after {failed} steps" if failed else "")


def table(runs: Sequence[Run]) -> str:
    lines = ["accuracy at the end, mean over seeds (lowest to highest); guessing has 50 %", ""]
    for method in METHODS:
        own = [run for run in runs if run.method == method]
        lines.append(method)
        rates = sorted({run.learning_rate for run in own}, reverse=True)
        for rate in rates:
            of_rate = [run for run in own if run.learning_rate == rate]
            lines.append(f"    learning rate {rate:<7g}{verdict(of_rate)}")
    return "\n".join(lines)


def draw(task: Task, runs: Sequence[Run], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    canvas, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
    free, clipped = gradient_over_time(task, None), gradient_over_time(task, STATE_LIMIT)
    steps = range(1, task.length + 1)
    left.semilogy(steps, free, color=METHODS["torch.nn.RNN"].color, label="not clipped")
    left.semilogy(
        steps,
        clipped,
        color=METHODS["fastrnn.RNN, clipped through time"].color,
        label=f"state_grad_clip={STATE_LIMIT:g}",
    )
    left.set_title("Gradient that a step gets from the one after it, before training")
    left.set_xlabel("step of the sequence")
    left.set_ylabel("norm (rnn.state_grad_norms, median over samples)")
    for height, (method, (_, _, color)) in enumerate(METHODS.items()):
        own = [run for run in runs if run.method == method]
        rate = best_rate(own)
        shown = [run for run in own if run.learning_rate == rate]
        failed = [run.failed_at for run in shown if run.failed_at is not None]
        name = f"{method}, learning rate {rate:g}"
        if failed:  # at any learning rate: this is the best
            name = f"{method}: no finite loss after step {max(failed)}"
            # at heights of their own, or they would hide each other
            right.plot(failed, [0.47 - 0.02 * height] * len(failed), "x", color=color, markeredgewidth=2, label=name)
        for index, run in enumerate(run for run in shown if run.failed_at is None):
            right.plot(run.accuracies, color=color, linewidth=1.5, label=None if index or failed else name)
    right.set_ylim(0.4, 1.02)
    right.set_title(f"Recall of the bit {DELAY} steps before, over {task.length} steps")
    right.set_xlabel("training step")
    right.set_ylabel("accuracy, one line per seed")
    for axes in (left, right):
        axes.grid(linewidth=0.3)
        axes.legend(fontsize=8, loc="center right")
    canvas.savefig(path, dpi=110)
    pyplot.close(canvas)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.exploding_gradients", description="See the module's text."
    )
    parser.add_argument("--length", type=int, default=2000, help="steps of a sequence")
    parser.add_argument("--train-steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--rates", type=lambda text: [float(part) for part in text.split(",")], default=[1e-2, 3e-3, 1e-3]
    )
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, each on one core")
    parser.add_argument("--out", type=Path, default=PICTURE, help="the picture")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> list[Run]:
    options = parse(arguments)
    if importlib.util.find_spec("matplotlib") is None:
        raise SystemExit("the picture needs matplotlib: pip install matplotlib")
    task = Task(options.length, options.train_steps)
    start = time.perf_counter()
    todo: list[tuple[Any, ...]] = [
        (task, method, rate, seed) for rate in options.rates for seed in range(options.seeds) for method in METHODS
    ]
    runs = []
    # not forked: the threads of torch's pools would be missing in the copies
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        arguments_of = zip(*todo, strict=True)
        for run in pool.map(train, *arguments_of) if options.jobs > 1 else map(train, *arguments_of):
            runs.append(run)
            print(f"{len(runs):3d} of {len(todo)}  {run.method}, {run.learning_rate:g}: {verdict([run])}", flush=True)
    accuracies = table(runs)
    print(f"\n{accuracies}\n")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".txt").write_text(
        f"{task.length} steps, {options.train_steps} training steps\n{accuracies}\n"
    )
    draw(task, runs, options.out)
    print(f"{time.perf_counter() - start:.0f} seconds; picture: {options.out}")
    return runs


if __name__ == "__main__":
    main()
