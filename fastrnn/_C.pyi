from collections.abc import Sequence
from typing import TypedDict

class DeviceLimits:
    def __init__(
        self,
        major: int,
        minor: int,
        multiprocessors: int,
        shared_per_block: int,
        resident_clusters: Sequence[int],
        compiled_arch: int | None = None,
    ) -> None: ...

class PlanRequest:
    def __init__(
        self,
        *,
        cell: int,
        scalar: int,
        steps: int,
        batch: int,
        hidden_size: int,
        state_size: int,
        directions: int = 1,
        backward: bool = False,
        clips_norm: bool = False,
        allows_tf32: bool = False,
        wanted: str = "",
        all_plans: bool = False,
        chunk: int = 0,
    ) -> None: ...

class Plan(TypedDict):
    team: str
    team_size: int
    cluster_size: int  # 1: no clusters
    num_teams: int
    samples: int
    unit_warps: int
    splits: int
    chunks: int
    shared_chunks: int
    scatters: bool
    exchange_bytes: int
    shared_bytes: int
    step_us: float
    start_us: float  # before the first step
    bound: str
    text: str

class BuildInfo(TypedDict):
    version: str
    torch: str
    cuda: str | None
    cuda_archs: list[str]
    without_cuda: str | None
    compiler: str

def build_info() -> BuildInfo: ...
def cpu_features() -> list[str]: ...
def plan(request: PlanRequest, device: DeviceLimits) -> Plan: ...
def all_plans(request: PlanRequest, device: DeviceLimits) -> list[Plan]: ...
