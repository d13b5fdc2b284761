"""Label inference: closed forms, another solver, planted worlds, and clients really trained."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.spatial.distance import chebyshev, cityblock
from scipy.stats import entropy, multivariate_normal

from fedkd.config_sections import Phase
from fedkd.data.partition import Dirichlet
from fedkd.data.sources import Digits, load
from fedkd.errors import FedkdError
from fedkd.models.zoo import build
from fedkd.rng import stream, torch_stream
from fedkd.training import cross_entropy, fit, predict
from privacy.audit.label_inference import (
    ESTIMATES,
    FLOOR,
    RIDGE,
    infer,
    nulls,
    scores,
)
from privacy.audit.uploads import Answer

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
EVERY = pytest.mark.parametrize("name", ESTIMATES)


def answer(rows: Floats, ids: Floats | None = None) -> Answer:
    known = np.arange(len(rows)) if ids is None else ids
    return known.astype(np.int32), rows.astype(np.float32)


def confusion(rng: np.random.Generator, n: int) -> Floats:
    """[n, n], column i what the client says, on average, of class i."""
    return rng.dirichlet(np.full(n, 0.5), n).T


def kept(m: Floats) -> Floats:
    """The eigenvector of 1."""
    values, vectors = np.linalg.eig(m)
    vector = np.abs(vectors[:, np.argmin(np.abs(values - 1))].real)
    return np.asarray(vector / vector.sum())


# --- scores ---


@given(st.integers(2, 8), st.integers(0, 999))
def test_scores_are_scipys(n: int, seed: int) -> None:
    rng = stream(seed, "test")
    p, q = rng.dirichlet(np.ones(n)), rng.dirichlet(np.ones(n)) + 2 * FLOOR
    q = q / q.sum()
    expected = entropy(p, q), cityblock(p, q) / 2, chebyshev(p, q), cityblock(p, q) / n
    np.testing.assert_allclose(astuple(scores(p, q)), expected, rtol=1e-9, atol=1e-12)


def test_a_class_that_was_ruled_out_costs_what_the_floor_says() -> None:
    found = scores(np.array([0.5, 0.5]), np.array([1.0, 0.0]))
    assert found.kl_nats == pytest.approx(0.5 * np.log(0.5) + 0.5 * np.log(0.5 / FLOOR), rel=1e-4)
    assert scores(np.array([1.0, 0.0]), np.array([1.0, 0.0])).kl_nats < 2 * FLOOR


def test_nulls_are_guesses_without_an_attack() -> None:
    p, everyone = np.array([0.7, 0.3, 0]), np.array([0.5, 0.25, 0.25])
    found = nulls(p, everyone)
    assert found["uniform"].total_variation == pytest.approx(0.7 - 1 / 3)
    assert found["population"] == scores(p, everyone)


# --- estimates ---


def test_the_mean_weighs_rounds_alike() -> None:
    rounds = [answer(np.array([[0.8, 0.2], [0.6, 0.4]])), answer(np.array([[0.1, 0.9]]))]
    np.testing.assert_allclose(infer("mean", rounds, 2), [0.4, 0.6], atol=1e-7)


def test_the_likeliest_classes_are_counted() -> None:
    rounds = [answer(np.array([[0.5, 0.3, 0.2], [0.1, 0.7, 0.2]])), answer(np.eye(3)[[1, 1]])]
    np.testing.assert_allclose(infer("most-likely", rounds, 3), [0.25, 0.75, 0])


def test_noise_that_averages_to_nothing_moves_the_mean_by_its_own_error_only() -> None:
    rng = stream(1, "test")
    rows = np.tile([0.9, 0.1, 0.0, 0.0], (40_000, 1)) + rng.normal(0, 1, (40_000, 4))
    assert np.abs(infer("mean", [answer(rows)], 4) - [0.9, 0.1, 0, 0]).max() < 5 / 200


@given(st.integers(0, 999), st.lists(st.integers(1, 5), min_size=3, max_size=3))
def test_balanced_does_not_mind_a_proxy_set_of_other_proportions(
    seed: int, copies: list[int]
) -> None:
    m = confusion(stream(seed, "test"), 3)
    labels = np.repeat(np.arange(3), copies)
    even, skewed = answer(m.T), answer(m.T[labels])
    found = infer("balanced", [skewed], 3, labels)
    np.testing.assert_allclose(found, infer("mean", [even], 3), atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.integers(2, 6), st.integers(1, 3))
def test_calibrated_is_the_minimum_that_another_solver_finds(
    seed: int, n: int, n_rounds: int
) -> None:
    ms = [confusion(stream(seed, "test", r), n) for r in range(n_rounds)]
    rounds = [answer(m.T) for m in ms]
    even = np.mean(ms, axis=0).mean(axis=1)

    def cost(p: Floats) -> float:
        fits = np.mean([np.sum((m @ p - p) ** 2) for m in ms])
        return float(fits + RIDGE**2 * np.sum((p - even) ** 2))

    found = infer("calibrated", rounds, n, np.arange(n))
    best = minimize(
        cost,
        np.full(n, 1 / n),
        method="SLSQP",
        bounds=[(0, 1)] * n,
        constraints={"type": "eq", "fun": lambda p: p.sum() - 1},
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert found.sum() == pytest.approx(1)
    assert found.min() >= 0
    assert cost(found) <= best.fun + 1e-6


def test_calibrated_finds_what_the_confusion_leaves_as_it_is() -> None:
    rng = stream(3, "test")
    errors, straight = [], []
    for _ in range(20):
        # Classes that hardly look alike, as those of a classifier.
        m = 0.7 * np.eye(5) + 0.3 * confusion(rng, 5)
        truth, labels = kept(m), rng.integers(5, size=200)
        rounds = [answer(m.T[labels])]
        errors.append(scores(truth, infer("calibrated", rounds, 5, labels)).total_variation)
        # What Black Box Shift Estimation would do: it finds the proxy set, not the client.
        solved = np.linalg.solve(m, infer("mean", rounds, 5))
        np.testing.assert_allclose(solved, np.bincount(labels, minlength=5) / 200, atol=1e-5)
        straight.append(scores(truth, solved).total_variation)
    assert np.mean(errors) < 0.1
    assert np.mean(errors) < np.mean(straight) / 2


def test_the_fixed_point_is_that_of_a_bayes_classifier() -> None:
    """Classes that share symbols: the client's posterior under its prior, exactly."""
    rng = stream(4, "test")
    prior = np.array([0.6, 0.3, 0.1, 0.0])
    given_class = rng.dirichlet(np.full(12, 0.3), 4)  # [class, symbol]
    posterior = prior[:, None] * given_class
    posterior /= posterior.sum(axis=0)
    m = posterior @ given_class.T
    np.testing.assert_allclose(m @ prior, prior)
    # Half of the proxy set is of class 3, which the client has none of.
    labels = np.repeat(np.arange(4), [1000, 1000, 1000, 3000])
    symbols = np.concatenate([rng.choice(12, 1, p=given_class[i]) for i in labels])
    rounds = [answer(posterior.T[symbols])]
    error = {
        name: scores(prior, infer(name, rounds, 4, labels)).total_variation for name in ESTIMATES
    }
    assert error["calibrated"] < 0.1  # the pull's price
    assert error["stationary"] < error["calibrated"]
    assert error["calibrated"] < min(error["balanced"], error["mean"]) / 2


@given(st.integers(0, 999), st.integers(2, 6), st.integers(1, 3))
def test_stationary_is_the_eigenvector_of_the_mean_confusion(seed: int, n: int, n_r: int) -> None:
    ms = [0.9 * confusion(stream(seed, "test", r), n) + 0.1 / n for r in range(n_r)]
    labels = np.repeat(np.arange(n), stream(seed, "test").integers(1, 5, n))
    found = infer("stationary", [answer(m.T[labels]) for m in ms], n, labels)
    np.testing.assert_allclose(found, kept(np.mean(ms, axis=0)), atol=1e-4)


def test_where_classes_are_never_confused_stationary_is_balanced() -> None:
    labels = np.array([0, 0, 0, 1, 2])
    guess = infer("stationary", [answer(np.eye(3)[labels])], 3, labels)
    np.testing.assert_allclose(guess, np.full(3, 1 / 3))


def test_the_stationary_walk_stays_among_classes_that_were_answered() -> None:
    labels = np.array([0, 1, 2])
    masked = answer(np.array([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1]]), np.arange(2))
    # Once the third is left out: from 0 to 1 with 1 / 9, from 1 to 0 with 1 / 3.
    guess = infer("stationary", [masked], 3, labels)
    np.testing.assert_allclose(guess, [0.75, 0.25, 0], atol=1e-5)


@pytest.mark.parametrize("prior", [[0.7, 0.2, 0.1, 0.0], [0.25] * 4, [0.05, 0.0, 0.0, 0.95]])
def test_stationary_reads_a_bayes_classifier_of_gaussian_classes(prior: list[float]) -> None:
    """Its posterior by the densities themselves; the proxy set has proportions of its own."""
    held, rng = np.array(prior), stream(5, "test")
    centres = np.array([[0.0, 0.0], [1.5, 0.0], [0.0, 1.5], [1.5, 1.5]])
    labels = np.repeat(np.arange(4), [8000, 3000, 5000, 4000])
    x = centres[labels] + rng.normal(size=(len(labels), 2))
    density = np.stack([multivariate_normal(centre).pdf(x) for centre in centres], axis=1)
    joint = density * held
    rounds = [answer(joint / joint.sum(axis=1, keepdims=True))]
    error = {
        name: scores(held, infer(name, rounds, 4, labels)).total_variation for name in ESTIMATES
    }
    assert error["stationary"] < 0.03, error
    if max(prior) > 0.25:
        others = min(error["balanced"], error["mean"], error["calibrated"])
        assert error["stationary"] < others / 2, error


def test_a_class_without_answers_is_not_held() -> None:
    labels = np.array([0, 0, 1, 2])
    masked = answer(np.array([[0.9, 0.1, 0], [0.7, 0.3, 0], [0.2, 0.8, 0]]), np.arange(3))
    assert infer("calibrated", [masked], 3, labels)[2] == 0
    assert infer("most-likely", [masked], 3).tolist() == pytest.approx([2 / 3, 1 / 3, 0])
    later = answer(np.array([[0.2, 0.2, 0.6]]), np.array([3]))
    assert infer("calibrated", [masked, later], 3, labels)[2] > 0


@EVERY
def test_uniform_uploads_tell_nothing(name: str) -> None:
    truth = np.array([0.9, 0.1, 0, 0])
    labels = stream(1, "test").integers(4, size=100)
    guess = infer(name, [answer(np.full((100, 4), 0.25))], 4, labels)
    if name == "most-likely":  # of four that tie, the first: a constant whatever the client holds
        assert guess.tolist() == [1, 0, 0, 0]
    else:
        null = nulls(truth, truth)["uniform"]
        np.testing.assert_allclose(astuple(scores(truth, guess)), astuple(null))


@EVERY
def test_without_answers_the_guess_is_uniform(name: str) -> None:
    nothing = np.empty(0, np.int32), np.empty((0, 4), np.float32)
    for rounds in ([], [nothing]):
        assert infer(name, rounds, 4, np.zeros(9, np.int64)).tolist() == [0.25] * 4


@pytest.mark.parametrize("name", [name for name in ESTIMATES if ESTIMATES[name].needs_labels])
def test_labels_are_asked_for(name: str) -> None:
    with pytest.raises(FedkdError, match="needs the labels of the proxy set"):
        infer(name, [answer(np.eye(3))], 3)


def test_clients_that_were_really_trained_are_read_nearly_exactly() -> None:
    """Digits, Dirichlet(0.1), eight rounds of plain uploads, no filter: the issue's own case."""
    data = load(Digits())
    train, proxy = data.train, data.test
    labels = proxy.y.numpy()
    everyone = np.bincount(train.y, minlength=10) / len(train)
    errors: dict[str, list[float]] = {name: [] for name in (*ESTIMATES, "uniform", "population")}
    for client, mine in enumerate(Dirichlet(clients=10, alpha=0.1).split(train.y.numpy(), None, 2)):
        x, y = train.rows(mine)
        net = build("small-cnn", (1, 8, 8), 10, torch_stream(2, "test", client=client))
        phase = Phase(epochs=5, batch_size=16, learning_rate=1e-3)
        rounds = []
        for r in range(8):
            fit(net, x, y, cross_entropy, phase, stream(2, "test", r, client))
            rounds.append(answer(torch.softmax(predict(net, proxy.x), dim=1).double().numpy()))
        truth = np.bincount(y, minlength=10) / len(y)
        for name in ESTIMATES:
            found = scores(truth, infer(name, rounds, 10, labels))
            errors[name].append(found.total_variation)
        for name, null in nulls(truth, everyone).items():
            errors[name].append(null.total_variation)
    found = {name: float(np.mean(values)) for name, values in errors.items()}
    assert found["calibrated"] < 0.1, found  # a tenth of the records is laid to a wrong class
    assert found["calibrated"] < found["mean"] / 2, found
    assert found["stationary"] < found["mean"] / 2, found
    assert found["mean"] < found["uniform"] / 2, found
    assert found["mean"] < found["population"] / 2, found
