"""Canaries: sentences with made-up secrets, put into clients' texts to see what leaks of them.

A secret is drawn uniformly from a space that can be enumerated, so that an audit can rank it
exactly among all that it might have been (`privacy.audit.exposure`). Which client carries which
canary how often is drawn here, apart from training: training sees records, and nothing else.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from fedkd.data.text import records
from fedkd.data.tokens import Tokens, encode
from fedkd.errors import FedkdError
from fedkd.rng import stream
from fedkd.section import Section


@dataclass(frozen=True)
class Format:
    """A sentence that ends in a secret: `opening` has a place for a {name}, then come the blanks.

    `blanks` holds, for each place of the secret, the characters that may stand there. The space is
    all their combinations, `size` of them, numbered in the order of `candidates`.
    """

    opening: str
    blanks: tuple[str, ...]

    @property
    def size(self) -> int:
        """How many secrets there are."""
        return math.prod(map(len, self.blanks))

    def candidates(self) -> Iterator[str]:
        """Every secret; the last place changes fastest."""
        return map("".join, product(*self.blanks))

    def secret(self, index: int) -> str:
        """The candidate of that number.

        >>> Format("", ("ab", "xyz")).secret(4), list(Format("", ("ab", "xyz")).candidates())[4]
        ('by', 'by')
        """
        places = np.unravel_index(index, [len(symbols) for symbols in self.blanks])
        return "".join(symbols[at] for symbols, at in zip(self.blanks, places, strict=True))

    def index(self, secret: str) -> int:
        """The number of a candidate."""
        places = [symbols.index(at) for symbols, at in zip(self.blanks, secret, strict=True)]
        return int(np.ravel_multi_index(places, [len(symbols) for symbols in self.blanks]))


FORMATS: dict[str, Format] = {
    "pin": Format("The card PIN of {name} is ", (string.digits,) * 4),
    "number-plate": Format(
        "The number plate of {name} is ", (string.ascii_uppercase,) * 2 + (string.digits,) * 3
    ),
    "access-code": Format("The access code of {name} is ", (string.digits,) * 6),
}
"""Spaces of 10,000, 676,000 and 1,000,000 secrets: 13.3, 19.4 and 19.9 bits."""


@dataclass(frozen=True)
class Canary:
    """One sentence, the client that carries it, and how often it does.

    `prefix` is all that comes before the secret. 0 `repetitions` make a control: a sentence like
    the others that nobody is trained on.
    """

    client: int
    repetitions: int
    format: str
    prefix: str
    secret: str

    @property
    def sentence(self) -> str:
        """What the client's data hold."""
        return f"{self.prefix}{self.secret}."

    @property
    def index(self) -> int:
        """The number of the secret in its format's space."""
        return FORMATS[self.format].index(self.secret)


class Canaries(Section):
    """Which canaries there are: `each` one for every client and every number of repetitions."""

    format: Literal["pin", "number-plate", "access-code"] = "pin"
    repetitions: tuple[int, ...] = Field((0, 1, 4, 16), min_length=1)
    each: int = Field(1, ge=1)
    in_proxy: bool = False
    """Whether a public proxy set holds every canary once too: the worst that an audit can ask."""

    @field_validator("repetitions")
    @classmethod
    def _not_negative(cls, repetitions: tuple[int, ...]) -> tuple[int, ...]:
        if min(repetitions) < 0:
            raise ValueError("a canary cannot be repeated less than 0 times")
        return repetitions

    def draw(self, clients: Sequence[int], seed: int) -> tuple[Canary, ...]:
        """The canaries of `clients`, in their order; no two share a name or a secret.

        Secrets are drawn uniformly and again where one is taken, so that every one of the space is
        equally likely; names come from Faker, and may differ between its versions.
        Raises: FedkdError where the canaries would take more than half of the space.
        Source: the generator of TensorFlow Privacy 0.9 sorts its draws after a collision and keeps
        the first, which leaves only the low end of the space; hence the rejection here.
        """
        from faker import Faker

        chosen = FORMATS[self.format]
        places = [
            (client, repetitions)
            for client in clients
            for repetitions in self.repetitions
            for _ in range(self.each)
        ]
        if len(places) > chosen.size // 2:
            raise FedkdError(
                f"too many canaries of the format {self.format}",
                value=len(places),
                allowed=f"up to {chosen.size // 2}",
                fix="fewer clients with canaries, or a format of more secrets",
            )
        rng = stream(seed, "canary", purpose="secrets")
        fake = Faker("en_US")
        fake.seed_instance(int(rng.integers(2**63)))
        secrets = _distinct(len(places), lambda: chosen.secret(int(rng.integers(chosen.size))))
        names = _distinct(len(places), lambda: f"{fake.first_name()} {fake.last_name()}")
        return tuple(
            Canary(client, repetitions, self.format, chosen.opening.format(name=name), secret)
            for (client, repetitions), name, secret in zip(places, names, secrets, strict=True)
        )


def _distinct(n: int, draw: Callable[[], str]) -> list[str]:
    """The first n different values that are drawn, in the order of the draws."""
    found: dict[str, None] = {}
    while len(found) < n:
        found[draw()] = None
    return list(found)


def sentences(canaries: Sequence[Canary], tokens: Tokens, length: int) -> tuple[Tensor, Tensor]:
    """One record for each of m canaries: x int16 [m, 1, 1, length], y int64 [m, length].

    Raises: FedkdError where a sentence is longer than a record.
    """
    pairs = []
    for canary in canaries:
        pairs.append(records(encode(canary.sentence, tokens), length))
        if len(pairs[-1][0]) > 1:
            raise FedkdError(
                "a canary does not fit into one record",
                value=f"{len(canary.sentence)} characters in {length} + 1 tokens",
                fix="raise data.length",
            )
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])


def insert(
    x: Tensor, y: Tensor, canaries: Iterable[Canary], tokens: Tokens, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """A client's records and, at random places among them, those of its canaries.

    Each repetition is a record of its own, so a model sees the sentence from its start. The other
    records keep their order.
    Shapes: x int16 [n, 1, 1, L], y int64 [n, L]; returns both with a record more for each
    repetition.
    Raises: FedkdError where a sentence is longer than a record.
    """
    copies = [canary for canary in canaries for _ in range(canary.repetitions)]
    if not copies:
        return x, y
    more_x, more_y = sentences(copies, tokens, x.shape[3])
    all_x, all_y = torch.cat([x, more_x]), torch.cat([y, more_y])
    # Where each record comes from: the canaries' places are drawn, the others fill the rest.
    places = rng.choice(len(all_x), len(all_x) - len(x), replace=False)
    order = np.empty(len(all_x), np.int64)
    order[places] = np.arange(len(x), len(all_x))
    order[np.setdiff1d(np.arange(len(all_x)), places)] = np.arange(len(x))
    index = torch.from_numpy(order)
    return all_x[index], all_y[index]
