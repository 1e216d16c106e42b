"""The sums of squares that backward takes of its gradients: when a clip may use them, and when not."""

import pytest
import torch
from clipping import assert_clips_as_torch, train_step
from torch import nn

import fastrnn
from fastrnn import _library, gradient_sums

pytestmark = pytest.mark.skipif(not _library.is_loaded("cpu"), reason="the CPU kernels take the sums")

MODULES = {
    "RNN": lambda: fastrnn.RNN(5, 7, 2, bidirectional=True),
    "LSTM": lambda: fastrnn.LSTM(5, 14, 2, bias=False),
    "LSTM projected": lambda: fastrnn.LSTM(5, 20, 2, proj_size=7, bidirectional=True),
    "GRU": lambda: fastrnn.GRU(5, 7, 2, bidirectional=True),
    "large GRU": lambda: fastrnn.GRU(5, 70, 2),
}


def model_of(rnn):
    """A model whose next backward takes sums: a clip that trusts has been seen."""
    width = (rnn.proj_size or rnn.hidden_size) * (2 if rnn.bidirectional else 1)
    model = nn.Sequential(nn.Embedding(11, 5), rnn, nn.Linear(width, 3))
    train_step(model)
    fastrnn.clip_grad_norm_(model.parameters(), 1e9, trust_backward=True)
    model.zero_grad(set_to_none=True)
    return model


@pytest.fixture
def model():
    return model_of(MODULES["GRU"]())


def grads_of(model):
    return [p.grad for p in model.parameters()]


@pytest.mark.parametrize("name", MODULES)
def test_backward_knows_the_sum_of_each_gradient_it_made(name):
    model = model_of(MODULES[name]())
    train_step(model)
    assert_clips_as_torch(model, 0.5, trust_backward=True)
    model.zero_grad()
    rnn = model[1]
    _, final = rnn(torch.randn(6, 4, 5))
    start = tuple(torch.randn_like(s) for s in final) if isinstance(final, tuple) else torch.randn_like(final)
    model[2](rnn(torch.randn(6, 4, 5), start)[0]).sum().backward()  # from states that are not 0
    for parameter in rnn.parameters():
        (total,), _ = gradient_sums.split([parameter.grad])
        torch.testing.assert_close(total.squeeze(), parameter.grad.double().square().sum(), rtol=1e-12, atol=0)
    assert not gradient_sums.split([model[2].weight.grad])[0]
    assert_clips_as_torch(model, 0.5, trust_backward=True)


@pytest.mark.parametrize("name", MODULES)
def test_every_backend_with_kernels_takes_the_sums(fused_backend, device, name):
    gradient_sums.want()
    rnn = MODULES[name]().to(device)
    y, _ = rnn(torch.randn(6, 4, 5, device=device))
    y.square().sum().backward()
    for parameter in rnn.parameters():
        (total,), _ = gradient_sums.split([parameter.grad])
        torch.testing.assert_close(total.squeeze(), parameter.grad.double().square().sum(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_sum_is_that_of_the_stored_gradient_in_each_dtype(dtype):
    model = model_of(MODULES["LSTM projected"]().to(torch.float32)).to(dtype)
    train_step(model)
    for parameter in model[1].parameters():
        (total,), _ = gradient_sums.split([parameter.grad])
        torch.testing.assert_close(total.squeeze(), parameter.grad.double().square().sum(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_sum_is_right_over_the_whole_range_of_float32(model, scale):
    y, _ = model[1](torch.randn(6, 4, 5))
    (y.sum() * scale).backward()
    grads = [p.grad for p in model[1].parameters()]
    known, unknown = gradient_sums.split(grads)
    assert not unknown
    exact = torch.stack([grad.double().square().sum() for grad in grads])
    assert exact.isfinite().all()
    assert exact.gt(0).all()
    torch.testing.assert_close(torch.cat(known), exact, rtol=1e-12, atol=0)


def test_nothing_is_taken_before_a_clip_that_trusts(monkeypatch):
    monkeypatch.setattr(gradient_sums, "_wanted", False)
    model = nn.Sequential(nn.Embedding(11, 5), MODULES["GRU"](), nn.Linear(14, 3))
    train_step(model)
    fastrnn.clip_grad_norm_(model.parameters(), 1e9)
    model.zero_grad()
    train_step(model)
    assert not gradient_sums.split(grads_of(model))[0]


def test_taking_sums_changes_no_bit_of_a_gradient(monkeypatch):
    grads = []
    for wanted in (False, True):
        monkeypatch.setattr(gradient_sums, "_wanted", wanted)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(11, 5), fastrnn.LSTM(5, 40, 2), nn.Linear(40, 3))
        train_step(model)
        grads.append(grads_of(model))
    torch.testing.assert_close(grads[1], grads[0], rtol=0, atol=0)


def test_sums_do_not_keep_gradients_alive_and_do_not_pile_up(model):
    for _ in range(25):
        train_step(model)
        model.zero_grad(set_to_none=True)
    assert len(gradient_sums._entries) < 300


# ------------------------------------------------------------------------------- changes that autograd's books show


def accumulate(model):
    train_step(model, seed=1)


def edit_in_place(model):
    for parameter in model.parameters():
        parameter.grad.mul_(3.0)


def edit_a_view(model):
    for parameter in model.parameters():
        parameter.grad.view(-1)[0] = 5.0


def replace(model):
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)


def transpose(model):
    weight = model[1].weight_hh_l0
    other = nn.Parameter(torch.empty(weight.shape[::-1]))
    other.grad = weight.grad.t()
    model[1].register_parameter("weight_hh_l0", None)
    model.register_parameter("other", other)


def drop(model):
    for parameter in list(model.parameters())[::2]:
        parameter.grad = None


def clip_before(model):
    fastrnn.clip_grad_norm_(model.parameters(), 0.7, trust_backward=True)


def step_that_clips(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, fused=True)
    handle = fastrnn.clip_on_step(optimizer, 0.7, trust_backward=True)
    optimizer.step()
    handle.remove()


def reuse_the_memory(model):
    for parameter in model.parameters():
        shape = parameter.shape
        parameter.grad = None
        parameter.grad = torch.full(shape, 2.0)


@pytest.mark.parametrize(
    "change",
    [
        accumulate,
        edit_in_place,
        edit_a_view,
        replace,
        transpose,
        drop,
        clip_before,
        step_that_clips,
        reuse_the_memory,
    ],
)
def test_trust_ends_where_the_gradient_changes_with_a_trace(model, change):
    train_step(model)
    change(model)
    assert_clips_as_torch(model, 0.5, trust_backward=True)


# ------------------------------------------------------------------------------------ changes that leave no trace


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


def step_with_a_scale(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, fused=True)
    optimizer.grad_scale = torch.tensor(4.0)
    optimizer.step()


@pytest.mark.parametrize("change", [change_through_data, change_through_numpy, unscale, step_with_a_scale])
def test_without_trust_changes_that_leave_no_trace_are_seen(model, change):
    """tests/test_distributed.py has dist.all_reduce."""
    train_step(model)
    before = torch.cat([grad.flatten() for grad in grads_of(model)])
    change(model)
    assert not torch.equal(torch.cat([grad.flatten() for grad in grads_of(model)]), before)
    assert gradient_sums.split(grads_of(model))[0], "the change left a trace, so this test shows nothing"
    assert_clips_as_torch(model, 0.5)
