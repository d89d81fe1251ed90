"""How long calls take: distributions of durations in fixed memory, and when to time a call at all.

Two readings of the clock cost as much as the rest of a call that succeeds at once. So calls are timed while
there are so few that it does not matter, which is nearly always. Of more of them, one batch is timed after
another, with rests in between: the distribution is that of a sample.
"""

from __future__ import annotations

import math
import threading
from array import array
from bisect import bisect_left, bisect_right
from collections import deque
from itertools import accumulate, compress, repeat, starmap
from itertools import count as numbers
from operator import add, sub
from typing import TYPE_CHECKING, Any, Final

from . import params
from .clock import MONOTONIC
from .fork import renew_after_fork

if TYPE_CHECKING:
    from ..typing import Clock

__all__ = ["BATCH", "EDGES", "IDLE", "Histogram", "Latency", "Recorder", "Stopwatch"]

_MANTISSAS: Final = (
    "1", "1.15", "1.3", "1.5", "1.75", "2", "2.25", "2.5", "2.75", "3", "3.5", "4", "4.5", "5", "5.5", "6",
    "6.5", "7", "7.5", "8", "9",
)  # fmt: skip
EDGES: Final = tuple(float(f"{m}e{e}") for e in range(-5, 3) for m in _MANTISSAS)
"""The upper bounds of the bins, in seconds: from 10 us to a quarter of an hour, 21 a decade.

All bounds that metrics have are among them, so that bins can be put together exactly.
"""

BATCH: Final = 100
"""How many durations may be pending."""
_LONGEST_REST: Final = 1.0  # seconds: after a burst, each batch of it would add to the rest
_SLICE: Final = 0.04  # seconds that a batch should last, or there is a rest for what is left of it
_RECENTLY: Final = 60.0
_BINS: Final = len(EDGES) + 1


class Latency:
    """How long something took lately: in the last one to two minutes, or since it was last asked before.

    Of more than some 2500 calls a second, that of a sample. Worked out when it is looked at: asking a policy
    for all that it has counted stays cheap.

    Args:
        *parts: of each part, what there is now, and what there was a while ago.

    Concurrency: as of one moment; immutable.
    """

    __slots__ = ("_parts", "_recent")

    def __init__(self, *parts: tuple[Histogram, Histogram]) -> None:
        self._parts = parts
        self._recent: Histogram | None = None

    @property
    def histogram(self) -> Histogram:
        """The whole distribution, to be put together with others."""
        if self._recent is None:
            self._recent = sum((now - before for now, before in self._parts), _EMPTY)
        return self._recent

    @property
    def count(self) -> int:
        """How often it was timed."""
        return self.histogram.count

    @property
    def mean(self) -> float | None:
        """Seconds; None where *count* is 0. So are all that follow."""
        return self.histogram.total / self.count if self.count else None

    @property
    def p50(self) -> float | None:
        """Seconds that half of them took at most, to within its bin: 17 % at most."""
        return self.histogram.quantile(0.5)

    @property
    def p95(self) -> float | None:
        """Seconds that 95 % of them took at most, to within its bin: 17 % at most."""
        return self.histogram.quantile(0.95)

    @property
    def p99(self) -> float | None:
        """Seconds that 99 % of them took at most, to within its bin: 17 % at most."""
        return self.histogram.quantile(0.99)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Latency) and self.histogram == other.histogram

    def __hash__(self) -> int:
        return hash(self.histogram)

    def __repr__(self) -> str:
        figures = (
            f"{name}={getattr(self, name):.3g}" for name in ("mean", "p50", "p95", "p99") if self.count
        )
        return f"Latency({', '.join((f'count={self.count}', *figures))})"


class Histogram:
    """How durations are distributed: how many fell into each bin, their sum, the shortest and the longest.

    Args:
        bins: how many fell into each bin; those of `Recorder.histogram`.
        count: how many there are.
        total: their sum, in seconds.
        shortest: the shortest, in seconds; infinite where there are none.
        longest: the longest, in seconds; minus infinity where there are none.

    Concurrency: immutable.

    Source: HdrHistogram's linear bins within each order of magnitude.
    """

    __slots__ = ("bins", "count", "longest", "shortest", "total")

    def __init__(self, bins: array[int], count: int, total: float, shortest: float, longest: float) -> None:
        self.bins = bins
        self.count = count
        self.total = total
        self.shortest = shortest
        self.longest = longest

    def __add__(self, other: Histogram) -> Histogram:
        """Put two of them together."""
        if not other.count:
            return self
        if not self.count:
            return other
        bins = array("Q", self.bins)
        some = other._filled
        bins[some] = array("Q", map(add, bins[some], other.bins[some]))
        return Histogram(
            bins,
            self.count + other.count,
            self.total + other.total,
            min(self.shortest, other.shortest),
            max(self.longest, other.longest),
        )

    def __sub__(self, earlier: Histogram) -> Histogram:
        """Return what has come since *earlier*; its shortest and longest are as exact as the bins."""
        if not earlier.count:
            return self
        count, total = self.count - earlier.count, max(0.0, self.total - earlier.total)
        if not count:
            return _EMPTY
        bins = array("Q", self.bins)
        some = self._filled
        bins[some] = new = array("Q", map(sub, bins[some], earlier.bins[some]))
        first = next(compress(numbers(some.start), new))
        last = next(compress(numbers(some.stop - 1, -1), reversed(new)))
        shortest = max(self.shortest, math.nextafter(EDGES[first - 1], math.inf)) if first else self.shortest
        longest = min(self.longest, EDGES[last]) if last < len(EDGES) else self.longest
        if count == 1:  # the sum tells which; but for rounding, which must not put it into another bin
            shortest = longest = min(max(total, shortest), longest)
        return Histogram(bins, count, total, shortest, longest)

    @property
    def _filled(self) -> slice:
        """Those bins outside of which there is nothing: the others need not be looked at."""
        return slice(bisect_left(EDGES, self.shortest), bisect_left(EDGES, self.longest) + 1)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Histogram) and self._facts == other._facts

    def __hash__(self) -> int:
        return hash(self._facts)

    @property
    def _facts(self) -> tuple[object, ...]:
        return self.count, self.total, self.shortest, self.longest, tuple(self.bins)

    def quantile(self, share: float) -> float | None:
        """Return the seconds that a share of the durations took at most.

        Args:
            share: how large a share, 0 to 1.

        Returns:
            Seconds, within the bin that they fall into; None where there are none.
        """
        if not self.count:
            return None
        rank = max(1, math.ceil(share * self.count))
        number = bisect_left(list(accumulate(self.bins)), rank)
        below = sum(self.bins[:number])
        low = EDGES[number - 1] if number else 0.0
        high = EDGES[number] if number < len(EDGES) else max(low, self.longest)
        value = low + (high - low) * (rank - below - 0.5) / self.bins[number]
        return min(max(value, self.shortest), self.longest)


class Recorder:
    """Gathers durations: appended by anybody with `add`, in one atomic step, and put into bins later.

    Args:
        clock: a monotonic clock, in seconds.

    Raises:
        TypeError: *clock* cannot be called.

    Attributes:
        add: takes one duration, in seconds. Whoever uses it sees to it that `fold` is called, too.
        pending: those that are not in their bins yet.

    Concurrency: safe from any thread.
    """

    __slots__ = ("__weakref__", "_clock", "_everything", "_folding", "_lock", "_marks", "add", "pending")

    _folding: bool

    def __init__(self, clock: Clock = MONOTONIC) -> None:
        self._clock = params.callback("clock", clock)
        self.pending: deque[float] = deque()
        self.add = self.pending.append
        self._everything = _EMPTY
        # What there was when, a minute apart or more: for what happened lately.
        self._marks: deque[tuple[float, Histogram]] = deque([(clock(), _EMPTY)], maxlen=2)
        self.after_fork()
        renew_after_fork(self)

    def record(self, seconds: float) -> None:
        """Record one duration.

        Args:
            seconds: what it took. What is negative, infinite or no number is left out.
        """
        self.add(seconds)
        if len(self.pending) >= BATCH:
            self.fold()

    def fold(self) -> None:
        """Put into bins what is pending, unless somebody is doing so."""
        # Nobody waits for that. It may be this very thread, which a signal handler has interrupted; or one
        # whose handler waits for what only those can give who would wait here.
        if self._folding:
            return
        lock: Any = self._lock
        try:
            if lock.acquire(blocking=False):
                self._folding = True
                self._put_into_bins()
                now = self._clock()
                if now - self._marks[-1][0] >= _RECENTLY:
                    self._marks.append((now, self._everything))
        finally:
            # Asked and not remembered: an interrupt may come before there is something to remember it by.
            if lock._is_owned():  # noqa: SLF001 - as threading.Condition does
                self._folding = False
                lock.release()

    def histogram(self) -> Histogram:
        """Return all that was recorded since the start."""
        if self.pending:
            self.fold()
        return self._everything

    def span(self) -> tuple[Histogram, Histogram]:
        """Return what there is now, and what there was a minute or two ago or when it was last looked at."""
        if self.pending or self._everything is not _EMPTY:
            self.fold()
        return self._everything, self._marks[0][1]

    def lately(self) -> Latency:
        """Return what was recorded in the last one to two minutes."""
        return Latency(self.span())

    def _put_into_bins(self) -> None:
        # No more than there are now: others go on appending.
        taken = [*starmap(self.pending.popleft, repeat((), len(self.pending)))]
        if not taken:
            return
        batch, total = sorted(taken), sum(taken)
        if not (batch and batch[0] >= 0.0 and total < math.inf):
            # A clock that was set back, or makes no sense, must not spoil the rest.
            batch = sorted(seconds for seconds in taken if 0.0 <= seconds < math.inf)
            total = sum(batch)
        if not batch:
            return
        before = self._everything
        bins = before.bins[:]
        _count(batch, bins)
        # As a whole: an interrupt before this loses the batch, and nothing disagrees with anything.
        self._everything = Histogram(
            bins,
            before.count + len(batch),
            before.total + total,
            min(before.shortest, batch[0]),
            max(before.longest, batch[-1]),
        )

    def after_fork(self) -> None:
        """Free the lock: the thread that had it may not exist in this process."""
        self._lock = threading.RLock()
        self._folding = False


class Stopwatch:
    """Tells which calls to time, and gathers what they took.

    Whether a call is timed is decided when it begins, and what was begun is recorded however long it takes:
    of a burst, the slow ones count as well as the quick ones.

    Attributes:
        good: of calls that came to something.
        bad: of calls that failed.
        resumes: calls that begin before this need not be timed: a rest lasts until then.

    Concurrency: safe from any thread; `resumes` is read without a lock.
    """

    __slots__ = ("_begun", "bad", "good", "resumes")

    def __init__(self, clock: Clock) -> None:
        self.good, self.bad = Recorder(clock), Recorder(clock)
        self._begun = clock()  # when this batch began
        self.resumes = -math.inf

    def rest(self, now: float) -> None:
        """Put the batch into bins; time nothing for a while if it came too quickly."""
        self.good.fold()
        over = self._begun + _SLICE
        if now < over:
            self.resumes = self._begun = min(over, now + _LONGEST_REST)
        else:
            self._begun = now

    def lately(self) -> Latency:
        """Return what calls took lately, whether they came to something or not."""
        return Latency(self.good.span(), self.bad.span())


_EMPTY: Final = Histogram(array("Q", bytes(8 * _BINS)), 0, 0.0, math.inf, -math.inf)


def _count(batch: list[float], bins: array[int]) -> None:
    """Add each of *batch*, which is in order, to its bin: a step for each bin, not for each duration."""
    first, end = 0, len(batch)
    while first < end:
        number = bisect_left(EDGES, batch[first])
        after = bisect_right(batch, EDGES[number], first) if number < len(EDGES) else end
        bins[number] += after - first
        first = after


IDLE: Final = Stopwatch(lambda: 0.0)
"""Times nothing, ever: for limits that are made for one block, or one request, and forgotten."""
IDLE.resumes = math.inf
