"""`watch`: what it takes and what it refuses, and that it asks for no library that is not there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg_pool
import pytest
import redis
from tests.pool.watching.conftest import Clock
from tests.support.waiting import wait_until

from resilient.events import ConnectionLeaked, Event, add_listener, remove_listener
from resilient.pool import rounds
from resilient.pool.watching import Watched, WatchStats, watch


def pool_of_nobody() -> redis.ConnectionPool:
    """Return a pool that connects to nothing, unless it is used."""
    return redis.ConnectionPool(host="127.0.0.1", port=1)


class Loan:
    """What a pool may lend that has no server."""

    pid: int = 0

    def __init__(self, **_words: Any) -> None:
        pass

    def connect(self) -> None:
        """Be connected."""

    def can_read(self) -> bool:
        return False

    def should_reconnect(self) -> bool:
        return False


@pytest.mark.parametrize(
    "given",
    [
        None,
        "postgresql://localhost",
        object(),
        redis.ConnectionPool,
        redis.RedisCluster.__new__(redis.RedisCluster),
        redis.retry,
    ],
    ids=lambda given: type(given).__name__,
)
def test_what_is_no_pool_is_refused(given: object) -> None:
    """With what may be given; a cluster has a pool for each node."""
    with pytest.raises(TypeError, match="pool must be a pool of SQLAlchemy, psycopg_pool, redis-py or"):
        watch(given)


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (dict(name=""), ValueError, "name must not be empty"),
        (dict(name=7), TypeError, "name must be text"),
        (dict(leak_after=0), ValueError, "leak_after must be greater than 0"),
        (dict(leak_after="30"), TypeError, "leak_after must be a number of seconds"),
        (dict(full_stacks=1), TypeError, "full_stacks must be True or False"),
        (dict(metrics="yes"), TypeError, "metrics must be True or False"),
        (dict(listeners=[7]), TypeError, "listener must be callable"),
        (dict(clock=7), TypeError, "clock must be callable"),
    ],
)
def test_bad_arguments_are_refused_and_leave_the_pool_alone(
    words: dict[str, Any], error: type[Exception], message: str
) -> None:
    """The message names the parameter, the rule and the value."""
    pool = pool_of_nobody()
    with pytest.raises(error, match=message):
        watch(pool, **words)

    assert type(pool) is redis.ConnectionPool


@pytest.mark.parametrize("timeout", [0, -1, "soon"])
def test_check_refuses_a_timeout_that_is_none(timeout: Any) -> None:
    """A check has to have some time."""
    with watch(pool_of_nobody()) as watching, pytest.raises((ValueError, TypeError), match="timeout must be"):
        watching.check(timeout)


def test_watch_is_a_context(clock: Clock) -> None:
    """It ends with the block."""
    pool = pool_of_nobody()
    with watch(pool, name="carts", leak_after=timedelta(seconds=5), clock=clock) as watching:
        assert isinstance(watching, Watched)
        assert isinstance(watching.stats(), WatchStats)
        assert repr(watching) == "<Watched 'carts'>"
        assert type(pool) is not redis.ConnectionPool

    assert type(pool) is redis.ConnectionPool


def lent(**words: Any) -> tuple[Watched, Any]:
    """Return a watch, and the pool that it is over, which has lent a connection."""
    pool = redis.ConnectionPool(connection_class=Loan)
    watching = watch(pool, **words)
    pool.get_connection()
    return watching, pool


def test_listeners_come_and_go(clock: Clock) -> None:
    """Those of the pool, and those of everybody."""
    one, other, all_of_them = list[Event](), list[Event](), list[Event]()
    hear_all: Callable[[Event], None] = all_of_them.append
    add_listener(hear_all)
    try:
        watching, pool = lent(name="carts", clock=clock, listeners=[one.append])
        hear: Callable[[Event], None] = other.append
        watching.add_listener(hear)
        clock.now += 31.0
        watching._ledger.round()
        watching.remove_listener(hear)
        pool.get_connection()
        clock.now += 31.0
        watching._ledger.round()
    finally:
        remove_listener(hear_all)

    assert [type(event) for event in one] == [ConnectionLeaked] * 2
    assert other == one[:1]
    assert all_of_them == one
    assert {event.policy for event in one} == {"carts"}


def test_nothing_is_reported_without_a_time(clock: Clock) -> None:
    """With `leak_after=None` borrowers are known, and that is all."""
    heard: list[Event] = []
    watching, _pool = lent(clock=clock, leak_after=None, listeners=[heard.append])
    clock.now += 1e6
    watching._ledger.round()

    assert (heard, watching.stats().leaked) == ([], 0)
    assert watching.borrowers()[0].held_for == 1e6


def test_leaks_are_found_without_anybody_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the thread that makes rounds, on the real clock."""
    heard: list[Event] = []
    quick = rounds.Watcher(every=0.01)
    monkeypatch.setattr("resilient.pool.watching.watched.attend", quick.attend)
    monkeypatch.setattr("resilient.pool.watching.watched.dismiss", quick.dismiss)
    watching, _pool = lent(leak_after=0.01, listeners=[heard.append])

    wait_until(lambda: len(heard) == 1, "the report")
    assert isinstance(heard[0], ConnectionLeaked)
    watching.unwatch()
    assert quick.attended == 0


def test_slow_listener_holds_up_nobody_who_borrows(clock: Clock) -> None:
    """It is called by a thread of our own, after all is written down."""
    watching, pool = lent(clock=clock)

    def borrow_too(_event: Event) -> None:
        pool.get_connection()
        watching.borrowers()

    watching.add_listener(borrow_too)
    clock.now += 31.0
    watching._ledger.round()

    assert watching.stats().used == 2


def test_clients_of_other_kinds_can_be_given() -> None:
    """A subclass of a client, and a pool of a subclass."""

    class Client(redis.Redis):
        pass

    class Pool(redis.BlockingConnectionPool):
        pass

    kind: Any = Pool
    client = Client(connection_pool=kind(host="127.0.0.1", port=1))
    with watch(client):
        assert type(client.connection_pool).__name__ == "Pool"
    assert type(client.connection_pool) is Pool


def test_class_without_what_is_watched_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A version that is not known is left alone, and said so."""
    pool = psycopg_pool.ConnectionPool("", open=False)
    monkeypatch.delattr(psycopg_pool.ConnectionPool, "putconn")

    with pytest.raises(TypeError, match="cannot be watched: this version of it has no putconn"):
        watch(pool)
    assert type(pool) is psycopg_pool.ConnectionPool


def test_no_library_is_imported_that_is_not_there() -> None:
    """In a process of its own."""
    script = (
        "import sys\n"
        "import resilient.pool.watching as watching\n"
        "try:\n"
        "    watching.watch(object())\n"
        "except TypeError:\n"
        "    pass\n"
        "print({'sqlalchemy', 'psycopg_pool', 'psycopg', 'asyncpg'} & sys.modules.keys())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=50, check=False
    )

    assert (done.stdout.strip(), done.stderr) == ("set()", "")
