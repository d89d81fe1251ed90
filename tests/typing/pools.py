"""What users' code with pools looks like to a type checker. Never run, as `api`."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import assert_type

from resilient import AsyncConnectionPool, ConnectionPool


class Link:
    async def ask(self, question: str) -> int:
        return len(question)


async def open_link() -> Link:
    return Link()


def connect() -> sqlite3.Connection:
    return sqlite3.connect(":memory:")


pool = ConnectionPool(connect, name="orders")
links = AsyncConnectionPool(open_link, name="links")

assert_type(pool, ConnectionPool[sqlite3.Connection])
assert_type(links, AsyncConnectionPool[Link])


@pool
def count(conn: sqlite3.Connection, table: str, *, least: int = 0) -> int:
    return len(conn.execute(f"SELECT * FROM {table} LIMIT {least}").fetchall())


@pool
def rows(conn: sqlite3.Connection, table: str) -> Iterator[str]:
    yield from conn.execute(f"SELECT * FROM {table}")


@links
async def ask(link: Link, question: str) -> int:
    return await link.ask(question)


def borrow() -> None:
    with pool.connection(timeout=1) as conn:
        assert_type(conn, sqlite3.Connection)
    assert_type(pool.getconn(), sqlite3.Connection)
    assert_type(pool.unwrap(pool.getconn()), sqlite3.Connection)
    assert_type(count("orders", least=1), int)
    assert_type(rows("orders"), Iterator[str])


async def borrow_asynchronously() -> None:
    async with links.connection() as link:
        assert_type(link, Link)
    assert_type(await links.getconn(), Link)
    assert_type(await ask("why"), int)
