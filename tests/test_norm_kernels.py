"""The operators of parameter-norm clipping on every backend that has them: the CPU's, and the CUDA kernels, emulated too."""

import math

import pytest
import torch
from conftest import BACKENDS

from fastrnn.ops import _NORM_BLOCK

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
FUSED = tuple(name for name in BACKENDS if name != "reference")


@pytest.fixture(params=FUSED)
def name(request):
    return request.param


@pytest.fixture
def device(name):
    return torch.device("cuda" if name == "cuda" else "cpu")


def operators(name):
    return torch.ops.fastrnn_emulated if name == "emulated" else torch.ops.fastrnn


def norm_of(name, tensors, known=(), dtype=torch.float64, root=True):
    """By the operator; what it needs as scratch is NaN before."""
    device = tensors[0].device if tensors else known[0].device
    num_sums = len(known) + sum(math.ceil(t.numel() / _NORM_BLOCK) for t in tensors)
    partial = torch.full((num_sums,), math.nan, dtype=torch.float64, device=device)
    out = torch.full((), math.nan, dtype=dtype, device=device)
    operators(name).sum_of_squares(tensors, list(known), partial, out, root)
    return out


def tensors_of(sizes, dtype, device, offset=0, scale=1.0):
    """Consecutive stretches of one tensor, the first at element ``offset``, so at any alignment; and that tensor."""
    flat = (torch.randn(offset + sum(sizes) + 3, dtype=torch.float64) * scale).to(device, dtype)
    return list(flat[offset : offset + sum(sizes)].split(sizes)), flat


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [0, 1, 3])
def test_norm_and_scaling_of_tensors_of_all_sizes_at_all_addresses(name, device, dtype, offset):
    sizes = [1, 2, 0, 7, 16, 255, 1000, _NORM_BLOCK - 1, _NORM_BLOCK, _NORM_BLOCK + 1]
    tensors, flat = tensors_of(sizes, dtype, device, offset)
    before = flat.double().clone()
    exact = before[offset : offset + sum(sizes)].norm()
    norm = norm_of(name, tensors)
    torch.testing.assert_close(norm, exact, rtol=1e-12, atol=0)
    assert norm.equal(norm_of(name, tensors)), "two runs differ"
    torch.testing.assert_close(norm_of(name, tensors, root=False), exact.square(), rtol=1e-12, atol=0)

    operators(name).clip_(tensors, norm, 0.5)
    inside = torch.zeros_like(flat, dtype=torch.bool)
    inside[offset : offset + sum(sizes)] = True
    torch.testing.assert_close(flat[~inside].double(), before[~inside], rtol=0, atol=0)
    scaled = (before * (0.5 / (exact + 1e-6)))[inside]
    torch.testing.assert_close(flat[inside].double(), scaled, rtol=torch.finfo(dtype).eps, atol=1e-7)


def test_more_tensors_than_one_launch_carries(name, device):
    sizes = [3, 5] * 200
    tensors, flat = tensors_of(sizes, torch.float32, device)
    before = flat.double().clone()
    exact = before[: sum(sizes)].norm()
    norm = norm_of(name, tensors, dtype=torch.float32)
    torch.testing.assert_close(norm.double(), exact, rtol=1e-6, atol=0)
    operators(name).clip_(tensors, norm, 1.0)
    torch.testing.assert_close(flat[: sum(sizes)].double(), before[: sum(sizes)] / exact, rtol=1e-5, atol=1e-9)


def test_tensors_of_several_dtypes_together(name, device):
    tensors = [torch.randn(300, device=device).to(dtype) for dtype in DTYPES]
    before = [t.double().clone() for t in tensors]
    exact = torch.cat(before).norm()
    norm = norm_of(name, tensors)
    torch.testing.assert_close(norm, exact, rtol=1e-12, atol=0)
    operators(name).clip_(tensors, norm, 0.5)
    for tensor, value in zip(tensors, before, strict=True):
        torch.testing.assert_close(tensor, (value * 0.5 / exact).to(tensor.dtype))


def test_sums_already_known_are_added(name, device):
    tensors, _ = tensors_of([5, 20000], torch.float32, device)
    known = [torch.full((1,), float(k), dtype=torch.float64, device=device) for k in range(150)]
    exact = torch.cat(tensors).double().square().sum() + sum(range(150))
    torch.testing.assert_close(norm_of(name, tensors, known, root=False), exact, rtol=1e-12, atol=0)
    torch.testing.assert_close(norm_of(name, [], known), torch.tensor(150 * 149 / 2).sqrt().to(known[0]))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_squares_are_right_over_the_whole_range_of_float32(name, device, scale):
    tensors, _ = tensors_of([7, 5000], torch.float32, device, scale=scale)
    exact = torch.cat(tensors).double().norm()
    torch.testing.assert_close(norm_of(name, tensors), exact, rtol=1e-12, atol=0)
    torch.testing.assert_close(norm_of(name, tensors, dtype=torch.float32).double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("max_norm", [3.999999, 4.0, 1e30, math.inf])
def test_nothing_is_written_where_the_factor_is_one(name, device, dtype, max_norm):
    """Adding 1e-6 and rounding to the norm's precision decide it, as in torch's clip_grad_norm_."""
    tensors, flat = tensors_of([7, 5000], torch.float32, device)
    before = flat.clone()
    norm = torch.tensor(4.0, dtype=dtype, device=device)
    operators(name).clip_(tensors, norm, max_norm)
    factor = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
    expected = before * factor.float()
    torch.testing.assert_close(flat[:5007], expected[:5007], rtol=1e-7, atol=0)
    if factor == 1:
        assert flat.equal(before)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_norms_that_are_not_finite(name, device, value):
    tensors, _ = tensors_of([7, 5000], torch.float32, device)
    tensors[1][4000] = value
    norm = norm_of(name, tensors, dtype=torch.float32)
    torch.testing.assert_close(norm.cpu(), torch.tensor(value), equal_nan=True)
    operators(name).clip_(tensors, norm, 1.0)
    together = torch.cat(tensors)
    assert together[4007].isnan()
    if math.isinf(value):
        assert together.nan_to_num(0.0).eq(0).all()
    else:
        assert together.isnan().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"tensors": [torch.zeros(3, dtype=torch.int64)]},
            "tensors[0] is int64, expected float32, float64, float16 or",
        ),
        ({"tensors": [torch.zeros(3), torch.zeros(8)[::2]]}, "tensors[1] has gaps or overlaps in memory"),
        ({"known": [torch.zeros(1)]}, "known[0] is float32, expected float64"),
        ({"partial": torch.zeros(2, dtype=torch.float64)}, "partial has shape [2], expected [1]"),
        ({"partial": torch.zeros(1)}, "partial is float32, expected float64"),
        ({"out": torch.zeros(2)}, "out has shape [2], expected one element"),
        ({"out": torch.zeros((), dtype=torch.int32)}, "out is int32, expected float32, float64, float16 or bfloat16"),
    ],
)
def test_wrong_arguments_are_refused_by_name(change, message):
    arguments = {
        "tensors": [torch.ones(3)], "known": [], "partial": torch.zeros(1, dtype=torch.float64),
        "out": torch.zeros(()), "root": True,
    }  # fmt: skip
    if "known" in change:
        arguments["partial"] = torch.zeros(2, dtype=torch.float64)
    with pytest.raises(RuntimeError) as error:
        torch.ops.fastrnn.sum_of_squares(*{**arguments, **change}.values())
    assert message in str(error.value)
