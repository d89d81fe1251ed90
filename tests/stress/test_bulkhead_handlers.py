"""A signal handler, or the collector, uses the bulkhead that its own thread is just in the middle of.

Nothing hangs, nothing is lost, nothing breaks; and whoever is not the handler does not wait for it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest
from tests.stress.bulkheads import Inside, assert_whole, busy

from resilient import AIMD, Bulkhead, BulkheadFullError, Gradient

LIMIT = 3
SECONDS = 5.0 if os.environ.get("RESILIENT_SOAK") else 0.4
EVERY = 30e-6  # seconds

pytestmark = [
    pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers"),
    pytest.mark.timeout(60, method="thread"),  # its other method needs the signal used here
]

MOVING = {"initial": LIMIT, "min_limit": 2, "max_limit": 8, "window": 0.0005, "min_samples": 1}
KINDS: dict[str, dict[str, Any]] = {
    "fixed": {"limit": LIMIT},
    "newest-first": {"limit": LIMIT, "order": "newest-first"},
    "priorities": {"limit": LIMIT, "priority": "critical"},
    "gradient": {"limit": Gradient(**MOVING, remeasure=0.01)},
    "aimd": {"limit": AIMD(**MOVING), "drops": BulkheadFullError},
    "keyed": {"limit": LIMIT, "key": lambda: str(next(NUMBERS) % 3)},
}
NUMBERS = itertools.count()


@contextlib.contextmanager
def handling(handler: Callable[[], object]) -> Iterator[list[object]]:
    """Have *handler* run in the middle of the block, over and over; what it returned."""
    answers: list[object] = []
    over = False

    def handle(_number: int, _frame: FrameType | None) -> None:
        if not over:
            answers.append(handler())
            signal.setitimer(signal.ITIMER_REAL, EVERY)

    previous = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, EVERY)
    yield answers
    over = True
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    signal.signal(signal.SIGALRM, previous)


def each_in_turn(*uses: Callable[[], object]) -> Callable[[], object]:
    """Return what does one of *uses*, the next one each time; being refused is fine."""
    turns = itertools.cycle(uses)

    def use() -> bool:
        with contextlib.suppress(BulkheadFullError):
            next(turns)()
        return True

    return use


def for_a_while(call: Callable[[], object]) -> int:
    """Do it over and over; return how often."""
    until, calls = time.monotonic() + SECONDS, 0
    while time.monotonic() < until:
        call()
        calls += 1
    return calls


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_handler_uses_the_bulkhead_it_interrupted(options: dict[str, Any]) -> None:
    """Calls, looks and another limit, in the middle of each of them."""
    bulkhead = Bulkhead("b", **options)
    limits = itertools.cycle((1, 5, options["limit"]))
    guarded = bulkhead(lambda: None)

    use = each_in_turn(guarded, bulkhead.stats, lambda: bulkhead.resize(next(limits)), guarded)
    with handling(use) as answers:
        calls = for_a_while(use)

    assert min(calls, len(answers)) > 100
    bulkhead.resize(LIMIT)
    assert_whole(bulkhead, LIMIT, key="key" if "key" in options else None)


@pytest.mark.usefixtures("restless")
@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_handler_that_would_have_to_wait_does_not_keep_others_waiting(options: dict[str, Any]) -> None:
    """Its own thread may be handing slots on: nobody else could while the handler waits for one.

    There are two slots at least: one may be held by the call that the handler interrupts.
    """
    bulkhead, inside = Bulkhead("b", max_wait=1.0, **options), Inside()
    visit = bulkhead(inside.visit)
    use = each_in_turn(visit)

    with busy(visit, threads=8), handling(use) as answers:  # none of these may be refused
        calls = for_a_while(use)

    assert min(calls, len(answers)) > 20
    bulkhead.resize(LIMIT)
    assert_whole(bulkhead, LIMIT, key="key" if "key" in options else None)
