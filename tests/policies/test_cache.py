"""The cache, sentence by sentence: what it keeps, for how long, and what it answers when a load fails."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Self

import cachetools
import pytest

from resilient import Cache, CircuitBreaker, CircuitOpenError, RejectedError, Retry, events, freshness
from resilient.testing import FakeClock, capture_events


class UpstreamError(Exception):
    """What the source fails with."""


class Source:
    """Something slow and unreliable: counts its calls, answers with their number, fails when told."""

    def __init__(self) -> None:
        self.calls = 0
        self.failure: Exception | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.failure is not None:
            raise self.failure
        return self.calls


@pytest.fixture
def clock() -> FakeClock:
    """A clock that stands still until told."""
    return FakeClock()


@pytest.fixture
def source() -> Source:
    """A source of its own."""
    return Source()


@pytest.fixture
def make(clock: FakeClock) -> Callable[..., Cache]:
    """Make caches on *clock*, without jitter unless asked for."""
    return functools.partial(Cache, "rates", ttl=10.0, jitter=0.0, clock=clock)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run refreshes at once, in the thread that asks: what they decide does not depend on threads."""
    monkeypatch.setattr("resilient.engine.workers.Workers.submit", lambda _, job: job.run())


class TestTtl:
    def test_serves_the_answer_until_the_end_of_its_ttl(self, make, clock, source):
        """One load is enough for all calls within `ttl`, and the first one after it loads again."""
        rate = make()(source)
        assert [rate("USD"), rate("USD")] == [1, 1]
        clock.advance(9.999)
        assert rate("USD") == 1
        clock.advance(0.001)
        assert rate("USD") == 2

    def test_counts_from_the_end_of_the_load(self, clock, make):
        """A value is as old as its load is over, however long that took."""

        @make()
        def slow() -> float:
            clock.advance(60.0)
            return clock()

        assert slow() == 60.0
        clock.advance(9.0)
        assert slow() == 60.0

    def test_takes_a_timedelta(self, make, clock, source):
        """Durations may be `timedelta`s."""
        rate = make(ttl=timedelta(minutes=1))(source)
        rate()
        clock.advance(59.0)
        assert rate() == 1

    def test_none_is_an_answer(self, make):
        """None is kept like any other value."""
        calls: list[int] = []
        cache = make()
        for _ in range(3):
            assert cache.get("k", lambda: calls.append(1)) is None
        assert len(calls) == 1
        assert cache.peek("k", default="nothing") is None

    async def test_none_is_an_answer_for_coroutines(self, make):
        """None is kept like any other value, in the other colour too."""
        calls: list[int] = []

        @make()
        async def nothing() -> None:
            calls.append(1)

        assert [await nothing(), await nothing()] == [None, None]
        assert len(calls) == 1

    def test_keys_are_the_arguments(self, make, source):
        """Different arguments have different answers; keywords in any order are the same call."""
        rate = make()(source)
        assert rate("USD") == 1
        assert rate("EUR") == 2
        assert rate("USD", on="monday", at=9) == 3
        assert rate("USD", at=9, on="monday") == 3
        assert rate("USD", ("at", 9)) == 4, "a tuple that looks like a keyword is none"

    def test_jitter_shortens_and_never_lengthens(self, make, clock):
        """With `jitter=0.5` answers last between half their `ttl` and all of it, and not all the same."""
        cache = make(jitter=0.5, max_size=1000)
        for key in range(1000):
            cache.put(key, key)
        ends = [cache._core.store.find((key,)).fresh_until for key in range(1000)]
        assert 5.0 <= min(ends) < 5.2
        assert 9.8 < max(ends) <= 10.0
        assert 7.3 < sum(ends) / len(ends) < 7.7, "evenly spread"

    def test_no_jitter_no_spread(self, make):
        """With `jitter=0` every answer lasts exactly its `ttl`."""
        cache = make()
        cache.put("k", 1)
        assert cache._core.store.find(("k",)).fresh_until == 10.0

    def test_is_bounded(self, make, source):
        """Never more than `max_size` entries; what had to make room is counted."""
        cache = make(max_size=3)
        rate = cache(source)
        for key in range(10):
            rate(key)
        assert len(cache) == 3
        assert cache.stats().evictions == 7


class TestStaleWhileRevalidate:
    def test_serves_stale_while_one_refresh_runs(self, make, clock, source, at_once):
        """After `ttl` the old answer serves at once; the new one serves the next call."""
        rate = make(stale_while_revalidate=5.0)(source)
        rate()
        clock.advance(12.0)
        assert rate() == 1
        assert freshness().state == "stale"
        assert source.calls == 2
        assert rate() == 2
        assert freshness().state == "fresh"

    def test_ends_where_it_says(self, make, clock, source, at_once):
        """`stale_while_revalidate` is counted from the end of `ttl`; after it a call waits for the load."""
        rate = make(stale_while_revalidate=5.0)(source)
        rate()
        clock.advance(14.999)
        assert rate() == 1
        clock.advance(15.0)
        assert rate() == 3

    def test_failed_refresh_leaves_the_old_answer(self, make, clock, source, at_once):
        """A refresh that fails hurts nobody within the time: not even where failures are remembered."""
        rate = make(stale_while_revalidate=50.0, negative_ttl=5.0)(source)
        rate()
        source.failure = UpstreamError("away")
        clock.advance(12.0)
        assert [rate() for _ in range(4)] == [1, 1, 1, 1]
        assert source.calls == 2, "for `negative_ttl` after a failure it is not tried again"
        clock.advance(5.0)
        assert rate() == 1
        assert source.calls == 3

    def test_remembered_failure_does_not_prolong_it(self, make, clock, source, at_once):
        """A failed refresh must not make the old answer serve beyond its time."""
        rate = make(stale_while_revalidate=5.0, negative_ttl=60.0)(source)
        rate()
        source.failure = UpstreamError("away")
        clock.advance(14.0)
        assert rate() == 1
        clock.advance(1.0)
        with pytest.raises(UpstreamError):
            rate()

    def test_tells_of_a_failed_refresh(self, make, clock, source, at_once):
        """A refresh that fails is an event; there is no caller to see it."""
        cache = make(stale_while_revalidate=5.0)
        rate = cache(source)
        rate()
        source.failure = UpstreamError("away")
        clock.advance(12.0)
        with capture_events() as told:
            rate()
        assert told == [events.RefreshFailed("rates", error="UpstreamError: away")]
        assert cache.stats().load_failures == 1


class TestStaleIfError:
    def test_last_known_good_answers_for_a_failed_load(self, make, clock, source):
        """A load that fails is answered for until `stale_if_error` after `ttl`, and marked."""
        rate = make(stale_if_error=60.0)(source)
        rate()
        source.failure = UpstreamError("away")
        clock.advance(69.0)
        with capture_events() as told:
            assert rate() == 1
        assert freshness() == dataclasses.replace(freshness(), cache="rates", state="stale", age=69.0)
        assert told == [events.StaleServed("rates", age=69.0, error="UpstreamError: away")]
        clock.advance(1.0)
        with pytest.raises(UpstreamError, match="away"):
            rate()

    @pytest.mark.parametrize("off", [None, 0, 0.0])
    def test_is_off_unless_asked_for(self, make, clock, source, off):
        """None and 0 mean never."""
        rate = make(stale_if_error=off)(source)
        rate()
        source.failure = UpstreamError("away")
        clock.advance(10.0)
        with pytest.raises(UpstreamError):
            rate()

    def test_infinite_is_as_long_as_it_is_kept(self, make, clock, source):
        """`math.inf` has no end."""
        rate = make(stale_if_error=math.inf)(source)
        rate()
        source.failure = UpstreamError("away")
        clock.advance(1e9)
        assert rate() == 1

    def test_on_limits_what_it_answers_for(self, make, clock, source):
        """A failure that `on` does not name is raised: "not allowed" must not be answered with old data."""
        rate = make(stale_if_error=60.0, on=ConnectionError)(source)
        rate()
        clock.advance(12.0)
        source.failure = ConnectionError()
        assert rate() == 1
        source.failure = PermissionError("revoked")
        with pytest.raises(PermissionError, match="revoked"):
            rate()

    def test_refusals_are_always_answered_for(self, make, clock, source):
        """An open circuit inside means that the value cannot be had, whatever `on` says."""
        breaker = CircuitBreaker("api", clock=clock)
        rate = make(stale_if_error=60.0, on=ConnectionError)(breaker(source))
        rate()
        breaker.force_open()
        clock.advance(12.0)
        assert rate() == 1

    def test_does_not_ask_again_before_a_refusal_says(self, make, clock, source):
        """After a refusal with `retry_after`, the last known good answers without another try until then."""
        rate = make(stale_if_error=60.0)(source)
        rate()
        clock.advance(12.0)
        source.failure = RejectedError("not now", retry_after=20.0)
        assert [rate() for _ in range(5)] == [1] * 5
        assert source.calls == 2
        clock.advance(20.0)
        source.failure = None
        assert rate() == 3

    def test_a_long_refusal_does_not_prolong_it(self, make, clock, source):
        """`retry_after` beyond the end of `stale_if_error` keeps nothing alive."""
        rate = make(stale_if_error=5.0)(source)
        rate()
        clock.advance(12.0)
        source.failure = RejectedError("not now", retry_after=3600.0)
        assert rate() == 1
        clock.advance(3.0)
        with pytest.raises(RejectedError):
            rate()

    def test_predicate_runs_outside_the_lock(self, make, clock, source):
        """An `on` of the user's may itself use the cache, from any thread."""
        from concurrent.futures import ThreadPoolExecutor

        seen: list[Any] = []

        def on(_: Exception) -> bool:
            seen.append(pool.submit(cache.put, "other", 1).result(timeout=5.0))
            return True

        with ThreadPoolExecutor(1) as pool:
            cache = make(stale_if_error=60.0, on=on)
            rate = cache(source)
            rate()
            clock.advance(12.0)
            source.failure = UpstreamError()
            assert rate() == 1
        assert seen == [None]

    def test_serves_what_was_put_during_a_failing_load(self, make, clock):
        """A value that arrived by `put` while the load failed is the answer, and a fresh one."""
        cache = make()

        def load() -> Any:
            cache.put("k", "by hand")
            raise UpstreamError

        assert cache.get("k", load) == "by hand"
        assert freshness().state == "fresh"


class TestNegativeTtl:
    def test_remembers_a_failure(self, make, clock, source):
        """For `negative_ttl` the source is not asked again, and each caller has a failure of its own."""
        cache = make(negative_ttl=3.0)
        rate = cache(source)
        source.failure = UpstreamError("away", 42)
        failures = []
        for _ in range(3):
            with pytest.raises(UpstreamError) as caught:
                rate()
            failures.append(caught.value)
        assert source.calls == 1
        assert [failure.args for failure in failures] == [("away", 42)] * 3
        assert len({id(failure) for failure in failures}) == 3
        assert cache.stats().negative == 2
        clock.advance(3.0)
        source.failure = None
        assert rate() == 2

    def test_off_unless_asked_for(self, make, source):
        """Without it, every call after a failure loads."""
        rate = make()(source)
        source.failure = UpstreamError()
        for _ in range(3):
            with pytest.raises(UpstreamError):
                rate()
        assert source.calls == 3

    def test_refusals_are_not_remembered(self, make, source):
        """A refusal is ours: it says nothing about the dependency."""
        rate = make(negative_ttl=3.0)(source)
        source.failure = CircuitOpenError("open", retry_after=9.0)
        for _ in range(3):
            with pytest.raises(CircuitOpenError):
                rate()
        assert source.calls == 3

    def test_is_no_value(self, make, source):
        """A remembered failure is nothing to peek at."""
        cache = make(negative_ttl=3.0)
        source.failure = UpstreamError()
        with pytest.raises(UpstreamError):
            cache.get("k", source)
        assert cache.peek("k", default="none") == "none"

    def test_keeps_no_traceback(self, make, source):
        """What is remembered holds no frame, and with it no local variable, alive."""
        cache = make(negative_ttl=3.0)
        source.failure = UpstreamError()
        with pytest.raises(UpstreamError):
            cache.get("k", source)
        assert cache._core.store.find(("k",)).error.__traceback__ is None


class TestFailuresAreCopied:
    def test_what_a_constructor_says_is_not_said_twice(self, make):
        """A message made from the constructor's arguments is copied as it is, with all attributes."""

        class StatusError(OSError):
            def __init__(self, status: int, *, path: str) -> None:
                super().__init__(f"status {status}")
                self.status = status
                self.path = path

        cache = make(negative_ttl=3.0)

        def load() -> Any:
            raise StatusError(503, path="/rates")

        for _ in range(3):
            with pytest.raises(StatusError, match=r"^status 503$") as caught:
                cache.get("k", load)
            assert (caught.value.status, caught.value.path) == (503, "/rates")

    def test_notes_are_each_ones_own(self, make):
        """A note added to one caller's failure does not show up in another's."""
        cache = make(negative_ttl=3.0)

        def load() -> Any:
            error = UpstreamError()
            error.add_note("from the source")
            raise error

        for _ in range(3):
            with pytest.raises(UpstreamError) as caught:
                cache.get("k", load)
            assert caught.value.__notes__ == ["from the source"]
            caught.value.add_note("mine")

    def test_what_cannot_be_copied_is_raised_as_it_is(self, make):
        """A class that resists copying costs nothing but the copy."""

        class AwkwardError(Exception):
            def __new__(cls, *, secret: str) -> Self:
                return super().__new__(cls)

            def __init__(self, *, secret: str) -> None:
                super().__init__()

        def load() -> Any:
            raise AwkwardError(secret="x")

        cache = make(negative_ttl=3.0)
        for _ in range(2):
            with pytest.raises(AwkwardError):
                cache.get("k", load)

    @pytest.mark.parametrize(
        "error",
        [
            OSError(2, "No such file", "rates.xml"),
            UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
            KeyError("USD"),
        ],
        ids=lambda error: type(error).__name__,
    )
    def test_builtin_exceptions_keep_what_they_say(self, make, error):
        """Exceptions that carry state outside `args` lose none of it."""
        cache = make(negative_ttl=3.0)

        def load() -> Any:
            raise error

        said = str(error)
        for _ in range(2):
            with pytest.raises(type(error)) as caught:
                cache.get("k", load)
            assert str(caught.value) == said


class TestByKey:
    def test_a_bare_key_is_short_for_a_tuple(self, make, source):
        """`k` and `(k,)` are one entry, that of the decorated call with one argument."""
        cache = make()
        rate = cache(source)
        rate("USD")
        assert cache.peek("USD") == cache.peek(("USD",)) == 1
        assert cache.get("USD", source) == 1
        cache.put(("USD",), 7)
        assert rate("USD") == 7
        cache.invalidate("USD")
        assert rate("USD") == 2

    async def test_aget_loads_with_a_coroutine_function(self, make, source):
        """`aget` awaits its loader, keeps the answer and shares it with `get`."""

        async def load() -> Any:
            return source()

        cache = make()
        assert await cache.aget("k", load) == 1
        assert await cache.aget("k", load) == 1
        assert cache.get("k", source) == 1

    def test_peek_takes_what_is_stale(self, make, clock):
        """`peek` answers fresh or not, loads nothing and counts nothing."""
        cache = make()
        cache.put("k", "v")
        clock.advance(1e6)
        assert cache.peek("k") == "v"
        assert cache.peek("other") is None
        assert cache.peek("other", "d") == "d"
        assert cache.stats().hits == cache.stats().misses == 0

    def test_clear_forgets_everything(self, make, source):
        """After `clear` everything is loaded anew; nothing counts as evicted."""
        cache = make()
        rate = cache(source)
        for key in range(5):
            rate(key)
        cache.clear()
        assert len(cache) == 0
        assert cache.stats().evictions == 0
        assert rate(0) == 6

    def test_an_empty_cache_is_true(self, make):
        """`if cache:` asks whether there is one, not whether it is empty."""
        assert make()

    @pytest.mark.parametrize("use", [lambda c, k: c.get(k, int), lambda c, k: c(lambda *a: 1)(k)])
    def test_unhashable_arguments_are_refused(self, make, use):
        """The error names the cache and says what to do."""
        with pytest.raises(TypeError, match=r"cache 'rates' cannot make a key .*unhashable.*give it key="):
            use(make(), ["a list"])

    async def test_unhashable_arguments_are_refused_in_coroutines(self, make):
        """The error is the same for coroutine functions."""
        cache = make()

        @cache
        async def rate(_: list[str]) -> int:
            return 1

        with pytest.raises(TypeError, match=r"give it key="):
            await rate([])
        with pytest.raises(TypeError, match=r"give it key="):
            await cache.aget([], lambda: rate([]))


class TestKey:
    def test_makes_the_key(self, make, source):
        """`key` is asked with the arguments of the call."""
        rate = make(key=lambda currencies, **_: frozenset(currencies))(source)
        assert rate(["USD", "EUR"]) == 1
        assert rate(["EUR", "USD"], trace="x") == 1
        assert rate(["EUR"]) == 2

    def test_serves_methods(self, make):
        """With `key=` a method's answers can be shared between instances."""
        cache = make(key=lambda shop, article: (shop.town, article))

        class Shop:
            def __init__(self, town: str) -> None:
                self.town = town

            @cache
            def price(self, article: str) -> tuple[int, str]:
                return id(self), article

        one, other, elsewhere = Shop("Bonn"), Shop("Bonn"), Shop("Ulm")
        assert one.price("tea") == other.price("tea")
        assert one.price("tea") != elsewhere.price("tea")
        assert one.price("tea") == (id(one), "tea")

    def test_without_it_each_instance_has_its_own(self, make):
        """Without `key=` the instance is part of the key."""
        cache = make()

        class Shop:
            @cache
            def price(self) -> int:
                return id(self)

        one, other = Shop(), Shop()
        assert (one.price(), other.price(), one.price()) == (id(one), id(other), id(one))

    def test_is_asked_about_the_callee_of_call(self, make, source):
        """`call` asks `key` with the callee's arguments, as a decorated call does."""
        cache = make(key=lambda currency: currency.upper())
        assert cache.call(source, "usd") == 1
        assert cache(source)("USD") == 1

    async def test_is_asked_about_the_callee_of_acall(self, make, source):
        """`acall` does so, too."""
        cache = make(key=lambda currency: currency.upper())

        async def load(_: str) -> Any:
            return source()

        assert await cache.acall(load, "usd") == 1
        assert await cache.acall(load, "USD") == 1

    def test_call_keeps_callees_apart(self, make):
        """Without `key=`, `call` may serve any number of functions."""
        cache = make()
        assert cache.call(min, 3, 4) == 3
        assert cache.call(max, 3, 4) == 4
        assert cache.stats().misses == 2


async def _coroutine() -> None: ...


class TestOneFunction:
    def test_a_second_function_is_refused(self, make):
        """Its arguments would meet the first one's answers."""
        cache = make()
        cache(lambda article: article)
        with pytest.raises(ValueError, match=r"cache 'rates' serves .*lambda.* already; .*lambda.* key="):
            cache(lambda article: -article)

    def test_closures_of_one_definition_are_two_functions(self, make):
        """What a factory makes twice has one name and different answers."""
        cache = make()

        def make_adder(summand: int) -> Callable[[int], int]:
            def add(number: int) -> int:
                return number + summand

            return add

        cache(make_adder(1))
        with pytest.raises(ValueError, match="key="):
            cache(make_adder(2))

    def test_methods_of_two_objects_are_two_functions(self, make):
        """A bound method has no instance among its arguments."""
        cache = make()
        cache("a".join)
        with pytest.raises(ValueError, match="key="):
            cache("b".join)

    def test_guarded_methods_of_two_objects_are_two_functions(self, make):
        """Nor has one under another policy."""
        cache, retry = make(), Retry(on=UpstreamError)
        sources = Source(), Source()
        cache(retry(sources[0].__call__))
        with pytest.raises(ValueError, match="key="):
            cache(retry(sources[1].__call__))

    def test_the_same_function_may_be_wrapped_again(self, make, source):
        """Twice the same function is one function; so is a definition that a reload executes again."""
        cache = make()
        assert cache(source)() == cache(source)() == 1

        module: dict[str, Any] = {"__name__": "shop", "cache": make()}
        for _ in range(2):
            exec("@cache\ndef rate(): return 1", module)
        assert module["rate"]() == 1

    def test_with_key_any_number_is_served(self, make):
        """`key=` tells them apart; that is its author's business."""
        cache = make(key=lambda *args: ("shop", *args))
        assert cache(lambda: 1)() == cache(lambda: 2)()

    def test_generator_functions_are_refused(self, make):
        """A stream can be used only once."""

        def stream():
            yield 1

        async def astream():
            yield 1

        for fn in (stream, astream):
            with pytest.raises(TypeError, match="finished list"):
                make()(fn)

    @pytest.mark.parametrize("load", [lambda: (n for n in ()), _coroutine], ids=["generator", "coroutine"])
    def test_what_can_be_used_only_once_is_refused(self, make, load):
        """A generator or coroutine object would be used up for the second caller."""
        cache = make()
        with pytest.raises(TypeError, match=r"cannot cache a (generator|coroutine): .*aget"):
            cache.get("k", load)
        assert cache.peek("k", "nothing") == "nothing"


class TestSwitch:
    def test_off_every_call_loads_for_itself(self, make, source):
        """What is kept stays kept, and nothing new is kept."""
        cache = make()
        rate = cache(source)
        rate()
        cache.enabled = False
        assert [rate(), rate()] == [2, 3]
        assert cache.get((), source) == 4
        cache.enabled = True
        assert rate() == 1

    def test_off_no_failure_is_answered_for(self, make, clock, source):
        """Switched off, the last known good answers nothing and no failure is remembered."""
        cache = make(stale_if_error=60.0, negative_ttl=5.0)
        rate = cache(source)
        rate()
        cache.enabled = False
        source.failure = UpstreamError()
        clock.advance(12.0)
        for _ in range(2):
            with pytest.raises(UpstreamError):
                rate()
        assert source.calls == 3

    def test_a_load_begun_while_off_is_not_kept(self, make):
        """Switching on in the middle of a load does not keep what was loaded beside the cache."""
        cache = make()
        cache.enabled = False

        def load() -> str:
            cache.enabled = True
            return "v"

        assert cache.get("k", load) == "v"
        assert cache.peek("k") is None

    @pytest.mark.parametrize("value", [1, None, "yes"])
    def test_takes_a_bool_only(self, make, value):
        """Nothing that is merely truthy will do."""
        with pytest.raises(TypeError, match="enabled must be True or False"):
            make().enabled = value


class TestFreshness:
    def test_tells_what_was_served_last(self, make, clock):
        """Name, state and age; None before any cache has served in this context."""
        import contextvars

        def inside() -> None:
            assert freshness() is None
            cache = make()
            cache.get("k", lambda: 1)
            clock.advance(4.0)
            cache.get("k", lambda: 1)
            assert freshness() is not None
            assert dataclasses.astuple(freshness()) == ("rates", "fresh", 4.0)

        contextvars.Context().run(inside)

    async def test_belongs_to_the_context(self, make, clock):
        """What one task was served, another one does not see."""
        import asyncio

        cache = make(stale_if_error=60.0)

        async def ask(fail: bool) -> str:
            async def load() -> int:
                if fail:
                    raise UpstreamError
                return 1

            await cache.aget(fail, load)
            await asyncio.sleep(0)
            return freshness().state

        cache.put(True, 1)
        clock.advance(12.0)
        assert await asyncio.gather(ask(True), ask(False)) == ["stale", "fresh"]


class TestStats:
    def test_every_call_is_counted_once(self, make, clock, source, at_once):
        """hits + stale + misses + negative = calls; the ratio counts who did not wait for a load."""
        cache = make(stale_while_revalidate=5.0, stale_if_error=60.0, negative_ttl=3.0)
        rate = cache(source)
        rate("a")  # a miss
        rate("a")  # a hit
        clock.advance(12.0)
        rate("a")  # stale, and a refresh
        clock.advance(60.0)
        source.failure = UpstreamError()
        rate("a")  # a miss that the last known good rescues
        for _ in range(2):  # a miss, a remembered failure
            with pytest.raises(UpstreamError):
                rate("b")
        stats = cache.stats()
        assert (stats.hits, stats.stale, stats.misses, stats.rescued, stats.negative) == (1, 1, 3, 1, 1)
        assert (stats.loads, stats.load_failures, stats.joined) == (4, 2, 0)
        assert stats.hit_ratio == pytest.approx(2 / 6)

    def test_nothing_asked_nothing_hit(self, make):
        """The ratio of no calls is 0."""
        assert make().stats().hit_ratio == 0.0

    def test_is_frozen(self, make):
        """Statistics are a snapshot."""
        with pytest.raises(dataclasses.FrozenInstanceError):
            make().stats().hits = 1

    def test_repr_shows_live_state(self, make, source):
        """What a debugger shows is the cache's state now."""
        cache = make()
        rate = cache(source)
        rate()
        rate()
        assert repr(cache) == "<Cache 'rates' 1 kept, 50% hits, 0 stale>"
        cache.enabled = False
        assert repr(cache) == "<Cache 'rates' off, 1 kept, 50% hits, 0 stale>"


class TestBadArguments:
    @pytest.mark.parametrize(
        ("argument", "value", "error"),
        [
            ("ttl", 0, ValueError),
            ("ttl", -1.0, ValueError),
            ("ttl", math.nan, ValueError),
            ("ttl", math.inf, ValueError),
            ("ttl", None, TypeError),
            ("ttl", "10", TypeError),
            ("ttl", True, TypeError),
            ("stale_while_revalidate", -1, ValueError),
            ("stale_while_revalidate", None, TypeError),
            ("stale_while_revalidate", math.inf, ValueError),
            ("stale_if_error", -1, ValueError),
            ("stale_if_error", math.nan, ValueError),
            ("stale_if_error", "", TypeError),
            ("stale_if_error", False, TypeError),
            ("negative_ttl", 0, ValueError),
            ("negative_ttl", math.inf, ValueError),
            ("max_size", 0, ValueError),
            ("max_size", 2.0, TypeError),
            ("max_size", True, TypeError),
            ("jitter", -0.1, ValueError),
            ("jitter", 1.1, ValueError),
            ("jitter", math.nan, ValueError),
            ("load_timeout", 0, ValueError),
            ("load_timeout", "1", TypeError),
            ("key", "k", TypeError),
            ("key", _coroutine, TypeError),
            ("on", KeyboardInterrupt, ValueError),
            ("on", "Exception", TypeError),
            ("storage", {}, TypeError),
            ("clock", 0.0, TypeError),
        ],
    )
    def test_are_refused_by_name(self, make, argument, value, error):
        """The message names the parameter and shows the value."""
        with pytest.raises(error, match=rf"^{argument} .*, got "):
            make(**{argument: value})

    @pytest.mark.parametrize(("name", "error"), [("", ValueError), (" ", ValueError), (None, TypeError)])
    def test_a_name_is_needed(self, name, error):
        """A cache without a name could not be told from another."""
        with pytest.raises(error, match="name must"):
            Cache(name, ttl=1.0)


async def test_both_colours_share_one_cache(make: Callable[..., Cache], source: Source) -> None:
    """A function and a coroutine function with one `key` answer for each other."""
    cache = make(key=lambda: "all")
    rate = cache(source)

    @cache
    async def arate() -> Any:
        return source()

    assert await arate() == rate() == await arate() == 1


def test_fallback_values_are_kept_out(make: Callable[..., Cache]) -> None:
    """A cache around a fallback is refused: the fallback's value would be served as a good one."""
    from resilient import Fallback, PipelineOrderError

    with pytest.raises(PipelineOrderError, match="stored"):
        make()(Fallback(0)(len))


def test_a_cachetools_cache_is_no_cache_of_ours() -> None:
    """The two may be told apart: ours is a policy."""
    assert not isinstance(Cache("c", ttl=1.0), cachetools.Cache)


class TestLastKnownGoodAndFailures:
    def test_failure_of_another_kind_does_not_cost_the_last_known_good(self, make, clock, source):
        """What may not be answered for is raised, and forgotten; the good answer is there for what may."""
        cache = make(stale_if_error=3600.0, negative_ttl=5.0, on=ConnectionError)
        rate = cache(source)
        good = rate()
        clock.advance(20.0)
        source.failure = ValueError("odd")
        with pytest.raises(ValueError, match="odd"):
            rate()
        source.failure = ConnectionError("away")

        assert rate() == good
