"""A bulkhead with threads: functions that may block, a caller that leaves in time, a slot kept to the end."""

from __future__ import annotations

import contextvars
import gc
import threading
import traceback
from collections.abc import Iterator
from typing import Any

import pytest
from tests.policies.bulkhead_support import fill, give, take
from tests.support.waiting import wait_until

from resilient import (
    AIMD,
    Bulkhead,
    BulkheadFullError,
    CallTimeoutError,
    DeadlineExceededError,
    deadline,
    time_left,
)
from resilient.engine import workers
from resilient.testing import FakeClock

user: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")


class Hung:
    """A function that blocks until it is released."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.release = threading.Event()
        self.error: BaseException | None = None
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        self.begun.release()
        assert self.release.wait(30.0)
        if self.error is not None:
            raise self.error
        return "late"


@pytest.fixture
def hung() -> Iterator[Hung]:
    """A function that hangs until the end of the test."""
    function = Hung()
    yield function
    function.release.set()


def in_threads(limit: Any = 2, **options: Any) -> Bulkhead:
    """Make a bulkhead with threads of its own."""
    return Bulkhead("rates", limit, threads=True, **options)


def leave_behind(bulkhead: Bulkhead, hung: Hung) -> CallTimeoutError:
    """Begin a call that outlives its caller; return what the caller got."""
    with deadline(0.02), pytest.raises(CallTimeoutError) as caught:
        bulkhead.call(hung)
    return caught.value


def test_function_runs_in_a_thread_of_the_bulkheads_own():
    """Named after it; its result is the very object."""
    bulkhead = in_threads()
    thread = bulkhead.call(threading.current_thread)
    assert thread is not threading.current_thread()
    assert (thread.name, thread.daemon) == ("resilient-rates", True)
    token = object()
    assert bulkhead.call(lambda: token) is token


def test_context_and_deadline_are_carried():
    """The thread sees the caller's variables; what it sets stays there."""
    bulkhead = in_threads()
    user.set("alice")
    with deadline(30.0):
        name, left = bulkhead.call(lambda: (user.get(), time_left()))
    assert name == "alice"
    assert left == pytest.approx(30.0, abs=5.0)
    bulkhead.call(user.set, "mallory")
    assert user.get() == "alice"
    user.set("nobody")


def test_slot_is_free_when_the_caller_has_its_answer():
    """Whatever that is: the next call need not wait for the thread to settle."""
    bulkhead = in_threads(1)

    @bulkhead
    def work(number: int) -> float:
        return 1 / number

    for number in (1, 0) * 100:
        if number:
            assert work(number) == 1.0
        else:
            with pytest.raises(ZeroDivisionError):
                work(number)
    assert bulkhead.stats().rejected == 0


def test_slots_bound_the_threads(hung: Hung):
    """As many run as there are slots; the next call is refused, not queued for a thread."""
    bulkhead = in_threads(3)
    callers = [threading.Thread(target=bulkhead.call, args=(hung,)) for _ in range(3)]
    for caller in callers:
        caller.start()
    for _ in callers:
        assert hung.begun.acquire(timeout=10.0)

    with pytest.raises(BulkheadFullError, match="3 of 3 slots are taken"):
        bulkhead.call(hung)
    hung.release.set()
    for caller in callers:
        caller.join()
    assert hung.calls == 3
    assert len(fill(bulkhead)) == 3


def test_caller_leaves_at_its_deadline_and_the_slot_stays_taken(hung: Hung):
    """The work goes on, is counted, and gives the slot back itself."""
    bulkhead = in_threads(1)
    error = leave_behind(bulkhead, hung)

    assert str(error) == (
        f"bulkhead 'rates': the caller's deadline passed after {error.seconds:.3g} s; "
        "the call runs on in its thread, and keeps its slot"
    )
    assert error.policy == "rates"
    stats = bulkhead.stats()
    assert (stats.in_use, stats.abandoned, stats.calls) == (1, 1, 1)
    with pytest.raises(BulkheadFullError):
        bulkhead.call(str)

    hung.release.set()
    wait_until(lambda: not bulkhead.stats().abandoned, "the work ends")
    assert bulkhead.stats().in_use == 0
    assert bulkhead.call(str) == ""


def test_abandoned_call_that_fails_is_nobodys(hung: Hung):
    """There is nobody to tell; the slot comes back all the same, and the thread goes on serving."""
    bulkhead = in_threads(1)
    hung.error = ValueError("nobody hears of this")
    leave_behind(bulkhead, hung)
    hung.release.set()
    wait_until(lambda: not bulkhead.stats().abandoned, "the work ends")

    assert bulkhead.call(threading.current_thread).name == "resilient-rates"
    assert bulkhead.stats().in_use == 0


def test_deadline_that_has_passed_begins_nothing(hung: Hung):
    """The slot was had for a moment, and is free again."""
    bulkhead, clock = in_threads(1), FakeClock()
    with deadline(1.0, clock=clock):
        clock.advance(1.0)
        with pytest.raises(DeadlineExceededError, match="passed before the call was begun") as caught:
            bulkhead.call(hung)
    assert caught.value.policy == "rates"
    assert hung.calls == 0
    assert (bulkhead.stats().in_use, bulkhead.stats().abandoned) == (0, 0)


def test_call_waits_for_its_slot_and_then_for_its_end(hung: Hung):
    """The deadline is for both together."""
    bulkhead = in_threads(1, max_wait=30.0)
    first = threading.Thread(target=bulkhead.call, args=(hung,))
    first.start()
    assert hung.begun.acquire(timeout=10.0)

    with deadline(0.02), pytest.raises(BulkheadFullError, match=r"none came free in 0\.0\d+ s$"):
        bulkhead.call(str)
    second = threading.Thread(target=bulkhead.call, args=(hung,))
    second.start()
    wait_until(lambda: bulkhead.stats().waiting == 1, "the second call waits")
    hung.release.set()
    first.join()
    second.join()
    assert hung.calls == 2


def test_exception_keeps_its_traceback_and_nothing_keeps_it():
    """It is raised in the caller with the frames of the thread, and goes when the caller lets go of it."""
    gone = threading.Event()

    class Token:
        def __del__(self) -> None:
            gone.set()

    def parse() -> None:
        token = Token()  # noqa: F841 - it shows when the frame goes
        raise ValueError("no number")

    bulkhead = in_threads(1)
    gc.collect()
    gc.disable()
    try:
        try:
            bulkhead.call(parse)
        except ValueError as exc:
            names = [frame.name for frame in traceback.extract_tb(exc.__traceback__)]
        assert names[0] == "test_exception_keeps_its_traceback_and_nothing_keeps_it"
        assert names[-1] == "parse"
        assert gone.wait(5.0)
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_interrupts_raised_in_the_thread_reach_the_caller(kind: type[BaseException]):
    """What is no `Exception` is raised there, too; the thread goes on serving."""

    def fail() -> None:
        raise kind

    bulkhead = in_threads(1)
    with pytest.raises(kind):
        bulkhead.call(fail)
    assert bulkhead.call(str) == ""


def test_exception_that_is_kept_keeps_no_slot_of_later_calls():
    """Neither that of the call nor ours."""
    bulkhead = in_threads(1)
    with pytest.raises(ZeroDivisionError) as kept:
        bulkhead.call(lambda: 1 / 0)
    block = take(bulkhead)
    del block

    assert len(fill(bulkhead)) == 1
    assert kept.value is not None


async def test_coroutines_streams_and_blocks_need_no_thread():
    """They share the slots, and run where they are."""
    bulkhead = in_threads(1)
    here = threading.current_thread()

    @bulkhead
    async def fetch() -> threading.Thread:
        with pytest.raises(BulkheadFullError):
            bulkhead.call(int)
        return threading.current_thread()

    @bulkhead
    def pages() -> Iterator[threading.Thread]:
        yield threading.current_thread()

    assert await fetch() is here
    assert [*pages()] == [here]
    with bulkhead.calling():
        assert bulkhead.stats().in_use == 1


def test_call_inside_a_call_has_a_slot_of_its_own():
    """And a thread of its own, so it cannot wait for itself to end."""
    bulkhead = in_threads(3)

    @bulkhead
    def climb(depth: int) -> set[int]:
        return {threading.get_ident()} | (climb(depth - 1) if depth else set())

    assert len(climb(2)) == 3
    with pytest.raises(BulkheadFullError):
        climb(3)
    assert bulkhead.stats().in_use == 0


def test_threads_go_when_there_is_nothing_to_do(monkeypatch: pytest.MonkeyPatch):
    """None is left behind for good."""
    monkeypatch.setattr(workers, "_IDLE_SECONDS", 0.01)
    bulkhead = in_threads(2)
    thread = bulkhead.call(threading.current_thread)

    thread.join(10.0)
    assert not thread.is_alive()
    assert bulkhead.call(str) == ""


def test_interrupt_of_the_waiting_caller_leaves_the_call_to_itself(
    hung: Hung, monkeypatch: pytest.MonkeyPatch
):
    """It runs on, is counted, and keeps its slot: as when the caller leaves in time."""
    bulkhead = in_threads(1)

    def interrupted(self: object, seconds: float | None) -> bool:
        assert hung.begun.acquire(timeout=10.0)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(workers.Job, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            bulkhead.call(hung)
    assert (bulkhead.stats().in_use, bulkhead.stats().abandoned) == (1, 1)
    hung.release.set()
    wait_until(lambda: not bulkhead.stats().abandoned, "the work ends")
    assert bulkhead.stats().in_use == 0


@pytest.mark.parametrize("submitted", [False, True])
def test_interrupt_before_the_call_is_begun_gives_the_slot_back_once(
    monkeypatch: pytest.MonkeyPatch, submitted: bool
):
    """Also if it comes where the call should have been withdrawn: a slot given back twice would be two."""
    bulkhead, begun = in_threads(1), []

    def carry_out(self: workers.Workers, job: workers.Job, seconds: float | None) -> None:
        held.append(job)
        raise KeyboardInterrupt

    held: list[workers.Job] = []
    with monkeypatch.context() as patch:
        patch.setattr(workers.Workers, "carry_out", carry_out)
        with pytest.raises(KeyboardInterrupt):
            bulkhead.call(begun.append, 1)
    if submitted:
        held.pop().run()  # as a thread would that was given it before the interrupt
    assert begun == []
    assert (bulkhead.stats().in_use, bulkhead.stats().abandoned) == (0, 0)
    assert len(fill(bulkhead)) == 1


def test_thread_that_cannot_be_started_costs_no_slot(monkeypatch: pytest.MonkeyPatch):
    """The system may have none left."""
    bulkhead = in_threads(1)

    def refuse(self: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(workers._Worker, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            bulkhead.call(str)
    assert bulkhead.stats().in_use == 0
    assert bulkhead.call(str) == ""


def test_forked_child_counts_no_abandoned_calls_of_its_parent(hung: Hung):
    """Their threads were not copied: they would never end."""
    bulkhead = in_threads(1)
    leave_behind(bulkhead, hung)
    assert bulkhead.stats().abandoned == 1

    bulkhead.after_fork()  # as in a child, where its threads are renewed, too
    assert bulkhead._threads is not None
    bulkhead._threads.workers.after_fork()

    assert (bulkhead.stats().abandoned, bulkhead.stats().in_use) == (0, 0)
    hung.release.set()


def test_adaptive_limit_learns_how_long_the_work_took(hung: Hung):
    """Not how long its caller waited for it."""
    clock = FakeClock()
    bulkhead = in_threads(AIMD(initial=5, window=1.0, min_samples=1, timeout=3.0), clock=clock)
    leave_behind(bulkhead, hung)
    clock.advance(4.0)
    give(take(bulkhead))
    hung.release.set()
    wait_until(lambda: not bulkhead.stats().abandoned, "the work ends")

    adaptive = bulkhead.stats().adaptive
    assert adaptive is not None
    assert adaptive.dropped == 1
