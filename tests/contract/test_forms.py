"""A policy returns a plain function of the same kind, name and signature, whatever it is put on."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

import pytest
from tests.contract.forms import ASYNC_GENERATOR, COROUTINE, GENERATOR, Driver, Form, each_form
from tests.contract.policies import Mode, each_case, each_mode

from resilient import Cache, CircuitBreaker, Fallback, Pipeline, Retry
from resilient.engine.policy import policies_of
from resilient.errors import PipelineOrderError
from resilient.testing import FakeClock

_KIND_CHECKS: dict[str, Callable[[Any], bool]] = {
    COROUTINE: inspect.iscoroutinefunction,
    GENERATOR: inspect.isgeneratorfunction,
    ASYNC_GENERATOR: inspect.isasyncgenfunction,
}


@each_case()
def test_guarded_callable_is_a_plain_function_of_the_same_kind(
    mode: Mode, form: Form, clock: FakeClock
) -> None:
    """What comes back is a function (or, looked up on an object, a method), and of exactly one kind."""
    guarded = form.guard(mode.make(clock), lambda value: value)

    assert isinstance(guarded, types.FunctionType | types.MethodType)
    kinds = {kind for kind, check in _KIND_CHECKS.items() if check(guarded)}
    assert kinds == ({form.kind} if form.kind in _KIND_CHECKS else set())


@each_case()
def test_guarded_callable_keeps_name_doc_and_signature(mode: Mode, form: Form, clock: FakeClock) -> None:
    """Documentation tools, frameworks that inject arguments, and tracebacks see the user's function."""
    guarded = form.guard(mode.make(clock), lambda value: value)
    bare = form.guard(lambda fn: fn, lambda value: value)

    assert inspect.signature(guarded) == inspect.signature(bare)
    assert inspect.getdoc(guarded) == inspect.getdoc(bare)
    if form.decorated is not None:
        assert guarded.__name__ == form.decorated
        assert guarded.__qualname__ == bare.__qualname__
        assert guarded.__module__ == bare.__module__


def test_guarded_nameless_callable_is_named_after_what_it_calls(clock: FakeClock) -> None:
    """A partial is named after its function and an object after its class, not after our wrapper."""
    policy = CircuitBreaker("b", clock=clock)

    class Worker:
        def __call__(self) -> None: ...

    def work() -> None: ...

    assert policy(functools.partial(work)).__qualname__ == work.__qualname__
    assert policy(Worker()).__qualname__ == Worker.__qualname__
    assert policy(Worker()).__name__ == "Worker"


@each_case()
def test_result_comes_back_as_it_is(mode: Mode, form: Form, clock: FakeClock, drive: Driver) -> None:
    """Every policy hands the very object on that the call returned."""
    token = object()
    guarded = form.guard(mode.make(clock), lambda _: token)

    assert drive(form, guarded, "argument") is token


@each_case()
def test_arguments_arrive_as_they_are(mode: Mode, form: Form, clock: FakeClock, drive: Driver) -> None:
    """Positional and keyword arguments reach the call; a wrong one is Python's own TypeError."""
    seen: list[object] = []
    guarded = form.guard(mode.make(clock), seen.append)

    drive(form, functools.partial(guarded, times=1), "argument")

    assert seen == ["argument"]
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        drive(form, guarded)


@each_case("plain", "coroutine")
def test_direct_calls_do_what_the_decorator_does(
    mode: Mode, form: Form, clock: FakeClock, drive: Driver
) -> None:
    """`policy.call(f, ...)` and `await policy.acall(f, ...)` serve every form."""
    policy = mode.make(clock)
    bare = form.guard(lambda fn: fn, lambda value: value)
    call = policy.call if form.kind == "plain" else policy.acall

    answer = call(bare, "argument")

    assert (drive.wait_for(answer) if form.kind == COROUTINE else answer) == "argument"


@each_case("coroutine")
def test_direct_call_of_a_coroutine_function_points_to_acall(
    mode: Mode, form: Form, clock: FakeClock
) -> None:
    """Counting the making of a coroutine as a success would be the classic mistake; it is refused."""
    policy = mode.make(clock)

    with pytest.raises(TypeError, match="acall"):
        policy.call(form.guard(lambda fn: fn, lambda value: value), "argument")


@each_case("plain", "generator", "async generator")
def test_acall_of_anything_else_points_to_call(
    mode: Mode, form: Form, clock: FakeClock, drive: Driver
) -> None:
    """`acall` needs something to await."""
    policy = mode.make(clock)

    with pytest.raises(TypeError, match="use call"):
        drive.wait_for(policy.acall(form.guard(lambda fn: fn, lambda value: value), "argument"))


@each_form("generator", "async generator")
def test_cache_on_a_stream_is_refused_when_decorating(form: Form, clock: FakeClock) -> None:
    """A stream is no value; the message says what to cache instead."""
    with pytest.raises(TypeError, match="cache a function that returns the finished list"):
        form.guard(Cache("c", ttl=1.0, clock=clock), lambda value: value)


@each_mode()
@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        (int, "guard its methods"),
        (property(lambda self: None), "on the function inside it"),
        (functools.partialmethod(print), "on the function inside it"),
        ("text", "not callable"),
    ],
    ids=["class", "property", "partialmethod", "text"],
)
def test_what_cannot_be_guarded_is_refused_when_decorating(
    mode: Mode, target: Any, sentence: str, clock: FakeClock
) -> None:
    """The refusal comes at import time, and says what to do."""
    with pytest.raises(TypeError, match=sentence):
        mode.make(clock)(target)


@each_case()
def test_policy_applied_twice_is_refused(mode: Mode, form: Form, clock: FakeClock) -> None:
    """It would count every call twice."""
    policy = mode.make(clock)

    with pytest.raises(PipelineOrderError, match="already"):
        form.guard(lambda fn: policy(policy(fn)), lambda value: value)


def test_asynchronous_handler_for_a_function_is_refused_when_decorating() -> None:
    """It could not be awaited in the middle of an outage."""

    async def handler(exc: Exception) -> None: ...

    with pytest.raises(TypeError, match="asynchronous handler cannot answer"):
        Fallback(handler)(lambda: None)


@each_form("generator", "async generator")
def test_single_value_in_place_of_a_stream_is_refused_when_decorating(form: Form) -> None:
    """A stream can only be replaced by something to iterate over."""
    with pytest.raises(TypeError, match="handler must be iterable"):
        form.guard(Fallback(7), lambda value: value)


def test_policies_stay_known_to_the_outermost_function(clock: FakeClock) -> None:
    """The marks of several decorators add up, also through classmethod and staticmethod."""
    breaker, retry = CircuitBreaker("b", clock=clock), Retry(on=OSError)

    class Owner:
        @retry
        @classmethod
        @breaker
        def one(cls) -> None: ...

        @staticmethod
        @Pipeline(retry, breaker)
        def two() -> None: ...

    assert policies_of(Owner.one) == (retry, breaker)
    assert policies_of(Owner.two) == (retry, breaker)


def test_callable_that_claims_every_attribute_is_under_no_policy() -> None:
    """Proxies (of RPC libraries, of mocks) answer to any name; what they answer is not our mark."""

    class Proxy:
        def __getattr__(self, name: str) -> object:
            return self

        def __call__(self) -> None: ...

    assert policies_of(Proxy()) == ()
