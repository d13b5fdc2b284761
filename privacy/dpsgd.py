"""Local learning by DP-SGD: what a model shows of any one record is bounded, whatever it is asked.

The counterpart of `fedkd.training.fit` for private records. `privacy.dpsgd_cost` says what it costs
and how much noise a given epsilon needs. What is made of the model afterwards costs nothing more:
answering any number of proxy samples is post-processing, and so is learning from the consensus
with `fedkd.training.fit`, as long as that touches no private record.
"""

from __future__ import annotations

import math
import secrets
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from opacus.grad_sample import GradSampleHooksFastGradientClipping
from opacus.validators import ModuleValidator
from torch import Tensor, nn

from fedkd.config_sections import Phase
from fedkd.data.dataset import as_input
from fedkd.errors import FedkdError
from fedkd.protection import DpSgd
from fedkd.training import Loss, optimizer
from privacy.dpsgd_cost import schedule

RECORDS_AT_ONCE = 128
"""Of a batch: the sum over parts is the sum of the whole, and memory stays the same however many
records a batch has. (A convolution holds its unfolded input: 0.3 MB a record in the cnn.)"""
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Fitted(NamedTuple):
    """What `fit` did, and what the next call must go on from."""

    loss: float
    """The mean over all records seen, NaN if there was none. From private records without noise:
    the guarantee does not cover it, so it must not leave the client."""
    steps: int
    rate: float
    error: Tensor | None
    """DiceSGD's e [weights]: made of unclipped gradients, so it must never leave the client, nor
    be kept anywhere that does (a checkpoint, a message, the model's state)."""


def fit(
    model: nn.Module,
    x: Tensor,
    targets: Tensor,
    loss: Loss,
    phase: Phase,
    settings: DpSgd,
    draws: np.random.Generator | None,
    noise_generator: torch.Generator | None,
    error: Tensor | None = None,
) -> Fitted:
    """Train `model` in place on private records x [n, c, h, w] and their targets [n, ...].

    Each step takes each record with probability `rate` on its own (Poisson sampling; a step that
    takes none adds noise only), clips each one's gradient, adds noise to the sum, divides it by the
    expected number of records, and hands it to the phase's optimiser as a gradient.

    `loss` must make a record's value from that record's logits and targets alone. `draws` takes
    the records, and `noise_generator` (on the CPU) makes the noise: with both given, a run can be
    repeated bit for bit, by anyone who can guess the seed too. None is a generator that the
    operating system's secure source has seeded: a deployment must pass None for both.
    `error`: e of the call before; without it DiceSGD starts from zero.

    Guarantee: with `error_clip` 0, the model is (epsilon, delta)-DP by `dpsgd_cost.round_event`.
    Unit: a record (one image, one sequence). Neighbours: one record added or removed, while the
    number that `rate` is made from stays. The number of records itself is not protected.
    Not covered: noise in floating point (Mironov 2012), and generators that are not cryptographic.
    With `error_clip` above 0 see `dpsgd_cost.error_feedback_event`.

    A record whose gradient has no finite norm counts for nothing, since no factor could clip it.
    Raises: FedkdError if the model has a layer that mixes records.

    Source: Abadi et al. 2016, arXiv:1607.00133, clipped as by Li et al. 2022, arXiv:2110.05679
    (Opacus' ghost clipping: norms first, then the gradient of the weighted losses). With
    `error_clip`: DiceSGD, Zhang et al. 2024, arXiv:2311.14632, of which the abstract and the
    released code were read: v = mean clip(g, C) + clip(e, C2), e' = e + mean g - v, and noise of
    `noise_std` on the sum. Deviation: the mean divides by the expected batch, not by the one drawn.
    """
    if len(x) == 0:
        return Fitted(math.nan, 0, 0.0, error)
    draws = draws or np.random.default_rng(secrets.randbits(128))
    noise_generator = noise_generator or _seeded(secrets.randbits(64))
    rate, steps = schedule(len(x), phase)
    expected = rate * len(x)
    total, seen = 0.0, 0
    with _per_record(model, settings.clip, tokens=as_input(x[:1]).dtype == torch.int64) as records:
        weights = records.trainable_parameters
        sizes = [weight.numel() for weight in weights]
        step_with = optimizer(weights, phase)
        for _ in range(steps):
            taken = torch.from_numpy(np.flatnonzero(draws.random(len(x)) < rate))
            parts = [
                _sums(model, records, x[ids], targets[ids], loss)
                for ids in torch.split(taken, RECORDS_AT_ONCE)
            ]
            batch = Sums(*(sum(column) for column in zip(*parts, strict=True)))
            learnt = batch.clipped / expected
            if settings.error_clip:
                error = torch.zeros_like(learnt) if error is None else error
                learnt = learnt + error * min(1.0, settings.error_clip / (error.norm().item() or 1))
                error = error + batch.whole / expected - learnt
            total, seen = total + batch.loss, seen + batch.records
            noise = torch.normal(0.0, settings.noise_std, learnt.shape, generator=noise_generator)
            noisy = learnt + noise.to(learnt) / expected
            for weight, gradient in zip(weights, torch.split(noisy, sizes), strict=True):
                weight.grad = gradient.view_as(weight)
            step_with.step()
        step_with.zero_grad()
    return Fitted(total / seen if seen else math.nan, steps, rate, error)


class Sums(NamedTuple):
    """Over some records: of clipped and of whole gradients, flat [weights], and of losses."""

    clipped: Tensor
    whole: Tensor
    loss: float
    records: int


def _sums(
    model: nn.Module,
    records: GradSampleHooksFastGradientClipping,
    x: Tensor,
    targets: Tensor,
    loss: Loss,
) -> Sums:
    weights = records.trainable_parameters
    if len(x) == 0:
        nothing = torch.zeros(sum(w.numel() for w in weights), device=weights[0].device)
        return Sums(nothing, nothing, 0.0, 0)
    records.enable_hooks()
    each = loss(model(as_input(x).contiguous()), targets)
    whole = torch.autograd.grad(each.sum(), weights, retain_graph=True)
    records.disable_hooks()
    finite = records.get_norm_sample().isfinite()
    if not finite.all():
        # Even a factor of zero would leave NaN in the sum.
        return _sums(model, records, x[finite], targets[finite], loss)
    clipped = torch.autograd.grad(each @ records.get_clipping_coef(), weights)
    return Sums(_flat(clipped), _flat(whole), each.sum().item(), len(x))


def _flat(gradients: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients])


@contextmanager
def _per_record(
    model: nn.Module, clip: float, *, tokens: bool
) -> Iterator[GradSampleHooksFastGradientClipping]:
    """Opacus' hooks on a model in training mode; none of it is left behind.

    Of Opacus' ways, CPU ms on one thread for a batch of 64 images of 28x28, and for 512: mlp 1.2
    and 6 by ghost clipping, 7 and 208 by hooks, 29 and 219 by functorch (0.4 and 3 without
    privacy); cnn 31 and 300, 79 and 706, 85 and 568 (14 and 138); small-cnn 19 and 178, 22 and
    366, 28 and 364 (10 and 76). Ghost norms save nothing where a layer is used at each of many
    positions, and Opacus refuses them where that is one call a position, so models of tokens get
    theirs from whole gradients (a gru 159, by hooks 126, without privacy 41).
    """
    model.train()
    wrong = [str(problem) for problem in ModuleValidator.validate(model)]
    wrong += map(str, GradSampleHooksFastGradientClipping.validate(model))
    # Opacus looks at layers with weights or statistics only.
    wrong += [str(layer) for layer in model.modules() if isinstance(layer, BATCH_NORMS)]
    if wrong:
        raise FedkdError(
            "DP-SGD cannot train this model, since a layer of it mixes records or keeps statistics",
            value=" ".join(wrong[0].split()),
            allowed="layers that treat each record alone, such as GroupNorm or LayerNorm",
        )
    # Opacus 1.6 unfolds an image by strides that only contiguous memory has: with channels-last it
    # gets wrong norms without any error, and a record can then exceed the clip.
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    records = GradSampleHooksFastGradientClipping(
        model, loss_reduction="sum", max_grad_norm=clip, use_ghost_clipping=not tokens
    )
    try:
        with warnings.catch_warnings():
            # Of the first layer, whose inputs are data. That is what Opacus' hooks are made for.
            warnings.filterwarnings("ignore", "Full backward hook is firing")
            yield records
    finally:
        records.cleanup()
        for module in model.modules():
            vars(module).pop("activations", None)
            vars(module).pop("max_batch_len", None)
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
