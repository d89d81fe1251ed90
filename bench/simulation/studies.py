"""What is played: the runs behind the tables and pictures of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from bench.simulation.published import PublishedGradient
from bench.simulation.servers import Backend, SharedProcessors
from bench.simulation.story import Phase, Story, overload, story, ten_minutes
from bench.simulation.trace import Trace
from bench.simulation.world import play
from resilient import AIMD, Gradient, Vegas

BACKEND = Backend(workers=10, service=0.1)
"""The server of most stories: 100 calls a second."""

ADAPTIVE: Mapping[str, type[AIMD | Vegas | Gradient]] = {"AIMD": AIMD, "Vegas": Vegas, "Gradient": Gradient}

CONVERGED = 0.9
"""The share of the best constant limit's goodput that a limit has to reach to be called converged."""


@cache
def ten_minute_runs() -> Mapping[str, Trace]:
    """Return ten minutes with each algorithm, and with two constant limits, of which one is right."""
    told = ten_minutes(BACKEND)
    constant = {"12": 12, "250": 250}
    adaptive = {name: kind() for name, kind in ADAPTIVE.items()}
    return {name: play(told, limit) for name, limit in {**constant, **adaptive}.items()}


@cache
def creep_runs() -> Mapping[str, Trace]:
    """Return ten minutes of overload with Gradient2 as published, and with ours."""
    told = overload(BACKEND)
    return {"as published": play(told, PublishedGradient()), "ours": play(told, Gradient(max_limit=1000))}


@dataclass(frozen=True, slots=True)
class Start:
    """A run from a wrong beginning, at four times the capacity.

    Args:
        name: The algorithm's.
        initial: The limit it begins with.
        best: The goodput of the best constant limit.
    """

    name: str
    initial: int
    best: float
    trace: Trace

    @property
    def converged(self) -> float | None:
        """Seconds until the goodput stays as high as `CONVERGED` asks, over five seconds each time."""
        rows = self.trace.rows
        means = [sum(row.goodput for row in rows[begin : begin + 5]) / 5 for begin in range(len(rows) - 4)]
        low = [begin for begin, mean in enumerate(means) if mean < CONVERGED * self.best]
        if low and low[-1] == len(means) - 1:
            return None
        return rows[low[-1] + 1].at if low else 0.0


WRONG = Backend(workers=20, service=0.1)
"""The server of which the first limit knows nothing."""


@cache
def starts() -> Sequence[Start]:
    """Return runs of which the first limit is ten times too low, or ten times too high."""
    told = overload(WRONG, 30.0)
    best = max(play(told, limit).goodput(0.0, 30.0) for limit in (20, 22, 25, 30, 40))
    found: list[Start] = []
    for name, kind in ADAPTIVE.items():
        for initial in (WRONG.workers // 10, WRONG.workers * 10):
            options: dict[str, Any] = {"initial": initial, "min_limit": 1, "max_limit": 1000}
            found.append(Start(name, initial, best, play(told, kind(**options))))
    return found


@dataclass(frozen=True, slots=True)
class Size:
    """A run with a server of another size, from a limit of 20.

    Args:
        name: The algorithm's.
        settled: Seconds after which the figures are taken.
    """

    name: str
    story: Story
    settled: float
    trace: Trace

    @property
    def share(self) -> float:
        """The goodput as a share of what the server can do."""
        phase = self.story.phases[0]
        return self.trace.goodput(self.settled, phase.seconds) / self.story.backend.capacity

    @property
    def slowdown(self) -> float:
        """What a call takes, in times of its work."""
        rows = self.trace.between(self.settled, self.story.phases[0].seconds)
        rtts = [row.rtt for row in rows if row.rtt is not None]
        return sum(rtts) / len(rtts) / self.story.backend.service


SIZES: Sequence[tuple[Backend, float, float]] = (
    (Backend(2, 0.002), 2.0, 20.0),
    (Backend(20, 0.002), 2.0, 4.0),
    (Backend(2, 0.1), 4.0, 120.0),
    (Backend(20, 0.1), 4.0, 60.0),
    (Backend(200, 0.1), 2.0, 18.0),
    (Backend(2, 2.0), 4.0, 1200.0),
    (Backend(20, 2.0), 4.0, 600.0),
    (Backend(200, 2.0), 2.0, 300.0),
    (Backend(20, 0.1, kind=SharedProcessors), 4.0, 60.0),
)
"""Servers, how many times their capacity is asked of them, and for how long."""


@cache
def size(name: str, number: int) -> Size:
    """Return how the algorithm of that *name* does with the server of that *number* in `SIZES`."""
    backend, load, lasts = SIZES[number]
    told = story(backend, Phase("overload", lasts, load=load))
    return Size(name, told, lasts / 3, play(told, ADAPTIVE[name](), step=lasts / 60))


def sizes(name: str) -> Sequence[Size]:
    """Return how the algorithm of that *name* does with servers of all sizes."""
    return [size(name, number) for number in range(len(SIZES))]
