"""The one error that users see: what happened, the value, what is allowed, the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FedkdError(Exception):
    """A mistake in the input, a file or a message, with the way out of it.

    The text is one line, ready to print: ``what; got VALUE; allowed: …; fix: …``.
    The command line prints it and leaves with exit code 2; it never shows a traceback for it.
    """

    def __init__(
        self,
        what: str,
        *,
        value: object = None,
        allowed: str | None = None,
        fix: str | None = None,
    ) -> None:
        parts = [what]
        if value is not None:
            parts.append(f"got {value!r}")
        if allowed:
            parts.append(f"allowed: {allowed}")
        if fix:
            parts.append(f"fix: {fix}")
        super().__init__("; ".join(parts))


class PayloadError(FedkdError):
    """A message from the other side breaks the contract of `fedkd.payload`."""


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """The fix for a misspelt name: the nearest known one, or None.

    >>> did_you_mean("kmean", ["kmeans", "none"])
    "did you mean 'kmeans'?"
    """
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else None
