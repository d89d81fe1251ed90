"""What happened: small frozen event classes, and who is told.

Events are for what is rare or degraded: a circuit that opens, a retry, an answer that is not fresh. What
happens on every good call is counted, not announced: read `stats()`. No event carries a key, an argument or
a user; error texts are cut short.

Listeners run after the policy has committed its change and outside its lock, in the order of the changes.
One that raises is logged once, on the logger `resilient`, and changes nothing for the call or for the others.
One that is slow holds up no call for long: what piles up meanwhile is told in a thread of its own, and when
more than 1000 events wait, the oldest are dropped. Whoever delivers an event, its listeners run in a copy
of the context (`contextvars`) in which it happened: a trace or a request id is that of the call behind it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from dataclasses import dataclass
from typing import TypeAlias

__all__ = [
    "BudgetExhausted",
    "CallTimedOut",
    "CircuitClosed",
    "CircuitHalfOpened",
    "CircuitOpened",
    "CircuitOverridden",
    "CircuitResumed",
    "ConnectionCollected",
    "ConnectionDiscarded",
    "ConnectionLeaked",
    "ConnectionReclaimed",
    "ConnectionReturnedLate",
    "Event",
    "FallbackUsed",
    "HealthChanged",
    "Listener",
    "MaintenanceSwitched",
    "PoolAvailable",
    "PoolUnavailable",
    "RefreshFailed",
    "RetriesExhausted",
    "RetryScheduled",
    "RungChanged",
    "StaleServed",
    "StorageLost",
    "StorageRestored",
    "ThrottlingStarted",
    "ThrottlingStopped",
    "add_listener",
    "remove_listener",
]

_log = logging.getLogger("resilient")

_MAX_TEXT = 200
_MAX_PENDING = 1000  # events that wait for slow listeners; the oldest give way
_FOR_OTHERS = 16  # events that one call delivers at most, whoever posted them


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to the policy named *policy*."""

    policy: str


@dataclass(frozen=True, slots=True)
class CircuitOpened(Event):
    """A breaker opened for *open_for* seconds, the *in_a_row*-th time without closing."""

    reason: str
    open_for: float
    in_a_row: int


@dataclass(frozen=True, slots=True)
class CircuitHalfOpened(Event):
    """A breaker lets its first probe through."""


@dataclass(frozen=True, slots=True)
class CircuitClosed(Event):
    """A breaker lets traffic through again."""


@dataclass(frozen=True, slots=True)
class CircuitOverridden(Event):
    """Somebody set a breaker by hand to *mode*, for *seconds* (None: without an end)."""

    mode: str
    seconds: float | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class CircuitResumed(Event):
    """The override of a breaker that was called *mode* ended; its own rules hold again."""

    mode: str


@dataclass(frozen=True, slots=True)
class StorageLost(Event):
    """The storage that mirrors a breaker's state could not be reached; calls go on."""

    error: str


@dataclass(frozen=True, slots=True)
class StorageRestored(Event):
    """The storage that mirrors a breaker's state is up to date again."""


@dataclass(frozen=True, slots=True)
class RetryScheduled(Event):
    """Attempt number *attempt* failed with *error*; the next one follows after *wait* seconds."""

    attempt: int
    wait: float
    error: str


@dataclass(frozen=True, slots=True)
class RetriesExhausted(Event):
    """The call failed for good after *attempts* attempts; *reason* says why there is no further one."""

    attempts: int
    reason: str
    error: str


@dataclass(frozen=True, slots=True)
class BudgetExhausted(Event):
    """A retry was not made because the retry budget *budget* is spent."""

    budget: str


@dataclass(frozen=True, slots=True)
class CallTimedOut(Event):
    """A call was given up after *seconds*; *running* tells whether its thread still works on it."""

    seconds: float
    running: bool


@dataclass(frozen=True, slots=True)
class FallbackUsed(Event):
    """A fallback answered in place of a call that ended in *error*."""

    error: str


@dataclass(frozen=True, slots=True)
class StaleServed(Event):
    """A cache answered with a value *age* seconds old, because loading a new one ended in *error*."""

    age: float
    error: str


@dataclass(frozen=True, slots=True)
class RefreshFailed(Event):
    """A background refresh of a cache ended in *error*; the old value goes on being served."""

    error: str


@dataclass(frozen=True, slots=True)
class MaintenanceSwitched(Event):
    """Maintenance mode was switched *on*, for *seconds* (None: without an end), or off."""

    on: bool
    seconds: float | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class RungChanged(Event):
    """A rate limiter decides on another rung of its ladder from now on; *reason* says why.

    *rung* and *previous* are "shared" (the store that all processes share), "local" (this process's share),
    "allow" or "deny".
    """

    rung: str
    previous: str
    reason: str


@dataclass(frozen=True, slots=True)
class ThrottlingStarted(Event):
    """A throttle refuses calls from now on, at first a share of *probability*.

    Of *attempts* calls in its window *accepts* were accepted.
    """

    probability: float
    attempts: int
    accepts: int


@dataclass(frozen=True, slots=True)
class ThrottlingStopped(Event):
    """A throttle lets every call through again, after it refused *rejected* calls."""

    rejected: int


@dataclass(frozen=True, slots=True)
class ConnectionLeaked(Event):
    """A connection has been lent for *held_for* seconds, which is longer than it should be.

    *where* says where it was borrowed, *stack* by which way, innermost first; *thread* and *task* by whom.
    """

    held_for: float
    where: str
    stack: tuple[str, ...]
    thread: str
    task: str | None


@dataclass(frozen=True, slots=True)
class ConnectionReturnedLate(Event):
    """A connection that was reported as leaked has been returned after all.

    *held_for* seconds after it was borrowed; *where* says where that was.
    """

    held_for: float
    where: str


@dataclass(frozen=True, slots=True)
class ConnectionCollected(Event):
    """A borrower was garbage-collected without returning its connection; the pool has it back.

    *held_for* seconds after it was borrowed. *where* says where that was, *stack* by which way, innermost
    first; *thread* and *task* by whom. *reused* is False where something else still referred to the
    connection, which was closed for that.
    """

    held_for: float
    where: str
    stack: tuple[str, ...]
    thread: str
    task: str | None
    reused: bool


@dataclass(frozen=True, slots=True)
class ConnectionReclaimed(Event):
    """A connection was taken from its borrower after *held_for* seconds, and closed.

    *where* says where it was borrowed, *stack* by which way, innermost first; *thread* and *task* by whom.
    """

    held_for: float
    where: str
    stack: tuple[str, ...]
    thread: str
    task: str | None


@dataclass(frozen=True, slots=True)
class ConnectionDiscarded(Event):
    """A connection was found broken, and closed; *reason* says by what."""

    reason: str


@dataclass(frozen=True, slots=True)
class PoolUnavailable(Event):
    """A pool cannot connect, *failures* times in a row; whoever finds no connection is refused at once."""

    failures: int
    error: str


@dataclass(frozen=True, slots=True)
class PoolAvailable(Event):
    """A pool that could not connect has connected again, after *seconds*."""

    seconds: float


@dataclass(frozen=True, slots=True)
class HealthChanged(Event):
    """The check or policy named *policy* is doing better or worse: *status*, where it was *previous*.

    Both are "pass", "warn", "fail" or "unknown". When a service begins to drain, that is told in its name.
    """

    status: str
    previous: str
    reason: str


Listener: TypeAlias = Callable[[Event], None]


def error_text(exc: BaseException) -> str:
    """Return *exc* as one short line that is safe to keep: no traceback, no line breaks, bounded."""
    try:
        text = f"{type(exc).__name__}: {exc}"
    except Exception:  # noqa: BLE001 - a __str__ of somebody else's that raises must not hide the failure
        text = _type_name(type(exc))
    text = " ".join(text.split())
    if len(text) <= _MAX_TEXT:
        return text
    short, following = text[: _MAX_TEXT - 1], text[_MAX_TEXT - 1]
    before, space, last = short.rpartition(" ")
    if space and following != " " and ":" in last:
        # The beginning of an address, it may be: with half a password, in which nobody would recognise one.
        short = before + space
    return f"{short}…"


def log_fault(message: str, *args: object) -> None:
    """Log that the user's code failed, with the traceback of what is being handled if that can be shown."""
    try:
        _log.exception(message, *args)
    except Exception:  # noqa: BLE001 - an exception that fails when it is printed; the call has its own
        with contextlib.suppress(Exception):
            _log.error(message, *args)


def _type_name(kind: type) -> str:
    # Not `kind.__name__`, which a metaclass may answer, or fail to.
    name: str = type.__dict__["__name__"].__get__(kind)
    return name


class _Subscription:
    """A listener, and whether it has been reported as faulty already."""

    __slots__ = ("faulty", "listener")

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.faulty = False

    def tell(self, event: Event, context: Context) -> None:
        try:
            context.run(self.listener, event)
        # A listener's fault is no fault of the call. Nor is a cancellation, say of a future that it asked.
        except (Exception, asyncio.CancelledError):  # noqa: BLE001
            if not self.faulty:
                self.faulty = True
                log_fault("listener %r failed; it will not be reported again", self.listener)


class Listeners:
    """A set of listeners that can be read while it changes.

    Concurrency: the tuple is replaced, never altered, so telling needs no lock.
    """

    __slots__ = ("_lock", "_subscriptions")

    def __init__(self) -> None:
        self._lock = threading.RLock()  # re-entrant: a signal handler may add a listener
        self._subscriptions: tuple[_Subscription, ...] = ()

    def __bool__(self) -> bool:
        return bool(self._subscriptions)

    def __repr__(self) -> str:
        return repr([subscription.listener for subscription in self._subscriptions])

    def add(self, listener: Listener) -> None:
        if not callable(listener):
            msg = f"listener must be callable, got {listener!r}"
            raise TypeError(msg)
        with self._lock:
            self._subscriptions = (*self._subscriptions, _Subscription(listener))

    def remove(self, listener: Listener) -> None:
        with self._lock:
            kept = list(self._subscriptions)
            for subscription in kept:
                if subscription.listener == listener:
                    kept.remove(subscription)
                    self._subscriptions = tuple(kept)
                    return
        msg = f"{listener!r} is not a listener here"
        raise ValueError(msg)

    def tell(self, event: Event, context: Context) -> None:
        for subscription in self._subscriptions:
            subscription.tell(event, context)

    def after_fork(self) -> None:
        """Free the lock: the thread that had it may not exist in this process."""
        self._lock = threading.RLock()


_everyone = Listeners()


def add_listener(listener: Listener) -> None:
    """Call *listener* with every event of every policy in this process.

    Args:
        listener: called with one `Event`, in a copy of the context where it happened; must not block. Added
            twice, it is called twice.

    Raises:
        TypeError: *listener* cannot be called.

    Concurrency: safe from any thread.
    """
    _everyone.add(listener)


def remove_listener(listener: Listener) -> None:
    """Undo one `add_listener` of the same listener.

    Args:
        listener: the listener to remove.

    Raises:
        ValueError: *listener* is not registered.

    Concurrency: safe from any thread; a delivery that is under way may still reach it.
    """
    _everyone.remove(listener)


class _Turn:
    """The turn to deliver. It belongs to this object: when it dies, the turn is free.

    A lock would stay taken for ever if an interrupt came between taking it and the `try` that gives it back.
    """

    __slots__ = ("__weakref__",)


class Announcer:
    """Delivers one policy's events in the order in which they were posted.

    `post` is one atomic append and may be called under the policy's lock. `deliver` is called after the lock
    is released; whichever thread finds the turn free delivers for all, up to a number: when others post
    faster than the listeners listen, a thread takes over until nothing is pending. A listener that acts on
    the policy posts to the same queue, so its event follows after the listeners of the first one: no
    recursion.
    """

    __slots__ = ("_everyone", "_lock", "_loss_logged", "_pending", "_turn", "dropped", "listeners")

    def __init__(self, *, private: bool = False) -> None:
        self.listeners = Listeners()
        # A policy that is a part of another one speaks through that one, and to nobody else.
        self._everyone = Listeners() if private else _everyone
        self.dropped = 0  # events nobody heard of because listeners were too slow
        self._loss_logged = False
        self._pending: deque[tuple[Event, Context]] = deque(maxlen=_MAX_PENDING)
        self._lock = threading.RLock()
        self._turn: weakref.ref[_Turn] | None = None

    @property
    def heard(self) -> bool:
        """Whether anybody listens: where not, an event need not be made."""
        return bool(self.listeners or self._everyone)

    def post(self, event: Event) -> None:
        if len(self._pending) == _MAX_PENDING:
            self.dropped += 1
        # The context of this call: another one, or a thread, may be the one to deliver.
        self._pending.append((event, copy_context()))

    def deliver(self) -> None:
        if self.dropped and not self._loss_logged:  # not by `post`: it may hold the policy's lock
            self._loss_logged = True
            _log.warning(
                "listeners too slow, the oldest events are dropped: %r, %r",
                self.listeners,
                self._everyone,
            )
        if not self._drain(_FOR_OTHERS):
            self._hand_on()

    def _hand_on(self) -> None:
        """Have the rest delivered elsewhere: the posters have gone, and this call has done its share."""
        try:
            threading.Thread(target=self._drain, name="resilient-events", daemon=True).start()
        except RuntimeError:  # there are no more threads, or the interpreter ends
            self._drain()

    def _drain(self, at_most: float = math.inf) -> bool:
        """Deliver until nothing is pending or somebody else does so; return False after *at_most* events."""
        # The loop looks again after the turn is given up: an event posted between the last look and the
        # release would otherwise lie there until the next one.
        while self._pending and (turn := self._take_turn()) is not None:
            try:
                while self._pending:
                    if at_most <= 0:
                        return False
                    at_most -= 1
                    event, context = self._pending.popleft()
                    self.listeners.tell(event, context)
                    self._everyone.tell(event, context)
            finally:
                self._turn = None
                del turn
        return True

    def announce(self, event: Event) -> None:
        """Post and deliver in one step, for policies that hold no lock."""
        self.post(event)
        self.deliver()

    def after_fork(self) -> None:
        """Free the turn and the locks: the threads that had them may not exist in this process."""
        self._lock = threading.RLock()
        self._turn = None
        self.listeners.after_fork()
        self._everyone.after_fork()

    def _take_turn(self) -> _Turn | None:
        with self._lock:
            if self._turn is not None and self._turn() is not None:
                return None
            turn = _Turn()
            self._turn = weakref.ref(turn)
            return turn
