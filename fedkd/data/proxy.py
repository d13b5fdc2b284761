"""The table of proxies: the samples that all clients share and exchange soft labels on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn.functional import interpolate

from fedkd.data.dataset import as_input, stratified
from fedkd.data.sources import Source, load
from fedkd.data.split import Ids
from fedkd.errors import FedkdError
from fedkd.rng import stream
from fedkd.section import Section, table


class Contributed(Section):
    """Each client gives a fraction of its own samples to the proxy, as in EdgeFD."""

    name: Literal["contributed"] = "contributed"
    fraction: float = Field(default=0.1, lt=1)

    @field_validator("fraction")
    @classmethod
    def _above_zero(cls, fraction: float) -> float:
        if fraction <= 0:
            raise ValueError(
                "a proxy needs samples, so every client must give some; allowed: between 0 and 1; "
                "fix: a fraction such as 0.1, or a method that needs no proxy"
            )
        return fraction

    def divide(self, parts: Sequence[Ids], labels: Ids, seed: int) -> tuple[list[Ids], list[Ids]]:
        """(kept, given): two sorted index arrays a client, disjoint, together its part.

        What is given is stratified by class, at least one sample, and leaves at least one.
        Shapes: `parts` holds int64 [k >= 2] indices into `labels` int64 [n].
        """
        given = [self.give(part, labels, client, seed) for client, part in enumerate(parts)]
        kept = [np.setdiff1d(part, gift) for part, gift in zip(parts, given, strict=True)]
        return kept, given

    def give(self, part: Ids, labels: Ids, client: int, seed: int) -> Ids:
        """What one client gives of its part, as `divide` says."""
        count = min(max(round(self.fraction * len(part)), 1), len(part) - 1)
        rng = stream(seed, "data", client=client, purpose="contributed")
        gift: Ids = part[stratified(labels[part], count, rng)]
        return gift


class Public(Section):
    """Samples held out of the training set, which belong to no client."""

    name: Literal["public"] = "public"
    size: int = Field(default=1000, ge=1)

    def hold_out(self, labels: Ids, seed: int) -> Ids:
        """`size` indices into `labels` int64 [n], sorted and stratified by class.

        Raises: FedkdError where that would leave no sample to train on.
        """
        if self.size >= len(labels):
            raise FedkdError(
                "the public proxy would take all training samples",
                value=self.size,
                allowed=f"1 to {len(labels) - 1}",
                fix="lower proxy.size",
            )
        return stratified(labels, self.size, stream(seed, "data", purpose="public"))


class Foreign(Section):
    """Training records of another data set, whose labels mean nothing here and are dropped."""

    name: Literal["foreign"] = "foreign"
    source: Source
    size: int | None = Field(default=None, ge=1)

    def images(
        self, shape: tuple[int, int, int], seed: int, vocabulary: int | None = None
    ) -> Tensor:
        """`size` of the records (None: all), made to fit the private ones of `shape` = (c, h, w).

        Images are resized with antialiasing; their channels are averaged into one, or one is
        repeated. Where the private records are text, of so many symbols as `vocabulary` says,
        the others must be text of the same length and vocabulary.
        Shapes: [size, c, h, w]; uint8, float32 or int16 as the source has it.
        Raises: FedkdError where the source has fewer records or they cannot be made to fit.
        """
        other = load(self.source).train
        found = other.n_classes if other.is_text else None
        if found != vocabulary:
            raise FedkdError(
                f"the foreign proxy {self.source.name} is of another kind than the private data",
                value=_kind(found),
                allowed=_kind(vocabulary),
                fix="choose another proxy.source, or the same tokens for both",
            )
        x = other.x
        if self.size is not None:
            if self.size > len(x):
                raise FedkdError(
                    f"the foreign proxy {self.source.name} has too few records",
                    value=self.size,
                    allowed=f"1 to {len(x)}",
                    fix="lower proxy.size",
                )
            rng = stream(seed, "data", purpose="foreign")
            x = x[torch.from_numpy(np.sort(rng.choice(len(x), self.size, replace=False)))]
        return _fit(x, shape)


def _kind(vocabulary: int | None) -> str:
    return "images" if vocabulary is None else f"text of {vocabulary} symbols"


def _fit(x: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """[n, c, h, w] of the wanted (c, h, w), in the dtype of `x`."""
    have = tuple(x.shape[1:])
    if have == shape:
        return x
    flat = 1 in (have[1], shape[1]) and have[1:] != shape[1:]
    if flat or x.dtype == torch.int16 or (have[0] != shape[0] and 1 not in (have[0], shape[0])):
        raise FedkdError(
            "the foreign proxy's samples cannot be made to fit the private ones",
            value=have,
            allowed=f"{shape}, or images of 1 or {shape[0]} channels",
            fix="choose another proxy.source",
        )
    pixels = as_input(x)
    if shape[0] == 1:
        pixels = pixels.mean(1, keepdim=True)
    if have[1:] != shape[1:]:
        pixels = interpolate(pixels, shape[1:], mode="bilinear", antialias=True)
    pixels = pixels.expand(-1, shape[0], -1, -1)
    if x.dtype == torch.uint8:
        return (pixels * 255).round().to(torch.uint8)
    return pixels.contiguous()


Proxy = Annotated[Contributed | Public | Foreign, Field(discriminator="name")]
PROXIES = table(Contributed, Public, Foreign)
