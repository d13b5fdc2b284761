"""Live progress in the terminal: at most one line a round, and the table at the end."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedkd.config import Scenario
from scenarios.results import Result
from scenarios.simulate import plans
from scenarios.spending import guaranteed
from scenarios.units import duration, percent, plain, size
from server.events import Event


class Progress:
    """Prints what happens in a run; knows how much is left from the rounds that it has seen."""

    def __init__(self, console: Console, scenario: Scenario) -> None:
        self._console = console
        self._n_rounds = scenario.training.rounds
        self._cells_left = [(plan.row, plan.seed) for plan in plans(scenario)]
        self._several_seeds = len(scenario.seeds) > 1
        self._seconds: list[float] = []
        self._current: tuple[str, int] | None = None
        self._cell: list[Event] = []

    def __call__(self, row: str, seed: int, event: Event) -> None:
        """Tell one event."""
        if self._current != (row, seed):
            self._current = (row, seed)
            self._cell = []
            self._cells_left = self._cells_left[self._cells_left.index((row, seed)) + 1 :]
            title = f"{row}, seed {seed}" if self._several_seeds else row
            self._say(f"[bold]{title}[/bold]")
        match event["event"]:
            case "pool":
                self._say(f"  {_pool(event)}")
            case "refused":
                self._say(
                    f"  [yellow]round {event['round']}: refused client {event['client']}: "
                    f"{escape(event['reason'])}[/yellow]"
                )
            case "left" | "joined":
                self._say(f"  round {event['round']}: client {event['client']} {event['event']}")
            case "repeated":
                again = f"round {event['round']} is repeated: {escape(event['reason'])}"
                self._say(f"  [yellow]{again}[/yellow]")
            case "unrecorded":
                self._say(f"  [yellow]round {event['round']}: {event['note']}[/yellow]")
            case "round":
                self._seconds.append(event["seconds"])
                self._cell.append(event)
                self._say(f"  {self._round(event)}")
                if event["round"] == self._n_rounds:
                    self._say(f"  {_speed(self._cell)}")
                if "note" in event:
                    self._say(f"  [yellow]{event['note']}[/yellow]")

    def _say(self, text: str) -> None:
        """One line, never broken: a narrow terminal or a pipe must not make two of it."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def _round(self, event: Event) -> str:
        done = int(event["round"])
        rounds_left = self._n_rounds - done + len(self._cells_left) * self._n_rounds
        recent = self._seconds[-5:]
        left_s = rounds_left * sum(recent) / len(recent)
        parts = [
            f"round {done:>{len(str(self._n_rounds))}}/{self._n_rounds}",
            f"accuracy {percent(event.get('accuracy'))}",
            f"worst {percent(event.get('accuracy_worst'))}",
        ]
        if "perplexity" in event:
            parts.append(f"perplexity {event['perplexity']:.2f}")
        if "accepted" in event:
            parts.append(f"accepted {percent(event['accepted'])}")
        if "consensus_accuracy" in event:
            parts.append(f"consensus {percent(event['consensus_accuracy'])}")
        if "server_accuracy" in event:
            parts.append(f"server {percent(event['server_accuracy'])}")
        if event.get("n_abstained"):
            parts.append(f"abstained {event['n_abstained']}")
        parts.append(f"up {size(event['bytes_up'])} down {size(event['bytes_down'])}")
        parts.append(f"left {duration(left_s)}")
        return "  ".join(parts)


def _pool(event: Event) -> str:
    given = event["n_contributed"]
    origin = f"{given} private samples given in the clear" if given else "public"
    return f"proxy set of {event['n_samples']} samples ({origin}), {size(event['bytes_each'])} each"


def _speed(rounds: list[Event]) -> str:
    """How much was done a second, over the rounds of a cell."""
    seconds = sum(event["seconds"] for event in rounds)
    clients = sum(event["n_clients"] for event in rounds) / seconds
    samples = sum(event["n_learnt"] for event in rounds) / seconds
    return f"{clients:,.1f} clients/s, {samples:,.0f} samples/s"


def table_of(result: Result) -> Table:
    """The comparison, one line a row; an epsilon only where a row has one that is proved."""
    title = f"{result.scenario.name}: last round, mean over clients"
    lines = result.table()
    columns = guaranteed(lines)
    has_server = any(line["server_accuracy"] is not None for line in lines)
    has_perplexity = any(line["perplexity"] is not None for line in lines)
    table = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
        caption="\n".join(f"{column.heading}: {column.meaning}" for column in columns) or None,
        caption_justify="left",
    )
    table.add_column("row", no_wrap=True)
    headings = ["accuracy", "worst", "own", "accepted", "consensus"]
    headings += ["server"] * has_server
    headings += ["perplexity"] * has_perplexity + [column.heading for column in columns]
    for heading in (*headings, "bytes", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    for line in lines:
        accuracy = percent(line["accuracy"])
        if line["accuracy_sd"] is not None:
            accuracy += f" ± {100 * line['accuracy_sd']:.1f}"
        table.add_row(
            line["row"],
            accuracy,
            percent(line["accuracy_worst"]),
            percent(line["own_accuracy"]),
            percent(line["accepted"]),
            percent(line["consensus_accuracy"]),
            *([percent(line["server_accuracy"])] if has_server else []),
            *([plain(line["perplexity"])] if has_perplexity else []),
            *(column.of(line) for column in columns),
            size(line["bytes"]),
            duration(line["seconds"]),
        )
    return table
