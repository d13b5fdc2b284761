"""Audits of the log of a deployment, whose clients alone know who holds what."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from clients.consent import Consent
from fedkd import config
from fedkd.errors import FedkdError
from fedkd.payload import Pool
from privacy.audit import recording
from scenarios import cli
from scenarios.audit.evidence import Cell
from scenarios.audit.findings import OBSERVERS
from scenarios.audit.keys import read, world
from scenarios.audit.run import Audit, Step, audit
from scenarios.deploy.client import source_of
from scenarios.deploy.folder import CLIENT, ClientSettings, dump
from scenarios.simulate import scenario_of, simulate
from wandering import Wandering, deployed, owned, play

METHOD = {"name": "no-filter"}
TRAINING = {"rounds": 2, "local": {"epochs": 8, "batch_size": 16}, "distill": {"epochs": 2}}
PARTS = ("membership", "label-distribution", "mask", "theft", "canary-clients")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deployment: `run` is the server's folder of it, `client-N` those of its clients."""
    folder = tmp_path_factory.mktemp("deployed")
    configs, simulation = owned(folder)
    changes: dict[str, Any] = {"audit": True, "method": METHOD, "training": TRAINING}
    scenario = deployed(simulation, references=[], **changes)
    for seat, each in enumerate(configs):
        client = folder / f"client-{seat}"
        client.mkdir()
        each["state"] = str(client / "state")
        settings = ClientSettings(
            name=client.name,
            server="localhost:8100",
            seat=seat,
            data=source_of(each["data"]),
            consent=Consent(),
        )
        dump(settings, client / CLIENT)
    play(Wandering(configs), scenario, folder / "run/no-filter/seed-1")
    (folder / "run/scenario.toml").write_text(config.dump(scenario), encoding="utf-8")
    simulated = config.parse({**simulation.model_dump(), **changes})
    simulate(simulated, folder=folder / "simulated")
    return folder


def folders(home: Path, *seats: int) -> list[Path]:
    return [home / f"client-{seat}" for seat in seats]


def values(found: Audit) -> dict[tuple[str, ...], float | None]:
    return {
        (one.part, one.observer, one.attack, one.target, one.measure): one.value
        for one in found.cells[0].findings
    }


def test_without_keys_the_recording_alone_is_audited_and_the_rest_said_in_one_line(
    home: Path,
) -> None:
    steps: list[Step] = []
    found = audit(home / "run", parts=PARTS, listener=steps.append)
    assert {one.part for one in found.cells[0].findings} == {"canary-clients"}
    (skipped,) = [step for step in steps if step.skipped]
    assert skipped.part == "membership, label-distribution, mask, theft"
    assert "only the clients know who holds what" in skipped.note
    with pytest.raises(FedkdError, match=r"only the clients know .* --key"):
        audit(home / "run", parts=("label-distribution",))


def test_with_every_key_it_finds_what_the_audit_of_the_same_simulation_finds(home: Path) -> None:
    """The same data, models and answers: the same figures, unless records are drawn by place."""
    found = audit(home / "run", parts=PARTS, keys=read(folders(home, 2, 0, 1)))
    twin = audit(home / "simulated", parts=PARTS)
    assert {one.observer for one in found.cells[0].findings} == set(OBSERVERS)
    here, there = values(found), values(twin)
    alike = [key for key in there if key[0] in ("label-distribution", "mask", "canary-clients")]
    assert len(alike) > 10
    for key in alike:
        assert here[key] == pytest.approx(there[key]), key
    auc = ("membership", "owner", "threshold", "records", "auc")
    assert here[auc] == pytest.approx(there[auc], abs=0.1)  # other records of the same clients
    assert found.cells[0].accounted


def test_a_client_without_a_key_is_not_attacked(home: Path, tmp_path: Path) -> None:
    """It gave to the proxy set, so what it gave has no label that could be asked about."""
    steps: list[Step] = []
    run = Path(shutil.copytree(home / "run", tmp_path / "run"))
    shutil.rmtree(run / "no-filter/seed-1/audit", ignore_errors=True)
    found = audit(
        run,
        parts=("membership", "label-distribution"),
        keys=read(folders(home, 0, 1)),
        listener=steps.append,
    )
    assert {one.part for one in found.cells[0].findings} == {"membership"}
    (skipped,) = [step for step in steps if step.skipped]
    assert skipped.note == "clients gave to the proxy set and handed in no key: 2"
    cell = Cell(
        row="no-filter",
        seed=1,
        scenario=scenario_of(run),
        folder=run / "no-filter/seed-1",
        keys=read(folders(home, 0, 1)),
    )
    assert cell.clients == (0, 1)
    assert tuple(cell.models) == (0, 1)
    assert sorted(cell.ledgers) == [0, 1]


def test_who_came_late_gave_nothing_and_the_labels_stay_in_their_places(home: Path) -> None:
    scenario = scenario_of(home / "run")
    pool = recording.Recording.open(home / "run/no-filter/seed-1/uploads").pool()
    assert pool is not None
    there = pool.contributor != 1
    rest = Pool(pool.x[there], pool.contributor[there])
    keys = read(folders(home, 0, 1, 2))
    whole, late = (world(scenario, 3, 1, keys, one) for one in (pool, rest))
    assert [len(ids) > 0 for ids in late.contributed] == [True, False, True]
    assert (late.private[1] == whole.private[1]).all()
    labels = [one.proxy_truth for one in (whole, late)]
    assert labels[0] is not None
    assert labels[1] is not None
    assert (labels[1][0] == labels[0][0][there]).all()


def test_the_command_takes_the_folders_of_clients(home: Path) -> None:
    keys = [word for folder in folders(home, 0, 1, 2) for word in ("--key", str(folder))]
    words = ["audit", str(home / "run"), "--part", "mask", "--part", "label-distribution", *keys]
    done = CliRunner().invoke(cli.app, [*words, "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)["cells"][0]["findings"]
    assert {one["part"] for one in told} >= {"label-distribution"}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (None, r"does not say which data it held.*section \[data\]"),
        ("1.npz", "not the data that the client took part with"),
    ],
)
def test_a_key_of_other_data_is_refused(
    home: Path, tmp_path: Path, data: str | None, says: str
) -> None:
    source = None if data is None else source_of(str(home / "data" / data))
    settings = ClientSettings(name="x", server="localhost:8100", seat=0, data=source)
    dump(settings, tmp_path / CLIENT)
    with pytest.raises(FedkdError, match=says):
        audit(home / "run", parts=("membership",), keys=read([tmp_path]))


def test_two_keys_of_one_client_and_what_is_none_are_refused(home: Path) -> None:
    with pytest.raises(FedkdError, match="two keys of one client"):
        read(folders(home, 0, 0))
    with pytest.raises(FedkdError, match=r"no client\.toml"):
        read([home / "run"])
    done = CliRunner().invoke(
        cli.app, ["audit", "x.toml", "--compare", "none", "--key", str(home / "client-0")]
    )
    assert isinstance(done.exception, FedkdError)
