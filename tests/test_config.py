"""Scenarios: what loads, and what a method, a reference row and a device make of it."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from fedkd import device
from fedkd.config import REFERENCES, Scenario, dump, from_json, load, parse
from fedkd.config_overrides import ROWS
from fedkd.config_sections import STAGES, MethodConfig
from fedkd.data.partition import Iid
from fedkd.errors import FedkdError
from fedkd.exchange.gate import Quantile
from fedkd.exchange.methods import METHODS
from fedkd.exchange.score import KMeans
from fedkd.section import Section
from scenario_tables import FILES, at, chosen, differences, written

# --- what loads ---


def test_an_empty_file_is_the_default_scenario(tmp_path: Path) -> None:
    assert load(written(tmp_path, "")) == Scenario() == parse({})


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_scenario_of_the_house_loads_with_its_references(path: Path) -> None:
    scenario = load(path)
    assert scenario.name == path.stem
    assert scenario.description
    for name in scenario.references:
        assert scenario.row(name).references == ()


def choices(section: type[Section], at: str = "") -> Iterator[str]:
    """The keys of a section where a name chooses a row, wherever they lie."""
    for name, field in section.model_fields.items():
        if field.discriminator:
            yield f"{at}{name}"
        elif isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from choices(field.annotation, f"{at}{name}.")


def test_no_table_is_missing() -> None:
    assert sorted(choices(Scenario)) == sorted(ROWS)


@pytest.mark.parametrize(
    ("where", "name"), [(where, name) for where, rows in ROWS.items() for name in rows]
)
def test_every_row_of_every_table_can_be_chosen(where: str, name: str) -> None:
    row = at(parse(chosen(where, name)), where)
    assert type(row) is ROWS[where][name]
    assert row.name == name


@pytest.mark.parametrize("name", METHODS)
def test_every_method_of_the_table_is_its_row(name: str) -> None:
    chosen = parse({"method": {"name": name}}).method
    assert chosen.exchange == METHODS[name].exchange
    assert all(getattr(chosen, stage) == getattr(METHODS[name], stage) for stage in STAGES)


def test_a_pool_is_needed_where_something_is_learnt_from_it() -> None:
    alone = {name for name in METHODS if not parse({"method": {"name": name}}).uses_pool}
    assert alone == {"local-only", "fd", "fedavg", "fedprox"}


# --- a method's stages ---


def test_a_stage_that_keeps_its_name_is_adjusted() -> None:
    for change in ({"k": 3}, {"name": "kmeans", "k": 3}):
        method = parse({"method": {"score": change}}).method
        assert method.score == KMeans(k=3)
        assert method.gate == METHODS["edgefd"].gate
    one, both = (
        parse({"method": {"score": change}}).method.score
        for change in ({"per_class": True}, {"per_class": True, "k": 3})
    )
    assert (one, both) == (KMeans(per_class=True), KMeans(per_class=True, k=3))


def test_a_stage_with_another_name_is_replaced() -> None:
    method = parse({"method": {"gate": {"name": "quantile"}}}).method
    assert method.gate == Quantile()  # nothing of Share
    assert method.score == METHODS["edgefd"].score
    with pytest.raises(FedkdError, match=r"unknown key 'method.gate.power'"):
        parse({"method": {"gate": {"name": "quantile", "power": 3}}})


def test_a_default_phase_is_adjusted_key_by_key() -> None:
    """To set one key of `training.local` must not turn its optimiser into another."""
    for phase in ("local", "distill"):
        default = getattr(Scenario().training, phase)
        changed = getattr(parse({"training": {phase: {"epochs": 7}}}).training, phase)
        assert changed == default.model_copy(update={"epochs": 7.0})


# --- reference rows ---

OWN = {
    "name": "own",
    "seeds": [4, 5],
    "partition": {"name": "weak", "clients": 6},
    "model": {"names": ["mlp", "cnn"]},
    "method": {
        "score": {"k": 3},
        "release": {"name": "logits", "temperature": 3},
        "distill": {"temperature": 3},
    },
    "training": {"rounds": 3},
    "references": list(REFERENCES),
}


def test_no_filter_differs_in_the_filter_only() -> None:
    own = parse(OWN)
    row = own.row("no-filter")
    assert differences(own, row) == {"method.name", "method.score", "method.gate", "references"}
    assert (row.method.score.name, row.method.gate.name) == ("none", "open")


def test_iid_differs_in_the_partition_only() -> None:
    own = parse(OWN)
    assert differences(own, own.row("iid")) == {"partition", "references"}
    assert own.row("iid").partition == Iid(clients=6)


def test_iid_has_as_many_clients_as_the_data_have_owners(tmp_path: Path) -> None:
    owner = np.repeat([5, 6, 9], 8)
    path = tmp_path / "x.npz"
    np.savez(path, x=np.zeros((24, 2, 2)), y=np.arange(24) % 2, client=owner)
    own = parse({"data": {"name": "npz", "path": str(path)}, "partition": {"name": "natural"}})
    assert own.row("iid").partition == Iid(clients=3)
    nobody = parse({"partition": {"name": "natural"}})  # digits name no owners
    assert nobody.row("iid").partition == Iid(clients=1)


@pytest.mark.parametrize(
    ("name", "exchange"),
    [("local-only", "none"), ("fedavg", "weights"), ("proxy-labels", "proxy-labels")],
)
def test_a_reference_method_leaves_the_rest_of_the_scenario(name: str, exchange: str) -> None:
    own = parse(OWN)
    row = own.row(name)
    assert row.method == MethodConfig.model_validate({"name": name})
    assert row.method.exchange == exchange
    assert {key.split(".")[0] for key in differences(own, row)} == {"method", "references"}


def test_centralised_is_one_client_that_learns_alone() -> None:
    own = parse(OWN)
    row = own.row("centralised")
    assert (row.partition, row.method.exchange) == (Iid(clients=1), "none")
    assert {key.split(".")[0] for key in differences(own, row)} == {
        "method",
        "partition",
        "references",
    }


@pytest.mark.parametrize("name", REFERENCES)
def test_a_reference_row_is_a_valid_scenario(name: str) -> None:
    row = parse(OWN).row(name)
    assert parse(tomllib.loads(dump(row))) == row
    assert from_json(json.dumps(row.model_dump(mode="json"))) == row


# --- device ---


def test_a_device_that_is_not_there_is_refused() -> None:
    assert device.resolve("cpu") == torch.device("cpu")
    n_gpus = torch.cuda.device_count()
    assert device.resolve("auto").type == ("cuda" if n_gpus else "cpu")
    with pytest.raises(FedkdError, match=rf"got 'cuda:{n_gpus}'; allowed: cpu.*auto"):
        device.resolve(f"cuda:{n_gpus}")
