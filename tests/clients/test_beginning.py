"""What new clients learn before their first round: labels of a public proxy set, private data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clients import steps
from clients.client import Client, ProxySet
from fedkd import training
from fedkd.config_sections import Phase
from fedkd.errors import FedkdError, PayloadError
from fedkd.payload import Pool
from fedkd.rng import stream
from scenarios.simulate import simulate
from small_runs import TEXTS, facts, small, stopped_and_resumed

CPU = torch.device("cpu")
PUBLIC = {"name": "public", "size": 300}
LABELS = {"epochs": 5.0, "batch_size": 32}


def begins(**changes: Any) -> dict[str, Any]:
    return {"rounds": 2, "distill": {"epochs": 1}, **changes}


def test_a_warm_up_is_so_many_passes_over_the_private_records() -> None:
    """Against the same passes by hand: weights to the bit, and from the weights that all begin
    with."""
    local = {"optimizer": "sgd", "learning_rate": 0.05, "batch_size": 16}
    scenario = small(training={"warmup": 1.5, "local": local})
    world = scenario.world(1)
    client = Client(scenario=scenario, seed=1, id=2, round=1, world=world, device=CPU)
    begun, model = client.model(None), client.model(None)
    steps.begin([client], [begun], None)
    x, y = world.client(2)
    step = torch.optim.SGD(model.parameters(), lr=0.05)
    draws = stream(1, "client", 1, 2, "warmup")
    per_pass = -(-len(x) // 16)
    left = round(1.5 * per_pass)
    for _ in range(2):
        order = torch.from_numpy(draws.permutation(len(x)))
        for batch in order.split(16)[:left]:
            loss = torch.nn.functional.cross_entropy(model(training.inputs(x)[batch]), y[batch])
            step.zero_grad()
            loss.backward()
            step.step()
            left -= 1
    assert left == 0
    for ours, theirs in zip(begun.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    assert client.metrics["warmup_samples"] >= 1.4 * len(x)


def test_public_labels_are_learnt_by_whoever_is_new_and_once() -> None:
    table = begins(pretrain=LABELS, warmup=1.0)
    result = simulate(small(proxy=PUBLIC, method={"name": "fedmd"}, training=table))
    (cell,) = result.cells
    for line in cell.of("client"):
        new = line["round"] == 1
        assert ("pretrain_samples" in line) == ("warmup_samples" in line) == new
        assert line.get("pretrain_samples", 1500) == 1500
    without = simulate(small(proxy=PUBLIC, method={"name": "fedmd"}, training=begins()))
    first, plain = (found.cells[0].of("round")[0] for found in (result, without))
    assert first["accuracy"] > plain["accuracy"] + 0.1
    assert first["bytes_pool"] > plain["bytes_pool"] + 3 * 300 * 4 - 200  # the labels travelled


def test_who_comes_first_in_a_later_round_begins_there() -> None:
    table = begins(rounds=6, participation=0.34, warmup=1.0)
    (cell,) = simulate(small(method={"name": "edgefd"}, training=table)).cells
    seen: set[int] = set()
    for line in cell.of("client"):
        assert ("warmup_samples" in line) == (line["client"] not in seen)
        seen.add(line["client"])
    assert len(seen) > 1


def test_a_resumed_run_does_not_begin_again(tmp_path: Path) -> None:
    scenario = small(proxy=PUBLIC, training=begins(pretrain=LABELS, warmup=0.5))
    whole = simulate(scenario)
    assert facts(stopped_and_resumed(scenario, tmp_path / "run", 2)) == facts(whole)


@pytest.mark.parametrize("labels", [None, np.full(6, 10, np.int32)], ids=["none", "no class"])
def test_a_pool_without_labels_of_known_classes_is_refused(labels: Any) -> None:
    scenario = small(proxy=PUBLIC, training=begins(pretrain=LABELS))
    world = scenario.world(1)
    client = Client(scenario=scenario, seed=1, id=0, round=1, world=world, device=CPU)
    pool = Pool(np.zeros((6, 1, 8, 8), np.uint8), np.full(6, -1, np.int32), labels)
    with pytest.raises(PayloadError, match="without labels"):
        steps.begin([client], [client.model(None)], ProxySet.of(pool, CPU))


def test_texts_begin_with_the_tokens_that_follow() -> None:
    """A label for each position; the truth of a padding is unknown, and not learnt."""
    scenario = small(**TEXTS, training=begins(rounds=1, pretrain={"epochs": 1.0}))
    world = scenario.world(1)
    assert world.public_y is not None
    labels = world.public_y.numpy().astype(np.int32)
    assert world.public_x is not None
    pool = Pool(world.public_x.numpy(), np.full(20, -1, np.int32), labels)
    client = Client(scenario=scenario, seed=1, id=0, round=1, world=world, device=CPU)
    model = client.model(None)
    proxy = ProxySet.of(pool, CPU)
    before = training.grades(model, proxy.x, world.public_y).nats.sum()
    steps.begin([client], [model], proxy)
    assert training.grades(model, proxy.x, world.public_y).nats.sum() < before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"training": begins(warmup=1.0), "privacy": {"training": {"name": "dp-sgd"}}},
            "passes before them.*training.warmup = 0",
        ),
        ({"training": begins(pretrain=LABELS)}, "only a public proxy set.*contributed"),
        (
            {
                "training": begins(pretrain=LABELS),
                "proxy": PUBLIC,
                "method": {"name": "local-only"},
            },
            "only a public proxy set.*local-only",
        ),
    ],
)
def test_what_cannot_come_before_a_run_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(FedkdError, match=words):
        small(**changes)


def test_a_reference_row_without_a_proxy_set_begins_with_private_data_alone() -> None:
    scenario = small(proxy=PUBLIC, training=begins(pretrain=LABELS, warmup=2.0))
    assert scenario.row("local-only").training.pretrain is None
    assert scenario.row("local-only").training.warmup == 2.0
    assert scenario.row("no-filter").training.pretrain == Phase(epochs=5.0, batch_size=32)
