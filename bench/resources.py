"""What subjects open and the run closes: a server, started by the first who needs it, clients and apps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import cache
from typing import Any

_DATABASES = 256

_opened = AsyncExitStack()


def valkey_url() -> str:
    """Return the address of an empty database on the run's Valkey.

    A database for each who asks: some libraries trip over the keys of others, even over those of another of
    their own algorithms.

    Raises:
        ImportError: If what runs the server is not installed: the row that asked is then absent.
    """
    return next(_databases())


@cache
def _databases() -> Iterator[str]:
    from tests.support.valkey import ValkeyServer

    server = _opened.enter_context(ValkeyServer("--databases", str(_DATABASES)))
    return (f"redis://{server.host}:{server.port}/{number}" for number in range(_DATABASES))


async def keep_open(resource: AbstractAsyncContextManager[Any]) -> None:
    """Enter a context, on the loop of the run, and leave it when the run ends."""
    await _opened.enter_async_context(resource)


def close_at_the_end(opened: Any, *, awaited: bool) -> None:
    """Have what is *opened* closed when the run ends, by its `aclose` if *awaited*, else by its `close`."""
    if awaited:
        _opened.push_async_callback(opened.aclose)
    else:
        _opened.callback(opened.close)


async def close() -> None:
    """Close everything that is open, the last opened first."""
    _databases.cache_clear()
    await _opened.aclose()
