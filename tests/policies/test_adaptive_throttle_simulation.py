"""A throttle in a closed loop with a backend that accepts so much and no more, minute by minute."""

from __future__ import annotations

import contextlib
import random
from dataclasses import dataclass, field

import pytest

from resilient import AdaptiveThrottle, ThrottledError
from resilient.testing import FakeClock

CAPACITY = 10  # calls a second that the backend accepts
OFFERED = 10 * CAPACITY
MINUTE = 60


class OverloadError(Exception):
    """The backend has accepted all that it can in this second."""


@dataclass
class World:
    """Clients that ask for the same every second, behind one throttle; and what came of it, by second."""

    k: float = 2.0
    max_rejection: float = 0.9
    capacity: int = CAPACITY
    sent: list[int] = field(default_factory=list)
    served: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clock = FakeClock()
        self.throttle = AdaptiveThrottle(
            "backend",
            k=self.k,
            max_rejection=self.max_rejection,
            clock=self.clock,
            random=random.Random(21).random,
        )

    def run(self, seconds: int, offered: int = OFFERED) -> None:
        """Let time pass."""
        for _ in range(seconds):
            self.sent.append(0)
            self.served.append(0)
            for _ in range(offered):
                self._ask()
            self.clock.advance(1.0)

    def _ask(self) -> None:
        with contextlib.suppress(ThrottledError, OverloadError):
            self.throttle.call(self._backend)

    def _backend(self) -> None:
        self.sent[-1] += 1
        if self.served[-1] >= self.capacity:
            raise OverloadError
        self.served[-1] += 1


def mean(counts: list[int]) -> float:
    return sum(counts) / len(counts)


@pytest.mark.parametrize("k", [1.0, 1.5, 2.0, 3.0])
def test_backend_sees_k_times_what_it_accepts(k: float) -> None:
    """Of ten times its capacity, after a window; and it is kept as busy as it can be."""
    world = World(k=k)

    world.run(4 * MINUTE)

    trickle = OFFERED * (1.0 - 0.9)
    steady = slice(2 * MINUTE, None)
    assert mean(world.sent[steady]) == pytest.approx(max(k * CAPACITY, trickle), rel=0.1)
    assert mean(world.served[steady]) > CAPACITY * (0.97 if k > 1.0 else 0.85)


def test_backend_that_suffices_is_left_alone() -> None:
    """Neither at its capacity nor at twice of it, where every other call fails, is anything refused."""
    world = World(k=2.0)

    world.run(4 * MINUTE, offered=CAPACITY)
    world.run(4 * MINUTE, offered=2 * CAPACITY)

    assert world.throttle.stats().rejected == 0


def test_dead_backend_sees_a_trickle() -> None:
    """A tenth of what is offered, for as long as it takes."""
    world = World(capacity=0)

    world.run(10 * MINUTE)

    assert mean(world.sent[MINUTE:]) == pytest.approx(OFFERED * 0.1, rel=0.05)


@pytest.mark.parametrize(("outage", "at_first"), [(MINUTE, 0.9), (10 * MINUTE, 0.1)])
def test_backend_that_is_back_has_all_its_traffic_within_two_windows(outage: int, at_first: float) -> None:
    """However long it was away; and after a long time traffic grows step by step, with no thundering herd."""
    world = World(capacity=10 * OFFERED)
    world.run(2 * MINUTE)
    world.capacity = 0
    world.run(outage)
    world.capacity = 10 * OFFERED

    world.run(4 * MINUTE)

    back = world.sent[-4 * MINUTE :]
    assert mean(back[:10]) == pytest.approx(at_first * OFFERED, abs=0.05 * OFFERED)
    assert back[-30:] == [OFFERED] * 30
    assert world.throttle.stats().probability == 0.0


def test_short_outage_is_left_to_others() -> None:
    """Half a minute of failures in two minutes: k = 2 has patience with up to a half."""
    world = World(capacity=OFFERED)
    world.run(2 * MINUTE)
    world.capacity = 0
    world.run(MINUTE // 2)

    assert world.throttle.stats().rejected == 0


def test_without_a_cap_recovery_waits_for_the_window() -> None:
    """Why there is one: with nothing let through, nobody finds out."""
    capped, uncapped = World(capacity=0), World(capacity=0, max_rejection=1.0)
    for world in (capped, uncapped):
        world.run(2 * MINUTE)
        world.capacity = OFFERED
        world.run(MINUTE)

    assert sum(capped.served) > 10 * sum(uncapped.served)
