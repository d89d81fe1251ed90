"""For users' tests: time that stands still until told, waits that take none, events in a list."""

from __future__ import annotations

import dataclasses
import inspect
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, TypeVar

from . import events
from .engine import params
from .engine.clock import pause_waits, resume_waits
from .engine.policy import Policy, policies_of
from .typing import Seconds

__all__ = ["CapturedEvents", "FakeClock", "capture_events", "describe", "no_waiting"]

E = TypeVar("E", bound=events.Event)


class FakeClock:
    """A monotonic clock that moves only when told; for every `clock=` and `sleep=`.

    Args:
        start: its first reading, in seconds; 0 or more.

    Raises:
        TypeError: *start* is no number.
        ValueError: *start* is below 0, or not finite.

    Concurrency: safe from any thread.
    """

    def __init__(self, start: float = 0.0) -> None:
        self._now = params.number("start", start)
        self._lock = threading.RLock()  # re-entrant, for signal handlers
        self.sleeps: list[float] = []
        """The waits so far, in seconds."""

    def __call__(self) -> float:
        """Return the seconds it shows."""
        return self._now

    def advance(self, seconds: Seconds) -> None:
        """Move the clock on.

        Args:
            seconds: by how much; 0 or more.

        Raises:
            ValueError: *seconds* is below 0.
        """
        step = params.seconds("seconds", seconds)
        with self._lock:
            self._now += step

    def sleep(self, seconds: float) -> None:
        """Move the clock on instead of waiting, and note it in `sleeps`; for `sleep=`, of either colour.

        Args:
            seconds: how long the wait would be.
        """
        self.sleeps.append(seconds)
        self.advance(max(0.0, seconds))

    def __repr__(self) -> str:
        return f"<FakeClock {self._now:g}>"


@contextmanager
def no_waiting() -> Generator[None]:
    """Make the waits of every retry take no time, inside the block, in the whole process.

    Attempts, budgets and deadlines stay as they are. Blocks may be nested.
    """
    pause_waits()
    try:
        yield
    finally:
        resume_waits()


class CapturedEvents(list[events.Event]):
    """Events in the order in which they happened.

    Concurrency: grows from any thread; to be read when what it watches has ended.
    """

    def of(self, kind: type[E]) -> list[E]:
        """Return the events of one kind.

        Args:
            kind: the event class.
        """
        return [event for event in self if isinstance(event, kind)]


@contextmanager
def capture_events() -> Generator[CapturedEvents]:
    """Collect every event of every policy that happens inside the block, in any thread.

    Returns:
        A list that fills while the block runs.
    """
    captured = CapturedEvents()
    events.add_listener(captured.append)
    try:
        yield captured
    finally:
        events.remove_listener(captured.append)


def describe(subject: Policy | Callable[..., Any]) -> list[dict[str, object]]:
    """Describe the policies of a pipeline or on a function, to assert how something is put together.

    Args:
        subject: a policy, a pipeline, or a function that is under policies.

    Returns:
        One entry per policy, outermost first, with `kind`, `name`, and its settings.
    """
    layers = subject.layers if isinstance(subject, Policy) else policies_of(subject)
    return [{"kind": layer.kind, "name": layer.name, **_settings(layer)} for layer in layers]


_SETTINGS = ("seconds", "attempts", "wait", "timeout", "rules", "lifetimes", "quotas", "limit", "max_wait")


def _settings(policy: Policy) -> dict[str, object]:
    settings: dict[str, object] = {}
    for name in _SETTINGS:
        value = getattr(policy, name, None)
        if value is not None and not inspect.ismethod(value):
            settings.update(_fields(value) if dataclasses.is_dataclass(value) else {name: value})
    return settings


def _fields(value: Any) -> dict[str, object]:
    # Not `asdict`, which copies: a setting may be a function's object that cannot be copied.
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
