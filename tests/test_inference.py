"""Modules without derivatives on the CPU: one call of the engine (fastrnn/inference.py, csrc/ops/python.cpp) gives what the
autograd functions give, is taken where it should be, and nowhere else."""

import itertools
import threading
import time

import pytest
import torch
from compare import assert_bit_equal
from small_modules import BATCH, INPUT, KINDS, STEPS, Counting, make, states_of
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn
from fastrnn import inference

pytestmark = pytest.mark.skipif(
    inference._run is None, reason="the CPU kernels are not built, or torch gives no access"
)


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
        rnn(x[:, 0])
        assert taken == []
        monkeypatch.setenv("FASTRNN_PLANS", "nonsense")
        with pytest.raises(ValueError, match="FASTRNN_PLANS"):
            rnn(x)
    assert taken == [False]


def test_nothing_is_allocated_for_a_tensor_elsewhere(taken, monkeypatch):
    def allocates(*arguments, **keywords):
        raise AssertionError

    rnn = make("LSTM", batch_first=True).to("meta")
    monkeypatch.setattr(torch.Tensor, "new_empty", allocates)
    with torch.no_grad():
        assert inference.run(rnn, torch.randn(BATCH, STEPS, INPUT, device="meta"), None) is None
    assert taken == []


def test_strided_inputs_and_a_learned_state_run_in_the_engine(taken):
    rnn = make("LSTM", num_layers=2)
    x = torch.randn(STEPS, INPUT, BATCH).transpose(1, 2)
    hx = tuple(state.transpose(0, 1).contiguous().transpose(0, 1) for state in states_of(rnn))
    learned = tuple(map(torch.nn.Parameter, states_of(rnn)))
    assert not x.is_contiguous()
    assert not hx[0].is_contiguous()
    with torch.no_grad():
        for states in (None, hx, learned):
            assert_bit_equal(rnn(x, states), by_functions(rnn, x, states))
    assert taken == [True] * 3


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_lazy_negatives_count_as_what_they_are(kind):
    rnn = make(kind)
    x, grad = torch.randn(STEPS, BATCH, INPUT), torch.randn(STEPS, BATCH, 7)
    hx = states_of(rnn)
    negative = torch._neg_view
    states = tuple(map(negative, hx)) if kind == "LSTM" else negative(hx)
    minus_states = tuple(-state for state in hx) if kind == "LSTM" else -hx
    with torch.no_grad():
        assert_bit_equal(rnn(negative(x), states), rnn(-x, minus_states))
    for incoming, exact in ((negative(grad), -grad), (grad, grad)):
        ours = torch.autograd.grad(rnn(negative(x), states)[0], rnn.parameters(), incoming)
        assert_bit_equal(ours, torch.autograd.grad(rnn(-x, minus_states)[0], rnn.parameters(), exact))
    weight = rnn.weight_hh_l0.detach().clone()
    rnn.weight_hh_l0 = torch.nn.Parameter(negative(weight))
    with torch.no_grad():
        ours, with_gradients = rnn(x), by_functions(rnn, x)
    rnn.weight_hh_l0 = torch.nn.Parameter(-weight)
    assert_bit_equal(ours, by_functions(rnn, x))
    assert_bit_equal(with_gradients, by_functions(rnn, x))
    one = fastrnn.GRU(1, 1)
    imaginary = torch.randn(1, 1, 1, dtype=torch.complex64).conj().imag
    assert imaginary.is_neg()
    assert imaginary.is_contiguous()
    with torch.no_grad():
        assert_bit_equal(one(imaginary), one(imaginary.resolve_neg()))


def test_weights_without_memory_or_elsewhere_are_errors():
    x = torch.randn(STEPS, BATCH, INPUT)
    rnn = make("GRU")
    rnn.weight_hh_l0.data.untyped_storage().resize_(0)
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients), pytest.raises(RuntimeError, match=r"w_hh\[0\] has no memory"):
            rnn(x)
    rnn = make("GRU")
    rnn._parameters["weight_hh_l0"] = torch.nn.Parameter(rnn.weight_hh_l0.to("meta"))
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients), pytest.raises(RuntimeError, match=r"tensor of \[21, 7\] is on meta"):
            rnn(x)


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


def test_several_threads_of_python_get_their_own_results():
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


def test_other_threads_of_python_go_on_meanwhile(taken):
    rnn = fastrnn.LSTM(256, 512)
    x = torch.randn(100, 64, 256)
    moments, stop = [], threading.Event()

    def work():
        while not stop.is_set():
            moments.append(time.perf_counter())
            time.sleep(0.001)

    thread = threading.Thread(target=work)
    thread.start()
    start = time.perf_counter()
    with torch.no_grad():
        rnn(x)
    end = time.perf_counter()
    stop.set()
    thread.join()
    within = [moment for moment in moments if start + 0.25 * (end - start) < moment < end - 0.25 * (end - start)]
    assert taken == [True]
    assert within
