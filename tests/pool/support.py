"""A server by script, a crew that works when told, and time that passes where somebody waits."""

from __future__ import annotations

import asyncio
import functools
import gc
import math
import selectors
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from resilient import AsyncConnectionPool, ConnectionPool
from resilient.engine.waiting import ThreadWaiter
from resilient.events import Event
from resilient.pool import chores
from resilient.pool import pool as pool_module
from resilient.pool.core import Core
from resilient.pool.members import Chore, Errand, Token
from resilient.testing import FakeClock

_EIGHTH = 8.0  # of a second: exact in binary, so that no sum is rounded
_ENOUGH = 1_000  # chores, and more than anybody needs
_TURNS = 5  # of the loop, in which a task that is done is gone
_FOR_EVER = 1e6  # seconds of the fake clock: nobody waits so long, unless for nothing


class LostError(ConnectionError):
    """The connection is gone."""


class Conn:
    """A connection to a `Server`. Whoever holds it may ask it things."""

    def __init__(self, server: Server, number: int) -> None:
        self.server = server
        self.number = number
        self.asked = 0
        self.checks = 0
        self.resets = 0
        self.closed = 0
        self.cut = False
        self.is_dead = False
        self.label = ""

    def ask(self, what: object = "pong") -> object:
        """Answer *what*, if there is anybody to answer."""
        if self.closed or self.cut or self.is_dead:
            raise LostError(f"connection {self.number} is lost")
        self.asked += 1
        return what

    def close(self) -> None:
        self.closed += 1

    def check(self) -> None:
        self.checks += 1
        self.ask()

    def reset(self) -> None:
        self.resets += 1
        self.ask()

    @property
    def is_open(self) -> bool:
        """Whether the server still has it."""
        return not self.closed and not self.cut

    def __repr__(self) -> str:
        return f"<Conn {self.number}>"


class AsyncConn(Conn):
    """The same, for those that await its answers."""

    async def aclose(self) -> None:
        await asyncio.sleep(0)
        self.close()


@dataclass
class Server:
    """Makes connections, or refuses them."""

    made: list[Conn] = field(default_factory=list)
    failure: BaseException | None = None
    attempts: int = 0
    kind: type[Conn] = Conn

    def connect(self) -> Conn:
        """Return a new connection, unless it is to fail."""
        self.attempts += 1
        if self.failure is not None:
            raise self.failure
        conn = self.kind(self, len(self.made))
        self.made.append(conn)
        return conn

    async def aconnect(self) -> Conn:
        """Do so in the time that it takes."""
        await asyncio.sleep(0)
        return self.connect()

    @property
    def open(self) -> list[Conn]:
        """The connections there are."""
        return [conn for conn in self.made if conn.is_open]

    def die(self) -> None:
        """Lose every connection there is."""
        for conn in self.made:
            conn.is_dead = True


def conn_of(token: Token) -> Conn | None:
    """Return the connection that *token* is for, if there is one, and it was not taken away."""
    # Its own type: whoever asks a connection that was taken away what it is, is told that instead.
    conn = token.conn
    return conn if issubclass(type(conn), Conn) else None


class ManualCrew:
    """Keeps the chores, and does them when told; with `at_once`, as soon as they are due."""

    def __init__(self, connect: Callable[[], Any]) -> None:
        self.connect = connect
        self.at_once = True
        self.pending: list[tuple[Core, Chore]] = []
        self.under_way: list[tuple[Token, chores.Doing, Any]] = []
        self.done: list[Errand] = []
        self._due: list[float] = []  # one for each that is pending

    def carry_out(self, core: Core, chore: Chore) -> None:
        self.pending.append((core, chore))
        # Exact in binary, so that no sum is rounded.
        self._due.append(core.rules.clock() + math.ceil(chore.delay * _EIGHTH) / _EIGHTH)
        if self.at_once:
            self.do_due(core.rules.clock())

    def after_fork(self) -> None:
        self.pending.clear()
        self._due.clear()

    def resize(self, max_size: int) -> None:
        pass

    @property
    def next_due(self) -> float:
        """When something is due of itself."""
        return min(self._due, default=math.inf) if self.at_once else math.inf

    def do_due(self, now: float) -> None:
        """Do what is due by now."""
        for _ in range(_ENOUGH):
            due = [place for place, when in enumerate(self._due) if when <= now]
            if not due:
                return
            self.do_one(due[0])
        raise AssertionError("the chores never end")

    def do(self, *errands: Errand) -> int:
        """Do what there is to do, of some kind if that is said; return how much that was."""
        for count in range(_ENOUGH):
            kinds = [chore.errand for _, chore in self.pending]
            places = [place for place, kind in enumerate(kinds) if not errands or kind in errands]
            if not places:
                return count
            self.do_one(places[0])
        raise AssertionError("the chores never end")

    def do_one(self, place: int = 0) -> None:
        """Do one chore, when its time has come."""
        _, doing = self._take(place)
        chores.drive(doing)

    def begin_one(self, place: int) -> None:
        """Begin a chore, and keep the answer for `end_one`."""
        token, doing = self._take(place)
        with suppress(StopIteration):
            self.under_way.append((token, doing, doing.send(None)))

    def end_one(self, place: int) -> None:
        """Say what came of a chore that was begun."""
        token, doing, answer = self.under_way.pop(place)
        del token
        with suppress(StopIteration):
            while True:
                answer = doing.send(answer)

    def _take(self, place: int) -> tuple[Token, chores.Doing]:
        core, chore = self.pending.pop(place)
        clock = cast("FakeClock", core.rules.clock)
        clock.advance(max(0.0, self._due.pop(place) - clock()))
        self.done.append(chore.errand)
        if chore.errand is Errand.CUT:
            conn = conn_of(chore.token)
            assert conn is not None
            conn.cut = True
        return chore.token, chores.begin(core, chore, self.connect)

    def drop(self, place: int = 0) -> None:
        """Forget a chore, and the token in it."""
        del self.pending[place], self._due[place]

    def waiting_for(self, errand: Errand) -> int:
        """Return how many chores of a kind are still to be done."""
        return sum(chore.errand is errand for _, chore in self.pending)


class SteppedPool(ConnectionPool[Conn]):
    """A pool whose chores are done when the test says so, and that nobody visits."""

    crew: ManualCrew
    _is_attended = True

    def _make_crew(self, connect: Callable[[], Any], name: str, max_size: int) -> Any:
        super()._make_crew(connect, name, max_size)
        self.crew = ManualCrew(connect)
        return self.crew

    @property
    def core(self) -> Core:
        return self._core

    def round(self) -> None:
        """Do what is due by now, as it is done about once a second."""
        self._core.round()


class World:
    """All there is around a pool: time, a server, and whoever listens."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch | None = None) -> None:
        self.clock = clock = FakeClock(1_000.0)
        self.server = Server()
        self.heard: list[Event] = []
        self.crews: list[ManualCrew] = []
        self.meanwhile: list[Callable[[], object]] = []
        """What happens while somebody waits, a thing each second."""
        world = self

        class Patience(ThreadWaiter):
            """A thread that waits: time passes, and what the test has in store happens."""

            __slots__ = ()

            def park(self, seconds: float | None) -> bool:
                if world.meanwhile:
                    world.meanwhile.pop(0)()
                until = clock() + (1.0 if seconds is None else seconds)
                assert until < _FOR_EVER, "somebody waits for nothing"
                while not (woken := super().park(0.0)) and clock() < until:
                    due = min((crew.next_due for crew in world.crews), default=math.inf)
                    clock.advance(max(0.0, min(due, until) - clock()))
                    for crew in world.crews:
                        if crew.at_once:
                            crew.do_due(clock())
                return woken

        if monkeypatch is not None:
            monkeypatch.setattr(pool_module, "ThreadWaiter", Patience)

    def pool(self, **options: Any) -> SteppedPool:
        """Return a pool for threads."""
        options = {"name": "orders", "clock": self.clock, "jitter": 0.0, **options}
        pool = SteppedPool(options.pop("connect", self.server.connect), **options)
        pool.add_listener(self.heard.append)
        self.crews.append(pool.crew)
        return pool

    def async_pool(self, **options: Any) -> AsyncConnectionPool[Any]:
        """Return a pool for tasks; it belongs into a `PatientLoop`."""
        options = {"name": "orders", "clock": self.clock, "jitter": 0.0, **options}
        connect: Callable[[], Awaitable[Any]] = options.pop("connect", self.server.aconnect)
        pool = AsyncConnectionPool(connect, **options)
        pool.add_listener(self.heard.append)
        return pool

    def of(self, kind: type[Event]) -> list[Any]:
        """Return the events of one kind."""
        return [event for event in self.heard if isinstance(event, kind)]


class _Skipping(selectors.DefaultSelector):
    """Lets the time pass at once that there is nothing to do in."""

    clock: FakeClock

    def select(self, timeout: float | None = None) -> Any:
        assert timeout is not None, "everybody waits for nothing"
        assert self.clock() < _FOR_EVER, "somebody waits for nothing"
        if timeout > 0.0:
            self.clock.advance(timeout)
        return super().select(0.0)


class PatientLoop(asyncio.SelectorEventLoop):
    """An event loop whose time is that of a fake clock, and takes none."""

    def __init__(self, clock: FakeClock) -> None:
        self.time = clock  # type: ignore[method-assign]
        selector = _Skipping()
        selector.clock = clock
        super().__init__(selector)


def patient(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run a test that has a `world` in an event loop whose time is that world's; no task may be left."""

    @functools.wraps(test)
    def run(world: World, **others: Any) -> None:
        async def alone() -> None:
            await test(world=world, **others)
            for _ in range(_TURNS):
                await asyncio.sleep(0)
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, "the test left tasks pending"

        with asyncio.Runner(loop_factory=lambda: PatientLoop(world.clock)) as runner:
            runner.run(alone())

    return run


class Slow:
    """A connection whose answers take a few turns of the loop; all is noted that is done with it."""

    in_transaction = False

    def __init__(self) -> None:
        self.log: list[str] = []

    async def _do(self, what: str) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        self.log.append(what)

    async def ask(self) -> str:
        await self._do("ask")
        return "pong"

    async def check(self) -> None:
        await self._do("check")

    async def reset(self) -> None:
        await self._do("reset")

    async def aclose(self) -> None:
        await self._do("close")


class Session(Slow):
    """One of a database."""

    def cursor(self) -> None:
        """Be known as a database's."""

    async def ask(self) -> str:
        self.in_transaction = True
        return await super().ask()

    async def commit(self) -> None:
        await self._do("commit")
        self.in_transaction = False

    async def rollback(self) -> None:
        await self._do("rollback")
        self.in_transaction = False

    async def close(self) -> None:
        await self._do("close")


class Shop:
    """A pool of such connections, and all of them there were."""

    def __init__(self, world: World, kind: type[Slow] = Slow, **options: Any) -> None:
        self.made: list[Slow] = []

        async def connect() -> Slow:
            for _ in range(3):
                await asyncio.sleep(0)
            conn = kind()
            self.made.append(conn)
            return conn

        self.pool: AsyncConnectionPool[Any] = world.async_pool(connect=connect, **options)

    @property
    def open(self) -> int:
        return sum("close" not in conn.log for conn in self.made)

    async def is_whole(self) -> None:
        """Find every connection there is; then the pool is of use as before, and is closed."""
        await asyncio.sleep(5.0)
        gc.collect()
        stats = self.pool.stats()
        assert (stats.used, stats.waiting, stats.connecting) == (0, 0, 0)
        assert stats.idle == stats.size == self.open
        assert stats.collected == 0
        async with asyncio.timeout(10.0):
            held = [await self.pool.getconn() for _ in range(stats.max_size)]
        for conn in held:
            assert not conn.in_transaction
            assert await conn.ask() == "pong"
            await self.pool.putconn(conn)
        await self.pool.close()
        await asyncio.sleep(5.0)
        assert self.open == 0
        assert all(conn.log.count("close") == 1 for conn in self.made)
