"""Modules without derivatives on the CPU: one call of the engine (fastrnn/inference.py, csrc/ops/python.cpp) gives what the
autograd functions give, is taken where it should be, and nowhere else."""

import itertools
import threading

import pytest
import torch
from compare import assert_bit_equal
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._python_dispatch import TorchDispatchMode

import fastrnn
from fastrnn import inference

pytestmark = pytest.mark.skipif(
    inference._run is None, reason="the CPU kernels are not built, or torch gives no access"
)

STEPS, BATCH, INPUT = 6, 3, 5
KINDS = {"RNN": {}, "RELU": {"nonlinearity": "relu"}, "LSTM": {}, "GRU": {}}


def make(kind, **options):
    torch.manual_seed(0)
    name = "RNN" if kind == "RELU" else kind
    return getattr(fastrnn, name)(INPUT, 7, **KINDS[kind], **options)


def states_of(rnn, batch=BATCH):
    directions = 2 if rnn.bidirectional else 1
    width = rnn.proj_size or rnn.hidden_size
    dtype = next(rnn.parameters()).dtype
    h0 = torch.randn(rnn.num_layers * directions, batch, width, dtype=dtype)
    if rnn.mode != "LSTM":
        return h0
    return h0, torch.randn(rnn.num_layers * directions, batch, rnn.hidden_size, dtype=dtype)


@pytest.fixture
def taken(monkeypatch):
    """What the engine's entry answered, call by call."""
    answers = []

    def run(*arguments):
        answers.append(fastrnn_run(*arguments))
        return answers[-1]

    fastrnn_run = inference._run
    monkeypatch.setattr(inference, "_run", run)
    return answers


def by_functions(rnn, *arguments, **keywords):
    """The other way: gradients enabled, none wanted."""
    with torch.enable_grad():
        output = rnn(*arguments, **keywords)
    return torch.utils._pytree.tree_map(lambda tensor: tensor.detach(), output)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_the_functions(kind, dtype, taken):
    for num_layers, bidirectional, batch_first, bias, with_states, proj_size in itertools.product(
        (1, 2, 3), (False, True), (False, True), (True, False), (False, True), (0, 4) if kind == "LSTM" else (0,)
    ):
        rnn = make(
            kind, num_layers=num_layers, bidirectional=bidirectional, batch_first=batch_first, bias=bias, proj_size=proj_size
        )  # fmt: skip
        rnn.to(dtype)
        x = torch.randn((BATCH, STEPS, INPUT) if batch_first else (STEPS, BATCH, INPUT), dtype=dtype)
        hx = states_of(rnn) if with_states else None
        with torch.no_grad():
            ours = rnn(x, hx)
        assert taken == [True]
        theirs = by_functions(rnn, x, hx)
        assert taken == [True]
        assert_bit_equal(ours, theirs, str(rnn))
        assert type(ours[1]) is type(theirs[1])
        assert ours[0].stride() == theirs[0].stride()
        assert not ours[0].requires_grad
        taken.clear()


def test_a_hidden_size_of_many_vectors_and_more_threads(taken):
    rnn = fastrnn.LSTM(40, 150, 2, bidirectional=True)
    x = torch.randn(70, 9, 40)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with torch.no_grad():
                ours = rnn(x)
            assert_bit_equal(ours, by_functions(rnn, x))
    finally:
        torch.set_num_threads(before)
    assert taken == [True] * 3


def test_changed_weights_count_at_once(taken):
    rnn = make("GRU")
    x = torch.randn(STEPS, BATCH, INPUT)
    with torch.no_grad():
        before = rnn(x)[0]
        rnn.weight_hh_l0.mul_(2)
        assert_bit_equal(rnn(x), by_functions(rnn, x))
        assert not torch.equal(rnn(x)[0], before)
        rnn.weight_ih_l0 = torch.nn.Parameter(torch.zeros_like(rnn.weight_ih_l0))
        assert_bit_equal(rnn(x), by_functions(rnn, x))
    assert taken == [True] * 4


def test_outputs_are_new_and_own_their_memory(taken):
    rnn = make("LSTM")
    x = torch.randn(STEPS, BATCH, INPUT)
    with torch.no_grad():
        first, second = rnn(x), rnn(x)
    addresses = {t.untyped_storage().data_ptr() for t in (x, first[0], *first[1], second[0], *second[1])}
    assert len(addresses) == 7
    with torch.inference_mode():
        assert rnn(x)[0].is_inference()
    assert not first[0].is_inference()
    assert taken == [True] * 3


def test_dropout_in_training_goes_the_other_way(taken):
    x = torch.randn(STEPS, BATCH, INPUT)
    for options in ({"dropout": 0.5, "num_layers": 2}, {"recurrent_dropout": 0.5}, {"input_dropout": 0.5}):
        rnn = make("LSTM", **options)
        with torch.no_grad():
            assert not torch.equal(rnn(x)[0], rnn(x)[0])
            assert taken == []
            assert torch.equal(rnn.eval()(x)[0], rnn(x)[0])
            assert taken == [True, True]
            rnn.mc_dropout = True
            assert not torch.equal(rnn(x)[0], rnn(x)[0])
        assert taken == [True, True]
        taken.clear()


class Counting(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def test_who_watches_operators_sees_them(taken):
    rnn = make("GRU")
    x = torch.randn(STEPS, BATCH, INPUT)
    with torch.no_grad():
        with Counting() as counting:
            rnn(x)
        assert "fastrnn::layer_forward" in counting.names
        with torch.profiler.profile() as profile:
            rnn(x)
        assert "fastrnn::layer_forward" in {event.key for event in profile.key_averages()}
        with torch.device("cpu"):  # a mode of torch functions
            rnn(x)
    assert taken == []


def test_transforms_and_autocast_go_the_other_way(taken):
    rnn = make("GRU")
    x = torch.randn(4, STEPS, BATCH, INPUT)
    with torch.no_grad():
        with pytest.raises(RuntimeError, match="does not have vmap support"):
            torch.vmap(lambda one: rnn(one)[0])(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert rnn(x[0])[0].dtype == torch.bfloat16
        traced = torch.jit.trace(rnn, (x[0],), check_trace=False)
        assert "layer_forward" in str(traced.inlined_graph)
        with torch.autograd.forward_ad.dual_level():
            rnn(x[0])
    assert taken == []


def test_other_layouts_and_backends_go_the_other_way(taken, monkeypatch):
    rnn = make("LSTM")
    x = torch.randn(STEPS, BATCH, INPUT)
    with torch.no_grad():
        rnn(x, lengths=[6, 2, 3])
        rnn(pack_padded_sequence(x, [6, 3, 2]))
        with fastrnn.backend("reference"):
            rnn(x)
        rnn(torch.nn.Parameter(x))
        rnn(torch._neg_view(x))
        rnn(x[:, 0])
        assert taken == []
        hx = tuple(
            state.transpose(0, 1).contiguous().transpose(0, 1) for state in states_of(make("LSTM", num_layers=2))
        )
        assert not hx[0].is_contiguous()
        two = make("LSTM", num_layers=2)
        assert_bit_equal(two(x, hx), by_functions(two, x, hx))
        monkeypatch.setenv("FASTRNN_PLANS", "nonsense")
        with pytest.raises(ValueError, match="FASTRNN_PLANS"):
            rnn(x)
    assert taken == [False, False]


def test_a_strided_input_is_run_as_it_is(taken):
    rnn = make("GRU")
    x = torch.randn(STEPS, INPUT, BATCH).transpose(1, 2)
    with torch.no_grad():
        assert_bit_equal(rnn(x), by_functions(rnn, x))


def test_parametrised_weights_act(taken):
    rnn = parametrizations.weight_norm(make("GRU"), "weight_hh_l0")
    x = torch.randn(STEPS, BATCH, INPUT)
    with torch.no_grad():
        assert_bit_equal(rnn(x), by_functions(rnn, x))
        called = torch.func.functional_call(rnn, {"bias_hh_l0": torch.ones(21)}, (x,))
        assert not torch.equal(called[0], rnn(x)[0])
    assert True not in taken
    plain = make("GRU")
    with torch.no_grad():
        called = torch.func.functional_call(plain, {"bias_hh_l0": torch.ones(21)}, (x,))
        plain.bias_hh_l0.fill_(1.0)
        assert_bit_equal(called, plain(x))


def test_held_masks_go_the_other_way(taken):
    rnn = make("LSTM", recurrent_dropout=0.5).eval()
    with torch.no_grad(), rnn.hold_masks():
        rnn(torch.randn(STEPS, 3, INPUT))
        with pytest.raises(RuntimeError, match="holds masks for a batch of 3"):
            rnn(torch.randn(STEPS, 4, INPUT))
    assert taken == []


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_errors_are_those_of_the_other_way(kind):
    rnn = make(kind, num_layers=2)
    x = torch.randn(STEPS, BATCH, INPUT)
    hx = states_of(rnn)
    h0 = hx[0] if kind == "LSTM" else hx

    def as_hx(state):
        return (state, hx[1]) if kind == "LSTM" else state

    wrong = [
        (torch.randn(STEPS, BATCH, INPUT + 1),),
        (x.double(),),
        (x[:0],),
        (x[0, 0],),
        (x.long(),),
        (x.to("meta"),),
        ([1.0],),
        (x, as_hx(h0[:1])),
        (x, as_hx(h0[:, :2])),
        (x, as_hx(h0[..., :3])),
        (x, as_hx(h0.double())),
        (x, as_hx(h0[0])),
        (x, as_hx(None)) if kind == "LSTM" else (x, (h0, h0)),
        (x, h0 if kind == "LSTM" else [h0]),
    ]
    for arguments in wrong:
        with pytest.raises(Exception) as theirs, torch.enable_grad():  # noqa: PT011
            rnn(*arguments)
        with pytest.raises(type(theirs.value)) as ours, torch.no_grad():
            rnn(*arguments)
        assert str(ours.value) == str(theirs.value)


def test_an_empty_batch_goes_the_other_way(taken):
    rnn = make("LSTM")
    with torch.no_grad():
        output, (h_n, c_n) = rnn(torch.randn(STEPS, 0, INPUT))
    assert (output.shape, h_n.shape, c_n.shape) == ((STEPS, 0, 7), (1, 0, 7), (1, 0, 7))
    assert taken == [False]


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
    for cell in (-1, 0, 1, 3, 4):
        refused(0, cell)
    assert all(bool((t == 5.0).all()) for t in right[7:])  # nothing was written
    with pytest.raises(TypeError):
        run(*right[:-1])
    with pytest.raises(TypeError):
        run("lstm", *right[1:])
    assert run(*right) is True


def test_threads_of_python_run_at_the_same_time():
    rnn = make("LSTM", num_layers=2)
    inputs = [torch.randn(STEPS, BATCH, INPUT) for _ in range(4)]
    expected = [by_functions(rnn, x) for x in inputs]
    failures = []

    def work(x, right):
        with torch.no_grad():
            for _ in range(50):
                if not torch.equal(rnn(x)[0], right[0]):
                    failures.append(x)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(inputs, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
