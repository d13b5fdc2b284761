"""What a scenario's privacy settings change in a client's round: charges, abstentions, releases.

Everything is charged before it happens, so a client whose budget would not bear it abstains first:
it does not learn from its records, or says nothing, and the round goes on. So does one that has
been drawn for more rounds than its noise was calibrated for.

Guarantee: what the entries of the client's ledger say; `privacy.totals` adds them up. What a client
reports about itself must not tell more: the loss of private training stays here.
Noise is drawn from the house's streams. In a simulation that makes a run repeatable; whoever knows
the seed could take the noise off again, so a deployed client draws from a secret of its own
(`clients.place`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from clients import degrees
from clients.client import Client, ProxySet
from clients.store import ClientStore
from fedkd import protection, training
from fedkd.models.zoo import Classifier
from fedkd.rng import torch_stream
from privacy import asked, claims, dpsgd, nfdp, private_filter, protect, swing
from privacy.asked import Occasion
from privacy.claims import Claim
from privacy.degrees import Origin
from privacy.ledger import Receipt, Release, SeenBy, What
from privacy.totals import affords


@dataclass(frozen=True)
class Guard:
    """One client's ledger and budget in one round."""

    store: ClientStore
    client: Client

    def entry(self, what: What, rows: int, seen_by: SeenBy, claim: Claim) -> Release:
        """What the ledger would keep of a release. Raises: as `privacy.ledger.Release`."""
        return Release(
            client=self.client.id,
            round=self.client.round,
            what=what,
            rows=rows,
            seen_by=seen_by,
            **claim._asdict(),
        )

    def charge(self, entry: Release, most_rows: int | None = None) -> Receipt | None:
        """Keep an entry, before what it stands for happens; None if the client must abstain.

        It must if the budget does not bear the entry, or if all entries of this kind would have
        more than `most_rows` rows, for which their noise was calibrated (None: any number). An
        entry that is kept already is paid for, so a repeated message gets its receipt again.
        """
        ledger = self.store.ledger(self.client.id)
        budget = asked.budget_of(self.client.scenario.privacy)
        rows = entry.rows + sum(kept.rows for kept in ledger.entries() if kept.what == entry.what)
        too_many = most_rows is not None and rows > most_rows and entry not in ledger
        if too_many or (budget is not None and not affords(ledger, budget, entry)):
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
        row = _calibrated(client, row, n)
    claim = claims.claim_of_training(row, n, client.scenario.training.local)
    most = None
    if isinstance(row, protection.DpSgd) and row.epsilon is not None:
        most = n * _most_rounds(client)
    return guard.charge(guard.entry("training", n, "no one", claim), most) is not None


def learn(client: Client, model: Classifier, x: Tensor, y: Tensor) -> int:
    """Train `model` in place under DP-SGD or NFDP; returns how many records it is to learn from.

    The loss is not told: it is of private records, and no guarantee covers it.
    Guarantee: `claims.claim_of_training`, which `may_train` has charged.
    Raises: FedkdError for a model that DP-SGD cannot train.
    """
    scenario = client.scenario
    row, phase = scenario.privacy.training, scenario.training.local
    if isinstance(row, protection.DpSgd):
        row = _calibrated(client, row, len(x))
        noise = client.noise("training noise")
        draws = client.private_draws("train")  # whom a batch takes must be unknown, too
        dpsgd.fit(model, x, y, _record_loss, phase, row, draws, noise)
        return training.n_learnt(len(x), phase)
    assert isinstance(row, protection.Nfdp)
    once = client.noise("nfdp", 0)
    kept = nfdp.subsample(len(x), max(1, round(row.fraction * len(x))), once)
    x, y = x[kept.to(x.device)], y[kept.to(y.device)]
    training.fit(model, x, y, training.cross_entropy, phase, client.draws("train"))
    return training.n_learnt(len(x), phase)


def _calibrated(client: Client, row: protection.DpSgd, n_records: int) -> protection.DpSgd:
    scenario, n_clients = client.scenario, client.world.n_clients
    return asked.dp_sgd_of(row, n_records, n_clients, scenario.training, scenario.privacy.delta)


def _record_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The loss [b] of each record, of texts too: DP-SGD clips records, not positions."""
    return training.record_losses(training.cross_entropy, logits, labels)


def private_mask(client: Client, proxy: ProxySet, own: Tensor) -> tuple[Tensor, float]:
    """The accept mask [n] of proxy images and its threshold by the scenario's private filter.

    Guarantee: `private_filter.private_mask`. Its noise is of round 0, so the same mask comes again.
    Raises: FedkdError as `private_filter.Public.of` and `private_filter.private_mask` do.
    """
    scenario = client.scenario
    row = scenario.privacy.filter
    assert not isinstance(row, protection.PlainFilter)
    x, _ = client.world.client(client.id)
    return private_filter.private_mask(
        _public(proxy, row, client.seed),
        training.inputs(x).flatten(1).cpu(),
        own,
        scenario.method.gate,
        scenario.training.heldout,
        scenario.privacy.delta,
        client.noise("filter noise", 0),
    )


@lru_cache(maxsize=2)
def _public(proxy: ProxySet, row: private_filter.Row, seed: int) -> private_filter.Public:
    generator = torch_stream(seed, "server", purpose="public view")
    return private_filter.Public.of(row, proxy.x.flatten(1).cpu(), generator)


def may_summarise(guard: Guard) -> bool:
    """Charge the summary that answers come from, once for the run; False if there can be none."""
    client = guard.client
    row = client.scenario.privacy.release
    if not isinstance(row, protection.SummaryRelease):
        return True
    claim = claims.claim_of_summary(row, client.scenario.privacy.delta)
    entry = guard.entry("summary", client.n_records, "no one", claim)
    return guard.charge(entry.model_copy(update={"round": 0})) is not None


def _taught(client: Client, proxy: ProxySet, records: Tensor) -> Tensor:
    """What the client's private summary says of the proxy images [m]: float32 [m, classes].

    Guarantee: `claims.claim_of_summary`, which `may_summarise` has charged: its noise is of round
    0, so the same summary comes again.
    """
    scenario, row = client.scenario, client.scenario.privacy.release
    assert isinstance(row, protection.SummaryRelease)
    x, y = client.world.client(client.id)
    summary = _public(proxy, row.made_as, client.seed).summarise(
        training.inputs(x).flatten(1).cpu(),
        y,
        client.world.train.n_classes,
        private_filter.summary_event(row.made_as, scenario.privacy.delta),
        client.noise("summary noise", 0),
    )
    asked = proxy.x.flatten(1).cpu()[records.cpu()]
    return summary.teach(asked, scenario.method.release.temperature).float()


def told(client: Client, proxy: ProxySet, records: Tensor, logits: Tensor) -> tuple[Tensor, Claim]:
    """What leaves for the logits [m * L, classes] of the records [m], and what may be claimed.

    Guarantee: the release's own, for the client; and the model's, for a record, where nothing but
    the model and what is public goes into the release. Temperatures by density read the records.
    A summary answers without the model.
    Raises: FedkdError for logits that are not finite.
    """
    privacy = client.scenario.privacy
    if isinstance(privacy.release, protection.PlainRelease):
        values = client.scenario.method.release.release(logits)
        return values, claims.claim_of_model(privacy.training)
    occasion = _occasion(client, proxy, records, logits)
    if isinstance(privacy.release, protection.SummaryRelease):
        claim = claims.claim_of_release(privacy, occasion, len(logits), logits.shape[1])
        return _taught(client, proxy, records), claim
    noise = client.noise("release noise")
    values = protect.answers(privacy, logits, occasion, noise)
    return values, claims.claim_of_release(privacy, occasion, len(logits), logits.shape[1])


def most_told(client: Client, proxy: ProxySet) -> int | None:
    """Soft labels that a client may tell in the whole run; None where noise counts on no number."""
    calibrated = protection.GaussianRelease | protection.LaplaceRelease
    if not isinstance(client.scenario.privacy.release, calibrated):
        return None
    return proxy.n_samples * _most_rounds(client)


def _most_rounds(client: Client) -> int:
    return asked.most_rounds(client.scenario.training, client.world.n_clients)


def _occasion(client: Client, proxy: ProxySet, records: Tensor, logits: Tensor) -> Occasion:
    scenario = client.scenario
    row = scenario.privacy.release
    degree: Tensor | None = None
    origin: Origin = "public"
    pooled: tuple[int, ...] = ()
    if isinstance(row, protection.Swing):
        pooled = degrees.pooled(row, client.world.tokens)
        of_all = degrees.public(proxy, row, client.world.tokens)
        if of_all is not None:
            degree = of_all[_positions(records, proxy)]
        else:
            degree, origin = degrees.private(client, proxy, row, records, logits), "private"
    return Occasion(
        temperature=scenario.method.release.temperature,
        most_rows=proxy.n_samples * _most_rounds(client),
        delta=scenario.privacy.delta,
        degrees=degree,
        origin=origin,
        pooled=pooled,
    )


def _positions(records: Tensor, proxy: ProxySet) -> Tensor:
    within = torch.arange(proxy.positions)
    return (records.cpu()[:, None] * proxy.positions + within).reshape(-1)


def lesson(client: Client, proxy: ProxySet, ids: Tensor, target: Tensor) -> Tensor:
    """What a student learns from under Swing: the target [m, classes] with T and weight beside.

    The temperatures are the teachers' where everybody knows them, else the lowest.
    """
    row = client.scenario.privacy.release
    assert isinstance(row, protection.Swing)
    of_all = degrees.public(proxy, row, client.world.tokens)
    degree = torch.zeros(len(ids)) if of_all is None else of_all[ids]
    swinging = asked.swing_of(row, "private" if of_all is None else "public")
    return swing.rows(swing.Swung(target, swinging.told(degree), swinging.weights(degree)))
