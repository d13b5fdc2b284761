"""Text: every token is a label once, nothing is lost, owners and topics are what they should be."""

from __future__ import annotations

import string
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedkd.data.dataset import NO_LABEL, Dataset, Splits, as_input, stratified_runs
from fedkd.data.huggingface_text import HuggingFaceText
from fedkd.data.partition import Natural
from fedkd.data.proxy import Foreign
from fedkd.data.sources import Digits, load
from fedkd.data.text import Document, Pydoc, Reading, TextFolder, groups, records
from fedkd.data.tokens import UNKNOWN, VOCABULARY, Tokens, decode, encode
from fedkd.errors import FedkdError

# --- tokens ----------------------------------------------------------------------------------

PRINTABLE = "\n" + "".join(sorted(set(string.printable) - set("\t\n\r\x0b\x0c")))


@given(st.text(PRINTABLE))
def test_printable_ascii_and_newline_survive(text: str) -> None:
    tokens = encode(text, "characters")
    assert len(tokens) == len(text)
    assert UNKNOWN not in tokens
    assert decode(tokens, "characters") == text


@given(st.text())
def test_any_text_has_tokens_in_the_vocabulary(text: str) -> None:
    tokens = encode(text, "characters")
    assert tokens.dtype == np.int16
    assert len(tokens) == len(text)
    assert ((tokens >= 0) & (tokens < VOCABULARY["characters"])).all()
    known = [character in PRINTABLE for character in text]
    assert (tokens != UNKNOWN).tolist() == known


@given(st.text())
def test_bytes_are_utf_8(text: str) -> None:
    tokens = encode(text, "bytes")
    assert tokens.tolist() == list(text.encode())
    assert decode(tokens, "bytes") == text


def test_each_known_character_has_its_own_token() -> None:
    assert VOCABULARY["characters"] == len(PRINTABLE) + 1 == 97
    assert sorted(encode(PRINTABLE, "characters").tolist()) == list(range(1, 97))


# --- records ---------------------------------------------------------------------------------


@given(st.integers(0, 60), st.integers(2, 9))
def test_every_token_but_the_first_is_a_label_once(k: int, length: int) -> None:
    tokens = np.arange(1, k + 1, dtype=np.int16)
    x, y = records(tokens, length)
    assert x.dtype == torch.int16
    assert y.dtype == torch.int64
    assert x.shape == (len(y), 1, 1, length)
    real = y.flatten() != NO_LABEL
    assert y.flatten()[real].tolist() == list(range(2, k + 1))
    assert torch.equal(y.flatten()[real], x.flatten()[real] + 1)  # the next token, at its place
    assert x.flatten()[~real].tolist() == [0] * int((~real).sum())
    assert all(row.any() for row in real.view(-1, length))  # no record is padding alone
    assert not (real[1:] & ~real[:-1]).any()  # padding comes last


# --- the test set ----------------------------------------------------------------------------


@st.composite
def corpora(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """(topic, document) of each record: up to twelve documents in up to four topics."""
    sizes = draw(st.lists(st.integers(1, 20), min_size=1, max_size=12))
    topics = draw(st.lists(st.integers(0, 3), min_size=len(sizes), max_size=len(sizes)))
    names = np.cumsum(draw(st.lists(st.integers(1, 3), min_size=len(sizes), max_size=len(sizes))))
    return np.repeat(topics, sizes), np.repeat(names, sizes)


@settings(deadline=None)
@given(corpora(), st.floats(0, 1), st.integers(0, 99))
def test_runs_are_runs_and_stratified(
    corpus: tuple[np.ndarray, np.ndarray], share: float, seed: int
) -> None:
    topics, documents = corpus
    count = round(share * len(topics))
    ids = stratified_runs(topics, documents, count, np.random.default_rng(seed))
    assert ids.dtype == np.int64
    assert len(np.unique(ids)) == len(ids) == count
    for by in (topics, documents):
        exact = np.bincount(by) * count / len(by)
        assert (np.abs(np.bincount(by[ids], minlength=len(exact)) - exact) <= 1).all()
    for document in np.unique(documents):
        assert (np.diff(ids[documents[ids] == document]) == 1).all()


def test_a_run_starts_anywhere() -> None:
    one = np.zeros(5, np.int64)
    starts = {stratified_runs(one, one, 2, np.random.default_rng(s))[0] for s in range(50)}
    assert starts == {0, 1, 2, 3}


# --- Dataset ---------------------------------------------------------------------------------


def small(**changes: Any) -> Dataset:
    fields: dict[str, Any] = {
        "x": torch.zeros(3, 1, 1, 2, dtype=torch.int16),
        "y": torch.tensor([[0, 1], [1, NO_LABEL], [1, 1]]),
        "n_classes": 2,
        "topics": np.array([0, 4, 0]),
        "n_topics": 5,
    }
    return Dataset(**(fields | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y": torch.tensor([[0, 1], [1, 2], [1, 1]])}, "label of sample 1 .* got 2; .* 0 to 1"),
        ({"y": torch.tensor([[0, 1], [1, -1], [1, 1]])}, "label of sample 1 .* got -1"),
        ({"y": torch.tensor([0, 1, 1])}, "one next token for each token of 3"),
        ({"x": torch.full((3, 1, 1, 2), 2, dtype=torch.int16)}, "token of sample 0 .* got 2"),
        ({"x": torch.full((3, 1, 1, 2), -1, dtype=torch.int16)}, "token of sample 0 .* got -1"),
        ({"x": torch.zeros(3, 1, 2, 2, dtype=torch.int16)}, r"tokens must be \[n, 1, 1, L\]"),
        ({"topics": None}, "text needs topics"),
        ({"topics": np.array([0, 5, 0])}, "topic of sample 1 .* got 5; allowed: 0 to 4"),
        ({"topics": np.array([0, 1])}, "one topic for each of 3"),
    ],
)
def test_a_wrong_text_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FedkdError, match=message):
        small(**changes)


def test_strata_are_topics_for_text_and_labels_for_images() -> None:
    text = small(client_ids=np.array([7, 8, 9]))
    assert (text.is_text, text.n_strata, text.strata.tolist()) == (True, 5, [0, 4, 0])
    part = text.subset(np.array([1]))
    assert (part.strata.tolist(), part.n_strata) == ([4], 5)
    assert part.client_ids is not None
    assert part.client_ids.tolist() == [8]
    images = load(Digits()).train
    assert (images.is_text, images.n_strata) == (False, 10)
    assert np.array_equal(images.strata, images.y.numpy())
    with pytest.raises(FedkdError, match="classes or topics"):
        Splits(text, small(n_topics=6))


def test_tokens_go_in_as_int64() -> None:
    tokens = torch.tensor([3, 96], dtype=torch.int16)
    assert as_input(tokens).dtype == torch.int64
    assert as_input(tokens).tolist() == [3, 96]


# --- a folder --------------------------------------------------------------------------------


def words(data: Dataset, tokens: Tokens = "characters") -> list[str]:
    """The text of each record's labels."""
    return [decode(row[row != NO_LABEL].numpy().astype(np.int16), tokens) for row in data.y]


def test_files_and_sub_folders_are_owners(tmp_path: Path) -> None:
    (tmp_path / "zoe" / "deep").mkdir(parents=True)
    (tmp_path / "zoe" / "one.txt").write_text("z" * 41)
    (tmp_path / "zoe" / "deep" / "two.txt").write_text("Z" * 41)
    (tmp_path / "ann.txt").write_bytes(b"\xef\xbb\xbf" + b"a\r\n" * 41)
    (tmp_path / "bob.txt").write_text("ü" * 21, encoding="utf-8")
    for ignored in ("notes.md", ".hidden.txt", "zoe/.hidden.txt"):
        (tmp_path / ignored).write_text("?" * 99)
    (tmp_path / "empty").mkdir()
    splits = TextFolder(path=str(tmp_path), length=4, test_fraction=0.25).load()
    seen: dict[int, str] = {}
    for part in (splits.train, splits.test):
        assert part.client_ids is not None
        assert np.array_equal(part.client_ids, part.strata)
        for owner, text in zip(part.client_ids.tolist(), words(part), strict=True):
            seen[owner] = seen.get(owner, "") + text
    assert {owner: "".join(sorted(text)) for owner, text in seen.items()} == {
        0: "\n" * 41 + "a" * 40,
        1: "\N{REPLACEMENT CHARACTER}" * 20,
        2: "Z" * 40 + "z" * 40,
    }
    assert len(splits.test) == 12  # a quarter of 21 + 5 + 20 records, to the nearest
    raw = TextFolder(path=str(tmp_path), tokens="bytes").load()
    assert raw.train.n_classes == 256
    md = TextFolder(path=str(tmp_path), pattern="*.md").load()
    assert md.train.n_strata == 1


def test_folders_that_cannot_serve(tmp_path: Path) -> None:
    source = TextFolder(path=str(tmp_path))
    with pytest.raises(FedkdError, match=r"no file \*.txt in this folder"):
        source.load()
    with pytest.raises(FedkdError, match="no such folder"):
        TextFolder(path=str(tmp_path / "none")).load()
    file = tmp_path / "a.txt"
    for raw, message in (
        (b"good \xe9vil", r"a\.txt: not UTF-8 at byte 5; got b'\\xe9'; fix: convert"),
        (b"", r"a\.txt: too short; got '0 characters'"),
        (b"x", r"a\.txt: too short; got '1 characters'"),
        (b"xy", "text of a single record"),
    ):
        file.write_bytes(raw)
        with pytest.raises(FedkdError, match=message):
            source.load()


def test_no_text_at_all_is_named() -> None:
    with pytest.raises(FedkdError, match="here: no text of two or more tokens"):
        Reading().splits([Document("x", 0, None)], None, "here")
    with pytest.raises(FedkdError, match="here: no text"):
        Reading().splits([], None, "here")


# --- pydoc -----------------------------------------------------------------------------------


def test_pydoc_is_the_help_of_this_python() -> None:
    from pydoc_data.topics import topics

    splits = load(Pydoc())
    train, test = splits.train, splits.test
    assert train.n_strata == len(topics)
    assert len(test) == round(0.2 * (len(train) + len(test)))
    together: dict[int, int] = {}
    for part in (train, test):
        for topic, record in zip(part.strata.tolist(), words(part), strict=True):
            together[topic] = together.get(topic, 0) + len(record)
    assert together == {i: len(topics[name]) - 1 for i, name in enumerate(sorted(topics))}
    assert train.client_ids is not None
    tokens = np.bincount(train.client_ids, weights=(train.y != NO_LABEL).sum(1).numpy())
    assert len(tokens) == 8
    assert tokens.max() / tokens.min() < 1.1
    for topic in range(train.n_strata):  # a topic has one owner
        assert len(np.unique(train.client_ids[train.strata == topic])) <= 1


def test_pydoc_clients_by_topic_groups() -> None:
    train = load(Pydoc(owners=3, length=32)).train
    parts = Natural().split(train.strata, train.client_ids, 1)
    held = [set(train.strata[part].tolist()) for part in parts]
    assert len(held) == 3
    assert sum(map(len, held)) == len(set.union(*held))  # no topic twice
    with pytest.raises(FedkdError, match="too many owners for pydoc; got 9999"):
        Pydoc(owners=9999).load()


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.data())
def test_groups_are_balanced(sizes: list[int], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(sizes)))
    group = groups(sizes, n)
    totals = np.bincount(group, weights=sizes, minlength=n)
    assert (totals > 0).all()
    # Whoever has most had least before its last item came, which was its smallest.
    last = min(size for size, i in zip(sizes, group, strict=True) if i == totals.argmax())
    assert totals.max() - last <= totals.min()


# --- Hugging Face ----------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The library `datasets`, offline, with its cache in the test's own folder."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return datasets


def test_hugging_face_text(hub: Any, tmp_path: Path) -> None:
    rows = {
        "text": ["aaaa", "", "bbbbbbb", "cc"],
        "kind": ["x", "x", "w", "y"],
        "who": [30, 10, 20, 10],
    }
    train = hub.Dataset.from_dict(rows)
    hub.DatasetDict(train=train, test=train.select([3])).save_to_disk(tmp_path / "set")
    source = HuggingFaceText(
        path=str(tmp_path / "set"), topic_key="kind", client_key="who", length=3
    )
    splits = source.load()
    assert words(splits.train) == ["aaa", "bbb", "bbb", "c"]
    assert splits.train.strata.tolist() == [1, 0, 0, 2]
    assert splits.train.client_ids is not None
    assert splits.train.client_ids.tolist() == [2, 1, 1, 0]
    assert words(splits.test) == ["c"]
    assert splits.test.strata.tolist() == [2]
    assert splits.test.n_strata == splits.train.n_strata == 3
    plain = HuggingFaceText(path=str(tmp_path / "set")).load()
    assert plain.train.client_ids is None
    assert plain.train.n_strata == 1


def test_hugging_face_folder_of_text_files(hub: Any, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.txt").write_text("one line\nanother line\n" * 10)
    splits = HuggingFaceText(path=str(folder), length=4).load()
    assert sum(map(len, words(splits.train) + words(splits.test))) == 10 * (7 + 11)


def test_hugging_face_text_refusals(
    hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "set")
    rows = {"text": ["good", "good"], "n": [1, 2], "torn": ["good", None]}
    hub.Dataset.from_dict(rows).save_to_disk(path)
    with pytest.raises(FedkdError, match="text of row 1 is not a string"):
        HuggingFaceText(path=path, text_key="torn").load()
    with pytest.raises(FedkdError, match="text of row 0 is not a string; got 1"):
        HuggingFaceText(path=path, text_key="n").load()
    with pytest.raises(FedkdError, match="which column is the topic; got 'no'; allowed: text, n"):
        HuggingFaceText(path=path, topic_key="no").load()
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(FedkdError, match=r"pip install 'fedkd\[huggingface\]'"):
        HuggingFaceText(path=path).load()


# --- as a foreign proxy ----------------------------------------------------------------------


def test_foreign_text_must_be_of_the_same_kind() -> None:
    text = Foreign(source=Pydoc(length=16), size=20)
    got = text.images((1, 1, 16), 0, vocabulary=97)
    assert got.shape == (20, 1, 1, 16)
    assert got.dtype == torch.int16
    with pytest.raises(FedkdError, match="got 'text of 97 symbols'; allowed: images"):
        text.images((1, 1, 16), 0)
    with pytest.raises(FedkdError, match="got 'images'; allowed: text of 97"):
        Foreign(source=Digits()).images((1, 1, 64), 0, vocabulary=97)
    with pytest.raises(FedkdError, match="got 'text of 97 symbols'; allowed: text of 256"):
        text.images((1, 1, 16), 0, vocabulary=256)
    with pytest.raises(FedkdError, match="cannot be made to fit"):
        text.images((1, 1, 64), 0, vocabulary=97)
