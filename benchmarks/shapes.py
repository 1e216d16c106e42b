"""The shapes that are measured, and what they cost."""

from __future__ import annotations

from typing import NamedTuple

NUM_GATES = {"lstm": 4, "gru": 3, "rnn": 1}
CELLS = tuple(NUM_GATES)


class Shape(NamedTuple):
    """One problem: (B, T, I, H), layers and directions."""

    batch: int
    steps: int
    input_size: int
    hidden_size: int
    layers: int = 1
    directions: int = 1

    @classmethod
    def parse(cls, text: str) -> Shape:
        """``32x100x512x512``, then ``xLAYERSxDIRECTIONS`` where they are not 1."""
        try:
            shape = cls(*(int(number) for number in text.split("x")))
        except (TypeError, ValueError):
            raise ValueError(f"a shape is BxTxIxH[xLAYERS[xDIRECTIONS]], got {text!r}") from None
        if min(shape) < 1 or shape.directions > 2:
            raise ValueError(f"sizes are at least 1, directions 1 or 2, got {text!r}")
        return shape

    def __str__(self) -> str:
        sizes = self if (self.layers, self.directions) != (1, 1) else self[:4]
        return "x".join(str(size) for size in sizes)

    def forward_flops(self, cell: str) -> int:
        """Floating-point operations of the products alone, input projection included. A training step does three times as many."""
        total = 0
        for layer in range(self.layers):
            width = self.input_size if layer == 0 else self.directions * self.hidden_size
            per_row = 2 * NUM_GATES[cell] * self.hidden_size * (width + self.hidden_size)
            total += self.directions * self.batch * self.steps * per_row
        return total


# What the CPU's goals are stated for.
CPU_HEADLINE = (
    Shape(1, 100, 128, 128),
    Shape(32, 100, 128, 128),
    Shape(32, 100, 512, 512),
    Shape(64, 50, 256, 1024),
    Shape(128, 30, 64, 64),
    Shape(20, 35, 200, 200),
    Shape(10, 64, 128, 256),
    Shape(7, 33, 50, 90),
)

# The clips': through time, and of parameters, where what counts is the weights, 17 million.
CLIPPED_THROUGH_TIME = Shape(32, 100, 512, 512)
CLIPPED_PARAMETERS = Shape(4, 2, 1024, 1024, 2)

# Where cuDNN has a persistent kernel (H 128 to 1024, few samples) and where it has none.
CUDA_HEADLINE = (
    Shape(16, 512, 128, 128),
    Shape(16, 512, 512, 512),
    Shape(64, 256, 512, 512),
    Shape(16, 512, 1024, 1024),
    Shape(64, 256, 1024, 1024),
    Shape(33, 100, 200, 300),
)


def headline(device: str) -> tuple[Shape, ...]:
    return CUDA_HEADLINE if device == "cuda" else CPU_HEADLINE
