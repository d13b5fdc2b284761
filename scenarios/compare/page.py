"""The page of a comparison: `comparison.html`, one file that opens offline, with its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from fedkd.files import write as write_file
from scenarios.compare.book import Entry
from scenarios.compare.pictures import PICTURES
from scenarios.compare.plan import Comparison
from scenarios.compare.table import best, cells_of, columns_of, remarks
from scenarios.report.columns import ACCURACY
from scenarios.report.facts import environment
from scenarios.report.page import drawn, templates

PAGE = "comparison.html"


def write(entries: Sequence[Entry], comparison: Comparison, home: Path, command: str) -> Path:
    """Write the page and its pictures, each whole or not at all; returns the page's path.

    Args: command: what makes it again.
    """
    path, columns = home / PAGE, columns_of(entries)
    groups = [
        (
            split,
            [
                (entry, cells_of(entry, columns), entry is best(entries, split))
                for entry in entries
                if entry.run.split == split
            ],
        )
        for split in comparison.splits
    ]
    glance = {
        (entry.run.method, entry.run.split): cells_of(entry, [ACCURACY])[0] for entry in entries
    }
    text = (
        templates("scenarios.compare")
        .get_template("comparison.html")
        .render(
            comparison=comparison,
            written=f"{datetime.now():%Y-%m-%d %H:%M}",
            environment=environment(),
            command=command,
            columns=columns,
            groups=groups,
            glance=glance,
            best={
                split: entry.run.method
                for split in comparison.splits
                if (entry := best(entries, split))
            },
            remarks=remarks(entries, comparison),
            pictures=drawn(PICTURES, entries, home),
        )
    )
    write_file(path, text.encode())
    return path
