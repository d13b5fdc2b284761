"""What there is to choose from: the house's tables, for `fedkd list`."""

from __future__ import annotations

from collections.abc import Mapping

from fedkd.config import REFERENCES
from fedkd.data.partition import PARTITIONS
from fedkd.data.proxy import PROXIES
from fedkd.data.sources import SOURCES
from fedkd.exchange.combine import COMBINES
from fedkd.exchange.distill import DISTILLS
from fedkd.exchange.gate import GATES
from fedkd.exchange.methods import METHODS
from fedkd.exchange.release import RELEASES
from fedkd.exchange.score import SCORES
from fedkd.models.zoo import MODELS
from fedkd.protection import FILTERS, PROTECTED_RELEASES, SERVERS, TRAININGS
from fedkd.section import Section


def catalogue() -> dict[str, dict[str, str]]:
    """A line for every name, by the key of a scenario that takes it."""

    def lines(rows: Mapping[str, type[Section]]) -> dict[str, str]:
        return {name: row.line() for name, row in rows.items()}

    return {
        "method.name": {name: method.line for name, method in METHODS.items()},
        "method.score.name": lines(SCORES),
        "method.gate.name": lines(GATES),
        "method.release.name": lines(RELEASES),
        "method.combine.name": lines(COMBINES),
        "method.distill.name": lines(DISTILLS),
        "model.names": {
            name: (build.__doc__ or "").strip().splitlines()[0] for name, build in MODELS.items()
        },
        "data.name": lines(SOURCES),
        "partition.name": lines(PARTITIONS),
        "proxy.name": lines(PROXIES),
        "privacy.training.name": lines(TRAININGS),
        "privacy.filter.name": lines(FILTERS),
        "privacy.release.name": lines(PROTECTED_RELEASES),
        "privacy.server.name": lines(SERVERS),
        "references": {name: line for name, (line, _) in REFERENCES.items()},
    }
