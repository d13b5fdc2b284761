"""Condensed replies: a worker hears as the server would, and the server hears the same run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Message, MetricRecord
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from clients.app import make_app
from clients.store import MemoryStore
from fedkd import payload_answers
from fedkd.config import Scenario
from fedkd.exchange.combine import Votes
from scenarios.grids.inline import InlineGrid
from scenarios.grids.local import serve
from scenarios.grids.nodes import partition_of
from server import condense
from server.app import make_app as make_server
from server.calls import record_of
from server.events import Event
from server.exchanges import SoftLabels
from server.hearing import Sizes
from small_runs import small

N_CLIENTS = 7
LIAR, ABSENT = 1, 4
SIZES = [7, 3, 4]
Lie = Callable[[Message, Message], Message | None]


@pytest.fixture(autouse=True)
def any_saving(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers are small here: whatever saves bytes at all is condensed."""
    monkeypatch.setattr(condense, "SAVING", 1)


class CondensingGrid(InlineGrid):
    """As a worker does it, in this process: blocks of these sizes in turn, each condensed."""

    condenses = True

    def __init__(self, app: ClientApp, sizes: Sequence[int]) -> None:
        super().__init__(app, N_CLIENTS)
        self._sizes = sizes
        self._n_blocks = 0
        self.n_condensed = 0

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies to the next block."""
        waiting = (message_id for message_id in message_ids if message_id in self._waiting)
        size = self._sizes[self._n_blocks % len(self._sizes)]
        taken = [self._waiting.pop(message_id) for message_id in islice(waiting, size)]
        if not taken:
            return []
        self._n_blocks += 1
        # Backwards: who comes first in a block must not matter.
        replies = {
            partition_of(message.metadata.dst_node_id): self._clients.carry_out(message)
            for message in reversed(taken)
        }
        condense.condense(taken[0].content, replies)
        self.n_condensed += sum(
            condense.HEARD in reply.content for reply in replies.values() if reply.has_content()
        )
        return list(replies.values())


class LateGrid(CondensingGrid):
    """Keeps the first block's answers back until the server gave the first of its clients up."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Nothing to the first question of a step; all that is asked for to the next."""
        ids = list(message_ids)
        waiting = [self._waiting[i].metadata.message_type for i in ids if i in self._waiting]
        if "train" in waiting and len(waiting) == N_CLIENTS and not self._n_held:
            self._n_held += 1
            time.sleep(0.3)
            return []
        return super().pull_messages(ids)

    _n_held = 0


def app_with(lie: Lie) -> ClientApp:
    """A ClientApp whose client LIAR's replies to `train` pass through `lie`."""
    store = MemoryStore()
    honest = make_app(lambda config: store)

    def liar(message: Message, context: Context, call_next: Callable[..., Message]) -> Message:
        reply = call_next(message, context)
        client = context.node_config["partition-id"]
        if message.metadata.message_type != "train":
            return reply
        if client == ABSENT:
            del reply.content["payload"]
            reply.content["metrics"] = MetricRecord({"abstained": 1.0})
        return (lie(message, reply) or reply) if client == LIAR else reply

    app = ClientApp(mods=[liar])
    for route in (app.query("hello"), app.query("pool"), app.train(), app.evaluate()):
        route(lambda message, context: honest(message, context))
    return app


def open_pool(**changes: object) -> Scenario:
    """Every client answers every sample of a public pool, unless `changes` say otherwise."""
    sections = {
        "partition": {"name": "dirichlet", "clients": N_CLIENTS, "alpha": 0.5},
        "training": {"rounds": 1, "local": {"epochs": 1}, "distill": {"epochs": 1}},
        "method": {"name": "no-filter"},
        "proxy": {"name": "public", "size": 100},
    }
    return small(**{**sections, **changes})


Arrays = dict[str, NDArray[np.generic]]


def play(
    scenario: Scenario, grid: InlineGrid, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Event], Arrays]:
    """The events without times, and the last consensus."""
    events: list[Event] = []
    made: list[SoftLabels] = []
    start = SoftLabels.__init__

    def noted(self: SoftLabels, *arguments: object) -> None:
        made.append(self)
        start(self, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(SoftLabels, "__init__", noted)
        serve(make_server(scenario, 1, None, events.append), grid)
    facts = [
        {k: v for k, v in event.items() if k != "seconds" and not k.endswith("_s")}
        for event in events
    ]
    return facts, made[0].arrays()


def assert_equal(one: tuple[list[Event], Arrays], other: tuple[list[Event], Arrays]) -> None:
    assert [list(event.items()) for event in one[0]] == [list(event.items()) for event in other[0]]
    assert one[1].keys() == other[1].keys()
    for key in one[1]:
        np.testing.assert_array_equal(one[1][key], other[1][key], strict=True)


def truth(message: Message, reply: Message) -> None:
    """No lie."""


def garbage(message: Message, reply: Message) -> None:
    reply.content["payload"] = record_of(bytes(range(100)))


def impostor(message: Message, reply: Message) -> None:
    """The answers of client 1 in the name of client 0."""
    data = reply.content.array_records["payload"]["bytes"].data
    forged = data.replace(b'"client": 1', b'"client": 0')
    assert forged != data
    payload_ = forged
    reply.content["payload"] = record_of(payload_)


def nothing(message: Message, reply: Message) -> None:
    del reply.content["payload"]


def crash(message: Message, reply: Message) -> None:
    raise RuntimeError("disk full")


def boast(message: Message, reply: Message) -> None:
    """A client that says that a worker heard it, and found it good."""
    garbage(message, reply)
    reply.content[condense.HEARD] = MetricRecord({condense.BYTES: 1, "accepted": 1.0})


def stuff(message: Message, reply: Message) -> None:
    """A client that sends a sum of its own: a hundred votes for class 0 of sample 0."""
    total = np.zeros((1, 10), np.float64)
    total[0, 0] = 100 * 2.0**30
    round_ = int(str(message.content.config_records["config"]["round"]))
    clients = np.arange(100, dtype=np.int32)
    votes = Votes(total, np.array([100], np.int32))
    forged = payload_answers.Partial(round_, clients, np.array([0], np.int32), votes)
    reply.content["payload"] = record_of(payload_answers.encode_partial(forged))
    reply.content[condense.HEARD] = MetricRecord({condense.BYTES: 1, "accepted": 1.0})


LIES: dict[str, tuple[Lie, str]] = {
    "none": (truth, ""),
    "garbage": (garbage, "not a payload"),
    "impostor": (impostor, "another client's name; got 0"),
    "nothing": (nothing, "no answers in the reply"),
    "crash": (crash, "disk full"),
    "boast": (boast, "not a payload"),
    "stuffed": (stuff, "wrong kind of message; got 'partial'"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_run_with_a_liar_is_the_same_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events in order, bytes and refusals included, and the consensus to the bit."""
    lie, words = LIES[name]
    scenario = open_pool()
    alone = play(scenario, InlineGrid(app_with(lie), N_CLIENTS), monkeypatch)
    grid = CondensingGrid(app_with(lie), SIZES)
    together = play(scenario, grid, monkeypatch)
    assert grid.n_condensed >= 3, "nothing was condensed"
    refused = [event for event in together[0] if event["event"] == "refused"]
    assert [(e["client"], words in e["reason"]) for e in refused] == (
        [(LIAR, True)] if words else []
    )
    assert_equal(together, alone)


OPEN: dict[str, object] = {"name": "no-filter"}
DISJOINT = {"method": {"name": "edgefd"}, "proxy": {"name": "contributed"}}


@pytest.mark.parametrize(
    ("changes", "n_condensed"),
    [
        pytest.param({}, N_CLIENTS - 1, id="dense"),
        pytest.param({"method": OPEN | {"release": {"name": "top-k", "k": 3}}}, 6, id="top-k"),
        pytest.param({"method": OPEN | {"release": {"name": "sampled"}}}, 6, id="sampled"),
        pytest.param(DISJOINT, 0, id="a sum is not shorter"),
    ],
)
def test_a_block_is_condensed_where_that_saves_bytes(
    changes: dict[str, object], n_condensed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = open_pool(**changes)
    grid = CondensingGrid(app_with(truth), [N_CLIENTS])
    together = play(scenario, grid, monkeypatch)
    assert_equal(together, play(scenario, InlineGrid(app_with(truth), N_CLIENTS), monkeypatch))
    assert grid.n_condensed == n_condensed


def test_a_text_and_a_pool_without_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several samples a record; and nothing to measure a filter by but how much it lets through."""
    draws = np.random.default_rng(1)
    for name in ("own", "foreign"):
        for topic in ("one", "two"):
            (tmp_path / name / topic).mkdir(parents=True)
            text = "".join(draws.choice(list("abc def."), 2000))
            (tmp_path / name / topic / "file.txt").write_text(text)
    own, foreign = (
        {"name": "text", "path": str(tmp_path / name), "length": 16} for name in ("own", "foreign")
    )
    for proxy in (
        {"name": "public", "size": 20},
        {"name": "foreign", "source": foreign, "size": 20},
    ):
        scenario = open_pool(
            data=own,
            model={"names": ["gru"]},
            partition={"name": "iid", "clients": N_CLIENTS},
            proxy=proxy,
        )
        grid = CondensingGrid(app_with(truth), [N_CLIENTS])
        together = play(scenario, grid, monkeypatch)
        assert_equal(together, play(scenario, InlineGrid(app_with(truth), N_CLIENTS), monkeypatch))
        assert grid.n_condensed == N_CLIENTS - 1


def test_fewer_than_three_answers_are_sent_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = CondensingGrid(app_with(truth), [2])
    play(open_pool(), grid, monkeypatch)
    assert grid.n_condensed == 0


def test_a_sum_that_saves_too_little_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six answers of a hundred rows, 4 bytes a number, against their sum, 8 bytes a number."""
    six, one = 6 * 100 * (4 * 10 + 4), 100 * (8 * 10 + 8)
    margin = (six - one) // 6
    for saving, n_condensed in ((margin - 1, 6), (margin + 450, 0), (six, 0)):
        monkeypatch.setattr(condense, "SAVING", saving)
        grid = CondensingGrid(app_with(truth), [N_CLIENTS])
        play(open_pool(), grid, monkeypatch)
        assert grid.n_condensed == n_condensed, saving


def sizes_asked(**changes: object) -> list[Sizes]:
    """What a run asks its workers to add up: nothing, or answers of these sizes."""
    asked: list[Sizes] = []
    store = MemoryStore()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(condense, "ask", lambda content, sizes: asked.append(sizes))
        grid = CondensingGrid(make_app(lambda config: store), [N_CLIENTS])
        serve(make_server(open_pool(**changes), 1, None), grid)
    assert grid.n_condensed == 0, "nobody asked for it"
    return asked


def test_what_needs_single_answers_gets_them() -> None:
    assert sizes_asked() == [Sizes(100, 10, 1)]
    assert sizes_asked(method={"name": "no-filter", "release": {"name": "logits"}}) == []
    for rule in ("median", "trimmed-mean", "geometric-median"):
        assert sizes_asked(method={"name": "no-filter", "combine": {"name": rule}}) == []
    for rule in ("era", "power"):
        asked = sizes_asked(method={"name": "no-filter", "combine": {"name": rule}})
        assert asked == [Sizes(100, 10, 1)]
    assert sizes_asked(method={"name": "fedavg"}) == []
    assert sizes_asked(method={"name": "local-only"}) == []


@pytest.mark.parametrize("rule", ["power", "median"])
def test_any_rule_is_the_same_run(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sharpened after the sums, or with every vote at the server."""
    scenario = open_pool(method={"name": "no-filter", "combine": {"name": rule}})
    alone = play(scenario, InlineGrid(app_with(truth), N_CLIENTS), monkeypatch)
    together = play(scenario, CondensingGrid(app_with(truth), SIZES), monkeypatch)
    assert_equal(together, alone)
    _, plain = play(open_pool(), InlineGrid(app_with(truth), N_CLIENTS), monkeypatch)
    assert not np.allclose(alone[1]["values"], plain["values"], atol=1e-3)


def test_a_sum_whose_first_client_was_given_up_is_refused_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The block comes when the server has just given client 0 up, who has the sum."""
    scenario = open_pool()
    scenario = scenario.model_copy(
        update={"training": scenario.training.model_copy(update={"timeout_s": 0.2})}
    )
    grid = LateGrid(app_with(truth), [3, 4])
    late, consensus = play(scenario, grid, monkeypatch)
    refused = [(event["client"], event["reason"]) for event in late if event["event"] == "refused"]
    assert refused[0] == (0, "no reply: silent for 0.2 s")
    assert refused[1:] == [
        (client, "its answer is in a sum that was not taken") for client in (1, 2)
    ]

    def lost(message: Message, context: Context, call_next: Callable[..., Message]) -> Message:
        reply = call_next(message, context)
        if message.metadata.message_type == "train" and context.node_config["partition-id"] < 3:
            del reply.content["payload"]
        return reply

    honest = app_with(truth)
    without = ClientApp(mods=[lost])
    for route in (without.query("hello"), without.query("pool"), without.train()):
        route(lambda message, context: honest(message, context))
    without.evaluate()(lambda message, context: honest(message, context))
    _, expected = play(scenario, InlineGrid(without, N_CLIENTS), monkeypatch)
    for key in expected:
        np.testing.assert_array_equal(consensus[key], expected[key], strict=True)
