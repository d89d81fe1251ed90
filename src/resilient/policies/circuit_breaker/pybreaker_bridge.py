"""What pybreaker promises to its users, kept by this breaker: listeners, state objects, storages."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import pybreaker

from ...engine.workers import Job, Workers
from ...events import (
    CircuitClosed,
    CircuitHalfOpened,
    CircuitOpened,
    CircuitOverridden,
    Event,
    StorageLost,
    StorageRestored,
    error_text,
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
        # Weak, or breaker and core would keep each other alive until the garbage collector comes.
        self._breaker = weakref.ref(breaker)
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
        breaker = self._breaker()
        if after is None or breaker is None:
            return
        before, self._previous = self._previous, after
        old, new = state_object(breaker, before), state_object(breaker, after)
        self._each(lambda listener, cb: listener.state_change(cb, old, new))

    def _each(self, tell: Callable[[pybreaker.CircuitBreakerListener, Any], object]) -> None:
        breaker = self._breaker()
        for listener in self.listeners:
            try:
                tell(listener, breaker)
            except Exception:  # noqa: BLE001 - a listener's fault is no fault of the call
                if id(listener) not in self._faulty:
                    self._faulty.add(id(listener))
                    _log.exception("listener %r failed; it will not be reported again", listener)


class StorageMirror:
    """Copies state, failure counter and opening time into a pybreaker storage.

    A storage in memory is written at once. Any other is written by a thread of its own, the latest state
    only, again and again until it succeeds: the guarded calls never wait for it and never see it fail.
    """

    def __init__(self, core: BreakerCore, storage: pybreaker.CircuitBreakerStorage) -> None:
        self._core = weakref.ref(core)
        self._storage = storage
        self._inline = isinstance(storage, pybreaker.CircuitMemoryStorage)
        self._workers = Workers(1, f"resilient-mirror-{core.name}")
        self._overdue: set[Job] = set()
        self._lock = threading.Lock()
        self._busy = self._dirty = self._lost = False
        self._pause = threading.Event()
        self._mirrored_counter = 0
        self._run(self._adopt)

    def publish(self) -> None:
        """Copy what the breaker has become, soon."""
        self._run(self._write)

    def _run(self, step: Callable[[BreakerCore], None]) -> None:
        if self._inline:
            core = self._core()
            if core is not None:
                step(core)
            return
        with self._lock:
            self._dirty = True
            if self._busy:
                return
            self._busy = True
        self._workers.submit(Job(lambda: self._work(step), self._overdue))

    def _work(self, step: Callable[[BreakerCore], None]) -> None:
        while True:
            with self._lock:
                if not self._dirty:
                    self._busy = False
                    return
                self._dirty = False
            core = self._core()
            if core is None:
                return
            done = self._attempt(step, core)
            step = self._write
            if not done:
                del core  # a breaker that nobody uses any more must be able to go while we wait
                self._pause.wait(_RETRY_SECONDS)
                with self._lock:
                    self._dirty = True

    def _attempt(self, step: Callable[[BreakerCore], None], core: BreakerCore) -> bool:
        try:
            step(core)
        except Exception as exc:  # noqa: BLE001 - whatever a storage raises, calls go on
            if not self._lost:
                self._lost = True
                _log.warning("the state storage of circuit %r is away: %s", core.name, error_text(exc))
                core.announcer.announce(StorageLost(core.name, error_text(exc)))
            return False
        if self._lost:
            self._lost = False
            core.announcer.announce(StorageRestored(core.name))
        return True

    def _adopt(self, core: BreakerCore) -> None:
        """Begin in the state that the storage remembers: a restart does not close a circuit."""
        remembered = self._stored_state()
        if remembered == State.OPEN:
            opened_at = self._storage.opened_at
            elapsed = timedelta() if opened_at is None else datetime.now(UTC) - opened_at
            core.adopt_open(elapsed.total_seconds())
        elif remembered == State.HALF_OPEN:
            core.half_open()

    def _write(self, core: BreakerCore) -> None:
        storage, state = self._storage, core.state
        if state is State.OPEN and self._stored_state() != State.OPEN:
            storage.opened_at = datetime.now(UTC)
        storage.state = state.value
        self._write_counters(storage, core)
        stored = self._stored_state()
        if stored is not None and stored != state:
            # pybreaker's Redis storage logs its errors and swallows them; reading back is how to notice.
            msg = f"wrote {state.value!r}, read back {stored!r}"
            raise ConnectionError(msg)

    def _write_counters(self, storage: pybreaker.CircuitBreakerStorage, core: BreakerCore) -> None:
        failures = core.consecutive
        if failures < self._mirrored_counter or not failures:
            storage.reset_counter()
            self._mirrored_counter = 0
        for _ in range(failures - self._mirrored_counter):
            storage.increment_counter()
        self._mirrored_counter = failures

    def _stored_state(self) -> str | None:
        try:
            return self._storage.state
        except AttributeError:
            # pybreaker's Redis storage cannot read through a client made with decode_responses=True;
            # what it writes through one is right.
            return None
