"""Pools of clients of a real Valkey: no answer gets to the wrong caller, whatever happens to either side."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry
from tests.pool.load import acallers, callers
from tests.support.tcp_proxy import Latency, TcpProxy
from tests.support.valkey import ValkeyServer
from tests.support.waiting import await_until, wait_until

from resilient import AsyncConnectionPool, ConnectionPool
from resilient.errors import ConnectionReclaimedError, PoolTimeoutError, PoolUnavailableError

SOAK = bool(os.environ.get("RESILIENT_SOAK"))
pytestmark = [pytest.mark.faults, pytest.mark.timeout(600.0 if SOAK else 60.0)]

TAGGED = 100_000 if SOAK else 10_000
LEEWAY = 0.25  # seconds; two slow cores, and everybody wants them
BACK_WITHIN = 1.5
_CALLERS = 12


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyServer]:
    """One Valkey; who stops it starts it again."""
    with ValkeyServer() as server:
        yield server


def connect(server: ValkeyServer) -> redis.Redis:
    """Return a client that is one connection, and leaves trying again to others."""
    return redis.Redis.from_url(
        server.url,
        single_connection_client=True,
        protocol=2,
        socket_connect_timeout=2.0,
        retry=Retry(NoBackoff(), 0),
    )


async def aconnect(server: ValkeyServer | TcpProxy) -> redis.asyncio.Redis:
    client = redis.asyncio.Redis(
        host=server.host,
        port=server.port,
        single_connection_client=True,
        protocol=2,
        socket_connect_timeout=2.0,
        retry=redis.asyncio.retry.Retry(NoBackoff(), 0),  # type: ignore[attr-defined]
    )
    return await client.initialize()


def pool_of(server: ValkeyServer, **options: Any) -> ConnectionPool[redis.Redis]:
    return ConnectionPool(partial(connect, server), **{"name": "carts", "max_size": 4, **options})


def apool_of(server: ValkeyServer | TcpProxy, **options: Any) -> AsyncConnectionPool[redis.asyncio.Redis]:
    return AsyncConnectionPool(partial(aconnect, server), **{"name": "carts", "max_size": 4, **options})


def say(pool: ConnectionPool[redis.Redis], word: str) -> str:
    """Have the server say *word*."""
    with pool.connection() as client:
        answer = client.echo(word)
    assert isinstance(answer, bytes)
    return answer.decode()


async def asay(pool: AsyncConnectionPool[redis.asyncio.Redis], word: str) -> str:
    async with pool.connection() as client:
        answer: bytes = await client.echo(word)
    return answer.decode()


def clients(server: ValkeyServer) -> int:
    """Return how many are connected, the one who asks not counted."""
    with server.client() as client:
        return int(client.info("clients")["connected_clients"]) - 1


def assert_nothing_leaked(pool: ConnectionPool[Any] | AsyncConnectionPool[Any]) -> None:
    """See that a closed pool has accounted for every connection that it had."""
    stats = pool.stats()
    assert (stats.size, stats.used, stats.idle, stats.waiting, stats.connecting) == (0, 0, 0, 0, 0)
    assert stats.closed == stats.connects


class TestUse:
    def test_a_client_is_one_connection_and_is_used_again(self, server: ValkeyServer) -> None:
        """It behaves as the client it stands for, and nothing is left when the pool is closed."""
        with pool_of(server) as pool:
            with pool.connection() as client:
                assert isinstance(client, redis.Redis)
                client.set("cart", "empty")
                first = client.client_id()
            with pool.connection() as client:
                assert client.get("cart") == b"empty"
                assert client.client_id() == first
            assert pool.stats().connects == 1
        wait_until(lambda: clients(server) == 0, "nobody is connected")
        assert_nothing_leaked(pool)

    def test_an_answer_that_is_an_error_costs_no_connection(self, server: ValkeyServer) -> None:
        """WRONGTYPE is the answer, and it was read."""
        with pool_of(server, max_size=1) as pool:
            with pytest.raises(redis.ResponseError), pool.connection() as client:
                client.eval("return redis.error_reply('WRONGTYPE')", 0)

            assert say(pool, "well") == "well"
            assert (pool.stats().connects, pool.stats().discarded) == (1, 0)

    def test_one_that_was_lost_and_nothing_said_of_is_replaced(self, server: ValkeyServer) -> None:
        """redis-py would connect anew in the middle of the next borrower's call."""
        with pool_of(server, max_size=1) as pool:
            with pool.connection() as client:
                first = client.client_id()
                with server.client() as other:
                    other.client_kill_filter(_id=str(first))
                with pytest.raises(redis.ConnectionError):
                    client.ping()

            with pool.connection() as client:
                assert client.client_id() != first
            assert pool.stats().discarded == 1

    def test_a_primary_that_is_one_no_longer_is_left(self, server: ValkeyServer) -> None:
        """E4: after a failover, whoever wants to write is told READONLY; the connection is not kept."""
        with pool_of(server, max_size=1) as pool:
            assert say(pool, "well") == "well"
            with server.client() as other:
                other.replicaof("127.0.0.1", "1")
                try:
                    with pytest.raises(redis.ReadOnlyError), pool.connection() as client:
                        client.set("cart", "full")
                finally:
                    other.replicaof("NO", "ONE")

            assert say(pool, "well") == "well"
            assert pool.stats().discarded == 1


class TestCancellation:
    async def test_answers_never_get_to_the_wrong_caller(self, server: ValkeyServer) -> None:
        """redis-py#2624, #2665, CVE-2023-28858: calls cancelled at any moment, each with its own word."""
        chance, loop = random.Random(45), asyncio.get_running_loop()
        cancelled = mixed = failed = 0
        usual = 0.001  # seconds that a call takes, here and now

        async with apool_of(server, max_size=8) as pool:

            async def call(word: str) -> None:
                nonlocal cancelled, mixed, failed, usual
                begun = loop.time()
                task = asyncio.ensure_future(asay(pool, word))
                if chance.random() < 0.2:
                    # Somewhere between waiting for a connection and having the answer.
                    loop.call_later(chance.random() * usual, task.cancel)
                try:
                    mixed += await task != word
                    usual += 0.05 * (loop.time() - begun - usual)
                except asyncio.CancelledError:
                    cancelled += 1
                except redis.RedisError:
                    failed += 1

            async def caller(number: int) -> None:
                for turn in range(TAGGED // _CALLERS):
                    await call(f"word-{number}-{turn}")

            async with asyncio.TaskGroup() as crowd:
                for number in range(_CALLERS):
                    crowd.create_task(caller(number))

        assert (mixed, failed) == (0, 0)
        assert TAGGED // 1000 < pool.stats().discarded <= cancelled
        assert_nothing_leaked(pool)
        await asyncio.to_thread(wait_until, lambda: clients(server) == 0, "nobody is connected")

    async def test_answers_that_are_late_are_nobodys(self, server: ValkeyServer) -> None:
        """Callers that gave up waiting, with answers on their way that come all the same."""
        with TcpProxy(server.port) as proxy, proxy.toxic(Latency(0.004, 0.004)):
            timed_out = mixed = 0
            async with apool_of(proxy) as pool:

                async def caller(number: int) -> None:
                    nonlocal timed_out, mixed
                    for turn in range(150 if SOAK else 12):
                        word = f"word-{number}-{turn}"
                        try:
                            async with pool.connection() as client, asyncio.timeout(0.005):
                                mixed += (await client.echo(word)).decode() != word
                        except TimeoutError:
                            timed_out += 1

                async with asyncio.TaskGroup() as crowd:
                    for number in range(8):
                        crowd.create_task(caller(number))

        assert mixed == 0
        assert timed_out > 0
        assert pool.stats().discarded == timed_out


class TestLostConnections:
    @pytest.mark.parametrize("end", [ValkeyServer.kill, ValkeyServer.stop])
    def test_ended_under_load_and_started_again(
        self, server: ValkeyServer, end: Callable[[ValkeyServer], None]
    ) -> None:
        """A2: calls in flight fail, once; the others are refused at once; and it goes on by itself."""
        with pool_of(server, timeout=2.0) as pool, callers(partial(say, pool), threads=8) as outcomes:
            wait_until(lambda: len(outcomes.good) > 500, "all is well")
            end(server)
            wait_until(lambda: bool(outcomes.refused), "callers are refused")
            server.start()
            back = time.monotonic()
            wait_until(lambda: outcomes.first_good_after(back) is not None, "all is well again")

        soon = outcomes.first_good_after(back)
        assert soon is not None
        assert soon <= BACK_WITHIN
        assert len(outcomes.failed) <= 8 + 4
        assert {type(exc) for _, exc in outcomes.refused} == {PoolUnavailableError}
        assert not outcomes.mixed
        assert_nothing_leaked(pool)

    async def test_ended_under_load_and_started_again_asynchronously(self, server: ValkeyServer) -> None:
        """The same with fifty tasks, five times."""
        async with (
            apool_of(server, timeout=2.0) as pool,
            acallers(partial(asay, pool), tasks=50) as outcomes,
        ):
            for kills in range(1, 20 if SOAK else 4):
                good = len(outcomes.good)
                await await_until(lambda good=good: len(outcomes.good) > good + 500, "all is well")  # type: ignore[misc]
                await asyncio.to_thread(server.kill)
                await await_until(lambda: not pool.available, "the pool knows")
                await asyncio.to_thread(server.start)
                back = time.monotonic()
                await await_until(lambda at=back: outcomes.first_good_after(at) is not None, "well again")  # type: ignore[misc]
                soon = outcomes.first_good_after(back)
                assert soon is not None
                assert soon <= BACK_WITHIN
                assert len(outcomes.failed) <= kills * (4 + 4)

        assert not outcomes.mixed
        assert_nothing_leaked(pool)


class TestHangingServer:
    async def test_checkouts_and_close_end_in_time(self, server: ValkeyServer) -> None:
        """Frozen with all connections idle: nobody waits longer than was said."""
        timeout = 0.4
        pool = apool_of(server, min_size=3, check_after_idle=0.01, check_timeout=0.3, timeout=timeout)
        await pool.wait()
        await asyncio.sleep(0.02)  # so that each is asked first
        server.pause()
        try:
            began = time.monotonic()
            raised = await asyncio.gather(*(asay(pool, "word") for _ in range(20)), return_exceptions=True)
            took = time.monotonic() - began
            began = time.monotonic()
            await pool.close(drain=0.2)
            closing = time.monotonic() - began
        finally:
            server.resume()

        assert {type(exc) for exc in raised} <= {PoolTimeoutError, PoolUnavailableError}
        assert took <= timeout + LEEWAY
        assert closing <= 0.2 + LEEWAY
        await asyncio.to_thread(wait_until, lambda: clients(server) == 0, "nothing is left behind")

    def test_late_answers_reach_nobody_else(self, server: ValkeyServer) -> None:
        """Frozen under load, and its connections taken away: what it says later is not heard."""
        with (
            pool_of(server, on_leak="reclaim", max_hold=0.3, timeout=1.0, check_timeout=0.3) as pool,
            callers(partial(say, pool), threads=8) as outcomes,
        ):
            wait_until(lambda: len(outcomes.good) > 500, "all is well")
            server.pause()
            try:
                wait_until(lambda: pool.stats().reclaimed > 0, "some are taken away")
                wait_until(lambda: pool.stats().used == 0, "nobody is stuck")
            finally:
                server.resume()
            back = time.monotonic()
            wait_until(lambda: outcomes.first_good_after(back) is not None, "all is well again")

        assert not outcomes.mixed
        assert {type(exc) for _, exc in outcomes.failed} <= {redis.ConnectionError, ConnectionReclaimedError}
        assert outcomes.failed
        assert_nothing_leaked(pool)


class TestReclaim:
    def test_held_for_too_long_is_taken_away(self, server: ValkeyServer) -> None:
        """The server's side is closed, and its late borrower is told."""
        with pool_of(server, max_size=1, on_leak="reclaim", max_hold=0.3) as pool:
            client = pool.getconn()
            held = client.client_id()

            assert say(pool, "well") == "well"

            with server.client() as other:
                wait_until(
                    lambda: str(held) not in [one["id"] for one in other.client_list()], "it is closed there"
                )
            with pytest.raises(ConnectionReclaimedError, match=r"test_real_valkey\.py"):
                client.get("cart")
            with pytest.raises(ConnectionReclaimedError):
                pool.putconn(client)

    async def test_a_blocked_borrower_is_woken(self, server: ValkeyServer) -> None:
        """BLPOP for a minute, on a connection that may be held for less."""
        async with apool_of(server, max_size=1, on_leak="reclaim", max_hold=0.3) as pool:

            async def hold() -> None:
                async with pool.connection() as client:
                    await client.blpop(["nothing"], 60)

            holder = asyncio.create_task(hold())
            await await_until(lambda: pool.stats().used == 1, "it is lent")

            assert await asay(pool, "well") == "well"
            with pytest.raises((redis.ConnectionError, ConnectionReclaimedError)):
                await holder
