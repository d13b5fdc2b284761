"""One question over HTTPS, trusting one certificate authority."""

from __future__ import annotations

import ssl
from pathlib import Path

import httpx

from clients.fleet import no_line

TIMEOUT_S = 5.0


def ask(ca: Path, address: str, path: str, protobuf: bytes | None = None) -> httpx.Response:
    """The answer to GET, or to POST of a protobuf, whatever its status. Args: address: HOST:PORT.

    Raises: FedkdError as a client would say it: Unreachable, or why the server is not trusted.
    """
    context = ssl.create_default_context(cafile=str(ca))
    kind = "application/protobuf"
    try:
        with httpx.Client(verify=context, timeout=TIMEOUT_S) as client:
            if protobuf is None:
                return client.get(f"https://{address}{path}")
            headers = {"content-type": kind, "accept": kind}
            return client.post(f"https://{address}{path}", content=protobuf, headers=headers)
    except (httpx.TransportError, OSError) as error:
        raise no_line(error, address) from None
