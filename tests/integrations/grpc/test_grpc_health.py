"""`grpc.health.v1` of servers of both colours, asked by the stock client, by probers and by channels."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
import pytest
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from tests.support.waiting import wait_until

from resilient.asgi import Maintenance
from resilient.engine.waiting import ThreadWaiter
from resilient.health.health import Health
from resilient.integrations.grpc import AioHealthServicer, HealthServicer, add_health, health_channel_options

from .rig import COLOURS, WITHIN, Hold, begin, call, channel_to, ended, hosting, nothing, plain_behaviours

colours = pytest.mark.parametrize("colour", COLOURS)

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = HealthCheckResponse.SERVICE_UNKNOWN
SOON = 0.02  # how often watches look here, in seconds


class Rig:
    """A server, its health, and the stock client of grpcio-health-checking.

    Attributes:
        up: what the one check, "db", finds.
        servicer: what is registered.
        runs: how often the check has been run.
    """

    def __init__(self, **words: Any) -> None:
        self.up = True
        self.runs = 0
        self.health = Health("shop", ttl=SOON, **words)
        self.health.add(self._check, "db", critical=True, groups=["ready", "startup", "payments"])
        self.servicer: Any = None
        self.stub: Any = None
        self.host: Any = None

    def _check(self) -> bool:
        self.runs += 1
        return self.up

    def serve(self, colour: str, **words: Any) -> Any:
        """Return what prepares a server."""

        def prepare(server: Any) -> None:
            self.servicer = add_health(self.health, server, **{"every": SOON, **words})

        return prepare

    def check(self, service: str = "", timeout: float = WITHIN) -> int:
        """Ask once."""
        return int(self.stub.Check(HealthCheckRequest(service=service), timeout=timeout).status)

    def watch(self, service: str = "") -> Any:
        """Return statuses, one after the other."""
        return self.stub.Watch(HealthCheckRequest(service=service), timeout=WITHIN)


@contextlib.contextmanager
def telling(
    colour: str,
    *,
    words: Any = None,
    interceptors: Any = (),
    threads: int = 8,
    act: Any = nothing,
    **how: Any,
) -> Iterator[Rig]:
    """Return a `Rig` whose server runs."""
    about = {name: how.pop(name) for name in ("answer_within",) if name in how}
    rig = Rig(**about)
    prepare = rig.serve(colour, **how)
    with (
        hosting(colour, words, prepare=prepare, interceptors=interceptors, threads=threads, act=act) as host,
        channel_to(host) as channel,
    ):
        rig.stub, rig.host = health_pb2_grpc.HealthStub(channel), host
        yield rig
    rig.health.close()


def next_status(watch: Any) -> int:
    return int(next(watch).status)


# Check


@colours
def test_the_stock_client_is_told(colour: str) -> None:
    """What fails is not serving; when it passes, it is again."""
    with telling(colour) as rig:
        assert rig.check() == SERVING
        rig.up = False
        wait_until(lambda: rig.check() == NOT_SERVING, "it is told that the check fails")
        rig.up = True
        wait_until(lambda: rig.check() == SERVING, "it is told that the check passes")


@colours
def test_services_are_groups(colour: str) -> None:
    """Those of Kubernetes' probes, those of the user by the names of groups, and those that are mapped."""
    with telling(colour, services={"shop.Payment": "payments", "shop.Cart": "live"}) as rig:
        rig.up = False
        rig.health.report("all")
        told = {
            name: rig.check(name)
            for name in ("", "readiness", "ready", "startup", "liveness", "live", "payments", "shop.Payment")
        }
        assert told == dict.fromkeys(
            ("", "readiness", "ready", "startup", "payments", "shop.Payment"), NOT_SERVING
        ) | dict.fromkeys(("live", "liveness"), SERVING)
        assert rig.check("shop.Cart") == SERVING


@colours
def test_a_service_nobody_knows_is_not_found(colour: str) -> None:
    """Neither is one that is mapped to a group without a check."""
    with telling(colour, services={"shop.Payment": "nonsense"}) as rig:
        for name in ("shop.Unknown", "shop.Payment", "db", "\u00e9"):
            with pytest.raises(grpc.RpcError) as refused:
                rig.check(name)
            assert refused.value.code() is StatusCode.NOT_FOUND


@pytest.mark.skipif(not hasattr(health_pb2, "HealthListRequest"), reason="an older health_pb2")
@colours
def test_all_services_are_listed(colour: str) -> None:
    """`List` of the newer protocol; what nobody knows is not in it."""
    with telling(colour, services={"shop.Payment": "payments", "shop.Other": "nonsense"}) as rig:
        rig.health.report("all")
        listed = rig.stub.List(health_pb2.HealthListRequest(), timeout=WITHIN).statuses
        told = {name: response.status for name, response in listed.items()}
    names = {"", "readiness", "ready", "startup", "liveness", "live", "payments", "all", "shop.Payment"}
    assert told == dict.fromkeys(names, SERVING)


@colours
def test_a_warning_is_served(colour: str) -> None:
    """Only a failure of what is critical takes a server out."""
    with telling(colour) as rig:
        rig.health.add(lambda: False, "mail", groups=["ready"], critical=False)
        assert rig.health.report("ready").result("mail").status == "fail"
        assert rig.check() == SERVING


@colours
def test_what_is_critical_and_not_known_is_not_serving(colour: str) -> None:
    """Not ready before it is known to be."""
    hold = threading.Event()
    with telling(colour) as rig:
        rig.health.add(hold.wait, "slow", critical=True, timeout=WITHIN, groups=["ready", "slow"])
        assert rig.check("slow", timeout=2.0) == NOT_SERVING
        hold.set()
        wait_until(lambda: rig.check("slow") == SERVING, "it is known")


@colours
def test_a_prober_with_a_second_has_its_answer(colour: str) -> None:
    """`grpc_health_probe` and Kubernetes wait for one second: a check that hangs must not hold the answer."""
    hold = threading.Event()
    with telling(colour) as rig:
        rig.health.add(hold.wait, "hangs", critical=False, timeout=WITHIN, groups=["ready"])
        began = time.monotonic()
        assert rig.check(timeout=1.0) == SERVING
        assert time.monotonic() - began < 1.0
        hold.set()


@colours
def test_less_patience_has_its_answer_too(colour: str) -> None:
    """The answer comes in the prober's time, whatever that is."""
    hold = threading.Event()
    with telling(colour, answer_within=15.0) as rig:
        rig.health.add(hold.wait, "hangs", critical=True, timeout=WITHIN, groups=["slow"])
        assert rig.check("slow", timeout=1.5) == NOT_SERVING
        hold.set()


@colours
def test_probes_run_no_check_more_often_than_due(colour: str) -> None:
    """A storm of probes costs nothing."""
    with telling(colour) as rig:
        rig.health.add(lambda: counted.append(1), "counted", critical=True, ttl=100.0, groups=["storm"])
        counted: list[int] = []
        with futures.ThreadPoolExecutor(4) as pool:
            assert set(pool.map(lambda _: rig.check("storm"), range(100))) == {SERVING}
        assert len(counted) == 1


@colours
def test_draining_is_told(colour: str) -> None:
    """Everything but liveness is not serving; and comes back."""
    with telling(colour) as rig:
        rig.health.drain("new version")
        assert [rig.check(name) for name in ("", "payments", "liveness")] == [
            NOT_SERVING,
            NOT_SERVING,
            SERVING,
        ]
        rig.health.resume()
        assert rig.check() == SERVING


@colours
def test_coroutines_are_checks_as_well(colour: str) -> None:
    """Whoever asks, they run on a loop."""
    with telling(colour) as rig:

        async def ping() -> None:
            await asyncio.sleep(0)

        rig.health.add(ping, "ping", critical=True, groups=["tasks"])
        assert rig.check("tasks") == SERVING


# Watch


@colours
def test_a_watcher_is_told_at_once_and_then_of_changes(colour: str) -> None:
    """And of nothing else: each message is a change."""
    with telling(colour) as rig:
        watch = rig.watch()
        assert next_status(watch) == SERVING
        runs = rig.runs
        wait_until(lambda: rig.runs > runs + 3, "the check is run because somebody watches")
        rig.up = False
        assert next_status(watch) == NOT_SERVING
        rig.up = True
        assert next_status(watch) == SERVING
        watch.cancel()


@colours
def test_a_change_is_told_in_the_moment_it_is_known(colour: str) -> None:
    """Not when somebody looks next."""
    with telling(colour, every=1_000.0) as rig:
        watch = rig.watch()
        assert next_status(watch) == SERVING
        rig.up = False
        wait_until(lambda: rig.check() == NOT_SERVING, "somebody else finds out")
        assert next_status(watch) == NOT_SERVING
        rig.up = True
        wait_until(lambda: rig.check() == SERVING, "somebody else finds out")
        assert next_status(watch) == SERVING
        watch.cancel()


@colours
def test_an_unknown_service_may_become_known(colour: str) -> None:
    """A watcher is told, and is told more when there is more to tell."""
    with telling(colour, services={"shop.Cart": "carts"}) as rig:
        watch = rig.watch("shop.Cart")
        assert next_status(watch) == SERVICE_UNKNOWN
        rig.health.add(lambda: True, "cart", critical=True, groups=["carts"])
        statuses = [next_status(watch)]
        if statuses == [NOT_SERVING]:  # known, and not looked at yet
            statuses.append(next_status(watch))
        assert statuses[-1] == SERVING
        rig.health.remove("cart")
        assert next_status(watch) == SERVICE_UNKNOWN
        watch.cancel()


@colours
def test_draining_is_told_to_all_who_watch(colour: str) -> None:
    """At once, and but for liveness."""
    with telling(colour, every=1_000.0) as rig:
        watches = [rig.watch(name) for name in ("", "payments", "liveness")]
        assert [next_status(watch) for watch in watches] == [SERVING] * 3
        rig.health.drain()
        assert [next_status(watch) for watch in watches[:2]] == [NOT_SERVING] * 2
        rig.health.resume()
        assert next_status(watches[0]) == SERVING
        for watch in watches:
            watch.cancel()


def test_many_who_watch_look_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And again when something has changed."""
    health = Health("shop")
    looks: list[str] = []
    latest = health.latest

    def look(group: str) -> Any:
        looks.append(group)
        return latest(group)

    monkeypatch.setattr(health, "latest", look)
    servicer = HealthServicer(health, every=1_000.0)
    for status in (SERVING, NOT_SERVING):
        assert {servicer._serving(name) for name in ("", "readiness") for _ in range(50)} == {status}
        health.drain()
    assert looks == ["ready"] * 2


def test_a_change_between_two_looks_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is told while somebody looks wakes them at once when they wait again."""
    servicer = HealthServicer(Health("shop"), every=1_000.0)

    def look(_service: str) -> Any:
        servicer.ring()  # it changes in the moment after it was looked at
        return SERVING

    monkeypatch.setattr(servicer, "_serving", look)
    with servicer._seat(ThreadWaiter(), 1) as seat:
        assert seat is not None
        changes = servicer._changes("", SERVING, seat, ThreadWaiter)
        assert next(changes).status == SERVING
        assert [next(changes), next(changes)] == [None, None]
        assert seat.waiter.park(0.0)
    assert servicer.watchers == 0


def test_invented_names_are_not_kept() -> None:
    """Anybody may ask for anything, for years."""
    servicer = HealthServicer(Health("shop"))
    for number in range(100):
        servicer._serving(f"shop.{number}")
    assert len(servicer._looked) == 0


@colours
def test_watchers_that_leave_are_forgotten(colour: str) -> None:
    """Whatever they were waiting for."""
    with telling(colour, every=1_000.0) as rig:
        watches = [rig.watch() for _ in range(3)]
        assert [next_status(watch) for watch in watches] == [SERVING] * 3
        assert rig.servicer.watchers == 3
        for watch in watches:
            watch.cancel()
        wait_until(lambda: rig.servicer.watchers == 0, "they are forgotten")


@colours
def test_watchers_whose_time_is_up_are_forgotten(colour: str) -> None:
    """A deadline ends a watch like any call."""
    with telling(colour, every=1_000.0) as rig:
        watch = rig.stub.Watch(HealthCheckRequest(), timeout=0.1)
        assert next_status(watch) == SERVING
        with pytest.raises(grpc.RpcError):
            next(watch)
        assert watch.code() is StatusCode.DEADLINE_EXCEEDED
        wait_until(lambda: rig.servicer.watchers == 0, "it is forgotten")


@colours
def test_there_are_only_so_many_watchers(colour: str) -> None:
    """Who comes then is told; when one leaves, there is room."""
    with telling(colour, max_watchers=2) as rig:
        watches = [rig.watch() for _ in range(2)]
        assert [next_status(watch) for watch in watches] == [SERVING] * 2
        for _ in range(5):
            late = rig.watch()
            with pytest.raises(grpc.RpcError):
                next(late)
            assert late.code() is StatusCode.RESOURCE_EXHAUSTED
        assert rig.check() == SERVING
        watches[0].cancel()
        wait_until(lambda: rig.servicer.watchers == 1, "one has left")
        again = rig.watch()
        assert next_status(again) == SERVING
        again.cancel()
        watches[1].cancel()


@colours
def test_nobody_may_watch(colour: str) -> None:
    """Where that is asked for."""
    with telling(colour, max_watchers=0) as rig:
        watch = rig.watch()
        with pytest.raises(grpc.RpcError):
            next(watch)
        assert watch.code() is StatusCode.RESOURCE_EXHAUSTED


def test_watchers_take_none_of_the_servers_threads() -> None:
    """A server with one thread answers calls, however many watch."""
    with telling("threads", threads=1) as rig:
        watches = [rig.watch() for _ in range(5)]
        assert [next_status(watch) for watch in watches] == [SERVING] * 5
        assert rig.check() == SERVING
        for watch in watches:
            watch.cancel()
        wait_until(lambda: rig.servicer.watchers == 0, "they have left")


class _Wrapping(grpc.ServerInterceptor):
    """An interceptor as others write them: what it returns has lost where it is to run."""

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        handler = continuation(details)
        if handler is None or not handler.unary_stream:
            return handler

        def unary_stream(request: Any, context: Any) -> Any:
            return handler.unary_stream(request, context)

        return grpc.unary_stream_rpc_method_handler(
            unary_stream, handler.request_deserializer, handler.response_serializer
        )


def test_watchers_that_do_take_the_servers_threads_are_few() -> None:
    """Behind such an interceptor they must not take them all."""
    with telling("threads", threads=4, interceptors=[_Wrapping()]) as rig:
        watches = [rig.watch() for _ in range(2)]
        assert [next_status(watch) for watch in watches] == [SERVING] * 2
        late = rig.watch()
        with pytest.raises(grpc.RpcError):
            next(late)
        assert late.code() is StatusCode.RESOURCE_EXHAUSTED
        assert rig.check() == SERVING
        for watch in watches:
            watch.cancel()
        wait_until(lambda: rig.servicer.watchers == 0, "they have left")


@colours
def test_a_server_that_stops_lets_watchers_go(colour: str) -> None:
    """They are told, and do not use up the time that is left to others."""
    with telling(colour, every=1_000.0) as rig:
        watch = rig.watch("liveness")
        assert next_status(watch) == SERVING
        began = time.monotonic()
        rig.host.stop(grace=WITHIN)
        assert time.monotonic() - began < WITHIN / 2
        assert [response.status for response in watch] == [NOT_SERVING]
        assert rig.servicer.watchers == 0


@colours
def test_calls_under_way_have_the_grace_of_a_server_that_stops(colour: str) -> None:
    """Only the watchers go at once."""
    hold = Hold()
    with telling(colour, act=hold) as rig, channel_to(rig.host) as channel:
        under_way = begin(channel)
        hold.wait_for(1)
        stopping = threading.Thread(target=rig.host.stop, args=(WITHIN,))
        stopping.start()
        hold.let_go()
        assert ended(under_way, "unary_unary").code is StatusCode.OK
        stopping.join(WITHIN)
        assert not stopping.is_alive()


@colours
def test_a_closed_servicer_is_not_heard_any_more(colour: str) -> None:
    """Closing twice does nothing; who comes later is told to stay away, while probes have the truth."""
    with telling(colour) as rig:
        rig.servicer.close()
        rig.servicer.close()
        assert [response.status for response in rig.watch()] == [NOT_SERVING]
        assert rig.check() == SERVING


def test_a_server_that_is_dropped_stops() -> None:
    """It must not be kept by its health."""
    import gc
    import weakref

    pool = futures.ThreadPoolExecutor(1)
    health = Health("shop")
    server = grpc.server(pool)
    add_health(health, server)
    gone = weakref.ref(server)
    gc.disable()  # the collector would come in time, some time
    try:
        del server
        assert gone() is None
    finally:
        gc.enable()
    pool.shutdown()


# Probers


PROBE = """
import sys
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

def probe(service):
    with grpc.insecure_channel(sys.argv[1]) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=10)
            stub = health_pb2_grpc.HealthStub(channel)
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=1)
        except grpc.FutureTimeoutError:
            return 2
        except grpc.RpcError:
            return 3
    return 0 if answer.status == health_pb2.HealthCheckResponse.SERVING else 4

print(*map(probe, sys.argv[2:]))
"""


@colours
def test_grpc_health_probe(colour: str) -> None:
    """What the tool of that name does, in a process of its own: connect, check, and tell by its status."""
    with telling(colour) as rig:
        rig.health.drain()
        words = [
            sys.executable,
            "-c",
            PROBE,
            f"127.0.0.1:{rig.host.port}",
            "liveness",
            "nonsense",
            "readiness",
        ]
        told = subprocess.run(words, check=True, capture_output=True, text=True, timeout=60)
    assert told.stdout.split() == ["0", "3", "4"]


@colours
def test_interceptors_let_probes_pass(colour: str) -> None:
    """However closed and full the service is."""
    shut = Maintenance()
    shut.on()
    words = {"maintenance": shut, "rate_limit": "1/hour", "deadline": 0.001}
    with telling(colour, words=words) as rig:
        assert [rig.check() for _ in range(3)] == [SERVING] * 3
        watch = rig.watch()
        assert next_status(watch) == SERVING
        watch.cancel()
        with channel_to(rig.host) as channel:
            assert call(channel).code is StatusCode.UNAVAILABLE


# Channels


@contextlib.contextmanager
def two_servers(colour: str) -> Iterator[tuple[list[Rig], Callable[..., Any]]]:
    """Return two backends that tell their names, and what makes a channel to both."""
    with contextlib.ExitStack() as stack:
        rigs = []
        for name in ("one", "two"):
            rig = Rig()
            behaviours = {"unary_unary": _named(name, colour)}
            prepare = rig.serve(colour, services={"t.Service": "payments"})
            rig.host = stack.enter_context(hosting(colour, prepare=prepare, behaviours=behaviours))
            stack.callback(rig.health.close)
            rigs.append(rig)
        yield rigs, lambda options: channel_to(*(rig.host for rig in rigs), options=options)


def _named(name: str, colour: str) -> Any:
    if colour == "threads":
        return lambda _request, _context: name.encode()

    async def who(_request: bytes, _context: Any) -> bytes:
        return name.encode()

    return who


def _who(channel: grpc.Channel) -> set[str]:
    """Return who answers, of many calls."""
    ends = [call(channel, wait_for_ready=True) for _ in range(10)]
    assert {end.code for end in ends} == {StatusCode.OK}
    return {end.messages[0].decode() for end in ends}


@colours
@pytest.mark.parametrize("service", ["", "t.Service"])
def test_a_channel_sends_nothing_to_who_is_not_serving(colour: str, service: str) -> None:
    """Of two servers, the other one has it all; until the first one is back."""
    with (
        two_servers(colour) as ((one, _), channel_with),
        channel_with(health_channel_options(service)) as channel,
    ):
        wait_until(lambda: _who(channel) == {"one", "two"}, "both serve")
        one.up = False
        wait_until(lambda: _who(channel) == {"two"}, "the one that fails gets nothing")
        one.up = True
        wait_until(lambda: _who(channel) == {"one", "two"}, "both serve again")
        one.health.drain()
        wait_until(lambda: _who(channel) == {"two"}, "the one that drains gets nothing")
        assert Counter(call(channel).code for _ in range(20)) == {StatusCode.OK: 20}


def test_where_nobody_serves_calls_fail_at_once() -> None:
    """Or wait, if they are made so."""
    with two_servers("threads") as (rigs, channel_with), channel_with(health_channel_options()) as channel:
        for rig in rigs:
            rig.health.drain()
        wait_until(lambda: call(channel, timeout=5.0).code is StatusCode.UNAVAILABLE, "nobody serves")
        waiting = begin(channel, wait_for_ready=True)
        rigs[0].health.resume()
        assert ended(waiting, "unary_unary").messages == [b"one"]


def test_a_server_without_health_counts_as_serving() -> None:
    """gRFC A17: what does not implement `Watch` is not asked again."""
    with hosting("threads") as host, channel_to(host, options=health_channel_options()) as channel:
        assert call(channel, wait_for_ready=True).code is StatusCode.OK


def test_channels_of_tasks_have_the_same_options() -> None:
    """A client of tasks goes by health as well."""
    with two_servers("threads") as (rigs, _):
        rigs[0].health.drain()
        address = "ipv4:" + ",".join(f"127.0.0.1:{rig.host.port}" for rig in rigs)

        async def who() -> set[bytes]:
            async with grpc.aio.insecure_channel(address, options=health_channel_options()) as channel:
                method = channel.unary_unary("/t.Service/unary_unary")
                return {await method(b"", wait_for_ready=True, timeout=WITHIN) for _ in range(10)}

        assert asyncio.run(who()) == {b"two"}


def test_options_keep_what_else_a_channel_is_told() -> None:
    """Retries and other policies stand beside the health check."""
    ((name, text),) = health_channel_options(
        "shop.Payment", service_config={"methodConfig": [{"name": [{}], "timeout": "1s"}]}
    )
    assert name == "grpc.service_config"
    assert '"serviceName": "shop.Payment"' in text
    assert '"round_robin"' in text
    assert '"timeout": "1s"' in text
    ((_, other),) = health_channel_options(service_config={"loadBalancingConfig": [{"weighted": {}}]})
    assert '"round_robin"' not in other


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({"service": None}, TypeError, "service must be text"),
        ({"service_config": "{}"}, TypeError, "service_config must be a mapping"),
        ({"service_config": {"a": object()}}, ValueError, "service_config must be what JSON can say"),
    ],
)
def test_bad_options_are_named(words: Any, error: type[Exception], message: str) -> None:
    """The message names the argument and the rule."""
    with pytest.raises(error, match=message):
        health_channel_options(**words)


# Arguments


@pytest.mark.parametrize("kind", [HealthServicer, AioHealthServicer])
@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({"services": ["ready"]}, TypeError, "services must map names"),
        ({"services": {3: "ready"}}, TypeError, "services must name services as text"),
        ({"services": {"a": 3}}, TypeError, r"services\['a'\] must be text"),
        ({"services": {"a": ""}}, ValueError, r"services\['a'\] must not be empty"),
        ({"max_watchers": -1}, ValueError, "max_watchers must be at least 0"),
        ({"every": 0}, ValueError, "every must be greater than 0"),
    ],
)
def test_bad_arguments_are_named(kind: Any, words: Any, error: type[Exception], message: str) -> None:
    """The message names the argument and the rule."""
    with pytest.raises(error, match=message):
        kind(Health("shop"), **words)


def test_what_is_no_health_and_no_server_is_refused() -> None:
    """Before anything is registered."""
    with pytest.raises(TypeError, match="health must be a Health"):
        HealthServicer({})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="server must be a gRPC server"):
        add_health(Health("shop"), object())


def test_plain_functions_do_on_a_server_of_tasks() -> None:
    """Health is told beside them."""
    rig = Rig()
    with (
        hosting("tasks", prepare=rig.serve("tasks"), behaviours=plain_behaviours(nothing)) as host,
        channel_to(host) as channel,
    ):
        stub = health_pb2_grpc.HealthStub(channel)
        assert stub.Check(HealthCheckRequest(), timeout=WITHIN).status == SERVING
        assert call(channel).code is StatusCode.OK
    rig.health.close()
