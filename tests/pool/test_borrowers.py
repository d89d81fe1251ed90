"""Who borrowed what: the place in the borrower's own code, whatever lies between that and the pool."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import functools
import gc
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from tests.pool.support import Conn, World

import resilient
from resilient.pool.borrowers import FEW_FRAMES, Borrower, lines_of, nearest, site_of, where_of

HERE = Path(__file__)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Time, a server, and somebody who listens."""
    return World(monkeypatch)


def line_of(word: str) -> str:
    """Return "file:line" of the one line in this file that is marked with *word*."""
    marked = [
        number for number, line in enumerate(HERE.read_text().splitlines(), 1) if line.endswith(f"# {word}")
    ]
    assert len(marked) == 1, f"{word}: {marked}"
    return f"{HERE}:{marked[0]} in "


def deep(levels: int, act: Callable[[FrameType], Any]) -> Any:
    """Call *act* with a frame that lies so many calls further in."""
    return act(sys._getframe()) if levels == 0 else deep(levels - 1, act)


@pytest.mark.parametrize("levels", [0, 1, 2, 3, 10])
def test_nearest_is_site_of_without_a_loop(levels: int) -> None:
    """The same answer, in a test's deep stack."""
    quick, plain = deep(levels, lambda frame: (nearest(frame), site_of(frame, FEW_FRAMES)))
    assert quick == plain
    assert len(quick) == 2 * FEW_FRAMES


@pytest.mark.parametrize("levels", range(6))
def test_shallow_stacks_are_kept_whole(levels: int) -> None:
    """A stack may have fewer frames than are kept, down to one."""
    found: list[Any] = []
    done = threading.Event()

    def look(frame: FrameType) -> None:
        found.append((nearest(frame), site_of(frame, FEW_FRAMES)))
        done.set()

    # Not a Thread, which has frames of its own.
    _thread.start_new_thread(deep, (levels, look))
    assert done.wait(10.0)

    quick, plain = found[0]
    assert quick == plain
    assert quick[::2] == (deep.__code__,) * min(levels + 1, FEW_FRAMES)
    assert where_of(quick).startswith(f"{HERE}:")
    assert where_of(quick).endswith(" in deep")


def test_lines_are_those_of_the_calls() -> None:
    """File, line and qualified name of each frame, innermost first."""

    def inner() -> Any:
        return nearest(sys._getframe())  # inner

    def outer() -> Any:
        return inner()  # outer

    lines = lines_of(outer())

    assert lines[0].startswith(line_of("inner"))
    assert lines[0].endswith("test_lines_are_those_of_the_calls.<locals>.inner")
    assert lines[1].startswith(line_of("outer"))
    assert len(lines) == FEW_FRAMES


def test_nothing_known_is_said_so() -> None:
    """A connection that nobody had borrowed has no place."""
    assert where_of(()) == "unknown"
    assert lines_of(()) == ()


@pytest.mark.parametrize("ending", ["_shop/db.py", ".d/db.py"])
def test_package_that_begins_like_ours_is_somebody_elses(ending: str) -> None:
    """`resilient_shop` beside `resilient` is a borrower like any other."""
    file = str(Path(resilient.__file__).parent) + ending
    names: dict[str, Any] = {"sys": sys}
    exec(compile("def borrow():\n    return sys._getframe()\n", file, "exec"), names)

    assert where_of(nearest(names["borrow"]())) == f"{file}:2 in borrow"


def test_what_lies_between_is_not_the_place(world: World) -> None:
    """Blocks, stacks of blocks, decorators, partial functions: the place is where the user's code is."""
    pool = world.pool()
    stack = contextlib.ExitStack()
    with stack:
        stack.enter_context(pool.connection())  # stacked
        with pool.connection():  # block
            plain = pool.getconn()  # by hand
            late = functools.partial(pool.getconn)()  # partial
            places = [borrower.where for borrower in pool.borrowers()]
            pool.putconn(plain)
            pool.putconn(late)

    assert [place.rpartition(" in ")[0] for place in places] == [
        line_of(word).removesuffix(" in ") for word in ("stacked", "block", "by hand", "partial")
    ]


def test_decorated_function_is_named(world: World) -> None:
    """It borrows, and not the decorator; and whoever called it comes next."""
    pool = world.pool()

    @pool
    def count(conn: Conn) -> list[Borrower]:
        assert conn.ask()
        return pool.borrowers()

    (borrower,) = count()  # called

    assert borrower.where.startswith(f"{HERE}:")
    assert borrower.where.endswith("test_decorated_function_is_named.<locals>.count")
    assert borrower.stack[1].startswith(line_of("called"))


def test_borrower_that_waited_is_named_too(world: World) -> None:
    """By the long way as by the quick one."""
    pool = world.pool(max_size=1)
    with pool.connection():  # long way
        (long,) = pool.borrowers()
    with pool.connection():  # quick way
        (quick,) = pool.borrowers()

    assert long.where.startswith(line_of("long way"))
    assert quick.where.startswith(line_of("quick way"))


def test_task_and_thread_are_named(world: World) -> None:
    """The task's name where there is one, and the thread's."""
    found: list[Borrower] = []

    async def borrow() -> None:
        pool = world.async_pool()
        async with pool.connection():  # task
            found.extend(pool.borrowers())
        async with pool.connection():
            await asyncio.sleep(0)
            found.extend(pool.borrowers())
        await pool.close()

    async def main() -> None:
        await asyncio.create_task(borrow(), name="checkout-7")

    thread = threading.Thread(target=lambda: asyncio.run(main()), name="worker-3")
    thread.start()
    thread.join()

    assert [(one.thread, one.task) for one in found] == [("worker-3", "checkout-7")] * 2
    assert found[0].where.startswith(line_of("task"))
    assert "thread worker-3, task checkout-7" in str(found[0])


def test_borrowers_come_oldest_first(world: World) -> None:
    """With how long they have had it."""
    pool = world.pool()
    held = []
    for _ in range(3):
        held.append(pool.getconn())
        world.clock.advance(2.0)
    pool.putconn(held.pop(1))

    borrowers = pool.borrowers()

    assert [borrower.held_for for borrower in borrowers] == [6.0, 2.0]
    assert not any(borrower.leaked for borrower in borrowers)
    assert all(borrower.thread == "MainThread" and borrower.task is None for borrower in borrowers)
    assert "(6.0 s, thread MainThread)" in str(borrowers[0])


def test_full_stacks_go_all_the_way(world: World) -> None:
    """As many frames as there are, where that was asked for; a few otherwise."""
    few, full = world.pool(), world.pool(full_stacks=True)
    deep(20, lambda _: (few.getconn, full.getconn))

    held = deep(20, lambda _: (few.getconn(), full.getconn()))

    assert len(few.borrowers()[0].stack) == FEW_FRAMES
    assert sum("in deep" in line for line in full.borrowers()[0].stack) == 21
    few.putconn(held[0])
    full.putconn(held[1])


def test_keeping_a_borrower_keeps_no_locals(world: World) -> None:
    """What is kept of its stack is code: what it had in hand goes when it goes."""

    class Thing:
        """Something big."""

    pool = world.pool()

    def borrow() -> tuple[Any, weakref.ref[Thing]]:
        thing = Thing()
        return pool.getconn(), weakref.ref(thing)

    conn, reference = borrow()
    gc.collect()
    assert reference() is None
    assert pool.borrowers()
    pool.putconn(conn)
