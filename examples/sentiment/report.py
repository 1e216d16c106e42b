"""What the demo shows at its end: the table, the picture of the learning curves, some sentences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter
from rich import box
from rich.table import Table

from .data import Sentence, Vocabulary, collate
from .text import clean, tokenise
from .train import Run, Score

# A wide, light line below a thin one: equal curves stay visible as two.
_STYLES: list[dict[str, Any]] = [
    {"color": "#9ecae1", "linewidth": 6.0},
    {"color": "#08519c", "linewidth": 1.5, "marker": "o", "markersize": 4},
    {"color": "#d95f02", "linewidth": 1.5, "marker": "s", "markersize": 4},
]

OUR_SENTENCES = [
    "An absolute delight from the first minute to the last.",
    "I expected to love this camera, but the battery dies after ten minutes.",
    "It's not bad at all :)",
    "Not good.",
    "@friend sooo happy for you!!! <3",
    "The committee failed to protect those it was created for.",
]


def results_table(runs: Sequence[Run], tests: Sequence[Score]) -> Table:
    """One row per run: time, accuracy at the best epoch, and whether its gradients were healthy."""
    headings = [
        "seconds\n/ epoch",
        "best\nepoch",
        "valid.\naccuracy",
        "test\naccuracy",
        "gradient\nmedian, max",
        "steps\nclipped",
    ]
    table = Table(title="Results", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("\nrun", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for run, test in zip(runs, tests, strict=True):
        gradients = gradient_health(run)
        table.add_row(
            run.name.replace(", ", ",\n"),
            f"{run.seconds_per_epoch:.2f}",
            f"{run.best_epoch + 1} of {len(run.history)}",
            f"{run.best.validation.accuracy:.1%}",
            f"{test.accuracy:.1%}",
            f"{gradients.median:.2f}, {gradients.largest:.2f}",
            f"{gradients.clipped:.1%}",
        )
    return table


class GradientHealth(NamedTuple):
    """Norms of the gradient of all parameters, before clipping, over all steps of a run."""

    median: float  # of the finite ones, as the largest; NaN where there is none
    largest: float
    clipped: float  # share of the steps
    num_not_finite: int


def gradient_health(run: Run) -> GradientHealth:
    norms = run.gradient_norms
    finite = [norm for norm in norms if math.isfinite(norm)] or [math.nan]
    clipped = sum(norm > run.config.max_norm for norm in finite) / len(norms)
    num_not_finite = sum(not math.isfinite(norm) for norm in norms)
    return GradientHealth(statistics.median(finite), max(finite), clipped, num_not_finite)


def describe_gradients(runs: Sequence[Run]) -> str:
    """What the table's columns on gradients mean, and whether any gradient was not finite."""
    broken = [
        f"{name} {count} times" for name, count in ((r.name, gradient_health(r).num_not_finite) for r in runs) if count
    ]
    verdict = f"NOT FINITE in {', '.join(broken)}" if broken else "finite in every step"
    return f"Gradient: the norm over all parameters, clipped at {runs[0].config.max_norm:g}; {verdict}."


def describe_uncertainty(test: Score, num_sentences: int) -> str:
    """How much of a test accuracy is chance."""
    error = math.sqrt(test.accuracy * (1 - test.accuracy) / num_sentences)
    return f"Test accuracy: on {num_sentences} sentences its standard error is {error:.1%}."


def describe_difference(first: Run, second: Run) -> str:
    """How far two runs of the same configuration drift apart by rounding."""
    gaps = [abs(a.train.loss - b.train.loss) for a, b in zip(first.history, second.history, strict=False)]
    return (
        f"{first.name} and {second.name} differ by rounding alone (same start, batches and dropout masks), which training "
        f"amplifies: their training losses differ by {gaps[0]:.0e} in the first epoch, by {max(gaps):.0e} at most."
    )


def save_curves(runs: Sequence[Run], majority: float, path: Path) -> None:
    """Loss (training dashed, validation solid) and validation accuracy of all runs, side by side, as a PNG."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    for run, style in zip(runs, _STYLES, strict=False):
        epochs = range(1, len(run.history) + 1)
        dashed = {**style, "marker": None, "linestyle": _dashes(style["linewidth"])}
        loss_axes.plot(epochs, [epoch.train.loss for epoch in run.history], **dashed)
        loss_axes.plot(epochs, [epoch.validation.loss for epoch in run.history], **style)
        accuracy_axes.plot(epochs, [epoch.validation.accuracy for epoch in run.history], label=run.name, **style)
    loss_axes.set(title="Loss", xlabel="epoch", ylabel="binary cross-entropy per sentence")
    kinds = [
        Line2D([], [], color="#555555", linestyle=_dashes(1.5), label="training (with dropout)"),
        Line2D([], [], color="#555555", label="validation"),
    ]
    loss_axes.legend(handles=kinds, frameon=False)
    accuracy_axes.axhline(majority, color="#777777", linestyle=":", label="always the more frequent label")
    accuracy_axes.set(title="Validation accuracy", xlabel="epoch", ylabel="sentences classified correctly")
    accuracy_axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    accuracy_axes.legend(frameon=False, loc="center right")
    for axes in (loss_axes, accuracy_axes):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _dashes(linewidth: float) -> tuple[float, tuple[float, float]]:
    """Dashes of one length, which matplotlib counts in line widths."""
    return 0, (6 / linewidth, 3 / linewidth)


def predictions_table(run: Run, vocabulary: Vocabulary, held_out: Sequence[Sentence]) -> Table:
    """Predictions of ``run`` for one test sentence of each source and for some of our own."""
    rows = [(sentence.text, f"{sentence.source} {sentence.valence:+.1f}") for sentence in _examples(held_out)]
    rows += [(text, "ours") for text in OUR_SENTENCES]
    table = Table(title=f"Predictions of {run.name}", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("\nsentence", overflow="fold")
    table.add_column("source, and\npeople's rating", no_wrap=True)
    table.add_column("probability\nof positive", justify="right")
    for (text, origin), probability in zip(rows, predict(run, vocabulary, [text for text, _ in rows]), strict=True):
        table.add_row(text, origin, f"{probability:.0%}")
    return table


def _examples(sentences: Sequence[Sentence]) -> list[Sentence]:
    """The first sentence of each source, positive and negative by turns."""
    found = []
    for index, source in enumerate(dict.fromkeys(sentence.source for sentence in sentences)):
        found += [s for s in sentences if s.source == source and s.label == index % 2][:1]
    return found


@torch.no_grad()
def predict(run: Run, vocabulary: Vocabulary, texts: Sequence[str]) -> list[float]:
    """Probability of "positive" for each text, in one padded batch.

    Raises:
        ValueError: a text without any token.
    """
    encoded = [vocabulary.encode(tokenise(clean(text))) for text in texts]
    for text, tokens in zip(texts, encoded, strict=True):
        if len(tokens) == 0:
            raise ValueError(f"no word to judge in {text!r}")
    batch = collate(encoded, torch.zeros(len(texts)))
    run.model.eval()
    probabilities: list[float] = run.model(batch.tokens.to(run.config.device), batch.lengths).sigmoid().tolist()
    return probabilities
