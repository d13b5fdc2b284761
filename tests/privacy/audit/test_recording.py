"""The format of recordings: what is written is read, in whole rounds, by any Parquet reader."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from fedkd import payload
from fedkd.errors import FedkdError
from privacy.audit.recording import (
    SERVER,
    START,
    About,
    Recording,
    Writer,
    cut,
    keep_pool,
    recorded,
)

ABOUT = About("soft labels", 50, 4, 1)
Answers = dict[int, tuple[np.ndarray, np.ndarray]]


def some(rng: np.random.Generator, m: int, width: int = 4) -> tuple[np.ndarray, np.ndarray]:
    ids = np.sort(rng.choice(50, m, replace=False)).astype(np.int32)
    return ids, rng.normal(size=(m, width)).astype(np.float32)


def write(folder: Path, round_: int, answers: Answers) -> None:
    writer = Writer(folder, round_, ABOUT)
    for client, rows in answers.items():
        writer.add("answers", client, *rows)
    writer.close()
    writer.commit()


def same(found: tuple[np.ndarray, np.ndarray] | None, rows: tuple[np.ndarray, np.ndarray]) -> bool:
    assert found is not None
    assert [array.dtype for array in found] == [np.int32, np.float32]
    return all(map(np.array_equal, found, rows))


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.dictionaries(st.integers(0, 6), st.integers(0, 50), max_size=4), min_size=1),
    st.integers(0, 99),
)
def test_what_is_written_is_read(rounds: list[dict[int, int]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    whole = [
        {client: some(rng, m) for client, m in {**sizes, SERVER: 30}.items()} for sizes in rounds
    ]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "uploads"
        for round_, answers in enumerate(whole, 1):
            write(folder, round_, answers)
        found = Recording.open(folder)
        assert found.rounds == tuple(range(1, len(whole) + 1))
        assert found.clients == tuple(sorted({c for sizes in rounds for c in sizes}))
        about = (found.what, found.n_samples, found.n_classes, found.positions)
        assert about == ABOUT
        for round_, answers in enumerate(whole, 1):
            assert found.heard(round_) == tuple(sorted(c for c in answers if c >= 0))
            assert same(found.consensus(round_), answers[SERVER])
            for client in range(7):
                if client in answers:
                    assert same(found.answer(round_, client), answers[client])
                else:
                    assert found.answer(round_, client) is None
        assert found.answer(len(whole) + 1, 0) is None
        assert found.sum(1) is None
        assert found.weights(1, 0) is None
        assert found.pool() is None


def test_a_client_s_rows_may_come_in_blocks(tmp_path: Path) -> None:
    ids, values = some(np.random.default_rng(0), 30)
    writer = Writer(tmp_path, 1, ABOUT)
    for start in (0, 7, 20):
        stop = {0: 7, 7: 20, 20: 30}[start]
        writer.add("answers", 3, ids[start:stop], values[start:stop])
    writer.close()
    writer.commit()
    assert same(Recording.open(tmp_path).answer(1, 3), (ids, values))


def test_any_reader_of_parquet_sees_the_columns(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    answers = {0: some(rng, 5), 2: some(rng, 3), SERVER: some(rng, 6)}
    write(tmp_path, 4, answers)
    table = parquet.read_table(tmp_path / "answers-00004.parquet")
    assert table.column_names == ["round", "client", "sample", "values"]
    assert table["round"].to_pylist() == [4] * 14
    assert table["client"].to_pylist() == [0] * 5 + [2] * 3 + [-1] * 6
    assert np.array_equal(table["sample"], np.concatenate([ids for ids, _ in answers.values()]))
    assert np.array_equal(
        np.array(table["values"].to_pylist(), np.float32),
        np.concatenate([values for _, values in answers.values()]),
    )
    group = parquet.ParquetFile(tmp_path / "answers-00004.parquet").metadata.row_group(0)
    assert {group.column(i).compression for i in range(4)} == {"ZSTD"}


def test_weights_and_sums_are_beside_the_answers(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    weights = {client: rng.normal(size=1000).astype(np.float32) for client in (START, 4, SERVER)}
    writer = Writer(tmp_path / "weights", 1, About("weights", 0, 4, 1))
    for client, vector in weights.items():
        writer.add("weights", client, np.array([17 * (client + 2)], np.int32), vector[None])
    writer.close()
    writer.commit()
    found = Recording.open(tmp_path / "weights")
    assert (found.what, found.clients) == ("weights", (4,))
    for client, vector in weights.items():
        read = found.weights(1, client)
        assert read is not None
        assert np.array_equal(read, vector)
        assert found.n_records(1, client) == 17 * (client + 2)
    assert found.answer(1, 4) is None

    total = rng.normal(size=(50, 5))
    writer = Writer(tmp_path / "sums", 1, ABOUT)
    writer.add("sum", SERVER, np.arange(50, dtype=np.int32), total)
    writer.add("answers", SERVER, *some(rng, 9))
    writer.close({5, 2})
    writer.commit()
    found = Recording.open(tmp_path / "sums")
    assert same(found.sum(1), (np.arange(50, dtype=np.int32), total.astype(np.float32)))
    assert found.summed(1) == (2, 5)
    assert found.summed(2) == ()
    assert (found.rounds, found.clients) == ((1,), ())


def test_the_pool_is_kept_as_it_was_sent(tmp_path: Path) -> None:
    x = np.arange(48, dtype=np.uint8).reshape(3, 1, 4, 4)
    pool = payload.Pool(x, np.array([0, 0, 2], np.int32))
    keep_pool(tmp_path, payload.encode_pool(pool))
    write(tmp_path, 1, {SERVER: some(np.random.default_rng(0), 3)})
    found = Recording.open(tmp_path).pool()
    assert found is not None
    assert all(map(np.array_equal, found, pool))


def test_nothing_is_seen_of_a_round_before_it_is_whole(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    write(tmp_path, 1, {0: some(rng, 5)})
    writer = Writer(tmp_path, 2, ABOUT)
    writer.add("answers", 0, *some(rng, 5))
    assert Recording.open(tmp_path).rounds == (1,)
    writer.close()
    assert Recording.open(tmp_path).rounds == (1,)
    writer.commit()
    assert Recording.open(tmp_path).rounds == (1, 2)
    assert [path.name for path in tmp_path.glob("part-*")] == []


def test_what_comes_after_a_checkpoint_is_cut(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    pool = payload.Pool(np.zeros((1, 1, 1, 1), np.uint8), np.zeros(1, np.int32))
    keep_pool(tmp_path, payload.encode_pool(pool))
    for round_ in (1, 2, 3):
        write(tmp_path, round_, {0: some(rng, 5)})
    (tmp_path / "part-answers-00003").write_bytes(b"PAR1")  # of a process that was killed
    cut(tmp_path, 2)
    assert recorded(tmp_path) == [1, 2]
    assert len(list(tmp_path.iterdir())) == 3
    cut(tmp_path, 0)
    with pytest.raises(FedkdError, match=r"no round is recorded here.*run with audit = true"):
        Recording.open(tmp_path)
    with pytest.raises(FedkdError, match="no round is recorded here"):
        Recording.open(tmp_path / "nowhere")


@pytest.mark.parametrize("damage", ["torn", "foreign"])
def test_a_file_that_cannot_be_read_is_one_error(tmp_path: Path, damage: str) -> None:
    write(tmp_path, 1, {0: some(np.random.default_rng(5), 5)})
    path = tmp_path / "answers-00001.parquet"
    if damage == "torn":
        path.write_bytes(path.read_bytes()[:-20])
    else:
        parquet.write_table(parquet.read_table(path).replace_schema_metadata(None), path)
    with pytest.raises(FedkdError, match=r"cannot read the recording .*answers-00001.*fix: delete"):
        Recording.open(tmp_path)


def test_readers_cannot_change_what_others_read(tmp_path: Path) -> None:
    write(tmp_path, 1, {0: some(np.random.default_rng(6), 5)})
    found = Recording.open(tmp_path).answer(1, 0)
    assert found is not None
    assert not any(array.flags.writeable for array in found)


def test_only_a_few_answers_are_held(tmp_path: Path) -> None:
    """Reading all of a large recording takes the memory of a few answers of it."""
    rng = np.random.default_rng(7)
    writer = Writer(tmp_path, 1, ABOUT)
    for client in range(40):
        writer.add("answers", client, np.arange(50, dtype=np.int32), rng.random((50, 4)))
    writer.close()
    writer.commit()
    found = Recording.open(tmp_path)
    first = found.answer(1, 0)
    assert found.answer(1, 0) is first
    for client in range(40):
        found.answer(1, client)
    assert found.answer(1, 0) is not first
    assert found.answer(1, 39) is found.answer(1, 39)
