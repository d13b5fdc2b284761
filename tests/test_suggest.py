"""Choosing a student without training: against plain loops, closed forms and a user's budget."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fedkd.errors import FedkdError
from fedkd.models.likeness import cost, likeness, mean_likeness
from fedkd.models.zoo import IMAGE_MODELS, Classifier, build
from fedkd.rng import torch_stream
from scenarios import cli
from scenarios.suggest import suggest
from small_runs import TEXTS, small

HOME = Path(__file__).parents[1] / "scenarios"
SHAPE = (1, 8, 8)
X = torch.rand(9, *SHAPE, generator=torch.Generator().manual_seed(1))


def model(name: str, seed: int) -> Classifier:
    return build(name, SHAPE, 4, torch_stream(seed, "test"))


def test_likeness_is_the_distance_of_cosines_by_a_loop() -> None:
    teacher, student = model("cnn", 1), model("mlp", 2)

    def cosines(rows: np.ndarray) -> np.ndarray:
        found = np.zeros((len(rows), len(rows)))
        for i, a in enumerate(rows):
            for j, b in enumerate(rows):
                found[i, j] = a @ b / np.sqrt((a @ a) * (b @ b))
        return found

    gap = 0.0
    of = []
    for net in (teacher, student):
        features = net.features(X).detach().double().numpy()
        head = net.head.weight.detach().double().numpy()
        of.append((cosines(features), cosines((features @ head.T).T)))
    for a, b in zip(*of, strict=True):
        gap += np.sqrt(((a - b) ** 2).mean())
    assert likeness(teacher, student, X) == pytest.approx(-gap)
    assert likeness(student, teacher, X) == pytest.approx(-gap)


def test_nothing_is_liker_than_the_same_model() -> None:
    net = model("vit", 1)
    assert likeness(net, net, X) == 0
    apart = mean_likeness(lambda seed: model("vit", seed), lambda seed: model("vit", seed), X)
    assert apart < 0


def test_costs_are_the_closed_form() -> None:
    found = cost(model("mlp", 1), X)
    assert found.weights == 65 * 128 + 129 * 4
    assert found.flops == 2 * (64 * 128 + 128 * 4)
    convolved = cost(model("small-cnn", 1), X)
    maps = 64 * 16 * 9 + 16 * 32 * 16 * 9  # of 8x8, then 4x4
    assert convolved.flops == 2 * (maps + 32 * 4 * 64 + 64 * 4)


def test_what_fits_comes_first_and_the_likest_of_it() -> None:
    teacher, found = suggest(small(model={"names": ["mlp", "cnn"]}), weights=20_000)
    assert teacher == "cnn"
    assert {one.name for one in found} == set(IMAGE_MODELS)
    n_fit = sum(one.weights <= 20_000 for one in found)
    assert [one.fits for one in found] == [True] * n_fit + [False] * (len(found) - n_fit)
    alike = [one.likeness for one in found if one.likeness is not None]
    assert len(alike) == n_fit > 2
    assert alike == sorted(alike, reverse=True)
    assert suggest(small(model={"names": ["mlp", "cnn"]}), weights=20_000) == (teacher, found)
    tight = suggest(small(), flops=100_000)[1]
    assert {one.name for one in tight if one.fits} == {
        one.name for one in tight if one.flops <= 100_000
    }


def test_texts_have_models_of_their_own() -> None:
    teacher, found = suggest(small(**TEXTS), "transformer")
    assert teacher == "transformer"
    assert {one.name for one in found} == {"gru", "transformer"}


def test_a_teacher_that_cannot_take_the_data_is_refused() -> None:
    with pytest.raises(FedkdError, match="cannot take images"):
        suggest(small(), "gru")


def test_the_command_says_both_and_refuses_a_budget_that_nothing_fits() -> None:
    path = str(HOME / "edgefd-digits.toml")
    run = CliRunner().invoke(cli.app, ["suggest-model", path, "--weights", "20000", "--json"])
    said = json.loads(run.output)
    fitting = [one for one in said["models"] if one["fits"]]
    assert said["teacher"] == "mlp"
    assert said["likest"] == fitting[0]["name"]
    assert said["largest"] == max(fitting, key=lambda one: one["weights"])["name"]
    shown = CliRunner().invoke(cli.app, ["suggest-model", path, "--weights", "20000"])
    assert f"{said['likest']} is the likest and {said['largest']} the largest" in shown.output
    none = CliRunner().invoke(cli.app, ["suggest-model", path, "--mflops", "0.001"])
    assert none.exit_code != 0
    assert isinstance(none.exception, FedkdError)
    assert "no model of the zoo is that small" in str(none.exception)
