"""A user's own function by its dotted name: for data and models that no table has."""

from __future__ import annotations

import importlib
from typing import Any

from fedkd.errors import FedkdError


def called(name: str, what: str, *args: object) -> Any:
    """What the function `package.module:function` returns for the arguments. It is run.

    Args: what: for errors, what the function is.
    Raises: FedkdError where there is no such function, or it fails.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:  # no name at all
        raise FedkdError(
            f"{what} is not there: {error}",
            value=name,
            allowed="package.module:function, which Python finds",
            fix="set PYTHONPATH to the folder that holds it",
        ) from None
    try:
        return found(*args)
    except Exception as error:
        raise FedkdError(f"{what} failed: {type(error).__name__}: {error}", value=name) from error
