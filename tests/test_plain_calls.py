"""The C functions behind the CPU's operators, called without torch's dispatcher (csrc/ops/python.h): what they refuse, and that training
takes them unless somebody looks."""

import pytest
import torch
from compare import assert_bit_equal
from small_modules import BATCH, INPUT, STEPS, Counting, make, states_of

from fastrnn import functions, inference, ops

pytestmark = pytest.mark.skipif(ops.plain is None, reason="the CPU kernels are not built, or torch gives no access")


def arguments_of(rnn, x):
    weights = [rnn._parameters[name] for name in rnn._flat_weights_names]
    h0, c0 = states_of(rnn)
    y = torch.full((STEPS, BATCH, 14), 5.0)
    return [2, 2, 2, x, weights, h0, c0, y, torch.full_like(h0, 5.0), torch.full_like(c0, 5.0)]


def test_the_engine_refuses_what_does_not_fit():
    rnn = make("LSTM", num_layers=2, bidirectional=True)
    run = inference._run
    x = torch.randn(STEPS, BATCH, INPUT)
    right = arguments_of(rnn, x)

    def refused(index, value):
        arguments = [*right[:index], value, *right[index + 1 :]]
        assert run(*arguments) is False, (index, value)

    for index in (3, 5, 6, 7, 8, 9):
        tensor = right[index]
        strided = torch.stack([tensor, tensor], -1)[..., 0]
        for value in (tensor.double(), tensor[:, :2].contiguous(), tensor[..., :3].contiguous(), tensor[0],
                      strided, tensor.to("meta"), tensor.to_sparse(), None, 3, "x", tensor.long()):  # fmt: skip
            if value is None and index in (5, 6):
                continue  # zeros
            refused(index, value)
    weights = right[4]
    for index, weight in enumerate(weights):
        for value in (weight.detach()[:-1].contiguous(), weight.detach().double(), weight.detach()[None], None,
                      weight.detach().expand(2, *weight.shape)[0].to("meta")):  # fmt: skip
            refused(4, [*weights[:index], value, *weights[index + 1 :]])
    refused(4, weights[:-1])
    refused(4, weights[:8])
    refused(4, [])
    for index in (1, 2):
        refused(index, 1)
        refused(index, 3)
        refused(index, 0)
        refused(index, -1)
    for cell in (-1, 0, 1, 3, 4, 2.0, "lstm", None):
        refused(0, cell)
    refused(4, tuple(weights))
    assert all(bool((t == 5.0).all()) for t in right[7:])  # nothing was written
    with pytest.raises(TypeError, match="expected 10 arguments, got 9"):
        run(*right[:-1])
    with pytest.raises(OverflowError):
        run(1 << 80, *right[1:])
    assert run(*right) is True


class Recording:
    """fastrnn.ops.plain, and what each call of it answered."""

    def __init__(self, functions):
        self.functions, self.calls = functions, []

    def __getattr__(self, name):
        def call(*arguments):
            answer = getattr(self.functions, name)(*arguments)
            self.calls.append((name, answer))
            return answer

        return call


@pytest.fixture
def plain(monkeypatch):
    recording = Recording(ops.plain)
    monkeypatch.setattr(ops, "plain", recording)
    return recording


def train(rnn, x):
    output = rnn(x)[0]
    return torch.autograd.grad(output.square().sum(), list(rnn.parameters()))


def test_training_passes_the_dispatcher_by(plain):
    rnn = make("LSTM", recurrent_dropout=0.5, state_grad_clip=1.0, record_state_grad_norms=True)
    train(rnn, torch.randn(STEPS, BATCH, INPUT))
    assert plain.calls == [("dropout_factors_", True), ("layer_forward", True), ("layer_backward", True)]


def test_who_watches_sees_both_operators_of_training(plain):
    rnn = make("GRU")
    x = torch.randn(STEPS, BATCH, INPUT)
    expected = train(rnn, x)
    plain.calls.clear()
    with Counting() as counting:
        assert_bit_equal(train(rnn, x), expected)
    with torch.profiler.profile() as profile:
        assert_bit_equal(train(rnn, x), expected)
    names = {event.key for event in profile.key_averages()}
    assert plain.calls == []
    for name in ("fastrnn::layer_forward", "fastrnn::layer_backward"):
        assert name in counting.names
        assert name in names


def test_a_layer_answers_false_or_with_the_operators_error(monkeypatch):
    calls = []

    class Catch:
        def layer_forward(self, *arguments):
            calls.append(arguments)
            return ops_plain.layer_forward(*arguments)

    ops_plain = ops.plain
    monkeypatch.setattr(ops, "plain", Catch())
    with torch.no_grad():
        functions.LSTMFunction.apply(
            functions.Options(backend="cpu", save=False), None, None, None, None, None, None,
            torch.randn(STEPS, BATCH, INPUT), *(state for state in states_of(make("LSTM"))), *make("LSTM").parameters(),
        )  # fmt: skip
    right = list(calls[0])
    operator = torch.ops.fastrnn.layer_forward.default

    class Subclass(torch.Tensor):
        pass

    x = right[2].detach()
    for index, value in [
        (0, 2.0), (2, x.as_subclass(Subclass)), (2, x.to("meta")), (2, x.to_sparse()), (3, tuple(right[3])), (3, [None]),
        (2, torch._neg_view(x)), (16, 0), (2, torch._efficientzerotensor(x.shape)),
    ]:  # fmt: skip
        assert ops_plain.layer_forward(*right[:index], value, *right[index + 1 :]) is False, (index, value)
    for index, value in [(2, x[:, :2].contiguous()), (2, x.double()), (0, 7), (3, []), (13, right[13][:-1])]:
        wrong = [*right[:index], value, *right[index + 1 :]]
        with pytest.raises(RuntimeError) as ours:
            ops_plain.layer_forward(*wrong)
        with torch.no_grad(), pytest.raises(RuntimeError) as theirs:
            operator(*wrong)
        assert str(ours.value) == str(theirs.value)
