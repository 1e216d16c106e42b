"""What dropout masks are drawn from: Philox4x32-10 of a seed that torch's generator gives, by the operator and by torch's operations."""

import pytest
import torch
from compare import assert_bit_equal

import fastrnn
from fastrnn import _library, masks

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
LOW = 0xFFFFFFFF

needs_cpu = pytest.mark.skipif(not _library.is_loaded("cpu"), reason="the CPU operators are not built")


def philox4x32(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """Of whole numbers of Python, as the paper has it."""
    c, k = list(counter), list(key)
    for _ in range(10):
        first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [second >> 32 ^ c[1] ^ k[0], second & LOW, first >> 32 ^ c[3] ^ k[1], first & LOW]
        k = [k[0] + 0x9E3779B9 & LOW, k[1] + 0xBB67AE85 & LOW]
    return tuple(c)


def numbers(seed: int, count: int) -> list[int]:
    found: list[int] = []
    for block in range(-(-count // 64)):
        made = [philox4x32((16 * block + i, 0, 0, 0), (seed & LOW, seed >> 32)) for i in range(16)]
        found += [one[word] for word in range(4) for one in made]
    return found[:count]


def drawn(seed: int, size: tuple[int, ...], p: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    factors = torch.full(size, 5.0, dtype=dtype)
    torch.ops.fastrnn.dropout_factors_(factors, torch.tensor(seed), p)
    return factors


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((LOW, LOW, LOW, LOW), (LOW, LOW), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_the_plain_generator_gives_the_authors_known_answers(counter, key, expected):
    assert philox4x32(counter, key) == expected


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1, 0x299F31D0A4093822])
def test_numbers_are_the_generator_s(seed):
    expected = numbers(seed, 200)
    assert masks.philox(torch.tensor(seed), 200).tolist() == expected
    assert masks.philox(torch.tensor(seed), 0).tolist() == []


@needs_cpu
@pytest.mark.parametrize("p", [0.0, 1e-9, 0.25, 1 / 3, 0.999, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_factor_is_dropped_where_its_number_is_below_p(dtype, p):
    seed, size = 0x123456789ABCDEF, (3, 67)
    kept = torch.tensor(1 / (1 - p) if p < 1 else 0.0, dtype=dtype).item()
    expected = torch.tensor([0.0 if number < round(p * 2**32) else kept for number in numbers(seed, 201)], dtype=dtype)
    assert_bit_equal(drawn(seed, size, p, dtype).flatten(), expected)


@needs_cpu
@pytest.mark.parametrize("size", [0, 1, 15, 63, 64, 65, 1 << 15, (1 << 15) + 1, 100_000])
def test_the_operator_draws_what_torch_s_operations_do_for_any_number_of_threads(size):
    before = torch.get_num_threads()
    expected = masks.philox(torch.tensor(11), size).ge(2**30).float() / 0.75
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert_bit_equal(drawn(11, (size,), 0.25), expected)
    finally:
        torch.set_num_threads(before)


@needs_cpu
def test_wrong_arguments_are_refused_by_name():
    factors, seed = torch.zeros(4, 6), torch.tensor(1)
    operator = torch.ops.fastrnn.dropout_factors_
    for arguments, message in {
        (factors.long(), seed, 0.5): "factors is int64, expected float32, float64, float16 or bfloat16",
        (factors.t(), seed, 0.5): r"factors has strides \[1, 6\], expected a contiguous tensor",
        (factors, seed.int(), 0.5): "seed is int32, expected int64",
        (factors, seed[None], 0.5): r"seed has shape \[1\], expected \[\]",
        (factors, seed, -0.1): "p is -0.1, expected a number from 0 to 1",
        (factors, seed, 1.1): "p is 1.1, expected a number from 0 to 1",
        (factors, seed, float("nan")): "p is nan, expected a number from 0 to 1",
    }.items():
        with pytest.raises(RuntimeError, match=message):
            operator(*arguments)
    assert factors.eq(0).all()


def factors_of(seed: int, p: float, size: tuple[int, ...]) -> torch.Tensor:
    torch.manual_seed(seed)
    return masks.factors(p, size, torch.device("cpu"), torch.float32)


def test_factors_are_independent_of_each_other_as_far_as_that_shows():
    """Five standard deviations: of how many are dropped, and of how often two are dropped together."""
    p, size = 0.3, (64, 1000)
    found = torch.stack([factors_of(seed, p, size).eq(0) for seed in range(8)]).double() - p
    error = (p * (1 - p) / found.numel()) ** 0.5
    assert abs(found.mean().item()) < 5 * error
    together = p * (1 - p) / found.numel() ** 0.5
    for other in [found.roll(1, 0), found.roll(1, 1), *(found.roll(k, 2) for k in (1, 2, 4, 16, 64))]:
        assert abs((found * other).mean().item()) < 5 * together


def test_without_the_operators_masks_are_the_same(monkeypatch):
    expected = factors_of(3, 0.25, (2, 5, 33))
    monkeypatch.setattr(_library, "is_loaded", lambda backend: False)
    assert_bit_equal(factors_of(3, 0.25, (2, 5, 33)), expected)
    assert factors_of(3, 1.0, (2, 5)).eq(0).all()


def test_transforms_of_torch_func_draw_the_same_masks():
    rnn = fastrnn.RNN(3, 4, recurrent_dropout=0.5)
    x = torch.randn(5, 6, 3)

    def loss(parameters: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(rnn, parameters, (x,))[0].square().sum()

    torch.manual_seed(5)
    loss(dict(rnn.named_parameters()), x).backward()
    torch.manual_seed(5)
    found = torch.func.grad(loss)({name: p.detach() for name, p in rnn.named_parameters()}, x)
    for name, parameter in rnn.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_vmap_draws_one_mask_or_one_each(randomness):
    def draw(x: torch.Tensor) -> torch.Tensor:
        return x * masks.factors(0.5, (40,), x.device, x.dtype)

    found = torch.vmap(draw, randomness=randomness)(torch.ones(3, 40))
    assert set(found.unique().tolist()) == {0.0, 2.0}
    assert found[0].equal(found[1]) == found[1].equal(found[2]) == (randomness == "same")
    with pytest.raises(RuntimeError, match="randomness"):
        torch.vmap(draw)(torch.ones(3, 40))
