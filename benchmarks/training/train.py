"""One task, one seed: all variants from the same start, on the same batches, one epoch each in turn."""

from __future__ import annotations

import copy
import math
import statistics
import time
from dataclasses import dataclass, field
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

import fastrnn
from benchmarks.training.data import Data, Split
from benchmarks.training.tasks import Task


class Result(TypedDict):
    """What one variant reached from one seed."""

    task: str
    what: str
    seed: int
    variant: str
    metric: str
    lower_is_better: bool
    validation: list[float]  # the metric after each epoch
    test: float  # after the epoch that was best on validation
    trivial: float  # the best answer that ignores the input
    seconds_per_epoch: float  # processor time of the training pass alone, median
    clipped: (
        float | None
    )  # share of gradients that state_grad_clip changed: all steps and samples of each epoch's last batch


def variants(recurrent_dropout: float, state_grad_clip: float) -> dict[str, dict[str, Any] | None]:
    """Options of fastrnn by name; None is torch.nn."""
    return {
        "torch.nn": None,
        "fastrnn": {},
        f"fastrnn, recurrent_dropout={recurrent_dropout:g}": {"recurrent_dropout": recurrent_dropout},
        f"fastrnn, state_grad_clip={state_grad_clip:g}": {
            "state_grad_clip": state_grad_clip,
            "record_state_grad_norms": True,
        },
    }


class Model(nn.Module):
    """Symbols or numbers in, one answer per step or per sequence out."""

    def __init__(self, task: Task, data: Data, options: dict[str, Any] | None) -> None:
        super().__init__()
        x, target = data.train
        self.per_step = target.dim() == 2
        self.embedding = nn.Embedding(data.num_inputs, 32) if not x.is_floating_point() else nn.Identity()
        library: Any = nn if options is None else fastrnn
        layer = {"lstm": library.LSTM, "gru": library.GRU}[task.cell]
        width = data.num_inputs if x.is_floating_point() else 32
        self.rnn = layer(width, task.hidden_size, batch_first=True, **(options or {}))
        self.head = nn.Linear(task.hidden_size, data.num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.rnn(self.embedding(x))[0]
        answer: Tensor = self.head(y if self.per_step else y[:, -1])
        return answer


def loss_of(task: Task, answer: Tensor, target: Tensor) -> Tensor:
    if task.metric == "mean squared error":
        return functional.mse_loss(answer.squeeze(-1), target)
    return functional.cross_entropy(answer.flatten(0, -2), target.flatten())


@torch.no_grad()
def score(task: Task, model: nn.Module, split: Split) -> float:
    """The task's metric, all dropout off."""
    model.eval()
    total, count = 0.0, 0
    for x, target in zip(split.x.split(500), split.target.split(500), strict=True):
        answer, counts = model(x), target != -100
        if task.metric == "mean squared error":
            total += (answer.squeeze(-1) - target).square().sum().item()
        elif task.metric == "accuracy":
            total += ((answer.argmax(-1) == target) & counts).sum().item()
        else:
            nats = functional.cross_entropy(answer.flatten(0, -2), target.flatten(), reduction="sum")
            total += nats.item() / math.log(2)
        count += int(counts.sum())
    return total / count


@dataclass
class Run:
    model: Model
    optimizer: torch.optim.Optimizer
    validation: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    clipped: list[float] = field(default_factory=list)
    best_state: dict[str, Tensor] = field(default_factory=dict)


def train(name: str, task: Task, seed: int) -> list[Result]:
    data = task.load(seed)
    torch.manual_seed(seed)
    start = Model(task, data, None).state_dict()
    runs: dict[str, Run] = {}
    for variant, options in variants(task.recurrent_dropout, task.state_grad_clip).items():
        model = Model(task, data, options)
        model.load_state_dict(start)
        runs[variant] = Run(model, torch.optim.AdamW(model.parameters(), lr=task.learning_rate, fused=True))
    for epoch in range(task.epochs):
        for run in runs.values():
            run.seconds.append(train_epoch(task, run, data.train, 1000 * seed + epoch))
            run.clipped += clipped_share(run.model.rnn)
            run.validation.append(score(task, run.model, data.validation))
            best = min if task.lower_is_better else max
            if run.validation[-1] == best(run.validation):
                run.best_state = copy.deepcopy(run.model.state_dict())
    return [result(name, task, seed, variant, run, data) for variant, run in runs.items()]


def train_epoch(task: Task, run: Run, split: Split, seed: int) -> float:
    """One pass; batches and masks depend on the seed alone. Returns its seconds of processor time."""
    torch.manual_seed(seed)
    run.model.train()
    order = torch.randperm(len(split.x))
    start = time.process_time()
    for batch in order.split(task.batch_size):
        loss = loss_of(task, run.model(split.x[batch]), split.target[batch])
        run.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(run.model.parameters(), task.max_norm)
        run.optimizer.step()
    return time.process_time() - start


def clipped_share(rnn: nn.Module) -> list[float]:
    """Of the last backward; empty without state_grad_clip."""
    clipped = getattr(rnn, "state_grad_clipped", None)
    return [] if clipped is None else [clipped.double().mean().item()]


def result(name: str, task: Task, seed: int, variant: str, run: Run, data: Data) -> Result:
    run.model.load_state_dict(run.best_state)
    return {
        "task": name,
        "what": task.what,
        "seed": seed,
        "variant": variant,
        "metric": task.metric,
        "lower_is_better": task.lower_is_better,
        "validation": run.validation,
        "test": score(task, run.model, data.test),
        "trivial": data.trivial,
        "seconds_per_epoch": statistics.median(run.seconds),
        "clipped": statistics.fmean(run.clipped) if run.clipped else None,
    }
