"""The sentiment demo: cleaning, tokens, splits, batches, no padding leak, and the whole of it on the real data."""

from __future__ import annotations

import io
import itertools
import math
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.append(str(REPOSITORY))  # last, so that an installed fastrnn is tested where there is one

pytest.importorskip("rich", reason="the demo's requirements are not installed")
pytest.importorskip("matplotlib", reason="the demo's requirements are not installed")

from rich.console import Console  # noqa: E402

from examples.sentiment import __main__ as demo  # noqa: E402
from examples.sentiment import data, fetch, report  # noqa: E402
from examples.sentiment.model import Classifier, ModelConfig  # noqa: E402
from examples.sentiment.text import clean, tokenise  # noqa: E402
from examples.sentiment.train import Epoch, Run, Score, TrainingConfig, train_together  # noqa: E402

LIBRARIES = ["torch.nn", "fastrnn"]
SOURCES = list(fetch.FILES)


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)


# ------------------------------------------------------------------------------------------------------------- text


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("Fish &amp; chips", "Fish & chips"),
        ("you&amp;#39;re late", "you're late"),
        ("I &lt;3 this <b>so</b>  much<br/>", "I <3 this so much"),
        ("a CafÃ© we liked", "a Café we liked"),
        ("it â€™ s", "it ' s"),
        ("SÃO Paulo", "SÃO Paulo"),
        ("don\u2019t \u201cquote\u201d me\u2026", 'don\'t "quote" me...'),
        ("a ''masterpiece''", 'a "masterpiece"'),
        ("'The whole line is quoted.'", "The whole line is quoted."),
        ("tab\tand\u200bzero\u00a0width", "tab and zero width"),
        ("   ", ""),
    ],
)
def test_cleaning_resolves_markup_and_odd_characters(raw, expected):
    assert clean(raw) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't PANIC, it's fine.", ["don't", "panic", ",", "it", "'s", "fine", "."]),
        ("@anna see http://x.org/a?b=1 or www.x.org!", ["<user>", "see", "<url>", "or", "<url>", "!"]),
        ("3,000 in 1999, $4.50, 90% on the 21st", ["<number>", "in", "<number>", ",", "<number>", ",", "<number>", "on", "the", "<number>"]),
        ("80 gb mp3", ["<number>", "gb", "mp3"]),
        ("Great :-) bad :( :'( xD <3 ^_^ \\o/", ["great", ":-)", "bad", ":(", ":'(", "xD", "<3", "^_^", "\\o/"]),
        (":DDDD <33333", [":D", "<3"]),
        ("note: explain (page 8)", ["note", ":", "explain", "(", "page", "<number>", ")"]),
        ("sooooo good!!!!!! what?!?!", ["sooo", "good", "!!!", "what", "?!"]),
        ("well....", ["well", "..."]),
        ("laugh-out-loud #fun", ["laugh-out-loud", "#", "fun"]),
        ("Château brûlée", ["château", "brûlée"]),
        ("", []),
    ],
)  # fmt: skip
def test_tokens(text, expected):
    assert tokenise(text) == expected


# ------------------------------------------------------------------------------------------------------------- data


def made_up_rows(count: int = 400) -> list[tuple[str, str, float]]:
    """Distinct sentences from all sources whose words give the label away."""
    good, bad = ["good", "lovely", "great", "superb"], ["bad", "awful", "poor", "dire"]
    things = [f"{a}{b}" for a, b in itertools.product("bcdfghklmnprst", "aeiou")]
    rows = []
    for index in range(count):
        label = index % 2
        words = [(good if label else bad)[index % 4], *(things[(index * step) % len(things)] for step in (1, 3, 7))]
        text = " ".join(words[: 2 + index % 3]) + f" w{'xyz'[index % 3]}{'ab' * (index // 3)}"
        rows.append((SOURCES[index // 2 % 4], text, 2.0 if label else -2.0))
    return rows


def test_sentences_of_the_same_words_are_one():
    rows = [
        ("tweets", "Yay. Another good phone interview.", 2.0),
        ("tweets", "@bob yay, another GOOD phone interview!!!", 1.0),
        ("news", "yay another good phone", 3.0),
    ]
    sentences = data.prepare(rows)
    assert [(s.source, s.valence) for s in sentences] == [("tweets", 1.5), ("news", 3.0)]


def test_emoticons_tell_sentences_apart_and_bare_punctuation_is_no_sentence():
    sentences = data.prepare([("tweets", "home :)", 2.0), ("tweets", "home :(", -2.0), ("products", "!", 1.0)])
    assert [(s.text, s.label) for s in sentences] == [("home :)", 1), ("home :(", 0)]


def test_neutral_sentences_are_left_out_at_the_stated_band():
    band = data.NEUTRAL_BAND
    valences = [band, -band, 0.9 * band, -0.9 * band, 0, 4]
    rows = [("news", f"sentence {name}", valence) for name, valence in zip("abcdef", valences, strict=True)]
    assert [s.valence for s in data.prepare(rows)] == [band, -band, 4]


def test_duplicates_that_disagree_become_neutral():
    assert data.prepare([("news", "so what", 2.0), ("news", "So what?", -2.0)]) == []


def test_splits_share_no_sentence_and_keep_the_proportions():
    rows = made_up_rows()
    repeated = [(source, text.upper() + "!", valence) for source, text, valence in rows[::3]]
    sentences = data.prepare(rows + repeated)
    splits = data.split(sentences, seed=3)
    parts = [splits.train, splits.validation, splits.test]
    keys = [{data.identity(sentence.tokens) for sentence in part} for part in parts]
    assert not keys[0] & keys[1] and not keys[0] & keys[2] and not keys[1] & keys[2]
    assert sum(map(len, keys)) == sum(map(len, parts)) == len(rows)
    for source, label in itertools.product(SOURCES, (0, 1)):
        counts = [sum(s.source == source and s.label == label for s in part) for part in parts]
        total = sum(counts)
        assert total > 0 and counts[1] == counts[2] == round(0.1 * total), (source, label, counts)


def test_splits_depend_on_the_seed_alone():
    sentences = data.prepare(made_up_rows())
    assert data.split(sentences, 1) == data.split(sentences, 1)
    assert data.split(sentences, 1) != data.split(sentences, 2)


def test_rare_words_are_the_unknown_word():
    sentences = data.prepare([("news", "good film", 2.0), ("news", "good play", 2.0)])
    vocabulary = data.Vocabulary(sentences, min_count=2)
    assert vocabulary.words == ["good"]
    assert vocabulary.encode(["good", "film", "never"]).tolist() == [2, data.UNKNOWN, data.UNKNOWN]
    assert len(vocabulary) == 3


@pytest.mark.parametrize("order", ["in_order", "shuffled"])
def test_batches_hold_every_sentence_once_with_its_label_and_length(order):
    sentences = data.prepare(made_up_rows(101))
    vocabulary = data.Vocabulary(sentences, min_count=1)
    batches = data.Batches(sentences, vocabulary, batch_size=8)
    listed = list(batches.in_order() if order == "in_order" else batches.shuffled(5, window=3))
    assert len(listed) == len(batches) == 13
    seen = []
    for batch in listed:
        for column, length, label in zip(batch.tokens.T, batch.lengths, batch.labels, strict=True):
            assert (column[length:] == data.PAD).all() and (column[:length] != data.PAD).all()
            seen.append((tuple(column[:length].tolist()), int(label)))
    expected = [(tuple(vocabulary.encode(s.tokens).tolist()), s.label) for s in sentences]
    assert sorted(seen) == sorted(expected)


# ------------------------------------------------------------------------------------------------------------ model


def sentences_of_lengths(lengths: list[int], vocabulary_size: int) -> list[torch.Tensor]:
    return [torch.randint(1, vocabulary_size, (length,)) for length in lengths]


def make_classifier(library: str) -> Classifier:
    return Classifier(30, ModelConfig(library), embedding_size=6, hidden_size=5).double().eval()


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_prediction_does_not_depend_on_its_batch(library):
    model = make_classifier(library)
    encoded = sentences_of_lengths([4, 9, 1, 6, 9], 30)
    batch = data.collate(encoded, torch.zeros(5))
    with torch.no_grad():
        together = model(batch.tokens, batch.lengths)
        alone = [model(tokens.unsqueeze(1), torch.tensor([len(tokens)])) for tokens in encoded]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-12, atol=1e-12)
    assert together.unique().numel() == 5


@pytest.mark.parametrize("library", LIBRARIES)
def test_padding_reaches_neither_predictions_nor_gradients(library):
    model = make_classifier(library)
    batch = data.collate(sentences_of_lengths([3, 8, 1], 30), torch.zeros(3))
    results = []
    for padding in (0.0, math.nan):
        with torch.no_grad():
            model.embedding.weight[data.PAD] = padding
        model.zero_grad()
        logits = model(batch.tokens, batch.lengths)
        logits.square().sum().backward()
        results.append([logits.detach(), *(p.grad.clone() for p in model.parameters())])
    for clean_result, poisoned in zip(*results, strict=True):
        assert torch.isfinite(poisoned).all()
        torch.testing.assert_close(poisoned, clean_result, rtol=0, atol=0)


def test_both_libraries_have_the_same_parameters_and_predictions():
    ours, theirs = make_classifier("fastrnn"), make_classifier("torch.nn")
    ours.load_state_dict(theirs.state_dict())
    batch = data.collate(sentences_of_lengths([2, 7, 5], 30), torch.zeros(3))
    torch.testing.assert_close(
        ours(batch.tokens, batch.lengths), theirs(batch.tokens, batch.lengths), rtol=1e-10, atol=1e-10
    )


def test_recurrent_dropout_is_refused_for_torch():
    with pytest.raises(ValueError, match="no recurrent dropout"):
        ModelConfig("torch.nn", recurrent_dropout=0.5)


# --------------------------------------------------------------------------------------------------------- training


def tiny_training(config: TrainingConfig):
    splits = data.split(data.prepare(made_up_rows()), 0)
    vocabulary = data.Vocabulary(splits.train)
    parts = (splits.train, splits.validation, splits.test)
    train, validation, test = (data.Batches(part, vocabulary, config.batch_size) for part in parts)
    return demo.make_runs(len(vocabulary), config), train, validation, test


def test_runs_learn_and_equal_configurations_agree():
    runs, train, validation, test = tiny_training(TrainingConfig(epochs=4, batch_size=32, learning_rate=0.02))
    train_together(runs, train, validation, lambda run, epoch_ended: None)
    assert [len(run.history) for run in runs] == [4, 4, 4]
    for run in runs:
        assert run.evaluate(test).accuracy > 0.9, run.name
        assert run.evaluate(validation) == run.best.validation  # the best weights are back
    theirs, ours, dropped = ([epoch.train.loss for epoch in run.history] for run in runs)
    assert ours == pytest.approx(theirs, rel=1e-3)
    assert dropped != pytest.approx(theirs, rel=1e-3)


def test_a_run_stops_after_its_patience():
    runs, train, validation, _ = tiny_training(TrainingConfig(epochs=50, batch_size=32, learning_rate=0.0, patience=2))
    run = runs[0]
    while not run.finished:
        run.train_epoch(train, validation)
    assert (len(run.history), run.best_epoch) == (3, 0)


def test_the_best_weights_come_back_after_a_bad_epoch():
    (run, *_), train, validation, _ = tiny_training(TrainingConfig(batch_size=32, learning_rate=0.02))
    for _ in range(3):
        run.train_epoch(train, validation)
    run.optimizer.param_groups[0]["lr"] = 0.0
    with torch.no_grad():
        run.model.output.weight.neg_()
    run.train_epoch(train, validation)
    assert run.best_epoch < 3 and run.evaluate(validation) != run.best.validation
    run.restore_best()
    assert run.evaluate(validation) == run.best.validation


def test_gradients_are_clipped_but_recorded_before():
    config = TrainingConfig(epochs=1, batch_size=32, learning_rate=0.01, max_norm=1e-3)
    (run, *_), train, validation, _ = tiny_training(config)
    run.train_epoch(train, validation)
    assert min(run.gradient_norms) > config.max_norm
    grads = torch.cat([p.grad.flatten() for p in run.model.parameters()])
    assert grads.norm().item() == pytest.approx(config.max_norm, rel=1e-2)


# ----------------------------------------------------------------------------------------------------------- report


def run_with_norms(norms: list[float]) -> Run:
    run = Run("made up", Classifier(5, ModelConfig("fastrnn")), TrainingConfig(max_norm=1.0))
    score = Score(loss=0.5, accuracy=0.75)
    run.history.append(Epoch(score, score, seconds=1.0, gradient_norms=norms))
    return run


def test_gradient_health_tells_what_was_clipped_and_what_is_not_finite():
    run = run_with_norms([0.5, 1.5, 0.7, math.inf])
    assert report.gradient_health(run) == (0.7, 1.5, 0.25, 1)
    assert report.describe_gradients([run]).endswith("NOT FINITE in made up 1 times.")
    assert report.describe_gradients([run_with_norms([0.5])]).endswith("finite in every step.")
    assert report.gradient_health(run_with_norms([math.nan])).num_not_finite == 1


def test_the_table_fits_eighty_columns_and_holds_every_number():
    run = run_with_norms([0.5, 1.25, 0.25])
    run.name = "fastrnn, recurrent dropout"
    console = Console(file=io.StringIO(), width=80)
    console.print(report.results_table([run], [Score(loss=0.5, accuracy=0.8125)]))
    text = console.file.getvalue()
    for cell in ("recurrent dropout", "clipped", "1.00", "1 of 1", "75.0%", "81.2%", "0.50, 1.25", "33.3%"):
        assert cell in text, text


def test_the_picture_is_written(tmp_path):
    runs, train, validation, _ = tiny_training(TrainingConfig(epochs=2, batch_size=32))
    train_together(runs, train, validation, lambda run, epoch_ended: None)
    report.save_curves(runs, 0.5, tmp_path / "new" / "curves.png")
    assert (tmp_path / "new" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_text_without_a_word_is_refused():
    run = Run("made up", Classifier(5, ModelConfig("fastrnn")), TrainingConfig())
    with pytest.raises(ValueError, match="no word to judge in '   '"):
        report.predict(run, data.Vocabulary([]), ["fine", "   "])


# ------------------------------------------------------------------------------------------------------------ fetch


def test_offline_the_message_names_the_remedy(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    assert demo.main(["--quick", "--cache", str(tmp_path / "cache")]) == 1
    message = capsys.readouterr().err
    assert fetch.ARCHIVE in message and str(tmp_path / "cache") in message and "pip said: " in message
    assert "Traceback" not in message


@pytest.mark.parametrize("device", ["cuda:99", "nonsense"])
def test_a_device_that_does_not_exist_is_refused(device, capsys):
    with pytest.raises(SystemExit):
        demo.main(["--device", device])
    assert f"{device!r} cannot be used" in capsys.readouterr().err


def test_an_archive_with_missing_sentences_is_refused(tmp_path, monkeypatch):
    def tar(files: dict[str, bytes]) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        return buffer.getvalue()

    row = "1\t-0.5\tnot much\r\n".encode("utf-8-sig")
    inner = tar({f"hutto_ICWSM_2014/{file}": row for file, _ in fetch.FILES.values()})
    folder = f"{fetch.PACKAGE}-{fetch.VERSION}/additional_resources"
    archive = tmp_path / fetch.ARCHIVE
    archive.write_bytes(tar({f"{folder}/{fetch.INNER_ARCHIVE}": inner}))
    monkeypatch.setattr(fetch, "_is_intact", lambda path: True)
    with pytest.raises(ValueError, match="should hold 10605 sentences, it holds 1"):
        fetch.load_rows(tmp_path)
    monkeypatch.setattr(fetch, "FILES", {source: (file, 1) for source, (file, _) in fetch.FILES.items()})
    assert fetch.load_rows(tmp_path) == [(source, "not much", -0.5) for source in SOURCES]


@pytest.mark.slow
def test_the_demo_runs_on_the_real_data(tmp_path):
    try:
        rows = fetch.load_rows()
    except fetch.DataUnavailable as error:
        pytest.skip(f"the demo's data cannot be had here: {str(error).splitlines()[0]}")
    assert len(rows) == 23_703
    assert min(valence for _, _, valence in rows) >= -4 and max(valence for _, _, valence in rows) <= 4
    picture = tmp_path / "curves.png"
    command = [sys.executable, "-m", "examples.sentiment", "--quick", "--out", str(picture)]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stderr
    assert "Results" in result.stdout and "Predictions of" in result.stdout
    assert picture.stat().st_size > 10_000
