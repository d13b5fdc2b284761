"""A slow line, since not every kernel can make one: a relay that delays and counts bytes."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import Queue

PIECE = 16384


class Way:
    """One direction of the line, shared by all connections: so many bytes a second, so late."""

    def __init__(self, rate: float, delay_s: float) -> None:
        self._rate, self._delay_s, self._free = rate, delay_s, 0.0
        self._lock = threading.Lock()
        self.carried = 0

    def due(self, n_bytes: int) -> float:
        """When bytes that come now are through."""
        with self._lock:
            self._free = max(self._free, time.monotonic()) + n_bytes / self._rate
            self.carried += n_bytes
            return self._free + self._delay_s

    def carry(self, source: socket.socket, sink: socket.socket) -> None:
        """Everything from one end to the other, by two threads: what is under way does not wait."""
        under_way: Queue[tuple[float, bytes]] = Queue(64)

        def arrive() -> None:
            data = b" "
            while data:
                due, data = under_way.get()
                time.sleep(max(0.0, due - time.monotonic()))
                with suppress(OSError):
                    sink.sendall(data) if data else sink.shutdown(socket.SHUT_WR)

        arriving = threading.Thread(target=arrive, daemon=True)
        arriving.start()
        data = b" "
        while data:
            data = b""
            with suppress(OSError):
                data = source.recv(PIECE)
            under_way.put((self.due(len(data)), data))
        arriving.join()


@contextmanager
def slow_link(port: int, target: int, mbit_s: float, delay_s: float) -> Iterator[tuple[Way, Way]]:
    """Relay the loopback address's `port` to `target`. Yields: the ways there and back."""
    there, back = (Way(mbit_s * 1e6 / 8, delay_s) for _ in range(2))
    connections: list[threading.Thread] = []

    def connect(near: socket.socket) -> None:
        with near, suppress(OSError), socket.create_connection(("127.0.0.1", target)) as far:
            answer = threading.Thread(target=back.carry, args=(far, near), daemon=True)
            answer.start()
            there.carry(near, far)
            answer.join()

    def accept() -> None:
        with suppress(OSError):  # it is closed
            while True:
                near, _ = server.accept()
                connections.append(threading.Thread(target=connect, args=(near,), daemon=True))
                connections[-1].start()

    with socket.create_server(("127.0.0.1", port)) as server:
        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        yield there, back
        server.shutdown(socket.SHUT_RDWR)
        accepting.join(10)
    for each in connections:
        each.join(10)
