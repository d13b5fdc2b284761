"""The table of methods: a published method is one path through the five stages.

What travels up is one of four exchanges; only `soft-labels` runs through the stages:

==============  =======================================================================
none            nothing: every client learns alone
soft-labels     answers for accepted proxy samples up, their consensus down
proxy-labels    nothing up, the proxy set's true labels down: a reference, never a method
weights         model weights up and their average down (FedAvg): a reference
==============  =======================================================================
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fedkd.exchange.combine import Combine, Mean
from fedkd.exchange.distill import KL, Distill
from fedkd.exchange.gate import Gate, Open, Share
from fedkd.exchange.release import Probabilities, Release
from fedkd.exchange.score import KMeans, NoScore, Score

Exchange = Literal["none", "soft-labels", "proxy-labels", "weights"]


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row: what is exchanged, by which stages, and where it comes from."""

    line: str
    source: str
    exchange: Exchange = "soft-labels"
    score: Score = field(default_factory=NoScore)
    gate: Gate = field(default_factory=Open)
    release: Release = field(default_factory=Probabilities)
    combine: Combine = field(default_factory=Mean)
    distill: Distill = field(default_factory=KL)


METHODS: dict[str, Method] = {
    "edgefd": Method(
        line="clients answer only proxy samples that look like their own data (KMeans)",
        source="Mujtaba et al., FLTA 2025, arXiv 2508.14769; gate, k and distance are ours",
        score=KMeans(),
        gate=Share(),
    ),
    "no-filter": Method(
        line="every client answers every proxy sample; mean of the soft labels",
        source="FedMD (arXiv 1910.03581) on probabilities; DS-FL's SA variant (2008.06180)",
    ),
    "local-only": Method(
        line="every client learns from its own data alone",
        source="reference",
        exchange="none",
    ),
    "proxy-labels": Method(
        line="every client also learns the proxy set's true labels, which no method may see",
        source="reference",
        exchange="proxy-labels",
    ),
    "fedavg": Method(
        line="model weights are averaged, no distillation (FedAvg, equal to Flower's)",
        source="McMahan et al., AISTATS 2017; reference",
        exchange="weights",
    ),
}
