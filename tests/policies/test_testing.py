"""`resilient.testing`: the clock, waits that take no time, captured events, and descriptions."""

from __future__ import annotations

import math
import threading
import time
from datetime import timedelta
from typing import Any

import pytest

from resilient import CircuitBreaker, Fallback, Pipeline, Retry, Timeout, events, wait_full_jitter
from resilient.events import FallbackUsed, RetriesExhausted, RetryScheduled
from resilient.testing import FakeClock, capture_events, describe, no_waiting


def fail() -> None:
    """Fail."""
    raise ConnectionError("down")


# FakeClock


def test_clock_stands_still_until_told():
    """It shows where it started, and moves by what it is told."""
    clock = FakeClock(5.0)
    assert (clock(), clock()) == (5.0, 5.0)
    clock.advance(2.5)
    clock.advance(timedelta(seconds=1))
    clock.advance(0)
    assert clock() == 8.5
    assert clock.sleeps == []
    assert repr(clock) == "<FakeClock 8.5>"


def test_sleeping_moves_the_clock_and_is_noted():
    """A wait takes no time, moves the clock, and can be looked up."""
    clock = FakeClock()
    for seconds in (1.5, 0.0, -2.0):
        clock.sleep(seconds)
    assert clock() == 1.5
    assert clock.sleeps == [1.5, 0.0, -2.0]


async def test_clock_sleeps_in_both_colours():
    """One clock serves as `clock=` and `sleep=` of synchronous and asynchronous policies."""
    clock = FakeClock()
    retry = Retry(on=OSError, attempts=2, wait=3, clock=clock, sleep=clock.sleep)

    async def afail() -> None:
        fail()

    with pytest.raises(ConnectionError):
        retry.call(fail)
    with pytest.raises(ConnectionError):
        await retry.acall(afail)
    assert clock.sleeps == [3.0, 3.0]
    assert clock() == 6.0


def test_clock_loses_no_step_between_threads():
    """Steps from several threads at once add up."""
    clock = FakeClock()
    threads = [threading.Thread(target=lambda: [clock.advance(1) for _ in range(500)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clock() == 2000.0


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        (lambda: FakeClock("now"), TypeError, "start must be a number, got 'now'"),  # type: ignore[arg-type]
        (lambda: FakeClock(math.nan), ValueError, "start must be a number that is finite, got nan"),
        (lambda: FakeClock().advance(-1), ValueError, "seconds must be at least 0, got -1"),
        (lambda: FakeClock().advance("1"), TypeError, "seconds must be a number of seconds"),  # type: ignore[arg-type]
    ],
)
def test_bad_arguments_are_refused(wrong, kind, message):
    """Time is a number that is finite and never goes back."""
    with pytest.raises(kind) as caught:
        wrong()
    assert message in str(caught.value)


# no_waiting


async def test_no_waiting_takes_the_waits_away():
    """Inside the block retries follow each other at once; attempts stay as they are."""
    calls: list[int] = []
    retry = Retry(on=OSError, attempts=4, wait=30)

    def count() -> None:
        calls.append(1)
        fail()

    async def acount() -> None:
        count()

    begun = time.monotonic()
    with no_waiting():
        with no_waiting(), pytest.raises(ConnectionError):
            retry.call(count)
        with pytest.raises(ConnectionError):
            await retry.acall(acount)
    assert len(calls) == 8
    assert time.monotonic() - begun < 5.0


def test_waits_come_back_after_the_block():
    """After the block, an exception out of it included, waits are real again."""
    with pytest.raises(ConnectionError), no_waiting():
        fail()
    begun = time.monotonic()
    with pytest.raises(ConnectionError):
        Retry(on=OSError, attempts=2, wait=0.02).call(fail)
    assert time.monotonic() - begun >= 0.02


# capture_events


def test_events_are_captured_in_order_and_by_kind():
    """The list fills while the block runs, with what happens in other threads too, and then no more."""
    policy = Pipeline(Fallback("answer"), Retry(on=OSError, attempts=2, wait=0))
    with capture_events() as seen:
        policy.call(fail)
        thread = threading.Thread(target=policy.call, args=(fail,))
        thread.start()
        thread.join()
    policy.call(fail)
    assert [type(event) for event in seen] == [RetryScheduled, RetriesExhausted, FallbackUsed] * 2
    assert [event.wait for event in seen.of(RetryScheduled)] == [0.0, 0.0]
    assert len(seen.of(events.Event)) == 6


def test_captures_nest():
    """Each block has its own list, and the inner one ends alone."""
    fallback = Fallback("answer")
    with capture_events() as outer:
        with capture_events() as inner:
            fallback.call(fail)
        fallback.call(fail)
    assert (len(outer), len(inner)) == (2, 1)


# describe


class Schedule:
    """A `reset_timeout` that cannot be copied, as objects with locks cannot."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __call__(self, times_opened: int) -> float:
        return 30.0


def test_describe_lists_policies_with_their_settings():
    """Kind, name and settings of each policy, outermost first; settings are not copied."""
    schedule = Schedule()
    wait = wait_full_jitter()
    layers: list[dict[str, Any]] = describe(
        Pipeline(
            Retry(on=OSError, attempts=5, wait=wait, timeout=9, name="again"),
            CircuitBreaker("rates", reset_timeout=schedule),
            Timeout(2, name="attempt"),
        )
    )
    assert layers[0] == {"kind": "Retry", "name": "again", "attempts": 5, "wait": wait, "timeout": 9.0}
    assert (layers[1]["kind"], layers[1]["name"], layers[1]["min_calls"]) == ("CircuitBreaker", "rates", 10)
    assert layers[1]["reset_timeout"] is schedule
    assert layers[2] == {"kind": "Timeout", "name": "attempt", "seconds": 2.0}


def test_describe_reads_a_guarded_function():
    """A function tells the policies it is under; one that is under none tells nothing."""
    guarded = Retry(on=OSError)(Timeout(5)(fail))
    assert [layer["kind"] for layer in describe(guarded)] == ["Retry", "Timeout"]
    assert [layer["kind"] for layer in describe(Timeout(5))] == ["Timeout"]
    assert describe(fail) == []
