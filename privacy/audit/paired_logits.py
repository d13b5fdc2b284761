"""Paired-logits inversion (PLI): what does a class look like that only a client has seen?

The observer is a server with a model of its own (its student, or one trained on the consensus). On
the proxy set it has images, the client's soft labels and its own. It trains a net that turns a
*pair* of soft labels back into the image. Then it asks that net for a private class: the client is
sure, the server has no idea. What comes out looks like the class, not like one record.
Empirical: a class that is not found is not thereby safe. Measured with five clients of two classes
each, a proxy set without the private classes, small-cnn, two clients and two seeds: the success
is 0.25 paired, 0.12 client-only, 0.25 server-only on digits after eight rounds; 0.25, 0.38 and 0
on Fashion-MNIST after four. That is four classes each: the answers tell something on
Fashion-MNIST (SSIM 0.30, 0.58 and 0.13), and nothing that the null does not have on digits.

A class is private here if one client alone holds it (`private_classes`). A proxy set that has
images of it shows the server more than any inversion: the paper's server has none, and `without`
takes them away. `server-only` is the null: what the server finds without the client's answers.

Source: Takahashi, Liu, Liu, CVPR 2023, arXiv:2304.11436, and its released code, read at second
hand. Deviations: a smaller net, for small images, that learns faster and longer (`LEARNING`); the
prior is a class mean of proxy images, where theirs are public images translated by a CycleGAN; one
round, where theirs goes on for five. The released code writes the server's probability of *every*
label in a batch into every row; `optimal_pairs` writes a row's own label.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedkd.config_sections import Phase
from fedkd.errors import FedkdError
from fedkd.models.vision import SLOPE
from fedkd.rng import stream, torch_stream
from fedkd.training import fit
from privacy.audit.images import class_means, mse, pixels, ssim
from privacy.audit.uploads import Answer, rows_at

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

TEMPERATURE = 3.0
"""Softens both soft labels of a pair in training."""
FLATNESS = 5.0
"""Weight alpha of the server's entropy in `optimal_pairs`."""
PRIOR = 0.03
"""Weight gamma of the class mean in the loss."""
FLOOR = 1e-6
"""The least probability in a pair: answers may be cut to 0, or noised below it."""
LEARNING = Phase(epochs=30, batch_size=64, learning_rate=3e-3)
"""Of the net: 1,600 images of 28x28 take 11 to 36 s on one thread of a
machine whose two cores are shared by five processes."""


@dataclass(frozen=True, kw_only=True)
class View:
    """What the inversion net reads and aims at. A part that is not read is uniform."""

    client: bool
    server: bool
    prior: bool


VIEWS: dict[str, View] = {
    "paired": View(client=True, server=True, prior=True),
    "no-prior": View(client=True, server=True, prior=False),
    # Training-based inversion: Yang et al. 2019, arXiv:1902.08552.
    "client-only": View(client=True, server=False, prior=False),
    "server-only": View(client=False, server=True, prior=True),
}


def private_classes(counts: Ints) -> dict[int, int]:
    """The classes that exactly one client holds, and which client: of counts [clients, classes].

    >>> private_classes(np.array([[5, 0, 3], [0, 0, 1]]))
    {0: 0}
    """
    held = counts > 0
    alone = np.flatnonzero(held.sum(axis=0) == 1)
    return {int(c): int(held[:, c].argmax()) for c in alone}


def without(answer: Answer, labels: Ints, classes: Ints) -> Answer:
    """An answer less the proxy samples of `classes`; labels int64 [samples], by proxy id."""
    ids, values = answer
    kept = ~np.isin(labels[ids], classes)
    return ids[kept], values[kept]


def optimal_pairs(
    classes: Ints, n_classes: int, flatness: float = FLATNESS
) -> tuple[Floats, Floats]:
    """What to ask of the net for each class: the client's and server's parts, [k, classes] each.

    The client's is one-hot. The server's is the maximiser of p_j + flatness x entropy(p) for class
    j: e^(1/flatness) of the weight for j, 1 for each other class.
    """
    client = np.zeros((len(classes), n_classes))
    client[np.arange(len(classes)), classes] = 1
    server = np.exp(client / flatness)
    return client, server / server.sum(axis=1, keepdims=True)


def tempered(soft: Floats) -> Floats:
    """softmax(logits / TEMPERATURE) [m, classes] of soft labels softmax(logits)."""
    powers = np.maximum(soft, FLOOR) ** (1 / TEMPERATURE)
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


class Inverter(nn.Module):
    """Pairs [n, 2 classes, 1, 1] to pixels [n, c x h x w]: transposed convolutions, 64-32-c."""

    def __init__(self, n_classes: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = shape
        quarter = math.ceil(height / 4), math.ceil(width / 4)
        self.grow = nn.Sequential(
            nn.ConvTranspose2d(2 * n_classes, 64, quarter),
            nn.LeakyReLU(SLOPE),
            nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1),
            nn.LeakyReLU(SLOPE),
            nn.ConvTranspose2d(32, channels, 4, stride=2, padding=1),
            nn.Sigmoid(),
        )
        self.height, self.width = height, width

    def forward(self, pairs: Tensor) -> Tensor:
        """Pixels in [0, 1]; what a side has beyond the image's is cut off."""
        grown: Tensor = self.grow(pairs)
        return grown[:, :, : self.height, : self.width].flatten(1)


def invert(
    name: str,
    images: Tensor,
    labels: Ints,
    client: Answer,
    server: Answer,
    classes: Ints,
    seed: int,
    *,
    device: torch.device | None = None,
    learning: Phase = LEARNING,
) -> Tensor:
    """The row `name` of `VIEWS` at work: an image of each class, float32 [k, c, h, w] in [0, 1].

    Shapes: images [n, c, h, w] and labels int64 [n] of the proxy set, by proxy id; `client` and
    `server` answers of soft labels (take the softmax of logits first); classes int64 [k]. The net
    learns the samples that both answered. With the prior, the loss is MSE(x) + PRIOR x MSE(mean
    image of x's class); that is MSE to the mean of both, weighed so, up to a constant.
    Raises: FedkdError for pixels not in [0, 1], or if there is no sample that both answered.
    """
    view = VIEWS[name]
    ids, values = client
    other = rows_at(server, ids)
    both = ~np.isnan(other).any(axis=1)
    ids, ours, theirs = ids[both].astype(np.int64), values[both].astype(np.float64), other[both]
    if len(ids) == 0:
        raise FedkdError("paired-logits inversion needs proxy samples that both sides answered")
    n_classes = values.shape[1]
    aims = pixels(images[torch.from_numpy(ids)])
    _, channels, height, width = aims.shape
    shape = channels, height, width
    if view.prior:
        means = class_means(aims, labels[ids], n_classes)
        aims = (aims + PRIOR * means[torch.from_numpy(labels[ids])]) / (1 + PRIOR)

    def net_input(one: Floats, two: Floats) -> Tensor:
        parts = [one if view.client else np.full_like(one, 1 / n_classes)]
        parts.append(two if view.server else np.full_like(two, 1 / n_classes))
        pair = torch.from_numpy(np.concatenate(parts, axis=1)).float()
        return pair[:, :, None, None].to(device)

    with torch.random.fork_rng(devices=[]):
        first = torch_stream(seed, "audit", purpose="inverter").initial_seed()
        torch.default_generator.manual_seed(first)
        net = Inverter(n_classes, shape)
    net.to(device)
    told = net_input(tempered(ours), tempered(theirs))
    draws = stream(seed, "audit", purpose="invert")
    fit(net, told, aims.flatten(1).to(device), _squared, learning, draws)
    with torch.no_grad():
        made: Tensor = net(net_input(*optimal_pairs(classes, n_classes)))
    return made.reshape(-1, *shape).cpu()


def _squared(made: Tensor, aims: Tensor) -> Tensor:
    return (made - aims).square().mean(dim=1)


@dataclass(frozen=True, eq=False)
class Scores:
    """How near the images of k private classes came to the means of those classes."""

    success: Bools
    """[k]: no other class's mean image has as high an SSIM to it. Chance is one in all classes."""
    ssim: Floats
    """[k], to the right class's mean image."""
    mse: Floats
    """[k], a pixel, to the same."""


def scores(found: Tensor, classes: Ints, means: Tensor) -> Scores:
    """Found images [k, c, h, w] of classes int64 [k] against the mean images of all classes.

    `means` [classes, c, h, w], as `class_means` gives it: of a private class from its client's own
    images, of others from the proxy set; a class without images is NaN and no rival.
    Raises: FedkdError without scikit-image.
    """
    alike = ssim(found, means)
    rows = np.arange(len(classes))
    right = alike[rows, classes]
    rivals = alike.copy()
    rivals[rows, classes] = -np.inf
    return Scores(right > np.nanmax(rivals, axis=1), right, mse(found, means)[rows, classes])
