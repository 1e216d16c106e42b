"""clip_on_step against clipping before the step: inside the fused optimizers, with and without a GradScaler."""

import copy
import gc
import math
import weakref

import pytest
import torch
from clipping import model_with_gradients
from torch import nn

import fastrnn

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


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
@pytest.mark.parametrize("unscaled_before", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_with_a_grad_scaler_the_norm_is_that_of_the_unscaled_gradient(name, unscaled_before, max_norm):
    plain = fastrnn.LSTM(5, 7)
    ours = copy.deepcopy(plain)
    optimizers = [make_optimizer(name, m) for m in (plain, ours)]
    scalers = [torch.amp.GradScaler("cpu", init_scale=1024.0) for _ in range(2)]
    handle = fastrnn.clip_on_step(optimizers[1], max_norm)
    x = torch.randn(6, 3, 5)
    for _ in range(3):
        for model, optimizer, scaler in zip((plain, ours), optimizers, scalers, strict=True):
            optimizer.zero_grad()
            scaler.scale(model(x)[0].square().sum()).backward()
            if model is plain or unscaled_before:
                scaler.unscale_(optimizer)
            if model is plain:
                expected = nn.utils.clip_grad_norm_(plain.parameters(), max_norm)
            scaler.step(optimizer)
            scaler.update()
        assert not hasattr(optimizers[1], "grad_scale")
        torch.testing.assert_close(handle.norm, expected)
        for p, q in zip(plain.parameters(), ours.parameters(), strict=True):
            torch.testing.assert_close(q, p)
            torch.testing.assert_close(q.grad, p.grad)


@pytest.mark.parametrize("fuses", [True, False])
def test_a_scaled_norm_beyond_float16_clips_as_the_unscaled_one(fuses, monkeypatch):
    if not fuses:
        monkeypatch.setattr("fastrnn.clip._can_fuse", lambda grads: False)
    model = fastrnn.GRU(8, 16).half()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    handle = fastrnn.clip_on_step(optimizer, max_norm=1e4)
    scaler = torch.amp.GradScaler("cpu", init_scale=2048.0)
    before = [p.detach().clone() for p in model.parameters()]
    scaler.scale(torch.zeros(()))  # creates the scale
    for p in model.parameters():
        p.grad = torch.full_like(p, 8192.0)  # 4 unscaled
    scaler.step(optimizer)
    torch.testing.assert_close(handle.norm, torch.tensor(4 * sum(p.numel() for p in before) ** 0.5))
    for p, old in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(p, old - 0.4, atol=1e-3, rtol=1e-3)


def test_a_step_that_the_scaler_leaves_out_changes_nothing():
    model = fastrnn.LSTM(5, 7)
    optimizer = make_optimizer("Adam", model)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    fastrnn.clip_on_step(optimizer, 0.5)
    scaler.scale(model(torch.randn(6, 3, 5))[0].sum()).backward()
    model.weight_ih_l0.grad[0, 0] = math.inf
    before = [p.detach().clone() for p in model.parameters()]
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 512.0
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_the_recipe_for_mixed_precision():
    """The docstring's loop: both clips see the gradient that training without a loss scale has."""
    runs = []
    for scaled in (False, True):
        torch.manual_seed(0)
        rnn = fastrnn.LSTM(5, 7, state_grad_clip=1e-3, record_state_grad_norms=True)
        optimizer = make_optimizer("AdamW", rnn)
        handle = fastrnn.clip_on_step(optimizer, 0.005)
        scaler = torch.amp.GradScaler("cpu", init_scale=4096.0, enabled=scaled)
        for _ in range(3):
            x = torch.randn(6, 3, 5)
            optimizer.zero_grad()
            rnn.grad_scale = scaler.scale(torch.ones((), device=x.device))
            with torch.autocast("cpu", torch.bfloat16):
                loss = rnn(x)[0].float().square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        assert rnn.state_grad_clipped.any()
        assert not rnn.state_grad_clipped.all()
        assert handle.norm > 0.005
        runs.append([handle.norm, rnn.state_grad_norms, *rnn.parameters()])
    for ours, plain in zip(runs[1], runs[0], strict=True):
        torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_nonfinite_gradients_do_what_clip_then_step_does(value):
    plain = fastrnn.LSTM(5, 7)
    ours = copy.deepcopy(plain)
    optimizers = [make_optimizer("SGD", m) for m in (plain, ours)]
    handle = fastrnn.clip_on_step(optimizers[1], 0.5)
    same_gradients((plain, ours), 0)
    for model in (plain, ours):
        model.weight_ih_l0.grad[0, 0] = value
    nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
    for optimizer in optimizers:
        optimizer.step()
    assert not handle.norm.isfinite()
    for p, q in zip(plain.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(q, p, equal_nan=True)
        torch.testing.assert_close(q.grad, p.grad, equal_nan=True)


def test_several_groups_none_gradients_and_no_gradient_at_all():
    plain = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    ours = copy.deepcopy(plain)
    optimizers = [
        torch.optim.SGD([{"params": m[0].parameters(), "lr": 0.1}, {"params": m[1].parameters()}], lr=0.01, fused=True)
        for m in (plain, ours)
    ]
    handle = fastrnn.clip_on_step(optimizers[1], 0.5)
    optimizers[1].step()
    assert handle.norm is None
    same_gradients((plain, ours), 0)
    for model in (plain, ours):
        model[0].bias.grad = None
    nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
    for optimizer in optimizers:
        optimizer.step()
    assert ours[0].bias.grad is None
    for p, q in zip(plain.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(q, p)


def test_trusted_sums_serve_the_step():
    plain = fastrnn.GRU(5, 7)
    ours = copy.deepcopy(plain)
    optimizers = [make_optimizer("SGD", m) for m in (plain, ours)]
    fastrnn.clip_on_step(optimizers[1], 0.5, trust_backward=True)
    for step in range(3):
        x = torch.randn(6, 3, 5)
        for model, optimizer in zip((plain, ours), optimizers, strict=True):
            if step != 1:  # the second backward adds to the gradient that the step has clipped
                optimizer.zero_grad()
            model(x)[0].square().sum().backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        for optimizer in optimizers:
            optimizer.step()
        for p, q in zip(plain.parameters(), ours.parameters(), strict=True):
            torch.testing.assert_close(q, p)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_removing_the_handle_leaves_no_trace(name):
    model = model_with_gradients()[1]
    optimizer = make_optimizer(name, model)
    optimizer.step()  # torch's own first checks leave theirs
    before = {name: copy.copy(value) for name, value in vars(optimizer).items()}
    del before["state"]
    handle = fastrnn.clip_on_step(optimizer, 0.5)
    optimizer.step()
    handle.remove()
    after = dict(vars(optimizer))
    del after["state"]
    assert after == before
    # the next step does not clip: these gradients are far above the limit
    same_gradients([model], 1)
    grads = [p.grad.clone() for p in model.parameters()]
    optimizer.step()
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
    fastrnn.clip_on_step(optimizer, 0.5)  # and it can be clipped again


def test_a_second_clip_of_one_optimizer_is_refused():
    optimizer = make_optimizer("SGD", fastrnn.LSTM(2, 3))
    fastrnn.clip_on_step(optimizer, 0.5)
    with pytest.raises(RuntimeError, match="already clips this optimizer's step; remove"):
        fastrnn.clip_on_step(optimizer, 1.0)


def test_clipping_does_not_keep_an_optimizer_alive():
    optimizer = make_optimizer("SGD", model_with_gradients()[1])
    fastrnn.clip_on_step(optimizer, 0.5)
    optimizer.step()
    alive = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert alive() is None


def test_a_scale_of_the_users_is_restored():
    model = model_with_gradients()[1]
    optimizer = make_optimizer("SGD", model)
    mine = torch.tensor(4.0)
    optimizer.grad_scale = mine
    fastrnn.clip_on_step(optimizer, 0.5)
    optimizer.step()
    assert optimizer.grad_scale is mine


def test_a_step_that_fails_leaves_nothing_for_the_next_one():
    model = model_with_gradients()[1]
    optimizer = make_optimizer("SGD", model)

    def fail(*_):
        raise ValueError("not today")

    fastrnn.clip_on_step(optimizer, 0.5)
    failing = optimizer.register_step_pre_hook(fail)
    with pytest.raises(ValueError, match="not today"):
        optimizer.step()
    failing.remove()
    mine = torch.tensor(4.0)
    optimizer.grad_scale = mine  # as a GradScaler does before its step
    optimizer.step()
    assert optimizer.grad_scale is mine
    del optimizer.grad_scale
    optimizer.step()
    assert not hasattr(optimizer, "grad_scale")


def test_steps_with_a_closure_are_refused_with_the_remedy():
    optimizer = make_optimizer("Adam", model_with_gradients()[1])
    fastrnn.clip_on_step(optimizer, 0.5)

    def closure():
        raise AssertionError("called")

    with pytest.raises(RuntimeError, match="cannot clip a step with a closure.* then step\\(\\) without it"):
        optimizer.step(closure)
    with pytest.raises(RuntimeError, match="closure"):
        optimizer.step(closure=closure)
    optimizer.step()
    optimizer.step(closure=None)


def test_groups_that_are_not_fused_are_refused_at_each_step_with_the_remedy():
    model = model_with_gradients()
    groups = [{"params": part.parameters()} for part in model]
    optimizer = torch.optim.Adam(groups, fused=True)
    fastrnn.clip_on_step(optimizer, 0.5)
    optimizer.step()
    saved = torch.optim.Adam([{"params": part.parameters()} for part in model], fused=False).state_dict()
    optimizer.load_state_dict(saved)  # flips what was asked for above
    before = [p.detach().clone() for p in model.parameters()]
    for index in range(3):
        for _ in range(2):
            with pytest.raises(RuntimeError, match=f"group {index} of Adam has fused=False .*load_state_dict") as error:
                optimizer.step()
        remedy = f"optimizer.param_groups[{index}]['fused'] = True"
        assert remedy in str(error.value)
        exec(remedy)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    optimizer.step()
    assert not any(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


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
