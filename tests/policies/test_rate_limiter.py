"""The rate limiter: what it decides, what can be given back, and what a decision is."""

from __future__ import annotations

import copy
import math
import pickle
import sys
from collections.abc import Callable
from typing import Any

import pytest
from limits import RateLimitItemPerMinute
from tests.policies.rate_limiter_support import each_strategy, limiter_of

from resilient import Decision, Quota, RateLimitedError
from resilient.engine.keys import compact, digest
from resilient.testing import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    """A clock that stands still until told."""
    return FakeClock(1_000.0)


# Decisions


@each_strategy
def test_limit_is_let_in_and_not_one_more(clock: FakeClock, strategy: str):
    """Five of nine, in a moment."""
    limiter = limiter_of("5/minute", clock, strategy=strategy)

    decisions = [limiter.hit() for _ in range(9)]

    assert [decision.allowed for decision in decisions] == [True] * 5 + [False] * 4
    assert [decision.remaining for decision in decisions] == [4, 3, 2, 1, 0, 0, 0, 0, 0]
    assert {decision.limit for decision in decisions} == {5}
    assert [decision.retry_after > 0.0 for decision in decisions] == [False] * 5 + [True] * 4
    assert len({decision.retry_after for decision in decisions[5:]}) == 1, "denied calls use up nothing"


def test_burst_comes_on_top_of_the_rate(clock: FakeClock):
    """As A7 asks: so many at once, and then as many as the rate gives back."""
    limiter = limiter_of("100/second", clock, burst=200)
    assert sum(limiter.hit().allowed for _ in range(2_000)) == 200
    clock.advance(0.5)
    assert sum(limiter.hit().allowed for _ in range(2_000)) == 50
    assert limiter.quotas == (Quota("100/second", 100, 1.0, 200),)


@pytest.mark.parametrize(
    ("strategy", "retry_after", "reset_after"),
    [
        ("token-bucket", 1.5, 9.0),  # 3.6 permits are used; one comes back in 2.5 s
        ("fixed-window", 9.0, 9.0),
        ("sliding-window-counter", 9.0, 9.0 + 7.5),  # the next window covers three of the four
        ("moving-window", 9.0, 10.0),
    ],
)
def test_times_are_told_to_the_moment(
    clock: FakeClock, strategy: str, retry_after: float, reset_after: float
):
    """Four in ten seconds: one call, three more a second later, and one too many."""
    limiter = limiter_of("4 per 10 seconds", clock, strategy=strategy)
    assert limiter.hit()
    clock.advance(1.0)
    assert all(limiter.hit() for _ in range(3))

    decision = limiter.hit()

    assert not decision
    assert decision.retry_after == pytest.approx(retry_after, abs=1e-6)
    assert decision.reset_after == pytest.approx(reset_after, abs=1e-6)


@each_strategy
def test_weights_are_taken_whole_or_not_at_all(clock: FakeClock, strategy: str):
    """A call that asks for more than is left takes nothing, and one that asks for too much never comes in."""
    limiter = limiter_of("10/minute", clock, strategy=strategy)
    assert limiter.hit(cost=7).remaining == 3
    assert not limiter.hit(cost=4)
    assert limiter.peek().remaining == 3

    never = limiter.hit(cost=11)
    assert (never.allowed, never.retry_after, never.remaining) == (False, math.inf, 3)
    assert limiter.hit(cost=3).remaining == 0


@each_strategy
@pytest.mark.parametrize("method", ["hit", "peek", "acquire", "calling"])
def test_bad_key_or_cost_is_refused_by_name(clock: FakeClock, strategy: str, method: str):
    """On a key that is known as on a new one; what merely equals 1 is no whole number."""
    limiter = limiter_of("10/minute", clock, strategy=strategy)
    limiter.hit("ann")

    def ask(**what: Any) -> object:
        answer = getattr(limiter, method)(**what)
        return answer.__enter__() if method == "calling" else answer

    for key in (None, 5, b"ann", ["ann"], ("ann",)):
        with pytest.raises(TypeError, match="key must be text, got "):
            ask(key=key)
    for cost in (True, 1.0, 2.5, "1", None, math.nan):
        with pytest.raises(TypeError, match="cost must be a whole number, got "):
            ask(key="ann", cost=cost)
    for cost in (0, -1):
        with pytest.raises(ValueError, match=f"cost must be at least 1, got {cost}"):
            ask(key="ann", cost=cost)
    with pytest.raises(ValueError, match="cost must be at most 1000000000, got 1000000001"):
        ask(key="ann", cost=10**9 + 1)
    assert limiter.peek("ann").remaining == 9


@each_strategy
def test_each_key_has_its_own(clock: FakeClock, strategy: str):
    """One that is used up denies no other."""
    limiter = limiter_of("2/minute", clock, strategy=strategy)
    assert sum(limiter.hit("ann").allowed for _ in range(5)) == 2
    assert sum(limiter.hit("bob").allowed for _ in range(5)) == 2
    assert limiter.hit(""), "no key is a key too"


def test_long_keys_are_told_apart_and_kept_as_digests(clock: FakeClock):
    """A megabyte of key takes no more room than 64 characters, and is none of its neighbour's."""
    limiter = limiter_of("1/minute", clock)
    first, second = "k" * 10**6 + "1", "k" * 10**6 + "2"
    decision = limiter.hit(first)

    assert decision
    assert limiter.hit(second)
    assert not limiter.hit(first)
    assert len(decision.key) < 64
    assert limiter.hit("\udc80" * 100), "text that is no UTF-8 is text"


@each_strategy
def test_nobody_has_the_permits_of_a_long_key_by_its_digest(clock: FakeClock, strategy: str):
    """Whoever can guess what another one's long key is may send its digest as a key."""
    limiter = limiter_of("1/minute", clock, strategy=strategy)
    long = "k" * 80
    for key in (digest(long), compact(digest(long)), digest(digest(long))):
        limiter.hit(key)
        assert limiter.peek(long), "used up by a stranger"
    limiter.hit(long)

    assert limiter.hit("#" + "0" * 32)
    assert not limiter.hit(long)


@each_strategy
def test_several_rates_are_decided_all_or_nothing(clock: FakeClock, strategy: str):
    """What one of them denies takes nothing of the others."""
    limiter = limiter_of(["2/second", "3/minute"], clock, strategy=strategy, name="door")
    assert [limiter.hit().allowed for _ in range(9)] == [True, True] + [False] * 7
    clock.advance(2.5)

    decisions = [limiter.hit() for _ in range(3)]
    assert [decision.allowed for decision in decisions] == [True, False, False]
    assert decisions[-1].quota == "door 3/minute"
    assert [quota.name for quota in limiter.quotas] == ["door 2/second", "door 3/minute"]


@each_strategy
def test_denial_names_the_rate_that_is_waited_for(clock: FakeClock, strategy: str):
    """Not the one of which least is left: for this cost, that one is back first."""
    limiter = limiter_of(["10/second", "20/day"], clock, strategy=strategy)
    limiter.hit(cost=8)
    clock.advance(3.0)
    limiter.hit(cost=6)

    decision = limiter.hit(cost=7)
    assert (decision.quota, decision.limit, decision.remaining) == ("20/day", 20, 6)
    with pytest.raises(
        RateLimitedError, match=r"rate limit '10/second' is used up: it never has more than 10"
    ):
        limiter.acquire(cost=11)


def test_several_rates_may_be_one_text_or_items(clock: FakeClock):
    """As limits writes them."""
    assert (
        limiter_of("2/second; 30/minute", clock).quotas == limiter_of(["2/second", "30/minute"], clock).quotas
    )
    assert limiter_of(RateLimitItemPerMinute(5, 2), clock).quotas == (Quota("5/2 minute", 5, 120.0, 5),)


@each_strategy
def test_peek_takes_nothing(clock: FakeClock, strategy: str):
    """However often; and says what the next hit would."""
    limiter = limiter_of("2/minute", clock, strategy=strategy)
    assert all(limiter.peek() for _ in range(9))
    assert limiter.peek(cost=2).remaining == limiter.hit().remaining + 1
    assert not limiter.peek(cost=2)
    assert limiter.stats().allowed == 1
    assert limiter.stats().denied == 0


# Refunds


@each_strategy
@pytest.mark.parametrize(
    ("cost", "error"),
    [(-1, ValueError), (10**16, ValueError), (1.5, TypeError), (True, TypeError), (None, TypeError)],
)
def test_bad_actual_cost_is_refused_by_name(
    clock: FakeClock, strategy: str, cost: Any, error: type[Exception]
):
    """And the decision can still be corrected."""
    limiter = limiter_of("10/minute", clock, strategy=strategy)
    decision = limiter.hit(cost=4)
    with pytest.raises(error, match="actual_cost must be"):
        limiter.settle(decision, cost)
    with pytest.raises(TypeError, match="decision must be a Decision of this limiter, got True"):
        limiter.refund(True)  # type: ignore[arg-type]

    limiter.settle(decision, 1)
    assert limiter.peek().remaining == 9


@each_strategy
def test_refund_restores_what_was_there(clock: FakeClock, strategy: str):
    """As if the call had not been."""
    limiter = limiter_of("10/minute", clock, strategy=strategy)
    limiter.hit(cost=4)
    before = limiter.peek()
    decision = limiter.hit(cost=5)

    limiter.refund(decision)

    after = limiter.peek()
    assert (after.remaining, after.reset_after) == (before.remaining, pytest.approx(before.reset_after))


@each_strategy
def test_key_that_got_everything_back_is_as_good_as_new(clock: FakeClock, strategy: str):
    """Its next window begins with its next call, and not with the one that was given back."""
    limiter = limiter_of("2/minute", clock, strategy=strategy)
    limiter.refund(limiter.hit(cost=2))
    clock.advance(50.0)

    limiter.hit(cost=2)
    expected = {"token-bucket": 30.0}.get(strategy, 60.0)
    assert limiter.peek().retry_after == pytest.approx(expected, abs=1e-6)


@each_strategy
def test_decision_is_corrected_once(clock: FakeClock, strategy: str):
    """Whoever gives back twice, or corrects what was given back, changes nothing."""
    limiter = limiter_of("10/minute", clock, strategy=strategy)
    limiter.hit(cost=4)
    decision = limiter.hit(cost=3)

    limiter.settle(decision, 2)
    for _ in range(3):
        limiter.refund(decision)
        limiter.settle(decision, 0)
        limiter.settle(decision, 9)

    assert limiter.peek().remaining == 4


@each_strategy
def test_settle_takes_more_than_there_is_and_later_calls_wait(clock: FakeClock, strategy: str):
    """A call that turned out dearer than thought is paid for, by those who come after."""
    limiter = limiter_of("10/minute", clock, strategy=strategy)
    decision = limiter.hit(cost=8)
    limiter.settle(decision, 30)

    denied = limiter.hit()
    assert (denied.allowed, denied.remaining) == (False, 0)
    clock.advance(denied.retry_after)
    assert limiter.hit()


@each_strategy
def test_dearest_of_calls_costs_no_room(clock: FakeClock, strategy: str):
    """A mistake in a cost must not take the memory of the machine."""
    limiter = limiter_of("10/minute", clock, strategy=strategy)
    limiter.settle(limiter.hit(), 10**9)

    assert sys.getsizeof(limiter._book.shelf.find("")) < 1_000


def test_token_bucket_pays_every_permit_of_a_dear_call(clock: FakeClock):
    """Thirty of ten a minute: full again after three minutes."""
    limiter = limiter_of("10/minute", clock)
    limiter.settle(limiter.hit(), 30)

    assert limiter.peek().reset_after == pytest.approx(180.0)
    assert limiter.hit().retry_after == pytest.approx(21 * 6.0)


@each_strategy
def test_denied_decision_gives_nothing_back(clock: FakeClock, strategy: str):
    """It took nothing."""
    limiter = limiter_of("2/minute", clock, strategy=strategy)
    limiter.hit(cost=2)
    denied = limiter.hit()

    limiter.refund(denied)
    limiter.settle(denied, 5)

    assert limiter.peek().remaining == 0


@each_strategy
def test_refund_that_comes_when_the_window_is_over_gives_nothing_on_top(clock: FakeClock, strategy: str):
    """What was used then does not count now any more."""
    limiter = limiter_of("5/minute", clock, strategy=strategy)
    decision = limiter.hit(cost=5)
    clock.advance(200.0)
    limiter.hit(cost=2)

    limiter.refund(decision)

    assert limiter.peek().remaining <= 5
    assert sum(limiter.hit().allowed for _ in range(20)) == 3


@each_strategy
@pytest.mark.parametrize("after", [1.0, 30.0, 59.0, 60.0, 90.0])
def test_late_refund_lets_in_no_more_than_the_limit_at_once(clock: FakeClock, strategy: str, after: float):
    """Given back after a whole window, a permit is none any more: a bucket may have been full since."""
    limiter = limiter_of("100/minute", clock, strategy=strategy)
    first = limiter.hit(cost=100)
    clock.advance(after)
    kept = regained = sum(limiter.hit().allowed for _ in range(100))
    limiter.refund(first)

    kept += sum(limiter.hit().allowed for _ in range(200))
    # Before, what is given back is there besides what the bucket has regained by itself.
    assert kept <= 100 + (regained if strategy == "token-bucket" and after <= 60.0 else 0)


def test_refund_of_a_bucket_in_use_is_whole(clock: FakeClock):
    """Six a minute: one has come back after ten seconds, and ten are given back."""
    limiter = limiter_of("6/minute", clock, burst=100)
    limiter.hit(cost=50)
    decision = limiter.hit(cost=10)
    clock.advance(10.0)
    assert limiter.peek().remaining == 41

    limiter.refund(decision)
    assert limiter.peek().remaining == 51


@each_strategy
async def test_asynchronous_forms_do_the_same(clock: FakeClock, strategy: str):
    """On the same counts."""
    limiter = limiter_of("10/minute", clock, strategy=strategy)
    first, second = await limiter.ahit(cost=4), await limiter.aacquire(cost=4)
    assert (await limiter.apeek()).remaining == limiter.peek().remaining == 2
    await limiter.arefund(first)
    await limiter.asettle(second, 1)
    assert limiter.peek().remaining == 9
    with pytest.raises(RateLimitedError):
        await limiter.aacquire(cost=10)


@each_strategy
@pytest.mark.parametrize("several", [False, True])
def test_peeked_decision_gives_nothing_back(clock: FakeClock, strategy: str, several: bool):
    """It took nothing."""
    limiter = limiter_of(["3/hour", "9/day"] if several else "3/hour", clock, strategy=strategy)
    peeked = limiter.peek()
    for _ in range(9):
        limiter.hit()
        limiter.refund(peeked)
        limiter.settle(limiter.peek(), 0)

    assert (limiter.stats().allowed, limiter.peek().remaining) == (3, 0)


async def test_asynchronously_peeked_decision_gives_nothing_back(clock: FakeClock):
    """As `peek`."""
    limiter = limiter_of("3/hour", clock)
    peeked = await limiter.apeek()
    limiter.hit(cost=3)
    await limiter.arefund(peeked)

    assert not limiter.peek()


@each_strategy
@pytest.mark.parametrize("several", [False, True])
def test_decision_of_another_limiter_is_refused(clock: FakeClock, strategy: str, several: bool):
    """Of one that looks the same, too; and it can still be given back where it was taken."""
    rate = ["9/hour", "90/day"] if several else "9/hour"
    limiter, other = (limiter_of(rate, clock, strategy=strategy) for _ in range(2))
    limiter.hit(cost=9)
    decision = other.hit(cost=9)
    for correct in (limiter.refund, lambda one: limiter.settle(one, 1)):
        with pytest.raises(ValueError, match="decision must be a Decision of this limiter, got <Decision"):
            correct(decision)

    assert not limiter.peek()
    other.refund(decision)
    assert other.peek(cost=9)


# The decision as an object


def test_decision_is_true_where_allowed(clock: FakeClock):
    """So that `if limiter.hit():` reads well; the tuple it is made of is never empty."""
    limiter = limiter_of("1/minute", clock)
    assert bool(limiter.hit()) is True
    assert bool(limiter.hit()) is False


def test_decision_does_not_show_its_key(clock: FakeClock):
    """A key may be an API key."""
    limiter = limiter_of("1/minute", clock)
    decisions = limiter.hit("s3cret"), limiter.hit("s3cret")

    assert [repr(decision) for decision in decisions] == [
        "<Decision allowed, 0 of 1 left, local>",
        "<Decision denied for 60 s, 0 of 1 left, local>",
    ]
    assert [str(decision) for decision in decisions] == [repr(decision) for decision in decisions]
    with pytest.raises(RateLimitedError) as refused:
        limiter.acquire("s3cret")
    assert "s3cret" not in repr(refused.value) + str(refused.value) + repr(limiter) + repr(limiter.stats())


def test_decisions_are_equal_to_themselves_only(clock: FakeClock):
    """Two calls at the same moment are two calls: each is a key of its own, and is given back by itself."""
    limiter = limiter_of("9/minute", clock)
    limiter.hit(cost=3)
    first, second = limiter.hit("a"), limiter.hit("a")
    twin = Decision(first)

    assert first == first  # noqa: PLR0124
    assert first != twin
    assert tuple(first) == tuple(twin)
    assert len({first, second, twin}) == 3


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_decision_is_its_own_copy(clock: FakeClock, duplicate: Callable[[Decision], Decision]):
    """Its permits were taken once."""
    decision = limiter_of("9/minute", clock).hit("ann")
    assert duplicate(decision) is decision


def test_decision_travels(clock: FakeClock):
    """To another process, with all it tells; what it took is given back where it was taken."""
    limiter = limiter_of("9/minute", clock, name="door")
    decision = limiter.hit("ann", cost=2)
    arrived = pickle.loads(pickle.dumps(decision))

    assert type(arrived) is Decision
    assert tuple(arrived) == tuple(decision)
    assert (arrived.limit, arrived.remaining, arrived.quota, arrived.rung) == (9, 7, "door", "local")

    limiter.hit("ann", cost=5)
    limiter.refund(arrived)
    assert limiter.peek("ann").remaining == 2
    limiter.refund(decision)
    limiter.refund(pickle.loads(pickle.dumps(decision)))
    assert limiter.peek("ann").remaining == 4
