"""Stand-ins: like the connection in all that one does with it, until it is returned or taken away."""

from __future__ import annotations

import copy
import gc
import pickle
import sqlite3
from collections.abc import Callable, Generator, Iterator
from typing import Any, Self

import pytest
from tests.pool.support import Conn, World

from resilient import ConnectionPool
from resilient.errors import ConnectionReclaimedError, ConnectionReturnedError
from resilient.pool.borrowed import Borrowed, is_borrowed, stand_in_for


class Rich(Conn):
    """A connection that can be used in every way that Python has."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.items = ["a", "b"]
        self.left: list[type[BaseException] | None] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        self.left.append(kind)
        return kind is LookupError

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.left.append(kind)

    def __await__(self) -> Generator[None, None, str]:
        yield
        return "awaited"

    def __aiter__(self) -> Rich:
        return self

    async def __anext__(self) -> str:
        if not self.items:
            raise StopAsyncIteration
        return self.items.pop(0)

    def __iter__(self) -> Iterator[str]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __contains__(self, item: object) -> bool:
        return item in self.items

    def __getitem__(self, at: int) -> str:
        return self.items[at]

    def __setitem__(self, at: int, item: str) -> None:
        self.items[at] = item

    def __delitem__(self, at: int) -> None:
        del self.items[at]

    def __call__(self, *args: object, **kwargs: object) -> tuple[object, ...]:
        return (*args, *kwargs.items())

    def __bool__(self) -> bool:
        return False

    def __add__(self, other: int) -> int:
        return len(self.items) + other

    def __iadd__(self, item: str) -> Self:
        self.items.append(item)
        return self

    @property
    def row(self) -> str:
        """Fail as a cursor does that has no rows."""
        raise IndexError("no rows")

    @property
    def nothing(self) -> str:
        """Fail as if there were no such thing."""
        raise AttributeError("not set yet")


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Time, and a server whose connections can do everything."""
    world = World(monkeypatch)
    world.server.kind = Rich
    return world


USES: dict[str, Callable[[Any], object]] = {
    "attribute": lambda conn: conn.number,
    "method": lambda conn: conn.ask(),
    "set": lambda conn: setattr(conn, "label", "x"),
    "delete": lambda conn: delattr(conn, "label"),
    "dir": dir,
    "len": len,
    "iteration": list,
    "item": lambda conn: conn[0],
    "call": lambda conn: conn(),
    "bool": bool,
    "in": lambda conn: "a" in conn,
    "sum": lambda conn: conn + 1,
    "with": lambda conn: conn.__enter__(),
    "vars": vars,
    # Names that what stands there in its place could have itself.
    "home": lambda conn: conn.home,
    "error": lambda conn: conn.error,
    "returned": lambda conn: conn.returned,
    "member": lambda conn: conn.member,
    "conn": lambda conn: conn.conn,
}


def test_stand_in_says_it_is_what_it_stands_for(world: World) -> None:
    """To isinstance, to dir, to vars; only its type tells."""
    with world.pool().connection() as conn:
        assert isinstance(conn, Rich)
        assert isinstance(conn, Conn)
        assert not isinstance(conn, dict)
        assert conn.__class__ is Rich
        assert is_borrowed(conn)
        assert type(conn) is stand_in_for(Rich)
        assert issubclass(type(conn), Borrowed)
        assert not is_borrowed(world.server.made[0])
        assert "ask" in dir(conn)
        assert vars(conn)["number"] == 0
        assert repr(conn) == "<borrowed <Conn 0>>"
        assert "Rich" in type(conn).__name__


def test_attributes_are_the_connections(world: World) -> None:
    """Read, set and deleted there."""
    with world.pool().connection() as conn:
        conn.label = "mine"
        assert world.server.made[0].label == "mine"
        del conn.label
        assert not hasattr(world.server.made[0], "label")
        assert not hasattr(conn, "label")
        with pytest.raises(AttributeError, match="no attribute 'missing'"):
            conn.missing  # noqa: B018 # type: ignore[attr-defined]


def test_what_an_attribute_raises_is_its_own(world: World) -> None:
    """An IndexError of a property is not taken for a stand-in without its connection."""
    with world.pool().connection() as conn:
        with pytest.raises(IndexError, match="no rows"):
            conn.row  # noqa: B018 # type: ignore[attr-defined]
        with pytest.raises(AttributeError, match="not set yet"):
            conn.nothing  # noqa: B018 # type: ignore[attr-defined]


def test_operators_reach_the_connection(world: World) -> None:
    """Those that Python looks for in the class: items, calls, truth, sums."""
    with world.pool().connection() as lent:
        conn: Any = lent
        assert list(conn) == ["a", "b"]
        assert len(conn) == 2
        assert "b" in conn
        conn[0] = "c"
        assert conn[0] == "c"
        del conn[0]
        assert conn("x", y=1) == ("x", ("y", 1))
        assert not conn
        assert conn + 5 == 6
        assert conn == conn  # noqa: PLR0124
        assert conn != world.server.made[0]
        assert {conn: 1}[conn] == 1


def test_what_returns_the_connection_returns_the_stand_in(world: World) -> None:
    """`with conn as same`, and `+=`: nobody gets the connection itself, which nothing could fence."""
    pool = world.pool()
    conn: Any = pool.getconn()
    with conn as same:
        pass
    added = conn
    added += "c"
    assert same is conn
    assert added is conn

    pool.putconn(conn)
    with pytest.raises(ConnectionReturnedError):
        same.ask()


def test_blocks_of_the_connection_are_its_own(world: World) -> None:
    """It is told how its block was left, and may say that this is all right."""
    with world.pool().connection() as lent:
        conn: Any = lent
        with conn:
            pass
        with conn:
            raise LookupError
        with pytest.raises(ZeroDivisionError), conn:
            raise ZeroDivisionError
    made: Any = world.server.made[0]
    assert made.left == [None, LookupError, ZeroDivisionError]


async def test_stand_in_is_awaited_and_iterated(world: World) -> None:
    """`await conn`, `async for`, `async with`, as the connection can."""
    with world.pool().connection() as lent:
        conn: Any = lent
        assert await conn == "awaited"
        assert [item async for item in conn] == ["a", "b"]
        async with conn as same:
            assert same is conn
    made: Any = world.server.made[0]
    assert made.left == [None]


@pytest.mark.parametrize("use", USES)
def test_returned_one_is_of_no_use(use: str, world: World) -> None:
    """Whatever is tried; the connection may be somebody else's by now."""
    pool = world.pool()
    conn = pool.getconn()
    pool.putconn(conn)
    asked = world.server.made[0].asked

    with pytest.raises(ConnectionReturnedError, match="after it had been returned"):
        USES[use](conn)
    assert world.server.made[0].asked == asked


@pytest.mark.parametrize("use", USES)
def test_reclaimed_one_is_of_no_use(use: str, world: World) -> None:
    """Whatever is tried; the error says since when, why, and where it was borrowed."""
    pool = world.pool(on_leak="reclaim", max_hold=10.0, leak_after=None)
    conn = pool.getconn()
    world.clock.advance(10.0)
    pool.round()

    with pytest.raises(ConnectionReclaimedError, match=r"after 10 s.*test_borrowed\.py"):
        USES[use](conn)


def test_stand_ins_can_be_printed_in_any_state(world: World) -> None:
    """By repr, format, in a log's line: that never raises."""
    pool = world.pool(on_leak="reclaim", max_hold=10.0, leak_after=None)
    conn = pool.getconn()
    late = pool.getconn()
    pool.putconn(conn)
    world.clock.advance(10.0)
    pool.round()

    assert repr(conn) == str(conn) == "<a connection that was returned>"
    assert "0x" not in repr(late)
    assert "taken away" in repr(late)
    assert not isinstance(conn, dict)


@pytest.mark.parametrize("act", [pickle.dumps, copy.copy, copy.deepcopy], ids=["pickle", "copy", "deepcopy"])
def test_stand_in_is_not_copied(act: Callable[[object], object], world: World) -> None:
    """A copy would be a second one with the same connection."""
    with world.pool().connection() as conn, pytest.raises(TypeError, match="belongs to its borrower"):
        act(conn)


def test_stand_in_can_be_referred_to_weakly(world: World) -> None:
    """As connections mostly can; the reference is dead when the stand-in is, not when it is returned."""
    import weakref

    pool = world.pool()
    conn = pool.getconn()
    reference = weakref.ref(conn)
    pool.putconn(conn)
    assert reference() is conn
    del conn
    gc.collect()
    assert reference() is None


def test_loans_have_stand_ins_of_their_own(world: World) -> None:
    """One that was kept from an earlier loan does not work again with the next."""
    pool = world.pool(max_size=1)
    first = pool.getconn()
    pool.putconn(first)
    second = pool.getconn()

    assert first is not second
    assert second.ask(1) == 1
    with pytest.raises(ConnectionReturnedError):
        first.ask()


def test_classes_of_stand_ins_are_made_once() -> None:
    """One for each class of connections."""
    assert stand_in_for(Rich) is stand_in_for(Rich)
    assert stand_in_for(Rich) is not stand_in_for(Conn)


def test_unwrap_gives_the_connection_itself(world: World) -> None:
    """To whoever has it, of this pool; sqlite3's own, say, for what is written in C."""
    pool = world.pool()
    conn = pool.getconn()
    assert pool.unwrap(conn) is world.server.made[0]
    with pytest.raises(TypeError, match="borrowed from pool 'orders', got <Conn 0>"):
        pool.unwrap(world.server.made[0])
    with pytest.raises(ValueError, match="conn must be borrowed from pool 'orders', and is of pool 'carts'"):
        pool.unwrap(world.pool(name="carts").getconn())
    pool.putconn(conn)
    with pytest.raises(ConnectionReturnedError, match="was unwrapped after"):
        pool.unwrap(conn)


def test_sqlite_connection_is_what_it_was() -> None:
    """Its block, its cursors, its errors: a connection written in C works through the stand-in."""
    with (
        ConnectionPool(lambda: sqlite3.connect(":memory:", check_same_thread=False), name="file") as pool,
        pool.connection() as conn,
    ):
        with conn:
            conn.execute("CREATE TABLE orders (id INTEGER)")
            conn.executemany("INSERT INTO orders VALUES (?)", [(1,), (2,)])
        conn.row_factory = sqlite3.Row
        assert conn.execute("SELECT sum(id) AS total FROM orders").fetchone()["total"] == 3
        assert isinstance(conn, sqlite3.Connection)
        with pytest.raises(sqlite3.OperationalError, match="no such table"):
            conn.execute("SELECT * FROM missing")
