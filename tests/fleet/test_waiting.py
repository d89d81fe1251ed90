"""Waiting one's turn on a shared server: nobody waits for another key, and who gives up leaves no trace."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.fleet.leftovers import Keep
from tests.support.valkey import ValkeyServer
from tests.support.waiting import await_until, wait_until

import resilient
from resilient import RateLimitedError, RateLimiter

pytestmark = [pytest.mark.faults, pytest.mark.slow]

# Far less than the shortest wait here, far more than a decision takes on a busy machine.
AT_ONCE = 0.25


def limiter_on(server: ValkeyServer, rate: str = "1/second", **options: object) -> RateLimiter:
    """Make a limiter of one permit at a time, for whom waiting is no matter."""
    return RateLimiter(
        rate, burst=1, name="door", storage=server.url, max_wait=3_600.0, decision_timeout=5.0, **options
    )


async def test_tasks_wait_for_their_own_key_only(empty_valkey: ValkeyServer, keep: Keep):
    """Ten tasks queue for ann; bob, cid and 50 more pass at once."""
    limiter = keep(limiter_on(empty_valkey, "1/minute"))
    await limiter.aacquire("ann")
    queue = [asyncio.create_task(limiter.aacquire("ann")) for _ in range(10)]
    await asyncio.sleep(0.1)

    began = time.monotonic()
    await asyncio.gather(*(limiter.aacquire(f"other {number}") for number in range(50)))
    took = time.monotonic() - began
    for task in queue:
        task.cancel()
    await asyncio.gather(*queue, return_exceptions=True)

    assert took < AT_ONCE


def test_threads_wait_for_their_own_key_only(empty_valkey: ValkeyServer):
    """Three threads wait for ann, up to a second and a half; 50 others pass at once."""
    limiter = limiter_on(empty_valkey, "2/second")
    limiter.acquire("ann")
    with ThreadPoolExecutor(4) as pool:
        began = time.monotonic()
        waits = [pool.submit(limiter.acquire, "ann") for _ in range(3)]
        wait_until(lambda: limiter.peek("ann").reset_after > 1.5, "three are waiting")
        others = time.monotonic()
        for number in range(50):
            limiter.acquire(f"other {number}")
        assert time.monotonic() - others < AT_ONCE
        decisions = [wait.result() for wait in waits]
        took = time.monotonic() - began

    # Two permits a second: the turns are told, and kept. Not a moment early, and not all at the end.
    waited = sorted(decision.retry_after for decision in decisions)
    assert waited == pytest.approx([0.5, 1.0, 1.5], abs=0.2)
    assert 1.4 <= took < 2.5


async def test_cancelled_wait_gives_its_permit_back(empty_valkey: ValkeyServer, keep: Keep):
    """Of three who wait, two give up: the server knows of one more call, not of three."""
    limiter = keep(limiter_on(empty_valkey, "1/minute"))
    await limiter.aacquire()
    queue = [asyncio.create_task(limiter.aacquire()) for _ in range(3)]
    await await_until(lambda: limiter.peek().reset_after > 181.0, "all three are waiting")
    for task in queue[:2]:
        task.cancel()
    await asyncio.gather(*queue[:2], return_exceptions=True)

    left = (await limiter.apeek()).reset_after
    queue[2].cancel()
    await asyncio.gather(queue[2], return_exceptions=True)

    assert 60.0 < left <= 120.0
    assert 0.0 < (await limiter.apeek()).reset_after <= 60.0


async def test_task_cancelled_at_any_moment_costs_one_permit_at_most(empty_valkey: ValkeyServer, keep: Keep):
    """Also while the server is deciding: what it answers nobody may be told, and it is never taken twice."""
    limiter = keep(limiter_on(empty_valkey, "1/minute"))
    await limiter.aacquire("warm")
    for step in range(30):
        key = f"cancelled {step}"
        await limiter.aacquire(key)
        task = asyncio.create_task(limiter.aacquire(key))
        for _ in range(step):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await limiter.apeek(key)).reset_after <= 120.0


def test_wait_that_would_be_too_long_is_refused_at_once(empty_valkey: ValkeyServer):
    """It takes nothing, and says when to come back."""
    limiter = RateLimiter(
        "1/minute", burst=1, name="door", storage=empty_valkey.url, max_wait=5.0, decision_timeout=5.0
    )
    limiter.acquire()
    began = time.monotonic()
    with pytest.raises(RateLimitedError) as refused:
        limiter.acquire()

    assert time.monotonic() - began < AT_ONCE
    assert 50.0 < (refused.value.retry_after or 0.0) <= 60.0
    assert limiter.peek().reset_after <= 60.0


async def test_deadline_of_the_caller_shortens_the_wait(empty_valkey: ValkeyServer, keep: Keep):
    """Who has 0.2 s left is not made to wait a second, nor charged for it."""
    limiter = keep(limiter_on(empty_valkey, "1/minute"))
    limiter.acquire()
    began = time.monotonic()
    with resilient.deadline(0.2), pytest.raises(RateLimitedError):
        limiter.acquire()
    async with resilient.deadline(0.2):
        with pytest.raises(RateLimitedError):
            await limiter.aacquire()

    assert time.monotonic() - began < 2 * AT_ONCE
    assert limiter.peek().reset_after <= 60.0
