"""What a circuit breaker takes for a failure, and what its user's functions may answer or do."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta

import pytest
from tests.policies.circuit_breaker_support import (
    DependencyError,
    OrderNotFoundError,
    answer,
    down,
    fail,
    maker,
    refused,
)

from resilient import CircuitBreaker
from resilient.testing import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(1_000.0)


@pytest.fixture
def make(clock: FakeClock) -> Callable[..., CircuitBreaker]:
    return maker(clock)


class TestJudgement:
    """What is a failure."""

    @pytest.mark.parametrize(
        "exclude",
        [
            OrderNotFoundError,
            (OrderNotFoundError,),
            [LookupError, OrderNotFoundError],
            lambda exc: isinstance(exc, OrderNotFoundError),
            (LookupError, lambda exc: "no such order" in str(exc)),
        ],
    )
    def test_excluded_exceptions_are_ignored(self, make, exclude):
        """Neither failures nor successes: what came before still counts in a row."""
        breaker = make(fail_max=2, exclude=exclude)
        fail(breaker)
        for _ in range(3):
            with pytest.raises(OrderNotFoundError), breaker.calling():
                raise OrderNotFoundError("no such order")
        assert (breaker.stats().ignored, breaker.stats().calls) == (3, 1)

        fail(breaker)
        assert breaker.current_state == "open"

    def test_exclude_with_a_metaclass_of_its_own_excludes_nothing_else(self, make):
        """pybreaker takes such a class for a predicate, which is true of everything."""
        breaker = make(exclude=[OrderNotFoundError])
        fail(breaker, 2)

        assert breaker.current_state == "open"

    @pytest.mark.parametrize(
        "on",
        [
            OrderNotFoundError,
            (KeyError, OrderNotFoundError),
            lambda exc: isinstance(exc, OrderNotFoundError),
            (KeyError, lambda exc: isinstance(exc, OrderNotFoundError)),
        ],
    )
    def test_only_what_matches_on_is_a_failure(self, make, on):
        """The rest counts as nothing."""
        breaker = make(fail_max=1, on=on)
        with pytest.raises(DependencyError), breaker.calling():
            raise DependencyError
        assert breaker.current_state == "closed"

        with pytest.raises(OrderNotFoundError), breaker.calling():
            raise OrderNotFoundError
        assert breaker.current_state == "open"

    def test_predicate_of_on_that_raises_means_a_failure(self, make, caplog):
        """When in doubt, the dependency failed; and the call's own exception comes out."""
        breaker = make(fail_max=1, on=lambda exc: exc.status >= 500)
        fail(breaker)

        assert breaker.current_state == "open"
        assert "predicate" in caplog.text

    def test_predicate_of_exclude_that_raises_excludes_nothing(self, make, caplog):
        """When in doubt, the dependency failed: a bug in a predicate must not switch the breaker off."""
        breaker = make(fail_max=1, exclude=lambda exc: exc.status < 500)
        fail(breaker)

        assert breaker.current_state == "open"
        assert "predicate" in caplog.text

    @pytest.mark.parametrize("verdict", [120, 120.0, 0.5])
    def test_verdict_in_seconds_opens_it_now_for_so_long(self, make, verdict):
        """A server said "go away until"."""
        breaker = make(fail_max=100, on=lambda exc: verdict)
        fail(breaker)

        assert refused(breaker).retry_after == verdict

    @pytest.mark.parametrize(
        ("verdict", "failures"), [(0, 0), (None, 0), (-1.0, 1), (math.nan, 1), (math.inf, 1)]
    )
    def test_other_numbers_are_taken_for_their_truth(self, make, verdict, failures):
        """Only a finite number of seconds above 0 is one."""
        breaker = make(fail_max=100, on=lambda exc: verdict)
        fail(breaker)

        assert breaker.current_state == "closed"
        assert breaker.stats().failures == failures

    def test_bad_result_is_a_failure(self, make):
        """It is returned all the same."""
        breaker = make(fail_max=2, on_result=lambda result: result is None)
        for _ in range(2):
            assert breaker.call(answer, None) is None

        assert breaker.current_state == "open"
        assert refused(breaker).last_failure == "a result was judged a failure"

    async def test_bad_result_of_a_coroutine_is_a_failure(self, make):
        """What counts is what it returns, not the coroutine."""
        breaker = make(fail_max=1, on_result=lambda result: result == 503)

        @breaker
        async def status() -> int:
            return 503

        assert await status() == 503
        assert breaker.current_state == "open"

    def test_result_in_seconds_opens_it_for_so_long(self, make):
        """As with exceptions."""
        breaker = make(fail_max=100, on_result=lambda result: 45.0 if result == 503 else False)
        breaker.call(answer, 503)

        assert refused(breaker).retry_after == 45.0

    def test_predicate_of_on_result_that_raises_means_a_good_result(self, make, caplog):
        """The call did return, and its caller gets what it returned."""
        breaker = make(fail_max=1, on_result=lambda result: result.status >= 500)

        assert breaker.call(answer) == "fresh"
        assert breaker.current_state == "closed"
        assert "predicate" in caplog.text

    async def test_blocks_and_streams_have_no_result_to_judge(self, make):
        """Asked about None, this predicate would open it."""
        breaker = make(fail_max=1, on_result=lambda result: result is None)

        @breaker
        def stream():
            yield 1

        @breaker
        async def astream():
            yield 1

        with breaker.calling():
            pass
        async with breaker.calling():
            pass
        assert [*stream(), *[item async for item in astream()]] == [1, 1]
        assert breaker.current_state == "closed"
        assert breaker.stats().calls == 4


class TestResetTimeout:
    """The callable kind."""

    @pytest.mark.parametrize(
        "nonsense",
        [lambda times: "soon", lambda times: -1, lambda times: math.nan, lambda times: math.inf, lambda: 5],
    )
    def test_function_that_fails_or_says_nonsense_means_the_default(self, make, caplog, nonsense):
        """Thirty seconds, and a log entry."""
        breaker = make(fail_max=1, reset_timeout=nonsense)
        fail(breaker)

        assert refused(breaker).retry_after == 30.0
        assert "reset_timeout" in caplog.text

    def test_interrupted_function_does_not_leave_it_open_for_ever(self, make, clock):
        """The default holds until there is an answer."""

        def interrupted(times: int) -> float:
            raise KeyboardInterrupt

        breaker = make(fail_max=1, reset_timeout=interrupted)
        with pytest.raises(KeyboardInterrupt):
            breaker.call(down)
        assert refused(breaker).retry_after == 30.0

        clock.advance(30.0)
        assert breaker.call(answer) == "fresh"

    def test_function_may_use_the_breaker(self, make):
        """It is asked without the lock, and only once."""
        asked = []

        def ask(times: int) -> float:
            asked.append((times, breaker.current_state, repr(breaker)))
            refused(breaker)
            return 5.0

        breaker = make(fail_max=1, reset_timeout=ask)
        fail(breaker)

        assert [(times, state) for times, state, _ in asked] == [(1, "open")]
        assert refused(breaker).retry_after == 5.0

    def test_answer_that_comes_too_late_is_dropped(self, make):
        """Somebody has closed it meanwhile."""
        breaker = make(fail_max=1, reset_timeout=lambda times: breaker.close() or 5.0)
        fail(breaker)

        assert breaker.current_state == "closed"

    def test_function_is_not_asked_when_forced_open(self, make):
        """An override has its own end."""
        asked = []
        breaker = make(reset_timeout=lambda times: asked.append(times) or 1.0)
        late = breaker.calling()
        late.__enter__()
        breaker.force_open()
        late.__exit__(None, None, None)

        assert not asked

    def test_timedelta_is_a_duration_too(self, make):
        """As for every duration."""
        breaker = make(fail_max=1, reset_timeout=timedelta(minutes=2))
        fail(breaker)

        assert refused(breaker).retry_after == 120.0
