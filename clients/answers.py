"""What clients send up after they have learnt: charged, sealed, packed as the scenario says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from clients import filters, guard, labels, recall, secure, steps
from clients.client import Client, ProxySet
from clients.turn import Turn, payload_if_any, payload_of, proxy_of, sealed_by
from fedkd import payload, payload_answers, protection
from fedkd.exchange.label_means import Peers
from fedkd.exchange.selection import All
from privacy import asked, claims, secagg
from privacy.claims import Claim
from privacy.ledger import Receipt, Sealed
from privacy.secagg import Cohort


def answers_of(turns: Sequence[Turn]) -> Mapping[int, Sealed | None]:
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
    proxy = proxy_of(turns[0])
    asked_for = _question(turns, proxy)
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
            answer = payload_answers.Answer(client.id, client.round, ids, values, weights)
            packed = _packed(client, answer, proxy.n_samples)
        else:
            packed = secure.blind(client, cohort, secagg.table(ids, values, proxy.n_samples))
        sent[client.id] = sealed_by(client, packed, receipt, *masks[client.id])
    return sent


def _question(turns: Sequence[Turn], proxy: ProxySet) -> Tensor | None:
    """The records [k] that the round asks about; None for all. What it draws goes into states."""
    client, select = turns[0].client, turns[0].client.scenario.method.select
    if isinstance(select, All):
        return None
    data = payload_of(turns[0].message)
    question = payload.decode_selection(data, round_=client.round, n_records=len(proxy.x))
    if select.cache:
        for turn in turns:
            recall.note(turn.state, client.round, question.drawn)
    return torch.from_numpy(question.asked).long()


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
    cohort, _ = secure.cohort(first.client, payload_of(first.message))
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
        for turn, mask in zip(unsure, filters.filter_pool(clients, models, proxy), strict=True):
            turn.state["mask"] = mask
    return receipts


def peers(turns: Sequence[Turn]) -> list[Peers]:
    """What the others say of each client's labels; nothing where that is not exchanged, or yet."""
    if turns[0].client.scenario.method.exchange != "label-means":
        return []
    data = payload_if_any(turns[0].message)
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
    return sealed_by(
        client,
        payload_answers.encode_answer(payload_answers.Answer(client.id, client.round, *own)),
        receipt,
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
    return sealed_by(client, weights, receipt)


def _packed(client: Client, answer: payload_answers.Answer, n_samples: int) -> payload.Bytes:
    """The answer as the scenario sends it."""
    coding, packing = client.scenario.coding_up, client.scenario.packing(n_samples)
    if coding is None:
        return payload_answers.encode_answer(answer, packing)
    return payload_answers.encode_coded_answer(answer, coding, client.draws("coding"), packing)
