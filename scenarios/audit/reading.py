"""What audits found, read out of a run: figures over seeds, the strongest attack, contradictions.

All of it is empirical: a low figure says that these attacks failed, not that none can succeed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from privacy.audit.intervals import half_width
from scenarios.audit.findings import EPSILON, OBSERVERS, Curve, Finding, read, read_curves
from scenarios.results import Result
from scenarios.simulate import Plan

NULL = "null"
"""The part that attacks where there is nothing to find."""
CONTROLS = "controls"
"""The target, or in curves the attack, of exposures of secrets that nobody holds."""
UNSUPPORTED = "smallest FPR"
"""How the note begins where there are too few non-members for so small an FPR."""
OUTSIDE = tuple(observer for observer in OBSERVERS if observer != "owner")
"""Those who are not the client itself: what they find has leaked."""


class Measure(NamedTuple):
    """How a measure is named and written."""

    title: str
    form: str = "{:.3f}"
    falls: bool = False
    """Whether a lower value means that more leaks, down to zero."""


MEASURES = {
    "exposure": Measure("exposure, bits", "{:.2f}"),
    "auc": Measure("AUC"),
    "tpr@0.01": Measure("TPR at 1 % FPR"),
    "tpr@0.001": Measure("TPR at 0.1 % FPR"),
    "kl": Measure("KL divergence, nats", falls=True),
    "tv": Measure("total variation", falls=True),
    "angle": Measure("angle, degrees", "{:.1f}", falls=True),
    "ssim": Measure("SSIM"),
    EPSILON: Measure(EPSILON, "{:.2f}"),
}
"""By the key of a finding; any other is written as it is."""
QUESTIONS = {
    "exposure": "How much likelier is a planted secret than chance would have it?",
    "membership": "Was this record trained on?",
    "label-distribution": "How much of each class does a client hold? (distance from the truth)",
    "mask": "What does the choice of answered samples tell of a client's data?",
    "spectrum": "Does the model's head show in its answers?",
    "memorisation": "Are training texts said word for word?",
    "inversion": "What do the images of a class look like?",
    "gradient-inversion": "Can records be rebuilt from weights?",
    "epsilon": "What is the least epsilon that explains what was found?",
    "theft": "How well can a client's model be copied?",
    "canary-clients": "Does a client whose answers were planted show in the consensus?",
    NULL: "The same attacks where there is nothing to find",
}
"""What a part asks, in plain words."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One figure of one attack, over seeds."""

    finding: Finding
    """The first seed's, for what it is about."""
    values: tuple[float, ...]
    """One a seed; none where it could not be measured."""
    null: float | None
    most: float | None
    ceiling: float | None
    """The highest of any seed."""

    @property
    def mean(self) -> float | None:
        """Over seeds."""
        return float(np.mean(self.values)) if self.values else None

    @property
    def half(self) -> float | None:
        """Half of the 95 % interval of the mean over seeds, by Student's t; None for one."""
        return half_width(self.values)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Of 95 %: of the mean over seeds, or of one seed the finding's own, if it has any."""
        if self.mean is None:
            return None
        if self.half is not None:
            return self.mean - self.half, self.mean + self.half
        low, high = self.finding.low, self.finding.high
        return None if low is None or high is None else (low, high)

    @property
    def leak(self) -> float:
        """From 0, nothing leaks, to 1, all of it does; NaN where that is not known."""
        most = 0.0 if measure(self.finding.measure).falls else self.most
        if self.mean is None or self.null is None or most is None or most == self.null:
            return math.nan
        return min(max((self.mean - self.null) / (most - self.null), 0.0), 1.0)

    @property
    def supported(self) -> bool:
        """Whether there are enough non-members for an FPR so small."""
        return not self.finding.note.startswith(UNSUPPORTED)

    def __str__(self) -> str:
        """The mean with its 95 % interval: over seeds, with how many, or of a single seed.

        With a question mark where it is not `supported`.
        """
        form = measure(self.finding.measure).form.format
        if self.mean is None:
            return "-"
        text = form(self.mean) + ("" if self.supported else "?")
        if self.half is not None:
            return f"{text} ± {form(self.half)} ({len(self.values)} seeds, 95 %)"
        if self.interval is None:
            return text
        low, high = self.interval
        return f"{text} ({form(low)} to {form(high)})"


@dataclass(frozen=True, kw_only=True)
class Leaks:
    """What was found in one row, over its seeds."""

    seeds: tuple[int, ...]
    readings: tuple[Reading, ...]
    curves: tuple[tuple[Curve, ...], ...]
    """One tuple a seed."""
    contradictions: tuple[str, ...]
    """Where more was found than the ledger allows."""

    def asked(self) -> list[tuple[str, str]]:
        """The parts and measures that some attack has a value of, in the order of QUESTIONS."""
        pairs = {(r.finding.part, r.finding.measure) for r in self.readings if r.values}
        parts, measures = list(QUESTIONS), list(MEASURES)

        def place(pair: tuple[str, str]) -> tuple[int, int, tuple[str, str]]:
            part = parts.index(pair[0]) if pair[0] in parts else len(parts)
            return part, measures.index(pair[1]) if pair[1] in measures else len(measures), pair

        return sorted((pair for pair in pairs if pair[0] != NULL), key=place)

    def strongest(
        self,
        part: str,
        what: str,
        observers: Iterable[str] = OUTSIDE,
        adaptive: bool | None = None,
    ) -> Reading | None:
        """Of one part and measure, the attack that finds most; None where there is no figure.

        Args: adaptive: only attacks that do, or do not, know the defence.
        A figure that the sample does not support counts only where all are such. The strongest is
        chosen after the fact, so where nothing leaks it lies a little above the null.
        """
        among = [
            reading
            for reading in self.readings
            if (reading.finding.part, reading.finding.measure) == (part, what)
            and reading.finding.observer in observers
            and reading.finding.target != CONTROLS
            and adaptive in (None, reading.finding.adaptive)
            and reading.values
        ]
        return max(among, key=_strength, default=None)


ByName = Mapping[str, Leaks]
"""By row of a run, or by protection."""


def measure(key: str) -> Measure:
    """How a measure is named; one that is not in the table by its key."""
    return MEASURES.get(key, Measure(key))


def leaks(result: Result) -> dict[str, Leaks]:
    """What a run folder holds, by row; rows that were not audited are left out."""
    folder = result.folder
    if folder is None:
        return {}
    found = {}
    for row, cells in result.rows().items():
        plans = [Plan(row, cell.seed, result.scenario) for cell in cells]
        by_seed = {plan.seed: read(plan.folder(folder)) for plan in plans}
        by_seed = {seed: findings for seed, findings in by_seed.items() if findings}
        if not by_seed:
            continue
        found[row] = Leaks(
            seeds=tuple(by_seed),
            readings=tuple(over_seeds(list(by_seed.values()))),
            curves=tuple(
                tuple(read_curves(plan.folder(folder))) for plan in plans if plan.seed in by_seed
            ),
            contradictions=tuple(
                f"{row}, seed {seed}: {text}"
                for seed, findings in by_seed.items()
                for text in contradictions(findings)
            ),
        )
    return found


def over_seeds(by_seed: Sequence[Sequence[Finding]]) -> list[Reading]:
    """Findings of several seeds, those about the same thing together, in the order found."""
    groups: dict[tuple[object, ...], list[Finding]] = {}
    for findings in by_seed:
        for one in findings:
            key = (one.part, one.observer, one.attack, one.adaptive, one.target, one.measure)
            groups.setdefault(key, []).append(one)
    return [
        Reading(
            finding=group[0] if len(group) == 1 else replace(group[0], low=None, high=None),
            values=tuple(one.value for one in group if one.value is not None),
            null=_mean(one.null for one in group),
            most=_mean(one.most for one in group),
            ceiling=max((one.ceiling for one in group if one.ceiling is not None), default=None),
        )
        for group in groups.values()
    ]


def contradictions(findings: Iterable[Finding]) -> list[str]:
    """Where more was found than the ledger allows, in words: one of the two is wrong."""
    form = MEASURES[EPSILON].form.format
    return [
        f"{one.attack} on {one.target} ({one.observer}): {EPSILON} {form(one.value)}, and the "
        f"ledger allows {form(one.ceiling)}"
        for one in findings
        if one.contradicts
    ]


def _strength(reading: Reading) -> tuple[bool, float]:
    mean = float(np.mean(reading.values))
    return reading.supported, -mean if measure(reading.finding.measure).falls else mean


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
