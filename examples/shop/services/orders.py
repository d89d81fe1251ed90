"""The orders: every one that was placed, in PostgreSQL, over a pool of connections.

Two mistakes are in here that nobody notices for a long time: `history` forgets to return its connection where
there is nothing to show, and `export` holds its own, and a transaction, while it waits for somebody else.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, Protocol, TypeAlias
from uuid import UUID

import psycopg
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from examples.shop.calls import Calls
from examples.shop.journal import say
from examples.shop.timing import scaled, session_time
from resilient.health import Database, Health

MIN_SIZE, MAX_SIZE = 2, 6
# What a transaction takes in a database that has other things to do as well.
TRANSACTION_TIME = scaled(0.5)
# How long the bookkeepers' system takes to take in what is exported to it.
BOOKING_TIME = session_time(12 * 60)

POOL = "pool"
"""What the notes of its use are called."""

Connection: TypeAlias = psycopg.AsyncConnection[Any]
Use: TypeAlias = Mapping[str, int]
"""How many connections of a pool are `used`, how many callers are `waiting`."""

# Of each connection. The transactions are where the code says so.
SETTINGS: dict[str, Any] = {"autocommit": True, "application_name": "orders"}

# No multiple of the time between two visitors, or each reading would find what the last one did.
_TELL_EVERY = 0.13
_STORE = """
    insert into orders (id, customer, currency, goods, shipping)
    values (%(order)s, %(user)s, %(currency)s, %(goods)s, %(shipping)s)
"""
_STORE_LINE = "insert into order_lines (order_id, product, quantity) values (%s, %s, %s)"
_HISTORY = """
    select id::text as order, goods::text, shipping::text, currency from orders
    where customer = %s order by placed_at desc limit 20
"""
_UNBOOKED = "select id from orders where not booked limit 100"
_BOOKED = "update orders set booked = true where id = any(%s)"


class Pool(Protocol):
    """What the service asks of a pool; that of psycopg has it, and that of resilient."""

    def connection(self) -> AbstractAsyncContextManager[Connection]:
        """Lend a connection for as long as the context is open."""

    async def getconn(self) -> Connection:
        """Lend a connection."""

    async def putconn(self, connection: Connection, /) -> None:
        """Take it back."""


class OrderBook:
    """What has been ordered.

    Args:
        pool: Lends connections to the database.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def store(self, request: Request) -> Response:
        """Keep an order and its lines, or nothing of it."""
        order = await request.json()
        lines = [(order["order"], product, quantity) for product, quantity in order["items"].items()]
        async with self._pool.connection() as connection, connection.transaction():
            await connection.execute(_STORE, order)
            await connection.cursor().executemany(_STORE_LINE, lines)
            await other_work(connection)
        return JSONResponse({"stored": order["order"]}, status_code=201)

    async def history(self, request: Request) -> Response:
        """Show what a customer has ordered, the latest first."""
        connection = await self._pool.getconn()
        await other_work(connection)
        orders = await rows(connection, _HISTORY, request.path_params["user"])
        if not orders:
            return JSONResponse([])  # B1: there is nothing to show, and nobody returns the connection
        await self._pool.putconn(connection)
        return JSONResponse(orders)

    async def export(self, request: Request) -> Response:
        """Hand orders to the bookkeepers, and note that they have them."""
        async with self._pool.connection() as connection, connection.transaction():
            ids = [order["id"] for order in await rows(connection, _UNBOOKED)]
            await book(ids)  # C2: this takes long, and nobody else can have the connection meanwhile
            await connection.execute(_BOOKED, [ids])
        return JSONResponse({"booked": len(ids)})


async def book(ids: Sequence[UUID]) -> None:
    """Wait as long as the bookkeepers' system takes to take in some orders."""
    await asyncio.sleep(BOOKING_TIME)


async def rows(connection: Connection, query: str, *values: object) -> list[dict[str, Any]]:
    """Return what a query finds."""
    cursor = connection.cursor(row_factory=dict_row)
    return await (await cursor.execute(query, values)).fetchall()


async def other_work(connection: Connection) -> None:
    """Have the database take its time."""
    await connection.execute("select pg_sleep(%s)", [TRANSACTION_TIME])


@asynccontextmanager
async def bare_pool(url: str) -> AsyncIterator[AsyncConnectionPool[Connection]]:
    """Lend connections as psycopg's own pool does."""
    pool = AsyncConnectionPool(
        url,
        kwargs=SETTINGS,
        min_size=MIN_SIZE,
        max_size=MAX_SIZE,
        # As it would do by itself: 30 seconds, and 10 minutes.
        timeout=scaled(30),
        max_idle=session_time(600),
        open=False,
    )
    async with pool:
        await pool.wait()
        yield pool


def bare_use(pool: AsyncConnectionPool[Connection]) -> Use:
    """Tell how much of the pool is in use."""
    stats = pool.get_stats()
    used = stats["pool_size"] - stats["pool_available"]
    return {"used": used, "waiting": stats["requests_waiting"]}


async def tell_use(use: Callable[[], Use]) -> None:
    """Write down a few times a second how much of the pool is in use, until cancelled."""
    while True:
        say(json.dumps({"note": POOL, **use()}))
        await asyncio.sleep(_TELL_EVERY)


def lender(
    protections: Collection[str],
) -> tuple[Callable[[str], AbstractAsyncContextManager[Any]], Callable[[Any], Use]]:
    """Return what makes the pool, and what tells of its use."""
    if "pool" not in protections:
        return bare_pool, bare_use
    # Imported only here: the bare shop has no such pool.
    from examples.shop import lending

    return lending.pool, lending.use


@asynccontextmanager
async def opened(
    calls: Calls, protections: Collection[str], health: Health
) -> AsyncIterator[list[BaseRoute]]:
    """Yield the routes of a service with a pool of connections, which is closed afterwards."""
    make, use = lender(protections)
    async with make(os.environ["SHOP_DATABASE"]) as pool:
        # It needs a connection as everybody does: where the pool has none left, there is no database.
        health.add(Database(pool), critical=True)
        telling = asyncio.create_task(tell_use(partial(use, pool)))
        try:
            yield routes(OrderBook(pool))
        finally:
            telling.cancel()


def routes(book: OrderBook) -> list[BaseRoute]:
    """Return the routes to what has been ordered."""
    return [
        Route("/orders", book.store, methods=["POST"]),
        Route("/orders/{user}", book.history, methods=["GET"]),
        Route("/export", book.export, methods=["POST"]),
    ]
