"""Randomised response and GNMax in whole runs: what the clients are told, and what it costs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fedkd import config, payload_answers
from fedkd.errors import FedkdError
from fedkd.rng import torch_stream
from privacy import accounting, totals
from privacy.asked import CLIENT
from privacy.events import Gaussian, Protects
from privacy.ledger import Ledger
from scenarios.budget import forecast
from scenarios.budget_text import in_words
from scenarios.report import page
from scenarios.simulate import resume, simulate
from server.app import LEDGER
from server.events import Event
from small_runs import facts, small
from spied import Seen, play

N, CLIENTS = 40, 3
PUBLIC = {"name": "public", "size": N}
GNMAX = {"name": "gnmax", "threshold": 1.2, "sigma_threshold": 0.5, "sigma": 0.4}


def squeezed(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def votes(
    seen: Seen, round_: int, n_clients: int = CLIENTS
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The sums and counts of what the clients said in a round, added up here."""
    total, voters = np.zeros((N, 10)), np.zeros(N, np.int64)
    for client in range(n_clients):
        data = seen.replied["train", client, round_]
        assert data is not None
        answer = payload_answers.decode_answer(
            data, client=client, round_=round_, n_samples=N, n_classes=10, simplex=True
        )
        total[answer.ids] += answer.values
        voters[answer.ids] += 1
    return total, voters


def test_of_randomised_response_the_clients_are_told_the_unbiased_mean() -> None:
    """Nine clients that answer everything, so that votes are mixed."""
    scenario = small(
        proxy=PUBLIC,
        partition={"name": "iid", "clients": 9},
        method={"name": "no-filter"},
        privacy={"release": {"name": "randomised-response", "epsilon": 3.0}},
    )
    seen = play(scenario, 9)
    beta = (np.exp(3.0) - 1) / (np.exp(3.0) - 1 + 10)
    for round_ in (1, 2):
        told = seen.consensus(round_, N)
        assert told is not None
        total, voters = votes(seen, round_, 9)
        assert told.ids.tolist() == np.flatnonzero(voters).tolist()
        mean = total[told.ids] / voters[told.ids, None]
        unbiased = (mean - (1 - beta) / 10) / beta
        # The nearest distribution subtracts one number wherever it does not clip at 0.
        for row, expected in zip(told.values.astype(float), unbiased, strict=True):
            moved = (expected - row)[row > 0]
            assert moved == pytest.approx(moved[0], abs=1e-6)
            assert (expected[row == 0] <= moved[0] + 1e-6).all()
            assert row.sum() == pytest.approx(1, abs=1e-5)
        assert np.abs(told.values - mean).max() > 0.05


def test_gnmax_tells_the_noisy_winners_of_the_votes_and_nothing_else() -> None:
    """The noise is drawn here again from its stream: all thresholds, then all winners."""
    seen = play(small(proxy=PUBLIC, privacy={"server": GNMAX}), CLIENTS)
    n_told = []
    for round_ in (1, 2):
        total, _ = votes(seen, round_)
        noise = torch_stream(1, "server", round_, purpose="gnmax")
        at_the_top = torch.randn(N, 1, generator=noise, dtype=torch.float64).numpy()[:, 0]
        at_each = torch.randn(N, 10, generator=noise, dtype=torch.float64).numpy()
        clear = np.flatnonzero(total.max(1) + 0.5 * at_the_top >= 1.2)
        winners = (total + 0.4 * at_each).argmax(1)[clear]
        told = seen.consensus(round_, N)
        assert (told is None) == (len(clear) == 0)
        n_told.append(len(clear))
        if told is not None:
            assert told.ids.tolist() == clear.tolist()
            assert told.values.tolist() == np.eye(10)[winners].tolist()
    assert [event["kept"] for event in seen.of("round")] == [n / N for n in n_told]
    assert 0 < sum(n_told) < 2 * N


def test_if_no_votes_are_clear_the_round_says_so() -> None:
    row = {**GNMAX, "threshold": 100}
    seen = play(small(proxy=PUBLIC, privacy={"server": row}), CLIENTS)
    assert seen.consensus(1, N) is None
    assert "the votes on no proxy sample were clear" in seen.of("round")[0]["note"]


def test_the_server_charges_each_round_once_also_if_it_is_played_twice(tmp_path: Path) -> None:
    scenario = small(
        proxy=PUBLIC, privacy={"server": GNMAX}, training={"rounds": 3, "distill": {"epochs": 2}}
    )

    def stop(row: str, seed: int, event: Event) -> None:
        if event["event"] == "round" and event["round"] == 2:
            raise InterruptedError

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    result = simulate(scenario, folder=whole)
    with pytest.raises(InterruptedError):
        simulate(scenario, folder=broken, listener=stop)
    file = broken / "edgefd" / "seed-1" / LEDGER
    before = file.read_bytes()
    assert len(Ledger(file).entries()) == 2  # what was told in round 2 stays told
    assert facts(resume(broken)) == facts(result)
    assert file.read_bytes().startswith(before)
    entries = Ledger(file).entries()
    assert entries == Ledger(whole / "edgefd" / "seed-1" / LEDGER).entries()
    told = [event["kept"] for event in result.cells[0].of("round")]
    assert [entry.rows for entry in entries] == [round(kept * N) for kept in told]
    assert {(e.client, e.what, e.seen_by) for e in entries} == {
        (-1, "soft labels", "server and all clients")
    }
    spent = totals.total(entries, Protects("client", "replace"), 1e-5)
    assert spent.bare == ()
    (event,) = entries[0].events
    mu = np.sqrt(3 * N * (1 / 0.5**2 + 2 / 0.4**2))
    assert 3 / event.noise_multiplier**2 == pytest.approx(mu**2)  # type: ignore[union-attr]
    assert np.isfinite(spent.epsilon)


def test_a_budget_stops_the_server_and_the_run_goes_on(tmp_path: Path) -> None:
    """Two of four rounds: by hand mu^2 is 40 (1 / 30^2 + 2 / 20^2) a round. Clients answer on."""
    row = {"name": "gnmax", "threshold": 1.0, "sigma_threshold": 30.0, "sigma": 20.0}
    each = Gaussian(noise_multiplier=(N * (1 / 30**2 + 2 / 20**2)) ** -0.5, **CLIENT._asdict())
    within = accounting.rdp_epsilon([each] * 2, CLIENT, 1e-5)
    scenario = small(
        proxy=PUBLIC,
        training={"rounds": 4},
        privacy={"server": row, "unit": "client", "budget": within * 1.001},
    )
    result = simulate(scenario, folder=tmp_path)
    rounds = result.cells[0].of("round")
    assert [event["n_abstained"] for event in rounds] == [0] * 4
    assert ["the server is silent" in event.get("note", "") for event in rounds] == [
        False,
        False,
        True,
        True,
    ]
    assert [event["kept"] > 0 for event in rounds] == [True, True, False, False]
    assert all(event["bytes_up"] > 0 for event in rounds)
    told = result.cells[0].server_ledger
    assert [entry.round for entry in told] == [1, 2]
    assert totals.total(told, CLIENT, 1e-5).epsilon <= within * 1.001
    assert told == Ledger(tmp_path / "edgefd" / "seed-1" / LEDGER).entries()
    assert simulate(scenario).cells[0].server_ledger == told  # without a folder too
    foretold = forecast(scenario)
    assert foretold.server == totals.total(told, CLIENT, 1e-5)
    text = "\n".join(in_words(foretold))
    assert "in 2 of 4 rounds the server, which sees the answers, tells labels" in text
    assert str(foretold.server) in text
    seen = squeezed(page.write(result, tmp_path).read_text("utf-8"))
    assert f"{sum(entry.rows for entry in told)} labels in 2 rounds" in seen
    assert str(totals.total(told, CLIENT, 1e-5)) in seen
    assert "In round 3 to 4 the server was silent" in seen


def test_a_server_without_a_mechanism_keeps_no_ledger(tmp_path: Path) -> None:
    simulate(small(), folder=tmp_path)
    assert not list(tmp_path.rglob(LEDGER))


SECURE = {"name": "secure-aggregation"}
LOGITS = {"name": "edgefd", "release": {"name": "logits"}}
TOP_K = {"name": "edgefd", "release": {"name": "top-k"}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": LOGITS, "privacy": {"server": GNMAX}}, ["'gnmax'", "'logits'", "top-k"]),
        (
            {"method": LOGITS, "privacy": {"server": SECURE}},
            ["'logits'", "allowed: prob"],
        ),
        ({"method": TOP_K, "privacy": {"server": SECURE}}, ["'top-k'", "allowed: probabilities;"]),
        ({"method": {"name": "fedavg"}, "privacy": {"server": GNMAX}}, ["got 'weights'"]),
        ({"method": {"name": "local-only"}, "privacy": {"server": SECURE}}, ["got 'none'"]),
        (
            {
                "privacy": {
                    "server": {**SECURE, "sigma": 0.5},
                    "release": {"name": "gaussian"},
                }
            },
            ["noise twice", "sigma = 0.5", "'gaussian'", "one of the two"],
        ),
        (
            {
                "privacy": {
                    "server": {**SECURE, "sigma": 0.5},
                    "release": {"name": "swing", "noise": "laplace"},
                }
            },
            ["noise twice", "'swing'"],
        ),
    ],
)
def test_what_does_not_go_together_is_refused_with_a_way_out(
    changes: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(FedkdError, match="fix: ") as error:
        small(**changes)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    "privacy",
    [
        {"server": {**SECURE, "sigma": 0.5}, "release": {"name": "top-1"}},
        {"server": {**SECURE, "sigma": 0.5}, "release": {"name": "swing", "degree": "density"}},
        {"server": SECURE, "release": {"name": "randomised-response"}},
        {"server": GNMAX, "release": {"name": "laplace"}},
    ],
)
def test_what_goes_together_is_taken(privacy: dict[str, Any]) -> None:
    assert config.from_json(small(privacy=privacy).model_dump_json()) == small(privacy=privacy)


@pytest.mark.parametrize("reference", ["fedavg", "local-only", "proxy-labels"])
def test_references_without_soft_labels_run_without_the_server_s_protection(reference: str) -> None:
    row = small(privacy={"server": GNMAX}).row(reference)
    assert row.privacy.server.name == "plain"
    assert config.from_json(row.model_dump_json()) == row  # as clients read it
    kept = small(privacy={"server": GNMAX}).row("no-filter")
    assert kept.privacy.server.name == "gnmax"
