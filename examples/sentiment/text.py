"""Cleaning and tokenising: from the raw line of a data file, or of a user, to a list of tokens."""

from __future__ import annotations

import contextlib
import html
import re
import unicodedata

_PLACEHOLDERS = {"url": "<url>", "user": "<user>", "number": "<number>"}

_PLAIN = str.maketrans(
    {
        "\u2019": "'",
        "\u2018": "'",
        "`": "'",
        "\u201c": '"',
        "\u201d": '"',
        "\u2013": "-",
        "\u2014": "-",
        "\u2026": "...",
        "\u00ad": None,  # soft hyphen
    }
)
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")  # not "<3", which is a heart
# UTF-8 that was read as Windows-1252: "Ã©" for "é", "â€™" for an apostrophe.
_MOJIBAKE = re.compile(r"[ÃÂ][\u0080-\u00bf]|â€")

_EMOTICON = r"""
    [<>]?[:;=][-o'^]?[()\[\]{}DPpOo3/\\|*$@cSXx]+(?![A-Za-z0-9])   # :-)  ;)  =D  :'(  :3
  | [()\[\]][-o']?[:;=](?![A-Za-z0-9])                             # (-:  [:
  | (?:8-\) | [xX]D+)(?![A-Za-z0-9])                               # 8-)  xD
  | <3+ | </3                                                      # hearts
  | \^_*\^ | [oO][._][oO](?!\w) | -_+- | \\[oO]/                   # ^_^  o.O  -_-  \o/
"""
# A pattern per token, tried in this order at each place.
_TOKEN = re.compile(
    rf"""
    (?P<url>(?:https?://|www\.)\S*[\w/])
  | (?P<user>@\w+)
  | (?P<emoticon>(?<![A-Za-z0-9])(?:{_EMOTICON}))
  | (?P<number>[$£€]?\d+(?:[.,:/]\d+)*(?:st|nd|rd|th|s)?%?(?![A-Za-z]))
  | (?P<word>[^\W_]+(?:['-][^\W_]+)*)
  | (?P<marks>\.{{2,}} | [!?]+ | [^\w\s])
    """,
    re.VERBOSE,
)


def clean(text: str) -> str:
    """Plain text: HTML entities and tags, mis-decoded and compatibility characters resolved, white space single."""
    while (unescaped := html.unescape(text)) != text:  # the tweets hold "&amp;#39;"
        text = unescaped
    text = _TAG.sub(" ", text)
    if _MOJIBAKE.search(text):
        with contextlib.suppress(UnicodeError):  # a true "Ã": the text stays as it is
            text = text.encode("cp1252").decode("utf-8")
    text = unicodedata.normalize("NFKC", text.translate(_PLAIN)).replace("\u2044", "/")
    text = "".join(" " if unicodedata.category(char) in ("Cc", "Cf") else char for char in text)
    # The movie reviews quote with two apostrophes, and some wrap the whole sentence in one.
    text = " ".join(text.replace("''", '"').split())
    return text[1:-1] if len(text) > 2 and text[0] == text[-1] == "'" else text


def tokenise(text: str) -> list[str]:
    """Tokens of a cleaned sentence.

    Addresses, @names and numbers become one token each; emoticons are kept; words are in lower case, a trailing "'s" apart.
    What is drawn out for emphasis is shortened but kept apart from the plain form: "sooooo" becomes "sooo", "!!!!!!"
    becomes "!!!".
    """
    tokens: list[str] = []
    for match in _TOKEN.finditer(text):
        tokens += _normalise(match.lastgroup or "", match.group())
    return tokens


def _normalise(kind: str, token: str) -> list[str]:
    if kind in _PLACEHOLDERS:
        return [_PLACEHOLDERS[kind]]
    if kind == "emoticon":
        return [re.sub(r"(.)\1+", r"\1", token)]  # ":DDD" is ":D"
    if kind == "marks" and token.startswith(".."):
        return ["..."]
    if kind == "marks" and {"?", "!"} <= set(token):
        return ["?!"]
    token = re.sub(r"(.)\1{3,}", r"\1\1\1", token.lower())
    return [token[:-2], "'s"] if token.endswith("'s") else [token]
