"""The data of the tasks: two synthetic problems of memory, and digits, temperatures and text that ship with packages."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from examples.language_model import Alphabet, read_text


class Split(NamedTuple):
    x: Tensor  # (N, T, features) float32, or (N, T) int64 symbols
    target: Tensor  # (N,) one per sample or (N, T) one per step; -100 marks steps that do not count


class Data(NamedTuple):
    train: Split
    validation: Split
    test: Split
    num_inputs: int  # features, or symbols
    num_outputs: int  # classes; 1 for a number
    trivial: float  # the metric on the test split of the best answer that ignores the input


def _split(x: Tensor, target: Tensor, sizes: tuple[int, int, int]) -> tuple[Split, Split, Split]:
    train, validation, test = (Split(*parts) for parts in zip(x.split(sizes), target.split(sizes), strict=True))
    return train, validation, test


def adding(seed: int, steps: int = 50, sizes: tuple[int, int, int] = (8000, 1000, 2000)) -> Data:
    """Hochreiter & Schmidhuber 1997: numbers in [0, 1] and two marked positions; the target is the sum of those two."""
    random = torch.Generator().manual_seed(seed)
    count = sum(sizes)
    values = torch.rand(count, steps, generator=random)
    order = torch.rand(count, steps, generator=random).argsort(dim=1)
    marks = torch.zeros(count, steps).scatter_(1, order[:, :2], 1.0)
    splits = _split(torch.stack((values, marks), dim=2), (values * marks).sum(1), sizes)
    return Data(*splits, num_inputs=2, num_outputs=1, trivial=_mean_square_error_of_the_mean(splits))


def copy(
    seed: int, symbols: int = 8, items: int = 5, delay: int = 20, sizes: tuple[int, int, int] = (8000, 1000, 2000)
) -> Data:
    """Hochreiter & Schmidhuber 1997, as in Arjovsky et al. 2016: repeat the first symbols after a pause, when told to."""
    random = torch.Generator().manual_seed(seed)
    count, blank, go = sum(sizes), symbols, symbols + 1
    word = torch.randint(symbols, (count, items), generator=random)
    pause = torch.full((count, delay), blank)
    pause[:, -1] = go
    x = torch.cat((word, pause, torch.full((count, items), blank)), dim=1)
    target = torch.full_like(x, -100)
    target[:, -items:] = word
    return Data(*_split(x, target, sizes), num_inputs=symbols + 2, num_outputs=symbols, trivial=1 / symbols)


def digits(seed: int, sizes: tuple[int, int, int] = (1197, 300, 300)) -> Data:
    """scikit-learn's 1,797 handwritten digits (UCI, 8 x 8), read pixel by pixel: 64 steps of one number."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(seed))
    x = torch.from_numpy(found.data).float().div(16).unsqueeze(2)[order]
    splits = _split(x, torch.from_numpy(found.target).long()[order], sizes)
    most = splits[0].target.bincount().argmax()
    return Data(*splits, num_inputs=1, num_outputs=10, trivial=(splits[2].target == most).double().mean().item())


def elnino(seed: int, window: int = 36) -> Data:
    """Sea surface temperatures off Peru and Ecuador, monthly from 1950 to 2010 (NOAA; in statsmodels): the month after a window.

    Split by time, so the seed does not matter here; numbers are in standard deviations of the training years. The trivial answer is
    the mean of the month of the year over the training years.
    """
    from statsmodels.datasets import elnino as source

    table = torch.from_numpy(source.load_pandas().data.iloc[:, 1:].to_numpy(dtype="float64"))  # [years, 12]
    train_years, validation_years = 40, 10
    train = table[:train_years]
    scaled = (table - train.mean()) / train.std()
    series = scaled.flatten()
    x = series[:-1].unfold(0, window, 1).unsqueeze(2).float()
    target = series[window:].float()
    ends = [12 * train_years - window, 12 * validation_years]
    splits = _split(x, target, (ends[0], ends[1], len(target) - sum(ends)))
    by_month = scaled[:train_years].mean(0).float()
    months = torch.arange(window, len(series)) % 12
    trivial = (by_month[months] - target)[sum(ends) :].square().mean().item()
    return Data(*splits, num_inputs=1, num_outputs=1, trivial=trivial)


def text(seed: int, steps: int = 100, limit: int = 250_000) -> Data:
    """Python's own manual (pydoc_data.topics, in the standard library) in pieces: each next character from those before."""
    characters = read_text()[:limit]
    alphabet = Alphabet(characters)
    symbols = alphabet.encode(characters)
    num = (len(symbols) - 1) // steps
    x = symbols[: num * steps].view(num, steps)
    target = symbols[1 : num * steps + 1].view(num, steps)
    # whole blocks of text, so that no piece of one split lies between two of another: which ones depends on the seed
    blocks = torch.arange(num).chunk(20)
    order = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(seed)).tolist()
    parts = [torch.cat([blocks[i] for i in chosen]) for chosen in (order[:16], order[16:18], order[18:])]
    train, validation, test = (Split(x[part], target[part]) for part in parts)
    share = train.target.flatten().bincount(minlength=len(alphabet)).double() + 1
    trivial = -(share / share.sum()).log2()[test.target.flatten()].mean().item()
    return Data(train, validation, test, num_inputs=len(alphabet), num_outputs=len(alphabet), trivial=trivial)


def _mean_square_error_of_the_mean(splits: tuple[Split, Split, Split]) -> float:
    train, _, test = splits
    return (test.target - train.target.mean()).square().mean().item()
