"""Errors: they travel between processes, and each is a new one."""

from __future__ import annotations

import copy
import pickle
import traceback
from collections.abc import Callable

import pybreaker
import pytest

from resilient import CircuitBreaker, RateLimiter, Timeout, deadline, errors
from resilient.pool import Borrower
from resilient.testing import FakeClock

EXAMPLES: list[Exception] = [
    errors.ResilientError("message"),
    errors.RejectedError("message", policy="p", retry_after=1.5),
    errors.CircuitOpenError("message", policy="p", retry_after=None, last_failure="ValueError: x"),
    errors.RateLimitedError("message", policy="p", retry_after=1.5, decision=None),
    errors.MaintenanceError("message", policy="p", retry_after=60.0),
    errors.BulkheadFullError("message", policy="p"),
    errors.ThrottledError("message", policy="p", probability=0.25),
    errors.PoolTimeoutError(
        "message",
        policy="p",
        size=2,
        idle=0,
        used=2,
        waiting=7,
        borrowers=(Borrower("shop.py:7 in pay", ("shop.py:7 in pay",), "web-1", None, 31.0, leaked=True),),
        last_failure="OSError: refused",
    ),
    errors.PoolFullError("message", policy="p", waiting=100),
    errors.PoolUnavailableError("message", policy="p", retry_after=0.5, last_failure="OSError: refused"),
    errors.PoolClosedError("message", policy="p"),
    errors.ConnectionReclaimedError("message", policy="p"),
    errors.ConnectionReturnedError("message", policy="p"),
    errors.DeadlineExceededError("message", policy="p"),
    errors.CallTimeoutError("message", policy="p", seconds=2.5),
    errors.PipelineOrderError("message"),
]


def test_every_error_is_looked_at_here() -> None:
    """An error that is added gets an example."""
    assert {type(error).__name__ for error in EXAMPLES} == set(errors.__all__)


TRAVELS: dict[str, Callable[[Exception], Exception]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{
        f"pickle-{protocol}": lambda error, protocol=protocol: pickle.loads(pickle.dumps(error, protocol))
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    },
}


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("travel", TRAVELS.values(), ids=TRAVELS)
def test_error_keeps_everything_when_it_travels(
    error: Exception, travel: Callable[[Exception], Exception]
) -> None:
    """Message, attributes and notes, for process pools and task queues."""
    noted = copy.copy(error)
    noted.add_note("a note")

    arrived = travel(noted)

    assert type(arrived) is type(error)
    assert str(arrived) == "message"
    assert arrived.args == error.args
    assert vars(arrived) == vars(noted)
    assert arrived.__notes__ == ["a note"]


@pytest.mark.parametrize("travel", TRAVELS.values(), ids=TRAVELS)
def test_refusal_of_a_limiter_travels_with_its_decision(travel: Callable[[Exception], Exception]) -> None:
    """With all it tells: a task queue that retries needs to know when."""
    limiter = RateLimiter("1/minute", name="door", clock=FakeClock())
    limiter.hit("ann")
    with pytest.raises(errors.RateLimitedError) as refused:
        limiter.acquire("ann")
    decision = refused.value.decision

    arrived = travel(refused.value)

    assert isinstance(arrived, errors.RateLimitedError)
    assert (arrived.policy, arrived.retry_after) == ("door", pytest.approx(60.0))
    assert arrived.decision is not None
    assert decision is not None
    assert tuple(arrived.decision) == tuple(decision)
    assert not arrived.decision


def test_errors_can_be_made_without_arguments() -> None:
    """What users raise in their own tests need not be complete."""
    for error in EXAMPLES:
        assert str(type(error)()) == ""


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_subclass_need_not_call_the_constructor(error: Exception) -> None:
    """What the library reads of an error, it can read of the user's own."""

    class Own(type(error)):  # type: ignore[misc]
        def __init__(self, number: int) -> None:
            self.number = number

    plain = type(error)()

    assert {name: getattr(Own(5), name) for name in vars(plain)} == vars(plain)


def test_families() -> None:
    """Code that catches the builtin or pybreaker's error catches ours."""
    assert issubclass(errors.CircuitOpenError, pybreaker.CircuitBreakerError)
    assert issubclass(errors.CallTimeoutError, TimeoutError)
    assert issubclass(errors.DeadlineExceededError, TimeoutError)
    assert issubclass(errors.PipelineOrderError, ValueError)
    assert not issubclass(errors.CallTimeoutError, errors.RejectedError)
    assert issubclass(errors.RateLimitedError, errors.RejectedError)
    assert issubclass(errors.MaintenanceError, errors.RejectedError)


def _open_circuit() -> Callable[[], object]:
    breaker = CircuitBreaker("b", clock=FakeClock())
    breaker.force_open()
    return lambda: breaker.call(int)


def _passed_deadline() -> Callable[[], object]:
    clock = FakeClock()
    outer, inner = deadline(1.0, clock=clock), Timeout(1.0)

    def late() -> object:
        clock.advance(2.0)
        return inner.call(int)

    return lambda: outer.call(late)


def _used_up_rate() -> Callable[[], object]:
    limiter = RateLimiter("1/minute", clock=FakeClock())
    limiter.hit()
    return lambda: limiter.call(int)


@pytest.mark.parametrize(
    "refused",
    [_open_circuit(), _passed_deadline(), _used_up_rate()],
    ids=["open circuit", "passed deadline", "used-up rate"],
)
def test_refusal_is_a_new_error_each_time(refused: Callable[[], object]) -> None:
    """One instance raised again and again would grow its traceback, and mix up those of several callers."""
    caught: list[Exception] = []
    for _ in range(100):
        try:
            refused()
        except errors.RejectedError as exc:
            caught.append(exc)

    assert len({id(exc) for exc in caught}) == 100
    assert len({len(traceback.extract_tb(exc.__traceback__)) for exc in caught}) == 1
