"""`fedkd deploy status`: who may take part and who is there, and how far the runs are."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from fedkd.errors import FedkdError
from fedkd.files import is_locked
from scenarios.deploy.control import Control
from scenarios.deploy.folder import nodes, server_settings
from scenarios.deploy.runs import all_runs


def status(folder: Path) -> dict[str, Any]:
    """Of a server's folder, from its files and its SuperLink.

    Returns: `serving`, `address`, `clients` (name, seat, state: online, offline, registered,
    revoked, not registered yet, or unknown while nobody serves)
    and `runs` (name, state).
    """
    folder = folder.resolve()
    settings = server_settings(folder)
    serving = is_locked(folder / "state")
    online: dict[int, str] = {}
    if serving:
        try:
            with closing(Control.of(folder, settings)) as control:
                online = {
                    node.id: node.state if node.allowed else "revoked" for node in control.nodes()
                }
        except FedkdError:
            serving = False
    by_name = {about["name"]: node for node, about in nodes(folder).items()}

    def state(name: str) -> str:
        if not (folder / "nodes" / f"{name}.pub").exists():
            return "revoked"
        return online.get(by_name[name], "unknown") if name in by_name else "not registered yet"

    return {
        "name": settings.name,
        "address": f"{settings.hosts[0]}:{settings.port}",
        "serving": serving,
        "clients": [
            {"name": name, "seat": seat, "state": state(name)}
            for seat, name in enumerate(settings.clients)
        ],
        "runs": [{"name": run.name, "state": run.state} for run in all_runs(folder)],
    }
