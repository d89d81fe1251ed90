"""Keys: whose a call is, made of its arguments, and kept short."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Final

from . import params
from .policy import callee_of

__all__ = ["compact", "digest", "key_maker"]

_LONGEST: Final = 64  # characters; a digest is shorter


def compact(key: str, secret: bytes = b"") -> str:
    """Return *key*, or a digest of it if it is long: a store is bounded in bytes, not only in keys."""
    if not isinstance(key, str):
        params.refuse(TypeError, "key", "must be text", key)
    # What looks like a digest becomes one, or whoever sends it would have the permits of a long key.
    return key if len(key) <= _LONGEST and not key.startswith("#") else digest(key, secret)


def digest(key: str, secret: bytes = b"") -> str:
    """Return a digest of *key* that no other key has; with a *secret*, one that nobody else can know."""
    # Lone surrogates, as they come from file names and environments, are text too.
    text = key.encode("utf-8", "surrogatepass")
    return "#" + hashlib.blake2b(text, digest_size=16, key=secret).hexdigest()


def key_maker(key: Callable[..., str | None] | None) -> Callable[[Any, Any, Any], str | None] | None:
    """Return what makes a key of a function and the arguments of a call, if there is anything to make."""
    if key is None:
        return None

    def make(fn: Any, args: Any, kwargs: Any) -> str | None:
        return key(*callee_of(fn, args)[1], **kwargs)

    return make
