"""Slots by key: each key has its own, and idle keys make room."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from tests.policies.bulkhead_support import fill, give, queue_up, take, turns

from resilient import AIMD, Bulkhead, BulkheadFullError
from resilient.testing import FakeClock


def by_tenant(limit: Any = 2, **options: Any) -> Bulkhead:
    """Make a bulkhead that goes by the first argument."""
    options = {"key": lambda tenant, *_, **__: tenant, "clock": FakeClock()} | options
    return Bulkhead("b", limit, **options)


def test_each_key_has_slots_of_its_own():
    """One that has none left takes none of the others'."""
    bulkhead = by_tenant(2)
    blocks = fill(bulkhead, key="ann")

    assert len(blocks) == 2
    with pytest.raises(BulkheadFullError, match=r"^bulkhead 'b' is full: 2 of 2 slots are taken$"):
        bulkhead.call(str, "ann")
    assert bulkhead.call(str, "bob") == "bob"
    assert len(fill(bulkhead, key="bob")) == 2


async def test_key_is_made_of_the_arguments_of_every_kind_of_call():
    """As they were given, of functions and methods, streams, and direct calls of either colour."""
    bulkhead = by_tenant(1)
    seen: list[int] = []

    class Service:
        @Bulkhead("methods", 1, key=lambda self, tenant: tenant)
        def method(self, tenant: str) -> str:
            return tenant

    @bulkhead
    def work(tenant: str) -> None:
        seen.append(bulkhead.stats(tenant).in_use)

    @bulkhead
    async def awork(tenant: str) -> None:
        work("inner")
        seen.append(bulkhead.stats(tenant).in_use)

    @bulkhead
    def stream(tenant: str) -> Iterator[int]:
        yield bulkhead.stats(tenant).in_use

    @bulkhead
    async def astream(tenant: str) -> AsyncIterator[int]:
        yield bulkhead.stats(tenant).in_use

    work("ann")
    await awork("bob")
    bulkhead.call(lambda tenant: seen.append(bulkhead.stats(tenant).in_use), "cid")
    await bulkhead.acall(awork.__wrapped__, "dan")
    seen += [*stream("eva"), *[item async for item in astream("fay")]]

    assert seen == [1] * 8
    assert Service().method("ann") == "ann"
    assert bulkhead.stats().keys == 7
    assert bulkhead.stats().in_use == 0


def test_key_of_none_lets_a_call_in_unlimited():
    """It is counted, and keeps nothing."""
    bulkhead = by_tenant(1)

    @bulkhead
    def work(tenant: str | None, depth: int) -> int:
        return work(tenant, depth - 1) if depth else bulkhead.stats().in_use

    assert work(None, 50) == 0
    assert (bulkhead.stats().calls, bulkhead.stats().keys) == (51, 0)
    with pytest.raises(BulkheadFullError):
        work("ann", 1)


def test_key_that_is_no_text_is_a_mistake():
    """Said at the call, which takes nothing."""
    bulkhead = by_tenant()
    with pytest.raises(TypeError, match=r"^key must be text, got 5$"):
        bulkhead.call(str, 5)
    with pytest.raises(TypeError, match=r"^key must be text, got 5$"):
        take(bulkhead, key=5)  # type: ignore[arg-type]
    assert bulkhead.stats().calls == bulkhead.stats().keys == 0


def test_error_of_the_key_function_is_the_callers():
    """It takes nothing either."""
    bulkhead = Bulkhead("b", 1, key=lambda order: order["tenant"])
    with pytest.raises(KeyError):
        bulkhead.call(str, {})
    assert bulkhead.stats().calls == bulkhead.stats().keys == 0


def test_block_needs_the_key_that_a_call_has():
    """There are no arguments to make it of; and where there are no keys, it can mean nothing."""
    with pytest.raises(TypeError, match=r"^key must be given where the bulkhead goes by key, got None$"):
        by_tenant().calling()
    with pytest.raises(TypeError, match=r"^key goes with key= only, got 'ann'$"):
        Bulkhead("b", 1).calling(key="ann")


async def test_waiting_for_a_slot_is_by_key():
    """Whoever gives back Ann's slot gives it to who waits for one of hers, and Bob waits on."""
    bulkhead = by_tenant(1, max_wait=60.0, max_queue=1)
    (ann,), (bob,) = fill(bulkhead, key="ann"), fill(bulkhead, key="bob")
    served: list[str] = []

    async def call(tenant: str) -> None:
        async with bulkhead.calling(key=tenant):
            served.append(tenant)

    tasks = await queue_up(bulkhead, lambda: call("ann"), lambda: call("bob"))
    assert [bulkhead.stats(key).waiting for key in ("ann", "bob")] == [1, 1]
    with pytest.raises(BulkheadFullError, match="1 calls wait"):
        await call("bob")
    give(bob)
    await turns(lambda: served == ["bob"])
    give(ann)
    await asyncio.gather(*tasks)
    assert served == ["bob", "ann"]


# Room for keys


def test_idle_keys_make_room_and_those_in_use_do_not():
    """The one used least recently goes first."""
    bulkhead = by_tenant(2, max_keys=3)
    ann = take(bulkhead, key="ann")
    for tenant in ("bob", "cid", "bob", "dan"):
        bulkhead.call(str, tenant)

    stats = bulkhead.stats()
    assert (stats.keys, stats.evicted, stats.in_use) == (3, 1, 1)
    assert [bulkhead.stats(key).limit for key in ("ann", "bob", "cid", "dan")] == [2, 2, 0, 2]
    assert bulkhead.stats("ann").in_use == 1
    give(ann)


@pytest.mark.parametrize("use", ["slot", "stream"])
def test_new_key_is_refused_where_all_are_in_use(use: str):
    """Until one of them is not."""
    bulkhead = by_tenant(1, max_keys=2)

    @bulkhead
    def stream(tenant: str) -> Iterator[str]:
        yield tenant

    held: Any = take(bulkhead, key="ann") if use == "slot" else stream("ann")
    if use == "stream":
        next(held)
    bob = take(bulkhead, key="bob")
    with pytest.raises(
        BulkheadFullError, match=r"^bulkhead 'b' keeps 2 keys, each of them in use: no room for another$"
    ) as caught:
        take(bulkhead, key="cid")
    error = caught.value
    assert (error.policy, error.limit, error.in_use, error.waiting) == ("b", None, None, None)
    assert (bulkhead.stats().rejected, bulkhead.stats().evicted) == (1, 0)

    del held
    assert bulkhead.call(str, "cid") == "cid"
    assert bulkhead.stats().evicted == 1
    give(bob)


async def test_key_somebody_waits_for_makes_no_room():
    """Nor one with a slot that was handed on and not taken up yet."""
    bulkhead = by_tenant(1, max_keys=1, max_wait=60.0)
    (held,) = fill(bulkhead, key="ann")
    (task,) = await queue_up(bulkhead, lambda: _call(bulkhead))
    give(held)
    with pytest.raises(BulkheadFullError):
        take(bulkhead, key="bob")
    await task
    assert bulkhead.call(str, "bob") == "bob"


async def test_key_whose_slot_was_lost_makes_no_room_while_somebody_waits_for_it():
    """Who waits gets the slot that takes its place."""
    bulkhead = by_tenant(1, max_keys=1, max_wait=60.0)
    blocks = fill(bulkhead, key="ann")
    (task,) = await queue_up(bulkhead, lambda: _call(bulkhead))
    blocks.clear()
    with pytest.raises(BulkheadFullError):
        take(bulkhead, key="bob")
    bulkhead.resize(1)
    await turns(task.done)
    assert bulkhead.call(str, "bob") == "bob"


async def _call(bulkhead: Bulkhead) -> None:
    async with bulkhead.calling(key="ann"):
        pass


def test_key_whose_slot_was_lost_makes_room():
    """A forgotten block does not keep it for ever."""
    bulkhead = by_tenant(1, max_keys=1)
    held = take(bulkhead, key="ann")
    del held

    assert bulkhead.call(str, "bob") == "bob"
    assert bulkhead.stats().evicted == 1


def test_long_keys_are_kept_short():
    """And told from each other all the same."""
    bulkhead = by_tenant(1)
    first = take(bulkhead, key="x" * 10_000)
    assert bulkhead.call(len, "x" * 9_999) == 9_999
    with pytest.raises(BulkheadFullError):
        bulkhead.call(len, "x" * 10_000)
    assert all(len(key) < 70 for key in bulkhead._desk._shelf.states)  # type: ignore[attr-defined]
    assert bulkhead.stats("x" * 10_000).in_use == 1
    give(first)


# Limits and statistics


def test_another_limit_is_for_each_key():
    """For those that are kept, and for those to come."""
    bulkhead = by_tenant(1)
    ann = take(bulkhead, key="ann")
    bulkhead.resize(3)

    assert len(fill(bulkhead, key="ann")) == 2
    assert len(fill(bulkhead, key="bob")) == 3
    assert bulkhead.limit == 6
    give(ann)


def test_statistics_are_of_all_keys_or_of_one():
    """Where slots stand is told by key; what was counted is told of all."""
    bulkhead = by_tenant(2)
    blocks = [take(bulkhead, key=key) for key in ("ann", "ann", "bob")]
    with pytest.raises(BulkheadFullError):
        take(bulkhead, key="ann")

    stats = bulkhead.stats()
    assert (stats.limit, stats.in_use, stats.calls, stats.rejected, stats.keys) == (4, 3, 3, 1, 2)
    bob = bulkhead.stats("bob")
    assert (bob.limit, bob.in_use, bob.calls, bob.rejected, bob.keys) == (2, 1, 3, 1, 2)
    nobody = bulkhead.stats("nobody")
    assert (nobody.limit, nobody.in_use, nobody.keys) == (0, 0, 2)
    assert repr(bulkhead) == "<Bulkhead 'b' 3 of 4 slots taken, 0 waiting, 1 rejected>"
    assert len(blocks) == 3

    with pytest.raises(TypeError, match=r"^key must be text, got 5$"):
        bulkhead.stats(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^key goes with key= only, got 'ann'$"):
        Bulkhead("b", 1).stats("ann")


def test_adaptive_limit_is_told_of_one_key():
    """Each follows its own; there is none of all."""
    bulkhead = by_tenant(AIMD(initial=5))
    assert bulkhead.stats().adaptive is None
    bulkhead.call(str, "ann")

    assert bulkhead.stats().adaptive is None
    assert bulkhead.stats("bob").adaptive is None
    adaptive = bulkhead.stats("ann").adaptive
    assert adaptive is not None
    assert adaptive.limit == 5.0


def test_one_keys_adaptive_limit_falls_alone():
    """Its calls are dropped, the others' are not."""
    clock = FakeClock()
    bulkhead = by_tenant(AIMD(initial=10, window=1.0, min_samples=1), clock=clock)
    for _ in range(3):
        give(take(bulkhead, key="ann"), TimeoutError())
        give(take(bulkhead, key="bob"))
        clock.advance(1.0)
    bulkhead.call(str, "ann")
    bulkhead.call(str, "bob")

    assert bulkhead.stats("ann").limit < bulkhead.stats("bob").limit == 10


def test_priorities_and_keys_go_together():
    """Each key has the shares of its own slots."""
    bulkhead = by_tenant(10, priority="default", max_keys=5)
    assert len(fill(bulkhead, "sheddable", "ann")) == 7
    assert len(fill(bulkhead, "critical", "bob")) == 10
