"""How alike two sets of images are: what an attack that makes images is judged by.

Images are float32 tensors [n, c, h, w] in [0, 1]; every measure is symmetric in its two sets.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedkd.data.dataset import as_input
from fedkd.errors import FedkdError

Floats = NDArray[np.float64]

WINDOW = 7
"""Pixels a side of SSIM's sliding window, scikit-image's own; images that are smaller get the
largest odd number that fits."""


def pixels(images: Tensor) -> Tensor:
    """Images [n, c, h, w] of a `Dataset` as float32 in [0, 1].

    Raises: FedkdError for what is not images of at least 3x3 with values in [0, 1].
    """
    if images.ndim != 4 or images.dtype not in (torch.uint8, torch.float32):
        kind = f"{images.dtype} {tuple(images.shape)}"
        raise FedkdError("an inversion needs images", value=kind, allowed="[n, c, h, w]")
    if min(images.shape[2:]) < 3:
        size = "x".join(str(side) for side in images.shape[2:])
        raise FedkdError("SSIM needs images of at least 3x3", value=size)
    scaled = as_input(images)
    if len(scaled) and not (0 <= float(scaled.min()) <= float(scaled.max()) <= 1):
        span = f"{float(scaled.min()):g} to {float(scaled.max()):g}"
        raise FedkdError(
            "an inversion needs pixels in [0, 1]", value=span, fix="scale the images first"
        )
    return scaled


def class_means(images: Tensor, labels: NDArray[np.int64], n_classes: int) -> Tensor:
    """The mean image of each class, float32 [classes, c, h, w]; NaN where there is no image.

    Shapes: images [n, c, h, w] as `pixels` takes them, labels int64 [n].
    """
    x, y = pixels(images).double(), torch.from_numpy(labels)
    total = torch.zeros((n_classes, *x.shape[1:]), dtype=torch.float64).index_add_(0, y, x)
    count = torch.bincount(y, minlength=n_classes)
    return (total / count[:, None, None, None]).float()


def ssim(found: Tensor, known: Tensor) -> Floats:
    """Structural similarity float64 [n, m] of each of n images to each of m; 1 is the same.

    Source: Wang et al. 2004, as scikit-image has it: uniform windows of `WINDOW`, the range of
    pixels 1, the mean over channels. NaN where an image is NaN.
    Raises: FedkdError without scikit-image.
    """
    try:
        from skimage.metrics import structural_similarity
    except ImportError as error:
        raise FedkdError(f"SSIM: {error}", fix="pip install 'fedkd[audit]'") from None
    window = min(WINDOW, *(side - 1 + side % 2 for side in found.shape[2:]))
    ours, theirs = found.numpy().astype(np.float64), known.numpy().astype(np.float64)

    def alike(a: Floats, b: Floats) -> float:
        if np.isnan(a).any() or np.isnan(b).any():
            return float("nan")
        value = structural_similarity(  # type: ignore[no-untyped-call]
            a, b, win_size=window, data_range=1.0, channel_axis=0
        )
        return float(value)

    return np.array([[alike(a, b) for b in theirs] for a in ours]).reshape(len(ours), len(theirs))


def mse(found: Tensor, known: Tensor) -> Floats:
    """The mean squared error of a pixel, float64 [n, m], of each of n images to each of m."""
    gaps = found.double().flatten(1)[:, None] - known.double().flatten(1)[None]
    return np.asarray(gaps.square().mean(dim=2).numpy())


def psnr_db(mse: Floats) -> Floats:
    """Peak signal-to-noise ratios in decibels of errors in [0, 1]; infinite for none.

    >>> psnr_db(np.array([1.0, 0.01])).tolist()
    [0.0, 20.0]
    """
    with np.errstate(divide="ignore"):
        return 0.0 - 10 * np.log10(mse)
