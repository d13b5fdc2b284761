"""The page: `report.html`, one file that opens offline, and its plots as PNGs beside it."""

from __future__ import annotations

from base64 import b64encode
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from fedkd import config
from fedkd.files import write as write_file
from scenarios.audit.reading import ByName, leaks
from scenarios.report import facts, privacy, times
from scenarios.report.audited import AUDIT_PLOTS, told
from scenarios.report.columns import QUALITY, columns_of
from scenarios.report.figures import png
from scenarios.report.plots import PLOTS, Plot, Shown
from scenarios.results import Result


def write(result: Result, folder: Path) -> Path:
    """Write `folder/report.html` and `folder/plots/*.png`, each whole or not at all.

    Returns: the path of the page, which carries the plots itself.
    """
    found: ByName = leaks(result)
    pictures, leaked = drawn(PLOTS, result, folder), drawn(AUDIT_PLOTS, found, folder)
    page = folder / "report.html"
    write_file(page, _render(result, pictures, found, leaked).encode())
    return page


Pictures = list[tuple[Plot[Any], bytes]]


def drawn(plots: tuple[Plot[Shown], ...], shown: Shown, folder: Path) -> Pictures:
    """What there is to draw, as PNGs; they are in the folder then too."""
    pictures = [(plot, png(figure)) for plot in plots if (figure := plot.draw(shown))]
    for plot, picture in pictures:
        write_file(folder / "plots" / f"{plot.name}.png", picture)
    return pictures


def templates(*packages: str) -> Environment:
    """What renders pages of packages, and of this one."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(name, ".") for name in (*packages, "scenarios.report")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "thousands": "{:,}".format,
        "base64": lambda data: b64encode(data).decode(),
    }
    return environment


def _render(result: Result, pictures: Pictures, found: ByName, leaked: Pictures) -> str:
    cell, table = facts.own_cell(result), result.table()
    own = found.get(result.scenario.method.name)
    return (
        templates()
        .get_template("template.html")
        .render(
            scenario=result.scenario,
            toml=config.dump(result.scenario),
            written=f"{datetime.now():%Y-%m-%d %H:%M}",
            environment=facts.environment(),
            columns=columns_of(table),
            quality=QUALITY if any(line["brier"] is not None for line in table) else (),
            table=table,
            pictures=pictures,
            told=privacy.statement(result, cell) if cell else None,
            audited=told(own) if own else None,
            leaks=leaked,
            unfinished=facts.unfinished(result),
            notes=facts.notes(result),
            times=times.in_words(result),
        )
    )
