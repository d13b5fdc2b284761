"""The server against clients that break the contract: refused with a reason, the round goes on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, MetricRecord
from flwr.clientapp import ClientApp

from clients.app import make_app
from clients.store import MemoryStore
from fedkd import payload, payload_answers
from fedkd.errors import FedkdError
from fedkd.exchange.consensus import Consensus
from fedkd.sparse import Largest
from scenarios.grids import inline
from server.app import make_app as make_server
from server.calls import record_of
from server.events import Event
from small_runs import small

N_CLIENTS = 3
LIAR = 1

Lie = Callable[[payload_answers.Answer], payload.Bytes]


def play(lie: Callable[[Message, Message], Message | None], **changes: object) -> list[Event]:
    """Run with a client 1 whose replies to `train` pass through `lie`."""
    store = MemoryStore()
    honest = make_app(lambda config: store)

    def liar(message: Message, context: Context, call_next: Callable[..., Message]) -> Message:
        reply = call_next(message, context)
        if context.node_config["partition-id"] != LIAR or message.metadata.message_type != "train":
            return reply
        return lie(message, reply) or reply

    app = ClientApp(mods=[liar])
    app.query("hello")(lambda message, context: honest(message, context))
    app.query("pool")(lambda message, context: honest(message, context))
    app.train()(lambda message, context: honest(message, context))
    app.evaluate()(lambda message, context: honest(message, context))
    events: list[Event] = []
    inline.run(make_server(small(**changes), 1, None, events.append), app, N_CLIENTS)
    return events


def with_answer(lie: Lie) -> Callable[[Message, Message], Message | None]:
    """A lie about the answers: the payload is replaced."""

    def replace(message: Message, reply: Message) -> Message | None:
        raw = reply.content.array_records["payload"]["bytes"].data
        round_ = int(message.content.config_records["config"]["round"])
        answer = payload_answers.decode_answer(
            raw, client=LIAR, round_=round_, n_samples=10**6, n_classes=10, simplex=True
        )
        reply.content["payload"] = record_of(lie(answer))
        return reply

    return replace


def bad_schema(answer: payload_answers.Answer) -> payload.Bytes:
    raw = payload_answers.encode_answer(answer)
    return raw.replace(b'"schema": 2', b'"schema": 9')


LIES: dict[str, tuple[Lie, str]] = {
    "shape": (
        lambda a: payload_answers.encode_answer(a._replace(values=a.values[:, :9])),
        "values are",
    ),
    "nan": (
        lambda a: payload_answers.encode_answer(a._replace(values=np.full_like(a.values, np.nan))),
        "not finite",
    ),
    "out of range": (
        lambda a: payload_answers.encode_answer(a._replace(ids=a.ids + 100_000)),
        "out of range",
    ),
    "repeated": (
        lambda a: payload_answers.encode_answer(a._replace(ids=np.repeat(a.ids[:1], len(a.ids)))),
        "repeated",
    ),
    "round": (
        lambda a: payload_answers.encode_answer(a._replace(round=a.round + 1)),
        "another round",
    ),
    "client": (
        lambda a: payload_answers.encode_answer(a._replace(client=0)),
        "another client's name",
    ),
    "schema": (bad_schema, "wrong schema"),
    "kind": (
        lambda a: payload.encode_consensus(Consensus(a.ids, a.values), a.round),
        "wrong kind",
    ),
    "no distribution": (
        lambda a: payload_answers.encode_answer(a._replace(values=a.values * 2)),
        "not a distribution",
    ),
    "garbage": (lambda a: bytes(range(100)), "not a payload"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_malformed_answer_is_refused_and_the_round_goes_on(name: str) -> None:
    lie, reason = LIES[name]
    events = play(with_answer(lie))
    refused = [event for event in events if event["event"] == "refused"]
    assert [(e["round"], e["client"], e["step"]) for e in refused] == [
        (1, LIAR, "train"),
        (2, LIAR, "train"),
    ]
    assert reason in refused[0]["reason"]
    rounds = [event for event in events if event["event"] == "round"]
    assert len(rounds) == 2
    assert 0 < rounds[-1]["kept"] <= 1


def test_a_refused_answer_leaves_no_trace_in_the_consensus() -> None:
    """A lie about half the rows must not have added the other half."""

    def half(answer: payload_answers.Answer) -> payload.Bytes:
        values = answer.values.copy()
        values[-1, 0] = np.inf
        return payload_answers.encode_answer(answer._replace(values=values))

    def silent(message: Message, reply: Message) -> Message:
        del reply.content["payload"]
        return reply

    def outcome(events: list[Event]) -> list[Event]:
        times = ("seconds", "filter_s", "bytes_up")
        return [
            {k: v for k, v in event.items() if k not in times}
            for event in events
            if event["event"] == "round"
        ]

    assert outcome(play(with_answer(half))) == outcome(play(silent))


def test_a_sparse_answer_that_is_malformed_is_refused_before_any_row_is_added() -> None:
    """The last row breaks the contract; a dense answer is not what this method sends."""
    top_k = {"name": "edgefd", "release": {"name": "top-k", "k": 3}}

    def reading(lie: Callable[[payload_answers.CodedAnswer], payload.Bytes]) -> list[Event]:
        def replace(message: Message, reply: Message) -> Message:
            answer = payload_answers.decode_coded_answer(
                reply.content.array_records["payload"]["bytes"].data,
                client=LIAR,
                round_=int(message.content.config_records["config"]["round"]),
                n_samples=10**6,
                n_classes=10,
                coding=Largest(3),
            )
            reply.content["payload"] = record_of(lie(answer))
            return reply

        return play(replace, method=top_k)

    def last_row_raised(answer: payload_answers.CodedAnswer) -> payload.Bytes:
        (dense,) = answer.blocks()
        data = payload_answers.encode_coded_answer(dense, Largest(3), np.random.default_rng(0))
        values = answer.arrays["values"]
        raised = values.copy()
        raised[-1] += 1
        forged = data.replace(values.tobytes(), raised.tobytes())
        assert forged != data
        return forged

    def densely(answer: payload_answers.CodedAnswer) -> payload.Bytes:
        (dense,) = answer.blocks()
        return payload_answers.encode_answer(dense)

    def silent(message: Message, reply: Message) -> Message:
        del reply.content["payload"]
        return reply

    def of(kind: str, events: list[Event]) -> list[Event]:
        times = ("seconds", "filter_s", "bytes_up")
        return [
            {k: v for k, v in event.items() if k not in times}
            for event in events
            if event["event"] == kind
        ]

    without = of("round", play(silent, method=top_k))
    for lie, reason in (
        (last_row_raised, "a row is not a distribution"),
        (densely, "wrong kind of message; got 'answer'; allowed: top-k-answer"),
    ):
        events = reading(lie)
        assert [reason in event["reason"] for event in of("refused", events)] == [True, True]
        assert of("round", events) == without


def abstaining(message: Message, reply: Message) -> Message:
    """What a client says whose budget is spent."""
    del reply.content["payload"]
    reply.content["metrics"] = MetricRecord({"abstained": 1.0})
    return reply


def test_a_client_that_abstains_is_counted_and_not_refused() -> None:
    events = play(abstaining)
    assert not [event for event in events if event["event"] == "refused"]
    mine = [e for e in events if e["event"] == "client" and e["client"] == LIAR]
    assert [event["abstained"] for event in mine] == [1.0, 1.0]
    assert [event["bytes_up"] for event in mine] == [0, 0]
    assert all("accepted" not in event and event["accuracy"] > 0 for event in mine)
    rounds = [event for event in events if event["event"] == "round"]
    assert [event["n_abstained"] for event in rounds] == [1, 1]
    assert [event["n_clients"] for event in rounds] == [N_CLIENTS, N_CLIENTS]
    assert rounds[1]["bytes_pool"] == 0  # it keeps the pool, unlike a client that failed


def test_nobody_abstains_where_nothing_is_protected() -> None:
    events = play(lambda message, reply: None)
    assert [e["n_abstained"] for e in events if e["event"] == "round"] == [0, 0]


def test_what_an_abstaining_client_sends_all_the_same_is_not_heard() -> None:
    """Nobody has charged it: the consensus is as if it had sent nothing."""

    def both(message: Message, reply: Message) -> Message:
        reply.content["metrics"] = MetricRecord({"abstained": 1.0})
        return reply

    def heard(events: list[Event]) -> list[Event]:
        keys = ("kept", "consensus_accuracy", "accuracy", "n_abstained")
        return [{k: e[k] for k in keys} for e in events if e["event"] == "round"]

    assert heard(play(both)) == heard(play(abstaining))


@pytest.mark.parametrize("method", ["fedavg", "no-filter"])
def test_if_all_abstain_the_run_goes_on_with_what_is_known(method: str) -> None:
    """Of each method: no consensus, or the weights as they were."""
    store = MemoryStore()
    honest = make_app(lambda config: store)
    app = ClientApp()

    def train(message: Message, context: Context) -> Message:
        return abstaining(message, honest(message, context))

    app.query("hello")(lambda message, context: honest(message, context))
    app.query("pool")(lambda message, context: honest(message, context))
    app.train()(train)
    app.evaluate()(lambda message, context: honest(message, context))
    events: list[Event] = []
    scenario = small(method={"name": method})
    inline.run(make_server(scenario, 1, None, events.append), app, N_CLIENTS)
    rounds = [event for event in events if event["event"] == "round"]
    assert [event["n_abstained"] for event in rounds] == [N_CLIENTS] * 2
    assert not [event for event in events if event["event"] == "refused"]
    if method == "fedavg":
        assert rounds[0]["accuracy"] == rounds[1]["accuracy"]
    assert all("every client that was heard abstained" in event["note"] for event in rounds)


def test_a_client_that_crashes_is_left_out() -> None:
    def crash(message: Message, reply: Message) -> Message:
        raise RuntimeError("disk full")

    events = play(crash)
    refused = [event for event in events if event["event"] == "refused"]
    assert "disk full" in refused[0]["reason"]
    assert len([event for event in events if event["event"] == "round"]) == 2


def test_no_client_accepts_anything_and_the_run_goes_on() -> None:
    events = play(
        lambda message, reply: None,
        method={"name": "edgefd", "gate": {"name": "constant", "value": -1.0}},
        proxy={"name": "public", "size": 50},
    )
    rounds = [event for event in events if event["event"] == "round"]
    assert len(rounds) == 2
    assert all(r["kept"] == 0 and "no client accepted" in r["note"] for r in rounds)
    assert all(r["accuracy"] > 0 for r in rounds)


@pytest.mark.parametrize("failing", [("train",), ("evaluate",), ("train", "evaluate")])
@pytest.mark.parametrize("method", ["edgefd", "fedavg"])
def test_if_every_client_fails_in_a_step_the_run_stops_with_the_reason(
    failing: tuple[str, ...], method: str
) -> None:
    """Nothing can be learnt from a round that nobody answered, however well they measure."""

    def fail(message: Message, context: Context) -> Message:
        raise ValueError("no such device")

    store = MemoryStore()
    honest = make_app(lambda config: store)
    app = ClientApp()
    app.query("hello")(lambda message, context: honest(message, context))
    app.query("pool")(lambda message, context: honest(message, context))
    app.train()(fail if "train" in failing else lambda message, context: honest(message, context))
    app.evaluate()(
        fail if "evaluate" in failing else lambda message, context: honest(message, context)
    )
    scenario = small(method={"name": method})
    with pytest.raises(FedkdError, match=r"no client got through round 1.*no such device"):
        inline.run(make_server(scenario, 1, None), app, N_CLIENTS)


def test_to_abstain_is_an_answer() -> None:
    """Two clients abstain and one crashes: the run goes on, and says why nobody was heard."""
    store = MemoryStore()
    honest = make_app(lambda config: store)

    def train(message: Message, context: Context) -> Message:
        if context.node_config["partition-id"] == LIAR:
            raise ValueError("no such device")
        return abstaining(message, honest(message, context))

    app = ClientApp()
    for route in (app.query("hello"), app.query("pool"), app.evaluate()):
        route(lambda message, context: honest(message, context))
    app.train()(train)
    events: list[Event] = []
    inline.run(make_server(small(), 1, None, events.append), app, N_CLIENTS)
    rounds = [event for event in events if event["event"] == "round"]
    assert [(e["n_abstained"], e["kept"]) for e in rounds] == [(2, 0.0)] * 2
    assert all("used up its budget" in event["note"] for event in rounds)


def test_a_population_is_never_asked_and_costs_what_takes_part() -> None:
    """A million clients: only the few that take part hear anything, and get the pool once."""
    asked: list[tuple[str, int]] = []
    store = MemoryStore()
    honest = make_app(lambda config: store)

    def note(message: Message, context: Context, call_next: Callable[..., Message]) -> Message:
        asked.append((message.metadata.message_type, int(context.node_config["partition-id"])))
        return honest(message, context)

    app = ClientApp(mods=[note])
    for route in (app.query("hello"), app.query("pool"), app.train(), app.evaluate()):
        route(lambda message, context: honest(message, context))
    events: list[Event] = []
    scenario = small(
        partition={"name": "virtual", "clients": 10**6, "samples": 20},
        proxy={"name": "public", "size": 40},
        training={"rounds": 3, "participation": 4e-6},
    )
    inline.run(make_server(scenario, 1, None, events.append), app, 10**6)
    rounds = [event for event in events if event["event"] == "round"]
    assert [event["n_clients"] for event in rounds] == [4, 4, 4]
    pools = [client for kind, client in asked if kind == "query.pool"]
    trained = {client for kind, client in asked if kind == "train"}
    assert sorted(pools) == sorted(trained)
    assert not [client for kind, client in asked if kind == "query.hello"]
    assert len(asked) == len(pools) + 2 * 12
    assert sum(event["event"] == "hello" for event in events) == 1000


@pytest.mark.parametrize("what", ["metrics gone", "payload of another kind"])
def test_a_reply_without_its_records_is_refused(what: str) -> None:
    def strip(message: Message, reply: Message) -> Message:
        if what == "metrics gone":
            del reply.content["metrics"]
        else:
            reply.content["payload"] = ConfigRecord({"bytes": b"x"})
        return reply

    events = play(strip)
    refused = [(e["round"], e["client"]) for e in events if e["event"] == "refused"]
    assert refused == [(1, LIAR), (2, LIAR)]
    assert len([event for event in events if event["event"] == "round"]) == 2
