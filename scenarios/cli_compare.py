"""`fedkd audit`, `compare` and `suggest-model`: many runs, many looks at one, or none."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedkd import config
from fedkd.errors import FedkdError
from scenarios import simulate
from scenarios.audit import command
from scenarios.cli_options import (
    INTERRUPTED,
    AsJson,
    Overrides,
    ScenarioFile,
    Workers,
    console,
    placed,
)
from scenarios.compare import plan as comparing
from scenarios.compare.command import Stopped
from scenarios.compare.command import compare as carry_out_comparison
from scenarios.compare.plan import ALWAYS
from scenarios.suggest import suggest

app = typer.Typer()


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
        what = placed(config.load(path, overrides or ()), workers, False, None)
    elif path.suffix == ".toml":
        raise FedkdError(
            "a scenario is audited in a comparison, or by the folder of its run",
            value=str(path),
            fix=f"fedkd audit {path} --compare none,swing; or fedkd run, then fedkd audit RUN",
        )
    elif overrides or out is not None:
        raise FedkdError("--set and --out are for --compare", value=str(path))
    else:
        what = placed(simulate.scenario_of(path), workers, False, None)
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


@app.command("suggest-model")
def suggest_model(
    scenario: ScenarioFile,
    teacher: Annotated[
        str, typer.Option(metavar="NAME", help="Whose student; the largest of model.names.")
    ] = "",
    weights: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="The most that a client can hold.")
    ] = None,
    mflops: Annotated[
        float | None,
        typer.Option(min=0.001, metavar="M", help="The most for one prediction, in millions."),
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """A model for a client's budget: the zoo by cost and, as a guess, by likeness to a teacher."""
    what = config.load(scenario, overrides or ())
    flops = None if mflops is None else int(mflops * 1e6)
    of, found = suggest(what, teacher, weights, flops)
    fitting = [one for one in found if one.fits]
    likest = fitting[0].name if fitting else None
    largest = max(fitting, key=lambda one: one.weights).name if fitting else None
    if as_json:
        rows = [one._asdict() for one in found]
        said = {"teacher": of, "likest": likest, "largest": largest, "models": rows}
        print(json.dumps(said))
    else:
        title = f"students of {of}, likest first"
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
        table.add_column("model", no_wrap=True)
        for heading in ("weights", "MFLOP a prediction", "likeness", "fits"):
            table.add_column(heading, justify="right")
        for one in found:
            alike = "-" if one.likeness is None else f"{one.likeness:.3f}"
            price = f"{one.weights:,}", f"{one.flops / 1e6:.2f}"
            table.add_row(one.name, *price, alike, "yes" if one.fits else "no")
        console.print(table)
    if not fitting:
        raise FedkdError(
            "no model of the zoo is that small",
            value=f"weights {weights}, MFLOP {mflops}",
            allowed=f"at least {min(one.weights for one in found):,} weights",
            fix="a larger budget, or a model of your own by module:function",
        )
    if not as_json:
        console.print(f"of those that fit, {likest} is the likest and {largest} the largest;")
        console.print("neither is more than a guess without training: docs/methods.md")


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]
