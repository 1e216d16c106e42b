"""What to test on: layers of every kind with small tensors, and selections of parameters that cover all pairs."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

import fastrnn
from fastrnn.functions import GRUFunction, LSTMFunction, Options, RNNFunction
from fastrnn.reference import CELLS, NUM_GATES, compute_dtype

FUNCTIONS = {"rnn_tanh": RNNFunction, "rnn_relu": RNNFunction, "lstm": LSTMFunction, "gru": GRUFunction}
LENGTHS = {"lengths": (2, 4, 0), "packed": (4, 2, 0)}  # for 3 samples of 4 steps; packed ones fall


@dataclass(frozen=True)
class Case:
    """One layer: what it computes and on what kind of batch."""

    cell: str = "lstm"  # of reference.CELLS
    layout: str = "padded"  # "padded", "lengths" (padded, samples end early) or "packed"
    directions: int = 1
    bias: bool = True
    site: str | None = None  # recurrent dropout: None, "state" or "candidate"
    projected: bool = False
    steps: int = 4
    batch: int = 3
    input_size: int = 2
    hidden_size: int = 3

    def __str__(self) -> str:
        words = [self.cell, self.layout, "both" if self.directions == 2 else "forward"]
        words += [] if self.bias else ["nobias"]
        words += [] if self.site is None else [self.site]
        words += ["proj"] if self.projected else []
        words += [f"{f.name}{getattr(self, f.name)}" for f in fields(self)[6:] if getattr(self, f.name) != f.default]
        return "-".join(words)

    @property
    def exists(self) -> bool:
        """Whether fastrnn has such a layer."""
        if self.projected and self.cell != "lstm":
            return False
        return not (self.site == "candidate" and self.cell.startswith("rnn"))

    @property
    def state_size(self) -> int:
        return 2 if self.projected else self.hidden_size


CHOICES: Mapping[str, Sequence[Any]] = {
    "cell": CELLS,
    "layout": ("padded", "lengths", "packed"),
    "directions": (1, 2),
    "bias": (True, False),
    "site": (None, "state", "candidate"),
    "projected": (False, True),
}


def every_case(**fixed: Any) -> list[Case]:
    """All layers that exist, but for the parameters that are given."""
    values = [(fixed[name],) if name in fixed else CHOICES[name] for name in CHOICES]
    rest = {name: value for name, value in fixed.items() if name not in CHOICES}
    cases = (Case(**dict(zip(CHOICES, choice, strict=True)), **rest) for choice in itertools.product(*values))
    return [case for case in cases if case.exists]


def pairwise(cases: Iterable[Case]) -> list[Case]:
    """Few of the cases, such that every pair of parameter values that occurs together in any of them still does."""

    def pairs(case: Case) -> set[tuple[Any, Any]]:
        return set(itertools.combinations([(f.name, getattr(case, f.name)) for f in fields(case)], 2))

    remaining = list(cases)
    random.Random(0).shuffle(remaining)
    missing = set().union(*(pairs(case) for case in remaining))
    chosen = []
    while missing:
        best = max(remaining, key=lambda case: len(pairs(case) & missing))
        chosen.append(best)
        missing -= pairs(best)
    return chosen


@dataclass
class Layer:
    """A case with tensors: the arguments of its autograd function."""

    case: Case
    lengths: Tensor | None
    offsets: Tensor | None
    mask: Tensor | None
    x: Tensor
    h0: Tensor
    c0: Tensor | None
    weights: list[Tensor]

    def inputs(self) -> list[Tensor]:
        """The tensors that have gradients: x, h0, c0 (LSTM), weights."""
        return [self.x, self.h0, *([] if self.c0 is None else [self.c0]), *self.weights]

    def names(self) -> list[str]:
        per_direction = ["w_ih", "w_hh", *(["b_ih", "b_hh"] if self.case.bias else [])]
        per_direction += ["w_hr"] if self.case.projected else []
        weights = [f"{name}[{d}]" for d in range(self.case.directions) for name in per_direction]
        return ["x", "h0", *([] if self.c0 is None else ["c0"]), *weights]

    def require_grad(self) -> list[Tensor]:
        """Make all of them leaves that want gradients."""
        return [tensor.requires_grad_() for tensor in self.inputs()]

    def to(self, dtype: torch.dtype) -> Layer:
        """A copy in another dtype, the mask in the one that goes with it."""
        mask = None if self.mask is None else self.mask.to(compute_dtype(dtype))
        x, h0, *weights = (tensor.detach().to(dtype, copy=True) for tensor in self.inputs())
        c0 = None if self.c0 is None else weights.pop(0)
        return replace(self, mask=mask, x=x, h0=h0, c0=c0, weights=weights)

    def apply(
        self,
        backend: str,
        *inputs: Tensor,
        grad_scale: Tensor | None = None,
        slot: Tensor | None = None,
        **options: Any,
    ) -> tuple[Tensor, ...]:
        """(y, h_n) or (y, h_n, c_n) of the layer's function, on ``inputs`` in place of its own if they are given."""
        x, h0, *rest = inputs or self.inputs()
        c0 = None if self.c0 is None else rest.pop(0)
        if self.case.cell.startswith("rnn"):
            options["nonlinearity"] = self.case.cell.removeprefix("rnn_")
        options = Options(backend=backend, dropout_site=self.case.site or "state", **options)
        y, h_n, c_n, *_ = FUNCTIONS[self.case.cell].apply(
            options, slot, self.lengths, self.offsets, None, self.mask, grad_scale, x, h0, c0, *rest
        )
        return (y, h_n) if c_n is None else (y, h_n, c_n)

    def rows(self) -> Tensor:
        """Where the rows of a packed batch stand among the padded ones."""
        assert self.lengths is not None
        live = torch.arange(self.case.steps)[:, None] < self.lengths.cpu()
        return live.flatten().nonzero().squeeze(1).to(self.lengths.device)

    def padded(self, rows: Tensor) -> Tensor:
        """Rows of this layer's layout as (T, B, ·), zero in the padding."""
        if self.offsets is None:
            return rows
        padded = rows.new_zeros(self.case.steps * self.case.batch, rows.size(-1))
        return padded.index_copy(0, self.rows(), rows).unflatten(0, (self.case.steps, self.case.batch))


def make_layer(
    case: Case, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu", seed: int = 0
) -> Layer:
    """A layer of this case. The numbers depend on the seed alone, and are drawn in float64."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return (torch.rand(size, generator=generator, dtype=torch.float64) * 2 - 1).to(device, dtype)

    num_rows = NUM_GATES[case.cell] * case.hidden_size
    weights = []
    for _ in range(case.directions):
        weights += [draw(num_rows, case.input_size), draw(num_rows, case.state_size)]
        weights += [draw(num_rows), draw(num_rows)] if case.bias else []
        weights += [draw(case.state_size, case.hidden_size)] if case.projected else []
    lengths = offsets = mask = None
    if case.layout != "padded":
        known = case.batch == 3 and case.steps == 4
        values = LENGTHS[case.layout] if known else torch.randint(case.steps + 1, (case.batch,), generator=generator)
        lengths = torch.as_tensor(values, dtype=torch.int64, device=device)
    x = draw(case.steps, case.batch, case.input_size)
    if case.site is not None:
        width = case.hidden_size if case.site == "candidate" else case.state_size
        keep = torch.rand(case.directions, case.batch, width, generator=generator) < 0.6
        mask = (keep / 0.6).to(device, compute_dtype(dtype))
    layer = Layer(
        case, lengths, offsets, mask, x,
        h0=draw(case.directions, case.batch, case.state_size),
        c0=draw(case.directions, case.batch, case.hidden_size) if case.cell == "lstm" else None,
        weights=weights,
    )  # fmt: skip
    if case.layout == "packed":
        assert lengths is not None
        layer.lengths = lengths = lengths.sort(descending=True).values
        sizes = (torch.arange(case.steps, device=device)[:, None] < lengths).sum(1)
        layer.offsets = sizes.cumsum(0) - sizes
        layer.x = x.flatten(0, 1)[layer.rows()]
    return layer


# ---------------------------------------------------------------------------------------------------------- modules

KINDS = ("RNN", "LSTM", "GRU")
EVERY_DROPOUT_MODE = [
    (kind, mode) for kind in KINDS for mode in ("state", "candidate", "weight") if (kind, mode) != ("RNN", "candidate")
]


def make_module(kind: str, device: torch.device | str, **options: Any) -> torch.nn.Module:
    """A module of 3 inputs and 4 units; two layers, both directions and float64 unless told otherwise."""
    options = {"num_layers": 2, "bidirectional": True, "dtype": torch.float64, **options}
    return getattr(fastrnn, kind)(3, 4, device=device, **options)
