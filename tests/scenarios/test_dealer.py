"""Dealing without processes: a schedule is played by the clock of its own times."""

from __future__ import annotations

import heapq
from itertools import count

from flwr.app import Message, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from scenarios.grids.dealer import BLOCK_S, Block, Dealer
from scenarios.grids.nodes import identify

SECONDS = st.lists(st.floats(0.001, 5.0), min_size=1, max_size=60)
NUMBERS = count(1)


def step(clients: list[int], kind: str = "train") -> list[Message]:
    """One content for some clients, in partition order."""
    identify()
    content = RecordDict()
    messages = [Message(content, client + 1, kind) for client in clients]
    for message in messages:
        message.metadata.__dict__["_message_id"] = f"m{next(NUMBERS)}"
    return messages


def who(block: Block) -> list[int]:
    return [message.metadata.dst_node_id - 1 for message in block]


def play(
    dealer: Dealer, messages: list[Message], seconds: list[float], n_workers: int
) -> tuple[float, list[tuple[int, list[int]]]]:
    """When the last worker ends, and who was dealt what: each asks as soon as it is free."""
    dealer.add(messages)
    dealt: list[tuple[int, list[int]]] = []
    free = [(0.0, worker) for worker in range(n_workers)]
    busy: list[tuple[float, int, Block, float]] = []
    end = 0.0
    while free or busy:
        for now, worker in sorted(free):
            if block := dealer.take(worker, n_workers):
                took = sum(seconds[client] for client in who(block))
                heapq.heappush(busy, (now + took, worker, block, took))
                dealt.append((worker, who(block)))
        free = []
        if busy:
            end, worker, block, took = heapq.heappop(busy)
            dealer.done(worker, block, took)
            free = [(end, worker)]
    return end, dealt


def dealer_of(n_workers: int, together: int = 1) -> Dealer:
    dealer = Dealer(together)
    for worker in range(n_workers):
        dealer.join(worker)
    return dealer


@given(seconds=SECONDS, n_workers=st.integers(1, 5), together=st.integers(1, 4))
@settings(deadline=None)
def test_each_message_is_dealt_once_and_no_worker_waits_for_another_s_queue(
    seconds: list[float], n_workers: int, together: int
) -> None:
    """Graham's bound for any schedule in which nobody idles while there is work (1966, Th. 1)."""
    dealer = dealer_of(n_workers, together)
    clients = list(range(len(seconds)))
    for _ in range(3):
        end, dealt = play(dealer, step(clients), seconds, n_workers)
        assert sorted(client for _, block in dealt for client in block) == clients
        times = [sum(seconds[client] for client in block) for _, block in dealt]
        assert end <= sum(times) / n_workers + max(times) * (1 - 1 / n_workers) + 1e-9
        assert dealer.n_waiting == 0


@given(seconds=SECONDS, n_workers=st.integers(1, 5))
@settings(deadline=None)
def test_known_clients_are_joined_into_blocks_of_little_work(
    seconds: list[float], n_workers: int
) -> None:
    dealer = dealer_of(n_workers)
    clients = list(range(len(seconds)))
    for _ in range(3):
        _, dealt = play(dealer, step(clients), seconds, n_workers)
    for _, block in dealt:
        spent = sum(seconds[client] for client in block)
        assert len(block) == 1 or len(block) <= len(clients) // (2 * n_workers)
        if len(set(seconds)) == 1:
            assert len(block) == 1 or spent <= BLOCK_S + 1e-9


def test_many_small_clients_go_in_blocks_and_the_last_ones_alone() -> None:
    seconds = [0.01] * 200
    dealer = dealer_of(2)
    _, dealt = play(dealer, step(list(range(200))), seconds, 2)
    sizes = [len(block) for _, block in dealt]
    assert sizes[0] == 1, "nothing is known of the first"
    assert 0.9 * BLOCK_S <= max(sizes) * 0.01 <= BLOCK_S
    assert sizes[-1] == 1
    assert len(dealt) < 30


def test_equal_clients_go_to_the_worker_that_had_them_and_in_partition_order() -> None:
    clients = list(range(100))
    dealer = dealer_of(3)
    _, before = play(dealer, step(clients), [1.0] * 100, 3)
    _, after = play(dealer, step(clients), [1.0] * 100, 3)
    first = {client: worker for worker, block in before for client in block}
    second = {client: worker for worker, block in after for client in block}
    assert first == second
    for worker in range(3):
        mine = [client for owner, block in after for client in block if owner == worker]
        assert mine == sorted(mine)


def test_a_long_client_goes_first_once_it_is_known() -> None:
    seconds = [0.5] * 20 + [10.0]
    dealer = dealer_of(2)
    blind, _ = play(dealer, step(list(range(21))), seconds, 2)
    seeing, _ = play(dealer, step(list(range(21))), seconds, 2)
    assert blind == 15.0
    assert seeing == 10.0


@given(n_clients=st.integers(1, 40), together=st.integers(2, 7), seconds=st.floats(0.001, 3.0))
@settings(deadline=None)
def test_what_learns_together_is_decided_by_the_order_of_the_push_alone(
    n_clients: int, together: int, seconds: float
) -> None:
    dealer = dealer_of(2, together)
    clients = list(range(n_clients))
    wanted = [clients[i : i + together] for i in range(0, n_clients, together)]
    for round_ in range(3):
        times = [seconds * (1 + (client * 7 + round_) % 5) for client in clients]
        _, dealt = play(dealer, step(clients), times, 2)
        assert sorted(block for _, block in dealt) == wanted


def test_blocks_have_one_content_and_one_type() -> None:
    dealer = dealer_of(1)
    for _ in range(2):
        _, dealt = play(dealer, step([0, 1, 2, 3] * 5), [0.001] * 4, 1)
    assert max(len(block) for _, block in dealt) > 1
    mixed = step([0, 1, 2]) + step([0, 1, 2]) + step([0, 1, 2], "evaluate")
    dealer.add(mixed)
    while block := dealer.take(0, 1):
        assert len({(id(m.content), m.metadata.message_type) for m in block}) == 1


def test_what_is_new_goes_before_what_waits_since_before() -> None:
    dealer = dealer_of(1)
    dealer.add(step([0, 1]))
    dealer.add(step([2, 3]))
    assert [who(dealer.take(0, 1)) for _ in range(4)] == [[2], [3], [0], [1]]


def test_a_worker_that_sends_is_given_no_new_content() -> None:
    dealer = dealer_of(1)
    old = step([0])
    dealer.add(step([1]))
    assert dealer.take(0, 1, only=old[0].content) == []
    assert who(dealer.take(0, 1)) == [1]


def test_what_a_dead_worker_was_meant_to_do_is_done_by_others_and_suspects_go_alone() -> None:
    dealer = dealer_of(2)
    clients = list(range(40))
    for _ in range(2):
        play(dealer, step(clients), [0.001] * 40, 2)
    dealer.add(step(clients))
    held = dealer.take(1, 2)
    dealer.leave(1)
    suspects, innocent = [[message] for message in held[:2]], held[2:]
    assert innocent
    dealer.put_back([innocent])
    dealer.put_back(suspects, alone=True)
    rest: list[list[int]] = []
    while block := dealer.take(0, 1):
        rest.append(who(block))
    assert all(who(block) in rest for block in suspects)
    assert max(map(len, rest)) > 1
    assert sorted(client for block in rest for client in block) == clients
