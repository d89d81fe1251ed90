"""Permits that belong to whoever holds them: none is lost, none is there twice."""

from __future__ import annotations

import gc
import threading
from typing import Any

import pytest

from resilient.engine.permits import Permit, Permits


def take_all(permits: Permits) -> list[Permit]:
    """Take all that are free."""
    return [permits.free.pop() for _ in range(len(permits.free))]


def counts(permits: Permits) -> tuple[int, int, int]:
    """Return how many are free, held, and too many."""
    return len(permits.free), permits.held, permits.excess


def test_there_are_as_many_as_are_wanted():
    """From the beginning."""
    permits = Permits("home", 3)
    held = take_all(permits)

    assert counts(permits) == (0, 3, 0)
    assert {(permit.home, permit.era, permit.started) for permit in held} == {("home", 0, None)}
    assert not permits.unsettled
    permits.take_back(held.pop())
    assert counts(permits) == (1, 2, 0)


def test_lost_permit_is_replaced():
    """It is held no more from that moment on; the next `settle` makes another one."""
    permits = Permits(None, 2)
    held = take_all(permits)
    del held[0]

    assert permits.unsettled
    assert counts(permits) == (0, 1, 0)
    permits.settle()
    assert not permits.unsettled
    assert counts(permits) == (1, 1, 0)


def test_many_are_lost_and_replaced_at_once():
    """However often."""
    permits = Permits(None, 50)
    for _ in range(20):
        take_all(permits)
        permits.settle()
        assert counts(permits) == (50, 0, 0)


def test_permit_lost_in_a_cycle_is_replaced_when_that_is_collected():
    """Until then, somebody might still come with it."""
    permits = Permits(None, 1)
    cycle: list[Any] = [permits.free.pop()]
    cycle.append(cycle)
    del cycle
    permits.settle()
    assert counts(permits) == (0, 1, 0)
    gc.collect()
    permits.settle()
    assert counts(permits) == (1, 0, 0)


def test_permit_that_was_taken_for_lost_is_not_taken_back():
    """Whoever is collected in a cycle gives back what was replaced already."""
    permits = Permits(None, 1)

    class Holder:
        def __init__(self) -> None:
            self.permit = permits.free.pop()
            self.cycle = self

        def __del__(self) -> None:
            permits.take_back(self.permit)

    Holder()
    gc.collect()
    permits.settle()

    assert counts(permits) == (1, 0, 0)


def test_more_are_made_when_more_are_wanted():
    """By `settle`."""
    permits = Permits(None, 1)
    held = take_all(permits)
    permits.wanted = 3
    assert permits.unsettled
    permits.settle()

    assert counts(permits) == (2, 1, 0)
    assert len(held) == 1


def test_permits_are_made_as_they_are_asked_for():
    """A few in stock, however many are wanted."""
    permits = Permits(None, 10**9)
    held = take_all(permits)
    assert 1 <= len(held) <= 1_000
    assert permits.unsettled
    permits.settle()
    assert counts(permits) == (len(held), len(held), 2 * len(held) - 10**9)
    assert not permits.unsettled


def test_fewer_are_kept_when_fewer_are_wanted():
    """First those that are free; those that are held as they come back. What is retired is not lost."""
    permits = Permits(None, 5)
    held = [permits.free.pop() for _ in range(3)]
    permits.wanted = 2
    permits.settle()
    assert counts(permits) == (0, 3, 1)
    assert permits.unsettled

    permits.take_back(held.pop())
    permits.settle()
    assert counts(permits) == (0, 2, 0)
    assert not permits.unsettled
    permits.take_back(held.pop())
    permits.settle()
    assert counts(permits) == (1, 1, 0)


def test_permit_lost_while_there_were_too_many_is_not_replaced():
    """There are as many as are wanted without it."""
    permits = Permits(None, 2)
    held = take_all(permits)
    permits.wanted = 1
    del held[0]
    permits.settle()

    assert counts(permits) == (0, 1, 0)
    assert not permits.unsettled


def test_none_may_be_wanted():
    """Then there is none, until one is."""
    permits = Permits(None, 1)
    permits.wanted = 0
    permits.settle()
    assert counts(permits) == (0, 0, 0)
    permits.wanted = 1
    permits.settle()
    assert counts(permits) == (1, 0, 0)


def test_in_use_are_those_of_which_is_known_since_when():
    """Free ones have no time, and lost ones are gone."""
    permits = Permits(None, 4)
    one, two, lost = (permits.free.pop() for _ in range(3))
    one.started, lost.started = 5.0, 6.0
    del lost

    assert [*permits.in_use()] == [(one, 5.0)]
    two.started = 7.0
    assert sorted(since for _, since in permits.in_use()) == [5.0, 7.0]


def test_in_use_may_be_looked_at_while_permits_come_and_go():
    """A stream that is collected in between gives its own back."""
    permits = Permits(None, 8)
    held = take_all(permits)
    for permit in held:
        permit.started = 1.0
    seen = 0
    for _ in permits.in_use():
        seen += 1
        permits.wanted += 3
        permits.settle()
    assert seen == 8


def test_child_process_begins_anew():
    """What other threads of the parent held never comes back; what comes back is the parent's."""
    permits = Permits(None, 3)
    held = [permits.free.pop() for _ in range(2)]
    permits.after_fork()

    assert counts(permits) == (3, 0, 0)
    assert {permit.era for permit in permits.free} == {1}
    assert {permit.era for permit in held} == {0}
    del held
    assert not permits.unsettled


@pytest.mark.parametrize("vanish", [False, True])
def test_threads_take_and_put_back_without_a_lock(vanish: bool):
    """No permit is lost or doubled, whether they are put back or dropped."""
    permits, lock = Permits(None, 4), threading.Lock()

    def work() -> None:
        for number in range(2_000):
            try:
                permit = permits.free.pop()
            except IndexError:
                with lock:
                    permits.settle()
                continue
            if vanish and number % 7 == 0:
                del permit
            else:
                permits.free.append(permit)
                del permit

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    permits.settle()

    assert counts(permits) == (4, 0, 0)
    assert len(set(permits.free)) == 4
