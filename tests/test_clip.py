"""clip_grad_norm_ against torch's own, in the situations where a gradient is not what it seems."""

import math

import pytest
import torch
from clipping import DEVICES, assert_clips_as_torch, model_with_gradients, train_step
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

import fastrnn

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("max_norm", [1e-2, 1.0, 1e6])
def test_equals_torch_for_each_dtype(device, dtype, max_norm):
    assert_clips_as_torch(model_with_gradients(dtype, device=device), max_norm)


def test_gradients_of_several_dtypes():
    """torch rounds each tensor's norm to its dtype; so against the exact norm."""
    parameters = [nn.Parameter(torch.empty(30, dtype=dtype)) for dtype in DTYPES]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    before = [p.grad.double().clone() for p in parameters]
    exact = torch.cat(before).norm()
    norm = fastrnn.clip_grad_norm_(parameters, 0.5)
    assert norm.dtype == torch.float64
    torch.testing.assert_close(norm, exact)
    for parameter, grad in zip(parameters, before, strict=True):
        torch.testing.assert_close(parameter.grad, (grad * 0.5 / exact).to(parameter.dtype))


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.5, math.inf])
def test_equals_torch_for_each_norm(norm_type):
    assert_clips_as_torch(model_with_gradients(), 0.5, norm_type)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_norm_is_right_where_float_squares_underflow_or_overflow(device, scale):
    model = model_with_gradients(scale=scale, device=device)
    before = [p.grad.double().clone() for p in model.parameters()]
    exact = math.sqrt(sum(float(grad.square().sum()) for grad in before))
    assert 0.1 * scale < exact < 1e3 * scale
    norm = fastrnn.clip_grad_norm_(model.parameters(), 1.0)
    torch.testing.assert_close(float(norm), exact, rtol=1e-6, atol=0)
    for p, grad in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(p.grad.double(), grad / exact if exact > 1 else grad, rtol=1e-6, atol=0)


@pytest.mark.parametrize("device", DEVICES)
def test_gradient_below_the_limit_is_not_touched(device):
    model = model_with_gradients(device=device)
    before = [p.grad.clone() for p in model.parameters()]
    fastrnn.clip_grad_norm_(model.parameters(), 1e6)
    assert all(torch.equal(p.grad, b) for p, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_nonfinite_gradients_do_what_torch_does(device, value):
    model = model_with_gradients(device=device)
    model[2].weight.grad[0, 0] = value
    before = [p.grad.clone() for p in model.parameters()]
    with pytest.raises(RuntimeError, match="non-finite"):
        fastrnn.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
    for p, grad in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=0, atol=0, equal_nan=True)
    assert_clips_as_torch(model, 1.0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the host waits for a GPU alone")
def test_the_host_does_not_wait_for_the_device():
    model = model_with_gradients(device="cuda")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    fastrnn.clip_on_step(optimizer, 0.5)
    torch.cuda.set_sync_debug_mode("error")
    try:
        fastrnn.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_one_tensor_a_generator_none_gradients_and_nothing_at_all():
    model = model_with_gradients()
    model[0].weight.grad = None
    assert_clips_as_torch(model, 0.5)
    fastrnn.clip_grad_norm_(model[2].weight, 0.01)
    torch.testing.assert_close(model[2].weight.grad.norm(), torch.tensor(0.01), rtol=1e-3, atol=0)
    assert fastrnn.clip_grad_norm_([], 1.0) == 0
    assert fastrnn.clip_grad_norm_([nn.Parameter(torch.ones(2))], 1.0) == 0
    empty = nn.Parameter(torch.empty(0, 3))
    empty.grad = torch.empty(0, 3)
    assert fastrnn.clip_grad_norm_(empty, 1.0) == 0
    with pytest.warns(UserWarning, match="empty generator"):
        fastrnn.clip_grad_norm_((p for p in ()), 1.0)


def test_a_parameter_given_twice_counts_twice_as_in_torch():
    model = model_with_gradients()
    weights = [model[2].weight, model[2].weight, model[2].bias]
    twin = model_with_gradients()[2]
    expected = nn.utils.clip_grad_norm_([twin.weight, twin.weight, twin.bias], 0.5)
    torch.testing.assert_close(fastrnn.clip_grad_norm_(weights, 0.5), expected)
    torch.testing.assert_close(model[2].weight.grad, twin.weight.grad)
    large = [nn.Parameter(torch.zeros(400_000)) for _ in range(2)]  # for several threads at once
    large[0].grad, large[1].grad = torch.ones(400_000), torch.ones(400_000)
    nn.utils.clip_grad_norm_([large[0]] * 2, 0.5)
    fastrnn.clip_grad_norm_([large[1]] * 2, 0.5)
    torch.testing.assert_close(large[1].grad, large[0].grad)


def test_gradients_that_share_memory_count_as_in_torch():
    shared = torch.randn(300_000)

    def clipped(clip):
        memory = shared.clone()
        parameters = [torch.nn.Parameter(torch.zeros(300_000)), torch.nn.Parameter(torch.zeros(300, 500))]
        parameters[0].grad, parameters[1].grad = memory, memory[100_000:250_000].view(300, 500)
        return clip(parameters, 1.0), memory

    for got, expected in zip(clipped(fastrnn.clip_grad_norm_), clipped(torch.nn.utils.clip_grad_norm_), strict=True):
        torch.testing.assert_close(got, expected)


def test_any_dense_layout_and_strided_views():
    parameters = [nn.Parameter(torch.zeros(6, 4)) for _ in range(3)]
    values = torch.randn(3, 6, 4)
    parameters[0].grad = values[0].t().contiguous().t()
    parameters[1].grad = torch.randn(12, 8)[::2, ::2]
    parameters[2].grad = values[2].clone()
    for chosen in (parameters, parameters[::2]):
        expected = torch.cat([p.grad.flatten() for p in chosen])
        norm = fastrnn.clip_grad_norm_(chosen, 0.5)
        torch.testing.assert_close(norm, expected.norm())
        clipped = torch.cat([p.grad.flatten() for p in chosen])
        torch.testing.assert_close(clipped, expected * min(1.0, 0.5 / (expected.norm() + 1e-6)))


def test_clipping_bumps_the_version_of_each_gradient():
    parameter = nn.Parameter(torch.ones(5))
    parameter.grad = torch.ones(5)
    before = parameter.grad._version
    fastrnn.clip_grad_norm_(parameter, 0.1)
    assert parameter.grad._version > before


@pytest.mark.parametrize("device", DEVICES)
def test_many_tensors_of_all_sizes(device):
    """More than one launch takes, with tails, at addresses that are not aligned."""
    sizes = [1, 7, 16383, 16384, 16385, 50001] + [3] * 300
    flat = torch.randn(sum(sizes) + 1, device=device)
    parameters = [nn.Parameter(torch.empty(size, device=device)) for size in sizes]
    for parameter, part in zip(parameters, flat[1:].split(sizes), strict=True):
        parameter.grad = part
    expected = flat[1:].clone()
    norm = fastrnn.clip_grad_norm_(parameters, 1.0)
    torch.testing.assert_close(norm.double(), expected.double().norm(), rtol=1e-6, atol=0)
    torch.testing.assert_close(flat[1:], expected / expected.norm(), rtol=1e-5, atol=1e-9)


def test_result_does_not_depend_on_the_number_of_threads():
    model = model_with_gradients()
    model.add_module("large", nn.Linear(700, 700))
    for parameter in model.large.parameters():
        parameter.grad = torch.randn_like(parameter)
    threads = torch.get_num_threads()
    norms = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            norms.append(fastrnn.clip_grad_norm_(model.parameters(), 1e9))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(norms[0], norms[1])
    assert torch.equal(norms[0], norms[2])


def test_a_compiled_step_clips_in_the_same_graph():
    model = model_with_gradients()
    twin = model_with_gradients()

    @torch.compile(backend="eager", fullgraph=True)
    def clip(parameters):
        return fastrnn.clip_grad_norm_(parameters, 0.5)

    torch.testing.assert_close(clip(list(model.parameters())), nn.utils.clip_grad_norm_(twin.parameters(), 0.5))
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


# ------------------------------------------------------------------------------------- how a gradient came about
#
# Each with and without trust in backward: a clip that trusts has been seen before, so backward takes sums.


@pytest.fixture(params=[False, True], ids=["computed", "trusted"])
def trust(request):
    if request.param:
        rnn = fastrnn.RNN(2, 3)
        rnn(torch.randn(4, 2, 2))[0].sum().backward()
        fastrnn.clip_grad_norm_(rnn.parameters(), 1.0, trust_backward=True)
    return request.param


@pytest.fixture
def model():
    return nn.Sequential(nn.Embedding(11, 5), fastrnn.GRU(5, 7, 2, bidirectional=True), nn.Linear(14, 3))


def test_one_backward_and_several_accumulated(model, trust):
    train_step(model)
    assert_clips_as_torch(model, 0.5, trust_backward=trust)
    train_step(model, seed=1)
    train_step(model, seed=2)
    assert_clips_as_torch(model, 0.5, trust_backward=trust)


def double_by_a_new_tensor(gru):
    gru.weight_hh_l0.register_hook(lambda grad: grad * 2)


def double_in_place(gru):
    gru.weight_hh_l0.register_hook(lambda grad: grad.mul_(2))


def double_after_accumulation(gru):
    def double(parameter):
        parameter.grad.mul_(2)

    gru.weight_hh_l0.register_post_accumulate_grad_hook(double)


def share(gru):
    gru.weight_hh_l1 = gru.weight_hh_l0


def freeze(gru):
    for name in ("weight_ih_l0", "bias_ih_l0", "weight_hh_l1_reverse"):
        getattr(gru, name).requires_grad_(False)


class Doubled(nn.Module):
    def forward(self, weight):
        return weight * 2


def parametrise(gru):
    parametrize.register_parametrization(gru, "weight_hh_l0", Doubled())
    nn.utils.parametrizations.weight_norm(gru, "weight_ih_l1")


def drop_weights(gru):
    gru.recurrent_dropout_mode, gru.recurrent_dropout = "weight", 0.5


@pytest.mark.parametrize(
    "change",
    [double_by_a_new_tensor, double_in_place, double_after_accumulation, share, freeze, parametrise, drop_weights],
)
def test_hooks_and_weights_that_are_shared_frozen_parametrised_or_dropped(model, trust, change):
    change(model[1])
    train_step(model)
    assert_clips_as_torch(model, 0.5, trust_backward=trust)


def test_a_module_used_twice_in_one_graph(model, trust):
    gru, x = model[1], torch.randn(6, 4, 5)
    (gru(x)[0].sum() + gru(2 * x)[0].sum()).backward()
    assert_clips_as_torch(model, 0.5, trust_backward=trust)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(model, trust, dtype):
    with torch.autocast("cpu", dtype):
        train_step(model)
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())
    assert_clips_as_torch(model, 0.5, trust_backward=trust)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_models_of_other_dtypes(model, trust, dtype):
    train_step(model.to(dtype))
    assert_clips_as_torch(model, 0.5, trust_backward=trust)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing(model, trust, use_reentrant):
    model[1].recurrent_dropout = 0.3
    grads = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        model.zero_grad()
        x = torch.randn(6, 4, 5, requires_grad=True)
        torch.manual_seed(1)
        y, _ = checkpoint(model[1], x, use_reentrant=use_reentrant) if checkpointed else model[1](x)
        model[2](y).square().sum().backward()
        grads.append([p.grad.clone() for p in model[1].parameters()])
    torch.testing.assert_close(grads[1], grads[0], rtol=0, atol=0)
    assert_clips_as_torch(model, 0.5, trust_backward=trust)


def test_a_grad_scaler_unscales_before(model, trust):
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    train_step(model, scale=float(scaler.scale(torch.ones(()))))
    scaler.unscale_(torch.optim.SGD(model.parameters(), lr=1.0))
    # unscale_ leaves no trace, so this is not for who trusts
    norm = assert_clips_as_torch(model, 0.5)
    model.zero_grad()
    train_step(model)
    torch.testing.assert_close(nn.utils.get_total_norm([p.grad for p in model.parameters()]), norm)


def test_functional_gradients_go_on_working(model, trust):
    names = {name: p.detach() for name, p in model[1].named_parameters()}
    x = torch.randn(6, 4, 5)
    grads = torch.func.grad(lambda ps: torch.func.functional_call(model[1], ps, (x,))[0].square().sum())(names)
    model[1](x)[0].square().sum().backward()
    for name, p in model[1].named_parameters():
        torch.testing.assert_close(grads[name], p.grad)
