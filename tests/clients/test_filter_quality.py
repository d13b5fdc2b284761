"""What is measured of a filter, and the perfect one: against scikit-learn and plain loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from clients import filters
from clients.client import Client, ProxySet
from fedkd.errors import FedkdError
from fedkd.payload import Pool
from fedkd.rng import stream, torch_stream
from scenarios.simulate import simulate
from small_runs import small

CPU = torch.device("cpu")


def of(method: dict[str, Any], **changes: Any) -> tuple[Client, ProxySet, np.ndarray]:
    """A client of two classes, the proxy set that all gave to, and the set's classes."""
    partition = {"name": "pathological", "clients": 10, "classes_per_client": 2}
    scenario = small(method=method, partition=partition, **changes)
    world = scenario.world(1)
    client = Client(scenario=scenario, seed=1, id=3, round=1, world=world, device=CPU)
    if world.public_x is not None:
        x, owners = world.public_x.numpy(), np.full(len(world.public_x), -1, np.int32)
    else:
        given = [world.contribution(i)[0].numpy() for i in range(10)]
        x = np.concatenate(given)
        owners = np.repeat(np.arange(10, dtype=np.int32), [len(one) for one in given])
    truth = world.proxy_truth
    assert truth is not None
    return client, ProxySet.of(Pool(x, owners), CPU), truth[0]


@pytest.mark.parametrize("proxy", [{"name": "contributed"}, {"name": "public", "size": 200}])
@pytest.mark.parametrize("score", ["kmeans", "knn", "energy"])
def test_auroc_is_scikit_learn_s_of_the_others_samples(score: str, proxy: dict[str, Any]) -> None:
    client, pool, labels = of({"name": "edgefd", "score": {"name": score}}, proxy=proxy)
    model = client.model(None)
    filters.filter_pool([client], [model], pool)
    row = client.scenario.method.score
    x, y = client.world.client(3)
    order = stream(1, "client", 0, 3, "heldout").permutation(len(x))
    kept = torch.from_numpy(order[max(1, round(0.1 * len(x))) :])
    look = filters._look(client, model, x)
    draws = torch_stream(1, "client", 1, 3, "score")
    state = row.fit(look[kept], y[kept], draws, None)
    scores = row.score(state, filters._look(client, model, pool.x)).numpy()
    others = pool.contributor != 3
    held = set(y.tolist())
    strange = [label not in held for label in labels[others].tolist()]
    expected = roc_auc_score(strange, scores[others])
    assert client.metrics["filter_auroc"] == pytest.approx(expected)


def test_the_oracle_answers_the_classes_that_the_client_holds_and_no_other() -> None:
    client, pool, labels = of({"name": "edgefd", "gate": {"name": "oracle"}})
    (mask,) = filters.filter_pool([client], [client.model(None)], pool)
    held = set(client.world.client(3)[1].tolist())
    assert mask.tolist() == [label in held for label in labels.tolist()]
    assert 0 < mask.sum() < len(mask)


def test_the_oracle_is_the_best_filter_in_a_run() -> None:
    phase = {"epochs": 5, "batch_size": 32}
    table = {"rounds": 3, "local": phase, "distill": {**phase, "epochs": 10}}
    shared = {
        "proxy": {"name": "public", "size": 200},
        "training": table,
        "partition": {"name": "pathological", "clients": 10, "classes_per_client": 2},
    }
    lines = {}
    for gate in ("oracle", "open"):
        method = {"name": "edgefd", "gate": {"name": gate}}
        (lines[gate],) = simulate(small(method=method, **shared)).table()
    assert lines["oracle"]["precision"] == lines["oracle"]["recall"] == 1
    assert lines["oracle"]["accuracy"] > lines["open"]["accuracy"] + 0.2
    assert lines["oracle"]["filter_auroc"] is None


def test_the_oracle_needs_labels_that_somebody_knows() -> None:
    client, pool, _ = of({"name": "edgefd", "gate": {"name": "oracle"}})
    some = ProxySet(pool.x[1:], pool.contributor[1:], 1)  # one that gave a record did not come
    with pytest.raises(FedkdError, match=r"oracle reads.*true labels, and they are not known"):
        filters.filter_pool([client], [client.model(None)], some)


def test_a_table_has_the_last_auroc_and_the_time_of_all_filters() -> None:
    method = {"name": "edgefd", "score": {"name": "kmeans", "space": "features"}}
    result = simulate(small(method=method))
    (line,) = result.table()
    rounds = result.cells[0].of("round")
    assert line["filter_auroc"] == rounds[-1]["filter_auroc"]
    assert line["filter_s"] == pytest.approx(sum(event["filter_s"] for event in rounds))
    (none,) = simulate(small(method={"name": "fedmd"})).table()
    assert none["filter_auroc"] is None
    assert none["filter_s"] is None
