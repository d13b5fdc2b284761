"""Secure aggregation, what it costs: what ledgers say of a sum, with noise and without."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from privacy import totals
from privacy.events import Gaussian
from secure_runs import CLIENT, CLIENTS, RECORD, N, noisy, pair
from spied import Seen, play


def entries(seen: Seen, client: int = 0) -> list[tuple[str, str, str]]:
    return [(e.what, e.seen_by, e.guarantee) for e in seen.store.ledger(client).entries()]


def test_without_noise_only_who_sees_it_is_another() -> None:
    seen = play(pair()[0], CLIENTS)
    assert entries(seen) == [
        ("accept mask", "sum only", "none"),
        ("soft labels", "sum only", "none"),
        ("soft labels", "sum only", "none"),
    ]


def test_a_noisy_sum_protects_each_client_at_its_closed_form() -> None:
    """Two rounds, N rows that move by sqrt(2): mu^2 = 2 * 2 N / sigma^2, whatever the filter."""
    sigma = 20.0
    seen = play(noisy(sigma), CLIENTS)
    assert entries(seen) == [
        ("accept mask", "no one", "none"),
        ("soft labels", "sum only", "proved"),
        ("soft labels", "sum only", "proved"),
    ]
    found = seen.store.ledger(0).entries()
    assert found[1].events == (
        Gaussian(unit="client", relation="replace", noise_multiplier=sigma / (2 * N) ** 0.5),
    )
    total = totals.total(found, CLIENT, 1e-5)
    mu = (2 * 2 * N) ** 0.5 / sigma

    def delta(eps: float) -> float:
        normal = stats.norm.cdf
        return float(normal(mu / 2 - eps / mu) - np.exp(eps) * normal(-mu / 2 - eps / mu))

    assert total.bare == ()
    assert total.spent.pld is not None
    assert delta(total.spent.pld) == pytest.approx(1e-5, rel=0.02)
    assert np.isinf(totals.total(found, RECORD, 1e-5).epsilon)


@pytest.mark.parametrize(
    ("privacy", "finite"),
    [
        ({"training": {"name": "dp-sgd"}, "filter": {"name": "dp-kmeans"}}, True),
        ({"training": {"name": "dp-sgd"}}, False),
        ({"filter": {"name": "dp-kmeans"}}, False),
    ],
)
def test_a_record_is_as_safe_as_the_model_and_the_mask_in_the_sum(
    privacy: dict[str, Any], finite: bool
) -> None:
    seen = play(noisy(20.0, privacy=privacy, training={"rounds": 1}), CLIENTS)
    found = seen.store.ledger(0).entries()
    assert np.isfinite(totals.total(found, RECORD, 1e-5).epsilon) == finite
    assert np.isfinite(totals.total(found, CLIENT, 1e-5).epsilon)


def test_a_client_whose_budget_is_spent_sends_nothing() -> None:
    """All have spent the same, so in the second round there is no sum."""
    one = totals.total(
        play(noisy(20.0, training={"rounds": 1}), CLIENTS).store.ledger(0).entries(), CLIENT, 1e-5
    ).spent.rdp
    seen = play(noisy(20.0, privacy={"budget": one * 1.01, "unit": "client"}), CLIENTS)
    assert [event["n_abstained"] for event in seen.of("round")] == [0, CLIENTS]
    assert seen.consensus(1, N) is not None
    assert seen.consensus(2, N) is None
    assert "used up its budget" in seen.of("round")[1]["note"]
    assert {seen.replied["train", client, 2] is None for client in range(CLIENTS)} == {True}
    assert len(entries(seen)) == 2


def test_bytes_of_keys_tables_and_secrets_are_counted() -> None:
    seen = play(pair()[0], CLIENTS, mute=lambda k, c, r: (k, c, r) == ("train", 1, 1))
    for event in seen.of("round"):
        replied = [
            d for (_, _, r), d in seen.replied.items() if r == event["round"] and d is not None
        ]
        asked = [
            d
            for (kind, _, r), d in seen.asked.items()
            if r == event["round"] and d is not None and kind != "query.pool"
        ]
        assert event["bytes_up"] == sum(len(data) for data in replied)
        assert event["bytes_down"] == sum(len(data) for data in asked)
        up = {c["client"]: c["bytes_up"] for c in seen.of("client") if c["round"] == event["round"]}
        assert sum(up.values()) == event["bytes_up"]
    tables = [d for (kind, _, _), d in seen.replied.items() if kind == "train" and d is not None]
    assert all(0 < len(data) - 8 * N * 11 < 512 for data in tables)
