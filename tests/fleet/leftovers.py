"""What a limiter leaves behind on the server, and what may be asked of all of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeAlias

from tests.support.valkey import ValkeyServer

from resilient import RateLimiter

Keep: TypeAlias = Callable[[RateLimiter], RateLimiter]
"""The fixture `keep`: returns a limiter, and closes it before the test's event loop is."""

# Printable ASCII without spaces: what any log, shell or monitoring tool shows as it is.
_PLAIN = re.compile(rb"[\x21-\x7e]+")
# What a cluster takes the slot from: what is between the first `{` and the next `}`, if that is not empty.
_HASH_TAG = re.compile(rb"[^{]*\{([^}]+)\}")


def keys_of(server: ValkeyServer) -> set[bytes]:
    """Return every key of the server."""
    with server.client() as client:
        return set(client.scan_iter(count=1_000))


def hash_tags_of(server: ValkeyServer) -> set[bytes]:
    """Return what a cluster would choose the nodes by."""
    return {match[1] for key in keys_of(server) if (match := _HASH_TAG.match(key))}


def assert_tidy(server: ValkeyServer, window: float) -> None:
    """Fail if a key is odd or long, has no hash tag, or outlives its use.

    A sliding window needs its last one until this one is over: two *window* seconds, and some for rounding.
    """
    with server.client() as client:
        keys = list(client.scan_iter(count=1_000))
        lives = [client.pttl(key) for key in keys]
    assert keys, "nothing was kept on the server"
    for key, milliseconds in zip(keys, lives, strict=True):
        assert _PLAIN.fullmatch(key), key
        assert len(key) < 512, key
        assert _HASH_TAG.match(key), key
        # -2: it expired between the two questions. -1: it would stay for ever.
        assert milliseconds == -2 or 0 <= milliseconds <= (2 * window + 60) * 1_000, (key, milliseconds)
