"""Waiting for one's turn: in order, each as long as needed, never past the deadline, nothing lost."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from tests.policies.rate_limiter_support import limiter_of

from resilient import Pipeline, RateLimitedError, RateLimiter, deadline
from resilient.testing import FakeClock, no_waiting


@pytest.fixture
def clock() -> FakeClock:
    """A clock that stands still until told."""
    return FakeClock(1_000.0)


class Interrupted(BaseException):
    """What ends a wait before its time."""


class Gate:
    """A sleep that lasts until it is opened; of both colours."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self._opened = asyncio.Event()

    async def __call__(self, seconds: float) -> None:
        self.waits.append(seconds)
        await self._opened.wait()

    def open(self) -> None:
        self._opened.set()


def patient(clock: FakeClock, rate: str = "4/second", max_wait: float = 60.0, **options: Any) -> RateLimiter:
    """Make a limiter with a burst of one that waits."""
    options = {"burst": 1, "sleep": clock.sleep} | options
    return RateLimiter(rate, max_wait=max_wait, clock=clock, **options)


def do_not_wait(_seconds: float) -> None:
    """Sleep without any time passing, as if many threads slept at once."""


def test_calls_come_in_at_the_rate(clock: FakeClock):
    """Each a quarter of a second after the one before, however they are made."""
    limiter = patient(clock)
    guarded = limiter(clock)

    times = [guarded(), limiter.call(clock), limiter.acquire() and clock(), guarded()]
    with limiter.calling() as decision:
        times.append(clock())

    assert times == pytest.approx([1_000.0, 1_000.25, 1_000.5, 1_000.75, 1_001.0], abs=1e-2)
    assert decision.allowed
    assert decision.retry_after == pytest.approx(0.25, abs=1e-2)
    assert limiter.stats().allowed == 5


async def test_tasks_wait_in_the_order_of_their_arrival(clock: FakeClock):
    """Each knows how long from the beginning: nobody overtakes, nobody asks twice."""
    gate = Gate()
    limiter = patient(clock, "1/second", sleep=gate)

    tasks = [asyncio.create_task(limiter.aacquire()) for _ in range(5)]
    await asyncio.sleep(0)

    assert gate.waits == pytest.approx([1.0, 2.0, 3.0, 4.0], abs=1e-2)
    gate.open()
    decisions = await asyncio.gather(*tasks)
    assert [decision.retry_after for decision in decisions] == pytest.approx([0, 1, 2, 3, 4], abs=1e-2)


def test_threads_wait_in_the_order_of_their_arrival(clock: FakeClock):
    """The same for threads: each sleeps once, and for its own time."""
    waits: list[float] = []
    limiter = patient(clock, "1/second", sleep=waits.append)
    threads = [threading.Thread(target=limiter.acquire) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(waits) == pytest.approx([*range(1, 20)], abs=1e-2)


async def test_wait_of_one_key_delays_no_other(clock: FakeClock):
    """Ann has to wait for a minute; Bob comes in at once."""
    gate = Gate()
    limiter = RateLimiter("1/minute", max_wait=100.0, clock=clock, sleep=gate)
    await limiter.aacquire("ann")
    ann = asyncio.create_task(limiter.aacquire("ann"))
    await asyncio.sleep(0)

    assert (await limiter.aacquire("bob")).retry_after == 0.0
    assert not ann.done()
    gate.open()
    await ann


def test_wait_longer_than_allowed_is_refused_at_once(clock: FakeClock):
    """Nobody waits in vain: the refusal tells how long it would have been, and takes nothing."""
    limiter = patient(clock, "1/second", max_wait=2.0, sleep=do_not_wait)
    for _ in range(3):
        limiter.acquire()

    with pytest.raises(RateLimitedError, match="next try in 3 s") as refused:
        limiter.acquire()
    assert refused.value.retry_after == pytest.approx(3.0)
    assert limiter.peek().reset_after == pytest.approx(3.0)
    clock.advance(1.0)
    assert limiter.acquire().retry_after == pytest.approx(2.0)


def test_wait_of_exactly_the_maximum_is_taken(clock: FakeClock):
    """The rule is: up to `max_wait`."""
    limiter = patient(clock, "1/second", max_wait=1.0)
    limiter.acquire()
    assert limiter.acquire().retry_after == pytest.approx(1.0)


def test_cost_beyond_the_burst_is_not_waited_for(clock: FakeClock):
    """It would be for ever."""
    limiter = patient(clock)
    with pytest.raises(RateLimitedError, match="it never has more than 1"):
        limiter.acquire(cost=2)
    assert clock.sleeps == []


def test_hit_does_not_wait(clock: FakeClock):
    """It decides at once, whatever `max_wait` says."""
    limiter = patient(clock)
    assert limiter.hit()
    denied = limiter.hit()

    assert not denied
    assert denied.retry_after == pytest.approx(0.25)
    assert clock.sleeps == []


# Deadlines


def test_wait_that_would_outlast_the_deadline_is_refused_at_once(clock: FakeClock):
    """The caller would be gone by then."""
    limiter = patient(clock, "1/second")
    guarded = Pipeline(deadline(1.5, clock=clock), limiter)(clock)
    begin = guarded()

    assert guarded() == pytest.approx(begin + 1.0, abs=1e-2)
    limiter.acquire()
    with pytest.raises(RateLimitedError, match="next try in 1 s"):
        Pipeline(deadline(0.5, clock=clock), limiter)(lambda: None)()
    assert len(clock.sleeps) == 2


def test_deadline_that_has_passed_leaves_what_is_there(clock: FakeClock):
    """A permit that is there is taken without a wait; whether the call makes sense is the deadline's say."""
    limiter = patient(clock, "1/second")

    @deadline(1.0, clock=clock)
    def late() -> bool:
        clock.advance(2.0)
        first = limiter.acquire()
        with pytest.raises(RateLimitedError):
            limiter.acquire()
        return first.allowed

    assert late()


# Abandoned


@pytest.mark.parametrize("error", [KeyboardInterrupt, Interrupted, OSError])
def test_interrupted_wait_gives_its_permits_back(clock: FakeClock, error: type[BaseException]):
    """Whatever ends it; and those who come after wait as if it had not been there."""
    interrupt = True

    def sleep(seconds: float) -> None:
        if interrupt:
            raise error
        clock.sleep(seconds)

    limiter = patient(clock, "1/second", burst=5, sleep=sleep)
    limiter.acquire(cost=5)
    forms: list[Callable[[], object]] = [
        limiter.acquire,
        lambda: limiter.acquire(cost=4),
        limiter(lambda: None),
        lambda: limiter.call(int),
        limiter.calling(cost=2).__enter__,
    ]
    for form in forms:
        with pytest.raises(error):
            form()
        assert limiter.peek().reset_after == pytest.approx(5.0)

    interrupt = False
    assert limiter.acquire().retry_after == pytest.approx(1.0)


def test_wait_that_ends_halfway_gives_everything_back(clock: FakeClock):
    """Its permits were for later: none of them has come back yet."""
    halfway = False

    def sleep(seconds: float) -> None:
        clock.advance(seconds / 2 if halfway else seconds)
        if halfway:
            raise Interrupted

    limiter = patient(clock, "1/second", burst=4, sleep=sleep)
    limiter.acquire(cost=4)
    halfway = True
    with pytest.raises(Interrupted):
        limiter.acquire(cost=4)

    assert limiter.peek().reset_after == pytest.approx(2.0)


async def test_cancelled_wait_gives_its_permits_back(clock: FakeClock):
    """A task that is cancelled while it waits, in every form."""
    gate = Gate()
    limiter = patient(clock, "1/second", burst=5, sleep=gate)
    await limiter.aacquire(cost=5)

    async def work() -> None:
        raise AssertionError

    async def block() -> None:
        async with limiter.calling():
            raise AssertionError

    @limiter
    async def stream() -> Any:
        yield 1

    for form in (
        limiter.aacquire,
        limiter(work),
        lambda: limiter.acall(work),
        block,
        lambda: anext(stream()),
    ):
        task = asyncio.ensure_future(_awaited(form()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert limiter.peek().reset_after == pytest.approx(5.0)

    assert len(gate.waits) == 5
    assert set(gate.waits) == {gate.waits[0]}


async def _awaited(awaitable: Any) -> Any:
    return await awaitable


async def test_abandoned_wait_shortens_that_of_who_comes_next(clock: FakeClock):
    """Who waits already keeps the time that was said."""
    gate = Gate()
    limiter = patient(clock, "1/second", sleep=gate)
    await limiter.aacquire()
    tasks = [asyncio.create_task(limiter.aacquire()) for _ in range(3)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    await asyncio.wait([tasks[0]])
    late = asyncio.create_task(limiter.aacquire())
    await asyncio.sleep(0)

    assert gate.waits == pytest.approx([1.0, 2.0, 3.0, 3.0], abs=1e-2)
    gate.open()
    await asyncio.gather(*tasks[1:], late)


# Sleeps


def test_no_waiting_makes_waits_take_no_time(clock: FakeClock):
    """In users' tests: as for the waits of retries."""
    limiter = RateLimiter("1/hour", max_wait=36_000.0)
    with no_waiting():
        assert all(limiter.acquire() for _ in range(5))


def test_asynchronous_sleep_in_a_thread_is_refused_and_gives_back(clock: FakeClock):
    """It could not be awaited there."""
    limiter = patient(clock, "1/second", sleep=asyncio.sleep)
    limiter.acquire()

    with pytest.raises(TypeError, match="sleep must be an ordinary function"):
        limiter.acquire()
    assert limiter.peek().reset_after == pytest.approx(1.0)


def test_several_rates_are_waited_for_together(clock: FakeClock):
    """Until all of them let the call in."""
    limiter = limiter_of(["2/second", "3/minute"], clock, max_wait=100.0)
    waits = [limiter.acquire().retry_after for _ in range(4)]

    assert waits == pytest.approx([0.0, 0.0, 0.5, 19.5], abs=0.1)
