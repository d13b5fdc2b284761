"""What a scenario's privacy settings change in a client's round: charges, abstentions, releases.

Everything that is charged is known before it is computed, so a client whose budget would not bear
it abstains first: it does not learn from its records, or says nothing, and the round goes on.
Noise is drawn from the house's streams. In a simulation that makes a run repeatable; whoever knows
the seed could take the noise off again, so a deployment's clients must not share theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clients.client import Client, ProxySet
from clients.store import ClientStore
from fedkd import protection, training
from fedkd.data.tokens import VOCABULARY, Tokens, decode
from fedkd.errors import FedkdError
from fedkd.exchange.kmeans import distances, kmeans
from fedkd.models.zoo import Classifier
from fedkd.rng import torch_stream
from privacy import degrees, dpsgd, nfdp, private_filter, protect, swing
from privacy.degrees import Evidence
from privacy.ledger import Receipt, Release, SeenBy, What
from privacy.ngrams import NGrams
from privacy.protect import Claim, Occasion
from privacy.totals import affords


@dataclass(frozen=True)
class Guard:
    """One client's ledger and budget in one round."""

    store: ClientStore
    client: Client

    def entry(self, what: What, rows: int, seen_by: SeenBy, claim: Claim) -> Release:
        """What the ledger would keep of a release."""
        said = claim._asdict()
        return Release(
            client=self.client.id,
            round=self.client.round,
            what=what,
            rows=rows,
            seen_by=seen_by,
            **said,
        )

    def charge(self, entry: Release) -> Receipt | None:
        """Keep an entry, before what it stands for happens; None if the budget does not bear it."""
        ledger = self.store.ledger(self.client.id)
        budget = protect.budget_of(self.client.scenario.privacy)
        if budget is not None and not affords(ledger, budget, entry):
            self.client.metrics["abstained"] = 1.0
            return None
        return ledger.record(entry)


def may_train(guard: Guard) -> bool:
    """Charge this round's training; False if the client must not learn from its records."""
    client = guard.client
    row, n = client.scenario.privacy.training, client.n_records
    if isinstance(row, protection.PlainTraining):
        return True
    if isinstance(row, protection.DpSgd):
        row = protect.dp_sgd_of(row, n, client.scenario.training, client.scenario.privacy.delta)
    claim = protect.claim_of_training(row, n, client.scenario.training.local)
    return guard.charge(guard.entry("training", n, "no one", claim)) is not None


def learn(client: Client, model: Classifier, x: Tensor, y: Tensor) -> float:
    """Train `model` in place under DP-SGD or NFDP; returns the mean loss, for the client alone."""
    scenario = client.scenario
    row, phase = scenario.privacy.training, scenario.training.local
    if isinstance(row, protection.DpSgd):
        row = protect.dp_sgd_of(row, len(x), scenario.training, scenario.privacy.delta)
        noise = torch_stream(client.seed, "client", client.round, client.id, "training noise")
        draws = client.draws("train")
        return dpsgd.fit(model, x, y, training.cross_entropy, phase, row, draws, noise).loss
    assert isinstance(row, protection.Nfdp)
    once = torch_stream(client.seed, "client", 0, client.id, "nfdp")
    kept = nfdp.subsample(len(x), max(1, round(row.fraction * len(x))), once)
    x, y = x[kept.to(x.device)], y[kept.to(y.device)]
    return training.fit(model, x, y, training.cross_entropy, phase, client.draws("train"))


def private_mask(client: Client, proxy: ProxySet, own: Tensor) -> tuple[Tensor, float]:
    """The accept mask [n] and its threshold by the scenario's private filter."""
    scenario = client.scenario
    row = scenario.privacy.filter
    assert not isinstance(row, protection.PlainFilter)
    if proxy.positions > 1:
        raise FedkdError(
            "private filters look at pixels",
            value="text",
            fix='method.gate.name = "open", or privacy.filter.name = "plain"',
        )
    x, _ = client.world.client(client.id)
    return private_filter.private_mask(
        _public(proxy, row, client.seed),
        training.inputs(x).flatten(1).cpu(),
        own,
        scenario.method.gate,
        scenario.training.heldout,
        scenario.privacy.delta,
        torch_stream(client.seed, "client", 0, client.id, "filter noise"),
    )


@lru_cache(maxsize=2)
def _public(proxy: ProxySet, row: private_filter.Row, seed: int) -> private_filter.Public:
    generator = torch_stream(seed, "server", purpose="public view")
    return private_filter.Public.of(row, proxy.x.flatten(1).cpu(), generator)


def told(client: Client, proxy: ProxySet, records: Tensor, logits: Tensor) -> tuple[Tensor, Claim]:
    """What leaves for the logits [m * L, classes] of the records [m], and what may be claimed."""
    privacy = client.scenario.privacy
    if isinstance(privacy.release, protection.PlainRelease):
        values = client.scenario.method.release.release(logits)
        return values, protect.claim_of_model(privacy.training)
    noise = torch_stream(client.seed, "client", client.round, client.id, "release noise")
    occasion = _occasion(client, proxy, records, logits)
    values = protect.answers(privacy, logits, occasion, noise)
    return values, protect.claim_of_release(privacy, occasion, len(logits), logits.shape[1])


def _occasion(client: Client, proxy: ProxySet, records: Tensor, logits: Tensor) -> Occasion:
    scenario = client.scenario
    row = scenario.privacy.release
    degree: Tensor | None = None
    origin: degrees.Origin = "public"
    if isinstance(row, protection.Swing):
        if row.degree in PUBLIC_DEGREES:
            degree = public_degrees(proxy, row, client.world.tokens)[_positions(records, proxy)]
        else:
            degree, origin = _private_degrees(client, proxy, row, records, logits), "private"
    return Occasion(
        temperature=scenario.method.release.temperature,
        most_rows=protect.most_rows(scenario, proxy.n_samples),
        delta=scenario.privacy.delta,
        degrees=degree,
        origin=origin,
    )


PUBLIC_DEGREES = ("patterns", "rarity")
"""Degrees that everybody can compute from the proxy set, so each position has its temperature."""


def _positions(records: Tensor, proxy: ProxySet) -> Tensor:
    within = torch.arange(proxy.positions)
    return (records.cpu()[:, None] * proxy.positions + within).reshape(-1)


@lru_cache(maxsize=2)
def public_degrees(proxy: ProxySet, row: protection.Swing, tokens: Tokens | None) -> Tensor:
    """The degree of privacy [n * L] of each position of the proxy set, from the set alone.

    Raises: FedkdError for images, of which these degrees know nothing.
    """
    if tokens is None:
        raise FedkdError(
            "this degree of privacy is one of text",
            value=row.degree,
            allowed="classes, density for images",
            fix='privacy.release.degree = "density"',
        )
    ids = proxy.x.flatten(1).cpu()
    if row.degree == "patterns":
        texts = [_characters(record.numpy(), tokens) for record in ids]
        # Position t predicts the character t + 1; what follows the record is taken to be as
        # private as its last character.
        last = proxy.positions - 1
        offsets = [(min(t + 1, last), min(t + 1, last) + 1) for t in range(proxy.positions)]
        evidence = Evidence(texts=texts, offsets=[offsets] * len(texts))
        return degrees.Patterns().degree(evidence)
    vocabulary = VOCABULARY[tokens]
    surprisals = NGrams(ids.tolist(), vocabulary=vocabulary).surprisals
    rare = np.stack([surprisals(record.tolist()) for record in ids]) / np.log(vocabulary)
    following = np.concatenate([rare[:, 1:], rare[:, -1:]], axis=1)
    return torch.from_numpy(following.reshape(-1)).clamp(max=1)


def _characters(ids: NDArray[np.int64], tokens: Tokens) -> str:
    """One character a token, also where tokens are bytes."""
    if tokens == "bytes":
        return ids.astype(np.uint8).tobytes().decode("latin-1")
    return decode(ids.astype(np.int16), tokens)


def _private_degrees(
    client: Client, proxy: ProxySet, row: protection.Swing, records: Tensor, logits: Tensor
) -> Tensor:
    """The degree [m * L] of positions by what only the client knows."""
    if row.degree == "classes":
        evidence = Evidence(labels=logits.argmax(dim=1).cpu())
        return degrees.PrivateClasses(private=row.private_classes).degree(evidence)
    x, _ = client.world.client(client.id)
    mine = training.inputs(x).flatten(1).cpu()
    centroids = kmeans(mine, 10, torch_stream(client.seed, "client", 0, client.id, "density"))
    halfway = float(distances(mine, centroids).median()) or 1.0
    near = distances(proxy.x.flatten(1).cpu()[records.cpu()], centroids)
    return degrees.Density(halfway=halfway).degree(Evidence(distances=near))


def lesson(client: Client, proxy: ProxySet, ids: Tensor, target: Tensor) -> Tensor:
    """What a student learns from under Swing: the target [m, classes] with T and weight beside."""
    row = client.scenario.privacy.release
    assert isinstance(row, protection.Swing)
    if row.degree in PUBLIC_DEGREES:
        degree = public_degrees(proxy, row, client.world.tokens)[ids]
        swinging = protect.swing_of(row, "public")
    else:
        degree = torch.zeros(len(ids))
        swinging = protect.swing_of(row, "private")
    temperatures = swinging.told(degree)
    weights = torch.ones_like(temperatures) if swinging.noise is None else temperatures**-2
    return swing.rows(swing.Swung(target, temperatures, weights))
