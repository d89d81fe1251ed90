"""The interceptors for servers: each shape of call, in threads and in tasks, and every way to end."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest
from grpc import StatusCode
from grpc._cython import cygrpc
from tests.support.waiting import wait_until

from resilient import (
    Bulkhead,
    CircuitBreaker,
    Priority,
    RateLimiter,
    Timeout,
    current_priority,
    time_left,
)
from resilient.asgi import Maintenance, Request, ResilienceMiddleware, api_key, requested_priority
from resilient.errors import (
    BulkheadFullError,
    CallTimeoutError,
    CircuitOpenError,
    DeadlineExceededError,
    PoolTimeoutError,
    RateLimitedError,
)
from resilient.integrations.grpc import AioResilienceServerInterceptor, ResilienceServerInterceptor
from resilient.integrations.grpc.aio_server import _InTask
from resilient.integrations.grpc.statuses import FAULTS, PUSHBACK

from .rig import (
    COLOURS,
    SHAPES,
    Hold,
    begin,
    call,
    channel_to,
    ended,
    hosting,
    is_of_tasks,
    nothing,
    plain_behaviours,
    served,
)

colours = pytest.mark.parametrize("colour", COLOURS)
shapes = pytest.mark.parametrize("shape", SHAPES)

ANSWERS = {
    "unary_unary": [b"ab"],
    "unary_stream": [b"ab", b"ab"],
    "stream_unary": [b"ab"],
    "stream_stream": [b"a", b"b"],
}

# gRPC rounds a client's time up on its way, and counts it on another clock.
ROUNDED = 0.5

# What tells a gate that nobody wanted to know. Who drops a generator says it in its own way.
ABANDONED = (asyncio.CancelledError, GeneratorExit)


class Ledger:
    """A gate that lets everything in and writes down how it ends.

    Attributes:
        held: places that were not given back yet.
        ends: what it was told at the end of each call.
        answered: what it was told when answers began.
    """

    def __init__(self) -> None:
        self.held = 0
        self.ends: list[BaseException | None] = []
        self.answered: list[BaseException | None] = []

    def calling(self) -> Any:
        """Return a block for one call."""
        return _Place(self)

    def kinds(self) -> list[type[BaseException] | None]:
        """Wait until all places are back, and return the kinds of ends."""
        wait_until(lambda: self.held == 0 and bool(self.ends), "the place comes back")
        return [None if error is None else type(error) for error in self.ends]


class _Place:
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def __enter__(self) -> None:
        self._ledger.held += 1

    async def __aenter__(self) -> None:
        self.__enter__()

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self._ledger.ends.append(error)
        self._ledger.held -= 1

    def answered(self, error: BaseException | None) -> None:
        self._ledger.answered.append(error)


def raising(error: BaseException) -> Any:
    """Return what a handler does that raises *error*."""

    def act(_context: Any) -> None:
        raise error

    return act


# Every shape, every end


@colours
@shapes
def test_what_is_let_in_is_answered(colour: str, shape: str) -> None:
    """The answer is the handler's, and the gate is told of a success."""
    ledger = Ledger()
    with served(colour, {"shed": ledger}) as channel:
        end = call(channel, shape)
        assert (end.code, end.messages) == (StatusCode.OK, ANSWERS[shape])
        assert ledger.kinds() == [None]
        assert end.trailing == {}


@colours
@shapes
def test_what_fails_passes_as_it_was(colour: str, shape: str) -> None:
    """An error of the handler's is gRPC's to tell, and a failure for the gate."""
    ledger = Ledger()
    with served(colour, {"shed": ledger}, act=raising(ValueError("of its own"))) as channel:
        end = call(channel, shape)
        assert end.code is StatusCode.UNKNOWN
        assert "of its own" in end.details
        assert ledger.kinds() == [ValueError]


@colours
@shapes
def test_a_refusal_that_leaves_a_handler_is_answered(colour: str, shape: str) -> None:
    """It becomes a status with the pushback, wherever in a stream it comes."""
    ledger = Ledger()
    act = raising(RateLimitedError("no", retry_after=2.0))
    with served(colour, {"shed": ledger}, act=act) as channel:
        end = call(channel, shape)
        assert end.code is StatusCode.RESOURCE_EXHAUSTED
        assert end.trailing == {PUSHBACK: "2000"}
        assert ledger.kinds() == [RateLimitedError]
        assert (
            end.messages
            == [message for message in ANSWERS[shape] if shape.endswith("stream")][: len(end.messages)]
        )


@colours
@shapes
def test_a_client_that_leaves_is_no_failure(colour: str, shape: str) -> None:
    """A call that is cancelled is abandoned: the gate learns nothing from it, and has its place back."""
    ledger, hold = Ledger(), Hold()
    with served(colour, {"shed": ledger}, act=until_gone(hold)) as channel:
        under_way = begin(channel, shape)
        hold.wait_for(1)
        under_way.cancel()
        assert ledger.kinds()[0] in ABANDONED
        assert ended(under_way, shape).code is StatusCode.CANCELLED
        assert hold.left == 1


@colours
@shapes
def test_the_clients_time_is_the_handlers(colour: str, shape: str) -> None:
    """The deadline holds inside; what is not done by then is abandoned."""
    ledger, hold, seen = Ledger(), Hold(), list[float | None]()

    def act(context: Any) -> Any:
        seen.append(time_left())
        return until_gone(hold)(context)

    with served(colour, {"shed": ledger}, act=act) as channel:
        end = call(channel, shape, timeout=0.15)
        assert end.code is StatusCode.DEADLINE_EXCEEDED
        assert ledger.kinds()[0] in ABANDONED
    assert seen[0] is not None
    assert 0.0 < seen[0] < 0.15 + ROUNDED


def until_gone(hold: Hold) -> Any:
    """Return what a handler does that works until its client has left: in a task, it is cancelled then."""

    def act(context: Any) -> Any:
        if is_of_tasks(context):
            return hold(context)
        hold.entered += 1
        wait_until(lambda: not context.is_active(), "the client leaves")
        hold.left += 1
        return None

    return act


@colours
@shapes
def test_who_is_refused_at_the_door_is_told(colour: str, shape: str) -> None:
    """The handler is not called, and a stream of requests is not read."""
    called: list[Any] = []
    words = {"rate_limit": RateLimiter("1/hour", clock=lambda: 1_000.0)}
    with served(colour, words, act=called.append) as channel:
        assert call(channel, shape).code is StatusCode.OK
        end = call(channel, shape)
        assert end.code is StatusCode.RESOURCE_EXHAUSTED
        assert end.trailing[PUSHBACK] == "3600000"
        assert len(called) == 1


# Codes


@colours
@pytest.mark.parametrize("code", [code for code in StatusCode if code is not StatusCode.OK])
def test_the_code_of_an_answer_says_whose_fault_it_is(colour: str, code: StatusCode) -> None:
    """Only what tells of the server is a failure; the client has the code as the handler gave it."""
    ledger = Ledger()
    with served(colour, {"shed": ledger}, act=lambda context: context.abort(code, "by hand")) as channel:
        end = call(channel)
        assert (end.code, end.details) == (code, "by hand")
        assert [kind is None for kind in ledger.kinds()] == [code not in FAULTS]
        assert isinstance(ledger.ends[0], TimeoutError) is (code is StatusCode.DEADLINE_EXCEEDED)


@colours
@pytest.mark.parametrize("shape", ["unary_unary", "unary_stream"])
@pytest.mark.parametrize("code", [StatusCode.NOT_FOUND, StatusCode.UNAVAILABLE])
def test_a_code_that_was_set_counts_as_well(colour: str, shape: str, code: StatusCode) -> None:
    """Not only aborting tells of a failure."""
    ledger = Ledger()
    with served(colour, {"shed": ledger}, act=lambda context: context.set_code(code)) as channel:
        assert call(channel, shape).code is code
        assert [kind is None for kind in ledger.kinds()] == [code not in FAULTS]


@colours
def test_an_error_with_a_code_is_what_the_code_says(colour: str) -> None:
    """The generated base classes set `UNIMPLEMENTED` and raise: whoever invents methods opens no circuit."""
    ledger = Ledger()

    def act(context: Any) -> None:
        context.set_code(StatusCode.UNIMPLEMENTED)
        raise NotImplementedError

    with served(colour, {"shed": ledger}, act=act) as channel:
        assert call(channel).code is StatusCode.UNIMPLEMENTED
        assert ledger.kinds() == [None]


ERRORS = [
    (BulkheadFullError("full"), StatusCode.UNAVAILABLE),
    (CircuitOpenError("open", retry_after=1.0), StatusCode.UNAVAILABLE),
    (PoolTimeoutError("no connection"), StatusCode.UNAVAILABLE),
    (DeadlineExceededError("late"), StatusCode.DEADLINE_EXCEEDED),
    (CallTimeoutError("too slow"), StatusCode.DEADLINE_EXCEEDED),
]


@colours
@pytest.mark.parametrize(("error", "code"), ERRORS, ids=[type(error).__name__ for error, _ in ERRORS])
def test_each_refusal_is_told_by_its_code(colour: str, error: Exception, code: StatusCode) -> None:
    """What leaves a handler is told without its message, and the gate has the error itself."""
    ledger = Ledger()
    with served(colour, {"shed": ledger}, act=raising(error)) as channel:
        end = call(channel)
        assert end.code is code
        assert str(error) not in end.details
        assert ledger.kinds() == [type(error)]


@colours
def test_metadata_of_the_handler_is_kept(colour: str) -> None:
    """What the handler sends with its status goes along with what is told of limits."""

    def act(context: Any) -> None:
        context.set_trailing_metadata((("of", "its own"),))

    with served(colour, {"rate_limit": "9/hour"}, act=act) as channel:
        end = call(channel)
        assert end.trailing["of"] == "its own"
        assert end.trailing["ratelimit"].startswith('"9/hour";r=8')


@colours
def test_metadata_of_the_handler_is_kept_in_a_refusal(colour: str) -> None:
    """So does it with the pushback."""

    def act(context: Any) -> None:
        context.set_trailing_metadata((("of", "its own"),))
        raise RateLimitedError(retry_after=1.0)

    with served(colour, {}, act=act) as channel:
        assert call(channel).trailing == {"of": "its own", PUSHBACK: "1000"}


@colours
def test_limits_are_told_in_the_words_that_were_asked_for(colour: str) -> None:
    """`headers` is what it is for the web."""
    with served(colour, {"rate_limit": "9/hour", "headers": "legacy"}) as channel:
        assert call(channel).trailing["x-ratelimit-remaining"] == "8"
    with served(colour, {"rate_limit": "9/hour", "headers": None}) as channel:
        assert call(channel).trailing == {}


@colours
def test_an_unknown_method_stays_unknown(colour: str) -> None:
    """There is no handler to guard."""
    ledger = Ledger()
    with served(colour, {"shed": ledger}) as channel:
        assert call(channel, service="t.Other").code is StatusCode.UNIMPLEMENTED
        assert ledger.ends == []


# Deadlines


@colours
def test_without_a_deadline_there_is_none(colour: str) -> None:
    """A client that waits for ever sets no limit."""
    seen: list[float | None] = []
    with served(colour, {}, act=lambda _: seen.append(time_left())) as channel:
        assert call(channel, timeout=None).code is StatusCode.OK
        assert seen == [None]


@colours
def test_the_servers_own_time_counts_where_it_is_earlier(colour: str) -> None:
    """The lesser of the two holds."""
    seen: list[float] = []
    with served(colour, {"deadline": 5.0}, act=lambda _: seen.append(time_left() or 0.0)) as channel:
        call(channel, timeout=2.0)
        call(channel, timeout=50.0)
        call(channel, timeout=None)
    assert [left < 2.0 + ROUNDED for left in seen[:1]] == [True]
    assert [3.0 < left <= 5.0 for left in seen[1:]] == [True, True]


@shapes
def test_a_task_is_cut_off_when_the_servers_time_is_up(shape: str) -> None:
    """That is a failure, unlike a client's impatience, and the client is told."""
    ledger, hold = Ledger(), Hold()
    with served("tasks", {"shed": ledger, "deadline": 0.05}, act=hold) as channel:
        assert call(channel, shape).code is StatusCode.DEADLINE_EXCEEDED
        assert ledger.kinds() == [CallTimeoutError]
        assert hold.left == 1


def test_a_thread_obeys_the_deadline_in_its_time_limits() -> None:
    """What waits inside gives up in time, and the client is told."""
    never = threading.Event()
    guarded = Timeout(10.0, threads=2)(never.wait)
    ledger = Ledger()
    with served("threads", {"shed": ledger, "deadline": 0.05}, act=lambda _: guarded()) as channel:
        assert call(channel).code is StatusCode.DEADLINE_EXCEEDED
        assert ledger.kinds() == [CallTimeoutError]
    never.set()


@colours
def test_nobodys_time_counts_who_is_not_trusted(colour: str) -> None:
    """Where strangers call, their deadlines must not have the calls inside time out."""
    seen: list[float | None] = []
    act = lambda _: seen.append(time_left())  # noqa: E731
    for trusted, known in (("192.0.2.0/24", False), ("127.0.0.0/8", True), ((), False), (None, True)):
        seen.clear()
        with served(colour, {"trusted": trusted}, act=act) as channel:
            call(channel, timeout=9.0)
        assert [left is not None for left in seen] == [known]


@colours
@pytest.mark.parametrize("seconds", [50.0, 5_000.0, 90_000.0, 1e7])
def test_long_deadlines_are_deadlines(colour: str, seconds: float) -> None:
    """A field of eight digits is enough for a day; what is longer than that is for ever."""
    seen: list[float | None] = []
    with served(colour, {}, act=lambda _: seen.append(time_left())) as channel:
        assert call(channel, timeout=seconds).code is StatusCode.OK
    left = seen[0]
    if seconds > 1e5:
        assert left is None
    else:
        assert left is not None
        assert seconds - 10.0 < left < 1.01 * seconds + ROUNDED or 86_390.0 < left <= 86_400.0


@colours
def test_a_deadline_is_not_that_of_the_next_call(colour: str) -> None:
    """Threads serve one call after another; what holds for the one does not for the next."""
    seen: list[Any] = []

    def act(_context: Any) -> None:
        seen.append((time_left() is None, current_priority()))

    words = {"priority": requested_priority(trusted="127.0.0.1")}
    with served(colour, words, act=act, threads=1) as channel:
        call(channel, metadata=(("x-request-priority", "critical"),))
        call(channel, timeout=None)
    assert seen == [(False, Priority.CRITICAL), (True, Priority.DEFAULT)]


# Who calls


@colours
def test_the_limit_is_the_clients_address_by_default(colour: str) -> None:
    """Whichever port it comes from, and whatever it says of others."""
    keys: list[str] = []

    class Limiter(RateLimiter):
        def hit(self, key: str = "", *args: Any, **words: Any) -> Any:
            keys.append(key)
            return super().hit(key, *args, **words)

        async def ahit(self, key: str = "", *args: Any, **words: Any) -> Any:
            keys.append(key)
            return await super().ahit(key, *args, **words)

    with served(colour, {"rate_limit": Limiter("9/hour")}) as channel:
        call(channel, metadata=(("x-forwarded-for", "198.51.100.7"),))
    with served(colour, {"rate_limit": Limiter("9/hour"), "trusted": "127.0.0.1"}) as channel:
        call(channel, metadata=(("x-forwarded-for", "198.51.100.7"),))
    assert list(dict.fromkeys(keys)) == ["127.0.0.1", "198.51.100.7"]


@colours
def test_a_key_may_be_made_of_metadata(colour: str) -> None:
    """Each API key has its own limit."""
    words = {"rate_limit": "1/hour", "key": api_key("x-api-key")}
    with served(colour, words) as channel:
        codes = [call(channel, metadata=(("x-api-key", key),)).code.name for key in "aab"]
    assert codes == ["OK", "RESOURCE_EXHAUSTED", "OK"]


@colours
def test_a_key_of_none_lifts_the_limit(colour: str) -> None:
    """As it does for the web."""
    with served(colour, {"rate_limit": "1/hour", "key": lambda _: None}) as channel:
        assert [call(channel).code for _ in range(3)] == [StatusCode.OK] * 3


@colours
def test_limits_go_by_method(colour: str) -> None:
    """The exact method wins, then the longest prefix."""
    limits = {"/t.Service/unary_unary": "1/hour", "/t.Service/*": "2/hour"}
    with served(colour, {"rate_limit": limits}) as channel:
        one = [call(channel).code.name for _ in range(2)]
        many = [call(channel, "unary_stream").code.name for _ in range(3)]
    assert one == ["OK", "RESOURCE_EXHAUSTED"]
    assert many == ["OK", "OK", "RESOURCE_EXHAUSTED"]


@colours
def test_a_request_tells_the_facts_of_a_call(colour: str) -> None:
    """Key functions of the web do for gRPC."""
    requests: list[Request] = []
    facts: list[Any] = []

    def key(request: Request) -> None:
        requests.append(request)
        facts.extend(
            (request.method, request.path, request.route, str(request.client), request.header("X-Word"))
        )
        facts.extend((request.header("x-bin"), request.header("x-none"), request.user))

    with served(colour, {"rate_limit": "9/hour", "key": key}) as channel:
        call(channel, metadata=(("x-word", "one"), ("x-word", "two"), ("x-bin", b"b")))
    method = "/t.Service/unary_unary"
    assert facts == ["POST", method, method, "127.0.0.1", "one,two", "b", None, None]
    # Nobody is asked when the call is over: gRPC would look at what is not there any more.
    assert (requests[0].client, requests[0].user) == (None, None)


@colours
def test_who_is_not_trusted_gets_no_more_priority(colour: str) -> None:
    """A stranger may say of itself that it matters less, and no more."""
    seen: list[Priority] = []
    words = {"priority": requested_priority()}
    with served(colour, words, act=lambda _: seen.append(current_priority())) as channel:
        for word in ("critical", "sheddable", "nonsense"):
            call(channel, metadata=(("x-request-priority", word),))
    assert seen == [Priority.DEFAULT, Priority.SHEDDABLE, Priority.DEFAULT]


# Gates


@colours
@pytest.mark.parametrize("shape", ["unary_stream", "stream_stream"])
def test_a_place_is_held_until_the_stream_ends(colour: str, shape: str) -> None:
    """Not only until it begins."""
    hold = Hold()
    shed = Bulkhead("b", 1)
    with served(colour, {"shed": shed}, act=hold) as channel:
        under_way = begin(channel, shape)
        assert next(iter(under_way))
        hold.wait_for(1)
        full = call(channel)
        hold.let_go()
        assert ended(under_way, shape).code is StatusCode.OK
        wait_until(lambda: shed.stats().in_use == 0, "the place comes back")
        assert call(channel).code is StatusCode.OK
    assert full.code is StatusCode.UNAVAILABLE


@colours
def test_a_gate_hears_when_a_stream_begins(colour: str) -> None:
    """From then on it is the client that sets the pace."""
    ledger, hold = Ledger(), Hold()
    with served(colour, {"shed": ledger}, act=hold) as channel:
        under_way = begin(channel, "unary_stream")
        next(iter(under_way))
        assert ledger.answered == [None]
        assert ledger.ends == []
        hold.let_go()
        ended(under_way, "unary_stream")
        assert ledger.kinds() == [None]
        assert ledger.answered == [None]


@colours
def test_a_place_comes_back_from_a_stream_nobody_reads(colour: str) -> None:
    """The server waits for the client to read on, which leaves instead."""
    ledger = Ledger()
    big = bytes(256 * 1024)

    def endless(_request: bytes, _context: Any) -> Iterator[bytes]:
        while True:
            yield big

    async def aio_endless(_request: bytes, _context: Any) -> AsyncIterator[bytes]:
        while True:
            yield big

    behaviours = {"unary_stream": aio_endless if colour == "tasks" else endless}
    with served(colour, {"shed": ledger}, behaviours=behaviours) as channel:
        under_way = begin(channel, "unary_stream")
        assert len(next(iter(under_way))) == len(big)
        assert ledger.held == 1
        under_way.cancel()
        assert ledger.kinds()[0] in ABANDONED


@colours
def test_a_breaker_opens_for_clients(colour: str) -> None:
    """Failures open it; what comes then is refused, with the time until the next try."""
    breaker = CircuitBreaker("c", fail_max=2, reset_timeout=30)
    with served(colour, {"shed": breaker}, act=raising(OSError("down"))) as channel:
        codes = [call(channel).code.name for _ in range(2)]
        end = call(channel)
    assert codes == ["UNKNOWN", "UNKNOWN"]
    assert end.code is StatusCode.UNAVAILABLE
    assert 29_000 < int(end.trailing[PUSHBACK]) <= 45_000


@colours
def test_who_leaves_while_waiting_at_the_gate_has_no_turn(colour: str) -> None:
    """A call waits for room no longer than its client does."""
    hold = Hold()
    shed = Bulkhead("b", 1, max_wait=20.0)
    with served(colour, {"shed": shed}, act=hold) as channel:
        first = begin(channel)
        hold.wait_for(1)
        late = call(channel, timeout=0.1)
        assert late.code is StatusCode.DEADLINE_EXCEEDED
        wait_until(lambda: shed.stats().waiting == 0, "nobody waits any more")
        hold.let_go()
        assert ended(first, "unary_unary").code is StatusCode.OK
        assert hold.entered == 1


@colours
def test_a_refund_is_given_where_the_gate_refuses(colour: str) -> None:
    """A call that was not let in costs nothing of its quota."""
    hold = Hold()
    with served(colour, {"shed": Bulkhead("b", 1), "rate_limit": "2/hour"}, act=hold) as channel:
        first = begin(channel)
        hold.wait_for(1)
        assert [call(channel).code.name for _ in range(3)] == ["UNAVAILABLE"] * 3
        hold.let_go()
        ended(first, "unary_unary")


@colours
def test_maintenance_closes_the_service(colour: str) -> None:
    """But for what stays open and for who is let in."""
    shut = Maintenance(exempt=["/t.Service/unary_stream"], allow=["192.0.2.1"], retry_after=10.0)
    with served(colour, {"maintenance": shut}) as channel:
        assert call(channel).code is StatusCode.OK
        shut.on()
        end = call(channel)
        assert call(channel, "unary_stream").code is StatusCode.OK
        shut.off()
        assert call(channel).code is StatusCode.OK
    assert end.code is StatusCode.UNAVAILABLE
    assert 10_000 <= int(end.trailing[PUSHBACK]) <= 15_000


@colours
def test_what_is_exempt_is_not_touched(colour: str) -> None:
    """Neither the limit nor the deadline is there for it."""
    seen: list[float | None] = []
    words = {"rate_limit": "1/hour", "exempt": ["/t.Service/unary_unary"], "deadline": 5.0}
    with served(colour, words, act=lambda _: seen.append(time_left())) as channel:
        assert [call(channel).code for _ in range(3)] == [StatusCode.OK] * 3
    assert seen == [None] * 3


# Other kinds of handlers


@shapes
def test_plain_functions_on_a_server_of_tasks_are_guarded_in_their_threads(shape: str) -> None:
    """Limits, deadlines and refusals are what they are for coroutines."""
    seen: list[float | None] = []
    ledger = Ledger()
    behaviours = plain_behaviours(lambda _: seen.append(time_left()))
    words = {"shed": ledger, "rate_limit": "1/hour", "deadline": 5.0}
    with served("tasks", words, behaviours=behaviours) as channel:
        end = call(channel, shape)
        assert (end.code, end.messages) == (StatusCode.OK, ANSWERS[shape])
        assert call(channel, shape).code is StatusCode.RESOURCE_EXHAUSTED
        assert ledger.kinds() == [None]
    assert seen[0] is not None
    assert seen[0] <= 5.0


def test_the_threads_of_a_server_of_tasks_are_left_as_they_were() -> None:
    """They have no context of their own for each call."""
    seen: list[Any] = []
    words = {"deadline": 5.0, "priority": lambda _: Priority.CRITICAL}
    with hosting("tasks", words, behaviours=plain_behaviours(nothing), threads=1) as host:
        with channel_to(host) as channel:
            assert call(channel).code is StatusCode.OK
            assert call(channel, "unary_stream").code is StatusCode.OK
        seen += [host.executor.submit(ask).result() for ask in (time_left, current_priority)]
    assert seen == [None, Priority.DEFAULT]


def test_a_coroutine_may_write_its_stream() -> None:
    """gRPC's reader and writer API is guarded like generators."""
    ledger = Ledger()

    async def unary_stream(request: bytes, context: Any) -> None:
        await context.write(request)
        raise RateLimitedError(retry_after=1.0)

    with served("tasks", {"shed": ledger}, behaviours={"unary_stream": unary_stream}) as channel:
        end = call(channel, "unary_stream")
        assert (end.code, end.messages) == (StatusCode.RESOURCE_EXHAUSTED, [b"ab"])
        assert ledger.kinds() == [RateLimitedError]


def test_a_client_that_leaves_while_a_coroutine_writes_is_no_failure() -> None:
    """gRPC raises an error of its own there, or cancels."""
    ledger = Ledger()
    big = bytes(256 * 1024)

    async def unary_stream(_request: bytes, context: Any) -> None:
        while True:
            await context.write(big)

    with served("tasks", {"shed": ledger}, behaviours={"unary_stream": unary_stream}) as channel:
        under_way = begin(channel, "unary_stream")
        next(iter(under_way))
        under_way.cancel()
        assert ledger.kinds() == [asyncio.CancelledError]


@pytest.mark.parametrize(
    ("error", "gone"),
    [
        (None, False),
        (ValueError(), False),
        (grpc.aio.AbortError(), False),
        (grpc.aio.UsageError(), False),
        (grpc.aio.InternalError(), False),
        (cygrpc.ExecuteBatchError(), True),
    ],
)
def test_what_grpc_raises_for_a_client_that_has_left_is_known(error: Any, gone: bool) -> None:
    """Among its own errors, which tell of mistakes."""
    assert _InTask.is_gone(None, error) is gone  # type: ignore[arg-type]


def test_handlers_that_do_not_block_pass_by() -> None:
    """Nobody could tell when their calls end."""
    ledger = Ledger()

    def unary_stream(request: bytes, _context: Any, send: Any) -> None:
        send(request)
        send(None)

    unary_stream.experimental_non_blocking = True  # type: ignore[attr-defined]
    with served("threads", {"shed": ledger}, behaviours={"unary_stream": unary_stream}) as channel:
        assert call(channel, "unary_stream").messages == [b"ab"]
        assert ledger.ends == []


def test_a_plain_generator_that_hangs_in_grpc_has_no_place() -> None:
    """gRPC never comes back for the next message of one whose client has left."""
    ledger, entered = Ledger(), threading.Event()

    def unary_stream(request: bytes, _context: Any) -> Iterator[bytes]:
        entered.set()
        while True:
            yield request

    with served("tasks", {"shed": ledger}, behaviours={"unary_stream": unary_stream}) as channel:
        under_way = begin(channel, "unary_stream")
        assert entered.wait(20.0)
        under_way.cancel()
        assert ledger.kinds()[0] in ABANDONED


@shapes
def test_a_thread_may_ask_who_called_when_the_client_has_left(shape: str) -> None:
    """gRPC's own context ends the process then; a request of ours knows nobody any more."""
    requests: list[Request] = []
    seen: list[Any] = []
    ledger, hold = Ledger(), Hold()

    def act(_context: Any) -> None:
        hold.entered += 1
        wait_until(lambda: requests[0].is_over, "gRPC has done with the call")  # type: ignore[attr-defined]
        seen.append((requests[0].client, requests[0].user))
        raise RateLimitedError

    words = {"shed": ledger, "rate_limit": "9/hour", "key": requests.append}
    with served("tasks", words, behaviours=plain_behaviours(act)) as channel:
        under_way = begin(channel, shape)
        hold.wait_for(1)
        under_way.cancel()
        assert ledger.kinds()[0] in ABANDONED
    assert seen == [(None, None)]


# Arguments


@pytest.mark.parametrize("kind", [ResilienceServerInterceptor, AioResilienceServerInterceptor])
@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({"exempt": "/t.Service/*"}, TypeError, "exempt must be several paths, not one text"),
        ({"exempt": 3}, TypeError, "exempt must be several paths"),
        ({"exempt": ["Service"]}, ValueError, "exempt must name paths"),
        ({"deadline": 0}, ValueError, "deadline must be greater than 0"),
        ({"shed": 3}, TypeError, "shed must be a gate"),
        ({"rate_limit": 3}, TypeError, "rate_limit must be"),
        ({"maintenance": True}, TypeError, "maintenance must be"),
        ({"headers": "all"}, ValueError, "headers must be one of"),
        ({"trusted": 3}, TypeError, "trusted must be networks"),
        ({"key": api_key}, TypeError, "key must be a key function"),
    ],
)
def test_bad_arguments_are_named(kind: Any, words: Any, error: type[Exception], message: str) -> None:
    """The message names the argument and the rule."""
    with pytest.raises(error, match=message):
        kind(**words)


@colours
def test_several_interceptors_stand_one_inside_the_other(colour: str) -> None:
    """Each has its say, and the outer gate is told of what the inner one refused."""
    outer = Ledger()
    kind: Any = ResilienceServerInterceptor if colour == "threads" else AioResilienceServerInterceptor
    with served(colour, {"rate_limit": "1/hour"}, interceptors=[kind(shed=outer)]) as channel:
        assert [call(channel).code.name for _ in range(2)] == ["OK", "RESOURCE_EXHAUSTED"]
        assert outer.kinds() == [None, None]


def test_both_are_what_grpc_asks_for() -> None:
    """gRPC's server of tasks refuses interceptors of another class."""
    assert isinstance(ResilienceServerInterceptor(), grpc.ServerInterceptor)
    assert isinstance(AioResilienceServerInterceptor(), grpc.aio.ServerInterceptor)


def test_their_words_are_those_of_the_middleware() -> None:
    """With the same defaults, but for what is exempt and who is trusted: gRPC has its own ways there."""
    both = [
        inspect.signature(kind).parameters
        for kind in (ResilienceServerInterceptor, AioResilienceServerInterceptor)
    ]
    reference = inspect.signature(ResilienceMiddleware).parameters
    assert list(both[0].values()) == list(both[1].values())
    assert list(both[0]) == [word for word in reference if word not in {"app", "health"}]
    assert [one.name for one in both[0].values() if one.default != reference[one.name].default] == [
        "exempt",
        "trusted",
    ]


def test_who_has_no_grpc_is_told_what_to_install() -> None:
    """And health itself imports none of it."""
    code = """
    import sys
    import resilient.health, resilient.integrations
    assert not {"grpc", "grpc_health", "google.protobuf"} & set(sys.modules)
    for absent in ("grpc_health", "grpc"):
        sys.modules[absent] = None
        for module in [name for name in sys.modules if name.startswith("resilient.integrations.grpc")]:
            del sys.modules[module]
        try:
            import resilient.integrations.grpc
        except ImportError as error:
            print(error)
        del sys.modules[absent]
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True, timeout=60
    )
    both, grpcio = done.stdout.splitlines()
    assert both.endswith("needs grpcio and grpcio-health-checking: pip install 'resilient-py[grpc]'")
    assert grpcio.endswith("needs grpcio: pip install 'resilient-py[grpc]'")
