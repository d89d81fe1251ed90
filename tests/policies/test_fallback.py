"""Fallback: what answers in a call's place, when, and what happens if that fails too."""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from resilient import (
    BulkheadFullError,
    CircuitBreaker,
    CircuitOpenError,
    DeadlineExceededError,
    Fallback,
    Pipeline,
    RejectedError,
    ResilientError,
    Retry,
    Timeout,
)
from resilient.events import FallbackUsed
from resilient.testing import FakeClock, capture_events


def down(*args: Any, **kwargs: Any) -> Any:
    """Fail as a dependency that is away."""
    raise ConnectionError("down")


async def adown(*args: Any, **kwargs: Any) -> Any:
    """Fail as a dependency that is away, asynchronously."""
    raise ConnectionError("down")


# Answers


@pytest.mark.parametrize(
    "value", ["rates of yesterday", None, 0, "", [], {}, False, ConnectionError("a value")]
)
def test_value_answers_for_a_failure(value):
    """Any value answers, falsy ones and None included, and it is that very object."""
    assert Fallback(value).call(down) is value


@pytest.mark.parametrize("value", ["rates of yesterday", None, 0])
async def test_value_answers_for_a_failed_coroutine(value):
    """The same goes for coroutine functions."""
    assert await Fallback(value).acall(adown) is value


def test_good_call_is_left_alone():
    """A call that ends well never touches the handler, and is not counted."""
    fallback = Fallback(down)
    assert fallback.call(str, 5) == "5"
    assert (fallback.stats().used, fallback.stats().failed) == (0, 0)


def test_function_gets_the_exception_and_the_calls_arguments():
    """A handler is called with the exception, then the arguments of the call, a method's self included."""
    seen: list[Any] = []

    class Service:
        @Fallback(lambda *args, **kwargs: seen.append((args, kwargs)) or "answer")
        def get(self, code: str, *, base: str) -> str:
            raise error

    error, service = ConnectionError("down"), Service()
    assert service.get("CHF", base="EUR") == "answer"
    assert seen == [((error, service, "CHF"), {"base": "EUR"})]


async def test_handler_may_be_asynchronous_where_the_call_is():
    """A coroutine function as handler is awaited; so is what an ordinary one returns, if it can be."""

    async def handler(exc: Exception, code: str) -> str:
        await asyncio.sleep(0)
        return f"{code} after {exc}"

    assert await Fallback(handler).acall(adown, "CHF") == "CHF after down"
    assert await Fallback(functools.partial(handler, code="USD")).acall(adown) == "USD after down"
    assert await Fallback(lambda exc: asyncio.sleep(0, "slept")).acall(adown) == "slept"
    assert await Fallback(lambda exc: "plain").acall(adown) == "plain"


def test_asynchronous_handler_is_refused_on_a_function():
    """What could only fail in the middle of an outage is refused when decorating."""
    with pytest.raises(
        TypeError, match="an asynchronous handler cannot answer for down, which is a function"
    ):
        Fallback(adown)(down)


async def test_direct_calls_hand_on_the_arguments_alone():
    """`call` and `acall`, through a pipeline or a breaker too, give the handler the call's own arguments."""
    seen: list[Any] = []

    def handler(*args: Any, **kwargs: Any) -> None:
        seen.append((*args[1:], kwargs))

    breaker = CircuitBreaker("rates", fallback=handler)
    for policy in (Fallback(handler), Pipeline(Fallback(handler), Timeout(5)), breaker, Pipeline(breaker)):
        policy.call(down, "CHF", base="EUR")
        await policy.acall(adown, "CHF", base="EUR")
    assert seen == [("CHF", {"base": "EUR"})] * 8


def test_policy_wrapped_source_gets_the_arguments_alone():
    """A handler that is under a policy is a second source: it is called like the first one."""
    seen: list[Any] = []

    @Timeout(5)
    def second(code: str, *, base: str) -> str:
        seen.append((code, base))
        return "from the second source"

    assert Fallback(second).call(down, "CHF", base="EUR") == "from the second source"
    assert seen == [("CHF", "EUR")]


async def test_asynchronous_policy_wrapped_source():
    """A second source may be a coroutine function under a policy."""

    @Timeout(5)
    async def second(code: str) -> str:
        return f"{code} from the second source"

    assert await Fallback(second).acall(adown, "CHF") == "CHF from the second source"


# A handler that fails


def test_handlers_own_exception_is_raised_with_the_original_as_context():
    """When the handler fails too, its own exception leaves, and tells what went before."""
    own = KeyError("no rates of yesterday")

    def handler(exc: Exception) -> None:
        raise own

    fallback = Fallback(handler)
    with capture_events() as seen, pytest.raises(KeyError) as caught:
        fallback.call(down)
    assert caught.value is own
    assert isinstance(caught.value.__context__, ConnectionError)
    assert (fallback.stats().used, fallback.stats().failed) == (0, 1)
    assert seen == []


async def test_asynchronous_handlers_own_exception():
    """The same goes for a handler that is awaited."""

    async def handler(exc: Exception) -> None:
        await asyncio.sleep(0)
        raise KeyError

    fallback = Fallback(handler)
    with pytest.raises(KeyError) as caught:
        await fallback.acall(adown)
    assert isinstance(caught.value.__context__, ConnectionError)
    assert fallback.stats().failed == 1


def test_handler_may_raise_the_original_again():
    """A handler that cannot help may let the original go on."""

    def handler(exc: Exception) -> None:
        raise exc

    with pytest.raises(ConnectionError, match="down"):
        Fallback(handler).call(down)


# on=


@pytest.mark.parametrize(
    ("on", "answered"),
    [
        (Exception, True), (OSError, True), ((ValueError, ConnectionError), True), (ValueError, False),
        (lambda exc: "down" in str(exc), True), (lambda exc: False, False),
        ((ValueError, lambda exc: isinstance(exc, OSError)), True),
    ],
)  # fmt: skip
def test_on_narrows_what_is_answered_for(on, answered):
    """Only what `on` names is answered for; everything else passes untouched."""
    fallback = Fallback("answer", on=on)
    if answered:
        assert fallback.call(down) == "answer"
    else:
        with pytest.raises(ConnectionError):
            fallback.call(down)
    assert fallback.stats().used == answered


@pytest.mark.parametrize(
    ("refusal", "on"),
    [
        (CircuitOpenError("open"), Exception),
        (CircuitOpenError("open"), CircuitOpenError),
        (CircuitOpenError("open"), RejectedError),
        (CircuitOpenError("open"), ResilientError),
        (BulkheadFullError("full"), lambda exc: isinstance(exc, BulkheadFullError)),
        (DeadlineExceededError("late"), TimeoutError),
    ],
)
def test_refusals_are_judged_like_any_other_exception(refusal, on):
    """To answer for what was refused is what a fallback is there for."""

    def refuse() -> None:
        raise refusal

    assert Fallback("answer", on=on).call(refuse) == "answer"
    with pytest.raises(RejectedError):
        Fallback("answer", on=ValueError).call(refuse)


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError])
def test_interrupts_are_never_answered_for(interrupt):
    """An abandoned call gets no answer."""

    def stop() -> None:
        raise interrupt

    with pytest.raises(interrupt):
        Fallback("answer", on=lambda exc: True).call(stop)


async def test_cancelled_call_is_not_answered_for():
    """A caller's cancellation stays one, during the call and during the handler."""
    for work in (Fallback("answer").acall(asyncio.sleep, 30), Fallback(_hang).acall(adown)):
        task = asyncio.create_task(work)
        await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def _hang(exc: Exception) -> None:
    await asyncio.sleep(30)


# Chains


def test_chain_tries_sources_in_order():
    """The first source that answers counts; each is called with the arguments of the call."""
    seen: list[str] = []

    def source(name: str, *, works: bool) -> Any:
        def fetch(code: str, *, base: str) -> str:
            seen.append(f"{name} {code}/{base}")
            if not works:
                raise ConnectionError(name)
            return name

        return fetch

    first, second, third = (source(name, works=name == "third") for name in ("first", "second", "third"))
    assert Fallback.chain(first, second, third)("CHF", base="EUR") == "third"
    assert seen == ["first CHF/EUR", "second CHF/EUR", "third CHF/EUR"]
    assert Fallback.chain(third, first)("CHF", base="EUR") == "third"
    assert len(seen) == 4


async def test_chain_of_asynchronous_sources_with_an_ordinary_one_anywhere():
    """The primary's shape is the chain's; an ordinary function may stand between coroutine functions."""

    async def works() -> str:
        return "third"

    assert await Fallback.chain(adown, down, works)() == "third"
    assert await Fallback.chain(adown, adown, lambda: "plain")() == "plain"


def test_chain_raises_the_last_sources_exception():
    """When all fail, the last one's exception is raised, with those before as its context."""

    def second() -> None:
        raise KeyError("second")

    def third() -> None:
        raise ValueError("third")

    with pytest.raises(ValueError, match="third") as caught:
        Fallback.chain(down, second, third)()
    assert isinstance(caught.value.__context__, KeyError)
    assert isinstance(caught.value.__context__.__context__, ConnectionError)


def test_chain_goes_on_only_for_what_on_names():
    """`on` says which exceptions lead to the next source, at every link."""

    def second() -> None:
        raise ValueError("bad input")

    assert Fallback.chain(down, lambda: "second", on=ConnectionError)() == "second"
    with pytest.raises(ValueError, match="bad input"):
        Fallback.chain(down, second, lambda: "third", on=ConnectionError)()
    with pytest.raises(ConnectionError):
        Fallback.chain(down, second, on=ValueError)()


def test_chain_lets_each_source_have_policies_of_its_own():
    """A source's breaker and retries are its own; an open circuit leads on to the next source."""
    clock = FakeClock()
    breaker = CircuitBreaker("first", fail_max=1, clock=clock)
    retry = Retry(on=OSError, attempts=2, wait=0, clock=clock, sleep=clock.sleep)
    fetch = Fallback.chain(breaker(down), retry(down), lambda: "third")
    assert [fetch(), fetch()] == ["third", "third"]
    assert breaker.stats().rejected == 1
    assert retry.stats().calls == 2


def test_chain_keeps_the_primarys_name_and_signature():
    """The result looks like the primary."""
    assert Fallback.chain(down, str).__name__ == "down"


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ((down,), "needs at least one source after the first one"),
        ((down, "value"), "source must be callable, got 'value'"),
        (("value", down), "source must be callable, got 'value'"),
        ((down, adown), "an asynchronous handler cannot answer for down"),
    ],
)
def test_bad_chains_are_refused(sources, message):
    """Each source must be callable, and there must be a second one."""
    with pytest.raises(TypeError, match=message):
        Fallback.chain(*sources)


# Streams


def broken_pages() -> Iterator[int]:
    """Fail before the first item."""
    raise ConnectionError("down")
    yield


async def abroken_pages() -> AsyncIterator[int]:
    """Fail before the first item, asynchronously."""
    raise ConnectionError("down")
    yield


@pytest.mark.parametrize("handler", [[7, 8], (7, 8), lambda exc: [7, 8], lambda exc: iter((7, 8))])
async def test_stream_that_never_began_is_replaced(handler):
    """Before its first item a stream is answered for by something to iterate over."""
    assert list(Fallback(handler)(broken_pages)()) == [7, 8]
    assert [page async for page in Fallback(handler)(abroken_pages)()] == [7, 8]


async def test_async_stream_is_replaced_by_an_async_one():
    """The answer for an async generator may be one itself, or come from a coroutine."""

    async def pages(exc: Exception) -> AsyncIterator[int]:
        yield 7

    async def later(exc: Exception) -> list[int]:
        return [7]

    for handler in (pages, later):
        assert [page async for page in Fallback(handler)(abroken_pages)()] == [7]


async def test_stream_that_has_begun_is_never_replaced():
    """After the first item the failure is the consumer's."""

    @Fallback([7])
    def pages() -> Iterator[int]:
        yield 1
        raise ConnectionError

    @Fallback([7])
    async def apages() -> AsyncIterator[int]:
        yield 1
        raise ConnectionError

    stream, astream = pages(), apages()
    assert (next(stream), await anext(astream)) == (1, 1)
    with pytest.raises(ConnectionError):
        next(stream)
    with pytest.raises(ConnectionError):
        await anext(astream)


def test_values_that_cannot_be_iterated_are_refused_on_streams():
    """A value that is no answer for a stream is refused when decorating."""
    message = "handler must be iterable to answer for .*pages, an? .*generator function, got "
    for handler, stream in ((5, broken_pages), (None, abroken_pages), (abroken_pages(), broken_pages)):
        with pytest.raises(TypeError, match=message):
            Fallback(handler)(stream)


# Events, repr, bad arguments


def test_use_is_counted_and_announced():
    """Each answer is an event, with the failure as text, and `repr` shows the counts."""
    fallback = Fallback("answer", name="old-rates")
    with capture_events() as seen:
        fallback.call(down)
    assert seen == [FallbackUsed("old-rates", "ConnectionError: down")]
    assert repr(fallback) == "<Fallback 'old-rates' used 1 times, failed 0 times>"


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (
            {"on": "OSError"},
            TypeError,
            "on must be an exception type, a predicate, or a tuple of these, got 'OSError'",
        ),
        ({"on": KeyboardInterrupt}, ValueError, "on must name types below Exception"),
        ({"on": adown}, TypeError, "on must be an ordinary function, not a coroutine function"),
        ({"name": ""}, ValueError, "name must not be empty, got ''"),
        ({"name": 5}, TypeError, "name must be text, got 5"),
    ],
)
def test_bad_arguments_are_refused(arguments, kind, message):
    """Each message names the parameter, the rule and the value."""
    with pytest.raises(kind) as caught:
        Fallback("answer", **arguments)
    assert message in str(caught.value)


async def test_streams_and_coroutines_pass_what_on_does_not_name():
    """In every shape, what is not answered for leaves untouched, and a good stream is left alone."""
    fallback = Fallback([7], on=ValueError)
    with pytest.raises(ConnectionError):
        next(fallback(broken_pages)())
    with pytest.raises(ConnectionError):
        await anext(fallback(abroken_pages)())
    with pytest.raises(ConnectionError):
        await fallback.acall(adown)

    @fallback
    def empty() -> Iterator[int]:
        return "done"
        yield

    @fallback
    async def aempty() -> AsyncIterator[int]:
        return
        yield

    with pytest.raises(StopIteration) as stop:
        next(empty())
    assert stop.value.value == "done"
    assert [page async for page in aempty()] == []
    assert fallback.stats().used == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork_frees_the_locks():
    """A child process can fall back and time out although a thread of its parent held the locks."""
    fallback, timeout = Fallback("answer"), Timeout(5)
    with fallback._lock, timeout._limit.lock:
        child = os.fork()
        if child == 0:
            answers: list[Any] = []
            work = threading.Thread(
                target=lambda: answers.append((fallback.call(down), timeout.stats())), daemon=True
            )
            work.start()
            work.join(5.0)
            os._exit(0 if answers else 1)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
