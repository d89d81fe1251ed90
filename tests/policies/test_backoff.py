"""The wait and stop strategies: ranges, jitter, `Retry-After`, and use in plain tenacity."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tenacity import (
    AsyncRetrying,
    Future,
    RetryCallState,
    Retrying,
    stop_after_attempt,
    wait_fixed,
    wait_random,
)
from tenacity.stop import stop_base
from tenacity.wait import wait_base

from resilient import (
    CircuitOpenError,
    Retry,
    deadline,
    stop_at_deadline,
    wait_decorrelated_jitter,
    wait_equal_jitter,
    wait_full_jitter,
    wait_retry_after,
)
from resilient.policies.backoff import longest_waits, retry_after_of
from resilient.testing import FakeClock

JITTERS = [wait_full_jitter, wait_equal_jitter, wait_decorrelated_jitter]
HIGHEST = math.nextafter(1.0, 0.0)  # the highest draw `random.random` makes


def state(attempt: int = 1, *, before: float = 0.0) -> RetryCallState:
    """Return the state of a call after attempt number *attempt*, which had waited *before* seconds."""
    made = RetryCallState(None, None, (), {})  # type: ignore[arg-type]  # strategies need no controller
    made.attempt_number = attempt
    made.upcoming_sleep = before
    return made


def after(outcome: Any, *, failed: bool = True) -> RetryCallState:
    """Return the state of a call whose first attempt ended in *outcome*."""
    made = state()
    made.outcome = Future.construct(1, outcome, has_exception=failed)
    return made


def error(**attributes: Any) -> Exception:
    """Return an exception with *attributes*."""
    exc = ConnectionError("unavailable")
    exc.__dict__.update(attributes)
    return exc


durations = st.floats(min_value=1e-3, max_value=1e6)


@given(
    attempt=st.integers(1, 5000),
    initial=durations,
    factor=st.floats(1.0, 100.0),
    cap=durations,
    draw=st.floats(0.0, HIGHEST),
)
def test_full_jitter_lies_between_0_and_the_capped_bound(attempt, initial, factor, cap, draw):
    """Full jitter is uniform below min(max, initial x factor^(n-1)), whatever the attempt."""
    wait = wait_full_jitter(initial, factor, cap, random=lambda: draw)(state(attempt))
    exponent = math.log(initial) + (attempt - 1) * math.log(factor)
    bound = cap if exponent >= math.log(cap) else math.exp(exponent)
    assert wait == pytest.approx(bound * draw, rel=1e-6)


@given(attempt=st.integers(1, 5000), initial=durations, cap=durations, draw=st.floats(0.0, HIGHEST))
def test_equal_jitter_lies_in_the_upper_half(attempt, initial, cap, draw):
    """Equal jitter waits at least half of the bound, and at most all of it."""
    bound = wait_full_jitter(initial, 2.0, cap, random=lambda: 1.0)(state(attempt))
    wait = wait_equal_jitter(initial, 2.0, cap, random=lambda: draw)(state(attempt))
    assert bound / 2 <= wait <= bound


@given(
    before=st.floats(0.0, 1e7),
    initial=durations,
    factor=st.floats(1.0, 10.0),
    cap=durations,
    draw=st.floats(0.0, HIGHEST),
)
def test_decorrelated_jitter_lies_between_initial_and_thrice_the_wait_before(
    before, initial, factor, cap, draw
):
    """Decorrelated jitter is uniform between `initial` and `factor` times the wait before, below the cap."""
    wait = wait_decorrelated_jitter(initial, factor, cap, random=lambda: draw)(state(2, before=before))
    assert min(initial, cap) <= wait <= min(cap, max(before, initial) * factor)


@pytest.mark.parametrize("jitter", JITTERS)
def test_no_two_clients_are_in_sync_at_the_cap(jitter):
    """Jitter comes after the cap: late in an outage nobody waits exactly the cap, and all differ."""
    strategy = jitter(initial=0.1, max=10.0, random=random.Random(7).random)
    waits = [strategy(state(30, before=10.0)) for _ in range(20_000)]
    assert waits.count(10.0) == 0
    assert len(set(waits)) == len(waits)


@pytest.mark.parametrize(
    ("jitter", "low", "mean"),
    [(wait_full_jitter, 0.0, 5.0), (wait_equal_jitter, 5.0, 7.5), (wait_decorrelated_jitter, 0.1, 5.05)],
)
def test_draws_at_the_cap_fill_the_range_evenly(jitter, low, mean):
    """At the cap, the draws are uniform: their mean and quartiles are those of a uniform distribution."""
    strategy = jitter(initial=0.1, max=10.0, random=random.Random(11).random)
    waits = sorted(strategy(state(30, before=10.0)) for _ in range(20_000))
    assert sum(waits) / len(waits) == pytest.approx(mean, abs=0.1)
    for share in (0.25, 0.5, 0.75):
        assert waits[int(share * len(waits))] == pytest.approx(low + share * (10.0 - low), abs=0.15)


@pytest.mark.parametrize("factor", [1.01, 1.5, 2.0, 1e100])
@pytest.mark.parametrize("jitter", [wait_full_jitter, wait_equal_jitter])
def test_bound_reaches_the_cap_without_overflow(jitter, factor):
    """Attempt 5000 is at the cap for every factor above 1: no overflow, and no exponent cut short."""
    assert jitter(0.1, factor, 60.0, random=lambda: 1.0)(state(5000)) == 60.0


def test_defaults_are_those_documented():
    """The default back-off is 0.1 s, doubling, capped at 10 s; decorrelated grows threefold."""
    bounds = [wait_full_jitter(random=lambda: 1.0)(state(attempt)) for attempt in range(1, 10)]
    assert bounds == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
    assert repr(wait_full_jitter()) == "wait_full_jitter(initial=0.1, factor=2, max=10)"
    assert wait_decorrelated_jitter(random=lambda: 1.0)(state()) == pytest.approx(0.3)


@pytest.mark.parametrize(
    "strategy", [*(jitter() for jitter in JITTERS), wait_retry_after(), stop_at_deadline()]
)
def test_strategies_are_tenacitys_own_kind(strategy):
    """Each strategy is an ordinary tenacity strategy."""
    assert isinstance(strategy, wait_base | stop_base)


@pytest.mark.parametrize("jitter", JITTERS)
def test_strategies_mix_by_plus(jitter):
    """A mix with tenacity's own waits is their sum."""
    mixed = wait_fixed(5) + jitter(random=lambda: 0.0) + wait_random(1, 1)
    assert 6.0 <= mixed(state()) <= 6.1


@pytest.mark.parametrize("jitter", JITTERS)
def test_plain_tenacity_retries_with_our_waits(jitter):
    """`tenacity.Retrying` takes our waits as they are."""
    clock = FakeClock()
    attempts: list[int] = []
    retrying = Retrying(wait=jitter(), stop=stop_after_attempt(5), sleep=clock.sleep, reraise=True)
    with pytest.raises(ConnectionError):
        retrying(lambda: attempts.append(1) or _fail())
    assert len(attempts) == 5
    assert len(clock.sleeps) == 4
    assert all(0.0 <= wait <= 10.0 for wait in clock.sleeps)


async def test_asynchronous_tenacity_retries_with_our_strategies():
    """`tenacity.AsyncRetrying` takes our waits and our stop as they are."""
    clock = FakeClock()
    attempts: list[int] = []

    async def sleep(seconds: float) -> None:
        clock.sleep(seconds)

    async def fail() -> None:
        attempts.append(1)
        _fail()

    with deadline(10.0, clock=clock):
        retrying = AsyncRetrying(
            wait=wait_retry_after(wait_fixed(4.0)), stop=stop_at_deadline(), sleep=sleep, reraise=True
        )
        with pytest.raises(ConnectionError):
            await retrying(fail)
    assert len(attempts) == 3
    assert clock.sleeps == [4.0, 4.0]


def _fail() -> None:
    raise ConnectionError("down")


def test_decorrelated_jitter_reads_the_wait_before_from_tenacity():
    """In plain tenacity, each bound is three times the wait before."""
    clock = FakeClock()
    wait = wait_decorrelated_jitter(1.0, max=20.0, random=lambda: 1.0)
    with pytest.raises(ConnectionError):
        Retrying(wait=wait, stop=stop_after_attempt(5), sleep=clock.sleep, reraise=True)(_fail)
    assert clock.sleeps == [3.0, 9.0, 20.0, 20.0]


@given(st.sampled_from(JITTERS), st.integers(0, 200), st.floats(0.001, 20.0), st.floats(0.001, 100.0))
def test_longest_total_bounds_every_sum_of_waits(jitter, waits, initial, cap):
    """What lint reckons with is the sum when every draw is the highest."""
    strategy = jitter(initial=initial, max=cap, random=lambda: HIGHEST)
    total, before = 0.0, 0.0
    for attempt in range(1, waits + 1):
        before = strategy(state(attempt, before=before))
        total += before
    longest = longest_waits(strategy, waits)
    assert longest is not None
    assert total <= longest * (1 + 1e-9)
    assert total == pytest.approx(longest, rel=1e-3)


def test_longest_total_of_other_waits():
    """A fixed wait is as long as it is; of a strategy that is not known nothing is said."""
    assert longest_waits(wait_fixed(2), 3) == 6.0
    assert longest_waits(wait_random(0, 1), 3) is None


# Retry-After


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        (error(retry_after=5), 5.0),
        (error(retry_after=2.5), 2.5),
        (error(retry_after="7"), 7.0),
        (error(retry_after=timedelta(minutes=1)), 60.0),
        (error(retry_after=0), 0.0),
        (error(headers={"Retry-After": "3"}), 3.0),
        (error(headers={"retry-after": " 3.5 "}), 3.5),
        (error(headers={"Retry-After": b"11"}), 11.0),
        (error(response=SimpleNamespace(headers={"Retry-After": "13"})), 13.0),
        (error(response=SimpleNamespace(retry_after=17)), 17.0),
        (SimpleNamespace(headers={"Retry-After": "19"}), 19.0),
        (CircuitOpenError("open", policy="rates", retry_after=23.0), 23.0),
    ],
)
def test_retry_after_is_found(subject, expected):
    """The wait is on the exception, in its headers, on its response, or in the response's headers."""
    assert retry_after_of(subject) == expected


@pytest.mark.parametrize(
    "value",
    [
        None, "", "soon", "-5", -5, -0.1, "1e3", "5 seconds", "0x10", "٣", math.nan, math.inf, -math.inf, [],
        True, "nan", "inf", "..", ".", b"\xff\xfe", "Wed, 99 Foo 2026 25:61:61 GMT", "9" * 400, {}, object(),
        "Mon, 01 Jan 0001 00:00:00 +2359",
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_not_there(value):
    """A broken header or attribute never becomes an error and never a wait below 0."""
    for subject in (error(retry_after=value), error(headers={"Retry-After": value})):
        asked = retry_after_of(subject)
        assert asked is None or asked >= 0.0


@pytest.mark.parametrize("value", ["-5", -5, "soon", math.nan, math.inf, True, "5 seconds"])
def test_garbage_is_no_wait(value):
    """What is no number of seconds and no date is as if it were missing."""
    assert retry_after_of(error(retry_after=value)) is None


@given(st.text() | st.binary() | st.floats() | st.integers() | st.datetimes().map(format_datetime))
def test_no_header_raises(value):
    """Whatever a server sends, the answer is None or a number of seconds that is finite and not negative."""
    asked = retry_after_of(error(headers={"Retry-After": value}))
    assert asked is None or (0.0 <= asked < math.inf)


NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("Fri, 20 Nov 2026 12:01:30 GMT", 90.0),
        ("Friday, 20-Nov-26 12:01:30 GMT", 90.0),
        ("Fri Nov 20 12:01:30 2026", 90.0),
        ("Fri, 20 Nov 2026 13:01:30 +0100", 90.0),
        ("Fri, 20 Nov 2026 11:59:00 GMT", 0.0),
    ],
)
def test_http_dates_are_read(header, expected):
    """All three date formats of RFC 9110 count from the wall clock; a date in the past is now."""
    assert retry_after_of(error(headers={"Retry-After": header}), NOW.timestamp) == expected


class MoodyError(Exception):
    """An exception whose properties raise, as httpx's do before there is a request."""

    @property
    def response(self) -> Any:
        raise RuntimeError("the response has not been set")

    retry_after = headers = response


def test_whole_number_beyond_all_floats_is_a_long_wait():
    """It is a wait that nobody waits for, and no error in place of the call's."""
    assert retry_after_of(SimpleNamespace(retry_after=10**400)) == sys.float_info.max
    assert retry_after_of(SimpleNamespace(headers={"Retry-After": 10**400})) == sys.float_info.max
    clock = FakeClock()
    failure = ConnectionError("busy")
    failure.retry_after = 10**400
    with pytest.raises(ConnectionError, match="busy"):
        Retry(on=ConnectionError, clock=clock, sleep=clock.sleep).call(_raise, failure)
    assert "asked to wait" in failure.__notes__[0]
    assert clock.sleeps == []


def _raise(exc: Exception) -> None:
    raise exc


def test_answer_that_cannot_be_read_is_not_there():
    """Whatever sort of number it claims to be."""

    class Odd(float):
        def __ge__(self, _other: object) -> bool:
            raise LookupError

        __le__ = __ge__

    assert retry_after_of(SimpleNamespace(retry_after=Odd(5))) is None


def test_properties_that_raise_are_not_there():
    """A property of somebody else's that raises does not take the failure's place."""
    assert retry_after_of(MoodyError()) is None
    assert retry_after_of(error(headers=SimpleNamespace(get=_fail))) is None


def test_wait_retry_after_takes_the_longer_one():
    """The server's word is a floor: the other strategy counts where it is longer, or where there is none."""
    wait = wait_retry_after(wait_fixed(4.0))
    assert wait(after(error(retry_after=9))) == 9.0
    assert wait(after(error(retry_after=1))) == 4.0
    assert wait(after(error())) == 4.0
    assert wait(state()) == 4.0
    assert wait_retry_after()(after(error())) == 0.0


def test_wait_retry_after_is_capped_and_reads_results():
    """A server may not ask for more than `max`; a result that is a response is looked at too."""
    assert wait_retry_after(max=30)(after(error(retry_after=31))) == 30.0
    assert wait_retry_after()(after(error(retry_after=1e9))) == 3600.0
    assert wait_retry_after()(after(SimpleNamespace(headers={"Retry-After": "6"}), failed=False)) == 6.0


# stop_at_deadline


def test_stop_at_deadline_stops_before_a_wait_that_cannot_be_followed():
    """It stops as soon as the wait, and what the attempt should have, would reach the deadline."""
    clock = FakeClock()
    with deadline(10.0, clock=clock):
        assert not stop_at_deadline()(state(before=9.9))
        assert stop_at_deadline()(state(before=10.0))
        assert not stop_at_deadline(reserve=2.0)(state(before=7.9))
        assert stop_at_deadline(reserve=2.0)(state(before=8.0))
        clock.advance(9.0)
        assert stop_at_deadline()(state(before=1.0))
    assert not stop_at_deadline()(state(before=1e9))


# Bad arguments

BAD_SECONDS: list[tuple[Any, type[Exception]]] = [
    ("1", TypeError), (None, TypeError), (True, TypeError), (math.nan, ValueError), (math.inf, ValueError),
    (-1, ValueError), (0, ValueError), (timedelta(0), ValueError), (10**400, ValueError),
]  # fmt: skip


@pytest.mark.parametrize(("value", "kind"), BAD_SECONDS)
@pytest.mark.parametrize("parameter", ["initial", "max"])
@pytest.mark.parametrize("strategy", JITTERS)
def test_bad_durations_are_refused(strategy, parameter, value, kind):
    """The message names the parameter and the value."""
    with pytest.raises(kind, match=rf"^{parameter} must be .*, got "):
        strategy(**{parameter: value})


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: wait_full_jitter(factor=0.99), ValueError, "factor must be at least 1, got 0.99"),
        (
            lambda: wait_full_jitter(factor=math.nan),
            ValueError,
            "factor must be a number that is finite, got nan",
        ),
        (lambda: wait_full_jitter(factor="2"), TypeError, "factor must be a number, got '2'"),
        (lambda: wait_full_jitter(random=0.5), TypeError, "random must be callable, got 0.5"),
        (lambda: wait_retry_after(5), TypeError, "otherwise must be callable, got 5"),
        (
            lambda: wait_retry_after(wait_fixed),
            TypeError,
            "otherwise must be an instance or a function, not a class",
        ),
        (lambda: wait_retry_after(max=0), ValueError, "max must be greater than 0, got 0"),
        (lambda: stop_at_deadline(-1), ValueError, "reserve must be at least 0, got -1"),
        (
            lambda: stop_at_deadline("1"),
            TypeError,
            "reserve must be a number of seconds or a timedelta, got '1'",
        ),
    ],
)
def test_bad_arguments_are_refused(make: Callable[[], object], kind, message):
    """Every constructor names parameter, rule and value."""
    with pytest.raises(kind) as caught:
        make()
    assert message in str(caught.value)


def test_timedelta_is_a_duration():
    """Durations may be given as `timedelta`."""
    assert wait_full_jitter(timedelta(milliseconds=500), random=lambda: 1.0)(state()) == 0.5
