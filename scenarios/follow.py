"""Following the event logs of a run while another process, or another machine, writes them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from server.events import Event

LOOK_S = 0.2


def follow(log: Path, is_over: Callable[[], bool]) -> Iterator[Event]:
    """The events of a log as they are written; ends when `is_over` and all is told.

    A run that is resumed cuts its log at its checkpoint and writes those rounds again, the same
    ones: what comes before the first round, and each round that is finished, is told once.
    """
    position, told = 0, 0
    begun: set[bytes] = set()
    """What was told of before the first round."""
    while True:
        over = is_over()
        data = _read(log, position)
        if data is None:
            position = 0
            continue
        for line in data[: data.rfind(b"\n") + 1].splitlines(keepends=True):
            try:
                event: Event = json.loads(line)
            except ValueError:  # it was cut, and written again beyond here
                position, over = 0, False
                break
            position += len(line)
            round_ = int(event.get("round", 0))
            if line in begun or (round_ and round_ <= told):
                continue
            if not round_:
                begun.add(line)
            if event["event"] == "round":
                told = round_
            yield event
        if over:
            return
        time.sleep(LOOK_S)


def _read(log: Path, position: int) -> bytes | None:
    """What lies beyond a position; None where the log ends before it."""
    if not log.exists():
        return b""
    with log.open("rb") as file:
        if file.seek(0, os.SEEK_END) < position:
            return None
        file.seek(position)
        return file.read()


def follow_all(
    logs: Mapping[tuple[str, int], Path], is_over: Callable[[str, int], bool]
) -> Iterator[tuple[str, int, Event]]:
    """The events of the cells of a run, one after the other, by row and seed."""
    for (row, seed), log in logs.items():
        for event in follow(log, partial(is_over, row, seed)):
            yield row, seed, event
