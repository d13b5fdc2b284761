"""A deployment whose clients are far away, over a line of 10 Mbit/s and 100 ms each way."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from deployments import Deployment, consensus, free_port, rehearsal
from scenarios.simulate import simulate
from slow_link import slow_link

MBIT_S, DELAY_S = 10.0, 0.1


def test_the_line_is_as_slow_as_it_says() -> None:
    """The oracle of the relay: 500 kB take their size over the rate, and the delay."""
    target, port = free_port(), free_port()
    data = bytes(500_000)
    with (
        socket.create_server(("127.0.0.1", target)) as far,
        slow_link(port, target, MBIT_S, DELAY_S) as (there, back),
    ):
        start = time.monotonic()
        with socket.create_connection(("127.0.0.1", port)) as near:
            near.sendall(data)
            end, _ = far.accept()
            with end:
                got = 0
                while got < len(data):
                    got += len(end.recv(65536))
                took = time.monotonic() - start
                end.sendall(b"thanks")
                assert near.recv(6) == b"thanks"
    assert took >= 8 * len(data) / (MBIT_S * 1e6) + DELAY_S
    assert (there.carried, back.carried) == (len(data), 6)


@pytest.mark.slow
def test_a_run_over_a_slow_line_has_the_same_consensus(tmp_path: Path) -> None:
    real = Deployment(tmp_path / "real")
    port = free_port()
    for name in real.names:
        settings = real.folder / "clients" / name / "client.toml"
        text = settings.read_text()
        assert f"localhost:{real.port}" in text
        settings.write_text(text.replace(f"localhost:{real.port}", f"localhost:{port}"))
    try:
        with slow_link(port, real.port, MBIT_S, DELAY_S) as (there, back):
            real.start_all()
            start = time.monotonic()
            run = real.submit(rehearsal(3))
            real.wait(run, 300)
            print(
                f"{time.monotonic() - start:.1f} s, bytes {there.carried} up, {back.carried} down"
            )
            real.end()
    finally:
        real.end()
    simulate(rehearsal(3), folder=tmp_path / "inline")
    assert consensus(run.cell(1)) == consensus(tmp_path / "inline/edgefd/seed-1")
    assert min(there.carried, back.carried) > 100_000
