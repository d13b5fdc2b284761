"""Telling the consensus: as it travels is how it is learnt, recorded and measured."""

from __future__ import annotations

from fedkd import payload
from fedkd.config import Scenario
from fedkd.exchange.consensus import Consensus
from fedkd.rng import stream
from server.hearing import Sizes


def told(
    scenario: Scenario,
    seed: int,
    round_: int,
    consensus: Consensus,
    sizes: Sizes,
    *,
    recalls: bool = False,
) -> tuple[payload.Bytes | None, Consensus]:
    """The message, None if there is nothing to learn, and the consensus as it arrives.

    Args: recalls: whether clients also learn what they have kept of earlier rounds.
    """
    if len(consensus.ids) == 0 and not recalls:
        return None, consensus
    coding, packing = scenario.coding_down, scenario.packing(sizes.n_samples)
    if coding is None:
        return payload.encode_consensus(consensus, round_, packing), consensus
    draws = stream(seed, "server", round_, purpose="coding")
    data = payload.encode_coded_consensus(consensus, round_, coding, draws, packing)
    return data, payload.decode_consensus(
        data,
        round_=round_,
        n_samples=sizes.n_samples,
        n_classes=sizes.n_classes,
        coding=coding,
    )
