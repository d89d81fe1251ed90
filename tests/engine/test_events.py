"""Events: who is told, in which order, and what a faulty listener can do (nothing)."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading

import pytest

from resilient import CircuitBreaker, Fallback, Pipeline, events
from resilient.events import Announcer, CircuitClosed, CircuitHalfOpened, CircuitOpened, Event, error_text
from resilient.testing import FakeClock, capture_events


@pytest.fixture
def breaker() -> CircuitBreaker:
    """A breaker on a clock that stands still."""
    return CircuitBreaker("payments", clock=FakeClock())


def test_events_arrive_in_the_order_of_the_changes_at_every_listener(breaker: CircuitBreaker) -> None:
    """Listeners of the policy first, then those of everything; each hears all, in order."""
    heard: list[tuple[str, type[Event]]] = []
    breaker.add_listener(lambda event: heard.append(("first", type(event))))
    breaker.add_listener(lambda event: heard.append(("second", type(event))))

    with capture_events() as captured:
        breaker.open()
        breaker.close()

    expected = (CircuitOpened, CircuitClosed)
    assert heard == [(who, kind) for kind in expected for who in ("first", "second")]
    assert [type(event) for event in captured] == [*expected]
    assert all(event.policy == "payments" for event in captured)


def test_event_that_a_listener_causes_follows_after_all_have_heard_the_first(breaker: CircuitBreaker) -> None:
    """A listener that acts on the policy neither recurses nor lets the others hear things backwards."""
    heard: list[type[Event]] = []

    def close_again(event: Event) -> None:
        if isinstance(event, CircuitOpened):
            breaker.close()
            assert heard == []  # what it caused has not been told before what caused it

    breaker.add_listener(close_again)
    breaker.add_listener(lambda event: heard.append(type(event)))

    breaker.open()

    assert heard == [CircuitOpened, CircuitClosed]
    assert breaker.current_state == "closed"


def test_raising_listener_is_logged_once_and_breaks_nothing(
    breaker: CircuitBreaker, caplog: pytest.LogCaptureFixture
) -> None:
    """The other listeners hear everything, the change stands, and the log does not fill."""
    heard: list[Event] = []

    def faulty(_event: Event) -> None:
        raise LookupError

    breaker.add_listener(faulty)
    breaker.add_listener(heard.append)

    with caplog.at_level(logging.ERROR, logger="resilient"):
        for _ in range(3):
            breaker.open()
            breaker.close()

    assert len(heard) == 6
    assert [record.message for record in caplog.records] == [
        f"listener {faulty!r} failed; it will not be reported again"
    ]
    assert caplog.records[0].exc_info is not None


def test_cancellation_out_of_a_listener_is_a_fault_of_the_listener(
    breaker: CircuitBreaker, caplog: pytest.LogCaptureFixture
) -> None:
    """It was meant for a future that the listener asked, not for the call."""
    heard: list[Event] = []

    def cancelled(_event: Event) -> None:
        raise asyncio.CancelledError

    breaker.add_listener(cancelled)
    breaker.add_listener(heard.append)
    breaker.open()

    assert len(heard) == 1
    assert "failed; it will not be reported again" in caplog.text


def test_interrupt_in_a_listener_is_no_fault_of_the_listener(breaker: CircuitBreaker) -> None:
    """It goes through to whoever made the call, and the next event is delivered all the same."""
    heard: list[type[Event]] = []

    def interrupted(event: Event) -> None:
        heard.append(type(event))
        if len(heard) == 1:
            raise KeyboardInterrupt

    breaker.add_listener(interrupted)

    with pytest.raises(KeyboardInterrupt):
        breaker.open()
    breaker.close()

    assert heard == [CircuitOpened, CircuitClosed]


def test_removed_listener_hears_nothing_more(breaker: CircuitBreaker) -> None:
    """One removal undoes one registration; removing what is not there is an error."""
    heard: list[Event] = []
    listener = heard.append
    breaker.add_listener(listener)
    breaker.add_listener(listener)

    breaker.remove_listener(listener)
    breaker.open()
    breaker.remove_listener(listener)
    breaker.close()

    assert len(heard) == 1
    with pytest.raises(ValueError, match="is not a listener here"):
        breaker.remove_listener(listener)
    with pytest.raises(ValueError, match="is not a listener here"):
        events.remove_listener(listener)


def test_listener_that_removes_itself_hurts_no_other(breaker: CircuitBreaker) -> None:
    """The set of listeners may change while it is told."""
    heard: list[type[Event]] = []

    def once(event: Event) -> None:
        heard.append(type(event))
        breaker.remove_listener(once)

    breaker.add_listener(once)
    breaker.add_listener(lambda event: heard.append(type(event)))

    breaker.open()
    breaker.close()

    assert heard == [CircuitOpened, CircuitOpened, CircuitClosed]


def test_listener_must_be_callable(breaker: CircuitBreaker) -> None:
    """A listener that could never be told is refused at once."""
    with pytest.raises(TypeError, match="listener must be callable, got 7"):
        breaker.add_listener(7)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="listener must be callable, got 7"):
        events.add_listener(7)  # type: ignore[arg-type]


def test_listener_of_a_pipeline_hears_all_its_policies() -> None:
    """And none of them after its removal."""
    heard: list[str] = []
    pipeline = Pipeline(Fallback("instead"), CircuitBreaker("b", fail_max=1))

    def listener(event: Event) -> None:
        heard.append(event.policy)

    @pipeline
    def fail() -> str:
        raise LookupError

    pipeline.add_listener(listener)
    assert fail() == "instead"
    assert heard == ["b", "fallback"]
    pipeline.remove_listener(listener)
    assert fail() == "instead"
    assert heard == ["b", "fallback"]


def test_events_of_many_threads_are_told_one_after_another() -> None:
    """A listener never runs twice at the same time for one policy, and misses nothing."""
    announcer, inside, clashes, heard = Announcer(), threading.Lock(), [], []

    def listener(event: Event) -> None:
        if not inside.acquire(blocking=False):
            clashes.append(event)
            return
        heard.append(event)
        inside.release()

    announcer.listeners.add(listener)
    posters = [
        threading.Thread(target=lambda: [announcer.announce(CircuitHalfOpened("b")) for _ in range(200)])
        for _ in range(4)
    ]
    for poster in posters:
        poster.start()
    for poster in posters:
        poster.join()
    for helper in helpers():
        helper.join(5.0)

    assert not clashes
    assert len(heard) == 800


def helpers() -> list[threading.Thread]:
    """Return the threads that deliver what piled up."""
    return [thread for thread in threading.enumerate() if thread.name == "resilient-events"]


def test_call_delivers_its_share_and_a_thread_the_rest() -> None:
    """However much is pending, a call is held up by so many events; all are told, in order, without it."""
    announcer, heard, all_told = Announcer(), list[tuple[str, str]](), threading.Event()

    def listener(event: Event) -> None:
        heard.append((event.policy, threading.current_thread().name))
        if event.policy == "0":
            for number in range(1, 100):  # as other threads would meanwhile
                announcer.post(CircuitHalfOpened(str(number)))
        if event.policy == "99":
            all_told.set()

    announcer.listeners.add(listener)
    announcer.announce(CircuitHalfOpened("0"))

    assert all_told.wait(5.0)
    assert [policy for policy, _ in heard] == [str(number) for number in range(100)]
    mine = [policy for policy, thread in heard if thread == threading.current_thread().name]
    assert 1 < len(mine) < 50
    assert {thread for policy, thread in heard if policy not in mine} == {"resilient-events"}


def test_without_a_thread_to_help_a_call_delivers_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Late in the life of an interpreter there are no new threads; nothing is left lying."""
    announcer, heard = Announcer(), []

    def no_thread(_self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_thread)
    announcer.listeners.add(heard.append)
    for _ in range(99):
        announcer.post(CircuitHalfOpened("b"))
    announcer.deliver()

    assert len(heard) == 99


def test_hanging_listener_costs_a_bounded_number_of_events(caplog: pytest.LogCaptureFixture) -> None:
    """What waits for it does not pile up: the oldest give way, which is logged once, and calls go on."""
    announcer, heard = Announcer(), []
    hanging, release = threading.Event(), threading.Event()

    def listener(event: Event) -> None:
        hanging.set()
        release.wait(10.0)
        heard.append(event.policy)

    announcer.listeners.add(listener)
    caller = threading.Thread(target=announcer.announce, args=(CircuitHalfOpened("first"),))
    caller.start()
    assert hanging.wait(5.0)
    with caplog.at_level(logging.WARNING, logger="resilient"):
        for number in range(5000):
            announcer.announce(CircuitHalfOpened(str(number)))

    assert len(announcer._pending) == 1000
    assert announcer.dropped == 4000
    assert len(caplog.records) == 1
    assert "too slow, the oldest events are dropped" in caplog.text
    release.set()
    caller.join(5.0)
    for helper in helpers():
        helper.join(5.0)
    assert heard == ["first", *(str(number) for number in range(4000, 5000))]


def test_events_are_frozen_and_name_their_policy() -> None:
    """Every event class is a frozen dataclass below `Event`, and exported."""
    kinds = [kind for kind in vars(events).values() if isinstance(kind, type) and issubclass(kind, Event)]

    assert {kind.__name__ for kind in kinds} <= set(events.__all__)
    for kind in kinds:
        event = kind(*("x" for _ in dataclasses.fields(kind)))
        assert event.policy == "x"
        with pytest.raises(dataclasses.FrozenInstanceError):
            event.policy = "other"  # type: ignore[misc]


def test_error_text_is_one_short_line() -> None:
    """What is kept of an exception is safe to log: no line breaks, bounded, and made without its help."""

    class MuteError(Exception):
        def __str__(self) -> str:
            raise LookupError

    assert error_text(ValueError("two\nlines\t here")) == "ValueError: two lines here"
    assert len(error_text(ValueError("x" * 10_000))) == 200
    assert error_text(MuteError()) == "MuteError"


def test_error_text_leaves_no_half_of_an_address() -> None:
    """What is cut short in the middle of a URL goes altogether: half a password would not be masked."""
    for before in range(150, 200):
        text = error_text(OSError(f"{'x' * before} postgresql://shop:SECRET0123456789@db/orders refused"))
        assert len(text) <= 200
        assert "SECRET" not in text or "SECRET0123456789@db" in text


def test_error_text_never_fails() -> None:
    """Neither a class that will not say its name nor a message that will not be made hides the failure."""

    class Nameless(type):
        @property
        def __name__(cls) -> str:  # type: ignore[override]
            raise LookupError

    class HiddenError(Exception, metaclass=Nameless):
        pass

    assert error_text(HiddenError("message")) == "HiddenError"
