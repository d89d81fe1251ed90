"""Events are told in the context in which they happened, whoever tells them."""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar

from resilient import CircuitBreaker
from resilient.events import Announcer, CircuitHalfOpened, Event

REQUEST: ContextVar[str] = ContextVar("request", default="none")


def test_event_is_told_in_its_context_by_another_thread() -> None:
    """A thread that finds the turn taken leaves its event to that one, and its context too."""
    announcer, heard = Announcer(), list[tuple[str, str, str]]()

    def other_call() -> None:
        REQUEST.set("second")
        announcer.announce(CircuitHalfOpened("second"))

    def listener(event: Event) -> None:
        heard.append((event.policy, REQUEST.get(), threading.current_thread().name))
        if event.policy == "first":
            other = threading.Thread(target=other_call)
            other.start()
            other.join()

    announcer.listeners.add(listener)
    token = REQUEST.set("first")
    announcer.announce(CircuitHalfOpened("first"))
    REQUEST.reset(token)

    mine = threading.current_thread().name
    assert heard == [("first", "first", mine), ("second", "second", mine)]


def test_events_handed_on_to_a_thread_are_told_in_their_contexts() -> None:
    """So many that a call does not deliver them all."""
    announcer, all_told = Announcer(), threading.Event()
    heard = list[tuple[str, str, str]]()

    def listener(event: Event) -> None:
        heard.append((event.policy, REQUEST.get(), threading.current_thread().name))
        if event.policy == "29":
            all_told.set()

    announcer.listeners.add(listener)
    for number in range(30):
        token = REQUEST.set(str(number))
        announcer.post(CircuitHalfOpened(str(number)))
        REQUEST.reset(token)
    announcer.deliver()

    assert all_told.wait(5.0)
    assert [(policy, request) for policy, request, _ in heard] == [(str(n), str(n)) for n in range(30)]
    assert heard[-1][2] == "resilient-events"


async def test_event_is_told_in_the_context_of_its_task() -> None:
    """Also where the task has ended before another one delivers."""
    announcer, heard = Announcer(), list[tuple[str, str]]()
    announcer.listeners.add(lambda event: heard.append((event.policy, REQUEST.get())))

    async def post() -> None:
        REQUEST.set("first")
        announcer.post(CircuitHalfOpened("first"))

    async def announce() -> None:
        REQUEST.set("second")
        announcer.announce(CircuitHalfOpened("second"))

    await asyncio.create_task(post())
    await asyncio.create_task(announce())

    assert heard == [("first", "first"), ("second", "second")]


def test_listener_changes_nothing_in_the_context_of_the_call() -> None:
    """It runs in a copy, which the listeners of one event share."""
    breaker, seen = CircuitBreaker("payments"), list[str]()
    breaker.add_listener(lambda _event: REQUEST.set("the listener's"))
    breaker.add_listener(lambda _event: seen.append(REQUEST.get()))

    breaker.open()
    breaker.close()

    assert REQUEST.get() == "none"
    assert seen == ["the listener's", "the listener's"]
