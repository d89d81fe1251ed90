"""How often a call is made again is known inside its attempts, and nowhere else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from contextvars import Context, copy_context
from typing import Any

import pytest

from resilient import Retry, Timeout
from resilient.engine import resends
from resilient.engine.resends import resend_count


def retry(attempts: int = 3) -> Retry:
    """Return one that tries so often, at once."""
    return Retry(on=LookupError, attempts=attempts, wait=0.0, budget=None)


class Failing:
    """Work that fails *times* times, and notes what it is told of its attempts."""

    def __init__(self, times: int) -> None:
        self.times = times
        self.seen: list[int] = []

    def __call__(self) -> str:
        self.seen.append(resend_count())
        if len(self.seen) <= self.times:
            raise LookupError
        return "done"


def by_function(work: Failing) -> Any:
    return retry()(work)()


def by_generator(work: Failing) -> Any:
    @retry()
    def stream() -> Generator[str]:
        yield work()
        work.seen.append(resend_count())  # the consumer has had an item: no attempt any more

    return list(stream())


def by_block(work: Failing) -> Any:
    for attempt in retry():
        with attempt:
            work()


async def by_coroutine(work: Failing) -> Any:
    @retry()
    async def call() -> str:
        await asyncio.sleep(0)
        return work()

    return await call()


async def by_async_generator(work: Failing) -> Any:
    @retry()
    async def stream() -> AsyncGenerator[str]:
        yield work()
        work.seen.append(resend_count())

    return [item async for item in stream()]


async def by_async_block(work: Failing) -> Any:
    async for attempt in retry():
        with attempt:
            await asyncio.sleep(0)
            work()


@pytest.mark.parametrize(
    "made", [by_function, by_generator, by_block, by_coroutine, by_async_generator, by_async_block]
)
@pytest.mark.parametrize(("failures", "counts"), [(0, [0]), (1, [0, 1]), (2, [0, 1, 2]), (3, [0, 1, 2])])
def test_attempts_know_how_often_they_are_made_again(
    made: Callable[[Failing], Any], failures: int, counts: list[int]
) -> None:
    """In each form of a retry; afterwards it is forgotten, whether the call ended well or not."""
    work, after = Failing(failures), list[int]()

    async def run() -> None:
        try:
            found = made(work)
            if asyncio.iscoroutine(found):
                await found
        except LookupError:
            assert failures == 3
        after.append(resend_count())

    asyncio.run(run())

    streams = "generator" in made.__name__ and failures < 3
    assert work.seen == [*counts, *([0] if streams else [])]
    assert after == [0]


def test_call_that_succeeds_at_once_touches_no_context() -> None:
    """What is not needed on the happy path is not done there."""
    context = Context()

    assert context.run(by_function, Failing(0)) == "done"

    assert resends._innermost not in context


def test_retries_inside_one_another_are_added_up() -> None:
    """What the inner one sends is sent again for either reason."""
    seen = list[int]()

    @retry(2)
    @Retry(on=LookupError, attempts=2, wait=0.0, budget=None)
    def call() -> None:
        seen.append(resend_count())
        raise LookupError

    with pytest.raises(LookupError):
        call()

    assert seen == [0, 1, 1, 2]
    assert resend_count() == 0


def test_number_follows_the_call_into_a_thread() -> None:
    """Threads that the library starts have the context of the call."""
    work = Failing(1)
    call = retry()(Timeout(5.0, threads=1)(work))

    assert call() == "done"
    assert work.seen == [0, 1]


async def test_task_that_an_attempt_leaves_behind_forgets_the_attempt() -> None:
    """It is not part of the attempt any more, though it has a copy of its context."""
    release, tasks = asyncio.Event(), list[asyncio.Task[tuple[int, int]]]()

    async def background() -> tuple[int, int]:
        before = resend_count()
        await release.wait()
        return before, resend_count()

    @retry()
    async def call() -> None:
        tasks.append(asyncio.create_task(background()))
        await asyncio.sleep(0)
        if len(tasks) == 1:
            raise LookupError

    await call()
    release.set()

    assert [await task for task in tasks] == [(0, 0), (1, 0)]


async def test_cancelled_attempt_is_forgotten() -> None:
    """By the task that goes on after its cancellation."""
    work, begun = Failing(1), asyncio.Event()

    @retry()
    async def call() -> None:
        work()
        begun.set()
        await asyncio.Event().wait()

    async def task() -> int:
        try:
            await call()
        except asyncio.CancelledError:
            return resend_count()
        return -1

    running = asyncio.create_task(task())
    await begun.wait()
    running.cancel()

    assert await running == 0
    assert work.seen == [0, 1]


def test_attempt_that_is_closed_in_another_context_is_forgotten_in_its_own() -> None:
    """A coroutine that nobody finishes is closed wherever it is collected."""
    work, context = Failing(1), copy_context()

    class Never:
        def __await__(self) -> Generator[None]:
            yield

    @retry()
    async def call() -> None:
        work()
        await Never()

    coroutine = call()
    while len(work.seen) < 2:
        context.run(coroutine.send, None)
    assert context.run(resend_count) == 1

    coroutine.close()

    assert context.run(resend_count) == 0
