"""The four ways to count, each for one key: what was used, as a value, and what that allows.

They know neither clocks nor locks nor stores; a state belongs to whoever passes it in. A state of None is a
key that was never seen, and means the same as one that has all its permits. The scripts in `fleet/scripts`
say the same to a Redis server.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

from .decision import ROUNDING
from .quota import Quota

__all__ = [
    "STRATEGIES",
    "Algorithm",
    "AllOf",
    "FixedWindow",
    "Level",
    "MovingWindow",
    "SlidingWindowCounter",
    "TokenBucket",
]


_JUST_BEFORE: Final = 1.0 - 1e-9


class Level(NamedTuple):
    """How full a key is: the tightest *quota*, whole permits *left*, seconds until all are there again."""

    quota: Quota
    left: int
    reset_after: float


class Algorithm(Protocol):
    """Counts for one key.

    `wait` answers with the seconds until *cost* permits could be taken, infinity for never; `take` takes them
    whatever it answers. `give` puts back *amount* of what was taken for use at *at*; below 0, it takes more.
    `level` is that of the tightest quota, `denial` that of the one for which *cost* has to wait longest.
    """

    def wait(self, state: Any, now: float, cost: int, /) -> float: ...
    def take(self, state: Any, now: float, cost: int, /) -> Any: ...
    def give(self, state: Any, now: float, amount: int, at: float, /) -> Any: ...
    def level(self, state: Any, now: float, /) -> Level: ...
    def denial(self, state: Any, now: float, cost: int, /) -> Level: ...


def _until(moment: float, now: float) -> float:
    """Return the seconds from *now* to *moment*, rounded up: who waits for them is not a moment too early."""
    return moment - now + 2 * math.ulp(moment)


class _OneQuota:
    """Counts for one quota, which is the one to tell of whatever is asked."""

    def __init__(self, quota: Quota) -> None:
        self.quota = quota

    @abstractmethod
    def level(self, state: Any, now: float) -> Level: ...

    def denial(self, state: Any, now: float, cost: int) -> Level:  # noqa: ARG002
        return self.level(state, now)


class TokenBucket(_OneQuota):
    """GCRA: a key is one number, the time at which its bucket is full again.

    Permits come back one by one, *amount* in each window, up to *burst*.

    Source: the generic cell rate algorithm, ITU-T I.371.
    """

    def __init__(self, quota: Quota) -> None:
        super().__init__(quota)
        self.interval = quota.window / quota.amount  # seconds for one permit to come back
        # How far ahead of now the bucket may be filled up again. The part of a permit on top keeps sums of
        # rounded numbers from losing the last one, and is too small to admit another.
        self.tolerance = (quota.burst + ROUNDING) * self.interval

    def wait(self, state: float | None, now: float, cost: int) -> float:
        if cost > self.quota.burst:
            return math.inf
        ahead = 0.0 if state is None else max(0.0, state - now)
        short = ahead + cost * self.interval - self.tolerance
        # Without the rounding: who comes back when told to must not be too early.
        return 0.0 if short <= 0.0 else short + ROUNDING * self.interval

    def take(self, state: float | None, now: float, cost: int) -> float:
        return (now if state is None else max(now, state)) + cost * self.interval

    def give(self, state: float | None, now: float, amount: int, at: float) -> float:
        if amount < 0:
            return self.take(state, now, -amount)
        if state is None or now - at > self.quota.burst * self.interval:
            return (
                now if state is None else state
            )  # a bucket may have been full since: then it has them already
        return max(now, state - amount * self.interval)

    def level(self, state: float | None, now: float) -> Level:
        ahead = 0.0 if state is None else max(0.0, state - now)
        left = int(self.quota.burst - ahead / self.interval + ROUNDING)
        return Level(self.quota, max(0, left), ahead)


@dataclass(slots=True)
class _Window:
    """A window that began at *start*, with *count* permits taken in it and *before* in the one before."""

    start: float
    count: int
    before: int = 0


class FixedWindow(_OneQuota):
    """A count that begins anew with each window.

    A window begins with the first permit taken after the one before.
    """

    def wait(self, state: _Window | None, now: float, cost: int) -> float:
        amount, window = self.quota.amount, self.quota.window
        if cost > amount:
            return math.inf
        if state is None or now >= state.start + window or state.count + cost <= amount:
            return 0.0
        return _until(state.start + window, now)

    def take(self, state: _Window | None, now: float, cost: int) -> _Window:
        if state is None or not state.count or now >= state.start + self.quota.window:
            return _Window(now, cost)
        return _Window(state.start, state.count + cost)

    def give(self, state: _Window | None, now: float, amount: int, at: float) -> _Window | None:
        if amount < 0:
            return self.take(state, now, -amount)
        if state is None or at < state.start:
            return state  # the window they were taken in is over
        return _Window(state.start, max(0, state.count - amount))

    def level(self, state: _Window | None, now: float) -> Level:
        quota = self.quota
        if state is None or now >= state.start + quota.window or not state.count:
            return Level(quota, quota.amount, 0.0)
        return Level(quota, max(0, quota.amount - state.count), state.start + quota.window - now)


class SlidingWindowCounter(_OneQuota):
    """Two counts: what was taken in the window before fades away while this one passes.

    Source: the approximation that Cloudflare described in 2017, as the package limits has it.
    """

    def wait(self, state: _Window | None, now: float, cost: int) -> float:
        amount, window = self.quota.amount, self.quota.window
        if cost > amount:
            return math.inf
        here = self._moved(state, now)
        ahead = here.start + window - now  # what is left of this window
        if self._faded(here, ahead) + here.count + cost <= amount:
            return 0.0
        # Later, `ahead` is a difference of rounded numbers too.
        return self._until_only(amount - cost, here, ahead) + 2 * math.ulp(now)

    def take(self, state: _Window | None, now: float, cost: int) -> _Window:
        here = self._moved(state, now)
        return _Window(here.start, here.count + cost, here.before)

    def give(self, state: _Window | None, now: float, amount: int, at: float) -> _Window:
        here = self._moved(state, now)
        if amount < 0 or at >= here.start:
            return _Window(here.start, max(0, here.count - amount), here.before)
        if at >= here.start - self.quota.window:
            return _Window(here.start, here.count, max(0, here.before - amount))
        return here

    def level(self, state: _Window | None, now: float) -> Level:
        here = self._moved(state, now)
        ahead = here.start + self.quota.window - now
        used = self._faded(here, ahead) + here.count
        reset_after = self._until_only(0, here, ahead) if used else 0.0
        return Level(self.quota, max(0, self.quota.amount - used), reset_after)

    def _moved(self, state: _Window | None, now: float) -> _Window:
        """Return the window that *now* is in; a key of which nothing counts begins a new row of them."""
        window = self.quota.window
        if state is not None and now >= state.start + window:
            state = _Window(state.start + window, 0, state.count)
        if state is None or now >= state.start + window or not (state.count or state.before):
            return _Window(now, 0)
        return state

    def _faded(self, here: _Window, ahead: float) -> int:
        # Whole permits, rounded down, as limits has it.
        return math.floor(here.before * ahead / self.quota.window)

    def _until_only(self, permits: int, here: _Window, ahead: float) -> float:
        """Return the seconds until no more than *permits*, of those that are more now, count."""
        if here.count <= permits:
            return ahead - self._span(permits - here.count, here.before)
        return ahead + self.quota.window - self._span(permits, here.count)

    def _span(self, permits: int, before: int) -> float:
        """Return how much of a window may be left for *before* to have faded to *permits*, rounded down."""
        # Rounded down, it is *permits* until it would be one more; just before that is safe.
        return min(1.0, (permits + 1) / before * _JUST_BEFORE) * self.quota.window


class MovingWindow(_OneQuota):
    """The exact one: the time of each permit that was taken in the last window, oldest first.

    It costs memory for every permit; for large amounts and weights, a token bucket does not.
    """

    def wait(self, state: list[float] | None, now: float, cost: int) -> float:
        amount = self.quota.amount
        if cost > amount:
            return math.inf
        taken = self._live(state, now)
        excess = len(taken) + cost - amount
        return 0.0 if excess <= 0 else _until(taken[excess - 1] + self.quota.window, now)

    def take(self, state: list[float] | None, now: float, cost: int) -> list[float]:
        taken = self._live(state, now)
        # More than its amount a window cannot remember: then it is full until the last of them is over.
        taken.extend([now] * min(cost, self.quota.amount))
        del taken[: -self.quota.amount]
        return taken

    def give(self, state: list[float] | None, now: float, amount: int, at: float) -> list[float]:
        if amount < 0:
            return self.take(state, now, -amount)
        taken = self._live(state, now)
        end = bisect_right(taken, at)
        del taken[end - min(amount, taken.count(at)) : end]
        return taken

    def level(self, state: list[float] | None, now: float) -> Level:
        taken = self._live(state, now)
        reset_after = taken[-1] + self.quota.window - now if taken else 0.0
        return Level(self.quota, self.quota.amount - len(taken), reset_after)

    def _live(self, state: list[float] | None, now: float) -> list[float]:
        """Return *state* without what has left the window."""
        taken = [] if state is None else state
        if taken and taken[0] <= now - self.quota.window:
            del taken[: bisect_right(taken, now - self.quota.window)]
        return taken


class AllOf:
    """Several algorithms as one, all or nothing; the tightest speaks for all."""

    def __init__(self, parts: Sequence[Algorithm]) -> None:
        self.parts = tuple(parts)
        self._unseen = (None,) * len(self.parts)

    def wait(self, state: Any, now: float, cost: int) -> float:
        return max(part.wait(one, now, cost) for part, one in self._each(state))

    def take(self, state: Any, now: float, cost: int) -> Any:
        return tuple(part.take(one, now, cost) for part, one in self._each(state))

    def give(self, state: Any, now: float, amount: int, at: float) -> Any:
        return tuple(part.give(one, now, amount, at) for part, one in self._each(state))

    def level(self, state: Any, now: float) -> Level:
        levels = [part.level(one, now) for part, one in self._each(state)]
        return min(levels, key=lambda level: (level.left, -level.reset_after))

    def denial(self, state: Any, now: float, cost: int) -> Level:
        slowest, one = max(self._each(state), key=lambda pair: pair[0].wait(pair[1], now, cost))
        return slowest.level(one, now)

    def _each(self, state: Any) -> Iterator[tuple[Algorithm, Any]]:
        return zip(self.parts, self._unseen if state is None else state, strict=True)


STRATEGIES: Final[dict[str, Callable[[Quota], Algorithm]]] = {
    "token-bucket": TokenBucket,
    "fixed-window": FixedWindow,
    "sliding-window-counter": SlidingWindowCounter,
    "moving-window": MovingWindow,
}
