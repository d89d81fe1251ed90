"""Single flight: one load for all who want a key, in whatever thread, task or loop, however it ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import pytest

from resilient import Cache, CallTimeoutError, deadline, freshness, time_left
from resilient.testing import FakeClock

PATIENCE = 10.0  # seconds after which a test calls it a hang


class UpstreamError(Exception):
    """What loads fail with."""


class Held:
    """A load that waits to be let go, and counts its calls."""

    def __init__(self, answer: Callable[[], Any] = lambda: "answer") -> None:
        self.calls = 0
        self.begun = threading.Event()
        self.go = threading.Event()
        self._answer = answer

    def __call__(self, *_: Any) -> Any:
        self.calls += 1
        self.begun.set()
        assert self.go.wait(PATIENCE)
        return self._answer()

    async def aload(self) -> Any:
        """Wait without keeping the loop."""
        self.calls += 1
        self.begun.set()
        await auntil(self.go.is_set)
        return self._answer()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads for callers."""
    with ThreadPoolExecutor(40) as executor:
        yield executor


@pytest.fixture
def cache() -> Cache:
    """A cache on the real clock."""
    return Cache("c", ttl=60.0)


def until(condition: Callable[[], bool]) -> None:
    """Wait for *condition*."""
    give_up_at = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up_at, "it never came about"
        time.sleep(0.001)


async def auntil(condition: Callable[[], bool]) -> None:
    """Wait for *condition*, which may come true in another thread, without keeping the loop."""
    give_up_at = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up_at, "it never came about"
        await asyncio.sleep(0.001)


def waiting(cache: Cache) -> int:
    """Return how many callers are parked at loads of *cache*."""
    return sum(len(flight.waiters) for flight in list(cache._core._flights.values()))


def joined(cache: Cache, number: int) -> None:
    """Wait until *number* callers are parked at loads of *cache*."""
    until(lambda: waiting(cache) >= number)


def results(futures: list[Future[Any]]) -> list[Any]:
    """Return what the callers got, failures included."""
    return [future.exception(PATIENCE) or future.result() for future in futures]


@pytest.mark.parametrize("leads", ["thread", "task"])
def test_threads_and_tasks_of_two_loops_share_one_load(cache, pool, leads):
    """32 threads and 200 tasks on 2 loops that want one key cause one load."""
    held = Held()

    async def tasks() -> list[Any]:
        return await asyncio.gather(*(cache.aget("k", held.aload) for _ in range(100)))

    def threads() -> list[Future[Any]]:
        return [pool.submit(cache.get, "k", held) for _ in range(32)]

    def loops() -> list[Future[Any]]:
        return [pool.submit(asyncio.run, tasks()) for _ in range(2)]

    first, second = (threads, loops) if leads == "thread" else (loops, threads)
    callers = first()
    assert held.begun.wait(PATIENCE)
    callers += second()
    joined(cache, 200 + 32 - (leads == "thread"))
    held.go.set()
    answers = [answer for got in results(callers) for answer in (got if isinstance(got, list) else [got])]
    assert answers == ["answer"] * 232
    assert held.calls == 1
    stats = cache.stats()
    assert (stats.loads, stats.misses, stats.joined) == (1, 232, 231)


def test_keys_do_not_wait_for_each_other(cache, pool):
    """A load that takes long keeps nobody from another key."""
    held = Held()
    slow = pool.submit(cache.get, "slow", held)
    assert held.begun.wait(PATIENCE)
    assert cache.get("quick", lambda: 1) == 1
    held.go.set()
    assert slow.result(PATIENCE) == "answer"


def _fail() -> Any:
    raise UpstreamError("away")


class TestFailure:
    def test_wakes_everybody_with_a_failure_of_their_own(self, cache, pool):
        """All who waited fail at once, each with an instance of its own and no traceback but its own."""
        held = Held(_fail)
        callers = [pool.submit(cache.get, "k", held) for _ in range(20)]
        joined(cache, 19)
        held.go.set()
        failures = results(callers)
        assert {type(failure) for failure in failures} == {UpstreamError}
        assert len({id(failure) for failure in failures}) == 20
        assert max(len(traceback.extract_tb(failure.__traceback__)) for failure in failures) < 12
        assert held.calls == 1
        assert cache.stats().load_failures == 1

    async def test_wakes_all_tasks(self, cache):
        """The same for tasks: whoever began the load has the very exception, the others copies."""
        error = UpstreamError("away")

        async def load() -> Any:
            await asyncio.sleep(0)
            raise error

        got = await asyncio.gather(*(cache.aget("k", load) for _ in range(20)), return_exceptions=True)
        assert got[0] is error
        assert len({id(failure) for failure in got}) == 20
        assert max(len(traceback.extract_tb(failure.__traceback__)) for failure in got) < 12

    def test_leaves_nothing_behind(self, cache):
        """After failing loads, no flight is left and no failure is kept alive."""
        for _ in range(3):
            with pytest.raises(UpstreamError):
                cache.get("k", _fail)
        gc.collect()
        assert not cache._core._flights
        assert cache.get("k", lambda: 1) == 1

    def test_waiters_share_the_last_known_good(self, pool):
        """What answers for the failed load answers for all of them, marked for each."""
        clock = FakeClock()
        cache = Cache("c", ttl=10.0, stale_if_error=60.0, jitter=0.0, clock=clock)
        cache.put("k", "old")
        clock.advance(20.0)
        held = Held(_fail)

        def ask() -> tuple[Any, Any]:
            return cache.get("k", held), freshness().state

        callers = [pool.submit(ask) for _ in range(8)]
        joined(cache, 7)
        held.go.set()
        assert results(callers) == [("old", "stale")] * 8
        assert cache.stats().rescued == 8


class TestCancellation:
    async def test_of_a_waiter_harms_nobody(self, cache):
        """A cancelled waiter leaves; the load and the others go on."""
        held = Held()
        callers = [asyncio.create_task(cache.aget("k", held.aload)) for _ in range(3)]
        await asyncio.sleep(0.005)
        callers[1].cancel()
        held.go.set()
        got = await asyncio.gather(*callers, return_exceptions=True)
        assert [got[0], got[2]] == ["answer"] * 2
        assert isinstance(got[1], asyncio.CancelledError)
        assert held.calls == 1

    async def test_of_the_first_caller_leaves_the_load_to_the_others(self, cache):
        """The load belongs to all who wait for it, not to whoever came first."""
        held = Held()
        first = asyncio.create_task(cache.aget("k", held.aload))
        await asyncio.sleep(0.005)
        other = asyncio.create_task(cache.aget("k", held.aload))
        await asyncio.sleep(0.005)
        first.cancel()
        await asyncio.sleep(0.005)
        held.go.set()
        assert await other == "answer"
        assert first.cancelled()
        assert held.calls == 1

    async def test_of_the_last_caller_cancels_the_load(self, cache):
        """When nobody wants it any more, the load is cancelled, and the next caller begins anew."""
        cancelled = asyncio.Event()

        async def load() -> Any:
            try:
                await asyncio.sleep(PATIENCE)
            except asyncio.CancelledError:
                cancelled.set()
                raise

        callers = [asyncio.create_task(cache.aget("k", load)) for _ in range(3)]
        await asyncio.sleep(0.005)
        for caller in callers[:2]:
            caller.cancel()
        await asyncio.sleep(0.005)
        assert not cancelled.is_set()
        callers[2].cancel()
        await asyncio.wait_for(cancelled.wait(), PATIENCE)
        assert await cache.aget("k", load_now) == "now"

    async def test_of_the_last_task_leaves_the_load_to_a_waiting_thread(self, cache):
        """A thread counts as somebody who waits."""
        held = Held()
        first = asyncio.create_task(cache.aget("k", held.aload))
        await asyncio.sleep(0.005)
        thread = asyncio.create_task(asyncio.to_thread(cache.get, "k", held))
        await auntil(lambda: waiting(cache) == 2)
        first.cancel()
        await asyncio.sleep(0.005)
        held.go.set()
        assert await thread == "answer"
        assert held.calls == 1

    async def test_a_cancel_swallowed_before_does_not_come_back(self):
        """A task that was cancelled once and went on can wait, and run out of time, like any other."""
        cache = Cache("c", ttl=60.0, load_timeout=0.01)
        held = Held()

        async def stubborn() -> None:
            asyncio.current_task().cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
            with pytest.raises(CallTimeoutError):
                await cache.aget("k", held.aload)

        await asyncio.create_task(stubborn())
        held.go.set()

    async def test_at_every_await_point_leaves_no_flight(self, cache):
        """Whenever the only caller is cancelled, the key is free for the next one."""
        for steps in range(12):
            caller = asyncio.create_task(cache.aget(("k", steps), lambda: asyncio.sleep(0.001, "v")))
            for _ in range(steps):
                await asyncio.sleep(0)
            caller.cancel()
            await asyncio.gather(caller, return_exceptions=True)
            assert await asyncio.wait_for(cache.aget(("k", steps), load_now), PATIENCE) in {"now", "v"}
        await asyncio.sleep(0.01)
        assert not cache._core._flights

    async def test_a_loader_that_cancels_itself_lets_the_others_try(self, cache):
        """A CancelledError of the load's own reaches who began it; the next one in line loads."""
        attempts: list[int] = []

        async def load() -> str:
            attempts.append(1)
            await asyncio.sleep(0)
            if len(attempts) == 1:
                raise asyncio.CancelledError
            return "second"

        first, other = await asyncio.gather(
            asyncio.create_task(cache.aget("k", load)),
            asyncio.create_task(cache.aget("k", load)),
            return_exceptions=True,
        )
        assert isinstance(first, asyncio.CancelledError)
        assert other == "second"


async def load_now() -> str:
    """Load at once."""
    return "now"


class TestInterrupts:
    @pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit, GeneratorExit])
    def test_another_caller_takes_over(self, cache, pool, interrupt):
        """An interrupted load says nothing: one of those who wait loads, and it is no failure."""

        def interrupted() -> Any:
            raise interrupt

        first, then = Held(interrupted), Held()
        then.go.set()
        leader = pool.submit(cache.get, "k", first)
        assert first.begun.wait(PATIENCE)
        others = [pool.submit(cache.get, "k", then) for _ in range(5)]
        joined(cache, 5)
        first.go.set()
        assert isinstance(leader.exception(PATIENCE), interrupt)
        assert results(others) == ["answer"] * 5
        assert then.calls == 1
        assert cache.stats().load_failures == 0

    def test_a_lead_that_dies_frees_its_key(self, cache, pool):
        """An interrupt between the decision to load and the load leaves nobody waiting."""
        lead = cache._core.begin(("k",))
        other = pool.submit(cache.get, "k", lambda: "mine")
        joined(cache, 1)
        del lead
        gc.collect()
        assert other.result(PATIENCE) == "mine"


class TestLoops:
    def test_closed_in_the_middle_of_a_load_threads_take_over(self, cache, pool):
        """A loop that is closed without cancelling its tasks strands its loads; a thread takes over."""
        loop = asyncio.new_event_loop()

        async def begin() -> None:
            asyncio.get_running_loop().create_task(cache.aget("k", lambda: asyncio.sleep(PATIENCE)))
            await asyncio.sleep(0.001)

        loop.run_until_complete(begin())
        waiting = pool.submit(cache.get, "k", lambda: "mine")
        joined(cache, 2)
        stranded = [*asyncio.all_tasks(loop)]
        loop.close()
        assert waiting.result(PATIENCE) == "mine"
        assert cache.get("k", lambda: "another") == "mine"
        for task in stranded:  # asyncio complains of them otherwise, and rightly
            task._log_destroy_pending = False

    def test_closed_before_anybody_waits(self, cache):
        """The first caller after that loads at once."""
        loop = asyncio.new_event_loop()

        async def begin() -> None:
            asyncio.get_running_loop().create_task(cache.aget("k", lambda: asyncio.sleep(PATIENCE)))
            await asyncio.sleep(0.001)

        loop.run_until_complete(begin())
        for task in asyncio.all_tasks(loop):
            task._log_destroy_pending = False
        loop.close()
        assert asyncio.run(cache.aget("k", load_now)) == "now"

    def test_asyncio_run_that_ends_hands_over(self, cache, pool):
        """A load that the end of its loop cancels is taken over by a waiting thread."""
        held = Held()

        async def begin() -> None:
            asyncio.get_running_loop().create_task(cache.aget("k", held.aload))
            await auntil(lambda: waiting(cache) == 2)

        runner = pool.submit(asyncio.run, begin())
        assert held.begun.wait(PATIENCE)
        assert pool.submit(cache.get, "k", lambda: "mine").result(PATIENCE) == "mine"
        runner.result(PATIENCE)

    def test_one_loop_after_another_uses_one_cache(self, cache):
        """Results are kept, not tasks: the next loop gets what the last one loaded."""
        assert asyncio.run(cache.aget("k", load_now)) == "now"
        assert asyncio.run(cache.aget("k", load_now)) == "now"
        assert cache.stats().loads == 1


class TestLoadTimeout:
    def test_bounds_the_wait_of_threads(self, pool):
        """A caller waits for somebody else's load no longer than `load_timeout`."""
        cache = Cache("c", ttl=60.0, load_timeout=0.02)
        held = Held()
        slow = pool.submit(cache.get, "k", held)
        assert held.begun.wait(PATIENCE)
        with pytest.raises(CallTimeoutError, match=r"cache 'c': no answer in 0.02 s") as caught:
            cache.get("k", held)
        assert (caught.value.policy, caught.value.seconds) == ("c", 0.02)
        held.go.set()
        assert slow.result(PATIENCE) == "answer"

    def test_bounds_a_hung_load_to_one_victim(self, pool):
        """After `load_timeout` the next caller loads anew: one hung load does not take its key for good."""
        cache = Cache("c", ttl=60.0, load_timeout=0.01)
        hung = Held(lambda: "late")
        victim = pool.submit(cache.get, "k", hung)
        assert hung.begun.wait(PATIENCE)
        with pytest.raises(CallTimeoutError):
            cache.get("k", hung)
        assert cache.get("k", lambda: "new") == "new"
        hung.go.set()
        assert victim.result(PATIENCE) == "late"
        assert cache.peek("k") == "new", "what began before must not be kept after"

    def test_keeps_a_slow_answer_that_comes_first(self, pool):
        """A load that is late but first is kept, or a slow source would never be cached at all."""
        cache = Cache("c", ttl=60.0, load_timeout=0.01)
        slow, slower = Held(lambda: "slow"), Held(lambda: "slower")
        callers = [pool.submit(cache.get, "k", slow)]
        assert slow.begun.wait(PATIENCE)
        with pytest.raises(CallTimeoutError):
            cache.get("k", slow)
        callers.append(pool.submit(cache.get, "k", slower))
        assert slower.begun.wait(PATIENCE)
        slow.go.set()
        assert callers[0].result(PATIENCE) == "slow"
        assert cache.peek("k") == "slow"
        slower.go.set()
        assert callers[1].result(PATIENCE) == "slower"
        assert cache.peek("k") == "slower"

    def test_an_invalidated_late_answer_is_not_kept(self, pool):
        """`invalidate` reaches the overdue load behind the one under way."""
        cache = Cache("c", ttl=60.0, load_timeout=0.01)
        late, later = Held(), Held()
        callers = [pool.submit(cache.get, "k", late)]
        assert late.begun.wait(PATIENCE)
        with pytest.raises(CallTimeoutError):
            cache.get("k", late)
        callers.append(pool.submit(cache.get, "k", later))
        assert later.begun.wait(PATIENCE)
        cache.invalidate("k")
        late.go.set()
        later.go.set()
        assert results(callers) == ["answer"] * 2
        assert cache.peek("k") is None

    async def test_bounds_the_wait_of_tasks(self):
        """Coroutines load in a task: there the bound holds for the first caller, too."""
        cache = Cache("c", ttl=60.0, load_timeout=0.01)
        held = Held()
        got = await asyncio.gather(*(cache.aget("k", held.aload) for _ in range(3)), return_exceptions=True)
        assert [type(failure) for failure in got] == [CallTimeoutError] * 3
        await asyncio.sleep(0.005)
        assert not cache._core._flights, "nobody waits any more: cancelled"

    async def test_last_known_good_answers_for_it(self):
        """A load that takes too long is a failure like another."""
        clock = FakeClock()
        cache = Cache("c", ttl=10.0, stale_if_error=60.0, load_timeout=0.01, jitter=0.0, clock=clock)
        cache.put("k", "old")
        clock.advance(20.0)
        assert await cache.aget("k", Held().aload) == "old"
        assert (freshness().state, cache.stats().rescued) == ("stale", 1)

    def test_a_waiting_thread_keeps_its_deadline(self, cache, pool):
        """Waiting for somebody else's load ends with the caller's own deadline."""
        held = Held()
        slow = pool.submit(cache.get, "k", held)
        assert held.begun.wait(PATIENCE)
        with deadline(0.02), pytest.raises(CallTimeoutError, match=r"no answer in 0\.0"):
            cache.get("k", held)
        assert pool.submit(cache.get, "other", lambda: 1).result(PATIENCE) == 1
        held.go.set()
        assert slow.result(PATIENCE) == "answer"
        assert held.calls == 1, "one caller's haste does not make a load overdue"


class TestChangesDuringALoad:
    @pytest.fixture
    def loading(self, cache, pool) -> Iterator[tuple[Held, list[Future[Any]]]]:
        """A load under way with somebody who waits for it."""
        held = Held(lambda: "old")
        callers = [pool.submit(cache.get, "k", held)]
        assert held.begun.wait(PATIENCE)
        callers.append(pool.submit(cache.get, "k", held))
        joined(cache, 1)
        yield held, callers
        held.go.set()

    def test_put_wins(self, cache, loading):
        """What was put is newer than what was being loaded; who waited gets what it waited for."""
        held, callers = loading
        cache.put("k", "put")
        assert cache.get("k", held) == "put"
        held.go.set()
        assert results(callers) == ["old"] * 2
        assert cache.peek("k") == "put"

    @pytest.mark.parametrize("forget", [lambda cache: cache.invalidate("k"), Cache.clear])
    def test_forgotten_is_not_kept(self, cache, loading, forget):
        """After `invalidate` or `clear` nothing read before it is kept."""
        held, callers = loading
        forget(cache)
        held.go.set()
        assert results(callers) == ["old"] * 2
        assert cache.peek("k") is None

    @pytest.mark.parametrize("forget", [lambda cache: cache.invalidate("k"), Cache.clear])
    def test_who_asks_after_it_gets_nothing_older(self, cache, loading, forget):
        """A caller that comes after `invalidate` does not join the load that began before."""
        held, callers = loading
        forget(cache)
        assert cache.get("k", lambda: "new") == "new"
        held.go.set()
        assert results(callers) == ["old"] * 2
        assert cache.peek("k") == "new"

    def test_a_failure_that_was_forgotten_is_not_remembered(self, pool):
        """`invalidate` during a failing load forgets its failure, too."""
        cache = Cache("c", ttl=60.0, negative_ttl=60.0)
        held = Held(_fail)
        caller = pool.submit(cache.get, "k", held)
        assert held.begun.wait(PATIENCE)
        cache.invalidate("k")
        held.go.set()
        assert isinstance(caller.exception(PATIENCE), UpstreamError)
        assert cache.get("k", lambda: "new") == "new"


class TestLoadsInsideLoads:
    def test_of_another_key(self, cache):
        """A loader may use the cache for something else."""
        assert cache.get("outer", lambda: cache.get("inner", lambda: 1) + 1) == 2

    async def test_of_another_key_in_tasks(self, cache):
        """The same for coroutines."""

        async def inner() -> int:
            return 1

        async def outer() -> int:
            return await cache.aget("inner", inner) + 1

        assert await cache.aget("outer", outer) == 2

    def test_of_its_own_key_calls_again(self, cache):
        """A load that needs itself does what it would without a cache, instead of waiting for ever."""
        depth: list[int] = []

        def load() -> int:
            depth.append(1)
            return 0 if len(depth) == 3 else cache.get("k", load) + 1

        assert cache.get("k", load) == 2
        assert cache.peek("k") == 2

    async def test_of_its_own_key_calls_again_in_tasks(self, cache):
        """The same for coroutines, also through a task of their own."""
        depth: list[int] = []

        async def load() -> int:
            depth.append(1)
            return 0 if len(depth) == 3 else await asyncio.create_task(cache.aget("k", load)) + 1

        assert await asyncio.wait_for(cache.aget("k", load), PATIENCE) == 2

    def test_without_an_end_is_a_recursion_error(self, cache):
        """A load that always needs itself fails as any such function does."""

        def load() -> Any:
            return cache.get("k", load)

        with pytest.raises(RecursionError):
            cache.get("k", load)
        assert cache.get("k", lambda: "well") == "well"

    def test_circles_through_two_threads_end(self, cache, pool):
        """Two threads whose loads need each other's key do not wait for each other."""
        both = threading.Barrier(2)
        met: ContextVar[bool] = ContextVar("met", default=False)

        def load(mine: str, other: str) -> str:
            if met.get():
                return mine
            met.set(True)
            both.wait(PATIENCE)
            return mine + cache.get(other, lambda: load(other, mine))

        callers = [pool.submit(cache.get, key, lambda k=key, o=o: load(k, o)) for key, o in ("ab", "ba")]
        assert sorted(results(callers)) in (["ab", "ba"], ["ab", "bab"], ["aba", "ba"])

    def test_circles_through_two_caches_end(self, cache, pool):
        """A circle is one through different caches, too."""
        other = Cache("other", ttl=60.0)
        calls: list[int] = []

        def one() -> int:
            calls.append(1)
            return 1 if len(calls) > 1 else other.get("b", lambda: cache.get("a", one)) + 1

        assert pool.submit(cache.get, "a", one).result(PATIENCE) == 2

    def test_waiting_for_a_load_of_ones_own_kind_is_no_circle(self, cache, pool):
        """A load that waits for another one, which waits for nothing, waits."""
        held = Held()
        inner = pool.submit(cache.get, "inner", held)
        assert held.begun.wait(PATIENCE)
        outer = pool.submit(cache.get, "outer", lambda: cache.get("inner", held) + "!")
        joined(cache, 1)
        held.go.set()
        assert (inner.result(PATIENCE), outer.result(PATIENCE)) == ("answer", "answer!")
        assert held.calls == 1


class TestContext:
    def test_a_load_runs_in_the_callers_context(self, cache):
        """A function sees the caller's context variables and deadline."""
        user: ContextVar[str] = ContextVar("user")
        user.set("ann")
        with deadline(5.0):
            seen, left = cache.get("k", lambda: (user.get(), time_left()))
        assert seen == "ann"
        assert 0.0 < left <= 5.0

    async def test_a_task_loads_in_a_copy_of_it(self, cache):
        """A coroutine sees the context of whoever began the load, but is not bound by that one's deadline."""
        user: ContextVar[str] = ContextVar("user")
        user.set("ann")

        async def load() -> tuple[str, float | None]:
            return user.get(), time_left()

        async with deadline(5.0):
            seen, left = await cache.aget("k", load)
        assert seen == "ann"
        assert left is None

    async def test_a_hasty_caller_does_not_spoil_the_load_of_the_others(self, cache):
        """Who has little time leaves in time; those who joined get what was being loaded."""

        async def load() -> str:
            await asyncio.sleep(0.03)
            return "loaded"

        async def within(seconds: float) -> str:
            async with deadline(seconds):
                return await cache.aget("k", load)

        hasty, patient = await asyncio.gather(within(0.005), within(10.0), return_exceptions=True)
        assert isinstance(hasty, CallTimeoutError)
        assert patient == "loaded"
        assert cache.stats().loads == 1

    async def test_waiting_in_the_thread_of_the_loop_that_loads_is_refused(self, cache):
        """A synchronous call there would stop the loop it waits for: it loads for itself."""
        go = asyncio.Event()

        async def load() -> str:
            await go.wait()
            return "loaded"

        task = asyncio.create_task(cache.aget("k", load))
        await asyncio.sleep(0)
        assert cache.get("k", lambda: "by itself") == "by itself"
        go.set()
        assert await task == "loaded"

    def test_a_deadline_that_ends_a_load_is_not_the_others_failure(self, cache, pool):
        """A load that ran out of its caller's time is tried again by one that has more."""

        def hasty() -> Any:
            with deadline(0.01):
                return cache.get("k", first)

        def out_of_time() -> Any:
            until(lambda: (time_left() or 0.0) <= 0.0)
            raise CallTimeoutError("out of time")

        first, then = Held(out_of_time), Held(lambda: "in time")
        then.go.set()
        leader = pool.submit(hasty)
        assert first.begun.wait(PATIENCE)
        other = pool.submit(cache.get, "k", then)
        joined(cache, 1)
        first.go.set()
        assert isinstance(leader.exception(PATIENCE), CallTimeoutError)
        assert other.result(PATIENCE) == "in time"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
class TestFork:
    @staticmethod
    def child_says(ask: Callable[[], Any]) -> str:
        """Return what *ask* answers in a forked child; a child that hangs is killed."""
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.write(writer, repr(ask()).encode())
            finally:
                os._exit(0)
        os.close(writer)
        killer = threading.Timer(PATIENCE, os.kill, (pid, 9))
        killer.start()
        with os.fdopen(reader) as answers:
            said = answers.read()
        killer.cancel()
        killer.join()
        os.waitpid(pid, 0)
        return said

    def test_a_load_of_the_parent_holds_up_no_child(self, cache, pool):
        """A load under way in a thread of the parent does not exist in the child, which loads for itself."""
        held = Held()
        parent = pool.submit(cache.get, "k", held)
        assert held.begun.wait(PATIENCE)
        assert self.child_says(lambda: cache.get("k", lambda: "the child's")) == '"the child\'s"'
        held.go.set()
        assert parent.result(PATIENCE) == "answer"

    def test_what_was_kept_is_kept(self, cache):
        """Entries go along into the child."""
        cache.put("k", "kept")
        assert self.child_says(lambda: cache.get("k", lambda: "loaded")) == "'kept'"

    @pytest.mark.parametrize("lock", ["cache", "storage"])
    def test_a_lock_held_at_the_fork_is_free_in_the_child(self, pool, lock):
        """What a thread was changing at the fork is dropped; its lock is made anew."""
        import cachetools

        cache = Cache("c", ttl=60.0, storage=cachetools.LRUCache(10) if lock == "storage" else None)
        cache.put("k", "half-changed")
        owner = cache._core.store if lock == "storage" else cache._core
        taken, done = threading.Event(), threading.Event()

        def hold() -> None:
            with owner._lock:
                taken.set()
                assert done.wait(PATIENCE)

        holder = pool.submit(hold)
        assert taken.wait(PATIENCE)
        assert self.child_says(lambda: cache.get("k", lambda: "loaded")) == "'loaded'"
        done.set()
        holder.result(PATIENCE)
