"""Canaries among images: records that a client can only know from having been trained on them.

`mislabelled`  an image that nobody holds otherwise, with a wrong label
`blank`        one grey level or colour, with a random label
`noise`        uniform noise, with a random label
`ood`          out of distribution: an image that nobody holds otherwise, its tiles shuffled, with a
               random label; of 4 x 4 tiles, so nothing need be downloaded and every shape has some
`rendered`     a sentence with a secret in Pillow's default font, with a random label

Source: the kinds are those of Aerni, Zhang, Tramer 2024 and of TensorFlow Privacy's secret sharer.
Deviation: out-of-distribution images are theirs from another data set, ours are shuffled.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedkd.data.canaries import Canary
from fedkd.data.dataset import Dataset
from fedkd.data.split import Ids
from fedkd.errors import FedkdError
from fedkd.rng import stream

HELD_OUT = ("mislabelled", "ood")
"""Kinds that are made of images of the training set, one each."""
TILES = 4
"""Along each axis of a shuffled image."""
LINE = 7
"""Characters in a line of a rendered sentence."""

Pixels = NDArray[np.float64]


def hold_out(rest: Ids, n: int, seed: int) -> Ids:
    """n of the ids in `rest`, int64 [n] in random order, for canaries to be made of.

    Raises: FedkdError where that would take more than half of them.
    """
    if n > len(rest) // 2:
        raise FedkdError(
            "the canaries would take more than half of the training images",
            value=n,
            allowed=f"up to {len(rest) // 2}",
            fix=f"fewer canaries, or a format other than {' and '.join(HELD_OUT)}",
        )
    return stream(seed, "canary", purpose="held out").choice(rest, n, replace=False)


def images(
    canaries: Sequence[Canary], train: Dataset, held_out: Ids, seed: int
) -> tuple[Tensor, Tensor]:
    """The records of m >= 1 canaries of one format: like `train`'s, with the labels to learn.

    Args: held_out: int64 [m], whose images `HELD_OUT` kinds are made of; empty for the others.
    Shapes: x [m, c, h, w] in the dtype of `train`; y int64 [m].
    Pixels that are made up lie where those of `train` do: 0 to 255, or within each channel's range.
    Neighbouring grey levels look alike to a model, so of many blank canaries one may tell of
    another.
    Raises: FedkdError for more blank canaries than there are colours.
    """
    rng = stream(seed, "canary", purpose="images")
    n, shape = len(canaries), tuple(train.x.shape[1:])
    labels = rng.integers(train.n_classes, size=n)
    match canaries[0].format:
        case "mislabelled":
            x, true = train.rows(held_out)
            labels = (true.numpy() + rng.integers(1, train.n_classes, size=n)) % train.n_classes
        case "ood":
            x = _shuffled(train.rows(held_out)[0], rng)
        case "blank":
            x = _like(np.broadcast_to(_colours(n, train, rng), (n, *shape)), train)
        case "noise":
            x = _like(rng.random((n, *shape)), train)
        case _:
            x = _like(np.stack([_rendered(each.sentence, shape) for each in canaries]), train)
    return x, torch.from_numpy(labels)


def _like(unit: Pixels, train: Dataset) -> Tensor:
    """Pixels in [0, 1], [m, c, h, w], in the dtype and the range of the training set's."""
    if train.x.dtype == torch.uint8:
        return torch.from_numpy(np.minimum(unit * 256, 255).astype(np.uint8))
    low = train.x.amin((0, 2, 3), keepdim=True).double()
    high = train.x.amax((0, 2, 3), keepdim=True).double()
    return (low + torch.from_numpy(np.array(unit)) * (high - low)).float()


def _colours(n: int, train: Dataset, rng: np.random.Generator) -> Pixels:
    """n different colours, [n, c, 1, 1]; of uint8 pixels, the middle of each level."""
    channels = train.x.shape[1]
    if train.x.dtype != torch.uint8:
        return rng.random((n, channels, 1, 1))
    if n > 256**channels:
        raise FedkdError(
            "too many blank canaries",
            value=n,
            allowed=f"up to {256**channels}, one of each level",
            fix='canaries.format = "noise" or "mislabelled"',
        )
    drawn = rng.choice(256**channels, n, replace=False)
    levels = np.stack(np.unravel_index(drawn, (256,) * channels), 1)
    return ((levels + 0.5) / 256)[:, :, None, None]


def _shuffled(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Each image with its tiles in an order of its own; what no whole tile covers stays.

    Axes that are too short for `TILES` tiles are not cut.
    """
    x = x.clone()
    n, channels = x.shape[:2]
    rows, columns = (TILES if size >= TILES else 1 for size in x.shape[2:])
    height, width = x.shape[2] // rows, x.shape[3] // columns
    whole = x[:, :, : rows * height, : columns * width]
    tiles = whole.reshape(n, channels, rows, height, columns, width).permute(0, 2, 4, 1, 3, 5)
    tiles = tiles.reshape(n, rows * columns, channels, height, width)
    order = rng.permuted(np.tile(np.arange(rows * columns), (n, 1)), axis=1)
    tiles = tiles[torch.arange(n)[:, None], torch.from_numpy(order)]
    tiles = tiles.reshape(n, rows, columns, channels, height, width).permute(0, 3, 1, 4, 2, 5)
    x[:, :, : rows * height, : columns * width] = tiles.reshape(whole.shape)
    return x


def _rendered(sentence: str, shape: tuple[int, ...]) -> Pixels:
    """The sentence as a white on black image [c, h, w] in [0, 1], the same in every channel.

    Flat features [1, 1, d] are the first d pixels of a square.
    """
    from PIL import Image, ImageDraw

    channels, height, width = shape
    flat = height == 1
    size = (math.isqrt(width - 1) + 1,) * 2 if flat else (width, height)
    text, font = "\n".join(textwrap.wrap(sentence, LINE)), _font()
    box = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox((0, 0), text, font, spacing=1)
    paper = Image.new("L", (math.ceil(box[2]) + 2, math.ceil(box[3]) + 2))
    ImageDraw.Draw(paper).multiline_text((1, 1), text, 255, font, spacing=1)
    pixels = np.asarray(paper.resize(size, Image.Resampling.BILINEAR), np.float64) / 255
    if flat:
        pixels = pixels.reshape(1, -1)[:, :width]
    return np.broadcast_to(pixels, (channels, height, width))


@lru_cache(maxsize=1)
def _font() -> Any:
    """Pillow's default font, read once."""
    from PIL import ImageFont

    return ImageFont.load_default()
