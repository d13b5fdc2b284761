"""Students learn what they are said to learn: against `training.fit`, by hand, one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fedkd.config_sections import Phase
from fedkd.errors import FedkdError
from fedkd.exchange.distill import KL
from fedkd.models.zoo import Classifier, build
from fedkd.rng import stream, torch_stream
from fedkd.training import fit, predict
from privacy.audit.signals import Doubles, phi
from privacy.audit.students import Build, Students, clone, distilled, logit_l1, theft

C, L, N = 5, 6, 50
PHASE = Phase(epochs=3, batch_size=8, learning_rate=0.01)


def case(name: str, *, holes: bool = True) -> tuple[Build, Tensor, Doubles]:
    """An architecture, a proxy set, and answers of which some are missing."""
    draws = stream(1, "test")
    text = name == "gru"
    shape = (1, 1, L) if text else (1, 8, 8)
    x = torch.from_numpy(draws.integers(0, C if text else 256, size=(N, *shape)))
    x = x.to(torch.int16 if text else torch.uint8)
    answers = draws.dirichlet(np.ones(C), size=(N, L) if text else N)
    if holes:
        answers[draws.random(answers.shape[:-1]) < 0.2] = np.nan
        answers[:5] = np.nan

    def new(generator: torch.Generator) -> Classifier:
        return build(name, shape, C, generator, x.dtype)

    return new, x, answers


def taught(
    name: str, *, n: int = 3, client: int = 4, seed: int = 1, share: float = 0.8
) -> Students:
    new, x, answers = case(name)
    return distilled(new, x, answers, KL().loss, PHASE, n=n, seed=seed, client=client, share=share)


@pytest.mark.parametrize("name", ["mlp", "small-cnn", "gru"])
def test_each_student_is_one_that_learns_alone(name: str) -> None:
    """Stacked or not, with positions missing or not; within 1e-4: rounding, grown over 15 steps."""
    new, x, answers = case(name)
    students = taught(name)
    known = torch.from_numpy(~np.isnan(answers[..., 0]))
    for i, model in enumerate(students.models):
        alone = new(torch_stream(1, "student", client=4, purpose=f"weights-{i}"))
        ids = torch.from_numpy(np.flatnonzero(students.taught[i]))
        fit(
            alone,
            x[ids],
            torch.from_numpy(answers).float().nan_to_num(nan=0.5)[ids],
            KL().loss,
            PHASE,
            stream(1, "student", client=4, purpose=f"batches-{i}"),
            weight=known[ids].float(),
        )
        for a, b in zip(model.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["mlp", "gru"])
def test_parts_are_drawn_from_what_was_answered(name: str) -> None:
    _, _, answers = case(name)
    answered = ~np.isnan(answers).reshape(N, -1).all(axis=1)
    found = taught(name, n=8, share=0.8).taught
    assert not found[:, ~answered].any()
    assert (found.sum(axis=1) == round(0.8 * answered.sum())).all()
    assert len({row.tobytes() for row in found}) == 8
    assert found[:, answered].any(axis=0).all()


def test_members_are_the_taught_records_and_never_strangers() -> None:
    students = taught("mlp")
    records = np.array([10, -1, 0, 49, 20])
    expected = [[r >= 0 and bool(row[r]) for r in records] for row in students.taught]
    assert students.members(records).tolist() == expected
    alone = Students(students.models, np.ones((3, N), dtype=np.bool_))
    assert alone.members(np.array([-1, 3])).tolist() == [[False, True]] * 3


def test_signals_are_phi_of_each_student() -> None:
    x = case("gru")[1]
    y = stream(2, "test").integers(-1, C, size=(N, L))
    y[y < 0] = -100
    students = taught("gru")
    got = students.signals(x, y)
    assert got.shape == (3, N, L)
    assert np.array_equal(np.isnan(got[0]), y < 0)
    np.testing.assert_array_equal(got[1], phi(predict(students.models[1], x).numpy(), y))


def test_the_address_decides_and_nothing_else() -> None:
    first = taught("mlp")
    torch.manual_seed(99)
    again, longer = taught("mlp"), taught("mlp", n=5)
    for a, b in zip(first.models, again.models, strict=True):
        assert all(torch.equal(v, w) for v, w in zip(a.parameters(), b.parameters(), strict=True))
    np.testing.assert_array_equal(first.taught, longer.taught[:3])
    for other in (taught("mlp", client=5), taught("mlp", seed=2)):
        assert not np.array_equal(first.taught, other.taught)


def test_logits_are_learnt_by_l1() -> None:
    """The loss is the mean over classes, and a student comes near logits that it can reach."""
    logits, wanted = torch.tensor([[1.0, -2.0], [0.0, 0.0]]), torch.tensor([[0.0, 2.0], [1.0, 1.0]])
    assert logit_l1(logits, wanted).tolist() == [2.5, 1.0]
    new, x, _ = case("mlp", holes=False)
    teacher = new(torch_stream(7, "teacher"))
    answers = predict(teacher, x).numpy()
    phase = Phase(epochs=200, batch_size=16, learning_rate=0.01)
    copy = clone(new, x, answers, logit_l1, phase, seed=1, client=0)
    left = np.abs(predict(copy, x).numpy() - answers).mean()
    assert left < 0.25 * np.abs(answers - answers.mean()).mean()


def test_theft_of_texts_counts_positions_with_a_label() -> None:
    new, x, _ = case("gru")
    one, other = new(torch_stream(1, "a")), new(torch_stream(2, "b"))
    y = stream(3, "test").integers(0, C, size=(N, L))
    y[stream(4, "test").random((N, L)) < 0.5] = -100
    named = [predict(model, x).argmax(dim=2).numpy() for model in (one, other)]
    there = y >= 0
    got = theft(one, other, x, torch.from_numpy(y))
    assert got.agreement == pytest.approx((named[0] == named[1])[there].mean())
    assert got.accuracy == pytest.approx((named[0] == y)[there].mean())
    assert got.accuracy_of_client == pytest.approx((named[1] == y)[there].mean())


def test_nothing_to_learn_and_no_share_are_refused() -> None:
    new, x, answers = case("mlp")
    with pytest.raises(FedkdError, match="answered nothing"):
        distilled(new, x, answers * math.nan, KL().loss, PHASE, n=2, seed=1, client=0)
    for share in (0.0, 1.1, math.nan):
        with pytest.raises(FedkdError, match="share of a student"):
            taught("mlp", share=share)
