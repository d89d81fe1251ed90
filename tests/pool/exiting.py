"""Ways in which a program ends with a pool open. Run by `test_exit.py`, each as a program of its own."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from typing import Any

from tests.pool.ears import Speaker, connector
from tests.support.waiting import await_until, wait_until

from resilient import AsyncConnectionPool, ConnectionPool, PoolClosedError

LONG = 60.0
_kept: list[Any] = []


def pool_of(port: int, **options: Any) -> ConnectionPool[Speaker]:
    pool: ConnectionPool[Speaker] = ConnectionPool(connector(port), name="p", max_size=3, **options)
    with pool.connection() as one, pool.connection() as another:
        one.ask()
        another.ask()
    return pool


def apool_of(port: int, **options: Any) -> AsyncConnectionPool[Speaker]:
    async def connect() -> Speaker:
        # A busy machine is no fault of ours, and would be told of in debug mode.
        asyncio.get_running_loop().slow_callback_duration = LONG
        await asyncio.sleep(0)
        return Speaker(port)

    return AsyncConnectionPool(connect, name="p", max_size=3, **options)


def ready() -> None:
    """Say that it has come so far."""
    sys.stdout.write("ready\n")
    sys.stdout.flush()


def open_at_the_end(port: int) -> None:
    _kept.append(pool_of(port))


def open_in_a_local_variable(port: int) -> None:
    pool = pool_of(port)
    pool.putconn(pool.getconn())


def lent_at_the_end(port: int) -> None:
    _kept.append(pool := pool_of(port))
    _kept.append(pool.getconn())


def in_the_hands_of_a_daemon(port: int) -> None:
    _kept.append(pool := pool_of(port))
    begun = threading.Event()

    def hold() -> None:
        with pool.connection() as conn:
            begun.set()
            while True:
                conn.ask()

    threading.Thread(target=hold, daemon=True).start()
    begun.wait()


def with_threads_in_the_line(port: int) -> None:
    pool = pool_of(port, timeout=LONG)
    _kept.append([pool.getconn() for _ in range(3)])

    def wait() -> None:
        with contextlib.suppress(PoolClosedError):
            pool.getconn()

    for _ in range(4):
        threading.Thread(target=wait, daemon=True).start()
    wait_until(lambda: pool.stats().waiting == 4, "they wait")


def while_connecting(port: int) -> None:
    gate = threading.Event()
    pool: ConnectionPool[Any] = ConnectionPool(gate.wait, name="p", timeout=LONG)

    def wait() -> None:
        with contextlib.suppress(PoolClosedError):
            pool.getconn()

    threading.Thread(target=wait, daemon=True).start()
    wait_until(lambda: pool.stats().connecting == 1, "it connects")
    _kept.append((pool, pool_of(port)))


def by_an_exception(port: int) -> None:
    with pool_of(port).connection() as conn:
        conn.ask()
        sys.exit(0)


def in_an_exit_handler(port: int) -> None:
    atexit.register(pool_of(port).close)


def used_in_an_exit_handler(port: int) -> None:
    """Handlers run in the reverse order: ours, which was registered before, comes last."""
    pool = pool_of(port)

    def use() -> None:
        with pool.connection() as conn:
            conn.ask()

    atexit.register(use)


def with_a_thread_that_goes_on(port: int) -> None:
    """Python waits for it, and it has its connection for as long."""
    pool = pool_of(port)

    def use() -> None:
        until = time.monotonic() + 0.2
        while time.monotonic() < until:
            with pool.connection() as conn:
                conn.ask()

    threading.Thread(target=use).start()


def terminated(port: int) -> None:
    """Whoever wants an orderly end on SIGTERM says so, as every server does."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    _kept.append(pool := pool_of(port))
    with pool.connection() as conn:
        conn.ask()
        ready()
        time.sleep(LONG)


def closed_by_a_signal(port: int) -> None:
    pool = pool_of(port)
    logging.getLogger("resilient").setLevel("ERROR")  # it may take a connection from whoever it interrupts

    def close(*_: object) -> None:
        pool.close(0.1)
        sys.exit(0)

    signal.signal(signal.SIGTERM, close)
    ready()
    while True:
        with pool.connection() as conn:
            conn.ask()


def in_a_loop(port: int) -> None:
    async def main() -> None:
        pool = apool_of(port)
        async with pool.connection() as one, pool.connection() as another:
            one.ask()
            another.ask()
        _kept.append(pool)

    asyncio.run(main())


def in_a_loop_with_a_task_that_has_one(port: int) -> None:
    async def main() -> None:
        pool = apool_of(port)
        begun = asyncio.Event()

        async def hold() -> None:
            async with pool.connection() as conn:
                conn.ask()
                begun.set()
                await asyncio.sleep(LONG)

        _kept.append(asyncio.create_task(hold()))
        await begun.wait()

    asyncio.run(main())


def in_a_loop_with_tasks_in_the_line(port: int) -> None:
    async def main() -> None:
        pool = apool_of(port, timeout=LONG)
        _kept.append([await pool.getconn() for _ in range(3)])
        _kept.extend(asyncio.create_task(pool.getconn()) for _ in range(3))
        await await_until(lambda: pool.stats().waiting == 3, "they wait")

    asyncio.run(main())


def in_a_loop_while_connecting(port: int) -> None:
    async def main() -> None:
        gate = asyncio.Event()
        pool: AsyncConnectionPool[Any] = AsyncConnectionPool(gate.wait, name="p", timeout=LONG)
        _kept.append(asyncio.create_task(pool.getconn()))
        await await_until(lambda: pool.stats().connecting == 1, "it connects")
        async with apool_of(port).connection() as conn:
            conn.ask()

    asyncio.run(main())


def in_a_loop_with_work_to_do(port: int) -> None:
    """Resets and closings are under way as the loop ends."""

    async def reset(_conn: Speaker) -> None:
        await asyncio.sleep(0.01)

    async def main() -> None:
        pool = apool_of(port, reset=reset)
        for _ in range(3):
            async with pool.connection() as conn:
                conn.ask()
        _kept.append(pool)

    asyncio.run(main())


def in_a_loop_by_interrupt(port: int) -> None:
    async def main() -> None:
        pool = apool_of(port)
        async with pool.connection() as conn:
            conn.ask()
            ready()
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(LONG)

    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        sys.exit(0)


def in_two_loops(port: int) -> None:
    """A pool in each."""
    for _ in range(2):
        in_a_loop(port)


if __name__ == "__main__":
    for name in sys.argv[2:]:
        globals()[name](int(sys.argv[1]))
