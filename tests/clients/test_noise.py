"""The noise is there: a client that forgets it is caught."""

from __future__ import annotations

import pytest
import torch

from clients import guard
from fedkd import protection
from fedkd.rng import torch_stream
from privacy import mechanisms
from protected_runs import (
    OPEN,
    PUBLIC,
    TWO,
    client_of,
    proxy_of,
)
from small_runs import small


def noisy(name: str) -> None:
    """The answers of a round differ from those of the same run without the release's protection.

    Raises: AssertionError if they are the same.
    """
    release = {
        "name": name,
        **({"degree": "density", "t_max": 1.0, "noise": "laplace"} if name == "swing" else {}),
    }
    logits = torch.randn(30, 10, generator=torch_stream(1, "z"))
    scenario = small(**OPEN, **PUBLIC, privacy={"release": {**release, "bound": 100.0}})
    client = client_of(scenario)
    values, _ = guard.told(client, proxy_of(client), torch.arange(0, 60, 2), logits)
    assert not torch.allclose(values, torch.softmax(logits, 1), atol=1e-3)


@pytest.mark.parametrize("name", ["gaussian", "laplace", "swing"])
def test_a_guard_that_forgets_the_noise_is_caught(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    noisy(name)
    monkeypatch.setattr(mechanisms.Gaussian, "add", lambda self, values, generator: values)
    monkeypatch.setattr(mechanisms.Laplace, "add", lambda self, values, generator: values)
    with pytest.raises(AssertionError):
        noisy(name)


def trained_with_noise() -> None:
    """Where nothing can be learnt (clip 1e-9), all that moves the weights is noise.

    Raises: AssertionError if they did not move.
    """
    training = {"name": "dp-sgd", "clip": 1e-9, "noise_multiplier": 1e9}
    local = {"batch_size": 512, "optimizer": "sgd", "learning_rate": 0.1}
    scenario = small(**TWO, privacy={"training": training}, training={"local": local})
    client = client_of(scenario)
    model, before = client.model(None), client.model(None)
    x, y = client.world.client(0)
    guard.learn(client, model, x, y)
    pairs = zip(model.parameters(), before.parameters(), strict=True)
    assert all(not torch.allclose(a, b, atol=1e-6) for a, b in pairs)


def test_training_that_forgets_the_noise_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    trained_with_noise()
    monkeypatch.setattr(protection.DpSgd, "noise_std", 0.0)
    with pytest.raises(AssertionError):
        trained_with_noise()
