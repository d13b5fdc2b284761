"""What a comparison found: a line for each method on each split, as CSV, Markdown and text."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from fedkd.exchange.gate import Oracle
from fedkd.files import write as write_file
from scenarios.compare.book import Entry, per_client
from scenarios.compare.plan import Comparison
from scenarios.report.columns import ACCURACY, QUALITY, TIME, WORST_TENTH, Column
from scenarios.report.facts import environment
from scenarios.spending import guaranteed
from scenarios.units import size

PAGE = "comparison.md"
UP = Column(
    "up",
    lambda line: size(line["up"]),
    "Payload bytes that one client sent in all rounds, with what it gave to the proxy set; mean "
    "over clients and seeds.",
)
ECE = Column(
    "ECE",
    lambda line: "-" if line["ece"] is None else f"{100 * line['ece']:.1f}",
    "Expected calibration error in points.",
)
DOWN = Column(
    "down",
    lambda line: size(line["down"]),
    "Payload bytes that one client got in all rounds, with the proxy set.",
)
AUROC = Column(
    "filter AUROC",
    lambda line: "-" if line["filter_auroc"] is None else f"{line['filter_auroc']:.3f}",
    "How well a client's score tells the others' proxy samples of classes that it holds from the "
    "rest: 1 is perfectly, 0.5 not at all; where data are IID there is nothing to tell apart.",
)
FILTER = Column(
    "filter time",
    lambda line: "-" if line["filter_s"] is None else f"{line['filter_s']:.3f} s",
    "One client's time to fit its filter and score the proxy set, all rounds together, mean over "
    "clients and seeds.",
)
MEASURED = (
    "accuracy",
    "accuracy_sd",
    "accuracy_worst",
    "accuracy_worst_tenth",
    "own_accuracy",
    "perplexity",
    "brier",
    "ece",
    "ece_low",
    "ece_high",
)
"""Of a cell's last round, for `cells.csv`; there `accuracy_sd` is over clients."""


def columns_of(entries: Sequence[Entry]) -> list[Column]:
    """What the table tells: an epsilon only where a row has one that is proved."""
    scored = any(entry.line and entry.line["filter_auroc"] is not None for entry in entries)
    filters = [AUROC, FILTER] if scored else []
    gains = [gain(entries)] if any(e.line and e.line["gain"] is not None for e in entries) else []
    return [ACCURACY, *gains, *QUALITY, *filters, *guarantees(entries), UP, DOWN, TIME]


def gain(entries: Sequence[Entry]) -> Column:
    """The column of paired differences, which is named for the first method."""
    first = entries[0].run.method

    def text(line: dict[str, Any]) -> str:
        if line["gain"] is None:
            return "-"
        spread = "" if line["gain_sd"] is None else f" ± {100 * line['gain_sd']:.1f}"
        return f"{100 * line['gain']:+.1f}{spread}"

    return Column(
        f"less {first}",
        text,
        f"Points of accuracy above {first} with the same seed, mean over the seeds that both have "
        "done; ± is the standard deviation of these differences.",
    )


def guarantees(entries: Sequence[Entry]) -> list[Column]:
    """The columns of epsilon."""
    found = guaranteed(entry.line for entry in entries if entry.line)
    return [Column(one.heading, one.of, one.meaning + ".") for one in found]


def cells_of(entry: Entry, columns: Sequence[Column]) -> list[str]:
    """The entry's texts, a dash each where no seed is done."""
    line = entry.line
    return [column.text(line) if line else "-" for column in columns]


def best(entries: Sequence[Entry], split: str) -> Entry | None:
    """The most accurate method on a split, of those that are no reference and whose filter is not
    told the truth, as none can be outside of a simulation."""
    there = [
        e
        for e in entries
        if e.run.split == split
        and e.line
        and not e.run.reference
        and not isinstance(e.run.scenario.method.gate, Oracle)
    ]
    return max(there, key=lambda entry: entry.line["accuracy"] if entry.line else 0, default=None)


def table_of(entries: Sequence[Entry], name: str) -> Table:
    """The table for the terminal."""
    shown = [ACCURACY, WORST_TENTH, ECE, *guarantees(entries), UP, DOWN, TIME]
    table = Table(
        title=f"{name}: last round, mean over clients",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        caption="(r) a reference row",
        caption_justify="left",
    )
    for heading in ("split", "method"):
        table.add_column(heading, no_wrap=True)
    for heading in ("seeds", *(column.heading for column in shown)):
        table.add_column(heading, justify="right")
    before = ""
    for entry in entries:
        split = entry.run.split
        texts = cells_of(entry, shown)
        if entry.failures and entry.line is None:
            texts[0] = "failed"
        name = entry.run.method + (" (r)" if entry.run.reference else "")
        table.add_row(split if split != before else "", name, entry.n_seeds, *texts)
        before = split
    return table


def write(entries: Sequence[Entry], comparison: Comparison, home: Path, command: str) -> None:
    """Write `comparison.csv`, `cells.csv` and `comparison.md`, each whole or not at all."""
    for name, rows in (("comparison", lines_csv(entries)), ("cells", cells_csv(entries))):
        write_file(home / f"{name}.csv", _csv(rows).encode())
    write_file(home / PAGE, _markdown(entries, comparison, command).encode())


def lines_csv(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """A line for each method on each split, shares as fractions, bytes and seconds.

    An epsilon is the larger of the accountants pld and rdp, which stand beside it.
    """
    rows = []
    for entry in entries:
        line = dict(entry.line or {})
        recalls = line.pop("class_recall", None) or ()
        spent = line.pop("privacy", ())
        line.pop("row", None)
        rows.append(
            {
                "split": entry.run.split,
                "method": entry.run.method,
                "reference": int(entry.run.reference),
                **line,
                "seeds": " ".join(str(cell.seed) for cell in entry.cells),
                "failed": "; ".join(entry.failures),
                **{f"recall_{at}": recall for at, recall in enumerate(recalls)},
                **{
                    f"{key}, one {told['unit']} {told['relation']}": told[key]
                    for told in spent
                    for key in ("epsilon", "delta", "pld", "rdp")
                },
            }
        )
    return rows


def cells_csv(entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """A line for each cell: its state, and what its last round says."""
    rows = []
    for entry in entries:
        done = {cell.seed: cell for cell in entry.cells}
        for seed, state in entry.states.items():
            row: dict[str, Any] = {
                "split": entry.run.split,
                "method": entry.run.method,
                "seed": seed,
                "state": state,
            }
            if cell := done.get(seed):
                up, down = per_client(cell)
                row |= {"round": cell.last["round"], "up": up, "down": down}
                row |= {"seconds": cell.seconds} | {key: cell.last.get(key) for key in MEASURED}
            rows.append(row)
    return rows


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    keys = dict.fromkeys(key for row in rows for key in row)
    writer = csv.DictWriter(text, list(keys), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _markdown(entries: Sequence[Entry], comparison: Comparison, command: str) -> str:
    columns = columns_of(entries)
    lines = [f"# {comparison.name}: methods compared", "", f"`{command}`; {environment()}.", ""]
    for split in comparison.splits:
        lines += [f"## {split}", ""]
        headings = ["method", "seeds", *(column.heading for column in columns)]
        lines += [_row(headings), f"|---|{'---:|' * (len(headings) - 1)}"]
        for entry in (one for one in entries if one.run.split == split):
            texts = cells_of(entry, columns)
            if entry is best(entries, split):
                texts[0] = f"**{texts[0]}**"
            name = entry.run.method + (" (reference)" if entry.run.reference else "")
            lines.append(_row([name, entry.n_seeds, *texts]))
        lines.append("")
    lines += [f"* {column.heading}: {column.meaning}" for column in columns]
    lines += [""] + [f"* {text}" for text in remarks(entries, comparison)]
    return "\n".join(lines).rstrip() + "\n"


def _row(texts: Sequence[str]) -> str:
    return f"| {' | '.join(text.replace('|', '&#124;') for text in texts)} |"


def remarks(entries: Sequence[Entry], comparison: Comparison) -> list[str]:
    """What failed, what is left out, and what is still to do."""
    found = [
        f"{entry.run.split}, {entry.run.method}, seed {', '.join(map(str, seeds))} failed: {reason}"
        for entry in entries
        for reason, seeds in entry.failures.items()
    ]
    found += [f"no {name} row: {reason}" for name, reason in comparison.left_out.items()]
    n_waiting = sum(list(entry.states.values()).count("waiting") for entry in entries)
    n_cells = sum(len(entry.states) for entry in entries)
    if n_waiting:
        found.append(f"{n_waiting} of {n_cells} cells are not done yet")
    return found
