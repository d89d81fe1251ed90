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

from resilient.policies.rate_limiter.shelf import Shelf
from resilient.testing import FakeClock


def none_is_kept(_state: Any, _now: float) -> bool:
    return False


def use(shelf: Shelf, key: str, state: Any = True, now: float = 0.0) -> bool:
    """Do what a decision does; return whether the key is on the shelf now."""
    if shelf.find(key, now) is None and not shelf.has_room(now):
        return False
    return shelf.put(key, state, now)


def keys_on(shelf: Shelf) -> set[str]:
    """Return the keys that are kept; each of them must be there once."""
    keys = [key for generation in (shelf.youngest, *shelf._older) for key in generation]
    assert len(keys) == len(set(keys))
    return set(keys)


def last_used(keys: Iterable[str], number: int) -> set[str]:
    """Return the *number* keys that were used last."""
    order: OrderedDict[str, None] = OrderedDict()
    for key in keys:
        order[key] = None
        order.move_to_end(key)
    return set(list(order)[-number:]) if number else set()


KEYS = st.lists(st.integers(0, 40).map(str), max_size=200)


@given(size=st.integers(1, 8), keys=KEYS)
def test_small_shelf_keeps_exactly_the_last_used(size: int, keys: list[str]):
    """Up to a size of eight, nothing goes that is among the last used, and nothing else stays."""
    shelf = Shelf(size, none_is_kept)
    for number, key in enumerate(keys, start=1):
        assert use(shelf, key)
        assert keys_on(shelf) == last_used(keys[:number], size)


@given(size=st.integers(1, 40), keys=KEYS)
def test_shelf_is_bounded_and_keeps_the_last_used_to_within_a_part(size: int, keys: list[str]):
    """At most *size*; and always the last used, but for an eighth of it and what rounding costs."""
    shelf = Shelf(size, none_is_kept)
    surely = size - size // 8 if size % 8 == 0 else size - 2 * (size // 8)
    misses = 0
    for number, key in enumerate(keys, start=1):
        misses += shelf.find(key, 0.0) is None
        assert use(shelf, key)
        assert len(shelf) == len(keys_on(shelf)) <= size
        assert last_used(keys[:number], surely) <= keys_on(shelf)
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


@given(size=st.integers(1, 80), kept=st.integers(0, 80), each=st.integers(1, 10))
def test_use_of_new_keys_costs_a_bounded_number_of_looks(size: int, kept: int, each: int):
    """However many states have to be kept: a few looks for each new key, and one walk for each pause."""
    looks = itertools.count()

    def is_kept(state: bool, _now: float) -> bool:
        next(looks)
        return state

    shelf = Shelf(size, is_kept)
    states = [number % each == 0 and number // each < kept for number in range(20 * size)]
    for number, state in enumerate(states):
        use(shelf, str(number), state)

    assert next(looks) <= 16 * len(states) + 8 * size


def test_full_shelf_is_looked_through_again_after_a_pause():
    """Those that had to be kept may have been forgiven by time."""
    over = True
    shelf = Shelf(16, lambda _state, _now: over)
    for number in range(200):
        use(shelf, str(number))
    over = False

    assert not shelf.has_room(0.0)
    assert shelf.has_room(1.0)


def test_room_is_found_beside_keys_that_have_to_be_kept():
    """A generation full of them does not keep new keys out while the others are full of idle ones."""
    shelf = Shelf(80, lambda state, _now: state == "over")
    for number in range(10):
        use(shelf, f"over {number}", "over")
    for number in range(70):
        use(shelf, f"idle {number}", "idle")

    placed = [use(shelf, f"new {number}", "idle") for number in range(70)]

    assert placed.count(False) <= 8
    assert {f"over {number}" for number in range(10)} <= keys_on(shelf)


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
