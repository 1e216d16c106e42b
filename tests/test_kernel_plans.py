"""Every plan of the CUDA kernels, forced by name: right to the error of its arithmetic, the same to the bit whatever the schedule, and
refused or passed over where a device cannot run it."""

import itertools
import random

import pytest
import torch
from cases import Case, make_layer
from compare import assert_bit_equal, assert_equal_to_rounding, assert_error_ratio, gradients
from conftest import BACKENDS

from fastrnn import recording

KERNELS = [name for name in ("emulated", "cuda") if name in BACKENDS]
PLANS = ("block", "stepwise", "cluster", "grid", "grid:cluster=2", "matmul")
ARITHMETICS = {
    "float64": torch.float64, "float32": torch.float32, "tf32": torch.float32,
    "float16": torch.float16, "bfloat16": torch.bfloat16,
}  # fmt: skip
CHOICES = {
    "cell": ("rnn_tanh", "rnn_relu", "lstm", "gru"),
    "layout": ("padded", "lengths", "packed"),
    "directions": (1, 2),
    "site": (None, "state", "candidate"),
    "hidden_size": (1, 7, 50, 96),
    "batch": (1, 3, 10, 33),
    "clip": (None, "norm", "value"),
}

pytestmark = pytest.mark.skipif(not KERNELS, reason="no backend with CUDA kernels")


def chosen_cases() -> list:
    """(plan, arithmetic, case, clip): all plans and arithmetics; of the other choices all pairs, drawn once."""
    draw = random.Random(0)
    missing = {((a, x), (b, y)) for a, b in itertools.combinations(CHOICES, 2) for x in CHOICES[a] for y in CHOICES[b]}
    drawn = []
    while missing:
        tries = [{name: draw.choice(values) for name, values in CHOICES.items()} for _ in range(40)]
        tries = [t for t in tries if not (t["cell"].startswith("rnn") and t["site"] == "candidate")]
        best = max(tries, key=lambda t: sum(pair in missing for pair in itertools.combinations(t.items(), 2)))
        found = set(itertools.combinations(best.items(), 2))
        if not found & missing:  # what is left does not exist
            break
        missing -= found
        drawn.append(best)
    combinations = [
        (plan, arithmetic)
        for plan in PLANS
        for arithmetic in ARITHMETICS
        if (plan, arithmetic) not in (("cluster", "float64"), ("grid:cluster=2", "float64"), ("matmul", "tf32"))
    ]
    count = max(len(drawn), 2 * len(combinations))
    result = []
    for (plan, arithmetic), choice in zip(itertools.cycle(combinations), itertools.cycle(drawn)):
        rest = dict(choice)
        clip = rest.pop("clip")
        if plan == "grid:cluster=2":  # units of two clusters at least
            rest["hidden_size"] = {1: 33, 7: 67}.get(rest["hidden_size"], rest["hidden_size"])
        result.append(
            pytest.param(plan, arithmetic, Case(**rest, steps=5), clip, id=f"{plan}-{arithmetic}-{Case(**rest)}-{clip}")
        )
        if len(result) == 3 * count:
            return result
    return result


def run(layer, backend, plan="", clip=None, threshold=0.3):
    inputs = layer.require_grad()
    slot = torch.zeros(1)
    outputs = layer.apply(
        backend, *inputs, plan=plan, clip_mode=clip, clip_threshold=threshold, slot=slot, record_key=987654
    )
    outputs = [layer.padded(outputs[0]), *outputs[1:]]
    grads = gradients(outputs, inputs)
    recorded = recording.recorded(987654)
    return [*outputs, *grads, recorded.norms], recorded.clipped


def names_of(layer):
    finals = ["h_n", "c_n"] if layer.c0 is not None else ["h_n"]
    return ["y", *finals, *(f"gradient of {name}" for name in layer.names()), "norms"]


def small_weights(case, dtype, device, seed=0):
    layer = make_layer(case, torch.float64, device, seed)
    layer.weights = [w * case.hidden_size**-0.5 for w in layer.weights]
    return layer.to(dtype)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(("plan", "arithmetic", "case", "clip"), chosen_cases())
def test_errors_are_those_of_the_arithmetic(kernels, plan, arithmetic, case, clip):
    device = "cuda" if kernels == "cuda" else "cpu"
    dtype = ARITHMETICS[arithmetic]
    needed = 8 if case.hidden_size == 1 else 1  # errors of a few numbers are luck: those of several layers together
    runs = []
    for seed in range(50):
        layer = small_weights(case, dtype, device, seed)
        exact, exact_clipped = run(layer.to(torch.float64), "reference", clip=clip)
        low = layer.to(torch.float16) if arithmetic == "tf32" else layer  # as many bits as tf32 has
        plain, plain_clipped = run(low, "reference", clip=clip)
        ours, clipped = run(layer, kernels, plan + ("+tf32" if arithmetic == "tf32" else ""), clip)
        # where a rounding turns a relu or a clip on or off the gradient jumps: numbers with which none does
        jumps = not plain_clipped.equal(exact_clipped)
        if case.cell == "rnn_relu":
            jumps |= any(not (run[0] > 0).equal(exact[0] > 0) for run in (plain, ours))
        if jumps:
            continue
        assert clipped.equal(exact_clipped)
        runs.append((ours, plain, exact))
        if len(runs) == needed:
            break
    else:
        pytest.fail("too few seeds without a jump")
    for name, *results in zip(names_of(layer), *(zip(*run, strict=True) for run in runs), strict=True):
        our, low, true = (torch.cat([t.flatten() for t in tensors]) for tensors in zip(*results, strict=True))
        assert our.isfinite().all()
        if dtype == torch.float64:
            assert_equal_to_rounding(our, true, name)
        else:
            assert_error_ratio(our, low.to(dtype), true, 3, name)


@pytest.mark.parametrize("clip", [None, "norm"])
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru"])
@pytest.mark.parametrize("kernels", KERNELS)
def test_runs_are_equal_to_the_bit_whatever_the_schedule(kernels, cell, plan, clip):
    device = "cuda" if kernels == "cuda" else "cpu"
    layer = small_weights(
        Case(cell, "lengths", directions=2, site="state", steps=4, batch=10, hidden_size=50), torch.bfloat16, device
    )
    runs = []
    for seed in (1, 2**20, 2**40):
        if kernels == "emulated":
            torch.ops.fastrnn_emulated.set_seed(seed)
        runs.append(run(layer, kernels, plan, clip))
    assert_bit_equal(runs[1], runs[0])
    assert_bit_equal(runs[2], runs[0])


def counted(function):
    """(launches, threads that came to a __syncthreads, queries of the runtime) of a call on the emulated device."""
    before = torch.ops.fastrnn_emulated.counts()
    function()
    return tuple(after - b for after, b in zip(torch.ops.fastrnn_emulated.counts(), before, strict=True))


@pytest.mark.skipif("emulated" not in KERNELS, reason="what the emulator counts")
@pytest.mark.parametrize("plan", ["block", "stepwise", "cluster", "grid"])
@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm"])
def test_nobody_waits_for_a_norm_that_is_recorded_and_nothing_else(cell, plan):
    layer = small_weights(Case(cell, "lengths", directions=2, batch=10, hidden_size=50), torch.bfloat16, "cpu")

    def backward(**options):
        inputs = layer.require_grad()
        outputs = layer.apply("emulated", *inputs, plan=plan, **options)
        return counted(lambda: gradients(outputs, inputs))

    launches, arrivals, _ = backward()
    assert backward(slot=torch.zeros(1), record_key=987654)[:2] == (launches + 1, arrivals)
    assert backward(clip_mode="norm", clip_threshold=0.3)[1] > arrivals


def ragged_layer(cell, lengths, steps, device):
    case = Case(cell, "lengths", directions=2, site="state", steps=steps, batch=len(lengths), hidden_size=20)
    layer = small_weights(case, torch.bfloat16, device)
    layer.lengths = torch.tensor(lengths, device=device)
    return layer


SHUFFLED = random.Random(1).choices(range(1, 7), k=24)  # three slices of 8


@pytest.mark.skipif("emulated" not in KERNELS, reason="what the emulator counts")
@pytest.mark.parametrize("plan", ["block", "stepwise", "cluster", "grid"])
@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm"])
def test_slices_of_a_padded_batch_end_as_early_as_samples_in_order_of_length_allow(cell, plan):
    def arrivals_of(lengths):
        layer = ragged_layer(cell, lengths, 6, "cpu")
        inputs, outputs = layer.require_grad(), []
        forward = counted(lambda: outputs.extend(layer.apply("emulated", *inputs, plan=plan)))[1]
        return forward, counted(lambda: gradients(outputs, inputs))[1]

    six, three = arrivals_of([6] * 24), arrivals_of([3] * 24)
    for shuffled, of_six, of_three in zip(arrivals_of(SHUFFLED), six, three, strict=True):
        per_step = (of_six - of_three) / (3 * 6 - 3 * 3)  # of a slice
        steps = (shuffled - of_three) / per_step + 3 * 3
        assert steps == sum(sorted(SHUFFLED, reverse=True)[::8]) < 3 * 6


@pytest.mark.parametrize("plan", ["block", "stepwise", "cluster", "grid"])
@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru"])
@pytest.mark.parametrize("kernels", KERNELS)
def test_samples_compute_the_same_to_the_bit_whichever_slice_has_them(kernels, cell, plan):
    """One after another, 8 at a time: a slice of its own has nothing to order."""
    device = "cuda" if kernels == "cuda" else "cpu"
    together = ragged_layer(cell, SHUFFLED, 6, device)

    def run_part(first, size):
        samples = slice(first, first + size)
        layer = together.to(torch.bfloat16)
        layer.lengths, layer.x = together.lengths[samples], layer.x[:, samples].contiguous()
        layer.h0, layer.mask = layer.h0[:, samples].contiguous(), layer.mask[:, samples].contiguous()
        layer.c0 = None if layer.c0 is None else layer.c0[:, samples].contiguous()
        inputs = layer.require_grad()
        outputs = layer.apply(kernels, *inputs, plan=plan, slot=torch.zeros(1), record_key=987654)
        of_states = [inputs[1]] if layer.c0 is None else inputs[1:3]
        sums = sum(out.double().sum() for out in outputs)
        return [*outputs, *torch.autograd.grad(sums, of_states), recording.recorded(987654).norms]

    parts = [run_part(first, 8) for first in range(0, 24, 8)]
    names = ["y", *(["h_n", "h0"] if together.c0 is None else ["h_n", "c_n", "h0", "c0"]), "norms"]
    for name, all_samples, *of_parts in zip(names, run_part(0, 24), *parts, strict=True):
        dim = 2 if name == "norms" else 1
        assert_bit_equal(all_samples, torch.cat(of_parts, dim), name)


@pytest.mark.parametrize("kernels", KERNELS)
def test_large_batches_are_ordered_in_windows(kernels):
    device = "cuda" if kernels == "cuda" else "cpu"
    batch = 8192 + 20  # csrc/cuda/slices.cuh: kOrderWindow
    layer = make_layer(Case("rnn_tanh", "lengths", steps=2, batch=batch, hidden_size=1), torch.float32, device)
    expected, _ = run(layer, "reference")
    ours, _ = run(layer, kernels, "block")
    for name, our, theirs in zip(names_of(layer), ours, expected, strict=True):
        assert_equal_to_rounding(our, theirs, name)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", ["padded", "lengths", "packed"])
@pytest.mark.parametrize("clip", [None, "norm", "value"])
@pytest.mark.parametrize("kernels", KERNELS)
def test_projections_run_by_the_matmul_plan(kernels, clip, layout, dtype):
    device = "cuda" if kernels == "cuda" else "cpu"
    case = Case("lstm", layout, directions=2, site="state", projected=True, batch=5, hidden_size=20)
    layer = small_weights(case, dtype, device)
    exact, exact_clipped = run(layer.to(torch.float64), "reference", clip=clip)
    plain, _ = run(layer, "reference", clip=clip)
    ours, clipped = run(layer, kernels, clip=clip)
    assert clipped.equal(exact_clipped)
    for name, our, low, true in zip(names_of(layer), ours, plain, exact, strict=True):
        if dtype == torch.float64:
            assert_equal_to_rounding(our, true, name)
        else:
            assert_error_ratio(our, low, true, 3, name)


@pytest.mark.parametrize(
    ("plan", "hidden"),
    [
        *((plan, hidden) for hidden in (300, 650) for plan in ("stepwise", "cluster", "grid")),
        ("grid:cluster=4", 300), ("grid:cluster=8", 650), ("grid:cluster=16", 650), ("grid:cluster=8", 1150),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kernels", KERNELS)
def test_large_layers_split_columns_over_warps_and_units_over_blocks(kernels, plan, hidden):
    device = "cuda" if kernels == "cuda" else "cpu"
    layer = small_weights(Case("lstm", steps=2, batch=3, hidden_size=hidden), torch.bfloat16, device)
    exact, _ = run(layer.to(torch.float64), "reference")
    plain, _ = run(layer, "reference")
    ours, _ = run(layer, kernels, plan)
    for name, our, low, true in zip(names_of(layer), ours, plain, exact, strict=True):
        assert_error_ratio(our, low, true, 3, name)


@pytest.mark.parametrize(
    ("plan", "hidden", "threshold"),  # of about the median norm
    [("cluster:blocks=2", 20, 0.85), ("grid:blocks=2,cluster=1", 20, 0.85), ("grid:blocks=4,cluster=2", 33, 1.05)],
)
@pytest.mark.parametrize("kernels", KERNELS)
def test_long_sequences_are_right_to_the_last_step(kernels, plan, hidden, threshold):
    """Phases of barriers and counters that rise at every step, of operands and of norms."""
    device = "cuda" if kernels == "cuda" else "cpu"
    layer = small_weights(Case("lstm", steps=300, batch=2, hidden_size=hidden), torch.float32, device)
    exact, exact_clipped = run(layer.to(torch.float64), "reference", clip="norm", threshold=threshold)
    ours, clipped = run(layer, kernels, plan, clip="norm", threshold=threshold)
    assert clipped.equal(exact_clipped) and 0.2 < clipped.double().mean() < 0.8
    for name, our, true in zip(names_of(layer), ours, exact, strict=True):
        assert_equal_to_rounding(our, true.to(our.dtype), name)


DEVICES = ["H100", "A100", "RTX 4090", "small", "old", "H100 with code for 8.0", "H100 with code for 7.5"]


@pytest.fixture
def device_of():
    """Chooses the emulated device; afterwards it is the usual one again."""
    yield torch.ops.fastrnn_emulated.use_device
    torch.ops.fastrnn_emulated.use_device("H100")


@pytest.mark.skipif("emulated" not in KERNELS, reason="the emulated devices")
@pytest.mark.parametrize(
    ("name", "plan", "message"),
    [
        ("A100", "cluster", "the device has no thread block clusters"),
        ("old", "block", "it needs compute capability 8.0 or later"),
        ("small", "block", "hidden_size 300 has more units than 1 block can own"),
        ("H100 with code for 8.0", "cluster", "fastrnn was built for older architectures alone (TORCH_CUDA_ARCH_LIST)"),
        (
            "H100 with code for 7.5",
            "stepwise",
            "fastrnn was built for older architectures alone (TORCH_CUDA_ARCH_LIST)",
        ),
        ("H100 without code", "stepwise", "fastrnn was not built for this GPU"),
        ("H100 without code", "", "fastrnn was not built for this GPU"),
        ("H100", "fastest", 'expected "block", "cluster", "grid", "stepwise" or "matmul"'),
    ],
)
def test_a_device_that_cannot_run_a_plan_says_so_and_the_next_call_works(device_of, name, plan, message):
    layer = small_weights(Case("lstm", hidden_size=300, steps=2), torch.bfloat16, "cpu")
    device_of(name)
    with pytest.raises((ValueError, RuntimeError), match=".") as error:
        run(layer, "emulated", plan)
    assert message in str(error.value)
    if name == "H100 without code":
        return  # nothing works there
    expected, _ = run(layer, "reference")
    ours, _ = run(layer, "emulated")
    torch.testing.assert_close(ours, expected, rtol=0.05, atol=0.05)


@pytest.mark.skipif("emulated" not in KERNELS, reason="the emulated devices")
def test_the_clusters_that_fit_are_asked_of_the_runtime(device_of):
    for name, limits, of_8, of_16 in [
        ("H100", [9, 0, 132, 227 << 10], 16, 8),
        ("small", [9, 0, 16, 227 << 10], 2, 0),
        ("A100", [8, 0, 108, 163 << 10], 0, 0),
    ]:
        device_of(name)
        numbers = list(torch.ops.fastrnn_emulated.device_limits(0))
        assert numbers[:4] == limits
        assert len(numbers) == 21 and numbers[4 + 7] == of_8 and numbers[4 + 15] == of_16


@pytest.mark.skipif("emulated" not in KERNELS, reason="the emulated devices")
@pytest.mark.parametrize(("name", "arch"), [("H100", 90), ("H100 with code for 8.0", 80), ("H100 without code", 0)])
def test_the_architecture_of_the_code_is_asked_of_the_runtime(device_of, name, arch):
    device_of(name)
    assert torch.ops.fastrnn_emulated.device_limits(0)[-1] == arch


@pytest.mark.skipif("emulated" not in KERNELS, reason="the emulated devices")
@pytest.mark.parametrize("plan", PLANS)
def test_what_never_changes_is_asked_of_the_runtime_once(device_of, plan):
    layer = small_weights(Case("gru", "lengths", batch=10, hidden_size=40), torch.float16, "cpu")
    for name in ("H100", "small"):
        device_of(name)
        run(layer, "emulated", plan)
        assert counted(lambda: run(layer, "emulated", plan))[2] == 0


@pytest.mark.skipif("emulated" not in KERNELS, reason="the emulated devices")
@pytest.mark.parametrize("name", DEVICES)
def test_every_device_runs_every_layer_by_some_plan(device_of, monkeypatch, name):
    device_of(name)
    for allowed in ("", "all"):
        monkeypatch.setenv("FASTRNN_PLANS", allowed)
        for hidden in (20, 200):
            layer = small_weights(
                Case("gru", "lengths", directions=2, batch=10, hidden_size=hidden), torch.float16, "cpu"
            )
            expected, _ = run(layer, "reference")
            ours, _ = run(layer, "emulated")
            torch.testing.assert_close(ours, expected, rtol=0.02, atol=0.02)
