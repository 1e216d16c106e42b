"""Ragged batches: every sample computes what it computes alone, and nothing of the padding is ever read."""

import itertools
import math

import pytest
import torch
from cases import KINDS, make_module
from compare import assert_bit_equal, assert_equal_to_rounding, gradients, weights_like
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

from fastrnn import batches

STEPS, BATCH = 5, 4
LENGTHS = {
    "unsorted": [2, 5, 3, 1],
    "zeros": [0, 4, 0, 2],
    "all-zero": [0, 0, 0, 0],
    "full": [5, 5, 5, 5],
    "ties": [3, 1, 3, 3],
}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_lengths = pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)


@pytest.fixture(params=["from_host", "on_device"])
def route(request, monkeypatch):
    """Lengths known on the host are packed; lengths on a GPU, and all under torch.compile, go to the kernels as they are."""
    if request.param == "on_device":
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        monkeypatch.setattr(batches, "from_host_lengths", None)  # not to be called
    return request.param


def initial(rnn: nn.Module, batch: int = BATCH, seed: int = 3):
    first = rnn.num_layers * (2 if rnn.bidirectional else 1)
    like = rnn.weight_ih_l0
    h0 = weights_like(like.new_empty(first, batch, rnn.proj_size or rnn.hidden_size), seed)
    return (h0, weights_like(like.new_empty(first, batch, rnn.hidden_size), seed + 1)) if rnn.mode == "LSTM" else h0


def flat(output) -> list[torch.Tensor]:
    y, final = output
    return [y, *(final if isinstance(final, tuple) else (final,))]


def one_by_one(rnn: nn.Module, x: torch.Tensor, hx, lengths) -> list[torch.Tensor]:
    """Each sample alone, without padding, by torch.nn; a sample without steps keeps its state."""
    theirs = getattr(nn, type(rnn).__name__)(
        rnn.input_size, rnn.hidden_size, rnn.num_layers, bidirectional=rnn.bidirectional, dtype=x.dtype,
        device=x.device, **({"proj_size": rnn.proj_size} if rnn.proj_size else {}),
    )  # fmt: skip
    parameters = dict(rnn.named_parameters())
    outputs, finals = [], []
    for b, length in enumerate(lengths):
        state = tuple(s[:, b : b + 1] for s in hx) if isinstance(hx, tuple) else hx[:, b : b + 1]
        y = x.new_zeros(0, 1, (2 if rnn.bidirectional else 1) * (rnn.proj_size or rnn.hidden_size))
        if length > 0:
            y, state = torch.func.functional_call(theirs, parameters, (x[:length, b : b + 1], state))
        outputs.append(nn.functional.pad(y, (0, 0, 0, 0, 0, x.size(0) - length)))
        finals.append(state if isinstance(state, tuple) else (state,))
    return [torch.cat(outputs, 1), *(torch.cat(parts, 1) for parts in zip(*finals, strict=True))]


def require_grad(x, hx):
    states = hx if isinstance(hx, tuple) else (hx,)
    return [x.requires_grad_(), *(state.requires_grad_() for state in states)]


@every_lengths
@every_kind
def test_each_sample_computes_what_it_computes_alone(backend, device, kind, lengths, route):
    rnn = make_module(kind, device)
    x, hx = torch.randn(STEPS, BATCH, 3, dtype=torch.float64, device=device), initial(rnn)
    leaves = [*require_grad(x, hx), *rnn.parameters()]
    outputs = flat(rnn(x, hx, lengths=torch.tensor(lengths, device=device)))
    expected = one_by_one(rnn, x, hx, lengths)
    assert_equal_to_rounding(outputs, expected)
    assert_equal_to_rounding(gradients(outputs, leaves), gradients(expected, leaves))


def test_projections_have_lengths_too(backend, device, route):
    rnn = make_module("LSTM", device, proj_size=2)
    x, hx = torch.randn(STEPS, BATCH, 3, dtype=torch.float64, device=device), initial(rnn)
    outputs, expected = flat(rnn(x, hx, lengths=[2, 5, 0, 1])), one_by_one(rnn, x, hx, [2, 5, 0, 1])
    assert_equal_to_rounding(outputs, expected)
    parameters = list(rnn.parameters())
    assert_equal_to_rounding(gradients(outputs, parameters), gradients(expected, parameters))


@pytest.mark.parametrize("lengths", [[5, 3, 3, 1], [2, 5, 1, 4]], ids=["sorted", "unsorted"])
@every_kind
def test_packed_sequences_equal_torch_nn(backend, device, kind, lengths):
    rnn = make_module(kind, device)
    theirs = rnn.to_torch()
    x, hx = torch.randn(STEPS, BATCH, 3, dtype=torch.float64, device=device), initial(rnn)
    leaves = [*require_grad(x, hx), *rnn.parameters()]
    packed = pack_padded_sequence(x, lengths, enforce_sorted=lengths == sorted(lengths, reverse=True))
    for state in (hx, None):
        output, expected = flat(rnn(packed, state)), flat(theirs(packed, state))
        assert isinstance(output[0], PackedSequence)
        assert_bit_equal(output[0][1:], expected[0][1:])
        outputs, expected = [output[0].data, *output[1:]], [expected[0].data, *expected[1:]]
        assert_equal_to_rounding(outputs, expected)
        assert_equal_to_rounding(
            gradients(outputs, leaves, retain_graph=True), gradients(expected, leaves, retain_graph=True)
        )


@every_kind
def test_lengths_and_packed_sequences_agree_to_the_bit(backend, device, kind):
    rnn = make_module(kind, device, dtype=torch.float32)
    x = torch.randn(STEPS, BATCH, 3, device=device)
    y, final = rnn(x, lengths=[2, 5, 1, 4])
    packed, packed_final = rnn(pack_padded_sequence(x, [2, 5, 1, 4], enforce_sorted=False))
    assert_bit_equal([y, final], [pad_packed_sequence(packed)[0], packed_final])


@every_kind
def test_both_routes_agree_with_every_option(backend, device, kind, monkeypatch):
    """Dropout, clipping and recording included: host lengths, and lengths that only the device knows."""
    rnn = make_module(
        kind, device, recurrent_dropout=0.4, input_dropout=0.3, state_grad_clip=0.05, record_state_grad_norms=True
    )
    x, hx = torch.randn(STEPS, BATCH, 3, dtype=torch.float64, device=device), initial(rnn)
    results = []
    with rnn.hold_masks():
        for compiling in (False, True):
            monkeypatch.setattr(torch.compiler, "is_compiling", lambda value=compiling: value)
            outputs = flat(rnn(x, hx, lengths=torch.tensor([2, 5, 0, 4], device=device)))
            grads = gradients(outputs, list(rnn.parameters()))
            results.append([*outputs, *grads, rnn.state_grad_norms, rnn.state_grad_clipped])
    assert_equal_to_rounding(results[1], results[0])
    assert results[0][-1].any()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@every_kind
def test_nothing_of_the_padding_reaches_an_output_or_a_gradient(backend, device, kind, bad, route):
    rnn = make_module(kind, device, recurrent_dropout=0.3, state_grad_clip=0.5, record_state_grad_norms=True)
    lengths = [2, 5, 0, 4]
    live = torch.arange(STEPS)[:, None] < torch.tensor(lengths)
    live = live[..., None].to(device)
    clean = torch.randn(STEPS, BATCH, 3, dtype=torch.float64, device=device)
    results = []
    with rnn.hold_masks():
        for padding in (0.0, bad):
            x = torch.where(live, clean, padding).requires_grad_()
            y, final = rnn(x, lengths=lengths)
            finals = final if isinstance(final, tuple) else (final,)
            # what comes back for the padding of y is as wild as what went in
            incoming = torch.where(live, weights_like(y, 1), padding)
            grads = torch.autograd.grad([y, *finals], [x, *rnn.parameters()], [incoming, *finals])
            results.append([y, *finals, *grads, rnn.state_grad_norms, rnn.state_grad_clipped])
    assert_bit_equal(results[1], results[0])
    y, grad_x = results[1][0], results[1][3 if kind == "LSTM" else 2]
    assert all(result.isfinite().all() for result in results[1])
    for padded in (y, grad_x):
        assert torch.where(live, 0.0, padded).eq(0).all()


@every_kind
def test_batch_first(backend, device, kind, route):
    rnn = make_module(kind, device)
    first = make_module(kind, device, batch_first=True)
    first.load_state_dict(rnn.state_dict())
    x = torch.randn(STEPS, BATCH, 3, dtype=torch.float64, device=device)
    expected, final = rnn(x, lengths=[2, 5, 0, 4])
    y, first_final = first(x.transpose(0, 1), lengths=[2, 5, 0, 4])
    assert y.shape == (BATCH, STEPS, 8)
    assert_equal_to_rounding([y.transpose(0, 1), first_final], [expected, final])
    assert_equal_to_rounding(
        gradients(y.transpose(0, 1), list(first.parameters())), gradients(expected, list(rnn.parameters()))
    )


@pytest.mark.parametrize("order", itertools.islice(itertools.permutations([0, 2, 3, 5]), 0, 24, 5), ids=str)
def test_the_order_of_the_samples_does_not_matter(backend, device, order):
    rnn = make_module("GRU", device)
    x = torch.randn(STEPS, BATCH, 3, dtype=torch.float64, device=device)
    expected = rnn(x, lengths=[0, 2, 3, 5])
    places = [[0, 2, 3, 5].index(length) for length in order]
    y, h_n = rnn(x[:, places], lengths=list(order))
    assert_equal_to_rounding([y, h_n], [expected[0][:, places], expected[1][:, places]])


def test_lengths_may_be_a_list_a_tuple_or_a_tensor_of_any_integer_type(backend, device):
    rnn = make_module("LSTM", device)
    x = torch.randn(STEPS, BATCH, 3, dtype=torch.float64, device=device)
    values = [2, 5, 0, 4]
    expected = rnn(x, lengths=values)
    kinds = [torch.tensor(values, dtype=dtype) for dtype in (torch.int64, torch.int32, torch.int16, torch.uint8)]
    for lengths in (
        *kinds,
        tuple(values),
        range(2, 6),
        torch.tensor(values).numpy(),
        [torch.tensor(v) for v in values],
    ):
        result = rnn(x, lengths=lengths)
        assert_bit_equal(result, rnn(x, lengths=[2, 3, 4, 5]) if isinstance(lengths, range) else expected)


@every_kind
def test_full_lengths_change_no_bit(backend, device, kind):
    rnn = make_module(kind, device, dtype=torch.float32)
    x = torch.randn(STEPS, BATCH, 3, device=device)
    outputs, expected = flat(rnn(x, lengths=[STEPS] * BATCH)), flat(rnn(x))
    assert_bit_equal(outputs, expected)
    parameters = list(rnn.parameters())
    assert_bit_equal(gradients(outputs, parameters), gradients(expected, parameters))


def test_lengths_in_double_backward(backend, device, route):
    rnn = make_module("LSTM", device)
    x, hx = torch.randn(STEPS, BATCH, 3, dtype=torch.float64, device=device), initial(rnn)
    leaves = [*require_grad(x, hx), *rnn.parameters()]
    second = []
    for outputs in (flat(rnn(x, hx, lengths=[2, 5, 0, 1])), one_by_one(rnn, x, hx, [2, 5, 0, 1])):
        first = gradients(outputs, leaves, create_graph=True)
        second.append(gradients(sum((g * weights_like(g, i)).sum() for i, g in enumerate(first)), leaves))
    assert_equal_to_rounding(*second, factor=10)


# ------------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        ([2, 6, 1, 1], ValueError, r"lengths\[1\] is 6 but the sequence has 5 steps"),
        ([2, 5, -1, 1], ValueError, r"lengths\[2\] is -1, but a length cannot be negative"),
        (torch.tensor([2, 5, 1, 7]), ValueError, r"lengths\[3\] is 7 but the sequence has 5 steps"),
        ([2, 5, 1], ValueError, r"lengths.*expected 4, got 3"),
        (torch.tensor([[2, 5, 1, 1]]), ValueError, r"lengths.*one dimension.*\(1, 4\)"),
        (torch.tensor([2.0, 5.0, 1.0, 1.0]), TypeError, r"lengths.*integers.*float32"),
        (torch.tensor([True, False, True, True]), TypeError, r"lengths.*integers.*bool"),
        ([2, 5.0, 1, 1], TypeError, r"lengths\[1\].*int.*5\.0 \(float\)"),
        ([2, 5, True, 1], TypeError, r"lengths\[2\].*int.*True"),
        ([2, 5, None, 1], TypeError, r"lengths\[2\].*None"),
        (3, TypeError, r"lengths.*1-D.*int"),
        ({0: 2, 1: 5, 2: 1, 3: 1}, TypeError, r"lengths.*list of ints, got dict"),
        ([2, 2**70, 1, 1], ValueError, r"lengths\[1\] is 1180591620717411303424 but the sequence has 5 steps"),
        ("2511", TypeError, r"lengths\[0\].*'2'"),
    ],
    ids=str,
)
def test_lengths_that_lie_are_refused_by_name_and_value(backend, device, lengths, error, message):
    rnn = make_module("GRU", device)
    x = torch.randn(STEPS, BATCH, 3, dtype=torch.float64, device=device)
    before = rnn(x)
    with pytest.raises(error, match=message):
        rnn(x, lengths=lengths)
    assert_bit_equal(rnn(x), before)


def test_lengths_go_with_padded_batches_alone(backend, device):
    rnn = make_module("GRU", device)
    x = torch.randn(STEPS, BATCH, 3, dtype=torch.float64, device=device)
    with pytest.raises(ValueError, match="lengths.*PackedSequence"):
        rnn(pack_sequence([x[:, 0], x[:2, 1]]), lengths=[5, 2])
    with pytest.raises(ValueError, match="lengths.*batched 3-D.*unbatched 2-D"):
        rnn(x[:, 0], lengths=[5])


def test_lengths_on_the_cpu_are_checked_by_the_operator_where_python_cannot(backend, device, monkeypatch):
    """In a compiled graph. On a GPU a check would wait for the device, so there lengths are clamped, as by the reference."""
    rnn = make_module("LSTM", device)
    x = torch.randn(STEPS, BATCH, 3, dtype=torch.float64, device=device)
    expected = rnn(x, lengths=[2, 5, 0, 5])
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    lengths = torch.tensor([2, 7, -3, 5], device=device)
    if backend in ("cpu", "emulated"):
        with pytest.raises(RuntimeError, match=r"lengths\[1\] is 7 but the sequence has 5 steps"):
            rnn(x, lengths=lengths)
    else:
        assert_equal_to_rounding(rnn(x, lengths=lengths), expected)
