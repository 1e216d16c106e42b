"""The classifier, the same for torch.nn's LSTM and fastrnn's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastrnn

from .data import PAD


@dataclass(frozen=True)
class ModelConfig:
    """What may differ between two classifiers of one comparison."""

    library: str  # "torch.nn" or "fastrnn"
    recurrent_dropout: float = 0.0  # torch.nn has none

    def __post_init__(self) -> None:
        if self.library not in ("torch.nn", "fastrnn"):
            raise ValueError(f"library should be 'torch.nn' or 'fastrnn', got {self.library!r}")
        if self.library == "torch.nn" and self.recurrent_dropout:
            raise ValueError("torch.nn.LSTM has no recurrent dropout")


class Classifier(nn.Module):
    """Embedding, bidirectional LSTM, each unit's largest value over the sentence, one linear layer.

    Args:
        vocabulary_size: rows of the embedding, PAD and UNKNOWN included.
        dropout: probability for the word vectors (one mask per sentence) and for the pooled features.
    """

    def __init__(
        self,
        vocabulary_size: int,
        config: ModelConfig,
        embedding_size: int = 64,
        hidden_size: int = 64,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, embedding_size, padding_idx=PAD)
        with torch.no_grad():
            self.embedding.weight.mul_(0.3)  # torch draws from N(0, 1), which an LSTM's gates find large
        self.lstm: nn.LSTM | fastrnn.LSTM
        if config.library == "torch.nn":
            self.lstm = nn.LSTM(embedding_size, hidden_size, bidirectional=True)
        else:
            self.lstm = fastrnn.LSTM(
                embedding_size, hidden_size, bidirectional=True, recurrent_dropout=config.recurrent_dropout
            )
        self.output = nn.Linear(2 * hidden_size, 1)
        self.dropout = dropout

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Logits (B,) of "positive" for ``tokens`` (T, B), of which the first ``lengths`` (B,), on the CPU, exist."""
        x = self.embedding(tokens)
        x = x * functional.dropout(torch.ones_like(x[0]), self.dropout, self.training)
        y = self._run_lstm(x, lengths)
        steps = torch.arange(y.size(0), device=y.device).unsqueeze(1)
        is_padding = steps >= lengths.to(y.device)
        features = y.masked_fill(is_padding.unsqueeze(2), -torch.inf).amax(dim=0)
        logits: Tensor = self.output(functional.dropout(features, self.dropout, self.training))
        return logits.squeeze(1)

    def _run_lstm(self, x: Tensor, lengths: Tensor) -> Tensor:
        if isinstance(self.lstm, fastrnn.LSTM):
            y: Tensor = self.lstm(x, lengths=lengths)[0]
        else:
            packed, _ = self.lstm(pack_padded_sequence(x, lengths, enforce_sorted=False))
            y = pad_packed_sequence(packed)[0]
        return y
