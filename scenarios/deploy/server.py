"""`fedkd deploy server`: keeps Flower's processes up, the list of keys true, and runs going.

Everything is in files. Who submits a run makes its folder; who revokes a client moves its key; this
process sees it within seconds, and is the only one that talks to the SuperLink's Control API.
"""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedkd.errors import FedkdError
from fedkd.files import is_locked, locked, write
from fedkd.processes import die_with_parent
from scenarios.deploy.control import Control, node_key
from scenarios.deploy.folder import ServerSettings, nodes, runs, server_settings
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


def environment(folder: Path) -> dict[str, str]:
    """For every Flower process: no calls home, no `uv sync`, its own home."""
    bin_ = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "FLWR_HOME": str(folder / "state/flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.25",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "PATH": f"{bin_}{os.pathsep}{os.environ.get('PATH', '')}",
    }


@dataclass
class Child:
    """A process that is kept up; its output goes to a file."""

    name: str
    command: list[str]
    log: Path
    env: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0

    def start(self) -> None:
        """Start it; it ends with this process, however that ends."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=self.env,
                preexec_fn=die_with_parent,
            )
        self.started = time.monotonic()

    @property
    def dead(self) -> bool:
        """Whether it has ended."""
        return self.process is not None and self.process.poll() is not None

    def stop(self) -> None:
        """End it, first kindly."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


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

    def begin(self) -> None:
        """Bring the processes up and register the keys."""
        state = self.folder / "state"
        runs(self.folder).mkdir(parents=True, exist_ok=True)
        env = environment(self.folder)
        home = Path(env["FLWR_HOME"])
        home.mkdir(parents=True, exist_ok=True)
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "{self.address}"\n'
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
            *("flower-superexec", "--runtime-api-address", self.address),
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

    @property
    def address(self) -> str:
        """Of the SuperLink, seen from this machine."""
        return f"127.0.0.1:{self.settings.link_port}"

    def look(self) -> None:
        """Restart what died, register and revoke keys, start the next run."""
        for child in self.children:
            if child.dead and time.monotonic() - child.started > RESTART_S:
                self.say(f"{child.name} died; starting it again (see {child.log})")
                child.start()
                if child.name == "superlink":
                    self._wait_healthy()
        if self._keys_changed():
            self._keys()
        self._runs()

    def end(self) -> None:
        """Stop everything; a run that goes on is resumed by the next server."""
        for child in reversed(self.children):
            child.stop()

    def control(self) -> Control:
        """The SuperLink's Control API; to be closed."""
        return Control(self.address, (self.folder / "ca.crt").read_bytes())

    def _wait_healthy(self) -> None:
        context = ssl.create_default_context(cafile=str(self.folder / "ca.crt"))
        deadline = time.monotonic() + HEALTHY_S
        link, said = self.children[0], ""
        while time.monotonic() < deadline and not link.dead:
            try:
                with urllib.request.urlopen(
                    f"https://{self.address}/health", timeout=5, context=context
                ):
                    return
            except (urllib.error.URLError, OSError) as error:
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
        and its note in nodes.json registers nothing twice, which a SuperLink refuses.
        """
        paths = sorted((self.folder / "nodes").glob("*.pub"))
        wanted = {path.stem: (node_key(path), path.read_text()) for path in paths}
        allowed = {key for key, _ in wanted.values()}
        names = {node: about["name"] for node, about in nodes(self.folder).items()}
        kept: dict[int, dict[str, Any]] = {}
        with closing(self.control()) as control:
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
        write(self.folder / "nodes.json", json.dumps(kept, indent=1).encode())

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
        config = f'folder="{run.folder}" nodes="{self.folder / "nodes.json"}"'
        self.submitted[run.name] = time.monotonic()
        try:
            self._flwr("run", str(self.folder / "state/app"), config=config)
        except FedkdError as error:
            self.say(f"run {run.name} could not be started: {error}; trying again")

    def _flwr(self, *words: str, config: str | None = None) -> dict[str, Any]:
        """Flower's own command line, which speaks to the Control API."""
        more = [] if config is None else ["--run-config", config]
        done = subprocess.run(
            ["flwr", *words, "here", *more, "--format", "json"],
            capture_output=True,
            text=True,
            env=environment(self.folder),
            timeout=60,
        )
        try:
            found: dict[str, Any] = json.loads(done.stdout)
        except json.JSONDecodeError:
            found = {"success": False, "error-message": done.stderr or done.stdout}
        if not found.get("success", True):
            said = " ".join(str(found.get("error-message", found)).split())
            raise FedkdError(f"flwr {words[0]}: {said}")
        return found
