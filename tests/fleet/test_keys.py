"""What the limiter writes on the server, and what it never says: keys, hash tags, expiry, secrets."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

import pytest
from tests.fleet.leftovers import Keep, assert_tidy, hash_tags_of, keys_of
from tests.support.cluster import ClusterFleet
from tests.support.tcp_proxy import TcpProxy
from tests.support.valkey import ValkeyServer
from tests.support.waiting import wait_until

from resilient import RateLimitedError, RateLimiter
from resilient.engine.keys import compact, digest
from resilient.events import RungChanged
from resilient.testing import capture_events

pytestmark = pytest.mark.faults

STRATEGIES = ["token-bucket", "fixed-window", "sliding-window-counter", "moving-window"]
each_strategy = pytest.mark.parametrize("strategy", STRATEGIES)

HOUR = 3_600.0
# What a client may put into a header, a path or a user name, and each with a twin it could be taken for.
HOSTILE = [
    "",
    " ",
    "\r\nSET owned 1\r\n",
    "\nSET owned 1\n",
    "nul\0",
    "nul",
    "a b",
    "a_b",
    "{",
    "}",
    "{}",
    "{ann}",
    "ann",
    "a:b",
    "a:b:c",
    "*",
    "$1\r\n1",
    "é",
    "e\u0301",
    "ключ",
    "\U0001f600",
    "\udc80",
    "%0d%0a",
    "#0123456789abcdef",
    "x" * 10_000,
    "x" * 10_001,
]


def limiter_on(uri: str, name: str = "door", **options: object) -> RateLimiter:
    """Make a limiter that takes its time."""
    options = {"rate": "3/hour", "decision_timeout": 5.0} | options
    return RateLimiter(options.pop("rate"), name=name, storage=uri, **options)


@each_strategy
def test_hostile_keys_are_each_a_key_of_their_own(empty_valkey: ValkeyServer, strategy: str):
    """Whatever is in them: three calls each, none less for another's, and nothing odd on the server."""
    limiter = limiter_on(empty_valkey.url, strategy=strategy)

    for key in HOSTILE:
        decisions = [limiter.hit(key) for _ in range(4)]
        assert [decision.allowed for decision in decisions] == [True, True, True, False], repr(key)
        assert {decision.rung for decision in decisions} == {"shared"}, repr(key)
    assert len(keys_of(empty_valkey)) == len(HOSTILE)
    assert_tidy(empty_valkey, HOUR)


def test_hostile_names_are_each_a_limiter_of_their_own(empty_valkey: ValkeyServer):
    """A limiter's name stands in its keys, too."""
    names = [name for name in HOSTILE if name.strip()]
    for name in names:
        assert limiter_on(empty_valkey.url, name).hit("ann", cost=3).rung == "shared"

    assert not any(limiter_on(empty_valkey.url, name).hit("ann").allowed for name in names)
    assert_tidy(empty_valkey, HOUR)


def test_name_and_key_do_not_run_into_each_other(empty_valkey: ValkeyServer):
    """`a` with the key `b:c`, and `a:b` with `c`, are different."""
    assert limiter_on(empty_valkey.url, "a").hit("b:c", cost=3).allowed
    assert limiter_on(empty_valkey.url, "a:b").hit("c", cost=3).allowed


def test_long_key_is_kept_as_a_digest(empty_valkey: ValkeyServer):
    """A megabyte of key is a few bytes on the server, and the same ones from another limiter."""
    limiter_on(empty_valkey.url).hit("k" * 1_000_000)

    assert limiter_on(empty_valkey.url).hit("k" * 1_000_000).remaining == 1
    assert max(map(len, keys_of(empty_valkey))) < 200


def test_digest_of_a_long_key_is_a_key_of_its_own(empty_valkey: ValkeyServer):
    """Whoever sends it as a key does not get the long one's permits, nor use them up."""
    limiter = limiter_on(empty_valkey.url)
    for long in ("k" * 100, "a b"):
        assert limiter.hit(digest(long), cost=3).allowed
        assert limiter.hit(compact(digest(long)), cost=3).allowed
        assert limiter.hit(long, cost=3).allowed


@each_strategy
def test_keys_of_one_decision_are_on_one_node(empty_valkey: ValkeyServer, strategy: str):
    """Three rates are three keys with one hash tag; two users have two."""
    limiter = limiter_on(empty_valkey.url, rate=["3/hour", "4/day", "5/month"], strategy=strategy)
    limiter.hit("ann")
    assert len(hash_tags_of(empty_valkey)) == 1

    limiter.hit("bob")
    assert len(hash_tags_of(empty_valkey)) == 2
    assert_tidy(empty_valkey, 31 * 24 * HOUR)


@pytest.mark.slow
def test_cluster_takes_hostile_keys_with_several_rates(cluster: ClusterFleet):
    """No key's braces send the parts of a decision to different nodes."""
    limiter = limiter_on(cluster.uri, rate=["3/hour", "4/day"])

    for key in HOSTILE:
        decisions = [limiter.hit(key) for _ in range(4)]
        assert [decision.allowed for decision in decisions] == [True, True, True, False], repr(key)
        assert {decision.rung for decision in decisions} == {"shared"}, repr(key)


def test_two_strategies_of_one_name_and_key_do_not_collide(empty_valkey: ValkeyServer):
    """Each counts for itself, with a type of its own on the server."""
    limiters = [limiter_on(empty_valkey.url, strategy=strategy) for strategy in STRATEGIES]
    for _ in range(3):
        for limiter in limiters:
            decision = limiter.hit("ann")
            assert (decision.allowed, decision.rung) == (True, "shared")

    assert not any(limiter.hit("ann").allowed for limiter in limiters)
    assert_tidy(empty_valkey, HOUR)


def test_two_rates_of_one_name_and_key_do_not_collide(empty_valkey: ValkeyServer):
    """A changed rate, during a deployment, is a new count and no error."""
    assert limiter_on(empty_valkey.url, rate="3/hour").hit(cost=3).allowed
    decision = limiter_on(empty_valkey.url, rate="5/minute").hit(cost=5)

    assert (decision.allowed, decision.rung) == (True, "shared")


def test_two_long_windows_of_one_name_and_key_do_not_collide(empty_valkey: ValkeyServer):
    """Every digit of them is in the key."""
    for window in (1_234_567, 1_234_568, 10**11, 10**11 + 1):
        decision = limiter_on(empty_valkey.url, rate=f"3 per {window} seconds").hit("ann", cost=3)
        assert (decision.allowed, decision.rung) == (True, "shared")


@each_strategy
def test_foreign_or_broken_values_are_survived(empty_valkey: ValkeyServer, strategy: str):
    """What somebody else wrote, of any type, is as good as unseen, and is written over."""
    limiter = limiter_on(empty_valkey.url, strategy=strategy)
    limiter.hit("ann")
    (key,) = keys_of(empty_valkey)
    now = time.time_ns() // 1_000
    with empty_valkey.client() as client:
        for spoil in (
            lambda: client.set(key, b"\x00\xff not a number"),
            lambda: client.set(key, b"-1 -1"),
            lambda: client.set(key, b"9" * 400),
            lambda: client.set(key, f"{now} {'9' * 30}"),
            lambda: client.set(key, f"{'9' * 400} {'9' * 400}"),
            lambda: client.set(key, f"{now} {'9' * 30} {'9' * 30}"),
            lambda: client.hset(key, "field", "value"),
            lambda: client.rpush(key, "one", "nan", "-inf"),
            lambda: client.rpush(key, "1" * 400, "2"),
            lambda: client.rpush(key, str(now), "one", "two", str(now)),
        ):
            client.delete(key)
            spoil()
            limiter.peek("ann", cost=3)
            decisions = [limiter.hit("ann") for _ in range(5)]
            assert {decision.rung for decision in decisions} == {"shared"}
            assert decisions[0].allowed
            assert not decisions[-1].allowed
            assert 0.0 < decisions[-1].retry_after <= HOUR
            assert_tidy(empty_valkey, HOUR)
    assert limiter.stats().errors == 0


@each_strategy
def test_dearest_call_is_no_error_of_the_store(empty_valkey: ValkeyServer, strategy: str):
    """However long the window, and however often: every key expires, and every answer can be read."""
    for rate in ("3/hour", "1 per 100000000000 seconds"):
        limiter = limiter_on(empty_valkey.url, rate=rate, strategy=strategy)
        for _ in range(3):
            decision = limiter.hit("ann")
            limiter.settle(decision, 10**9)
        assert (decision.rung, limiter.stats().errors) == ("shared", 0)
        assert decision.retry_after > 0.0
    with empty_valkey.client() as client:
        assert all(client.pttl(key) > 0 for key in keys_of(empty_valkey))


def test_command_that_is_not_permitted_is_an_outage(empty_valkey: ValkeyServer):
    """And not a key without a count: else a wrong permission would let everybody in."""
    with empty_valkey.client() as client:
        client.acl_setuser(
            "blind",
            enabled=True,
            passwords=["+secret"],
            keys=["resilient:*"],
            commands=["+eval", "+evalsha", "+time", "+set"],
        )
        try:
            uri = f"redis://blind:secret@{empty_valkey.host}:{empty_valkey.port}/0"
            assert [limiter_on(uri).hit("ann").rung for _ in range(3)] == ["local"] * 3
        finally:
            client.acl_deluser("blind")


@each_strategy
async def test_decode_responses_in_the_uri_works(empty_valkey: ValkeyServer, strategy: str, keep: Keep):
    """Answers are text then, and mean the same."""
    limiter = keep(limiter_on(f"{empty_valkey.url}?decode_responses=true", strategy=strategy))

    decisions = [limiter.hit(), await limiter.ahit(), limiter.hit(), await limiter.ahit()]
    assert [decision.allowed for decision in decisions] == [True, True, True, False]
    assert {decision.rung for decision in decisions} == {"shared"}


SECRET = "s3cret-hunter2"


@pytest.fixture
def locked_valkey() -> Iterator[ValkeyServer]:
    """A server that asks for a password."""
    with ValkeyServer(password=SECRET) as server:
        yield server


async def test_password_is_used_and_never_told(
    locked_valkey: ValkeyServer, caplog: pytest.LogCaptureFixture, keep: Keep
):
    """Not in a repr, an event, a log line, an error or the statistics; nor when the server is gone."""
    caplog.set_level(logging.DEBUG)
    told: list[object] = []
    with TcpProxy(locked_valkey.port) as proxy, capture_events() as events:
        limiter = keep(limiter_on(f"redis://:{SECRET}@{proxy.host}:{proxy.port}/0", decision_timeout=0.2))
        assert limiter.hit("ann", cost=3).rung == "shared"
        assert (await limiter.ahit("ann")).rung == "shared"
        with pytest.raises(RateLimitedError) as refused:
            limiter.acquire("ann")
        with proxy.down():
            wait_until(lambda: limiter.hit("bob").rung == "local" and bool(events), "local")
        told += [limiter, limiter.stats(), refused.value, vars(refused.value), limiter.quotas, *events]

    assert events.of(RungChanged)
    assert SECRET not in "\n".join(map(repr, told)) + "\n".join(map(str, told)) + caplog.text


def test_wrong_password_is_an_outage_and_not_told(
    locked_valkey: ValkeyServer, caplog: pytest.LogCaptureFixture
):
    """The server says no: the limiter goes on locally, and does not repeat what it tried."""
    caplog.set_level(logging.DEBUG)
    with capture_events() as events:
        limiter = limiter_on(locked_valkey.url.replace(SECRET, f"not-{SECRET}"))
        for _ in range(5):
            assert limiter.hit("ann").rung == "local"

    (moved,) = events.of(RungChanged)
    assert (moved.previous, moved.rung) == ("shared", "local")
    assert SECRET not in repr(moved) + repr(limiter) + caplog.text


@pytest.mark.parametrize(
    "uri",
    [
        f"redis://:{SECRET}@127.0.0.1:port/0",
        f"redis://:{SECRET}@[127.0.0.1/0",
        f"redys://:{SECRET}@127.0.0.1/0",
        f"redis+sentinel://:{SECRET}@127.0.0.1:1",
        f"redis+cluster://:{SECRET}@127.0.0.1:port",
        f":{SECRET}@127.0.0.1",
    ],
)
def test_uri_that_cannot_be_used_is_refused_without_its_password(uri: str):
    """Early, in the constructor, with an error that names the parameter."""
    with pytest.raises((ValueError, TypeError), match="storage") as refused:
        RateLimiter("3/hour", name="door", storage=uri)

    error: BaseException | None = refused.value
    while error is not None:  # what is printed below it, too
        assert SECRET not in str(error) + repr(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
