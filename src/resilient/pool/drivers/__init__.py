"""What a pool knows about kinds of connections: how each is ended, cut, checked and set right.

It is known by the names of their classes, so none of the libraries is imported. Each kind is told in one way
for synchronous and asynchronous connections: `Driver` returns steps, some of which may have to be awaited.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

from .base import Driver, Steps
from .dbapi import DbApi, Sqlite
from .postgres import Asyncpg, Psycopg, Psycopg2
from .redis import RedisClient, RedisLink
from .sockets import Plain, Streams, Tls

__all__ = ["Driver", "Steps", "driver_of"]

_ANY: Final = Driver()
_BY_METHODS: Final = DbApi()
_STREAMS: Final = Streams()

# By package and class. The class may be derived from, or moved within its package.
_KNOWN: Final[dict[tuple[str, str], Driver]] = {
    ("psycopg", "BaseConnection"): Psycopg(),
    ("psycopg2", "connection"): Psycopg2(),
    ("asyncpg", "Connection"): Asyncpg(),
    ("sqlite3", "Connection"): Sqlite(),
    ("redis", "AbstractConnection"): (link := RedisLink()),
    ("redis", "Redis"): (client := RedisClient()),
    ("valkey", "AbstractConnection"): link,
    ("valkey", "Valkey"): client,
    ("ssl", "SSLSocket"): Tls(),
    ("socket", "socket"): Plain(),
}
_STREAM_CLASSES: Final = ("StreamReader", "StreamWriter")
_METHODS: Final = ("cursor", "commit", "rollback", "close")
_MOST_KINDS: Final = 128


def driver_of(conn: Any) -> Driver:
    """Return what is known of the kind of *conn*, and `note` how it is set.

    So it should be called once for each new connection, before anybody else gets it. Where nothing is known
    of it the answer is what holds for any object.
    """
    if isinstance(conn, tuple) and tuple(type(part).__name__ for part in conn) == _STREAM_CLASSES:
        return _STREAMS
    # Not its type: instrumentation puts proxies around connections, which say of what class they are.
    driver = _driver_for(conn.__class__)
    driver.note(conn)
    return driver


@lru_cache(maxsize=_MOST_KINDS)
def _driver_for(kind: type) -> Driver:
    for base in kind.__mro__:
        driver = _KNOWN.get((base.__module__.partition(".")[0], base.__name__))
        if driver is not None:
            return driver
    return _BY_METHODS if all(callable(getattr(kind, name, None)) for name in _METHODS) else _ANY
