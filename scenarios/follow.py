"""Following the event logs of a run while another process, or another machine, writes them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from server.events import Event

LOOK_S = 0.2


def follow(log: Path, is_over: Callable[[], bool]) -> Iterator[Event]:
    """The events of a log, each once, as they are written; ends when `is_over` and all is told.

    A run that is resumed cuts its log at its checkpoint and writes those rounds again, the same
    ones: no round is told twice.
    """
    position, told = 0, 0
    while True:
        over = is_over()
        size = log.stat().st_size if log.exists() else 0
        if size < position:
            position = 0
        if size > position:
            with log.open("rb") as file:
                file.seek(position)
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            position += len(whole)
            for line in whole.splitlines():
                event: Event = json.loads(line)
                round_ = int(event.get("round", 0))
                if event["event"] in ("round", "client") and round_ <= told:
                    continue
                if event["event"] == "round":
                    told = round_
                yield event
        if over:
            return
        time.sleep(LOOK_S)


def follow_all(
    logs: Mapping[tuple[str, int], Path], is_over: Callable[[str, int], bool]
) -> Iterator[tuple[str, int, Event]]:
    """The events of the cells of a run, one after the other, by row and seed."""
    for (row, seed), log in logs.items():
        for event in follow(log, lambda row=row, seed=seed: is_over(row, seed)):  # type: ignore[misc]
            yield row, seed, event
