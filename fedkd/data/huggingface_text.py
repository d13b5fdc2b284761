"""Text in the formats of Hugging Face's `datasets`, from the hub or a local folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from fedkd.data.dataset import Splits
from fedkd.data.huggingface import column, library, open_tables
from fedkd.data.text import Document, Reading
from fedkd.errors import FedkdError

if TYPE_CHECKING:
    from datasets import Dataset


class HuggingFaceText(Reading):
    """Text of the Hugging Face hub, of a local folder, or written by save_to_disk.

    Each row is a document; rows of fewer than two tokens are skipped. The splits "train" and
    "test" are used; without "test", `test_fraction` of "train" is held out. Topics and owners are
    the values of `topic_key` and `client_key`; without, there is one topic and no owner. Nothing
    else is fetched for a local folder, so that works offline.
    """

    name: Literal["huggingface-text"] = "huggingface-text"
    path: str
    text_key: str = "text"
    topic_key: str | None = None
    client_key: str | None = None

    def load(self) -> Splits:
        """Both sets; owners and topics are numbered in the order of their values.

        Raises: FedkdError where the data cannot be found or read, a column is missing, or a text
        is not a string.
        """
        try:
            import datasets
        except ImportError as error:
            raise FedkdError(
                f"data source huggingface-text: {error}", fix="pip install 'fedkd[huggingface]'"
            ) from None
        with library(self.path):
            tables = [table for table in open_tables(self.path) if table is not None]
            texts = [
                _texts(table, column(table, self.text_key, datasets.Value, "text_key"))
                for table in tables
            ]
            topics = _numbers(tables, self.topic_key, "topic_key")
            owners = _numbers(tables, self.client_key, "client_key")
        train, *test = (
            [Document(text, topics[i][row] or 0, owners[i][row]) for row, text in enumerate(mine)]
            for i, mine in enumerate(texts)
        )
        return self.splits(train, test[0] if test else None, self.path)


def _texts(table: Dataset, key: str) -> list[str]:
    texts = list(table[key])
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise FedkdError(
                f"text of row {row} is not a string", value=text, fix="set data.text_key"
            )
    return texts


def _numbers(
    tables: Sequence[Dataset], key: str | None, option: str
) -> list[list[int]] | list[list[None]]:
    """A column of each table as 0, 1, … in sorted order, the same number for the same value."""
    if key is None:
        return [[None] * len(table) for table in tables]
    found = [list(table[column(table, key, object, option)]) for table in tables]
    numbers = np.unique(np.concatenate(found), return_inverse=True)[1]
    cuts = np.cumsum([len(values) for values in found])[:-1]
    return [part.tolist() for part in np.split(numbers, cuts)]
