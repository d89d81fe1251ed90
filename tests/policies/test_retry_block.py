"""Retry on blocks of code and on streams: `for attempt in retry`, generators and async generators."""
# ruff: noqa: PT012 - a block under test is more than one statement

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from tenacity import before_sleep_log, retry_if_result

from resilient import CallTimeoutError, DeadlineExceededError, Retry, RetryBudget, deadline, time_left
from resilient.testing import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    """A clock that stands still."""
    return FakeClock()


def make(clock: FakeClock, **options: Any) -> Retry:
    """Return a retry on *clock*, which never really waits."""
    return Retry(**{"on": ConnectionError, "wait": 1.0, "clock": clock, "sleep": clock.sleep, **options})


# Blocks


def test_block_is_repeated_until_it_ends_well(clock):
    """A failed attempt is swallowed and repeated; a good one ends the loop."""
    retry, numbers = make(clock), []
    for attempt in retry:
        with attempt:
            numbers.append(attempt.number)
            if attempt.number < 3:
                raise ConnectionError("down")
    assert numbers == [1, 2, 3]
    assert clock.sleeps == [1.0, 1.0]
    stats = retry.stats()
    assert (stats.calls, stats.retries, stats.recovered, stats.exhausted) == (1, 2, 1, 0)


async def test_asynchronous_block_is_repeated_until_it_ends_well(clock):
    """The asynchronous twin does the same."""
    retry, numbers = make(clock), []
    async for attempt in retry:
        with attempt:
            numbers.append(attempt.number)
            if attempt.number < 3:
                raise ConnectionError("down")
    assert numbers == [1, 2, 3]
    assert (retry.stats().calls, retry.stats().retries, retry.stats().recovered) == (1, 2, 1)


def test_block_raises_its_last_exception_with_a_note(clock):
    """When it gives up, the last exception itself leaves the block, and nothing is slept after it."""
    errors = [ConnectionError(number) for number in range(4)]
    with pytest.raises(ConnectionError) as caught:
        for attempt in make(clock, attempts=4):
            with attempt:
                clock.advance(10.0)
                raise errors[attempt.number - 1]
    assert caught.value is errors[3]
    assert caught.value.__context__ is None
    assert caught.value.__notes__ == [
        "resilient: 'retry' gave up after 4 attempts, 33 s after the first failure: attempts=4"
    ]
    assert clock.sleeps == [1.0, 1.0, 1.0]


async def test_asynchronous_block_raises_its_last_exception(clock):
    """The asynchronous twin raises the last exception itself, too."""
    last = ConnectionError("last")
    with pytest.raises(ConnectionError) as caught:
        async for attempt in make(clock, attempts=2):
            with attempt:
                raise ConnectionError if attempt.number == 1 else last
    assert caught.value is last
    assert clock.sleeps == [1.0]


def test_break_inside_an_attempt_ends_the_loop(clock):
    """A block may be left by `break` or `return`; that is a good end."""
    retry = make(clock)
    for attempt in retry:
        with attempt:
            if attempt.number == 2:
                break
            raise ConnectionError
    assert retry.stats().recovered == 1
    assert retry.stats().retries == 1


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_other_exceptions_leave_the_block(clock, kind):
    """What is not retried passes through."""
    with pytest.raises(kind):
        for attempt in make(clock):
            with attempt:
                raise kind
    assert clock.sleeps == []


def test_exception_between_the_attempts_leaves_the_loop_and_refunds(clock):
    """An exception outside `with attempt` is no attempt: it leaves, and the retry is given back."""
    retry = make(clock)

    def work() -> None:
        for attempt in retry:
            with attempt:
                raise ConnectionError
            raise RuntimeError("in the loop")

    try:
        work()
    except RuntimeError as exc:
        assert str(exc) == "in the loop"  # noqa: PT017 - its traceback, and the loop with it, must go
    assert clock.sleeps == []
    assert retry.budget.stats().retries == 0


def test_loop_left_between_attempts_refunds(clock):
    """A retry that was granted and never made is given back as soon as the loop is gone."""
    budget = RetryBudget(0.0, 1.0, 10.0, clock=clock)

    def give_up_early() -> None:
        for attempt in make(clock, budget=budget):
            with attempt:
                raise ConnectionError
            assert budget.stats().retries == 1
            break

    give_up_early()
    assert budget.stats().retries == 0


async def test_asynchronous_loop_left_between_attempts_refunds(clock):
    """The asynchronous twin gives back at once as well: nothing is left for the event loop to close."""
    budget = RetryBudget(0.0, 1.0, 10.0, clock=clock)

    async def give_up_early() -> None:
        async for attempt in make(clock, budget=budget):
            with attempt:
                raise ConnectionError
            break

    await give_up_early()
    assert budget.stats().retries == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_cancellation_during_a_blocks_back_off_refunds():
    """A cancelled wait gives back, once."""
    budget = RetryBudget(0.0, 1.0, 10.0)

    async def work() -> None:
        async for attempt in Retry(on=ConnectionError, wait=30, budget=budget):
            with attempt:
                raise ConnectionError

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    assert budget.stats().retries == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert budget.stats().retries == 0
    assert budget.stats().balance == 10.0


def test_loop_without_an_attempt_ends(clock):
    """A loop whose body never enters the attempt ends after one turn instead of running for ever."""
    assert [attempt.number for attempt in make(clock)] == [1]


def test_loops_of_one_policy_do_not_mix(clock):
    """Each loop counts its own attempts, one inside the other too."""
    retry, turns = make(clock, attempts=2, budget=None), []
    with pytest.raises(ConnectionError):
        for outer in retry:
            with outer:
                for inner in retry:
                    with inner:
                        turns.append((outer.number, inner.number))
                        raise ConnectionError
    assert turns == [(1, 1), (1, 2), (2, 1), (2, 2)]


@pytest.mark.parametrize("rules", [{"on_result": bool}, {"on": retry_if_result(bool)}])
async def test_rules_about_results_are_refused_on_blocks(clock, rules):
    """A block has no result to judge: that is an error at once, not a rule that is silently ignored."""
    retry = make(clock, **rules)
    with pytest.raises(TypeError, match="judges results, and a block has none"):
        iter(retry)
    with pytest.raises(TypeError, match="judges results, and a block has none"):
        aiter(retry)


def test_timeout_bounds_a_block(clock):
    """No wait is begun that the timeout would cut, and inside `time_left()` tells what is left of it."""
    left: list[float | None] = []
    with pytest.raises(ConnectionError) as caught:
        for attempt in make(clock, timeout=2.5, attempts=9):
            with attempt:
                left.append(time_left())
                raise ConnectionError
    assert left == [2.5, 1.5, 0.5]
    assert time_left() is None
    assert "the deadline is in 0.5 s" in caught.value.__notes__[0]


def test_callers_deadline_bounds_a_block(clock):
    """The caller's deadline counts too; after it no block with a timeout is begun."""
    with deadline(1.0, clock=clock):
        with pytest.raises(ConnectionError):
            for attempt in make(clock, timeout=9.0):
                with attempt:
                    raise ConnectionError
        clock.advance(1.0)
        with pytest.raises(DeadlineExceededError):
            for attempt in make(clock, timeout=9.0):
                with attempt:
                    pass


async def test_attempt_that_hangs_is_cut_off_at_the_timeout():
    """In a coroutine an attempt is cut off when the time of the whole block is up."""
    with pytest.raises(CallTimeoutError):
        async for attempt in Retry(on=ConnectionError, wait=0, timeout=0.02):
            with attempt:
                if attempt.number == 1:
                    raise ConnectionError
                await asyncio.sleep(30)
    assert asyncio.current_task().cancelling() == 0


async def test_late_attempt_meets_a_deadline_that_has_passed(clock):
    """Where a wait took longer than it should, the attempt it was for is made, and has no time left."""

    def oversleep(seconds: float) -> None:
        clock.advance(seconds + 5.0)

    left: list[float] = []
    with pytest.raises(ConnectionError):
        for attempt in make(clock, timeout=2.0, sleep=oversleep):
            with attempt:
                left.append(time_left())
                raise ConnectionError
    assert left == [2.0, pytest.approx(0.0, abs=1e-6)]


def test_before_sleep_log_names_the_policy(clock, caplog):
    """A block has no function to name in a log line: the policy stands for it."""
    log = logging.getLogger("shop")
    with caplog.at_level(logging.INFO, "shop"), pytest.raises(ConnectionError):
        for attempt in make(
            clock, name="rates", attempts=2, before_sleep=before_sleep_log(log, logging.INFO)
        ):
            with attempt:
                raise ConnectionError("down")
    assert "Retrying <Retry 'rates'" in caplog.text


# Streams


def test_generator_is_begun_anew_until_it_yields(clock):
    """A generator that fails before its first item is begun anew."""
    begun: list[int] = []
    retry = make(clock)

    @retry
    def pages() -> Iterator[int]:
        begun.append(1)
        if len(begun) < 3:
            raise ConnectionError
        yield from (1, 2)

    assert list(pages()) == [1, 2]
    assert len(begun) == 3
    assert (retry.stats().calls, retry.stats().retries, retry.stats().recovered) == (1, 2, 1)


async def test_async_generator_is_begun_anew_until_it_yields(clock):
    """An async generator that fails before its first item is begun anew."""
    begun: list[int] = []
    retry = make(clock)

    @retry
    async def pages() -> AsyncIterator[int]:
        begun.append(1)
        if len(begun) < 3:
            raise ConnectionError
        yield 1
        yield 2

    assert [page async for page in pages()] == [1, 2]
    assert len(begun) == 3
    assert (retry.stats().calls, retry.stats().retries, retry.stats().recovered) == (1, 2, 1)


def test_generator_is_never_retried_after_its_first_item(clock):
    """After the first item a repeat would repeat items: the failure is the consumer's."""

    @make(clock)
    def pages() -> Iterator[int]:
        yield 1
        raise ConnectionError

    seen: list[int] = []
    with pytest.raises(ConnectionError):
        for page in pages():
            seen.append(page)  # noqa: PERF402 - what was seen before the failure counts
    assert seen == [1]
    assert clock.sleeps == []


async def test_async_generator_is_never_retried_after_its_first_item(clock):
    """The same goes for async generators."""

    @make(clock)
    async def pages() -> AsyncIterator[int]:
        yield 1
        raise ConnectionError

    seen: list[int] = []
    with pytest.raises(ConnectionError):
        async for page in pages():
            seen.append(page)  # noqa: PERF401 - as above
    assert seen == [1]
    assert clock.sleeps == []


def test_generator_that_never_begins_raises_its_last_exception(clock):
    """Attempts that run out end in the last exception, with a note."""

    @make(clock, attempts=2)
    def pages() -> Iterator[int]:
        raise ConnectionError("down")
        yield

    with pytest.raises(ConnectionError) as caught:
        next(pages())
    assert "gave up after 2 attempts" in caught.value.__notes__[0]


def test_empty_generator_and_its_return_value_pass(clock):
    """A generator that ends without an item is no failure; its return value is kept."""

    @make(clock)
    def pages() -> Iterator[int]:
        return "done"
        yield

    with pytest.raises(StopIteration) as stop:
        next(pages())
    assert stop.value.value == "done"


@pytest.mark.parametrize("rules", [{"on_result": bool}, {"on": retry_if_result(bool)}])
def test_rules_about_results_are_refused_on_streams(clock, rules):
    """A stream has no result to judge: decorating one says so."""

    async def apages() -> AsyncIterator[int]:
        yield 1

    def pages() -> Iterator[int]:
        yield 1

    for stream in (pages, apages):
        with pytest.raises(
            TypeError, match=r"judges results, and .*pages, an? .*generator function, has none"
        ):
            make(clock, **rules)(stream)


async def test_stream_failure_that_is_not_retried_passes_untouched(clock):
    """What `on` does not name is raised at once, before the first item too."""
    retry = make(clock)

    @retry
    def pages() -> Iterator[int]:
        raise ValueError("bad input")
        yield

    @retry
    async def apages() -> AsyncIterator[int]:
        raise ValueError("bad input")
        yield

    @retry
    async def nothing() -> AsyncIterator[int]:
        return
        yield

    with pytest.raises(ValueError, match="bad input"):
        next(pages())
    with pytest.raises(ValueError, match="bad input"):
        await anext(apages())
    assert [page async for page in nothing()] == []
    assert clock.sleeps == []


async def test_blocks_are_iterators_of_their_own_kind(clock):
    """What `iter` and `aiter` return can be handed on, and be iterated over as it is."""
    retry = make(clock)
    assert [attempt.number for attempt in iter(iter(retry))] == [1]
    assert [attempt.number async for attempt in aiter(aiter(retry))] == [1]
    assert retry.stats().calls == 2
