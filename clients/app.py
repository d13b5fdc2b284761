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

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from clients import guard, history, labels, secure, steps
from clients.client import Client, ProxySet, model_part, with_model
from clients.guard import Guard
from clients.history import HISTORY
from clients.place import place_of
from clients.store import ClientStore, FolderStore
from fedkd import device, payload, payload_secure, protection
from fedkd.config import from_json
from fedkd.errors import FedkdError
from fedkd.exchange.label_means import Peers
from fedkd.exchange.selection import All
from fedkd.models.zoo import Classifier
from fedkd.transcript import SIGNED, model_digest
from fedkd.wire import STYPE
from privacy import asked, claims, secagg
from privacy.claims import Claim
from privacy.ledger import Receipt, Sealed, public, seal
from privacy.secagg import Cohort

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
        return _reply(message, _seal(client, payload.encode_hello(greeting), receipt))

    @app.query("pool")
    def pool(message: Message, context: Context) -> Message:
        _, store = _open(message, context, store_of)
        data = _payload(message)
        digest = str(_config(message)["pool"])
        if hashlib.sha256(data).hexdigest() != digest:
            raise FedkdError("the proxy pool was changed on its way", value=digest[:16])
        store.save_pool(digest, data)
        return _reply(message)

    @app.query("keys")
    def keys(message: Message, context: Context) -> Message:
        client, _ = _open(message, context, store_of)
        key = secure.keys(client).public
        return _reply(message, public(payload_secure.encode_key(key, client.id, client.round)))

    @app.query("reveal")
    def reveal(message: Message, context: Context) -> Message:
        client, store = _open(message, context, store_of)
        return _reply(message, public(secure.reveal(client, store, _payload(message))))

    def train(deliveries: Sequence[Delivery]) -> list[Message]:
        turns = [_turn(message, context, store_of, 0) for message, context in deliveries]
        if turns[0].client.scenario.method.exchange == "weights":
            _receive_weights(turns)
        awake = [turn for turn in turns if guard.may_train(turn.guard)]
        answers: Mapping[int, Sealed | None] = {}
        if awake:
            clients, models = [turn.client for turn in awake], [turn.model for turn in awake]
            steps.learn_private(clients, models, _peers(awake))
            answers = _answers(awake)
        return [_finish(turn, answers.get(turn.client.id)) for turn in turns]

    def evaluate(deliveries: Sequence[Delivery]) -> list[Message]:
        turns = [_turn(message, context, store_of, 1) for message, context in deliveries]
        clients, models = [turn.client for turn in turns], [turn.model for turn in turns]
        first = turns[0]
        if first.client.scenario.method.exchange == "weights":
            _receive_weights(turns)
        elif "payload" in first.message.content:
            proxy = _proxy_of(first)
            consensus = payload.decode_consensus(
                _payload(first.message),
                round_=first.client.round,
                n_samples=proxy.n_samples,
                n_classes=first.client.world.train.n_classes,
                coding=first.client.scenario.coding_down,
            )
            steps.learn_consensus(clients, models, proxy, consensus)
        if first.client.scenario.measures(first.client.round):
            steps.measure(clients, models)
        return [_finish(turn, None) for turn in turns]

    app.train()(lambda message, context: train([(message, context)])[0])
    app.evaluate()(lambda message, context: evaluate([(message, context)])[0])
    app.together = {"train": train, "evaluate": evaluate}
    return app


app = make_app()


class Turn(NamedTuple):
    """One client's part in one step of a round."""

    message: Message
    client: Client
    store: ClientStore
    step: int
    state: dict[str, Tensor]
    model: Classifier

    @property
    def guard(self) -> Guard:
        """What charges the client's ledger."""
        return Guard(self.store, self.client)


def _turn(message: Message, context: Context, store_of: Stores, phase: int) -> Turn:
    client, store = _open(message, context, store_of)
    step = 2 * client.round + phase
    state = store.load(client.id, before=step)
    own = dict(state or {})
    if client.secret is not None:
        config = _config(message)
        asked = "|".join(str(config[key]) for key in ("scenario", "seed", "pool"))
        own[HISTORY] = history.after(state, step, asked, _payload_if_any(message))
        if phase == 0:
            history.check(store, client.id, step, own[HISTORY])
    return Turn(message, client, store, step, own, client.model(state))


def _finish(turn: Turn, sealed: Sealed | None) -> Message:
    """Keep the client's new state and reply."""
    state = with_model(turn.state, turn.model)
    turn.store.save(turn.client.id, turn.step, state)
    reply = _reply(turn.message, sealed, turn.client)
    if turn.client.announces:
        reply.content[SIGNED] = ConfigRecord({"model": model_digest(model_part(state))})
    return reply


def _answers(turns: Sequence[Turn]) -> Mapping[int, Sealed | None]:
    """What each client sends up after learning; None if it abstains. Masks go into states."""
    exchange = turns[0].client.scenario.method.exchange
    if exchange == "soft-labels":
        return _soft_labels(turns)
    if exchange == "weights":
        return {turn.client.id: _weights(turn) for turn in turns}
    if exchange == "label-means":
        return {turn.client.id: _label_means(turn) for turn in turns}
    return {}


def _soft_labels(turns: Sequence[Turn]) -> Mapping[int, Sealed | None]:
    cohort: Cohort | None = None
    if isinstance(turns[0].client.scenario.privacy.server, protection.SecureAggregation):
        cohort, turns = _summed(turns)
    turns = [turn for turn in turns if guard.may_summarise(turn.guard)]
    if not turns:
        return {}
    proxy = _proxy_of(turns[0])
    asked_for = _question(turns[0], proxy)
    masks = _masks(turns, proxy)
    turns = [turn for turn in turns if turn.client.id in masks]
    if not turns:
        return {}
    claimed: dict[int, Claim] = {}

    def release(place: int, records: Tensor, logits: Tensor) -> Tensor:
        client = turns[place].client
        values, claimed[client.id] = guard.told(client, proxy, records, logits)
        return values

    most = guard.most_told(turns[0].client, proxy)
    asked_of = {turn.client.id: _asked(turn, asked_for) for turn in turns}
    answers = steps.answer(
        [turn.client for turn in turns],
        [turn.model for turn in turns],
        proxy,
        [asked_of[turn.client.id] for turn in turns],
        release,
    )
    sent: dict[int, Sealed | None] = {}
    for turn, (ids, values) in zip(turns, answers, strict=True):
        client = turn.client
        if client.hostile:
            values = client.scenario.hostile.attack.spoil(values, client.draws("attack"))
        claim = claims.claim_of_sum(
            client.scenario, claimed.get(client.id, claims.NO_ROWS), proxy.n_samples
        )
        entry = turn.guard.entry(
            "soft labels", len(ids), asked.readers(client.scenario.privacy), claim
        )
        receipt = turn.guard.charge(entry, most)
        if receipt is None:
            continue
        if cohort is None:
            weights = _weights_of(asked_of[client.id], proxy)
            answer = payload.Answer(client.id, client.round, ids, values, weights)
            packed = _packed(client, answer, proxy.n_samples)
        else:
            packed = secure.blind(client, cohort, secagg.table(ids, values, proxy.n_samples))
        sent[client.id] = _seal(client, packed, receipt, *masks[client.id])
    return sent


def _question(turn: Turn, proxy: ProxySet) -> Tensor | None:
    """The records [k] that the round is about; None for all."""
    if isinstance(turn.client.scenario.method.select, All):
        return None
    data = _payload(turn.message)
    ids = payload.decode_selection(data, round_=turn.client.round, n_records=len(proxy.x))
    return torch.from_numpy(ids).long()


def _asked(turn: Turn, question: Tensor | None) -> Tensor:
    """The mask of the proxy records that a client answers, or their weights, 0 for the others.

    It is its filter's, unless the client lies in that, within what the round is about.
    """
    mask = turn.state["mask"]
    if turn.client.hostile and turn.client.scenario.hostile.everything:
        mask = torch.ones_like(mask)
    if question is None:
        return mask
    some = torch.zeros_like(mask)
    some[question] = mask[question]
    return some


def _weights_of(asked: Tensor, proxy: ProxySet) -> NDArray[np.float32] | None:
    """Of each sample that a client answers; None where its gate gives none."""
    if not asked.is_floating_point():
        return None
    return asked[asked > 0].repeat_interleave(proxy.positions).numpy()


def _summed(turns: Sequence[Turn]) -> tuple[Cohort | None, Sequence[Turn]]:
    """The cohort of this round, and who of the clients is in it; nobody if there is no sum."""
    first = turns[0]
    if "payload" not in first.message.content:
        return None, ()
    cohort, _ = secure.cohort(first.client, _payload(first.message))
    turns = [turn for turn in turns if turn.client.id in cohort.public]
    for turn in turns:
        turn.state.update(secure.remembered(turn.client, turn.store))
    return cohort, turns


def _masks(turns: Sequence[Turn], proxy: ProxySet) -> dict[int, tuple[Receipt, ...]]:
    """See that each state has its mask, charged if it is new; who cannot pay for it is left out.

    Returns: for each client that has one, the receipts that its answers need beside their own.
    """
    scenario = turns[0].client.scenario
    again = asked.mask_changes(scenario)
    claim = claims.claim_of_mask(scenario)
    receipts: dict[int, tuple[Receipt, ...]] = {}
    unsure = []
    for turn in turns:
        paid: tuple[Receipt, ...] = ()
        if "mask" not in turn.state or again:
            if claim is not None:
                seen_by = asked.readers_of_mask(scenario.privacy)
                what = claims.what_mask_is(scenario)
                entry = turn.guard.entry(what, len(proxy.x), seen_by, claim)
                receipt = turn.guard.charge(entry)
                if receipt is None:
                    continue
                if seen_by != "no one":
                    paid = (receipt,)
            unsure.append(turn)
        receipts[turn.client.id] = paid
    if unsure:
        clients, models = [turn.client for turn in unsure], [turn.model for turn in unsure]
        for turn, mask in zip(unsure, steps.filter_pool(clients, models, proxy), strict=True):
            turn.state["mask"] = mask
    return receipts


def _peers(turns: Sequence[Turn]) -> list[Peers]:
    """What the others say of each client's labels; nothing where that is not exchanged, or yet."""
    if turns[0].client.scenario.method.exchange != "label-means":
        return []
    data = _payload_if_any(turns[0].message)
    found = [labels.peers(turn.client, turn.state, data) for turn in turns]
    return [one for one in found if one is not None]


def _label_means(turn: Turn) -> Sealed | None:
    client = turn.client
    own = labels.say(client, turn.model)
    if client.hostile:
        attack = client.scenario.hostile.attack
        own = own._replace(values=attack.spoil(own.values, client.draws("attack")))
    entry = turn.guard.entry(
        "label means", len(own.ids), "server and all clients", claims.OF_LABELS
    )
    receipt = turn.guard.charge(entry)
    if receipt is None:
        return None
    turn.state.update(labels.remembered(own))
    return _seal(
        client, payload.encode_answer(payload.Answer(client.id, client.round, *own)), receipt
    )


def _weights(turn: Turn) -> Sealed | None:
    client, training = turn.client, turn.client.scenario.privacy.training
    receipt = turn.guard.charge(
        turn.guard.entry("weights", 1, "server", claims.claim_of_model(training))
    )
    if receipt is None:
        return None
    vector = parameters_to_vector(turn.model.parameters()).detach().cpu().numpy()
    weights = payload.encode_weights(vector, client.id, client.round, client.n_records)
    return _seal(client, weights, receipt)


def _packed(client: Client, answer: payload.Answer, n_samples: int) -> payload.Bytes:
    """The answer as the scenario sends it."""
    coding, packing = client.scenario.coding_up, client.scenario.packing(n_samples)
    if coding is None:
        return payload.encode_answer(answer, packing)
    return payload.encode_coded_answer(answer, coding, client.draws("coding"), packing)


def _open(message: Message, context: Context, store_of: Stores) -> tuple[Client, ClientStore]:
    """The client that a message is for, and its store."""
    config = _config(message)
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


def _config(message: Message) -> ConfigRecord:
    return message.content.config_records["config"]


def _payload(message: Message) -> payload.Bytes:
    return message.content.array_records["payload"]["bytes"].data


def _payload_if_any(message: Message) -> payload.Bytes | None:
    return _payload(message) if "payload" in message.content else None


_PROXY_SETS: dict[tuple[str, torch.device], ProxySet] = {}
"""The proxy set of this process's run, decoded and converted once and not once a message."""


def _proxy_of(turn: Turn) -> ProxySet:
    digest = str(_config(turn.message)["pool"])
    key = (digest, turn.client.device)
    if key not in _PROXY_SETS:
        data = turn.store.load_pool(digest)
        if data is None:
            raise FedkdError("this client never received the proxy pool", value=digest[:16])
        pool = payload.decode_pool(data)
        _PROXY_SETS.clear()
        _PROXY_SETS[key] = ProxySet.of(pool, turn.client.device)
    return _PROXY_SETS[key]


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


def _seal(client: Client, data: payload.Bytes, *receipts: Receipt) -> Sealed:
    return seal(data, *receipts, client=client.id, round_=client.round)


def _reply(message: Message, sealed: Sealed | None = None, client: Client | None = None) -> Message:
    content = RecordDict()
    if sealed is not None:
        data = sealed.data
        content["payload"] = ArrayRecord({"bytes": Array("uint8", (len(data),), STYPE, data)})
    if client is not None:
        content["metrics"] = MetricRecord(client.told)
    return Message(content, reply_to=message)
