"""Rounds: what was seen since the limit was changed, as soon as that tells what the change has done."""

from __future__ import annotations

from .limits import Window

__all__ = ["Round"]


class Round:
    """Joins the windows after a change of the limit, without those in which it does not show yet.

    Calls that end just after the change were begun before it. And where only those count that were begun
    since, the short ones end first. So there is a wait, in times of what calls take. Without it, where a call
    takes twenty windows the limit would be lowered twenty times for one and the same queue.

    Args:
        now: when the limit was changed.
        wait: how long it takes to settle, in times of what calls take.
        rtt: what they took before, in seconds, as long as none has ended.
        least: how long it takes at least, in seconds. Where only those count that were begun since, what
            the first to end have taken is too little to go by.

    Concurrency: requires external locking.
    """

    __slots__ = ("_changed", "_last", "_least", "_rtt", "_seen", "_settled", "_wait")

    def __init__(self, now: float, wait: float, rtt: float = 0.0, least: float = 0.0) -> None:
        self._least = least
        self._changed = self._last = now
        self._settled: float | None = None
        self._seen = Window.empty()
        self._wait = wait
        self._rtt = rtt

    def add(self, window: Window, now: float) -> Window | None:
        """Take in *window*, which ends at *now*; return what was seen, once it has settled."""
        if window.samples and not self._seen.samples:
            self._changed = self._last  # while none ended, those in flight were begun at the old limit
        middle, self._last = (self._last + now) / 2.0, now
        self._seen = self._seen.joined(window)
        if not self._seen.samples and not self._seen.dropped:
            return None
        if self._settled is None:
            if middle - self._changed < max(self._wait * (self._seen.rtt or self._rtt), self._least):
                return None
            self._settled = middle
            self._seen = window
        return self._seen

    def length(self, now: float) -> float:
        """Return the seconds since it has settled."""
        return 0.0 if self._settled is None else now - self._settled
