"""What a report says of an audit: the strongest attack of each observer, then every attack."""

from __future__ import annotations

from dataclasses import dataclass

from scenarios.audit.curves import exposures, rocs
from scenarios.audit.findings import OBSERVERS
from scenarios.audit.pictures import leakage
from scenarios.audit.reading import NULL, QUESTIONS, ByName, Leaks, Reading, measure
from scenarios.report.plots import Plot

NO_LIMIT = "-"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One figure, in words."""

    observer: str
    question: str
    measure: str
    attack: str
    target: str
    adaptive: bool
    value: str
    null: str
    ceiling: str
    note: str


@dataclass(frozen=True, kw_only=True)
class Told:
    """The audited part of the privacy section, of one row."""

    seeds: tuple[int, ...]
    observers: tuple[tuple[str, str, tuple[Line, ...]], ...]
    """Who looks, what that is, and the strongest attack on each question."""
    every: tuple[Line, ...]
    checks: tuple[Line, ...]
    """Of the part that attacks where there is nothing to find."""
    contradictions: tuple[str, ...]


def told(audit: Leaks) -> Told:
    """What a row's audit found."""
    strongest = {
        who: tuple(
            _line(best)
            for pair in audit.asked()
            if (best := audit.strongest(*pair, [who])) is not None
        )
        for who in OBSERVERS
    }
    return Told(
        seeds=audit.seeds,
        observers=tuple((who, OBSERVERS[who], lines) for who, lines in strongest.items() if lines),
        every=tuple(_line(one) for one in audit.readings if one.finding.part != NULL),
        checks=tuple(_line(one) for one in audit.readings if one.finding.part == NULL),
        contradictions=audit.contradictions,
    )


def _line(reading: Reading) -> Line:
    of = reading.finding
    form = measure(of.measure).form.format
    return Line(
        observer=of.observer,
        question=QUESTIONS.get(of.part, of.part),
        measure=measure(of.measure).title,
        attack=of.attack,
        target=of.target,
        adaptive=of.adaptive,
        value=str(reading),
        null=NO_LIMIT if reading.null is None else form(reading.null),
        ceiling=NO_LIMIT if reading.ceiling is None else form(reading.ceiling),
        note=of.note,
    )


def _several(audits: ByName) -> bool:
    return len(audits) > 1


AUDIT_PLOTS: tuple[Plot[ByName], ...] = (
    Plot(
        "leakage",
        lambda audits: leakage(audits) if _several(audits) else None,
        "Heat map of rows by observers: what the strongest attack found",
        "The strongest attack of each observer; the darker, the more leaks. White is what no "
        "leakage gives, grey was not measured. The owner is no observer: it shows how much there "
        "is to leak. A distance from the truth falls as more leaks.",
    ),
    Plot(
        "exposures",
        exposures,
        "Histograms of canary exposure in bits, one for each observer",
        "Share of the planted secrets by exposure, under the strongest attack of each row; grey "
        "are secrets that nobody holds, and the dotted line is the mean by chance, 1.44 bits. The "
        "further right, the more is known: at the end, the secret is the first guess.",
    ),
    Plot(
        "roc",
        rocs,
        "ROC curves on logarithmic axes, one panel for each observer",
        "How many members are found (TPR) for a share of false alarms (FPR), mean over seeds; "
        "both axes are logarithmic. On the dotted line the attack guesses. Left of the dashed line "
        "there are too few non-members to tell skill from luck.",
    ),
)
"""What is drawn of a run's audits."""
