"""A comparison of protections in words: `comparison.md`, the terminal's table, JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich import box
from rich.table import Table

from fedkd.files import write as write_file
from scenarios.audit.compare import Comparison, Entry
from scenarios.audit.findings import OBSERVERS
from scenarios.audit.pictures import LEADING
from scenarios.audit.protections import bare, differences
from scenarios.audit.reading import QUESTIONS, Leaks, Reading, measure
from scenarios.budget import unit_of
from scenarios.report.facts import environment
from scenarios.spending import guaranteed, in_one_line
from scenarios.units import percent, plain

PAGE = "comparison.md"
CLAIMS = {
    "nothing": "none",
    "baseline": "baseline",
    "empirical": "empirical",
    "hidden in a sum": "hidden in a sum",
    "proved": "not covered",
}
STAR = (
    "* The attack knows the defence. ? Too few non-members for so small an FPR. All is empirical."
)
HOW_TO_READ = """\
Figures are means over {seeds}, ± half of the 95 % interval of that mean by Student's t, which few
seeds make wide; with one seed, an attack's own 95 % interval is in brackets. What was found is
**empirical**: the strongest of the attacks that were run, chosen after the fact, so where nothing
leaks it lies a little beyond that value. It is no bound on other attacks, and a low figure proves
nothing. What is **guaranteed** is an epsilon, and it is the ledgers': it bounds every attack.

* `owner` is no observer: the client's own model shows how much there is to leak. It counts in no
  “worst” figure.
* *defence known*: the attack knows the defence and undoes what it can.
* *empirical*: a heuristic; nothing is proved of it.
* *baseline*: DP-SGD with little noise, whose epsilon says next to nothing. A heuristic that leaks
  as much at the same utility is not worth having.
* *hidden in a sum*: by cryptography, the server sees no upload; no epsilon covers the sum.
* *not covered*: something left that the protection does not cover, so no epsilon holds.
* A question mark: there are too few non-members for so small an FPR.
"""


class Grid(NamedTuple):
    """A table: headings, and rows of as many cells."""

    headings: list[str]
    rows: list[list[str]]


def write(comparison: Comparison, command: str) -> Path:
    """Write `comparison.md` into the folder, whole or not at all; `command` makes it again."""
    path = comparison.folder / PAGE
    write_file(path, _markdown(comparison, command).encode())
    return path


def summary(comparison: Comparison, *, short: bool = False) -> Grid:
    """What each protection costs and how much the worst observer finds, a row a protection.

    Args: short: without intervals, and with a star where the attack knows the defence.
    """
    entries = comparison.entries
    columns = guaranteed(entry.line for entry in entries)
    shown = [pair for pair in LEADING if any(_worst(entry, pair) for entry in entries)]
    texts = comparison.utility == "perplexity"
    headings = ["protection", "claim", *(column.heading for column in columns), "accuracy"]
    headings += ["perplexity"] * texts
    headings += [("" if short else "worst ") + measure(what).title for _, what in shown]
    rows = []
    for entry in entries:
        row = [entry.chosen.name, claim(entry), *(column.of(entry.line) for column in columns)]
        row.append(_utility(entry, "accuracy"))
        row += [_utility(entry, "perplexity")] * texts
        row += [_who(_worst(entry, pair), short) for pair in shown]
        rows.append(row)
    return Grid(headings, rows)


def claim(entry: Entry) -> str:
    """Whether what the protection promises is proved, by the ledgers and not by its name."""
    return "guaranteed" if entry.proved else CLAIMS[entry.chosen.kind]


def by_observer(comparison: Comparison, part: str, what: str) -> Grid:
    """One measure, protections by observers; what knows the defence has a row of its own."""
    rows = []
    for name, audit in comparison.audits.items():
        for adaptive, title in ((False, name), (True, f"{name}, defence known")):
            found = [audit.strongest(part, what, [who], adaptive) for who in OBSERVERS]
            if any(found):
                rows.append([title, *(_found(one) for one in found)])
    return Grid(["protection", *OBSERVERS], rows)


def table_of(comparison: Comparison) -> Table:
    """The summary for the terminal."""
    grid = summary(comparison, short=True)
    table = Table(
        title=f"{comparison.scenario.name}: protections, and the most that an observer found",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        caption="\n".join([*_meanings(comparison), STAR]),
        caption_justify="left",
    )
    for at, heading in enumerate(grid.headings):
        side: Literal["left", "right"] = "left" if at < 2 else "right"
        table.add_column(heading, justify=side, overflow="fold", no_wrap=at < 2)
    for row in grid.rows:
        table.add_row(*row)
    return table


def as_table(comparison: Comparison) -> dict[str, Any]:
    """A comparison for JSON: per protection, what it costs and the worst of each measure."""
    return {
        "scenario": comparison.scenario.name,
        "folder": str(comparison.folder),
        "report": str(comparison.folder / PAGE),
        "contradictions": comparison.contradictions,
        "protections": [
            {
                "name": entry.chosen.name,
                "claim": claim(entry),
                "folder": str(comparison.folder / entry.chosen.folder),
                **entry.line,
                "found": _figures(entry.audit) if entry.audit else [],
            }
            for entry in comparison.entries
        ],
    }


def _figures(audit: Leaks) -> list[dict[str, Any]]:
    """The strongest attack of each observer on each question."""
    found = [audit.strongest(*pair, [who]) for pair in audit.asked() for who in OBSERVERS]
    return [
        {
            "part": one.finding.part,
            "measure": one.finding.measure,
            "observer": one.finding.observer,
            "attack": one.finding.attack,
            "target": one.finding.target,
            "adaptive": one.finding.adaptive,
            "value": one.mean,
            "seeds": len(one.values),
            "low": None if one.interval is None else one.interval[0],
            "high": None if one.interval is None else one.interval[1],
            "null": one.null,
            "ceiling": one.ceiling,
        }
        for one in found
        if one is not None
    ]


def _markdown(comparison: Comparison, command: str) -> str:
    scenario = comparison.scenario
    n_seeds = len(scenario.seeds)
    lines = [f"# {scenario.name}: protections compared", ""]
    lines += [f"`{command}`; {environment()}.", ""]
    for text in comparison.contradictions:
        lines += [f"**More was found than the ledger allows, so one of them is wrong:** {text}", ""]
    lines += ["## What each costs, and the most that an observer found", ""]
    lines += [*_as_markdown(summary(comparison)), *_meanings(comparison), ""]
    lines += [HOW_TO_READ.format(seeds=f"{n_seeds} seed{'' if n_seeds == 1 else 's'}")]
    lines += ["## What the ledgers say", ""]
    lines += [f"* {e.chosen.name}: {_ledger(e)}" for e in comparison.entries]
    lines += ["", "## What was found, by who looks", ""]
    lines += [f"![{name}](plots/{name}.png)\n" for name in comparison.plots]
    for part, what in _asked(comparison):
        lines += [f"### {QUESTIONS.get(part, part)} {measure(what).title}", ""]
        lines += [
            *_as_markdown(by_observer(comparison, part, what)),
            _scale(comparison, part, what),
        ]
        lines += [""]
    lines += ["## What each protection changes in the scenario", ""]
    for entry in comparison.entries:
        changed = differences(bare(scenario), entry.chosen.scenario)
        told = ", ".join(
            f"{key} = {after}" for key, (_, after) in changed.items() if key != "audit"
        )
        lines.append(f"* {entry.chosen.name}, {entry.chosen.line}: {told or 'nothing'}")
    return "\n".join(lines) + "\n"


def _asked(comparison: Comparison) -> list[tuple[str, str]]:
    """The parts and measures of any audit, each once."""
    return list(dict.fromkeys(pair for one in comparison.audits.values() for pair in one.asked()))


def _scale(comparison: Comparison, part: str, what: str) -> str:
    """What no leakage gives, and what the ledgers allow, under a table."""
    form = measure(what).form.format
    found = {name: one.strongest(part, what, OBSERVERS) for name, one in comparison.audits.items()}
    nulls = [one.null for one in found.values() if one is not None and one.null is not None]
    text = [f"Without leakage: {form(nulls[0])}."] if nulls else []
    allowed = [
        f"{name} {form(one.ceiling)}"
        for name, one in found.items()
        if one is not None and one.ceiling is not None
    ]
    text += [f"The ledgers allow any attack: {', '.join(allowed)}."] if allowed else []
    return " ".join(text)


def _meanings(comparison: Comparison) -> list[str]:
    columns = guaranteed(entry.line for entry in comparison.entries)
    return [f"{column.heading}: {column.meaning}." for column in columns]


def _ledger(entry: Entry) -> str:
    scenario = entry.chosen.scenario
    return in_one_line(entry.result.spent[scenario.method.name], unit_of(scenario))


def _worst(entry: Entry, pair: tuple[str, str]) -> Reading | None:
    return entry.audit.strongest(*pair) if entry.audit else None


def _who(reading: Reading | None, short: bool) -> str:
    """A figure with whose it is."""
    if reading is None or reading.mean is None:
        return "-"
    if short:
        doubt = "" if reading.supported else "?"
        star = "*" if reading.finding.adaptive else ""
        text = measure(reading.finding.measure).form.format(reading.mean)
        return f"{text}{doubt}{star} {reading.finding.observer}"
    known = ", defence known" if reading.finding.adaptive else ""
    return f"{reading} {reading.finding.observer}{known}"


def _found(reading: Reading | None) -> str:
    return "-" if reading is None else str(reading)


def _utility(entry: Entry, key: str) -> str:
    found = entry.over_seeds(key)
    if found is None:
        return "-"
    mean, half = found
    if key == "accuracy":
        return percent(mean) + ("" if half is None else f" ± {100 * half:.1f}")
    return plain(mean) + ("" if half is None else f" ± {half:.2f}")


def _as_markdown(grid: Grid) -> list[str]:
    def row(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |"

    rules: Iterable[str] = (
        "---:" if at and heading != "claim" else "---" for at, heading in enumerate(grid.headings)
    )
    return [row(grid.headings), f"|{'|'.join(rules)}|", *map(row, grid.rows), ""]
