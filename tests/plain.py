"""RNNs as plain loops: one sample, one direction and one step at a time, in the dtype of the input.

Written from the cells' definitions alone and differentiated by autograd, so that it shares nothing with fastrnn: the judge
of fastrnn.reference and of every backend.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Clip:
    """Clipping of the recurrent gradient, and what it saw: ``norms[direction, t, b]``, ``clipped`` alike."""

    mode: str = "norm"
    threshold: float = float("inf")
    scale: float = 1.0
    norms: dict[tuple[int, int, int], Tensor] = field(default_factory=dict)
    clipped: dict[tuple[int, int, int], bool] = field(default_factory=dict)

    def table(self, directions: int, steps: int, batch: int) -> tuple[Tensor, Tensor]:
        """(norms, clipped), each (directions, steps, batch), 0 and False where no step was."""
        norms = torch.zeros(directions, steps, batch, dtype=torch.float64)
        clipped = torch.zeros(directions, steps, batch, dtype=torch.bool)
        for place, norm in self.norms.items():
            norms[place], clipped[place] = norm, self.clipped[place]
        return norms, clipped


class _ClipState(torch.autograd.Function):
    """A step's state as the next step sees it: the same in forward; in backward what comes from there is clipped."""

    @staticmethod
    def forward(ctx: Any, clip: Clip, place: tuple[int, int, int], *state: Tensor) -> tuple[Tensor, ...]:
        ctx.clip, ctx.place = clip, place
        return tuple(part.clone() for part in state)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        clip, place = ctx.clip, ctx.place
        norm = torch.cat(grads).double().norm() / clip.scale
        clip.norms[place] = norm.detach()
        if clip.mode == "value":
            limit = clip.threshold * clip.scale
            clip.clipped[place] = bool((torch.cat(grads).abs() > limit).any())
            return (None, None, *(torch.clamp(g, -limit, limit) for g in grads))
        clip.clipped[place] = bool(norm > clip.threshold) and bool(norm.isfinite())
        if clip.clipped[place]:
            grads = tuple(g * (clip.threshold / norm).to(g.dtype) for g in grads)
        return (None, None, *grads)


def _cell(
    cell: str, weights: Sequence[Tensor], x: Tensor, h: Tensor, c: Tensor | None, mask: Tensor | None, site: str
) -> tuple[Tensor, Tensor | None]:
    """One step of one sample: vectors in, the next (h, c) out."""
    w_ih, w_hh, *rest = weights
    w_hr = rest.pop() if len(rest) in (1, 3) else None
    b_ih, b_hh = rest or (0.0, 0.0)
    masked = h if mask is None or site != "state" else h * mask.to(h.dtype)
    keep = 1.0 if mask is None or site != "candidate" else mask.to(h.dtype)
    from_x, from_h = w_ih @ x + b_ih, w_hh @ masked + b_hh
    if cell == "rnn_tanh":
        return torch.tanh(from_x + from_h), None
    if cell == "rnn_relu":
        return torch.relu(from_x + from_h), None
    if cell == "gru":
        (r_x, z_x, n_x), (r_h, z_h, n_h) = from_x.chunk(3), from_h.chunk(3)
        r, z = torch.sigmoid(r_x + r_h), torch.sigmoid(z_x + z_h)
        return (1 - z) * (keep * torch.tanh(n_x + r * n_h)) + z * h, None
    assert c is not None
    i, f, g, o = (from_x + from_h).chunk(4)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * (keep * torch.tanh(g))
    h = torch.sigmoid(o) * torch.tanh(c)
    return (h if w_hr is None else w_hr @ h), c


def layer(
    cell: str,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    lengths: Sequence[int] | None = None,
    mask: Tensor | None = None,
    site: str = "state",
    clip: Clip | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """One layer on a padded batch.

    Args:
        x: (T, B, I); h0, c0: (D, B, ·); weights: one direction after the other; mask: (D, B, ·).

    Returns:
        (y, h_n, c_n): y is zero past a length.
    """
    steps, batch = x.shape[:2]
    directions = h0.size(0)
    lengths = [steps] * batch if lengths is None else [int(n) for n in lengths]
    per_direction = len(weights) // directions
    zeros = x.new_zeros(h0.size(2))
    y: list[list[list[Tensor]]] = [[[zeros] * directions for _ in range(batch)] for _ in range(steps)]
    finals = [[(h0[d, b], None if c0 is None else c0[d, b]) for b in range(batch)] for d in range(directions)]
    for d in range(directions):
        own = weights[d * per_direction : (d + 1) * per_direction]
        for b, length in enumerate(lengths):
            h, c = finals[d][b]
            for t in range(length) if d == 0 else reversed(range(length)):
                h, c = _cell(cell, own, x[t, b], h, c, None if mask is None else mask[d, b], site)
                y[t][b][d] = h
                if clip is not None:
                    h, c = (*_ClipState.apply(clip, (d, t, b), *((h,) if c is None else (h, c))), None)[:2]
            finals[d][b] = (h, c)
    output = torch.stack([torch.stack([torch.cat(parts) for parts in step]) for step in y])
    h_n = torch.stack([torch.stack([h for h, _ in of_direction]) for of_direction in finals])
    if c0 is None:
        return output, h_n, None
    return output, h_n, torch.stack([torch.stack([c for _, c in of_direction]) for of_direction in finals])


@dataclass
class Masks:
    """The dropout factors of a whole module, one entry per layer; None: off."""

    inputs: Sequence[Tensor] | None = None  # (B, I)
    recurrent: Sequence[Tensor] | None = None  # (D, B, ·)
    weights: Sequence[Sequence[Tensor]] | None = None  # per direction, as W_hh
    between: Sequence[Tensor] | None = None  # (T, B, D*H), one entry fewer than layers


def drawn_masks(rnn: Any, drawn: Mapping[str, Tensor]) -> Masks:
    """The variational masks that a module has drawn (conftest.py: drawn), for :func:`module`."""
    layers, directions = range(rnn.num_layers), range(2 if rnn.bidirectional else 1)
    masks = Masks()
    if rnn.input_dropout:
        masks.inputs = [drawn[f"input mask {layer}"] for layer in layers]
    if rnn.recurrent_dropout and rnn.recurrent_dropout_mode == "weight":
        masks.weights = [[drawn[f"weight mask {layer} {d}"] for d in directions] for layer in layers]
    elif rnn.recurrent_dropout:
        masks.recurrent = [drawn[f"recurrent mask {layer}"] for layer in layers]
    return masks


def module(
    rnn: Any,
    x: Tensor,
    hx: Any = None,
    lengths: Sequence[int] | None = None,
    masks: Masks | None = None,
    clips: Sequence[Clip] | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """All layers of a fastrnn or torch.nn module, with its parameters, on a padded (T, B, I) batch: (y, h_n, c_n)."""
    masks = masks or Masks()
    cell = rnn.mode.lower()
    directions = 2 if rnn.bidirectional else 1
    first = rnn.num_layers * directions
    if hx is None:
        hx = x.new_zeros(first, x.size(1), rnn.proj_size or rnn.hidden_size)
        hx = (hx, x.new_zeros(first, x.size(1), rnn.hidden_size)) if cell == "lstm" else hx
    h0, c0 = hx if cell == "lstm" else (hx, None)
    site = getattr(rnn, "recurrent_dropout_mode", "state")
    finals = []
    for index, weights in enumerate(_weights(rnn)):
        of_layer = slice(index * directions, (index + 1) * directions)
        if masks.inputs is not None:
            x = x * masks.inputs[index]
        if masks.weights is not None:
            for d, keep in enumerate(masks.weights[index]):
                position = d * (len(weights) // directions) + 1
                weights[position] = weights[position] * keep
        x, *final = layer(
            cell, x, h0[of_layer], None if c0 is None else c0[of_layer], weights, lengths,
            None if masks.recurrent is None else masks.recurrent[index], site,
            None if clips is None else clips[index],
        )  # fmt: skip
        finals.append(final)
        if masks.between is not None and index < rnn.num_layers - 1:
            x = x * masks.between[index]
    h_n = torch.cat([h for h, _ in finals])
    return x, h_n, None if c0 is None else torch.cat([c for _, c in finals])


def _weights(rnn: Any) -> list[list[Tensor]]:
    """Per layer, one direction after the other, in the order of :func:`layer`."""
    names = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if rnn.bias else [])]
    names += ["weight_hr"] if rnn.proj_size else []
    suffixes = ["", "_reverse"] if rnn.bidirectional else [""]
    return [
        [getattr(rnn, f"{name}_l{index}{suffix}") for suffix in suffixes for name in names]
        for index in range(rnn.num_layers)
    ]
