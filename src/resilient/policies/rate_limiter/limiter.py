"""The rate limiter users hold."""

from __future__ import annotations

from asyncio import shield
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, Protocol

from ...engine import params
from ...engine.clock import MONOTONIC, Sleep, asleep, sleep
from ...engine.deadline import time_left
from ...engine.drive.entries import entry
from ...engine.finding import Fact, Finding, Status
from ...engine.fork import renew_after_fork
from ...engine.keys import key_maker
from ...engine.latency import Latency, Recorder
from ...engine.living import remember
from ...engine.measure import Measure
from ...engine.policy import Policy
from ...engine.shape import Shape
from ...events import Announcer
from ...typing import Clock, Seconds
from ..measures import of_rate_limiter
from .algorithms import STRATEGIES
from .book import Book, open_book
from .decision import Decision, correction, refusal, settled
from .ladder import LOCAL, Ladder, Outage
from .quota import Quota, Rate, quotas_of
from .storage import open_shared, storage_uri

__all__ = ["RateLimiter", "RateLimiterStats"]

_LONGEST_WAIT: Final = 86_400.0  # seconds
_LONGEST_DECISION: Final = 60.0  # seconds


@dataclass(frozen=True, slots=True)
class RateLimiterStats:
    """What a rate limiter has counted.

    Attributes:
        allowed: decisions that let a call in.
        denied: decisions that did not.
        fallbacks: of both, those that were not made where all processes count together.
        errors: requests to the shared store that failed or were too slow.
        rung: where decisions are made now: "shared", "local", "allow" or "deny".
        keys: keys that are kept in this process.
        evicted: keys that had to make room.
        waited: how long calls waited lately for their turn, of those that had to.
    """

    allowed: int
    denied: int
    fallbacks: int
    errors: int
    rung: str
    keys: int
    evicted: int
    waited: Latency


class Desk(Protocol):
    """Where decisions are made."""

    def decide(self, key: str, cost: int, patience: float = 0.0, *, spend: bool = True) -> Decision: ...
    async def adecide(
        self, key: str, cost: int, patience: float = 0.0, *, spend: bool = True
    ) -> Decision: ...
    def give(self, decision: Decision, amount: int) -> None: ...
    async def agive(self, decision: Decision, amount: int) -> None: ...
    def close(self) -> None: ...
    async def aclose(self) -> None: ...


class RateLimiter(Policy):
    """Let calls in so often and no oftener, on one machine or across many.

    The *token bucket* lets *burst* calls in at once and then as many as the rate gives back, one by one. The
    three windows count as those of the package limits: *fixed-window* begins anew with each window,
    *sliding-window-counter* fades the last one out, *moving-window* remembers each call. A denied call uses
    up nothing.

    Several rates are decided all or nothing, as of one moment.

    On a shared store, a decision is one round trip, and never takes longer than *decision_timeout*. When the
    store fails, each process goes on as *on_outage* says, and comes back by itself; `events.RungChanged`
    tells of it. What may be let in beyond the rate then is bounded: a store that comes back empty has
    forgotten what was used, and while it is away, the processes together let in the rate once more.

    Args:
        rate: "100/minute", "5 per 10 seconds", "10/second; 100/minute", a `limits.RateLimitItem`, or a
            sequence of them.
        burst: permits a token bucket holds; at least 1; with one rate only. None: the amount of the rate.
        name: in errors, events, statistics, header fields and the keys of a shared store, which needs it to
            be given. None: the rate.
        key: makes a text of the arguments of a decorated call: calls with the same key share their permits.
            None: all calls do; None from it lets the call in uncounted.
        storage: "memory://", or a URI of limits for Redis or Valkey: redis://, rediss://, redis+unix://,
            redis+sentinel://, redis+cluster://, and the same with valkey. The server must know the script
            effects of Redis 5.
        strategy: "token-bucket", "fixed-window", "sliding-window-counter" or "moving-window".
        max_wait: seconds a call may wait for its turn, 0 to a day; only with the token bucket. 0: none.
        on_outage: what to do without the shared store: "local" counts in this process, up to the rate divided
            by *instances*; "allow" lets every call in; "deny" none.
        instances: how many processes share the store; at least 1.
        decision_timeout: seconds a decision of the shared store may take; greater than 0, at most 60.
        max_keys: the most keys kept in this process; at least 1.
        lease: permits fetched from the shared store at a time, to be spent in this process; at least 2. Up to
            *lease* permits for each process and key may be used later than they were counted. None: each
            decision asks the store.
        clock: a monotonic clock, in seconds.
        sleep: what waits, given seconds; a coroutine function for asynchronous calls. None: real time.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or does not go with another one.

    Concurrency: safe from any thread, task and loop. No key waits for another one. A wait that is cancelled
        gives its permits back.

    Source: GCRA (ITU-T I.371) for the token bucket; the strategies of limits for the windows.
    """

    kind: ClassVar[str] = "RateLimiter"

    def __init__(
        self,
        rate: Rate | Sequence[Rate],
        *,
        burst: int | None = None,
        name: str | None = None,
        key: Callable[..., str | None] | None = None,
        storage: str = "memory://",
        strategy: Literal[
            "token-bucket", "fixed-window", "sliding-window-counter", "moving-window"
        ] = "token-bucket",
        max_wait: Seconds = 0.0,
        on_outage: Literal["local", "allow", "deny"] = "local",
        instances: int = 1,
        decision_timeout: Seconds = 0.05,
        max_keys: int = 10_000,
        lease: int | None = None,
        clock: Clock = MONOTONIC,
        sleep: Sleep | None = None,
    ) -> None:
        params.one_of("strategy", strategy, STRATEGIES)
        uri = storage_uri(storage)
        self._quotas = quotas_of(rate, burst, None if name is None else params.named("name", name))
        self._decided = self._quotas  # under which its decisions are made
        self.max_wait = _at_most(_LONGEST_WAIT, "max_wait", params.seconds("max_wait", max_wait))
        if strategy != "token-bucket":
            _refuse_given("goes with strategy='token-bucket' only", burst=burst, max_wait=self.max_wait)
        self._name = ", ".join(quota.name for quota in self._quotas) if name is None else name
        self.announcer = Announcer()
        renew_after_fork(self)
        self._entry = _Entry(self, key_maker(None if key is None else params.plain_function("key", key)))
        self._sleep = None if sleep is None else params.callback("sleep", sleep)
        self._waits = Recorder(params.callback("clock", clock))
        outage = Outage(
            params.one_of("on_outage", on_outage, ("local", "allow", "deny")),
            params.count("instances", instances),
        )
        timeout = params.seconds("decision_timeout", decision_timeout, above=True)
        _at_most(_LONGEST_DECISION, "decision_timeout", timeout)
        leased = None if lease is None else params.count("lease", lease, least=2)

        def new_book(quotas: Sequence[Quota]) -> Book:
            size = params.count("max_keys", max_keys)
            return open_book(strategy, quotas, LOCAL, size, params.callback("clock", clock))

        self._desk: Desk
        self._ladder: Ladder | None = None
        if uri is None:
            _refuse_given("goes with a shared storage only", lease=leased)
            self._desk = self._book = new_book(self._quotas)
            if type(self).hit is RateLimiter.hit:
                vars(self)["hit"] = self._book.hit  # the usual case: nothing stands between
            remember(self)
            return
        if name is None:
            params.refuse(ValueError, "name", "must be given where the storage is shared", name)
        _check_lease(leased, self._quotas, self.max_wait)
        shares = tuple(quota.share(outage.instances) for quota in self._quotas)
        self._book = new_book(shares)
        self._decided += shares
        self._ladder = Ladder(
            name, self._quotas, self._book, outage=outage, clock=clock, announcer=self.announcer
        )
        self._desk = open_shared(
            uri, timeout, strategy=strategy, quotas=self._quotas, ladder=self._ladder, lease=leased
        )
        remember(self)

    @property
    def name(self) -> str:
        """The limiter's name."""
        return self._name

    @property
    def quotas(self) -> tuple[Quota, ...]:
        """The rates as they are enforced, in the order in which they were given."""
        return self._quotas

    def hit(self, key: str = "", cost: int = 1) -> Decision:
        """Take permits if they are there, and tell; never wait.

        Args:
            key: whose permits; calls with the same key share them. What is long is kept as a digest.
            cost: how many; 1 to 10**9.

        Returns:
            The decision, which is true where the permits were taken.

        Raises:
            TypeError: *key* is no text, or *cost* no whole number.
            ValueError: *cost* is out of range.

        Concurrency: on "memory://" it does no I/O and may be called in tasks; on a shared store, `ahit` may.
        """
        return self._desk.decide(key, cost)

    async def ahit(self, key: str = "", cost: int = 1) -> Decision:
        """Do as `hit`, without blocking the event loop.

        Args:
            key: whose permits.
            cost: how many; at least 1.

        Returns:
            The decision.
        """
        if self._ladder is None:  # a coroutine less, where nothing is awaited anyway
            return self.hit(key, cost)
        return await self._desk.adecide(key, cost)

    def peek(self, key: str = "", cost: int = 1) -> Decision:
        """Tell what `hit` would answer, and take nothing.

        Args:
            key: whose permits.
            cost: how many; at least 1.

        Returns:
            The decision; its `remaining` is what is left now, with nothing taken.
        """
        return settled(self._desk.decide(key, cost, spend=False))

    async def apeek(self, key: str = "", cost: int = 1) -> Decision:
        """Do as `peek`, without blocking the event loop.

        Args:
            key: whose permits.
            cost: how many; at least 1.

        Returns:
            The decision.
        """
        return settled(await self._desk.adecide(key, cost, spend=False))

    def acquire(self, key: str = "", cost: int = 1) -> Decision:
        """Take permits, if need be after a wait of up to *max_wait* and the caller's deadline.

        Args:
            key: whose permits.
            cost: how many; at least 1.

        Returns:
            The decision; its `retry_after` is how long the wait was.

        Raises:
            RateLimitedError: they are not there, and will not be in time.

        Concurrency: those who wait have their permits already, in the order in which they came; whoever is
            interrupted gives them back.
        """
        if not self.max_wait:
            decision = self.hit(key, cost)
        else:
            decision = self._desk.decide(key, cost, self._patience())
        if not decision.allowed:
            raise refusal(self._name, decision)
        if decision.retry_after > 0.0:
            try:
                self._waits.record(decision.retry_after)
                sleep(decision.retry_after, self._sleep)
            except BaseException:
                self._desk.give(decision, decision.cost)
                raise
        return decision

    async def aacquire(self, key: str = "", cost: int = 1) -> Decision:
        """Do as `acquire`, without blocking the event loop.

        Args:
            key: whose permits.
            cost: how many; at least 1.

        Returns:
            The decision.

        Raises:
            RateLimitedError: they are not there, and will not be in time.
        """
        if not self.max_wait:
            decision = await self.ahit(key, cost)
        else:
            decision = await self._desk.adecide(key, cost, self._patience())
        if not decision.allowed:
            raise refusal(self._name, decision)
        if decision.retry_after > 0.0:
            try:
                self._waits.record(decision.retry_after)
                await asleep(decision.retry_after, self._sleep)
            except BaseException:
                # In a task of its own: who is cancelled once may be again, as by anyio at every `await`.
                await shield(self._desk.agive(decision, decision.cost))
                raise
        return decision

    def refund(self, decision: Decision) -> None:
        """Give back what *decision* took: the call was not made, or cost nothing.

        Args:
            decision: an answer of this limiter. One that was denied, refunded or settled already, that of a
                `peek`, and one that was pickled give nothing.

        Raises:
            TypeError: *decision* is none.
            ValueError: *decision* is another limiter's.

        Concurrency: as `hit`. A store that cannot be reached keeps the permits.
        """
        self.settle(decision, 0)

    async def arefund(self, decision: Decision) -> None:
        """Do as `refund`, without blocking the event loop.

        Args:
            decision: an answer of this limiter.
        """
        await self.asettle(decision, 0)

    def settle(self, decision: Decision, actual_cost: int) -> None:
        """Correct what *decision* took, now that the real cost is known.

        Args:
            decision: an answer of this limiter. One that was denied, refunded or settled already, that of a
                `peek`, and one that was pickled change nothing.
            actual_cost: permits; 0 to 10**9. More than were taken are taken now, there or not, and later
                calls wait for them.

        Raises:
            TypeError: *actual_cost* is no whole number, or *decision* is none.
            ValueError: *actual_cost* is out of range, or *decision* is another limiter's.

        Concurrency: as `hit`.
        """
        if (amount := correction(decision, actual_cost, self._decided)) != 0:
            self._desk.give(decision, amount)

    async def asettle(self, decision: Decision, actual_cost: int) -> None:
        """Do as `settle`, without blocking the event loop.

        Args:
            decision: an answer of this limiter.
            actual_cost: permits; 0 to 10**9.
        """
        if (amount := correction(decision, actual_cost, self._decided)) != 0:
            await self._desk.agive(decision, amount)

    def calling(self, key: str = "", cost: int = 1) -> Admission:
        """Return a block, for `with` and `async with`, that is entered by `acquire`.

        Args:
            key: whose permits.
            cost: how many; at least 1.

        Returns:
            The block; `as` gives the decision.
        """
        return Admission(self, key, cost)

    def close(self) -> None:
        """Give back what is leased and close the idle connections to the shared store.

        For the end of a program; a limiter that is used again connects again. Others of this process on the
        same store connect again, too.

        Concurrency: safe from any thread. Connections of event loops are closed by `aclose`, in their loop.
        """
        self._desk.close()

    async def aclose(self) -> None:
        """Do as `close`, and close the connections of the running event loop, too."""
        await self._desk.aclose()

    def wrap(self, fn: Callable[..., Any], shape: Shape) -> Callable[..., Any]:
        """Return *fn*, which has *shape*, under this limit."""
        return entry(self._entry, fn, shape)

    def after_fork(self) -> None:
        """Begin afresh in a forked child: a lock may be held by a thread that was not copied."""
        self.announcer.after_fork()

    def stats(self) -> RateLimiterStats:
        """Return what the limiter has counted so far."""
        allowed, denied, keys, evicted = self._book.counts()
        ladder = self._ladder
        if ladder is None:
            return RateLimiterStats(allowed, denied, 0, 0, LOCAL, keys, evicted, self._waits.lately())
        return RateLimiterStats(
            ladder.allowed,
            ladder.denied,
            ladder.fallbacks,
            ladder.errors,
            ladder.rung,
            keys,
            evicted,
            self._waits.lately(),
        )

    def measures(self) -> Iterator[Measure]:
        """Return what metrics tell of it."""
        return of_rate_limiter(self.stats(), self._waits.histogram(), shared=self._ladder is not None)

    def finding(self) -> Finding:
        """Return how it stands, for health. A warning: the shared store is away."""
        stats = self.stats()
        status, output = (Status.PASS, "") if self._ladder is None else self._ladder.standing()
        facts: dict[str, Fact] = {
            "rung": stats.rung,
            "allowed": stats.allowed,
            "denied": stats.denied,
            "errors": stats.errors,
        }
        return Finding(status, output, facts=facts)

    def __repr__(self) -> str:
        stats = self.stats()
        return f"<RateLimiter {self._name!r} {stats.rung}, {stats.allowed} allowed, {stats.denied} denied>"

    def _patience(self) -> float:
        left = time_left()
        return self.max_wait if left is None else max(0.0, min(self.max_wait, left))


class _Entry:
    """How decorated calls come in. A key function that answers None lets a call in uncounted."""

    def __init__(self, limiter: RateLimiter, make_key: Callable[[Any, Any, Any], str | None] | None) -> None:
        self._limiter = limiter
        self._make_key = make_key

    def admit(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> None:
        key = "" if self._make_key is None else self._make_key(fn, args, kwargs)
        if key is not None:
            self._limiter.acquire(key)

    async def aadmit(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> None:
        key = "" if self._make_key is None else self._make_key(fn, args, kwargs)
        if key is not None:
            await self._limiter.aacquire(key)


class Admission:
    """A block of code under a limit."""

    __slots__ = ("_limiter", "_what")

    def __init__(self, limiter: RateLimiter, key: str, cost: int) -> None:
        self._limiter = limiter
        self._what = (key, cost)

    def __enter__(self) -> Decision:
        return self._limiter.acquire(*self._what)

    def __exit__(self, *exc_info: object) -> None:
        """Leave; what was used stays used."""

    async def __aenter__(self) -> Decision:
        return await self._limiter.aacquire(*self._what)

    async def __aexit__(self, *exc_info: object) -> None:
        """Leave; what was used stays used."""


def _refuse_given(rule: str, **arguments: float | None) -> None:
    for name, value in arguments.items():
        if value:
            params.refuse(ValueError, name, rule, value)


def _at_most(most: float, name: str, value: float) -> float:
    if value > most:
        params.refuse(ValueError, name, f"must be at most {most:g} seconds", value)
    return value


def _check_lease(lease: int | None, quotas: Sequence[Quota], max_wait: float) -> None:
    if lease is None:
        return
    if max_wait:
        params.refuse(ValueError, "lease", "does not go with max_wait", lease)
    if lease > (most := min(quota.burst for quota in quotas)):
        params.refuse(ValueError, "lease", f"must be at most {most}, all that can be had at once", lease)
