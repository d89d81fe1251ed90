"""The line before a bulkhead: nobody is forgotten in it, overtaken, or sent away while there is a slot."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from tests.stress.bulkheads import assert_whole
from tests.stress.crowd import Crowd
from tests.support.waiting import await_until, wait_until

from resilient import Bulkhead, BulkheadFullError, Gradient, deadline

SOAK = bool(os.environ.get("RESILIENT_SOAK"))
PING_PONGS = 1_000_000 if SOAK else 40_000
ROUNDS = 10_000 if SOAK else 1_000
LONG = 40.0  # seconds; whoever waits for as long is stuck

pytestmark = [
    pytest.mark.usefixtures("restless", "one_look"),
    pytest.mark.timeout(600.0 if SOAK else 60.0),
]


def alternate(*players: Callable[[], None]) -> None:
    """Have threads do theirs at the same time; fail if one raised."""
    errors: list[BaseException] = []

    def play(player: Callable[[], None]) -> None:
        try:
            player()
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=play, args=(player,)) for player in players]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors


KINDS: dict[str, dict[str, Any]] = {
    "fixed": {"limit": 1},
    "adaptive": {"limit": Gradient(initial=1, min_limit=1, max_limit=1)},
    "priorities": {"limit": 1, "priority": "critical", "reserve": 0},
}


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_slot_that_goes_to_and_fro_is_never_left_lying(options: dict[str, Any]) -> None:
    """Two threads and one slot, a hundred thousand times: every wake-up comes."""
    bulkhead = Bulkhead("b", max_wait=LONG, **options)
    play = bulkhead(lambda: None)

    def player() -> None:
        for _ in range(PING_PONGS // 2):
            play()

    alternate(player, player)

    assert bulkhead.stats().calls == PING_PONGS
    assert_whole(bulkhead, 1)


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_last_one_in_the_line_is_not_forgotten(options: dict[str, Any]) -> None:
    """Two threads, one slot, one call each, again and again: nobody comes later whose steps would help."""
    bulkhead = Bulkhead("b", max_wait=LONG, **options)
    play, together = bulkhead(lambda: None), threading.Barrier(2, timeout=2 * LONG)

    def player() -> None:
        for _ in range(PING_PONGS // 10):
            together.wait()
            play()

    alternate(player, player)

    assert bulkhead.stats().calls == PING_PONGS // 5
    assert_whole(bulkhead, 1)


def test_slot_that_is_handed_over_each_time_is_never_left_lying() -> None:
    """The other one waits already whenever the slot comes back: each turn is a wake-up."""
    bulkhead = Bulkhead("b", 1, max_wait=LONG)

    def player() -> None:
        for _ in range(PING_PONGS // 20):
            with bulkhead.calling():
                time.sleep(0.0)  # the other one asks in the meantime

    alternate(player, player)

    assert bulkhead.stats().calls == PING_PONGS // 10
    assert_whole(bulkhead, 1)


def test_slot_goes_to_and_fro_between_loops_and_a_thread() -> None:
    """A wake-up crosses from any world to any other."""
    bulkhead = Bulkhead("b", 1, max_wait=LONG)

    async def tasks() -> None:
        for _ in range(PING_PONGS // 40):
            async with bulkhead.calling():
                await asyncio.sleep(0)

    def thread() -> None:
        for _ in range(PING_PONGS // 40):
            with bulkhead.calling():
                time.sleep(0.0)

    alternate(thread, lambda: asyncio.run(tasks()), lambda: asyncio.run(tasks()))

    assert bulkhead.stats().calls == 3 * (PING_PONGS // 40)
    assert_whole(bulkhead, 1)


class Race:
    """A wait that ends at the very moment at which the slot comes back, give or take a millisecond."""

    def __init__(self) -> None:
        self._random = random.Random(4)
        self.won = self.lost = 0

    def times(self) -> tuple[float, float]:
        """Return how long the slot is held and how long it is waited for, in seconds."""
        held = self._random.uniform(0.0005, 0.0015)
        return held, max(0.0001, held + self._random.uniform(-0.001, 0.001))

    def assert_close(self, bulkhead: Bulkhead) -> None:
        """Fail unless both ends were common, and all holders and waiters are in the books."""
        stats = bulkhead.stats()
        assert self.won + self.lost == ROUNDS
        assert min(self.won, self.lost) > ROUNDS // 20, "there was no race"
        # One that is cancelled with the slot in hand did get it; one may be late before it is in the line.
        assert stats.calls >= ROUNDS + self.won
        assert stats.calls + stats.gave_up + stats.rejected == 2 * ROUNDS
        assert_whole(bulkhead, 1)


def test_threads_time_out_while_the_slot_is_handed_to_them() -> None:
    """A thousand rounds: it has the slot or it has not, and either way the slot is there afterwards."""
    bulkhead, race = Bulkhead("b", 1, max_wait=LONG), Race()
    rounds = [race.times() for _ in range(ROUNDS)]
    together = threading.Barrier(2, timeout=LONG)

    def holder() -> None:
        for held, _ in rounds:
            with bulkhead.calling():
                together.wait()
                time.sleep(held)
            together.wait()

    def waiter() -> None:
        for _, patience in rounds:
            together.wait()
            try:
                with deadline(patience), bulkhead.calling():
                    race.won += 1
            except BulkheadFullError:
                race.lost += 1
            together.wait()

    alternate(holder, waiter)

    race.assert_close(bulkhead)


@pytest.mark.parametrize("how", ["gives-up", "cancelled"])
async def test_tasks_time_out_while_the_slot_is_handed_to_them(how: str) -> None:
    """The same on a loop: by a deadline of the bulkhead's knowledge, or cancelled from outside."""
    bulkhead, race = Bulkhead("b", 1, max_wait=LONG), Race()

    async def hold(seconds: float) -> None:
        async with bulkhead.calling():
            await asyncio.sleep(seconds)

    async def use() -> None:
        async with bulkhead.calling():
            race.won += 1

    for _ in range(ROUNDS):
        held, patience = race.times()
        holder = asyncio.create_task(hold(held))
        await asyncio.sleep(0)
        try:
            if how == "cancelled":
                async with asyncio.timeout(patience):
                    await use()
            else:
                with deadline(patience):
                    await use()
        except (BulkheadFullError, TimeoutError):
            race.lost += 1
        await holder

    race.assert_close(bulkhead)


def test_line_is_served_in_the_order_of_arrival() -> None:
    """Sixty-four threads, one after the other, each behind all before it."""
    bulkhead, served = Bulkhead("b", 1, max_wait=LONG), list[int]()
    take = bulkhead(served.append)
    threads = [threading.Thread(target=take, args=(place,)) for place in range(64)]

    with bulkhead.calling():
        for waiting, thread in enumerate(threads, 1):
            thread.start()
            wait_until(lambda waiting=waiting: bulkhead.stats().waiting == waiting, "the next one waits")
    for thread in threads:
        thread.join()

    assert served == [*range(64)]
    assert_whole(bulkhead, 1)


async def test_line_of_tasks_and_threads_is_served_in_the_order_of_arrival() -> None:
    """In turns a thread and a task."""
    bulkhead, served = Bulkhead("b", 1, max_wait=LONG), list[int]()
    take = bulkhead(served.append)
    threads = [threading.Thread(target=take, args=(place,)) for place in range(0, 32, 2)]

    @bulkhead
    async def atake(place: int) -> None:
        served.append(place)

    async with asyncio.TaskGroup() as tasks, bulkhead.calling():
        for place, thread in enumerate(threads):
            thread.start()
            await await_until(lambda place=place: bulkhead.stats().waiting == 2 * place + 1, "a thread waits")
            tasks.create_task(atake(2 * place + 1))
            await await_until(lambda place=place: bulkhead.stats().waiting == 2 * place + 2, "a task waits")
    for thread in threads:
        thread.join()

    assert served == [*range(32)]
    assert_whole(bulkhead, 1)


def test_nobody_waits_for_much_longer_than_a_fair_share() -> None:
    """In turns of others, not in seconds: a busy machine says nothing about the line.

    Ideally each of the callers is served once between two turns of one of them. Twice is the bound; the
    system may keep a thread from asking in time, but not in each of three rounds.
    """
    callers, slots = 32, 4
    bulkhead = Bulkhead("b", slots, max_wait=LONG)
    longest = []
    for _ in range(3):
        served, waits = list[int](), list[int]()

        def call(number: int, served: list[int] = served, waits: list[int] = waits) -> None:
            asked = len(served)
            with bulkhead.calling():
                waits.append(len(served) - asked)
                served.append(number)
                time.sleep(0.0002)

        async def acall(number: int, served: list[int] = served, waits: list[int] = waits) -> None:
            asked = len(served)
            async with bulkhead.calling():
                waits.append(len(served) - asked)
                served.append(number)
                await asyncio.sleep(0.0002)

        Crowd(call, acall, threads=callers, calls=callers * 30).run()
        longest.append(max(waits))

    # Beside the threads there are ten tasks on each of two loops.
    assert min(longest) <= 2 * (callers + 20), longest
    assert_whole(bulkhead, slots)
