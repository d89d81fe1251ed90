"""Keys: whose permits they are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Final

from ...engine import params
from ...engine.policy import callee_of

__all__ = ["compact", "key_maker"]

_LONGEST: Final = 64  # characters; a digest is shorter


def compact(key: str) -> str:
    """Return *key*, or a digest of it if it is long: a store is bounded in bytes, not only in keys."""
    if not isinstance(key, str):
        params.refuse(TypeError, "key", "must be text", key)
    return key if len(key) <= _LONGEST else digest(key)


def digest(key: str) -> str:
    """Return a digest of *key* that no other key has, nor is."""
    # Lone surrogates, as they come from file names and environments, are text too.
    return "#" + hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def key_maker(key: Callable[..., str | None] | None) -> Callable[[Any, Any, Any], str | None] | None:
    """Return what makes a key of a function and the arguments of a call, if there is anything to make."""
    if key is None:
        return None

    def make(fn: Any, args: Any, kwargs: Any) -> str | None:
        return key(*callee_of(fn, args)[1], **kwargs)

    return make
