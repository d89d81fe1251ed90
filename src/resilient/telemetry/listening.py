"""What tells of events: it listens to every policy of this process, from one call to another."""

from __future__ import annotations

import threading
from abc import ABCMeta, abstractmethod

from ..engine.fork import renew_after_fork
from ..events import Event, add_listener, remove_listener

__all__ = ["Listening"]


class Listening(metaclass=ABCMeta):
    """Base of what is told of all events.

    Concurrency: safe from any thread.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._started = False
        renew_after_fork(self)

    def start(self) -> None:
        """Listen to every policy of this process from now on."""
        with self._lock:
            if not self._started:
                add_listener(self._hear)
                self._started = True

    def stop(self) -> None:
        """Listen no more."""
        with self._lock:
            if self._started:
                self._started = False
                remove_listener(self._hear)

    def after_fork(self) -> None:
        """Begin with a free lock in a forked child."""
        self._lock = threading.RLock()

    @abstractmethod
    def _hear(self, event: Event) -> None:
        """Be told of *event*."""
