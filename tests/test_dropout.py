"""Dropout: each kind against a plain loop with the same masks, and what the masks are, seen from outside."""

import plain
import pytest
import torch
from cases import EVERY_DROPOUT_MODE, KINDS, make_module
from compare import assert_bit_equal, assert_equal_to_rounding, gradients
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastrnn


def flat(output) -> list[torch.Tensor]:
    y, final = output
    return [y, *(final if isinstance(final, tuple) else (final,))]


# ---------------------------------------------------------------------------------------------- against a plain loop


@pytest.mark.parametrize("layout", ["padded", "batch_first", "lengths", "packed"])
@pytest.mark.parametrize(("kind", "mode"), EVERY_DROPOUT_MODE)
def test_each_mode_equals_a_plain_loop_with_its_masks(backend, device, drawn, kind, mode, layout):
    """Masks are in the user's batch order in every layout; lengths are unsorted here."""
    lengths = [2, 5, 0, 4] if layout == "lengths" else [2, 5, 1, 4] if layout == "packed" else None
    rnn = make_module(
        kind, device, input_dropout=0.3, recurrent_dropout=0.4, recurrent_dropout_mode=mode,
        batch_first=layout == "batch_first",
    )  # fmt: skip
    x = torch.randn(5, 4, 3, dtype=torch.float64, device=device, requires_grad=True)
    if layout == "packed":
        y, final = rnn(pack_padded_sequence(x, lengths, enforce_sorted=False))
        y, _ = pad_packed_sequence(y)
    elif layout == "batch_first":
        y, final = rnn(x.transpose(0, 1))
        y = y.transpose(0, 1)
    else:
        y, final = rnn(x, lengths=lengths)
    outputs = flat((y, final))
    expected = [
        out for out in plain.module(rnn, x, lengths=lengths, masks=plain.drawn_masks(rnn, drawn)) if out is not None
    ]
    assert_equal_to_rounding(outputs, expected)
    leaves = [x, *rnn.parameters()]
    assert_equal_to_rounding(gradients(outputs, leaves), gradients(expected, leaves))
    everywhere = torch.cat([mask.flatten() for mask in drawn.values()])
    assert everywhere.eq(0).any()
    assert everywhere.ne(0).any()


@pytest.mark.parametrize("mode", ["state", "candidate", "weight"])
def test_modes_go_with_projections(backend, device, drawn, mode):
    rnn = make_module("LSTM", device, proj_size=2, recurrent_dropout=0.4, recurrent_dropout_mode=mode)
    x = torch.randn(5, 4, 3, dtype=torch.float64, device=device)
    outputs = flat(rnn(x))
    expected = plain.module(rnn, x, masks=plain.drawn_masks(rnn, drawn))
    assert_equal_to_rounding(outputs, expected)
    assert_equal_to_rounding(gradients(outputs, list(rnn.parameters())), gradients(expected, list(rnn.parameters())))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_masks_of_low_precision_modules_scale_exactly(backend, device, drawn, dtype):
    rnn = make_module("GRU", device, recurrent_dropout=0.25, dtype=dtype)
    rnn(torch.randn(5, 4, 3, dtype=dtype, device=device))
    assert drawn["recurrent mask 0"].dtype == torch.float32
    assert set(drawn["recurrent mask 0"].unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}


# ------------------------------------------------------------------------------------------------ seen from outside


def relu_chain(device, **options) -> nn.Module:
    """An RNN with the identity for W_hh and nothing else: h_t = relu(m * h_{t-1})."""
    rnn = fastrnn.RNN(1, 6, nonlinearity="relu", bias=False, bidirectional=True, device=device, **options)
    with torch.no_grad():
        for direction in ("", "_reverse"):
            getattr(rnn, f"weight_ih_l0{direction}").zero_()
            getattr(rnn, f"weight_hh_l0{direction}").copy_(torch.eye(6))
    return rnn


def test_the_state_mask_is_the_same_at_each_step_and_scaled_and_differs_between_samples_and_directions(backend, device):
    rnn = relu_chain(device, recurrent_dropout=0.5)
    x, h0 = torch.zeros(5, 40, 1, device=device), torch.ones(2, 40, 6, device=device)
    y, _ = rnn(x, h0)
    forward, reverse = y[..., :6], y[..., 6:].flip(0)
    for states in (forward, reverse):
        mask = states[0]  # after one step from ones
        assert set(mask.unique().tolist()) == {0.0, 2.0}
        assert 0.3 < mask.eq(0).double().mean() < 0.7
        for t in range(5):
            assert_bit_equal(states[t], mask ** (t + 1))
        assert len({tuple(row) for row in mask.tolist()}) > 20
    assert not forward[0].equal(reverse[0])


def test_the_candidate_mask_is_the_same_at_each_step(backend, device):
    """Gates forced open: c_t = c_{t-1} + m, and for GRU h_t = m."""
    lstm = fastrnn.LSTM(1, 6, recurrent_dropout=0.5, recurrent_dropout_mode="candidate", device=device)
    gru = fastrnn.GRU(1, 6, recurrent_dropout=0.5, recurrent_dropout_mode="candidate", device=device)
    with torch.no_grad():
        for parameter in [*lstm.parameters(), *gru.parameters()]:
            parameter.zero_()
        lstm.bias_ih_l0.fill_(40.0)
        gru.bias_ih_l0.copy_(torch.tensor([0.0, -200.0, 40.0], device=device).repeat_interleave(6))
    x = torch.zeros(4, 40, 1, device=device)
    _, (_, c_n) = lstm(x)
    assert set(c_n.unique().tolist()) == {0.0, 8.0}  # 4 steps of 2, or none
    y, _ = gru(x)
    assert set(y.unique().tolist()) == {0.0, 2.0}
    assert_bit_equal(y, y[:1].expand_as(y))
    for states in (c_n[0], y[0]):
        assert len({tuple(row) for row in states.tolist()}) > 20


def test_the_weight_mask_is_one_for_all_samples_and_steps(backend, device):
    rnn = fastrnn.RNN(
        1, 6, nonlinearity="relu", bias=False, recurrent_dropout=0.5, recurrent_dropout_mode="weight", device=device
    )
    with torch.no_grad():
        rnn.weight_ih_l0.zero_()
        rnn.weight_hh_l0.fill_(1.0)
    y, _ = rnn(torch.zeros(3, 12, 1, device=device), torch.eye(6, device=device).repeat(2, 1)[None])
    masked = y[0, :6].t()  # from one-hot states: the columns of the masked matrix
    assert set(masked.unique().tolist()) == {0.0, 2.0}
    assert_bit_equal(y[0, 6:].t(), masked)
    assert_bit_equal(y[2, :6].t(), masked @ masked @ masked)


def test_the_input_mask_is_one_for_all_steps_and_both_directions(backend, device):
    rnn = fastrnn.RNN(
        6, 6, nonlinearity="relu", bias=False, bidirectional=True, input_dropout=0.25, num_layers=2, device=device
    )
    with torch.no_grad():
        for parameter in rnn.parameters():
            parameter.zero_()
        for direction in ("", "_reverse"):
            getattr(rnn, f"weight_ih_l0{direction}").copy_(torch.eye(6))
            getattr(rnn, f"weight_ih_l1{direction}").copy_(torch.eye(12)[:6] + torch.eye(12)[6:])
    y, _ = rnn(torch.ones(5, 40, 6, device=device))
    assert_bit_equal(y, y[:1].expand_as(y))
    assert_bit_equal(y[..., :6], y[..., 6:])
    # layer 0: 0 or 4/3 in each unit, twice; layer 1 masks its 12 inputs anew and adds the two
    factor = torch.tensor(4 / 3)
    values = {0.0, (factor * factor).item(), (2 * factor * factor).item()}
    assert all(min(abs(v - w) for w in values) < 1e-5 for v in y.unique().tolist())
    assert len(y.unique()) >= 3
    assert len({tuple(row) for row in y[0].tolist()}) > 20


def test_layers_have_masks_of_their_own(backend, device, drawn):
    rnn = make_module("LSTM", device, recurrent_dropout=0.5, num_layers=3)
    rnn(torch.randn(2, 20, 3, dtype=torch.float64, device=device))
    masks = [drawn[f"recurrent mask {layer}"] for layer in range(3)]
    assert [tuple(mask.shape) for mask in masks] == [(2, 20, 4)] * 3
    directions = [mask[d] for mask in masks for d in range(2)]
    assert all(not a.equal(b) for i, a in enumerate(directions) for b in directions[:i])


# ---------------------------------------------------------------------------------------------------- probabilities


@pytest.mark.parametrize(("kind", "mode"), EVERY_DROPOUT_MODE)
def test_probability_one_drops_everything(backend, device, kind, mode):
    rnn = make_module(kind, device, recurrent_dropout=1.0, recurrent_dropout_mode=mode)
    x = torch.randn(5, 4, 3, dtype=torch.float64, device=device)
    zero = torch.zeros((), dtype=torch.float64, device=device)
    masks = plain.Masks()
    if mode == "weight":
        masks.weights = [[zero, zero]] * 2
    else:
        masks.recurrent = [zero.expand(2, 4, 4)] * 2
    outputs, expected = flat(rnn(x)), plain.module(rnn, x, masks=masks)
    assert_equal_to_rounding(outputs, [out for out in expected if out is not None])
    assert all(g.isfinite().all() for g in gradients(outputs, list(rnn.parameters())))


def test_input_dropout_of_probability_one_hides_the_input(backend, device):
    rnn = make_module("GRU", device, input_dropout=1.0)
    x = torch.randn(5, 4, 3, dtype=torch.float64, device=device)
    assert_bit_equal(rnn(x), rnn(x * 2 + 1))


@pytest.mark.parametrize("kind", KINDS)
def test_everything_off_is_the_very_computation_without_the_features(backend, device, kind):
    """Bit for bit, and no random number is drawn."""
    plain_module = make_module(kind, device, dtype=torch.float32)
    off = make_module(
        kind, device, dtype=torch.float32, input_dropout=0.0, recurrent_dropout=0.0, dropout=0.0,
        recurrent_dropout_mode="weight", record_state_grad_norms=True,
    )  # fmt: skip
    in_eval = make_module(
        kind, device, dtype=torch.float32, input_dropout=0.5, recurrent_dropout=0.5, dropout=0.5, state_grad_clip=1e9
    ).eval()
    x = torch.randn(5, 4, 3, device=device)
    state = torch.random.get_rng_state()
    results = []
    for rnn in (plain_module, off, in_eval):
        rnn.load_state_dict(plain_module.state_dict())
        outputs = flat(rnn(x))
        results.append([*outputs, *gradients(outputs, list(rnn.parameters()))])
    assert_bit_equal(results[1], results[0])
    assert_bit_equal(results[2], results[0])
    assert torch.random.get_rng_state().equal(state)


# ------------------------------------------------------------------------------------------------------ randomness


@pytest.mark.parametrize(("kind", "mode"), EVERY_DROPOUT_MODE)
def test_manual_seed_governs_the_masks(backend, device, kind, mode):
    rnn = make_module(kind, device, input_dropout=0.3, recurrent_dropout=0.3, dropout=0.3, recurrent_dropout_mode=mode)
    x = torch.randn(5, 8, 3, dtype=torch.float64, device=device)
    torch.manual_seed(7)
    first, second = rnn(x), rnn(x)
    torch.manual_seed(7)
    assert_bit_equal(rnn(x), first)
    assert not second[0].equal(first[0])


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_dropout_between_layers_is_torch_nn_s_from_the_same_seed(backend, device, kind, batch_first):
    if device.type != "cpu":
        pytest.skip("cuDNN draws its own numbers")
    theirs = getattr(nn, kind)(3, 4, 3, dropout=0.4, bidirectional=True, batch_first=batch_first, dtype=torch.float64)
    ours = fastrnn.from_torch(theirs)
    x = torch.randn(5, 6, 3, dtype=torch.float64)
    torch.manual_seed(11)
    expected = theirs(x)
    torch.manual_seed(11)
    assert_equal_to_rounding(ours(x), expected)
    packed = pack_padded_sequence(x, [5, 3, 3, 2, 1, 1][: x.size(0 if batch_first else 1)], batch_first)
    torch.manual_seed(12)
    expected = theirs(packed)
    torch.manual_seed(12)
    assert_equal_to_rounding(ours(packed), expected)


def test_dropout_between_layers_goes_with_variational_dropout(backend, device, drawn, monkeypatch):
    rnn = make_module("LSTM", device, dropout=0.5, recurrent_dropout=0.5)
    x = torch.randn(5, 4, 3, dtype=torch.float64, device=device)
    between = []
    dropout = nn.functional.dropout

    def keep(value, p, training):
        result = dropout(value, p, training)
        if value.dim() == 3 and value.shape[0] == 5:
            between.append(torch.where(value == 0, 0.0, result / value).detach())
        return result

    monkeypatch.setattr("fastrnn.base.functional.dropout", keep)
    outputs = flat(rnn(x))
    masks = plain.drawn_masks(rnn, drawn)
    masks.between = between
    assert len(between) == 1
    assert_equal_to_rounding(outputs, plain.module(rnn, x, masks=masks))


# -------------------------------------------------------------------------------------------------- training and eval


def test_mc_dropout_is_a_bool():
    rnn = fastrnn.GRU(3, 4)
    with pytest.raises(TypeError, match="mc_dropout should be of type bool, got: str"):
        rnn.mc_dropout = "yes"
    assert rnn.mc_dropout is False


@pytest.mark.parametrize("kind", KINDS)
def test_eval_drops_nothing_unless_mc_dropout_is_on(backend, device, drawn, kind):
    rnn = make_module(kind, device, input_dropout=0.4, recurrent_dropout=0.4, dropout=0.4).eval()
    x = torch.randn(6, 8, 3, dtype=torch.float64, device=device)
    assert_equal_to_rounding(rnn(x)[0], plain.module(rnn, x)[0])
    assert not drawn
    torch.manual_seed(5)
    in_training = rnn.train()(x)
    rnn.eval()
    rnn.mc_dropout = True
    torch.manual_seed(5)
    assert_bit_equal(rnn(x), in_training)
    rnn.recurrent_dropout = rnn.input_dropout = 0.0
    assert not rnn(x)[0].equal(rnn(x)[0]), "dropout between layers stays on too"


def test_probabilities_may_be_changed_later(backend, device, drawn):
    rnn = make_module("LSTM", device, recurrent_dropout=0.4)
    x = torch.randn(6, 8, 3, dtype=torch.float64, device=device)
    rnn.recurrent_dropout = 0.0
    rnn(x)
    assert not drawn
    rnn.input_dropout = 0.5
    rnn(x)
    assert set(drawn) == {"input mask 0", "input mask 1"}


# -------------------------------------------------------------------------------------------------------- forget_bias


def test_forget_bias_sets_the_forget_gate_s_start_and_nothing_else():
    torch.manual_seed(1)
    usual = fastrnn.LSTM(3, 4, num_layers=2, bidirectional=True)
    torch.manual_seed(1)
    biased = fastrnn.LSTM(3, 4, num_layers=2, bidirectional=True, forget_bias=1.5)
    for (name, a), b in zip(biased.named_parameters(), usual.parameters(), strict=True):
        if name.startswith("bias"):
            assert a[4:8].eq(1.5 if "_ih" in name else 0.0).all()
            assert_bit_equal([a[:4], a[8:]], [b[:4], b[8:]])
        else:
            assert_bit_equal(a, b)
    biased.reset_parameters()
    assert biased.bias_ih_l1_reverse[4:8].eq(1.5).all()
    assert biased.bias_hh_l0[4:8].eq(0.0).all()
