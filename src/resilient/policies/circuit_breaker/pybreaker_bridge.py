"""What pybreaker promises to its users, kept by this breaker: listeners, state objects, storages."""

from __future__ import annotations

import copy
import logging
import math
import sys
import threading
import time
import weakref
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import pybreaker

from ...engine.fork import renew_after_fork
from ...engine.policy import callee_of
from ...engine.workers import Job, Stage, Workers
from ...events import (
    CircuitClosed,
    CircuitHalfOpened,
    CircuitOpened,
    CircuitOverridden,
    Event,
    StorageLost,
    StorageRestored,
    error_text,
    log_fault,
)
from .states import Mode, State

if TYPE_CHECKING:
    from .core import BreakerCore

__all__ = ["Bridge", "StorageMirror", "state_object"]

_log = logging.getLogger("resilient")

_STATE_CLASSES: Final[dict[State, type[pybreaker.CircuitBreakerState]]] = {
    State.CLOSED: pybreaker.CircuitClosedState,
    State.OPEN: pybreaker.CircuitOpenState,
    State.HALF_OPEN: pybreaker.CircuitHalfOpenState,
}

_RETRY_SECONDS: Final = 1.0


def state_object(breaker: pybreaker.CircuitBreaker, state: State) -> pybreaker.CircuitBreakerState:
    """Return pybreaker's object for *state*, without the side effects of making one pybreaker's way."""
    cls = _STATE_CLASSES[state]
    made = cls.__new__(cls)
    pybreaker.CircuitBreakerState.__init__(made, breaker, state.value)
    return made


def state_after(event: Event) -> State | None:
    """Return the state that *event* leads to, if it tells of one."""
    if isinstance(event, CircuitOverridden):
        return State.OPEN if event.mode == Mode.FORCED_OPEN else None
    return _STATE_OF_EVENT.get(type(event))


_STATE_OF_EVENT: Final[dict[type[Event], State]] = {
    CircuitOpened: State.OPEN,
    CircuitHalfOpened: State.HALF_OPEN,
    CircuitClosed: State.CLOSED,
}


class Bridge:
    """Calls pybreaker listeners: for every call, and for every change of state.

    They run after the change is committed and outside the lock; one that raises is logged once.
    """

    def __init__(self, breaker: pybreaker.CircuitBreaker, core: BreakerCore) -> None:
        self._breaker = breaker
        self._core = core
        self._previous = State.CLOSED
        self._faulty: set[int] = set()
        self.listeners: tuple[pybreaker.CircuitBreakerListener, ...] = ()

    def add(self, listener: pybreaker.CircuitBreakerListener) -> None:
        """Call *listener* from now on."""
        self.listeners = (*self.listeners, listener)
        self._core.watch(self)

    def remove(self, listener: pybreaker.CircuitBreakerListener) -> None:
        """Undo one `add`."""
        kept = list(self.listeners)
        kept.remove(listener)
        self.listeners = tuple(kept)
        self._core.watch(self if kept else None)

    def before_call(self, fn: Callable[..., Any], args: Any, kwargs: Any) -> None:
        """Tell of a call that was admitted."""
        fn, args = callee_of(fn, args)
        self._each(lambda listener, breaker: listener.before_call(breaker, fn, *args, **kwargs))

    def success(self) -> None:
        """Tell of a call that succeeded."""
        self._each(lambda listener, breaker: listener.success(breaker))

    def failure(self, exc: Exception) -> None:
        """Tell of a call that failed."""
        self._each(lambda listener, breaker: listener.failure(breaker, exc))

    def on_event(self, event: Event) -> None:
        """Turn an event of ours into pybreaker's `state_change`."""
        after = state_after(event)
        if after is None:
            return
        before, self._previous = self._previous, after
        old, new = state_object(self._breaker, before), state_object(self._breaker, after)
        self._each(lambda listener, cb: listener.state_change(cb, old, new))

    def _each(self, tell: Callable[[pybreaker.CircuitBreakerListener, Any], object]) -> None:
        for listener in self.listeners:
            try:
                tell(listener, self._breaker)
            except Exception:  # noqa: BLE001 - a listener's fault is no fault of the call
                if id(listener) not in self._faulty:
                    self._faulty.add(id(listener))
                    log_fault("listener %r failed; it will not be reported again", listener)


class StorageMirror:
    """Copies state, counters and opening time into a pybreaker storage.

    A storage in memory is written at once. Any other is written by a thread of its own, the latest state
    only, again and again until it succeeds: the guarded calls never wait for it and never see it fail.

    Concurrency: one thread at a time talks to the storage; whoever comes meanwhile leaves a mark.
    """

    _busy: bool
    _dirty: bool

    def __init__(self, core: BreakerCore, storage: pybreaker.CircuitBreakerStorage) -> None:
        self._core = weakref.ref(core)
        self._storage = _audible(storage)
        self._inline = isinstance(storage, pybreaker.CircuitMemoryStorage)
        self._workers = Workers(1, f"resilient-mirror-{core.name}")
        self._overdue: set[Job] = set()
        self._step: Callable[[BreakerCore], None] = self._adopt
        self._published: object = None
        self._mirrored: dict[str, int] = {}
        self._lost = False
        self.after_fork()
        renew_after_fork(self)

    def start(self) -> None:
        """Begin in the state that the storage remembers: a restart does not close a circuit."""
        self.publish()

    def publish(self) -> None:
        """Copy what the breaker has become, soon."""
        core = self._core()
        if core is None:
            return
        with self._lock:
            outline = core.outline
            if outline == self._published:
                return
            self._published = outline
            self._dirty = True
            if self._busy:
                return
            self._busy = True
        if self._inline:
            self._work()
        else:
            self._submit(core)

    def _submit(self, core: BreakerCore) -> None:
        job = Job(self._work, self._overdue)
        try:
            self._workers.submit(job)
        except RuntimeError as exc:  # no thread to be had, or the interpreter is on its way out
            self._busy = False
            self._lose(core, exc)
        except BaseException:
            if job.withdraw() is not Stage.RUNNING:
                self._published = None  # the next change tries again
                self._busy = False
            raise

    def _work(self) -> None:
        try:
            while self._claim() and (core := self._core()) is not None:
                done = self._attempt(core)
                if not done and self._inline:
                    self._published = None  # the next change tries again
                    continue
                if not done:
                    self._dirty = True
                    del core  # a breaker that nobody uses any more must be able to go while we wait
                    time.sleep(_RETRY_SECONDS)
        except BaseException:
            self._busy = False
            raise

    def _claim(self) -> bool:
        with self._lock:
            self._busy = self._dirty
            self._dirty = False
            return self._busy

    def _attempt(self, core: BreakerCore) -> bool:
        try:
            self._step(core)
        except Exception as exc:  # noqa: BLE001 - whatever a storage raises, calls go on
            self._mirrored.clear()  # how far the counters got, nobody knows
            self._lose(core, exc)
            return False
        self._step = self._write
        if self._lost:
            self._lost = False
            core.announcer.announce(StorageRestored(core.name))
        return True

    def _lose(self, core: BreakerCore, exc: Exception) -> None:
        if self._lost:
            return
        self._lost = True
        _log.warning("the state storage of circuit %r is away: %s", core.name, error_text(exc))
        core.announcer.announce(StorageLost(core.name, error_text(exc)))

    def _adopt(self, core: BreakerCore) -> None:
        remembered, elapsed = State(_state_in(self._storage)), None
        if remembered is State.OPEN and (opened_at := self._storage.opened_at) is not None:
            elapsed = (datetime.now(UTC) - opened_at).total_seconds()
        if not core.adopt(remembered, elapsed):
            self._dirty = True  # the storage has to follow instead

    def _write(self, core: BreakerCore) -> None:
        storage, (period, failures, successes) = self._storage, core.outline
        if period.state is State.OPEN:
            storage.opened_at = datetime.now(UTC) - timedelta(seconds=core.stats().opened_for)
        storage.state = period.state.value
        self._copy("failures", failures, storage.reset_counter, storage.increment_counter)
        self._copy("successes", successes, storage.reset_success_counter, storage.increment_success_counter)

    def _copy(
        self, counter: str, value: int, reset: Callable[[], None], increment: Callable[[], None]
    ) -> None:
        mirrored = self._mirrored.get(counter, math.inf)
        if value < mirrored:
            reset()
            mirrored = 0
        for _ in range(value - int(mirrored)):
            increment()
        self._mirrored[counter] = value

    def after_fork(self) -> None:
        """Begin afresh in a forked child: the thread that was at work is the parent's."""
        self._lock = threading.RLock()
        self._busy = self._dirty = False
        self._published = None


class _Raiser(logging.Logger):
    """Stands in for the logger of pybreaker's Redis storage, which logs every error and swallows it."""

    def exception(self, msg: object, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Raise what was to be logged."""
        if (error := sys.exception()) is not None:
            raise error


def _audible(storage: pybreaker.CircuitBreakerStorage) -> pybreaker.CircuitBreakerStorage:
    """Return *storage* so that its errors can be heard: a Redis storage as a copy on the same client."""
    if not isinstance(storage, pybreaker.CircuitRedisStorage):
        return storage
    audible = copy.copy(storage)
    audible.logger = _Raiser("resilient")
    return audible


def _state_in(storage: pybreaker.CircuitBreakerStorage) -> str:
    try:
        return storage.state
    except AttributeError as exc:
        # pybreaker's Redis storage decodes what a client made with decode_responses=True has decoded already.
        if exc.name == "decode" and isinstance(exc.obj, str):
            return exc.obj
        raise
