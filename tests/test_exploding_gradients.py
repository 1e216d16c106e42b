"""The example of a task that only clipping through time makes trainable, on one seed and few steps."""

import math

from examples import exploding_gradients as example


def test_all_but_clipping_through_time_break_down_and_that_learns(tmp_path, capsys):
    picture = tmp_path / "picture.png"
    options = ["--seeds", "1", "--rates", "0.01", "--train-steps", "14", "--jobs", "1", "--out", str(picture)]
    runs = example.main(options)
    assert [run.method for run in runs] == list(example.METHODS)
    *others, through_time = runs
    for run in others:
        assert run.failed_at == 1, run.method
        assert not math.isfinite(run.losses[-1])
    assert through_time.failed_at is None
    assert through_time.accuracy > 0.8
    assert through_time.losses[-1] < 0.8 * through_time.losses[0]
    assert picture.stat().st_size > 10_000
    accuracies = picture.with_suffix(".txt").read_text()
    assert all(method in accuracies for method in example.METHODS)
    assert "loss not finite after [1] steps" in capsys.readouterr().out
