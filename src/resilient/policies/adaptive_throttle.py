"""Adaptive throttling: stop sending what a dependency would only refuse, by what it has accepted of late."""

from __future__ import annotations

import math
import random as _random
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from ..engine import params
from ..engine.clock import MONOTONIC
from ..engine.drive.gates import NO_RESULT, GateBlock, gate
from ..engine.finding import Finding, Status
from ..engine.fork import renew_after_fork
from ..engine.living import remember
from ..engine.matching import Matcher, is_refusal
from ..engine.measure import Measure
from ..engine.policy import Policy
from ..engine.shape import Shape
from ..engine.window import BUCKETS, Tally, ticker
from ..errors import ThrottledError
from ..events import Announcer, ThrottlingStarted, ThrottlingStopped
from ..typing import Clock, FailureRule, Seconds
from .measures import of_throttle

__all__ = ["AdaptiveThrottle", "ThrottleRules", "ThrottleStats"]


@dataclass(frozen=True, slots=True)
class ThrottleRules:
    """The settings of a throttle, checked."""

    k: float
    window: float
    max_rejection: float
    min_calls: int

    def probability(self, attempts: int, accepts: int, decided: int) -> float:
        """Return the share of calls to refuse, by what is in the window."""
        excess = attempts - self.k * accepts
        if excess <= 0.0 or decided < self.min_calls:
            return 0.0
        return min(excess / (attempts + 1), self.max_rejection)

    def headroom(self, attempts: int, accepts: int) -> int:
        """Return how many calls may begin before `probability` can be above 0, whatever becomes of them."""
        return math.floor(self.k * accepts) - attempts + 1


@dataclass(frozen=True, slots=True)
class ThrottleStats:
    """What a throttle has counted, and what it does now.

    Attributes:
        calls: calls that ended and were counted, accepted or failed, since the start.
        failures: calls that failed, since the start.
        rejected: calls that were refused, since the start.
        abandoned: calls given up by their caller, since the start.
        ignored: calls that a policy further inside refused, since the start.
        late: calls that ended when they had left the window already, since the start.
        attempts: calls in the window now, refused ones and those under way included.
        accepts: those of them that were accepted.
        probability: the share of calls that is refused now.
    """

    calls: int
    failures: int
    rejected: int
    abandoned: int
    ignored: int
    late: int
    attempts: int
    accepts: int
    probability: float


class AdaptiveThrottle(Policy):
    """Refuse a share of the calls here while a dependency accepts only a part of what it is sent.

    With `P = max(0, (attempts - k * accepts) / (attempts + 1))` over the calls begun in the window, a call is
    refused with probability P. Calls that are refused here are attempts too, so that P goes with what the
    application wants and not with what is left of it. In balance the dependency sees about *k* times what it
    accepts, whatever is offered.

    A call counts as an attempt before it is made, and as an accept when it has ended without a failure. One
    that is abandoned, or that a policy further inside refuses, is taken back: it says nothing. A stream
    counts when it ends, because its pace is its consumer's.

    Args:
        name: in errors, events and statistics.
        k: how many attempts there may be for each accept before any is refused; at least 1. Higher is more
            patient; 1 sends only what is accepted.
        window: seconds looked back on, forgotten in steps of a tenth; above 0. Twice as long as the longest
            call, or more: a call that outlives the window counts as never answered.
        max_rejection: the largest share that is refused; above 0, at most 1. Below 1, a trickle goes on
            finding out whether the dependency is back.
        min_calls: calls in the window that are answered, failed or refused before any is refused; at least 1.
        on: what is a failure: exception types, predicates `(exc) -> bool`, or a tuple of both. Any other
            exception is an answer, and so an accept.
        exclude: what is never a failure, in the same words.
        clock: a monotonic clock, in seconds.
        random: returns a number from 0 up to, not including, 1. Not asked while P is 0.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Concurrency: safe from any thread, task and loop. A call costs two increments and no lock while attempts
        are safely below *k* times the accepts.

    Source: B. Beyer et al., "Site Reliability Engineering", chapter 21, "Client-side throttling".
    """

    kind: ClassVar[str] = "AdaptiveThrottle"

    def __init__(
        self,
        name: str,
        *,
        k: float = 2.0,
        window: Seconds = 120.0,
        max_rejection: float = 0.9,
        min_calls: int = 20,
        on: FailureRule = Exception,
        exclude: FailureRule = (),
        clock: Clock = MONOTONIC,
        random: Callable[[], float] = _random.random,
    ) -> None:
        self._core = _Core(
            params.named("name", name),
            ThrottleRules(
                k=params.number("k", k, least=1.0),
                window=params.seconds("window", window, above=True),
                max_rejection=params.ratio("max_rejection", max_rejection),
                min_calls=params.count("min_calls", min_calls),
            ),
            Matcher("on", on, required=True),
            Matcher("exclude", exclude, doubtful=False),
            clock=params.callback("clock", clock),
            random=params.callback("random", random),
        )
        self.announcer = self._core.announcer
        remember(self)

    @property
    def name(self) -> str:
        """The throttle's name."""
        return self._core.name

    @property
    def rules(self) -> ThrottleRules:
        """The settings."""
        return self._core.rules

    def wrap(self, fn: Callable[..., Any], shape: Shape) -> Callable[..., Any]:
        """Return *fn*, which has *shape*, behind this throttle."""
        return gate(self._core, fn, shape)

    def calling(self) -> GateBlock:
        """Guard a block: `with throttle.calling():` or `async with throttle.calling():`.

        Returns:
            A context manager for one use; entering it raises `ThrottledError` when the call is refused.
        """
        return GateBlock(self._core)

    def stats(self) -> ThrottleStats:
        """Return what the throttle has counted and the share it refuses, as of one moment."""
        return self._core.stats()

    def measures(self) -> Iterator[Measure]:
        """Return what metrics tell of it."""
        return of_throttle(self.stats())

    def finding(self) -> Finding:
        """Return how what it guards is doing, for health. A warning: a share of the calls is refused."""
        return self._core.finding()

    def __repr__(self) -> str:
        stats = self.stats()
        refuses = f"refuses {stats.probability:.0%} of calls" if stats.probability else "refuses nothing"
        accepted = f"{stats.accepts} of {stats.attempts} attempts accepted"
        return f"<AdaptiveThrottle {self.name!r} {refuses}, {accepted}, {stats.rejected} rejected>"


class _Part:
    """The calls begun in one tenth of the window, and what became of them.

    Attempts and accepts are raised from anywhere, by `next(part.begun)` and `next(part.ok)`; everything else
    requires the throttle's lock.

    What a call comes to is noted where the call was begun. So an answer never counts without its question:
    accepts that are found in another part than their attempts would be credit for later failures.
    """

    __slots__ = (
        "_looks", "accepts", "attempts", "begun", "edge", "failures", "free", "is_over", "number", "ok",
        "refused", "withdrawn",
    )  # fmt: skip

    def __init__(self, number: int, edge: float, free: int) -> None:
        self.number = number
        self.edge = edge
        """Until when calls that begin belong here."""
        self.free = free
        """What `begun` gives is below this: the call need not be weighed."""
        # No tallies: those register for forks, and forgetting one takes a finalizer, where an interrupt
        # would be lost. The throttle's lock is there for the looks.
        self.begun, self.ok = ticker(), ticker()
        self._looks = 0  # a look raises both
        self.attempts = self.accepts = 0  # as of the last one
        self.failures = self.refused = self.withdrawn = 0
        self.is_over = False

    @property
    def decided(self) -> int:
        """Calls of which the outcome is known."""
        return self.accepts + self.failures + self.refused

    @property
    def under_way(self) -> int:
        """Calls of which it is not."""
        return self.attempts - self.decided

    def look(self) -> None:
        """Read the counters, unless nothing is left that could raise them."""
        if not self.is_over or self.under_way:
            # In this order a call that begins and ends between the two is under way, never another one not.
            self.accepts = next(self.ok) - self._looks
            self.attempts = next(self.begun) - self._looks - self.withdrawn
            self._looks += 1


class _Core:
    """Admits calls, and counts what becomes of them.

    Concurrency: safe from any thread, task and loop, under a short lock. It is re-entrant, so that a signal
    handler may use the throttle too. `_parts` is replaced, never altered: a handler may do so at any moment.
    """

    def __init__(
        self,
        name: str,
        rules: ThrottleRules,
        on: Matcher,
        exclude: Matcher,
        *,
        clock: Clock,
        random: Callable[[], float],
    ) -> None:
        self.name = name
        self.rules = rules
        self.announcer = Announcer()
        self._on = on
        self._exclude = exclude
        self._clock = clock
        self._random = random
        self._step = rules.window / BUCKETS
        self._late = Tally()
        self._accepted = 0  # in parts that have left the window
        self.failures = self.rejected = self.abandoned = self.ignored = 0
        self._throttles = False
        self._rejected_before = 0  # when it began to throttle
        self._calm_from = -math.inf
        # The parts of the window, and where calls that begin now belong.
        self._parts: tuple[_Part, ...] = ()
        self._part = _Part(0, -math.inf, 0)
        self._lock = threading.RLock()
        renew_after_fork(self)

    # The gate: what the wrappers call.

    def admit(self, fn: object, args: object, kwargs: object) -> _Part:  # noqa: ARG002 - any call will do
        """Return where to note how the call ends, or raise `ThrottledError`."""
        part = self._part
        if not self._clock() < part.edge:  # the form that also catches a NaN from a broken clock
            part = self._move_on()
        # Counted before it is sent: calls that hang are seen while they hang.
        serial = next(part.begun)
        if serial < part.free:
            return part
        return self._weigh(part, serial)

    def admit_stream(self, fn: object, args: object, kwargs: object) -> None:
        """Admit a generator. How long it lives is up to its consumer: it counts when it ends."""
        part = self.admit(fn, args, kwargs)
        with self._lock:
            part.withdrawn += 1

    def success(self, ticket: _Part | None, result: object) -> None:  # noqa: ARG002 - any result will do
        """Learn that the call was answered."""
        if ticket is None:
            ticket = self._begin_at_its_end()
        next(ticket.ok)

    def failure(self, ticket: _Part | None, exc: Exception) -> None:
        """Learn that the call raised *exc*: that it failed, was answered, or was refused further inside."""
        if self._on.match(exc) and not self._exclude.match(exc):
            self._fail(ticket)
        elif is_refusal(exc):
            with self._lock:
                self.ignored += 1
                self._withdraw(ticket)
        else:
            self.success(ticket, NO_RESULT)

    def abandon(self, ticket: _Part | None, exc: BaseException) -> None:  # noqa: ARG002
        """Learn that nobody waits for the answer any more."""
        with self._lock:
            self.abandoned += 1
            self._withdraw(ticket)

    # Admission.

    def _weigh(self, part: _Part, serial: int) -> _Part:
        """Let the call in that *serial* of *part* counts, or refuse it by chance."""
        with self._lock:
            attempts, accepts, decided = _sums(self._parts)
            # The next call gets a serial at least two higher: looking takes one. It may be more, and the
            # call be weighed too early, never too late: accepts only grow, and what grows the attempts
            # counts up the serial.
            part.free = serial + 2 + self.rules.headroom(attempts, accepts)
            probability = self.rules.probability(attempts - 1, accepts, decided)
        # Without the lock, as it is the user's function.
        if not probability or not self._random() < probability:
            return part
        with self._lock:
            self._refuse(part, probability, attempts - 1, accepts)
        self.announcer.deliver()
        answered = f"{accepts} of {attempts - 1} calls of the last {self.rules.window:g} s were accepted"
        msg = f"throttle {self.name!r} refuses {probability:.0%} of the calls: {answered}"
        raise ThrottledError(msg, policy=self.name, probability=probability)

    def _refuse(self, part: _Part, probability: float, attempts: int, accepts: int) -> None:
        if not self._throttles:
            self._throttles = True
            self._rejected_before = self.rejected
            self.announcer.post(ThrottlingStarted(self.name, probability, attempts, accepts))
        # An event for each time that P touches 0 would be one for every few calls where it hovers there.
        self._calm_from = part.edge + self._step
        self.rejected += 1
        part.refused += 1

    # Results.

    def _fail(self, ticket: _Part | None) -> None:
        part = self._begin_at_its_end() if ticket is None else ticket
        with self._lock:
            if part in self._parts:
                part.failures += 1
                self.failures += 1
            else:
                next(self._late.ticker)

    def _withdraw(self, ticket: _Part | None) -> None:
        if ticket is not None:
            ticket.withdrawn += 1

    def _begin_at_its_end(self) -> _Part:
        """Count a stream as an attempt; return where."""
        part = self._move_on()
        next(part.begun)
        return part

    # The window.

    def _move_on(self) -> _Part:
        """Return the part of this moment."""
        with self._lock:
            part = self._roll(self._clock())
        self.announcer.deliver()
        return part

    def _roll(self, now: float) -> _Part:
        current = self._part
        if now < current.edge:
            return current
        number, edge = self._place_of(now)
        kept = [part for part in self._parts if part.number > number - BUCKETS]
        gone = [part for part in self._parts if part.number <= number - BUCKETS]
        attempts, accepts, decided = _sums(kept)
        new = _Part(number, edge, self.rules.headroom(attempts, accepts))
        # An interrupt before this leaves the current part current: the next call moves on again.
        self._parts, self._part = (*kept, new), new
        self._forget(gone)
        current.is_over = True  # and looked at since its last call began
        if self._throttles and not now < self._calm_from:
            self._stop_unless(self.rules.probability(attempts, accepts, decided))
        return new

    def _place_of(self, now: float) -> tuple[int, float]:
        """Return the number and the edge of the part that *now* belongs to, after the current one."""
        current = self._part
        skipped = (now - current.edge) / self._step
        if skipped < BUCKETS:
            return current.number + 1 + int(skipped), current.edge + (1 + int(skipped)) * self._step
        # Long ago, never, or a clock that makes no sense: all that there is leaves the window.
        return current.number + 1 + BUCKETS, now + self._step

    def _forget(self, parts: list[_Part]) -> None:
        for part in parts:
            part.look()
            self._accepted += part.accepts
            # What is answered from now on is late. An answer that comes right between the look and this is
            # in neither count: not worth a lock for each of the others.
            part.ok = self._late.ticker

    def _stop_unless(self, probability: float) -> None:
        if not probability:
            self._throttles = False
            self.announcer.post(ThrottlingStopped(self.name, self.rejected - self._rejected_before))

    # What can be seen.

    def stats(self) -> ThrottleStats:
        """Return everything that is counted, as of one moment."""
        self._move_on()
        with self._lock:
            attempts, accepts, decided = _sums(self._parts)
            return ThrottleStats(
                calls=self._accepted + accepts + self.failures,
                failures=self.failures,
                rejected=self.rejected,
                abandoned=self.abandoned,
                ignored=self.ignored,
                late=self._late.read(),
                attempts=attempts,
                accepts=accepts,
                probability=self.rules.probability(attempts, accepts, decided),
            )

    def finding(self) -> Finding:
        """Tell how what this guards is doing, as far as the calls in the window show."""
        with self._lock:
            stats = self.stats()
        status, output = Status.PASS, ""
        if stats.probability:
            answered = f"{stats.accepts} of {stats.attempts} calls of the last {self.rules.window:g} s"
            status = Status.WARN
            output = f"refuses {stats.probability:.0%} of the calls: {answered} were accepted"
        facts = {"attempts": stats.attempts, "accepts": stats.accepts, "rejected": stats.rejected}
        return Finding(status, output, value=stats.probability, unit="ratio", facts=facts, calls=stats.calls)

    def after_fork(self) -> None:
        """Begin afresh in a forked child: what is under way belongs to threads of the parent."""
        self._lock = threading.RLock()
        self.announcer.after_fork()
        # The first call moves on from here, and forgets.
        self._part = _Part(self._part.number, -math.inf, 0)


def _sums(parts: Iterable[_Part]) -> tuple[int, int, int]:
    """Return the attempts, the accepts and the decided calls in *parts*."""
    attempts = accepts = decided = 0
    for part in parts:
        part.look()
        attempts += part.attempts
        accepts += part.accepts
        decided += part.decided
    return attempts, accepts, decided
