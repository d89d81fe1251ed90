"""Every order of two steps: what one thread does comes at each moment of what another one does.

Threads take turns where Python lets them: luck finds few of the orders. A profiler is told of each call and
return, so one thread is held there until the other has done its part, or cannot go on without the first.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
import time
from collections.abc import Callable, Container
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from tests.stress.bulkheads import assert_whole
from tests.support.waiting import wait_until

import resilient
from resilient import Bulkhead, BulkheadFullError, Gradient, deadline
from resilient.engine.workers import Job
from resilient.errors import DeadlineExceededError

HOME = Path(resilient.__file__).parent
OURS = {"holds", "desks", "slots", "line", "permits", "waiting", "threads", "workers"}
EVENTS = {"call", "return", "c_call", "c_return"}
INTERRUPTIBLE = {"call", "c_return"}  # where Python runs the handlers of signals
SOON = 0.005  # seconds, in which the other thread is through, or waits for a lock that is held
LONG = 0.5  # seconds: whoever waits for as long was forgotten

pytestmark = pytest.mark.usefixtures("one_look")

KINDS: dict[str, dict[str, Any]] = {
    "fixed": {"limit": 1},
    "priorities": {"limit": 1, "priority": "critical", "reserve": 0},
    "newest-first": {"limit": 1, "order": "newest-first"},
    "adaptive": {"limit": Gradient(initial=1, min_limit=1, max_limit=1)},
    "keyed": {"limit": 1, "key": lambda *_: "key"},
}


class Moments:
    """Has *act* called at the *moment*-th call or return in a bulkhead's code, in this thread."""

    def __init__(self, moment: int, act: Callable[[], object], events: Container[str] = EVENTS) -> None:
        self._moments = itertools.count()
        self._events = events
        self._moment = moment
        self._act = act
        self.struck: float | None = None  # when

    def begin(self) -> None:
        """Count from here on."""
        self._former = sys.getprofile()  # coverage may be there
        sys.setprofile(self._profile)

    def end(self) -> None:
        """Count no further."""
        sys.setprofile(self._former)

    def _profile(self, frame: FrameType, event: str, _arg: object) -> None:
        path = Path(frame.f_code.co_filename)
        ours = path.stem in OURS and path.is_relative_to(HOME)
        if ours and event in self._events and next(self._moments) == self._moment:
            self.struck = time.monotonic()
            self._act()


def in_a_function(bulkhead: Bulkhead, body: Callable[[], object]) -> None:
    bulkhead(body)()


def in_a_block(bulkhead: Bulkhead, body: Callable[[], object]) -> None:
    with bulkhead.calling(key="key" if bulkhead.stats().keys else None):
        body()


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_slot_that_comes_back_at_any_moment_is_seen(options: dict[str, Any]) -> None:
    """By a call that is just getting into the line, and has nobody else to help it."""
    for moment in itertools.count():
        bulkhead = Bulkhead("b", max_wait=LONG, **options)
        inside, over = threading.Event(), threading.Event()

        @bulkhead
        def hold(inside: threading.Event = inside, over: threading.Event = over) -> None:
            inside.set()
            over.wait()

        holder = threading.Thread(target=hold)
        holder.start()
        inside.wait()

        def leave(over: threading.Event = over, holder: threading.Thread = holder) -> None:
            over.set()
            holder.join(SOON)

        moments, guarded, until = Moments(moment, leave), bulkhead(lambda: None), time.monotonic() + LONG
        got = True
        moments.begin()
        try:
            guarded()
        except BulkheadFullError:
            got = False
        finally:
            moments.end()
            over.set()
            holder.join()
        assert_whole(bulkhead, 1, key="key" if "key" in options else None)
        if moments.struck is None or moments.struck > until:
            break  # it had waited in vain before
        assert got, f"forgotten since moment {moment}"
    assert moment > 20, "too few moments to mean anything"


@pytest.mark.parametrize("form", [in_a_function, in_a_block])
@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_caller_that_comes_at_any_moment_of_leaving_gets_the_slot(
    options: dict[str, Any], form: Callable[[Bulkhead, Callable[[], object]], None]
) -> None:
    """At once or after a wait: whoever leaves sees it, or it sees the slot."""
    for moment in itertools.count():
        bulkhead, errors = Bulkhead("b", max_wait=LONG, **options), list[BulkheadFullError]()
        bulkhead(lambda: None)()  # there is a key now, where there are keys

        def come(bulkhead: Bulkhead = bulkhead, errors: list[BulkheadFullError] = errors) -> None:
            try:
                bulkhead(lambda: None)()
            except BulkheadFullError as exc:
                errors.append(exc)

        comer = threading.Thread(target=come)

        def let_come(comer: threading.Thread = comer) -> None:
            comer.start()
            comer.join(SOON)

        moments = Moments(moment, let_come)
        form(bulkhead, moments.begin)
        moments.end()
        if not moments.struck:
            break
        comer.join()
        assert not errors, f"forgotten at moment {moment}"
        assert_whole(bulkhead, 1, key="key" if "key" in options else None)
    assert moment > 2, "too few moments to mean anything"


class Interrupted(BaseException):
    """What the handler of a signal raises."""


def interrupt() -> None:
    raise Interrupted


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_interrupt_at_any_moment_leaves_no_slot_taken(options: dict[str, Any]) -> None:
    """On the way in or out of a call that finds a slot lost: the books are true right after it."""
    for moment in itertools.count():
        bulkhead = Bulkhead("b", **options)
        bulkhead(lambda: None)()  # there is a key now, where there are keys
        key = {"key": "key"} if "key" in options else {}
        bulkhead.calling(**key).__enter__()  # and forgotten
        guarded, moments = bulkhead(lambda: None), Moments(moment, interrupt, INTERRUPTIBLE)
        moments.begin()
        try:
            with contextlib.suppress(Interrupted):
                guarded()
        finally:
            moments.end()
        assert_whole(bulkhead, 1, **key)
        if moments.struck is None:
            break
    assert moment > 5, "too few moments to mean anything"


def test_interrupt_at_any_moment_gives_the_slot_back_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadline passes before a thread has begun with the work, and it begins right after."""
    bulkhead, gate, run = Bulkhead("b", 1, threads=True), threading.Event(), Job.run
    guarded = bulkhead(lambda: None)
    guarded()  # there is a thread now: Python's own `Thread.start` does not survive an interrupt
    workers = bulkhead._threads.workers

    def run_late(job: Job) -> None:
        gate.wait()
        run(job)

    monkeypatch.setattr(Job, "run", run_late)
    for moment in itertools.count():
        wait_until(lambda: len(workers._idle) == workers.threads, "all threads are idle")
        gate.clear()
        moments = Moments(moment, interrupt, INTERRUPTIBLE)
        with contextlib.suppress(Interrupted, DeadlineExceededError), deadline(0.001):
            moments.begin()
            try:
                guarded()
            finally:
                moments.end()
        gate.set()
        wait_until(lambda: bulkhead.stats().in_use == 0, "the slot comes back")
        wait_until(lambda: len(workers._idle) == workers.threads, "all threads are idle")
        assert_whole(bulkhead, 1)
        if moments.struck is None:
            break
    assert moment > 30, "too few moments to mean anything"
