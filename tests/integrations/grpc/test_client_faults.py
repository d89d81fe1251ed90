"""Clients under policies, before servers that are gone, dying, deaf, frozen or speak something else."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import grpc.aio
import pytest
from grpc import StatusCode
from tests.integrations.grpc import client_rig
from tests.integrations.grpc.client_rig import Stub, serving
from tests.support.ports import free_port
from tests.support.server import ServerProcess
from tests.support.tcp_proxy import TcpProxy
from tests.support.tcp_proxy import Timeout as Blackhole
from tests.support.waiting import wait_until

from resilient import Bulkhead, CallTimeoutError, CircuitBreaker, CircuitOpenError, Retry, Timeout
from resilient.integrations.grpc.client import (
    AioResilienceClientInterceptors,
    ResilienceClientInterceptor,
    is_transient,
)

pytestmark = pytest.mark.faults

# A channel of each test's own connections, and no waits of gRPC's before it connects again.
FRESH = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 100),
)


class GrpcProcess(ServerProcess):
    """The backend of the rig, in a process that can be killed and frozen."""

    def _command(self) -> list[str]:
        return [sys.executable, str(Path(client_rig.__file__)), str(self.port)]

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((self.host, self.port)) == 0


@pytest.fixture(scope="module")
def process() -> Iterator[GrpcProcess]:
    """One process for the tests that freeze or kill it."""
    with GrpcProcess() as running:
        yield running


def plain(port: int) -> grpc.Channel:
    return grpc.insecure_channel(f"127.0.0.1:{port}", options=FRESH)


def test_connection_refused():
    """Nobody listens: retried, counted as no connection, and the breaker opens."""
    resilience = ResilienceClientInterceptor(
        Retry(on=is_transient, attempts=3, wait=0.001), CircuitBreaker("b", fail_max=3, reset_timeout=60)
    )
    with plain(free_port()) as bare:
        stub = Stub(grpc.intercept_channel(bare, resilience))
        with pytest.raises(grpc.RpcError) as caught:
            stub.unary(b"")
        with pytest.raises(CircuitOpenError):
            list(stub.stream(b""))
    assert caught.value.code() is StatusCode.UNAVAILABLE
    stats = resilience.stats()
    assert stats.connection_failures == stats.statuses["UNAVAILABLE"] == 3
    assert stats.success_ratio == 0.0


async def test_connection_refused_aio():
    """The same for tasks."""
    resilience = AioResilienceClientInterceptors(Retry(on=is_transient, attempts=3, wait=0.001))
    address = f"127.0.0.1:{free_port()}"
    async with grpc.aio.insecure_channel(address, options=FRESH, interceptors=resilience) as channel:
        with pytest.raises(grpc.RpcError):
            await Stub(channel).unary(b"")
        with pytest.raises(grpc.RpcError):
            await Stub(channel).collect(iter([b"a"]))
    assert resilience.stats().connection_failures == 6


def test_server_killed_in_the_middle_of_calls():
    """Calls under way fail, those after them are refused, and when it is back they go through."""
    breaker = CircuitBreaker("b", fail_max=4, reset_timeout=0.05)
    slots = Bulkhead("slots", 16)
    with GrpcProcess() as server, plain(server.port) as bare, ThreadPoolExecutor(8) as pool:
        stub = Stub(grpc.intercept_channel(bare, ResilienceClientInterceptor(breaker, slots, timeout=20)))
        under_way = [pool.submit(stub.held, b"a") for _ in range(4)]
        stream = stub.endless(b"")
        assert next(stream) == b"first"
        wait_until(lambda: slots.stats().in_use == 5, "all calls are under way")
        server.kill()
        codes = {call.exception(20).code() for call in under_way}
        with pytest.raises(grpc.RpcError) as caught:
            next(stream)
        assert codes == {StatusCode.UNAVAILABLE} == {caught.value.code()}
        assert breaker.stats().times_opened >= 1
        assert slots.stats().in_use == 0
        server.start()
        wait_until(lambda: _answers(stub), "the server is back")
    assert breaker.current_state == "closed"


def _answers(stub: Stub) -> bool:
    try:
        return stub.unary(b"a", timeout=1) == b"a"
    except grpc.RpcError:
        return False


def test_frozen_server(process):
    """A server that does not answer costs its time and no more, and then nothing."""
    breaker = CircuitBreaker("b", fail_max=2, reset_timeout=60)
    with plain(process.port) as bare:
        stub = Stub(grpc.intercept_channel(bare, ResilienceClientInterceptor(breaker, Timeout(0.2))))
        assert stub.unary(b"a") == b"a"
        process.pause()
        try:
            began = time.monotonic()
            for _ in range(2):
                with pytest.raises(CallTimeoutError):
                    stub.unary(b"a")
            assert time.monotonic() - began < 5
            with pytest.raises(CircuitOpenError):
                stub.unary(b"a")
        finally:
            process.resume()
        breaker.close()
        wait_until(lambda: _answers(stub), "the server goes on")


@pytest.mark.parametrize("shape", ["unary", "stream", "collect", "chat"])
def test_black_hole(shape):
    """A connection that swallows everything ends with the time, whatever the shape."""
    slots = Bulkhead("slots", 1)
    with serving() as backend, TcpProxy(backend.port) as proxy, plain(proxy.port) as bare:
        stub = Stub(grpc.intercept_channel(bare, ResilienceClientInterceptor(slots, timeout=0.2)))
        make = {
            "unary": lambda: stub.unary(b""),
            "stream": lambda: list(stub.stream(b"")),
            "collect": lambda: stub.collect(iter([b"a"])),
            "chat": lambda: list(stub.chat(iter([b"a"]))),
        }[shape]
        with proxy.toxic(Blackhole()), pytest.raises(grpc.RpcError) as caught:
            make()
        assert caught.value.code() is StatusCode.DEADLINE_EXCEEDED
        assert isinstance(caught.value, CallTimeoutError)
        assert slots.stats().in_use == 0


async def test_black_hole_aio():
    """The same for tasks: nobody waits longer than its time, and no task is left."""
    with serving() as backend, TcpProxy(backend.port) as proxy, proxy.toxic(Blackhole()):
        resilience = AioResilienceClientInterceptors(
            Retry(on=is_transient), CircuitBreaker("b"), Timeout(0.2)
        )
        address = f"127.0.0.1:{proxy.port}"
        async with grpc.aio.insecure_channel(address, options=FRESH, interceptors=resilience) as channel:
            stub = Stub(channel)

            async def unary() -> bytes:
                return await stub.unary(b"")

            outcomes = await asyncio.gather(*(unary() for _ in range(20)), return_exceptions=True)
    assert {type(outcome).__mro__[1] for outcome in outcomes} == {CallTimeoutError}
    assert all(isinstance(outcome, grpc.RpcError) for outcome in outcomes)


def test_tls_handshake_fails():
    """A server that does not speak TLS is no connection: UNAVAILABLE, counted as such."""
    resilience = ResilienceClientInterceptor(Retry(on=is_transient, attempts=2, wait=0.001), timeout=10)
    with serving() as backend:
        secure = grpc.secure_channel(
            f"127.0.0.1:{backend.port}", grpc.ssl_channel_credentials(), options=FRESH
        )
        with secure as bare, pytest.raises(grpc.RpcError) as caught:
            Stub(grpc.intercept_channel(bare, resilience)).unary(b"")
    assert caught.value.code() is StatusCode.UNAVAILABLE
    assert resilience.stats().connection_failures == 2


def test_connection_lost_between_attempts():
    """A call whose connection is cut before its answer is made again on a new one."""
    resilience = ResilienceClientInterceptor(Retry(on=is_transient, attempts=20, wait=0.05, budget=None))
    with serving() as backend, TcpProxy(backend.port) as proxy, plain(proxy.port) as bare:
        stub = Stub(grpc.intercept_channel(bare, resilience))
        call = stub.held.future(b"a")
        assert backend.begun.acquire(timeout=10)
        with proxy.down():
            wait_until(lambda: resilience.stats().statuses.get("UNAVAILABLE", 0) >= 1, "the attempt failed")
            backend.hold.set()
        assert call.result(20) == b"a"
