"""A circuit breaker set by hand, and what can be seen of it."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from datetime import timedelta

import pytest
from tests.policies.circuit_breaker_support import (
    DependencyError,
    answer,
    down,
    fail,
    maker,
    refused,
)

from resilient import CircuitBreaker, events
from resilient.testing import FakeClock, capture_events


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(1_000.0)


@pytest.fixture
def make(clock: FakeClock) -> Callable[..., CircuitBreaker]:
    return maker(clock)


class TestByHand:
    """Overrides."""

    def test_force_open_refuses_until_resumed(self, make, clock):
        """Then a probe decides."""
        breaker = make()
        breaker.force_open(reason="migration")
        clock.advance(86_400)
        refusal = refused(breaker)
        assert refusal.retry_after is None
        assert breaker.stats().override == "forced open"

        breaker.resume()
        assert breaker.current_state == "half-open"
        breaker.call(answer)
        assert breaker.current_state == "closed"

    def test_force_open_with_a_ttl_ends_by_itself(self, make, clock):
        """At the first call after it."""
        breaker = make()
        breaker.force_open(60)
        assert refused(breaker).retry_after == 60.0
        clock.advance(59)
        assert refused(breaker).retry_after == 1.0

        clock.advance(1)
        assert breaker.stats().override is None
        assert breaker.call(answer) == "fresh"
        assert breaker.current_state == "closed"

    def test_force_closed_never_opens_but_counts(self, make):
        """Until resumed: then the rules hold again, from the next call on."""
        breaker = make()
        breaker.force_closed(reason="load test")
        fail(breaker, 10)
        assert (breaker.current_state, breaker.stats().failures) == ("closed", 10)

        breaker.resume()
        fail(breaker)
        assert breaker.current_state == "open"

    def test_force_closed_closes_what_is_open(self, make):
        """At once."""
        breaker = make()
        fail(breaker, 2)
        breaker.force_closed()

        assert breaker.call(answer) == "fresh"

    def test_verdict_in_seconds_does_not_open_what_is_forced_closed(self, make):
        """Never is never."""
        breaker = make(on=lambda exc: 60.0)
        breaker.force_closed()
        fail(breaker, 3)

        assert breaker.current_state == "closed"

    def test_force_closed_with_a_ttl_ends_for_good_calls_too(self, make, clock):
        """The window says "open", and the next call, even a good one, finds that it may."""
        breaker = make(failure_ratio=0.5, min_calls=2)
        breaker.force_closed(5)
        fail(breaker, 4)
        clock.advance(5)

        assert breaker.call(answer) == "fresh"
        assert breaker.current_state == "open"

    def test_end_of_a_ttl_is_announced_at_the_next_call(self, make, clock):
        """Also when all is well and calls take the shortest way."""
        breaker = make()
        breaker.force_closed(5)
        clock.advance(5)
        with capture_events() as captured:
            assert "forced" not in repr(breaker)
            assert not captured
            breaker.call(answer)

        assert captured == [events.CircuitResumed("rates", "forced closed")]

    def test_observe_only_counts_and_changes_state_but_refuses_nothing(self, make, clock):
        """A dry run: what would have been refused is counted."""
        breaker = make(reset_timeout=10)
        breaker.observe_only()
        fail(breaker, 2)
        assert breaker.current_state == "open"
        for _ in range(3):
            assert breaker.call(answer) == "fresh"
        assert (breaker.stats().unenforced, breaker.stats().rejected) == (3, 0)

        clock.advance(10)
        breaker.call(answer)
        assert breaker.current_state == "closed"

    def test_observe_only_with_a_ttl_ends_by_itself(self, make, clock):
        """From then on it refuses."""
        breaker = make(reset_timeout=100)
        breaker.observe_only(timedelta(seconds=10))
        fail(breaker, 2)
        clock.advance(10)

        refused(breaker)

    def test_observing_what_was_forced_open_lets_a_probe_decide(self, make):
        """There is no open period to observe."""
        breaker = make()
        breaker.force_open()
        breaker.observe_only()
        assert breaker.current_state == "half-open"

        breaker.call(answer)
        assert breaker.current_state == "closed"

    def test_last_override_holds(self, make):
        """They replace each other."""
        breaker = make()
        breaker.force_open()
        breaker.force_closed()
        assert breaker.call(answer) == "fresh"
        breaker.force_open()
        refused(breaker)

    @pytest.mark.parametrize("word", ["open", "half_open", "close"])
    def test_pybreakers_words_end_an_override(self, make, word):
        """The last word holds."""
        breaker = make()
        breaker.force_open()
        getattr(breaker, word)()

        assert breaker.stats().override is None
        assert breaker.current_state == {"open": "open", "half_open": "half-open", "close": "closed"}[word]

    def test_resume_without_an_override_changes_nothing(self, make):
        """Calling it twice is no mistake."""
        breaker = make()
        fail(breaker, 2)
        with capture_events() as captured:
            breaker.resume()

        assert (breaker.current_state, captured) == ("open", [])

    @pytest.mark.parametrize("method", ["force_open", "force_closed", "observe_only"])
    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"for_": 0}, ValueError, "for_ must be greater than 0, got 0"),
            ({"for_": -1}, ValueError, "for_ must be greater than 0, got -1"),
            ({"for_": math.nan}, ValueError, "for_ must be .* finite, got nan"),
            ({"for_": math.inf}, ValueError, "for_ must be .* finite, got inf"),
            ({"for_": True}, TypeError, "for_ must be a number of seconds or a timedelta, got True"),
            ({"for_": "10m"}, TypeError, "for_ must be a number of seconds or a timedelta, got '10m'"),
            ({"reason": ""}, ValueError, "reason must not be empty, got ''"),
            ({"reason": 5}, TypeError, "reason must be text, got 5"),
        ],
    )
    def test_bad_arguments_change_nothing(self, make, method, arguments, error, message):
        """They name parameter, rule and value."""
        breaker = make()
        with pytest.raises(error, match=message):
            getattr(breaker, method)(**arguments)

        assert breaker.stats().override is None


class TestFallback:
    """`fallback=`."""

    def test_it_answers_for_refusals_and_failures(self, make):
        """A value, whatever went wrong; and it is no success."""
        breaker = make(fallback="stale")
        guarded = breaker(down)

        assert [guarded() for _ in range(3)] == ["stale"] * 3
        assert breaker.current_state == "open"
        assert (breaker.stats().failures, breaker.stats().rejected) == (2, 1)

    def test_it_does_not_answer_for_what_is_ignored(self, make):
        """A business exception is an answer."""
        breaker = make(fallback="stale", exclude=KeyError)

        with pytest.raises(KeyError):
            breaker(dict().__getitem__)("missing")

    def test_it_gets_the_exception_and_the_arguments(self, make):
        """To do something with them."""
        breaker = make(fallback=lambda exc, currency: (str(exc), currency))

        assert breaker(down)("GBP") == ("GBP", "GBP")

    async def test_it_serves_coroutines(self, make):
        """The same object."""
        breaker = make(fallback="stale")

        @breaker
        async def fetch() -> str:
            raise DependencyError

        assert [await fetch() for _ in range(3)] == ["stale"] * 3


class TestWhatIsSeen:
    """stats(), repr() and events."""

    def test_stats_in_every_state(self, make, clock):
        """Everything it counts, as it goes through its states."""
        breaker = make(
            failure_ratio=0.5, fail_max=3, min_calls=10, slow_after=5.0, reset_timeout=10, exclude=KeyError
        )
        breaker.call(answer)
        breaker.call(clock.advance, 6.0)
        with pytest.raises(KeyError), breaker.calling():
            raise KeyError
        with pytest.raises(asyncio.CancelledError), breaker.calling():
            raise asyncio.CancelledError
        fail(breaker, 2)
        closed = breaker.stats()
        late = breaker.calling()
        late.__enter__()
        fail(breaker)
        refused(breaker)
        late.__exit__(None, None, None)
        clock.advance(4)
        opened = breaker.stats()
        clock.advance(6)
        with breaker.calling():
            half_open = breaker.stats()

        assert (closed.state, closed.override, closed.calls, closed.failures, closed.slow) == (
            "closed",
            None,
            4,
            2,
            1,
        )
        assert (closed.window_calls, closed.failure_ratio, closed.slow_ratio) == (4, 0.5, 0.25)
        assert (closed.ignored, closed.abandoned, closed.consecutive_failures) == (1, 1, 2)
        assert (closed.opened_for, closed.times_opened) == (0.0, 0)
        assert (opened.state, opened.opened_for, opened.times_opened) == ("open", 4.0, 1)
        assert (opened.rejected, opened.stale, opened.last_failure) == (1, 1, "DependencyError: down")
        assert (half_open.state, half_open.opened_for) == ("half-open", 0.0)
        assert breaker.stats().state == "closed"

    def test_stats_are_frozen(self, make):
        """What was read stays what it was."""
        with pytest.raises(AttributeError):
            make().stats().calls = 5

    def test_looking_changes_nothing(self, make, clock):
        """Reading statistics is no call: state and overrides stay."""
        breaker = make(reset_timeout=1)
        breaker.force_open(1)
        clock.advance(100)
        with capture_events() as captured:
            for _ in range(3):
                breaker.stats()
                repr(breaker)

        assert breaker.current_state == "open"
        assert not captured

    def test_repr_shows_live_state(self, make):
        """Name, state, override, what speaks for opening, refusals."""
        breaker = make(failure_ratio=0.5, min_calls=4)
        breaker.call(answer)
        fail(breaker)
        assert repr(breaker) == "<CircuitBreaker 'rates' closed, 50% of 2 calls failed, 0 rejected>"

        breaker.force_open()
        refused(breaker)
        expected = "<CircuitBreaker 'rates' open (forced open), 50% of 2 calls failed, 1 rejected>"
        assert repr(breaker) == expected
        breaker.resume()
        assert "half-open," in repr(breaker)

    def test_repr_of_the_consecutive_rule(self, make):
        """There is no window to speak of."""
        breaker = make(fail_max=5)
        fail(breaker, 2)

        assert repr(breaker) == "<CircuitBreaker 'rates' closed, 2 of 5 failures in a row, 0 rejected>"

    def test_events_tell_every_change(self, make, clock):
        """In order, with what there is to know."""
        breaker = make(reset_timeout=lambda times: 10.0 * times)
        with capture_events() as captured:
            fail(breaker, 2)
            clock.advance(10)
            fail(breaker)
            clock.advance(20)
            breaker.call(answer)
            breaker.force_open(5, reason="migration")
            breaker.resume()
            breaker.close()
            breaker.open()
            breaker.half_open()

        assert captured == [
            events.CircuitOpened("rates", "2 failures in a row", 10.0, 1),
            events.CircuitHalfOpened("rates"),
            events.CircuitOpened("rates", "a probe failed: DependencyError: down", 20.0, 2),
            events.CircuitHalfOpened("rates"),
            events.CircuitClosed("rates"),
            events.CircuitOverridden("rates", "forced open", 5.0, "migration"),
            events.CircuitResumed("rates", "forced open"),
            events.CircuitHalfOpened("rates"),
            events.CircuitClosed("rates"),
            events.CircuitOpened("rates", "opened by hand", 10.0, 1),
            events.CircuitHalfOpened("rates"),
        ]

    @pytest.mark.parametrize(
        ("settings", "reason"),
        [
            ({"failure_ratio": 0.5, "min_calls": 2}, "2 of 2 calls failed"),
            ({"failure_ratio": None, "slow_after": 1.0, "min_calls": 2}, "2 of 2 calls were slow"),
            ({"fail_max": 2}, "2 failures in a row"),
            ({"on": lambda exc: 60.0}, "told to by DependencyError: down"),
        ],
    )
    def test_events_say_which_rule_opened_it(self, make, clock, settings, reason):
        """To know what to look at first."""
        breaker = make(**settings)

        def slow_and_down() -> None:
            clock.advance(2)
            down()

        with capture_events() as captured:
            while breaker.current_state == "closed":
                with pytest.raises(DependencyError):
                    breaker.call(slow_and_down)

        assert [event.reason for event in captured.of(events.CircuitOpened)] == [reason]

    def test_listeners_hear_what_happens_from_the_constructor_on(self, clock):
        """Functions of an event, beside pybreaker's listeners."""
        heard: list[events.Event] = []
        breaker = CircuitBreaker("b", fail_max=1, listeners=[heard.append], clock=clock)
        fail(breaker)
        breaker.remove_listener(heard.append)
        breaker.close()

        assert [type(event) for event in heard] == [events.CircuitOpened]

    def test_listener_sees_the_state_committed(self, make):
        """It runs after the change, and without the lock."""
        breaker = make(fail_max=1)
        seen = []
        breaker.add_listener(lambda event: seen.append((breaker.current_state, breaker.stats().state)))
        fail(breaker)

        assert seen == [("open", "open")]

    def test_listener_that_raises_is_reported_once_and_breaks_nothing(self, make, caplog):
        """Not the call, not the others."""
        breaker, heard = make(fail_max=1), []

        def faulty(event: events.Event) -> None:
            raise RuntimeError("listener")

        breaker.add_listener(faulty)
        breaker.add_listener(heard.append)
        for _ in range(3):
            fail(breaker)
            breaker.close()

        assert len(heard) == 6
        assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1

    def test_listener_may_act_on_the_breaker(self, make):
        """What it does is announced after what it heard; no recursion, no deadlock."""
        breaker, heard = make(fail_max=1), []
        breaker.add_listener(lambda event: isinstance(event, events.CircuitOpened) and breaker.force_closed())
        breaker.add_listener(lambda event: heard.append(type(event)))
        fail(breaker)

        assert breaker.call(answer) == "fresh"
        assert heard == [events.CircuitOpened, events.CircuitClosed, events.CircuitOverridden]

    def test_refusals_are_counted_not_announced(self, make):
        """A thousand refusals are one fact."""
        breaker = make()
        fail(breaker, 2)
        with capture_events() as captured:
            for _ in range(100):
                refused(breaker)

        assert not captured
