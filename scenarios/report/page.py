"""The page: `report.html`, one file that opens offline, and its plots as PNGs beside it."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from fedkd import config
from fedkd.files import write as write_file
from scenarios.audit.reading import ByName, leaks
from scenarios.report import facts, privacy, times
from scenarios.report.audited import AUDIT_PLOTS, told
from scenarios.report.figures import png
from scenarios.report.plots import PLOTS, Plot, Shown
from scenarios.results import Result
from scenarios.spending import guaranteed
from scenarios.units import duration, percent, plain, size


class Column(NamedTuple):
    """A column of the comparison: its heading, how a line's value is written, what it means."""

    heading: str
    text: Callable[[dict[str, Any]], str]
    meaning: str


def write(result: Result, folder: Path) -> Path:
    """Write `folder/report.html` and `folder/plots/*.png`, each whole or not at all.

    Returns: the path of the page, which carries the plots itself.
    """
    found: ByName = leaks(result)
    pictures, drawn = _drawn(PLOTS, result, folder), _drawn(AUDIT_PLOTS, found, folder)
    page = folder / "report.html"
    write_file(page, _render(result, pictures, found, drawn).encode())
    return page


Pictures = list[tuple[Plot[Any], bytes]]


def _drawn(plots: tuple[Plot[Shown], ...], shown: Shown, folder: Path) -> Pictures:
    """What there is to draw, as PNGs; they are in the folder then too."""
    pictures = [(plot, png(figure)) for plot in plots if (figure := plot.draw(shown))]
    for plot, picture in pictures:
        write_file(folder / "plots" / f"{plot.name}.png", picture)
    return pictures


def _render(result: Result, pictures: Pictures, found: ByName, drawn: Pictures) -> str:
    environment = Environment(
        loader=PackageLoader("scenarios.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "thousands": "{:,}".format,
        "base64": lambda data: b64encode(data).decode(),
    }
    cell, table = facts.own_cell(result), result.table()
    own = found.get(result.scenario.method.name)
    return environment.get_template("template.html").render(
        scenario=result.scenario,
        toml=config.dump(result.scenario),
        written=f"{datetime.now():%Y-%m-%d %H:%M}",
        environment=facts.environment(),
        columns=_columns(table),
        table=table,
        pictures=pictures,
        told=privacy.statement(result, cell) if cell else None,
        audited=told(own) if own else None,
        leaks=drawn,
        unfinished=facts.unfinished(result),
        notes=facts.notes(result),
        times=times.in_words(result),
    )


def _share(key: str) -> Callable[[dict[str, Any]], str]:
    return lambda line: percent(line[key])


def _accuracy(line: dict[str, Any]) -> str:
    spread = line["accuracy_sd"]
    return percent(line["accuracy"]) + ("" if spread is None else f" ± {100 * spread:.1f}")


def _columns(table: list[dict[str, Any]]) -> list[Column]:
    """`COLUMNS`, and before bytes and time what only some results have."""
    some = {"server_accuracy": SERVER, "perplexity": PERPLEXITY}
    more = [c for key, c in some.items() if any(line[key] is not None for line in table)]
    more += [Column(c.heading, c.of, c.meaning + ".") for c in guaranteed(table)]
    return [*COLUMNS[:-2], *more, *COLUMNS[-2:]]


SERVER = Column(
    "server",
    _share("server_accuracy"),
    "Accuracy of the server's own model on the test set, in the last round.",
)
PERPLEXITY = Column(
    "perplexity",
    lambda line: plain(line["perplexity"]),
    "Of texts, in the last round: e to the mean cross-entropy of the test set's positions, mean "
    "over clients; a model that guesses evenly has as much as there are characters.",
)
COLUMNS = (
    Column(
        "accuracy",
        _accuracy,
        "On the test set, in the last round, mean over the clients that took part in it and over "
        "seeds; ± is the standard deviation over seeds. It is never the best over test rounds.",
    ),
    Column(
        "worst client",
        _share("accuracy_worst"),
        "The lowest accuracy of a client in the last round, mean over seeds.",
    ),
    Column(
        "own classes",
        _share("own_accuracy"),
        "The same test set weighed by each client's own mix of classes, in the last round.",
    ),
    Column(
        "by validation",
        _share("best_accuracy"),
        "Test accuracy in the round with the best accuracy on the validation set, which is apart "
        "from the test set; without a validation set, in the last round.",
    ),
    Column(
        "answered",
        _share("accepted"),
        "Share of the proxy set that a client's filter let it answer, in the last round.",
    ),
    Column(
        "precision",
        _share("precision"),
        "Of the proxy samples that a client answered, the share from classes it holds.",
    ),
    Column(
        "recall",
        _share("recall"),
        "Of the proxy samples from classes that a client holds, the share it answered.",
    ),
    Column(
        "consensus",
        _share("consensus_accuracy"),
        "Share of the answered proxy samples whose most likely class, by what all clients say "
        "together, is the true one, in the last round.",
    ),
    Column(
        "bytes",
        lambda line: size(line["bytes"]),
        "Payload of all clients and rounds, up and down, the proxy set included.",
    ),
    Column("time", lambda line: duration(line["seconds"]), "Of all rounds together, by the clock."),
)
