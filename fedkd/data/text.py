"""Text as records of L tokens: the folder source, CPython's own help texts, and what they share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from fedkd.data.dataset import NO_LABEL, Dataset, Splits, stratified_runs
from fedkd.data.tokens import VOCABULARY, Tokens, encode
from fedkd.errors import FedkdError
from fedkd.rng import stream
from fedkd.section import Section


@dataclass(frozen=True)
class Document:
    """A text, the numbers of its topic and of its natural owner; all of a set have one, or none."""

    text: str
    topic: int
    owner: int | None


class Reading(Section):
    """How texts become records: what the rows of text sources have in common.

    A record is `length` neighbouring tokens of one document and the token after each. Records do
    not overlap. The last one of a document is padded: with token 0, whose label is NO_LABEL.
    Without a test set of its own, `test_fraction` of the records is held out, as
    `stratified_runs` does it: each topic and each document in its share, the records of a
    document in one run, so that few of them have a neighbour that is trained on. It is drawn from
    seed 0, whatever the seed of the run.
    """

    tokens: Tokens = "characters"
    length: int = Field(default=64, ge=2)
    test_fraction: float = Field(default=0.2, gt=0, lt=1)

    def splits(
        self, train: Sequence[Document], test: Sequence[Document] | None, where: str
    ) -> Splits:
        """Both sets; topics are counted up from 0 to the greatest of both.

        Raises: FedkdError, naming `where`, where there are fewer than two records.
        """
        n_topics = 1 + max((document.topic for document in [*train, *(test or [])]), default=0)
        whole, documents = self._dataset(train, n_topics, where)
        if test is not None:
            return Splits(whole, self._dataset(test, n_topics, where)[0])
        n = len(whole)
        if n < 2:
            raise FedkdError(
                f"{where}: text of a single record cannot be split into training and test",
                fix="more text, or a lower data.length",
            )
        count = min(max(round(self.test_fraction * n), 1), n - 1)
        held = stratified_runs(whole.strata, documents, count, stream(0, "data", purpose="test"))
        return Splits(whole.subset(np.setdiff1d(np.arange(n), held)), whole.subset(held))

    def _dataset(
        self, documents: Sequence[Document], n_topics: int, where: str
    ) -> tuple[Dataset, NDArray[np.int64]]:
        """The records, and the number [n] of the document that each is of."""
        pairs = [records(encode(text.text, self.tokens), self.length) for text in documents]
        sizes = [len(x) for x, _ in pairs]
        if not sum(sizes):
            raise FedkdError(f"{where}: no text of two or more tokens", fix="set data.path")
        of = np.repeat(np.arange(len(pairs)), sizes)
        topics = np.array([text.topic for text in documents], np.int64)[of]
        named = [text.owner for text in documents if text.owner is not None]
        owners = np.array(named, np.int64)[of] if named else None
        x, y = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        return Dataset(x, y, VOCABULARY[self.tokens], owners, topics, n_topics), of


def records(tokens: NDArray[np.int16], length: int) -> tuple[Tensor, Tensor]:
    """The records of one document of k tokens.

    Shapes: x int16 [n, 1, 1, length], y int64 [n, length], where n is (k - 1) / length, rounded
    up: the first token has nothing before it that could predict it, all others are labels once.

    >>> x, y = records(np.arange(6, dtype=np.int16), 4)
    >>> x.flatten(1).tolist(), y.tolist()
    ([[0, 1, 2, 3], [4, 0, 0, 0]], [[1, 2, 3, 4], [5, -100, -100, -100]])
    """
    n_labels = max(len(tokens) - 1, 0)
    n = -(-n_labels // length)
    x = np.zeros(n * length, np.int16)
    y = np.full(n * length, NO_LABEL, np.int64)
    x[:n_labels], y[:n_labels] = tokens[:n_labels], tokens[1:]
    return torch.from_numpy(x).view(n, 1, 1, length), torch.from_numpy(y).view(n, length)


class TextFolder(Reading):
    """A folder of UTF-8 files; each file, or each sub-folder, is a natural owner and a topic.

    Files directly in the folder each stand for themselves; the files of a sub-folder, however
    deep, belong together. Only files whose name matches `pattern` are read, hidden ones never.
    """

    name: Literal["text"] = "text"
    path: str
    pattern: str = "*.txt"

    def load(self) -> Splits:
        """Both sets; owners and topics are numbered in the order of their names.

        Raises: FedkdError for a missing folder, no files, a file that cannot be read, is not
        UTF-8 or holds fewer than two characters.
        """
        folder = Path(self.path).expanduser()
        if not folder.is_dir():
            raise FedkdError("no such folder of text files", value=self.path, fix="set data.path")
        entries = [self._files(entry) for entry in sorted(folder.iterdir())]
        owners = [files for files in entries if files]
        if not owners:
            raise FedkdError(
                f"no file {self.pattern} in this folder",
                value=self.path,
                fix="set data.path or data.pattern",
            )
        documents = [
            Document(_read(file), owner, owner)
            for owner, files in enumerate(owners)
            for file in files
        ]
        return self.splits(documents, None, self.path)

    def _files(self, entry: Path) -> list[Path]:
        files: Iterable[Path] = sorted(entry.rglob(self.pattern)) if entry.is_dir() else [entry]
        return [
            file
            for file in files
            if file.is_file()
            and file.match(self.pattern)
            and not any(part.startswith(".") for part in file.relative_to(entry.parent).parts)
        ]


def _read(file: Path) -> str:
    try:
        text = file.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as error:
        raise FedkdError(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise FedkdError(
            f"{file}: not UTF-8 at byte {error.start}",
            value=error.object[error.start : error.end],
            fix="convert it, e.g. iconv -f latin1 -t utf-8",
        ) from None
    if len(text) < 2:
        raise FedkdError(
            f"{file}: too short",
            value=f"{len(text)} characters",
            allowed="2 or more",
            fix="remove the file or narrow data.pattern",
        )
    return text


class Pydoc(Reading):
    """CPython's own help texts, 79 topics in 3.11: half a million characters, always there.

    The texts differ between versions of CPython. Natural owners are `owners` groups of whole
    topics, nearly equal in size.
    """

    name: Literal["pydoc"] = "pydoc"
    owners: int = Field(default=8, ge=1)

    def load(self) -> Splits:
        """Both sets; topics are numbered in the order of their names.

        Raises: FedkdError where there are more owners than topics.
        """
        from pydoc_data.topics import topics

        names = sorted(topics)
        if self.owners > len(names):
            raise FedkdError(
                "too many owners for pydoc", value=self.owners, allowed=f"1 to {len(names)} topics"
            )
        owner = groups([len(topics[name]) for name in names], self.owners)
        documents = [Document(topics[name], i, owner[i]) for i, name in enumerate(names)]
        return self.splits(documents, None, "pydoc")


def groups(sizes: Sequence[int], n: int) -> list[int]:
    """The group, 0 to n - 1, of each item: nearly equal in total size; none is empty.

    The largest goes first, always into the group that has least (Graham 1969). For n up to
    len(sizes), and sizes above 0.

    >>> groups([5, 3, 2, 2], 2)
    [0, 1, 1, 0]
    """
    totals, group = [0] * n, [0] * len(sizes)
    for item in sorted(range(len(sizes)), key=lambda item: -sizes[item]):
        group[item] = min(range(n), key=lambda i: totals[i])
        totals[group[item]] += sizes[item]
    return group
