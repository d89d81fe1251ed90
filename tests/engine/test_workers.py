"""A bounded set of threads: no more than asked for, and nothing kept of calls that nobody waits for."""

from __future__ import annotations

import contextvars
import gc
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from resilient.engine import workers
from resilient.engine.workers import Job, Stage, Workers


@pytest.fixture(autouse=True)
def _short_idleness(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let idle threads go at once, so that each test ends without any."""
    monkeypatch.setattr(workers, "_IDLE_SECONDS", 0.01)


@pytest.fixture
def stuck() -> Iterator[threading.Event]:
    """What hanging calls wait for; it comes at the end of the test."""
    event = threading.Event()
    yield event
    event.set()


def job(call: Callable[[], Any], overdue: set[Job] | None = None) -> Job:
    """Return a job of nobody in particular."""
    return Job(call, set() if overdue is None else overdue)


def submitted(pool: Workers, call: Callable[[], Any], overdue: set[Job] | None = None) -> Job:
    """Return a job that *pool* has."""
    made = job(call, overdue)
    pool.submit(made)
    return made


def test_result_and_error_come_back() -> None:
    """The very objects, from another thread."""
    pool, error = Workers(1, "pool"), LookupError()

    def fail() -> None:
        raise error

    well, badly = submitted(pool, threading.current_thread), submitted(pool, fail)

    assert well.wait(5.0)
    assert badly.wait(5.0)
    assert well.result is not threading.current_thread()
    assert badly.error is error


def test_call_runs_in_the_context_of_its_caller() -> None:
    """Context variables cross over, and changes do not come back."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    variable.set("caller's")

    def look() -> str:
        seen = variable.get()
        variable.set("callee's")
        return seen

    made = submitted(Workers(1, "pool"), look)

    assert made.wait(5.0)
    assert (made.result, variable.get()) == ("caller's", "caller's")


def test_no_more_threads_than_asked_for_and_none_for_nothing(stuck: threading.Event) -> None:
    """One thread for calls one after another; at most *size* for calls at once."""
    pool = Workers(3, "pool")
    for _ in range(10):
        assert submitted(pool, int).wait(5.0)
    assert pool.threads <= 2  # the first may not be idle again when the second call comes

    hanging = [submitted(pool, lambda: stuck.wait(10.0)) for _ in range(10)]

    assert pool.threads == 3
    stuck.set()
    assert all(made.wait(5.0) for made in hanging)


def test_idle_thread_is_given_one_job_only(stuck: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that has been given a job is not idle, even if it has not woken up yet."""
    monkeypatch.setattr(workers, "_IDLE_SECONDS", 5.0)
    pool = Workers(2, "pool")
    assert submitted(pool, int).wait(5.0)
    while not pool._idle:
        threading.Event().wait(0.001)

    with pool._lock:  # the thread can take what it is given, and tell nobody
        hanging = submitted(pool, lambda: stuck.wait(10.0))
        threading.Event().wait(0.05)
        second = submitted(pool, int)

    assert second.wait(5.0)
    stuck.set()
    assert hanging.wait(5.0)
    assert pool.threads == 2


def test_job_given_to_a_thread_that_is_about_to_leave_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that comes at the very end of a thread's patience is made, by it or by another one."""
    monkeypatch.setattr(workers, "_IDLE_SECONDS", 0.0005)
    pool = Workers(1, "pool")
    for pause in range(100):
        assert submitted(pool, int).wait(5.0)
        threading.Event().wait(pause % 20 / 10_000)


def test_idle_threads_go() -> None:
    """And come again when there is something to do."""
    pool = Workers(2, "pool")
    for _ in range(3):
        made = submitted(pool, threading.current_thread)
        assert made.wait(5.0)
        made.result.join(5.0)
        assert pool.threads == 0


def test_withdrawn_job_is_never_begun(stuck: threading.Event) -> None:
    """A caller that leaves the queue knows for certain that its call was not made."""
    pool, begun = Workers(1, "pool"), []
    hanging = submitted(pool, lambda: stuck.wait(10.0))
    queued = submitted(pool, lambda: begun.append("begun"))

    assert not queued.wait(0.01)
    assert queued.withdraw() is Stage.QUEUED
    stuck.set()
    assert hanging.wait(5.0)
    assert submitted(pool, int).wait(5.0)
    assert begun == []


def test_job_under_way_is_overdue_until_it_ends(stuck: threading.Event) -> None:
    """Its caller has gone, its thread has not: that is what `abandoned` counts."""
    pool, overdue, running = Workers(1, "pool"), set[Job](), threading.Event()
    made = submitted(pool, lambda: (running.set(), stuck.wait(10.0)), overdue)
    assert running.wait(5.0)

    assert made.withdraw() is Stage.RUNNING
    assert overdue == {made}
    stuck.set()
    assert made.wait(5.0)

    assert overdue == set()
    assert made.withdraw() is Stage.DONE


def test_queue_stays_bounded_while_all_threads_hang(stuck: threading.Event) -> None:
    """Jobs whose callers have given up neither pile up nor keep their arguments alive."""
    pool, running = Workers(1, "pool"), threading.Event()
    submitted(pool, lambda: (running.set(), stuck.wait(10.0)))
    assert running.wait(5.0)
    arguments = []

    for _ in range(1000):
        argument = threading.Event()
        arguments.append(weakref.ref(argument))
        made = submitted(pool, argument.set)
        assert made.withdraw() is Stage.QUEUED
        del argument, made

    assert len(pool._waiting) <= workers._SLACK + 1
    assert not [alive for alive in arguments if alive() is not None]


def test_live_jobs_are_not_swept_out_with_withdrawn_ones(stuck: threading.Event) -> None:
    """All calls that somebody waits for are made."""
    pool, done = Workers(1, "pool"), []
    submitted(pool, lambda: stuck.wait(10.0))
    waiting = []
    for number in range(300):
        made = submitted(pool, lambda number=number: done.append(number))
        if number % 3:
            made.withdraw()
        else:
            waiting.append(made)

    stuck.set()

    assert all(made.wait(5.0) for made in waiting)
    assert sorted(done) == list(range(0, 300, 3))


def test_line_is_swept_while_threads_take_from_it() -> None:
    """Submitting never fails because somebody else empties the line at the same time."""
    pool, errors = Workers(2, "pool"), []
    before = sys.getswitchinterval()

    def submit() -> None:
        try:
            for _ in range(1000):
                submitted(pool, int).withdraw()
        except Exception as exc:
            errors.append(exc)

    sys.setswitchinterval(1e-6)
    try:
        submitters = [threading.Thread(target=submit) for _ in range(4)]
        for submitter in submitters:
            submitter.start()
        for submitter in submitters:
            submitter.join(30.0)
    finally:
        sys.setswitchinterval(before)

    assert errors == []
    assert submitted(pool, int).wait(5.0)


def test_error_that_nobody_waits_for_leaves_no_cycle(stuck: threading.Event) -> None:
    """An overdue call that fails at last is gone with its frames, without the garbage collector."""
    pool, running, alive = Workers(1, "pool"), threading.Event(), []

    def fail() -> None:
        local = threading.Event()
        alive.append(weakref.ref(local))
        running.set()
        stuck.wait(10.0)
        raise LookupError

    gc.disable()
    try:
        made = submitted(pool, fail)
        assert running.wait(5.0)
        made.withdraw()
        stuck.set()
        assert made.wait(5.0)
        del made
        assert submitted(pool, int).wait(5.0)  # the thread has let go of the first job
        assert alive[0]() is None
    finally:
        gc.enable()


def test_thread_that_cannot_be_started_takes_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next call tries again; a job that was not begun can be withdrawn."""
    pool = Workers(1, "pool")

    def no_thread(_self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    made = job(int)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            pool.submit(made)
    assert made.withdraw() is Stage.QUEUED
    assert pool.threads == 0

    assert submitted(pool, int).wait(5.0)


def struck_before(_self: threading.Thread) -> None:
    """Start as one does that is interrupted too early: Python has noted the thread, and it never comes."""
    raise KeyboardInterrupt


def struck_after(self: threading.Thread) -> None:
    """Start as one does that is interrupted while it waits for the thread."""
    REAL_START(self)
    raise KeyboardInterrupt


def struck_within(self: threading.Thread) -> None:
    """Start as one does that is interrupted while the condition that it waits on has let go of its lock."""
    REAL_START(self)
    lock = threading.Lock()
    with lock:
        lock.release()
        raise KeyboardInterrupt


REAL_START = threading.Thread.start


@pytest.mark.parametrize("start", [struck_before, struck_after, struck_within])
def test_interrupted_start_raises_the_interrupt(
    start: Callable[[threading.Thread], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not what becomes of it inside of Python; and there are as many threads as before."""
    pool = Workers(1, "pool")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(KeyboardInterrupt):
            pool.submit(job(int))

    assert submitted(pool, int).wait(5.0)
    assert pool.threads <= 1


def test_no_threads_are_none_whatever_is_being_handled(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the caller is about is no interrupt."""

    def no_thread(_self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_thread)
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        with pytest.raises(RuntimeError, match="can't start new thread"):
            Workers(1, "pool").submit(job(int))


@pytest.mark.parametrize("ident", [None, 7])
def test_thread_that_an_interrupt_keeps_from_coming_has_no_place_and_no_job(
    ident: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python keeps it for ever, perhaps with an identity. If it comes after all, nobody expects it."""
    pool, kept, begun = Workers(1, "pool"), list[threading.Thread](), list[object]()
    wanted = threading.Event()

    def keep(self: threading.Thread) -> None:
        kept.append(self)
        self._ident = ident
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", keep)
        with pytest.raises(KeyboardInterrupt):
            pool.submit(job(lambda held=wanted: begun.append(held)))

    assert pool.threads == 0
    assert sys.getrefcount(wanted) == 2
    kept[0].start()
    kept[0].join(5.0)
    assert not kept[0].is_alive()
    assert not begun
    assert submitted(pool, int).wait(5.0)
