"""Hidden sizes about those of the CPU engine's vectors: units that fill their last vector, nearly, half or hardly (csrc/cpu/panels.h)."""

import pytest
import torch
from compare import assert_equal_to_rounding, gradients

import fastrnn
from fastrnn import _library

pytestmark = pytest.mark.skipif(not _library.is_loaded("cpu"), reason="the CPU kernels are not built")

# Of vectors of 2 to 16: units that share the last one in every way, after no vector and after some.
SIZES = {torch.float32: (1, 2, 3, 5, 8, 9, 17, 18, 20, 24, 25), torch.float64: (1, 3, 5, 10)}
LAYERS = {
    "lstm": (fastrnn.LSTM, {}),
    "lstm-projected": (fastrnn.LSTM, {"proj_size": 1}),
    "gru": (fastrnn.GRU, {}),
    "rnn": (fastrnn.RNN, {}),
}


@pytest.mark.parametrize(("dtype", "size"), [(dtype, size) for dtype, sizes in SIZES.items() for size in sizes])
@pytest.mark.parametrize("kind", LAYERS)
def test_every_hidden_size_gives_the_reference_s_results(kind, dtype, size):
    if kind == "lstm-projected" and size == 1:
        pytest.skip("proj_size has to be smaller")
    create, options = LAYERS[kind]
    layer = create(3, size, bidirectional=True, dtype=dtype, **options)
    for batch, lengths in ((1, None), (5, [4, 0, 7, 1, 6]), (30, None)):
        x = torch.randn(7, batch, 3, dtype=dtype, requires_grad=True)

        def results(x=x, lengths=lengths):
            y, final = layer(x, lengths=lengths)
            outputs = [y, *(final if isinstance(final, tuple) else (final,))]
            with torch.no_grad():
                inferred = layer(x, lengths=lengths)[0]
            return [*outputs, inferred, *gradients(outputs, [x, *layer.parameters()])]

        found = results()
        with fastrnn.backend("reference"):
            assert_equal_to_rounding(found, results())
