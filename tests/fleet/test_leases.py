"""Leases: permits fetched by the handful, so what may go wrong is a handful for each process."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.fleet.leftovers import Keep, assert_tidy
from tests.support.hammer import Hammers, Job, total
from tests.support.valkey import ValkeyServer
from tests.support.waiting import await_until, wait_until

from resilient import RateLimiter

pytestmark = [pytest.mark.faults, pytest.mark.slow]

_ROOT = Path(__file__).parents[2]
STRATEGIES = ["token-bucket", "fixed-window", "sliding-window-counter", "moving-window"]
each_strategy = pytest.mark.parametrize("strategy", STRATEGIES)
HOUR = 3_600.0
LIMIT, LEASE = 500, 20
RATE = f"{LIMIT}/hour"


def limiter_on(server: ValkeyServer, lease: int | None = LEASE, **options: object) -> RateLimiter:
    """Make one more limiter of the same name."""
    return RateLimiter(RATE, name="door", storage=server.url, lease=lease, decision_timeout=5.0, **options)


@each_strategy
@pytest.mark.parametrize("by", ["tasks", "threads"])
def test_four_processes_never_let_through_more(
    hammers: Hammers, empty_valkey: ValkeyServer, strategy: str, by: str
):
    """Within one window a permit is leased once; what some still hold the others may miss, and no more."""
    job = Job(empty_valkey.url, RATE, "door", strategy, by, options={"lease": LEASE})

    permits = total(hammers.strike(job))["permits"]

    assert LIMIT - len(hammers) * LEASE <= permits <= LIMIT
    assert_tidy(empty_valkey, HOUR)


def test_lease_costs_a_round_trip_for_each_handful(empty_valkey: ValkeyServer):
    """200 decisions are 10 requests, give or take the first."""
    limiter = limiter_on(empty_valkey)
    with empty_valkey.client() as client:
        before = client.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"]
        assert all(limiter.hit().allowed for _ in range(200))
        asked = client.info("commandstats")["cmdstat_evalsha"]["calls"] - before

    assert 200 // LEASE <= asked <= 200 // LEASE + 2


def test_denials_do_not_ask_the_server_every_time(empty_valkey: ValkeyServer):
    """A flood over a limit that is used up is turned away here."""
    limiter = limiter_on(empty_valkey)
    while limiter.hit().allowed:
        pass
    with empty_valkey.client() as client:
        before = client.info("commandstats")["cmdstat_evalsha"]["calls"]
        assert not any(limiter.hit().allowed for _ in range(500))
        asked = client.info("commandstats")["cmdstat_evalsha"]["calls"] - before

    assert asked <= 500 // LEASE


def test_weights_are_leased_too(hammers: Hammers, empty_valkey: ValkeyServer):
    """Also those that are more than a lease."""
    job = Job(empty_valkey.url, RATE, "door", costs=[30, 1, 7], options={"lease": LEASE})
    permits = total(hammers.strike(job))["permits"]

    assert LIMIT - len(hammers) * LEASE - 30 <= permits <= LIMIT


def test_idle_lease_is_given_back(empty_valkey: ValkeyServer):
    """What one process does not use, another may, after a short while."""
    limiter, other = limiter_on(empty_valkey), limiter_on(empty_valkey, lease=None)
    limiter.hit()
    assert other.peek().remaining == LIMIT - LEASE

    wait_until(lambda: other.peek().remaining == LIMIT - 1, "the rest is given back", within=10.0)


async def test_idle_lease_of_a_task_is_given_back(empty_valkey: ValkeyServer, keep: Keep):
    """From an event loop as from threads, and without one more call."""
    limiter, other = keep(limiter_on(empty_valkey)), keep(limiter_on(empty_valkey, lease=None))
    await limiter.ahit()
    await await_until(lambda: other.peek().remaining == LIMIT - 1, "the rest is given back", within=10.0)


def test_killed_process_takes_no_more_than_its_lease_along(empty_valkey: ValkeyServer):
    """Ten calls and a SIGKILL: what it held is lost until the window is over, and no more than that."""
    program = (
        "import signal, sys\n"
        "from resilient import RateLimiter\n"
        f"options = dict(lease={LEASE}, decision_timeout=5.0)\n"
        f"limiter = RateLimiter({RATE!r}, name='door', storage=sys.argv[1], **options)\n"
        "assert sum(limiter.hit().allowed for _ in range(10)) == 10\n"
        "print('held', flush=True)\n"
        "signal.pause()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, empty_valkey.url], stdout=subprocess.PIPE, text=True, cwd=_ROOT
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGKILL)

    survivor = limiter_on(empty_valkey, lease=None)
    left = sum(survivor.hit().allowed for _ in range(LIMIT))
    assert LIMIT - 10 - LEASE <= left <= LIMIT - 10


def test_lease_survives_a_server_that_comes_back_empty(valkey: ValkeyServer):
    """One lease at most comes on top of what the server forgot, and nothing is given back twice."""
    limiter = limiter_on(valkey)
    taken = sum(limiter.hit().allowed for _ in range(10))
    valkey.restart()

    taken += sum(limiter.hit().allowed for _ in range(2 * LIMIT))
    assert LIMIT <= taken <= LIMIT + LIMIT + LEASE
    wait_until(lambda: limiter_on(valkey, lease=None).peek().rung == "shared", "the server is back")
    assert limiter_on(valkey, lease=None).peek().remaining <= LIMIT


@pytest.mark.parametrize(
    ("cost", "error"),
    [
        (0, ValueError),
        (-1_000, ValueError),
        (1.5, TypeError),
        (True, TypeError),
        ("1", TypeError),
        ([], TypeError),
    ],
)
async def test_bad_cost_is_refused_and_mints_nothing(
    empty_valkey: ValkeyServer, keep: Keep, cost: Any, error: type[Exception]
):
    """Also where permits are at hand that it could be taken from."""
    limiter = keep(limiter_on(empty_valkey))
    limiter.hit()
    for _ in range(3):
        with pytest.raises(error, match="cost must be"):
            limiter.hit(cost=cost)
        with pytest.raises(error, match="cost must be"):
            await limiter.ahit(cost=cost)

    assert sum(limiter.hit().allowed for _ in range(2 * LIMIT)) == LIMIT - 1


def test_bad_key_is_refused(empty_valkey: ValkeyServer):
    """Before it is looked up."""
    limiter = limiter_on(empty_valkey)
    for key in (None, [], b"ann"):
        with pytest.raises(TypeError, match="key must be text"):
            limiter.hit(key)  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["k" * 100, "#ann"])
def test_key_that_is_kept_as_a_digest_is_leased_like_others(empty_valkey: ValkeyServer, key: str):
    """Its permits are found where they were put: a round trip for a handful, and none beyond the limit."""
    limiter, other = limiter_on(empty_valkey), limiter_on(empty_valkey, lease=None)
    with empty_valkey.client() as client:
        before = client.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"]
        assert all(limiter.hit(key).allowed for _ in range(200))
        asked = client.info("commandstats")["cmdstat_evalsha"]["calls"] - before

    assert asked <= 200 // LEASE + 2
    assert other.peek(key).remaining == LIMIT - 200
