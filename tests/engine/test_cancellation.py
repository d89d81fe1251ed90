"""Cancellation at every await point of every policy: nothing is lost, nothing is counted, nothing is hidden.

`cancelled_at` runs a call in a task and cancels it when it is suspended for the k-th time. The tests go
through all k, until the call is over before it could be cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from tests.contract.policies import Mode, UpstreamError, breakers_in, each_mode, evidence, left_behind

from resilient import Cache, CircuitBreaker, Pipeline, Retry, Timeout, deadline
from resilient.errors import CallTimeoutError
from resilient.testing import FakeClock

AWAITS = 4
MOST_SUSPENSIONS = 40


@pytest.fixture
def clock() -> FakeClock:
    """A clock that stands still until told."""
    return FakeClock()


async def work(value: object) -> object:
    """Suspend a few times, then answer."""
    for _ in range(AWAITS):
        await asyncio.sleep(0)
    return value


async def failing(_value: object) -> object:
    """Suspend a few times, then fail."""
    await work(None)
    raise UpstreamError


async def cancelled_at(step: int, call: Callable[[], Awaitable[Any]], times: int = 1) -> asyncio.Task[Any]:
    """Return the finished task of *call*, cancelled *times* times from its *step*-th suspension on."""

    async def run() -> Any:
        return await call()

    task = asyncio.create_task(run())
    for turn in range(MOST_SUSPENSIONS):
        if task.done():
            break
        if step <= turn < step + times:
            task.cancel()
        await asyncio.sleep(0)
    await asyncio.wait([task])
    await _settle()
    return task


async def _settle() -> None:
    # A load that nobody waits for any more is cancelled from outside its task: a few turns of the loop.
    for _ in range(AWAITS):
        await asyncio.sleep(0)


async def every_step(run: Callable[[int], Awaitable[asyncio.Task[Any]]]) -> int:
    """Call *run* for 0, 1, 2, … until the call was over before its cancel; return how many were cancelled."""
    for step in range(MOST_SUSPENSIONS):
        if not (await run(step)).cancelled():
            return step
    pytest.fail("the call never ended")


@each_mode()
@pytest.mark.parametrize("times", [1, 2, 3])
async def test_cancelled_call_leaves_nothing_and_is_no_evidence(
    mode: Mode, times: int, clock: FakeClock
) -> None:
    """Wherever it is suspended, also when cancelled again while it is being cancelled."""
    policies = []

    async def run(step: int) -> asyncio.Task[Any]:
        policy = mode.make(clock)
        policies.append(policy)
        return await cancelled_at(step, lambda: policy(work)("value"), times)

    steps = await every_step(run)

    assert steps >= AWAITS
    for policy in policies[:steps]:
        assert not left_behind(policy)
        if not mode.loads_in_tasks:  # a load may end well just as its waiter leaves
            assert {what for what, n in evidence(policy).items() if n} <= {"Retry calls", "Timeout calls"}
        assert sum(breaker.stats().rejected for breaker in breakers_in(policy)) == 0


@each_mode()
async def test_call_after_a_cancelled_one_works(mode: Mode, clock: FakeClock) -> None:
    """The same policy goes on as if the cancelled calls had never been."""
    policy = mode.make(clock)
    guarded = policy(work)

    await every_step(lambda step: cancelled_at(step, lambda: guarded(step)))

    assert await asyncio.wait_for(guarded("value"), 5.0) == "value"
    assert not left_behind(policy)


@pytest.mark.parametrize("step", range(1, 3 * (AWAITS + 2)))
async def test_cancelled_retry_makes_no_further_attempt(step: int) -> None:
    """A cancel during an attempt or a back-off ends it, and gives the budget's retry back."""
    attempts: list[int] = []

    async def attempt() -> None:
        attempts.append(step)
        await failing(None)

    retry = Retry(on=UpstreamError, attempts=3, sleep=lambda _: asyncio.sleep(0))
    task = await cancelled_at(step, retry(attempt))
    made = len(attempts)
    await _settle()

    assert task.cancelled() or isinstance(task.exception(), UpstreamError)
    assert len(attempts) == made
    assert retry.stats().exhausted == (not task.cancelled())
    assert retry.budget is not None
    assert retry.budget.stats().retries == retry.stats().retries


async def test_cancelled_probe_gives_its_place_back(clock: FakeClock) -> None:
    """At each of its awaits; the next call is the probe that closes the circuit."""

    async def run(step: int) -> asyncio.Task[Any]:
        breaker = CircuitBreaker("b", reset_timeout=1.0, clock=clock)
        breaker.open()
        clock.advance(1.0)
        task = await cancelled_at(step, lambda: breaker(work)("value"))
        if task.cancelled():
            assert breaker.current_state == ("half-open" if step else "open")
            assert breaker.call(str, "next probe") == "next probe"
        assert breaker.current_state == "closed"
        return task

    assert await every_step(run) >= AWAITS


async def test_cancelled_waiter_of_a_shared_load_hurts_nobody_else(clock: FakeClock) -> None:
    """Whoever of three leaves, and whenever: the others get the value of one load."""
    for leaver in range(3):
        loads: list[int] = []

        async def run(step: int, leaver: int = leaver, loads: list[int] = loads) -> asyncio.Task[Any]:
            cache = Cache("c", ttl=60.0, clock=clock)
            loads.clear()

            @cache
            async def load(key: str) -> object:
                loads.append(1)
                return await work(key)

            tasks = [asyncio.create_task(load("key")) for _ in range(3)]
            for turn in range(MOST_SUSPENSIONS):
                if turn == step:
                    tasks[leaver].cancel()
                await asyncio.sleep(0)
            others = [task.result() for number, task in enumerate(tasks) if number != leaver]
            assert others == ["key", "key"]
            assert len(loads) == 1
            assert not left_behind(cache)
            return tasks[leaver]

        assert await every_step(run) >= AWAITS


async def test_load_that_everybody_left_is_cancelled(clock: FakeClock) -> None:
    """Nobody wants its value any more, so it does not go on in secret."""
    cache, ended = Cache("c", ttl=60.0, clock=clock), []

    @cache
    async def load() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    tasks = [asyncio.create_task(load()) for _ in range(3)]
    await _settle()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    await _settle()

    assert ended == ["cancelled"]
    assert not left_behind(cache)


# A time limit of ours and a cancellation from elsewhere.

LIMITS = {
    "timeout": lambda: Timeout(0.01),
    "deadline": lambda: deadline(0.01),
    "timeout-in-a-deadline": lambda: Pipeline(deadline(0.01), Timeout(5.0)),
    "nested": lambda: Pipeline(Timeout(0.01, name="outer"), Timeout(0.01, name="inner")),
    "under-a-breaker": lambda: Pipeline(CircuitBreaker("b"), Timeout(0.01)),
    "under-a-retry": lambda: Pipeline(Retry(on=UpstreamError), Timeout(0.01)),
}
each_limit = pytest.mark.parametrize("limit", LIMITS.values(), ids=LIMITS)


async def hang() -> None:
    """Never end by itself."""
    await asyncio.Event().wait()


@each_limit
async def test_own_expiry_is_a_timeout_and_leaves_the_task_uncancelled(limit: Callable[[], Any]) -> None:
    """The count of cancellations is what it was: a task group or a timeout around sees nothing of it."""
    task = asyncio.current_task()
    assert task is not None

    with pytest.raises(CallTimeoutError):
        await limit()(hang)()

    assert task.cancelling() == 0
    await asyncio.sleep(0)  # a cancellation left behind would come out here


@each_limit
async def test_cancel_in_the_same_turn_as_the_expiry_stays_a_cancel(limit: Callable[[], Any]) -> None:
    """Both arrive as one CancelledError; the caller's own must not be turned into an error of the call."""
    guarded = limit()(hang)
    loop = asyncio.get_running_loop()

    async def call() -> None:
        task = asyncio.current_task()
        assert task is not None
        # Due in the same turn: the loop sorts by time, and both have passed when it looks.
        loop.call_later(0.01, task.cancel)
        loop.call_later(0.0, _block, 0.05)
        await guarded()

    task = asyncio.create_task(call())
    await asyncio.wait([task])

    assert task.cancelled()
    assert task.cancelling() == 1


def _block(seconds: float) -> None:
    """Keep the loop from turning for so long."""
    until = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < until:
        pass


@each_limit
async def test_answer_in_spite_of_the_cancellation_is_kept(limit: Callable[[], Any]) -> None:
    """A call that saves what it has when its time is up is not thrown away."""

    async def saving() -> str:
        try:
            await hang()
        except asyncio.CancelledError:
            return "saved"
        raise AssertionError

    assert await limit()(saving)() == "saved"
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


@each_limit
async def test_error_in_place_of_the_cancellation_is_the_calls_own(limit: Callable[[], Any]) -> None:
    """What the call raises while it is cut off is raised, not hidden behind a timeout."""
    error = LookupError()

    async def converting() -> None:
        try:
            await hang()
        except asyncio.CancelledError:
            raise error from None

    with pytest.raises(LookupError) as caught:
        await limit()(converting)()

    assert caught.value is error


@each_limit
async def test_call_that_ends_as_its_time_is_up_is_one_or_the_other(limit: Callable[[], Any]) -> None:
    """Never both, never neither, and nothing of the race stays behind."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    for offset in (-0.0005, -0.0001, 0.0, 0.0001, 0.0005):
        answer: asyncio.Future[str] = loop.create_future()
        loop.call_later(0.01 + offset, _answer, answer)
        policy = limit()

        async def call(answer: asyncio.Future[str] = answer) -> str:
            return await answer

        with contextlib.suppress(CallTimeoutError):
            assert await policy(call)() == "answer"
        await asyncio.sleep(0)
        assert task.cancelling() == 0
        assert not left_behind(policy)
        await asyncio.sleep(0.002)


def _answer(future: asyncio.Future[str]) -> None:
    if not future.cancelled():
        future.set_result("answer")


@each_limit
async def test_timeouts_of_asyncio_around_ours_stay_theirs(limit: Callable[[], Any]) -> None:
    """`asyncio.timeout` and ours each know their own expiry, whichever comes first."""
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(0.001):
            await limit()(hang)()
    assert not isinstance(caught.value, CallTimeoutError)

    with pytest.raises(CallTimeoutError):
        async with asyncio.timeout(5.0):
            await limit()(hang)()


@each_limit
async def test_expiry_inside_a_task_group_is_an_error_of_that_task(limit: Callable[[], Any]) -> None:
    """The group cancels the siblings and raises the timeout, as for any error."""
    siblings = []

    async def sibling() -> None:
        try:
            await hang()
        except asyncio.CancelledError:
            siblings.append("cancelled")
            raise

    async def both() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(sibling())
            group.create_task(limit()(hang)())

    with pytest.raises(ExceptionGroup) as caught:
        await both()

    assert caught.group_contains(CallTimeoutError, depth=1)
    assert siblings == ["cancelled"]


async def test_limits_of_a_thousand_calls_end_in_any_order() -> None:
    """Calls that end before, after and between others leave the queue of cut-offs empty."""
    limit = Timeout(30.0)

    @limit
    async def take(turns: int) -> int:
        for _ in range(turns):
            await asyncio.sleep(0)
        return turns

    turns = [(number * 37) % 101 for number in range(1000)]

    assert await asyncio.gather(*map(take, turns)) == turns
    assert not left_behind(limit)
    assert limit.stats().calls == 1000


async def test_cancelling_in_a_cleanup_after_a_cancellation_keeps_to_its_own_limits(clock: FakeClock) -> None:
    """A task that is being cancelled still may call guarded functions while it cleans up."""
    limit, cache = Timeout(0.01), Cache("c", ttl=60.0, load_timeout=0.01, clock=clock)
    seen: list[str] = []

    async def call() -> None:
        try:
            await hang()
        finally:
            for guarded in (limit(hang), cache(hang)):
                try:
                    await guarded()
                except CallTimeoutError:
                    seen.append("timed out")

    task = asyncio.create_task(call())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    await _settle()

    assert seen == ["timed out", "timed out"]
    assert task.cancelled()
    assert not left_behind(cache)
