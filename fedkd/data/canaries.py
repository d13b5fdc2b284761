"""Canaries: made-up records, put into clients' data to see what leaks of them.

In texts they are sentences that end in a secret. It is drawn uniformly from a space that can be
enumerated, so that an audit can rank it exactly among all that it might have been
(`privacy.audit.exposure`). In images they are what `fedkd.data.canary_images` makes.
Which client carries which canary how often is drawn here, apart from training: training sees
records, and nothing else.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, get_args

import numpy as np
import torch
from pydantic import Field, field_validator, model_validator
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
    "rendered": Format("My PIN is ", (string.digits,) * 4),
}
"""Spaces of 10,000, 676,000, 1,000,000 and 10,000 secrets: 13.3, 19.4, 19.9 and 13.3 bits."""
TextFormat = Literal["pin", "number-plate", "access-code"]
ImageFormat = Literal["mislabelled", "blank", "noise", "ood", "rendered"]
TEXTS: tuple[str, ...] = get_args(TextFormat)
IMAGES: tuple[str, ...] = get_args(ImageFormat)
"""Formats of canaries in texts and in images; of the latter, see `fedkd.data.canary_images`."""


@dataclass(frozen=True)
class Canary:
    """One canary, the clients that carry it, and how often each of them does.

    `prefix` is all that comes before the secret; images but those of sentences have neither.
    0 `repetitions` make a control: a record like the others that nobody is trained on. Its record
    is that of the same number in `Federation.canary_records`.
    """

    client: int
    """The client that it was made for."""
    repetitions: int
    """In the data of each client that carries it."""
    format: str
    prefix: str = ""
    secret: str = ""
    others: tuple[int, ...] = ()
    """Clients that carry it besides `client`, ascending."""

    @property
    def sentence(self) -> str:
        """What the client's data hold, of texts and rendered texts."""
        return f"{self.prefix}{self.secret}."

    @property
    def index(self) -> int:
        """The number of the secret in its format's space."""
        return FORMATS[self.format].index(self.secret)

    def copies(self, client: int) -> int:
        """How often a client's data hold it.

        >>> canary = Canary(2, 4, "noise", others=(0, 5))
        >>> [canary.copies(client) for client in range(6)]
        [4, 0, 4, 0, 0, 4]
        """
        return self.repetitions if client == self.client or client in self.others else 0


class Canaries(Section):
    """Which canaries there are, and who carries them how often."""

    format: Literal[TextFormat, ImageFormat] = "pin"
    """One of `TEXTS` or `IMAGES`, whichever the data are."""
    repetitions: tuple[int, ...] = Field((0, 1, 4, 16), min_length=1)
    each: int = Field(1, ge=1)
    assign: Literal["all", "coin"] = "all"
    """`all`: every client has `each` canaries of every number of repetitions. `coin`: it has `each`
    canaries, and each of these has one of the numbers, drawn independently and uniformly: with
    repetitions 0 and 1, the fair coins that audits of a single run ask for."""
    assignment: int = Field(0, ge=0)
    """Which draw of the coins this is. Another one leaves data and canaries as they are, and draws
    anew who is in and who is out: a shadow federation."""
    holders: int = Field(1, ge=1)
    """On how many clients each canary is put; on all, where there are fewer."""
    in_proxy: bool = False
    """Whether a public proxy set holds every canary once too: the worst that an audit can ask."""

    @field_validator("repetitions")
    @classmethod
    def _not_negative(cls, repetitions: tuple[int, ...]) -> tuple[int, ...]:
        if min(repetitions) < 0:
            raise ValueError("a canary cannot be repeated less than 0 times")
        return repetitions

    @model_validator(mode="after")
    def _has_coins(self) -> Canaries:
        if self.assignment and self.assign != "coin":
            raise FedkdError(
                "canaries.assignment numbers the draws of coins, and there are none",
                value=self.assignment,
                fix='canaries.assign = "coin", or no canaries.assignment',
            )
        return self

    @property
    def per_client(self) -> int:
        """How many canaries are made for each client, controls too."""
        return self.each * (len(self.repetitions) if self.assign == "all" else 1)

    def draw(self, clients: Sequence[int], seed: int) -> tuple[Canary, ...]:
        """The canaries made for `clients`, in their order; no two share a name or a secret.

        Secrets are drawn uniformly and again where one is taken, so that every one of the space is
        equally likely; names come from Faker, and may differ between its versions.
        Raises: FedkdError where the canaries would take more than half of the space.
        Source: the generator of TensorFlow Privacy 0.9 sorts its draws after a collision and keeps
        the first, which leaves only the low end of the space; hence the rejection here.
        """
        homes = [client for client in clients for _ in range(self.per_client)]
        return tuple(
            Canary(client, repetitions, self.format, prefix, secret, others)
            for client, repetitions, (prefix, secret), others in zip(
                homes,
                self._repetitions(len(clients), seed),
                self._words(len(homes), seed),
                self._others(clients, seed),
                strict=True,
            )
        )

    def _repetitions(self, n_clients: int, seed: int) -> list[int]:
        """One number a canary."""
        if self.assign == "all":
            return [times for times in self.repetitions for _ in range(self.each)] * n_clients
        coins = stream(seed, "canary", self.assignment, purpose="coins")
        chosen = coins.integers(len(self.repetitions), size=n_clients * self.per_client)
        return [self.repetitions[i] for i in chosen]

    def _words(self, n: int, seed: int) -> list[tuple[str, str]]:
        """Prefix and secret of each of n canaries; empty where the format has none."""
        chosen = FORMATS.get(self.format)
        if chosen is None:
            return [("", "")] * n
        if n > chosen.size // 2:
            raise FedkdError(
                f"too many canaries of the format {self.format}",
                value=n,
                allowed=f"up to {chosen.size // 2}",
                fix="fewer clients with canaries, or a format of more secrets",
            )
        rng = stream(seed, "canary", purpose="secrets")
        seed_of_names = int(rng.integers(2**63))
        secrets = _distinct(n, lambda: chosen.secret(int(rng.integers(chosen.size))))
        if "{name}" not in chosen.opening:
            return [(chosen.opening, secret) for secret in secrets]
        names = _names(n, seed_of_names)
        prefixes = [chosen.opening.format(name=name) for name in names]
        return list(zip(prefixes, secrets, strict=True))

    def _others(self, clients: Sequence[int], seed: int) -> Iterator[tuple[int, ...]]:
        """Who carries each canary besides the client that it was made for: drawn uniformly."""
        rng = stream(seed, "canary", purpose="holders")
        n_others = min(self.holders, len(clients)) - 1
        for place in range(len(clients)):
            for _ in range(self.per_client):
                drawn = rng.choice(len(clients) - 1, n_others, replace=False) if n_others else ()
                yield tuple(sorted(clients[int(i) + int(i >= place)] for i in drawn))


def _names(n: int, seed: int) -> list[str]:
    """n different made-up names."""
    from faker import Faker

    fake = Faker("en_US")
    fake.seed_instance(seed)
    return _distinct(n, lambda: f"{fake.first_name()} {fake.last_name()}")


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
    x: Tensor, y: Tensor, more_x: Tensor, more_y: Tensor, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """A client's records and, at random places among them, those of its canaries.

    Each repetition is a record of its own, so a model sees a sentence from its start. The other
    records keep their order.
    Shapes: x [n, c, h, w], y [n] or [n, L]; `more_x` and `more_y` the same with m records, one for
    each repetition; returns n + m.
    """
    if not len(more_x):
        return x, y
    all_x, all_y = torch.cat([x, more_x]), torch.cat([y, more_y])
    # Where each record comes from: the canaries' places are drawn, the others fill the rest.
    places = rng.choice(len(all_x), len(all_x) - len(x), replace=False)
    order = np.empty(len(all_x), np.int64)
    order[places] = np.arange(len(x), len(all_x))
    order[np.setdiff1d(np.arange(len(all_x)), places)] = np.arange(len(x))
    index = torch.from_numpy(order)
    return all_x[index], all_y[index]
