"""The table of membership attacks: from what an observer has to one score a target.

Scores are float64 [targets], higher for a member and NaN without evidence; only their order counts.
All are empirical: what one attack found, never a bound on what another would.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fedkd.errors import FedkdError
from privacy.audit import bavaria, lira, quantile, rmia
from privacy.audit.signals import Doubles, Flags, without


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """What an observer has, about one view; `privacy.audit.signals` says what phi is.

    References are other views of the same targets: peers, students, shadow federations. The
    population is public samples that no client holds, such as the proxy set.
    """

    target: Doubles
    """phi [targets] of the view under attack."""
    references: Doubles | None = None
    """phi [views, targets]."""
    members: Flags | None = None
    """bool [views, targets]: which reference learnt which target. None: as far as known, none."""
    population: Doubles | None = None
    """phi [z] of the view under attack."""
    population_references: Doubles | None = None
    """phi [views, z]."""
    features: Doubles | None = None
    """[targets, d], public."""
    population_features: Doubles | None = None
    """[z, d]."""

    @property
    def out(self) -> Doubles:
        """phi [views, targets] of references that did not learn the target, NaN elsewhere."""
        references = self.get("references")
        return references if self.members is None else without(references, self.members)

    def get(self, name: str) -> Doubles:
        """The field `name`; a FedkdError if it is missing."""
        found: Doubles | None = getattr(self, name)
        if found is None:
            raise FedkdError("this attack lacks evidence", value=f"no {name}")
        return found


@dataclass(frozen=True, kw_only=True)
class Attack:
    """A row of the table. `score` raises a FedkdError where evidence is missing or too thin."""

    name: str
    line: str
    needs: tuple[str, ...]
    """Fields of `Evidence`, besides the target."""
    source: str
    score: Callable[[Evidence], Doubles]


_LIRA = "Carlini et al. 2022, arXiv:2112.03570"
_COOP = "Shi, Ouyang, Wang 2025, arXiv:2502.08001"
_PUBLIC = ("population", "population_references")

ROWS = (
    Attack(
        name="threshold",
        line="phi itself: how sure the view is of the label",
        needs=(),
        source="Yeom et al. 2018, arXiv:1709.01604 (the loss, of which phi is a monotone function)",
        score=lambda has: has.target.copy(),
    ),
    Attack(
        name="coop-lira",
        line="z against the peers, one variance for all targets",
        needs=("references",),
        source=f"{_COOP}; pooled variance: ours",
        score=lambda has: lira.coop_lira(has.target, has.out),
    ),
    Attack(
        name="coop-lira-per-target",
        line="z against the peers, each target's own variance",
        needs=("references",),
        source=_COOP,
        score=lambda has: lira.coop_lira(has.target, has.out, spread="per-target"),
    ),
    Attack(
        name="coop-lira-t",
        line="-ln survival of Student's t predicted from the peers",
        needs=("references",),
        source=f"{_COOP}; Student's t: ours",
        score=lambda has: lira.coop_lira(has.target, has.out, spread="student-t"),
    ),
    Attack(
        name="lira-offline",
        line="-ln survival among references that never learnt the target",
        needs=("references",),
        source=_LIRA,
        score=lambda has: lira.lira_offline(has.target, has.out),
    ),
    Attack(
        name="lira-offline-fixed",
        line="lira-offline with one variance for all targets: for few references",
        needs=("references",),
        source=_LIRA,
        score=lambda has: lira.lira_offline(has.target, has.out, fixed=True),
    ),
    Attack(
        name="lira-online",
        line="likelihood ratio of references that learnt the target to those that did not",
        needs=("references", "members"),
        source=_LIRA,
        score=lambda has: lira.lira_online(has.target, has.get("references"), _members(has)),
    ),
    Attack(
        name="lira-online-fixed",
        line="lira-online with one variance of each kind for all targets",
        needs=("references", "members"),
        source=_LIRA,
        score=lambda has: lira.lira_online(
            has.target, has.get("references"), _members(has), fixed=True
        ),
    ),
    Attack(
        name="rmia",
        line="share of public samples that the view favours less than the target; one reference do",
        needs=("references", *_PUBLIC),
        source="Zarifzadeh, Liu, Shokri 2024, arXiv:2312.03262",
        score=lambda has: rmia.rmia(has.target, has.out, *map(has.get, _PUBLIC)),
    ),
    Attack(
        name="bavaria",
        line="Bayesian Student's t: targets share what is known of spread; for few references",
        needs=("references",),
        source="after the abstract of arXiv:2603.11799; formulas ours",
        score=lambda has: bavaria.bavaria(has.target, has.get("references"), has.members),
    ),
    Attack(
        name="quantile",
        line="phi less the quantile expected of a public sample like it; no references",
        needs=("features", "population", "population_features"),
        source="Bertran et al. 2023, arXiv:2307.03694",
        score=lambda has: quantile.quantile(
            has.target, *map(has.get, ("features", "population", "population_features"))
        ),
    ),
)
ATTACKS: dict[str, Attack] = {row.name: row for row in ROWS}


def _members(has: Evidence) -> Flags:
    if has.members is None:
        raise FedkdError("this attack lacks evidence", value="no members")
    return has.members
