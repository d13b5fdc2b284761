"""Whatever a section `privacy` says: a round is played, or one error explains why not."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clients.app import make_app
from clients.store import MemoryStore
from fedkd.errors import FedkdError
from privacy.asked import CLIENT, RECORD
from privacy.totals import total
from scenarios.grids import inline
from server.app import make_app as make_server
from server.events import Event
from small_runs import small

N_CLIENTS = 2
Rows = st.SearchStrategy[dict[str, Any]]
EPSILON = st.floats(0.05, 50)
BOUND = st.floats(0.1, 50)


def row(name: str, **settings: st.SearchStrategy[Any]) -> Rows:
    return st.fixed_dictionaries({"name": st.just(name)}, optional=settings)


PRIVATE = {"epsilon": EPSILON, "axes": st.integers(1, 70)}
TRAININGS: Rows = st.one_of(
    row("plain"),
    row("nfdp", fraction=st.floats(0.01, 0.99)),
    row(
        "dp-sgd",
        clip=st.floats(0.01, 10),
        noise_multiplier=st.sampled_from([0.0, 0.5, 4.0]),
        epsilon=st.sampled_from([0.5, 8.0]),
        error_clip=st.floats(0, 1),
    ),
)
FILTERS: Rows = st.one_of(
    row("plain"),
    row("dp-kmeans", k=st.integers(1, 50), **PRIVATE),
    row("dp-class-means", **PRIVATE),
    row("dp-kernel", **PRIVATE),
)
RELEASES: Rows = st.one_of(
    row("plain"),
    row("top-1"),
    row("gaussian", bound=BOUND, epsilon=EPSILON),
    row("laplace", bound=BOUND, epsilon=EPSILON),
    row("sampled-label", bound=BOUND),
    row("randomised-response", epsilon=EPSILON),
    row(
        "swing",
        degree=st.sampled_from(["patterns", "rarity", "classes", "density"]),
        private_classes=st.lists(st.integers(0, 12), max_size=3),
        bound=BOUND,
        t_min=st.floats(0.5, 4),
        t_max=st.floats(0.5, 50),
        sharpness=st.floats(0.1, 5),
        noise=st.sampled_from(["none", "gaussian", "laplace"]),
        scale=st.floats(0.01, 5),
    ),
)
PRIVACY: Rows = st.fixed_dictionaries(
    {"training": TRAININGS, "filter": FILTERS, "release": RELEASES},
    optional={
        "delta": st.sampled_from([1e-3, 1e-5, 1e-9]),
        "budget": EPSILON,
        "unit": st.sampled_from(["record", "client"]),
    },
)
METHODS = st.sampled_from(
    [
        {"name": "edgefd"},
        {"name": "edgefd", "gate": {"name": "quantile", "q": 0.3}},
        {"name": "no-filter"},
        {"name": "no-filter", "release": {"name": "logits"}},
        {"name": "local-only"},
        {"name": "fedavg"},
    ]
)
PROXIES = st.sampled_from([{"name": "contributed"}, {"name": "public", "size": 30}])


def play(privacy: dict[str, Any], method: dict[str, Any], proxy: dict[str, Any]) -> list[Event]:
    """One round on the smallest of scenarios; every ledger keeps within the budget, if any."""
    scenario = small(
        privacy=privacy,
        method=method,
        proxy=proxy,
        partition={"name": "iid", "clients": N_CLIENTS},
        training={"rounds": 1, "local": {"epochs": 0.2, "batch_size": 128}},
    )
    store, events = MemoryStore(), list[Event]()
    app = make_app(lambda config: store)
    inline.run(make_server(scenario, 1, None, events.append), app, N_CLIENTS)
    settings = scenario.privacy
    if settings.budget is not None:
        for client in range(N_CLIENTS):
            protects = {"record": RECORD, "client": CLIENT}[settings.unit]
            spent = total(store.ledger(client).entries(), protects, settings.delta)
            assert spent.epsilon <= settings.budget * (1 + 1e-9)
    return events


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(PRIVACY, METHODS, PROXIES)
def test_any_privacy_plays_a_round_or_is_explained(
    privacy: dict[str, Any], method: dict[str, Any], proxy: dict[str, Any]
) -> None:
    refusal, events = "", list[Event]()
    try:
        events = play(privacy, method, proxy)
    except FedkdError as error:
        refusal = str(error)
    assert "\n" not in refusal
    # A client's failure is passed on in its own words, and must have been one of ours.
    assert "Error:" not in refusal.replace("FedkdError:", "")
    if refusal:
        return
    assert not [event for event in events if event["event"] == "refused"]
    (last,) = [event for event in events if event["event"] == "round"]
    assert last["n_clients"] == N_CLIENTS
    assert math.isfinite(last["accuracy"])
