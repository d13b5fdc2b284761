"""The line to a server's SuperLink: join, pull a message, push the reply, in one process.

Flower's own SuperNode starts an interpreter for each message and sleeps for seconds between two
looks, so a round trip takes six seconds and more. This speaks the same protocol through Flower's
own client and serialisation, and keeps the ClientApp loaded. It runs no code that a server sends.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.error import FlowerError
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import pull_objects, push_objects
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fedkd.errors import FedkdError

HEARTBEAT_S = 10
"""The shortest that a SuperLink takes; after two of them without one, a node counts as gone."""
BACK_OFF_S = 0.02
AGAIN_S, PATIENCE_S = 0.5, 20.0
"""Between two tries at the rest of a message, and how long it is tried."""
CLOCK_S = 15
"""How far a client's clock may be off; a SuperLink refuses signatures much older."""
T = TypeVar("T")


class Unreachable(FedkdError):
    """The server does not answer now; it may later."""


class NotAccepted(FedkdError):
    """The server answers, and does not accept this client."""


class NotTrusted(FedkdError):
    """The server's certificate is not one that this client accepts."""


class Gone(Exception):
    """What was to be pulled or pushed belongs to a run that is over."""


class Fleet:
    """One node's line to a SuperLink; its methods may be called from two threads.

    Every method raises Unreachable, NotAccepted, or FedkdError for a server that cannot be trusted.
    """

    def __init__(
        self, address: str, ca: bytes, key: ec.EllipticCurvePrivateKey, heartbeat_s: int
    ) -> None:
        self.address = address
        self._public = public_key_to_bytes(key.public_key())
        self._heartbeat_s = heartbeat_s
        self._client = FleetHttpClient.from_server_address(
            address,
            False,
            ca,
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperNode"),
                NodeAuthHttpInterceptor(key, key.public_key()),
            ],
        )
        self.node = 0
        """The node id, once the line is up."""

    def join(self, known: int = 0) -> int:
        """Say that this node is there. Returns: its id.

        Args: known: the id it had before. A SuperLink refuses to activate a node that it still
            believes to be there, as after kill -9; a heartbeat under the old id says the same.
        """
        try:
            request = ActivateNodeRequest(
                public_key=self._public, heartbeat_interval=self._heartbeat_s
            )
            self.node = self._call(lambda: self._client.ActivateNode(request)).node_id
        except NotAccepted:
            if not known:
                raise
            self.node = known
            self.beat()
        return self.node

    def beat(self) -> None:
        """A heartbeat."""
        request = SendNodeHeartbeatRequest(
            node=Node(node_id=self.node), heartbeat_interval=self._heartbeat_s
        )
        if not self._call(lambda: self._client.SendNodeHeartbeat(request)).success:
            raise NotAccepted("the server does not know this node any more", value=self.node)

    def pull(self) -> tuple[str, int, dict[str, bytes]] | None:
        """The next message, if there is one: its id, its run, its objects' bytes."""
        node = Node(node_id=self.node)
        found = self._call(lambda: self._client.PullMessages(PullMessagesRequest(node=node)))
        if not found.messages_list:
            return None
        tree, run = found.message_object_trees[0], found.messages_list[0].metadata.run_id
        ids = list(dict.fromkeys(part.object_id for part in iterate_object_tree(tree)))
        pull = make_pull_object_fn_protobuf(self._client.PullObject, node, run)
        deadline = time.monotonic() + PATIENCE_S
        while True:  # the server has given the message out, and will not do so again
            try:
                objects = self._call(lambda: pull_objects(ids, pull, initial_backoff=BACK_OFF_S))
                return tree.object_id, run, objects
            except Unreachable:
                if time.monotonic() > deadline:
                    raise
                time.sleep(AGAIN_S)

    def confirm(self, run: int, id_: str) -> None:
        """Say that a message was received and kept."""
        node = Node(node_id=self.node)
        confirm = make_confirm_message_received_fn_protobuf(
            self._client.ConfirmMessageReceived, node, run
        )
        self._call(lambda: confirm(id_))

    def push(self, reply: Message, seconds: float) -> None:
        """Send a reply. Args: seconds: that the app worked for it. Raises: Gone."""
        node, run = Node(node_id=self.node), reply.metadata.run_id
        reply.metadata.__dict__["_message_id"] = reply.object_id
        with no_object_id_recompute():
            request = PushMessagesRequest(
                node=node,
                messages_list=[message_to_proto(_bare(reply))],
                message_object_trees=[get_object_tree(reply)],
                clientapp_runtime_list=[seconds],
            )
            taken = self._call(lambda: self._client.PushMessages(request))
            push = make_push_object_fn_protobuf(
                self._client.PushObject, node, run, taken.session_id
            )
            objects = get_all_nested_objects(reply)
            wanted = set(taken.objects_to_push)
            self._call(lambda: push_objects(objects, push, object_ids_to_push=wanted))

    def leave(self) -> None:
        """Say goodbye, so that the server need not wait for heartbeats; whatever it answers."""
        with suppress(httpx.HTTPError, RuntimeError):
            self._client.DeactivateNode(DeactivateNodeRequest(node_id=self.node))

    def close(self) -> None:
        """Hang up."""
        self._client.close()

    def _call(self, call: Callable[[], T]) -> T:
        return reached(call, self.address, _refusal)


def reached(
    call: Callable[[], T], address: str, refusal: Callable[[httpx.HTTPStatusError, str], Exception]
) -> T:
    """What a call of a server gives.

    Args: refusal: what to raise for a status that says no. Raises: that, or what `no_line` says.
    """
    try:
        return call()
    except httpx.HTTPStatusError as error:
        raise refusal(error, address) from None
    except (httpx.TransportError, OSError) as error:
        raise no_line(error, address) from None


def clock_off(answer: httpx.Response) -> float | None:
    """Seconds by which this machine's clock is ahead of the server's; None if that does not say."""
    if "date" not in answer.headers:
        return None
    theirs = parsedate_to_datetime(answer.headers["date"])
    return (datetime.now(UTC) - theirs).total_seconds()


def _bare(message: Message) -> Message:
    return remove_content_from_message(message) if message.has_content() else message


def _refusal(error: httpx.HTTPStatusError, address: str) -> Exception:
    status, found = error.response.status_code, FlowerError.from_json(error.response.text)
    if status >= 500:  # a proxy without a server, or a SuperLink whose database is busy
        return Unreachable("the server is not ready", value=f"{address}: HTTP {status}")
    if found is not None and found.code == 2007:
        return Gone()
    off = clock_off(error.response)
    if off is not None and abs(off) > CLOCK_S:
        return FedkdError(
            "this machine's clock and the server's differ, so its signatures are refused",
            value=f"{off:+.0f} s",
            allowed=f"{CLOCK_S} s",
            fix="set the clock (timedatectl set-ntp true)",
        )
    if status in (401, 403) or (found is not None and found.code in (2001, 2004)):
        return NotAccepted(
            "the server does not accept this client's key: it is unknown there, was revoked, or "
            "another process uses it",
            value=address,
            fix="ask the server's operator to look at: fedkd deploy status",
        )
    if status == 404:
        return FedkdError("no SuperLink answers there", value=address, fix="look at the address")
    detail = found.message if found else error.response.text[:200]
    return FedkdError(f"the server refused a call: {detail}", value=f"HTTP {status}")


def no_line(error: Exception, address: str) -> FedkdError:
    """Why there is no line: Unreachable for now, or a server that cannot be trusted."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return NotTrusted(
                f"the server's certificate is not accepted: {cause.verify_message}",
                value=address,
                fix="fedkd deploy rotate on the server's side if it has expired; else compare "
                "ca.crt and the address in client.toml with the server's",
            )
        if isinstance(cause, ssl.SSLEOFError):  # what is before a server that is down hangs up
            return Unreachable("the server hangs up before a word is said", value=address)
        if isinstance(cause, ssl.SSLError):
            return FedkdError(
                f"no TLS with the server: {cause.reason}",
                value=address,
                fix="the server there speaks plain text or is another one; look at the address",
            )
    return Unreachable("the server cannot be reached", value=f"{address}: {error}")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
