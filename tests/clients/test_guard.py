"""Clients under privacy settings, in real runs: the same bits again, nothing charged twice, and
budgets that hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from scipy.stats import binom
from torch import Tensor

from clients import guard, steps
from clients.app import make_app
from clients.client import Client, ProxySet
from clients.guard import Guard
from clients.store import FolderStore, MemoryStore
from fedkd import config, protection
from fedkd.config import Scenario
from fedkd.data.tokens import encode
from fedkd.exchange.combine import Consensus
from fedkd.payload import Pool
from fedkd.rng import torch_stream
from privacy import accounting, mechanisms, protect
from privacy.ledger import Release
from privacy.protect import CLIENT, RECORD
from privacy.totals import total, totals
from scenarios.grids import inline
from scenarios.simulate import resume, simulate
from server.app import make_app as make_server
from server.events import Event
from small_runs import consensus, facts, ledgers, small

CPU = torch.device("cpu")
TWO = {"partition": {"name": "iid", "clients": 2}}
ROUNDS = {"rounds": 2, "local": {"batch_size": 256}}
PUBLIC = {"proxy": {"name": "public", "size": 60}}
OPEN = {"method": {"name": "no-filter"}}

PROTECTIONS: dict[str, dict[str, Any]] = {
    "noise": {
        "training": {"name": "dp-sgd"},
        "filter": {"name": "dp-kmeans"},
        "release": {"name": "gaussian"},
    },
    "part": {
        "training": {"name": "nfdp"},
        "filter": {"name": "dp-class-means"},
        "release": {"name": "laplace"},
    },
    "feedback": {
        "training": {"name": "dp-sgd", "error_clip": 0.1},
        "filter": {"name": "dp-kernel"},
        "release": {"name": "sampled-label"},
    },
    "answers": {"release": {"name": "randomised-response"}},
    "arg-max": {"training": {"name": "dp-sgd", "epsilon": 8.0}, "release": {"name": "top-1"}},
    "swing": {"release": {"name": "swing", "degree": "density", "noise": "gaussian"}},
    "classes": {
        "filter": {"name": "dp-kmeans"},
        "release": {"name": "swing", "degree": "classes", "private_classes": [3, 8]},
    },
}
"""Every row of training, filter and release at least once."""


def protected(name: str, **changes: Any) -> Scenario:
    return small(**{**TWO, "training": ROUNDS, "privacy": PROTECTIONS[name], **changes})


def cell(folder: Path, scenario: Scenario | None = None) -> Path:
    method = scenario.method.name if scenario else "edgefd"
    return folder / method / "seed-1"


def entries(folder: Path, client: int) -> list[Release]:
    store = FolderStore(folder / "clients")
    return list(store.ledger(client).entries())


def same(ours: Path, theirs: Path) -> None:
    """Equal ledgers, and equal consensus to the bit."""
    assert ledgers(ours) == ledgers(theirs)
    one, other = consensus(ours), consensus(theirs)
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[key], other[key]) for key in one)


def test_every_row_is_tried() -> None:
    parts = ("training", "filter", "release")
    tables = (protection.TRAININGS, protection.FILTERS, protection.PROTECTED_RELEASES)
    for part, table in zip(parts, tables, strict=True):
        tried = {row.get(part, {"name": "plain"})["name"] for row in PROTECTIONS.values()}
        assert tried | {"plain"} == set(table)


@pytest.mark.parametrize("name", PROTECTIONS)
def test_a_protected_run_gives_the_same_bits_and_ledgers_again(tmp_path: Path, name: str) -> None:
    class Stop(Exception):
        pass

    def stop(row: str, seed: int, event: Event) -> None:
        if event["event"] == "round":
            raise Stop

    scenario = protected(name)
    whole = simulate(scenario, folder=tmp_path / "whole")
    assert not whole.cells[0].of("refused")
    assert facts(simulate(scenario)) == facts(whole)
    with pytest.raises(Stop):
        simulate(scenario, folder=tmp_path / "broken", listener=stop)
    assert facts(resume(tmp_path / "broken")) == facts(whole)
    same(cell(tmp_path / "broken"), cell(tmp_path / "whole"))
    for lines in ledgers(cell(tmp_path / "whole")).values():
        assert len(lines) == len(set(lines)) == expected_entries(scenario)


def expected_entries(scenario: Scenario) -> int:
    """One of raw samples, one of the mask, two of answers and, if it is not plain, of training."""
    training = scenario.privacy.training.name != "plain"
    return 1 + 1 + 2 + 2 * training


@pytest.mark.slow  # tests/e2e/test_grids.py does it for one of them by default
@pytest.mark.parametrize("name", PROTECTIONS)
def test_worker_processes_keep_the_same_ledgers(tmp_path: Path, name: str) -> None:
    inline_run = simulate(protected(name), folder=tmp_path / "inline")
    grid = {"name": "workers", "workers": 2}
    assert facts(simulate(protected(name, grid=grid), folder=tmp_path / "workers")) == facts(
        inline_run
    )
    same(cell(tmp_path / "workers"), cell(tmp_path / "inline"))


@pytest.mark.parametrize("name", PROTECTIONS)
def test_a_repeated_message_is_answered_again_and_charged_once(name: str) -> None:
    store = MemoryStore()
    honest = make_app(lambda config: store)
    n_answers = 0

    def twice(message: Message, context: Context, call_next: Callable[..., Message]) -> Message:
        nonlocal n_answers
        client = int(context.node_config["partition-id"])
        first = call_next(message, context)
        kept = store.ledger(client).entries()
        again = call_next(message, context)
        assert store.ledger(client).entries() == kept
        assert ("payload" in first.content) == ("payload" in again.content)
        if "payload" in first.content:
            one, other = (
                reply.content.array_records["payload"]["bytes"].data for reply in (first, again)
            )
            assert np.array_equal(one, other)
            n_answers += 1
        return again

    app = ClientApp(mods=[twice])
    for route in (app.query("hello"), app.query("pool"), app.train(), app.evaluate()):
        route(lambda message, context: honest(message, context))
    inline.run(make_server(protected(name), 1, None), app, 2)
    assert n_answers == 2 + 4  # two hellos, and two clients' answers in two rounds


# --- what is claimed ---


def client_of(scenario: Scenario, client: int = 0, round_: int = 1) -> Client:
    world = scenario.world(1)
    return Client(scenario=scenario, seed=1, id=client, round=round_, world=world, device=CPU)


def proxy_of(client: Client) -> ProxySet:
    x = client.world.public_x
    assert x is not None
    return ProxySet.of(Pool(x.numpy(), np.full(len(x), -1, np.int32)), CPU)


def told(scenario: Scenario) -> tuple[Tensor, protect.Claim]:
    client = client_of(scenario)
    proxy = proxy_of(client)
    records = torch.arange(0, len(proxy.x), 2)
    logits = torch.randn(len(records) * proxy.positions, 10, generator=torch_stream(1, "z"))
    return guard.told(client, proxy, records, logits)


@pytest.mark.parametrize(
    ("release", "guarantee", "derived"),
    [
        ({"name": "plain"}, "proved", True),
        ({"name": "top-1"}, "proved", True),
        ({"name": "gaussian"}, "proved", True),
        ({"name": "swing", "degree": "classes", "private_classes": [2]}, "proved", True),
        ({"name": "swing", "degree": "density"}, "empirical", False),
        ({"name": "swing", "degree": "density", "noise": "gaussian"}, "proved", False),
    ],
)
def test_dp_sgd_carries_over_to_what_reads_no_record(
    release: dict[str, Any], guarantee: str, derived: bool
) -> None:
    training = {"name": "dp-sgd"}
    _, claim = told(small(**OPEN, **PUBLIC, privacy={"training": training, "release": release}))
    assert claim.guarantee == guarantee
    assert claim.derived_from == (("training",) if derived else ())


@pytest.mark.parametrize("release", ["plain", "top-1", "gaussian"])
def test_dp_sgd_without_noise_proves_nothing(tmp_path: Path, release: str) -> None:
    training = {"name": "dp-sgd", "noise_multiplier": 0.0}
    scenario = small(
        **{**TWO, **OPEN, "training": ROUNDS},
        privacy={"training": training, "release": {"name": release}},
    )
    simulate(scenario, folder=tmp_path)
    kept = entries(cell(tmp_path, scenario), 0)
    assert not [e for e in kept if e.derived_from or any(v.protects == RECORD for v in e.events)]
    assert math.isinf(total(kept, RECORD, 1e-5).epsilon)


def test_a_run_costs_what_its_parts_are_set_to(tmp_path: Path) -> None:
    """Training to 2, the filter to 1: a record is charged less than their sum, more than one."""
    scenario = protected(
        "noise",
        privacy={
            "training": {"name": "dp-sgd", "epsilon": 2.0},
            "filter": {"name": "dp-kmeans", "epsilon": 1.0},
        },
    )
    simulate(scenario, folder=tmp_path)
    for client in range(2):
        found = total(entries(cell(tmp_path), client), RECORD, 1e-5)
        assert found.bare == ()
        assert 2.0 < found.epsilon <= 3.0


def test_nothing_of_the_private_loss_is_reported() -> None:
    for name in ("noise", "part"):
        for event in simulate(protected(name)).cells[0].of("client"):
            assert "train_loss" not in event
            assert event["train_samples"] > 0
    assert "train_loss" in simulate(protected("answers")).cells[0].of("client")[0]


def test_nfdp_learns_from_its_part_alone() -> None:
    scenario = protected("part", privacy={"training": {"name": "nfdp", "fraction": 0.25}})
    client = client_of(scenario)
    x, y = client.world.client(0)
    model, twin = client.model(None), client.model(None)
    assert guard.learn(client, model, x, y) == round(0.25 * len(x))
    once = torch_stream(1, "client", 0, 0, "nfdp")
    kept = torch.randperm(len(x), generator=once)[: round(0.25 * len(x))]
    outside = torch.ones(len(x), dtype=torch.bool)
    outside[kept] = False
    changed = x.clone()
    changed[outside] = 255 - changed[outside]
    guard.learn(client, twin, changed, y)
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_text_is_learnt_under_dp_sgd() -> None:
    scenario = small(
        data={"name": "pydoc", "length": 16},
        partition={"name": "iid", "clients": 40},
        model={"names": ["gru"]},
        privacy={"training": {"name": "dp-sgd", "noise_multiplier": 0.01, "clip": 10.0}},
        training={"local": {"epochs": 0.2, "batch_size": 16, "learning_rate": 0.01}},
    )
    client = client_of(scenario)
    x, y = client.world.client(0)
    model = client.model(None)
    before = steps.training.grades(model, x, y).nats.sum()
    guard.learn(client, model, x, y)
    assert steps.training.grades(model, x, y).nats.sum() < 0.95 * before


# --- a private mask ---


@pytest.mark.parametrize("space", ["pixels", "features"])
def test_a_private_mask_is_paid_for_once(tmp_path: Path, space: str) -> None:
    method = {"name": "edgefd", "score": {"space": space}}
    for name, times in (("plain", 1 if space == "pixels" else 2), ("dp-kmeans", 1)):
        scenario = small(**TWO, method=method, privacy={"filter": {"name": name}})
        simulate(scenario, folder=tmp_path / name)
        for client in range(2):
            kept = entries(cell(tmp_path / name), client)
            assert [e.what for e in kept].count("accept mask") == times


def test_who_answers_nothing_has_told_nothing(tmp_path: Path) -> None:
    """A gate that is shut, and a public pool: no rows leave, and no epsilon gets infinite."""
    scenario = small(
        **{**TWO, **PUBLIC, "training": ROUNDS},
        method={"name": "edgefd", "gate": {"name": "constant", "value": -1e9}},
        privacy={"training": {"name": "dp-sgd"}, "filter": {"name": "dp-kmeans"}, "budget": 50.0},
    )
    result = simulate(scenario, folder=tmp_path)
    assert [event["n_abstained"] for event in result.cells[0].of("round")] == [0, 0]
    kept = entries(cell(tmp_path), 0)
    assert [e.rows for e in kept if e.what == "soft labels"] == [0, 0]
    assert total(kept, RECORD, 1e-5).epsilon < 50


# --- budgets ---


def abstained(events: Sequence[Event]) -> list[tuple[int, int]]:
    return [
        (e["round"], e["client"]) for e in events if e["event"] == "client" and "abstained" in e
    ]


def rounds_within(budget: float, noise: float, steps_each: int, rate: float) -> int:
    """By hand: how many rounds of DP-SGD the RDP accountant of dp-accounting lets pass."""
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))
    for rounds in range(1, 100):
        accountant = RdpAccountant()
        with accounting.quiet():
            accountant.compose(event, rounds * steps_each)
            if accountant.get_epsilon(1e-5) > budget:
                return rounds - 1
    raise AssertionError("the budget is never spent")


def test_a_budget_stops_a_client_and_the_run_goes_on(tmp_path: Path) -> None:
    scenario = small(
        **{**TWO, **OPEN},
        training={"rounds": 5, "local": {"batch_size": 128}},
        privacy={"training": {"name": "dp-sgd", "noise_multiplier": 1.5}, "budget": 4.0},
    )
    client = client_of(scenario)
    per_epoch = math.ceil(client.n_records / 128)
    last = rounds_within(4.0, 1.5, per_epoch, 1 / per_epoch)
    assert 1 <= last < 5
    result = simulate(scenario, folder=tmp_path)
    events = result.cells[0].events
    assert abstained(events) == [(r, c) for r in range(last + 1, 6) for c in range(2)]
    assert [e["n_abstained"] for e in result.cells[0].of("round")] == [0] * last + [2] * (5 - last)
    assert not result.cells[0].of("refused")
    for event in result.cells[0].of("client"):
        assert (event["bytes_up"] > 0) == (event["round"] <= last)
    for c in range(2):
        kept = entries(cell(tmp_path, scenario), c)
        assert [e.what for e in kept].count("training") == last
        (spent,) = [t for t in totals(kept, 1e-5) if t.spent.protects == RECORD]
        assert spent.bare == ()
        assert 0 < spent.epsilon <= 4.0
    again = simulate(scenario, folder=tmp_path / "again")
    assert facts(again) == facts(result)


def test_a_client_s_budget_stops_its_answers(tmp_path: Path) -> None:
    """Each of four rounds costs mu^2 / 4 of what the noise was made for; the budget is of two."""
    release = protection.GaussianRelease(epsilon=8.0)
    whole = accounting.least_gaussian(8.0, CLIENT, 1e-5)
    each = whole.model_copy(update={"noise_multiplier": 2 * whole.noise_multiplier})
    budget = accounting.rdp_epsilon([each] * 2, CLIENT, 1e-5) + 0.01
    scenario = small(
        **{**TWO, **OPEN, **PUBLIC},
        training={**ROUNDS, "rounds": 4},
        privacy={"release": release.model_dump(), "unit": "client", "budget": budget},
    )
    result = simulate(scenario, folder=tmp_path)
    assert abstained(result.cells[0].events) == [(r, c) for r in (3, 4) for c in range(2)]
    assert [e["kept"] for e in result.cells[0].of("round")] == [1.0, 1.0, 0.0, 0.0]
    for c in range(2):
        spent = total(entries(cell(tmp_path, scenario), c), CLIENT, 1e-5)
        assert 0.9 * budget < spent.epsilon <= budget


@pytest.mark.parametrize("name", ["gaussian", "laplace"])
def test_a_budget_equal_to_the_epsilon_of_a_release_lasts_for_the_run(name: str) -> None:
    scenario = small(
        **{**TWO, **OPEN, **PUBLIC},
        training={**ROUNDS, "rounds": 3},
        privacy={"release": {"name": name, "epsilon": 4.0}, "unit": "client", "budget": 4.0},
    )
    assert abstained(simulate(scenario).cells[0].events) == []


def test_who_cannot_pay_for_its_mask_abstains(tmp_path: Path) -> None:
    """Training is within the budget, and the mask beside it is not: no failure, no answer."""
    scenario = protected(
        "noise",
        privacy={
            "training": {"name": "dp-sgd", "epsilon": 2.0},
            "filter": {"name": "dp-kmeans", "epsilon": 2.0},
            "budget": 2.1,
        },
    )
    result = simulate(scenario, folder=tmp_path)
    assert not result.cells[0].of("refused")
    assert abstained(result.cells[0].events) == [(r, c) for r in (1, 2) for c in range(2)]
    assert [e["kept"] for e in result.cells[0].of("round")] == [0.0, 0.0]
    for c in range(2):
        kept = entries(cell(tmp_path), c)
        assert {e.what for e in kept} == {"raw samples", "training"}
        assert total(kept, RECORD, 1e-5).epsilon <= 2.0


def test_noise_for_so_many_rounds_stops_who_is_drawn_for_more() -> None:
    """Without any budget: the epsilon of a row is of the whole run."""
    training = {"rounds": 20, "participation": 0.2, "local": {"batch_size": 512}}
    scenario = small(**TWO, training=training, privacy=PROTECTIONS["arg-max"])
    store = MemoryStore()
    paid = int(binom.ppf(0.95, 20, 0.2))
    may = [guard.may_train(Guard(store, client_of(scenario, 0, r))) for r in range(1, 11)]
    assert may == [True] * paid + [False] * (10 - paid)
    assert guard.may_train(Guard(store, client_of(scenario, 0, 2)))  # a repeated message
    assert guard.may_train(Guard(store, client_of(scenario, 1, 9)))
    assert len(store.ledger(0).entries()) == paid
    spent = total(store.ledger(0).entries(), RECORD, 1e-5).epsilon
    assert 7.5 < spent <= 8.0


def test_a_release_for_so_many_rounds_stops_too(tmp_path: Path) -> None:
    scenario = small(
        **{**OPEN, **PUBLIC},
        partition={"name": "iid", "clients": 4},
        training={**ROUNDS, "rounds": 8, "participation": 0.25},
        privacy={"release": {"name": "laplace", "epsilon": 2.0}},
    )
    cells = [simulate(scenario.model_copy(update={"seeds": (s,)})).cells[0] for s in range(12)]
    paid = int(binom.ppf(0.95, 8, 0.25))
    stopped = 0
    for found in cells:
        for client in range(4):
            mine = [e for e in found.of("client") if e["client"] == client]
            assert [("abstained" in e) for e in mine] == [i >= paid for i in range(len(mine))]
            stopped += len(mine) > paid
    assert stopped > 0


# --- swing ---

SENTENCE = "card 4111 1111 1111 1111 of pin 12345!"
LENGTH = len(SENTENCE)


COMMON = "nothing to be seen here, move along".ljust(LENGTH)


def tiny(*texts: str, **release: Any) -> tuple[Client, ProxySet]:
    """A proxy set of records: unless told, a sentence with numbers in it, and one without."""
    scenario = config.parse(
        {
            "data": {"name": "pydoc", "length": LENGTH},
            "partition": {"name": "natural"},
            "model": {"names": ["gru"]},
            "method": {"name": "no-filter"},
            "privacy": {"release": {"name": "swing", **release}},
        }
    )
    x = np.stack([encode(text, "characters") for text in texts or (SENTENCE, COMMON)])
    pool = Pool(x.astype(np.int16)[:, None, None, :], np.full(len(x), -1, np.int32))
    return client_of(scenario), ProxySet.of(pool, CPU)


def temperatures_by_hand() -> list[float]:
    """Of T = 1 to 16: a card number has degree 1, five digits 0.8; a position predicts the next."""
    degree = [0.0] * LENGTH
    for at in range(5, 24):
        degree[at] = 1.0
    for at in range(32, 37):
        degree[at] = 0.8
    assert SENTENCE[5:24] == "4111 1111 1111 1111"
    assert SENTENCE[32:37] == "12345"
    following = [*degree[1:], degree[-1]]
    return [16.0**d for d in following] + [1.0] * LENGTH


def test_positions_of_numbers_are_the_hottest() -> None:
    client, proxy = tiny(t_max=16.0)
    row = client.scenario.privacy.release
    assert isinstance(row, protection.Swing)
    found = guard.public_degrees(proxy, row, "characters")
    hot = protect.swing_of(row, "public").temperatures(found)
    assert hot.tolist() == pytest.approx(temperatures_by_hand())


def test_what_swing_tells_is_the_softmax_at_each_position_s_temperature() -> None:
    client, proxy = tiny(t_max=16.0)
    model = client.model(None).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)
    records = torch.tensor([0, 1])
    logits = steps.training.predict(model, proxy.x).flatten(0, -2)
    values, claim = guard.told(client, proxy, records, logits)
    z = logits.double()
    z = (z - (z.max(1).values + z.min(1).values)[:, None] / 2).clip(-5, 5)
    t = torch.tensor(temperatures_by_hand(), dtype=torch.float64)
    torch.testing.assert_close(values, torch.softmax(z / t[:, None], 1).float())
    assert claim.guarantee == "empirical"
    only_second, _ = guard.told(client, proxy, records[1:], logits[LENGTH:])
    assert torch.equal(only_second, values[LENGTH:])


@pytest.mark.parametrize("noise", ["none", "gaussian"])
def test_students_learn_at_the_teachers_temperatures(noise: str) -> None:
    client, proxy = tiny(t_max=16.0, noise=noise)
    ids = torch.arange(2 * LENGTH)
    target = torch.full((2 * LENGTH, 97), 1 / 97)
    lesson = guard.lesson(client, proxy, ids, target)
    wanted = torch.tensor(temperatures_by_hand())
    torch.testing.assert_close(lesson[:, :-2], target)
    torch.testing.assert_close(lesson[:, -2], wanted)
    weight = torch.ones_like(wanted) if noise == "none" else wanted**-2
    torch.testing.assert_close(lesson[:, -1], weight)


def test_students_are_told_no_temperature_that_only_the_teacher_knows() -> None:
    degree = {"degree": "classes", "private_classes": [1]}
    scenario = small(**OPEN, **PUBLIC, privacy={"release": {"name": "swing", "t_min": 2, **degree}})
    client = client_of(scenario)
    lesson = guard.lesson(client, proxy_of(client), torch.arange(5), torch.full((5, 10), 0.1))
    assert lesson[:, -2].tolist() == [2.0] * 5


def test_a_part_of_a_record_can_be_learnt_under_swing() -> None:
    """A consensus may hold some positions of a record: those without one must not count."""
    client, proxy = tiny()
    model = client.model(None)
    ids = np.array([3, 4, 40], dtype=np.int32)
    values = np.full((3, 97), 1 / 97, dtype=np.float32)
    steps.learn_consensus([client], [model], proxy, Consensus(ids, values))
    assert client.metrics["distill_loss"] > 0
    assert all(bool(weight.isfinite().all()) for weight in model.parameters())


def test_what_is_said_once_is_hotter_than_what_others_say_too() -> None:
    """Even a record that repeats itself: it is read by n-grams of other records."""
    client, proxy = tiny(SENTENCE, COMMON, COMMON, COMMON, degree="rarity")
    row = client.scenario.privacy.release
    assert isinstance(row, protection.Swing)
    found = guard.public_degrees(proxy, row, "characters").view(4, LENGTH)
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    numbers = torch.tensor([SENTENCE[t + 1].isdigit() for t in range(LENGTH - 1)])
    assert float(found[0, :-1][numbers].min()) > 2 * float(found[2].max())
    # No other record has a digit, so by hand one is as likely as 1 of 97 in 2 * LENGTH + 1 tokens.
    assert float(found[0, 32]) == 1.0
    assert found[2, -1] == found[2, -2]


# --- the noise is there ---


def noisy(name: str) -> None:
    """The answers of a round differ from those of the same run without the release's protection.

    Raises: AssertionError if they are the same.
    """
    release = {
        "name": name,
        **({"degree": "density", "t_max": 1.0, "noise": "laplace"} if name == "swing" else {}),
    }
    logits = torch.randn(30, 10, generator=torch_stream(1, "z"))
    scenario = small(**OPEN, **PUBLIC, privacy={"release": {**release, "bound": 100.0}})
    client = client_of(scenario)
    values, _ = guard.told(client, proxy_of(client), torch.arange(0, 60, 2), logits)
    assert not torch.allclose(values, torch.softmax(logits, 1), atol=1e-3)


@pytest.mark.parametrize("name", ["gaussian", "laplace", "swing"])
def test_a_guard_that_forgets_the_noise_is_caught(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    noisy(name)
    monkeypatch.setattr(mechanisms.Gaussian, "add", lambda self, values, generator: values)
    monkeypatch.setattr(mechanisms.Laplace, "add", lambda self, values, generator: values)
    with pytest.raises(AssertionError):
        noisy(name)


def trained_with_noise() -> None:
    """Where nothing can be learnt (clip 1e-9), all that moves the weights is noise.

    Raises: AssertionError if they did not move.
    """
    training = {"name": "dp-sgd", "clip": 1e-9, "noise_multiplier": 1e9}
    local = {"batch_size": 512, "optimizer": "sgd", "learning_rate": 0.1}
    scenario = small(**TWO, privacy={"training": training}, training={"local": local})
    client = client_of(scenario)
    model, before = client.model(None), client.model(None)
    x, y = client.world.client(0)
    guard.learn(client, model, x, y)
    pairs = zip(model.parameters(), before.parameters(), strict=True)
    assert all(not torch.allclose(a, b, atol=1e-6) for a, b in pairs)


def test_training_that_forgets_the_noise_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    trained_with_noise()
    monkeypatch.setattr(protection.DpSgd, "noise_std", 0.0)
    with pytest.raises(AssertionError):
        trained_with_noise()
