"""The links to a server: how many connections, who shares them, and what says nothing about the server."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from contextlib import aclosing, closing

from tests.support.valkey import ValkeyServer

from resilient import RateLimiter
from resilient.events import RungChanged
from resilient.fleet.link import link_to
from resilient.testing import capture_events

PATIENT = 5.0
"""A decision timeout that a busy machine does not reach."""


def limiter_on(server: ValkeyServer, **options: object) -> RateLimiter:
    """Return a limiter whose limit no test here reaches."""
    return RateLimiter("1000000/hour", name="links", storage=server.url, **options)


def connected(server: ValkeyServer) -> int:
    """Return how many clients *server* has, the one that asks included."""
    with server.client() as client:
        return int(client.info("clients")["connected_clients"])


def test_process_may_connect_any_number_of_times(empty_valkey: ValkeyServer):
    """Connections that were closed are not counted: redis-py's pools make a hundred in their life."""
    with closing(limiter_on(empty_valkey, decision_timeout=PATIENT)) as limiter:
        rungs = set()
        for _ in range(130):
            rungs.add(limiter.hit().rung)
            limiter.close()
    assert rungs == {"shared"}


async def test_burst_of_tasks_is_no_outage(empty_valkey: ValkeyServer):
    """A thousand at once share a connection; who is late for reasons of the loop's says nothing."""
    limiter = limiter_on(empty_valkey, decision_timeout=0.25)  # a collection of garbage takes its time, too
    before = connected(empty_valkey)
    async with aclosing(limiter):
        with capture_events() as events:
            for _ in range(3):
                await asyncio.gather(*(limiter.ahit(f"user {number}") for number in range(1_000)))
        after = connected(empty_valkey)
    assert events.of(RungChanged) == []
    assert after - before <= 1


async def test_loop_that_was_blocked_is_no_outage(empty_valkey: ValkeyServer):
    """Somebody's handler holds the loop for longer than a decision may take, again and again."""
    limiter = limiter_on(empty_valkey)
    async with aclosing(limiter):
        await limiter.ahit()
        with capture_events() as events:
            for _ in range(5):
                asking = [asyncio.create_task(limiter.ahit()) for _ in range(10)]
                await asyncio.sleep(0)
                time.sleep(0.06)  # noqa: ASYNC251 - the fault
                await asyncio.gather(*asking)
    assert events.of(RungChanged) == []


def test_burst_of_threads_is_no_outage(empty_valkey: ValkeyServer):
    """Sixty threads that all have to connect: who gets no connection in time says nothing."""
    with closing(limiter_on(empty_valkey)) as limiter, capture_events() as events:
        start = threading.Barrier(60)

        def strike() -> None:
            start.wait()
            for _ in range(20):
                limiter.hit()

        threads = [threading.Thread(target=strike) for _ in range(60)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert events.of(RungChanged) == []


async def test_fork_leaves_the_parents_connection_alone(empty_valkey: ValkeyServer):
    """A child that ends at once does not take the parent's socket out of the loop's watch."""
    limiter = limiter_on(empty_valkey, decision_timeout=PATIENT)
    async with aclosing(limiter):
        for _ in range(3):
            assert (await limiter.ahit()).rung == "shared"
            if (child := os.fork()) == 0:
                os._exit(0)
            os.waitpid(child, 0)  # noqa: ASYNC222 - the child ends at once
            started = time.monotonic()
            assert (await limiter.ahit()).rung == "shared"
            assert time.monotonic() - started < PATIENT / 2
        assert limiter.stats().errors == 0


async def test_second_cancellation_loses_no_permit(empty_valkey: ValkeyServer):
    """Whoever waits for a turn and is cancelled again while giving it back, as by anyio, gives it back."""
    limiter = RateLimiter(
        "10/second", burst=1, name="turns", storage=empty_valkey.url, max_wait=10.0, decision_timeout=PATIENT
    )
    async with aclosing(limiter):
        waiting = [asyncio.create_task(limiter.aacquire()) for _ in range(20)]
        while empty_valkey.client().dbsize() == 0:  # noqa: ASYNC110 - it happens on the server
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        for _ in range(3):
            for task in waiting:
                task.cancel()
            await asyncio.sleep(0)
        await asyncio.gather(*waiting, return_exceptions=True)
        decision = await limiter.apeek()
        while decision.reset_after > 0.15 and not decision.allowed:
            await asyncio.sleep(0.02)
            before, decision = decision, await limiter.apeek()
            assert decision.reset_after < before.reset_after
        assert decision.reset_after <= 0.3  # 20 turns would be 2 s


def test_limiter_may_be_made_in_a_child_of_a_busy_parent(empty_valkey: ValkeyServer):
    """A lock that a thread held at the fork does not stay locked in the child."""
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with link_to.__self__._lock:
            held.set()
            done.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    if (child := os.fork()) == 0:
        signal.alarm(10)
        limiter_on(empty_valkey)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    done.set()
    holder.join()
    assert status == 0
