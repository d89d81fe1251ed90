"""The books: every loan is accounted for, whoever returns it, whenever it is found."""

from __future__ import annotations

import gc
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from tests.pool.watching.conftest import Clock
from tests.support.waiting import wait_until

from resilient.events import Announcer, ConnectionCollected, ConnectionLeaked, Event
from resilient.pool.watching.ledger import Ledger, Loan, frame_at


class Connection:
    """Something that can be lent."""


class Books:
    """A ledger, and what is heard of it."""

    def __init__(self, clock: Callable[[], float], leak_after: float | None = 30.0) -> None:
        announcer = Announcer(private=True)
        self.heard: list[Event] = []
        announcer.listeners.add(self.heard.append)
        self.ledger = Ledger(
            "orders",
            leak_after=leak_after,
            depth=5,
            skip=frozenset(),
            elsewhere=lambda: None,
            clock=clock,
            announcer=announcer,
            timed=True,
        )

    def lend(self, connection: Any, key: int | None = None) -> None:
        self.ledger.lend(self.ledger.ask(), connection, frame_at(), key)

    def rounds(self, number: int = 2) -> list[type[Event]]:
        for _ in range(number):
            self.ledger.round()
        return [type(event) for event in self.heard]


@pytest.fixture
def books(clock: Clock) -> Books:
    return Books(clock)


def test_address_of_one_that_is_gone_may_be_anothers(books: Books) -> None:
    """Both are known apart, though they have the same hash, as objects of the same address have."""

    class Addressed(Connection):
        def __hash__(self) -> int:
            return 7

    connection = Addressed()
    books.lend(connection)
    del connection
    gc.collect()
    other = Addressed()
    books.lend(other)
    assert books.ledger.lent == 2

    assert books.rounds() == [ConnectionCollected]
    assert books.ledger.lent == 1
    books.ledger.take_back(other)
    assert books.ledger.lent == 0
    assert books.rounds() == [ConnectionCollected]


def test_finalizer_may_return_what_was_forgotten_after_a_round_saw_it(books: Books) -> None:
    """It may take its time, for it speaks to the server; then the pool does have it back."""
    connection = Connection()
    books.lend(connection, key=7)
    del connection
    gc.collect()

    assert books.rounds(1) == []
    books.ledger.take_back_by(7)
    assert books.rounds() == [ConnectionCollected]
    assert isinstance(books.heard[0], ConnectionCollected)
    assert books.heard[0].reused


def test_one_that_was_reported_and_then_forgotten_is_no_leak_any_more(books: Books, clock: Clock) -> None:
    """Its end is reported, too; it is not called a late return."""
    connection = Connection()
    books.lend(connection)
    clock.now += 31.0
    assert books.rounds() == [ConnectionLeaked]

    del connection
    gc.collect()

    assert books.rounds() == [ConnectionLeaked, ConnectionCollected]
    assert (books.ledger.leaked, books.ledger.lent, books.ledger.late) == (0, 0, 0)


def test_one_that_is_returned_while_it_is_found_overdue_is_not_reported(books: Books, clock: Clock) -> None:
    """Between the two moments of a round: neither a leak nor a late return."""
    connection = Connection()
    books.lend(connection)
    clock.now += 31.0
    loans = books.ledger._loans

    class Returned(dict[Any, Any]):
        """Loses everything once it has been looked through."""

        def values(self) -> Any:
            seen = list(super().values())
            for loan in seen:
                books.ledger.take_back(loan())
            return seen

    books.ledger._loans = Returned(loans)

    assert books.rounds() == []
    assert (books.ledger.leaks, books.ledger.late, books.ledger.lent) == (0, 0, 0)


def test_who_gives_up_is_not_waiting(books: Books) -> None:
    """In vain or for another reason."""
    one, other = books.ledger.ask(), books.ledger.ask()
    assert books.ledger.pending == 2

    books.ledger.give_up(one, late=TimeoutError())
    books.ledger.give_up(other)

    assert (books.ledger.pending, books.ledger.timeouts, books.ledger.loans) == (0, 1, 0)


def test_who_was_interrupted_is_not_waiting(books: Books) -> None:
    """A signal's handler may raise anywhere: then nobody says that they give up."""

    def interrupted() -> None:
        books.ledger.ask()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()

    assert books.ledger.pending == 0


def test_unknown_connections_are_nobodys(books: Books) -> None:
    """They were lent before anybody watched."""
    nobodys: list[Any] = [Connection(), None, 7, []]
    for something in nobodys:
        assert books.ledger.take_back(something) is None
    books.ledger.take_back_by(7)
    books.ledger.keep(None)

    assert (books.ledger.lent, books.rounds()) == (0, [])


def test_closed_books_stay_empty(books: Books, clock: Clock) -> None:
    """Whoever has a hook in its hand still may call it."""
    connection = Connection()
    books.lend(connection)
    loan = books.ledger.take_back(connection)
    books.ledger.close()

    books.lend(connection)
    books.ledger.keep(loan)
    books.ledger.give_up(books.ledger.ask(), late=TimeoutError())
    clock.now += 100.0

    assert (books.ledger.lent, books.ledger.pending, books.ledger.timeouts) == (0, 0, 0)
    assert books.rounds() == []


def test_loans_are_no_work_for_the_collector(books: Books) -> None:
    """One is made for every checkout; it goes when it ends."""
    connection = Connection()
    gc.disable()
    try:
        for _ in range(50):
            books.lend(connection)
            books.ledger.take_back(connection)
        assert sum(isinstance(one, Loan) for one in gc.get_objects()) == 0
    finally:
        gc.enable()


def test_number_of_loans_can_be_read_any_number_of_times(books: Books) -> None:
    """Reading counts nothing."""
    assert [books.ledger.loans for _ in range(3)] == [0, 0, 0]
    for _ in range(3):
        books.lend(self := Connection())
        books.ledger.take_back(self)
    assert [books.ledger.loans for _ in range(3)] == [3, 3, 3]


def test_collector_may_return_in_the_middle_of_a_round(books: Books, clock: Clock) -> None:
    """Finalizers run in any thread at any point, in one that has the lock of the books, too."""

    def give_back() -> None:
        books.ledger.take_back_by(7)
        books.ledger.round()

    connection = Connection()
    weakref.finalize(connection, give_back)
    books.lend(connection, key=7)
    cell = [connection]
    del connection

    class Dropping(dict[Any, Any]):
        def values(self) -> Any:
            cell.clear()
            return super().values()

    books.ledger._loans = Dropping(books.ledger._loans)
    clock.now += 31.0

    assert books.rounds() == [ConnectionCollected]
    assert books.ledger.lent == 0


def test_child_knows_nothing_of_its_parents_loans(books: Books) -> None:
    """Those who would return them are in the parent."""
    connection = Connection()
    books.lend(connection)
    asked = books.ledger.ask()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from 3.12 on, where there are threads
        child = os.fork()
    if not child:
        code = 1
        try:
            empty = (books.ledger.lent, books.ledger.pending) == (0, 0)
            books.lend(connection)
            code = 0 if empty and books.ledger.lent == 1 and not books.rounds() else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    assert asked is not None
    assert (books.ledger.lent, books.ledger.pending) == (1, 1)


def test_threads_lose_no_loan() -> None:
    """While they borrow, return and forget, and rounds are made: all adds up."""
    books, threads, each = Books(lambda: 0.0, leak_after=None), 8, 400
    begin = threading.Barrier(threads + 1)
    old = sys.getswitchinterval()

    def work(number: int) -> None:
        begin.wait()
        for turn in range(each):
            connection = Connection()
            books.lend(connection)
            if (turn + number) % 10:
                books.ledger.take_back(connection)
            del connection

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    sys.setswitchinterval(1e-5)
    try:
        for worker in workers:
            worker.start()
        begin.wait()
        while any(worker.is_alive() for worker in workers):
            books.ledger.round()
            workers[0].join(0.001)
    finally:
        sys.setswitchinterval(old)
    for worker in workers:
        worker.join()
    gc.collect()

    books.rounds()
    wait_until(lambda: len(books.heard) == threads * each // 10, "all events")  # others deliver so many
    assert {type(event) for event in books.heard} == {ConnectionCollected}
    assert books.ledger.collected == threads * each // 10
    assert (books.ledger.loans, books.ledger.lent, books.ledger.pending) == (threads * each, 0, 0)


def test_rounds_put_durations_into_bins(books: Books, clock: Clock) -> None:
    """Though nobody asks for them."""
    connection = Connection()
    books.lend(connection)
    clock.now += 2.0
    books.ledger.take_back(connection)
    timings = books.ledger.timings
    assert timings is not None

    books.rounds()
    assert not any(durations._recorder.pending for durations in timings.by_name().values())
    assert (timings.use.count, timings.use.total, timings.wait.total) == (1, 2.0, 0.0)
