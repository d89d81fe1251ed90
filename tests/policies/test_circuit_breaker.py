"""When a circuit breaker opens, whom it refuses, how it closes again."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable

import pytest
from tests.policies.circuit_breaker_support import (
    DependencyError,
    answer,
    down,
    fail,
    in_context,
    is_let_in,
    maker,
    outside_the_probe,
    refused,
    traceback_depth,
)

from resilient import BulkheadFullError, Calls, CircuitBreaker, CircuitOpenError
from resilient.testing import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(1_000.0)


@pytest.fixture
def make(clock: FakeClock) -> Callable[..., CircuitBreaker]:
    return maker(clock)


class TestOpening:
    """Closed -> open."""

    def test_calls_go_through_and_are_counted(self, make):
        """Closed and well, it changes nothing."""
        breaker = make()

        assert [breaker.call(answer, number) for number in range(3)] == [0, 1, 2]
        assert breaker.stats().calls == 3
        assert breaker.current_state == "closed"

    @pytest.mark.parametrize(("failures", "state"), [(4, "closed"), (5, "open")])
    def test_share_of_failures_opens_it(self, make, failures, state):
        """At the ratio exactly, not below it."""
        breaker = make(failure_ratio=0.5, min_calls=10)
        for _ in range(10 - failures):
            breaker.call(answer)
        fail(breaker, failures)

        assert breaker.current_state == state

    def test_no_share_counts_before_min_calls(self, make):
        """One failure of one call is no 100 %."""
        breaker = make(failure_ratio=0.5, min_calls=4)

        fail(breaker, 3)
        assert breaker.current_state == "closed"
        fail(breaker)
        assert breaker.current_state == "open"

    def test_defaults_open_at_half_of_ten_calls_in_thirty_seconds(self, clock):
        """The numbers of the signature are the ones in force."""
        breaker = CircuitBreaker("b", clock=clock)
        fail(breaker, 9)
        clock.advance(31)
        fail(breaker, 9)
        assert breaker.current_state == "closed"

        fail(breaker)
        assert breaker.current_state == "open"
        assert refused(breaker).retry_after == 30.0

    def test_window_of_calls_forgets_by_calls(self, make, clock):
        """However long ago: only the last n count."""
        breaker = make(failure_ratio=0.75, min_calls=4, window=Calls(4))
        fail(breaker, 3)
        clock.advance(86_400)
        breaker.call(answer)

        assert breaker.current_state == "open"
        assert breaker.stats().window_calls == 4

    def test_fail_max_alone_is_the_consecutive_rule_alone(self, make):
        """A success in between starts the count anew, and no ratio is in force."""
        breaker = make(fail_max=3)
        for _ in range(20):
            fail(breaker, 2)
            breaker.call(answer)
        assert breaker.current_state == "closed"
        assert breaker.rules.failure_ratio is None

        fail(breaker, 3)
        assert breaker.current_state == "open"

    def test_fail_max_and_ratio_together(self, make):
        """Whichever comes first."""
        by_row = make(fail_max=2, failure_ratio=0.9, min_calls=100)
        fail(by_row, 2)
        by_share = make(fail_max=50, failure_ratio=0.5, min_calls=4)
        fail(by_share, 4)

        assert by_row.current_state == by_share.current_state == "open"

    @pytest.mark.parametrize(("seconds", "state"), [(2.0, "closed"), (2.001, "open")])
    def test_slow_calls_open_it(self, make, clock, seconds, state):
        """Longer than slow_after is slow; as long as it is not."""
        breaker = make(failure_ratio=None, slow_after=2.0, slow_ratio=0.5, min_calls=2)
        breaker.call(answer)
        breaker.call(clock.advance, seconds)

        assert breaker.current_state == state
        assert breaker.stats().slow == (state == "open")

    def test_slow_failure_counts_as_both(self, make, clock):
        """It failed and it was slow."""
        breaker = make(failure_ratio=1.0, slow_after=1.0, min_calls=10)

        def slow_and_down() -> None:
            clock.advance(5)
            down()

        with pytest.raises(DependencyError):
            breaker.call(slow_and_down)
        assert (breaker.stats().failures, breaker.stats().slow) == (1, 1)

    def test_call_given_up_after_slow_after_counts_as_slow(self, make, clock):
        """Or a timeout outside would hide from it that the dependency hangs."""
        breaker = make(failure_ratio=None, slow_after=2.0, slow_ratio=1.0, min_calls=2)

        def cancelled_after_three_seconds() -> None:
            clock.advance(3)
            raise asyncio.CancelledError

        for _ in range(2):
            with pytest.raises(asyncio.CancelledError):
                breaker.call(cancelled_after_three_seconds)
        assert breaker.current_state == "open"
        assert (breaker.stats().abandoned, breaker.stats().slow) == (2, 2)

    @pytest.mark.parametrize(
        "interrupt", [asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit]
    )
    def test_call_given_up_in_time_says_nothing(self, make, interrupt):
        """It comes out as it was, and is neither a failure nor a success."""
        breaker = make(fail_max=2)
        fail(breaker)
        for _ in range(5):
            with pytest.raises(interrupt), breaker.calling():
                raise interrupt

        stats = breaker.stats()
        assert (stats.state, stats.abandoned, stats.calls, stats.consecutive_failures) == ("closed", 5, 1, 1)

    def test_streams_are_never_slow(self, make, clock):
        """How long a stream lives is up to its consumer, closed or as a probe."""
        breaker = make(failure_ratio=0.5, slow_after=1.0, probe_timeout=60.0, min_calls=1)

        @breaker
        def numbers():
            yield 1
            clock.advance(30)
            yield 2

        assert list(numbers()) == [1, 2]
        breaker.half_open()
        assert list(numbers()) == [1, 2]
        assert breaker.current_state == "closed"
        assert breaker.stats().slow == 0

    async def test_asynchronous_streams_are_never_slow(self, make, clock):
        """The same for the other kind."""
        breaker = make(failure_ratio=0.5, slow_after=1.0, probe_timeout=60.0, min_calls=1)

        @breaker
        async def numbers():
            yield 1
            clock.advance(30)

        breaker.half_open()
        assert [number async for number in numbers()] == [1]
        assert breaker.current_state == "closed"

    def test_good_call_opens_it_where_the_share_grows_by_forgetting(self, make, clock):
        """The rules are asked after every call, also when it is good successes that leave the window."""
        breaker = make(failure_ratio=0.5, min_calls=4, window=10.0)
        for _ in range(5):
            breaker.call(answer)
        clock.advance(5)
        fail(breaker, 4)
        clock.advance(5)

        assert breaker.call(answer) == "fresh"
        assert breaker.current_state == "open"

    def test_tripping_call_gets_its_own_exception(self, make):
        """Not a substitute."""
        breaker = make()
        fail(breaker)
        failure = DependencyError("mine")

        with pytest.raises(DependencyError) as caught, breaker.calling():
            raise failure
        assert caught.value is failure
        assert breaker.current_state == "open"

    def test_throw_new_error_on_trip_raises_a_refusal_from_it(self, make):
        """As pybreaker does, with the failure as the cause."""
        breaker = make(fail_max=1, throw_new_error_on_trip=True, reset_timeout=20)

        with pytest.raises(CircuitOpenError) as caught:
            breaker.call(down)
        assert isinstance(caught.value.__cause__, DependencyError)
        assert caught.value.retry_after == 20.0

    def test_throw_new_error_on_trip_refuses_nothing_in_observe_only(self, make):
        """Observing means to leave every call its own outcome."""
        breaker = make(fail_max=1, throw_new_error_on_trip=True)
        breaker.observe_only()

        fail(breaker)
        assert breaker.current_state == "open"


class TestRefusal:
    """Open."""

    def test_refusal_says_who_and_when_and_why(self, make, clock):
        """Policy, seconds, and the last failure as text."""
        breaker = make(fail_max=1, reset_timeout=30)
        fail(breaker, reason="no route to host")
        clock.advance(10)

        refusal = refused(breaker)
        assert refusal.policy == "rates"
        assert refusal.retry_after == 20.0
        assert refusal.last_failure == "DependencyError: no route to host"
        assert str(refusal) == (
            "circuit 'rates' is open, next try in 20 s; last failure: DependencyError: no route to host"
        )

    def test_each_refusal_is_a_new_one(self, make):
        """A shared exception would grow its traceback with every raise."""
        breaker = make()
        fail(breaker, 2)

        refusals = [refused(breaker) for _ in range(3)]
        assert len({id(refusal) for refusal in refusals}) == 3
        depths = [traceback_depth(refusal) for refusal in refusals]
        assert len(set(depths)) == 1

    def test_no_failure_is_kept_alive(self, make):
        """Only its text: an exception would keep frames and all their locals."""
        breaker = make(fail_max=1)
        fail(breaker)
        gc.collect()

        # By type: asked for its class, a lazy object of a framework in this process would set itself up.
        assert not [one for one in gc.get_objects() if issubclass(type(one), DependencyError)]

    def test_long_failure_is_cut_short(self, make):
        """What it says is bounded."""
        breaker = make(fail_max=1)
        fail(breaker, reason="x" * 10_000)

        assert len(breaker.stats().last_failure) <= 200

    def test_function_is_not_called(self, make):
        """That is what a refusal is."""
        called = []
        breaker = make()
        fail(breaker, 2)

        with pytest.raises(CircuitOpenError):
            breaker.call(called.append, 1)
        assert not called
        assert breaker.stats().rejected == 1

    def test_refusals_of_others_are_no_evidence(self, make):
        """Nested breakers and full bulkheads say nothing about the dependency."""
        inner, outer = make(), make(fail_max=1)
        fail(inner, 2)

        @outer
        @inner
        def guarded() -> None:
            raise AssertionError

        for _ in range(3):
            with pytest.raises(CircuitOpenError) as caught:
                guarded()
            assert caught.value.policy == "rates"
        with pytest.raises(BulkheadFullError), outer.calling():
            raise BulkheadFullError
        assert outer.current_state == "closed"
        assert outer.stats().ignored == 4

    def test_refusals_count_where_they_are_named(self, make):
        """`on` may mean them, by their own name."""
        breaker = make(fail_max=1, on=(DependencyError, BulkheadFullError))

        with pytest.raises(BulkheadFullError), breaker.calling():
            raise BulkheadFullError
        assert breaker.current_state == "open"

    @pytest.mark.parametrize("mode", ["half-open", "ramp", "forced"])
    def test_refusal_says_how_the_circuit_is(self, make, clock, mode):
        """It is not always simply open."""
        breaker = make(ramp=10.0, reset_timeout=5.0)
        if mode == "half-open":
            breaker.half_open()
            with breaker.calling():
                message = "is half-open, with all its probes under way, next try in 5 s"
                assert message in str(outside_the_probe(breaker))
        elif mode == "ramp":
            breaker.half_open()
            breaker.call(answer)
            breaker.call(answer)
            assert "is closed again and letting traffic back in bit by bit, next try in 10 s" in str(
                refused(breaker)
            )
        else:
            breaker.force_open(reason="migration")
            assert str(refused(breaker)) == "circuit 'rates' is forced open (migration)"


class TestHalfOpen:
    """Open -> half-open -> closed or open."""

    def test_it_is_half_open_at_the_first_call_after_the_timeout(self, make, clock):
        """Lazily: no timer runs."""
        breaker = make(reset_timeout=30, success_threshold=2)
        fail(breaker, 2)
        clock.advance(29.9)
        refused(breaker)
        clock.advance(0.1)
        assert breaker.current_state == "open"

        assert breaker.call(answer) == "fresh"
        assert breaker.current_state == "half-open"

    def test_it_stays_open_while_the_clock_stands_still(self, make):
        """No number of calls makes up for time."""
        breaker = make(reset_timeout=0.001)
        fail(breaker, 2)
        for _ in range(100):
            refused(breaker)

        assert breaker.current_state == "open"

    def test_reset_timeout_zero_probes_at_once(self, make):
        """And even so only as many at a time as `probes` says."""
        breaker = make(reset_timeout=0, probes=1)
        fail(breaker, 2)

        with breaker.calling():
            assert breaker.current_state == "half-open"
            outside_the_probe(breaker)
        assert breaker.current_state == "closed"

    def test_at_most_so_many_probes_run_at_once(self, make, clock):
        """A place that comes free is given again."""
        breaker = make(probes=2, success_threshold=5)
        breaker.half_open()
        first, second = breaker.calling(), breaker.calling()
        in_context(first.__enter__)
        in_context(second.__enter__)

        assert refused(breaker).retry_after == 30.0
        clock.advance(10)
        assert refused(breaker).retry_after == 20.0
        first.__exit__(None, None, None)
        assert breaker.call(answer) == "fresh"

    def test_success_threshold_successes_close_it(self, make):
        """With an empty window."""
        breaker = make(failure_ratio=0.5, min_calls=3, success_threshold=3)
        fail(breaker, 3)
        breaker.half_open()
        for _ in range(2):
            breaker.call(answer)
        assert (breaker.current_state, breaker.success_counter) == ("half-open", 2)

        breaker.call(answer)
        assert breaker.current_state == "closed"
        assert breaker.stats().window_calls == 0

    def test_one_failure_opens_it_with_the_next_timeout(self, make, clock):
        """Each time in a row it asks for the next one; closing starts anew."""
        breaker = make(fail_max=1, reset_timeout=lambda times: 10.0 * times)
        waits = []
        for _ in range(3):
            fail(breaker)
            waits.append(refused(breaker).retry_after)
            clock.advance(waits[-1])
        breaker.call(answer)
        fail(breaker)

        assert waits == [10.0, 20.0, 30.0]
        assert refused(breaker).retry_after == 10.0

    def test_slow_probe_opens_it(self, make, clock):
        """Slow is how the trouble began."""
        breaker = make(failure_ratio=None, slow_after=1.0, probe_timeout=60.0)
        breaker.half_open()
        breaker.call(clock.advance, 2.0)

        assert breaker.current_state == "open"

    @pytest.mark.parametrize("outcome", [asyncio.CancelledError, KeyError])
    def test_probe_that_says_nothing_gives_its_place_back(self, make, outcome):
        """Cancelled or ignored, the next call probes."""
        breaker = make(exclude=KeyError)
        breaker.half_open()
        for _ in range(3):
            with pytest.raises(outcome), breaker.calling():
                raise outcome
            assert breaker.current_state == "half-open"

        breaker.call(answer)
        assert breaker.current_state == "closed"

    def test_forgotten_probe_gives_its_place_back(self, make):
        """The place belongs to the probe: when that is gone, however, it is free."""
        breaker = make()
        breaker.half_open()

        @breaker
        def stream():
            yield 1

        forgotten = stream()
        in_context(next, forgotten)
        outside_the_probe(breaker)
        del forgotten
        gc.collect()

        assert breaker.call(answer) == "fresh"

    @pytest.mark.parametrize(
        ("settings", "lifetime"),
        [
            ({"probe_timeout": 7.0, "slow_after": 9.0}, 7.0),
            ({"reset_timeout": 12.0}, 12.0),
            ({"reset_timeout": lambda times: 3.0}, 30.0),
        ],
    )
    def test_probe_that_outlives_its_time_loses_its_place(self, make, clock, settings, lifetime):
        """So half-open never wedges; and what it says then is dropped."""
        breaker = make(**{"fail_max": 5, **settings})
        breaker.half_open()
        hanging = breaker.calling()
        in_context(hanging.__enter__)
        clock.advance(lifetime - 0.5)
        assert refused(breaker).retry_after == 0.5
        clock.advance(0.501)

        with breaker.calling():
            hanging.__exit__(DependencyError, DependencyError(), None)
            assert breaker.current_state == "half-open"
        assert breaker.current_state == "closed"
        assert breaker.stats().stale == 1

    def test_probe_that_is_slow_already_opens_it(self, make, clock):
        """Its result can only be bad: nobody has to wait for it, and it is dropped when it comes."""
        breaker = make(fail_max=5, slow_after=9.0)
        breaker.half_open()
        hanging = breaker.calling()
        in_context(hanging.__enter__)
        clock.advance(9.001)

        assert refused(breaker).retry_after == 30.0
        hanging.__exit__(None, None, None)
        assert (breaker.current_state, breaker.stats().slow, breaker.stats().stale) == ("open", 1, 1)

    @pytest.mark.parametrize("settings", [{}, {"probe_timeout": 60.0}, {"probe_timeout": 10.0}])
    def test_probe_that_is_slow_already_opens_it_again(self, make, clock, settings):
        """Nobody waits for its result, which can only be bad: a hanging dependency is left in peace."""
        breaker = make(fail_max=5, slow_after=9.0, reset_timeout=30.0, **settings)
        breaker.half_open()
        hanging = breaker.calling()
        in_context(hanging.__enter__)
        clock.advance(9.0)
        refused(breaker)
        assert breaker.current_state == "half-open"
        clock.advance(0.5)

        assert refused(breaker).retry_after == 30.0
        assert breaker.current_state == "open"
        assert breaker.stats().slow == 1
        hanging.__exit__(None, None, None)
        assert (breaker.current_state, breaker.stats().stale) == ("open", 1)

    def test_one_of_many_slow_calls_is_under_way_at_a_time(self, make, clock):
        """A dependency that takes 12 s is asked once per reset timeout, whatever the traffic."""
        breaker = make(fail_max=1, slow_after=1.0, reset_timeout=30.0)
        breaker.open()
        running, admitted = [], 0
        for _ in range(600):
            clock.advance(1.0)
            while running and clock() - running[0][0] >= 12.0:
                running.pop(0)[1].__exit__(None, None, None)
            call = breaker.calling()
            try:
                in_context(call.__enter__)
            except CircuitOpenError:
                continue
            running.append((clock(), call))
            admitted += 1
            assert len(running) == 1
        assert admitted <= 600 / 30

    @pytest.mark.parametrize("outcome", [None, DependencyError("late")])
    def test_late_result_is_dropped(self, make, outcome):
        """What began before an outage says nothing about now."""
        breaker = make(fail_max=1)
        late = breaker.calling()
        late.__enter__()
        fail(breaker)
        breaker.half_open()

        late.__exit__(None if outcome is None else DependencyError, outcome, None)
        assert breaker.current_state == "half-open"
        stats = breaker.stats()
        assert (stats.stale, stats.calls, stats.failures) == (1, 1, 1)

    def test_call_from_within_a_probe_rides_along(self, make):
        """It would otherwise be refused by the probe that waits for it."""
        breaker = make()
        inner = breaker(answer)
        breaker.half_open()

        assert breaker.call(lambda: inner("nested")) == "nested"
        assert breaker.current_state == "closed"

    async def test_tasks_of_a_probe_ride_along(self, make):
        """They work for it; others do not."""
        breaker = make()

        @breaker
        async def inner() -> str:
            await asyncio.sleep(0)
            return "nested"

        @breaker
        async def outer() -> list[str]:
            return await asyncio.gather(inner(), inner())

        breaker.half_open()
        probe = asyncio.create_task(outer())
        await asyncio.sleep(0)
        with pytest.raises(CircuitOpenError):
            await inner()
        assert await probe == ["nested", "nested"]
        assert breaker.current_state == "closed"

    def test_breaker_nested_in_itself_counts_each_call(self, make):
        """By hand, that is: the decorator refuses to be put on twice."""
        breaker = make(fail_max=3)

        with pytest.raises(DependencyError):
            breaker.call(breaker.call, down)
        assert breaker.stats().failures == 2


class TestRamp:
    """Letting traffic back in."""

    def test_share_let_in_grows_evenly(self, make, clock):
        """At a quarter of the ramp, a quarter of the calls; afterwards, all."""
        breaker = make(ramp=100.0)
        breaker.half_open()
        breaker.call(answer)
        assert breaker.call(answer) == "fresh"  # the first one is let in whatever happens

        shares = []
        for _ in range(4):
            clock.advance(25.0)
            shares.append(sum(is_let_in(breaker) for _ in range(100)))
        assert shares == [25, 50, 75, 100]
        assert breaker.stats().rejected == 150

    def test_nobody_waits_on_a_ramp_of_zero(self, make):
        """The default lets all in at once."""
        breaker = make()
        breaker.half_open()

        assert all(is_let_in(breaker) for _ in range(100))

    def test_it_can_open_on_the_ramp(self, make):
        """The rules hold as ever."""
        breaker = make(fail_max=1, ramp=60.0)
        breaker.half_open()
        breaker.call(answer)
        fail(breaker)

        assert breaker.current_state == "open"

    def test_closing_by_hand_has_no_ramp(self, make):
        """Who closes by hand means it."""
        breaker = make(ramp=60.0)
        breaker.close()

        assert all(is_let_in(breaker) for _ in range(100))

    def test_forced_closed_ends_the_ramp(self, make):
        """Every call, it says."""
        breaker = make(ramp=60.0)
        breaker.half_open()
        breaker.call(answer)
        breaker.force_closed()

        assert all(is_let_in(breaker) for _ in range(100))
