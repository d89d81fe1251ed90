"""Calls under a rate limiter: their forms, their keys, policies around them, and what it shows of them."""

from __future__ import annotations

import asyncio
import copy
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.policies.rate_limiter_support import each_strategy, limiter_of

from resilient import CircuitBreaker, Decision, Pipeline, Quota, RateLimitedError, RateLimiter, Retry
from resilient.testing import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    """A clock that stands still until told."""
    return FakeClock(1_000.0)


# Forms


def test_decorated_call_raises_when_the_limit_is_used_up(clock: FakeClock):
    """And is not made; the error tells all that is known."""
    limiter = limiter_of("1/minute", clock, name="door")
    calls: list[int] = []
    guarded = limiter(calls.append)
    guarded(1)
    clock.advance(15.0)

    with pytest.raises(
        RateLimitedError, match=r"^rate limit 'door' is used up: next try in 45 s$"
    ) as refused:
        guarded(2)

    assert calls == [1]
    assert refused.value.policy == "door"
    assert refused.value.retry_after == pytest.approx(45.0)
    assert refused.value.decision is not None
    assert not refused.value.decision
    assert refused.value.decision.retry_after == refused.value.retry_after


def test_call_that_could_never_come_in_tells_no_time(clock: FakeClock):
    """`retry_after` is None: there is nothing to wait for."""
    limiter = limiter_of("5/minute", clock, name="door")
    with pytest.raises(
        RateLimitedError, match="rate limit 'door' is used up: it never has more than 5"
    ) as refused:
        limiter.acquire(cost=6)

    assert refused.value.retry_after is None


@each_strategy
def test_every_form_of_a_call_takes_one_permit(clock: FakeClock, strategy: str):
    """Decorated, called directly, as a block."""
    limiter = limiter_of("4/minute", clock, strategy=strategy)

    assert limiter(lambda: 1)() == 1
    assert limiter.call(int, "2") == 2
    with limiter.calling() as decision:
        assert decision.remaining == 1
    with limiter.calling(cost=1):
        pass
    with pytest.raises(RateLimitedError), limiter.calling():
        raise AssertionError


async def test_every_form_of_an_asynchronous_call_takes_one_permit(clock: FakeClock):
    """Decorated, called directly, as a block, and as a stream at its first step."""
    limiter = limiter_of("4/minute", clock)

    async def answer() -> int:
        return 1

    @limiter
    async def stream() -> Any:
        yield 1

    assert await limiter(answer)() == 1
    assert await limiter.acall(answer) == 1
    async with limiter.calling() as decision:
        assert decision.remaining == 1
    opened = stream()
    assert limiter.peek().remaining == 1
    assert [item async for item in opened] == [1]
    with pytest.raises(RateLimitedError):
        async with limiter.calling():
            raise AssertionError


def test_block_can_be_used_again_and_keeps_what_it_used(clock: FakeClock):
    """Each entry is a call of its own; an exception inside gives nothing back."""
    limiter = limiter_of("3/minute", clock)
    block = limiter.calling("ann", cost=1)
    with block, block:
        pass
    with pytest.raises(KeyError), block:
        raise KeyError
    with pytest.raises(RateLimitedError), block:
        pass


def test_failed_call_uses_its_permit(clock: FakeClock):
    """It reached the dependency."""
    limiter = limiter_of("2/minute", clock)

    @limiter
    def fail() -> None:
        raise ConnectionError

    for error in (ConnectionError, ConnectionError, RateLimitedError):
        with pytest.raises(error):
            fail()


# Keys of calls


def test_key_is_made_of_the_call(clock: FakeClock):
    """Of its arguments, as the function gets them."""
    limiter = limiter_of("1/minute", clock, key=lambda user, *, shop="zurich": f"{shop}:{user}")
    guarded = limiter(lambda user, *, shop="zurich": user)

    assert guarded("ann") == "ann"
    assert guarded("bob") == "bob"
    assert guarded("ann", shop="bern") == "ann"
    with pytest.raises(RateLimitedError):
        guarded("ann", shop="zurich")


def test_key_of_a_method_gets_the_instance_too(clock: FakeClock):
    """And of a class method the class: the arguments are those of the function."""
    limiter = limiter_of("1/minute", clock, key=lambda owner, user: f"{owner.name}:{user}")

    class Shop:
        name = "shop"

        def __init__(self, name: str) -> None:
            self.name = name

        @limiter
        def sell(self, user: str) -> str:
            return user

        @classmethod
        @limiter
        def open(cls, user: str) -> str:
            return user

    zurich, bern = Shop("zurich"), Shop("bern")
    assert [zurich.sell("ann"), bern.sell("ann"), Shop.open("ann")] == ["ann"] * 3
    for again in (zurich.sell, bern.sell, Shop.open):
        with pytest.raises(RateLimitedError):
            again("ann")


def test_key_of_a_direct_call_gets_its_arguments(clock: FakeClock):
    """`call` and `acall` hand on what the function gets, not the function."""
    limiter = limiter_of("1/minute", clock, key=lambda user: user)

    async def work(user: str) -> str:
        return user

    assert limiter.call(str, "ann") == "ann"
    assert asyncio.run(limiter.acall(work, "bob")) == "bob"
    with pytest.raises(RateLimitedError):
        limiter.call(str, "bob")


def test_key_of_none_lets_the_call_in_uncounted(clock: FakeClock):
    """Health checks, the owner's own tools."""
    limiter = limiter_of("1/minute", clock, key=lambda user: None if user == "probe" else user)
    guarded = limiter(lambda user: user)

    assert [guarded("probe") for _ in range(5)] == ["probe"] * 5
    assert limiter.stats().allowed == 0
    guarded("ann")
    with pytest.raises(RateLimitedError):
        guarded("ann")


async def test_key_is_made_for_every_shape_of_call(clock: FakeClock):
    """Generators and coroutines, too."""
    limiter = limiter_of("1/minute", clock, key=lambda user: user)

    @limiter
    def stream(user: str) -> Any:
        yield user

    @limiter
    async def astream(user: str) -> Any:
        yield user

    @limiter
    async def work(user: str) -> str:
        return user

    assert list(stream("a")) == ["a"]
    assert [item async for item in astream("b")] == ["b"]
    assert await work("c") == "c"
    assert limiter.stats().keys == 3
    for again in (stream("c"), stream("b")):
        with pytest.raises(RateLimitedError):
            next(again)


def test_error_of_the_key_function_is_the_callers(clock: FakeClock):
    """A call without a key is not made, nor counted."""
    limiter = limiter_of("1/minute", clock, key=lambda user: user["name"])
    guarded = limiter(lambda user: user)

    with pytest.raises(KeyError):
        guarded({})
    with pytest.raises(TypeError, match="key must be text, got 5"):
        guarded({"name": 5})
    assert limiter.stats().allowed == limiter.stats().denied == 0


# What it shows


def test_stats_and_repr_tell_what_was_counted(clock: FakeClock):
    """Decisions, not peeks; the keys that are kept."""
    limiter = limiter_of("2/minute", clock, name="door")
    for key in ("ann", "bob"):
        for _ in range(3):
            limiter.hit(key)
        limiter.peek(key)
    stats = limiter.stats()

    assert (stats.allowed, stats.denied, stats.keys, stats.evicted) == (4, 2, 2, 0)
    assert (stats.rung, stats.fallbacks, stats.errors) == ("local", 0, 0)
    assert repr(limiter) == "<RateLimiter 'door' local, 4 allowed, 2 denied>"


@given(
    amount=st.integers(1, 10**6),
    burst=st.integers(1, 10**6),
    parts=st.integers(1, 100),
    window=st.sampled_from([1.0, 60.0, 86_400.0]),
)
def test_shares_of_a_quota_add_up_to_it(amount: int, burst: int, parts: int, window: float):
    """The rate exactly; the burst rounded down, but to one permit at least."""
    share = Quota("door", amount, window, burst).share(parts)

    assert parts * share.amount / share.window == pytest.approx(amount / window)
    assert parts * share.burst <= max(burst, parts)
    assert share.amount >= 1
    assert share.name == "door"


def test_limiter_without_a_name_is_named_after_its_rates(clock: FakeClock):
    """In errors, and of each quota."""
    assert limiter_of("2/minute", clock).name == "2/minute"
    assert limiter_of(["2/second", "5 per 10 minutes"], clock).name == "2/second, 5/10 minute"


def test_retry_waits_as_long_as_the_limiter_says(clock: FakeClock):
    """A refusal is retried where its class is named, after the time it tells."""
    limiter = limiter_of("1/minute", clock)
    retry = Retry(on=RateLimitedError, attempts=2, wait=0.0, timeout=600.0, sleep=clock.sleep, clock=clock)
    guarded = Pipeline(retry, limiter)(lambda: "answer")

    assert [guarded(), guarded()] == ["answer"] * 2
    assert sum(clock.sleeps) == pytest.approx(60.0)


def test_breaker_outside_does_not_count_refusals(clock: FakeClock):
    """A refusal is our own, and no evidence against the dependency."""
    breaker = CircuitBreaker("b", fail_max=1, clock=clock)
    guarded = Pipeline(breaker, limiter_of("1/minute", clock))(lambda: "answer")
    guarded()
    for _ in range(5):
        with pytest.raises(RateLimitedError):
            guarded()

    assert breaker.current_state == "closed"


def test_limiter_is_its_own_copy(clock: FakeClock):
    """Settings that hold one can be copied; its counts are not forked."""
    limiter = limiter_of("1/minute", clock)

    assert copy.copy(limiter) is limiter
    assert copy.deepcopy([limiter])[0] is limiter
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(limiter)


def test_subclass_may_decide_otherwise(clock: FakeClock):
    """What a subclass makes of `hit` holds."""

    class Generous(RateLimiter):
        def hit(self, key: str = "", cost: int = 1) -> Decision:
            return super().hit("everybody", cost)

    limiter = Generous("1/minute", clock=clock)
    assert limiter.hit("ann")
    assert not limiter.hit("bob")
