"""A character language model of Python's own manual, trained with truncated backpropagation through time.

    python -m examples.language_model

The text is that of ``help()``'s topics (``pydoc_data.topics``, in the standard library): nothing is downloaded. The state goes on
from chunk to chunk, and so do the dropout masks (``hold_masks``): one mask per line of text for the whole pass over it.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time

import torch
from torch import Tensor, nn
from torch.nn import functional

import fastrnn


def read_text() -> str:
    """All topics of Python's help, in order of their names."""
    from pydoc_data import topics

    return "\n".join(topics.topics[name] for name in sorted(topics.topics))


class Alphabet:
    """The characters of a text, numbered; 0 stands for all that are seen fewer than 10 times."""

    def __init__(self, text: str) -> None:
        counts = {character: text.count(character) for character in sorted(set(text))}
        self.characters = ["\N{REPLACEMENT CHARACTER}", *(c for c, count in counts.items() if count >= 10)]
        self._numbers = {character: number for number, character in enumerate(self.characters)}

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> Tensor:
        return torch.tensor([self._numbers.get(character, 0) for character in text])

    def decode(self, numbers: Tensor) -> str:
        return "".join(self.characters[number] for number in numbers.tolist())


class LanguageModel(nn.Module):
    """Embedding, LSTM with recurrent dropout, one linear layer."""

    def __init__(self, num_characters: int, hidden_size: int, recurrent_dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_characters, 48)
        self.lstm = fastrnn.LSTM(48, hidden_size, recurrent_dropout=recurrent_dropout, forget_bias=1.0)
        self.output = nn.Linear(hidden_size, num_characters)

    def forward(self, characters: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Logits (T, B, characters) of each next character, and the state after the last one."""
        y, state = self.lstm(self.embedding(characters), state)
        return self.output(y), state


def bits_per_character(logits: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(logits.flatten(0, 1), target.flatten()) / math.log(2)


def lines_of(symbols: Tensor, num_lines: int) -> Tensor:
    """The text cut into ``num_lines`` long lines that are read side by side: (T, B)."""
    length = len(symbols) // num_lines
    return symbols[: length * num_lines].view(num_lines, length).t().contiguous()


def train_epoch(
    model: LanguageModel, optimizer: torch.optim.Optimizer, lines: Tensor, chunk: int, max_norm: float
) -> float:
    """One pass over the text, ``chunk`` steps at a time. Returns the mean bits per character."""
    model.train()
    state, bits = None, []
    with model.lstm.hold_masks():
        for start in range(0, len(lines) - 1, chunk):
            x, target = lines[start : start + chunk], lines[start + 1 : start + chunk + 1]
            logits, state = model(x[: len(target)], state)
            state = (state[0].detach(), state[1].detach())  # the gradient ends at the chunk's start
            loss = bits_per_character(logits, target)
            optimizer.zero_grad()
            loss.backward()
            fastrnn.clip_grad_norm_(model.parameters(), max_norm)
            optimizer.step()
            bits.append(loss.detach())
    return torch.stack(bits).mean().item()


@torch.no_grad()
def evaluate(model: LanguageModel, lines: Tensor) -> float:
    model.eval()
    return bits_per_character(model(lines[:-1], None)[0], lines[1:]).item()


@torch.no_grad()
def write(model: LanguageModel, alphabet: Alphabet, beginning: str, length: int) -> str:
    """``length`` characters drawn from the model, one after the other."""
    model.eval()
    logits, state = model(alphabet.encode(beginning).unsqueeze(1), None)
    drawn = []
    for _ in range(length):
        character = torch.multinomial(logits[-1, 0].softmax(0), 1)
        drawn.append(character)
        logits, state = model(character.view(1, 1), state)
    return beginning + alphabet.decode(torch.cat(drawn))


def main() -> None:
    parser = argparse.ArgumentParser("python -m examples.language_model", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--hidden-size", type=int, default=192)
    parser.add_argument("--chunk", type=int, default=100, help="steps between two updates")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--recurrent-dropout", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)

    text = read_text()
    alphabet = Alphabet(text)
    symbols = alphabet.encode(text)
    held_out = len(symbols) // 10
    train, validation = lines_of(symbols[:-held_out], options.batch_size), lines_of(symbols[-held_out:], 8)
    print(f"{len(text)} characters, {len(alphabet)} different ones; the last {held_out} are held out")
    model = LanguageModel(len(alphabet), options.hidden_size, options.recurrent_dropout)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, fused=True)
    for epoch in itertools.count(1):
        start = time.perf_counter()
        bits = train_epoch(model, optimizer, train, options.chunk, max_norm=1.0)
        seconds = time.perf_counter() - start
        print(
            f"epoch {epoch}: {bits:.3f} bits per character, held out {evaluate(model, validation):.3f}, {seconds:.1f} s"
        )
        if epoch >= options.epochs:
            break
    print(write(model, alphabet, "The ", 300))


if __name__ == "__main__":
    main()
