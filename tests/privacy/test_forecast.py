"""A forecast is the ledger that the run then writes: real runs on digits, entry by entry."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fedkd import config
from fedkd.config import Scenario
from privacy.asked import CLIENT, RECORD
from privacy.forecast import exact, planned
from privacy.parts import parts
from privacy.totals import totals
from scenarios.budget import forecast, prospects
from scenarios.simulate import simulate
from small_runs import small

OPEN = {"name": "edgefd", "gate": {"name": "open"}}
PUBLIC = {"name": "public", "size": 60}
DP_SGD = {"name": "dp-sgd", "noise_multiplier": 1.3}
SWING = {"name": "swing", "degree": "density"}


def of(privacy: dict[str, Any], **sections: Any) -> Scenario:
    """Three clients, two rounds, who answer all of a public proxy set unless it is said."""
    return small(privacy=privacy, **{"proxy": PUBLIC, "method": OPEN, **sections})


def trained(**settings: Any) -> Scenario:
    return of({"training": {**DP_SGD, **settings}})


def released(name: str, **settings: Any) -> Scenario:
    return of({"release": {"name": name, **settings}})


KNOWN: dict[str, Scenario] = {
    "nothing": of({}),
    "dp-sgd": trained(),
    "dp-sgd calibrated": trained(epsilon=3.0),
    "noisy sum": of({"server": {"name": "secure-aggregation", "sigma": 20.0}}),
    "sum of private models": of(
        {"training": DP_SGD, "server": {"name": "secure-aggregation", "sigma": 20.0}}
    ),
    "sum without noise": of({"server": {"name": "secure-aggregation"}}),
    "noise for some": released(**SWING, noise="gaussian", noise_from=0.5),
    "swing of a private model": of(
        {"training": DP_SGD, "release": {**SWING, "noise": "laplace", "scale": 8.0}}
    ),
    "error feedback": trained(error_clip=0.5),
    "no noise": trained(noise_multiplier=0),
    "nfdp": of({"training": {"name": "nfdp"}}),
    "gaussian": released("gaussian"),
    "laplace": released("laplace"),
    "sampled-label": released("sampled-label", bound=0.01),
    "randomised-response": released("randomised-response", epsilon=0.1),
    "top-1": released("top-1"),
    "swing": released(**SWING, noise="gaussian", scale=2.0),
    "swing laplace": released(**SWING, noise="laplace", scale=8.0),
    "swing without noise": released(**SWING),
    "both": of({"training": DP_SGD, "release": {"name": "gaussian"}}),
    "both, one empirical": of({"training": DP_SGD, "release": {"name": "top-1"}}),
    "contributed": of({"training": DP_SGD}, proxy={"name": "contributed"}),
    "own answers": of(
        {"release": {"name": "laplace"}},
        proxy={"name": "contributed"},
        method={"name": "edgefd", "gate": {"name": "own"}},
    ),
    "own answers, of a public set": of(
        {"release": {"name": "laplace"}}, method={"name": "edgefd", "gate": {"name": "own"}}
    ),
    "sample weights": of({}, method={"name": "edgefd", "gate": {"name": "soft", "by": "spread"}}),
    "sample weights of features": of({}, method={"name": "fedaux"}),
    "weights": of({"training": DP_SGD}, method={"name": "fedavg"}),
    "alone": of({"training": DP_SGD}, method={"name": "local-only"}),
    "budget of records": of({"training": DP_SGD, "budget": 2.9}),
    "budget of clients": of(
        {"release": {"name": "sampled-label", "bound": 0.05}, "budget": 5.0, "unit": "client"}
    ),
    "budget that bears nothing": of({"training": DP_SGD, "budget": 0.1}),
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_plan_is_the_ledger(name: str) -> None:
    scenario = KNOWN[name]
    assert exact(scenario)
    result = simulate(scenario)
    (cell,) = result.cells
    plans = [planned(scenario, prospect) for prospect in prospects(scenario, 1)]
    for plan in plans:
        theirs = {entry for entry in cell.ledgers.get(plan.client, ()) if entry.rows}
        assert {entry for entry in plan.entries if entry.rows} == theirs
    spent = {one.total.spent.protects: one for one in result.spent[cell.row]}
    for outlook in forecast(scenario).outlooks:
        if not spent:
            assert outlook.total.epsilon == 0
            continue
        told = spent[outlook.total.spent.protects]
        assert outlook.total.epsilon == pytest.approx(told.total.epsilon, rel=1e-9)
        assert outlook.client == told.client
    abstained = [event["n_abstained"] for event in cell.of("round")]
    assert [sum(r in plan.silent for plan in plans) for r in (1, 2)] == abstained
    assert (sum(abstained) > 0) == name.startswith("budget")


FILTERED = {"name": "edgefd"}
BOUNDED: dict[str, Scenario] = {
    "plain filter": of({"training": DP_SGD}, method=FILTERED),
    "dp-kmeans": of({"training": DP_SGD, "filter": {"name": "dp-kmeans"}}, method=FILTERED),
    "dp-kmeans, contributed": of(
        {"training": DP_SGD, "filter": {"name": "dp-kmeans"}},
        method=FILTERED,
        proxy={"name": "contributed"},
    ),
    "noisy sum of filtered answers": of(
        {
            "training": DP_SGD,
            "filter": {"name": "dp-kmeans"},
            "server": {"name": "secure-aggregation", "sigma": 20.0},
        },
        method=FILTERED,
    ),
    "dp-kernel and laplace": of(
        {
            "training": DP_SGD,
            "filter": {"name": "dp-kernel", "axes": 5},
            "release": {"name": "laplace"},
        },
        method=FILTERED,
    ),
    "dp-class-means that bear no more than one round": of(
        {"training": DP_SGD, "filter": {"name": "dp-class-means"}, "budget": 3.4}, method=FILTERED
    ),
}


@pytest.mark.parametrize("name", BOUNDED)
def test_a_plan_of_filtered_answers_bounds_the_ledger(name: str) -> None:
    scenario = BOUNDED[name]
    assert not exact(scenario)
    (cell,) = simulate(scenario).cells
    for prospect in prospects(scenario, 1):
        plan = planned(scenario, prospect).entries
        ledger = cell.ledgers[prospect.client]
        for ours, theirs in zip(totals(plan, 1e-5), totals(ledger, 1e-5), strict=True):
            assert ours.spent.protects == theirs.spent.protects
            assert theirs.epsilon <= ours.epsilon
            assert theirs.in_the_clear == ours.in_the_clear
            if ours.spent.protects == RECORD and scenario.privacy.filter.name != "plain":
                # Answers are made of what filter and training have paid for: known to the digit.
                assert 0 < theirs.epsilon < math.inf
                assert theirs.epsilon == pytest.approx(ours.epsilon, rel=1e-9)


def test_who_is_drawn_for_no_more_than_the_paid_rounds_pays_no_more() -> None:
    scenario = of(
        {"training": DP_SGD},
        partition={"name": "dirichlet", "clients": 6, "alpha": 5.0},
        training={"rounds": 4, "participation": 0.5, "distill": {"epochs": 0.1}},
    )
    assert not exact(scenario)
    (cell,) = simulate(scenario).cells
    drawn = [e["client"] for e in cell.of("client")]
    for prospect in prospects(scenario, 1):
        (record,) = [
            t
            for t in totals(planned(scenario, prospect).entries, 1e-5)
            if t.spent.protects == RECORD
        ]
        rounds = drawn.count(prospect.client)
        assert rounds <= 4
        entries = cell.ledgers.get(prospect.client, ())
        (spent,) = [t for t in totals(entries, 1e-5) if t.spent.protects == RECORD]
        assert spent.epsilon <= record.epsilon
        assert (spent.epsilon < record.epsilon) == (rounds < 4)  # 4 of 4 are paid for at a half


def test_public_degrees_of_text_are_charged_one_by_one() -> None:
    """Swing's temperatures by pattern: the forecast reads the proxy set as the clients do."""
    scenario = config.parse(
        {
            "name": "text",
            "data": {"name": "pydoc", "length": 16},
            "partition": {"name": "iid", "clients": 2},
            "proxy": {"name": "public", "size": 12},
            "model": {"names": ["gru"]},
            "method": OPEN,
            "training": {"rounds": 1, "local": {"epochs": 0.01}, "distill": {"epochs": 0.1}},
            "privacy": {"release": {**SWING, "degree": "rarity", "noise": "gaussian"}},
        }
    )
    degrees = prospects(scenario, 1)[0].degrees
    assert degrees is not None
    assert len(degrees) == 12 * 16
    assert len(torch.unique(degrees)) > 10
    result = simulate(scenario)
    (client,) = [s for s in result.spent["edgefd"] if s.total.spent.protects == CLIENT]
    (outlook,) = [o for o in forecast(scenario).outlooks if o.total.spent.protects == CLIENT]
    assert 0 < client.total.epsilon < math.inf
    assert outlook.total.epsilon == pytest.approx(client.total.epsilon, rel=1e-9)


def test_parts_are_what_each_would_cost_alone() -> None:
    both = of(
        {"training": DP_SGD, "filter": {"name": "dp-kmeans"}, "release": {"name": "laplace"}},
        method=FILTERED,
    )
    (prospect, *_) = prospects(both, 1)
    entries = planned(both, prospect).entries
    of_record = {part.name: part for part in parts(entries, RECORD, 1e-5)}
    alone = planned(trained(), prospect).entries
    (training,) = [t for t in totals(alone, 1e-5) if t.spent.protects == RECORD]
    assert of_record["training"].epsilon == pytest.approx(training.epsilon, rel=1e-9)
    assert 0 < of_record["filter"].epsilon < of_record["training"].epsilon
    assert of_record["release"].epsilon == 0
    assert str(of_record["release"]).startswith("nothing more (")
    (whole,) = [t for t in totals(entries, 1e-5) if t.spent.protects == RECORD]
    separate = [part.epsilon for part in of_record.values()]
    assert max(separate) < whole.epsilon < sum(separate)

    of_client = {part.name: part for part in parts(entries, CLIENT, 1e-5)}
    assert of_client["training"].bare
    assert of_client["filter"].bare
    # The answers' own noise holds for a client whatever the model is made of.
    assert not of_client["release"].bare
    pure = {part.name: part for part in parts(entries, CLIENT, 0.0)}["release"]
    assert of_client["release"].epsilon < pure.epsilon == pytest.approx(8)  # the row's own figure
    for part in (*of_record.values(), *of_client.values()):
        assert ("no guarantee" in str(part)) == math.isinf(part.epsilon)
        if 0 < part.epsilon < math.inf:
            assert all(word in str(part) for word in ("delta 1e-05", "one ", "PLD", "RDP"))
