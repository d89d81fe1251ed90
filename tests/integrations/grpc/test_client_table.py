"""One table of cases for all four ways to make a call: of threads and of tasks, one answer and a stream."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace

import grpc
import grpc.aio
import pytest
from grpc import StatusCode
from tests.integrations.grpc.client_rig import Backend, Stub, Told
from tests.support.waiting import wait_until

from resilient import (
    AdaptiveThrottle,
    CircuitBreaker,
    CircuitOpenError,
    RateLimitedError,
    RateLimiter,
    Retry,
)
from resilient.integrations.grpc.client import (
    AioResilienceClientInterceptors,
    ResilienceClientInterceptor,
)
from resilient.integrations.grpc.client_guards import Attempts, Guard
from resilient.integrations.grpc.statuses import FAULTS

CODES = [code for code in StatusCode if code not in {StatusCode.OK, StatusCode.CANCELLED}]
STREAM = [b"0", b"1", b"2", b"3", b"4"]

Ask = Callable[..., list[bytes]]
"""Makes one call under policies, and others *inside*; returns all its answers or raises."""


def unary(backend: Backend, *policies, inside=(), cancel=False) -> list[bytes]:
    """One answer, in a thread."""
    with grpc.insecure_channel(backend.address) as plain:
        stub = _guarded(plain, policies, inside)
        if not cancel:
            return [stub.unary(b"0")]
        call = stub.held.future(b"")
        assert backend.begun.acquire(timeout=10)
        call.cancel()
        return [call.result(10)]


def stream(backend: Backend, *policies, inside=(), cancel=False) -> list[bytes]:
    """A stream, in a thread."""
    with grpc.insecure_channel(backend.address) as plain:
        stub = _guarded(plain, policies, inside)
        if not cancel:
            return list(stub.stream(b""))
        call = stub.endless(b"")
        assert next(call) == b"first"
        call.cancel()
        return list(call)


def aio_unary(backend: Backend, *policies, inside=(), cancel=False) -> list[bytes]:
    """One answer, in a task."""

    async def ask(stub: Stub) -> list[bytes]:
        if not cancel:
            return [await stub.unary(b"0")]
        call = stub.held(b"")
        assert await asyncio.to_thread(backend.begun.acquire, timeout=10)
        call.cancel()
        return [await call]

    return _in_a_task(backend, policies, inside, ask)


def aio_stream(backend: Backend, *policies, inside=(), cancel=False) -> list[bytes]:
    """A stream, in a task."""

    async def ask(stub: Stub) -> list[bytes]:
        if not cancel:
            return [message async for message in stub.stream(b"")]
        call = stub.endless(b"")
        assert await call.read() == b"first"
        call.cancel()
        return [await call.read()]

    return _in_a_task(backend, policies, inside, ask)


def _guarded(plain: grpc.Channel, policies, inside) -> Stub:
    others = [ResilienceClientInterceptor(*inside)] if inside else []
    return Stub(grpc.intercept_channel(plain, ResilienceClientInterceptor(*policies), *others))


def _in_a_task(backend: Backend, policies, inside, ask) -> list[bytes]:
    async def run() -> list[bytes]:
        interceptors = [*AioResilienceClientInterceptors(*policies)]
        if inside:
            interceptors.extend(AioResilienceClientInterceptors(*inside))
        async with grpc.aio.insecure_channel(backend.address, interceptors=interceptors) as channel:
            return await ask(Stub(channel))

    return asyncio.run(run())


STREAMS = (stream, aio_stream)
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


def shut() -> tuple[CircuitBreaker, type[Exception], StatusCode]:
    """A breaker that lets nothing in, and how it refuses."""
    breaker = CircuitBreaker("shut")
    breaker.force_open()
    return breaker, CircuitOpenError, StatusCode.UNAVAILABLE


def spent() -> tuple[RateLimiter, type[Exception], StatusCode]:
    """A limiter that has let in all that it will, and how it refuses."""
    limiter = RateLimiter("1/hour")
    limiter.hit()
    return limiter, RateLimitedError, StatusCode.RESOURCE_EXHAUSTED


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
@pytest.mark.parametrize("refuse", [shut, spent])
@pytest.mark.parametrize("is_other", [False, True], ids=["same", "other-interceptor"])
def test_refusal(backend, ask, refuse, is_other):
    """What a policy refuses is no evidence to those around it, whatever its code, and nothing is sent."""
    breaker, throttle = CircuitBreaker("b", fail_max=1), AdaptiveThrottle("t")
    policy, kind, code = refuse()
    own, others = ([], [policy]) if is_other else ([policy], [])
    error = failing(ask, backend, breaker, throttle, *own, inside=others)
    assert isinstance(error, kind)
    assert error.code() is code
    assert backend.calls == []
    assert throttle.stats().attempts == 0
    assert told(breaker) == {"ignored": 1}


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
    assert told(breaker) == ({"calls": 1} if ask in STREAMS else {"abandoned": 1})
    ask(backend, breaker)
    assert (shown, breaker.stats().failures) == (([], 0) if ask in STREAMS else ([b"0"], 1))
    assert not caplog.records


@WAYS
def test_error_has_no_other_behind_it(backend, ask):
    """What callers are raised is gRPC's error itself: none of ours is its context."""
    backend.tell(StatusCode.NOT_FOUND, Told(StatusCode.UNAVAILABLE, "-1"))
    retry = Retry(on=grpc.RpcError, wait=0.001)
    for _ in range(2):
        error = failing(ask, backend, retry, CircuitBreaker("b", on_result=bool))
        assert error.__context__ is None


class NotFoundError(grpc.RpcError):
    """An answer, as gRPC raises it."""

    def code(self) -> StatusCode:
        """What it is."""
        return StatusCode.NOT_FOUND


@pytest.mark.parametrize("judges", [False, True], ids=["plain", "on_result"])
@pytest.mark.parametrize("kind", ["function", "generator", "coroutine", "async generator"])
def test_errors_leave_nothing_for_the_collector(kind, judges):
    """An error that went past a policy is gone as soon as nobody has it."""
    errors: list[weakref.ref[NotFoundError]] = []

    def fail() -> None:
        error = NotFoundError()
        errors.append(weakref.ref(error))
        try:
            raise error
        finally:
            del error

    def answer(_rpc):
        fail()

    def answers(_rpc):
        fail()
        yield

    async def answer_soon(_rpc):
        fail()

    async def answers_soon(_rpc):
        fail()
        yield

    is_async, streams = kind in {"coroutine", "async generator"}, kind.endswith("generator")
    breaker = CircuitBreaker("b", on_result=bool) if judges else CircuitBreaker("b")
    attempts = Attempts(answer_soon, answers_soon) if is_async else Attempts(answer, answers)
    guard = Guard((breaker,), attempts, FAULTS, is_async=is_async)
    rpc = SimpleNamespace(told=None)
    make = guard.streams(lambda begin: begin)[1] if streams else guard.unary

    def ask() -> None:
        call = make(rpc)
        if streams:
            call = anext(call) if is_async else next(call)
        if is_async:
            call.send(None)  # without a loop, which would hold the error for a while

    gc.collect()
    gc.disable()
    try:
        with suppress(NotFoundError):
            ask()
        assert [error() for error in errors] == [None]
    finally:
        gc.enable()
