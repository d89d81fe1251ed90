"""What the log says of a borrower: once, with file and line, and whatever fails on the way."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from resilient.events import Announcer, Event
from resilient.pool.borrowers import Borrower
from resilient.pool.reports import collection_of, late_return_of, leak_of, reclaim_of, tell

BORROWER = Borrower(
    where="shop.py:7 in pay",
    stack=("shop.py:7 in pay", "shop.py:3 in main"),
    thread="MainThread",
    task="checkout",
    held_for=31.25,
    leaked=True,
)

EVENTS = {
    "leak": (
        leak_of("orders", BORROWER),
        logging.WARNING,
        "held for 31.2 s, by task checkout",
    ),
    "late": (late_return_of("orders", BORROWER), logging.INFO, "returned after 31.2 s"),
    "reused": (collection_of("orders", BORROWER, reused=True), logging.WARNING, "it is back in the pool"),
    "closed": (collection_of("orders", BORROWER, reused=False), logging.WARNING, "it was closed"),
    "reclaim": (reclaim_of("orders", BORROWER), logging.WARNING, "taken from task checkout"),
}


def report(announcer: Announcer, event: Event) -> None:
    announcer.post(event)
    tell(announcer, event)


@pytest.mark.parametrize("kind", EVENTS)
def test_report_is_an_event_and_a_line(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """The listener hears the event; the log has pool, borrower, time and place."""
    event, level, words = EVENTS[kind]
    announcer, heard = Announcer(), list[Event]()
    announcer.listeners.add(heard.append)

    with caplog.at_level(logging.DEBUG, "resilient"):
        report(announcer, event)

    assert heard == [event]
    (record,) = caplog.records
    assert record.levelno == level
    assert words in record.getMessage()
    assert "pool 'orders'" in record.getMessage()
    assert "shop.py:7 in pay" in record.getMessage()


def test_stack_follows_on_lines_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    """The place first, then the way there, innermost first; no line twice."""
    within = ("contextlib.py:137 in __enter__", *BORROWER.stack)
    for stack in (BORROWER.stack, within):
        report(Announcer(), leak_of("orders", replace(BORROWER, stack=stack)))

    assert [record.getMessage().splitlines()[1:] for record in caplog.records] == [
        ["    Borrowed at shop.py:7 in pay", "    shop.py:3 in main"],
        ["    Borrowed at shop.py:7 in pay", *(f"    {line}" for line in within)],
    ]


def test_telling_posts_nothing_by_itself() -> None:
    """A pool posts under its lock, and tells when it has let go of it."""
    announcer, heard = Announcer(), list[Event]()
    announcer.listeners.add(heard.append)
    event = EVENTS["leak"][0]

    announcer.post(event)
    assert heard == []
    tell(announcer, event)

    assert heard == [event]


def test_log_that_fails_reaches_nobody() -> None:
    """A filter of the user's may raise; the listeners hear the event all the same."""
    announcer, heard = Announcer(), list[Event]()
    announcer.listeners.add(heard.append)

    def fail(record: logging.LogRecord) -> bool:
        raise LookupError(record)

    logger = logging.getLogger("resilient")
    logger.addFilter(fail)
    try:
        report(announcer, EVENTS["leak"][0])
    finally:
        logger.removeFilter(fail)

    assert heard == [EVENTS["leak"][0]]
