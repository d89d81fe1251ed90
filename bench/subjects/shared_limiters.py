"""Rate limiters with their state on a server: one decision, one key, a real Valkey on the loopback."""

from __future__ import annotations

from bench.subjects.deciders import EVERYWHERE, Setting, decisions

CALLED = Setting(shared=True)
AWAITED = Setting(shared=True, awaited=True)

SUBJECTS = (
    *decisions("redis decision", EVERYWHERE, CALLED),
    *decisions("async redis decision", EVERYWHERE, AWAITED),
)
