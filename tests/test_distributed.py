"""Clipping where gradients are averaged or sharded between processes: two of them, on the CPU."""

from __future__ import annotations

import copy
import gc
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import Tensor, nn

import fastrnn
from fastrnn import gradient_sums

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo"
)

WORLD = 2
STEPS = 3


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = fastrnn.LSTM(5, 8, 2, state_grad_clip=0.5)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0])


def batch(step: int, rank: int) -> Tensor:
    return torch.randn(6, 4, 5, generator=torch.Generator().manual_seed(step * WORLD + rank))


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().sum()


def averaged_gradients(model: Model, step: int) -> None:
    """What all processes together should see: the mean of their gradients."""
    model.zero_grad()
    for rank in range(WORLD):
        (loss_of(model, batch(step, rank)) / WORLD).backward()


def check_clip(rank: int, trust: bool, wrap: Callable[[Model], nn.Module], full: Callable[[Tensor], Tensor]) -> None:
    """Train ``wrap(model)`` with fastrnn's clip beside a plain model with torch's, on the averaged gradients."""
    torch.manual_seed(0)
    plain = Model()
    model = wrap(copy.deepcopy(plain))
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (plain, model)]
    for step in range(STEPS):
        averaged_gradients(plain, step)
        expected = nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        model.zero_grad()
        loss_of(model, batch(step, rank)).backward()
        norm = fastrnn.clip_grad_norm_(model.parameters(), 0.5, trust_backward=trust)
        assert expected > 0.5
        torch.testing.assert_close(full(norm), expected, rtol=1e-4, atol=1e-6)
        for p, q in zip(plain.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(full(q.grad), p.grad, rtol=1e-4, atol=1e-6)
        for optimizer in optimizers:
            optimizer.step()


def check_all_reduce(rank: int) -> None:
    """By hand, as users average gradients: no version shows it."""
    torch.manual_seed(0)
    model = Model()
    fastrnn.clip_grad_norm_(model.parameters(), 1.0, trust_backward=True)  # wants sums
    loss_of(model, batch(0, rank)).backward()
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad)
        parameter.grad.data /= WORLD
    rnn_grads = [p.grad for p in model.rnn.parameters()]
    assert gradient_sums.split(rnn_grads)[0], "all_reduce left a trace, so this shows nothing"
    norm = fastrnn.clip_grad_norm_(model.parameters(), 0.5)
    averaged_gradients(model, 0)
    expected = nn.utils.get_total_norm([p.grad for p in model.parameters()])
    torch.testing.assert_close(norm, expected, rtol=1e-4, atol=1e-6)


def check_all(rank: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    check_all_reduce(rank)
    for trust in (False, True):
        for as_view in (False, True):
            check_clip(
                rank,
                trust,
                lambda model, as_view=as_view: nn.parallel.DistributedDataParallel(
                    model, gradient_as_bucket_view=as_view
                ),
                lambda tensor: tensor,
            )
        mesh = init_device_mesh("cpu", (WORLD,))

        def gather(tensor: Tensor) -> Tensor:
            assert isinstance(tensor, DTensor)
            return tensor.full_tensor()

        check_clip(rank, trust, lambda model, mesh=mesh: fully_shard(model, mesh=mesh), gather)


def work(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    try:
        check_all(rank)
        dist.barrier()
    finally:
        gc.collect()  # the wrapped models are cycles that hold the group
        dist.destroy_process_group()


def test_ddp_fsdp2_and_gradients_reduced_by_hand_in_two_processes(tmp_path: Path) -> None:
    multiprocessing.spawn(work, (str(tmp_path / "store"),), nprocs=WORLD)
