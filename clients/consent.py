"""What a client's operator allows to leave, whatever scenario a server sends."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedkd.config import Scenario
from fedkd.data.loader import Python
from fedkd.data.proxy import Contributed
from fedkd.errors import FedkdError
from fedkd.exchange.methods import Exchange
from fedkd.models.zoo import MODELS, is_own
from fedkd.section import Section


class Consent(Section):
    """The most that may leave a client; checked before each message is acted on.

    Guarantee: none of privacy. It keeps a server from asking for more than was agreed; what the
    agreed releases tell is what the client's ledger says.
    """

    exchanges: tuple[Exchange, ...] = ("none", "proxy-labels", "soft-labels")
    """What may be exchanged; weights only where they are named."""
    contributed: float = Field(0.1, ge=0, lt=1)
    """The largest share of its records that may be given to the proxy set, in the clear."""
    epsilon: float | None = Field(None, gt=0)
    """If set, a run must hold each client to a budget of at most so much at `delta` or less, for
    the unit `unit`."""
    delta: float = Field(1e-5, gt=0, lt=1)
    measures: bool = True
    """Whether losses and accuracies are told, which come from the private data and which no ledger
    charges; never where `epsilon` is set."""
    unit: Literal["record", "client"] = "record"
    """A budget for whole clients, replaced, holds for one record of them too."""

    @property
    def tells(self) -> bool:
        """Whether measures leave."""
        return self.measures and self.epsilon is None

    def check(self, scenario: Scenario) -> None:
        """Raises: FedkdError, with what this client does not agree to."""
        for source in (scenario.data, getattr(scenario.proxy, "source", None)):
            if isinstance(source, Python):
                raise FedkdError(
                    "this client runs no code that a server names",
                    value=f"data of {source.path}",
                    fix="another scenario, or such data in the client's own settings",
                )
        for name in filter(is_own, scenario.model.names):
            raise FedkdError(
                "this client runs no code that a server names",
                value=f"the model {name}",
                allowed=", ".join(MODELS),
                fix="another scenario, with a model of these",
            )
        exchange, proxy, privacy = scenario.method.exchange, scenario.proxy, scenario.privacy
        if exchange not in self.exchanges:
            raise _refused("the exchange", exchange, ", ".join(self.exchanges), "exchanges")
        given = proxy.fraction if isinstance(proxy, Contributed) and scenario.uses_pool else 0.0
        if given > self.contributed:
            raise _refused(
                "the share of raw records given to the proxy set",
                given,
                f"at most {self.contributed:g}",
                "contributed",
            )
        if self.epsilon is None:
            return
        budget = None if privacy.budget_is_the_server_s else privacy.budget
        enough = budget is not None and budget <= self.epsilon and privacy.delta <= self.delta
        if not enough or self.unit not in (privacy.unit, "record"):
            raise _refused(
                "the privacy budget",
                f"epsilon {budget} at delta {privacy.delta:g} for one {privacy.unit}",
                f"at most {self.epsilon:g} at delta {self.delta:g} for one {self.unit}",
                "epsilon",
            )


def _refused(what: str, value: object, allowed: str, key: str) -> FedkdError:
    return FedkdError(
        f"this client does not agree to {what} of this run",
        value=value,
        allowed=allowed,
        fix=f"another scenario, or consent.{key} in the client's own settings",
    )
