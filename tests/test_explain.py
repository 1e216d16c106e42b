"""fastrnn.explain: which kernels run an input, and why."""

import pytest
import torch
from conftest import BACKENDS
from torch.nn.utils.rnn import pack_sequence

import fastrnn

pytestmark = pytest.mark.skipif("cpu" not in BACKENDS, reason="not built")
needs_emulated = pytest.mark.skipif("emulated" not in BACKENDS, reason="no emulated kernels")


def test_a_cpu_is_told_its_instruction_set_and_threads():
    text = fastrnn.explain(fastrnn.LSTM(3, 5, num_layers=2), torch.zeros(7, 4, 3))
    assert text.startswith("LSTM, 2 layers, hidden_size 5, 7 steps of 4 samples in float32\n")
    assert f"{torch.ops.fastrnn.cpu_isa()} kernels, up to {torch.get_num_threads()} threads" in text


def test_the_reference_says_what_it_is():
    with fastrnn.backend("reference"):
        assert "reference: plain torch operations" in fastrnn.explain(fastrnn.GRU(3, 5), torch.zeros(7, 3))


@needs_emulated
@pytest.mark.parametrize(
    "x",
    [torch.zeros(7, 4, 3), torch.zeros(7, 3), pack_sequence([torch.zeros(7, 3), torch.zeros(2, 3)])],
    ids=["batched", "unbatched", "packed"],
)
def test_the_plan_of_both_passes_is_named_with_what_bounds_it(monkeypatch, x):
    monkeypatch.delenv("FASTRNN_PLANS", raising=False)
    rnn = fastrnn.GRU(3, 256, dtype=torch.float16)
    with fastrnn.backend("emulated"):
        x = x.to(torch.float16)
        lines = fastrnn.explain(rnn, x).split("\n")
    assert "7 steps of" in lines[0] and lines[0].endswith("in float16")
    forward, backward = (next(line for line in lines if line.startswith(word)) for word in ("forward", "backward"))
    for line in (forward, backward):
        assert "stepwise, 16-bit tensor cores, " in line
        assert " us a step (launch and exchange " in line
    assert "FASTRNN_PLANS=all" in lines[-1]


@needs_emulated
def test_plans_that_wait_between_blocks_are_explained_where_they_are_allowed(monkeypatch):
    monkeypatch.setenv("FASTRNN_PLANS", "all")
    with fastrnn.backend("emulated"):
        text = fastrnn.explain(fastrnn.LSTM(3, 512, dtype=torch.bfloat16), torch.zeros(9, 16, 3, dtype=torch.bfloat16))
    assert "forward   cluster, " in text and "next best: " in text
    assert "FASTRNN_PLANS=all" not in text


@needs_emulated
@pytest.mark.parametrize("name", ["H100 with code for 8.0", "H100 with code for 7.5", "H100 without code"])
def test_code_for_older_architectures_has_no_plan_that_it_cannot_run(monkeypatch, name):
    x = torch.zeros(9, 16, 3, dtype=torch.bfloat16)
    rnn = fastrnn.LSTM(3, 512, dtype=torch.bfloat16)
    torch.ops.fastrnn_emulated.use_device(name)
    try:
        with fastrnn.backend("emulated"):
            monkeypatch.setenv("FASTRNN_PLANS", "all")
            text = fastrnn.explain(rnn, x)
            monkeypatch.setenv("FASTRNN_PLANS", "cluster")
            with pytest.raises(ValueError, match=r"fastrnn was (not )?built for .*\(TORCH_CUDA_ARCH_LIST\)"):
                fastrnn.explain(rnn, x)
    finally:
        torch.ops.fastrnn_emulated.use_device("H100")
    assert "cluster" not in text
    assert ("grid" in text) == name.endswith("8.0")


@needs_emulated
def test_clusters_of_a_grid_are_explained(monkeypatch):
    rnn, x = fastrnn.LSTM(3, 1024, dtype=torch.bfloat16), torch.empty(512, 64, 3, dtype=torch.bfloat16)
    for allowed in ("grid", "grid:blocks=64,samples=8,cluster=8", "all"):
        monkeypatch.setenv("FASTRNN_PLANS", allowed)
        with fastrnn.backend("emulated"):
            forward, backward = (
                line for line in fastrnn.explain(rnn, x).split("\n") if line.startswith(("forward", "backward"))
            )
        assert "grid, " in forward and "clusters" not in forward
        if allowed == "grid:blocks=64,samples=8,cluster=8":
            assert "grid, 16-bit tensor cores, 8 teams of 64 blocks in clusters of 8 for 8 samples each, " in backward
        assert ", two-level exchange of " in backward


@pytest.mark.parametrize("backend", [name for name in ("reference", "cpu", "emulated") if name in BACKENDS])
@pytest.mark.parametrize("plans", ["clustr", "grid:block=64", "grid:", "all:samples=8", "grid:samples=eight", "Grid"])
def test_plans_that_do_not_exist_are_named_with_the_variable_whatever_runs(monkeypatch, backend, plans):
    monkeypatch.setenv("FASTRNN_PLANS", plans)
    rnn, x = fastrnn.LSTM(3, 5), torch.zeros(9, 16, 3)
    with fastrnn.backend(backend):
        for call in (rnn, lambda x: fastrnn.explain(rnn, x)):
            with pytest.raises(ValueError, match=f'FASTRNN_PLANS is "{plans}", expected "all", "block", "cluster"'):
                call(x)
        monkeypatch.setenv("FASTRNN_PLANS", "stepwise:samples=16,blocks=1")
        with fastrnn.backend("reference"):
            rnn(x)


def test_clipping_by_norm_is_part_of_what_is_planned_and_recording_is_not(monkeypatch):
    monkeypatch.setenv("FASTRNN_PLANS", "stepwise")
    if "emulated" not in BACKENDS:
        pytest.skip("no emulated kernels")
    x = torch.zeros(9, 16, 3, dtype=torch.bfloat16)
    with fastrnn.backend("emulated"):
        off, recorded, on = (
            fastrnn.explain(fastrnn.LSTM(3, 300, dtype=torch.bfloat16, **options), x).split("\n")
            for options in ({}, {"record_state_grad_norms": True}, {"state_grad_clip": 1.0})
        )
    assert recorded == off
    assert [line for line in on if line.startswith("forward")] == [line for line in off if line.startswith("forward")]
    assert [line for line in on if line.startswith("backward")] != [line for line in off if line.startswith("backward")]


@pytest.mark.parametrize(
    ("rnn", "x", "error", "message"),
    [
        (torch.nn.LSTM(3, 5), torch.zeros(7, 4, 3), TypeError, "rnn should be a fastrnn.RNN, LSTM or GRU, got LSTM"),
        (fastrnn.LSTM(3, 5), [1.0], TypeError, "x should be a tensor or a PackedSequence, got list"),
        (fastrnn.LSTM(3, 5), torch.zeros(7), ValueError, "x should be 2-D or 3-D, got 1-D"),
    ],
)
def test_bad_input_is_named(rnn, x, error, message):
    with pytest.raises(error) as raised:
        fastrnn.explain(rnn, x)
    assert message in str(raised.value)
