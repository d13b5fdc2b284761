"""The command `fedkd`. A user's mistake is one line and exit code 2; Ctrl-C is 130."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedkd import config
from fedkd.errors import FedkdError
from scenarios import budget_text, memory, simulate
from scenarios.audit import command
from scenarios.audit.protections import offered
from scenarios.bench.suite import suite
from scenarios.budget import forecast, on_target, unit_of, ways_to
from scenarios.catalogue import catalogue
from scenarios.compare import plan as comparing
from scenarios.compare.command import Stopped
from scenarios.compare.command import compare as carry_out_comparison
from scenarios.compare.plan import ALWAYS
from scenarios.deploy import cli as deploy
from scenarios.doctor import examine
from scenarios.progress import Progress, table_of
from scenarios.report import page
from scenarios.results import Result
from scenarios.spending import in_one_line

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__
)
# Not to a terminal: wide, so that tables in files and pipes keep a line a row.
console = Console(width=None if sys.stdout.isatty() else 120)
INTERRUPTED = 130
app.add_typer(deploy.app, name="deploy")

Workers = Annotated[
    int | None,
    typer.Option(min=0, help="Share the clients among N processes; 0 is one a core."),
]
Ray = Annotated[
    bool, typer.Option("--ray", help="Share the clients among Ray actors on this machine.")
]
RayAddress = Annotated[
    str | None,
    typer.Option(metavar="ADDR", help="The same on a running cluster: HOST:PORT, or auto."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key; may be repeated."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else.")]
ScenarioFile = Annotated[Path, typer.Argument(help="A scenario file, as scenarios/*.toml.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, as runs/NAME-TIME.")]


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
def run(
    scenario: ScenarioFile,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="The run folder; runs/NAME-TIME unless given.")
    ] = None,
    target_epsilon: Annotated[
        float | None,
        typer.Option(
            metavar="E", help="Calibrate the noise first, so that privacy.unit costs E at most."
        ),
    ] = None,
    workers: Workers = None,
    ray: Ray = False,
    ray_address: RayAddress = None,
    as_json: AsJson = False,
) -> None:
    """Run a scenario with its reference rows; report and plots go to the run folder."""
    what = config.load(scenario, overrides or ())
    if target_epsilon is not None:
        what = on_target(what, target_epsilon)
    folder = out or simulate.new_folder(what, Path("runs"))
    _carry_out(_placed(what, workers, ray, ray_address), folder, as_json)


@app.command()
def budget(
    scenario: ScenarioFile,
    overrides: Overrides = None,
    target_epsilon: Annotated[
        float | None,
        typer.Option(metavar="E", help="Also say which settings would bring privacy.unit there."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What a scenario will cost each client in epsilon, before it runs; nothing is trained."""
    what = config.load(scenario, overrides or ())
    found = forecast(what)
    ways = [] if target_epsilon is None else ways_to(what, target_epsilon)
    if as_json:
        table = budget_text.as_table(found)
        if target_epsilon is not None:
            table["target"] = budget_text.target_table(what, target_epsilon, ways)
        print(json.dumps(table, indent=2))
        return
    lines = budget_text.in_words(found)
    if target_epsilon is not None:
        lines += budget_text.target_in_words(found, target_epsilon, ways)
    for line in lines:
        print(line)


@app.command()
def resume(
    folder: RunFolder,
    workers: Workers = None,
    ray: Ray = False,
    ray_address: RayAddress = None,
    as_json: AsJson = False,
) -> None:
    """Go on with a run that was stopped, from its last checkpoints."""
    scenario = _placed(simulate.scenario_of(folder), workers, ray, ray_address)
    _carry_out(scenario, folder, as_json)


@app.command()
def report(folder: RunFolder) -> None:
    """Write report.html and plots again, also of a run that is not finished."""
    result = simulate.load_result(folder)
    if not result.cells:
        raise FedkdError("no round is finished in this run yet", value=str(folder))
    console.print(f"report: {page.write(result, folder)}", soft_wrap=True)


@app.command()
def audit(
    path: Annotated[
        Path, typer.Argument(metavar="RUN|SCENARIO", help="A run folder; or a file to --compare.")
    ],
    part: Annotated[
        list[str] | None,
        typer.Option("--part", metavar="NAME", help="Only this part; may be repeated."),
    ] = None,
    shadows: Annotated[
        int, typer.Option(min=0, metavar="N", help="Run N more federations as references.")
    ] = 0,
    key: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER",
            help="Of a deployment: a client's folder, which says what it held; may be repeated.",
        ),
    ] = None,
    protections: Annotated[
        str | None,
        typer.Option(
            "--compare",
            metavar="NAMES",
            help="Run and audit a scenario under each protection, as none,swing,dpsgd:8.",
        ),
    ] = None,
    baseline: Annotated[bool, typer.Option(help="Compare DP-SGD with little noise too.")] = True,
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The comparison's folder; runs/NAME-TIME-comparison unless given."),
    ] = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """What leaked, to whom, beside what the ledgers promise; exit code 1 if they contradict it."""
    if protections is not None and path.is_dir():
        raise FedkdError(
            "--compare runs a scenario anew, and this is the folder of a run",
            value=str(path),
            fix=f"fedkd audit {path / 'scenario.toml'} --compare {protections}",
        )
    if protections is not None:
        what = _placed(config.load(path, overrides or ()), workers, False, None)
    elif path.suffix == ".toml":
        raise FedkdError(
            "a scenario is audited in a comparison, or by the folder of its run",
            value=str(path),
            fix=f"fedkd audit {path} --compare none,swing; or fedkd run, then fedkd audit RUN",
        )
    elif overrides or out is not None:
        raise FedkdError("--set and --out are for --compare", value=str(path))
    else:
        what = _placed(simulate.scenario_of(path), workers, False, None)
    if key and protections is not None:
        raise FedkdError("--key is for the run of a deployment", value=str(path))
    words = [word for one in overrides or () for word in ("--set", one)]
    words += [word for one in key or () for word in ("--key", str(one))]
    how = command.Options(
        parts=tuple(part or ()),
        shadows=shadows,
        grid=None if workers is None else what.grid,
        keys=tuple(key or ()),
        as_json=as_json,
        console=console,
        words=tuple(words if workers is None else [*words, "--workers", str(workers)]),
    )
    try:
        if protections is None:
            contradicted = command.audit(path, how)
        else:
            folder = out or Path(f"{simulate.new_folder(what, Path('runs'))}-comparison")
            contradicted = command.compare(what, path, protections, baseline, folder, how)
    except command.Stopped as stopped:
        print(f"\nstopped; go on with: {stopped}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    for line in contradicted:
        Console(stderr=True).print(f"[bold red]{escape(line)}[/bold red]", soft_wrap=True)
    if contradicted:
        raise typer.Exit(1)


@app.command()
def compare(
    scenario: Annotated[
        Path, typer.Argument(help="A scenario file, with or without a section [compare].")
    ],
    methods: Annotated[
        str | None, typer.Option(metavar="NAMES", help="As edgefd,fedmd (see fedkd list).")
    ] = None,
    splits: Annotated[
        str | None, typer.Option(metavar="NAMES", help="As strong,iid,dirichlet:0.1.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(metavar="NUMBERS", help="As 1,2,3.")] = None,
    references: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help=f"Rows beside them; {','.join(ALWAYS)} unless given."),
    ] = None,
    overrides: Overrides = None,
    workers: Annotated[
        int, typer.Option(min=0, help="Cells side by side, a process each; 0 is one a core.")
    ] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Where all is kept; runs/NAME-compare unless given.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Methods x splits x seeds: one table, one page; what is done is not done again."""
    lists = {"methods": methods, "splits": splits, "seeds": seeds, "references": references}
    flags = {key: _words(text) for key, text in lists.items() if text is not None}
    what = comparing.load(scenario, overrides or (), flags)
    folder = out or Path("runs") / f"{what.name}-compare"
    words = [word for key, text in lists.items() if text is not None for word in (f"--{key}", text)]
    words += [word for one in overrides or () for word in ("--set", one)]
    words += [] if workers == 1 else ["--workers", str(workers)]
    again = shlex.join(["fedkd", "compare", str(scenario), *words, "--out", str(folder)])
    at_once = workers or len(os.sched_getaffinity(0))
    try:
        whole = carry_out_comparison(what, folder, at_once, again, console, as_json)
    except Stopped:
        print(f"\nstopped; go on with: {again}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    if not whole:
        raise typer.Exit(1)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


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


@app.command(name="list")
def list_(as_json: AsJson = False) -> None:
    """What a scenario, or a comparison of protections, can choose from, with a line for each."""
    tables = {**catalogue(), "audit --compare": offered()}
    if as_json:
        print(json.dumps(tables, indent=2))
        return
    for key, lines in tables.items():
        table = Table(title=key, title_justify="left", show_header=False, box=None, pad_edge=False)
        for name, line in lines.items():
            table.add_row(f"  [bold]{name}[/bold]", line)
        console.print(table, "")


@app.command()
def bench(
    quick: Annotated[bool, typer.Option("--quick", help="Few clients, one repeat.")] = False,
    out: Annotated[Path | None, typer.Option(help="Also write the page to this file.")] = None,
) -> None:
    """How fast is it here? Grids, messages and filters, as a Markdown page with its stamp."""
    if out is not None and not out.parent.is_dir():  # said now, and not after minutes of work
        raise FedkdError("no such folder to write to", value=str(out.parent), fix="set --out")
    text = suite(lambda line: print(line, file=sys.stderr, flush=True), quick=quick)
    print(text, end="")
    if out is not None:
        out.write_text(text, encoding="utf-8")


@app.command()
def doctor(
    deployment: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Look at a deployment instead: its server's folder, or a client's."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Versions, device, Ray, data: what is there and how to get what is not."""
    if deployment is not None:
        from scenarios.deploy.doctor import examine as examine_deployment

        findings = examine_deployment(deployment)
    else:
        findings = examine()
    if as_json:
        print(json.dumps([finding._asdict() for finding in findings], indent=2))
    else:
        table = Table(show_header=False, box=None)
        wrong = "wrong" if deployment else "missing"
        for finding in findings:
            mark = "[green]ok[/green]" if finding.ok else f"[red]{wrong}[/red]"
            table.add_row(
                mark,
                f"{finding.code} {finding.what}".strip(),
                escape(finding.found),
                escape(finding.fix),
            )
        console.print(table)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def _placed(
    scenario: config.Scenario, workers: int | None, ray: bool, ray_address: str | None
) -> config.Scenario:
    """The scenario on the grid that the options ask for; the grid's other settings stay."""
    change: dict[str, object] = {}
    if workers is not None and (ray or ray_address is not None):
        raise FedkdError(
            "two grids are asked for",
            value=f"--workers {workers} and {'--ray' if ray else '--ray-address'}",
            fix="leave one out; --ray with --set grid.workers=N limits Ray's workers",
        )
    if workers is not None:
        change = {"name": "workers", "workers": workers}
    elif ray or ray_address is not None:
        change = {"name": "ray", "address": ray_address or ""}
    return scenario.on(scenario.grid.model_copy(update=change))


def _carry_out(scenario: config.Scenario, folder: Path, as_json: bool) -> None:
    listener = None if as_json else Progress(console, scenario)
    try:
        result = simulate.simulate(scenario, folder=folder, listener=listener)
    except KeyboardInterrupt:
        print(f"\nstopped; go on with: fedkd resume {folder}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    path = page.write(result, folder)
    if as_json:
        print(json.dumps(_summary(result, path), indent=2))
        return
    console.print(table_of(result))
    own = in_one_line(result.spent[scenario.method.name], unit_of(scenario))
    console.print(f"privacy of {scenario.method.name}: {own}", soft_wrap=True, highlight=False)
    console.print(f"report: {path}", soft_wrap=True)


def _summary(result: Result, report_path: Path) -> dict[str, object]:
    return {
        "scenario": result.scenario.name,
        "folder": str(result.folder),
        "report": str(report_path),
        "table": result.table(),
    }


def main() -> None:
    """The entry point: a FedkdError becomes one line on stderr and exit code 2."""
    memory.keep()
    try:
        app()
    except FedkdError as error:
        print(f"fedkd: {error}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as leaving:
        if leaving.code == INTERRUPTED:
            # CPython replaces the exit code by death from SIGINT if the interrupt struck inside
            # exec() of a string, as late imports (torch, sympy) do; nothing is left to clean up.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(INTERRUPTED)
        raise


if __name__ == "__main__":
    main()
