"""What is trained: data, model size, budget and the options whose effect is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.training import data
from benchmarks.training.data import Data


@dataclass(frozen=True)
class Task:
    what: str
    load: Callable[[int], Data]
    metric: str  # "mean squared error", "accuracy" or "bits per character"
    cell: str
    hidden_size: int
    epochs: int
    batch_size: int
    learning_rate: float
    recurrent_dropout: float
    state_grad_clip: float
    max_norm: float = 1.0

    @property
    def lower_is_better(self) -> bool:
        return self.metric != "accuracy"


TASKS = {
    "adding": Task(
        "adding problem, 50 steps", data.adding, "mean squared error", "gru", 64,
        epochs=10, batch_size=64, learning_rate=3e-3, recurrent_dropout=0.1, state_grad_clip=0.003,
    ),
    "copy": Task(
        "copy task, 5 of 8 symbols over 20 steps", data.copy, "accuracy", "gru", 64,
        epochs=12, batch_size=64, learning_rate=5e-3, recurrent_dropout=0.1, state_grad_clip=0.003,
    ),
    "digits": Task(
        "handwritten digits pixel by pixel (scikit-learn), 64 steps", data.digits, "accuracy", "lstm", 64,
        epochs=40, batch_size=32, learning_rate=5e-3, recurrent_dropout=0.25, state_grad_clip=0.003,
    ),
    "elnino": Task(
        "sea surface temperature of the next month (statsmodels)", data.elnino, "mean squared error", "gru", 32,
        epochs=60, batch_size=32, learning_rate=3e-3, recurrent_dropout=0.25, state_grad_clip=0.003,
    ),
    "text": Task(
        "character language model of Python's manual (standard library)", data.text, "bits per character", "lstm", 128,
        epochs=6, batch_size=32, learning_rate=5e-3, recurrent_dropout=0.1, state_grad_clip=0.0001,
    ),
}  # fmt: skip
