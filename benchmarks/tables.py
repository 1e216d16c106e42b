"""Tables in markdown, and where a generated text goes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def table(header: str, rows: Iterable[str]) -> str:
    """`header` and `rows`: cells with " | " between them."""
    return "\n".join([f"| {header} |", "|---" * (header.count("|") + 1) + "|", *(f"| {row} |" for row in rows)]) + "\n"


def write(text: str, out: Path | None) -> None:
    """To the file, or printed."""
    if out:
        out.write_text(text)
    else:
        print(text)
