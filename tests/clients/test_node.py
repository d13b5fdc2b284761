"""A deployed client whose line breaks at the worst moments loses no message.

The line is a stand-in that breaks where it is told to; the real one is in tests/e2e.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from clients.fleet import NotAccepted, Unreachable, _refusal
from clients.node import Node
from scenarios.grids.nodes import identify


class Line:
    """A Fleet with these messages waiting; `breaks` says how often a step fails first."""

    address, node = "nowhere", 7

    def __init__(self, rounds: list[int], **breaks: int) -> None:
        identify()
        self.waiting = [question(round_) for round_ in rounds]
        self.breaks = breaks
        self.got: list[int] = []

    def _break(self, step: str) -> None:
        if self.breaks.get(step, 0):
            self.breaks[step] -= 1
            raise Unreachable("the line is cut")

    def join(self, known: int = 0) -> int:
        return self.node

    def pull(self) -> tuple[str, int, dict[str, bytes]] | None:
        self._break("pull")
        if not self.waiting:
            return None
        message = self.waiting.pop(0)
        objects = {name: one.deflate() for name, one in get_all_nested_objects(message).items()}
        return message.object_id, 1, objects

    def confirm(self, run: int, id_: str) -> None:
        self._break("confirm")

    def push(self, reply: Message, seconds: float) -> None:
        self._break("push")
        self.got.append(int(str(reply.content.config_records["said"]["round"])))


def question(round_: int) -> Message:
    data = ArrayRecord({"x": Array(np.arange(3.0))})
    content = RecordDict({"config": ConfigRecord({"round": round_}), "payload": data})
    return Message(content, 7, "train")


def app(asked: list[int]) -> ClientApp:
    made = ClientApp()

    @made.train()
    def train(message: Message, context: Context) -> Message:
        round_ = int(str(message.content.config_records["config"]["round"]))
        asked.append(round_)
        return Message(RecordDict({"said": ConfigRecord({"round": round_})}), reply_to=message)

    return made


@pytest.mark.parametrize("step", ["pull", "confirm", "push"])
def test_a_line_that_breaks_costs_no_message(tmp_path: Path, step: str) -> None:
    line: Any = Line([1, 2, 3], **{step: 2})
    asked: list[int] = []
    node = Node(line, app(asked), {}, tmp_path)
    node.join()
    broken, turns = 0, 0
    while len(line.got) < 3 and turns < 20:
        turns += 1
        try:
            node.turn()
        except Unreachable:
            broken += 1
    assert broken == 2
    assert line.got == [1, 2, 3]
    assert not node.turn()


def test_what_is_owed_is_answered_after_a_restart(tmp_path: Path) -> None:
    line: Any = Line([1, 2], push=1)
    node = Node(line, app([]), {}, tmp_path)
    with pytest.raises(Unreachable):
        node.turn()
    again = Node(line, app([]), {}, tmp_path)
    while again.turn():
        pass
    assert line.got == [1, 2]


@pytest.mark.parametrize(
    ("status", "kind"), [(500, Unreachable), (503, Unreachable), (401, NotAccepted)]
)
def test_a_server_in_trouble_is_no_refusal(status: int, kind: type[Exception]) -> None:
    """A SuperLink whose database is locked says 500."""
    answer = httpx.Response(status, text="{}", request=httpx.Request("POST", "https://x"))
    error = httpx.HTTPStatusError("", request=answer.request, response=answer)
    assert isinstance(_refusal(error, "x"), kind)
