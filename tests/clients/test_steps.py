"""What a client does in a round, on texts: positions, records and grades, against plain loops."""

from __future__ import annotations

import math
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from clients import filters, steps
from clients.client import Client, ProxySet, with_model
from fedkd import config, training
from fedkd.config import Scenario
from fedkd.data.dataset import NO_LABEL, Dataset
from fedkd.data.federation import Federation
from fedkd.errors import FedkdError
from fedkd.exchange.consensus import Consensus
from fedkd.exchange.score import SCORES
from fedkd.models.zoo import Classifier
from fedkd.payload import Pool
from fedkd.rng import stream

V, L, TOPICS = 7, 5, 3
CPU = torch.device("cpu")


def scenario(**changes: Any) -> Scenario:
    training = {"distill": {"optimizer": "sgd", "learning_rate": 0.5, "batch_size": 100}}
    table: dict[str, Any] = {
        "model": {"names": ["gru"]},
        "method": {"name": "no-filter"},
        "training": training,
    }
    return config.parse({**table, **changes})


def texts(n: int, purpose: str) -> Dataset:
    """Random tokens, some of whose next tokens are missing; topics 0, 1, 2, 0, …"""
    draws = stream(1, "text", purpose=purpose)
    tokens = torch.from_numpy(draws.integers(V, size=(n, L + 1)))
    y = tokens[:, 1:].clone()
    y[torch.from_numpy(draws.random((n, L)) < 0.3)] = NO_LABEL
    x = tokens[:, :L].to(torch.int16).view(n, 1, 1, L)
    return Dataset(x, y, V, topics=np.arange(n) % TOPICS, n_topics=TOPICS)


def world() -> Federation:
    """Client i holds 10 + 5i records, mostly of topic i; six more are for validation."""
    train = texts(60, "train")
    ids = np.arange(60)
    private = [np.sort(np.r_[ids[train.strata == i][:10], ids[60 - 5 * i :]]) for i in range(3)]
    return Federation(
        train=train,
        test=texts(300, "test"),
        validation_ids=ids[30:36],
        private=private,
        contributed=[ids[:0]] * 3,
        public_x=texts(12, "pool").x,
        public_y=None,
        public_strata=None,
        canaries=(),
        tokens=None,
        seed=1,
    )


def clients(of: Scenario) -> tuple[list[Client], list[Classifier]]:
    federation = world()
    found = [
        Client(scenario=of, seed=1, id=i, round=1, world=federation, device=CPU) for i in range(3)
    ]
    return found, [client.model(None) for client in found]


def proxy() -> ProxySet:
    pool = texts(12, "pool").x.numpy()
    return ProxySet.of(Pool(pool, np.full(12, -1, np.int32)), CPU)


def masks() -> list[Tensor]:
    """All, some and none of the records."""
    some = torch.tensor([i in (0, 3, 4, 11) for i in range(12)])
    return [torch.ones(12, dtype=torch.bool), some, torch.zeros(12, dtype=torch.bool)]


@pytest.fixture(params=[1, 4], ids=["alone", "together"])
def grid(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"name": "cohort", "block": request.param}


def test_every_position_of_an_answered_record_is_answered(grid: dict[str, Any]) -> None:
    all_clients, models = clients(scenario(grid=grid))
    tokens = texts(12, "pool").x.long()
    asked: dict[int, list[int]] = {}

    def release(client: int, rows: Tensor, logits: Tensor) -> Tensor:
        asked[client] = rows.tolist()
        return torch.softmax(logits, dim=1)

    answers = steps.answer(all_clients, models, proxy(), masks(), release)
    assert asked == {0: list(range(12)), 1: [0, 3, 4, 11]}
    for (ids, values), model, mask in zip(answers, models, masks(), strict=True):
        wanted = [
            (record * L + place, torch.softmax(model(tokens[record : record + 1])[0, place], 0))
            for record in range(12)
            if mask[record]
            for place in range(L)
        ]
        assert ids.tolist() == [position for position, _ in wanted]
        assert values.shape == (len(wanted), V)
        assert ids.dtype == np.int32
        assert values.dtype == np.float32
        for got, (_, expected) in zip(values, wanted, strict=True):
            np.testing.assert_allclose(got, expected.detach(), atol=1e-6)


def test_of_images_every_record_is_one_position() -> None:
    images = torch.randint(256, (9, 1, 4, 4), dtype=torch.uint8)
    found = ProxySet.of(Pool(images.numpy(), np.zeros(9, np.int32)), CPU)
    assert found.n_samples == 9
    assert torch.equal(found.x, images.float() / 255)
    assert proxy().n_samples == 12 * L


@pytest.mark.parametrize("raw", [True, False])
def test_a_consensus_of_logits_is_learnt_as_the_objective_asks(raw: bool) -> None:
    """MSE on logits learns the logits themselves; on probabilities, their softmax."""
    distill = {"name": "mse", "space": "logits" if raw else "probabilities", "temperature": 2}
    release = {"name": "logits", "temperature": 2}
    method = {"name": "no-filter", "release": release, "distill": distill}
    (client, *_), (model, *_) = clients(scenario(method=method))
    values = torch.from_numpy(stream(1, "v").normal(size=(12 * L, V))).float()
    logits = model(texts(12, "pool").x.long()).detach().flatten(0, 1)
    gap = logits - values if raw else 2 * ((logits / 2).softmax(1) - (values / 2).softmax(1))
    consensus = Consensus(np.arange(12 * L, dtype=np.int32), values.numpy())
    steps.learn_consensus([client], [model], proxy(), consensus)
    assert client.metrics["distill_loss"] == pytest.approx(float((gap**2).mean()), rel=1e-4)


def test_a_consensus_teaches_its_positions_only(grid: dict[str, Any]) -> None:
    """One step of SGD: mean over records of the mean over their positions in the consensus."""
    all_clients, models = clients(scenario(grid=grid))
    _, twins = clients(scenario(grid=grid))
    ids = np.array([1, 2, 3, 20, 44, 47, 59], dtype=np.int32)
    values = torch.softmax(torch.from_numpy(stream(1, "v").normal(size=(7, V))), 1).float()
    steps.learn_consensus(all_clients, models, proxy(), Consensus(ids, values.numpy()))
    tokens = texts(12, "pool").x.long()
    for client, model, twin in zip(all_clients, models, twins, strict=True):
        log_p = twin(tokens).log_softmax(-1)
        by_record: dict[int, list[Tensor]] = {}
        for position, target in zip(ids.tolist(), values, strict=True):
            record, place = divmod(position, L)
            kl = (target * (target.log() - log_p[record, place])).sum()
            by_record.setdefault(record, []).append(kl)
        of_record = [torch.stack(parts).mean() for parts in by_record.values()]
        loss = torch.stack(of_record).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        assert client.metrics["distill_loss"] == pytest.approx(loss.item(), rel=1e-4)
        assert client.metrics["distill_samples"] == len(by_record) == 5
        for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            assert theirs.grad is not None
            torch.testing.assert_close(mine, theirs - 0.5 * theirs.grad, rtol=1e-4, atol=1e-6)


def test_a_measured_text_is_graded_by_position(grid: dict[str, Any]) -> None:
    all_clients, models = clients(scenario(grid=grid))
    steps.measure(all_clients, models)
    federation = all_clients[0].world
    test, validation = federation.test, federation.train.rows(federation.validation_ids)
    for client, model in zip(all_clients, models, strict=True):
        log_p = model(test.x.long()).log_softmax(-1).double().detach()
        nats, hits = [], [[] for _ in range(TOPICS)]  # type: ignore[var-annotated]
        for record in range(len(test)):
            for place in range(L):
                label = int(test.y[record, place])
                if label != NO_LABEL:
                    nats.append(-float(log_p[record, place, label]))
                    hits[record % TOPICS].append(int(log_p[record, place].argmax()) == label)
        said = client.metrics
        assert said["perplexity"] == pytest.approx(math.exp(np.mean(nats)), rel=1e-5)
        assert said["accuracy"] == pytest.approx(
            np.mean([hit for of_topic in hits for hit in of_topic])
        )
        mine = federation.private[client.id]
        held = np.bincount(federation.train.strata[mine], minlength=TOPICS)
        own = sum(held[t] * np.mean(hits[t]) for t in range(TOPICS)) / held.sum()
        assert said["own_accuracy"] == pytest.approx(own)
        x, y = validation
        right = model(x.long()).argmax(-1)[y != NO_LABEL] == y[y != NO_LABEL]
        assert said["validation_accuracy"] == pytest.approx(right.double().mean().item())


def test_texts_are_learnt_together_as_alone() -> None:
    alone, models = clients(scenario())
    together, others = clients(scenario(grid={"name": "cohort", "block": 3}))
    steps.learn_private(alone, models)
    steps.learn_private(together, others)
    for one, other, mine, theirs in zip(alone, together, models, others, strict=True):
        assert other.metrics["train_loss"] == pytest.approx(one.metrics["train_loss"], rel=1e-4)
        assert other.metrics["train_samples"] == one.metrics["train_samples"]
        for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


def test_texts_are_compared_by_features_and_never_by_tokens() -> None:
    def method(space: str) -> dict[str, Any]:
        return {"name": "edgefd", "score": {"space": space}, "gate": {"name": "quantile", "q": 0.5}}

    all_clients, models = clients(scenario(method=method("features")))
    found = filters.filter_pool(all_clients, models, proxy())
    assert [mask.shape for mask in found] == [(12,)] * 3
    assert all(0 < int(mask.sum()) < 12 for mask in found)
    all_clients, models = clients(scenario(method=method("pixels")))
    with pytest.raises(FedkdError, match="tokens"):
        filters.filter_pool(all_clients, models, proxy())


@pytest.mark.parametrize("name", [name for name in SCORES if name not in ("none", "kmeans")])
def test_every_score_is_fitted_on_what_it_asks_for(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Features or logits of held-in texts, and of the others' proxy samples alone."""
    row = SCORES[name]
    score: dict[str, Any] = {"name": name}
    if "logits" not in get_args(row.model_fields["space"].annotation):
        score |= {"space": "features"}
    if "against" in row.model_fields:
        score |= {"against": "public"}
    method = {"name": "edgefd", "score": score, "gate": {"name": "budget", "m": 4}}
    (client, *_), (model, *_) = clients(scenario(method=method))
    pool = ProxySet.of(Pool(texts(12, "pool").x.numpy(), np.arange(12, dtype=np.int32) % 3), CPU)
    asked: list[Tensor | None] = []
    fit = row.fit  # type: ignore[attr-defined]

    def noted(self: Any, x: Tensor, y: Tensor, draws: Any, public: Tensor | None = None) -> Any:
        assert len(x) == len(y) == client.n_records - 1
        asked.append(public)
        return fit(self, x, y, draws, public)

    monkeypatch.setattr(row, "fit", noted)
    (mask,) = filters.filter_pool([client], [model], pool)
    assert bool(mask[::3].all())
    assert int(mask.sum()) == 4 + 4
    (public,) = asked
    seen = training.features(model, pool.x).mean(dim=1)
    if name in ("kulsif", "ulsif", "logistic"):
        assert public is not None
        torch.testing.assert_close(public, seen[torch.arange(12) % 3 != client.id])
    else:
        assert public is None


@pytest.mark.parametrize(("gate", "answers"), [("open", 12), ("own", 4)])
def test_a_gate_that_reads_no_score_fits_none(gate: str, answers: int) -> None:
    """It would fail here: k-means on tokens is refused."""
    all_clients, models = clients(scenario(method={"name": "edgefd", "gate": {"name": gate}}))
    mine = np.repeat(np.arange(3, dtype=np.int32), 4)
    pool = ProxySet.of(Pool(texts(12, "pool").x.numpy(), mine), CPU)
    for client, mask in zip(
        all_clients, filters.filter_pool(all_clients, models, pool), strict=True
    ):
        assert int(mask.sum()) == answers
        assert mask[torch.from_numpy(mine == client.id)].all()
        assert "threshold" not in client.metrics


def test_a_block_s_time_is_shared_equally() -> None:
    all_clients, models = clients(scenario(grid={"name": "cohort", "block": 2}))
    steps.learn_private(all_clients, models)
    first, second, third = (client.metrics["train_s"] for client in reversed(all_clients))
    assert first == second != third  # the two with most records are one block
    assert min(first, third) > 0


@pytest.mark.parametrize("name", ["mlp", "small-cnn"])
def test_a_model_has_a_copy_of_its_state(name: str) -> None:
    """A repeated message finds the state as it was; files keep no memory layout, models do."""
    of = config.parse({"model": {"names": [name]}, "partition": {"name": "iid", "clients": 3}})
    client = Client(scenario=of, seed=1, id=0, round=1, world=of.world(1), device=CPU)
    first = client.model(None)
    state = {key: value.contiguous() for key, value in with_model({}, first).items()}
    before = {key: value.clone() for key, value in state.items()}
    again = client.model(state)
    for (key, one), other in zip(first.state_dict().items(), again.parameters(), strict=True):
        assert torch.equal(one, other), key
        assert one.stride() == other.stride()
        assert other.requires_grad
    steps.learn_private([client], [again])
    assert all(torch.equal(state[key], before[key]) for key in state)
    assert not torch.equal(again.head.weight, first.head.weight)
