"""The table of data sources: each row loads a training and a test set."""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Literal

import torch
from pydantic import Field

from fedkd.data.arrays import assemble
from fedkd.data.dataset import Splits
from fedkd.data.huggingface import HuggingFace
from fedkd.data.huggingface_text import HuggingFaceText
from fedkd.data.idx import Idx
from fedkd.data.loader import Python
from fedkd.data.npz import Npz
from fedkd.data.text import Pydoc, TextFolder
from fedkd.section import Section, table


class Digits(Section):
    """scikit-learn's 1,797 handwritten digits of 8 x 8 grey pixels: quick, and always there.

    `test_fraction` of them are held out, the same ones in every run (see `split_test`).
    """

    name: Literal["digits"] = "digits"
    test_fraction: float = Field(default=0.2, gt=0, lt=1)

    def load(self) -> Splits:
        """Both sets; `x` uint8 [n, 1, 8, 8], the original levels 0 to 16 scaled to 0 to 255."""
        from sklearn.datasets import load_digits

        levels, y = load_digits(return_X_y=True)
        x = torch.from_numpy(levels).mul(255 / 16).round().to(torch.uint8)
        pair = x.reshape(-1, 1, 8, 8), torch.from_numpy(y)
        return assemble(pair, None, test_fraction=self.test_fraction)


Source = Annotated[
    Digits | Idx | Npz | Python | HuggingFace | TextFolder | Pydoc | HuggingFaceText,
    Field(discriminator="name"),
]
SOURCES = table(Digits, Idx, Npz, Python, HuggingFace, TextFolder, Pydoc, HuggingFaceText)


@lru_cache(maxsize=4)
def load(source: Source) -> Splits:
    """`source.load()`, kept for the next call: files that change meanwhile are not read again.

    The tensors are shared between callers, who must not write to them.
    """
    return source.load()
