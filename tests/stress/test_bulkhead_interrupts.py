"""Interrupts at any moment of a call that holds a slot: no slot is lost, and none is given out twice.

The usual way to count permits is struck by the same signals in the same test: it loses them by the thousand,
so a bulkhead that did would be seen to.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
from collections.abc import Callable, Generator
from typing import Any

import pytest
from tests.stress.bulkheads import Inside, assert_whole, busy
from tests.stress.signals import Interrupter

from resilient import AIMD, Bulkhead, BulkheadFullError, Gradient

LIMIT = 3
SOAK = bool(os.environ.get("RESILIENT_SOAK"))
SIGNALS = 30_000
OF_EACH_OTHER = SIGNALS if SOAK else 3_000  # of those where the forms of a call take turns
OF_CONTENDED = SIGNALS if SOAK else 1_500

pytestmark = [
    pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers"),
    pytest.mark.timeout(
        600.0 if SOAK else 60.0, method="thread"
    ),  # its other method needs the signal used here
]


class Textbook:
    """Permits as they are counted everywhere: one less under a lock, one more in `finally`."""

    def __init__(self, permits: int) -> None:
        self._lock = threading.Lock()
        self.permits = permits

    def call(self, fn: Callable[[], Any]) -> Any:
        with self._lock:
            self.permits -= 1
        try:
            return fn()
        finally:
            with self._lock:
                self.permits += 1


def work(*_args: object) -> None:
    """Do what takes a few bytecodes."""


def test_thirty_thousand_interrupts_lose_no_permit(interrupter: Interrupter) -> None:
    """They come out, and all slots can be used afterwards; the textbook's way is hit just as hard."""
    bulkhead = Bulkhead("b", LIMIT)
    guarded = bulkhead(work)
    textbook = Textbook(SIGNALS)

    interrupter.strike(guarded, times=SIGNALS)
    assert interrupter.inside > SIGNALS // 2, "too few of them struck a call"
    interrupter.strike(lambda: textbook.call(work), times=SIGNALS // 10)

    assert SIGNALS - textbook.permits > SIGNALS // 100, "the signals do no harm, so nothing is shown"
    assert_whole(bulkhead, LIMIT)


def in_a_block(bulkhead: Bulkhead) -> Callable[[], object]:
    def call() -> None:
        with bulkhead.calling():
            work()

    return call


def in_a_generator(bulkhead: Bulkhead) -> Callable[[], object]:
    @bulkhead
    def stream() -> Generator[None]:
        yield work()
        yield work()

    return lambda: [*stream()]


def in_a_coroutine(bulkhead: Bulkhead) -> Callable[[], object]:
    """Drive a coroutine by hand: a loop does not survive an exception between two of its bytecodes."""

    @bulkhead
    async def awork() -> None:
        work()

    return lambda: by_hand(awork())


def in_an_async_block(bulkhead: Bulkhead) -> Callable[[], object]:
    async def awork() -> None:
        async with bulkhead.calling():
            work()

    return lambda: by_hand(awork())


def in_an_async_generator(bulkhead: Bulkhead) -> Callable[[], object]:
    @bulkhead
    async def stream() -> Any:
        yield work()

    async def awork() -> None:
        async for _ in stream():
            work()

    return lambda: by_hand(awork())


def by_hand(coroutine: Any) -> None:
    """Run a coroutine that has nothing to wait for."""
    with contextlib.suppress(StopIteration), contextlib.closing(coroutine):
        coroutine.send(None)


def failing(bulkhead: Bulkhead) -> Callable[[], object]:
    @bulkhead
    def fail() -> None:
        raise ConnectionError

    def call() -> None:
        with contextlib.suppress(ConnectionError):
            fail()

    return call


def refused(bulkhead: Bulkhead) -> Callable[[], object]:
    """Ask for one slot more than there are."""

    def call(depth: int = LIMIT) -> None:
        with contextlib.suppress(BulkheadFullError), bulkhead.calling():
            if depth:
                call(depth - 1)

    return call


FORMS = {
    "function": lambda bulkhead: bulkhead(work),
    "block": in_a_block,
    "generator": in_a_generator,
    "coroutine": in_a_coroutine,
    "async-block": in_an_async_block,
    "async-generator": in_an_async_generator,
    "failing": failing,
    "refused": refused,
}
STEADY = {"initial": LIMIT, "min_limit": LIMIT, "max_limit": LIMIT, "window": 0.001, "min_samples": 1}
KINDS: dict[str, Callable[[], Bulkhead]] = {
    "fixed": lambda: Bulkhead("b", LIMIT),
    "priorities": lambda: Bulkhead("b", LIMIT, priority="critical", shares={"sheddable": 0.5}, reserve=0),
    "gradient": lambda: Bulkhead("b", Gradient(**STEADY, remeasure=0.01)),
    "aimd": lambda: Bulkhead("b", AIMD(**STEADY), drops=ConnectionError),
}


# One that is struck before its first step was never awaited indeed.
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_no_form_of_call_loses_a_permit(interrupter: Interrupter, form: str, kind: str) -> None:
    """Each form of callable, under each kind of limit."""
    bulkhead = KINDS[kind]()

    interrupter.strike(FORMS[form](bulkhead), times=OF_EACH_OTHER // len(FORMS))

    assert_whole(bulkhead, LIMIT)


def test_limit_that_moves_loses_no_permit(interrupter: Interrupter) -> None:
    """Windows close and slots come and go while signals strike; afterwards there are as many as it says."""
    bulkhead = Bulkhead(
        "b", AIMD(initial=20, max_limit=40, window=0.0005, min_samples=1), drops=ConnectionError
    )
    numbers = itertools.count()

    @bulkhead
    def use() -> None:
        if not next(numbers) % 7:
            raise ConnectionError

    def call() -> None:
        with contextlib.suppress(ConnectionError):
            use()

    interrupter.strike(call, times=OF_EACH_OTHER)

    assert bulkhead.stats().adaptive.windows > 10
    bulkhead.resize(LIMIT)
    assert_whole(bulkhead, LIMIT)


def test_resizing_loses_no_permit(interrupter: Interrupter) -> None:
    """A limit that is interrupted on its way up or down is as it was set last."""
    bulkhead = Bulkhead("b", LIMIT)
    limits = itertools.cycle((1, 7, 2, 30))

    def call() -> None:
        with bulkhead.calling():
            bulkhead.resize(next(limits))

    interrupter.strike(call, times=OF_EACH_OTHER)

    bulkhead.resize(LIMIT)
    assert_whole(bulkhead, LIMIT)


def test_keys_lose_no_permit_and_make_room_for_others(interrupter: Interrupter) -> None:
    """Few may be kept at a time: one whose slot was lost would be in the way for ever."""
    bulkhead = Bulkhead("b", LIMIT, key=lambda key: key, max_keys=4)
    guarded, numbers = bulkhead(work), itertools.count()

    interrupter.strike(lambda: guarded(f"key {next(numbers)}"), times=OF_EACH_OTHER)

    for key in bulkhead._desk._shelf.states:
        assert bulkhead.stats(key).in_use == 0
    for number in range(8):  # refused for want of room, these would raise
        assert_whole(bulkhead, LIMIT, key=f"another {number}")


CONTENDED: dict[str, dict[str, Any]] = {
    "fixed": {"limit": 1},
    "two": {"limit": 2},
    "newest-first": {"limit": 1, "order": "newest-first"},
    "priorities": {"limit": 2, "priority": "default", "shares": {"default": 1.0}, "reserve": 0},
    "gradient": {"limit": Gradient(initial=2, min_limit=2, max_limit=2, window=0.001, min_samples=1)},
}


@pytest.mark.usefixtures("restless")
@pytest.mark.parametrize("options", CONTENDED.values(), ids=CONTENDED)
def test_interrupted_waiter_among_others(interrupter: Interrupter, options: dict[str, Any]) -> None:
    """One of four callers is interrupted, inside, waiting or in between: the others get all their turns."""
    bulkhead = Bulkhead("b", max_wait=30.0, **options)
    inside = Inside()
    visit = bulkhead(inside.visit)

    with busy(visit, threads=3):
        interrupter.strike(visit, times=OF_CONTENDED)

    assert 1 <= inside.most <= bulkhead.limit
    assert bulkhead.stats().rejected == 0
    assert bulkhead.stats().gave_up <= interrupter.interrupts
    bulkhead.resize(LIMIT)
    assert_whole(bulkhead, LIMIT)
