"""Kernel, distance and logit scores against scikit-learn, SciPy and plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from scipy.special import log_softmax, logsumexp, softmax
from scipy.stats import entropy
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KernelDensity, NearestNeighbors
from torch import Tensor

from fedkd.errors import FedkdError
from fedkd.exchange.score import SCORES
from fedkd.exchange.scores import space
from fedkd.exchange.scores.distances import Logistic, Mahalanobis, Neighbours
from fedkd.exchange.scores.kernels import KDE, ULSIF, KuLSIF, bandwidth
from fedkd.exchange.scores.logits import Energy, Entropy, MaxSoftmax
from fedkd.rng import stream, torch_stream

FAR = 100.0
"""Data lie this far from 0, where careless distances lose their digits."""


def draws() -> torch.Generator:
    return torch_stream(1, "test")


def sample(n: int, d: int = 4, shift: float = 0.0, purpose: str = "x") -> Tensor:
    drawn = stream(1, "test", purpose=purpose).normal(size=(n, d)) + shift
    return torch.from_numpy(drawn + FAR)


X, Y = sample(90), torch.arange(90) % 3
PROBES = sample(1500, shift=1.0, purpose="probes")
PUBLIC = sample(400, shift=2.0, purpose="public")


def kernel(a: Tensor | np.ndarray, b: Tensor | np.ndarray, width: float) -> np.ndarray:
    return np.exp(-(cdist(a, b) ** 2) / (2 * width**2))


def test_kde_is_scikit_learn_s_density() -> None:
    row = KDE(bandwidth=0.8)
    got = row.score(row.fit(X, Y, draws()), PROBES)
    model = KernelDensity(bandwidth=0.8).fit(X)
    constant = 2 * math.log(2 * math.pi * 0.8**2)
    np.testing.assert_allclose(got, -model.score_samples(PROBES) - constant, rtol=1e-8)


def test_kde_tells_far_samples_apart_where_the_density_is_zero() -> None:
    row = KDE(bandwidth=0.01)
    state = row.fit(X, Y, draws())
    near, far = row.score(state, torch.stack([X[0] + 50, X[0] + 60])).tolist()
    assert math.exp(-near) == 0
    assert near < far < math.inf


@pytest.mark.parametrize("against", ["uniform", "public"])
def test_kulsif_solves_its_system(against: str) -> None:
    """Kanamori et al. 2012 by an explicit solve, residual below 1e-8, and on the ratio itself."""
    row = KuLSIF(bandwidth=1.5, against=against, auxiliary=60)  # type: ignore[arg-type]
    state = row.fit(X, Y, draws(), PUBLIC)
    points, weights, width = state
    assert width == 1.5
    n, m, penalty = 60, len(X), 60**-0.5
    others, a = points[:n], weights[:n].numpy()
    torch.testing.assert_close(points[n:], X)
    np.testing.assert_allclose(weights[n:], 1 / (m * penalty))
    system = kernel(others, others, 1.5) / n + penalty * np.eye(n)
    right = -kernel(others, X, 1.5).sum(axis=1) / (n * m * penalty)
    assert np.abs(system @ a - right).max() < 1e-8
    np.testing.assert_allclose(a, np.linalg.solve(system, right), rtol=1e-8, atol=1e-12)
    wrong = system @ right  # the released code
    assert np.abs(a - wrong).max() > 0.01
    ratio = kernel(PROBES, others, 1.5) @ a + kernel(PROBES, X, 1.5).sum(axis=1) / (m * penalty)
    np.testing.assert_allclose(row.score(state, PROBES), -ratio, rtol=1e-6, atol=1e-9)


def test_far_from_its_denominator_kulsif_is_a_density() -> None:
    """What the released hyper-parameters make of it."""
    row = KuLSIF(bandwidth=0.8, against="public")
    got = row.score(row.fit(X, Y, draws(), PUBLIC + 1000), PROBES[:50])
    density = kernel(PROBES[:50], X, 0.8).mean(axis=1) * 250**0.5
    np.testing.assert_allclose(got, -density, rtol=1e-9, atol=1e-300)


def test_ulsif_solves_its_system() -> None:
    row = ULSIF(bandwidth=1.5, against="public", basis=20, auxiliary=400)
    state = row.fit(X, Y, draws(), PUBLIC)
    centres, weights, _ = state
    assert len(torch.unique(centres, dim=0)) == 20
    phi = kernel(PUBLIC, centres, 1.5)
    system = phi.T @ phi / 400 + 400**-0.5 * np.eye(20)
    expected = np.maximum(np.linalg.solve(system, kernel(X, centres, 1.5).mean(axis=0)), 0)
    np.testing.assert_allclose(weights, expected, rtol=1e-7, atol=1e-12)
    ratio = kernel(PROBES, centres, 1.5) @ expected
    np.testing.assert_allclose(row.score(state, PROBES), -ratio, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("row", [KuLSIF, ULSIF])
def test_uniform_denominators_fill_the_private_box(row: type[KuLSIF] | type[ULSIF]) -> None:
    chosen = row(auxiliary=2000)
    others = chosen._others(X, draws(), None)
    assert others.shape == (2000, 4)
    low, high = X.amin(dim=0), X.amax(dim=0)
    assert bool(((others >= low) & (others <= high)).all())
    torch.testing.assert_close(others.mean(dim=0), (low + high) / 2, rtol=0, atol=0.2)


def test_a_bandwidth_that_tells_nothing_is_refused() -> None:
    apart = cdist(X, X)[np.triu_indices(90, 1)]
    assert bandwidth(X, None, draws()) == pytest.approx(np.median(apart), rel=0.01)
    assert bandwidth(X[:1].repeat(5, 1), None, draws()) == 1
    assert bandwidth(X[:1], None, draws()) == 1
    assert bandwidth(X, 0.1, draws()) == 0.1
    with pytest.raises(FedkdError, match=r"method\.score\.bandwidth .* got 0\.001; allowed: about"):
        KuLSIF(bandwidth=0.001).fit(X, Y, draws())


@pytest.mark.parametrize("covariance", ["shared", "class"])
def test_mahalanobis_is_scipy_s(covariance: str) -> None:
    row = Mahalanobis(covariance=covariance, shrinkage=0.2)  # type: ignore[arg-type]
    x = X * torch.tensor([1.0, 3.0, 0.5, 2.0]) + Y[:, None]
    got = row.score(row.fit(x, Y, draws()), PROBES)
    means = [x[k == Y].mean(dim=0) for k in range(3)]
    each = [np.cov((x[k == Y]).T, bias=True) for k in range(3)]
    columns = []
    for k in range(3):
        spread = np.mean(each, axis=0) if covariance == "shared" else each[k]
        spread = 0.8 * spread + 0.2 * np.trace(spread) / 4 * np.eye(4)
        inverse = np.linalg.inv(spread)
        columns.append(cdist(PROBES, means[k][None], "mahalanobis", VI=inverse)[:, 0])
    np.testing.assert_allclose(got, np.min(columns, axis=0), rtol=1e-8)


def test_a_class_of_one_sample_has_a_sphere() -> None:
    row = Mahalanobis(covariance="class", shrinkage=0.5)
    state = row.fit(X[:1], Y[:1], draws())
    np.testing.assert_allclose(row.score(state, PROBES), cdist(PROBES, X[:1])[:, 0] * 2**0.5)


@pytest.mark.parametrize("axes", [0, 2])
def test_neighbours_are_scikit_learn_s(axes: int) -> None:
    row = Neighbours(k=3, axes=axes)
    x = X * torch.tensor([1.0, 3.0, 0.5, 2.0])
    got = row.score(row.fit(x, Y, draws()), PROBES)
    seen, probes = x.numpy(), PROBES.numpy()
    if axes:
        view = PCA(axes).fit(seen)
        seen, probes = view.transform(seen), view.transform(probes)
    distances, _ = NearestNeighbors(n_neighbors=3).fit(seen).kneighbors(probes)
    np.testing.assert_allclose(got, distances[:, 2], rtol=1e-6, atol=1e-6)
    few = Neighbours(k=99)
    farthest = cdist(PROBES, X).max(axis=1)
    np.testing.assert_allclose(few.score(few.fit(X, Y, draws()), PROBES), farthest, rtol=1e-6)


def test_logistic_regression_is_at_its_minimum_and_near_the_true_ratio() -> None:
    own, theirs = sample(4000, 2) - FAR, sample(3000, 2, shift=1.0, purpose="public") - FAR
    row = Logistic(penalty=1e-5)
    weights, offset = row.fit(own, own[:, 0], draws(), theirs)
    x = torch.cat([own, theirs])
    scale = torch.linalg.vector_norm(x, dim=1).max()
    w = (weights * scale).requires_grad_()
    b = torch.tensor(offset, dtype=torch.float64, requires_grad=True)
    label = (torch.arange(7000) >= 4000).double()
    odds = x / scale @ w + b
    nats = torch.nn.functional.binary_cross_entropy_with_logits(odds, label)
    slopes = torch.autograd.grad(nats + 1e-5 / 2 * w.square().sum(), [w, b])
    assert max(float(slope.abs().max()) for slope in slopes) < 1e-5
    # Of N(0, 1) against N(1, 1) the log ratio is x1 + x2 - 1, and 3 to 4 is the prior.
    torch.testing.assert_close(weights, torch.ones(2).double(), rtol=0, atol=0.15)
    assert offset == pytest.approx(-1 + math.log(3 / 4), abs=0.15)


@pytest.mark.parametrize("name", ["kulsif", "ulsif", "logistic"])
def test_if_nobody_else_gave_a_sample_there_is_still_a_score(name: str) -> None:
    settings = {} if name == "logistic" else {"against": "public"}
    row: KuLSIF = SCORES[name](**settings)  # type: ignore[assignment]
    assert row.needs_public
    got = row.score(row.fit(X, Y, draws(), X[:0]), PROBES)
    assert got.shape == (1500,)
    assert bool(got.isfinite().all())


def test_logit_scores_are_their_formulas() -> None:
    z = 5 * (sample(200, 6) - FAR)
    p = softmax(z.numpy(), axis=1)
    none = Energy().fit(z, Y, draws())
    hot = Energy(temperature=2).score(none, z)
    np.testing.assert_allclose(hot, -2 * logsumexp(z.numpy() / 2, axis=1))
    np.testing.assert_allclose(MaxSoftmax().score(none, z), 1 - p.max(axis=1), atol=1e-12)
    np.testing.assert_allclose(Entropy().score(none, z), entropy(p, axis=1), atol=1e-12)
    sure = torch.tensor([[50.0, 0.0]])
    assert MaxSoftmax().score(none, sure).item() == pytest.approx(math.exp(-50), rel=1e-6)
    assert np.isfinite(log_softmax(sure)).all()
    text = z.view(20, 10, 6)
    for row in (Energy(), MaxSoftmax(), Entropy()):
        each = row.score(none, z).view(20, 10)
        torch.testing.assert_close(row.score(none, text), each.mean(dim=1))


FITTED = sorted(name for name, cls in SCORES.items() if name not in ("none", "kmeans"))


@pytest.mark.parametrize("name", FITTED)
def test_own_samples_are_more_familiar(name: str) -> None:
    """Fresh samples of the same distribution against samples three away."""
    row: KDE = SCORES[name]()  # type: ignore[assignment]
    own, others = sample(200, purpose="own"), sample(200, shift=3.0, purpose="others")
    if row.space == "logits":  # a sure answer against a vague one
        own, others = 5 * torch.eye(4)[torch.arange(200) % 4], 0.2 * torch.eye(4)[:3].repeat(66, 1)
    state = row.fit(X, Y, draws(), PUBLIC)
    scores = row.score(state, torch.cat([own, others])).numpy()
    assert roc_auc_score(np.arange(len(scores)) >= 200, scores) > 0.95


@pytest.mark.parametrize("name", FITTED)
def test_blocks_dtype_and_the_same_seed_change_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    row: KDE = SCORES[name]()  # type: ignore[assignment]
    x, probes, public = (part.float() for part in (X, PROBES, PUBLIC))
    whole = row.score(row.fit(x, Y, draws(), public), probes)
    assert whole.dtype == torch.float64
    monkeypatch.setattr(space, "BLOCK", 7)
    torch.testing.assert_close(row.score(row.fit(x, Y, draws(), public), probes), whole)


def test_distances_far_from_zero_keep_their_digits() -> None:
    x, points = X + 1e6, X[:9] + 1e6
    got = space.squared(x, points).sqrt()
    np.testing.assert_allclose(got, cdist(x, points), rtol=1e-6, atol=1e-6)
    assert bool((space.squared(x, points) >= 0).all())
