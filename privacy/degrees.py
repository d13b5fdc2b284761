"""How private is each position, from 0 to 1? One row of a table each; `privacy.swing` uses them.

A row reads what it needs of the `Evidence` and returns float64 [m]. `origin` says who can compute
it: "public" only from what everybody has; "private" also from the client's data or model, so that
the degree itself is a secret and Swing's cost may not depend on it.

None of these is a guarantee. They are estimates of where an answer would tell most; their squashing
to [0, 1] is ours.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from fedkd.errors import FedkdError
from fedkd.section import Section, table
from privacy import patterns
from privacy.ngrams import NGrams

Origin = Literal["public", "private"]
Four = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is known about m positions, in order; text after text where positions are tokens."""

    texts: Sequence[str] | None = None
    offsets: Sequence[Sequence[tuple[int, int]]] | None = None
    """(start, end) of the characters of every position of every text."""
    tokens: Tensor | None = None
    """int64 [m]: the token at each position, which the logits there predict."""
    ngrams: NGrams | None = None
    """Of a public corpus."""
    client_logits: Tensor | None = None
    """[m, classes] of the client's model."""
    public_logits: Tensor | None = None
    """[m, classes] of a model that never saw private data."""
    labels: Tensor | None = None
    """int64 [m]: labels of the samples that everybody knows."""
    distances: Tensor | None = None
    """[m] to the nearest of the client's own centroids: `fedkd.exchange.kmeans.distances`."""

    def need(self, row: str, *names: str) -> list[Any]:
        """The named fields; a FedkdError if one is missing."""
        missing = [name for name in names if getattr(self, name) is None]
        if missing:
            raise FedkdError(
                f"the degree {row!r} cannot be computed from what is known here",
                value=f"no {', '.join(missing)}",
                allowed=f"evidence with {', '.join(names)}",
                fix="choose another degree",
            )
        return [getattr(self, name) for name in names]


class Patterns(Section):
    """Digits, e-mail addresses, phone and bank numbers, dates, names: by regular expressions."""

    name: Literal["patterns"] = "patterns"
    origin: ClassVar[Origin] = "public"

    def degree(self, evidence: Evidence) -> Tensor:
        """The degree of the most private pattern that overlaps a position, 0 if none does."""
        texts, offsets = evidence.need(self.name, "texts", "offsets")
        found = [patterns.degrees(text, spans) for text, spans in zip(texts, offsets, strict=True)]
        return torch.from_numpy(np.concatenate([np.zeros(0), *found]))


class Rarity(Section):
    """How surprising a token is to n-grams of a public corpus; 1 is as if it had to be guessed."""

    name: Literal["rarity"] = "rarity"
    origin: ClassVar[Origin] = "public"

    def degree(self, evidence: Evidence) -> Tensor:
        """min(1, -ln p(token | context) / ln(vocabulary))."""
        ngrams, tokens, offsets = evidence.need(self.name, "ngrams", "tokens", "offsets")
        found = [
            ngrams.surprisals(part.tolist()) / math.log(ngrams.vocabulary)
            for part in _by_text(tokens, offsets)
        ]
        return torch.from_numpy(np.concatenate([np.zeros(0), *found])).clamp(max=1)


class Divergence(Section):
    """How far the client's prediction is from a public model's: KL, squashed by a logistic."""

    name: Literal["divergence"] = "divergence"
    origin: ClassVar[Origin] = "private"
    midpoint_nats: float = Field(1.0, gt=0)
    """The KL(client || public) at which the degree is 1/2."""
    width_nats: float = Field(0.25, gt=0)
    """How much more KL takes the degree from 1/2 to 0.73."""

    def degree(self, evidence: Evidence) -> Tensor:
        """sigmoid((KL - midpoint) / width)."""
        client, public = evidence.need(self.name, "client_logits", "public_logits")
        return torch.sigmoid((kl(client, public) - self.midpoint_nats) / self.width_nats)


class Memorization(Section):
    """How likely a student memorises a text: a logistic of zlib entropy, perplexities and KL.

    Source: Memorization Dynamics in Knowledge Distillation (Borkar et al., arXiv 2601.15394), read
    at second hand: the four features, and that the zlib coefficient is -4.50 (compressible texts
    are memorised) on standardised features. The other coefficients were not available, so they are
    0 until `fit`; one is expected below 0 for each perplexity, since easy texts are memorised.
    Every position of a text has the text's degree.
    """

    name: Literal["memorization"] = "memorization"
    origin: ClassVar[Origin] = "private"
    mean: Four
    """Of each of the features of `features`, over a reference set."""
    scale: Four
    """Their standard deviations there."""
    coefficients: Four = (-4.5, 0.0, 0.0, 0.0)
    intercept: float = 0.0

    def degree(self, evidence: Evidence) -> Tensor:
        """sigmoid(intercept + coefficients . (features - mean) / scale)."""
        (offsets,) = evidence.need(self.name, "offsets")
        by_text = self.of(features(evidence))
        return by_text.repeat_interleave(torch.tensor([len(spans) for spans in offsets]))

    def of(self, known: Tensor) -> Tensor:
        """The degrees [texts] of features [texts, 4]."""
        mean, scale, weights = (
            torch.tensor(four, dtype=torch.float64)
            for four in (self.mean, self.scale, self.coefficients)
        )
        return torch.sigmoid((known - mean) / scale @ weights + self.intercept)

    @classmethod
    def against(cls, known: Tensor, coefficients: Four) -> Memorization:
        """With these coefficients, and the features [texts, 4] as the reference set."""
        mean, scale = _standards(known)
        return cls(mean=_four(mean), scale=_four(scale), coefficients=coefficients)

    @classmethod
    def fit(cls, known: Tensor, memorised: Tensor, *, ridge: float = 1.0) -> Memorization:
        """The predictor of which texts were memorised (bool [texts]), of features [texts, 4].

        Logistic regression on standardised features by Newton's method; `ridge` / 2 times the
        squared coefficients is added to the loss, so that separable data has a solution too.
        """
        x = known.double()
        if len(x) < 2 or not bool(memorised.any()) or bool(memorised.all()):
            raise FedkdError(
                "the predictor must see texts that were memorised and texts that were not",
                value=f"{int(memorised.sum())} of {len(x)}",
            )
        mean, scale = _standards(x)
        design = torch.cat([(x - mean) / scale, torch.ones(len(x), 1, dtype=x.dtype)], 1)
        penalty = torch.tensor([ridge] * 4 + [0.0], dtype=x.dtype)
        beta = _newton(design, memorised.to(x.dtype), penalty).tolist()
        return cls(
            mean=_four(mean), scale=_four(scale), coefficients=tuple(beta[:4]), intercept=beta[4]
        )


class PrivateClasses(Section):
    """1 for samples of classes that are declared private, 0 for others."""

    name: Literal["classes"] = "classes"
    origin: ClassVar[Origin] = "public"
    private: tuple[int, ...]

    def degree(self, evidence: Evidence) -> Tensor:
        """Whether the label, which everybody knows, is one of the private classes."""
        (labels,) = evidence.need(self.name, "labels")
        return torch.isin(labels, torch.tensor(self.private, dtype=labels.dtype)).double()


class Density(Section):
    """How close a sample is to the client's own centroids: the closer, the more private."""

    name: Literal["density"] = "density"
    origin: ClassVar[Origin] = "private"
    halfway: float = Field(gt=0)
    """The distance at which the degree is 1/2; the median over private samples, for example."""

    def degree(self, evidence: Evidence) -> Tensor:
        """2 ** -(distance / halfway)^2."""
        (distances,) = evidence.need(self.name, "distances")
        return torch.exp2(-((distances.double() / self.halfway) ** 2))


def kl(client_logits: Tensor, public_logits: Tensor) -> Tensor:
    """KL(client || public) in nats, float64 [m], of logits [m, classes] each."""
    client = torch.log_softmax(client_logits.double(), dim=1)
    public = torch.log_softmax(public_logits.double(), dim=1)
    return (client.exp() * (client - public)).sum(1).clamp(min=0)


def features(evidence: Evidence) -> Tensor:
    """float64 [texts, 4]: zlib entropy in bits, perplexity of the public and of the client's model,
    mean KL(client || public) in nats."""
    needed = ("texts", "offsets", "tokens", "client_logits", "public_logits")
    texts, offsets, tokens, client, public = evidence.need("memorization", *needed)
    rows = torch.arange(len(tokens))
    nats = [
        -torch.log_softmax(public.double(), 1)[rows, tokens],
        -torch.log_softmax(client.double(), 1)[rows, tokens],
        kl(client, public),
    ]
    by_text = [
        [part.sum() / max(1, len(part)) for part in _by_text(values, offsets)] for values in nats
    ]
    bits = torch.tensor([8.0 * len(zlib.compress(text.encode())) for text in texts]).double()
    baseline, teacher, divergence = (torch.stack(means).clamp(max=700) for means in by_text)
    return torch.stack([bits, baseline.exp(), teacher.exp(), divergence], dim=1)


def _by_text(values: Tensor, offsets: Sequence[Sequence[tuple[int, int]]]) -> tuple[Tensor, ...]:
    lengths = [len(spans) for spans in offsets]
    if sum(lengths) != len(values):
        raise FedkdError(
            "positions do not add up", value=len(values), allowed=f"{sum(lengths)} in all texts"
        )
    return torch.split(values, lengths)


def _newton(x: Tensor, y: Tensor, penalty: Tensor) -> Tensor:
    """The minimum [d] of the logistic loss of x [n, d] and y [n] plus sum(penalty b^2) / 2."""

    def objective(b: Tensor) -> Tensor:
        z = x @ b
        return (torch.nn.functional.softplus(z) - y * z).sum() + (penalty * b**2).sum() / 2

    b = x.new_zeros(x.shape[1])
    for _ in range(100):
        p = torch.sigmoid(x @ b)
        slope = x.T @ (p - y) + penalty * b
        curvature = x.T @ (x * (p * (1 - p))[:, None]) + torch.diag(penalty)
        step = torch.linalg.solve(curvature, slope)
        size = 1.0
        while objective(b - size * step) > objective(b) and size > 1e-6:
            size /= 2
        b = b - size * step
        if float(step.abs().max()) < 1e-10:
            break
    return b


def _standards(known: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [4] of features; 1 where all are alike."""
    scale = known.std(0, correction=0)
    return known.mean(0), torch.where(scale > 0, scale, 1.0)


def _four(values: Tensor | NDArray[np.float64]) -> Four:
    a, b, c, d = values.tolist()
    return a, b, c, d


Degree = Annotated[
    Patterns | Rarity | Divergence | Memorization | PrivateClasses | Density,
    Field(discriminator="name"),
]
DEGREES = table(Patterns, Rarity, Divergence, Memorization, PrivateClasses, Density)
