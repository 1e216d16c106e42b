"""Clipping of the gradient through time in the modules, and the norms they record: against plain loops, and as users meet them."""

import copy
import itertools
import math
import pickle
from dataclasses import dataclass

import plain
import pytest
import torch
from cases import KINDS, make_module, pairwise
from compare import assert_bit_equal, assert_equal_to_rounding, gradients
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

import fastrnn


@dataclass(frozen=True)
class ModuleCase:
    """A module and the batch it runs on. Dropout: the kinds that act on the recurrence, or on what layers read."""

    kind: str
    num_layers: int
    bidirectional: bool
    layout: str
    mode: str
    dropout: str

    def __str__(self) -> str:
        directions = "both" if self.bidirectional else "forward"
        return "-".join([self.kind, f"{self.num_layers}layers", directions, self.layout, self.mode, self.dropout])

    def make(self, device, threshold):
        options = {"none": {}, "inputs": {"input_dropout": 0.3}}.get(
            self.dropout, {"recurrent_dropout": 0.4, "recurrent_dropout_mode": self.dropout}
        )
        if self.kind == "RNN relu":
            options["nonlinearity"] = "relu"
        return make_module(
            self.kind.split()[0], device, num_layers=self.num_layers, bidirectional=self.bidirectional,
            batch_first=self.layout == "batch_first", record_state_grad_norms=True, state_grad_clip=threshold,
            state_grad_clip_mode=self.mode, **options,
        )  # fmt: skip


MODULE_CASES = pairwise(
    case
    for case in itertools.starmap(
        ModuleCase,
        itertools.product(
            ("RNN", "RNN relu", "LSTM", "GRU"), (1, 3), (False, True), ("padded", "batch_first", "lengths", "packed"),
            ("norm", "value"), ("none", "inputs", "state", "candidate", "weight"),
        ),
    )
    if not (case.kind.startswith("RNN") and case.dropout == "candidate")
)  # fmt: skip


@pytest.mark.parametrize("case", MODULE_CASES, ids=str)
def test_gradients_and_norms_equal_a_plain_loop_by_layer_direction_step_and_sample_of_the_user(
    backend, device, drawn, case
):
    lengths = {"lengths": [3, 5, 0, 4], "packed": [3, 5, 1, 4]}.get(case.layout)
    threshold = 0.3
    rnn = case.make(device, threshold)
    x = torch.randn(5, 4, 3, dtype=torch.float64, device=device)
    if case.layout == "packed":
        y, final = rnn(pack_padded_sequence(x, lengths, enforce_sorted=False))
        y, _ = pad_packed_sequence(y)
    elif case.layout == "batch_first":
        y, final = rnn(x.transpose(0, 1))
        y = y.transpose(0, 1)
    else:
        y, final = rnn(x, lengths=lengths)
    clips = [plain.Clip(case.mode, threshold) for _ in range(case.num_layers)]
    outputs = plain.module(rnn, x, lengths=lengths, masks=plain.drawn_masks(rnn, drawn), clips=clips)
    theirs = gradients(outputs, list(rnn.parameters()))

    assert rnn.state_grad_norms is None, "nothing is recorded before a backward"
    assert rnn.state_grad_clipped is None
    assert_equal_to_rounding(gradients([y, final], list(rnn.parameters())), theirs)
    tables = [clip.table(2 if case.bidirectional else 1, 5, 4) for clip in clips]
    norms, clipped = (torch.cat(parts) for parts in zip(*tables, strict=True))
    assert_equal_to_rounding(rnn.state_grad_norms, norms.to(device))
    assert_bit_equal(rnn.state_grad_clipped, clipped.to(device))
    assert 0 < clipped.sum() < norms.ne(0).sum(), "the threshold should clip some steps and spare others"


def test_an_unbatched_input_records_as_a_batch_of_one(backend, device):
    rnn = fastrnn.GRU(3, 4, record_state_grad_norms=True, device=device)
    rnn(torch.randn(5, 3, device=device))[0].sum().backward()
    assert rnn.state_grad_norms.shape == (1, 5, 1)
    assert rnn.state_grad_norms.dtype == torch.float32
    assert rnn.state_grad_clipped is None


def test_the_last_backward_wins(backend, device):
    rnn = fastrnn.LSTM(3, 4, record_state_grad_norms=True, device=device)
    x = torch.randn(5, 2, 3, device=device)
    first, second = rnn(x)[0].sum(), rnn(x)[0].sum() * 2
    second.backward()
    doubled = rnn.state_grad_norms
    first.backward()
    assert_equal_to_rounding(rnn.state_grad_norms * 2, doubled)
    assert doubled.abs().sum() > 0


def test_nothing_is_recorded_unless_asked_for(backend, device):
    rnn = fastrnn.LSTM(3, 4, state_grad_clip=1.0, device=device)
    rnn(torch.randn(5, 2, 3, device=device))[0].sum().backward()
    assert rnn.state_grad_norms is None
    assert rnn.state_grad_clipped is None


def test_copies_of_a_module_record_apart(backend, device):
    rnn = fastrnn.RNN(3, 4, record_state_grad_norms=True, device=device)
    x = torch.randn(5, 2, 3, device=device)
    rnn(x)[0].sum().backward()
    before = rnn.state_grad_norms
    for other in (copy.deepcopy(rnn), copy.copy(rnn), pickle.loads(pickle.dumps(rnn))):
        assert other.state_grad_norms is None
        (other(x)[0].sum() * 3).backward()
        assert_bit_equal(rnn.state_grad_norms, before)
        assert_equal_to_rounding(other.state_grad_norms, before * 3)


def test_a_grad_scaler_s_scale_is_taken_out(backend, device):
    rnn = fastrnn.GRU(3, 4, record_state_grad_norms=True, state_grad_clip=0.1, device=device)
    x = torch.randn(5, 2, 3, device=device)
    rnn(x)[0].sum().backward()
    norms, clipped = rnn.state_grad_norms, rnn.state_grad_clipped
    grads = [p.grad.clone() for p in rnn.parameters()]
    rnn.zero_grad()
    rnn.grad_scale = torch.tensor(512.0, device=device)
    (rnn(x)[0].sum() * 512).backward()
    assert_equal_to_rounding(rnn.state_grad_norms, norms)
    assert_bit_equal(rnn.state_grad_clipped, clipped)
    assert_equal_to_rounding([p.grad / 512 for p in rnn.parameters()], grads)


def test_a_second_backward_through_one_graph_records_and_gives_the_same_again(backend, device):
    rnn = fastrnn.LSTM(3, 4, 2, state_grad_clip=0.1, record_state_grad_norms=True, device=device)
    loss = rnn(torch.randn(5, 2, 3, device=device))[0].sum()
    loss.backward(retain_graph=True)
    norms, grads = rnn.state_grad_norms, [p.grad.clone() for p in rnn.parameters()]
    (loss * 2).backward(retain_graph=True)
    assert not torch.equal(rnn.state_grad_norms, norms)
    rnn.zero_grad()
    loss.backward()
    assert_bit_equal(rnn.state_grad_norms, norms)
    assert_bit_equal([p.grad for p in rnn.parameters()], grads)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_clips_and_records_the_same(backend, device, use_reentrant):
    rnn = make_module("GRU", device, recurrent_dropout=0.4, state_grad_clip=0.1, record_state_grad_norms=True)
    x = torch.randn(5, 2, 3, dtype=torch.float64, device=device, requires_grad=True)
    results = []
    for checkpointed in (False, True):
        rnn.zero_grad()
        torch.manual_seed(1)
        y, _ = checkpoint(rnn, x, use_reentrant=use_reentrant) if checkpointed else rnn(x)
        y.sum().backward()
        results.append([*(p.grad for p in rnn.parameters()), rnn.state_grad_norms, rnn.state_grad_clipped])
    assert results[0][-1].any()
    assert_bit_equal(results[1], results[0])


def test_autocast_records_and_clips_with_the_loss_scale_taken_out(backend, device):
    rnn = fastrnn.LSTM(3, 16, 2, state_grad_clip=0.1, record_state_grad_norms=True, device=device)
    x = torch.randn(5, 4, 3, device=device)
    results = []
    for scale in (1.0, 1024.0):
        rnn.zero_grad()
        rnn.grad_scale = torch.tensor(scale, device=device)
        with torch.autocast(device.type, torch.bfloat16):
            loss = rnn(x)[0].float().sum()
        (loss * scale).backward()
        results.append([rnn.state_grad_norms, *(p.grad / scale for p in rnn.parameters())])
    assert results[0][0].dtype == torch.float32
    # powers of two commute with rounding, so not even bfloat16 sees the scale
    assert_bit_equal(results[1], results[0])


def test_a_new_loss_scale_at_each_step_is_seen_by_a_compiled_module_without_compiling_again():
    rnn = fastrnn.LSTM(3, 4, 2, state_grad_clip=0.1, record_state_grad_norms=True)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(rnn, backend=counter, fullgraph=True)
    x = torch.randn(5, 4, 3)
    rnn(x)[0].sum().backward()
    norms, clipped = rnn.state_grad_norms, rnn.state_grad_clipped
    grads = [p.grad.clone() for p in rnn.parameters()]
    assert clipped.any()
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0, growth_interval=1)
    for _ in range(4):
        rnn.zero_grad()
        scale = rnn.grad_scale = scaler.scale(torch.ones(()))
        scaler.scale(compiled(x)[0].sum()).backward()
        assert_equal_to_rounding(rnn.state_grad_norms, norms)
        assert_bit_equal(rnn.state_grad_clipped, clipped)
        assert_equal_to_rounding([p.grad / scale for p in rnn.parameters()], grads)
        optimizer = torch.optim.SGD(rnn.parameters(), lr=0.0)
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 256.0
    assert counter.frame_count == 1


@pytest.mark.parametrize("scale", [2.0, torch.ones(1), torch.ones((), dtype=torch.float64)])
def test_a_loss_scale_of_the_wrong_kind_is_refused_by_name(scale):
    rnn = fastrnn.GRU(3, 4, state_grad_clip=0.1)
    rnn.grad_scale = scale
    with pytest.raises(TypeError, match="GRU: grad_scale should be a 0-dim float32 tensor or None, got"):
        rnn(torch.randn(5, 2, 3))


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("threshold", "error"),
    [
        (0, ValueError),
        (0.0, ValueError),
        (-1.0, ValueError),
        (-math.inf, ValueError),
        (math.nan, ValueError),
        (True, TypeError),
        (False, TypeError),
        ("1", TypeError),
        ((1.0,), TypeError),
        (torch.tensor(1.0), TypeError),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_bad_thresholds_are_refused_by_name_when_given_and_when_set(kind, threshold, error):
    with pytest.raises(error, match="state_grad_clip should be a number > 0 or None, got"):
        getattr(fastrnn, kind)(3, 4, state_grad_clip=threshold)
    rnn = getattr(fastrnn, kind)(3, 4, state_grad_clip=1)
    with pytest.raises(error, match="state_grad_clip should be a number > 0 or None, got"):
        rnn.state_grad_clip = threshold
    assert rnn.state_grad_clip == 1.0


@pytest.mark.parametrize("mode", ["Norm", "l2", "", None, 2, True])
def test_unknown_modes_are_refused_by_name(mode):
    with pytest.raises(ValueError, match="state_grad_clip_mode should be 'norm' or 'value', got"):
        fastrnn.LSTM(3, 4, state_grad_clip=1.0, state_grad_clip_mode=mode)
    rnn = fastrnn.LSTM(3, 4)
    with pytest.raises(ValueError, match="state_grad_clip_mode should be 'norm' or 'value', got"):
        rnn.state_grad_clip_mode = mode


@pytest.mark.parametrize("value", [1, 0, "yes", None])
def test_recording_is_on_or_off(value):
    with pytest.raises(TypeError, match="record_state_grad_norms should be of type bool, got: "):
        fastrnn.LSTM(3, 4, record_state_grad_norms=value)


def test_an_infinite_threshold_clips_nothing(backend, device):
    rnn = fastrnn.GRU(3, 4, state_grad_clip=math.inf, record_state_grad_norms=True, device=device)
    x = torch.randn(5, 2, 3, device=device)
    clipping = gradients(rnn(x), list(rnn.parameters()))
    assert not rnn.state_grad_clipped.any()
    rnn.state_grad_clip = None
    assert_bit_equal(clipping, gradients(rnn(x), list(rnn.parameters())))
