"""`fedkd deploy …`: the commands of a deployment, one function each."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from fedkd import config
from fedkd.errors import FedkdError
from fedkd.files import is_locked
from scenarios.cli_options import INTERRUPTED, AsJson, Overrides, console

app = typer.Typer(no_args_is_help=True, help="A real server and real clients, over TLS.")
Say = Callable[[str], None]

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The deployment's folder.")]
Server = Annotated[Path, typer.Argument(metavar="SERVER", help="FOLDER/server.")]
JsonLines = Annotated[bool, typer.Option("--json", help="Say each line as a JSON object.")]


@app.command()
def init(
    folder: Folder,
    host: Annotated[
        list[str] | None,
        typer.Option(
            "--host", help="Name or address of the server for clients; may be repeated. [localhost]"
        ),
    ] = None,
    port: Annotated[int, typer.Option(help="That clients reach.")] = 8100,
    clients: Annotated[
        str, typer.Option(metavar="N|NAMES", help="How many, or their names: a,b,c.")
    ] = "2",
) -> None:
    """Make a deployment: certificates, keys, settings, and files for systemd, docker and nginx."""
    from scenarios.deploy import init as making

    names = clients.split(",")
    if clients.isdigit():
        names = [f"client-{i + 1}" for i in range(int(clients))]
    settings = making.init(folder, host or ["localhost"], port, [n.strip() for n in names])
    say(f"{folder}/server goes to the server's host, {folder}/clients/NAME to that client's")
    say(f"keep {folder}/ca.key to yourself: it signs the server's certificate")
    if settings.link_port != settings.port:
        say(f"from outside, only through the proxy: {folder}/server/nginx.conf")
    say(f"next: fedkd deploy server {folder}/server")
    for name in settings.clients[:2]:
        say(f"      fedkd deploy client {folder}/clients/{name}")
    say(f"      fedkd deploy submit {folder}/server SCENARIO.toml")


@app.command()
def server(folder: Server, as_json: JsonLines = False) -> None:
    """Serve: keeps the SuperLink up, registers keys, carries out the runs that are submitted."""
    from scenarios.deploy import server as serving

    tell = _json_lines("server") if as_json else say
    serving.serve(folder, tell, _stop_on_signals(tell))


@app.command()
def client(
    folder: Annotated[Path, typer.Argument(metavar="CLIENT", help="FOLDER/clients/NAME.")],
    data: Annotated[
        str | None,
        typer.Option(
            help="Own data: .npz, a folder of IDX or .txt files, module:function, or JSON."
        ),
    ] = None,
    as_json: JsonLines = False,
) -> None:
    """Take part, on own data; waits for a server that is away, and for the next run."""
    from scenarios.deploy import client as taking_part

    tell = _json_lines(folder.name) if as_json else say
    taking_part.client(folder, data, tell, _stop_on_signals(tell))


@app.command()
def explain(
    folder: Annotated[Path, typer.Argument(metavar="CLIENT", help="FOLDER/clients/NAME.")],
    scenario: Annotated[Path, typer.Argument(help="What the server would run.")],
    data: Annotated[str | None, typer.Option(help="Own data, as for `client`.")] = None,
    overrides: Overrides = None,
) -> None:
    """What would leave this client, to whom, how much and at what cost; nothing is sent."""
    from scenarios.deploy.explain import explain as words

    for line in words(folder, config.load(scenario, overrides or ()), data):
        say(line)


@app.command()
def submit(
    folder: Server,
    scenario: Annotated[str, typer.Argument(metavar="SCENARIO|RUN", help="What to run.")],
    overrides: Overrides = None,
    detach: Annotated[bool, typer.Option("--detach", help="Do not follow the run.")] = False,
) -> None:
    """Run a scenario on the clients, or take up a run that stopped; and follow it."""
    from scenarios.deploy import runs
    from scenarios.watch import watch_deployed

    if Path(scenario).suffix == ".toml" or Path(scenario).exists():
        run = runs.submit(folder, config.load(scenario, overrides or ()))
    elif overrides:
        raise FedkdError("--set changes a scenario, and this is a run", value=scenario)
    else:
        run = runs.again(folder, scenario)
    say(f"run: {run.folder}")
    if not is_locked(folder / "state"):
        say(f"no server works here now; it begins with: fedkd deploy server {folder}")
    if detach:
        return
    try:
        watch_deployed(run, console)
    except KeyboardInterrupt:
        say(f"\nit goes on without this window; come back with: fedkd watch {folder}")
        raise typer.Exit(INTERRUPTED) from None
    say(f"done; its report: fedkd report {run.folder}")


@app.command()
def status(folder: Server, as_json: AsJson = False) -> None:
    """Who may take part and who is there; how far the runs are."""
    from scenarios.deploy.status import status as look

    found = look(folder)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    state = "serving" if found["serving"] else "not serving"
    say(f"{found['name']} at {found['address']}: {state}")
    table = Table("client", "seat", "state", box=None, pad_edge=False)
    for one in found["clients"]:
        table.add_row(one["name"], str(one["seat"]), one["state"])
    console.print(table)
    for run in found["runs"]:
        say(f"run {run['name']}: {run['state']}")


@app.command()
def add(
    folder: Folder, name: Annotated[str, typer.Argument(metavar="NAME", help="Of the client.")]
) -> None:
    """Another client; its folder is made, a running server takes it."""
    from scenarios.deploy import init as making

    making.add(folder, name)
    say(f"{folder}/clients/{name} goes to that client's host")


@app.command()
def revoke(
    folder: Server, name: Annotated[str, typer.Argument(metavar="NAME", help="Of the client.")]
) -> None:
    """A client may no longer take part; a running server refuses it within seconds."""
    from scenarios.deploy import init as making

    say(f"{name} is revoked; its key lies in {making.revoke(folder, name)}")


@app.command()
def rotate(
    folder: Folder,
    client: Annotated[
        str | None, typer.Option(metavar="NAME", help="New keys for this client instead.")
    ] = None,
) -> None:
    """A new certificate for the server, or new keys for a client."""
    from scenarios.deploy import init as making

    if client is None:
        making.rotate(folder)
        say(f"{folder}/server/server.pem and server.key are new; restart the server")
    else:
        making.rotate_client(folder, client)
        say(f"{folder}/clients/{client}/key is new; take it there and restart that client")


def say(line: str) -> None:
    """One line, never broken, at once."""
    print(line, flush=True)


def _json_lines(who: str) -> Say:
    """As `say`, for what collects logs."""

    def tell(line: str) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        say(json.dumps({"time": now, "process": who, "message": line.strip()}))

    return tell


def _stop_on_signals(tell: Say) -> threading.Event:
    """Set by Ctrl-C and by `systemctl stop`; a second one ends the process at once."""
    stop = threading.Event()

    def ask(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        tell("\nstopping")
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask)
    return stop
