"""Training: the epochs of one run, its early stopping, and what is recorded for the report."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.optim.lr_scheduler import ReduceLROnPlateau

from .data import Batch, Batches
from .model import Classifier


@dataclass(frozen=True)
class TrainingConfig:
    epochs: int = 8
    batch_size: int = 128
    learning_rate: float = 3e-3
    max_norm: float = 1.0  # of the gradient of all parameters
    patience: int = 2  # epochs without a lower validation loss until a run stops
    seed: int = 0
    device: str = "cpu"
    clock: Callable[[], float] = time.perf_counter  # of an epoch's seconds


@dataclass(frozen=True)
class Score:
    loss: float  # mean per sentence
    accuracy: float


@dataclass(frozen=True)
class Epoch:
    train: Score
    validation: Score
    seconds: float  # of the training pass alone
    gradient_norms: list[float]  # of each step, before clipping


@dataclass
class Run:
    """One model on its way: call ``train_epoch`` until ``finished``, then ``restore_best``."""

    name: str
    model: Classifier
    config: TrainingConfig
    history: list[Epoch] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model.to(self.config.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=self.config.learning_rate, fused=True)
        self.scheduler = ReduceLROnPlateau(self.optimizer, factor=0.5, patience=0)
        self._best_state: dict[str, Tensor] = {}

    @property
    def best_epoch(self) -> int:
        """Index of the epoch with the lowest validation loss (a loss that is not a number is never the lowest)."""
        losses = [epoch.validation.loss for epoch in self.history]
        return min(range(len(losses)), key=lambda index: math.inf if math.isnan(losses[index]) else losses[index])

    @property
    def best(self) -> Epoch:
        return self.history[self.best_epoch]

    @property
    def finished(self) -> bool:
        done = len(self.history)
        return done >= self.config.epochs or (done > 0 and done - 1 - self.best_epoch >= self.config.patience)

    @property
    def seconds_per_epoch(self) -> float:
        return statistics.median(epoch.seconds for epoch in self.history)

    @property
    def gradient_norms(self) -> list[float]:
        """Of every step of every epoch."""
        return [norm for epoch in self.history for norm in epoch.gradient_norms]

    def train_epoch(self, train: Batches, validation: Batches, advance: Callable[[], None] = lambda: None) -> Epoch:
        """One pass over the training sentences, then the validation score; ``advance`` is called after each batch."""
        # Batches and dropout masks depend on the epoch alone, so that all runs of one seed see the same ones.
        seed = 1000 * self.config.seed + len(self.history)
        torch.manual_seed(seed)
        self.model.train()
        losses, hits, norms, count = [], [], [], 0
        start = self.config.clock()
        for batch in train.shuffled(seed):
            logits, labels = self._forward(batch)
            loss = binary_cross_entropy_with_logits(logits, labels)
            self.optimizer.zero_grad()
            loss.backward()
            norms.append(nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_norm))
            self.optimizer.step()
            losses.append(loss.detach() * len(labels))
            hits.append(_hits(logits, labels))
            count += len(labels)
            advance()
        trained = _score(losses, hits, count)  # reads the sums, and thereby waits for the device
        seconds = self.config.clock() - start
        epoch = Epoch(trained, self.evaluate(validation), seconds, torch.stack(norms).tolist())
        self.history.append(epoch)
        self.scheduler.step(epoch.validation.loss)
        if self.best is epoch:
            self._best_state = copy.deepcopy(self.model.state_dict())
        return epoch

    @torch.no_grad()
    def evaluate(self, batches: Batches) -> Score:
        """Mean loss and accuracy with all dropout off."""
        self.model.eval()
        losses, hits, count = [], [], 0
        for batch in batches.in_order():
            logits, labels = self._forward(batch)
            losses.append(binary_cross_entropy_with_logits(logits, labels, reduction="sum"))
            hits.append(_hits(logits, labels))
            count += len(labels)
        return _score(losses, hits, count)

    def restore_best(self) -> None:
        """Put back the weights of ``best_epoch``."""
        self.model.load_state_dict(self._best_state)

    def _forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        device = self.config.device
        return self.model(batch.tokens.to(device), batch.lengths), batch.labels.to(device)


def train_together(runs: Sequence[Run], train: Batches, validation: Batches, tell: Callable[[Run, bool], None]) -> None:
    """Train all runs, one epoch each in turn, so that whatever else the machine does slows all of them alike.

    ``tell(run, epoch_ended)`` is called after each batch and after each epoch.
    """
    waiting = [run for run in runs if not run.finished]
    while waiting:
        for run in waiting:
            run.train_epoch(train, validation, lambda run=run: tell(run, False))  # type: ignore[misc]
            tell(run, True)
        waiting = [run for run in waiting if not run.finished]
    for run in runs:
        run.restore_best()


def _hits(logits: Tensor, labels: Tensor) -> Tensor:
    return ((logits > 0) == (labels > 0.5)).sum()


def _score(losses: list[Tensor], hits: list[Tensor], count: int) -> Score:
    return Score(torch.stack(losses).double().sum().item() / count, torch.stack(hits).sum().item() / count)
