"""Retry on functions and coroutine functions: attempts, waits, and how they end."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
import tenacity
from tenacity import before_sleep_log, stop_after_attempt, stop_after_delay, stop_before_delay, wait_fixed
from tests.policies.retry_support import Flaky, make

from resilient import (
    Retry,
    wait_full_jitter,
)
from resilient.events import RetriesExhausted, RetryScheduled
from resilient.testing import FakeClock, capture_events, no_waiting


class WeakError(ConnectionError):
    """A failure that can be referred to weakly, as the built-in classes cannot."""


@pytest.fixture
def clock() -> FakeClock:
    """A clock that stands still."""
    return FakeClock()


# Attempts


@pytest.mark.parametrize("attempts", [1, 2, 5])
def test_attempts_count_the_first_one(clock, attempts):
    """`attempts` is the most there are, and nothing is slept after the last failure."""
    flaky = Flaky(ConnectionError)
    with pytest.raises(ConnectionError):
        make(clock, attempts=attempts).call(flaky)
    assert flaky.calls == attempts
    assert clock.sleeps == [1.0] * (attempts - 1)


def test_defaults_are_three_attempts_with_full_jitter(clock):
    """By default there are three attempts, and full jitter from 0.1 s between them."""
    flaky, retry = Flaky(ConnectionError), Retry(on=ConnectionError, clock=clock, sleep=clock.sleep)
    with pytest.raises(ConnectionError):
        retry.call(flaky)
    assert flaky.calls == 3
    assert isinstance(retry.wait, wait_full_jitter)
    assert 0.0 <= clock.sleeps[0] <= 0.1
    assert 0.0 <= clock.sleeps[1] <= 0.2


def test_success_is_returned_and_counted(clock):
    """A call that ends well at its third attempt returns its result."""
    retry = make(clock)
    assert retry.call(Flaky(ConnectionError, ConnectionError, "rates")) == "rates"
    stats = retry.stats()
    assert (stats.calls, stats.retries, stats.recovered, stats.exhausted, stats.over_budget) == (
        1,
        2,
        1,
        0,
        0,
    )
    assert stats.amplification == 3.0
    assert make(clock).stats().amplification == 1.0


def test_first_success_neither_sleeps_nor_recovers(clock):
    """A call that succeeds at once is only counted."""
    retry = make(clock)
    assert retry.call(Flaky(None)) is None
    assert (retry.stats().calls, retry.stats().recovered, clock.sleeps) == (1, 0, [])


def test_no_limit_by_number(clock):
    """`attempts=None` goes on until something else ends it."""
    flaky = Flaky(*[ConnectionError] * 50, "at last")
    assert make(clock, attempts=None, budget=None).call(flaky) == "at last"
    assert flaky.calls == 51


def test_arguments_reach_every_attempt(clock):
    """Each attempt is called with the same arguments, and the method's self."""
    seen: list[Any] = []

    class Service:
        @make(clock)
        def get(self, code: str, *, base: str) -> None:
            seen.append((self, code, base))
            raise ConnectionError

    service = Service()
    with pytest.raises(ConnectionError):
        service.get("CHF", base="EUR")
    assert seen == [(service, "CHF", "EUR")] * 3


# What is raised


def test_last_exception_itself_is_raised_with_a_note(clock):
    """The exception of the last attempt leaves as it is: same object, no cause, no context, one note."""
    errors = [ConnectionError("first"), ConnectionError("second"), ConnectionError("third")]

    def fail() -> None:
        clock.advance(0.25)
        raise errors[len(clock.sleeps)]

    with pytest.raises(ConnectionError) as caught:
        make(clock, name="rates").call(fail)
    assert caught.value is errors[2]
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert caught.value.__notes__ == [
        "resilient: 'rates' gave up after 3 attempts, 2.5 s after the first failure: attempts=3"
    ]


async def test_asynchronous_last_exception_has_no_context(clock):
    """Attempts of a coroutine do not become each other's context either."""
    errors = [ConnectionError("first"), ConnectionError("second")]

    async def fail() -> None:
        raise errors[len(clock.sleeps)]

    with pytest.raises(ConnectionError) as caught:
        await make(clock, attempts=2).acall(fail)
    assert caught.value is errors[1]
    assert caught.value.__context__ is None


def test_note_does_not_pile_up_on_a_shared_instance(clock):
    """An instance that is raised again and again carries one note, and keeps those of others."""
    shared = ConnectionError("down")
    shared.add_note("see the runbook")
    for _ in range(5):
        with pytest.raises(ConnectionError):
            make(clock, name="rates").call(Flaky(shared))
    assert len(shared.__notes__) == 2
    assert shared.__notes__[0] == "see the runbook"


def test_nested_retries_leave_a_note_each(clock):
    """Each policy replaces its own note only."""
    inner, outer = make(clock, name="inner", attempts=2), make(clock, name="outer", attempts=2)
    with pytest.raises(ConnectionError) as caught:
        outer.call(inner(Flaky(ConnectionError("down"))))
    assert [note.split("'")[1] for note in caught.value.__notes__] == ["inner", "outer"]


def test_exception_that_takes_no_notes_is_raised_all_the_same(clock):
    """A class whose attributes cannot be set keeps its exception."""

    class FrozenError(ConnectionError):
        def __setattr__(self, name: str, value: object) -> None:
            raise AttributeError(name)

    with pytest.raises(FrozenError):
        make(clock).call(Flaky(FrozenError))


def test_failure_that_is_not_retried_passes_untouched(clock):
    """What `on` does not name is raised at once, without a note and without a wait."""
    flaky, retry = Flaky(ValueError("bad input")), make(clock)
    with pytest.raises(ValueError, match="bad input") as caught:
        retry.call(flaky)
    assert flaky.calls == 1
    assert not hasattr(caught.value, "__notes__")
    assert retry.stats().exhausted == 0


def test_final_failure_after_a_retry_says_so(clock):
    """A failure that is not worth a retry, after one that was, ends the call: noted, counted, announced."""
    retry = make(clock)
    with capture_events() as seen, pytest.raises(ValueError, match="bad input") as caught:
        retry.call(Flaky(ConnectionError("down"), ValueError("bad input")))
    assert "gave up after 2 attempts" in caught.value.__notes__[0]
    assert "not one to retry" in caught.value.__notes__[0]
    assert retry.stats().exhausted == 1
    assert seen.of(RetriesExhausted)[0].attempts == 2


@pytest.mark.parametrize("colour", ["function", "coroutine"])
def test_nothing_keeps_the_exceptions_alive(clock, colour):
    """No cycle holds on to an exception once the call has ended: none needs the garbage collector."""
    refs: list[weakref.ref[Exception]] = []

    def fail() -> None:
        exc = WeakError("down")
        refs.append(weakref.ref(exc))
        try:
            raise exc
        finally:
            del exc

    async def afail() -> None:
        fail()

    retry = make(clock)
    gc.disable()
    try:
        try:
            if colour == "function":
                retry.call(fail)
            else:
                _drive(retry.acall(afail))
        except ConnectionError:
            pass
        assert [ref() for ref in refs] == [None, None, None]
    finally:
        gc.enable()


def _drive(coroutine: Any) -> Any:
    """Run a coroutine that never really waits, without a loop."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("the coroutine waited")


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError])
def test_interrupts_are_never_retried(clock, interrupt):
    """What is no `Exception` passes through at once, whatever `on` says."""
    flaky = Flaky(interrupt())
    with pytest.raises(interrupt):
        make(clock, on=lambda exc: True).call(flaky)
    with pytest.raises(interrupt):
        make(clock, on=tenacity.retry_always).call(flaky)
    assert flaky.calls == 2


# wait=, stop=, before_sleep=


@pytest.mark.parametrize(
    ("wait", "sleeps"),
    [
        (2, [2.0, 2.0]),
        (0, [0.0, 0.0]),
        (0.25, [0.25, 0.25]),
        (timedelta(seconds=3), [3.0, 3.0]),
        (wait_fixed(1) + wait_fixed(2), [3.0, 3.0]),
        (tenacity.wait_exponential(multiplier=1), [1.0, 2.0]),
        (tenacity.wait_chain(wait_fixed(5), wait_fixed(7)), [5.0, 7.0]),
        (wait_fixed(1) + wait_full_jitter(random=lambda: 0.5), [1.05, 1.1]),
        (lambda state: state.attempt_number * 10, [10.0, 20.0]),
        (lambda state: -3, [0.0, 0.0]),
        (lambda state: float("nan"), [0.0, 0.0]),
    ],
)
def test_wait_takes_numbers_and_strategies(clock, wait, sleeps):
    """A number, a `timedelta`, any tenacity wait and any mix; never less than 0."""
    with pytest.raises(ConnectionError):
        make(clock, wait=wait).call(Flaky(ConnectionError))
    assert clock.sleeps == pytest.approx(sleeps)


def test_endless_wait_is_as_long_as_the_platform_allows(clock):
    """A wait beyond what a thread can wait is cut to that, and is no error."""
    with pytest.raises(ConnectionError):
        make(clock, wait=1e300, attempts=2).call(Flaky(ConnectionError))
    assert clock.sleeps == [threading.TIMEOUT_MAX]


@pytest.mark.parametrize(
    ("stop", "calls"),
    [
        (stop_after_attempt(2), 2),
        (stop_after_attempt(9) | stop_after_attempt(3), 3),
        (stop_after_attempt(2) & stop_after_attempt(4), 4),
        (stop_after_delay(2.5), 4),
        (stop_before_delay(2.5), 3),
        (tenacity.stop_never | stop_after_attempt(5), 5),
        (lambda state: state.attempt_number == 2, 2),
    ],
)
def test_stop_takes_strategies_and_mixes(clock, stop, calls):
    """Any tenacity stop and any mix ends it; its time counts from the first failure."""
    flaky = Flaky(ConnectionError)
    with pytest.raises(ConnectionError) as caught:
        make(clock, stop=stop, attempts=6).call(flaky)
    assert flaky.calls == calls
    assert "its stop strategy said so" in caught.value.__notes__[0]


def test_before_sleep_sees_tenacitys_state(clock, caplog):
    """`before_sleep` gets a `RetryCallState`: tenacity's own `before_sleep_log` works as it is."""
    states: list[Any] = []

    def note(state: tenacity.RetryCallState) -> None:
        assert state.outcome is not None
        states.append((state.attempt_number, state.outcome.exception(), state.upcoming_sleep, state.idle_for,
                       state.args, state.kwargs))  # fmt: skip

    exc = ConnectionError("down")

    def fetch(code: str, base: str = "EUR") -> None:
        raise exc

    with pytest.raises(ConnectionError):
        make(clock, before_sleep=note).call(fetch, "CHF", base="USD")
    assert states == [
        (1, exc, 1.0, 1.0, ("CHF",), {"base": "USD"}),
        (2, exc, 1.0, 2.0, ("CHF",), {"base": "USD"}),
    ]
    log = logging.getLogger("shop")
    with caplog.at_level(logging.INFO, "shop"), pytest.raises(ConnectionError):
        make(clock, before_sleep=before_sleep_log(log, logging.INFO))(fetch)("CHF")
    assert [record.message.split("fetch")[1] for record in caplog.records] == [
        " in 1 seconds as it raised ConnectionError: down."
    ] * 2


def test_interrupt_in_before_sleep_ends_the_call_and_refunds(clock):
    """It leaves the call, with the failure as context; the retry is given back."""

    def interrupt(state: object) -> None:
        raise KeyboardInterrupt

    retry = make(clock, before_sleep=interrupt)
    with pytest.raises(KeyboardInterrupt) as caught:
        retry.call(Flaky(ConnectionError("down")))
    assert isinstance(caught.value.__context__, ConnectionError)
    assert retry.budget.stats().retries == 0


def broken(_state: object) -> Any:
    """Fail, as a strategy of the user's may."""
    raise LookupError("a bug of the user's")


@pytest.mark.parametrize(
    ("options", "calls", "longest"),
    [
        ({"before_sleep": broken}, 3, 1.0),
        ({"wait": broken}, 3, 0.2),
        ({"wait": lambda state: "soon"}, 3, 0.2),
        ({"wait": lambda state: 10**400}, 3, 0.2),
        ({"stop": broken}, 1, 0.0),
    ],
)
def test_strategy_that_fails_never_hides_the_failure(clock, caplog, options, calls, longest):
    """A hook is passed over, a wait is the default one, a stop stops; each is logged."""
    flaky = Flaky(ConnectionError("down"))
    with pytest.raises(ConnectionError, match="down"):
        make(clock, **options).call(flaky)
    assert flaky.calls == calls
    assert len(clock.sleeps) == calls - 1
    assert all(wait <= longest for wait in clock.sleeps)
    assert [record.name for record in caplog.records] == ["resilient"] * max(1, calls - 1)
    assert all("failed" in record.message for record in caplog.records)


# Many at once


def test_threads_do_not_mix_their_calls():
    """Calls in eight threads each keep their own attempts; the totals add up."""
    retry = Retry(on=ConnectionError, attempts=3, wait=0, budget=None)
    wrong: list[Any] = []

    def work(number: int) -> None:
        for turn in range(200):
            flaky = Flaky(*[ConnectionError] * (turn % 3), (number, turn))
            if retry.call(flaky) != (number, turn) or flaky.calls != turn % 3 + 1:
                wrong.append((number, turn))

    with no_waiting(), _threads(8, work):
        pass
    assert wrong == []
    stats = retry.stats()
    each = [turn % 3 for turn in range(200)]
    assert (stats.calls, stats.retries) == (1600, 8 * sum(each))
    assert stats.recovered == 8 * sum(1 for retries in each if retries)


@contextmanager
def _threads(count: int, work: Callable[[int], None]) -> Iterator[None]:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    yield
    for thread in threads:
        thread.join()


async def test_tasks_do_not_mix_their_calls():
    """Calls in many tasks at once each keep their own attempts."""
    retry = Retry(on=ConnectionError, attempts=4, wait=0, budget=None)

    async def work(number: int) -> int:
        flaky = Flaky(*[ConnectionError] * (number % 4), number)

        @retry
        async def fetch() -> int:
            await asyncio.sleep(0)
            return int(flaky())

        return await fetch()

    assert await asyncio.gather(*map(work, range(40))) == list(range(40))
    assert retry.stats().retries == 10 * (1 + 2 + 3)


# Events, statistics, repr


def test_events_tell_each_retry_and_the_end(clock):
    """Each wait is an event, and so is giving up."""
    with capture_events() as seen, pytest.raises(ConnectionError):
        make(clock, name="rates").call(Flaky(ConnectionError("down")))
    text = "ConnectionError: down"
    assert seen == [
        RetryScheduled("rates", 1, 1.0, text),
        RetryScheduled("rates", 2, 1.0, text),
        RetriesExhausted("rates", 3, "attempts=3", text),
    ]


def test_repr_shows_live_state(clock):
    """`repr` shows the name and the counts."""
    retry = make(clock, name="rates")
    with pytest.raises(ConnectionError):
        retry.call(Flaky(ConnectionError))
    assert repr(retry) == "<Retry 'rates' 1 calls, 2 retries, 1 exhausted>"


# The rest of the wrappers' ways


async def test_single_attempt_is_final_in_every_form(clock):
    """With one attempt a result that will not do is returned, and a failure is raised, at once."""
    retry = make(clock, attempts=1, on_result=lambda answer: answer is None)

    async def fetch() -> None: ...

    assert retry.call(Flaky(None)) is None
    assert await retry.acall(fetch) is None
    assert retry.stats().exhausted == 2


async def test_asynchronous_failure_that_is_not_retried_passes_untouched(clock):
    """What `on` does not name is raised at once from a coroutine, too."""
    retry = make(clock)

    async def fetch() -> None:
        raise ValueError("bad input")

    with pytest.raises(ValueError, match="bad input") as caught:
        await retry.acall(fetch)
    assert not hasattr(caught.value, "__notes__")


def test_default_budget_shows_as_what_it_is():
    """The signature tells what a policy gets by default."""
    assert "budget: 'RetryBudget | _OwnBudget | None' = RetryBudget()" in str(inspect.signature(Retry))
