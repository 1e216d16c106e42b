"""The GPUs that plans are predicted for, none of which is here, and how csrc/params.h numbers cells and types."""

from __future__ import annotations

from fastrnn import _C

# Multiprocessors of each part that a cluster does not leave; no two H100s are alike.
H100_PARTS = (16, 16, 16, 16, 16, 16, 18, 18)
DEVICES = {
    "H100": _C.DeviceLimits(
        9, 0, sum(H100_PARTS), 232448, [sum(part // size for part in H100_PARTS) for size in range(1, 17)]
    ),
    "A100": _C.DeviceLimits(8, 0, 108, 166912, []),
}
CELLS = {"RNN": 0, "LSTM": 2, "GRU": 3}
SCALARS = {"bfloat16": (3, False), "tf32": (0, True), "float32": (0, False), "float16": (2, False)}  # and allows_tf32


def plan(
    device: str,
    cell: str,
    arithmetic: str,
    batch: int,
    steps: int,
    hidden_size: int,
    backward: bool,
    directions: int = 1,
    clips_norm: bool = False,
) -> _C.Plan:
    """The fastest, with FASTRNN_PLANS=all."""
    scalar, tf32 = SCALARS[arithmetic]
    request = _C.PlanRequest(
        cell=CELLS[cell], scalar=scalar, steps=steps, batch=batch, hidden_size=hidden_size, state_size=hidden_size,
        directions=directions, backward=backward, clips_norm=clips_norm, allows_tf32=tf32, all_plans=True,
    )  # fmt: skip
    return _C.plan(request, DEVICES[device])


def is_two_level(plan: _C.Plan) -> bool:
    """A grid of clusters, which backward alone has."""
    return plan["team"] == "grid" and plan["cluster_size"] > 1


def blocks(plan: _C.Plan) -> str:
    """Blocks a team and teams; the plan that torch's product is part of has none."""
    if not plan["num_teams"]:
        return ""
    clusters = f" in clusters of {plan['cluster_size']}" if 1 < plan["cluster_size"] < plan["team_size"] else ""
    return f"{plan['team_size']}{clusters} x {plan['num_teams']}"
