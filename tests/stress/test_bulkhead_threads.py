"""A bulkhead with threads of its own under stress: each slot comes back, and comes back once.

Deadlines that pass in crowds, work that nobody waits for any more, callers that are interrupted, and forks.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from tests.stress.bulkheads import Inside, assert_whole, busy
from tests.stress.signals import Interrupter
from tests.support.waiting import wait_until

from resilient import AIMD, Bulkhead, BulkheadFullError, deadline
from resilient.errors import CallTimeoutError, DeadlineExceededError
from resilient.policies.bulkhead import BulkheadStats

LIMIT = 4
LONG = 40.0  # seconds; whoever waits for as long is stuck
SOAK = bool(os.environ.get("RESILIENT_SOAK"))
CALLS = 20_000 if SOAK else 2_000
SIGNALS = 30_000 if SOAK else 3_000

pytestmark = [
    pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers"),
    # The other method of pytest-timeout needs the signal used here.
    pytest.mark.timeout(600.0 if SOAK else 60.0, method="thread"),
]

KINDS: dict[str, dict[str, Any]] = {
    "fixed": {"limit": LIMIT},
    "adaptive": {"limit": AIMD(initial=LIMIT, min_limit=LIMIT, max_limit=LIMIT, window=0.005)},
    "priorities": {"limit": LIMIT, "priority": "critical", "reserve": 0},
}


def assert_quiet(bulkhead: Bulkhead) -> BulkheadStats:
    """Fail unless all work ends, and then all slots are there, and no more; return the books before."""
    wait_until(lambda: bulkhead.stats().in_use == 0, "all work ends")
    wait_until(lambda: bulkhead.stats().abandoned == 0, "nothing is taken for running")
    books = bulkhead.stats()
    assert_whole(bulkhead, LIMIT)
    return books


def storm(callers: int, call: Callable[[random.Random], str]) -> Counter[str]:
    """Make the calls from so many threads; return how often each outcome was."""
    outcomes: list[str] = []

    def caller(place: int) -> None:
        chance = random.Random(place)
        outcomes.extend([call(chance) for _ in range(CALLS // callers)])

    threads = [threading.Thread(target=caller, args=(place,)) for place in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Counter(outcomes)


@pytest.mark.usefixtures("restless")
@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_deadlines_pass_by_the_hundred_and_every_slot_comes_back(options: dict[str, Any]) -> None:
    """Before the work begins, while it runs and as it ends: never more than the limit run."""
    bulkhead, inside = Bulkhead("b", threads=True, max_wait=LONG, **options), Inside()

    @bulkhead
    def work(seconds: float) -> str:
        inside.visit()
        time.sleep(seconds)
        return "done"

    def call(chance: random.Random) -> str:
        try:
            with deadline(chance.uniform(0.0, 0.006)):
                return work(chance.uniform(0.0, 0.001))
        except CallTimeoutError:
            return "abandoned"
        except DeadlineExceededError:
            return "never begun"
        except BulkheadFullError:
            return "refused"

    outcomes = storm(16, call)

    stats = assert_quiet(bulkhead)
    assert inside.most <= LIMIT
    assert min(outcomes["done"], outcomes["abandoned"], outcomes["refused"]) > 10, outcomes
    # Work may have been withdrawn though it had a slot, but none was done twice.
    assert outcomes["done"] + outcomes["abandoned"] == len(inside.seen)
    assert stats.calls == len(inside.seen) + outcomes["never begun"]
    assert stats.rejected + stats.gave_up == outcomes["refused"]


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_interrupted_callers_leave_each_slot_once(interrupter: Interrupter, options: dict[str, Any]) -> None:
    """On their way in, waiting, as their work ends: a slot that came back twice would let one too many in.

    The threads are there beforehand: Python's own `Thread.start` does not survive an interrupt.
    """
    bulkhead, inside = Bulkhead("b", threads=True, max_wait=LONG, **options), Inside()
    meeting = threading.Barrier(LIMIT, timeout=LONG)
    callers = [threading.Thread(target=bulkhead.call, args=(meeting.wait,)) for _ in range(LIMIT)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    visit = bulkhead(inside.visit)

    interrupter.strike(visit, times=SIGNALS)

    assert_quiet(bulkhead)
    assert inside.most <= LIMIT


@pytest.mark.usefixtures("restless")
def test_interrupts_and_deadlines_race_for_the_same_call(interrupter: Interrupter) -> None:
    """With others in the line, and deadlines as short as the timer's."""
    bulkhead, inside = Bulkhead("b", LIMIT, threads=True, max_wait=LONG), Inside()
    visit, chance = bulkhead(inside.visit), random.Random(5)

    # Kept: as one dies, the set that is told of forks runs Python code, and an interrupt in there is lost.
    deadlines = [deadline(chance.uniform(0.0, 200e-6)) for _ in range(100)]

    def hurried() -> None:
        expected = contextlib.suppress(CallTimeoutError, DeadlineExceededError, BulkheadFullError)
        with expected, chance.choice(deadlines):
            visit()

    with busy(visit, threads=LIMIT):
        # In a context of its own: a block that is struck as it is entered leaves its deadline there.
        interrupter.strike(lambda: contextvars.copy_context().run(hurried), times=SIGNALS // 3)

    assert_quiet(bulkhead)
    assert inside.most <= LIMIT


def test_abandoned_work_keeps_its_slot_to_the_end_and_no_longer() -> None:
    """All slots are taken by work that nobody waits for: the next is refused until the first of it ends."""
    bulkhead, over = Bulkhead("b", LIMIT, threads=True), threading.Event()
    hang = bulkhead(over.wait)

    def abandon() -> None:
        with pytest.raises(CallTimeoutError), deadline(0.05):
            hang()

    callers = [threading.Thread(target=abandon) for _ in range(LIMIT)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()

    assert (bulkhead.stats().abandoned, bulkhead.stats().in_use) == (LIMIT, LIMIT)
    with pytest.raises(BulkheadFullError):
        hang()
    over.set()
    assert_quiet(bulkhead)
