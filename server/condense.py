"""Partial sums: a worker hears its clients' answers, and the server hears their sum.

Where a grid's workers answer for a block of clients at once, and the rule needs only the sum of
the answers, the server asks for condensed replies. The worker then hears the answers just as the
server would (`server.hearing`): each reply keeps its metrics and gets what was said about it, and
the first of them carries the sum. An answer that breaks the contract stays as it came, so that the
server refuses it in its own words. Sums are exact, so the consensus has the same bits.

Only a grid that carries clients out in workers of its own may say that it condenses: what is said
about a reply is believed, so none may come from a client, and what a client says of the kind is
dropped here.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedkd.config import from_json
from fedkd.data.federation import Federation
from fedkd.errors import PayloadError
from server.calls import payload_of, record_of
from server.hearing import AnyAnswer, Hearing, Sizes

SIZES = "sum-answers"
"""The record of a question that asks for condensed replies."""
HEARD = "heard"
"""The record of a condensed reply that says what hearing it found."""
BYTES = "bytes_up"
FEWEST = 3
"""Answers that are worth a sum: float64 takes twice what one answer's float32 does."""
SAVING = 2**16
"""Bytes that a sum must save for each answer in it; below that it costs the workers more CPU time
than it saves the server (`benchmarks/partial_sums.py`). The server decides, so it goes along."""


def ask(content: RecordDict, sizes: Sizes) -> None:
    """Let a question ask for condensed replies."""
    content[SIZES] = ConfigRecord({**sizes._asdict(), "saving": SAVING})


def heard(content: RecordDict | None) -> dict[str, Any] | None:
    """What a worker found when it heard the answer of a condensed reply; None for another."""
    if content is None or HEARD not in content:
        return None
    return dict(content.metric_records[HEARD])


def condense(question: RecordDict, replies: Mapping[int, Message]) -> None:
    """Condense the replies to a question in place, if it asks for that and it saves enough.

    Args: replies: of each client of a block.
    """
    if SIZES not in question:
        return
    contents = {client: reply.content for client, reply in replies.items() if reply.has_content()}
    for content in contents.values():
        content.pop(HEARD, None)
    answers = {c: contents[c] for c in sorted(contents) if _answers(contents[c])}
    told = {key: int(str(value)) for key, value in question.config_records[SIZES].items()}
    saving = told.pop("saving")
    data = {c: raw for c in answers if (raw := payload_of(answers[c])) is not None}
    n_bytes = {client: len(raw) for client, raw in data.items()}
    if not _worth(n_bytes, saving):
        return
    round_, hearing = _hearing(question, Sizes(**told))
    good: dict[int, AnyAnswer] = {}
    for client, raw in data.items():
        with suppress(PayloadError):
            good[client] = hearing.check(round_, client, raw)
    n_bytes = {client: n_bytes[client] for client in good}
    if not _worth(n_bytes, saving, hearing.sum_bytes(good.values())):
        return
    for client, answer in good.items():
        content = answers[client]
        content[HEARD] = MetricRecord({BYTES: n_bytes[client], **hearing.take(answer)})
        del content["payload"]
    total = hearing.sum_of(round_, list(good))
    first = answers[min(good)]  # the server hears it before the others of the block
    first["payload"] = record_of(total)


def _answers(content: RecordDict) -> bool:
    """Whether the server would hear an answer in it."""
    metrics = content.metric_records.get("metrics")
    return metrics is not None and "abstained" not in metrics and "payload" in content


def _worth(n_bytes: Mapping[int, int], saving: int, sum_bytes: int = 0) -> bool:
    """Whether a sum of so many bytes saves enough of those of the answers."""
    return len(n_bytes) >= FEWEST and sum(n_bytes.values()) - sum_bytes >= saving * len(n_bytes)


def _hearing(question: RecordDict, sizes: Sizes) -> tuple[int, Hearing]:
    """The round of a question, and what hears the answers to it."""
    config = question.config_records["config"]
    scenario, round_ = from_json(str(config["scenario"])), int(str(config["round"]))
    world = scenario.world(int(str(config["seed"])))
    return round_, Hearing(scenario, sizes, world, _strata(world))


@lru_cache(maxsize=1)
def _strata(world: Federation) -> NDArray[np.int64] | None:
    """Of the proxy records; a contributed pool's are gathered from all clients."""
    truth = world.proxy_truth
    return None if truth is None else truth[1]
