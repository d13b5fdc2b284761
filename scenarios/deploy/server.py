"""`fedkd deploy server`: keeps Flower's processes up, the list of keys true, and runs going.

Everything is in files. Who submits a run makes its folder; who revokes a client moves its key; this
process sees it within seconds, and is the only one that talks to the SuperLink's Control API.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedkd.errors import FedkdError
from fedkd.files import is_locked, locked, write
from scenarios.deploy.asking import ask
from scenarios.deploy.children import Child, environment
from scenarios.deploy.control import Control, node_key
from scenarios.deploy.folder import ServerSettings, nodes, nodes_file, runs, server_settings
from scenarios.deploy.runs import Run, queue

LOOK_S = 0.5
HEALTHY_S = 60.0
RESTART_S = 2.0
START_S = 60.0
"""How long a run may take from its submission until its ServerApp works."""
STARTS = 5
"""How often a run is started that gets no further before it is given up."""
STUB = '''\
"""What the SuperLink is given: the installed fedkd, by name."""

from clients import app as clients_app
from server import app as server_app

server = server_app.app
client = clients_app.app
'''
PROJECT = """\
[project]
name = "fedkd-deployed"
version = "1.0.0"
dependencies = []
license = { text = "none" }

[tool.flwr.app]
publisher = "fedkd"
flwr-version-target = "1.41.0"

[tool.flwr.app.components]
serverapp = "fedkd_deployed:server"
clientapp = "fedkd_deployed:client"

[tool.flwr.app.config]
folder = ""
nodes = ""
"""
Say = Callable[[str], None]


def serve(folder: Path, say: Say, stop: threading.Event) -> None:
    """Serve a deployment until `stop` is set.

    Raises: FedkdError for a folder that cannot be used, or a SuperLink that does not come up.
    """
    folder = folder.resolve()
    settings = server_settings(folder)
    with locked(folder / "state"):
        watch = Watch(folder, settings, say)
        try:
            watch.begin()
            say(f"serving {settings.name} at {settings.hosts[0]}:{settings.port}; Ctrl-C stops it")
            while not stop.wait(LOOK_S):
                watch.look()
        finally:
            watch.end()


@dataclass
class Watch:
    """What the server process sees and does, look by look."""

    folder: Path
    settings: ServerSettings
    say: Say
    children: list[Child] = field(default_factory=list)
    submitted: dict[str, float] = field(default_factory=dict)
    starts: dict[str, list[int]] = field(default_factory=dict)
    """Of each run, the rounds that were done when it was started."""
    trouble: str = ""
    """What was said last of the keys."""

    def begin(self) -> None:
        """Bring the processes up and register the keys."""
        state = self.folder / "state"
        runs(self.folder).mkdir(parents=True, exist_ok=True)
        env = environment(self.folder)
        home = Path(env["FLWR_HOME"])
        home.mkdir(parents=True, exist_ok=True)
        (home / "config.toml").write_text(
            '[superlink]\ndefault = "here"\n[superlink.here]\n'
            f'address = "{self.settings.link_address}"\n'
            f'root-certificates = "{self.folder / "ca.crt"}"\n'
        )
        app = state / "app"
        app.mkdir(exist_ok=True)
        (app / "pyproject.toml").write_text(PROJECT)
        (app / "fedkd_deployed.py").write_text(STUB)
        secret = ["--superexec-auth-secret-file", str(self.folder / "executor.secret")]
        link = [
            *("flower-superlink", "--host", "127.0.0.1", "--port", str(self.settings.link_port)),
            *("--ssl-ca-certfile", str(self.folder / "ca.crt")),
            *("--ssl-certfile", str(self.folder / "server.pem")),
            *("--ssl-keyfile", str(self.folder / "server.key")),
            *("--enable-supernode-auth", "--isolation", "process", *secret),
            *("--database", str(state / "link.db"), "--disable-runtime-dependency-installation"),
        ]
        execute = [
            *("flower-superexec", "--runtime-api-address", self.settings.link_address),
            *("--root-certificates", str(self.folder / "ca.crt"), *secret),
            *("--parent-pid", str(os.getpid())),
        ]
        self.children = [
            Child("superlink", link, state / "superlink.log", env),
            Child("superexec", execute, state / "superexec.log", env),
        ]
        self.children[0].start()
        self._wait_healthy()
        self._keys()
        self.children[1].start()

    def look(self) -> None:
        """Restart what died, register and revoke keys, start the next run."""
        for child in self.children:
            if child.dead and time.monotonic() - child.started > RESTART_S:
                self.say(f"{child.name} died; starting it again (see {child.log})")
                child.start()
                if child.name == "superlink":
                    self._wait_healthy()
        if self._keys_changed():
            try:
                self._keys()
                self.trouble = ""
            except FedkdError as error:  # no reason to stop serving; said once, tried again
                if str(error) != self.trouble:
                    self.trouble = str(error)
                    self.say(self.trouble)
        self._runs()

    def end(self) -> None:
        """Stop everything; a run that goes on is resumed by the next server."""
        for child in reversed(self.children):
            child.stop()

    def _wait_healthy(self) -> None:
        deadline = time.monotonic() + HEALTHY_S
        link, said = self.children[0], ""
        while time.monotonic() < deadline and not link.dead:
            try:
                if ask(self.folder / "ca.crt", self.settings.link_address, "/health").is_success:
                    return
            except FedkdError as error:
                said = str(error)
            time.sleep(0.1)
        tail = link.log.read_text(errors="replace").strip().splitlines()[-1:]
        raise FedkdError(
            "the SuperLink does not come up",
            value="; ".join([said, *tail]),
            fix=f"fedkd doctor --deployment {self.folder}; its log: {link.log}",
        )

    def _keys_changed(self) -> bool:
        allowed = {path.stem: path.read_text() for path in (self.folder / "nodes").glob("*.pub")}
        known = {about["name"]: about["key"] for about in nodes(self.folder).values()}
        return allowed != known

    def _keys(self) -> None:
        """Make the SuperLink's list of nodes that of the folder `nodes`.

        What it has registered is found by its key: a process that was killed between a registration
        and its note in the file registers nothing twice, which a SuperLink refuses.
        """
        paths = sorted((self.folder / "nodes").glob("*.pub"))
        wanted = {path.stem: (node_key(path), path.read_text()) for path in paths}
        allowed = {key for key, _ in wanted.values()}
        names = {node: about["name"] for node, about in nodes(self.folder).items()}
        kept: dict[int, dict[str, Any]] = {}
        with closing(Control.of(self.folder, self.settings)) as control:
            listed = control.nodes()
            for node in listed:
                if node.allowed and node.key not in allowed:
                    control.unregister(node.id)
                    self.say(f"client {names.get(node.id, node.id)} is no longer allowed")
            known = {node.key: node for node in listed}
            for name, (key, line) in wanted.items():
                seat = server_settings(self.folder).seat(name)
                found = known.get(key)
                if found is not None and not found.allowed:
                    self.say(
                        f"client {name} was revoked, and a revoked key cannot be allowed again; "
                        f"make it a new one: fedkd deploy rotate FOLDER --client {name}"
                    )
                id_ = control.register(key) if found is None else found.id
                kept[id_] = {"seat": seat, "name": name, "key": line}
        write(nodes_file(self.folder), json.dumps(kept, indent=1).encode())

    def _runs(self) -> None:
        waiting = queue(self.folder)
        if not waiting:
            return
        run = waiting[0]
        if is_locked(run.folder):
            self.submitted.pop(run.name, None)
            return
        if time.monotonic() - self.submitted.get(run.name, -START_S) < START_S:
            return
        began = self.starts.setdefault(run.name, [])
        done = run.rounds_done()
        if began[-STARTS:] == [done] * STARTS:
            write(run.failed, f"it got no further in {STARTS} starts; see superexec.log".encode())
            return
        began.append(done)
        again = f" again, after round {done}" if len(began) > 1 or done else ""
        self.say(f"run {run.name}: started{again}")
        self._start(run)

    def _start(self, run: Run) -> None:
        """By Flower's own command line, which packs the app and hands it to the Control API."""
        config = f'folder="{run.folder}" nodes="{nodes_file(self.folder)}"'
        self.submitted[run.name] = time.monotonic()
        words = ["run", str(self.folder / "state/app"), "here", "--run-config", config]
        try:
            done = subprocess.run(
                ["flwr", *words, "--format", "json"],
                capture_output=True,
                text=True,
                env=environment(self.folder),
                timeout=START_S,
            )
            if json.loads(done.stdout).get("success", True):
                return
            said = json.loads(done.stdout)["error-message"]
        except (subprocess.TimeoutExpired, ValueError, KeyError) as error:
            said = str(error)
        self.say(f"run {run.name} could not be started: {' '.join(said.split())}; trying again")
