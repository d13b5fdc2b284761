"""The command `fedkd`. A user's mistake is one line and exit code 2; Ctrl-C is 130."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from fedkd import config
from fedkd.errors import FedkdError
from scenarios import budget_text, cli_compare, cli_seeing, memory, simulate
from scenarios.audit.protections import offered
from scenarios.bench.suite import suite
from scenarios.budget import forecast, on_target, unit_of, ways_to
from scenarios.catalogue import catalogue
from scenarios.cli_options import (
    INTERRUPTED,
    AsJson,
    Overrides,
    Ray,
    RayAddress,
    RunFolder,
    ScenarioFile,
    Workers,
    console,
    placed,
)
from scenarios.deploy import cli as deploy
from scenarios.doctor import examine
from scenarios.progress import Progress, table_of
from scenarios.report import page
from scenarios.results import Result
from scenarios.spending import in_one_line

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__
)
app.add_typer(cli_compare.app)
app.add_typer(cli_seeing.app)
app.add_typer(deploy.app, name="deploy")


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
    _carry_out(placed(what, workers, ray, ray_address), folder, as_json)


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
    scenario = placed(simulate.scenario_of(folder), workers, ray, ray_address)
    _carry_out(scenario, folder, as_json)


@app.command()
def report(folder: RunFolder) -> None:
    """Write report.html and plots again, also of a run that is not finished."""
    result = simulate.load_result(folder)
    if not result.cells:
        raise FedkdError("no round is finished in this run yet", value=str(folder))
    console.print(f"report: {page.write(result, folder)}", soft_wrap=True)


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
