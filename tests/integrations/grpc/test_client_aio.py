"""Policies around the calls of a channel of `grpc.aio`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest
from grpc import StatusCode
from tests.integrations.grpc.client_rig import Backend, Stub, Told
from tests.support.waiting import await_until

from resilient import (
    Bulkhead,
    BulkheadFullError,
    Cache,
    CallTimeoutError,
    CircuitBreaker,
    CircuitOpenError,
    DeadlineExceededError,
    Fallback,
    RateLimitedError,
    RateLimiter,
    Retry,
    Timeout,
    deadline,
)
from resilient.integrations.grpc.client import AioResilienceClientInterceptors, is_transient, status_in


@asynccontextmanager
async def channel(backend: Backend, *policies, **words) -> AsyncIterator[Stub]:
    """A channel under policies, and its methods."""
    interceptors = AioResilienceClientInterceptors(*policies, **words)
    async with grpc.aio.insecure_channel(backend.address, interceptors=interceptors) as guarded:
        yield Stub(guarded)


def soon(**words) -> Retry:
    """A retry that hardly waits."""
    return Retry(on=is_transient, wait=0.001, **words)


async def read(call) -> list[bytes]:
    """All messages of a stream."""
    return [message async for message in call]


async def read_into(got: list[bytes], call) -> None:
    """Read a stream, and keep what came before an error."""
    async for message in call:
        got.append(message)  # noqa: PERF401 - a list of it would be lost


async def test_every_shape_passes(backend):
    """All four kinds of call work as they do without policies, in both styles, and leave their slots."""
    slots = Bulkhead("slots", 4)
    async with channel(backend, soon(), CircuitBreaker("b"), slots, Timeout(5)) as stub:
        assert await stub.unary(b"a") == b"a"
        assert await read(stub.stream(b"")) == [b"0", b"1", b"2", b"3", b"4"]
        assert await stub.collect(iter([b"a", b"b"])) == b"a,b"
        assert await read(stub.chat(iter([b"a", b"b"]))) == [b"re:a", b"re:b"]
    assert slots.stats().in_use == 0
    assert slots.stats().calls == 4


async def test_reader_and_writer(backend):
    """Requests that are written one by one get through, under a retry, and answers are read one by one."""
    async with channel(backend, soon(), CircuitBreaker("b")) as stub:
        call = stub.chat()
        await call.wait_for_connection()
        for word in (b"a", b"b"):
            await call.write(word)
            assert await call.read() == b"re:" + word
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is StatusCode.OK
        call = stub.collect()
        await call.wait_for_connection()
        await call.write(b"a")
        await call.write(b"b")
        await call.done_writing()
        assert await call == b"a,b"
        assert await call.code() is StatusCode.OK


async def test_what_is_written_is_not_sent_again(backend):
    """A call to which somebody writes is not retried: nobody has kept what was written."""
    async with channel(backend, soon()) as stub:
        backend.tell(StatusCode.UNAVAILABLE)
        call = stub.collect()
        await call.write(b"a")
        await call.done_writing()
        with pytest.raises(grpc.RpcError) as caught:
            await call
    assert caught.value.code() is StatusCode.UNAVAILABLE
    assert [call.request for call in backend.calls] == [[b"a"]]


async def _requests() -> AsyncIterator[bytes]:
    yield b"a"
    yield b"b"


@pytest.mark.parametrize(
    "make",
    [
        lambda stub: stub.unary(b"a"),
        lambda stub: stub.collect(iter([b"a", b"b"])),
        lambda stub: stub.collect(_requests()),
    ],
    ids=["unary", "iterator", "generator"],
)
async def test_unavailable_is_retried(backend, make):
    """A call whose server is not to be had is made again, with all of its requests."""
    async with channel(backend, soon()) as stub:
        backend.tell(StatusCode.UNAVAILABLE, StatusCode.UNAVAILABLE)
        call = make(stub)
        await call
        assert await call.code() is StatusCode.OK
        assert await call.details() == ""
        assert await call.initial_metadata() == grpc.aio.Metadata()
        assert call.done()
    assert len(backend.calls) == 3
    assert backend.calls[0].request == backend.calls[2].request


@pytest.mark.parametrize("make", [lambda s: s.stream(b""), lambda s: s.chat(iter([b"a"]))])
async def test_stream_is_retried_until_its_first_message(backend, make):
    """A stream that fails before its first message begins anew."""
    async with channel(backend, soon()) as stub:
        backend.tell(StatusCode.UNAVAILABLE)
        messages = await read(make(stub))
    assert messages[0] in {b"0", b"re:a"}
    assert len(backend.calls) == 2


async def test_stream_cut_after_three_messages_is_not_retried(backend):
    """What was seen cannot be unseen: a stream that breaks is broken."""
    got = []
    async with channel(backend, soon()) as stub:
        backend.tell(None, None, None, StatusCode.UNAVAILABLE)
        call = stub.stream(b"")
        with pytest.raises(grpc.RpcError) as caught:
            await read_into(got, call)
        assert await call.code() is StatusCode.UNAVAILABLE
    assert caught.value.code() is StatusCode.UNAVAILABLE
    assert got == [b"0", b"1", b"2"]
    assert len(backend.calls) == 1


@pytest.mark.parametrize("code", [StatusCode.NOT_FOUND, StatusCode.PERMISSION_DENIED, StatusCode.ABORTED])
async def test_callers_fault_is_an_answer(backend, code):
    """What tells of the request trips no breaker, is not retried, and reaches the caller as it is."""
    breaker = CircuitBreaker("b", fail_max=1)
    async with channel(backend, soon(), breaker) as stub:
        for make in (lambda: stub.unary(b""), lambda: stub.collect(iter([]))):
            backend.tell(code)
            call = make()
            with pytest.raises(grpc.RpcError) as caught:
                await call
            assert caught.value.code() is await call.code() is code
        backend.tell(code)
        with pytest.raises(grpc.RpcError) as caught:
            await read(stub.stream(b""))
        assert caught.value.code() is code
    assert len(backend.calls) == 3
    assert breaker.stats().failures == breaker.stats().ignored == 0


async def test_refusal_is_an_error_of_both(backend):
    """An open circuit raises our error, which is gRPC's, too; the call tells its status; nothing is sent."""
    breaker = CircuitBreaker("b")
    breaker.force_open(reason="maintenance")
    async with channel(backend, breaker) as stub:
        calls = [stub.unary(b""), stub.collect(iter([])), stub.stream(b""), stub.chat(iter([])), stub.chat()]
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await (call if hasattr(call, "__await__") else read(call))
            assert isinstance(caught.value, CircuitOpenError)
            assert caught.value.code() is StatusCode.UNAVAILABLE
            assert await call.code() is StatusCode.UNAVAILABLE
            assert "maintenance" in await call.details()
            assert dict(tuple(await call.trailing_metadata())) == {"grpc-retry-pushback-ms": "-1"}
            assert call.done()
    assert backend.calls == []


async def test_refused_retry_of_a_stream(backend):
    """A stream under a retry that is refused tells so where it is read."""
    breaker = CircuitBreaker("b")
    breaker.force_open()
    async with channel(backend, soon(), breaker) as stub:
        call = stub.stream(b"")
        with pytest.raises(CircuitOpenError):
            await read(call)
        assert await call.code() is StatusCode.UNAVAILABLE
        assert call.done()
    assert backend.calls == []


async def test_limits_refuse(backend):
    """A limiter and a bulkhead refuse with their statuses, and a bulkhead is held until a stream ends."""
    slots = Bulkhead("slots", 1)
    methods = {"/test.Backend/Collect": RateLimiter("1/hour")}
    async with channel(backend, slots, methods=methods) as stub:
        stream = stub.endless(b"")
        assert await anext(aiter(stream)) == b"first"
        with pytest.raises(grpc.RpcError) as caught:
            await stub.unary(b"")
        assert isinstance(caught.value, BulkheadFullError)
        backend.hold.set()
        assert await read(stream) == [b"last"]
        assert slots.stats().in_use == 0
        await stub.collect(iter([]))
        with pytest.raises(grpc.RpcError) as caught:
            await stub.collect(iter([]))
        assert isinstance(caught.value, RateLimitedError)
        assert caught.value.code() is StatusCode.RESOURCE_EXHAUSTED


async def test_pushback(backend):
    """A server that says when gets its call then; one that says never gets none."""
    waits: list[float] = []
    async with channel(backend, Retry(on=is_transient, wait=30, sleep=waits.append)) as stub:
        backend.tell(Told(StatusCode.UNAVAILABLE, "17"))
        await stub.unary(b"")
        backend.tell(Told(StatusCode.UNAVAILABLE, "250"))
        await read(stub.stream(b""))
        backend.tell(Told(StatusCode.UNAVAILABLE, "-1"))
        with pytest.raises(grpc.RpcError):
            await stub.unary(b"")
        backend.tell(Told(StatusCode.UNAVAILABLE, "-1"))
        with pytest.raises(grpc.RpcError):
            await read(stub.stream(b""))
    assert waits == [0.017, 0.25]


async def test_deadlines(backend):
    """Of the context's, the caller's, the channel's and the policy's time, the shortest is sent."""
    async with channel(backend, timeout=5) as stub:
        async with deadline(3):
            await stub.unary(b"", timeout=4)
            await read(stub.stream(b""))
            await stub.collect(iter([]))
        await stub.unary(b"")
        await stub.unary(b"", timeout=7)
    async with channel(backend, Timeout(2), timeout=5) as stub:
        await stub.unary(b"")
        await read(stub.chat(iter([])))
    assert [round(call.time_remaining) for call in backend.calls] == [3, 3, 3, 5, 7, 2, 2]


async def test_no_attempt_without_time(backend):
    """When the time is up, nothing is sent."""
    async with channel(backend, CircuitBreaker("b")) as stub:
        with deadline(0.001):
            threading.Event().wait(0.005)
            for call in (stub.unary(b""), stub.stream(b"")):
                with pytest.raises(grpc.RpcError) as caught:
                    await (call if hasattr(call, "__await__") else read(call))
                assert isinstance(caught.value, DeadlineExceededError)
                assert await call.code() is StatusCode.DEADLINE_EXCEEDED
    assert backend.calls == []


@pytest.mark.parametrize("words", [{"timeout": 0.05}, {}], ids=["channel", "policy"])
async def test_our_time_that_passes_is_ours_and_grpcs(backend, words):
    """Time that ran out by us is a `CallTimeoutError` and an RpcError; a failure to the breaker."""
    breaker = CircuitBreaker("b", fail_max=9)
    policies = (breaker,) if words else (breaker, Timeout(0.05))
    async with channel(backend, *policies, **words) as stub:
        for make in (lambda: stub.held(b""), lambda: read(stub.endless(b""))):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await make()
            assert isinstance(caught.value, CallTimeoutError)
            assert caught.value.code() is StatusCode.DEADLINE_EXCEEDED
    assert breaker.stats().failures == 2


async def test_time_that_passes_unread_says_nothing(backend):
    """A stream that nobody reads gives back its slot at its deadline, and tells who reads later."""
    breaker, slots = CircuitBreaker("b", fail_max=1), Bulkhead("slots", 1)
    async with channel(backend, breaker, slots, timeout=0.1) as stub:
        call = stub.endless(b"")
        await call.wait_for_connection()
        await await_until(lambda: slots.stats().in_use == 0, "the slot is free")
        with pytest.raises(CallTimeoutError):
            await read(call)
        assert await call.code() is StatusCode.DEADLINE_EXCEEDED
    assert breaker.stats().abandoned == 1
    assert breaker.stats().failures == 0


async def test_callers_time_that_passes_stays_grpcs(backend):
    """Time that the caller had named ends as it does without policies."""
    async with channel(backend, soon(), timeout=9) as stub:
        with pytest.raises(grpc.RpcError) as caught:
            await stub.held(b"", timeout=0.05)
    assert caught.value.code() is StatusCode.DEADLINE_EXCEEDED
    assert not isinstance(caught.value, CallTimeoutError)


async def test_fallback_and_cache(backend):
    """Policies that answer in the server's place do so for every shape that has them."""
    kept = Cache("kept", ttl=60, key=lambda rpc: rpc.request)
    closed = CircuitBreaker("b")
    closed.force_open()
    methods = {"/test.Backend/Unary": kept, "/test.Backend/*": (Fallback([b"x"]), closed)}
    async with channel(backend, methods=methods) as stub:
        assert [await stub.unary(b"a"), await stub.unary(b"a")] == [b"a", b"a"]
        assert await read(stub.stream(b"")) == [b"x"]
        call = stub.held(b"")
        assert await call == [b"x"]
        assert await call.code() is StatusCode.OK
    assert len(backend.calls) == 1


class TestCancellation:
    """A cancelled call says nothing, gives back what it holds, and is cancelled at the server."""

    @pytest.mark.parametrize("how", ["task", "call"])
    @pytest.mark.parametrize("shape", ["unary", "stream", "unread", "collect"])
    async def test_is_abandoned(self, backend, how, shape):
        """However it is cancelled, and whatever shape it has."""
        breaker = CircuitBreaker("b", fail_max=1)
        slots = Bulkhead("slots", 1)
        async with channel(backend, soon(), breaker, slots) as stub:
            calls = {
                "unary": lambda: stub.held(b""),
                "stream": lambda: stub.endless(b""),
                "unread": lambda: stub.endless(b""),
                "collect": lambda: stub.collect(_endless_requests()),
            }
            call = calls[shape]()
            if shape == "stream":
                await anext(aiter(call))
            if shape == "unread":
                await call.initial_metadata()
            task = None
            if shape in {"unary", "collect"} and how == "task":
                task = asyncio.ensure_future(_awaited(lambda: call))
            await await_until(lambda: slots.stats().in_use == 1, "the call has its slot")
            if shape == "unary":
                await await_until(lambda: backend.begun.acquire(blocking=False), "the call has begun")
            if task is not None:
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            else:
                assert call.cancel()
            await await_until(lambda: slots.stats().in_use == 0, "the slot is free")
            if shape != "collect":
                await await_until(lambda: backend.cancelled.acquire(blocking=False), "the server knows")
            if task is None and how == "call":
                assert call.cancelled()
                assert await call.code() is StatusCode.CANCELLED
        assert breaker.stats().failures == 0
        assert breaker.stats().abandoned == 1

    async def test_what_was_cancelled_does_not_look_complete(self, backend):
        """Who reads on after a cancel, their own or that of a wait, is cancelled, and not told of an end."""
        async with channel(backend, soon(), Bulkhead("slots", 9)) as stub:
            # What gRPC puts around ours says EOF to who reads on after a wait that was cut short.
            call = await stub.endless(b"")._interceptors_task
            await call.read()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await call.read()
            other = stub.endless(b"")
            await other.read()
            other.cancel()
            for cancelled in (call, other):
                with pytest.raises(asyncio.CancelledError):
                    await cancelled.read()
                assert await cancelled.code() is StatusCode.CANCELLED
                await await_until(cancelled.done, "it is over")

    @pytest.mark.parametrize("shape", ["unary", "stream", "collect", "chat"])
    async def test_at_every_step(self, backend, shape):
        """A task that is cancelled at whichever step of its loop leaves no slot, probe or task behind."""
        slots = Bulkhead("slots", 1, max_wait=5)
        breaker = CircuitBreaker("b", fail_max=1, reset_timeout=0, probe_timeout=1000)
        async with channel(backend, soon(), breaker, slots, timeout=0.3) as stub:
            for step in range(30):
                breaker.open()  # so that the next call is a probe, and there is room for one
                calls = {
                    "unary": lambda: stub.unary(b""),
                    "stream": lambda: read(stub.stream(b"")),
                    "collect": lambda: stub.collect(_requests()),
                    "chat": lambda: read(stub.chat(_requests())),
                }
                task = asyncio.ensure_future(_awaited(calls[shape]))
                for _ in range(step):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
                assert task.cancelled() or task.exception() is None
                await await_until(lambda: slots.stats().in_use == 0, "the slot is free")
            breaker.open()
            assert await stub.unary(b"a") == b"a"
        assert breaker.current_state == "closed"
        assert breaker.stats().failures == 0

    async def test_between_attempts(self, backend):
        """A call that is cancelled while it waits for another attempt makes none."""
        async with channel(backend, Retry(on=is_transient, wait=60)) as stub:
            for make in (lambda: stub.unary(b""), lambda: read(stub.stream(b""))):
                backend.calls.clear()
                backend.tell(StatusCode.UNAVAILABLE)
                task = asyncio.ensure_future(_awaited(make))
                await await_until(lambda: len(backend.calls) == 1, "the attempt was made")
                await asyncio.sleep(0.02)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert len(backend.calls) == 1


async def _awaited(make):
    return await make()


async def _endless_requests() -> AsyncIterator[bytes]:
    yield b"a"
    await asyncio.Event().wait()


async def test_requests_are_replayed_up_to_a_point(backend):
    """Requests are kept and sent again, up to a hundred; then the first failure is final."""
    async with channel(backend, soon()) as stub:
        backend.tell(StatusCode.UNAVAILABLE)
        assert (await stub.collect(iter([b"a"] * 100))).count(b",") == 99
        backend.tell(StatusCode.UNAVAILABLE)
        with pytest.raises(grpc.RpcError):
            await stub.collect(iter([b"a"] * 101))
    assert [len(call.request) for call in backend.calls] == [100, 100, 101]


async def test_requests_that_raise_are_not_sent_again(backend):
    """A generator of requests that breaks ends the call: half of them must not pass for all of them."""

    async def requests():
        yield b"a"
        raise LookupError

    anything = status_in(*StatusCode)
    async with channel(backend, Retry(on=anything, wait=0.001), failures=tuple(StatusCode)) as stub:
        with pytest.raises((grpc.RpcError, asyncio.CancelledError)):
            await stub.collect(requests())
    assert len(backend.calls) <= 1


async def test_with_other_interceptors(backend):
    """It goes with others, inside and outside; what ours inside refuses is no evidence for ours outside."""

    class Naming(grpc.aio.UnaryUnaryClientInterceptor):
        async def intercept_unary_unary(self, continuation, client_call_details, request):
            details = client_call_details._replace(metadata=grpc.aio.Metadata(("name", "x")))
            return await continuation(details, request)

    outer, inner = CircuitBreaker("outer"), CircuitBreaker("inner")
    interceptors = [
        Naming(),
        *AioResilienceClientInterceptors(soon(), outer, timeout=3),
        Naming(),
        *AioResilienceClientInterceptors(inner),
    ]
    async with grpc.aio.insecure_channel(backend.address, interceptors=interceptors) as guarded:
        stub = Stub(guarded)
        backend.tell(StatusCode.UNAVAILABLE)
        assert await stub.unary(b"a") == b"a"
        assert await read(stub.stream(b"")) == [b"0", b"1", b"2", b"3", b"4"]
        assert await read(stub.chat(_requests())) == [b"re:a", b"re:b"]
        assert await stub.collect(_requests()) == b"a,b"
        assert all(call.time_remaining < 4 for call in backend.calls)
        inner.force_open()
        failures = outer.stats().failures
        for make in (lambda: stub.unary(b""), lambda: read(stub.stream(b"")), lambda: stub.collect(iter([]))):
            with pytest.raises(CircuitOpenError, match="inner"):
                await make()
        assert outer.stats().failures == failures


async def test_concurrency_of_64(backend):
    """64 tasks, a quarter of whose calls fail: every call gets its own answer, and all slots come back."""
    slots = Bulkhead("slots", 8, max_wait=20, max_queue=300)
    retry = Retry(on=is_transient, wait=0.001, attempts=10, budget=None)
    interceptors = AioResilienceClientInterceptors(retry, CircuitBreaker("b", min_calls=1000), slots)
    async with grpc.aio.insecure_channel(backend.address, interceptors=interceptors) as guarded:
        stub = Stub(guarded)
        backend.tell(*[StatusCode.UNAVAILABLE, None, None, None] * 64)
        answers = await asyncio.gather(*(_awaited(lambda n=n: stub.unary(b"%d" % n)) for n in range(256)))
    assert answers == [b"%d" % n for n in range(256)]
    stats = interceptors.stats()
    assert (stats.calls, stats.answered) == (256, 256)
    assert stats.attempts == 256 + stats.statuses["UNAVAILABLE"]
    assert slots.stats().in_use == 0


async def test_done_callbacks(backend):
    """Callbacks are called when a call has ended, whatever its shape."""
    called: list[object] = []
    async with channel(backend, soon()) as stub:
        for make in (lambda: stub.unary(b""), lambda: stub.stream(b""), lambda: stub.collect(iter([]))):
            call = make()
            call.add_done_callback(called.append)
            await (call if hasattr(call, "__await__") else read(call))
            await await_until(lambda call=call: call in called, "the callback was called")
    assert len(called) == 3


def test_is_a_sequence_of_interceptors():
    """gRPC takes one interceptor for each kind of call, and so is it given them."""
    breaker = CircuitBreaker("b")
    interceptors = AioResilienceClientInterceptors(breaker, name="payments")
    assert len(interceptors) == len(list(interceptors)) == 4
    assert all(isinstance(one, grpc.aio.ClientInterceptor) for one in interceptors)
    assert interceptors[:2] == tuple(interceptors)[:2]
    assert isinstance(interceptors[0], grpc.aio.UnaryUnaryClientInterceptor)
    assert interceptors.policies == (breaker,)
    assert interceptors.name == "payments"
    assert interceptors.stats().calls == 0
