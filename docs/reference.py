"""Writes the API reference, HTML from the docstrings by pdoc: ``make docs``, or ``python docs/reference.py FOLDER``."""

from __future__ import annotations

import re
import sys
import warnings
from pathlib import Path
from typing import Any

import pdoc
import pdoc.docstrings

_ROLE = re.compile(r":(?:class|func|meth|mod|attr):`~?([^`]+)`")
_convert = pdoc.docstrings.convert


def convert(docstring: str, docformat: str, source_file: Any) -> str:
    """pdoc reads Google's sections; Sphinx's roles, which the docstrings use for links, become plain code."""
    return _convert(_ROLE.sub(r"`\1`", docstring), docformat, source_file)


def write(folder: Path) -> None:
    pdoc.docstrings.convert = convert
    pdoc.render.configure(docformat="google", footer_text="fastrnn")
    warnings.filterwarnings("ignore", message="Error parsing type annotation")  # of named tuples: shown as written
    pdoc.pdoc("fastrnn", "fastrnn.base", output_directory=folder)  # base: what RNN, LSTM and GRU inherit


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "build/docs")
    write(target)
    print(f"API reference: {target / 'fastrnn.html'}")
