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
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from clients import steps
from clients.store import ClientStore, FolderStore
from fedkd import device, payload
from fedkd.config import from_json
from fedkd.errors import FedkdError
from fedkd.models.zoo import Classifier
from privacy.ledger import Release, What

Stores = Callable[[ConfigRecord], ClientStore]


def _store_of(config: ConfigRecord) -> ClientStore:
    return FolderStore(Path(str(config["state-folder"])))


def make_app(store_of: Stores = _store_of) -> ClientApp:
    """The ClientApp; `store_of` says where the clients of a message keep their state."""
    app = ClientApp()

    @app.query("hello")
    def hello(message: Message, context: Context) -> Message:
        client, store = _open(message, context, store_of)
        x, y = client.world.contribution(client.id)
        if len(x):
            _record(store, client, "raw samples", len(x))
        greeting = payload.Hello(
            client.id,
            len(client.world.private[client.id]),
            client.world.train.n_classes,
            x.numpy(),
            y.numpy(),
            client.world.class_counts[client.id],
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

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client, store = _open(message, context, store_of)
        step = 2 * client.round
        state = store.load(client.id, before=step)
        model = client.model(state)
        exchange = client.scenario.method.exchange
        if exchange == "weights":
            _receive_weights(message, client, model)
        steps.learn_private(client, model)
        new = steps.with_model(state, model)
        reply = None
        if exchange == "soft-labels":
            proxy = _pool_of(message, store)
            if "mask" not in new or client.scenario.method.score.space == "features":
                new["mask"] = steps.filter_pool(client, model, proxy)
            ids, values = steps.answer(client, model, proxy, new["mask"])
            _record(store, client, "soft labels", len(ids))
            reply = payload.encode_answer(payload.Answer(client.id, client.round, ids, values))
        elif exchange == "weights":
            _record(store, client, "weights", 1)
            vector = parameters_to_vector(model.parameters()).detach().cpu().numpy()
            reply = payload.encode_weights(vector, client.id, client.round)
        store.save(client.id, step, new)
        return _reply(message, reply, client)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        client, store = _open(message, context, store_of)
        step = 2 * client.round + 1
        state = store.load(client.id, before=step)
        model = client.model(state)
        if client.scenario.method.exchange == "weights":
            _receive_weights(message, client, model)
        elif "payload" in message.content:
            proxy = _pool_of(message, store)
            consensus = payload.decode_consensus(
                _payload(message),
                round_=client.round,
                n_samples=len(proxy.x),
                n_classes=client.world.train.n_classes,
            )
            steps.learn_consensus(client, model, proxy, consensus)
        steps.measure(client, model)
        store.save(client.id, step, steps.with_model(state, model))
        return _reply(message, None, client)

    return app


app = make_app()


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


def _receive_weights(message: Message, client: steps.Client, model: Classifier) -> None:
    vector = parameters_to_vector(model.parameters())
    weights = payload.decode_weights(
        _payload(message), client=-1, round_=client.round, size=len(vector)
    )
    vector_to_parameters(torch.from_numpy(weights.copy()).to(client.device), model.parameters())


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
