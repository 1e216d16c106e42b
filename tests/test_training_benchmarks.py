"""The training comparisons: their data, that both libraries start alike, and that the report says what the JSON says."""

import json
from dataclasses import replace

import pytest
import torch

from benchmarks.training import data, report
from benchmarks.training.tasks import TASKS, Task
from benchmarks.training.train import train
from examples import language_model

SMALL = (60, 20, 20)


def test_the_adding_problem_is_the_sum_of_the_two_marked_numbers():
    x, target = data.adding(seed=1, steps=9, sizes=SMALL).train
    assert x[..., 1].sum(1).eq(2).all()
    torch.testing.assert_close((x[..., 0] * x[..., 1]).sum(1), target)


def test_the_copy_task_asks_for_the_first_symbols_in_their_order():
    x, target = data.copy(seed=1, items=3, delay=4, sizes=SMALL).train
    assert target[:, -3:].equal(x[:, :3])
    assert target[:, :-3].eq(-100).all()
    assert (x == 9).nonzero()[:, 1].eq(6).all()  # told to, right before


@pytest.mark.parametrize(("name", "module"), [("digits", "sklearn"), ("elnino", "statsmodels")])
def test_real_data_has_the_stated_size(name, module):
    pytest.importorskip(module)
    found = TASKS[name].load(0)
    sizes = [len(part.x) for part in (found.train, found.validation, found.test)]
    assert sizes == {"digits": [1197, 300, 300], "elnino": [444, 120, 132]}[name]
    assert all(part.x.isfinite().all() and part.target.isfinite().all() for part in (found.train, found.test))


def test_the_month_after_the_window_is_the_target():
    pytest.importorskip("statsmodels")
    x, target = data.elnino(0, window=12).train
    assert x[1:, -1, 0].equal(target[:-1])


def test_text_targets_are_the_next_characters_and_no_piece_is_in_two_splits():
    found = data.text(seed=0, steps=20, limit=4000)
    for part in (found.train, found.validation, found.test):
        assert part.x[:, 1:].equal(part.target[:, :-1])
    assert sum(len(part.x) for part in (found.train, found.validation, found.test)) == 199


@pytest.fixture(scope="module")
def results():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def tiny(seed: int) -> data.Data:
        return data.adding(seed, steps=6, sizes=(200, 50, 50))

    task: Task = replace(TASKS["adding"], load=tiny, epochs=3, batch_size=20, hidden_size=16)
    yield [result for seed in (0, 1) for result in train("adding", task, seed)]
    torch.set_num_threads(threads)


def test_fastrnn_trains_as_torch_nn_does_and_options_change_the_training(results):
    scores = {(r["seed"], report.kind(r["variant"])): r["validation"] for r in results}
    for seed in (0, 1):
        assert scores[(seed, "fastrnn")] == pytest.approx(scores[(seed, "torch.nn")], rel=1e-3)
        assert scores[(seed, "recurrent dropout")] != scores[(seed, "fastrnn")]
        assert scores[(seed, "torch.nn")][-1] < scores[(seed, "torch.nn")][0]
    clipped = [r["clipped"] for r in results]
    assert [c is not None for c in clipped] == [False, False, False, True] * 2


def test_the_report_holds_the_means_over_seeds(results, tmp_path):
    pytest.importorskip("matplotlib")
    files = []
    for seed in (0, 1):
        file = tmp_path / f"training-{seed}.json"
        environment = {"processor": "p", "torch": "t", "fastrnn": "f", "date": "d", "device": "cpu"}
        file.write_text(json.dumps({"environment": environment, "results": [r for r in results if r["seed"] == seed]}))
        files.append(file)
    text = report.markdown(files)
    ours = [r["test"] for r in results if r["variant"] == "fastrnn"]
    assert f"| fastrnn | {sum(ours) / 2:.3g} ± " in text
    report.figure(files, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_the_language_model_learns_and_writes():
    torch.manual_seed(0)
    text = language_model.read_text()[:6000]
    alphabet = language_model.Alphabet(text)
    assert alphabet.decode(alphabet.encode("the")) == "the"
    lines = language_model.lines_of(alphabet.encode(text), 8)
    assert lines[:, 1].equal(alphabet.encode(text)[750:1500])
    model = language_model.LanguageModel(len(alphabet), 24, recurrent_dropout=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2, fused=True)
    bits = [language_model.train_epoch(model, optimizer, lines, chunk=50, max_norm=1.0) for _ in range(4)]
    assert bits[-1] < 0.85 * bits[0]
    assert language_model.evaluate(model, lines) < bits[0]
    written = language_model.write(model, alphabet, "The ", 20)
    assert written.startswith("The ")
    assert len(written) == 24
