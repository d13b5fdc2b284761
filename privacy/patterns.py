"""Which characters of a text look like private data: regular expressions, and nothing to install.

Kinds and degrees are ours. High recall matters more than precision here, since a false alarm costs
utility at one position and a miss costs privacy; what no expression describes (an address, a name
without capitals) is missed all the same. A recogniser such as Presidio is not supported: it would
bring spaCy and a language model of hundreds of megabytes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Kind(NamedTuple):
    """One kind of private data, how it is written, and how private it is from 0 to 1."""

    name: str
    expression: re.Pattern[str]
    degree: float


class Found(NamedTuple):
    """Characters start to end (exclusive) of a text that look like one kind."""

    kind: str
    start: int
    end: int
    degree: float


_CAPITALS = "".join(letter for letter in map(chr, range(0x530)) if letter.isupper())
"""Latin, Greek and Cyrillic: `re` has no class for them."""
_MONTH = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?"
    r"|Sep(?:t(?:ember)?)?|Oct(?:ober)?|Nov(?:ember)?|Dec(?:ember)?)"
)
KINDS = (
    Kind("e-mail", re.compile(r"[\w.+%-]{1,64}@[\w-]+(?:\.[\w-]+)+"), 1.0),
    Kind("iban", re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"), 1.0),
    Kind("card", re.compile(r"(?<!\d)\d(?:[ -]?\d){12,18}(?!\d)"), 1.0),
    Kind(
        "phone",
        re.compile(
            r"(?<![\w+])(?=(?:[+ ()./-]{0,2}\d){9})(?:\+?\d{1,4}[ ./-]?)?"
            r"(?:\(\d{1,5}\) ?|\d{2,5}[ ./-])\d{2,8}(?:[ ./-]\d{2,4}){0,4}(?:x\d+)?(?!\d)"
        ),
        0.9,
    ),
    Kind("digits", re.compile(r"\d{5,}"), 0.8),
    Kind("short digits", re.compile(r"(?<!\d)\d{3,4}(?!\d)"), 0.3),
    Kind("date", re.compile(r"\b(?:\d{4}-\d{1,2}-\d{1,2}|\d{1,2}[./-]\d{1,2}[./-]\d{2,4})\b"), 0.6),
    Kind(
        "written date",
        re.compile(rf"\b(?:\d{{1,2}}\.? {_MONTH}|{_MONTH} \d{{1,2}})\b(?:,? \d{{4}}\b)?"),
        0.6,
    ),
    Kind(
        "name",
        re.compile(rf"(?<!\w)[{_CAPITALS}][\w'\u2019-]*(?: [{_CAPITALS}][\w'\u2019-]+){{1,3}}"),
        0.7,
    ),
)


def find(text: str) -> list[Found]:
    """All that looks private, kind after kind in the order of `KINDS`; kinds may overlap.

    >>> [(found.kind, "write to ada@example.org"[found.start : found.end])
    ...     for found in find("write to ada@example.org")]
    [('e-mail', 'ada@example.org')]
    """
    return [
        Found(kind.name, *match.span(), kind.degree)
        for kind in KINDS
        for match in kind.expression.finditer(text)
    ]


def degrees(text: str, offsets: Sequence[tuple[int, int]]) -> NDArray[np.float64]:
    """The degree [m] of each of m spans of characters: the largest of what overlaps it, else 0.

    `offsets` are (start, end) as a tokenizer gives them; an empty span (a special token) is 0.
    """
    characters = np.zeros(len(text))
    for found in find(text):
        part = characters[found.start : found.end]
        np.maximum(part, found.degree, out=part)
    return np.array([characters[start:end].max(initial=0) for start, end in offsets])
