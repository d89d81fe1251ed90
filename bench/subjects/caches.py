"""Cache hits: one key, in the cache, fresh."""

from __future__ import annotations

import functools
import threading

from bench.subjects.model import Outcome, Work, family

TTL = 3600.0
"""Seconds an entry stays fresh: longer than any run."""

SIZE = 1024


def resilient(work: Work) -> Work:
    """Remember with ours."""
    from resilient import Cache

    return Cache("bench", ttl=TTL, max_size=SIZE)(work)


def cachetools(work: Work) -> Work:
    """Remember with cachetools, with the lock that makes it safe in threads."""
    from cachetools import TTLCache, cached

    guarded: Work = cached(TTLCache(maxsize=SIZE, ttl=TTL), lock=threading.Lock())(work)
    return guarded


def cachebox(work: Work) -> Work:
    """Remember with cachebox (Rust)."""
    from cachebox import TTLCache, cached

    guarded: Work = cached(TTLCache(SIZE, TTL))(work)
    return guarded


def async_lru(work: Work) -> Work:
    """Remember with async-lru."""
    from async_lru import alru_cache

    guarded: Work = alru_cache(maxsize=SIZE, ttl=TTL)(work)
    return guarded


def pyresilience(work: Work) -> Work:
    """Remember with pyresilience."""
    from pyresilience import CacheConfig, resilient

    guarded: Work = resilient(cache=CacheConfig(max_size=SIZE, ttl=TTL))(work)
    return guarded


def lru_cache(work: Work) -> Work:
    """Remember with the standard library: no TTL, all in C; a yardstick, not a rival."""
    return functools.lru_cache(maxsize=SIZE)(work)


_BOTH = (
    ("resilient", "resilient-py", resilient),
    ("cachebox", "cachebox", cachebox),
    ("pyresilience", "pyresilience", pyresilience),
)

SUBJECTS = (
    *family(
        "cache hit",
        *_BOTH,
        ("cachetools TTLCache, lock", "cachetools", cachetools),
        ("functools.lru_cache", None, lru_cache),
        outcome=Outcome.REMEMBERS,
    ),
    *family(
        "async cache hit",
        *_BOTH,
        ("async-lru", "async-lru", async_lru),
        awaited=True,
        outcome=Outcome.REMEMBERS,
    ),
)
