"""What lends the connections to the order database: all that differs between the two runs of B1, and of C2.

`services/orders.py` is the same in both, its mistakes included.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg

from examples.shop.services.orders import MAX_SIZE, MIN_SIZE, SETTINGS, Connection, Use
from examples.shop.timing import scaled, session_time
from resilient import AsyncConnectionPool

# 5 seconds; 10, 3 and 5 minutes. `timing.py` says how they are shortened.
TIMEOUT = scaled(5)
MAX_IDLE = session_time(10 * 60)
LEAK_AFTER = session_time(3 * 60)
MAX_HOLD = session_time(5 * 60)


@asynccontextmanager
async def pool(url: str) -> AsyncIterator[AsyncConnectionPool[Connection]]:
    """Lend connections; who does not return one is told of, and in the end it is taken away."""

    async def connect() -> Connection:
        return await psycopg.AsyncConnection.connect(url, **SETTINGS)

    connections = AsyncConnectionPool(
        connect,
        name="orders",
        min_size=MIN_SIZE,
        max_size=MAX_SIZE,
        timeout=TIMEOUT,
        max_idle=MAX_IDLE,
        leak_after=LEAK_AFTER,
        on_leak="reclaim",
        max_hold=MAX_HOLD,
    )
    async with connections:
        await connections.wait()
        yield connections


def use(pool: AsyncConnectionPool[Connection]) -> Use:
    """Tell how much of the pool is in use."""
    stats = pool.stats()
    return {"used": stats.used, "waiting": stats.waiting, "expired": stats.expired}
