"""Modules without derivatives on the CPU: one call of the engine (fastrnn/inference.py, csrc/ops/python.cpp) gives what the
autograd functions give, is taken where it should be, and nowhere else."""

import itertools
import threading
import time

import pytest
import torch
from compare import assert_bit_equal
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._python_dispatch import TorchDispatchMode

import fastrnn
from fastrnn import functions, inference, ops

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
    assert plain.calls == [("layer_forward", True), ("layer_backward", True)]


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
