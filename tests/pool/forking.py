"""Fork while threads borrow from a pool. Run by `test_forks.py`, as a program of its own.

A test process has threads and state of its own that a child should not inherit.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from tests.pool.ears import Speaker, connector

from resilient import AsyncConnectionPool, ConnectionPool, ConnectionReclaimedError, events

HUNG = 15  # seconds after which a child is taken for hung
FORKS = 500 if os.environ.get("RESILIENT_SOAK") else 6
THREADS = 8
SIZE = 4


@contextlib.contextmanager
def hammered(pool: ConnectionPool[Any], use: Callable[[Any], object]) -> Iterator[None]:
    """Have eight threads borrow over and over for as long as the block lasts; fail if one of them does."""
    over, errors = threading.Event(), list[BaseException]()

    def hammer() -> None:
        try:
            while not over.is_set():
                with pool.connection() as conn:
                    use(conn)
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=hammer) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert not errors, errors


def in_child(body: Callable[[], None], *, how: str = "_exit") -> None:
    """Run *body* in a forked child, which ends in the way that *how* says; fail as it does."""
    child = os.fork()
    if not child:
        signal.alarm(HUNG)
        status = 1
        try:
            body()
            status = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        if how == "_exit":
            os._exit(status)
        sys.exit(status)  # with all that Python does at its end
    assert _status_of(child) == 0


def _status_of(child: int) -> int:
    _, status = os.waitpid(child, 0)
    return status


def fork_under_load(port: int) -> None:
    """Children use the pool, and what they inherited, and end in both ways; so do their own children."""
    pool: ConnectionPool[Speaker] = ConnectionPool(
        connector(port), name="p", max_size=SIZE, timeout=10.0, leak_after=None
    )
    held = pool.getconn()
    heard = list[events.Event]()
    pool.add_listener(heard.append)

    def use_everything() -> None:
        for _ in range(2):
            refused = False
            try:
                held.ask()
            except ConnectionReclaimedError as exc:
                refused = "forked" in str(exc)
            assert refused, "what was inherited could be used"
        assert pool.stats().size == pool.stats().used == 0
        with contextlib.ExitStack() as stack:
            conns = [stack.enter_context(pool.connection()) for _ in range(SIZE)]
            for conn in conns:
                conn.ask()
        in_threads(pool)
        gc.collect()
        pool.drain()
        with pool.connection() as conn:
            conn.ask()
        in_child(use_it)

    def use_it() -> None:
        with pool.connection() as conn:
            conn.ask()

    def end_at_once() -> None: ...

    with hammered(pool, Speaker.ask):
        sys.setswitchinterval(1e-5)
        for number in range(FORKS):
            body = (use_everything, use_it, end_at_once)[number % 3]
            in_child(body, how=("exit", "_exit")[number % 2])

    held.ask()
    pool.putconn(held)
    stats = pool.stats()
    assert (stats.discarded, stats.closed, heard) == (0, 0, []), (stats, heard)
    pool.close()


def in_threads(pool: ConnectionPool[Speaker]) -> None:
    """Borrow in more threads than there are connections."""
    with hammered(pool, Speaker.ask):
        time.sleep(0.01)


def fork_with_every_lock_held(port: int) -> None:
    """The worst moment there is: other threads are in the middle of a listener, and hold the pool's lock."""
    pool: ConnectionPool[Speaker] = ConnectionPool(
        connector(port), name="p", max_size=SIZE, broken=KeyError, timeout=10.0
    )
    parent, over = os.getpid(), threading.Event()
    listening, holding = threading.Event(), threading.Event()
    heard = list[events.Event]()

    def listen(event: events.Event) -> None:
        heard.append(event)
        if os.getpid() == parent:
            listening.set()
            over.wait()

    def lose_one() -> None:
        with contextlib.suppress(KeyError), pool.connection():
            raise KeyError

    def hold() -> None:
        with pool._core.stock.lock:
            holding.set()
            over.wait()

    def use_it() -> None:
        heard.clear()
        lose_one()
        with pool.connection() as conn:
            conn.ask()
        assert heard, "the child hears nothing of its pool"
        pool.close()

    pool.add_listener(listen)
    threads = [threading.Thread(target=lose_one), threading.Thread(target=hold)]
    threads[0].start()
    listening.wait()
    threads[1].start()
    holding.wait()
    in_child(use_it, how="exit")
    over.set()
    for thread in threads:
        thread.join()
    pool.close()


def fork_in_a_loop(port: int) -> None:
    """A child that runs an event loop of its own has a pool of its own; the parent's loop goes on."""

    async def connect() -> Speaker:
        await asyncio.sleep(0)
        return Speaker(port)

    pool: AsyncConnectionPool[Speaker] = AsyncConnectionPool(connect, name="p", max_size=SIZE)

    async def use_it() -> None:
        async with pool.connection() as conn:
            conn.ask()
        await pool.close()

    async def main() -> None:
        async with pool.connection() as held, pool.connection() as another:
            for number in range(FORKS // 3):
                child = os.fork()
                if not child:
                    signal.alarm(HUNG)
                    asyncio._set_running_loop(None)
                    asyncio.run(use_it())
                    if number % 2:
                        os._exit(0)
                    sys.exit(0)
                assert _status_of(child) == 0
                held.ask()
                another.ask()
                async with pool.connection() as conn:
                    conn.ask()
        await pool.close()

    asyncio.run(main())


def use_in_a_process(port: int) -> None:
    """Processes of `multiprocessing`, made by fork: each has connections of its own."""
    pool: ConnectionPool[Speaker] = ConnectionPool(connector(port), name="p", max_size=SIZE)
    with pool.connection() as held:
        context = multiprocessing.get_context("fork")
        processes = [context.Process(target=_use, args=(pool,)) for _ in range(4)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(HUNG)
            assert process.exitcode == 0, process.exitcode
        held.ask()
    pool.close()


def _use(pool: ConnectionPool[Speaker]) -> None:
    for _ in range(3):
        with pool.connection() as conn:
            conn.ask()


def _ask_postgres(conn: Any) -> int:
    return int(conn.execute("SELECT pg_backend_pid()").fetchone()[0])


def _ask_valkey(client: Any) -> int:
    return int(client.client_id())


def fork_on_postgres(url: str) -> None:
    import psycopg

    _fork_on_a_server(lambda: psycopg.connect(url), _ask_postgres)


def fork_on_valkey(url: str) -> None:
    import redis

    _fork_on_a_server(lambda: redis.Redis.from_url(url, single_connection_client=True), _ask_valkey)


def _fork_on_a_server(connect: Callable[[], Any], ask: Callable[[Any], int]) -> None:
    """Children have sessions of their own, and the parent keeps those that it has."""
    pool: ConnectionPool[Any] = ConnectionPool(connect, name="p", max_size=SIZE, timeout=10.0)
    with contextlib.ExitStack() as stack:
        mine = {ask(stack.enter_context(pool.connection())) for _ in range(SIZE)}
    assert len(mine) == SIZE

    def use_it() -> None:
        with pool.connection() as conn:
            assert ask(conn) not in mine
        gc.collect()

    with hammered(pool, ask):
        for number in range(FORKS // 3):
            in_child((use_it, gc.collect)[number % 2], how=("exit", "_exit")[number // 2 % 2])  # type: ignore[arg-type]

    with contextlib.ExitStack() as stack:
        assert {ask(stack.enter_context(pool.connection())) for _ in range(SIZE)} == mine
    assert (pool.stats().discarded, pool.stats().closed) == (0, 0), pool.stats()
    pool.close()


def application(_environ: Any, start_response: Callable[..., object]) -> list[bytes]:
    """Answer a request for gunicorn's workers: who it was that answered."""
    with _served.connection() as conn:
        conn.ask()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]


if "EARS" in os.environ:  # this is gunicorn's master, and what it has loaded its workers will inherit
    _served: ConnectionPool[Speaker] = ConnectionPool(
        connector(int(os.environ["EARS"])), name="p", max_size=SIZE
    )
    with _served.connection() as _conn:
        _conn.ask()


if __name__ == "__main__":
    moments: dict[str, Callable[[Any], None]] = {
        "load": fork_under_load,
        "locks": fork_with_every_lock_held,
        "loop": fork_in_a_loop,
        "processes": use_in_a_process,
        "postgres": fork_on_postgres,
        "valkey": fork_on_valkey,
    }
    where = sys.argv[2]
    moments[sys.argv[1]](int(where) if where.isdigit() else where)
