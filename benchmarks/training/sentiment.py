"""The task of ``make demo``, with the demo's own code: sentiment of 19,000 labelled sentences of different lengths."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict

import torch

from benchmarks.training.train import Result, clipped_share, variants
from examples.sentiment import fetch
from examples.sentiment.data import Batches, Vocabulary, prepare, split
from examples.sentiment.model import Classifier, ModelConfig
from examples.sentiment.train import Run, TrainingConfig, train_together

RECURRENT_DROPOUT = 0.3
STATE_GRAD_CLIP = 0.003


def train(name: str, seed: int) -> list[Result]:
    config = TrainingConfig(seed=seed, clock=time.process_time)
    splits = split(prepare(fetch.load_rows(fetch.DEFAULT_CACHE)), seed)
    vocabulary = Vocabulary(splits.train)
    parts = (splits.train, splits.validation, splits.test)
    train, validation, test = (Batches(sentences, vocabulary, config.batch_size) for sentences in parts)
    torch.manual_seed(seed)
    start = Classifier(len(vocabulary), ModelConfig("torch.nn")).state_dict()
    runs = []
    for variant, options in variants(RECURRENT_DROPOUT, STATE_GRAD_CLIP).items():
        model = Classifier(len(vocabulary), ModelConfig("torch.nn" if options is None else "fastrnn"))
        for option, value in (options or {}).items():
            setattr(model.lstm, option, value)
        model.load_state_dict(start)
        runs.append(Run(variant, model, config))
    clipped: dict[str, list[float]] = defaultdict(list)

    def tell(run: Run, epoch_ended: bool) -> None:
        if epoch_ended:
            clipped[run.name] += clipped_share(run.model.lstm)

    train_together(runs, train, validation, tell)
    positive = sum(sentence.label for sentence in splits.test) / len(splits.test)
    trivial = max(positive, 1 - positive)
    return [_result(name, seed, run, run.evaluate(test).accuracy, trivial, clipped[run.name]) for run in runs]


def _result(name: str, seed: int, run: Run, test: float, trivial: float, clipped: list[float]) -> Result:
    return {
        "task": name,
        "what": "sentiment of labelled sentences (the demo)",
        "seed": seed,
        "variant": run.name,
        "metric": "accuracy",
        "lower_is_better": False,
        "validation": [epoch.validation.accuracy for epoch in run.history],
        "test": test,
        "trivial": trivial,
        "seconds_per_epoch": run.seconds_per_epoch,
        "clipped": statistics.fmean(clipped) if clipped else None,
    }
