"""One table of cases for all four ways to make a call: of threads and of tasks, one answer and a stream."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator

import grpc
import grpc.aio
import pytest
from grpc import StatusCode
from tests.integrations.grpc.client_rig import Backend, Stub, Told, serving
from tests.support.waiting import wait_until

from resilient import AdaptiveThrottle, CircuitBreaker, CircuitOpenError, Retry
from resilient.integrations.grpc.client import (
    AioResilienceClientInterceptors,
    ResilienceClientInterceptor,
)
from resilient.integrations.grpc.statuses import FAULTS

CODES = [code for code in StatusCode if code not in {StatusCode.OK, StatusCode.CANCELLED}]
STREAM = [b"0", b"1", b"2", b"3", b"4"]

Ask = Callable[..., list[bytes]]
"""Makes one call under policies, and returns all its answers or raises."""


def unary(backend: Backend, *policies, cancel=False) -> list[bytes]:
    """One answer, in a thread."""
    with grpc.insecure_channel(backend.address) as plain:
        stub = Stub(grpc.intercept_channel(plain, ResilienceClientInterceptor(*policies)))
        if not cancel:
            return [stub.unary(b"0")]
        call = stub.held.future(b"")
        assert backend.begun.acquire(timeout=10)
        call.cancel()
        return [call.result(10)]


def stream(backend: Backend, *policies, cancel=False) -> list[bytes]:
    """A stream, in a thread."""
    with grpc.insecure_channel(backend.address) as plain:
        stub = Stub(grpc.intercept_channel(plain, ResilienceClientInterceptor(*policies)))
        if not cancel:
            return list(stub.stream(b""))
        call = stub.endless(b"")
        assert next(call) == b"first"
        call.cancel()
        return list(call)


def aio_unary(backend: Backend, *policies, cancel=False) -> list[bytes]:
    """One answer, in a task."""

    async def ask(stub: Stub) -> list[bytes]:
        if not cancel:
            return [await stub.unary(b"0")]
        call = stub.held(b"")
        assert await asyncio.to_thread(backend.begun.acquire, timeout=10)
        call.cancel()
        return [await call]

    return _in_a_task(backend, policies, ask)


def aio_stream(backend: Backend, *policies, cancel=False) -> list[bytes]:
    """A stream, in a task."""

    async def ask(stub: Stub) -> list[bytes]:
        if not cancel:
            return [message async for message in stub.stream(b"")]
        call = stub.endless(b"")
        assert await call.read() == b"first"
        call.cancel()
        return [await call.read()]

    return _in_a_task(backend, policies, ask)


def _in_a_task(backend: Backend, policies, ask) -> list[bytes]:
    async def run() -> list[bytes]:
        interceptors = AioResilienceClientInterceptors(*policies)
        async with grpc.aio.insecure_channel(backend.address, interceptors=interceptors) as channel:
            return await ask(Stub(channel))

    return asyncio.run(run())


@pytest.fixture(scope="module")
def server() -> Iterator[Backend]:
    """One server for all tests of this file."""
    with serving(threads=32) as backend:
        yield backend


@pytest.fixture
def backend(server: Backend) -> Iterator[Backend]:
    """The server, as if it were new."""
    server.told.clear()
    server.calls.clear()
    server.hold = threading.Event()
    server.begun = threading.Semaphore(0)
    server.cancelled = threading.Semaphore(0)
    yield server
    server.hold.set()


WAYS = pytest.mark.parametrize("ask", [unary, stream, aio_unary, aio_stream])


def failing(ask: Ask, backend: Backend, *policies, **words) -> grpc.RpcError:
    """Make a call that fails; return how."""
    with pytest.raises(grpc.RpcError) as caught:
        ask(backend, *policies, **words)
    return caught.value


def told(breaker: CircuitBreaker) -> dict[str, int]:
    """What a breaker has counted, without the zeros."""
    stats = breaker.stats()
    kinds = ("calls", "failures", "rejected", "abandoned", "ignored")
    return {kind: count for kind in kinds if (count := getattr(stats, kind))}


@WAYS
def test_success(backend, ask):
    """An answer is handed on, whichever policies judge it, and is one to each of them."""
    retry, throttle, breaker = Retry(on=grpc.RpcError), AdaptiveThrottle("t"), CircuitBreaker("b")
    answers = ask(backend, retry, throttle, breaker)
    assert answers == STREAM[: len(answers)] != []
    assert retry.stats().retries == 0
    assert throttle.stats().accepts == throttle.stats().attempts == 1
    assert told(breaker) == {"calls": 1}


@WAYS
@pytest.mark.parametrize("code", CODES, ids=lambda code: code.name)
def test_codes(backend, ask, code):
    """Each policy gets those that are failures to it; the others are answers, and reach the caller."""
    retry = Retry(on=grpc.RpcError, attempts=2, wait=0.001)
    throttle, breaker = AdaptiveThrottle("t"), CircuitBreaker("b")
    backend.tell(code, code)
    assert failing(ask, backend, retry, throttle, breaker).code() is code
    attempts = 2 if code in FAULTS | {StatusCode.RESOURCE_EXHAUSTED, StatusCode.ABORTED} else 1
    accepts = 0 if code in FAULTS | {StatusCode.RESOURCE_EXHAUSTED} else attempts
    failures = {"failures": attempts} if code in FAULTS else {}
    assert len(backend.calls) == attempts
    assert retry.stats().retries == attempts - 1
    assert throttle.stats().attempts == attempts
    assert throttle.stats().accepts == accepts
    assert told(breaker) == {"calls": attempts, **failures}


@WAYS
def test_answers_of_a_half_open_breaker(backend, ask):
    """A server that answers "not found" is there again."""
    breaker = CircuitBreaker("b", fail_max=1, reset_timeout=0)
    backend.tell(StatusCode.UNAVAILABLE, StatusCode.NOT_FOUND)
    assert failing(ask, backend, breaker).code() is StatusCode.UNAVAILABLE
    assert failing(ask, backend, breaker).code() is StatusCode.NOT_FOUND
    assert breaker.current_state == "closed"


@WAYS
def test_cancelled_by_the_server(backend, ask):
    """A call that ends with CANCELLED says nothing, and is not made again."""
    retry = Retry(on=grpc.RpcError, wait=0.001)
    throttle, breaker = AdaptiveThrottle("t"), CircuitBreaker("b", fail_max=1)
    backend.tell(StatusCode.CANCELLED)
    assert failing(ask, backend, retry, throttle, breaker).code() is StatusCode.CANCELLED
    assert len(backend.calls) == 1
    assert throttle.stats().abandoned == 1
    assert told(breaker) == {"abandoned": 1}


@WAYS
def test_cancelled_by_the_caller(backend, ask):
    """Who cancels learns that the call is cancelled, the server too; and it says nothing."""
    retry = Retry(on=grpc.RpcError, wait=0.001)
    throttle, breaker = AdaptiveThrottle("t"), CircuitBreaker("b", fail_max=1)
    with pytest.raises((grpc.RpcError, grpc.FutureCancelledError, asyncio.CancelledError)):
        ask(backend, retry, throttle, breaker, cancel=True)
    assert backend.cancelled.acquire(timeout=10)
    wait_until(lambda: throttle.stats().abandoned == 1, "the outermost that counts has heard of it")
    assert told(breaker) == {"abandoned": 1}
    assert len(backend.calls) == 1


@WAYS
def test_refusal(backend, ask):
    """What an open breaker refuses is no evidence to the policies around it, and nothing is sent."""
    outer, throttle, inner = CircuitBreaker("outer", fail_max=1), AdaptiveThrottle("t"), CircuitBreaker("b")
    inner.force_open()
    error = failing(ask, backend, outer, throttle, inner)
    assert isinstance(error, CircuitOpenError)
    assert error.code() is StatusCode.UNAVAILABLE
    assert backend.calls == []
    assert told(inner) == {"rejected": 1}
    assert throttle.stats().attempts == 0
    assert told(outer) == {"ignored": 1}


@WAYS
def test_server_that_wants_no_other_try(backend, ask):
    """A failure after which no attempt may follow is one to the breaker, and the retry never hears of it."""
    retry, breaker = Retry(on=grpc.RpcError, wait=0.001), CircuitBreaker("b")
    backend.tell(Told(StatusCode.UNAVAILABLE, "-1"))
    error = failing(ask, backend, retry, breaker)
    assert error.code() is StatusCode.UNAVAILABLE
    assert len(backend.calls) == 1
    assert retry.stats().retries == retry.stats().exhausted == 0
    assert told(breaker) == {"calls": 1, "failures": 1}


@WAYS
def test_on_result(backend, ask, caplog):
    """A rule about results is shown what calls answer, and no code in its place; streams have no result."""
    shown: list[object] = []
    breaker = CircuitBreaker("b", on_result=lambda answer: shown.append(answer) or True)
    backend.tell(StatusCode.NOT_FOUND)
    assert failing(ask, backend, breaker).code() is StatusCode.NOT_FOUND
    assert shown == []
    assert breaker.stats().failures == 0
    answers = ask(backend, breaker)
    assert (shown, breaker.stats().failures) == (([], 0) if answers == STREAM else ([b"0"], 1))
    assert not caplog.records


@WAYS
def test_error_has_no_other_behind_it(backend, ask):
    """What callers are raised is gRPC's error itself: none of ours is its context."""
    backend.tell(StatusCode.NOT_FOUND, Told(StatusCode.UNAVAILABLE, "-1"))
    retry = Retry(on=grpc.RpcError, wait=0.001)
    for _ in range(2):
        error = failing(ask, backend, retry, CircuitBreaker("b", on_result=bool))
        assert error.__context__ is None
