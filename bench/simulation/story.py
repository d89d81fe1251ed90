"""What happens to the traffic and to the server, phase by phase."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench.simulation.servers import Backend

PATIENCE = 20.0
"""How long callers wait for an answer, in times of a call's work."""


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of time in which the circumstances do not change.

    Args:
        name: What is told of it.
        seconds: How long it takes.
        load: Calls that arrive, as a share of what the server can finish when it is well, and none was added.
        slower: What the time of each call's work is multiplied by.
        wire: Seconds added to the way of each call.
        lost: The share of calls that are never answered, and so end as their callers lose patience.
        failing: The share of calls that fail at once, with an error that tells nothing of overload.
        hung: Whether nothing gets finished.
        more: Workers that are there from now on, beside those before.
    """

    name: str
    seconds: float
    load: float = 0.5
    slower: float = 1.0
    wire: float = 0.0
    lost: float = 0.0
    failing: float = 0.0
    hung: bool = False
    more: int = 0

    def possible(self, backend: Backend, arrived: int) -> float:
        """Return how many calls can be answered well in a second, of *arrived* in the whole phase."""
        if self.hung:
            return 0.0
        answerable = arrived / self.seconds * (1.0 - self.lost) * (1.0 - self.failing)
        return min(answerable, backend.capacity / self.slower)


@dataclass(frozen=True, slots=True)
class Story:
    """A server, its callers, and what befalls them.

    Args:
        backend: The server.
        phases: What happens, in that order.
        patience: Seconds after which a caller leaves, and the call counts as timed out.
    """

    backend: Backend
    phases: Sequence[Phase]
    patience: float

    def scaled(self, share: float) -> Story:
        """Return the same story in *share* of the time."""
        return replace(self, phases=[replace(phase, seconds=phase.seconds * share) for phase in self.phases])


def story(backend: Backend, *phases: Phase, patience: float | None = None) -> Story:
    """Return a story; *patience* is `PATIENCE` times the work of an average call where it is None."""
    return Story(backend, phases, PATIENCE * backend.work if patience is None else patience)


def ten_minutes(backend: Backend) -> Story:
    """Return everything that can happen to a service, in ten minutes."""
    return story(
        backend,
        Phase("calm", 60.0),
        Phase("overload x4", 90.0, load=4.0),
        Phase("calm again", 30.0),
        Phase("work takes x3", 90.0, slower=3.0),
        Phase("and is back", 40.0, load=0.9),
        Phase("a tenth is lost", 40.0, lost=0.1),
        Phase("a third fails", 30.0, failing=0.3),
        Phase("overload x1.5", 60.0, load=1.5),
        Phase("hang", 20.0, hung=True),
        Phase("after the hang", 40.0, load=0.9),
        Phase("idle", 60.0, load=0.0),
        Phase("recovery", 40.0, load=0.9),
    )


def overload(backend: Backend, seconds: float = 600.0, load: float = 4.0) -> Story:
    """Return one overload that does not end."""
    return story(backend, Phase(f"overload x{load:g}", seconds, load=load))


def steps(backend: Backend, wire: float) -> Story:
    """Return a full load under which the way there becomes longer, for good, and short again."""
    return story(
        backend,
        Phase("near", 60.0, load=1.2),
        Phase("far", 120.0, load=1.2, wire=wire),
        Phase("near again", 60.0, load=1.2),
    )


def scaled_up(backend: Backend, times: int) -> Story:
    """Return an overload until there are so many *times* the workers."""
    load = 1.2 * times
    more = (times - 1) * backend.workers
    return story(backend, Phase("overload", 60.0, load=load), Phase("scaled up", 60.0, load=load, more=more))


def application_limited(backend: Backend, seconds: float = 300.0) -> Story:
    """Return a load that never needs more than a few calls at once."""
    return story(backend, Phase("little to do", seconds, load=0.1))
