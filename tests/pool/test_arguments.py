"""Bad arguments: refused at once, by name, rule and value, whether the pool is idle or dry."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from tests.pool.support import Conn, LostError, World, patient

from resilient import AsyncConnectionPool, ConnectionPool


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Time, a server, and somebody who listens."""
    return World(monkeypatch)


async def coroutine_function(*_: object) -> Any:
    """Be asynchronous."""


class CallsLater:
    """Is asynchronous, and no function."""

    async def __call__(self, *_: object) -> Any:
        """Do nothing."""


DURATIONS = [
    ("timeout", -1, "at least 0"),
    ("timeout", math.inf, "finite"),
    ("max_idle", 0, "greater than 0"),
    ("max_idle", -1, "greater than 0"),
    ("max_lifetime", 0, "greater than 0"),
    ("check_after_idle", -0.1, "at least 0"),
    ("check_every", 0, "greater than 0"),
    ("check_every", math.inf, "finite"),
    ("check_timeout", 0, "greater than 0"),
    ("check_timeout", math.inf, "finite"),
    ("connect_timeout", 0, "greater than 0"),
    ("connect_timeout", math.inf, "finite"),
    ("leak_after", 0, "greater than 0"),
    ("leak_after", math.inf, "finite"),
]

OTHERS: list[tuple[str, object, type[Exception], str]] = [
    ("name", "", ValueError, "must not be empty"),
    ("name", "  ", ValueError, "must not be empty"),
    ("name", 5, TypeError, "must be text"),
    ("name", None, TypeError, "must be text"),
    ("min_size", -1, ValueError, "at least 0"),
    ("min_size", 1.5, TypeError, "a whole number"),
    ("min_size", True, TypeError, "a whole number"),
    ("min_size", 11, ValueError, "at most max_size, which is 10"),
    ("max_size", 0, ValueError, "at least 1"),
    ("max_size", "5", TypeError, "a whole number"),
    ("max_size", None, TypeError, "a whole number"),
    ("max_connecting", 0, ValueError, "at least 1"),
    ("max_connecting", 2.0, TypeError, "a whole number"),
    ("max_waiting", -1, ValueError, "at least 0"),
    ("max_waiting", 1.0, TypeError, "a whole number"),
    ("jitter", -0.1, ValueError, "at least 0"),
    ("jitter", 1.1, ValueError, "at most 1"),
    ("jitter", "0.1", TypeError, "a ratio"),
    ("jitter", math.nan, ValueError, "finite"),
    ("commit", 1, TypeError, "True or False"),
    ("commit", None, TypeError, "True or False"),
    ("full_stacks", "yes", TypeError, "True or False"),
    ("clock", 5, TypeError, "callable"),
    ("connect", None, TypeError, "callable"),
    ("connect", "postgresql://", TypeError, "callable"),
    ("close", 5, TypeError, "callable"),
    ("check", "SELECT 1", TypeError, "callable"),
    ("reset", 5, TypeError, "callable"),
    ("broken", 5, TypeError, "must be an exception type"),
    ("broken", "OSError", TypeError, "must be an exception type"),
    ("broken", KeyboardInterrupt, ValueError, "below Exception"),
    ("on_leak", "shout", ValueError, "one of 'report', 'reclaim'"),
    ("on_leak", None, TypeError, "must be text"),
    ("max_hold", 5.0, ValueError, "on_leak='reclaim' only"),
]


def make(kind: Callable[..., Any], **options: Any) -> Any:
    """Return a pool with some arguments, and good ones otherwise."""
    return kind(**{"connect": Conn, "name": "orders", **options})


each_kind = pytest.mark.parametrize("kind", [ConnectionPool, AsyncConnectionPool])


@each_kind
@pytest.mark.parametrize(("name", "value", "rule"), DURATIONS)
def test_duration_out_of_range(kind: Callable[..., Any], name: str, value: float, rule: str) -> None:
    """The message names the parameter, the rule and the value; as a `timedelta`, too."""
    with pytest.raises(ValueError, match=rf"^{name} must be .*{rule}, got {value}$"):
        make(kind, **{name: value})
    if math.isfinite(value):
        with pytest.raises(ValueError, match=rf"^{name} must be .*{rule}, got "):
            make(kind, **{name: timedelta(seconds=value)})


@each_kind
@pytest.mark.parametrize("name", sorted({name for name, *_ in DURATIONS}))
@pytest.mark.parametrize("value", ["5", True, [], math.nan])
def test_duration_that_is_none(kind: Callable[..., Any], name: str, value: object) -> None:
    """Text, a truth, a list, and what is no number."""
    wanted = ValueError if isinstance(value, float) else TypeError
    with pytest.raises(wanted, match=rf"^{name} must be a number of seconds or a timedelta"):
        make(kind, **{name: value})


@each_kind
@pytest.mark.parametrize(("name", "value", "error", "rule"), OTHERS)
def test_other_argument(
    kind: Callable[..., Any], name: str, value: object, error: type[Exception], rule: str
) -> None:
    """The message names the parameter, the rule and the value."""
    with pytest.raises(error, match=rf"^{name} .*{rule}") as refused:
        make(kind, **{name: value})
    assert repr(value) in str(refused.value)


@each_kind
@pytest.mark.parametrize("value", [0, -1.0, math.inf])
def test_time_to_hold_out_of_range(kind: Callable[..., Any], value: float) -> None:
    """Of those that reclaim."""
    with pytest.raises(ValueError, match=rf"^max_hold must be .*, got {value}$"):
        make(kind, on_leak="reclaim", max_hold=value)


@each_kind
def test_reclaiming_needs_a_time(kind: Callable[..., Any]) -> None:
    """Nobody's connection is taken away after a time that nobody has chosen."""
    with pytest.raises(ValueError, match=r"^max_hold must be given with on_leak='reclaim', got None$"):
        make(kind, on_leak="reclaim")


@pytest.mark.parametrize("value", [coroutine_function, CallsLater()], ids=["function", "object"])
@pytest.mark.parametrize("name", ["connect", "close", "check", "reset"])
def test_pool_for_threads_takes_no_coroutine_functions(name: str, value: object) -> None:
    """Nobody would await them; the pool for tasks takes them."""
    with pytest.raises(TypeError, match=rf"^{name} must be an ordinary function, not a coroutine function"):
        make(ConnectionPool, **{name: value})
    make(AsyncConnectionPool, **{name: value})


@each_kind
def test_arguments_that_go_by_name_only(kind: Callable[..., Any]) -> None:
    """All but `connect`; and `name` has to be given."""
    with pytest.raises(TypeError, match="positional argument"):
        kind(Conn, "orders")
    with pytest.raises(TypeError, match="name"):
        kind(Conn)


@each_kind
def test_limits_of_what_is_allowed(kind: Callable[..., Any]) -> None:
    """The least, the most, none, never: each where the docstring says so."""
    make(
        kind,
        min_size=10,
        timeout=0,
        max_waiting=0,
        max_idle=math.inf,
        max_lifetime=math.inf,
        jitter=1,
        check_after_idle=math.inf,
        check_every=None,
        connect_timeout=None,
        leak_after=None,
        broken=(LostError, lambda exc: "gone" in str(exc)),
    )
    make(
        kind, jitter=0, check_after_idle=0, on_leak="reclaim", max_hold=timedelta(minutes=5), leak_after=None
    )


BAD_TIMEOUTS: list[tuple[object, type[Exception], str]] = [
    (-1, ValueError, "timeout must be at least 0, got -1"),
    (math.inf, ValueError, "timeout must be .* finite, got inf"),
    ("5", TypeError, "timeout must be a number of seconds or a timedelta, got '5'"),
    (True, TypeError, "timeout must be a number of seconds or a timedelta, got True"),
]


@pytest.mark.parametrize(("timeout", "error", "text"), BAD_TIMEOUTS)
def test_bad_timeout_of_a_call(timeout: Any, error: type[Exception], text: str, world: World) -> None:
    """Refused each time, not only on the day that the pool is dry; and nothing is lent."""
    pool = world.pool()
    for _ in range(2):
        for call in (pool.connection, pool.getconn, pool.wait):
            with pytest.raises(error, match=text):
                call(timeout)
        with pool.connection():
            pass
    assert pool.stats().checkouts == 2
    with pytest.raises(error, match=text.replace("timeout", "drain")):
        pool.close(drain=timeout)
    assert not pool.closed


@pytest.mark.parametrize(("timeout", "error", "text"), BAD_TIMEOUTS)
@patient
async def test_bad_timeout_of_an_async_call(
    timeout: Any, error: type[Exception], text: str, world: World
) -> None:
    """As for threads."""
    pool = world.async_pool()
    with pytest.raises(error, match=text):
        pool.connection(timeout)
    for call in (pool.getconn, pool.wait):
        with pytest.raises(error, match=text):
            await call(timeout)
    with pytest.raises(error, match=text.replace("timeout", "drain")):
        await pool.close(drain=timeout)
    assert not pool.closed
    await pool.close()


BAD_SIZES: list[tuple[tuple[Any, ...], type[Exception], str]] = [
    ((0,), ValueError, "max_size must be at least 1, got 0"),
    (("5",), TypeError, "max_size must be a whole number, got '5'"),
    ((5, -1), ValueError, "min_size must be at least 0, got -1"),
    ((5, 6), ValueError, "min_size must be at most max_size, which is 5, got 6"),
    ((5, 1.0), TypeError, "min_size must be a whole number, got 1.0"),
]


@pytest.mark.parametrize(("sizes", "error", "text"), BAD_SIZES)
def test_bad_sizes(sizes: tuple[Any, ...], error: type[Exception], text: str, world: World) -> None:
    """Refused, and the pool is as it was."""
    pool = world.pool(min_size=2, max_size=4)
    with pytest.raises(error, match=f"^{text}$"):
        pool.resize(*sizes)
    assert (pool.stats().min_size, pool.stats().max_size) == (2, 4)


def test_smaller_pool_keeps_fewer_open(world: World) -> None:
    """The least follows the most, where nothing else is said."""
    pool = world.pool(min_size=3, max_size=4)
    pool.resize(2)
    assert (pool.stats().min_size, pool.stats().max_size) == (2, 2)
    pool.resize(5)
    assert (pool.stats().min_size, pool.stats().max_size) == (2, 5)
    pool.resize(5, 4)
    assert (pool.stats().min_size, pool.stats().max_size) == (4, 5)


def test_listener_must_be_callable_and_known(world: World) -> None:
    """As with the policies."""
    pool = world.pool()
    with pytest.raises(TypeError, match="listener"):
        pool.add_listener(5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="listener"):
        pool.remove_listener(print)


def test_what_is_returned_must_have_been_lent(world: World) -> None:
    """A connection that was not borrowed, or from another pool, or nothing."""
    pool, other = world.pool(), world.pool(name="carts")
    conn = other.getconn()
    for wrong in (world.server.made[0], None, object()):
        with pytest.raises(TypeError, match="conn must be a connection borrowed from pool 'orders', got "):
            pool.putconn(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="conn must be borrowed from pool 'orders', and is of pool 'carts'"):
        pool.putconn(conn)
    assert other.stats().used == 1
    other.putconn(conn)
