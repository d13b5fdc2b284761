"""The ClientApp: messages, each decoded, handed to `clients.steps`, and answered.

`query.hello`   who are you?            -> counts, and the samples given to the proxy pool
`query.pool`    here is the proxy pool  -> nothing
`train`         learn from your own data and answer the proxy samples that look like it
`evaluate`      learn from the consensus, then say how well you do

Under secure aggregation, before and after `train` (`clients.secure`):

`query.keys`    a fresh public key      -> it
`query.reveal`  these clients were lost -> the secrets of this round shared with them

Every message carries the scenario, so a client process needs nothing but its data. Handlers are
idempotent: the same message gives the same reply and the same state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch.nn.utils import vector_to_parameters

from clients import guard, history, recall, secure, steps
from clients.answers import answers_of, peers
from clients.client import Client, model_part, with_model
from clients.guard import Guard
from clients.history import HISTORY
from clients.place import place_of
from clients.store import ClientStore, FolderStore
from clients.turn import Turn, config_of, payload_if_any, payload_of, proxy_of, sealed_by
from fedkd import device, payload, payload_secure
from fedkd.config import from_json
from fedkd.errors import FedkdError
from fedkd.transcript import SIGNED, digest, model_digest
from fedkd.wire import STYPE
from privacy import claims
from privacy.ledger import Sealed, public

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
        given = Guard(store, client).entry(
            "raw samples", len(x), "server and all clients", claims.NOTHING
        )
        receipt = store.ledger(client.id).record(given)
        given_x = x.numpy()
        if client.hostile and client.scenario.hostile.pool:
            given_x = client.draws("poison").permuted(given_x.reshape(-1)).reshape(given_x.shape)
        greeting = payload.Hello(
            client.id,
            client.n_records,
            client.world.train.n_classes,
            given_x,
        )
        return _reply(message, sealed_by(client, payload.encode_hello(greeting), receipt))

    @app.query("pool")
    def pool(message: Message, context: Context) -> Message:
        _, store = _open(message, context, store_of)
        data = payload_of(message)
        expected = str(config_of(message)["pool"])
        if digest(data) != expected:
            raise FedkdError("the proxy pool was changed on its way", value=expected[:16])
        store.save_pool(expected, data)
        return _reply(message)

    @app.query("keys")
    def keys(message: Message, context: Context) -> Message:
        client, _ = _open(message, context, store_of)
        key = secure.keys(client).public
        return _reply(message, public(payload_secure.encode_key(key, client.id, client.round)))

    @app.query("reveal")
    def reveal(message: Message, context: Context) -> Message:
        client, store = _open(message, context, store_of)
        return _reply(message, public(secure.reveal(client, store, payload_of(message))))

    def train(deliveries: Sequence[Delivery]) -> list[Message]:
        turns = [_turn(message, context, store_of, 0) for message, context in deliveries]
        if turns[0].client.scenario.method.exchange == "weights":
            _receive_weights(turns)
        awake = [turn for turn in turns if guard.may_train(turn.guard)]
        answers: Mapping[int, Sealed | None] = {}
        if awake:
            _begin([turn for turn in awake if not model_part(turn.state)])
            clients, models = [turn.client for turn in awake], [turn.model for turn in awake]
            steps.learn_private(clients, models, peers(awake))
            answers = answers_of(awake)
        return [_finish(turn, answers.get(turn.client.id)) for turn in turns]

    def evaluate(deliveries: Sequence[Delivery]) -> list[Message]:
        turns = [_turn(message, context, store_of, 1) for message, context in deliveries]
        clients, models = [turn.client for turn in turns], [turn.model for turn in turns]
        first = turns[0]
        if first.client.scenario.method.exchange == "weights":
            _receive_weights(turns)
        elif "payload" in first.message.content:
            proxy = proxy_of(first)
            consensus = payload.decode_consensus(
                payload_of(first.message),
                round_=first.client.round,
                n_samples=proxy.n_samples,
                n_classes=first.client.world.train.n_classes,
                coding=first.client.scenario.coding_down,
            )
            if first.client.scenario.method.select.cache:
                for turn in turns:  # each learns also what it has kept
                    whole = recall.recalled(turn.client, turn.state, consensus, proxy.positions)
                    steps.learn_consensus([turn.client], [turn.model], proxy, whole)
            else:
                steps.learn_consensus(clients, models, proxy, consensus)
        if first.client.scenario.measures(first.client.round):
            steps.measure(clients, models)
        return [_finish(turn, None) for turn in turns]

    app.train()(lambda message, context: train([(message, context)])[0])
    app.evaluate()(lambda message, context: evaluate([(message, context)])[0])
    app.together = {"train": train, "evaluate": evaluate}
    return app


app = make_app()


def _turn(message: Message, context: Context, store_of: Stores, phase: int) -> Turn:
    client, store = _open(message, context, store_of)
    step = 2 * client.round + phase
    state = store.load(client.id, before=step)
    own = dict(state or {})
    if client.secret is not None:
        config = config_of(message)
        asked = "|".join(str(config[key]) for key in ("scenario", "seed", "pool"))
        own[HISTORY] = history.after(state, step, asked, payload_if_any(message))
        if phase == 0:
            history.check(store, client.id, step, own[HISTORY])
    return Turn(message, client, store, step, own, client.model(state))


def _begin(turns: Sequence[Turn]) -> None:
    """Let the clients that are new here learn what comes before a first round."""
    if turns:
        pretrains = turns[0].client.scenario.training.pretrain is not None
        proxy = proxy_of(turns[0]) if pretrains else None
        steps.begin([turn.client for turn in turns], [turn.model for turn in turns], proxy)


def _finish(turn: Turn, sealed: Sealed | None) -> Message:
    """Keep the client's new state and reply."""
    state = with_model(turn.state, turn.model)
    turn.store.save(turn.client.id, turn.step, state)
    reply = _reply(turn.message, sealed, turn.client)
    if turn.client.announces:
        reply.content[SIGNED] = ConfigRecord({"model": model_digest(model_part(state))})
    return reply


def _open(message: Message, context: Context, store_of: Stores) -> tuple[Client, ClientStore]:
    """The client that a message is for, and its store."""
    config = config_of(message)
    scenario, place = from_json(str(config["scenario"])), place_of(context)
    if place.consent is not None:
        place.consent.check(scenario)
    torch.set_num_threads(scenario.threads)
    seed, job = int(str(config["seed"])), str(config["job"])
    client = Client(
        scenario=scenario,
        seed=seed,
        id=place.seat,
        round=int(str(config["round"])),
        world=place.world(scenario, seed),
        device=device.resolve(scenario.device),
        secret=place.secret(job, seed),
        tells=place.consent is None or place.consent.tells,
        announces=place.state is not None,
    )
    return client, place.store(job) or store_of(config)


def _receive_weights(turns: Sequence[Turn]) -> None:
    """Load the server's weights, which are the same in every message, into each model."""
    client = turns[0].client
    size = sum(weight.numel() for weight in turns[0].model.parameters())
    raw = payload_of(turns[0].message)
    weights, _ = payload.decode_weights(raw, client=-1, round_=client.round, size=size)
    vector = torch.from_numpy(weights).to(client.device)
    for turn in turns:
        # A copy each: the parameters become views of the vector that they are taken from.
        vector_to_parameters(vector.clone(), turn.model.parameters())


def _reply(message: Message, sealed: Sealed | None = None, client: Client | None = None) -> Message:
    content = RecordDict()
    if sealed is not None:
        data = sealed.data
        content["payload"] = ArrayRecord({"bytes": Array("uint8", (len(data),), STYPE, data)})
    if client is not None:
        content["metrics"] = MetricRecord(client.told)
    return Message(content, reply_to=message)
