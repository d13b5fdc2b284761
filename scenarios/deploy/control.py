"""The list of nodes at a SuperLink, kept by its Control API: in this process, not by `flwr`.

Flower's command takes two seconds a node, which for 200 clients would be minutes of every start.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, UnregisterNodeRequest
from flwr.supercore.constant import NodeStatus
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import FlowerError
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, uses_nist_ec_curve

from clients.fleet import reached
from fedkd.errors import FedkdError
from scenarios.deploy.folder import ServerSettings

T = TypeVar("T")


class Listed(NamedTuple):
    """A node that the SuperLink knows."""

    id: int
    state: str
    """registered, online or offline; unregistered is for ever: its key is never taken again."""
    key: bytes

    @property
    def allowed(self) -> bool:
        """Whether it may take part."""
        return self.state != NodeStatus.UNREGISTERED


class Control:
    """Every method raises FedkdError where the SuperLink does not answer or refuses."""

    def __init__(self, address: str, ca: bytes) -> None:
        about = RuntimeVersionHttpInterceptor(component_name="flwr CLI")
        self._address = address
        self._client = ControlHttpClient.from_server_address(
            address, False, ca, interceptors=[about]
        )

    @classmethod
    def of(cls, folder: Path, settings: ServerSettings) -> Control:
        """That of a server, from its own machine; to be closed."""
        return cls(settings.link_address, (folder / "ca.crt").read_bytes())

    def nodes(self) -> list[Listed]:
        """All that were ever registered."""
        found = self._call(lambda: self._client.ListNodes(ListNodesRequest()))
        return [Listed(one.node_id, one.status, one.public_key) for one in found.nodes_info]

    def register(self, key: bytes) -> int:
        """Allow a node. Returns: its id."""
        request = RegisterNodeRequest(public_key=key)
        return int(self._call(lambda: self._client.RegisterNode(request)).node_id)

    def unregister(self, node: int) -> None:
        """Allow a node no longer."""
        request = UnregisterNodeRequest(node_id=node)
        self._call(lambda: self._client.UnregisterNode(request))

    def close(self) -> None:
        """Close the line."""
        self._client.close()

    def _call(self, call: Callable[[], T]) -> T:
        return reached(call, self._address, _refusal)


def _refusal(error: httpx.HTTPStatusError, address: str) -> FedkdError:
    found = FlowerError.from_json(error.response.text)
    said = found.message if found else error.response.text[:200]
    return FedkdError(f"the SuperLink refused: {said}", value=address)


def node_key(path: Path) -> bytes:
    """A node's public key as Flower knows it, from a file in OpenSSH's format.

    Raises: FedkdError for a file that holds none.
    """
    try:
        key = load_ssh_public_key(path.read_bytes())
        if not isinstance(key, ec.EllipticCurvePublicKey) or not uses_nist_ec_curve(key):
            raise ValueError("not a key of a NIST curve")
    except (OSError, ValueError) as error:
        raise FedkdError(
            f"no node's public key can be read there: {error}", value=str(path)
        ) from None
    return public_key_to_bytes(key)
