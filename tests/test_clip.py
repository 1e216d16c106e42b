"""clip_grad_norm_ and clip_on_step against torch's own clipping, in the situations where a gradient is not what it seems."""

import copy
import math

import pytest
import torch
from torch import nn

import fastrnn
from fastrnn import gradient_sums

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def model_with_gradients(dtype=torch.float32, scale=1.0, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Embedding(11, 5), fastrnn.LSTM(5, 7, 2), nn.Linear(7, 3)).to(dtype)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, dtype=torch.float64).mul_(scale).to(dtype)
    return model


def assert_clips_as_torch(model, max_norm, norm_type=2.0, **kwargs):
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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("max_norm", [1e-2, 1.0, 1e6])
def test_equals_torch_for_each_dtype(dtype, max_norm):
    assert_clips_as_torch(model_with_gradients(dtype), max_norm)


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.5, math.inf])
def test_equals_torch_for_each_norm(norm_type):
    assert_clips_as_torch(model_with_gradients(), 0.5, norm_type)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_norm_is_right_where_float_squares_underflow_or_overflow(scale):
    model = model_with_gradients(scale=scale)
    exact = math.sqrt(sum(float(p.grad.double().square().sum()) for p in model.parameters()))
    assert 0.1 * scale < exact < 1e3 * scale
    norm = fastrnn.clip_grad_norm_(model.parameters(), 1.0)
    torch.testing.assert_close(float(norm), exact, rtol=1e-6, atol=0)


def test_gradient_below_the_limit_is_not_touched():
    model = model_with_gradients()
    before = [p.grad.clone() for p in model.parameters()]
    fastrnn.clip_grad_norm_(model.parameters(), 1e6)
    assert all(torch.equal(p.grad, b) for p, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_nonfinite_gradients_do_what_torch_does(value):
    model = model_with_gradients()
    model[2].weight.grad[0, 0] = value
    with pytest.raises(RuntimeError, match="non-finite"):
        fastrnn.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
    assert_clips_as_torch(model, 1.0)


def test_one_tensor_a_generator_none_gradients_and_nothing_at_all():
    model = model_with_gradients()
    model[0].weight.grad = None
    assert_clips_as_torch(model, 0.5)
    fastrnn.clip_grad_norm_(model[2].weight, 0.01)
    torch.testing.assert_close(model[2].weight.grad.norm(), torch.tensor(0.01), rtol=1e-3, atol=0)
    assert fastrnn.clip_grad_norm_([], 1.0) == 0
    with pytest.warns(UserWarning, match="empty generator"):
        fastrnn.clip_grad_norm_((p for p in ()), 1.0)


def test_any_dense_layout_and_strided_views():
    parameters = [nn.Parameter(torch.zeros(6, 4)) for _ in range(3)]
    values = torch.randn(3, 6, 4)
    parameters[0].grad = values[0].t().contiguous().t()
    parameters[1].grad = torch.randn(12, 8)[::2, ::2]
    parameters[2].grad = values[2].clone()
    expected = torch.cat([p.grad.flatten() for p in parameters])
    norm = fastrnn.clip_grad_norm_(parameters, 0.5)
    torch.testing.assert_close(norm, expected.norm())
    clipped = torch.cat([p.grad.flatten() for p in parameters])
    torch.testing.assert_close(clipped, expected * (0.5 / (expected.norm() + 1e-6)))


def test_clipping_bumps_the_version_of_each_gradient():
    parameter = nn.Parameter(torch.ones(5))
    parameter.grad = torch.ones(5)
    before = parameter.grad._version
    fastrnn.clip_grad_norm_(parameter, 0.1)
    assert parameter.grad._version > before


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


# --------------------------------------------------------------------------------------------------- trust_backward


def train_step(model, seed=0):
    torch.manual_seed(seed)
    y, _ = model[1](model[0](torch.randint(11, (6, 4))))
    model[2](y).square().sum().backward()


@pytest.fixture
def trusting_model():
    """A model whose next backward takes sums: a clip that trusts has been seen."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(11, 5), fastrnn.GRU(5, 7, 2, bidirectional=True), nn.Linear(14, 3))
    train_step(model)
    fastrnn.clip_grad_norm_(model.parameters(), 1e9, trust_backward=True)
    model.zero_grad(set_to_none=True)
    return model


def test_trusted_sums_are_used_and_right(trusting_model):
    train_step(trusting_model)
    grads = [p.grad for p in trusting_model[1].parameters()]
    known, unknown = gradient_sums.split(grads)
    assert len(known) >= len(grads) // 2, f"only {len(known)} of {len(grads)} gradients of the GRU are known"
    assert len(known) + len(unknown) == len(grads)
    assert_clips_as_torch(trusting_model, 0.5, trust_backward=True)


def accumulate(model):
    train_step(model, seed=1)


def edit_in_place(model):
    for parameter in model.parameters():
        parameter.grad.mul_(3.0)


def replace(model):
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)


def drop(model):
    for parameter in list(model.parameters())[::2]:
        parameter.grad = None


def clip_before(model):
    fastrnn.clip_grad_norm_(model.parameters(), 0.7, trust_backward=True)


def reuse_the_memory(model):
    for parameter in model.parameters():
        shape = parameter.shape
        parameter.grad = None
        parameter.grad = torch.full(shape, 2.0)


@pytest.mark.parametrize("change", [accumulate, edit_in_place, replace, drop, clip_before, reuse_the_memory])
def test_trust_ends_where_the_gradient_changes_with_a_trace(trusting_model, change):
    train_step(trusting_model)
    change(trusting_model)
    assert_clips_as_torch(trusting_model, 0.5, trust_backward=True)


def test_hooks_shared_weights_and_a_module_used_twice(trusting_model):
    gru = trusting_model[1]
    gru.weight_hh_l0.register_hook(lambda grad: grad * 2)
    gru.weight_hh_l1 = gru.weight_hh_l0
    gru.bias_ih_l0.requires_grad_(False)
    train_step(trusting_model)
    x = torch.randn(6, 4, 5)
    (gru(x)[0].sum() + gru(2 * x)[0].sum()).backward()
    assert_clips_as_torch(trusting_model, 0.5, trust_backward=True)


def change_through_data(model):
    for parameter in model.parameters():
        parameter.grad.data.mul_(3.0)


def change_through_numpy(model):
    for parameter in model.parameters():
        parameter.grad.numpy()[...] *= 3.0


def unscale(model):
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.zeros(()))
    scaler.unscale_(torch.optim.SGD(model.parameters(), lr=1.0))


@pytest.mark.parametrize("change", [change_through_data, change_through_numpy, unscale])
def test_without_trust_changes_that_leave_no_trace_are_seen(trusting_model, change):
    train_step(trusting_model)
    change(trusting_model)
    assert_clips_as_torch(trusting_model, 0.5)


# ----------------------------------------------------------------------------------------------------- clip_on_step

OPTIMIZERS = {
    "Adam": torch.optim.Adam,
    "AdamW": torch.optim.AdamW,
    "SGD": lambda parameters, **kwargs: torch.optim.SGD(parameters, momentum=0.9, **kwargs),
    "Adagrad": torch.optim.Adagrad,
}
OLD_TORCH = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13)


def make_optimizer(name, model, **kwargs):
    if name == "Adagrad" and OLD_TORCH:
        pytest.skip("fused Adagrad takes a grad_scale from torch 2.13 on")
    return OPTIMIZERS[name](model.parameters(), lr=0.1, fused=True, **kwargs)


def same_gradients(models, seed, scale=1.0):
    torch.manual_seed(seed)
    for tensors in zip(*(m.parameters() for m in models), strict=True):
        value = torch.randn(tensors[0].shape) * scale
        for tensor in tensors:
            tensor.grad = value.clone()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clip_on_step_equals_clip_then_step(name, max_norm):
    plain = fastrnn.LSTM(5, 7)
    ours = copy.deepcopy(plain)
    optimizers = [make_optimizer(name, plain), make_optimizer(name, ours)]
    handle = fastrnn.clip_on_step(optimizers[1], max_norm)
    for step in range(3):
        same_gradients((plain, ours), step)
        versions = [p.grad._version for p in ours.parameters()]
        expected = nn.utils.clip_grad_norm_(plain.parameters(), max_norm)
        for optimizer in optimizers:
            optimizer.step()
        torch.testing.assert_close(handle.norm, expected)
        assert not hasattr(optimizers[1], "grad_scale")
        for p, q, version in zip(plain.parameters(), ours.parameters(), versions, strict=True):
            torch.testing.assert_close(q, p)
            torch.testing.assert_close(q.grad, p.grad)
            assert q.grad._version > version


@pytest.mark.parametrize("name", ["Adam", "SGD"])
def test_clip_on_step_takes_the_norm_of_the_unscaled_gradient(name):
    plain = fastrnn.LSTM(5, 7)
    ours = copy.deepcopy(plain)
    optimizers = [make_optimizer(name, m) for m in (plain, ours)]
    scalers = [torch.amp.GradScaler("cpu", init_scale=1024.0) for _ in range(2)]
    handle = fastrnn.clip_on_step(optimizers[1], 0.5)
    x = torch.randn(6, 3, 5)
    for _ in range(3):
        for model, optimizer, scaler in zip((plain, ours), optimizers, scalers, strict=True):
            optimizer.zero_grad()
            scaler.scale(model(x)[0].square().sum()).backward()
            if model is plain:
                scaler.unscale_(optimizer)
                expected = nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
            scaler.step(optimizer)
            scaler.update()
        torch.testing.assert_close(handle.norm, expected)
        for p, q in zip(plain.parameters(), ours.parameters(), strict=True):
            torch.testing.assert_close(q, p)


def test_removing_the_handle_leaves_no_trace():
    model = model_with_gradients()[1]
    optimizer = make_optimizer("SGD", model)
    before = {name: copy.copy(value) for name, value in vars(optimizer).items() if "hook" in name}
    handle = fastrnn.clip_on_step(optimizer, 0.5)
    optimizer.step()
    handle.remove()
    assert {name: value for name, value in vars(optimizer).items() if "hook" in name} == before
    assert not hasattr(optimizer, "grad_scale")


def test_a_scale_of_the_users_is_restored():
    model = model_with_gradients()[1]
    optimizer = make_optimizer("SGD", model)
    mine = torch.tensor(4.0)
    optimizer.grad_scale = mine
    fastrnn.clip_on_step(optimizer, 0.5)
    optimizer.step()
    assert optimizer.grad_scale is mine


def test_steps_that_cannot_be_clipped_are_refused_with_the_remedy():
    model = model_with_gradients()[1]
    optimizer = make_optimizer("Adam", model)
    fastrnn.clip_on_step(optimizer, 0.5)
    with pytest.raises(RuntimeError, match="closure"):
        optimizer.step(lambda: torch.zeros(()))
    optimizer.param_groups[0]["fused"] = False
    with pytest.raises(RuntimeError, match=r"fused=True in every group, but group 0 of Adam has fused=False"):
        optimizer.step()
    optimizer.param_groups[0]["fused"] = True
    optimizer.step()


@pytest.mark.parametrize(
    ("max_norm", "error"),
    [
        (0, ValueError),
        (-1.0, ValueError),
        (math.nan, ValueError),
        (True, TypeError),
        ("1", TypeError),
        (None, TypeError),
    ],
)
def test_bad_limits_are_refused_by_name(max_norm, error):
    optimizer = make_optimizer("SGD", fastrnn.LSTM(2, 3))
    with pytest.raises(error, match="max_norm should be"):
        fastrnn.clip_on_step(optimizer, max_norm)


def test_an_optimizer_without_a_fused_step_is_refused():
    with pytest.raises(TypeError, match="expects a fused Adam"):
        fastrnn.clip_on_step(torch.optim.RMSprop(fastrnn.LSTM(2, 3).parameters()), 1.0)
