"""`fedkd watch`, `metrics`, `track` and `verify`: looking at a run that others carry out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from fedkd.errors import FedkdError
from scenarios.cli_options import INTERRUPTED, RunFolder, console

app = typer.Typer()


@contextmanager
def _extra(name: str) -> Iterator[None]:
    """Says in a line which extra is missing where an import fails."""
    try:
        yield
    except ImportError as error:
        raise FedkdError(
            f"this needs another package: {error}", fix=f"pip install 'fedkd[{name}]'"
        ) from None


@app.command()
def watch(
    folder: Annotated[Path, typer.Argument(metavar="RUN|SERVER", help="Of a run, or a server's.")],
) -> None:
    """Follow a run that another process or a server carries out; Ctrl-C leaves the run alone."""
    from scenarios.watch import watch as follow

    try:
        follow(folder, console)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


@app.command()
def metrics(
    folder: RunFolder,
    port: Annotated[
        int | None, typer.Option(help="Serve them here until Ctrl-C, instead of one print.")
    ] = None,
    host: Annotated[str, typer.Option(help="The address to serve at.")] = "127.0.0.1",
) -> None:
    """A run's figures in the text format of Prometheus, read anew for each scrape."""
    with _extra("metrics"):
        from scenarios import metrics as found

    if port is None:
        print(found.text(folder), end="")
        return
    console.print(f"metrics of {folder}: http://{host}:{port}/metrics; Ctrl-C ends it")
    try:
        found.serve(folder, host, port)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


@app.command()
def track(
    folder: RunFolder,
    to: Annotated[str, typer.Option(help="tensorboard or mlflow.")] = "tensorboard",
    out: Annotated[
        str | None,
        typer.Option(help="A folder for TensorBoard; a tracking URI for MLflow."),
    ] = None,
    follow: Annotated[bool, typer.Option(help="Go on until the run is over.")] = False,
) -> None:
    """Write a run's rounds for TensorBoard or MLflow; none is written twice."""
    from scenarios.track import track as write

    where = out or {"mlflow": "sqlite:///mlflow.db"}.get(to, "tensorboard")
    try:
        with _extra("mlflow" if to == "mlflow" else "metrics"):
            n_rounds = write(folder, where, to, wait=follow)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    look = {"mlflow": f"mlflow ui --backend-store-uri {where}"}.get(
        to, f"tensorboard --logdir {where}"
    )
    console.print(f"{n_rounds} rounds written; look: {look}", soft_wrap=True)


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="SERVER/state/runs/NAME.")],
    keys: Annotated[
        Path | None, typer.Option(help="The server's folder, if the run lies elsewhere.")
    ] = None,
    client: Annotated[
        Path | None, typer.Option(help="CLIENT/state: is all there that this client signed?")
    ] = None,
) -> None:
    """Hold a deployed run to what its clients have signed, answer by answer."""
    from scenarios.deploy.verify import verify as look

    failed = False
    for check in look(folder, keys, client):
        sign = {True: "ok", False: "FAILED", None: "-"}[check.ok]
        console.print(f"{sign:<7}{check.what}: {check.said}", soft_wrap=True, highlight=False)
        failed |= check.ok is False
    if failed:
        raise typer.Exit(1)
