"""The table of methods: a published method is one path through the five stages.

What travels is one of five exchanges; only `soft-labels` runs through the stages:

==============  =======================================================================
none            nothing: every client learns alone
soft-labels     answers for accepted proxy samples up, their consensus down
label-means     means of the answers to private records of a label up, their sums down (FD)
proxy-labels    nothing up, the proxy set's true labels down: a reference, never a method
weights         model weights up and their average down (FedAvg): a reference
==============  =======================================================================

A row sets its stages as published where that is known; what is ours and what a row still lacks
of its paper is in docs/methods.md, whose table a test compares with this one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fedkd.exchange.combine import Combine, Era, Mean, Power, TrueLabel, Variance
from fedkd.exchange.distill import KL, Distill
from fedkd.exchange.gate import Gate, Open, Quantile, Share, Soft
from fedkd.exchange.objectives.divergences import CrossEntropy
from fedkd.exchange.objectives.values import L1
from fedkd.exchange.regulariser import Labels, NoRegulariser, Proximal, Regulariser
from fedkd.exchange.release import ArgMax, Logits, Probabilities, Release
from fedkd.exchange.score import KMeans, NoScore, Score
from fedkd.exchange.scores.distances import Logistic
from fedkd.exchange.scores.kernels import KuLSIF
from fedkd.exchange.selection import All, Select
from fedkd.exchange.student import NoStudent, ServerStudent, Student

Exchange = Literal["none", "soft-labels", "label-means", "proxy-labels", "weights"]


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
    select: Select = field(default_factory=All)
    regulariser: Regulariser = field(default_factory=NoRegulariser)
    student: Student = field(default_factory=NoStudent)


METHODS: dict[str, Method] = {
    "edgefd": Method(
        line="clients answer only proxy samples that look like their own data (KMeans)",
        source="Mujtaba et al., FLTA 2025, arXiv 2508.14769; gate, k and distance are ours",
        score=KMeans(),
        gate=Share(),
    ),
    "selective-fd": Method(
        line="clients answer only where the density ratio own / uniform is high (KuLSIF)",
        source="Shao et al., Nature Communications 2024, arXiv 2304.01731, and its released code",
        # There 5, of MNIST's pixels over their standard deviation 0.3081; here pixels are 0 to 1.
        score=KuLSIF(bandwidth=5 * 0.3081, auxiliary=250),
        # There a ratio above the first quartile of the client's own; scores are minus the ratio.
        gate=Quantile(q=0.75),
        distill=CrossEntropy(),
    ),
    "fedmd": Method(
        line="every client answers every proxy sample; students match the mean of the raw logits",
        source="Li and Wang, arXiv 1910.03581, and its released code",
        release=Logits(),
        distill=L1(),
    ),
    "ds-fl": Method(
        line="the mean soft label is sharpened by a softmax at a low temperature (ERA)",
        source="Itahara et al., arXiv 2008.06180",
        combine=Era(temperature=0.1),
        distill=CrossEntropy(),
    ),
    "scarlet": Method(
        line="the mean soft label is sharpened by a power",
        source="IEEE TMC 2026, arXiv 2504.19602, and its released code; beta is ours",
        combine=Power(beta=1.5),
    ),
    "no-filter": Method(
        line="every client answers every proxy sample; mean of the soft labels",
        source="FedMD (arXiv 1910.03581) on probabilities; DS-FL's SA variant (2008.06180)",
    ),
    "cfd": Method(
        line="clients send their likeliest class; the server's model answers with soft labels",
        source="Sattler et al., arXiv 2012.00632; as re-implemented for SCARLET",
        release=ArgMax(),
        student=ServerStudent(),
    ),
    "mhat": Method(
        line="a model of the server's learns the mean of the soft labels, and teaches all",
        source="Hu et al., Information Sciences 2021; text not read",
        student=ServerStudent(),
    ),
    "fedaux": Method(
        line="answers count by how sure a client is that a sample is like its own (logistic)",
        source="Sattler et al., arXiv 2102.02514, and its released code, without models up",
        score=Logistic(),
        gate=Soft(),
        release=Logits(),
        student=ServerStudent(),
    ),
    "fed-et": Method(
        line="logits count by their variance, so that the surer clients count more; a server model",
        source="Cho et al., IJCAI 2022; only its introduction was read",
        release=Logits(),
        combine=Variance(),
        student=ServerStudent(),
    ),
    "weighted-fd": Method(
        line="answers count by what they give the proxy set's true labels, which the server knows",
        source="Weighted-FD, FGCS 183 (2026) 108517, and its released code; weights are guarded",
        combine=TrueLabel(),
        distill=CrossEntropy(),
    ),
    "fd": Method(
        line="what clients say of a label on average regularises the others (no proxy set)",
        source="Jeong et al., arXiv 1811.11479, second-hand; gamma as in HtFLlib",
        exchange="label-means",
        release=Logits(),
        distill=CrossEntropy(),
        regulariser=Labels(),
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
    "fedprox": Method(
        line="FedAvg whose clients are held near the average while they learn (FedProx)",
        source="Li et al., MLSys 2020, arXiv 1812.06127; mu is ours; reference",
        exchange="weights",
        regulariser=Proximal(),
    ),
}
