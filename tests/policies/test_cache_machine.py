"""The life of entries, step by step at random, against a model that is too simple to be wrong."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from resilient import Cache, RejectedError, freshness
from resilient.engine.workers import Workers
from resilient.testing import FakeClock

KEYS = st.sampled_from("abc")
SECONDS = st.sampled_from([0.0, 0.2, 1.0, 2.5, 5.0, 20.0, 100.0])


class UpstreamError(Exception):
    """A failure that the last known good may answer for."""


class BadRequestError(Exception):
    """A failure that it may not."""


FAILURES = st.sampled_from([UpstreamError, BadRequestError, RejectedError])


@dataclasses.dataclass
class Known:
    """What the model knows of one key: a value and its time, or a failure; and until when not to ask."""

    value: Any = None
    at: float = 0.0
    failure: type[Exception] | None = None
    hold_until: float = -math.inf


class Model:
    """What a cache has to answer, one `if` per sentence of its documentation."""

    def __init__(self, ttl: float, swr: float, sie: float, negative: float) -> None:
        self.ttl, self.swr, self.sie, self.negative = ttl, swr, sie, negative
        self.kept: dict[str, Known] = {}

    def ask(self, key: str, now: float, outcome: Any) -> tuple[Any, str]:  # noqa: PLR0911 - as many as cases
        """Return (answer, how) for a call at *now* whose load, if there is one, ends in *outcome*."""
        known = self.kept.get(key)
        if known is None:
            return self.load(key, now, outcome)
        if known.failure is not None:
            if now < known.hold_until:
                return known.failure, "remembered"
            return self.load(key, now, outcome)
        past = now - (known.at + self.ttl)
        if past < 0:
            return known.value, "fresh"
        if past < self.swr:
            if now >= known.hold_until:
                self.load(key, now, outcome, pause=min(1.0, self.ttl / 10))
            return known.value, "stale"
        if now < known.hold_until and past < self.sie:
            return known.value, "stale"
        return self.load(key, now, outcome)

    def load(self, key: str, now: float, outcome: Any, pause: float = 0.0) -> tuple[Any, str]:
        """Load, which ends in *outcome*: a value, or a class of exception; then pause at least *pause*."""
        known = self.kept.get(key)
        if not isinstance(outcome, type):
            self.kept[key] = Known(outcome, now)
            return outcome, "fresh"
        if known is not None and known.failure is None:
            past = now - (known.at + self.ttl)
            hold_until = now + max(self.negative, pause)
            if past < self.sie and outcome is not BadRequestError:
                known.hold_until = hold_until
                return known.value, "stale"
            if past < self.swr:
                known.hold_until = min(hold_until, known.at + self.ttl + self.swr)
            if past < max(self.swr, self.sie):
                return outcome, "failed"
        if self.negative and outcome is not RejectedError:
            self.kept[key] = Known(failure=outcome, hold_until=now + self.negative)
        return outcome, "failed"


class Life(RuleBasedStateMachine):
    """Ask, wait, put, forget; the refreshes run at once, so that every step has one outcome."""

    @initialize(
        ttl=st.sampled_from([2.0, 10.0]),
        swr=st.sampled_from([0.0, 5.0]),
        sie=st.sampled_from([0.0, 3.0, 30.0, math.inf]),
        negative=st.sampled_from([None, 1.0, 8.0]),
    )
    def begin(self, ttl: float, swr: float, sie: float, negative: float | None) -> None:
        self.clock = FakeClock()
        self.numbers = iter(range(1_000_000))
        self.model = Model(ttl, swr, sie, negative or 0.0)
        self.cache = Cache(
            "c",
            ttl=ttl,
            stale_while_revalidate=swr,
            stale_if_error=sie,
            negative_ttl=negative,
            jitter=0.0,
            on=UpstreamError,
            clock=self.clock,
        )
        self.cache._desk.refreshers = AtOnce(1, "at once")
        self.asked = 0

    @rule(key=KEYS, failure=st.none() | FAILURES)
    def ask(self, key: str, failure: type[Exception] | None) -> None:
        outcome = next(self.numbers) if failure is None else failure
        loads = self.cache.stats().loads
        answer, how = self.model.ask(key, self.clock(), outcome)

        def load() -> Any:
            if failure is not None:
                raise failure("no")
            return outcome

        self.asked += 1
        try:
            got: Any = self.cache.get(key, load)
        except Exception as exc:  # whatever it is, the model has to say the same
            got = type(exc)
        else:
            assert freshness().state == how
        assert got == answer
        if how == "remembered" or (how == "fresh" and answer != outcome):
            assert self.cache.stats().loads == loads, "nothing was to be loaded"

    @rule(seconds=SECONDS)
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(key=KEYS)
    def put(self, key: str) -> None:
        value = next(self.numbers)
        self.cache.put(key, value)
        self.model.kept[key] = Known(value, self.clock())

    @rule(key=KEYS)
    def invalidate(self, key: str) -> None:
        self.cache.invalidate(key)
        self.model.kept.pop(key, None)

    @rule()
    def clear(self) -> None:
        self.cache.clear()
        self.model.kept.clear()

    @invariant()
    def keeps_the_same_values(self) -> None:
        for key in "abc":
            known = self.model.kept.get(key)
            expected = "nothing" if known is None or known.failure is not None else known.value
            assert self.cache.peek(key, "nothing") == expected

    @invariant()
    def counts_every_call_once(self) -> None:
        stats = self.cache.stats()
        assert stats.hits + stats.stale + stats.misses + stats.negative == self.asked
        assert not self.cache._core._flights


class AtOnce(Workers):
    """Runs a refresh in the thread that asks for it."""

    def submit(self, job: Any) -> None:
        job.run()


TestLife = Life.TestCase
# The rare pairs of a time and a failure are found by more than the usual number of examples.
TestLife.settings = settings(max_examples=max(200, settings.default.max_examples))
