"""The ClientApp: four messages, each decoded, handed to `clients.steps`, and answered.

`query.hello`   who are you?            -> counts, and the samples given to the proxy pool
`query.pool`    here is the proxy pool  -> nothing
`train`         learn from your own data and answer the proxy samples that look like it
`evaluate`      learn from the consensus, then say how well you do

Every message carries the scenario, so a client process needs nothing but its data. Handlers are
idempotent: the same message gives the same reply and the same state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from clients import steps
from clients.store import ClientStore, FolderStore
from fedkd import device, payload
from fedkd.config import from_json
from fedkd.errors import FedkdError
from fedkd.models.zoo import Classifier
from privacy.ledger import Release, What

Delivery = tuple[Message, Context]
Handler = Callable[[Sequence[Delivery]], list[Message]]
"""Takes deliveries of one message type, round and scenario, for different clients."""
Stores = Callable[[ConfigRecord], ClientStore]


def _store_of(config: ConfigRecord) -> ClientStore:
    return FolderStore(Path(str(config["state-folder"])))


class App(ClientApp):
    """A ClientApp that can also take many clients' messages of one type in one call."""

    together: Mapping[str, Handler]


def make_app(store_of: Stores = _store_of) -> App:
    """The ClientApp; `store_of` says where the clients of a message keep their state."""
    app = App()

    @app.query("hello")
    def hello(message: Message, context: Context) -> Message:
        client, store = _open(message, context, store_of)
        x, _ = client.world.contribution(client.id)
        if len(x):
            _record(store, client, "raw samples", len(x))
        greeting = payload.Hello(
            client.id,
            len(client.world.private[client.id]),
            client.world.train.n_classes,
            x.numpy(),
        )
        return _reply(message, payload.encode_hello(greeting))

    @app.query("pool")
    def pool(message: Message, context: Context) -> Message:
        _, store = _open(message, context, store_of)
        data = _payload(message).tobytes()
        digest = str(_config(message)["pool"])
        if hashlib.sha256(data).hexdigest() != digest:
            raise FedkdError("the proxy pool was changed on its way", value=digest[:16])
        store.save_pool(digest, data)
        return _reply(message)

    def train(deliveries: Sequence[Delivery]) -> list[Message]:
        turns = [_turn(message, context, store_of, 0) for message, context in deliveries]
        clients, models = [turn.client for turn in turns], [turn.model for turn in turns]
        if clients[0].scenario.method.exchange == "weights":
            _receive_weights(turns)
        steps.learn_private(clients, models)
        return [_finish(turn, _answer(turn)) for turn in turns]

    def evaluate(deliveries: Sequence[Delivery]) -> list[Message]:
        turns = [_turn(message, context, store_of, 1) for message, context in deliveries]
        clients, models = [turn.client for turn in turns], [turn.model for turn in turns]
        first = turns[0]
        if first.client.scenario.method.exchange == "weights":
            _receive_weights(turns)
        elif "payload" in first.message.content:
            proxy = _pool_of(first.message, first.store)
            consensus = payload.decode_consensus(
                _payload(first.message),
                round_=first.client.round,
                n_samples=len(proxy.x),
                n_classes=first.client.world.train.n_classes,
            )
            steps.learn_consensus(clients, models, proxy, consensus)
        if first.client.scenario.measures(first.client.round):
            for client, model in zip(clients, models, strict=True):
                steps.measure(client, model)
        return [_finish(turn, None) for turn in turns]

    app.train()(lambda message, context: train([(message, context)])[0])
    app.evaluate()(lambda message, context: evaluate([(message, context)])[0])
    app.together = {"train": train, "evaluate": evaluate}
    return app


app = make_app()


class Turn(NamedTuple):
    """One client's part in one step of a round."""

    message: Message
    client: steps.Client
    store: ClientStore
    step: int
    state: dict[str, Tensor]
    model: Classifier


def _turn(message: Message, context: Context, store_of: Stores, phase: int) -> Turn:
    client, store = _open(message, context, store_of)
    step = 2 * client.round + phase
    state = store.load(client.id, before=step)
    return Turn(message, client, store, step, dict(state or {}), client.model(state))


def _finish(turn: Turn, data: payload.Bytes | None) -> Message:
    """Keep the client's new state and reply."""
    turn.store.save(turn.client.id, turn.step, steps.with_model(turn.state, turn.model))
    return _reply(turn.message, data, turn.client)


def _answer(turn: Turn) -> payload.Bytes | None:
    """What a client sends up after learning from its own data; its mask goes into its state."""
    message, client, store, _, state, model = turn
    method = client.scenario.method
    if method.exchange == "soft-labels":
        proxy = _pool_of(message, store)
        if "mask" not in state or method.score.space == "features":
            state["mask"] = steps.filter_pool(client, model, proxy)
        ids, values = steps.answer(client, model, proxy, state["mask"])
        _record(store, client, "soft labels", len(ids))
        return payload.encode_answer(payload.Answer(client.id, client.round, ids, values))
    if method.exchange == "weights":
        _record(store, client, "weights", 1)
        vector = parameters_to_vector(model.parameters()).detach().cpu().numpy()
        n_samples = len(client.world.private[client.id])
        return payload.encode_weights(vector, client.id, client.round, n_samples)
    return None


def _open(message: Message, context: Context, store_of: Stores) -> tuple[steps.Client, ClientStore]:
    """The client that a message is for, and its store."""
    config = _config(message)
    scenario = from_json(str(config["scenario"]))
    torch.set_num_threads(scenario.threads)
    seed = int(str(config["seed"]))
    client = steps.Client(
        scenario=scenario,
        seed=seed,
        id=int(context.node_config["partition-id"]),
        round=int(str(config["round"])),
        world=scenario.world(seed),
        device=device.resolve(scenario.device),
    )
    return client, store_of(config)


def _config(message: Message) -> ConfigRecord:
    return message.content.config_records["config"]


def _payload(message: Message) -> payload.Bytes:
    return message.content.array_records["payload"]["bytes"].numpy()


_POOLS: dict[str, payload.Pool] = {}
"""The pool of this process's run, decoded once and not once a client and message."""


def _pool_of(message: Message, store: ClientStore) -> payload.Pool:
    digest = str(_config(message)["pool"])
    if digest not in _POOLS:
        data = store.load_pool(digest)
        if data is None:
            raise FedkdError("this client never received the proxy pool", value=digest[:16])
        _POOLS.clear()
        _POOLS[digest] = payload.decode_pool(np.frombuffer(data, dtype=np.uint8))
    return _POOLS[digest]


def _receive_weights(turns: Sequence[Turn]) -> None:
    """Load the server's weights, which are the same in every message, into each model."""
    client = turns[0].client
    size = sum(weight.numel() for weight in turns[0].model.parameters())
    raw = _payload(turns[0].message)
    weights, _ = payload.decode_weights(raw, client=-1, round_=client.round, size=size)
    vector = torch.from_numpy(weights).to(client.device)
    for turn in turns:
        # A copy each: the parameters become views of the vector that they are taken from.
        vector_to_parameters(vector.clone(), turn.model.parameters())


def _record(store: ClientStore, client: steps.Client, what: What, rows: int) -> None:
    """Charge a release before it is sent."""
    everyone = what == "raw samples"
    store.ledger(client.id).record(
        Release(
            client=client.id,
            round=client.round,
            what=what,
            rows=rows,
            seen_by="server and all clients" if everyone else "server",
        )
    )


def _reply(
    message: Message, data: payload.Bytes | None = None, client: steps.Client | None = None
) -> Message:
    content = RecordDict()
    if data is not None:
        content["payload"] = ArrayRecord({"bytes": Array(data)})
    if client is not None:
        content["metrics"] = MetricRecord(
            {key: float(value) for key, value in client.metrics.items() if np.isfinite(value)}
        )
    return Message(content, reply_to=message)
