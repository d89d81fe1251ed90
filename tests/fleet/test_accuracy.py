"""Four processes on one server: together they let through what the rate allows, exactly."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.fleet.leftovers import Keep, assert_tidy
from tests.support.hammer import Hammers, Job, total
from tests.support.valkey import ValkeyServer

from resilient import RateLimiter

pytestmark = [pytest.mark.faults, pytest.mark.slow]

STRATEGIES = ["token-bucket", "fixed-window", "sliding-window-counter", "moving-window"]
each_strategy = pytest.mark.parametrize("strategy", STRATEGIES)

# An hour is long enough for no window to turn over and no permit to come back while a test runs.
RATE, LIMIT = "500/hour", 500
HOUR = 3_600.0
# No answer is late: these tests are about the count.
PATIENT = {"decision_timeout": 10.0}


def limiter_on(
    server: ValkeyServer, strategy: str, name: str = "door", rate: object = RATE, lease: int | None = None
) -> RateLimiter:
    """Make one more limiter of the same name."""
    return RateLimiter(rate, name=name, storage=server.url, strategy=strategy, lease=lease, **PATIENT)


@each_strategy
@pytest.mark.parametrize("by", ["tasks", "threads"])
def test_four_processes_let_through_exactly_the_limit(
    hammers: Hammers, empty_valkey: ValkeyServer, strategy: str, by: str
):
    """800 attempts of 32 tasks or threads: 500 are let through, each decided on the server."""
    results = hammers.strike(Job(empty_valkey.url, RATE, "door", strategy, by))

    sums = total(results)
    assert (sums["permits"], sums["denied"]) == (LIMIT, 4 * 8 * 25 - LIMIT)
    assert sums["shared"] == 4 * 8 * 25
    assert limiter_on(empty_valkey, strategy).peek().remaining == 0
    assert_tidy(empty_valkey, HOUR)


def test_threads_and_loops_of_one_process_count_together(empty_valkey: ValkeyServer):
    """One limiter, three event loops and three threads at once: 540 attempts, 500 are let through."""
    limiter = limiter_on(empty_valkey, "token-bucket")
    allowed: list[bool] = []

    async def work() -> None:
        allowed.append((await limiter.ahit()).allowed)

    async def loop() -> None:
        for _ in range(9):
            await asyncio.gather(*(work() for _ in range(10)))
        await limiter.aclose()

    def thread() -> None:
        allowed.extend([limiter.hit().allowed for _ in range(90)])

    with ThreadPoolExecutor(6) as pool:
        calls = [pool.submit(call) for call in [lambda: asyncio.run(loop()), thread] * 3]
    for call in calls:
        call.result()

    assert (len(allowed), sum(allowed)) == (540, LIMIT)


def test_forked_processes_count_together(empty_valkey: ValkeyServer):
    """Servers load an app and fork: no child says a word on its parent's connections."""
    program = (
        "import os, sys\n"
        "from resilient import RateLimiter\n"
        f"limiter = RateLimiter({RATE!r}, name='door', storage=sys.argv[1], decision_timeout=10.0)\n"
        "limiter.hit()\n"
        "children = []\n"
        "for _ in range(4):\n"
        "    if not (child := os.fork()):\n"
        "        decisions = [limiter.hit() for _ in range(40)]\n"
        "        os._exit(not all(one.allowed and one.rung == 'shared' for one in decisions))\n"
        "    children.append(child)\n"
        "decisions = [limiter.hit() for _ in range(40)]\n"
        "assert all(one.allowed and one.rung == 'shared' for one in decisions)\n"
        "sys.exit(any(os.waitpid(child, 0)[1] for child in children))\n"
    )
    subprocess.run([sys.executable, "-c", program, empty_valkey.url], check=True, timeout=30)

    assert limiter_on(empty_valkey, "token-bucket").peek().remaining == LIMIT - 1 - 5 * 40


@each_strategy
def test_weights_add_up_to_the_limit(hammers: Hammers, empty_valkey: ValkeyServer, strategy: str):
    """Calls of different costs share one count; the ones of 1 fill what the others cannot use."""
    job = Job(empty_valkey.url, RATE, "door", strategy, costs=[7, 1, 3, 1, 2])
    results = hammers.strike(job)

    assert total(results)["permits"] == LIMIT
    assert {cost for result in results for cost in result.allowed} == {1, 2, 3, 7}


@each_strategy
def test_of_several_rates_the_tightest_counts(hammers: Hammers, empty_valkey: ValkeyServer, strategy: str):
    """All processes stop at the smaller one, in whichever order the rates are given."""
    results = hammers.strike(Job(empty_valkey.url, [RATE, "300/day"], "door", strategy))

    assert total(results)["permits"] == 300
    assert_tidy(empty_valkey, 24 * HOUR)


def test_what_one_rate_denies_consumes_nothing_of_the_other(hammers: Hammers, empty_valkey: ValkeyServer):
    """Hundreds of denials by the second's rate leave the hour's 40 alone: 20 more fit, and then no more."""
    jobs = [
        Job(empty_valkey.url, ["20/second", "40/hour"], "door", strategy, attempts=4)
        for strategy in STRATEGIES
    ]
    first = [total(hammers.strike(job)) for job in jobs]
    time.sleep(2.1)  # two windows: what a sliding one had in the first fades away in the second
    second = [total(hammers.strike(job)) for job in jobs]

    for strategy, before, after in zip(STRATEGIES, first, second, strict=True):
        # A few come back while a token bucket is hammered; of the 40 none does.
        assert before["permits"] >= 20, strategy
        assert before["permits"] + after["permits"] == 40, strategy
        assert before["denied"] + after["denied"] == 2 * 4 * 8 * 4 - 40, strategy


@each_strategy
def test_denied_calls_consume_nothing(empty_valkey: ValkeyServer, strategy: str):
    """Neither those that ask for too much, nor those that come too late."""
    limiter = limiter_on(empty_valkey, strategy, rate="10/hour")

    assert not any(limiter.hit(cost=11).allowed for _ in range(20))
    assert limiter.hit(cost=8).allowed
    assert not any(limiter.hit(cost=3).allowed for _ in range(20))
    assert limiter.peek().remaining == 2
    assert limiter.hit(cost=2).allowed
    first = limiter.hit()
    last = [limiter.hit() for _ in range(20)][-1]
    assert not last.allowed
    assert last.retry_after <= first.retry_after


@each_strategy
async def test_refunds_add_up(empty_valkey: ValkeyServer, strategy: str, keep: Keep):
    """What is given back by one limiter can be had from another; a decision is given back once."""
    limiter, other = keep(limiter_on(empty_valkey, strategy)), keep(limiter_on(empty_valkey, strategy))
    taken = [await limiter.ahit(cost=5) for _ in range(LIMIT // 5)]
    assert all(taken)
    assert not (await other.ahit()).allowed

    await asyncio.gather(*(limiter.arefund(decision) for decision in taken[::2]))
    await asyncio.gather(*(limiter.arefund(decision) for decision in taken[::2]))

    assert [(await other.ahit()).allowed for _ in range(260)] == [True] * 250 + [False] * 10


@each_strategy
def test_settled_costs_add_up(empty_valkey: ValkeyServer, strategy: str):
    """Whoever used less gives the rest back, whoever used more pays for it."""
    limiter = limiter_on(empty_valkey, strategy, rate="100/hour")
    less, more = limiter.hit(cost=40), limiter.hit(cost=10)

    limiter.settle(less, 5)
    assert limiter.peek().remaining == 85
    limiter.settle(more, 30)
    assert limiter.peek().remaining == 65


@each_strategy
def test_one_round_trip_decides(empty_valkey: ValkeyServer, strategy: str):
    """A decision is one command, also with several rates, allowed or denied."""
    limiter = limiter_on(empty_valkey, strategy, rate=["5/hour", "20/day"])
    limiter.hit()
    with empty_valkey.client() as client, client.monitor() as monitor:
        for _ in range(10):
            limiter.hit()
        limiter.hit("last")
        told = list(itertools.takewhile(lambda one: "|last}" not in one["command"], monitor.listen()))

    asked = [one["command"].split()[0] for one in told if one["client_type"] != "lua"]
    assert asked == ["EVALSHA"] * 10


@each_strategy
def test_time_is_the_servers(empty_valkey: ValkeyServer, strategy: str):
    """A client with a clock of its own, stopped or years ahead, is told the same as any other."""
    odd = RateLimiter(
        "10/hour", name="door", storage=empty_valkey.url, strategy=strategy, clock=lambda: 1e9, **PATIENT
    )
    plain = limiter_on(empty_valkey, strategy, rate="10/hour")

    assert sum(one.hit().allowed for one in [odd, plain] * 10) == 10
    assert abs(odd.hit().retry_after - plain.hit().retry_after) < 1.0


@each_strategy
@pytest.mark.parametrize("lease", [None, 10])
def test_only_what_was_taken_here_is_given_back(empty_valkey: ValkeyServer, strategy: str, lease: int | None):
    """Not what was peeked at, and not what the same limit of another process has taken."""
    limiter = limiter_on(empty_valkey, strategy, rate="20/hour", lease=lease)
    other = limiter_on(empty_valkey, strategy, rate="20/hour")
    decision = limiter.hit(cost=5)
    with pytest.raises(ValueError, match="decision must be a Decision of this limiter"):
        other.refund(decision)
    limiter.refund(limiter.peek(cost=5))
    limiter.refund(decision)
    limiter.close()

    assert other.peek().remaining == 20
