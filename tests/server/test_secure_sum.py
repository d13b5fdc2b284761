"""Secure aggregation in whole runs: the plain consensus to the bit, and no table of one client."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

import server.exchanges
from fedkd import payload, payload_secure
from fedkd.errors import FedkdError, PayloadError
from fedkd.rng import stream
from privacy import secagg
from privacy.secagg import UNIT
from scenarios.simulate import simulate
from secure_runs import CLIENTS, N, noisy, pair, same
from server.secure import SecureSum
from small_runs import consensus, facts, small
from spied import play

HALF: dict[str, Any] = {"training": {"rounds": 2, "participation": 0.5}}
RESPONSE = {"privacy": {"release": {"name": "randomised-response", "epsilon": 2.0}}}


@pytest.mark.parametrize(
    ("grid", "changes"),
    [
        ("inline", {}),
        ("inline", {"proxy": {"name": "contributed"}}),
        ("inline", HALF),
        ("inline", RESPONSE),
        ("inline", {"privacy": {"release": {"name": "laplace", "epsilon": 500.0}}}),
        ("workers", HALF),
        pytest.param("workers", RESPONSE, marks=pytest.mark.slow),
    ],
)
def test_the_consensus_has_the_bits_of_the_plain_run(
    tmp_path: Path, grid: str, changes: dict[str, Any]
) -> None:
    secure, plain = pair(**changes)
    if grid == "workers":
        secure = secure.on(small(grid={"name": "workers", "workers": 2}).grid)
    results = [simulate(s, folder=tmp_path / n) for s, n in ((secure, "secure"), (plain, "plain"))]
    ours, theirs = (consensus(tmp_path / n / "edgefd" / "seed-1") for n in ("secure", "plain"))
    assert len(ours["ids"]) > 0
    assert all(ours[key].tobytes() == theirs[key].tobytes() for key in ours)
    learnt = [
        [
            {k: v for k, v in fact.items() if k in ("round", "client", "accuracy", "distill_loss")}
            for fact in facts(result)
            if fact["event"] == "client"
        ]
        for result in results
    ]
    assert learnt[0] == learnt[1]
    for event in results[0].cells[0].of("client"):
        assert not {"accepted", "precision", "recall", "accepted_by_class"} & event.keys()


def test_clients_advanced_together_send_what_they_send_alone() -> None:
    """To the bit in what a table holds of a mask; the sums differ by rounding in the training."""
    secure, plain = pair(training={"rounds": 1})
    block = small(grid={"name": "cohort", "block": 4}).grid
    together = [
        {k: v for k, v in fact.items() if k in ("kept", "consensus_accuracy")}
        for fact in facts(simulate(secure.on(block))) + facts(simulate(plain.on(block)))
        if fact["event"] == "round"
    ]
    assert together[0] == together[1]
    assert together[0]["kept"] > 0


@pytest.mark.parametrize("how", ["fails", "mute"])
@pytest.mark.parametrize("kind", ["train", "query.keys"])
def test_one_lost_client_costs_its_answers_and_nothing_else(how: str, kind: str) -> None:
    """Client 1 gives no table in round 1, or no key; so does its reply in the plain run."""
    secure, plain = pair()

    def lost(message: str, client: int, round_: int) -> bool:
        return (message, client, round_) == (kind, 1, 1)

    def plainly(message: str, client: int, round_: int) -> bool:
        return (message, client, round_) == ("train", 1, 1)

    ours = play(secure, CLIENTS, **{how: lost})  # type: ignore[arg-type]
    theirs = (
        play(plain, CLIENTS, mute=plainly)
        if kind == "query.keys"  # without a key it still learns
        else play(plain, CLIENTS, **{how: plainly})  # type: ignore[arg-type]
    )
    for round_ in (1, 2):
        assert same(ours.consensus(round_, N), theirs.consensus(round_, N))
        assert ours.consensus(round_, N) is not None
    assert [event["n_summed"] for event in ours.of("round")] == [3, 4]
    step = kind.removeprefix("query.")
    assert [(e["step"], e["client"], e["round"]) for e in ours.of("refused")] == [(step, 1, 1)]
    revealed = {key for key in ours.replied if key[0] == "query.reveal"}
    expected = {("query.reveal", client, 1) for client in (0, 2, 3)}
    assert revealed == (expected if kind == "train" else set())


def test_a_second_loss_costs_the_round_and_the_next_goes_on() -> None:
    secure, _ = pair()

    def lost(message: str, client: int, round_: int) -> bool:
        return (message, client, round_) in {("train", 1, 1), ("query.reveal", 2, 1)}

    seen = play(secure, CLIENTS, fails=lost)
    assert seen.consensus(1, N) is None
    assert seen.consensus(2, N) is not None
    first, second = seen.of("round")
    assert first["kept"] == 0
    assert first["note"].startswith("client 2 did not reveal its secrets with the lost ones")
    assert first["note"].endswith("no consensus")
    assert second["kept"] > 0
    assert [(e["step"], e["client"]) for e in seen.of("refused")] == [("train", 1), ("reveal", 2)]


def test_too_few_are_left_for_a_sum_and_then_nobody_reveals() -> None:
    """Three of four are needed."""
    seen = play(pair()[0], CLIENTS, fails=lambda kind, c, r: (kind, r) == ("train", 1) and c < 2)
    assert seen.consensus(1, N) is None
    assert "too few clients are left for a sum; got 2" in seen.of("round")[0]["note"]
    assert not [key for key in seen.asked if key[0] == "query.reveal"]
    assert seen.consensus(2, N) is not None


def test_one_key_alone_makes_no_sum_and_no_table_leaves() -> None:
    seen = play(pair()[0], CLIENTS, fails=lambda kind, c, r: kind == "query.keys" and c > 0)
    for round_ in (1, 2):
        assert seen.consensus(round_, N) is None
        assert {seen.replied["train", client, round_] is None for client in range(CLIENTS)} == {
            True
        }
    assert all("fewer than two clients gave a key" in e["note"] for e in seen.of("round"))
    entries = seen.store.ledger(2).entries()
    assert [entry for entry in entries if entry.what == "soft labels"] == []
    assert all("train_loss" in event for event in seen.of("client"))


def test_one_client_a_round_is_refused_before_anything_is_run() -> None:
    secure, _ = pair(training={"rounds": 1, "participation": 0.25})
    with pytest.raises(FedkdError, match=r"hides a client among the others.*got '1 client"):
        simulate(secure)


# --- what the server holds ---


def arrays(value: Any, depth: int = 4) -> Iterator[NDArray[Any]]:
    """Every array that an object holds, however deep."""
    if isinstance(value, np.ndarray):
        yield value
    elif depth == 0 or isinstance(value, str | bytes | int | float | None):
        return
    elif isinstance(value, dict):
        for part in value.values():
            yield from arrays(part, depth - 1)
    elif isinstance(value, list | tuple | set | frozenset):
        for part in value:
            yield from arrays(part, depth - 1)
    elif hasattr(value, "__dict__"):
        yield from arrays(vars(value), depth - 1)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> tuple[list[SecureSum], dict[str, Any]]:
    """The server's object, all that it ever held, and the clients' tables before their masks."""
    made: list[SecureSum] = []
    found: dict[str, Any] = {"held": [], "tables": []}

    class Watched(SecureSum):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(self)

        def hear(self, round_: int, client: int, data: payload.Bytes | None) -> dict[str, Any]:
            said = super().hear(round_, client, data)
            found["held"].append([np.array(a) for a in arrays(self)])
            return said

    real = secagg.blind

    def blind(full: NDArray[np.float64], *rest: Any) -> NDArray[np.uint64]:
        found["tables"].append(np.rint(full / UNIT).astype(np.int64).view(np.uint64))
        return real(full, *rest)

    monkeypatch.setattr(server.exchanges, "SecureSum", Watched)
    monkeypatch.setattr(secagg, "blind", blind)
    return made, found


def test_the_server_never_holds_a_table_of_one_client(
    watched: tuple[list[SecureSum], dict[str, Any]],
) -> None:
    """Nor a sum of fewer than all: after each upload, whatever it holds is none of these."""
    made, found = watched
    play(pair(training={"rounds": 1})[0], CLIENTS)
    tables, held = found["tables"], found["held"]
    assert len(made) == 1
    assert len(tables) == len(held) == CLIENTS
    assert all(table.any() for table in tables)
    sums = {
        sum(part, start=np.zeros_like(tables[0])).tobytes(): len(part)
        for size in range(1, CLIENTS + 1)
        for part in itertools.combinations(tables, size)
    }
    known = [[sums.get(a.astype(a.dtype).tobytes(), 0) for a in at_once] for at_once in held]
    assert [max(sizes) for sizes in known] == [0, 0, 0, CLIENTS]  # the last sum is found: it can be
    for at_once in held[:-1]:
        blinded = [a for a in at_once if a.dtype == np.uint64]
        assert len(blinded) == 1  # one sum, not a list of uploads
        octets = np.bincount(blinded[0].view(np.uint8).ravel(), minlength=256)
        assert stats.chisquare(octets).pvalue > 1e-6
    plain = np.bincount(tables[0].view(np.uint8).ravel(), minlength=256)
    assert stats.chisquare(plain).pvalue < 1e-100  # the same test on a table


def test_a_late_table_is_thrown_away(watched: tuple[list[SecureSum], dict[str, Any]]) -> None:
    made, _ = watched

    def lost(kind: str, client: int, round_: int) -> bool:
        return kind == "train" and client == 1

    seen = play(pair(training={"rounds": 1})[0], CLIENTS, mute=lost)
    late = play(pair(training={"rounds": 1})[0], CLIENTS).replied["train", 1, 1]
    before = [np.array(a) for a in arrays(made[0])]
    with pytest.raises(PayloadError, match="late or twice is thrown away"):
        made[0].hear(1, 1, late)
    assert all(np.array_equal(a, b) for a, b in zip(before, arrays(made[0]), strict=True))
    assert seen.consensus(1, N) is not None


@pytest.mark.parametrize("what", ["table", "secrets"])
def test_garbage_in_the_sum_is_seen_and_costs_the_round(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that masks with other keys, or reveals others: nothing of it can be told apart."""
    real = payload_secure.encode_blinded if what == "table" else payload_secure.encode_secrets

    def wrong(value: Any, client: int, round_: int) -> payload.Bytes:
        if client == 2 and round_ == 1:
            value = value + np.uint64(2**62) if what == "table" else dict.fromkeys(value, bytes(32))
        return real(value, client, round_)

    monkeypatch.setattr(payload_secure, real.__name__, wrong)
    mute = (lambda kind, c, r: (kind, c) == ("train", 1)) if what == "secrets" else None
    secure, _ = pair()
    seen = play(secure, CLIENTS) if mute is None else play(secure, CLIENTS, mute=mute)
    assert "the masks did not cancel" in seen.of("round")[0]["note"]
    assert seen.consensus(1, N) is None
    assert seen.consensus(2, N) is not None


def test_noise_of_all_clients_is_in_the_sum_and_the_consensus_follows_from_it(
    watched: tuple[list[SecureSum], dict[str, Any]],
) -> None:
    """The tables are taken apart from their noise, which is drawn here again from its streams."""
    sigma, least = 0.4, 3
    _, found = watched
    seen = play(noisy(sigma, training={"rounds": 1}), CLIENTS)
    total = sum(t.view(np.int64).astype(float) * UNIT for t in found["tables"])
    shares = [
        stream(1, "client", 1, client, "sum noise").normal(0, sigma / least**0.5, (N, 11))
        for client in range(CLIENTS)
    ]
    noise = np.sum(shares, axis=0)
    counts = (total - noise)[:, -1]
    assert counts == pytest.approx(np.rint(counts), abs=1e-8)
    assert set(np.rint(counts)) >= {0, 1, 2}
    assert stats.kstest(noise.ravel(), "norm", (0, sigma * (4 / 3) ** 0.5)).pvalue > 1e-4
    told = seen.consensus(1, N)
    assert told is not None
    kept = np.flatnonzero(total[:, -1] > 2 * sigma * (4 / 3) ** 0.5)
    assert told.ids.tolist() == kept.tolist()
    assert 0 < len(kept) < N
    mean = total[kept, :-1] / total[kept, -1:]
    for row, wanted in zip(told.values.astype(float), mean, strict=True):
        moved = (wanted - row)[row > 0]  # the nearest distribution moves what it keeps alike
        assert moved == pytest.approx(moved[0], abs=1e-6)
        assert (wanted[row == 0] <= moved[0] + 1e-6).all()
        assert row.sum() == pytest.approx(1, abs=1e-5)
