"""Server and clients in network namespaces of their own, through the proxy of `init`."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments import Deployment, consensus, rehearsal, until
from scenarios.simulate import simulate
from server.events import read

HOST = "10.77.0.1"
SPACES = {"server": "fedkd-s", "client-1": "fedkd-1", "client-2": "fedkd-2"}


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _possible() -> bool:
    if os.geteuid() or not shutil.which("ip") or not shutil.which("nginx"):
        return False
    try:
        ip("netns", "add", "fedkd-probe")
        ip("netns", "del", "fedkd-probe")
    except subprocess.CalledProcessError:
        return False
    return True


@pytest.fixture
def network() -> Iterator[None]:
    """A bridge in the server's namespace, and a cable to each client's: `to-1`, `to-2`."""
    if not _possible():
        pytest.skip("needs root, iproute2, nginx and network namespaces")
    try:
        for space in SPACES.values():
            ip("netns", "add", space)
            ip("-n", space, "link", "set", "lo", "up")
        ip("-n", "fedkd-s", "link", "add", "bridge", "type", "bridge")
        ip("-n", "fedkd-s", "addr", "add", f"{HOST}/24", "dev", "bridge")
        ip("-n", "fedkd-s", "link", "set", "bridge", "up")
        for i in (1, 2):
            space, cable = f"fedkd-{i}", f"to-{i}"
            ip(
                "link",
                "add",
                cable,
                "netns",
                "fedkd-s",
                "type",
                "veth",
                "peer",
                "eth0",
                "netns",
                space,
            )
            ip("-n", "fedkd-s", "link", "set", cable, "master", "bridge", "up")
            ip("-n", space, "addr", "add", f"10.77.0.{i + 1}/24", "dev", "eth0")
            ip("-n", space, "link", "set", "eth0", "up")
        yield
    finally:
        for space in SPACES.values():
            subprocess.run(["ip", "netns", "del", space], capture_output=True)


def _proxy(real: Deployment, folder: Path) -> subprocess.Popen[bytes]:
    rules = (real.server / "nginx.conf").read_text().replace("/etc/fedkd/server", str(real.server))
    conf = folder / "nginx.conf"
    conf.write_text(f"user root;\npid {folder}/nginx.pid;\n{rules}")
    words = ["ip", "netns", "exec", "fedkd-s", "nginx", "-c", str(conf), "-g", "daemon off;"]
    with (folder / "nginx.log").open("wb") as log:
        return subprocess.Popen(words, stdout=log, stderr=log)


@pytest.mark.slow
@pytest.mark.usefixtures("network")
def test_a_client_that_is_cut_off_for_a_round_comes_back(tmp_path: Path) -> None:
    within = {name: ("ip", "netns", "exec", space) for name, space in SPACES.items()}
    real = Deployment(tmp_path / "real", host=HOST, within=within)
    proxy = _proxy(real, tmp_path)
    try:
        real.start_all()
        whole = real.submit(rehearsal(3))
        real.wait(whole)
        simulate(rehearsal(3), folder=tmp_path / "inline")
        assert consensus(whole.cell(1)) == consensus(tmp_path / "inline/edgefd/seed-1")

        patient = rehearsal(
            12,
            training={"rounds": 12, "timeout_s": 8, "local": {"epochs": 20}},
            attendance={"gather_s": 60, "quorum": 0.5, "repeats": 3},
        )
        run = real.submit(patient)
        log = run.cell(1) / "events.jsonl"
        until(lambda: _rounds(log) >= 2, 120, "no second round")
        ip("-n", "fedkd-s", "link", "set", "to-2", "down")
        cut = _rounds(log)
        until(lambda: _rounds(log) >= cut + 2, 120, "the others do not go on")
        ip("-n", "fedkd-s", "link", "set", "to-2", "up")
        real.wait(run, 240)
    finally:
        real.end()
        proxy.terminate()
        proxy.wait(20)
    rounds = [event for event in read(log) if event["event"] == "round"]
    assert len(rounds) == 12
    missed = [event for event in read(log) if event["event"] in ("refused", "left")]
    assert {event["client"] for event in missed} == {1}
    heard = [event["client"] for event in read(log) if event["event"] == "client"]
    assert heard.count(0) == 12
    last = [event for event in read(log) if event["event"] == "client" and event["round"] == 12]
    assert {event["client"] for event in last if "accuracy" in event} == {0, 1}


def _rounds(log: Path) -> int:
    return sum(event["event"] == "round" for event in read(log))
