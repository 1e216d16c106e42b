"""The recurrences in plain torch: any dtype, any device, every option, nothing fused.

This is the judge of all kernels and the backend where no kernel is built. Both directions of time are explicit: ``forward``
loops over the steps and ``backward`` loops over them in reverse, with the derivative of each cell written out once. Nothing is
modified in place, so autograd can differentiate *through* ``backward``: that is how double backward works.

The functions mirror the operators (``csrc/ops/schema.h``), except that they return what the operators write:

* rows: a padded batch is ``[T, B]`` with optional ``lengths`` in any order; a packed one is ``[rows]``, step t of sample b being
  row ``offsets[t] + b``, samples sorted by falling length.
* gates: ``[D, T, B, G*H]`` or ``[D, rows, G*H]``. Direction 1 runs from each sample's last step to its first.
* compute type: float64 for float64, else float32. h is rounded to its dtype where it is stored or enters a product.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

CELLS = ("rnn_tanh", "rnn_relu", "lstm", "gru")
NUM_GATES = {"rnn_tanh": 1, "rnn_relu": 1, "lstm": 4, "gru": 3}


class Forward(NamedTuple):
    """What a forward recurrence returns. See csrc/params.h for the shapes."""

    y: Tensor  # [T, B, D*P] or [rows, D*P]
    h_n: Tensor  # [D, B, P]
    c_n: Tensor | None  # [D, B, H]
    gates: Tensor | None  # LSTM, GRU: activated gates, as given
    cells: Tensor | None  # LSTM: c_t, compute type
    n_h: Tensor | None  # GRU: W_hn h + b_hn
    hidden: Tensor | None  # LSTM with proj_size: o tanh(c)


class Backward(NamedTuple):
    """What a backward recurrence returns. See csrc/params.h for the shapes."""

    grad_gates: Tensor
    grad_n_h: Tensor | None
    grad_h: Tensor | None
    grad_h0: Tensor
    grad_c0: Tensor | None
    grad_bias: Tensor  # [D, K*H], compute type
    h_prev: Tensor  # [D, T, B, P] or [D, rows, P]: the operand of the recurrent product
    norms: Tensor | None  # [D, T, B], compute type
    clipped: Tensor | None  # [D, T, B], bool


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The accumulator and state type that goes with a storage type."""
    return torch.float64 if dtype == torch.float64 else torch.float32


# --------------------------------------------------------------------------------------------------------- the cells


def cell_forward(
    cell: str, x: list[Tensor], r: list[Tensor], h: Tensor, c: Tensor | None, keep: Tensor | None
) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """One step: pre-activations ``x`` (input side) and ``r`` (recurrent side), one tensor per gate.

    Returns:
        (h, c, gates): the next state and the activated gates. GRU's ``r[2]`` carries b_hn, since the reset comes after it.
    """
    if cell == "rnn_tanh":
        return torch.tanh(x[0] + r[0]), None, x
    if cell == "rnn_relu":
        return torch.relu(x[0] + r[0]), None, x
    if cell == "lstm":
        assert c is not None
        i, f, o = (torch.sigmoid(x[k] + r[k]) for k in (0, 1, 3))
        g = torch.tanh(x[2] + r[2])
        c = f * c + i * (g if keep is None else keep * g)
        return o * torch.tanh(c), c, [i, f, g, o]
    reset, z = (torch.sigmoid(x[k] + r[k]) for k in (0, 1))
    n = torch.tanh(x[2] + reset * r[2])
    candidate = n if keep is None else keep * n
    return candidate + z * (h - candidate), None, [reset, z, n]


def cell_backward(
    cell: str,
    grad_h: Tensor,
    grad_c: Tensor | None,
    gates: list[Tensor],
    n_h: Tensor | None,
    h_prev: Tensor,
    c_prev: Tensor | None,
    h: Tensor,
    c: Tensor | None,
    keep: Tensor | None,
) -> tuple[list[Tensor], list[Tensor], Tensor | None, Tensor | None]:
    """The derivative of :func:`cell_forward`.

    Returns:
        (grad_x, grad_r, grad_h_prev, grad_c_prev): gradients of the pre-activations per gate, and of the previous state
        where it is not reached through the recurrent product (None: not at all).
    """
    if cell == "rnn_tanh":
        grad = [grad_h * (1 - h * h)]
        return grad, grad, None, None
    if cell == "rnn_relu":
        grad = [torch.where(h > 0, grad_h, 0.0)]
        return grad, grad, None, None
    if cell == "lstm":
        assert c is not None and c_prev is not None and grad_c is not None
        i, f, g, o = gates
        tanh_c = torch.tanh(c)
        grad_c = grad_c + grad_h * o * (1 - tanh_c * tanh_c)
        kept = grad_c if keep is None else grad_c * keep
        grad = [
            kept * g * i * (1 - i),
            grad_c * c_prev * f * (1 - f),
            kept * i * (1 - g * g),
            grad_h * tanh_c * o * (1 - o),
        ]
        return grad, grad, None, grad_c * f
    assert n_h is not None
    r, z, n = gates
    candidate = n if keep is None else keep * n
    grad_n = grad_h * (1 - z) * (1 - n * n)
    grad_n = grad_n if keep is None else grad_n * keep
    grad_r = grad_n * n_h * r * (1 - r)
    grad_z = grad_h * (h_prev - candidate) * z * (1 - z)
    return [grad_r, grad_z, grad_n], [grad_r, grad_z, grad_n * r], grad_h * z, None


# ------------------------------------------------------------------------------------------------------ rows and steps


class _Rows:
    """Moves between rows as they are stored and ``[T, B]``, and knows which steps exist."""

    def __init__(self, rows: torch.Size, batch: int, lengths: Tensor | None, offsets: Tensor | None) -> None:
        self.packed = offsets is not None
        if offsets is not None:
            assert lengths is not None
            steps, num_rows = offsets.size(0), rows[0]
            step_of_row = torch.repeat_interleave(torch.diff(offsets, append=offsets.new_tensor([num_rows])))
            sample_of_row = torch.arange(num_rows, device=offsets.device) - offsets[step_of_row]
            self._padded_of_row = step_of_row * batch + sample_of_row
            self._row_of_padded = (offsets[:, None] + torch.arange(batch, device=offsets.device)).reshape(-1)
            self._row_of_padded = self._row_of_padded.clamp(max=max(num_rows - 1, 0))
        else:
            steps = rows[0]
        self.steps = steps
        self.live: Tensor | None = None
        if lengths is not None:
            self.live = torch.arange(steps, device=lengths.device)[:, None] < lengths.clamp(0, steps)  # [T, B]

    def padded(self, data: Tensor, rows_dim: int) -> Tensor:
        """Rows as ``[T, B]`` in place of dimension(s) ``rows_dim``, zero where a step does not exist."""
        if self.packed:
            if data.size(rows_dim) == 0:  # every length is 0: a row for the indices to point at
                data = torch.nn.functional.pad(data, (0, 0, 0, 1))
            data = data.index_select(rows_dim, self._row_of_padded).unflatten(rows_dim, (self.steps, -1))
        if self.live is None:
            return data
        return torch.where(self.live.unsqueeze(-1), data, 0.0)

    def stored(self, padded: Tensor, rows_dim: int) -> Tensor:
        """The inverse of :meth:`padded`."""
        if not self.packed:
            return padded
        return padded.flatten(rows_dim, rows_dim + 1).index_select(rows_dim, self._padded_of_row)

    def at(self, step: int) -> Tensor | None:
        """Which samples have this step, ``[B, 1]``, or None for all."""
        return None if self.live is None else self.live[step].unsqueeze(-1)


def _order(steps: int, direction: int) -> range:
    return range(steps) if direction == 0 else range(steps - 1, -1, -1)


def _select(live: Tensor | None, value: Tensor, otherwise: Tensor | float) -> Tensor:
    return value if live is None else torch.where(live, value, otherwise)


# ---------------------------------------------------------------------------------------------------- the recurrences


def recurrence_forward(
    cell: str,
    dropout_site: str,
    gates: Tensor,
    w_hh: list[Tensor],
    b_hn: list[Tensor],
    w_hr: list[Tensor],
    h0: Tensor,
    c0: Tensor | None,
    mask: Tensor | None,
    lengths: Tensor | None,
    offsets: Tensor | None,
) -> Forward:
    """The whole sequence of one layer, both directions. ``gates`` is the input projection. See csrc/params.h."""
    scalar, acc = gates.dtype, compute_dtype(gates.dtype)
    num_gates, num_directions = NUM_GATES[cell], gates.size(0)
    rows = _Rows(gates.shape[1:-1], h0.size(1), lengths, offsets)
    x = rows.padded(gates, 1).to(acc)  # [D, T, B, G*H]

    y: list[Tensor] = []
    h_n: list[Tensor] = []
    c_n: list[Tensor] = []
    activated: list[Tensor] = []
    cells: list[Tensor] = []
    n_h: list[Tensor] = []
    hidden: list[Tensor] = []
    for d in range(num_directions):
        h = h0[d].to(acc)
        c = None if c0 is None else c0[d].to(acc)
        weight = w_hh[d].to(acc).t()
        keep = mask[d] if mask is not None and dropout_site == "candidate" else None
        steps: dict[int, tuple[Tensor, ...]] = {}
        for t in _order(rows.steps, d):
            operand = h.to(scalar).to(acc)
            if mask is not None and dropout_site == "state":
                operand = (operand * mask[d]).to(scalar).to(acc)
            r = list((operand @ weight).chunk(num_gates, -1))
            if b_hn:
                r[2] = r[2] + b_hn[d].to(acc)
            h_next, c_next, act = cell_forward(cell, list(x[d, t].chunk(num_gates, -1)), r, h, c, keep)
            before_projection = h_next.to(scalar)
            if w_hr:
                h_next = before_projection.to(acc) @ w_hr[d].to(acc).t()
            live = rows.at(t)
            h = _select(live, h_next, h)
            if c_next is not None:
                assert c is not None
                c = _select(live, c_next, c)
            out = _select(live, h, 0.0).to(scalar)
            # a placeholder where the cell has no such thing
            steps[t] = (
                out,
                torch.cat(act, -1).to(scalar),
                out if c is None else c,
                r[-1].to(scalar),
                before_projection,
            )
        ordered = [torch.stack([steps[t][k] for t in range(rows.steps)]) for k in range(5)]
        for collected, value in zip((y, activated, cells, n_h, hidden), ordered, strict=True):
            collected.append(value)
        h_n.append(h.to(scalar))
        c_n.append(h if c is None else c.to(scalar))

    def stored(parts: list[Tensor], wanted: bool) -> Tensor | None:
        return rows.stored(torch.stack(parts), 1) if wanted else None

    return Forward(
        y=rows.stored(torch.cat(y, -1), 0),
        h_n=torch.stack(h_n),
        c_n=torch.stack(c_n) if cell == "lstm" else None,
        gates=stored(activated, cell in ("lstm", "gru")),
        cells=stored(cells, cell == "lstm"),
        n_h=stored(n_h, cell == "gru"),
        hidden=stored(hidden, bool(w_hr)),
    )


def clip_state_gradient(
    grads: list[Tensor], clip_mode: str | None, threshold: float, scale: Tensor | None
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Clip the recurrent gradient r_t of one step per sample (csrc/params.h says what it is).

    Args:
        grads: parts of r_t, each ``[B, *]``: (dh_rec,) or (dh_rec, dc_rec).
        clip_mode: "norm", "value" or None.
        threshold: in units of the gradient without the loss scale ``scale`` (0-dim float32, or None for 1).

    Returns:
        (clipped grads, norms ``[B]`` before clipping with the loss scale taken out, whether each sample was clipped ``[B]``)
    """
    r = torch.cat(grads, -1).double()  # squares of float32 need the range of double
    sum_of_squares = (r * r).sum(-1)
    positive = sum_of_squares > 0
    norms = torch.where(positive, torch.where(positive, sum_of_squares, 1.0).sqrt(), sum_of_squares)
    if scale is not None:
        norms = norms / scale
    if clip_mode == "value":
        limit = torch.full((), threshold, dtype=grads[0].dtype, device=r.device)
        limit = limit if scale is None else limit * scale.to(limit.dtype)
        clipped = torch.stack([(g.abs() > limit).any(-1) for g in grads]).any(0)
        grads = [torch.minimum(torch.maximum(g, -limit), limit) for g in grads]
    else:
        clipped = (norms > threshold) & norms.isfinite() if clip_mode == "norm" else torch.zeros_like(positive)
        if clip_mode == "norm":
            factor = torch.where(clipped, threshold / torch.where(clipped, norms, 1.0), 1.0)
            grads = [torch.where(clipped[:, None], g * factor[:, None].to(g.dtype), g) for g in grads]
    return grads, norms.to(grads[0].dtype), clipped


def recurrence_backward(
    cell: str,
    dropout_site: str,
    gates: Tensor | None,
    cells: Tensor | None,
    n_h: Tensor | None,
    y: Tensor,
    w_hh: list[Tensor],
    w_hr: list[Tensor],
    h0: Tensor,
    c0: Tensor | None,
    mask: Tensor | None,
    lengths: Tensor | None,
    offsets: Tensor | None,
    grad_y: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    clip_mode: str | None = None,
    clip_threshold: float = 0.0,
    grad_scale: Tensor | None = None,
) -> Backward:
    """Backpropagation through time of :func:`recurrence_forward`, from what it returned. See csrc/params.h."""
    scalar, acc = y.dtype, compute_dtype(y.dtype)
    num_gates, (num_directions, batch, state_size) = NUM_GATES[cell], h0.shape
    rows = _Rows(y.shape[:-1], batch, lengths, offsets)
    y = rows.padded(y, 0)
    gates = None if gates is None else rows.padded(gates, 1).to(acc)
    dy = torch.zeros_like(y) if grad_y is None else rows.padded(grad_y, 0)
    cells = None if cells is None else rows.padded(cells, 1)
    n_h = None if n_h is None else rows.padded(n_h, 1).to(acc)

    results: list[list[Tensor]] = [[] for _ in range(8)]
    for d in range(num_directions):
        columns = slice(d * state_size, (d + 1) * state_size)
        weight = w_hh[d].to(acc)
        masked = mask is not None and dropout_site == "state"
        keep = mask[d] if mask is not None and dropout_site == "candidate" else None
        h_first, c_first = h0[d].to(acc), None if c0 is None else c0[d].to(acc)
        # r_t: what arrives from the step after t
        r_h = torch.zeros_like(h_first) if grad_h_n is None else grad_h_n[d].to(acc)
        r_c = None
        if c_first is not None:
            r_c = torch.zeros_like(c_first) if grad_c_n is None else grad_c_n[d].to(acc)

        steps: dict[int, tuple[Tensor, ...]] = {}
        bias_sums: list[Tensor] = []
        order = list(_order(rows.steps, d))
        for position in range(rows.steps - 1, -1, -1):
            t = order[position]
            live = rows.at(t)
            h_prev, c_prev = h_first, c_first
            if position > 0:
                before = order[position - 1]
                h_prev = _select(rows.at(before), y[before, :, columns].to(acc), h_first)
                if cells is not None:
                    assert c_first is not None
                    c_prev = _select(rows.at(before), cells[d, before], c_first)

            parts, norms, clipped = clip_state_gradient(
                [r_h] if r_c is None else [r_h, r_c], clip_mode, clip_threshold, grad_scale
            )
            clipped_c = parts[1] if r_c is not None else None
            grad_h = parts[0] + dy[t, :, columns].to(acc)
            grad_hidden = grad_h.to(scalar).to(acc) @ w_hr[d].to(acc) if w_hr else grad_h
            grad_x, grad_r, direct_h, direct_c = cell_backward(
                cell,
                grad_hidden,
                clipped_c,
                [] if gates is None else list(gates[d, t].chunk(num_gates, -1)),
                None if n_h is None else n_h[d, t],
                h_prev,
                c_prev,
                y[t, :, columns].to(acc),
                None if cells is None else cells[d, t],
                keep,
            )
            sums = grad_x if cell != "gru" else [*grad_x, grad_r[2]]
            bias_sums.append(_select(live, torch.cat(sums, -1), 0.0).sum(0))
            grad_x_stored = _select(live, torch.cat(grad_x, -1), 0.0).to(scalar)
            grad_r_stored = _select(live, torch.cat(grad_r, -1), 0.0).to(scalar)
            to_prev = grad_r_stored.to(acc) @ weight
            operand = h_prev
            if masked:
                assert mask is not None
                to_prev = to_prev * mask[d]
                operand = operand * mask[d]
            if direct_h is not None:
                to_prev = to_prev + direct_h
            r_h = _select(live, to_prev, r_h)
            if direct_c is not None:
                assert r_c is not None
                r_c = _select(live, direct_c, r_c)
            flat_live = None if live is None else live.squeeze(-1)
            steps[t] = (
                grad_x_stored,
                grad_r_stored.chunk(num_gates, -1)[-1],
                _select(live, grad_h, 0.0).to(scalar),
                _select(live, operand, 0.0).to(scalar),
                _select(flat_live, norms, 0.0),
                clipped if flat_live is None else clipped & flat_live,
            )
        for k in range(6):
            results[k].append(torch.stack([steps[t][k] for t in range(rows.steps)]))
        results[6].append(torch.stack(bias_sums).sum(0))
        results[7].append(torch.cat([r_h] if r_c is None else [r_h, r_c], -1).to(scalar))

    grad_gates, grad_n, grad_h_all, h_prev_all, norms_all, clipped_all, grad_bias, grad_first = (
        torch.stack(parts) for parts in results
    )
    grad_h0, grad_c0 = grad_first[..., :state_size], grad_first[..., state_size:]
    return Backward(
        grad_gates=rows.stored(grad_gates, 1),
        grad_n_h=rows.stored(grad_n, 1) if cell == "gru" else None,
        grad_h=rows.stored(grad_h_all, 1) if w_hr else None,
        grad_h0=grad_h0,
        grad_c0=grad_c0 if c0 is not None else None,
        grad_bias=grad_bias,
        h_prev=rows.stored(h_prev_all, 1),
        norms=norms_all,
        clipped=clipped_all,
    )
