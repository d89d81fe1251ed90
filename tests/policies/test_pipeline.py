"""Pipeline: order, refusals of known mistakes, nesting, and what it shows."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from resilient import (
    Bulkhead,
    Cache,
    CircuitBreaker,
    Fallback,
    Pipeline,
    PipelineOrderError,
    RateLimiter,
    Retry,
    Timeout,
    deadline,
)
from resilient.engine.policy import Policy, policies_of
from resilient.testing import FakeClock, describe


@pytest.fixture
def clock() -> FakeClock:
    """A clock that stands still."""
    return FakeClock()


def fallback() -> Fallback:
    """Return a fallback."""
    return Fallback("answer")


def cache() -> Cache:
    """Return a cache."""
    return Cache("cache", ttl=60)


def retry() -> Retry:
    """Return a retry that does not wait."""
    return Retry(on=ConnectionError, wait=0)


def breaker() -> CircuitBreaker:
    """Return a breaker."""
    return CircuitBreaker("breaker")


def limiter() -> RateLimiter:
    """Return a limiter."""
    return RateLimiter("1000/second", name="limiter")


def bulkhead() -> Bulkhead:
    """Return a bulkhead."""
    return Bulkhead("bulkhead", 10)


def timeout() -> Timeout:
    """Return a limit for one attempt."""
    return Timeout(5)


def answering_breaker() -> CircuitBreaker:
    """Return a breaker that has a fallback of its own."""
    return CircuitBreaker("answering", fallback="answer")


# Outer, inner, and what the message must say beside the names of both.
MISTAKES = [
    (cache, fallback, "the fallback's value would be stored and served as a good one"),
    (cache, answering_breaker, "the fallback's value would be stored and served as a good one"),
    (retry, fallback, "nothing would ever be retried"),
    (retry, answering_breaker, "nothing would ever be retried"),
    (breaker, fallback, "would count as a success of the dependency"),
    (breaker, answering_breaker, "would count as a success of the dependency"),
    (breaker, cache, "cached answers would count as successes"),
    (breaker, retry, "one result for several attempts"),
    (limiter, retry, "one permit would cover several attempts"),
    (bulkhead, retry, "the slot would be held through the waits"),
    (timeout, breaker, "never see that the dependency is slow"),
]
Maker = Callable[[], Policy]


@pytest.mark.parametrize(("outer", "inner", "reason"), MISTAKES)
def test_known_mistakes_are_refused_with_the_reason(outer: Maker, inner: Maker, reason: str):
    """An order that is known to go wrong is refused: why, and what to move."""
    wrong = (outer(), inner())
    with pytest.raises(PipelineOrderError) as caught:
        Pipeline(*wrong, name="rates")
    assert reason in str(caught.value)
    assert "on pipeline 'rates'" in str(caught.value)


@pytest.mark.parametrize(("outer", "inner", "reason"), MISTAKES)
def test_message_says_what_to_move(outer: Maker, inner: Maker, reason: str):
    """The message names both policies, the cure, the order that works and the way out."""
    one, other = outer(), inner()
    culprit = next(layer for layer in other.layers if layer.kind in {"Fallback", other.kind})
    with pytest.raises(PipelineOrderError) as caught:
        Pipeline(one, other)
    text = str(caught.value)
    assert f"{one.kind} {one.name!r} must not be outside {culprit.kind} {culprit.name!r}" in text
    assert f"put {culprit.kind} outside {one.kind}" in text
    assert (
        "outermost first: Fallback > Cache > deadline > Retry > CircuitBreaker > AdaptiveThrottle > "
        "RateLimiter > Bulkhead > Timeout" in text
    )
    assert "Pipeline(..., order='as-given')" in text


@pytest.mark.parametrize(("outer", "inner", "reason"), MISTAKES)
def test_mistakes_are_refused_whatever_stands_between(outer: Maker, inner: Maker, reason: str):
    """A mistake is one in nested pipelines, and with other policies in between, too."""
    with pytest.raises(PipelineOrderError, match="must not be outside"):
        Pipeline(Pipeline(outer(), deadline(9)), Pipeline(deadline(8), Pipeline(inner())))


@pytest.mark.parametrize(("outer", "inner", "reason"), MISTAKES)
@pytest.mark.parametrize("kind", ["function", "coroutine", "classmethod", "staticmethod"])
def test_mistakes_are_refused_when_stacked_by_hand(outer: Maker, inner: Maker, reason: str, kind: str):
    """Decorators that are stacked by hand are checked in the same way, under `classmethod` too."""

    def fetch(*_: Any) -> None: ...

    async def afetch(*_: Any) -> None: ...

    target: Any = {
        "function": fetch,
        "coroutine": afetch,
        "classmethod": classmethod(fetch),
        "staticmethod": staticmethod(fetch),
    }[kind]
    guarded = inner()(target)
    with pytest.raises(PipelineOrderError) as caught:
        outer()(guarded)
    assert reason in str(caught.value)
    assert "fetch" in str(caught.value)
    with pytest.raises(PipelineOrderError):
        Pipeline(outer())(guarded)


@pytest.mark.parametrize(("outer", "inner", "reason"), MISTAKES)
def test_the_other_way_round_is_fine(outer: Maker, inner: Maker, reason: str):
    """What the message asks for is accepted; of a breaker that answers, the fallback has to move."""
    if inner is answering_breaker:
        Pipeline(fallback(), outer(), *([] if outer is breaker else [breaker()]))
    else:
        Pipeline(inner(), outer())


@pytest.mark.parametrize(("outer", "inner", "reason"), MISTAKES)
def test_as_given_takes_any_order(outer: Maker, inner: Maker, reason: str):
    """With `order="as-given"` the order is the user's, in the pipeline and when decorating."""
    guarded = Pipeline(outer(), inner(), order="as-given")(lambda: "rates")
    assert guarded() == "rates"


def test_timeout_outside_a_breaker_is_excused_by_one_inside():
    """A breaker with a timeout of its own inside sees slowness all the same."""
    Pipeline(Timeout(30), breaker(), Timeout(5))
    Timeout(30)(breaker()(Timeout(5)(_fail)))


def test_deadline_may_be_outside_a_breaker():
    """A deadline belongs to the caller; it is no limit for an attempt."""
    Pipeline(deadline(30), retry(), breaker(), timeout())


def test_policy_applied_twice_is_refused():
    """The same object twice would count every call twice; another one of its kind is fine."""
    one = Timeout(5, name="rates")
    stacks: list[Callable[[], object]] = [
        lambda: Pipeline(one, one),
        lambda: Pipeline(one, Pipeline(deadline(9), one)),
        lambda: one(one(_fail)),
        lambda: one(retry()(one(_fail))),
        lambda: Pipeline(one)(one(_fail)),
    ]
    for stack in stacks:
        with pytest.raises(
            PipelineOrderError, match=r"Timeout 'rates' is on .* already: a policy applied twice"
        ):
            stack()
    Timeout(9)(one(_fail))
    assert Pipeline(one, one, order="as-given").call(int) == 0


def test_policy_under_a_partial_is_seen():
    """A `partial` of a guarded function is under the same policies."""
    one = retry()
    partly = functools.partial(functools.partial(one(_fail)))
    assert policies_of(partly) == (one,)
    with pytest.raises(PipelineOrderError, match="already: a policy applied twice"):
        one(partly)
    with pytest.raises(PipelineOrderError, match="one result for several attempts"):
        breaker()(partly)


@pytest.mark.parametrize(("outer", "inner", "reason"), MISTAKES)
def test_as_given_holds_inside_other_policies(outer: Maker, inner: Maker, reason: str):
    """What was meant is accepted in a checked pipeline and under another decorator, too."""

    def meant() -> Pipeline:
        return Pipeline(outer(), inner(), order="as-given")

    assert Pipeline(deadline(9), Pipeline(meant()))(len)("CHF") == 3
    assert deadline(9)(meant()(len))("CHF") == 3


def test_as_given_excuses_nothing_outside_itself():
    """Between the pipeline and what is around it, the known mistakes are refused."""
    meant = Pipeline(cache(), fallback(), order="as-given")
    with pytest.raises(PipelineOrderError, match="nothing would ever be retried"):
        Pipeline(retry(), meant)
    with pytest.raises(PipelineOrderError, match="nothing would ever be retried"):
        retry()(meant(_fail))
    with pytest.raises(PipelineOrderError, match="one result for several attempts"):
        Pipeline(Pipeline(fallback(), breaker(), order="as-given"), retry())


def test_applied_twice_is_the_first_reason():
    """Of several reasons, the one that is no matter of order is told: moving would not help."""
    one, both = breaker(), retry()
    twice = Pipeline(one, Pipeline(both, order="as-given"), order="as-given")
    with pytest.raises(PipelineOrderError, match=r"CircuitBreaker 'breaker' is on .* already"):
        Pipeline(one, twice)
    with pytest.raises(PipelineOrderError, match=r"CircuitBreaker 'breaker' is on .* already"):
        Pipeline(Pipeline(cache(), one), Pipeline(fallback(), one))


# Composition


def test_outermost_comes_first(clock):
    """`Pipeline(retry, breaker)` is `retry(breaker(fn))`: a refusal of the breaker is seen by the retry."""
    inner = CircuitBreaker("rates", fail_max=2, clock=clock)
    outer = Retry(on=ConnectionError, attempts=2, wait=0, clock=clock, sleep=clock.sleep)
    calls: list[int] = []

    @Pipeline(Fallback("old rates"), outer, inner)
    def fetch() -> None:
        calls.append(1)
        raise ConnectionError

    assert [fetch(), fetch()] == ["old rates", "old rates"]
    assert len(calls) == 2
    assert inner.stats().rejected == 1


def test_pipelines_nest():
    """A pipeline is a policy, and may stand in another one; its policies are opened."""
    policies = [fallback(), retry(), breaker(), timeout()]
    whole = Pipeline(policies[0], Pipeline(policies[1], Pipeline(*policies[2:])))
    assert whole.layers == tuple(policies)
    guarded = whole(lambda: "rates")
    assert guarded() == "rates"
    assert policies_of(guarded) == tuple(policies)


async def test_every_shape_goes_through_all_policies():
    """Functions, coroutine functions and generators of both colours; name and signature stay."""
    pipeline = Pipeline(fallback(), retry(), breaker(), timeout())

    @pipeline
    def one(code: str) -> str:
        return code

    @pipeline
    async def two(code: str) -> str:
        return code

    @pipeline
    def three(code: str) -> Iterator[str]:
        yield code

    @pipeline
    async def four(code: str) -> AsyncIterator[str]:
        yield code

    assert (one("CHF"), await two("CHF"), list(three("CHF"))) == ("CHF", "CHF", ["CHF"])
    assert [item async for item in four("CHF")] == ["CHF"]
    assert inspect.iscoroutinefunction(two)
    for function in (one, two, three, four):
        assert list(inspect.signature(function).parameters) == ["code"]
    assert [stats.calls for kind, _, stats in pipeline.stats().policies if kind == "Retry"] == [4]


async def test_call_and_acall(clock):
    """A pipeline calls directly, too."""
    pipeline = Pipeline(fallback(), retry(), breaker(), timeout())

    async def fetch(code: str) -> str:
        return code

    assert pipeline.call(str.lower, "CHF") == "chf"
    assert await pipeline.acall(fetch, "CHF") == "CHF"
    with pytest.raises(TypeError, match=r"use `await Pipeline\.acall"):
        pipeline.call(fetch, "CHF")
    with pytest.raises(TypeError, match="use call"):
        await pipeline.acall(str.lower, "CHF")  # type: ignore[arg-type]


# What it shows


def test_stats_and_repr_show_every_policy():
    """The statistics of each policy, and the live state of each, outermost first."""
    pipeline = Pipeline(retry(), breaker(), name="rates")
    pipeline.call(int)
    kinds = [(kind, name) for kind, name, _ in pipeline.stats().policies]
    assert kinds == [("Retry", "retry"), ("CircuitBreaker", "breaker")]
    assert [stats.calls for _, _, stats in pipeline.stats().policies] == [1, 1]
    assert repr(pipeline).startswith(
        "<Pipeline 'rates': <Retry 'retry' 1 calls, 0 retries, 0 exhausted> > <Circuit"
    )
    assert pipeline.name == "rates"


def test_describe_lists_the_layers_of_a_guarded_function():
    """Layers and their settings can be asserted in a user's tests."""
    pipeline = Pipeline(retry(), timeout())
    assert [layer["kind"] for layer in describe(pipeline)] == ["Retry", "Timeout"]
    assert describe(pipeline(int.bit_length)) == describe(pipeline)


def test_listeners_hear_every_policy(clock):
    """A listener of the pipeline hears of each of its policies, until it is removed."""
    heard: list[str] = []

    def listen(event: Any) -> None:
        heard.append(event.policy)

    pipeline = Pipeline(
        Fallback("answer", name="answer"),
        Retry(on=OSError, attempts=2, wait=0, name="again"),
    )
    pipeline.add_listener(listen)
    assert pipeline.call(_fail) == "answer"
    assert heard == ["again", "again", "answer"]
    pipeline.remove_listener(listen)
    pipeline.call(_fail)
    assert len(heard) == 3
    with pytest.raises(ValueError, match="is not a listener here"):
        pipeline.remove_listener(listen)
    with pytest.raises(TypeError, match="listener must be callable, got 5"):
        pipeline.add_listener(5)  # type: ignore[arg-type]


def _fail() -> None:
    raise OSError("down")


@pytest.mark.parametrize(
    ("policies", "options", "kind", "message"),
    [
        ((), {}, ValueError, "policies must hold at least one policy, got none"),
        ((5,), {}, TypeError, "policies must be policies, got 5"),
        ((Retry,), {}, TypeError, "policies must be policies, got <class"),
        (
            (Timeout(5),),
            {"order": "sorted"},
            ValueError,
            "order must be 'checked' or 'as-given', got 'sorted'",
        ),
        ((Timeout(5),), {"order": None}, ValueError, "order must be 'checked' or 'as-given', got None"),
        ((Timeout(5),), {"name": ""}, ValueError, "name must not be empty, got ''"),
        ((Timeout(5),), {"name": 5}, TypeError, "name must be text, got 5"),
    ],
)
def test_bad_arguments_are_refused(policies, options, kind, message):
    """Each message names the parameter, the rule and the value."""
    with pytest.raises(kind) as caught:
        Pipeline(*policies, **options)
    assert message in str(caught.value)


def test_chain_of_sources_may_be_cached_and_retried_but_not_judged_as_one():
    """Another source's answer is a good one; only a breaker must not take it for the first one's."""

    def down() -> str:
        raise ConnectionError

    chained = Fallback.chain(down, lambda: "second source")
    assert Cache("rates", ttl=60.0)(chained)() == "second source"
    assert Retry(on=ConnectionError)(chained)() == "second source"
    with pytest.raises(PipelineOrderError, match="another source"):
        CircuitBreaker("rates-api")(chained)
