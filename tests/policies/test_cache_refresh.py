"""Refreshes in the background: no request waits for them, whatever becomes of them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import pytest

from resilient import Cache, deadline, events, time_left
from resilient.testing import FakeClock, capture_events

PATIENCE = 10.0  # seconds after which a test calls it a hang


class UpstreamError(Exception):
    """What refreshes fail with."""


@pytest.fixture
def clock() -> FakeClock:
    """A clock that stands still until told."""
    return FakeClock()


@pytest.fixture
def cache(clock) -> Cache:
    """A cache whose answers are fresh for 10 s and then served stale for 50 s."""
    return Cache("c", ttl=10.0, stale_while_revalidate=50.0, jitter=0.0, clock=clock)


@pytest.fixture
def go() -> Iterator[threading.Event]:
    """Lets hung loads go, at the end of the test at the latest."""
    event = threading.Event()
    yield event
    event.set()


def until(condition: Callable[[], bool]) -> None:
    """Wait for *condition*."""
    give_up_at = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up_at, "it never came about"
        time.sleep(0.001)


def idle(cache: Cache) -> bool:
    """Whether no load is under way."""
    return not cache._core._flights


class TestInThreads:
    def test_no_request_waits_for_a_slow_refresh(self, cache, clock, go):
        """While a refresh hangs, every request has the old answer at once, and none starts another."""
        calls: list[str] = []

        def load() -> str:
            calls.append(threading.current_thread().name)
            return "new" if go.wait(PATIENCE) else "hung"

        cache.put("k", "old")
        clock.advance(12.0)
        begun = time.monotonic()
        assert [cache.get("k", load) for _ in range(100)] == ["old"] * 100
        assert time.monotonic() - begun < 1.0
        go.set()
        until(lambda: cache.peek("k") == "new")
        assert cache.get("k", load) == "new"
        assert calls == ["resilient-refresh-c"]
        assert (cache.stats().stale, cache.stats().loads) == (100, 1)

    def test_failing_refresh_hurts_nobody(self, cache, clock):
        """It is an event and a count; the old answer goes on being served, and the next call tries again."""

        def load() -> Any:
            raise UpstreamError("away")

        cache.put("k", "old")
        clock.advance(12.0)
        with capture_events() as told:
            for failures in range(1, 4):
                assert cache.get("k", load) == "old"
                until(lambda failures=failures: cache.stats().load_failures == failures and idle(cache))
                assert cache.get("k", load) == "old"  # not tried again at once
                clock.advance(1.0)
        assert cache.stats().loads == 3
        assert told == [events.RefreshFailed("c", error="UpstreamError: away")] * 3

    def test_hung_refreshes_of_some_keys_hold_up_no_other(self, cache, clock, go):
        """With every refresh thread hung, other keys are served stale, and then loaded by their callers."""
        for key in range(8):
            cache.put(key, "old")
        clock.advance(12.0)
        for key in range(8):
            assert cache.get(key, lambda: go.wait(PATIENCE)) == "old"
        until(lambda: sum(flight.running for flight in cache._core._flights.values()) == 4)
        clock.advance(50.0)
        waiting = [key for key in range(8) if not cache._core._flights[key,].running]
        assert [cache.get(key, lambda: "own") for key in waiting] == ["own"] * 4
        go.set()
        until(lambda: idle(cache))
        assert [cache.peek(key) for key in waiting] == ["own"] * 4, (
            "and their refreshes are not made any more"
        )

    def test_many_refreshes_use_few_threads(self, cache, clock):
        """However many keys are stale at once, their refreshes share a bounded set of threads."""
        threads: list[int] = []

        def load() -> str:
            threads.append(threading.get_ident())
            return "new"

        for key in range(300):
            cache.put(key, "old")
        clock.advance(12.0)
        for key in range(300):
            cache.get(key, load)
        until(lambda: idle(cache))
        assert len(set(threads)) <= 4
        assert len(threads) == 300
        assert all(cache.peek(key) == "new" for key in range(300))

    def test_interrupted_refresh_is_tried_again(self, cache, clock):
        """SystemExit in a refresh ends that refresh and nothing else."""

        def leave() -> Any:
            raise SystemExit

        cache.put("k", "old")
        clock.advance(12.0)
        assert cache.get("k", leave) == "old"
        until(lambda: idle(cache))
        assert cache.get("k", lambda: "new") == "old"
        until(lambda: cache.peek("k") == "new")

    def test_context_goes_along_and_the_deadline_does_not(self, cache, clock):
        """A refresh sees the request's context variables; its deadline is the business of who waits."""
        user: ContextVar[str] = ContextVar("user")
        user.set("ann")
        cache.put("k", "old")
        clock.advance(12.0)
        with deadline(5.0):
            assert cache.get("k", lambda: (user.get(), time_left())) == "old"
            until(lambda: cache.peek("k") != "old")
        assert cache.peek("k") == ("ann", None)

    def test_a_waiter_after_the_stale_time_joins_the_refresh(self, cache, clock, go):
        """When the old answer's time is over while it is refreshed, callers wait for that load."""

        def load() -> str:
            assert go.wait(PATIENCE)
            return "new"

        cache.put("k", "old")
        clock.advance(12.0)
        cache.get("k", load)
        until(lambda: cache._core._flights["k",].running)
        clock.advance(60.0)
        with ThreadPoolExecutor(1) as pool:
            caller = pool.submit(cache.get, "k", load)
            until(lambda: len(cache._core._flights["k",].waiters) == 1)
            go.set()
            assert caller.result(PATIENCE) == "new"
        assert cache.stats().loads == 1

    def test_invalidate_wins_over_a_refresh(self, cache, clock, go):
        """What a refresh read before `invalidate` is not kept."""
        begun = threading.Event()

        def load() -> str:
            begun.set()
            assert go.wait(PATIENCE)
            return "read before"

        cache.put("k", "old")
        clock.advance(12.0)
        cache.get("k", load)
        assert begun.wait(PATIENCE)
        flight = cache._core._flights["k",]
        cache.invalidate("k")
        go.set()
        until(lambda: flight.entry is not None)
        assert cache.peek("k") is None

    def test_without_a_thread_to_be_had_the_old_answer_serves(self, cache, clock, monkeypatch):
        """An interpreter that gives no thread any more still gets its answer."""

        def no_thread(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        cache.put("k", "old")
        clock.advance(12.0)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_thread)
            assert cache.get("k", lambda: "never") == "old"
        assert idle(cache)


class TestInTasks:
    async def test_no_request_waits_for_a_slow_refresh(self, cache, clock):
        """The refresh is a task beside the requests."""
        go = asyncio.Event()
        calls: list[int] = []

        async def load() -> str:
            calls.append(1)
            await go.wait()
            return "new"

        cache.put("k", "old")
        clock.advance(12.0)
        assert [await cache.aget("k", load) for _ in range(100)] == ["old"] * 100
        go.set()
        await asyncio.sleep(0.001)
        assert await cache.aget("k", load) == "new"
        assert len(calls) == 1

    async def test_outlives_the_request_that_began_it(self, cache, clock):
        """A request that is cancelled or over takes no refresh with it."""

        async def load() -> str:
            await asyncio.sleep(0.002)
            return "new"

        cache.put("k", "old")
        clock.advance(12.0)
        request = asyncio.create_task(cache.aget("k", load))
        await asyncio.sleep(0)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        await asyncio.sleep(0.01)
        assert cache.peek("k") == "new"

    async def test_failing_refresh_hurts_nobody(self, cache, clock):
        """It is an event, no complaint of asyncio, and the old answer goes on being served."""

        async def load() -> Any:
            raise UpstreamError("away")

        cache.put("k", "old")
        clock.advance(12.0)
        with capture_events() as told:
            assert await cache.aget("k", load) == "old"
            await asyncio.sleep(0.001)
            clock.advance(1.0)
            assert await cache.aget("k", load) == "old"
            await asyncio.sleep(0.001)
        assert told == [events.RefreshFailed("c", error="UpstreamError: away")] * 2

    async def test_hung_refresh_is_given_up_after_load_timeout(self, clock):
        """Nobody waits for a refresh, so nobody could leave it: `load_timeout` ends it, as a failure."""
        cache = Cache("c", ttl=10.0, stale_while_revalidate=50.0, load_timeout=0.005, jitter=0.0, clock=clock)
        cache.put("k", "old")
        clock.advance(12.0)
        with capture_events() as told:
            assert await cache.aget("k", lambda: asyncio.sleep(PATIENCE)) == "old"
            await asyncio.sleep(0.02)
        assert idle(cache)
        assert told == [events.RefreshFailed("c", error="CallTimeoutError: cache 'c': no answer in 0.005 s")]

    async def test_a_timeout_of_the_loads_own_stays_its_own(self, clock):
        """A TimeoutError that the load raised is not taken for the end of `load_timeout`."""
        cache = Cache("c", ttl=10.0, stale_while_revalidate=50.0, load_timeout=5.0, jitter=0.0, clock=clock)

        async def load() -> Any:
            raise TimeoutError("mine")

        cache.put("k", "old")
        clock.advance(12.0)
        with capture_events() as told:
            await cache.aget("k", load)
            await asyncio.sleep(0.001)
        assert told == [events.RefreshFailed("c", error="TimeoutError: mine")]

    async def test_context_goes_along_and_the_deadline_does_not(self, cache, clock):
        """A refresh is not cut short by the request that happened to begin it."""
        seen: list[float | None] = []

        async def load() -> str:
            seen.append(time_left())
            return "new"

        cache.put("k", "old")
        clock.advance(12.0)
        async with deadline(5.0):
            await cache.aget("k", load)
            await asyncio.sleep(0.001)
        assert seen == [None]

    def test_a_loop_that_ends_takes_its_refresh_along(self, cache, clock):
        """The next request, on whatever loop or thread, begins another one."""
        cache.put("k", "old")
        clock.advance(12.0)
        loop = asyncio.new_event_loop()
        assert loop.run_until_complete(cache.aget("k", lambda: asyncio.sleep(PATIENCE))) == "old"
        for task in asyncio.all_tasks(loop):
            task._log_destroy_pending = False
        loop.close()
        assert cache.get("k", lambda: "new") == "old"
        until(lambda: cache.peek("k") == "new")
