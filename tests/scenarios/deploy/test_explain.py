"""What `explain` says would leave is what leaves: held against a run with the client's own data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message

from clients.app import app as client_app
from privacy.ledger import look
from privacy.totals import totals
from scenarios.deploy import init
from scenarios.deploy.client import source_of
from scenarios.deploy.explain import explain, leaving
from scenarios.deploy.folder import client_settings, dump
from wandering import Wandering, deployed, owned, play

GAUSSIAN = {"release": {"name": "gaussian", "bound": 5.0, "epsilon": 4.0}}


@pytest.fixture
def client(tmp_path: Path) -> Path:
    init.init(tmp_path / "lab", ["localhost"], 8100, ["a", "b", "c"])
    return tmp_path / "lab/clients/a"


def test_the_cost_is_that_of_the_run_and_adds_up_with_earlier_ones(
    tmp_path: Path, client: Path
) -> None:
    configs, simulation = owned(tmp_path)
    proxy = {"name": "foreign", "source": {"name": "digits"}, "size": 40}
    scenario = deployed(
        simulation, proxy=proxy, method={"gate": {"name": "open"}}, privacy=GAUSSIAN
    )
    data = str(configs[0]["data"])
    said = explain(client, scenario, data)
    for each in configs:
        each["state"] = str(tmp_path / f"state-{each['seat']}")
    configs[0]["state"] = str(client / "state")
    play(Wandering(configs), scenario, tmp_path / "server")
    path = next((client / "state").rglob("ledger.jsonl"))
    spent = [f"  {one}" for one in totals(look(path), scenario.privacy.delta)]
    assert all("infinite" not in line for line in spent if "one client" in line)
    assert all(line in said for line in spent)
    later = explain(client, scenario, data)
    assert any("took part in before (1)" in line for line in later)
    twice = [f"  {one}" for one in totals((*look(path), *look(path)), scenario.privacy.delta)]
    assert all(line in later for line in twice)


def test_what_is_given_in_the_clear_and_measured_is_said(tmp_path: Path, client: Path) -> None:
    configs, simulation = owned(tmp_path)
    proxy = {"name": "contributed", "fraction": 0.2}
    scenario = deployed(simulation, proxy=proxy)
    text = "\n".join(explain(client, scenario, str(configs[0]["data"])))
    world = scenario.held(1, 0, source_of(str(configs[0]["data"])))
    assert f"{len(world.contributed[0])} raw records, in the clear" in text
    assert "losses and accuracies on its own data, uncharged" in text
    assert "It would refuse" in text, "a fifth is more than consent.contributed allows"
    settings = client_settings(client)
    open_ = settings.consent.model_copy(update={"contributed": 0.5, "measures": False})
    dump(settings.model_copy(update={"consent": open_}), client / "client.toml")
    text = "\n".join(explain(client, scenario, str(configs[0]["data"])))
    assert "It would take part" in text
    assert "losses" not in text


OPEN = {"gate": {"name": "open"}}
CONTRIBUTED = {"name": "contributed", "fraction": 0.1}
FOREIGN = {"name": "foreign", "source": {"name": "digits"}, "size": 40}


@pytest.mark.parametrize(
    ("proxy", "server", "method", "travelled"),
    [
        (CONTRIBUTED, "plain", OPEN, {"hello": "query.hello"}),
        (FOREIGN, "plain", OPEN, {"hello": "query.hello", "soft labels": "train"}),
        (FOREIGN, "plain", {"name": "fedaux"}, {"soft labels": "train"}),
        (FOREIGN, "secure-aggregation", OPEN, {"key": "query.keys", "soft labels": "train"}),
    ],
)
def test_sizes_are_those_that_travel(
    tmp_path: Path,
    client: Path,
    proxy: dict[str, Any],
    server: str,
    method: dict[str, Any],
    travelled: dict[str, str],
) -> None:
    """Every sample is answered, so the most that may leave is what leaves, to the byte."""
    configs, simulation = owned(tmp_path)
    scenario = deployed(
        simulation,
        proxy=proxy,
        method=method,
        privacy={"server": {"name": server}},
    )
    sizes: dict[str, int] = {}

    def measured(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        if context.node_config["seat"] == 0 and "payload" in reply.content:
            data = reply.content.array_records["payload"]["bytes"].data
            sizes[message.metadata.message_type] = len(data)
        return reply

    play(Wandering(configs, measured), scenario, tmp_path / "run")  # type: ignore[arg-type]
    world = scenario.held(1, 0, source_of(str(configs[0]["data"])))
    said = {one.what: one.n_bytes for one in leaving(scenario, client_settings(client), world)}
    assert {what: said[what] for what in travelled} == {
        what: sizes[message] for what, message in travelled.items()
    }
    assert set(sizes) <= {"query.hello", "query.keys", "train"}, "nothing else left"


@pytest.mark.parametrize(
    ("method", "what", "words"),
    [
        ({"name": "fedaux"}, "soft labels", "for each a weight, which tells how much it looks"),
        ({"name": "fd"}, "label means", "on average, and which it holds"),
    ],
)
def test_weights_and_means_are_named(
    tmp_path: Path, client: Path, method: dict[str, Any], what: str, words: str
) -> None:
    configs, simulation = owned(tmp_path)
    scenario = deployed(simulation, proxy=FOREIGN, method=method)
    lines = explain(client, scenario, str(configs[0]["data"]))
    assert any(line.startswith(f"  {what}") for line in lines)
    assert words in "\n".join(lines)
    refused = "It would refuse: this client does not agree to the exchange"
    assert (refused in "\n".join(lines)) == (method["name"] == "fd")


def test_measures_stay_where_the_client_says_so(tmp_path: Path) -> None:
    configs, simulation = owned(tmp_path)
    scenario = deployed(simulation)
    configs[1]["consent"] = json.dumps({"measures": False, "contributed": 0.5})
    events = play(Wandering(configs), scenario, tmp_path / "run")
    by_client = {e["client"]: e for e in events if e["event"] == "client" and e["round"] == 3}
    assert "accuracy" in by_client[0]
    assert not {"accuracy", "train_loss", "threshold"} & set(by_client[1])
    assert by_client[1]["train_samples"] > 0
