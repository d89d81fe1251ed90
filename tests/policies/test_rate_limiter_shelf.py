"""The shelf: bounded, the least recently used go first, those over their limit stay, and it costs little."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.policies.rate_limiter_support import each_strategy, limiter_of

from resilient.engine.shelf import Shelf
from resilient.testing import FakeClock


def none_is_kept(_state: Any, _now: float) -> bool:
    return False


def use(shelf: Shelf, key: str, state: Any = True, now: float = 0.0) -> bool:
    """Do what a decision does; return whether the key is on the shelf now."""
    if shelf.find(key) is None and not shelf.has_room(now):
        shelf.pass_over()
        return False
    return shelf.put(key, state, now)


def keys_on(shelf: Shelf) -> set[str]:
    """Return the keys that are kept."""
    return set(shelf.states)


def last_used(keys: Iterable[str], number: int) -> set[str]:
    """Return the *number* keys that were used last."""
    order: OrderedDict[str, None] = OrderedDict()
    for key in keys:
        order[key] = None
        order.move_to_end(key)
    return set(list(order)[-number:]) if number else set()


KEYS = st.lists(st.integers(0, 40).map(str), max_size=200)


@given(size=st.integers(1, 40), keys=KEYS)
def test_shelf_keeps_exactly_the_last_used(size: int, keys: list[str]):
    """Nothing goes that is among the last used, and nothing else stays."""
    shelf = Shelf(size, none_is_kept)
    misses = 0
    for number, key in enumerate(keys, start=1):
        misses += shelf.find(key) is None
        assert use(shelf, key)
        assert keys_on(shelf) == last_used(keys[:number], size)
        assert shelf.evicted == misses - len(shelf)


@given(size=st.integers(1, 40), keys=KEYS, kept=st.sets(st.integers(0, 40).map(str)))
def test_state_to_be_kept_is_never_forgotten(size: int, keys: list[str], kept: set[str]):
    """Those over their limit stay, however many others come; the others go."""
    shelf = Shelf(size, lambda state, _now: state in kept)
    placed: set[str] = set()
    for now, key in enumerate(keys):
        if use(shelf, key, state=key, now=float(now)):
            placed.add(key)
        assert placed & kept <= keys_on(shelf)
        assert len(shelf) <= size


@given(size=st.integers(1, 400), kept=st.integers(0, 400), each=st.integers(1, 3))
def test_new_key_costs_a_bounded_number_of_looks(size: int, kept: int, each: int):
    """However many states have to be kept: eight looks for a new key, and no more."""
    looks = itertools.count()

    def is_kept(state: bool, _now: float) -> bool:
        next(looks)
        return state

    shelf = Shelf(size, is_kept)
    for number in range(20 * size):
        before = next(looks)
        use(shelf, str(number), number % each == 0 and number // each < kept)
        assert next(looks) - before - 1 <= 2 * 8


def test_room_is_found_behind_keys_that_have_to_be_kept():
    """Those that had to be kept are not looked at again before all others: soon, there is room."""
    shelf = Shelf(80, lambda state, _now: state == "over")
    for number in range(40):
        use(shelf, f"over {number}", "over")
    for number in range(40):
        use(shelf, f"idle {number}", "idle")

    placed = [use(shelf, f"new {number}", "idle") for number in range(40)]

    assert placed.count(False) <= 40 // 8
    assert {f"over {number}" for number in range(40)} <= keys_on(shelf)


# As the limiter has it.


@each_strategy
@pytest.mark.parametrize("max_keys", [1, 2, 8, 9, 100])
def test_limiter_keeps_at_most_its_keys(strategy: str, max_keys: int):
    """And tells how many made room."""
    limiter = limiter_of("5/hour", FakeClock(), strategy=strategy, max_keys=max_keys)
    for number in range(5 * max_keys):
        assert limiter.hit(str(number))

    stats = limiter.stats()
    assert stats.keys <= max_keys
    assert stats.keys + stats.evicted == 5 * max_keys


@each_strategy
@pytest.mark.parametrize("how", ["hit", "peek", "dear", "settle"])
def test_key_in_constant_use_is_not_forgotten(strategy: str, how: str):
    """In whichever way the others are used: of those that come by, none pushes it out."""
    limiter = limiter_of("1000/hour", FakeClock(), strategy=strategy, max_keys=20)
    others: dict[str, Callable[[str], object]] = {
        "hit": limiter.hit,
        "peek": limiter.peek,
        "dear": lambda key: limiter.hit(key, cost=2),
        "settle": lambda key: limiter.settle(limiter.hit(key), 5),
    }
    for number in range(200):
        assert limiter.hit("ann").remaining == 999 - number
        others[how](f"other {number}")


@each_strategy
def test_flood_of_keys_does_not_forgive_who_is_over_the_limit(strategy: str):
    """Whoever is denied stays denied until time has passed, whatever else comes."""
    clock = FakeClock()
    limiter = limiter_of("3/hour", clock, strategy=strategy, max_keys=50)
    abusers = [f"abuser {number}" for number in range(10)]
    for abuser in abusers * 3:
        assert limiter.hit(abuser)

    for number in range(5_000):
        limiter.hit(str(number))
        assert not limiter.hit(abusers[number % 10])

    clock.advance(2 * 3_600.0)
    assert all(limiter.hit(abuser) for abuser in abusers)


@each_strategy
def test_crowd_without_room_has_together_what_one_key_has(strategy: str):
    """When every kept key is over its limit, all new ones together have three calls; nobody is forgotten."""
    clock = FakeClock()
    limiter = limiter_of("3/hour", clock, strategy=strategy, max_keys=20)
    settled = [f"settled {number}" for number in range(200)]
    for key in settled:
        for _ in range(3):
            limiter.hit(key)
    kept = limiter.stats().keys

    newcomers = [f"new {number}" for number in range(100)]
    assert sum(limiter.hit(key).allowed for key in newcomers) <= 3
    assert not any(limiter.hit(key).allowed for key in newcomers + settled)
    assert not any(limiter.peek(key).allowed for key in newcomers)
    assert limiter.stats().keys == kept <= 20

    clock.advance(2 * 3_600.0)
    assert all(limiter.hit(key).allowed for key in newcomers[:20])


@each_strategy
def test_nobody_is_forgotten_where_nothing_is_stored(strategy: str):
    """A look, and a call that is denied, take no room."""
    limiter = limiter_of("5/hour", FakeClock(), strategy=strategy, max_keys=10)
    for number in range(10):
        limiter.hit(str(number), cost=3)

    for number in range(100):
        assert limiter.peek(f"peeked {number}").remaining == 5
        assert not limiter.hit(f"denied {number}", cost=6)
        limiter.refund(limiter.peek(f"peeked {number}"))

    assert limiter.stats().evicted == 0
    assert all(limiter.peek(str(number)).remaining == 2 for number in range(10))


@each_strategy
def test_peek_of_a_new_key_tells_what_the_crowd_has(strategy: str):
    """Where all who are kept have to stay; and the next call is told the same, however often one looks."""
    limiter = limiter_of("5/hour", FakeClock(), strategy=strategy, max_keys=16)
    for number in range(8):
        limiter.hit(f"used up {number}", cost=5)
    for number in range(8):
        limiter.hit(f"idle {number}", cost=3)
    for number in range(3):
        assert limiter.peek(f"new {number}").remaining == 5

    assert limiter.hit("new", cost=4).remaining == 1
    assert limiter.stats().keys == 16
    assert limiter.stats().evicted == 0, "it joined the crowd"


@each_strategy
@pytest.mark.parametrize("correct", ["refund", "settle"])
def test_crowd_takes_corrections(strategy: str, correct: str):
    """A call of the crowd that is given back or dearer than thought never lets more in than one key may."""
    limiter = limiter_of("4/hour", FakeClock(), strategy=strategy, max_keys=1)
    assert limiter.hit("settled", cost=4)
    decision = limiter.hit("new")
    act: dict[str, Callable[[], None]] = {
        "refund": lambda: limiter.refund(decision),
        "settle": lambda: limiter.settle(decision, 3),
    }
    act[correct]()

    assert (
        sum(limiter.hit(f"another {number}").allowed for number in range(9))
        <= {"refund": 4, "settle": 1}[correct]
    )
    assert not limiter.hit("settled")
