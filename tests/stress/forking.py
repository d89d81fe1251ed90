"""Fork while other threads use the policies, and use them all in the child. Run by `test_fork.py`.

A program of its own: a test process has threads and state of its own that a child should not inherit.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

from tests.stress.bulkheads import Inside, busy, usable
from tests.support.waiting import wait_until

from resilient import (
    AIMD,
    Bulkhead,
    BulkheadFullError,
    Cache,
    CallTimeoutError,
    CircuitBreaker,
    DeadlineExceededError,
    Fallback,
    Gradient,
    Pipeline,
    RateLimiter,
    Retry,
    RetryBudget,
    Timeout,
    deadline,
    events,
    time_left,
)
from resilient.engine import flight
from resilient.engine.policy import Policy

HUNG = 10  # seconds after which a child is taken for hung
FORKS = 500 if os.environ.get("RESILIENT_SOAK") else 40
LIMIT = 3  # slots of each bulkhead
LONG = 60.0  # seconds; nobody waits for as long
# What leads out of the policies into the rest of the process.
ELSEWHERE = (type, types.ModuleType, types.FunctionType, types.FrameType, threading.Thread)
LOCKS = (type(threading.Lock()), type(threading.RLock()))


class Shop:
    """All policies, as a service has them: made once, before it forks."""

    def __init__(self) -> None:
        self.budget = RetryBudget()
        self.breaker = CircuitBreaker("b", fail_max=10**9, listeners=[lambda _: None])
        self.retry = Retry(on=ConnectionError, attempts=2, wait=0.0, budget=self.budget)
        self.cache = Cache("c", ttl=0.001, stale_while_revalidate=60.0)
        self.inner = Cache("inner", ttl=0.001)
        self.fallback = Fallback("instead")
        self.threads = Timeout(5.0, threads=2)
        self.limit = Timeout(5.0, name="limit")
        self.rate = RateLimiter("5000/second", max_wait=60.0)
        self.windows = [
            RateLimiter(["100/second", "5000/hour"], strategy=strategy, max_keys=10)
            for strategy in ("fixed-window", "sliding-window-counter", "moving-window")
        ]
        self.bulkheads = bulkheads()
        self.all = Pipeline(
            self.fallback, self.cache, deadline(30.0), self.retry, self.breaker, self.rate, self.limit
        )
        self._work = Pipeline(self.fallback, self.retry, self.breaker, self.limit)(self._fail_at_times)
        self._awork = Pipeline(self.fallback, self.retry, self.breaker, self.limit)(self._afail_at_times)

    @property
    def policies(self) -> tuple[Policy, ...]:
        return (*self.all.layers, self.threads, self.inner, *self.windows, *self.bulkheads)

    def use(self, number: int) -> None:
        """Make calls through every policy: good, bad, cached, in threads."""
        assert self._work(number) in {number, "instead"}
        assert self.cache.get(number % 10, lambda: self.inner.get(number, lambda: number)) is not None
        assert self.threads.call(str, number) == str(number)
        assert self.rate.acquire()
        for limiter in self.windows:
            limiter.refund(limiter.hit(str(number % 20)))
        for bulkhead in self.bulkheads:
            assert bulkhead.call(str, number) == str(number)

    def use_all(self) -> None:
        """Do what a fresh process does with them, in both colours."""
        for number in range(20):
            self.use(number)
        assert asyncio.run(self._gather()) == [*range(0, 20, 3)]
        for limiter in self.windows:
            assert limiter.hit("of the child") or limiter.peek().retry_after < 3_600.0
        for bulkhead in self.bulkheads:
            assert_afresh(bulkhead)
        for policy in self.policies:
            assert policy.stats()
            policy.add_listener(self._listen)
            policy.remove_listener(self._listen)
        events.add_listener(self._listen)
        self.breaker.open()
        self.breaker.close()
        events.remove_listener(self._listen)
        assert time_left() is None

    def _listen(self, _event: events.Event) -> None: ...

    def _fail_at_times(self, number: int) -> int:
        if number % 3:
            raise ConnectionError
        return number

    async def _afail_at_times(self, number: int) -> int:
        await asyncio.sleep(0)
        return self._fail_at_times(number)

    async def _gather(self) -> list[object]:
        answers = await asyncio.gather(*map(self._awork, range(20)))
        return [answer for answer in answers if answer != "instead"]


def bulkheads() -> tuple[Bulkhead, ...]:
    """Make one of each kind; all have so many slots, for ever."""
    steady = {"initial": LIMIT, "min_limit": LIMIT, "max_limit": LIMIT, "window": 0.001, "min_samples": 1}
    return (
        Bulkhead("fixed", LIMIT, max_wait=LONG),
        Bulkhead("priorities", LIMIT, max_wait=LONG, priority="critical", reserve=0),
        Bulkhead("gradient", Gradient(**steady), max_wait=LONG),
        Bulkhead("aimd", AIMD(**steady), max_wait=LONG, order="newest-first"),
        Bulkhead("keyed", LIMIT, max_wait=LONG, key=lambda *_: "key"),
        Bulkhead("threads", LIMIT, max_wait=LONG, threads=True),
    )


def assert_afresh(bulkhead: Bulkhead) -> None:
    """Fail unless nobody is in, all slots can be used, and no more than these, by threads that wait too."""
    stats = bulkhead.stats()
    assert (stats.in_use, stats.waiting, stats.abandoned) == (0, 0, 0), stats
    assert usable(bulkhead, key="key" if bulkhead.name == "keyed" else None) == LIMIT
    inside = Inside()
    crowd = [threading.Thread(target=bulkhead.call, args=(inside.visit,)) for _ in range(3 * LIMIT)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    assert inside.most <= LIMIT
    assert bulkhead.stats().in_use == 0


def in_child(body: Callable[[], None], fork: Callable[[], int] = os.fork) -> int:
    """Return the exit status of a forked child that ran *body*; a signal's number if one ended it."""
    child = fork()
    if not child:
        signal.alarm(HUNG)
        status = 1
        with contextlib.suppress(BaseException):
            try:
                body()
                status = 0
            except BaseException:
                sys.excepthook(*sys.exc_info())
        os._exit(status)
    _, status = os.waitpid(child, 0)
    return status


def fork_under_load() -> None:
    """Fork again and again while threads are in the middle of everything."""
    shop, over = Shop(), threading.Event()

    def hammer() -> None:
        number = 0
        while not over.is_set():
            number += 1
            shop.use(number)

    threads = [threading.Thread(target=hammer) for _ in range(4)]
    for thread in threads:
        thread.start()
    sys.setswitchinterval(1e-5)
    statuses = [in_child(shop.use_all) for _ in range(FORKS)]
    over.set()
    for thread in threads:
        thread.join()
    assert statuses == [0] * FORKS, statuses


def fork_with_every_lock_held() -> None:
    """The worst moment there is: another thread holds every lock the policies have."""
    shop, held, over = Shop(), threading.Event(), threading.Event()
    shop.use_all()
    locks = [*locks_in(*shop.policies, shop.budget, events._everyone, flight._knots)]
    assert len(locks) > len(shop.policies), "found too few locks to mean anything"

    def hold() -> None:
        with contextlib.ExitStack() as stack:
            for lock in locks:
                stack.enter_context(lock)
            held.set()
            over.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    status = in_child(shop.use_all)
    over.set()
    thread.join()
    assert status == 0, status


def fork_with_slots_taken() -> None:
    """Threads hold all slots, more wait: none of that is the child's business, and the parent goes on."""
    for bulkhead in bulkheads():
        over = threading.Event()
        holders = [threading.Thread(target=bulkhead.call, args=(over.wait,)) for _ in range(3 * LIMIT)]
        for thread in holders:
            thread.start()
        while (bulkhead.stats().in_use, bulkhead.stats().waiting) != (LIMIT, 2 * LIMIT):
            over.wait(0.001)
        status = in_child(functools.partial(assert_afresh, bulkhead))
        over.set()
        for thread in holders:
            thread.join()
        assert status == 0, status
        assert_afresh(bulkhead)


def fork_with_work_abandoned() -> None:
    """Threads of the bulkhead's own are at work that nobody waits for: the child has none of them."""
    bulkhead, over = Bulkhead("threads", LIMIT, max_wait=LONG, threads=True), threading.Event()
    for _ in range(LIMIT):
        with contextlib.suppress(CallTimeoutError), deadline(0.05):
            bulkhead.call(over.wait)
    assert bulkhead.stats().abandoned == LIMIT
    status = in_child(functools.partial(assert_afresh, bulkhead))
    over.set()
    _await_end(bulkhead)
    assert status == 0, status
    assert_afresh(bulkhead)


def _await_end(bulkhead: Bulkhead) -> None:
    """Wait until work that was abandoned has ended."""
    wait_until(lambda: not bulkhead.stats().in_use and not bulkhead.stats().abandoned, "all work ends")


def fork_while_slots_change_hands() -> None:
    """Eight threads take slots, wait, give up and leave, in the middle of everything."""
    for bulkhead in bulkheads():
        inside = Inside()
        visit = bulkhead(inside.visit)

        def hammer(visit: Callable[[], None] = visit) -> None:
            visit()
            too_late = contextlib.suppress(BulkheadFullError, CallTimeoutError, DeadlineExceededError)
            with too_late, deadline(0.0001):
                visit()

        sys.setswitchinterval(1e-6)
        with busy(hammer, threads=8):
            statuses = [in_child(functools.partial(assert_afresh, bulkhead)) for _ in range(FORKS // 4)]
        assert statuses == [0] * len(statuses), statuses
        assert inside.most <= LIMIT
        _await_end(bulkhead)
        assert_afresh(bulkhead)


def fork_inside() -> None:
    """Child, grandchild and parent come out of calls that were begun before the fork, and have all slots."""
    for bulkhead in bulkheads():
        for fork in forks_inside(bulkhead):

            def come_out(bulkhead: Bulkhead = bulkhead, fork: Callable[[], int] = fork) -> None:
                assert_afresh(bulkhead)
                assert in_child(functools.partial(assert_afresh, bulkhead), fork) == 0
                assert_afresh(bulkhead)

            assert in_child(come_out, fork) == 0, (bulkhead, fork)
            assert_afresh(bulkhead)


def forks_inside(bulkhead: Bulkhead) -> Iterator[Callable[[], int]]:
    """Yield ways to fork while holding a slot, in each form of call."""
    key = "key" if bulkhead.name == "keyed" else None

    def in_a_block() -> int:
        with bulkhead.calling(key=key):
            return os.fork()

    @bulkhead
    def stream() -> Iterator[int]:
        yield os.fork()

    def in_a_stream() -> int:
        (child,) = stream()
        return child

    @bulkhead
    async def afork() -> int:
        return os.fork()

    def by_hand() -> int:
        try:
            afork().send(None)
        except StopIteration as stop:
            return int(stop.value)
        raise AssertionError("there was something to wait for")

    if bulkhead.name != "threads":  # the child would be left with that thread alone
        yield functools.partial(bulkhead.call, os.fork)
    yield in_a_block
    yield in_a_stream
    yield by_hand


def locks_in(*roots: object) -> Iterator[Any]:
    """Yield every lock that *roots* hold, themselves or in what they are made of."""
    seen, left = set(), [*roots]
    while left:
        subject = left.pop()
        if id(subject) in seen or isinstance(
            subject, type | types.ModuleType | types.FrameType | threading.Thread
        ):
            continue
        seen.add(id(subject))
        if isinstance(subject, LOCKS):
            yield subject
        elif not isinstance(subject, types.FunctionType):
            left.extend(gc.get_referents(subject))


if __name__ == "__main__":
    moments = {
        "load": fork_under_load,
        "locks": fork_with_every_lock_held,
        "slots": fork_with_slots_taken,
        "abandoned": fork_with_work_abandoned,
        "inside": fork_inside,
        "hammered": fork_while_slots_change_hands,
    }
    moments[sys.argv[1]]()
