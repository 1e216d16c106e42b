"""What the tests of parameter-norm clipping share: small mixed models, and the comparison with torch's clipping."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

import fastrnn

DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def model_with_gradients(dtype=torch.float32, scale: float = 1.0, device: str = "cpu") -> nn.Sequential:
    """An embedding, an LSTM and a linear layer, with random gradients."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(11, 5), fastrnn.LSTM(5, 7, 2), nn.Linear(7, 3)).to(device, dtype)
    for parameter in model.parameters():
        value = torch.randn(parameter.shape, dtype=torch.float64).mul_(scale)
        parameter.grad = value.to(device, dtype)
    return model


def train_step(model: nn.Sequential, seed: int = 0, scale: float = 1.0) -> None:
    """Forward and backward of an embedding, an RNN and a linear layer."""
    torch.manual_seed(seed)
    y, _ = model[1](model[0](torch.randint(11, (6, 4))))
    (model[2](y).float().square().sum() * scale).backward()


def assert_clips_as_torch(model: nn.Module, max_norm: float, norm_type: float = 2.0, **kwargs: Any) -> torch.Tensor:
    """clip_grad_norm_ gives the norm and leaves the gradients that torch's does; the norm, which was beyond the limit or not."""
    other = copy.deepcopy(model)
    for parameter, twin in zip(model.parameters(), other.parameters(), strict=True):
        twin.grad = None if parameter.grad is None else parameter.grad.clone()
    expected = nn.utils.clip_grad_norm_(other.parameters(), max_norm, norm_type)
    norm = fastrnn.clip_grad_norm_(model.parameters(), max_norm, norm_type, **kwargs)
    assert norm.shape == expected.shape
    assert norm.dtype == expected.dtype
    torch.testing.assert_close(norm, expected, equal_nan=True)
    for parameter, twin in zip(model.parameters(), other.parameters(), strict=True):
        if twin.grad is None:
            assert parameter.grad is None
        else:
            torch.testing.assert_close(parameter.grad, twin.grad, equal_nan=True)
    return norm
