"""The recording of a run holds exactly what its server took and told, and no more than it may."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedkd import payload, payload_answers
from fedkd.errors import FedkdError
from fedkd.exchange.combine import GRID
from fedkd.sparse import Largest
from privacy.audit.recording import SERVER, START, About, Recording, n_bytes, recorded
from privacy.ledger import look
from scenarios.grids import dealer
from scenarios.simulate import simulate
from server import condense
from server.app import UPLOADS
from server.recorder import Recorder
from small_runs import consensus, facts, small
from spied import Seen, play

PROXY = {"name": "public", "size": 60}


def audited(folder: Path, fails: Any = lambda *message: False, **changes: Any) -> Seen:
    """A run with `audit`, whose messages are looked at. Three clients, two rounds."""
    return play(small(audit=True, proxy=PROXY, **changes), 3, folder=folder, fails=fails)


def decoded(
    seen: Seen, round_: int, client: int, coding: Any = None
) -> payload_answers.Answer | None:
    data = seen.replied.get(("train", client, round_))
    if data is None:
        return None
    who = {"client": client, "round_": round_, "n_samples": 60, "n_classes": 10}
    if coding is None:
        return payload_answers.decode_answer(data, **who, simplex=True)
    (dense,) = payload_answers.decode_coded_answer(data, **who, coding=coding).blocks()
    return dense


@pytest.mark.parametrize("name", ["edgefd", "no-filter", "top-k"])
def test_each_answer_that_was_taken_is_there_to_the_bit(tmp_path: Path, name: str) -> None:
    coding, method = None, {"name": name}
    if name == "top-k":
        coding, method = Largest(3), {"name": "edgefd", "release": {"name": "top-k", "k": 3}}

    def fails(kind: str, client: int, round_: int) -> bool:
        return (kind, client, round_) == ("train", 1, 2)

    seen = audited(tmp_path, fails, method=method)
    found = Recording.open(tmp_path / UPLOADS)
    assert (found.rounds, found.clients) == ((1, 2), (0, 1, 2))
    assert (found.n_samples, found.n_classes, found.positions) == (60, 10, 1)
    for round_ in (1, 2):
        for client in range(3):
            sent = decoded(seen, round_, client, coding)
            rows = found.answer(round_, client)
            if sent is None:
                assert (round_, client) == (2, 1)
                assert rows is None
            else:
                assert rows is not None
                assert np.array_equal(rows[0], sent.ids)
                assert np.array_equal(rows[1], sent.values)
        told, rows = seen.consensus(round_, 60), found.consensus(round_)
        assert rows is not None
        assert told is not None
        assert all(map(np.array_equal, rows, told))
    assert found.heard(2) == (0, 2)
    pool = found.pool()
    assert pool is not None
    assert pool.x.shape == (60, 1, 8, 8)


def test_each_upload_has_its_entry_in_a_ledger(tmp_path: Path) -> None:
    for method, what in (("edgefd", "soft labels"), ("fedavg", "weights")):
        audited(tmp_path / method, method={"name": method})
        found = Recording.open(tmp_path / method / UPLOADS)
        assert found.what == what
        for client in found.clients:
            entries = look(tmp_path / method / "clients" / f"{client:06d}" / "ledger.jsonl")
            by_round = {e.round: e for e in entries if (e.client, e.what) == (client, found.what)}
            assert sorted(by_round) == [r for r in found.rounds if client in found.heard(r)]
            for round_, entry in by_round.items():
                rows = found.answer(round_, client)
                assert entry.rows == (1 if rows is None else len(rows[0]))


def test_a_refused_answer_is_not_recorded(tmp_path: Path) -> None:
    """It breaks the contract in its last row; what came before it must not be there either."""
    with closing(Recorder(tmp_path, 10**6)) as recorder:
        from server.exchanges import SoftLabels
        from server.job import Job, Roster

        scenario = small(audit=True, proxy=PROXY)
        world = scenario.world(1)
        assert world.public_x is not None
        roster = Roster(
            nodes=range(3),
            n_classes=10,
            shape=(1, 8, 8),
            dtype=torch.float32,
            pool=payload.Pool(world.public_x.numpy(), np.full(60, -1, np.int32)),
            truth=None,
            packed=None,
            digest="",
            holders=set(),
        )
        job = Job(scenario=scenario, seed=1, state_folder="")
        exchange = SoftLabels(job, roster, None, recorder)  # type: ignore[arg-type]
        exchange.ask(1, None)  # type: ignore[arg-type]
        ids, values = np.arange(3, dtype=np.int32), np.full((3, 10), 0.1, np.float32)
        exchange.hear(
            1, 0, payload_answers.encode_answer(payload_answers.Answer(0, 1, ids, values))
        )
        wrong = values * np.array([[1], [1], [2]], np.float32)
        with pytest.raises(payload.PayloadError):
            exchange.hear(
                1, 1, payload_answers.encode_answer(payload_answers.Answer(1, 1, ids, wrong))
            )
        exchange.tell(1, None)  # type: ignore[arg-type]
        assert not recorder.finish()
    assert Recording.open(tmp_path).heard(1) == (0,)


def test_weights_are_there_before_and_after(tmp_path: Path) -> None:
    seen = audited(tmp_path, method={"name": "fedavg"})
    found = Recording.open(tmp_path / UPLOADS)
    last = consensus(tmp_path)["weights"]
    for round_ in (1, 2):
        read = {c: found.weights(round_, c) for c in (START, 0, 1, 2, SERVER)}
        for (kind, client), data in {
            ("asked", START): seen.asked["train", 0, round_],
            ("asked", SERVER): seen.asked["evaluate", 0, round_],
            **{("replied", c): seen.replied["train", c, round_] for c in range(3)},
        }.items():
            assert data is not None
            sender = client if kind == "replied" else -1
            sent, n_records = payload.decode_weights(
                data, client=sender, round_=round_, size=len(last)
            )
            assert np.array_equal(read[client], sent)  # type: ignore[arg-type]
            assert found.n_records(round_, client) == n_records
    assert np.array_equal(found.weights(2, SERVER), last)  # type: ignore[arg-type]
    assert np.array_equal(found.weights(1, SERVER), found.weights(2, START))  # type: ignore[arg-type]
    assert found.consensus(1) is None


def test_under_secure_aggregation_there_is_the_sum_and_nothing_of_anyone(tmp_path: Path) -> None:
    secure = {"server": {"name": "secure-aggregation"}}
    audited(tmp_path / "plain", method={"name": "edgefd"})
    audited(tmp_path / "secure", method={"name": "edgefd"}, privacy=secure)
    plain, hidden = (Recording.open(tmp_path / name / UPLOADS) for name in ("plain", "secure"))
    assert hidden.clients == ()
    assert {path.name for path in (tmp_path / "secure" / UPLOADS).iterdir()} == {
        *(f"{kind}-0000{round_}.parquet" for kind in ("answers", "sum") for round_ in (1, 2)),
        "pool.safetensors",
    }
    for round_ in (1, 2):
        assert hidden.summed(round_) == (0, 1, 2)
        wanted = np.zeros((60, 11))
        for client in range(3):
            rows = plain.answer(round_, client)
            assert rows is not None
            wanted[rows[0], :10] += np.rint(rows[1] * GRID) / GRID
            wanted[rows[0], 10] += 1
        total = hidden.sum(round_)
        assert total is not None
        assert np.array_equal(total[0], np.arange(60))
        assert np.array_equal(total[1], wanted.astype(np.float32))
        ours, theirs = hidden.consensus(round_), plain.consensus(round_)
        assert ours is not None
        assert theirs is not None
        assert all(map(np.array_equal, ours, theirs))


def test_a_text_s_samples_are_positions(tmp_path: Path) -> None:
    scenario = small(
        data={"name": "pydoc", "owners": 3, "length": 48, "test_fraction": 0.1},
        partition={"name": "natural"},
        proxy={"name": "public", "size": 10},
        canaries={"repetitions": [0, 1], "in_proxy": True},
        model={"names": ["gru"]},
        method={"name": "no-filter"},
        training={"rounds": 1},
        audit=True,
    )
    play(scenario, 3, folder=tmp_path)
    found = Recording.open(tmp_path / UPLOADS)
    assert (found.positions, found.n_samples, found.n_classes) == (48, (10 + 6) * 48, 97)
    rows = found.answer(1, 2)
    assert rows is not None
    places = scenario.world(1).canary_proxy_ids()
    assert places is not None
    assert places.shape == (6, 48)
    assert np.isin(places, rows[0]).any(1).all()  # an auditor finds each canary's answers


@pytest.mark.parametrize(
    ("method", "grid"), [("no-filter", "inline"), ("fedavg", "inline"), ("no-filter", "workers")]
)
def test_a_run_is_the_same_with_and_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, grid: str
) -> None:
    """Also where workers would have added answers up: then each is sent as it is."""
    monkeypatch.setattr(condense, "SAVING", 1)  # so that small answers would be worth it
    monkeypatch.setattr(dealer, "BLOCK_S", 60.0)  # so that blocks are big on a slow machine, too
    changes: dict[str, Any] = {
        "method": {"name": method},
        "proxy": PROXY,
        "partition": {"name": "iid", "clients": 6},
    }
    plain = simulate(small(**changes), folder=tmp_path / "plain")
    changes["grid"] = {"name": grid, "workers": 1}
    folder = tmp_path / "audited"
    assert facts(simulate(small(audit=True, **changes), folder=folder)) == facts(plain)
    found = Recording.open(folder / method / "seed-1" / UPLOADS)
    assert found.heard(1) == found.heard(2) == tuple(range(6))
    assert not (tmp_path / "plain" / method / "seed-1" / UPLOADS).exists()


def test_rows_that_exchange_nothing_record_nothing(tmp_path: Path) -> None:
    for method in ("local-only", "proxy-labels"):
        audited(tmp_path / method, method={"name": method})
        assert recorded(tmp_path / method / UPLOADS) == []


def test_without_a_folder_there_is_one_error() -> None:
    with pytest.raises(FedkdError, match=r"has no folder to keep it in; fix: give the run a"):
        simulate(small(audit=True))
    with pytest.raises(FedkdError, match="has no folder to keep it in"):
        play(small(audit=True), 3)


# --- the bound ---


def record(recorder: Recorder, round_: int, n_clients: int) -> bool:
    """A round of answers that zstd cannot make smaller: 40 kB a client."""
    recorder.start(round_, About("soft labels", 1000, 10, 1))
    rng = np.random.default_rng(round_)
    ids = np.arange(1000, dtype=np.int32)
    for client in range(n_clients):
        recorder.add("answers", client, ids, rng.random((1000, 10), np.float32))
    recorder.add("answers", SERVER, ids[:1], np.ones((1, 10), np.float32))
    return recorder.finish()


def test_a_recording_stays_within_its_bound_and_says_so_once(tmp_path: Path) -> None:
    with closing(Recorder(tmp_path, 250_000)) as recorder:
        dropped = [record(recorder, round_, n) for round_, n in ((1, 2), (2, 2), (3, 9), (4, 1))]
    assert dropped == [False, False, True, False]
    assert Recording.open(tmp_path).rounds == (1, 2)  # without gaps, so not the small one after
    assert 150_000 < n_bytes(tmp_path) <= 250_000
    again = Recorder(tmp_path, 250_000)
    again.cut(1)
    assert [record(again, 2, 3), record(again, 3, 4)] == [False, True]
    assert Recording.open(tmp_path).heard(2) == (0, 1, 2)


def test_a_footer_that_does_not_fit_is_too_much_too(tmp_path: Path) -> None:
    with closing(Recorder(tmp_path / "free", 10**6)) as recorder:
        assert not record(recorder, 1, 1)
    size = n_bytes(tmp_path / "free")
    for most, dropped in ((size, False), (size - 1, True)):
        with closing(Recorder(tmp_path / str(most), most)) as recorder:
            assert record(recorder, 1, 1) == dropped
        assert n_bytes(tmp_path / str(most)) == (0 if dropped else size)


def test_a_run_goes_on_when_its_recording_is_full(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "method": {"name": "fedavg"},
        "model": {"names": ["cnn"]},
        "training": {"rounds": 3},
    }
    result = simulate(small(audit=True, audit_mb=1, **changes), folder=tmp_path / "full")
    cell = result.cells[0]
    told = cell.of("unrecorded")
    uploads = tmp_path / "full" / "fedavg" / "seed-1" / UPLOADS
    assert len(told) == 1
    assert recorded(uploads) == list(range(1, told[0]["round"]))
    assert n_bytes(uploads) <= 10**6
    rest = [fact for fact in facts(result) if fact["event"] != "unrecorded"]
    assert rest == facts(simulate(small(**changes), folder=tmp_path / "plain"))
