"""Clients under policies among strange company: other interceptors, errors without a status, interrupts."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc import StatusCode
from tests.integrations.grpc.client_rig import Backend, Stub, serving
from tests.support.waiting import await_until, wait_until

from resilient import Bulkhead, CircuitBreaker, Fallback, Retry
from resilient.errors import RejectedError
from resilient.integrations.grpc.client import (
    AioResilienceClientInterceptors,
    ResilienceClientInterceptor,
    Rpc,
    is_transient,
)


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    """One server for all tests of this file."""
    with serving() as running:
        yield running


class Inside(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    """An interceptor of somebody else's, inside: it does *what* in place of the call."""

    def __init__(self, what: Callable[[Any], Any]) -> None:
        self._what = what

    def intercept_unary_unary(self, continuation, client_call_details, request):
        return self._what(lambda: continuation(client_call_details, request))

    intercept_unary_stream = intercept_unary_unary


class Outside(grpc.UnaryUnaryClientInterceptor):
    """One outside, with details of a kind of its own."""

    class Details(grpc.ClientCallDetails):
        def __init__(self, method: str) -> None:
            self.method = method
            self.metadata = (("from", "outside"),)

    def intercept_unary_unary(self, continuation, client_call_details, request):
        return continuation(self.Details(client_call_details.method), request)


def stub_of(plain: grpc.Channel, *interceptors: Any) -> Stub:
    """The methods behind interceptors, outermost first."""
    return Stub(grpc.intercept_channel(plain, *interceptors))


class StatuslessError(grpc.RpcError):
    """An error as gRPC's class is by itself: it says nothing."""


def raising(error: BaseException) -> Callable[[Any], Any]:
    """What raises in place of a call."""

    def do(_call: Any) -> Any:
        raise error

    return do


class Interrupted:
    """A call in the middle of which somebody presses Ctrl-C."""

    cancelled = False

    def result(self) -> Any:
        raise KeyboardInterrupt

    def __next__(self) -> Any:
        raise KeyboardInterrupt

    def cancel(self) -> bool:
        self.cancelled = True
        return True

    def code(self) -> StatusCode:
        return StatusCode.CANCELLED


def test_error_without_a_status_is_a_failure(backend):
    """It is shown to the policies, counted, and raised as it is."""
    breaker = CircuitBreaker("b", fail_max=1)
    resilience = ResilienceClientInterceptor(breaker)
    error = StatuslessError()
    with grpc.insecure_channel(backend.address) as plain, pytest.raises(StatuslessError) as caught:
        stub_of(plain, resilience, Inside(raising(error))).unary(b"")
    assert caught.value is error
    assert breaker.stats().failures == 1
    assert resilience.stats().statuses == {"UNKNOWN": 1}


def test_error_that_is_none_of_grpcs_is_a_failure(backend):
    """What an interceptor inside raises is raised, from every sort of call."""
    breaker = CircuitBreaker("b", fail_max=9)
    with grpc.insecure_channel(backend.address) as plain:
        stub = stub_of(plain, ResilienceClientInterceptor(breaker), Inside(raising(LookupError("inside"))))
        future = stub.unary.future(b"")
        for make in (
            lambda: stub.unary(b""),
            future.result,
            future.code,
            lambda: next(stub.stream(b"")),
        ):
            with pytest.raises(LookupError, match="inside"):
                make()
    assert breaker.stats().failures == 3


def test_details_without_a_timeout_get_one(backend):
    """Whatever kind of details somebody else has made: the time is sent with them, and so is the rest."""
    backend.calls.clear()
    with grpc.insecure_channel(backend.address) as plain:
        assert stub_of(plain, Outside(), ResilienceClientInterceptor(timeout=3)).unary(b"a") == b"a"
    [call] = backend.calls
    assert 2 < call.time_remaining < 3.1


@pytest.mark.parametrize("shape", ["unary", "stream"])
def test_interrupt_says_nothing(backend, shape):
    """A call in the middle of which a thread is interrupted is cancelled, and abandoned for the policies."""
    breaker, slots, call = CircuitBreaker("b", fail_max=1), Bulkhead("slots", 1), Interrupted()
    resilience = ResilienceClientInterceptor(Retry(on=is_transient), breaker, slots)
    with grpc.insecure_channel(backend.address) as plain:
        stub = stub_of(plain, resilience, Inside(lambda _: call))
        if shape == "unary":
            with pytest.raises(KeyboardInterrupt):
                stub.unary.future(b"").result()
        else:
            stream = stub.stream(b"")
            with pytest.raises(KeyboardInterrupt):
                next(stream)
            with pytest.raises(grpc.RpcError) as caught:  # and not an end
                next(stream)
            assert caught.value.code() is StatusCode.CANCELLED
    assert call.cancelled
    assert slots.stats().in_use == 0
    assert breaker.stats().abandoned == 1
    assert breaker.stats().failures == 0


def test_answer_of_a_policy_is_a_call(backend):
    """What a fallback answers comes with a call that has ended well."""
    closed = CircuitBreaker("b")
    closed.force_open()
    done: list[Any] = []
    with grpc.insecure_channel(backend.address) as plain:
        stub = stub_of(plain, ResilienceClientInterceptor(Fallback(b"instead", on=RejectedError), closed))
        answer, call = stub.unary.with_call(b"")
        future = stub.unary.future(b"")
        assert future.result(10) == b"instead"
    call.add_done_callback(done.append)
    assert answer == call.result() == b"instead"
    assert done == [call]
    for each in (call, future):
        assert each.code() is StatusCode.OK
        assert each.details() == ""
        assert each.initial_metadata() == each.trailing_metadata() == ()
        assert each.done()
        assert {each.running(), each.cancelled(), each.is_active(), each.cancel()} == {False}
        assert each.exception() is each.traceback() is each.time_remaining() is None
        assert not each.add_callback(lambda: None)


def test_future_tells_of_its_call(backend):
    """Time, metadata, and both sorts of callbacks."""
    backend.hold = threading.Event()
    backend.begun = threading.Semaphore(0)
    called: list[Any] = []
    with grpc.insecure_channel(backend.address) as plain:
        call = stub_of(plain, ResilienceClientInterceptor(timeout=5)).held.future(b"a")
        assert call.add_callback(lambda: called.append("ended"))
        call.add_done_callback(called.append)
        assert backend.begun.acquire(timeout=10)
        wait_until(lambda: call.time_remaining() is not None, "the call is under way")
        assert 0 < call.time_remaining() < 5.1
        backend.hold.set()
        assert call.result(10) == b"a"
        assert call.initial_metadata() == call.trailing_metadata() == ()
        wait_until(lambda: len(called) == 2, "both were called back")
    assert called == ["ended", call]


def test_future_that_is_refused_tells_so(backend):
    """By its code, details and metadata, as by its error."""
    closed = CircuitBreaker("b")
    closed.force_open(reason="moved")
    with grpc.insecure_channel(backend.address) as plain:
        call = stub_of(plain, ResilienceClientInterceptor(closed)).unary.future(b"")
        assert call.code() is StatusCode.UNAVAILABLE
        assert "moved" in call.details()
        assert tuple(call.trailing_metadata()) == (("grpc-retry-pushback-ms", "-1"),)
        assert isinstance(call.exception(), grpc.RpcError)


async def test_aio_calls_tell_of_their_call(backend):
    """All that a call of grpc.aio's can be asked, of streams and of streamed requests."""
    interceptors = AioResilienceClientInterceptors(Retry(on=is_transient), timeout=5)
    async with grpc.aio.insecure_channel(backend.address, interceptors=interceptors) as guarded:
        stub = Stub(guarded)
        for call in (stub.stream(b""), stub.collect(iter([b"a"])), stub.chat(iter([b"a"]))):
            inner = await call._interceptors_task
            assert await call.initial_metadata() == grpc.aio.Metadata()
            assert 0 < inner.time_remaining() < 5.1
            if hasattr(call, "read"):
                while await call.read() is not grpc.aio.EOF:
                    pass
            else:
                assert await call == b"a"
            assert await call.code() is StatusCode.OK
            assert await call.details() == ""
            assert await call.trailing_metadata() == grpc.aio.Metadata()
            assert not await call.debug_error_string()
            assert call.done()
            assert not call.cancel()
            assert not call.cancelled()


def _living() -> int:
    return sum(type(each) is Rpc for each in gc.get_objects())


async def test_calls_leave_nothing_for_the_collector(backend):
    """A call that ended well is gone at once, whatever its shape and colour."""

    async def read(call: Any) -> None:
        async for _ in call:
            pass

    async def answer(call: Any) -> None:
        await call

    policies = Retry(on=is_transient), CircuitBreaker("b"), Bulkhead("slots", 1)
    gc.collect()
    before = _living()
    gc.disable()
    try:
        with grpc.insecure_channel(backend.address) as plain:
            stub = stub_of(plain, ResilienceClientInterceptor(*policies))
            for _ in range(10):
                stub.unary(b"")
                stub.collect(iter([b"a"]))
                list(stub.stream(b""))
                list(stub.chat(iter([b"a"])))
            del stub
        assert _living() == before
        interceptors = AioResilienceClientInterceptors(*policies)
        async with grpc.aio.insecure_channel(backend.address, interceptors=interceptors) as guarded:
            stub = Stub(guarded)
            for _ in range(10):
                await answer(stub.unary(b""))
                await answer(stub.collect(iter([b"a"])))
                await read(stub.stream(b""))
                await read(stub.chat(iter([b"a"])))
        await await_until(lambda: _living() <= before + 2, "all are gone, but the last of gRPC's own")
    finally:
        gc.enable()


async def test_aio_answers_ahead_are_kept(backend):
    """A stream that ended before anybody read to its end gives back its slot, and all of its messages."""
    slots = Bulkhead("slots", 1)
    interceptors = AioResilienceClientInterceptors(slots)
    async with grpc.aio.insecure_channel(backend.address, interceptors=interceptors) as guarded:
        stream = await Stub(guarded).stream(b"")._interceptors_task
        got = [await stream.read() for _ in range(4)]
        assert slots.stats().in_use == 1
        while (message := await stream.read()) is not grpc.aio.EOF:
            got.append(message)
    assert got == [b"0", b"1", b"2", b"3", b"4"]
    assert slots.stats().in_use == 0


async def test_aio_writes_through_an_interceptor_outside(backend):
    """Who holds our call itself, as an interceptor outside does, writes to the attempt under way."""
    interceptors = AioResilienceClientInterceptors(CircuitBreaker("b"))
    async with grpc.aio.insecure_channel(backend.address, interceptors=interceptors) as guarded:
        call = Stub(guarded).chat()
        inner = await call._interceptors_task
        with pytest.raises(Exception, match="API"):  # it is the iterator's that gRPC makes of writes
            await inner.write(b"a")
        with pytest.raises(Exception, match="API"):
            await inner.done_writing()
        call.cancel()
