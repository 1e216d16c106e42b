"""hold_masks(): the same variational masks for several forwards, as truncated backpropagation needs."""

import copy
import pickle

import pytest
import torch
from cases import EVERY_DROPOUT_MODE, make_module
from compare import assert_bit_equal, assert_equal_to_rounding


@pytest.mark.parametrize(("kind", "mode"), EVERY_DROPOUT_MODE)
def test_held_masks_are_those_of_every_forward_inside(backend, device, drawn, kind, mode):
    rnn = make_module(kind, device, input_dropout=0.4, recurrent_dropout=0.4, recurrent_dropout_mode=mode)
    x = torch.randn(6, 8, 3, dtype=torch.float64, device=device)
    with rnn.hold_masks():
        whole, _ = rnn(x)
        masks = dict(drawn)
        assert_bit_equal(rnn(x)[0], whole)
        rnn(x[:2])  # another number of steps is fine
        assert all(drawn[name] is mask for name, mask in masks.items())
    assert not rnn(x)[0].equal(whole)


def test_held_masks_make_chunks_equal_to_the_whole_sequence(backend, device):
    rnn = make_module("LSTM", device, bidirectional=False, input_dropout=0.4, recurrent_dropout=0.4)
    x = torch.randn(6, 8, 3, dtype=torch.float64, device=device)
    with rnn.hold_masks():
        whole, _ = rnn(x)
        first, state = rnn(x[:2])
        rest, _ = rnn(x[2:], state)
    assert_equal_to_rounding(torch.cat([first, rest]), whole)


def test_held_masks_refuse_another_batch_size_and_stay_usable(backend, device):
    rnn = make_module("GRU", device, recurrent_dropout=0.4)
    x = torch.randn(6, 8, 3, dtype=torch.float64, device=device)
    with rnn.hold_masks():
        before = rnn(x)
        with pytest.raises(
            RuntimeError, match=r"hold_masks\(\) holds masks for a batch of 8, but this input has 7 samples"
        ):
            rnn(x[:, :7])
        assert_bit_equal(rnn(x), before)
    rnn(x[:, :7])


def test_hold_blocks_may_be_nested_and_end_with_an_error(backend, device):
    rnn = make_module("GRU", device, recurrent_dropout=0.4)
    x = torch.randn(6, 8, 3, dtype=torch.float64, device=device)
    with rnn.hold_masks():
        before = rnn(x)
        with rnn.hold_masks():
            assert_bit_equal(rnn(x), before)
        assert_bit_equal(rnn(x), before)
        with pytest.raises(ZeroDivisionError), rnn.hold_masks():
            raise ZeroDivisionError
        assert_bit_equal(rnn(x), before)
    with pytest.raises(ZeroDivisionError), rnn.hold_masks():
        raise ZeroDivisionError
    assert not rnn(x)[0].equal(rnn(x)[0])


def test_copies_do_not_share_held_masks(backend, device):
    rnn = make_module("GRU", device, recurrent_dropout=0.4)
    x = torch.randn(6, 8, 3, dtype=torch.float64, device=device)
    with rnn.hold_masks():
        before = rnn(x)
        for other in (copy.deepcopy(rnn), pickle.loads(pickle.dumps(rnn))):
            assert not other(x)[0].equal(before[0])
        assert_bit_equal(rnn(x), before)
