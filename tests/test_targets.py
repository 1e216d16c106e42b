"""The predicted side of the targets: every shape is there, ratios are what their parts say, and nothing passes for measured."""

from pathlib import Path

import pytest

pytest.importorskip("fastrnn._C")

from benchmarks import plans, targets
from benchmarks.devices import CELLS, DEVICES
from benchmarks.targets import PERSIST, PUBLISHED, SMALL, STANDARD, Row, Target

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"


def row(cell="LSTM", arithmetic="bfloat16", target=Target(16, 512, 512), device="H100") -> Row:  # noqa: B008
    return Row(device, cell, arithmetic, target)


@pytest.mark.parametrize("device", DEVICES)
def test_every_shape_of_the_targets_has_a_row_of_every_cell(device):
    found = {(r.cell, r.arithmetic, str(r.target)) for r in targets.rows(device)}
    standard = ["1, 512, 512", "16, 512, 512", "32, 512, 1024", "64, 256, 1024", "128, 128, 512"]
    standard += ["16, 512, 512, 2 layers, bidirectional", "10, 512, 256, 6 layers", "32, 512, 512, ragged"]
    persistent = ["16, 1024, 768", "32, 512, 1024", "16, 1024, 64", "16, 3854, 128", "16, 1024, 192"]
    expected = {
        (cell, arithmetic, shape) for cell in CELLS for arithmetic in ("bfloat16", "tf32") for shape in standard
    }
    assert found == expected | {(cell, "float16", shape) for cell in CELLS for shape in persistent}


def test_a_prediction_is_the_plans_and_the_products():
    found = row()
    forward, backward = (plan["step_us"] + plan["start_us"] / 512 for plan in found.plans)
    flops = 4 * 2 * 16 * 2048 * 512  # input projection, gradients of the input and of both weights
    assert found.products == pytest.approx(flops / (0.6 * 989e6))
    assert found.predicted == pytest.approx(forward + backward + found.products)


@pytest.mark.parametrize("device", DEVICES)
def test_a_clip_by_norm_leaves_the_share_that_its_plan_says(device):
    found = row(device=device)
    normed = found.plan(True, clips_norm=True)
    slower = found.step_us(normed) - found.recurrence[1]
    assert slower > 0.3 and "sum of the norm" in normed["bound"]
    assert found.share_when_clipped == pytest.approx(found.predicted / (found.predicted + slower))
    lines = [line.split(" | ") for line in targets._clipped(device)]
    assert len(lines) == 9
    assert all(float(worst) <= float(mean) < 1 for _, _, _, mean, worst, *_ in lines)


def test_products_count_layers_directions_and_rows_that_exist():
    both = Target(16, 512, 512, layers=2, directions=2)  # widths 512 and 1024
    assert both.product_flops("LSTM") == 2 * 2 * 16 * 2048 * (3 * 768 + 512)
    ragged = Target(16, 3, 512, ragged=True)  # two of three steps
    assert ragged.product_flops("GRU") == pytest.approx(2 / 3 * Target(16, 3, 512).product_flops("GRU"))


def test_a_ratio_is_cudnns_time_over_the_prediction():
    of_other_shape = row()
    assert of_other_shape.cudnn == pytest.approx(5.5 + 5.5 + of_other_shape.products)
    assert of_other_shape.ratio == pytest.approx(of_other_shape.cudnn / of_other_shape.predicted)
    of_this_shape = row(arithmetic="float16", target=Target(16, 1024, 768))
    assert of_this_shape.cudnn == pytest.approx(1.96 + 3.11)
    bidirectional = row(target=Target(16, 512, 512, directions=2))
    assert bidirectional.cudnn == pytest.approx(1.9 * 11 + bidirectional.products)
    assert row("GRU", "float16", Target(16, 1024, 64)).ratio is None  # nothing is published


@pytest.mark.parametrize(
    ("cell", "arithmetic", "target", "expected"),
    [
        ("LSTM", "bfloat16", Target(16, 512, 512), [STANDARD] * 2),
        ("LSTM", "float16", Target(16, 512, 512), [PERSIST] * 2),
        ("GRU", "float16", Target(16, 512, 512), [STANDARD] * 2),
        ("LSTM", "float16", Target(10, 512, 512), [STANDARD] * 2),
        ("LSTM", "float16", Target(16, 512, 512, layers=2), [STANDARD] * 2),
        ("RNN", "float16", Target(96, 512, 1024), [STANDARD] * 2),
        ("GRU", "tf32", Target(16, 512, 192), [SMALL, STANDARD]),
        ("LSTM", "tf32", Target(16, 512, 128), [SMALL] * 2),
        ("LSTM", "tf32", Target(16, 512, 128, ragged=True), [STANDARD] * 2),
        ("RNN", "bfloat16", Target(10, 512, 256, layers=6), [SMALL] * 2),
    ],
)
def test_cudnns_algorithm_is_the_one_that_torch_chooses(cell, arithmetic, target, expected):
    assert row(cell, arithmetic, target).algorithms == expected


def test_no_shape_of_the_persistent_kernels_may_be_below_its_share():
    persistent = next(line for line in targets.verdicts("H100") if line.startswith("persistent"))
    cells = persistent.split(" | ")
    assert cells[3] == "1" and cells[5] == "0.95"
    assert cells[-1] == ("yes" if float(cells[2]) >= 1 and float(cells[4]) >= 0.95 else "no")


def test_a_published_time_stands_for_no_smaller_layer():
    for device in DEVICES:
        for found in targets.rows(device):
            for reference in found.references:
                assert reference is None or reference.hidden_size <= found.target.hidden_size
    assert all(p.source for p in PUBLISHED)


def test_the_table_says_that_it_is_predicted_and_by_whom_the_rest_was_published():
    text = plans.markdown()
    section = text[text.index("## Against the targets") : text.index("## H100\n\n| cell | arithmetic | B, T, H | pass")]
    assert section.count("Predicted, not measured") == 1
    assert section.count("Predicted ratios over cuDNN") == len(DEVICES)
    for published in PUBLISHED:
        assert published.source in section
    for device in DEVICES:
        lines = section[section.index(f"### {device}\n") :].split("\n\n")
        assert lines[4].count("\n") - 1 == len(list(targets.rows(device)))


def test_the_committed_predictions_are_what_plan_cpp_says():
    """Else: ``python -m benchmarks.plans --out benchmarks/results/plans.md``."""
    assert (RESULTS / "plans.md").read_text() == plans.markdown()
