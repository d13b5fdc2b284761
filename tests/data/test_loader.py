"""A user's own loader: called by its name, and what is wrong with it said in a line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fedkd.data.loader import Python
from fedkd.data.npz import Npz
from fedkd.data.sources import load
from fedkd.errors import FedkdError


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_records.py").write_text(
        "import numpy as np\n"
        "def mine():\n"
        "    x = np.arange(6 * 20, dtype=np.uint8).reshape(6, 4, 5)\n"
        "    return {'x': x, 'y': [0, 1, 2, 0, 1, 2], 'client': [0, 0, 0, 1, 1, 1]}\n"
        "def broken():\n"
        "    raise ValueError('no disk')\n"
        "def pair():\n"
        "    return 1, 2\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("own_module")
def test_a_user_s_own_loader_equals_the_same_arrays_in_a_file(tmp_path: Path) -> None:
    import my_records

    np.savez(tmp_path / "same.npz", **my_records.mine())
    own = load(Python(path="my_records:mine", test_fraction=0.4))
    same = load(Npz(path=str(tmp_path / "same.npz"), test_fraction=0.4))
    for one, other in ((own.train, same.train), (own.test, same.test)):
        torch.testing.assert_close(one.x, other.x, rtol=0, atol=0)
        torch.testing.assert_close(one.y, other.y, rtol=0, atol=0)
    assert own.train.client_ids is not None
    np.testing.assert_array_equal(own.train.client_ids, same.train.client_ids)


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("", "is not there: Empty module name"),
        ("no_such_module:f", "is not there: No module named"),
        ("my_records:other", "is not there: module 'my_records' has no attribute 'other'"),
        ("my_records:broken", "failed: ValueError: no disk"),
        ("my_records:pair", "returns no mapping of arrays; got 'tuple'"),
    ],
)
def test_a_loader_that_is_none_is_said_in_a_line(path: str, why: str) -> None:
    with pytest.raises(FedkdError, match=why) as caught:
        Python(path=path).load()
    assert "\n" not in str(caught.value)
