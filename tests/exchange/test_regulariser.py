"""The second term of the private loss: FedProx by hand, its limits, and what it refuses."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from torch import nn

from fedkd import cohort, training
from fedkd.config_sections import Phase
from fedkd.models.zoo import Classifier, build
from fedkd.rng import stream, torch_stream
from scenario_tables import refusal
from scenarios.simulate import simulate
from small_runs import facts, small

N, D, C = 23, 6, 4


def weights(net: nn.Module) -> np.ndarray:
    head = net.get_submodule("head")
    assert isinstance(head, nn.Linear)
    return torch.cat([head.weight, head.bias[:, None]], dim=1).detach().numpy().copy()


@settings(deadline=None, max_examples=25)
@given(mu=st.floats(0, 10), seed=st.integers(0, 99))
def test_fedprox_is_gradient_descent_on_both_terms(mu: float, seed: int) -> None:
    """Softmax regression in float64, its gradient and the pull's written out."""
    draws = stream(seed, "test")
    x, y = draws.normal(size=(N, D)), draws.integers(C, size=N)
    net = Classifier(nn.Flatten(), D, C).double()
    with torch.no_grad():
        for weight in net.parameters():
            weight.copy_(torch.from_numpy(draws.normal(size=tuple(weight.shape))))
    w = start = weights(net)
    phase = Phase(epochs=4, batch_size=N, optimizer="sgd", learning_rate=0.05)
    ones = np.hstack([x, np.ones((N, 1))])
    losses = []
    for _ in range(4):
        p = softmax(ones @ w.T, axis=1)
        losses.append(-np.log(p[np.arange(N), y]).mean())
        w = w - 0.05 * ((p - np.eye(C)[y]).T @ ones / N + mu * (w - start))
    images = torch.from_numpy(x)[:, None, None]
    found = training.fit(
        net,
        images,
        torch.from_numpy(y),
        training.cross_entropy,
        phase,
        stream(1, "test"),
        pull=mu,
    )
    np.testing.assert_allclose(weights(net), w, rtol=1e-9, atol=1e-9)
    assert found == pytest.approx(np.mean(losses))  # what is reported is the private loss alone


@pytest.mark.parametrize("name", ["mlp", "small-cnn"])
def test_together_is_alone(name: str) -> None:
    sizes = (40, 7, 23)
    models = [build(name, (1, 8, 8), C, torch_stream(1, "model", client=i)) for i in range(3)]
    xs = [torch.rand(n, 1, 8, 8, generator=torch_stream(1, "x", client=n)) for n in sizes]
    ys = [torch.randint(C, (n,), generator=torch_stream(1, "y", client=n)) for n in sizes]
    phase = Phase(epochs=2, batch_size=16, optimizer="sgd", learning_rate=0.1, momentum=0.9)
    alone, free = copy.deepcopy(models), copy.deepcopy(models)
    for i, (x, y) in enumerate(zip(xs, ys, strict=True)):
        for some, pull in ((alone, 3.0), (free, 0.0)):
            draws = stream(1, "test", client=i)
            training.fit(some[i], x, y, training.cross_entropy, phase, draws, pull=pull)
    draws_of = [stream(1, "test", client=i) for i in range(3)]
    cohort.Cohort(models).fit(xs, ys, training.cross_entropy, phase, draws_of, pull=3.0)
    for mine, theirs, other in zip(models, alone, free, strict=True):
        for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
        pairs = zip(mine.parameters(), other.parameters(), strict=True)
        assert max(float((a - b).detach().abs().max()) for a, b in pairs) > 1e-3


def test_without_pull_it_is_fedavg_to_the_bit_and_with_it_is_not() -> None:
    fedavg, zero, some = (
        facts(simulate(small(method=method)))
        for method in (
            {"name": "fedavg"},
            {"name": "fedprox", "regulariser": {"mu": 0}},
            {"name": "fedprox", "regulariser": {"mu": 1.0}},
        )
    )

    def learnt(events: list[dict[str, object]]) -> list[dict[str, object]]:
        return [{k: v for k, v in event.items() if k != "cell"} for event in events]

    assert learnt(zero) == learnt(fedavg)
    assert learnt(some) != learnt(fedavg)


def test_the_stronger_the_pull_the_less_a_client_drifts() -> None:
    model = build("mlp", (1, 8, 8), C, torch_stream(1, "model"))
    x = torch.rand(40, 1, 8, 8, generator=torch_stream(1, "x"))
    y = torch.randint(C, (40,), generator=torch_stream(1, "y"))
    phase = Phase(epochs=5, batch_size=8, optimizer="sgd", learning_rate=0.05)
    drifts = []
    for pull in (0.0, 0.1, 1.0, 10.0):
        moved = copy.deepcopy(model)
        draws = stream(1, "test")
        training.fit(moved, x, y, training.cross_entropy, phase, draws, pull=pull)
        pairs = zip(moved.parameters(), model.parameters(), strict=True)
        drifts.append(sum(float((a - b).detach().square().sum()) for a, b in pairs))
    assert drifts == sorted(drifts, reverse=True)
    assert drifts[-1] < drifts[0] / 10


def test_private_training_has_no_second_term() -> None:
    told = refusal({"method": {"name": "fedprox"}, "privacy": {"training": {"name": "dp-sgd"}}})
    assert "method.regulariser.name = 'proximal' and privacy.training.name = 'dp-sgd'" in told
