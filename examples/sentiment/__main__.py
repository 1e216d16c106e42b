"""Sentiment classification of 19,000 human-labelled sentences, with torch.nn and with fastrnn.

Three runs, one epoch each in turn: torch.nn.LSTM, fastrnn.LSTM from the same start (the same curves but for rounding), and
fastrnn.LSTM with recurrent dropout, which torch.nn does not have. Ends with a table, a picture and some predictions.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from . import fetch, report
from .data import Batches, Sentence, Splits, Vocabulary, prepare, split
from .model import Classifier, ModelConfig
from .train import Run, TrainingConfig, train_together

PICTURE = Path(__file__).parent / "out" / "learning_curves.png"
RUNS = {
    "torch.nn": ModelConfig("torch.nn"),
    "fastrnn": ModelConfig("fastrnn"),
    "fastrnn, recurrent dropout": ModelConfig("fastrnn", recurrent_dropout=0.3),
}


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    console = Console()
    start = time.perf_counter()
    try:
        rows = fetch.load_rows(options.cache)
    except fetch.DataUnavailable as error:
        print(f"sentiment demo: {error}", file=sys.stderr)
        return 1

    config = TrainingConfig(epochs=options.epochs, seed=options.seed, device=options.device)
    splits = split(prepare(rows), options.seed)
    if options.quick:
        splits = Splits(splits.train[::12], splits.validation[::6], splits.test[::6])
        config = replace(config, epochs=min(config.epochs, 2), batch_size=64)
    vocabulary = Vocabulary(splits.train)
    describe_data(console, len(rows), splits, vocabulary)

    train, validation, test = (
        Batches(sentences, vocabulary, config.batch_size)
        for sentences in (splits.train, splits.validation, splits.test)
    )
    runs = make_runs(len(vocabulary), config)
    train_with_progress(console, runs, train, validation)

    scores = [run.evaluate(test) for run in runs]
    console.print(report.results_table(runs, scores))
    console.print(report.describe_gradients(runs))
    console.print(report.describe_uncertainty(scores[0], len(splits.test)))
    console.print(report.describe_difference(runs[0], runs[1]))
    report.save_curves(runs, majority(splits.validation), options.out)
    best = min(runs, key=lambda run: run.best.validation.loss)
    console.print(report.predictions_table(best, vocabulary, splits.test))
    console.print(f"Learning curves: {options.out}   ({time.perf_counter() - start:.0f} s in all)", soft_wrap=True)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m examples.sentiment", description=__doc__)
    default = TrainingConfig()
    parser.add_argument("--epochs", type=_positive, default=default.epochs, help=f"at most ({default.epochs})")
    parser.add_argument("--quick", action="store_true", help="a few seconds: a part of the sentences, two epochs")
    parser.add_argument("--seed", type=int, default=default.seed, help=f"of everything random ({default.seed})")
    parser.add_argument("--device", type=_device, default=default.device, help="cpu (default), cuda, cuda:1, ...")
    parser.add_argument("--cache", type=Path, default=fetch.DEFAULT_CACHE, help="folder of the downloaded package")
    parser.add_argument("--out", type=Path, default=PICTURE, help="where the picture goes")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {number}")
    return number


def _device(text: str) -> str:
    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch without CUDA
        raise argparse.ArgumentTypeError(f"{text!r} cannot be used: {str(error).splitlines()[0]}") from error
    return text


def describe_data(console: Console, num_rows: int, splits: Splits, vocabulary: Vocabulary) -> None:
    parts = (splits.train, splits.validation, splits.test)
    sources = Counter(sentence.source for part in parts for sentence in part)
    console.print(
        f"{num_rows} sentences read; {sum(sources.values())} used, after leaving out duplicates and those rated neutral: "
        f"{', '.join(f'{count} {source}' for source, count in sources.items())}.\n"
        f"{len(splits.train)} to train on, {len(splits.validation)} to validate, {len(splits.test)} to test; "
        f"{len(vocabulary)} words. Always the more frequent label: {majority(splits.test):.1%} of the test sentences."
    )


def majority(sentences: Sequence[Sentence]) -> float:
    """Accuracy of the best constant answer."""
    positive = sum(sentence.label for sentence in sentences) / len(sentences)
    return max(positive, 1 - positive)


def make_runs(vocabulary_size: int, config: TrainingConfig) -> list[Run]:
    """The three runs, all from the same start weights."""
    torch.manual_seed(config.seed)
    start = Classifier(vocabulary_size, RUNS["torch.nn"]).state_dict()
    runs = []
    for name, model_config in RUNS.items():
        model = Classifier(vocabulary_size, model_config)
        model.load_state_dict(start)
        runs.append(Run(name, model, config))
    return runs


def train_with_progress(console: Console, runs: Sequence[Run], train: Batches, validation: Batches) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=14),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        total = runs[0].config.epochs * len(train)
        bars = {run.name: progress.add_task(run.name, total=total, state="") for run in runs}

        def tell(run: Run, epoch_ended: bool) -> None:
            if not epoch_ended:
                progress.advance(bars[run.name])
                return
            epoch = len(run.history)
            state = f"epoch {epoch}: accuracy {run.history[-1].validation.accuracy:.1%}"
            progress.update(bars[run.name], state=state)
            if run.finished:  # before its last epoch, if it stopped early
                progress.update(bars[run.name], total=epoch * len(train))

        train_together(runs, train, validation, tell)


if __name__ == "__main__":
    sys.exit(main())
