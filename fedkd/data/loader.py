"""A user's own loader, by the name of a Python function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedkd.data.arrays import assemble
from fedkd.data.dataset import Splits
from fedkd.data.npz import pair
from fedkd.dotted import called
from fedkd.errors import FedkdError
from fedkd.section import Section


class Python(Section):
    """What the function `path`, package.module:function, returns when it is called with nothing.

    That is a mapping like the arrays of an .npz file: x and y, if you like x_test and y_test, and
    client, each sample's owner. The module must be one that Python finds (PYTHONPATH). It is run,
    so a deployed client takes such data from its own settings only, never from a server.
    """

    name: Literal["python"] = "python"
    path: str
    test_fraction: float = Field(default=0.2, gt=0, lt=1)

    def load(self) -> Splits:
        """Both sets.

        Raises: FedkdError where there is no such function, or it fails, or returns something else.
        """
        returned = called(self.path, "the data's loader")
        if not isinstance(returned, Mapping):
            raise FedkdError(
                f"{self.path} returns no mapping of arrays",
                value=type(returned).__name__,
                allowed="a dict with x and y, if you like x_test, y_test and client",
            )
        arrays: dict[str, NDArray[Any]] = {key: np.asarray(each) for key, each in returned.items()}
        held_out = {"x_test", "y_test"} & arrays.keys()
        return assemble(
            pair(self.path, arrays, ""),
            pair(self.path, arrays, "_test") if held_out else None,
            owners=arrays.get("client"),
            test_fraction=self.test_fraction,
        )
