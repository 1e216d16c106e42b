"""What the plans of csrc/plan.cpp predict for whole layers beside cuDNN's published times, at the shapes the targets are stated for.

Nothing here was measured: the recurrence is the cost model's, the large products follow from a share of the peak rate, and cuDNN's
times are other people's, on their cards and mostly at other shapes (PUBLISHED). ``python -m benchmarks.plans`` tabulates it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from benchmarks.devices import CELLS, DEVICES, blocks, plan
from benchmarks.ratios import geometric_mean
from benchmarks.shapes import NUM_GATES
from benchmarks.tables import table
from fastrnn import _C

# FLOP a microsecond of dense products: the SXM cards' data sheets, and the share of it that large products reach (csrc/plan.cpp:
# kMatmulShare).
PEAK = {
    ("H100", "bfloat16"): 989e6, ("H100", "float16"): 989e6, ("H100", "tf32"): 495e6,
    ("A100", "bfloat16"): 312e6, ("A100", "float16"): 312e6, ("A100", "tf32"): 156e6,
}  # fmt: skip
PRODUCT_SHARE = 0.6


class Target(NamedTuple):
    batch: int
    steps: int
    hidden_size: int
    input_size: int = 0  # of the first layer; 0: hidden_size
    layers: int = 1
    directions: int = 1
    ragged: bool = False  # lengths uniform in 1..steps, packed

    def __str__(self) -> str:
        parts = [f"{self.batch}, {self.steps}, {self.hidden_size}"]
        if self.layers > 1:
            parts.append(f"{self.layers} layers")
        if self.directions > 1:
            parts.append("bidirectional")
        if self.ragged:
            parts.append("ragged")
        return ", ".join(parts)

    def mean_input_size(self) -> float:
        """Over the layers."""
        above = self.directions * self.hidden_size
        return ((self.input_size or self.hidden_size) + (self.layers - 1) * above) / self.layers

    def product_flops(self, cell: str) -> float:
        """Of forward and backward, a layer and step, the recurrent product left out: the input projection, then the gradients of
        the input and of both weights."""
        rows = self.directions * self.batch * ((self.steps + 1) / (2 * self.steps) if self.ragged else 1)
        return 2 * rows * NUM_GATES[cell.lower()] * self.hidden_size * (3 * self.mean_input_size() + self.hidden_size)


STANDARD, PERSIST, SMALL = (
    "STANDARD",
    "PERSIST_STATIC",
    "SMALL_H",
)  # cuDNN's algorithms; the last, too, is PERSIST_STATIC
TARGETS = (
    *((shape, ("bfloat16", "tf32")) for shape in (
        Target(1, 512, 512),
        Target(16, 512, 512),
        Target(32, 512, 1024),
        Target(64, 256, 1024),
        Target(128, 128, 512),
        Target(16, 512, 512, layers=2, directions=2),
        Target(10, 512, 256, input_size=128, layers=6),
        Target(32, 512, 512, ragged=True),
    )),
    *((shape, ("float16",)) for shape in (
        Target(16, 1024, 768),
        Target(32, 512, 1024),
        Target(16, 1024, 64),
        Target(16, 3854, 128, input_size=112),
        Target(16, 1024, 192),
    )),
)  # fmt: skip


class Goal(NamedTuple):
    """Of forward and backward together, over eager torch.nn with cuDNN."""

    geometric_mean: float
    worst: float


# Where cuDNN has STANDARD in both passes, by arithmetic; and elsewhere.
GOALS = {"bfloat16": Goal(3.0, 1.0), "tf32": Goal(2.0, 1.0)}
GOAL_OF_PERSISTENT = Goal(1.0, 0.95)
SHARE_WHEN_CLIPPED = 0.85  # the least that is to be left


def algorithm(target: Target, cell: str, arithmetic: str, backward: bool) -> str:
    """cuDNN's, as torch chooses it on an A100 or H100: aten/src/ATen/native/cudnn/RNN.cpp, get_algo."""
    hidden, batch = target.hidden_size, target.batch
    if target.ragged:
        return STANDARD
    small = (256 if backward else 384) if cell == "RNN" else 128 if backward else 192
    if hidden <= small:
        return SMALL
    aligned = hidden % 128 == 0 and (target.input_size or hidden) % 128 == 0 and batch % 8 == 0
    alone = target.layers == target.directions == 1
    cell_allows = cell == "LSTM" or (cell == "RNN" and (batch < 96 or hidden < 896))
    if arithmetic == "float16" and aligned and alone and cell_allows and hidden <= 1024 and batch <= 128:
        return PERSIST
    return STANDARD


class Published(NamedTuple):
    """Microseconds a layer, direction and step of torch.nn with cuDNN."""

    device: str  # that it stands for
    algorithm: str
    cell: str
    batch: int
    hidden_size: int
    forward: float
    backward: float | None  # None: not published
    source: str


KERNELBENCH = "KernelBench, results/timing, level 3: T 512, I 128, 6 layers, float32 (TF32 by default), torch 2.5"
FLASHRNN = "NX-AI/flashrnn d73fb52, head_dim--lstm.svg: T 1024, float16"
PR62143 = "xwang233/code-snippet, cudnn-rnn-bench-62143, of torch's PR 62143: a card that is not named, cuDNN of 2021, float16"
# Of RNN's STANDARD on these cards nothing is published. PR62143 has both cells on its card: 21.4 and 29.9 ms at B 62, H 168 is the
# smaller ratio of two.
RNN_TO_LSTM = 0.72
# The shortest of several of the same.
PUBLISHED = (
    Published("H100", STANDARD, "LSTM", 10, 256, 5.5, None, f"H100 SXM; {KERNELBENCH}"),
    Published("H100", STANDARD, "GRU", 10, 256, 7.1, None, f"H100 PCIe; {KERNELBENCH}"),
    Published("H100", STANDARD, "RNN", 10, 256, RNN_TO_LSTM * 5.5, None, f"{RNN_TO_LSTM} of LSTM's"),
    Published("A100", STANDARD, "LSTM", 10, 256, 9.2, None, f"A100; {KERNELBENCH}"),
    Published("A100", STANDARD, "GRU", 10, 256, 8.4, None, f"A100; {KERNELBENCH}"),
    Published("A100", STANDARD, "RNN", 10, 256, RNN_TO_LSTM * 9.2, None, f"{RNN_TO_LSTM} of LSTM's"),
    Published("H100", PERSIST, "LSTM", 16, 768, 1.96, 3.11, f"H100 SXM; {FLASHRNN}"),
    *(
        Published(device, SMALL, cell, batch, hidden_size, forward / steps, backward / steps, PR62143)
        for device in DEVICES
        for cell, steps, batch, hidden_size, forward, backward in (
            # steps of all layers, and microseconds of a call
            ("LSTM", 4 * 5654, 5, 64, 13000, 23500),
            ("LSTM", 3854, 16, 128, 10100, 14000),
            ("LSTM", 1252, 12, 192, 17000, 14600),  # backward: STANDARD
            ("RNN", 4 * 2165, 20, 64, 2977, 8300),
            ("RNN", 1406, 34, 120, 878, 2600),
            ("RNN", 4 * 5133, 20, 136, 13245, 23900),
            ("RNN", 4 * 4936, 7, 208, 16742, 25700),
        )
    ),
)
BOTH_DIRECTIONS = 1.9  # of one direction's time: KernelBench's bidirectional LSTM on H100s has 1.9 to 2.0


def published(device: str, algorithm: str, cell: str, hidden_size: int) -> Published | None:
    """Of the nearest H up to this one: not a harder problem."""
    found = [p for p in PUBLISHED if (p.device, p.algorithm, p.cell) == (device, algorithm, cell)]
    return max((p for p in found if p.hidden_size <= hidden_size), key=lambda p: p.hidden_size, default=None)


# The least microseconds a step of an LSTM that latencies of published microbenchmarks allow (an exchange, its bytes, the matrix
# instructions one after another, and 0.15 of the cell), by the best design that is known for the shape: forward and backward.
FLOORS = {
    ("H100", 16, 1, 512): (0.52, 0.60), ("H100", 16, 16, 512): (0.79, 1.05), ("H100", 16, 32, 1024): (1.17, 1.8),
    ("H100", 16, 64, 1024): (1.64, 2.7), ("H100", 16, 128, 512): (1.11, 1.45), ("H100", 16, 16, 768): (1.2, 1.8),
    ("H100", 19, 1, 512): (0.69, 0.74), ("H100", 19, 16, 512): (0.83, 1.2), ("H100", 19, 32, 1024): (1.64, 2.65),
    ("H100", 19, 64, 1024): (2.6, 4.4), ("H100", 19, 128, 512): (1.64, 2.6),
    ("A100", 16, 1, 512): (0.76, None), ("A100", 16, 16, 512): (0.96, None), ("A100", 16, 16, 768): (1.1, None),
    ("A100", 16, 32, 1024): (1.9, None), ("A100", 16, 64, 1024): (2.7, None), ("A100", 16, 128, 512): (1.5, None),
}  # by device, bits of a number, B and H  # fmt: skip
FLOOR_FACTOR = 1.5  # that forward is to stay within


class Row(NamedTuple):
    """Microseconds a layer and step, all directions together."""

    device: str
    cell: str
    arithmetic: str
    target: Target

    def plan(self, backward: bool, clips_norm: bool = False) -> _C.Plan:
        t = self.target
        return plan(
            self.device, self.cell, self.arithmetic, t.batch, t.steps, t.hidden_size, backward, t.directions, clips_norm
        )  # fmt: skip

    @property
    def plans(self) -> list[_C.Plan]:
        return [self.plan(backward) for backward in (False, True)]

    def step_us(self, plan: _C.Plan) -> float:
        """With a step's share of what comes before the first."""
        return plan["step_us"] + plan["start_us"] / self.target.steps

    @property
    def recurrence(self) -> list[float]:
        return [self.step_us(plan) for plan in self.plans]

    @property
    def products(self) -> float:
        rate = PRODUCT_SHARE * PEAK[self.device, self.arithmetic]
        return self.target.product_flops(self.cell) / rate

    @property
    def predicted(self) -> float:
        return sum(self.recurrence) + self.products

    @property
    def share_when_clipped(self) -> float:
        """Of the speed, where backward clips the norm of every sample's recurrent gradient at every step."""
        backward = self.recurrence[1]
        return self.predicted / (self.predicted - backward + self.step_us(self.plan(True, clips_norm=True)))

    @property
    def algorithms(self) -> list[str]:
        return [algorithm(self.target, self.cell, self.arithmetic, backward) for backward in (False, True)]

    @property
    def references(self) -> list[Published | None]:
        return [published(self.device, name, self.cell, self.target.hidden_size) for name in self.algorithms]

    @property
    def cudnn(self) -> float | None:
        """Published, or not less than that; None where nothing is."""
        total = 0.0
        for reference, backward in zip(self.references, (False, True), strict=True):
            if reference is None:
                return None
            total += reference.backward or reference.forward if backward else reference.forward
        if self.target.directions == 2:
            total *= BOTH_DIRECTIONS
        return total if self.is_published_shape else total + self.products

    @property
    def is_published_shape(self) -> bool:
        sizes = (self.target.batch, self.target.hidden_size)
        return all(p is not None and (p.batch, p.hidden_size) == sizes for p in self.references)

    @property
    def ratio(self) -> float | None:
        return None if self.cudnn is None else self.cudnn / self.predicted

    @property
    def floors(self) -> tuple[float | None, float | None]:
        t = self.target
        if self.cell != "LSTM" or t.directions > 1 or t.ragged:
            return None, None
        bits = 19 if self.arithmetic == "tf32" else 16
        return FLOORS.get((self.device, bits, t.batch, t.hidden_size), (None, None))

    @property
    def is_standard(self) -> bool:
        return set(self.algorithms) == {STANDARD}


def rows(device: str) -> Iterator[Row]:
    for target, arithmetics in TARGETS:
        for arithmetic in arithmetics:
            for cell in CELLS:
                yield Row(device, cell, arithmetic, target)


def _us(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _source(row: Row) -> str:
    """Numbers of PUBLISHED, from 1, forward's then backward's."""
    numbers = [str(PUBLISHED.index(p) + 1) for p in row.references if p]
    return "" if row.cudnn is None else ", ".join(dict.fromkeys(numbers))


def _line(row: Row) -> str:
    floor_forward, floor_backward = row.floors
    forward, backward = row.recurrence
    return " | ".join([
        row.cell, row.arithmetic, str(row.target),
        ", ".join(dict.fromkeys(f"{p['team']} {blocks(p)}".strip() for p in row.plans)),
        _us(forward), _us(backward), _us(row.products), _us(row.predicted),
        ", ".join(dict.fromkeys(row.algorithms)), _us(row.cudnn), _source(row), _us(row.ratio),
        _us(floor_forward), _us(floor_forward and forward / floor_forward),
        _us(floor_backward), _us(floor_backward and backward / floor_backward),
    ])  # fmt: skip


COLUMNS = (
    "cell | arithmetic | B, T, H | plan | forward | backward | products | predicted | cuDNN's algorithm | cuDNN, not less than | from "
    "| ratio | floor forward | forward / floor | floor backward | backward / floor"
)


def _verdict(name: str, found: list[Row], goal: Goal) -> str:
    ratios = [row.ratio for row in found if row.ratio is not None]
    mean, worst = geometric_mean(ratios), min(ratios)
    reached = mean >= goal.geometric_mean and worst >= goal.worst
    below = sum(ratio < 1 for ratio in ratios)
    return " | ".join([
        name, f"{len(ratios)} of {len(found)}", f"{mean:.2f}", f"{goal.geometric_mean:g}", f"{worst:.2f}",
        f"{goal.worst:g}", f"{below}", "yes" if reached else "no",
    ])  # fmt: skip


def verdicts(device: str) -> list[str]:
    found = list(rows(device))
    groups = [
        (f"STANDARD, {arithmetic}", [r for r in found if r.is_standard and r.arithmetic == arithmetic], goal)
        for arithmetic, goal in GOALS.items()
    ]
    groups.append(("persistent kernels", [r for r in found if not r.is_standard], GOAL_OF_PERSISTENT))
    return [_verdict(*group) for group in groups if any(row.ratio for row in group[1])]


def markdown() -> str:
    """The section of plans.md."""
    sources = [
        f"{number}. {p.algorithm}, {p.cell}, B {p.batch}, H {p.hidden_size}: {p.forward:.2f} forward, "
        f"{_us(p.backward) or 'not published'} backward; {p.source}"
        for number, p in enumerate(PUBLISHED, 1)
    ]
    text = f"""## Against the targets

Predicted, not measured: neither side's times are of runs of this project. Microseconds a layer and step, both directions together.
`forward` and `backward` are the cost model's, of the recurrence. `products`, the input projection and the gradients of the input and
of both weights, are their FLOP at {PRODUCT_SHARE:g} of the peak of the data sheet. What comes before the first step is spread over the steps;
other launches and allocations of a call are left out.
The first layer's input is as wide as H but where a source has another. Ragged: lengths uniform in 1..T, packed; the recurrence is
as long as the longest.

`cuDNN, not less than` is published by others, on a card named under "From": of the nearest H up to the row's. Where that is not the
row's shape, the same products are added, since cuDNN has to do them, too. cuDNN cannot be faster than that if more units make no step
faster; how much slower it is where H is larger, nobody has published, so a ratio below 1 is no prediction of a loss. STANDARD's backward is not published on these cards and counted as long as
its forward; on the card of PR 62143 it took 1.04 to 1.84 times as long. Bidirectional: {BOTH_DIRECTIONS:g} times one direction. Empty: nothing is published.
Targets are of forward and backward; `floor` is that of an LSTM, by latencies of published microbenchmarks and the best design known
for the shape, and forward is to stay within {FLOOR_FACTOR:g} of it.
"""
    for device in DEVICES:
        found = list(rows(device))
        near = [r for r in found if r.floors[0]]
        within = sum(r.recurrence[0] <= FLOOR_FACTOR * (r.floors[0] or 0) for r in near)
        text += f"\n### {device}\n\nPredicted ratios over cuDNN, where its times are known:\n\n"
        header = "where cuDNN has | rows with a ratio | geometric mean | its target | worst | its target | below 1 | predicted to reach them"
        text += table(header, verdicts(device))
        text += f"\nForward is predicted within {FLOOR_FACTOR:g} of the floor in {within} of {len(near)} rows.\n\n"
        text += table(COLUMNS, map(_line, found))
    return text + "\n### From\n\n" + "\n".join(sources) + "\n\n" + _options()


def _clipped(device: str) -> Iterator[str]:
    for arithmetic in ("bfloat16", "tf32", "float16"):
        for cell in CELLS:
            shares = {
                str(row.target): row.share_when_clipped
                for row in rows(device)
                if (row.arithmetic, row.cell) == (arithmetic, cell)
            }
            reached = sum(share >= SHARE_WHEN_CLIPPED for share in shares.values())
            worst = min(shares, key=lambda shape: shares[shape])
            yield " | ".join([
                device, arithmetic, cell, f"{geometric_mean(list(shares.values())):.2f}", f"{shares[worst]:.2f}", worst,
                f"{reached} of {len(shares)}",
            ])  # fmt: skip


def _options() -> str:
    found = [line for device in DEVICES for line in _clipped(device)]
    return f"""### Options

The share of the speed of forward and backward that is left where every sample's recurrent gradient is clipped by its norm at every step:
predicted, with the second exchange of a step and the sum of the norm (csrc/plan.cpp), at the same shapes. The target is
{SHARE_WHEN_CLIPPED:g}.

{table(f"device | arithmetic | cell | geometric mean | worst | B, T, H of the worst | {SHARE_WHEN_CLIPPED:g} or more", found)}
Recurrent dropout, norms that are recorded and a clip by value, whose target is 0.95, are not modelled: nothing is exchanged for them.
A mask is a load and a multiplication a sample and unit beside the cell, a clip by value two comparisons, and recorded norms are a sum
over the lanes of a warp and a store, which nobody waits for; the model has no terms as small as these.
"""
