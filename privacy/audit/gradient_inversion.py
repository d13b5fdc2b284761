"""Gradient inversion: images and labels from one client's weights under FedAvg. The reference.

It shows what distillation takes away: on soft labels alone this attack has no gradient to match.
Empirical: images that are not found are not thereby safe. The observer is a server that sent one
client weights and got them back trained, and knows the model and how many images taught it.

The update is read as the direction of *one* mean gradient, at the weights that were sent. That is
exact for one step of SGD on one batch. Several local steps are approximated by one step with the
mean gradient over all their images; Adam, momentum and DP-SGD's clipping bend the direction as
well, and the attack does not know about them. Measured, mean SSIM of eight images and three seeds
of a fresh model, mlp and small-cnn:

                                digits       Fashion-MNIST
    one step of SGD             0.98  0.84   0.92  0.71
    five steps on the batch     0.93  0.62   0.62  0.32
    eight steps, an image each  0.90  0.37   0.27  0.14
    five steps of Adam          0.58  0.24   0.46  0.19
    the null: eight others      0.61         0.29

So compare with the null of the same size: the best of 8! pairings is alike even by chance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from fedkd.errors import FedkdError
from fedkd.models.zoo import Classifier
from fedkd.rng import torch_stream
from privacy.audit.images import mse, pixels, psnr_db, ssim

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Weights = NDArray[np.float32]
"""A model's weights as they travel, [size], in the order of its parameters."""

ITERATIONS = 300
LEARNING_RATE = 0.1
VARIATION = 0.01
"""Weight of total variation in the cost."""


@dataclass(frozen=True, eq=False)
class Found:
    """What the weights gave away."""

    images: Tensor
    """float32 [b, c, h, w] in [0, 1]."""
    labels: Ints
    """[b], the label that each image was fitted with."""
    distance: float
    """1 - cosine of the update to the gradient of these images: 0 explains the update."""


def infer_labels(model: Classifier, before: Weights, after: Weights, n_images: int) -> Ints:
    """The labels int64 [n_images], ascending, of the images behind an update.

    The gradient of cross-entropy at the bias of class c is the mean probability of c less c's share
    of the batch. So a class whose bias grew is there: for one image there is exactly one. How often
    each is there also takes the scale of the update and the mean probabilities; we take these as
    uniform, as those of a fresh model nearly are, and the scale from the biases that shrank. With
    one step and no class twice, labels are exact as long as no class that is there is already
    predicted with a mean probability above 1 / n_images.

    Source: the sign is iDLG's (Zhao et al. 2020, arXiv:2001.02610), and the counts are after LLG
    (Wainakh et al. 2022, arXiv:2105.09369): the scale from the rows that shrank is ours.
    """
    gradient = _split(model, _update(model, before, after))["head.bias"].numpy()
    n_classes = len(gradient)
    shrank = gradient > 0
    scale = gradient[shrank].mean() * n_classes if shrank.any() else 1.0
    shares = np.maximum(1 / n_classes - gradient / scale, 0)
    # Largest remainders, but a class whose bias grew has at least one image, the surest first.
    there = np.argsort(gradient, kind="stable")[: min(n_images, int((gradient < 0).sum()))]
    counts = np.zeros(n_classes, np.int64)
    counts[there] = 1
    for _ in range(n_images - len(there)):
        counts[np.argmax(shares * n_images - counts)] += 1
    return np.repeat(np.arange(n_classes), counts)


def invert(
    model: Classifier,
    before: Weights,
    after: Weights,
    shape: tuple[int, int, int],
    n_images: int,
    seed: int,
    *,
    labels: Ints | None = None,
    iterations: int = ITERATIONS,
) -> Found:
    """Images whose gradient points where the update does.

    From noise, `iterations` steps of Adam on the signs of the gradient of
    1 - cos(update, gradient) + VARIATION x total variation, at a rate that falls tenfold after 3/8,
    5/8 and 7/8 of them, and images cut to [0, 1]. Computed on the device of `model`, whose own
    weights are neither read nor changed.
    Shapes: before and after [size]; shape (c, h, w); labels int64 [n_images], where None takes
    those of `infer_labels`.
    Raises: FedkdError for weights of another model, or an update that is zero or not finite.
    Source: Inverting Gradients (Geiping et al. 2020, arXiv:2003.14053) and its code. Deviations:
    one start, all gradients weigh the same, and few iterations, as in the FedAvg baseline of
    Paired-Logits Inversion (arXiv:2304.11436), which takes 150 at a rate of 0.3.
    """
    if labels is None:
        labels = infer_labels(model, before, after, n_images)
    device = next(model.parameters()).device
    update = _update(model, before, after).to(device)
    weights = _split(model, torch.from_numpy(before).float().to(device))
    weights = {name: weight.requires_grad_() for name, weight in weights.items()}
    targets = torch.from_numpy(labels).to(device)
    start = torch.rand((n_images, *shape), generator=torch_stream(seed, "audit", purpose="invert"))
    images = start.to(device).requires_grad_()

    def distance() -> Tensor:
        loss = F.cross_entropy(functional_call(model, weights, (images,)), targets)
        parts = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        gradient = torch.cat([part.flatten() for part in parts])
        return 1 - F.cosine_similarity(gradient, update, dim=0)

    steps = torch.optim.Adam([images], lr=LEARNING_RATE)
    falls = [iterations * eighths // 8 for eighths in (3, 5, 7)]
    rate = torch.optim.lr_scheduler.MultiStepLR(steps, falls, gamma=0.1)
    for _ in range(iterations):
        cost = distance() + VARIATION * _variation(images)
        images.grad = torch.autograd.grad(cost, images)[0].sign()
        steps.step()
        rate.step()
        with torch.no_grad():
            images.clamp_(0, 1)
    return Found(images.detach().cpu(), labels, float(distance().detach()))


@dataclass(frozen=True, eq=False)
class Match:
    """How near each true image came, after the best pairing of found images with true ones."""

    order: Ints
    """[b]: which found image belongs to each true one."""
    ssim: Floats
    """[b], of the true images."""
    psnr_db: Floats
    labels: float
    """The share of the true labels that was found, each as often as it is there."""


def matched(found: Found, images: Tensor, labels: Ints) -> Match:
    """Found images against the true batch: images [b, c, h, w], labels int64 [b].

    The pairing has the largest sum of SSIM: an update does not tell the order in a batch.
    Raises: FedkdError without scikit-image, or for images whose pixels are not in [0, 1].
    """
    true = pixels(images)
    alike = ssim(true, found.images)
    rows, order = linear_sum_assignment(alike, maximize=True)
    kinds = range(1 + max(int(labels.max()), int(found.labels.max())))
    hits = sum(min((labels == kind).sum(), (found.labels == kind).sum()) for kind in kinds)
    errors = mse(true, found.images)[rows, order]
    return Match(order, alike[rows, order], psnr_db(errors), float(hits / len(labels)))


def _update(model: nn.Module, before: Weights, after: Weights) -> Tensor:
    """The update as a gradient points, float32 [size]: what was taken off the weights."""
    size = sum(weight.numel() for weight in model.parameters())
    if before.shape != (size,) or after.shape != (size,):
        value = f"{before.shape} and {after.shape}"
        raise FedkdError("weights of another model", value=value, allowed=f"({size},)")
    update = torch.from_numpy(before.astype(np.float64) - after).float()
    if not torch.isfinite(update).all() or not update.any():
        raise FedkdError("an update without a direction: nothing was learnt, or no number is left")
    return update


def _split(model: nn.Module, vector: Tensor) -> dict[str, Tensor]:
    """A vector [size] cut into the parameters of the model, by name."""
    named = dict(model.named_parameters())
    parts = torch.split(vector, [weight.numel() for weight in named.values()])
    return {
        name: part.reshape(weight.shape).clone()
        for (name, weight), part in zip(named.items(), parts, strict=True)
    }


def _variation(images: Tensor) -> Tensor:
    """Total variation: the mean step between pixels side by side, and one above the other."""
    return images.diff(dim=3).abs().mean() + images.diff(dim=2).abs().mean()
