"""The pool's errors: what they say, what they are, and that they get from process to process."""

from __future__ import annotations

import copy
import pickle

import pytest
from tests.pool.support import Conn, LostError, World

from resilient import Retry, errors
from resilient.pool.borrowers import Borrower

BORROWER = Borrower("shop.py:7 in pay", ("shop.py:7 in pay",), "MainThread", None, 31.25, True)

EXAMPLES = [
    errors.PoolTimeoutError(
        "message",
        policy="orders",
        size=3,
        idle=1,
        used=2,
        waiting=4,
        borrowers=(BORROWER,),
        last_failure="OSError: x",
    ),
    errors.PoolFullError("message", policy="orders", waiting=7),
    errors.PoolUnavailableError("message", policy="orders", retry_after=0.5, last_failure="OSError: x"),
    errors.PoolClosedError("message", policy="orders"),
    errors.ConnectionReclaimedError("message", policy="orders"),
    errors.ConnectionReturnedError("message", policy="orders"),
]

each_error = pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Time, a server, and somebody who listens."""
    return World(monkeypatch)


@each_error
@pytest.mark.parametrize(
    "travel", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))], ids=["copy", "pickle"]
)
def test_error_arrives_as_it_was_sent(error: Exception, travel: object) -> None:
    """Type, text and every field."""
    arrived = travel(error)  # type: ignore[operator]

    assert type(arrived) is type(error)
    assert str(arrived) == "message"
    assert vars(arrived) == vars(error)


@each_error
def test_error_can_be_made_without_arguments(error: Exception) -> None:
    """What users raise in their own tests need not be complete."""
    assert str(type(error)()) == ""


@each_error
def test_subclass_need_not_call_the_constructor(error: Exception) -> None:
    """What the library reads of an error, it can read of the user's own."""

    class Own(type(error)):  # type: ignore[misc]
        def __init__(self, number: int) -> None:
            self.number = number

    plain = type(error)()
    assert {name: getattr(Own(5), name) for name in vars(plain)} == vars(plain)


def test_families() -> None:
    """Code that catches a builtin error catches ours; those of a borrower's own making are no refusals."""
    assert issubclass(errors.PoolTimeoutError, TimeoutError)
    assert issubclass(errors.PoolUnavailableError, ConnectionError)
    for refusal in (errors.PoolTimeoutError, errors.PoolFullError, errors.PoolUnavailableError):
        assert issubclass(refusal, errors.RejectedError)
    for mistake in (errors.PoolClosedError, errors.ConnectionReclaimedError, errors.ConnectionReturnedError):
        assert issubclass(mistake, errors.ResilientError)
        assert not issubclass(mistake, errors.RejectedError)


def test_timeout_tells_who_has_the_connections(world: World) -> None:
    """hikari's timeouts tell total, active, idle, waiting; this one also who, where, and for how long."""
    pool = world.pool(max_size=4, timeout=3.0)
    held = []
    for _ in range(4):
        held.append(pool.getconn())
        world.clock.advance(1.0)

    with pytest.raises(errors.PoolTimeoutError) as refused:
        pool.getconn()

    error = refused.value
    assert (error.policy, error.size, error.used, error.idle, error.waiting) == ("orders", 4, 4, 0, 0)
    assert error.retry_after is None
    assert error.last_failure is None
    assert [borrower.held_for for borrower in error.borrowers] == [7.0, 6.0, 5.0]
    assert all("test_pool_errors.py" in borrower.where for borrower in error.borrowers)
    assert str(error).startswith(
        "pool 'orders' had no connection free in 3 s: 4 of 4 are lent, 0 idle, 0 being made, and 0 callers "
        "wait; held for longest: "
    )
    assert str(error).count("test_timeout_tells_who_has_the_connections (") == 3
    assert "(7.0 s, thread MainThread)" in str(error)
    assert pickle.loads(pickle.dumps(error)).borrowers == error.borrowers


def test_timeout_tells_why_connecting_failed(world: World) -> None:
    """hikari chains the last failure to its timeout; this one is text, which keeps no traceback."""
    pool = world.pool(timeout=0.0)
    world.server.failure = LostError("refused")
    for _ in range(2):
        with pytest.raises(errors.PoolTimeoutError) as refused:
            pool.getconn()

    assert refused.value.last_failure == "LostError: refused"
    assert "at once" in str(refused.value)
    assert "connecting failed last with LostError: refused" in str(refused.value)
    assert refused.value.__cause__ is refused.value.__context__ is None


def test_full_pool_tells_how_many_wait(world: World) -> None:
    """In the text and as a number."""
    pool = world.pool(max_size=1, max_waiting=0)
    with pool.connection(), pytest.raises(errors.PoolFullError) as refused:
        pool.getconn()

    assert refused.value.waiting == 0
    assert str(refused.value) == "pool 'orders' is full: 0 callers wait for a connection already"


def test_unavailable_pool_tells_why_and_when_to_come_back(world: World) -> None:
    """The last failure, how many there were, and when it is tried again."""
    pool = world.pool()
    world.server.failure = LostError("refused")
    world.meanwhile = [pool.crew.do_one] * 3
    with pytest.raises(errors.PoolUnavailableError):
        pool.getconn()
    with pytest.raises(errors.PoolUnavailableError) as refused:
        pool.getconn()

    error = refused.value
    assert error.last_failure == "LostError: refused"
    assert error.retry_after is not None
    assert 0.0 <= error.retry_after <= 1.0
    assert "cannot connect: 3 failures in a row, the last one was LostError: refused" in str(error)


def test_refusals_of_a_pool_are_no_evidence(world: World) -> None:
    """A retry on every exception does not repeat them: whoever was refused has waited long enough."""
    pool = world.pool(max_size=1, timeout=1.0)
    calls = []

    @Retry(on=Exception, attempts=3, sleep=world.clock.sleep)
    def store() -> None:
        calls.append(1)
        with pool.connection():
            pass

    held: Conn = pool.getconn()
    with pytest.raises(errors.PoolTimeoutError):
        store()
    assert len(calls) == 1
    pool.putconn(held)
    store()


def test_connection_of_a_closed_pool(world: World) -> None:
    """The text says which pool; the field too."""
    pool = world.pool(name="carts")
    pool.close()
    with pytest.raises(errors.PoolClosedError, match="pool 'carts' is closed") as refused:
        pool.getconn()
    assert refused.value.policy == "carts"
