"""From raw rows to batches: labels, splits without shared sentences, a vocabulary, batches of similar length."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .text import clean, tokenise

NEUTRAL_BAND = 0.5  # a mean valence nearer to 0 than this is neither positive nor negative: the sentence is left out
MIN_COUNT = 2  # a word seen less often in the training sentences is the unknown word
PAD, UNKNOWN = 0, 1

_INCIDENTAL = re.compile(r"[^\w\s]|\.\.\.|[?!]+|<(url|user|number)>")


@dataclass(frozen=True)
class Sentence:
    source: str
    text: str
    tokens: tuple[str, ...]
    valence: float  # mean of at least 15 people's ratings, in [-4, 4]

    @property
    def label(self) -> int:
        """1: positive, 0: negative."""
        return int(self.valence > 0)


@dataclass(frozen=True)
class Splits:
    train: list[Sentence]
    validation: list[Sentence]
    test: list[Sentence]


@dataclass(frozen=True)
class Batch:
    tokens: Tensor  # (T, B) int64, PAD past each length
    lengths: Tensor  # (B,) int64 on the CPU
    labels: Tensor  # (B,) float32


def prepare(rows: Iterable[tuple[str, str, float]]) -> list[Sentence]:
    """Cleaned, labelled sentences, each once.

    Sentences of the same words are one sentence, whatever its case and punctuation, with the mean of their valences: the
    same sentence on both sides of a split would be tested on what was learnt by heart.
    """
    alike: dict[tuple[str, ...], list[Sentence]] = defaultdict(list)
    for source, raw, valence in rows:
        text = clean(raw)
        tokens = tuple(tokenise(text))
        if key := identity(tokens):
            alike[key].append(Sentence(source, text, tokens, valence))
    sentences = []
    for group in alike.values():
        first = group[0]
        valence = sum(sentence.valence for sentence in group) / len(group)
        if abs(valence) >= NEUTRAL_BAND:
            sentences.append(Sentence(first.source, first.text, first.tokens, valence))
    return sentences


def identity(tokens: Sequence[str]) -> tuple[str, ...]:
    """What makes two sentences the same one: their words and emoticons; empty for bare punctuation."""
    return tuple(token for token in tokens if not _INCIDENTAL.fullmatch(token))


def split(sentences: Sequence[Sentence], seed: int, held_out: float = 0.1) -> Splits:
    """Training, validation and test sentences, the latter two ``held_out`` of each source and label."""
    rng = random.Random(seed)
    strata: dict[tuple[str, int], list[Sentence]] = defaultdict(list)
    for sentence in sentences:
        strata[sentence.source, sentence.label].append(sentence)
    splits = Splits([], [], [])
    for key in sorted(strata):
        group = strata[key]
        rng.shuffle(group)
        count = round(held_out * len(group))
        splits.validation.extend(group[:count])
        splits.test.extend(group[count : 2 * count])
        splits.train.extend(group[2 * count :])
    return splits


class Vocabulary:
    """Numbers for the words that occur ``min_count`` times in the training sentences; every other word is UNKNOWN."""

    def __init__(self, sentences: Iterable[Sentence], min_count: int = MIN_COUNT) -> None:
        counts = Counter(token for sentence in sentences for token in sentence.tokens)
        self.words = [word for word, count in counts.most_common() if count >= min_count]
        self._index = {word: index for index, word in enumerate(self.words, start=UNKNOWN + 1)}

    def __len__(self) -> int:
        return len(self.words) + 2  # PAD and UNKNOWN

    def encode(self, tokens: Sequence[str]) -> Tensor:
        """(T,) int64."""
        return torch.tensor([self._index.get(token, UNKNOWN) for token in tokens])


class Batches:
    """Batches of sentences of similar length, encoded once; iterate over ``shuffled(seed)`` or ``in_order()``."""

    def __init__(self, sentences: Sequence[Sentence], vocabulary: Vocabulary, batch_size: int) -> None:
        self.batch_size = batch_size
        self.encoded = [vocabulary.encode(sentence.tokens) for sentence in sentences]
        self.labels = torch.tensor([float(sentence.label) for sentence in sentences])

    def __len__(self) -> int:
        return -(-len(self.encoded) // self.batch_size)

    def in_order(self) -> Iterator[Batch]:
        """From the shortest sentence to the longest."""
        by_length = sorted(range(len(self.encoded)), key=lambda index: len(self.encoded[index]))
        return map(self._collate, self._cut(by_length))

    def shuffled(self, seed: int, window: int = 20) -> Iterator[Batch]:
        """Random order, but sorted by length within windows of so many batches: little padding, ever new company."""
        rng = random.Random(seed)
        order = list(range(len(self.encoded)))
        rng.shuffle(order)
        batches = []
        for start in range(0, len(order), window * self.batch_size):
            part = order[start : start + window * self.batch_size]
            batches += self._cut(sorted(part, key=lambda index: len(self.encoded[index])))
        rng.shuffle(batches)
        return map(self._collate, batches)

    def _cut(self, order: list[int]) -> list[list[int]]:
        return [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]

    def _collate(self, indices: list[int]) -> Batch:
        return collate([self.encoded[index] for index in indices], self.labels[indices])


def collate(encoded: Sequence[Tensor], labels: Tensor) -> Batch:
    """Sentences of any lengths, padded to the longest."""
    lengths = torch.tensor([len(tokens) for tokens in encoded])
    return Batch(pad_sequence(list(encoded), padding_value=PAD), lengths, labels)
