"""Findings of a made-up audit: scores drawn at a known distance, measured by the real measures."""

from __future__ import annotations

import numpy as np

from fedkd.rng import stream
from privacy.audit.exposure import NULL_BITS
from privacy.audit.roc import Roc, roc, smallest_fpr, tpr_at
from scenarios.audit.findings import OBSERVERS, Curve, Finding

KEPT = dict(zip(OBSERVERS, (1.0, 0.6, 0.3, 0.35, 0.2), strict=True))
"""How much of the owner's distance is left to each observer."""
N, BITS = 500, 13.29
IN_PROXY = "canaries in the proxy set"


def membership(
    seed: int, observer: str, attack: str, distance: float, adaptive: bool = False
) -> tuple[list[Finding], Curve]:
    """Members score higher than non-members by so many standard deviations."""
    rng = stream(seed, "audit", purpose=f"{observer} {attack} {distance}")
    curve = roc(rng.normal(distance, 1, N), rng.normal(0, 1, N))
    at = {"part": "membership", "observer": observer, "attack": attack, "target": IN_PROXY}
    auc = Finding(**at, adaptive=adaptive, measure="auc", value=curve.auc, null=0.5, most=1.0, n=N)  # type: ignore[arg-type]
    points = [
        Finding(
            **at,  # type: ignore[arg-type]
            adaptive=adaptive,
            measure=f"tpr@{point.target}",
            value=point.tpr,
            low=point.low,
            high=point.high,
            null=point.target,
            most=1.0,
            n=N,
            note=f"smallest FPR that {N} non-members support: {smallest_fpr(N)}",
        )
        for point in tpr_at(curve, [0.01, 0.001])
    ]
    return [auc, *points], _line(curve, at)


def _line(curve: Roc, at: dict[str, str]) -> Curve:
    keep = np.unique(np.linspace(0, len(curve.fpr) - 1, 200).astype(int))
    x, y = (tuple(map(float, values[keep])) for values in (curve.fpr, curve.tpr))
    return Curve(**at, kind="roc", x=x, y=y, n=N)  # type: ignore[arg-type]


def exposure(seed: int, observer: str, share: float) -> tuple[list[Finding], list[Curve]]:
    """Canaries of which a share is known wholly, and controls."""
    rng = stream(seed, "audit", purpose=f"{observer} exposure {share}")
    by_chance = np.minimum(rng.exponential(NULL_BITS, 2 * N // 10), BITS)
    canaries, controls = np.split(by_chance, 2)
    canaries = np.where(rng.random(len(canaries)) < share, BITS - canaries / 4, canaries)
    at = {"part": "exposure", "observer": observer, "target": "canaries"}
    mean = float(canaries.mean())
    finding = Finding(
        **at,  # type: ignore[arg-type]
        attack="exact rank",
        measure="exposure",
        value=mean,
        low=mean - 0.5,
        high=mean + 0.5,
        null=NULL_BITS,
        most=BITS,
        n=len(canaries),
    )
    return [finding], [
        Curve(**at, attack=name, kind="histogram", x=tuple(map(float, values)), n=len(values))  # type: ignore[arg-type]
        for name, values in (("exact rank", canaries), ("controls", controls))
    ]


def audit(
    seed: int, distance: float, *, texts: bool = False, knows: float | None = None
) -> tuple[list[Finding], list[Curve]]:
    """A whole audit; `knows`: the distance for an attack that knows the defence."""
    findings: list[Finding] = []
    curves: list[Curve] = []
    for observer, kept in KEPT.items():
        attacks = [("coop-lira", distance, False), ("rmia", 0.8 * distance, False)]
        if knows is not None:
            attacks.append(("coop-lira, temperature undone", knows, True))
        for name, far, adaptive in attacks:
            some, curve = membership(seed, observer, name, far * kept, adaptive)
            findings += some
            curves.append(curve)
        if texts:
            some, lines = exposure(seed, observer, min(kept * distance / 4, 1))
            findings += some
            curves += lines
    for observer in ("uploads", "peer"):
        findings.append(
            Finding(
                part="label-distribution",
                observer=observer,
                attack="calibrated",
                target="clients",
                measure="tv",
                value=0.5 / (1 + distance * KEPT[observer]),
                null=0.5,
                most=0.0,
                n=10,
            )
        )
    return findings, curves
