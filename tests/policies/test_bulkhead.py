"""A bulkhead: so many calls at a time; what it counts; slots that cannot be lost; other limits as it goes."""

from __future__ import annotations

import asyncio
import pickle
import threading

import pytest
from tests.policies.bulkhead_support import fill, give, slots_left, take

from resilient import AIMD, Bulkhead, BulkheadFullError
from resilient.testing import FakeClock


class GoneError(BaseException):
    """What ends a call without saying anything of it."""


# Slots


def test_as_many_calls_run_as_there_are_slots():
    """And not one more."""
    bulkhead = Bulkhead("payments", 3)
    blocks = [take(bulkhead) for _ in range(3)]

    with pytest.raises(BulkheadFullError):
        take(bulkhead)
    give(blocks.pop())
    blocks.append(take(bulkhead))
    with pytest.raises(BulkheadFullError):
        bulkhead.call(int)


def test_slots_of_a_very_high_limit_are_made_as_they_are_asked_for():
    """It costs what is in use, not what could be."""
    bulkhead = Bulkhead("b", 10**9)
    blocks = [take(bulkhead) for _ in range(1_000)]

    assert bulkhead.stats().in_use == 1_000
    bulkhead.resize(1_001)
    assert len(fill(bulkhead)) == 1
    for block in blocks:
        give(block)
    assert slots_left(bulkhead) == 1_001


def test_refusal_says_how_full_it_is():
    """In its text and in its attributes, wherever it is sent to."""
    bulkhead = Bulkhead("payments", 2)
    blocks = fill(bulkhead)
    with pytest.raises(BulkheadFullError) as caught:
        take(bulkhead)

    error = pickle.loads(pickle.dumps(caught.value))
    assert str(error) == "bulkhead 'payments' is full: 2 of 2 slots are taken"
    assert (error.policy, error.limit, error.in_use, error.waiting) == ("payments", 2, len(blocks), 0)
    assert error.retry_after is None


@pytest.mark.parametrize(
    "error", [None, ValueError(), TimeoutError(), GoneError(), GeneratorExit()], ids=repr
)
def test_block_gives_its_slot_back_however_it_ends(error: BaseException | None):
    """And swallows nothing."""
    bulkhead = Bulkhead("b", 1)
    block = bulkhead.calling()

    def work() -> None:
        with block:
            assert bulkhead.stats().in_use == 1
            if error is not None:
                raise error

    if error is None:
        work()
    else:
        with pytest.raises(type(error)) as caught:
            work()
        assert caught.value is error
    assert bulkhead.stats().in_use == 0
    assert slots_left(bulkhead) == 1


async def test_asynchronous_block_is_the_same():
    """Entered and left without waiting for anything."""
    bulkhead = Bulkhead("b", 1)
    async with bulkhead.calling() as nothing:
        assert nothing is None
        with pytest.raises(BulkheadFullError):
            await bulkhead.acall(asyncio.sleep, 0)
    assert slots_left(bulkhead) == 1


def test_block_that_is_left_twice_gives_back_once():
    """It has one slot to give."""
    bulkhead = Bulkhead("b", 2)
    block, other = take(bulkhead), take(bulkhead)
    give(block)
    give(block)

    assert bulkhead.stats().in_use == 1
    assert slots_left(bulkhead) == 1
    give(other)


def test_block_that_was_never_entered_gives_nothing_back():
    """It has none."""
    bulkhead = Bulkhead("b", 1)
    give(bulkhead.calling())
    assert slots_left(bulkhead) == 1


def test_block_that_was_refused_gives_nothing_back():
    """Nor has this one."""
    bulkhead = Bulkhead("b", 1)
    held, refused = take(bulkhead), bulkhead.calling()
    with pytest.raises(BulkheadFullError):
        refused.__enter__()
    give(refused)

    assert bulkhead.stats().in_use == 1
    give(held)
    assert slots_left(bulkhead) == 1


def test_slot_may_be_given_back_by_another_thread():
    """A connection may be taken here and closed there."""
    bulkhead = Bulkhead("b", 1)
    thread = threading.Thread(target=give, args=(take(bulkhead),))
    thread.start()
    thread.join()
    assert slots_left(bulkhead) == 1


def test_one_bulkhead_is_shared_by_all_it_guards():
    """Functions, direct calls and blocks have the same slots."""
    bulkhead = Bulkhead("b", 1)

    @bulkhead
    def outer() -> None:
        inner()

    @bulkhead
    def inner() -> None: ...

    for call in (outer, lambda: bulkhead.call(inner), lambda: bulkhead.call(bulkhead.call, int)):
        with pytest.raises(BulkheadFullError):
            call()
    inner()


# No lock


class Elsewhere:
    """Another thread, which holds the bulkhead's lock inside the block."""

    def __init__(self, bulkhead: Bulkhead) -> None:
        self._lock = bulkhead._desk.books.lock
        self._held, self._done = threading.Event(), threading.Event()
        self._in_time = False
        self._thread = threading.Thread(target=self._hold)

    def _hold(self) -> None:
        with self._lock:
            self._held.set()
            self._in_time = self._done.wait(1.0)

    def __enter__(self) -> None:
        self._thread.start()
        assert self._held.wait(10.0)

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        assert self._in_time, "somebody waited for the lock"


async def test_call_takes_no_lock_while_nobody_waits():
    """Functions, coroutines and the entering of blocks, while slots are free."""
    bulkhead = Bulkhead("b", 1)
    bulkhead.call(int)
    block = bulkhead.calling()

    with Elsewhere(bulkhead):
        assert bulkhead.call(str) == ""
        assert await bulkhead.acall(asyncio.sleep, 0, "slept") == "slept"
        block.__enter__()
    give(block)


@pytest.mark.parametrize("trouble", ["wait in vain", "lower limit", "lost slot"])
def test_call_takes_no_lock_again_when_the_trouble_is_over(trouble: str):
    """One wait must not make all calls slower that come after."""
    bulkhead = Bulkhead("b", 2, max_wait=0.001)
    blocks = fill(bulkhead)
    if trouble == "wait in vain":
        with pytest.raises(BulkheadFullError):
            take(bulkhead)
    elif trouble == "lower limit":
        bulkhead.resize(1)
    else:
        blocks.pop()
        bulkhead.resize(2)
    while blocks:
        give(blocks.pop())

    with Elsewhere(bulkhead):
        assert bulkhead.call(str) == ""


# Other limits as it goes


def test_higher_limit_holds_at_once():
    """For who comes next."""
    bulkhead = Bulkhead("b", 1)
    blocks = fill(bulkhead)
    bulkhead.resize(3)

    assert bulkhead.limit == bulkhead.stats().limit == 3
    assert len(fill(bulkhead)) == 2
    assert len(blocks) == 1


def test_lower_limit_lets_calls_end():
    """More slots are taken than there are, until enough calls have ended; nobody is cut off or blocked."""
    bulkhead = Bulkhead("b", 5)
    blocks = fill(bulkhead)
    bulkhead.resize(2)

    for taken in (5, 4, 3, 2):
        stats = bulkhead.stats()
        assert (stats.limit, stats.in_use) == (2, taken)
        with pytest.raises(BulkheadFullError, match=rf"^bulkhead 'b' is full: {taken} of 2 slots are taken$"):
            take(bulkhead)
        give(blocks.pop())
    assert slots_left(bulkhead) == 1
    for block in blocks:
        give(block)
    assert slots_left(bulkhead) == 2


def test_limit_that_goes_down_and_up_again_while_calls_run_stays_exact():
    """Slots that were to go are kept if they are wanted again before their call has ended."""
    bulkhead = Bulkhead("b", 4)
    blocks = fill(bulkhead)
    for limit in (1, 3, 2, 6, 4):
        bulkhead.resize(limit)
    give(blocks.pop())

    assert slots_left(bulkhead) == 1
    blocks.clear()
    assert slots_left(bulkhead) == 4


def test_fixed_limit_and_adaptive_one_take_turns():
    """Each for as long as it is there."""
    bulkhead = Bulkhead("b", 3)
    assert bulkhead.stats().adaptive is None

    bulkhead.resize(AIMD(initial=7))
    adaptive = bulkhead.stats().adaptive
    assert adaptive is not None
    assert (bulkhead.limit, adaptive.algorithm, adaptive.limit) == (7, "aimd", 7.0)

    bulkhead.resize(2)
    assert (bulkhead.limit, bulkhead.stats().adaptive) == (2, None)
    assert slots_left(bulkhead) == 2


def test_what_ran_under_another_limit_tells_the_next_one_nothing():
    """Neither when it ends nor while it goes on."""
    clock = FakeClock()
    aimd = AIMD(initial=20, window=1.0, min_samples=1, timeout=50.0)
    bulkhead = Bulkhead("b", aimd, clock=clock)
    before = [take(bulkhead) for _ in range(6)]
    bulkhead.resize(20)
    give(before.pop())
    for block in before[:2]:
        give(block)
    clock.advance(100.0)
    bulkhead.resize(aimd)

    for _ in range(3):
        clock.advance(2.0)
        assert bulkhead.call(str) == ""
    for block in before:
        give(block)
    clock.advance(2.0)
    bulkhead.call(str)

    adaptive = bulkhead.stats().adaptive
    assert adaptive is not None
    assert (adaptive.limit, adaptive.overdue, adaptive.dropped, adaptive.rtt) == (20.0, 0, 0, 0.0)


@pytest.mark.parametrize("shape", ["function", "coroutine"])
async def test_call_that_ends_beyond_a_lower_limit_takes_its_slot_along(shape: str):
    """Although there were enough when it began."""
    bulkhead = Bulkhead("b", 3)

    @bulkhead
    def work() -> None:
        bulkhead.resize(1)

    @bulkhead
    async def awork() -> None:
        bulkhead.resize(1)

    blocks = [take(bulkhead)]
    if shape == "function":
        work()
    else:
        await awork()
    assert slots_left(bulkhead) == 0
    give(blocks.pop())
    assert slots_left(bulkhead) == 1


# Forks


def test_child_process_has_all_its_slots_whatever_the_parent_held():
    """Its other threads give none back there, and what the one that forked gives back was the parent's."""
    bulkhead = Bulkhead("b", 2)
    inherited = take(bulkhead)

    bulkhead.after_fork()  # as in a child

    assert bulkhead.stats().in_use == 0
    give(inherited)
    assert bulkhead.stats().in_use == 0
    assert slots_left(bulkhead) == 2


def test_child_process_waits_for_no_lock_of_its_parent():
    """A thread that held it was not copied."""
    bulkhead = Bulkhead("b", 2)
    with Elsewhere(bulkhead):
        bulkhead.after_fork()  # as in a child
        bulkhead.resize(1)
        assert bulkhead.limit == slots_left(bulkhead) == 1


# Statistics


def test_statistics_add_up():
    """Each call is counted once, as what became of it."""
    bulkhead = Bulkhead("b", 2, max_wait=0.001, max_queue=0)
    for error in (None, ValueError(), GoneError()):
        give(take(bulkhead), error)
    blocks = fill(bulkhead)  # and one that is refused
    with pytest.raises(BulkheadFullError):
        bulkhead.call(int)

    stats = bulkhead.stats()
    assert (stats.limit, stats.in_use, stats.waiting) == (2, 2, 0)
    assert (stats.calls, stats.rejected, stats.gave_up, stats.put_out) == (5, 2, 0, 0)
    assert (stats.abandoned, stats.keys, stats.evicted, stats.adaptive) == (0, 0, 0, None)
    assert repr(bulkhead) == "<Bulkhead 'b' 2 of 2 slots taken, 0 waiting, 2 rejected>"
    assert len(blocks) == 2


def test_looking_at_the_statistics_counts_nothing():
    """However often."""
    bulkhead = Bulkhead("b", 1)
    assert {bulkhead.stats().calls for _ in range(5)} == {0}
    bulkhead.call(int)
    assert {bulkhead.stats().calls for _ in range(5)} == {1}
