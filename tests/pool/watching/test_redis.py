"""redis-py: what commands, subscriptions and pipelines hold, servers that hang, and its own metrics."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis
import redis.asyncio
from opentelemetry.metrics import MeterProvider, NoOpMeterProvider
from redis.backoff import NoBackoff
from redis.observability.config import MetricGroup, OTelConfig
from redis.observability.providers import OTelProviderManager, get_observability_instance
from redis.observability.recorder import reset_collector
from redis.retry import Retry
from tests.pool.collecting import Metrics
from tests.pool.watching.conftest import Clock
from tests.support.valkey import ValkeyServer
from tests.support.waiting import wait_until

from resilient.errors import PoolTimeoutError, PoolUnavailableError
from resilient.pool.watching import watch


@pytest.fixture
def client(shared_valkey: ValkeyServer) -> Iterator[Any]:
    """A client with a pool of two connections."""
    with redis.BlockingConnectionPool.from_url(shared_valkey.url, max_connections=2, timeout=5) as pool:
        yield redis.Redis(connection_pool=pool)


def test_commands_return_what_they_borrow(client: Any) -> None:
    """Each borrows a connection; so does a pipeline."""
    watching = watch(client)

    client.set("watched", "1")
    with client.pipeline() as pipeline:
        pipeline.get("watched")
        pipeline.execute()

    assert (watching.stats().checkouts, watching.stats().used) == (2, 0)


def test_subscription_that_nobody_closes_is_named(client: Any, clock: Clock) -> None:
    """By the line that subscribed, not by one of redis-py's."""
    watching = watch(client, clock=clock)
    subscription = client.pubsub()
    subscription.subscribe("news")
    clock.now += 40.0
    watching._ledger.round()

    (borrower,) = watching.borrowers()
    assert borrower.where.startswith(f"{__file__}:")
    assert borrower.where.endswith("test_subscription_that_nobody_closes_is_named")
    assert borrower.leaked

    subscription.close()
    assert watching.stats().used == 0


async def test_awaited_subscription_is_named_with_its_task(shared_valkey: ValkeyServer) -> None:
    """In the client for asyncio, too."""
    client = redis.asyncio.Redis.from_url(shared_valkey.url)
    watching = watch(client)
    async with client.pubsub() as subscription:
        await subscription.subscribe("news")
        (borrower,) = watching.borrowers()

    task = asyncio.current_task()
    assert task is not None
    assert borrower.where.endswith("test_awaited_subscription_is_named_with_its_task")
    assert borrower.task == task.get_name()
    await client.aclose()


def test_time_to_connect_is_that_of_a_new_connection(clock: Clock) -> None:
    """Not since an attempt that failed long ago."""
    refusals = [redis.ConnectionError("not today")]

    class Connection:
        pid = os.getpid()

        def __init__(self, **_words: Any) -> None:
            pass

        def connect(self) -> None:
            clock.now += 2.0
            if refusals:
                raise refusals.pop()

        def can_read(self) -> bool:
            return False

        def should_reconnect(self) -> bool:
            return False

        def re_auth(self) -> None:
            pass

    kind: Any = Connection
    pool = redis.ConnectionPool(connection_class=kind)
    watching = watch(pool, clock=clock)
    with pytest.raises(redis.ConnectionError, match="not today"):
        pool.get_connection()
    clock.now += 100.0
    pool.get_connection()
    pool.get_connection()

    timings = watching._ledger.timings
    assert timings is not None
    create, wait = timings.create.histogram(), timings.wait.histogram()
    assert (create.count, create.total) == (1, 2.0)
    assert (wait.count, wait.total) == (2, 4.0)


def test_disconnecting_takes_nothing_from_its_borrowers(client: Any) -> None:
    """They still have their connections to return, which connect again."""
    watching = watch(client)
    pool = client.connection_pool
    held = pool.get_connection()

    pool.disconnect()
    assert watching.stats().used == 1
    pool.release(held)
    assert watching.stats().used == 0
    assert client.ping()


async def test_return_that_was_cancelled_is_none(shared_valkey: ValkeyServer) -> None:
    """The pool counts the connection as used for ever: that is a leak, and is reported as one."""
    kind: Any = redis.asyncio.BlockingConnectionPool
    pool = kind.from_url(shared_valkey.url, max_connections=2)
    watching = watch(pool)
    connection = await pool.get_connection()
    async with pool._condition:  # somebody else is in the middle of something
        returning = asyncio.create_task(pool.release(connection))
        await asyncio.sleep(0)
        assert watching.stats().used == 0
        returning.cancel()
        with pytest.raises(asyncio.CancelledError):
            await returning

    assert watching.stats().used == 1
    await pool.release(connection)
    assert watching.stats().used == 0
    await pool.aclose()


def test_name_is_where_it_connects_to() -> None:
    """Never the password; that of a sentinel is the service."""
    pool = redis.ConnectionPool.from_url("redis://me:secret@cache.example:6380/2")
    assert watch(pool).name == "cache.example:6380/2"
    pool = redis.ConnectionPool.from_url("unix:///run/redis.sock?db=1")
    assert watch(pool).name == "/run/redis.sock/1"
    sentinels: Any = redis.Sentinel
    assert watch(sentinels([("localhost", 26379)]).master_for("carts")).name == "carts/0"


def test_idle_connections_of_every_kind_are_counted(client: Any) -> None:
    """In a blocking pool they stand in a queue, with placeholders for those not made yet."""
    with watch(client) as watching:
        assert watching.stats().idle == 0
        client.ping()
        assert watching.stats().idle == 1


def test_pool_without_a_limit_reports_none(shared_valkey: ValkeyServer) -> None:
    """Earlier versions of redis-py set a number that nobody reaches."""
    pool = redis.ConnectionPool.from_url(shared_valkey.url, max_connections=2**31)

    assert watch(pool).stats().max_size is None


def test_who_waits_is_counted(client: Any) -> None:
    """While no connection is free, and no longer."""
    watching = watch(client)
    pool = client.connection_pool
    held = [pool.get_connection(), pool.get_connection()]
    waiter = threading.Thread(target=client.ping)

    waiter.start()
    wait_until(lambda: watching.stats().waiting == 1, "a caller that waits")
    for connection in held:
        pool.release(connection)
    waiter.join(20)

    assert (watching.stats().waiting, watching.stats().used) == (0, 0)


@pytest.mark.faults
def test_check_of_a_server_that_hangs_ends_in_time(valkey: ValkeyServer) -> None:
    """So does one that comes while the first still hangs; neither keeps a connection in the end."""
    with redis.ConnectionPool.from_url(valkey.url, socket_timeout=20) as pool:
        watching = watch(pool, name="carts")
        watching.check(timeout=20.0)
        valkey.pause()
        for seconds in (1.0, 0.1):
            with pytest.raises(PoolTimeoutError, match="pool 'carts' failed: no answer from the server"):
                watching.check(timeout=seconds)
        (borrower,) = watching.borrowers()
        assert borrower.where.endswith("in RedisPool.probe"), "the first check still waits for its answer"
        stats = watching.stats()
        assert (stats.checkouts, stats.waiting) == (2, 0), "the other one has not begun, and will not"

        valkey.resume()
        wait_until(lambda: watching.stats().used == 0, "the end of the first check")
        watching.check(timeout=20.0)


@pytest.mark.faults
def test_answer_that_comes_too_late_is_nobody_elses(valkey: ValkeyServer) -> None:
    """The connection of a check that failed is not used again."""
    with redis.ConnectionPool.from_url(valkey.url, socket_timeout=0.1, retry=Retry(NoBackoff(), 0)) as pool:
        watching = watch(pool)
        watching.check(timeout=20.0)
        valkey.pause()
        with pytest.raises(PoolUnavailableError, match="TimeoutError"):
            watching.check(timeout=20.0)
        valkey.resume()

        pool.connection_kwargs["socket_timeout"] = 20
        assert redis.Redis(connection_pool=pool).echo("mine") == b"mine"


@pytest.mark.faults
async def test_awaited_check_of_a_server_that_hangs_ends_in_time(valkey: ValkeyServer) -> None:
    """It is cancelled, and its connection, on which an answer may still come, is not used again."""
    client = redis.asyncio.Redis.from_url(valkey.url, socket_timeout=20)
    watching = watch(client, name="carts")
    await watching.acheck(timeout=20.0)
    valkey.pause()
    with pytest.raises(PoolTimeoutError, match="no answer from the server within"):
        await watching.acheck(timeout=0.1)
    assert watching.stats().used == 0

    valkey.resume()
    assert await client.echo("mine") == b"mine"
    await client.aclose()


@pytest.mark.faults
def test_server_that_is_gone_is_said_so(valkey: ValkeyServer) -> None:
    """In a few words, with redis-py's reason."""
    with redis.ConnectionPool.from_url(valkey.url, retry=Retry(NoBackoff(), 0)) as pool:
        watching = watch(pool, name="carts")
        valkey.kill()
        with pytest.raises(PoolUnavailableError, match="the check of pool 'carts' failed: ConnectionError"):
            watching.check(timeout=20.0)
        assert (watching.stats().used, watching.stats().timeouts) == (0, 0)


class TestItsOwnMetrics:
    """What redis-py reports itself is left to it, once that is switched on."""

    @pytest.fixture
    def switch_on(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
        """Have redis-py report these groups of metrics."""
        provider: MeterProvider = NoOpMeterProvider()
        monkeypatch.setattr(OTelProviderManager, "get_meter_provider", lambda _: provider)
        instance = get_observability_instance()

        def on(*groups: MetricGroup, **words: Any) -> None:
            instance.init(OTelConfig(metric_groups=list(groups), **words))

        yield on
        instance.shutdown()
        reset_collector()

    def test_all_is_reported_while_it_is_off(self, client: Any) -> None:
        """As it is unless somebody asks for it."""
        watching = watch(client)

        assert watching._reported_by_others() == set()
        assert (watching.counts().used, watching.counts().timeouts) == (0, 0)

    def test_its_basic_group_has_the_count_and_the_time_to_connect(self, client: Any, switch_on: Any) -> None:
        """It may be switched on after the watch has begun."""
        watching = watch(client)
        switch_on(MetricGroup.CONNECTION_BASIC)

        assert watching._reported_by_others() == {"count", "create"}
        counts = watching.counts()
        assert (counts.idle, counts.used, counts.timeouts, counts.limit) == (None, None, 0, 2)
        assert counts.leaked == 0

    async def test_its_count_of_blocking_pools_is_not_relied_on(
        self, shared_valkey: ValkeyServer, switch_on: Any
    ) -> None:
        """In those for asyncio it counts only what is returned."""
        switch_on(MetricGroup.CONNECTION_BASIC)
        for kind, others in (
            (redis.asyncio.ConnectionPool, {"count", "create"}),
            (redis.asyncio.BlockingConnectionPool, {"create"}),
        ):
            pool: Any = kind.from_url(shared_valkey.url)
            assert watch(pool)._reported_by_others() == others

    def test_its_advanced_group_has_the_waits(self, client: Any, switch_on: Any) -> None:
        """With those that were in vain."""
        watching = watch(client)
        switch_on(MetricGroup.CONNECTION_ADVANCED, MetricGroup.COMMAND)

        assert watching._reported_by_others() == {"wait", "timeouts"}
        assert (watching.counts().used, watching.counts().timeouts) == (0, None)

    def test_what_it_times_meanwhile_is_never_reported_here(
        self, client: Any, clock: Clock, switch_on: Any
    ) -> None:
        """Nor later, when it is switched off again; what came before and comes after is."""
        with Metrics() as metrics, watch(client, name="carts", clock=clock):
            client.ping()
            assert metrics.durations("carts")["wait"][0] == 1
            switch_on(MetricGroup.CONNECTION_ADVANCED)
            for _ in range(4):
                client.ping()
            told = metrics.durations("carts")
            assert (told["wait"][0], told["use"][0]) == (1, 5)

            switch_on(MetricGroup.COMMAND)
            client.ping()
            told = metrics.durations("carts")
            assert (told["wait"][0], told["use"][0]) == (2, 6)

    def test_other_groups_are_none_of_our_business(self, client: Any, switch_on: Any) -> None:
        """Such as commands; nor is what it was told not to report."""
        watching = watch(client)
        switch_on(MetricGroup.COMMAND)
        assert watching._reported_by_others() == set()
        switch_on(MetricGroup.CONNECTION_BASIC, enabled_telemetry=[])
        assert watching._reported_by_others() == set()

    def test_all_is_reported_on_request(self, client: Any, switch_on: Any) -> None:
        """Then both report."""
        switch_on(MetricGroup.CONNECTION_BASIC)
        watching = watch(client, metrics=True)

        assert watching._reported_by_others() == set()
        assert watching.counts().used == 0
