"""From characters to tokens and back: a small fixed vocabulary, so that soft labels stay small."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Tokens = Literal["characters", "bytes"]
"""characters: unknown, newline and the 95 printable ASCII characters; bytes: the 256 of UTF-8."""

UNKNOWN = 0
_CHARACTERS = "�\n" + "".join(map(chr, range(0x20, 0x7F)))
VOCABULARY: dict[Tokens, int] = {"characters": len(_CHARACTERS), "bytes": 256}

_TOKEN_OF = np.full(0x110000, UNKNOWN, np.int16)
_TOKEN_OF[[ord(character) for character in _CHARACTERS]] = np.arange(len(_CHARACTERS))


def encode(text: str, tokens: Tokens) -> NDArray[np.int16]:
    """int16 [k]: one token a character (all but newline and printable ASCII are UNKNOWN) or byte.

    >>> encode("a\\n€", "characters").tolist(), encode("a\\n€", "bytes").tolist()
    ([67, 1, 0], [97, 10, 226, 130, 172])
    """
    if tokens == "bytes":
        return np.frombuffer(text.encode(), np.uint8).astype(np.int16)
    return _TOKEN_OF[np.frombuffer(text.encode("utf-32-le"), np.uint32)]


def decode(ids: NDArray[np.int16], tokens: Tokens) -> str:
    """The text of int16 [k]; U+FFFD stands for UNKNOWN, and for bytes that are not UTF-8.

    >>> decode(encode("two\\nlines", "characters"), "characters")
    'two\\nlines'
    """
    if tokens == "bytes":
        return ids.astype(np.uint8).tobytes().decode(errors="replace")
    return "".join(_CHARACTERS[token] for token in ids)
