"""Timeout with threads: functions that may block, and a caller that leaves in time."""

from __future__ import annotations

import contextvars
import gc
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

import pytest

from resilient import BulkheadFullError, CallTimeoutError, DeadlineExceededError, Timeout, deadline, time_left
from resilient.events import CallTimedOut
from resilient.testing import FakeClock, capture_events

user: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")


class Hung:
    """A function that blocks until it is released."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.release = threading.Event()
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        self.begun.release()
        assert self.release.wait(30)
        return "late"


@pytest.fixture
def hung() -> Iterator[Hung]:
    """A function that hangs until the end of the test."""
    function = Hung()
    yield function
    function.release.set()


def wait_until_idle(timeout: Timeout) -> None:
    """Wait until no thread works on a call whose caller has gone."""
    give_up_at = time.monotonic() + 5.0
    while timeout.stats().abandoned:
        assert time.monotonic() < give_up_at, "the work never ended"
        time.sleep(0.001)


def test_function_runs_in_a_thread_of_the_policys_own():
    """The call runs in one of the policy's threads, and its result comes back."""
    timeout = Timeout(5, threads=2, name="rates")
    thread = timeout.call(threading.current_thread)
    assert thread is not threading.current_thread()
    assert thread.name == "resilient-rates"
    assert thread.daemon


def test_arguments_and_none_come_through():
    """Arguments reach the function; None is a result."""
    seen: list[Any] = []

    @Timeout(5, threads=1)
    def put(code: str, *, rate: float) -> None:
        seen.append((code, rate))

    assert put("CHF", rate=0.97) is None
    assert seen == [("CHF", 0.97)]


def test_context_and_deadline_are_carried():
    """The thread sees the caller's context variables, and the limit as its deadline."""
    user.set("alice")
    name, left = Timeout(5, threads=1).call(lambda: (user.get(), time_left()))
    assert name == "alice"
    assert left == pytest.approx(5, abs=1)

    Timeout(5, threads=1).call(user.set, "mallory")
    assert user.get() == "alice"
    user.set("nobody")


def test_caller_leaves_in_time_and_the_slot_stays_taken(hung):
    """A call that hangs costs its caller the limit only, and its thread until the work really ends."""
    timeout = Timeout(0.02, threads=1, name="rates")
    with capture_events() as seen, pytest.raises(CallTimeoutError, match="'rates'") as caught:
        timeout.call(hung)
    assert caught.value.seconds == 0.02
    assert seen == [CallTimedOut("rates", 0.02, running=True)]
    assert timeout.stats().abandoned == 1
    with pytest.raises(
        BulkheadFullError, match=r"none of its threads \(1\) came free in 0\.02 s, the call was not begun"
    ):
        timeout.call(hung)
    assert hung.calls == 1
    hung.release.set()
    wait_until_idle(timeout)
    assert timeout.call(str, 5) == "5"
    stats = timeout.stats()
    assert (stats.calls, stats.timed_out, stats.rejected, stats.abandoned) == (3, 1, 1, 0)


def test_queued_call_is_never_begun_after_its_caller_left(hung):
    """A call that waited for a thread in vain does not run later, when nobody waits for it any more."""
    timeout, late = Timeout(0.02, threads=1), []
    with pytest.raises(CallTimeoutError):
        timeout.call(hung)
    with pytest.raises(BulkheadFullError):
        timeout.call(late.append, 1)
    hung.release.set()
    wait_until_idle(timeout)
    assert timeout.call(str) == ""
    assert late == []


def test_outer_deadline_cuts_the_wait_short(hung):
    """The caller leaves at its own deadline; after it nothing is begun."""
    timeout = Timeout(30, threads=1)
    begun = time.monotonic()
    with deadline(0.02), pytest.raises(CallTimeoutError):
        timeout.call(hung)
    assert time.monotonic() - begun < 5.0
    clock = FakeClock()
    with deadline(1.0, clock=clock):
        clock.advance(1.0)
        with pytest.raises(DeadlineExceededError):
            timeout.call(hung)
    assert hung.calls == 1


def test_threads_are_bounded_and_all_used(hung):
    """Three threads run three calls at once, and no fourth."""
    timeout = Timeout(0.1, threads=3)
    outcomes: list[type[BaseException]] = []

    def work() -> None:
        try:
            timeout.call(hung)
        except (CallTimeoutError, BulkheadFullError) as exc:
            outcomes.append(type(exc))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count(CallTimeoutError) == hung.calls == timeout.stats().abandoned == 3
    assert outcomes.count(BulkheadFullError) == 5
    hung.release.set()
    wait_until_idle(timeout)


def test_exception_keeps_its_traceback_and_nothing_keeps_it():
    """The call's exception is raised in the caller, with the frames of the thread; no cycle holds it."""
    frames_gone: list[bool] = []

    class Token:
        def __del__(self) -> None:
            frames_gone.append(True)

    def parse() -> None:
        token = Token()  # noqa: F841 - it shows when the frame goes
        raise ValueError("no number")

    timeout = Timeout(5, threads=1)
    gc.collect()
    gc.disable()
    try:
        try:
            timeout.call(parse)
        except ValueError as exc:
            names = [frame.name for frame in traceback.extract_tb(exc.__traceback__)]
            assert names[-1] == "parse"
            assert names[0] == "test_exception_keeps_its_traceback_and_nothing_keeps_it"
        give_up_at = time.monotonic() + 5.0
        while not frames_gone and time.monotonic() < give_up_at:
            time.sleep(0.001)  # the thread lets go of its job a moment after the caller has its answer
        assert frames_gone == [True]
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_interrupts_raised_in_the_thread_reach_the_caller(kind):
    """What is no `Exception` is raised in the caller, too, and the thread goes on serving."""

    def fail() -> None:
        raise kind

    timeout = Timeout(5, threads=1)
    with pytest.raises(kind):
        timeout.call(fail)
    assert timeout.call(str) == ""


def test_users_own_timeout_error_is_not_ours():
    """A `TimeoutError` of the call's own passes as it is and is not counted."""
    own = TimeoutError("the server's")

    def fail() -> None:
        raise own

    timeout = Timeout(5, threads=1)
    with pytest.raises(TimeoutError) as caught:
        timeout.call(fail)
    assert caught.value is own
    assert timeout.stats().timed_out == 0


async def test_coroutines_need_no_thread():
    """A coroutine function under the same policy runs in its own task."""
    timeout = Timeout(5, threads=1)

    @timeout
    async def fetch() -> threading.Thread:
        return threading.current_thread()

    assert await fetch() is threading.current_thread()


def test_generators_are_limited_step_by_step():
    """A generator stays in the caller's thread: each of its steps sees what is left."""
    clock = FakeClock()

    @Timeout(5, threads=1, clock=clock)
    def pages() -> Iterator[Any]:
        for _ in range(2):
            yield threading.current_thread(), time_left()

    seen = []
    for page in pages():
        seen.append(page)
        clock.advance(2.0)
    assert seen == [(threading.current_thread(), 5.0), (threading.current_thread(), 3.0)]


def test_hung_call_does_not_keep_the_process():
    """A process ends although a thread of ours still hangs."""
    program = textwrap.dedent(
        """
        import threading
        from resilient import CallTimeoutError, Timeout

        try:
            Timeout(0.01, threads=1).call(threading.Event().wait, 60)
        except CallTimeoutError:
            print("left")
        """
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=False
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "left\n", "")


def test_repr_shows_abandoned_work(hung):
    """`repr` shows how many calls timed out and how many threads still work on one."""
    timeout = Timeout(0.01, threads=1, name="rates")
    with pytest.raises(CallTimeoutError):
        timeout.call(hung)
    assert repr(timeout) == "<Timeout 'rates' 0.01 s, 1 timed out, 1 abandoned>"
    hung.release.set()
    wait_until_idle(timeout)


def test_interrupt_of_the_waiting_caller_withdraws_its_call(hung, monkeypatch):
    """A caller that is interrupted while it waits leaves nothing to be begun without it."""
    timeout, late = Timeout(5, threads=1), []
    first = threading.Thread(target=timeout.call, args=(hung,))
    first.start()
    assert hung.begun.acquire(timeout=5)

    def interrupted(self: object, seconds: float | None) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("resilient.engine.workers.Job.wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            timeout.call(late.append, 1)
    hung.release.set()
    first.join()
    assert timeout.call(str) == ""
    assert late == []
