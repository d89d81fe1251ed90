"""What policies and pools say of themselves: each state of each kind, brought about by real calls."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from tests.pool.support import LostError, SteppedPool, World
from tests.support.ports import free_port
from tests.support.waiting import wait_until

from resilient import (
    AdaptiveThrottle,
    AsyncConnectionPool,
    AsyncReplicaSet,
    Bulkhead,
    BulkheadFullError,
    Cache,
    Calls,
    CircuitBreaker,
    CircuitOpenError,
    Gradient,
    RateLimiter,
    RejectedError,
    ReplicaSet,
    Retry,
    RetryBudget,
    deadline,
)
from resilient.engine.finding import Finding, Status, Witness
from resilient.pool import watch
from resilient.testing import FakeClock
from resilient.web.maintenance import Maintenance

HERE = Path(__file__)


def down() -> None:
    """Fail."""
    raise LostError("it is down")


def fail(policy: Any, times: int = 1) -> None:
    """Make calls that fail, or are refused."""
    for _ in range(times):
        with pytest.raises((LostError, RejectedError)):
            policy.call(down)


@pytest.fixture
def clock() -> FakeClock:
    """Time."""
    return FakeClock(1_000.0)


# The breaker.


def breaker_of(clock: FakeClock, **settings: Any) -> CircuitBreaker:
    return CircuitBreaker("rates", clock=clock, **{"min_calls": 4, "reset_timeout": 30.0, **settings})


def test_closed_breaker_passes_and_tells_its_share_of_failures(clock: FakeClock) -> None:
    """Those in its window; what it has seen in all, it tells as well."""
    breaker = breaker_of(clock)
    fail(breaker)
    for _ in range(9):
        breaker.call(int)

    found = breaker.finding()
    assert (found.status, found.output, found.value, found.unit) == (Status.PASS, "", 0.1, "ratio")
    assert (found.calls, found.facts["state"]) == (10, "closed")
    clock.advance(40.0)
    assert (breaker.finding().calls, breaker.finding().value) == (10, 0.0)


def test_open_breaker_fails_and_says_since_when_until_when_and_why(clock: FakeClock) -> None:
    """Who reads it at three in the morning need not look anything up."""
    breaker = breaker_of(clock)
    fail(breaker, 4)
    clock.advance(12.0)
    fail(breaker)

    found = breaker.finding()
    assert found.status is Status.FAIL
    assert found.output == "open for 12 s, lets a probe in after 18 s; last failure: LostError: it is down"
    assert found.facts == {"state": "open", "consecutive_failures": 4, "rejected": 1, "times_opened": 1}
    assert found.value == 1.0


def test_breaker_that_would_let_a_probe_in_does_not_fail(clock: FakeClock) -> None:
    """If it failed a readiness probe until a call comes, none would come any more."""
    breaker = breaker_of(clock)
    fail(breaker, 4)
    clock.advance(31.0)

    found = breaker.finding()
    assert found.status is Status.WARN
    assert found.output.startswith("open for 31 s, lets the next call in as a probe; last failure: LostError")


def test_half_open_breaker_warns(clock: FakeClock) -> None:
    """With how far the probes have come."""
    breaker = breaker_of(clock, success_threshold=3)
    fail(breaker, 4)
    clock.advance(30.0)
    breaker.call(int)

    found = breaker.finding()
    assert found.status is Status.WARN
    assert found.output.startswith("half-open, 1 of 3 probes succeeded; last failure: ")


def test_breaker_that_lets_traffic_back_in_warns_until_the_ramp_is_over(clock: FakeClock) -> None:
    """It still refuses some."""
    breaker = breaker_of(clock, ramp=10.0)
    fail(breaker, 4)
    clock.advance(30.0)
    breaker.call(int)
    clock.advance(4.0)

    assert breaker.finding().status is Status.WARN
    assert "bit by bit for another 6 s" in breaker.finding().output
    clock.advance(6.0)
    assert breaker.finding().status is Status.PASS


@pytest.mark.parametrize(
    ("act", "status", "word"),
    [("force_open", Status.FAIL, "forced open"), ("force_closed", Status.WARN, "forced closed")],
)
def test_forced_breaker_says_by_whom_and_until_when(
    clock: FakeClock, act: str, status: Status, word: str
) -> None:
    """What was set by hand is not forgotten, and ends when it ends."""
    breaker = breaker_of(clock)
    getattr(breaker, act)(60.0, reason="INC-7")
    clock.advance(20.0)

    assert breaker.finding() == Finding(
        status,
        f"{word} (INC-7), for another 40 s",
        value=0.0,
        unit="ratio",
        facts=breaker.finding().facts,
        calls=0,
    )
    clock.advance(40.0)
    assert breaker.finding().status is (Status.WARN if act == "force_open" else Status.PASS)


def test_breaker_forced_open_for_good_fails_without_an_end(clock: FakeClock) -> None:
    """Nobody said until when, or why."""
    breaker = breaker_of(clock)
    breaker.force_open()

    clock.advance(1e6)
    assert (breaker.finding().status, breaker.finding().output) == (
        Status.FAIL,
        "forced open (no reason given)",
    )


def test_breaker_that_only_observes_passes_while_it_would_refuse_nobody(clock: FakeClock) -> None:
    """And warns from when it would."""
    breaker = breaker_of(clock)
    breaker.observe_only(reason="trial")
    assert (breaker.finding().status, breaker.finding().output) == (Status.PASS, "observe only (trial)")

    fail(breaker, 4)
    found = breaker.finding()
    assert found.status is Status.WARN
    assert found.output.startswith("observe only (trial); it would be open by itself; last failure: ")


@pytest.mark.parametrize(("settings", "has_ratio"), [({"fail_max": 3}, False), ({"window": Calls(10)}, True)])
def test_breaker_of_any_kind_tells_how_many_calls_it_has_seen(
    clock: FakeClock, settings: dict[str, Any], has_ratio: bool
) -> None:
    """Those that it has let through, and that have ended."""
    breaker = breaker_of(clock, **settings)
    breaker.call(int)

    breaker.open()
    with suppress(CircuitOpenError):
        breaker.call(int)
    assert breaker.finding().calls == 1
    assert (breaker.finding().value is not None) is has_ratio


def test_breaker_that_counts_slow_calls_tells_their_share(clock: FakeClock) -> None:
    """A dependency may answer, and be of no use."""
    breaker = breaker_of(clock, slow_after=1.0)
    breaker.call(clock.advance, 2.0)
    breaker.call(int)

    assert breaker.finding().facts["slow_ratio"] == 0.5


# The cache.


def load_of(cache: Cache, clock: FakeClock) -> Callable[[], object]:
    """Fill *cache* with something that is too old soon, and return what loads it in vain."""
    cache.put("EUR", 1.0)
    clock.advance(20.0)
    return lambda: cache.get("EUR", down)


def test_cache_passes_and_tells_its_hits(clock: FakeClock) -> None:
    """Three of four calls were answered at once."""
    cache = Cache("rates", ttl=10.0, jitter=0.0, clock=clock)
    for _ in range(4):
        cache.get("EUR", lambda: 1.0)

    assert cache.finding() == Finding(
        Status.PASS, value=0.75, unit="ratio", facts={"size": 1, "stale": 0, "load_failures": 0}
    )


def test_cache_that_answers_for_a_failing_loader_warns_until_one_succeeds(clock: FakeClock) -> None:
    """C3: the callers do not notice, so somebody else has to."""
    cache = Cache("rates", ttl=10.0, stale_if_error=3_600.0, jitter=0.0, clock=clock)
    load = load_of(cache, clock)
    assert load() == 1.0
    clock.advance(3.0)

    found = cache.finding()
    assert found.status is Status.WARN
    assert found.output == (
        "the last load failed 3 s ago, and what was kept answers instead: LostError: it is down"
    )
    clock.advance(10.0)
    cache.get("EUR", lambda: 1.0)
    assert cache.finding().status is Status.PASS


def test_cache_with_nothing_to_answer_instead_warns_for_a_minute(clock: FakeClock) -> None:
    """After that nobody knows any more: nobody has asked."""
    cache = Cache("rates", ttl=10.0, jitter=0.0, clock=clock)
    with pytest.raises(LostError):
        load_of(cache, clock)()

    assert cache.finding().output == "the last load failed 0 s ago: LostError: it is down"
    clock.advance(60.5)
    assert cache.finding().status is Status.PASS


def test_cache_whose_loader_hangs_warns() -> None:
    """A load that is overdue is none that has failed, and as bad."""
    cache = Cache("rates", ttl=0.001, stale_if_error=3_600.0, load_timeout=0.01)
    cache.put("EUR", 1.0)

    async def hang() -> float:
        await asyncio.sleep(3_600.0)
        return 2.0

    async def ask() -> None:
        await asyncio.sleep(0.002)
        assert await cache.aget("EUR", hang) == 1.0

    asyncio.run(ask())
    assert cache.finding().status is Status.WARN
    assert "what was kept answers instead: CallTimeoutError" in cache.finding().output


def test_load_that_ran_out_of_its_callers_time_says_nothing_of_the_loader(clock: FakeClock) -> None:
    """It might have succeeded for somebody more patient."""
    cache = Cache("rates", ttl=10.0, clock=clock)

    def late() -> float:
        clock.advance(2.0)
        raise LostError("it is down")

    with pytest.raises(LostError), deadline(1.0, clock=clock):
        cache.get("EUR", late)
    assert cache.finding().status is Status.PASS


def test_cache_that_is_switched_off_warns(clock: FakeClock) -> None:
    """C3: who switched it off may have forgotten it."""
    cache = Cache("rates", ttl=10.0, clock=clock)
    cache.enabled = False

    assert (cache.finding().status, cache.finding().output) == (
        Status.WARN,
        "switched off: every call loads for itself",
    )


# The limiter.


def test_limiter_passes_however_much_it_denies(clock: FakeClock) -> None:
    """That is its work."""
    limiter = RateLimiter("2/minute", clock=clock)
    for _ in range(5):
        limiter.hit()

    assert limiter.finding() == Finding(
        Status.PASS, facts={"rung": "local", "allowed": 2, "denied": 3, "errors": 0}
    )


@pytest.mark.parametrize(
    ("on_outage", "what", "worst"),
    [
        ("local", "this process counts for itself", Status.WARN),
        ("allow", "every call is let in", Status.WARN),
        ("deny", "no call is let in", Status.FAIL),
    ],
)
def test_limiter_without_its_store_warns_and_fails_where_it_denies(
    clock: FakeClock, on_outage: Any, what: str, worst: Status
) -> None:
    """D7: it carries on, visibly. One that denies asks the store again, and fails no longer than that."""
    storage = f"redis://127.0.0.1:{free_port()}"
    limiter = RateLimiter(
        "9/minute", name="api", storage=storage, on_outage=on_outage, decision_timeout=5.0, clock=clock
    )
    assert limiter.finding().status is Status.PASS
    for _ in range(3):
        limiter.hit()

    found = limiter.finding()
    assert found.status is worst
    assert found.output.startswith("the shared store is away, and ")
    assert what in found.output
    assert "last failure: " in found.output
    assert (found.facts["rung"], found.facts["errors"]) == (on_outage, 3)
    clock.advance(2.0)
    assert limiter.finding().status is Status.WARN
    limiter.close()


# The bulkhead.


def test_bulkhead_in_use_passes() -> None:
    """Full is not too full, where a call may wait."""
    bulkhead = Bulkhead("db", 2, max_wait=1.0)
    with bulkhead.calling(), bulkhead.calling():
        found = bulkhead.finding()

    assert (found.status, found.value, found.unit) == (Status.PASS, 1.0, "ratio")
    assert found.facts == {"limit": 2, "in_use": 2, "waiting": 0, "rejected": 0}


def test_bulkhead_that_is_full_where_nobody_may_wait_warns() -> None:
    """D4: the next call is refused, and then it passes again."""
    bulkhead = Bulkhead("db", 1)
    with bulkhead.calling():
        with pytest.raises(BulkheadFullError):
            bulkhead.call(int)
        found = bulkhead.finding()

    assert (found.status, found.output) == (
        Status.WARN,
        "1 of 1 slots taken, and the next call is refused",
    )
    assert found.facts["rejected"] == 1
    assert bulkhead.finding().status is Status.PASS


def test_bulkhead_with_a_queue_warns() -> None:
    """With how long the queue is."""
    bulkhead = Bulkhead("db", 1, max_wait=60.0)
    with bulkhead.calling():
        other = threading.Thread(target=bulkhead.call, args=(int,))
        other.start()
        wait_until(lambda: bulkhead.stats().waiting == 1, "a call waits")
        found = bulkhead.finding()
    other.join()

    assert (found.status, found.output) == (Status.WARN, "1 of 1 slots taken, and 1 waiting")


def test_probe_in_the_reserve_does_not_make_a_bulkhead_full() -> None:
    """Else each health probe would find its own slot taken, and warn of it."""
    bulkhead = Bulkhead("door", 1, priority="probe", reserve=1)
    with bulkhead.calling():
        assert bulkhead.finding().facts["in_use"] == 1
        assert bulkhead.finding().status is Status.PASS


def test_bulkhead_by_key_warns_only_of_calls_that_wait() -> None:
    """Each key is full now and then; of none, nothing is known."""
    bulkhead = Bulkhead("tenants", 1, key="{}".format, max_wait=60.0)
    assert bulkhead.finding() == Finding(Status.PASS, facts={"keys": 0, "waiting": 0, "rejected": 0})
    with bulkhead.calling(key="a"), bulkhead.calling(key="b"):
        assert bulkhead.finding().status is Status.PASS
        other = threading.Thread(target=bulkhead("{}!".format), args=("a",))
        other.start()
        wait_until(lambda: bulkhead.stats().waiting == 1, "a call waits")
        assert bulkhead.finding() == Finding(
            Status.WARN,
            "calls that wait for a slot of their key: 1",
            facts={"keys": 2, "waiting": 1, "rejected": 0},
        )
    other.join()


def test_adaptive_bulkhead_tells_its_algorithm_and_the_pressure() -> None:
    """The limit it goes by is that of now."""
    found = Bulkhead("db", Gradient(initial=7)).finding()

    assert (found.facts["limit"], found.facts["algorithm"], found.facts["pressure"]) == (7, "gradient", 1.0)


# The throttle.


def test_throttle_passes_until_it_drops_calls(clock: FakeClock) -> None:
    """Then it warns, with what it has seen; and passes when the window has forgotten that."""
    throttle = AdaptiveThrottle("rates", min_calls=4, clock=clock, random=lambda: 0.0)
    for _ in range(4):
        throttle.call(int)
    found = throttle.finding()
    assert (found.status, found.value, found.calls) == (Status.PASS, 0.0, 4)

    fail(throttle, 8)
    found = throttle.finding()
    assert found.status is Status.WARN
    assert found.output.startswith("refuses ")
    assert "calls of the last 120 s were accepted" in found.output
    assert found.facts["rejected"] == found.facts["attempts"] - found.calls > 0  # type: ignore[operator]
    clock.advance(200.0)
    assert (throttle.finding().status, throttle.finding().calls) == (Status.PASS, found.calls)


# Budgets, and those who have one.


def test_budget_that_is_spent_warns_and_so_do_those_who_share_it(clock: FakeClock) -> None:
    """Further failures are not retried, which nobody sees elsewhere."""
    budget = RetryBudget(ratio=0.0, min_per_second=0.2, window=10.0, clock=clock)
    retry = Retry(on=LostError, attempts=2, wait=0.0, budget=budget, clock=clock)
    assert (budget.finding().status, budget.finding().value) == (Status.PASS, 2.0)
    assert retry.finding().status is Status.PASS

    fail(retry)
    assert (budget.finding().status, budget.finding().value) == (Status.PASS, 1.0)
    fail(retry, 2)
    found = budget.finding()
    assert found.status is Status.WARN
    assert found.output == "spent: 2 retries of 3 calls in the last 10 s; further failures are not retried"
    assert found.facts == {"calls": 3, "retries": 2, "denied": 1}
    assert retry.finding().status is Status.WARN
    assert retry.finding().output == f"budget {found.output}"
    clock.advance(20.0)
    assert budget.finding().status is retry.finding().status is Status.PASS


def test_budget_that_lives_off_traffic_is_not_spent_while_there_is_none(clock: FakeClock) -> None:
    """Otherwise every service would warn at night."""
    assert RetryBudget(min_per_second=0.0, clock=clock).finding().status is Status.PASS


def test_retry_without_a_budget_passes(clock: FakeClock) -> None:
    """It tells how much more it asks of the dependency."""
    retry = Retry(on=LostError, attempts=3, wait=0.0, budget=None, clock=clock)
    fail(retry)

    found = retry.finding()
    assert (found.status, found.value, found.unit) == (Status.PASS, 3.0, "attempts")
    assert found.facts == {"calls": 1, "retries": 2, "exhausted": 1}


# Pools.


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Time, and a server."""
    return World(monkeypatch)


def test_pool_tells_how_much_of_it_is_used(world: World) -> None:
    """In percent, as the alerts have it."""
    pool = world.pool(max_size=10)
    lent = [pool.getconn() for _ in range(7)]

    found = pool.finding()
    assert (found.status, found.output, found.value, found.unit) == (Status.PASS, "", 70.0, "percent")
    assert (found.facts["used"], found.facts["max_size"], len(lent)) == (7, 10, 7)


def test_pool_warns_from_80_percent(world: World) -> None:
    """E1, B4."""
    pool = world.pool(max_size=10)
    lent = [pool.getconn() for _ in range(8)]

    assert (pool.finding().status, pool.finding().output) == (Status.WARN, "8 of 10 connections are lent")
    pool.putconn(lent.pop())
    assert pool.finding().status is Status.PASS


def test_small_pool_may_be_used_up(world: World) -> None:
    """80 % of it is all of it, which is no more than being in use."""
    pool = world.pool(max_size=4)
    lent = [pool.getconn() for _ in range(4)]

    assert (pool.finding().status, len(lent)) == (Status.PASS, 4)


def test_exhausted_pool_warns(world: World) -> None:
    """B1: somebody waits while all are lent."""
    pool = world.pool(max_size=2, leak_after=None)
    lent = [pool.getconn(), pool.getconn()]
    seen: list[Finding] = []
    world.meanwhile = [lambda: seen.append(pool.finding()), lambda: pool.putconn(lent.pop())]

    pool.putconn(pool.getconn())

    (found,) = seen
    assert (found.status, found.output) == (Status.WARN, "all 2 connections are lent, and 1 waiting")


def test_pool_names_who_has_forgotten_a_connection(world: World) -> None:
    """B1: file, line and age; until it is returned."""
    pool = world.pool(leak_after=30.0)
    conn = pool.getconn()  # forgotten
    for _ in range(45):
        world.clock.advance(1.0)
        pool.round()

    (line,) = [n for n, text in enumerate(HERE.read_text().splitlines(), 1) if text.endswith("# forgotten")]
    found = pool.finding()
    assert found.status is Status.WARN
    assert found.output.startswith(
        f"a connection has been held for too long, the oldest by {HERE}:{line} in "
    )
    assert "(45.0 s, thread MainThread)" in found.output
    pool.putconn(conn)
    assert pool.finding().status is Status.PASS


def lose(world: World, pool: SteppedPool) -> None:
    """Take the server of *pool* away, and let that be found out."""
    world.server.failure = LostError("refused")
    with pytest.raises(RejectedError):
        pool.getconn(timeout=10.0)


def test_pool_whose_server_is_known_to_be_down_fails_as_long_as_that_is_known(world: World) -> None:
    """A2. When nobody has tried for a while it only warns: else nobody would ever try again."""
    pool = world.pool()
    lose(world, pool)

    found = pool.finding()
    assert (found.status, found.output) == (Status.FAIL, "cannot connect: LostError: refused")
    world.clock.advance(60.0)
    found = pool.finding()
    assert found.status is Status.WARN
    assert found.output == "could not connect when it was last tried: LostError: refused"
    world.server.failure = None
    pool.putconn(pool.getconn())
    assert pool.finding().status is Status.PASS


def test_pool_that_cannot_connect_and_has_connections_warns(world: World) -> None:
    """They are of use to those who come."""
    pool = world.pool(max_size=2, check_every=None)
    conn = pool.getconn()
    lose(world, pool)
    pool.putconn(conn)

    assert pool.finding().status is Status.WARN
    assert "LostError: refused" in pool.finding().output


def test_closed_pool_fails(world: World) -> None:
    """Nobody gets anything from it any more."""
    pool = world.pool()
    pool.close()

    assert (pool.finding().status, pool.finding().output) == (Status.FAIL, "closed")


async def test_pool_for_tasks_says_the_same() -> None:
    """It is one implementation."""
    connect = World().server.aconnect
    pool = AsyncConnectionPool(connect, name="orders", max_size=5)
    lent = [await pool.getconn() for _ in range(4)]

    assert pool.finding().output == "4 of 5 connections are lent"
    for conn in lent:
        await pool.putconn(conn)
    await pool.close()


# Replica sets.


def replicas_of(world: World, **settings: Any) -> tuple[ReplicaSet[Any], list[SteppedPool]]:
    """Return a primary with two replicas, and the pools of all three."""
    pools = [world.pool(name=name) for name in ("primary", "near", "far")]
    return ReplicaSet(pools[0], pools[1:], clock=world.clock, **settings), pools


def test_replica_set_passes_with_all_of_its_pools(world: World) -> None:
    """It tells which there are."""
    found = replicas_of(world)[0].finding()

    assert (found.status, found.output, found.value, found.unit) == (Status.PASS, "", 2.0, "replicas")
    assert found.facts == {"near": "up", "far": "up"}


def test_replica_that_is_out_is_a_warning(world: World) -> None:
    """Others serve its reads."""
    replicas, _ = replicas_of(world)
    replicas.breakers["far"].force_open(reason="INC-7")

    found = replicas.finding()
    assert (found.status, found.value) == (Status.WARN, 1.0)
    assert found.output == "replica 'far' is out: forced open (INC-7)"
    assert found.facts == {"near": "up", "far": "its breaker is open"}


def test_primary_that_is_out_is_a_failure(world: World) -> None:
    """Nothing can be written."""
    replicas, (primary, *_) = replicas_of(world)
    lose(world, primary)

    found = replicas.finding()
    assert found.status is Status.FAIL
    assert found.output == "primary 'primary': cannot connect: LostError: refused"


def test_replicas_are_all_there_is_where_the_primary_is_not_read_from(world: World) -> None:
    """Then it fails when all of them are out, and as long as none is tried again."""
    replicas, _ = replicas_of(world, fallback_to_primary=False)
    for breaker in replicas.breakers.values():
        breaker.force_open(60.0)

    assert replicas.finding().status is Status.FAIL
    assert replicas.finding().output.endswith("; no replica can be read from")
    world.clock.advance(61.0)
    assert replicas.finding().status is Status.WARN


def test_replica_whose_pool_warns_is_named(world: World) -> None:
    """A leak on a replica is a leak."""
    replicas, (_, near, _) = replicas_of(world)
    lent = [near.getconn() for _ in range(8)]

    assert replicas.finding().output == "replica 'near': 8 of 10 connections are lent"
    assert (replicas.finding().status, len(lent)) == (Status.WARN, 8)


def test_replica_set_whose_replica_was_closed_says_so(world: World) -> None:
    """It has no breaker to tell."""
    replicas, (_, near, _) = replicas_of(world)
    near.close()

    assert replicas.finding().output == "replica 'near' is out: closed"


# Pools of others.


@pytest.fixture
def engine() -> Iterator[sqlalchemy.Engine]:
    """A pool of five connections of SQLAlchemy's."""
    engine = sqlalchemy.create_engine(
        "sqlite://",
        poolclass=sqlalchemy.QueuePool,
        pool_size=5,
        max_overflow=0,
        creator=lambda: sqlite3.connect(":memory:", check_same_thread=False),
    )
    yield engine
    engine.dispose()


def test_watched_pool_says_what_ours_say(engine: sqlalchemy.Engine, clock: FakeClock) -> None:
    """80 %, and who has forgotten one."""
    with watch(engine, name="orders", leak_after=30.0, clock=clock) as watching:
        assert (watching.finding().status, watching.finding().value) == (Status.PASS, 0.0)
        lent = [engine.connect() for _ in range(4)]
        assert watching.finding().output == "4 of 5 connections are lent"

        clock.advance(31.0)
        watching._ledger.round()
        found = watching.finding()
        assert found.status is Status.WARN
        assert found.output.startswith(f"4 connections have been held for too long, the oldest by {HERE}:")
        assert found.output.endswith("; 4 of 5 connections are lent")
        for conn in lent:
            conn.close()
        assert watching.finding().status is Status.PASS


def test_pool_that_is_gone_is_unknown() -> None:
    """Nobody can tell; the watch keeps no pool alive."""
    pool = sqlalchemy.QueuePool(lambda: sqlite3.connect(":memory:"))
    watching = watch(pool)
    assert watching.finding().status is Status.PASS
    del pool
    gc.collect()

    assert watching.finding() == Finding(Status.UNKNOWN, "the pool is gone")


# The maintenance switch.


def test_maintenance_warns_with_its_reason_and_its_end(clock: FakeClock) -> None:
    """B5: nobody forgets to open again."""
    switch = Maintenance(clock=clock)
    assert switch.finding() == Finding(Status.PASS, facts={"on": False, "refused": 0})

    switch.on(60.0, reason="move to the new database")
    clock.advance(15.0)
    found = switch.finding()
    assert (found.status, found.facts["on"]) == (Status.WARN, True)
    assert found.output == "closed by hand (move to the new database), for another 45 s"
    clock.advance(45.0)
    assert switch.finding().status is Status.PASS
    switch.on()
    assert switch.finding().output == "closed by hand (no reason given)"


# All of them.


def everything(world: World) -> list[Any]:
    """Return one of each."""
    primary = world.pool()
    return [
        CircuitBreaker("b"),
        Cache("c", ttl=1.0),
        RateLimiter("1/second"),
        Bulkhead("b", 1),
        AdaptiveThrottle("t"),
        RetryBudget(),
        Retry(on=OSError),
        primary,
        ReplicaSet(primary, []),
        AsyncReplicaSet(AsyncConnectionPool(world.server.aconnect, name="p"), []),
        Maintenance(),
    ]


def test_each_is_a_witness_of_some_kind(world: World) -> None:
    """So that a report can tell a pool from a breaker of the same name."""
    for one in everything(world):
        assert isinstance(one, Witness)
        assert one.name
        assert one.kind in {base.__name__ for base in type(one).__mro__} | {"ConnectionPool"}
        assert one.finding().status is Status.PASS


def test_nothing_is_counted_by_asking(world: World) -> None:
    """A probe a second must not look like traffic."""
    for one in everything(world):
        before = one.stats()
        for _ in range(3):
            one.finding()
        assert one.stats() == before
