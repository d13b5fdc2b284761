"""DP-SGD against a loop over records, Opacus' own optimiser, and records that try to break it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from scipy.stats import chi2, kstest
from torch import Tensor, nn

from fedkd import training
from fedkd.config_sections import Phase
from fedkd.data.sources import Digits
from fedkd.errors import FedkdError
from fedkd.models.zoo import Classifier, build
from fedkd.protection import DpSgd
from fedkd.rng import stream, torch_stream
from fedkd.training import Loss, cross_entropy, grades
from privacy.dpsgd import RECORDS_AT_ONCE, Fitted, fit
from privacy.dpsgd_cost import noise_multiplier

SHAPE, C, L = (1, 8, 8), 5, 6
N = RECORDS_AT_ONCE + 6
QUIET = DpSgd(clip=1.0, noise_multiplier=0)
PLAIN_SGD: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 1.0, "momentum": 0.0}
EVERYONE = Phase(batch_size=1000, **PLAIN_SGD)
"""One step a pass, which takes every record: the update is minus the mean of clipped gradients."""


class Words(nn.Module):
    """A body of every layer that text models have, one of them used at each position."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(C, 7)
        self.recurrent = nn.Linear(7, 7)
        self.norm = nn.LayerNorm(7)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(len(x), 7)
        states = []
        for step in self.embedding(x.flatten(1)).unbind(1):
            state = torch.tanh(step + self.recurrent(state))
            states.append(state)
        return self.norm(torch.stack(states, dim=1))  # type: ignore[no-any-return]


def record_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """[b]: the mean over the positions that have a target."""
    each = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none", ignore_index=-100)
    return each.sum(dim=1) / (targets != -100).sum(dim=1).clamp_min(1)


NAMES = ["mlp", "cnn", "small-cnn", "words"]


def net_of(name: str) -> Classifier:
    if name != "words":
        return build(name, SHAPE, C, torch_stream(1, name))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return Classifier(Words(), 7, C)


def problem(name: str, n: int = N) -> tuple[Tensor, Tensor, Loss]:
    generator = torch_stream(2, "problem")
    if name == "words":
        x = torch.randint(C, (n, 1, 1, L), generator=generator)
        y = torch.randint(C, (n, L), generator=generator)
        y[torch.rand(n, L, generator=generator) < 0.3] = -100
        y[:3] = -100  # records without any target
        return x, y, record_loss
    x = torch.randn(n, *SHAPE, generator=generator)
    return x, torch.randint(C, (n,), generator=generator), cross_entropy


def flat(net: nn.Module) -> Tensor:
    return torch.cat([weight.detach().flatten() for weight in net.parameters()])


def gradients(net: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> list[Tensor]:
    """[weights] of each record, found one at a time."""
    found = []
    for i in range(len(x)):
        value = loss(net(x[i : i + 1]), y[i : i + 1]).sum()
        parts = torch.autograd.grad(value, list(net.parameters()))
        found.append(torch.cat([part.flatten() for part in parts]))
    return found


def clipped(gradient: Tensor, most: float) -> Tensor:
    norm = gradient.norm().item()
    return gradient if norm <= most else gradient * (most / norm)


def update(net: nn.Module, x: Tensor, y: Tensor, loss: Loss, how: DpSgd, **more: Any) -> Tensor:
    """Minus what one step of learning rate 1 over all records adds to the weights, flat."""
    before = flat(net)
    fit(net, x, y, loss, EVERYONE, how, stream(3, "draws"), torch_stream(3, "noise"), **more)
    return before - flat(net)


@pytest.mark.parametrize("share_clipped", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", NAMES)
def test_a_step_is_the_mean_of_gradients_clipped_one_by_one(
    name: str, share_clipped: float
) -> None:
    """In channels-last memory too, where Opacus by itself gets the norms of convolutions wrong."""
    net, (x, y, loss) = net_of(name), problem(name)
    whole = gradients(net, x, y, loss)
    norms = torch.stack(whole).norm(dim=1)
    clip = {0.0: 2 * norms.max(), 0.5: norms.median(), 1.0: norms.max() / 100}[share_clipped].item()
    expected = torch.stack([clipped(g, clip) for g in whole]).mean(0)
    got = update(net, x, y, loss, DpSgd(clip=clip, noise_multiplier=0))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=2e-6 * float(expected.norm() + 1))


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("phase", [Phase(optimizer="adam"), Phase(optimizer="sgd", momentum=0.9)])
def test_steps_are_those_of_opacus_own_optimiser(phase: Phase) -> None:
    phase = phase.model_copy(update={"batch_size": N, "epochs": 4, "learning_rate": 0.01})
    net, theirs = net_of("mlp"), net_of("mlp")
    x, y, loss = problem("mlp")
    fit(net, x, y, loss, phase, QUIET, stream(3, "draws"), torch_stream(3, "noise"))
    wrapped = GradSampleModule(theirs, loss_reduction="sum")
    steps = DPOptimizer(
        training.optimizer(list(theirs.parameters()), phase),
        noise_multiplier=0.0,
        max_grad_norm=1.0,
        expected_batch_size=N,
    )
    for _ in range(4):
        steps.zero_grad()
        loss(wrapped._module(x), y).sum().backward()  # type: ignore[no-untyped-call, operator]
        steps.step()
    torch.testing.assert_close(flat(net), flat(theirs), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3, 1e12, 1e30, math.inf, math.nan])
@pytest.mark.parametrize("name", ["mlp", "cnn", "small-cnn"])
def test_one_more_record_moves_the_sum_by_the_clip_at_most(name: str, scale: float) -> None:
    x, y, loss = problem(name, 9)
    x[-1] *= scale
    y[-1] = (net_of(name)(x[-1:]).argmin() if math.isfinite(scale) else torch.tensor(0)).item()
    clip = 0.3
    how = DpSgd(clip=clip, noise_multiplier=0)
    with_it = 9 * update(net_of(name), x, y, loss, how)
    without = 8 * update(net_of(name), x[:-1], y[:-1], loss, how)
    moved = (with_it - without).norm().item()
    assert moved <= clip * 1.001
    if scale == 1e3:
        assert moved >= clip * 0.99  # the attack uses all that it is given


@given(st.integers(1, 40), st.floats(0.01, 30), st.integers(0, 2**32))
@settings(deadline=None, max_examples=25)
def test_no_removal_moves_the_sum_by_more_than_the_clip(n: int, clip: float, seed: int) -> None:
    draws = torch_stream(seed, "records")
    x = torch.randn(n + 1, *SHAPE, generator=draws) * 10 ** float(torch.rand(1, generator=draws))
    y = torch.randint(C, (n + 1,), generator=draws)
    how = DpSgd(clip=clip, noise_multiplier=0)
    all_of_them = (n + 1) * update(net_of("mlp"), x, y, cross_entropy, how)
    fewer = n * update(net_of("mlp"), x[:n], y[:n], cross_entropy, how)
    assert (all_of_them - fewer).norm() <= clip * 1.001 + 1e-4 * n


def silent(logits: Tensor, targets: Tensor) -> Tensor:
    return 0 * logits.sum(dim=-1)


@pytest.mark.parametrize("error_clip", [0.0, 1.5])
@pytest.mark.parametrize("batch_size", [1, 5, 10])
def test_the_noise_on_a_sum_is_gaussian_with_the_stated_deviation(
    batch_size: int, error_clip: float
) -> None:
    """Records without a gradient, so what is learnt is noise: of every step, the empty ones too."""
    net = net_of("mlp")
    before = flat(net)
    phase = Phase(epochs=3, batch_size=batch_size, **PLAIN_SGD)
    how = DpSgd(clip=0.5, noise_multiplier=3.0, error_clip=error_clip)
    x, y, _ = problem("mlp", 10)
    done = fit(net, x, y, silent, phase, how, stream(4, "draws"), torch_stream(4, "noise"))
    sums = (flat(net) - before).double().numpy() * batch_size
    std = 3.0 * math.sqrt(0.5**2 + 2 * 0.5 * error_clip) * math.sqrt(done.steps)
    assert done.steps == 30 / batch_size
    assert len(sums) > 8_000
    assert kstest(sums / std, "norm").pvalue > 1e-3


def test_noise_and_clipping_leave_something_to_learn() -> None:
    """Digits, epsilon 8 at delta 1e-5 for each record; and with far too much noise, nothing."""
    data = Digits().load()
    phase = Phase(epochs=12, batch_size=128, optimizer="sgd", learning_rate=0.5, momentum=0.9)
    train = data.train
    enough = noise_multiplier(
        len(train.x), phase, rounds=1, participation=1.0, epsilon=8.0, delta=1e-5
    )
    accuracy = {}
    for noise in (enough, 300.0):
        net = build("mlp", SHAPE, 10, torch_stream(1, "learns"))
        how = DpSgd(clip=1.0, noise_multiplier=noise)
        draws, generator = stream(5, "draws"), torch_stream(5, "noise")
        fit(net, train.x, train.y, cross_entropy, phase, how, draws, generator)
        accuracy[noise] = float(grades(net, data.test.x, data.test.y).hits.double().mean())
    assert accuracy[enough] > 0.75
    assert accuracy[300.0] < 0.5


def test_each_record_is_taken_by_itself_at_the_stated_rate() -> None:
    n, size = 60, 20
    taken: list[Tensor] = []

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        taken.append(targets)
        return silent(logits, targets)

    net = Classifier(nn.Flatten(), 1, 2)
    phase = Phase(epochs=300, batch_size=size, optimizer="sgd")
    x = torch.zeros(n, 1, 1, 1)
    done = fit(net, x, torch.arange(n), loss, phase, QUIET, stream(6, "draws"), torch_stream(6, ""))
    assert (done.steps, done.rate) == (900, pytest.approx(1 / 3))
    assert all(len(ids.unique()) == len(ids) for ids in taken)
    variance = done.steps * done.rate * (1 - done.rate)
    counts = torch.bincount(torch.cat(taken), minlength=n).double()
    of_records = (((counts - done.steps * done.rate) ** 2).sum() / variance).item()
    assert chi2.ppf(1e-4, n) < of_records < chi2.ppf(1 - 1e-4, n)
    sizes = torch.tensor([len(ids) for ids in taken]).double()
    of_sizes = ((sizes - size) ** 2).sum().item() / (n * done.rate * (1 - done.rate))
    assert chi2.ppf(1e-4, done.steps) < of_sizes < chi2.ppf(1 - 1e-4, done.steps)


def test_a_batch_of_nobody_is_a_step_all_the_same() -> None:
    calls = []

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        calls.append(len(targets))
        return cross_entropy(logits, targets)

    x, y, _ = problem("mlp", 4)
    phase = Phase(epochs=5, batch_size=1, **PLAIN_SGD)
    net = net_of("mlp")
    done = fit(net, x, y, loss, phase, QUIET, stream(7, "draws"), torch_stream(7, "noise"))
    assert done.steps == 20 > len(calls) > 0
    assert flat(net).isfinite().all()


@pytest.mark.parametrize("name", ["mlp", "words"])
def test_records_without_a_gradient_teach_nothing(name: str) -> None:
    net, (x, y, loss) = net_of(name), problem(name, 3)
    assert torch.equal(update(net, x, y, loss if name == "words" else silent, QUIET), 0 * flat(net))


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_the_mean_over_the_records_seen(name: str) -> None:
    net, (x, y, loss) = net_of(name), problem(name)
    expected = loss(net(x), y).mean().item()
    done = fit(net, x, y, loss, EVERYONE, QUIET, stream(3, "draws"), torch_stream(3, "noise"))
    assert done.loss == pytest.approx(expected, rel=1e-5)


def test_pixels_are_their_255th_parts() -> None:
    pixels = torch.randint(256, (N, *SHAPE), generator=torch_stream(1, "x")).to(torch.uint8)
    _, y, loss = problem("mlp")
    one, other = (update(net_of("mlp"), x, y, loss, QUIET) for x in (pixels, pixels / 255))
    assert torch.equal(one, other)


def test_nothing_to_learn_changes_nothing() -> None:
    net, (x, y, loss) = net_of("mlp"), problem("mlp")
    before = flat(net)
    done = fit(net, x[:0], y[:0], loss, EVERYONE, DpSgd(), stream(1, ""), torch_stream(1, ""))
    assert math.isnan(done.loss)
    assert done[1:] == (0, 0.0, None)
    assert torch.equal(flat(net), before)


def run(
    name: str, draws: np.random.Generator | None, noise: torch.Generator | None
) -> tuple[Tensor, Fitted]:
    net, (x, y, loss) = net_of(name), problem(name)
    how = DpSgd(error_clip=0.1)
    done = fit(net, x, y, loss, Phase(batch_size=20, epochs=0.5), how, draws, noise)
    return flat(net), done


@pytest.mark.parametrize("name", NAMES)
def test_equal_generators_give_equal_bits_and_others_do_not(name: str) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index] # noqa: NPY002
    one, done = run(name, stream(1, "draws"), torch_stream(1, "noise"))
    same, again = run(name, stream(1, "draws"), torch_stream(1, "noise"))
    assert torch.equal(one, same)
    assert done[:3] == again[:3]
    assert done.error is not None
    assert again.error is not None
    assert torch.equal(done.error, again.error)
    assert not torch.equal(one, run(name, stream(2, "draws"), torch_stream(1, "noise"))[0])
    assert not torch.equal(one, run(name, stream(1, "draws"), torch_stream(2, "noise"))[0])
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()  # type: ignore[index] # noqa: NPY002


def test_the_operating_system_seeds_what_is_not_given() -> None:
    noise = [run("mlp", stream(1, "draws"), None)[0] for _ in range(2)]
    assert not torch.equal(*noise)
    losses = {run("mlp", None, torch_stream(1, "noise"))[1].loss for _ in range(4)}
    assert len(losses) > 1


def traces(net: nn.Module) -> list[object]:
    """Whatever a model, its layers and weights carry, besides the weights' values."""
    hooks = [
        {key: len(value) for key, value in vars(module).items() if key.endswith("_hooks")}
        for module in net.modules()
    ]
    names = [sorted(vars(module)) for module in net.modules()]
    return [hooks, names, [vars(p) for p in net.parameters()], list(net.state_dict())]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_a_plain_one_afterwards(name: str, fails: bool) -> None:
    net, (x, y, loss) = net_of(name), problem(name)
    clean, formats = traces(net), [p.stride() for p in net.parameters()]

    def breaks(logits: Tensor, targets: Tensor) -> Tensor:
        raise ZeroDivisionError

    if fails:
        with pytest.raises(ZeroDivisionError):
            update(net, x, y, breaks, QUIET)
    else:
        update(net, x, y, loss, QUIET)
    assert traces(net) == clean
    assert all(weight.grad is None for weight in net.parameters())
    assert [weight.stride() for weight in net.parameters()] == formats
    fresh = net_of(name)
    fresh.load_state_dict(net.state_dict())
    for one in (net, fresh):  # plain training takes the loss of a position, and knows records
        training.fit(one, x, y, cross_entropy, Phase(batch_size=20), stream(8, "draws"))
    assert torch.equal(flat(net), flat(fresh))


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm2d(1),
        nn.BatchNorm2d(1, affine=False),
        nn.BatchNorm2d(1, affine=False, track_running_stats=False),
        nn.InstanceNorm2d(1, affine=True, track_running_stats=True),
    ],
)
def test_a_layer_that_mixes_records_or_counts_is_refused(layer: nn.Module) -> None:
    net = Classifier(nn.Sequential(layer, nn.Flatten()), 64, C)
    x, y, loss = problem("mlp")
    clean, before = traces(net), flat(net)
    with pytest.raises(FedkdError, match=r"DP-SGD cannot train this model.*GroupNorm"):
        update(net, x, y, loss, QUIET)
    assert traces(net) == clean
    assert torch.equal(flat(net), before)


@pytest.mark.parametrize("name", ["mlp", "words"])
def test_error_feedback_is_its_formulas_by_hand(name: str) -> None:
    """Two calls of two steps, the error carried from one to the other."""
    how = DpSgd(clip=0.2, noise_multiplier=0, error_clip=0.15)
    phase = EVERYONE.model_copy(update={"epochs": 2})
    net, by_hand = net_of(name), net_of(name)
    x, y, loss = problem(name, 12)
    error, fed_back = torch.zeros_like(flat(net)), []
    for _ in range(4):
        g = torch.stack(gradients(by_hand, x, y, loss))
        v = torch.stack([clipped(one, 0.2) for one in g]).mean(0) + clipped(error, 0.15)
        fed_back.append(clipped(error, 0.15).norm().item() < error.norm().item())
        error = error + g.mean(0) - v
        with torch.no_grad():
            sizes = [weight.numel() for weight in by_hand.parameters()]
            parts = torch.split(v, sizes)
            for weight, part in zip(by_hand.parameters(), parts, strict=True):
                weight -= part.view_as(weight)
    state = None
    for seed in (1, 2):
        draws, noise = stream(seed, "draws"), torch_stream(seed, "noise")
        state = fit(net, x, y, loss, phase, how, draws, noise, state).error
    assert state is not None
    assert any(fed_back)
    torch.testing.assert_close(flat(net), flat(by_hand), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state, error, rtol=1e-4, atol=1e-5)


def test_fed_back_errors_of_neighbours_differ_by_no_more_than_is_accounted() -> None:
    """The bound of `error_feedback_event` on a sum, from the worst pair of error states."""
    x, y, loss = problem("mlp", 8)
    how = DpSgd(clip=0.3, noise_multiplier=0, error_clip=0.2)
    worst = torch.full_like(flat(net_of("mlp")), 1e3)
    x[-1] *= 1e3
    sums = []
    for n, error in ((8, worst), (7, -worst)):
        sums.append(n * update(net_of("mlp"), x[:n], y[:n], loss, how, error=error))
    bound = how.clip + 2 * how.error_clip * 8
    assert 0.8 * bound < (sums[0] - sums[1]).norm().item() <= bound
