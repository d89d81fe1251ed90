"""Policies around the calls of a channel of `grpc`."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest
from grpc import StatusCode
from tests.integrations.grpc.client_rig import Backend, Stub, Told, serving
from tests.support.waiting import wait_until

from resilient import (
    AdaptiveThrottle,
    Bulkhead,
    BulkheadFullError,
    Cache,
    CallTimeoutError,
    CircuitBreaker,
    CircuitOpenError,
    DeadlineExceededError,
    Fallback,
    Pipeline,
    PipelineOrderError,
    RateLimitedError,
    RateLimiter,
    Retry,
    RetryBudget,
    Timeout,
    deadline,
)
from resilient.errors import RejectedError
from resilient.integrations.grpc.client import ResilienceClientInterceptor, Rpc, is_transient, status_in

CALLERS_FAULT = (
    StatusCode.INVALID_ARGUMENT,
    StatusCode.NOT_FOUND,
    StatusCode.ALREADY_EXISTS,
    StatusCode.PERMISSION_DENIED,
    StatusCode.UNAUTHENTICATED,
    StatusCode.FAILED_PRECONDITION,
    StatusCode.OUT_OF_RANGE,
    StatusCode.UNIMPLEMENTED,
    StatusCode.RESOURCE_EXHAUSTED,
    StatusCode.ABORTED,
)
FAULTS = (
    StatusCode.UNAVAILABLE,
    StatusCode.DEADLINE_EXCEEDED,
    StatusCode.INTERNAL,
    StatusCode.UNKNOWN,
    StatusCode.DATA_LOSS,
)


@contextmanager
def channel(backend: Backend, *policies, **words) -> Iterator[Stub]:
    """A channel under policies, and its methods."""
    with grpc.insecure_channel(backend.address) as plain:
        yield Stub(grpc.intercept_channel(plain, ResilienceClientInterceptor(*policies, **words)))


def read_into(got: list[bytes], stream: Iterator[bytes]) -> None:
    """Read a stream, and keep what came before an error."""
    for message in stream:
        got.append(message)  # noqa: PERF402 - a list of it would be lost


def soon(**words) -> Retry:
    """A retry that hardly waits."""
    return Retry(on=is_transient, wait=0.001, **words)


def test_every_shape_passes(backend):
    """All four kinds of call work as they do without policies, and leave their slots."""
    slots = Bulkhead("slots", 4)
    with channel(backend, soon(), CircuitBreaker("b"), slots, Timeout(5)) as stub:
        assert stub.unary(b"a") == b"a"
        assert list(stub.stream(b"")) == [b"0", b"1", b"2", b"3", b"4"]
        assert stub.collect(iter([b"a", b"b"])) == b"a,b"
        assert list(stub.chat(iter([b"a", b"b"]))) == [b"re:a", b"re:b"]
    assert slots.stats().in_use == 0
    assert slots.stats().calls == 4


def test_without_policies(backend):
    """An interceptor without policies is a plain channel."""
    with channel(backend) as stub:
        assert stub.unary(b"a") == b"a"
        assert stub.unary.future(b"a").result() == b"a"
        assert list(stub.stream(b"")) == [b"0", b"1", b"2", b"3", b"4"]


def test_with_call(backend):
    """`with_call` gives the answer, and the call with its status and metadata."""
    with channel(backend, soon()) as stub:
        backend.tell(StatusCode.UNAVAILABLE)
        answer, call = stub.unary.with_call(b"a")
        collected, other = stub.collect.with_call(iter([b"a"]))
    assert answer == b"a"
    assert call.code() is StatusCode.OK
    assert collected == b"a"
    assert other.code() is StatusCode.OK


@pytest.mark.parametrize("make", [lambda s: s.unary(b"a"), lambda s: s.collect(iter([b"a", b"b"]))])
def test_unavailable_is_retried(backend, make):
    """A call whose server is not to be had is made again."""
    with channel(backend, soon()) as stub:
        backend.tell(StatusCode.UNAVAILABLE, StatusCode.UNAVAILABLE)
        make(stub)
    assert len(backend.calls) == 3
    assert backend.calls[0].request == backend.calls[2].request


@pytest.mark.parametrize("make", [lambda s: s.stream(b""), lambda s: s.chat(iter([b"a"]))])
def test_stream_is_retried_until_its_first_message(backend, make):
    """A stream that fails before its first message begins anew."""
    with channel(backend, soon()) as stub:
        backend.tell(StatusCode.UNAVAILABLE)
        messages = list(make(stub))
    assert messages[0] in {b"0", b"re:a"}
    assert len(backend.calls) == 2


def test_stream_cut_after_three_messages_is_not_retried(backend):
    """What was seen cannot be unseen: a stream that breaks is broken."""
    got = []
    with channel(backend, soon()) as stub:
        backend.tell(None, None, None, StatusCode.UNAVAILABLE)
        stream = stub.stream(b"")
        with pytest.raises(grpc.RpcError) as caught:
            read_into(got, stream)
        with pytest.raises(grpc.RpcError):  # and stays so
            next(stream)
    assert caught.value.code() is StatusCode.UNAVAILABLE
    assert got == [b"0", b"1", b"2"]
    assert len(backend.calls) == 1


@pytest.mark.parametrize("code", CALLERS_FAULT)
def test_callers_fault_is_an_answer(backend, code):
    """What tells of the request trips no breaker, is not retried, and reaches the caller as it is."""
    breaker = CircuitBreaker("b", fail_max=1)
    retry = Retry(on=status_in(StatusCode.UNAVAILABLE), wait=0.001)
    with channel(backend, retry, breaker) as stub:
        backend.tell(code)
        with pytest.raises(grpc.RpcError) as caught:
            stub.unary(b"")
        backend.tell(code)
        with pytest.raises(grpc.RpcError) as streamed:
            list(stub.stream(b""))
    assert caught.value.code() is streamed.value.code() is code
    assert len(backend.calls) == 2
    assert breaker.current_state == "closed"
    assert breaker.stats().failures == 0
    assert breaker.stats().ignored == 0  # they were answers


@pytest.mark.parametrize("code", CALLERS_FAULT[:-2])
def test_broad_retry_does_not_repeat_callers_faults(backend, code):
    """A retry on every `RpcError` means those that are evidence against the server."""
    with channel(backend, Retry(on=grpc.RpcError, wait=0.001)) as stub:
        backend.tell(code)
        with pytest.raises(grpc.RpcError):
            stub.unary(b"")
    assert len(backend.calls) == 1


@pytest.mark.parametrize("code", FAULTS)
def test_faults_count(backend, code):
    """What is evidence against the server opens the breaker, which then sends nothing."""
    breaker = CircuitBreaker("b", fail_max=2, reset_timeout=60)
    with channel(backend, breaker) as stub:
        backend.tell(code)
        with pytest.raises(grpc.RpcError):
            stub.unary(b"")
        backend.tell(code)
        with pytest.raises(grpc.RpcError):
            list(stub.stream(b""))
        with pytest.raises(CircuitOpenError):
            stub.unary(b"")
    assert len(backend.calls) == 2


def test_failures_are_configurable(backend):
    """Which codes are evidence can be said."""
    breaker = CircuitBreaker("b", fail_max=1, reset_timeout=60)
    with channel(backend, breaker, failures={StatusCode.FAILED_PRECONDITION}) as stub:
        backend.tell(StatusCode.UNAVAILABLE, StatusCode.FAILED_PRECONDITION)
        for _ in range(2):
            with pytest.raises(grpc.RpcError):
                stub.unary(b"")
    assert breaker.stats().failures == 1


def test_not_found_closes_a_half_open_breaker(backend):
    """A server that answers "not found" is there again."""
    breaker = CircuitBreaker("b", fail_max=1, reset_timeout=0)
    with channel(backend, breaker) as stub:
        backend.tell(StatusCode.UNAVAILABLE, StatusCode.NOT_FOUND)
        for _ in range(2):
            with pytest.raises(grpc.RpcError):
                stub.unary(b"")
    assert breaker.current_state == "closed"


def test_on_result_sees_answers_only(backend, caplog):
    """A rule about results is not shown what is no answer, and complains of nothing."""
    breaker = CircuitBreaker("b", fail_max=1, on_result=lambda answer: answer.startswith(b"bad"))
    with channel(backend, breaker) as stub:
        backend.tell(StatusCode.NOT_FOUND)
        with pytest.raises(grpc.RpcError):
            stub.unary(b"")
        assert breaker.current_state == "closed"
        stub.unary(b"bad")
    assert breaker.current_state == "open"
    assert not caplog.records


def test_throttle_counts_overload(backend):
    """A throttle takes RESOURCE_EXHAUSTED for what it is: not accepted."""
    throttle = AdaptiveThrottle("t")
    with channel(backend, throttle) as stub:
        backend.tell(StatusCode.RESOURCE_EXHAUSTED, StatusCode.NOT_FOUND)
        for _ in range(2):
            with pytest.raises(grpc.RpcError):
                stub.unary(b"")
    assert throttle.stats().accepts == 1


@pytest.mark.parametrize("shape", ["unary", "future", "stream", "collect", "chat"])
def test_refusal_is_an_error_of_both(backend, shape):
    """An open circuit raises our error, which is gRPC's, too, and no packet is sent."""
    breaker = CircuitBreaker("b")
    breaker.force_open(reason="maintenance")
    with channel(backend, breaker) as stub:
        make = {
            "unary": lambda: stub.unary(b""),
            "future": lambda: stub.unary.future(b"").result(),
            "stream": lambda: next(stub.stream(b"")),
            "collect": lambda: stub.collect(iter([])),
            "chat": lambda: next(stub.chat(iter([]))),
        }[shape]
        with pytest.raises(grpc.RpcError) as caught:
            make()
    error = caught.value
    assert isinstance(error, CircuitOpenError)
    assert error.policy == "b"
    assert error.code() is StatusCode.UNAVAILABLE
    assert "maintenance" in error.details()
    assert dict(tuple(error.trailing_metadata())) == {"grpc-retry-pushback-ms": "-1"}
    assert not error.initial_metadata()
    assert backend.calls == []


def test_open_breaker_sends_nothing_at_all(backend):
    """A refused call does not even connect."""
    with serving() as other, grpc.insecure_channel(other.address) as plain:
        states: list[grpc.ChannelConnectivity] = []
        plain.subscribe(states.append)
        breaker = CircuitBreaker("b")
        breaker.force_open()
        stub = Stub(grpc.intercept_channel(plain, ResilienceClientInterceptor(breaker)))
        for _ in range(20):
            with pytest.raises(CircuitOpenError):
                stub.unary(b"")
        wait_until(lambda: bool(states), "the state is told")
        assert set(states) == {grpc.ChannelConnectivity.IDLE}


@pytest.mark.parametrize(
    ("policy", "error", "code"),
    [
        (RateLimiter("1/hour"), RateLimitedError, StatusCode.RESOURCE_EXHAUSTED),
        (Bulkhead("slots", 1), BulkheadFullError, StatusCode.UNAVAILABLE),
    ],
    ids=["limiter", "bulkhead"],
)
def test_limits_refuse(backend, policy, error, code):
    """A limiter and a bulkhead refuse with their statuses."""
    with channel(backend, policy) as stub:
        first = stub.endless(b"")
        next(first)
        with pytest.raises(error) as caught:
            stub.unary(b"")
        assert caught.value.code() is code
        backend.hold.set()
        assert list(first) == [b"last"]


def test_bulkhead_is_held_until_the_stream_ends(backend):
    """A slot belongs to a stream until its end, its cancel or its loss."""
    slots = Bulkhead("slots", 1)
    with channel(backend, slots) as stub:
        stream = stub.endless(b"")
        assert slots.stats().in_use == 1  # from the beginning, and not from the first message on
        next(stream)
        backend.hold.set()
        list(stream)
        assert slots.stats().in_use == 0
        stream = stub.endless(b"")
        stream.cancel()
        assert slots.stats().in_use == 0
        stream = stub.endless(b"")
        del stream
        assert slots.stats().in_use == 0


def test_stream_begins_before_it_is_read(backend):
    """The server hears of a stream although nobody has asked for a message yet, under a retry, too."""
    with channel(backend, soon(), CircuitBreaker("b")) as stub:
        stream = stub.stream(b"")
        assert backend.begun.acquire(timeout=10)
        assert list(stream) == [b"0", b"1", b"2", b"3", b"4"]
    assert len(backend.calls) == 1


def test_forgotten_stream_is_cancelled(backend):
    """A stream that is dropped, read or not, is cancelled at the server, without a collection."""
    slots = Bulkhead("slots", 1)
    gc.disable()
    try:
        with channel(backend, soon(), CircuitBreaker("b"), slots) as stub:
            for reads in (0, 1):
                stream = stub.endless(b"")
                assert backend.begun.acquire(timeout=10)
                for _ in range(reads):
                    next(stream)
                del stream
                assert backend.cancelled.acquire(timeout=10)
                assert slots.stats().in_use == 0
    finally:
        gc.enable()


def test_stream_is_a_call(backend):
    """An iterator that can be asked what a call of grpc's can be asked."""
    seen = threading.Event()
    with channel(backend, soon(), timeout=5) as stub:
        stream = stub.endless(b"")
        stream.add_callback(seen.set)
        assert stream.is_active()
        assert not stream.done()
        assert 0 < stream.time_remaining() < 5.1
        assert stream.initial_metadata() == ()
        next(stream)
        backend.hold.set()
        assert list(stream) == [b"last"]
        assert stream.code() is StatusCode.OK
        assert stream.details() == ""
        assert stream.trailing_metadata() == ()
        assert stream.done()
        assert not stream.cancel()
        assert list(stream) == []
    assert seen.wait(10)


def test_cancelled_stream(backend):
    """A stream that is cancelled raises CANCELLED, and says nothing to the breaker."""
    breaker = CircuitBreaker("b", fail_max=1)
    with channel(backend, soon(), breaker) as stub:
        stream = stub.endless(b"")
        next(stream)
        assert stream.cancel()
        with pytest.raises(grpc.RpcError) as caught:
            next(stream)
    assert caught.value.code() is StatusCode.CANCELLED
    assert stream.code() is StatusCode.CANCELLED
    assert breaker.stats().abandoned == 1
    assert breaker.stats().failures == 0
    assert len(backend.calls) == 1


def test_stream_cancelled_by_another_thread(backend):
    """Whoever waits for a message learns of the cancel, and gives back what the stream held."""
    slots = Bulkhead("slots", 1)
    with channel(backend, soon(), slots) as stub, ThreadPoolExecutor(1) as pool:
        stream = stub.endless(b"")
        next(stream)
        waiting = pool.submit(next, stream)
        stream.cancel()
        assert waiting.exception(10).code() is StatusCode.CANCELLED
    assert slots.stats().in_use == 0


class TestPushback:
    """What a server says of another try."""

    def test_is_waited_for_to_the_millisecond(self, backend):
        """The next attempt comes when the server has said, and not by the policy's own wait."""
        waits: list[float] = []
        with channel(backend, Retry(on=is_transient, wait=30, sleep=waits.append)) as stub:
            backend.tell(Told(StatusCode.UNAVAILABLE, "17"), Told(StatusCode.UNAVAILABLE, "2500"))
            assert stub.unary(b"a") == b"a"
        assert waits == [0.017, 2.5]

    def test_of_zero_is_at_once(self, backend):
        """0 ms is no wait, and not "no"."""
        waits: list[float] = []
        with channel(backend, Retry(on=is_transient, wait=30, sleep=waits.append)) as stub:
            backend.tell(Told(StatusCode.UNAVAILABLE, "0"))
            stub.unary(b"a")
            backend.tell(Told(StatusCode.UNAVAILABLE, "0"))
            list(stub.stream(b"a"))
        assert waits == [pytest.approx(0.0, abs=1e-4)] * 2

    @pytest.mark.parametrize("text", ["-1", "-500", "soon", ""])
    @pytest.mark.parametrize("rule", [is_transient, grpc.RpcError], ids=["ours", "broad"])
    def test_negative_or_nonsense_is_never(self, backend, text, rule):
        """A server that wants no other try gets none, whatever the retry's rule says."""
        retry = Retry(on=rule, wait=0.001)
        with channel(backend, retry) as stub:
            for make in (lambda: stub.unary(b""), lambda: list(stub.stream(b""))):
                backend.tell(Told(StatusCode.UNAVAILABLE, text))
                with pytest.raises(grpc.RpcError) as caught:
                    make()
                assert caught.value.code() is StatusCode.UNAVAILABLE
        assert len(backend.calls) == 2
        assert retry.stats().retries == 0

    def test_is_a_floor_for_any_rule(self, backend):
        """A rule that knows nothing of pushback waits at least as long."""
        waits: list[float] = []
        with channel(backend, Retry(on=grpc.RpcError, wait=0.5, sleep=waits.append)) as stub:
            backend.tell(Told(StatusCode.UNAVAILABLE, "2000"), Told(StatusCode.UNAVAILABLE, "10"))
            stub.unary(b"a")
        assert waits == [2.0, 0.5]

    def test_of_a_code_that_is_not_retried(self, backend):
        """Pushback does not make a failure one to retry."""
        with channel(backend, soon()) as stub:
            backend.tell(Told(StatusCode.INTERNAL, "1"))
            with pytest.raises(grpc.RpcError):
                stub.unary(b"")
        assert len(backend.calls) == 1


def test_retry_budget_is_shared(backend):
    """Methods share a budget: when it is spent, failures are raised at once."""
    budget = RetryBudget(ratio=0.1, min_per_second=0.0001, window=10)
    retry = Retry(on=is_transient, wait=0.001, budget=budget)
    with channel(backend, retry) as stub:
        backend.tell(*[StatusCode.UNAVAILABLE] * 60)
        for _ in range(20):
            for make in (lambda: stub.unary(b""), lambda: list(stub.stream(b""))):
                with pytest.raises(grpc.RpcError):
                    make()
    assert len(backend.calls) <= 46  # 40 calls, and a tenth of them, and the least there is
    assert retry.stats().over_budget > 0


class TestDeadline:
    """Time that is left is sent, and never more than the caller has."""

    def test_of_the_context(self, backend):
        """A deadline around the call goes with it."""
        with channel(backend, CircuitBreaker("b")) as stub, deadline(3):
            stub.unary(b"")
            list(stub.stream(b""))
            stub.unary.future(b"").result()
        assert all(2 < call.time_remaining < 3.1 for call in backend.calls)

    def test_default(self, backend):
        """A call that names no time has the channel's; one that does has its own."""
        with channel(backend, timeout=3) as stub:
            stub.unary(b"")
            stub.unary(b"", timeout=8)
            list(stub.stream(b"", timeout=8))
        remaining = [call.time_remaining for call in backend.calls]
        assert 2 < remaining[0] < 3.1
        assert all(7 < seconds < 8.1 for seconds in remaining[1:])

    def test_by_method(self, backend):
        """Times go by method, by service, and by all."""
        times = {"/test.Backend/Unary": 2, "/test.Backend/*": 4, "*": 8}
        with grpc.insecure_channel(backend.address) as plain:
            guarded = grpc.intercept_channel(plain, ResilienceClientInterceptor(timeout=times))
            Stub(guarded).unary(b"")
            Stub(guarded).collect(iter([]))
            Stub(guarded, "test.Other").unary(b"")
        assert [round(call.time_remaining) for call in backend.calls] == [2, 4, 8]

    def test_earliest_counts(self, backend):
        """Of the context's, the caller's and the policy's time, the shortest is sent."""
        with channel(backend, Timeout(2), timeout=5) as stub, deadline(3):
            stub.unary(b"", timeout=4)
            list(stub.stream(b"", timeout=4))
        assert all(1 < call.time_remaining < 2.1 for call in backend.calls)

    def test_covers_all_attempts(self, backend):
        """The caller's time is for the retries, too: a second attempt has less of it."""
        with channel(backend, Retry(on=is_transient, wait=0.05)) as stub:
            backend.tell(StatusCode.UNAVAILABLE)
            stub.unary(b"", timeout=1)
        first, second = (call.time_remaining for call in backend.calls)
        assert second <= first - 0.04

    def test_no_attempt_without_time(self, backend):
        """When the time is up, nothing is sent."""
        with channel(backend, CircuitBreaker("b")) as stub, deadline(0.001):
            time.sleep(0.005)
            with pytest.raises(grpc.RpcError) as caught:
                stub.unary(b"")
            with pytest.raises(DeadlineExceededError):
                next(stub.stream(b""))
        assert isinstance(caught.value, DeadlineExceededError)
        assert caught.value.code() is StatusCode.DEADLINE_EXCEEDED
        assert backend.calls == []

    @pytest.mark.parametrize("shape", ["unary", "stream", "future"])
    def test_ours_that_passes_is_ours_and_grpcs(self, backend, shape):
        """Time that ran out by a policy is a `CallTimeoutError` and an RpcError."""
        breaker = CircuitBreaker("b", fail_max=1)
        with channel(backend, breaker, Timeout(0.05)) as stub:
            make = {
                "unary": lambda: stub.held(b""),
                "future": lambda: stub.held.future(b"").result(),
                "stream": lambda: list(stub.endless(b"")),
            }[shape]
            with pytest.raises(grpc.RpcError) as caught:
                make()
        backend.hold.set()
        assert isinstance(caught.value, CallTimeoutError)
        assert isinstance(caught.value, TimeoutError)
        assert caught.value.code() is StatusCode.DEADLINE_EXCEEDED
        assert caught.value.seconds == pytest.approx(0.05, abs=0.01)
        assert breaker.stats().failures == 1

    def test_callers_own_that_passes_stays_grpcs(self, backend):
        """Time that the caller had named ends as it does without policies."""
        with channel(backend, soon(), timeout=9) as stub, pytest.raises(grpc.RpcError) as caught:
            stub.held(b"", timeout=0.05)
        backend.hold.set()
        assert caught.value.code() is StatusCode.DEADLINE_EXCEEDED
        assert not isinstance(caught.value, CallTimeoutError)

    def test_leaves_the_context_as_it_was(self, backend):
        """A channel's own time does not outlive its calls."""
        with channel(backend, timeout=0.05) as stub:
            stub.unary(b"")
            stream = stub.endless(b"")
            next(stream)
        with channel(backend) as stub:
            stub.unary(b"")
        assert backend.calls[-1].time_remaining is None or backend.calls[-1].time_remaining > 1000


class TestFuture:
    """Calls made by `future()`."""

    def test_does_not_block(self, backend):
        """The caller goes on while the call is made, retries included."""
        with channel(backend, soon(), CircuitBreaker("b")) as stub:
            call = stub.held.future(b"a")
            assert backend.begun.acquire(timeout=10)
            assert not call.done()
            assert call.running()
            assert call.is_active()
            with pytest.raises(grpc.FutureTimeoutError):
                call.result(timeout=0.001)
            with pytest.raises(grpc.FutureTimeoutError):
                call.exception(timeout=0.001)
            backend.hold.set()
            assert call.result(timeout=10) == b"a"
            assert call.exception() is None
            assert call.traceback() is None
            assert call.code() is StatusCode.OK
            assert call.details() == ""
            assert call.done()
            assert not call.cancelled()
            assert not call.cancel()

    def test_fails_like_one(self, backend):
        """An error is raised by `result`, and told by `exception` and `code`."""
        told = threading.Event()
        with channel(backend, soon()) as stub:
            backend.tell(StatusCode.NOT_FOUND)
            call = stub.unary.future(b"")
            call.add_done_callback(lambda _: told.set())
            with pytest.raises(grpc.RpcError):
                call.result()
            assert call.exception().code() is StatusCode.NOT_FOUND
            assert call.code() is StatusCode.NOT_FOUND
            assert call.traceback() is not None
            assert not call.add_callback(told.set)
        assert told.wait(10)

    def test_cancel(self, backend):
        """A future that is cancelled is over at once, and so is its call; nothing is retried or counted."""
        breaker = CircuitBreaker("b", fail_max=1)
        slots = Bulkhead("slots", 1)
        with channel(backend, soon(), breaker, slots) as stub:
            call = stub.held.future(b"")
            assert backend.begun.acquire(timeout=10)
            assert call.cancel()
            assert call.cancelled()
            assert call.done()
            with pytest.raises(grpc.FutureCancelledError):
                call.result()
            with pytest.raises(grpc.FutureCancelledError):
                call.exception()
            assert call.code() is StatusCode.CANCELLED
            wait_until(lambda: slots.stats().in_use == 0, "the slot is free")
        assert backend.cancelled.acquire(timeout=10)
        assert breaker.stats().failures == 0
        assert breaker.stats().abandoned == 1

    def test_waits_for_a_thread(self, backend):
        """There are so many threads and no more; what waits for one can be cancelled."""
        with channel(backend, threads=1) as stub:
            first = stub.held.future(b"")
            second = stub.unary.future(b"")
            assert backend.begun.acquire(timeout=10)
            assert second.cancel()
            third = stub.collect.future(iter([b"a", b"b"]))
            backend.hold.set()
            assert first.result(10) == b""
            assert third.result(10) == b"a,b"
        assert [call.method for call in backend.calls] == ["Held", "Collect"]


class TestMethods:
    """Settings by method."""

    def test_goes_by_method(self, backend):
        """A method's own policies stand in place of the others, and None is none."""
        closed = CircuitBreaker("closed")
        closed.force_open()
        methods = {"/test.Backend/Unary": None, "/test.Backend/*": soon()}
        with grpc.insecure_channel(backend.address) as plain:
            guarded = grpc.intercept_channel(plain, ResilienceClientInterceptor(closed, methods=methods))
            assert Stub(guarded).unary(b"a") == b"a"
            backend.tell(StatusCode.UNAVAILABLE)
            assert Stub(guarded).collect(iter([b"a"])) == b"a"
            with pytest.raises(CircuitOpenError):
                Stub(guarded, "test.Other").unary(b"")

    @pytest.mark.parametrize(
        ("words", "error", "said"),
        [
            ({"methods": {"Unary": None}}, ValueError, "methods must name methods"),
            ({"methods": {"/a/b/c": None}}, ValueError, "methods must name methods"),
            ({"methods": []}, TypeError, "methods must be a mapping"),
            ({"methods": {"*": 3}}, TypeError, "methods must be policies"),
            ({"timeout": 0}, ValueError, "timeout must be greater than 0"),
            ({"timeout": {"Unary": 1}}, ValueError, "timeout must name methods"),
            ({"failures": {14}}, TypeError, "failures must be members"),
            ({"threads": 0}, ValueError, "threads must be at least 1"),
            ({"name": ""}, ValueError, "name must not be empty"),
        ],
    )
    def test_bad_arguments(self, words, error, said):
        """Each names the parameter, the rule and the value."""
        with pytest.raises(error, match=said):
            ResilienceClientInterceptor(**words)

    def test_order_is_checked(self):
        """Policies in an order that goes wrong are refused, as in a pipeline."""
        with pytest.raises(PipelineOrderError):
            ResilienceClientInterceptor(CircuitBreaker("b"), soon())
        with pytest.raises(TypeError, match="policies must be policies"):
            ResilienceClientInterceptor("b")  # type: ignore[arg-type]
        as_given = Pipeline(CircuitBreaker("b"), soon(), order="as-given")
        assert ResilienceClientInterceptor(as_given).policies == (as_given,)

    def test_keys_are_made_of_the_call(self, backend):
        """Key functions and handlers are given the call: method, request, metadata, timeout."""
        seen: list[Rpc] = []

        def key(rpc: Rpc) -> str:
            seen.append(rpc)
            return rpc.method

        limiter = RateLimiter("1/hour", key=key)
        answer = Fallback(lambda error, rpc: b"instead of " + rpc.request, on=RejectedError)
        with channel(backend, answer, limiter) as stub:
            assert stub.unary(b"a", metadata=(("tenant", "7"),), timeout=5) == b"a"
            assert stub.unary(b"b") == b"instead of b"
            assert stub.unary.with_call(b"b")[1].code() is StatusCode.OK
            assert stub.unary.future(b"c").result() == b"instead of c"
            assert stub.collect(iter([b"x"])) == b"x"
        assert seen[0].method == "/test.Backend/Unary"
        assert seen[0].metadata == (("tenant", "7"),)
        assert seen[0].timeout == 5


def test_cache(backend):
    """A cache answers for a method whose answers may be kept."""
    kept = Cache("kept", ttl=60, key=lambda rpc: rpc.request)
    with channel(backend, methods={"/test.Backend/Unary": kept}) as stub:
        assert [stub.unary(b"a"), stub.unary(b"a"), stub.unary(b"b")] == [b"a", b"a", b"b"]
    assert len(backend.calls) == 2


def test_fallback_answers_for_a_stream(backend):
    """A fallback stands in for a stream that was refused, or failed before its first message."""
    breaker = CircuitBreaker("b", fail_max=1, reset_timeout=60)
    with channel(backend, Fallback([b"x", b"y"]), breaker) as stub:
        backend.tell(StatusCode.UNAVAILABLE)
        assert list(stub.stream(b"")) == [b"x", b"y"]
        assert list(stub.stream(b"")) == [b"x", b"y"]
    assert len(backend.calls) == 1


def test_two_interceptors(backend):
    """What an interceptor inside refuses is no evidence for one outside, and reaches the caller."""
    outer = CircuitBreaker("outer", fail_max=1)
    inner = CircuitBreaker("inner")
    inner.force_open()
    with grpc.insecure_channel(backend.address) as plain:
        guarded = grpc.intercept_channel(
            plain, ResilienceClientInterceptor(soon(), outer), ResilienceClientInterceptor(inner)
        )
        for make in (
            lambda: Stub(guarded).unary(b""),
            lambda: Stub(guarded).unary.future(b"").result(),
            lambda: list(Stub(guarded).stream(b"")),
        ):
            with pytest.raises(CircuitOpenError, match="inner"):
                make()
        inner.resume()
        inner.close()
        assert Stub(guarded).unary(b"a") == b"a"
        assert list(Stub(guarded).chat(iter([b"a"]))) == [b"re:a"]
    assert outer.stats().failures == 0


def test_request_stream_is_replayed_up_to_a_point(backend):
    """Requests are kept and sent again, up to a hundred; then the first failure is final."""
    with channel(backend, soon()) as stub:
        backend.tell(StatusCode.UNAVAILABLE)
        assert stub.collect(b"%d" % n for n in range(100)).count(b",") == 99
        backend.tell(StatusCode.UNAVAILABLE)
        with pytest.raises(grpc.RpcError):
            stub.collect(b"%d" % n for n in range(101))
    assert [len(call.request) for call in backend.calls] == [100, 100, 101]


def test_requests_that_raise_are_not_sent_again(backend):
    """A generator of requests that breaks ends the call: half of them must not pass for all of them."""

    def requests():
        yield b"a"
        raise LookupError

    anything = status_in(*StatusCode)
    retry = Retry(on=anything, wait=0.001)
    with channel(backend, retry, failures=tuple(StatusCode)) as stub, pytest.raises(grpc.RpcError):
        stub.collect(requests())
    assert all(len(call.request) == 1 for call in backend.calls)
    assert len(backend.calls) <= 1


def test_wait_for_ready_is_left_alone():
    """A call that waits for its server goes on waiting, under policies."""
    with serving() as backend:
        port = backend.port
    quickly = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 50)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=quickly) as plain:
        stub = Stub(grpc.intercept_channel(plain, ResilienceClientInterceptor(soon(attempts=1))))
        call = stub.unary.future(b"a", wait_for_ready=True, timeout=20)
        with serving(port):
            assert call.result(20) == b"a"


def test_concurrency_of_64(backend):
    """64 threads, a quarter of whose calls fail: every call gets its own answer, and all slots come back."""
    slots = Bulkhead("slots", 8, max_wait=20, max_queue=64)
    breaker = CircuitBreaker("b", failure_ratio=0.9, min_calls=1000)
    resilience = ResilienceClientInterceptor(
        Retry(on=is_transient, wait=0.001, attempts=10, budget=None), breaker, slots
    )
    with grpc.insecure_channel(backend.address) as plain, ThreadPoolExecutor(64) as pool:
        stub = Stub(grpc.intercept_channel(plain, resilience))
        backend.tell(*[StatusCode.UNAVAILABLE, None, None, None] * 64)
        answers = list(pool.map(stub.unary, [b"%d" % n for n in range(256)]))
    assert answers == [b"%d" % n for n in range(256)]
    stats = resilience.stats()
    assert stats.calls == 256
    assert stats.answered == 256
    assert stats.attempts == 256 + stats.statuses["UNAVAILABLE"]
    assert slots.stats().in_use == 0


def test_stats(backend):
    """What the calls came to is counted by status."""
    resilience = ResilienceClientInterceptor(soon(), name="payments")
    with grpc.insecure_channel(backend.address) as plain:
        stub = Stub(grpc.intercept_channel(plain, resilience))
        backend.tell(StatusCode.UNAVAILABLE, None, StatusCode.NOT_FOUND)
        stub.unary(b"")
        with pytest.raises(grpc.RpcError):
            stub.unary(b"")
        stub.endless(b"").cancel()
    stats = resilience.stats()
    assert (stats.calls, stats.attempts, stats.answered, stats.cancelled) == (3, 4, 1, 1)
    assert stats.statuses == {"UNAVAILABLE": 1, "NOT_FOUND": 1}
    assert stats.success_ratio == pytest.approx(1 / 3)
    assert stats.connection_failures == 0
    assert ResilienceClientInterceptor().stats().success_ratio == 1.0
