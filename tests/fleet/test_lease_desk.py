"""The desk that leases, step by step: what its callers see of each other, in every order."""

from __future__ import annotations

import math
from typing import Any

import pytest

from resilient import Decision, Quota, RateLimiter
from resilient.fleet.lease import LeaseDesk, _Lease
from resilient.fleet.script import Conversation
from resilient.policies.rate_limiter.decision import Source
from resilient.policies.rate_limiter.ladder import LOCAL, SHARED

SOURCE = Source(SHARED, Quota("door", 500, 3_600.0, 500))
SIZE = 20


@pytest.fixture
def limiter() -> RateLimiter:
    """A limiter that never gets to ask: nobody listens there."""
    return RateLimiter(
        "500/hour", name="door", storage="redis://127.0.0.1:1", lease=SIZE, decision_timeout=5.0
    )


def answer(cost: int, at: float = 0.0, *, allowed: bool = True) -> Decision:
    """Return what the store says to one who is let in, or is not, for *cost* permits."""
    return Decision((SOURCE, allowed, 60.0, 0.0 if allowed else 9.0, 400, "", cost, at))


def ask(limiter: RateLimiter, cost: int = 1) -> Conversation[Decision]:
    """Begin to decide, as one who has found no permits a moment ago."""
    desk = limiter._desk
    assert isinstance(desk, LeaseDesk)
    return desk._decision("", cost, 0.0, spend=True)


def reply(conversation: Conversation[Decision], taken: int) -> Decision:
    """Answer a request for permits with *taken* of them; return the decision."""
    with pytest.raises(StopIteration) as done:
        conversation.send([taken, 1, 400, 60_000_000, 0, 1_000_000])
    decision: Decision = done.value.value
    return decision


def verdict(conversation: Conversation[Decision]) -> Decision:
    """Return a decision that needs nobody's answer."""
    with pytest.raises(StopIteration) as done:
        next(conversation)
    decision: Decision = done.value.value
    return decision


def held(limiter: RateLimiter) -> Any:
    """Return what is leased of the only key."""
    return limiter._desk._leases[""]  # type: ignore[attr-defined]


def test_permits_that_arrived_meanwhile_are_spent(limiter: RateLimiter):
    """Whoever finds none, and then those that another one has just fetched, does not fetch more."""
    first, second = ask(limiter), ask(limiter)
    next(first)
    reply(first, SIZE)

    assert verdict(second).rung == SHARED
    assert held(limiter).left == SIZE - 2
    assert limiter.stats().allowed == 2


def test_others_wait_for_the_fetch_while_the_store_answers(limiter: RateLimiter):
    """One request for all."""
    first, second = ask(limiter), ask(limiter)
    next(first)
    assert next(second) is held(limiter).fetch
    reply(first, SIZE)

    with pytest.raises(StopIteration) as done:
        second.send(True)
    assert done.value.value.rung == SHARED


def test_nobody_waits_for_the_one_who_tries_whether_the_store_is_back(limiter: RateLimiter):
    """It may take the whole time there is, and the others can be answered now."""
    probe, other = ask(limiter), ask(limiter)
    next(probe)
    assert limiter._ladder is not None
    limiter._ladder.rung = LOCAL

    assert verdict(other).rung == LOCAL
    probe.close()


def test_fetch_that_ends_late_does_not_hide_the_next_one(limiter: RateLimiter):
    """Or a third would be begun beside the second."""
    late, present, other = ask(limiter), ask(limiter), ask(limiter)
    next(late)
    held(limiter).fetch.due = -math.inf
    next(present)
    late.close()

    assert next(other) is held(limiter).fetch
    reply(present, SIZE)
    other.close()


def test_rest_of_a_fetch_does_not_outlive_its_second():
    """Also where another fetch comes on top."""
    lease = _Lease()
    lease.learn(answer(SIZE), 11, 100.0)
    lease.learn(answer(SIZE), 10, 100.9)
    assert lease.left == 9 + 10
    assert lease.decide("", 1, 100.99) is not None

    assert lease.decide("", 1, 101.0) is None


def test_rest_of_a_fetch_does_not_live_longer_by_a_denial():
    """Of more than there is, while some is here."""
    lease = _Lease()
    lease.learn(answer(SIZE), 11, 100.0)
    lease.learn(answer(10, allowed=False), 10, 100.9)

    assert lease.decide("", 1, 100.99) is not None
    assert lease.decide("", 1, 101.0) is None


def test_rest_that_has_ended_is_given_back_by_the_answer_that_brought_it(limiter: RateLimiter):
    """A moving window finds its permits by that time only, whatever was answered since."""
    first = ask(limiter)
    next(first)
    reply(first, SIZE)
    lease = held(limiter)
    lease.learn(answer(30, at=2e6, allowed=False), 30, lease.stamp)
    lease.until = -math.inf
    second = ask(limiter)
    next(second)

    desk = limiter._desk
    assert isinstance(desk, LeaseDesk)
    [(bought, amount)] = desk._rests
    assert (bought.at, amount) == (1e6, SIZE - 1)
    assert lease.left == 0
    second.close()
